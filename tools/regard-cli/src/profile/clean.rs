//! `regard profile clean`.

use std::path::PathBuf;

use clap::Args;
use regard::kernel_set;
use regard_profile::{directories, leftovers};
use serde::Serialize;

use crate::cli::Global;
use crate::error::CliError;
use crate::output;

/// Removes files that are of no use any more from the directories of profiles, and says which: those that were set aside,
/// those that a killed writer left behind, and profiles for other kernels than those of this program.
///
/// Profiles of other machines, profiles of newer versions of the format and lock files stay.
#[derive(Clone, Debug, Args)]
pub(super) struct CleanArgs {
    /// Only say which
    #[arg(long)]
    dry_run: bool,
    /// Another directory than those that are searched
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Removed {
    path: PathBuf,
    why: String,
    removed: bool,
}

/// Runs the command.
pub(super) fn run(args: CleanArgs, global: &Global) -> Result<(), CliError> {
    let kernels = kernel_set();
    let directories = args.directory.map_or_else(directories, |directory| vec![directory]);
    let found = directories.iter().flat_map(|directory| leftovers(directory, &kernels));
    let mut count = 0;
    for left in found {
        count += 1;
        if !args.dry_run {
            std::fs::remove_file(&left.path).map_err(CliError::writing(&left.path))?;
        }
        let removed = Removed { why: left.kind.to_string(), path: left.path, removed: !args.dry_run };
        if global.json {
            output::json(&removed)?;
        } else {
            let verb = if args.dry_run { "would remove" } else { "removed" };
            output::text(format!("{verb} {}: {}", removed.path.display(), output::one_line(&removed.why)))?;
        }
    }
    if count == 0 && !global.json {
        return output::text("nothing to remove");
    }
    Ok(())
}
