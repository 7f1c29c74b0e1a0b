//! The choice of kernels and tiles: a pure function of problem, machine and profile.

mod choose;
mod explain;
mod key;
mod needs;

use std::fmt;
use std::sync::Arc;

use regard_kernels::launch::{self, Call, Choice, Outputs, RowsChoice, Sequence};
use regard_kernels::linear::Method;
use regard_kernels::tensor::{Dtype, TensorMut};
use regard_profile::{Class, Entry, Profile};
use regard_simd::{Extension, Isa, Level};

use self::choose::Chosen;
use self::explain::{Explanation, Why};
use self::key::Key;
use self::needs::Needs;
use crate::exec::Execution;
use crate::reference::Rounding;
use crate::{Error, Form, Partial, Problem, Setup, Shape, linear};

/// How problems are computed. Made once, it runs any number of problems of its kind: of the same element types, heads,
/// head dimensions, class of mask and options that decide the order of summation; with as many sequences, queries and
/// keys, or fewer.
///
/// The level, the key blocks and the spans decide the order of summation. They depend on the head dimensions, the
/// level, the profile and the sizes of the sequence that is computed, and not on batch, heads or threads; the kernel for few
/// queries also on how many query heads share one of keys, as it takes them all at once. Where
/// sequences may differ in size (packed, on pages, in rings, in a cache, with key lengths), the profile is asked for no
/// sizes in particular, so that a sequence gets the same in any company, and a decode loop the same at any length.
///
/// Sequences with few queries (up to 15; of bf16 on tile registers up to 31, and of int8 there all) are computed by a rows kernel,
/// which reads keys and values once for all queries and heads that share them; the others by a lanes kernel.
#[derive(Clone, Debug)]
pub struct Plan {
    choice: Choice,
    /// How sequences are computed in the linear form, if any may be.
    linear: Option<Method>,
    /// Whether the lanes kernel multiplies pairs of bf16, at twice the rate of f32 or more, which decides between the forms.
    doubled: bool,
    key: Key,
    /// The profile, if some entry of it decided: for the lanes kernel, for each of the rows kernels.
    profile: Option<Arc<Profile>>,
    lanes_entry: Option<usize>,
    rows_entries: [Option<usize>; 2],
    needs: Needs,
    uses: Uses,
    lse: bool,
    /// Why the index of the keys is of no use.
    ignores_index: Option<&'static str>,
}

/// What the sequences of the planned problem are computed by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Uses {
    /// Each of the rows kernels, by some sequence; if both are the same, it is the second one.
    rows: [bool; 2],
    lanes: bool,
    linear: bool,
}

impl Uses {
    const LINEAR_ALONE: Self = Self { rows: [false; 2], lanes: false, linear: true };

    /// Whether there are sequences that are computed in the quadratic form.
    fn quadratic(&self) -> bool {
        self.lanes || self.rows != [false; 2]
    }
}

/// What is written to, as far as it can be wrong.
pub(crate) struct Written<'a> {
    pub(crate) out: [usize; 4],
    pub(crate) dtype: Dtype,
    /// Length of the log-sum-exp.
    pub(crate) lse: Option<usize>,
    /// The problem.
    pub(crate) shape: &'a Shape,
    pub(crate) q_dtype: Dtype,
    pub(crate) weighting: &'static str,
    pub(crate) has_lse: bool,
}

impl Plan {
    /// Chooses kernels and tiles for `problem` on the machine of `setup`.
    pub fn new(problem: &Problem<'_>, setup: &Setup) -> Self {
        let level = problem.level.unwrap_or(setup.level);
        let key = Key::of(problem, level.isa());
        let Chosen { choice, lanes_entry, rows_entries } = choose::choose(problem, level, key.class(), setup);
        let pays = choice.kernel.extension == Some(Extension::Amx) || setup.machine.bf16_pairs_pay();
        let doubled = choice.kernel.dtype == Dtype::Bf16 && pays;
        let method = linear::method(problem, level, key.most_keys, doubled);
        let mut uses = Uses::default();
        for sequence in problem.sequences.iter().filter(|sequence| sequence.queries > 0) {
            let is_linear = key.series.is_some_and(|series| linear::takes_linear(problem, &series, sequence, doubled));
            match choice.which_rows(problem.shape.group(), sequence.queries) {
                _ if is_linear => uses.linear = true,
                Some(which) => uses.rows[which] = true,
                None => uses.lanes = true,
            }
        }
        let mut plan = Self {
            needs: Needs::new(problem, &choice, key.most_keys),
            choice,
            linear: method,
            doubled,
            key,
            profile: setup.profile.clone().filter(|_| lanes_entry.is_some() || rows_entries != [None; 2]),
            lanes_entry,
            rows_entries,
            uses,
            ignores_index: launch::ignores_index(&problem.call(), &choice),
            lse: problem.weighting.has_log_sum_exp(),
        };
        plan.needs = plan.needs.with_linear(problem, plan.linear.as_ref(), plan.key.most_keys, plan.tasks_of(problem));
        plan
    }

