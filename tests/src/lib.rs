//! What the test suites share: data, guarded memory, a way to force any kernel and any tiles, and the comparison with the
//! oracle under a tolerance that is derived, not chosen.
//!
//! A test says what it computes as a [`Spec`] (plain data, from which the library's options are made), puts it together
//! with three [`Tensor`]s to a [`Case`], and calls [`check`] with a setup from [`setup_for`].
#![forbid(unsafe_code)]
#![expect(clippy::missing_panics_doc, reason = "these are tests: a panic is the way to say no")]

mod check;
mod guard;
mod machine;
mod random;
mod spec;
mod tensor;
mod tolerance;

pub use check::{Case, Report, check, compare};
pub use guard::{GUARD, Guarded, Layout, Output, poison, run, run_into, run_plan};
pub use machine::{every_kernel, levels, profile_for, setup_for, setup_of, this_test};
pub use random::Random;
pub use spec::{Spec, weightings};
pub use tensor::Tensor;
pub use tolerance::{Bound, bound};

/// Sizes shrink where the tests run in an emulator, which is a hundred times slower.
pub const SLOW: bool = cfg!(any(target_arch = "aarch64", miri));
