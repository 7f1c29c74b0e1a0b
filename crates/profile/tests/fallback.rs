//! Merging, and profiles of machines that are not this one.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::*;
use regard_profile::{Fit, Found, Machine, Profile, ProfileError, file_name, find, inspect, merge, save};

#[test]
fn merging_keeps_what_is_not_replaced() {
    let path = Path::new("older.json");
    let newer = Profile { entries: vec![entry(512), entry(600)], card: None, ..profile() };
    let mut older = profile();
    older.entries[0].gflops = 1.0;
    older.run.unix_time -= 100;
    let merged = merge(newer.clone(), older.clone(), path).unwrap();
    let keys: Vec<usize> = merged.entries.iter().map(|entry| entry.class.keys).collect();
    assert_eq!(keys, [512, 600, 4096]);
    assert_eq!(merged.entries[0], newer.entries[0], "the newer one counts");
    assert_eq!(merged.card, older.card, "nothing contradicts it");
    assert_eq!(merged.run.unix_time, newer.run.unix_time);
    assert!(merged.run.notes.iter().any(|note| note.contains("1 entries are from a run")), "{:?}", merged.run.notes);

    // Again and again: nothing new, and no notes without end.
    let again = merge(newer.clone(), merged.clone(), path).unwrap();
    assert_eq!(again.entries, merged.entries);
    let mut long = merged;
    for _ in 0..100 {
        long = merge(newer.clone(), long, path).unwrap();
    }
    assert!(long.run.notes.len() <= 40, "{}", long.run.notes.len());
}

#[test]
fn the_key_block_of_a_level_stays_one() {
    let path = Path::new("older.json");
    let mut newer = Profile { entries: vec![entry(512)], ..profile() };
    newer.entries[0].config.key_block = 96;
    let mut other_level = entry(4096);
    other_level.class.isa = "avx2".to_owned();
    let older = Profile { entries: vec![entry(4096), other_level.clone()], ..profile() };
    let merged = merge(newer.clone(), older, path).unwrap();
    assert_eq!(merged.entries, [newer.entries[0].clone(), other_level], "192 keys do not go with 96");
}

#[test]
fn profiles_of_different_machines_do_not_mix() {
    let mut other = machine();
    other.model = 97;
    let older = Profile { fingerprint: other.fingerprint(), machine: other, ..profile() };
    assert!(matches!(merge(profile(), older, Path::new("x")), Err(ProfileError::WrongMachine { .. })));
    let mut older = profile();
    older.tool.kernels_fingerprint = "dead".to_owned();
    assert!(matches!(merge(profile(), older, Path::new("x")), Err(ProfileError::WrongKernels { .. })));
}

#[test]
fn looking_at_a_profile_takes_no_machine() {
    let (_directory, path) = scratch();
    let mut other = machine();
    other.model = 97;
    let stranger = Profile { fingerprint: other.fingerprint(), machine: other, ..profile() };
    save(&path, &stranger).unwrap();
    assert_eq!(inspect(&path).unwrap(), stranger);
    fs::write(&path, serde_json::to_string(&stranger).unwrap().replace(&stranger.fingerprint, "0")).unwrap();
    assert!(matches!(inspect(&path), Err(ProfileError::Inconsistent { .. })));
}

/// A machine like the made-up one but for these changes, with the name of its profile as its brand.
fn relative(name: &str, change: impl FnOnce(&mut Machine)) -> Machine {
    let mut machine = machine();
    machine.brand = name.to_owned();
    change(&mut machine);
    machine
}

#[test]
#[ignore = "run by the test below in a process of its own"]
fn child_finds_a_profile() {
    match find(&machine(), &kernels()) {
        Found::None => println!("found nothing"),
        Found::Loaded { profile, fit, .. } => println!("found {} {fit:?}", profile.machine.brand),
        Found::Rejected { error, .. } => println!("found rejected: {error}"),
    }
}

/// What a process with this data directory finds, and perhaps this profile in its environment.
fn found_in(home: &Path, named: Option<&Path>) -> String {
    let program = this_program();
    let mut child = Command::new(&program[0]);
    child.args(&program[1..]).args(["--exact", "child_finds_a_profile", "--ignored", "--nocapture"]);
    child.env("XDG_DATA_HOME", home);
    match named {
        Some(path) => child.env(regard_profile::PROFILE_VARIABLE, path),
        None => child.env_remove(regard_profile::PROFILE_VARIABLE),
    };
    let output = child.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find_map(|line| line.split_once("found ")).unwrap_or_else(|| panic!("{text}"));
    line.1.to_owned()
}

#[test]
fn the_nearest_machine_steps_in() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("regard");
    let put = |machine: Machine| {
        let path = directory.join(file_name(&machine.fingerprint()));
        save(&path, &Profile { fingerprint: machine.fingerprint(), machine, ..profile() }).unwrap();
        path
    };
    assert_eq!(found_in(home.path(), None), "nothing");
    // None of these is of any use: other instructions, caches that are quite different, no profile, other kernels.
    put(relative("no avx512", |machine| machine.features.truncate(1)));
    let far = put(relative("far", |machine| {
        machine.model = 1;
        machine.caches.l3.bytes = 1 << 20;
    }));
    fs::write(directory.join(file_name("0000000000000000")), "no profile").unwrap();
    let other_kernels = put(relative("other kernels", |machine| machine.stepping = 9));
    let text = fs::read_to_string(&other_kernels).unwrap();
    fs::write(&other_kernels, text.replace(&kernels().fingerprint, "0000000000000000")).unwrap();
    assert_eq!(found_in(home.path(), None), "nothing");

    // Each one is better than those before.
    put(relative("similar", |machine| {
        machine.model = 2000;
        machine.caches.l2.bytes *= 2;
    }));
    assert_eq!(found_in(home.path(), None), format!("similar {:?}", Fit::Similar { octaves: 1.0 }));
    put(relative("nearer", |machine| {
        machine.vendor = "GenuineIntel".to_owned();
        machine.caches.l1d.bytes = 32 << 10;
    }));
    assert!(found_in(home.path(), None).starts_with("nearer Similar { octaves: 0.58"));
    put(relative("kin", |machine| machine.caches.l3.bytes = 1 << 20));
    assert_eq!(found_in(home.path(), None), "kin Microarch");
    let nearer_kin = put(relative("nearer kin", |machine| machine.stepping = 0));
    assert_eq!(found_in(home.path(), None), "nearer kin Microarch");
    let own = put(relative("this", |_| ()));
    assert_eq!(found_in(home.path(), None), "this Exact");

    // What is named must be of this kind; what is for this machine and broken is not passed over.
    assert_eq!(found_in(home.path(), Some(&nearer_kin)), "nearer kin Microarch");
    assert!(found_in(home.path(), Some(&far)).starts_with("rejected: "));
    assert!(found_in(home.path(), Some(&home.path().join("absent"))).starts_with("rejected: "));
    fs::write(own, "{}").unwrap();
    assert!(found_in(home.path(), None).starts_with("rejected: "));
}
