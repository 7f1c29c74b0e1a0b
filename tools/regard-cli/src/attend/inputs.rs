//! The tensors of a file, as the library takes them.

use regard::{Attention, Dtype, Problem, Temperature, Tensor as AnyTensor, View, quantise};
use regard_tuner::inputs::{Array, Elements, Order};

use super::AttendArgs;
use super::sequences::{self, Found};
use crate::error::CliError;
use crate::problem_args::Layout;
use crate::sequences::Arrangement;
use crate::shape_args::q_dtype;
use crate::tensors::{File, Reader, Tensor};

/// The tensors of a file.
#[derive(Debug)]
pub(super) struct Inputs {
    q: Array,
    k: Array,
    v: Array,
    arrangement: Arrangement,
    /// Valid keys, unless the arrangement has them.
    key_lengths: Option<Vec<usize>>,
    keep_mask: Option<Tensor<u8>>,
    bias: Option<Tensor<f32>>,
    sinks: Option<Vec<f32>>,
    alibi_slopes: Option<Vec<f32>>,
    gates: Option<Vec<f32>>,
    temperature: Option<Tensor<f32>>,
    /// Tensors that nobody asked for.
    pub(super) unused: Vec<String>,
}

/// Batch entries of tensors without elements: each takes some memory, and a small file could name any number of them.
const MOST_EMPTY: usize = 1 << 20;

/// Columns of a row: the workspace holds some rows, and a tensor without rows can name any number of columns.
const MOST_COLUMNS: usize = 1 << 16;

impl Inputs {
    pub(super) fn read(args: &AttendArgs) -> Result<Self, CliError> {
        let file = File::read(&args.input)?;
        let reader = &mut file.reader()?;
        // The offsets of packed sequences are looked for in the file too.
        let packed = args.varlen.is_some() || reader.has("q_offsets");
        let layout = args.problem.layout(packed);
        let dtype = args.dtype;
        let q = array(reader, "q", None, layout, dtype.map(q_dtype).filter(|_| dtype != Some(Dtype::Int8)))?;
        let k = array(reader, "k", Some("k_scale"), layout, dtype)?;
        let v = array(reader, "v", Some("v_scale"), layout, dtype)?;
        let [batch, heads, queries, _] = q.shape();
        if batch > MOST_EMPTY && q.shape().contains(&0) {
            return Err(reader.error("q", &format!("has batch {batch}, but no elements; at most {MOST_EMPTY} then")));
        }
        let Found { arrangement, key_lengths } = sequences::read(reader, args, q.shape(), k.shape())?;
        let (k, v, arrangement, key_lengths) = match args.paged {
            None => (k, v, arrangement, key_lengths),
            Some(rows) => {
                let ([k, v], arrangement) = sequences::paged(rows, &arrangement, key_lengths, [&q, &k, &v])?;
                (k, v, arrangement, None)
            }
        };
        let per_head = |reader: &mut Reader<'_>, name, heads, reason| {
            optional(reader, name, |reader| {
                let tensor = reader.f32(name)?;
                expect(reader, name, &tensor.shape, &[&[heads]], reason)?;
                Ok(tensor.data)
            })
        };
        let of_q = "one for each head of q";
        let gates = per_head(reader, "gates", k.shape()[1], "one for each head of k")?;
        if gates.is_some() && args.problem.gates.is_some() {
            return Err(reader.error("gates", "and --gates exclude each other"));
        }
        let inputs = Self {
            sinks: per_head(reader, "sinks", heads, of_q)?,
            alibi_slopes: per_head(reader, "alibi_slopes", heads, of_q)?,
            gates: if gates.is_some() { gates } else { args.problem.gates(k.shape()[1])? },
            keep_mask: optional(reader, "keep_mask", |reader| at_most_rank4(reader, "keep_mask", Reader::flags))?,
            bias: optional(reader, "bias", |reader| at_most_rank4(reader, "bias", Reader::f32))?,
            temperature: optional(reader, "temperature", |reader| {
                let tensor = reader.f32("temperature")?;
                let rows = rows_shape(layout, [batch, heads, queries]);
                let shapes: [&[usize]; 2] = [&[heads], &rows];
                expect(reader, "temperature", &tensor.shape, &shapes, "one for each head or row of q")?;
                Ok(tensor)
            })?,
            unused: reader.unused(),
            q,
            k,
            v,
            arrangement,
            key_lengths,
        };
        if inputs.temperature.is_some() && args.problem.temperature.is_some() {
            return Err(reader.error("temperature", "and --temperature exclude each other"));
        }
        args.problem.check_align(inputs.alibi_slopes.is_some())?;
        Ok(inputs)
    }

    /// Whether sequences lie one after the other in q.
    pub(super) fn packed(&self) -> bool {
        self.arrangement.queries.is_some()
    }

    pub(super) fn problem<'a>(&'a self, mut options: Attention<'a>) -> Result<Problem<'a>, CliError> {
        if let Some(lengths) = &self.key_lengths {
            options = options.key_lengths(lengths);
        }
        if let Some(sinks) = &self.sinks {
            options = options.sinks(sinks);
        }
        if let Some(slopes) = &self.alibi_slopes {
            options = options.alibi_slopes(slopes);
        }
        if let Some(gates) = &self.gates {
            options = options.gates(gates);
        }
        if let Some(Tensor { data, shape }) = &self.temperature {
            let per_head = shape.len() == 1;
            options =
                options.temperature(if per_head { Temperature::PerHead(data) } else { Temperature::PerRow(data) });
        }
        // Masks and biases are [batch, heads, queries, keys] in every layout.
        if let Some(mask) = &self.keep_mask {
            options = options.keep_mask(view("keep_mask", mask)?);
        }
        if let Some(bias) = &self.bias {
            options = options.bias(view("bias", bias)?);
        }
        let Self { q, k, v, arrangement, .. } = self;
        let [q, k, v] = [tensor("q", q)?, tensor("k", k)?, tensor("v", v)?];
        Ok(Problem::ragged(&options, q, arrangement.queries(), k, v, arrangement.keys())?)
    }
}

