//! The transcendental functions on every level of this machine, against f64.
//!
//! `cargo test -p regard-simd --release -- --ignored` tries every f32 where the sweeps take samples.

mod common;

use std::ops::RangeInclusive;

use common::{Token, tokens};
use regard_simd::math::{self, EXP2_MIN};
use regard_simd::{Op, Simd};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Function {
    Exp2,
    Sigmoid,
    Tanh,
}

/// Replaces each element by the function of it.
struct Map<'a>(Function, &'a mut [f32]);

impl Op for Map<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for chunk in self.1.chunks_mut(S::LANES) {
            // SAFETY: the chunk has as many elements as are loaded and stored.
            let x = unsafe { s.load_first(chunk.as_ptr(), chunk.len()) };
            let y = match self.0 {
                Function::Exp2 => math::exp2(s, x),
                Function::Sigmoid => math::sigmoid(s, x),
                Function::Tanh => math::tanh(s, x),
            };
            // SAFETY: as above.
            unsafe { s.store_first(chunk.as_mut_ptr(), y, chunk.len()) };
        }
    }
}

/// The function of each of `x`.
fn map(token: Token, function: Function, x: &[f32]) -> Vec<f32> {
    let mut y = x.to_vec();
    token.dispatch(Map(function, &mut y));
    y
}

impl Function {
    fn at(self, token: Token, x: f32) -> f32 {
        map(token, self, &[x])[0]
    }

    fn exact(self, x: f64) -> f64 {
        match self {
            Self::Exp2 => x.exp2(),
            Self::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Self::Tanh => x.tanh(),
        }
    }
}

/// How thoroughly a range is tried.
#[derive(Clone, Copy)]
struct Density {
    /// Points at equal distances.
    linear: usize,
    /// Points at equal distances of their bit patterns: as many near zero as far from it.
    bitwise: usize,
}

const SAMPLES: Density = {
    let points = if cfg!(miri) { 1 << 6 } else { 1 << 20 };
    Density { linear: points, bitwise: points }
};
const EVERY: Density = Density { linear: 0, bitwise: usize::MAX };

/// Calls `visit` with the points of a range on one side of zero, in blocks.
fn sweep(range: RangeInclusive<f32>, density: Density, mut visit: impl FnMut(&[f32])) {
    const BLOCK: usize = 1 << 14;
    let (from, to) = (*range.start(), *range.end());
    let (low, high) = (from.to_bits().min(to.to_bits()), from.to_bits().max(to.to_bits()));
    assert_eq!(low >> 31, high >> 31, "a range on one side of zero");

    let step = ((high - low) as usize / density.bitwise).max(1);
    let bitwise = (low..=high).step_by(step).map(f32::from_bits).chain([from, to]);
    let linear = (0..density.linear).map(|i| from + (to - from) * (i as f32 / density.linear as f32));
    let mut block = Vec::with_capacity(BLOCK);
    for x in bitwise.chain(linear) {
        block.push(x);
        if block.len() == BLOCK {
            visit(&block);
            block.clear();
        }
    }
    visit(&block);
}

/// The largest error relative to the exact value and to what is allowed at `x`, which has to be at most 1.
fn check(
    function: Function,
    range: RangeInclusive<f32>,
    density: Density,
    results: RangeInclusive<f32>,
    bound: fn(f64) -> f64,
) {
    for &token in tokens() {
        let (mut worst, mut worst_at, mut most) = (0.0, 0.0, 0.0);
        sweep(range.clone(), density, |x| {
            for (&x, y) in x.iter().zip(map(token, function, x)) {
                assert!(results.contains(&y), "{function:?}({x:?}) = {y:?} on {}", token);
                assert!(y == 0.0 || y.is_normal() || y == x, "{function:?}({x:?}) = {y:?} on {}", token);
                let exact = function.exact(f64::from(x));
                let error = if exact == f64::from(y) { 0.0 } else { ((f64::from(y) - exact) / exact).abs() };
                most = error.max(most);
                if error / bound(f64::from(x)) > worst {
                    (worst, worst_at) = (error / bound(f64::from(x)), x);
                }
            }
        });
        println!("{function:?} in {range:?} on {}: error {most:.3e}; {worst:.3} of the bound at {worst_at:?}", token);
        assert!(worst <= 1.0, "{function:?} in {range:?} on {}: {worst} of the bound at {worst_at:?}", token);
    }
}

fn check_exp2(density: Density) {
    check(Function::Exp2, EXP2_MIN..=-0.0, density, f32::MIN_POSITIVE..=1.0, |_| 1.8e-7);
    check(Function::Exp2, 0.0..=128.0_f32.next_down(), density, 1.0..=f32::MAX, |_| 1.8e-7);
}

fn check_sigmoid(density: Density) {
    // Past the range -87.3 of `exp2` the result is exactly 0.
    check(Function::Sigmoid, -87.3..=-0.0, density, 0.0..=1.0, |x| 2e-7 + 8e-8 * x.abs());
    check(Function::Sigmoid, 0.0..=f32::MAX, density, 0.5..=1.0, |_| 2e-7);
}

