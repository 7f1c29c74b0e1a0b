//! The AVX-512 level with the VNNI extension, which multiplies and adds pairs of 16-bit integers.

use core::arch::asm;
use core::arch::x86_64::*;

use crate::Avx512;
use crate::delegate::extended;

extended! {
    /// Proof that the machine has [`Isa::Avx512`](crate::Isa::Avx512) and [`Extension::Vnni`](crate::Extension::Vnni).
    Avx512Vnni of Avx512 where std::arch::is_x86_feature_detected!("avx512vnni"), "avx512f,avx512bw,avx512dq,avx512vnni";
    F32 = __m512, Mask = __mmask16, NATIVE_BF16 = false;
    native {
        // Written out: LLVM 22 takes the intrinsic apart into a product and an addition wherever that shortens a chain, which is
        // twice the work, in loops that have chains enough.
        fn dot_i16(acc: __m512, a: __m512, b: __m512) -> __m512 {
            let mut sum = acc;
            // SAFETY: the features are enabled here, and the instruction touches nothing but its registers.
            unsafe {
                asm!("vpdpwssd {sum}, {a}, {b}", sum = inout(zmm_reg) sum, a = in(zmm_reg) a, b = in(zmm_reg) b,
                     options(pure, nomem, nostack, preserves_flags));
            }
            sum
        }
    }
    level {
        fn pair_bf16(low: Self::F32, high: Self::F32) -> Self::F32;
    }
}
