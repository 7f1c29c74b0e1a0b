//! What a search is checked with: a second search, and every sample of every candidate.

use std::fmt::Write;
use std::time::Instant;

use regard::Level;
use regard_profile::{Machine, Profile};
use regard_tuner::pin;
use regard_tuner::search::{Record, RecordError, Role, RunOff};
use regard_tuner::stats::quantile;
use serde::Serialize;

use super::{TuneArgs, search, what};
use crate::cli::Global;
use crate::error::CliError;
use crate::output;
use crate::progress::Reporter;

/// Choices of two searches may differ, but not by more than this in time.
const AGREEMENT: f64 = 0.02;

/// Seconds for the run-offs between the choices of two searches.
const RUN_OFF_SECONDS: f64 = 20.0;

/// A class of which two searches were compared.
#[derive(Debug, Serialize)]
struct Agreement {
    class: String,
    /// Whether both chose the same.
    same: bool,
    /// How many times as fast the second choice was, with its 95 % interval.
    speedup: f64,
    interval: [f64; 2],
    agrees: bool,
}

impl Agreement {
    fn new(class: String, run_off: Option<&RunOff>) -> Self {
        let Some(found) = run_off else {
            return Self { class, same: true, speedup: 1.0, interval: [1.0; 2], agrees: true };
        };
        let RunOff { speedup, interval, floor, .. } = *found;
        let agrees = (speedup - 1.0).abs() <= AGREEMENT.max(floor);
        Self { class, same: false, speedup, interval: [interval.low, interval.high], agrees }
    }
}

/// Searches twice and compares.
pub(super) fn run(args: &TuneArgs, level: Level, machine: &Machine, global: &Global) -> Result<(), CliError> {
    let [first, second] = [(); 2].map(|()| search(&[level], machine, args, Instant::now(), None).profile);
    let search = args.search(level, machine, args.seconds());
    let compared = pin::pinned(|| search.compare([&first, &second], RUN_OFF_SECONDS)).value;
    let found: Vec<Agreement> = (compared.iter())
        .map(|(contest, run_off)| Agreement::new(contest.class.to_string(), run_off.as_ref()))
        .collect();
    if global.json {
        output::json(&found)?;
    } else {
        output::text(table(&found))?;
    }
    match found.iter().filter(|agreement| !agreement.agrees).count() {
        _ if found.is_empty() => Err(CliError::Failed("the time was too short for any class".to_owned())),
        0 => Ok(()),
        apart => {
            let percent = 100.0 * AGREEMENT;
            Err(CliError::Failed(format!("two searches differ by more than {percent} % in {apart} classes")))
        }
    }
}

fn table(found: &[Agreement]) -> String {
    let width = found.iter().map(|agreement| agreement.class.len()).max().unwrap_or(0).max(5);
    let mut text = format!("{:<width$}  {:>8}  {:>16}\n", "class", "speed-up", "interval");
    for Agreement { class, same, speedup, interval: [low, high], agrees } in found {
        let verdict = match (same, agrees) {
            (true, _) => "the same choice",
            (false, true) => "agrees",
            (false, false) => "DIFFERS",
        };
        // Writing to a string does not fail.
        let _ = writeln!(text, "{class:<width$}  {speedup:>8.3}  {low:>7.3} to {high:.3}  {verdict}");
    }
    let same = found.iter().filter(|agreement| agreement.same).count();
    let _ = write!(
        text,
        "\nThe speed of the second search's choice over the first one's; {same} of {} the same.",
        found.len()
    );
    text
}

/// Times every candidate, and keeps the samples if a file was named. `None` if there was not enough time for all.
pub(super) fn record(args: &TuneArgs, level: Level, machine: &Machine) -> Result<Option<Record>, CliError> {
    let isa = level.isa().name();
    let file = args.record.as_deref();
    let earlier = match file {
        Some(path) => Record::open(path, machine, isa).map_err(refused)?,
        None => Record::new(machine, isa),
    };
    let seconds = args.budget.unwrap_or(f64::INFINITY);
    let search = args.search(level, machine, seconds);
    let start = Instant::now();
    let mut reporter = Reporter::new();
    let mut failed = None;
    let record = pin::pinned(|| {
        let mut keep = |record: &Record| {
            if let Some(Err(error)) = file.map(|path| record.save(path)) {
                failed = Some(error);
            }
        };
        search.record(earlier, &mut |progress| reporter.show(progress.fraction, &what(progress)), &mut keep)
    })
    .value;
    reporter.clear();
    if let Some(error) = failed {
        return Err(refused(error));
    }
    let contests = search.contests();
    let missing = contests.iter().filter(|contest| !record.has(contest)).count();
    if missing == 0 {
        return Ok(Some(record));
    }
    let (done, of) = (contests.len() - missing, contests.len());
    let again = file.map_or_else(String::new, |path| format!("; the same command goes on with {}", path.display()));
    let taken = start.elapsed().as_secs_f64();
    Err(CliError::Failed(format!("{done} of {of} classes were recorded in {taken:.0} s{again}")))
}

