//! `regard bench`: problems against the ceilings of the machine.

mod case;
mod options;

use clap::{Args, Parser};
use regard::{Count, Setup};
use regard_tuner::shapes;

use self::case::Case;
use crate::cli::Global;
use crate::error::CliError;
use crate::output;
use crate::problem_args::{ProblemArgs, WeightingName};
use crate::setup;
use crate::shape_args::ShapeArgs;

/// Measures problems against the peak and the bandwidth of the machine, and prints one line of JSON for each.
///
/// Sizes may be lists (--keys 512,2048), which give a case for every combination. Without sizes and without options
/// that say what to compute, the standard list of cases is measured.
#[derive(Clone, Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    sizes: SizeLists,
    /// Element type of q, k and v; f32 is the only one so far
    #[arg(long, default_value = "f32", value_name = "NAME", help_heading = "Measurement")]
    dtype: String,
    /// Time to measure a case for; twelve rounds are made even if they take longer
    #[arg(long, default_value_t = 1.0, value_parser = seconds, allow_negative_numbers = true, value_name = "SECONDS",
          help_heading = "Measurement")]
    seconds: f64,
    #[command(flatten)]
    problem: ProblemArgs,
}

const AFTER_HELP: &str = "\
Every case runs on one pinned thread unless --threads says otherwise. Rounds of work and ceiling take turns, and a
fraction is the median of the ratios of neighbours: fraction_of_peak against an FMA loop of the same level,
fraction_of_bandwidth, in rounds of its own, against reading memory. With more threads the ceilings are what all of them
reach at once. GFLOP/s count 2 * (d + d_v) for each visible pair. The error is the largest one of sampled rows against
f64, for standard normal inputs.

Examples:
  regard bench
  regard bench --queries 2048 --head-dim 64,128 --causal top-left
  regard bench --keys 512,2048 --weighting relu --row-scale inv-n --isa avx2
  regard bench --queries 16 --keys 8192 --seconds 3
  regard bench --queries 4096 --threads 2";

/// The sizes of problems, each a list.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Sizes")]
struct SizeLists {
    /// Batch entries [default: 1]
    #[arg(long, value_delimiter = ',', value_name = "N,..")]
    batch: Vec<usize>,
    /// Heads of q [default: 8]
    #[arg(long, value_delimiter = ',', value_name = "N,..")]
    heads: Vec<usize>,
    /// Heads of k and v, which share out the heads of q [default: as many as --heads]
    #[arg(long, value_delimiter = ',', value_name = "N,..")]
    kv_heads: Vec<usize>,
    /// Rows of q [default: as many as --keys, or 2048]
    #[arg(long, value_delimiter = ',', value_name = "N,..")]
    queries: Vec<usize>,
    /// Rows of k and v [default: as many as --queries]
    #[arg(long, value_delimiter = ',', value_name = "N,..")]
    keys: Vec<usize>,
    /// Columns of q and k [default: 128]
    #[arg(long, value_delimiter = ',', value_name = "N,..")]
    head_dim: Vec<usize>,
    /// Columns of v and out [default: as many as --head-dim]
    #[arg(long, value_delimiter = ',', value_name = "N,..")]
    value_dim: Vec<usize>,
}

/// Runs the command.
pub(crate) fn run(args: BenchArgs, _global: &Global) -> Result<(), CliError> {
    args.check()?;
    let setup = setup::detect(args.problem.no_profile)?;
    let mut cases = Vec::new();
    if args.sizes.are_none() && says_nothing(&args.problem) {
        for shape in shapes::standard() {
            cases.extend(args.standard(&shape, &setup)?);
        }
    } else {
        cases.extend(args.sizes.combinations().into_iter().map(|sizes| (sizes, args.problem.clone())));
    }
    // All of them are looked at before the first is measured.
    for (sizes, problem) in &cases {
        let _ = problem.attention()?;
        sizes.shape()?;
    }
    for (sizes, problem) in &cases {
        let line = Case { problem, shape: sizes.shape()?, setup: &setup, seconds: args.seconds }.measure()?;
        output::json(&line)?;
        line.verdict()?;
    }
    Ok(())
}

impl BenchArgs {
    fn check(&self) -> Result<(), CliError> {
        match self.dtype.as_str() {
            "f32" => Ok(()),
            dtype => Err(CliError::Usage(format!("--dtype {dtype} does not exist: there is only f32 so far"))),
        }
    }

    /// A case of the standard list, by way of its command line; `None` if it has no place here.
    fn standard(&self, shape: &shapes::Shape, setup: &Setup) -> Result<Option<(ShapeArgs, ProblemArgs)>, CliError> {
        /// A command line of options only.
        #[derive(Debug, Parser)]
        #[command(no_binary_name = true)]
        struct Line {
            #[command(flatten)]
            args: BenchArgs,
        }
        let level = self.problem.isa()?.unwrap_or(setup.level.isa());
        if shape.isa.is_some_and(|isa| isa >= level) {
            let isa = level.name();
            eprintln!("skipped, as the level is {isa}: {}", shape.options());
            return Ok(None);
        }
        let options = shape.options();
        let parsed = Line::try_parse_from(options.split(' '));
        let Line { args } = parsed.map_err(|error| CliError::Failed(format!("{options}: {error}")))?;
        let sizes = args.sizes.combinations().pop();
        let problem = ProblemArgs {
            layout: self.problem.layout,
            isa: args.problem.isa.or_else(|| self.problem.isa.clone()),
            threads: self.problem.threads,
            no_profile: self.problem.no_profile,
            ..args.problem
        };
        Ok(sizes.map(|sizes| (sizes, problem)))
    }
}

