//! Everything that needs no tensors: help, `info`, `explain`.

mod common;

use std::process::Stdio;

use common::*;
use serde_json::Value;

#[test]
fn help_teaches() {
    let place = Place::new();
    let long = place.succeed(&["--help"]);
    for part in
        ["info", "attend", "bench", "tune", "explain", "report", "Exit codes:", "  4  ", "REGARD_ISA", "REGARD_PROFILE"]
    {
        assert!(long.contains(part), "{part}");
    }
    assert!(place.succeed(&["-h"]).contains("Exit codes: 0 done"));
    let attend = place.succeed(&["attend", "--help"]);
    for part in [
        "average-hard",
        "--temperature-schedule",
        "scaled-log-n",
        "--degree",
        "--coefficient",
        "--row-scale",
        "inv-sqrt-n",
        "--n ",
        "--sigmoid-bias",
        "neg-log-n",
        "--scale",
        "--softcap",
        "--causal",
        "--anti-causal",
        "--strict",
        "--window",
        "--align",
        "--layout",
        "--isa",
        "--split",
        "--native-half",
        "--no-native-half",
        "--no-native-int8",
        "--dtype",
        "--out-dtype",
        "--varlen",
        "--paged",
        "k_scale",
        "q_offsets",
        "page_table",
        "--threads",
        "--lse",
        "--json",
        "keep_mask",
        "kv_lengths",
        "Examples:",
    ] {
        assert!(attend.contains(part), "{part}");
    }
    let bench = place.succeed(&["bench", "--help"]);
    for part in ["--kv-heads", "--varlen", "uniform:", "--paged", "--dtype", "--warm", "--read-way", "--split"] {
        assert!(bench.contains(part), "{part}");
    }
    for command in ["info", "attend", "bench", "explain", "report"] {
        for args in [[command, "--help"], [command, "-h"], ["help", command]] {
            assert!(place.succeed(&args).contains("Examples:"), "{args:?}");
        }
    }
    assert!(place.succeed(&["--version"]).starts_with("regard "));
}

#[test]
fn usage_errors_are_one_line() {
    let place = Place::new();
    assert!(place.fail(&["atend"], 2).contains("'attend'"));
    assert!(place.fail(&["attend"], 2).contains("<IN> <OUT>"));
    assert!(place.fail(&["attend", "in"], 2).contains("<OUT>"));
    assert!(place.fail(&["--verbose"], 2).contains("--verbose"));
    assert!(place.fail(&["info", "more"], 2).contains("'more'"));
    assert!(place.fail(&["explain", "--heads", "many"], 2).contains("--heads"));
    assert!(place.fail(&["explain", "--heads", "-1"], 2).contains("-1"));
}

fn json(args: &[&str]) -> Value {
    let text = Place::new().succeed(args);
    assert_eq!(text.matches('\n').count(), 1);
    serde_json::from_str(&text).unwrap()
}

