//! The AVX-512 level with the VNNI extension, which multiplies and adds pairs of 16-bit integers.

use core::arch::x86_64::*;

use crate::Avx512;
use crate::delegate::extended;

extended! {
    /// Proof that the machine has [`Isa::Avx512`](crate::Isa::Avx512) and [`Extension::Vnni`](crate::Extension::Vnni).
    Avx512Vnni of Avx512 where std::arch::is_x86_feature_detected!("avx512vnni"), "avx512f,avx512bw,avx512dq,avx512vnni";
    F32 = __m512, Mask = __mmask16, NATIVE_BF16 = false;
    native {
        fn dot_i16(acc: __m512, a: __m512, b: __m512) -> __m512 {
            let (a, b) = (_mm512_castps_si512(a), _mm512_castps_si512(b));
            _mm512_castsi512_ps(_mm512_dpwssd_epi32(_mm512_castps_si512(acc), a, b))
        }
    }
    level {
        fn pair_bf16(low: Self::F32, high: Self::F32) -> Self::F32;
    }
}
