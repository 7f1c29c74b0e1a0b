//! Levels, kernels, and setups that force one of them.

use std::process::Command;
use std::sync::Once;

use regard::{Dtype, Isa, Level, Setup, kernel_set};
use regard_kernels::table::Kernel;
use regard_profile::{Class, Confidence, Config, Entry, Family, Machine, MaskClass, Profile, Run, Tool};
use regard_simd::Extension;

/// The levels of this machine. Says once which they are and which are skipped.
pub fn levels() -> &'static [Level] {
    static SAY: Once = Once::new();
    let available = Level::available();
    SAY.call_once(|| {
        for isa in Isa::ALL {
            let has = available.iter().any(|level| level.isa() == isa);
            eprintln!("level {isa}: {}", if has { "tested" } else { "SKIPPED, not on this machine" });
        }
    });
    available
}

/// A setup that has plans use this lanes kernel with these blocks, where queries are many and it takes the problem: a machine
/// about which nothing is known, with a profile of two entries for each element type. `key_block` is even.
pub fn setup_for(kernel: &Kernel, key_block: usize, query_block: usize) -> Setup {
    assert!(key_block.is_multiple_of(2), "key blocks are even");
    let level = Level::of(kernel.isa).expect("kernels come from available levels");
    // Plans take tiles on machines of one vendor only.
    let tiles = kernel.extension == Some(Extension::Amx);
    let vendor = if tiles { "GenuineIntel".to_owned() } else { String::new() };
    let machine = Machine { vendor, ..Machine::default() };
    let mut profile = profile_for(&machine, kernel, key_block, query_block);
    let entry = profile.entries[0].clone();
    // Of narrow rows and of wide ones.
    let of = |dtype: Dtype, dim| {
        let class = Class { dtype: dtype.name().to_owned(), head_dim: dim, value_dim: dim, ..entry.class.clone() };
        Entry { class, ..entry.clone() }
    };
    profile.entries = Dtype::ALL.into_iter().flat_map(|dtype| [64, 512].map(|dim| of(dtype, dim))).collect();
    Setup { level, machine, profile: Some(profile.into()) }
}

/// A setup of a level with nothing forced.
pub fn setup_of(level: Level) -> Setup {
    Setup { level, machine: Machine::default(), profile: None }
}

/// The same on a machine where plans take tile registers, if the level has them.
pub fn setup_with_tiles(level: Level) -> Setup {
    let tiles = Extension::Amx.is_available_at(level.isa());
    let vendor = if tiles { "GenuineIntel".to_owned() } else { String::new() };
    Setup { machine: Machine { vendor, ..Machine::default() }, ..setup_of(level) }
}

/// A profile of this machine with one entry.
pub fn profile_for(machine: &Machine, kernel: &Kernel, key_block: usize, query_block: usize) -> Profile {
    let tool = Tool {
        name: "regard-tests".to_owned(),
        version: "0".to_owned(),
        kernels_fingerprint: kernel_set().fingerprint,
    };
    let run =
        Run { unix_time: 0, seconds: 0.0, mode: "test".to_owned(), confidence: Confidence::Low, notes: Vec::new() };
    let entry = Entry {
        class: Class {
            isa: kernel.isa.name().to_owned(),
            dtype: "f32".to_owned(),
            family: Family::Exponential,
            mask: MaskClass::Full,
            head_dim: 64,
            value_dim: 64,
            keys: 1024,
            queries: 1024,
        },
        config: Config::new(kernel.name, key_block, query_block),
        gflops: 1.0,
        fraction_of_peak: 0.5,
        ratio_to_model: 1.0,
        ratio_interval: None,
        samples: 1,
        runner_up: None,
        rivals: Vec::new(),
        why: "a test says so".to_owned(),
    };
    Profile { entries: vec![entry], ..Profile::new(tool, machine.clone(), run) }
}

/// A command that runs one ignored test of this binary in a process of its own.
///
/// In an emulator the system does not know how to start the binary, so the emulator is named.
pub fn this_test(name: &str) -> Command {
    let binary = std::env::current_exe().expect("a test runs from a file");
    // Some emulators report a failure to start as an exit code.
    let starts = Command::new(&binary).arg("--list").output().is_ok_and(|output| output.status.success());
    let mut command = if starts {
        Command::new(&binary)
    } else {
        let mut emulator = Command::new("qemu-aarch64-static");
        emulator.arg(&binary);
        emulator
    };
    command.args(["--exact", name, "--ignored", "--nocapture"]);
    command
}
