//! The attention kernels, each algorithm written once and generic over the instruction set.
//!
//! Most users want the crate `regard`, which checks problems, plans and dispatches. This crate owns the algorithms, the
//! weightings ([`weighting`]), the static table of compiled kernels ([`table`]), and the one safe door to them
//! ([`launch`]).
//!
//! # What it costs to build
//! On x86-64 the crate compiles in half a minute on two cores (release, rustc 1.95): ten lanes kernels and fifteen rows kernels
//! on three levels. A weighting adds about 2 KB for each level, where it is used; a register tile adds about 30 KB.
#![allow(
    clippy::needless_range_loop,
    reason = "register tiles are arrays walked by index: iterators would hide the shape"
)]

mod dots;
mod index;
mod lanes;
pub mod launch;
pub mod linear;
mod mask;
mod partial;
mod prefetch;
pub mod prefix;
mod rows;
mod rules;
mod source;
pub mod table;
pub mod tensor;
pub mod view;
pub mod weighting;

pub use index::{INDEX_BLOCK, KeyIndex};
pub use lanes::Segment;
pub use mask::Band;
pub use prefetch::{Prefetch, Reading};
pub use rules::{Count, Ending, Schedule, Shift};
