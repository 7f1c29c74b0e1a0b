//! The linear form against f64, at every level.

use regard_simd::Level;

use super::{Method, Recurrent, RecurrentShape, RowTerms, Series, run, workspace_len};
use crate::launch::{Call, Executor, Sequence, Temperatures};
use crate::rules::{Count, Schedule, Shift};
use crate::tensor::{Tensor, TensorMut};
use crate::view::{View, ViewMut};
use crate::weighting::Identity;
use crate::{Band, weighting::Map};

/// So many threads.
struct Threads(usize);

impl Executor for Threads {
    fn threads(&self) -> usize {
        self.0
    }

    fn run(&self, work: &(dyn Fn() + Sync)) {
        std::thread::scope(|scope| (0..self.0).for_each(|_| drop(scope.spawn(work))));
    }
}

/// Numbers in [-1, 1), and a generator of them.
fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// A call without sequences.
fn call_of<'a>(q: Tensor<'a>, k: Tensor<'a>, v: Tensor<'a>) -> Call<'a> {
    Call {
        index: None,
        q,
        k,
        v,
        pages: None,
        sequences: &[],
        keep: None,
        bias: None,
        alibi_slopes: None,
        sinks: None,
        scale: 0.5,
        softcap: None,
        temperature: Temperatures::One(1.0),
        schedule: Schedule::Constant,
        count: Count::AllKeys,
        shift: Shift::Constant(0.0),
        coefficient: 1.0,
        exponent: 0.0,
        weighting: &Map(Identity),
    }
}

/// What may underflow: a power of a gate times numbers of the size of 1.
const TINY: f64 = 1e-36;

