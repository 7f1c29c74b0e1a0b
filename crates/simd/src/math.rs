//! Transcendental functions, written once for every level.
//!
//! Tails of a row use the same code as its body, so a result never depends on where an element falls.

use crate::Simd;

/// Below this [`exp2`] gives exactly 0: the last exponent whose results are all normal numbers.
pub const EXP2_MIN: f32 = -126.0;

/// log2(e), to turn natural exponents into binary ones.
pub const LOG2_E: f32 = std::f32::consts::LOG2_E;

/// 2^f on [-0.5, 0.5] as a polynomial of degree 5 whose constant term is 1, so that `exp2` of an integer is exact.
///
/// Minimax in the relative error under that condition (9.2e-8; 1.6e-7 as evaluated in f32 with FMA, and less near the
/// integers: 7e-8 for |f| < 2^-6). A free constant term would make softmax of tied scores differ from their plain mean.
#[expect(clippy::approx_constant, reason = "a fitted coefficient, near ln 2 and not equal to it")]
const EXP2: [f32; 5] = [0.693_147, 0.240_222_47, 0.055_507_11, 0.009_671_291, 0.001_326_952_1];

/// `2^x` for `x <= 0`, and in general for `x < 128`.
///
/// - relative error at most 1.8e-7 for `x >= -126`; with FMA 1.6e-7, and 7e-8 within 2^-6 of an integer;
/// - exactly 1 at 0, and exact at every integer;
/// - exactly 0 for `x < -126` and for `-inf`: no denormal number is ever made;
/// - NaN for NaN.
#[inline(always)]
pub fn exp2<S: Simd>(s: S, x: S::F32) -> S::F32 {
    exp2_each(s, [x])[0]
}

/// [`exp2`] of several vectors, step by step through all of them: their chains of dependent operations run side by side,
/// however few instructions the processor looks ahead.
#[inline(always)]
pub fn exp2_each<S: Simd, const N: usize>(s: S, x: [S::F32; N]) -> [S::F32; N] {
    let mut f = x;
    let mut n = x;
    let mut p = [s.splat(EXP2[4]); N];
    for i in 0..N {
        (f[i], n[i]) = s.split_exp2(x[i]);
    }
    for coefficient in [EXP2[3], EXP2[2], EXP2[1], EXP2[0], 1.0] {
        for i in 0..N {
            p[i] = s.mul_add(p[i], f[i], s.splat(coefficient));
        }
    }
    for i in 0..N {
        p[i] = s.select(s.not_lt(x[i], s.splat(EXP2_MIN)), s.scale_by_exp2(p[i], n[i]), s.zero());
    }
    p
}

/// The logistic function `1 / (1 + e^-x)`.
///
/// Relative error at most 2e-7 + 8e-8 |x| for `x <= 0` and 2e-7 for `x > 0`; in [0, 1] everywhere, exactly 0 below
/// -87.4; NaN for NaN.
#[inline(always)]
pub fn sigmoid<S: Simd>(s: S, x: S::F32) -> S::F32 {
    // e^-|x| never overflows, and each side keeps its relative accuracy.
    let e = exp2(s, s.mul(s.abs(x), s.splat(-LOG2_E)));
    let one = s.splat(1.0);
    s.div(s.select(s.gt(s.zero(), x), e, one), s.add(one, e))
}

/// tanh(x)/x - 1 over x^2, in x^2, for |x| < 0.625 (Cephes `tanhf`).
const TANH: [f32; 5] = [-0.333_332_8, 0.133_314_16, -0.053_739_928, 0.020_639_21, -0.005_704_988_6];

/// The hyperbolic tangent.
///
/// Relative error at most 2.4e-7; in [-1, 1] everywhere; odd; NaN for NaN.
#[inline(always)]
pub fn tanh<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let magnitude = s.abs(x);
    // Near zero 1 - 2 / (e^2|x| + 1) would cancel.
    let z = s.mul(x, x);
    let mut p = s.splat(TANH[4]);
    p = s.mul_add(p, z, s.splat(TANH[3]));
    p = s.mul_add(p, z, s.splat(TANH[2]));
    p = s.mul_add(p, z, s.splat(TANH[1]));
    p = s.mul_add(p, z, s.splat(TANH[0]));
    let small = s.mul_add(s.mul(p, z), x, x);

    let e = exp2(s, s.mul(magnitude, s.splat(-2.0 * LOG2_E)));
    let one = s.splat(1.0);
    let large = s.div(s.sub(one, e), s.add(one, e));
    let large = s.select(s.gt(s.zero(), x), s.sub(s.zero(), large), large);
    s.select(s.gt(s.splat(0.625), magnitude), small, large)
}
