//! One call of the lanes kernel at every level: that where and how the elements lie makes no difference to any bit, and
//! that products of bf16 are as good as they can be.
//!
//! Results for f32 where it lies are checked against f64 by the tests of the workspace.

mod bf16_products;
mod storage;

use regard_simd::{Level, Simd, bf16, f16};

use self::storage::{Stored, Where, random};
use super::Lanes;
use super::args::{Head, Temperature};
use super::scratch::{Layout, Sizes};
use crate::mask::{Band, Matrix};
use crate::rules::{Count, RowRules, Schedule, Shift, Weigh};
use crate::source::{PartialRows, Source, Target};
use crate::tensor::Dtype;
use crate::weighting::{AnyWeighting, AverageHard, Hard, Map, Normalised, Polynomial, Relu, RowState, Side, Softmax};

/// One call, and where its parts lie.
#[derive(Clone, Copy)]
struct Case<'a> {
    q: &'a Stored,
    k: &'a Stored,
    v: &'a Stored,
    keys: usize,
    band: Band,
    keep: Option<&'a [u8]>,
    key_block: usize,
    scale: f32,
    copy: bool,
    out: Dtype,
    weighting: &'a dyn AnyWeighting,
}

/// What a call writes.
#[derive(Debug, PartialEq)]
struct Results {
    /// As bits of the element type.
    out: Vec<u32>,
    lse: Vec<u32>,
}

impl<'a> Case<'a> {
    fn new(q: &'a Stored, k: &'a Stored, v: &'a Stored, weighting: &'a dyn AnyWeighting) -> Self {
        let keys = k.rows;
        let (key_block, scale) = (32, -0.3);
        Self { q, k, v, keys, band: Band::FULL, keep: None, key_block, scale, copy: false, out: Dtype::F32, weighting }
    }

    fn head(&self, level: Level) -> Head<'a> {
        let (q, k, v) = (self.q.tensor(), self.k.tensor(), self.v.tensor());
        Head {
            q: q.head(0, 0),
            q_dtype: q.dtype(),
            q_stride: q.strides()[2],
            first_row: 0,
            rows: self.q.rows,
            k: Source::new(&k, 0, 0, 0, self.k.pages()),
            v: Source::new(&v, 0, 0, 0, self.v.pages()),
            keys: self.keys,
            span: 0..self.keys,
            d: self.k.columns,
            d_v: self.v.columns,
            out: Target { dtype: self.out, data: std::ptr::null_mut(), row_bytes: 0 },
            lse: std::ptr::null_mut(),
            partial: None,
            band: self.band,
            keep: self.keep.map(|keep| Matrix { data: keep.as_ptr(), row_stride: self.keys, key_stride: 1 }),
            bias: None,
            alibi: None,
            scale: self.scale,
            softcap: None,
            sink: Some(0.5),
            temperature: Temperature::One(1.0),
            rules: RowRules {
                schedule: Schedule::Constant,
                count: Count::Visible,
                shift: Shift::Constant(0.0),
                coefficient: 1.0,
                exponent: 0.0,
            },
            weighting: Weigh {
                functions: self.weighting.functions(level),
                data: self.weighting.data(),
                _data: std::marker::PhantomData,
            },
            key_block: self.key_block,
            copy: self.copy,
            prune: None,
            order: None,
        }
    }

    /// The results at a level, by the arithmetic of f32 or of pairs.
    fn run(&self, level: Level, pairs: bool) -> Results {
        self.run_with(level, |head| run(level, pairs, head))
    }

    fn run_with(&self, level: Level, run: impl FnOnce(&Head<'_>)) -> Results {
        let bytes = self.out.bytes();
        let mut out = vec![0x5a_u8; self.q.rows * self.v.columns * bytes];
        let mut lse = vec![0.0; self.q.rows];
        let mut head = self.head(level);
        head.out = Target { dtype: self.out, data: out.as_mut_ptr(), row_bytes: self.v.columns * bytes };
        head.lse = lse.as_mut_ptr();
        run(&head);
        let element = |bytes: &[u8]| bytes.iter().rev().fold(0, |bits, byte| bits << 8 | u32::from(*byte));
        Results { out: out.chunks(bytes).map(element).collect(), lse: lse.into_iter().map(f32::to_bits).collect() }
    }

    fn floats(&self, level: Level, pairs: bool) -> Vec<f32> {
        self.run(level, pairs).out.into_iter().map(f32::from_bits).collect()
    }
}

