//! `regard tune`.

use clap::Args;

use crate::cli::Global;
use crate::error::CliError;

/// The arguments of `regard tune`.
#[derive(Debug, Args)]
pub(crate) struct TuneArgs {}

/// Runs the command.
pub(crate) fn run(args: TuneArgs, global: &Global) -> Result<(), CliError> {
    let (_, _) = (args, global);
    Err(CliError::Failed("this command is not built yet".to_owned()))
}