/// The shape of what each row of q has one of, given `[batch, heads, rows]`.
pub(super) fn rows_shape(layout: Layout, [batch, heads, rows]: [usize; 3]) -> Vec<usize> {
    if layout == Layout::Thd { vec![heads, rows] } else { vec![batch, heads, rows] }
}

pub(super) fn tensor<'a>(name: &'static str, array: &'a Array) -> Result<AnyTensor<'a>, CliError> {
    array.tensor(0).map_err(|source| regard::Error::View { tensor: name, source }.into())
}

/// A mask or a bias.
fn view<'a, T>(name: &'static str, tensor: &'a Tensor<T>) -> Result<View<'a, T>, CliError> {
    let view = View::bhsd(&tensor.data, sizes(&tensor.shape));
    view.map_err(|source| regard::Error::View { tensor: name, source }.into())
}

/// The shape, with ones before it up to rank 4: dimensions are aligned on the right.
fn sizes(shape: &[usize]) -> [usize; 4] {
    let mut sizes = [1; 4];
    for (size, found) in sizes.iter_mut().rev().zip(shape.iter().rev()) {
        *size = *found;
    }
    sizes
}

/// q, k or v, as elements of `dtype` if one is asked for. `scales` names the scales of bytes, where these are allowed.
fn array(
    reader: &mut Reader<'_>,
    name: &'static str,
    scales: Option<&'static str>,
    layout: Layout,
    dtype: Option<Dtype>,
) -> Result<Array, CliError> {
    let (elements, shape) = reader.numbers(name, scales.is_some())?;
    // Keys of packed queries may be packed as well, or not.
    let (ranks, expected) = match (layout, scales) {
        (Layout::Thd, None) => (3..=3, "3"),
        (Layout::Thd, Some(_)) => (3..=4, "3 or 4"),
        _ => (4..=4, "4"),
    };
    if !ranks.contains(&shape.len()) {
        return Err(reader.error(name, &format!("has shape {shape:?}, but {expected} dimensions are expected")));
    }
    let stored = sizes(&shape);
    if stored[3] > MOST_COLUMNS {
        return Err(reader.error(name, &format!("has {} columns, but at most {MOST_COLUMNS} are expected", stored[3])));
    }
    let order = layout.order();
    let (elements, scale_shape) = match (elements, scales) {
        (Elements::Int8(data, _), Some(scales)) => {
            let (of_rows, found) = row_scales(reader, scales, &shape)?;
            (Elements::Int8(data, of_rows), order.arrange(found))
        }
        (elements, _) => (elements, [0; 4]),
    };
    let array = Array::new(elements, order.arrange(stored), order);
    let array = if array.dtype() == Dtype::Int8 { array.with_scales(scale_shape) } else { array };
    match dtype {
        Some(dtype) if dtype != array.dtype() => converted(name, &array, dtype),
        _ => Ok(array),
    }
}

