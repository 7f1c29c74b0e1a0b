//! `regard profile merge` and `regard profile export`: files made of files.

use std::path::{Path, PathBuf};

use clap::Args;
use regard::kernel_set;
use regard_profile::{Profile, file_name};
use serde::Serialize;

use super::{inspect, named_or_used, save};
use crate::cli::Global;
use crate::error::CliError;
use crate::output;

/// Puts profiles of one machine together: of each class the choice of the newest profile that tuned it.
///
/// Choices are taken whole. One whose key block is not that of the newer choices of its level is left out, since a level
/// has one. Every profile is checked first, against the kernels of this program.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Example:\n  regard profile merge quick.json thorough.json --out both.json")]
pub(super) struct MergeArgs {
    /// The profiles
    #[arg(required = true, num_args = 2.., value_name = "PROFILE")]
    paths: Vec<PathBuf>,
    /// The file to write; what was there is replaced
    #[arg(long, short, value_name = "PATH")]
    out: PathBuf,
}

/// Writes a profile to another directory, under the name that is looked for there: for a container image, or
/// `/etc/regard` of machines of the same kind.
///
/// The whole profile is checked first, against the kernels of this program. A profile is data and stays a file: compiled
/// into a program it would be bound to one version of the kernels, and could neither be checked nor replaced.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  regard profile export --to /etc/regard
  regard profile export tuned.json --to image/etc/regard")]
pub(super) struct ExportArgs {
    /// The profile, of whatever machine [default: the one that is used here]
    path: Option<PathBuf>,
    /// The directory; it is made if there is none
    #[arg(long, value_name = "DIRECTORY")]
    to: PathBuf,
}

#[derive(Debug, Serialize)]
struct Written<'a> {
    path: &'a Path,
    entries: usize,
}

pub(super) fn merge(args: MergeArgs, global: &Global) -> Result<(), CliError> {
    let mut profiles = args.paths.into_iter().map(usable).collect::<Result<Vec<_>, _>>()?;
    // The newest first; of those of the same second, the one that was named first.
    profiles.sort_by_key(|(_, profile)| std::cmp::Reverse(profile.run.unix_time));
    let mut profiles = profiles.into_iter();
    let Some((_, mut merged)) = profiles.next() else {
        return Err(CliError::Usage("there is nothing to merge".to_owned()));
    };
    for (path, older) in profiles {
        merged = regard_profile::merge(merged, older, &path).map_err(CliError::Profile)?;
    }
    save(&args.out, &merged)?;
    report(&args.out, merged.entries.len(), global)
}

pub(super) fn export(args: ExportArgs, global: &Global) -> Result<(), CliError> {
    let (path, profile) = named_or_used(args.path)?;
    let profile = load_on_its_machine(&path, &profile)?;
    let out = args.to.join(file_name(&profile.fingerprint));
    save(&out, &profile)?;
    report(&out, profile.entries.len(), global)
}

/// The profile at a path, of whatever machine, which would be used there.
fn usable(path: PathBuf) -> Result<(PathBuf, Profile), CliError> {
    let (path, profile) = inspect(path)?;
    let profile = load_on_its_machine(&path, &profile)?;
    Ok((path, profile))
}

/// A profile as it would be loaded on the machine that it is for.
fn load_on_its_machine(path: &Path, profile: &Profile) -> Result<Profile, CliError> {
    regard_profile::load(path, &profile.machine, &kernel_set()).map_err(CliError::Profile)
}

fn report(path: &Path, entries: usize, global: &Global) -> Result<(), CliError> {
    if global.json {
        return output::json(&Written { path, entries });
    }
    output::text(format!("wrote {}: {entries} entries", path.display()))
}
