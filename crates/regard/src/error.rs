//! What a caller can get wrong.

use regard_kernels::view::ViewError;
use regard_simd::IsaError;

/// Everything that a caller can get wrong. Each error names the thing and its values, and is found before anything is
/// written.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor does not fit its slice.
    #[error("{tensor}: {source}")]
    View {
        /// Which tensor.
        tensor: &'static str,
        /// What is wrong with it.
        source: ViewError,
    },
    /// A dimension disagrees with the other tensors.
    #[error("{tensor} has {dimension} {found}, but {expected} is needed ({reason})")]
    Dimension {
        /// Which tensor.
        tensor: &'static str,
        /// Which dimension.
        dimension: &'static str,
        /// Its size.
        found: usize,
        /// The size that would do.
        expected: usize,
        /// Where that size comes from.
        reason: &'static str,
    },
    /// The query heads cannot be shared out evenly among the KV heads.
    #[error("{query_heads} query heads are not a multiple of {kv_heads} kv heads")]
    Heads {
        /// Heads of q.
        query_heads: usize,
        /// Heads of k and v.
        kv_heads: usize,
    },
    /// Elements of a row of q, k, v are not contiguous.
    #[error("{tensor}: the last dimension must be contiguous, but its stride is {stride} instead of 1")]
    RowStride {
        /// Which tensor.
        tensor: &'static str,
        /// The stride of its last dimension, in elements.
        stride: usize,
    },
    /// A list has the wrong number of entries.
    #[error("{list} has {found} entries, but {expected} are needed ({reason})")]
    Length {
        /// Which list.
        list: &'static str,
        /// Its entries.
        found: usize,
        /// The entries that would do.
        expected: usize,
        /// What they are for.
        reason: &'static str,
    },
    /// A sequence is said to have more keys than the tensors hold.
    #[error("key_lengths[{batch}] is {length}, but the tensors hold {keys} keys")]
    KeyLength {
        /// The batch entry.
        batch: usize,
        /// Its length.
        length: usize,
        /// Keys of k and v.
        keys: usize,
    },
    /// More keys than an index can name.
    #[error("{keys} keys are more than the {max} that a key index can name")]
    TooManyKeys {
        /// Keys of k and v.
        keys: usize,
        /// The most there may be.
        max: usize,
    },
    /// A number outside of its range.
    #[error("{name} is {value}, but must be {expected}")]
    Number {
        /// What the number is.
        name: &'static str,
        /// Its value.
        value: f64,
        /// The range.
        expected: &'static str,
    },
    /// An option that has no meaning with this weighting.
    #[error("{option} has no meaning with {weighting} attention: {reason}")]
    NoMeaning {
        /// The option.
        option: &'static str,
        /// The weighting.
        weighting: &'static str,
        /// Why it has none.
        reason: &'static str,
    },
    /// Positions of queries among the keys are needed and not given.
    #[error(
        "{option} needs an alignment, as batch entry {batch} has {queries} queries and {keys} keys: say top-left, \
         bottom-right or an offset"
    )]
    Alignment {
        /// The option that needs it.
        option: &'static str,
        /// The batch entry.
        batch: usize,
        /// Its queries.
        queries: usize,
        /// Its valid keys.
        keys: usize,
    },
    /// Two options give different alignments.
    #[error("{first} and {second} give different alignments")]
    Alignments {
        /// One option.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// `strict` without a mask that it could make strict.
    #[error("strict needs a causal or an anti-causal mask")]
    Strict,
    /// The instruction-set level cannot be had.
    #[error(transparent)]
    Isa(#[from] IsaError),
    /// The workspace is too short.
    #[error("the workspace has {found} f32, but the plan needs {needed} for {threads} threads")]
    Workspace {
        /// f32 that there are.
        found: usize,
        /// f32 that are needed.
        needed: usize,
        /// For how many threads.
        threads: usize,
    },
    /// A plan is run with a problem of another kind than it was made for.
    #[error("the plan was made for {planned}, but the problem is {found}")]
    Plan {
        /// What it was made for.
        planned: String,
        /// What it was given.
        found: String,
    },
}
