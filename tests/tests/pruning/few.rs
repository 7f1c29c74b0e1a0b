//! Few queries, which a rows kernel computes.

use rayon::ThreadPoolBuilder;
use regard::{
    Align, Attention, Execution, KeyIndex, Plan, Problem, Setup, Split, Temperature, View, Weighting, bf16, f16,
    quantise,
};
use regard_tests::{SLOW, levels, same, setup_of};

use super::data::{D, D_V, Data, SELECTIONS, check, run_with};

/// Numbers of queries that reach every register tile: 1 to 15.
fn queries() -> impl Iterator<Item = usize> {
    (1..=15).step_by(if SLOW { 5 } else { 1 })
}

fn splits() -> [Split; 3] {
    [Split::Never, Split::Keys(100), Split::Auto]
}

fn options(setup: &Setup, weighting: &Weighting, split: Split) -> Attention<'static> {
    Attention::new(weighting.clone()).isa(setup.level.isa()).split(split)
}

#[test]
fn selections_are_the_same() {
    for setup in levels().iter().map(|level| setup_of(*level)) {
        for weighting in &SELECTIONS {
            for queries in queries() {
                for (heads, keys) in [([1, 1], 700), ([4, 2], 2100), ([6, 1], 64), ([12, 1], 1337)] {
                    for (sigma, split) in [0.05, 0.3, 0.8].into_iter().zip(splits()) {
                        let data = Data::clustered(heads, [queries, keys], sigma);
                        check(&data, &options(&setup, weighting, split), &setup, "few queries");
                    }
                }
            }
        }
    }
}

/// Equal keys in many blocks, or one in several: every block that holds the largest score is looked at, on whichever side of it.
#[test]
fn ties_between_blocks_are_the_same() {
    for setup in levels().iter().map(|level| setup_of(*level)) {
        for weighting in &SELECTIONS {
            for queries in [1, 3, 8, 15] {
                for split in splits() {
                    let options = options(&setup, weighting, split);
                    let mut data = Data::clustered([2, 1], [queries, 1500], 0.1);
                    data.k.copy_within(5 * 64 * D..6 * 64 * D, 64 * D);
                    data.k.copy_within(5 * 64 * D..6 * 64 * D, 17 * 64 * D);
                    data.k.copy_within(300 * D..301 * D, 1200 * D);
                    data.k.copy_within(300 * D..301 * D, 3 * D);
                    data.q[..D].copy_from_slice(&data.k[300 * D..301 * D]);
                    check(&data, &options, &setup, "ties");
                    for most in [0, 1, 2] {
                        check(&Data::tied([queries, 900], most), &options, &setup, "whole numbers");
                    }
                    data.q.fill(0.0);
                    check(&data, &options, &setup, "queries of zero");
                    data.k.fill(1.0);
                    check(&data, &options, &setup, "equal keys");
                }
            }
        }
    }
}

#[test]
fn broken_numbers_are_not_left_out() {
    for setup in levels().iter().map(|level| setup_of(*level)) {
        for weighting in &SELECTIONS {
            let options = options(&setup, weighting, Split::Auto);
            for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut data = Data::clustered([2, 1], [4, 1500], 0.1);
                data.k[1200 * D + 3] = broken;
                check(&data, &options, &setup, "a broken key");
                data.q[2 * D] = broken;
                check(&data, &options, &setup, "a broken key and query");
                let mut data = Data::clustered([2, 1], [4, 1500], 0.1);
                data.q[2 * D] = broken;
                data.v[333 * D_V] = broken;
                check(&data, &options, &setup, "a broken query and value");
            }
            for size in [1e-38_f32, 1e-23, 1e-20, 1e18, 3e18, 3e19, 1e30] {
                let mut data = Data::clustered([1, 1], [4, 700], 0.1);
                data.k.iter_mut().for_each(|x| *x *= size);
                data.q.iter_mut().for_each(|x| *x *= size);
                check(&data, &options, &setup, &format!("times {size}"));
            }
        }
    }
}

