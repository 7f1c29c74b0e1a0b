//! What one call of a lanes kernel works on.

use std::ops::Range;

use super::Subtile;
use super::pack::Places;
use super::prune::Prune;
use crate::mask::{Band, Matrix};
use crate::rules::{RowFactors, RowRules, Weigh, count_visible, gain};
use crate::source::{PartialRows, Source, Target};
use crate::tensor::Dtype;

/// One query block of one head. Raw pointers, because rows of several heads may interleave in memory and outputs of
/// concurrent calls lie side by side; made by [`crate::launch`] only, which proves the bounds.
///
/// Strides are in elements; rows themselves are contiguous.
#[derive(Clone, Debug)]
pub(crate) struct Head<'a> {
    /// Query row `first_row` of the sequence, `d` elements of `q_dtype`.
    pub(crate) q: *const u8,
    pub(crate) q_dtype: Dtype,
    pub(crate) q_stride: usize,
    /// Index of the first query row in its sequence: masks and ALiBi count from the sequence's start.
    pub(crate) first_row: usize,
    /// Query rows of this call, at most the query block.
    pub(crate) rows: usize,
    /// Keys of the sequence, `d` elements.
    pub(crate) k: Source<'a>,
    /// Values of the sequence, `d_v` elements.
    pub(crate) v: Source<'a>,
    /// Valid keys of the sequence.
    pub(crate) keys: usize,
    /// The keys of this call; it starts at a key block.
    pub(crate) span: Range<usize>,
    pub(crate) d: usize,
    pub(crate) d_v: usize,
    /// Output row of query row `first_row`, `d_v` elements, written.
    pub(crate) out: Target,
    /// Log-sum-exp of query row `first_row`, one element per row, contiguous, written; null for none.
    pub(crate) lse: *mut f32,
    /// Where state and sums of the span go instead, from query row `first_row` on.
    pub(crate) partial: Option<PartialRows>,
    pub(crate) band: Band,
    /// Non-zero where the pair is visible; element (0, 0) is row 0 of the sequence.
    pub(crate) keep: Option<Matrix<u8>>,
    /// Added to the score; element (0, 0) is row 0 of the sequence.
    pub(crate) bias: Option<Matrix<f32>>,
    pub(crate) alibi: Option<Alibi>,
    pub(crate) scale: f32,
    /// `c` of `c * tanh(s / c)`.
    pub(crate) softcap: Option<f32>,
    pub(crate) sink: Option<f32>,
    pub(crate) temperature: Temperature<'a>,
    pub(crate) rules: RowRules,
    pub(crate) weighting: Weigh<'a>,
    /// Keys of a block: the one tile parameter that decides the order of summation.
    pub(crate) key_block: usize,
    /// Whether to copy K and V of each block to contiguous scratch first, where they could be read in place.
    pub(crate) copy: bool,
    /// What lets the call leave out keys; not for pairs, terms, or mask tensors.
    pub(crate) prune: Option<Prune<'a>>,
    /// The rows of the call, by their index in the sequence, if they do not follow each other. Only where all see the same keys.
    pub(crate) order: Option<&'a [u32]>,
}

/// ALiBi: `-slope * |i + offset - j|` is added to the score.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Alibi {
    pub(crate) slope: f32,
    pub(crate) offset: i64,
}

/// Temperatures of a head.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Temperature<'a> {
    One(f32),
    /// Indexed by row of the sequence.
    Rows(&'a [f32]),
}

impl Head<'_> {
    /// Where row `row` of the call lies, counted from query row `first_row`; before it, if it is past `isize::MAX`.
    #[inline(always)]
    pub(crate) fn place(&self, row: usize) -> usize {
        self.order.map_or(row, |order| (order[row] as usize).wrapping_sub(self.first_row))
    }

    /// Some rows of a call whose rows follow each other.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only tile registers need it"))]
    pub(crate) fn part(&self, rows: Range<usize>) -> Self {
        debug_assert!(self.order.is_none());
        let first = rows.start;
        Self {
            q: self.q.wrapping_add(first.wrapping_mul(self.q_stride).wrapping_mul(self.q_dtype.bytes())),
            first_row: self.first_row + first,
            rows: rows.len(),
            out: self.out.row(first),
            lse: if self.lse.is_null() { self.lse } else { self.lse.wrapping_add(first) },
            partial: self.partial.map(|partial| partial.row(first)),
            ..self.clone()
        }
    }

    /// The places of the rows of a sub-tile.
    pub(super) fn places(&self, tile: Subtile) -> Places<'_> {
        Places { first: tile.rows.first - self.first_row, order: self.order, first_row: self.first_row }
    }

    /// Whether the head has score modifications beyond its scale. A scale of zero counts as one: it makes all scores
    /// tie, which no factor that is applied after the comparison can do.
    pub(crate) fn has_terms(&self) -> bool {
        self.softcap.is_some() || self.alibi.is_some() || self.bias.is_some() || self.scale == 0.0
    }

    /// Whether rows differ in their factors.
    pub(crate) fn rows_vary(&self) -> bool {
        matches!(self.temperature, Temperature::Rows(_)) || self.rules.vary()
    }

    /// The factors of `row` (of the sequence).
    ///
    /// # Safety
    /// `row` is a row of this call.
    pub(crate) unsafe fn factors(&self, row: usize) -> RowFactors {
        let temperature = match self.temperature {
            Temperature::One(temperature) => temperature,
            Temperature::Rows(rows) => rows[row],
        };
        // SAFETY: the mask covers every row of the call and every key.
        let visible = || unsafe { count_visible(self.band, self.keep.as_ref(), row, self.keys) };
        self.rules.factors(temperature, self.keys, visible)
    }

    /// See [`crate::weighting::Block::gain`].
    pub(crate) fn gain(&self, factors: &RowFactors) -> f32 {
        let scale = if self.has_terms() { 1.0 } else { self.scale };
        gain(self.weighting.functions.ordered, scale, factors.inverse_temperature)
    }
}
