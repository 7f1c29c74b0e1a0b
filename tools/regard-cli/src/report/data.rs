//! What a report holds: the JSON that is embedded in the page.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The version of the format. A new field that readers may ignore does not change it.
pub(super) const SCHEMA: u32 = 1;

/// A report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Report {
    /// Always "regard report": what tells it from other JSON.
    pub(super) kind: String,
    pub(super) schema: u32,
    /// Of the tool.
    pub(super) version: String,
    /// When it was begun, in seconds since 1970-01-01 UTC.
    pub(super) unix_time: u64,
    /// How long it took.
    pub(super) seconds: f64,
    /// The command that reproduces it.
    pub(super) command: String,
    pub(super) machine: Machine,
    pub(super) validity: Validity,
    pub(super) roofs: Roofs,
    /// The measured half of the machine card, of one and of all threads; absent from reports of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) limits: Option<regard_profile::Card>,
    pub(super) figures: Vec<Figure>,
    pub(super) contests: Vec<Contest>,
    pub(super) heat: Option<Heat>,
    pub(super) noise: Noise,
}

/// The machine card.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Machine {
    pub(super) name: String,
    pub(super) fingerprint: String,
    /// The level that is used unless a figure says otherwise.
    pub(super) isa: String,
    pub(super) usable_cores: usize,
    /// Names and values, for people.
    pub(super) card: Vec<(String, String)>,
    /// Everything that `regard info --json` says.
    pub(super) details: Value,
}

/// What the figures are worth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Validity {
    pub(super) grade: Grade,
    /// One sentence each.
    pub(super) reasons: Vec<String>,
}

/// In the order of goodness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Grade {
    /// Something disturbed the machine so much that only fractions and ratios hold, if anything does.
    Poor,
    /// Fractions and ratios hold; rates may be off by some percent.
    Fair,
    /// A quiet machine at a steady clock.
    Good,
}

/// The limits of one core.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Roofs {
    /// Peaks of multiply-adds, in GFLOP/s: each level in f32, and products of bf16 and of integers where there are any.
    pub(super) compute: Vec<ComputeRoof>,
    /// What can be read, in GB/s: each cache, and memory.
    pub(super) memory: Vec<MemoryRoof>,
}

/// A peak.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct ComputeRoof {
    pub(super) name: String,
    pub(super) gflops: f64,
}

/// A bandwidth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct MemoryRoof {
    pub(super) name: String,
    /// Of the buffer that was read.
    pub(super) bytes: usize,
    pub(super) gbytes_per_s: f64,
}

/// What a figure is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Group {
    /// Prompts of different lengths.
    Prefill,
    /// One token against keys in memory.
    Decode,
    /// A few tokens against keys in memory.
    Few,
    /// Numbers of threads.
    Threads,
}

/// A case against the ceilings of the machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Figure {
    pub(super) group: Group,
    /// The options of `regard bench` for it.
    pub(super) options: String,
    pub(super) dtype: String,
    pub(super) causal: bool,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) queries: usize,
    pub(super) keys: usize,
    pub(super) head_dim: usize,
    pub(super) threads: usize,
    pub(super) kernel: String,
    pub(super) key_block: usize,
    pub(super) query_block: usize,
    pub(super) gflops: f64,
    /// The 95 % interval of that; absent from reports of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) gflops_interval: Option<[f64; 2]>,
    /// Of the arithmetic that the kernel uses.
    pub(super) peak_gflops: f64,
    pub(super) fraction_of_peak: f64,
    /// Of K and V, read once.
    pub(super) kv_bytes: f64,
    pub(super) kv_gbytes_per_s: f64,
    pub(super) read_gbytes_per_s: f64,
    pub(super) fraction_of_bandwidth: f64,
    /// Of the nearer of the two.
    pub(super) fraction_of_roof: f64,
    pub(super) max_abs_error: f64,
    pub(super) rounds: usize,
}

impl Figure {
    /// What identifies it among the figures of another report.
    pub(super) fn key(&self) -> (Group, &str) {
        (self.group, &self.options)
    }

