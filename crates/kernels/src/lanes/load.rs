//! The key blocks of a call, and their rows of K and V as the products read them.

use regard_simd::{Op, Simd};

#[cfg(target_arch = "x86_64")]
use super::MOST_PARTS;
use super::pairs::{GatherPairs, Interleave};
use super::streams::{LINE, Stream, Streams};
#[cfg(target_arch = "x86_64")]
use super::tiles::{PartKeys, PartValues, TileValues};
use super::{Lanes, Subtile};
use crate::source::{Source, Widen};
use crate::tensor::Dtype;
use crate::weighting::Kind;

/// A block of the grid.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) first: usize,
    pub(super) len: usize,
}

/// K and V of one key block, where they lie or in scratch.
#[derive(Clone, Copy)]
pub(super) struct KeyBlock {
    pub(super) first: usize,
    pub(super) len: usize,
    pub(super) k: Rows,
    /// Null if no weight is ever multiplied with it.
    pub(super) v: Rows,
}

/// Rows of f32 or of pairs: in those of K, a pair is of two columns, in those of V, of two keys. As tiles, values are `[32 keys][column]`
/// `[pair of keys]`, and the stride is that of columns, of which there are whole tiles.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) data: *const f32,
    /// Elements from a row to the next.
    pub(super) stride: usize,
    /// Whether they lie where the caller has them.
    in_place: bool,
}

/// Nothing is known of the values at hand.
const UNKNOWN: u64 = 0;
/// All values at hand are finite.
const FINITE: u64 = 1;
/// Some value at hand is NaN or Inf.
const NOT_FINITE: u64 = 2;

/// Whether rows hold neither NaN nor Inf.
struct AllFinite {
    rows: Rows,
    /// Whether elements are pairs of bf16.
    pairs: bool,
    count: usize,
    columns: usize,
}

impl Op for AllFinite {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        let every = s.mask_to_bits(s.mask_from_bits(u64::MAX));
        for row in 0..self.count {
            let mut zeros = s.zero();
            for c in (0..self.columns).step_by(S::LANES) {
                let len = (self.columns - c).min(S::LANES);
                // SAFETY: the rows exist and have the columns (contract of the struct, made by `Lanes`).
                let x = unsafe { s.load_first(self.rows.data.add(row * self.rows.stride + c), len) };
                // Zero, but for NaN and Inf.
                if self.pairs {
                    zeros = s.mul_add(s.low_bf16(x), s.zero(), zeros);
                    zeros = s.mul_add(s.high_bf16(x), s.zero(), zeros);
                } else {
                    zeros = s.mul_add(x, s.zero(), zeros);
                }
            }
            if s.mask_to_bits(s.eq(zeros, s.zero())) != every {
                return false;
            }
        }
        true
    }
}

impl KeyBlock {
    /// Its keys `from..to` of the sequence.
    pub(super) fn part(self, from: usize, to: usize) -> Self {
        let skipped = from - self.first;
        Self { first: from, len: to - from, k: self.k.after(skipped), v: self.v.after(skipped) }
    }
}

impl Rows {
    /// From row `rows` on.
    fn after(self, rows: usize) -> Self {
        Self { data: self.data.wrapping_add(rows * self.stride), ..self }
    }

    /// Nothing.
    const NONE: Self = Self { data: std::ptr::null(), stride: 0, in_place: true };
}

