//! The lanes kernel: queries in lanes, K and V read as they lie.
//!
//! One call takes a block of query rows of one head through all keys that they see:
//!
//! ```text
//! pack the queries, one sub-tile of lanes at a time
//! for each key block
//!     for each sub-tile that sees some of it
//!         scores   S^T = K Q^T                  registers: keys x vectors of lanes
//!         modify   soft-cap, bias, mask         only where there is any
//!         weigh    scores to weights, in place  the weighting's own code
//!         add      O^T = alpha O^T + (V^T P)    registers: columns of V x vectors of lanes
//! multiply by the row's factor and turn the output back into rows
//! ```
//!
//! K and V are broadcast element by element from row-major memory, so they are never packed (elements of other types
//! than f32, and blocks that cross pages, are first widened to scratch, block by block); statistics are vertical, so
//! there is no horizontal reduction; the score tile stays in the first-level cache, the packed queries and outputs of
//! all sub-tiles and one block of K and V in the second.
//!
//! Each block is summed from zero and then added: over long rows small weights add up among themselves before they meet
//! a large sum. A row's bits depend on its own visible keys, the block size and the level: not on its place in a tile,
//! on the other rows, or on who computes it. Blocks lie on a grid from key 0, and a masked key adds exactly nothing.

pub(crate) mod accumulate;
pub(crate) mod args;
mod block;
pub(crate) mod careful;
mod finish;
mod load;
mod modify;
pub(crate) mod pack;
mod pairs;
pub(crate) mod prune;
pub(crate) mod scores;
pub(crate) mod scratch;
mod segments;
mod select;
mod select_first;
pub(crate) mod streams;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
pub(crate) mod tiles;

use regard_simd::{Element, Op, Simd, bf16, f16};

use self::args::Head;
use self::load::Place;
use self::pack::{Pack, Places};
use self::pairs::PackPairs;
use self::scratch::Layout;
use self::segments::Rows;
pub use self::segments::Segment;
use self::select_first::BestFirst;
#[cfg(target_arch = "x86_64")]
use self::tiles::PackParts;
use crate::tensor::Dtype;

/// One call: `G` vectors of lanes in a sub-tile, `R` keys or columns in a register tile; `R1` where a single vector is
/// left, which has registers for more. With `PAIRS` the arithmetic is that of [`pairs`], for keys and values of bf16; with `TILES`
/// too, pairs are multiplied on tile registers. With `TILES` alone it is that of [`tiles::parts`], for keys and values of any type.
pub(crate) struct Lanes<
    'a,
    const G: usize,
    const R: usize,
    const R1: usize,
    const PAIRS: bool,
    const TILES: bool = false,
> {
    pub(crate) head: &'a Head<'a>,
    /// `Layout::len` f32, aligned to 64 bytes.
    pub(crate) scratch: *mut f32,
    pub(crate) layout: Layout,
}

/// The bit of [`Subtile::touched`] that says that outputs were written.
const WRITTEN: u64 = 1;

/// The bit of [`Subtile::touched`] that says that a mask has cut some block.
const MASKED: u64 = 2;

/// Parts of an f32, in the arithmetic of [`tiles::parts`].
pub(crate) const MOST_PARTS: usize = 3;

/// The arrays of one sub-tile.
#[derive(Clone, Copy)]
struct Subtile {
    rows: Rows,
    queries: *mut f32,
    outputs: *mut f32,
    state: *mut f32,
    gain: *mut f32,
    shift: *mut f32,
    out_factor: *mut f32,
    /// `[block of the index]`: the lanes that want it.
    wanted: *mut u64,
    /// The same, without blocks that were looked at.
    left: *mut u64,
    /// What has happened to the outputs: [`WRITTEN`], [`MASKED`].
    touched: *mut u64,
    /// The lanes whose results are NaN, in the arithmetic of [`tiles::parts`].
    nan: *mut u64,
}