    /// The level that the plan computes at.
    pub fn isa(&self) -> Isa {
        self.choice.level.isa()
    }

    /// The form that a sequence of `problem` is computed in: linear or quadratic.
    pub fn form_for(&self, problem: &Problem<'_>, sequence: &Sequence) -> Form {
        if self.takes_linear(problem, sequence).is_some() { Form::Linear } else { Form::Quadratic }
    }

    /// The method, if a sequence is computed in the linear form.
    fn takes_linear(&self, problem: &Problem<'_>, sequence: &Sequence) -> Option<&Method> {
        let method = self.linear.as_ref()?;
        linear::takes_linear(problem, &method.features.series(), sequence, self.doubled).then_some(method)
    }

    /// The kernel of the linear form and the keys of a chunk of it, if some sequence of the planned problem is computed
    /// in it.
    pub fn linear_kernel(&self) -> Option<(&'static str, usize)> {
        let method = self.linear.as_ref().filter(|_| self.uses.linear)?;
        Some((method.kernel.name, method.chunk))
    }

    /// The monomials of a row in the linear form, if all sequences of the planned problem are computed in it.
    pub fn monomials(&self) -> Option<usize> {
        let method = self.linear.as_ref().filter(|_| self.uses == Uses::LINEAR_ALONE)?;
        Some(method.features.count())
    }

