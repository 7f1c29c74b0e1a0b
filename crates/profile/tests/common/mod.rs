//! A made-up machine with its kernels and a profile, and what holds of any profile that was loaded.
#![allow(dead_code, reason = "each test program uses a part")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use regard_profile::{
    CacheSize, Caches, Card, Class, Confidence, Config, Cores, Entry, Family, Figure, ForkJoin, KernelSet, Machine,
    MaskClass, Measured, Memory, Operation, Peak, Profile, Read, Run, RunnerUp, SCHEMA, Source, Tool,
};

pub(crate) fn machine() -> Machine {
    let size = |bytes, shared_by| CacheSize { bytes, source: Source::Sysfs, shared_by };
    Machine {
        arch: "x86_64".to_owned(),
        vendor: "AuthenticAMD".to_owned(),
        brand: "AMD EPYC \"Turin\" é".to_owned(),
        family: 26,
        model: 2,
        stepping: 1,
        features: vec!["avx2".to_owned(), "avx512f".to_owned()],
        hypervisor: true,
        identity_source: Source::Cpuid,
        caches: Caches { l1d: size(48 << 10, 1), l2: size(1 << 20, 1), l3: size(32 << 20, 8), line: 64 },
        cores: Cores {
            logical_online: 2,
            allowed: 2,
            physical_allowed: 2,
            quota: Some(1.5),
            numa_nodes: 1,
            smt: false,
            quota_source: Source::Cgroup,
            ..Cores::default()
        },
    }
}

pub(crate) fn kernels() -> KernelSet {
    KernelSet {
        fingerprint: "00c0ffee00c0ffee".to_owned(),
        names: vec!["lanes_2x8".to_owned(), "lanes_1x16".to_owned()],
        key_block_limits: 8..=4096,
        query_block_limits: 16..=1024,
    }
}

pub(crate) fn entry(keys: usize) -> Entry {
    let config = |kernel: &str| Config::new(kernel, 192, 256);
    Entry {
        class: Class {
            isa: "avx512".to_owned(),
            dtype: "f32".to_owned(),
            family: Family::Exponential,
            mask: MaskClass::Banded,
            head_dim: 128,
            value_dim: 128,
            keys,
            queries: keys,
        },
        config: config("lanes_2x8"),
        // Numbers that need all their digits.
        gflops: 1.0 / 3.0 * 500.0,
        fraction_of_peak: 0.1 + 0.2,
        ratio_to_model: 0.93,
        ratio_interval: Some([0.92, 0.94]),
        samples: 60,
        runner_up: Some(RunnerUp { config: config("lanes_1x16"), ratio: 1.011 }),
        rivals: vec![RunnerUp { config: config("lanes_1x16"), ratio: 1.02 }],
        why: "first of two in the runoff".to_owned(),
    }
}

pub(crate) fn profile() -> Profile {
    let tool =
        Tool { name: "regard".to_owned(), version: "0.1.0".to_owned(), kernels_fingerprint: kernels().fingerprint };
    let run = Run {
        unix_time: 1_800_000_000,
        seconds: 41.5,
        mode: "default".to_owned(),
        confidence: Confidence::Medium,
        notes: vec!["the clock drifted by 3 %".to_owned()],
    };
    let fma_gflops = BTreeMap::from([("avx2".to_owned(), 83.25), ("avx512".to_owned(), 166.5)]);
    let measured = Some(Measured { fma_gflops, read_gbytes_per_s: 31.4 });
    let entries = vec![entry(512), entry(4096)];
    Profile { measured, card: Some(card()), entries, ..Profile::new(tool, machine(), run) }
}

/// A card with one of each.
pub(crate) fn card() -> Card {
    let figure = |median: f64| Figure { median, low: 0.99 * median, high: 1.01 * median, samples: 9 };
    Card {
        unix_time: 1_800_000_000,
        seconds: 3.25,
        isa: "avx512".to_owned(),
        caches: machine().caches,
        peaks: vec![Peak { operation: Operation::Exp, isa: "avx512".to_owned(), threads: 2, gops: figure(12.5) }],
        reads: vec![Read {
            memory: Memory::Dram,
            threads: 1,
            bytes: 256 << 20,
            way: "1-far-4096".to_owned(),
            gbytes_per_s: figure(31.4),
        }],
        fork_join: Some(ForkJoin { threads: 2, warm_us: figure(2.5), cold_us: figure(20.5) }),
    }
}

/// A directory that goes away, and a path in it.
pub(crate) fn scratch() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("profile.json");
    (directory, path)
}

pub(crate) fn names_in(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A pseudo-random sequence (xorshift), the same in every run.
pub(crate) fn next(mut state: u64) -> u64 {
    state ^= state << 13;
    state ^= state >> 7;
    state ^ (state << 17)
}

/// What a caller may rely on in any profile that was loaded.
pub(crate) fn assert_fit(profile: &Profile, machine: &Machine, kernels: &KernelSet) {
    assert_eq!(profile.schema, SCHEMA);
    assert_eq!(profile.machine.fingerprint(), machine.fingerprint());
    assert_eq!(profile.tool.kernels_fingerprint, kernels.fingerprint);
    for entry in &profile.entries {
        let second = entry.runner_up.as_ref().map(|second| &second.config);
        for config in [Some(&entry.config), second].into_iter().flatten() {
            assert!(kernels.names.contains(&config.kernel));
            assert!(kernels.key_block_limits.contains(&config.key_block));
            assert!(kernels.query_block_limits.contains(&config.query_block));
        }
        let interval = entry.ratio_interval.unwrap_or_default();
        for number in [entry.gflops, entry.fraction_of_peak, entry.ratio_to_model].into_iter().chain(interval) {
            assert!(number.is_finite() && number >= 0.0);
        }
        // Every lookup ends with an entry of the right level.
        assert!(profile.lookup(&entry.class).is_some_and(|found| found.class.isa == entry.class.isa));
    }
}

/// What starts this program again: itself, after the name of an emulator where the system does not know how to start it.
pub(crate) fn this_program() -> Vec<String> {
    let binary = std::env::current_exe().unwrap();
    // Some emulators report a failure to start as an exit code.
    let starts = Command::new(&binary).arg("--list").output().is_ok_and(|output| output.status.success());
    let binary = binary.into_os_string().into_string().unwrap();
    if starts { vec![binary] } else { vec!["qemu-aarch64-static".to_owned(), binary] }
}
