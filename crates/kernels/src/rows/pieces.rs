//! The rows of K or V of one block, run by run.

use super::KeyBlock;
use crate::source::Source;

/// The runs of one block of keys.
pub(super) struct Pieces<'a> {
    source: &'a Source<'a>,
    keys: KeyBlock,
    columns: usize,
    ahead: usize,
    /// Keys that were taken.
    done: usize,
    /// Where the block was put together, if its pages are not of whole runs.
    gathered: Option<*const u8>,
}

/// A run of keys of a block.
pub(super) struct Piece {
    pub(super) data: *const u8,
    pub(super) row_bytes: usize,
    pub(super) rows: usize,
    /// Its first key, of the block.
    pub(super) place: usize,
    /// Bytes from a key to what is to be prefetched with it; 0 for nothing but the key itself.
    pub(super) ahead: usize,
}

impl<'a> Pieces<'a> {
    /// Runs have a multiple of `run_keys` keys, but for the last one; `gathered` has room for the block.
    #[inline(always)]
    pub(super) fn new(
        source: &'a Source<'a>,
        keys: KeyBlock,
        columns: usize,
        ahead_bytes: usize,
        run_keys: usize,
        gathered: *mut f32,
    ) -> Self {
        let row_bytes = columns * source.dtype.bytes();
        let ahead = if ahead_bytes == 0 { 0 } else { ahead_bytes.div_ceil(row_bytes.max(1)) };
        let mut pieces = Self { source, keys, columns, ahead, done: 0, gathered: None };
        let broken = source.page_rows().is_some_and(|rows| !rows.is_multiple_of(run_keys));
        if broken && source.run(keys.first).rows < keys.keys {
            pieces.gather(gathered.cast(), row_bytes);
        }
        pieces
    }

    /// Puts the runs together.
    #[inline(never)]
    fn gather(&mut self, to: *mut u8, row_bytes: usize) {
        for piece in (Self { gathered: None, ..*self }) {
            for row in 0..piece.rows {
                let from = piece.data.wrapping_add(row * piece.row_bytes);
                // SAFETY: the rows exist, and there is room for those of a block, widened.
                unsafe { to.add((piece.place + row) * row_bytes).copy_from_nonoverlapping(from, row_bytes) };
            }
        }
        self.gathered = Some(to);
    }
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    #[inline(always)]
    fn next(&mut self) -> Option<Piece> {
        let place = self.done;
        if place == self.keys.keys {
            return None;
        }
        if let Some(data) = self.gathered {
            self.done = self.keys.keys;
            let row_bytes = self.columns * self.source.dtype.bytes();
            return Some(Piece { data, row_bytes, rows: self.keys.keys, place, ahead: 0 });
        }
        let first = self.keys.first + place;
        let run = self.source.run(first);
        let rows = run.rows.min(self.keys.keys - place);
        self.done += rows;
        let ahead = self.source.ahead(first, self.ahead);
        Some(Piece { data: run.data, row_bytes: self.source.row_bytes(), rows, place, ahead })
    }
}
