//! Chains in assembly for x86-64.

use core::arch::asm;

use crate::{Avx512Amx, TileShapes};
use core::arch::x86_64::{
    __m256i, __m512i, _mm256_set1_epi8, _mm256_set1_epi32, _mm256_set1_ps, _mm512_set1_epi8, _mm512_set1_epi16,
    _mm512_set1_epi32, _mm512_set1_ps,
};

/// A function of 24 chains in 512-bit registers. Its operands leave the accumulators as they were set.
macro_rules! zmm_chains {
    ($(#[$doc:meta])* $name:ident, $features:literal, $set:literal, $instruction:literal,
     ($start:expr, $a:expr, $b:expr), $operations_of_a_lane:literal) => {
        $(#[$doc])*
        ///
        /// 24 chains of 16 lanes. Gives the operations of one pass. `iterations` is not zero.
        #[inline(never)]
        #[target_feature(enable = $features)]
        pub(super) fn $name(iterations: u64) -> u64 {
            // SAFETY: the function has the features; the block touches no memory and no stack, leaves the direction flag
            // alone, and names every register that it writes.
            unsafe {
                asm!(
                    ".irp chain, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23",
                    concat!($set, " zmm\\chain, {start}"),
                    ".endr",
                    ".p2align 5",
                    "2:",
                    ".irp chain, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23",
                    concat!($instruction, " zmm\\chain, {a}, {b}"),
                    ".endr",
                    "dec {left}",
                    "jnz 2b",
                    // The compiler adds this where it uses wide registers itself, but not (1.95) for those of a block
                    // like this one. Without it all SSE code that the thread runs later is two to four times as slow
                    // (Zen 5).
                    "vzeroupper",
                    left = inout(reg) iterations => _,
                    start = in(zmm_reg) $start,
                    a = in(zmm_reg) $a,
                    b = in(zmm_reg) $b,
                    out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _,
                    out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
                    out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _, out("zmm16") _, out("zmm17") _,
                    out("zmm18") _, out("zmm19") _, out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
                    options(nomem, nostack),
                );
            }
            $operations_of_a_lane * 24 * 16
        }
    };
}

zmm_chains! {
    /// Multiply-adds of f32.
    avx512_chains, "avx512f,avx512bw,avx512dq", "vmovaps", "vfmadd231ps",
    (_mm512_set1_ps(1.0), _mm512_set1_ps(1.0), _mm512_set1_ps(0.0)), 2
}

zmm_chains! {
    /// Dot products of pairs of bf16. Pairs of 1 are a number near 1 as f32 too.
    avx512_bf16_chains, "avx512f,avx512bw,avx512dq,avx512bf16", "vmovdqa64", "vdpbf16ps",
    (pairs_of_1(), pairs_of_1(), _mm512_set1_epi32(0)), 4
}

zmm_chains! {
    /// Dot products of four bytes: unsigned ones of 1 with signed ones of 1, which count the passes.
    avx512_int8_chains, "avx512f,avx512bw,avx512dq,avx512vnni", "vmovdqa64", "vpdpbusd",
    (_mm512_set1_epi32(0), _mm512_set1_epi8(1), _mm512_set1_epi8(1)), 8
}

zmm_chains! {
    /// Dot products of pairs of 16-bit integers of 1, which count the passes.
    avx512_int16_chains, "avx512f,avx512bw,avx512dq,avx512vnni", "vmovdqa64", "vpdpwssd",
    (_mm512_set1_epi32(0), _mm512_set1_epi16(1), _mm512_set1_epi16(1)), 4
}

#[inline]
#[target_feature(enable = "avx512f")]
fn pairs_of_1() -> __m512i {
    _mm512_set1_epi32(0x3f80_3f80)
}

/// A function of 12 chains in 256-bit registers, as [`zmm_chains`] of 24.
macro_rules! ymm_chains {
    ($(#[$doc:meta])* $name:ident, $features:literal, $set:literal, $instruction:literal,
     ($start:expr, $a:expr, $b:expr), $operations_of_a_lane:literal) => {
        $(#[$doc])*
        ///
        /// 12 chains of 8 lanes. Gives the operations of one pass. `iterations` is not zero.
        #[inline(never)]
        #[target_feature(enable = $features)]
        pub(super) fn $name(iterations: u64) -> u64 {
            // SAFETY: the function has the features; the block touches no memory and no stack, leaves the direction flag
            // alone, and names every register that it writes.
            unsafe {
                asm!(
                    ".irp chain, 0,1,2,3,4,5,6,7,8,9,10,11",
                    concat!($set, " ymm\\chain, {start}"),
                    ".endr",
                    ".p2align 5",
                    "2:",
                    ".irp chain, 0,1,2,3,4,5,6,7,8,9,10,11",
                    concat!($instruction, " ymm\\chain, {a}, {b}"),
                    ".endr",
                    "dec {left}",
                    "jnz 2b",
                    left = inout(reg) iterations => _,
                    start = in(ymm_reg) $start,
                    a = in(ymm_reg) $a,
                    b = in(ymm_reg) $b,
                    out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _,
                    out("ymm6") _, out("ymm7") _, out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
                    options(nomem, nostack),
                );
            }
            $operations_of_a_lane * 12 * 8
        }
    };
}

ymm_chains! {
    /// Multiply-adds of f32.
    avx2_chains, "avx2,fma,f16c", "vmovaps", "vfmadd231ps",
    (_mm256_set1_ps(1.0), _mm256_set1_ps(1.0), _mm256_set1_ps(0.0)), 2
}

ymm_chains! {
    /// Dot products of four bytes: unsigned ones of 1 with signed ones of 1, which count the passes.
    avx2_int8_chains, "avx2,fma,f16c,avxvnni", "vmovdqa", "{{vex}} vpdpbusd",
    (_mm256_set1_epi32(0), ones_256(), ones_256()), 8
}

#[inline]
#[target_feature(enable = "avx2")]
fn ones_256() -> __m256i {
    _mm256_set1_epi8(1)
}

/// Products of tiles on four sums. Gives the operations of one pass.
pub(super) fn tile_chains(token: Avx512Amx, iterations: u64, bytes: bool) -> u64 {
    const SIDE: u64 = 16;
    let _held = token.tiles(&TileShapes([(16, 64); TileShapes::REGISTERS]));
    // SAFETY: this thread has the registers, with shapes that fit.
    unsafe {
        for _ in 0..iterations {
            if bytes {
                token.tile_dot_i8::<0, 4, 6>();
                token.tile_dot_i8::<1, 4, 7>();
                token.tile_dot_i8::<2, 5, 6>();
                token.tile_dot_i8::<3, 5, 7>();
            } else {
                token.tile_dot_bf16::<0, 4, 6>();
                token.tile_dot_bf16::<1, 4, 7>();
                token.tile_dot_bf16::<2, 5, 6>();
                token.tile_dot_bf16::<3, 5, 7>();
            }
        }
    }
    4 * 2 * SIDE * SIDE * SIDE * if bytes { 4 } else { 2 }
}
