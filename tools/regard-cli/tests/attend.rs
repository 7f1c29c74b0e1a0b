//! `regard attend` gives what the library gives, for every option and every tensor.

mod common;

use common::*;
use regard::{
    Align, Attention, Count, Execution, Form, Isa, Plan, Problem, RowScale, Setup, SigmoidBias, Temperature, View,
    ViewMut, Weighting,
};
use safetensors::Dtype;

/// Output and log-sum-exp of the library.
fn library(options: &Attention<'_>, [q, k, v]: &[Vec<f32>; 3]) -> (Vec<f32>, Vec<f32>) {
    let view = |data, shape| View::bhsd(data, shape).unwrap();
    let problem = Problem::new(options, view(q, Q), view(k, K), view(v, V)).unwrap();
    let plan = Plan::new(&problem, &Setup::detect().unwrap().without_profile());
    let shape = problem.shape();
    let mut out = vec![0.0; shape.rows() * shape.value_dim];
    let mut lse = vec![0.0; shape.rows()];
    let mut workspace = vec![0.0; plan.workspace_len(1)];
    let softmax = matches!(options.weighting(), Weighting::Softmax);
    let view = ViewMut::bhsd(&mut out, shape.out()).unwrap();
    plan.run(&problem, view, softmax.then_some(&mut lse[..]), &mut workspace, Execution::Serial).unwrap();
    (out, lse)
}

/// Compares tool and library, bit by bit.
#[track_caller]
fn check(args: &[&str], options: &Attention<'_>, more: &[(&str, Raw)]) {
    let (mut tensors, data) = qkv();
    tensors.extend(more.iter().map(|(name, raw)| ((*name).to_owned(), raw.clone())));
    let place = Place::new();
    place.write("in.safetensors", &tensors);
    let softmax = matches!(options.weighting(), Weighting::Softmax);
    let mut all = vec!["attend", "in.safetensors", "out.safetensors"];
    all.extend(args);
    if softmax {
        all.push("--lse");
    }
    place.succeed(&all);
    let (out, lse) = library(options, &data);
    let path = place.path("out.safetensors");
    assert_eq!(read(&path, "out"), (vec![BATCH, HEADS, QUERIES, VALUE_DIM], out), "{args:?}");
    if softmax {
        assert_eq!(read(&path, "lse"), (vec![BATCH, HEADS, QUERIES], lse), "{args:?}");
    } else {
        assert_eq!(names(&path), ["out"]);
    }
    assert_eq!(place.files(), ["in.safetensors", "out.safetensors"]);
}

fn new(weighting: Weighting) -> Attention<'static> {
    Attention::new(weighting)
}

#[test]
fn weightings() {
    check(&[], &Attention::softmax(), &[]);
    let sigmoid = |bias| Weighting::Sigmoid { bias };
    for (args, weighting) in [
        ("softmax", Weighting::Softmax),
        ("hard-left", Weighting::HardLeft),
        ("hard-right", Weighting::HardRight),
        ("average-hard", Weighting::AverageHard),
        ("relu", Weighting::Relu),
        ("relu2", Weighting::ReluSquared),
        ("poly --degree 1", Weighting::Polynomial { degree: 1 }),
        ("poly --degree 3", Weighting::Polynomial { degree: 3 }),
        ("poly --degree 8", Weighting::Polynomial { degree: 8 }),
        ("sigmoid", sigmoid(SigmoidBias::Constant(0.0))),
        ("sigmoid --sigmoid-bias -1.5", sigmoid(SigmoidBias::Constant(-1.5))),
        ("sigmoid --sigmoid-bias neg-log-n", sigmoid(SigmoidBias::NegLogN)),
        ("power --degree 2", Weighting::EvenPower { degree: 2 }),
        ("power --degree 8", Weighting::EvenPower { degree: 8 }),
        ("taylor2", Weighting::Taylor2),
        ("identity", Weighting::Identity),
    ] {
        let mut all = vec!["--weighting"];
        all.extend(args.split(' '));
        check(&all, &new(weighting), &[]);
    }
}

