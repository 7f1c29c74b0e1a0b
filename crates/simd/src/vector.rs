//! The one trait that the kernels are written against.

use half::{bf16, f16};

use crate::{Isa, words};

/// Work that runs under some instruction set: a struct of arguments with one generic method.
///
/// A struct and not a closure, because a closure inherits the instruction set only when it is written inside the
/// function that enables it (research on rustc 1.95: a closure in generic code costs a call per operation).
pub trait Op {
    /// What the work gives.
    type Output;

    /// Does the work. Implementations carry `#[inline(always)]`: one missed inline and every vector operation of the
    /// body becomes a call.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// An instruction set: proof that the machine has it, and its vector operations on f32.
///
/// Every operation is `#[inline(always)]` around an inner function that enables the features, so that it becomes one
/// instruction when (and only when) everything between it and [`Simd::vectorize`] is `#[inline(always)]` too.
///
/// Indices and other 32-bit patterns travel in `F32` registers: [`Simd::splat`], [`Simd::select`], [`Simd::load`] and
/// [`Simd::store`] keep bits as they are.
///
/// # Safety
/// A value of the type may exist only where processor *and* operating system support the instructions.
pub unsafe trait Simd: Copy + Send + Sync + std::fmt::Debug + 'static {
    /// The name of the level.
    const ISA: Isa;
    /// f32 elements of a vector.
    const LANES: usize;
    /// Whether [`Simd::mul_add`] rounds once. Levels that fuse agree with each other bit for bit.
    const FUSED: bool;
    /// Whether [`Simd::dot_bf16`] is one instruction.
    const NATIVE_BF16: bool;

    /// A vector of `LANES` f32.
    type F32: Copy;
    /// One truth value per lane.
    type Mask: Copy;

    /// The token of this level, where its existence is known already.
    ///
    /// # Safety
    /// The machine has the level: some token of this type was made by detection before.
    unsafe fn assume() -> Self;

    /// Runs `op` in a function compiled for this level: the only gateway, and a real call (never inlined), so that
    /// several callers share one copy of a large body.
    fn vectorize<O: Op>(self, op: O) -> O::Output;

    /// `x` in every lane.
    fn splat(self, x: f32) -> Self::F32;

    /// `LANES` elements from `p`, which needs no alignment.
    ///
    /// # Safety
    /// `p..p + LANES` is readable.
    unsafe fn load(self, p: *const f32) -> Self::F32;

    /// Writes `LANES` elements to `p`, which needs no alignment.
    ///
    /// # Safety
    /// `p..p + LANES` is writable.
    unsafe fn store(self, p: *mut f32, v: Self::F32);

    /// The first `n <= LANES` elements from `p`, which needs no alignment, and zero in the other lanes; memory past them is
    /// not touched.
    ///
    /// # Safety
    /// `p..p + n` is readable.
    unsafe fn load_first(self, p: *const f32, n: usize) -> Self::F32;

    /// Writes the first `n <= LANES` lanes to `p`, which needs no alignment; memory past them is not touched.
    ///
    /// # Safety
    /// `p..p + n` is writable.
    unsafe fn store_first(self, p: *mut f32, v: Self::F32, n: usize);

    /// Transposes a `LANES` x `LANES` block: row `i` of `src` (at `src + i * src_stride`) becomes column `i` of `dst`.
    /// Strides are in elements.
    ///
    /// # Safety
    /// All `LANES` rows of `LANES` elements are readable in `src` and writable in `dst`, and they do not overlap.
    unsafe fn transpose(self, src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize);

    /// `LANES` half-precision elements from `p`, widened, which is exact.
    ///
    /// # Safety
    /// `p..p + LANES` is readable.
    unsafe fn load_f16(self, p: *const f16) -> Self::F32;

    /// `LANES` bf16 from `p`, widened, which is exact.
    ///
    /// # Safety
    /// `p..p + LANES` is readable.
    unsafe fn load_bf16(self, p: *const bf16) -> Self::F32;

    /// `LANES` signed bytes from `p`, as f32.
    ///
    /// # Safety
    /// `p..p + LANES` is readable.
    unsafe fn load_i8(self, p: *const i8) -> Self::F32;

    /// Writes the first `n <= LANES` lanes to `p`, rounded to the nearest half-precision number, ties to even; memory past
    /// them is not touched. NaN stays NaN.
    ///
    /// # Safety
    /// `p..p + n` is writable.
    unsafe fn store_first_f16(self, p: *mut f16, v: Self::F32, n: usize);

