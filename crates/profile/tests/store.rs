//! Files that are whole, cut short, altered, written for somebody else, or written by two at once.

mod common;

use std::error::Error as _;
use std::fs;
use std::path::Path;

use regard_profile::{Cores, MAX_BYTES, Profile, ProfileError, SCHEMA, load, save};

use common::*;

/// The error of loading a file with this text. Whatever is wrong, it must be told in one line that names the file.
fn error_of(text: impl AsRef<[u8]>) -> ProfileError {
    let (_directory, path) = scratch();
    fs::write(&path, text).unwrap();
    let error = load(&path, &machine(), &kernels()).unwrap_err();
    let line = error.to_string();
    assert!(!line.contains('\n') && line.contains(path.to_str().unwrap()), "{line:?}");
    assert!(line.len() < 600, "{line:?}");
    assert!(error.source().is_none(), "the cause is in the line already");
    error
}

/// The error of loading the sample after this change.
fn error_after(change: impl FnOnce(&mut Profile)) -> ProfileError {
    let mut profile = profile();
    change(&mut profile);
    error_of(serde_json::to_vec(&profile).unwrap())
}

#[test]
fn what_is_saved_is_loaded() {
    let (directory, _) = scratch();
    let path = directory.path().join("missing/directories/profile.json");
    save(&path, &profile()).unwrap();
    assert_eq!(load(&path, &machine(), &kernels()).unwrap(), profile());

    // Again, over the first one.
    let other = Profile { entries: vec![entry(64)], ..profile() };
    save(&path, &other).unwrap();
    assert_eq!(load(&path, &machine(), &kernels()).unwrap(), other);
    assert_eq!(names_in(path.parent().unwrap()), ["profile.json", "profile.json.lock"]);
}

#[test]
fn numbers_survive_to_the_last_bit() {
    let (_directory, path) = scratch();
    let mut bits = 0x1234_5678_9abc_def1_u64;
    for _ in 0..200 {
        bits = next(bits);
        let gflops = f64::from_bits(bits & (u64::MAX >> 1));
        if !gflops.is_finite() {
            continue;
        }
        let mut profile = profile();
        profile.entries[0].gflops = gflops;
        fs::write(&path, serde_json::to_vec(&profile).unwrap()).unwrap();
        assert_eq!(load(&path, &machine(), &kernels()).unwrap().entries[0].gflops.to_bits(), gflops.to_bits());
    }
}

#[test]
fn a_file_cut_short_anywhere_is_rejected() {
    let (_directory, path) = scratch();
    save(&path, &profile()).unwrap();
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        match load(&path, &machine(), &kernels()) {
            Ok(loaded) => {
                // Only the newline at the end may be missing.
                assert_eq!((length, &loaded), (whole.len() - 1, &profile()));
            }
            Err(error) => assert!(matches!(error, ProfileError::Json { .. }), "{length}: {error}"),
        }
    }
}

#[test]
fn a_file_with_a_tail_is_rejected() {
    let (_directory, path) = scratch();
    save(&path, &profile()).unwrap();
    let whole = fs::read(&path).unwrap();
    for tail in ["}", "{}", "x", "\0"] {
        let error = error_of([&whole[..], tail.as_bytes()].concat());
        assert!(matches!(error, ProfileError::Json { .. }), "{error}");
    }
}

#[test]
fn flipped_bytes_are_rejected_or_harmless() {
    let (_directory, path) = scratch();
    save(&path, &profile()).unwrap();
    let whole = fs::read(&path).unwrap();
    let (machine, kernels) = (machine(), kernels());
    let mut state = 0x9e37_79b9_7f4a_7c15;
    let mut loaded = 0;
    for round in 0..5_000 {
        let mut bytes = whole.clone();
        for _ in 0..=round % 3 {
            state = next(state);
            let at = (state >> 16) as usize % bytes.len();
            bytes[at] ^= (state as u8).max(1);
        }
        fs::write(&path, &bytes).unwrap();
        if let Ok(profile) = load(&path, &machine, &kernels) {
            loaded += 1;
            assert_fit(&profile, &machine, &kernels);
        }
    }
    assert!(loaded > 0, "letters of the notes may change, so some must be accepted");
}

