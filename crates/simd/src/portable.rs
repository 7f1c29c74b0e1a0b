//! Any machine: 8 lanes of plain Rust, through `wide`.

use wide::{f32x4, f32x8, i32x8};

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

// SAFETY: no instruction is used that the target of the compilation does not promise.
unsafe impl Simd for Portable {
    const ISA: Isa = Isa::Portable;
    const LANES: usize = 8;
    // Also where `wide` was compiled for a machine with FMA: this level gives the same bits everywhere.
    const FUSED: bool = false;
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
        unsafe { p.copy_to_nonoverlapping(lanes.as_mut_ptr(), n) };
        f32x8::new(lanes)
    }

    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, v: f32x8, n: usize) {
        debug_assert!(n <= 8);
        // SAFETY: the first n elements at p are the caller's contract; n is at most 8.
        unsafe { p.copy_from_nonoverlapping(v.as_array().as_ptr(), n) };
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

    /// Does nothing: plain Rust has no prefetch.
    #[inline(always)]
    fn prefetch(self, _p: *const f32) {}

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
