//! The rows kernel: few query rows, columns in lanes, K and V streamed once for all of them.
//!
//! One call takes the rows that share a KV head (all heads of a group, all tokens of a verification step) through spans of
//! its keys, one after the other:
//!
//! ```text
//! pack the queries, one group of rows at a time
//! for each key block
//!     for each few keys, and each group
//!         scores   q . k                         registers: rows x keys, lane by lane; sums over lanes 16 at a time
//!         sums = alpha sums + weights V          registers: rows x vectors of columns; see `block` for when
//!     for each group
//!         terms    scale of keys, soft-cap, bias, mask, maximum
//!         weigh    scores to weights, in place   the weighting's own code
//! at the end of a span, fold the lanes of each row into one state, and merge it with those before it
//! ```
//!
//! A vector of scores holds several keys for each row (16 for a single row, at 16 lanes): the weighting sees them as rows of
//! their own, with a maximum in common. No lane is idle in it, and no score needs a reduction of its own.
//!
//! A row's bits depend on its own visible keys, the block size, the level, and how many rows ride along: not on what these
//! are, its place among them, the order of pages, or the thread.

mod abreast;
mod accumulate;
#[cfg(target_arch = "x86_64")]
mod amx;
pub(crate) mod args;
mod ask;
mod block;
#[cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "aarch64")),
    allow(dead_code, reason = "no kernel of other levels is of pairs")
)]
mod dots;
mod finish;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "no kernel of other levels is of integers"))]
mod fixed;
pub(crate) mod form;
mod pack;
mod pieces;
pub(crate) mod prune;
mod scores;
pub(crate) mod scratch;
pub(crate) mod table;
mod terms;
pub(crate) mod tiles;

use std::marker::PhantomData;
use std::ops::Range;

use regard_simd::{Op, Simd};

use self::args::{QueryRow, Unit};
use self::block::Turn;
use self::form::Form;
use self::scratch::Layout;
use self::tiles::Tiles;

/// One call.
pub(crate) struct Rows<'a, F, T> {
    unit: &'a Unit<'a>,
    scratch: *mut f32,
    layout: Layout,
    /// The number of groups: as few as there can be.
    groups: usize,
    /// Rows of a group. All are of one size, as the order of summation depends on it: the last one begins with rows of the one
    /// before, which come out the same.
    group_rows: usize,
    /// Keys whose values are passed over, as often as it takes, before the next ones are.
    chunk_keys: usize,
    tiles: PhantomData<(F, T)>,
}

/// Some rows that share each load of K and V, and their arrays.
#[derive(Clone, Copy)]
struct Group<'a> {
    rows: &'a [QueryRow],
    /// Index of the group, and of its first row in the call.
    index: usize,
    first: usize,
    /// Keys of a step.
    step_keys: usize,
    queries: *mut f32,
    sums: *mut f32,
    block_sums: *mut f32,
    scores: *mut f32,
    visible: *mut u64,
    state: *mut f32,
    gain: *mut f32,
    shift: *mut f32,
    max: *mut f32,
    alpha: *mut f32,
    query_quanta: *mut f32,
    weight_quanta: *mut f32,
}

/// Keys of one block that some row sees.
#[derive(Clone, Copy)]
struct KeyBlock {
    /// The first key of the sequence; the keys before it in the block are as if they were masked.
    first: usize,
    keys: usize,
}

impl<F: Form, T: Tiles> Op for Rows<'_, F, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        const { assert!(T::LANES == S::LANES && S::LANES <= 16) };
        let _held = F::hold(T::LANES / self.group(0, 0).step_keys);
        for index in 0..self.groups {
            self.pack(s, self.group(index, 0));
            self.begin(self.group(index, 0));
        }
        let all = &self.unit.span;
        let mut turns = [Turn::new(0), Turn::new(1)];
        // The span whose sums are being added, and the groups of which some row does not see some key of it.
        let (mut span, mut masked) = (0, 0_u64);
        let mut block = self.block_from(all.start, all);
        let [mut last, mut next] = turns.each_mut();
        loop {
            self.open(next, block);
            self.products(s, next, last);
            let to = block.map_or(self.unit.spans(), |keys| self.unit.span_of(keys.first));
            if span < to {
                for done in span..to {
                    // A span in which no row sees a key counts like all others.
                    self.close(s, done, last.side, if done == span { masked } else { 0 });
                }
                (span, masked) = (to, 0);
                // To close may take a second look at the keys of a span.
                self.open(next, block);
            }
            let Some(keys) = block else { break };
            masked |= self.weigh(s, next);
            if !self.takes_turns() {
                self.open(last, None);
                self.products(s, last, next);
                self.open(next, None);
            }
            block = self.block_after(keys, all);
            (last, next) = (next, last);
        }
    }
}

