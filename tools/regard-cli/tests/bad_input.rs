//! Bad input gives one line that names the thing and what was expected, a non-zero exit, and no output file.

mod common;

use std::fs;

use common::*;
use safetensors::Dtype;

/// Runs `regard attend in out ARGS` on these tensors; expects the exit code, all parts in the line, and that nothing was
/// written: neither a new file, nor over an old one.
#[track_caller]
fn refused(tensors: &Tensors, args: &[&str], code: i32, parts: &[&str]) {
    let place = Place::new();
    place.write("in", tensors);
    refused_there(&place, args, code, parts);
}

#[track_caller]
fn refused_there(place: &Place, args: &[&str], code: i32, parts: &[&str]) {
    let args = [&["attend", "in", "out"], args].concat();
    let before = place.files();
    for old in [None, Some("precious")] {
        if let Some(old) = old {
            fs::write(place.path("out"), old).unwrap();
        }
        let line = place.fail(&args, code);
        for part in parts {
            assert!(line.contains(part), "{part:?} in {line}");
        }
        match old {
            None => assert_eq!(place.files(), before),
            Some(old) => assert_eq!(fs::read_to_string(place.path("out")).unwrap(), old),
        }
    }
}

/// The small problem with some tensors replaced.
fn with(changes: &[(&str, Raw)]) -> Tensors {
    let mut tensors = qkv().0;
    tensors.extend(changes.iter().map(|(name, raw)| ((*name).to_owned(), raw.clone())));
    tensors
}

fn zeros(shape: &[usize]) -> Raw {
    f32s(shape, &vec![0.0; shape.iter().product()])
}

#[test]
fn truncated_files() {
    let place = Place::new();
    let path = place.write("in", &qkv().0);
    let whole = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for length in [0, 1, 7, 8, 9, header / 2, header - 1, header, header + 1, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        let place_again = Place::new();
        fs::copy(&path, place_again.path("in")).unwrap();
        let found = format!("it has {length} bytes");
        refused_there(&place_again, &[], 3, &["in is not a safetensors file", &found]);
    }
    let mut longer = whole.clone();
    longer.push(0);
    fs::write(&path, longer).unwrap();
    refused_there(&place, &[], 3, &["is not a safetensors file", &format!("describes {}", whole.len())]);
}

#[test]
fn files_that_are_something_else() {
    let mut nonsense = 20_u64.to_le_bytes().to_vec();
    nonsense.extend(b"{\"q\":\n\x1b[31m\"nonsense\"");
    let mut huge = u64::MAX.to_le_bytes().to_vec();
    huge.extend(b"{}");
    for bytes in [&b"PK\x03\x04 this is a zip archive, is it not?"[..], &nonsense, &huge, &[255; 64]] {
        let place = Place::new();
        fs::write(place.path("in"), bytes).unwrap();
        refused_there(&place, &[], 3, &["in is not a safetensors file"]);
    }
    let place = Place::new();
    refused_there(&place, &[], 3, &["cannot read in: No such file"]);
    fs::create_dir(place.path("in")).unwrap();
    fs::remove_file(place.path("out")).unwrap();
    refused_there(&place, &[], 3, &["cannot read in:"]);
}

#[test]
fn missing_tensors() {
    for name in ["q", "k", "v"] {
        let mut tensors = qkv().0;
        let tensor = tensors.remove(name).unwrap();
        tensors.insert("query".to_owned(), tensor);
        refused(&tensors, &[], 3, &["in: tensor", name, "is missing; the file has", "query"]);
    }
    let many: Tensors = (10..40).map(|i| (format!("layer{i}.q"), zeros(&[1]))).collect();
    refused(&many, &[], 3, &["tensor q is missing; the file has layer10.q, layer11.q", "and 18 more"]);
    refused(&Tensors::new(), &[], 3, &["tensor q is missing; the file has no tensors at all"]);
}

