//! A standard case as something that can be run: inputs, plan, output and workspace.

use regard::{
    Align, Attention, Dtype, Execution, Keys, Level, Plan, Problem, Queries, RowScale, Setup, SigmoidBias, Tensor,
    View, Weighting, quantise, reference,
};
use regard_tuner::inputs::{self, Array, Elements, Lengths, Order, standard_normal};
use regard_tuner::shapes::{Mask, Rows, Shape, Weights};

/// Standard normal inputs of a case.
#[derive(Debug)]
pub struct Inputs {
    shape: Shape,
    q: Array,
    k: Array,
    v: Array,
    /// First rows of sequences that lie one after the other, and the end of the last: of q, and of k and v.
    offsets: [Vec<usize>; 2],
}

impl Inputs {
    /// Inputs with one copy of K and V, which may stay in the caches from a call to the next.
    pub fn warm(shape: &Shape) -> Self {
        Self::new(shape, 1)
    }

    /// Inputs with as many copies of K and V, to be used in turn, as a last-level cache of this many bytes does not hold.
    pub fn cold(shape: &Shape, last_level_cache: usize) -> Self {
        let size = if shape.dtype == Dtype::Int8 { 1 } else { shape.dtype.bytes() };
        let keys: usize = rows(shape).1.iter().sum();
        Self::new(shape, inputs::copies(2 * shape.kv_heads * keys * shape.head_dim * size, last_level_cache))
    }

    fn new(shape: &Shape, copies: usize) -> Self {
        let (queries, keys) = rows(shape);
        let [q_rows, k_rows] = [&queries, &keys].map(|lengths| lengths.iter().sum::<usize>());
        let q_type = if shape.dtype == Dtype::Int8 { Dtype::F32 } else { shape.dtype };
        Self {
            shape: *shape,
            q: normal(1, shape, [shape.heads, q_rows], q_type).repeated(1),
            k: normal(2, shape, [shape.kv_heads, k_rows], shape.dtype).repeated(copies),
            v: normal(3, shape, [shape.kv_heads, k_rows], shape.dtype).repeated(copies),
            offsets: [&queries, &keys].map(|lengths| offsets(lengths)),
        }
    }

    /// The problem of each copy of K and V.
    fn problems<'a>(&'a self, options: &Attention<'a>) -> Vec<Problem<'a>> {
        let Self { shape, q, k, v, offsets } = self;
        let (queries, keys) = match shape.rows {
            Rows::One { .. } => (Queries::Padded, Keys::Padded),
            Rows::Packed { .. } => (Queries::Packed(&offsets[0]), Keys::Packed(&offsets[1])),
        };
        let options = mask(options.clone(), shape.mask);
        let problem = |copy| {
            let (q, k, v) = (tensor(q, 0), tensor(k, copy), tensor(v, copy));
            Problem::ragged(&options, q, queries, k, v, keys).expect("a legal problem")
        };
        (0..k.copies()).map(problem).collect()
    }
}

/// A case with a plan, to be run any number of times.
#[derive(Debug)]
pub struct Case<'a> {
    problems: Vec<Problem<'a>>,
    plan: Plan,
    out: Array,
    workspace: Vec<f32>,
    execution: Execution<'a>,
    turn: usize,
}

impl<'a> Case<'a> {
    /// The case of these inputs at a level, with threads of the caller's choice.
    pub fn new(inputs: &'a Inputs, setup: &Setup, level: Level, execution: Execution<'a>) -> Self {
        Self::with_weights(inputs, inputs.shape.weights, setup, level, execution)
    }

    /// The same with other weights.
    pub fn with_weights(
        inputs: &'a Inputs,
        weights: Weights,
        setup: &Setup,
        level: Level,
        execution: Execution<'a>,
    ) -> Self {
        let problems = inputs.problems(&options(weights).isa(level.isa()));
        let plan = Plan::new(&problems[0], setup);
        let out = problems[0].shape().out();
        let zeros = Elements::F32(vec![0.0; out.iter().product()]);
        Self {
            workspace: vec![0.0; plan.workspace_len(execution.threads())],
            out: Array::new(zeros, out, order(&inputs.shape)).repeated(1),
            problems,
            plan,
            execution,
            turn: 0,
        }
    }

    /// Computes it once, on the next copy of K and V.
    pub fn run(&mut self) {
        let out = self.out.tensor_mut().expect("the output has this shape");
        let problem = &self.problems[self.turn];
        self.plan.run(problem, out, None, &mut self.workspace, self.execution).expect("a plan of this problem");
        self.turn = (self.turn + 1) % self.problems.len();
    }

    /// Floating-point operations of a call, over visible pairs.
    pub fn flops(&self) -> f64 {
        self.problems[0].flops()
    }

    /// Bytes of K and V of a call.
    pub fn kv_bytes(&self) -> f64 {
        self.problems[0].kv_bytes()
    }

    /// How it is computed.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The largest absolute error of some rows of the last call against the definition in f64.
    pub fn largest_error(&self) -> f64 {
        let out = tensor(&self.out, 0);
        largest_error(&self.problems[0], &self.plan, &|index| f64::from(out.get(index)))
    }
}

/// The largest absolute error of some rows of an output against the definition in f64, as a plan rounds scores.
pub fn largest_error(problem: &Problem<'_>, plan: &Plan, out: &dyn Fn([usize; 4]) -> f64) -> f64 {
    let shape = problem.shape();
    let Some((index, sequence)) = problem.sequences().iter().enumerate().find(|(_, sequence)| sequence.queries > 0)
    else {
        return 0.0;
    };
    let last = sequence.queries - 1;
    let mut largest = 0.0_f64;
    for (head, query) in [(0, 0), (0, last), (shape.query_heads - 1, last / 2), (shape.query_heads / 2, last)] {
        let expected = reference::row(problem, plan.rounding(sequence), [index, head, query]).out;
        for (column, expected) in expected.iter().enumerate() {
            let error = (out([sequence.batch, head, sequence.first_query + query, column]) - expected).abs();
            largest = largest.max(if error.is_nan() { f64::INFINITY } else { error });
        }
    }
    largest
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

fn mask(options: Attention<'_>, mask: Mask) -> Attention<'_> {
    match mask {
        Mask::Full => options,
        Mask::TopLeft => options.causal(Align::TopLeft),
        Mask::BottomRight => options.causal(Align::BottomRight),
    }
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
