//! The command line: what can be asked for. What the answers are is in the module of each command.

use clap::{Parser, Subcommand};

use crate::attend::AttendArgs;
use crate::bench::BenchArgs;
use crate::explain::ExplainArgs;
use crate::info::InfoArgs;
use crate::profile::ProfileArgs;
use crate::report::ReportArgs;
use crate::tune::TuneArgs;

/// What every command gets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Global {
    /// Whether results are to be JSON on standard output.
    pub(crate) json: bool,
}

/// Fused attention on CPUs: run it, measure it against the machine's own limits, tune it, ask why.
///
/// Without a command: shows the machine, makes a quick profile of it, and runs every weighting on real data against the
/// f64 reference.
#[derive(Debug, Parser)]
#[command(name = "regard", version, max_term_width = 120, after_help = AFTER_HELP, after_long_help = AFTER_LONG_HELP)]
pub(crate) struct Cli {
    /// Print results as JSON, one object per line, and nothing else on standard output
    #[arg(long, global = true, help_heading = "Output")]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the machine: CPU, caches, cores, instruction-set levels, kernels, profile
    Info(InfoArgs),
    /// Compute attention on tensors in a safetensors file
    Attend(Box<AttendArgs>),
    /// Measure a problem against the peak and the bandwidth of the machine, in one interleaved run
    Bench(Box<BenchArgs>),
    /// Find the best kernels and block sizes for this machine, and keep them in a profile
    Tune(TuneArgs),
    /// Show, compare, check, merge and ship profiles
    Profile(ProfileArgs),
    /// Show how a problem would be computed, and why
    Explain(Box<ExplainArgs>),
    /// Measure the machine and write a page about it; put pages of several machines side by side
    Report(ReportArgs),
}

const AFTER_HELP: &str = "\
Start with:
  regard                                                 the whole tour, less than two minutes
  regard info                                            what this machine is
  regard attend in.safetensors out.safetensors --causal bottom-right
  regard bench --queries 2048 --head-dim 128 --causal top-left
  regard bench --queries 1 --keys 16384 --heads 32 --kv-heads 4 --dtype int8
  regard report this-machine.html                        a page to show
  regard attend --help                                   every option, with examples

Exit codes: 0 done, 1 failed, 2 usage, 3 bad input, 4 ISA not available, 5 output not written";

const AFTER_LONG_HELP: &str = "\
Start with:
  regard                                                 the whole tour, less than two minutes
  regard info                                            what this machine is
  regard attend in.safetensors out.safetensors --causal bottom-right
  regard bench --queries 2048 --head-dim 128 --causal top-left
  regard bench --queries 1 --keys 16384 --heads 32 --kv-heads 4 --dtype int8
  regard report this-machine.html                        a page to show
  regard attend --help                                   every option, with examples

Exit codes:
  0  done
  1  a check failed, or the work could not be done
  2  usage: an unknown command, option or name, or options that exclude each other
  3  bad input: a file, a tensor, a profile or the value of an option does not fit
  4  the instruction-set level that --isa or REGARD_ISA asks for is not available
  5  the output could not be written; what was there before is untouched
`regard profile diff` and `regard profile verify` say with 1 that choices differ, or are slower than the model's.
Every error is one line on standard error that begins with `regard:`.

Environment:
  REGARD_ISA      the instruction-set level to compute at: portable, avx2, avx512 or neon
  REGARD_PROFILE  the profile to use in place of the one in the user's data directory";
