//! The rows of K or V of one block, run by run.

use super::KeyBlock;
use crate::source::Source;

/// How the rows of K or V are read: what does not change from run to run. A turn may be a few keys, of which divisions would take a
/// tenth.
#[derive(Clone, Copy)]
pub(super) struct Stream<'a> {
    pub(super) source: &'a Source<'a>,
    /// Columns of a row.
    pub(super) columns: usize,
    /// Rows from a key to what is to be prefetched with it; 0 for nothing but the key itself.
    pub(super) ahead: usize,
    /// Runs have a multiple of so many keys, but for the last one of a block.
    pub(super) run_keys: usize,
    /// Room for a block.
    pub(super) gathered: *mut f32,
}

/// The runs of one block of keys.
pub(super) struct Pieces<'a> {
    stream: Stream<'a>,
    keys: KeyBlock,
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
    /// The runs of these keys, put together first where pages break them.
    #[inline(always)]
    pub(super) fn new(stream: Stream<'a>, keys: KeyBlock) -> Self {
        let source = stream.source;
        let mut pieces = Self { stream, keys, done: 0, gathered: None };
        let broken = source.page_rows().is_some_and(|rows| !rows.is_multiple_of(stream.run_keys));
        if broken && source.run(keys.first).rows < keys.keys {
            pieces.gather(stream.gathered.cast());
        }
        pieces
    }

    /// Bytes of a row.
    fn row_bytes(&self) -> usize {
        self.stream.columns * self.stream.source.dtype.bytes()
    }

    /// Puts the runs together.
    #[inline(never)]
    fn gather(&mut self, to: *mut u8) {
        let row_bytes = self.row_bytes();
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
            return Some(Piece { data, row_bytes: self.row_bytes(), rows: self.keys.keys, place, ahead: 0 });
        }
        let first = self.keys.first + place;
        let source = self.stream.source;
        let run = source.run(first);
        let rows = run.rows.min(self.keys.keys - place);
        self.done += rows;
        let ahead = source.ahead(first, self.stream.ahead);
        Some(Piece { data: run.data, row_bytes: source.row_bytes(), rows, place, ahead })
    }
}
