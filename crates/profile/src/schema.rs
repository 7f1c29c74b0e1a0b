//! What a profile holds. The fields are the file: JSON, pretty-printed, at most [`MAX_BYTES`](crate::MAX_BYTES).

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::{Card, Class, ClassRef, Machine, TunedReading};

/// The version of the file format that this crate writes, and the only one that it reads.
///
/// A new field that readers may ignore does not change it; anything else does.
pub const SCHEMA: u32 = 1;

/// Tuned data for one machine and one set of kernels.
///
/// Unknown fields in a file are ignored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// Version of the format: [`SCHEMA`].
    pub schema: u32,
    /// Who made it.
    pub tool: Tool,
    /// [`Machine::fingerprint`] of `machine`.
    pub fingerprint: String,
    /// The machine that it was made on.
    pub machine: Machine,
    /// How it was made.
    pub run: Run,
    /// Ceilings of the machine, if they were measured.
    pub measured: Option<Measured>,
    /// The measured half of the machine card, if it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card: Option<Card>,
    /// The choices, one for each class that was tuned. The order matters only between equally near classes.
    pub entries: Vec<Entry>,
    /// Up to how many queries the rows kernel is used, one for each level and element type where that was measured. Absent
    /// from files of programs that did not measure it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub crossovers: Vec<Crossover>,
}

impl Profile {
    /// A profile of this machine with no entries yet.
    pub fn new(tool: Tool, machine: Machine, run: Run) -> Self {
        let fingerprint = machine.fingerprint();
        let (entries, crossovers) = (Vec::new(), Vec::new());
        Self { schema: SCHEMA, tool, fingerprint, machine, run, measured: None, card: None, entries, crossovers }
    }

    /// The entry to use for a class: that of the nearest class, by [`ClassRef::distance`], or of its neighbour on the other
    /// side of the one wanted, whichever configuration loses least where it loses most. The first of those equally near.
    ///
    /// `None` only if no entry is for this level and element type. Configurations are used whole: a mean of two good
    /// ones can be a bad one.
    pub fn lookup(&self, wanted: &Class) -> Option<&Entry> {
        let found = self.lookup_where(wanted.borrowed(), |_| true);
        found.map(|index| &self.entries[index])
    }

    /// The same among the entries whose configuration can be had, as an index into [`Profile::entries`].
    pub fn lookup_where(&self, wanted: ClassRef<'_>, can: impl Fn(&Config) -> bool) -> Option<usize> {
        let (distance, near) = self.nearest(wanted, |entry| can(&entry.config))?;
        let first = &self.entries[near];
        if distance == 0.0 {
            return Some(near);
        }
        // Beyond: as far from the nearest one as what is wanted, or farther, in the same family and under the same mask.
        let beyond = |entry: &Entry| {
            let of_kind = entry.class.family == first.class.family && entry.class.mask == first.class.mask;
            // Most classes have the same choice: told before distances are.
            if !of_kind || entry.config == first.config || !can(&entry.config) {
                return false;
            }
            let apart = first.class.distance(&entry.class).unwrap_or(0.0);
            apart >= distance && wanted.distance(&entry.class).is_some_and(|far| far <= apart)
        };
        let Some((_, other)) = self.nearest(wanted, beyond) else { return Some(near) };
        let second = &self.entries[other];
        match (first.loss_of(&second.config), second.loss_of(&first.config)) {
            // The loss of the second choice at the first class, and of the first at the second.
            (Some(second_loses), Some(first_loses)) if second_loses < first_loses => Some(other),
            _ => Some(near),
        }
    }

    fn nearest(&self, wanted: ClassRef<'_>, takes: impl Fn(&Entry) -> bool) -> Option<(f64, usize)> {
        let mut nearest: Option<(f64, usize)> = None;
        for (index, entry) in self.entries.iter().enumerate() {
            if !takes(entry) {
                continue;
            }
            let Some(distance) = wanted.distance(&entry.class) else { continue };
            if nearest.is_none_or(|(least, _)| distance < least) {
                nearest = Some((distance, index));
            }
        }
        nearest
    }

    /// The most queries of a sequence that the rows kernel of this name gets; `None` if that was not measured.
    pub fn crossover(&self, rows_kernel: &str) -> Option<usize> {
        let found = self.crossovers.iter().find(|crossover| crossover.kernel == rows_kernel);
        found.map(|crossover| crossover.rows_up_to)
    }
}

/// The program that made a profile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// [`KernelSet::fingerprint`] of the kernels that it measured.
    pub kernels_fingerprint: String,
}

