//! Where the queries and keys of each sequence lie: padded, packed, on pages, in rings.

use std::borrow::Cow;

use regard_kernels::tensor::{Quantised, Tensor};
use regard_kernels::view::View;

use crate::Error;

/// How the queries of sequences lie in q.
#[derive(Clone, Copy, Debug)]
pub enum Queries<'a> {
    /// Each batch entry of q is a sequence; all have as many queries as q has rows.
    Padded,
    /// One after the other in the rows of the only batch entry of q ([`View::thd`]): sequence `s` has the rows
    /// `offsets[s]..offsets[s + 1]`. One offset more than there are sequences; the first is 0, the last at most the
    /// rows of q. Rows past the last are left alone.
    Packed(&'a [usize]),
}

/// How the keys and values of sequences lie in k and v.
#[derive(Clone, Copy, Debug)]
pub enum Keys<'a> {
    /// Each batch entry of k and v holds the keys of a sequence: as many as they have rows, or as
    /// [`Attention::key_lengths`](crate::Attention::key_lengths) says.
    Padded,
    /// One after the other in the rows of the only batch entry of k and v, like [`Queries::Packed`].
    Packed(&'a [usize]),
    /// On pages.
    Paged(Pages<'a>),
    /// Each batch entry of k and v is the ring of a sequence: key `j` lies in row `j % rows of k`, where it overwrites
    /// key `j - rows of k`. Keys keep their numbers, for masks, ALiBi, bias and `n`.
    ///
    /// Every row must be kept from the keys that were overwritten by causal masks and windows; mask tensors do not
    /// count.
    Ring {
        /// Keys that each sequence ever had.
        lengths: &'a [usize],
    },
}

/// Keys and values on pages: k is `[pages, kv_heads, rows of a page, d]`, v `[pages, kv_heads, rows of a page, d_v]`,
/// with any strides between rows.
///
/// Sequences may share pages.
#[derive(Clone, Copy, Debug)]
pub struct Pages<'a> {
    /// `[sequences, pages_per_sequence]`: key `j` of sequence `s` is row `j % rows` of page
    /// `table[s * pages_per_sequence + j / rows]`. Entries past the last valid key may be anything.
    pub table: &'a [u32],
    /// Entries of the table from a sequence to the next.
    pub pages_per_sequence: usize,
    /// Valid keys of each sequence.
    pub lengths: &'a [usize],
}

/// The rows of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Batch entry of the queries, and of the keys unless there are pages.
    pub(crate) batch: usize,
    pub(crate) first_query: usize,
    pub(crate) queries: usize,
    /// First row in k and v; 0 if there are pages.
    pub(crate) first_key: usize,
    /// Keys, numbered from 0.
    pub(crate) keys: usize,
    /// Keys before this one are gone.
    pub(crate) oldest: usize,
}

/// The pages of all sequences.
#[derive(Clone, Debug)]
pub(crate) struct Table<'a> {
    pub(crate) entries: Cow<'a, [u32]>,
    /// Entries from a sequence to the next.
    pub(crate) stride: usize,
    pub(crate) ring: bool,
}

/// How k and v are stored, as far as plans care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Storage {
    Padded,
    Packed,
    Paged,
    Ring,
}

/// Where everything is.
#[derive(Clone, Debug)]
pub(crate) struct Placement<'a> {
    pub(crate) places: Vec<Place>,
    pub(crate) table: Option<Table<'a>>,
    pub(crate) storage: Storage,
    /// The most keys that a sequence in these tensors may have.
    pub(crate) most_keys: usize,
    /// Whether sequences may differ in size, so that the sizes of the tensors are not theirs.
    pub(crate) mixed: bool,
}

/// The most keys that a sequence may have: more than an index can name.
pub(crate) const MOST_KEYS: usize = u32::MAX as usize - 1;

impl Storage {
    /// The name, for plans.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Padded => "padded",
            Self::Packed => "packed",
            Self::Paged => "paged",
            Self::Ring => "ring",
        }
    }
}

