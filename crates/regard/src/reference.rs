//! Attention by its definition, in f64, one score at a time: what everything else is checked against.
//!
//! Slow, and written to be read. Weights come from each weighting's own definition in f64.

use regard_kernels::Schedule;
use regard_kernels::tensor::Tensor;
use regard_profile::Family;
use regard_simd::Element;

use crate::options::{Count, Temperature};
pub use crate::rounding::Rounding;
use crate::{Problem, SigmoidBias, Weighting};

/// The output row of a query, and its log-sum-exp (meaningful for softmax).
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// `d_v` elements.
    pub out: Vec<f64>,
    /// `ln(sum of e^s)` over visible keys and the sink.
    pub lse: f64,
    /// The weight of each key, row factor included, zero for masked keys.
    pub weights: Vec<f64>,
}

/// All output rows, [`Shape::out`](crate::Shape::out) contiguous; rows of q that belong to no sequence are zero.
///
/// The rounding is that of all rows: with selection, it does for sequences that one kernel computes.
pub fn attention(problem: &Problem<'_>, rounding: impl Into<Rounding>) -> Vec<f64> {
    let (shape, rounding) = (problem.shape, rounding.into());
    let mut out = vec![0.0; shape.rows() * shape.value_dim];
    for (index, sequence) in problem.sequences.iter().enumerate() {
        for head in 0..shape.query_heads {
            for query in 0..sequence.queries {
                let place = shape.row([sequence.batch, head, sequence.first_query + query]) * shape.value_dim;
                let row = row(problem, rounding, [index, head, query]).out;
                out[place..place + shape.value_dim].copy_from_slice(&row);
            }
        }
    }
    out
}

/// One row, by `[sequence, query head, query of the sequence]`; of padded tensors `[batch, query head, query]`.
///
/// Everything is f64, of elements that are widened to f32 first (scales applied), with one exception: selection (hard
/// and average-hard) compares f32 scores, whose rounding decides ties, so the products `<q, k>` are rounded as
/// `rounding` says. (Soft-cap, ALiBi and bias are not: with these, scores that differ by rounding only may tie in a
/// kernel and not here.)
pub fn row(problem: &Problem<'_>, rounding: impl Into<Rounding>, [index, head, query]: [usize; 3]) -> Row {
    let shape = problem.shape;
    let call = problem.call();
    let sequence = &problem.sequences[index];
    let rounding = rounding.into();
    let kv_head = head / (shape.query_heads / shape.kv_heads);
    let keys = sequence.keys;
    let visible: Vec<bool> = (0..keys).map(|key| problem.sees([index, head, query, key])).collect();
    let n = length(problem, keys, &visible);
    let selects = problem.options.weighting.selects();
    let q_row = [sequence.batch, head, sequence.first_query + query];
    // Selection compares scores before the temperature, which is positive: not even an infinite one (ln 1) makes a tie.
    let divisor = if selects { 1.0 } else { temperature(problem, q_row, n) };
    let (q, _) = elements(&call.q, q_row);
    let key_row = |key| {
        let [batch, row] = problem.key_place(index, key);
        [batch, kv_head, row]
    };
    let scores: Vec<f64> = (0..keys)
        .map(|key| {
            if !visible[key] {
                // Whatever lies behind a mask is not looked at.
                return f64::NEG_INFINITY;
            }
            let (k, scale) = elements(&call.k, key_row(key));
            let product = if selects {
                f64::from(rounding.product(&q, &k, scale))
            } else {
                let scaled = |k: f32| f64::from(scale.map_or(k, |scale| k * scale));
                q.iter().zip(&k).map(|(q, k)| f64::from(*q) * scaled(*k)).sum()
            };
            let mut score = f64::from(call.scale) * product;
            if let Some(cap) = call.softcap.map(f64::from) {
                score = cap * (score / cap).tanh();
            }
            if let Some(slopes) = call.alibi_slopes {
                let position = query as f64 + sequence.offset as f64;
                score -= f64::from(slopes[head]) * (position - key as f64).abs();
            }
            if let Some(bias) = &call.bias {
                score += f64::from(*bias.get([index, head, query, key]));
            }
            score / divisor + sigmoid_bias(problem, n)
        })
        .collect();
    let sink = call.sinks.map(|sinks| f64::from(sinks[head]));
    let mut weights = vec![0.0; keys];
    problem.weighting.weights_f64(&scores, &visible, sink, &mut weights);
    if let Some(gates) = problem.options.gates {
        let position = query as f64 + sequence.offset as f64;
        for (key, weight) in weights.iter_mut().enumerate().filter(|(key, _)| visible[*key]) {
            *weight *= f64::from(gates[kv_head]).powf(position - key as f64);
        }
        // Weights that were divided by their sum before.
        let sum: f64 = weights.iter().sum();
        if problem.options.weighting.family() == Family::Normalised && sum != 0.0 {
            weights.iter_mut().for_each(|weight| *weight /= sum);
        }
    }
    let factor = f64::from(call.coefficient) * n.powf(-f64::from(call.exponent));
    weights.iter_mut().for_each(|weight| *weight *= factor);
    let mut out = vec![0.0; shape.value_dim];
    // A key that was not selected is not looked at either.
    for key in (0..keys).filter(|key| visible[*key] && !(selects && weights[*key] == 0.0)) {
        let (v, scale) = elements(&call.v, key_row(key));
        for (out, v) in out.iter_mut().zip(v) {
            *out += weights[key] * f64::from(scale.map_or(v, |scale| v * scale));
        }
    }
    Row { out, lse: log_sum_exp(&scores, &visible, sink), weights }
}

