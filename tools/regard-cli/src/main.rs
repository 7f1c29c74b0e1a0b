//! The tool `regard`: attention on the command line, and how close it comes to the limits of the machine.
//!
//! One module for each command, with its arguments and `run`. What commands share: [`problem_args`], [`shape_args`] and
//! [`sequences`] (what to compute), [`setup`] (on what), [`output`] and [`error`].
#![forbid(unsafe_code)]

mod attend;
mod bench;
mod card;
mod check;
mod cli;
mod error;
mod explain;
mod info;
mod output;
mod problem_args;
mod profile;
mod progress;
mod report;
mod sequences;
mod setup;
mod shape_args;
mod tensors;
mod tour;
mod tune;
mod usage;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command, Global};
use crate::error::CliError;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage::report(&error),
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("regard: {}", output::one_line(&error.to_string()));
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(cli: Cli) -> Result<(), CliError> {
    let global = Global { json: cli.json };
    match cli.command {
        None => tour::run(&global),
        Some(Command::Info(args)) => info::run(args, &global),
        Some(Command::Attend(args)) => attend::run(*args, &global),
        Some(Command::Bench(args)) => bench::run(*args, &global),
        Some(Command::Tune(args)) => tune::run(args, &global),
        Some(Command::Profile(args)) => profile::run(args, &global),
        Some(Command::Explain(args)) => explain::run(*args, &global),
        Some(Command::Report(args)) => report::run(args, &global),
    }
}
