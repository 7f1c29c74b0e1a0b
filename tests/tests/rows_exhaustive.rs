//! Every rows kernel of the table, over every small size: rows of a group, keys, and columns.
//!
//! Inputs lie in NaN at bases and strides that nothing is aligned to, outputs and workspace between guard bands, and every row is
//! compared with the oracle. Sizes go in pairs, all of one with all of the other; what is left changes from case to case.
//! (`guard_pages` runs the same sizes at the ends of memory.)
#![forbid(unsafe_code)]

use regard::{Align, Dtype, Split, View, Weighting};
use regard_kernels::table::RowsKernel;
use regard_kernels::{Prefetch, Reading};
use regard_tests::{
    Blocks, Case, Engine, Layout, Random, Report, SLOW, Spec, Stored, Tensor, compare, every_rows_kernel, weightings,
};

/// Every dimension up to two vectors and a bit of the widest level, and those that models have, with one more.
fn dimensions() -> Vec<usize> {
    if SLOW {
        return (1..=11).chain([16, 33, 64]).collect();
    }
    (1..=35).chain([40, 64, 80, 96, 128, 129]).collect()
}

#[derive(Clone, Copy, Debug)]
struct Sizes {
    /// Query heads of a KV head, and queries: rows of a call are their product.
    group: usize,
    queries: usize,
    keys: usize,
    d: usize,
    d_v: usize,
}

/// Ways of reading memory, to take turns: block after block and in turns of a key or a few, of one step, of some keys, and of whole
/// blocks; asked for near, far, at once too far, and not at all.
const READINGS: [Reading; 6] = [
    Reading { turn: 0, ahead: 8192 },
    Reading { turn: 1, ahead: 0 },
    Reading { turn: 4096, ahead: 0 },
    Reading { turn: 1, ahead: 64 },
    Reading { turn: 700, ahead: usize::MAX },
    Reading { turn: usize::MAX, ahead: 4096 },
];

/// All ways of making a number of rows.
fn mixes(rows: usize) -> impl Iterator<Item = [usize; 2]> {
    (1..=rows).filter(move |group| rows.is_multiple_of(*group)).map(move |group| [group, rows / group])
}

/// What changes from case to case, in steps of their own.
struct Turn {
    count: usize,
    weightings: Vec<Weighting>,
}

impl Turn {
    fn new(start: usize) -> Self {
        Self { count: start, weightings: weightings() }
    }

    /// One problem of two KV heads.
    fn run(&mut self, kernel: &'static RowsKernel, sizes: Sizes) -> Report {
        self.count += 1;
        let (turn, engine) = (self.count, Engine::Rows(kernel));
        let Sizes { group, queries, keys, d, d_v } = sizes;
        // Softmax and selection, which have most code of their own, more often than others.
        let weighting = match turn % 5 {
            0 | 1 => Weighting::Softmax,
            2 if engine.computes(&Weighting::AverageHard) => {
                [Weighting::HardLeft, Weighting::HardRight, Weighting::AverageHard][turn / 5 % 3].clone()
            }
            _ => self.weightings[turn / 5 % self.weightings.len()].clone(),
        };
        let weighting = if engine.computes(&weighting) { weighting } else { Weighting::Taylor2 };
        let layout = |i: usize| Layout::ALL[(turn / [1, 4, 16][i]) % 4];
        let random = &mut Random::new(turn as u64);
        // Whole numbers have ties. They have scores of zero too, which need not be any in fixed point: a weighting that divides by
        // the sum of its weights, however small, then gives anything.
        let fixed = kernel.dtype == Dtype::Int8 && kernel.native;
        let divides = matches!(weighting, Weighting::EvenPower { .. });
        let whole = turn % 2 == 0 && !(fixed && divides);
        let mut tensor = |shape, i: usize| {
            if whole { Tensor::integers(shape, layout(i), 2, random) } else { Tensor::normal(shape, layout(i), random) }
        };
        let q = tensor([1, 2 * group, queries, d], 0);
        let k = tensor([1, 2, keys, d], 1);
        let v = tensor([1, 2, keys, d_v], 2);
        let q_dtype = if engine.is_native() {
            Dtype::Bf16
        } else {
            [kernel.dtype, Dtype::F32, Dtype::Bf16, Dtype::F16][turn / 3 % 4]
        };
        let q_dtype = if q_dtype == Dtype::Int8 { Dtype::F32 } else { q_dtype };
        let stored = Stored::three([&q, &k, &v], q_dtype, kernel.dtype);
        let mut spec = Spec::new(weighting);
        let keep: Vec<u8> = (0..queries * keys).map(|_| u8::from(random.chance(0.6))).collect();
        match turn / 2 % 5 {
            1 => spec.causal = Some(Align::BottomRight),
            2 => {
                spec.window = Some((Some(turn % 23), Some(turn % 3)));
                spec.align = Some(Align::BottomRight);
            }
            3 => spec.keep = Some(View::bhsd(&keep, [1, 1, queries, keys]).expect("as long as its shape")),
            _ => {}
        }
        let split = [Split::Never, Split::Keys(32), Split::Never][turn % 3];
        let out = if turn % 4 == 3 { q_dtype } else { Dtype::F32 };
        let reading = |turn: usize| Prefetch { rows: [READINGS[turn % READINGS.len()]; 3] };
        let blocks = Blocks::new([32, 64, 96][turn / 7 % 3], 1);
        let blocks = Blocks { split, layout: layout(turn % 3), out, prefetch: reading(turn / 3), ..blocks };
        let case = Case::stored(spec, &stored);
        let output = engine.run(&case, &blocks);
        if turn.is_multiple_of(4) {
            // How memory is asked for changes no bit.
            let other = Blocks { prefetch: reading(turn / 3 + 1 + turn / 12 % 5), ..blocks };
            engine.run(&case, &other).assert_same(&output, &format!("{}, {sizes:?}, other reading", kernel.name));
        }
        // More rows are taken in groups of other sizes, and a row's weights added up in another order.
        if let Some(twin) = twin(kernel).filter(|twin| group * queries <= twin.group) {
            Engine::Rows(twin).run(&case, &blocks).assert_same(&output, &format!("{}, {sizes:?}", twin.name));
        }
        compare(&case, &case.problem(), &output)
    }
}

