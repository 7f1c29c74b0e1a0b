//! The ceilings of a core: how fast it can multiply and add, and how fast it can read memory.
//!
//! Nothing here takes the time. The functions do an amount of work that is known exactly, in a way that the compiler
//! can neither shorten nor move, and the caller divides by the seconds that it took.
//!
//! The arithmetic loops are assembly, since a loop whose result is known in advance is one that an optimiser may take
//! apart: in Rust with intrinsics, link-time optimisation has been seen to hoist it out of the timed region.

mod read;

use std::hint::black_box;

pub use self::read::{ReadWay, ReadWayError, read_sweep};
use crate::{Extension, Level};

/// Runs `iterations` passes over independent chains of fused multiply-adds on f32, and gives the number of floating
/// point operations that this took: 2 per lane and multiply-add.
///
/// There are more chains than latency times throughput on any core, and the operands stay in registers, so that the
/// operations over the time are the peak of the level on one core, in FLOP/s. All values are ordinary numbers: no
/// denormal, infinity or NaN slows the loop down.
///
/// The portable level has no fused instruction to rely on; there every multiply-add is a multiplication and then an
/// addition, in plain Rust, in the vectors that the target has without asking.
pub fn fma_chains(level: Level, iterations: u64) -> u64 {
    if iterations == 0 {
        return 0;
    }
    let operations_of_a_pass = match level {
        Level::Portable(_) => portable_chains(iterations),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the token in the level exists only where the features were detected.
        Level::Avx2(_) => unsafe { x86_64::avx2_chains(iterations) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the token in the level exists only where the features were detected.
        Level::Avx512(_) => unsafe { x86_64::avx512_chains(iterations) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the token in the level exists only where the feature was detected.
        Level::Neon(_) => unsafe { aarch64::neon_chains(iterations) },
    };
    iterations * operations_of_a_pass
}

/// Runs `iterations` passes over independent chains of dot products of pairs of bf16, and gives the number of floating
/// point operations that this took: 4 per lane and instruction, two multiplications and two additions.
///
/// `None` where the machine has no such instruction at the level ([`NATIVE_BF16`](crate::Simd::NATIVE_BF16)). Otherwise
/// as [`fma_chains`].
pub fn bf16_chains(level: Level, iterations: u64) -> Option<u64> {
    if !Extension::Bf16.is_available_at(level.isa()) {
        return None;
    }
    if iterations == 0 {
        return Some(0);
    }
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the extension is there, as is the level.
        Level::Avx512(_) => Some(iterations * unsafe { x86_64::bf16_chains(iterations) }),
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the extension is there, as is the level.
        Level::Neon(_) => Some(iterations * unsafe { aarch64::bf16_chains(iterations) }),
        _ => None,
    }
}

/// The chains of the portable level. Gives the floating point operations of one pass.
#[inline(never)]
fn portable_chains(iterations: u64) -> u64 {
    // 12 vectors of 4 lanes and the two operands fit the 16 registers of the smallest target with vectors, x86-64.
    const LANES: usize = 12 * 4;
    let one = black_box(1.0_f32);
    let zero = black_box(0.0_f32);
    let mut chains = [one; LANES];
    for _ in 0..iterations {
        for chain in &mut chains {
            *chain = *chain * one + zero;
        }
    }
    black_box(chains);
    2 * LANES as u64
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use core::arch::asm;
    use core::arch::x86_64::{_mm256_set1_ps, _mm512_set1_epi32, _mm512_set1_ps};

    /// 24 chains of 16 lanes. Gives the floating point operations of one pass. `iterations` is not zero.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq")]
    pub(super) fn avx512_chains(iterations: u64) -> u64 {
        // SAFETY: the function has the features; the block touches no memory and no stack, leaves the direction flag
        // alone, and names every register that it writes.
        unsafe {
            asm!(
                ".irp chain, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23",
                "vmovaps zmm\\chain, {one}",
                ".endr",
                ".p2align 5",
                "2:",
                ".irp chain, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23",
                "vfmadd231ps zmm\\chain, {one}, {zero}",
                ".endr",
                "dec {left}",
                "jnz 2b",
                // The compiler adds this where it uses wide registers itself, but not (1.95) for those of a block like
                // this one. Without it all SSE code that the thread runs later is two to four times as slow (Zen 5).
                "vzeroupper",
                left = inout(reg) iterations => _,
                one = in(zmm_reg) _mm512_set1_ps(1.0),
                zero = in(zmm_reg) _mm512_set1_ps(0.0),
                out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _,
                out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
                out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _, out("zmm16") _, out("zmm17") _,
                out("zmm18") _, out("zmm19") _, out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
                options(nomem, nostack),
            );
        }
        2 * 24 * 16
    }

    /// 24 chains of 16 lanes. Gives the floating point operations of one pass. `iterations` is not zero.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
    pub(super) fn bf16_chains(iterations: u64) -> u64 {
        // SAFETY: as in `avx512_chains`.
        unsafe {
            asm!(
                ".irp chain, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23",
                "vmovdqa64 zmm\\chain, {ones}",
                ".endr",
                ".p2align 5",
                "2:",
                ".irp chain, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23",
                "vdpbf16ps zmm\\chain, {ones}, {zeros}",
                ".endr",
                "dec {left}",
                "jnz 2b",
                "vzeroupper",
                left = inout(reg) iterations => _,
                // Pairs of 1, which are a number near 1 as f32 too.
                ones = in(zmm_reg) _mm512_set1_epi32(0x3f80_3f80),
                zeros = in(zmm_reg) _mm512_set1_epi32(0),
                out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _,
                out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
                out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _, out("zmm16") _, out("zmm17") _,
                out("zmm18") _, out("zmm19") _, out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
                options(nomem, nostack),
            );
        }
        4 * 24 * 16
    }

    /// 12 chains of 8 lanes. Gives the floating point operations of one pass. `iterations` is not zero.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn avx2_chains(iterations: u64) -> u64 {
        // SAFETY: the function has the features; the block touches no memory and no stack, leaves the direction flag
        // alone, and names every register that it writes.
        unsafe {
            asm!(
                ".irp chain, 0,1,2,3,4,5,6,7,8,9,10,11",
                "vmovaps ymm\\chain, {one}",
                ".endr",
                ".p2align 5",
                "2:",
                ".irp chain, 0,1,2,3,4,5,6,7,8,9,10,11",
                "vfmadd231ps ymm\\chain, {one}, {zero}",
                ".endr",
                "dec {left}",
                "jnz 2b",
                left = inout(reg) iterations => _,
                one = in(ymm_reg) _mm256_set1_ps(1.0),
                zero = in(ymm_reg) _mm256_set1_ps(0.0),
                out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _,
                out("ymm6") _, out("ymm7") _, out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
                options(nomem, nostack),
            );
        }
        2 * 12 * 8
    }
}

