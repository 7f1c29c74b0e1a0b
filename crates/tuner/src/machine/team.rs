//! Threads that take their samples together.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number of threads.
pub(super) struct Team {
    threads: usize,
}

/// Takes a sample on the calling thread while all others of its team take theirs, and gives the sum of all rates.
pub(super) type Together<'a> = &'a dyn Fn(&mut dyn FnMut() -> f64) -> f64;

impl Team {
    /// `threads` is at least 1.
    pub(super) fn new(threads: usize) -> Self {
        Self { threads: threads.max(1) }
    }

    pub(super) fn threads(&self) -> usize {
        self.threads
    }

    /// Does `work` on every thread, and gives what it came to. Memory is written first by the thread that will read it, which
    /// decides the node that it lies on.
    ///
    /// All threads get the same sums, so that all of them take the same decisions, and as many samples: nobody leads.
    ///
    /// The samples of a round begin together; what is added up are the rates that each thread had for itself. The last
    /// one to end a sample has less company at its end, which is little of it: samples last equally long by design.
    pub(super) fn work<R: Send>(&self, work: impl Fn(Together<'_>) -> R + Sync) -> R {
        let barrier = Barrier::new(self.threads);
        let rates: Vec<AtomicU64> = (0..self.threads).map(|_| AtomicU64::new(0)).collect();
        let on_thread = |thread: usize| {
            work(&|sample| {
                // Nobody is here before all have read the rates of the round before.
                barrier.wait();
                let rate = sample();
                rates[thread].store(rate.to_bits(), Ordering::Relaxed);
                barrier.wait();
                rates.iter().map(|rate| f64::from_bits(rate.load(Ordering::Relaxed))).sum()
            })
        };
        std::thread::scope(|scope| {
            let on_thread = &on_thread;
            let threads: Vec<_> = (0..self.threads).map(|thread| scope.spawn(move || on_thread(thread))).collect();
            let mut results = threads.into_iter().map(|thread| thread.join());
            let mut next = || results.next().map(|it| it.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            let first = next().expect("there is a thread");
            while next().is_some() {}
            first
        })
    }

    /// Rates of all threads together, one for each of `samples`. `make` prepares a sampler on each thread.
    pub(super) fn rates<S: FnMut() -> f64>(&self, samples: usize, make: impl Fn() -> S + Sync) -> Vec<f64> {
        self.work(|together| {
            let mut sample = make();
            // The first round is for the caches, the clock and the pages of the buffers.
            (0..=samples).map(|_| together(&mut sample)).skip(1).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

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

    #[test]
    fn everybody_hears_the_same_and_nobody_is_early() {
        let next = AtomicUsize::new(0);
        let heard = std::sync::Mutex::new(Vec::new());
        Team::new(4).work(|together| {
            let thread = next.fetch_add(1, Ordering::Relaxed) as f64;
            let mut sums = Vec::new();
            for round in 0..200 {
                // What comes next depends on what was heard.
                let last = sums.last().copied().unwrap_or(0.0);
                sums.push(together(&mut || last / 8.0 + thread * f64::from(round % 7)));
            }
            heard.lock().unwrap().push(sums);
        });
        let heard = heard.into_inner().unwrap();
        assert_eq!(heard.len(), 4);
        let mut expected = 0.0;
        for round in 0..200 {
            expected = expected / 2.0 + 6.0 * f64::from(round % 7);
            for sums in &heard {
                assert!((sums[round as usize] - expected).abs() < 1e-9 * (1.0 + expected), "round {round}");
                assert_eq!(sums, &heard[0]);
            }
        }
    }
}
