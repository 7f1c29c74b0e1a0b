//! The value product where V may not be multiplied by a weight of zero: rows behind a mask that hold NaN or Inf.

use regard_simd::{Op, Simd};

use super::pairs::{high, low, multiply_add};
use super::segments::Segment;

/// What [`super::accumulate::Accumulate`] does, for the lanes that see a key only: the same chains of multiply-adds
/// without the links whose weight is masked.
pub(crate) struct AccumulateSeen<'a, const PAIRS: bool> {
    pub(crate) segments: &'a [Segment],
    /// Vectors of lanes.
    pub(crate) vectors: usize,
    /// `[key]` of the block, for masked segments
    pub(crate) visible: *const u64,
    /// `[key][lanes]` of the block, or `[pair of keys][lanes]`
    pub(crate) weights: *const f32,
    /// First key of the block, or first pair.
    pub(crate) v: *const f32,
    pub(crate) v_stride: usize,
    /// `[d_v][lanes]`
    pub(crate) out: *mut f32,
    /// `[lanes]`; null for 1.
    pub(crate) alpha: *const f32,
    /// Whether `out` holds nothing yet.
    pub(crate) fresh: bool,
    pub(crate) lanes: usize,
    pub(crate) d_v: usize,
}

impl<const PAIRS: bool> Op for AccumulateSeen<'_, PAIRS> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for vector in 0..self.vectors {
            let at = vector * S::LANES;
            for c in 0..self.d_v {
                let mut sum = s.zero();
                for segment in self.segments {
                    // Segments start at even keys.
                    let end = segment.key + segment.keys;
                    for key in (segment.key..end).step_by(if PAIRS { 2 } else { 1 }) {
                        // SAFETY: the key is of the block, the vector of the sub-tile; rows of V have `d_v` elements.
                        unsafe {
                            let seen = self.seen(s, segment.masked, key, at);
                            let row = if PAIRS { key / 2 } else { key };
                            let weight = s.load(self.weights.add(row * self.lanes + at));
                            let value = *self.v.add(row * self.v_stride + c);
                            sum = if PAIRS {
                                // A weight of zero and a value of zero: the link adds nothing.
                                let next = self.seen(s, segment.masked, (key + 1).min(end - 1), at);
                                let none = s.select(next, s.splat(high(value)), s.zero());
                                let some = s.select(next, s.splat(value), s.splat(low(value)));
                                multiply_add::<S, true>(s, weight, s.select(seen, some, none), sum)
                            } else {
                                s.select(seen, s.mul_add(weight, s.splat(value), sum), sum)
                            };
                        }
                    }
                }
                // SAFETY: `out` has `d_v` rows of `lanes`, `alpha` has `lanes`.
                unsafe {
                    let out = self.out.add(c * self.lanes + at);
                    let alpha = if self.alpha.is_null() { s.splat(1.0) } else { s.load(self.alpha.add(at)) };
                    s.store(out, if self.fresh { sum } else { s.mul_add(s.load(out), alpha, sum) });
                }
            }
        }
    }
}

impl<const PAIRS: bool> AccumulateSeen<'_, PAIRS> {
    /// The lanes of the vector at `at` that see a key of a segment.
    ///
    /// # Safety
    /// The key is of the block.
    #[inline(always)]
    unsafe fn seen<S: Simd>(&self, s: S, masked: bool, key: usize, at: usize) -> S::Mask {
        // SAFETY: the caller's contract.
        s.mask_from_bits(if masked { unsafe { *self.visible.add(key) >> at } } else { u64::MAX })
    }
}
