//! Fused attention for CPUs, for any way of turning scores into weights.
//!
//! `out = weight(Q K^T) V` without ever storing the score matrix: softmax at any temperature, hard and average-hard,
//! polynomial, ReLU, sigmoid and normalised-polynomial weights, and weightings of your own; on AVX-512, AVX2, NEON and
//! everything else, chosen at run time.
//!
//! # In one line
//! ```
//! use regard::{Align, Attention, View};
//!
//! let (q, k, v) = (vec![0.5; 2 * 3 * 8], vec![0.25; 2 * 5 * 8], vec![1.0; 2 * 5 * 4]);
//! let out = regard::attention(
//!     &Attention::softmax().causal(Align::BottomRight),
//!     View::bhsd(&q, [1, 2, 3, 8])?,
//!     View::bhsd(&k, [1, 2, 5, 8])?,
//!     View::bhsd(&v, [1, 2, 5, 4])?,
//! )?;
//! assert_eq!(out.len(), 2 * 3 * 4);
//! assert!(out.iter().all(|x| (x - 1.0).abs() < 1e-6));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # In a loop
//! A [`Problem`] holds checked tensors and options, a [`Plan`] the choice of kernel and tiles. A plan is made once and
//! run often, with workspace of your own; a serial run allocates nothing.
//!
//! ```
//! use regard::{Attention, Execution, Plan, Problem, Setup, View, ViewMut, Weighting};
//!
//! let (q, k, v) = (vec![0.5; 64], vec![0.25; 64], vec![1.0; 64]);
//! let view = |data| View::bhsd(data, [1, 1, 8, 8]);
//! let options = Attention::new(Weighting::HardRight);
//! let problem = Problem::new(&options, view(&q)?, view(&k)?, view(&v)?)?;
//! let plan = Plan::new(&problem, Setup::global()?);
//! println!("{}", plan.explain());
//!
//! let mut workspace = vec![0.0; plan.workspace_len(1)];
//! let mut out = vec![0.0; 64];
//! for _ in 0..10 {
//!     let out = ViewMut::bhsd(&mut out, [1, 1, 8, 8])?;
//!     plan.run(&problem, out, None, &mut workspace, Execution::Serial)?;
//! }
//! assert_eq!(out, v);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Element types
//! q may be f32, f16 or bf16; k and v f32, f16, bf16, or int8 with a scale for each row and head ([`quantise`]).
//! Everything is added up in f32. The output is f32, or of the type of q.
//!
//! ```
//! use regard::{Attention, View, bf16, quantise};
//!
//! let q = vec![bf16::from_f32(0.5); 3 * 8];
//! let k = quantise(View::bhsd(&[0.25; 5 * 8], [1, 1, 5, 8])?);
//! let v = quantise(View::bhsd(&[1.0; 5 * 4], [1, 1, 5, 4])?);
//! let q = View::bhsd(&q, [1, 1, 3, 8])?;
//! let out = regard::attention(&Attention::softmax(), q, k.tensor(), v.tensor())?;
//! assert!(out.iter().all(|x| (x - 1.0).abs() < 1e-6));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Sequences of different lengths
//! [`Problem::ragged`] takes queries and keys that are packed one after the other, keys on [`Pages`] or in rings.
//! [`KvCache`] holds keys and values that grow, all or those of a sliding window. [`Partial`] results over some of the
//! keys merge with those over the others.
//!
//! # Keys that come one by one
//! A [`State`] of fixed queries is a recurrent network: keys are pushed to it one by one or in blocks, in constant memory, for
//! every weighting. [`prefixes`] is one query at every prefix of the keys, in linear time.
//!
//! # Keys in clusters
//! A [`KeyIndex`] bounds the scores of blocks of keys; with it, hard attention and softmax at low temperatures leave out those
//! that cannot matter.
//!
//! # A weighting of your own
//! A pointwise weighting is a type that implements [`Pointwise`]: a vector function, and the same in f64 for the oracle.
//! It is compiled into the kernel's loop for every instruction-set level; nothing is compiled at run time.
//!
//! ```
//! use regard::{Attention, Pointwise, Simd, View, Weighting};
//!
//! /// `s^2 / (1 + s^2)`
//! #[derive(Clone, Copy, Debug)]
//! struct Bump;
//!
//! impl Pointwise for Bump {
//!     #[inline(always)]
//!     fn weight<S: Simd>(&self, s: S, score: S::F32) -> S::F32 {
//!         let square = s.mul(score, score);
//!         s.div(square, s.add(s.splat(1.0), square))
//!     }
//!
//!     fn weight_f64(&self, score: f64) -> f64 {
//!         score * score / (1.0 + score * score)
//!     }
//! }
//!
//! let x = [1.0, 2.0];
//! let view = View::bhsd(&x, [1, 1, 2, 1])?;
//! let out = regard::attention(&Attention::new(Weighting::custom("bump", Bump)).scale(1.0), view, view, view)?;
//! assert!((out[0] - (0.5 + 2.0 * 0.8)).abs() < 1e-6);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is guaranteed
//! - **Masks.** A masked key is never read into a result: NaN or Inf behind a mask cannot leak. A row that sees no key
//!   gives zeros, and -inf as log-sum-exp. Large negative finite scores are not a mask.
//! - **NaN.** NaN in a visible input reaches the output. So does Inf in a visible value; where its weight underflows to
//!   zero, it gives NaN.
//! - **Ties.** Equal scores are compared with `==` in f32. A score has the same bits wherever its key stands, so that
//!   ties never depend on tiling. Scale and temperature multiply finished products, not Q, and make or lose no tie. (Sequences
//!   of up to 15 queries have a kernel of their own, and those of bf16 and int8 with more of them on tile registers: it adds up
//!   products in another order than that of longer ones.)
//! - **Determinism.** For one machine, profile and problem the result is the same bit for bit: for any number of threads,
//!   in any batch, and from run to run; wherever the keys lie, packed, on pages, in a ring or in a cache. With
//!   [`Numerics::Portable`] also between machines of the same level.
//! - **Errors.** Wrong input gives an [`Error`] that names the thing and its values, before anything is written. Tensors
//!   without elements are legal.
//! - **Threads.** The caller's choice ([`Execution`]); the library starts none.
#![forbid(unsafe_code)]

