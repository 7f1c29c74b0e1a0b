//! Every operation, on every level of this machine, against scalar code.

mod common;

use common::{MAX_LANES, Random, Token, tokens};
use regard_simd::{Op, Simd};

/// How many triples of operands are tried; Miri is slow.
const TRIPLES: usize = if cfg!(miri) { 512 } else { 16_384 };

/// Written where no operation may write.
const GUARD: f32 = f32::from_bits(0xFFF1_2345);

/// Bit patterns that arithmetic would not leave alone: denormals (which small integers look like), signalling and quiet
/// NaNs of both signs.
const PATTERNS: [u32; 16] = [
    1,
    2,
    3,
    4095,
    65_536,
    0x007F_FFFF,
    0x8000_0000,
    0x8000_0001,
    0x7F80_0001,
    0x7FA5_A5A5,
    0x7FC0_0000,
    0x7FFF_FFFF,
    0xFF80_0001,
    0xFFA5_A5A5,
    0xFFC0_0000,
    0xFFFF_FFFF,
];

const SPECIALS: [f32; 22] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    -2.5,
    3.999_999_8,
    1.000_244_1,
    -1.000_488_3,
    f32::MIN_POSITIVE,
    -f32::MIN_POSITIVE,
    f32::from_bits(1),
    f32::from_bits(0x8000_0001),
    f32::from_bits(0x007F_FFFF),
    f32::MAX,
    f32::MIN,
    8_388_607.5,
    -16_777_216.0,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    f32::from_bits(0xFFA0_0001),
];

/// A special value, any bit pattern at all, or a number of ordinary size.
fn value(random: &mut Random) -> f32 {
    let bits = random.bits();
    match bits >> 62 {
        0 => SPECIALS[bits as usize % SPECIALS.len()],
        1 => f32::from_bits(bits as u32),
        _ => (random.fraction() - 0.5) * f32::from(1_u8 << (bits % 8)),
    }
}

/// Triples of operands: all pairs of special values, then random ones. Their number is a multiple of `MAX_LANES`.
fn operands() -> [Vec<f32>; 3] {
    let mut random = Random(1);
    let mut operands = [const { Vec::new() }; 3];
    for a in SPECIALS {
        for b in SPECIALS {
            let c = value(&mut random);
            for (operand, x) in operands.iter_mut().zip([a, b, c]) {
                operand.push(x);
            }
        }
    }
    while operands[0].len() < TRIPLES {
        for operand in &mut operands {
            operand.push(value(&mut random));
        }
    }
    operands
}

/// Defines a function that runs an expression over vectors of three operands, under some level.
macro_rules! over_vectors {
    (fn $name:ident($s:ident, $a:ident, $b:ident, $c:ident) -> F32 $body:block) => {
        fn $name(token: Token, operands: &[Vec<f32>; 3]) -> Vec<f32> {
            struct Run<'a>(&'a [Vec<f32>; 3]);
            impl Op for Run<'_> {
                type Output = Vec<f32>;
                #[inline(always)]
                #[allow(unused_variables, reason = "not every operation has three operands")]
                fn run<S: Simd>(self, $s: S) -> Vec<f32> {
                    let [a, b, c] = self.0;
                    let mut out = vec![GUARD; a.len()];
                    for i in (0..a.len()).step_by(S::LANES) {
                        // SAFETY: the operands have the same length, a multiple of the lanes of any level.
                        let vectors = unsafe { [a, b, c].map(|x| $s.load(x[i..].as_ptr())) };
                        let [$a, $b, $c] = vectors;
                        let result = $body;
                        // SAFETY: `out` is as long as the operands.
                        unsafe { $s.store(out[i..].as_mut_ptr(), result) };
                    }
                    out
                }
            }
            token.dispatch(Run(operands))
        }
    };
    (fn $name:ident($s:ident, $a:ident, $b:ident, $c:ident) -> Mask $body:block) => {
        over_vectors! { fn $name($s, $a, $b, $c) -> F32 { $s.select($body, $s.splat(1.0), $s.zero()) } }
    };
}

