//! What the benches share: the standard cases ([`regard_tuner::shapes`]) as something to run, criterion's groups, and
//! comparisons whose sides take turns.
#![forbid(unsafe_code)]
#![expect(clippy::missing_panics_doc, reason = "the cases are fixed: a panic says that one of them is wrong")]

mod case;
pub mod clustered;
pub mod compare;
#[cfg(feature = "criterion")]
mod groups;

use regard::{Level, Setup};

pub use self::case::{Case, Inputs, largest_error};
#[cfg(feature = "criterion")]
pub use self::groups::{Count, bench, bench_counting, criterion};

/// The level that REGARD_ISA allows.
pub fn level() -> Level {
    Setup::global().expect("REGARD_ISA names a level of this machine").level
}