    /// Writes the first `n <= LANES` lanes to `p`, rounded to the nearest bf16, ties to even; memory past them is not
    /// touched. NaN stays NaN.
    ///
    /// # Safety
    /// `p..p + n` is writable.
    unsafe fn store_first_bf16(self, p: *mut bf16, v: Self::F32, n: usize);

    /// Asks for the cache line at `p` to be brought into the first-level cache. `p` may point anywhere.
    fn prefetch(self, p: *const f32);

    /// Asks for the cache line at `p` to be brought into the second-level cache. `p` may point anywhere.
    ///
    /// To be preferred for what comes from memory: the first level can wait for few lines at a time (about 15 GB/s worth of
    /// them on Zen 4), the second for many more.
    fn prefetch_far(self, p: *const f32);

    /// `a + b`
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a - b`
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b`
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a / b`, correctly rounded
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b + c`, rounded once where [`Simd::FUSED`]
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;

    /// What [`Simd::mul_add`] gives, in the register of `sum`: for unrolled loops whose sums fill the registers, which LLVM would rename
    /// and spill.
    #[inline(always)]
    fn add_product(self, sum: Self::F32, a: Self::F32, b: Self::F32) -> Self::F32 {
        self.mul_add(a, b, sum)
    }
    /// The larger of `x` and `acc`. A NaN in `x` is passed over; `acc` must not be NaN.
    fn max(self, x: Self::F32, acc: Self::F32) -> Self::F32;
    /// `|x|`
    fn abs(self, x: Self::F32) -> Self::F32;

    /// `a > b`, false for NaN
    fn gt(self, a: Self::F32, b: Self::F32) -> Self::Mask;
    /// `a >= b`, false for NaN
    fn ge(self, a: Self::F32, b: Self::F32) -> Self::Mask;
    /// `a == b` as IEEE says: `-0 == +0`, and false for NaN
    fn eq(self, a: Self::F32, b: Self::F32) -> Self::Mask;
    /// Not `a < b`: true for NaN
    fn not_lt(self, a: Self::F32, b: Self::F32) -> Self::Mask;
    /// `x` is NaN
    fn is_nan(self, x: Self::F32) -> Self::Mask;
    /// Both.
    fn and(self, a: Self::Mask, b: Self::Mask) -> Self::Mask;
    /// Either.
    fn or(self, a: Self::Mask, b: Self::Mask) -> Self::Mask;
    /// The low `LANES` bits, lane 0 in bit 0. Higher bits are ignored.
    fn mask_from_bits(self, bits: u64) -> Self::Mask;
    /// The inverse of [`Simd::mask_from_bits`]; bits past `LANES` are zero.
    fn mask_to_bits(self, mask: Self::Mask) -> u64;
    /// Per lane `yes` where `mask` is set, `no` elsewhere; bits are kept as they are.
    fn select(self, mask: Self::Mask, yes: Self::F32, no: Self::F32) -> Self::F32;

    /// Splits `x` for [`crate::math::exp2`] into `f = x - n` in `[-0.5, 0.5]`, exactly, where `n` is the nearest
    /// integer, and a value that only [`Simd::scale_by_exp2`] understands. For infinite `x` the parts mean nothing.
    fn split_exp2(self, x: Self::F32) -> (Self::F32, Self::F32);
    /// `p * 2^n`, exactly, where `n` comes from [`Simd::split_exp2`] of an `x` in `[-126, 128)`, `p` is in `[0.5, 2]`,
    /// and the product is a normal number. A NaN `p` stays NaN for any `n` that came from NaN.
    fn scale_by_exp2(self, p: Self::F32, n: Self::F32) -> Self::F32;

    /// The bf16 in the low half of each lane, widened, which is exact.
    fn low_bf16(self, pair: Self::F32) -> Self::F32;
    /// The bf16 in the high half of each lane, widened, which is exact.
    fn high_bf16(self, pair: Self::F32) -> Self::F32;

    /// Both rounded to the nearest bf16, ties to even, as pairs: `low` in the low half of each lane, `high` in the high
    /// half. NaN becomes a quiet NaN.
    ///
    /// Where [`Simd::NATIVE_BF16`], a subnormal number may become a zero of its sign.
    fn pair_bf16(self, low: Self::F32, high: Self::F32) -> Self::F32;

