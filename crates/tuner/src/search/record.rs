//! Every sample of every candidate of a machine, kept in a small file: what the search is tested on.

use std::path::{Path, PathBuf};
use std::{fs, io};

use regard_profile::Machine;
use serde::{Deserialize, Serialize};

use super::live::shortest_sample;
use super::rounds::{Limit, Noise, rounds};
use super::space::{Contest, Role};
use super::{Sampler, kernel_set};
use crate::stats::{Random, median};

/// The version of the format.
const FORMAT: u32 = 1;

/// Rounds of contests about lanes kernels.
const ROUNDS: usize = 10;

/// Rounds of the others, whose candidates are fewer, and whose times vary more, as the memory has a part in them.
const ROUNDS_OF_FEW: usize = 30;

/// The most bytes that a record has when it is unpacked.
const MOST_BYTES: usize = 64 << 20;

/// Records of one level of one machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Version of the format.
    format: u32,
    /// The machine.
    pub machine: Machine,
    /// The level.
    pub isa: String,
    /// The kernels that were timed.
    pub kernels_fingerprint: String,
    /// What was timed.
    pub contests: Vec<Recorded>,
}

/// All samples of a contest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    /// The class and its candidates.
    pub contest: Contest,
    /// The multiply-add peak between rounds, in MFLOP/s.
    pub canaries: Vec<u32>,
    /// Nanoseconds of a call by candidate and then by round; nothing for candidates whose results were wrong.
    pub nanoseconds: Vec<Vec<u32>>,
}

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The operating system refused.
    #[error("record {}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The refusal.
        error: io::Error,
    },
    /// The file is no record.
    #[error("record {}: not a record of format {FORMAT}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It is one of another machine, level or build.
    #[error("record {}: of {found}; here it would be {expected}", path.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        expected: String,
    },
}

impl Record {
    /// An empty record of a level.
    pub fn new(machine: &Machine, isa: &str) -> Self {
        Self {
            format: FORMAT,
            machine: machine.clone(),
            isa: isa.to_owned(),
            kernels_fingerprint: kernel_set().fingerprint,
            contests: Vec::new(),
        }
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn load(path: &Path) -> Result<Self, RecordError> {
        let bytes = fs::read(path).map_err(|error| RecordError::Io { path: path.to_owned(), error })?;
        Self::unpack(&bytes).map_err(|reason| RecordError::Format { path: path.to_owned(), reason })
    }

    /// Reads a record to go on with it: one of this machine, level and build, or a new one if there is no file.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn open(path: &Path, machine: &Machine, isa: &str) -> Result<Self, RecordError> {
        if !path.exists() {
            return Ok(Self::new(machine, isa));
        }
        let found = Self::load(path)?;
        let name = |machine: &Machine, isa: &str, kernels: &str| format!("{} {isa} {kernels}", machine.fingerprint());
        let (is, should) = (
            name(&found.machine, &found.isa, &found.kernels_fingerprint),
            name(machine, isa, &kernel_set().fingerprint),
        );
        if is == should {
            Ok(found)
        } else {
            Err(RecordError::Other { path: path.to_owned(), found: is, expected: should })
        }
    }

    /// The record of some bytes.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn unpack(bytes: &[u8]) -> Result<Self, String> {
        let text = miniz_oxide::inflate::decompress_to_vec_zlib_with_limit(bytes, MOST_BYTES);
        let text = text.map_err(|error| error.to_string())?;
        let found: Self = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
        if found.format != FORMAT {
            return Err(format!("format {}", found.format));
        }
        let whole = |recorded: &Recorded| {
            let Recorded { contest, nanoseconds, .. } = recorded;
            let candidates = contest.candidates.len();
            candidates == nanoseconds.len() && candidates == contest.predicted.len() && !nanoseconds[0].is_empty()
        };
        if !found.contests.iter().all(whole) {
            return Err("samples do not match their candidates".to_owned());
        }
        Ok(found)
    }

    /// Writes the record, packed.
    ///
    /// # Errors
    /// [`RecordError::Io`].
    pub fn save(&self, path: &Path) -> Result<(), RecordError> {
        let io = |error| RecordError::Io { path: path.to_owned(), error };
        let text = serde_json::to_vec(self).map_err(|error| io(error.into()))?;
        fs::write(path, miniz_oxide::deflate::compress_to_vec_zlib(&text, 9)).map_err(io)
    }

    /// Whether it has the samples of a contest.
    pub fn has(&self, contest: &Contest) -> bool {
        self.contests
            .iter()
            .any(|recorded| recorded.contest.role == contest.role && recorded.contest.class == contest.class)
    }

    /// The contests.
    pub fn contests(&self) -> Vec<Contest> {
        self.contests.iter().map(|recorded| recorded.contest.clone()).collect()
    }

    /// Times every candidate of a contest, whose number is `index` for the sampler, and keeps all samples. Nothing is kept
    /// if the first candidate, which all others are compared with, is wrong.
    pub(super) fn add(&mut self, contest: &Contest, index: usize, sampler: &mut dyn Sampler) {
        let all = 0..contest.candidates.len();
        let passed: Vec<usize> = all.clone().filter(|candidate| sampler.verify(index, *candidate).is_ok()).collect();
        if passed.first() != Some(&0) {
            return;
        }
        let mut noise = Noise::default();
        let count = if contest.role == Role::Lanes { ROUNDS } else { ROUNDS_OF_FEW };
        let limit = Limit { least: count, most: count, until: f64::INFINITY };
        let found = rounds(sampler, index, &passed, limit, &mut Random::new(index as u64), &mut noise);
        let mut nanoseconds = vec![Vec::new(); contest.candidates.len()];
        for (candidate, seconds) in passed.iter().zip(found.seconds()) {
            nanoseconds[*candidate] = seconds.iter().map(|seconds| (seconds * 1e9) as u32).collect();
        }
        let canaries = noise.canaries.iter().map(|canary| (canary * 1e3) as u32).collect();
        self.contests.push(Recorded { contest: contest.clone(), canaries, nanoseconds });
    }

    /// The same samples for contests whose candidates come in another order or with other predictions: what a later model
    /// says. Candidates without samples are left out, and a contest whose first one has none.
    #[must_use]
    pub fn for_contests(&self, contests: &[Contest]) -> Self {
        let recorded = contests.iter().filter_map(|contest| {
            let like =
                |recorded: &&Recorded| recorded.contest.role == contest.role && recorded.contest.class == contest.class;
            let old = self.contests.iter().find(like)?;
            let place = |i: usize| old.contest.candidates.iter().position(|config| *config == contest.candidates[i]);
            let kept: Vec<(usize, usize)> =
                (0..contest.candidates.len()).filter_map(|i| Some((i, place(i)?))).collect();
            if kept.first().is_none_or(|(new, _)| *new != 0) {
                return None;
            }
            let contest = Contest {
                candidates: kept.iter().map(|(new, _)| contest.candidates[*new].clone()).collect(),
                predicted: kept.iter().map(|(new, _)| contest.predicted[*new]).collect(),
                ..contest.clone()
            };
            let nanoseconds = kept.iter().map(|(_, old_place)| old.nanoseconds[*old_place].clone()).collect();
            Some(Recorded { contest, canaries: old.canaries.clone(), nanoseconds })
        });
        Self { contests: recorded.collect(), ..self.clone() }
    }
}

