//! `regard profile`: what there is of profiles, and what can be done with them.

mod clean;
mod combine;
mod diff;
mod show;
mod verify;
mod whereabouts;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use regard::kernel_set;
use regard_profile::{Fit, Found, Machine, Profile, ProfileError};

use crate::cli::Global;
use crate::error::CliError;

/// Shows, compares, checks, merges and ships profiles.
#[derive(Clone, Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct ProfileArgs {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Which profile is used, first match first:
  1. the file that REGARD_PROFILE names: of this machine, or of one of the same microarchitecture; an error if it is not
  2. profile-FINGERPRINT.json, this machine's, in the user's data directory ($XDG_DATA_HOME/regard or
     ~/.local/share/regard), then in /etc/regard
  3. among all other profiles in the two directories, one of the same microarchitecture, else the one of a machine with
     the same instruction sets whose caches are nearest, up to two factors of two altogether
  4. none: the analytic model, from the sizes of the caches
A profile is used whole or not at all. `regard profile where` shows what that comes to here.";

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Show a profile: its machine, its run, and every choice
    Show(show::ShowArgs),
    /// Compare the choices of two profiles; exit code 1 if they differ
    Diff(diff::DiffArgs),
    /// Time the choices of the profile against the model's, in turns; exit code 1 if one is slower beyond doubt
    Verify(verify::VerifyArgs),
    /// Put profiles of one machine together; the newer one counts where they differ
    Merge(combine::MergeArgs),
    /// Write a profile that was checked to another directory, under the name that is looked for there
    Export(combine::ExportArgs),
    /// Show where profiles are looked for, what is there, and which one is used
    Where(whereabouts::WhereArgs),
    /// Remove files that are of no use any more: set aside, left behind, or made for other kernels
    Clean(clean::CleanArgs),
}

/// Runs the command.
pub(crate) fn run(args: ProfileArgs, global: &Global) -> Result<(), CliError> {
    match args.command {
        Command::Show(args) => show::run(args, global),
        Command::Diff(args) => diff::run(args, global),
        Command::Verify(args) => verify::run(args, global),
        Command::Merge(args) => combine::merge(args, global),
        Command::Export(args) => combine::export(args, global),
        Command::Where(args) => whereabouts::run(args, global),
        Command::Clean(args) => clean::run(args, global),
    }
}

/// The profile that this machine uses.
fn used(machine: &Machine) -> Result<(PathBuf, Profile, Fit), CliError> {
    match regard_profile::find(machine, &kernel_set()) {
        Found::Loaded { path, profile, fit } => Ok((path, *profile, fit)),
        Found::Rejected { error, .. } => Err(CliError::Profile(error)),
        Found::None => Err(CliError::Input("there is no profile for this machine; `regard tune` makes one".to_owned())),
    }
}

/// The profile at a path, of whatever machine, or the one that is used.
fn named_or_used(path: Option<PathBuf>) -> Result<(PathBuf, Profile), CliError> {
    match path {
        Some(path) => inspect(path),
        None => used(&Machine::detect()).map(|(path, profile, _)| (path, profile)),
    }
}

fn inspect(path: PathBuf) -> Result<(PathBuf, Profile), CliError> {
    let profile = regard_profile::inspect(&path).map_err(CliError::Profile)?;
    Ok((path, profile))
}

/// Writes a profile over whatever is at the path.
fn save(path: &std::path::Path, profile: &Profile) -> Result<(), CliError> {
    regard_profile::save(path, profile).map_err(not_written)
}

/// The error of a profile that was to be written.
pub(crate) fn not_written(error: ProfileError) -> CliError {
    match error {
        ProfileError::Io { path, error, .. } => CliError::Write { path, error },
        ProfileError::NotAFile { path } => {
            CliError::Write { path, error: std::io::Error::other("it is not a regular file") }
        }
        error => CliError::Failed(error.to_string()),
    }
}

/// What the machine of a profile has to do with this one, in words.
pub(crate) fn describe_fit(fit: Fit) -> String {
    match fit {
        Fit::Exact => "tuned on this machine".to_owned(),
        Fit::Microarch => "tuned on a machine of the same microarchitecture".to_owned(),
        Fit::Similar { octaves } => {
            format!("tuned on a machine with the same instruction sets, and caches {octaves:.1} factors of two apart")
        }
    }
}

/// The names of fits in JSON.
pub(crate) fn fit_name(fit: Fit) -> &'static str {
    match fit {
        Fit::Exact => "exact",
        Fit::Microarch => "microarch",
        Fit::Similar { .. } => "similar",
    }
}
