//! Which blocks of keys a few rows can do without.
//!
//! The keys of few rows are split into spans, and the largest score of a row lies in one of them: bounds within a span leave out
//! little. So a survey of all keys comes before the spans:
//!
//! ```text
//! for each row
//!     scores of the centres of all blocks     a 64th of all products, and of the bytes of K
//!     scores of the best block's keys         the largest of them is one that the row's largest does not fall below
//!     the blocks whose bounds reach it are wanted
//! ```
//!
//! What a row wants depends on its query and the keys that it sees, and on nothing else. Sums of weights keep a row from keys that
//! it does not want, as from masked ones, even where other rows want them: its bits do not depend on these.

use std::ops::Range;

use regard_simd::{Element, Op, Simd, bf16, f16};

use super::args::{QueryRow, Unit};
use super::block::below;
use super::form::Form;
use super::tiles::Tiles;
use super::{Group, KeyBlock, Rows};
use crate::dots::four_dots;
use crate::index::{HeadIndex, INDEX_BLOCK, query_norm};
use crate::lanes::pack::{Pack, Places, Unpack};
use crate::lanes::scores::Scores;
use crate::lanes::streams::Streams;
use crate::source::Widen;
use crate::tensor::Dtype;
use crate::weighting::Kind;

/// The part of all blocks that a row may want at most, and all rows together if they select; one that wants more gets all. To find
/// out which they are costs a few hundredths, and going from one to the next too. (15 rows of hard attention, 32768 keys in clusters
/// as wide as 0.7 of their distance: 1.13 times as fast with an index if they may want 0.9, and 0.97 if 0.5.)
const MOST_WANTED: f64 = 0.75;

/// The same before its best block was looked at: from here on that does not help.
const HOPELESS: f64 = 0.98;

impl<'a, F: Form, T: Tiles> Rows<'a, F, T> {
    /// The first key from `start` on that lies in a block which some row wants; `end` if there is none.
    pub(super) fn wanted_from(&self, start: usize, end: usize) -> usize {
        let Some(wanted) = self.unit.wanted else { return start };
        let blocks = start.min(end) / INDEX_BLOCK..end.div_ceil(INDEX_BLOCK);
        blocks.into_iter().find(|block| wanted[*block] != 0).map_or(end, |block| start.max(block * INDEX_BLOCK))
    }

    /// One past the last of the keys `first..end` to be looked at together.
    pub(super) fn wanted_until(&self, first: usize, end: usize) -> usize {
        let Some(wanted) = self.unit.wanted else { return end };
        let mut blocks = first / INDEX_BLOCK..end.div_ceil(INDEX_BLOCK);
        if self.is_weighted() {
            // A block is summed on its own: it must not fall to pieces.
            let last = blocks.rfind(|block| wanted[*block] != 0);
            return last.map_or(end, |last| end.min((last + 1) * INDEX_BLOCK));
        }
        blocks.find(|block| wanted[*block] == 0).map_or(end, |block| end.min(block * INDEX_BLOCK))
    }

    /// Where to look on after a block.
    pub(super) fn after(&self, block: KeyBlock) -> usize {
        if self.unit.wanted.is_some() && !self.is_weighted() {
            return block.first + block.keys;
        }
        let key_block = self.unit.key_block;
        (block.first / key_block + 1) * key_block
    }

    /// Takes what rows of a group may not be given from what they see of a block. Gives whether there is such; none if
    /// nothing is left.
    pub(super) fn hide(&self, group: Group<'_>, keys: KeyBlock, visible: &mut [u64]) -> Option<bool> {
        let Some(wanted) = self.unit.wanted.filter(|_| self.is_weighted()) else { return Some(false) };
        let (step_keys, end) = (group.step_keys, keys.first + keys.keys);
        let all = below(group.rows.len());
        let (mut some, mut every) = (0, all);
        for block in keys.first / INDEX_BLOCK..end.div_ceil(INDEX_BLOCK) {
            let rows = wanted[block] >> group.first & all;
            some |= rows;
            every &= rows;
            if rows != all {
                // Blocks of the index start with a step, as those of the kernel do.
                let from = (block * INDEX_BLOCK).max(keys.first) - keys.first;
                let to = ((block + 1) * INDEX_BLOCK).min(end) - keys.first;
                let lanes: u64 = (0..step_keys).map(|g| rows << (g * (T::LANES / step_keys))).sum();
                visible[from / step_keys..to.div_ceil(step_keys)].iter_mut().for_each(|word| *word &= lanes);
            }
        }
        (some != 0).then_some(every != all)
    }

