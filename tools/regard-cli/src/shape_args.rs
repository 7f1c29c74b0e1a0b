//! The options that say how large a problem is, for commands that have no tensors to tell.

use clap::Args;
use regard::{Shape, View};

use crate::error::CliError;

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
    /// Rows of q
    #[arg(long, default_value_t = 2048, value_name = "N")]
    pub(crate) queries: usize,
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
    /// [`CliError::Input`] for absurd ones. Whether they fit each other is for `Problem::new` to say.
    pub(crate) fn shape(&self) -> Result<Shape, CliError> {
        let shape = Shape {
            batch: self.batch,
            query_heads: self.heads,
            kv_heads: self.kv_heads.unwrap_or(self.heads),
            queries: self.queries,
            keys: self.keys.unwrap_or(self.queries),
            head_dim: self.head_dim,
            value_dim: self.value_dim.unwrap_or(self.head_dim),
        };
        let Shape { batch, query_heads, kv_heads, queries, keys, head_dim, value_dim } = shape;
        let sizes = [batch, query_heads, kv_heads, queries, keys, head_dim, value_dim];
        for ((option, most), size) in MOST.into_iter().zip(sizes) {
            if size > most {
                return Err(CliError::Input(format!("{option} is {size}, but must be at most {most}")));
            }
        }
        // What is left is too many rows of a tensor without columns, whose size of 0 would hide it.
        let rows = batch.checked_mul(query_heads.max(kv_heads)).and_then(|heads| heads.checked_mul(queries.max(keys)));
        if rows.is_none_or(|rows| rows > isize::MAX as usize / 8) {
            return Err(CliError::Input("--batch, --heads and --queries or --keys are too large together".to_owned()));
        }
        Ok(shape)
    }
}

/// Tensors of any size that take the memory of one row: all rows are the same.
#[derive(Debug)]
pub(crate) struct Stand {
    shape: Shape,
    row: Vec<f32>,
}

impl Stand {
    /// Stand-ins for tensors of these sizes.
    pub(crate) fn new(shape: Shape) -> Self {
        Self { shape, row: vec![0.0; shape.head_dim.max(shape.value_dim)] }
    }

    /// q, k and v.
    ///
    /// # Errors
    /// [`regard::Error::View`] if a size overflows.
    pub(crate) fn views(&self) -> Result<[View<'_, f32>; 3], CliError> {
        let Shape { batch, query_heads, kv_heads, queries, keys, head_dim, value_dim } = self.shape;
        let view = |tensor, shape| {
            let view = View::strided(&self.row, shape, [0, 0, 0, 1]);
            view.map_err(|source| CliError::from(regard::Error::View { tensor, source }))
        };
        Ok([
            view("q", [batch, query_heads, queries, head_dim])?,
            view("k", [batch, kv_heads, keys, head_dim])?,
            view("v", [batch, kv_heads, keys, value_dim])?,
        ])
    }
}
