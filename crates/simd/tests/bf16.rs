//! Pairs of bf16: made, taken apart, woven, and multiplied, against scalar code.

mod common;

use common::{MAX_LANES, Random, Token, tokens};
use regard_simd::{Op, Simd, bf16};

/// Defines a function that runs an expression over vectors of three operands, with some token, and gives two vectors for
/// each. The length of the operands is a multiple of `MAX_LANES`.
macro_rules! over_vectors {
    (fn $name:ident($s:ident, $a:ident, $b:ident, $c:ident) $body:block) => {
        fn $name(token: Token, operands: [&[f32]; 3]) -> [Vec<f32>; 2] {
            struct Run<'a>([&'a [f32]; 3]);
            impl Op for Run<'_> {
                type Output = [Vec<f32>; 2];
                #[inline(always)]
                fn run<S: Simd>(self, $s: S) -> Self::Output {
                    let [a, b, c] = self.0;
                    let (mut first, mut second) = (vec![f32::NAN; a.len()], vec![f32::NAN; a.len()]);
                    for i in (0..a.len()).step_by(S::LANES) {
                        // SAFETY: the operands have the same length, a multiple of the lanes of any level.
                        let vectors = unsafe { [a, b, c].map(|x| $s.load(x[i..].as_ptr())) };
                        let [$a, $b, $c] = vectors;
                        let [x, y] = $body;
                        // SAFETY: the results are as long as the operands.
                        unsafe {
                            $s.store(first[i..].as_mut_ptr(), x);
                            $s.store(second[i..].as_mut_ptr(), y);
                        }
                    }
                    [first, second]
                }
            }
            token.dispatch(Run(operands))
        }
    };
}

over_vectors! { fn split(s, a, _b, _c) { [s.low_bf16(a), s.high_bf16(a)] } }
over_vectors! { fn pair(s, a, b, _c) { [s.pair_bf16(a, b), s.pair_bf16(b, a)] } }
over_vectors! { fn weave(s, a, b, _c) { s.interleave(a, b) } }
over_vectors! { fn dot(s, acc, a, b) { [s.dot_bf16(acc, a, b), s.dot_bf16(acc, b, a)] } }

/// What the constants of a token's type are.
fn is_native(token: Token) -> bool {
    struct Native;
    impl Op for Native {
        type Output = bool;
        #[inline(always)]
        fn run<S: Simd>(self, _: S) -> bool {
            S::NATIVE_BF16
        }
    }
    token.dispatch(Native)
}

fn of(low: bf16, high: bf16) -> f32 {
    f32::from_bits(u32::from(high.to_bits()) << 16 | u32::from(low.to_bits()))
}

fn low(pair: f32) -> f32 {
    f32::from_bits(pair.to_bits() << 16)
}

fn high(pair: f32) -> f32 {
    f32::from_bits(pair.to_bits() & 0xFFFF_0000)
}

/// Operands of a test, as many as whole vectors take.
fn whole(mut x: Vec<f32>) -> Vec<f32> {
    x.resize(x.len().next_multiple_of(MAX_LANES), 0.0);
    x
}

const EVERY: usize = if cfg!(miri) { 509 } else { 1 };

#[test]
fn every_pair_splits() {
    let words = (0..=u16::MAX).step_by(EVERY);
    let pairs = whole(words.map(|word| of(bf16::from_bits(word), bf16::from_bits(word.wrapping_mul(40503)))).collect());
    for &token in tokens() {
        let [lows, highs] = split(token, [&pairs; 3]);
        for ((&pair, l), h) in pairs.iter().zip(lows).zip(highs) {
            let expected = (low(pair).to_bits(), high(pair).to_bits());
            assert_eq!((l.to_bits(), h.to_bits()), expected, "{token}: {:#x}", pair.to_bits());
        }
    }
}

