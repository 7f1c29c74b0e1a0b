//! What a caller can get wrong.

use regard_kernels::tensor::Dtype;
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
    /// An element type that has no place here.
    #[error("{tensor} is {found}, but must be {}", either(expected))]
    Dtype {
        /// Which tensor.
        tensor: &'static str,
        /// Its element type.
        found: Dtype,
        /// The element types that would do.
        expected: Vec<Dtype>,
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
    /// A sequence is said to have more keys than k and v hold for it.
    #[error("sequence {batch} is said to have {length} keys, but k and v hold {keys} for it")]
    KeyLength {
        /// The sequence.
        batch: usize,
        /// Its length.
        length: usize,
        /// Keys that k and v have room for, or that were said before.
        keys: usize,
    },
    /// Offsets of packed sequences that do not start at 0, do not ascend, or point past the last row.
    #[error("{list}[{index}] is {found}, but must be from {least} to {most}")]
    Offset {
        /// Which offsets.
        list: &'static str,
        /// Which of them.
        index: usize,
        /// Its value.
        found: usize,
        /// The least that would do: the offset before, or 0.
        least: usize,
        /// The most that would do: the rows of the tensor, or 0 for the first.
        most: usize,
    },
    /// A page that holds keys of a sequence does not exist.
    #[error("page {page} of sequence {sequence} is {index}, but k and v have {pages} pages")]
    Page {
        /// The sequence.
        sequence: usize,
        /// Which of its pages.
        page: usize,
        /// The index of the page in k and v.
        index: u32,
        /// Pages of k and v.
        pages: usize,
    },
    /// A row sees a key whose place in a ring has been given to a later key, or which was never there.
    #[error("row {row} of sequence {sequence} sees key {key}, but the ring holds keys from {oldest} on")]
    Overwritten {
        /// The sequence.
        sequence: usize,
        /// The query row, counted from those of the sequence.
        row: usize,
        /// The first key that it sees.
        key: usize,
        /// The first key that is there.
        oldest: usize,
    },
    /// An index of keys with keys that it cannot be of.
    #[error("an index is of padded keys, but these are {found}")]
    IndexedKeys {
        /// How the keys lie.
        found: &'static str,
    },
    /// A batch entry that does not exist.
    #[error("there is no batch entry {batch}: there are {entries}")]
    Batch {
        /// The batch entry.
        batch: usize,
        /// How many there are.
        entries: usize,
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
    /// Something that the form that was asked for does not take.
    #[error("the {form} form does not take {option}: {reason}")]
    Form {
        /// The form.
        form: &'static str,
        /// What it does not take.
        option: &'static str,
        /// Why not.
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
    /// States that cannot be merged.
    #[error("{what} differs between states: {left} and {right}")]
    State {
        /// What differs.
        what: &'static str,
        /// That of the one before.
        left: String,
        /// That of the one after.
        right: String,
    },
    /// Partial results that cannot be merged, or that were made for another problem.
    #[error("{what} differs between partial results: {left} and {right}")]
    Partial {
        /// What differs.
        what: &'static str,
        /// That of the one before.
        left: String,
        /// That of the one after.
        right: String,
    },
    /// A plan is run with a problem of another kind, or a larger one, than it was made for.
    #[error("the plan was made for {planned}, but the problem is {found}")]
    Plan {
        /// What it was made for.
        planned: String,
        /// What it was given.
        found: String,
    },
}

/// `a, b or c`
fn either(dtypes: &[Dtype]) -> String {
    let names: Vec<_> = dtypes.iter().map(|dtype| dtype.name()).collect();
    match &names[..] {
        [most @ .., last] if !most.is_empty() => format!("{} or {last}", most.join(", ")),
        names => names.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_listed() {
        let text = |expected: &[Dtype]| {
            Error::Dtype { tensor: "q", found: Dtype::Int8, expected: expected.to_vec() }.to_string()
        };
        assert_eq!(text(&[Dtype::F32]), "q is int8, but must be f32");
        assert_eq!(text(&[Dtype::F32, Dtype::F16, Dtype::Bf16]), "q is int8, but must be f32, f16 or bf16");
    }
}
