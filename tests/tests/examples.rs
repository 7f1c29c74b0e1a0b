//! The examples of the crate `regard`, run and believed only as far as their numbers go: each is compiled in here, so
//! that what it computes can be looked at.
//!
//! The pages of `regard::papers` are checked too: what they say is tested, or shown, exists.

use std::path::{Path, PathBuf};

use regard::{Level, Weighting};
use regard_tests::SLOW;

#[path = "../../crates/regard/examples/custom_weighting.rs"]
mod custom_weighting;
#[path = "../../crates/regard/examples/dyck.rs"]
mod dyck;
#[path = "../../crates/regard/examples/induction_head.rs"]
mod induction_head;
#[path = "../../crates/regard/examples/nearest_neighbour_regression.rs"]
mod nearest_neighbour_regression;
#[path = "../../crates/regard/examples/polynomial_vs_softmax.rs"]
mod polynomial_vs_softmax;
#[path = "../../crates/regard/examples/spline.rs"]
mod spline;
#[path = "../../crates/regard/examples/streaming.rs"]
mod streaming;
#[path = "../../crates/regard/examples/temperature_to_hard.rs"]
mod temperature_to_hard;
#[path = "../../crates/regard/examples/temporal_logic.rs"]
mod temporal_logic;

type Done = Result<(), Box<dyn std::error::Error>>;

/// Every example runs to its end. Emulators are too slow for all of their output.
#[test]
fn they_run() -> Done {
    if SLOW {
        return induction_head::main();
    }
    custom_weighting::main()?;
    dyck::main()?;
    induction_head::main()?;
    nearest_neighbour_regression::main()?;
    polynomial_vs_softmax::main()?;
    spline::main()?;
    streaming::main()?;
    temperature_to_hard::main()?;
    temporal_logic::main()
}

/// With equal gaps the bound is the error, up to f32; beyond 104 temperatures there is none; and the temperature that
/// is said to be enough for an error is.
#[test]
fn temperature_to_hard_meets_its_bound() -> Done {
    for (n, m) in [(4, 1), (32, 2), (100, 7)] {
        for temperature in [1.0, 0.5, 0.125, 0.0625] {
            let line = temperature_to_hard::compare(n, m, temperature)?;
            assert!((line.error - line.bound).abs() <= 2e-6, "{} for {}", line.error, line.bound);
            assert!(!line.same_bits);
        }
        assert!(temperature_to_hard::compare(n, m, 1.0 / 105.0)?.same_bits);
        let error = temperature_to_hard::compare(n, m, temperature_to_hard::temperature_for(n, m, 0.01))?.error;
        assert!(error <= 0.01 + 2e-6 && error > 0.009, "{error}");
    }
    Ok(())
}

/// Compiled formulas have their truth value at every position of every word: by hard attention with any tie rule (where
/// the operator has not one of its own), and by softmax after repair, which needs errors of at most 1/4.
#[test]
fn temporal_logic_is_compiled_correctly() -> Done {
    let longest = if SLOW { 4 } else { 9 };
    let modes = [Some(Weighting::HardLeft), Some(Weighting::HardRight), Some(Weighting::AverageHard), None];
    for (name, formula) in temporal_logic::formulas() {
        for mode in &modes {
            let outcome = temporal_logic::check(&formula, mode.clone(), longest)?;
            assert_eq!(outcome.wrong, 0, "{name}: {formula}, {mode:?}");
            assert_eq!(outcome.positions, (1..=longest).map(|n| n << n).sum::<usize>());
            if mode.is_none() {
                assert!(outcome.error > 0.0 && outcome.error <= 0.25, "{name}: {}", outcome.error);
            }
        }
    }
    Ok(())
}

/// Balanced words are those that a stack accepts, as many as the Catalan numbers say, times a kind for each pair;
/// partners are those of the stack.
#[test]
fn dyck_agrees_with_a_stack() -> Done {
    let catalan = [1, 1, 2, 5, 14, 42];
    for (kinds, longest) in if SLOW { [(1, 6), (2, 2)] } else { [(1, 10), (2, 6)] } {
        for length in 1..=longest {
            let words = dyck::words(length, kinds);
            let readings = dyck::read(&words)?;
            for (word, reading) in words.iter().zip(&readings) {
                assert_eq!(reading.balanced, dyck::by_stack(word), "{word:?}");
                let mut stack = Vec::new();
                for (i, letter) in word.iter().enumerate().take_while(|_| reading.balanced) {
                    if *letter > 0 {
                        stack.push(i);
                    } else {
                        assert_eq!(reading.partners[i], stack.pop(), "{word:?}, {i}");
                    }
                }
            }
            let balanced = readings.iter().filter(|reading| reading.balanced).count();
            let pairs = length / 2;
            let want = if length % 2 == 0 { catalan[pairs] * (kinds as usize).pow(pairs as u32) } else { 0 };
            assert_eq!(balanced, want, "length {length}, {kinds} kinds");
        }
    }
    Ok(())
}

