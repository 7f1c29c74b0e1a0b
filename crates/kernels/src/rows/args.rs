//! What one call of a rows kernel works on.

use std::ops::Range;

use crate::mask::Band;
use crate::prefetch::Reading;
use crate::rules::{RowFactors, RowRules, Weigh, gain};
use crate::source::{PartialRows, Source};
use crate::tensor::Dtype;

/// The most query rows of a call: K and V are read once for all of them.
pub(crate) const MOST_ROWS: usize = 64;

/// Query rows of one sequence that share a KV head, and spans of its keys. Raw pointers, made by [`crate::launch`] only,
/// which proves the bounds.
#[derive(Clone, Debug)]
pub(crate) struct Unit<'a> {
    /// From 1 to [`MOST_ROWS`].
    pub(crate) rows: &'a [QueryRow],
    pub(crate) q_dtype: Dtype,
    /// Keys of the sequence, `d` elements.
    pub(crate) k: Source<'a>,
    /// Values of the sequence, `d_v` elements.
    pub(crate) v: Source<'a>,
    /// Valid keys of the sequence.
    pub(crate) keys: usize,
    /// The keys of this call; they start at a key block.
    pub(crate) span: Range<usize>,
    /// Keys of a span, whole blocks: the partial results of each are computed apart, and merged in order.
    pub(crate) span_keys: usize,
    pub(crate) d: usize,
    pub(crate) d_v: usize,
    pub(crate) band: Band,
    pub(crate) scale: f32,
    /// `c` of `c * tanh(s / c)`.
    pub(crate) softcap: Option<f32>,
    /// Position of query row 0 among the keys, if there is ALiBi.
    pub(crate) alibi: Option<i64>,
    /// Whether rows have bias.
    pub(crate) bias: bool,
    pub(crate) rules: RowRules,
    pub(crate) weighting: Weigh<'a>,
    /// Keys of a block, a multiple of 32: the choice that decides the order of summation.
    pub(crate) key_block: usize,
    pub(crate) reading: Reading,
    /// For each block of the index of the keys, one bit for each row that wants it, in the order of `rows`; none if all are to be
    /// looked at.
    pub(crate) wanted: Option<&'a [u64]>,
    /// Where the state and the sums of each row go.
    pub(crate) out: PartialRows,
    /// As much, for those of a span that is to be merged; not used if there is one span.
    pub(crate) part: PartialRows,
}

/// One query row, and what differs from head to head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueryRow {
    /// `d` elements.
    pub(crate) q: *const u8,
    /// Its index in the sequence.
    pub(crate) query: usize,
    pub(crate) temperature: f32,
    /// Non-zero where a key is visible; null for none.
    pub(crate) keep: *const u8,
    pub(crate) keep_stride: usize,
    /// Added to the score; null for none.
    pub(crate) bias: *const f32,
    pub(crate) bias_stride: usize,
    /// Of ALiBi.
    pub(crate) slope: f32,
}

impl QueryRow {
    /// No row.
    pub(crate) const NONE: Self = Self {
        q: std::ptr::null(),
        query: 0,
        temperature: 1.0,
        keep: std::ptr::null(),
        keep_stride: 0,
        bias: std::ptr::null(),
        bias_stride: 0,
        slope: 0.0,
    };
}

impl Unit<'_> {
    /// The number of spans.
    pub(crate) fn spans(&self) -> usize {
        self.span.len().div_ceil(self.span_keys).max(1)
    }

    /// The span of a key.
    pub(crate) fn span_of(&self, key: usize) -> usize {
        (key - self.span.start) / self.span_keys
    }

    /// The keys of a span.
    pub(crate) fn keys_of(&self, span: usize) -> Range<usize> {
        let start = self.span.start + span * self.span_keys;
        start..start.saturating_add(self.span_keys).min(self.span.end)
    }

    /// Whether there are score modifications beyond the scale. A scale of zero counts as one: it makes all scores tie, which no
    /// factor that is applied after the comparison can do.
    pub(crate) fn has_terms(&self) -> bool {
        self.softcap.is_some() || self.alibi.is_some() || self.bias || self.scale == 0.0
    }

    /// Whether queries are to be negated, so that a negative scale leaves the order of scores right.
    pub(crate) fn turned(&self) -> bool {
        self.weighting.functions.ordered && self.scale < 0.0 && !self.has_terms()
    }

    /// The factors of a row.
    pub(crate) fn factors(&self, row: &QueryRow) -> RowFactors {
        let visible = || {
            let seen = self.band.visible(row.query, self.keys);
            // SAFETY: the mask covers every key.
            let keeps = |key: &usize| unsafe { *row.keep.add(key * row.keep_stride) } != 0;
            if row.keep.is_null() { seen.len() } else { seen.filter(keeps).count() }
        };
        self.rules.factors(row.temperature, self.keys, visible)
    }

    /// See [`crate::weighting::Block::gain`].
    pub(crate) fn gain(&self, factors: &RowFactors) -> f32 {
        let scale = if self.has_terms() { 1.0 } else { self.scale };
        gain(self.weighting.functions.ordered, scale, factors.inverse_temperature)
    }
}