/// Finds the rows of each sequence. `q` and `k` are the shapes of the tensors.
pub(crate) fn place<'a>(
    queries: Queries<'_>,
    keys: Keys<'a>,
    q: [usize; 4],
    k: [usize; 4],
) -> Result<Placement<'a>, Error> {
    let mut places = query_places(queries, q)?;
    let packed_queries = matches!(queries, Queries::Packed(_));
    let (sequences, rows) = (places.len(), k[2]);
    let reason = if packed_queries { "the sequences of q" } else { "the batch of q" };
    let batch = |expected, reason| {
        if k[0] == expected {
            return Ok(());
        }
        Err(Error::Dimension { tensor: "k", dimension: "batch", found: k[0], expected, reason })
    };
    // One page for each sequence: its batch entry.
    let own_page = |ring| -> Result<Table<'a>, Error> {
        // The bound is that of an index of a page; no memory has so many batch entries, but shapes without elements may.
        let most = u32::try_from(sequences).map_err(|_| Error::Length {
            list: "the sequences",
            found: sequences,
            expected: u32::MAX as usize,
            reason: "at most as many as an index can name",
        })?;
        Ok(Table { entries: (0..most).collect(), stride: 1, ring })
    };
    let (table, storage, most_keys) = match keys {
        Keys::Padded => {
            batch(sequences, reason)?;
            places.iter_mut().for_each(|place| place.keys = rows);
            // Packed queries are all in batch entry 0, and so would be their keys.
            let table = if packed_queries && sequences != 1 { Some(own_page(false)?) } else { None };
            (table, Storage::Padded, rows)
        }
        Keys::Packed(offsets) => {
            batch(1, "packed keys are in one batch entry")?;
            check_offsets("the offsets of the keys", offsets, Some(sequences), rows)?;
            for (place, bounds) in places.iter_mut().zip(offsets.windows(2)) {
                (place.first_key, place.keys) = (bounds[0], bounds[1] - bounds[0]);
            }
            (None, Storage::Packed, rows)
        }
        Keys::Paged(pages) => {
            check_pages(&pages, sequences, k)?;
            for (place, length) in places.iter_mut().zip(pages.lengths) {
                place.keys = *length;
            }
            let table = Table { entries: Cow::Borrowed(pages.table), stride: pages.pages_per_sequence, ring: false };
            (Some(table), Storage::Paged, pages.pages_per_sequence.saturating_mul(rows))
        }
        Keys::Ring { lengths } => {
            batch(sequences, reason)?;
            check_lengths("the lengths of the keys", lengths, sequences)?;
            for (sequence, (place, length)) in places.iter_mut().zip(lengths).enumerate() {
                if rows == 0 && *length > 0 {
                    return Err(Error::KeyLength { batch: sequence, length: *length, keys: 0 });
                }
                (place.keys, place.oldest) = (*length, length.saturating_sub(rows));
            }
            (Some(own_page(true)?), Storage::Ring, MOST_KEYS)
        }
    };
    if let Some(place) = places.iter().find(|place| place.keys > MOST_KEYS) {
        return Err(Error::TooManyKeys { keys: place.keys, max: MOST_KEYS });
    }
    let mixed = packed_queries || storage != Storage::Padded;
    Ok(Placement { places, table, storage, most_keys: most_keys.min(MOST_KEYS), mixed })
}

fn query_places(queries: Queries<'_>, [batch, _, rows, _]: [usize; 4]) -> Result<Vec<Place>, Error> {
    let none = Place { batch: 0, first_query: 0, queries: 0, first_key: 0, keys: 0, oldest: 0 };
    Ok(match queries {
        Queries::Padded => (0..batch).map(|batch| Place { batch, queries: rows, ..none }).collect(),
        Queries::Packed(offsets) => {
            if batch != 1 {
                let reason = "packed queries are in one batch entry";
                return Err(Error::Dimension { tensor: "q", dimension: "batch", found: batch, expected: 1, reason });
            }
            check_offsets("the offsets of the queries", offsets, None, rows)?;
            let place = |bounds: &[usize]| Place { first_query: bounds[0], queries: bounds[1] - bounds[0], ..none };
            offsets.windows(2).map(place).collect()
        }
    })
}

