//! The search as an algorithm: which contests are held in which order, who drops out when, and who wins. It knows nothing of
//! the machine but what a [`Sampler`] tells, so that a record of a machine takes its place in tests.

mod blocks;
mod class;

use std::collections::{BTreeMap, BTreeSet};

use regard_kernels::table::QUERY_BLOCKS;
use regard_profile::{Config, Crossover, rows_up_to};

use self::class::Finding;
use super::rounds::{Limit, Noise, Rounds, RunOff, rounds, run_off};
use super::space::{CROSSOVERS, Contest, Role};
use super::trials::{Fate, Trials};
use super::{Progress, Sampler};
use crate::stats::Random;

/// What a search found.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The winner of each contest about blocks and kernels; `None` if it was not reached.
    pub winners: Vec<Option<Winner>>,
    /// Where the rows kernel ends, for each kernel for which that was measured.
    pub crossovers: Vec<Crossover>,
    /// What became of each candidate, contest by contest.
    pub trials: Vec<Trials>,
    /// What was heard of the machine.
    pub noise: Noise,
    /// What else is worth knowing, one sentence each.
    pub notes: Vec<String>,
}

/// The winner of a contest.
#[derive(Clone, Debug, PartialEq)]
pub struct Winner {
    /// Which candidate.
    pub candidate: usize,
    /// Its median time, in seconds.
    pub seconds: f64,
    /// Its time over that of the model's pick.
    pub ratio_to_model: f64,
    /// The 95 % interval of that, if the two were timed against each other.
    pub ratio_interval: Option<[f64; 2]>,
    /// Samples that the decision rests on.
    pub samples: usize,
    /// The best of the others, and its time over the winner's.
    pub runner_up: Option<(usize, f64)>,
    /// What won elsewhere, and its time over the winner's here.
    pub rivals: Vec<(usize, f64)>,
    /// Why, in one sentence.
    pub why: String,
}

/// Pieces of work, which take time as they weigh.
#[derive(Clone, Debug)]
enum Work {
    KeyBlock(Vec<usize>),
    Crossing(Vec<usize>),
    Class(usize),
    Confirm(usize),
    Polish(usize),
}

impl Work {
    fn weight(&self, contests: &[Contest]) -> f64 {
        match self {
            // Calls that read memory take longer and are less steady.
            Self::KeyBlock(members) if contests[members[0]].role == Role::Rows => 4.0 * members.len() as f64,
            Self::KeyBlock(members) => members.len().min(JUDGES) as f64,
            Self::Crossing(members) => 0.7 * members.len() as f64,
            // Ways of reading memory.
            Self::Class(contest) if contests[*contest].role == Role::Rows => 1.5,
            Self::Class(_) => 2.5,
            // What the others leave.
            Self::Polish(_) => 1e-6,
            Self::Confirm(contest) if contests[*contest].role == Role::Rows => 0.5,
            Self::Confirm(_) => 1.0,
        }
    }
}

/// The contests about one key block in which all options are timed, the first ones. The others have a say about the one that shall
/// replace the model's.
const JUDGES: usize = 6;

/// A search under way.
pub(super) struct Tournament<'a> {
    contests: &'a [Contest],
    sampler: &'a mut dyn Sampler,
    progress: &'a mut dyn FnMut(Progress<'_>),
    seconds: f64,
    random: Random,
    /// Candidates by contest that have been verified, and those that failed.
    passed: BTreeSet<(usize, usize)>,
    failed: BTreeSet<(usize, usize)>,
    /// The key block of the contests that share it with this one.
    key_blocks: Vec<Option<usize>>,
    /// Contests whose key block is the model's because none were compared, and why.
    left_to_model: BTreeMap<usize, &'static str>,
    findings: Vec<Option<Finding>>,
    outcome: Outcome,
}

