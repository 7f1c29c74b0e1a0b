//! Weightings `f(s_j) / sum over visible j of f(s_j)` with a function that is never negative: a sum, but no maximum and
//! no exponential.
//!
//! A row whose sum is zero (no visible key, or all of its weights zero) gives zeros.
//!
//! State: the sum, as two, of even and of odd places, as in softmax.
//!
//! Merge law: `(even_a + even_b, odd_a + odd_b, sums_a + sums_b)`.

use regard_simd::Simd;

use super::{Block, Kind, Lane, Mix, Pointwise, RowState, Step, Weighting};

/// A pointwise function, normalised over the row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Normalised<P>(pub P);

/// Sum of the weights at even places of their block.
const EVEN: usize = 0;
/// The same at odd places.
const ODD: usize = 1;

// SAFETY: `weigh` writes to the scores of the block's segments and to the state of their lanes only.
unsafe impl<P: Pointwise> Weighting for Normalised<P> {
    const STATE: usize = 2;
    const ORDERED: bool = false;
    const KIND: Kind = Kind::Weighted;

    #[inline(always)]
    fn begin<S: Simd>(&self, _s: S, _lane: &mut Lane<S>) {}

    #[inline(always)]
    unsafe fn weigh<S: Simd>(&self, s: S, block: &Block<'_>) -> Step {
        for vector in 0..block.vectors {
            // SAFETY: the pointers of the block are valid as its fields say, and keys come from its segments.
            unsafe {
                let gain = block.row(s, block.gain, vector);
                let mut sums = [s.zero(); 2];
                for segment in block.segments {
                    // Segments start at even places.
                    let end = segment.key + segment.keys;
                    for pair in (segment.key..end).step_by(2) {
                        for place in 0..2 {
                            let key = pair + place;
                            if key == end {
                                break;
                            }
                            let p = block.scores.add(key * block.lanes + vector * S::LANES);
                            let mut weight = self.0.weight(s, s.mul(s.load(p), gain));
                            if segment.masked {
                                let seen = s.mask_from_bits(*block.visible.add(key) >> (vector * S::LANES));
                                weight = s.select(seen, weight, s.zero());
                            }
                            s.store(p, weight);
                            sums[place] = s.add(sums[place], weight);
                        }
                    }
                }
                block.set_state(s, EVEN, vector, s.add(block.state(s, EVEN, vector), sums[0]));
                block.set_state(s, ODD, vector, s.add(block.state(s, ODD, vector), sums[1]));
            }
        }
        Step::Add
    }

    #[inline(always)]
    fn finish<S: Simd>(&self, s: S, lane: &Lane<S>) -> S::F32 {
        let sum = s.add(lane.state[EVEN], lane.state[ODD]);
        s.select(s.eq(sum, s.zero()), s.zero(), s.div(s.splat(1.0), sum))
    }

    fn merge(&self, RowState(left): &mut RowState, RowState(right): &RowState, _gain: f32) -> Mix {
        left[EVEN] += right[EVEN];
        left[ODD] += right[ODD];
        Mix::SUM
    }

    fn weights_f64(&self, scores: &[f64], visible: &[bool], _sink: Option<f64>, weights: &mut [f64]) {
        for ((weight, score), visible) in weights.iter_mut().zip(scores).zip(visible) {
            *weight = if *visible { self.0.weight_f64(*score) } else { 0.0 };
        }
        let sum = weights.iter().sum::<f64>();
        if sum != 0.0 {
            weights.iter_mut().for_each(|weight| *weight /= sum);
        }
    }
}
