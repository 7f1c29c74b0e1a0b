//! The one safe door to the kernels: cuts a problem into tasks, and turns each into the raw arguments of a kernel.
//!
//! This module holds the crate's only step from checked views to pointers. It is sound whatever an [`Executor`] does:
//! tasks and scratch are claimed from counters, each at most once, and views prove that outputs of different tasks lie
//! apart.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

use regard_simd::Level;

use crate::lanes::args::{Alibi, Count, Head, RowRules, Schedule, Shift, Temperature, Weigh};
use crate::lanes::scratch::{Layout, Sizes};
use crate::mask::{Band, Matrix};
use crate::table::{KEY_BLOCKS, Kernel, kernels};
use crate::view::{View, ViewMut, head_offset};
use crate::weighting::AnyWeighting;

/// What is to be computed, resolved to plain numbers. The crate `regard` makes it from checked options.
///
/// `q` is `[batch, query_heads, queries, d]`, `k` and `v` are `[batch, kv_heads, keys, d]` and `[.., d_v]`; their rows are
/// contiguous. Query head `h` reads KV head `h * kv_heads / query_heads`.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Queries.
    pub q: View<'a, f32>,
    /// Keys.
    pub k: View<'a, f32>,
    /// Values.
    pub v: View<'a, f32>,
    /// One for each batch entry.
    pub sequences: &'a [Sequence],
    /// Non-zero where a pair is visible: `[batch, query_heads, queries, keys]`.
    pub keep: Option<View<'a, u8>>,
    /// Added to the scaled score: `[batch, query_heads, queries, keys]`.
    pub bias: Option<View<'a, f32>>,
    /// One slope for each query head.
    pub alibi_slopes: Option<&'a [f32]>,
    /// One logit for each query head.
    pub sinks: Option<&'a [f32]>,
    /// Factor of the scores.
    pub scale: f32,
    /// `c` of `c * tanh(s / c)`.
    pub softcap: Option<f32>,
    /// Divides the scores last.
    pub temperature: Temperatures<'a>,
    /// Length-dependent part of the temperature.
    pub schedule: Schedule,
    /// The `n` of everything that depends on the length.
    pub count: Count,
    /// Added to the final score before a pointwise weighting.
    pub shift: Shift,
    /// The output is multiplied by `coefficient / n^exponent`.
    pub coefficient: f32,
    /// See `coefficient`.
    pub exponent: f32,
    /// How scores become weights.
    pub weighting: &'a dyn AnyWeighting,
}

/// What is particular to one batch entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Valid keys, at most the keys of the tensors.
    pub keys: usize,
    /// The mask.
    pub band: Band,
    /// Position of query row 0 among the keys, for ALiBi.
    pub offset: i64,
}

/// Temperatures, all positive and finite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Temperatures<'a> {
    /// One for all rows.
    One(f32),
    /// One for each query head.
    PerHead(&'a [f32]),
    /// One for each row: `[batch, query_heads, queries]`, contiguous.
    PerRow(&'a [f32]),
}

/// How to compute it: the choice of a plan.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// The level; its token proves that the kernel may run.
    pub level: Level,
    /// The kernel, one of [`kernels`] of that level.
    pub kernel: &'static Kernel,
    /// Keys of a block; even, and the one choice that alters the order of summation.
    pub key_block: usize,
    /// Query rows of a task.
    pub query_block: usize,
    /// Whether K and V are copied to contiguous scratch block by block.
    pub copy: bool,
}

/// Where results go.
#[derive(Debug)]
pub struct Outputs<'a> {
    /// `[batch, query_heads, queries, d_v]`
    pub out: ViewMut<'a, f32>,
    /// Log-sum-exp, `[batch, query_heads, queries]`, contiguous; for weightings that have one.
    pub lse: Option<&'a mut [f32]>,
}

/// Runs work on threads of the caller's choice.
pub trait Executor {
    /// The most threads that work at once, at least 1.
    fn threads(&self) -> usize;

    /// Calls `work` from up to [`Executor::threads`] threads and returns when all calls have returned. `work` takes tasks
    /// until there are none; calls beyond that do nothing.
    fn run(&self, work: &(dyn Fn() + Sync));
}

/// f32 of scratch that one thread needs.
fn scratch_len(call: &Call<'_>, choice: &Choice) -> usize {
    // A cache line more, to start at one.
    layout(call, choice).len.saturating_add(16)
}

fn layout(call: &Call<'_>, choice: &Choice) -> Layout {
    let lanes = choice.kernel.tile.rows;
    let [_, _, queries, d] = call.q.shape();
    let [_, _, keys, d_v] = call.v.shape();
    Layout::new(Sizes {
        lanes,
        subtiles: choice.query_block.min(queries.max(1)).div_ceil(lanes),
        key_block: choice.key_block.min(keys.next_multiple_of(2)),
        d,
        d_v,
        state: call.weighting.functions(choice.level).state,
        copy: choice.copy,
    })
}

