//! The products of what [`split`](super::split) lays out.

use std::ops::Range;

use regard_simd::{Op, Simd};

use super::parts::{Factor, multiply, parts_of, path};
use super::split::{PartWeights, value_tile};
use super::{F32, GRAIN, Products, SIDE, TILE, take_max, token};
use crate::lanes::MOST_PARTS;
use crate::lanes::pack::Square;
use crate::lanes::segments::Segment;
use crate::tensor::Dtype;

/// What [`super::super::scores::Scores`] does. A score is a chain of products of 32 columns and two parts each, wherever the key stands.
pub(in crate::lanes) struct PartScores {
    /// As [`super::PackParts`] lays them out.
    pub(in crate::lanes) q: *const f32,
    pub(in crate::lanes) q_dtype: Dtype,
    /// As [`super::PartKeys`] lays them out.
    pub(in crate::lanes) k: *const f32,
    pub(in crate::lanes) k_dtype: Dtype,
    /// Where scores go, `[key][lanes]`, with room for whole tiles.
    pub(in crate::lanes) scores: *mut f32,
    /// Running maximum per lane, updated; null for none. NaN scores are passed over.
    pub(in crate::lanes) max: *mut f32,
    pub(in crate::lanes) lanes: usize,
    pub(in crate::lanes) keys: usize,
    /// Pairs of a row.
    pub(in crate::lanes) words: usize,
    /// Vectors of lanes, one or two.
    pub(in crate::lanes) vectors: usize,
}

impl Op for PartScores {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let parts = [parts_of(self.k_dtype), parts_of(self.q_dtype)];
        let mut done = 0;
        for key in (0..self.keys).step_by(2 * SIDE) {
            let keys = self.keys - key;
            let products = Products::of(keys, self.vectors * SIDE);
            let scores = self.scores.wrapping_add(key * self.lanes);
            let of_16_keys = self.words * MOST_PARTS * SIDE;
            let k = self.k.wrapping_add(key / SIDE * of_16_keys);
            // SAFETY: keys and queries are whole tiles, and there is room for the scores of such. The kernel holds the registers.
            unsafe {
                products.begin();
                for word in (0..self.words).step_by(SIDE) {
                    let k = k.add(word * MOST_PARTS * SIDE);
                    let left = Factor { tiles: [k, k.wrapping_add(of_16_keys)], stride: SIDE, part: TILE };
                    let q = self.q.add(word * self.lanes);
                    let part = self.words * self.lanes;
                    let right = Factor { tiles: [q, q.wrapping_add(SIDE)], stride: self.lanes, part };
                    multiply(products, parts, left, right);
                    // While the products of these keys are on their way.
                    self.take_max(done..key);
                    done = key;
                }
                products.store(scores, self.lanes);
            }
        }
        // SAFETY: these are all keys.
        unsafe { self.take_max(done..self.keys) };
    }
}

impl PartScores {
    /// Takes the scores of some keys into the maximum, if there is one.
    ///
    /// # Safety
    /// They are there.
    #[inline(always)]
    unsafe fn take_max(&self, keys: Range<usize>) {
        if !self.max.is_null() && !keys.is_empty() {
            let scores = self.scores.wrapping_add(keys.start * self.lanes);
            // SAFETY: the caller's contract, and there is a maximum for each lane.
            unsafe { take_max(scores, keys.len(), self.max, self.lanes, self.vectors) };
        }
    }
}

/// What [`super::super::accumulate::Accumulate`] does. A sum is a chain of products of 32 keys and two parts each, from the start of the
/// block on.
pub(in crate::lanes) struct PartAccumulate {
    pub(in crate::lanes) weights: PartWeights,
    /// As [`super::PartValues`] lays them out.
    pub(in crate::lanes) v: *const f32,
    pub(in crate::lanes) v_dtype: Dtype,
    /// `[d_v][lanes]`
    pub(in crate::lanes) out: *mut f32,
    /// Factor per lane; null for 1.
    pub(in crate::lanes) alpha: *const f32,
    /// Whether `out` holds nothing yet.
    pub(in crate::lanes) fresh: bool,
    pub(in crate::lanes) lanes: usize,
    /// Chunks of 32 keys of the block.
    pub(in crate::lanes) chunks: Range<usize>,
    pub(in crate::lanes) d_v: usize,
    /// Vectors of lanes, one or two.
    pub(in crate::lanes) vectors: usize,
}

