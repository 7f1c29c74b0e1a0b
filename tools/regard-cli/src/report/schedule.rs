//! What a report measures: a fixed list, so that reports of different machines hold the same cases.

use super::data::Group;

/// A case against the ceilings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) group: Group,
    /// Options of `regard bench`.
    pub(super) options: String,
}

/// What is compared, all ways taking turns.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    pub(super) cases: Vec<Planned>,
    /// The class whose weightings and levels are compared.
    pub(super) contests: String,
    /// The class whose block sizes are compared.
    pub(super) heat: String,
}

impl Schedule {
    /// The list: short in a quick report. `threads` are the numbers of threads beyond 1 that are worth a case.
    pub(super) fn new(quick: bool, threads: &[usize]) -> Self {
        let mut cases = Vec::new();
        let mut add = |group, options: String| cases.push(Planned { group, options });
        let lengths: &[usize] = if quick { &[256, 1024] } else { &[128, 256, 512, 1024, 2048, 4096] };
        for (dtype, head_dim, causal) in SERIES {
            for length in lengths {
                add(Group::Prefill, prefill(dtype, head_dim, causal, *length));
            }
        }
        let lengths: &[usize] = if quick { &[1024, 4096] } else { &[1024, 4096, 16384] };
        for dtype in ["f32", "f16", "bf16", "int8"] {
            for keys in lengths {
                add(Group::Decode, decode(dtype, 8, *keys));
            }
        }
        if !quick {
            for dtype in ["f32", "bf16"] {
                add(Group::Decode, decode(dtype, 64, 16384));
            }
            for queries in [4, 8, 16, 64] {
                add(Group::Few, format!("--heads 8 --queries {queries} --keys 8192 --head-dim 128"));
            }
        }
        for threads in [1].iter().chain(threads).filter(|_| !threads.is_empty()) {
            let rows = if quick { 1024 } else { 2048 };
            add(Group::Threads, format!("--heads 8 --queries {rows} --keys {rows} --head-dim 128 --threads {threads}"));
        }
        let rows = if quick { 512 } else { 1024 };
        Self {
            cases,
            contests: format!("--heads 2 --queries {rows} --keys {rows} --head-dim 128"),
            // So many heads that a plan does not cut blocks of queries to share them out.
            heat: format!("--heads 8 --queries {} --keys {rows} --head-dim 64", rows / 2),
        }
    }
}

/// The series of prompts: element type, head dimension, whether causal.
const SERIES: [(&str, usize, bool); 5] =
    [("f32", 64, false), ("f32", 64, true), ("f32", 128, false), ("f32", 128, true), ("bf16", 128, false)];

/// One call takes some 10 ms on a core of 100 GFLOP/s, or less where that takes too many heads.
fn prefill(dtype: &str, head_dim: usize, causal: bool, length: usize) -> String {
    let heads = (2048 / length).clamp(1, 8);
    let causal = if causal { " --causal top-left" } else { "" };
    let dtype = if dtype == "f32" { String::new() } else { format!(" --dtype {dtype}") };
    format!("--heads {heads} --queries {length} --keys {length} --head-dim {head_dim}{causal}{dtype}")
}

/// One token of 8 KV heads.
fn decode(dtype: &str, heads: usize, keys: usize) -> String {
    format!(
        "--heads {heads} --kv-heads 8 --queries 1 --keys {keys} --head-dim 128 --causal bottom-right --dtype {dtype}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::parse;

    #[test]
    fn every_case_is_a_command_line_and_there_once() {
        for quick in [false, true] {
            let Schedule { cases, contests, heat } = Schedule::new(quick, &[2, 4]);
            for (i, case) in cases.iter().enumerate() {
                parse(&case.options).unwrap().check().unwrap();
                assert!(!cases[..i].contains(case), "{case:?}");
            }
            for options in [contests, heat] {
                parse(&options).unwrap().check().unwrap();
            }
            assert_eq!(cases.iter().filter(|case| case.group == Group::Threads).count(), 3);
        }
        assert!(Schedule::new(true, &[]).cases.iter().all(|case| case.group != Group::Threads));
    }
}
