//! Soft attention becomes hard attention as the temperature falls: how fast, and when to the last bit.
//!
//! Yang, Strobl, Chiang and Angluin, "Simulating hard attention using soft attention", arXiv:2412.09925. With `m` of
//! `n` scores largest and the others a gap below, softmax is `2x / (m + x)` away from average-hard attention in L1,
//! where `x = (n - m) e^(-gap / temperature)`; further gaps only help.

use std::error::Error;

use regard::{Attention, Temperature, View, Weighting};

/// The distance of softmax from average-hard attention, and what the theorem says.
pub(crate) struct Line {
    pub(crate) error: f64,
    pub(crate) bound: f64,
    /// Whether both kernels give the same weights bit for bit.
    pub(crate) same_bits: bool,
}

/// The weights of one query whose scores are these: with V the identity, the output is the weights.
fn weights(options: &Attention<'_>, scores: &[f32]) -> Result<Vec<f32>, Box<dyn Error>> {
    let n = scores.len();
    let mut identity = vec![0.0; n * n];
    identity.iter_mut().step_by(n + 1).for_each(|x| *x = 1.0);
    let (k, v) = (View::bhsd(scores, [1, 1, n, 1])?, View::bhsd(&identity, [1, 1, n, n])?);
    Ok(regard::attention(&options.clone().scale(1.0), View::bhsd(&[1.0], [1, 1, 1, 1])?, k, v)?)
}

/// `n` scores, the first `m` of them 1 and the others 0, at this temperature.
pub(crate) fn compare(n: usize, m: usize, temperature: f32) -> Result<Line, Box<dyn Error>> {
    let scores: Vec<f32> = (0..n).map(|j| if j < m { 1.0 } else { 0.0 }).collect();
    let soft = weights(&Attention::softmax().temperature(Temperature::Constant(temperature)), &scores)?;
    let hard = weights(&Attention::new(Weighting::AverageHard), &scores)?;
    let x = (n - m) as f64 * (-1.0 / f64::from(temperature)).exp();
    Ok(Line {
        error: soft.iter().zip(&hard).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs()).sum(),
        bound: 2.0 * x / (m as f64 + x),
        same_bits: soft == hard,
    })
}

/// The temperature for an error of `eps`, with a gap of 1.
pub(crate) fn temperature_for(n: usize, m: usize, eps: f64) -> f32 {
    (1.0 / (2.0 * (n - m) as f64 / (m as f64 * eps)).ln()) as f32
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    println!("softmax against average-hard attention, 2 largest scores, all others 1 below; f32 adds about 1e-7\n");
    println!("{:>6} {:>12} {:>12} {:>12}  same bits", "n", "temperature", "L1 error", "bound");
    for n in [4, 32, 256] {
        // Powers of two, so that gap / temperature is exact; e^-128 is 0 in f32.
        for inverse in [1.0_f32, 2.0, 4.0, 8.0, 16.0, 128.0] {
            let Line { error, bound, same_bits } = compare(n, 2, 1.0 / inverse)?;
            println!(
                "{n:>6} {:>12} {error:>12.3e} {bound:>12.3e}  {}",
                1.0 / inverse,
                if same_bits { "yes" } else { "" }
            );
        }
    }
    println!("\nthe temperature for an error of 1e-3 falls as 1 / ln n\n");
    println!("{:>6} {:>12} {:>12}", "n", "temperature", "L1 error");
    for n in [4, 16, 64, 256, 1024] {
        let temperature = temperature_for(n, 2, 1e-3);
        println!("{n:>6} {temperature:>12.5} {:>12.3e}", compare(n, 2, temperature)?.error);
    }
    Ok(())
}
