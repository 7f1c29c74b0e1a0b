//! One case: inputs, plan and measurement.

use regard::{Attention, Dtype, Level, Plan, Problem, Sequence, Setup};
use regard_tuner::inputs;
use regard_tuner::measure::{Budget, Efficiency, Measurement, ReadProbe, ReadWay, Work, measure_against};
use regard_tuner::pin;
use regard_tuner::stats::Random;

use super::ceilings::{Limits, Ways};
use super::inputs::{Inputs, tensor};
use super::line::Line;
use crate::check::{Deviation, Reference, Tolerance};
use crate::error::CliError;
use crate::problem_args::ProblemArgs;
use crate::sequences::SequenceArgs;
use crate::setup::{self, Threads};
use crate::shape_args::{ShapeArgs, Sizes, Stand};

/// A problem to be measured.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) shape: ShapeArgs,
    pub(crate) sequences: SequenceArgs,
    /// The element type of k and v.
    pub(crate) dtype: Dtype,
    pub(crate) problem: ProblemArgs,
}

/// How to measure, whatever the case.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    pub(crate) seconds: f64,
    pub(crate) out_dtype: Dtype,
    /// Whether K and V may stay in the caches from a call to the next.
    pub(crate) warm: bool,
    /// How to read memory; the fastest way if none.
    pub(crate) way: Option<ReadWay>,
}

/// Rows whose error is looked at, at most and at least.
const SAMPLED_ROWS: [usize; 2] = [24, 4];

/// Elements of K and V that are looked at for that, unless rows are too long.
const SAMPLED_ELEMENTS: usize = 1 << 25;

impl Case {
    /// Finds what is wrong with it. Takes no memory to speak of.
    pub(crate) fn check(&self) -> Result<(), CliError> {
        self.problem.check_layout(self.sequences.varlen.is_some())?;
        self.problem.check_align(false)?;
        let sizes = self.shape.sizes(&self.sequences)?;
        let gates = self.problem.gates(sizes.k[1])?;
        let options = self.options(gates.as_deref())?;
        Stand::new(&sizes, self.dtype).problem(&options).map(drop)
    }

    fn options<'a>(&self, gates: Option<&'a [f32]>) -> Result<Attention<'a>, CliError> {
        let options: Attention<'a> = self.problem.attention()?;
        Ok(match gates {
            Some(gates) => options.gates(gates),
            None => options,
        })
    }

    pub(crate) fn measure(&self, manner: Manner, setup: &Setup, ways: &mut Ways) -> Result<Line, CliError> {
        let (asked, allowed) = (self.problem.threads.unwrap_or(1), setup.machine.cores.allowed);
        if usize::from(asked) > allowed {
            // Each of them would reach its ceiling, one after the other.
            return Err(CliError::Input(format!("--threads is {asked}, but this process may use {allowed} CPUs only")));
        }
        let threads = Threads::new(Some(asked), &setup.machine)?;
        // Inputs are made where they are used, so that the memory is near.
        if threads.count() == 1 {
            let pinned = pin::pinned(|| self.on_this_thread(manner, setup, &threads, ways));
            return Ok(Line { core: pinned.core, ..pinned.value? });
        }
        self.on_this_thread(manner, setup, &threads, ways)
    }

    fn on_this_thread(
        &self,
        manner: Manner,
        setup: &Setup,
        threads: &Threads,
        ways: &mut Ways,
    ) -> Result<Line, CliError> {
        let sizes = self.shape.sizes(&self.sequences)?;
        let gates = self.problem.gates(sizes.k[1])?;
        let options = self.options(gates.as_deref())?;
        let cache = setup.machine.caches.l3_or_default();
        let bytes = read_bytes(&Stand::new(&sizes, self.dtype).problem(&options)?);
        let copies = if manner.warm { 1 } else { copies(&sizes, self.dtype, bytes, cache) };

        let order = self.problem.layout(self.sequences.varlen.is_some()).order();
        let Inputs { q, k, v, mut out } = Inputs::new(&sizes, order, [self.dtype, manner.out_dtype], copies)?;
        let problem = |copy| {
            let [q, k, v] = [tensor("q", &q, 0)?, tensor("k", &k, copy)?, tensor("v", &v, copy)?];
            sizes.problem(&options, [q, k, v])
        };
        let problems: Vec<Problem<'_>> = (0..copies).map(problem).collect::<Result<_, _>>()?;
        let problem = &problems[0];
        let plan = Plan::new(problem, setup);
        let level = Level::of(plan.isa())?;
        let kernels = kernels(problem, &plan);
        let arithmetic = setup::arithmetic(level, &kernels, self.dtype);

        let mut workspace = vec![0.0; plan.workspace_len(threads.count())];
        let mut turn = 0;
        let mut run = || {
            let out = out.tensor_mut().map_err(|source| regard::Error::View { tensor: "out", source })?;
            let problem = &problems[turn];
            turn = (turn + 1) % problems.len();
            plan.run(problem, out, None, &mut workspace, threads.execution())
        };
        // What can go wrong goes wrong here.
        run()?;
        let work = Work { flops: problem.flops(), arithmetic, bytes };
        let mut limits = Limits::new(level, threads, arithmetic, ReadProbe::bytes_for(cache), manner.way, ways);
        let budget = Budget::seconds(manner.seconds);
        let found = measure_against(&mut limits, work, budget, || drop(run()));
        let way = limits.way;
        limits.keep(ways);
        let reference = Reference {
            problem,
            plan: &plan,
            v: tensor("v", &v, 0)?,
            place: &|sequence, key| sizes.arrangement.place(sequence, key),
            tolerance: Tolerance::new(arithmetic, manner.out_dtype),
        };
        let deviation = deviation(&reference, &tensor("out", &out, 0)?);
        let measured = Measured { found, bytes, copies, way, deviation };
        Ok(self.line(manner, problem, &plan, kernels, threads, measured))
    }
}

