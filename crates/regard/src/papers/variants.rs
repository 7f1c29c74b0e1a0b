//! What other papers add: ReLU over `n^a`, powers, Taylor polynomials, sinks, and temperatures that depend on the
//! length.
//!
//! # ReLU attention in vision transformers
//! Wortsman et al., arXiv:2309.08586: `relu(s) / n`, and other functions over `n^a`. Here
//! [`Weighting::Relu`](crate::Weighting::Relu) or [`ReluSquared`](crate::Weighting::ReluSquared) with
//! [`RowScale`](crate::RowScale), and [`count`](crate::Attention::count) for what `n` is: all keys, visible ones, or a
//! constant. Sources differ in that; tests cover each (`polynomial::relu_over_powers_of_n`). Observed: `a` near 1
//! trains about as well as softmax, for several functions.
//!
//! # Powers
//! Gelada, Buckman, Zhang and Bach, arXiv:2507.04239: weights `s^p / sum s^p`, p even, a distribution. Here
//! [`Weighting::EvenPower`](crate::Weighting::EvenPower). Proved (derived here): invariance to the scale and sign of
//! queries, `polynomial::even_powers_know_no_scale`. A row of zero scores gives zeros. Gates are constant for each head
//! ([`gates`](crate::Attention::gates)), where the papers have one for each token.
//!
//! # Linear time
//! With `phi` the symmetric products of degree p of a row, `C(d + p - 1, p)` of them, and `g` the gate (1 for none):
//!
//! ```text
//! <q, k>^p = <phi(q), phi(k)>
//! state_i = g state_(i-1) + phi(k_i) (v_i, 1)^T
//! out_i = phi(q_i) state_i,    even powers and Taylor-2: over its last column
//! ```
//!
//! Here [`Form::Linear`](crate::Form::Linear): causal in chunks, quadratic inside each, as in those papers; one state of all keys
//! without a mask; and [`LinearState`](crate::LinearState) for decoding. Degrees 1 and 2 (up to 511 columns), 3 (32) and 4 (16).
//!
//! | statement | source | test, in `tests/tests/linear` |
//! |---|---|---|
//! | `<q, k>^p` is a scalar product of products | classical | `polynomial::powers_are_linear_over_features` of the papers |
//! | both forms are the same function, up to rounding | by definition | `prefill::agrees_with_the_definition`, `prefill::both_forms_agree` |
//! | gates decay by distance, and a gate of 1 is none | the papers, for gates of tokens | `prefill::gates`, `prefill::a_gate_of_one_is_none` |
//! | decoding by the recurrence is prefill, bit for bit, in memory that does not grow | the papers; the bits are ours | `state::decoding_gives_the_bits_of_prefill` |
//! | states of parts merge to that of the whole | derived here | `state::merges` |
//! | threads, batches and how rows are shared out change no bit | ours | `prefill::any_company`, `prefill::one_long_head` |
//!
//! Rounding errors go with `(sum over c of |q_c k_c|)^p`, and not with the score: the tests allow that, and no more.
//!
//! # Taylor polynomials
//! Arora et al., arXiv:2402.18668 (Based): weights `t(s) / sum t(s)` with `t(s) = 1 + s + s^2 / 2`. Here
//! [`Weighting::Taylor2`](crate::Weighting::Taylor2). Proved: weights are positive, as `t` is at least 1/2
//! (`polynomial::taylor_weights_are_positive`), and near those of softmax for small scores
//! (`polynomial::taylor_is_near_softmax`). The linear-time form has `1 + d + d (d + 1) / 2` monomials, where the published code
//! has `1 + d + d^2`: [`Form::Linear`](crate::Form::Linear), [`LinearState`](crate::LinearState).
//!
//! # Sinks
//! "Softmax plus one" and learnt sinks: a logit that joins the denominator and nothing else. Here
//! [`sinks`](crate::Attention::sinks), one for each head, neither scaled nor divided by the temperature, as in the
//! published code of gpt-oss. Tests: `softmax::sinks`, and `sigmoid::zero_scores_are_softmax_plus_one`.
//!
//! # Temperatures that depend on the length
//! Nakanishi, arXiv:2501.19399 (scalable softmax), and Chiang and Cholak, arXiv:2202.12172: scores times `c ln n`, that
//! is softmax at the temperature `1 / (c ln n)` which also simulates hard attention ([`hard`](super::hard)). Here
//! [`log_n_schedule`](crate::Attention::log_n_schedule). A winner by `g` keeps the weight `1 / (1 + (n - 1) n^(-c g))`,
//! which goes to 1 iff `c g` exceeds 1: `softmax::phases_of_scalable_softmax`,
//! `softmax::scalable_softmax_keeps_its_winner`. It is not the same as subtracting `c ln n` from logits, which does
//! nothing: `softmax::scalable_softmax_is_a_temperature`.
//!
//! Why it is needed: at a fixed temperature weights lie between `e^(-R) / n` and `e^R / n`, R the range of scores over
//! the temperature (arXiv:2508.17821): `softmax::dispersion`.
//!
//! ```
//! use regard::{Attention, View};
//!
//! // One score of 5 among 9999 of 0: softmax loses it, with the schedule it does not.
//! let scores: Vec<f32> = (0..10_000).map(|j| if j == 0 { 5.0 } else { 0.0 }).collect();
//! let value: Vec<f32> = (0..10_000).map(|j| if j == 0 { 1.0 } else { 0.0 }).collect();
//! let (k, v) = (View::bhsd(&scores, [1, 1, 10_000, 1])?, View::bhsd(&value, [1, 1, 10_000, 1])?);
//! let weight = |options| regard::attention(&options, View::bhsd(&[1.0], [1; 4]).expect("one query"), k, v);
//! assert!(weight(Attention::softmax())?[0] < 0.02);
//! assert!(weight(Attention::softmax().log_n_schedule(0.43))?[0] > 0.99);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # ALiBi
//! Press et al., arXiv:2108.12409: `-slope |i - j|` added to scores, here
//! [`alibi_slopes`](crate::Attention::alibi_slopes). Under softmax and a causal mask it is gating by `e^-slope`:
//! `softmax::alibi_is_gating`.
//!
//! # Shown
//! The example `temperature_to_hard` prints temperatures against n; `polynomial_vs_softmax` what powers cost; the documentation of
//! [`LinearState`](crate::LinearState) decodes token by token. `cargo bench --bench crossover` prints from which length on the
//! linear form is faster.
//!
//! # Not there
//! Sparsemax and entmax, stick-breaking and differential attention, adaptive temperatures, gates that depend on the token, and
//! everything that needs a backward pass.
//!
//! # What could not be verified
//! Of these papers summaries, code and abstracts were read. The numbers of experiments are their authors'.