impl Recorded {
    /// What slowed each round down: the median over candidates of their time over their own median.
    fn effects(&self) -> Vec<f64> {
        let medians: Vec<f64> = self.nanoseconds.iter().map(|of| median_of(of)).collect();
        let rounds = self.nanoseconds.iter().map(Vec::len).max().unwrap_or(0);
        let effect = |round: usize| {
            let of = |(of, median): (&Vec<u32>, &f64)| Some(f64::from(*of.get(round)?) / median);
            median(&self.nanoseconds.iter().zip(&medians).filter_map(of).collect::<Vec<_>>())
        };
        (0..rounds).map(effect).collect()
    }

    /// The time of each candidate, in seconds, as well as all its samples tell: without what slowed whole rounds down.
    /// Infinite for candidates whose results were wrong.
    pub fn truth(&self) -> Vec<f64> {
        let effects = self.effects();
        let of = |of: &Vec<u32>| {
            let cleared: Vec<f64> = of.iter().zip(&effects).map(|(ns, effect)| f64::from(*ns) / effect).collect();
            if cleared.is_empty() { f64::INFINITY } else { median(&cleared) / 1e9 }
        };
        self.nanoseconds.iter().map(of).collect()
    }
}

fn median_of(samples: &[u32]) -> f64 {
    median(&samples.iter().map(|ns| f64::from(*ns)).collect::<Vec<_>>())
}

/// A record as a [`Sampler`]: samples are drawn from those of the candidate, without what slowed their rounds down, and slowed
/// down as some recorded round was. Time passes as it would have.
#[derive(Clone, Debug)]
pub struct Replay<'a> {
    record: &'a Record,
    effects: Vec<Vec<f64>>,
    random: Random,
    /// The contest that was sampled last, and how slow the machine is now.
    now: (usize, f64),
    elapsed: f64,
}

impl<'a> Replay<'a> {
    /// A replay, in which `random` draws.
    pub fn new(record: &'a Record, random: Random) -> Self {
        let effects = record.contests.iter().map(Recorded::effects).collect();
        Self { record, effects, random, now: (0, 1.0), elapsed: 0.0 }
    }
}

/// Seconds of a canary.
const CANARY_SECONDS: f64 = 3e-3;

impl Sampler for Replay<'_> {
    fn verify(&mut self, contest: usize, candidate: usize) -> Result<(), String> {
        match self.record.contests[contest].nanoseconds[candidate].first() {
            None => Err("was wrong when it was recorded".to_owned()),
            Some(ns) => {
                self.elapsed += 2.0 * f64::from(*ns) / 1e9;
                Ok(())
            }
        }
    }

    fn sample(&mut self, contest: usize, candidate: usize) -> f64 {
        let samples = &self.record.contests[contest].nanoseconds[candidate];
        let round = self.random.below(samples.len());
        let slow = if self.now.0 == contest { self.now.1 } else { 1.0 };
        self.now = (contest, slow);
        let seconds = f64::from(samples[round]) / 1e9 / self.effects[contest][round] * slow;
        let shortest = shortest_sample(self.record.contests[contest].contest.bytes > 0.0);
        self.elapsed += seconds * (shortest / seconds).ceil().max(1.0);
        seconds
    }

    fn canary(&mut self) -> f64 {
        let contest = self.now.0;
        let effects = &self.effects[contest];
        self.now.1 = effects[self.random.below(effects.len())];
        self.elapsed += CANARY_SECONDS;
        let canaries = &self.record.contests[contest].canaries;
        f64::from(canaries[self.random.below(canaries.len())]) / 1e3
    }

    fn disturbance(&mut self) -> Option<String> {
        None
    }

    fn elapsed(&self) -> f64 {
        self.elapsed
    }

    fn stopped(&self) -> bool {
        false
    }
}
