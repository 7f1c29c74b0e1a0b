//! What happens to scores between the score product and the weighting: scale, soft-cap, ALiBi, bias and mask.
//!
//! A pass of its own over the block, which lies in the first-level cache, and only for blocks that need it: without
//! soft-cap, ALiBi and bias the scale is left to the weighting, and only blocks that a mask cuts come here.

use regard_simd::{Op, Simd, math};

use super::args::Head;
use super::segments::{Rows, Segment, lanes_of};

/// Rewrites the scores of one block and takes their maximum.
pub(crate) struct Modify<'a> {
    pub(crate) head: &'a Head<'a>,
    pub(crate) rows: Rows,
    /// Vectors of lanes.
    pub(crate) vectors: usize,
    pub(crate) segments: &'a [Segment],
    /// Index of the block's first key in the sequence.
    pub(crate) first_key: usize,
    /// `[key][lanes]`
    pub(crate) scores: *mut f32,
    pub(crate) lanes: usize,
    /// `[key]`, see [`crate::weighting::Block::visible`].
    pub(crate) visible: *const u64,
    /// `[lanes]`, updated; for ordered weightings.
    pub(crate) max: *mut f32,
    /// Whether the weighting is ordered: then masked scores become -inf, and the maximum is taken.
    pub(crate) ordered: bool,
}

impl Op for Modify<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let terms = self.head.has_terms();
        for segment in self.segments {
            // The score product has taken the maximum of the others already.
            if !(terms || self.ordered && segment.masked) {
                continue;
            }
            for vector in 0..self.vectors {
                for key in (segment.key..segment.key + segment.keys).step_by(S::LANES) {
                    let keys = (segment.key + segment.keys - key).min(S::LANES);
                    self.chunk::<S>(s, segment.masked, vector, key, keys);
                }
            }
        }
    }
}

impl Modify<'_> {
    /// At most `LANES` keys from `key` (of the block) on, for one vector of lanes.
    #[inline(always)]
    fn chunk<S: Simd>(&self, s: S, masked: bool, vector: usize, key: usize, keys: usize) {
        let head = self.head;
        let terms = head.has_terms();
        let lowest = s.splat(f32::NEG_INFINITY);
        let first_row = self.rows.first + vector * S::LANES;
        let mut biases = BiasTile::ZERO;
        if let Some(bias) = &head.bias {
            let rows = self.rows.rows.saturating_sub(vector * S::LANES).min(S::LANES);
            // SAFETY: the bias covers every row of the call and every key.
            unsafe {
                let corner =
                    bias.data.wrapping_add(first_row * bias.row_stride + (self.first_key + key) * bias.key_stride);
                biases.load(s, corner, bias.row_stride, bias.key_stride, rows, keys);
            }
        }
        let mut positions = [0.0; 64];
        if let Some(alibi) = &head.alibi {
            for (lane, position) in positions.iter_mut().enumerate().take(S::LANES) {
                *position = ((first_row + lane) as i64).saturating_add(alibi.offset) as f32;
            }
        }
        // SAFETY: the block has `lanes` columns and the keys of its segments, `visible` has a word per key, and `max`
        // has `lanes` elements.
        unsafe {
            let positions = s.load(positions.as_ptr());
            let mut max = s.load(self.max.add(vector * S::LANES));
            for i in 0..keys {
                let p = self.scores.add((key + i) * self.lanes + vector * S::LANES);
                let mut score = s.load(p);
                if terms {
                    score = s.mul(score, s.splat(head.scale));
                    if let Some(cap) = head.softcap {
                        let cap = s.splat(cap);
                        score = s.mul(cap, math::tanh(s, s.div(score, cap)));
                    }
                    if let Some(alibi) = &head.alibi {
                        let distance = s.abs(s.sub(positions, s.splat((self.first_key + key + i) as f32)));
                        score = s.mul_add(distance, s.splat(-alibi.slope), score);
                    }
                    if head.bias.is_some() {
                        score = s.add(score, s.load(biases.0.as_ptr().add(i * S::LANES)));
                    }
                }
                if self.ordered {
                    if masked {
                        let seen = s.mask_from_bits(*self.visible.add(key + i) >> (vector * S::LANES));
                        score = s.select(seen, score, lowest);
                    }
                    max = s.max(score, max);
                }
                s.store(p, score);
            }
            s.store(self.max.add(vector * S::LANES), max);
        }
    }
}

/// The bias of `LANES` keys and `LANES` rows, keys first.
#[repr(C, align(64))]
struct BiasTile([f32; 256]);

impl BiasTile {
    const ZERO: Self = Self([0.0; 256]);

    /// Fills the tile from the row-major corner of a bias.
    ///
    /// # Safety
    /// `rows` rows and `keys` keys from `corner` on are readable.
    #[inline(always)]
    unsafe fn load<S: Simd>(
        &mut self,
        s: S,
        corner: *const f32,
        row_stride: usize,
        key_stride: usize,
        rows: usize,
        keys: usize,
    ) {
        // SAFETY: the caller's contract; the tile has room for LANES x LANES.
        unsafe {
            if key_stride == 1 && rows == S::LANES && keys == S::LANES {
                s.transpose(corner, row_stride, self.0.as_mut_ptr(), S::LANES);
                return;
            }
            for key in 0..keys {
                for row in 0..rows {
                    self.0[key * S::LANES + row] = *corner.add(row * row_stride + key * key_stride);
                }
            }
        }
    }
}

/// Fills `visible` for the masked segments of a block from the band and the mask tensor, and drops the mark of segments
/// that turn out to be wholly visible. Gives whether any pair is visible.
pub(crate) struct Visibility<'a> {
    pub(crate) head: &'a Head<'a>,
    pub(crate) rows: Rows,
    pub(crate) segments: &'a mut [Segment],
    pub(crate) first_key: usize,
    /// `[key]`, written for the keys of masked segments.
    pub(crate) visible: *mut u64,
}

impl Op for Visibility<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, _s: S) -> bool {
        let head = self.head;
        let mut any = false;
        for segment in self.segments {
            if !segment.masked {
                any = true;
                continue;
            }
            // SAFETY: `visible` has a word for each key of the block.
            let words = unsafe { std::slice::from_raw_parts_mut(self.visible.add(segment.key), segment.keys) };
            let first_key = self.first_key + segment.key;
            match &head.keep {
                None => {
                    for (key, word) in words.iter_mut().enumerate() {
                        *word = lanes_of(head.band, first_key + key, self.rows);
                    }
                    any = true;
                }
                Some(keep) => {
                    words.fill(0);
                    for lane in 0..self.rows.rows {
                        // SAFETY: the mask covers every row of the call and every key.
                        unsafe {
                            let row = keep.data.add((self.rows.first + lane) * keep.row_stride);
                            let row = row.add(first_key * keep.key_stride);
                            if keep.key_stride == 1 {
                                // A stride that is known lets the compiler use vectors.
                                for (key, word) in words.iter_mut().enumerate() {
                                    *word |= u64::from(*row.add(key) != 0) << lane;
                                }
                            } else {
                                for (key, word) in words.iter_mut().enumerate() {
                                    *word |= u64::from(*row.add(key * keep.key_stride) != 0) << lane;
                                }
                            }
                        }
                    }
                    let (mut some, mut every) = (0, u64::MAX);
                    for (key, word) in words.iter_mut().enumerate() {
                        *word &= lanes_of(head.band, first_key + key, self.rows);
                        some |= *word;
                        every &= *word;
                    }
                    any |= some != 0;
                    segment.masked = every.count_ones() as usize != self.rows.rows;
                }
            }
        }
        any
    }
}
