//! `regard` without a command.

mod common;

use common::*;
use serde_json::Value;

#[test]
fn everything_is_run_and_right() {
    let place = Place::new();
    // The portable level alone: the others have tests of their own, and this one takes a while.
    let output = place.command(&["--json"]).env("REGARD_ISA", "portable").output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["isa"], "portable");
    assert!(lines[1]["measured"]["fma_gflops"]["portable"].as_f64().unwrap() > 0.0);
    let rows = &lines[2..];
    assert_eq!(rows.len(), 11);
    for row in rows {
        assert_eq!([&row["isa"], &row["passed"]], [&Value::from("portable"), &true.into()], "{row}");
        assert!(row["gflops"].as_f64().unwrap() > 0.0 && row["max_relative_error"].as_f64().unwrap() < 1e-4, "{row}");
    }
    let stored = &rows[0]["max_abs_error_to_stored"];
    assert!(stored["0"].as_f64().unwrap() <= 2e-5 && stored["5"].as_f64().unwrap() <= 3e-6, "{stored}");
    // The profile was for that run only.
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn a_level_that_does_not_exist() {
    let output = Place::new().command(&[]).env("REGARD_ISA", "mmx").output().unwrap();
    assert!(failed(&output, 4).contains("mmx"));
}