#[test]
fn pairs_are_rounded_to_the_nearest() {
    let mut random = Random(6);
    let mut xs = Vec::new();
    for word in (0..=u16::MAX).step_by(EVERY) {
        // The number itself, ties (with an even and an odd neighbour below), what is next to ties, and anything.
        for low in [0, 0x8000, 0x7FFF, 0x8001, random.bits() as u32 & 0xFFFF] {
            xs.push(f32::from_bits(u32::from(word) << 16 | low));
        }
    }
    let xs = whole(xs);
    let ys: Vec<f32> = xs.iter().rev().copied().collect();
    for &token in tokens() {
        let [pairs, swapped] = pair(token, [&xs, &ys, &xs]);
        let native = is_native(token);
        for (i, (x, y)) in xs.iter().zip(&ys).enumerate() {
            assert_eq!(pairs[i].to_bits(), swapped[i].to_bits().rotate_left(16), "{token}: {x:?}, {y:?}");
            for (x, found) in [(x, low(pairs[i])), (y, high(pairs[i]))] {
                let expected = bf16::from_f32(*x).to_f32();
                let flushed = native && x.is_subnormal() && found.to_bits() == 0_f32.copysign(*x).to_bits();
                assert!(
                    found.to_bits() == expected.to_bits() || flushed,
                    "{token}: {x:?} = {:#x} gives {:#x}, not {:#x}",
                    x.to_bits(),
                    found.to_bits(),
                    expected.to_bits(),
                );
            }
        }
    }
}

#[test]
fn weaving_keeps_the_order() {
    // Every element is another one, and they come as they lie in memory.
    let mut elements: [Vec<u16>; 2] = [Vec::new(), Vec::new()];
    for i in 0..8 * MAX_LANES as u16 {
        elements[0].push(i.wrapping_mul(0x9E37));
        elements[1].push(!i.wrapping_mul(0x9E37));
    }
    let [a, b] = elements.each_ref().map(|words| {
        let vectors = words.chunks_exact(2).map(|two| {
            let [[x, y], [z, w]] = [two[0].to_ne_bytes(), two[1].to_ne_bytes()];
            f32::from_bits(u32::from_ne_bytes([x, y, z, w]))
        });
        vectors.collect::<Vec<f32>>()
    });
    for &token in tokens() {
        let [first, second] = weave(token, [&a, &b, &a]);
        let lanes = token.isa().lanes();
        for (i, (&x, &y)) in elements[0].iter().zip(&elements[1]).enumerate() {
            let (vector, place) = (i / (2 * lanes), i % (2 * lanes));
            let pairs = if place < lanes { &first } else { &second };
            let found = pairs[vector * lanes + place % lanes].to_bits();
            let expected = u32::from(y) << 16 | u32::from(x);
            assert_eq!(found, expected, "{token}, element {i}");
        }
    }
}

/// A bf16 of any sign and any fraction with an exponent that comes from a range.
fn ordinary(random: &mut Random, exponents: std::ops::Range<i32>) -> bf16 {
    let bits = random.bits();
    let exponent = exponents.start + (bits >> 33) as i32 % (exponents.end - exponents.start);
    bf16::from_bits((bits as u16 & 0x807F) | ((exponent + 127) as u16) << 7)
}

/// `TRIPLES` of sums and of two pairs to multiply.
fn operands(random: &mut Random, exponents: std::ops::Range<i32>) -> [Vec<f32>; 3] {
    const TRIPLES: usize = if cfg!(miri) { 256 } else { 1 << 16 };
    let mut next = || of(ordinary(random, exponents.clone()), ordinary(random, exponents.clone()));
    // The sum has digits that no bf16 has.
    [(); 3].map(|()| (0..TRIPLES).map(|_| next()).collect())
}

/// Whether dot products with this token are rounded after each step, and not in a way of their own.
fn rounds_each_step(token: Token) -> bool {
    !(cfg!(target_arch = "aarch64") && is_native(token))
}

/// High halves first, each step rounded once.
fn sum_of_products(acc: f32, a: f32, b: f32) -> f32 {
    low(a).mul_add(low(b), high(a).mul_add(high(b), acc))
}