/// The elements of a row, widened, and the scale that they are still to be multiplied with if they have one.
fn elements(tensor: &Tensor<'_>, index: [usize; 3]) -> (Vec<f32>, Option<f32>) {
    fn widened<E: Element>(row: &[E]) -> Vec<f32> {
        row.iter().map(|x| x.widen()).collect()
    }
    let [batch, head, row] = index;
    match tensor {
        Tensor::F32(view) => (view.row(index).to_vec(), None),
        Tensor::F16(view) => (widened(view.row(index)), None),
        Tensor::Bf16(view) => (widened(view.row(index)), None),
        Tensor::Int8(quantised) => {
            (widened(quantised.data.row(index)), Some(*quantised.scales.get([batch, head, row, 0])))
        }
        other => ((0..other.shape()[3]).map(|c| other.get([batch, head, row, c])).collect(), None),
    }
}

/// The `n` of a row; a row that sees nothing counts as one that sees one key.
fn length(problem: &Problem<'_>, keys: usize, visible: &[bool]) -> f64 {
    let n = match problem.options.count {
        Count::AllKeys => keys as f64,
        Count::Visible => visible.iter().filter(|visible| **visible).count() as f64,
        Count::Constant(n) => f64::from(n),
    };
    n.max(1.0)
}

/// What the scores are divided by.
fn temperature(problem: &Problem<'_>, q_row: [usize; 3], n: f64) -> f64 {
    let temperature = match problem.options.temperature {
        Temperature::Constant(temperature) => temperature,
        Temperature::PerHead(temperatures) => temperatures[q_row[1]],
        Temperature::PerRow(temperatures) => temperatures[problem.shape.row(q_row)],
    };
    match problem.options.schedule {
        Schedule::Constant => f64::from(temperature),
        Schedule::LogN { factor } => f64::from(temperature) / (f64::from(factor) * n.ln()),
    }
}

fn sigmoid_bias(problem: &Problem<'_>, n: f64) -> f64 {
    match problem.options.weighting {
        Weighting::Sigmoid { bias: SigmoidBias::Constant(bias) } => f64::from(bias),
        Weighting::Sigmoid { bias: SigmoidBias::NegLogN } => -n.ln(),
        _ => 0.0,
    }
}

fn log_sum_exp(scores: &[f64], visible: &[bool], sink: Option<f64>) -> f64 {
    let seen = || scores.iter().zip(visible).filter(|(_, visible)| **visible).map(|(score, _)| *score).chain(sink);
    let max = seen().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY && !seen().any(f64::is_nan) {
        return f64::NEG_INFINITY;
    }
    max + seen().map(|score| (score - max).exp()).sum::<f64>().ln()
}
