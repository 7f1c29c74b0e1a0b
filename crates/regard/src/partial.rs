//! Results over some of the keys, which merge with those over the keys that follow.

use std::sync::Arc;

use regard_kernels::launch::{self, Ending, Outputs};
use regard_kernels::tensor::{Dtype, TensorMut};
use regard_kernels::view::ViewError;
use regard_kernels::weighting::{AnyWeighting, RowState};
use regard_simd::Level;

use crate::options::Count;
use crate::plan::Written;
use crate::{Error, Problem, Setup, Shape, SigmoidBias, Weighting, checks};

/// The result of a problem over some of the keys: what each query row has seen, not yet divided by anything. Partial
/// results over ranges of keys that follow each other merge into that over all of them: keys on several machines, keys
/// in several caches, a prompt that many share.
///
/// ```
/// use regard::{Attention, Execution, Partial, Plan, Problem, Setup, View, ViewMut};
///
/// let q = [0.3, -0.2, 0.9, 0.1];
/// let k: Vec<f32> = (0..12 * 4).map(|i| (i % 7) as f32 / 4.0).collect();
/// let v: Vec<f32> = (0..12 * 4).map(|i| (i % 5) as f32).collect();
/// let q = View::bhsd(&q, [1, 1, 1, 4])?;
/// let options = Attention::softmax();
///
/// // The first 8 keys, and the other 4.
/// let part = |first: usize, keys: usize| -> Result<Partial, Box<dyn std::error::Error>> {
///     let rows = |data| View::bhsd(data, [1, 1, keys, 4]);
///     let problem = Problem::new(&options, q, rows(&k[first * 4..])?, rows(&v[first * 4..])?)?;
///     let plan = Plan::new(&problem, Setup::global()?);
///     let mut partial = Partial::new(&problem)?;
///     plan.run_partial(&problem, &mut partial, &mut vec![0.0; plan.workspace_len(1)], Execution::Serial)?;
///     Ok(partial)
/// };
/// let mut all = part(0, 8)?;
/// all.merge(&part(8, 4)?)?;
/// let mut out = [0.0; 4];
/// all.finish(ViewMut::bhsd(&mut out, [1, 1, 1, 4])?, None)?;
///
/// let whole = |data| View::bhsd(data, [1, 1, 12, 4]);
/// let at_once = regard::attention(&options, q, whole(&k)?, whole(&v)?)?;
/// assert!(out.iter().zip(at_once).all(|(a, b)| (a - b).abs() < 1e-6));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # What it holds
/// For each row of `[batch, query_heads, rows of q]` a [`RowState`] of up to four f32, and `d_v` sums. `a` before `b`
/// merge to:
///
/// | weighting | state | sums | merged |
/// |---|---|---|---|
/// | softmax | largest score `m`; sums of weights at even and at odd places | weights times V | `m = max(m_a, m_b)`; all sums `f_a a + f_b b`, where `f_i = 2^((m_i - m) gain)` |
/// | hard, leftmost | largest score; key; whether a score was NaN | the row of V | `b` if `m_b > m_a`, else `a` |
/// | hard, rightmost | the same | the row of V | `a` if `m_a > m_b`, else `b` |
/// | average-hard | the same, and the number of ties | the sum of the tied rows of V | the one with the larger `m`; of equals, the sums of both |
/// | pointwise | nothing | weights times V | the sum |
/// | normalised | sums of weights at even and at odd places | weights times V | the sums |
///
/// Scores in a state are before scale and temperature, which make the row's `gain`; where there are soft-cap, ALiBi or
/// bias, they are after these and the scale. A key in a state is the bits of a `u32`, counted within its own problem:
/// `u32::MAX` stands for none. Unused slots are zero. A row that has seen no key is neutral exactly.
///
/// Merging gives the same bits on every machine. It is associative but for rounding: the order of merges decides the
/// last bits. Ties of hard attention across parts are found where both parts were computed at one level, and with as
/// many queries.
#[derive(Clone, Debug)]
pub struct Partial {
    weighting: Arc<dyn AnyWeighting>,
    /// The weighting with its parameters, as text.
    kind: String,
    name: &'static str,
    shape: Shape,
    q_dtype: Dtype,
    level: Level,
    endings: Vec<Ending>,
    states: Vec<RowState>,
    sums: Vec<f32>,
}

