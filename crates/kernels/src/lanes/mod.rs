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
//! K and V are broadcast element by element from row-major memory, so they are never packed; statistics are vertical,
//! so there is no horizontal reduction; the score tile stays in the first-level cache, the packed queries and outputs of
//! all sub-tiles and one block of K and V in the second.
//!
//! Each block is summed from zero and then added: over long rows small weights add up among themselves before they meet a
//! large sum. A row's bits depend on its own visible keys, the block size and the level: not on its place in a tile, on the other
//! rows, or on who computes it. Blocks lie on a grid from key 0, and a masked key adds exactly nothing.

mod accumulate;
pub(crate) mod args;
mod block;
mod careful;
mod finish;
mod modify;
mod pack;
mod scores;
pub(crate) mod scratch;
mod segments;

use regard_simd::math::LOG2_E;
use regard_simd::{Op, Simd};

use self::args::Head;
use self::modify::has_terms;
use self::pack::Pack;
use self::scores::{Stream, Streams};
use self::scratch::Layout;
use self::segments::Rows;
pub use self::segments::Segment;

/// One call: `G` vectors of lanes in a sub-tile, `R` keys or columns in a register tile; `R1` where a single vector is
/// left, which has registers for more.
pub(crate) struct Lanes<'a, const G: usize, const R: usize, const R1: usize> {
    pub(crate) head: &'a Head<'a>,
    /// `Layout::len` f32, aligned to 64 bytes.
    pub(crate) scratch: *mut f32,
    pub(crate) layout: Layout,
}

/// The bit of [`Subtile::touched`] that says that outputs were written.
const WRITTEN: u64 = 1;

/// The bit of [`Subtile::touched`] that says that a mask has cut some block.
const MASKED: u64 = 2;

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
    /// What has happened to the outputs: [`WRITTEN`], [`MASKED`].
    touched: *mut u64,
}

/// K and V of one key block, where they lie or copied.
#[derive(Clone, Copy)]
struct KeyBlock {
    first: usize,
    len: usize,
    k: *const f32,
    k_stride: usize,
    v: *const f32,
    v_stride: usize,
}

impl<const G: usize, const R: usize, const R1: usize> Op for Lanes<'_, G, R, R1> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        const { assert!(G * S::LANES <= 64, "a lane is a bit of a u64") };
        let lanes = G * S::LANES;
        let subtiles = self.head.rows.div_ceil(lanes);
        let mut block = self.first_block();
        let mut first = true;
        loop {
            let next = block.and_then(|block| self.next_block(block));
            let loaded = block.map(|block| self.load(block));
            let mut cold = true;
            for t in 0..subtiles {
                let tile = self.subtile::<S>(t);
                let after = |block: Option<KeyBlock>| block.is_none_or(|block| block.first >= self.end_of(tile));
                if first {
                    self.begin(s, tile);
                } else if after(block) {
                    continue;
                }
                let last = after(next);
                if let Some(keys) = loaded {
                    let following = (t + 1 < subtiles).then(|| self.subtile::<S>(t + 1));
                    let streams = if cold {
                        self.block_streams(keys, next)
                    } else {
                        self.row_streams(tile, following, keys, first, last)
                    };
                    cold = false;
                    self.block(s, tile, keys, false, streams);
                }
                if last && !self.finish(s, tile) {
                    self.carefully(s, tile);
                }
            }
            if next.is_none() {
                return;
            }
            (block, first) = (next, false);
        }
    }
}

