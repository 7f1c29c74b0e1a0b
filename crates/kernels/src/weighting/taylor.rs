//! Taylor-2: `w_j = 1 + s_j + s_j^2 / 2`, normalised over the row (Based, HazyResearch). At least 1/2, so that the sum is
//! positive wherever a key is visible. Merge law: that of [`Normalised`](super::Normalised).

use regard_simd::Simd;

use super::Pointwise;

/// The second-order Taylor polynomial of the exponential; used as `Normalised<Taylor2>`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Taylor2;

impl Pointwise for Taylor2 {
    #[inline(always)]
    fn weight<S: Simd>(&self, s: S, score: S::F32) -> S::F32 {
        let one = s.splat(1.0);
        s.mul_add(score, s.mul_add(s.splat(0.5), score, one), one)
    }

    fn weight_f64(&self, score: f64) -> f64 {
        1.0 + score + score * score / 2.0
    }
}
