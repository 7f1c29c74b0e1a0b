//! The memory of a state, and that which the kernels work in.

use super::features::{KEY_TILE, QUERY_TILE};

/// f32 of a cache line: every array starts at one.
pub(super) const LINE: usize = 16;

/// A cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [f32; LINE]);

/// Query rows that are answered at once: a tile of the state is read once for all of them.
pub(super) const ROWS: usize = 128;

/// Query rows for which columns of V are in lanes, and not rows.
pub(super) const FEW: usize = 4;

/// How much of what there is, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    /// Lanes of a vector, and of a sub-tile of queries.
    pub(super) vector: usize,
    pub(super) lanes: usize,
    /// Keys of a chunk.
    pub(super) chunk: usize,
    pub(super) features: usize,
    pub(super) d: usize,
    pub(super) d_v: usize,
}

impl Sizes {
    /// Columns of V in whole vectors.
    pub(super) fn width(&self) -> usize {
        self.d_v.next_multiple_of(self.vector)
    }

    /// Keys of a chunk in whole vectors.
    fn key_lanes(&self) -> usize {
        self.chunk.next_multiple_of(self.vector)
    }
}

/// Hands out places one after the other.
struct Places(usize);

impl Places {
    fn take(&mut self, sizes: [usize; 3]) -> usize {
        let start = self.0;
        let len = sizes.into_iter().fold(1, usize::saturating_mul);
        self.0 = start.saturating_add(len.checked_next_multiple_of(LINE).unwrap_or(usize::MAX));
        start
    }
}

/// Offsets of the arrays of one state, in f32.
#[derive(Clone, Copy, Debug)]
pub(super) struct StateLayout {
    /// `[feature][width]`
    pub(super) sums: usize,
    /// `[feature]`, and room for a vector more
    pub(super) norms: usize,
    /// The chunk at hand, after the sums: `[key][d]` and `[key][width]`
    pub(super) keys: usize,
    pub(super) values: usize,
    /// The end; `usize::MAX` if it is more than can be counted.
    pub(super) len: usize,
}

impl StateLayout {
    pub(super) fn new(sizes: &Sizes) -> Self {
        let mut places = Places(0);
        Self {
            sums: places.take([1, sizes.features, sizes.width()]),
            norms: places.take([1, 1, sizes.features + LINE]),
            keys: places.take([1, sizes.chunk, sizes.d]),
            values: places.take([1, sizes.chunk, sizes.width()]),
            len: places.0,
        }
    }
}

/// Offsets of the arrays of a chunk of keys that threads share, in f32.
#[derive(Clone, Copy, Debug)]
pub(super) struct HandLayout {
    pub(super) keys: usize,
    pub(super) values: usize,
    pub(super) turned: usize,
    pub(super) factors: usize,
    /// The end; `usize::MAX` if it is more than can be counted.
    pub(super) len: usize,
}

impl HandLayout {
    pub(super) fn new(sizes: &Sizes) -> Self {
        let mut places = Places(0);
        Self {
            keys: places.take([1, sizes.chunk, sizes.d]),
            values: places.take([1, sizes.chunk, sizes.width()]),
            turned: places.take([1, sizes.d, sizes.key_lanes()]),
            factors: places.take([1, 1, sizes.key_lanes()]),
            len: places.0,
        }
    }

    /// The chunk whose memory starts at `start`.
    pub(super) fn at(&self, start: *mut f32) -> Hand {
        let [keys, values, turned, factors] =
            [self.keys, self.values, self.turned, self.factors].map(|offset| start.wrapping_add(offset));
        Hand { keys, values, turned, factors }
    }
}

/// Where a chunk of keys lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hand {
    /// `[key][d]`
    pub(super) keys: *mut f32,
    /// `[key][width]`, zero past the columns of V
    pub(super) values: *mut f32,
    /// Keys in lanes: `[d][key_lanes]`
    pub(super) turned: *mut f32,
    /// `[key_lanes]`: powers of the gate, zero past the last key
    pub(super) factors: *mut f32,
}

impl Hand {
    /// The chunk at hand of a state, with the memory of a thread.
    pub(super) fn of(state: *mut f32, of: &StateLayout, work: *mut f32, layout: &WorkLayout) -> Self {
        Self {
            keys: state.wrapping_add(of.keys),
            values: state.wrapping_add(of.values),
            turned: work.wrapping_add(layout.turned),
            factors: work.wrapping_add(layout.key_factors),
        }
    }
}

/// Offsets of the arrays that a thread works in, in f32.
#[derive(Clone, Copy, Debug)]
pub(super) struct WorkLayout {
    /// The keys of a chunk in lanes: `[d][key_lanes]`
    pub(super) turned: usize,
    /// `[key_lanes]`
    pub(super) key_factors: usize,
    /// `[KEY_TILE][key_lanes]`
    pub(super) key_tile: usize,
    /// `[subtile][d][lanes]`
    pub(super) queries: usize,
    /// `[subtile][d_v][lanes]`
    pub(super) outputs: usize,
    /// `[subtile][lanes]` each: sums of weights, factors of scores, of outputs, of monomials, and one past the last key
    /// that a row sees of the chunk
    pub(super) totals: usize,
    pub(super) gains: usize,
    pub(super) out_factors: usize,
    pub(super) decays: usize,
    pub(super) ends: usize,
    /// `[QUERY_TILE][lanes]`
    pub(super) query_tile: usize,
    /// `[chunk][lanes]`
    pub(super) weights: usize,
    /// `[chunk]` u64
    pub(super) visible: usize,
    /// `[chunk + rows]`: powers of the gate by distance, that of row 0 and key 0 at `chunk`
    pub(super) powers: usize,
    /// `[FEW][width]`
    pub(super) few: usize,
    /// The end; `usize::MAX` if it is more than can be counted.
    pub(super) len: usize,
}

impl WorkLayout {
    pub(super) fn new(sizes: &Sizes) -> Self {
        let Sizes { lanes, chunk, d, d_v, .. } = *sizes;
        let mut places = Places(0);
        let rows = ROWS.next_multiple_of(lanes);
        let key_lanes = sizes.key_lanes();
        Self {
            turned: places.take([1, d, key_lanes]),
            key_factors: places.take([1, 1, key_lanes]),
            key_tile: places.take([1, KEY_TILE, key_lanes]),
            queries: places.take([1, d, rows]),
            outputs: places.take([1, d_v, rows]),
            totals: places.take([1, 1, rows]),
            gains: places.take([1, 1, rows]),
            out_factors: places.take([1, 1, rows]),
            decays: places.take([1, 1, rows]),
            ends: places.take([1, 1, rows]),
            query_tile: places.take([1, QUERY_TILE, lanes]),
            weights: places.take([1, chunk, lanes]),
            visible: places.take([1, 2, chunk]),
            powers: places.take([1, 1, chunk + rows]),
            few: places.take([1, FEW, sizes.width()]),
            len: places.0,
        }
    }
}
