//! The rows kernel: few query rows, columns in lanes, K and V streamed once for all of them.
//!
//! One call takes the rows that share a KV head (all heads of a group, all tokens of a verification step) through a span of
//! keys:
//!
//! ```text
//! pack the queries, one group of rows at a time
//! for each key block
//!     for each group
//!         scores   q . k                         registers: rows x keys, lane by lane; sums over lanes 16 at a time
//!         terms    scale of keys, soft-cap, bias, mask, maximum
//!         weigh    scores to weights, in place   the weighting's own code
//!     for each group
//!         sums = alpha sums + weights V          registers: rows x vectors of columns
//! fold the lanes of each row into one state
//! ```
//!
//! A vector of scores holds several keys for each row (16 for a single row, at 16 lanes): the weighting sees them as rows of
//! their own, with a maximum in common. No lane is idle in it, and no score needs a reduction of its own.
//!
//! A row's bits depend on its own visible keys, the block size, the level, and how many rows ride along: not on what these
//! are, its place among them, the order of pages, or the thread.

mod accumulate;
pub(crate) mod args;
#[cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "aarch64")),
    allow(dead_code, reason = "no kernel of other levels is of pairs")
)]
mod dots;
mod finish;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "no kernel of other levels is of integers"))]
mod fixed;
pub(crate) mod form;
mod pieces;
mod scores;
pub(crate) mod scratch;
pub(crate) mod table;
mod terms;
pub(crate) mod tiles;

use std::marker::PhantomData;

use regard_simd::{Element, Op, Simd, bf16, f16};

use self::accumulate::AccumulateArgs;
use self::args::{QueryRow, Unit};
use self::form::{Form, Weights};
use self::pieces::Pieces;
use self::scores::ScoreArgs;
use self::scratch::Layout;
use self::terms::{Spread, Terms};
use self::tiles::Tiles;
use crate::lanes::Segment;
use crate::source::Source;
use crate::tensor::Dtype;
use crate::weighting::{Block, Step};

/// How far ahead memory is asked for, in bytes. On Zen 4, one or two rows are fastest with 2 to 4 KiB, and 16 cost a tenth; more
/// rows, which take longer over a key, are fastest with 8 KiB, and 2 cost eight of them a third. Halves gain a twentieth from
/// 8 KiB at any number of rows, where int8 loses a tenth.
fn ahead_bytes(rows: usize, dtype: Dtype) -> usize {
    let halves = matches!(dtype, Dtype::F16 | Dtype::Bf16);
    if rows <= 2 && !halves { 4096 } else { 8192 }
}

/// One call.
pub(crate) struct Rows<'a, F, T> {
    pub(crate) unit: &'a Unit<'a>,
    /// `Layout::len` f32, aligned to 64 bytes.
    pub(crate) scratch: *mut f32,
    pub(crate) layout: Layout,
    pub(crate) tiles: PhantomData<(F, T)>,
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

/// What a block is to a group.
#[derive(Clone, Copy, PartialEq)]
enum Weighed {
    /// Nothing to add.
    Nothing,
    /// Weights are to be multiplied with values.
    Weights {
        /// Whether the sums are to be multiplied by alpha first.
        rescale: bool,
    },
}

impl<F: Form, T: Tiles> Op for Rows<'_, F, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        const { assert!(T::LANES == S::LANES && S::LANES <= 16) };
        let groups = self.groups();
        let mut masked = 0_u64;
        for index in 0..groups {
            let group = self.group(index);
            self.pack(group);
            self.begin(group);
        }
        let mut block = self.first_block();
        while let Some(keys) = block {
            let mut weighed = [Weighed::Nothing; args::MOST_ROWS];
            for index in 0..groups {
                let group = self.group(index);
                weighed[index] = self.weigh(s, group, keys, index == 0, &mut masked);
            }
            for index in 0..groups {
                self.accumulate(s, self.group(index), keys, weighed[index], index == 0, false);
            }
            block = self.next_block(keys);
        }
        for index in 0..groups {
            let group = self.group(index);
            if !self.finish(s, group) && masked >> index & 1 == 1 {
                self.carefully(s, group);
            }
        }
    }
}

