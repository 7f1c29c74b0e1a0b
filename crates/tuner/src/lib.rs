//! Measuring and searching: the ceilings of a machine, timing against them, and the choice of kernels and tiles.
//!
//! The clock of a core and the bandwidth of the memory drift by 10 to 30 % on a shared machine, within minutes. So
//! nothing here compares two times that were taken one after the other: what is compared is interleaved, and what is
//! reported is the median of ratios of neighbours. This crate is for tools and benches; the library that computes
//! attention never links it, and never measures anything.

#![forbid(unsafe_code)]

pub mod inputs;
pub mod machine;
pub mod measure;
pub mod noise;
pub mod pin;
pub mod search;
pub mod shapes;
pub mod stats;
