//! Attention by its definition, in f64, one score at a time: what everything else is checked against.
//!
//! Slow, and written to be read. Weights come from each weighting's own definition in f64.

use regard_kernels::Schedule;
use regard_simd::Isa;

use crate::options::{Count, Temperature};
use crate::{Problem, SigmoidBias, Weighting};

/// The output row of query `row`, and its log-sum-exp (meaningful for softmax).
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// `d_v` elements.
    pub out: Vec<f64>,
    /// `ln(sum of e^s)` over visible keys and the sink.
    pub lse: f64,
    /// The weight of each key, row factor included, zero for masked keys.
    pub weights: Vec<f64>,
}

/// All output rows, `[batch, query_heads, queries, d_v]` contiguous.
pub fn attention(problem: &Problem<'_>, isa: Isa) -> Vec<f64> {
    let shape = problem.shape;
    let mut out = Vec::with_capacity(shape.rows() * shape.value_dim);
    for batch in 0..shape.batch {
        for head in 0..shape.query_heads {
            for query in 0..shape.queries {
                out.extend(row(problem, isa, [batch, head, query]).out);
            }
        }
    }
    out
}

/// One row, by `[batch, query head, query]`.
///
/// Everything is f64, with one exception: selection (hard and average-hard) compares f32 scores, whose rounding decides
/// ties, so the products `<q, k>` are rounded as the level `isa` rounds them. (Soft-cap, ALiBi and bias are not: with these,
/// scores that differ by rounding only may tie in a kernel and not here.)
pub fn row(problem: &Problem<'_>, isa: Isa, [batch, head, query]: [usize; 3]) -> Row {
    let shape = problem.shape;
    let call = problem.call();
    let kv_head = head / (shape.query_heads / shape.kv_heads);
    let keys = problem.sequences[batch].keys;
    let visible: Vec<bool> = (0..keys).map(|key| problem.sees([batch, head, query, key])).collect();
    let n = length(problem, keys, &visible);
    let selects = problem.options.weighting.selects();
    // Selection compares scores before the temperature, which is positive: not even an infinite one (ln 1) makes a tie.
    let divisor = if selects { 1.0 } else { temperature(problem, [batch, head, query], n) };
    let scores: Vec<f64> = (0..keys)
        .map(|key| {
            if !visible[key] {
                // Whatever lies behind a mask is not looked at.
                return f64::NEG_INFINITY;
            }
            let q = |c| *call.q.get([batch, head, query, c]);
            let k = |c| *call.k.get([batch, kv_head, key, c]);
            let product = if selects {
                f64::from((0..shape.head_dim).fold(0.0_f32, |sum, c| match isa {
                    Isa::Portable => sum + q(c) * k(c),
                    _ => q(c).mul_add(k(c), sum),
                }))
            } else {
                (0..shape.head_dim).map(|c| f64::from(q(c)) * f64::from(k(c))).sum()
            };
            let mut score = f64::from(call.scale) * product;
            if let Some(cap) = call.softcap.map(f64::from) {
                score = cap * (score / cap).tanh();
            }
            if let Some(slopes) = call.alibi_slopes {
                let position = query as f64 + problem.sequences[batch].offset as f64;
                score -= f64::from(slopes[head]) * (position - key as f64).abs();
            }
            if let Some(bias) = &call.bias {
                score += f64::from(*bias.get([batch, head, query, key]));
            }
            score / divisor + sigmoid_bias(problem, n)
        })
        .collect();
    let sink = call.sinks.map(|sinks| f64::from(sinks[head]));
    let mut weights = vec![0.0; keys];
    problem.weighting.weights_f64(&scores, &visible, sink, &mut weights);
    let factor = f64::from(call.coefficient) * n.powf(-f64::from(call.exponent));
    weights.iter_mut().for_each(|weight| *weight *= factor);
    let out = (0..shape.value_dim)
        .map(|c| {
            (0..keys)
                // A key that was not selected is not looked at either.
                .filter(|key| visible[*key] && !(selects && weights[*key] == 0.0))
                .map(|key| weights[key] * f64::from(*call.v.get([batch, kv_head, key, c])))
                .sum()
        })
        .collect();
    Row { out, lse: log_sum_exp(&scores, &visible, sink), weights }
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
fn temperature(problem: &Problem<'_>, [batch, head, query]: [usize; 3], n: f64) -> f64 {
    let shape = problem.shape;
    let temperature = match problem.options.temperature {
        Temperature::Constant(temperature) => temperature,
        Temperature::PerHead(temperatures) => temperatures[head],
        Temperature::PerRow(temperatures) => temperatures[(batch * shape.query_heads + head) * shape.queries + query],
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
