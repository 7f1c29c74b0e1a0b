//! Average-hard attention: the mean of the rows of V whose keys have the largest score
//! (AHAT; "saturated" attention; Yang, Strobl, Chiang and Angluin, arXiv:2412.09925, definition of average-hard).
//!
//! The kernels track a key of the largest score and how many there are. Where it is one, the result is its row of V; where
//! there are more, a second pass over the scores adds up the tied rows of V in ascending order of keys and
//! divides by their number: the value product is never computed. Ties, NaN and factors are treated as in hard
//! attention.
//!
//! Merge law, with the state `(max, key, nan, count)`: `a` if `max_a > max_b`, `b` if `max_b > max_a`, else
//! `(max, key_a, count_a + count_b, sums_a + sums_b)`; NaN if either is. A part without a key, whose count is 0, is neutral
//! exactly.

use regard_simd::Simd;

use super::hard::{self, slot};
use super::{Block, Kind, Lane, Mix, RowState, Step, Weighting};

/// Equal weight on all keys with the largest score.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct AverageHard;

// SAFETY: `weigh` writes to the state of the lanes of the block's segments only.
unsafe impl Weighting for AverageHard {
    const STATE: usize = 4;
    const ORDERED: bool = true;
    const KIND: Kind = Kind::TiedRows;

    #[inline(always)]
    fn begin<S: Simd>(&self, s: S, lane: &mut Lane<S>) {
        hard::begin(s, lane);
    }

    #[inline(always)]
    unsafe fn weigh<S: Simd>(&self, s: S, block: &Block<'_>) -> Step {
        // SAFETY: the caller's contract.
        unsafe { hard::select_keys::<S, false, true>(s, block) };
        Step::Skip
    }

    #[inline(always)]
    fn finish<S: Simd>(&self, s: S, _lane: &Lane<S>) -> S::F32 {
        s.splat(1.0)
    }

    fn merge(&self, RowState(left): &mut RowState, RowState(right): &RowState, _gain: f32) -> Mix {
        let nan = left[slot::NAN].max(right[slot::NAN]);
        let mix = if right[slot::MAX] > left[slot::MAX] {
            *left = *right;
            Mix::Right
        } else if left[slot::MAX] > right[slot::MAX] || right[slot::COUNT] == 0.0 {
            Mix::Left
        } else if left[slot::COUNT] == 0.0 {
            *left = *right;
            Mix::Right
        } else {
            left[slot::COUNT] += right[slot::COUNT];
            Mix::SUM
        };
        left[slot::NAN] = nan;
        mix
    }

    fn weights_f64(&self, scores: &[f64], visible: &[bool], _sink: Option<f64>, weights: &mut [f64]) {
        weights.fill(0.0);
        let seen = || (0..scores.len()).filter(|key| visible[*key]);
        if seen().any(|key| scores[key].is_nan()) {
            weights.fill(f64::NAN);
            return;
        }
        let max = seen().map(|key| scores[key]).fold(f64::NEG_INFINITY, f64::max);
        if max == f64::NEG_INFINITY {
            return;
        }
        let ties = seen().filter(|key| scores[*key] == max).count();
        for key in seen().filter(|key| scores[*key] == max) {
            weights[key] = 1.0 / ties as f64;
        }
    }
}
