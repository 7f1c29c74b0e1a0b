//! AVX-512 F, BW and DQ, without VL: 16 lanes, 32 registers.

use core::arch::x86_64::*;

use half::{bf16, f16};

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

/// The bits of `x` with the nearest bf16 in the high half of each lane, ties to even. What is left in the low half means
/// nothing.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn round_bf16(x: __m512) -> __m512i {
    let bits = _mm512_castps_si512(x);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    // Rounding could carry the payload of a NaN into its sign.
    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x0040_0000))
}

/// Writes the first `n` of 16 words to `p`.
///
/// # Safety
/// `p..p + n` is writable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
unsafe fn store_words(p: *mut i16, words: __m256i, n: usize) {
    if n == 16 {
        // SAFETY: the caller's contract.
        unsafe { _mm256_storeu_si256(p.cast(), words) }
    } else {
        let mask = __mmask32::from(first(n));
        // SAFETY: masked words are not written; the others are the caller's contract.
        unsafe { _mm512_mask_storeu_epi16(p, mask, _mm512_castsi256_si512(words)) }
    }
}

// SAFETY: `Avx512` is made by `detect` only, or by `assume` under the promise that it was.
unsafe impl Simd for Avx512 {
    const ISA: Isa = Isa::Avx512;
    const LANES: usize = 16;
    const FUSED: bool = true;
    const NATIVE_BF16: bool = false;
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

    #[inline(always)]
    fn prefetch_far(self, p: *const f32) {
        // SAFETY: a prefetch never faults, whatever the address; SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
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
        fn low_bf16(pair: __m512) -> __m512 {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(pair)))
        }
        fn high_bf16(pair: __m512) -> __m512 {
            _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(pair), _mm512_set1_epi32(0xffff_0000_u32 as i32)))
        }
        fn pair_bf16(low: __m512, high: __m512) -> __m512 {
            let low = _mm512_srli_epi32::<16>(round_bf16(low));
            _mm512_castsi512_ps(_mm512_mask_blend_epi16(0xaaaa_aaaa, low, round_bf16(high)))
        }
        fn interleave(a: __m512, b: __m512) -> [__m512; 2] {
            let (a, b) = (_mm512_castps_si512(a), _mm512_castps_si512(b));
            // Lane i is the pair of words i and 32 + i, which lie in a and in b.
            let low = _mm512_add_epi32(
                _mm512_set1_epi32(32 << 16),
                _mm512_mullo_epi32(
                    _mm512_set1_epi32(0x1_0001),
                    _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                ),
            );
            let high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
            [
                _mm512_castsi512_ps(_mm512_permutex2var_epi16(a, low, b)),
                _mm512_castsi512_ps(_mm512_permutex2var_epi16(a, high, b)),
            ]
        }
        fn quad_sums(x: [__m512; 4]) -> __m512 {
            let [a, b, c, d] = x;
            let ab = _mm512_add_ps(
                _mm512_shuffle_ps::<0b01_00_01_00>(a, b),
                _mm512_shuffle_ps::<0b11_10_11_10>(a, b),
            );
            let cd = _mm512_add_ps(
                _mm512_shuffle_ps::<0b01_00_01_00>(c, d),
                _mm512_shuffle_ps::<0b11_10_11_10>(c, d),
            );
            // The sums of a group of all four vectors side by side.
            let sums = _mm512_add_ps(
                _mm512_shuffle_ps::<0b10_00_10_00>(ab, cd),
                _mm512_shuffle_ps::<0b11_01_11_01>(ab, cd),
            );
            let turned = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_permutexvar_ps(turned, sums)
        }
        fn pair_i16(low: __m512, high: __m512) -> __m512 {
            let (low, high) = (_mm512_cvtps_epi32(low), _mm512_cvtps_epi32(high));
            let high = _mm512_slli_epi32::<16>(high);
            _mm512_castsi512_ps(_mm512_mask_blend_epi16(0x5555_5555, high, low))
        }
        fn dot_i16(acc: __m512, a: __m512, b: __m512) -> __m512 {
            let products = _mm512_madd_epi16(_mm512_castps_si512(a), _mm512_castps_si512(b));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(acc), products))
        }
        fn float_i32(x: __m512) -> __m512 { _mm512_cvtepi32_ps(_mm512_castps_si512(x)) }
        // vreduceps with M = 0 is x less its nearest integer, which is always exact.
        fn split_exp2(x: __m512) -> (__m512, __m512) {
            (_mm512_reduce_ps::<0x00>(x), _mm512_roundscale_ps::<0x00>(x))
        }
        fn scale_by_exp2(p: __m512, n: __m512) -> __m512 { _mm512_scalef_ps(p, n) }
    }

    #[inline(always)]
    fn lane_sums<const N: usize>(self, x: [__m512; N]) -> __m512 {
        // SAFETY: `self` is a token, which exists only where the features were detected.
        unsafe { lane_sums::<false, N>(x) }
    }

    #[inline(always)]
    fn lane_sums_i32<const N: usize>(self, x: [__m512; N]) -> __m512 {
        // SAFETY: `self` is a token, which exists only where the features were detected.
        unsafe { lane_sums::<true, N>(x) }
    }

    memory_operations! { "avx512f,avx512bw,avx512dq";
        unsafe fn store_first_f16(p: *mut f16, v: __m512, n: usize) -> () {
            // SAFETY: the caller's contract.
            unsafe { store_words(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v), n) }
        }
        unsafe fn store_first_bf16(p: *mut bf16, v: __m512, n: usize) -> () {
            let words = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(round_bf16(v)));
            // SAFETY: the caller's contract.
            unsafe { store_words(p.cast(), words, n) }
        }
        unsafe fn load_f16(p: *const f16) -> __m512 {
            // SAFETY: the caller's contract.
            _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(p.cast()) })
        }
        unsafe fn load_bf16(p: *const bf16) -> __m512 {
            // SAFETY: the caller's contract.
            let wide = _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(p.cast()) });
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
        unsafe fn load_i8(p: *const i8) -> __m512 {
            // SAFETY: the caller's contract.
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(unsafe { _mm_loadu_si128(p.cast()) }))
        }
        unsafe fn load_words(p: *const i8) -> __m512 {
            // SAFETY: the caller's contract.
            _mm512_castsi512_ps(_mm512_cvtepi8_epi16(unsafe { _mm256_loadu_si256(p.cast()) }))
        }
        unsafe fn load_first_words(p: *const i8, n: usize) -> __m512 {
            debug_assert!(n <= 32);
            let mask = (1_u64 << n) - 1;
            // SAFETY: masked bytes are not read; the others are the caller's contract.
            let bytes = unsafe { _mm512_maskz_loadu_epi8(mask, p) };
            _mm512_castsi512_ps(_mm512_cvtepi8_epi16(_mm512_castsi512_si256(bytes)))
        }
        unsafe fn load(p: *const f32) -> __m512 {
            // SAFETY: the caller's contract.
            unsafe { _mm512_loadu_ps(p) }
        }
        unsafe fn load_quad(p: *const f32) -> __m512 {
            // SAFETY: the caller's contract.
            _mm512_broadcast_f32x4(unsafe { _mm_loadu_ps(p) })
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

/// The sum of two vectors of f32, or of i32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn sum<const INTEGERS: bool>(a: __m512, b: __m512) -> __m512 {
    if INTEGERS {
        _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)))
    } else {
        _mm512_add_ps(a, b)
    }
}

