//! AArch64 levels.

mod neon;
mod neon_bf16;

pub use neon::Neon;
pub use neon_bf16::NeonBf16;