#[test]
fn dot_products_have_the_same_bits() {
    let mut random = Random(7);
    // Nothing is subnormal or infinite, and products are exact: where exponents are close cancellation happens, too.
    for exponents in [-30..30, -2..2, 0..1] {
        let [acc, a, b] = operands(&mut random, exponents);
        for &token in tokens().iter().filter(|&&token| rounds_each_step(token)) {
            let [found, swapped] = dot(token, [&acc, &a, &b]);
            for i in 0..acc.len() {
                let expected = sum_of_products(acc[i], a[i], b[i]);
                let (acc, a, b) = (acc[i].to_bits(), a[i].to_bits(), b[i].to_bits());
                assert_eq!(found[i].to_bits(), expected.to_bits(), "{token}: {acc:#x} + {a:#x} {b:#x}");
                assert_eq!(swapped[i].to_bits(), expected.to_bits(), "{token}: {acc:#x} + {b:#x} {a:#x}");
            }
        }
    }
}

#[test]
fn dot_products_are_as_exact_as_promised() {
    let mut random = Random(8);
    for (from, to) in [(-30, 30), (-2, 2), (-127, 0), (-127, -60), (-70, -56), (-127, -120)] {
        let [acc, a, b] = operands(&mut random, from..to);
        for &token in tokens() {
            let [found, _] = dot(token, [&acc, &a, &b]);
            for i in 0..acc.len() {
                let products = [[high(a[i]), high(b[i])], [low(a[i]), low(b[i])]];
                let exact = products.iter().fold(f64::from(acc[i]), |sum, [x, y]| sum + f64::from(*x) * f64::from(*y));
                // Two roundings, and whatever is below the normal numbers: the sum before, an operand of each product, and
                // the two results.
                let mut size = f64::from(acc[i].abs());
                let mut lost = 3.0;
                for [x, y] in products {
                    size += f64::from(x.abs()) * f64::from(y.abs());
                    lost += f64::from(x.abs()) + f64::from(y.abs());
                }
                let bound = size / 4_194_304.0 + lost * f64::from(f32::MIN_POSITIVE);
                let error = (f64::from(found[i]) - exact).abs();
                assert!(error <= bound, "{token}: {} instead of {exact}, {error:e} > {bound:e}", found[i]);
            }
        }
    }
}

#[test]
fn dot_products_of_special_values() {
    let b16 = bf16::from_f32;
    let (one, nan, inf) = (b16(1.0), bf16::NAN, bf16::INFINITY);
    let zero = b16(0.0);
    let cases = [
        // Which of the halves, and which of the operands.
        (0.5, of(nan, one), of(one, one)),
        (0.5, of(one, nan), of(one, one)),
        (0.5, of(one, one), of(nan, one)),
        (f32::NAN, of(one, one), of(one, one)),
        (0.5, of(inf, one), of(one, one)),
        (0.5, of(one, inf), of(one, b16(-1.0))),
        (0.5, of(inf, inf), of(one, b16(-1.0))),
        (0.5, of(inf, one), of(zero, one)),
        (f32::NEG_INFINITY, of(one, one), of(one, one)),
        (f32::NEG_INFINITY, of(inf, one), of(one, one)),
        (1.0, of(bf16::MAX, zero), of(bf16::MAX, zero)),
        (0.0, of(zero, zero), of(zero, zero)),
        (-0.0, of(zero, zero), of(b16(-1.0), b16(-1.0))),
        (-3.0, of(one, b16(2.0)), of(one, one)),
    ];
    for (acc, a, b) in cases {
        let [acc, a, b] = [acc, a, b].map(|x| [x; MAX_LANES]);
        let expected = sum_of_products(acc[0], a[0], b[0]);
        for &token in tokens() {
            let [found, _] = dot(token, [&acc, &a, &b]);
            for found in found {
                let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
                assert!(
                    same,
                    "{token}: {:?} + {:#x} {:#x} gives {found:?}, not {expected:?}",
                    acc[0],
                    a[0].to_bits(),
                    b[0].to_bits()
                );
            }
        }
    }
}
