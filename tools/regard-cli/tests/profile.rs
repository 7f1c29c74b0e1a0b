//! `regard profile`, and the profiles that operators meet.

mod common;

use std::fs;
use std::path::PathBuf;

use common::*;
use regard::{Level, kernel_set};
use regard_kernels::table::kernels;
use regard_profile::{
    Class, Confidence, Config, Entry, Family, Machine, MaskClass, Profile, Run, SCHEMA, Tool, file_name, save,
};
use serde_json::Value;

/// A profile of this machine, of two small classes, that no tuner would make.
fn profile() -> Profile {
    let level = Level::best();
    let kernel = kernels(level).iter().rfind(|kernel| kernel.dtype == regard::Dtype::F32).unwrap();
    let entry = |keys| Entry {
        class: Class {
            isa: level.isa().name().to_owned(),
            dtype: "f32".to_owned(),
            family: Family::Exponential,
            mask: MaskClass::Banded,
            head_dim: 32,
            value_dim: 32,
            keys,
            queries: keys,
        },
        config: Config::new(kernel.name, 34, 13),
        gflops: 10.0,
        fraction_of_peak: 0.5,
        ratio_to_model: 0.9,
        ratio_interval: None,
        samples: 9,
        runner_up: None,
        rivals: Vec::new(),
        why: "a test says so".to_owned(),
    };
    let tool =
        Tool { name: "tests".to_owned(), version: "0".to_owned(), kernels_fingerprint: kernel_set().fingerprint };
    let run = Run {
        unix_time: 1_800_000_000,
        seconds: 1.0,
        mode: "test".to_owned(),
        confidence: Confidence::Low,
        notes: vec!["a note\nof two lines".to_owned()],
    };
    Profile { entries: vec![entry(64), entry(96)], ..Profile::new(tool, Machine::detect(), run) }
}

