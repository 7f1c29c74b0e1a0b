//! The ceilings of a core: how fast it can multiply and add, and how fast it can read memory.
//!
//! Nothing here takes the time. The functions do an amount of work that is known exactly, in a way that the compiler
//! can neither shorten nor move, and the caller divides by the seconds that it took.
//!
//! The arithmetic loops are assembly, since a loop whose result is known in advance is one that an optimiser may take
//! apart: in Rust with intrinsics, link-time optimisation has been seen to hoist it out of the timed region.

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod exp;
mod read;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::hint::black_box;

pub use self::exp::exp_chains;
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
        Level::Avx512(_) => Some(iterations * unsafe { x86_64::avx512_bf16_chains(iterations) }),
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the extension is there, as is the level.
        Level::Neon(_) => Some(iterations * unsafe { aarch64::bf16_chains(iterations) }),
        _ => None,
    }
}

/// Runs `iterations` passes over independent chains of dot products of four bytes with four bytes, added up in i32, and
/// gives the number of integer operations that this took: 8 per lane of 32 bits and instruction, four multiplications and
/// four additions.
///
/// `None` where the machine has no such instruction for the vectors of the level (AVX-512 VNNI, AVX-VNNI, the dot products
/// of NEON). Otherwise as [`fma_chains`].
pub fn int8_chains(level: Level, iterations: u64) -> Option<u64> {
    // At least one pass, to know what it is.
    let passes = iterations.max(1);
    let operations_of_a_pass = match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2(_) if std::arch::is_x86_feature_detected!("avxvnni") => {
            // SAFETY: the token in the level exists only where its features were detected, and the other one was now.
            unsafe { x86_64::avx2_int8_chains(passes) }
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx512(_) if std::arch::is_x86_feature_detected!("avx512vnni") => {
            // SAFETY: the token in the level exists only where its features were detected, and the other one was now.
            unsafe { x86_64::avx512_int8_chains(passes) }
        }
        #[cfg(target_arch = "aarch64")]
        Level::Neon(_) if std::arch::is_aarch64_feature_detected!("dotprod") => {
            // SAFETY: the token in the level exists only where its feature was detected, and the other one was now.
            unsafe { aarch64::int8_chains(passes) }
        }
        _ => return None,
    };
    Some(iterations * operations_of_a_pass)
}

/// Runs `iterations` passes over independent chains of dot products of pairs of 16-bit integers, added up in i32, and gives the
/// number of integer operations that this took: 4 per lane of 32 bits and instruction, two multiplications and two additions.
///
/// `None` where [`Extension::Vnni`] is not to be had at the level. Otherwise as [`fma_chains`].
#[cfg(target_arch = "x86_64")]
pub fn int16_chains(level: Level, iterations: u64) -> Option<u64> {
    match level {
        Level::Avx512(_) if std::arch::is_x86_feature_detected!("avx512vnni") => {
            // At least one pass, to know what it is.
            // SAFETY: the token in the level exists only where its features were detected, and the other one was now.
            Some(iterations * unsafe { x86_64::avx512_int16_chains(iterations.max(1)) })
        }
        _ => None,
    }
}

/// No other architecture has such an instruction for vectors of a level.
#[cfg(not(target_arch = "x86_64"))]
pub fn int16_chains(_level: Level, _iterations: u64) -> Option<u64> {
    None
}

/// Runs `iterations` passes over independent chains of products of tiles of bf16, and gives the number of floating point operations
/// that this took: 2 for each multiplication and addition.
///
/// `None` where [`Extension::Amx`] is not to be had at the level. Otherwise as [`fma_chains`].
pub fn bf16_tile_chains(level: Level, iterations: u64) -> Option<u64> {
    tile_chains(level, iterations, false)
}

/// The same of bytes, and the number of integer operations.
pub fn int8_tile_chains(level: Level, iterations: u64) -> Option<u64> {
    tile_chains(level, iterations, true)
}

#[cfg(target_arch = "x86_64")]
fn tile_chains(level: Level, iterations: u64, bytes: bool) -> Option<u64> {
    let token = crate::Avx512Amx::detect().filter(|_| matches!(level, Level::Avx512(_)))?;
    Some(iterations * x86_64::tile_chains(token, iterations, bytes))
}

/// No other architecture has tiles.
#[cfg(not(target_arch = "x86_64"))]
fn tile_chains(_level: Level, _iterations: u64, _bytes: bool) -> Option<u64> {
    None
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

    #[test]
    fn int16_chains_are_where_the_extension_is() {
        for &level in Level::available() {
            let isa = level.isa();
            let one = int16_chains(level, 1);
            assert_eq!(one.is_some(), Extension::Vnni.is_available_at(isa), "{isa}");
            assert_eq!(int16_chains(level, 1000), one.map(|one| 1000 * one), "{isa}");
            assert_eq!(int16_chains(level, 0), one.map(|_| 0), "{isa}");
            assert!(one.is_none_or(|one| one.is_multiple_of(4 * isa.lanes() as u64)), "{isa}: {one:?}");
        }
    }

    #[test]
    fn int8_chains_are_where_the_instruction_is() {
        let has = |feature: &str| match feature {
            #[cfg(target_arch = "x86_64")]
            "avx2" => std::arch::is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            "avx512" => std::arch::is_x86_feature_detected!("avx512vnni"),
            #[cfg(target_arch = "aarch64")]
            "neon" => std::arch::is_aarch64_feature_detected!("dotprod"),
            _ => false,
        };
        for &level in Level::available() {
            let isa = level.isa();
            let one = int8_chains(level, 1);
            assert_eq!(one.is_some(), has(isa.name()), "{isa}");
            assert_eq!(int8_chains(level, 1000), one.map(|one| 1000 * one), "{isa}");
            assert_eq!(int8_chains(level, 0), one.map(|_| 0), "{isa}");
            assert!(one.is_none_or(|one| one.is_multiple_of(8 * isa.lanes() as u64)), "{isa}: {one:?}");
        }
    }
}
