//! The search for the best kernels and blocks on this machine: interleaved, and valid whenever it ends.
//!
//! 1. *What decides the order of summation*: the key blocks of the lanes kernels and of the rows kernels, and up to how many
//!    queries the latter are used. One for all classes of an element type, so that results stay the same in any company: all
//!    options are timed in the first classes, those that gain most on the whole meet the model's in paired run-offs in all
//!    classes, and one is taken if it wins somewhere and loses nowhere.
//! 2. *Kernel and query block*, class by class, by successive halving. The model's pick is candidate 0: the
//!    leader meets it in a paired run-off, and it stays unless the gain is more than the noise. What is tuned cannot lose to
//!    what is not.
//! 3. *What won elsewhere*, timed against what won here: between two classes, plans take the choice that loses least.
//!
//! A candidate is verified against f64 before it is timed, with guards around all that it may write; one that fails is
//! out and noted. All that is measured comes from a [`Sampler`]: the machine, or a [`Record`] of one, on which tests replay
//! the search.

mod anchor;
mod case;
mod decide;
mod live;
mod record;
mod rounds;
mod sampler;
mod space;
mod tournament;
mod trials;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use regard_kernels::table;
use regard_profile::{Confidence, Config, Entry, KernelSet, Machine, Measured, Profile, Run, RunnerUp, Tool};
use regard_simd::Level;

pub use self::anchor::Anchor;
use self::live::Live;
pub use self::record::{Record, RecordError, Recorded, Replay};
pub use self::rounds::{Noise, RunOff};
pub use self::sampler::Sampler;
pub use self::space::{Contest, Role};
use self::tournament::Tournament;
pub use self::tournament::{Outcome, Winner};
pub use self::trials::{Duel, Fate, Trial, Trials};
use crate::measure::{Arithmetic, FmaProbe, ReadProbe};
use crate::stats::{Random, median, rounded};

/// How thorough a search is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// The most important classes, in 30 seconds.
    Quick,
    /// All classes, in 60 seconds.
    Default,
    /// All classes, in 5 minutes.
    Thorough,
}

