//! Softmax attention of one query at every prefix of the keys: attention as a recurrent network.
//!
//! The keys are cut into chunks of a fixed size. Their partial results merge from left to right, and each chunk
//! computes its own prefixes from what the chunks before it came to. One thread does that in one pass over K and V; several
//! threads first compute what the chunks come to, some thousands of keys at a time, and then all prefixes. The chunks and the
//! order of merges are the same, and so is every bit.

mod chunk;

use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

use regard_simd::Level;

use self::chunk::{CHUNK, Chunk, Emit};
use crate::launch::{Executor, Temperatures};
use crate::partial::Fold;
use crate::rules::{Weigh, gain, sink_log2};
use crate::source::Source;
use crate::tensor::Tensor;
use crate::view::ViewMut;
use crate::weighting::{AnyWeighting, MAX_STATE, RowState, Softmax, Weighting};

/// Chunks that threads work on between two meetings: what they come to takes a 256th of the room of the values.
const GROUP: usize = 64;

/// What is to be computed, resolved to plain numbers. The crate `regard` makes it from checked options.
#[derive(Clone, Copy, Debug)]
pub struct Prefixes<'a> {
    /// `[batch, query_heads, d]`: one query for each head.
    pub q: &'a [f32],
    /// `[batch, query_heads]`
    pub heads: [usize; 2],
    /// `[batch, kv_heads, keys, d]`
    pub k: Tensor<'a>,
    /// `[batch, kv_heads, keys, d_v]`
    pub v: Tensor<'a>,
    /// Factor of the scores.
    pub scale: f32,
    /// `c` of `c * tanh(s / c)`.
    pub softcap: Option<f32>,
    /// Divides the scores last. Not one for each row.
    pub temperature: Temperatures<'a>,
    /// One logit for each query head.
    pub sinks: Option<&'a [f32]>,
}

/// Computes all prefixes: row `j` of `out`, `[batch, query_heads, keys, d_v]` with contiguous rows, is attention over the
/// keys `0..=j`, and `lse`, `[batch, query_heads, keys]`, has their log-sum-exps.
///
/// It takes room for the queries and for 64 chunks of each head; none of it depends on the number of keys.
///
/// # Panics
/// If shapes disagree: errors of the caller's code, which `regard` rules out.
pub fn prefixes(
    call: &Prefixes<'_>,
    level: Level,
    mut out: ViewMut<'_, f32>,
    lse: Option<&mut [f32]>,
    executor: &dyn Executor,
) {
    let keys = check(call, &out, lse.as_deref());
    let [batch, heads] = call.heads;
    let d_v = call.v.shape()[3];
    let rows = batch * heads;
    if rows == 0 || keys == 0 {
        return;
    }
    let signed: Vec<f32> = if call.turned() { call.q.iter().map(|x| -x).collect() } else { call.q.to_vec() };
    let strides = out.strides();
    let target = Output {
        out: out.as_mut_ptr(),
        strides: [strides[0], strides[1], if keys > 1 { strides[2] } else { 0 }],
        lse: lse.map_or(std::ptr::null_mut(), <[f32]>::as_mut_ptr),
        _borrow: PhantomData,
    };
    let threads = executor.threads();
    let apart = threads > 1 && rows < 2 * threads && keys > CHUNK;
    // Heads that are done by one thread each need one chunk at a time; chunks that are done apart a place for each.
    let places = if apart { GROUP } else { 1 };
    let mut scores = vec![0.0; rows * places * CHUNK];
    let mut states = vec![Weighting::begin_row(&Softmax); rows * (places + 1)];
    let mut sums = vec![0.0; rows * (places + 1) * d_v];
    let scan = Scan {
        call,
        level,
        q: &signed,
        keys,
        target,
        places,
        scores: scores.as_mut_ptr(),
        states: states.as_mut_ptr(),
        sums: sums.as_mut_ptr(),
    };
    if !apart {
        // SAFETY: each head is done by one thread.
        return share(executor, rows, &|head| unsafe { scan.head(head) });
    }
    let chunks = keys.div_ceil(CHUNK);
    for first in (0..chunks).step_by(GROUP) {
        let count = GROUP.min(chunks - first);
        // SAFETY: each chunk is done by one thread, and the carries by this one between the two meetings.
        unsafe {
            share(executor, rows * count, &|job| scan.total(job / count, first + job % count));
            (0..rows).for_each(|head| scan.carry(head, count));
            share(executor, rows * count, &|job| scan.emit(job / count, first + job % count));
        }
    }
}

