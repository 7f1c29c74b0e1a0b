//! What the test suites share: data, guarded memory, a way to force any kernel and any tiles, and the comparison with the
//! oracle under a tolerance that is derived, not chosen.
//!
//! A test says what it computes as a [`Spec`] (plain data, from which the library's options are made), puts it together
//! with three [`Tensor`]s to a [`Case`], and calls [`check`] with a setup from [`setup_for`].
#![forbid(unsafe_code)]
#![expect(clippy::missing_panics_doc, reason = "these are tests: a panic is the way to say no")]

mod case;
mod check;
mod engine;
mod guard;
mod machine;
mod naive;
mod random;
mod run;
mod spec;
mod specs;
mod stored;
mod tensor;
mod tolerance;

pub use case::Case;
pub use check::{Report, check, compare};
pub use engine::{Blocks, Engine, engines, engines_for, every_kernel, every_rows_kernel};
pub use guard::{GUARD, Guarded, Layout, Poison, poison};
pub use machine::{levels, profile_for, setup_for, setup_of, setup_with_tiles, this_test};
pub use naive::naive;
pub use random::Random;
pub use run::{Output, Path, is_fixed, is_native, paths, run, run_into, run_plan, run_plan_as, same};
pub use spec::{Spec, selects, weightings};
pub use specs::Lists;
pub use stored::{Stored, round_to};
pub use tensor::Tensor;
pub use tolerance::{Bound, bound, bound_between, bound_of_parts, output_rounding};

/// Sizes shrink where the tests run in an emulator, which is a hundred times slower.
pub const SLOW: bool = cfg!(any(target_arch = "aarch64", miri));
