//! AVX2, FMA and F16C: 8 lanes, 16 registers.

use core::arch::asm;
use core::arch::x86_64::*;

use half::{bf16, f16};

use crate::{Isa, Op, Simd, memory_operations, operations};

/// Proof that the machine has [`Isa::Avx2`].
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

impl Avx2 {
    /// The token, if the processor has the instructions and the operating system saves their registers.
    pub fn detect() -> Option<Self> {
        (std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("fma")
            && std::arch::is_x86_feature_detected!("f16c"))
        .then_some(Self(()))
    }
}

/// The mask of the first `n` lanes, for masked loads and stores.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn first(n: usize) -> __m256i {
    debug_assert!(n <= 8);
    _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
}

/// The bits of `x` with the nearest bf16 in the high half of each lane, ties to even. What is left in the low half means
/// nothing.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn round_bf16(x: __m256) -> __m256i {
    let bits = _mm256_castps_si256(x);
    let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
    let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    // Rounding could carry the payload of a NaN into its sign.
    let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
    let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
    _mm256_blendv_epi8(rounded, quiet, nan)
}

/// Writes the first `n` of 8 words to `p`.
///
/// # Safety
/// `p..p + n` is writable.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn store_words(p: *mut u16, words: __m128i, n: usize) {
    debug_assert!(n <= 8);
    if n == 8 {
        // SAFETY: the caller's contract.
        unsafe { _mm_storeu_si128(p.cast(), words) }
    } else {
        let mut copy = [0_u16; 8];
        // SAFETY: the copy has room, and the first n words at p are the caller's contract.
        unsafe {
            _mm_storeu_si128(copy.as_mut_ptr().cast(), words);
            p.copy_from_nonoverlapping(copy.as_ptr(), n);
        }
    }
}

/// Lane `i` is the sum over the lanes of `x[i]`: of i32, or of f32.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn lane_sums<const I32: bool, const N: usize>(x: [__m256; N]) -> __m256 {
    const { assert!(N == 8) };
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn add<const I32: bool>(a: __m256, b: __m256) -> __m256 {
        if I32 {
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)))
        } else {
            _mm256_add_ps(a, b)
        }
    }
    let mut four = [_mm256_setzero_ps(); 4];
    for i in 0..4 {
        let (a, b) = (x[i], x[i + 4]);
        let kept = _mm256_blend_ps::<0xf0>(a, b);
        four[i] = add::<I32>(kept, _mm256_permute2f128_ps::<0x21>(a, b));
    }
    let mut two = [_mm256_setzero_ps(); 2];
    for i in 0..2 {
        let (a, b) = (four[i], four[i + 2]);
        let kept = _mm256_blend_ps::<0xcc>(a, b);
        two[i] = add::<I32>(kept, _mm256_shuffle_ps::<0b01_00_11_10>(a, b));
    }
    let (a, b) = (two[0], two[1]);
    let (kept, other) = (_mm256_blend_ps::<0xaa>(a, b), _mm256_blend_ps::<0xaa>(b, a));
    add::<I32>(kept, _mm256_permute_ps::<0b10_11_00_01>(other))
}

// SAFETY: `Avx2` is made by `detect` only, or by `assume` under the promise that it was.
unsafe impl Simd for Avx2 {
    const ISA: Isa = Isa::Avx2;
    const LANES: usize = 8;
    const FUSED: bool = true;
    const NATIVE_BF16: bool = false;
    type F32 = __m256;
    /// All bits of a lane are the truth value.
    type Mask = __m256;

    #[inline(always)]
    unsafe fn assume() -> Self {
        Self(())
    }

