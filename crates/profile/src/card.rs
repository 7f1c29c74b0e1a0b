//! What was measured of a machine: the other half of the machine card, beside what the system says ([`Machine`]).
//!
//! Plain data; the tuner measures it. It is what ceilings and models are computed from, never a condition for a profile to
//! be used.
//!
//! [`Machine`]: crate::Machine

use serde::{Deserialize, Serialize};

use crate::Caches;

/// Rates of a machine, each with the number of threads that reached it together.
///
/// Every number here is measured, with the exception of [`Card::caches`], which say themselves where they come from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Card {
    /// When it was measured, in seconds since 1970-01-01 UTC.
    pub unix_time: u64,
    /// How long that took, in seconds.
    pub seconds: f64,
    /// The level whose loads read memory, such as `avx512`.
    pub isa: String,
    /// The caches: sizes that nobody states are measured ([`Source::Measured`](crate::Source::Measured)), the
    /// others are those of the machine.
    pub caches: Caches,
    /// Peaks of arithmetic.
    pub peaks: Vec<Peak>,
    /// The ladder of read bandwidths, nearest memory first, for each number of threads.
    pub reads: Vec<Read>,
    /// What it costs to set threads to work; absent where there is one thread only.
    pub fork_join: Option<ForkJoin>,
}

/// What a peak is the peak of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Fused multiply-adds of f32, two operations for each lane.
    Fma,
    /// Dot products of pairs of bf16, four operations for each lane of 32 bits.
    DotBf16,
    /// Dot products of four bytes, eight operations for each lane of 32 bits.
    DotInt8,
    /// Exponentials of f32, as softmax computes them.
    Exp,
}

impl Operation {
    /// The name in profiles.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fma => "fma",
            Self::DotBf16 => "dot_bf16",
            Self::DotInt8 => "dot_int8",
            Self::Exp => "exp",
        }
    }
}

/// A peak of arithmetic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peak {
    /// What is done.
    pub operation: Operation,
    /// The level, such as `avx512`.
    pub isa: String,
    /// Threads that did it at the same time.
    pub threads: usize,
    /// All threads together, in 10⁹ operations per second.
    pub gops: Figure,
}

/// Where memory was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Memory {
    /// The first-level data cache.
    L1,
    /// The second-level cache.
    L2,
    /// The third-level cache.
    L3,
    /// Memory that no cache holds.
    Dram,
}

impl Memory {
    /// The name in profiles.
    pub const fn name(self) -> &'static str {
        match self {
            Self::L1 => "l1",
            Self::L2 => "l2",
            Self::L3 => "l3",
            Self::Dram => "dram",
        }
    }
}

/// A rung of the ladder of read bandwidths.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Read {
    /// Where from.
    pub memory: Memory,
    /// Threads that read at the same time, each its own buffer.
    pub threads: usize,
    /// Bytes of a thread's buffer.
    pub bytes: usize,
    /// The way of reading that was the fastest, in the words of the probe.
    pub way: String,
    /// All threads together, in 10⁹ bytes per second.
    pub gbytes_per_s: Figure,
}

/// What it costs to have threads do nothing, and to wait until they have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ForkJoin {
    /// How many threads.
    pub threads: usize,
    /// Microseconds, one time right after the other.
    pub warm_us: Figure,
    /// Microseconds, after a pause in which the threads fell asleep.
    pub cold_us: Figure,
}

/// A measured number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The median.
    pub median: f64,
    /// The lower end of the 95 % interval of the median.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
    /// Samples that it rests on.
    pub samples: usize,
}

impl Card {
    /// A peak, in 10⁹ operations per second, if it was measured for this number of threads.
    pub fn peak(&self, operation: Operation, isa: &str, threads: usize) -> Option<f64> {
        let is_it = |peak: &&Peak| (peak.operation, &*peak.isa, peak.threads) == (operation, isa, threads);
        self.peaks.iter().find(is_it).map(|peak| peak.gops.median)
    }

