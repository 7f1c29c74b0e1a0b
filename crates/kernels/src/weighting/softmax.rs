//! Softmax: `w_j = e^(s_j - m) / (sum over visible j of e^(s_j - m) + e^(sink - m))`, `m` the largest visible score.
//!
//! State: the running maximum and the sum of exponentials relative to it, which merge associatively (online
//! softmax; Milakov and Gimelshein, 2018). The sum is kept as two, of even and of odd keys: two independent chains of
//! additions, each in an order that depends on the key alone. Each block is summed from zero and then added.
//!
//! Merge law, with the state `(m, even, odd)` and `m = max(m_a, m_b)`:
//! `(m, f_a even_a + f_b even_b, f_a odd_a + f_b odd_b, f_a sums_a + f_b sums_b)`, where `f_i = 2^((m_i - m) gain)`, and
//! exactly 1 if `m_i = m`. A part without any weight, whose state is (-inf, 0, 0), is neutral exactly: the other part stays
//! as it is, sums and all.
//!
//! A masked score is -inf, whose exponential is exactly 0. A row that has seen no key has the state (-inf, 0, 0) and
//! gives zeros.

use regard_simd::{Simd, math};

use super::row::exp2;
use super::{Block, Kind, Lane, LogSumExp, MAX_STATE, Mix, RowState, Step, Weighting};

/// Softmax, at any temperature, with or without a sink.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Softmax;

/// Largest score so far, before `gain`.
const MAX: usize = 0;
/// Sum of `2^((s - max) * gain)` over the keys at even places of their block.
const EVEN: usize = 1;
/// The same over odd places.
const ODD: usize = 2;

/// The maximum to subtract: 0 where no key was seen, as (-inf) - (-inf) would be NaN.
#[inline(always)]
fn finite<S: Simd>(s: S, max: S::F32) -> S::F32 {
    s.select(s.eq(max, s.splat(f32::NEG_INFINITY)), s.zero(), max)
}

/// Turns the scores of `N` keys into weights.
///
/// # Safety
/// `N` rows of `lanes` are readable and writable from `p` on.
#[inline(always)]
unsafe fn weights<S: Simd, const N: usize>(s: S, p: *mut f32, lanes: usize, max: S::F32, gain: S::F32) -> [S::F32; N] {
    let mut x = [s.zero(); N];
    for i in 0..N {
        // SAFETY: the caller's contract.
        let score = unsafe { s.load(p.add(i * lanes)) };
        x[i] = s.mul(s.sub(score, max), gain);
    }
    let weights = math::exp2_each(s, x);
    for i in 0..N {
        // SAFETY: the caller's contract.
        unsafe { s.store(p.add(i * lanes), weights[i]) };
    }
    weights
}

/// `ln(sum of e^s)` over the visible keys and the sink; -inf where there is neither. In f64, as the last digits of a
/// large maximum count when partial results are merged.
fn log_sum_exp(state: &[f32; MAX_STATE], gain: f32, sink: f32) -> f32 {
    let sum = f64::from(state[EVEN] + state[ODD]);
    let keys = if sum == 0.0 {
        f64::NEG_INFINITY
    } else {
        let max = if state[MAX] == f32::NEG_INFINITY { 0.0 } else { state[MAX] };
        f64::from(max) * f64::from(gain) + sum.log2()
    };
    let (high, low) = if keys < f64::from(sink) { (f64::from(sink), keys) } else { (keys, f64::from(sink)) };
    let both =
        if low == f64::NEG_INFINITY { high } else { high + (low - high).exp2().ln_1p() / std::f64::consts::LN_2 };
    (both * std::f64::consts::LN_2) as f32
}

/// Whether a row has no weight at all. Where all scores are NaN the maximum is -inf too, but the sums are not 0.
fn is_empty(state: &[f32; MAX_STATE]) -> bool {
    state[MAX] == f32::NEG_INFINITY && state[EVEN] == 0.0 && state[ODD] == 0.0
}

/// What turns sums relative to `max` into sums relative to `new >= max`.
fn factor(max: f32, new: f32, gain: f32) -> f32 {
    // Infinite maxima have no difference.
    if max == new { 1.0 } else { exp2((max - new) * gain) }
}

// SAFETY: `weigh` writes to the scores of the block's segments, and to state and alpha of their lanes only.
unsafe impl Weighting for Softmax {
    const STATE: usize = 3;
    const ORDERED: bool = true;
    const KIND: Kind = Kind::Weighted;
    const LOG_SUM_EXP: Option<LogSumExp> = Some(log_sum_exp);

