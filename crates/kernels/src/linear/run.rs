//! Prefill: the linear form of a whole problem.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::Method;
use super::head::{Head, Row, Rows};
use super::scratch::{LINE, StateLayout, WorkLayout};
use crate::launch::{Call, Executor, out_row, row_stride, rules, target, temperature};
use crate::rules::gain;
use crate::source::{Source, Target};
use crate::tensor::TensorMut;

/// The number of tasks: all rows of a KV head of a sequence.
pub fn tasks(call: &Call<'_>) -> usize {
    let kv_heads = if call.q.shape()[1] == 0 { 0 } else { call.k.shape()[1] };
    call.sequences.iter().filter(|sequence| sequence.queries > 0).count().saturating_mul(kv_heads)
}

/// f32 of workspace that `threads` threads need; `usize::MAX` if it is more than can be counted.
pub fn workspace_len(call: &Call<'_>, method: &Method, threads: usize) -> usize {
    let tasks = tasks(call);
    if tasks == 0 { 0 } else { Memory::new(call, method).len.saturating_mul(threads.clamp(1, tasks)) }
}

/// What one thread works in.
#[derive(Clone, Copy)]
struct Memory {
    state: StateLayout,
    work: WorkLayout,
    len: usize,
}

impl Memory {
    fn new(call: &Call<'_>, method: &Method) -> Self {
        let sizes = method.sizes(call.v.shape()[3]);
        let (state, work) = (StateLayout::new(&sizes), WorkLayout::new(&sizes));
        Self { state, work, len: state.len.saturating_add(work.len).saturating_add(LINE) }
    }
}

/// Computes `call` into `out`, `[batch, query_heads, rows of q, d_v]`. Rows of no sequence are left alone. With one thread,
/// nothing is allocated and the executor is not asked.
///
/// The weighting of the call is not looked at: that of `method` counts. `gates` has one number in (0, 1] for each KV head.
///
/// # Panics
/// If shapes disagree, the call has terms that no linear form has (a soft-cap, mask tensors, biases, ALiBi, sinks, pages,
/// a mask that hides early keys), or `workspace` is shorter than [`workspace_len`] for one thread: errors of the caller's
/// code, which `regard` rules out.
pub fn run(
    call: &Call<'_>,
    gates: Option<&[f32]>,
    method: &Method,
    mut out: TensorMut<'_>,
    workspace: &mut [f32],
    executor: &dyn Executor,
) {
    check(call, gates, method, &out);
    let memory = Memory::new(call, method);
    let tasks = tasks(call);
    if tasks == 0 || call.v.shape()[3] == 0 {
        return;
    }
    let threads = executor.threads().clamp(1, tasks).min(workspace.len() / memory.len);
    assert!(threads > 0, "workspace of {} f32 is shorter than {}", workspace.len(), memory.len);
    let strides = out.strides();
    let team = Team {
        call,
        gates,
        method,
        memory,
        out: target(&mut out),
        strides,
        workspace: workspace.as_mut_ptr(),
        slots: threads,
        next_slot: AtomicUsize::new(0),
        next_task: AtomicUsize::new(0),
    };
    if threads > 1 {
        executor.run(&|| team.work());
        // Whatever the executor did, all tasks are done when this returns.
        team.next_slot.store(0, Ordering::Relaxed);
    }
    team.work();
}

/// What pointers rely on beyond the bounds that views prove.
fn check(call: &Call<'_>, gates: Option<&[f32]>, method: &Method, out: &TensorMut<'_>) {
    crate::launch::check_inputs(call);
    let [batch, heads, rows, d] = call.q.shape();
    assert_eq!(out.shape(), [batch, heads, rows, call.v.shape()[3]], "out");
    assert_eq!(method.features.d(), d, "columns of the monomials");
    assert!(method.chunk > 0, "chunk");
    assert!(std::ptr::eq(method.kernel, super::linear_kernel(method.level)), "kernel of another level");
    assert!(gates.is_none_or(|gates| gates.len() == call.k.shape()[1]), "gates");
    assert!(call.pages.is_none() && call.keep.is_none() && call.bias.is_none(), "no linear form");
    assert!(call.softcap.is_none() && call.alibi_slopes.is_none() && call.sinks.is_none(), "no linear form");
    assert!(call.sequences.iter().all(|sequence| sequence.band.lower.is_none()), "no linear form");
}

/// Threads at work: the counters that hand out tasks and memory.
struct Team<'a> {
    call: &'a Call<'a>,
    gates: Option<&'a [f32]>,
    method: &'a Method,
    memory: Memory,
    out: Target,
    strides: [usize; 4],
    workspace: *mut f32,
    slots: usize,
    next_slot: AtomicUsize,
    next_task: AtomicUsize,
}

