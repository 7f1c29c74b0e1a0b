//! One case: inputs, plan, measurement, and the line that comes of it.

use std::sync::{Mutex, PoisonError};

use regard::{Execution, Isa, Level, Plan, Problem, Setup, Shape, View, ViewMut};
use regard_tuner::inputs::standard_normal;
use regard_tuner::measure::{Budget, Efficiency, FmaProbe, ReadProbe, measure_against};
use regard_tuner::pin;
use regard_tuner::stats::Random;
use serde::Serialize;
use serde_json::Value;

use crate::check::{self, Deviation};
use crate::error::CliError;
use crate::problem_args::{Layout, ProblemArgs};
use crate::setup::Threads;

/// A problem to be measured.
pub(super) struct Case<'a> {
    pub(super) problem: &'a ProblemArgs,
    pub(super) shape: Shape,
    pub(super) setup: &'a Setup,
    pub(super) seconds: f64,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    queries: usize,
    keys: usize,
    head_dim: usize,
    value_dim: usize,
    dtype: &'static str,
    #[serde(flatten)]
    options: serde_json::Map<String, Value>,
    seconds: f64,
    gflops: f64,
    peak_gflops: f64,
    fraction_of_peak: f64,
    kv_gbytes_per_s: f64,
    read_gbytes_per_s: f64,
    fraction_of_bandwidth: f64,
    max_abs_error: f64,
    isa: &'static str,
    kernel: &'static str,
    key_block: usize,
    query_block: usize,
    tasks: usize,
    threads: usize,
    /// The core that one thread was pinned to.
    core: Option<usize>,
    rounds: usize,
    why: String,
    #[serde(skip)]
    deviation: Deviation,
}

/// The part of the time that the compute ceiling gets; the rest is for the bandwidth.
const COMPUTE_PART: f64 = 0.7;

/// Rounds against the bandwidth, at least. Most cases are far from it.
const MEMORY_ROUNDS: usize = 5;

/// Rows whose error is looked at.
const SAMPLED_ROWS: usize = 24;

impl Case<'_> {
    pub(super) fn measure(&self) -> Result<Line, CliError> {
        let (asked, allowed) = (self.problem.threads.unwrap_or(1), self.setup.machine.cores.allowed);
        if usize::from(asked) > allowed {
            // Each of them would reach its ceiling, one after the other.
            return Err(CliError::Input(format!("--threads is {asked}, but this process may use {allowed} CPUs only")));
        }
        let threads = Threads::new(Some(asked), &self.setup.machine)?;
        // Inputs are made where they are used, so that the memory is near.
        if threads.count() == 1 {
            let pinned = pin::pinned(|| self.on_this_thread(&threads));
            return Ok(Line { core: pinned.core, ..pinned.value? });
        }
        self.on_this_thread(&threads)
    }

    fn on_this_thread(&self, threads: &Threads) -> Result<Line, CliError> {
        let Shape { batch, query_heads, kv_heads, queries, keys, head_dim, value_dim } = self.shape;
        let options = self.problem.attention()?;
        let [q, k, v] = [
            Tensor::normal("q", [batch, query_heads, queries, head_dim])?,
            Tensor::normal("k", [batch, kv_heads, keys, head_dim])?,
            Tensor::normal("v", [batch, kv_heads, keys, value_dim])?,
        ];
        let layout = self.problem.layout;
        let (q, k, v) = (q.view(layout)?, k.view(layout)?, v.view(layout)?);
        let problem = Problem::new(&options, q, k, v)?;
        let plan = Plan::new(&problem, self.setup);
        let level = Level::of(plan.isa())?;

        let shape = layout.arrange(self.shape.out());
        let mut out = vec![0.0; length("out", shape)?];
        let mut workspace = vec![0.0; plan.workspace_len(threads.count())];
        let mut run = || {
            let out = match layout {
                Layout::Bhsd => ViewMut::bhsd(&mut out, shape),
                Layout::Bshd => ViewMut::bshd(&mut out, shape),
            };
            let out = out.map_err(|source| regard::Error::View { tensor: "out", source })?;
            plan.run(&problem, out, None, &mut workspace, threads.execution())
        };
        // What can go wrong goes wrong here.
        run()?;
        let mut timed = || drop(run());
        let ceilings = Ceilings::new(level, threads, self.setup);
        let budget = Budget::seconds(COMPUTE_PART * self.seconds);
        let (seconds, compute) = ceilings.compute(problem.flops(), budget, &mut timed);
        let budget = Budget { seconds: (1.0 - COMPUTE_PART) * self.seconds, min_rounds: MEMORY_ROUNDS };
        let memory = ceilings.memory(problem.kv_bytes(), budget, &mut timed);
        let deviation = deviation(&problem, plan.isa(), v, Tensor { data: out, shape }.view_as_is(layout)?);
        Ok(Line {
            batch,
            heads: query_heads,
            kv_heads,
            queries,
            keys,
            head_dim,
            value_dim,
            dtype: "f32",
            options: super::options::to_json(self.problem),
            seconds,
            gflops: compute.rate,
            peak_gflops: compute.ceiling,
            fraction_of_peak: compute.fraction,
            kv_gbytes_per_s: problem.kv_bytes() / seconds / 1e9,
            read_gbytes_per_s: memory.ceiling,
            fraction_of_bandwidth: memory.fraction,
            max_abs_error: deviation.max_abs_error,
            isa: plan.isa().name(),
            kernel: plan.kernel(),
            key_block: plan.key_block(),
            query_block: plan.query_block(),
            tasks: plan.tasks(),
            threads: threads.count(),
            core: None,
            rounds: compute.ratios.len(),
            why: plan.why().to_string(),
            deviation,
        })
    }
}