impl<const G: usize, const R: usize, const R1: usize, const PAIRS: bool, const TILES: bool>
    Lanes<'_, G, R, R1, PAIRS, TILES>
{
    /// Columns of a row that [`LINE`] columns of the score product stand for.
    const COLUMNS: usize = if PAIRS { 2 * LINE } else { LINE };

    /// One past the last key that a row of the sub-tile sees.
    pub(super) fn end_of(&self, tile: Subtile) -> usize {
        self.end(tile.rows.first + tile.rows.rows - 1)
    }

    /// One past the last key that `row` sees.
    fn end(&self, row: usize) -> usize {
        let head = self.head;
        head.band.visible(row, head.keys).end.min(head.span.end)
    }

    /// Whether rows of the sub-tile may see keys of a block.
    pub(super) fn concerns(&self, tile: Subtile, place: Place) -> bool {
        place.first < self.end_of(tile)
    }

    /// The first block of the grid that some row sees.
    pub(super) fn first_place(&self) -> Option<Place> {
        let head = self.head;
        let start = head.band.visible(head.first_row, head.keys).start.max(head.span.start);
        self.place(start / head.key_block * head.key_block)
    }

    pub(super) fn next_place(&self, place: Place) -> Option<Place> {
        self.place(place.first + self.head.key_block)
    }

    /// The block that starts at `first`; none past the last visible key.
    fn place(&self, first: usize) -> Option<Place> {
        let head = self.head;
        let end = head.keys.min(head.span.end);
        (first < self.end(head.first_row + head.rows - 1))
            .then(|| Place { first, len: head.key_block.min(end - first) })
    }

    /// The rows of a block, made ready for the products.
    pub(super) fn load<S: Simd>(&self, s: S, place: Place) -> KeyBlock {
        let v = match self.head.weighting.functions.kind {
            // SAFETY: the keys of the block exist, and the layout has room for one block of K and of V.
            Kind::Weighted => unsafe { self.values(s, place, self.scratch.add(self.layout.values)) },
            Kind::OneRow | Kind::TiedRows => Rows::NONE,
        };
        // SAFETY: the layout has room for it.
        unsafe { *self.scratch.wrapping_add(self.layout.finite).cast() = UNKNOWN };
        KeyBlock { v, ..self.load_keys(s, place) }
    }

    /// Whether all values of a block are finite. They are looked at once.
    pub(super) fn has_finite_values<S: Simd>(&self, s: S, keys: KeyBlock) -> bool {
        let known = self.scratch.wrapping_add(self.layout.finite).cast::<u64>();
        // SAFETY: the layout has room for it, and the values of the block exist.
        unsafe {
            if *known == UNKNOWN {
                let (count, columns) = match (PAIRS, TILES) {
                    // Rows are those of tiles.
                    (_, true) => (keys.v.stride * keys.len.div_ceil(Self::GRANULE), S::LANES),
                    (true, false) => (keys.len.div_ceil(2), self.head.d_v),
                    (false, false) => (keys.len, self.head.d_v),
                };
                let rows = if TILES { Rows { stride: S::LANES, ..keys.v } } else { keys.v };
                let all = s.vectorize(AllFinite { rows, pairs: PAIRS || TILES, count, columns });
                *known = if all { FINITE } else { NOT_FINITE };
            }
            *known == FINITE
        }
    }

    /// As [`Lanes::load`], without values.
    pub(super) fn load_keys<S: Simd>(&self, s: S, place: Place) -> KeyBlock {
        let Place { first, len } = place;
        // SAFETY: as in `load`.
        let k = unsafe { self.keys(s, place, self.scratch.add(self.layout.keys)) };
        KeyBlock { first, len, k, v: Rows::NONE }
    }

    /// The keys of a block.
    ///
    /// # Safety
    /// They exist, and `scratch` has room for them.
    unsafe fn keys<S: Simd>(&self, s: S, place: Place, scratch: *mut f32) -> Rows {
        let (source, columns) = (&self.head.k, self.head.d);
        #[cfg(target_arch = "x86_64")]
        if Self::PARTS {
            let (Place { first, len: rows }, words) = (place, self.words());
            s.vectorize(PartKeys { source, first, rows, columns, words, to: scratch });
            // Tiles of 16 keys.
            return Rows { data: scratch, stride: MOST_PARTS * words, in_place: false };
        }
        if !PAIRS {
            // SAFETY: the caller's contract.
            return unsafe { self.rows(s, place, source, columns, scratch) };
        }
        debug_assert!(source.dtype == Dtype::Bf16);
        let Place { first, len: rows } = place;
        let run = source.run(first);
        // Pairs are read as f32 are, so they must lie as f32 do.
        let aligned = (run.data.addr() | source.row_bytes()).is_multiple_of(align_of::<f32>());
        let whole = columns.is_multiple_of(if TILES { Self::GRANULE } else { 2 });
        if aligned && whole && run.rows >= rows && !self.head.copy {
            return Rows { data: run.data.cast(), stride: source.row_bytes() / size_of::<f32>(), in_place: true };
        }
        s.vectorize(GatherPairs { source, first, rows, columns, words: self.words(), to: scratch });
        Rows { data: scratch, stride: self.words(), in_place: false }
    }

    /// The values of a block.
    ///
    /// # Safety
    /// They exist, and `scratch` has room for them.
    unsafe fn values<S: Simd>(&self, s: S, place: Place, scratch: *mut f32) -> Rows {
        let (source, columns) = (&self.head.v, self.head.d_v);
        #[cfg(target_arch = "x86_64")]
        if Self::PARTS {
            s.vectorize(PartValues { source, first: place.first, rows: place.len, columns, to: scratch });
            return Rows { data: scratch, stride: MOST_PARTS * columns.next_multiple_of(S::LANES), in_place: false };
        }
        if !PAIRS {
            // SAFETY: the caller's contract.
            return unsafe { self.rows(s, place, source, columns, scratch) };
        }
        debug_assert!(source.dtype == Dtype::Bf16);
        #[cfg(target_arch = "x86_64")]
        if TILES {
            s.vectorize(TileValues { source, first: place.first, rows: place.len, columns, to: scratch });
            return Rows { data: scratch, stride: columns.next_multiple_of(S::LANES), in_place: false };
        }
        s.vectorize(Interleave { source, first: place.first, rows: place.len, columns, to: scratch });
        Rows { data: scratch, stride: columns, in_place: false }
    }

    /// The rows of a block where they lie, if the products can read them there and the plan does not want copies; else
    /// widened to `scratch`. The products cannot tell which.
    ///
    /// # Safety
    /// The rows exist and have `columns` elements, and `scratch` has room for them.
    unsafe fn rows<S: Simd>(&self, s: S, place: Place, source: &Source<'_>, columns: usize, scratch: *mut f32) -> Rows {
        let Place { first, len } = place;
        match source.in_place(first, len) {
            Some(data) if !self.head.copy => Rows { data, stride: source.row_stride(), in_place: true },
            _ => {
                s.vectorize(Widen { source, first, rows: len, columns, to: scratch });
                Rows { data: scratch, stride: columns, in_place: false }
            }
        }
    }

    /// What the first sub-tile of a block asks for: the keys two register tiles ahead, and the values of its own keys;
    /// or what will have to be brought to scratch for the next block.
    pub(super) fn block_streams(&self, keys: KeyBlock, next: Option<Place>) -> Streams<'_> {
        let head = self.head;
        let ahead = match next {
            _ if keys.k.in_place => Stream::source(&head.k, keys.first + 2 * R, keys.len, Self::COLUMNS),
            Some(next) => Stream::source(&head.k, next.first, next.len, Self::COLUMNS),
            None => Stream::NONE,
        };
        let values = match next {
            _ if keys.v.data.is_null() => Stream::NONE,
            _ if keys.v.in_place => Stream::source(&head.v, keys.first, keys.len, Self::COLUMNS),
            Some(next) => Stream::source(&head.v, next.first, next.len, Self::COLUMNS),
            None => Stream::NONE,
        };
        Streams::new([[ahead, values], [Stream::NONE; 2]])
    }

    /// What the other sub-tiles ask for: keys and values that only the following sub-tile sees, its queries if it is to
    /// be packed next, and, in their own last block, their output rows.
    pub(super) fn row_streams(
        &self,
        tile: Subtile,
        following: Option<Subtile>,
        keys: KeyBlock,
        first: bool,
        last: bool,
    ) -> Streams<'_> {
        let head = self.head;
        let row = |tile: Subtile| tile.rows.first - head.first_row;
        let out = self.target().row(row(tile));
        let rows = if last { tile.rows.rows } else { 0 };
        let outputs = Stream::rows(out.data, out.row_bytes, out.dtype, rows, Self::COLUMNS);
        let Some(following) = following else { return Streams::new([[outputs; 2], [Stream::NONE; 2]]) };
        let row_bytes = head.q_stride * head.q_dtype.bytes();
        let data = head.q.wrapping_add(row(following) * row_bytes);
        let rows = if first { following.rows.rows } else { 0 };
        let queries = Stream::rows(data, row_bytes, head.q_dtype, rows, Self::COLUMNS);
        let seen = |tile: Subtile| self.end_of(tile).clamp(keys.first, keys.first + keys.len) - keys.first;
        let (from, to) = (seen(tile), seen(following));
        let mut new = [Stream::NONE; 2];
        if from < to {
            if keys.k.in_place {
                new[0] = Stream::source(&head.k, keys.first + from, to - from, Self::COLUMNS);
            }
            if keys.v.in_place && !keys.v.data.is_null() {
                new[1] = Stream::source(&head.v, keys.first + from, to - from, Self::COLUMNS);
            }
        }
        Streams::new([new, [queries, outputs]])
    }
}