impl Effort {
    /// The name, as profiles write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Quick => "quick",
            Self::Default => "default",
            Self::Thorough => "thorough",
        }
    }

    /// How long it takes unless said otherwise.
    pub const fn seconds(self) -> f64 {
        match self {
            Self::Quick => 30.0,
            Self::Default => 60.0,
            Self::Thorough => 300.0,
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
    /// Who leads there.
    pub leader: Option<&'a Config>,
    /// Seconds until the end.
    pub seconds_left: f64,
}

/// What came of a search.
#[derive(Clone, Debug)]
pub struct Found {
    /// The choices.
    pub profile: Profile,
    /// What became of all candidates.
    pub trials: Vec<Trials>,
    /// Whether all classes were reached.
    pub complete: bool,
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
    stop: &'a AtomicBool,
    earlier: Option<&'a Profile>,
}

/// Never set.
static GO_ON: AtomicBool = AtomicBool::new(false);

/// The kernels of this build, by which profiles are recognised.
pub fn kernel_set() -> KernelSet {
    KernelSet::new(table::names(), table::REVISION, table::KEY_BLOCKS, table::QUERY_BLOCKS)
}

impl<'a> Search<'a> {
    /// A search at a level of this machine.
    pub fn new(level: Level, machine: &'a Machine, effort: Effort) -> Self {
        let anchors = match effort {
            Effort::Quick => Anchor::GRID[..Anchor::QUICK].to_vec(),
            Effort::Default | Effort::Thorough => Anchor::GRID.to_vec(),
        };
        Self { level, machine, effort, seconds: effort.seconds(), anchors, stop: &GO_ON, earlier: None }
    }

    /// When it ends. Classes that were not reached by then have no entry.
    pub fn seconds(mut self, seconds: f64) -> Self {
        self.seconds = seconds;
        self
    }

    /// Other classes, the most important first.
    pub fn anchors(mut self, anchors: Vec<Anchor>) -> Self {
        self.anchors = anchors;
        self
    }

    /// Ends soon after this is set, with what it has found by then.
    pub fn stop(mut self, stop: &'a AtomicBool) -> Self {
        self.stop = stop;
        self
    }

    /// Goes on where the search ended that made this profile: its entries stay, and only other classes are looked at.
    pub fn resume(mut self, earlier: &'a Profile) -> Self {
        self.earlier = Some(earlier);
        self
    }

    /// The contests of the search, in the order of the anchors.
    pub fn contests(&self) -> Vec<Contest> {
        space::contests(self.level, self.machine, &self.anchors)
    }

    /// Runs the search. The profile is valid however little time there was; its confidence and notes say what it is
    /// worth.
    pub fn run(self, progress: &mut dyn FnMut(Progress<'_>)) -> Found {
        let start = Instant::now();
        progress(Progress { fraction: 0.0, what: "measuring the ceilings", leader: None, seconds_left: self.seconds });
        let measured = ceilings(self.level, self.machine);
        let peak_of = |arithmetic| FmaProbe::of_dots(self.level, arithmetic).map(|probe| probe.sample());
        let peaks_of_dots = Arithmetic::DOTS.map(|kind| (kind, peak_of(kind)));
        let contests = self.contests();
        let mut live = Live::new(self.level, self.machine, &self.anchors, &contests, start, self.stop);
        let (settled, crossovers) = self.settled(&contests);
        let earlier = |index: usize| settled[index].as_ref().and_then(|_| self.earlier_entry(&contests[index]));
        let kept: Vec<Option<&Entry>> = (0..contests.len()).map(earlier).collect();
        let tournament = Tournament::new(&contests, &mut live, self.seconds, SEED, progress);
        let outcome = tournament.settled(settled.clone(), crossovers).run();
        progress(Progress { fraction: 1.0, what: "done", leader: None, seconds_left: 0.0 });

        let canary = median(&outcome.noise.canaries);
        let entry = |(index, winner): (usize, &Option<Winner>)| {
            if let Some(entry) = kept[index] {
                return Some(entry.clone());
            }
            let arithmetic = space::arithmetic(&contests[index]);
            let of_dots = peaks_of_dots.iter().find(|(kind, _)| *kind == arithmetic).and_then(|(_, peak)| *peak);
            let peak = of_dots.unwrap_or(canary);
            Some(entry(&contests[index], winner.as_ref()?, peak))
        };
        let entries: Vec<Entry> = outcome.winners.iter().enumerate().filter_map(entry).collect();
        let classes = contests.iter().filter(|contest| contest.role != Role::Crossing).count();
        let complete = entries.len() == classes;
        let (mut confidence, mut notes) = decide::confidence(&outcome.noise);
        notes.extend(outcome.notes);
        if let Some(earlier) = self.earlier {
            // Its entries are as trustworthy as they were.
            let heard = outcome.noise.rounds > 0;
            confidence = if heard { confidence.min(earlier.run.confidence) } else { earlier.run.confidence };
            notes.extend(earlier.run.notes.iter().filter(|note| !note.contains("the time was enough")).cloned());
        }
        if !complete {
            notes.push(format!("the time was enough for {} of {classes} classes", entries.len()));
        }
        let tool = Tool {
            name: "regard-tuner".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernels_fingerprint: kernel_set().fingerprint,
        };
        let run = Run {
            unix_time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
            seconds: rounded(start.elapsed().as_secs_f64()),
            mode: self.effort.name().to_owned(),
            confidence: if complete { confidence } else { Confidence::Low },
            notes,
        };
        let profile = Profile {
            measured: Some(measured),
            entries,
            crossovers: outcome.crossovers,
            ..Profile::new(tool, self.machine.clone(), run)
        };
        Found { profile, trials: outcome.trials, complete }
    }

    /// Times every candidate of every contest that the record does not have yet, and gives the record to `keep` after each.
    pub fn record(
        &self,
        mut record: Record,
        progress: &mut dyn FnMut(Progress<'_>),
        keep: &mut dyn FnMut(&Record),
    ) -> Record {
        let start = Instant::now();
        let contests = self.contests();
        let mut live = Live::new(self.level, self.machine, &self.anchors, &contests, start, self.stop);
        for (index, contest) in contests.iter().enumerate() {
            let left = self.seconds - start.elapsed().as_secs_f64();
            if left <= 0.0 || self.stop.load(std::sync::atomic::Ordering::Relaxed) {
                break;
            }
            if record.has(contest) {
                continue;
            }
            let what = format!("recording: {}", contest.class);
            let fraction = index as f64 / contests.len() as f64;
            progress(Progress { fraction, what: &what, leader: None, seconds_left: left });
            record.add(contest, index, &mut live);
            keep(&record);
        }
        record
    }

    /// Run-offs between the choices of two profiles, class by class: how many times as fast the second one's is. Classes
    /// that lack an entry in either are left out, and those with the same choice are not timed.
    pub fn compare(&self, [first, second]: [&Profile; 2], seconds: f64) -> Vec<(Contest, Option<RunOff>)> {
        let start = Instant::now();
        let contests = self.contests();
        let mut live = Live::new(self.level, self.machine, &self.anchors, &contests, start, self.stop);
        let mut noise = Noise::default();
        let of = |profile: &Profile, contest: &Contest| -> Option<usize> {
            let entry = entry_of(profile, contest)?;
            contest.candidates.iter().position(|config| *config == entry.config)
        };
        let pairs: Vec<(usize, [usize; 2])> = (contests.iter().enumerate())
            .filter_map(|(i, contest)| Some((i, [of(first, contest)?, of(second, contest)?])))
            .collect();
        let mut found = Vec::new();
        for (done, (index, pair)) in pairs.iter().enumerate() {
            let right = pair.iter().all(|candidate| live.verify(*index, *candidate).is_ok());
            let now = start.elapsed().as_secs_f64();
            let until = now + (seconds - now).max(0.0) / (pairs.len() - done) as f64;
            let limit = rounds::Limit { least: 6, most: 60, until };
            let run_off =
                (pair[0] != pair[1] && right).then(|| rounds::run_off(&mut live, *index, *pair, limit, &mut noise));
            found.push((contests[*index].clone(), run_off));
        }
        found
    }

    /// What an earlier search has settled.
    fn settled(&self, contests: &[Contest]) -> (Vec<Option<Winner>>, Vec<regard_profile::Crossover>) {
        let winner = |contest: &Contest| {
            let entry = self.earlier_entry(contest)?;
            let candidate = contest.candidates.iter().position(|config| *config == entry.config)?;
            Some(Winner {
                candidate,
                seconds: contest.flops / entry.gflops / 1e9,
                ratio_to_model: entry.ratio_to_model,
                ratio_interval: entry.ratio_interval,
                samples: entry.samples,
                runner_up: None,
                rivals: Vec::new(),
                why: entry.why.clone(),
            })
        };
        let winners = contests.iter().map(winner).collect();
        (winners, self.earlier.map_or_else(Vec::new, |earlier| earlier.crossovers.clone()))
    }

    fn earlier_entry(&self, contest: &Contest) -> Option<&'a Entry> {
        entry_of(self.earlier?, contest)
    }
}

/// The entry of a profile that answers a contest.
fn entry_of<'p>(profile: &'p Profile, contest: &Contest) -> Option<&'p Entry> {
    let rows = contest.role == Role::Rows;
    let answers = |entry: &&Entry| entry.class == contest.class && entry.config.takes_rows() == rows;
    profile.entries.iter().find(answers).filter(|_| contest.role != Role::Crossing)
}

