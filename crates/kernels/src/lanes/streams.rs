//! What is asked for ahead of its use, while the score product computes.
//!
//! The value product asks for nothing. To have it ask for the keys of the next block, a line with every 16 multiply-adds, shared out
//! among up to four sub-tiles, cost 16 and 32 queries a twentieth on a Xeon with AMX (8 heads, 8192 keys, d 128, f32), changed
//! nothing for 64, and gained 128 a twenty-fifth.
//!
//! Nor does it help there that both products ask a product ahead (values with the scores of their block, the next keys with values, from
//! span to span), in the order of memory, into the second level, spread over up to four sub-tiles: 16 to 64 queries change by -10 to
//! +5 % with key blocks of 384, and a prefill loses 5 % by the code in its loops. With key blocks of 96, whose weights leave the first
//! level to values, 32 queries gain a tenth to a seventh by it, and a prefill loses a tenth. What is left is not understood: the same
//! loops in C, asked for like that, take 1.25 times what they take from the second level, and these 1.5 times.

use regard_simd::Simd;

use crate::source::Source;
use crate::tensor::Dtype;

/// f32, or pairs of bf16, of a cache line.
pub(crate) const LINE: usize = 16;

/// Asks for the line at `p`, which may point anywhere; `FAR` into the second-level cache, and not into the first.
///
/// Far for a single vector of lanes, which waits for memory: at 16 queries and 8192 keys, d 128, Zen 4 reaches 0.76 of the peak
/// so and 0.56 with near ones, as its first level can wait for few lines at a time. Near for several vectors, which take longer
/// over a key: 0.84 against 0.78 at 32 queries. Keys near and values far, or keys both ways, lie between.
#[inline(always)]
pub(crate) fn ask<S: Simd, const FAR: bool>(s: S, p: *const u8) {
    if FAR {
        s.prefetch_far(p.cast());
    } else {
        s.prefetch(p.cast());
    }
}

/// Rows that are needed soon: one is asked for with each key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream<'a> {
    /// First row. It may lie anywhere, as may the others.
    data: *const u8,
    /// Bytes from a row to the next.
    stride: usize,
    /// Bytes of a row for every [`LINE`] columns of the product.
    line: usize,
    /// Number of rows. A few more may be asked for, which does no harm.
    rows: usize,
    /// Where the rows lie on pages: the source, and the first row.
    pages: Option<(&'a Source<'a>, usize)>,
}

impl<'a> Stream<'a> {
    /// No rows.
    pub(crate) const NONE: Self = Self { data: std::ptr::null(), stride: 0, line: 0, rows: 0, pages: None };

    /// `rows` rows of a source from `first` on, of which `columns` go with [`LINE`] columns of the product.
    pub(crate) fn source(source: &'a Source<'a>, first: usize, rows: usize, columns: usize) -> Self {
        let run = source.run(first);
        Self {
            data: run.data,
            stride: source.row_bytes(),
            line: columns * source.dtype.bytes(),
            rows,
            pages: (run.rows < rows).then_some((source, first)),
        }
    }

    /// `rows` rows of a tensor, `row_bytes` apart, of which `columns` go with [`LINE`] columns of the product.
    pub(crate) fn rows(data: *const u8, row_bytes: usize, dtype: Dtype, rows: usize, columns: usize) -> Self {
        Self { data, stride: row_bytes, line: columns * dtype.bytes(), rows, pages: None }
    }

    /// The row `row`, and those after it that lie at the same distance.
    fn row(&self, row: usize) -> *const u8 {
        match self.pages {
            None => self.data.wrapping_add(row.wrapping_mul(self.stride)),
            Some((source, first)) => source.run(first + row).data,
        }
    }
}

/// Pairs of streams, one pair after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Streams<'a> {
    /// The pairs. In a pair, both streams have rows or neither has.
    pairs: [[Stream<'a>; 2]; 2],
    /// The key of the block that asks for the first rows.
    start: usize,
}

/// What one register tile asks for: two rows and those after them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) rows: [*const u8; 2],
    /// Bytes from a row to the next.
    pub(crate) strides: [usize; 2],
    /// Bytes for every [`LINE`] columns.
    pub(crate) lines: [usize; 2],
}

impl<'a> Streams<'a> {
    /// Nothing.
    pub(crate) const NONE: Self = Self { pairs: [[Stream::NONE; 2]; 2], start: 0 };

    /// The pairs of these streams. A stream without rows is replaced by the other one of its pair: asking twice costs
    /// nothing, and nowhere would be looked up in vain.
    pub(crate) fn new(pairs: [[Stream<'a>; 2]; 2]) -> Self {
        let pairs = pairs.map(|[a, b]| {
            if a.rows == 0 {
                [b, b]
            } else if b.rows == 0 {
                [a, a]
            } else {
                [a, b]
            }
        });
        Self { pairs, start: 0 }
    }

    /// The same, asked for by keys from `key` on.
    pub(crate) fn starting(self, key: usize) -> Self {
        Self { start: self.start + key, ..self }
    }

    /// Rows in all.
    pub(crate) fn rows(&self) -> usize {
        self.pairs[0][0].rows + self.pairs[1][0].rows
    }

    /// What `key` asks for.
    #[inline(always)]
    pub(crate) fn at(&self, key: usize) -> Option<Asked> {
        let row = self.start + key;
        let [first, second] = &self.pairs;
        let ([a, b], row) = if row < first[0].rows {
            (first, row)
        } else if row - first[0].rows < second[0].rows {
            (second, row - first[0].rows)
        } else {
            return None;
        };
        Some(Asked { rows: [a.row(row), b.row(row)], strides: [a.stride, b.stride], lines: [a.line, b.line] })
    }
}
