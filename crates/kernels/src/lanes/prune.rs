//! Which key blocks a sub-tile can do without: those whose scores a bound keeps out of the result of every row.
//!
//! Each row decides by itself, from its query and the keys that it sees. Selections skip a block that no lane wants, as
//! what a lane does not want cannot be selected (`select_first` says in which order they look); sums of weights hide it
//! from the lanes that do not want it too, so that a row's bits do not depend on the other rows of its sub-tile.

use regard_simd::{Op, Simd};

use super::load::{KeyBlock, Place};
use super::scores::Scores;
use super::segments::{Rows, Segment, lanes_of};
use super::streams::Streams;
use super::{Lanes, Subtile};
use crate::index::{HeadIndex, INDEX_BLOCK, query_norm};
use crate::mask::Band;
use crate::weighting::Kind;

/// How a call leaves out keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prune<'a> {
    pub(crate) index: HeadIndex<'a>,
    /// How far below the largest score of its row a score must be to be left out, in units of log2 of weights; 0 for selections.
    pub(crate) margin: f32,
    /// Where the call says what it would do, if it is to do nothing else.
    pub(crate) survey: Option<Survey>,
}

/// What queries and blocks have to do with each other.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Survey {
    /// How many pairs of row and block are wanted, added to.
    Wanted(*mut u32),
    /// The block that promises most, for each row of the call; 0 if none does.
    Best(*mut u32),
}

