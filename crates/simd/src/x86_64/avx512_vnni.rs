//! The AVX-512 level with the VNNI extension, which multiplies and adds pairs of 16-bit integers.

use core::arch::x86_64::*;

use crate::delegate::delegate;
use crate::{Avx512, Isa, Op, Simd, operations};

/// Proof that the machine has [`Isa::Avx512`] and [`Extension::Vnni`](crate::Extension::Vnni).
#[derive(Clone, Copy, Debug)]
pub struct Avx512Vnni(Avx512);

impl Avx512Vnni {
    /// The token, if the processor has the instructions and the operating system saves their registers.
    pub fn detect() -> Option<Self> {
        let level = Avx512::detect()?;
        std::arch::is_x86_feature_detected!("avx512vnni").then_some(Self(level))
    }
}

// SAFETY: `Avx512Vnni` is made by `detect` only, or by `assume` under the promise that it was.
unsafe impl Simd for Avx512Vnni {
    const ISA: Isa = Isa::Avx512;
    const LANES: usize = Avx512::LANES;
    const FUSED: bool = Avx512::FUSED;
    const NATIVE_BF16: bool = Avx512::NATIVE_BF16;
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
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vnni")]
        fn inner<O: Op>(op: O, token: Avx512Vnni) -> O::Output {
            op.run(token)
        }
        // SAFETY: `self` is a token, which exists only where the features were detected.
        unsafe { inner(op, self) }
    }

    operations! { "avx512f,avx512bw,avx512dq,avx512vnni";
        fn dot_i16(acc: __m512, a: __m512, b: __m512) -> __m512 {
            let (a, b) = (_mm512_castps_si512(a), _mm512_castps_si512(b));
            _mm512_castsi512_ps(_mm512_dpwssd_epi32(_mm512_castps_si512(acc), a, b))
        }
    }

    delegate! {}
    delegate! {
        fn pair_bf16(low: Self::F32, high: Self::F32) -> Self::F32;
    }
}