fn check_tanh(density: Density) {
    check(Function::Tanh, 0.0..=f32::MAX, density, 0.0..=1.0, |_| 2.4e-7);
    check(Function::Tanh, f32::MIN..=-0.0, density, -1.0..=0.0, |_| 2.4e-7);
}

#[test]
fn exp2_is_as_exact_as_it_says() {
    check_exp2(SAMPLES);
}

#[test]
fn sigmoid_is_as_exact_as_it_says() {
    check_sigmoid(SAMPLES);
}

#[test]
fn tanh_is_as_exact_as_it_says() {
    check_tanh(SAMPLES);
}

#[test]
#[ignore = "tries every f32, which takes minutes"]
fn every_number() {
    check_exp2(EVERY);
    check_sigmoid(EVERY);
    check_tanh(EVERY);
}

#[test]
fn exp2_of_special_values() {
    for &token in tokens() {
        let exp2 = |x| Function::Exp2.at(token, x);
        for n in -126..=127_i16 {
            let power = f32::from_bits(((n + 127) as u32) << 23);
            assert_eq!(exp2(f32::from(n)), power, "{}, {n}", token);
        }
        for zero in [0.0, -0.0] {
            assert_eq!(exp2(zero), 1.0, "{}", token);
        }
        for x in [EXP2_MIN.next_down(), -126.5, -127.0, -149.0, -150.0, -1e9, -3e9, -1e30, f32::MIN, f32::NEG_INFINITY]
        {
            assert_eq!(exp2(x).to_bits(), 0, "{}, {x:?}", token);
        }
        for nan in [f32::NAN, -f32::NAN, f32::from_bits(0x7F80_0001), f32::from_bits(0xFFBF_FFFF)] {
            assert!(exp2(nan).is_nan(), "{}", token);
        }
    }
}

#[test]
fn fused_levels_agree_on_exp2() {
    struct Fused;
    impl Op for Fused {
        type Output = bool;
        #[inline(always)]
        fn run<S: Simd>(self, _: S) -> bool {
            S::FUSED
        }
    }
    let fused: Vec<Token> = tokens().iter().copied().filter(|token| token.dispatch(Fused)).collect();
    for range in [-130.0..=-0.0, -0.5..=-0.0, -1.0..=-0.25, 0.0..=128.0_f32.next_down()] {
        sweep(range, SAMPLES, |x| {
            for pair in fused.windows(2) {
                let (a, b) = (map(pair[0], Function::Exp2, x), map(pair[1], Function::Exp2, x));
                for ((x, a), b) in x.iter().zip(a).zip(b) {
                    let names = (pair[0].to_string(), pair[1].to_string());
                    assert_eq!(a.to_bits(), b.to_bits(), "{x:?} gives {a:?} and {b:?} on {names:?}");
                }
            }
        });
    }
}

#[test]
fn sigmoid_is_a_probability() {
    for &token in tokens() {
        let sigmoid = |x| Function::Sigmoid.at(token, x);
        assert_eq!((sigmoid(0.0), sigmoid(-0.0)), (0.5, 0.5), "{}", token);
        assert_eq!((sigmoid(f32::INFINITY), sigmoid(f32::MAX)), (1.0, 1.0), "{}", token);
        for x in [-87.4, -100.0, f32::MIN, f32::NEG_INFINITY] {
            assert_eq!(sigmoid(x).to_bits(), 0, "{}, {x:?}", token);
        }
        assert!(sigmoid(f32::NAN).is_nan(), "{}", token);

        sweep(0.0..=200.0, SAMPLES, |x| {
            let negated: Vec<f32> = x.iter().map(|x| -x).collect();
            let pairs = map(token, Function::Sigmoid, x).into_iter().zip(map(token, Function::Sigmoid, &negated));
            for (x, (positive, negative)) in x.iter().zip(pairs) {
                let sum = f64::from(positive) + f64::from(negative);
                assert!((sum - 1.0).abs() <= 1.2e-7, "{}, {x:?}: {positive:?} + {negative:?}", token);
            }
        });
    }
}

#[test]
fn tanh_is_odd() {
    for &token in tokens() {
        let tanh = |x| Function::Tanh.at(token, x);
        assert_eq!((tanh(0.0), tanh(f32::INFINITY), tanh(f32::NEG_INFINITY)), (0.0, 1.0, -1.0), "{}", token);
        assert!(tanh(f32::NAN).is_nan() && tanh(-f32::NAN).is_nan(), "{}", token);
        sweep(0.0..=f32::MAX, SAMPLES, |x| {
            let negated: Vec<f32> = x.iter().map(|x| -x).collect();
            let pairs = map(token, Function::Tanh, x).into_iter().zip(map(token, Function::Tanh, &negated));
            for (x, (positive, negative)) in x.iter().zip(pairs) {
                assert_eq!(positive, -negative, "{}, {x:?}", token);
            }
        });
    }
}
