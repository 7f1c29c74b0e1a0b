//! `regard explain`: the plan for a problem, and why.

use clap::Args;
use regard::{Plan, Problem, Shape};
use regard_profile::{Class, Entry};
use serde::Serialize;

use crate::cli::Global;
use crate::error::CliError;
use crate::output;
use crate::problem_args::ProblemArgs;
use crate::setup;
use crate::shape_args::{ShapeArgs, Stand};

/// Shows which kernel and which blocks a problem would be computed with, and why. Nothing is computed or measured.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct ExplainArgs {
    #[command(flatten)]
    shape: ShapeArgs,
    #[command(flatten)]
    problem: ProblemArgs,
}

const AFTER_HELP: &str = "\
Examples:
  regard explain --queries 512 --head-dim 64 --causal top-left
  regard explain --queries 16 --keys 4096 --heads 32 --kv-heads 8 --causal bottom-right
  regard explain --weighting hard-right --isa portable --json";

#[derive(Debug, Serialize)]
struct Explanation<'a> {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    queries: usize,
    keys: usize,
    head_dim: usize,
    value_dim: usize,
    weighting: String,
    visible_pairs: f64,
    flops: f64,
    kv_bytes: f64,
    class: &'a Class,
    isa: &'static str,
    kernel: &'static str,
    key_block: usize,
    query_block: usize,
    tasks: usize,
    threads: usize,
    workspace_bytes: usize,
    why: String,
    profile_entry: Option<&'a Entry>,
}

/// Runs the command.
pub(crate) fn run(args: ExplainArgs, global: &Global) -> Result<(), CliError> {
    let options = args.problem.attention()?;
    let shape = args.shape.shape()?;
    let setup = setup::detect(args.problem.no_profile)?;
    let stand = Stand::new(shape);
    let [q, k, v] = stand.views()?;
    let problem = Problem::new(&options, q, k, v)?;
    let plan = Plan::new(&problem, &setup);
    let threads = args.problem.threads.map_or_else(|| setup.machine.cores.usable(), usize::from);

    // All sequences are alike.
    let pairs = problem.sequences().first().map_or(0, |sequence| sequence.band.pairs(shape.queries, shape.keys));
    let visible_pairs = pairs as f64 * (shape.batch * shape.query_heads) as f64;
    let flops = visible_pairs * 2.0 * (shape.head_dim + shape.value_dim) as f64;
    if !global.json {
        let work = format!("{} over {visible_pairs} visible pairs", describe(flops));
        let workspace = plan.workspace_bytes(threads);
        let more = format!("work         {work}\nthreads      {threads}: {workspace} bytes of workspace");
        return output::text(format!("{}\n{more}", plan.explain()));
    }
    let Shape { batch, query_heads, kv_heads, queries, keys, head_dim, value_dim } = shape;
    output::json(&Explanation {
        batch,
        heads: query_heads,
        kv_heads,
        queries,
        keys,
        head_dim,
        value_dim,
        weighting: args.problem.weighting.name(),
        visible_pairs,
        flops,
        kv_bytes: problem.kv_bytes(),
        class: plan.class(),
        isa: plan.isa().name(),
        kernel: plan.kernel(),
        key_block: plan.key_block(),
        query_block: plan.query_block(),
        tasks: plan.tasks(),
        threads,
        workspace_bytes: plan.workspace_bytes(threads),
        why: plan.why().to_string(),
        profile_entry: plan.profile_entry(),
    })
}

/// Operations in a unit that leaves one to three digits before the point.
fn describe(flops: f64) -> String {
    match flops {
        _ if flops >= 1e9 => format!("{:.2} GFLOP", flops / 1e9),
        _ if flops >= 1e6 => format!("{:.2} MFLOP", flops / 1e6),
        _ => format!("{:.2} kFLOP", flops / 1e3),
    }
}
