//! The one safe door to the kernels: cuts a problem into tasks, and turns each into the raw arguments of a kernel.
//!
//! This module holds the crate's only step from checked views to pointers. It is sound whatever an [`Executor`] does:
//! tasks and scratch are claimed from counters, each at most once, and views prove that outputs of different tasks lie
//! apart.
//!
//! Results never depend on who computes what: a unit of rows is computed span by span, and the partial results of its spans
//! are merged in order, whether one thread does it all or each span is a task of its own.

mod call;
mod check;
mod partial;
mod prune;
mod task;
mod units;

use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

pub use self::call::{Call, Choice, Executor, Few, Outputs, PageTables, RowsChoice, Sequence, Split, Temperatures};
pub(crate) use self::check::check_inputs;
pub use self::partial::{conclude, endings, merge};
use self::prune::Pruning;
pub use self::prune::ignores_index;
use self::task::{Destination, partial_len, partial_rows};
pub(crate) use self::task::{out_row, row_stride, rules, temperature};
use self::units::{Extent, Unit, extents, group, units, which_rows};
use crate::index::KeyIndex;
use crate::lanes;
use crate::mask::Matrix;
use crate::rows;
use crate::rows::args::MOST_ROWS;
pub use crate::rules::Ending;
use crate::rules::{count_visible, gain, sink_log2};
use crate::source::{PartialRows, Target};
use crate::tensor::{Dtype, TensorMut};

/// A part of the whole work, of as many as there are threads, below which a unit is not split: threads then wait for the last
/// task for a quarter of their time at most.
const TASKS_PER_THREAD: f64 = 4.0;

/// The number of tasks that a call can be cut into at most, which does not depend on threads.
pub fn tasks(call: &Call<'_>, choice: &Choice) -> usize {
    extents(call, choice).map(|extent| extent.units.saturating_mul(extent.spans)).fold(0, usize::saturating_add)
}

/// f32 of workspace that `threads` threads need: none where there is nothing to compute, and `usize::MAX` if it is more than
/// can be counted.
pub fn workspace_len(call: &Call<'_>, choice: &Choice, threads: usize) -> usize {
    match tasks(call, choice) {
        0 => 0,
        tasks => {
            let threads = threads.clamp(1, tasks);
            let spans = if threads == 1 { 0 } else { spans_len(call, choice) };
            let own = Memory::new(call, choice).len.saturating_mul(threads);
            own.saturating_add(spans).saturating_add(prune::len(call, choice))
        }
    }
}

/// f32 that the partial results of all units with several spans take at most, and a cache line to start at.
fn spans_len(call: &Call<'_>, choice: &Choice) -> usize {
    let d_v = call.v.shape()[3];
    let several = extents(call, choice).filter(|extent| extent.spans > 1);
    let len = |extent: Extent| partial_len(extent.rows, d_v).saturating_mul(extent.spans).saturating_mul(extent.units);
    several.map(len).fold(0, usize::saturating_add).saturating_add(LINE)
}

/// f32 of a cache line.
const LINE: usize = 16;

/// What one thread works in.
#[derive(Clone, Copy)]
struct Memory {
    lanes: lanes::scratch::Layout,
    /// Of each of the rows kernels.
    rows: [rows::scratch::Layout; 2],
    /// Where two partial results of a unit start, and of how many rows they are.
    partial: [usize; 2],
    partial_rows: usize,
    /// f32 in all, with a cache line more, to start at one.
    len: usize,
}

