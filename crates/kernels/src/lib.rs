//! The attention kernels, each algorithm written once and generic over the instruction set.
//!
//! Most users want the crate `regard`, which checks problems, plans and dispatches. This crate owns the algorithms
//! ([`lanes`]), the weightings ([`weighting`]), the static table of compiled kernels ([`table`]), and the one safe door to
//! them ([`launch`]).

#![allow(
    clippy::needless_range_loop,
    reason = "register tiles are arrays walked by index: iterators would hide the shape"
)]

mod lanes;
pub mod launch;
mod mask;
pub mod table;
pub mod view;
pub mod weighting;

pub use lanes::Segment;
pub use lanes::args::{Count, Schedule, Shift};
pub use mask::Band;
