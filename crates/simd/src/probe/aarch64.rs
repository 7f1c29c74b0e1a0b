//! Chains in assembly for AArch64.

use core::arch::aarch64::{vdupq_n_f32, vdupq_n_u8, vdupq_n_u32};
use core::arch::asm;

/// A function of 24 chains in vector registers. Its operands leave the accumulators as they were set, or small.
macro_rules! chains {
    ($(#[$doc:meta])* $name:ident, $features:literal, $instruction:literal, $operands:literal,
     ($start:expr, $a:expr, $b:expr), $operations_of_a_lane:literal) => {
        $(#[$doc])*
        ///
        /// 24 chains of 4 lanes. Gives the operations of one pass. `iterations` is not zero.
        #[inline(never)]
        #[target_feature(enable = $features)]
        pub(super) fn $name(iterations: u64) -> u64 {
            // SAFETY: the function has the features; the block touches no memory and no stack, and names every register
            // that it writes.
            unsafe {
                asm!(
                    ".irp chain, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23",
                    "mov v\\chain\\().16b, {start:v}.16b",
                    ".endr",
                    ".p2align 5",
                    "2:",
                    ".irp chain, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23",
                    concat!($instruction, " v\\chain\\().4s, {a:v}.", $operands, ", {b:v}.", $operands),
                    ".endr",
                    "subs {left}, {left}, #1",
                    "b.ne 2b",
                    left = inout(reg) iterations => _,
                    start = in(vreg) $start,
                    a = in(vreg) $a,
                    b = in(vreg) $b,
                    out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _,
                    out("v6") _, out("v7") _, out("v8") _, out("v9") _, out("v10") _, out("v11") _,
                    out("v12") _, out("v13") _, out("v14") _, out("v15") _, out("v16") _, out("v17") _,
                    out("v18") _, out("v19") _, out("v20") _, out("v21") _, out("v22") _, out("v23") _,
                    options(nomem, nostack),
                );
            }
            $operations_of_a_lane * 24 * 4
        }
    };
}

chains! {
    /// Multiply-adds of f32.
    neon_chains, "neon", "fmla", "4s", (vdupq_n_f32(1.0), vdupq_n_f32(1.0), vdupq_n_f32(0.0)), 2
}

chains! {
    /// Dot products of pairs of bf16. Pairs of 1 are a number near 1 as f32 too.
    bf16_chains, "neon,bf16", "bfdot", "8h", (vdupq_n_u32(0x3f80_3f80), vdupq_n_u32(0x3f80_3f80), vdupq_n_u32(0)), 4
}

chains! {
    /// Dot products of four bytes.
    int8_chains, "neon,dotprod", "sdot", "16b", (vdupq_n_u32(0), vdupq_n_u8(1), vdupq_n_u8(1)), 8
}
