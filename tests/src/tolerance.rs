//! How far a result may be from the definition: first-order rounding analysis with the magnitudes at hand.
//!
//! `EPS` is the distance from 1 to the next f32, twice the error of one rounding. The errors of a chain of `n` roundings
//! add up like a random walk, to less than `EPS sqrt(n) / 2` in the root mean square: `CHAIN` of 1 is twice that, relative
//! to the sum of magnitudes, which partial sums seldom come near. `TERMS` is for the roundings that are not in a chain,
//! six of them at their worst. For one row:
//!
//! - score: `ds = EPS (CHAIN sqrt(d) + TERMS) T + TANH |capped|`, where `T` is the sum of the magnitudes that the score is
//!   made of (`sum |q||k|` times scale, ALiBi, bias, over the temperature, shift). Chains in lanes and a tree over the lanes
//!   (rows kernels) have fewer roundings than one chain;
//! - softmax: the relative error of a weight is `dw/w = ds + 4 EPS |s - m| + EXP (1 + moves)`: the score, the argument of
//!   the exponential, and the exponential, once more for every block in which the maximum `m` moved. The error of a row is
//!   `sum dw |v| + |out| sum dw` (numerator and denominator), plus the chains of additions;
//! - pointwise: `dw = |f(s +- ds) - f(s)|` plus the roundings of `f`; normalised: the same with numerator and denominator;
//! - chains over keys: `EPS (CHAIN sqrt(n) + TERMS) sum |w||v|`;
//! - selection: a row of V exactly; the mean of `k` tied rows with `k + 2` roundings of `sum |v| / k`.
//!
//! Whatever underflows below the least normal number is lost: `sum |v|` times that number.
//!
//! What other ways of computing a row add:
//!
//! - spans: `moves` of the worst span, and one for every merge, which may change the maximum of either side; each merge makes
//!   chains longer by the two roundings of `a x + b y`;
//! - int8: the oracle rounds `scale * element` to f32 once for each element, a rows kernel once for each product: `EPS` more
//!   of the magnitudes of a score, and of `|w||v|`;
//! - products of pairs of bf16: exact, and added in f32 with as many roundings. Weights are rounded to bf16 before they meet
//!   V, at a relative error of at most `2^-8` each: `2^-8 sum |w||v|` at the worst;
//! - products of pairs of integers are exact, sums too, so that what is allowed for chains goes to their conversion. Queries and
//!   weights become multiples of a quantum, half of which each may be off: `max |q| / limit(d) / 2 sum |k|` of a score, and
//!   `max |w scale| / limit(key_block) / 2 sum |v / scale|` of a block, where `limit` is 32639 or what leaves room in 32 bits;
//! - an output of f16 or bf16: one rounding more, of `2^-11 |out|` or `2^-8 |out|`, and half of the least subnormal f16.

use regard::reference::{Rounding, Row};
use regard::{Dtype, Weighting};

use crate::{Case, Path, Spec};

const EPS: f64 = f32::EPSILON as f64;
const CHAIN: f64 = 1.0;
const TERMS: f64 = 3.0;
/// The stated errors of the exponential and of tanh, relative.
const EXP: f64 = 1.9e-7;
const TANH: f64 = 2.4e-7;
const TINY: f64 = f32::MIN_POSITIVE as f64;
/// The relative error of rounding to bf16, and to f16.
const BF16: f64 = 1.0 / 256.0;
const F16: f64 = 1.0 / 2048.0;
/// Half of the least subnormal f16, which is as far as it rounds small numbers.
const F16_TINY: f64 = 1.0 / (1 << 25) as f64;

/// How far a row may be from the definition.
#[derive(Clone, Debug)]
pub struct Bound {
    /// For each column.
    pub out: Vec<f64>,
    /// For the log-sum-exp.
    pub lse: f64,
    /// The final scores, and how far each of them may be off; masked keys have neither.
    pub scores: Vec<Option<(f64, f64)>>,
    /// The weights by the suites' own definition, with how far each may be off; `None` for selection.
    pub weights: Option<Vec<(f64, f64)>>,
}

/// The bound of one row of a case, `[sequence, head, query]`, that was computed in this way.
pub fn bound(case: &Case<'_>, row: &Row, index: [usize; 3], path: &Path) -> Bound {
    bound_of(case, &KvHead::of(case, index), row, index, path, &cuts(case, index, path), true)
}

/// The same with the keys and values of its head at hand.
pub(crate) fn bound_in(case: &Case<'_>, kv: &KvHead, row: &Row, index: [usize; 3], path: &Path) -> Bound {
    bound_of(case, kv, row, index, path, &cuts(case, index, path), true)
}

/// Keys and values of one head of a sequence in f64, which all rows that see them share.
pub(crate) struct KvHead {
    place: [usize; 2],
    keys: Vec<Vec<f64>>,
    values: Vec<Vec<f64>>,
}

