//! What the tests of the API share.
#![allow(dead_code, reason = "no test uses everything")]

use regard::{
    Dtype, Execution, Level, Plan, Problem, QuantisedRows, Setup, SigmoidBias, Tensor, View, ViewMut, Weighting, bf16,
    f16, quantise,
};

/// Numbers from -1 to 1, the same at each run.
pub(crate) fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Whole numbers of -1..=1, which tie.
pub(crate) fn small_integers(len: usize, seed: u64) -> Vec<f32> {
    numbers(len, seed).into_iter().map(|x| (x * 1.5).round_ties_even()).collect()
}

/// A setup of a level about whose machine nothing is known.
pub(crate) fn setup_of(level: Level) -> Setup {
    Setup { level, machine: regard_profile::Machine::default(), profile: None }
}

/// One of each kind of weighting.
pub(crate) fn weightings() -> Vec<Weighting> {
    vec![
        Weighting::Softmax,
        Weighting::HardLeft,
        Weighting::HardRight,
        Weighting::AverageHard,
        Weighting::ReluSquared,
        Weighting::Sigmoid { bias: SigmoidBias::Constant(-0.5) },
        Weighting::EvenPower { degree: 4 },
    ]
}

/// Output and log-sum-exp of a run; rows that were not written stay 7.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Output {
    pub(crate) out: Vec<f32>,
    pub(crate) lse: Option<Vec<f32>>,
}

impl Output {
    /// The bits of the columns and the log-sum-exp of a row.
    pub(crate) fn row(&self, problem: &Problem<'_>, [batch, head, row]: [usize; 3]) -> (Vec<u32>, Option<u32>) {
        let [_, heads, rows, columns] = problem.shape().out();
        let index = (batch * heads + head) * rows + row;
        let out = self.out[index * columns..(index + 1) * columns].iter().map(|x| x.to_bits()).collect();
        (out, self.lse.as_ref().map(|lse| lse[index].to_bits()))
    }
}

pub(crate) fn run_plan(plan: &Plan, problem: &Problem<'_>) -> Output {
    let mut out = vec![7.0; problem.shape().out().iter().product()];
    let mut lse = vec![7.0; problem.shape().rows()];
    let has_lse = matches!(problem.options().weighting(), Weighting::Softmax);
    let mut workspace = vec![f32::NAN; plan.workspace_len(1)];
    let view = ViewMut::bhsd(&mut out, problem.shape().out()).unwrap();
    plan.run(problem, view, has_lse.then_some(&mut lse), &mut workspace, Execution::Serial).unwrap();
    Output { out, lse: has_lse.then_some(lse) }
}

pub(crate) fn run(problem: &Problem<'_>, level: Level) -> Output {
    run_plan(&Plan::new(problem, &setup_of(level)), problem)
}

/// The same numbers in an element type.
pub(crate) enum Data {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    Int8(QuantisedRows),
}

impl Data {
    pub(crate) fn new(dtype: Dtype, x: &[f32], shape: [usize; 4]) -> Self {
        match dtype {
            Dtype::F32 => Self::F32(x.to_vec()),
            Dtype::F16 => Self::F16(x.iter().map(|x| f16::from_f32(*x)).collect()),
            Dtype::Bf16 => Self::Bf16(x.iter().map(|x| bf16::from_f32(*x)).collect()),
            Dtype::Int8 => Self::Int8(quantise(View::bhsd(x, shape).unwrap())),
        }
    }

    pub(crate) fn tensor(&self, shape: [usize; 4]) -> Tensor<'_> {
        match self {
            Self::F32(x) => View::bhsd(x, shape).unwrap().into(),
            Self::F16(x) => View::bhsd(x, shape).unwrap().into(),
            Self::Bf16(x) => View::bhsd(x, shape).unwrap().into(),
            Self::Int8(x) => x.tensor(),
        }
    }
}
