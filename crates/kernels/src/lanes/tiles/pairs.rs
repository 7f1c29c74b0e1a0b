//! Both products for pairs of bf16.
//!
//! | | left factor | right factor | sum |
//! |---|---|---|---|
//! | scores | 16 keys, 32 columns of each, as they lie in memory | as many columns of 16 queries, in pairs | `[key][lane]` |
//! | values | 16 columns of 32 keys, in pairs | the weights of 16 queries, in pairs of keys | `[column][lane]` |
//!
//! Queries and weights in [pairs](super::super::pairs) are right factors as they are, and sums lie as weightings and outputs want them. Only
//! values are laid out anew, once for all sub-tiles.

use std::ops::Range;

use regard_simd::{Avx512Amx, Op, Simd, bf16};

use super::{GRAIN, Products, SIDE, TILE, take_max, token};
use crate::lanes::pack::Square;
use crate::lanes::segments::Segment;
use crate::source::Source;

/// What [`super::super::scores::Scores`] does for pairs of bf16. A score is a chain of products of 32 columns each, wherever the key stands.
///
/// On a Xeon, 2048 x 2048, d 128, four products take 60 to 80 ns here where the instruction takes 22: factors come from the second-level
/// cache, and sums are stored. To take the maximum a step later, while the next products are on their way, gained nothing, as did
/// adding up values a step later; blocks of 96 to 384 keys and of 256 or 512 queries are within a tenth (0.17 to 0.20 of the peak).
pub(in crate::lanes) struct TileScores {
    /// Packed queries `[d / 2][lanes]`; `d / 2` is a multiple of 16.
    pub(in crate::lanes) q: *const f32,
    /// Row-major keys, in pairs.
    pub(in crate::lanes) k: *const f32,
    /// Pairs from one key to the next.
    pub(in crate::lanes) k_stride: usize,
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

impl Op for TileScores {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for key in (0..self.keys).step_by(2 * SIDE) {
            match Products::of(self.keys - key, self.vectors * SIDE) {
                Products { s, two: [true, true] } => self.pair(Products { s, two: [true; 2] }, key),
                products => self.pair(products, key),
            }
        }
    }
}

impl TileScores {
    /// Up to 32 keys from `key` on.
    #[inline(always)]
    fn pair(&self, products: Products, key: usize) {
        let keys = self.keys - key;
        let scores = self.scores.wrapping_add(key * self.lanes);
        // SAFETY: the keys exist, there is room for the scores of whole tiles, and a maximum for each lane. The kernel holds the
        // registers.
        unsafe {
            products.begin();
            if keys >= 2 * SIDE {
                self.whole(products, key);
            } else {
                self.part(products, key, keys);
            }
            products.store(scores, self.lanes);
            if !self.max.is_null() {
                take_max(scores, keys.min(2 * SIDE), self.max, self.lanes, self.vectors);
            }
        }
    }

    /// Queries from pair `word` on.
    #[inline(always)]
    fn right(&self, word: usize) -> [*const f32; 2] {
        let q = self.q.wrapping_add(word * self.lanes);
        [q, q.wrapping_add(SIDE)]
    }

    /// 32 keys from `key` on.
    ///
    /// # Safety
    /// They exist, and the thread holds the registers.
    #[inline(always)]
    unsafe fn whole(&self, products: Products, key: usize) {
        let k = self.k.wrapping_add(key * self.k_stride);
        let stride = self.k_stride * size_of::<f32>();
        for word in (0..self.words).step_by(SIDE) {
            let k = k.wrapping_add(word);
            let left = [k.cast(), k.wrapping_add(SIDE * self.k_stride).cast()];
            // SAFETY: the caller's contract; rows have `words` pairs, a multiple of 16.
            unsafe { products.add(left, stride, self.right(word), self.lanes * size_of::<f32>()) };
        }
    }

