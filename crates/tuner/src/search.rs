//! The search for the best kernel and blocks on this machine: plain, interleaved, and valid whenever it ends.
//!
//! 1. *Key block.* It decides the order of summation, so a level has one for all classes. All of them are timed in
//!    every class, with the model's kernel and query block; the one with the least worst loss meets the model's in
//!    paired run-offs, and is taken if they confirm it.
//! 2. *Kernel and query block*, class by class, with that key block. Candidate 0 is the model's choice. Losers drop
//!    after a first rung; the leader of the second meets candidate 0 in a paired run-off, and candidate 0 stays unless
//!    the gain is beyond doubt: what is tuned cannot lose to what is not.
//!
//! A candidate is verified against f64 before it is timed, with guards around all that it may write; one that fails is
//! out and noted. Rounds go in random order with a canary between them ([`measure::round_robin`]).

mod anchor;
mod case;
mod decide;
mod space;

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use regard_kernels::table;
use regard_profile::{Confidence, Entry, KernelSet, Machine, Measured, Profile, Run, RunnerUp, Tool};
use regard_simd::Level;

pub use self::anchor::Anchor;
use self::case::Case;
use self::space::Candidate;
use crate::measure::{self, Budget, FmaProbe, ReadProbe, RoundRobin};
use crate::stats::median;

/// How thorough a search is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// A few classes of short sequences, in 12 seconds.
    Quick,
    /// All classes, in 60 seconds.
    Full,
}

impl Effort {
    /// The name, as profiles write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Quick => "quick",
            Self::Full => "full",
        }
    }

    /// How long it takes unless said otherwise.
    pub const fn seconds(self) -> f64 {
        match self {
            Self::Quick => 12.0,
            Self::Full => 60.0,
        }
    }
}

/// How far a search has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// From 0 to 1.
    pub fraction: f64,
    /// What is done now, in a few words.
    pub what: &'a str,
}

/// A search, to be run on the core that it is about ([`crate::pin::pinned`]).
#[derive(Clone, Debug)]
#[must_use]
pub struct Search<'a> {
    level: Level,
    machine: &'a Machine,
    effort: Effort,
    seconds: f64,
    anchors: Vec<Anchor>,
}

/// The kernels of this build, by which profiles are recognised.
pub fn kernel_set() -> KernelSet {
    KernelSet::new(table::names(), table::REVISION, table::KEY_BLOCKS, table::QUERY_BLOCKS)
}

impl<'a> Search<'a> {
    /// A search at a level of this machine.
    pub fn new(level: Level, machine: &'a Machine, effort: Effort) -> Self {
        let anchors = match effort {
            Effort::Quick => Anchor::QUICK.to_vec(),
            Effort::Full => Anchor::FULL.to_vec(),
        };
        Self { level, machine, effort, seconds: effort.seconds(), anchors }
    }

    /// No class is begun after this time. Those that were not reached have no entry.
    pub fn seconds(mut self, seconds: f64) -> Self {
        self.seconds = seconds;
        self
    }

    /// Other classes, the most important first.
    pub fn anchors(mut self, anchors: Vec<Anchor>) -> Self {
        self.anchors = anchors;
        self
    }

