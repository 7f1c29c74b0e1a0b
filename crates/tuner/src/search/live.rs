//! The machine as a [`Sampler`].

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use regard_profile::Machine;
use regard_simd::Level;

use super::case::Case;
use super::space::{Candidate, Contest, Kernels};
use super::{Anchor, Sampler};
use crate::measure::{FmaProbe, Stopwatch};
use crate::noise::Monitor;

/// The shortest sample, in seconds: those of calls that stream are longer, as memory is less steady.
pub(super) const fn shortest_sample(streams: bool) -> f64 {
    if streams { 3e-3 } else { 1e-3 }
}

/// Calls of a sample at most.
const MOST_CALLS: f64 = 1e4;

/// Times the problems of anchors on the calling thread.
pub(super) struct Live<'a> {
    level: Level,
    machine: &'a Machine,
    anchors: &'a [Anchor],
    contests: &'a [Contest],
    cases: BTreeMap<usize, Case>,
    /// Calls of a sample, by contest and candidate.
    calls: BTreeMap<(usize, usize), u32>,
    canary: FmaProbe,
    monitor: Monitor,
    start: Instant,
    stop: &'a AtomicBool,
}

impl<'a> Live<'a> {
    pub(super) fn new(
        level: Level,
        machine: &'a Machine,
        anchors: &'a [Anchor],
        contests: &'a [Contest],
        start: Instant,
        stop: &'a AtomicBool,
    ) -> Self {
        Self {
            level,
            machine,
            anchors,
            contests,
            cases: BTreeMap::new(),
            calls: BTreeMap::new(),
            canary: FmaProbe::new(level),
            monitor: Monitor::new(),
            start,
            stop,
        }
    }

    fn candidate(&self, contest: usize, candidate: usize) -> Candidate {
        let config = &self.contests[contest].candidates[candidate];
        Candidate::of(self.level, config).expect("candidates are of kernels of this level")
    }

    /// The problem of a contest. Of the large ones only one is kept.
    fn case(&mut self, contest: usize) -> &Case {
        let anchor = self.anchors[contest];
        if anchor.streams && !self.cases.contains_key(&contest) {
            self.cases.retain(|_, case| !case.anchor.streams);
        }
        let kernels = Kernels::new(self.level, self.machine, &anchor);
        let cache = self.machine.caches.l3_or_default();
        self.cases.entry(contest).or_insert_with(|| Case::new(kernels, anchor, cache))
    }
}

impl Sampler for Live<'_> {
    fn verify(&mut self, contest: usize, candidate: usize) -> Result<(), String> {
        let found = self.candidate(contest, candidate);
        let target = shortest_sample(self.anchors[contest].streams);
        let case = self.case(contest);
        case.verify(&found)?;
        // Warm now: this says how many make a sample.
        let watch = Stopwatch::start();
        case.run(&found);
        let calls = (target / watch.seconds().max(1e-9)).ceil().clamp(1.0, MOST_CALLS);
        self.calls.insert((contest, candidate), calls as u32);
        Ok(())
    }

    fn sample(&mut self, contest: usize, candidate: usize) -> f64 {
        let found = self.candidate(contest, candidate);
        let calls = self.calls.get(&(contest, candidate)).copied().unwrap_or(1);
        let case = self.case(contest);
        case.prepare(&found);
        let watch = Stopwatch::start();
        for _ in 0..calls {
            case.run(&found);
        }
        watch.seconds() / f64::from(calls)
    }

    fn canary(&mut self) -> f64 {
        self.canary.sample()
    }

    fn disturbance(&mut self) -> Option<String> {
        self.monitor.disturbance()
    }

    fn elapsed(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
