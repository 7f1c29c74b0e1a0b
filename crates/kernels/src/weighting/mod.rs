//! How scores become weights: one file for each weighting.
//!
//! A weighting is a Rust type with its vector code ([`Weighting::weigh`]), its state per row, and its exact definition
//! in f64 ([`Weighting::weights_f64`], the oracle of the tests). The kernels call it through [`Functions`], one call for
//! each key block and sub-tile, so that one compiled kernel serves all weightings and a weighting of a user's own costs
//! a few hundred bytes of code.
//!
//! A row over some of its keys has a partial result: its [`RowState`], and its sums, the `d_v` values that it has
//! accumulated so far and that no factor has been applied to. For a [`Kind::OneRow`] they are the selected row of V, for a
//! [`Kind::TiedRows`] the sum of the tied rows; they are zeros where no key was seen. Partial results over ranges of keys
//! that follow each other merge into that over all of them ([`Weighting::merge`]). Each file states the merge law of its
//! weighting: an associative operation, apart from rounding, whose neutral element is the partial result of no key.

mod average_hard;
mod hard;
mod identity;
mod normalised;
mod pointwise;
mod polynomial;
mod relu;
mod relu_squared;
mod row;
mod sigmoid;
mod softmax;
mod taylor;
#[cfg(test)]
mod tests;

use regard_simd::{Level, Op, Simd};

pub use average_hard::AverageHard;
pub(crate) use hard::slot;
pub use hard::{Hard, Side};
pub use identity::Identity;
pub use normalised::Normalised;
pub use pointwise::{Map, Pointwise};
pub use polynomial::Polynomial;
pub use relu::Relu;
pub use relu_squared::ReluSquared;
pub use row::{Mix, RowState};
pub use sigmoid::Sigmoid;
pub use softmax::Softmax;
pub use taylor::Taylor2;

use crate::lanes::Segment;

/// What a row's result is made of, which decides what a kernel may skip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Weights times V; softmax, pointwise and normalised weightings.
    Weighted,
    /// One row of V: the value product is never computed.
    OneRow,
    /// The mean of the tied rows of V: the value product is replaced by a sum over ties, where there are any.
    TiedRows,
}

/// What a block changes in the output of its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing to add.
    Skip,
    /// Add the weighted values.
    Add,
    /// Add the weighted values of some keys; the weights of all others are zero.
    Part {
        /// The first of them, of the block: at an even place.
        key: usize,
        /// Their number; even, unless the last key is among them. None at all may be left.
        keys: usize,
    },
    /// Multiply what is there by `alpha`, then add the weighted values.
    Rescale,
}

/// A way of turning the scores of a row into weights.
///
/// Not for implementing outside this crate: [`Pointwise`] is the safe trait for weightings of one's own.
///
/// # Safety
/// `weigh` writes within the block that it is given only. A [`Kind`] other than [`Kind::Weighted`] makes the kernels read the
/// state as that of [`Hard`] or [`AverageHard`]: it has their slots, and the key in it is one of the row's keys.
pub unsafe trait Weighting: Copy + Send + Sync + 'static {
    /// f32 of state per row.
    const STATE: usize;
    /// Whether the weighting depends on the order of scores: it needs the maximum of each block, and masked scores
    /// arrive as -inf. Otherwise masked scores arrive as they are, and `weigh` selects their weights to zero.
    const ORDERED: bool;
    /// What a row's result is made of.
    const KIND: Kind;

    /// Sets the state of rows that have seen no key.
    fn begin<S: Simd>(&self, s: S, lane: &mut Lane<S>);

    /// Turns the scores of a block into weights, in place, and updates the state of the rows.
    ///
    /// # Safety
    /// The pointers of `block` are valid as its fields say.
    unsafe fn weigh<S: Simd>(&self, s: S, block: &Block<'_>) -> Step;

    /// The factor for the accumulated values of one vector of rows that have seen all keys, given the state.
    fn finish<S: Simd>(&self, s: S, lane: &Lane<S>) -> S::F32;

    /// The state of one row that has seen no key: that of [`Weighting::begin`].
    fn begin_row(&self) -> RowState {
        row::begin(self)
    }

    /// Merges the states of one row over two ranges of keys, and says how their sums mix.
    ///
    /// The keys of `left` come before those of `right`; after the call, `left` is the state over both. `gain` is what
    /// [`Block::gain`] holds for the row, the same for both. The result has the same bits on every machine.
    fn merge(&self, left: &mut RowState, right: &RowState, gain: f32) -> Mix;

    /// The log-sum-exp of a row in natural units, for a weighting that has one, given its state, [`Lane::gain`] and
    /// [`Lane::sink`].
    const LOG_SUM_EXP: Option<LogSumExp> = None;

    /// The weights of one row by the definition, in f64.
    ///
    /// `scores` are the final scores (after temperature) of *all* keys in order, `visible` says which count, and
    /// `weights` (of the same length) receives the weights, zero for masked keys. Factors of the row (1/n^a) are not
    /// applied here. `sink` is the extra logit of softmax.
    fn weights_f64(&self, scores: &[f64], visible: &[bool], sink: Option<f64>, weights: &mut [f64]);
}

