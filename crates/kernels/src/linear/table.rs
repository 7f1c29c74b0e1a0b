//! The kernels of the linear form, one for each level.

use regard_simd::{Isa, Level, Simd};

use super::attend::{Attend, Queries};
use super::fold::{Chunk, Fold};

/// A compiled kernel.
#[derive(Debug)]
pub struct LinearKernel {
    /// `{isa}_linear_f32_{vectors}x{columns}`
    pub name: &'static str,
    /// The level that it is compiled for.
    pub isa: Isa,
    /// Query rows of a sub-tile.
    pub lanes: usize,
    attend: unsafe fn(&Queries<'_>),
    fold: unsafe fn(&Chunk<'_>),
}

impl LinearKernel {
    /// Answers queries.
    ///
    /// # Safety
    /// The level was detected, `queries` is as its fields say, and no one else uses its work and its output.
    pub(super) unsafe fn attend(&self, queries: &Queries<'_>) {
        // SAFETY: the caller's contract.
        unsafe { (self.attend)(queries) }
    }

    /// Adds a chunk to a state.
    ///
    /// # Safety
    /// The level was detected, `chunk` is as its fields say, and no one else uses what it writes.
    pub(super) unsafe fn fold(&self, chunk: &Chunk<'_>) {
        // SAFETY: the caller's contract.
        unsafe { (self.fold)(chunk) }
    }
}

/// # Safety
/// As for [`LinearKernel::attend`].
unsafe fn attend<S: Simd, const G: usize, const R: usize, const R1: usize>(queries: &Queries<'_>) {
    // SAFETY: the caller's contract.
    unsafe { S::assume().vectorize(Attend::<G, R, R1>(queries)) }
}

/// # Safety
/// As for [`LinearKernel::fold`].
unsafe fn fold<S: Simd, const G: usize, const R: usize>(chunk: &Chunk<'_>) {
    // SAFETY: the caller's contract.
    unsafe { S::assume().vectorize(Fold::<G, R>(chunk)) }
}

/// Vectors x columns (or keys, or monomials) of a register tile, and columns with a single vector: tiles that the lanes
/// kernels have, whose code is shared.
macro_rules! kernel {
    ($isa:literal, $token:ty, $g:literal x $r:literal, $r1:literal) => {{
        static KERNEL: LinearKernel = LinearKernel {
            name: concat!($isa, "_linear_f32_", $g, "x", $r),
            isa: <$token as Simd>::ISA,
            lanes: $g * <$token as Simd>::LANES,
            attend: attend::<$token, $g, $r, $r1>,
            fold: fold::<$token, $g, $r>,
        };
        &KERNEL
    }};
}

/// The kernel of a level.
pub fn linear_kernel(level: Level) -> &'static LinearKernel {
    match level {
        Level::Portable(_) => kernel!("portable", regard_simd::Portable, 1 x 4, 4),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2(_) => kernel!("avx2", regard_simd::Avx2, 2 x 6, 12),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512(_) => kernel!("avx512", regard_simd::Avx512, 2 x 8, 8),
        #[cfg(target_arch = "aarch64")]
        Level::Neon(_) => kernel!("neon", regard_simd::Neon, 4 x 6, 16),
        _ => unreachable!("a level without kernels"),
    }
}
