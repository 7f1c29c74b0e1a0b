//! `regard tune`: the profile that it writes, and that the other commands use it.

mod common;

use std::process::Output;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use common::*;
use serde_json::Value;

#[track_caller]
fn tuned(place: &Place, args: &[&str]) -> String {
    let _alone = alone();
    let output = place.run(args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    assert!(stderr(&output).contains("0 %"), "progress in lines");
    String::from_utf8(output.stdout).unwrap()
}

fn json(place: &Place, args: &[&str]) -> Value {
    serde_json::from_str(&tuned(place, args)).unwrap()
}

/// Enough for a class or two, also in an emulator.
const BUDGET: &str = if cfg!(target_arch = "aarch64") { "60" } else { "15" };

/// Searches of two tests at a time would take the cores and the memory from each other, and find nothing.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

const BRIEF: [&str; 5] = ["tune", "--quick", "--budget", BUDGET, "--json"];

#[test]
fn the_profile_is_written_and_used() {
    let place = Place::new();
    let summary = json(&place, &BRIEF);
    assert_eq!(summary["written"], true);
    let path = summary["path"].as_str().unwrap();
    assert!(std::path::Path::new(path).starts_with(place.path("regard")), "{path}");
    let entries = summary["profile"]["entries"].as_array().unwrap();
    assert!(!entries.is_empty());
    let of_lanes = |entry: &&Value| {
        let kernel = entry["config"]["kernel"].as_str().unwrap();
        kernel.contains("_lanes_f32") && entry["class"]["dtype"] == "f32"
    };
    let key_block = &entries.iter().find(of_lanes).unwrap()["config"]["key_block"];
    assert!(entries.iter().filter(of_lanes).all(|entry| entry["config"]["key_block"] == *key_block));
    assert!(summary["profile"]["measured"]["read_gbytes_per_s"].as_f64().unwrap() > 0.0);

    let info: Value = serde_json::from_str(&place.succeed(&["info", "--json"])).unwrap();
    assert_eq!(info["profile"]["state"], "loaded");
    assert_eq!(info["profile"]["entries"], entries.len());
    let plan: Value = serde_json::from_str(&place.succeed(&["explain", "--json"])).unwrap();
    assert_eq!(plan["key_block"], *key_block);
    assert!(plan["why"].as_str().unwrap().contains("profile entry"));
    // The first class that is tuned, and its story.
    let shape = ["--queries", "512", "--head-dim", "64", "--heads", "1"];
    let plan: Value = serde_json::from_str(&place.succeed(&[&["explain", "--json"][..], &shape].concat())).unwrap();
    let trials = plan["contest"]["trials"].as_array().unwrap();
    assert!(trials.iter().any(|trial| trial["fate"] == "won" && trial["config"] == plan["profile_entry"]["config"]));
    assert!(["arithmetic", "memory"].contains(&plan["prediction"]["roof"].as_str().unwrap()));
    let text = place.succeed(&[&["explain"][..], &shape].concat());
    for part in ["model        0.", "roof         ", "contest      ", "chosen"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    // There is nothing to be done any more for what is done.
    let again = json(&place, &["tune", "--quick", "--resume", "--budget", BUDGET, "--json"]);
    for entry in entries {
        assert!(again["profile"]["entries"].as_array().unwrap().contains(entry));
    }
    let plan: Value = serde_json::from_str(&place.succeed(&["explain", "--json", "--no-profile"])).unwrap();
    assert!(plan["profile_entry"].is_null());
}

#[test]
fn entries_of_other_levels_are_kept() {
    let place = Place::new();
    let out = place.path("mine.json");
    let out = out.to_str().unwrap();
    let best = json(&place, &["tune", "--quick", "--budget", BUDGET, "--out", out, "--json"]);
    let both = json(&place, &["tune", "--quick", "--budget", BUDGET, "--out", out, "--json", "--isa", "portable"]);
    let of = |summary: &Value, isa: &str| -> Vec<Value> {
        let entries = summary["profile"]["entries"].as_array().unwrap();
        entries.iter().filter(|entry| entry["class"]["isa"] == isa).cloned().collect()
    };
    let isa = regard::Level::from_env().unwrap().isa().name();
    assert!(!of(&both, "portable").is_empty());
    if isa != "portable" {
        assert_eq!(of(&best, isa), of(&both, isa));
    }
}

#[test]
fn a_dry_run_writes_nothing() {
    let place = Place::new();
    let text = tuned(&place, &["tune", "--quick", "--budget", BUDGET, "--dry-run"]);
    for part in ["class", "key block", "query block", "of peak", "of model", "confidence", "wrote       nothing"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn the_time_for_the_card_is_part_of_the_budget() {
    // As little as has room for a card, or more in an emulator.
    let budget = if cfg!(target_arch = "aarch64") { 120.0 } else { 20.0 };
    let _alone = alone();
    let (place, start) = (Place::new(), Instant::now());
    // It may be too short for any class on a busy machine, which is not what this is about.
    let output = place.run(&["tune", "--budget", &f64::to_string(&budget), "--dry-run", "--json"]);
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    let all = start.elapsed().as_secs_f64();
    let run = &summary["profile"]["run"];
    let seconds = run["seconds"].as_f64().unwrap();
    assert!(seconds <= all && seconds > 0.8 * all.min(budget), "{seconds} of {all}");
    match summary["profile"]["card"]["seconds"].as_f64() {
        // Beside it there would be all of its time on top. (What takes longer than it should on a busy machine, so does it.)
        Some(card) => assert!(all < budget + 0.75 * card, "{all} s with a card of {card} s"),
        None => assert!(run["notes"].to_string().contains("the machine card"), "{run}"),
    }
}

#[test]
fn bad_options_are_one_line() {
    let place = Place::new();
    assert!(place.fail(&["tune", "--isa", "sse9"], 4).contains("sse9"));
    assert!(place.fail(&["tune", "--budget", "soon"], 2).contains("--budget"));
    assert!(place.fail(&["tune", "--out", place.path("").to_str().unwrap()], 5).contains("not a regular file"));
    let homeless = place.command(&["tune"]).env_remove("XDG_DATA_HOME").env_remove("HOME").output().unwrap();
    assert!(failed(&homeless, 3).contains("--out"));
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn a_noisy_machine_is_refused_if_that_was_asked_for() {
    let place = Place::new();
    // A search without time has no canaries to hear, which is as little to be trusted as any.
    let output = place.run(&["tune", "--quick", "--budget", "0", "--strict"]);
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.lines().last().is_some_and(|line| line.starts_with("regard: low confidence")), "{error}");
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn a_search_is_compared_with_another_one() {
    let (place, _alone) = (Place::new(), alone());
    let output = place.run(&["tune", "--quick", "--budget", BUDGET, "--self-check", "--json"]);
    // Whether two searches agree on a busy machine is not for this test to say; that all classes are compared is.
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = found.as_array().unwrap();
    assert!(!found.is_empty());
    for class in found {
        let speedup = class["speedup"].as_f64().unwrap();
        assert!(speedup > 0.2 && speedup < 5.0, "{class}");
        assert!(class["agrees"] == true || class["same"] == false);
    }
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn a_record_that_is_none_is_refused() {
    let place = Place::new();
    let file = place.path("samples");
    std::fs::write(&file, "nothing").unwrap();
    let args = ["tune", "--exhaustive", "--record", file.to_str().unwrap(), "--dry-run"];
    assert!(place.fail(&args, 3).contains("not a record"));
    assert!(place.fail(&["tune", "--record", file.to_str().unwrap()], 2).contains("--exhaustive"));
}

#[test]
fn without_time_the_old_profile_stays() {
    let place = Place::new();
    let out = place.path("mine.json");
    let Output { status, .. } = place.run(&["tune", "--quick", "--budget", "0", "--out", out.to_str().unwrap()]);
    assert_eq!(status.code(), Some(1));
    assert!(!out.exists());
}
