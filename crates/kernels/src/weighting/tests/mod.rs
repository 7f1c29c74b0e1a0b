//! Merges of partial results, of every weighting at every level, against its definition in f64 over all keys at once.
//!
//! The functions under test weigh ranges of keys, block by block, with every lane a row of its own; values are summed by the
//! tests, in f64, and rounded once for each range.

mod case;
mod shared;

use regard_simd::math::LOG2_E;
use regard_simd::{Level, Simd};

use self::case::{Case, D_V, Part, ROWS};
use super::{
    AnyWeighting, AverageHard, FinishArgs, Hard, Identity, Map, Mix, Normalised, Pointwise, Polynomial, Relu,
    ReluSquared, RowState, Side, Sigmoid, Softmax, Taylor2,
};

/// splitmix64
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    /// From -2 up to 2.
    fn value(&mut self) -> f32 {
        self.below(1 << 24) as f32 / (1 << 22) as f32 - 2.0
    }
}

/// A pointwise weighting of a user's own, whose sign changes.
#[derive(Clone, Copy, Debug)]
struct Ripple;

impl Pointwise for Ripple {
    #[inline(always)]
    fn weight<S: Simd>(&self, s: S, score: S::F32) -> S::F32 {
        s.div(score, s.mul_add(score, score, s.splat(1.0)))
    }

    fn weight_f64(&self, score: f64) -> f64 {
        score / (score * score + 1.0)
    }
}

const SELECTIONS: [&dyn AnyWeighting; 3] = [&Hard { side: Side::Left }, &Hard { side: Side::Right }, &AverageHard];

/// Every weighting of the crate without a maximum, and one of a user's own.
const SUMS: [&dyn AnyWeighting; 18] = [
    &Map(Polynomial::<1>),
    &Map(Polynomial::<2>),
    &Map(Polynomial::<3>),
    &Map(Polynomial::<4>),
    &Map(Polynomial::<5>),
    &Map(Polynomial::<6>),
    &Map(Polynomial::<7>),
    &Map(Polynomial::<8>),
    &Map(Relu),
    &Map(ReluSquared),
    &Map(Sigmoid),
    &Map(Identity),
    &Map(Ripple),
    &Normalised(Taylor2),
    &Normalised(Polynomial::<2>),
    &Normalised(Polynomial::<4>),
    &Normalised(Polynomial::<6>),
    &Normalised(Polynomial::<8>),
];

