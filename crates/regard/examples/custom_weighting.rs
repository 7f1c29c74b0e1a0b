//! A weighting of one's own, with a parameter: `s sigmoid(sharpness s)`, a smooth ReLU. It is compiled into the
//! kernel's loop for every instruction-set level, and checked here against its own definition in f64.
//!
//! ReLU attention is a cubic spline (arXiv:2408.09624); this one is infinitely smooth, and near it: weights differ by
//! at most 0.2785 / sharpness, since x / (1 + e^x) is at most W(1/e) = 0.27846.

use std::error::Error;

use regard::{Attention, Isa, Level, Pointwise, Problem, Simd, View, Weighting, math, reference};

#[derive(Clone, Copy, Debug)]
struct SmoothRelu {
    sharpness: f32,
}

impl Pointwise for SmoothRelu {
    #[inline(always)]
    fn weight<S: Simd>(&self, s: S, score: S::F32) -> S::F32 {
        s.mul(score, math::sigmoid(s, s.mul(score, s.splat(self.sharpness))))
    }

    fn weight_f64(&self, score: f64) -> f64 {
        score / (1.0 + (-f64::from(self.sharpness) * score).exp())
    }
}

/// What one sharpness gives.
pub(crate) struct Line {
    /// The level that computed it.
    pub(crate) isa: Isa,
    /// The largest distance from ReLU attention.
    pub(crate) from_relu: f64,
    /// `0.2785 / sharpness` times the largest `sum |v|` of a column.
    pub(crate) bound: f64,
    /// The largest distance from the definition in f64.
    pub(crate) from_definition: f64,
}

/// Numbers between -2 and 2.
fn numbers(count: usize, step: f64) -> Vec<f32> {
    (0..count).map(|i| (2.0 * (i as f64 * step).sin()) as f32).collect()
}

pub(crate) fn compare(sharpness: f32, isa: Isa) -> Result<Line, Box<dyn Error>> {
    const N: usize = 40;
    const D: usize = 8;
    let (q, k, v) = (numbers(N * D, 1.3), numbers(N * D, 2.9), numbers(N * D, 0.7));
    let view = |data| View::bhsd(data, [1, 1, N, D]);
    let smooth = Attention::new(Weighting::custom("smooth-relu", SmoothRelu { sharpness })).isa(isa);
    let problem = Problem::new(&smooth, view(&q)?, view(&k)?, view(&v)?)?;
    let out = problem.attention()?;
    let relu = regard::attention(&Attention::new(Weighting::Relu).isa(isa), view(&q)?, view(&k)?, view(&v)?)?;
    let distance = |other: Vec<f64>| out.iter().zip(other).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
    let column = |c: usize| v.iter().skip(c).step_by(D).map(|v| f64::from(v.abs())).sum::<f64>();
    Ok(Line {
        isa,
        from_relu: distance(relu.into_iter().map(f64::from).collect()),
        bound: 0.2785 / f64::from(sharpness) * (0..D).map(column).fold(0.0, f64::max),
        from_definition: distance(reference::attention(&problem, isa)),
    })
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    println!("{:>10} {:>10} {:>12} {:>12} {:>16}", "level", "sharpness", "from ReLU", "bound", "from definition");
    for level in Level::available() {
        for sharpness in [1.0, 4.0, 16.0, 64.0, 256.0] {
            let Line { isa, from_relu, bound, from_definition } = compare(sharpness, level.isa())?;
            println!("{:>10} {sharpness:>10} {from_relu:>12.5} {bound:>12.5} {from_definition:>16.1e}", isa.name());
        }
    }
    Ok(())
}
