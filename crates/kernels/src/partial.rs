//! Partial results: a row over a range of its keys, merged with the ranges that follow, and ended.
//!
//! [`crate::weighting`] says what a partial result is, and by which laws two of them merge.

use regard_simd::{Op, Simd, bf16, f16};

use crate::rules::{Ending, Weigh};
use crate::source::{Narrow, PartialRows, Target};
use crate::tensor::Dtype;
use crate::weighting::{FinishArgs, Kind, MAX_STATE, Mix, RowState, slot};

/// Merges the partial result of one row over later keys into that over earlier keys. The same bits at every level.
pub(crate) struct Fold<'a> {
    pub(crate) weighting: Weigh<'a>,
    /// See [`crate::weighting::Block::gain`].
    pub(crate) gain: f32,
    pub(crate) left: &'a mut RowState,
    /// `[d_v]`
    pub(crate) left_sums: *mut f32,
    pub(crate) right: &'a RowState,
    /// `[d_v]`, apart from `left_sums`; only read
    pub(crate) right_sums: *const f32,
    pub(crate) d_v: usize,
}

impl<'a> Fold<'a> {
    /// The merge of row 0 of two partial results.
    ///
    /// # Safety
    /// Both have the row, and no one else uses `left` while the fold lives.
    pub(crate) unsafe fn of(weighting: Weigh<'a>, gain: f32, left: PartialRows, right: PartialRows) -> Self {
        // SAFETY: the caller's contract.
        let (left_state, right_state) = unsafe { (&mut *left.states, &*right.states) };
        Self {
            weighting,
            gain,
            left: left_state,
            left_sums: left.sums,
            right: right_state,
            right_sums: right.sums,
            d_v: left.d_v,
        }
    }
}

impl Op for Fold<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { weighting, gain, left, left_sums, right, right_sums, d_v } = self;
        // SAFETY: `data` is of the type that the functions were made for (contract of `Weigh`).
        let mix = unsafe { (weighting.functions.merge)(weighting.data, left, right, gain) };
        let (a, b) = match mix {
            Mix::Left => return,
            // SAFETY: both have `d_v` elements and lie apart (contract of the struct, made by the kernels).
            Mix::Right => return unsafe { left_sums.copy_from_nonoverlapping(right_sums, d_v) },
            Mix::Both { left, right } => (s.splat(left), s.splat(right)),
        };
        for c in (0..d_v).step_by(S::LANES) {
            let len = (d_v - c).min(S::LANES);
            // SAFETY: as above.
            unsafe {
                let left = s.mul(s.load_first(left_sums.add(c), len), a);
                let right = s.mul(s.load_first(right_sums.add(c), len), b);
                // Not fused: a merge has the same bits at every level.
                s.store_first(left_sums.add(c), s.add(left, right), len);
            }
        }
    }
}

/// Ends one row whose state and sums are those over all of its keys: writes its output, and its log-sum-exp if the weighting
/// has one.
pub(crate) struct Conclude<'a> {
    pub(crate) weighting: Weigh<'a>,
    pub(crate) state: &'a RowState,
    /// `[d_v]`, only read
    pub(crate) sums: *const f32,
    pub(crate) d_v: usize,
    pub(crate) ending: Ending,
    /// The output row, `d_v` elements, written.
    pub(crate) out: Target,
    /// One element, written; null for none.
    pub(crate) lse: *mut f32,
}

impl Op for Conclude<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let functions = self.weighting.functions;
        let RowState(state) = self.state;
        let count = match functions.kind {
            Kind::Weighted => {
                // SAFETY: the rows have `d_v` elements, and there is room for a log-sum-exp (contract of the struct, made
                // by the kernels).
                unsafe { self.weighted(s) };
                return;
            }
            Kind::OneRow => 1.0,
            Kind::TiedRows => state[slot::COUNT],
        };
        let end = if state[slot::NAN] != 0.0 {
            End::Fill(f32::NAN)
        } else if state[slot::KEY].to_bits() == slot::NO_KEY {
            End::Fill(0.0)
        } else if count == 1.0 {
            End::Keep
        } else {
            End::Mean(1.0 / count)
        };
        // SAFETY: as above.
        unsafe { self.selected(s, end) }
    }
}

