//! What tuning had to say about a plan: the model's prediction, the roof that binds, and the log of the contest.

use std::fmt::Write;

use regard::{Plan, Problem, Sequence, Setup, Shape, kernel_set};
use regard_kernels::table::kernels;
use regard_profile::{Class, Config, Found, KernelCost, Operation, Profile, TileQuery, find};
use regard_simd::{Extension, Level};
use regard_tuner::search::{Duel, Fate, Trial, Trials};
use serde::Serialize;

use crate::tune;

/// What the analytic model and the measured ceilings say of one core.
#[derive(Debug, Serialize)]
pub(super) struct Prediction {
    /// The predicted part of the peak of what the kernel multiplies; none for rows kernels, which the memory limits if
    /// rows are few, and for the linear form: there is no model of them.
    fraction_of_peak: Option<f64>,
    /// Operations of the linear form, if everything is computed in it.
    linear_flops: Option<f64>,
    /// Seconds that the multiply-adds take at the measured peak of the level.
    arithmetic_seconds: Option<f64>,
    /// Seconds that keys and values take at the measured bandwidth.
    memory_seconds: Option<f64>,
    /// Which of the two takes longer.
    roof: Option<&'static str>,
}

impl Prediction {
    pub(super) fn new(plan: &Plan, problem: &Problem<'_>, setup: &Setup, flops: f64) -> Self {
        let shape = problem.shape();
        let linear_flops = plan.monomials().map(|monomials| linear_flops(problem, monomials));
        let level = Level::of(plan.isa()).ok();
        let extension = level.and_then(|level| crate::setup::extension(level, plan.kernel()));
        let kernel = level.and_then(|level| kernels(level).iter().find(|kernel| kernel.name == plan.kernel()));
        let over_peak = kernel.map(|kernel| {
            let tile = TileQuery {
                lanes_per_tile: kernel.tile.rows,
                keys_per_tile: kernel.tile.keys,
                head_dim: shape.head_dim,
                value_dim: shape.value_dim,
            };
            let cost = KernelCost {
                tile,
                vectors_per_tile: kernel.tile.vectors,
                key_block: plan.key_block(),
                query_block: plan.query_block(),
                queries: shape.queries,
                keys: shape.keys,
            };
            cost.over_peak(&setup.machine.caches) * if extension == Some(Extension::Amx) { OVER_TILES } else { 1.0 }
        });
        let measured = setup.profile.as_ref().and_then(|profile| profile.measured.as_ref());
        let peak = setup.profile.as_ref().and_then(|profile| peak(profile, plan.isa().name(), extension));
        let arithmetic_seconds = peak.map(|peak| linear_flops.unwrap_or(flops) / peak / 1e9);
        let memory_seconds = measured.map(|measured| problem.kv_bytes() / measured.read_gbytes_per_s / 1e9);
        let roof = arithmetic_seconds
            .zip(memory_seconds)
            .map(|(arithmetic, memory)| if arithmetic >= memory { "arithmetic" } else { "memory" });
        let fraction_of_peak = over_peak.map(|over| 1.0 / over);
        Self { fraction_of_peak, linear_flops, arithmetic_seconds, memory_seconds, roof }
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::from("model        ");
        match (self.fraction_of_peak, self.linear_flops) {
            (_, Some(flops)) => {
                text += &format!("arithmetic limits the linear form: {} in sums over keys", super::describe(flops));
            }
            (Some(fraction), None) => text += &format!("{fraction:.2} of the multiply-add peak is predicted"),
            (None, None) => {
                text += "keys and values are read once for up to 64 rows, at the speed of the memory if there are few"
            }
        }
        if let (Some(arithmetic), Some(memory), Some(roof)) = (self.arithmetic_seconds, self.memory_seconds, self.roof)
        {
            let _ = write!(
                text,
                "\nroof         {roof} binds: one core needs {} at its peak for the multiply-adds, and {} to read keys and \
                 values from memory",
                time(arithmetic),
                time(memory)
            );
        }
        text
    }
}

/// Time over that of products on tile registers, which are so fast that exponentials, stores and loads are most of it (2048 x 2048,
/// d 128, on a Xeon: 0.19 of the peak).
const OVER_TILES: f64 = 5.0;