impl Memory {
    fn new(call: &Call<'_>, choice: &Choice) -> Self {
        let d = call.q.shape()[3];
        let d_v = call.v.shape()[3];
        let state = call.weighting.functions(choice.level).state;
        let (mut lanes_queries, mut rows, mut partial_rows) = (0, [0; 2], 0);
        for sequence in call.sequences {
            if let Some(which) = which_rows(call, choice, sequence.queries) {
                rows[which] = rows[which].max((group(call) * sequence.queries).min(MOST_ROWS));
            } else {
                let block = choice.query_block.min(sequence.queries);
                lanes_queries = lanes_queries.max(block);
                if choice.split.span(sequence.queries, sequence.keys, choice.key_block) < sequence.keys {
                    partial_rows = partial_rows.max(block);
                }
            }
        }
        let keys = longest_keys(call);
        let index_blocks = prune::index(call, choice).map_or(0, KeyIndex::blocks);
        let lanes = lanes::scratch::Layout::new(lanes::scratch::Sizes {
            lanes: choice.kernel.tile.rows,
            subtiles: lanes_queries.div_ceil(choice.kernel.tile.rows),
            key_block: choice.key_block.min(keys.next_multiple_of(2)),
            d,
            d_v,
            state,
            copy: choice.copy || call.k.dtype() != Dtype::F32 || call.pages.is_some(),
            parts: choice.kernel.parts(),
            index_blocks,
        });
        let rows_layouts = [0, 1].map(|which| {
            let RowsChoice { kernel, key_block, .. } = choice.rows[which];
            rows::scratch::Layout::new(rows::scratch::Sizes {
                lanes: choice.level.isa().lanes(),
                group: kernel.group,
                rows: rows[which],
                key_block,
                d,
                d_v,
                state,
                scaled: call.k.dtype() == Dtype::Int8,
                paged: call.pages.is_some(),
                kept_bytes: kernel.kept_bytes,
            })
        });
        let lanes_len = if lanes_queries > 0 { lanes.len } else { 0 };
        let rows_len = |which: usize| {
            let survey = if index_blocks > 0 { rows::prune::survey_len(rows[which], d, index_blocks) } else { 0 };
            if rows[which] > 0 { rows_layouts[which].len.max(survey) } else { 0 }
        };
        let scratch = lanes_len.max(rows_len(0)).max(rows_len(1));
        let partial_rows = partial_rows.max(rows[0]).max(rows[1]);
        let part = partial_len(partial_rows, d_v);
        let partial = [scratch, scratch.saturating_add(part)];
        let len = partial[1].saturating_add(part).saturating_add(LINE);
        Self { lanes, rows: rows_layouts, partial, partial_rows, len }
    }
}

/// Queries of the sequence that has most.
fn longest_queries(call: &Call<'_>) -> usize {
    call.sequences.iter().map(|sequence| sequence.queries).max().unwrap_or(0)
}

/// Keys of the sequence that has most.
fn longest_keys(call: &Call<'_>) -> usize {
    call.sequences.iter().map(|sequence| sequence.keys).max().unwrap_or(0)
}

/// What ends a row: `head` and `query` of a sequence.
fn ending(call: &Call<'_>, sequence: usize, head: usize, query: usize) -> Ending {
    let [_, heads, rows, _] = call.q.shape();
    let numbers = &call.sequences[sequence];
    let index = (numbers.batch * heads + head) * rows + numbers.first_query + query;
    let keep = call.keep.map(|keep| {
        let [.., row_stride, key_stride] = keep.strides();
        Matrix { data: keep.head(sequence, head), row_stride, key_stride }
    });
    // SAFETY: the mask covers every row and key of the sequence, see `check`.
    let visible = || unsafe { count_visible(numbers.band, keep.as_ref(), query, numbers.keys) };
    let factors = task::rules(call).factors(task::temperature(call, head, index), numbers.keys, visible);
    let terms = call.softcap.is_some() || call.alibi_slopes.is_some() || call.bias.is_some() || call.scale == 0.0;
    let scale = if terms { 1.0 } else { call.scale };
    Ending {
        gain: gain(call.weighting.ordered(), scale, factors.inverse_temperature),
        sink: sink_log2(call.sinks.map(|sinks| sinks[head])),
        out: factors.out,
    }
}

