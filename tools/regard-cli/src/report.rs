//! `regard report`: a page about the machine, and pages of several machines side by side.

mod charts;
mod compare;
mod contest;
mod data;
mod embed;
mod entrant;
mod html;
mod limits;
mod machine;
mod measure;
mod noise;
mod page;
mod schedule;
mod svg;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use self::compare::CompareArgs;
use crate::cli::Global;
use crate::error::CliError;
use crate::tensors::Writer;
use crate::{output, setup};

/// Measures this machine and writes a page about it: one file, with all data in it and nothing from the network.
///
/// The page has the machine card, what the figures are worth, the machine's limits with every case among them, curves over
/// length, decoding against bandwidth, the cost of each weighting, levels, threads, a map of block sizes, and the noise.
/// Every speed stands beside its error against f64.
#[derive(Clone, Debug, Args)]
#[command(after_help = AFTER_HELP, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct ReportArgs {
    #[command(subcommand)]
    command: Option<ReportCommand>,
    /// The page to write
    #[arg(value_name = "OUT.html", required = true)]
    out: Option<PathBuf>,
    /// Fewer and shorter cases
    #[arg(long)]
    quick: bool,
    /// Time to measure for, about [default: 90, with --quick 15]; the least number of rounds is made even if it takes longer
    #[arg(long, value_parser = crate::bench::seconds, allow_negative_numbers = true, value_name = "SECONDS")]
    seconds: Option<f64>,
    /// Measure nothing: take the data of a page that there is
    #[arg(long, value_name = "REPORT.html", conflicts_with_all = ["quick", "seconds", "no_profile"])]
    from: Option<PathBuf>,
    /// Choose kernels and tiles by the analytic model, even where there is a profile
    #[arg(long)]
    no_profile: bool,
}

#[derive(Clone, Debug, Subcommand)]
enum ReportCommand {
    /// Put the reports of several machines side by side
    Compare(CompareArgs),
}

const AFTER_HELP: &str = "\
Examples:
  regard report this-machine.html
  regard report quick.html --quick
  regard report again.html --from this-machine.html
  regard report compare a.html b.html c.html
  regard report compare a.html b.html --html both.html";

/// Runs the command.
pub(crate) fn run(args: ReportArgs, global: &Global) -> Result<(), CliError> {
    if let Some(ReportCommand::Compare(args)) = args.command {
        return compare::run(&args, global);
    }
    let out = args.out.as_deref().ok_or_else(|| CliError::Usage("say where to write the page".to_owned()))?;
    // Better now than after minutes.
    let writer = Writer::new(out)?;
    let report = match &args.from {
        Some(page) => embed::read(page)?,
        None => {
            let setup = setup::detect(args.no_profile)?;
            let seconds = args.seconds.unwrap_or(if args.quick { 15.0 } else { 90.0 });
            measure::measure(args.quick, seconds, args.to_command(), &setup)?
        }
    };
    writer.write_bytes(page::render(&report)?.as_bytes())?;
    if global.json {
        return output::json(&report);
    }
    let grade = match report.validity.grade {
        data::Grade::Good => "good",
        data::Grade::Fair => "fair",
        data::Grade::Poor => "poor",
    };
    output::text(format!("validity    {grade}; {:.0} s\nwrote       {}", report.seconds, out.display()))
}

impl ReportArgs {
    /// The command line that does the same elsewhere.
    fn to_command(&self) -> String {
        let mut command = "regard report OUT.html".to_owned();
        if self.quick {
            command += " --quick";
        }
        if let Some(seconds) = self.seconds {
            command += &format!(" --seconds {seconds}");
        }
        if self.no_profile {
            command += " --no-profile";
        }
        match std::env::var(regard::ISA_VARIABLE) {
            Ok(isa) => format!("{}={isa} {command}", regard::ISA_VARIABLE),
            Err(_) => command,
        }
    }
}
