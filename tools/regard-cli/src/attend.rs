//! `regard attend`: attention on tensors in a file.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use regard::{Attention, Plan, Problem, Shape, Temperature, View, ViewMut};
use serde::Serialize;

use crate::cli::Global;
use crate::error::CliError;
use crate::output;
use crate::problem_args::{Layout, ProblemArgs, WeightingName};
use crate::setup::{self, Threads};
use crate::tensors::{File, Reader, Tensor, Writer, list};

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
    /// Write the log-sum-exp of each row too, as `lse` [batch, heads, queries]; softmax only
    #[arg(long, help_heading = "Output")]
    lse: bool,
    #[command(flatten)]
    problem: ProblemArgs,
}

const AFTER_HELP: &str = "\
Tensors of IN (f32 if nothing else is said; B batch, H heads of q, N queries, M keys):
  q               [B, H, N, d]    ([B, N, H, d] with --layout bshd, and so on)
  k               [B, heads of k, M, d]
  v               [B, heads of k, M, columns of v]
  keep_mask       bool or u8, broadcastable to [B, H, N, M]: true keeps a pair     optional
  bias            broadcastable to [B, H, N, M], added to the scores              optional
  kv_lengths      i64 [B]: valid keys of each sequence                            optional
  sinks           [H]: a logit that joins the denominator of softmax              optional
  alibi_slopes    [H]                                                             optional
  temperature     [H] or [B, H, N]                                                optional
OUT has `out`, laid out like q, and with --lse `lse`.

Examples:
  regard attend in.safetensors out.safetensors
  regard attend in.safetensors out.safetensors --causal bottom-right --window 1023,none --lse
  regard attend in.safetensors out.safetensors --weighting average-hard --causal top-left --strict
  regard attend in.safetensors out.safetensors --weighting poly --degree 3 --row-scale inv-n --n visible
  regard attend in.safetensors out.safetensors --weighting sigmoid --sigmoid-bias neg-log-n
  regard attend in.safetensors out.safetensors --temperature-schedule scaled-log-n --schedule-factor 0.4";

/// The tensors of a file, as the library takes them.
#[derive(Debug)]
struct Inputs {
    qkv: [Tensor<f32>; 3],
    keep_mask: Option<Tensor<u8>>,
    bias: Option<Tensor<f32>>,
    kv_lengths: Option<Vec<usize>>,
    sinks: Option<Vec<f32>>,
    alibi_slopes: Option<Vec<f32>>,
    temperature: Option<Tensor<f32>>,
    unused: Vec<String>,
}

/// What was done.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    queries: usize,
    keys: usize,
    head_dim: usize,
    value_dim: usize,
    layout: &'static str,
    weighting: String,
    isa: &'static str,
    kernel: &'static str,
    key_block: usize,
    query_block: usize,
    threads: usize,
    seconds: f64,
    output: String,
    out: [usize; 4],
    lse: Option<[usize; 3]>,
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
    let problem = inputs.problem(options, args.problem.layout)?;
    let plan = Plan::new(&problem, &setup);
    let threads = Threads::new(args.problem.threads, &setup.machine)?;
    let writer = Writer::new(&args.output)?;

    let shape = problem.shape();
    let arranged = args.problem.layout.arrange(shape.out());
    let mut out = zeros("out", shape.rows().checked_mul(shape.value_dim))?;
    let mut lse = if args.lse { Some(zeros("lse", Some(shape.rows()))?) } else { None };
    let mut workspace = zeros("the workspace", Some(plan.workspace_len(threads.count())))?;
    let view = match args.problem.layout {
        Layout::Bhsd => ViewMut::bhsd(&mut out, arranged),
        Layout::Bshd => ViewMut::bshd(&mut out, arranged),
    };
    let view = view.map_err(|source| regard::Error::View { tensor: "out", source })?;
    let start = Instant::now();
    plan.run(&problem, view, lse.as_deref_mut(), &mut workspace, threads.execution())?;
    let seconds = start.elapsed().as_secs_f64();

    let rows = [shape.batch, shape.query_heads, shape.queries];
    let mut tensors = vec![("out", Tensor { data: out, shape: arranged.to_vec() })];
    tensors.extend(lse.map(|lse| ("lse", Tensor { data: lse, shape: rows.to_vec() })));
    writer.write(&tensors)?;

    let Shape { batch, query_heads, kv_heads, queries, keys, head_dim, value_dim } = shape;
    let summary = Summary {
        batch,
        heads: query_heads,
        kv_heads,
        queries,
        keys,
        head_dim,
        value_dim,
        layout: args.problem.layout.name(),
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
        let mut text = format!("problem   {shape}; {}\n", self.weighting);
        text += &format!(
            "computed  in {:.3} ms with {} ({} thread{})\n",
            self.seconds * 1e3,
            self.kernel,
            self.threads,
            if self.threads == 1 { "" } else { "s" }
        );
        text += &format!("wrote     {}: out {:?}", self.output, self.out);
        if let Some(lse) = self.lse {
            text += &format!(", lse {lse:?}");
        }
        if !self.ignored_tensors.is_empty() {
            text += &format!("\nignored   tensors of other names: {}", list(self.ignored_tensors));
        }
        text
    }
}