    /// Up to 32 keys from `key` on, in whole tiles with zeros for those that are missing: the same sums for each of them.
    ///
    /// # Safety
    /// They exist, and the thread holds the registers.
    #[inline(never)]
    unsafe fn part(&self, products: Products, key: usize, keys: usize) {
        let mut rest = [Square::ZERO, Square::ZERO];
        for word in (0..self.words).step_by(SIDE) {
            for i in 0..keys {
                let to = rest[i / SIDE].0.as_mut_ptr().wrapping_add(i % SIDE * SIDE);
                let from = self.k.wrapping_add((key + i) * self.k_stride + word);
                // SAFETY: the key has 16 pairs from `word` on, and the square room for them.
                unsafe { to.copy_from_nonoverlapping(from, SIDE) };
            }
            let left = [rest[0].0.as_ptr().cast(), rest[1].0.as_ptr().cast()];
            // SAFETY: the caller's contract.
            unsafe { products.add(left, 4 * SIDE, self.right(word), self.lanes * size_of::<f32>()) };
        }
    }
}

/// Where the tile of 16 columns from column `16 * tile` on of chunk `chunk` of 32 keys starts: `[chunk][tile][column][pair of keys]`.
fn value_tile(chunk: usize, tile: usize, d_v: usize) -> usize {
    (chunk * d_v.div_ceil(SIDE) + tile) * TILE
}

/// Lays the values of a block out as left factors, with zeros in place of missing keys and columns.
pub(in crate::lanes) struct TileValues<'a> {
    pub(in crate::lanes) source: &'a Source<'a>,
    /// The first row.
    pub(in crate::lanes) first: usize,
    pub(in crate::lanes) rows: usize,
    pub(in crate::lanes) columns: usize,
    /// Whole tiles.
    pub(in crate::lanes) to: *mut f32,
}

impl Op for TileValues<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let s = token();
        let mut squares = [Square::ZERO, Square::ZERO];
        for row in (0..self.rows).step_by(GRAIN) {
            for c in (0..self.columns).step_by(GRAIN) {
                let len = (self.columns - c).min(GRAIN);
                for pair in 0..SIDE {
                    let row = row + 2 * pair;
                    // SAFETY: a square has 16 rows of 16.
                    unsafe {
                        let [low, high] = s.interleave(self.line(row, c, len), self.line(row + 1, c, len));
                        s.store(squares[0].0.as_mut_ptr().add(pair * SIDE), low);
                        s.store(squares[1].0.as_mut_ptr().add(pair * SIDE), high);
                    }
                }
                for (i, square) in squares.iter().enumerate().take(len.div_ceil(SIDE)) {
                    let to = self.to.wrapping_add(value_tile(row / GRAIN, c / SIDE + i, self.columns));
                    // SAFETY: there is room for the tile.
                    unsafe { s.transpose(square.0.as_ptr(), SIDE, to, SIDE) };
                }
            }
        }
    }
}

impl TileValues<'_> {
    /// `len` columns from column `c` on of a row, and zeros after them, and for a row that is missing.
    ///
    /// # Safety
    /// The columns exist.
    #[inline(always)]
    unsafe fn line(&self, row: usize, c: usize, len: usize) -> <Avx512Amx as Simd>::F32 {
        let s = token();
        if row >= self.rows {
            return s.zero();
        }
        let from = self.source.run(self.first + row).data.cast::<bf16>().wrapping_add(c);
        // SAFETY: the source has the row (contract of the struct, made by `Lanes`), and the caller's contract.
        unsafe {
            if len == GRAIN {
                return s.load(from.cast());
            }
            let mut rest = [bf16::ZERO; GRAIN];
            rest.as_mut_ptr().copy_from_nonoverlapping(from, len);
            s.load(rest.as_ptr().cast())
        }
    }
}

/// What [`super::super::accumulate::Accumulate`] does for pairs of bf16. A sum is a chain of products of 32 keys each, from the start of the
/// block on.
pub(in crate::lanes) struct TileAccumulate {
    /// `[pair of keys of the block][lanes]`, with zeros up to whole tiles.
    pub(in crate::lanes) weights: *const f32,
    /// Values as [`TileValues`] lays them out.
    pub(in crate::lanes) v: *const f32,
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

impl Op for TileAccumulate {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for column in (0..self.d_v).step_by(2 * SIDE) {
            match Products::of(self.d_v - column, self.vectors * SIDE) {
                Products { s, two: [true, true] } => self.columns(Products { s, two: [true; 2] }, column),
                products => self.columns(products, column),
            }
        }
    }
}