/// Calls `check` with a random case of each weighting at each level.
fn each(weightings: &[&'static dyn AnyWeighting], keys: usize, check: impl Fn(Case, &mut Random)) {
    for (seed, weighting) in weightings.iter().enumerate() {
        for level in Level::available() {
            let mut random = Random(seed as u64);
            check(Case::new(*weighting, *level, keys, &mut random), &mut random);
        }
    }
}

#[test]
fn sums_merge_into_the_whole() {
    each(&SUMS, 9, |mut case, random| {
        case.out_factor = 0.3;
        case.shift = if case.weighting.functions(case.level).state == 0 { -0.5 } else { 0.0 };
        case.gain[3] = -1.5;
        case.check_everywhere(random);
        case.visible.iter_mut().for_each(|bits| *bits = random.below(1 << ROWS) as u64);
        case.scores[2][5] = f32::NAN;
        case.check_everywhere(random);
    });
}

#[test]
fn softmax_merges_into_the_whole() {
    for sink in [None, Some(-1.5), Some(3.0), Some(f32::NEG_INFINITY), Some(-1e30)] {
        each(&[&Softmax], 10, |mut case, random| {
            case.sink = sink;
            // From all alike to hard.
            case.gain[..6].copy_from_slice(&[f32::MIN_POSITIVE, 1e-3, 40.0, 1e6, 1e30, f32::MAX]);
            case.check_everywhere(random);
            case.visible.iter_mut().for_each(|bits| *bits = random.below(1 << ROWS) as u64);
            for _ in 0..30 {
                case.scores[random.below(10)][random.below(ROWS)] = f32::NEG_INFINITY;
            }
            case.scores[4][7] = f32::NAN;
            case.scores[7][8] = f32::INFINITY;
            for key in [1, 5, 9] {
                case.scores[key][9] = 2.5;
            }
            // No weight, nothing but NaN, and no key.
            (0..10).for_each(|key| case.scores[key][10..13].fill(f32::NEG_INFINITY));
            case.scores[6][11] = f32::NAN;
            case.visible[6] |= 1 << 11;
            (0..10).for_each(|key| case.visible[key] &= !(1 << 13));
            case.check_everywhere(random);
        });
    }
}

/// Few different scores, small whole values: many ties, and sums without rounding.
#[test]
fn selections_merge_exactly() {
    for round in 0..6 {
        each(&SELECTIONS, 9, |mut case, random| {
            random.0 = random.0.wrapping_add(round << 32);
            let few = [f32::NEG_INFINITY, -1.0, 0.0, -0.0, 2.0, 2.0, f32::INFINITY];
            for scores in &mut case.scores {
                scores.iter_mut().for_each(|score| *score = few[random.below(if round < 4 { 6 } else { 7 })]);
            }
            for values in &mut case.values {
                values.iter_mut().for_each(|value| *value = random.below(17) as f32 - 8.0);
            }
            case.visible.iter_mut().for_each(|bits| *bits = (random.below(1 << ROWS) | random.below(1 << ROWS)) as u64);
            (0..9).for_each(|key| case.visible[key] &= !(1 << 13));
            // Of no concern here.
            (case.gain, case.sink, case.out_factor) = ([f32::MAX; ROWS], Some(1e3), 0.3);
            if round % 2 == 1 {
                case.scores[random.below(9)][random.below(ROWS)] = f32::NAN;
            }
            case.check_everywhere(random);
        });
    }
}

/// Values of a key that is not selected, NaN and infinite ones, do not reach the result, whatever the cut.
#[test]
fn what_is_not_selected_does_not_leak() {
    each(&SELECTIONS, 6, |mut case, random| {
        for key in 0..6 {
            let chosen = key == 2 || key == 4;
            case.scores[key].fill(if chosen { 1.0 } else { 0.5 });
            case.values[key].fill(if chosen { 3.0 } else { [f32::NAN, f32::INFINITY][key / 2 % 2] });
        }
        case.check_everywhere(random);
    });
}

/// A part of no key, or of masked keys only, changes nothing on either side: not even what lies in its sums, if the state
/// of the weighting tells.
#[test]
fn empty_parts_are_neutral() {
    let softmax: [&dyn AnyWeighting; 1] = [&Softmax];
    each(&[&softmax[..], &SELECTIONS, &SUMS].concat(), 8, |mut case, random| {
        case.visible[..4].fill(0);
        let (whole, _) = case.parts(4..8);
        let (masked, _) = case.parts(0..4);
        let (begun, _) = case.parts(0..0);
        let sums = [if case.weighting.functions(case.level).ordered { f32::NAN } else { 0.0 }; D_V];
        for row in 0..ROWS {
            let which = format!("{:?} at {:?}", case.weighting, case.level);
            let none = Part { state: case.weighting.begin_row(), sums: [0.0; D_V] };
            assert_eq!(none.bits(), begun[row].bits(), "{which}");
            for state in [none.state, masked[row].state] {
                let empty = Part { state, sums };
                for parts in [[empty, whole[row]], [whole[row], empty]] {
                    assert_eq!(case.merged(row, parts.to_vec(), random).bits(), whole[row].bits(), "{which}");
                }
                assert_eq!(case.merged(row, vec![none, empty], random).bits(), none.bits(), "{which}");
            }
            assert_eq!(case.conclude(row, &none).0.map(f32::to_bits), [0; D_V], "{which}");
        }
    });
}

/// The law of softmax on numbers that need no rounding.
#[test]
fn softmax_scales_by_powers_of_two() {
    let merge = |[max, even, odd]: [f32; 3], right: [f32; 3], gain: f32| {
        let mut left = RowState([max, even, odd, 0.0]);
        let right = RowState([right[0], right[1], right[2], 0.0]);
        let mix = AnyWeighting::merge(&Softmax, &mut left, &right, gain);
        ([left.0[0], left.0[1], left.0[2]], mix)
    };
    for gain in [f32::MIN_POSITIVE, 0.7, 3e7, f32::MAX] {
        assert_eq!(merge([2.5, 1.0, 2.0], [2.5, 4.0, 8.0], gain), ([2.5, 5.0, 10.0], Mix::SUM));
    }
    // Also where the difference is not a number.
    let high = f32::INFINITY;
    assert_eq!(merge([high, 1.0, 2.0], [high, 4.0, 8.0], 1.0), ([high, 5.0, 10.0], Mix::SUM));
    let both = |left, right| Mix::Both { left, right };
    assert_eq!(merge([0.0, 1.0, 2.0], [3.0, 4.0, 8.0], 1.0), ([3.0, 4.125, 8.25], both(0.125, 1.0)));
    assert_eq!(merge([3.0, 1.0, 2.0], [1.0, 4.0, 8.0], 0.5), ([3.0, 3.0, 6.0], both(1.0, 0.5)));
    assert_eq!(merge([3.0, 1.0, 2.0], [2.0, 4.0, 8.0], f32::MAX), ([3.0, 1.0, 2.0], both(1.0, 0.0)));
    let low = f32::NEG_INFINITY;
    assert_eq!(merge([low, 0.0, 0.0], [3.0, 4.0, 8.0], 1.0), ([3.0, 4.0, 8.0], Mix::Right));
    assert_eq!(merge([3.0, 4.0, 8.0], [low, 0.0, 0.0], 1.0), ([3.0, 4.0, 8.0], Mix::Left));
    assert_eq!(merge([low, 0.0, 0.0], [low, 0.0, 0.0], 1.0), ([low, 0.0, 0.0], Mix::Left));
}

/// Rows that end together may have sinks of their own.
#[test]
fn each_row_ends_with_its_sink() {
    each(&[&Softmax], 6, |mut case, _| {
        let (parts, _) = case.parts(0..6);
        let sinks: [f32; ROWS] = std::array::from_fn(|row| if row == 3 { f32::NEG_INFINITY } else { row as f32 - 8.0 });
        let state: Vec<f32> = (0..3).flat_map(|slot| parts.iter().map(move |part| part.state.0[slot])).collect();
        let mut factor = [0.0; ROWS];
        let (gain, sink) = (case.gain.as_ptr(), sinks.as_ptr());
        let args = FinishArgs { state: state.as_ptr(), gain, lanes: ROWS, sink, factor: factor.as_mut_ptr() };
        // SAFETY: the functions are of the level, and the arrays are as the fields say.
        unsafe { (case.weighting.functions(case.level).finish)(case.weighting.data(), &args) };
        for row in 0..ROWS {
            case.sink = Some(sinks[row] / LOG2_E);
            let ones = Part { sums: [1.0; D_V], ..parts[row] };
            let alone = f64::from(case.conclude(row, &ones).0[0]);
            // The sink is turned to log2 and back.
            assert!((f64::from(factor[row]) - alone).abs() <= 1e-5 * alone, "{} for {alone}", factor[row]);
        }
    });
}

/// A selection is decided by order, and a state without a key gives way to one with a key even where the largest scores tie:
/// it may share its row with other lanes.
#[test]
fn selections_prefer_keys() {
    use super::slot::NO_KEY;
    let state = |max: f32, key: u32, count: f32| RowState([max, f32::from_bits(key), 0.0, count]);
    let merge = |weighting: &dyn AnyWeighting, mut left: RowState, right: RowState| {
        let mix = weighting.merge(&mut left, &right, 1.0);
        (left.0[0], left.0[1].to_bits(), left.0[3], mix)
    };
    let [left, right, average] = SELECTIONS;
    let (some, other, none) = (state(2.0, 7, 0.0), state(2.0, 9, 0.0), state(2.0, NO_KEY, 0.0));
    assert_eq!(merge(left, some, other), (2.0, 7, 0.0, Mix::Left));
    assert_eq!(merge(right, some, other), (2.0, 9, 0.0, Mix::Right));
    for weighting in [left, right] {
        assert_eq!(merge(weighting, some, none), (2.0, 7, 0.0, Mix::Left));
        assert_eq!(merge(weighting, none, some), (2.0, 7, 0.0, Mix::Right));
        assert_eq!(merge(weighting, some, state(3.0, NO_KEY, 0.0)), (3.0, NO_KEY, 0.0, Mix::Right));
    }
    let (some, other) = (state(2.0, 7, 3.0), state(2.0, 9, 2.0));
    assert_eq!(merge(average, some, other), (2.0, 7, 5.0, Mix::SUM));
    assert_eq!(merge(average, some, none), (2.0, 7, 3.0, Mix::Left));
    assert_eq!(merge(average, none, some), (2.0, 7, 3.0, Mix::Right));
    assert_eq!(merge(average, some, state(3.0, 9, 1.0)), (3.0, 9, 1.0, Mix::Right));
    assert_eq!(merge(average, state(3.0, 9, 1.0), some), (3.0, 9, 1.0, Mix::Left));
}

/// A merge has the same bits at every level, and on every machine: no operation of it is fused. That of the exponential would
/// alter each of these.
#[test]
fn merges_have_the_same_bits_everywhere() {
    let bits = [0x3e8e_065e, 0x3d3c_b4dc, 0x3b0b_1a20, 0x39b8_d2aa, 0x3548_da7e].map(f32::from_bits);
    assert_eq!([-1.85, -4.44, -8.88, -11.47, -20.35].map(super::row::exp2), bits);
    for level in Level::available() {
        let mut case = Case::new(&Softmax, *level, 2, &mut Random(3));
        case.gain = [1.0; ROWS];
        let part = |max: f32, key: usize| Part { state: RowState([max, 1.7, 0.3, 0.0]), sums: case.values[key] };
        let mut merged = part(0.0, 0);
        case.fold(0, &mut merged, &part(1.85, 1));
        let mix = |left: f32, right: f32| left * bits[0] + right;
        assert_eq!(merged.state.0, [1.85, mix(1.7, 1.7), mix(0.3, 0.3), 0.0]);
        assert_eq!(merged.sums, std::array::from_fn(|c| mix(case.values[0][c], case.values[1][c])));
    }
}