/// The circumstances of a tuning run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// When it ended, in seconds since 1970-01-01 UTC.
    pub unix_time: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// How thorough it was asked to be, in the words of the tool.
    pub mode: String,
    /// How far the timings can be trusted.
    pub confidence: Confidence,
    /// Reasons for the confidence, and anything else worth knowing, one sentence each.
    pub notes: Vec<String>,
}

/// How far the timings of a run can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confidence {
    /// The machine was throttled or shared; the choices are better than nothing.
    Low,
    /// Some noise.
    Medium,
    /// A quiet machine at a steady clock.
    High,
}

/// Ceilings of the machine, measured with one thread.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Peak of fused multiply-add on f32, in 10⁹ floating-point operations per second (two for each lane), by the name
    /// of the instruction-set level.
    pub fma_gflops: BTreeMap<String, f64>,
    /// Reading memory that no cache holds, in 10⁹ bytes per second.
    pub read_gbytes_per_s: f64,
}

/// The choice for one class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The class that was measured.
    pub class: Class,
    /// What was chosen for it.
    pub config: Config,
    /// Its speed, in 10⁹ floating-point operations per second.
    pub gflops: f64,
    /// Its speed over the peak of the level, 0 to 1 (a little more if the clock rose).
    pub fraction_of_peak: f64,
    /// Its time over the time of the analytic model's pick; 1 if that was chosen, less if tuning found better.
    pub ratio_to_model: f64,
    /// The 95 % interval of that, if the two were timed against each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio_interval: Option<[f64; 2]>,
    /// Timings that the choice rests on.
    pub samples: usize,
    /// The best of the others, if there was another.
    pub runner_up: Option<RunnerUp>,
    /// What was chosen for other classes, and what it takes here: what lies between two classes is decided by it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rivals: Vec<RunnerUp>,
    /// Why this one was chosen, in one sentence.
    pub why: String,
}

impl Entry {
    /// What the configuration takes in this class over what the chosen one takes; `None` if that was not measured.
    fn loss_of(&self, config: &Config) -> Option<f64> {
        let measured = self.rivals.iter().chain(&self.runner_up);
        measured.into_iter().find(|rival| rival.config == *config).map(|rival| rival.ratio)
    }
}

/// Up to how many queries the rows kernel is used. It decides the order of summation, so there is one for all classes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crossover {
    /// Name of the rows kernel, which says level and element type.
    pub kernel: String,
    /// The most queries of a sequence that it gets; those with more go to a lanes kernel.
    pub rows_up_to: usize,
}

/// What came second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunnerUp {
    /// The configuration.
    pub config: Config,
    /// Its time over the time of the chosen one.
    pub ratio: f64,
}

/// A kernel and its block sizes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Config {
    /// Name of the kernel, one of [`KernelSet::names`].
    pub kernel: String,
    /// Keys of one block.
    pub key_block: usize,
    /// Query rows of one block; of a rows kernel, those that share each load.
    pub query_block: usize,
    /// How a rows kernel reads memory, if not as [`prefetch`](crate::prefetch()) says. It changes no bit of a result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reading: Option<TunedReading>,
}

impl Config {
    /// A kernel and its blocks, with the readings of the model.
    pub fn new(kernel: &str, key_block: usize, query_block: usize) -> Self {
        Self { kernel: kernel.to_owned(), key_block, query_block, reading: None }
    }

    /// What it says of reading memory, in words, with a comma before them; nothing where it leaves that to the model.
    pub fn reading_in_words(&self) -> String {
        self.reading.map_or_else(String::new, |reading| format!(", {reading}"))
    }

    /// Whether its kernel is one for few queries: `{isa}_rows_{element type}`, where the others are called
    /// `{isa}_lanes_{element type}_{tile}`.
    pub fn takes_rows(&self) -> bool {
        self.kernel.contains("_rows_")
    }
}

/// What the caller's kernels are called and accept; a profile is checked against it before anything is used.
///
/// That a kernel is in the set does not say that this machine can run it: look a name up among the kernels of the
/// level in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelSet {
    /// Changes whenever timings of the kernels may have changed, for example [`fingerprint`](crate::fingerprint()) of
    /// the names and a revision.
    pub fingerprint: String,
    /// The kernels that there are.
    pub names: Vec<String>,
    /// Least and greatest [`Config::key_block`], in keys.
    pub key_block_limits: RangeInclusive<usize>,
    /// Least and greatest [`Config::query_block`], in query rows.
    pub query_block_limits: RangeInclusive<usize>,
}