#[test]
fn masks_take_keys_away() {
    let lengths = [[1500_usize], [129], [0], [64], [1001]];
    for setup in levels().iter().map(|level| setup_of(*level)) {
        for weighting in &SELECTIONS {
            for split in splits() {
                let data = Data::clustered([4, 2], [7, 1500], 0.1);
                let options = || options(&setup, weighting, split).scale(-1.5);
                for align in [Align::BottomRight, Align::Offset(700), Align::Offset(-3)] {
                    check(&data, &options().causal(align), &setup, "causal");
                    check(&data, &options().causal(align).window(Some(300), None), &setup, "a window");
                    check(
                        &data,
                        &options().causal(align).window(Some(20), None),
                        &setup,
                        "a window without a whole block",
                    );
                }
                for lengths in &lengths {
                    check(&data, &options().key_lengths(lengths), &setup, "lengths");
                    check(&data, &options().key_lengths(lengths).causal(Align::BottomRight), &setup, "lengths, causal");
                }
            }
        }
    }
}

#[test]
fn element_types_are_indexed_as_they_are_read() {
    let data = Data::clustered([4, 1], [2, 1500], 0.1);
    for setup in levels().iter().map(|level| setup_of(*level)) {
        for weighting in SELECTIONS.iter().chain([&Weighting::Softmax]) {
            let options = options(&setup, weighting, Split::Auto).temperature(Temperature::Constant(0.01));
            let compare = |problem: Problem<'_>, index: KeyIndex| {
                let expected = run_with(&problem, &setup, Execution::Serial);
                let indexed = problem.with_index(&index).unwrap();
                let found = run_with(&indexed, &setup, Execution::Serial);
                if weighting.name() == "softmax" {
                    assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 1e-5), "{weighting:?}");
                } else {
                    same(&found, &expected, "another element type");
                }
            };
            let halves = |data: &[f32]| data.iter().map(|x| f16::from_f32(*x)).collect::<Vec<_>>();
            let brains = |data: &[f32]| data.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>();
            let (q, k, v) = (halves(&data.q), halves(&data.k), halves(&data.v));
            let q = View::bhsd(&q, data.q().shape()).unwrap();
            let (k, v) = (View::bhsd(&k, data.k().shape()).unwrap(), View::bhsd(&v, data.v().shape()).unwrap());
            compare(Problem::new(&options, q, k, v).unwrap(), KeyIndex::with_values(k, v).unwrap());
            let (q, k, v) = (brains(&data.q), brains(&data.k), brains(&data.v));
            let q = View::bhsd(&q, data.q().shape()).unwrap();
            let (k, v) = (View::bhsd(&k, data.k().shape()).unwrap(), View::bhsd(&v, data.v().shape()).unwrap());
            compare(Problem::new(&options, q, k, v).unwrap(), KeyIndex::with_values(k, v).unwrap());
            let (k, v) = (quantise(data.k()), quantise(data.v()));
            let index = KeyIndex::with_values(k.tensor(), v.tensor()).unwrap();
            compare(Problem::new(&options, data.q(), k.tensor(), v.tensor()).unwrap(), index);
        }
    }
}

