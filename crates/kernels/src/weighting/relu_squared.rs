//! Squared ReLU: `w_j = max(0, s_j)^2`, usually over n^a (Primer; GAU).
//!
//! NaN scores give NaN weights. Merge law: that of [`Map`](super::Map).

use regard_simd::Simd;

use super::{Pointwise, relu::relu};

/// The squared rectified score as weight.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ReluSquared;

impl Pointwise for ReluSquared {
    const SPARSE: bool = true;

    #[inline(always)]
    fn weight<S: Simd>(&self, s: S, score: S::F32) -> S::F32 {
        let positive = relu(s, score);
        s.mul(positive, positive)
    }

    fn weight_f64(&self, score: f64) -> f64 {
        if score < 0.0 { 0.0 } else { score * score }
    }
}
