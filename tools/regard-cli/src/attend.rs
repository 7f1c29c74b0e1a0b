//! `regard attend`: attention on tensors in a file.

mod inputs;
mod sequences;

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use regard::{Dtype, Plan, Shape};
use regard_tuner::inputs::{Array, Elements, Lengths};
use serde::Serialize;

use self::inputs::{Inputs, rows_shape};
use crate::cli::Global;
use crate::error::CliError;
use crate::output;
use crate::problem_args::{Layout, ProblemArgs, WeightingName, dtype, out_dtype};
use crate::sequences::page_rows;
use crate::setup::{self, Threads};
use crate::tensors::{Writer, list};

/// Computes attention on the tensors q, k and v of a safetensors file.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct AttendArgs {
    /// The file with q, k and v
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The file to write; may be the same. Untouched if anything goes wrong
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// Convert q, k and v to f32, f16 or bf16 before anything else, or quantise k and v to int8 and leave q [default: as
    /// they are]
    #[arg(long, value_parser = dtype, value_name = "NAME", help_heading = "Sequences and types")]
    dtype: Option<Dtype>,
    /// Packed sequences of these lengths, in q and in k: L1,L2,.. or uniform:LOW..HIGH:COUNT[@SEED]
    #[arg(long, value_name = "LENGTHS", help_heading = "Sequences and types")]
    varlen: Option<Lengths>,
    /// Move k and v to pages of ROWS rows in random order first, as a cache might have them
    #[arg(long, value_parser = page_rows, value_name = "ROWS", help_heading = "Sequences and types")]
    paged: Option<usize>,
    /// Element type of `out`: f32, or that of q
    #[arg(long, value_parser = out_dtype, default_value = "f32", value_name = "NAME", help_heading = "Output")]
    out_dtype: Dtype,
    /// Write the log-sum-exp of each row too, as `lse` [batch, heads, queries]; softmax only
    #[arg(long, help_heading = "Output")]
    lse: bool,
    #[command(flatten)]
    problem: ProblemArgs,
}

const AFTER_HELP: &str = "\
Tensors of IN (f32 if nothing else is said; B batch, H heads of q, N queries, M keys):
  q               f32, f16 or bf16 [B, H, N, d]    ([B, N, H, d] with --layout bshd, [rows, H, d] with thd, and so on)
  k               f32, f16, bf16 or i8 [B, heads of k, M, d]
  v               as k [B, heads of k, M, columns of v]
  k_scale         [B, heads of k, M]: what each row of k is multiplied with        with i8
  v_scale         the same for v                                                   with i8
  keep_mask       bool or u8, broadcastable to [B, H, N, M]: true keeps a pair     optional
  bias            broadcastable to [B, H, N, M], added to the scores               optional
  kv_lengths      i64 or i32 [B]: valid keys of each sequence                      optional
  sinks           [H]: a logit that joins the denominator of softmax               optional
  alibi_slopes    [H]                                                              optional
  temperature     [H] or [B, H, N]                                                 optional
  gates           [heads of k], in (0, 1]: a weight is multiplied by the gate for
                  each step from the key to the query; as --gates does             optional
  q_offsets       i64 or i32 [sequences + 1]: first rows of packed queries         optional
  kv_offsets      i64 or i32 [sequences + 1]: first rows of packed keys            optional
  page_table      i64 or i32 [sequences, pages]: k is [pages, heads of k, rows, d],
                  v likewise; kv_lengths says how many keys there are              optional
OUT has `out`, laid out like q, and with --lse `lse`. With packed queries the layout is thd unless said otherwise; what
has one entry for each batch entry above has one for each sequence, and what has one for each row is [H, rows of q].

Examples:
  regard attend in.safetensors out.safetensors
  regard attend in.safetensors out.safetensors --causal bottom-right --window 1023,none --lse
  regard attend in.safetensors out.safetensors --weighting average-hard --causal top-left --strict
  regard attend in.safetensors out.safetensors --weighting poly --degree 3 --row-scale inv-n --n visible
  regard attend in.safetensors out.safetensors --weighting sigmoid --sigmoid-bias neg-log-n
  regard attend in.safetensors out.safetensors --temperature-schedule scaled-log-n --schedule-factor 0.4
  regard attend in.safetensors out.safetensors --weighting taylor2 --causal top-left --form linear --gates 0.99
  regard attend in.safetensors out.safetensors --dtype int8
  regard attend in.safetensors out.safetensors --dtype bf16 --out-dtype bf16 --no-native-half
  regard attend in.safetensors out.safetensors --varlen 100,3000,77 --causal bottom-right --paged 16";

/// What was done.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    /// Sequences.
    batch: usize,
    heads: usize,
    kv_heads: usize,
    queries: usize,
    keys: usize,
    head_dim: usize,
    value_dim: usize,
    /// Rows of packed queries.
    packed_rows: Option<usize>,
    paged: Option<usize>,
    q_dtype: &'static str,
    kv_dtype: &'static str,
    out_dtype: &'static str,
    layout: &'static str,
    weighting: String,
    isa: &'static str,
    kernel: &'static str,
    key_block: usize,
    query_block: usize,
    threads: usize,
    seconds: f64,
    output: String,
    out: Vec<usize>,
    lse: Option<Vec<usize>>,
    ignored_tensors: &'a [String],
}

