//! How a call is cut: into units of rows that a kernel takes at once, and units into spans of keys.

use super::call::{Call, Choice};
use crate::rows::args::MOST_ROWS;

/// Rows that one call of a kernel takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) sequence: usize,
    pub(super) rows: UnitRows,
    /// Keys of a span; the last one may be shorter.
    pub(super) span: usize,
    /// The first span of which some row sees a key; the others add nothing.
    pub(super) first_span: usize,
    /// Spans from there to the last one of which some row sees a key. At least 1: without keys there is still a result.
    pub(super) spans: usize,
}

/// Which rows of its sequence a unit has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnitRows {
    /// Rows of one query head, for the lanes kernel.
    Lanes { head: usize, first: usize, rows: usize },
    /// Rows of all query heads that share a KV head, those of the first head first, for the rows kernel.
    Rows { kv_head: usize, first: usize, rows: usize },
}

impl Unit {
    /// The unit with the spans that its rows see.
    fn with_seen_spans(self, call: &Call<'_>) -> Self {
        let sequence = &call.sequences[self.sequence];
        if self.span >= sequence.keys {
            return self;
        }
        let (mut start, mut end) = (usize::MAX, 0);
        for row in 0..self.rows() {
            let seen = sequence.band.visible(self.row(call, row).1, sequence.keys);
            if !seen.is_empty() {
                (start, end) = (start.min(seen.start), end.max(seen.end));
            }
        }
        let first_span = if start < end { start / self.span } else { 0 };
        Self { first_span, spans: end.div_ceil(self.span).saturating_sub(first_span).max(1), ..self }
    }

    /// Query rows.
    pub(super) fn rows(&self) -> usize {
        match self.rows {
            UnitRows::Lanes { rows, .. } | UnitRows::Rows { rows, .. } => rows,
        }
    }

    /// The query head and the query of the sequence that row `row` of the unit is.
    pub(super) fn row(&self, call: &Call<'_>, row: usize) -> (usize, usize) {
        match self.rows {
            UnitRows::Lanes { head, first, .. } => (head, first + row),
            UnitRows::Rows { kv_head, first, .. } => {
                let queries = call.sequences[self.sequence].queries;
                (kv_head * group(call) + (first + row) / queries, (first + row) % queries)
            }
        }
    }

    /// What a span costs, about, in multiply-adds of both products: to order tasks by.
    pub(super) fn cost(&self, call: &Call<'_>, span: usize) -> f64 {
        let sequence = &call.sequences[self.sequence];
        let (start, end) = self.span(call, span);
        let visible = |row: usize| {
            let seen = sequence.band.visible(self.row(call, row).1, sequence.keys);
            seen.end.min(end).saturating_sub(seen.start.max(start)) as f64
        };
        let rows = self.rows();
        // The ends of what rows see move evenly from the first to the last one.
        let keys = (visible(0) + visible(rows - 1) + visible(rows / 2)) / 3.0;
        let read = match self.rows {
            UnitRows::Lanes { .. } => 0.0,
            // Reading a key takes as long as computing some rows of it.
            UnitRows::Rows { .. } => READING_ROWS,
        };
        keys * (rows as f64 + read)
    }

    /// The first key of a span of the unit, and one past its last one.
    pub(super) fn span(&self, call: &Call<'_>, span: usize) -> (usize, usize) {
        let keys = call.sequences[self.sequence].keys;
        let start = (self.first_span + span).saturating_mul(self.span).min(keys);
        (start, start.saturating_add(self.span).min(keys))
    }
}

/// Rows that could be computed while a key is read from memory.
const READING_ROWS: f64 = 6.0;

/// Query heads that share a KV head.
pub(super) fn group(call: &Call<'_>) -> usize {
    call.q.shape()[1] / call.k.shape()[1].max(1)
}

/// Which of the rows kernels a sequence with this many queries goes to, if it does not go to the lanes kernel.
pub(super) fn which_rows(call: &Call<'_>, choice: &Choice, queries: usize) -> Option<usize> {
    choice.which_rows(group(call), queries)
}

