//! Nothing to do, nothing to see, and numbers at the end of their range.
#![forbid(unsafe_code)]

use regard::{Align, Dtype, Execution, Level, SigmoidBias, Temperature, View, Weighting};
use regard_kernels::table::{kernels, rows_kernels_for};
use regard_tests::{
    Blocks, Case, Engine, Layout, Output, Random, SLOW, Spec, Stored, Tensor, check, engines, levels, run, selects,
    setup_for, setup_of, weightings,
};

/// Runs a case with the first kernel of a level and small blocks, or with the rows kernel where queries are few.
fn run_at(level: Level, case: &Case<'_>) -> Output {
    run(&case.problem(), &setup_for(&kernels(level)[0], 16, 40), Execution::Serial)
}

/// The first lanes kernel of a level, and its rows kernel for f32.
fn engines_at(level: Level) -> [Engine; 2] {
    [Engine::Lanes(&kernels(level)[0]), Engine::Rows(rows_kernels_for(level, Dtype::F32, |_| false)[0])]
}

#[test]
fn tensors_without_elements() {
    let full = [2, 4, 3, 5, 6, 7];
    for weighting in weightings() {
        // batch, query heads (and kv heads), queries, keys, d, d_v
        for empty in 0..6 {
            let mut sizes = full;
            sizes[empty] = 0;
            let [batch, heads, queries, keys, d, d_v] = sizes;
            for kv_heads in if heads == 0 { vec![0, 2] } else { vec![2] } {
                let q = Tensor::filled([batch, heads, queries, d], Layout::Bhsd, 1.0);
                let k = Tensor::filled([batch, kv_heads, keys, d], Layout::Bhsd, 1.0);
                let v = Tensor::filled([batch, kv_heads, keys, d_v], Layout::Bhsd, 1.0);
                for level in levels() {
                    let case = Case::new(Spec::new(weighting.clone()), &q, &k, &v);
                    let output = run(&case.problem(), &setup_of(*level), Execution::Serial);
                    regard_tests::compare(&case, &case.problem(), &output);
                    if keys == 0 {
                        assert!(output.out.iter().all(|x| x.to_bits() == 0), "{weighting:?} without keys");
                        assert!(output.lse.iter().flatten().all(|x| *x == f32::NEG_INFINITY));
                    }
                }
                let options = Spec::new(weighting.clone()).options();
                let out = regard::attention(&options, q.view(), k.view(), v.view()).expect("legal");
                assert_eq!(out.len(), batch * heads * queries * d_v);
            }
        }
    }
}

/// Without columns of V there is a log-sum-exp all the same.
#[test]
fn log_sum_exp_without_values() {
    let mut random = Random::new(1);
    let q = Tensor::normal([1, 2, 5, 4], Layout::Bhsd, &mut random);
    let k = Tensor::normal([1, 2, 9, 4], Layout::Bhsd, &mut random);
    let v = Tensor::filled([1, 2, 9, 0], Layout::Bhsd, 1.0);
    for level in levels() {
        check(&Case::new(Spec::new(Weighting::Softmax), &q, &k, &v), &setup_of(*level));
    }
}

/// A row that sees nothing is zero, whatever hides the keys, and whatever sink there is.
#[test]
fn rows_that_see_nothing() {
    let mut random = Random::new(2);
    let q = Tensor::normal([2, 2, 37, 8], Layout::Bhsd, &mut random);
    let k = Tensor::normal([2, 2, 21, 8], Layout::Bhsd, &mut random);
    let v = Tensor::normal([2, 2, 21, 9], Layout::Bhsd, &mut random);
    let nothing = vec![0_u8; 37];
    let keep = Some(View::bhsd(&nothing, [1, 1, 37, 1]).expect("as long as its shape"));
    let sinks = [0.5, -0.5];
    for weighting in weightings() {
        let plain = || Spec::new(weighting.clone());
        let mut specs = vec![
            Spec { causal: Some(Align::Offset(-37)), ..plain() },
            Spec { anti_causal: Some(Align::Offset(21)), ..plain() },
            Spec { key_lengths: Some(&[0, 0]), ..plain() },
            Spec { keep, ..plain() },
            Spec { causal: Some(Align::TopLeft), anti_causal: Some(Align::TopLeft), strict: true, ..plain() },
        ];
        if matches!(weighting, Weighting::Softmax) {
            specs.push(Spec { keep, sinks: Some(&sinks), ..plain() });
        }
        for spec in specs {
            for level in levels() {
                let case = Case::new(spec.clone(), &q, &k, &v);
                let output = run_at(*level, &case);
                assert!(output.out.iter().all(|x| x.to_bits() == 0), "{spec:?}");
                if let Some(lse) = &output.lse {
                    for (row, lse) in lse.iter().enumerate() {
                        let sink = spec.sinks.map_or(f32::NEG_INFINITY, |sinks| sinks[row / 37 % 2]);
                        assert!(*lse == sink || (lse - sink).abs() < 1e-6, "{lse} instead of {sink}");
                    }
                }
            }
        }
    }
}