/// What came of a case.
struct Measured {
    found: Measurement,
    bytes: f64,
    copies: usize,
    way: ReadWay,
    deviation: Deviation,
}

impl Case {
    fn line(
        &self,
        manner: Manner,
        problem: &Problem<'_>,
        plan: &Plan,
        kernels: Vec<&'static str>,
        threads: &Threads,
        measured: Measured,
    ) -> Line {
        let shape = problem.shape();
        let Measured { found, bytes, copies, way, deviation } = measured;
        let [fraction_of_roof, fraction_of_f32_roof] =
            [found.fraction_of_roof(), found.fraction_of_f32_roof()].map(|fraction| fraction.unwrap_or(0.0));
        let Measurement { seconds, interval, rounds, ceilings, compute, compute_f32, memory } = found;
        let of = |efficiency: &Option<Efficiency>| {
            efficiency.as_ref().map_or([0.0; 2], |efficiency| [efficiency.rate, efficiency.fraction])
        };
        let [[gflops, fraction_of_peak], [kv_gbytes_per_s, fraction_of_bandwidth]] = [of(&compute), of(&memory)];
        Line {
            batch: shape.batch,
            heads: shape.query_heads,
            kv_heads: shape.kv_heads,
            queries: shape.queries,
            keys: shape.keys,
            head_dim: shape.head_dim,
            value_dim: shape.value_dim,
            varlen: self.sequences.varlen.as_ref().map(ToString::to_string),
            total_queries: problem.sequences().iter().map(|sequence| sequence.queries).sum(),
            total_keys: problem.sequences().iter().map(|sequence| sequence.keys).sum(),
            paged: self.sequences.paged,
            dtype: problem.kv_dtype().name(),
            q_dtype: problem.q_dtype().name(),
            out_dtype: manner.out_dtype.name(),
            options: super::options::to_json(&self.problem, self.sequences.varlen.is_some()),
            seconds,
            seconds_interval: [interval.low, interval.high],
            gflops,
            peak_gflops: ceilings.gflops.unwrap_or(0.0),
            dot_peak_gflops: ceilings.dot_gflops,
            fraction_of_peak,
            fraction_of_f32_peak: of(&compute_f32)[1],
            kv_bytes: bytes,
            warm: manner.warm,
            copies,
            kv_gbytes_per_s,
            read_gbytes_per_s: ceilings.read_gbytes_per_s.unwrap_or(0.0),
            read_way: way.to_string(),
            fraction_of_bandwidth,
            fraction_of_roof,
            fraction_of_f32_roof,
            max_abs_error: deviation.max_abs_error,
            max_relative_error: deviation.max_relative_error,
            isa: plan.isa().name(),
            kernel: plan.kernel(),
            kernels,
            forms: each(problem, |sequence| plan.form_for(problem, sequence).name()),
            key_block: plan.key_block(),
            query_block: plan.query_block(),
            span: plan.span_for(shape.queries, shape.keys),
            tasks: plan.tasks(),
            threads: threads.count(),
            core: None,
            rounds,
            why: plan.why().to_string(),
            deviation,
        }
    }
}