    /// The name of the kernel that computes the sequences with most queries.
    pub fn kernel(&self) -> &'static str {
        match self.linear_kernel() {
            Some((name, _)) if self.uses == Uses::LINEAR_ALONE => name,
            _ => self.kernel_for(self.key.shape.queries),
        }
    }

    /// The name of the kernel that computes a sequence of `problem`.
    pub fn kernel_of(&self, problem: &Problem<'_>, sequence: &Sequence) -> &'static str {
        let linear = self.takes_linear(problem, sequence);
        linear.map_or_else(|| self.kernel_for(sequence.queries), |method| method.kernel.name)
    }

    /// The name of the kernel that computes a sequence with this many queries in the quadratic form.
    pub fn kernel_for(&self, queries: usize) -> &'static str {
        self.rows_for(queries).map_or_else(|| self.choice.lanes_for(queries).name, |rows| rows.kernel.name)
    }

    /// The rows kernel that computes a sequence with this many queries, if one does.
    fn rows_for(&self, queries: usize) -> Option<&RowsChoice> {
        self.choice.rows_for(self.key.shape.group(), queries)
    }

    /// Keys of a block of [`Plan::kernel`].
    pub fn key_block(&self) -> usize {
        self.key_block_for(self.key.shape.queries)
    }

    /// Keys of a block of a sequence with this many queries.
    pub fn key_block_for(&self, queries: usize) -> usize {
        self.choice.key_block_for(self.key.shape.group(), queries)
    }

    /// Query rows of a task of the lanes kernel.
    pub fn query_block(&self) -> usize {
        self.choice.query_block
    }

    /// Keys of a span of a sequence with this many queries and keys; the last one may be shorter. Spans are computed
    /// apart and merged in order.
    pub fn span_for(&self, queries: usize, keys: usize) -> usize {
        self.choice.split.span(queries, keys, self.key_block_for(queries)).min(keys.max(1))
    }

    /// How the products of a sequence are rounded, for [`crate::reference::row`].
    pub fn rounding(&self, sequence: &Sequence) -> Rounding {
        if self.rows_for(sequence.queries).is_some() {
            Rounding::Lanes { isa: self.isa(), dtype: self.key.kv_dtype }
        } else {
            Rounding::Chain(self.isa())
        }
    }

    /// The number of tasks that threads can share, which does not depend on how many there are.
    pub fn tasks(&self) -> usize {
        self.needs.tasks
    }

    /// The class of problem that the plan was made for, as profiles name it.
    pub fn class(&self) -> Class {
        self.key.class().owned()
    }

    /// f32 of workspace that a run on `threads` threads takes: enough for every problem that differs from the planned
    /// one in keys and their numbers only. [`Plan::workspace_len_for`] is for others.
    pub fn workspace_len(&self, threads: usize) -> usize {
        let shared = |method, threads| regard_kernels::linear::shared_len(method, self.key.shape.value_dim, threads);
        self.needs.len(threads, |threads| self.linear.as_ref().map_or(0, |method| shared(method, threads)))
    }

    /// The same in bytes.
    pub fn workspace_bytes(&self, threads: usize) -> usize {
        self.workspace_len(threads).saturating_mul(size_of::<f32>())
    }

    /// f32 of workspace that a run of this problem on `threads` threads takes.
    pub fn workspace_len_for(&self, problem: &Problem<'_>, threads: usize) -> usize {
        let len = |call: Call<'_>, method: Option<&Method>| match method {
            Some(method) => regard_kernels::linear::workspace_len(&call, method, threads),
            None => launch::workspace_len(&call, &self.choice, threads),
        };
        let mut most = 0;
        self.parts(problem, &mut |call, method| most = most.max(len(call, method)));
        most
    }

    /// Tasks of this problem.
    fn tasks_of(&self, problem: &Problem<'_>) -> usize {
        let mut tasks = 0_usize;
        self.parts(problem, &mut |call, method| {
            tasks = tasks.saturating_add(match method {
                Some(method) => regard_kernels::linear::tasks(&call, method),
                None => launch::tasks(&call, &self.choice),
            });
        });
        tasks
    }

    /// Calls `take` with neighbouring sequences that are computed in the same form, and the method of the linear one: one
    /// part after the other, all of them once.
    fn parts<'p>(&self, problem: &'p Problem<'_>, take: &mut dyn FnMut(Call<'p>, Option<&Method>)) {
        let call = problem.call();
        let Some(method) = &self.linear else { return take(call, None) };
        let is_linear = |sequence: &Sequence| self.takes_linear(problem, sequence).is_some();
        for sequences in problem.sequences.chunk_by(|a, b| is_linear(a) == is_linear(b)) {
            take(Call { sequences, ..call }, is_linear(&sequences[0]).then_some(method));
        }
    }

    /// Computes `problem` into `out` (`[batch, query_heads, rows of q, d_v]`: f32, or of the element type of q) and,
    /// for softmax, the log-sum-exp of each row into `lse` (`[batch, query_heads, rows of q]`). Rows that belong to no
    /// sequence are left alone.
    ///
    /// `workspace` holds at least [`Plan::workspace_len`] f32 for the threads of `execution`; its contents do not
    /// matter. A serial run allocates nothing.
    ///
    /// # Errors
    /// [`Error`], with `out` and `lse` untouched, if the problem is not of the kind that the plan was made for or
    /// larger, if `out` or `lse` has the wrong size or type or no meaning, or if the workspace is too short.
    pub fn run<'o>(
        &self,
        problem: &Problem<'_>,
        out: impl Into<TensorMut<'o>>,
        lse: Option<&mut [f32]>,
        workspace: &mut [f32],
        execution: Execution<'_>,
    ) -> Result<(), Error> {
        self.run_into(problem, out.into(), lse, workspace, execution)
    }

    fn run_into(
        &self,
        problem: &Problem<'_>,
        out: TensorMut<'_>,
        lse: Option<&mut [f32]>,
        workspace: &mut [f32],
        execution: Execution<'_>,
    ) -> Result<(), Error> {
        self.check(problem)?;
        let written = Written {
            out: out.shape(),
            dtype: out.dtype(),
            lse: lse.as_ref().map(|lse| lse.len()),
            shape: &problem.shape,
            q_dtype: problem.q_dtype(),
            weighting: problem.options.weighting.name(),
            has_lse: self.lse,
        };
        written.check()?;
        self.launch(problem, out, lse, workspace, execution)
    }

    /// Computes the keys of `problem` into a partial result, to be merged with those of other keys. What was in it
    /// before is gone.
    ///
    /// # Errors
    /// [`Error`], with `partial` untouched, as for [`Plan::run`]; [`Error::Partial`] if it was made for outputs of
    /// another shape, and [`Error::NoMeaning`] if something depends on the number of keys, as for [`Partial::new`].
    pub fn run_partial(
        &self,
        problem: &Problem<'_>,
        partial: &mut Partial,
        workspace: &mut [f32],
        execution: Execution<'_>,
    ) -> Result<(), Error> {
        self.check(problem)?;
        partial.check(problem)?;
        let tasks = launch::tasks(&problem.call(), &self.choice);
        let needed = |threads| launch::workspace_len(&problem.call(), &self.choice, threads);
        let execution = Self::execution(problem, workspace, execution, tasks, &needed)?;
        let (states, sums) = partial.begin(problem, self.choice.level);
        launch::run(&problem.call(), &self.choice, Outputs::Partial { states, sums }, workspace, &execution);
        Ok(())
    }

    fn check(&self, problem: &Problem<'_>) -> Result<(), Error> {
        let level = problem.level.map_or(self.isa(), Level::isa);
        let key = Key::of(problem, self.isa());
        if self.key.serves(&key) && level == self.isa() {
            return Ok(());
        }
        Err(Error::Plan { planned: self.key.to_string(), found: Key { isa: level, ..key }.to_string() })
    }

    fn launch(
        &self,
        problem: &Problem<'_>,
        out: TensorMut<'_>,
        lse: Option<&mut [f32]>,
        workspace: &mut [f32],
        execution: Execution<'_>,
    ) -> Result<(), Error> {
        let needed = |threads| self.workspace_len_for(problem, threads);
        let execution = Self::execution(problem, workspace, execution, self.tasks_of(problem), &needed)?;
        let (mut out, mut lse) = (out, lse);
        self.parts(problem, &mut |call, method| {
            let out = out.reborrow();
            match method {
                Some(method) => {
                    regard_kernels::linear::run(&call, problem.options.gates, method, out, workspace, &execution);
                }
                None => {
                    let outputs = Outputs::Rows { out, lse: lse.as_deref_mut() };
                    launch::run(&call, &self.choice, outputs, workspace, &execution);
                }
            }
        });
        Ok(())
    }

    /// Who does the work, if the workspace is long enough for them.
    fn execution<'e>(
        problem: &Problem<'_>,
        workspace: &[f32],
        execution: Execution<'e>,
        tasks: usize,
        needed: &dyn Fn(usize) -> usize,
    ) -> Result<Execution<'e>, Error> {
        let execution = execution.for_work(problem, tasks);
        let threads = execution.threads();
        let needed = needed(threads);
        if workspace.len() < needed {
            return Err(Error::Workspace { found: workspace.len(), needed, threads });
        }
        Ok(execution)
    }

    /// Why these kernels and tiles, in one line.
    pub fn why(&self) -> impl fmt::Display + '_ {
        Why(self)
    }

    /// The entry of the profile that decided for the sequences with most queries, if one did.
    pub fn profile_entry(&self) -> Option<&Entry> {
        let which = self.choice.which_rows(self.key.shape.group(), self.key.shape.queries);
        let index = which.map_or(self.lanes_entry, |which| self.rows_entries[which]);
        self.profile.as_ref()?.entries.get(index?)
    }

    /// Which kernels, which tiles, and why.
    pub fn explain(&self) -> impl fmt::Display + '_ {
        Explanation(self)
    }
}

impl Written<'_> {
    pub(crate) fn check(&self) -> Result<(), Error> {
        let expected = self.shape.out();
        if let Some(i) = (0..4).find(|i| self.out[*i] != expected[*i]) {
            return Err(Error::Dimension {
                tensor: "out",
                dimension: ["batch", "heads", "rows", "columns"][i],
                found: self.out[i],
                expected: expected[i],
                reason: "q with the columns of v",
            });
        }
        if self.dtype != Dtype::F32 && self.dtype != self.q_dtype {
            let mut expected = vec![Dtype::F32, self.q_dtype];
            expected.dedup();
            return Err(Error::Dtype { tensor: "out", found: self.dtype, expected });
        }
        let Some(found) = self.lse else { return Ok(()) };
        if !self.has_lse {
            return Err(Error::NoMeaning {
                option: "a log-sum-exp",
                weighting: self.weighting,
                reason: "its weights are not exponentials",
            });
        }
        crate::checks::length("lse", found, self.shape.rows(), "one for each row of q")
    }
}
