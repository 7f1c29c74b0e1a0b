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
    Align, Attention, Dtype, Execution, Keys, Level, Plan, Problem, Queries, RowScale, Setup, SigmoidBias, Tensor,
    View, Weighting, quantise,
};
use regard_tuner::inputs::{self, Array, Elements, Lengths, Order, standard_normal};
use regard_tuner::shapes::{Mask, Rows, Shape, Weights};

/// Criterion with little time for each case.
pub fn criterion() -> Criterion {
    let criterion = Criterion::default().sample_size(10).without_plots();
    let criterion = criterion.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(800));
    criterion.configure_from_args()
}

/// What a throughput counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Floating-point operations over visible pairs: "Gelem/s" reads GFLOP/s. K and V may stay in the caches.
    Flops,
    /// Bytes of K and V, which come from memory: several copies of them are used in turn.
    Bytes,
}

/// Benches a case at a level, with threads of the caller's choice.
pub fn bench(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    shape: &Shape,
    level: Level,
    execution: Execution<'_>,
) {
    bench_counting(group, name, shape, level, execution, Count::Flops);
}

/// The same with a throughput of the caller's choice.
pub fn bench_counting(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    shape: &Shape,
    level: Level,
    execution: Execution<'_>,
    count: Count,
) {
    let setup = Setup::global().expect("REGARD_ISA names a level of this machine");
    let (queries, keys) = rows(shape);
    let [q_rows, k_rows] = [&queries, &keys].map(|lengths| lengths.iter().sum::<usize>());
    let (q_type, size) = match shape.dtype {
        Dtype::Int8 => (Dtype::F32, 1),
        dtype => (dtype, dtype.bytes()),
    };
    let copies = match count {
        Count::Flops => 1,
        Count::Bytes => {
            let bytes = 2 * shape.kv_heads * k_rows * shape.head_dim * size;
            inputs::copies(bytes, setup.machine.caches.l3_or_default())
        }
    };
    let q = normal(1, shape, [shape.heads, q_rows], q_type);
    let k = normal(2, shape, [shape.kv_heads, k_rows], shape.dtype).repeated(copies);
    let v = normal(3, shape, [shape.kv_heads, k_rows], shape.dtype).repeated(copies);
    let options = options(shape.weights).isa(level.isa());
    let options = match shape.mask {
        Mask::Full => options,
        Mask::TopLeft => options.causal(Align::TopLeft),
        Mask::BottomRight => options.causal(Align::BottomRight),
    };
    let offsets = [&queries, &keys].map(|lengths| offsets(lengths));
    let (queries, keys) = match shape.rows {
        Rows::One { .. } => (Queries::Padded, Keys::Padded),
        Rows::Packed { .. } => (Queries::Packed(&offsets[0]), Keys::Packed(&offsets[1])),
    };
    let problem = |copy| {
        let (q, k, v) = (tensor(&q, 0), tensor(&k, copy), tensor(&v, copy));
        Problem::ragged(&options, q, queries, k, v, keys).expect("a legal problem")
    };
    let problems: Vec<Problem<'_>> = (0..copies).map(problem).collect();
    let plan = Plan::new(&problems[0], setup);
    let out = problems[0].shape().out();
    let mut out = Array::new(Elements::F32(vec![0.0; out.iter().product()]), out, order(shape));
    let mut workspace = vec![0.0; plan.workspace_len(execution.threads())];
    group.throughput(match count {
        Count::Flops => Throughput::Elements(problems[0].flops() as u64),
        Count::Bytes => Throughput::Bytes(problems[0].kv_bytes() as u64),
    });
    let mut turn = 0;
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            let out = out.tensor_mut().expect("the output has this shape");
            plan.run(&problems[turn], out, None, &mut workspace, execution).expect("a plan of this problem");
            turn = (turn + 1) % problems.len();
        });
    });
}

/// Queries and keys of each sequence.
fn rows(shape: &Shape) -> (Vec<usize>, Vec<usize>) {
    match shape.rows {
        Rows::One { queries, keys } => (vec![queries], vec![keys]),
        Rows::Packed { queries, keys } => {
            let keys = keys.parse::<Lengths>().expect("the lengths are fixed").get();
            (keys.iter().map(|keys| queries.unwrap_or(*keys)).collect(), keys)
        }
    }
}

/// First rows of sequences that lie one after the other, and the end of the last.
fn offsets(lengths: &[usize]) -> Vec<usize> {
    let mut offsets = vec![0];
    let mut end = 0;
    for length in lengths {
        end += length;
        offsets.push(end);
    }
    offsets
}

fn order(shape: &Shape) -> Order {
    match shape.rows {
        Rows::One { .. } => Order::HeadsFirst,
        Rows::Packed { .. } => Order::RowsFirst,
    }
}

/// Standard normal numbers in the order of the case.
fn normal(seed: u64, shape: &Shape, [heads, rows]: [usize; 2], dtype: Dtype) -> Array {
    let (size, order) = ([1, heads, rows, shape.head_dim], order(shape));
    let numbers = standard_normal(seed, size.iter().product());
    let elements = if dtype == Dtype::Int8 {
        let rows = quantise(View::bhsd(&numbers, order.arrange(size)).expect("as many numbers as the shape has"));
        Some(Elements::Int8(rows.data, rows.scales))
    } else {
        Elements::rounded(numbers, dtype)
    };
    Array::new(elements.expect("a type of numbers"), size, order)
}

fn tensor(array: &Array, copy: usize) -> Tensor<'_> {
    array.tensor(copy).expect("inputs have their shape")
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
