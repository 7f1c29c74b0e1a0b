//! The papers behind the weightings: what each defines, what it is called here, what is proved, and what only observed.
//!
//! | page | paper | here |
//! |---|---|---|
//! | [`spline`] | Attention is a smoothed cubic spline, arXiv:2408.09624 | [`Weighting::Relu`](crate::Weighting::Relu) |
//! | [`polynomial`] | Rethinking softmax, arXiv:2410.18613 | [`Weighting::Polynomial`](crate::Weighting::Polynomial), [`LinearState`](crate::LinearState) |
//! | [`hard`] | Simulating hard attention using soft attention, arXiv:2412.09925 | [`Weighting::HardLeft`](crate::Weighting::HardLeft), `HardRight`, `AverageHard`; [`Temperature`](crate::Temperature) |
//! | [`sigmoid`] | Sigmoid self-attention, arXiv:2409.04431 | [`Weighting::Sigmoid`](crate::Weighting::Sigmoid) |
//! | [`prefix`] | Attention as an RNN, arXiv:2405.13956 | [`prefixes`](crate::prefixes), [`State`](crate::State), [`Partial`](crate::Partial) |
//! | [`regression`] | In-context learning with transformers, arXiv:2402.11639 | [`Attention::scale`](crate::Attention::scale) as inverse temperature |
//! | [`variants`] | what other papers add | powers, Taylor, ReLU over `n^a`, sinks, temperatures in `n`, ALiBi |
//!
//! # How to read a page
//! Each statement stands beside the test that checks it, as `file::function`: it lies in `tests/tests/papers/file.rs`
//! and runs by `cargo test -p regard-tests --test papers file::function`. Where a paper states a bound, the bound is
//! the tolerance of the test, up to f32 rounding. Examples run by `cargo run --release -p regard --example name`.
//!
//! *Proved* is what is a theorem, of the paper or by a short derivation, which is then said to be ours. *Observed* is
//! what was measured in experiments, by the authors, and is not checked here. Theorems are numbered as in the version
//! that was read.
//!
//! # What could not be verified
//! The full texts were not at hand. Definitions and statements are taken from abstracts, from official code where there
//! is some, from other papers by the same groups, and from reviews and summaries that quote theorems; everything that
//! is tested was derived again. So these pages may miss assumptions that a paper makes, and theorems that no summary
//! mentions. Each page ends with what is uncertain.
//!
//! # Notation
//! `s` is a finished score (scale, soft-cap, bias and temperature included), `n` the number of keys that count, `d` the
//! head dimension. Tokens are rows; papers that have them as columns are transposed.
//!
//! Identities that tie kernels to each other, and belong to no paper, are tested too: row sums
//! (`identities::values_of_one_give_row_sums`), linearity in V (`identities::outputs_are_linear_in_values`),
//! permutations (`identities::keys_may_be_permuted`, `identities::reversal_swaps_left_and_right`), ties
//! (`identities::equal_keys_tie_everywhere`), causality (`identities::the_future_does_not_leak`), and what each family
//! is invariant to (`identities::invariances_tell_the_families_apart`).

pub mod hard;
pub mod polynomial;
pub mod prefix;
pub mod regression;
pub mod sigmoid;
pub mod spline;
pub mod variants;
