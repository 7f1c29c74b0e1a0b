//! Yang, Strobl, Chiang and Angluin, "Simulating hard attention using soft attention", arXiv:2412.09925 (TACL 14,
//! 2026).
//!
//! # The objects
//! With `M` the keys of the largest score of a row:
//!
//! ```text
//! leftmost-hard     weight 1 on min M         Weighting::HardLeft
//! rightmost-hard    weight 1 on max M         Weighting::HardRight
//! average-hard      weight 1 / |M| on M       Weighting::AverageHard
//! softmax at tau    e^(s_j / tau) / sum       Weighting::Softmax, Temperature::Constant(tau)
//! tau = 1 / (c ln n)                          Attention::log_n_schedule(c)
//! ```
//!
//! Average-hard is also called saturated attention, leftmost and rightmost unique-hard. Equal means `==` in f32, and
//! scores of equal keys have equal bits wherever they stand. The masks of the constructions are
//! [`causal`](crate::Attention::causal) and [`anti_causal`](crate::Attention::anti_causal), each with
//! [`strict`](crate::Attention::strict) or without; a row that sees nothing gives 0, which is the right value of
//! "previous" at the first position.
//!
//! Only the keys of `M` matter: [`KeyIndex`](crate::KeyIndex) bounds the scores of blocks of keys, and those that cannot hold one
//! are not looked at. The result has the same bits (derived here, as are the bounds; the suite `pruning` tests both), and the same
//! index leaves out what softmax at a low temperature gives less than 2^-25 of the weight.
//!
//! ```
//! use regard::{Attention, Temperature, View, Weighting};
//!
//! let scores = [2.0, 5.0, 5.0, 1.0];
//! let v = [10.0, 20.0, 40.0, 80.0];
//! let attend = |options: Attention<'_>| {
//!     let view = |data| View::bhsd(data, [1, 1, 4, 1]);
//!     let out = regard::attention(&options.scale(1.0), View::bhsd(&[1.0], [1; 4])?, view(&scores)?, view(&v)?)?;
//!     Ok::<_, Box<dyn std::error::Error>>(out[0])
//! };
//! assert_eq!(attend(Attention::new(Weighting::HardLeft))?, 20.0);
//! assert_eq!(attend(Attention::new(Weighting::HardRight))?, 40.0);
//! assert_eq!(attend(Attention::new(Weighting::AverageHard))?, 30.0);
//! // The gap is 3, more than 104 temperatures.
//! assert_eq!(attend(Attention::softmax().temperature(Temperature::Constant(0.02)))?, 30.0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Proved: how far soft is from hard
//! A row has `n` visible keys, `m` of them largest, all others at least `gap` below; `x = (n - m) e^(-gap / tau)`. That
//! a temperature which depends on the gap is enough is the paper's theorem; these constants are derived here.
//!
//! | statement | test |
//! |---|---|
//! | definitions of the three tie rules | `hard::definitions` |
//! | L1 error of softmax against average-hard at most `2x / (m + x)`, with equality iff all gaps are equal; at most `2 n e^(-gap / tau)`; error of a column of the output at most `x / (m + x)` times its range | `hard::error_of_softmax_against_average_hard` |
//! | error eps needs `tau <= gap / ln(2 (n - m) / (m eps))` | `hard::temperature_for_an_error` |
//! | scores that fall with the distance from the largest need a temperature that does not depend on n | `hard::decaying_scores_need_no_log_n` |
//! | the maximum is at most `tau LSE(s / tau)`, which is at most the maximum plus `tau ln n` | `hard::log_sum_exp_lies_between` |
//! | one token among n moves the output of softmax by `O(1 / n)` (Hahn, arXiv:1906.06755), and of hard attention by the whole range | `softmax::one_token_moves_little` |
//!
//! # What f32 makes of it
//! | statement | test |
//! |---|---|
//! | a gap of more than 104 temperatures: softmax has the weights of average-hard, bit for bit; outputs too, but for up to 15 queries with ties, where sums are made in another order | `hard::far_below_is_exactly_nothing` |
//! | a gap of `ln n + 17.33` temperatures: nothing but rounding is left | `hard::below_rounding_is_invisible` |
//! | lookup `2 a j - j^2` is exact up to position 2896 | `hard::reach_of_quadratic_lookup` |
//! | lookup by angle has a gap of `1 / 2 j^4`, too small beyond about 50 | `hard::lookup_by_angle_dies_early` |
//! | terms `1 / (j + 1)` and `j / 2n` make average-hard leftmost or rightmost | `hard::tie_breaking_terms` |
//!
//! # Programs
//! Booleans are 0 and 1. A soft layer with errors up to 1/4 is followed by a feed-forward layer
//! `relu(2x - 1/2) - relu(2x - 3/2)`, which makes them exact, so that errors never add up.
//!
//! | operator | mask | score of j | value | tie rule | softmax at | test |
//! |---|---|---|---|---|---|---|
//! | once | j <= i | `phi_j` | `phi_j` | any | `1 / ln(3n + 1)` | `formulas::once` |
//! | always | j <= i | `1 - phi_j` | `phi_j` | any | `1 / ln(3n + 1)` | `formulas::always` |
//! | previous, and k back | j < i | `-(i - k - j)^2` | `phi_j` | any | 0.4 | `formulas::previous_and_further_back` |
//! | since | j <= i | `c_j = max(1 - phi_j, psi_j)` | `psi_j` | rightmost | `2n c_j + j` at 0.3 | `formulas::since_takes_the_rightmost`, `formulas::since_needs_its_tie_rule` |
//! | until | j >= i | the same | `psi_j` | leftmost | `2n c_j - j` at 0.3 | `formulas::until_takes_the_leftmost` |
//! | count | j <= i | 0 | `phi_j` | average | any | `formulas::counting_is_uniform_attention` |
//!
//! Tests run them on all strings of moderate length, under every tie rule that is allowed and by softmax. Made of them:
//! `(ab)*` (`formulas::ab_star`), majority (`languages::majority`), balanced and matching brackets
//! (`languages::balanced_brackets`, `languages::matching_brackets`), the induction head (`languages::induction_head`),
//! and reversal (`languages::reversal_rotation_and_copy`).
//!
//! **Tie rules matter.** Parity by lookup of half the count is right on all strings with leftmost and rightmost ties,
//! and wrong on every odd one with average ties: `languages::parity_by_lookup`.
//!
//! **Uniform-tieless programs.** The first version of the paper simulates average-hard programs in which each layer, on
//! every input, has all scores equal or one largest alone. Small errors do not hurt such programs
//! (`uniform_tieless::parity_without_ties`, `uniform_tieless::palindromes_bear_small_errors`). In others they break
//! ties of the next layer, unless Booleans are repaired in between:
//! `uniform_tieless::errors_break_ties_unless_repaired`.
//!
//! # Observed
//! Nothing: the paper is theory. That trained transformers come near to hard attention is assumed by it, and not claimed here.
//!
//! # Shown
//! The example `temperature_to_hard` prints errors beside the bound, and temperatures against n. The example
//! `temporal_logic` compiles formulas to hard attention and to softmax with repair, and checks both on all words up to
//! length 12. The example `dyck` matches brackets of several kinds. The example `induction_head` predicts letters.
//!
//! # Deviations, and what could not be verified
//! Definitions are those of the Transformer Cookbook, by the same group; of the paper itself the abstracts were read.
//! The definitions of uniform-tieless and of the gap as a function of n are taken from summaries. Constructions and
//! constants of this page are derived and tested here, and need not be the paper's. No official code is known.
