//! `regard` without a command: this machine, a quick profile of it, and every weighting on real data.

mod sample;

use std::collections::BTreeMap;

use rayon::ThreadPool;
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use regard::{
    Attention, Dtype, Execution, Level, Plan, Problem, RowScale, Setup, SigmoidBias, View, ViewMut, Weighting,
};
use regard_profile::{Machine, Measured, Profile};
use regard_tuner::measure::{Arithmetic, Budget, Probes, Work, measure};
use regard_tuner::pin;
use regard_tuner::search::{Effort, Search};
use regard_tuner::stats::median;
use serde::Serialize;

use self::sample::Sample;
use crate::check::{Deviation, Reference, Tolerance};
use crate::cli::Global;
use crate::error::CliError;
use crate::info::Card;
use crate::output;
use crate::progress::Reporter;
use crate::tune;

/// Every weighting, with the factors that it is used with.
fn weightings() -> Vec<(&'static str, Attention<'static>)> {
    let over_n = |weighting| Attention::new(weighting).row_scale(RowScale::InvN);
    vec![
        ("softmax", Attention::softmax()),
        ("hard-left", Attention::new(Weighting::HardLeft)),
        ("hard-right", Attention::new(Weighting::HardRight)),
        ("average-hard", Attention::new(Weighting::AverageHard)),
        ("relu / n", over_n(Weighting::Relu)),
        ("relu2 / n", over_n(Weighting::ReluSquared)),
        ("poly 3 / n", over_n(Weighting::Polynomial { degree: 3 })),
        ("sigmoid - ln n", Attention::new(Weighting::Sigmoid { bias: SigmoidBias::NegLogN })),
        ("identity / n", over_n(Weighting::Identity)),
        ("power 2", Attention::new(Weighting::EvenPower { degree: 2 })),
        ("taylor2", Attention::new(Weighting::Taylor2)),
    ]
}

/// How a weighting did at a level, over all samples.
#[derive(Debug, Serialize)]
struct Row {
    weighting: &'static str,
    isa: &'static str,
    kernel: &'static str,
    /// All samples once.
    seconds: f64,
    gflops: f64,
    fraction_of_peak: f64,
    max_abs_error: f64,
    /// Over the sum of the magnitudes that an output is made of.
    max_relative_error: f64,
    /// Softmax: against the stored output of each layer.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    max_abs_error_to_stored: BTreeMap<String, f64>,
    passed: bool,
}

/// Seconds for the quick profile: a part of what `regard tune --quick` takes.
const TUNING_SECONDS: f64 = 15.0;

/// Runs the tour.
pub(crate) fn run(global: &Global) -> Result<(), CliError> {
    let card = Card::detect()?;
    let level = Level::from_env()?;
    let machine = Machine::detect();
    // Started here: threads that a pinned thread starts stay on its core.
    let threads = rayon::ThreadPoolBuilder::new().num_threads(machine.cores.usable()).build();
    let threads = threads.map_err(|error| CliError::Failed(format!("cannot start threads: {error}")))?;
    let samples = Sample::all()?;
    say(global, &card.to_text(), &card)?;

    let mut reporter = Reporter::new();
    let search = Search::new(level, &machine, Effort::Quick).seconds(TUNING_SECONDS);
    let mut show = |fraction: f64, what: &str| reporter.show(0.5 * fraction, &format!("profile: {what}"));
    let profile = pin::pinned(|| search.run(&mut |progress| show(progress.fraction, progress.what))).value.profile;
    reporter.clear();
    say(global, &describe(&profile), &profile)?;

    let mut reporter = Reporter::new();
    let setup = Setup { level, machine, profile: Some(profile.into()) };
    let levels = Level::available().iter().rev().filter(|other| other.isa() <= level.isa());
    let levels: Vec<Level> = levels.copied().collect();
    let weightings = weightings();
    let mut rows = Vec::new();
    for (i, level) in levels.iter().enumerate() {
        for (j, (name, options)) in weightings.iter().enumerate() {
            let done = (i * weightings.len() + j) as f64 / (levels.len() * weightings.len()) as f64;
            reporter.show(0.5 + 0.5 * done, &format!("{} {name}", level.isa()));
            let options = options.clone().isa(level.isa());
            rows.push(Row::new(name, &options, *level, &setup, &samples, &threads)?);
        }
    }
    reporter.clear();
    drop(reporter);

    if global.json {
        rows.iter().try_for_each(output::json)?;
    } else {
        output::text(table(&rows, &samples))?;
    }
    match rows.iter().filter(|row| !row.passed).count() {
        0 => Ok(()),
        failed => {
            Err(CliError::Failed(format!("{failed} of {} results are further from f64 than rounding", rows.len())))
        }
    }
}

/// A part of the tour, for people or as JSON.
fn say(global: &Global, text: &str, value: &impl Serialize) -> Result<(), CliError> {
    if global.json { output::json(value) } else { output::text(text) }
}

/// What was measured of the machine, and the profile.
fn describe(profile: &Profile) -> String {
    let mut text = String::new();
    if let Some(Measured { fma_gflops, read_gbytes_per_s }) = &profile.measured {
        let peaks: Vec<String> = fma_gflops.iter().map(|(isa, gflops)| format!("{isa} {gflops:.1}")).collect();
        text += &format!("peak      FMA of one core, GFLOP/s: {}\n", peaks.join(", "));
        text += &format!("read      one core from memory: {read_gbytes_per_s:.1} GB/s\n");
    }
    text += "\nA quick profile of this machine, for this run only (`regard tune` makes one and keeps it):\n\n";
    text + &tune::table(&profile.entries)
}