#[test]
fn scales_and_temperatures() {
    let softmax = Attention::softmax;
    check(&["--temperature", "0.25"], &softmax().temperature(Temperature::Constant(0.25)), &[]);
    check(&["--temperature-schedule", "const"], &softmax(), &[]);
    check(&["--temperature-schedule", "log-n"], &softmax().log_n_schedule(1.0), &[]);
    let scaled = ["--temperature-schedule", "scaled-log-n", "--schedule-factor", "0.4"];
    check(&scaled, &softmax().log_n_schedule(0.4), &[]);
    let visible = [&scaled[..], &["--n", "visible", "--causal", "2"]].concat();
    check(&visible, &softmax().log_n_schedule(0.4).count(Count::Visible).causal(Align::Offset(2)), &[]);
    check(&["--scale", "2"], &softmax().scale(2.0), &[]);
    check(&["--scale", "-0.5"], &softmax().scale(-0.5), &[]);
    check(&["--scale=-1e-1"], &softmax().scale(-0.1), &[]);
    check(&["--softcap", "0.5"], &softmax().softcap(0.5), &[]);
    let relu = || new(Weighting::Relu);
    let with_relu = |args: &[&'static str]| [&["--weighting", "relu"], args].concat();
    check(&with_relu(&["--coefficient", "-0.25"]), &relu().coefficient(-0.25), &[]);
    check(&with_relu(&["--row-scale", "none"]), &relu(), &[]);
    check(&with_relu(&["--row-scale", "inv-n"]), &relu().row_scale(RowScale::InvN), &[]);
    check(&with_relu(&["--row-scale", "inv-n", "--n", "all"]), &relu().row_scale(RowScale::InvN), &[]);
    let root = relu().row_scale(RowScale::InvSqrtN).count(Count::Constant(100.0));
    check(&with_relu(&["--row-scale", "inv-sqrt-n", "--n", "100"]), &root, &[]);
}

#[test]
fn masks() {
    let softmax = Attention::softmax;
    for (name, align) in [
        ("top-left", Align::TopLeft),
        ("bottom-right", Align::BottomRight),
        ("3", Align::Offset(3)),
        ("-2", Align::Offset(-2)),
    ] {
        check(&["--causal", name], &softmax().causal(align), &[]);
        check(&["--causal", name, "--strict"], &softmax().causal(align).strict(), &[]);
        check(&["--anti-causal", name], &softmax().anti_causal(align), &[]);
        check(&["--anti-causal", name, "--strict"], &softmax().anti_causal(align).strict(), &[]);
        let window = softmax().window(Some(2), Some(0)).align(align);
        check(&["--window", "2,0", "--align", name], &window, &[]);
    }
    let both = softmax().causal(Align::Offset(-1)).window(Some(1), None);
    check(&["--causal", "-1", "--window", "1,none"], &both, &[]);
    let right = softmax().causal(Align::TopLeft).window(None, Some(0));
    check(&["--window", "none,0", "--causal=top-left"], &right, &[]);
    check(&["--window", "none,none"], &softmax(), &[]);
}

#[test]
fn optional_tensors() {
    let softmax = Attention::softmax;
    let keep: Vec<u8> = (0..PAIRS.iter().product::<usize>()).map(|i| u8::from(i % 3 != 0)).collect();
    let view = View::bhsd(&keep, PAIRS).unwrap();
    for dtype in [Dtype::BOOL, Dtype::U8] {
        check(&[], &softmax().keep_mask(view), &[("keep_mask", flags(dtype, &PAIRS, &keep))]);
    }
    // Lower ranks are aligned on the right.
    let row = [1, 0, 1, 1, 0, 0, 1];
    let view = View::bhsd(&row, [1, 1, 1, KEYS]).unwrap();
    check(&[], &softmax().keep_mask(view), &[("keep_mask", flags(Dtype::U8, &[KEYS], &row))]);
    let column = [2, 0, 255, 0, 1];
    let view = View::bhsd(&column, [1, 1, QUERIES, 1]).unwrap();
    check(&[], &softmax().keep_mask(view), &[("keep_mask", flags(Dtype::U8, &[QUERIES, 1], &column))]);
    check(&[], &softmax(), &[("keep_mask", flags(Dtype::BOOL, &[], &[1]))]);

    let bias = numbers(4, HEADS * QUERIES * KEYS);
    let view = View::bhsd(&bias, [1, HEADS, QUERIES, KEYS]).unwrap();
    check(&[], &softmax().bias(view), &[("bias", f32s(&[HEADS, QUERIES, KEYS], &bias))]);

    let lengths = ("kv_lengths", i64s(&[BATCH], &[4, 0]));
    check(&["--causal", "bottom-right"], &softmax().key_lengths(&[4, 0]).causal(Align::BottomRight), &[lengths]);

    let heads = [0.5, 1.5, 0.25, 3.0];
    check(&[], &softmax().sinks(&heads), &[("sinks", f32s(&[HEADS], &heads))]);
    let alibi = softmax().alibi_slopes(&heads).align(Align::BottomRight);
    check(&["--align", "bottom-right"], &alibi, &[("alibi_slopes", f32s(&[HEADS], &heads))]);
    let per_head = softmax().temperature(Temperature::PerHead(&heads));
    check(&[], &per_head, &[("temperature", f32s(&[HEADS], &heads))]);
    let rows: Vec<f32> = numbers(5, BATCH * HEADS * QUERIES).iter().map(|x| x.abs() + 0.1).collect();
    let per_row = softmax().temperature(Temperature::PerRow(&rows));
    check(&[], &per_row, &[("temperature", f32s(&[BATCH, HEADS, QUERIES], &rows))]);
}

/// Gates by the tensor of a file, one for each head of k, and one for all by an option.
#[test]
fn gates() {
    let power = || new(Weighting::EvenPower { degree: 2 }).causal(Align::BottomRight);
    let args = ["--weighting", "power", "--degree", "2", "--causal", "bottom-right", "--form", "linear"];
    let linear = || power().form(Form::Linear);
    check(&args, &linear(), &[]);
    let gates = [0.5, 0.99];
    check(&args, &linear().gates(&gates), &[("gates", f32s(&[KV_HEADS], &gates))]);
    check(&[&args[..], &["--gates", "0.75"]].concat(), &linear().gates(&[0.75; KV_HEADS]), &[]);
    // Gates are computed in the linear form unless it is forbidden.
    check(&[&args[..6], &["--gates", "1"]].concat(), &power().gates(&[1.0; KV_HEADS]), &[]);
}

#[test]
fn levels_and_threads() {
    for level in regard::Level::available() {
        let isa: Isa = level.isa();
        check(&["--isa", isa.name(), "--threads", "1"], &Attention::softmax().isa(isa), &[]);
        check(&["--isa", isa.name(), "--threads", "3", "--no-profile"], &Attention::softmax().isa(isa), &[]);
    }
}

/// Exchanges the second and the third dimension.
fn transposed(data: &[f32], [batch, a, b, columns]: [usize; 4]) -> Vec<f32> {
    let rows: Vec<&[f32]> = data.chunks(columns).collect();
    let order = (0..batch).flat_map(|i| (0..b).flat_map(move |k| (0..a).map(move |j| (i * a + j) * b + k)));
    order.flat_map(|row| rows[row]).copied().collect()
}

#[test]
fn layouts() {
    let (_, data) = qkv();
    let place = Place::new();
    let mut tensors = Tensors::new();
    for ((name, [b, h, s, d]), data) in [("q", Q), ("k", K), ("v", V)].into_iter().zip(&data) {
        tensors.insert(name.to_owned(), f32s(&[b, s, h, d], &transposed(data, [b, h, s, d])));
    }
    // A mask is [batch, heads, queries, keys] in every layout.
    let keep: Vec<u8> = (0..PAIRS.iter().product::<usize>()).map(|i| u8::from(i % 5 != 0)).collect();
    tensors.insert("keep_mask".to_owned(), flags(Dtype::BOOL, &PAIRS, &keep));
    place.write("in", &tensors);
    place.succeed(&["attend", "in", "out", "--layout", "bshd", "--lse"]);
    let options = Attention::softmax().keep_mask(View::bhsd(&keep, PAIRS).unwrap());
    let (out, lse) = library(&options, &data);
    let (shape, found) = read(&place.path("out"), "out");
    assert_eq!(shape, [BATCH, QUERIES, HEADS, VALUE_DIM]);
    assert_eq!(found, transposed(&out, [BATCH, HEADS, QUERIES, VALUE_DIM]));
    assert_eq!(read(&place.path("out"), "lse"), (vec![BATCH, HEADS, QUERIES], lse));
}

#[test]
fn the_input_may_be_replaced() {
    let (tensors, data) = qkv();
    let place = Place::new();
    let path = place.write("both", &tensors);
    place.succeed(&["attend", "both", "./both"]);
    assert_eq!(read(&path, "out").1, library(&Attention::softmax(), &data).0);
    assert_eq!(place.files(), ["both"]);
}

#[cfg(unix)]
#[test]
fn links_and_permissions_are_as_for_any_file() {
    use std::os::unix::fs::{MetadataExt, symlink};
    let place = Place::new();
    place.write("in", &qkv().0);
    std::fs::write(place.path("real"), "old").unwrap();
    symlink(place.path("real"), place.path("link")).unwrap();
    place.succeed(&["attend", "in", "link"]);
    assert!(place.path("link").is_symlink());
    assert_eq!(names(&place.path("real")), ["out"]);
    let mode = |name: &str| place.path(name).metadata().unwrap().mode();
    assert_eq!(mode("real"), mode("in"));
}

#[test]
fn summaries() {
    let (mut tensors, _) = qkv();
    tensors.insert("kv_length".to_owned(), i64s(&[BATCH], &[1, 1]));
    let place = Place::new();
    place.write("in", &tensors);
    let text = place.succeed(&["attend", "in", "out", "--threads", "1"]);
    for part in ["batch 2, heads 4:2, 5 x 7, d 8:6", "softmax", "1 thread)", "out [2, 4, 5, 6]", "kv_length"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    for args in [["attend", "in", "out", "--json", "--lse"], ["--json", "attend", "in", "out", "--lse"]] {
        let text = place.succeed(&args);
        assert_eq!(text.matches('\n').count(), 1);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["heads"], 4);
        assert_eq!(json["out"], serde_json::json!([2, 4, 5, 6]));
        assert_eq!(json["lse"], serde_json::json!([2, 4, 5]));
        assert_eq!(json["ignored_tensors"], serde_json::json!(["kv_length"]));
        assert_eq!(json["isa"], regard::Level::from_env().unwrap().isa().name());
        assert!(json["seconds"].as_f64().unwrap() > 0.0);
        assert!(json["kernel"].as_str().unwrap().starts_with(json["isa"].as_str().unwrap()));
    }
}

#[test]
fn tensors_without_elements() {
    let place = Place::new();
    for (queries, keys, dim, value_dim) in [(0, 7, 8, 6), (5, 0, 8, 6), (5, 7, 0, 6), (5, 7, 8, 0), (0, 0, 0, 0)] {
        let mut tensors = Tensors::new();
        for (name, shape) in [("q", [2, 4, queries, dim]), ("k", [2, 2, keys, dim]), ("v", [2, 2, keys, value_dim])] {
            tensors.insert(name.to_owned(), f32s(&shape, &numbers(1, shape.iter().product())));
        }
        place.write("in", &tensors);
        place.succeed(&["attend", "in", "out", "--lse"]);
        let (shape, out) = read(&place.path("out"), "out");
        assert_eq!(shape, [2, 4, queries, value_dim]);
        if keys == 0 {
            assert!(out.iter().all(|x| *x == 0.0));
            assert!(read(&place.path("out"), "lse").1.iter().all(|x| *x == f32::NEG_INFINITY));
        }
    }
}
