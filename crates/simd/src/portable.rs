//! Any machine: 8 lanes of plain Rust, through `wide`.

use wide::{f32x4, f32x8, i16x8, i32x8};

use half::{bf16, f16};

use crate::{Isa, Op, Simd};

/// The token of [`Isa::Portable`], which needs no proof.
#[derive(Clone, Copy, Debug)]
pub struct Portable(());

impl Portable {
    pub(crate) const fn new() -> Self {
        Self(())
    }
}

/// The bits of `x` as a vector of f32, untouched.
#[inline(always)]
fn from_i32(x: i32x8) -> f32x8 {
    wide::bytemuck::cast(x)
}

/// The bits of `x` as integers.
#[inline(always)]
fn to_i32(x: f32x8) -> i32x8 {
    wide::bytemuck::cast(x)
}

/// The bits of `x` with the nearest bf16 in the high half of each lane, ties to even. What is left in the low half means
/// nothing.
#[inline(always)]
fn round_bf16(x: f32x8) -> i32x8 {
    let bits = to_i32(x);
    let rounded = bits + ((bits >> 16) & i32x8::splat(1)) + i32x8::splat(0x7fff);
    // Rounding could carry the payload of a NaN into its sign.
    let quiet = bits | i32x8::splat(0x0040_0000);
    to_i32(x.is_nan().select(from_i32(quiet), from_i32(rounded)))
}

/// The half-precision number nearest to `x` in the low half of each lane, ties to even, and zeros.
#[inline(always)]
fn round_f16(x: f32x8) -> i32x8 {
    let bits = to_i32(x);
    let magnitude = bits & i32x8::splat(0x7fff_ffff);
    // Below the normal numbers of half precision, the sum with 0.5 has their digits last in its fraction.
    let subnormal = to_i32(from_i32(magnitude) + f32x8::splat(0.5)) - i32x8::splat(0.5_f32.to_bits() as i32);
    let odd = (magnitude >> 13_u32) & i32x8::splat(1);
    let normal = (magnitude - i32x8::splat((127 - 15) << 23) + i32x8::splat(0xfff) + odd) >> 13_u32;
    let finite = i32x8::splat((127 - 14) << 23).simd_gt(magnitude).select(subnormal, normal);
    let payload = ((magnitude >> 13_u32) & i32x8::splat(0x3ff)) | i32x8::splat(0x200);
    let nan = magnitude.simd_gt(i32x8::splat(0x7f80_0000));
    let infinite = i32x8::splat(0x7c00) | (nan & payload);
    let rounded = magnitude.simd_gt(i32x8::splat(((127 + 16) << 23) - 1)).select(infinite, finite);
    rounded | ((bits >> 16_u32) & i32x8::splat(0x8000))
}

/// Writes the low halves of the first `n` lanes to `p`.
///
/// # Safety
/// `p..p + n` is writable.
#[inline(always)]
unsafe fn store_words(p: *mut u16, words: i32x8, n: usize) {
    debug_assert!(n <= 8);
    let words = words.to_array().map(|word| word as u16);
    if n == 8 {
        // SAFETY: the caller's contract.
        unsafe { p.cast::<[u16; 8]>().write_unaligned(words) }
    } else {
        // SAFETY: the first n words at p are the caller's contract; n is at most 8.
        unsafe { p.copy_from_nonoverlapping(words.as_ptr(), n) }
    }
}

// SAFETY: no instruction is used that the target of the compilation does not promise.
unsafe impl Simd for Portable {
    const ISA: Isa = Isa::Portable;
    const LANES: usize = 8;
    // Also where `wide` was compiled for a machine with FMA: this level gives the same bits everywhere.
    const FUSED: bool = false;
    const NATIVE_BF16: bool = false;
    type F32 = f32x8;
    /// All bits of a lane are the truth value.
    type Mask = f32x8;

    #[inline(always)]
    unsafe fn assume() -> Self {
        Self(())
    }