impl KvHead {
    /// Those of a row, `[sequence, head, query]`.
    pub(crate) fn of(case: &Case<'_>, index: [usize; 3]) -> Self {
        let [sequence, kv_head] = Self::place(case, index);
        let keys = 0..case.shape(sequence).keys;
        Self {
            place: [sequence, kv_head],
            keys: keys.clone().map(|key| case.key([sequence, kv_head, key])).collect(),
            values: keys.map(|key| case.value([sequence, kv_head, key])).collect(),
        }
    }

    /// Whether a row sees them.
    pub(crate) fn is_of(&self, case: &Case<'_>, index: [usize; 3]) -> bool {
        self.place == Self::place(case, index)
    }

    fn place(case: &Case<'_>, [sequence, head, _]: [usize; 3]) -> [usize; 2] {
        [sequence, head / (case.q.shape()[1] / case.k.shape()[1])]
    }
}

/// The same for keys that were cut into parts at these places, of which the first is 0 and the last the number of keys, and
/// merged in any order.
pub fn bound_of_parts(case: &Case<'_>, row: &Row, index: [usize; 3], path: &Path, cuts: &[usize]) -> Bound {
    bound_of(case, &KvHead::of(case, index), row, index, path, cuts, true)
}

/// How far results of two ways that round scores alike may differ: the bound of each without the errors of scores.
pub fn bound_between(case: &Case<'_>, row: &Row, index: [usize; 3], paths: [&Path; 2]) -> Bound {
    let kv = KvHead::of(case, index);
    let [mut a, b] = paths.map(|path| bound_of(case, &kv, row, index, path, &cuts(case, index, path), false));
    a.out.iter_mut().zip(b.out).for_each(|(a, b)| *a += b);
    a.lse += b.lse;
    a
}

/// The error of rounding `x` to an element type of outputs.
pub fn output_rounding(dtype: Dtype, x: f64) -> f64 {
    match dtype {
        Dtype::F16 => (F16 * x.abs()).max(F16_TINY),
        Dtype::Bf16 => BF16 * x.abs() + TINY,
        _ => 0.0,
    }
}

/// The ends of spans.
fn cuts(case: &Case<'_>, index: [usize; 3], path: &Path) -> Vec<usize> {
    let keys = case.shape(index[0]).keys;
    (0..keys).step_by(path.span.max(1)).chain([keys]).collect()
}

fn bound_of(
    case: &Case<'_>,
    kv: &KvHead,
    row: &Row,
    index: [usize; 3],
    path: &Path,
    cuts: &[usize],
    with_scores: bool,
) -> Bound {
    let spec = &case.spec;
    let shape = case.shape(index[0]);
    let mut scores = scores(case, kv, index, path);
    if !with_scores {
        scores.iter_mut().flatten().for_each(|(_, ds)| *ds = 0.0);
    }
    let scores = &scores;
    let visible = scores.iter().flatten().count();
    let n = spec.length(shape.keys, visible);
    let merges = cuts.len().saturating_sub(2);
    let chain = EPS * (CHAIN * ((visible + 2 * merges) as f64).sqrt() + TERMS);
    // What becomes of a weight on its way to V.
    let carried = if path.native { BF16 } else { 0.0 } + if is_scaled(case, path) { EPS } else { 0.0 };
    let cut = Cut { path, cuts };
    let values = Values { case, kv, scores };
    let mut bound = match &spec.weighting {
        Weighting::HardLeft | Weighting::HardRight | Weighting::AverageHard => {
            let ties = row.weights.iter().filter(|weight| **weight != 0.0).count();
            let roundings = if ties < 2 { 0.0 } else { (ties + 2) as f64 * EPS / 2.0 };
            // Also where a weight is NaN.
            let chosen = values.sums(&|key| if roundings == 0.0 { 0.0 } else { row.weights[key] * roundings });
            Bound { out: chosen, lse: 0.0, scores: scores.clone(), weights: None }
        }
        Weighting::Softmax => softmax(case, row, index, [chain, carried], cut, &values),
        _ => {
            let normalised = matches!(spec.weighting, Weighting::EvenPower { .. } | Weighting::Taylor2);
            let mut weights: Vec<(f64, f64)> = scores.iter().map(|score| pointwise(spec, *score)).collect();
            let (sum, error) = weights.iter().fold((0.0, 0.0), |(a, b), (w, dw)| (a + w, b + dw));
            let factor = if !normalised {
                spec.factor(n)
            } else if sum == 0.0 {
                0.0
            } else {
                1.0 / sum
            };
            weights.iter_mut().for_each(|(w, dw)| (*w, *dw) = (*w * factor, *dw * factor.abs()));
            let denominator = if normalised { error * factor + chain } else { 0.0 };
            let fixed = values.fixed(&weights, cut, factor);
            let errors = values.sums(&|key| weights[key].1 + (chain + carried) * weights[key].0.abs() + fixed[key]);
            let lost = values.sums(&|_| TINY * factor.abs().max(1.0));
            let out =
                (0..shape.value_dim).map(|c| errors[c] + row.out[c].abs() * denominator + lost[c] + TINY).collect();
            Bound { out, lse: 0.0, scores: scores.clone(), weights: Some(weights) }
        }
    };
    for (bound, out) in bound.out.iter_mut().zip(&row.out) {
        *bound += output_rounding(path.out, out.abs() + *bound);
    }
    bound
}

