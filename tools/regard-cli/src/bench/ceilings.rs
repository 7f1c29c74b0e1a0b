//! The ceilings of the threads of a case.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use regard::{Execution, Isa, Level};
use regard_tuner::measure::{Arithmetic, Around, Ceilings, FmaProbe, ReadProbe, ReadWay, fastest_way};

use crate::setup::Threads;

/// What is kept from a case to the next.
#[derive(Debug, Default)]
pub(crate) struct Ways {
    /// The ways of reading that were found to be the fastest, by level and threads.
    fastest: BTreeMap<(Isa, usize), ReadWay>,
    /// The probe of a case of one thread, which is pinned to the same core each time: writing a buffer of a GiB for the first
    /// time takes up to a second. Threads of a pool write theirs at the same time, and near to where they run.
    probe: Option<ReadProbe>,
}

impl Ways {
    /// Nothing yet.
    pub(crate) fn new() -> Self {
        Self::default()
    }
}

/// The probes of all threads of a case.
pub(crate) struct Limits<'a> {
    threads: &'a Threads,
    fma: FmaProbe,
    dots: Option<FmaProbe>,
    /// One for each thread.
    read: Vec<Mutex<ReadProbe>>,
    pub(crate) way: ReadWay,
}

impl<'a> Limits<'a> {
    /// Probes at a level, of the dot products too that `arithmetic` may be; `bytes` are what no cache holds, all threads together. Memory is read
    /// in the way that `way` says, or else in the fastest, which is looked for unless `ways` has it.
    pub(crate) fn new(
        level: Level,
        threads: &'a Threads,
        arithmetic: Arithmetic,
        bytes: usize,
        way: Option<ReadWay>,
        ways: &mut Ways,
    ) -> Self {
        let count = threads.count();
        let first = way.unwrap_or(ReadWay::ALL[0]);
        let probe = || ReadProbe::with_way(level, bytes / count, first);
        // Each is made by the thread that uses it, so that its memory is near.
        let read = match threads.execution() {
            Execution::Pool(pool) => pool.broadcast(|_| Mutex::new(probe())),
            _ => vec![Mutex::new(ways.probe.take().map_or_else(probe, |kept| kept.at(level, first)))],
        };
        let dots = FmaProbe::of_dots(level, arithmetic);
        let mut limits = Self { threads, fma: FmaProbe::new(level), dots, read, way: first };
        if way.is_none() {
            let find = || fastest_way(&mut |way| limits.rate(way));
            limits.way = *ways.fastest.entry((level.isa(), count)).or_insert_with(find);
        }
        limits
    }

    /// Leaves to the next case what it can use.
    pub(crate) fn keep(self, ways: &mut Ways) {
        let mut probes = self.read.into_iter().map(|probe| probe.into_inner().unwrap_or_else(PoisonError::into_inner));
        if let (Some(probe), None) = (probes.next(), probes.next()) {
            ways.probe = Some(probe);
        }
    }

    fn rate(&self, way: ReadWay) -> f64 {
        self.sum(&|thread| {
            let mut probe = self.read[thread].lock().unwrap_or_else(PoisonError::into_inner);
            probe.set_way(way);
            probe.sample()
        })
    }

    /// What all threads reach at once, by what each of them reaches.
    fn sum(&self, sample: &(dyn Fn(usize) -> f64 + Sync)) -> f64 {
        match self.threads.execution() {
            Execution::Pool(pool) => pool.broadcast(|thread| sample(thread.index())).iter().sum(),
            _ => sample(0),
        }
    }
}

impl Around for Limits<'_> {
    fn peaks(&mut self) -> Ceilings {
        // One kind after the other, for all threads to do the same.
        let dot_gflops = self.dots.map(|probe| self.sum(&|_| probe.sample()));
        let gflops = self.sum(&|_| self.fma.sample());
        Ceilings { gflops: Some(gflops), dot_gflops, read_gbytes_per_s: None }
    }

    fn read(&mut self) -> Option<f64> {
        Some(self.rate(self.way))
    }
}
