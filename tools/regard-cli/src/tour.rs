//! `regard` without a command.

use crate::cli::Global;
use crate::error::CliError;

/// Runs the tour.
pub(crate) fn run(global: &Global) -> Result<(), CliError> {
    let _ = global;
    Err(CliError::Failed("the tour is not built yet".to_owned()))
}