    #[inline(always)]
    fn vectorize<O: Op>(self, op: O) -> O::Output {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn inner<O: Op>(op: O, token: Avx2) -> O::Output {
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

    operations! { "avx2,fma,f16c";
        fn splat(x: f32) -> __m256 { _mm256_set1_ps(x) }
        fn add(a: __m256, b: __m256) -> __m256 { _mm256_add_ps(a, b) }
        fn sub(a: __m256, b: __m256) -> __m256 { _mm256_sub_ps(a, b) }
        fn mul(a: __m256, b: __m256) -> __m256 { _mm256_mul_ps(a, b) }
        fn div(a: __m256, b: __m256) -> __m256 { _mm256_div_ps(a, b) }
        fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
        fn add_product(sum: __m256, a: __m256, b: __m256) -> __m256 {
            if cfg!(miri) {
                return _mm256_fmadd_ps(a, b, sum);
            }
            let mut total = sum;
            // SAFETY: the features are enabled here, and the instruction touches nothing but its registers.
            unsafe {
                asm!("vfmadd231ps {total}, {a}, {b}", total = inout(ymm_reg) total, a = in(ymm_reg) a, b = in(ymm_reg) b,
                     options(pure, nomem, nostack, preserves_flags));
            }
            total
        }
        // vmaxps gives its second operand when either is NaN.
        fn max(x: __m256, acc: __m256) -> __m256 { _mm256_max_ps(x, acc) }
        fn abs(x: __m256) -> __m256 { _mm256_andnot_ps(_mm256_set1_ps(-0.0), x) }
        fn gt(a: __m256, b: __m256) -> __m256 { _mm256_cmp_ps::<_CMP_GT_OQ>(a, b) }
        fn ge(a: __m256, b: __m256) -> __m256 { _mm256_cmp_ps::<_CMP_GE_OQ>(a, b) }
        fn eq(a: __m256, b: __m256) -> __m256 { _mm256_cmp_ps::<_CMP_EQ_OQ>(a, b) }
        fn not_lt(a: __m256, b: __m256) -> __m256 { _mm256_cmp_ps::<_CMP_NLT_UQ>(a, b) }
        fn is_nan(x: __m256) -> __m256 { _mm256_cmp_ps::<_CMP_UNORD_Q>(x, x) }
        fn and(a: __m256, b: __m256) -> __m256 { _mm256_and_ps(a, b) }
        fn or(a: __m256, b: __m256) -> __m256 { _mm256_or_ps(a, b) }
        fn mask_from_bits(bits: u64) -> __m256 {
            let lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
            let set = _mm256_and_si256(_mm256_set1_epi32(bits as i32), lane);
            _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane))
        }
        fn mask_to_bits(mask: __m256) -> u64 { u64::from(_mm256_movemask_ps(mask) as u8) }
        fn select(mask: __m256, yes: __m256, no: __m256) -> __m256 { _mm256_blendv_ps(no, yes, mask) }
        fn low_bf16(pair: __m256) -> __m256 {
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(pair)))
        }
        fn high_bf16(pair: __m256) -> __m256 {
            _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(pair), _mm256_set1_epi32(0xffff_0000_u32 as i32)))
        }
        fn pair_bf16(low: __m256, high: __m256) -> __m256 {
            let low = _mm256_srli_epi32::<16>(round_bf16(low));
            _mm256_castsi256_ps(_mm256_blend_epi16::<0b1010_1010>(low, round_bf16(high)))
        }
        fn interleave(a: __m256, b: __m256) -> [__m256; 2] {
            let (a, b) = (_mm256_castps_si256(a), _mm256_castps_si256(b));
            // Within the 128-bit halves, then the halves.
            let (low, high) = (_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b));
            [
                _mm256_castsi256_ps(_mm256_permute2x128_si256::<0x20>(low, high)),
                _mm256_castsi256_ps(_mm256_permute2x128_si256::<0x31>(low, high)),
            ]
        }
        fn quad_sums(x: [__m256; 4]) -> __m256 {
            let [a, b, c, d] = x;
            let ab = _mm256_add_ps(
                _mm256_shuffle_ps::<0b01_00_01_00>(a, b),
                _mm256_shuffle_ps::<0b11_10_11_10>(a, b),
            );
            let cd = _mm256_add_ps(
                _mm256_shuffle_ps::<0b01_00_01_00>(c, d),
                _mm256_shuffle_ps::<0b11_10_11_10>(c, d),
            );
            // The sums of a group of all four vectors side by side.
            let sums = _mm256_add_ps(
                _mm256_shuffle_ps::<0b10_00_10_00>(ab, cd),
                _mm256_shuffle_ps::<0b11_01_11_01>(ab, cd),
            );
            _mm256_permutevar8x32_ps(sums, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
        }
        fn pair_i16(low: __m256, high: __m256) -> __m256 {
            let (low, high) = (_mm256_cvtps_epi32(low), _mm256_slli_epi32::<16>(_mm256_cvtps_epi32(high)));
            _mm256_castsi256_ps(_mm256_blend_epi16::<0b1010_1010>(low, high))
        }
        fn dot_i16(acc: __m256, a: __m256, b: __m256) -> __m256 {
            let products = _mm256_madd_epi16(_mm256_castps_si256(a), _mm256_castps_si256(b));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(acc), products))
        }
        fn float_i32(x: __m256) -> __m256 { _mm256_cvtepi32_ps(_mm256_castps_si256(x)) }
        fn split_exp2(x: __m256) -> (__m256, __m256) {
            let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
            (_mm256_sub_ps(x, n), n)
        }
        // NaN converts to i32::MIN, whose one bit is shifted out: p is left as it is.
        fn scale_by_exp2(p: __m256, n: __m256) -> __m256 {
            let exponent = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(n));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent))
        }
    }

    #[inline(always)]
    fn lane_sums<const N: usize>(self, x: [__m256; N]) -> __m256 {
        // SAFETY: `self` is a token, which exists only where the features were detected.
        unsafe { lane_sums::<false, N>(x) }
    }

    #[inline(always)]
    fn lane_sums_i32<const N: usize>(self, x: [__m256; N]) -> __m256 {
        // SAFETY: `self` is a token, which exists only where the features were detected.
        unsafe { lane_sums::<true, N>(x) }
    }

    memory_operations! { "avx2,fma,f16c";
        unsafe fn store_first_f16(p: *mut f16, v: __m256, n: usize) -> () {
            // SAFETY: the caller's contract.
            unsafe { store_words(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v), n) }
        }
        unsafe fn store_first_bf16(p: *mut bf16, v: __m256, n: usize) -> () {
            let words = _mm256_srli_epi32::<16>(round_bf16(v));
            let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            // SAFETY: the caller's contract.
            unsafe { store_words(p.cast(), _mm_packus_epi32(low, high), n) }
        }
        unsafe fn load_f16(p: *const f16) -> __m256 {
            // SAFETY: the caller's contract.
            _mm256_cvtph_ps(unsafe { _mm_loadu_si128(p.cast()) })
        }
        unsafe fn load_bf16(p: *const bf16) -> __m256 {
            // SAFETY: the caller's contract.
            let wide = _mm256_cvtepu16_epi32(unsafe { _mm_loadu_si128(p.cast()) });
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
        unsafe fn load_i8(p: *const i8) -> __m256 {
            // SAFETY: the caller's contract.
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(unsafe { _mm_loadl_epi64(p.cast()) }))
        }
        unsafe fn load_words(p: *const i8) -> __m256 {
            // SAFETY: the caller's contract.
            _mm256_castsi256_ps(_mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(p.cast()) }))
        }
        unsafe fn load_first_words(p: *const i8, n: usize) -> __m256 {
            debug_assert!(n <= 16);
            let mut copy = [0_i8; 16];
            // SAFETY: the first n bytes at p are the caller's contract, and the copy has room for them and for the load.
            let bytes = unsafe {
                p.copy_to_nonoverlapping(copy.as_mut_ptr(), n);
                _mm_loadu_si128(copy.as_ptr().cast())
            };
            _mm256_castsi256_ps(_mm256_cvtepi8_epi16(bytes))
        }
        unsafe fn load(p: *const f32) -> __m256 {
            // SAFETY: the caller's contract.
            unsafe { _mm256_loadu_ps(p) }
        }
        unsafe fn load_quad(p: *const f32) -> __m256 {
            // SAFETY: the caller's contract.
            let quad = unsafe { _mm_loadu_ps(p) };
            _mm256_set_m128(quad, quad)
        }
        unsafe fn store(p: *mut f32, v: __m256) -> () {
            // SAFETY: the caller's contract.
            unsafe { _mm256_storeu_ps(p, v) }
        }
        unsafe fn load_first(p: *const f32, n: usize) -> __m256 {
            // SAFETY: masked lanes are not read; the others are the caller's contract.
            unsafe { _mm256_maskload_ps(p, first(n)) }
        }
        unsafe fn store_first(p: *mut f32, v: __m256, n: usize) -> () {
            // SAFETY: masked lanes are not written; the others are the caller's contract.
            unsafe { _mm256_maskstore_ps(p, first(n), v) }
        }
        unsafe fn transpose(src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) -> () {
            let mut rows = [_mm256_setzero_ps(); 8];
            for (i, row) in rows.iter_mut().enumerate() {
                // SAFETY: row i of the block is readable.
                *row = unsafe { _mm256_loadu_ps(src.add(i * src_stride)) };
            }
            for (i, column) in transpose8(rows).into_iter().enumerate() {
                // SAFETY: row i of the transposed block is writable.
                unsafe { _mm256_storeu_ps(dst.add(i * dst_stride), column) };
            }
        }
    }
}

/// Transposes 8 rows of 8 in registers: 4x4 within the 128-bit halves, then the halves.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn transpose8(rows: [__m256; 8]) -> [__m256; 8] {
    let mut halves = rows;
    for i in [0, 4] {
        let ab_low = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
        let ab_high = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
        let cd_low = _mm256_unpacklo_ps(rows[i + 2], rows[i + 3]);
        let cd_high = _mm256_unpackhi_ps(rows[i + 2], rows[i + 3]);
        halves[i] = _mm256_shuffle_ps::<0b01_00_01_00>(ab_low, cd_low);
        halves[i + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(ab_low, cd_low);
        halves[i + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(ab_high, cd_high);
        halves[i + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(ab_high, cd_high);
    }
    let mut columns = rows;
    for i in 0..4 {
        columns[i] = _mm256_permute2f128_ps::<0x20>(halves[i], halves[4 + i]);
        columns[4 + i] = _mm256_permute2f128_ps::<0x31>(halves[i], halves[4 + i]);
    }
    columns
}