/// Runs the command.
pub(crate) fn run(args: AttendArgs, global: &Global) -> Result<(), CliError> {
    let options = args.problem.attention()?;
    if args.lse && args.problem.weighting != WeightingName::Softmax {
        return Err(CliError::Usage(format!(
            "--lse has no meaning with --weighting {}: it goes with softmax",
            args.problem.weighting.name()
        )));
    }
    let setup = setup::detect(args.problem.no_profile)?;
    let inputs = Inputs::read(&args)?;
    let layout = args.problem.layout(inputs.packed());
    let problem = inputs.problem(options)?;
    let plan = Plan::new(&problem, &setup);
    let threads = Threads::new(args.problem.threads, &setup.machine)?;
    let writer = Writer::new(&args.output)?;

    let shape = problem.shape();
    let order = layout.order();
    let zeros_out = zeros("out", shape.rows().checked_mul(shape.value_dim))?;
    let elements = Elements::rounded(zeros_out, args.out_dtype);
    let elements = elements.ok_or_else(|| CliError::Failed("outputs are not quantised".to_owned()))?;
    let mut out = Array::new(elements, shape.out(), order);
    let mut lse = if args.lse { Some(zeros("lse", Some(shape.rows()))?) } else { None };
    // Rows that belong to no sequence see nothing, and are not written.
    lse.iter_mut().for_each(|lse| lse.fill(f32::NEG_INFINITY));
    let mut workspace = zeros("the workspace", Some(plan.workspace_len(threads.count())))?;
    let view = out.tensor_mut().map_err(|source| regard::Error::View { tensor: "out", source })?;
    let start = Instant::now();
    plan.run(&problem, view, lse.as_deref_mut(), &mut workspace, threads.execution())?;
    let seconds = start.elapsed().as_secs_f64();

    let [batch, heads, rows, _] = shape.out();
    let rows = rows_shape(layout, [batch, heads, rows]);
    let arranged = order.arrange(shape.out());
    let arranged = if layout == Layout::Thd { arranged[1..].to_vec() } else { arranged.to_vec() };
    let mut tensors = vec![("out", out.into_elements(), arranged.clone())];
    tensors.extend(lse.map(|lse| ("lse", Elements::F32(lse), rows.clone())));
    writer.write(&tensors)?;

    let Shape { batch, query_heads, kv_heads, queries, keys, head_dim, value_dim, packed_rows } = shape;
    let summary = Summary {
        batch,
        heads: query_heads,
        kv_heads,
        queries,
        keys,
        head_dim,
        value_dim,
        packed_rows,
        paged: args.paged,
        q_dtype: problem.q_dtype().name(),
        kv_dtype: problem.kv_dtype().name(),
        out_dtype: args.out_dtype.name(),
        layout: layout.name(),
        weighting: args.problem.weighting.name(),
        isa: plan.isa().name(),
        kernel: plan.kernel(),
        key_block: plan.key_block(),
        query_block: plan.query_block(),
        threads: threads.count(),
        seconds,
        output: args.output.display().to_string(),
        out: arranged,
        lse: args.lse.then_some(rows),
        ignored_tensors: &inputs.unused,
    };
    if global.json { output::json(&summary) } else { output::text(summary.to_text(&shape)) }
}

impl Summary<'_> {
    fn to_text(&self, shape: &Shape) -> String {
        let Self { q_dtype, kv_dtype, .. } = self;
        let types = if q_dtype == kv_dtype { (*q_dtype).to_owned() } else { format!("{q_dtype}, k and v {kv_dtype}") };
        let mut text = format!("problem   {shape}; {types}; {}\n", self.weighting);
        text += &format!(
            "computed  in {:.3} ms with {} ({} thread{})\n",
            self.seconds * 1e3,
            self.kernel,
            self.threads,
            if self.threads == 1 { "" } else { "s" }
        );
        text += &format!("wrote     {}: out {:?}", self.output, self.out);
        if self.out_dtype != "f32" {
            text += &format!(" {}", self.out_dtype);
        }
        if let Some(lse) = &self.lse {
            text += &format!(", lse {lse:?}");
        }
        if !self.ignored_tensors.is_empty() {
            text += &format!("\nignored   tensors of other names: {}", list(self.ignored_tensors));
        }
        text
    }
}

/// Zeros, or an error in place of an abort if there is not enough memory: tensors without elements take no room in a
/// file, but can ask for any number of output rows.
fn zeros(what: &str, len: Option<usize>) -> Result<Vec<f32>, CliError> {
    let mut zeros = Vec::new();
    match len.map(|len| zeros.try_reserve_exact(len).map(|()| zeros.resize(len, 0.0))) {
        Some(Ok(())) => Ok(zeros),
        _ => Err(CliError::Failed(format!("not enough memory for {what}"))),
    }
}
