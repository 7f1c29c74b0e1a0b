//! Several threads on one head.
//!
//! A state is a chain over the chunks, but sums of different monomials are chains of their own, and rows are answered apart. So
//! threads prepare chunks, then fold them, each thread some monomials, every state that rows ask for in a place of its own, and
//! then answer rows from these states. The chains are those of one thread, and so is every bit: how many threads there are, and
//! which heads they share, is free. (Spans with states of their own, merged in order, would fold all keys twice where rows ask
//! for the states in between.)
//!
//! Chunks go by windows, which bounds the memory. Threads meet once for each: what is prepared, what is folded and what is
//! answered between two meetings are three windows in a row.

use super::Method;
use super::crew::Crew;
use super::head::Head;
use super::run::Team;
use super::scratch::{HandLayout, ROWS, StateLayout};
use super::steps::{Step, steps};
use crate::launch::{Call, Sequence};

/// Multiply-adds from which on threads share a head. On two cores of Zen 4, one head, causal, degree 2: at a quarter of it (d 16,
/// 4096 keys, 0.7 ms) two threads took 1.15 times as long as one, at twice as many (d 64, 512 keys, 2.1 ms) they were 1.45 times
/// as fast, and 1.5 to 1.8 times from 1024 to 65536 keys. What is missing to 2 is that states are written and read once each
/// through the last level of caches, where one thread keeps its only state nearer.
pub(super) const LEAST_WORK: f64 = (1 << 26) as f64;

/// Multiply-adds of a window: a meeting must be little against them.
const WINDOW_WORK: f64 = (1 << 28) as f64;

/// The most chunks of a window.
const MOST_CHUNKS: usize = 64;

/// The most f32 of states and chunks of all windows at hand, unless those of a single chunk are more.
const MOST_MEMORY: usize = 1 << 24;

/// What threads that share a head reach of what they reach on heads of their own.
const EFFICIENCY: f64 = 0.8;

/// Where states and chunks lie.
#[derive(Clone, Copy)]
pub(super) struct Windows {
    state: StateLayout,
    hand: HandLayout,
    /// Chunks of a window.
    chunks: usize,
}

impl Windows {
    pub(super) fn new(method: &Method, d_v: usize, threads: usize) -> Self {
        let sizes = method.sizes(d_v);
        let (state, hand) = (StateLayout::new(&sizes), HandLayout::new(&sizes));
        let by_work = (WINDOW_WORK / work(method, d_v, 2.0 * method.chunk as f64)) as usize;
        let step = state.keys.saturating_mul(2).saturating_add(hand.len.saturating_mul(3));
        let by_memory = MOST_MEMORY.saturating_sub(state.keys) / step.max(1);
        Self { state, hand, chunks: threads.max(by_work).min(MOST_CHUNKS).min(by_memory).max(1) }
    }

    /// States that exist at a time: those of the windows that are folded and answered, and the one after them.
    fn states(&self) -> usize {
        2 * self.chunks + 1
    }

    /// Chunks that exist at a time.
    fn hands(&self) -> usize {
        3 * self.chunks
    }

    /// f32 of all of them.
    pub(super) fn len(&self) -> usize {
        let hands = self.hand.len.saturating_mul(self.hands());
        self.state.keys.saturating_mul(self.states()).saturating_add(hands)
    }
}

/// Multiply-adds of the sums of this many rows and keys.
fn work(method: &Method, d_v: usize, rows: f64) -> f64 {
    // Forming a monomial takes about as long as a few columns.
    rows * method.features.count() as f64 * (d_v + 4) as f64
}

/// Rows and keys of all heads that have the KV head `sequence` in common.
fn rows(call: &Call<'_>, sequence: &Sequence) -> f64 {
    let group = call.q.shape()[1] / call.k.shape()[1].max(1);
    (group.saturating_mul(sequence.queries) as f64) + sequence.keys as f64
}

/// Whether a KV head of a sequence is long enough to be shared.
pub fn can_share(call: &Call<'_>, method: &Method, sequence: &Sequence) -> bool {
    sequence.queries > 0 && work(method, call.v.shape()[3], rows(call, sequence)) >= method.share_from
}

/// The tasks, KV heads of sequences, in two parts: those for one thread each, in order, and after them those that all threads
/// share; and how many the first are.
///
/// Shared are heads that take longer than all others together would take the other threads, and what is left over when each
/// thread has got as many of the others as every other.
pub(super) fn parting(call: &Call<'_>, method: &Method, threads: usize) -> (Vec<usize>, usize) {
    let kv_heads = call.k.shape()[1];
    let rows_of = |task: &usize| rows(call, &call.sequences[task / kv_heads]);
    let mut tasks: Vec<usize> = (0..call.sequences.len() * kv_heads).collect();
    tasks.retain(|task| call.sequences[task / kv_heads].queries > 0);
    tasks.sort_by(|a, b| rows_of(a).total_cmp(&rows_of(b)));
    let mut rest: f64 = tasks.iter().map(rows_of).sum();
    let mut alone = tasks.len();
    let can = |task: &usize| can_share(call, method, &call.sequences[task / kv_heads]);
    while let Some(task) = tasks[..alone].last().filter(|task| can(task)) {
        if rows_of(task) * threads as f64 * EFFICIENCY < rest {
            break;
        }
        rest -= rows_of(task);
        alone -= 1;
    }
    let left = alone % threads;
    if alone < 4 * threads && (left as f64) < EFFICIENCY * threads as f64 {
        alone -= tasks[alone - left..alone].iter().filter(|task| can(task)).count();
    }
    tasks[..alone].sort_unstable();
    (tasks, alone)
}

