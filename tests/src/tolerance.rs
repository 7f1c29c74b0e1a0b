//! How far a result may be from the definition: first-order rounding analysis with the magnitudes at hand.
//!
//! `EPS` is the distance from 1 to the next f32, twice the error of one rounding. The errors of a chain of `n` roundings
//! add up like a random walk, to less than `EPS sqrt(n) / 2` in the root mean square: `CHAIN` of 1 is twice that, relative
//! to the sum of magnitudes, which partial sums seldom come near. `TERMS` is for the roundings that are not in a chain,
//! six of them at their worst. For one row:
//!
//! - score: `ds = EPS (CHAIN sqrt(d) + TERMS) T + TANH |capped|`, where `T` is the sum of the magnitudes that the score is
//!   made of (`sum |q||k|` times scale, ALiBi, bias, over the temperature, shift);
//! - softmax: the relative error of a weight is `dw/w = ds + 4 EPS |s - m| + EXP (1 + moves)`: the score, the argument of
//!   the exponential, and the exponential, once more for every block in which the maximum `m` moved. The error of a row is
//!   `sum dw |v| + |out| sum dw` (numerator and denominator), plus the chains of additions;
//! - pointwise: `dw = |f(s +- ds) - f(s)|` plus the roundings of `f`; normalised: the same with numerator and denominator;
//! - chains over keys: `EPS (CHAIN sqrt(n) + TERMS) sum |w||v|`;
//! - selection: a row of V exactly; the mean of `k` tied rows with `k + 2` roundings of `sum |v| / k`.
//!
//! Whatever underflows below the least normal number is lost: `sum |v|` times that number.

use regard::reference::Row;
use regard::{Shape, Weighting};

use crate::{Case, Spec};

const EPS: f64 = f32::EPSILON as f64;
const CHAIN: f64 = 1.0;
const TERMS: f64 = 3.0;
/// The stated errors of the exponential and of tanh, relative.
const EXP: f64 = 1.9e-7;
const TANH: f64 = 2.4e-7;
const TINY: f64 = f32::MIN_POSITIVE as f64;

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

/// The bound of one row of a case that was computed with this key block.
pub fn bound(case: &Case<'_>, shape: &Shape, row: &Row, index: [usize; 3], key_block: usize) -> Bound {
    let spec = &case.spec;
    let keys = spec.keys(shape, index[0]);
    let scores = &scores(case, shape, index);
    let visible = scores.iter().flatten().count();
    let n = spec.length(keys, visible);
    let chain = EPS * (CHAIN * (visible as f64).sqrt() + TERMS);
    let values = Values { case, scores, batch: index[0], head: index[1] / (shape.query_heads / shape.kv_heads) };
    match &spec.weighting {
        Weighting::HardLeft | Weighting::HardRight | Weighting::AverageHard => {
            let ties = row.weights.iter().filter(|weight| **weight != 0.0).count();
            let roundings = if ties < 2 { 0.0 } else { (ties + 2) as f64 * EPS / 2.0 };
            // Also where a weight is NaN.
            let chosen = values.sums(&|key| if roundings == 0.0 { 0.0 } else { row.weights[key] * roundings });
            Bound { out: chosen, lse: 0.0, scores: scores.clone(), weights: None }
        }
        Weighting::Softmax => softmax(case, row, index, key_block, scores, chain, &values),
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
            let errors = values.sums(&|key| weights[key].1 + chain * weights[key].0.abs());
            let lost = values.sums(&|_| TINY * factor.abs().max(1.0));
            let out =
                (0..shape.value_dim).map(|c| errors[c] + row.out[c].abs() * denominator + lost[c] + TINY).collect();
            Bound { out, lse: 0.0, scores: scores.clone(), weights: Some(weights) }
        }
    }
}

fn softmax(
    case: &Case<'_>,
    row: &Row,
    [_, head, _]: [usize; 3],
    key_block: usize,
    scores: &[Option<(f64, f64)>],
    chain: f64,
    values: &Values<'_>,
) -> Bound {
    let highest = |some: &[Option<(f64, f64)>]| some.iter().flatten().fold(f64::NEG_INFINITY, |m, s| m.max(s.0));
    let sink = case.spec.sinks.map(|sinks| f64::from(sinks[head]));
    let max = highest(scores);
    let reference = max.max(sink.unwrap_or(f64::NEG_INFINITY));
    let reference = if reference == f64::NEG_INFINITY { 0.0 } else { reference };
    let (mut moves, mut running) = (0, f64::NEG_INFINITY);
    for block in scores.chunks(key_block) {
        moves += usize::from(highest(block) > running);
        running = running.max(highest(block));
    }
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
    let errors = values.sums(&|key| weights[key].1 + chain * weights[key].0);
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
fn scores(case: &Case<'_>, shape: &Shape, [batch, head, query]: [usize; 3]) -> Vec<Option<(f64, f64)>> {
    let spec = &case.spec;
    let kv_head = head / (shape.query_heads / shape.kv_heads);
    let keys = spec.keys(shape, batch);
    let seen: Vec<bool> = (0..keys).map(|key| spec.sees(shape, [batch, head, query, key])).collect();
    let n = spec.length(keys, seen.iter().filter(|seen| **seen).count());
    let cold = spec.inverse_temperature(shape, [batch, head, query], n);
    let (scale, shift) = (spec.scale(shape), spec.shift(n));
    let chain = EPS * (CHAIN * (shape.head_dim as f64).sqrt() + TERMS);
    let q: Vec<f64> = (0..shape.head_dim).map(|c| f64::from(*case.q.get([batch, head, query, c]))).collect();
    let score = |key: usize| {
        let (mut product, mut magnitude) = (0.0, 0.0);
        for (c, q) in q.iter().enumerate() {
            let term = q * f64::from(*case.k.get([batch, kv_head, key, c]));
            product += term;
            magnitude += term.abs();
        }
        let mut s = product * scale;
        let mut total = magnitude * scale.abs();
        let mut cap_error = 0.0;
        if let Some(cap) = spec.softcap.map(f64::from) {
            s = cap * (s / cap).tanh();
            cap_error = TANH * s.abs();
        }
        for addend in spec.addends(shape, [batch, head, query, key]) {
            s += addend;
            total += addend.abs();
        }
        (s * cold + shift, (chain * total + cap_error) * cold.abs() + EPS * 2.0 * shift.abs())
    };
    (0..keys).map(|key| seen[key].then(|| score(key))).collect()
}

/// The values that one row sees.
struct Values<'a> {
    case: &'a Case<'a>,
    scores: &'a [Option<(f64, f64)>],
    batch: usize,
    head: usize,
}

impl Values<'_> {
    /// `sum over visible keys of weight(key) |v|`, for each column.
    fn sums(&self, weight: &dyn Fn(usize) -> f64) -> Vec<f64> {
        let v = &self.case.v;
        let mut sums = vec![0.0; v.shape()[3]];
        for key in (0..self.scores.len()).filter(|key| self.scores[*key].is_some()) {
            let weight = weight(key);
            for (c, sum) in sums.iter_mut().enumerate() {
                *sum += weight * f64::from(*v.get([self.batch, self.head, key, c])).abs();
            }
        }
        sums
    }
}
