//! Weightings that look at one score at a time: no maximum, no normaliser, no state.
//!
//! A masked weight is *selected* to zero: -inf as a score would be wrong for polynomials.
//!
//! Merge law: `sums_a + sums_b`, without a state.

use regard_simd::Simd;

use super::{Block, Kind, Lane, Mix, RowState, Step, Weighting};

/// A weight that is a function of its score alone; the trait to implement for a weighting of one's own.
///
/// ```
/// use regard_kernels::weighting::Pointwise;
/// use regard_simd::Simd;
///
/// /// Softplus-like rectifier `max(0, s)^2 / (1 + |s|)`.
/// #[derive(Clone, Copy)]
/// struct Smooth;
///
/// impl Pointwise for Smooth {
///     #[inline(always)]
///     fn weight<S: Simd>(&self, s: S, score: S::F32) -> S::F32 {
///         let positive = s.max(score, s.zero());
///         s.div(s.mul(positive, positive), s.add(s.splat(1.0), s.abs(score)))
///     }
///
///     fn weight_f64(&self, score: f64) -> f64 {
///         let positive = score.max(0.0);
///         positive * positive / (1.0 + score.abs())
///     }
/// }
/// ```
pub trait Pointwise: Copy + Send + Sync + 'static {
    /// Whether weights of zero are so common that whole ranges of keys may have no other: it then pays to look for them, and
    /// their values are left out of the value product where they are finite. It changes no result.
    const SPARSE: bool = false;

    /// The weights of a vector of scores. Mark it `#[inline(always)]`, and use neither closures nor calls of functions
    /// that are not `#[inline(always)]` themselves.
    fn weight<S: Simd>(&self, s: S, score: S::F32) -> S::F32;

    /// The same in f64, by the definition: the oracle that the library checks `weight` against.
    fn weight_f64(&self, score: f64) -> f64;
}

/// A pointwise function as a weighting.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Map<P>(pub P);

// SAFETY: `weigh` writes to the scores of the block's segments only.
unsafe impl<P: Pointwise> Weighting for Map<P> {
    const STATE: usize = 0;
    const ORDERED: bool = false;
    const KIND: Kind = Kind::Weighted;

    #[inline(always)]
    fn begin<S: Simd>(&self, _s: S, _lane: &mut Lane<S>) {}

    #[inline(always)]
    unsafe fn weigh<S: Simd>(&self, s: S, block: &Block<'_>) -> Step {
        if P::SPARSE {
            // SAFETY: the caller's contract.
            return unsafe { self.weigh_sparse(s, block) };
        }
        for segment in block.segments {
            for vector in 0..block.vectors {
                // SAFETY: the pointers of the block are valid as its fields say, and keys come from its segments.
                unsafe {
                    let gain = block.row(s, block.gain, vector);
                    let shift = block.row(s, block.shift, vector);
                    let mut p = block.scores.add(segment.key * block.lanes + vector * S::LANES);
                    if segment.masked {
                        for key in segment.key..segment.key + segment.keys {
                            let weight = self.0.weight(s, s.mul_add(s.load(p), gain, shift));
                            let seen = s.mask_from_bits(*block.visible.add(key) >> (vector * S::LANES));
                            s.store(p, s.select(seen, weight, s.zero()));
                            p = p.wrapping_add(block.lanes);
                        }
                    } else {
                        for _ in 0..segment.keys {
                            s.store(p, self.0.weight(s, s.mul_add(s.load(p), gain, shift)));
                            p = p.wrapping_add(block.lanes);
                        }
                    }
                }
            }
        }
        Step::Add
    }

    #[inline(always)]
    fn finish<S: Simd>(&self, s: S, _lane: &Lane<S>) -> S::F32 {
        s.splat(1.0)
    }

    fn merge(&self, _left: &mut RowState, _right: &RowState, _gain: f32) -> Mix {
        Mix::SUM
    }

    fn weights_f64(&self, scores: &[f64], visible: &[bool], _sink: Option<f64>, weights: &mut [f64]) {
        for ((weight, score), visible) in weights.iter_mut().zip(scores).zip(visible) {
            *weight = if *visible { self.0.weight_f64(*score) } else { 0.0 };
        }
    }
}

/// Keys that [`Pointwise::SPARSE`] weightings look at together.
const RUN: usize = 16;

impl<P: Pointwise> Map<P> {
    /// As [`Weighting::weigh`], and says from where to where there are weights other than zero.
    ///
    /// Runs of zeros between others are not left out. The value product is one chain of multiply-adds over the keys of a block; it
    /// goes on unchanged past products of zero, and would go on so across a gap, but parts computed apart are added up in another
    /// order. Whether there is a gap depends on all rows of the sub-tile, so that a row's bits would depend on its company. A
    /// product that carries its sums across gaps needs one more loop around the innermost one, which every other weighting would
    /// pay for.
    ///
    /// # Safety
    /// As for [`Weighting::weigh`].
    #[inline(always)]
    unsafe fn weigh_sparse<S: Simd>(&self, s: S, block: &Block<'_>) -> Step {
        let (mut from, mut to) = (usize::MAX, 0);
        let every = s.mask_from_bits(u64::MAX);
        for segment in block.segments {
            let end = segment.key + segment.keys;
            for vector in 0..block.vectors {
                // SAFETY: the pointers of the block are valid as its fields say, and keys come from its segments.
                unsafe {
                    let gain = block.row(s, block.gain, vector);
                    let shift = block.row(s, block.shift, vector);
                    for run in (segment.key..end).step_by(RUN) {
                        let run_end = (run + RUN).min(end);
                        let mut p = block.scores.add(run * block.lanes + vector * S::LANES);
                        let mut zero = every;
                        for key in run..run_end {
                            let mut weight = self.0.weight(s, s.mul_add(s.load(p), gain, shift));
                            if segment.masked {
                                let seen = s.mask_from_bits(*block.visible.add(key) >> (vector * S::LANES));
                                weight = s.select(seen, weight, s.zero());
                            }
                            zero = s.and(zero, s.eq(weight, s.zero()));
                            s.store(p, weight);
                            p = p.wrapping_add(block.lanes);
                        }
                        if s.mask_to_bits(zero) != s.mask_to_bits(every) {
                            (from, to) = (from.min(run), to.max(run_end));
                        }
                    }
                }
            }
        }
        let whole = block.segments.first().map_or(0, |first| first.key);
        let end = block.segments.last().map_or(0, |last| last.key + last.keys);
        if from <= whole && to == end {
            Step::Add
        } else {
            Step::Part { key: from.min(to), keys: to.saturating_sub(from) }
        }
    }
}