/// One head that threads share.
pub(super) struct SharedHead<'a> {
    team: &'a Team<'a>,
    windows: Windows,
    /// `[states][sums and norms]`, `[hands][chunk]`
    memory: *mut f32,
    sequence: usize,
    kv_head: usize,
    steps: Vec<Step>,
    /// Before each step, and at the end, the number of states so far that rows ask for: the place of the state.
    places: Vec<usize>,
}

/// Rows of one query head.
struct Block {
    step: usize,
    query_head: usize,
    first: usize,
    rows: usize,
}

impl<'a> SharedHead<'a> {
    pub(super) fn new(team: &'a Team<'a>, windows: Windows, memory: *mut f32, task: usize) -> Self {
        let kv_heads = team.call.k.shape()[1];
        let (sequence, kv_head) = (task / kv_heads, task % kv_heads);
        let steps: Vec<_> = steps(&team.call.sequences[sequence], team.method.chunk).collect();
        let mut places = vec![0];
        for step in &steps {
            // What no row asks for is added to where it lies.
            let kept = step.fold && !step.rows.is_empty();
            places.push(places[places.len() - 1] + usize::from(kept));
        }
        Self { team, windows, memory, sequence, kv_head, steps, places }
    }

    /// Computes the head.
    ///
    /// # Safety
    /// No one else works on the head or uses the memory, which is zero where chunks lie.
    pub(super) unsafe fn run(&self, crew: &Crew<'_>) {
        // Of few windows none would be prepared while others are folded and answered.
        let chunks = self.windows.chunks.min(self.steps.len().div_ceil(4).max(crew.threads));
        let windows = self.steps.len().div_ceil(chunks);
        let steps =
            |window: usize| (window * chunks).min(self.steps.len())..((window + 1) * chunks).min(self.steps.len());
        let tiles = self.team.method.features.key_tiles();
        let slice = tiles.len().div_ceil(2 * crew.threads).max(1);
        // SAFETY: there is a first state.
        unsafe { self.state(0).write_bytes(0, self.windows.state.keys) };
        for meeting in 0..windows + 2 {
            let prepared = steps(meeting);
            let folded = meeting.checked_sub(1).map_or(0..0, steps);
            let blocks = meeting.checked_sub(2).map_or(Vec::new(), |window| self.blocks(steps(window)));
            let slices = if folded.is_empty() { 0 } else { tiles.len().div_ceil(slice) };
            // The longest first.
            crew.share(slices + blocks.len() + prepared.len(), &|job, memory| {
                // SAFETY: jobs write different sums, rows and chunks. Chunks that are prepared, folded and asked for
                // are different ones, and the states that are asked for are not those that are written, as there are
                // places enough for three windows of chunks and two of states.
                unsafe {
                    if job < slices {
                        let tiles = &tiles[job * slice..((job + 1) * slice).min(tiles.len())];
                        for step in folded.clone().filter(|step| self.steps[*step].fold) {
                            self.head(step, memory).add(tiles, self.state(step + 1));
                        }
                    } else if let Some(block) = blocks.get(job - slices) {
                        let rows = block.first..block.first + block.rows;
                        self.team.attend(&self.head(block.step, memory), self.sequence, block.query_head, rows);
                    } else {
                        self.prepare(prepared.start + job - slices - blocks.len(), memory);
                    }
                }
            });
        }
    }

    /// The rows that are answered in some steps.
    fn blocks(&self, steps: std::ops::Range<usize>) -> Vec<Block> {
        let heads = self.team.query_heads(self.kv_head);
        let mut blocks = Vec::new();
        for step in steps {
            let rows = self.steps[step].rows.clone();
            for query_head in heads.clone() {
                for first in rows.clone().step_by(ROWS) {
                    blocks.push(Block { step, query_head, first, rows: ROWS.min(rows.end - first) });
                }
            }
        }
        blocks
    }

    /// # Safety
    /// No one else uses the chunk of the step.
    unsafe fn prepare(&self, step: usize, memory: *mut f32) {
        let keys = self.steps[step].keys.clone();
        if keys.is_empty() {
            return;
        }
        let mut head = self.head(step, memory);
        head.filled = 0;
        // SAFETY: the caller's contract; the views prove that the rows exist.
        unsafe {
            self.team.load(&mut head, self.sequence, self.kv_head, keys);
            if self.steps[step].fold {
                head.turn();
            }
        }
    }

    /// The head before a step, with its chunk at hand.
    fn head(&self, step: usize, memory: *mut f32) -> Head<'a> {
        let hands = self.memory.wrapping_add(self.windows.states() * self.windows.state.keys);
        let hand = hands.wrapping_add(step % self.windows.hands() * self.windows.hand.len);
        let keys = &self.steps[step].keys;
        let head = self.team.head(self.kv_head, memory);
        Head {
            state: self.state(step),
            hand: self.windows.hand.at(hand),
            folded: keys.start,
            filled: keys.len(),
            ..head
        }
    }

    /// The state before a step.
    fn state(&self, step: usize) -> *mut f32 {
        self.memory.wrapping_add(self.places[step] % self.windows.states() * self.windows.state.keys)
    }
}
