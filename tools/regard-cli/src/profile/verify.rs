//! `regard profile verify`.

use std::cell::RefCell;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use regard::{Align, Attention, Dtype, Execution, Isa, Level, Plan, Setup, View, Weighting};
use regard_profile::{Class, Entry, Family, Machine, MaskClass, Profile};
use regard_tuner::inputs::Order;
use regard_tuner::measure::{Budget, Comparison, compare};
use regard_tuner::pin;
use serde::Serialize;

use super::used;
use crate::bench::inputs::{Inputs, tensor};
use crate::cli::Global;
use crate::error::CliError;
use crate::output;
use crate::progress::Reporter;
use crate::sequences::SequenceArgs;
use crate::shape_args::ShapeArgs;

/// Times the choices of the profile against the analytic model's, on the problems of their classes.
///
/// Both are timed in turns on one pinned core, so that a change of the clock meets both. Choices that are the model's own
/// need no timing. The shortest problems come first; what the time is too short for is said.
#[derive(Clone, Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct VerifyArgs {
    /// The profile [default: the one that is used here]
    path: Option<PathBuf>,
    /// Time for all of it
    #[arg(long, default_value = "5", value_parser = crate::bench::seconds, allow_negative_numbers = true, value_name = "SECONDS")]
    budget: f64,
}

const AFTER_HELP: &str = "\
The speed-up is the model's time over the profile's: more than 1 is what tuning has gained.

Exit codes: 0 no choice is slower than the model's, 1 one is, by more than 1 % and beyond doubt (tune again), 3 there is no
profile, or it cannot be used here.

Examples:
  regard profile verify
  regard profile verify --budget 30 --json";

/// A loss up to this is none: it would not be found again tomorrow.
const MARGIN: f64 = 0.01;

/// Rounds of a comparison at least, and the calls that come of that, with those to warm up.
const ROUNDS: usize = 5;
const CALLS: f64 = 4.0 * ROUNDS as f64 + 4.0;

/// What became of an entry.
#[derive(Debug, Serialize)]
struct Trial<'a> {
    class: &'a Class,
    /// `faster`, `equal`, `slower`, `model` (it is the model's own choice), `untimed` (the time was too short) or
    /// `unavailable` (this machine cannot run it).
    verdict: &'static str,
    /// The model's time over that of the choice.
    speedup: Option<f64>,
    /// The ends of its 95 % interval.
    interval: Option<[f64; 2]>,
    rounds: usize,
}

#[derive(Debug, Serialize)]
struct Summary<'a> {
    path: PathBuf,
    seconds: f64,
    slower: usize,
    trials: Vec<Trial<'a>>,
}

/// Runs the command.
pub(super) fn run(args: VerifyArgs, global: &Global) -> Result<(), CliError> {
    let level = Level::from_env()?;
    let mut machine = Machine::detect();
    let (path, profile) = match args.path {
        Some(path) => {
            let profile = regard_profile::load(&path, &machine, &regard::kernel_set()).map_err(CliError::Profile)?;
            (path, profile)
        }
        None => {
            let (path, profile, fit) = used(&machine)?;
            machine = machine.completed_by(&profile, fit);
            (path, profile)
        }
    };
    let start = Instant::now();
    let mut reporter = Reporter::new();
    let model = Setup { level, machine, profile: None };
    let trials = pin::pinned(|| all(&profile, &model, args.budget, start, &mut reporter)).value?;
    reporter.clear();
    let slower = trials.iter().filter(|trial| trial.verdict == "slower").count();
    let summary = Summary { path, seconds: start.elapsed().as_secs_f64(), slower, trials };
    if global.json {
        output::json(&summary)?
    } else {
        output::text(summary.to_text())?
    }
    match slower {
        0 => Ok(()),
        _ => Err(CliError::Failed(format!("{slower} choices of the profile are slower than the model's: tune again"))),
    }
}

/// Every entry, the quickest first.
fn all<'p>(
    profile: &'p Profile,
    model: &Setup,
    seconds: f64,
    start: Instant,
    reporter: &mut Reporter,
) -> Result<Vec<Trial<'p>>, CliError> {
    let mut entries: Vec<&Entry> = profile.entries.iter().collect();
    entries.sort_by(|a, b| call_seconds(a).total_cmp(&call_seconds(b)));
    let mut trials = Vec::new();
    for (i, &entry) in entries.iter().enumerate() {
        reporter.show(i as f64 / entries.len() as f64, &entry.class.to_string());
        let left = (seconds - start.elapsed().as_secs_f64()).max(0.0);
        let share = left / (entries.len() - i) as f64;
        let alone = Profile { entries: vec![entry.clone()], ..profile.clone() };
        let tuned = Setup { profile: Some(alone.into()), ..model.clone() };
        let may_take = if CALLS * call_seconds(entry) > left { None } else { Some(share) };
        trials.push(trial(entry, &tuned, model, may_take)?);
    }
    Ok(trials)
}

/// Heads to compute: enough of a short problem to be worth a call, and as decoding has them.
fn heads(class: &Class) -> (usize, usize) {
    const FEW_QUERIES: usize = 16;
    if class.queries <= FEW_QUERIES { (8, 2) } else { (1, 1) }
}

/// About how long a call takes, by the speed that the entry has.
fn call_seconds(entry: &Entry) -> f64 {
    let Class { head_dim, value_dim, keys, queries, .. } = entry.class;
    let pairs = queries as f64 * keys as f64 * heads(&entry.class).0 as f64;
    2.0 * pairs * (head_dim + value_dim) as f64 / (1e9 * entry.gflops.max(0.01))
}