/// Whether products are multiplied with the scale of their key or value once they are finished.
fn is_scaled(case: &Case<'_>, path: &Path) -> bool {
    case.k.dtype() == Dtype::Int8 && matches!(path.rounding, Rounding::Lanes { .. })
}

/// How keys were cut into parts, and these into blocks.
#[derive(Clone, Copy)]
struct Cut<'a> {
    path: &'a Path,
    cuts: &'a [usize],
}

/// The largest number in fixed point for sums of this many products with bytes.
fn limit(terms: usize) -> f64 {
    (i32::MAX as usize / 128 / terms.max(1)).clamp(1, 32639) as f64
}

/// How often the maximum of a row moves, for the weight that it moves most often for.
fn moves(scores: &[Option<(f64, f64)>], Cut { path, cuts }: Cut<'_>) -> usize {
    let highest = |some: &[Option<(f64, f64)>]| some.iter().flatten().fold(f64::NEG_INFINITY, |m, s| m.max(s.0));
    let within = |part: &[usize]| {
        let (mut moves, mut running) = (0, f64::NEG_INFINITY);
        for block in scores[part[0]..part[1]].chunks(path.key_block) {
            moves += usize::from(highest(block) > running);
            running = running.max(highest(block));
        }
        moves
    };
    cuts.windows(2).map(within).max().unwrap_or(0) + cuts.len().saturating_sub(2)
}

fn softmax(
    case: &Case<'_>,
    row: &Row,
    [_, head, _]: [usize; 3],
    [chain, carried]: [f64; 2],
    cut: Cut<'_>,
    values: &Values<'_>,
) -> Bound {
    let scores = values.scores;
    let moves = moves(scores, cut);
    let sink = case.spec.sinks.map(|sinks| f64::from(sinks[head]));
    let max = scores.iter().flatten().fold(f64::NEG_INFINITY, |m, s| m.max(s.0));
    let reference = max.max(sink.unwrap_or(f64::NEG_INFINITY));
    let reference = if reference == f64::NEG_INFINITY { 0.0 } else { reference };
    let exp = EXP * (1 + moves) as f64;
    // (weight, absolute error), not yet divided by the sum.
    let mut weights: Vec<(f64, f64)> = (scores.iter())
        .map(|score| {
            let Some((s, ds)) = *score else { return (0.0, 0.0) };
            let weight = (s - reference).exp();
            (weight, if weight == 0.0 { 0.0 } else { weight * (ds + 4.0 * EPS * (s - reference).abs() + exp) })
        })
        .collect();
    // The sink is turned to units of log2 and compared with the maximum.
    let sink_weight = sink.map_or(0.0, |sink| (sink - reference).exp());
    let sink_error =
        sink_weight * (EXP + 4.0 * EPS * (sink.unwrap_or(0.0).abs() + if max.is_finite() { max.abs() } else { 0.0 }));
    let sink_error = if sink_weight == 0.0 { 0.0 } else { sink_error };
    let (sum, error) = weights.iter().fold((sink_weight, sink_error), |(a, b), (w, dw)| (a + w, b + dw));
    let factor = if sum == 0.0 { 0.0 } else { 1.0 / sum };
    weights.iter_mut().for_each(|(w, dw)| (*w, *dw) = (*w * factor, *dw * factor));
    // With a sink the sum is rescaled by one more exponential.
    let denominator = error * factor + chain + if sink.is_some() { 2.0 * EXP } else { 0.0 };
    let fixed = values.fixed(&weights, cut, factor);
    let errors = values.sums(&|key| weights[key].1 + (chain + carried) * weights[key].0 + fixed[key]);
    let lost = values.sums(&|_| TINY);
    let out = (0..errors.len()).map(|c| errors[c] + row.out[c].abs() * denominator + lost[c] + TINY).collect();
    let lse = if row.lse.is_finite() {
        let extreme = max.abs().min(f64::MAX) + sink.filter(|sink| sink.is_finite()).map_or(0.0, f64::abs);
        error * factor + chain + 4.0 * EPS * (row.lse.abs() + if max.is_finite() { extreme } else { 0.0 })
    } else {
        0.0
    };
    Bound { out, lse, scores: scores.to_vec(), weights: Some(weights) }
}

