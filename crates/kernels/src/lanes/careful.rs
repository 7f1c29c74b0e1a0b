//! The value product where V may not be multiplied by a weight of zero: rows behind a mask that hold NaN or Inf, and
//! sums over tied keys.

use regard_simd::{Op, Simd};

use super::args::Head;
use super::segments::Segment;
use crate::weighting::slot;

/// `out[c][lane] += weights[key][lane] * v[key][c]` for the lanes that see the key, and nothing for the others: the same
/// chain of multiply-adds as [`super::accumulate::Accumulate`] without the links whose weight is masked.
pub(crate) struct AccumulateSeen {
    pub(crate) segment: Segment,
    /// `[key]` of the block
    pub(crate) visible: *const u64,
    /// `[key][lanes]` of the block
    pub(crate) weights: *const f32,
    /// First key of the block.
    pub(crate) v: *const f32,
    pub(crate) v_stride: usize,
    /// `[d_v][lanes]`
    pub(crate) out: *mut f32,
    pub(crate) lanes: usize,
    pub(crate) d_v: usize,
}

impl Op for AccumulateSeen {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Segment { key, keys, group, groups, .. } = self.segment;
        for key in key..key + keys {
            for group in group..group + groups {
                // SAFETY: the key is of the block, the group of the sub-tile; rows of V have `d_v` elements.
                unsafe {
                    let bits = *self.visible.add(key) >> (group * S::LANES);
                    let seen = s.mask_from_bits(bits);
                    if !s.any(seen) {
                        continue;
                    }
                    let weight = s.load(self.weights.add(key * self.lanes + group * S::LANES));
                    for c in 0..self.d_v {
                        let out = self.out.add(c * self.lanes + group * S::LANES);
                        let old = s.load(out);
                        let new = s.mul_add(weight, s.splat(*self.v.add(key * self.v_stride + c)), old);
                        s.store(out, s.select(seen, new, old));
                    }
                }
            }
        }
    }
}

/// For each row that has ties: adds the rows of V whose score in this block is the row's largest to its output row.
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

impl Op for AddTies<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let head = self.head;
        for segment in self.segments {
            for key in segment.key..segment.key + segment.keys {
                for group in segment.group..segment.group + segment.groups {
                    let at = group * S::LANES;
                    // SAFETY: key and lanes are of the block, and each lane with a tie is a row of the call.
                    unsafe {
                        let max = s.load(self.state.add(slot::MAX * self.lanes + at));
                        let score = s.load(self.scores.add(key * self.lanes + at));
                        let mut hits = s.mask_to_bits(s.eq(score, max)) & (self.tied >> at);
                        while hits != 0 {
                            let lane = at + hits.trailing_zeros() as usize;
                            hits &= hits - 1;
                            let v = head.v.add((self.first_key + key) * head.v_stride);
                            let out = self.out.add(lane * head.out_stride);
                            add_row(s, v, out, head.d_v);
                        }
                    }
                }
            }
        }
    }
}

/// `out += v`
///
/// # Safety
/// `v` is readable and `out` writable for `n` elements.
#[inline(always)]
unsafe fn add_row<S: Simd>(s: S, v: *const f32, out: *mut f32, n: usize) {
    for c in (0..n).step_by(S::LANES) {
        let len = (n - c).min(S::LANES);
        // SAFETY: the caller's contract.
        unsafe {
            let sum = s.add(s.load_first(out.add(c), len), s.load_first(v.add(c), len));
            s.store_first(out.add(c), sum, len);
        }
    }
}
