//! `regard bench`: what its lines say. The figures themselves are for a quiet machine.

mod common;

use common::*;
use serde_json::Value;

const SMALL: &str = "bench --json --heads 2 --seconds 0";

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
        "fraction_of_roof",
        "kv_bytes",
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
    assert_eq!(line["kv_bytes"], 30.0 * 14.0 * 4.0);
    assert_eq!([&line["warm"], &line["dot_peak_gflops"]], [&Value::Bool(false), &Value::Null]);
    assert!(line["copies"].as_u64().unwrap() > 1);
    assert!(line["read_way"].as_str().unwrap().contains('-'));
    assert_eq!(line["kernels"], serde_json::json!([line["kernel"]]));
    // The nearer ceiling allows less than the other, in every round.
    let fraction = |key: &str| line[key].as_f64().unwrap();
    let of = fraction("fraction_of_peak").max(fraction("fraction_of_bandwidth"));
    assert!(fraction("fraction_of_roof") >= 0.999 * of);
}

#[test]
fn every_element_type() {
    let found = lines(&format!("{SMALL} --queries 3,20 --keys 40 --head-dim 16 --dtype f32,f16,bf16,int8"));
    let types: Vec<&str> = found.iter().map(|line| line["dtype"].as_str().unwrap()).collect();
    assert_eq!(types, ["f32", "f32", "f16", "f16", "bf16", "bf16", "int8", "int8"]);
    let bytes = |index: usize| found[index]["kv_bytes"].as_f64().unwrap();
    let elements = 2.0 * 40.0 * 32.0;
    assert_eq!(
        [bytes(0), bytes(2), bytes(4), bytes(6)],
        [4.0, 2.0, 2.0, 1.0].map(|size| size * elements + if size == 1.0 { 2.0 * 40.0 * 8.0 } else { 0.0 })
    );
    assert_eq!([&found[7]["q_dtype"], &found[7]["out_dtype"]], ["f32", "f32"]);
    let tiles = regard_simd::Extension::Amx.is_available_at(regard::Level::from_env().unwrap().isa());
    for line in &found {
        // Few queries, or many: 15 is the most that a rows kernel takes, unless it works on tile registers.
        let few = line["queries"] == 3 || tiles && ["bf16", "int8"].contains(&line["dtype"].as_str().unwrap());
        assert_eq!(line["kernel"].as_str().unwrap().contains("_rows_"), few, "{line}");
    }
}

#[test]
fn bf16_is_measured_against_the_arithmetic_that_it_uses() {
    let has = regard_simd::Extension::Bf16.is_available_at(regard::Level::from_env().unwrap().isa());
    let pays = regard_profile::Machine::detect().bf16_pairs_pay();
    // For more than a few queries.
    let tiles = regard_simd::Extension::Amx.is_available_at(regard::Level::from_env().unwrap().isa());
    let case = format!("{SMALL} --queries 2,40 --keys 40 --head-dim 16 --dtype bf16 --out-dtype bf16");
    let asked = lines(&format!("{case} --native-half"));
    let options = |line: &Value| ["native_half", "no_native_half"].map(|option| line[option].as_bool());
    assert!(asked.iter().all(|line| options(line) == [Some(true), None]), "{asked:?}");
    let by_default = lines(&case);
    assert!(by_default.iter().all(|line| options(line) == [None; 2]), "{by_default:?}");
    for (line, taken) in asked.iter().map(|line| (line, has)).chain(by_default.iter().map(|line| (line, has && pays))) {
        let kernel = line["kernel"].as_str().unwrap();
        let multiplies = kernel.contains("_lanes_bf16_") || kernel.contains("_rows_bf16_dots");
        assert_eq!(multiplies, taken || tiles && line["queries"] == 40, "{line}");
        assert_eq!(line["dot_peak_gflops"].as_f64().is_some(), multiplies, "{line}");
        assert_eq!(line["out_dtype"], "bf16");
        let peak = if multiplies { &line["dot_peak_gflops"] } else { &line["peak_gflops"] };
        // Medians of ratios, and ratios of medians: of one order of magnitude.
        let ratio = line["gflops"].as_f64().unwrap() / peak.as_f64().unwrap();
        assert!((0.5..2.0).contains(&(line["fraction_of_peak"].as_f64().unwrap() / ratio)), "{line}");
    }
    for line in lines(&format!("{case} --no-native-half")) {
        assert_eq!([&line["dot_peak_gflops"], &line["no_native_half"]], [&Value::Null, &Value::Bool(true)]);
    }
    for line in lines(&format!("{SMALL} --queries 2,30 --dtype f16 --out-dtype f16 --head-dim 8")) {
        assert_eq!([&line["dtype"], &line["out_dtype"]], ["f16", "f16"]);
    }
}

