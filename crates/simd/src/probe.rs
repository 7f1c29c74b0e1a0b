//! The ceilings of a core: how fast it can multiply and add, and how fast it can read memory.
//!
//! Nothing here takes the time. The functions do an amount of work that is known exactly, in a way that the compiler
//! can neither shorten nor move, and the caller divides by the seconds that it took.
//!
//! The arithmetic loops are assembly, since a loop whose result is known in advance is one that an optimiser may take
//! apart: in Rust with intrinsics, link-time optimisation has been seen to hoist it out of the timed region.

use std::hint::black_box;

use crate::{Level, Op, Simd};

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
    use core::arch::x86_64::{_mm256_set1_ps, _mm512_set1_ps};

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
    use core::arch::aarch64::vdupq_n_f32;
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
}

/// Reads every element of `buffer` once with the loads and prefetches of the level, and gives their sum.
///
/// The bytes of the buffer over the time are the bandwidth at which one core reads whatever level of the memory holds
/// the buffer, in bytes/s. The sum is there so that the loads must happen; the order of summation is no contract.
pub fn read_sweep(level: Level, buffer: &[f32]) -> f32 {
    // Behind `black_box` two sweeps of one buffer are not the same call, which could be made once for both.
    black_box(level.dispatch(Sweep(black_box(buffer))))
}

struct Sweep<'a>(&'a [f32]);

/// Parts of the buffer that are read at the same time. Measured on a Zen 5 core, from DRAM: 1 stream 42, 2 streams
/// 43.3, 4 streams 44.4, 8 streams 43.0 GB/s.
const STREAMS: usize = 4;
/// f32 elements of a cache line.
const LINE: usize = 16;
/// Cache lines that are read of each stream in turn. Every one of them has its own accumulator.
const LINES: usize = 2;
/// How far ahead each stream is prefetched, in elements: 1.5 KiB. Without prefetching the same core reads 36 GB/s;
/// from 0.25 to 3 KiB the distance matters by 2 %.
const AHEAD: usize = 384;

impl Op for Sweep<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        const { assert!(LINE.is_multiple_of(S::LANES)) };
        let Self(buffer) = self;
        let part = buffer.len() / STREAMS / (LINES * LINE) * (LINES * LINE);
        let mut sums = [[s.zero(); LINES]; STREAMS];
        let mut at = 0;
        while at < part {
            for (stream, sums) in sums.iter_mut().enumerate() {
                for (line, sum) in sums.iter_mut().enumerate() {
                    let start = stream * part + at + line * LINE;
                    s.prefetch(buffer.as_ptr().wrapping_add(start + AHEAD));
                    for offset in 0..LINE / S::LANES {
                        // SAFETY: `part` is a multiple of what a pass reads of a stream, hence the line ends before
                        // `(stream + 1) * part`, which is at most the length of the buffer.
                        let x = unsafe { s.load(buffer.as_ptr().add(start + offset * S::LANES)) };
                        *sum = s.add(*sum, x);
                    }
                }
            }
            at += LINES * LINE;
        }
        let mut sum = s.zero();
        for stream in sums {
            for line in stream {
                sum = s.add(sum, line);
            }
        }
        let mut at = STREAMS * part;
        while at < buffer.len() {
            let n = S::LANES.min(buffer.len() - at);
            // SAFETY: `n` elements are left at least.
            sum = s.add(sum, unsafe { s.load_first(buffer.as_ptr().add(at), n) });
            at += n;
        }
        let mut lanes = [0.0; LINE];
        // SAFETY: a vector is not longer than a cache line, as asserted above.
        unsafe { s.store(lanes.as_mut_ptr(), sum) };
        lanes.iter().sum()
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
    fn a_sweep_reads_every_element_once() {
        // Small integers, whose sum is exact in any order.
        let numbers: Vec<f32> = (0..1000).map(|i| (i % 13) as f32).collect();
        for &level in Level::available() {
            for length in (0..300).chain([511, 512, 513, 999, 1000]) {
                let expected: f32 = numbers[..length].iter().sum();
                assert_eq!(read_sweep(level, &numbers[..length]), expected, "{}, {length} elements", level.isa());
            }
        }
    }
}