over_vectors! { fn add(s, a, b, c) -> F32 { s.add(a, b) } }
over_vectors! { fn sub(s, a, b, c) -> F32 { s.sub(a, b) } }
over_vectors! { fn mul(s, a, b, c) -> F32 { s.mul(a, b) } }
over_vectors! { fn div(s, a, b, c) -> F32 { s.div(a, b) } }
over_vectors! { fn mul_add(s, a, b, c) -> F32 { s.mul_add(a, b, c) } }
over_vectors! { fn max(s, a, b, c) -> F32 { s.max(a, b) } }
over_vectors! { fn abs(s, a, b, c) -> F32 { s.abs(a) } }
over_vectors! { fn zero(s, a, b, c) -> F32 { s.zero() } }
over_vectors! { fn copy(s, a, b, c) -> F32 { a } }
over_vectors! { fn select(s, a, b, c) -> F32 { s.select(s.gt(c, s.zero()), a, b) } }
over_vectors! { fn gt(s, a, b, c) -> Mask { s.gt(a, b) } }
over_vectors! { fn ge(s, a, b, c) -> Mask { s.ge(a, b) } }
over_vectors! { fn eq(s, a, b, c) -> Mask { s.eq(a, b) } }
over_vectors! { fn not_lt(s, a, b, c) -> Mask { s.not_lt(a, b) } }
over_vectors! { fn is_nan(s, a, b, c) -> Mask { s.is_nan(a) } }
over_vectors! { fn and(s, a, b, c) -> Mask { s.and(s.gt(a, b), s.gt(b, c)) } }
over_vectors! { fn or(s, a, b, c) -> Mask { s.or(s.gt(a, b), s.gt(b, c)) } }
over_vectors! { fn fraction(s, a, b, c) -> F32 { s.split_exp2(a).0 } }
over_vectors! { fn scale(s, a, b, c) -> F32 { s.scale_by_exp2(b, s.split_exp2(a).1) } }

/// How a lane has to agree with the scalar result.
#[derive(Clone, Copy, PartialEq)]
enum Agree {
    /// The same bits, or NaN both: which NaN comes out of arithmetic is nobody's business.
    Value,
    /// The same bits.
    Bits,
}

/// Compares an operation with its scalar definition, on every level.
fn check(
    name: &str,
    agree: Agree,
    run: fn(Token, &[Vec<f32>; 3]) -> Vec<f32>,
    operands: &[Vec<f32>; 3],
    expected: fn(Token, f32, f32, f32) -> f32,
) {
    for &token in tokens() {
        let found = run(token, operands);
        for (i, found) in found.into_iter().enumerate() {
            let [a, b, c] = operands.each_ref().map(|operand| operand[i]);
            let expected = expected(token, a, b, c);
            let same = found.to_bits() == expected.to_bits();
            assert!(
                same || agree == Agree::Value && found.is_nan() && expected.is_nan(),
                "{name} on {}, element {i}: ({a:?}, {b:?}, {c:?}) = ({:#x}, {:#x}, {:#x}) gives {found:?} = {:#x}, \
                 not {expected:?} = {:#x}",
                token,
                a.to_bits(),
                b.to_bits(),
                c.to_bits(),
                found.to_bits(),
                expected.to_bits(),
            );
        }
    }
}

/// What a mask becomes when it selects.
fn truth(yes: bool) -> f32 {
    if yes { 1.0 } else { 0.0 }
}

/// Whether a level fuses, by its constant.
fn is_fused(token: Token) -> bool {
    struct Fused;
    impl Op for Fused {
        type Output = bool;
        #[inline(always)]
        fn run<S: Simd>(self, _: S) -> bool {
            S::FUSED
        }
    }
    token.dispatch(Fused)
}

#[test]
fn arithmetic() {
    let operands = operands();
    check("add", Agree::Value, add, &operands, |_, a, b, _| a + b);
    check("sub", Agree::Value, sub, &operands, |_, a, b, _| a - b);
    check("mul", Agree::Value, mul, &operands, |_, a, b, _| a * b);
    check("div", Agree::Value, div, &operands, |_, a, b, _| a / b);
    check("abs", Agree::Bits, abs, &operands, |_, a, _, _| f32::from_bits(a.to_bits() & 0x7FFF_FFFF));
    check("zero", Agree::Bits, zero, &operands, |_, _, _, _| 0.0);
}

#[test]
fn mul_add_rounds_as_promised() {
    let mut operands = operands();
    // (1 + 2^-12)^2 - (1 + 2^-11) is 2^-24 rounded once, and 0 rounded twice.
    let x = 1.0 + 1.0 / 4096.0;
    for (operand, x) in operands.iter_mut().zip([x, x, -1.0 - 1.0 / 2048.0]) {
        operand[..MAX_LANES].fill(x);
    }
    check(
        "mul_add",
        Agree::Value,
        mul_add,
        &operands,
        |token, a, b, c| {
            if is_fused(token) { a.mul_add(b, c) } else { a * b + c }
        },
    );
    for &token in tokens() {
        let expected = if is_fused(token) { 1.0 / 16_777_216.0 } else { 0.0 };
        assert_eq!(mul_add(token, &operands)[..MAX_LANES], [expected; MAX_LANES], "{}", token);
    }
}

