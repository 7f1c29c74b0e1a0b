//! What a plan needs of memory, for the problems that it may meet.

use regard_kernels::launch::{self, Call, Choice, Sequence};
use regard_kernels::linear::{self, Method};

use crate::Problem;

/// Sizes of the workspace in f32; `usize::MAX` if it is more than can be counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Needs {
    /// For each thread.
    thread: usize,
    /// For the partial results of all spans, with more threads than one.
    spans: usize,
    /// The tasks of the planned problem.
    pub(super) tasks: usize,
    /// The most tasks that a problem may have.
    most_tasks: usize,
    /// Whether threads may share a head in the linear form.
    shares: bool,
}

impl Needs {
    /// The same with what the linear form needs of memory: for each thread, and for all that share a head of up to `most_keys`
    /// keys.
    pub(super) fn with_linear(
        self,
        problem: &Problem<'_>,
        method: Option<&Method>,
        most_keys: usize,
        tasks: usize,
    ) -> Self {
        let Some(method) = method else { return self };
        let call = problem.call();
        let thread = self.thread.max(linear::workspace_len(&call, method, 1));
        let longest = |sequence: &Sequence| Sequence { keys: most_keys.max(sequence.keys), ..*sequence };
        let sequences: Vec<_> = call.sequences.iter().map(longest).collect();
        let most_tasks = self.most_tasks.max(linear::tasks(&Call { sequences: &sequences, ..call }, method));
        let shares = sequences.iter().any(|sequence| linear::can_share(&call, method, sequence));
        Self { thread, tasks, most_tasks, shares, ..self }
    }

    /// The needs of `problem`, and of all that differ from it in their keys only, of which a sequence has up to
    /// `most_keys`.
    pub(super) fn new(problem: &Problem<'_>, choice: &Choice, most_keys: usize) -> Self {
        let call = problem.call();
        let own = Self::of(&call, choice);
        if !problem.mixed {
            return own;
        }
        let with = |keys: &dyn Fn(&Sequence) -> usize| {
            let sequences: Vec<_> =
                call.sequences.iter().map(|sequence| Sequence { keys: keys(sequence), ..*sequence }).collect();
            Self::of(&Call { sequences: &sequences, ..call }, choice)
        };
        let longest = with(&|_| most_keys);
        let group = problem.shape.group();
        let split = with(&|sequence| most_split(choice, group, sequence.queries, most_keys));
        Self {
            thread: own.thread.max(longest.thread).max(split.thread),
            spans: own.spans.max(longest.spans).max(split.spans),
            tasks: own.tasks,
            most_tasks: own.tasks.max(longest.tasks).max(split.tasks),
            shares: false,
        }
    }

    fn of(call: &Call<'_>, choice: &Choice) -> Self {
        let tasks = launch::tasks(call, choice);
        let thread = launch::workspace_len(call, choice, 1);
        let two = launch::workspace_len(call, choice, 2);
        let spans = if tasks < 2 { 0 } else { two.saturating_sub(thread.saturating_mul(2)) };
        Self { thread, spans, tasks, most_tasks: tasks, shares: false }
    }

    /// f32 for this many threads; those of heads that are shared are counted by `shared`.
    pub(super) fn len(&self, threads: usize, shared: impl Fn(usize) -> usize) -> usize {
        let threads = threads.clamp(1, self.most_tasks.max(1));
        let spans = if threads == 1 { 0 } else { self.spans };
        let own = self.thread.saturating_mul(threads);
        own.saturating_add(if self.shares { spans.max(shared(threads)) } else { spans })
    }
}

/// The number of keys up to `most` that is split into most spans. Spans grow with the number of keys, so that a few
/// keys more may be split into fewer; where they grow, there were as many as there may be just before.
fn most_split(choice: &Choice, group: usize, queries: usize, most: usize) -> usize {
    let key_block = choice.key_block_for(group, queries);
    let span = |keys: usize| choice.split.span(queries, keys, key_block);
    let longest = span(most);
    // The first number of keys with the longest span.
    let (mut low, mut high) = (0, most);
    while low < high {
        let middle = low + (high - low) / 2;
        if span(middle) < longest {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    let before = low.saturating_sub(1);
    let spans = |keys: usize| keys.div_ceil(span(keys));
    if spans(before) > spans(most) { before } else { most }
}
