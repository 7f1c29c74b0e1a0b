//! AVX-512 F, BW and DQ, without VL: 16 lanes, 32 registers.

use core::arch::x86_64::*;

use crate::{Isa, Op, Simd, memory_operations, operations};

/// Proof that the machine has [`Isa::Avx512`].
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

impl Avx512 {
    /// The token, if the processor has the instructions and the operating system saves their registers.
    pub fn detect() -> Option<Self> {
        (std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512bw")
            && std::arch::is_x86_feature_detected!("avx512dq"))
        .then_some(Self(()))
    }
}

/// The mask of the first `n` lanes.
#[inline(always)]
fn first(n: usize) -> __mmask16 {
    debug_assert!(n <= 16);
    ((1_u32 << n) - 1) as __mmask16
}

// SAFETY: `Avx512` is made by `detect` only, or by `assume` under the promise that it was.
unsafe impl Simd for Avx512 {
    const ISA: Isa = Isa::Avx512;
    const LANES: usize = 16;
    const FUSED: bool = true;
    type F32 = __m512;
    type Mask = __mmask16;

    #[inline(always)]
    unsafe fn assume() -> Self {
        Self(())
    }

    #[inline(always)]
    fn vectorize<O: Op>(self, op: O) -> O::Output {
        #[inline(never)]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq")]
        fn inner<O: Op>(op: O, token: Avx512) -> O::Output {
            op.run(token)
        }
        // SAFETY: `self` is a token, which exists only where the features were detected.
        unsafe { inner(op, self) }
    }

    #[inline(always)]
    fn prefetch(self, p: *const f32) {
        // SAFETY: a prefetch never faults, whatever the address; SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }

    operations! { "avx512f,avx512bw,avx512dq";
        fn splat(x: f32) -> __m512 { _mm512_set1_ps(x) }
        fn add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        fn sub(a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
        fn mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        fn div(a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
        fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
        // vmaxps gives its second operand when either is NaN.
        fn max(x: __m512, acc: __m512) -> __m512 { _mm512_max_ps(x, acc) }
        fn abs(x: __m512) -> __m512 { _mm512_abs_ps(x) }
        fn gt(a: __m512, b: __m512) -> __mmask16 { _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b) }
        fn ge(a: __m512, b: __m512) -> __mmask16 { _mm512_cmp_ps_mask::<_CMP_GE_OQ>(a, b) }
        fn eq(a: __m512, b: __m512) -> __mmask16 { _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b) }
        fn not_lt(a: __m512, b: __m512) -> __mmask16 { _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(a, b) }
        fn is_nan(x: __m512) -> __mmask16 { _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x) }
        fn and(a: __mmask16, b: __mmask16) -> __mmask16 { a & b }
        fn or(a: __mmask16, b: __mmask16) -> __mmask16 { a | b }
        fn mask_from_bits(bits: u64) -> __mmask16 { bits as __mmask16 }
        fn mask_to_bits(mask: __mmask16) -> u64 { u64::from(mask) }
        fn select(mask: __mmask16, yes: __m512, no: __m512) -> __m512 { _mm512_mask_blend_ps(mask, no, yes) }
        // vreduceps with M = 0 is x less its nearest integer, which is always exact.
        fn split_exp2(x: __m512) -> (__m512, __m512) {
            (_mm512_reduce_ps::<0x00>(x), _mm512_roundscale_ps::<0x00>(x))
        }
        fn scale_by_exp2(p: __m512, n: __m512) -> __m512 { _mm512_scalef_ps(p, n) }
    }

    memory_operations! { "avx512f,avx512bw,avx512dq";
        unsafe fn load(p: *const f32) -> __m512 {
            // SAFETY: the caller's contract.
            unsafe { _mm512_loadu_ps(p) }
        }
        unsafe fn store(p: *mut f32, v: __m512) -> () {
            // SAFETY: the caller's contract.
            unsafe { _mm512_storeu_ps(p, v) }
        }
        unsafe fn load_first(p: *const f32, n: usize) -> __m512 {
            // SAFETY: masked lanes are not read; the others are the caller's contract.
            unsafe { _mm512_maskz_loadu_ps(first(n), p) }
        }
        unsafe fn store_first(p: *mut f32, v: __m512, n: usize) -> () {
            // SAFETY: masked lanes are not written; the others are the caller's contract.
            unsafe { _mm512_mask_storeu_ps(p, first(n), v) }
        }
        unsafe fn transpose(src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) -> () {
            for quarter in 0..4 {
                let mut rows = [_mm512_setzero_ps(); 4];
                for (i, row) in rows.iter_mut().enumerate() {
                    // SAFETY: rows i, 4 + i, 8 + i and 12 + i of the block have 16 elements, of which this is a quarter.
                    *row = unsafe { quarters(src.add(i * src_stride + 4 * quarter), 4 * src_stride) };
                }
                let low_01 = _mm512_unpacklo_ps(rows[0], rows[1]);
                let high_01 = _mm512_unpackhi_ps(rows[0], rows[1]);
                let low_23 = _mm512_unpacklo_ps(rows[2], rows[3]);
                let high_23 = _mm512_unpackhi_ps(rows[2], rows[3]);
                let columns = [
                    _mm512_shuffle_ps::<0b01_00_01_00>(low_01, low_23),
                    _mm512_shuffle_ps::<0b11_10_11_10>(low_01, low_23),
                    _mm512_shuffle_ps::<0b01_00_01_00>(high_01, high_23),
                    _mm512_shuffle_ps::<0b11_10_11_10>(high_01, high_23),
                ];
                for (i, column) in columns.into_iter().enumerate() {
                    // SAFETY: row 4 * quarter + i of the transposed block is writable.
                    unsafe { _mm512_storeu_ps(dst.add((4 * quarter + i) * dst_stride), column) };
                }
            }
        }
    }
}

/// Four elements from each of four rows, one row in each 128-bit quarter. Masked broadcasts from memory take load ports
/// only: with them a transpose needs half the shuffles of one that loads whole rows.
///
/// # Safety
/// Four elements are readable at each of `p + i * stride`, `i < 4`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
unsafe fn quarters(p: *const f32, stride: usize) -> __m512 {
    // SAFETY: the caller's contract.
    unsafe {
        let rows = _mm512_broadcast_f32x4(_mm_loadu_ps(p));
        let rows = _mm512_mask_broadcast_f32x4(rows, 0x00f0, _mm_loadu_ps(p.add(stride)));
        let rows = _mm512_mask_broadcast_f32x4(rows, 0x0f00, _mm_loadu_ps(p.add(2 * stride)));
        _mm512_mask_broadcast_f32x4(rows, 0xf000, _mm_loadu_ps(p.add(3 * stride)))
    }
}