/// Operations of the linear form: every key that is seen adds its monomials to sums of `d_v` columns and a norm, and those of
/// every query are multiplied with them.
fn linear_flops(problem: &Problem<'_>, monomials: usize) -> f64 {
    let Shape { query_heads, kv_heads, value_dim, .. } = problem.shape();
    let rows = |sequence: &Sequence| {
        let Sequence { band, queries, keys, .. } = *sequence;
        let seen = queries.checked_sub(1).map_or(0, |last| band.visible(last, keys).end);
        queries as f64 * query_heads as f64 + seen as f64 * kv_heads as f64
    };
    let rows: f64 = problem.sequences().iter().map(rows).sum();
    2.0 * rows * monomials as f64 * (value_dim as f64 + 1.0)
}

/// The peak of one core, in 10⁹ operations per second, of what a kernel with this extension multiplies.
fn peak(profile: &Profile, isa: &str, extension: Option<Extension>) -> Option<f64> {
    let fma = profile.measured.as_ref()?.fma_gflops.get(isa).copied()?;
    let Some(extension) = extension else { return Some(fma) };
    let of_card = |operation| profile.card.as_ref().and_then(|card| card.peak(operation, isa, 1));
    let of_pairs = match extension {
        Extension::Bf16 => of_card(Operation::DotBf16),
        // Measured of bytes, of which an instruction takes twice as many.
        Extension::Vnni => of_card(Operation::DotInt8).map(|peak| peak / 2.0),
        _ => None,
    };
    // Where nobody measured it: twice the peak of f32, or half of it, or eight times.
    let over_fma = match extension {
        Extension::Amx => 8.0,
        Extension::Bf16 if !profile.machine.bf16_pairs_pay() => 0.5,
        _ => 2.0,
    };
    Some(of_pairs.unwrap_or(over_fma * fma))
}

/// Seconds in a unit that leaves digits before the point.
fn time(seconds: f64) -> String {
    if seconds >= 1e-3 { format!("{:.2} ms", 1e3 * seconds) } else { format!("{:.1} us", 1e6 * seconds) }
}

/// The log of the contest that decided a plan, the last one held for its class.
pub(super) fn contest(plan: &Plan, setup: &Setup) -> Option<Trials> {
    // The kernel that was contested does not run in the linear form.
    let entry = plan.profile_entry().filter(|_| plan.monomials().is_none())?;
    let Found::Loaded { path, .. } = find(&setup.machine, &kernel_set()) else { return None };
    let answers = |trials: &Trials| {
        let won = |trial: &Trial| trial.fate == Fate::Won && trial.config == entry.config;
        trials.class == entry.class && trials.trials.iter().any(won)
    };
    tune::read_trials(&path).into_iter().rfind(answers)
}

/// The story of a contest.
pub(super) fn story(contest: &Trials) -> String {
    let Trials { class, trials, run_offs, .. } = contest;
    let mut text = format!("contest      {}", describe(class));
    for Trial { config, fate, ratio, samples } in trials {
        let ratio = ratio.map_or_else(String::new, |ratio| format!(" at {ratio:.3} of the fastest"));
        let fate = match fate {
            Fate::Failed => "out: its results were wrong".to_owned(),
            Fate::Pruned => format!("not timed: the model expects it{ratio}"),
            Fate::Dropped(rung) => format!("out after rung {rung}{ratio}, {samples} samples"),
            Fate::KeyBlock => format!("key block out{ratio}, {samples} samples"),
            Fate::LostRunOff => format!("among the last{ratio}, {samples} samples"),
            Fate::Won => format!("chosen{ratio}, {samples} samples"),
        };
        // Writing to a string does not fail.
        let _ = write!(text, "\n             {}  {fate}", name(config));
    }
    for Duel { incumbent, challenger, speedup, interval: [low, high], floor, rounds } in run_offs {
        let percent = |ratio: &f64| 100.0 * (ratio - 1.0);
        let _ = write!(
            text,
            "\nrun-off      {} against {}: {:+.1} %, interval {:+.1} to {:+.1} %, noise {:.1} %, {rounds} rounds",
            name(challenger),
            name(incumbent),
            percent(speedup),
            percent(low),
            percent(high),
            100.0 * floor
        );
    }
    text
}

fn describe(class: &Class) -> String {
    format!("{class}; kernel, query block x key block, and what became of it")
}

fn name(config: &Config) -> String {
    let Config { kernel, key_block, query_block, .. } = config;
    format!("{kernel:<24} {query_block:>5} x {key_block:<4}{}", config.reading_in_words())
}