#[test]
fn types() {
    let f64s = Raw { dtype: Dtype::F64, shape: Q.to_vec(), bytes: vec![0; Q.iter().product::<usize>() * 8] };
    refused(&with(&[("q", f64s)]), &[], 3, &["in: tensor q has type F64, but F32 or F16 or BF16 is expected"]);
    refused(&with(&[("q", i8s(&Q, &[0; 320]))]), &[], 3, &["q has type I8, but F32 or F16 or BF16 is expected"]);
    let bf16 = halves(Dtype::BF16, &V, &[0.0; 168]);
    refused(&with(&[("v", bf16.clone())]), &[], 3, &["v is bf16, but must be f32"]);
    refused(&with(&[("bias", bf16)]), &[], 3, &["bias has type BF16, but F32 is expected"]);
    refused(&with(&[("keep_mask", zeros(&[KEYS]))]), &[], 3, &["keep_mask has type F32, but BOOL or U8 is expected"]);
    let lengths = [("kv_lengths", zeros(&[BATCH]))];
    refused(&with(&lengths), &[], 3, &["kv_lengths has type F32, but I64 or I32 is expected"]);
    for name in ["bias", "sinks", "alibi_slopes", "temperature"] {
        let wrong = with(&[(name, i64s(&[1], &[1]))]);
        refused(&wrong, &[], 3, &[name, "has type I64, but F32 is expected"]);
    }
}

#[test]
fn shapes() {
    refused(
        &with(&[("q", zeros(&[4, 5, 8]))]),
        &[],
        3,
        &["tensor q has shape [4, 5, 8], but 4 dimensions are expected"],
    );
    refused(&with(&[("k", zeros(&[1, 2, 2, 7, 8]))]), &[], 3, &["tensor k has shape", "4 dimensions are expected"]);
    refused(&with(&[("k", zeros(&[3, 2, 7, 8]))]), &[], 3, &["k has batch 3, but 2 is needed"]);
    refused(&with(&[("k", zeros(&[2, 2, 7, 9]))]), &[], 3, &["k has columns 9, but 8 is needed"]);
    refused(&with(&[("v", zeros(&[2, 2, 6, 6]))]), &[], 3, &["v has rows 6, but 7 is needed"]);
    refused(&with(&[("v", zeros(&[2, 1, 7, 6]))]), &[], 3, &["v has heads 1, but 2 is needed"]);
    let three = [("k", zeros(&[2, 3, 7, 8])), ("v", zeros(&[2, 3, 7, 6]))];
    refused(&with(&three), &[], 3, &["4 query heads are not a multiple of 3 kv heads"]);
    let mask = |shape: &[usize]| flags(Dtype::U8, shape, &vec![1; shape.iter().product()]);
    refused(&with(&[("keep_mask", mask(&[6]))]), &[], 3, &["keep_mask has keys 6, but 7 is needed", "broadcastable"]);
    let deep = [("keep_mask", mask(&[1, 1, 1, 1, 7]))];
    refused(&with(&deep), &[], 3, &["keep_mask has shape [1, 1, 1, 1, 7], but at most 4 dimensions"]);
    refused(&with(&[("bias", zeros(&[3, 1, 1, 1]))]), &[], 3, &["bias has batch 3, but 2 is needed"]);
    refused(&with(&[("sinks", zeros(&[2]))]), &[], 3, &["tensor sinks has shape [2], but [4] is expected"]);
    refused(&with(&[("alibi_slopes", zeros(&[4, 1]))]), &[], 3, &["alibi_slopes has shape [4, 1], but [4]"]);
    let temperature = with(&[("temperature", zeros(&[2, 4, 7]))]);
    refused(&temperature, &[], 3, &["temperature has shape [2, 4, 7], but [4] or [2, 4, 5] is expected"]);
    refused(&with(&[("kv_lengths", i64s(&[1], &[1]))]), &[], 3, &["kv_lengths has shape [1], but [2] is expected"]);
    // Nothing in the file, much in the memory.
    let empty =
        |q: [usize; 4], k: [usize; 4], v: [usize; 4]| with(&[("q", zeros(&q)), ("k", zeros(&k)), ("v", zeros(&v))]);
    let big = 1 << 40;
    refused(&empty([big, 1, 0, 8], [big, 1, 0, 8], [big, 1, 0, 8]), &[], 3, &["q has batch", "no elements"]);
    refused(&empty([1, 1, 9, 8], [1, 1, 0, 8], [1, 1, 0, big]), &[], 3, &["v has 1099511627776 columns"]);
    refused(&empty([1, 1, big, 0], [1, 1, 1, 0], [1, 1, 1, 9]), &[], 1, &["not enough memory for out"]);
}