/// Runs a call in scratch full of NaN.
fn run(level: Level, pairs: bool, head: &Head<'_>) {
    // Pairs by the tokens without an extension: the same code, with the instruction spelt out.
    match (level, pairs) {
        (Level::Portable(s), false) => run_tile::<_, 2, 4, 4, false>(s, head),
        (Level::Portable(s), true) => run_tile::<_, 2, 4, 4, true>(s, head),
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2(s), false) => run_tile::<_, 2, 6, 12, false>(s, head),
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2(s), true) => run_tile::<_, 2, 6, 12, true>(s, head),
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512(s), false) => run_tile::<_, 2, 8, 8, false>(s, head),
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512(s), true) => run_tile::<_, 2, 8, 8, true>(s, head),
        #[cfg(target_arch = "aarch64")]
        (Level::Neon(s), false) => run_tile::<_, 4, 6, 16, false>(s, head),
        #[cfg(target_arch = "aarch64")]
        (Level::Neon(s), true) => run_tile::<_, 4, 6, 16, true>(s, head),
        _ => unreachable!("a level without an entry here"),
    }
}

fn run_tile<S: Simd, const G: usize, const R: usize, const R1: usize, const PAIRS: bool>(s: S, head: &Head<'_>) {
    let lanes = G * S::LANES;
    let layout = Layout::new(Sizes {
        lanes,
        subtiles: head.rows.div_ceil(lanes),
        key_block: head.key_block,
        d: head.d,
        d_v: head.d_v,
        state: head.weighting.functions.state,
        copy: true,
        parts: 0,
        index_blocks: 0,
    });
    let mut memory = vec![f32::NAN; layout.len + 16];
    let start = memory.as_ptr().align_offset(64);
    let scratch = memory[start..].as_mut_ptr();
    s.vectorize(Lanes::<G, R, R1, PAIRS> { head, scratch, layout });
}

const WEIGHTINGS: [&dyn AnyWeighting; 6] =
    [&Softmax, &Hard { side: Side::Right }, &AverageHard, &Map(Relu), &Map(Polynomial::<3>), &Normalised(Relu)];

const BANDS: [Band; 3] = [Band::FULL, Band { lower: None, upper: Some(30) }, Band { lower: Some(-9), upper: Some(12) }];

/// Queries of two sub-tiles and more at any level, an odd number of keys of several blocks.
const QUERIES: usize = 75;
const KEYS: usize = 97;

/// Every place where elements may lie.
fn places() -> [Where; 5] {
    [
        Where::Rows { padding: 0 },
        Where::Rows { padding: 3 },
        Where::Pages { rows: 4 },
        Where::Pages { rows: 64 },
        Where::Pages { rows: 200 },
    ]
}