    /// Whether values are added by weights, and not chosen.
    pub(super) fn is_weighted(&self) -> bool {
        self.unit.weighting.functions.kind == Kind::Weighted
    }
}

/// f32 that a [`Survey`] works in.
pub(crate) fn survey_len(rows: usize, d: usize, blocks: usize) -> usize {
    let columns = rows.saturating_add(INDEX_BLOCK + MOST_LANES).saturating_mul(d);
    let scores = rows.saturating_add(MOST_LANES).saturating_mul(blocks.saturating_add(SPARE));
    columns.saturating_add(scores).saturating_add(MOST_LANES)
}

/// The most lanes of a vector.
const MOST_LANES: usize = 16;

/// Rows from which on their scores with centres are computed in lanes, a row each. Fewer are cheaper on their own, columns in lanes.
const IN_LANES_FROM: usize = 4;

/// What vectors may read or write past the end of an array.
const SPARE: usize = 16;

/// Finds out which blocks the rows of a call want. Gives false if they had better take all.
pub(crate) struct Survey<'a> {
    /// Its span is all keys.
    pub(crate) unit: &'a Unit<'a>,
    pub(crate) index: HeadIndex<'a>,
    /// See [`crate::lanes::prune::Prune::margin`].
    pub(crate) margin: f32,
    /// [`survey_len`] f32.
    pub(crate) scratch: *mut f32,
    /// For each block, one bit for each row that wants it: written.
    pub(crate) wanted: &'a mut [u64],
}

/// What is known of a row.
struct Row {
    /// Its place in the call.
    index: usize,
    /// An upper bound of the norm of its query.
    norm: f32,
    /// Multiplies its scores, for sums of weights.
    gain: f32,
    /// `[block]`: the scores of the centres.
    scores: *const f32,
    /// The blocks of which it sees some key.
    some: Range<usize>,
    /// The best of those of which it sees all keys, and a score that its largest one does not fall below; none if there is nothing
    /// to be said.
    best: Option<(usize, f32)>,
}

impl Op for Survey<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> bool {
        let unit = self.unit;
        let (rows, d, blocks) = (unit.rows.len(), unit.d, self.index.upper.len());
        let queries = self.scratch;
        let keys = queries.wrapping_add(rows * d);
        let scores = keys.wrapping_add(INDEX_BLOCK * d);
        let spare = scores.wrapping_add(rows * (blocks + SPARE));
        let selects = unit.weighting.functions.kind != Kind::Weighted;
        for (index, row) in unit.rows.iter().enumerate() {
            // SAFETY: the scratch has room for the queries of all rows.
            unsafe { self.widen(row, queries.add(index * d)) };
        }
        // SAFETY: and for their scores, and for what it takes to turn them.
        unsafe {
            // Selections of which one wants all look at all: where there is nothing to leave out, the first one says so.
            let first = if selects { 1 } else { rows };
            self.centres(s, queries, first, scores, spare);
            if first < rows {
                if self.is_hopeless(s, &self.know(s, 0, queries, scores)) {
                    return false;
                }
                self.centres(s, queries, rows, scores, spare);
            }
        }
        let most = if selects { MOST_WANTED * blocks as f64 } else { f64::INFINITY };
        let mut prunes = false;
        self.wanted.fill(0);
        for index in 0..rows {
            // SAFETY: as above, and for the keys of a block.
            prunes |= unsafe {
                let row = self.know(s, index, queries, scores);
                self.row(s, &row, queries.add(index * d), keys)
            };
            if selects && self.wanted.iter().filter(|rows| **rows != 0).count() as f64 > most {
                return false;
            }
        }
        prunes
    }
}