impl<'a, F: Form, T: Tiles> Rows<'a, F, T> {
    /// `scratch` has `layout.len` f32, and is aligned to 64 bytes.
    pub(crate) fn new(unit: &'a Unit<'a>, scratch: *mut f32, layout: Layout) -> Self {
        let groups = unit.rows.len().div_ceil(T::MOST);
        let group_rows = unit.rows.len().div_ceil(groups.max(1));
        let chunk_keys = Self::chunk_keys(unit, group_rows);
        Self { unit, scratch, layout, groups, group_rows, chunk_keys, tiles: PhantomData }
    }

    /// A group with the scores of one side.
    #[inline(always)]
    fn group(&self, index: usize, side: usize) -> Group<'a> {
        let layout = &self.layout;
        let first = (index * self.group_rows).min(self.unit.rows.len() - self.group_rows);
        let end = first + self.group_rows;
        let at = |offset: usize| self.scratch.wrapping_add(offset + index * layout.group);
        Group {
            rows: &self.unit.rows[first..end],
            index,
            first,
            step_keys: T::keys_of_step(end - first),
            queries: at(layout.queries),
            sums: at(layout.sums),
            block_sums: at(layout.block_sums),
            scores: at(layout.scores + side * layout.side),
            visible: at(layout.visible).cast(),
            state: at(layout.state),
            gain: at(layout.gain),
            shift: at(layout.shift),
            max: at(layout.max),
            alpha: at(layout.alpha),
            query_quanta: at(layout.query_quanta),
            weight_quanta: at(layout.weight_quanta),
        }
    }

    /// The keys of `within` from the first to the last one that some row of the call sees.
    fn seen(&self, within: &Range<usize>) -> Range<usize> {
        let unit = self.unit;
        let (mut start, mut end) = (usize::MAX, 0);
        for row in unit.rows {
            let seen = unit.band.visible(row.query, unit.keys);
            if !seen.is_empty() {
                (start, end) = (start.min(seen.start), end.max(seen.end));
            }
        }
        start.max(within.start)..end.min(within.end)
    }

    /// The keys of `within` from `start` on that lie in one block. They start at a place where every group starts a pair of
    /// steps.
    fn block_from(&self, start: usize, within: &Range<usize>) -> Option<KeyBlock> {
        let seen = self.seen(within);
        let start = self.wanted_from(start.max(seen.start), seen.end);
        if start >= seen.end {
            return None;
        }
        let key_block = self.unit.key_block;
        let block_end = (start / key_block + 1) * key_block;
        let first = start / (2 * T::LANES) * (2 * T::LANES);
        let first = first.max(start / key_block * key_block);
        Some(KeyBlock { first, keys: self.wanted_until(start, block_end.min(seen.end)) - first })
    }

    fn block_after(&self, block: KeyBlock, within: &Range<usize>) -> Option<KeyBlock> {
        self.block_from(self.after(block), within)
    }

    /// Sets the rows of a group to what they are before any key.
    fn begin(&self, group: Group<'_>) {
        let unit = self.unit;
        let functions = unit.weighting.functions;
        let rows = group.rows.len();
        let row_lanes = T::LANES / group.step_keys;
        let width = unit.d_v.next_multiple_of(2 * T::LANES);
        // SAFETY: the arrays of the group are as the layout says, and the functions are of this level.
        unsafe {
            (functions.begin)(unit.weighting.data, group.state, T::LANES);
            group.sums.write_bytes(0, rows * width);
            for r in 0..row_lanes {
                // Lanes without a row repeat the last one: their results go nowhere.
                let factors = unit.factors(&group.rows[r.min(rows - 1)]);
                for g in 0..group.step_keys {
                    *group.gain.add(g * row_lanes + r) = unit.gain(&factors);
                    *group.shift.add(g * row_lanes + r) = factors.shift;
                }
            }
        }
    }
}
