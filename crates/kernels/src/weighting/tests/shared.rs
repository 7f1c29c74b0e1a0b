//! Lanes that share a row, each with every so manieth of its keys and all with its largest score of the block.

use regard_simd::Level;

use super::{Random, SELECTIONS};
use crate::lanes::Segment;
use crate::weighting::{AnyWeighting, Block, Kind, MAX_STATE, slot};

/// Lanes: a multiple of those of any level.
const LANES: usize = 16;
/// Keys of a lane in a block.
const STEPS: usize = 3;

/// Key `k` of a row lies in step `k / ways` and in lane `k % ways` of the row's.
fn weigh(weighting: &dyn AnyWeighting, level: Level, ways: usize, scores: &[Vec<f32>]) -> [[f32; LANES]; MAX_STATE] {
    let (functions, data) = (weighting.functions(level), weighting.data());
    let mut state = [[0.0_f32; LANES]; MAX_STATE];
    // SAFETY: the functions are of the level, and the state has room for the slots of all lanes.
    unsafe { (functions.begin)(data, state.as_mut_ptr().cast(), LANES) };
    let steps = scores[0].len() / ways;
    for first in (0..steps).step_by(STEPS) {
        let step = |step: usize| -> [f32; LANES] {
            std::array::from_fn(|lane| scores[lane / ways][(first + step) * ways + lane % ways])
        };
        let mut block: Vec<[f32; LANES]> = (0..STEPS.min(steps - first)).map(step).collect();
        let max: [f32; LANES] = std::array::from_fn(|lane| {
            let row = lane / ways * ways..(lane / ways + 1) * ways;
            block.iter().flat_map(|scores| &scores[row.clone()]).fold(f32::NEG_INFINITY, |max, score| max.max(*score))
        });
        let ones = [1.0; LANES];
        let block = Block {
            scores: block.as_mut_ptr().cast(),
            lanes: LANES,
            segments: &[Segment { key: 0, keys: block.len(), masked: false }],
            vectors: LANES / level.isa().lanes(),
            visible: std::ptr::null(),
            first_key: first,
            max: max.as_ptr(),
            gain: ones.as_ptr(),
            shift: ones.as_ptr(),
            state: state.as_mut_ptr().cast(),
            alpha: std::ptr::null_mut(),
        };
        // SAFETY: the functions are of the level, and the arrays that a selection uses are as the fields say.
        unsafe { (functions.weigh)(data, &block) };
    }
    state
}

/// The keys of a row with its largest score, in order.
fn largest(scores: &[f32]) -> Vec<usize> {
    let max = scores.iter().fold(f32::NEG_INFINITY, |max, score| max.max(*score));
    (0..scores.len()).filter(|key| max > f32::NEG_INFINITY && scores[*key] == max).collect()
}

fn check(weighting: &dyn AnyWeighting, level: Level, ways: usize, scores: &[Vec<f32>]) {
    let state = weigh(weighting, level, ways, scores);
    let key_of = |lane: usize| {
        let step = state[slot::KEY][lane].to_bits();
        (step != slot::NO_KEY).then(|| step as usize * ways + lane % ways)
    };
    for (row, scores) in scores.iter().enumerate() {
        let which = format!("{weighting:?} at {level:?}, {ways} lanes, {scores:?}");
        let largest = largest(scores);
        let max = largest.first().map_or(f32::NEG_INFINITY, |key| scores[*key]);
        let lanes = row * ways..(row + 1) * ways;
        for lane in lanes.clone() {
            let own: Vec<usize> = largest.iter().copied().filter(|key| key % ways == lane % ways).collect();
            assert_eq!(state[slot::MAX][lane], max, "{which}");
            let nan = scores.iter().skip(lane % ways).step_by(ways).any(|score| score.is_nan());
            assert_eq!(state[slot::NAN][lane], f32::from(nan), "{which}");
            let key = key_of(lane);
            if weighting.kind() == Kind::TiedRows {
                assert_eq!(state[slot::COUNT][lane], own.len() as f32, "{which}");
                assert_eq!(key, own.first().copied(), "{which}");
            } else if format!("{weighting:?}").contains("Right") {
                assert_eq!(key, own.last().copied(), "{which}");
            } else {
                // A later tie is as good as none.
                assert!(key == own.first().copied() || (key.is_none() && own.first() != largest.first()), "{which}");
            }
        }
        let keys = lanes.filter_map(key_of);
        let right = format!("{weighting:?}").contains("Right");
        let (got, expected) = if right { (keys.max(), largest.last()) } else { (keys.min(), largest.first()) };
        assert_eq!(got, expected.copied(), "{which}");
    }
}

#[test]
fn lanes_that_share_a_row_find_its_keys() {
    let mut random = Random(1);
    let few = [f32::NEG_INFINITY, -1.0, 0.0, -0.0, 1.0, 2.0, f32::NAN];
    for weighting in SELECTIONS {
        for level in Level::available() {
            for ways in [1, 2, 4, 8, 16] {
                for round in 0..200 {
                    let keys = ways * (1 + random.below(3 * STEPS));
                    let some = 1 + random.below(if round % 4 == 0 { 7 } else { 6 });
                    let row = |_| (0..keys).map(|_| few[random.below(some)]).collect();
                    check(weighting, *level, ways, &(0..LANES / ways).map(row).collect::<Vec<_>>());
                }
            }
        }
    }
}