/// One head of keys, and as many of queries as `q` is long.
#[derive(Clone)]
struct Case {
    queries: usize,
    keys: usize,
    d: usize,
    d_v: usize,
    upper: Option<i64>,
    offset: i64,
    gate: Option<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Case {
    fn new([queries, keys, d, d_v]: [usize; 4], upper: Option<i64>, gate: Option<f32>) -> Self {
        let offset = upper.unwrap_or(0) - 1;
        let (q, k, v) = (random(1, queries * d), random(2, keys * d), random(3, keys * d_v));
        Self { queries, keys, d, d_v, upper, offset, gate, q, k, v }
    }

    fn run(&self, level: Level, series: Series) -> Vec<f32> {
        self.run_by(&Threads(1), level, series, 32)
    }

    fn run_by(&self, threads: &Threads, level: Level, series: Series, chunk: usize) -> Vec<f32> {
        let mut method = Method::new(level, series, self.d).expect("few monomials");
        (method.chunk, method.share_from) = (chunk, 0.0);
        let heads = self.q.len() / (self.queries * self.d);
        let Self { queries, keys, d, d_v, .. } = *self;
        let view = |data, heads, rows, columns| View::bhsd(data, [1, heads, rows, columns]).expect("a view");
        let band = Band { lower: None, upper: self.upper };
        let sequences = [Sequence { batch: 0, first_query: 0, queries, first_key: 0, keys, band, offset: self.offset }];
        let q = view(&self.q, heads, queries, d);
        let (k, v) = (view(&self.k, 1, keys, d), view(&self.v, 1, keys, d_v));
        let call = Call { sequences: &sequences, ..call_of(Tensor::from(q), Tensor::from(k), Tensor::from(v)) };
        let gates = self.gate.map(|gate| [gate]);
        let mut out = vec![f32::NAN; heads * queries * d_v];
        let mut workspace = vec![f32::NAN; workspace_len(&call, &method, threads.0)];
        let view = ViewMut::bhsd(&mut out, [1, heads, queries, d_v]).expect("a view");
        run(&call, gates.as_ref().map(|gates| &gates[..]), &method, TensorMut::F32(view), &mut workspace, threads);
        out
    }

    /// Weight and its size if nothing cancelled out, of a pair.
    fn weight(&self, series: Series, query: usize, key: usize) -> [f64; 2] {
        let rows = |x: &[f32], row: usize| -> Vec<f64> {
            x[row * self.d..(row + 1) * self.d].iter().map(|x| f64::from(*x)).collect()
        };
        let (q, k) = (rows(&self.q, query), rows(&self.k, key));
        let score = |f: fn(f64) -> f64| -> f64 { q.iter().zip(&k).map(|(q, k)| f(0.5 * q * k)).sum() };
        let distance = query as i64 + self.offset - key as i64;
        let gate = self.gate.map_or(1.0, |gate| f64::from(gate).powi(distance as i32));
        [score(|x| x), score(f64::abs)].map(|s| {
            let powers = series.coefficients.iter().enumerate();
            gate * powers.map(|(power, c)| f64::from(*c) * s.powi(power as i32)).sum::<f64>()
        })
    }

    /// Compares with f64. Rounding errors are those of sums of monomials, so that they go with the sizes of these.
    fn check(&self, level: Level, series: Series) {
        let out = self.run(level, series);
        let band = Band { lower: None, upper: self.upper };
        for query in 0..self.queries {
            let seen = band.visible(query, self.keys);
            let weights: Vec<_> = seen.clone().map(|key| self.weight(series, query, key)).collect();
            let [total, size] = [0, 1].map(|i| weights.iter().map(|weight| weight[i]).sum::<f64>());
            let u = f64::from(f32::EPSILON) / 2.0;
            let steps = (self.d + 3 * series.degree() + self.keys + 200) as f64;
            for c in 0..self.d_v {
                let value = |key: usize| f64::from(self.v[key * self.d_v + c]);
                let sum = |i: usize, f: fn(f64) -> f64| -> f64 {
                    seen.clone().zip(&weights).map(|(key, weight)| weight[i] * f(value(key))).sum()
                };
                let (mut expected, mut bound) = (sum(0, |v| v), steps * (u * sum(1, f64::abs) + TINY));
                if series.normalised {
                    let error = steps * (u * size + TINY);
                    if total.abs() <= 4.0 * error {
                        continue;
                    }
                    expected /= total;
                    bound = (bound + error * expected.abs()) / (total.abs() - error) + 4.0 * u * expected.abs();
                }
                if seen.is_empty() {
                    expected = 0.0;
                }
                let found = f64::from(out[query * self.d_v + c]);
                assert!(
                    (found - expected).abs() <= bound,
                    "{level:?} {series:?} {:?} upper {:?} gate {:?} row {query} column {c}: {found} and not {expected}, \
                     bound {bound}",
                    [self.queries, self.keys, self.d, self.d_v],
                    self.upper,
                    self.gate
                );
            }
        }
    }
}

fn all_series() -> Vec<Series> {
    let power = |degree, normalised| Series::power(degree, normalised).expect("a degree");
    vec![power(1, false), power(2, false), power(2, true), power(3, false), power(4, true), Series::TAYLOR_2]
}

#[test]
fn as_many_monomials_as_there_are() {
    let count = |degree, d| Series::power(degree, false).map(|series| series.features(d));
    assert_eq!([1, 2, 3, 4].map(|p| count(p, 64)), [64, 2080, 45760, 766_480].map(Some));
    assert_eq!([1, 2, 3, 4].map(|p| count(p, 32)), [32, 528, 5984, 52360].map(Some));
    assert_eq!(Series::TAYLOR_2.features(16), 153);
    assert_eq!([count(0, 4), count(5, 4), count(3, 0)], [None, None, Some(0)]);
    assert_eq!(count(4, usize::MAX), Some(usize::MAX));
}

#[test]
fn agrees_with_f64() {
    for level in Level::available() {
        for series in all_series() {
            for shape in [[1, 1, 1, 1], [5, 33, 3, 2], [70, 70, 9, 17], [40, 97, 7, 33], [130, 131, 4, 5], [3, 0, 2, 2]]
            {
                for upper in [None, Some(1), Some(0), Some(-5), Some(20), Some(61), Some(200)] {
                    for gate in [None, Some(0.9), Some(1e-3), Some(1.0)] {
                        if gate.is_none() || upper.is_some() {
                            Case::new(shape, upper, gate).check(*level, series);
                        }
                    }
                }
            }
        }
    }
}

/// Only rows that see a key see its NaN, whatever shares its chunk.
#[test]
fn nan_stays_behind_the_mask() {
    for level in Level::available() {
        for series in all_series() {
            for (at, in_keys) in [(0, true), (40, true), (40, false), (64, true), (69, false)] {
                let clean = Case::new([70, 70, 5, 6], Some(1), Some(0.97));
                let mut case = clean.clone();
                if in_keys {
                    case.k[at * 5 + 2] = f32::NAN;
                } else {
                    case.v[at * 6 + 1] = f32::NAN;
                }
                let (out, clean) = (case.run(*level, series), clean.run(*level, series));
                for (i, (x, y)) in out.iter().zip(&clean).enumerate() {
                    let hit = i / 6 >= at && (in_keys || i % 6 == 1);
                    assert!(if hit { x.is_nan() } else { x.to_bits() == y.to_bits() }, "{level:?} {series:?} {at} {i}");
                }
            }
        }
    }
}

/// Decoding gives the bits of prefill, and a merge what both parts give together.
#[test]
fn decoding_gives_the_bits_of_prefill() {
    for level in Level::available() {
        for series in all_series() {
            for gate in [None, Some(0.9)] {
                let case = Case::new([100, 100, 5, 19], Some(1), gate);
                let expected = case.run(*level, series);
                let mut method = Method::new(*level, series, 5).expect("few monomials");
                method.chunk = 32;
                let shape = RecurrentShape { query_heads: 1, kv_heads: 1, value_dim: 19 };
                let new = || Recurrent::new(method.clone(), shape, gate.map(|gate| vec![gate])).expect("small");
                let push = |state: &mut Recurrent, from: usize, to: usize| {
                    let k = View::bhsd(&case.k[from * 5..to * 5], [1, 1, to - from, 5]).expect("a view");
                    let v = View::bhsd(&case.v[from * 19..to * 19], [1, 1, to - from, 19]).expect("a view");
                    state.push(&Tensor::from(k), &Tensor::from(v));
                };
                let output = |state: &mut Recurrent, at: usize| {
                    let mut out = vec![f32::NAN; 19];
                    let q = View::bhsd(&case.q[at * 5..(at + 1) * 5], [1, 1, 1, 5]).expect("a view");
                    let view = ViewMut::bhsd(&mut out, [1, 1, 1, 19]).expect("a view");
                    state.output(&Tensor::from(q), &|_| RowTerms { gain: 0.5, out: 1.0 }, TensorMut::F32(view));
                    out
                };
                let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                let mut state = new();
                for at in 0..100 {
                    push(&mut state, at, at + 1);
                    assert_eq!(
                        bits(&output(&mut state, at)),
                        bits(&expected[at * 19..(at + 1) * 19]),
                        "{level:?} {at}"
                    );
                }
                let (mut left, mut right, mut none) = (new(), new(), new());
                push(&mut left, 0, 41);
                push(&mut right, 41, 100);
                left.merge(&none);
                left.merge(&right);
                none.merge(&left);
                assert_eq!(none.keys(), 100);
                for (x, y) in output(&mut none, 99).iter().zip(&expected[99 * 19..]) {
                    assert!((x - y).abs() <= 1e-4 * (1.0 + y.abs()), "{level:?} {series:?} {gate:?}: {x} and {y}");
                }
            }
        }
    }
}

/// Threads that share a head give the bits of one thread, whatever the mask, the group, the windows and the shape.
#[test]
fn shared_heads() {
    for level in Level::available() {
        // Windows of many chunks and of few.
        for (series, [d, d_v], chunk, length) in [
            (Series::power(2, true).expect("a degree"), [16, 19], 8, 1500),
            (Series::TAYLOR_2, [17, 5], 16, 700),
            (Series::power(3, false).expect("a degree"), [9, 16], 8, 600),
            (Series::power(1, false).expect("a degree"), [40, 33], 3, 900),
            (Series::power(2, false).expect("a degree"), [130, 3], 16, 300),
        ] {
            for (queries, keys, upper, heads, gate) in [
                (length, length, Some(1), 1, None),
                (length, length, Some(1), 1, Some(0.999)),
                (300, 2 * length, Some(2 * length as i64 - 299), 2, Some(0.9)),
                (2 * length, 70, None, 1, None),
                (2 * length, 70, Some(1), 2, Some(0.99)),
            ] {
                let mut case = Case::new([queries, keys, d, d_v], upper, gate);
                case.q = random(1, heads * queries * d);
                let run = |threads| case.run_by(&Threads(threads), *level, series, chunk);
                let one = run(1);
                assert!(one.iter().all(|x| x.is_finite()));
                for threads in [2, 7] {
                    let same = run(threads).iter().zip(&one).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{level:?} {series:?} {queries} {keys} {upper:?} {gate:?} {threads} threads");
                }
            }
        }
    }
}

/// Heads are shared where a thread would be left alone with them, and where they are long.
#[test]
fn which_heads_are_shared() {
    let mut method = Method::new(Level::best(), Series::TAYLOR_2, 16).expect("few monomials");
    method.share_from = 1e7;
    let zeros = vec![0.0; 1 << 20];
    let parting = |lengths: &[usize], kv_heads: usize, threads: usize| {
        let view = |columns| View::bhsd(&zeros[..1 << 20], [1, kv_heads, (1 << 20) / columns / kv_heads, columns]);
        let view = view(16).expect("a view");
        let sequences: Vec<_> = (lengths.iter())
            .scan(0, |first, length| {
                let start = std::mem::replace(first, *first + length);
                let band = Band { lower: None, upper: Some(1) };
                let (first_query, first_key) = (start, start);
                let (queries, keys) = (*length, *length);
                Some(Sequence { batch: 0, first_query, queries, first_key, keys, band, offset: 0 })
            })
            .collect();
        let call =
            Call { sequences: &sequences, ..call_of(Tensor::from(view), Tensor::from(view), Tensor::from(view)) };
        super::shared::parting(&call, &method, threads)
    };
    assert_eq!(parting(&[9000], 1, 2), (vec![0], 0));
    assert_eq!(parting(&[900], 1, 2), (vec![0], 1), "too short");
    assert_eq!(parting(&[9000], 2, 2), (vec![0, 1], 2));
    assert_eq!(parting(&[9000], 3, 2), (vec![0, 1, 2], 2));
    assert_eq!(parting(&[9000], 3, 8), (vec![0, 1, 2], 0));
    assert_eq!(parting(&[9000], 7, 8).1, 7, "sharing would cost more than it gives");
    assert_eq!(parting(&[10, 0, 9000, 11], 1, 2), (vec![0, 3, 2], 2));
    assert_eq!(parting(&[20000, 9000, 9000], 1, 2).1, 2);
    assert_eq!(parting(&[9000], 64, 2).1, 64);
}
