//! `regard bench`: problems against the ceilings of the machine.

pub(crate) mod case;
pub(crate) mod ceilings;
pub(crate) mod inputs;
pub(crate) mod line;
mod options;

use clap::{Args, Parser};
use regard::{Dtype, Level};
use regard_tuner::measure::ReadWay;
use regard_tuner::shapes;

use self::case::{Case, Manner};
use self::ceilings::Ways;
use crate::cli::Global;
use crate::error::CliError;
use crate::output;
use crate::problem_args::{ProblemArgs, WeightingName, dtype, out_dtype};
use crate::sequences::SequenceArgs;
use crate::setup;
use crate::shape_args::ShapeArgs;

/// Measures problems against the peak and the read bandwidth of the machine, in one interleaved run: a line for each.
///
/// Sizes and element types may be lists (--keys 512,2048), which give a case for every combination. Without sizes and
/// without options that say what to compute, the standard list of cases is measured.
#[derive(Clone, Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    sizes: SizeLists,
    #[command(flatten)]
    sequences: SequenceArgs,
    /// Element types of q, k and v [default: f32]: f32, f16, bf16, or int8 for k and v with scales and q in f32
    #[arg(long, value_delimiter = ',', value_parser = dtype, value_name = "NAME,..", help_heading = "Measurement")]
    dtype: Vec<Dtype>,
    /// Element type of the output: f32, or that of q
    #[arg(long, value_parser = out_dtype, default_value = "f32", value_name = "NAME", help_heading = "Measurement")]
    out_dtype: Dtype,
    /// Time to measure a case for; twelve rounds are made even if they take longer
    #[arg(long, default_value_t = 1.0, value_parser = seconds, allow_negative_numbers = true, value_name = "SECONDS",
          help_heading = "Measurement")]
    seconds: f64,
    /// Use one copy of K and V, which may stay in the caches from a call to the next
    #[arg(long, help_heading = "Measurement")]
    warm: bool,
    /// How to read memory to find its bandwidth: STREAMS-none, STREAMS-near-BYTES or STREAMS-far-BYTES, for 1, 2 or 4
    /// streams that prefetch so far ahead, or not [default: the fastest of fifteen ways]
    #[arg(long, value_name = "WAY", help_heading = "Measurement")]
    read_way: Option<ReadWay>,
    #[command(flatten)]
    problem: ProblemArgs,
}

const AFTER_HELP: &str = "\
Every case runs on one pinned thread unless --threads says otherwise. Rounds of work and ceilings take turns, and a
fraction is the median of the ratios of neighbours: peaks are measured right before and right after the work, the bandwidth
between rounds. `of peak` is against a loop of the arithmetic that the kernel uses: f32 multiply-adds of its level, or dot
products of bf16, where these are faster or --native-half asks for them, or of 16-bit integers, which is what int8 is
multiplied as where the core has VNNI. f32 that is multiplied in parts on tile registers (AMX) is set against multiply-adds,
and may exceed them. `of bandwidth` is the bytes of K and V that a call reads (of
visible keys, scales included) over time, against reading memory in the best of several ways. `of roof` is the time that
the nearer of the two ceilings allows over the time taken. With more threads the ceilings are what all of them reach at
once. GFLOP/s count 2 * (d + d_v) for each visible pair. The error is the largest one of sampled rows against f64, for
standard normal inputs. --json has all that and more: the interval of the time, fraction_of_peak, fraction_of_bandwidth, fraction_of_roof, the
ceilings, kv_bytes of a call, copies; and fraction_of_f32_peak and fraction_of_f32_roof, which are against f32 multiply-adds
whatever the kernel's arithmetic.

K and V come from memory: as many copies of them are used in turn as take eight times the last-level cache, 256 MiB at
least and a GiB at most, and no more than an eighth of the memory that is available. --warm leaves them in the caches, if
they fit.