fn refused(error: RecordError) -> CliError {
    match error {
        RecordError::Io { path, error } => CliError::Write { path, error },
        error => CliError::Input(error.to_string()),
    }
}

/// How much longer the choices of a profile take than the best of all candidates, as fractions of the time of these.
#[derive(Debug, Serialize)]
pub(super) struct Regret {
    by_all_samples: Quantiles,
    timed_again_in_pairs: Quantiles,
}

/// Null in JSON if there are no classes.
#[derive(Debug, Serialize)]
struct Quantiles {
    median: f64,
    quantile_95: f64,
    most: f64,
}

impl Quantiles {
    fn of(regrets: &[f64]) -> Self {
        let [median, quantile_95, most] = [0.5, 0.95, 1.0].map(|p| quantile(regrets, p));
        Self { median, quantile_95, most }
    }
}

impl Regret {
    /// A line for each way of timing, after what is there.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let ways = [("by all samples", &self.by_all_samples), ("timed again in pairs", &self.timed_again_in_pairs)];
        for (name, Quantiles { median, quantile_95, most }) in ways {
            let [median, quantile_95, most] = [median, quantile_95, most].map(|regret| 100.0 * regret);
            // Writing to a string does not fail.
            let _ = write!(
                text,
                "\nregret      {median:.2} % median, {quantile_95:.2} % at the 95 % quantile, {most:.2} % at most, over the best \
                 of all candidates, {name}"
            );
        }
        text
    }
}

/// How far the choices of a profile are from the best of all candidates: by the record, and by run-offs of each choice against
/// what the record says is the best of its class.
pub(super) fn regret(
    args: &TuneArgs,
    level: Level,
    machine: &Machine,
    record: &Record,
    profile: &Profile,
) -> Option<Regret> {
    let mut best = profile.clone();
    let mut regrets = Vec::new();
    for recorded in &record.contests {
        let contest = &recorded.contest;
        let rows = contest.role == Role::Rows;
        let answers =
            |entry: &&mut regard_profile::Entry| entry.class == contest.class && entry.config.takes_rows() == rows;
        let Some(entry) = best.entries.iter_mut().find(answers).filter(|_| contest.role != Role::Crossing) else {
            continue;
        };
        let truth = recorded.truth();
        let fastest = (0..truth.len()).min_by(|a, b| truth[*a].total_cmp(&truth[*b]))?;
        let Some(chosen) = contest.candidates.iter().position(|config| *config == entry.config) else { continue };
        regrets.push(truth[chosen] / truth[fastest] - 1.0);
        entry.config = contest.candidates[fastest].clone();
    }
    let search = args.search(level, machine, args.seconds());
    let compared = pin::pinned(|| search.compare([profile, &best], RUN_OFF_SECONDS)).value;
    let speedup = |run_off: &Option<RunOff>| run_off.as_ref().map_or(0.0, |found| (found.speedup - 1.0).max(0.0));
    let timed: Vec<f64> = compared.iter().map(|(_, run_off)| speedup(run_off)).collect();
    Some(Regret { by_all_samples: Quantiles::of(&regrets), timed_again_in_pairs: Quantiles::of(&timed) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regret_is_the_same_in_json_and_in_words() {
        let regret = Regret {
            by_all_samples: Quantiles::of(&[0.0, 0.01, 0.04]),
            timed_again_in_pairs: Quantiles::of(&[0.0, 0.0, 0.25]),
        };
        let json = serde_json::to_value(&regret).unwrap();
        assert_eq!([&json["by_all_samples"]["median"], &json["timed_again_in_pairs"]["most"]], [0.01, 0.25]);
        let text = regret.text();
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert!(
            lines[0].starts_with(
                "regret      1.00 % median, 3.70 % at the 95 % quantile, 4.00 % at most, over the best of"
            )
        );
        assert!(
            lines[1].contains("0.00 % median")
                && lines[1].ends_with("25.00 % at most, over the best of all candidates, timed again in pairs"),
            "{text}"
        );
    }
}
