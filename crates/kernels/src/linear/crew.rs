//! Threads that take jobs.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::scratch::LINE;
use crate::launch::Executor;

/// Threads, each with memory of its own.
pub(super) struct Crew<'a> {
    pub(super) executor: &'a dyn Executor,
    /// The most threads that work at once, at least 1.
    pub(super) threads: usize,
    /// `[threads][len]`
    pub(super) workspace: *mut f32,
    pub(super) len: usize,
}

/// A job: its number, and memory that no other job uses meanwhile, which starts at a multiple of some cache lines.
type Job<'a> = &'a dyn Fn(usize, *mut f32);

/// Jobs that are done at once, and the counters that hand out jobs and memory.
struct Shift<'a> {
    crew: &'a Crew<'a>,
    job: Job<'a>,
    jobs: usize,
    next_slot: AtomicUsize,
    next_job: AtomicUsize,
}

// SAFETY: jobs of different numbers may run at once, each with memory of its own: that is what `Crew::share` is called for.
// The counters give each job and each slot of memory to one thread.
unsafe impl Sync for Shift<'_> {}

impl Crew<'_> {
    /// Calls `job` with every number below `jobs`, each once. All are done when this returns. With one thread, nothing is
    /// allocated and the executor is not asked.
    pub(super) fn share(&self, jobs: usize, job: Job<'_>) {
        let shift = Shift { crew: self, job, jobs, next_slot: AtomicUsize::new(0), next_job: AtomicUsize::new(0) };
        if self.threads > 1 && jobs > 1 {
            self.executor.run(&|| shift.work());
            // Whatever the executor did, all jobs are done when this returns.
            shift.next_slot.store(0, Ordering::Relaxed);
        }
        shift.work();
    }
}

impl Shift<'_> {
    /// Takes jobs until there are none.
    fn work(&self) {
        // Looked at first, so that no number of calls makes the counter wrap and hand out a slot twice.
        if self.next_slot.load(Ordering::Relaxed) >= self.crew.threads {
            return;
        }
        let slot = self.next_slot.fetch_add(1, Ordering::Relaxed);
        if slot >= self.crew.threads {
            return;
        }
        let memory = self.crew.workspace.wrapping_add(slot * self.crew.len);
        let memory = memory.wrapping_add(memory.align_offset(4 * LINE));
        loop {
            let number = self.next_job.fetch_add(1, Ordering::Relaxed);
            if number >= self.jobs {
                return;
            }
            (self.job)(number, memory);
        }
    }
}