    #[inline(always)]
    fn vectorize<O: Op>(self, op: O) -> O::Output {
        #[inline(never)]
        fn inner<O: Op>(op: O, token: Portable) -> O::Output {
            op.run(token)
        }
        inner(op, self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> f32x8 {
        f32x8::splat(x)
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> f32x8 {
        // SAFETY: the caller's contract.
        f32x8::new(unsafe { p.cast::<[f32; 8]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: f32x8) {
        // SAFETY: the caller's contract.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(v.to_array()) }
    }

    #[inline(always)]
    unsafe fn load_first(self, p: *const f32, n: usize) -> f32x8 {
        debug_assert!(n <= 8);
        let mut lanes = [0.0; 8];
        // SAFETY: the first n elements at p are the caller's contract; n is at most 8.
        unsafe { p.cast::<[u8; 4]>().copy_to_nonoverlapping(lanes.as_mut_ptr().cast(), n) };
        f32x8::new(lanes)
    }

    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, v: f32x8, n: usize) {
        debug_assert!(n <= 8);
        // SAFETY: the first n elements at p are the caller's contract; n is at most 8.
        unsafe { p.cast::<[u8; 4]>().copy_from_nonoverlapping(v.as_array().as_ptr().cast(), n) };
    }

    #[inline(always)]
    unsafe fn transpose(self, src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
        // In blocks of 4x4, which the registers of any target hold.
        for (row, column) in [(0, 0), (0, 4), (4, 0), (4, 4)] {
            let mut rows = [f32x4::ZERO; 4];
            for (i, values) in rows.iter_mut().enumerate() {
                // SAFETY: row `row + i` of the block is readable.
                let four = unsafe { src.add((row + i) * src_stride + column).cast::<[f32; 4]>().read_unaligned() };
                *values = f32x4::new(four);
            }
            for (i, values) in f32x4::transpose(rows).iter().enumerate() {
                let four = values.to_array();
                // SAFETY: row `column + i` of the transposed block is writable.
                unsafe { dst.add((column + i) * dst_stride + row).cast::<[f32; 4]>().write_unaligned(four) };
            }
        }
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> f32x8 {
        // SAFETY: the caller's contract.
        let half = i32x8::new(unsafe { p.cast::<[u16; 8]>().read_unaligned() }.map(i32::from));
        let magnitude = (half & i32x8::splat(0x7fff)) << 13_u32;
        let normal = magnitude + i32x8::splat((127 - 15) << 23);
        // A subnormal number has no leading one; it is given one, which is then subtracted: no operand is subnormal in
        // f32, which would take many times as long on some machines.
        let with_one = magnitude + i32x8::splat((127 - 14) << 23);
        let subnormal = from_i32(with_one) - f32x8::splat(1.0 / 16384.0);
        let large = magnitude.simd_gt(i32x8::splat((0x7c00 << 13) - 1));
        let small = i32x8::splat(0x0400 << 13).simd_gt(magnitude);
        let magnitude = small.select(to_i32(subnormal), normal | (large & i32x8::splat(0x7f80_0000)));
        from_i32(magnitude | ((half & i32x8::splat(0x8000)) << 16))
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> f32x8 {
        // SAFETY: the caller's contract.
        let wide = i32x8::new(unsafe { p.cast::<[u16; 8]>().read_unaligned() }.map(i32::from));
        from_i32(wide << 16)
    }

    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> f32x8 {
        // SAFETY: the caller's contract.
        let eight = unsafe { p.cast::<u64>().read_unaligned() };
        // By way of vectors of words: for an array of bytes the compiler takes the lanes one by one.
        let words = i16x8::from_u8x16_low(wide::bytemuck::cast([eight, 0]));
        i32x8::from_i16x8((words << 8_u32) >> 8_u32).round_float()
    }

    #[inline(always)]
    unsafe fn store_first_f16(self, p: *mut f16, v: f32x8, n: usize) {
        // SAFETY: the caller's contract.
        unsafe { store_words(p.cast(), round_f16(v), n) }
    }

    #[inline(always)]
    unsafe fn store_first_bf16(self, p: *mut bf16, v: f32x8, n: usize) {
        // SAFETY: the caller's contract.
        unsafe { store_words(p.cast(), round_bf16(v) >> 16_u32, n) }
    }

    #[inline(always)]
    fn low_bf16(self, pair: f32x8) -> f32x8 {
        from_i32(to_i32(pair) << 16)
    }

    #[inline(always)]
    fn high_bf16(self, pair: f32x8) -> f32x8 {
        from_i32(to_i32(pair) & i32x8::splat(0xffff_0000_u32 as i32))
    }

    #[inline(always)]
    fn pair_bf16(self, low: f32x8, high: f32x8) -> f32x8 {
        let low = (round_bf16(low) >> 16) & i32x8::splat(0xffff);
        from_i32(low | (round_bf16(high) & i32x8::splat(0xffff_0000_u32 as i32)))
    }

    #[inline(always)]
    fn interleave(self, a: f32x8, b: f32x8) -> [f32x8; 2] {
        let (a, b) = (to_i32(a), to_i32(b));
        let low_half = i32x8::splat(0xffff);
        let low = ((a & low_half) | (b << 16_u32)).to_array();
        let high = (((a >> 16_u32) & low_half) | (b & !low_half)).to_array();
        let (even, odd) = if cfg!(target_endian = "big") { (high, low) } else { (low, high) };
        let mut pairs = [0; 16];
        for i in 0..8 {
            pairs[2 * i] = even[i];
            pairs[2 * i + 1] = odd[i];
        }
        wide::bytemuck::cast(pairs)
    }

    #[inline(always)]
    unsafe fn load_quad(self, p: *const f32) -> f32x8 {
        // SAFETY: the caller's contract.
        let [a, b, c, d] = unsafe { p.cast::<[f32; 4]>().read_unaligned() };
        f32x8::new([a, b, c, d, a, b, c, d])
    }

    #[inline(always)]
    fn quad_sums(self, x: [f32x8; 4]) -> f32x8 {
        let mut sums = [0.0; 8];
        for i in 0..4 {
            let [a, b, c, d, e, f, g, h] = x[i].to_array();
            (sums[2 * i], sums[2 * i + 1]) = ((a + c) + (b + d), (e + g) + (f + h));
        }
        f32x8::new(sums)
    }

    #[inline(always)]
    fn lane_sums<const N: usize>(self, x: [f32x8; N]) -> f32x8 {
        const { assert!(N == 8) };
        let mut sums = [0.0; 8];
        for i in 0..N {
            let [a, b, c, d, e, f, g, h] = x[i].to_array();
            sums[i] = ((a + e) + (c + g)) + ((b + f) + (d + h));
        }
        f32x8::new(sums)
    }

    /// Does nothing: plain Rust has no prefetch.
    #[inline(always)]
    fn prefetch(self, _p: *const f32) {}

    #[inline(always)]
    fn prefetch_far(self, _p: *const f32) {}

    #[inline(always)]
    fn add(self, a: f32x8, b: f32x8) -> f32x8 {
        a + b
    }

    #[inline(always)]
    fn sub(self, a: f32x8, b: f32x8) -> f32x8 {
        a - b
    }

    #[inline(always)]
    fn mul(self, a: f32x8, b: f32x8) -> f32x8 {
        a * b
    }

    #[inline(always)]
    fn div(self, a: f32x8, b: f32x8) -> f32x8 {
        a / b
    }

    // Not `f32x8::mul_add`, which fuses on some targets, nor `f32::mul_add`, which calls libm on others.
    #[inline(always)]
    fn mul_add(self, a: f32x8, b: f32x8, c: f32x8) -> f32x8 {
        a * b + c
    }

    // Not `f32x8::fast_max`, whose treatment of NaN depends on the target.
    #[inline(always)]
    fn max(self, x: f32x8, acc: f32x8) -> f32x8 {
        x.simd_gt(acc).select(x, acc)
    }

    #[inline(always)]
    fn abs(self, x: f32x8) -> f32x8 {
        x.abs()
    }

    #[inline(always)]
    fn gt(self, a: f32x8, b: f32x8) -> f32x8 {
        a.simd_gt(b)
    }

    #[inline(always)]
    fn ge(self, a: f32x8, b: f32x8) -> f32x8 {
        a.simd_ge(b)
    }

    #[inline(always)]
    fn eq(self, a: f32x8, b: f32x8) -> f32x8 {
        a.simd_eq(b)
    }

    #[inline(always)]
    fn not_lt(self, a: f32x8, b: f32x8) -> f32x8 {
        !a.simd_lt(b)
    }

    #[inline(always)]
    fn is_nan(self, x: f32x8) -> f32x8 {
        x.is_nan()
    }

    #[inline(always)]
    fn and(self, a: f32x8, b: f32x8) -> f32x8 {
        a & b
    }

    #[inline(always)]
    fn or(self, a: f32x8, b: f32x8) -> f32x8 {
        a | b
    }

    #[inline(always)]
    fn mask_from_bits(self, bits: u64) -> f32x8 {
        let lane = i32x8::new([1, 2, 4, 8, 16, 32, 64, 128]);
        from_i32((i32x8::splat(bits as i32) & lane).simd_eq(lane))
    }

    #[inline(always)]
    fn mask_to_bits(self, mask: f32x8) -> u64 {
        u64::from(mask.to_bitmask())
    }

    #[inline(always)]
    fn select(self, mask: f32x8, yes: f32x8, no: f32x8) -> f32x8 {
        mask.select(yes, no)
    }

    /// The second part is the nearest integer as an integer.
    #[inline(always)]
    fn split_exp2(self, x: f32x8) -> (f32x8, f32x8) {
        let n = x.fast_round_int();
        // Integers do not reach as far as f32 does, but everything out there is whole. NaN is not, and stays.
        let whole = x.abs().simd_ge(f32x8::splat(1e9));
        (!whole & (x - n.round_float()), from_i32(n))
    }

    // NaN converts to i32::MIN or to 0, according to the target: either way nothing is left after the shift.
    #[inline(always)]
    fn scale_by_exp2(self, p: f32x8, n: f32x8) -> f32x8 {
        from_i32(to_i32(p) + (to_i32(n) << 23_u32))
    }
}
