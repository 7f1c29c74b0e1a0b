//! Sequences of different lengths, and where their rows lie.

use clap::Args;
use regard::{Keys, Pages, Queries};
use regard_tuner::inputs::Lengths;
use regard_tuner::stats::Random;

use crate::error::CliError;

/// The options that say that sequences differ in length, and how their keys are stored.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Sequences")]
pub(crate) struct SequenceArgs {
    /// Sequences of these lengths, packed one after the other: a list L1,L2,.. or uniform:LOW..HIGH:COUNT[@SEED], which
    /// draws COUNT lengths from LOW to HIGH. It says how many keys each has, and how many queries unless --queries does
    #[arg(long, value_name = "LENGTHS", conflicts_with_all = ["batch", "keys"])]
    pub(crate) varlen: Option<Lengths>,
    /// Put k and v on pages of ROWS rows, in random order
    #[arg(long, value_parser = page_rows, value_name = "ROWS")]
    pub(crate) paged: Option<usize>,
}

impl SequenceArgs {
    /// Whether nothing was said.
    pub(crate) fn are_none(&self) -> bool {
        self.varlen.is_none() && self.paged.is_none()
    }
}

/// Rows of a page: any number that makes sense.
pub(crate) fn page_rows(text: &str) -> Result<usize, String> {
    let rows = text.parse().ok().filter(|rows| (1..=1 << 16).contains(rows));
    rows.ok_or_else(|| "expected the rows of a page, from 1 to 65536".to_owned())
}

/// Where the rows of sequences lie in q, k and v.
#[derive(Clone, Debug)]
pub(crate) struct Arrangement {
    /// First rows of packed queries, and the end of the last; none if each batch entry of q is a sequence.
    pub(crate) queries: Option<Vec<usize>>,
    pub(crate) keys: KeyRows,
}

/// Where keys and values lie.
#[derive(Clone, Debug)]
pub(crate) enum KeyRows {
    /// Each batch entry of k and v is a sequence.
    Padded,
    /// The first row of each sequence, and the end of the last.
    Packed(Vec<usize>),
    /// On pages.
    Paged(PageTable),
}

/// The pages of each sequence.
#[derive(Clone, Debug)]
pub(crate) struct PageTable {
    /// `[sequences, per_sequence]`
    pub(crate) table: Vec<u32>,
    pub(crate) per_sequence: usize,
    /// Rows of a page.
    pub(crate) rows: usize,
    /// Keys of each sequence.
    pub(crate) lengths: Vec<usize>,
}

/// More pages than make sense; each takes some memory.
const MOST_PAGES: usize = 1 << 26;

impl Arrangement {
    /// Where the queries lie, for the library.
    pub(crate) fn queries(&self) -> Queries<'_> {
        self.queries.as_deref().map_or(Queries::Padded, Queries::Packed)
    }

    /// Where keys and values lie, for the library.
    pub(crate) fn keys(&self) -> Keys<'_> {
        match &self.keys {
            KeyRows::Padded => Keys::Padded,
            KeyRows::Packed(offsets) => Keys::Packed(offsets),
            KeyRows::Paged(PageTable { table, per_sequence, lengths, .. }) => {
                Keys::Paged(Pages { table, pages_per_sequence: *per_sequence, lengths })
            }
        }
    }

    /// Batch entry and row in k and v of a key of a sequence.
    pub(crate) fn place(&self, sequence: usize, key: usize) -> [usize; 2] {
        match &self.keys {
            KeyRows::Padded => [sequence, key],
            KeyRows::Packed(offsets) => [0, offsets[sequence] + key],
            KeyRows::Paged(PageTable { table, per_sequence, rows, .. }) => {
                [table[sequence * per_sequence + key / rows] as usize, key % rows]
            }
        }
    }
}

impl PageTable {
    /// Pages for so many keys of each sequence, in random order, and how many there are: one at least, as a cache has room
    /// before it has keys.
    ///
    /// # Errors
    /// [`CliError::Input`] if there are too many.
    pub(crate) fn shuffled(lengths: Vec<usize>, rows: usize) -> Result<(Self, usize), CliError> {
        /// Fixed, so that a command line always gives the same order.
        const SEED: u64 = 11;
        let pages: usize = lengths.iter().map(|length| length.div_ceil(rows)).sum();
        let per_sequence = lengths.iter().map(|length| length.div_ceil(rows)).max().unwrap_or(0);
        let entries = lengths.len().saturating_mul(per_sequence);
        if pages.max(entries) > MOST_PAGES {
            let many = pages.max(entries);
            return Err(CliError::Input(format!(
                "--paged {rows} takes {many} pages, but at most {MOST_PAGES} are possible"
            )));
        }
        let mut order: Vec<u32> = (0..pages as u32).collect();
        Random::new(SEED).shuffle(&mut order);
        let mut table = vec![u32::MAX; entries];
        let mut next = order.into_iter();
        for (sequence, length) in lengths.iter().enumerate() {
            let used = length.div_ceil(rows);
            table[sequence * per_sequence..][..used].iter_mut().zip(&mut next).for_each(|(entry, page)| *entry = page);
        }
        Ok((Self { table, per_sequence, rows, lengths }, pages.max(1)))
    }
}

/// First rows of sequences that lie one after the other, and the end of the last.
pub(crate) fn offsets(lengths: &[usize]) -> Vec<usize> {
    let ends = lengths.iter().scan(0_usize, |end, length| {
        *end = end.saturating_add(*length);
        Some(*end)
    });
    std::iter::once(0).chain(ends).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_used_once_and_in_no_order() {
        let (table, pages) = PageTable::shuffled(vec![40, 0, 7, 100], 4).unwrap();
        assert_eq!((pages, table.per_sequence), (10 + 2 + 25, 25));
        let mut used: Vec<u32> = table.table.iter().copied().filter(|page| *page != u32::MAX).collect();
        assert!(!used.is_sorted());
        used.sort_unstable();
        assert!(used.iter().copied().eq(0..37));
        let first = table.table[75] as usize;
        let arrangement = Arrangement { queries: None, keys: KeyRows::Paged(table) };
        assert_eq!(arrangement.place(3, 2), [first, 2]);
        assert!(PageTable::shuffled(vec![1 << 28; 2], 1).is_err());
    }

    #[test]
    fn rows_follow_each_other() {
        assert_eq!(offsets(&[3, 0, 4]), [0, 3, 3, 7]);
        assert_eq!(offsets(&[]), [0]);
        let arrangement = Arrangement { queries: None, keys: KeyRows::Packed(vec![0, 3, 7]) };
        assert_eq!(arrangement.place(1, 2), [0, 5]);
        assert_eq!(Arrangement { queries: None, keys: KeyRows::Padded }.place(1, 2), [1, 2]);
    }
}
