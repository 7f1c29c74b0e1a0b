//! Threads that take their samples together.

use std::sync::Barrier;

/// A number of threads.
pub(super) struct Team {
    threads: usize,
}

impl Team {
    /// `threads` is at least 1.
    pub(super) fn new(threads: usize) -> Self {
        Self { threads: threads.max(1) }
    }

    pub(super) fn threads(&self) -> usize {
        self.threads
    }

    /// Rates of all threads together, one for each of `samples`. `make` prepares a sampler on each thread: memory is
    /// written first by the thread that will read it, which decides the node that it lies on.
    ///
    /// The samples of a round begin together; what is added up are the rates that each thread had for itself. The last
    /// one to end a sample has less company at its end, which is little of it: samples last equally long by design.
    pub(super) fn rates<S: FnMut() -> f64>(&self, samples: usize, make: impl Fn() -> S + Sync) -> Vec<f64> {
        let barrier = Barrier::new(self.threads);
        let work = || {
            let mut sample = make();
            let one = |_| {
                barrier.wait();
                sample()
            };
            // The first round is for the caches, the clock and the pages of the buffers.
            (0..=samples).map(one).skip(1).collect::<Vec<f64>>()
        };
        let all: Vec<Vec<f64>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.threads).map(|_| scope.spawn(work)).collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined.map(|rates| rates.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        });
        (0..samples).map(|round| all.iter().map(|rates| rates[round]).sum()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn rates_of_a_round_add_up() {
        let made = AtomicUsize::new(0);
        let rates = Team::new(3).rates(4, || {
            let thread = made.fetch_add(1, Ordering::Relaxed);
            let mut round = 0;
            move || {
                round += 1;
                10.0_f64.powi(thread as i32) * f64::from(round)
            }
        });
        // The first round does not count.
        assert_eq!(rates, [222.0, 333.0, 444.0, 555.0]);
        assert_eq!(made.into_inner(), 3);
    }
}
