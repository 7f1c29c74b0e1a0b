//! Sigmoid: `w_j = 1 / (1 + e^-(s_j + b))` (Ramapuram et al., arXiv:2409.04431; b about -log n).
//!
//! The bias joins the score in the multiply-add that applies the scale. Merge law: that of [`Map`](super::Map).

use regard_simd::{Simd, math};

use super::Pointwise;

/// The logistic function of the score as weight.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sigmoid;

impl Pointwise for Sigmoid {
    #[inline(always)]
    fn weight<S: Simd>(&self, s: S, score: S::F32) -> S::F32 {
        math::sigmoid(s, score)
    }

    fn weight_f64(&self, score: f64) -> f64 {
        if score < 0.0 { score.exp() / (1.0 + score.exp()) } else { 1.0 / (1.0 + (-score).exp()) }
    }
}