impl<'a> Tournament<'a> {
    pub(super) fn new(
        contests: &'a [Contest],
        sampler: &'a mut dyn Sampler,
        seconds: f64,
        seed: u64,
        progress: &'a mut dyn FnMut(Progress<'_>),
    ) -> Self {
        let outcome = Outcome { winners: vec![None; contests.len()], ..Outcome::default() };
        Self {
            contests,
            sampler,
            progress,
            seconds,
            random: Random::new(seed),
            passed: BTreeSet::new(),
            failed: BTreeSet::new(),
            key_blocks: vec![None; contests.len()],
            left_to_model: BTreeMap::new(),
            findings: vec![None; contests.len()],
            outcome,
        }
    }

    /// Takes over what an earlier search has found: classes that need no contest any more.
    pub(super) fn settled(mut self, winners: Vec<Option<Winner>>, crossovers: Vec<Crossover>) -> Self {
        for (contest, winner) in winners.iter().enumerate() {
            let Some(winner) = winner else { continue };
            let key_block = self.contests[contest].candidates[winner.candidate].key_block;
            for (other, slot) in self.key_blocks.iter_mut().enumerate() {
                if self.contests[contest].shares_key_block(&self.contests[other]) {
                    *slot = Some(key_block);
                }
            }
        }
        self.outcome.winners = winners;
        self.outcome.crossovers = crossovers;
        self
    }

    /// Holds all contests that there is time for. Whenever it ends, what it has found is valid.
    pub(super) fn run(mut self) -> Outcome {
        let work = self.work();
        let weights: Vec<f64> = work.iter().map(|work| work.weight(self.contests)).collect();
        for (i, work) in work.iter().enumerate() {
            let now = self.sampler.elapsed();
            if now >= self.seconds || self.sampler.stopped() {
                break;
            }
            let share = weights[i] / weights[i..].iter().sum::<f64>();
            let until = now + share * (self.seconds - now);
            match work {
                Work::KeyBlock(members) => self.settle_key_block(members, until),
                Work::Crossing(members) => self.settle_crossing(members, until),
                Work::Class(contest) => self.settle_class(*contest, until),
                Work::Confirm(contest) => self.confirm(*contest, until),
                Work::Polish(contest) => self.polish(*contest, until),
            }
        }
        self.outcome
    }

    /// What there is to do, in order: what decides the order of summation comes first, as there is one for all classes.
    fn work(&self) -> Vec<Work> {
        let contests = self.contests;
        let open = |role| move |i: &usize| contests[*i].role == role && self.outcome.winners[*i].is_none();
        let mut work = Vec::new();
        for role in [Role::Lanes, Role::Rows] {
            let mut seen: Vec<usize> = Vec::new();
            for i in (0..contests.len()).filter(open(role)) {
                let like = |other: &usize| contests[*other].shares_key_block(&contests[i]);
                if self.key_blocks[i].is_none() && !seen.iter().any(like) {
                    seen.push(i);
                    work.push(Work::KeyBlock((i..contests.len()).filter(like).collect()));
                }
            }
        }
        let crossings: Vec<usize> = (0..contests.len()).filter(|i| contests[*i].role == Role::Crossing).collect();
        let rows_kernel = |i: &usize| &*contests[*i].candidates[0].kernel;
        let kernels: BTreeSet<&str> = crossings.iter().map(rows_kernel).collect();
        for kernel in kernels {
            if !self.outcome.crossovers.iter().any(|crossover| crossover.kernel == kernel) {
                let members = crossings.iter().copied().filter(|i| rows_kernel(i) == kernel);
                work.push(Work::Crossing(members.collect()));
            }
        }
        let classes: Vec<usize> = (0..contests.len()).filter(|i| open(Role::Lanes)(i) || open(Role::Rows)(i)).collect();
        work.extend(classes.iter().map(|i| Work::Class(*i)));
        work.extend(classes.iter().map(|i| Work::Confirm(*i)));
        work.extend(classes.iter().filter(|i| open(Role::Lanes)(i)).map(|i| Work::Polish(*i)));
        work
    }

    fn say(&mut self, what: &str, leader: Option<&Config>) {
        let elapsed = self.sampler.elapsed();
        let fraction = (elapsed / self.seconds).clamp(0.0, 1.0);
        let seconds_left = (self.seconds - elapsed).max(0.0);
        (self.progress)(Progress { fraction, what, leader, seconds_left });
    }

    /// The candidates of these that give right results. No more are looked at after a moment, but the first one always is.
    fn gate(&mut self, contest: usize, candidates: &[usize], until: f64) -> Vec<usize> {
        let mut passed = Vec::new();
        for (i, &candidate) in candidates.iter().enumerate() {
            if self.failed.contains(&(contest, candidate)) {
                continue;
            }
            if !self.passed.contains(&(contest, candidate)) {
                if i > 0 && (self.sampler.elapsed() > until || self.sampler.stopped()) {
                    break;
                }
                if let Err(fault) = self.sampler.verify(contest, candidate) {
                    self.failed.insert((contest, candidate));
                    let Contest { class, candidates, .. } = &self.contests[contest];
                    let config = &candidates[candidate];
                    let Config { kernel, key_block, query_block, .. } = config;
                    let reading = config.reading_in_words();
                    let note = format!("{kernel} {key_block} {query_block}{reading} is out: it {fault}; {class}");
                    self.outcome.notes.push(note);
                    self.trials(contest).add(&candidates[candidate], Fate::Failed, f64::NAN, 0);
                    continue;
                }
                self.passed.insert((contest, candidate));
            }
            passed.push(candidate);
        }
        passed
    }

    fn rounds(&mut self, contest: usize, candidates: &[usize], limit: Limit) -> Rounds {
        let Self { sampler, random, outcome, .. } = self;
        rounds(*sampler, contest, candidates, limit, random, &mut outcome.noise)
    }

    /// A run-off, which is noted.
    fn run_off(&mut self, contest: usize, pair: [usize; 2], limit: Limit) -> RunOff {
        let found = run_off(self.sampler, contest, pair, limit, &mut self.outcome.noise);
        let contests = self.contests;
        let [incumbent, challenger] = pair.map(|candidate| &contests[contest].candidates[candidate]);
        self.trials(contest).add_run_off(incumbent, challenger, &found);
        found
    }

    fn trials(&mut self, contest: usize) -> &mut Trials {
        let Contest { role, class, .. } = &self.contests[contest];
        let all = &mut self.outcome.trials;
        let at = all.iter().position(|trials| trials.role == *role && trials.class == *class);
        let at = at.unwrap_or_else(|| {
            all.push(Trials::new(*role, class.clone()));
            all.len() - 1
        });
        &mut all[at]
    }

    /// The candidate with the kernel and the query block of the model's, and this key block.
    fn of_model(&self, contest: usize, key_block: usize) -> Option<usize> {
        let candidates = &self.contests[contest].candidates;
        let wanted = Config { key_block, ..candidates[0].clone() };
        candidates.iter().position(|config| *config == wanted)
    }
}

/// The crossovers to choose from for the rows kernel of a contest; that which plans take if nothing was measured comes first.
fn crossovers(contest: &Contest) -> Vec<usize> {
    let in_tiles = contest.candidates[0].kernel.contains("_amx");
    let modelled = rows_up_to(&contest.class.dtype, in_tiles).min(*QUERY_BLOCKS.end());
    let others = CROSSOVERS.into_iter().filter(|up_to| *up_to != modelled);
    [modelled].into_iter().chain(others).collect()
}

#[cfg(test)]
mod tests;
