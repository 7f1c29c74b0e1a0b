//! Collins et al., "In-context learning with transformers: softmax attention adapts to function Lipschitzness",
//! arXiv:2402.11639 (NeurIPS 2024).
//!
//! # The object
//! Softmax attention over observations `(x_i, y_i)` of a function is kernel regression (Nadaraya and Watson). On the
//! unit sphere, with inverse temperature beta:
//!
//! ```text
//! softmax(beta <x, x_i>) = softmax(-beta / 2 |x - x_i|^2):    a Gaussian window of width 1 / sqrt(beta)
//! ```
//!
//! Here beta is [`scale`](crate::Attention::scale), or an inverse [`Temperature`](crate::Temperature), per head or row
//! if it is to differ. Points that are not on a sphere take one more key column, `-|x_i|^2 / 2`, against a query column
//! of 1. The limit of large beta is the nearest neighbour: [`Weighting::HardLeft`](crate::Weighting::HardLeft), or
//! [`AverageHard`](crate::Weighting::AverageHard) for the mean of equally near ones.
//!
//! ```
//! use regard::{Attention, View, Weighting};
//!
//! // Points 1, 2 and 4 of a line, augmented, and what was observed there; asked at 1.8.
//! let keys = [1.0, -0.5, 2.0, -2.0, 4.0, -8.0];
//! let (query, values) = ([1.8, 1.0], [10.0, 20.0, 30.0]);
//! let (k, v) = (View::bhsd(&keys, [1, 1, 3, 2])?, View::bhsd(&values, [1, 1, 3, 1])?);
//! let at = |options| regard::attention(&options, View::bhsd(&query, [1, 1, 1, 2]).expect("one query"), k, v);
//! assert_eq!(at(Attention::new(Weighting::HardLeft).scale(1.0))?, [20.0]);
//! assert!((at(Attention::softmax().scale(0.0))?[0] - 20.0).abs() < 1e-5); // The mean.
//! let smooth = at(Attention::softmax().scale(1.0))?[0];
//! assert!(smooth > 15.0 && smooth < 20.0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Proved
//! | statement | source | test |
//! |---|---|---|
//! | products are distances: on the unit sphere, and with the further column anywhere | elementary | `regression::products_are_distances` |
//! | beta to infinity is the nearest neighbour, beta = 0 the mean | elementary | `regression::limits_of_the_window` |
//! | equally near neighbours: the first, the last, or their mean | by definition of tie rules | `regression::equally_near_neighbours` |
//! | the best beta rises with the Lipschitz constant and with n, and falls with noise | the paper's theorem, as summaries state it | `regression::the_window_adapts` |
//!
//! The last one is a theorem about the minimiser of the expected error under assumptions on the functions; the test
//! checks its *direction*, on |sin| of the circle, for three settings of each. Summaries differ: one says that windows
//! narrow for smoother functions, which is the wrong way round.
//!
//! # Observed
//! Attention that is pretrained by gradient descent finds such a beta, and linear attention cannot adapt (the authors).
//!
//! # Shown
//! The example `nearest_neighbour_regression` prints the error for each beta, and for the nearest neighbour, by
//! roughness, noise and number of points, and marks the best.
//!
//! # Deviations, and what could not be verified
//! The rate at which the best beta grows, a power of `n L^2 / sigma^2` between `1 / (d + 2)` and `2 / (d + 2)` as it is
//! quoted, was not verified and is not tested; nor is the result on low-rank tasks. No official code is known.
