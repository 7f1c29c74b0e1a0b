//! ISA tokens and vector operations.
//!
//! The only crate of the workspace that names `core::arch`. It owns three things: which levels the machine has
//! ([`Level`], [`Isa`]), the operations that the kernels are written against ([`Simd`]), and the transcendental
//! functions on top of them ([`math`]).
//!
//! # How vector code is written here
//! A level is a token type ([`Portable`], `Avx2`, `Avx512`, `Neon`) that only detection can make; having one proves that the
//! machine has the instructions. Work is a struct that implements [`Op`]; [`Level::dispatch`] and [`Simd::vectorize`]
//! run it inside a function that is compiled for the level. An [`Extension`] of a level has a token of its own
//! (`Avx512Bf16`, `Avx512Vnni`, `Avx512Amx`, `NeonBf16`), which does all that the level does, and some of it with the extension.
//!
//! ```
//! use regard_simd::{Level, Op, Simd};
//!
//! struct Double<'a>(&'a mut [f32]);
//!
//! impl Op for Double<'_> {
//!     type Output = ();
//!     #[inline(always)]
//!     fn run<S: Simd>(self, s: S) {
//!         for chunk in self.0.chunks_mut(S::LANES) {
//!             // SAFETY: the chunk has as many elements as are loaded and stored.
//!             unsafe {
//!                 let x = s.load_first(chunk.as_ptr(), chunk.len());
//!                 s.store_first(chunk.as_mut_ptr(), s.add(x, x), chunk.len());
//!             }
//!         }
//!     }
//! }
//!
//! let mut x = [1.0, 2.0, 3.0];
//! Level::best().dispatch(Double(&mut x));
//! assert_eq!(x, [2.0, 4.0, 6.0]);
//! ```
//!
//! Rules, each learnt from assembly (rustc 1.95):
//! - Everything between `vectorize` and an operation is `#[inline(always)]`; `#[inline]` is not enough.
//! - No closures and no iterator chains in vector code: `for` loops over constant bounds and arrays.
//! - `vectorize` is the boundary for sharing code: it is never inlined, so put it around blocks of work that take at
//!   least a microsecond.
//! - The AVX-512 level never enables VL (see [`Isa::Avx512`]), and nothing is built with `-C target-cpu=native`.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod delegate;
mod element;
mod hide;
mod isa;
pub mod math;
mod pages;
mod portable;
pub mod probe;
mod vector;
mod words;

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub use aarch64::{Neon, NeonBf16};
pub use element::Element;
pub use half::{bf16, f16};
pub use hide::hide;
pub use isa::{Extension, ISA_VARIABLE, Isa, IsaError, Level};
pub use pages::advise_large_pages;
pub use portable::Portable;
pub use vector::{Op, Simd};
#[cfg(target_arch = "x86_64")]
pub use x86_64::{Avx2, Avx512, Avx512Amx, Avx512Bf16, Avx512Vnni, TileRegisters, TileShapes};

/// Writes operations as `#[inline(always)]` methods around a function that enables the level's features.
///
/// `#[inline(always)]` and `#[target_feature]` cannot stand on one function in stable Rust, and a trait method cannot
/// have the latter; the inner function is what may name safe intrinsics.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! operations {
    ($features:literal; $(fn $name:ident($($arg:ident: $type:ty),*) -> $ret:ty $body:block)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: $type),*) -> $ret {
            #[inline]
            #[target_feature(enable = $features)]
            fn inner($($arg: $type),*) -> $ret $body
            // SAFETY: `self` is a token, which exists only where the features were detected.
            unsafe { inner($($arg),*) }
        }
    )*};
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) use operations;

/// The same for operations on memory, whose contract the caller upholds.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! memory_operations {
    ($features:literal; $(unsafe fn $name:ident($($arg:ident: $type:ty),*) -> $ret:ty $body:block)*) => {$(
        #[inline(always)]
        unsafe fn $name(self, $($arg: $type),*) -> $ret {
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn inner($($arg: $type),*) -> $ret $body
            // SAFETY: `self` is a token, which exists only where the features were detected; the caller upholds the
            // contract of the method.
            unsafe { inner($($arg),*) }
        }
    )*};
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) use memory_operations;
