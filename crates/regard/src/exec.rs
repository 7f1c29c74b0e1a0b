//! Threads of the caller's choice.

use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};
use regard_kernels::launch::Executor;

use crate::Problem;

/// Below this many floating-point operations a problem stays on the calling thread: waking another one takes about as
/// long as a core computes 2 MFLOP (about 10 us).
const SERIAL_FLOPS: f64 = 4e6;

/// Who does the work.
///
/// The result is the same bit for bit. The library never starts a thread of its own, nor rayon's global pool.
#[derive(Clone, Copy, Debug, Default)]
pub enum Execution<'a> {
    /// The calling thread alone.
    #[default]
    Serial,
    /// The rayon pool that the calling thread belongs to; the calling thread alone if it belongs to none.
    CurrentPool,
    /// This pool.
    Pool(&'a rayon::ThreadPool),
}

impl Execution<'_> {
    /// The same, or serial where threads would not pay.
    pub(crate) fn for_work(self, problem: &Problem<'_>, tasks: usize) -> Self {
        let shape = problem.shape;
        let flops = problem.pairs() * 2.0 * (shape.head_dim + shape.value_dim) as f64;
        if tasks < 2 { Self::Serial } else { self.for_flops(flops) }
    }

    /// The same, or serial where there is too little to do for threads.
    pub(crate) fn for_flops(self, flops: f64) -> Self {
        if flops < SERIAL_FLOPS { Self::Serial } else { self }
    }

    /// The most threads that work at once.
    pub fn threads(&self) -> usize {
        match self {
            Self::Serial => 1,
            // Asking rayon for the number would start its global pool.
            Self::CurrentPool if rayon::current_thread_index().is_none() => 1,
            Self::CurrentPool => rayon::current_num_threads(),
            Self::Pool(pool) => pool.current_num_threads(),
        }
    }
}

impl Executor for Execution<'_> {
    fn threads(&self) -> usize {
        Execution::threads(self)
    }

    fn run(&self, work: &(dyn Fn() + Sync)) {
        let threads = self.threads();
        let spread = || (0..threads).into_par_iter().with_max_len(1).for_each(|_| work());
        match self {
            _ if threads == 1 => work(),
            Self::Serial => work(),
            Self::CurrentPool => spread(),
            Self::Pool(pool) => pool.install(spread),
        }
    }
}
