//! Polynomial weights `s^p / sqrt(N)` against softmax: norms of the attention matrix, and speed.
//!
//! Saratchandran et al., "Rethinking softmax: self-attention with polynomial activations", arXiv:2410.18613: what
//! softmax does for training may be that it keeps the Frobenius norm of the attention matrix at sqrt(N) or below; a
//! polynomial over sqrt(N) has a norm of that order for Gaussian inputs, and needs neither exponential nor normaliser.

use std::error::Error;
use std::time::Instant;

use regard::{Attention, Form, RowScale, View, Weighting};

/// The head dimension of the norms and times.
pub(crate) const D: usize = 64;

/// Standard normal numbers: SplitMix64, then Box and Muller.
fn normal(count: usize, mut state: u64) -> Vec<f32> {
    let mut uniform = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    };
    let mut normal = || ((-2.0 * (1.0 - uniform()).ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32;
    (0..count).map(|_| normal()).collect()
}

/// Softmax, and degrees 1 to 3 over sqrt(N).
pub(crate) fn attentions() -> [(&'static str, Attention<'static>); 4] {
    let polynomial = |degree| Attention::new(Weighting::Polynomial { degree }).row_scale(RowScale::InvSqrtN);
    [("softmax", Attention::softmax()), ("s", polynomial(1)), ("s^2", polynomial(2)), ("s^3", polynomial(3))]
}

/// The Frobenius norm of the attention matrix of `n` normal queries and keys, over sqrt(n). V is the identity.
pub(crate) fn relative_norm(options: &Attention<'_>, n: usize) -> Result<f64, Box<dyn Error>> {
    let (q, k) = (normal(n * D, 1), normal(n * D, 2));
    let mut identity = vec![0.0; n * n];
    identity.iter_mut().step_by(n + 1).for_each(|x| *x = 1.0);
    let view = |data| View::bhsd(data, [1, 1, n, D]);
    let weights = regard::attention(options, view(&q)?, view(&k)?, View::bhsd(&identity, [1, 1, n, n])?)?;
    Ok((weights.iter().map(|weight| f64::from(*weight).powi(2)).sum::<f64>() / n as f64).sqrt())
}

/// What is expected of degree p: given k, a score is normal with variance |k|^2 / d, so that E s^(2p) is (2p - 1)!!
/// times the p-th moment of chi^2_d / d, which is the product of 1 + 2i / d for i below p.
pub(crate) fn expected(p: usize) -> f64 {
    (0..p).map(|i| (2 * i + 1) as f64 * (1.0 + 2.0 * i as f64 / D as f64)).product::<f64>().sqrt()
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let sizes = [64, 128, 256, 512];
    println!("||A||_F / sqrt(N) for normal q and k, d = {D}\n");
    println!("{:>8} {}  expected", "N", sizes.map(|n| format!("{n:>8}")).concat());
    for (p, (name, options)) in attentions().into_iter().enumerate() {
        let norms: Result<Vec<f64>, _> = sizes.iter().map(|n| relative_norm(&options, *n)).collect();
        let norms: String = norms?.iter().map(|norm| format!("{norm:>8.3}")).collect();
        let expected = if p == 0 { "at most 1".to_owned() } else { format!("{:.3}", expected(p)) };
        println!("{name:>8} {norms}  {expected}");
    }

    let n = 1024;
    println!("\nthe best of 5 runs, N = {n}, d = {D}, one thread\n");
    let (q, k, v) = (normal(n * D, 3), normal(n * D, 4), normal(n * D, 5));
    let view = |data| View::bhsd(data, [1, 1, n, D]);
    let best_of = |options: &Attention<'_>| -> Result<f64, Box<dyn Error>> {
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            let start = Instant::now();
            regard::attention(options, view(&q)?, view(&k)?, view(&v)?)?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        Ok(best)
    };
    let row = |name: &str, seconds: f64, flops: f64, form: &str| {
        println!("{name:>8} {:>8.2} ms {:>8.1} GFLOP/s  {form}", seconds * 1e3, flops / seconds / 1e9);
    };
    // Left alone, degree 1 would take the linear form, and the operations of pairs that nobody computes would be counted.
    for (name, options) in attentions() {
        row(name, best_of(&options.form(Form::Quadratic))?, 4.0 * (n * n * D) as f64, "pair by pair");
    }
    // The sums of degree 1 have d rows of d columns and a norm, which every key adds to and every query is multiplied with.
    let [_, (name, degree_1), ..] = attentions();
    row(
        name,
        best_of(&degree_1.form(Form::Linear))?,
        4.0 * (n * D * (D + 1)) as f64,
        "linear form, by its own operations",
    );
    Ok(())
}