/// Where this machine's profile is looked for first.
fn own(place: &Place) -> PathBuf {
    place.path("regard").join(file_name(&Machine::detect().fingerprint()))
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn showing_a_profile() {
    let place = Place::new();
    assert!(place.fail(&["profile", "show"], 3).contains("regard tune"));
    save(&own(&place), &profile()).unwrap();
    let text = place.succeed(&["profile", "show"]);
    let wanted = ["tuned on this machine", "those here", "a note\\nof two lines", "keys=64", "keys=96"];
    for part in wanted {
        assert!(text.contains(part), "{part} in {text}");
    }
    let shown = json(&place.succeed(&["profile", "show", "--json"]));
    assert_eq!((&shown["schema"], shown["entries"].as_array().unwrap().len()), (&SCHEMA.into(), 2));
    // One of another machine and other kernels can be looked at.
    let mut other = profile();
    other.machine.arch = "riscv64".to_owned();
    other.fingerprint = other.machine.fingerprint();
    other.tool.kernels_fingerprint = "dead".to_owned();
    save(&place.path("other.json"), &other).unwrap();
    let text = place.succeed(&["profile", "show", "other.json"]);
    assert!(text.contains("quite another machine") && text.contains("dead, not those here"), "{text}");
    fs::write(place.path("cut.json"), "{\"schema\": 1").unwrap();
    assert!(place.fail(&["profile", "show", "cut.json"], 3).contains("cut.json"));
}

#[test]
fn comparing_profiles() {
    let place = Place::new();
    let (a, mut b) = (profile(), profile());
    save(&place.path("a.json"), &a).unwrap();
    assert!(place.succeed(&["profile", "diff", "a.json", "a.json"]).contains("2 choices are the same, 0 differ"));
    b.entries[0].config.query_block = 26;
    b.entries[1].class.keys = 97;
    save(&place.path("b.json"), &b).unwrap();
    let output = place.run(&["profile", "diff", "a.json", "b.json", "--json"]);
    assert_eq!(output.status.code(), Some(1), "as diff does");
    let found = json(std::str::from_utf8(&output.stdout).unwrap());
    let differences: Vec<&str> =
        found["differences"].as_array().unwrap().iter().map(|one| one["difference"].as_str().unwrap()).collect();
    assert_eq!(differences, ["choice", "only_a", "only_b"]);
    let output = place.run(&["profile", "diff", "a.json", "b.json"]);
    assert!(String::from_utf8(output.stdout).unwrap().contains("0 choices are the same, 3 differ"));
    place.fail(&["profile", "diff", "a.json", "absent.json"], 3);
}

#[test]
fn merging_and_exporting() {
    let place = Place::new();
    let (mut newer, mut older) = (profile(), profile());
    newer.entries.truncate(1);
    newer.entries[0].gflops = 20.0;
    older.run.unix_time -= 1000;
    save(&place.path("newer.json"), &newer).unwrap();
    save(&place.path("older.json"), &older).unwrap();
    for order in [["newer.json", "older.json"], ["older.json", "newer.json"]] {
        let written = place.succeed(&["profile", "merge", order[0], order[1], "--out", "both.json", "--json"]);
        assert_eq!(json(&written)["entries"], 2);
        let both = regard_profile::inspect(&place.path("both.json")).unwrap();
        assert_eq!((both.entries[0].gflops, both.entries[1].class.keys), (20.0, 96));
    }
    let text = place.succeed(&["profile", "export", "both.json", "--to", "image/etc/regard"]);
    let exported = place.path("image/etc/regard").join(file_name(&Machine::detect().fingerprint()));
    assert!(exported.is_file() && text.contains("2 entries"), "{text}");

    // What would not be accepted there is not shipped.
    let bytes = fs::read_to_string(place.path("both.json")).unwrap();
    fs::write(place.path("both.json"), bytes.replace("\"key_block\": 34", "\"key_block\": 35")).unwrap();
    assert!(place.fail(&["profile", "export", "both.json", "--to", "image"], 3).contains("even"));
    let mut stranger = older;
    stranger.machine.model += 1;
    stranger.fingerprint = stranger.machine.fingerprint();
    save(&place.path("stranger.json"), &stranger).unwrap();
    place.fail(&["profile", "merge", "newer.json", "stranger.json", "--out", "x.json"], 3);
    assert!(!place.path("x.json").exists());
    place.fail(&["profile", "merge", "newer.json", "--out", "x.json"], 2);
}

#[test]
fn a_profile_that_nobody_would_load_is_not_merged() {
    type Spoil = fn(&mut Profile);
    let spoilt: [(Spoil, &str); 4] = [
        (|old| old.entries[1].config.kernel = "lanes_9x9".to_owned(), "entry 1: there is no kernel \"lanes_9x9\""),
        (|old| old.entries[1].config.query_block = 0, "entry 1: query_block is 0"),
        (|old| old.entries[1].gflops = -1.0, "entries[1].gflops is -1"),
        (|old| old.tool.kernels_fingerprint = "dead".to_owned(), "tuned with kernels dead"),
    ];
    for (spoil, part) in spoilt {
        let place = Place::new();
        save(&place.path("good.json"), &profile()).unwrap();
        let mut bad = profile();
        spoil(&mut bad);
        fs::write(place.path("bad.json"), serde_json::to_vec(&bad).unwrap()).unwrap();
        let before = place.files();
        for order in [["good.json", "bad.json"], ["bad.json", "good.json"]] {
            let line = place.fail(&["profile", "merge", order[0], order[1], "--out", "both.json"], 3);
            assert!(line.contains("bad.json") && line.contains(part), "{part:?} in {line}");
            assert_eq!(place.files(), before);
        }
    }
}

#[test]
fn where_profiles_are() {
    let place = Place::new();
    let found = json(&place.succeed(&["profile", "where", "--json"]));
    assert!(found["used"].is_null());
    assert_eq!(found["search_path"][0], own(&place).to_str().unwrap());
    // A stepping that this machine has not: used as long as there is no better one.
    let mut kin = profile();
    kin.machine.stepping += 1;
    kin.fingerprint = kin.machine.fingerprint();
    let path = place.path("regard").join(file_name(&kin.fingerprint));
    save(&path, &kin).unwrap();
    if Machine::detect().family != 0 {
        let text = place.succeed(&["profile", "where"]);
        assert!(text.contains("tuned on a machine of the same microarchitecture"), "{text}");
        let info = json(&place.succeed(&["info", "--json"]));
        assert_eq!((&info["profile"]["fit"], &info["profile"]["state"]), (&"microarch".into(), &"loaded".into()));
    }
    save(&own(&place), &profile()).unwrap();
    let found = json(&place.succeed(&["profile", "where", "--json"]));
    assert_eq!(found["used"], own(&place).to_str().unwrap());
    assert_eq!(found["candidates"].as_array().unwrap().len(), 2);

    // The one that counts is broken: said on both ways, with the code of bad input.
    fs::write(own(&place), "{}").unwrap();
    let output = place.run(&["profile", "where"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8(output.stdout).unwrap().contains("not a valid profile"));
}

#[test]
fn cleaning_up() {
    let place = Place::new();
    assert!(place.succeed(&["profile", "clean"]).contains("nothing to remove"));
    save(&own(&place), &profile()).unwrap();
    let name = file_name(&Machine::detect().fingerprint());
    let aside = place.path("regard").join(format!("{name}.aside-1"));
    let stale = place.path("regard").join(file_name("0123456789abcdef"));
    let mut old = profile();
    old.tool.kernels_fingerprint = "dead".to_owned();
    save(&stale, &old).unwrap();
    fs::write(&aside, "").unwrap();
    assert!(place.succeed(&["profile", "clean", "--dry-run"]).contains("would remove"));
    assert!(aside.exists() && stale.exists());
    let text = place.succeed(&["profile", "clean"]);
    assert!(text.contains("set aside") && text.contains("stale: "), "{text}");
    assert!(!aside.exists() && !stale.exists() && own(&place).exists());
}

/// In a debug build of a shared machine no time means anything: what is tested is what is timed and said.
#[test]
fn verifying_a_profile() {
    let place = Place::new();
    save(&own(&place), &profile()).unwrap();
    let output = place.run(&["profile", "verify", "--budget", "3", "--json"]);
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}", stderr(&output));
    let found = json(std::str::from_utf8(&output.stdout).unwrap());
    let trials = found["trials"].as_array().unwrap();
    assert_eq!(trials.len(), 2);
    for trial in trials {
        assert!(["faster", "equal", "slower"].contains(&trial["verdict"].as_str().unwrap()), "{trial}");
        assert!(trial["rounds"].as_u64().unwrap() >= 5 && trial["speedup"].as_f64().unwrap() > 0.0, "{trial}");
    }
    let slower = trials.iter().filter(|trial| trial["verdict"] == "slower").count();
    assert_eq!(output.status.code(), Some(i32::from(slower > 0)));
    assert_eq!(found["slower"], slower);

    // Without time nothing is timed, and nothing is wrong.
    let found = json(&quietly(&place, &["profile", "verify", "--budget", "0", "--json"]));
    assert!(found["trials"].as_array().unwrap().iter().all(|trial| trial["verdict"] == "untimed"), "{found}");
    // A choice that is the model's needs no time.
    let plan = json(&place.succeed(&[
        "explain",
        "--json",
        "--no-profile",
        "--queries",
        "64",
        "--head-dim",
        "32",
        "--heads",
        "1",
        "--causal",
        "bottom-right",
    ]));
    let mut modelled = profile();
    modelled.entries.truncate(1);
    let number = |name: &str| plan[name].as_u64().unwrap() as usize;
    modelled.entries[0].config =
        Config::new(plan["kernel"].as_str().unwrap(), number("key_block"), number("query_block"));
    save(&place.path("modelled.json"), &modelled).unwrap();
    let found = json(&quietly(&place, &["profile", "verify", "modelled.json", "--json"]));
    assert_eq!(found["trials"][0]["verdict"], "model", "{found}");
    place.fail(&["profile", "verify", "absent.json"], 3);
}

#[test]
fn contests_of_kernels_that_do_not_run_are_not_told() {
    let place = Place::new();
    let problem = "--queries 64 --head-dim 16 --heads 1 --weighting power --degree 2 --causal bottom-right";
    let explain = |more: &str| {
        let args = format!("explain {problem} {more}");
        place.succeed(&args.split(' ').collect::<Vec<_>>())
    };
    let plan = json(&explain("--form quadratic --no-profile --json"));
    let number = |name: &str| plan[name].as_u64().unwrap() as usize;
    let mut tuned = profile();
    tuned.entries.truncate(1);
    let entry = &mut tuned.entries[0];
    entry.class = serde_json::from_value(plan["class"].clone()).unwrap();
    entry.config = Config::new(plan["kernel"].as_str().unwrap(), number("key_block"), number("query_block"));
    let trial = |fate: &str| serde_json::json!({ "config": entry.config, "fate": fate, "ratio": 1.04, "samples": 8 });
    let trials = [trial("keyblock"), trial("won")];
    let line = serde_json::json!({ "role": "lanes", "class": entry.class, "trials": trials, "run_offs": [] });
    save(&own(&place), &tuned).unwrap();
    fs::write(own(&place).with_extension("trials.jsonl"), format!("{line}\n")).unwrap();
    let text = explain("--form quadratic");
    for part in ["contest ", "key block out at 1.040 of the fastest, 8 samples", "chosen"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let text = explain("--form linear");
    assert!(!text.contains("contest ") && text.contains("arithmetic limits the linear form"), "{text}");
    let plan = json(&explain("--form linear --json"));
    assert!(plan["contest"].is_null() && plan["profile_entry"].is_null(), "{plan}");
}

/// Standard output of a run that goes well, whatever it says of its progress.
fn quietly(place: &Place, args: &[&str]) -> String {
    let output = place.run(args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_measured_card() {
    let place = Place::new();
    // Two, if there are two.
    let most = Machine::detect().cores.allowed.min(2);
    let card = json(&quietly(&place, &["info", "--measure", "--threads", &most.to_string(), "--json"]));
    let measured = &card["measured"];
    let isa = Level::best().isa().name();
    let peaks = measured["peaks"].as_array().unwrap();
    for threads in 1..=most {
        let is_it = |peak: &&Value| peak["operation"] == "fma" && peak["isa"] == isa && peak["threads"] == threads;
        let peak = peaks.iter().find(is_it).expect("every level has its peak");
        assert!(peak["gops"]["median"].as_f64().unwrap() > 0.0);
    }
    assert!(measured["reads"].as_array().unwrap().iter().any(|read| read["memory"] == "dram"));
    assert_eq!(measured["fork_join"]["warm_us"]["median"].as_f64().is_some_and(|cost| cost > 0.0), most > 1);
    assert!(card["machine"]["identity_source"].is_string());
    assert!(place.fail(&["info", "--threads", "2"], 2).contains("--measure"));
    assert!(place.fail(&["info", "--measure", "--threads", "60000"], 3).contains("60000"));
}
