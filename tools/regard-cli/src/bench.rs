//! `regard bench`.

use clap::Args;

use crate::cli::Global;
use crate::error::CliError;

/// The arguments of `regard bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {}

/// Runs the command.
pub(crate) fn run(args: BenchArgs, global: &Global) -> Result<(), CliError> {
    let (_, _) = (args, global);
    Err(CliError::Failed("this command is not built yet".to_owned()))
}
