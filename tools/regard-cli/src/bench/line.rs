//! What was measured of a case: a line of JSON, or of a table.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::check::Deviation;
use crate::error::CliError;

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    /// Sequences.
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    /// Of the longest sequence.
    pub(crate) queries: usize,
    /// Of the longest sequence.
    pub(crate) keys: usize,
    pub(crate) head_dim: usize,
    pub(crate) value_dim: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) varlen: Option<String>,
    /// Of all sequences.
    pub(crate) total_queries: usize,
    /// Of all sequences.
    pub(crate) total_keys: usize,
    /// Rows of a page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) paged: Option<usize>,
    /// The element type of k and v.
    pub(crate) dtype: &'static str,
    pub(crate) q_dtype: &'static str,
    pub(crate) out_dtype: &'static str,
    #[serde(flatten)]
    pub(crate) options: Map<String, Value>,
    /// The median time of a call.
    pub(crate) seconds: f64,
    /// Its 95 % interval.
    pub(crate) seconds_interval: [f64; 2],
    pub(crate) gflops: f64,
    pub(crate) peak_gflops: f64,
    /// Where a kernel multiplies pairs of bf16, or of 16-bit integers.
    pub(crate) dot_peak_gflops: Option<f64>,
    /// Of the peak of the kernel's arithmetic.
    pub(crate) fraction_of_peak: f64,
    /// Of the f32 multiply-add peak, whatever the kernel's arithmetic.
    pub(crate) fraction_of_f32_peak: f64,
    /// What a call reads of K and V: visible keys, scales included.
    pub(crate) kv_bytes: f64,
    pub(crate) warm: bool,
    /// Copies of K and V that calls take in turn.
    pub(crate) copies: usize,
    pub(crate) kv_gbytes_per_s: f64,
    pub(crate) read_gbytes_per_s: f64,
    pub(crate) read_way: String,
    pub(crate) fraction_of_bandwidth: f64,
    /// Of the nearer one of the peak of the kernel's arithmetic and the bandwidth.
    pub(crate) fraction_of_roof: f64,
    /// Of the nearer one of the f32 peak and the bandwidth.
    pub(crate) fraction_of_f32_roof: f64,
    pub(crate) max_abs_error: f64,
    pub(crate) max_relative_error: f64,
    pub(crate) isa: &'static str,
    /// That of the sequences with most queries.
    pub(crate) kernel: &'static str,
    /// Those of all sequences.
    pub(crate) kernels: Vec<&'static str>,
    /// Those of all sequences: quadratic or linear. The floating-point operations that are counted are those of the
    /// quadratic one.
    pub(crate) forms: Vec<&'static str>,
    pub(crate) key_block: usize,
    pub(crate) query_block: usize,
    /// Keys of a span of the longest sequence.
    pub(crate) span: usize,
    pub(crate) tasks: usize,
    pub(crate) threads: usize,
    /// The core that one thread was pinned to.
    pub(crate) core: Option<usize>,
    pub(crate) rounds: usize,
    pub(crate) why: String,
    #[serde(skip)]
    pub(crate) deviation: Deviation,
}

/// The columns of the table.
pub(crate) fn header() -> String {
    row(["weighting", "dtype", "shape", "kernel", "GFLOP/s", "of peak", "GB/s", "of bandwidth", "of roof", "error"])
}

/// Text to the left, figures to the right.
fn row(cells: [&str; 10]) -> String {
    let [weighting, dtype, shape, kernel, gflops, of_peak, gbytes, of_bandwidth, of_roof, error] = cells;
    format!(
        "{weighting:<12}  {dtype:<5}  {shape:<44}  {kernel:<22}  {gflops:>8}  {of_peak:>7}  {gbytes:>7}  \
         {of_bandwidth:>12}  {of_roof:>7}  {error:>7}"
    )
}

impl Line {
    /// An error if the output is wrong.
    pub(crate) fn verdict(&self) -> Result<(), CliError> {
        if self.deviation.is_rounding() {
            return Ok(());
        }
        let Self { kernel, max_abs_error, .. } = self;
        Err(CliError::Failed(format!("{kernel} is wrong: the largest error against f64 is {max_abs_error:e}")))
    }

    /// A line of the table.
    pub(crate) fn to_text(&self) -> String {
        let option = |name: &str| self.options.get(name).map(plain);
        let weighting = option("weighting").unwrap_or_default();
        let weighting = option("degree").map_or(weighting.clone(), |degree| format!("{weighting} {degree}"));
        row([
            &weighting,
            self.dtype,
            &self.shape(),
            self.kernel,
            &format!("{:.1}", self.gflops),
            &format!("{:.3}", self.fraction_of_peak),
            &format!("{:.2}", self.kv_gbytes_per_s),
            &format!("{:.3}", self.fraction_of_bandwidth),
            &format!("{:.3}", self.fraction_of_roof),
            &format!("{:.1e}", self.max_abs_error),
        ])
    }

    /// Heads, queries by keys, columns, and what else is not as usual.
    fn shape(&self) -> String {
        let Self { batch, heads, kv_heads, queries, keys, head_dim, value_dim, .. } = self;
        let mut text = if heads == kv_heads { format!("{heads} heads") } else { format!("{heads}:{kv_heads} heads") };
        text += &match &self.varlen {
            Some(lengths) if self.total_queries == batch * queries => format!(", {queries} x {lengths}"),
            Some(lengths) => format!(", {lengths}"),
            None if *batch == 1 => format!(", {queries} x {keys}"),
            None => format!(", {batch} of {queries} x {keys}"),
        };
        text += &if head_dim == value_dim { format!(", d {head_dim}") } else { format!(", d {head_dim}:{value_dim}") };
        match self.options.get("causal") {
            Some(Value::Null) | None => {}
            Some(Value::String(_)) => text += ", causal",
            Some(offset) => text += &format!(", causal {offset}"),
        }
        if let Some(rows) = self.paged {
            text += &format!(", pages of {rows}");
        }
        if self.threads > 1 {
            text += &format!(", {} threads", self.threads);
        }
        text
    }
}

/// A value as it would be written on a command line.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