#[test]
fn elements_of_every_type_and_place_give_the_bits_of_f32() {
    for (d, d_v) in [(33, 19), (64, 48)] {
        let q = random(1, QUERIES, d);
        // Few different elements, so that there are ties.
        let (k, v) = (random(2, KEYS, d).map(f32::round), random(3, KEYS, d_v));
        for dtype in Dtype::ALL {
            let plain = [&k, &v].map(|values| Stored::new(dtype, values, Where::Rows { padding: 0 }));
            let [wide_k, wide_v] =
                plain.each_ref().map(|stored| Stored::new(Dtype::F32, &stored.values(), places()[0]));
            let q = Stored::new(Dtype::F32, &q, Where::Rows { padding: 1 });
            for (weighting, band) in WEIGHTINGS.into_iter().flat_map(|w| BANDS.map(|band| (w, band))) {
                for level in Level::available() {
                    let case = Case { band, ..Case::new(&q, &wide_k, &wide_v, weighting) };
                    let expected = case.run(*level, false);
                    for (place, copy) in places().into_iter().flat_map(|place| [(place, false), (place, true)]) {
                        let [k, v] = [&k, &v].map(|values| Stored::new(dtype, values, place));
                        let results = Case { k: &k, v: &v, copy, ..case }.run(*level, false);
                        assert_eq!(results, expected, "{dtype} {place:?} copy {copy} {weighting:?} {band:?} {level:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn what_lies_behind_a_mask_stays_there() {
    for hidden in [|key: usize| key % 7 == 3, |key| key == 10] {
        hidden_rows(hidden);
    }
}

fn hidden_rows(hidden: impl Fn(usize) -> bool) {
    let keep: Vec<u8> = (0..QUERIES * KEYS).map(|i| u8::from(!hidden(i % KEYS))).collect();
    let (d, d_v) = (18, 21);
    let (q, k, v) = (random(4, QUERIES, d), random(5, KEYS, d), random(6, KEYS, d_v));
    let (mut bad_k, mut bad_v) = (k.clone(), v.clone());
    for key in (0..KEYS).filter(|key| hidden(*key)) {
        bad_k.row_mut(key).fill(f32::NAN);
        bad_v.row_mut(key).fill(if key % 2 == 0 { f32::NAN } else { f32::INFINITY });
    }
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        for place in places() {
            let q = Stored::new(dtype, &q, Where::Rows { padding: 0 });
            let [k, v, bad_k, bad_v] = [&k, &v, &bad_k, &bad_v].map(|values| Stored::new(dtype, values, place));
            for (weighting, band) in WEIGHTINGS.into_iter().flat_map(|w| BANDS.map(|band| (w, band))) {
                for level in Level::available() {
                    for pairs in [false, true] {
                        if pairs && dtype != Dtype::Bf16 {
                            continue;
                        }
                        let case = Case { band, keep: Some(&keep), ..Case::new(&q, &k, &v, weighting) };
                        let expected = case.run(*level, pairs);
                        let results = Case { k: &bad_k, v: &bad_v, ..case }.run(*level, pairs);
                        assert_eq!(
                            results, expected,
                            "{dtype} {place:?} pairs {pairs} {weighting:?} {band:?} {level:?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn queries_of_every_type_give_the_bits_of_f32() {
    for d in [5, 16, 70] {
        let (q, k, v) = (random(7, QUERIES, d), random(8, KEYS, d), random(9, KEYS, 24));
        let [k, v] = [&k, &v].map(|values| Stored::new(Dtype::F32, values, places()[0]));
        for dtype in [Dtype::F16, Dtype::Bf16] {
            let q = Stored::new(dtype, &q, Where::Rows { padding: 3 });
            let wide = Stored::new(Dtype::F32, &q.values(), Where::Rows { padding: 0 });
            for level in Level::available() {
                let case = Case::new(&q, &k, &v, &Softmax);
                assert_eq!(case.run(*level, false), Case { q: &wide, ..case }.run(*level, false), "{dtype} {level:?}");
            }
        }
    }
}

#[test]
fn outputs_are_rounded_once() {
    let d_v = 37;
    let (q, k, v) = (random(10, QUERIES, 16), random(11, KEYS, 16).map(f32::round), random(12, KEYS, d_v));
    let [q, k] = [&q, &k].map(|values| Stored::new(Dtype::F32, values, places()[0]));
    for dtype in Dtype::ALL {
        let v = Stored::new(dtype, &v, places()[0]);
        for weighting in WEIGHTINGS {
            for level in Level::available() {
                let case = Case::new(&q, &k, &v, weighting);
                let exact = case.floats(*level, false);
                let f16s: Vec<u32> = exact.iter().map(|x| f16::from_f32(*x).to_bits().into()).collect();
                let bf16s: Vec<u32> = exact.iter().map(|x| bf16::from_f32(*x).to_bits().into()).collect();
                assert_eq!(Case { out: Dtype::F16, ..case }.run(*level, false).out, f16s, "{weighting:?} {level:?}");
                assert_eq!(Case { out: Dtype::Bf16, ..case }.run(*level, false).out, bf16s, "{weighting:?} {level:?}");
            }
        }
    }
}

/// State and sums of a span.
fn partial(case: Case<'_>, level: Level, span: std::ops::Range<usize>) -> (Vec<RowState>, Vec<f32>) {
    let mut states = vec![RowState([7.0; 4]); case.q.rows];
    let mut sums = vec![f32::NAN; case.q.rows * case.v.columns];
    let to = PartialRows { states: states.as_mut_ptr(), sums: sums.as_mut_ptr(), d_v: case.v.columns };
    let head = Head { span, partial: Some(to), ..case.head(level) };
    run(level, false, &head);
    (states, sums)
}

#[test]
fn spans_are_those_of_the_keys_before_and_after() {
    let (q, k, v) = (random(13, QUERIES, 16), random(14, KEYS, 16).map(f32::round), random(15, KEYS, 20));
    for dtype in [Dtype::F32, Dtype::Int8] {
        let q = Stored::new(Dtype::F32, &q, places()[0]);
        let [k, v] = [&k, &v].map(|values| Stored::new(dtype, values, Where::Pages { rows: 8 }));
        for (weighting, band) in WEIGHTINGS.into_iter().flat_map(|w| BANDS.map(|band| (w, band))) {
            for level in Level::available() {
                let case = Case { band, ..Case::new(&q, &k, &v, weighting) };
                // What a span holds is what a call with a mask around the span finds.
                for span in [0..32, 32..64, 64..KEYS, 32..KEYS, 0..KEYS] {
                    let keep: Vec<u8> = (0..QUERIES * KEYS).map(|i| u8::from(span.contains(&(i % KEYS)))).collect();
                    let (states, sums) = partial(case, *level, span.clone());
                    let (expected, expected_sums) = partial(Case { keep: Some(&keep), ..case }, *level, 0..KEYS);
                    let bits =
                        |states: &[RowState]| states.iter().map(|row| row.0.map(f32::to_bits)).collect::<Vec<_>>();
                    assert_eq!(bits(&states), bits(&expected), "{weighting:?} {band:?} {span:?} {level:?}");
                    assert_eq!(sums, expected_sums, "{weighting:?} {band:?} {span:?} {level:?}");
                }
                // A span that nothing sees.
                let hidden = Band { lower: None, upper: Some(0) }.and(Band { lower: Some(1), upper: None });
                let (_, sums) = partial(Case { band: hidden, ..case }, *level, 32..64);
                assert!(sums.iter().all(|sum| *sum == 0.0), "{weighting:?} {level:?}");
            }
        }
    }
}
