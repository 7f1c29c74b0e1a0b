//! What is to be computed, and how: plain numbers, views and the choice of a plan.

use regard_simd::Level;

use crate::index::KeyIndex;
use crate::mask::Band;
use crate::prefetch::Prefetch;
use crate::rules::{Count, Schedule, Shift};
use crate::table::{Kernel, RowsKernel};
use crate::tensor::{Tensor, TensorMut};
use crate::view::View;
use crate::weighting::{AnyWeighting, RowState};

/// What is to be computed, resolved to plain numbers. The crate `regard` makes it from checked options.
///
/// `q` is `[batch, query_heads, rows, d]`, `k` and `v` are `[batch, kv_heads, rows, d]` and `[.., d_v]`; their rows are
/// contiguous. Query head `h` reads KV head `h * kv_heads / query_heads`. Which rows belong together is said by `sequences`:
/// one for each batch entry of padded tensors, or several that lie one after the other in batch entry 0.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Queries: f32, f16 or bf16.
    pub q: Tensor<'a>,
    /// Keys, of any element type.
    pub k: Tensor<'a>,
    /// Values, of the element type of the keys.
    pub v: Tensor<'a>,
    /// Where the keys of each sequence lie, if `k` and `v` are `[pages, kv_heads, rows of a page, columns]`.
    pub pages: Option<PageTables<'a>>,
    /// At least one, unless there are no rows. They share no query rows, and follow each other in `q`.
    pub sequences: &'a [Sequence],
    /// What is known of blocks of keys, if they are padded: it may save looking at them. It changes no selection, and leaves out
    /// less than 2^-26 of the weights of softmax.
    pub index: Option<&'a KeyIndex>,
    /// Non-zero where a pair is visible: `[sequences, query_heads, longest queries, longest keys]`.
    pub keep: Option<View<'a, u8>>,
    /// Added to the scaled score: `[sequences, query_heads, longest queries, longest keys]`.
    pub bias: Option<View<'a, f32>>,
    /// One slope for each query head.
    pub alibi_slopes: Option<&'a [f32]>,
    /// One logit for each query head.
    pub sinks: Option<&'a [f32]>,
    /// Factor of the scores.
    pub scale: f32,
    /// `c` of `c * tanh(s / c)`.
    pub softcap: Option<f32>,
    /// Divides the scores last.
    pub temperature: Temperatures<'a>,
    /// Length-dependent part of the temperature.
    pub schedule: Schedule,
    /// The `n` of everything that depends on the length.
    pub count: Count,
    /// Added to the final score before a pointwise weighting.
    pub shift: Shift,
    /// The output is multiplied by `coefficient / n^exponent`.
    pub coefficient: f32,
    /// See `coefficient`.
    pub exponent: f32,
    /// How scores become weights.
    pub weighting: &'a dyn AnyWeighting,
}

/// What is particular to one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// The batch entry of its queries, and of its keys unless they lie on pages.
    pub batch: usize,
    /// Its first row in `q`.
    pub first_query: usize,
    /// Its rows in `q`.
    pub queries: usize,
    /// Its first row in `k` and `v`; 0 if they lie on pages.
    pub first_key: usize,
    /// Its valid keys.
    pub keys: usize,
    /// The mask, which counts rows and keys from those of the sequence.
    pub band: Band,
    /// Position of its query row 0 among the keys, for ALiBi and gates.
    pub offset: i64,
}

/// The pages of each sequence in order.
#[derive(Clone, Copy, Debug)]
pub struct PageTables<'a> {
    /// Indices of pages: entry `s * stride + i` is page `i` of sequence `s`.
    pub entries: &'a [u32],
    /// Entries from a sequence to the next.
    pub stride: usize,
    /// Whether the `stride` pages come round: key `j` lies where key `j - stride * rows of a page` did. Keys that were
    /// overwritten must be hidden by the band.
    pub ring: bool,
}

impl<'a> PageTables<'a> {
    /// The pages of a sequence.
    pub(crate) fn of(&self, sequence: usize) -> &'a [u32] {
        &self.entries[sequence * self.stride..(sequence + 1) * self.stride]
    }
}

/// Temperatures, all positive and finite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Temperatures<'a> {
    /// One for all rows.
    One(f32),
    /// One for each query head.
    PerHead(&'a [f32]),
    /// One for each row: `[batch, query_heads, rows of q]`, contiguous.
    PerRow(&'a [f32]),
}

/// How to compute it: the choice of a plan. Which kernel a sequence gets depends on its own number of queries.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// The level; its token proves that the kernels may run.
    pub level: Level,
    /// The lanes kernel, one of [`crate::table::kernels`] of that level.
    pub kernel: &'static Kernel,
    /// Another one for sequences of few queries.
    pub few: Option<Few>,
    /// Keys of a block of the lanes kernel; even, and the one choice of its that alters the order of summation.
    pub key_block: usize,
    /// Query rows of a task of the lanes kernel.
    pub query_block: usize,
    /// Whether the lanes kernel copies K and V to contiguous scratch block by block.
    pub copy: bool,
    /// The rows kernels: for sequences that have fewer rows for each KV head than the second one is for, and for the others. Both
    /// may be the same.
    pub rows: [RowsChoice; 2],
    /// How the keys of a sequence are split into spans.
    pub split: Split,
}

