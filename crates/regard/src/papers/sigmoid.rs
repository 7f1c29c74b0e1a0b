//! Ramapuram et al., "Theory, analysis, and best practices for sigmoid self-attention", arXiv:2409.04431 (ICLR 2025).
//!
//! # The object
//! ```text
//! O = sigmoid(Q K^T / sqrt(d) + b) V,    one b for all scores, no normaliser
//! ```
//!
//! Here [`Weighting::Sigmoid`](crate::Weighting::Sigmoid), with [`SigmoidBias::NegLogN`](crate::SigmoidBias::NegLogN)
//! for the recommended `b = -ln n`, or a [`Constant`](crate::SigmoidBias::Constant) such as the -7.62, or -ln 2048, of
//! the authors' configurations. `n` is what [`count`](crate::Attention::count) says.
//!
//! ```
//! use regard::{Attention, SigmoidBias, View, Weighting};
//!
//! // Zero scores and b = -ln 3: every weight is 1 / (3 + 1).
//! let (zeros, v) = ([0.0; 3], [1.0, 2.0, 5.0]);
//! let view = |data| View::bhsd(data, [1, 1, 3, 1]);
//! let options = Attention::new(Weighting::Sigmoid { bias: SigmoidBias::NegLogN });
//! let out = regard::attention(&options, view(&zeros)?, view(&zeros)?, view(&v)?)?;
//! assert!(out.iter().all(|x| (x - 2.0).abs() < 1e-6));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Proved
//! The identities are elementary, and derived here.
//!
//! | statement | test |
//! |---|---|
//! | zero scores and `b = -ln n`: weights `1 / (n + 1)`, as softmax plus one has them | `sigmoid::zero_scores_are_softmax_plus_one` |
//! | `sigmoid(x) + sigmoid(-x) = 1`: at b = 0 the outputs of Q and -Q add up to the sum of V | `sigmoid::mirrors_add_up_to_the_sum_of_values` |
//! | far below, `sigmoid(x)` is `e^x` up to a relative `e^x`; f32 keeps relative accuracy where `b = -ln n` puts every weight | `sigmoid::tails_keep_their_relative_accuracy` |
//! | a constant added to scores is a change of b; weights do not depend on other keys | `sigmoid::it_is_not_shift_invariant_and_pointwise` |
//! | the three meanings of n | `sigmoid::meanings_of_n` |
//!
//! The paper also proves that sigmoid attention is a universal approximator, and bounds its Jacobian by a term that
//! grows as the square of the radius of the inputs, where the worst local Lipschitz constant of softmax grows
//! exponentially (as reviews quote it). These are not tested here.
//!
//! # Observed
//! Training needs attention norms to be small at the start: `b` near `-ln n`, or ALiBi; query-key normalisation and
//! layer scaling help. The authors' GPU kernel is 17 % faster in inference than FlashAttention-2 on an H100. Nothing of
//! the kind is promised here: on a CPU, sigmoid has a division for each score that softmax has not. Measure with
//! `regard bench`.
//!
//! # Shown
//! The example `custom_weighting` uses [`math::sigmoid`](crate::math::sigmoid) in a weighting of its own,
//! `s sigmoid(c s)`.
//!
//! # Deviations, and what could not be verified
//! ALiBi adds `-slope |position - j|` in full, as in the authors' kernel: a shortcut that drops what a row shares is
//! wrong for a weighting that is not shift-invariant. One bias serves all heads; it cannot be trained here. The
//! Jacobian bound in full, and its constants, were not read.
