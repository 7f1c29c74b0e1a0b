//! What a profile holds. The fields are the file: JSON, pretty-printed, at most [`MAX_BYTES`](crate::MAX_BYTES).

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::{Card, Class, Machine};

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
}

impl Profile {
    /// A profile of this machine with no entries yet.
    pub fn new(tool: Tool, machine: Machine, run: Run) -> Self {
        let fingerprint = machine.fingerprint();
        Self { schema: SCHEMA, tool, fingerprint, machine, run, measured: None, card: None, entries: Vec::new() }
    }

    /// The entry of the class nearest to the one wanted, by [`Class::distance`]; the first of those equally near.
    ///
    /// `None` only if no entry is for this level and element type. Configurations are used whole: a mean of two good
    /// ones can be a bad one.
    pub fn lookup(&self, wanted: &Class) -> Option<&Entry> {
        let mut nearest: Option<(f64, &Entry)> = None;
        for entry in &self.entries {
            let Some(distance) = wanted.distance(&entry.class) else { continue };
            if nearest.is_none_or(|(least, _)| distance < least) {
                nearest = Some((distance, entry));
            }
        }
        nearest.map(|(_, entry)| entry)
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
    /// Timings that the choice rests on.
    pub samples: usize,
    /// The best of the others, if there was another.
    pub runner_up: Option<RunnerUp>,
    /// Why this one was chosen, in one sentence.
    pub why: String,
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
    /// Query rows of one block.
    pub query_block: usize,
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
            config: Config { kernel: "lanes_2x8".to_owned(), key_block, query_block: 256 },
            gflops: 100.0,
            fraction_of_peak: 0.9,
            ratio_to_model: 1.0,
            samples: 12,
            runner_up: None,
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