#[test]
fn the_machine_card() {
    let card = json(&["info", "--json"]);
    assert_eq!(card["machine"]["arch"], std::env::consts::ARCH);
    assert!(card["usable_cores"].as_u64().unwrap() >= 1);
    assert_eq!(card["isa"], regard::Level::from_env().unwrap().isa().name());
    let levels = card["levels"].as_array().unwrap();
    assert_eq!(levels.len(), regard::Isa::ALL.len());
    for level in levels {
        let available = level["available"].as_bool().unwrap();
        assert_eq!(available, level["missing"].is_null(), "{level}");
        for kernels in ["kernels", "rows_kernels"] {
            assert_eq!(available, !level[kernels].as_array().unwrap().is_empty(), "{level}");
        }
        let isa: regard::Isa = level["isa"].as_str().unwrap().parse().unwrap();
        let extensions = regard_simd::Extension::ALL.into_iter().filter(|extension| extension.is_available_at(isa));
        let names: Vec<_> = extensions.map(|extension| extension.name()).collect();
        assert_eq!(level["extensions"], serde_json::json!(names));
    }
    let text = Place::new().succeed(&["info"]);
    for part in ["machine", "caches", "L1d", "cores", "levels", "portable_rows_int8", "neon", "profile"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn explanations() {
    let defaults = json(&["explain", "--json"]);
    assert_eq!(defaults["keys"], defaults["queries"]);
    assert_eq!(defaults["value_dim"], defaults["head_dim"]);
    assert_eq!(defaults["kv_heads"], defaults["heads"]);
    let sizes = "--batch 2 --heads 6 --kv-heads 3 --queries 10 --keys 20 --head-dim 5 --value-dim 7";
    let args: Vec<&str> = ["explain", "--json", "--causal", "bottom-right", "--isa", "portable", "--threads", "3"]
        .into_iter()
        .chain(sizes.split(' '))
        .collect();
    let plan = json(&args);
    for (key, size) in
        [("batch", 2), ("heads", 6), ("kv_heads", 3), ("queries", 10), ("keys", 20), ("head_dim", 5), ("value_dim", 7)]
    {
        assert_eq!(plan[key], size, "{key}");
    }
    assert_eq!(plan["isa"], "portable");
    assert_eq!(plan["threads"], 3);
    // Row i of 10 sees i + 11 of 20 keys.
    assert_eq!(plan["visible_pairs"], 2.0 * 6.0 * 155.0);
    assert_eq!(plan["flops"], 2.0 * 12.0 * 2.0 * 6.0 * 155.0);
    assert_eq!(plan["kv_bytes"], 4.0 * 2.0 * 3.0 * 20.0 * 12.0);
    assert!(plan["kernel"].as_str().unwrap().starts_with("portable_"));
    assert_eq!(plan["class"]["mask"], "banded");
    assert!(plan["why"].as_str().unwrap().contains("no profile"));
    let text = Place::new().succeed(&args.iter().copied().filter(|arg| *arg != "--json").collect::<Vec<_>>());
    for part in [plan["kernel"].as_str().unwrap(), plan["why"].as_str().unwrap(), "heads 6:3, 10 x 20, d 5:7"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn explanations_of_types_and_sequences() {
    let decode = "explain --json --queries 1 --keys 9000 --heads 8 --kv-heads 2 --dtype int8 --split 3000";
    let plan = json(&decode.split(' ').collect::<Vec<_>>());
    assert_eq!([&plan["q_dtype"], &plan["kv_dtype"]], ["f32", "int8"]);
    // With `_dots` where the processor multiplies integers.
    assert!(plan["kernel"].as_str().unwrap().contains("_rows_int8"), "{plan}");
    assert_eq!(plan["kv_bytes"], 2.0 * 9000.0 * (256.0 + 8.0));
    assert!(plan["tasks"].as_u64().unwrap() >= 2 && plan["span"].as_u64().unwrap() >= 3000);

    let prompts = "explain --json --varlen 20,0,300 --causal bottom-right --dtype bf16 --no-native-half";
    let plan = json(&prompts.split(' ').collect::<Vec<_>>());
    assert_eq!([&plan["batch"], &plan["queries"], &plan["keys"]], [3, 300, 300]);
    assert_eq!(plan["varlen"], "20,0,300");
    assert_eq!(plan["visible_pairs"], 8.0 * (20.0 * 21.0 + 300.0 * 301.0) / 2.0);
    assert!(plan["kernel"].as_str().unwrap().contains("lanes_f32"));

    let explain = |options: &str| {
        let line = format!("explain --queries 40 --dtype bf16 --no-profile {options}");
        Place::new().succeed(&line.split_whitespace().collect::<Vec<_>>())
    };
    let has = regard_simd::Extension::Bf16.is_available_at(regard::Level::from_env().unwrap().isa());
    let tiles = regard_simd::Extension::Amx.is_available_at(regard::Level::from_env().unwrap().isa());
    let pays = tiles || regard_profile::Machine::detect().bf16_pairs_pay();
    for (options, multiplied, excused) in
        [("", has && pays, has && !pays), ("--native-half", has, false), ("--no-native-half", false, false)]
    {
        let text = explain(options);
        assert_eq!(text.contains("_lanes_bf16_"), multiplied, "{options}: {text}");
        assert_eq!(text.contains("multiplies pairs of bf16 more slowly"), excused, "{options}: {text}");
    }

    let paged = "explain --varlen uniform:1..4096:64@7 --queries 1 --paged 16 --split never";
    let text = Place::new().succeed(&paged.split(' ').collect::<Vec<_>>());
    for part in ["batch 64", "64 packed rows", "paged keys", "never split", "_rows_f32"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn the_linear_form_is_explained_by_its_own_operations() {
    let problem = "--queries 2048 --keys 4096 --head-dim 32 --value-dim 24 --heads 4 --kv-heads 2 --weighting power --degree 2 \
                   --causal top-left --no-profile";
    let explain = |more: &str| json(&format!("explain --json {problem} {more}").split_whitespace().collect::<Vec<_>>());
    let plan = explain("--form linear");
    // Monomials of degree 2 in 32 columns; no query sees the second half of the keys.
    let flops = 2.0 * (32.0 * 33.0 / 2.0) * 25.0 * (4.0 * 2048.0 + 2.0 * 2048.0);
    assert_eq!(plan["prediction"]["linear_flops"], flops);
    assert!(plan["prediction"]["fraction_of_peak"].is_null(), "{plan}");
    let text = format!("explain {problem} --form linear");
    let text = Place::new().succeed(&text.split_whitespace().collect::<Vec<_>>());
    assert!(text.contains("arithmetic limits the linear form: 324.40 MFLOP"), "{text}");
    assert!(!text.contains("speed of the memory"), "{text}");
    let plan = explain("--form quadratic");
    assert!(plan["prediction"]["linear_flops"].is_null() && plan["prediction"]["fraction_of_peak"].is_f64(), "{plan}");
}

#[test]
fn sizes_cost_nothing_and_have_limits() {
    let place = Place::new();
    let huge = "explain --batch 4 --heads 64 --queries 2000000 --keys 2000000 --causal top-left";
    place.succeed(&huge.split(' ').collect::<Vec<_>>());
    place.succeed(&["explain", "--queries", "0", "--heads", "0", "--keys", "5", "--head-dim", "0"]);
    place.succeed(&["explain", "--batch", "0"]);
    assert!(
        place.fail(&["explain", "--head-dim", "70000"], 3).contains("--head-dim is 70000, but must be at most 65536")
    );
    let line = place.fail(&["explain", "--batch", "1048576", "--heads", "1048576", "--queries", "268435456"], 3);
    assert!(line.contains("too large together"), "{line}");
    assert!(place.fail(&["explain", "--kv-heads", "3"], 3).contains("not a multiple of 3"));
    assert!(place.fail(&["explain", "--keys", "99999999999999999999"], 2).contains("--keys"));
    assert!(
        place.fail(&["explain", "--keys", "268435456", "--paged", "1"], 3).contains("--paged 1 takes 268435456 pages")
    );
    assert!(place.fail(&["explain", "--keys", "7", "--window", "1,1"], 3).contains("needs an alignment"));
}

#[cfg(unix)]
#[test]
fn a_reader_may_leave() {
    let mut child = Place::new().command(&["info"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(stderr(&output), "");
}