#[test]
fn softmax_stays_within_its_bound() {
    let sinks = [1.0, 40.0, -3.0, 0.0];
    for setup in levels().iter().map(|level| setup_of(*level)) {
        for queries in [1, 2, 5, 15] {
            for sigma in [0.05, 0.4, 3.0] {
                let data = Data::clustered([4, 2], [queries, 1500], sigma);
                for temperature in [1.0, 1.0 / 16.0, 1e-3] {
                    for split in splits() {
                        let options = options(&setup, &Weighting::Softmax, split);
                        let options = options.temperature(Temperature::Constant(temperature));
                        for options in
                            [options.clone(), options.clone().sinks(&sinks), options.causal(Align::BottomRight)]
                        {
                            let problem = data.problem(&options);
                            let index = data.index();
                            let indexed = problem.clone().with_index(&index).unwrap();
                            let dense = run_with(&problem, &setup, Execution::Serial);
                            let pruned = run_with(&indexed, &setup, Execution::Serial);
                            let most = data.v.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
                            let allowed = most * (2.0_f32.powi(-25) + 16.0 * f32::EPSILON);
                            for (i, (a, b)) in pruned.iter().zip(&dense).enumerate() {
                                assert!((a - b).abs() <= allowed, "{options:?} sigma {sigma}: {i} is {a}, not {b}");
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A value behind a weight of nothing is felt if it is NaN or Inf.
#[test]
fn softmax_feels_broken_values() {
    for setup in levels().iter().map(|level| setup_of(*level)) {
        for broken in [f32::NAN, f32::INFINITY] {
            let mut data = Data::clustered([2, 1], [2, 1500], 0.1);
            data.v[1333 * D_V + 2] = broken;
            let options = options(&setup, &Weighting::Softmax, Split::Auto).temperature(Temperature::Constant(0.01));
            let problem = data.problem(&options);
            let index = data.index();
            let found = run_with(&problem.clone().with_index(&index).unwrap(), &setup, Execution::Serial);
            let expected = run_with(&problem, &setup, Execution::Serial);
            for (a, b) in found.iter().zip(&expected) {
                assert!((a.is_nan() && b.is_nan()) || a == b || (a - b).abs() < 1e-5, "{a} for {b}");
            }
        }
    }
}

/// Threads change no bit, nor does what the other rows are: they want other blocks.
#[test]
fn results_do_not_depend_on_threads_or_company() {
    let pool = ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    for setup in levels().iter().map(|level| setup_of(*level)) {
        for weighting in SELECTIONS.iter().chain([&Weighting::Softmax]) {
            for queries in [1, 3, 15] {
                for split in splits() {
                    let data = Data::clustered([4, 2], [queries, 3000], 0.2);
                    let options = options(&setup, weighting, split).temperature(Temperature::Constant(1.0 / 16.0));
                    let index = data.index();
                    let indexed = data.problem(&options).with_index(&index).unwrap();
                    let serial = run_with(&indexed, &setup, Execution::Serial);
                    same(&run_with(&indexed, &setup, Execution::Pool(&pool)), &serial, "threads");
                    // Row 0 of each head stays, and all others become those of other clusters, or noise.
                    let mut other = Data::clustered([4, 2], [queries, 3000], 0.2);
                    for (row, q) in other.q.chunks_exact_mut(D).enumerate().filter(|(row, _)| row % queries > 0) {
                        let key = row * 631 % 3000;
                        q.copy_from_slice(&data.k[key * D..][..D]);
                        q.iter_mut().for_each(|x| *x *= if row % 5 == 0 { 0.01 } else { 1.0 });
                    }
                    let indexed = other.problem(&options).with_index(&index).unwrap();
                    let found = run_with(&indexed, &setup, Execution::Serial);
                    for head in 0..4 {
                        let row = head * queries * D_V..(head * queries + 1) * D_V;
                        same(&found[row.clone()], &serial[row], "other company");
                    }
                }
            }
        }
    }
}

/// Without it, the other tests would test nothing.
#[test]
fn keys_that_changed_behind_its_back_are_not_seen() {
    for level in levels() {
        for weighting in [Weighting::HardLeft, Weighting::AverageHard, Weighting::Softmax] {
            for split in splits() {
                let mut data = Data::clustered([3, 1], [4, 1600], 0.02);
                let index = data.index();
                let setup = setup_of(*level);
                let options = options(&setup, &weighting, split).temperature(Temperature::Constant(0.01));
                let before = run_with(&data.problem(&options), &setup, Execution::Serial);
                let first: Vec<f32> = data.k[..D].iter().map(|x| 50.0 * x).collect();
                data.k[1550 * D..1551 * D].copy_from_slice(&first);
                let dense = run_with(&data.problem(&options), &setup, Execution::Serial);
                let indexed = data.problem(&options).with_index(&index).unwrap();
                let pruned = run_with(&indexed, &setup, Execution::Serial);
                let rows = |a: &[f32], b: &[f32]| a.chunks(D_V).zip(b.chunks(D_V)).filter(|(a, b)| a != b).count();
                assert!(rows(&dense, &before) > 0, "the key is seen without an index");
                assert!(rows(&pruned, &before) < rows(&dense, &before), "and by fewer rows with one: {level:?}");
            }
        }
    }
}

#[test]
fn the_plan_says_whether_the_index_is_of_use() {
    let data = Data::clustered([2, 1], [2, 400], 0.1);
    let index = data.index();
    let options = Attention::new(Weighting::HardLeft);
    let problem = data.problem(&options).with_index(&index).unwrap();
    assert!(Plan::new(&problem, Setup::global().unwrap()).explain().to_string().contains("leaves out blocks"));
}
