//! `regard profile where`.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use regard::kernel_set;
use regard_profile::{Fit, Found, Machine, directories, find, load, profiles_in, search_path};
use serde::Serialize;

use super::{describe_fit, fit_name};
use crate::cli::Global;
use crate::error::CliError;
use crate::output;

/// Shows where profiles are looked for, what is there, and which one is used.
#[derive(Clone, Debug, Args)]
#[command(after_help = "A profile for this machine that cannot be used makes the exit code 3.")]
pub(super) struct WhereArgs {}

/// A file that could be a profile.
#[derive(Debug, Serialize)]
struct Candidate {
    path: PathBuf,
    /// `exact`, `microarch` or `similar`; absent if it is of no use here.
    fit: Option<&'static str>,
    /// In words, or why it is of no use.
    what: String,
    used: bool,
}

#[derive(Debug, Serialize)]
struct Whereabouts {
    fingerprint: String,
    microarch: String,
    search_path: Vec<PathBuf>,
    /// The file that is used, if there is one.
    used: Option<PathBuf>,
    candidates: Vec<Candidate>,
}

/// Runs the command.
pub(super) fn run(_args: WhereArgs, global: &Global) -> Result<(), CliError> {
    let machine = Machine::detect();
    let search_path = search_path(&machine);
    let (used, rejected) = match find(&machine, &kernel_set()) {
        Found::None => (None, None),
        Found::Loaded { path, .. } => (Some(path), None),
        Found::Rejected { error, .. } => (None, Some(error)),
    };
    let mut paths: Vec<PathBuf> = search_path.iter().filter(|path| path.exists()).cloned().collect();
    for path in directories().iter().flat_map(|directory| profiles_in(directory)) {
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    let candidates = paths.into_iter().map(|path| Candidate::new(path, &machine, used.as_deref())).collect();
    let (fingerprint, microarch) = (machine.fingerprint(), machine.microarch());
    let found = Whereabouts { fingerprint, microarch, search_path, used, candidates };
    if global.json {
        output::json(&found)?
    } else {
        output::text(found.to_text())?
    }
    rejected.map_or(Ok(()), |error| Err(CliError::Profile(error)))
}

impl Candidate {
    fn new(path: PathBuf, machine: &Machine, used: Option<&Path>) -> Self {
        let looked_at = regard_profile::inspect(&path)
            .and_then(|profile| load(&path, &profile.machine, &kernel_set()))
            .map(|profile| Fit::of(&profile.machine, machine));
        let (fit, what) = match looked_at {
            Ok(Some(fit)) => (Some(fit_name(fit)), describe_fit(fit)),
            Ok(None) => (None, "tuned on quite another machine".to_owned()),
            Err(error) => (None, error.to_string()),
        };
        Self { used: used == Some(&path), path, fit, what }
    }
}

impl Whereabouts {
    fn to_text(&self) -> String {
        let mut text = format!("machine     {} (fingerprint {})\n", self.microarch, self.fingerprint);
        for (i, path) in self.search_path.iter().enumerate() {
            let name = if i == 0 { "looked for" } else { "" };
            let there = if path.exists() { "" } else { " (not there)" };
            // Writing to a string does not fail.
            let _ = writeln!(text, "{name:<12}{}{there}", path.display());
        }
        for (i, Candidate { path, what, used, .. }) in self.candidates.iter().enumerate() {
            let (name, mark) = (if i == 0 { "there" } else { "" }, if *used { "*" } else { " " });
            let _ = writeln!(text, "{name:<10}{mark} {}: {}", path.display(), output::one_line(what));
        }
        match &self.used {
            Some(path) => text += &format!("used        {}", path.display()),
            None => text += "used        none: the analytic model decides",
        }
        text
    }
}