/// `sequences` is how many there must be, if that is known.
fn check_offsets(list: &'static str, offsets: &[usize], sequences: Option<usize>, rows: usize) -> Result<(), Error> {
    let expected = sequences.map_or(1, |sequences| sequences.saturating_add(1));
    if offsets.is_empty() || (sequences.is_some() && offsets.len() != expected) {
        let reason = "one more than there are sequences";
        return Err(Error::Length { list, found: offsets.len(), expected, reason });
    }
    let mut least = 0;
    for (index, found) in offsets.iter().copied().enumerate() {
        let most = if index == 0 { 0 } else { rows };
        if found < least || found > most {
            return Err(Error::Offset { list, index, found, least, most });
        }
        least = found;
    }
    Ok(())
}

fn check_lengths(list: &'static str, lengths: &[usize], expected: usize) -> Result<(), Error> {
    if lengths.len() == expected {
        return Ok(());
    }
    Err(Error::Length { list, found: lengths.len(), expected, reason: "one for each sequence of q" })
}

fn check_pages(pages: &Pages<'_>, sequences: usize, [count, _, rows, _]: [usize; 4]) -> Result<(), Error> {
    let Pages { table, pages_per_sequence, lengths } = *pages;
    check_lengths("the lengths of the keys", lengths, sequences)?;
    let expected = sequences.saturating_mul(pages_per_sequence);
    if table.len() != expected {
        let reason = "pages_per_sequence for each sequence of q";
        return Err(Error::Length { list: "the page table", found: table.len(), expected, reason });
    }
    for (sequence, length) in lengths.iter().copied().enumerate() {
        let keys = pages_per_sequence.saturating_mul(rows);
        if length > keys {
            return Err(Error::KeyLength { batch: sequence, length, keys });
        }
        // No rows hold no keys, so that there is something to divide by where there is a page to look at.
        let used = length.div_ceil(rows.max(1));
        let own = &table[sequence * pages_per_sequence..][..used];
        if let Some(page) = own.iter().position(|index| *index as usize >= count) {
            return Err(Error::Page { sequence, page, index: own[page], pages: count });
        }
    }
    Ok(())
}

