//! ReLU: `w_j = max(0, s_j)`, usually over n^a (Wortsman et al., arXiv:2309.08586; a = 1), and without any factor the
//! attention that is a cubic spline (Lai, Lim and Liu, arXiv:2408.09624).
//!
//! NaN scores give NaN weights. Merge law: that of [`Map`](super::Map).

use regard_simd::Simd;

use super::Pointwise;

/// The rectified score as weight.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Relu;

/// `max(0, x)`, NaN for NaN.
#[inline(always)]
pub(super) fn relu<S: Simd>(s: S, x: S::F32) -> S::F32 {
    s.select(s.gt(s.zero(), x), s.zero(), x)
}

impl Pointwise for Relu {
    const SPARSE: bool = true;

    #[inline(always)]
    fn weight<S: Simd>(&self, s: S, score: S::F32) -> S::F32 {
        relu(s, score)
    }

    fn weight_f64(&self, score: f64) -> f64 {
        if score < 0.0 { 0.0 } else { score }
    }
}
