//! x86-64 levels.

mod avx2;
mod avx512;
mod avx512_amx;
mod avx512_bf16;
mod avx512_vnni;

pub use avx2::Avx2;
pub use avx512::Avx512;
pub use avx512_amx::{Avx512Amx, TileRegisters, TileShapes};
pub use avx512_bf16::Avx512Bf16;
pub use avx512_vnni::Avx512Vnni;