#[cfg(target_arch = "aarch64")]
mod aarch64 {
    use core::arch::aarch64::{vdupq_n_f32, vdupq_n_u32};
    use core::arch::asm;

    /// 24 chains of 4 lanes. Gives the floating point operations of one pass. `iterations` is not zero.
    #[inline(never)]
    #[target_feature(enable = "neon")]
    pub(super) fn neon_chains(iterations: u64) -> u64 {
        // SAFETY: the function has the feature; the block touches no memory and no stack, and names every register
        // that it writes.
        unsafe {
            asm!(
                ".irp chain, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23",
                "mov v\\chain\\().16b, {one:v}.16b",
                ".endr",
                ".p2align 5",
                "2:",
                ".irp chain, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23",
                "fmla v\\chain\\().4s, {one:v}.4s, {zero:v}.4s",
                ".endr",
                "subs {left}, {left}, #1",
                "b.ne 2b",
                left = inout(reg) iterations => _,
                one = in(vreg) vdupq_n_f32(1.0),
                zero = in(vreg) vdupq_n_f32(0.0),
                out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _,
                out("v6") _, out("v7") _, out("v8") _, out("v9") _, out("v10") _, out("v11") _,
                out("v12") _, out("v13") _, out("v14") _, out("v15") _, out("v16") _, out("v17") _,
                out("v18") _, out("v19") _, out("v20") _, out("v21") _, out("v22") _, out("v23") _,
                options(nomem, nostack),
            );
        }
        2 * 24 * 4
    }

    /// 24 chains of 4 lanes. Gives the floating point operations of one pass. `iterations` is not zero.
    #[inline(never)]
    #[target_feature(enable = "neon,bf16")]
    pub(super) fn bf16_chains(iterations: u64) -> u64 {
        // SAFETY: as in `neon_chains`.
        unsafe {
            asm!(
                ".irp chain, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23",
                "mov v\\chain\\().16b, {ones:v}.16b",
                ".endr",
                ".p2align 5",
                "2:",
                ".irp chain, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23",
                "bfdot v\\chain\\().4s, {ones:v}.8h, {zeros:v}.8h",
                ".endr",
                "subs {left}, {left}, #1",
                "b.ne 2b",
                left = inout(reg) iterations => _,
                // Pairs of 1, which are a number near 1 as f32 too.
                ones = in(vreg) vdupq_n_u32(0x3f80_3f80),
                zeros = in(vreg) vdupq_n_u32(0),
                out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _,
                out("v6") _, out("v7") _, out("v8") _, out("v9") _, out("v10") _, out("v11") _,
                out("v12") _, out("v13") _, out("v14") _, out("v15") _, out("v16") _, out("v17") _,
                out("v18") _, out("v19") _, out("v20") _, out("v21") _, out("v22") _, out("v23") _,
                options(nomem, nostack),
            );
        }
        4 * 24 * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_proportional_to_the_passes() {
        for &level in Level::available() {
            let one = fma_chains(level, 1);
            assert!(one > 0 && one.is_multiple_of(2 * level.isa().lanes() as u64), "{}: {one}", level.isa());
            assert_eq!(fma_chains(level, 1000), 1000 * one, "{}", level.isa());
            assert_eq!(fma_chains(level, 0), 0, "{}", level.isa());
        }
    }

    #[test]
    fn bf16_chains_are_where_the_extension_is() {
        for &level in Level::available() {
            let isa = level.isa();
            let one = bf16_chains(level, 1);
            assert_eq!(one.is_some(), Extension::Bf16.is_available_at(isa), "{isa}");
            assert_eq!(bf16_chains(level, 1000), one.map(|one| 1000 * one), "{isa}");
            assert_eq!(bf16_chains(level, 0), one.map(|_| 0), "{isa}");
            assert!(one.is_none_or(|one| one.is_multiple_of(4 * isa.lanes() as u64)), "{isa}: {one:?}");
        }
    }
}