    /// From two vectors of `2 * LANES` words of 16 bits each, as they lie in memory, the `2 * LANES` pairs of words of the
    /// same index, in order: pair `i` has word `i` of `a` in its low half and that of `b` in its high half.
    fn interleave(self, a: Self::F32, b: Self::F32) -> [Self::F32; 2];

    /// Per lane `acc + a.high * b.high + a.low * b.low`, for pairs of bf16: first the high halves, then the low ones, each
    /// by [`Simd::mul_add`].
    ///
    /// The product of two bf16 is exact in f32, so that the bits are the same on every level, fused or not, while nothing
    /// overflows and no product or sum is subnormal. Where [`Simd::NATIVE_BF16`], subnormal operands and results may
    /// count as zeros; that is the only difference on x86-64. On AArch64 the instruction also rounds in its own way: the
    /// result is within `2^-22 (|acc| + |a.high * b.high| + |a.low * b.low|)` of the exact one.
    #[inline(always)]
    fn dot_bf16(self, acc: Self::F32, a: Self::F32, b: Self::F32) -> Self::F32 {
        // The order of vdpbf16ps.
        let acc = self.mul_add(self.high_bf16(a), self.high_bf16(b), acc);
        self.mul_add(self.low_bf16(a), self.low_bf16(b), acc)
    }

    /// `2 * LANES` signed bytes from `p` as i16, two in each lane, in order.
    ///
    /// # Safety
    /// `p..p + 2 * LANES` is readable.
    #[inline(always)]
    unsafe fn load_words(self, p: *const i8) -> Self::F32 {
        // SAFETY: the caller's contract.
        unsafe { words::load_first(self, p, 2 * Self::LANES) }
    }

    /// The first `n <= 2 * LANES` signed bytes from `p` as [`Simd::load_words`] gives them, and zero in place of the others;
    /// memory past them is not touched.
    ///
    /// # Safety
    /// `p..p + n` is readable.
    #[inline(always)]
    unsafe fn load_first_words(self, p: *const i8, n: usize) -> Self::F32 {
        // SAFETY: the caller's contract.
        unsafe { words::load_first(self, p, n) }
    }

    /// Both rounded to the nearest integer, ties to even, as pairs of i16: `low` in the low half of each lane, `high` in the
    /// high half. NaN becomes zero; what i16 cannot hold becomes any number.
    #[inline(always)]
    fn pair_i16(self, low: Self::F32, high: Self::F32) -> Self::F32 {
        words::pair(self, low, high)
    }

    /// Per lane `acc + a.low * b.low + a.high * b.high`, for pairs of i16 and sums of i32, which wrap around.
    #[inline(always)]
    fn dot_i16(self, acc: Self::F32, a: Self::F32, b: Self::F32) -> Self::F32 {
        words::dot(self, acc, a, b)
    }

    /// What [`Simd::lane_sums`] does, for lanes of i32, whose sums wrap around.
    #[inline(always)]
    fn lane_sums_i32<const N: usize>(self, x: [Self::F32; N]) -> Self::F32 {
        words::lane_sums(self, x)
    }

    /// Lanes of i32 as f32, rounded to the nearest, ties to even.
    #[inline(always)]
    fn float_i32(self, x: Self::F32) -> Self::F32 {
        words::widen(self, x)
    }

    /// Lane `i` is the sum over the lanes of `x[i]`; `N` is `LANES`.
    ///
    /// Every sum is the same tree of additions, whatever `i`: lanes half a vector apart first, then a quarter, and so on.
    fn lane_sums<const N: usize>(self, x: [Self::F32; N]) -> Self::F32;

    /// Four elements from `p` in each group of four lanes.
    ///
    /// # Safety
    /// `p..p + 4` is readable.
    unsafe fn load_quad(self, p: *const f32) -> Self::F32;

    /// Sums over groups of four lanes: lane `i * LANES / 4 + j` is that over group `j` of `x[i]`, of its lanes
    /// `(0 + 2) + (1 + 3)`.
    fn quad_sums(self, x: [Self::F32; 4]) -> Self::F32;

    /// Whether any lane is set.
    #[inline(always)]
    fn any(self, mask: Self::Mask) -> bool {
        self.mask_to_bits(mask) != 0
    }

    /// Zero in every lane.
    #[inline(always)]
    fn zero(self) -> Self::F32 {
        self.splat(0.0)
    }
}