    /// Floating-point operations for each byte of K and V.
    pub(super) fn intensity(&self) -> f64 {
        self.gflops / self.kv_gbytes_per_s
    }

    /// In a few words.
    pub(super) fn name(&self) -> String {
        let Self { dtype, causal, heads, kv_heads, queries, keys, head_dim, threads, .. } = self;
        let mask = if *causal && *queries > 1 { ", causal" } else { "" };
        let heads = match (*heads, *kv_heads) {
            (1, 1) => "1 head".to_owned(),
            (heads, kv_heads) if heads == kv_heads => format!("{heads} heads"),
            (heads, kv_heads) => format!("{heads}:{kv_heads} heads"),
        };
        let threads = if *threads > 1 { format!(", {threads} threads") } else { String::new() };
        format!("{dtype}, {queries} × {keys}, d {head_dim}, {heads}{mask}{threads}")
    }
}

/// Several ways of doing the same, all of which took turns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Contest {
    /// `weightings` or `levels`.
    pub(super) name: String,
    /// The options of `regard bench` that all have in common.
    pub(super) options: String,
    /// The way that the others are compared with.
    pub(super) base: String,
    pub(super) ways: Vec<Way>,
    pub(super) rounds: usize,
    /// The distance of the quartiles of the multiply-add peak over its median.
    pub(super) spread: f64,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Way {
    pub(super) name: String,
    pub(super) gflops: f64,
    /// The time over that of the base: the median over rounds.
    pub(super) cost: f64,
    /// Its 95 % interval.
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) max_abs_error: f64,
}

impl Way {
    /// Whether the interval leaves out 1.
    pub(super) fn is_significant(&self) -> bool {
        !(self.low <= 1.0 && 1.0 <= self.high)
    }
}

/// Block sizes of a class, all of which took turns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Heat {
    /// The options of `regard bench` for the class.
    pub(super) options: String,
    pub(super) kernel: String,
    pub(super) key_blocks: Vec<usize>,
    pub(super) query_blocks: Vec<usize>,
    /// The median time over the least, by query block and then by key block.
    pub(super) slowdown: Vec<Vec<f64>>,
    /// Query block and key block of the analytic model.
    pub(super) model: [usize; 2],
    /// Those of the profile, if there is one and it says the same kernel.
    pub(super) tuned: Option<[usize; 2]>,
    /// What the profile says, if that is another kernel, which is not on the map; absent from reports of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) elsewhere: Option<Elsewhere>,
    pub(super) best: [usize; 2],
    /// The speed of the best.
    pub(super) gflops: f64,
    pub(super) rounds: usize,
    /// The largest error of any.
    pub(super) max_abs_error: f64,
}

/// A pick with another kernel than that of the map, timed in the same rounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Elsewhere {
    pub(super) kernel: String,
    /// Query block and key block.
    pub(super) blocks: [usize; 2],
    /// Its time over the least of the map: below 1 if it is faster.
    pub(super) slowdown: f64,
}

impl Heat {
    /// The time of a query block and key block over the least.
    pub(super) fn slowdown_of(&self, [query_block, key_block]: [usize; 2]) -> Option<f64> {
        let row = self.query_blocks.iter().position(|block| *block == query_block)?;
        let column = self.key_blocks.iter().position(|block| *block == key_block)?;
        self.slowdown.get(row)?.get(column).copied()
    }
}

/// How quiet the machine was.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Noise {
    /// Seconds since the beginning, and the multiply-add peak then, in GFLOP/s.
    pub(super) canary: Vec<(f64, f64)>,
    /// The distance of their quartiles over their median.
    pub(super) spread: f64,
    /// The median of the last third over that of the first, less 1.
    pub(super) drift: f64,
    /// What the system counted meanwhile.
    pub(super) events: Vec<Event>,
}

/// Something that the system counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Event {
    pub(super) name: String,
    pub(super) count: f64,
    pub(super) unit: String,
}