/// A weight before any factor, and how far it may be off.
fn pointwise(spec: &Spec<'_>, score: Option<(f64, f64)>) -> (f64, f64) {
    let Some((s, ds)) = score else { return (0.0, 0.0) };
    let weight = spec.function(s);
    let moved = (spec.function(s + ds) - weight).abs().max((spec.function(s - ds) - weight).abs());
    let rounding = match &spec.weighting {
        // As stated for the function.
        Weighting::Sigmoid { .. } => (2e-7 + 7.5e-8 * (-s).max(0.0)) * weight,
        // Its terms may cancel.
        Weighting::Taylor2 => 2.0 * EPS * (1.0 + s.abs() + s * s / 2.0),
        _ => 2.0 * EPS * weight.abs(),
    };
    (weight, moved + rounding)
}

/// The final scores of a row in f64, with how far each may be off.
fn scores(case: &Case<'_>, kv: &KvHead, [sequence, head, query]: [usize; 3], path: &Path) -> Vec<Option<(f64, f64)>> {
    let spec = &case.spec;
    let shape = case.shape(sequence);
    let keys = shape.keys;
    let seen: Vec<bool> = (0..keys).map(|key| spec.sees(&shape, [sequence, head, query, key])).collect();
    let n = spec.length(keys, seen.iter().filter(|seen| **seen).count());
    let cold = spec.inverse_temperature(head, case.row([sequence, head, query]), n);
    let (scale, shift) = (spec.scale(&shape), spec.shift(n));
    let scaled = if is_scaled(case, path) { 1.0 } else { 0.0 };
    let chain = EPS * (CHAIN * (shape.head_dim as f64).sqrt() + TERMS + scaled);
    let q = case.query([sequence, head, query]);
    let half_quantum = if path.fixed {
        let quantum = q.iter().fold(0.0_f64, |most, q| most.max(q.abs())) / limit(shape.head_dim);
        quantum.max(TINY) / 2.0
    } else {
        0.0
    };
    let score = |key: usize| {
        let (mut product, mut magnitude, mut size) = (0.0, 0.0, 0.0);
        for (q, k) in q.iter().zip(&kv.keys[key]) {
            let term = q * k;
            product += term;
            magnitude += term.abs();
            size += k.abs();
        }
        let mut s = product * scale;
        let mut total = magnitude * scale.abs();
        let mut cap_error = 0.0;
        if let Some(cap) = spec.softcap.map(f64::from) {
            s = cap * (s / cap).tanh();
            cap_error = TANH * s.abs();
        }
        for addend in spec.addends(&shape, [sequence, head, query, key]) {
            s += addend;
            total += addend.abs();
        }
        let rounding = chain * total + cap_error + half_quantum * size * scale.abs();
        (s * cold + shift, rounding * cold.abs() + EPS * 2.0 * shift.abs())
    };
    (0..keys).map(|key| seen[key].then(|| score(key))).collect()
}

/// The values that one row sees.
struct Values<'a> {
    case: &'a Case<'a>,
    kv: &'a KvHead,
    scores: &'a [Option<(f64, f64)>],
}

impl Values<'_> {
    /// What rounding to fixed point adds to the errors of weights. Zero is exact, of keys that are not seen too.
    fn fixed(&self, weights: &[(f64, f64)], Cut { path, cuts }: Cut<'_>, factor: f64) -> Vec<f64> {
        let mut errors = vec![0.0; weights.len()];
        if !path.fixed {
            return errors;
        }
        let [sequence, head] = self.kv.place;
        let scale = |key: usize| self.case.value_scale([sequence, head, key]).map_or(1.0, f64::abs);
        for part in cuts.windows(2) {
            for first in (part[0]..part[1]).step_by(path.key_block) {
                let block = first..part[1].min(first + path.key_block);
                let seen = block.filter(|key| self.scores[*key].is_some());
                let size = |key: usize| (weights[key].0.abs() + weights[key].1) * scale(key);
                let largest = seen.clone().map(size).fold(0.0, f64::max);
                let quantum = (largest / limit(path.key_block)).max(TINY * factor.abs().max(1.0));
                for key in seen.filter(|key| scale(*key) != 0.0) {
                    errors[key] = quantum / 2.0 / scale(key);
                }
            }
        }
        errors
    }

    /// `sum over visible keys of weight(key) |v|`, for each column.
    fn sums(&self, weight: &dyn Fn(usize) -> f64) -> Vec<f64> {
        let mut sums = vec![0.0; self.case.v.shape()[3]];
        for key in (0..self.scores.len()).filter(|key| self.scores[*key].is_some()) {
            let weight = weight(key);
            for (sum, v) in sums.iter_mut().zip(&self.kv.values[key]) {
                *sum += weight * v.abs();
            }
        }
        sums
    }
}