impl Inputs {
    fn read(args: &AttendArgs) -> Result<Self, CliError> {
        let file = File::read(&args.input)?;
        let mut reader = file.reader()?;
        let qkv = [rank4(&mut reader, "q")?, rank4(&mut reader, "k")?, rank4(&mut reader, "v")?];
        let [batch, heads, queries, _] = args.problem.layout.arrange(sizes(&qkv[0]));
        let keys = args.problem.layout.arrange(sizes(&qkv[1]))[2];
        if batch > MOST_EMPTY && qkv[0].data.is_empty() {
            return Err(reader.error("q", &format!("has batch {batch}, but no elements; at most {MOST_EMPTY} then")));
        }
        let per_head = |reader: &mut Reader<'_>, name| {
            optional(reader, name, |reader| {
                let tensor = reader.f32(name)?;
                expect(reader, name, &tensor.shape, &[&[heads]], "one for each head of q")?;
                Ok(tensor.data)
            })
        };
        let inputs = Self {
            sinks: per_head(&mut reader, "sinks")?,
            alibi_slopes: per_head(&mut reader, "alibi_slopes")?,
            keep_mask: optional(&mut reader, "keep_mask", |reader| at_most_rank4(reader, "keep_mask", Reader::flags))?,
            bias: optional(&mut reader, "bias", |reader| at_most_rank4(reader, "bias", Reader::f32))?,
            kv_lengths: optional(&mut reader, "kv_lengths", |reader| lengths(reader, batch, keys))?,
            temperature: optional(&mut reader, "temperature", |reader| {
                let tensor = reader.f32("temperature")?;
                let shapes: [&[usize]; 2] = [&[heads], &[batch, heads, queries]];
                expect(reader, "temperature", &tensor.shape, &shapes, "one for each head or row of q")?;
                Ok(tensor)
            })?,
            unused: reader.unused(),
            qkv,
        };
        if inputs.temperature.is_some() && args.problem.temperature.is_some() {
            return Err(reader.error("temperature", "and --temperature exclude each other"));
        }
        Ok(inputs)
    }

    fn problem<'a>(&'a self, mut options: Attention<'a>, layout: Layout) -> Result<Problem<'a>, CliError> {
        if let Some(lengths) = &self.kv_lengths {
            options = options.key_lengths(lengths);
        }
        if let Some(sinks) = &self.sinks {
            options = options.sinks(sinks);
        }
        if let Some(slopes) = &self.alibi_slopes {
            options = options.alibi_slopes(slopes);
        }
        if let Some(Tensor { data, shape }) = &self.temperature {
            let per_head = shape.len() == 1;
            options =
                options.temperature(if per_head { Temperature::PerHead(data) } else { Temperature::PerRow(data) });
        }
        // Masks and biases are [batch, heads, queries, keys] in every layout.
        if let Some(mask) = &self.keep_mask {
            options = options.keep_mask(view("keep_mask", mask, Layout::Bhsd)?);
        }
        if let Some(bias) = &self.bias {
            options = options.bias(view("bias", bias, Layout::Bhsd)?);
        }
        let [q, k, v] = &self.qkv;
        Ok(Problem::new(&options, view("q", q, layout)?, view("k", k, layout)?, view("v", v, layout)?)?)
    }
}