/// What becomes of the sums of a selection.
#[derive(Clone, Copy)]
enum End {
    /// One number in all columns.
    Fill(f32),
    /// A row of V, bit for bit.
    Keep,
    /// The mean of rows of V: one over their number.
    Mean(f32),
}

impl Conclude<'_> {
    /// # Safety
    /// The fields are as they say.
    #[inline(always)]
    unsafe fn weighted<S: Simd>(self, s: S) {
        /// The lanes of the widest level: a multiple of those of any.
        const LANES: usize = 16;
        let Self { weighting, state: RowState(state), sums, d_v, ending, out, lse } = self;
        let functions = weighting.functions;
        let (gain, sink) = ([ending.gain; LANES], [ending.sink; LANES]);
        let mut states = [[0.0; LANES]; MAX_STATE];
        for slot in 0..functions.state {
            states[slot] = [state[slot]; LANES];
        }
        let mut factor = [0.0; LANES];
        let args = FinishArgs {
            state: states.as_ptr().cast(),
            gain: gain.as_ptr(),
            lanes: LANES,
            sink: sink.as_ptr(),
            factor: factor.as_mut_ptr(),
        };
        // SAFETY: the functions are of a level of this machine, `data` is of their type (contract of `Weigh`), and the arrays
        // are as long as `args` says.
        unsafe { (functions.finish)(weighting.data, &args) };
        Narrow { from: sums, factor: factor[0] * ending.out, columns: d_v, to: out }.run(s);
        if let Some(log_sum_exp) = functions.log_sum_exp.filter(|_| !lse.is_null()) {
            // SAFETY: the caller's contract.
            unsafe { *lse = log_sum_exp(state, ending.gain, ending.sink) };
        }
    }

    /// # Safety
    /// The fields are as they say.
    #[inline(always)]
    unsafe fn selected<S: Simd>(self, s: S, end: End) {
        let Self { sums, d_v, out, .. } = self;
        for c in (0..d_v).step_by(S::LANES) {
            let len = (d_v - c).min(S::LANES);
            // SAFETY: the caller's contract.
            unsafe {
                let row = match end {
                    End::Fill(x) => s.splat(x),
                    End::Keep => s.load_first(sums.add(c), len),
                    // Sums of several rows start at +0, also where each part had but one.
                    End::Mean(factor) => s.mul(s.add(s.load_first(sums.add(c), len), s.zero()), s.splat(factor)),
                };
                match out.dtype {
                    Dtype::F32 => s.store_first(out.data.cast::<f32>().add(c), row, len),
                    Dtype::F16 => s.store_first_f16(out.data.cast::<f16>().add(c), row, len),
                    Dtype::Bf16 => s.store_first_bf16(out.data.cast::<bf16>().add(c), row, len),
                    Dtype::Int8 => unreachable!("no output is quantised"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::marker::PhantomData;

    use regard_simd::{Element, Level};

    use super::*;
    use crate::weighting::{AnyWeighting, AverageHard, Hard, Identity, Map, Side, Softmax};

    const UNTOUCHED: f32 = 7.0;
    const LEN: usize = 40;

    fn weigh(weighting: &dyn AnyWeighting, level: Level) -> Weigh<'_> {
        Weigh { functions: weighting.functions(level), data: weighting.data(), _data: PhantomData }
    }

    /// The state of a selection.
    fn state(key: u32, nan: f32, count: f32) -> RowState {
        RowState([0.5, f32::from_bits(key), nan, count])
    }

    /// Sums with zeros of both signs among them.
    fn sums() -> [f32; LEN] {
        std::array::from_fn(|c| [0.3, -0.0, -1e-3, 0.0, 65000.0][c % 5] * (1.0 + (c / 5) as f32))
    }

    /// Concludes `d_v` columns with the factor 0.3 and compares with `expected`, rounded to the element type.
    fn check<T: Element>(
        dtype: Dtype,
        weighting: &dyn AnyWeighting,
        state: RowState,
        round: fn(f32) -> T,
        expected: &dyn Fn(f32) -> f32,
    ) {
        for level in Level::available() {
            for d_v in 0..LEN {
                let mut out = [round(UNTOUCHED); LEN];
                level.dispatch(Conclude {
                    weighting: weigh(weighting, *level),
                    state: &state,
                    sums: sums().as_ptr(),
                    d_v,
                    ending: Ending { gain: 1.0, sink: f32::NEG_INFINITY, out: 0.3 },
                    out: Target { dtype, data: out.as_mut_ptr().cast(), row_bytes: 0 },
                    lse: std::ptr::null_mut(),
                });
                let expected =
                    |c: usize| round(if c < d_v { expected(sums()[c]) } else { UNTOUCHED }).widen().to_bits();
                for c in 0..LEN {
                    assert_eq!(out[c].widen().to_bits(), expected(c), "{weighting:?} {dtype} {level:?} {c} of {d_v}");
                }
            }
        }
    }

    /// Rows of every kind and element type, and nothing past their ends. Zeros keep their sign where a row of V is copied, and
    /// have none elsewhere.
    #[test]
    fn rows_end_as_their_kind_says() {
        let check = |weighting: &dyn AnyWeighting, state: RowState, expected: &dyn Fn(f32) -> f32| {
            check::<f32>(Dtype::F32, weighting, state, |x| x, expected);
            check::<f16>(Dtype::F16, weighting, state, f16::from_f32, expected);
            check::<bf16>(Dtype::Bf16, weighting, state, bf16::from_f32, expected);
        };
        let hard = Hard { side: Side::Left };
        check(&hard, state(3, 0.0, 0.0), &|x| x);
        check(&AverageHard, state(3, 0.0, 1.0), &|x| x);
        check(&AverageHard, state(3, 0.0, 3.0), &|x| (x + 0.0) * (1.0 / 3.0));
        for weighting in [&hard as &dyn AnyWeighting, &AverageHard] {
            check(weighting, state(3, 1.0, 3.0), &|_| f32::NAN);
            check(weighting, state(slot::NO_KEY, 1.0, 0.0), &|_| f32::NAN);
            check(weighting, state(slot::NO_KEY, 0.0, 0.0), &|_| 0.0);
        }
        check(&Map(Identity), RowState([0.0; MAX_STATE]), &|x| x * 0.3 + 0.0);
        check(&Softmax, RowState([0.5, 1.5, 0.5, 0.0]), &|x| x * (0.5 * 0.3) + 0.0);
        check(&Softmax, RowState([f32::NEG_INFINITY, 0.0, 0.0, 0.0]), &|x| x * 0.0 + 0.0);
    }

    /// Sums of any length, and nothing past their ends.
    #[test]
    fn sums_fold_up_to_their_length() {
        for level in Level::available() {
            for d_v in 0..LEN {
                for (left_max, right_max, a, b) in [(1.0, 3.0, 0.25, 1.0), (3.0, 1.0, 1.0, 0.25)] {
                    let mut left = RowState([left_max, 1.0, 2.0, 0.0]);
                    let (mut left_sums, mut right_sums) = (sums(), sums());
                    right_sums.reverse();
                    let right = RowState([right_max, 4.0, 8.0, 0.0]);
                    level.dispatch(Fold {
                        weighting: weigh(&Softmax, *level),
                        gain: 1.0,
                        left: &mut left,
                        left_sums: left_sums.as_mut_ptr(),
                        right: &right,
                        right_sums: right_sums.as_ptr(),
                        d_v,
                    });
                    let mixed = |c: usize| sums()[c] * a + right_sums[c] * b;
                    let expected: [f32; LEN] = std::array::from_fn(|c| if c < d_v { mixed(c) } else { sums()[c] });
                    assert_eq!(left_sums.map(f32::to_bits), expected.map(f32::to_bits));
                    assert_eq!(left.0, [3.0, a + 4.0 * b, 2.0 * a + 8.0 * b, 0.0]);
                }
            }
        }
    }
}
