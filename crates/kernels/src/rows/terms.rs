//! What happens to scores between the score product and the weighting: scales of keys, scale, soft-cap, ALiBi, bias, mask and
//! maximum. One pass over scores that lie densely, a vector for each step of keys.

use regard_simd::{Op, Simd, math};

use super::args::{QueryRow, Unit};
use super::ask::Ask;
use crate::source::Source;

/// Rewrites the scores of one block and takes their maximum per lane.
pub(super) struct Terms<'a> {
    pub(super) unit: &'a Unit<'a>,
    /// The rows of the group.
    pub(super) rows: &'a [QueryRow],
    /// Keys of a step.
    pub(super) step_keys: usize,
    /// Index of step 0's first key in the sequence.
    pub(super) first_key: usize,
    /// Keys in the block.
    pub(super) keys: usize,
    /// `[step][LANES]`
    pub(super) scores: *mut f32,
    /// Scale of each score, in the layout of the scores; null for none.
    pub(super) k_scales: *const f32,
    /// `[step]`: one bit for each lane that sees its key, from step `masked_from` on.
    pub(super) visible: *const u64,
    /// The first step of which some lane does not see its key.
    pub(super) masked_from: usize,
    /// `[LANES]`: written, the same for all lanes of a row; for ordered weightings.
    pub(super) max: *mut f32,
    /// Keys that come next.
    pub(super) ask: Ask,
}

/// A vector of any level in memory.
#[repr(C, align(64))]
struct Lanes([f32; 16]);

impl Op for Terms<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let unit = self.unit;
        let steps = self.keys.div_ceil(self.step_keys);
        let ordered = unit.weighting.functions.ordered;
        let terms = unit.has_terms();
        if !ordered && !terms && self.k_scales.is_null() {
            return;
        }
        let lowest = s.splat(f32::NEG_INFINITY);
        let places = Places::new(s, &self);
        let plain = if terms { 0 } else { self.masked_from.min(steps) };
        let mut max = self.plain(s, plain);
        for step in plain..steps {
            self.ask.step(s, step);
            // SAFETY: the arrays have a vector or a word for each step.
            unsafe {
                let p = self.scores.add(step * S::LANES);
                let mut score = s.load(p);
                if !self.k_scales.is_null() {
                    score = s.mul(score, s.load(self.k_scales.add(step * S::LANES)));
                }
                if terms {
                    score = self.with_terms(s, score, step, &places);
                }
                if ordered {
                    if step >= self.masked_from {
                        score = s.select(s.mask_from_bits(*self.visible.add(step)), score, lowest);
                    }
                    max = s.max(score, max);
                }
                s.store(p, score);
            }
        }
        if ordered {
            self.share(s, max);
        }
    }
}

/// What ALiBi needs to know of each lane.
struct Places<S: Simd> {
    position: S::F32,
    key: S::F32,
    slope: S::F32,
}

impl<S: Simd> Places<S> {
    #[inline(always)]
    fn new(s: S, terms: &Terms<'_>) -> Self {
        let (mut position, mut key, mut slope) = (Lanes([0.0; 16]), Lanes([0.0; 16]), Lanes([0.0; 16]));
        let row_lanes = S::LANES / terms.step_keys;
        for g in 0..terms.step_keys {
            for (r, row) in terms.rows.iter().enumerate() {
                let lane = g * row_lanes + r;
                position.0[lane] = (row.query as i64).saturating_add(terms.unit.alibi.unwrap_or(0)) as f32;
                key.0[lane] = g as f32;
                slope.0[lane] = -row.slope;
            }
        }
        // SAFETY: no vector has more than 16 lanes.
        unsafe {
            Self { position: s.load(position.0.as_ptr()), key: s.load(key.0.as_ptr()), slope: s.load(slope.0.as_ptr()) }
        }
    }
}

