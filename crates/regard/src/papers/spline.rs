//! Lai, Lim and Liu, "Attention is a smoothed cubic spline", arXiv:2408.09624.
//!
//! # The object
//! Attention with ReLU in the place of softmax, entry by entry and without a normaliser:
//!
//! ```text
//! O = relu(Q K^T) V,    Q, K and V linear in the tokens X
//! ```
//!
//! Here [`Weighting::Relu`](crate::Weighting::Relu) with [`scale(1.0)`](crate::Attention::scale); any other positive
//! scale only multiplies the output. Masked attention of the paper sets scores to -inf before ReLU, which is a weight
//! of 0: [`causal`](crate::Attention::causal). Its encoder-decoder attention `V(X) ReLU(K(X)^T Q(Y))` is q from `Y`, k
//! and v from `X`. Softmax is the smoothing that the title speaks of: the same construction with a smooth function.
//!
//! ```
//! use regard::{Attention, View, Weighting};
//!
//! // The smallest spline: tokens 1 and t give 1 + t relu(t) and relu(t) + t^3.
//! let t = -1.5;
//! let x = [1.0, t];
//! let x = View::bhsd(&x, [1, 1, 2, 1])?;
//! let out = regard::attention(&Attention::new(Weighting::Relu).scale(1.0), x, x, x)?;
//! assert_eq!(out, [1.0, t * t * t]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Proved
//! A spline is a continuous function that is piecewise polynomial; between knots, where no score changes its sign, each
//! output is a polynomial in the tokens. No smoothness at knots is implied: the smallest spline above has a kink at 0.
//!
//! | statement | source | test |
//! |---|---|---|
//! | attention and masked attention are cubic splines | abstract | `spline::relu_attention_is_cubic_between_knots` |
//! | encoder-decoder attention: degree 2 in X, 1 in Y | abstract (a cubic spline); degrees derived here | `spline::relu_cross_attention_is_quadratic_in_keys_and_linear_in_queries` |
//! | L layers have degree `3^L`; the block after t encoder layers and a cubic decoder state `2 3^t + 3` | abstract (higher-order splines); degrees derived here | `spline::layers_multiply_degrees` |
//! | squared ReLU: degree 5 | derived here | `spline::squared_relu_attention_is_quintic_between_knots` |
//! | `s^p`: one polynomial of degree `2p + 1`, no knots | derived here | `spline::polynomial_attention_has_one_piece` |
//! | `O(cX) = c^3 O(X)` for positive c, `O(-X) = -O(X)`; `c^(2p + 1)` for `s^p` and every c | derived here | `spline::homogeneity` |
//! | `relu(s) - relu(-s) = s`, `relu(s)^2 + relu(-s)^2 = s^2` | derived here | `spline::mirrors` |
//! | products, absolute values, maxima and piecewise linear functions as ReLU attention | bricks of the converse | `spline::bricks_of_splines` |
//!
//! That the tests can fail is tested: `spline::knots_and_softmax_are_noticed` finds that four differences do not vanish
//! across knots, nor for softmax anywhere. Golden values of the smallest spline: `spline::the_toy_spline`.
//!
//! Residuals, division by a constant power of n, and feed-forward layers with ReLU (linear splines) leave degrees as
//! they are; layer normalisation and softmax leave no pieces.
//!
//! # The converse is conditional
//! The paper shows that every spline is a ReLU-activated encoder *if the Pierce-Birkhoff conjecture holds*: that every
//! continuous piecewise polynomial is a finite maximum of finite minima of polynomials. The conjecture is known in
//! dimension 2 (Mahé); counterexamples in dimension 5 and above have since been claimed, by a group that includes two
//! of the authors, with machine-checked proofs which we have not checked. What can be relied on is the conclusion for
//! functions that *are* such maxima of minima.
//!
//! # Observed
//! Nothing: the paper is theory, and so is what is tested here.
//!
//! # Shown
//! The example `spline` samples ReLU attention along a line of tokens, and prints its knots and pieces. The example
//! `custom_weighting` makes a smooth ReLU, and prints how far it is from the spline.
//!
//! # Deviations, and what could not be verified
//! The default scale of this library is `1 / sqrt(d)`, and the paper's is 1. The paper's own degrees of compositions,
//! and its treatment of masks, were not read. No official code is known.