/// (state of a row, its gain, its sink) to the log-sum-exp in natural units.
pub type LogSumExp = fn(&[f32; MAX_STATE], f32, f32) -> f32;

/// The most f32 of state per row that a weighting may have.
pub const MAX_STATE: usize = 4;

/// The state of one vector of rows, in registers.
#[derive(Clone, Copy, Debug)]
pub struct Lane<S: Simd> {
    /// One vector for each f32 of [`Weighting::STATE`].
    pub state: [S::F32; MAX_STATE],
    /// See [`Block::gain`].
    pub gain: S::F32,
    /// The sink logit of the row in units of log2, or -inf.
    pub sink: S::F32,
}

/// The scores of one key block against one sub-tile, on their way to becoming weights.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    /// `[key][lanes]`
    pub scores: *mut f32,
    /// Row length of `scores`, and of each array of the rows, in elements.
    pub lanes: usize,
    /// The key ranges that hold scores, which follow each other; the rest of `scores` is not to be touched.
    pub segments: &'a [Segment],
    /// The vectors of lanes to compute.
    pub vectors: usize,
    /// `[key]`: one bit per lane, set where the lane sees the key; to be read for masked segments only.
    pub visible: *const u64,
    /// The index of the block's first key in the sequence.
    pub first_key: usize,
    /// `[lanes]`: the largest score of the block, if [`Weighting::ORDERED`]; -inf where there is none.
    pub max: *const f32,
    /// `[lanes]`: what the scores are still to be multiplied with. For ordered weightings it is positive and holds
    /// log2(e), for the others it may be negative.
    pub gain: *const f32,
    /// `[lanes]`: what is then to be added (the bias of sigmoid).
    pub shift: *const f32,
    /// `[STATE][lanes]`
    pub state: *mut f32,
    /// `[lanes]`: written if the step is [`Step::Rescale`], for each of `vectors`.
    pub alpha: *mut f32,
}

impl Block<'_> {
    /// The vector of an array `[lanes]` that belongs to `vector`.
    ///
    /// # Safety
    /// `array` has `lanes` elements and `vector` is a vector of lanes of the sub-tile.
    #[inline(always)]
    pub(crate) unsafe fn row<S: Simd>(&self, s: S, array: *const f32, vector: usize) -> S::F32 {
        // SAFETY: the caller's contract.
        unsafe { s.load(array.add(vector * S::LANES)) }
    }

    /// State `slot` of `vector`.
    ///
    /// # Safety
    /// `slot` is less than the weighting's `STATE` and `vector` is a vector of lanes of the sub-tile.
    #[inline(always)]
    pub(crate) unsafe fn state<S: Simd>(&self, s: S, slot: usize, vector: usize) -> S::F32 {
        // SAFETY: the caller's contract.
        unsafe { s.load(self.state.add(slot * self.lanes + vector * S::LANES)) }
    }

    /// # Safety
    /// As for [`Block::state`].
    #[inline(always)]
    pub(crate) unsafe fn set_state<S: Simd>(&self, s: S, slot: usize, vector: usize, value: S::F32) {
        // SAFETY: the caller's contract.
        unsafe { s.store(self.state.add(slot * self.lanes + vector * S::LANES), value) }
    }
}

