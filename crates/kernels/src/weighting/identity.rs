//! Identity: `w_j = s_j`, the linear baseline. No knots: outputs are a polynomial in the inputs. Merge law: that of
//! [`Map`](super::Map).

use regard_simd::Simd;

use super::Pointwise;

/// The score itself as weight.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Identity;

impl Pointwise for Identity {
    #[inline(always)]
    fn weight<S: Simd>(&self, _s: S, score: S::F32) -> S::F32 {
        score
    }

    fn weight_f64(&self, score: f64) -> f64 {
        score
    }
}