/// The columns of a row of NaN and infinities.
const GARBAGE: [f32; 4] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX];

/// What lies behind a mask never reaches a result, by not a single bit: NaN and infinities in K and V there give what
/// finite numbers give. Every mask, every weighting, on every kernel, with key blocks that the masked keys share with
/// visible ones and that they fill.
#[test]
fn nothing_leaks_through_a_mask() {
    let (batch, heads, queries, keys) = (2, 2, 37, 53);
    let mut random = Random::new(3);
    let q = Tensor::normal([batch, heads, queries, 8], Layout::Bhsd, &mut random);
    let k = Tensor::normal([batch, heads, keys, 8], Layout::Bhsd, &mut random);
    let v = Tensor::normal([batch, heads, keys, 7], Layout::Bhsd, &mut random);
    let keep: Vec<u8> = (0..queries * keys).map(|i| u8::from(i % keys % 3 != 1 && i % keys / 5 % 4 != 2)).collect();
    let keep = Some(View::bhsd(&keep, [1, 1, queries, keys]).expect("as long as its shape"));
    let slopes = [0.5, 0.25];
    for weighting in weightings().into_iter().step_by(if SLOW { 4 } else { 1 }) {
        let plain = || Spec::new(weighting.clone());
        let terms = || Spec { softcap: Some(5.0), alibi: Some(&slopes), ..plain() };
        let specs = [
            // Keys 41 and up are behind the mask for all rows, in the last case the first 20 are.
            Spec { causal: Some(Align::Offset(4)), ..plain() },
            Spec { causal: Some(Align::Offset(4)), ..terms() },
            Spec { key_lengths: Some(&[41, 7]), ..plain() },
            Spec { key_lengths: Some(&[41, 30]), causal: Some(Align::BottomRight), ..plain() },
            Spec { keep, ..plain() },
            Spec { keep, align: Some(Align::TopLeft), ..terms() },
            Spec { keep, window: Some((Some(6), Some(2))), align: Some(Align::Offset(1)), ..plain() },
            Spec { anti_causal: Some(Align::Offset(20)), strict: true, ..plain() },
        ];
        for spec in &specs {
            let shape = Case::new(spec.clone(), &q, &k, &v).problem().shape();
            let mut dirty = [k.clone(), v.clone()];
            let mut hidden = 0;
            for b in 0..batch {
                for h in 0..heads {
                    for key in 0..keys {
                        if (0..queries).any(|query| spec.sees(&shape, [b, h, query, key])) {
                            continue;
                        }
                        hidden += 1;
                        for tensor in &mut dirty {
                            tensor.fill_row([b, h, key], GARBAGE[(key + h) % 4]);
                        }
                    }
                }
            }
            assert!(hidden > 0, "{spec:?} hides no key from all rows");
            for engine in engines().filter(|engine| engine.computes(&weighting)) {
                let dtype = engine.dtype();
                let store = |k, v| Stored::three([&q, k, v], engine.q_dtype(dtype), dtype);
                let [clean, dirty] = [store(&k, &v), store(&dirty[0], &dirty[1])];
                for key_block in [16, 48] {
                    let run = |stored| engine.run(&Case::stored(spec.clone(), stored), &Blocks::new(key_block, 30));
                    run(&dirty).assert_same(&run(&clean), &format!("{} {spec:?}", engine.name()));
                }
            }
        }
    }
}