/// f32 of workspace that `threads` threads need: none where there is nothing to compute, and `usize::MAX` if it is more than
/// can be counted.
pub fn workspace_len(call: &Call<'_>, choice: &Choice, threads: usize) -> usize {
    match tasks(call, choice) {
        0 => 0,
        tasks => scratch_len(call, choice).saturating_mul(threads.clamp(1, tasks)),
    }
}

/// The number of tasks that a call is cut into, which does not depend on threads.
pub fn tasks(call: &Call<'_>, choice: &Choice) -> usize {
    let [batch, heads, queries, _] = call.q.shape();
    batch * heads * queries.div_ceil(choice.query_block)
}

/// Computes `call` into `outputs`.
///
/// # Panics
/// If shapes disagree, `choice` names a kernel of another level, or `workspace` is shorter than [`workspace_len`] for one
/// thread: errors of the caller's code, which `regard` rules out. Threads beyond what `workspace` has room for stay idle.
pub fn run(call: &Call<'_>, choice: &Choice, outputs: Outputs<'_>, workspace: &mut [f32], executor: &dyn Executor) {
    check(call, choice, &outputs);
    let tasks = tasks(call, choice);
    // Without columns of V there may still be a log-sum-exp to compute.
    if tasks == 0 || (call.v.shape()[3] == 0 && outputs.lse.is_none()) {
        return;
    }
    let scratch_len = scratch_len(call, choice);
    let slots = workspace.len() / scratch_len;
    assert!(slots > 0, "workspace of {} f32 is shorter than {scratch_len}", workspace.len());
    let Outputs { mut out, lse } = outputs;
    let launch = Launch {
        call,
        choice,
        layout: layout(call, choice),
        out: out.as_mut_ptr(),
        out_strides: out.strides(),
        lse: lse.map_or(std::ptr::null_mut(), <[f32]>::as_mut_ptr),
        workspace: workspace.as_mut_ptr(),
        scratch_len,
        slots,
        next_slot: AtomicUsize::new(0),
        tasks,
        next_task: AtomicUsize::new(0),
        _borrows: PhantomData,
    };
    let work = || launch.work();
    executor.run(&work);
    // Whatever the executor did, all tasks are done when this returns.
    launch.next_slot.store(0, Ordering::Relaxed);
    launch.work();
}

/// Panics where shapes disagree; everything that pointers rely on beyond the views' own bounds.
fn check(call: &Call<'_>, choice: &Choice, outputs: &Outputs<'_>) {
    let [batch, heads, queries, d] = call.q.shape();
    let [_, kv_heads, keys, d_v] = call.v.shape();
    assert_eq!(call.k.shape(), [batch, kv_heads, keys, d], "k against q and v");
    assert_eq!(call.v.shape()[0], batch, "v against q");
    assert_eq!(outputs.out.shape(), [batch, heads, queries, d_v], "out");
    assert!(heads == 0 || (kv_heads > 0 && heads.is_multiple_of(kv_heads)), "{heads} query heads, {kv_heads} kv heads");
    for (view, name) in [(&call.q, "q"), (&call.k, "k"), (&call.v, "v")] {
        assert!(view.strides()[3] == 1 || view.shape()[3] <= 1, "rows of {name} are not contiguous");
    }
    let pairs = [batch, heads, queries, keys];
    assert!(call.keep.is_none_or(|keep| keep.shape() == pairs), "keep mask");
    assert!(call.bias.is_none_or(|bias| bias.shape() == pairs), "bias");
    assert_eq!(call.sequences.len(), batch, "sequences");
    assert!(call.sequences.iter().all(|sequence| sequence.keys <= keys), "valid keys");
    assert!(u32::try_from(keys).is_ok_and(|keys| keys < u32::MAX), "{keys} keys");
    assert!(call.alibi_slopes.is_none_or(|slopes| slopes.len() == heads), "ALiBi slopes");
    assert!(call.sinks.is_none_or(|sinks| sinks.len() == heads), "sinks");
    let rows = batch * heads * queries;
    match call.temperature {
        Temperatures::One(_) => {}
        Temperatures::PerHead(temperatures) => assert_eq!(temperatures.len(), heads, "temperatures"),
        Temperatures::PerRow(temperatures) => assert_eq!(temperatures.len(), rows, "temperatures"),
    }
    assert!(outputs.lse.as_ref().is_none_or(|lse| lse.len() == rows), "log-sum-exp");
    assert!(kernels(choice.level).iter().any(|kernel| std::ptr::eq(kernel, choice.kernel)), "kernel of another level");
    assert!(
        KEY_BLOCKS.contains(&choice.key_block) && choice.key_block.is_multiple_of(2),
        "key block {}",
        choice.key_block
    );
    assert!(choice.query_block > 0, "query block");
}