impl Partial {
    /// The partial result of no keys, for the outputs of `problem`.
    ///
    /// Scores, masks and temperatures are those of `problem`, whose keys are numbered from 0: an alignment must say
    /// where its queries stand among these.
    ///
    /// # Errors
    /// [`Error::NoMeaning`] if a temperature schedule, a row scale or the bias of sigmoid depends on the number of
    /// keys, of which a part knows only its own; [`Count::Constant`] says what it is. [`Error::View`] if there are more
    /// sums than can be counted, [`Error::Isa`] if `REGARD_ISA` names no level of this machine.
    pub fn new(problem: &Problem<'_>) -> Result<Self, Error> {
        let len = sums_len(&problem.shape)?;
        let begin = problem.weighting.begin_row();
        Self::from_parts(problem, vec![begin; problem.shape.rows()], vec![0.0; len])
    }

    /// The partial result with these states and sums, as [`Partial::states`] and [`Partial::sums`] gave them, perhaps on
    /// another machine. Gains, sinks and factors of rows are those of `problem`; its keys do not matter.
    ///
    /// # Errors
    /// As for [`Partial::new`]; [`Error::Length`] if there are not as many states and sums as the outputs of `problem`
    /// need.
    pub fn from_parts(problem: &Problem<'_>, states: Vec<RowState>, sums: Vec<f32>) -> Result<Self, Error> {
        checks::parts(&problem.options)?;
        let shape = problem.shape;
        checks::length("states", states.len(), shape.rows(), "one for each row of q")?;
        checks::length("sums", sums.len(), sums_len(&shape)?, "the columns of v for each row of q")?;
        let level = match problem.level {
            Some(level) => level,
            None => Setup::global()?.level,
        };
        Ok(Self {
            weighting: problem.weighting.clone(),
            kind: kind(problem),
            name: problem.options.weighting.name(),
            shape,
            q_dtype: problem.q_dtype(),
            level,
            endings: launch::endings(&problem.call()),
            states,
            sums,
        })
    }

    /// `[batch, query_heads, rows of q]`
    pub fn states(&self) -> &[RowState] {
        &self.states
    }

    /// `[batch, query_heads, rows of q, d_v]`
    pub fn sums(&self) -> &[f32] {
        &self.sums
    }

    /// The shape of the output.
    pub fn shape(&self) -> [usize; 4] {
        self.shape.out()
    }

    /// Adds what the same rows have seen of keys that come after all those of `self`.
    ///
    /// # Errors
    /// [`Error::Partial`], with `self` untouched, if outputs have another shape, or weightings, temperatures, sinks or
    /// output factors differ.
    pub fn merge(&mut self, later: &Self) -> Result<(), Error> {
        let differs = |what, left: String, right: String| Err(Error::Partial { what, left, right });
        let (left, right) = (self.shape.out(), later.shape.out());
        if left != right {
            return differs("the shape", format!("{left:?}"), format!("{right:?}"));
        }
        if self.kind != later.kind {
            return differs("the weighting", self.kind.clone(), later.kind.clone());
        }
        // Both parts must agree on what a row is multiplied with: a merge could not choose.
        for (row, (left, right)) in self.endings.iter().zip(&later.endings).enumerate() {
            for (what, left, right) in [
                ("the factor of scores (scale over temperature)", left.gain, right.gain),
                ("the sink", left.sink, right.sink),
                ("the factor of the output", left.out, right.out),
            ] {
                if left.to_bits() != right.to_bits() {
                    return differs(what, format!("{left} in row {row}"), format!("{right}"));
                }
            }
        }
        launch::merge(
            &*self.weighting,
            self.level,
            &self.endings,
            self.shape.value_dim,
            (&mut self.states, &mut self.sums),
            (&later.states, &later.sums),
        );
        Ok(())
    }