impl KernelSet {
    /// The kernels of these names. `revision` is to be raised when timings of kernels with unchanged names may have
    /// changed.
    pub fn new<'a>(
        names: impl IntoIterator<Item = &'a str>,
        revision: u32,
        key_block_limits: RangeInclusive<usize>,
        query_block_limits: RangeInclusive<usize>,
    ) -> Self {
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let revision = revision.to_string();
        let fingerprint = crate::fingerprint(names.iter().chain([&revision]));
        Self { fingerprint, names, key_block_limits, query_block_limits }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Family, MaskClass};

    fn class(keys: usize) -> Class {
        Class {
            isa: "avx512".to_owned(),
            dtype: "f32".to_owned(),
            family: Family::Exponential,
            mask: MaskClass::Full,
            head_dim: 128,
            value_dim: 128,
            keys,
            queries: 512,
        }
    }

    fn entry(class: Class, key_block: usize) -> Entry {
        Entry {
            class,
            config: Config::new("lanes_2x8", key_block, 256),
            gflops: 100.0,
            fraction_of_peak: 0.9,
            ratio_to_model: 1.0,
            ratio_interval: None,
            samples: 12,
            runner_up: None,
            rivals: Vec::new(),
            why: "measured".to_owned(),
        }
    }

    fn profile(entries: Vec<Entry>) -> Profile {
        let run =
            Run { unix_time: 0, seconds: 1.0, mode: "quick".to_owned(), confidence: Confidence::High, notes: vec![] };
        Profile { entries, ..Profile::new(Tool::default(), Machine::default(), run) }
    }

    #[test]
    fn the_nearest_anchor_is_used_whole() {
        let profile = profile(vec![entry(class(128), 96), entry(class(4096), 384)]);
        let block = |keys| profile.lookup(&class(keys)).unwrap().config.key_block;
        assert_eq!(block(128), 96);
        assert_eq!(block(700), 96);
        assert_eq!(block(800), 384);
        assert_eq!(block(usize::MAX), 384);
        assert_eq!(block(0), 96);
    }

    #[test]
    fn between_two_classes_the_choice_that_loses_least() {
        let with = |mut entry: Entry, key_block, ratio| {
            let config = Config { key_block, ..entry.config.clone() };
            entry.rivals.push(RunnerUp { config, ratio });
            entry
        };
        // The choice for 256 keys loses a tenth at 4096, that for 4096 a hundredth at 256.
        let profile = profile(vec![with(entry(class(256), 96), 384, 1.01), with(entry(class(4096), 384), 96, 1.1)]);
        let block = |keys| profile.lookup(&class(keys)).unwrap().config.key_block;
        assert_eq!([block(256), block(300), block(2000), block(4096)], [96, 384, 384, 384]);
        // Not between them.
        assert_eq!([block(64), block(1 << 20)], [96, 384]);
        // What cannot be had is not there.
        let only = profile.lookup_where(class(4096).borrowed(), |config| config.key_block == 96);
        assert_eq!(only, Some(0));
        assert_eq!(profile.lookup_where(class(256).borrowed(), |_| false), None);
    }

    #[test]
    fn ties_go_to_the_first_in_the_file() {
        let profile = profile(vec![entry(class(4096), 1), entry(class(1024), 2), entry(class(1024), 3)]);
        assert_eq!(profile.lookup(&class(2048)).unwrap().config.key_block, 1);
        assert_eq!(profile.lookup(&class(1024)).unwrap().config.key_block, 2);
    }

    #[test]
    fn another_level_is_never_the_answer() {
        let profile = profile(vec![entry(Class { isa: "avx2".to_owned(), ..class(1024) }, 96)]);
        assert!(profile.lookup(&class(1024)).is_none());
        assert!(self::profile(vec![]).lookup(&class(1024)).is_none());
    }

    #[test]
    fn the_same_family_is_nearer_than_the_same_size() {
        let same_family = entry(class(256), 1);
        let same_size = entry(Class { family: Family::Pointwise, ..class(1024) }, 2);
        let profile = profile(vec![same_size, same_family]);
        assert_eq!(profile.lookup(&class(1024)).unwrap().config.key_block, 1);
    }

    #[test]
    fn unknown_fields_are_tolerated_and_missing_ones_are_not() {
        let mut json = serde_json::to_value(profile(vec![entry(class(128), 96)])).unwrap();
        json["extra"] = 1.into();
        json["machine"]["extra"] = "x".into();
        json["entries"][0]["class"]["extra"] = vec![1].into();
        let back: Profile = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(back, profile(vec![entry(class(128), 96)]));

        json["entries"][0]["config"].as_object_mut().unwrap().remove("kernel");
        assert!(serde_json::from_value::<Profile>(json).is_err());
    }
}