/// The same where a key is hidden from some rows only: those keep their bits, the others get NaN.
#[test]
fn rows_that_see_nan_are_nan_and_others_are_not() {
    let (queries, keys) = (37, 50);
    let mut random = Random::new(4);
    let q = Tensor::normal([1, 1, queries, 8], Layout::Bhsd, &mut random);
    let k = Tensor::normal([1, 1, keys, 8], Layout::Bhsd, &mut random);
    let v = Tensor::normal([1, 1, keys, 7], Layout::Bhsd, &mut random);
    let keep: Vec<u8> = (0..queries * keys).map(|_| u8::from(random.chance(0.7))).collect();
    let keep = Some(View::bhsd(&keep, [1, 1, queries, keys]).expect("as long as its shape"));
    for weighting in weightings().into_iter().step_by(if SLOW { 4 } else { 1 }) {
        let plain = || Spec::new(weighting.clone());
        let specs = [
            Spec { causal: Some(Align::BottomRight), ..plain() },
            Spec { keep, ..plain() },
            Spec { keep, softcap: Some(5.0), ..plain() },
            Spec { window: Some((Some(4), Some(9))), align: Some(Align::Offset(5)), ..plain() },
        ];
        for spec in &specs {
            let engines = levels().iter().flat_map(|level| engines_at(*level));
            for (engine, bad) in engines.flat_map(|engine| [0, 17, 31, 33, 49].map(|bad| (engine, bad))) {
                let run_at = |case: &Case<'_>| engine.run(case, &Blocks::new(16, 40));
                let level = engine.name();
                let clean = run_at(&Case::new(spec.clone(), &q, &k, &v));
                let shape = Case::new(spec.clone(), &q, &k, &v).problem().shape();
                // NaN in one element of K: the score of that key.
                let mut nan_k = k.clone();
                *nan_k.at([0, 0, bad, 3]) = f32::NAN;
                let output = run_at(&Case::new(spec.clone(), &q, &nan_k, &v));
                for query in 0..queries {
                    let sees = spec.sees(&shape, [0, 0, query, bad]);
                    let row = query * 7..query * 7 + 7;
                    for (got, was) in output.out[row.clone()].iter().zip(&clean.out[row]) {
                        let fits = if sees { got.is_nan() } else { got.to_bits() == was.to_bits() };
                        assert!(fits, "K {got} {was} {sees} row {query} key {bad} {level} {spec:?}");
                    }
                    if let (Some(lse), Some(was)) = (&output.lse, &clean.lse) {
                        assert!(if sees { lse[query].is_nan() } else { lse[query].to_bits() == was[query].to_bits() });
                    }
                }
                // NaN in one element of V: that column, where the key has weight. Selection reads the row only if chosen.
                let mut nan_v = v.clone();
                *nan_v.at([0, 0, bad, 3]) = f32::NAN;
                let case = Case::new(spec.clone(), &q, &k, &nan_v);
                let problem = case.problem();
                let output = run_at(&case);
                for query in 0..queries {
                    let row = regard::reference::row(&problem, output.paths[0].rounding, [0, 0, query]);
                    let sees = spec.sees(&shape, [0, 0, query, bad]);
                    let counts = sees && (!selects(&weighting) || row.weights[bad] != 0.0);
                    for c in 0..7 {
                        let (got, was) = (output.out[query * 7 + c], clean.out[query * 7 + c]);
                        let nan = counts && c == 3;
                        let fits = if nan { got.is_nan() } else { got.to_bits() == was.to_bits() };
                        assert!(fits, "V {got} {was} row {query} key {bad} column {c} {level} {spec:?}");
                    }
                }
            }
        }
    }
}

/// NaN in a query makes its row NaN, and no other.
#[test]
fn nan_in_a_query() {
    let mut random = Random::new(5);
    let q = Tensor::normal([1, 1, 21, 8], Layout::Bhsd, &mut random);
    let k = Tensor::normal([1, 1, 33, 8], Layout::Bhsd, &mut random);
    let v = Tensor::normal([1, 1, 33, 7], Layout::Bhsd, &mut random);
    let mut bad = q.clone();
    *bad.at([0, 0, 9, 2]) = f32::NAN;
    for weighting in weightings() {
        for level in levels() {
            let spec = || Spec::new(weighting.clone());
            let clean = run_at(*level, &Case::new(spec(), &q, &k, &v)).out;
            let output = run_at(*level, &Case::new(spec(), &bad, &k, &v)).out;
            for (i, (got, was)) in output.iter().zip(&clean).enumerate() {
                let fits = if i / 7 == 9 { got.is_nan() } else { got.to_bits() == was.to_bits() };
                assert!(fits, "{weighting:?} row {}", i / 7);
            }
        }
    }
}

