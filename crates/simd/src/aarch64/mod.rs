//! AArch64 levels.

mod neon;

pub use neon::Neon;
