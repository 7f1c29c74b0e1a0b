//! Hard attention: the one row of V whose key has the largest score, the leftmost or the rightmost of them
//! (unique-hard attention; Hahn 2020).
//!
//! Scores are compared with IEEE `==`, so -0 ties with +0. They are compared before scale and temperature, which are
//! positive (a negative scale turns the sign of Q) and cannot change which is largest: no tie is made or lost by
//! rounding a factor in. A visible NaN score gives a row of NaN. No exponential, and no value product.
//!
//! Merge law, with the state `(max, key, nan)` and the keys of `a` to the left of those of `b`: for the leftmost key `b` if
//! `max_b > max_a`, else `a`; for the rightmost `a` if `max_a > max_b`, else `b`; NaN if either is. A part without a key is
//! neutral exactly. The sums are the selected row of V.

use regard_simd::Simd;

use super::{Block, Kind, Lane, Mix, RowState, Step, Weighting};

/// Which of several largest scores wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The first key.
    Left,
    /// The last key.
    Right,
}

/// All weight on one key with the largest score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hard {
    /// Which key, if several have the largest score.
    pub side: Side,
}

/// State slots that the kernels read when all keys are seen.
pub(crate) mod slot {
    /// The largest score so far.
    pub(crate) const MAX: usize = 0;
    /// The key that has it, as the bits of a `u32`; [`NO_KEY`] before any.
    pub(crate) const KEY: usize = 1;
    /// 1 once a visible score was NaN, else 0.
    pub(crate) const NAN: usize = 2;
    /// Average-hard only: how many keys have the largest score; exact up to 2^24 of them.
    pub(crate) const COUNT: usize = 3;
    /// No key was seen.
    pub(crate) const NO_KEY: u32 = u32::MAX;
}

/// State of rows that have seen no key.
#[inline(always)]
pub(super) fn begin<S: Simd>(s: S, lane: &mut Lane<S>) {
    lane.state[slot::MAX] = s.splat(f32::NEG_INFINITY);
    lane.state[slot::KEY] = s.splat(f32::from_bits(slot::NO_KEY));
}

/// Finds the block's key of the largest score, and moves the state where it is a new largest one.
///
/// Several lanes may share a row, each with some of its keys and all with the row's largest score of the block. A lane with
/// no key of that score has [`slot::NO_KEY`] and a count of 0; else its key is its own first or last one. Without `COUNT`
/// the leftmost key of a lane may be left out if it is not the row's, which lies in an earlier block.
///
/// # Safety
/// As for [`Weighting::weigh`].
#[inline(always)]
pub(super) unsafe fn select_keys<S: Simd, const RIGHT: bool, const COUNT: bool>(s: S, block: &Block<'_>) {
    let lowest = s.splat(f32::NEG_INFINITY);
    let no_key = s.splat(f32::from_bits(slot::NO_KEY));
    for vector in 0..block.vectors {
        // SAFETY: the pointers of the block are valid as its fields say, and keys come from its segments.
        unsafe {
            let best = block.row(s, block.max, vector);
            let mut found = Found { key: no_key, count: s.zero(), nan: s.mask_from_bits(0) };
            // The last hit of the scan stays: to the right for the rightmost key, to the left for the leftmost.
            if RIGHT {
                // A tie moves the key only if this lane has one.
                let higher = s.gt(best, block.state(s, slot::MAX, vector));
                found.key = s.select(higher, no_key, block.state(s, slot::KEY, vector));
                for segment in block.segments {
                    for key in segment.key..segment.key + segment.keys {
                        look::<S, COUNT>(s, block, vector, key, best, &mut found);
                    }
                }
            } else {
                for segment in block.segments.iter().rev() {
                    for key in (segment.key..segment.key + segment.keys).rev() {
                        look::<S, COUNT>(s, block, vector, key, best, &mut found);
                    }
                }
            }
            let old = block.state(s, slot::MAX, vector);
            let higher = s.gt(best, old);
            let equal = s.and(s.eq(best, old), s.gt(best, lowest));
            block.set_state(s, slot::MAX, vector, s.select(higher, best, old));
            let mut wins = if RIGHT { s.or(higher, equal) } else { higher };
            if COUNT {
                let count = block.state(s, slot::COUNT, vector);
                wins = s.or(wins, s.and(equal, s.eq(count, s.zero())));
                let count = s.select(equal, s.add(count, found.count), count);
                block.set_state(s, slot::COUNT, vector, s.select(higher, found.count, count));
            }
            block.set_state(s, slot::KEY, vector, s.select(wins, found.key, block.state(s, slot::KEY, vector)));
            let nan = s.select(found.nan, s.splat(1.0), block.state(s, slot::NAN, vector));
            block.set_state(s, slot::NAN, vector, nan);
        }
    }
}