/// Bytes of the keys and values that some query of their sequence sees, with their scales, each read once.
fn read_bytes(problem: &Problem<'_>) -> f64 {
    let shape = problem.shape();
    let seen = problem.sequences().iter().map(|sequence| {
        // Both ends of what a row sees grow with the row. Rows that see nothing start and end somewhere all the same.
        let rows = (0..sequence.queries).map(|row| sequence.band.visible(row, sequence.keys));
        let mut rows = rows.filter(|seen| !seen.is_empty());
        let first = rows.next();
        let last = rows.next_back().or(first.clone());
        first.zip(last).map_or(0, |(first, last)| last.end - first.start)
    });
    let scale = if problem.kv_dtype() == Dtype::Int8 { size_of::<f32>() } else { 0 };
    let key = (shape.head_dim + shape.value_dim) * problem.kv_dtype().bytes() + 2 * scale;
    seen.sum::<usize>() as f64 * (shape.kv_heads * key) as f64
}

/// Copies of k and v, of which a call reads `bytes`.
fn copies(sizes: &Sizes, dtype: Dtype, bytes: f64, cache: usize) -> usize {
    /// Memory for copies, in units of what no cache holds: windows leave most of it unread.
    const MOST: usize = 4;
    let elements: usize = sizes.k.iter().product::<usize>() + sizes.v.iter().product::<usize>();
    let room = (MOST * ReadProbe::bytes_for(cache)) / (elements * dtype.bytes()).max(1);
    inputs::copies(bytes as usize, cache).min(room.max(1))
}

/// The kernels that compute some sequence, each once.
fn kernels(problem: &Problem<'_>, plan: &Plan) -> Vec<&'static str> {
    each(problem, |sequence| plan.kernel_of(problem, sequence))
}

/// The names of sequences that have queries, each once.
fn each(problem: &Problem<'_>, name: impl Fn(&Sequence) -> &'static str) -> Vec<&'static str> {
    let sequences = problem.sequences().iter().filter(|sequence| sequence.queries > 0);
    let mut names: Vec<&str> = sequences.map(name).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The error of sampled rows: the first, the last, and some between.
pub(crate) fn deviation(reference: &Reference<'_>, out: &regard::Tensor<'_>) -> Deviation {
    let shape = reference.problem.shape();
    let lengths = reference.problem.sequences().iter().map(|sequence| sequence.queries).enumerate();
    let sequences: Vec<(usize, usize)> = lengths.filter(|(_, queries)| *queries > 0).collect();
    if sequences.is_empty() || shape.query_heads == 0 {
        return Deviation::default();
    }
    let [most, least] = SAMPLED_ROWS;
    let row = shape.keys * (shape.head_dim + shape.value_dim);
    let rows = (SAMPLED_ELEMENTS / row.max(1)).clamp(least, most);
    let mut random = Random::new(7);
    let mut deviation = Deviation::default();
    for sample in 0..rows {
        let index = match sample {
            0 => [sequences[0].0, 0, 0],
            1 => {
                let (sequence, queries) = sequences[sequences.len() - 1];
                [sequence, shape.query_heads - 1, queries - 1]
            }
            _ => {
                let (sequence, queries) = sequences[random.below(sequences.len())];
                [sequence, random.below(shape.query_heads), random.below(queries)]
            }
        };
        deviation = deviation.or(reference.row(*out, index));
    }
    deviation
}

#[cfg(test)]
mod tests {
    use regard::{Align, Attention, View};

    use super::*;

    #[test]
    fn only_what_is_seen_is_read() {
        let zeros = vec![0.0_f32; 2 * 20 * 8];
        let view = |rows| View::bhsd(&zeros, [1, 2, rows, 8]).unwrap();
        let bytes = |options: &Attention<'_>, queries| {
            read_bytes(&Problem::new(options, view(queries), view(20), view(20)).unwrap())
        };
        let key = 2.0 * 16.0 * 4.0;
        let softmax = Attention::softmax;
        assert_eq!(bytes(&softmax(), 1), 20.0 * key);
        assert_eq!(bytes(&softmax().causal(Align::BottomRight), 1), 20.0 * key);
        assert_eq!(bytes(&softmax().causal(Align::BottomRight).window(Some(4), None), 3), 7.0 * key);
        assert_eq!(bytes(&softmax().causal(Align::TopLeft), 3), 3.0 * key);
        assert_eq!(bytes(&softmax().causal(Align::Offset(-1)), 3), 2.0 * key);
        assert_eq!(bytes(&softmax().causal(Align::Offset(-9)), 3), 0.0);
        assert_eq!(bytes(&softmax(), 0), 0.0);
    }
}