#[test]
fn max_passes_over_nan() {
    let mut operands = operands();
    for acc in &mut operands[1] {
        if acc.is_nan() {
            *acc = f32::NEG_INFINITY;
        }
    }
    check("max", Agree::Bits, max, &operands, |_, x, acc, _| if x > acc { x } else { acc });
}

#[test]
fn comparisons() {
    let operands = operands();
    check("gt", Agree::Bits, gt, &operands, |_, a, b, _| truth(a > b));
    check("ge", Agree::Bits, ge, &operands, |_, a, b, _| truth(a >= b));
    check("eq", Agree::Bits, eq, &operands, |_, a, b, _| truth(a == b));
    check("not_lt", Agree::Bits, not_lt, &operands, |_, a, b, _| truth(a >= b || a.is_nan() || b.is_nan()));
    check("is_nan", Agree::Bits, is_nan, &operands, |_, a, _, _| truth(a.is_nan()));
    check("and", Agree::Bits, and, &operands, |_, a, b, c| truth(a > b && b > c));
    check("or", Agree::Bits, or, &operands, |_, a, b, c| truth(a > b || b > c));
}

#[test]
fn selection_keeps_bits() {
    let mut operands = operands();
    for (i, pattern) in PATTERNS.into_iter().enumerate() {
        operands[0][i] = f32::from_bits(pattern);
        operands[1][i] = f32::from_bits(PATTERNS[PATTERNS.len() - 1 - i]);
    }
    check("load and store", Agree::Bits, copy, &operands, |_, a, _, _| a);
    check("select", Agree::Bits, select, &operands, |_, a, b, c| if c > 0.0 { a } else { b });
}

#[test]
fn splat_keeps_bits() {
    struct Splat(u32);
    impl Op for Splat {
        type Output = Vec<u32>;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Vec<u32> {
            let mut out = vec![GUARD; S::LANES];
            // SAFETY: `out` has as many elements as a vector.
            unsafe { s.store(out.as_mut_ptr(), s.splat(f32::from_bits(self.0))) };
            out.into_iter().map(f32::to_bits).collect()
        }
    }
    for &token in tokens() {
        for pattern in PATTERNS.into_iter().chain(0..300).chain((0..32).map(|shift| 1 << shift)) {
            let expected = vec![pattern; token.isa().lanes()];
            assert_eq!(token.dispatch(Splat(pattern)), expected, "{}", token);
        }
    }
}

#[test]
fn split_and_scale() {
    let mut operands = operands();
    let mut random = Random(2);
    // Far from zero, near integers, and with the smallest fractions on either side.
    for (i, x) in operands[0].iter_mut().enumerate() {
        let whole = (random.bits() % 254) as f32 - 126.0;
        match i % 8 {
            0 => *x = whole,
            1 => *x = whole.next_up(),
            2 => *x = whole.next_down(),
            3 => *x = whole + random.fraction(),
            _ => {}
        }
        if x.is_infinite() {
            *x = -1e30;
        }
    }
    for &token in tokens() {
        for (&x, f) in operands[0].iter().zip(fraction(token, &operands)) {
            let n = f64::from(x) - f64::from(f);
            let same = f.abs() <= 0.5 && n == n.round() || f.is_nan() && x.is_nan();
            assert!(same, "split_exp2 on {}: {x:?} = {:#x} gives {f:?}", token, x.to_bits());
        }
    }

    let [xs, ps, _] = &mut operands;
    for (x, p) in xs.iter_mut().zip(ps) {
        if !(-125.0..=126.0).contains(x) {
            *x = if x.is_nan() { *x } else { 0.0 };
        }
        *p = if x.is_nan() { f32::NAN } else { 0.5 + 1.5 * random.fraction() };
    }
    check("scale_by_exp2", Agree::Value, scale, &operands, |_, x, p, _| {
        let power =
            if x.is_nan() { f64::NAN } else { f64::from_bits(((x.round_ties_even() as i64 + 1023) as u64) << 52) };
        (f64::from(p) * power) as f32
    });
}

