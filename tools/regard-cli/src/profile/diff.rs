//! `regard profile diff`.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use regard_profile::{Class, Config, Entry, Profile};
use serde::Serialize;

use super::inspect;
use crate::cli::Global;
use crate::error::CliError;
use crate::output;

/// Compares the choices of two profiles. Figures are shown and not compared: no two runs measure the same.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Exit codes: 0 the choices are the same, 1 they differ, 3 a profile cannot be read")]
pub(super) struct DiffArgs {
    /// A profile
    a: PathBuf,
    /// Another one
    b: PathBuf,
}

/// What the profiles say of a class.
#[derive(Debug, Serialize)]
struct Difference<'a> {
    class: &'a Class,
    /// `only_a`, `only_b` or `choice`.
    difference: &'static str,
    a: Option<&'a Config>,
    b: Option<&'a Config>,
    a_gflops: Option<f64>,
    b_gflops: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Summary<'a> {
    same_machine: bool,
    same_kernels: bool,
    same_choices: usize,
    differences: &'a [Difference<'a>],
}

/// Runs the command.
pub(super) fn run(args: DiffArgs, global: &Global) -> Result<(), CliError> {
    let ((a_path, a), (b_path, b)) = (inspect(args.a)?, inspect(args.b)?);
    let (same_choices, differences) = compare(&a, &b);
    let same_machine = a.fingerprint == b.fingerprint;
    let same_kernels = a.tool.kernels_fingerprint == b.tool.kernels_fingerprint;
    if global.json {
        output::json(&Summary { same_machine, same_kernels, same_choices, differences: &differences })?;
    } else {
        let mut text = String::new();
        if !same_machine {
            let _ = writeln!(text, "machines differ: {} and {}", a.fingerprint, b.fingerprint);
        }
        if !same_kernels {
            let _ = writeln!(text, "kernels differ: their timings cannot be compared");
        }
        for Difference { class, a, b, a_gflops, b_gflops, .. } in &differences {
            let side = |config: Option<&Config>, gflops: Option<f64>| match (config, gflops) {
                (Some(config), Some(gflops)) => {
                    let Config { kernel, key_block, query_block, .. } = config;
                    format!("{kernel} {key_block} x {query_block}{}, {gflops:.1} GFLOP/s", config.reading_in_words())
                }
                _ => "nothing".to_owned(),
            };
            let _ = writeln!(text, "{class}\n  - {}\n  + {}", side(*a, *a_gflops), side(*b, *b_gflops));
        }
        let _ = write!(text, "{same_choices} choices are the same, {} differ", differences.len());
        output::text(text)?;
    }
    if differences.is_empty() && same_machine && same_kernels {
        return Ok(());
    }
    Err(CliError::Failed(format!("{} and {} differ", a_path.display(), b_path.display())))
}

/// The number of classes with the same choice, and the others.
fn compare<'a>(a: &'a Profile, b: &'a Profile) -> (usize, Vec<Difference<'a>>) {
    let of = |profile: &'a Profile, class: &Class| profile.entries.iter().find(|entry| entry.class == *class);
    let only_b = b.entries.iter().filter(|entry| of(a, &entry.class).is_none());
    let pairs = a.entries.iter().map(|entry| (Some(entry), of(b, &entry.class)));
    let pairs = pairs.chain(only_b.map(|entry| (None, Some(entry))));
    let mut same = 0;
    let mut differences = Vec::new();
    for (a, b) in pairs {
        let config = |entry: Option<&'a Entry>| entry.map(|entry| &entry.config);
        let difference = match (a, b) {
            (Some(a), Some(b)) if a.config == b.config => {
                same += 1;
                continue;
            }
            (Some(_), Some(_)) => "choice",
            (Some(_), None) => "only_a",
            _ => "only_b",
        };
        let Some(class) = a.or(b).map(|entry| &entry.class) else { continue };
        let gflops = |entry: Option<&Entry>| entry.map(|entry| entry.gflops);
        let (a_gflops, b_gflops) = (gflops(a), gflops(b));
        differences.push(Difference { class, difference, a: config(a), b: config(b), a_gflops, b_gflops });
    }
    (same, differences)
}