impl Line {
    /// An error if the output is wrong.
    pub(super) fn verdict(&self) -> Result<(), CliError> {
        if self.deviation.is_rounding() {
            return Ok(());
        }
        let Self { kernel, max_abs_error, .. } = self;
        Err(CliError::Failed(format!("{kernel} is wrong: the largest error against f64 is {max_abs_error:e}")))
    }
}

/// The ceilings of the threads of a case.
struct Ceilings<'a> {
    level: Level,
    threads: &'a Threads,
    /// Bytes that no cache holds, all threads together.
    bytes: usize,
}

impl<'a> Ceilings<'a> {
    fn new(level: Level, threads: &'a Threads, setup: &Setup) -> Self {
        Self { level, threads, bytes: ReadProbe::bytes_for(setup.machine.caches.l3_or_default()) }
    }

    /// What all threads reach at once, by what each of them reaches.
    fn sum(&self, sample: &(dyn Fn(usize) -> f64 + Sync)) -> f64 {
        match self.threads.execution() {
            Execution::Pool(pool) => pool.broadcast(|thread| sample(thread.index())).iter().sum(),
            _ => sample(0),
        }
    }

    fn compute(&self, flops: f64, budget: Budget, run: &mut dyn FnMut()) -> (f64, Efficiency) {
        let probe = FmaProbe::new(self.level);
        measure_against(&mut || self.sum(&|_| probe.sample()), false, flops, budget, run)
    }

    fn memory(&self, bytes: f64, budget: Budget, run: &mut dyn FnMut()) -> Efficiency {
        let count = self.threads.count();
        let probe = |_| Mutex::new(ReadProbe::new(self.level, self.bytes / count));
        let probes: Vec<Mutex<ReadProbe>> = (0..count).map(probe).collect();
        let sample = |thread: usize| probes[thread].lock().unwrap_or_else(PoisonError::into_inner).sample();
        measure_against(&mut || self.sum(&sample), true, bytes, budget, run).1
    }
}

/// A tensor, and its shape in the order of its layout.
struct Tensor {
    data: Vec<f32>,
    shape: [usize; 4],
}

impl Tensor {
    /// Standard normal numbers; `shape` is `[batch, heads, rows, columns]`.
    fn normal(name: &'static str, shape: [usize; 4]) -> Result<Self, CliError> {
        let seed = name.bytes().map(u64::from).sum();
        Ok(Self { data: standard_normal(seed, length(name, shape)?), shape })
    }

    fn view(&self, layout: Layout) -> Result<View<'_, f32>, CliError> {
        view(&self.data, layout, layout.arrange(self.shape))
    }

    /// The same for a shape that is in the order of the layout already.
    fn view_as_is(&self, layout: Layout) -> Result<View<'_, f32>, CliError> {
        view(&self.data, layout, self.shape)
    }
}

fn view(data: &[f32], layout: Layout, shape: [usize; 4]) -> Result<View<'_, f32>, CliError> {
    let view = match layout {
        Layout::Bhsd => View::bhsd(data, shape),
        Layout::Bshd => View::bshd(data, shape),
    };
    view.map_err(|source| regard::Error::View { tensor: "a tensor of the bench", source }.into())
}

/// The elements of a tensor, if there is memory for them.
fn length(name: &str, shape: [usize; 4]) -> Result<usize, CliError> {
    let length = shape.iter().try_fold(1_usize, |product, size| product.checked_mul(*size));
    let fits = |length: &usize| Vec::<f32>::new().try_reserve_exact(*length).is_ok();
    length.filter(fits).ok_or_else(|| CliError::Failed(format!("not enough memory for {name}, of shape {shape:?}")))
}

/// The error of sampled rows: the first, the last, and some between.
fn deviation(problem: &Problem<'_>, isa: Isa, v: View<'_, f32>, out: View<'_, f32>) -> Deviation {
    let Shape { batch, query_heads, queries, .. } = problem.shape();
    if problem.shape().rows() == 0 {
        return Deviation::default();
    }
    let mut random = Random::new(7);
    let between = (2..SAMPLED_ROWS).map(|_| [random.below(batch), random.below(query_heads), random.below(queries)]);
    let rows = [[0; 3], [batch - 1, query_heads - 1, queries - 1]].into_iter().chain(between);
    rows.map(|index| check::row(problem, isa, v, out, index)).fold(Deviation::default(), Deviation::or)
}