#[test]
fn int8_is_measured_against_products_of_integers_and_against_f32() {
    let has = |extension: regard_simd::Extension| extension.is_available_at(regard::Level::from_env().unwrap().isa());
    let (native, tiles) = (has(regard_simd::Extension::Vnni), has(regard_simd::Extension::Amx));
    let case = format!("{SMALL} --queries 1,30 --keys 400 --head-dim 16 --dtype int8");
    let number = |line: &Value, name: &str| line[name].as_f64().unwrap();
    for line in lines(&case) {
        let kernel = line["kernel"].as_str().unwrap();
        // Those of AVX2 have no instruction for both, and no peak of their own.
        let multiplies = ["avx512_rows_int8_dots", "avx512_rows_int8_amx"].contains(&kernel);
        assert_eq!(line["dot_peak_gflops"].as_f64().is_some(), multiplies, "{line}");
        // On tiles for any number of queries.
        assert_eq!(native && (tiles || line["queries"] == 1), multiplies, "{line}");
        let [of_peak, of_f32] = ["fraction_of_peak", "fraction_of_f32_peak"].map(|name| number(&line, name));
        let peaks =
            line["dot_peak_gflops"].as_f64().unwrap_or(number(&line, "peak_gflops")) / number(&line, "peak_gflops");
        assert!((0.5..2.0).contains(&(of_f32 / of_peak / peaks)), "{line}");
        assert!(
            number(&line, "fraction_of_f32_roof") >= 0.99 * of_f32.min(number(&line, "fraction_of_bandwidth")),
            "{line}"
        );
    }
    for line in lines(&format!("{case} --no-native-int8")) {
        assert_eq!(line["dot_peak_gflops"], Value::Null);
        assert_eq!(
            [&line["fraction_of_peak"], &line["fraction_of_roof"]],
            [&line["fraction_of_f32_peak"], &line["fraction_of_f32_roof"]]
        );
    }
}

#[test]
fn sequences_of_different_lengths() {
    let prompts = &lines(&format!("{SMALL} --varlen 20,0,3,41 --head-dim 8 --causal bottom-right"))[0];
    assert_eq!([&prompts["batch"], &prompts["queries"], &prompts["total_keys"]], [4, 41, 64]);
    assert_eq!([&prompts["varlen"], &prompts["layout"]], ["20,0,3,41", "thd"]);
    assert_eq!(prompts["kernels"].as_array().unwrap().len(), 2);
    let decode = &lines(&format!("{SMALL} --varlen uniform:1..50:9@3 --queries 1 --head-dim 8"))[0];
    assert_eq!([&decode["batch"], &decode["queries"], &decode["total_queries"]], [9, 1, 9]);
    let keys = decode["total_keys"].as_f64().unwrap();
    assert_eq!(decode["kv_bytes"], keys * 2.0 * 16.0 * 4.0);
    for more in ["--paged 16", "--layout bshd", "--dtype int8 --paged 7", "--paged 4 --layout bhsd --kv-heads 1"] {
        let paged = &lines(&format!("{SMALL} --varlen uniform:1..50:9@3 --queries 2 --head-dim 8 {more}"))[0];
        assert_eq!(paged["total_keys"], decode["total_keys"], "{more}");
    }
    let padded = &lines(&format!("{SMALL} --batch 3 --queries 1 --keys 30 --paged 8 --head-dim 8"))[0];
    assert_eq!([&padded["paged"], &padded["batch"], &padded["total_keys"]], [8, 3, 90]);
}

#[test]
fn one_head_is_shared_by_threads() {
    if regard_profile::Machine::detect().cores.allowed < 2 {
        return;
    }
    let decode = "--queries 1 --keys 9000 --kv-heads 1 --head-dim 64 --causal bottom-right";
    let line = &lines(&format!("{SMALL} --threads 2 {decode} --split 1000"))[0];
    assert_eq!([&line["threads"], &line["split"]], [2, 1000]);
    assert!(line["tasks"].as_u64().unwrap() >= 9 && line["span"].as_u64().unwrap() >= 1000);
    assert!(line["peak_gflops"].as_f64().unwrap() > 0.0);
    let line = &lines(&format!("{SMALL} --threads 2 {decode} --split never"))[0];
    assert_eq!([&line["tasks"], &line["span"]], [1, 9000]);
    let line = &lines(&format!("{SMALL} --threads 2 --varlen 700,1200 --head-dim 16 --causal top-left"))[0];
    assert_eq!(line["threads"], 2);
}

#[test]
fn forms() {
    let shape = "--queries 200 --keys 200 --head-dim 8 --causal top-left --weighting power --degree 2";
    for form in ["linear", "quadratic"] {
        let line = &lines(&format!("{SMALL} {shape} --form {form}"))[0];
        assert_eq!([&line["form"], &line["forms"]], [&Value::from(form), &serde_json::json!([form])]);
        let is_linear = line["kernel"].as_str().unwrap().contains("_linear_f32_");
        assert_eq!(is_linear, form == "linear");
        assert_eq!(line["kernels"], serde_json::json!([line["kernel"]]));
    }
    let line = &lines(&format!("{SMALL} {shape}"))[0];
    assert_eq!([&line["form"], &line["forms"]], [&Value::Null, &serde_json::json!(["quadratic"])]);
}