impl Op for PartAccumulate {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let tiles = self.d_v.div_ceil(SIDE);
        let parts = [parts_of(self.v_dtype), MOST_PARTS];
        // `[32 columns][32 lanes]` of two tiles in turn: one is added to the outputs while products of the other are on their way.
        let mut sums = [const { [Square::ZERO, Square::ZERO, Square::ZERO, Square::ZERO] }; 2];
        let mut sums = [sums[0].as_mut_ptr().cast::<f32>(), sums[1].as_mut_ptr().cast::<f32>()];
        self.weights.split(self.chunks.start);
        for tile in (0..tiles).step_by(2) {
            let products = Products::of(self.d_v - tile * SIDE, self.vectors * SIDE);
            // SAFETY: the chunks are of the block, and the sums of 32 columns and 32 lanes have room. The kernel holds the registers.
            unsafe {
                products.begin();
                for chunk in self.chunks.clone() {
                    let v = self.v.add(value_tile(chunk, tile, self.d_v));
                    let weights = self.weights.to.add(chunk * SIDE * self.lanes).cast_const();
                    let left = Factor { tiles: [v, v.wrapping_add(MOST_PARTS * TILE)], stride: SIDE, part: TILE };
                    let tiles = [weights, weights.wrapping_add(SIDE)];
                    let right = Factor { tiles, stride: self.lanes, part: self.weights.part };
                    multiply(products, parts, left, right);
                    if tile == 0 && chunk + 1 < self.chunks.end {
                        self.weights.split(chunk + 1);
                    }
                    if tile > 0 && chunk == self.chunks.start {
                        self.add(sums[1], (tile - 2) * SIDE);
                    }
                }
                products.store(sums[0], 2 * SIDE);
            }
            sums.swap(0, 1);
        }
        self.add(sums[1], (tiles - 1) / 2 * 2 * SIDE);
    }
}

impl PartAccumulate {
    /// Adds the sums of up to 32 columns from `column` on, `[column][32 lanes]`, to the outputs times alpha.
    #[inline(always)]
    fn add(&self, sums: *const f32, column: usize) {
        let s = token();
        for at in (0..self.vectors * SIDE).step_by(SIDE) {
            for c in 0..(self.d_v - column).min(2 * SIDE) {
                // SAFETY: there is a sum for each column and lane.
                unsafe { self.add_to(column + c, at, s.load(sums.add(c * 2 * SIDE + at))) };
            }
        }
    }

    /// Adds to the outputs of column `c` and the lanes from `at` on, times alpha.
    ///
    /// # Safety
    /// There are such columns and lanes.
    #[inline(always)]
    unsafe fn add_to(&self, c: usize, at: usize, sum: F32) {
        let s = token();
        // SAFETY: `out` has `d_v` rows of `lanes`, `alpha` has `lanes`.
        unsafe {
            let alpha = if self.alpha.is_null() { s.splat(1.0) } else { s.load(self.alpha.add(at)) };
            let out = self.out.add(c * self.lanes + at);
            s.store(out, if self.fresh { sum } else { s.mul_add(s.load(out), alpha, sum) });
        }
    }
}

/// What [`super::super::careful::AccumulateSeen`] does, with the sums of [`PartAccumulate`]: in each product of parts of a chunk one chain for
/// the first and one for the second halves of pairs, without the links of keys that a lane does not see.
pub(in crate::lanes) struct PartAccumulateSeen<'a> {
    pub(in crate::lanes) all: PartAccumulate,
    pub(in crate::lanes) segments: &'a [Segment],
    /// `[key]` of the block, for masked segments
    pub(in crate::lanes) visible: *const u64,
}

impl Op for PartAccumulateSeen<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let (s, all) = (token(), &self.all);
        for chunk in all.chunks.clone() {
            all.weights.split(chunk);
        }
        for at in (0..all.vectors * SIDE).step_by(SIDE) {
            for c in 0..all.d_v {
                let mut sum = s.zero();
                for segment in self.segments {
                    for first in (segment.key..segment.key + segment.keys).step_by(GRAIN) {
                        let end = (first + GRAIN).min(segment.key + segment.keys);
                        for parts in path([parts_of(all.v_dtype), MOST_PARTS]) {
                            sum = s.add(sum, self.chunk(segment.masked, first..end, parts, c, at));
                        }
                    }
                }
                // SAFETY: the column and the lanes exist.
                unsafe { all.add_to(c, at, sum) };
            }
        }
    }
}

impl PartAccumulateSeen<'_> {
    /// The products of two parts over the keys of a chunk, for column `c` and the lanes from `at` on.
    #[inline(always)]
    fn chunk(&self, masked: bool, keys: Range<usize>, [i, j]: [usize; 2], c: usize, at: usize) -> F32 {
        let (s, all) = (token(), &self.all);
        let (mut low, mut high) = (s.zero(), s.zero());
        // SAFETY: the keys are of the block, the lanes of the sub-tile.
        unsafe {
            let tile = value_tile(keys.start / GRAIN, c / SIDE, all.d_v) + i * TILE;
            let v = all.v.add(tile + c % SIDE * SIDE);
            for pair in 0..SIDE {
                let weight =
                    s.load(all.weights.to.add(j * all.weights.part + (keys.start / 2 + pair) * all.lanes + at));
                let value = s.splat(*v.add(pair));
                let sees = |key: usize| {
                    let all = u64::MAX;
                    let bits = if masked && key < keys.end { *self.visible.add(key) >> at } else { all };
                    s.mask_from_bits(if key < keys.end { bits } else { 0 })
                };
                let [first, second] = [keys.start + pair, keys.start + SIDE + pair];
                low = s.select(sees(first), s.mul_add(s.low_bf16(weight), s.low_bf16(value), low), low);
                high = s.select(sees(second), s.mul_add(s.high_bf16(weight), s.high_bf16(value), high), high);
            }
        }
        s.add(low, high)
    }
}