impl<const G: usize, const R: usize, const R1: usize> Lanes<'_, G, R, R1> {
    /// Segment ends are multiples of this many keys from the block's start, so that register tiles stay whole. Even, as
    /// weightings sum even and odd places apart.
    const GRANULE: usize = if R.is_multiple_of(2) { R } else { 2 * R };

    #[inline(always)]
    fn subtile<S: Simd>(&self, t: usize) -> Subtile {
        let (head, layout) = (self.head, &self.layout);
        let lanes = G * S::LANES;
        let first = t * lanes;
        // SAFETY: the layout has room for every sub-tile.
        unsafe {
            Subtile {
                rows: Rows { first: head.first_row + first, rows: (head.rows - first).min(lanes) },
                queries: self.scratch.add(layout.queries + first * head.d),
                outputs: self.scratch.add(layout.outputs + first * head.d_v),
                state: self.scratch.add(layout.state + first * head.weighting.functions.state),
                gain: self.scratch.add(layout.gain + first),
                shift: self.scratch.add(layout.shift + first),
                out_factor: self.scratch.add(layout.out_factor + first),
                touched: self.scratch.add(layout.touched + 2 * t).cast(),
            }
        }
    }

    /// What the first sub-tile of a block asks for: the keys two register tiles ahead, and the values of its own keys; or,
    /// if blocks are copied, the next one.
    fn block_streams(&self, keys: KeyBlock, next: Option<KeyBlock>) -> Streams {
        let (keys, ahead) = match (self.head.copy, next) {
            (false, _) => (keys, keys.k.wrapping_add((2 * R).wrapping_mul(keys.k_stride))),
            (true, Some(next)) => (next, next.k),
            (true, None) => return Streams::NONE,
        };
        let k = Stream { data: ahead, stride: keys.k_stride, rows: keys.len };
        let v = Stream { data: keys.v, stride: keys.v_stride, rows: keys.len };
        Streams::new([[k, v], [Stream::NONE; 2]])
    }

    /// What the other sub-tiles ask for: keys and values that only the following sub-tile sees, its queries if it is to be
    /// packed next, and, in their own last block, their output rows.
    fn row_streams(
        &self,
        tile: Subtile,
        following: Option<Subtile>,
        keys: KeyBlock,
        first: bool,
        last: bool,
    ) -> Streams {
        let head = self.head;
        let row = |tile: Subtile| tile.rows.first - head.first_row;
        let outputs = Stream {
            data: head.out.wrapping_add(row(tile) * head.out_stride),
            stride: head.out_stride,
            rows: if last { tile.rows.rows } else { 0 },
        };
        let Some(following) = following else { return Streams::new([[outputs; 2], [Stream::NONE; 2]]) };
        let queries = Stream {
            data: head.q.wrapping_add(row(following) * head.q_stride),
            stride: head.q_stride,
            rows: if first { following.rows.rows } else { 0 },
        };
        let seen = |tile: Subtile| self.end_of(tile).clamp(keys.first, keys.first + keys.len) - keys.first;
        let (from, to) = (seen(tile), seen(following));
        let new = |data: *const f32, stride: usize| Stream {
            data: data.wrapping_add(from * stride),
            stride,
            rows: if head.copy { 0 } else { to.saturating_sub(from) },
        };
        Streams::new([[new(keys.k, keys.k_stride), new(keys.v, keys.v_stride)], [queries, outputs]])
    }

    /// The vectors of lanes to compute: one if it holds all rows, else all.
    #[inline(always)]
    fn vectors<S: Simd>(tile: Subtile) -> usize {
        if tile.rows.rows <= S::LANES { 1 } else { G }
    }

    /// One past the last key that a row of the sub-tile sees.
    fn end_of(&self, tile: Subtile) -> usize {
        self.head.band.visible(tile.rows.first + tile.rows.rows - 1, self.head.keys).end
    }

    /// The first block of the grid that some row sees.
    fn first_block(&self) -> Option<KeyBlock> {
        let head = self.head;
        let seen = head.band.visible(head.first_row, head.keys);
        self.block_at(seen.start / head.key_block * head.key_block)
    }

    fn next_block(&self, block: KeyBlock) -> Option<KeyBlock> {
        self.block_at(block.first + self.head.key_block)
    }

    /// The block that starts at `first`; none past the last visible key.
    fn block_at(&self, first: usize) -> Option<KeyBlock> {
        let head = self.head;
        let end = head.band.visible(head.first_row + head.rows - 1, head.keys).end;
        // SAFETY: the keys exist.
        (first < end).then(|| unsafe {
            KeyBlock {
                first,
                len: head.key_block.min(head.keys - first),
                k: head.k.add(first * head.k_stride),
                k_stride: head.k_stride,
                v: head.v.add(first * head.v_stride),
                v_stride: head.v_stride,
            }
        })
    }

    /// The block where it can be read well: copied to scratch if the plan says so.
    fn load(&self, block: KeyBlock) -> KeyBlock {
        let head = self.head;
        if !head.copy {
            return block;
        }
        // SAFETY: the keys of the block exist, and the layout has room for one block of K and of V.
        unsafe {
            let k = self.scratch.add(self.layout.keys);
            let v = self.scratch.add(self.layout.values);
            for key in 0..block.len {
                k.add(key * head.d).copy_from_nonoverlapping(block.k.add(key * block.k_stride), head.d);
                v.add(key * head.d_v).copy_from_nonoverlapping(block.v.add(key * block.v_stride), head.d_v);
            }
            KeyBlock { k, k_stride: head.d, v, v_stride: head.d_v, ..block }
        }
    }

    /// Packs the queries of a sub-tile and sets its rows to what they are before any key.
    #[inline(always)]
    fn begin<S: Simd>(&self, s: S, tile: Subtile) {
        let head = self.head;
        let functions = head.weighting.functions;
        let lanes = G * S::LANES;
        let first = tile.rows.first - head.first_row;
        // Scale and temperature multiply the finished score, not Q: products of integers stay exact, and equal scores
        // stay equal however small the temperature. A negative scale turns the sign, so that the order is right.
        let turned = functions.ordered && head.scale < 0.0 && !has_terms(head);
        // SAFETY: the rows exist, and the arrays have room for a sub-tile.
        unsafe {
            s.vectorize(Pack {
                q: head.q.add(first * head.q_stride),
                q_stride: head.q_stride,
                rows: tile.rows.rows,
                d: head.d,
                packed: tile.queries,
                lanes,
                negate: turned,
            });
            *tile.touched = 0;
            (functions.begin)(head.weighting.data, tile.state, lanes);
            let terms = has_terms(head);
            let mut factors = head.factors(tile.rows.first);
            for lane in 0..lanes {
                // Lanes past the last row repeat it: their results go nowhere.
                if head.rules.vary() && lane < tile.rows.rows {
                    factors = head.factors(tile.rows.first + lane);
                }
                let gain = if terms { 1.0 } else { head.scale } * factors.inverse_temperature;
                // A gain of zero (scale 0, or ln 1) would turn masked scores of -inf into NaN; this one turns any
                // finite score to zero all the same. An infinite one (the smallest temperatures) would do so to the largest.
                let ordered_gain = (gain.abs() * LOG2_E).clamp(f32::MIN_POSITIVE, f32::MAX);
                *tile.gain.add(lane) = if functions.ordered { ordered_gain } else { gain };
                *tile.shift.add(lane) = factors.shift;
                *tile.out_factor.add(lane) = factors.out;
            }
        }
    }
}