/// What a scan has seen of one vector of lanes.
struct Found<S: Simd> {
    key: S::F32,
    count: S::F32,
    nan: S::Mask,
}

/// One key of a scan.
///
/// # Safety
/// The key is of the block, the vector of the sub-tile.
#[inline(always)]
unsafe fn look<S: Simd, const COUNT: bool>(
    s: S,
    block: &Block<'_>,
    vector: usize,
    key: usize,
    best: S::F32,
    found: &mut Found<S>,
) {
    // SAFETY: the caller's contract.
    let score = unsafe { s.load(block.scores.add(key * block.lanes + vector * S::LANES)) };
    let hit = s.eq(score, best);
    found.key = s.select(hit, s.splat(f32::from_bits((block.first_key + key) as u32)), found.key);
    if COUNT {
        found.count = s.select(hit, s.add(found.count, s.splat(1.0)), found.count);
    }
    found.nan = s.or(found.nan, s.is_nan(score));
}

// SAFETY: `weigh` writes to the state of the lanes of the block's segments only.
unsafe impl Weighting for Hard {
    const STATE: usize = 3;
    const ORDERED: bool = true;
    const KIND: Kind = Kind::OneRow;

    #[inline(always)]
    fn begin<S: Simd>(&self, s: S, lane: &mut Lane<S>) {
        begin(s, lane);
    }

    #[inline(always)]
    unsafe fn weigh<S: Simd>(&self, s: S, block: &Block<'_>) -> Step {
        // SAFETY: the caller's contract.
        unsafe {
            match self.side {
                Side::Left => select_keys::<S, false, false>(s, block),
                Side::Right => select_keys::<S, true, false>(s, block),
            }
        }
        Step::Skip
    }

    #[inline(always)]
    fn finish<S: Simd>(&self, s: S, _lane: &Lane<S>) -> S::F32 {
        s.splat(1.0)
    }

    fn merge(&self, RowState(left): &mut RowState, RowState(right): &RowState, _gain: f32) -> Mix {
        let nan = left[slot::NAN].max(right[slot::NAN]);
        let has_key = |state: &[f32]| state[slot::KEY].to_bits() != slot::NO_KEY;
        let takes_tie = has_key(right) && (self.side == Side::Right || !has_key(left));
        let wins = right[slot::MAX] > left[slot::MAX] || (right[slot::MAX] == left[slot::MAX] && takes_tie);
        if wins {
            *left = *right;
        }
        left[slot::NAN] = nan;
        if wins { Mix::Right } else { Mix::Left }
    }

    fn weights_f64(&self, scores: &[f64], visible: &[bool], _sink: Option<f64>, weights: &mut [f64]) {
        weights.fill(0.0);
        let mut best: Option<usize> = None;
        for (key, score) in scores.iter().enumerate().filter(|(key, _)| visible[*key]) {
            if score.is_nan() {
                weights.fill(f64::NAN);
                return;
            }
            let better = match (best, self.side) {
                (None, _) => *score > f64::NEG_INFINITY,
                (Some(best), Side::Left) => *score > scores[best],
                (Some(best), Side::Right) => *score >= scores[best],
            };
            if better {
                best = Some(key);
            }
        }
        if let Some(best) = best {
            weights[best] = 1.0;
        }
    }
}