    /// Runs the search. The profile is valid however little time there was; its confidence and notes say what it is
    /// worth.
    pub fn run(self, progress: &mut dyn FnMut(Progress<'_>)) -> Profile {
        let start = Instant::now();
        progress(Progress { fraction: 0.0, what: "measuring the ceilings" });
        let measured = ceilings(self.level, self.machine);
        let mut state = State {
            level: self.level,
            machine: self.machine,
            quick: self.effort == Effort::Quick,
            canary: FmaProbe::new(self.level),
            canaries: Vec::new(),
            notes: Vec::new(),
        };
        let cases: Vec<Case> = self.anchors.iter().map(|anchor| Case::new(self.level, *anchor)).collect();
        let clock = Clock { start, seconds: self.seconds };
        let key_block = state.key_block(&cases, &clock, progress);
        let entries = state.entries(&cases, key_block, &clock, progress);
        progress(Progress { fraction: 1.0, what: "done" });

        let (confidence, spread) = decide::confidence(&state.canaries);
        let mut notes = state.notes;
        notes.push(format!("the peak varied by {:.1} % while timing", 100.0 * spread.max(0.0)));
        if entries.len() < cases.len() {
            notes.push(format!("the time was enough for {} of {} classes", entries.len(), cases.len()));
        }
        let tool = Tool {
            name: "regard-tuner".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernels_fingerprint: kernel_set().fingerprint,
        };
        let run = Run {
            unix_time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
            seconds: start.elapsed().as_secs_f64(),
            mode: self.effort.name().to_owned(),
            confidence: if entries.len() < cases.len() { Confidence::Low } else { confidence },
            notes,
        };
        Profile { measured: Some(measured), entries, ..Profile::new(tool, self.machine.clone(), run) }
    }
}

/// The ceilings of one core: the peak of every level, and the bandwidth with the loads of `level`.
pub fn ceilings(level: Level, machine: &Machine) -> Measured {
    const SAMPLES: usize = 7;
    let median_of = |sample: &mut dyn FnMut() -> f64| median(&[(); SAMPLES].map(|()| sample()));
    let mut fma_gflops = BTreeMap::new();
    for level in Level::available() {
        let probe = FmaProbe::new(*level);
        fma_gflops.insert(level.isa().name().to_owned(), median_of(&mut || probe.sample()));
    }
    let mut read = ReadProbe::new(level, ReadProbe::bytes_for(machine.caches.l3_or_default()));
    Measured { fma_gflops, read_gbytes_per_s: median_of(&mut || read.sample()) }
}

/// The time that there is.
struct Clock {
    start: Instant,
    seconds: f64,
}

impl Clock {
    /// What one of `waiting` pieces of work may take, if all are to be done when `part` of the time is over; `None`
    /// when it is.
    fn share(&self, part: f64, waiting: usize) -> Option<f64> {
        let left = part * self.seconds - self.start.elapsed().as_secs_f64();
        (left > 0.0).then(|| left / waiting.max(1) as f64)
    }
}

/// The part of the time after which the key blocks are timed, and that after which one of them is settled.
const KEY_BLOCKS_PART: f64 = 0.25;
const KEY_BLOCK_PART: f64 = 0.4;

struct State<'a> {
    level: Level,
    machine: &'a Machine,
    quick: bool,
    canary: FmaProbe,
    canaries: Vec<f64>,
    notes: Vec<String>,
}