mod cache;
mod checks;
mod error;
mod exec;
mod layout;
mod linear;
mod options;
pub mod papers;
mod partial;
mod plan;
mod problem;
mod pruning;
mod quantise;
pub mod reference;
mod rounding;
mod setup;
mod shape;
mod streaming;
mod weighting;

pub use cache::{CacheShape, KvCache};
pub use error::Error;
pub use exec::Execution;
pub use layout::{Keys, Pages, Queries};
pub use linear::{LinearShape, LinearState};
pub use options::{Align, Attention, Count, Form, Numerics, RowScale, Temperature};
pub use partial::Partial;
pub use plan::Plan;
pub use problem::Problem;
pub use pruning::KeyIndex;
pub use quantise::{QuantisedRows, quantise};
pub use regard_kernels::Band;
pub use regard_kernels::launch::{Sequence, Split};
pub use regard_kernels::tensor::{Dtype, Quantised, Tensor, TensorMut};
pub use regard_kernels::view::{View, ViewError, ViewMut};
pub use regard_kernels::weighting::{Pointwise, RowState};
pub use regard_simd::{ISA_VARIABLE, Isa, IsaError, Level, Simd, advise_large_pages, bf16, f16, math};
pub use setup::{Setup, kernel_set};
pub use shape::Shape;
pub use streaming::{State, StateShape, prefixes, prefixes_into};
pub use weighting::{Custom, SigmoidBias, Weighting};

/// Attention in one call: checks, plans, allocates, and computes on the rayon pool that the calling thread belongs to,
/// if any. Tensors are those of [`Problem::new`]; the output is f32, `[batch, query_heads, queries, d_v]`, contiguous.
///
/// # Errors
/// [`Error`]: the first thing found wrong, with its values.
pub fn attention<'a>(
    options: &Attention<'a>,
    q: impl Into<Tensor<'a>>,
    k: impl Into<Tensor<'a>>,
    v: impl Into<Tensor<'a>>,
) -> Result<Vec<f32>, Error> {
    Problem::new(options, q, k, v)?.attention()
}