#[test]
fn values_of_tensors() {
    refused(&with(&[("kv_lengths", i64s(&[2], &[7, 8]))]), &[], 3, &["kv_lengths has 8 at [1], but 0 to 7"]);
    refused(&with(&[("kv_lengths", i64s(&[2], &[-1, 3]))]), &[], 3, &["kv_lengths has -1 at [0], but 0 to 7"]);
    let heads = |value: f32| f32s(&[4], &[1.0, 1.0, value, 1.0]);
    refused(&with(&[("temperature", heads(0.0))]), &[], 3, &["temperature is 0, but must be positive"]);
    refused(&with(&[("alibi_slopes", heads(f32::NAN))]), &["--align", "0"], 3, &["slope is NaN, but must be finite"]);
    refused(&with(&[("sinks", heads(f32::INFINITY))]), &[], 3, &["sink is inf"]);
    let power = ["--weighting", "power", "--degree", "2", "--causal", "top-left"];
    let gates = |gates: &[f32]| with(&[("gates", f32s(&[gates.len()], gates))]);
    for gate in [0.0, -1.0, 1.5, f32::NAN, f32::INFINITY] {
        refused(&gates(&[0.5, gate]), &power, 3, &["a gate is", "in (0, 1]"]);
    }
    refused(&gates(&[0.5; 4]), &power, 3, &["gates has shape [4], but [2] is expected", "one for each head of k"]);
    let twice = [&power[..], &["--gates", "0.5"]].concat();
    refused(&gates(&[0.5; 2]), &twice, 3, &["gates", "--gates", "exclude each other"]);
    let both = with(&[("temperature", heads(2.0))]);
    refused(&both, &["--temperature", "2"], 3, &["temperature", "--temperature", "exclude each other"]);
}

