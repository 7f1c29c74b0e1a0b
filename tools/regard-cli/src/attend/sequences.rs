//! Which rows of the tensors of a file belong to which sequence.

use regard::{Attention, Problem, Tensor as AnyTensor, View};
use regard_tuner::inputs::{Array, Elements, Order};

use super::AttendArgs;
use super::inputs::{expect, optional, tensor};
use crate::error::CliError;
use crate::problem_args::Layout;
use crate::sequences::{Arrangement, KeyRows, PageTable, offsets};
use crate::tensors::{Reader, Tensor};

/// What a file and the options say.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) arrangement: Arrangement,
    /// Valid keys of each sequence, unless the arrangement has them.
    pub(super) key_lengths: Option<Vec<usize>>,
}

/// Finds the sequences of tensors of these shapes, `[batch, heads, rows, columns]`.
pub(super) fn read(
    reader: &mut Reader<'_>,
    args: &AttendArgs,
    q: [usize; 4],
    k: [usize; 4],
) -> Result<Found, CliError> {
    let has_table = reader.has("page_table");
    let exclude = [
        ("q_offsets", "--varlen", args.varlen.is_some()),
        ("kv_offsets", "--varlen", args.varlen.is_some()),
        ("page_table", "--paged", args.paged.is_some()),
        ("page_table", "kv_offsets", reader.has("kv_offsets")),
    ];
    if let Some((name, other, _)) = exclude.into_iter().find(|(name, _, given)| *given && reader.has(name)) {
        return Err(reader.error(name, &format!("and {other} exclude each other")));
    }
    let query_offsets =
        optional(reader, "q_offsets", |reader| numbers(reader, "q_offsets", None, q[2], "the rows of q"))?;
    let key_offsets =
        optional(reader, "kv_offsets", |reader| numbers(reader, "kv_offsets", None, k[2], "the rows of k"))?;
    let of_option = args.varlen.as_ref().map(|lengths| offsets(&lengths.get()));
    let queries = query_offsets.or_else(|| of_option.clone());
    if args.problem.layout == Some(Layout::Thd) && queries.is_none() {
        return Err(reader.error("q_offsets", "is missing: --layout thd needs it, or --varlen"));
    }
    let sequences = queries.as_ref().map_or(q[0], |offsets| offsets.len().saturating_sub(1));
    let lengths = |reader: &mut Reader<'_>, most, what| numbers(reader, "kv_lengths", Some(sequences), most, what);
    if has_table {
        let table = page_table(reader, sequences, k[0])?;
        let most = table.per_sequence.saturating_mul(k[2]);
        let lengths = lengths(reader, most, "the rows of its pages")?;
        let keys = KeyRows::Paged(PageTable { rows: k[2], lengths, ..table });
        return Ok(Found { arrangement: Arrangement { queries, keys }, key_lengths: None });
    }
    let key_lengths = optional(reader, "kv_lengths", |reader| lengths(reader, k[2], "the keys of k"))?;
    let keys = key_offsets.or(of_option).map_or(KeyRows::Padded, KeyRows::Packed);
    Ok(Found { arrangement: Arrangement { queries, keys }, key_lengths })
}

/// A list with one number for each sequence if there are so many, from 0 to `most`.
fn numbers(
    reader: &mut Reader<'_>,
    name: &'static str,
    count: Option<usize>,
    most: usize,
    what: &str,
) -> Result<Vec<usize>, CliError> {
    let tensor = reader.whole(name)?;
    match count {
        Some(count) => {
            let reason =
                if name == "kv_lengths" { "one for each batch entry or sequence" } else { "one for each sequence" };
            expect(reader, name, &tensor.shape, &[&[count]], reason)?;
        }
        None if tensor.shape.len() != 1 => {
            let shape = &tensor.shape;
            return Err(reader.error(name, &format!("has shape {shape:?}, but 1 dimension is expected")));
        }
        None => {}
    }
    let number = |(i, number): (usize, &i64)| {
        let valid = usize::try_from(*number).ok().filter(|number| *number <= most);
        let wrong = || reader.error(name, &format!("has {number} at [{i}], but 0 to {most} ({what}) is expected"));
        valid.ok_or_else(wrong)
    };
    tensor.data.iter().enumerate().map(number).collect()
}