/// Elements from a row to the next. There is no memory to step through without columns or a second row, whatever the
/// strides say.
fn row_stride([.., rows, columns]: [usize; 4], [.., stride, _]: [usize; 4]) -> usize {
    if columns == 0 || rows <= 1 { 0 } else { stride }
}

/// A call on its way: the pointers, and the counters that hand out tasks and scratch.
struct Launch<'a> {
    call: &'a Call<'a>,
    choice: &'a Choice,
    layout: Layout,
    out: *mut f32,
    out_strides: [usize; 4],
    /// Null for none.
    lse: *mut f32,
    workspace: *mut f32,
    scratch_len: usize,
    slots: usize,
    next_slot: AtomicUsize,
    tasks: usize,
    next_task: AtomicUsize,
    _borrows: PhantomData<&'a mut [f32]>,
}

// SAFETY: threads share the pointers, and write through them only to the rows of a task and to a slot of scratch that
// a counter gave to them alone; everything else is read-only.
unsafe impl Sync for Launch<'_> {}

impl Launch<'_> {
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
        let start = self.workspace.wrapping_add(slot * self.scratch_len);
        let scratch = start.wrapping_add(start.align_offset(64));
        loop {
            let task = self.next_task.fetch_add(1, Ordering::Relaxed);
            if task >= self.tasks {
                return;
            }
            // SAFETY: the counter gives each task to one thread, and the slot is this thread's alone: the scratch is its
            // `scratch_len` f32 of the workspace less at most 15 before the first cache line.
            unsafe { self.task(task, scratch) };
        }
    }

    /// The rows of task `index`: longest first, as later rows see more keys under a causal mask.
    ///
    /// # Safety
    /// No one else runs this task or uses this scratch.
    unsafe fn task(&self, index: usize, scratch: *mut f32) {
        let Self { call, choice, .. } = *self;
        let [batch_size, heads, queries, d] = call.q.shape();
        let blocks = queries.div_ceil(choice.query_block);
        let block = blocks - 1 - index / (batch_size * heads);
        let (batch, head) = (index % (batch_size * heads) / heads, index % heads);
        let kv_head = head / (heads / call.k.shape()[1]);
        let first_row = block * choice.query_block;
        let sequence = &call.sequences[batch];
        let row = (batch * heads + head) * queries;
        let matrix = |strides: [usize; 4]| (strides[2], strides[3]);
        let q_stride = row_stride(call.q.shape(), call.q.strides());
        let out_stride = row_stride([batch_size, heads, queries, call.v.shape()[3]], self.out_strides);
        let arguments = Head {
            q: call.q.head(batch, head).wrapping_add(first_row * q_stride),
            q_stride,
            first_row,
            rows: choice.query_block.min(queries - first_row),
            k: call.k.head(batch, kv_head),
            k_stride: row_stride(call.k.shape(), call.k.strides()),
            v: call.v.head(batch, kv_head),
            v_stride: row_stride(call.v.shape(), call.v.strides()),
            keys: sequence.keys,
            d,
            d_v: call.v.shape()[3],
            out: self.out.wrapping_add(head_offset(self.out_strides, batch, head)).wrapping_add(first_row * out_stride),
            out_stride,
            lse: if self.lse.is_null() { self.lse } else { self.lse.wrapping_add(row + first_row) },
            band: sequence.band,
            keep: call.keep.map(|keep| {
                let (row_stride, key_stride) = matrix(keep.strides());
                Matrix { data: keep.head(batch, head), row_stride, key_stride }
            }),
            bias: call.bias.map(|bias| {
                let (row_stride, key_stride) = matrix(bias.strides());
                Matrix { data: bias.head(batch, head), row_stride, key_stride }
            }),
            alibi: call.alibi_slopes.map(|slopes| Alibi { slope: slopes[head], offset: sequence.offset }),
            scale: call.scale,
            softcap: call.softcap,
            sink: call.sinks.map(|sinks| sinks[head]),
            rules: RowRules {
                temperature: match call.temperature {
                    Temperatures::One(temperature) => Temperature::One(temperature),
                    Temperatures::PerHead(temperatures) => Temperature::One(temperatures[head]),
                    Temperatures::PerRow(temperatures) => Temperature::Rows(&temperatures[row..row + queries]),
                },
                schedule: call.schedule,
                count: call.count,
                shift: call.shift,
                coefficient: call.coefficient,
                exponent: call.exponent,
            },
            weighting: Weigh {
                functions: call.weighting.functions(choice.level),
                data: call.weighting.data(),
                _data: PhantomData,
            },
            key_block: choice.key_block.min(call.k.shape()[2].next_multiple_of(2)).max(2),
            copy: choice.copy,
        };
        // SAFETY: `check` has compared the shapes and found the kernel in the table of a detected level, the views prove
        // the bounds of every row, and task and scratch are this thread's alone.
        unsafe { choice.kernel.run(&arguments, scratch, self.layout) }
    }
}
