//! `regard profile show`.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use regard::kernel_set;
use regard_profile::{Fit, Machine, Profile};

use super::{describe_fit, named_or_used};
use crate::cli::Global;
use crate::error::CliError;
use crate::{card, output, tune};

/// Shows a profile: its machine, its run, and every choice. It need not be of any use here.
#[derive(Clone, Debug, Args)]
pub(super) struct ShowArgs {
    /// The profile [default: the one that is used here]
    path: Option<PathBuf>,
}

/// Runs the command.
pub(super) fn run(args: ShowArgs, global: &Global) -> Result<(), CliError> {
    let (path, profile) = named_or_used(args.path)?;
    if global.json {
        return output::json(&profile);
    }
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name:<12}{value}");
    };
    let Profile { tool, machine, run, fingerprint, .. } = &profile;
    line("profile", path.display().to_string());
    let brand = if machine.brand.is_empty() { "unknown processor" } else { &machine.brand };
    line("machine", format!("{}, {} (fingerprint {fingerprint})", output::one_line(brand), machine.microarch()));
    let here = Machine::detect();
    line("here", Fit::of(machine, &here).map_or("of no use: quite another machine".to_owned(), describe_fit));
    let current = if tool.kernels_fingerprint == kernel_set().fingerprint { "those here" } else { "not those here" };
    line("kernels", format!("{}, {current}", output::one_line(&tool.kernels_fingerprint)));
    let (name, version, mode) = (&tool.name, &tool.version, &run.mode);
    let made =
        format!("{name} {version}, {mode}, {:.0} s, {:?} confidence", run.seconds, run.confidence).to_lowercase();
    line("made by", output::one_line(&made));
    for note in &run.notes {
        line("note", output::one_line(note));
    }
    text += &profile.card.as_ref().map_or(String::new(), card::to_text);
    text += "\n";
    text += &tune::table(&profile.entries);
    output::text(text.trim_end())
}
