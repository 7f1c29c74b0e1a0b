//! Feng et al., "Attention as an RNN", arXiv:2405.13956 (Aaren).
//!
//! # The object
//! Softmax attention of one query over keys that come one by one is a recurrence:
//!
//! ```text
//! m_k = max(m, s_k)
//! c_k = c e^(m - m_k) + e^(s_k - m_k)
//! a_k = a e^(m - m_k) + e^(s_k - m_k) v_k
//! out_k = a_k / c_k
//! ```
//!
//! States merge associatively, so that all prefixes can be had by a parallel scan. Aaren has one learnt query for all
//! positions, and so is an RNN with a state of `d_v + 2` numbers.
//!
//! Here: [`prefixes`](crate::prefixes) computes all prefixes of one query in O(n), by a scan over chunks of keys that threads
//! share; [`State`](crate::State) is the recurrence itself, for every weighting and any number of queries: `push`, `push_block`,
//! `merge`, `output`, in constant memory; [`Partial`](crate::Partial) is the state of a whole problem.
//! [`KvCache`](crate::KvCache) keeps keys and values, for queries that differ from position to position.
//!
//! ```
//! use regard::{Attention, View, prefixes};
//!
//! // One query; the output at i is attention over the first i + 1 keys.
//! let (q, k, v) = ([1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 3.0, 5.0, 7.0]);
//! let rows = |data| View::bhsd(data, [1, 1, 4, 1]);
//! let out = prefixes(&Attention::softmax(), View::bhsd(&q, [1, 1, 1, 1])?, rows(&k)?, rows(&v)?)?;
//! assert!(out.iter().zip([1.0, 2.0, 3.0, 4.0]).all(|(a, b)| (a - b).abs() < 1e-6));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Proved
//! | statement | source | test |
//! |---|---|---|
//! | the recurrence is causal attention, at every prefix | the paper | `prefix::recurrence_is_causal_attention` |
//! | a scan in linear time gives every prefix | the paper | `prefix::scan_is_causal_attention` |
//! | keys appended after n give the last rows of the whole, for every weighting; bit for bit if they are more than 16 | derived here | `prefix::append_equals_prefill` |
//! | results over ranges of keys merge, wherever they are cut | the paper, for softmax | `prefix::ranges_merge` |
//! | selections merge: the larger maximum wins, and the tie rule decides | derived here | `prefix::selections_merge` |
//! | scores that rise by 1e4 a step, and prefixes that see nothing, give no NaN | derived here | `prefix::steep_scores_and_blind_prefixes` |
//!
//! # Observed
//! On 38 data sets (reinforcement learning, events, forecasting, classification) Aaren is about as good as a
//! transformer, with constant memory per token (the authors).
//!
//! # Shown
//! The example `streaming`: a sensor whose readings come one by one, in constant memory.
//!
//! # Deviations, and what could not be verified
//! The paper scans in parallel in about log2 n steps, which suits GPUs; on a few cores the sequential order is work-optimal.
//! Here one thread scans in order, and several first sum up chunks of 256 keys and then scan each. No official code is
//! known; formulas are from the paper's overview and from code that follows it.