impl<const G: usize, const R: usize, const R1: usize, const PAIRS: bool, const TILES: bool>
    Lanes<'_, G, R, R1, PAIRS, TILES>
{
    /// Says what the rows of a call would want.
    #[inline(always)]
    pub(super) fn survey<S: Simd>(&self, s: S, survey: Survey) {
        for t in 0..self.head.rows.div_ceil(G * S::LANES) {
            let tile = self.subtile::<S>(t);
            self.begin(s, tile);
            // SAFETY: `Best` has the rows of the call, and `Wanted` is there.
            unsafe {
                match survey {
                    Survey::Wanted(wanted) => *wanted += self.sample(s, tile),
                    Survey::Best(best) => {
                        let mut largest = Largest::NONE;
                        self.centres(s, tile);
                        self.compare(s, tile, &mut largest, Compare::Lower);
                        for lane in 0..tile.rows.rows {
                            let block = largest.block(lane).unwrap_or(0);
                            *best.add(tile.rows.first - self.head.first_row + lane) = block as u32;
                        }
                    }
                }
            }
        }
    }

    /// How many pairs of row and block a sub-tile would want.
    #[inline(always)]
    fn sample<S: Simd>(&self, s: S, tile: Subtile) -> u32 {
        let (rows, blocks) = (tile.rows.rows, self.index_blocks());
        let mut largest = Largest::NONE;
        self.centres(s, tile);
        self.compare(s, tile, &mut largest, Compare::Both);
        let count = |lanes: u64| -> u32 {
            // SAFETY: there is a word for each block.
            (0..blocks).map(|block| unsafe { (*tile.wanted.add(block) & lanes).count_ones() }).sum()
        };
        let wanted = count(u64::MAX);
        let pairs = rows as f64 * blocks as f64;
        let undecided = f64::from(wanted) > SURE * pairs && f64::from(wanted) < HOPELESS * pairs;
        if self.head.weighting.functions.kind == Kind::Weighted || !undecided {
            return wanted;
        }
        // Selections will know the scores of each row's best block. Of a few rows it is cheap to know now.
        let lanes = [0, rows / 2];
        let lanes = lanes.iter().fold(0_u64, |lanes, lane| lanes | 1 << lane);
        self.sharpen(s, tile, &mut largest, lanes);
        self.compare(s, tile, &mut largest, Compare::Upper);
        (f64::from(count(lanes)) / f64::from(lanes.count_ones()) * rows as f64) as u32
    }

    pub(super) fn index_blocks(&self) -> usize {
        self.head.prune.map_or(0, |prune| prune.index.upper.len())
    }

    /// Finds out which lanes of a sub-tile want which blocks. Its queries are packed and its rows begun.
    #[inline(always)]
    pub(super) fn bound<S: Simd>(&self, s: S, tile: Subtile) {
        if self.head.prune.is_none() {
            return;
        }
        let mut largest = Largest::NONE;
        self.centres(s, tile);
        self.compare(s, tile, &mut largest, Compare::Both);
        // Rows that are not sorted have each a best block of its own: too many to look at. Of sorted ones each decides by
        // itself, whatever the others of its sub-tile do.
        if self.head.order.is_none() {
            return;
        }
        let few = REFINE_BELOW * self.index_blocks() as f32;
        let lanes = (0..tile.rows.rows).filter(|lane| (REFINE_FROM..few).contains(&largest.wanted[*lane]));
        let lanes = lanes.fold(0, |lanes, lane| lanes | 1 << lane);
        if lanes != 0 {
            self.sharpen(s, tile, &mut largest, lanes);
            self.compare(s, tile, &mut largest, Compare::Upper);
        }
    }

    /// The scores of the centres of all blocks.
    #[inline(always)]
    pub(super) fn centres<S: Simd>(&self, s: S, tile: Subtile) {
        let head = self.head;
        let Some(prune) = &head.prune else { return };
        let index = prune.index;
        macro_rules! centres {
            ($vectors:expr, $keys:expr) => {
                s.vectorize(Scores::<{ $vectors }, { $keys }, false, false, PAIRS> {
                    q: tile.queries,
                    k: index.centres.as_ptr(),
                    k_stride: head.d,
                    scores: self.scratch.wrapping_add(self.layout.bounds),
                    max: std::ptr::null_mut(),
                    lanes: G * S::LANES,
                    keys: index.upper.len(),
                    full: index.upper.len(),
                    d: head.d,
                    streams: Streams::NONE,
                })
            };
        }
        if Self::vectors::<S>(tile) == G {
            centres!(G, R);
        } else {
            centres!(1, R1);
        }
    }

    /// Bounds from the scores of the centres.
    #[inline(always)]
    pub(super) fn compare<S: Simd>(&self, s: S, tile: Subtile, largest: &mut Largest, compare: Compare) {
        let head = self.head;
        let Some(prune) = &head.prune else { return };
        s.vectorize(Bound {
            prune,
            queries: tile.queries,
            d: head.d,
            rows: tile.rows,
            vectors: Self::vectors::<S>(tile),
            band: head.band,
            keys: head.keys,
            gain: tile.gain,
            scores: self.scratch.wrapping_add(self.layout.bounds),
            lanes: G * S::LANES,
            wanted: tile.wanted,
            largest,
            compare,
        });
    }

    /// Real scores in place of those of centres for some lanes: each takes the largest of the block whose centre is best.
    #[inline(always)]
    fn sharpen<S: Simd>(&self, s: S, tile: Subtile, largest: &mut Largest, lanes: u64) {
        let head = self.head;
        let Some(prune) = &head.prune else { return };
        let mut left = lanes;
        while left != 0 {
            let block = largest.block(left.trailing_zeros() as usize);
            let same = (0..tile.rows.rows).filter(|lane| left >> lane & 1 == 1 && largest.block(*lane) == block);
            let same = same.fold(0_u64, |same, lane| same | 1 << lane);
            left &= !same;
            let Some(block) = block else { continue };
            let first = block * INDEX_BLOCK;
            let len = INDEX_BLOCK.min(prune.index.keys - first).min(head.key_block);
            let keys = self.load_keys(s, Place { first, len });
            // SAFETY: the layout has room for the arrays.
            let (_, max, _, _) = unsafe { self.block_arrays() };
            for g in 0..G {
                // SAFETY: `max` has `lanes` elements.
                unsafe { s.store(max.add(g * S::LANES), s.splat(f32::NEG_INFINITY)) };
            }
            self.score_product(s, tile, keys, Segment { key: 0, keys: len, masked: false }, true, Streams::NONE);
            for lane in (0..tile.rows.rows).filter(|lane| same >> lane & 1 == 1) {
                // SAFETY: as above. A lane sees all keys of its best block.
                let score = unsafe { *max.add(lane) };
                if score > largest.scores[lane] {
                    largest.scores[lane] = score;
                }
            }
        }
    }

    /// The keys of a block from the first that a lane of the sub-tile wants to the last; none if there are none.
    #[inline(always)]
    pub(super) fn wanted(&self, tile: Subtile, keys: KeyBlock) -> Option<KeyBlock> {
        if self.head.prune.is_none() {
            return Some(keys);
        }
        let (from, to) = self.wanted_keys(tile, Place { first: keys.first, len: keys.len })?;
        Some(keys.part(from, to))
    }

    /// Whether a sub-tile of the call wants some key of a block.
    pub(super) fn is_wanted<S: Simd>(&self, place: Place) -> bool {
        let subtiles = self.head.rows.div_ceil(G * S::LANES);
        self.head.prune.is_none() || (0..subtiles).any(|t| self.wanted_keys(self.subtile::<S>(t), place).is_some())
    }

    fn wanted_keys(&self, tile: Subtile, place: Place) -> Option<(usize, usize)> {
        let Place { first, len } = place;
        // SAFETY: the index has the blocks of all keys.
        let wanted = |block: &usize| unsafe { *tile.wanted.add(*block) } != 0;
        let mut blocks = first / INDEX_BLOCK..(first + len).div_ceil(INDEX_BLOCK);
        let start = blocks.clone().find(wanted)?;
        let last = blocks.rfind(wanted)?;
        Some((first.max(start * INDEX_BLOCK), (first + len).min((last + 1) * INDEX_BLOCK)))
    }

    /// Whether some row does not want some of the keys that the sub-tile has to look at, in a sum of weights.
    pub(super) fn hides(&self, tile: Subtile, keys: KeyBlock) -> bool {
        if self.head.prune.is_none() || self.head.weighting.functions.kind != Kind::Weighted {
            return false;
        }
        let rows = Rows { first: 0, ..tile.rows };
        let all = lanes_of(Band::FULL, 0, rows);
        let blocks = keys.first / INDEX_BLOCK..(keys.first + keys.len).div_ceil(INDEX_BLOCK);
        // SAFETY: the index has the blocks of all keys.
        blocks.into_iter().any(|block| unsafe { *tile.wanted.add(block) } != all)
    }

    /// Takes what lanes do not want from what they see.
    ///
    /// # Safety
    /// `visible` has a word for each of `keys` keys from `first` on.
    pub(super) unsafe fn hide(&self, tile: Subtile, first: usize, keys: usize, visible: *mut u64) {
        for key in 0..keys {
            // SAFETY: the caller's contract; the index has the blocks of all keys.
            unsafe { *visible.add(key) &= *tile.wanted.add((first + key) / INDEX_BLOCK) };
        }
    }
}

