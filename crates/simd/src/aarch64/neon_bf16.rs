//! The NEON level with the BF16 extension, which multiplies and adds pairs of bf16.
//!
//! Assembly, since the intrinsics are not stable. Nothing in it touches memory.

use core::arch::aarch64::*;
use core::arch::asm;

use crate::Neon;
use crate::delegate::extended;

/// The nearest bf16 of each lane, ties to even.
#[inline]
#[target_feature(enable = "neon,bf16")]
fn narrow(x: float32x4_t) -> uint16x8_t {
    let words: uint16x8_t;
    // SAFETY: the function has the feature; the instruction reads and writes the registers that are named.
    unsafe {
        asm!("bfcvtn {words:v}.4h, {x:v}.4s", x = in(vreg) x, words = lateout(vreg) words, options(pure, nomem, nostack));
    }
    words
}

extended! {
    /// Proof that the machine has [`Isa::Neon`](crate::Isa::Neon) and [`Extension::Bf16`](crate::Extension::Bf16).
    NeonBf16 of Neon where std::arch::is_aarch64_feature_detected!("bf16"), "neon,bf16";
    F32 = float32x4_t, Mask = uint32x4_t, NATIVE_BF16 = true;
    native {
        fn dot_bf16(acc: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
            let mut sum = acc;
            // SAFETY: the function has the feature; the instruction reads and writes the registers that are named.
            unsafe {
                asm!("bfdot {sum:v}.4s, {a:v}.8h, {b:v}.8h", a = in(vreg) a, b = in(vreg) b, sum = inout(vreg) sum,
                    options(pure, nomem, nostack));
            }
            sum
        }
        fn pair_bf16(low: float32x4_t, high: float32x4_t) -> float32x4_t {
            vreinterpretq_f32_u16(vzip1q_u16(narrow(low), narrow(high)))
        }
    }
    level {
        fn dot_i16(acc: Self::F32, a: Self::F32, b: Self::F32) -> Self::F32;
    }
}
