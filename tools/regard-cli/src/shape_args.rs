//! The options that say how large a problem is, for commands that have no tensors to tell.

use clap::Args;
use regard::{Attention, Dtype, Problem, Quantised, Tensor, View};
use regard_tuner::inputs::Elements;

use crate::error::CliError;
use crate::sequences::{Arrangement, KeyRows, PageTable, SequenceArgs, offsets};

/// The sizes of a problem.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Sizes")]
pub(crate) struct ShapeArgs {
    /// Batch entries
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) batch: usize,
    /// Heads of q
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub(crate) heads: usize,
    /// Heads of k and v, which share out the heads of q [default: as many as --heads]
    #[arg(long, value_name = "N")]
    pub(crate) kv_heads: Option<usize>,
    /// Rows of q of each sequence [default: 2048, with --varlen as many as keys]
    #[arg(long, value_name = "N")]
    pub(crate) queries: Option<usize>,
    /// Rows of k and v [default: as many as --queries]
    #[arg(long, value_name = "N")]
    pub(crate) keys: Option<usize>,
    /// Columns of q and k
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub(crate) head_dim: usize,
    /// Columns of v and out [default: as many as --head-dim]
    #[arg(long, value_name = "N")]
    pub(crate) value_dim: Option<usize>,
}

/// The shapes of q, k and v, `[batch, heads, rows, columns]`, and where sequences lie in them.
#[derive(Clone, Debug)]
pub(crate) struct Sizes {
    pub(crate) q: [usize; 4],
    pub(crate) k: [usize; 4],
    pub(crate) v: [usize; 4],
    pub(crate) arrangement: Arrangement,
}

/// Sizes far beyond what makes sense, but small enough that nothing overflows and that lists with one entry for each batch
/// entry, or loops over rows, need no second thought.
const MOST: [(&str, usize); 7] = [
    ("--batch", 1 << 20),
    ("--heads", 1 << 20),
    ("--kv-heads", 1 << 20),
    ("--queries", 1 << 28),
    ("--keys", 1 << 28),
    ("--head-dim", 1 << 16),
    ("--value-dim", 1 << 16),
];

impl ShapeArgs {
    /// The sizes, with defaults filled in.
    ///
    /// # Errors
    /// [`CliError::Input`] for absurd ones. Whether they fit each other is for [`Sizes::problem`] to say.
    pub(crate) fn sizes(&self, sequences: &SequenceArgs) -> Result<Sizes, CliError> {
        let lengths = sequences.varlen.as_ref().map(|lengths| lengths.get());
        let queries = self.queries.unwrap_or(2048);
        let keys = self.keys.unwrap_or(queries);
        let [longest_keys, longest_queries] = match &lengths {
            None => [keys, queries],
            Some(lengths) => {
                let longest = lengths.iter().copied().max().unwrap_or(0);
                [longest, self.queries.unwrap_or(longest)]
            }
        };
        let kv_heads = self.kv_heads.unwrap_or(self.heads);
        let value_dim = self.value_dim.unwrap_or(self.head_dim);
        let found = [self.batch, self.heads, kv_heads, longest_queries, longest_keys, self.head_dim, value_dim];
        for ((option, most), size) in MOST.into_iter().zip(found) {
            let of_lengths = option == "--keys" || (option == "--queries" && self.queries.is_none());
            let option = if of_lengths && lengths.is_some() { "--varlen" } else { option };
            if size > most {
                return Err(CliError::Input(format!("{option} is {size}, but must be at most {most}")));
            }
        }
        let batch = lengths.as_ref().map_or(self.batch, Vec::len);
        // What is left is too many rows of a tensor without columns, whose size of 0 would hide it.
        let rows = batch
            .checked_mul(self.heads.max(kv_heads))
            .and_then(|heads| heads.checked_mul(longest_queries.max(longest_keys)));
        if rows.is_none_or(|rows| rows > isize::MAX as usize / 8) {
            return Err(CliError::Input("--batch, --heads and --queries or --keys are too large together".to_owned()));
        }
        let query_offsets = lengths.as_ref().map(|lengths| match self.queries {
            None => offsets(lengths),
            Some(queries) => offsets(&vec![queries; lengths.len()]),
        });
        let q_rows = query_offsets.as_ref().map(|offsets| offsets[batch]);
        let ([k_batch, k_rows], key_rows) = match (sequences.paged, lengths) {
            (Some(rows), lengths) => {
                let (table, pages) = PageTable::shuffled(lengths.unwrap_or_else(|| vec![keys; batch]), rows)?;
                ([pages, rows], KeyRows::Paged(table))
            }
            (None, Some(lengths)) => {
                let offsets = offsets(&lengths);
                ([1, offsets[batch]], KeyRows::Packed(offsets))
            }
            (None, None) => ([batch, keys], KeyRows::Padded),
        };
        Ok(Sizes {
            q: [if q_rows.is_some() { 1 } else { batch }, self.heads, q_rows.unwrap_or(queries), self.head_dim],
            k: [k_batch, kv_heads, k_rows, self.head_dim],
            v: [k_batch, kv_heads, k_rows, value_dim],
            arrangement: Arrangement { queries: query_offsets, keys: key_rows },
        })
    }
}