/// Infinite scores: products with infinite elements.
#[test]
fn infinite_scores() {
    let v = Tensor::from_fn([1, 1, 5, 3], Layout::Bhsd, |[_, _, r, c]| (r * 3 + c) as f32);
    let scores = |values: [f32; 5]| {
        (
            Tensor::filled([1, 1, 9, 1], Layout::Bhsd, 1.0),
            Tensor::from_fn([1, 1, 5, 1], Layout::Bhsd, |[_, _, r, _]| values[r]),
        )
    };
    let (inf, low) = (f32::INFINITY, f32::NEG_INFINITY);
    for level in levels() {
        let row = |weighting: Weighting, values: [f32; 5]| {
            let (q, k) = scores(values);
            let case = Case::new(Spec::new(weighting), &q, &k, &v);
            let output = run_at(*level, &case);
            output.out.chunks(3).for_each(|row| assert_eq!(row[0].to_bits(), output.out[0].to_bits()));
            (output.out[..3].to_vec(), output.lse.map(|lse| lse[0]))
        };
        // Minus infinity has no weight under softmax, and cannot be chosen.
        let (out, lse) = row(Weighting::Softmax, [low, 1.0, low, 1.0, low]);
        assert_eq!(out, [6.0, 7.0, 8.0]);
        assert!((lse.expect("softmax") - (1.0 + 2.0_f32.ln())).abs() < 1e-6);
        for weighting in [Weighting::Softmax, Weighting::HardLeft, Weighting::HardRight, Weighting::AverageHard] {
            assert_eq!(row(weighting, [low; 5]).0, [0.0; 3]);
        }
        assert_eq!(row(Weighting::HardLeft, [low, 1.0, low, 1.0, low]).0, [3.0, 4.0, 5.0]);
        assert_eq!(row(Weighting::AverageHard, [low, 1.0, low, 1.0, low]).0, [6.0, 7.0, 8.0]);
        // Infinity is the largest score, and ties with itself.
        assert_eq!(row(Weighting::HardLeft, [1.0, inf, low, inf, 2.0]).0, [3.0, 4.0, 5.0]);
        assert_eq!(row(Weighting::HardRight, [1.0, inf, low, inf, 2.0]).0, [9.0, 10.0, 11.0]);
        assert_eq!(row(Weighting::AverageHard, [1.0, inf, low, inf, 2.0]).0, [6.0, 7.0, 8.0]);
        // Infinity over infinity is not a number.
        assert!(row(Weighting::Softmax, [1.0, inf, low, 0.0, 2.0]).0.iter().all(|x| x.is_nan()));
        // A sum with an infinite weight is infinite, and zero times infinity is not a number.
        assert_eq!(row(Weighting::Relu, [1.0, inf, low, 0.0, 2.0]).0, [inf; 3]);
        assert_eq!(
            row(Weighting::Sigmoid { bias: SigmoidBias::Constant(0.0) }, [low, inf, low, inf, low]).0,
            [12.0, 14.0, 16.0]
        );
    }
}

/// A large negative score is a score and no mask.
#[test]
fn all_scores_far_below_zero_give_the_mean() {
    for score in [-2e4, -1e30, -0.0, 3e4, 1e30] {
        let q = Tensor::filled([1, 1, 19, 1], Layout::Bhsd, 1.0);
        let k = Tensor::filled([1, 1, 40, 1], Layout::Bhsd, score);
        // Whole numbers whose sums and mean are exact.
        let v = Tensor::from_fn([1, 1, 40, 3], Layout::Bhsd, |[_, _, r, c]| (r * 40 + c) as f32);
        for level in levels() {
            for weighting in [Weighting::Softmax, Weighting::AverageHard] {
                let output = run_at(*level, &Case::new(Spec::new(weighting.clone()), &q, &k, &v));
                for row in output.out.chunks(3) {
                    for (c, x) in row.iter().enumerate() {
                        let mean = 780.0 + c as f32;
                        assert!((x - mean).abs() <= mean * f32::EPSILON, "{weighting:?} of {score}: {x}");
                    }
                }
                if let Some(lse) = output.lse {
                    let wanted = f64::from(score) + 40_f64.ln();
                    let far = |lse: &f32| (f64::from(*lse) - wanted).abs() > 1e-6 * wanted.abs();
                    assert!(!lse.iter().any(far), "{lse:?} instead of {wanted}");
                }
            }
        }
    }
}