/// Computes `call` into `outputs`.
///
/// With one thread, nothing is allocated and the executor is not asked.
///
/// # Panics
/// If shapes disagree, `choice` names a kernel of another level, or `workspace` is shorter than [`workspace_len`] for one
/// thread: errors of the caller's code, which `regard` rules out. Threads beyond what `workspace` has room for stay idle.
pub fn run(call: &Call<'_>, choice: &Choice, outputs: Outputs<'_>, workspace: &mut [f32], executor: &dyn Executor) {
    check::check(call, choice, &outputs);
    let d_v = call.v.shape()[3];
    let memory = Memory::new(call, choice);
    let destination = match outputs {
        // Without columns of V there may still be a log-sum-exp to compute.
        Outputs::Rows { lse: None, .. } if d_v == 0 => return,
        Outputs::Rows { mut out, lse } => Destination::Rows {
            strides: out.strides(),
            out: target(&mut out),
            lse: lse.map_or(std::ptr::null_mut(), <[f32]>::as_mut_ptr),
        },
        Outputs::Partial { states, sums } => {
            Destination::Partial(PartialRows { states: states.as_mut_ptr(), sums: sums.as_mut_ptr(), d_v })
        }
    };
    let possible = tasks(call, choice);
    if possible == 0 {
        return;
    }
    let pruning_len = prune::len(call, choice);
    let least = memory.len.saturating_add(pruning_len);
    assert!(workspace.len() >= least, "workspace of {} f32 is shorter than {least}", workspace.len());
    let (workspace, pruning) = workspace.split_at_mut(workspace.len() - pruning_len);
    let pruning = Pruning::new(call, choice, pruning);
    let launch = Launch { call, choice, memory, destination, pruning, _borrows: PhantomData };
    let threads = executor.threads().min(possible);
    // Threads beyond the first one are of use with all of their memory only.
    let spans = spans_len(call, choice);
    let slots = workspace.len().saturating_sub(spans) / memory.len;
    if threads <= 1 || slots <= 1 {
        let own = Own::new(workspace.as_mut_ptr(), &memory, d_v);
        for job in 0..pruning.map_or(0, |pruning| pruning.surveys()) {
            // SAFETY: surveys are made one after the other, and the workspace has room for a thread.
            unsafe { launch.survey(job, own.scratch) };
        }
        for unit in units(call, choice) {
            // SAFETY: units are computed one after the other, and the workspace has room for a thread.
            unsafe { launch.unit(&unit, own.scratch, own.partial) };
        }
        return;
    }
    let (own, shared) = workspace.split_at_mut(workspace.len() - spans);
    let tasks = Tasks::new(&launch, threads, shared);
    let own = own.as_mut_ptr();
    if let Some(pruning) = &pruning {
        Team::new(&launch, Jobs::Surveys(pruning.surveys()), own, slots).run(executor);
    }
    Team::new(&launch, Jobs::Tasks(&tasks), own, slots).run(executor);
}

/// The first row of batch entry 0 and head 0 of an output.
pub(crate) fn target(out: &mut TensorMut<'_>) -> Target {
    let (shape, strides) = (out.shape(), out.strides());
    let row_stride = if shape[3] == 0 || shape[2] <= 1 { 0 } else { strides[2] };
    let dtype = out.dtype();
    Target { dtype, data: out.as_mut_ptr(), row_bytes: row_stride.wrapping_mul(dtype.bytes()) }
}

/// A call on its way.
struct Launch<'a> {
    call: &'a Call<'a>,
    choice: &'a Choice,
    memory: Memory,
    destination: Destination,
    pruning: Option<Pruning<'a>>,
    _borrows: PhantomData<&'a mut [f32]>,
}

/// Memory of one thread.
#[derive(Clone, Copy)]
struct Own {
    scratch: *mut f32,
    partial: [PartialRows; 2],
}

impl Own {
    /// At the first cache line from `start` on, where there are `memory.len` f32.
    fn new(start: *mut f32, memory: &Memory, d_v: usize) -> Self {
        let scratch = start.wrapping_add(start.align_offset(4 * LINE));
        let partial = memory.partial.map(|at| partial_rows(scratch.wrapping_add(at), memory.partial_rows, d_v));
        Self { scratch, partial }
    }
}

/// The tasks of a call, longest first.
struct Tasks {
    units: Vec<UnitTasks>,
    list: Vec<Task>,
}

/// A unit, and what is left of it to do.
struct UnitTasks {
    unit: Unit,
    /// Where the partial results of its spans go, if its spans are tasks of their own.
    spans: Option<*mut f32>,
    /// Spans that are not done.
    left: AtomicUsize,
}

/// What a thread takes at once.
#[derive(Clone, Copy)]
struct Task {
    unit: usize,
    /// A span, or all of them.
    span: Option<usize>,
    cost: f64,
}

