//! `regard tune`: a profile of this machine.

mod again;
mod trials;

use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use clap::Args;
use regard::{Isa, Level, kernel_set};
use regard_profile::{Card, Confidence, Config, Entry, Machine, Profile, default_path};
use regard_tuner::pin;
use regard_tuner::search::{Effort, Found, Progress, Search};
use regard_tuner::stats::rounded;
use serde::Serialize;

pub(crate) use self::trials::read as read_trials;
use crate::cli::Global;
use crate::error::CliError;
use crate::output;
use crate::progress::Reporter;
use crate::setup::Threads;

/// Finds the best kernels and block sizes for this machine, and writes them to the profile that the library looks for.
///
/// Every candidate is checked against f64 before it is timed; all are timed in turns on one pinned core; the analytic
/// model's choice stays unless another one is faster beyond doubt. Entries of other levels in the profile are kept.
///
/// Ctrl-C ends the search early and keeps what it has found; --resume goes on from there.
#[derive(Clone, Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct TuneArgs {
    /// The most important classes of problems, in 30 seconds
    #[arg(long, conflicts_with_all = ["thorough", "exhaustive"])]
    quick: bool,
    /// 5 minutes instead of 60 seconds
    #[arg(long, conflicts_with = "exhaustive")]
    thorough: bool,
    /// First time every candidate of every class, then search, and say how far the choices are from the best
    #[arg(long)]
    exhaustive: bool,
    /// With --exhaustive: keep all samples in this file; if it exists, go on with it
    #[arg(long, value_name = "FILE", requires = "exhaustive")]
    record: Option<PathBuf>,
    /// Time for all of it [default: 60, with --quick 30, with --thorough 300]; whenever it ends, the profile is valid
    #[arg(long, value_parser = crate::bench::seconds, allow_negative_numbers = true, value_name = "SECONDS")]
    budget: Option<f64>,
    /// Keep the entries that the profile has for this level, and search for those that it lacks
    #[arg(long, conflicts_with = "exhaustive")]
    resume: bool,
    /// Write no profile, and fail, if the machine was too noisy for its timings to be trusted
    #[arg(long)]
    strict: bool,
    /// Search twice, time the choices of both against each other, and fail if they differ by more than 2 %; writes no file
    #[arg(long, conflicts_with_all = ["exhaustive", "resume", "strict", "out", "dry_run"])]
    self_check: bool,
    /// The profile to write [default: REGARD_PROFILE, or the file of this machine in the user's data directory]
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// Write no file
    #[arg(long)]
    dry_run: bool,
    /// The level to tune, or all that this machine has [default: REGARD_ISA, or the best here]
    #[arg(long, value_name = "NAME|all")]
    isa: Option<String>,
}

const AFTER_HELP: &str = "\
Columns of the table: the speed in GFLOP/s over visible pairs, its fraction of the peak of the level, and the time
over that of the analytic model's choice (less than 1 is a gain).

Examples:
  regard tune
  regard tune --quick
  regard tune --isa all --budget 120
  regard tune --resume
  regard tune --self-check --quick
  regard tune --exhaustive --record samples.regard
  regard tune --dry-run --json";

/// What came of it.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    path: Option<&'a Path>,
    written: bool,
    complete: bool,
    profile: &'a Profile,
    /// With `--exhaustive`.
    #[serde(skip_serializing_if = "Option::is_none")]
    regret: Option<again::Regret>,
}

/// Set by Ctrl-C.
static STOP: AtomicBool = AtomicBool::new(false);

