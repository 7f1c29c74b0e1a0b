//! A problem that can be run any number of times, inputs in the caches.

use regard::{Attention, Dtype, Execution, Plan, Problem, Setup};
use regard_tuner::inputs::Array;

use crate::bench::case::{Case, deviation};
use crate::bench::inputs::{Inputs, tensor};
use crate::check::{Deviation, Reference, Tolerance};
use crate::error::CliError;
use crate::setup;
use crate::shape_args::Sizes;

/// Sizes and inputs that entrants share.
pub(super) struct Shared {
    sizes: Sizes,
    dtype: Dtype,
    inputs: Inputs,
}

impl Shared {
    pub(super) fn new(case: &Case) -> Result<Self, CliError> {
        let sizes = case.shape.sizes(&case.sequences)?;
        let order = case.problem.layout(case.sequences.varlen.is_some()).order();
        let inputs = Inputs::new(&sizes, order, [case.dtype, Dtype::F32], 1)?;
        Ok(Self { sizes, dtype: case.dtype, inputs })
    }

    fn problem<'a>(&'a self, options: &Attention<'a>) -> Result<Problem<'a>, CliError> {
        let Inputs { q, k, v, .. } = &self.inputs;
        self.sizes.problem(options, [tensor("q", q, 0)?, tensor("k", k, 0)?, tensor("v", v, 0)?])
    }
}

/// One way of computing it.
pub(super) struct Entrant<'a> {
    shared: &'a Shared,
    problem: Problem<'a>,
    pub(super) plan: Plan,
    out: Array,
    workspace: Vec<f32>,
}

impl<'a> Entrant<'a> {
    pub(super) fn new(shared: &'a Shared, case: &Case, setup: &Setup) -> Result<Self, CliError> {
        let problem = shared.problem(&case.problem.attention()?)?;
        let plan = Plan::new(&problem, setup);
        let workspace = vec![0.0; plan.workspace_len(1)];
        Ok(Self { shared, problem, plan, out: shared.inputs.out.clone().repeated(1), workspace })
    }

    pub(super) fn run(&mut self) -> Result<(), CliError> {
        let out = self.out.tensor_mut().map_err(|source| regard::Error::View { tensor: "out", source })?;
        Ok(self.plan.run(&self.problem, out, None, &mut self.workspace, Execution::Serial)?)
    }

    /// Runs it once and looks at the result.
    ///
    /// # Errors
    /// [`CliError::Failed`] if it is wrong.
    pub(super) fn check(&mut self) -> Result<Deviation, CliError> {
        self.run()?;
        let kernel = self.plan.kernel();
        let level = regard::Level::of(self.plan.isa())?;
        let reference = Reference {
            problem: &self.problem,
            plan: &self.plan,
            v: tensor("v", &self.shared.inputs.v, 0)?,
            place: &|sequence, key| self.shared.sizes.arrangement.place(sequence, key),
            tolerance: Tolerance::new(setup::arithmetic(level, &[kernel], self.shared.dtype), Dtype::F32),
        };
        let found = deviation(&reference, &tensor("out", &self.out, 0)?);
        if found.is_rounding() {
            return Ok(found);
        }
        let error = found.max_abs_error;
        Err(CliError::Failed(format!("{kernel} is wrong: the largest error against f64 is {error:e}")))
    }

    /// Floating-point operations of a call.
    pub(super) fn flops(&self) -> f64 {
        self.problem.flops()
    }
}