impl<const G: usize, const R: usize, const R1: usize, const PAIRS: bool, const TILES: bool> Op
    for Lanes<'_, G, R, R1, PAIRS, TILES>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        const { assert!(G * S::LANES <= 64, "a lane is a bit of a u64") };
        #[cfg(target_arch = "x86_64")]
        let _held = TILES.then(tiles::hold);
        let lanes = G * S::LANES;
        let subtiles = self.head.rows.div_ceil(lanes);
        if let Some(prune) = &self.head.prune {
            if let Some(survey) = prune.survey {
                return self.survey(s, survey);
            }
            if self.looks_at_best_first() {
                return s.vectorize(BestFirst(&self));
            }
            for t in 0..subtiles {
                self.begin(s, self.subtile::<S>(t));
                self.bound(s, self.subtile::<S>(t));
            }
        }
        let mut place = self.first_place();
        let mut first = true;
        loop {
            let next = place.and_then(|place| self.next_place(place));
            let block = place.filter(|place| self.is_wanted::<S>(*place)).map(|place| self.load(s, place));
            let mut cold = true;
            for t in 0..subtiles {
                let tile = self.subtile::<S>(t);
                let after = |place: Option<Place>| !place.is_some_and(|place| self.concerns(tile, place));
                if !first && after(place) {
                    continue;
                }
                if first && self.head.prune.is_none() {
                    self.begin(s, tile);
                }
                let last = after(next);
                if let Some(keys) = block.and_then(|keys| self.wanted(tile, keys)) {
                    let following = (t + 1 < subtiles).then(|| self.subtile::<S>(t + 1));
                    let streams = if cold {
                        self.block_streams(keys, next)
                    } else {
                        self.row_streams(tile, following, keys, first, last)
                    };
                    cold = false;
                    self.block(s, tile, keys, false, streams);
                }
                if last {
                    self.finish(s, tile);
                }
            }
            if next.is_none() {
                return;
            }
            (place, first) = (next, false);
        }
    }
}