impl Survey<'_> {
    /// What is known of row `index`.
    ///
    /// # Safety
    /// `queries` has its query, and `scores` its scores.
    #[inline(always)]
    unsafe fn know<S: Simd>(&self, s: S, index: usize, queries: *const f32, scores: *const f32) -> Row {
        let query = &self.unit.rows[index];
        let gain = self.unit.gain(&self.unit.factors(query));
        let seen = self.unit.band.visible(query.query, self.unit.keys);
        let some = seen.start / INDEX_BLOCK..seen.end.div_ceil(INDEX_BLOCK);
        let last = if seen.end == self.index.keys { some.end } else { seen.end / INDEX_BLOCK };
        let whole = seen.start.div_ceil(INDEX_BLOCK)..last;
        let some = if seen.is_empty() { 0..0 } else { some };
        // SAFETY: the caller's contract.
        unsafe {
            let norm = self.norm(s, queries.add(index * self.unit.d));
            let scores = scores.add(index * (self.index.upper.len() + SPARE));
            let row = Row { index, norm, gain, scores, some, best: None };
            Row { best: self.best(s, &row, whole), ..row }
        }
    }

    /// Whether a row wants all that it sees, and no better bound would help.
    ///
    /// # Safety
    /// There is a score for each block.
    #[inline(always)]
    unsafe fn is_hopeless<S: Simd>(&self, s: S, row: &Row) -> bool {
        let Some((_, low)) = row.best else { return !row.some.is_empty() };
        // SAFETY: the caller's contract.
        unsafe { self.count(s, row, low) >= HOPELESS * row.some.len() as f64 }
    }

    /// Finds out which blocks a row wants. Gives whether it is not all of them.
    ///
    /// # Safety
    /// `q` is its query, and `keys` has room for a block.
    #[inline(always)]
    unsafe fn row<S: Simd>(&mut self, s: S, row: &Row, q: *const f32, keys: *mut f32) -> bool {
        // SAFETY: the caller's contract; there is a score for each block.
        unsafe {
            if let Some((block, low)) = row.best
                && !self.is_hopeless(s, row)
            {
                let low = low.max(self.largest(s, row, q, block, keys));
                if self.count(s, row, low) <= MOST_WANTED * row.some.len() as f64 {
                    self.mark(s, row, low);
                    return true;
                }
            }
        }
        for rows in &mut self.wanted[row.some.clone()] {
            *rows |= 1 << row.index;
        }
        false
    }

    /// Writes a query as f32, its sign turned where the kernel does so.
    ///
    /// # Safety
    /// There is room for it.
    unsafe fn widen(&self, row: &QueryRow, to: *mut f32) {
        let unit = self.unit;
        // SAFETY: the caller's contract; a row has `d` elements.
        let q = unsafe { std::slice::from_raw_parts_mut(to, unit.d) };
        match unit.q_dtype {
            // SAFETY: as above.
            Dtype::F32 => unsafe { widen(row.q.cast::<f32>(), q) },
            // SAFETY: as above.
            Dtype::F16 => unsafe { widen(row.q.cast::<f16>(), q) },
            // SAFETY: as above.
            Dtype::Bf16 => unsafe { widen(row.q.cast::<bf16>(), q) },
            Dtype::Int8 => unreachable!("queries are not quantised"),
        }
        if unit.turned() {
            q.iter_mut().for_each(|x| *x = -*x);
        }
    }

    /// An upper bound of the norm of a query.
    ///
    /// # Safety
    /// `q` is one.
    #[inline(always)]
    unsafe fn norm<S: Simd>(&self, s: S, q: *const f32) -> f32 {
        let (d, k) = (self.unit.d, &self.unit.k);
        // SAFETY: the caller's contract.
        let [square, ..] = unsafe { four_dots(s, q, [q; 4], d) };
        let norm = query_norm(square, d, self.index.largest);
        // A key's scale is multiplied last, and enlarges what underflowed before.
        if k.dtype == Dtype::Int8 && norm < SMALLEST { f32::INFINITY } else { norm }
    }

    /// The scores of the centres of all blocks with the first `rows` queries, row after row, with [`SPARE`] elements between.
    ///
    /// # Safety
    /// There is room for them, and in `spare` for [`MOST_LANES`] queries and their scores.
    #[inline(always)]
    unsafe fn centres<S: Simd>(&self, s: S, queries: *const f32, rows: usize, scores: *mut f32, spare: *mut f32) {
        let (d, blocks) = (self.unit.d, self.index.upper.len());
        let (centres, stride) = (self.index.centres.as_ptr(), blocks + SPARE);
        if rows < IN_LANES_FROM {
            for row in 0..rows {
                // SAFETY: the caller's contract.
                unsafe { dots(s, queries.add(row * d), centres, [blocks, d, d], scores.add(row * stride)) };
            }
            return;
        }
        let lanes = S::LANES;
        let turned = spare.wrapping_add(MOST_LANES * d);
        let ones = [1.0; MOST_LANES];
        for first in (0..rows).step_by(lanes) {
            let (q, out) = (queries.wrapping_add(first * d), scores.wrapping_add(first * stride));
            let (places, rows) = (Places::CONSECUTIVE, (rows - first).min(lanes));
            s.vectorize(Pack::<f32> { q, q_stride: d, places, rows, d, packed: spare, lanes, negate: false });
            s.vectorize(Scores::<1, 8, false, false, false> {
                q: spare,
                k: centres,
                k_stride: d,
                scores: turned,
                max: std::ptr::null_mut(),
                lanes,
                keys: blocks,
                full: blocks,
                d,
                streams: Streams::NONE,
            });
            let factor = ones.as_ptr();
            s.vectorize(Unpack::<f32> { turned, factor, lanes, out, out_stride: stride, places, rows, d_v: blocks });
        }
    }

    /// See [`Row::best`].
    ///
    /// # Safety
    /// There is a score for each block.
    #[inline(always)]
    unsafe fn best<S: Simd>(&self, s: S, row: &Row, whole: Range<usize>) -> Option<(usize, f32)> {
        let norm = s.splat(-row.norm);
        let mut best = None;
        let mut largest = f32::NEG_INFINITY;
        for block in whole.clone().step_by(S::LANES) {
            let len = (whole.end - block).min(S::LANES);
            let lower = self.index.lower.as_ptr().wrapping_add(block);
            let mut lanes = [f32::NEG_INFINITY; 16];
            // SAFETY: the caller's contract; the index has a bound for each block, and a vector at most 16 lanes.
            unsafe {
                let low = s.mul_add(norm, s.load_first(lower, len), s.load_first(row.scores.add(block), len));
                if !s.any(s.gt(low, s.splat(largest))) {
                    continue;
                }
                s.store(lanes.as_mut_ptr(), low);
            }
            for (i, low) in lanes[..len].iter().enumerate() {
                if *low > largest {
                    (best, largest) = (Some(block + i), *low);
                }
            }
        }
        best.map(|block| (block, largest - f32::MIN_POSITIVE))
    }

    /// One bit for each of the blocks from `block` on, a vector of them at most, that a row wants of which this is known: its largest
    /// score does not fall below `low`.
    ///
    /// # Safety
    /// There is a score for each block.
    #[inline(always)]
    unsafe fn wants<S: Simd>(&self, s: S, row: &Row, block: usize, low: f32) -> u64 {
        let len = (row.some.end - block).min(S::LANES);
        let upper = self.index.upper.as_ptr().wrapping_add(block);
        // SAFETY: the caller's contract; the index has a bound for each block.
        let (score, upper) = unsafe { (s.load_first(row.scores.add(block), len), s.load_first(upper, len)) };
        let high = s.mul_add(s.splat(row.norm), upper, score);
        let below = s.sub(s.splat(low), s.add(high, s.splat(f32::MIN_POSITIVE)));
        let below = if self.margin > 0.0 { s.mul(below, s.splat(row.gain)) } else { below };
        // Where there is NaN, the block is wanted.
        !s.mask_to_bits(s.gt(below, s.splat(self.margin))) & ((1 << len) - 1)
    }

    /// How many blocks a row wants.
    ///
    /// # Safety
    /// As for [`Self::wants`].
    #[inline(always)]
    unsafe fn count<S: Simd>(&self, s: S, row: &Row, low: f32) -> f64 {
        let mut count = 0;
        for block in row.some.clone().step_by(S::LANES) {
            // SAFETY: the caller's contract.
            count += unsafe { self.wants(s, row, block, low) }.count_ones();
        }
        f64::from(count)
    }

    /// Marks the blocks that a row wants.
    ///
    /// # Safety
    /// As for [`Self::wants`].
    #[inline(always)]
    unsafe fn mark<S: Simd>(&mut self, s: S, row: &Row, low: f32) {
        for block in row.some.clone().step_by(S::LANES) {
            // SAFETY: the caller's contract.
            let mut wanted = unsafe { self.wants(s, row, block, low) };
            while wanted != 0 {
                self.wanted[block + wanted.trailing_zeros() as usize] |= 1 << row.index;
                wanted &= wanted - 1;
            }
        }
    }

    /// A score that the largest one of a block, which has bounds, does not fall below.
    ///
    /// # Safety
    /// `q` is the query of the row, and `keys` has room for a block.
    #[inline(always)]
    unsafe fn largest<S: Simd>(&self, s: S, row: &Row, q: *const f32, block: usize, keys: *mut f32) -> f32 {
        let (source, d) = (&self.unit.k, self.unit.d);
        let first = block * INDEX_BLOCK;
        let count = INDEX_BLOCK.min(self.index.keys - first);
        let (k, stride) = match source.in_place(first, count) {
            Some(k) => (k, source.row_stride()),
            None => {
                s.vectorize(Widen { source, first, rows: count, columns: d, to: keys });
                (keys.cast_const(), d)
            }
        };
        let mut scores = [0.0; INDEX_BLOCK + SPARE];
        // SAFETY: the caller's contract, and there is room for the scores.
        unsafe { dots(s, q, k, [count, d, stride], scores.as_mut_ptr()) };
        let largest = scores[..count].iter().fold(f32::NEG_INFINITY, |largest, score| largest.max(*score));
        // The kernel adds up in another order. Half of this is what each of both may be off.
        let slack = (d as f32 + 16.0) * f32::EPSILON * row.norm * self.index.largest;
        largest - (slack + f32::MIN_POSITIVE)
    }
}

