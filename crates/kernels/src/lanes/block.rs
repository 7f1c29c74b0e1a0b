//! One key block against one sub-tile: the two products and what lies between them.

use regard_simd::Simd;

use super::accumulate::Accumulate;
use super::careful::AccumulateSeen;
use super::modify::{Modify, Visibility, has_terms};
use super::scores::{Scores, Streams};
use super::segments::{Segment, Segments};
use super::{KeyBlock, Lanes, MASKED, Subtile};
use crate::weighting::{Block, Step};

impl<const G: usize, const R: usize, const R1: usize> Lanes<'_, G, R, R1> {
    /// One key block against one sub-tile. `careful` keeps values away from lanes that do not see their key; otherwise
    /// they are multiplied by a weight of zero, which is the same unless they are NaN or Inf.
    #[inline(always)]
    pub(super) fn block<S: Simd>(&self, s: S, tile: Subtile, keys: KeyBlock, careful: bool, streams: Streams) {
        let head = self.head;
        let functions = head.weighting.functions;
        let lanes = G * S::LANES;
        let Some(segments) = self.scores(s, tile, keys, streams) else { return };
        // SAFETY: the layout has room for the arrays.
        let (scores, max, alpha, visible) = unsafe { self.block_arrays() };
        let block = Block {
            scores,
            lanes,
            segments: segments.as_slice(),
            groups: segments.groups(),
            visible,
            first_key: keys.first,
            max,
            gain: tile.gain,
            shift: tile.shift,
            state: tile.state,
            alpha,
        };
        // SAFETY: the functions are of this level (the plan pairs them), and the block is as its fields say.
        let step = unsafe { (functions.weigh)(head.weighting.data, &block) };
        if step == Step::Skip {
            return;
        }
        let rescale = step == Step::Rescale;
        let mut rest = segments.as_slice();
        while let Some((segment, _)) = rest.split_first() {
            // What was cut by the mask alone goes in one piece: each piece loads and stores all outputs.
            let joined = if careful { 1 } else { segment.run_of_same_groups(rest) };
            let whole = Segment { keys: rest[..joined].iter().map(|s| s.keys).sum(), ..*segment };
            rest = &rest[joined..];
            let at = segment.group * S::LANES;
            // SAFETY: segments lie within the block and the sub-tile.
            unsafe {
                let add = Add {
                    fresh: self.touch::<S>(tile, whole),
                    weights: scores.add(segment.key * lanes + at),
                    v: keys.v.add(segment.key * keys.v_stride),
                    out: tile.outputs.add(at),
                    alpha: if rescale { alpha.add(at) } else { std::ptr::null() },
                };
                if careful && segment.masked {
                    // Only rescales.
                    self.accumulate(s, keys, Segment { keys: 0, ..whole }, add);
                    s.vectorize(AccumulateSeen {
                        segment: *segment,
                        visible,
                        weights: scores,
                        v: keys.v,
                        v_stride: keys.v_stride,
                        out: tile.outputs,
                        lanes,
                        d_v: head.d_v,
                    });
                } else {
                    self.accumulate(s, keys, whole, add);
                }
                if rescale && !rest.is_empty() {
                    // Each vector of lanes is rescaled once in a block.
                    for lane in at..at + segment.groups * S::LANES {
                        *alpha.add(lane) = 1.0;
                    }
                }
            }
        }
    }

    /// Notes that the vectors of lanes of a segment receive outputs. Gives whether none of them has any yet; if only some
    /// have, the others are set to zero.
    ///
    /// # Safety
    /// The segment is of the sub-tile.
    #[inline(always)]
    unsafe fn touch<S: Simd>(&self, tile: Subtile, segment: Segment) -> bool {
        let groups = ((1 << segment.groups) - 1) << segment.group;
        // SAFETY: the arrays are as the layout says.
        unsafe {
            let fresh = groups & !*tile.touched;
            *tile.touched |= groups;
            if fresh != groups && fresh != 0 {
                self.clear::<S>(tile, fresh);
            }
            fresh == groups
        }
    }

    /// Sets the outputs of some vectors of lanes to zero.
    ///
    /// # Safety
    /// The vectors are of the sub-tile.
    pub(super) unsafe fn clear<S: Simd>(&self, tile: Subtile, groups: u64) {
        for group in (0..G).filter(|group| groups >> group & 1 == 1) {
            for c in 0..self.head.d_v {
                // SAFETY: the outputs have `d_v` rows of `G * LANES`.
                unsafe { tile.outputs.add((c * G + group) * S::LANES).write_bytes(0, S::LANES) };
            }
        }
    }

    /// Final scores of one key block against one sub-tile, with their maximum; none if no row sees any of it.
    #[inline(always)]
    pub(super) fn scores<S: Simd>(&self, s: S, tile: Subtile, keys: KeyBlock, streams: Streams) -> Option<Segments> {
        let head = self.head;
        let lanes = G * S::LANES;
        let ordered = head.weighting.functions.ordered;
        let mut segments =
            Segments::new(head.band, head.keep.is_some(), tile.rows, keys.first, keys.len, head.keys, Self::GRANULE);
        // SAFETY: the layout has room for the arrays.
        let (scores, max, _, visible) = unsafe { self.block_arrays() };
        if segments.as_slice().iter().any(|segment| segment.masked) {
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
            // SAFETY: the layout has room for it.
            unsafe { *tile.touched |= MASKED };
        }
        if segments.as_slice().is_empty() {
            return None;
        }
        let terms = has_terms(head);
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
        if terms || (ordered && segments.as_slice().iter().any(|segment| segment.masked)) {
            s.vectorize(Modify {
                head,
                rows: tile.rows,
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
    fn score_product<S: Simd>(
        &self,
        s: S,
        tile: Subtile,
        keys: KeyBlock,
        segment: Segment,
        take_max: bool,
        streams: Streams,
    ) {
        let lanes = G * S::LANES;
        let prefetch = segment.key < streams.rows();
        let streams = streams.starting(segment.key);
        macro_rules! product {
            ($group:expr, $g:expr, $r:expr, $max:literal, $prefetch:literal) => {{
                // SAFETY: segments lie within the block and the sub-tile.
                unsafe {
                    let (scores, max, _, _) = self.block_arrays();
                    let at = $group * S::LANES;
                    s.vectorize(Scores::<{ $g }, { $r }, $max, $prefetch> {
                        q: tile.queries.add(at),
                        k: keys.k.add(segment.key * keys.k_stride),
                        k_stride: keys.k_stride,
                        scores: scores.add(segment.key * lanes + at),
                        max: max.add(at),
                        lanes,
                        keys: segment.keys,
                        d: self.head.d,
                        streams,
                    });
                }
            }};
        }
        if segment.groups == G {
            match (take_max, prefetch) {
                (true, true) => product!(segment.group, G, R, true, true),
                (true, false) => product!(segment.group, G, R, true, false),
                (false, true) => product!(segment.group, G, R, false, true),
                (false, false) => product!(segment.group, G, R, false, false),
            }
        } else {
            for group in segment.group..segment.group + segment.groups {
                match take_max {
                    true => product!(group, 1, R1, true, false),
                    false => product!(group, 1, R1, false, false),
                }
            }
        }
    }

    /// The value product of one segment, by the register tile for its number of vectors.
    #[inline(always)]
    fn accumulate<S: Simd>(&self, s: S, keys: KeyBlock, segment: Segment, add: Add) {
        let Add { fresh, weights, v, out, alpha } = add;
        let (lanes, v_stride, d_v, keys) = (G * S::LANES, keys.v_stride, self.head.d_v, segment.keys);
        if segment.groups == G {
            s.vectorize(Accumulate::<G, R> { weights, v, v_stride, out, alpha, fresh, lanes, keys, d_v });
        } else {
            for group in 0..segment.groups {
                let at = group * S::LANES;
                let weights = weights.wrapping_add(at);
                let out = out.wrapping_add(at);
                let alpha = if alpha.is_null() { alpha } else { alpha.wrapping_add(at) };
                s.vectorize(Accumulate::<1, R1> { weights, v, v_stride, out, alpha, fresh, lanes, keys, d_v });
            }
        }
    }
}

/// Where the value product of one segment reads and writes.
#[derive(Clone, Copy)]
struct Add {
    fresh: bool,
    weights: *const f32,
    v: *const f32,
    out: *mut f32,
    alpha: *const f32,
}