/// Batch entries of tensors without elements: each takes some memory, and a small file could name any number of them.
const MOST_EMPTY: usize = 1 << 20;

/// Columns of a row: the workspace holds some rows, and a tensor without rows can name any number of columns.
const MOST_COLUMNS: usize = 1 << 16;

/// Zeros, or an error in place of an abort if there is not enough memory: tensors without elements take no room in a
/// file, but can ask for any number of output rows.
fn zeros(what: &str, len: Option<usize>) -> Result<Vec<f32>, CliError> {
    let mut zeros = Vec::new();
    match len.map(|len| zeros.try_reserve_exact(len).map(|()| zeros.resize(len, 0.0))) {
        Some(Ok(())) => Ok(zeros),
        _ => Err(CliError::Failed(format!("not enough memory for {what}"))),
    }
}

fn view<'a, T>(name: &'static str, tensor: &'a Tensor<T>, layout: Layout) -> Result<View<'a, T>, CliError> {
    let view = match layout {
        Layout::Bhsd => View::bhsd(&tensor.data, sizes(tensor)),
        Layout::Bshd => View::bshd(&tensor.data, sizes(tensor)),
    };
    view.map_err(|source| regard::Error::View { tensor: name, source }.into())
}

/// The shape, with ones before it up to rank 4: dimensions are aligned on the right.
fn sizes<T>(tensor: &Tensor<T>) -> [usize; 4] {
    let mut sizes = [1; 4];
    for (size, found) in sizes.iter_mut().rev().zip(tensor.shape.iter().rev()) {
        *size = *found;
    }
    sizes
}

fn rank4(reader: &mut Reader<'_>, name: &'static str) -> Result<Tensor<f32>, CliError> {
    let tensor = reader.f32(name)?;
    if tensor.shape.len() != 4 {
        return Err(reader.error(name, &format!("has shape {:?}, but 4 dimensions are expected", tensor.shape)));
    }
    if tensor.shape[3] > MOST_COLUMNS {
        return Err(
            reader.error(name, &format!("has {} columns, but at most {MOST_COLUMNS} are expected", tensor.shape[3]))
        );
    }
    Ok(tensor)
}

fn at_most_rank4<'a, T>(
    reader: &mut Reader<'a>,
    name: &'static str,
    read: impl FnOnce(&mut Reader<'a>, &'static str) -> Result<Tensor<T>, CliError>,
) -> Result<Tensor<T>, CliError> {
    let tensor = read(reader, name)?;
    if tensor.shape.len() > 4 {
        return Err(reader.error(name, &format!("has shape {:?}, but at most 4 dimensions are expected", tensor.shape)));
    }
    Ok(tensor)
}

fn lengths(reader: &mut Reader<'_>, batch: usize, keys: usize) -> Result<Vec<usize>, CliError> {
    let tensor = reader.i64("kv_lengths")?;
    expect(reader, "kv_lengths", &tensor.shape, &[&[batch]], "one for each batch entry")?;
    let length = |(i, length): (usize, &i64)| {
        let valid = usize::try_from(*length).ok().filter(|length| *length <= keys);
        valid.ok_or_else(|| {
            reader.error("kv_lengths", &format!("has {length} at [{i}], but 0 to {keys} (the keys of k) is expected"))
        })
    };
    tensor.data.iter().enumerate().map(length).collect()
}

fn optional<'a, T>(
    reader: &mut Reader<'a>,
    name: &str,
    read: impl FnOnce(&mut Reader<'a>) -> Result<T, CliError>,
) -> Result<Option<T>, CliError> {
    if reader.has(name) { read(reader).map(Some) } else { Ok(None) }
}

fn expect(reader: &Reader<'_>, name: &str, found: &[usize], shapes: &[&[usize]], reason: &str) -> Result<(), CliError> {
    if shapes.contains(&found) {
        return Ok(());
    }
    let expected: Vec<String> = shapes.iter().map(|shape| format!("{shape:?}")).collect();
    Err(reader.error(name, &format!("has shape {found:?}, but {} is expected ({reason})", expected.join(" or "))))
}
