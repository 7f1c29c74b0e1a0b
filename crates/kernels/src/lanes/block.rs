//! One key block against one sub-tile: the two products and what lies between them.

use regard_simd::Simd;

use super::accumulate::Accumulate;
use super::careful::AccumulateSeen;
use super::load::KeyBlock;
use super::modify::{Modify, Visibility};
use super::pairs::PairWeights;
use super::scores::Scores;
use super::segments::{Segment, Segments};
use super::streams::Streams;
#[cfg(target_arch = "x86_64")]
use super::tiles::{
    GRAIN, PartAccumulate, PartAccumulateSeen, PartScores, PartWeights, TileAccumulate, TileAccumulateSeen, TileScores,
};
use super::{Lanes, MASKED, Subtile, WRITTEN};
use crate::weighting::{Block, Step};

impl<const G: usize, const R: usize, const R1: usize, const PAIRS: bool, const TILES: bool>
    Lanes<'_, G, R, R1, PAIRS, TILES>
{
    /// One key block against one sub-tile. `careful` keeps values away from lanes that do not see their key; otherwise
    /// they are multiplied by a weight of zero, which is the same unless they are NaN or Inf.
    #[inline(always)]
    pub(super) fn block<S: Simd>(&self, s: S, tile: Subtile, keys: KeyBlock, careful: bool, streams: Streams<'_>) {
        let head = self.head;
        let functions = head.weighting.functions;
        let lanes = G * S::LANES;
        let Some(segments) = self.scores(s, tile, keys, streams) else { return };
        // SAFETY: the layout has room for the arrays.
        let (scores, _, alpha, visible) = unsafe { self.block_arrays() };
        let block = self.weighing::<S>(tile, keys, &segments);
        // SAFETY: the functions are of this level (`launch` pairs them), and the block is as its fields say.
        let step = unsafe { (functions.weigh)(head.weighting.data, &block) };
        let whole = segments.whole();
        let (key, part) = match step {
            Step::Skip => return,
            // Values that are not finite make themselves felt at a weight of zero too.
            Step::Part { key, keys: part } if !careful && self.has_finite_values(s, keys) => (key, part),
            _ => whole,
        };
        if part == 0 {
            return;
        }
        let alpha = if step == Step::Rescale { alpha.cast_const() } else { std::ptr::null() };
        // SAFETY: the layout has room for it.
        let fresh = unsafe { *tile.touched & WRITTEN == 0 };
        // SAFETY: as above.
        unsafe { *tile.touched |= WRITTEN };
        if PAIRS {
            self.pair_weights(s, tile, whole);
        }
        #[cfg(target_arch = "x86_64")]
        if Self::PARTS {
            let all = self.part_products::<S>(tile, keys, (key, part), alpha, fresh);
            if careful {
                s.vectorize(PartAccumulateSeen { all, segments: segments.as_slice(), visible });
            } else {
                s.vectorize(all);
            }
            return;
        }
        #[cfg(target_arch = "x86_64")]
        if TILES {
            let all = self.tile_products::<S>(tile, keys, (key, part), alpha, fresh);
            if careful {
                s.vectorize(TileAccumulateSeen { all, segments: segments.as_slice(), visible });
            } else {
                s.vectorize(all);
            }
            return;
        }
        if careful {
            s.vectorize(AccumulateSeen::<PAIRS> {
                segments: segments.as_slice(),
                vectors: Self::vectors::<S>(tile),
                visible,
                weights: scores,
                v: keys.v.data,
                v_stride: keys.v.stride,
                out: tile.outputs,
                alpha,
                fresh,
                lanes,
                d_v: head.d_v,
            });
        } else {
            self.accumulate(s, tile, keys, (key, part), alpha, fresh);
        }
    }

    /// The scores of a block as weightings take them.
    #[inline(always)]
    pub(super) fn weighing<'b, S: Simd>(&self, tile: Subtile, keys: KeyBlock, segments: &'b Segments) -> Block<'b> {
        // SAFETY: the layout has room for the arrays.
        let (scores, max, alpha, visible) = unsafe { self.block_arrays() };
        Block {
            scores,
            lanes: G * S::LANES,
            segments: segments.as_slice(),
            vectors: Self::vectors::<S>(tile),
            visible,
            first_key: keys.first,
            max,
            gain: tile.gain,
            shift: tile.shift,
            state: tile.state,
            alpha,
        }
    }

    /// One past the last key of a block that any vector of lanes but the last one needs: under a causal mask, the last
    /// rows see more. To be computed alone they ride in the same register tiles, whose sums go on.
    #[inline(always)]
    fn full<S: Simd>(&self, tile: Subtile, keys: KeyBlock) -> usize {
        let before = (G - 1) * S::LANES;
        if before == 0 || tile.rows.rows <= before {
            return keys.len;
        }
        let end = self.head.band.visible(tile.rows.first + before - 1, self.head.keys).end;
        let end = end.clamp(keys.first, keys.first + keys.len) - keys.first;
        end.next_multiple_of(Self::GRANULE).min(keys.len)
    }

    /// Final scores of one key block against one sub-tile, with their maximum; none if no row sees any of it.
    #[inline(always)]
    pub(super) fn scores<S: Simd>(
        &self,
        s: S,
        tile: Subtile,
        keys: KeyBlock,
        streams: Streams<'_>,
    ) -> Option<Segments> {
        let head = self.head;
        let lanes = G * S::LANES;
        let ordered = head.weighting.functions.ordered;
        let hides = self.hides(tile, keys);
        let mut segments = Segments::new(
            head.band,
            hides || head.keep.is_some(),
            tile.rows,
            keys.first,
            keys.len,
            head.keys,
            Self::GRANULE,
        );
        // SAFETY: the layout has room for the arrays.
        let (scores, max, _, visible) = unsafe { self.block_arrays() };
        if segments.masked() {
            let some = s.vectorize(Visibility {
                head,
                rows: tile.rows,
                segments: segments.as_mut_slice(),
                first_key: keys.first,
                visible,
            });
            if !some {
                return None;
            }
            if hides {
                // SAFETY: the layout has room for a word for each key of a block.
                unsafe { self.hide(tile, keys.first, keys.len, visible) };
            }
            // SAFETY: the layout has room for it.
            unsafe { *tile.touched |= MASKED };
        }
        if segments.as_slice().is_empty() {
            return None;
        }
        let terms = head.has_terms();
        if ordered {
            for g in 0..G {
                // SAFETY: `max` has `lanes` elements.
                unsafe { s.store(max.add(g * S::LANES), s.splat(f32::NEG_INFINITY)) };
            }
        }
        for segment in segments.as_slice() {
            let take_max = ordered && !segment.masked && !terms;
            self.score_product(s, tile, keys, *segment, take_max, streams);
        }
        if terms || (ordered && segments.masked()) {
            s.vectorize(Modify {
                head,
                rows: tile.rows,
                vectors: Self::vectors::<S>(tile),
                segments: segments.as_slice(),
                first_key: keys.first,
                scores,
                lanes,
                visible,
                max,
                ordered,
            });
        }
        Some(segments)
    }

    /// Scores, maximum, alpha and visibility of the block at hand.
    ///
    /// # Safety
    /// The scratch is as long as the layout says.
    #[inline(always)]
    pub(super) unsafe fn block_arrays(&self) -> (*mut f32, *mut f32, *mut f32, *mut u64) {
        let layout = &self.layout;
        // SAFETY: the caller's contract; arrays start at cache lines.
        unsafe {
            (
                self.scratch.add(layout.scores),
                self.scratch.add(layout.max),
                self.scratch.add(layout.alpha),
                self.scratch.add(layout.visible).cast(),
            )
        }
    }

    /// The score product of one segment, by the register tile for its number of vectors.
    #[inline(always)]
    pub(super) fn score_product<S: Simd>(
        &self,
        s: S,
        tile: Subtile,
        keys: KeyBlock,
        segment: Segment,
        take_max: bool,
        streams: Streams<'_>,
    ) {
        let lanes = G * S::LANES;
        let full = self.full::<S>(tile, keys);
        #[cfg(target_arch = "x86_64")]
        if Self::PARTS {
            // SAFETY: segments lie within the block, and start at a multiple of 32 keys.
            unsafe {
                let (scores, max, _, _) = self.block_arrays();
                s.vectorize(PartScores {
                    q: tile.queries,
                    q_dtype: self.head.q_dtype,
                    k: keys.k.data.add(segment.key * keys.k.stride),
                    k_dtype: self.head.k.dtype,
                    scores: scores.add(segment.key * lanes),
                    max: if take_max { max } else { std::ptr::null_mut() },
                    lanes,
                    keys: segment.keys,
                    words: self.words(),
                    vectors: Self::vectors::<S>(tile),
                });
            }
            return;
        }
        #[cfg(target_arch = "x86_64")]
        if TILES {
            // SAFETY: segments lie within the block.
            unsafe {
                let (scores, max, _, _) = self.block_arrays();
                s.vectorize(TileScores {
                    q: tile.queries,
                    k: keys.k.data.add(segment.key * keys.k.stride),
                    k_stride: keys.k.stride,
                    scores: scores.add(segment.key * lanes),
                    max: if take_max { max } else { std::ptr::null_mut() },
                    lanes,
                    keys: segment.keys,
                    words: self.words(),
                    vectors: Self::vectors::<S>(tile),
                });
            }
            return;
        }
        let prefetch = segment.key < streams.rows();
        let streams = streams.starting(segment.key);
        macro_rules! product {
            ($vectors:expr, $keys:expr, $max:literal, $prefetch:literal) => {{
                // SAFETY: segments lie within the block.
                unsafe {
                    let (scores, max, _, _) = self.block_arrays();
                    s.vectorize(Scores::<{ $vectors }, { $keys }, $max, $prefetch, PAIRS> {
                        q: tile.queries,
                        k: keys.k.data.add(segment.key * keys.k.stride),
                        k_stride: keys.k.stride,
                        scores: scores.add(segment.key * lanes),
                        max,
                        lanes,
                        keys: segment.keys,
                        full: full.saturating_sub(segment.key).min(segment.keys),
                        d: self.words(),
                        streams,
                    });
                }
            }};
        }
        match (Self::vectors::<S>(tile) == G, take_max, prefetch) {
            (true, true, true) => product!(G, R, true, true),
            (true, true, false) => product!(G, R, true, false),
            (true, false, true) => product!(G, R, false, true),
            (true, false, false) => product!(G, R, false, false),
            (false, true, true) => product!(1, R1, true, true),
            (false, true, false) => product!(1, R1, true, false),
            (false, false, true) => product!(1, R1, false, true),
            (false, false, false) => product!(1, R1, false, false),
        }
    }

    /// Rounds the weights of a block, row `key / 2` of whose scores becomes the pairs of the keys `key` and `key + 1`.
    #[inline(always)]
    fn pair_weights<S: Simd>(&self, s: S, tile: Subtile, (key, keys): (usize, usize)) {
        let lanes = G * S::LANES;
        // SAFETY: segments lie within the block, and start at even keys.
        unsafe {
            let (scores, _, _, _) = self.block_arrays();
            let (from, to) = (scores.add(key * lanes), scores.add(key / 2 * lanes));
            let granule = if TILES { Self::GRANULE } else { 2 };
            s.vectorize(PairWeights { from, to, lanes, keys, granule, vectors: Self::vectors::<S>(tile) });
        }
    }

    /// The value product of some keys of a block in parts on tile registers.
    #[cfg(target_arch = "x86_64")]
    fn part_products<S: Simd>(
        &self,
        tile: Subtile,
        block: KeyBlock,
        (key, keys): (usize, usize),
        alpha: *const f32,
        fresh: bool,
    ) -> PartAccumulate {
        let lanes = G * S::LANES;
        // SAFETY: the layout has room for the arrays.
        let (scores, _, _, _) = unsafe { self.block_arrays() };
        PartAccumulate {
            weights: PartWeights {
                from: scores,
                keys: key + keys,
                to: self.scratch.wrapping_add(self.layout.weights),
                part: self.layout.weight_part,
                lanes,
                vectors: Self::vectors::<S>(tile),
            },
            v: block.v.data,
            v_dtype: self.head.v.dtype,
            out: tile.outputs,
            alpha,
            fresh,
            lanes,
            chunks: key / GRAIN..(key + keys).div_ceil(GRAIN),
            d_v: self.head.d_v,
            vectors: Self::vectors::<S>(tile),
        }
    }

    /// The value product of some keys of a block on tile registers.
    #[cfg(target_arch = "x86_64")]
    fn tile_products<S: Simd>(
        &self,
        tile: Subtile,
        block: KeyBlock,
        (key, keys): (usize, usize),
        alpha: *const f32,
        fresh: bool,
    ) -> TileAccumulate {
        // SAFETY: the layout has room for the arrays.
        let (scores, _, _, _) = unsafe { self.block_arrays() };
        TileAccumulate {
            weights: scores,
            v: block.v.data,
            out: tile.outputs,
            alpha,
            fresh,
            lanes: G * S::LANES,
            chunks: key / GRAIN..(key + keys).div_ceil(GRAIN),
            d_v: self.head.d_v,
            vectors: Self::vectors::<S>(tile),
        }
    }

    /// The value product of some keys of a block, by the register tile for the number of vectors.
    #[inline(always)]
    fn accumulate<S: Simd>(
        &self,
        s: S,
        tile: Subtile,
        block: KeyBlock,
        (key, keys): (usize, usize),
        alpha: *const f32,
        fresh: bool,
    ) {
        let lanes = G * S::LANES;
        let full = self.full::<S>(tile, block).saturating_sub(key).min(keys);
        // Segments start at even keys.
        let (key, keys, full) = if PAIRS { (key / 2, keys.div_ceil(2), full.div_ceil(2)) } else { (key, keys, full) };
        macro_rules! product {
            ($vectors:expr, $columns:expr) => {{
                // SAFETY: segments lie within the block.
                unsafe {
                    let (scores, _, _, _) = self.block_arrays();
                    s.vectorize(Accumulate::<{ $vectors }, { $columns }, PAIRS> {
                        weights: scores.add(key * lanes),
                        v: block.v.data.add(key * block.v.stride),
                        v_stride: block.v.stride,
                        out: tile.outputs,
                        alpha,
                        fresh,
                        lanes,
                        keys,
                        full,
                        d_v: self.head.d_v,
                    });
                }
            }};
        }
        if Self::vectors::<S>(tile) == G {
            product!(G, R);
        } else {
            product!(1, R1);
        }
    }
}