/// The lanes kernel of sequences of few queries.
#[derive(Clone, Copy, Debug)]
pub struct Few {
    /// One of [`crate::table::kernels`] of the level, of as many rows of a register tile as the other one.
    pub kernel: &'static Kernel,
    /// Sequences that have fewer queries are its.
    pub below: usize,
}

/// A rows kernel, and how it is used.
#[derive(Clone, Copy, Debug)]
pub struct RowsChoice {
    /// One of [`crate::table::rows_kernels`] of the level, for keys of this element type.
    pub kernel: &'static RowsKernel,
    /// Keys of a block; a multiple of 32, and what alters the order of summation.
    pub key_block: usize,
    /// The most queries of a sequence that it gets; 0 for none.
    pub up_to: usize,
    /// How it asks for memory.
    pub prefetch: Prefetch,
}

impl Choice {
    /// Which of the rows kernels computes a sequence with this many queries, `group` query heads of which share a KV head; none if
    /// the lanes kernel does. It depends on nothing else, so that a sequence has the same bits in whatever company.
    pub fn which_rows(&self, group: usize, queries: usize) -> Option<usize> {
        let which = usize::from(self.rows[1].kernel.is_for(group.saturating_mul(queries)));
        (queries <= self.rows[which].up_to).then_some(which)
    }

    /// The rows kernel that computes such a sequence, if one does.
    pub fn rows_for(&self, group: usize, queries: usize) -> Option<&RowsChoice> {
        self.which_rows(group, queries).map(|which| &self.rows[which])
    }

    /// The lanes kernel that computes a sequence with this many queries, if no rows kernel does. It depends on nothing else.
    pub fn lanes_for(&self, queries: usize) -> &'static Kernel {
        match self.few {
            Some(few) if queries < few.below => few.kernel,
            _ => self.kernel,
        }
    }

    /// Keys of a block of such a sequence.
    pub fn key_block_for(&self, group: usize, queries: usize) -> usize {
        self.rows_for(group, queries).map_or(self.key_block, |rows| rows.key_block)
    }
}

/// How keys are split into spans, whose partial results are merged in order. A span is computed as a task of its own where
/// threads would be idle otherwise; the result is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// Not at all.
    Never,
    /// By [`Split::span`], where there are few queries.
    Auto,
    /// Spans of this many keys, rounded up to whole key blocks.
    Keys(usize),
}

/// The most queries of a sequence whose keys are split without being asked for.
const FEW_QUERIES: usize = 128;

/// Keys of the shortest span that is chosen without being asked for. Merging costs as much as a few keys.
const SHORTEST_SPAN: usize = 1024;

/// The most spans that a sequence is split into without being asked for.
const MOST_SPANS: usize = 64;

impl Split {
    /// Keys of a span of a sequence with this many queries and keys: whole blocks. It depends on the sequence's own sizes
    /// only, never on who computes it.
    pub fn span(self, queries: usize, keys: usize, key_block: usize) -> usize {
        let span = match self {
            Self::Never => return usize::MAX,
            Self::Auto if queries > FEW_QUERIES => return usize::MAX,
            Self::Auto => keys.div_ceil(MOST_SPANS).max(SHORTEST_SPAN),
            Self::Keys(keys) => keys.max(1),
        };
        span.checked_next_multiple_of(key_block).unwrap_or(usize::MAX)
    }
}

/// Where results go. Rows of no sequence are left alone.
#[derive(Debug)]
pub enum Outputs<'a> {
    /// Results.
    Rows {
        /// `[batch, query_heads, rows of q, d_v]`
        out: TensorMut<'a>,
        /// Log-sum-exp, `[batch, query_heads, rows of q]`, contiguous; for weightings that have one.
        lse: Option<&'a mut [f32]>,
    },
    /// What [`super::merge`] and [`super::conclude`] take.
    Partial {
        /// `[batch, query_heads, rows of q]`, contiguous.
        states: &'a mut [RowState],
        /// `[batch, query_heads, rows of q, d_v]`, contiguous.
        sums: &'a mut [f32],
    },
}

/// Runs work on threads of the caller's choice.
pub trait Executor {
    /// The most threads that work at once, at least 1.
    fn threads(&self) -> usize;

    /// Calls `work` from up to [`Executor::threads`] threads and returns when all calls have returned. `work` takes tasks
    /// until there are none; calls beyond that do nothing.
    fn run(&self, work: &(dyn Fn() + Sync));
}