impl State<'_> {
    /// The key block of the level.
    fn key_block(&mut self, cases: &[Case], clock: &Clock, progress: &mut dyn FnMut(Progress<'_>)) -> usize {
        let machine = self.machine;
        let caches = &machine.caches;
        let anchors: Vec<Anchor> = cases.iter().map(|case| case.anchor).collect();
        let blocks = space::key_blocks(self.level, caches, &anchors, self.quick);
        let Some(&incumbent) = blocks.first() else { return *table::KEY_BLOCKS.start() };
        let level = self.level;
        let model = |case: &Case| Candidate::of_model(level, caches, &case.anchor);
        let mut timed: Vec<&Case> = Vec::new();
        let mut times = Vec::new();
        for (i, case) in cases.iter().enumerate() {
            let Some(share) = clock.share(KEY_BLOCKS_PART, cases.len() - i) else { break };
            let class = case.anchor.class(self.level.isa());
            let fraction = KEY_BLOCKS_PART * i as f64 / cases.len() as f64;
            progress(Progress { fraction, what: &format!("key block: {class}") });
            let with = |key_block: &usize| Candidate { key_block: *key_block, ..model(case) };
            let candidates: Vec<_> = blocks.iter().map(with).collect();
            let mut seconds = vec![f64::INFINITY; blocks.len()];
            let (passed, cost) = self.gate(case, &candidates, share / 2.0);
            // An option that was not reached would be ruled out everywhere: rather leave the class out.
            if passed.len() < blocks.len() && cost > share / 2.0 {
                continue;
            }
            let Some((round_robin, _)) = self.rung(case, &candidates, &passed, 3..=8, share) else { continue };
            for (candidate, time) in passed.iter().zip(round_robin.medians()) {
                seconds[*candidate] = time;
            }
            timed.push(case);
            times.push(seconds);
        }
        let challenger = blocks[decide::least_regret(&times, 0)];
        if challenger == incumbent {
            return incumbent;
        }
        let mut run_offs = Vec::new();
        for (i, case) in timed.iter().enumerate() {
            let Some(share) = clock.share(KEY_BLOCK_PART, timed.len() - i) else { return incumbent };
            let class = case.anchor.class(self.level.isa());
            let done = i as f64 / timed.len() as f64;
            let fraction = KEY_BLOCKS_PART + (KEY_BLOCK_PART - KEY_BLOCKS_PART) * done;
            progress(Progress { fraction, what: &format!("key block, {challenger} against {incumbent}: {class}") });
            let with = |key_block| Candidate { key_block, ..model(case) };
            let (old, new) = (with(incumbent), with(challenger));
            let budget = Budget { seconds: share, min_rounds: 5 };
            let found = measure::compare(|| case.run(&old), || case.run(&new), budget);
            run_offs.push((found.speedup, found.interval));
        }
        if decide::replaces_everywhere(&run_offs) { challenger } else { incumbent }
    }

    fn entries(
        &mut self,
        cases: &[Case],
        key_block: usize,
        clock: &Clock,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Vec<Entry> {
        let mut entries = Vec::new();
        for (i, case) in cases.iter().enumerate() {
            let Some(share) = clock.share(1.0, cases.len() - i) else { break };
            let class = case.anchor.class(self.level.isa());
            let fraction = KEY_BLOCK_PART + (1.0 - KEY_BLOCK_PART) * i as f64 / cases.len() as f64;
            progress(Progress { fraction, what: &class.to_string() });
            entries.extend(self.entry(case, key_block, share));
        }
        entries
    }

    /// The choice for one class; `None` if the model's choice itself is wrong.
    fn entry(&mut self, case: &Case, key_block: usize, share: f64) -> Option<Entry> {
        let start = Instant::now();
        let candidates = space::candidates(self.level, &self.machine.caches, &case.anchor, key_block);
        let (passed, _) = self.gate(case, &candidates, share / 3.0);
        if passed.first() != Some(&0) {
            return None;
        }
        let left = |part: f64| (part * share - start.elapsed().as_secs_f64()).max(0.0);
        let (first, first_rounds) = self.rung(case, &candidates, &passed, 2..=3, left(0.5))?;
        let finalists = decide::survivors(&first.medians(), 1.08, 5);
        // Rungs without the last candidates, where the time was too short.
        let finalists: Vec<usize> = finalists.into_iter().map(|i| passed[i]).collect();
        let (second, rounds) = self.rung(case, &candidates, &finalists, 2..=12, left(0.75))?;
        let times = second.medians();
        let leader = decide::leader(&times);
        let mut samples = first_rounds + rounds;

        let (chosen, why) = if finalists[leader] == 0 {
            (0, format!("the model's pick was the fastest of {} candidates", passed.len()))
        } else {
            let [model, best] = [&candidates[0], &candidates[finalists[leader]]];
            let budget = Budget { seconds: left(1.0), min_rounds: 5 };
            let found = measure::compare(|| case.run(model), || case.run(best), budget);
            samples += 2 * found.ratios.len();
            let gain = format!(
                "{:+.1} % in a run-off of {} rounds, interval {:+.1} to {:+.1} %",
                100.0 * (found.speedup - 1.0),
                found.ratios.len(),
                100.0 * (found.interval.low - 1.0),
                100.0 * (found.interval.high - 1.0)
            );
            if decide::replaces(found.speedup, found.interval) {
                (leader, format!("faster than the model's pick: {gain}"))
            } else {
                let model = finalists.iter().position(|candidate| *candidate == 0).unwrap_or(0);
                (model, format!("the model's pick: the leader of {} candidates had {gain}", passed.len()))
            }
        };
        let config = &candidates[finalists[chosen]];
        let runner_up = (0..times.len()).filter(|i| *i != chosen).min_by(|a, b| times[*a].total_cmp(&times[*b]));
        let gflops = case.anchor.flops() / times[chosen] / 1e9;
        Some(Entry {
            class: case.anchor.class(self.level.isa()),
            config: config.config(),
            gflops,
            fraction_of_peak: gflops / median(&second.canaries),
            ratio_to_model: self.ratio_to_model(case, config, &times, &finalists, chosen),
            samples,
            runner_up: runner_up
                .map(|i| RunnerUp { config: candidates[finalists[i]].config(), ratio: times[i] / times[chosen] }),
            why,
        })
    }

    /// The time of the choice over that of what plans do without a profile, whose key block may be another one.
    fn ratio_to_model(
        &self,
        case: &Case,
        config: &Candidate,
        times: &[f64],
        finalists: &[usize],
        chosen: usize,
    ) -> f64 {
        let model = Candidate::of_model(self.level, &self.machine.caches, &case.anchor);
        if model.config() == config.config() {
            return 1.0;
        }
        if model.key_block == config.key_block {
            let candidate_0 = finalists.iter().position(|candidate| *candidate == 0);
            return candidate_0.map_or(1.0, |model| times[chosen] / times[model]);
        }
        if case.verify(&model).is_err() {
            return 1.0;
        }
        1.0 / measure::compare(|| case.run(&model), || case.run(config), Budget::rounds(5)).speedup
    }

    /// The candidates that give right results, and the seconds that finding out took. Candidates that are not reached
    /// in `seconds` are left out; the first one always is reached.
    fn gate(&mut self, case: &Case, candidates: &[Candidate], seconds: f64) -> (Vec<usize>, f64) {
        let start = Instant::now();
        let mut passed = Vec::new();
        for (i, candidate) in candidates.iter().enumerate() {
            if i > 0 && start.elapsed().as_secs_f64() > seconds {
                break;
            }
            match case.verify(candidate) {
                Ok(()) => passed.push(i),
                Err(fault) => {
                    let Candidate { kernel, key_block, query_block } = candidate;
                    let class = case.anchor.class(self.level.isa());
                    let name = kernel.name;
                    self.notes.push(format!("{name} {key_block} {query_block} is out: it {fault}; {class}"));
                }
            }
        }
        (passed, start.elapsed().as_secs_f64())
    }

    /// Times the candidates of these indices in as many rounds of `rounds` as `seconds` allow, the fewest in any case.
    /// Gives the rounds too; `None` if there is nothing to time.
    fn rung(
        &mut self,
        case: &Case,
        candidates: &[Candidate],
        indices: &[usize],
        rounds: std::ops::RangeInclusive<usize>,
        seconds: f64,
    ) -> Option<(RoundRobin, usize)> {
        /// Calls before the first round: one to warm up, one or more to find how many make a sample.
        const BEFORE: usize = 2;
        let first = candidates.get(*indices.first()?)?;
        let start = Instant::now();
        case.run(first);
        // A sample takes a millisecond at least. All candidates take about as long.
        let round = indices.len() as f64 * start.elapsed().as_secs_f64().max(1e-3);
        let affordable = ((seconds / round) as usize).saturating_sub(BEFORE);
        let rounds = affordable.clamp(*rounds.start(), *rounds.end());
        let mut work: Vec<_> = indices.iter().map(|i| || case.run(&candidates[*i])).collect();
        let found = measure::round_robin(&self.canary, &mut work, rounds, self.canaries.len() as u64);
        self.canaries.extend(&found.canaries);
        Some((found, rounds))
    }
}

#[cfg(test)]
mod tests;