/// Times an entry for so many seconds, if there are any.
fn trial<'p>(entry: &'p Entry, tuned: &Setup, model: &Setup, seconds: Option<f64>) -> Result<Trial<'p>, CliError> {
    let class = &entry.class;
    let without = |verdict| Trial { class, verdict, speedup: None, interval: None, rounds: 0 };
    let Ok(isa) = class.isa.parse::<Isa>() else { return Ok(without("unavailable")) };
    let dtype = Dtype::ALL.into_iter().find(|dtype| dtype.name() == class.dtype);
    let (Some(dtype), Ok(_)) = (dtype, Level::of(isa)) else { return Ok(without("unavailable")) };
    let Some(seconds) = seconds else { return Ok(without("untimed")) };

    let Class { head_dim, value_dim, keys, queries, .. } = *class;
    let (heads, kv_heads) = heads(class);
    let shape = ShapeArgs {
        batch: 1,
        heads,
        kv_heads: Some(kv_heads),
        queries: Some(queries),
        keys: Some(keys),
        head_dim,
        value_dim: Some(value_dim),
    };
    let sizes = shape.sizes(&SequenceArgs { varlen: None, paged: None })?;
    let Inputs { q, k, v, out } = Inputs::new(&sizes, Order::HeadsFirst, [dtype, Dtype::F32], 1)?;
    let weighting = match class.family {
        Family::Exponential => Weighting::Softmax,
        Family::Selection => Weighting::HardLeft,
        Family::Pointwise => Weighting::Relu,
        Family::Normalised => Weighting::EvenPower { degree: 2 },
    };
    let keep: Vec<u8> = match class.mask {
        // Seven of eight keys, no two rows alike.
        MaskClass::Tensor => (0..queries * keys).map(|i| u8::from(i * 5 % 8 != 0)).collect(),
        MaskClass::Full | MaskClass::Banded => Vec::new(),
    };
    let options = Attention::new(weighting).isa(isa);
    let options = match class.mask {
        MaskClass::Full => options,
        MaskClass::Banded => options.causal(Align::BottomRight),
        MaskClass::Tensor => {
            let view = View::bhsd(&keep, [1, 1, queries, keys]);
            options.keep_mask(view.map_err(|source| regard::Error::View { tensor: "keep mask", source })?)
        }
    };
    let problem = sizes.problem(&options, [tensor("q", &q, 0)?, tensor("k", &k, 0)?, tensor("v", &v, 0)?])?;
    let plans = [Plan::new(&problem, model), Plan::new(&problem, tuned)];
    if plans[1].profile_entry().is_none() {
        return Ok(without("unavailable"));
    }
    let choice = |plan: &Plan| (plan.kernel(), plan.key_block(), plan.query_block());
    if choice(&plans[0]) == choice(&plans[1]) {
        return Ok(without("model"));
    }
    let out = RefCell::new(out);
    let mut workspaces = plans.each_ref().map(|plan| vec![0.0; plan.workspace_len(1)]);
    let run = |plan: &Plan, workspace: &mut [f32]| -> Result<(), regard::Error> {
        let mut out = out.borrow_mut();
        let out = out.tensor_mut().map_err(|source| regard::Error::View { tensor: "out", source })?;
        plan.run(&problem, out, None, workspace, Execution::Serial)
    };
    // What can go wrong goes wrong here.
    for (plan, workspace) in plans.iter().zip(&mut workspaces) {
        run(plan, workspace)?;
    }
    let [of_model, of_tuned] = &mut workspaces;
    let budget = Budget { seconds, min_rounds: ROUNDS };
    let found = compare(|| drop(run(&plans[0], of_model)), || drop(run(&plans[1], of_tuned)), budget);
    Ok(Trial::of(class, &found))
}

impl<'p> Trial<'p> {
    fn of(class: &'p Class, found: &Comparison) -> Self {
        let interval = found.interval;
        let verdict = match found.speedup {
            _ if interval.high < 1.0 - MARGIN => "slower",
            _ if interval.low > 1.0 => "faster",
            _ => "equal",
        };
        let (speedup, rounds) = (Some(found.speedup), found.ratios.len());
        Self { class, verdict, speedup, interval: Some([interval.low, interval.high]), rounds }
    }
}

impl Summary<'_> {
    fn to_text(&self) -> String {
        let width = self.trials.iter().map(|trial| trial.class.to_string().len()).max().unwrap_or(0).max(5);
        let mut text = format!("{:<width$}  verdict      speed-up  95 % interval\n", "class");
        for Trial { class, verdict, speedup, interval, .. } in &self.trials {
            let class = class.to_string();
            // Writing to a string does not fail.
            let _ = match (speedup, interval) {
                (Some(speedup), Some([low, high])) => {
                    writeln!(text, "{class:<width$}  {verdict:<12} {speedup:>8.3}  {low:.3} to {high:.3}")
                }
                _ => writeln!(text, "{class:<width$}  {verdict}"),
            };
        }
        let count = |verdict: &str| self.trials.iter().filter(|trial| trial.verdict == verdict).count();
        let counts = ["faster", "equal", "slower", "model", "untimed", "unavailable"];
        let counts: Vec<String> = counts
            .into_iter()
            .filter(|verdict| count(verdict) > 0 || *verdict == "slower")
            .map(|verdict| format!("{} {verdict}", count(verdict)))
            .collect();
        text + &format!("\n{}: {} in {:.1} s", self.path.display(), counts.join(", "), self.seconds)
    }
}
