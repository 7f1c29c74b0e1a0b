//! Is this compiler safe for the AVX-512 level?
//!
//! rustc from 1.95 on (LLVM 22) miscompiles vector code when the features avx512dq and avx512vl are enabled together:
//! the pass X86CompressEVEX turns VPMOV*2M + KMOV into VMOVMSK and deletes the mask, although a later KSHIFTR, which
//! reads and writes the same mask register, still needs it (rust-lang/rust#158622; llvm/llvm-project#174871, #191304;
//! fixed by llvm/llvm-project#198220). Some lanes of a vector then take the wrong side of a selection.
//!
//! So the AVX-512 level of this library is avx512f + avx512bw + avx512dq without avx512vl, and nothing may be built for
//! `target-cpu=native`, which would enable it for all code of the program, test oracles included. These tests say
//! whether that is still so, and still enough.
//!
//! This file, and the rule, may go once `rust-version` of the workspace is a release whose LLVM has #198220, which
//! `what_this_compiler_does_with_vl` reports.

use std::hint::black_box;
use std::path::{Path, PathBuf};

use regard::{Level, Simd};
use regard_simd::Op;

const LEN: usize = 16;

/// Widens sign-and-magnitude numbers to 128-bit integers: a loop that LLVM turns into comparisons to mask registers,
/// lane by lane insertions, and shifts of the mask. The trip count is hidden, or the loop would be unrolled before it
/// is vectorised.
#[inline(always)]
fn widen(values: &[f64; LEN], wide: &mut [i128; LEN]) {
    for i in 0..black_box(values.len()) {
        let bits = values[i].to_bits();
        let magnitude = values[i].abs().to_bits() as i128;
        wide[i] = if bits == 0 {
            0
        } else if (bits as i64) < 0 {
            // Not `-`: its overflow check would keep the loop from being vectorised in builds that have them.
            magnitude.wrapping_neg()
        } else {
            magnitude
        };
    }
}

/// Booleans of a comparison, packed to one bit for each lane: what the kernels do with mask tensors.
#[inline(always)]
fn pack(rows: &[[i32; 64]; 8], words: &mut [u64; 64]) {
    for (lane, row) in rows.iter().enumerate().take(black_box(8)) {
        for (key, word) in words.iter_mut().enumerate() {
            *word |= u64::from(row[key] < 0) << lane;
        }
    }
}

struct Widen<'a>(&'a [f64; LEN], &'a mut [i128; LEN]);

impl Op for Widen<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _s: S) {
        widen(self.0, self.1);
    }
}

struct Pack<'a>(&'a [[i32; 64]; 8], &'a mut [u64; 64]);

impl Op for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _s: S) {
        pack(self.0, self.1);
    }
}

/// Numbers whose negative ones stand in every place of four, and what becomes of them, computed one by one.
fn widen_case(step: usize) -> ([f64; LEN], [i128; LEN]) {
    let values: [f64; LEN] = black_box(std::array::from_fn(|i| if i % step == 2 { -1.0 - i as f64 } else { i as f64 }));
    let expected = std::array::from_fn(|i| {
        let magnitude = black_box(values[i].abs().to_bits() as i128);
        if black_box(values[i] < 0.0) { -magnitude } else { magnitude }
    });
    (values, expected)
}

/// The levels that matter here, all of those that the machine has; says which are missing.
fn levels() -> Vec<Level> {
    let levels = Level::available();
    if cfg!(not(target_arch = "x86_64")) {
        println!("the bug is in LLVM's x86 backend: this run says nothing about it");
    } else if !levels.iter().any(|level| level.isa() == regard::Isa::Avx512) {
        println!("skipped for avx512: this machine does not have avx512f, avx512bw and avx512dq");
    }
    levels.to_vec()
}

#[test]
fn every_level_selects_the_right_side() {
    for level in levels() {
        for step in [3, 4, 5, 7] {
            let (values, expected) = widen_case(step);
            let mut wide = [1; LEN];
            level.dispatch(Widen(&values, &mut wide));
            assert_eq!(
                wide,
                expected,
                "this compiler miscompiles code for the level {} (rust-lang/rust#158622): do not use it",
                level.isa()
            );
        }
        println!("ran on {}", level.isa());
    }
}

#[test]
fn every_level_packs_the_right_bits() {
    for level in levels() {
        let rows: [[i32; 64]; 8] =
            black_box(std::array::from_fn(|lane| std::array::from_fn(|key| (key * 7 + lane * 5) as i32 % 11 - 5)));
        let mut words = [0; 64];
        level.dispatch(Pack(&rows, &mut words));
        for (key, word) in words.iter().enumerate() {
            let expected = (0..8).fold(0, |word, lane| word | u64::from(black_box(rows[lane][key]) < 0) << lane);
            assert_eq!(*word, expected, "level {}, key {key}", level.isa());
        }
        println!("ran on {}", level.isa());
    }
}

