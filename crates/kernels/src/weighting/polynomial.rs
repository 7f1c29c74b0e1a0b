//! Polynomial: `w_j = c s_j^p` with a factor of the row, element-wise and without a normaliser
//! (Saratchandran et al., arXiv:2410.18613, `x^p / sqrt(N)`; odd degrees have negative weights).
//!
//! The coefficient and the factor of the row multiply the output once, not every weight.
//!
//! Merge law: that of [`Map`](super::Map), or of [`Normalised`](super::Normalised) for an even power over its sum.

use regard_simd::Simd;

use super::Pointwise;

/// The score to the power of `P`, 1 to 8.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Polynomial<const P: u32>;

/// `x^P` by squaring.
#[inline(always)]
pub(super) fn power<S: Simd, const P: u32>(s: S, x: S::F32) -> S::F32 {
    const { assert!(1 <= P && P <= 8) };
    let square = s.mul(x, x);
    let fourth = s.mul(square, square);
    match P {
        1 => x,
        2 => square,
        3 => s.mul(square, x),
        4 => fourth,
        5 => s.mul(fourth, x),
        6 => s.mul(fourth, square),
        7 => s.mul(s.mul(fourth, square), x),
        _ => s.mul(fourth, fourth),
    }
}

impl<const P: u32> Pointwise for Polynomial<P> {
    #[inline(always)]
    fn weight<S: Simd>(&self, s: S, score: S::F32) -> S::F32 {
        power::<S, P>(s, score)
    }

    fn weight_f64(&self, score: f64) -> f64 {
        score.powi(P as i32)
    }
}