    #[inline(always)]
    fn begin<S: Simd>(&self, s: S, lane: &mut Lane<S>) {
        lane.state[MAX] = s.splat(f32::NEG_INFINITY);
    }

    #[inline(always)]
    unsafe fn weigh<S: Simd>(&self, s: S, block: &Block<'_>) -> Step {
        let mut rescale = false;
        for vector in 0..block.vectors {
            // SAFETY: the pointers of the block are valid as its fields say, and keys come from its segments.
            unsafe {
                let gain = block.row(s, block.gain, vector);
                let old = block.state(s, MAX, vector);
                let new = s.max(block.row(s, block.max, vector), old);
                let max = finite(s, new);
                rescale |= s.any(s.gt(new, old));
                let alpha = math::exp2(s, s.mul(s.sub(old, max), gain));
                s.store(block.alpha.add(vector * S::LANES), alpha);
                let (mut even, mut odd) = (s.zero(), s.zero());
                for segment in block.segments {
                    let mut p = block.scores.add(segment.key * block.lanes + vector * S::LANES);
                    for _ in 0..segment.keys / 4 {
                        let [a, b, c, d] = weights::<S, 4>(s, p, block.lanes, max, gain);
                        even = s.add(even, a);
                        odd = s.add(odd, b);
                        even = s.add(even, c);
                        odd = s.add(odd, d);
                        p = p.wrapping_add(4 * block.lanes);
                    }
                    for place in 0..segment.keys % 4 {
                        let [weight] = weights::<S, 1>(s, p, block.lanes, max, gain);
                        let sum = if place % 2 == 0 { &mut even } else { &mut odd };
                        *sum = s.add(*sum, weight);
                        p = p.wrapping_add(block.lanes);
                    }
                }
                block.set_state(s, MAX, vector, new);
                block.set_state(s, EVEN, vector, s.mul_add(block.state(s, EVEN, vector), alpha, even));
                block.set_state(s, ODD, vector, s.mul_add(block.state(s, ODD, vector), alpha, odd));
            }
        }
        if rescale { Step::Rescale } else { Step::Add }
    }

    #[inline(always)]
    fn finish<S: Simd>(&self, s: S, lane: &Lane<S>) -> S::F32 {
        let sum = s.add(lane.state[EVEN], lane.state[ODD]);
        let max = s.mul(finite(s, lane.state[MAX]), lane.gain);
        // The product may overflow, and inf - inf would be NaN.
        let largest = s.splat(f32::MAX);
        let max = s.select(s.gt(max, largest), largest, max);
        // The sink joins the denominator; the larger of the two exponents becomes the reference.
        let no_key = s.eq(lane.state[MAX], s.splat(f32::NEG_INFINITY));
        let no_sink = s.eq(lane.sink, s.splat(f32::NEG_INFINITY));
        let reference = s.max(lane.sink, s.select(no_key, lane.sink, max));
        let scale = s.select(no_sink, s.splat(1.0), math::exp2(s, s.sub(max, reference)));
        let sink = s.select(no_sink, s.zero(), math::exp2(s, s.sub(lane.sink, reference)));
        let total = s.mul_add(sum, scale, sink);
        let empty = s.eq(sum, s.zero());
        s.select(empty, s.zero(), s.div(scale, total))
    }

    fn merge(&self, RowState(left): &mut RowState, RowState(right): &RowState, gain: f32) -> Mix {
        if is_empty(right) {
            return Mix::Left;
        }
        if is_empty(left) {
            *left = *right;
            return Mix::Right;
        }
        let max = if right[MAX] > left[MAX] { right[MAX] } else { left[MAX] };
        let (a, b) = (factor(left[MAX], max, gain), factor(right[MAX], max, gain));
        left[MAX] = max;
        for slot in [EVEN, ODD] {
            left[slot] = left[slot] * a + right[slot] * b;
        }
        Mix::Both { left: a, right: b }
    }

    fn weights_f64(&self, scores: &[f64], visible: &[bool], sink: Option<f64>, weights: &mut [f64]) {
        let seen = || scores.iter().zip(visible).filter(|(_, visible)| **visible).map(|(score, _)| *score);
        let max = seen().fold(sink.unwrap_or(f64::NEG_INFINITY), f64::max);
        let max = if max == f64::NEG_INFINITY { 0.0 } else { max };
        let sum = seen().map(|score| (score - max).exp()).sum::<f64>() + sink.map_or(0.0, |sink| (sink - max).exp());
        for ((weight, score), visible) in weights.iter_mut().zip(scores).zip(visible) {
            *weight = if !visible || sum == 0.0 { 0.0 } else { (score - max).exp() / sum };
        }
    }
}