impl<'a, F: Form, T: Tiles> Rows<'a, F, T> {
    /// The number of groups: as few as there can be.
    fn groups(&self) -> usize {
        self.unit.rows.len().div_ceil(T::MOST)
    }

    fn group(&self, index: usize) -> Group<'a> {
        let (layout, groups) = (&self.layout, self.groups());
        let rows = self.unit.rows.len();
        // All of one size, as the order of summation depends on it: the last one begins with rows of the one before, which come
        // out the same.
        let size = rows.div_ceil(groups);
        let first = (index * size).min(rows - size);
        let end = first + size;
        let at = |offset: usize| self.scratch.wrapping_add(offset + index * layout.group);
        Group {
            rows: &self.unit.rows[first..end],
            index,
            first,
            step_keys: T::keys_of_step(end - first),
            queries: at(layout.queries),
            sums: at(layout.sums),
            block_sums: at(layout.block_sums),
            scores: at(layout.scores),
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

    /// One past the last key that some row of the call sees, and the first one.
    fn seen(&self) -> (usize, usize) {
        let unit = self.unit;
        let (mut start, mut end) = (usize::MAX, 0);
        for row in unit.rows {
            let seen = unit.band.visible(row.query, unit.keys);
            if !seen.is_empty() {
                (start, end) = (start.min(seen.start), end.max(seen.end));
            }
        }
        (start.max(unit.span.start), end.min(unit.span.end))
    }

    fn first_block(&self) -> Option<KeyBlock> {
        let (start, _) = self.seen();
        self.block_from(start)
    }

    fn next_block(&self, block: KeyBlock) -> Option<KeyBlock> {
        let key_block = self.unit.key_block;
        self.block_from((block.first / key_block + 1) * key_block)
    }

    /// The keys from `start` on that lie in its block. They start at a place where every group starts a pair of steps.
    fn block_from(&self, start: usize) -> Option<KeyBlock> {
        let (_, end) = self.seen();
        if start >= end {
            return None;
        }
        let key_block = self.unit.key_block;
        let block_end = (start / key_block + 1) * key_block;
        let first = start / (2 * T::LANES) * (2 * T::LANES);
        let first = first.max(start / key_block * key_block);
        Some(KeyBlock { first, keys: block_end.min(end) - first })
    }

    /// The queries of a group in the form of the kernel, zero past `d`.
    fn pack(&self, group: Group<'_>) {
        match self.unit.q_dtype {
            Dtype::F32 => self.pack_from::<f32>(group),
            Dtype::F16 => self.pack_from::<f16>(group),
            Dtype::Bf16 => self.pack_from::<bf16>(group),
            Dtype::Int8 => unreachable!("queries are not quantised"),
        }
    }

    fn pack_from<Q: Element>(&self, group: Group<'_>) {
        let unit = self.unit;
        let sign = if unit.turned() { -1.0 } else { 1.0 };
        let rows = group.rows.len();
        let row_lanes = T::LANES / group.step_keys;
        // SAFETY: the layout has room for the queries of a group and for vectors of quanta, and rows have `d` elements.
        unsafe {
            group.queries.write_bytes(0, scratch::query_len(rows, unit.d, T::LANES));
            for lane in 0..T::LANES {
                *group.query_quanta.add(lane) = 1.0;
                *group.weight_quanta.add(lane) = 1.0;
            }
            for (r, row) in group.rows.iter().enumerate() {
                let q = row.q.cast::<Q>();
                let quantum = F::quantum((0..unit.d).map(|c| (*q.add(c)).widen()));
                for c in 0..unit.d {
                    F::put_query(group.queries, [r, c, rows, T::LANES], sign * (*q.add(c)).widen(), quantum);
                }
                for g in 0..group.step_keys {
                    *group.query_quanta.add(g * row_lanes + r) = quantum;
                }
            }
        }
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

    /// Scores and weights of one block for one group.
    #[inline(always)]
    fn weigh<S: Simd>(&self, s: S, group: Group<'_>, keys: KeyBlock, leads: bool, masked: &mut u64) -> Weighed {
        let Some(masked_from) = self.scores(s, group, keys, leads) else { return Weighed::Nothing };
        let unit = self.unit;
        let steps = keys.keys.div_ceil(group.step_keys);
        // Segments start at even places.
        let whole = masked_from & !1;
        let segments =
            [Segment { key: 0, keys: whole, masked: false }, Segment { key: whole, keys: steps - whole, masked: true }];
        let segments = match whole {
            0 => &segments[1..],
            _ if whole == steps => &segments[..1],
            _ => &segments[..],
        };
        *masked |= u64::from(whole < steps) << group.index;
        let block = Block {
            scores: group.scores,
            lanes: T::LANES,
            segments,
            vectors: 1,
            visible: group.visible,
            first_key: keys.first / group.step_keys,
            max: group.max,
            gain: group.gain,
            shift: group.shift,
            state: group.state,
            alpha: group.alpha,
        };
        // SAFETY: the functions are of this level (`launch` pairs them), and the block is as its fields say.
        match unsafe { (unit.weighting.functions.weigh)(unit.weighting.data, &block) } {
            Step::Skip => Weighed::Nothing,
            // To leave values out would take a look at them all the same: NaN and Inf are felt at any weight.
            Step::Add | Step::Part { .. } => Weighed::Weights { rescale: false },
            Step::Rescale => Weighed::Weights { rescale: true },
        }
    }

    /// Final scores of one block for one group, with their maximum, and the first step of which some lane does not see its
    /// key; none if no lane sees any.
    #[inline(always)]
    fn scores<S: Simd>(&self, s: S, group: Group<'_>, keys: KeyBlock, leads: bool) -> Option<usize> {
        let unit = self.unit;
        let masked_from = self.visible(group, keys)?;
        let gathered = self.scratch.wrapping_add(self.layout.keys);
        let ahead = ahead_bytes(group.rows.len(), unit.k.dtype);
        for piece in Pieces::new(&unit.k, keys, unit.d, ahead, T::LANES, gathered) {
            T::scores::<S, F>(
                s,
                group.rows.len(),
                ScoreArgs {
                    q: group.queries,
                    quanta: group.query_quanta,
                    k: piece.data.cast(),
                    k_stride: piece.row_bytes / size_of::<F::Element>(),
                    keys: piece.rows,
                    d: unit.d,
                    scores: group.scores.wrapping_add(piece.place / group.step_keys * T::LANES),
                    ahead: if leads { (piece.ahead as isize / size_of::<F::Element>() as isize) as usize } else { 0 },
                },
            );
        }
        let k_scales = self.spread(s, &unit.k, group, keys, self.layout.k_scales);
        s.vectorize(Terms {
            unit,
            rows: group.rows,
            step_keys: group.step_keys,
            first_key: keys.first,
            keys: keys.keys,
            scores: group.scores,
            k_scales,
            visible: group.visible,
            masked_from,
            max: group.max,
        });
        Some(masked_from)
    }

    /// Says which lanes see which keys, and gives the first step of which some lane does not; none if there is no key that a
    /// lane sees.
    fn visible(&self, group: Group<'_>, keys: KeyBlock) -> Option<usize> {
        let unit = self.unit;
        let (step_keys, end) = (group.step_keys, keys.first + keys.keys);
        let steps = keys.keys.div_ceil(step_keys);
        let row_lanes = T::LANES / step_keys;
        let whole = |row: &QueryRow| {
            let seen = unit.band.visible(row.query, unit.keys);
            row.keep.is_null() && seen.start <= keys.first && end <= seen.end
        };
        if group.rows.iter().all(whole) {
            let rows = below(group.rows.len());
            // SAFETY: `visible` has a word for each step.
            let words = unsafe { std::slice::from_raw_parts_mut(group.visible, steps) };
            words.fill((0..step_keys).map(|g| rows << (g * row_lanes)).sum());
            // Lanes past the last key see nothing.
            return match keys.keys % step_keys {
                0 => Some(steps),
                rest => {
                    words[steps - 1] = (0..rest).map(|g| rows << (g * row_lanes)).sum();
                    Some(steps - 1)
                }
            };
        }
        // SAFETY: `visible` has a word for each step, and masks cover every key.
        unsafe {
            let words = std::slice::from_raw_parts_mut(group.visible, steps);
            words.fill(0);
            let mut any = false;
            for (r, row) in group.rows.iter().enumerate() {
                let seen = unit.band.visible(row.query, unit.keys);
                for key in seen.start.max(keys.first)..seen.end.min(end) {
                    if row.keep.is_null() || *row.keep.add(key * row.keep_stride) != 0 {
                        let place = key - keys.first;
                        words[place / step_keys] |= 1 << (place % step_keys * row_lanes + r);
                        any = true;
                    }
                }
            }
            any.then_some(0)
        }
    }

    /// Scales of keys in the layout of the scores; null if there are none.
    #[inline(always)]
    fn spread<S: Simd>(&self, s: S, source: &Source<'_>, group: Group<'_>, keys: KeyBlock, to: usize) -> *const f32 {
        if source.dtype != Dtype::Int8 {
            return std::ptr::null();
        }
        let to = self.scratch.wrapping_add(to);
        s.vectorize(Spread { source, first: keys.first, keys: keys.keys, step_keys: group.step_keys, to });
        to
    }

    /// Adds the weighted values of one block to the sums of a group. `careful` keeps values away from rows that do not see
    /// their key; otherwise they are multiplied by a weight of zero, which is the same unless they are NaN or Inf.
    #[inline(always)]
    fn accumulate<S: Simd>(
        &self,
        s: S,
        group: Group<'_>,
        keys: KeyBlock,
        weighed: Weighed,
        leads: bool,
        careful: bool,
    ) {
        let Weighed::Weights { rescale } = weighed else { return };
        let unit = self.unit;
        let scales = self.spread(s, &unit.v, group, keys, self.layout.v_scales);
        F::prepare(
            s,
            Weights {
                weights: group.scores,
                scales,
                visible: group.visible,
                quanta: group.weight_quanta,
                steps: keys.keys.div_ceil(group.step_keys),
                lanes: T::LANES,
                row_lanes: T::LANES / group.step_keys,
                key_block: unit.key_block,
            },
        );
        // Values that are passed over again come from the second level then: the next block is asked for in time.
        let again = T::passes_again(group.rows.len(), unit.d_v);
        let ahead = if again {
            unit.key_block * unit.d_v * size_of::<F::Element>()
        } else {
            ahead_bytes(group.rows.len(), unit.v.dtype)
        };
        let gathered = self.scratch.wrapping_add(self.layout.values);
        for piece in Pieces::new(&unit.v, keys, unit.d_v, ahead, T::LANES, gathered) {
            T::accumulate::<S, F>(
                s,
                group.rows.len(),
                AccumulateArgs {
                    weights: group.scores,
                    first: piece.place,
                    v: piece.data.cast(),
                    v_stride: piece.row_bytes / size_of::<F::Element>(),
                    keys: piece.rows,
                    d_v: unit.d_v,
                    block_sums: group.block_sums,
                    sums: group.sums,
                    quanta: group.weight_quanta,
                    alpha: if rescale { group.alpha } else { std::ptr::null() },
                    ends: [piece.place == 0, piece.place + piece.rows == keys.keys],
                    visible: if careful { group.visible } else { std::ptr::null() },
                    ahead: if leads { (piece.ahead as isize / size_of::<F::Element>() as isize) as usize } else { 0 },
                },
            );
        }
    }
}

/// The lowest `n < 64` bits.
fn below(n: usize) -> u64 {
    (1 << n) - 1
}