/// Scores and temperatures of any size, within the tolerance that their size allows.
#[test]
fn huge_and_tiny_numbers() {
    let mut random = Random::new(6);
    for (scale, temperature) in
        [(1e4, 1.0), (1.0, 1e-6), (1e-30, 1.0), (1e-40, 1.0), (1.0, 1e30), (1e-20, 1e-20), (1e6, 1e6), (-1e4, 1e-3)]
    {
        let q = Tensor::normal([1, 1, 35, 8], Layout::Bhsd, &mut random);
        let k = Tensor::normal([1, 1, 50, 8], Layout::Bhsd, &mut random);
        let v = Tensor::normal([1, 1, 50, 5], Layout::Bhsd, &mut random);
        let some = [
            Weighting::Softmax,
            Weighting::HardLeft,
            Weighting::HardRight,
            Weighting::AverageHard,
            Weighting::Sigmoid { bias: SigmoidBias::Constant(0.0) },
            Weighting::Taylor2,
            Weighting::Relu,
        ];
        for weighting in some {
            for level in levels() {
                let temperature = Some(Temperature::Constant(temperature));
                let spec = Spec { scale: Some(scale), temperature, ..Spec::new(weighting.clone()) };
                check(&Case::new(spec, &q, &k, &v), &setup_for(&kernels(*level)[0], 16, 40));
            }
        }
    }
}

/// At a small temperature softmax is average-hard attention, ties included.
#[test]
fn a_tiny_temperature_is_hard() {
    let mut random = Random::new(7);
    let q = Tensor::integers([1, 1, 20, 4], Layout::Bhsd, 2, &mut random);
    let k = Tensor::integers([1, 1, 45, 4], Layout::Bhsd, 2, &mut random);
    let v = Tensor::integers([1, 1, 45, 5], Layout::Bhsd, 9, &mut random);
    for level in levels() {
        let temperature = Some(Temperature::Constant(1e-6));
        let soft = Spec { temperature, scale: Some(1.0), ..Spec::new(Weighting::Softmax) };
        let soft = run_at(*level, &Case::new(soft, &q, &k, &v)).out;
        let hard = run_at(*level, &Case::new(Spec::new(Weighting::AverageHard), &q, &k, &v)).out;
        for (a, b) in soft.iter().zip(&hard) {
            assert!((a - b).abs() <= 1e-5, "{a} {b}");
        }
    }
}

/// Values that are denormal or near the largest number; hard attention copies them bit by bit.
#[test]
fn extreme_values() {
    let extremes = [f32::from_bits(1), -f32::from_bits(0x7f_ffff), f32::MAX, f32::MIN, -0.0, f32::MIN_POSITIVE];
    let q = Tensor::filled([1, 1, 6, 6], Layout::Bhsd, 0.0);
    let mut q = q;
    let mut k = Tensor::filled([1, 1, 6, 6], Layout::Bhsd, 0.0);
    for i in 0..6 {
        *q.at([0, 0, i, i]) = 1.0;
        *k.at([0, 0, i, i]) = 1.0;
    }
    let v = Tensor::from_fn([1, 1, 6, 3], Layout::Bhsd, |[_, _, r, c]| extremes[(r + c) % 6]);
    for level in levels() {
        for weighting in [Weighting::HardLeft, Weighting::HardRight, Weighting::AverageHard] {
            let out = run_at(*level, &Case::new(Spec::new(weighting), &q, &k, &v)).out;
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&out), bits(&v.to_vec()));
        }
    }
}

/// One query and one key.
#[test]
fn one_by_one() {
    for weighting in weightings() {
        for level in levels() {
            for (x, y) in [(0.0, 1.0), (2.0, -1.5), (-3.0, 7.0)] {
                let q = Tensor::filled([1, 1, 1, 1], Layout::Bhsd, x);
                let v = Tensor::filled([1, 1, 1, 1], Layout::Bhsd, y);
                check(&Case::new(Spec::new(weighting.clone()), &q, &q, &v), &setup_of(*level));
            }
        }
    }
}

