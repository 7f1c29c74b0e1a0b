//! The AVX-512 level with the BF16 extension, which multiplies and adds pairs of bf16.

use core::arch::x86_64::*;
use core::mem::transmute;

use crate::delegate::delegate;
use crate::{Avx512, Isa, Op, Simd, operations};

/// Proof that the machine has [`Isa::Avx512`] and [`Extension::Bf16`](crate::Extension::Bf16).
#[derive(Clone, Copy, Debug)]
pub struct Avx512Bf16(Avx512);

impl Avx512Bf16 {
    /// The token, if the processor has the instructions and the operating system saves their registers.
    pub fn detect() -> Option<Self> {
        let level = Avx512::detect()?;
        std::arch::is_x86_feature_detected!("avx512bf16").then_some(Self(level))
    }
}

// SAFETY: `Avx512Bf16` is made by `detect` only, or by `assume` under the promise that it was.
unsafe impl Simd for Avx512Bf16 {
    const ISA: Isa = Isa::Avx512;
    const LANES: usize = Avx512::LANES;
    const FUSED: bool = Avx512::FUSED;
    const NATIVE_BF16: bool = true;
    type F32 = __m512;
    type Mask = __mmask16;

    #[inline(always)]
    unsafe fn assume() -> Self {
        // SAFETY: a machine that has the extension has the level.
        Self(unsafe { Avx512::assume() })
    }

    #[inline(always)]
    fn vectorize<O: Op>(self, op: O) -> O::Output {
        #[inline(never)]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
        fn inner<O: Op>(op: O, token: Avx512Bf16) -> O::Output {
            op.run(token)
        }
        // SAFETY: `self` is a token, which exists only where the features were detected.
        unsafe { inner(op, self) }
    }

    operations! { "avx512f,avx512bw,avx512dq,avx512bf16";
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

    delegate! {}
    delegate! {
        fn dot_i16(acc: Self::F32, a: Self::F32, b: Self::F32) -> Self::F32;
    }
}
