//! ReLU attention is a cubic spline: along a line of tokens X(t) its output consists of cubics, joined where a score
//! changes its sign. This samples the kernel, finds the knots and fits the pieces.
//!
//! Lai, Lim and Liu, "Attention is a smoothed cubic spline", arXiv:2408.09624.

use std::error::Error;

use regard::{Attention, View, Weighting};

/// Tokens `start + t step`, of one column; Q = K = V = X.
const TOKENS: [[f32; 2]; 3] = [[1.0, 0.0], [0.0, 1.0], [2.0, -1.0]];
const RANGE: [f64; 2] = [-2.0, 4.0];

/// A stretch without a knot.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) from: f64,
    pub(crate) to: f64,
    /// Coefficients of 1, t, t^2, t^3.
    pub(crate) cubic: [f64; 4],
    /// The largest distance of the samples from the cubic.
    pub(crate) distance: f64,
}

/// Output `query` at `t`; or its scores, if V is the identity.
fn sample(weighting: &Weighting, t: f64, query: usize, scores: bool) -> Result<Vec<f64>, Box<dyn Error>> {
    const N: usize = TOKENS.len();
    let x = TOKENS.map(|[start, step]| start + t as f32 * step);
    let identity: [[f32; N]; N] = std::array::from_fn(|j| std::array::from_fn(|c| f32::from(u8::from(j == c))));
    let tokens = View::bhsd(&x, [1, 1, N, 1])?;
    let v = if scores { View::bhsd(identity.as_flattened(), [1, 1, N, N])? } else { tokens };
    let options = Attention::new(weighting.clone()).scale(1.0);
    let out = regard::attention(&options, View::bhsd(&x[query..=query], [1, 1, 1, 1])?, tokens, v)?;
    Ok(out.into_iter().map(f64::from).collect())
}

/// Where a score of this query changes its sign. Scores are quadratics in t: three samples say which.
pub(crate) fn knots(query: usize) -> Result<Vec<f64>, Box<dyn Error>> {
    let [minus, zero, plus] = [-1.0, 0.0, 1.0].map(|t| sample(&Weighting::Identity, t, query, true));
    let (minus, zero, plus) = (minus?, zero?, plus?);
    let mut knots = Vec::new();
    for j in 0..TOKENS.len() {
        let (a, b, c) = ((plus[j] + minus[j]) / 2.0 - zero[j], (plus[j] - minus[j]) / 2.0, zero[j]);
        let discriminant = b * b - 4.0 * a * c;
        if a == 0.0 && b != 0.0 {
            // Not -0, which would be printed as such.
            knots.push(-c / b + 0.0);
        } else if a != 0.0 && discriminant > 0.0 {
            knots.extend([-1.0, 1.0].map(|sign| (-b + sign * discriminant.sqrt()) / (2.0 * a) + 0.0));
        }
    }
    knots.retain(|knot| RANGE[0] < *knot && *knot < RANGE[1]);
    knots.sort_by(f64::total_cmp);
    knots.dedup_by(|a, b| (*a - *b).abs() < 1e-6);
    Ok(knots)
}

/// The cubic through samples of a stretch, and how far other samples are from it.
fn fit(weighting: &Weighting, query: usize, from: f64, to: f64) -> Result<Piece, Box<dyn Error>> {
    const SAMPLES: usize = 13;
    let place = |i: usize| from + (to - from) * i as f64 / (SAMPLES - 1) as f64;
    let samples: Result<Vec<f64>, _> =
        (0..SAMPLES).map(|i| Ok::<_, Box<dyn Error>>(sample(weighting, place(i), query, false)?[0])).collect();
    let samples = samples?;
    // Newton's divided differences, then products with (t - place) from the inside out.
    let at = [0, 4, 8, 12].map(place);
    let mut newton = [0, 4, 8, 12].map(|i| samples[i]);
    for order in 1..4 {
        for i in (order..4).rev() {
            newton[i] = (newton[i] - newton[i - 1]) / (at[i] - at[i - order]);
        }
    }
    let mut cubic = [0.0; 4];
    for i in (0..4).rev() {
        for power in (0..4).rev() {
            cubic[power] = if power > 0 { cubic[power - 1] } else { newton[i] } - at[i] * cubic[power];
        }
    }
    let value = |t: f64| cubic.iter().rev().fold(0.0, |sum, coefficient| sum * t + coefficient);
    let distance = (0..SAMPLES).map(|i| (samples[i] - value(place(i))).abs()).fold(0.0, f64::max);
    Ok(Piece { from, to, cubic, distance })
}

/// The output of a query along the line, from knot to knot.
pub(crate) fn pieces(weighting: &Weighting, query: usize) -> Result<Vec<Piece>, Box<dyn Error>> {
    let ends = [vec![RANGE[0]], knots(query)?, vec![RANGE[1]]].concat();
    ends.windows(2).map(|ends| fit(weighting, query, ends[0], ends[1])).collect()
}

/// `3 t^3 - t`, with two decimals where they are needed.
fn formula(cubic: &[f64; 4]) -> String {
    let mut text = String::new();
    for (power, coefficient) in cubic.iter().enumerate().rev() {
        let rounded = (coefficient * 100.0).round() / 100.0;
        if rounded != 0.0 {
            let sign = if text.is_empty() {
                if rounded < 0.0 { "-" } else { "" }
            } else if rounded < 0.0 {
                " - "
            } else {
                " + "
            };
            let factor = if rounded.abs() == 1.0 && power > 0 { String::new() } else { rounded.abs().to_string() };
            text += &format!("{sign}{factor}{}", ["", "t", "t^2", "t^3"][power]);
        }
    }
    if text.is_empty() { "0".to_owned() } else { text }
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    println!("tokens 1, t, 2 - t; Q = K = V = X(t), t from {} to {}", RANGE[0], RANGE[1]);
    for weighting in [Weighting::Relu, Weighting::Softmax] {
        println!(
            "\n{}: the cubic through four samples of each stretch, and how far other samples are from it",
            weighting.name()
        );
        for query in 0..TOKENS.len() {
            for Piece { from, to, cubic, distance } in pieces(&weighting, query)? {
                println!("  out {query}, t from {from:4.1} to {to:4.1}: {:30} {distance:.0e}", formula(&cubic));
            }
        }
    }
    println!("\nwith ReLU each stretch is one cubic; softmax, the smoothing, has no pieces");
    Ok(())
}
