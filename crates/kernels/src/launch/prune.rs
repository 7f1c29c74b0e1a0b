//! What an index of the keys is good for in a call: which heads it helps, and in which order their rows are taken.
//!
//! A sub-tile leaves out a block that none of its rows wants, so rows that want the same blocks belong together. Where all
//! rows see the same keys, they are sorted by the block whose centre scores best with them. The order has no influence on
//! any bit of a result. What few rows want is found out before their keys are split into spans.

use super::Launch;
use super::call::{Call, Choice};
use super::task::Destination;
use super::units::{Unit, UnitRows, group, rows_part, rows_unit, which_rows};
use crate::index::{HeadIndex, KeyIndex};
use crate::lanes::prune::{Prune, Survey};
use crate::mask::Band;
use crate::rows;
use crate::rows::args::{MOST_ROWS, QueryRow};
use crate::weighting::Kind;

/// Rows of a head that are asked what they want before the index is used at all.
const SAMPLE: usize = 64;

/// The part of all pairs of sampled rows and blocks that may be wanted at most. Above it, what is left out
/// does not pay for the bounds.
const MOST_WANTED: f64 = 0.5;

/// Weights that are left out sum to less than `2^-MARGIN` of their row, where all keys together are as many.
const MARGIN: f32 = 27.0;

/// Why an index is of no use to a call that computes this, if it is not.
pub fn ignores_index(call: &Call<'_>, choice: &Choice) -> Option<&'static str> {
    let index = call.index?;
    let weighting = call.weighting;
    if !weighting.ordered() {
        return Some("weights do not depend on which score is the largest");
    }
    if weighting.kind() == Kind::Weighted && index.value_columns().is_none() {
        return Some("it does not know the values, whose NaN and Inf would be missed");
    }
    if call.softcap.is_some() || call.alibi_slopes.is_some() || call.bias.is_some() || call.scale == 0.0 {
        return Some("scores have terms besides the products");
    }
    if call.keep.is_some() {
        return Some("a mask tensor may hide any key");
    }
    if !call.sequences.iter().any(|sequence| has_bounds(call, choice, sequence.queries)) {
        return Some("products of bf16 and of integers have other bounds");
    }
    None
}

/// Whether the kernel that takes so many queries multiplies in f32, of which the bounds are.
fn has_bounds(call: &Call<'_>, choice: &Choice, queries: usize) -> bool {
    match choice.rows_for(group(call), queries) {
        Some(rows) => !rows.kernel.native,
        None => choice.kernel.extension.is_none(),
    }
}

/// The index, if it is of use.
pub(super) fn index<'a>(call: &Call<'a>, choice: &Choice) -> Option<&'a KeyIndex> {
    call.index.filter(|_| ignores_index(call, choice).is_none())
}

/// Whether `index` was made for keys like those of a call.
pub(super) fn fits(index: &KeyIndex, call: &Call<'_>) -> bool {
    let (shape, keys) = (index.shape(), call.k.shape());
    let values = index.value_columns().is_none_or(|columns| columns == call.v.shape()[3]);
    let batch = shape[0] == keys[0] || (shape[0] == 1 && call.k.strides()[0] == 0);
    let whole = call.sequences.iter().all(|sequence| sequence.first_key == 0);
    values && batch && shape[1..] == keys[1..] && call.pages.is_none() && whole
}

/// f32 that say how the rows of each head are taken.
pub(super) fn len(call: &Call<'_>, choice: &Choice) -> usize {
    let Some(index) = index(call, choice) else { return 0 };
    heads(call).saturating_mul(head_len(call, index)).saturating_add(WORD)
}

fn heads(call: &Call<'_>) -> usize {
    call.sequences.len().saturating_mul(call.q.shape()[1])
}

/// f32 of a u64.
const WORD: usize = 2;

/// A mode, the best block of each row, the order, and how many rows go to each block; or a mode, and which rows of a part want
/// each block. Whole u64.
fn head_len(call: &Call<'_>, index: &KeyIndex) -> usize {
    let sorted = call.q.shape()[2].saturating_mul(2).saturating_add(index.blocks()).saturating_add(2);
    let few = index.blocks().saturating_add(1).saturating_mul(WORD);
    sorted.max(few).checked_next_multiple_of(WORD).unwrap_or(usize::MAX)
}

/// An index at work.
#[derive(Clone, Copy)]
pub(super) struct Pruning<'a> {
    index: &'a KeyIndex,
    /// [`head_len`] for each sequence and head.
    memory: *mut u32,
    head_len: usize,
    heads: usize,
}