#[test]
fn options() {
    let refused = |args: &str, code, parts: &[&str]| {
        let args: Vec<&str> = args.split(' ').collect();
        refused(&qkv().0, &args, code, parts);
    };
    refused("--weighting hardmax", 2, &["'hardmax'", "--weighting", "softmax, hard-left"]);
    refused("--weighting poly", 2, &["--weighting poly needs --degree, 1 to 8"]);
    refused("--weighting power", 2, &["--weighting power needs --degree, 2, 4, 6 or 8"]);
    refused("--weighting poly --degree 0", 3, &["degree is 0, but must be from 1 to 8"]);
    refused("--weighting poly --degree 9", 3, &["degree is 9, but must be from 1 to 8"]);
    refused("--weighting power --degree 3", 3, &["degree is 3, but must be 2, 4, 6 or 8"]);
    refused("--weighting poly --degree -1", 2, &["'-1'", "--degree"]);
    refused("--weighting poly --degree 2.5", 2, &["'2.5'", "--degree"]);
    refused("--degree 2", 2, &["--degree has no meaning with --weighting softmax: it goes with poly or power"]);
    refused("--sigmoid-bias 1 --weighting relu", 2, &["--sigmoid-bias has no meaning with --weighting relu"]);
    refused("--sigmoid-bias log --weighting sigmoid", 2, &["'log'", "a number or neg-log-n"]);
    refused("--coefficient 2", 2, &["--coefficient has no meaning with --weighting softmax: it goes with relu"]);
    refused("--row-scale inv-n --weighting taylor2", 2, &["--row-scale has no meaning with --weighting taylor2"]);
    refused("--row-scale half --weighting relu", 2, &["'half'", "inv-sqrt-n"]);
    refused("--lse --weighting relu", 2, &["--lse has no meaning with --weighting relu"]);
    refused("--n 0 --temperature-schedule log-n", 3, &["n is 0, but must be at least 1"]);
    let n = "--n has no meaning here: it goes with --row-scale inv-n or inv-sqrt-n, --temperature-schedule or";
    for rest in [
        "",
        " --weighting relu",
        " --weighting relu --row-scale none",
        " --temperature-schedule const",
        " --weighting sigmoid --sigmoid-bias 1",
    ] {
        ["all", "visible", "9"].iter().for_each(|value| refused(&format!("--n {value}{rest}"), 2, &[n]));
    }
    let align = "--align has no meaning here: it goes with a bounded --window or with ALiBi";
    for rest in ["", " --window none,none", " --weighting relu"] {
        ["top-left", "bottom-right", "3"]
            .iter()
            .for_each(|value| refused(&format!("--align {value}{rest}"), 2, &[align]));
    }
    refused("--n some", 2, &["'some'", "all, visible or a number"]);
    refused("--scale wide", 2, &["'wide'", "--scale"]);
    refused("--scale nan", 3, &["scale is NaN, but must be finite"]);
    refused("--softcap -1", 3, &["softcap is -1, but must be positive"]);
    for temperature in ["0", "-2", "NaN"] {
        let args = format!("--temperature {temperature}");
        refused(&args, 3, &[&format!("temperature is {temperature}, but must be positive")]);
    }
    refused("--temperature-schedule scaled-log-n", 2, &["needs --schedule-factor"]);
    refused("--temperature-schedule log-n --schedule-factor 2", 2, &["--schedule-factor goes with", "scaled-log-n"]);
    refused("--temperature-schedule scaled-log-n --schedule-factor 0", 3, &["schedule is 0, but must be positive"]);
    refused("--temperature-schedule cosine", 2, &["'cosine'", "scaled-log-n"]);
    refused("--causal middle", 2, &["'middle'", "top-left, bottom-right or a whole number"]);
    refused("--causal --strict", 2, &["a value is required for '--causal"]);
    refused("--anti-causal 1.5", 2, &["'1.5'", "top-left, bottom-right or a whole number"]);
    refused("--strict", 2, &["--strict needs --causal or --anti-causal"]);
    refused("--causal top-left --align bottom-right --window 1,1", 3, &["causal and align give different alignments"]);
    refused("--window 3", 2, &["'3'", "LEFT,RIGHT"]);
    refused("--window=-1,2", 2, &["'-1,2'", "LEFT,RIGHT"]);
    refused("--window 3,1", 3, &["a window needs an alignment", "5 queries and 7 keys"]);
    refused("--layout sbhd", 2, &["'sbhd'", "bhsd, bshd, thd"]);
    refused("--dtype f64", 2, &["'f64'", "f32, f16, bf16 or int8"]);
    refused("--out-dtype int8", 2, &["'int8'", "f32, f16 or bf16"]);
    refused("--out-dtype bf16", 3, &["out is bf16, but must be f32"]);
    refused("--split sometimes", 2, &["'sometimes'", "auto, never or a number of keys"]);
    refused("--form quadratic --weighting taylor2 --causal top-left --gates 0.9", 3, &["quadratic form", "a gate"]);
    refused("--gates 0.9 --weighting taylor2", 3, &["a gate"]);
    refused("--causal top-left --gates 0.9", 3, &["the linear form does not take softmax"]);
    for gate in ["0", "-0.5", "1.5", "NaN", "inf"] {
        let args = format!("--weighting taylor2 --causal top-left --gates {gate}");
        refused(&args, 3, &["a gate is", "in (0, 1]"]);
    }
    refused("--gates much", 2, &["'much'"]);
    refused("--form cubic", 2, &["'cubic'", "quadratic, linear or auto"]);
    refused("--form linear", 3, &["the linear form does not take softmax"]);
    refused("--weighting power --degree 6 --form linear", 3, &["does not take the degree", "4"]);
    refused("--varlen uniform:9", 2, &["'uniform:9'", "uniform:LOW..HIGH:COUNT[@SEED]"]);
    refused("--paged none", 2, &["'none'", "the rows of a page"]);
    refused("--layout bshd", 3, &["5 query heads are not a multiple of 7 kv heads"]);
    refused("--threads 0", 2, &["'0'", "--threads"]);
    refused("--threads many", 2, &["'many'", "--threads"]);
    refused("--colour", 2, &["--colour"]);
    refused("third", 2, &["'third'"]);
}

