//! One row outside of vectors: what its partial results carry, and how those of two ranges of keys become one.

use regard_simd::{Op, Portable, Simd, math};

use super::{Lane, MAX_STATE, Weighting};

/// The state of one row: the [`Weighting::STATE`] f32 of its weighting, then zeros.
///
/// An element may hold the bits of an integer; copies keep them.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub struct RowState(pub [f32; MAX_STATE]);

/// What the sums of a row over two ranges of keys are, given those over each.
///
/// [`Mix::Left`] and [`Mix::Right`] take one side as it is, bit for bit: nothing of the other is read, NaN neither.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mix {
    /// Those of the earlier keys.
    Left,
    /// Those of the later keys.
    Right,
    /// `left * (sums of the earlier keys) + right * (sums of the later keys)`
    Both {
        /// Factor of the sums of the earlier keys.
        left: f32,
        /// Factor of the sums of the later keys.
        right: f32,
    },
}

impl Mix {
    /// Sums that add up.
    pub(super) const SUM: Self = Self::Both { left: 1.0, right: 1.0 };
}

/// `2^x` as [`math::exp2`] has it at the portable level, and so with the same bits on every machine.
pub(super) fn exp2(x: f32) -> f32 {
    struct Exp2(f32);
    impl Op for Exp2 {
        type Output = f32;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> f32 {
            first(s, math::exp2(s, s.splat(self.0)))
        }
    }
    portable().vectorize(Exp2(x))
}

/// See [`Weighting::begin_row`].
pub(super) fn begin<W: Weighting>(weighting: &W) -> RowState {
    struct Begin<W>(W);
    impl<W: Weighting> Op for Begin<W> {
        type Output = RowState;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> RowState {
            let mut lane = Lane { state: [s.zero(); MAX_STATE], gain: s.zero(), sink: s.zero() };
            self.0.begin(s, &mut lane);
            let mut row = RowState([0.0; MAX_STATE]);
            for slot in 0..W::STATE {
                row.0[slot] = first(s, lane.state[slot]);
            }
            row
        }
    }
    portable().vectorize(Begin(*weighting))
}

fn portable() -> Portable {
    // SAFETY: every machine has the portable level.
    unsafe { Portable::assume() }
}

/// Lane 0.
#[inline(always)]
fn first<S: Simd>(s: S, x: S::F32) -> f32 {
    let mut first = 0.0;
    // SAFETY: there is room for one element.
    unsafe { s.store_first(&raw mut first, x, 1) };
    first
}