/// Queries of norms below this have no bounds where keys have scales.
const SMALLEST: f32 = 1e-30;

/// How far ahead centres and keys are asked for, in f32: they come from memory.
const AHEAD: usize = 1024;

/// # Safety
/// `from` has the elements of `to`.
unsafe fn widen<E: Element>(from: *const E, to: &mut [f32]) {
    for (c, to) in to.iter_mut().enumerate() {
        // SAFETY: the caller's contract.
        *to = unsafe { *from.add(c) }.widen();
    }
}

/// The scalar products of `q` with `rows` rows of `d` columns, `stride` apart. Up to three more may be written.
///
/// # Safety
/// The rows exist, and there is room for the products.
#[inline(always)]
unsafe fn dots<S: Simd>(s: S, q: *const f32, k: *const f32, [rows, d, stride]: [usize; 3], to: *mut f32) {
    for row in (0..rows).step_by(4) {
        for i in 4..8 {
            let ahead = k.wrapping_add((row + i) * stride + AHEAD);
            for line in (0..d).step_by(16) {
                s.prefetch_far(ahead.wrapping_add(line));
            }
        }
        // SAFETY: the caller's contract. Rows past the last one repeat it.
        unsafe {
            let four = [0, 1, 2, 3].map(|i| k.add((row + i).min(rows - 1) * stride));
            to.add(row).cast::<[f32; 4]>().write(four_dots(s, q, four, d));
        }
    }
}