/// One weighting compiled for one level, as function pointers.
#[derive(Debug)]
pub struct Functions {
    /// [`Weighting::STATE`]
    pub(crate) state: usize,
    /// [`Weighting::ORDERED`]
    pub(crate) ordered: bool,
    /// [`Weighting::KIND`]
    pub(crate) kind: Kind,
    /// (weighting, state of a sub-tile, its lanes)
    pub(crate) begin: unsafe fn(*const (), *mut f32, usize),
    pub(crate) weigh: unsafe fn(*const (), &Block<'_>) -> Step,
    /// (weighting, rows of a sub-tile, factors that it writes)
    pub(crate) finish: unsafe fn(*const (), &FinishArgs),
    /// (weighting, state of the row over earlier keys, over later keys, gain): [`Weighting::merge`]
    pub(crate) merge: unsafe fn(*const (), &mut RowState, &RowState, f32) -> Mix,
    pub(crate) log_sum_exp: Option<LogSumExp>,
}

/// The arrays of a sub-tile for [`Weighting::finish`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct FinishArgs {
    pub(crate) state: *const f32,
    pub(crate) gain: *const f32,
    pub(crate) lanes: usize,
    /// `[lanes]`: in units of log2; -inf for none.
    pub(crate) sink: *const f32,
    /// `[lanes]`, written.
    pub(crate) factor: *mut f32,
}

/// A weighting of any type. Implemented for every [`Weighting`], and for nothing else.
pub trait AnyWeighting: sealed::Sealed + Send + Sync + std::fmt::Debug {
    /// The functions at `level`, which take [`AnyWeighting::data`] of the same object.
    fn functions(&self, level: Level) -> &'static Functions;

    /// The object itself.
    fn data(&self) -> *const ();

    /// See [`Weighting::weights_f64`].
    fn weights_f64(&self, scores: &[f64], visible: &[bool], sink: Option<f64>, weights: &mut [f64]);

    /// See [`Weighting::KIND`].
    fn kind(&self) -> Kind;

    /// See [`Weighting::ORDERED`].
    fn ordered(&self) -> bool;

    /// Whether the weighting has a [`Weighting::LOG_SUM_EXP`].
    fn has_log_sum_exp(&self) -> bool;

    /// See [`Weighting::begin_row`].
    fn begin_row(&self) -> RowState;

    /// See [`Weighting::merge`].
    fn merge(&self, left: &mut RowState, right: &RowState, gain: f32) -> Mix;
}

mod sealed {
    pub trait Sealed {}
    impl<W: super::Weighting> Sealed for W {}
}

impl<W: Weighting + std::fmt::Debug> AnyWeighting for W {
    fn functions(&self, level: Level) -> &'static Functions {
        functions::<W>(level)
    }

    fn data(&self) -> *const () {
        std::ptr::from_ref(self).cast()
    }

    fn weights_f64(&self, scores: &[f64], visible: &[bool], sink: Option<f64>, weights: &mut [f64]) {
        Weighting::weights_f64(self, scores, visible, sink, weights);
    }

    fn kind(&self) -> Kind {
        W::KIND
    }

    fn ordered(&self) -> bool {
        W::ORDERED
    }

    fn has_log_sum_exp(&self) -> bool {
        W::LOG_SUM_EXP.is_some()
    }

    fn begin_row(&self) -> RowState {
        Weighting::begin_row(self)
    }

    fn merge(&self, left: &mut RowState, right: &RowState, gain: f32) -> Mix {
        Weighting::merge(self, left, right, gain)
    }
}

