//! `regard explain`: the plan for a problem, and why.

mod tuned;

use std::collections::HashMap;

use clap::Args;
use regard::{Dtype, Plan, Problem, Sequence, Shape};
use regard_profile::{Class, Entry};
use regard_tuner::search::Trials;
use serde::Serialize;

use self::tuned::Prediction;
use crate::cli::Global;
use crate::error::CliError;
use crate::output;
use crate::problem_args::{ProblemArgs, dtype};
use crate::sequences::SequenceArgs;
use crate::setup;
use crate::shape_args::{ShapeArgs, Stand};

/// Shows which kernel and which blocks a problem would be computed with, and why. Nothing is computed or measured.
///
/// What the analytic model expects, which roof of the machine binds, and, where the machine was tuned, what became of every
/// candidate of the contest that decided: who went out when, and the run-offs with their intervals.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct ExplainArgs {
    #[command(flatten)]
    shape: ShapeArgs,
    #[command(flatten)]
    sequences: SequenceArgs,
    /// Element type of q, k and v: f32, f16, bf16, or int8 for k and v with scales and q in f32
    #[arg(long, value_parser = dtype, default_value = "f32", value_name = "NAME", help_heading = "Execution")]
    dtype: Dtype,
    #[command(flatten)]
    problem: ProblemArgs,
}

const AFTER_HELP: &str = "\
Examples:
  regard explain --queries 512 --head-dim 64 --causal top-left
  regard explain --queries 16 --keys 4096 --heads 32 --kv-heads 8 --causal bottom-right
  regard explain --queries 1 --keys 16384 --heads 32 --kv-heads 4 --dtype int8 --threads 2
  regard explain --varlen uniform:1..4096:64@7 --causal bottom-right --dtype bf16 --no-native-half
  regard explain --varlen 100,3000,77 --queries 1 --paged 16 --split never
  regard explain --weighting hard-right --isa portable --json";

#[derive(Debug, Serialize)]
struct Explanation<'a> {
    /// Sequences.
    batch: usize,
    heads: usize,
    kv_heads: usize,
    /// Of the longest sequence, as `keys`.
    queries: usize,
    keys: usize,
    head_dim: usize,
    value_dim: usize,
    varlen: Option<String>,
    paged: Option<usize>,
    q_dtype: &'static str,
    kv_dtype: &'static str,
    weighting: String,
    visible_pairs: f64,
    flops: f64,
    kv_bytes: f64,
    class: Class,
    isa: &'static str,
    kernel: &'static str,
    key_block: usize,
    query_block: usize,
    /// Keys of a span of the longest sequence.
    span: usize,
    tasks: usize,
    threads: usize,
    workspace_bytes: usize,
    why: String,
    prediction: Prediction,
    profile_entry: Option<&'a Entry>,
    /// The log of the contest that the entry comes from.
    contest: Option<Trials>,
}

/// Runs the command.
pub(crate) fn run(args: ExplainArgs, global: &Global) -> Result<(), CliError> {
    let mut options = args.problem.attention()?;
    args.problem.check_layout(args.sequences.varlen.is_some())?;
    args.problem.check_align(false)?;
    let sizes = args.shape.sizes(&args.sequences)?;
    let gates = args.problem.gates(sizes.k[1])?;
    if let Some(gates) = &gates {
        options = options.gates(gates);
    }
    let setup = setup::detect(args.problem.no_profile)?;
    let stand = Stand::new(&sizes, args.dtype);
    let problem = stand.problem(&options)?;
    let plan = Plan::new(&problem, &setup);
    let threads = args.problem.threads.map_or_else(|| setup.machine.cores.usable(), usize::from);

    let shape = problem.shape();
    let visible_pairs = visible_pairs(&problem);
    let flops = visible_pairs * 2.0 * (shape.head_dim + shape.value_dim) as f64;
    let prediction = Prediction::new(&plan, &problem, &setup, flops);
    let contest = tuned::contest(&plan, &setup);
    if !global.json {
        let work = format!("{} over {visible_pairs} visible pairs", describe(flops));
        let workspace = plan.workspace_bytes(threads);
        let more = format!("work         {work}\nthreads      {threads}: {workspace} bytes of workspace");
        let story = contest.map_or_else(String::new, |contest| format!("\n{}", tuned::story(&contest)));
        return output::text(format!("{}\n{more}\n{}{story}", plan.explain(), prediction.text()));
    }
    let Shape { batch, query_heads, kv_heads, queries, keys, head_dim, value_dim, .. } = shape;
    output::json(&Explanation {
        batch,
        heads: query_heads,
        kv_heads,
        queries,
        keys,
        head_dim,
        value_dim,
        varlen: args.sequences.varlen.as_ref().map(ToString::to_string),
        paged: args.sequences.paged,
        q_dtype: problem.q_dtype().name(),
        kv_dtype: problem.kv_dtype().name(),
        weighting: args.problem.weighting.name(),
        visible_pairs,
        flops,
        kv_bytes: problem.kv_bytes(),
        class: plan.class(),
        isa: plan.isa().name(),
        kernel: plan.kernel(),
        key_block: plan.key_block(),
        query_block: plan.query_block(),
        span: plan.span_for(queries, keys),
        tasks: plan.tasks(),
        threads,
        workspace_bytes: plan.workspace_bytes(threads),
        why: plan.why().to_string(),
        prediction,
        profile_entry: plan.profile_entry().filter(|_| plan.monomials().is_none()),
        contest,
    })
}

/// Visible pairs of all heads and sequences. Sequences of equal sizes, of which there may be many, are counted once.
fn visible_pairs(problem: &Problem<'_>) -> f64 {
    let mut counted = HashMap::new();
    let pairs = problem.sequences().iter().map(|sequence| {
        let Sequence { band, queries, keys, .. } = *sequence;
        *counted.entry((band, queries, keys)).or_insert_with(|| band.pairs(queries, keys) as f64)
    });
    pairs.sum::<f64>() * problem.shape().query_heads as f64
}

/// Operations in a unit that leaves one to three digits before the point.
fn describe(flops: f64) -> String {
    match flops {
        _ if flops >= 1e9 => format!("{:.2} GFLOP", flops / 1e9),
        _ if flops >= 1e6 => format!("{:.2} MFLOP", flops / 1e6),
        _ => format!("{:.2} kFLOP", flops / 1e3),
    }
}