/// Says whether the bug is there, and fails for neither answer: whoever raises `rust-version` reads it
/// (`cargo test -p regard-tests --test toolchain_canary -- --nocapture`).
#[test]
#[cfg(target_arch = "x86_64")]
fn what_this_compiler_does_with_vl() {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    #[inline(never)]
    fn with_vl(values: &[f64; LEN], wide: &mut [i128; LEN]) {
        widen(values, wide);
    }
    if !["avx512f", "avx512bw", "avx512dq", "avx512vl"].iter().all(|feature| detected(feature)) {
        println!("skipped: this machine does not have avx512vl");
        return;
    }
    let (values, expected) = widen_case(3);
    let mut wide = [1; LEN];
    // SAFETY: the features were detected. The miscompiled function gives wrong numbers and touches no other memory.
    unsafe { with_vl(&values, &mut wide) };
    let verdict = if wide == expected { "is right with avx512vl" } else { "MISCOMPILES with avx512dq + avx512vl" };
    println!("this compiler {verdict}");
}

#[cfg(target_arch = "x86_64")]
fn detected(feature: &str) -> bool {
    match feature {
        "avx512f" => std::arch::is_x86_feature_detected!("avx512f"),
        "avx512bw" => std::arch::is_x86_feature_detected!("avx512bw"),
        "avx512dq" => std::arch::is_x86_feature_detected!("avx512dq"),
        "avx512vl" => std::arch::is_x86_feature_detected!("avx512vl"),
        _ => unreachable!("{feature}"),
    }
}

/// Nothing that ships enables avx512vl, by name or through the processor of the machine that builds it.
#[test]
fn no_source_enables_vl() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the workspace");
    let mut files = vec![workspace.join("Cargo.toml"), workspace.join(".cargo/config.toml")];
    for folder in ["crates", "benches", "tools"] {
        collect(&workspace.join(folder), &mut files);
    }
    let mut found = Vec::new();
    let mut sources = 0;
    for file in &files {
        let Ok(text) = std::fs::read_to_string(file) else { continue };
        sources += 1;
        for (number, line) in text.lines().enumerate() {
            if enables_vl(without_comment(line)) {
                found.push(format!("{}:{}: {}", file.display(), number + 1, line.trim()));
            }
        }
    }
    assert!(sources > 20, "only {sources} sources were found under {}", workspace.display());
    assert!(found.is_empty(), "these lines enable avx512vl:\n{}", found.join("\n"));
}

#[test]
fn the_scan_finds_what_it_looks_for() {
    for bad in [
        r#"#[target_feature(enable = "avx512f,avx512vl")]"#,
        r#"    operations! { "avx512f,avx512vl";"#,
        r#"rustflags = ["-C", "target-cpu=native"]"#,
        r#"rustflags = "-Ctarget-feature=+avx512vl""#,
        r#"let flags = "target-cpu=native"; // why"#,
        r#"rustflags = ["-C", "target-cpu = znver5"]"#,
    ] {
        assert!(enables_vl(without_comment(bad)), "{bad}");
    }
    for good in [
        "/// never add `-C target-cpu=native`",
        "# Never add `-C target-cpu=native`",
        r#"#[target_feature(enable = "avx512f,avx512bw,avx512dq")] // without "avx512vl""#,
        r#"is_x86_feature_detected!("avx512vl")"#,
        r#"const REPORTED: [&str; 2] = ["avx512dq", "avx512vl"];"#,
    ] {
        assert!(!enables_vl(without_comment(good)), "{good}");
    }
}

/// Whether a line of code enables the feature (by attribute, in a list of features for one, or by flag), or names a
/// processor to build for. Detecting the feature is fine.
fn enables_vl(code: &str) -> bool {
    let squeezed: String = code.chars().filter(|c| !c.is_whitespace()).collect();
    let strings = squeezed.split('"').skip(1).step_by(2);
    let enabled = strings
        .filter(|string| string.contains("avx512vl"))
        .any(|string| string.contains([',', '+']) || squeezed.contains("enable"));
    enabled || squeezed.contains("target-cpu=")
}

/// A line of Rust or TOML up to its comment. Rust attributes also start with `#`; `//` in a string ends the line early,
/// which no line with features does.
fn without_comment(line: &str) -> &str {
    let code = line.split("//").next().unwrap_or_default();
    if code.trim_start().starts_with('#')
        && !code.trim_start().starts_with("#[")
        && !code.trim_start().starts_with("#!")
    {
        ""
    } else {
        code
    }
}

/// The Rust and TOML files under a folder.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "toml") {
            files.push(path);
        }
    }
}