/// Blocks that a row wants from which on better bounds are worth the scores of a block, and the part of all blocks below which
/// they are: beyond it they would not help.
const REFINE_FROM: f32 = 2.0;
const REFINE_BELOW: f32 = 0.75;

/// Where the part of all pairs that is wanted lies in between, a sample is looked at again with real scores.
const SURE: f64 = 0.25;
const HOPELESS: f64 = 0.98;

/// What is known of the largest score of each lane.
pub(super) struct Largest {
    /// It does not fall below this.
    pub(super) scores: [f32; 64],
    /// The block whose centre says so, all of which the lane sees: the bits of a `u32`, [`Largest::NO_BLOCK`] for none.
    blocks: [f32; 64],
    /// An upper bound of the norm of the query; infinite if there are no bounds for it.
    pub(super) norms: [f32; 64],
    /// How many blocks the lane wants.
    wanted: [f32; 64],
}

impl Largest {
    const NO_BLOCK: u32 = u32::MAX;

    pub(super) const NONE: Self = Self {
        scores: [f32::NEG_INFINITY; 64],
        blocks: [f32::from_bits(Self::NO_BLOCK); 64],
        norms: [f32::INFINITY; 64],
        wanted: [0.0; 64],
    };

    /// The block that promises most to a lane.
    pub(super) fn block(&self, lane: usize) -> Option<usize> {
        let block = self.blocks[lane].to_bits();
        (block != Self::NO_BLOCK).then_some(block as usize)
    }
}

/// Which bounds to make.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Compare {
    /// Lower ones, of the largest score.
    Lower,
    /// Upper ones, and what they say where lower ones are known.
    Upper,
    Both,
}

/// For each block of an index, the lanes that want it.
struct Bound<'a> {
    prune: &'a Prune<'a>,
    /// `[d][lanes]`
    queries: *const f32,
    d: usize,
    rows: Rows,
    /// Vectors of lanes.
    vectors: usize,
    band: Band,
    /// Valid keys of the sequence.
    keys: usize,
    /// `[lanes]`
    gain: *const f32,
    /// `[block][lanes]`: the scores of the centres.
    scores: *const f32,
    lanes: usize,
    /// `[block]`, written.
    wanted: *mut u64,
    largest: &'a mut Largest,
    compare: Compare,
}

impl Op for Bound<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let blocks = self.prune.index.upper.len();
        // SAFETY: `wanted` has a word for each block.
        unsafe { self.wanted.write_bytes(0, blocks) };
        for vector in 0..self.vectors {
            let at = vector * S::LANES;
            // SAFETY: all lanes of a sub-tile are at most 64.
            unsafe {
                if self.compare != Compare::Upper {
                    let norms = self.norms(s, vector);
                    s.store(self.largest.norms.as_mut_ptr().add(at), norms);
                    let (scores, blocks) = self.largest(s, vector, norms);
                    s.store(self.largest.scores.as_mut_ptr().add(at), scores);
                    s.store(self.largest.blocks.as_mut_ptr().add(at), blocks);
                }
                if self.compare != Compare::Lower {
                    let norms = s.load(self.largest.norms.as_ptr().add(at));
                    let largest = s.load(self.largest.scores.as_ptr().add(at));
                    let wanted = self.wanted(s, vector, norms, largest);
                    s.store(self.largest.wanted.as_mut_ptr().add(at), wanted);
                }
            }
        }
    }
}