/// The number of keys.
fn check(call: &Prefixes<'_>, out: &ViewMut<'_, f32>, lse: Option<&[f32]>) -> usize {
    let [batch, heads] = call.heads;
    let [kv_batch, kv_heads, keys, d] = call.k.shape();
    let d_v = call.v.shape()[3];
    assert_eq!(call.q.len(), batch * heads * d, "queries");
    assert_eq!(call.v.shape()[..3], [batch, kv_heads, keys], "values");
    assert_eq!(kv_batch, batch, "keys");
    assert!(heads == 0 || (kv_heads > 0 && heads.is_multiple_of(kv_heads)), "{heads} query heads, {kv_heads} kv heads");
    assert_eq!(out.shape(), [batch, heads, keys, d_v], "out");
    assert!(out.strides()[3] == 1 || d_v <= 1, "rows of the output are not contiguous");
    for tensor in [&call.k, &call.v] {
        assert!(tensor.strides()[3] == 1 || tensor.shape()[3] <= 1, "rows are not contiguous");
        if let Tensor::Int8(quantised) = tensor {
            let [batch, heads, rows, _] = tensor.shape();
            assert_eq!(quantised.scales.shape(), [batch, heads, rows, 1], "scales");
        }
    }
    assert!(lse.is_none_or(|lse| lse.len() == batch * heads * keys), "log-sum-exp");
    assert!(call.sinks.is_none_or(|sinks| sinks.len() == heads), "sinks");
    match call.temperature {
        Temperatures::One(_) => {}
        Temperatures::PerHead(temperatures) => assert_eq!(temperatures.len(), heads, "temperatures"),
        Temperatures::PerRow(_) => panic!("one query has one temperature"),
    }
    keys
}

/// Calls `job` with every number below `jobs`, each once, from the threads of `executor`.
fn share(executor: &dyn Executor, jobs: usize, job: &dyn Fn(usize)) {
    struct Shared<'a>(&'a dyn Fn(usize));
    // SAFETY: jobs of different numbers may run at once; that is what `share` is called for.
    unsafe impl Sync for Shared<'_> {}
    impl Shared<'_> {
        fn call(&self, number: usize) {
            (self.0)(number);
        }
    }
    let job = Shared(job);
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= jobs {
                return;
            }
            job.call(number);
        }
    };
    if executor.threads() > 1 && jobs > 1 {
        executor.run(&work);
    }
    // Whatever the executor did, all jobs are done when this returns.
    work();
}

impl Prefixes<'_> {
    /// Whether the scale is applied to scores, and not to what becomes of them.
    fn has_terms(&self) -> bool {
        self.softcap.is_some() || self.scale == 0.0
    }

    /// Whether the sign of queries is turned, so that a negative scale leaves the order of scores right.
    fn turned(&self) -> bool {
        self.scale < 0.0 && !self.has_terms()
    }
}

/// Where results go.
#[derive(Clone, Copy)]
struct Output<'a> {
    out: *mut f32,
    /// Elements from a batch entry, a head, a row to the next.
    strides: [usize; 3],
    /// Null for none.
    lse: *mut f32,
    _borrow: PhantomData<&'a mut f32>,
}

/// A call on its way, and its memory: for each row of `[batch, query_heads]` a carry and some places for chunks.
struct Scan<'a> {
    call: &'a Prefixes<'a>,
    level: Level,
    /// Queries, the sign turned where the scale is negative.
    q: &'a [f32],
    keys: usize,
    target: Output<'a>,
    /// Places for chunks of each row.
    places: usize,
    /// `[row][place][CHUNK]`
    scores: *mut f32,
    /// `[row][carry, places ..]`
    states: *mut RowState,
    /// `[row][carry, places ..][d_v]`
    sums: *mut f32,
}