/// The units of a call, in order. There are none for rows that do not exist.
pub(super) fn units<'a>(call: &'a Call<'_>, choice: &'a Choice) -> impl Iterator<Item = Unit> + 'a {
    let heads = call.q.shape()[1];
    let kv_heads = if heads == 0 { 0 } else { call.k.shape()[1] };
    (0..call.sequences.len()).flat_map(move |sequence| {
        let queries = call.sequences[sequence].queries;
        let takes_rows = which_rows(call, choice, queries).is_some();
        let (heads, rows) = if takes_rows { (kv_heads, group(call) * queries) } else { (heads, queries) };
        let block = if takes_rows { even(rows, MOST_ROWS) } else { choice.query_block };
        let span = span_len(call, choice, sequence);
        // Later rows see more keys under a causal mask: they come first.
        (0..rows.div_ceil(block.max(1))).rev().flat_map(move |index| {
            (0..heads).map(move |head| {
                let first = index * block;
                let rows = block.min(rows - first);
                let rows = if takes_rows {
                    UnitRows::Rows { kv_head: head, first, rows }
                } else {
                    UnitRows::Lanes { head, first, rows }
                };
                let unit = Unit { sequence, rows, span, first_span: 0, spans: 1 };
                unit.with_seen_spans(call)
            })
        })
    })
}

/// Part `part` of the rows that share a KV head, over all keys of their sequence, which the rows kernel takes; none if there are
/// fewer parts.
pub(super) fn rows_unit(call: &Call<'_>, sequence: usize, kv_head: usize, part: usize) -> Option<Unit> {
    let all = group(call) * call.sequences[sequence].queries;
    let block = even(all, MOST_ROWS);
    let first = part * block;
    let rows = UnitRows::Rows { kv_head, first, rows: block.min(all.checked_sub(first).filter(|rows| *rows > 0)?) };
    Some(Unit { sequence, rows, span: usize::MAX, first_span: 0, spans: 1 })
}

/// Which part of the rows that share a KV head starts with row `first`.
pub(super) fn rows_part(call: &Call<'_>, sequence: usize, first: usize) -> usize {
    first / even(group(call) * call.sequences[sequence].queries, MOST_ROWS)
}

/// The size of parts that are as even as parts of at most `most` can be.
fn even(all: usize, most: usize) -> usize {
    all.div_ceil(all.div_ceil(most).max(1)).max(1)
}

/// The keys of a span of a sequence.
fn span_len(call: &Call<'_>, choice: &Choice, sequence: usize) -> usize {
    let sequence = &call.sequences[sequence];
    choice.split.span(sequence.queries, sequence.keys, choice.key_block_for(group(call), sequence.queries))
}

/// How much there is to do for a sequence, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Units.
    pub(super) units: usize,
    /// Rows of the largest of them.
    pub(super) rows: usize,
    /// Spans of each.
    pub(super) spans: usize,
}

/// How much there is to do for each sequence, without counting it out: sizes may be absurd.
pub(super) fn extents<'a>(call: &'a Call<'_>, choice: &'a Choice) -> impl Iterator<Item = Extent> + 'a {
    let heads = call.q.shape()[1];
    (0..call.sequences.len()).map(move |index| {
        let sequence = &call.sequences[index];
        let spans = sequence.keys.div_ceil(span_len(call, choice, index)).max(1);
        let (heads, rows, block) = if which_rows(call, choice, sequence.queries).is_some() {
            let rows = group(call).saturating_mul(sequence.queries);
            (if heads == 0 { 0 } else { call.k.shape()[1] }, rows, even(rows, MOST_ROWS))
        } else {
            (heads, sequence.queries, choice.query_block)
        };
        Extent { units: heads.saturating_mul(rows.div_ceil(block.max(1))), rows: block.min(rows), spans }
    })
}

#[cfg(test)]
mod tests {
    use super::even;

    #[test]
    fn parts_are_even() {
        assert_eq!([even(1, 64), even(64, 64), even(65, 64), even(130, 64), even(0, 64)], [1, 64, 33, 44, 1]);
    }
}