impl TileAccumulate {
    /// Up to 32 columns from `column` on.
    #[inline(always)]
    fn columns(&self, products: Products, column: usize) {
        let mut sums = [Square::ZERO, Square::ZERO, Square::ZERO, Square::ZERO];
        let sums = sums.as_mut_ptr().cast::<f32>();
        // SAFETY: the chunks are of the block, and the sums of 32 columns and 32 lanes have room. The kernel holds the registers.
        unsafe {
            products.begin();
            for chunk in self.chunks.clone() {
                let v = self.v.add(value_tile(chunk, column / SIDE, self.d_v));
                let weights = self.weights.add(chunk * SIDE * self.lanes);
                let left = [v.cast(), v.wrapping_add(TILE).cast()];
                let right = [weights, weights.wrapping_add(SIDE)];
                products.add(left, 4 * SIDE, right, self.lanes * size_of::<f32>());
            }
            products.store(sums, 2 * SIDE);
        }
        self.add(sums, column);
    }

    /// Adds the sums of up to 32 columns from `column` on, `[column][32 lanes]`, to the outputs times alpha.
    #[inline(always)]
    fn add(&self, sums: *const f32, column: usize) {
        let s = token();
        for at in (0..self.vectors * SIDE).step_by(SIDE) {
            // SAFETY: `out` has `d_v` rows of `lanes`, `alpha` has `lanes`.
            unsafe {
                let alpha = if self.alpha.is_null() { s.splat(1.0) } else { s.load(self.alpha.add(at)) };
                for c in 0..(self.d_v - column).min(2 * SIDE) {
                    let out = self.out.add((column + c) * self.lanes + at);
                    let sum = s.load(sums.add(c * 2 * SIDE + at));
                    s.store(out, if self.fresh { sum } else { s.mul_add(s.load(out), alpha, sum) });
                }
            }
        }
    }
}

/// What [`super::super::careful::AccumulateSeen`] does, with the sums of [`TileAccumulate`]: in each chunk one chain for even and one for odd
/// keys, without the links of keys that a lane does not see.
pub(in crate::lanes) struct TileAccumulateSeen<'a> {
    pub(in crate::lanes) all: TileAccumulate,
    pub(in crate::lanes) segments: &'a [Segment],
    /// `[key]` of the block, for masked segments
    pub(in crate::lanes) visible: *const u64,
}

impl Op for TileAccumulateSeen<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let (s, all) = (token(), &self.all);
        for at in (0..all.vectors * SIDE).step_by(SIDE) {
            for c in 0..all.d_v {
                let mut sum = s.zero();
                for segment in self.segments {
                    for first in (segment.key..segment.key + segment.keys).step_by(GRAIN) {
                        let end = (first + GRAIN).min(segment.key + segment.keys);
                        sum = s.add(sum, self.chunk(segment.masked, first..end, c, at));
                    }
                }
                // SAFETY: as in `TileAccumulate::add`.
                unsafe {
                    let out = all.out.add(c * all.lanes + at);
                    let alpha = if all.alpha.is_null() { s.splat(1.0) } else { s.load(all.alpha.add(at)) };
                    s.store(out, if all.fresh { sum } else { s.mul_add(s.load(out), alpha, sum) });
                }
            }
        }
    }
}

impl TileAccumulateSeen<'_> {
    /// The sum over the keys of a chunk, for column `c` and the lanes from `at` on.
    #[inline(always)]
    fn chunk(&self, masked: bool, keys: Range<usize>, c: usize, at: usize) -> <Avx512Amx as Simd>::F32 {
        let (s, all) = (token(), &self.all);
        let (mut even, mut odd) = (s.zero(), s.zero());
        // SAFETY: the keys are of the block, the lanes of the sub-tile.
        unsafe {
            let v = all.v.add(value_tile(keys.start / GRAIN, c / SIDE, all.d_v) + c % SIDE * SIDE);
            for key in keys.clone().step_by(2) {
                let weight = s.load(all.weights.add(key / 2 * all.lanes + at));
                let value = s.splat(*v.add(key % GRAIN / 2));
                let sees = |key: usize| {
                    let none = key >= keys.end;
                    s.mask_from_bits(if none {
                        0
                    } else if masked {
                        *self.visible.add(key) >> at
                    } else {
                        u64::MAX
                    })
                };
                even = s.select(sees(key), s.mul_add(s.low_bf16(weight), s.low_bf16(value), even), even);
                odd = s.select(sees(key + 1), s.mul_add(s.high_bf16(weight), s.high_bf16(value), odd), odd);
            }
        }
        s.add(even, odd)
    }
}