/// The mean by trust comes close to the truth and the plain one does not, in memory that does not grow; halves and the scan
/// agree with the stream.
#[test]
fn streaming_finds_the_truth_in_constant_memory() -> Done {
    let (keys, values) = streaming::readings(if SLOW { 1000 } else { 10_000 });
    let lines = streaming::stream(&keys, &values)?;
    let last = lines[lines.len() - 1];
    assert_eq!(last.readings as usize, values.len());
    assert!((last.mean - streaming::TRUTH).abs() < 0.7 && (last.plain - streaming::TRUTH).abs() > 2.0, "{last:?}");
    assert!((last.best - streaming::TRUTH).abs() < 0.2, "{last:?}");
    let after_blocks = lines.iter().filter(|line| line.readings >= 1000);
    assert!(after_blocks.clone().all(|line| line.bytes == last.bytes));
    assert!((streaming::in_two_halves(&keys, &values)? - last.mean).abs() < 1e-5);
    let moments = streaming::at_every_moment(&keys, &values)?;
    for line in &lines {
        let found = moments[line.readings as usize - 1];
        assert!((found - line.mean).abs() < 1e-5, "{found} for {line:?}");
    }
    Ok(())
}

/// At every position: the letter that came last after this one, and the shares of all that ever did.
#[test]
fn induction_head_counts_followers() -> Done {
    for text in ["abcadbaca", "abracadabra", "mississippi", "zzzz", "q"] {
        let letters: Vec<char> = text.chars().collect();
        for (i, got) in induction_head::expectations(text)?.into_iter().enumerate() {
            let followers: Vec<char> = (0..i).filter(|j| letters[*j] == letters[i]).map(|j| letters[j + 1]).collect();
            assert_eq!(got.last, followers.last().copied(), "{text}, {i}");
            for letter in 'a'..='z' {
                let share = got.shares.iter().find(|(other, _)| *other == letter).map_or(0.0, |(_, share)| *share);
                let count = followers.iter().filter(|follower| **follower == letter).count();
                let want = count as f32 / followers.len().max(1) as f32;
                assert!((share - want).abs() <= f32::EPSILON, "{text}, {i}: {letter} {share}");
            }
        }
    }
    Ok(())
}

/// The pieces of ReLU attention over the tokens 1, t, 2 - t, as one finds them by hand; knots at 0 and 2; and that
/// softmax has none.
#[test]
fn spline_finds_the_pieces() -> Done {
    let by_hand = [
        [[5.0, -4.0, 1.0, 0.0], [5.0, -4.0, 2.0, 0.0], [1.0, 0.0, 1.0, 0.0]],
        [[0.0, 0.0, 0.0, 1.0], [0.0, 5.0, -4.0, 2.0], [0.0, 1.0, 0.0, 1.0]],
        [[10.0, -13.0, 6.0, -1.0], [10.0, -13.0, 8.0, -2.0], [8.0, -12.0, 6.0, -1.0]],
    ];
    for (query, by_hand) in by_hand.into_iter().enumerate() {
        assert_eq!(spline::knots(query)?, [0.0, 2.0]);
        let pieces = spline::pieces(&Weighting::Relu, query)?;
        assert_eq!(pieces.len(), 3);
        for (piece, want) in pieces.iter().zip(by_hand) {
            assert!(piece.cubic.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-3), "{piece:?}");
            // Values are at most 64, and have a few roundings each.
            assert!(piece.distance < 64.0 * 8.0 * f64::from(f32::EPSILON), "{piece:?}");
        }
        assert_eq!([pieces[0].to, pieces[1].to], [0.0, 2.0]);
        assert!(spline::pieces(&Weighting::Softmax, query)?.iter().all(|piece| piece.distance > 1e-3));
    }
    Ok(())
}