impl Tasks {
    /// `shared` has [`spans_len`] f32.
    fn new(launch: &Launch<'_>, threads: usize, shared: &mut [f32]) -> Self {
        let Launch { call, choice, .. } = *launch;
        let d_v = call.v.shape()[3];
        let costs = |unit: &Unit| -> f64 { (0..unit.spans).map(|span| unit.cost(call, span)).sum() };
        let all: Vec<Unit> = units(call, choice).collect();
        let total: f64 = all.iter().map(costs).sum();
        let most = total / (threads as f64 * TASKS_PER_THREAD);
        let shared = shared.as_mut_ptr();
        let mut next = shared.wrapping_add(shared.align_offset(4 * LINE));
        let mut tasks = Self { units: Vec::with_capacity(all.len()), list: Vec::new() };
        for (index, unit) in all.into_iter().enumerate() {
            let cost = costs(&unit);
            let split = unit.spans > 1 && cost > most;
            let spans = split.then_some(next);
            if split {
                next = next.wrapping_add(partial_len(unit.rows(), d_v) * unit.spans);
                let span = |span| Task { unit: index, span: Some(span), cost: unit.cost(call, span) };
                tasks.list.extend((0..unit.spans).map(span));
            } else {
                tasks.list.push(Task { unit: index, span: None, cost });
            }
            tasks.units.push(UnitTasks { unit, spans, left: AtomicUsize::new(unit.spans) });
        }
        // Stable: of equal cost, in order.
        tasks.list.sort_by(|a, b| b.cost.total_cmp(&a.cost));
        tasks
    }
}

/// What threads are given to do.
#[derive(Clone, Copy)]
enum Jobs<'a> {
    /// That many surveys of heads.
    Surveys(usize),
    Tasks(&'a Tasks),
}

/// Threads at work: the counters that hand out tasks and memory.
struct Team<'a> {
    launch: &'a Launch<'a>,
    jobs: Jobs<'a>,
    own: *mut f32,
    slots: usize,
    next_slot: AtomicUsize,
    next_task: AtomicUsize,
}

// SAFETY: threads share the pointers, and write through them only to the rows of a task, to its place for partial results and
// to a slot of memory that a counter gave to them alone; everything else is read-only. Partial results are read by the thread
// that did the last span of a unit, after all others have said that theirs are done.
unsafe impl Sync for Team<'_> {}

impl<'a> Team<'a> {
    /// `own` has room for `slots` threads.
    fn new(launch: &'a Launch<'a>, jobs: Jobs<'a>, own: *mut f32, slots: usize) -> Self {
        Self { launch, jobs, own, slots, next_slot: AtomicUsize::new(0), next_task: AtomicUsize::new(0) }
    }

    /// Does all there is to do.
    fn run(&self, executor: &dyn Executor) {
        executor.run(&|| self.work());
        // Whatever the executor did, everything is done when this returns.
        self.next_slot.store(0, Ordering::Relaxed);
        self.work();
    }

    /// Takes tasks until there are none.
    fn work(&self) {
        // Looked at first, so that no number of calls makes the counter wrap and hand out a slot twice.
        if self.next_slot.load(Ordering::Relaxed) >= self.slots {
            return;
        }
        let slot = self.next_slot.fetch_add(1, Ordering::Relaxed);
        if slot >= self.slots {
            return;
        }
        let Launch { memory, call, .. } = self.launch;
        let own = Own::new(self.own.wrapping_add(slot * memory.len), memory, call.v.shape()[3]);
        loop {
            let task = self.next_task.fetch_add(1, Ordering::Relaxed);
            match self.jobs {
                Jobs::Surveys(surveys) => {
                    if task >= surveys {
                        return;
                    }
                    // SAFETY: the counter gives each survey to one thread, and the slot is this thread's alone.
                    unsafe { self.launch.survey(task, own.scratch) };
                }
                Jobs::Tasks(tasks) => {
                    let Some(task) = tasks.list.get(task) else { return };
                    // SAFETY: as above, for tasks.
                    unsafe { self.task(&tasks.units[task.unit], task, own) };
                }
            }
        }
    }

    /// # Safety
    /// No one else does this task or uses this memory.
    unsafe fn task(&self, unit_tasks: &UnitTasks, task: &Task, own: Own) {
        let launch = self.launch;
        let UnitTasks { unit, spans, left } = unit_tasks;
        let d_v = launch.call.v.shape()[3];
        let place = |start: *mut f32, span: usize| {
            partial_rows(start.wrapping_add(span * partial_len(unit.rows(), d_v)), unit.rows(), d_v)
        };
        // SAFETY: the caller's contract. Each span has a place of its own; whoever does the last one finds all others done,
        // and is the only one to do so.
        unsafe {
            let (Some(start), Some(span)) = (*spans, task.span) else {
                return launch.unit(unit, own.scratch, own.partial);
            };
            launch.span(unit, span, own.scratch, place(start, span));
            if left.fetch_sub(1, Ordering::AcqRel) == 1 {
                let whole = place(start, 0);
                for span in 1..unit.spans {
                    launch.fold(unit, whole, place(start, span));
                }
                launch.conclude(unit, whole);
            }
        }
    }
}