    /// A bandwidth, in 10⁹ bytes per second, if it was measured for this number of threads.
    pub fn read(&self, memory: Memory, threads: usize) -> Option<f64> {
        let is_it = |read: &&Read| (read.memory, read.threads) == (memory, threads);
        self.reads.iter().find(is_it).map(|read| read.gbytes_per_s.median)
    }

    /// Every measured number with the field that it is in.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = (String, f64)> {
        let parts = |field: String, figure: Figure| {
            let Figure { median, low, high, .. } = figure;
            [("median", median), ("low", low), ("high", high)].map(|(part, value)| (format!("{field}.{part}"), value))
        };
        let peaks = (self.peaks.iter().enumerate()).map(move |(i, peak)| parts(format!("peaks[{i}].gops"), peak.gops));
        let reads = (self.reads.iter().enumerate())
            .map(move |(i, read)| parts(format!("reads[{i}].gbytes_per_s"), read.gbytes_per_s));
        let costs = self.fork_join.iter().flat_map(move |cost| {
            [("warm_us", cost.warm_us), ("cold_us", cost.cold_us)]
                .map(|(name, figure)| parts(format!("fork_join.{name}"), figure))
        });
        let seconds = std::iter::once(("seconds".to_owned(), self.seconds));
        seconds.chain(peaks.chain(reads).chain(costs).flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(median: f64) -> Figure {
        Figure { median, low: median - 1.0, high: median + 1.0, samples: 7 }
    }

    fn card() -> Card {
        let peak = |operation, isa: &str, threads, gops| Peak { operation, isa: isa.to_owned(), threads, gops };
        let read = |memory, threads, gbytes_per_s| Read {
            memory,
            threads,
            bytes: 4096,
            way: "1-none".to_owned(),
            gbytes_per_s,
        };
        Card {
            seconds: 2.0,
            peaks: vec![
                peak(Operation::Fma, "avx2", 1, figure(60.0)),
                peak(Operation::Fma, "avx512", 1, figure(120.0)),
                peak(Operation::Fma, "avx512", 2, figure(230.0)),
                peak(Operation::Exp, "avx512", 1, figure(9.0)),
            ],
            reads: vec![read(Memory::L1, 1, figure(200.0)), read(Memory::Dram, 2, figure(31.0))],
            fork_join: Some(ForkJoin { threads: 2, warm_us: figure(3.0), cold_us: figure(20.0) }),
            ..Card::default()
        }
    }

    #[test]
    fn figures_are_found_by_what_they_are_of() {
        let card = card();
        assert_eq!(card.peak(Operation::Fma, "avx512", 2), Some(230.0));
        assert_eq!(card.peak(Operation::Fma, "avx2", 2), None);
        assert_eq!(card.peak(Operation::DotInt8, "avx512", 1), None);
        assert_eq!(card.read(Memory::Dram, 2), Some(31.0));
        assert_eq!(card.read(Memory::Dram, 1), None);
    }

    #[test]
    fn no_number_is_left_out() {
        // As many as there are in the file that are no counts.
        let json = serde_json::to_value(card()).unwrap();
        fn count(value: &serde_json::Value) -> usize {
            match value {
                serde_json::Value::Number(number) => usize::from(number.is_f64()),
                serde_json::Value::Array(all) => all.iter().map(count).sum(),
                serde_json::Value::Object(all) => all.values().map(count).sum(),
                _ => 0,
            }
        }
        assert_eq!(card().numbers().count(), count(&json));
        let mut bad = card();
        bad.fork_join.as_mut().unwrap().cold_us.high = f64::NAN;
        let found: Vec<_> = bad.numbers().filter(|(_, value)| !value.is_finite()).map(|(field, _)| field).collect();
        assert_eq!(found, ["fork_join.cold_us.high"]);
    }

    #[test]
    fn names_are_those_of_the_file() {
        for operation in [Operation::Fma, Operation::DotBf16, Operation::DotInt8, Operation::Exp] {
            assert_eq!(serde_json::to_value(operation).unwrap(), operation.name());
        }
        for memory in [Memory::L1, Memory::L2, Memory::L3, Memory::Dram] {
            assert_eq!(serde_json::to_value(memory).unwrap(), memory.name());
        }
    }
}
