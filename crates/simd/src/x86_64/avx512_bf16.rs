//! The AVX-512 level with the BF16 extension, which multiplies and adds pairs of bf16.

use core::arch::x86_64::*;
use core::mem::transmute;

use crate::Avx512;
use crate::delegate::extended;

extended! {
    /// Proof that the machine has [`Isa::Avx512`](crate::Isa::Avx512) and [`Extension::Bf16`](crate::Extension::Bf16).
    Avx512Bf16 of Avx512 where std::arch::is_x86_feature_detected!("avx512bf16"), "avx512f,avx512bw,avx512dq,avx512bf16";
    F32 = __m512, Mask = __mmask16, NATIVE_BF16 = true;
    native {
        fn dot_bf16(acc: __m512, a: __m512, b: __m512) -> __m512 {
            // SAFETY: the types are as large, and any bits are pairs of bf16.
            let (a, b) = unsafe { (transmute::<__m512, __m512bh>(a), transmute::<__m512, __m512bh>(b)) };
            _mm512_dpbf16_ps(acc, a, b)
        }
        fn pair_bf16(low: __m512, high: __m512) -> __m512 {
            // SAFETY: the types are as large, and any bits are words.
            let words: __m512i = unsafe { transmute(_mm512_cvtne2ps_pbh(high, low)) };
            // Lane i is the pair of words i and 16 + i.
            let index = _mm512_add_epi32(
                _mm512_set1_epi32(16 << 16),
                _mm512_mullo_epi32(
                    _mm512_set1_epi32(0x1_0001),
                    _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                ),
            );
            _mm512_castsi512_ps(_mm512_permutexvar_epi16(index, words))
        }
    }
    level {
        fn dot_i16(acc: Self::F32, a: Self::F32, b: Self::F32) -> Self::F32;
    }
}