/// The functions of `W` at `level`.
fn functions<W: Weighting>(level: Level) -> &'static Functions {
    match level {
        Level::Portable(token) => of::<W, _>(token),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2(token) => of::<W, _>(token),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512(token) => of::<W, _>(token),
        #[cfg(target_arch = "aarch64")]
        Level::Neon(token) => of::<W, _>(token),
        _ => unreachable!("a level without an entry here"),
    }
}

/// The token is the proof that the functions may be called.
fn of<W: Weighting, S: Simd>(_proof: S) -> &'static Functions {
    const {
        assert!(W::STATE <= MAX_STATE);
        &Functions {
            state: W::STATE,
            ordered: W::ORDERED,
            kind: W::KIND,
            begin: begin::<W, S>,
            weigh: weigh::<W, S>,
            finish: finish::<W, S>,
            merge: merge::<W>,
            log_sum_exp: W::LOG_SUM_EXP,
        }
    }
}

/// # Safety
/// The level of `S` was detected, `weighting` points to a `W`, and `state` has `STATE * lanes` elements.
unsafe fn begin<W: Weighting, S: Simd>(weighting: *const (), state: *mut f32, lanes: usize) {
    struct Begin<W>(W, *mut f32, usize);
    impl<W: Weighting> Op for Begin<W> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let mut lane = Lane { state: [s.zero(); MAX_STATE], gain: s.zero(), sink: s.zero() };
            self.0.begin(s, &mut lane);
            for vector in 0..self.2 / S::LANES {
                for slot in 0..W::STATE {
                    // SAFETY: the caller's contract.
                    unsafe { s.store(self.1.add(slot * self.2 + vector * S::LANES), lane.state[slot]) };
                }
            }
        }
    }
    // SAFETY: the caller's contract.
    unsafe { S::assume().vectorize(Begin(*weighting.cast::<W>(), state, lanes)) }
}

/// # Safety
/// The level of `S` was detected, `weighting` points to a `W`, and `block` is valid as its fields say.
unsafe fn weigh<W: Weighting, S: Simd>(weighting: *const (), block: &Block<'_>) -> Step {
    struct Weigh<'a, W>(W, &'a Block<'a>);
    impl<W: Weighting> Op for Weigh<'_, W> {
        type Output = Step;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Step {
            // SAFETY: the caller's contract.
            unsafe { self.0.weigh(s, self.1) }
        }
    }
    // SAFETY: the caller's contract.
    unsafe { S::assume().vectorize(Weigh(*weighting.cast::<W>(), block)) }
}

/// # Safety
/// The level of `S` was detected, `weighting` points to a `W`, and the arrays of `args` have `lanes` (the state
/// `STATE * lanes`) elements.
unsafe fn finish<W: Weighting, S: Simd>(weighting: *const (), args: &FinishArgs) {
    struct Finish<'a, W>(W, &'a FinishArgs);
    impl<W: Weighting> Op for Finish<'_, W> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let Self(weighting, args) = self;
            for vector in 0..args.lanes / S::LANES {
                let at = vector * S::LANES;
                let mut state = [s.zero(); MAX_STATE];
                // SAFETY: the caller's contract.
                unsafe {
                    for (slot, state) in state.iter_mut().enumerate().take(W::STATE) {
                        *state = s.load(args.state.add(slot * args.lanes + at));
                    }
                    let lane = Lane { state, gain: s.load(args.gain.add(at)), sink: s.load(args.sink.add(at)) };
                    s.store(args.factor.add(at), weighting.finish(s, &lane));
                }
            }
        }
    }
    // SAFETY: the caller's contract.
    unsafe { S::assume().vectorize(Finish(*weighting.cast::<W>(), args)) }
}

/// # Safety
/// `weighting` points to a `W`.
unsafe fn merge<W: Weighting>(weighting: *const (), left: &mut RowState, right: &RowState, gain: f32) -> Mix {
    // SAFETY: the caller's contract.
    let weighting = unsafe { *weighting.cast::<W>() };
    weighting.merge(left, right, gain)
}