/// The commands that make their inputs up take the same options.
#[test]
fn options_of_other_commands() {
    let place = Place::new();
    for command in ["bench", "explain"] {
        for option in [["--n", "visible"], ["--align", "top-left"]] {
            let line = place.fail(&[&[command][..], &option, &["--queries", "3", "--keys", "3"]].concat(), 2);
            assert!(line.contains(&format!("{} has no meaning here", option[0])), "{line}");
        }
    }
    for option in [&["--strict"][..], &["--out", "mine.json"], &["--dry-run"]] {
        let line = place.fail(&[&["tune", "--self-check", "--budget", "0"], option].concat(), 2);
        assert!(line.contains("--self-check") && line.contains(option[0]), "{line}");
    }
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn levels() {
    let (foreign, tensors) = (if cfg!(target_arch = "aarch64") { "avx2" } else { "neon" }, qkv().0);
    let unavailable = format!("ISA level \"{foreign}\" is not available on this machine; available here: portable");
    refused(&tensors, &["--isa", foreign], 4, &[&unavailable]);
    refused(&tensors, &["--isa", "sse"], 4, &["unknown ISA level \"sse\"; available here: portable"]);
    let place = Place::new();
    place.write("in", &tensors);
    for (name, part) in [(foreign, "is not available"), ("AVX512", "unknown ISA level")] {
        for args in [&["attend", "in", "out"][..], &["explain"], &["info"]] {
            let line = failed(&place.command(args).env("REGARD_ISA", name).output().unwrap(), 4);
            assert!(line.contains(part) && line.contains(name), "{line}");
        }
    }
    assert_eq!(place.files(), ["in"]);
}

#[test]
fn outputs_that_cannot_be_written() {
    let place = Place::new();
    place.write("in", &qkv().0);
    fs::create_dir(place.path("directory")).unwrap();
    for out in ["missing/out", "in/out", "directory", "directory/", ".", ".."] {
        let line = place.fail(&["attend", "in", out], 5);
        assert!(line.contains(&format!("cannot write {out}: ")), "{line}");
    }
    assert!(place.fail(&["attend", "in", "missing/out"], 5).contains("its directory does not exist"));
    assert_eq!(place.files(), ["directory", "in"]);
    if cfg!(unix) {
        let line = place.fail(&["attend", "in", "/dev/null"], 5);
        assert!(line.contains("cannot write /dev/null: it is not a regular file"), "{line}");
    }
}

#[test]
fn profiles() {
    let place = Place::new();
    place.write("in", &qkv().0);
    fs::write(place.path("half.json"), "{\"schema\": 1, \"tool\":").unwrap();
    for (profile, part) in [("half.json", "not a valid profile"), ("missing.json", "missing.json: cannot open it")] {
        for args in [&["attend", "in", "out"][..], &["explain", "--json"]] {
            let line = failed(&place.command(args).env("REGARD_PROFILE", profile).output().unwrap(), 3);
            assert!(line.contains(part) && line.contains(profile) && line.contains("--no-profile"), "{line}");
        }
        // The card is shown all the same.
        let output = place.command(&["info"]).env("REGARD_PROFILE", profile).output().unwrap();
        assert_eq!(output.status.code(), Some(3));
        assert!(String::from_utf8(output.stdout.clone()).unwrap().contains(part));
        assert!(stderr(&output).contains(part));
        let output = place.command(&["explain", "--no-profile"]).env("REGARD_PROFILE", profile).output().unwrap();
        assert!(output.status.success());
    }
    assert_eq!(place.files(), ["half.json", "in"]);
}

#[test]
fn a_name_with_a_line_break_stays_on_one_line() {
    let line = Place::new().fail(&["attend", "two\nlines", "out"], 3);
    assert!(line.contains("two\\nlines"), "{line}");
}