impl Terms<'_> {
    /// The first steps, of which there is nothing but their scales and their maximum: they are what most calls consist of.
    #[inline(always)]
    fn plain<S: Simd>(&self, s: S, steps: usize) -> S::F32 {
        // As many maxima as hide the latency of their chains.
        let mut max = [s.splat(f32::NEG_INFINITY); 4];
        // SAFETY: the arrays have a vector for each step.
        unsafe {
            for step in (0..steps).step_by(4) {
                for i in 0..4 {
                    if step + i < steps {
                        self.ask.step(s, step + i);
                        let p = self.scores.add((step + i) * S::LANES);
                        let mut score = s.load(p);
                        if !self.k_scales.is_null() {
                            score = s.mul(score, s.load(self.k_scales.add((step + i) * S::LANES)));
                            s.store(p, score);
                        }
                        max[i] = s.max(score, max[i]);
                    }
                }
            }
        }
        s.max(s.max(max[0], max[1]), s.max(max[2], max[3]))
    }

    #[inline(always)]
    fn with_terms<S: Simd>(&self, s: S, score: S::F32, step: usize, places: &Places<S>) -> S::F32 {
        let unit = self.unit;
        let mut score = s.mul(score, s.splat(unit.scale));
        if let Some(cap) = unit.softcap {
            let cap = s.splat(cap);
            score = s.mul(cap, math::tanh(s, s.div(score, cap)));
        }
        let first = self.first_key + step * self.step_keys;
        if unit.alibi.is_some() {
            let key = s.add(s.splat(first as f32), places.key);
            let distance = s.abs(s.sub(places.position, key));
            score = s.mul_add(distance, places.slope, score);
        }
        if unit.bias {
            let mut bias = Lanes([0.0; 16]);
            let row_lanes = S::LANES / self.step_keys;
            for g in 0..self.step_keys.min(self.keys - step * self.step_keys) {
                for (r, row) in self.rows.iter().enumerate() {
                    // SAFETY: the bias covers every key.
                    bias.0[g * row_lanes + r] = unsafe { *row.bias.add((first + g) * row.bias_stride) };
                }
            }
            // SAFETY: no vector has more than 16 lanes.
            score = s.add(score, unsafe { s.load(bias.0.as_ptr()) });
        }
        score
    }

    /// Gives all lanes of a row the largest of their maxima.
    #[inline(always)]
    fn share<S: Simd>(&self, s: S, max: S::F32) {
        let mut lanes = Lanes([f32::NEG_INFINITY; 16]);
        let row_lanes = S::LANES / self.step_keys;
        // SAFETY: no vector has more than 16 lanes; `max` has a vector.
        unsafe {
            s.store(lanes.0.as_mut_ptr(), max);
            for r in 0..row_lanes {
                let mut row = f32::NEG_INFINITY;
                for g in 0..self.step_keys {
                    row = row.max(lanes.0[g * row_lanes + r]);
                }
                for g in 0..self.step_keys {
                    lanes.0[g * row_lanes + r] = row;
                }
            }
            s.store(self.max, s.load(lanes.0.as_ptr()));
        }
    }
}

/// Writes the scales of keys to where the scores of these keys lie.
pub(super) struct Spread<'a> {
    pub(super) source: &'a Source<'a>,
    /// The first key, of the sequence.
    pub(super) first: usize,
    pub(super) keys: usize,
    pub(super) step_keys: usize,
    /// `[step][LANES]`, and a vector more.
    pub(super) to: *mut f32,
}

impl Op for Spread<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let row_lanes = S::LANES / self.step_keys;
        let mut place = 0;
        while place < self.keys {
            let run = self.source.run(self.first + place);
            let keys = run.rows.min(self.keys - place);
            // SAFETY: the run has the scales of these keys, and `to` has room: what a vector writes too far the next one, or
            // nobody, reads.
            unsafe {
                let to = self.to.add(place * row_lanes);
                // Those of the next block: they lie apart from the elements, and too few together for anything else to ask
                // for them in time.
                for line in (0..keys).step_by(16) {
                    s.prefetch_far(run.scales.wrapping_add((line + self.keys).wrapping_mul(run.scale_stride)));
                }
                let mut key = 0;
                if row_lanes == 1 && run.scale_stride == 1 {
                    while key + S::LANES <= keys {
                        s.store(to.add(key), s.load(run.scales.add(key)));
                        key += S::LANES;
                    }
                }
                while key < keys {
                    s.store(to.add(key * row_lanes), s.splat(*run.scales.add(key * run.scale_stride)));
                    key += 1;
                }
            }
            place += keys;
        }
    }
}