    /// Writes the result into `out` (`[batch, query_heads, rows of q, d_v]`: f32, or of the element type of q) and, for
    /// softmax, the log-sum-exp of each row into `lse` (`[batch, query_heads, rows of q]`). Rows that have seen no key,
    /// or belong to no sequence, give zeros and -inf.
    ///
    /// # Errors
    /// [`Error`], with `out` and `lse` untouched, if one has the wrong size or type or no meaning.
    pub fn finish<'o>(&self, out: impl Into<TensorMut<'o>>, lse: Option<&mut [f32]>) -> Result<(), Error> {
        let out = out.into();
        let written = Written {
            out: out.shape(),
            dtype: out.dtype(),
            lse: lse.as_ref().map(|lse| lse.len()),
            shape: &self.shape,
            q_dtype: self.q_dtype,
            weighting: self.name,
            has_lse: self.weighting.has_log_sum_exp(),
        };
        written.check()?;
        let outputs = Outputs::Rows { out, lse };
        launch::conclude(&*self.weighting, self.level, &self.endings, &self.states, &self.sums, outputs);
        Ok(())
    }

    /// Adds what some rows have seen of later keys: rows `later_first..` of `later` to as many from `first` on, whose endings
    /// are known to agree.
    pub(crate) fn merge_rows(&mut self, first: usize, later: &Self, later_first: usize, rows: usize) {
        let d_v = self.shape.value_dim;
        let at = |first: usize| (first..first + rows, first * d_v..(first + rows) * d_v);
        let ((rows, sums), (later_rows, later_sums)) = (at(first), at(later_first));
        launch::merge(
            &*self.weighting,
            self.level,
            &self.endings[rows.clone()],
            d_v,
            (&mut self.states[rows], &mut self.sums[sums]),
            (&later.states[later_rows], &later.sums[later_sums]),
        );
    }

    /// Bytes of endings, states and sums.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&self.endings[..]) + size_of_val(&self.states[..]) + size_of_val(&self.sums[..])
    }

    /// Forgets all keys.
    pub(crate) fn clear(&mut self) {
        self.states.fill(self.weighting.begin_row());
        self.sums.fill(0.0);
    }

    /// Whether the partial result of `problem` goes here.
    pub(crate) fn check(&self, problem: &Problem<'_>) -> Result<(), Error> {
        checks::parts(&problem.options)?;
        let (left, right) = (self.shape.out(), problem.shape.out());
        if left != right {
            return Err(Error::Partial { what: "the shape", left: format!("{left:?}"), right: format!("{right:?}") });
        }
        Ok(())
    }

    /// Forgets everything, to take the partial result of `problem` at a level.
    pub(crate) fn begin(&mut self, problem: &Problem<'_>, level: Level) -> (&mut [RowState], &mut [f32]) {
        self.weighting = problem.weighting.clone();
        self.kind = kind(problem);
        self.name = problem.options.weighting.name();
        self.shape = problem.shape;
        self.q_dtype = problem.q_dtype();
        self.level = level;
        self.endings = launch::endings(&problem.call());
        // Rows of no sequence are not written.
        self.states.fill(problem.weighting.begin_row());
        self.sums.fill(0.0);
        (&mut self.states, &mut self.sums)
    }
}

/// Sums of all rows.
fn sums_len(shape: &Shape) -> Result<usize, Error> {
    let out = shape.out();
    let len = out.into_iter().try_fold(1_usize, usize::checked_mul).filter(|len| *len <= isize::MAX as usize / 8);
    len.ok_or(Error::View { tensor: "the partial result", source: ViewError::Overflow { shape: out } })
}

/// The weighting with all its parameters.
fn kind(problem: &Problem<'_>) -> String {
    let options = &problem.options;
    match (&options.weighting, options.count) {
        (Weighting::Sigmoid { bias: SigmoidBias::NegLogN }, Count::Constant(n)) => {
            format!("{:?} with n = {n}", options.weighting)
        }
        (weighting, _) => format!("{weighting:?}"),
    }
}