#[test]
fn masks() {
    struct RoundTrip;
    impl Op for RoundTrip {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let all = (1_u64 << S::LANES) - 1;
            for bits in (0..=all).step_by(if cfg!(miri) { 5 } else { 1 }) {
                let mask = s.mask_from_bits(bits);
                assert_eq!(s.mask_to_bits(mask), bits, "{}", S::ISA);
                assert_eq!(s.any(mask), bits != 0, "any of {bits:#b} on {}", S::ISA);
                let beyond = s.mask_from_bits(bits | !all);
                assert_eq!(s.mask_to_bits(beyond), bits, "{}: bits past the lanes", S::ISA);

                let other = bits.wrapping_mul(0x9E37_79B9) & all;
                assert_eq!(s.mask_to_bits(s.and(mask, s.mask_from_bits(other))), bits & other, "{}", S::ISA);
                assert_eq!(s.mask_to_bits(s.or(mask, s.mask_from_bits(other))), bits | other, "{}", S::ISA);

                let mut lanes = [GUARD; MAX_LANES];
                // SAFETY: no level has more lanes.
                unsafe { s.store(lanes.as_mut_ptr(), s.select(mask, s.splat(1.0), s.splat(2.0))) };
                for (lane, found) in lanes[..S::LANES].iter().enumerate() {
                    assert_eq!(*found, if bits >> lane & 1 == 1 { 1.0 } else { 2.0 }, "{}, lane {lane}", S::ISA);
                }
            }
        }
    }
    for &token in tokens() {
        token.dispatch(RoundTrip);
    }
}

#[test]
fn partial_loads_and_stores() {
    struct Partial;
    impl Op for Partial {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for n in 0..=S::LANES {
                // An allocation of its own, so that a sanitizer sees a read past the end, at every distance from it.
                for before in 0..3 {
                    let source: Vec<f32> = (0..before + n).map(|i| f32::from_bits(PATTERNS[i % 16])).collect();
                    let mut whole = [GUARD; MAX_LANES];
                    // SAFETY: n elements follow `before`; no level has more than `MAX_LANES` lanes.
                    unsafe { s.store(whole.as_mut_ptr(), s.load_first(source.as_ptr().add(before), n)) };
                    for (lane, found) in whole[..S::LANES].iter().enumerate() {
                        let expected = if lane < n { source[before + lane].to_bits() } else { 0 };
                        assert_eq!(found.to_bits(), expected, "load_first({n}) on {}, lane {lane}", S::ISA);
                    }

                    let values: Vec<f32> = (0..S::LANES).map(|i| f32::from_bits(PATTERNS[15 - i % 16])).collect();
                    let mut exact = vec![0.0; before + n];
                    let mut guarded = vec![GUARD; before + n + MAX_LANES];
                    // SAFETY: `values` is a whole vector; n elements follow `before` in both.
                    unsafe {
                        let v = s.load(values.as_ptr());
                        s.store_first(exact.as_mut_ptr().add(before), v, n);
                        s.store_first(guarded.as_mut_ptr().add(before), v, n);
                    }
                    for (i, found) in guarded.iter().enumerate() {
                        let inside = (before..before + n).contains(&i);
                        let expected = if inside { values[i - before] } else { GUARD };
                        assert_eq!(found.to_bits(), expected.to_bits(), "store_first({n}) on {}, {i}", S::ISA);
                    }
                    for (found, expected) in exact[before..].iter().zip(&values) {
                        assert_eq!(found.to_bits(), expected.to_bits(), "store_first({n}) on {}", S::ISA);
                    }
                }
            }
        }
    }
    for &token in tokens() {
        token.dispatch(Partial);
    }
}

#[test]
fn transpose() {
    struct Transpose {
        src_stride: usize,
        dst_stride: usize,
    }
    impl Op for Transpose {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let (from, to) = (S::LANES + self.src_stride, S::LANES + self.dst_stride);
            // As long as the block needs, so that the last rows lie at the end of the allocations. Small integers, so
            // that bits have to be kept.
            let src: Vec<f32> = (1..=(S::LANES - 1) * from + S::LANES).map(|i| f32::from_bits(i as u32)).collect();
            let mut dst = vec![GUARD; (S::LANES - 1) * to + S::LANES];
            // SAFETY: both hold `LANES` rows of `LANES` elements at their strides.
            unsafe { s.transpose(src.as_ptr(), from, dst.as_mut_ptr(), to) };
            for (i, found) in dst.iter().enumerate() {
                let (row, column) = (i / to, i % to);
                let expected = if column < S::LANES { src[column * from + row] } else { GUARD };
                assert_eq!(found.to_bits(), expected.to_bits(), "{}, row {row}, column {column}", S::ISA);
            }
        }
    }
    for &token in tokens() {
        for src_stride in [0, 1, 3, 16] {
            for dst_stride in [0, 1, 5, 16] {
                token.dispatch(Transpose { src_stride, dst_stride });
            }
        }
    }
}

#[test]
fn prefetch_never_faults() {
    struct Prefetch<'a>(&'a [f32]);
    impl Op for Prefetch<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            s.prefetch(self.0.as_ptr());
            s.prefetch(self.0.as_ptr().wrapping_add(1 << 40));
            s.prefetch(std::ptr::null());
        }
    }
    for &token in tokens() {
        token.dispatch(Prefetch(&[1.0; 4]));
    }
}