/// ALiBi at positions beyond what f32, or even i64, can count.
#[test]
fn alibi_far_away() {
    let mut random = Random::new(8);
    let q = Tensor::normal([1, 1, 9, 4], Layout::Bhsd, &mut random);
    let k = Tensor::normal([1, 1, 20, 4], Layout::Bhsd, &mut random);
    let v = Tensor::normal([1, 1, 20, 5], Layout::Bhsd, &mut random);
    for offset in [i64::MAX, i64::MAX - 5, i64::MIN, 1 << 40] {
        for level in levels() {
            let spec =
                Spec { alibi: Some(&[0.5]), align: Some(Align::Offset(offset)), ..Spec::new(Weighting::Softmax) };
            let output = run_at(*level, &Case::new(spec, &q, &k, &v));
            assert!(output.out.iter().all(|x| x.is_finite()), "offset {offset}");
        }
    }
}

/// An additive -inf is a score, and for softmax and selection one without weight: the same bits as a mask gives.
#[test]
fn a_bias_of_minus_infinity() {
    let (queries, keys) = (37, 50);
    let mut random = Random::new(9);
    let q = Tensor::normal([1, 1, queries, 8], Layout::Bhsd, &mut random);
    let k = Tensor::normal([1, 1, keys, 8], Layout::Bhsd, &mut random);
    let v = Tensor::normal([1, 1, keys, 5], Layout::Bhsd, &mut random);
    // Row 3 sees nothing.
    let keep: Vec<u8> = (0..queries * keys).map(|i| u8::from(i / keys != 3 && random.chance(0.6))).collect();
    let shape = [1, 1, queries, keys];
    let minus = Tensor::from_fn(
        shape,
        Layout::Bhsd,
        |[_, _, r, c]| {
            if keep[r * keys + c] == 0 { f32::NEG_INFINITY } else { 0.0 }
        },
    );
    let zero = Tensor::filled(shape, Layout::Bhsd, 0.0);
    for weighting in [Weighting::Softmax, Weighting::HardLeft, Weighting::HardRight, Weighting::AverageHard] {
        for level in levels() {
            let plain = || Spec::new(weighting.clone());
            let biased = Spec { bias: Some(minus.view()), ..plain() };
            let keep = Some(View::bhsd(&keep, shape).expect("as long as its shape"));
            let masked = Spec { bias: Some(zero.view()), keep, ..plain() };
            let output = run_at(*level, &Case::new(biased, &q, &k, &v));
            output.assert_same(&run_at(*level, &Case::new(masked, &q, &k, &v)), &format!("{weighting:?} {level:?}"));
            assert_eq!(output.out[15..20], [0.0; 5]);
        }
    }
}

/// Rows, heads and batch entries that are one and the same in memory.
#[test]
fn inputs_with_strides_of_zero() {
    let mut random = Random::new(10);
    let row = random.normals(8);
    let (repeated, copied) = (View::strided(&row, [2, 2, 20, 8], [0, 0, 0, 1]), row.repeat(80));
    let repeated = repeated.expect("within the data");
    let copied = View::bhsd(&copied, [2, 2, 20, 8]).expect("within the data");
    for weighting in weightings() {
        for level in levels() {
            let case = |view| Case::of(Spec::new(weighting.clone()), view, view, view);
            run_at(*level, &case(repeated)).assert_same(&run_at(*level, &case(copied)), &format!("{weighting:?}"));
            check(&case(repeated), &setup_of(*level));
        }
    }
}

/// Slices that end with the tensor, in allocations of their own: a reader past the end is out of bounds for sanitizers.
#[test]
fn allocations_of_exact_length() {
    let mut random = Random::new(11);
    for (queries, keys, d) in [(1, 1, 1), (5, 7, 3), (33, 21, 17), (49, 50, 40)] {
        let q = random.normals(queries * d).into_boxed_slice();
        let k = random.normals(keys * d).into_boxed_slice();
        let view = |data, rows| View::bhsd(data, [1, 1, rows, d]).expect("as long as its shape");
        for weighting in weightings() {
            for level in levels() {
                let spec = Spec { causal: Some(Align::BottomRight), ..Spec::new(weighting.clone()) };
                check(&Case::of(spec, view(&q, queries), view(&k, keys), view(&k, keys)), &setup_of(*level));
            }
        }
    }
}