/// Lane `i` is the sum over the lanes of `x[i]`, f32 or i32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn lane_sums<const INTEGERS: bool, const N: usize>(x: [__m512; N]) -> __m512 {
    const { assert!(N == 16) };
    // Of two vectors, one keeps its low half in place and the other its high half; what is added to them comes from one
    // shuffle. Blends may take any port, and shuffles may not.
    let mut eight = [_mm512_setzero_ps(); 8];
    for i in 0..8 {
        let (a, b) = (x[i], x[i + 8]);
        let kept = _mm512_mask_blend_ps(0xff00, a, b);
        eight[i] = sum::<INTEGERS>(kept, _mm512_shuffle_f32x4::<0b01_00_11_10>(a, b));
    }
    let mut four = [_mm512_setzero_ps(); 4];
    for i in 0..4 {
        let (a, b) = (eight[i], eight[i + 4]);
        let (kept, other) = (_mm512_mask_blend_ps(0xf0f0, a, b), _mm512_mask_blend_ps(0xf0f0, b, a));
        four[i] = sum::<INTEGERS>(kept, _mm512_shuffle_f32x4::<0b10_11_00_01>(other, other));
    }
    let mut two = [_mm512_setzero_ps(); 2];
    for i in 0..2 {
        let (a, b) = (four[i], four[i + 2]);
        let kept = _mm512_mask_blend_ps(0xcccc, a, b);
        two[i] = sum::<INTEGERS>(kept, _mm512_shuffle_ps::<0b01_00_11_10>(a, b));
    }
    let (a, b) = (two[0], two[1]);
    let (kept, other) = (_mm512_mask_blend_ps(0xaaaa, a, b), _mm512_mask_blend_ps(0xaaaa, b, a));
    sum::<INTEGERS>(kept, _mm512_permute_ps::<0b10_11_00_01>(other))
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
