//! What the benches share: the standard cases ([`regard_tuner::shapes`]) as problems, and criterion set up so that all
//! groups together take a few minutes.
//!
//! Criterion times one case after the other. That serves the development loop: plots, and changes of more than a few
//! percent from one run to the next. Fractions of the machine's ceilings, which hold on a machine whose clock drifts,
//! come from `regard bench`, where work and ceiling take turns.
#![forbid(unsafe_code)]
#![expect(clippy::missing_panics_doc, reason = "the cases are fixed: a panic says that one of them is wrong")]

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput};
use regard::{
    Align, Attention, Execution, Level, Plan, Problem, RowScale, Setup, SigmoidBias, View, ViewMut, Weighting,
};
use regard_tuner::inputs::standard_normal;
use regard_tuner::shapes::{Shape, Weights};

/// Criterion with little time for each case.
pub fn criterion() -> Criterion {
    let criterion = Criterion::default().sample_size(10).without_plots();
    let criterion = criterion.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(800));
    criterion.configure_from_args()
}

/// Benches a case at a level, with threads of the caller's choice. Its throughput is floating-point operations over
/// visible pairs: "Gelem/s" reads GFLOP/s.
pub fn bench(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    shape: &Shape,
    level: Level,
    execution: Execution<'_>,
) {
    let Shape { causal, heads, queries, keys, head_dim, .. } = *shape;
    let normal = |seed, rows: usize| standard_normal(seed, heads * rows * head_dim);
    let (q, k, v) = (normal(1, queries), normal(2, keys), normal(3, keys));
    let view = |data, rows| View::bhsd(data, [1, heads, rows, head_dim]).expect("inputs have this shape");
    let mut options = options(shape.weights).isa(level.isa());
    if causal {
        options = options.causal(Align::TopLeft);
    }
    let problem = Problem::new(&options, view(&q, queries), view(&k, keys), view(&v, keys)).expect("a legal problem");
    let plan = Plan::new(&problem, Setup::global().expect("REGARD_ISA names a level of this machine"));
    let mut out = vec![0.0; heads * queries * head_dim];
    let mut workspace = vec![0.0; plan.workspace_len(execution.threads())];
    group.throughput(Throughput::Elements(problem.flops() as u64));
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            let view = ViewMut::bhsd(&mut out, problem.shape().out()).expect("the output has this shape");
            plan.run(&problem, view, None, &mut workspace, execution).expect("a plan of this problem");
        });
    });
}

/// The options of a weighting, as [`Weights::options`] gives them to the tool.
fn options(weights: Weights) -> Attention<'static> {
    let over_n = |weighting| Attention::new(weighting).row_scale(RowScale::InvN);
    match weights {
        Weights::Softmax => Attention::softmax(),
        Weights::HardLeft => Attention::new(Weighting::HardLeft),
        Weights::HardRight => Attention::new(Weighting::HardRight),
        Weights::AverageHard => Attention::new(Weighting::AverageHard),
        Weights::Relu => over_n(Weighting::Relu),
        Weights::ReluSquared => over_n(Weighting::ReluSquared),
        Weights::Polynomial(degree) => over_n(Weighting::Polynomial { degree }),
        Weights::Sigmoid => Attention::new(Weighting::Sigmoid { bias: SigmoidBias::NegLogN }),
        Weights::EvenPower(degree) => Attention::new(Weighting::EvenPower { degree }),
        Weights::Taylor2 => Attention::new(Weighting::Taylor2),
        Weights::Identity => over_n(Weighting::Identity),
    }
}

/// The level that REGARD_ISA allows.
pub fn level() -> Level {
    Setup::global().expect("REGARD_ISA names a level of this machine").level
}
