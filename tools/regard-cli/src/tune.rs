//! `regard tune`: a profile of this machine.

use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use regard::{Isa, Level, kernel_set};
use regard_profile::{Card, Confidence, Entry, Machine, Profile, default_path};
use regard_tuner::pin;
use regard_tuner::search::{Effort, Search};
use serde::Serialize;

use crate::cli::Global;
use crate::error::CliError;
use crate::output;
use crate::progress::Reporter;
use crate::setup::Threads;

/// Finds the best kernels and block sizes for this machine, and writes them to the profile that the library looks for.
///
/// Every candidate is checked against f64 before it is timed; all are timed in turns on one pinned core; the analytic
/// model's choice stays unless another one is faster beyond doubt. Entries of other levels in the profile are kept.
#[derive(Clone, Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct TuneArgs {
    /// Fewer classes of problems, and shorter sequences
    #[arg(long)]
    quick: bool,
    /// Time for the search [default: 60, with --quick 12]; whenever it ends, the profile is valid
    #[arg(long, value_parser = crate::bench::seconds, allow_negative_numbers = true, value_name = "SECONDS")]
    budget: Option<f64>,
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
Columns of the table: the speed in GFLOP/s over visible pairs, its fraction of the FMA peak of the level, and the time
over that of the analytic model's choice (less than 1 is a gain).

Examples:
  regard tune
  regard tune --quick
  regard tune --isa all --budget 120
  regard tune --dry-run --json";

/// What came of it.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    path: Option<&'a Path>,
    written: bool,
    profile: &'a Profile,
}

/// Runs the command.
pub(crate) fn run(args: TuneArgs, global: &Global) -> Result<(), CliError> {
    let levels = args.levels()?;
    let machine = Machine::detect();
    let path = args.out.clone().or_else(|| default_path(&machine));
    let path = match path {
        _ if args.dry_run => None,
        Some(path) => Some(path),
        None => {
            return Err(CliError::Input(
                "there is no home directory to keep the profile in: say --out PATH".to_owned(),
            ));
        }
    };
    // Better now than after a minute.
    if let Some(path) = path.as_ref().filter(|path| path.is_dir()) {
        return Err(not_a_file(path));
    }

    let mut profile = search(&levels, &machine, &args);
    // A quick run leaves out what takes some seconds more, and keeps the card that is there.
    if !args.quick && !profile.entries.is_empty() {
        profile.card = Some(card(&machine)?);
    }
    let mut kept = Vec::new();
    if let Some(path) = &path {
        // A profile that cannot be used is replaced.
        let old = regard_profile::load(path, &machine, &kernel_set());
        kept = old.map_or_else(|_| Vec::new(), |old| old.entries);
        kept.retain(|entry| !levels.iter().any(|level| level.isa().name() == entry.class.isa));
    }
    let found = profile.entries.len();
    let profile = Profile { entries: profile.entries.iter().cloned().chain(kept).collect(), ..profile };
    // A file without entries would only take the place of one that has some.
    let written = match &path {
        Some(path) if found > 0 => {
            save(path, &profile)?;
            true
        }
        _ => false,
    };
    if global.json {
        output::json(&Summary { path: path.as_deref(), written, profile: &profile })?;
    } else {
        output::text(describe(&profile, path.as_deref().filter(|_| written)))?;
    }
    if found == 0 {
        return Err(CliError::Failed("the time was too short for any class, and no profile was written".to_owned()));
    }
    Ok(())
}

impl TuneArgs {
    fn levels(&self) -> Result<Vec<Level>, CliError> {
        Ok(match self.isa.as_deref() {
            None => vec![Level::from_env()?],
            // The best first.
            Some("all") => Level::available().iter().rev().copied().collect(),
            Some(name) => vec![Level::of(name.parse::<Isa>()?)?],
        })
    }
}

/// Searches each level on one core, and puts the profiles together.
fn search(levels: &[Level], machine: &Machine, args: &TuneArgs) -> Profile {
    let effort = if args.quick { Effort::Quick } else { Effort::Full };
    let seconds = args.budget.unwrap_or(effort.seconds()) / levels.len() as f64;
    let mut reporter = Reporter::new();
    let mut profiles = pin::pinned(|| {
        let search = |(i, level): (usize, &Level)| {
            Search::new(*level, machine, effort).seconds(seconds).run(&mut |progress| {
                reporter.show((i as f64 + progress.fraction) / levels.len() as f64, progress.what);
            })
        };
        levels.iter().enumerate().map(search).collect::<Vec<_>>().into_iter()
    })
    .value;
    let mut profile = profiles.next().expect("there is a level");
    for other in profiles {
        profile.entries.extend(other.entries);
        profile.run.seconds += other.run.seconds;
        profile.run.confidence = profile.run.confidence.min(other.run.confidence);
        profile.run.notes.extend(other.run.notes);
    }
    profile
}

fn not_a_file(path: &Path) -> CliError {
    CliError::Write { path: path.to_owned(), error: io::Error::other("it is not a regular file") }
}

/// Measures the machine with all its cores, not pinned.
fn card(machine: &Machine) -> Result<Card, CliError> {
    let threads = Threads::new(None, machine)?;
    let mut reporter = Reporter::new();
    let mut show = |fraction: f64, what: &str| reporter.show(fraction, &format!("the machine: {what}"));
    Ok(regard_tuner::machine::card(Level::from_env()?, machine, &threads.execution(), &mut show))
}

/// Adds the profile to the one that is there.
fn save(path: &Path, profile: &Profile) -> Result<(), CliError> {
    let saved = regard_profile::save_merged(path, profile).map_err(crate::profile::not_written)?;
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
            "{:<width$}  {:<22} {:>9} {:>11} {gflops:>9.1} {fraction_of_peak:>8.3} {ratio_to_model:>8.3}",
            class(entry),
            config.kernel,
            config.key_block,
            config.query_block
        );
    }
    text
}