/// The exit code of a program that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// Runs the command.
pub(crate) fn run(args: TuneArgs, global: &Global) -> Result<(), CliError> {
    let levels = args.levels()?;
    let machine = Machine::detect();
    let path = args.path(&machine)?;
    // The first one ends the search, the second one everything. Without a handler, Ctrl-C loses the search and no more.
    let _ = ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED);
        }
    });
    if args.self_check {
        return again::run(&args, levels[0], &machine, global);
    }
    // A profile that cannot be used is replaced.
    let old = path.as_ref().and_then(|path| regard_profile::load(path, &machine, &kernel_set()).ok());
    let earlier = old.as_ref().filter(|_| args.resume);
    let recorded = if args.exhaustive { again::record(&args, levels[0], &machine)? } else { None };

    let start = Instant::now();
    // First, so that the search can have exactly what this leaves of the time. A run without time for it keeps the card that
    // is there.
    let card = if args.measures_card() { card(&machine, args.seconds(), start)? } else { None };
    let found = search(&levels, &machine, &args, start, earlier);
    let of_levels = |isa: &str| levels.iter().any(|level| level.isa().name() == isa);
    let mut profile = found.profile;
    let entries = profile.entries.len();
    if args.measures_card() && card.is_none() && !STOP.load(Ordering::Relaxed) {
        profile.run.notes.push("the machine card would have taken more than its part of the time".to_owned());
    }
    profile.card = card;
    profile.run.seconds = rounded(start.elapsed().as_secs_f64());
    if let Some(old) = old {
        profile.entries.extend(old.entries.into_iter().filter(|entry| !of_levels(&entry.class.isa)));
        let has = |profile: &Profile, kernel: &str| profile.crossover(kernel).is_some();
        let kept = old.crossovers.into_iter().filter(|old| !has(&profile, &old.kernel)).collect::<Vec<_>>();
        let of_others = |kernel: &str| !levels.iter().any(|level| kernel.starts_with(level.isa().name()));
        profile.crossovers.extend(kept.into_iter().filter(|old| of_others(&old.kernel)));
    }
    if args.strict && profile.run.confidence == Confidence::Low {
        let reasons = profile.run.notes.join("; ");
        return Err(CliError::Failed(format!("low confidence, and no profile was written: {reasons}")));
    }
    // A file without entries would only take the place of one that has some.
    let written = match &path {
        Some(path) if entries > 0 => {
            save(path, &profile)?;
            trials::append(path, &found.trials)?;
            true
        }
        _ => false,
    };
    let regret = recorded.and_then(|record| again::regret(&args, levels[0], &machine, &record, &profile));
    if global.json {
        let summary = Summary { path: path.as_deref(), written, complete: found.complete, profile: &profile, regret };
        output::json(&summary)?;
    } else {
        let mut text = describe(&profile, path.as_deref().filter(|_| written));
        text += &regret.map_or_else(String::new, |regret| regret.text());
        output::text(text)?;
    }
    if entries == 0 {
        return Err(CliError::Failed("the time was too short for any class, and no profile was written".to_owned()));
    }
    Ok(())
}

impl TuneArgs {
    fn levels(&self) -> Result<Vec<Level>, CliError> {
        Ok(match self.isa.as_deref() {
            None => vec![Level::from_env()?],
            Some("all") if self.self_check || self.exhaustive => {
                return Err(CliError::Usage("--self-check and --exhaustive take one level at a time".to_owned()));
            }
            // The best first.
            Some("all") => Level::available().iter().rev().copied().collect(),
            Some(name) => vec![Level::of(name.parse::<Isa>()?)?],
        })
    }

    /// Where the profile goes, if anywhere.
    fn path(&self, machine: &Machine) -> Result<Option<PathBuf>, CliError> {
        if self.dry_run || self.self_check {
            return Ok(None);
        }
        let Some(path) = self.out.clone().or_else(|| default_path(machine)) else {
            let reason = "there is no home directory to keep the profile in: say --out PATH";
            return Err(CliError::Input(reason.to_owned()));
        };
        // Better now than after a minute.
        if path.is_dir() { Err(not_a_file(&path)) } else { Ok(Some(path)) }
    }

    fn effort(&self) -> Effort {
        match self {
            Self { quick: true, .. } => Effort::Quick,
            Self { thorough: true, .. } => Effort::Thorough,
            _ => Effort::Default,
        }
    }

    /// The time for all of it.
    fn seconds(&self) -> f64 {
        self.budget.unwrap_or(self.effort().seconds())
    }

    /// Whether there is time for the card.
    fn measures_card(&self) -> bool {
        !self.quick && self.seconds() >= LEAST_WITH_CARD
    }

    /// The search of a level in so many seconds.
    fn search<'a>(&self, level: Level, machine: &'a Machine, seconds: f64) -> Search<'a> {
        Search::new(level, machine, self.effort()).seconds(seconds).stop(&STOP)
    }
}

/// The least time that the card is a part of: without it the search of a shorter one is the better by more.
const LEAST_WITH_CARD: f64 = 20.0;

/// How long the card may take, of so many seconds. It takes 3 to 5 where nobody else computes, and what it does not take is the
/// search's.
fn limit_of_card(seconds: f64) -> f64 {
    (seconds / 6.0).max(5.0)
}

/// Searches each level on one core until the time is over that began at `start`, and puts the profiles together.
fn search(levels: &[Level], machine: &Machine, args: &TuneArgs, start: Instant, earlier: Option<&Profile>) -> Found {
    let mut reporter = Reporter::new();
    let all_seconds = args.seconds();
    let mut all = pin::pinned(|| {
        let search = |(i, level): (usize, &Level)| {
            let passed = start.elapsed().as_secs_f64();
            let seconds = (all_seconds - passed).max(0.0) / (levels.len() - i) as f64;
            let search = args.search(*level, machine, seconds);
            let search = if let Some(earlier) = earlier { search.resume(earlier) } else { search };
            search.run(&mut |progress| {
                let fraction = (passed + progress.fraction * seconds) / all_seconds.max(f64::MIN_POSITIVE);
                reporter.show(fraction.min(1.0), &what(progress));
            })
        };
        levels.iter().enumerate().map(search).collect::<Vec<_>>().into_iter()
    })
    .value;
    let mut found = all.next().expect("there is a level");
    let profile = &mut found.profile;
    for other in all {
        profile.entries.extend(other.profile.entries);
        profile.crossovers.extend(other.profile.crossovers);
        profile.run.confidence = profile.run.confidence.min(other.profile.run.confidence);
        profile.run.notes.extend(other.profile.run.notes);
        found.trials.extend(other.trials);
        found.complete &= other.complete;
    }
    found
}