/// ||softmax||_F <= sqrt(N); norms of polynomials are those expected.
#[test]
fn polynomial_vs_softmax_has_the_norms() -> Done {
    let n = if SLOW { 64 } else { 256 };
    for (p, (name, options)) in polynomial_vs_softmax::attentions().into_iter().enumerate() {
        let norm = polynomial_vs_softmax::relative_norm(&options, n)?;
        if p == 0 {
            // Rows of a stochastic matrix: from uniform to one-hot.
            assert!(norm >= 1.0 / (n as f64).sqrt() && norm <= 1.0, "{norm}");
        } else {
            let ratio = norm / polynomial_vs_softmax::expected(p);
            assert!((ratio - 1.0).abs() < 0.08, "{name}: {ratio}");
        }
    }
    Ok(())
}

/// The best beta rises with the Lipschitz constant and the number of points, and falls with noise; large betas approach
/// the nearest neighbour.
#[test]
fn nearest_neighbour_regression_adapts() -> Done {
    use nearest_neighbour_regression::{Task, errors};
    let task = Task { lipschitz: 4.0, noise: 0.3, points: 48, repetitions: if SLOW { 40 } else { 200 } };
    let best = |task| Ok::<_, Box<dyn std::error::Error>>(errors(task)?.best_beta());
    let [smooth, rough] = [1.0, 8.0].map(|lipschitz| best(Task { lipschitz, ..task }));
    let [clean, noisy] = [0.05, 1.0].map(|noise| best(Task { noise, ..task }));
    let [few, many] = [12, 96].map(|points| best(Task { points, ..task }));
    assert!(smooth? < rough?);
    assert!(clean? > noisy?);
    assert!(few? < many?);
    let errors = errors(task)?;
    let far: Vec<f64> = errors.soft.iter().map(|(_, error)| (error - errors.nearest).abs()).collect();
    assert!(far[12] < far[10] && far[10] < far[8], "{far:?}");
    Ok(())
}

/// The smooth ReLU is as near to ReLU attention as its bound says, and nearer the sharper it is, on every level.
#[test]
fn custom_weighting_is_within_its_bound() -> Done {
    for level in Level::available() {
        let mut before = f64::INFINITY;
        for sharpness in [1.0, 4.0, 16.0, 64.0] {
            let line = custom_weighting::compare(sharpness, level.isa())?;
            assert!(line.from_relu <= line.bound && line.from_relu < before, "{}", line.from_relu);
            assert!(line.from_definition < 1e-5, "{}", line.from_definition);
            assert_eq!(line.isa, level.isa());
            before = line.from_relu;
        }
    }
    Ok(())
}

fn directory(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Names (without extension) and texts of the Rust files of a directory.
fn sources(path: &str) -> Vec<(String, String)> {
    let files = std::fs::read_dir(directory(path)).expect("a directory");
    let paths = files.map(|file| file.expect("an entry").path());
    let rust = paths.filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    rust.map(|path| {
        let text = std::fs::read_to_string(&path).expect("text");
        (path.file_stem().expect("a name").to_string_lossy().into_owned(), text)
    })
    .collect()
}

/// Pages name tests as `file::function`; each of them is there, and every page names some. Every example is on a page,
/// and every file of theorems.
#[test]
#[cfg_attr(miri, ignore = "reads files")]
fn pages_tell_the_truth_about_tests_and_examples() {
    let (pages, tests) = (sources("../crates/regard/src/papers"), sources("tests/papers"));
    // Pages name those of the linear form too.
    let all_tests = [tests.clone(), sources("tests/linear")].concat();
    assert!(pages.len() >= 7, "{} pages", pages.len());
    let mut all = String::new();
    for (page, text) in &pages {
        let mut named = 0;
        for (file, function) in text.split('`').filter_map(|code| code.split_once("::")) {
            let Some((_, source)) = all_tests.iter().find(|(name, _)| name == file) else { continue };
            assert!(source.contains(&format!("fn {function}()")), "{page}: {file}::{function} is not a test");
            named += 1;
        }
        assert!(named > 0 || page == "mod", "{page} names no test");
        // As one line: names may follow at the beginning of the next.
        all += &text.replace("//!", " ").split_whitespace().collect::<Vec<_>>().join(" ");
    }
    for (example, _) in sources("../crates/regard/examples") {
        assert!(all.contains(&format!("example `{example}`")), "no page mentions the example {example}");
    }
    for (file, _) in tests.iter().filter(|(file, _)| file != "main") {
        assert!(all.contains(&format!("`{file}::")), "no page mentions the tests of {file}");
    }
}