/// Fixed: the order of candidates in rounds is random, but the same in each search.
const SEED: u64 = 1;

fn entry(contest: &Contest, winner: &Winner, peak: f64) -> Entry {
    let gflops = contest.flops / winner.seconds / 1e9;
    let other = |(candidate, ratio): &(usize, f64)| {
        let config = contest.candidates[*candidate].clone();
        RunnerUp { config, ratio: rounded(*ratio) }
    };
    Entry {
        class: contest.class.clone(),
        config: contest.candidates[winner.candidate].clone(),
        gflops: rounded(gflops),
        fraction_of_peak: rounded(gflops / peak),
        ratio_to_model: rounded(winner.ratio_to_model),
        ratio_interval: winner.ratio_interval.map(|ends| ends.map(rounded)),
        samples: winner.samples,
        runner_up: winner.runner_up.as_ref().map(other),
        rivals: winner.rivals.iter().map(other).collect(),
        why: winner.why.clone(),
    }
}

/// Runs the search on a record of a machine instead of the machine, as if it had `seconds`. `seed` decides which of the
/// recorded samples it meets.
pub fn replay(record: &Record, seconds: f64, seed: u64) -> Outcome {
    let contests = record.contests();
    let mut sampler = Replay::new(record, Random::new(seed));
    Tournament::new(&contests, &mut sampler, seconds, seed, &mut |_| ()).run()
}

/// The ceilings of one core: the peak of every level, and the bandwidth with the loads of `level`.
pub fn ceilings(level: Level, machine: &Machine) -> Measured {
    const SAMPLES: usize = 7;
    let median_of = |sample: &mut dyn FnMut() -> f64| rounded(median(&[(); SAMPLES].map(|()| sample())));
    let mut fma_gflops = BTreeMap::new();
    for level in Level::available() {
        let probe = FmaProbe::new(*level);
        fma_gflops.insert(level.isa().name().to_owned(), median_of(&mut || probe.sample()));
    }
    let mut read = ReadProbe::new(level, ReadProbe::bytes_for(machine.caches.l3_or_default()).min(case::MOST_STREAMED));
    Measured { fma_gflops, read_gbytes_per_s: median_of(&mut || read.sample()) }
}

#[cfg(test)]
mod tests;