impl Scan<'_> {
    /// All chunks of a row, one after the other.
    ///
    /// # Safety
    /// No one else works on the row.
    unsafe fn head(&self, row: usize) {
        for chunk in 0..self.keys.div_ceil(CHUNK) {
            // SAFETY: the caller's contract.
            unsafe {
                self.chunk(row, chunk, 0, false, Some(0));
                self.fold(row, 1);
            }
        }
    }

    /// What a chunk comes to.
    ///
    /// # Safety
    /// No one else works on the chunk.
    unsafe fn total(&self, row: usize, chunk: usize) {
        // SAFETY: the caller's contract.
        unsafe { self.chunk(row, chunk, chunk % GROUP, false, None) };
    }

    /// The prefixes of a chunk, whose place holds what comes before it.
    ///
    /// # Safety
    /// No one else works on the chunk; its scores are known, and carries were made.
    unsafe fn emit(&self, row: usize, chunk: usize) {
        // SAFETY: the caller's contract.
        unsafe { self.chunk(row, chunk, chunk % GROUP, true, Some(1 + chunk % GROUP)) };
    }

    /// Replaces what each of `count` chunks comes to by what comes before it, and carries on past the last.
    ///
    /// # Safety
    /// No one else works on the row.
    unsafe fn carry(&self, row: usize, count: usize) {
        let d_v = self.d_v();
        let mut before = vec![0.0; d_v];
        for place in 1..=count {
            // SAFETY: the places are those of the row.
            unsafe {
                let (carry, carry_sums) = self.place(row, 0);
                let (state, sums) = self.place(row, place);
                let state_before = *carry;
                before.as_mut_ptr().copy_from_nonoverlapping(carry_sums, d_v);
                self.fold(row, place);
                *state = state_before;
                sums.copy_from_nonoverlapping(before.as_ptr(), d_v);
            }
        }
    }

    /// Merges a place into the carry of its row.
    ///
    /// # Safety
    /// No one else uses them.
    unsafe fn fold(&self, row: usize, place: usize) {
        let weighting: &dyn AnyWeighting = &Softmax;
        let weigh = Weigh { functions: weighting.functions(self.level), data: weighting.data(), _data: PhantomData };
        // SAFETY: the caller's contract; places lie apart.
        unsafe {
            let (carry, carry_sums) = self.place(row, 0);
            let (state, sums) = self.place(row, place);
            self.level.dispatch(Fold {
                weighting: weigh,
                gain: self.gain(row),
                left: &mut *carry,
                left_sums: carry_sums,
                right: &*state,
                right_sums: sums,
                d_v: self.d_v(),
            });
        }
    }

    /// One chunk, with its own place for scores. Its prefixes go out if there is a place for what comes before it: the carry, or
    /// the chunk's own. What the chunk comes to goes to its own place, unless that is taken.
    ///
    /// # Safety
    /// No one else works on the chunk or uses the places.
    unsafe fn chunk(&self, row: usize, chunk: usize, own: usize, known: bool, before: Option<usize>) {
        let Self { call, target, .. } = *self;
        let [_, heads] = call.heads;
        let (batch, head) = (row / heads, row % heads);
        let (d, d_v) = (call.k.shape()[3], self.d_v());
        let kv_head = head / (heads / call.k.shape()[1]);
        let first = chunk * CHUNK;
        let [batch_stride, head_stride, row_stride] = target.strides;
        // SAFETY: the caller's contract; `check` has compared the shapes, and views prove the bounds of every row.
        unsafe {
            let mut spare_state = RowState([0.0; MAX_STATE]);
            let (state, sums) = match before {
                // The place holds what comes before.
                Some(place) if place > 0 => (&raw mut spare_state, std::ptr::null_mut()),
                _ => self.place(row, 1 + own),
            };
            let emit = before.map(|place| {
                let (carry, carry_sums) = self.place(row, place);
                Emit {
                    carry: &*carry,
                    carry_sums,
                    out: (target.out)
                        .wrapping_add(batch.wrapping_mul(batch_stride))
                        .wrapping_add(head.wrapping_mul(head_stride))
                        .wrapping_add(first.wrapping_mul(row_stride)),
                    out_stride: row_stride,
                    lse: if target.lse.is_null() { target.lse } else { target.lse.add(row * self.keys + first) },
                }
            });
            self.level.dispatch(Chunk {
                q: &self.q[row * d..][..d],
                k: Source::new(&call.k, batch, kv_head, 0, None),
                v: Source::new(&call.v, batch, kv_head, 0, None),
                first,
                keys: CHUNK.min(self.keys - first),
                d_v,
                scale: call.has_terms().then_some(call.scale),
                softcap: call.softcap,
                gain: self.gain(row),
                sink: sink_log2(call.sinks.map(|sinks| sinks[head])),
                scores: self.scores.add((row * self.places + own) * CHUNK),
                known,
                emit,
                state: &mut *state,
                sums,
            });
        }
    }

    fn d_v(&self) -> usize {
        self.call.v.shape()[3]
    }

    /// State and sums of a place of a row; place 0 is its carry.
    ///
    /// # Safety
    /// The row has the place.
    unsafe fn place(&self, row: usize, place: usize) -> (*mut RowState, *mut f32) {
        let index = row * (self.places + 1) + place;
        // SAFETY: the caller's contract.
        unsafe { (self.states.add(index), self.sums.add(index * self.d_v())) }
    }

    fn gain(&self, row: usize) -> f32 {
        let call = self.call;
        let temperature = match call.temperature {
            Temperatures::One(temperature) => temperature,
            Temperatures::PerHead(temperatures) => temperatures[row % call.heads[1]],
            Temperatures::PerRow(_) => unreachable!("`check` has looked"),
        };
        gain(true, if call.has_terms() { 1.0 } else { call.scale }, 1.0 / temperature)
    }
}
