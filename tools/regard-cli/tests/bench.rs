//! `regard bench`: what its lines say. The figures themselves are for a quiet machine.

mod common;

use common::*;
use serde_json::Value;

const SMALL: &str = "bench --heads 2 --seconds 0";

fn lines(line: &str) -> Vec<Value> {
    let text = Place::new().succeed(&line.split_whitespace().collect::<Vec<_>>());
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_key_is_there() {
    let line = &lines(&format!("{SMALL} --kv-heads 1 --queries 20 --keys 30 --head-dim 8 --value-dim 6"))[0];
    let sizes = [("batch", 1), ("heads", 2), ("kv_heads", 1), ("queries", 20), ("keys", 30)];
    for (key, size) in sizes.into_iter().chain([("head_dim", 8), ("value_dim", 6), ("threads", 1)]) {
        assert_eq!(line[key], size, "{key}");
    }
    for key in [
        "seconds",
        "gflops",
        "peak_gflops",
        "fraction_of_peak",
        "kv_gbytes_per_s",
        "read_gbytes_per_s",
        "fraction_of_bandwidth",
        "max_abs_error",
        "key_block",
        "query_block",
    ] {
        assert!(line[key].as_f64().is_some_and(|number| number > 0.0), "{key}: {}", line[key]);
    }
    assert!(line["max_abs_error"].as_f64().unwrap() < 1e-5);
    assert!(line["rounds"].as_u64().unwrap() >= 12);
    assert_eq!([&line["dtype"], &line["weighting"], &line["causal"]], [&"f32".into(), &"softmax".into(), &Value::Null]);
    let isa = regard::Level::from_env().unwrap().isa().name();
    assert_eq!(line["isa"], isa);
    assert!(line["kernel"].as_str().unwrap().starts_with(isa));
    // GFLOP/s over visible pairs, bytes of K and V once.
    let seconds = line["seconds"].as_f64().unwrap();
    let near = |key: &str, amount: f64| (line[key].as_f64().unwrap() * seconds * 1e9 / amount - 1.0).abs() < 1e-9;
    assert!(near("gflops", 2.0 * 20.0 * 30.0 * 2.0 * 14.0));
    assert!(near("kv_gbytes_per_s", 30.0 * 14.0 * 4.0));
}

#[test]
fn lists_are_combined_and_queries_follow_keys() {
    let found = lines(&format!("{SMALL} --keys 16,24 --head-dim 4,5 --causal top-left --isa portable"));
    let sizes: Vec<[u64; 3]> =
        found.iter().map(|line| ["queries", "keys", "head_dim"].map(|key| line[key].as_u64().unwrap())).collect();
    assert_eq!(sizes, [[16, 16, 4], [16, 16, 5], [24, 24, 4], [24, 24, 5]]);
    assert!(found.iter().all(|line| line["causal"] == "top-left" && line["isa"] == "portable"));
}

#[test]
fn options_of_the_problem_are_in_the_line() {
    let options =
        "--weighting poly --degree 3 --row-scale inv-n --n visible --layout bshd --window 3,none --softcap 20";
    let line = &lines(&format!("{SMALL} --queries 40 {options}"))[0];
    assert_eq!(
        [&line["weighting"], &line["row_scale"], &line["n"], &line["layout"]],
        ["poly", "inv-n", "visible", "bshd"]
    );
    assert_eq!(line["degree"], 3);
    assert_eq!(line["softcap"], 20.0);
    assert_eq!(line["window"], serde_json::json!([3, null]));
    assert!(line.get("temperature").is_none());
}

#[test]
fn every_weighting_is_measured_and_right() {
    let more = ["hard-left", "hard-right", "average-hard", "relu", "relu2", "sigmoid", "power --degree 2", "taylor2"];
    for weighting in more {
        let found = lines(&format!("{SMALL} --queries 33 --head-dim 16 --causal bottom-right --weighting {weighting}"));
        assert_eq!(found.len(), 1, "{weighting}");
    }
}

#[test]
fn without_work_nothing_is_fast() {
    for sizes in ["--queries 0 --keys 5", "--heads 0", "--keys 0 --queries 3", "--head-dim 0 --queries 3"] {
        let line = &lines(&format!("bench --seconds 0 {sizes}"))[0];
        assert_eq!(line["gflops"], 0.0, "{sizes}");
        assert_eq!(line["max_abs_error"], 0.0, "{sizes}");
    }
}

#[test]
fn bad_options_are_one_line() {
    let place = Place::new();
    assert!(place.fail(&["bench", "--dtype", "bf16"], 2).contains("only f32"));
    assert!(place.fail(&["bench", "--seconds", "-1"], 2).contains("--seconds"));
    assert!(place.fail(&["bench", "--keys", "5,x"], 2).contains("--keys"));
    assert!(place.fail(&["bench", "--head-dim", "8,70000"], 3).contains("at most 65536"));
    assert!(place.fail(&["bench", "--kv-heads", "3"], 3).contains("multiple of 3"));
    assert!(
        place
            .fail(&["bench", "--queries", "3", "--keys", "5", "--causal", "2", "--window", "1,1", "--align", "0"], 3)
            .contains("different alignments")
    );
    assert!(place.fail(&["bench", "--queries", "9", "--threads", "1000"], 3).contains("--threads is 1000"));
    let huge = "bench --batch 1000000 --heads 1000 --queries 100000 --head-dim 60000";
    assert!(place.fail(&huge.split(' ').collect::<Vec<_>>(), 1).contains("not enough memory"));
}
