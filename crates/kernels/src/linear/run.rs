//! Prefill: the linear form of a whole problem.

use std::ops::Range;

use super::Method;
use super::crew::Crew;
use super::head::{Head, Row, Rows};
use super::scratch::{Hand, LINE, Line, ROWS, StateLayout, WorkLayout};
use super::shared::{SharedHead, Windows, can_share, parting};
use super::steps::steps;
use crate::launch::{Call, Executor, Sequence, out_row, row_stride, rules, target, temperature};
use crate::rules::gain;
use crate::source::{Source, Target};
use crate::tensor::TensorMut;

/// The number of tasks that threads can share: chunks of heads that are long enough for that, and other heads.
pub fn tasks(call: &Call<'_>, method: &Method) -> usize {
    let kv_heads = if call.q.shape()[1] == 0 { 0 } else { call.k.shape()[1] };
    let tasks = |sequence: &Sequence| match can_share(call, method, sequence) {
        true => sequence.keys.div_ceil(method.chunk).max(sequence.queries.div_ceil(ROWS)),
        false => usize::from(sequence.queries > 0),
    };
    call.sequences.iter().map(tasks).fold(0, usize::saturating_add).saturating_mul(kv_heads)
}

/// f32 of workspace that `threads` threads need; `usize::MAX` if it is more than can be counted.
pub fn workspace_len(call: &Call<'_>, method: &Method, threads: usize) -> usize {
    let tasks = tasks(call, method);
    if tasks == 0 {
        return 0;
    }
    let threads = threads.clamp(1, tasks);
    let own = Memory::new(call, method).len.saturating_mul(threads);
    let shares = call.sequences.iter().any(|sequence| can_share(call, method, sequence));
    own.saturating_add(if shares { shared_len(method, call.v.shape()[3], threads) } else { 0 })
}

/// What `threads` threads need beyond [`workspace_len`] for heads that are too short to be shared.
pub fn shared_len(method: &Method, d_v: usize, threads: usize) -> usize {
    if threads < 2 { 0 } else { Windows::new(method, d_v, threads).len().saturating_add(LINE) }
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
    let (tasks, d_v) = (tasks(call, method), call.v.shape()[3]);
    if tasks == 0 || d_v == 0 {
        return;
    }
    let threads = executor.threads().clamp(1, tasks).min(workspace.len() / memory.len);
    assert!(threads > 0, "workspace of {} f32 is shorter than {}", workspace.len(), memory.len);
    let strides = out.strides();
    let team = Team { call, gates, method, memory, out: target(&mut out), strides };
    let (own, free) = workspace.split_at_mut(threads * memory.len);
    let crew = Crew { executor, threads, workspace: own.as_mut_ptr(), len: memory.len };
    // SAFETY: each task is done once, by one thread or by all of them; lines are f32, of any bits.
    unsafe {
        if threads == 1 {
            return crew.share(team.places(), &|task, memory| team.task(task, memory));
        }
        let windows = Windows::new(method, d_v, threads);
        let (tasks, mut alone) = parting(call, method, threads);
        if free.len() < windows.len() + LINE {
            alone = tasks.len();
        }
        crew.share(alone, &|job, memory| team.task(tasks[job], memory));
        let (_, free, _) = free.align_to_mut::<Line>();
        if alone < tasks.len() && team.width() > d_v {
            // Values are zero up to whole vectors.
            free.as_mut_ptr().write_bytes(0, windows.len() / LINE);
        }
        for task in &tasks[alone..] {
            SharedHead::new(&team, windows, free.as_mut_ptr().cast(), *task).run(&crew);
        }
    }
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

/// A call on its way.
pub(super) struct Team<'a> {
    pub(super) call: &'a Call<'a>,
    gates: Option<&'a [f32]>,
    pub(super) method: &'a Method,
    memory: Memory,
    out: Target,
    strides: [usize; 4],
}

impl<'a> Team<'a> {
    /// KV heads of sequences, with those of no rows.
    fn places(&self) -> usize {
        self.call.sequences.len() * self.call.k.shape()[1]
    }

    /// Columns of V in whole vectors.
    fn width(&self) -> usize {
        self.method.sizes(self.call.v.shape()[3]).width()
    }

    /// The query heads that share a KV head.
    pub(super) fn query_heads(&self, kv_head: usize) -> Range<usize> {
        let group = self.call.q.shape()[1] / self.call.k.shape()[1];
        kv_head * group..(kv_head + 1) * group
    }

    /// A head without keys, in the memory of a thread.
    pub(super) fn head(&self, kv_head: usize, memory: *mut f32) -> Head<'a> {
        let work = memory.wrapping_add(self.memory.state.len);
        Head {
            method: self.method,
            d: self.call.q.shape()[3],
            d_v: self.call.v.shape()[3],
            width: self.width(),
            gate: self.gates.map(|gates| gates[kv_head]).filter(|gate| *gate != 1.0),
            state: memory,
            state_layout: self.memory.state,
            hand: Hand::of(memory, &self.memory.state, work, &self.memory.work),
            work,
            work_layout: self.memory.work,
            folded: 0,
            filled: 0,
        }
    }

    /// Takes keys of a sequence to hand.
    ///
    /// # Safety
    /// No one else uses the chunk at hand, which has room for them.
    pub(super) unsafe fn load(&self, head: &mut Head<'_>, sequence: usize, kv_head: usize, keys: Range<usize>) {
        let sequence = &self.call.sequences[sequence];
        let source = |tensor| Source::new(tensor, sequence.batch, kv_head, sequence.first_key, None);
        // SAFETY: the caller's contract; the views prove that the rows exist.
        unsafe { head.load(&source(&self.call.k), &source(&self.call.v), keys.start, keys.len()) };
    }

    /// One KV head of a sequence.
    ///
    /// # Safety
    /// No one else does this task or uses this memory.
    unsafe fn task(&self, task: usize, memory: *mut f32) {
        let kv_heads = self.call.k.shape()[1];
        let (index, kv_head) = (task / kv_heads, task % kv_heads);
        let sequence = &self.call.sequences[index];
        if sequence.queries == 0 {
            return;
        }
        let mut head = self.head(kv_head, memory);
        // SAFETY: the caller's contract.
        unsafe {
            head.clear();
            for step in steps(sequence, self.method.chunk) {
                self.load(&mut head, index, kv_head, step.keys);
                for query_head in self.query_heads(kv_head) {
                    self.attend(&head, index, query_head, step.rows.clone());
                }
                if step.fold {
                    head.fold();
                }
            }
        }
    }

    /// Answers rows of a query head.
    ///
    /// # Safety
    /// No one else writes these rows or uses the memory of the head.
    pub(super) unsafe fn attend(&self, head: &Head<'_>, index: usize, query_head: usize, rows: Range<usize>) {
        let call = self.call;
        let [_, heads, q_rows, _] = call.q.shape();
        let sequence = &call.sequences[index];
        if rows.is_empty() {
            return;
        }
        let q_stride = row_stride(call.q.shape(), call.q.strides());
        let rules = rules(call);
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
