//! Attention in half precision as frameworks compute it: every tensor that a step leaves behind is rounded to the element
//! type.

use regard::{Dtype, Weighting};

use crate::{Case, round_to};

/// One row of a case, `[sequence, head, query]`: products, scaled scores, each score term, weights and the output are all
/// rounded to `dtype`, and sums after each addition to `sums`, which frameworks know to keep in f32. The function from
/// scores to weights is computed in f64 of rounded scores, which is kinder than f32.
pub fn naive(case: &Case<'_>, dtype: Dtype, sums: Dtype, [sequence, head, query]: [usize; 3]) -> Vec<f64> {
    let spec = &case.spec;
    let shape = case.shape(sequence);
    let kv_head = head / (shape.query_heads / shape.kv_heads);
    let round = |x: f64| f64::from(round_to(dtype, x as f32));
    let sum = |terms: &mut dyn Iterator<Item = f64>| {
        f64::from(terms.fold(0.0_f32, |sum, term| round_to(sums, sum + term as f32)))
    };
    let q = case.query([sequence, head, query]);
    let seen: Vec<usize> = (0..shape.keys).filter(|key| spec.sees(&shape, [sequence, head, query, *key])).collect();
    let n = spec.length(shape.keys, seen.len());
    let cold = spec.inverse_temperature(head, case.row([sequence, head, query]), n);
    let score = |key: usize| {
        let mut s = round(sum(&mut q.iter().zip(case.key([sequence, kv_head, key])).map(|(q, k)| q * k)));
        s = round(s * spec.scale(&shape));
        if let Some(cap) = spec.softcap.map(f64::from) {
            s = round(cap * round((s / cap).tanh()));
        }
        for addend in spec.addends(&shape, [sequence, head, query, key]).into_iter().filter(|addend| *addend != 0.0) {
            s = round(s + round(addend));
        }
        round(s * cold) + spec.shift(n)
    };
    let scores: Vec<f64> = seen.iter().map(|key| score(*key)).collect();
    let weights: Vec<f64> = match &spec.weighting {
        Weighting::Softmax => {
            let sink = spec.sinks.map(|sinks| f64::from(sinks[head]));
            let max = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
            let total = sum(&mut scores.iter().copied().chain(sink).map(|s| (s - max).exp()));
            scores.iter().map(|s| round((s - max).exp() / total)).collect()
        }
        Weighting::EvenPower { .. } | Weighting::Taylor2 => {
            let weights: Vec<f64> = scores.iter().map(|s| spec.function(*s)).collect();
            let total = sum(&mut weights.iter().copied());
            weights.iter().map(|weight| if total == 0.0 { 0.0 } else { round(weight / total) }).collect()
        }
        _ => scores.iter().map(|s| round(round(spec.function(*s)) * spec.factor(n))).collect(),
    };
    let values: Vec<Vec<f64>> = seen.iter().map(|key| case.value([sequence, kv_head, *key])).collect();
    (0..shape.value_dim).map(|c| round(sum(&mut weights.iter().zip(&values).map(|(w, v)| w * v[c])))).collect()
}