#[test]
fn other_versions_are_named_even_if_nothing_else_is_known() {
    let error = error_of(r#"{"schema": 2, "everything": "is different"}"#);
    assert!(matches!(error, ProfileError::NewerSchema { found: 2, supported: SCHEMA, .. }), "{error}");
    let error = error_of(r#"{"schema": 18446744073709551615}"#);
    assert!(matches!(error, ProfileError::NewerSchema { found: u64::MAX, .. }), "{error}");
    let error = error_of(r#"{"schema": 0}"#);
    assert!(matches!(error, ProfileError::OlderSchema { found: 0, .. }), "{error}");
    for text in [r#"{"schema": -1}"#, r#"{"schema": "1"}"#, "{}", "[]", "null", "", "\u{feff}{}"] {
        assert!(matches!(error_of(text), ProfileError::Json { .. }), "{text}");
    }
}

#[test]
fn deep_nesting_is_an_error_and_no_overflow() {
    for open in ["[", "{\"schema\":"] {
        let error = error_of(open.repeat(100_000));
        assert!(matches!(error, ProfileError::Json { .. }), "{error}");
    }
    // Also where a field is unknown and would be ignored.
    let error = error_of(format!("{{\"schema\":1,\"extra\":{}", "[".repeat(100_000)));
    assert!(matches!(error, ProfileError::Json { .. }), "{error}");
}

#[test]
fn quotations_are_cut_short() {
    let text = serde_json::to_string(&profile()).unwrap();
    let error = error_of(text.replace("\"banded\"", &format!("\"{}\"", "x\\n".repeat(10_000))));
    assert!(error.to_string().contains("unknown variant") && error.to_string().contains("line 1 column"), "{error}");
}

#[test]
fn repeated_fields_are_ambiguous() {
    let text = serde_json::to_string(&profile()).unwrap();
    let error = error_of(text.replacen('{', "{\"fingerprint\":\"0\",", 1));
    assert!(matches!(error, ProfileError::Json { .. }), "{error}");
}

#[test]
fn another_machine_is_told_with_both_names() {
    let error = error_after(|profile| {
        profile.machine.model = 97;
        profile.machine.brand = "AMD Ryzen\n9".to_owned();
        profile.fingerprint = profile.machine.fingerprint();
    });
    let line = error.to_string();
    assert!(matches!(error, ProfileError::WrongMachine { .. }), "{line}");
    let mut other = machine();
    other.model = 97;
    for name in [machine().fingerprint(), other.fingerprint(), "Turin".to_owned(), "Ryzen\u{fffd}9".to_owned()] {
        assert!(line.contains(&name), "{name} is missing: {line}");
    }
}

#[test]
fn an_edited_machine_is_inconsistent() {
    let error = error_after(|profile| profile.machine.caches.l2.bytes *= 2);
    assert!(matches!(error, ProfileError::Inconsistent { .. }), "{error}");
    let error = error_after(|profile| profile.fingerprint = "\n".repeat(10_000));
    assert!(matches!(error, ProfileError::Inconsistent { .. }), "{error}");
}

#[test]
fn the_same_machine_in_another_container_is_the_same() {
    let (_directory, path) = scratch();
    save(&path, &profile()).unwrap();
    let mut here = machine();
    here.cores = Cores::default();
    here.brand.clear();
    assert!(load(&path, &here, &kernels()).is_ok());
}

#[test]
fn other_kernels_are_rejected() {
    let error = error_after(|profile| profile.tool.kernels_fingerprint = "dead".to_owned());
    assert!(matches!(error, ProfileError::WrongKernels { .. }), "{error}");
    assert!(error.to_string().contains("dead") && error.to_string().contains(&kernels().fingerprint), "{error}");
}

#[test]
fn one_unknown_kernel_rejects_the_whole_file() {
    let error = error_after(|profile| profile.entries[1].config.kernel = "lanes_9x9".to_owned());
    assert!(matches!(&error, ProfileError::UnknownKernel { entry: 1, name, .. } if name == "lanes_9x9"), "{error}");
    let error = error_after(|profile| {
        profile.entries[0].runner_up.as_mut().unwrap().config.kernel = "x\n".repeat(1000);
    });
    assert!(matches!(error, ProfileError::UnknownKernel { entry: 0, .. }), "{error}");
}

#[test]
fn blocks_out_of_range_are_rejected() {
    for value in [0, 7, 4097, usize::MAX] {
        let error = error_after(|profile| profile.entries[0].config.key_block = value);
        let ProfileError::OutOfRange { field, value: found, least, greatest, .. } = error else { panic!("{error}") };
        assert_eq!((field, found, least, greatest), ("key_block", value, 8, 4096));
    }
    let error = error_after(|profile| profile.entries[0].config.query_block = 15);
    assert!(matches!(error, ProfileError::OutOfRange { field: "query_block", value: 15, .. }), "{error}");
    let error = error_after(|profile| profile.entries[1].runner_up.as_mut().unwrap().config.query_block = 0);
    assert!(matches!(error, ProfileError::OutOfRange { entry: 1, .. }), "{error}");
}

#[test]
fn numbers_that_are_none_are_rejected() {
    let text = serde_json::to_string(&profile()).unwrap();
    assert!(text.contains("\"ratio_to_model\":0.93"));
    for number in ["1e999", "null", "NaN", "Infinity", "-Infinity"] {
        let error = error_of(text.replace("\"ratio_to_model\":0.93", &format!("\"ratio_to_model\":{number}")));
        assert!(matches!(error, ProfileError::Json { .. }), "{number}: {error}");
    }
    let error = error_after(|profile| profile.entries[1].gflops = -1.0);
    assert!(matches!(&error, ProfileError::BadNumber { field, .. } if field == "entries[1].gflops"), "{error}");
}

#[test]
fn numbers_that_are_none_are_not_saved() {
    let changes: [fn(&mut Profile); 8] = [
        |p| p.run.seconds = f64::NAN,
        |p| p.machine.cores.quota = Some(f64::INFINITY),
        |p| p.measured.as_mut().unwrap().read_gbytes_per_s = f64::NAN,
        |p| *p.measured.as_mut().unwrap().fma_gflops.get_mut("avx2").unwrap() = f64::NEG_INFINITY,
        |p| p.entries[0].gflops = f64::NAN,
        |p| p.entries[0].fraction_of_peak = f64::INFINITY,
        |p| p.entries[1].ratio_to_model = -1.0,
        |p| p.entries[1].runner_up.as_mut().unwrap().ratio = f64::NAN,
    ];
    let (directory, path) = scratch();
    for change in changes {
        let mut profile = profile();
        change(&mut profile);
        let error = save(&path, &profile).unwrap_err();
        assert!(matches!(error, ProfileError::BadNumber { .. }), "{error}");
    }
    assert!(names_in(directory.path()).is_empty());
}

#[test]
fn large_files_are_neither_read_nor_written() {
    let whole = serde_json::to_vec(&profile()).unwrap();
    let padded = |bytes: u64| [&whole[..], &vec![b' '; bytes as usize - whole.len()]].concat();
    let (_directory, path) = scratch();
    fs::write(&path, padded(MAX_BYTES)).unwrap();
    assert!(load(&path, &machine(), &kernels()).is_ok());
    let error = error_of(padded(MAX_BYTES + 1));
    assert!(matches!(error, ProfileError::TooLarge { limit: MAX_BYTES, .. }), "{error}");

    let mut large = profile();
    large.run.notes.push("x".repeat(MAX_BYTES as usize));
    let error = save(&path, &large).unwrap_err();
    assert!(matches!(error, ProfileError::TooLarge { .. }), "{error}");
    assert_eq!(load(&path, &machine(), &kernels()).unwrap(), profile(), "the old file is untouched");
}

#[test]
fn what_is_no_file_is_not_opened() {
    let (directory, path) = scratch();
    let error = load(directory.path(), &machine(), &kernels()).unwrap_err();
    assert!(matches!(error, ProfileError::NotAFile { .. }), "{error}");
    let error = load(&path, &machine(), &kernels()).unwrap_err();
    assert!(matches!(&error, ProfileError::Io { error, .. } if error.kind() == std::io::ErrorKind::NotFound));
}

#[test]
fn a_refused_write_leaves_nothing_behind() {
    let (directory, path) = scratch();
    fs::create_dir(&path).unwrap();
    for path in [path.as_path(), Path::new(""), Path::new("/"), &directory.path().join("..")] {
        let error = save(path, &profile()).unwrap_err();
        assert!(matches!(error, ProfileError::NotAFile { .. }), "{error}");
    }
    assert_eq!(names_in(directory.path()), ["profile.json"]);

    // A regular file where a directory should be.
    let (directory, path) = scratch();
    fs::write(&path, "").unwrap();
    let error = save(&path.join("below.json"), &profile()).unwrap_err();
    assert!(matches!(error, ProfileError::Io { action: "create its directory", .. }), "{error}");
    assert_eq!(names_in(directory.path()), ["profile.json"]);
}

#[test]
fn concurrent_writers_and_readers_see_whole_files() {
    const ROUNDS: usize = 40;
    let (directory, path) = scratch();
    // Of quite different lengths, so that a mixture would show.
    let versions = [
        Profile { entries: vec![entry(64)], ..profile() },
        Profile { entries: (0..40).map(|i| entry(64 + i)).collect(), ..profile() },
    ];
    save(&path, &versions[0]).unwrap();
    std::thread::scope(|scope| {
        for version in &versions {
            scope.spawn(|| (0..ROUNDS).for_each(|_| save(&path, version).unwrap()));
        }
        for _ in 0..4 * ROUNDS {
            let seen = load(&path, &machine(), &kernels()).unwrap();
            assert!(versions.contains(&seen));
        }
    });
    assert!(versions.contains(&load(&path, &machine(), &kernels()).unwrap()));
    assert_eq!(names_in(directory.path()), ["profile.json", "profile.json.lock"]);
}