impl Bound<'_> {
    /// Upper bounds of the norms of queries.
    #[inline(always)]
    fn norms<S: Simd>(&self, s: S, vector: usize) -> S::F32 {
        let mut norms = [0.0; 16];
        // Several chains: one would wait for each of its links.
        let mut sums = [s.zero(); 4];
        // SAFETY: there are `d` rows of `lanes`, and a vector has at most 16 lanes.
        unsafe {
            let queries = self.queries.add(vector * S::LANES);
            let whole = self.d / 4 * 4;
            for c in (0..whole).step_by(4) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    let q = s.load(queries.add((c + i) * self.lanes));
                    *sum = s.mul_add(q, q, *sum);
                }
            }
            for c in whole..self.d {
                let q = s.load(queries.add(c * self.lanes));
                sums[0] = s.mul_add(q, q, sums[0]);
            }
            let sum = s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]));
            s.store(norms.as_mut_ptr(), sum);
            for norm in &mut norms[..S::LANES] {
                *norm = query_norm(*norm, self.d, self.prune.index.largest);
            }
            s.load(norms.as_ptr())
        }
    }

    /// Lower bounds of the largest score that each lane sees, and the blocks that they come from.
    #[inline(always)]
    fn largest<S: Simd>(&self, s: S, vector: usize, norms: S::F32) -> (S::F32, S::F32) {
        let index = &self.prune.index;
        let lowest = s.splat(f32::NEG_INFINITY);
        let norms = s.sub(s.zero(), norms);
        let mut largest = lowest;
        let mut blocks = s.splat(f32::from_bits(Largest::NO_BLOCK));
        for block in 0..index.lower.len() {
            let first = block * INDEX_BLOCK;
            let last = (first + INDEX_BLOCK).min(index.keys) - 1;
            if last >= self.keys {
                break;
            }
            // SAFETY: there is a vector for each block.
            let score = unsafe { s.load(self.scores.add(block * self.lanes + vector * S::LANES)) };
            let mut low = s.mul_add(norms, s.splat(index.lower[block]), score);
            if self.band != Band::FULL {
                // A mean says something of keys that are seen only.
                let seen = lanes_of(self.band, first, self.rows) & lanes_of(self.band, last, self.rows);
                low = s.select(s.mask_from_bits(seen >> (vector * S::LANES)), low, lowest);
            }
            let higher = s.gt(low, largest);
            largest = s.select(higher, low, largest);
            blocks = s.select(higher, s.splat(f32::from_bits(block as u32)), blocks);
        }
        (s.sub(largest, s.splat(f32::MIN_POSITIVE)), blocks)
    }

    /// Compares the upper bound of each block with the largest scores, and counts what each lane wants. Where there is NaN, the
    /// block is wanted.
    #[inline(always)]
    fn wanted<S: Simd>(&self, s: S, vector: usize, norms: S::F32, largest: S::F32) -> S::F32 {
        let index = &self.prune.index;
        let margin = s.splat(self.prune.margin);
        // SAFETY: the gain has a vector for each of the tile's.
        let gain = unsafe { s.load(self.gain.add(vector * S::LANES)) };
        let rows = Rows { first: 0, ..self.rows };
        let valid = lanes_of(Band::FULL, 0, rows) >> (vector * S::LANES);
        let weighs = self.prune.margin > 0.0;
        let mut count = s.zero();
        for block in 0..index.upper.len() {
            // SAFETY: there is a vector and a word for each block.
            unsafe {
                let score = s.load(self.scores.add(block * self.lanes + vector * S::LANES));
                let high = s.mul_add(norms, s.splat(index.upper[block]), score);
                let below = s.sub(largest, s.add(high, s.splat(f32::MIN_POSITIVE)));
                let below = if weighs { s.mul(below, gain) } else { below };
                let out = s.gt(below, margin);
                count = s.add(count, s.select(out, s.zero(), s.splat(1.0)));
                let lanes = !s.mask_to_bits(out) & valid & s.mask_to_bits(s.mask_from_bits(u64::MAX));
                *self.wanted.add(block) |= lanes << (vector * S::LANES);
            }
        }
        count
    }
}
