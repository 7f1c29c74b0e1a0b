//! Saratchandran et al., "Rethinking softmax: self-attention with polynomial activations", arXiv:2410.18613; later
//! versions are called "Rethinking attention: polynomial alternatives to softmax in transformers".
//!
//! # The object
//! ```text
//! O = phi(S) V,    phi(s) = s^p / sqrt(N)    entry by entry, without a normaliser
//! ```
//!
//! Here [`Weighting::Polynomial`](crate::Weighting::Polynomial) with
//! [`row_scale(RowScale::InvSqrtN)`](crate::RowScale::InvSqrtN), or with a constant
//! [`coefficient`](crate::Attention::coefficient) such as the `1/14` of `s^3 / 14`, which is `1 / sqrt(196)` for the
//! 196 patches of an image. Degree 1 is the linear baseline, the same as
//! [`Weighting::Identity`](crate::Weighting::Identity).
//!
//! ```
//! use regard::{Attention, RowScale, View, Weighting};
//!
//! let cubic = Attention::new(Weighting::Polynomial { degree: 3 }).row_scale(RowScale::InvSqrtN);
//! let ones = vec![1.0; 196 * 4];
//! let x = View::bhsd(&ones, [1, 1, 196, 4])?;
//! // Scores are 4 / sqrt(4) = 2: 196 * 8 / 14 = 112.
//! let out = regard::attention(&cubic, x, x, x)?;
//! assert!(out.iter().all(|x| (x - 112.0).abs() < 1e-3));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Pair by pair a polynomial costs what softmax costs, less the exponential. Long sequences are computed in time that is linear
//! in their length ([`Form`](crate::Form); degrees 1 and 2, 3 up to 32 columns, 4 up to 16), and
//! [`LinearState`](crate::LinearState) decodes in memory that does not grow.
//!
//! Weights may be negative, and a row may add up to 0: there is no division by row sums. A masked weight is selected to
//! 0, as no score could stand for a mask: `polynomial::masked_weights_are_zero`,
//! `polynomial::odd_degrees_are_not_distributions`.
//!
//! # Proved
//! | statement | source | test |
//! |---|---|---|
//! | Frobenius norm of softmax at most `sqrt(N)` | Theorem 1 of the first version | `polynomial::norms_of_attention_matrices` |
//! | Frobenius norm of its derivative at most `2 sqrt(N)`; not tight, `sqrt(N / 2)` holds too | Theorem 1; the remark is ours | `polynomial::norm_of_the_derivative_of_softmax` |
//! | softmax has norm 1 for uniform rows, `sqrt(N)` for one-hot rows; hard attention exactly `sqrt(N)`; average-hard `sqrt(sum 1 / ties)` | derived here | `polynomial::norms_of_attention_matrices` |
//! | `s^p / sqrt(N)` has expected norm of order `sqrt(N)` for Gaussian input; with scores N(0, 1) the expected square is `(2p - 1)!! N` | the order is the paper's; the constant is derived here | `polynomial::norms_of_polynomial_matrices` |
//! | its derivative: `p^2 (2p - 3)!! N`; scores of Gaussian q and k: `(2p - 1)!! N` times the product of `1 + 2i / d`, i below p | derived here | `polynomial::norms_of_polynomials_and_their_derivatives` |
//! | `<q, k>^p` is linear attention over products of p columns | classical | `polynomial::powers_are_linear_over_features` |
//!
//! Powers are of single scores (`polynomial::powers_are_element_wise`), as in the experiments of the paper; reviews
//! note that its theory has powers of matrices. The cubic of vision transformers:
//! `polynomial::the_cubic_of_vision_transformers`.
//!
//! # Observed
//! On ImageNet-1k `x^3 / 14` is as good as softmax for ViT-B (79.6) and ViT-S (80.5 and 80.2), slightly better for Swin
//! and XCiT, and worse for DeiT; it wins two of five tasks of the Long Range Arena (first version). The best scale
//! shrinks as N grows. That softmax trains well *because* it bounds norms is a hypothesis that these experiments
//! support, and not a theorem.
//!
//! # Shown
//! The example `polynomial_vs_softmax` prints norms for growing N beside the expected ones, and what each weighting
//! costs.
//!
//! # Deviations, and what could not be verified
//! Whether the paper keeps `1 / sqrt(d)` in its scores is not known to us; here it is the default, as everywhere. The
//! exact constants and assumptions of its theorem on polynomials were not read. No official code is known.