Examples:
  regard bench
  regard bench --queries 2048 --head-dim 64,128 --causal top-left
  regard bench --keys 512,2048 --weighting relu --row-scale inv-n --isa avx2
  regard bench --queries 1 --keys 16384 --heads 32 --kv-heads 32,4 --dtype f32,f16,bf16,int8 --seconds 3
  regard bench --queries 1 --keys 16384 --heads 1 --dtype bf16 --split 2048 --threads 2
  regard bench --varlen uniform:1..4096:64@7 --causal bottom-right --dtype bf16
  regard bench --varlen 100,3000,77 --queries 1 --causal bottom-right --paged 16
  regard bench --queries 2048 --dtype bf16 --native-half
  regard bench --queries 2048 --dtype bf16 --no-native-half --json";

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
    /// Rows of q of each sequence [default: as many as --keys, or 2048; with --varlen as many as keys]
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
pub(crate) fn run(args: BenchArgs, global: &Global) -> Result<(), CliError> {
    let setup = setup::detect(args.problem.no_profile)?;
    let cases = args.cases(setup.level)?;
    // All of them are looked at before the first is measured.
    cases.iter().try_for_each(Case::check)?;
    let BenchArgs { seconds, out_dtype, warm, read_way: way, .. } = args;
    let mut ways = Ways::new();
    for (i, case) in cases.iter().enumerate() {
        let line = case.measure(Manner { seconds, out_dtype, warm, way }, &setup, &mut ways)?;
        if global.json {
            output::json(&line)?;
        } else {
            if i == 0 {
                output::text(line::header())?;
            }
            output::text(line.to_text())?;
        }
        line.verdict()?;
    }
    Ok(())
}

impl BenchArgs {
    /// What to measure, where `level` is what the environment allows.
    fn cases(&self, level: Level) -> Result<Vec<Case>, CliError> {
        let mut cases = Vec::new();
        if self.are_none() {
            for shape in shapes::standard() {
                cases.extend(self.standard(&shape, level)?);
            }
        } else {
            cases = self.combinations();
        }
        Ok(cases)
    }

    /// Whether nothing says what to compute.
    fn are_none(&self) -> bool {
        self.sizes.are_none() && self.sequences.are_none() && self.dtype.is_empty() && says_nothing(&self.problem)
    }

    /// Every combination of lists, element types changing slowest.
    fn combinations(&self) -> Vec<Case> {
        let Self { sequences, problem, .. } = self;
        let mut cases = Vec::new();
        for dtype in or(&self.dtype, Dtype::F32) {
            let shapes = self.sizes.combinations(sequences.varlen.is_some());
            let case = |shape| Case { shape, sequences: sequences.clone(), dtype, problem: problem.clone() };
            cases.extend(shapes.into_iter().map(case));
        }
        cases
    }

    /// A case of the standard list, by way of its command line; `None` if it has no place here.
    fn standard(&self, shape: &shapes::Shape, level: Level) -> Result<Option<Case>, CliError> {
        let level = self.problem.isa()?.unwrap_or(level.isa());
        if shape.isa.is_some_and(|isa| isa >= level) {
            let isa = level.name();
            eprintln!("skipped, as the level is {isa}: {}", shape.options());
            return Ok(None);
        }
        let case = parse(&shape.options())?;
        let problem = |problem: ProblemArgs| ProblemArgs {
            layout: self.problem.layout,
            split: self.problem.split,
            native_half: self.problem.native_half,
            no_native_half: self.problem.no_native_half,
            no_native_int8: self.problem.no_native_int8,
            no_f32_on_tiles: self.problem.no_f32_on_tiles,
            isa: problem.isa.or_else(|| self.problem.isa.clone()),
            threads: self.problem.threads,
            no_profile: self.problem.no_profile,
            ..problem
        };
        Ok(Some(Case { problem: problem(case.problem), ..case }))
    }
}

/// The case that a command line of options says.
///
/// # Errors
/// [`CliError::Failed`] if they are no options of this command.
pub(crate) fn parse(options: &str) -> Result<Case, CliError> {
    /// A command line of options only.
    #[derive(Debug, Parser)]
    #[command(no_binary_name = true)]
    struct Line {
        #[command(flatten)]
        args: BenchArgs,
    }
    let failed = |error: &dyn std::fmt::Display| CliError::Failed(format!("{options}: {error}"));
    let Line { args } = Line::try_parse_from(options.split_whitespace()).map_err(|error| failed(&error))?;
    args.combinations().pop().ok_or_else(|| failed(&"no case"))
}