/// The table alone. Entries that are no page stand for none: whether keys lie there is for the library to say.
fn page_table(reader: &mut Reader<'_>, sequences: usize, pages: usize) -> Result<PageTable, CliError> {
    let Tensor { data, shape } = reader.whole("page_table")?;
    let per_sequence = match shape[..] {
        [found, per_sequence] if found == sequences => per_sequence,
        _ => {
            let what = format!("has shape {shape:?}, but [{sequences}, pages] is expected (a row for each sequence)");
            return Err(reader.error("page_table", &what));
        }
    };
    let page = |page: &i64| u32::try_from(*page).ok().filter(|page| (*page as usize) < pages).unwrap_or(u32::MAX);
    Ok(PageTable { table: data.iter().map(page).collect(), per_sequence, rows: 0, lengths: Vec::new() })
}

/// Moves k and v to pages of `rows` rows in random order.
pub(super) fn paged(
    rows: usize,
    from: &Arrangement,
    key_lengths: Option<Vec<usize>>,
    tensors: [&Array; 3],
) -> Result<([Array; 2], Arrangement), CliError> {
    let [q, k, v] = tensors;
    // The library finds what does not fit before anything is looked for in its place.
    let options = Attention::softmax();
    let options = key_lengths.as_ref().map_or(options.clone(), |lengths| options.key_lengths(lengths));
    let problem =
        Problem::ragged(&options, tensor("q", q)?, from.queries(), tensor("k", k)?, tensor("v", v)?, from.keys())?;
    let lengths = problem.sequences().iter().map(|sequence| sequence.keys).collect();
    let (table, pages) = PageTable::shuffled(lengths, rows)?;
    // Where each row of each page comes from.
    let mut sources = vec![None; pages * rows];
    for (sequence, length) in table.lengths.iter().enumerate() {
        for key in 0..*length {
            let page = table.table[sequence * table.per_sequence + key / rows] as usize;
            sources[page * rows + key % rows] = Some(from.place(sequence, key));
        }
    }
    let moved = [gathered("k", k, &sources, [pages, rows])?, gathered("v", v, &sources, [pages, rows])?];
    Ok((moved, Arrangement { queries: from.queries.clone(), keys: KeyRows::Paged(table) }))
}

/// The rows of an array by batch entry and row, as `[pages, heads, rows, columns]` in the same order of memory.
fn gathered(
    name: &'static str,
    array: &Array,
    sources: &[Option<[usize; 2]>],
    pages: [usize; 2],
) -> Result<Array, CliError> {
    let ([_, heads, _, columns], order) = (array.shape(), array.order());
    let elements = match tensor(name, array)? {
        AnyTensor::F32(view) => Elements::F32(rows_of(view, sources, pages, order)),
        AnyTensor::F16(view) => Elements::F16(rows_of(view, sources, pages, order)),
        AnyTensor::Bf16(view) => Elements::Bf16(rows_of(view, sources, pages, order)),
        AnyTensor::Int8(quantised) => {
            let [batch, heads, rows, _] = quantised.data.shape();
            // Scales may stand for several rows.
            let scales = quantised
                .scales
                .broadcast([batch, heads, rows, 1])
                .map_err(|_| CliError::Input("scales do not fit the rows of k and v".to_owned()))?;
            Elements::Int8(rows_of(quantised.data, sources, pages, order), rows_of(scales, sources, pages, order))
        }
        other => return Err(CliError::Failed(format!("no pages of {}", other.dtype()))),
    };
    Ok(Array::new(elements, [pages[0], heads, pages[1], columns], order))
}

fn rows_of<T: Copy + Default>(
    view: View<'_, T>,
    sources: &[Option<[usize; 2]>],
    [pages, rows]: [usize; 2],
    order: Order,
) -> Vec<T> {
    let [_, heads, _, columns] = view.shape();
    let mut elements = Vec::with_capacity(sources.len() * heads * columns);
    let mut push = |page: usize, head: usize, row: usize| match sources[page * rows + row] {
        Some([batch, row]) => elements.extend_from_slice(view.row([batch, head, row])),
        None => elements.extend(std::iter::repeat_n(T::default(), columns)),
    };
    for page in 0..pages {
        match order {
            Order::HeadsFirst => (0..heads).for_each(|head| (0..rows).for_each(|row| push(page, head, row))),
            Order::RowsFirst => (0..rows).for_each(|row| (0..heads).for_each(|head| push(page, head, row))),
        }
    }
    elements
}