/// The scales of the rows of a tensor of this shape: one for each, or for several where a dimension is 1.
fn row_scales(reader: &mut Reader<'_>, name: &'static str, rows: &[usize]) -> Result<(Vec<f32>, [usize; 4]), CliError> {
    let Tensor { data, shape } = reader.f32(name)?;
    let rows = &rows[..rows.len() - 1];
    let found =
        if shape.len() > rows.len() && shape.last() == Some(&1) { &shape[..shape.len() - 1] } else { &shape[..] };
    let fits = found.len() == rows.len() && found.iter().zip(rows).all(|(found, rows)| found == rows || *found == 1);
    if !fits {
        let what = format!("has shape {shape:?}, but {rows:?} is expected, or 1 in some places (scales of rows)");
        return Err(reader.error(name, &what));
    }
    let [a, b, c, _] = sizes(&[found, &[1]].concat());
    Ok((data, [a, b, c, 1]))
}

/// The same numbers in another element type.
fn converted(name: &'static str, array: &Array, dtype: Dtype) -> Result<Array, CliError> {
    let (shape, order) = (array.shape(), array.order());
    let wrong = |source| regard::Error::View { tensor: name, source };
    let from = tensor(name, array)?;
    if shape.contains(&0) {
        let bytes = || Elements::Int8(Vec::new(), vec![0.0]);
        let elements = Elements::rounded(Vec::new(), dtype).unwrap_or_else(bytes);
        return Ok(Array::new(elements, shape, order).with_scales([1; 4]));
    }
    // In the order of memory, so that rows and their scales come out in it.
    let [batch, heads, rows, columns] = shape;
    let mut numbers = Vec::with_capacity(shape.iter().product());
    let mut push = |b, h, r| numbers.extend((0..columns).map(|c| from.get([b, h, r, c])));
    for b in 0..batch {
        match order {
            Order::HeadsFirst => (0..heads).for_each(|h| (0..rows).for_each(|r| push(b, h, r))),
            Order::RowsFirst => (0..rows).for_each(|r| (0..heads).for_each(|h| push(b, h, r))),
        }
    }
    if dtype == Dtype::Int8 {
        let rows = quantise(View::bhsd(&numbers, order.arrange(shape)).map_err(wrong)?);
        return Ok(Array::new(Elements::Int8(rows.data, rows.scales), shape, order));
    }
    let elements =
        Elements::rounded(numbers, dtype).ok_or_else(|| CliError::Failed(format!("no numbers of {dtype}")))?;
    Ok(Array::new(elements, shape, order))
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

pub(super) fn optional<'a, T>(
    reader: &mut Reader<'a>,
    name: &str,
    read: impl FnOnce(&mut Reader<'a>) -> Result<T, CliError>,
) -> Result<Option<T>, CliError> {
    if reader.has(name) { read(reader).map(Some) } else { Ok(None) }
}

pub(super) fn expect(
    reader: &Reader<'_>,
    name: &str,
    found: &[usize],
    shapes: &[&[usize]],
    reason: &str,
) -> Result<(), CliError> {
    if shapes.contains(&found) {
        return Ok(());
    }
    let expected: Vec<String> = shapes.iter().map(|shape| format!("{shape:?}")).collect();
    Err(reader.error(name, &format!("has shape {found:?}, but {} is expected ({reason})", expected.join(" or "))))
}
