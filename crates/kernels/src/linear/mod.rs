//! Linear-time attention for weights that are polynomials of the score.
//!
//! With `phi` the monomials of a row ([`Features`]), `<q, k>^p` is `<phi(q), phi(k)>`, so that keys and values can be
//! summed up before any query is known:
//!
//! ```text
//! sums  = sum over keys of phi(k) v^T     [monomials][d_v]
//! norms = sum over keys of phi(k)         [monomials]
//! out   = phi(q) sums / (phi(q) norms)
//! ```
//!
//! Under a causal mask, keys go by chunks: the rows that see a part of a chunk take that part in the quadratic form and
//! all chunks before it from the state, to which the chunk is added after them.
//!
//! ```text
//! for each chunk of keys of a KV head
//!     for each query head of its group, rows that end in the chunk
//!         scores, weights, sums of values                   as in the lanes kernel
//!         for each tile of monomials
//!             form the tile of the queries                  first-level cache, queries in lanes
//!             add   O^T += (sums^T phi(Q))                  the product of the lanes kernel
//!     for each tile of monomials, if there are later rows
//!         form the tile of the keys                         first-level cache, keys in lanes
//!         add   sums += phi(K) V                            columns of V in lanes
//! ```
//!
//! Monomials exist a tile at a time, and multiplications that form them are one in as many as V has columns.
//!
//! With a gate `g`, the weight of key `j` for a query at position `i` is multiplied by `g^(i - j)`. A state holds its keys
//! as the last one of them sees them, so that all exponents are distances within a chunk or to its start: nothing
//! overflows, and what underflows has no weight.
//!
//! Where there are fewer heads than threads, threads share a long head: sums of different monomials are added up apart, and rows
//! answered apart, in the order of one thread.
//!
//! A row's bits depend on its own visible keys, the grid of chunks, which starts at key 0, and the level: not on its place
//! in a tile, on the other rows, or on who computes it.

mod attend;
mod crew;
mod features;
mod fold;
mod head;
mod product;
mod recurrent;
mod run;
mod scratch;
mod shared;
mod steps;
mod table;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use regard_simd::Level;

pub use self::features::{Features, MOST_DEGREE, MOST_FEATURES, Series};
pub use self::recurrent::{Recurrent, RecurrentShape, RowTerms, TermRules};
pub use self::run::{run, shared_len, tasks, workspace_len};
use self::scratch::Sizes;
use self::shared::LEAST_WORK;
pub use self::shared::can_share;
pub use self::table::{LinearKernel, linear_kernel};

/// How a linear form is computed.
#[derive(Clone, Debug)]
pub struct Method {
    /// The level; its token proves that the kernel may run.
    pub level: Level,
    /// The kernel, of that level.
    pub kernel: &'static LinearKernel,
    /// The monomials.
    pub features: Arc<Features>,
    /// Keys of a chunk, at least 1: within it the form is quadratic. It decides the order of summation.
    pub chunk: usize,
    /// Multiply-adds of a KV head from which on threads share it, if there are fewer heads than threads. No bit depends on it.
    pub share_from: f64,
}

impl Method {
    /// The linear form of `series` for rows of `d` columns; none if there are too many monomials.
    pub fn new(level: Level, series: Series, d: usize) -> Option<Self> {
        let features = Features::new(series, d)?;
        let chunk = chunk(features.count());
        let features = Arc::new(features);
        Some(Self { level, kernel: linear_kernel(level), features, chunk, share_from: LEAST_WORK })
    }

    fn sizes(&self, d_v: usize) -> Sizes {
        Sizes {
            vector: self.level.isa().lanes(),
            lanes: self.kernel.lanes,
            chunk: self.chunk,
            features: self.features.count(),
            d: self.features.d(),
            d_v,
        }
    }
}

/// Keys of a chunk: the quadratic form costs half a chunk for each row, which must be little against the monomials, and
/// the state is read and written once for each chunk, which must be little against a chunk's products.
const fn chunk(features: usize) -> usize {
    if features < 512 { 64 } else { 128 }
}
