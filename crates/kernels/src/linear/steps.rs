//! The order of chunks and rows.

use std::ops::Range;

use crate::launch::Sequence;

/// A chunk of keys, the rows that take a part of it, and whether it is added to the state after them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// Keys at hand; all those before them are in the state.
    pub(super) keys: Range<usize>,
    /// Rows that are answered.
    pub(super) rows: Range<usize>,
    /// Whether there are later rows, for which the keys are added to the state.
    pub(super) fold: bool,
}

/// All rows of a sequence, in order, with the keys that it takes to answer them: first the rows that see nothing, under a causal
/// mask those that end in each chunk, else all rows after all keys.
pub(super) fn steps(sequence: &Sequence, chunk: usize) -> impl Iterator<Item = Step> {
    let Sequence { queries: rows, keys, band, .. } = *sequence;
    let causal = band.upper.is_some();
    // The first row from `row` on that sees a key at `limit` or after it. Ends ascend.
    let until =
        move |row: usize, limit: usize| (row..rows).find(|row| band.visible(*row, keys).end > limit).unwrap_or(rows);
    let blind = Step { keys: 0..0, rows: 0..until(0, 0), fold: false };
    let (mut start, mut row) = (0, blind.rows.end);
    let rest = std::iter::from_fn(move || {
        if row == rows {
            return None;
        }
        let end = start + chunk.min(keys - start);
        let next = match causal {
            true if end == keys => rows,
            true => until(row, end),
            false if start == keys => rows,
            false => row,
        };
        let step = Step { keys: start..end, rows: row..next, fold: next < rows };
        (start, row) = (end, next);
        Some(step)
    });
    std::iter::once(blind).chain(rest)
}

#[cfg(test)]
mod tests {
    use super::{Step, steps};
    use crate::Band;
    use crate::launch::Sequence;

    fn of(queries: usize, keys: usize, upper: Option<i64>) -> Vec<Step> {
        let band = Band { lower: None, upper };
        let sequence = Sequence { batch: 0, first_query: 0, queries, first_key: 0, keys, band, offset: 0 };
        steps(&sequence, 4).filter(|step| !step.rows.is_empty() || !step.keys.is_empty()).collect()
    }

    #[test]
    fn every_row_once_and_no_key_in_vain() {
        let step = |keys, rows, fold| Step { keys, rows, fold };
        assert_eq!(of(6, 6, Some(1)), [step(0..4, 0..4, true), step(4..6, 4..6, false)]);
        assert_eq!(
            of(2, 9, None),
            [step(0..4, 0..0, true), step(4..8, 0..0, true), step(8..9, 0..0, true), step(9..9, 0..2, false)]
        );
        // Rows that see nothing, and keys that no row sees.
        assert_eq!(of(4, 9, Some(-1)), [step(0..0, 0..2, false), step(0..4, 2..4, false)]);
        assert_eq!(of(3, 0, None), [step(0..0, 0..3, false)]);
        // Rows past the last key.
        assert_eq!(of(9, 5, Some(1)), [step(0..4, 0..4, true), step(4..5, 4..9, false)]);
    }
}