// SAFETY: threads share the pointers, and write through them only to the rows of a task and to a slot of memory that a counter
// gave to them alone; everything else is read-only.
unsafe impl Sync for Team<'_> {}

impl Team<'_> {
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
        let start = self.workspace.wrapping_add(slot * self.memory.len);
        let start = start.wrapping_add(start.align_offset(4 * LINE));
        let kv_heads = self.call.k.shape()[1];
        loop {
            let task = self.next_task.fetch_add(1, Ordering::Relaxed);
            let Some(sequence) = task.checked_div(kv_heads).filter(|index| *index < self.call.sequences.len()) else {
                return;
            };
            // SAFETY: the counter gives each task to one thread, and the slot is this thread's alone.
            unsafe { self.task(sequence, task % kv_heads, start) };
        }
    }

    /// # Safety
    /// No one else does this task or uses this memory.
    unsafe fn task(&self, index: usize, kv_head: usize, memory: *mut f32) {
        let Self { call, method, .. } = *self;
        let sequence = &call.sequences[index];
        let (rows, keys) = (sequence.queries, sequence.keys);
        if rows == 0 {
            return;
        }
        let source = |tensor| Source::new(tensor, sequence.batch, kv_head, sequence.first_key, None);
        let (k, v) = (source(&call.k), source(&call.v));
        let mut head = Head {
            method,
            d: call.q.shape()[3],
            d_v: call.v.shape()[3],
            width: method.sizes(call.v.shape()[3]).width(),
            gate: self.gates.map(|gates| gates[kv_head]).filter(|gate| *gate != 1.0),
            state: memory,
            state_layout: self.memory.state,
            work: memory.wrapping_add(self.memory.state.len),
            work_layout: self.memory.work,
            folded: 0,
            filled: 0,
        };
        let end = |row: usize| sequence.band.visible(row, keys).end;
        // The first row from `row` on that sees a key at `limit` or after it. Ends ascend.
        let until = |row: usize, limit: usize| (row..rows).find(|row| end(*row) > limit).unwrap_or(rows);
        // SAFETY: the caller's contract; the views prove that the rows exist.
        unsafe {
            head.clear();
            let mut row = until(0, 0);
            self.attend(&head, index, kv_head, 0..row);
            let causal = sequence.band.upper.is_some();
            while row < rows {
                let start = head.folded;
                let len = method.chunk.min(keys - start);
                head.load(&k, &v, start, len);
                let last = start + len == keys;
                if causal {
                    let next = if last { rows } else { until(row, start + len) };
                    self.attend(&head, index, kv_head, row..next);
                    row = next;
                }
                if row < rows {
                    head.fold();
                }
                if last && row < rows {
                    self.attend(&head, index, kv_head, row..rows);
                    row = rows;
                }
            }
        }
    }

    /// Answers rows of all query heads that share the state.
    ///
    /// # Safety
    /// No one else writes these rows or uses the memory of the head.
    unsafe fn attend(&self, head: &Head<'_>, index: usize, kv_head: usize, rows: std::ops::Range<usize>) {
        let call = self.call;
        let [_, heads, q_rows, _] = call.q.shape();
        let group = heads / call.k.shape()[1];
        let sequence = &call.sequences[index];
        if rows.is_empty() {
            return;
        }
        let q_stride = row_stride(call.q.shape(), call.q.strides());
        let rules = rules(call);
        for query_head in kv_head * group..(kv_head + 1) * group {
            let query = sequence.first_query + rows.start;
            let first = (sequence.batch * heads + query_head) * q_rows + query;
            let terms = |row: usize| {
                let seen = sequence.band.visible(rows.start + row, sequence.keys);
                let temperature = temperature(call, query_head, first + row);
                let factors = rules.factors(temperature, sequence.keys, || seen.len());
                Row { gain: gain(false, call.scale, factors.inverse_temperature), out: factors.out, end: seen.end }
            };
            let q = call.q.head(sequence.batch, query_head);
            let rows = Rows {
                q: q.wrapping_add(query.wrapping_mul(q_stride).wrapping_mul(call.q.dtype().bytes())),
                q_dtype: call.q.dtype(),
                q_stride,
                out: out_row(self.out, self.strides, [sequence.batch, query_head, query]),
                terms: &terms,
                rows: rows.len(),
                position: sequence.offset.saturating_add(rows.start as i64),
            };
            // SAFETY: the caller's contract.
            unsafe { head.attend(&rows) };
        }
    }
}