impl<const G: usize, const R: usize, const R1: usize, const PAIRS: bool, const TILES: bool>
    Lanes<'_, G, R, R1, PAIRS, TILES>
{
    /// Segment ends are multiples of this many keys from the block's start, so that register tiles stay whole. Even, as
    /// weightings sum even and odd places apart.
    const GRANULE: usize = match (TILES, R.is_multiple_of(2)) {
        (true, _) => 32,
        (false, true) => R,
        (false, false) => 2 * R,
    };

    /// Whether the arithmetic is that of [`tiles::parts`].
    const PARTS: bool = TILES && !PAIRS;

    /// f32 of a packed query.
    fn query_words(&self) -> usize {
        if Self::PARTS { MOST_PARTS * self.words() } else { self.words() }
    }

    /// Elements of a packed row of queries, or of a part of it, and of a row of keys.
    fn words(&self) -> usize {
        match (PAIRS, TILES) {
            // Whole tiles, with zeros past the last column.
            (_, true) => self.head.d.next_multiple_of(Self::GRANULE) / 2,
            (true, false) => self.head.d.div_ceil(2),
            (false, false) => self.head.d,
        }
    }

    #[inline(always)]
    fn subtile<S: Simd>(&self, t: usize) -> Subtile {
        let lanes = G * S::LANES;
        self.subtile_of::<S>(t, (self.head.rows - t * lanes).min(lanes))
    }

    /// The arrays of sub-tile `t`, of so many rows.
    #[inline(always)]
    fn subtile_of<S: Simd>(&self, t: usize, rows: usize) -> Subtile {
        let (head, layout) = (self.head, &self.layout);
        let lanes = G * S::LANES;
        let first = t * lanes;
        // SAFETY: the layout has room for every sub-tile.
        unsafe {
            Subtile {
                rows: Rows { first: head.first_row + first, rows },
                queries: self.scratch.add(layout.queries + first * self.query_words()),
                outputs: self.scratch.add(layout.outputs + first * head.d_v),
                state: self.scratch.add(layout.state + first * head.weighting.functions.state),
                gain: self.scratch.add(layout.gain + first),
                shift: self.scratch.add(layout.shift + first),
                out_factor: self.scratch.add(layout.out_factor + first),
                wanted: self.scratch.add(layout.wanted + 2 * t * layout.index_blocks).cast(),
                left: self.scratch.add(layout.left + 2 * t * layout.index_blocks).cast(),
                touched: self.scratch.add(layout.touched + 2 * t).cast(),
                nan: self.scratch.add(layout.nan + 2 * t).cast(),
            }
        }
    }

    /// The vectors of lanes to compute: one if it holds all rows, else all.
    #[inline(always)]
    fn vectors<S: Simd>(tile: Subtile) -> usize {
        if tile.rows.rows <= S::LANES { 1 } else { G }
    }

    /// Packs the queries of a sub-tile and sets its rows to what they are before any key.
    #[inline(always)]
    fn begin<S: Simd>(&self, s: S, tile: Subtile) {
        let head = self.head;
        let functions = head.weighting.functions;
        let lanes = G * S::LANES;
        self.pack(s, tile, head.places(tile));
        // SAFETY: the rows exist, and the arrays have room for a sub-tile.
        unsafe {
            *tile.touched = 0;
            (functions.begin)(head.weighting.data, tile.state, lanes);
            let row = |lane: usize| head.first_row.wrapping_add(head.place(tile.rows.first - head.first_row + lane));
            let mut factors = head.factors(row(0));
            for lane in 0..lanes {
                // Lanes past the last row repeat it: their results go nowhere.
                if head.rows_vary() && lane < tile.rows.rows {
                    factors = head.factors(row(lane));
                }
                *tile.gain.add(lane) = head.gain(&factors);
                *tile.shift.add(lane) = factors.shift;
                *tile.out_factor.add(lane) = factors.out;
            }
        }
    }

    /// Whether queries are packed with their signs turned.
    ///
    /// Scale and temperature multiply the finished score, not Q: products of integers stay exact, and equal scores stay
    /// equal however small the temperature. A negative scale turns the sign, so that the order is right.
    fn turned(&self) -> bool {
        let head = self.head;
        head.weighting.functions.ordered && head.scale < 0.0 && !head.has_terms()
    }

    /// Packs the queries of a sub-tile, which lie at these places.
    #[inline(always)]
    fn pack<S: Simd>(&self, s: S, tile: Subtile, places: Places<'_>) {
        match self.head.q_dtype {
            _ if PAIRS => self.pack_pairs(s, tile),
            #[cfg(target_arch = "x86_64")]
            _ if TILES => self.pack_parts(s, tile),
            Dtype::F32 => self.pack_from::<S, f32>(s, tile, places),
            Dtype::F16 => self.pack_from::<S, f16>(s, tile, places),
            Dtype::Bf16 => self.pack_from::<S, bf16>(s, tile, places),
            Dtype::Int8 => unreachable!("no queries are quantised"),
        }
    }

    #[inline(always)]
    fn pack_from<S: Simd, E: Element>(&self, s: S, tile: Subtile, places: Places<'_>) {
        let head = self.head;
        s.vectorize(Pack::<E> {
            q: head.q.cast::<E>(),
            q_stride: head.q_stride,
            places,
            rows: tile.rows.rows,
            d: head.d,
            packed: tile.queries,
            lanes: G * S::LANES,
            negate: self.turned(),
        });
    }

    /// Packs the parts of the queries of a sub-tile.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn pack_parts<S: Simd>(&self, s: S, tile: Subtile) {
        let head = self.head;
        let row_bytes = head.q_stride * head.q_dtype.bytes();
        s.vectorize(PackParts {
            q: head.q.wrapping_add((tile.rows.first - head.first_row) * row_bytes),
            dtype: head.q_dtype,
            row_bytes,
            rows: tile.rows.rows,
            d: head.d,
            words: self.words(),
            packed: tile.queries,
            lanes: G * S::LANES,
            negate: self.turned(),
        });
    }

    /// Packs the queries of a sub-tile as pairs.
    #[inline(always)]
    fn pack_pairs<S: Simd>(&self, s: S, tile: Subtile) {
        let head = self.head;
        let row_bytes = head.q_stride * head.q_dtype.bytes();
        s.vectorize(PackPairs {
            q: head.q.wrapping_add((tile.rows.first - head.first_row) * row_bytes),
            dtype: head.q_dtype,
            row_bytes,
            rows: tile.rows.rows,
            d: head.d,
            words: self.words(),
            packed: tile.queries,
            lanes: G * S::LANES,
            negate: self.turned(),
        });
    }
}
