//! What can happen to a profile that nobody intends: edits, full disks, two writers, writers that are killed.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::*;
use regard_profile::{Crossover, Profile, ProfileError, inspect, load, save, save_merged};
use serde_json::{Value, json};

/// The file with another value in one place.
type Edit<'a> = &'a mut dyn FnMut(Value) -> Value;

/// Every value of a file in turn, replaced; the path of names and indices is for messages.
fn every_value(file: &Value, change: &mut dyn FnMut(&str, Edit<'_>)) {
    fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
        found.push(at.to_owned());
        match value {
            Value::Array(all) => {
                (all.iter().enumerate()).for_each(|(i, one)| pointers(one, &format!("{at}/{i}"), found))
            }
            Value::Object(all) => all.iter().for_each(|(key, one)| pointers(one, &format!("{at}/{key}"), found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    pointers(file, "", &mut found);
    for at in found {
        change(&at, &mut |value| {
            let mut edited = file.clone();
            *edited.pointer_mut(&at).expect("it was there") = value;
            edited
        });
    }
}

#[test]
fn a_value_of_another_type_is_refused_or_harmless() {
    let (_directory, path) = scratch();
    let (machine, kernels) = (machine(), kernels());
    let whole = serde_json::to_value(profile()).unwrap();
    let strangers = [json!(null), json!(true), json!(-1), json!(0.5), json!("x"), json!([]), json!({}), json!([[{}]])];
    let (mut loaded, mut refused) = (0, 0);
    every_value(&whole, &mut |at, edit| {
        for stranger in &strangers {
            fs::write(&path, serde_json::to_vec(&edit(stranger.clone())).unwrap()).unwrap();
            match load(&path, &machine, &kernels) {
                Ok(profile) => {
                    loaded += 1;
                    assert_fit(&profile, &machine, &kernels);
                }
                Err(error) => {
                    refused += 1;
                    assert!(!error.to_string().contains('\n'), "{at}: {error}");
                }
            }
            // To look at, it may be of any use or none; it must not be a surprise.
            let _ = inspect(&path);
        }
    });
    assert!(refused > 500 && loaded > 50, "{refused} refused, {loaded} loaded");
}

#[test]
fn huge_numbers_are_refused_or_harmless() {
    let (_directory, path) = scratch();
    let (machine, kernels) = (machine(), kernels());
    let whole = serde_json::to_value(profile()).unwrap();
    // As text, since most of them are no numbers of any type.
    const HUGE: [&str; 8] = [
        "18446744073709551615",
        "18446744073709551616",
        "-9223372036854775808",
        "99999999999999999999999999999999999999999999",
        "1e308",
        "1e999",
        "-1e999",
        "4294967296",
    ];
    let mut refused = 0;
    every_value(&whole, &mut |at, edit| {
        if !whole.pointer(at).is_some_and(Value::is_number) {
            return;
        }
        let text = edit(json!("HERE")).to_string();
        for huge in HUGE {
            fs::write(&path, text.replace("\"HERE\"", huge)).unwrap();
            match load(&path, &machine, &kernels) {
                Ok(profile) => assert_fit(&profile, &machine, &kernels),
                Err(_) => refused += 1,
            }
        }
    });
    assert!(refused > 100, "{refused} refused");
}

/// This program again, to run one of the ignored tests below on a path, perhaps through another program. `None` if it cannot
/// be had.
fn child(through: &[&str], test: &str, path: &Path) -> Option<Child> {
    let program = this_program();
    let mut command = through.iter().copied().chain(program.iter().map(String::as_str));
    let mut child = Command::new(command.next()?);
    child.args(command).args(["--exact", test, "--ignored", "--nocapture"]);
    child.env("REGARD_TEST_PROFILE", path).stdout(Stdio::piped()).stderr(Stdio::piped());
    child.spawn().ok()
}

/// The path that a child works on.
fn given() -> std::path::PathBuf {
    std::env::var_os("REGARD_TEST_PROFILE").expect("run by a test above").into()
}

/// What a child said, if it did what it was to do.
fn said(child: Child) -> Option<String> {
    let output = child.wait_with_output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        eprintln!("{text}\n{}", String::from_utf8_lossy(&output.stderr));
    }
    output.status.success().then_some(text)
}

const ROUNDS: usize = 25;

#[test]
#[ignore = "run by the test below in processes of their own"]
fn child_adds_entries() {
    let path = given();
    let number: usize = path.extension().and_then(|text| text.to_str()).expect("a number").parse().expect("a number");
    let path = path.with_extension("json");
    for round in 0..ROUNDS {
        let entries = vec![entry(1000 * number + round)];
        let saved = save_merged(&path, &Profile { entries, ..profile() }, &kernels()).unwrap();
        assert_eq!(saved.set_aside, None);
    }
}

#[test]
fn two_processes_that_save_lose_nothing() {
    let (directory, path) = scratch();
    let children = [1, 2].map(|i| child(&[], "child_adds_entries", &path.with_extension(i.to_string())).unwrap());
    for child in children {
        said(child).expect("every save is fine");
    }
    let found = load(&path, &machine(), &kernels()).unwrap();
    let mut keys: Vec<usize> = found.entries.iter().map(|entry| entry.class.keys).collect();
    keys.sort_unstable();
    let wanted: Vec<usize> = (1000..1000 + ROUNDS).chain(2000..2000 + ROUNDS).collect();
    assert_eq!(keys, wanted);
    assert_eq!(names_in(directory.path()), ["profile.json", "profile.json.lock"]);
}

/// Of quite different lengths, so that a mixture would show.
fn versions() -> [Profile; 2] {
    [
        Profile { entries: vec![entry(64)], ..profile() },
        Profile { entries: (0..150).map(|i| entry(64 + i)).collect(), ..profile() },
    ]
}

#[test]
#[ignore = "run by the test below in a process of its own"]
fn child_saves_until_it_is_killed() {
    let path = given();
    loop {
        versions().iter().for_each(|version| save(&path, version).unwrap());
    }
}

#[test]
fn a_writer_that_is_killed_leaves_the_old_file_or_the_new_one() {
    let (directory, path) = scratch();
    save(&path, &versions()[0]).unwrap();
    let mut left_behind = 0;
    let mut state = 0x9e37_79b9_7f4a_7c15;
    for _ in 0..40 {
        let mut child = child(&[], "child_saves_until_it_is_killed", &path).unwrap();
        state = next(state);
        std::thread::sleep(Duration::from_micros(5_000 + state % 30_000));
        // SIGKILL.
        child.kill().unwrap();
        child.wait().unwrap();
        let found = load(&path, &machine(), &kernels()).unwrap();
        assert!(versions().contains(&found), "{} entries", found.entries.len());
        left_behind = names_in(directory.path()).len().saturating_sub(2).max(left_behind);
    }
    println!("{left_behind} temporary files were left behind at most");
    // The next writer cleans up.
    save(&path, &versions()[1]).unwrap();
    assert_eq!(names_in(directory.path()), ["profile.json", "profile.json.lock"]);
}

/// In a file system of 64 KiB that nobody else sees.
#[test]
#[ignore = "run by the test below in a name space of its own"]
fn child_has_a_disk_of_its_own() {
    let directory = given();
    let mount = |options: &str| {
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&directory).status();
        status.is_ok_and(|status| status.success())
    };
    if !mount("size=64k") {
        println!("NO MOUNT");
        return;
    }
    let path = directory.join("profile.json");
    let [small, large] = versions();
    save(&path, &small).unwrap();
    for _ in 0..3 {
        let error = save(&path, &large).unwrap_err();
        assert!(matches!(&error, ProfileError::Io { error, .. } if error.raw_os_error() == Some(28)), "{error}");
        let error = save_merged(&path, &large, &kernels()).unwrap_err();
        assert!(matches!(&error, ProfileError::Io { error, .. } if error.raw_os_error() == Some(28)), "{error}");
        assert_eq!(load(&path, &machine(), &kernels()).unwrap(), small);
        assert_eq!(names_in(&directory), ["profile.json", "profile.json.lock"]);
    }
    // Somebody else fills it to the last byte.
    let mut hog = fs::File::create(directory.join("hog")).unwrap();
    while std::io::Write::write(&mut hog, &[1; 512]).is_ok_and(|written| written > 0) {}
    save(&path, &Profile { entries: vec![entry(7)], ..small.clone() }).unwrap_err();
    assert_eq!(load(&path, &machine(), &kernels()).unwrap(), small);
    drop(hog);
    fs::remove_file(directory.join("hog")).unwrap();
    let other = Profile { entries: vec![entry(7)], ..small };
    save(&path, &other).unwrap();

    // The same disk, read-only from now on.
    assert!(mount("remount,ro"), "what was mounted can be mounted again");
    let error = save(&path, &versions()[0]).unwrap_err();
    assert!(matches!(&error, ProfileError::Io { error, .. } if error.raw_os_error() == Some(30)), "{error}");
    assert_eq!(load(&path, &machine(), &kernels()).unwrap(), other);
    let below = directory.join("new/profile.json");
    assert!(matches!(save(&below, &other).unwrap_err(), ProfileError::Io { action: "create its directory", .. }));
    println!("DONE");
}

/// With files of 8 KiB at the most, and no signal when that is exceeded.
#[test]
#[ignore = "run by the test below under a limit"]
fn child_may_write_little() {
    let path = given();
    let [small, large] = versions();
    save(&path, &small).unwrap();
    let error = save(&path, &large).unwrap_err();
    assert!(matches!(&error, ProfileError::Io { action: "write it", .. }), "{error}");
    assert_eq!(load(&path, &machine(), &kernels()).unwrap(), small);
    assert_eq!(names_in(path.parent().unwrap()), ["profile.json", "profile.json.lock"]);
    println!("DONE");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_or_read_only_disk_keeps_the_old_file() {
    let (directory, path) = scratch();
    let own_disk = child(&["unshare", "-rm"], "child_has_a_disk_of_its_own", directory.path());
    let own_disk = own_disk.map(|child| child.wait_with_output().unwrap());
    match own_disk {
        Some(output) if output.status.success() && String::from_utf8_lossy(&output.stdout).contains("DONE") => {}
        // Of the test, not of `unshare`, which fails before it starts.
        Some(output)
            if String::from_utf8_lossy(&output.stdout).contains("panicked") || output.status.code() == Some(101) =>
        {
            panic!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        }
        _ => {
            eprintln!("SKIPPED: a full and a read-only disk; no name space with a file system of its own is permitted")
        }
    }
    let limited = ["sh", "-c", "trap '' XFSZ; ulimit -f 8 && exec \"$@\"", "sh"];
    match child(&limited, "child_may_write_little", &path).map(|child| said(child).unwrap_or_default()) {
        Some(text) => assert!(text.contains("DONE"), "{text}"),
        None => eprintln!("SKIPPED: a limit on the size of files; there is no shell"),
    }
}

#[test]
fn what_is_there_and_of_no_use_is_set_aside() {
    let (directory, path) = scratch();
    let mut wrong_kernels = profile();
    wrong_kernels.tool.kernels_fingerprint = "dead".to_owned();
    let others = [
        "no profile at all".to_owned(),
        r#"{"schema": 99, "everything": "is different"}"#.to_owned(),
        serde_json::to_string(&wrong_kernels).unwrap(),
    ];
    for (i, other) in others.iter().enumerate() {
        fs::write(&path, other).unwrap();
        let saved = save_merged(&path, &profile(), &kernels()).unwrap();
        let aside = directory.path().join(format!("profile.json.aside-{}", i + 1));
        assert_eq!(saved.set_aside, Some(aside.clone()));
        assert_eq!(saved.profile, profile());
        assert_eq!(fs::read_to_string(aside).unwrap(), *other);
        assert_eq!(load(&path, &machine(), &kernels()).unwrap(), profile());
    }
    // What cannot be written sets nothing aside.
    let mut bad = profile();
    bad.entries[0].gflops = f64::NAN;
    fs::write(&path, &others[1]).unwrap();
    save_merged(&path, &bad, &kernels()).unwrap_err();
    assert_eq!(fs::read_to_string(&path).unwrap(), others[1]);
}

#[test]
fn one_bad_entry_does_not_spoil_what_is_added() {
    type Spoil = fn(&mut Profile);
    let spoilt: [Spoil; 5] = [
        |old| old.entries[0].config.kernel = "lanes_9x9".to_owned(),
        |old| old.entries[0].config.query_block = 0,
        |old| old.entries[0].gflops = -1.0,
        |old| old.entries[0].rivals[0].config.key_block = 193,
        |old| old.crossovers.push(Crossover { kernel: "rows_9".to_owned(), rows_up_to: 3 }),
    ];
    for (i, spoil) in spoilt.into_iter().enumerate() {
        let (_directory, path) = scratch();
        // Of a class that the new one has not tuned, or it would not be merged at all.
        let mut old = Profile { entries: vec![entry(64)], ..profile() };
        spoil(&mut old);
        let text = serde_json::to_string(&old).unwrap();
        fs::write(&path, &text).unwrap();
        load(&path, &machine(), &kernels()).unwrap_err();
        // The next one finds a file that it can add to.
        for round in 0..2 {
            let saved = save_merged(&path, &profile(), &kernels()).unwrap();
            assert_eq!(saved.set_aside.is_some(), round == 0, "{i}");
            assert_eq!(load(&path, &machine(), &kernels()).unwrap(), profile(), "{i}");
            saved.set_aside.iter().for_each(|aside| assert_eq!(fs::read_to_string(aside).unwrap(), text));
        }
        // Nor is such a profile written, or a good one set aside for it.
        save_merged(&path, &old, &kernels()).unwrap_err();
        assert_eq!(load(&path, &machine(), &kernels()).unwrap(), profile(), "{i}");
    }
}