impl Sizes {
    /// A problem of these tensors.
    ///
    /// # Errors
    /// [`CliError::Problem`] if they do not fit each other or the options.
    pub(crate) fn problem<'a>(
        &'a self,
        options: &Attention<'a>,
        [q, k, v]: [Tensor<'a>; 3],
    ) -> Result<Problem<'a>, CliError> {
        Ok(Problem::ragged(options, q, self.arrangement.queries(), k, v, self.arrangement.keys())?)
    }
}

/// The element type of q where k and v are of this one.
pub(crate) fn q_dtype(dtype: Dtype) -> Dtype {
    if dtype == Dtype::Int8 { Dtype::F32 } else { dtype }
}

/// Tensors of any size that take the memory of one row: all rows are the same.
#[derive(Debug)]
pub(crate) struct Stand<'s> {
    sizes: &'s Sizes,
    q: Elements,
    kv: Elements,
}

impl<'s> Stand<'s> {
    /// Stand-ins for tensors of these sizes; `dtype` is that of k and v.
    pub(crate) fn new(sizes: &'s Sizes, dtype: Dtype) -> Self {
        let columns = sizes.q[3].max(sizes.v[3]);
        let row = |dtype| {
            let rounded = Elements::rounded(vec![0.0; columns], dtype);
            rounded.unwrap_or_else(|| Elements::Int8(vec![0; columns], vec![1.0]))
        };
        Self { sizes, q: row(q_dtype(dtype)), kv: row(dtype) }
    }

    /// The problem of these tensors.
    ///
    /// # Errors
    /// [`CliError::Problem`] if a size overflows, or sizes do not fit each other or the options.
    pub(crate) fn problem<'a>(&'a self, options: &Attention<'a>) -> Result<Problem<'a>, CliError> {
        let Sizes { q, k, v, .. } = self.sizes;
        self.sizes.problem(options, [tensor("q", &self.q, *q)?, tensor("k", &self.kv, *k)?, tensor("v", &self.kv, *v)?])
    }
}

fn tensor<'a>(name: &'static str, row: &'a Elements, shape: [usize; 4]) -> Result<Tensor<'a>, CliError> {
    let strides = [0, 0, 0, 1];
    let [batch, heads, rows, _] = shape;
    let tensor = match row {
        Elements::F32(row) => View::strided(row, shape, strides).map(Tensor::from),
        Elements::F16(row) => View::strided(row, shape, strides).map(Tensor::from),
        Elements::Bf16(row) => View::strided(row, shape, strides).map(Tensor::from),
        Elements::Int8(row, scale) => View::strided(row, shape, strides).and_then(|data| {
            let scales = View::strided(scale, [batch, heads, rows, 1], strides)?;
            Ok(Quantised { data, scales }.into())
        }),
    };
    tensor.map_err(|source| regard::Error::View { tensor: name, source }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> ShapeArgs {
        ShapeArgs {
            batch: 2,
            heads: 4,
            kv_heads: Some(2),
            queries: Some(3),
            keys: None,
            head_dim: 8,
            value_dim: Some(6),
        }
    }

    #[test]
    fn sizes_follow_each_other() {
        let sizes = |args: &ShapeArgs, varlen: Option<&str>, paged| {
            let varlen = varlen.map(|lengths| lengths.parse().unwrap());
            args.sizes(&SequenceArgs { varlen, paged }).unwrap()
        };
        let padded = sizes(&args(), None, None);
        assert_eq!([padded.q, padded.k, padded.v], [[2, 4, 3, 8], [2, 2, 3, 8], [2, 2, 3, 6]]);
        let decode = sizes(&args(), Some("10,0,7"), None);
        assert_eq!([decode.q, decode.k, decode.v], [[1, 4, 9, 8], [1, 2, 17, 8], [1, 2, 17, 6]]);
        let prompts = sizes(&ShapeArgs { queries: None, ..args() }, Some("10,0,7"), None);
        assert_eq!([prompts.q, prompts.k], [[1, 4, 17, 8], [1, 2, 17, 8]]);
        let paged = sizes(&args(), Some("10,0,7"), Some(4));
        assert_eq!([paged.q, paged.k], [[1, 4, 9, 8], [5, 2, 4, 8]]);
        let padded = sizes(&args(), None, Some(2));
        assert_eq!([padded.q, padded.k], [[2, 4, 3, 8], [4, 2, 2, 8]]);
    }

    #[test]
    fn every_element_type_has_a_stand_in() {
        let sizes = args().sizes(&SequenceArgs { varlen: Some("10,0,7".parse().unwrap()), paged: Some(4) }).unwrap();
        for dtype in Dtype::ALL {
            let stand = Stand::new(&sizes, dtype);
            let problem = stand.problem(&Attention::softmax()).unwrap();
            assert_eq!((problem.kv_dtype(), problem.q_dtype()), (dtype, q_dtype(dtype)));
            assert_eq!((problem.shape().batch, problem.shape().keys), (3, 10));
        }
    }
}