/// The batch entry of a tensor that has one, repeated.
pub(crate) fn repeat_batch(tensor: Tensor<'_>, batch: usize) -> Tensor<'_> {
    fn repeat<T>(view: View<'_, T>, batch: usize) -> View<'_, T> {
        let [_, heads, rows, columns] = view.shape();
        view.broadcast([batch, heads, rows, columns]).expect("a batch of 1 can be repeated")
    }
    if tensor.shape()[0] != 1 || batch == 1 {
        return tensor;
    }
    match tensor {
        Tensor::F32(view) => repeat(view, batch).into(),
        Tensor::F16(view) => repeat(view, batch).into(),
        Tensor::Bf16(view) => repeat(view, batch).into(),
        Tensor::Int8(Quantised { data, scales }) => {
            Quantised { data: repeat(data, batch), scales: repeat(scales, batch) }.into()
        }
        other => unreachable!("no views of {}", other.dtype()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q: [usize; 4] = [1, 2, 10, 4];
    const K: [usize; 4] = [6, 2, 4, 4];

    fn paged<'a>(table: &'a [u32], lengths: &'a [usize]) -> Keys<'a> {
        Keys::Paged(Pages { table, pages_per_sequence: 2, lengths })
    }

    #[test]
    fn rows_of_packed_sequences() {
        let placement = place(Queries::Packed(&[0, 3, 3, 9]), Keys::Packed(&[0, 4, 5, 5]), Q, [1, 2, 8, 4]).unwrap();
        let rows: Vec<_> =
            placement.places.iter().map(|p| (p.batch, p.first_query, p.queries, p.first_key, p.keys)).collect();
        assert_eq!(rows, [(0, 0, 3, 0, 4), (0, 3, 0, 4, 1), (0, 3, 6, 5, 0)]);
        assert!(placement.table.is_none());
        assert_eq!(place(Queries::Packed(&[0]), Keys::Packed(&[0]), Q, [1, 2, 8, 4]).unwrap().places, []);
    }

    #[test]
    fn padded_keys_of_packed_queries_are_pages() {
        let placement = place(Queries::Packed(&[0, 1, 2, 3, 4, 5, 10]), Keys::Padded, Q, K).unwrap();
        let table = placement.table.unwrap();
        assert_eq!((&*table.entries, table.stride, table.ring), (&[0, 1, 2, 3, 4, 5][..], 1, false));
        assert!(placement.places.iter().all(|place| (place.batch, place.first_key, place.keys) == (0, 0, 4)));
    }

    #[test]
    fn offsets_ascend_from_zero_to_the_rows() {
        let error = |offsets: &[usize]| place(Queries::Packed(offsets), Keys::Padded, Q, K).unwrap_err();
        let list = "the offsets of the queries";
        assert_eq!(error(&[1, 2]), Error::Offset { list, index: 0, found: 1, least: 0, most: 0 });
        assert_eq!(error(&[0, 4, 3]), Error::Offset { list, index: 2, found: 3, least: 4, most: 10 });
        assert_eq!(error(&[0, 4, 11]), Error::Offset { list, index: 2, found: 11, least: 4, most: 10 });
        assert!(matches!(error(&[]), Error::Length { found: 0, expected: 1, .. }));
        // As many sequences of keys as of queries.
        let error = place(Queries::Packed(&[0, 4]), Keys::Packed(&[0, 1, 2]), Q, [1, 2, 8, 4]).unwrap_err();
        assert!(matches!(error, Error::Length { found: 3, expected: 2, .. }), "{error}");
        let error = place(Queries::Packed(&[0, 4]), Keys::Padded, Q, K).unwrap_err();
        assert!(matches!(error, Error::Dimension { tensor: "k", found: 6, expected: 1, .. }), "{error}");
        let error = place(Queries::Packed(&[0, 4]), Keys::Padded, [2, 2, 10, 4], K).unwrap_err();
        assert!(matches!(error, Error::Dimension { tensor: "q", found: 2, expected: 1, .. }), "{error}");
    }

    #[test]
    fn pages_of_valid_keys_exist() {
        let queries = Queries::Packed(&[0, 1, 2]);
        let error = |keys| place(queries, keys, Q, K).unwrap_err();
        assert!(place(queries, paged(&[5, 0, 1, 99], &[8, 4]), Q, K).is_ok());
        assert!(place(queries, paged(&[9, 9, 9, 9], &[0, 0]), Q, K).is_ok());
        let page = error(paged(&[5, 0, 1, 99], &[8, 5]));
        assert_eq!(page, Error::Page { sequence: 1, page: 1, index: 99, pages: 6 });
        assert_eq!(error(paged(&[0; 4], &[8, 9])), Error::KeyLength { batch: 1, length: 9, keys: 8 });
        assert!(matches!(error(paged(&[0; 3], &[8, 9])), Error::Length { list: "the page table", .. }));
        assert!(matches!(error(paged(&[0; 4], &[8])), Error::Length { found: 1, expected: 2, .. }));
    }

    #[test]
    fn rings_forget() {
        let q = [2, 2, 1, 4];
        let k = [2, 2, 4, 4];
        let placement = place(Queries::Padded, Keys::Ring { lengths: &[3, 11] }, q, k).unwrap();
        assert_eq!(
            placement.places.iter().map(|place| (place.keys, place.oldest)).collect::<Vec<_>>(),
            [(3, 0), (11, 7)]
        );
        assert!(placement.table.unwrap().ring);
        let error = place(Queries::Padded, Keys::Ring { lengths: &[0, 1] }, q, [2, 2, 0, 4]).unwrap_err();
        assert_eq!(error, Error::KeyLength { batch: 1, length: 1, keys: 0 });
    }
}