fn table(rows: &[Row], samples: &[Sample]) -> String {
    let layers: Vec<String> = samples.iter().map(|sample| sample.layer.to_string()).collect();
    let mut text = format!(
        "Every weighting on Q, K and V of layers {} of all-MiniLM-L6-v2 (2 texts, 12 heads, 192 positions, d 32), one \
         thread:\n\n{:<15} {:<9} {:>9} {:>9} {:>8} {:>14} {:>9}\n",
        layers.join(" and "),
        "weighting",
        "ISA",
        "time/ms",
        "GFLOP/s",
        "of peak",
        "largest error",
        "relative"
    );
    for row in rows {
        let Row { weighting, isa, seconds, gflops, fraction_of_peak, .. } = row;
        let Row { max_abs_error, max_relative_error, passed, .. } = row;
        let verdict = if *passed { "" } else { "  WRONG" };
        let milliseconds = seconds * 1e3;
        text += &format!(
            "{weighting:<15} {isa:<9} {milliseconds:>9.3} {gflops:>9.1} {fraction_of_peak:>8.3} \
             {max_abs_error:>14.1e} {max_relative_error:>9.1e}{verdict}\n"
        );
    }
    let stored = rows.iter().find(|row| !row.max_abs_error_to_stored.is_empty());
    if let Some(row) = stored {
        let errors = row.max_abs_error_to_stored.iter();
        let errors: Vec<String> = errors.map(|(layer, error)| format!("{error:.1e} in layer {layer}")).collect();
        text += &format!("\nsoftmax against the output that comes with the data: {}\n", errors.join(", "));
    }
    let failed = rows.iter().filter(|row| !row.passed).count();
    text + &match failed {
        0 => format!("all {} results agree with the f64 reference", rows.len()),
        failed => format!("{failed} of {} results do NOT agree with the f64 reference", rows.len()),
    }
}

impl Row {
    fn new(
        name: &'static str,
        options: &Attention<'_>,
        level: Level,
        setup: &Setup,
        samples: &[Sample],
        threads: &ThreadPool,
    ) -> Result<Self, CliError> {
        let (mut seconds, mut flops, mut fractions) = (0.0, 0.0, Vec::new());
        let mut deviation = Deviation::default();
        let mut row = Self {
            weighting: name,
            isa: level.isa().name(),
            kernel: "",
            seconds: 0.0,
            gflops: 0.0,
            fraction_of_peak: 0.0,
            max_abs_error: 0.0,
            max_relative_error: 0.0,
            max_abs_error_to_stored: BTreeMap::new(),
            passed: true,
        };
        for sample in samples {
            let options = options.clone().key_lengths(&sample.lengths);
            let problem = Problem::new(&options, sample.q()?, sample.k()?, sample.v()?)?;
            let plan = Plan::new(&problem, setup);
            row.kernel = plan.kernel();
            let work = Work { flops: problem.flops(), arithmetic: Arithmetic::F32, bytes: problem.kv_bytes() };
            let mut out = vec![0.0; sample.q.len()];
            let found = pin::pinned(|| time(&plan, &problem, level, work, &mut out)).value?;
            seconds += found.0;
            flops += work.flops;
            fractions.push(found.1);
            deviation = deviation.or(deviations(&problem, &plan, sample.v()?, &out, threads)?);
            if matches!(options.weighting(), Weighting::Softmax) {
                let error = sample.error(&out);
                row.max_abs_error_to_stored.insert(sample.layer.to_string(), error);
                row.passed &= error <= sample.tolerance();
            }
        }
        row.passed &= deviation.is_rounding();
        row.max_abs_error = deviation.max_abs_error;
        row.max_relative_error = deviation.max_relative_error;
        Ok(Self { seconds, gflops: flops / seconds / 1e9, fraction_of_peak: median(&fractions), ..row })
    }
}

/// The seconds of a call, and the fraction of the peak.
fn time(plan: &Plan, problem: &Problem<'_>, level: Level, work: Work, out: &mut [f32]) -> Result<(f64, f64), CliError> {
    let mut workspace = vec![0.0; plan.workspace_len(1)];
    let shape = problem.shape().out();
    let mut run = || {
        let view = ViewMut::bhsd(out, shape).map_err(|source| regard::Error::View { tensor: "out", source })?;
        plan.run(problem, view, None, &mut workspace, Execution::Serial)
    };
    // What can go wrong goes wrong here.
    run()?;
    let found = measure(&mut Probes::compute(level), work, Budget::rounds(12), || drop(run()));
    let fraction = found.compute.map_or(0.0, |compute| compute.fraction);
    Ok((found.seconds, fraction))
}

/// Every row against the reference, on all threads.
fn deviations(
    problem: &Problem<'_>,
    plan: &Plan,
    v: View<'_, f32>,
    out: &[f32],
    threads: &ThreadPool,
) -> Result<Deviation, CliError> {
    let shape = problem.shape();
    let out = View::bhsd(out, shape.out()).map_err(|source| regard::Error::View { tensor: "out", source })?;
    let index = |row: usize| {
        let (head, query) = (row / shape.queries, row % shape.queries);
        [head / shape.query_heads, head % shape.query_heads, query]
    };
    let reference = Reference {
        problem,
        plan,
        v: v.into(),
        place: &|sequence, key| [sequence, key],
        tolerance: Tolerance::new(Arithmetic::F32, Dtype::F32),
    };
    let compare = || {
        let each = (0..shape.rows()).into_par_iter().map(|row| reference.row(out.into(), index(row)));
        each.reduce(Deviation::default, Deviation::or)
    };
    Ok(threads.install(compare))
}