/// What is done now, with the time left and the leader.
pub(crate) fn what(progress: Progress<'_>) -> String {
    let Progress { what, leader, seconds_left, .. } = progress;
    let mut text = match seconds_left.is_finite() {
        true => format!("{seconds_left:.0} s left  {what}"),
        false => what.to_owned(),
    };
    if let Some(config) = leader {
        let Config { kernel, key_block, query_block, .. } = config;
        let _ = write!(text, ": {kernel} {query_block} x {key_block}{} leads", config.reading_in_words());
    }
    text
}

fn not_a_file(path: &Path) -> CliError {
    CliError::Write { path: path.to_owned(), error: io::Error::other("it is not a regular file") }
}

/// Measures the machine with all its cores, not pinned, as the beginning of what takes so many seconds. `None` if it takes more
/// than its part of them, as on a machine that computes for others.
fn card(machine: &Machine, seconds: f64, start: Instant) -> Result<Option<Card>, CliError> {
    let threads = Threads::new(None, machine)?;
    let mut reporter = Reporter::new();
    let passed = || start.elapsed().as_secs_f64();
    let go_on = || passed() < limit_of_card(seconds) && !STOP.load(Ordering::Relaxed);
    let mut show = |_, what: &str| reporter.show(passed() / seconds, &format!("the machine: {what}"));
    let level = Level::from_env()?;
    Ok(regard_tuner::machine::card_while(&go_on, level, machine, &threads.execution(), &mut show))
}

/// Adds the profile to the one that is there.
fn save(path: &Path, profile: &Profile) -> Result<(), CliError> {
    let saved = regard_profile::save_merged(path, profile, &kernel_set()).map_err(crate::profile::not_written)?;
    if let Some(aside) = saved.set_aside {
        eprintln!("what was there is of no use with these kernels, and is now {}", aside.display());
    }
    Ok(())
}

/// The profile for people. `path` is where it was written.
fn describe(profile: &Profile, path: Option<&Path>) -> String {
    let mut text = table(&profile.entries);
    let Profile { run, .. } = profile;
    let confidence = match run.confidence {
        Confidence::Low => "low",
        Confidence::Medium => "medium",
        Confidence::High => "high",
    };
    // Writing to a string does not fail.
    let _ = writeln!(text, "\nconfidence  {confidence}; {:.0} s", run.seconds);
    for note in &run.notes {
        let _ = writeln!(text, "note        {note}");
    }
    for crossover in &profile.crossovers {
        let _ = writeln!(text, "few queries {}: up to {} of a sequence", crossover.kernel, crossover.rows_up_to);
    }
    let _ = match path {
        Some(path) => write!(text, "wrote       {}", path.display()),
        None => write!(text, "wrote       nothing"),
    };
    text
}

/// A line for each class.
pub(crate) fn table(entries: &[Entry]) -> String {
    let class = |entry: &Entry| entry.class.to_string();
    let width = entries.iter().map(|entry| class(entry).len()).max().unwrap_or(0).max(5);
    let mut text = format!(
        "{:<width$}  {:<22} {:>9} {:>11} {:>9} {:>8} {:>8}\n",
        "class", "kernel", "key block", "query block", "GFLOP/s", "of peak", "of model"
    );
    for entry in entries {
        let Entry { config, gflops, fraction_of_peak, ratio_to_model, .. } = entry;
        let _ = writeln!(
            text,
            "{:<width$}  {:<22} {:>9} {:>11} {gflops:>9.1} {fraction_of_peak:>8.3} {ratio_to_model:>8.3}{}",
            class(entry),
            config.kernel,
            config.key_block,
            config.query_block,
            config.reading_in_words()
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::cli::{Cli, Command};

    #[test]
    fn the_card_is_for_those_who_have_time() {
        let args = |line: &str| {
            let cli = Cli::try_parse_from(["regard", "tune"].into_iter().chain(line.split_whitespace())).unwrap();
            let Some(Command::Tune(args)) = cli.command else { panic!("tune is tune") };
            (args.seconds(), args.measures_card())
        };
        assert_eq!([args(""), args("--thorough"), args("--quick")], [(60.0, true), (300.0, true), (30.0, false)]);
        assert_eq!([args("--budget 20"), args("--thorough --budget 19")], [(20.0, true), (19.0, false)]);
        assert_eq!(args("--quick --budget 90"), (90.0, false));
    }
}