/// The sizes, or the one that is taken if none is given.
fn or<T: Copy>(sizes: &[T], default: T) -> Vec<T> {
    if sizes.is_empty() { vec![default] } else { sizes.to_vec() }
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
        gates,
        temperature,
        temperature_schedule,
        schedule_factor,
        causal,
        anti_causal,
        strict,
        window,
        align,
        layout: _,
        split: _,
        form: _,
        native_half: _,
        no_native_half: _,
        no_native_int8: _,
        no_f32_on_tiles: _,
        isa: _,
        threads: _,
        no_profile: _,
    } = problem;
    let numbers = [coefficient, scale, softcap, gates, temperature, schedule_factor];
    let masks = [causal, anti_causal, align];
    *weighting == WeightingName::Softmax
        && !strict
        && numbers.iter().all(|number| number.is_none())
        && masks.iter().all(|align| align.is_none())
        && (degree.is_none() && row_scale.is_none() && sigmoid_bias.is_none() && n.is_none())
        && (temperature_schedule.is_none() && window.is_none())
}

impl SizeLists {
    fn are_none(&self) -> bool {
        let Self { batch, heads, kv_heads, queries, keys, head_dim, value_dim } = self;
        [batch, heads, kv_heads, queries, keys, head_dim, value_dim].iter().all(|sizes| sizes.is_empty())
    }

    /// Every combination, the last sizes changing fastest. `packed` is whether sequences have lengths of their own.
    fn combinations(&self, packed: bool) -> Vec<ShapeArgs> {
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
                                    let queries = if packed { queries } else { queries.or(keys) };
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
        let args = parse("--keys 3,5 --head-dim 7,8 --value-dim 9 --dtype int8,f16");
        let cases = args.combinations();
        let sizes: Vec<_> = cases.iter().map(|case| case.shape.sizes(&case.sequences).unwrap()).collect();
        let found: Vec<_> = sizes.iter().map(|sizes| (sizes.q[2], sizes.k[2], sizes.q[3], sizes.v[3])).collect();
        let once = [(3, 3, 7, 9), (3, 3, 8, 9), (5, 5, 7, 9), (5, 5, 8, 9)];
        assert_eq!(found, [once, once].concat());
        assert_eq!([cases[0].dtype, cases[4].dtype], [Dtype::Int8, Dtype::F16]);
        let one = parse("").combinations();
        assert_eq!((one.len(), one[0].shape.queries, one[0].shape.keys, one[0].shape.heads), (1, None, None, 8));
        let packed = parse("--varlen 4,5 --heads 2,3").combinations();
        assert_eq!((packed.len(), packed[1].shape.queries, packed[1].shape.heads), (2, None, 3));
    }

    #[test]
    fn what_stands_for_the_standard_list() {
        for line in [
            "",
            "--isa avx2",
            "--threads 2 --seconds 3 --no-profile",
            "--layout bshd",
            "--warm --split never",
            "--native-half",
            "--no-native-half",
        ] {
            assert!(parse(line).are_none(), "{line}");
        }
        for line in [
            "--weighting relu",
            "--causal top-left",
            "--n visible",
            "--temperature 2",
            "--keys 3",
            "--dtype bf16",
            "--varlen 3,4",
            "--paged 16",
        ] {
            assert!(!parse(line).are_none(), "{line}");
        }
    }

    #[test]
    fn every_standard_case_is_a_command_line() {
        let args = parse("--no-profile --split never");
        for shape in shapes::standard() {
            let Some(case) = args.standard(&shape, Level::best()).unwrap() else { continue };
            case.check().unwrap();
            assert_eq!((case.dtype, case.shape.heads), (shape.dtype, shape.heads));
            assert_eq!(case.problem.causal.is_some(), shape.mask != shapes::Mask::Full);
            assert!(case.problem.no_profile && case.problem.split == regard::Split::Never);
        }
    }
}