/// How the rows of a head are taken.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    /// Without the index.
    All,
    /// As they lie.
    Pruned,
    /// Sorted.
    Sorted,
}

/// The memory of one head.
#[derive(Clone, Copy)]
struct HeadMemory {
    mode: *mut u32,
    best: *mut u32,
    order: *mut u32,
    counts: *mut u32,
}

impl HeadMemory {
    /// Where it is said which rows of a part want each block.
    fn wanted(self) -> *mut u64 {
        // The memory of a head is aligned as a u64 is.
        self.mode.wrapping_add(WORD).cast()
    }
}

impl<'a> Pruning<'a> {
    /// `memory` has [`len`] f32.
    pub(super) fn new(call: &Call<'a>, choice: &Choice, memory: &mut [f32]) -> Option<Self> {
        let index = index(call, choice)?;
        let (heads, head_len) = (heads(call), head_len(call, index));
        assert!(memory.len() >= heads * head_len + WORD, "memory of an index");
        let start = memory.as_mut_ptr();
        let memory = start.wrapping_add(start.align_offset(align_of::<u64>())).cast();
        Some(Self { index, memory, head_len, heads })
    }

    /// The number of surveys to make.
    pub(super) fn surveys(&self) -> usize {
        self.heads
    }

    fn index_of(&self, batch: usize, kv_head: usize) -> HeadIndex<'a> {
        // A batch of one may be repeated.
        self.index.head(batch.min(self.index.shape()[0] - 1), kv_head)
    }

    fn head(&self, job: usize, rows: usize) -> HeadMemory {
        debug_assert!(job < self.heads);
        let mode = self.memory.wrapping_add(job * self.head_len);
        let best = mode.wrapping_add(1);
        let order = best.wrapping_add(rows);
        HeadMemory { mode, best, order, counts: order.wrapping_add(rows) }
    }
}

impl<'a> Launch<'a> {
    /// How a unit of rows `first..first + rows` of a head is pruned, and its rows in order.
    ///
    /// # Safety
    /// The survey of the head was made.
    pub(super) unsafe fn pruned(
        &self,
        sequence: usize,
        head: usize,
        first: usize,
        rows: usize,
    ) -> (Option<Prune<'_>>, Option<&[u32]>) {
        let Some(pruning) = &self.pruning else { return (None, None) };
        let [_, heads, q_rows, _] = self.call.q.shape();
        let memory = pruning.head(sequence * heads + head, q_rows);
        // SAFETY: the memory is that of the head, and no one writes to it after its survey.
        unsafe {
            match *memory.mode {
                mode if mode == Mode::All as u32 => (None, None),
                mode if mode == Mode::Pruned as u32 => (Some(self.prune(sequence, head, None)), None),
                _ => {
                    let order = std::slice::from_raw_parts(memory.order.add(first), rows);
                    (Some(self.prune(sequence, head, None)), Some(order))
                }
            }
        }
    }

    fn prune(&self, sequence: usize, head: usize, survey: Option<Survey>) -> Prune<'_> {
        let call = self.call;
        let Some(pruning) = &self.pruning else { unreachable!("asked for with an index only") };
        let numbers = &call.sequences[sequence];
        let margin = match call.weighting.kind() {
            Kind::Weighted => MARGIN + (numbers.keys.max(1) as f32).log2(),
            Kind::OneRow | Kind::TiedRows => 0.0,
        };
        Prune { index: pruning.index_of(numbers.batch, head / group(call)), margin, survey }
    }

    /// Finds out what the rows of a head want.
    ///
    /// # Safety
    /// No one else makes this survey or uses `scratch`.
    pub(super) unsafe fn survey(&self, job: usize, scratch: *mut f32) {
        let Self { call, choice, .. } = *self;
        let Some(pruning) = &self.pruning else { return };
        let [_, heads, q_rows, _] = call.q.shape();
        let (sequence, head) = (job / heads, job % heads);
        let numbers = &call.sequences[sequence];
        let memory = pruning.head(job, q_rows);
        let queries = numbers.queries;
        let most = choice.query_block.min(queries);
        let mut wanted = 0;
        // SAFETY: the memory is that of the head, and the caller's contract.
        unsafe {
            *memory.mode = Mode::All as u32;
            if queries == 0 || numbers.keys == 0 || !has_bounds(call, choice, queries) {
                return;
            }
            if which_rows(call, choice, queries).is_some() {
                return self.survey_few(job, scratch);
            }
            let sample = SAMPLE.min(most);
            let free = numbers.band == Band::FULL;
            let ask = |first: usize, rows: usize, order: Option<&[u32]>, survey: Survey| {
                let mut arguments = self.head(sequence, head, first, rows, 0..numbers.keys, None);
                arguments.order = order;
                arguments.prune = Some(self.prune(sequence, head, Some(survey)));
                choice.kernel.run(&arguments, scratch, self.memory.lanes);
            };
            let survey = Survey::Wanted(&raw mut wanted);
            if free {
                for row in 0..sample {
                    *memory.order.add(row) = (row * queries / sample) as u32;
                }
                ask(0, sample, Some(std::slice::from_raw_parts(memory.order, sample)), survey);
            } else {
                // Rows that see few keys say little.
                ask((queries - sample) / 2, sample, None, survey);
            }
            let pairs = (sample * pruning.index.blocks()) as f64;
            if f64::from(wanted) > MOST_WANTED * pairs {
                return;
            }
            *memory.mode = Mode::Pruned as u32;
            let whole = choice.split.span(queries, numbers.keys, choice.key_block) >= numbers.keys;
            let rows_go_out = matches!(self.destination, Destination::Rows { .. });
            if !(free && whole && rows_go_out && queries > choice.kernel.tile.rows) {
                return;
            }
            for first in (0..queries).step_by(most) {
                ask(first, most.min(queries - first), None, Survey::Best(memory.best.add(first)));
            }
            sort(memory, queries, pruning.index.blocks());
            *memory.mode = Mode::Sorted as u32;
        }
    }
}

