//! The linear form: against the definition, against the quadratic form, and the state that decodes.
//!
//! # How far results may be off
//! The linear form adds up products of elements. With `A = sum_p |c_p| (gain sum_c |q_c k_c|)^p`, the weight as it would be if
//! nothing cancelled out, a sum over keys of weight times value is off by at most `STEPS u sum A |v|`, where `u = 2^-24` and
//! STEPS counts the roundings that any one product passes: `2 p + 8` in the monomials of both sides, their multiplicity and
//! gates; one for each key of a chunk and one for each chunk; one for each monomial of a tile of 128 and one for each tile;
//! `d` and a chunk more in the quadratic part. The sum of weights is the same with 1 for `v`, and a quotient is off by what
//! both are.
#![forbid(unsafe_code)]

mod errors;
mod prefill;
mod state;

use rayon::ThreadPoolBuilder;
use regard::{
    Align, Attention, Count, Dtype, Error, Execution, Form, Keys, Level, LinearShape, LinearState, Numerics, Plan,
    Problem, Queries, RowScale, Setup, Temperature, Tensor as Elements, View, ViewMut, Weighting, reference,
};
use regard_tests::{
    Case, Guarded, Layout, Output, Random, SLOW, Spec, Stored, Tensor, levels, output_rounding, run, run_into, same,
    setup_of,
};

/// Every weighting with a linear form at small head dimensions.
fn weightings() -> Vec<Weighting> {
    let mut all = vec![Weighting::Identity, Weighting::Taylor2];
    all.extend((1..=4).map(|degree| Weighting::Polynomial { degree }));
    all.extend([2, 4].map(|degree| Weighting::EvenPower { degree }));
    all
}

/// The coefficients of powers of the score, and whether weights are divided by their sum.
fn polynomial(weighting: &Weighting) -> ([f64; 5], bool) {
    let power = |degree: u32| std::array::from_fn(|power| if power == degree as usize { 1.0 } else { 0.0 });
    match weighting {
        Weighting::Identity => (power(1), false),
        Weighting::Polynomial { degree } => (power(*degree), false),
        Weighting::EvenPower { degree } => (power(*degree), true),
        Weighting::Taylor2 => ([1.0, 1.0, 0.5, 0.0, 0.0], true),
        other => panic!("{other:?} has no linear form"),
    }
}

/// The roundings that a product passes, see above.
fn steps(degree: usize, d: usize, keys: usize) -> f64 {
    let features = (0..degree).fold(1.0, |count, i| count * (d + i) as f64 / (i + 1) as f64);
    (2 * degree + 8 + 128 + 128 + 128 + d) as f64 + keys as f64 / 64.0 + features / 128.0
}

/// Compares every row with the oracle. Rows whose sum of weights may have cancelled out are passed over; gives how many were
/// not.
fn compare(case: &Case<'_>, problem: &Problem<'_>, output: &Output) -> usize {
    let (spec, columns) = (&case.spec, problem.shape().value_dim);
    let (coefficients, normalised) = polynomial(&spec.weighting);
    let degree = coefficients.iter().rposition(|c| *c != 0.0).unwrap_or(0);
    let u = f64::from(f32::EPSILON) / 2.0;
    // What may underflow.
    let tiny = 1e-36;
    let mut compared = 0;
    for row in case.rows() {
        let [sequence, head, query] = row;
        let shape = case.shape(sequence);
        let kv_head = head / (shape.query_heads / shape.kv_heads);
        let seen: Vec<usize> = (0..shape.keys).filter(|key| spec.sees(&shape, [sequence, head, query, *key])).collect();
        let n = spec.length(shape.keys, seen.len());
        let gain = spec.scale(&shape) * spec.inverse_temperature(head, case.row(row), n);
        let position = query as f64 + spec.offset(&shape, sequence) as f64;
        let gate = spec.gates.map_or(1.0, |gates| f64::from(gates[kv_head]));
        let q = case.query(row);
        let (mut total, mut size) = (0.0, 0.0);
        let mut magnitudes = vec![0.0; columns];
        for key in &seen {
            let k = case.key([sequence, kv_head, *key]);
            let products = q.iter().zip(&k).map(|(q, k)| gain * q * k);
            let (score, most) = products.fold((0.0, 0.0), |(sum, abs): (f64, f64), x| (sum + x, abs + x.abs()));
            let decay = gate.powf(position - *key as f64);
            let sum = |s: f64| -> f64 {
                decay * coefficients.iter().enumerate().map(|(power, c)| c * s.powi(power as i32)).sum::<f64>()
            };
            total += sum(score);
            size += sum(most);
            for (magnitude, v) in magnitudes.iter_mut().zip(case.value([sequence, kv_head, *key])) {
                *magnitude += sum(most) * v.abs();
            }
        }
        let oracle = reference::row(problem, output.paths[sequence].rounding, row);
        let steps = steps(degree, shape.head_dim, shape.keys);
        let error = steps * (u * size + tiny);
        if normalised && !seen.is_empty() && total.abs() <= 4.0 * error {
            continue;
        }
        compared += 1;
        let out = &output.out[case.row(row) * columns..][..columns];
        for ((got, wanted), magnitude) in out.iter().zip(&oracle.out).zip(&magnitudes) {
            let own = steps * (u * magnitude + tiny);
            let mut allowed = match normalised {
                true if seen.is_empty() => 0.0,
                true => (own + error * wanted.abs()) / (total.abs() - error) + 4.0 * u * wanted.abs(),
                false => spec.factor(n).abs() * own + 4.0 * u * wanted.abs(),
            };
            allowed += output_rounding(output.paths[sequence].out, wanted.abs() + allowed);
            let difference = (f64::from(*got) - wanted).abs();
            assert!(
                difference <= allowed,
                "{got:e} instead of {wanted:e}, {:.2} times what is allowed: row {row:?}, {:?}, {spec:?}",
                difference / allowed,
                problem.shape()
            );
        }
    }
    compared
}

/// Runs a case on the calling thread and compares it. At least half of the rows must be fit to be compared.
fn check(case: &Case<'_>, setup: &Setup) {
    let problem = case.problem();
    let compared = compare(case, &problem, &run(&problem, setup, Execution::Serial));
    assert!(2 * compared >= case.rows().count(), "{compared} rows compared: {:?}", case.spec);
}

fn linear(weighting: Weighting) -> Spec<'static> {
    Spec { form: Some(Form::Linear), ..Spec::new(weighting) }
}

fn normal(shape: [usize; 4], seed: u64) -> Tensor {
    Tensor::normal(shape, Layout::Bshd, &mut Random::new(seed))
}

fn view(data: &[f32], shape: [usize; 4]) -> View<'_, f32> {
    View::bhsd(data, shape).expect("as many elements as the shape has")
}
