//! The value product where V may not be multiplied by a weight of zero: rows behind a mask that hold NaN or Inf, and
//! sums over tied keys.

use regard_simd::{Op, Simd};

use super::args::Head;
use super::segments::Segment;
use crate::table::KEY_BLOCKS;
use crate::weighting::slot;

/// What [`super::accumulate::Accumulate`] does, for the lanes that see a key only: the same chains of multiply-adds without the
/// links whose weight is masked.
pub(crate) struct AccumulateSeen<'a> {
    pub(crate) segments: &'a [Segment],
    /// Vectors of lanes.
    pub(crate) vectors: usize,
    /// `[key]` of the block, for masked segments
    pub(crate) visible: *const u64,
    /// `[key][lanes]` of the block
    pub(crate) weights: *const f32,
    /// First key of the block.
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

impl Op for AccumulateSeen<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for vector in 0..self.vectors {
            let at = vector * S::LANES;
            for c in 0..self.d_v {
                let mut sum = s.zero();
                for segment in self.segments {
                    for key in segment.key..segment.key + segment.keys {
                        // SAFETY: the key is of the block, the vector of the sub-tile; rows of V have `d_v` elements.
                        unsafe {
                            let bits = if segment.masked { *self.visible.add(key) >> at } else { u64::MAX };
                            let weight = s.load(self.weights.add(key * self.lanes + at));
                            let new = s.mul_add(weight, s.splat(*self.v.add(key * self.v_stride + c)), sum);
                            sum = s.select(s.mask_from_bits(bits), new, sum);
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

/// For each row that has ties: adds the sum of the rows of V whose score in this block is the row's largest to its output
/// row.
pub(crate) struct AddTies<'a> {
    pub(crate) head: &'a Head<'a>,
    pub(crate) segments: &'a [Segment],
    /// First key of the block.
    pub(crate) first_key: usize,
    /// `[key][lanes]` of the block
    pub(crate) scores: *const f32,
    pub(crate) lanes: usize,
    /// `[STATE][lanes]`
    pub(crate) state: *const f32,
    /// One bit for each lane that has ties.
    pub(crate) tied: u64,
    /// Output row of lane 0.
    pub(crate) out: *mut f32,
}

/// One bit for each key of a block.
type Keys = [u64; *KEY_BLOCKS.end() / 64];

impl AddTies<'_> {
    /// The keys of the block whose score is the largest of the lane's row, in bits; none if there are none.
    ///
    /// # Safety
    /// The pointers are as the fields say.
    unsafe fn hits(&self, lane: usize) -> Option<Keys> {
        let mut hits: Keys = [0; _];
        let mut any = false;
        for segment in self.segments {
            for key in segment.key..segment.key + segment.keys {
                // SAFETY: key and lane are of the block.
                let hit = unsafe {
                    *self.scores.add(key * self.lanes + lane) == *self.state.add(slot::MAX * self.lanes + lane)
                };
                hits[key / 64] |= u64::from(hit) << (key % 64);
                any |= hit;
            }
        }
        any.then_some(hits)
    }
}

impl Op for AddTies<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let head = self.head;
        for lane in (0..self.lanes).filter(|lane| self.tied >> lane & 1 == 1) {
            // SAFETY: the fields are as they say; each lane with a tie is a row of the call, and keys are of the block.
            unsafe {
                let Some(hits) = self.hits(lane) else { continue };
                let out = self.out.add(lane * head.out_stride);
                for c in (0..head.d_v).step_by(S::LANES) {
                    let len = (head.d_v - c).min(S::LANES);
                    let mut sum = s.zero();
                    for (word, bits) in hits.iter().enumerate() {
                        let mut bits = *bits;
                        while bits != 0 {
                            let key = self.first_key + 64 * word + bits.trailing_zeros() as usize;
                            bits &= bits - 1;
                            sum = s.add(sum, s.load_first(head.v.add(key * head.v_stride + c), len));
                        }
                    }
                    s.store_first(out.add(c), s.add(s.load_first(out.add(c), len), sum), len);
                }
            }
        }
    }
}