impl Launch<'_> {
    /// Finds out what few rows want. The parts of the rows that share a KV head have the memory of its query heads.
    ///
    /// # Safety
    /// As for [`Self::survey`].
    unsafe fn survey_few(&self, job: usize, scratch: *mut f32) {
        let Self { call, choice, .. } = *self;
        let Some(pruning) = &self.pruning else { return };
        let heads = call.q.shape()[1];
        let (sequence, head) = (job / heads, job % heads);
        let (kv_head, part) = (head / group(call), head % group(call));
        let Some(unit) = rows_unit(call, sequence, kv_head, part) else { return };
        let Prune { index, margin, .. } = self.prune(sequence, head, None);
        let mut query_rows = [QueryRow::NONE; MOST_ROWS];
        let keys = 0..call.sequences[sequence].keys;
        let unit = self.few_rows(&unit, keys, &mut query_rows);
        // SAFETY: the caller's contract; memory and scratch have room for a survey.
        unsafe {
            let memory = pruning.head(job, call.q.shape()[2]);
            let wanted = std::slice::from_raw_parts_mut(memory.wanted(), pruning.index.blocks());
            if choice.level.dispatch(rows::prune::Survey { unit: &unit, index, margin, scratch, wanted }) {
                *memory.mode = Mode::Pruned as u32;
            }
        }
    }

    /// For each block of the index, which rows of a unit of the rows kernel want it; none if it takes all.
    ///
    /// # Safety
    /// The survey of the unit was made.
    pub(super) unsafe fn wanted_rows(&self, unit: &Unit) -> Option<&[u64]> {
        let pruning = self.pruning.as_ref()?;
        let UnitRows::Rows { kv_head, first, .. } = unit.rows else { return None };
        let [_, heads, q_rows, _] = self.call.q.shape();
        let part = rows_part(self.call, unit.sequence, first);
        if part >= group(self.call) {
            return None;
        }
        let memory = pruning.head(unit.sequence * heads + kv_head * group(self.call) + part, q_rows);
        // SAFETY: the memory is that of the part, and no one writes to it after its survey.
        unsafe {
            let prunes = *memory.mode == Mode::Pruned as u32;
            prunes.then(|| std::slice::from_raw_parts(memory.wanted(), pruning.index.blocks()))
        }
    }
}

/// Sorts rows by their best block, those of one block as they lie (a counting sort).
///
/// # Safety
/// `best` has a block for each row, `order` room for each row, and `counts` for each block and one more.
unsafe fn sort(memory: HeadMemory, rows: usize, blocks: usize) {
    let HeadMemory { best, order, counts, .. } = memory;
    // SAFETY: the caller's contract: blocks are fewer than `blocks`, and places fewer than `rows`.
    unsafe {
        counts.write_bytes(0, blocks + 1);
        for row in 0..rows {
            *counts.add(*best.add(row) as usize + 1) += 1;
        }
        for block in 0..blocks {
            *counts.add(block + 1) += *counts.add(block);
        }
        for row in 0..rows {
            let place = counts.add(*best.add(row) as usize);
            *order.add(*place as usize) = row as u32;
            *place += 1;
        }
    }
}