/// The kernel whose bits another one has, in a group of as many rows: sums of integers are exact, however they are taken.
fn twin(kernel: &RowsKernel) -> Option<&'static RowsKernel> {
    let name = kernel.name.strip_suffix("_rows_int8_amx")?;
    every_rows_kernel().find(|other| other.name.strip_suffix("_rows_int8_dots") == Some(name))
}

/// Goes through sizes with every kernel, and prints how close each came.
fn sweep(name: &str, sizes: impl Fn() -> Box<dyn Iterator<Item = Sizes>>) {
    for (i, kernel) in every_rows_kernel().enumerate() {
        // Another start for each kernel mixes sizes with layouts, weightings and masks.
        let mut turn = Turn::new(31 * i);
        let report = sizes().fold(Report::default(), |report, sizes| report.and(turn.run(kernel, sizes)));
        let Report { error, used, rows } = report;
        println!("{name}, {}: {rows} rows, largest error {error:.1e}, {used:.2} of what is allowed", kernel.name);
    }
}

/// 1 to 17 rows in every mix of heads and queries, with 0 to 70 keys.
#[test]
fn every_number_of_rows_and_keys() {
    sweep("rows and keys", || {
        let most = if SLOW { 9 } else { 17 };
        let keys = if SLOW { 19 } else { 70 };
        let mut columns = dimensions().into_iter().cycle();
        let mut other = dimensions().into_iter().rev().cycle().step_by(3);
        let all = (1..=most).flat_map(mixes).flat_map(move |mix| (0..=keys).map(move |keys| (mix, keys)));
        // Mixes take turns, so that each has all numbers of keys in two or three rounds of rows.
        Box::new(all.enumerate().filter(|(i, _)| i % 2 == 0).map(move |(_, ([group, queries], keys))| Sizes {
            group,
            queries,
            keys,
            d: columns.next().expect("it goes round"),
            d_v: other.next().expect("it goes round"),
        }))
    });
}

/// Every d with every d_v.
#[test]
fn every_pair_of_dimensions() {
    sweep("dimensions", || {
        let pairs = dimensions().into_iter().flat_map(|d| dimensions().into_iter().map(move |d_v| (d, d_v)));
        Box::new(pairs.enumerate().map(|(i, (d, d_v))| {
            let rows = 1 + i % 17;
            let mix = mixes(rows).nth(i / 17 % mixes(rows).count()).expect("that many mixes");
            Sizes { group: mix[0], queries: mix[1], keys: [5, 33, 1, 18, 40][i % 5], d, d_v }
        }))
    });
}

/// More rows than a call takes, up to 71 heads of a KV head, with one and several queries.
#[test]
fn more_rows_than_a_call_takes() {
    sweep("many rows", || {
        let groups = if SLOW { vec![12, 71] } else { vec![8, 12, 16, 24, 31, 32, 40, 63, 64, 65, 71] };
        let all = groups.into_iter().flat_map(|group| [1, 2, 5].map(|queries| (group, queries)));
        Box::new(all.enumerate().map(|(i, (group, queries))| Sizes {
            group,
            queries,
            keys: [37, 70, 3][i % 3],
            d: [8, 33, 1][i % 3],
            d_v: [20, 7, 64][i / 2 % 3],
        }))
    });
}

/// The ends of key blocks and spans.
#[test]
fn every_end_of_a_block() {
    sweep("blocks", || {
        let keys = [31, 32, 33, 63, 64, 65, 95, 96, 97, 127, 128, 129, 191, 193, 257];
        let all = keys.into_iter().flat_map(|keys| (1..=8).chain([9, 13, 16]).map(move |rows| (keys, rows)));
        let all = all.enumerate().filter(|(i, _)| !SLOW || i % 7 == 0);
        Box::new(all.map(|(i, (keys, rows))| Sizes { group: rows, queries: 1, keys, d: 5 + i % 4, d_v: 9 }))
    });
}

/// Values of more columns than any kernel takes at once, so that blocks are passed over in chunks.
#[test]
fn wide_values() {
    sweep("wide values", || {
        let all = (1..=9).chain([13, 16, 17]).flat_map(|rows| [257, 320, 513].map(|d_v| (rows, d_v)));
        Box::new(all.enumerate().map(|(i, (rows, d_v))| {
            let mix = mixes(rows).nth(i % mixes(rows).count()).expect("that many mixes");
            Sizes { group: mix[0], queries: mix[1], keys: [33, 70, 97, 130][i % 4], d: 9 + i % 3, d_v }
        }))
    });
}