/// Whether options leave open what to compute. Those that say how and where to compute do not count.
fn says_nothing(problem: &ProblemArgs) -> bool {
    let ProblemArgs {
        weighting,
        degree,
        coefficient,
        row_scale,
        sigmoid_bias,
        n,
        scale,
        softcap,
        temperature,
        temperature_schedule,
        schedule_factor,
        causal,
        anti_causal,
        strict,
        window,
        align,
        layout: _,
        isa: _,
        threads: _,
        no_profile: _,
    } = problem;
    let numbers = [coefficient, scale, softcap, temperature, schedule_factor];
    let masks = [causal, anti_causal, align];
    *weighting == WeightingName::Softmax
        && *n == Count::AllKeys
        && !strict
        && numbers.iter().all(|number| number.is_none())
        && masks.iter().all(|align| align.is_none())
        && (degree.is_none() && row_scale.is_none() && sigmoid_bias.is_none())
        && (temperature_schedule.is_none() && window.is_none())
}

impl SizeLists {
    fn are_none(&self) -> bool {
        let Self { batch, heads, kv_heads, queries, keys, head_dim, value_dim } = self;
        [batch, heads, kv_heads, queries, keys, head_dim, value_dim].iter().all(|sizes| sizes.is_empty())
    }

    /// Every combination, the last sizes changing fastest.
    fn combinations(&self) -> Vec<ShapeArgs> {
        let or = |sizes: &[usize], default: usize| if sizes.is_empty() { vec![default] } else { sizes.to_vec() };
        let or_none = |sizes: &[usize]| match sizes {
            [] => vec![None],
            sizes => sizes.iter().copied().map(Some).collect(),
        };
        let mut found = Vec::new();
        for batch in or(&self.batch, 1) {
            for heads in or(&self.heads, 8) {
                for kv_heads in or_none(&self.kv_heads) {
                    for queries in or_none(&self.queries) {
                        for keys in or_none(&self.keys) {
                            for head_dim in or(&self.head_dim, 128) {
                                for value_dim in or_none(&self.value_dim) {
                                    let queries = queries.or(keys).unwrap_or(2048);
                                    found.push(ShapeArgs {
                                        batch,
                                        heads,
                                        kv_heads,
                                        queries,
                                        keys,
                                        head_dim,
                                        value_dim,
                                    });
                                }
                            }
                        }
                    }
                }
            }
        }
        found
    }
}

/// A time that makes sense.
pub(crate) fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.0..=86_400.0).contains(seconds));
    seconds.ok_or_else(|| "expected seconds, from 0 to 86400".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(line: &str) -> BenchArgs {
        let cli = Cli::try_parse_from(["regard", "bench"].into_iter().chain(line.split_whitespace())).unwrap();
        let Some(Command::Bench(args)) = cli.command else { panic!("bench is bench") };
        *args
    }

    #[test]
    fn lists_give_every_combination() {
        let args = parse("--keys 3,5 --head-dim 7,8 --value-dim 9");
        let shapes: Vec<_> = args.sizes.combinations().iter().map(|sizes| sizes.shape().unwrap()).collect();
        let sizes: Vec<_> = shapes.iter().map(|s| (s.queries, s.keys, s.head_dim, s.value_dim)).collect();
        assert_eq!(sizes, [(3, 3, 7, 9), (3, 3, 8, 9), (5, 5, 7, 9), (5, 5, 8, 9)]);
        let one = parse("").sizes.combinations();
        assert_eq!((one.len(), one[0].queries, one[0].keys, one[0].heads), (1, 2048, None, 8));
    }

    #[test]
    fn what_stands_for_the_standard_list() {
        for line in ["", "--isa avx2", "--threads 2 --seconds 3 --no-profile", "--layout bshd"] {
            let args = parse(line);
            assert!(args.sizes.are_none() && says_nothing(&args.problem), "{line}");
        }
        for line in ["--weighting relu", "--causal top-left", "--n visible", "--temperature 2", "--keys 3"] {
            let args = parse(line);
            assert!(!(args.sizes.are_none() && says_nothing(&args.problem)), "{line}");
        }
    }

    #[test]
    fn every_standard_case_is_a_command_line() {
        let level = regard::Level::best();
        let setup = Setup { level, machine: regard_profile::Machine::default(), profile: None };
        let args = parse("--no-profile");
        for shape in shapes::standard() {
            let Some((sizes, problem)) = args.standard(&shape, &setup).unwrap() else { continue };
            let _ = problem.attention().unwrap();
            assert_eq!(sizes.shape().unwrap().keys, shape.keys);
            assert_eq!(problem.causal.is_some(), shape.causal);
            assert!(problem.no_profile);
        }
    }
}