#[test]
fn copies_and_ways_of_reading() {
    let warm = &lines(&format!("{SMALL} --queries 1 --keys 64 --warm --read-way 2-far-2048"))[0];
    assert_eq!(
        [&warm["copies"], &warm["warm"], &warm["read_way"]],
        [&Value::from(1), &true.into(), &"2-far-2048".into()]
    );
    // Of 64 KiB there are as many copies as exceed 256 MiB.
    let cold = &lines(&format!("{SMALL} --heads 1 --queries 1 --keys 64 --read-way 1-none"))[0];
    let total = cold["copies"].as_f64().unwrap() * cold["kv_bytes"].as_f64().unwrap();
    assert!(total >= (1 << 28) as f64, "{total}");
}

#[test]
fn people_get_a_table() {
    let line = "bench --heads 4 --kv-heads 2 --seconds 0 --queries 1 --keys 50 --head-dim 8 --dtype f32,int8 --causal bottom-right";
    let text = Place::new().succeed(&line.split(' ').collect::<Vec<_>>());
    let rows: Vec<&str> = text.lines().collect();
    assert_eq!(rows.len(), 3, "{text}");
    for name in
        ["weighting", "dtype", "shape", "kernel", "GFLOP/s", "of peak", "GB/s", "of bandwidth", "of roof", "error"]
    {
        assert!(rows[0].contains(name), "{name}");
    }
    for part in ["softmax", "int8", "4:2 heads, 1 x 50, d 8, causal", "_rows_int8"] {
        assert!(rows[2].contains(part), "{part}");
    }
    let error = rows[1].split_whitespace().last().unwrap();
    assert!(error.parse::<f64>().unwrap() < 1e-5, "{error}");
    assert_eq!(rows[0].len(), rows[1].len());
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
        let line = &lines(&format!("bench --json --seconds 0 {sizes}"))[0];
        assert_eq!(line["gflops"], 0.0, "{sizes}");
        assert_eq!(line["max_abs_error"], 0.0, "{sizes}");
    }
}

#[test]
fn bad_options_are_one_line() {
    let place = Place::new();
    assert!(place.fail(&["bench", "--dtype", "f64"], 2).contains("f32, f16, bf16 or int8"));
    assert!(place.fail(&["bench", "--out-dtype", "int8"], 2).contains("f32, f16 or bf16"));
    assert!(
        place.fail(&["bench", "--dtype", "f16", "--out-dtype", "bf16", "--queries", "4"], 3).contains("out is bf16")
    );
    assert!(place.fail(&["bench", "--varlen", "3,x"], 2).contains("uniform:LOW..HIGH:COUNT[@SEED]"));
    assert!(place.fail(&["bench", "--varlen", "3,4", "--keys", "5"], 2).contains("--varlen"));
    assert!(place.fail(&["bench", "--varlen", "3,4", "--batch", "5"], 2).contains("--varlen"));
    assert!(place.fail(&["bench", "--varlen", "999999999"], 3).contains("--varlen is 999999999"));
    assert!(place.fail(&["bench", "--layout", "thd", "--keys", "5"], 2).contains("goes with --varlen"));
    assert!(place.fail(&["bench", "--paged", "0"], 2).contains("--paged"));
    assert!(place.fail(&["bench", "--split", "some"], 2).contains("auto, never or a number"));
    assert!(place.fail(&["bench", "--native-half", "--no-native-half"], 2).contains("--no-native-half"));
    assert!(place.fail(&["bench", "--split", "0", "--keys", "5"], 3).contains("span is 0"));
    assert!(place.fail(&["bench", "--read-way", "3-near"], 2).contains("STREAMS-near-BYTES"));
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
    let huge = "bench --batch 100000 --heads 1000 --queries 100000 --head-dim 60000";
    assert!(place.fail(&huge.split(' ').collect::<Vec<_>>(), 1).contains("not enough memory"));
}

#[test]
fn gates() {
    let case = format!("{SMALL} --queries 40 --head-dim 8 --weighting taylor2 --causal top-left");
    let line = &lines(&format!("{case} --form linear --gates 0.9"))[0];
    assert!((line["gates"].as_f64().unwrap() - 0.9).abs() < 1e-6);
    assert_eq!([&line["form"], &line["forms"][0]], ["linear", "linear"]);
    // Of gates as they are, and not of a gate of 1.
    assert!(line["max_abs_error"].as_f64().unwrap() < 1e-5, "{line}");
    assert!(lines(&case)[0].get("gates").is_none());
}
