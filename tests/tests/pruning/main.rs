//! An index of keys leaves out what cannot matter, and nothing else: selections are the same bit for bit, sums of weights within
//! the bound that they state, whatever keys, queries, masks, levels and sizes.
#![forbid(unsafe_code)]

use rayon::ThreadPoolBuilder;
use regard::{
    Align, Attention, Error, Execution, KeyIndex, Keys, Pages, Plan, Problem, Queries, Setup, Split, Temperature, View,
    ViewMut, Weighting, bf16, f16, quantise, reference,
};
use regard_kernels::table::kernels;
use regard_tests::{Random, SLOW, levels, same, setup_for, setup_of};

mod bound;
mod data;
mod few;

use data::{D, D_V, Data, SELECTIONS, at, check, run_with, setups};

#[test]
fn selections_of_clustered_keys_are_the_same() {
    let sizes: &[[usize; 2]] =
        if SLOW { &[[70, 300]] } else { &[[16, 130], [33, 64], [70, 300], [300, 1000], [1, 500], [40, 1]] };
    for setup in setups() {
        for weighting in &SELECTIONS {
            for size in sizes {
                for sigma in [0.05, 0.6] {
                    check(&Data::clustered([2, 1], *size, sigma), &at(&setup, weighting), &setup, "clustered");
                }
            }
        }
    }
}

#[test]
fn selections_of_other_keys_are_the_same() {
    for setup in setups() {
        for weighting in &SELECTIONS {
            let random = &mut Random::new(3);
            let size = [70, 300];
            let mut data = Data::clustered([4, 2], size, 30.0);
            check(&data, &at(&setup, weighting), &setup, "without clusters");
            // Blocks that are all alike: equal keys in different blocks, equal bounds.
            let block: Vec<f32> = random.normals(64 * D);
            data.k.iter_mut().enumerate().for_each(|(i, x)| *x = block[i % block.len()]);
            check(&data, &at(&setup, weighting), &setup, "the same block again and again");
            data.k.fill(1.5);
            check(&data, &at(&setup, weighting), &setup, "equal keys");
            data.k.fill(0.0);
            check(&data, &at(&setup, weighting), &setup, "keys of zero");
            for most in [0, 1, 2] {
                check(&Data::tied(size, most), &at(&setup, weighting), &setup, "whole numbers");
            }
            let mut data = Data::clustered([2, 2], size, 0.1);
            data.q[..10 * D].fill(0.0);
            data.q[20 * D..30 * D].fill(-0.0);
            check(&data, &at(&setup, weighting), &setup, "queries of zero");
            check(&data, &at(&setup, weighting).scale(-2.0), &setup, "a negative scale");
            check(&data, &at(&setup, weighting).scale(0.0), &setup, "a scale of zero");
        }
    }
}

/// Blocks are not looked at in the order of keys, and rows that want one by chance are gathered: of equal scores the key decides
/// all the same.
#[test]
fn ties_between_blocks_are_the_same() {
    for setup in setups() {
        for weighting in &SELECTIONS {
            for sigma in [0.1, 0.5, 0.8] {
                let mut data = Data::clustered([1, 1], if SLOW { [100, 500] } else { [200, 1100] }, sigma);
                let blocks = data.keys / 64;
                // Keys of one cluster also lie in others, before and after it, and queries are keys.
                for block in 0..blocks {
                    let key = block * 64 + block * 11 % 64;
                    for other in [(block * 5 + 1) % blocks, (block * 7 + 3) % blocks] {
                        data.k.copy_within(key * D..(key + 1) * D, (other * 64 + block * 13 % 64) * D);
                    }
                }
                for (row, q) in data.q.chunks_exact_mut(D).enumerate() {
                    let block = row % blocks;
                    q.copy_from_slice(&data.k[(block * 64 + block * 11 % 64) * D..][..D]);
                    q.iter_mut().for_each(|x| *x *= 2.0);
                }
                check(&data, &at(&setup, weighting), &setup, "keys in several blocks");
                check(&data, &at(&setup, weighting).causal(Align::BottomRight), &setup, "the same, causal");
            }
        }
    }
}

/// The same clusters at the ends of the range of numbers: products underflow, and overflow.
#[test]
fn selections_of_tiny_and_huge_keys_are_the_same() {
    for setup in setups() {
        for weighting in &SELECTIONS {
            for size in [1e-38_f32, 1e-23, 1e-20, 1e18, 3e18, 3e19, 1e30] {
                let mut data = Data::clustered([1, 1], [48, 260], 0.1);
                data.k.iter_mut().for_each(|x| *x *= size);
                data.q.iter_mut().for_each(|x| *x *= size);
                check(&data, &at(&setup, weighting), &setup, &format!("times {size}"));
            }
        }
    }
}

/// NaN and Inf in keys and queries, next to clusters that are left out.
#[test]
fn broken_keys_and_queries_are_not_left_out() {
    for setup in setups() {
        for weighting in &SELECTIONS {
            for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut data = Data::clustered([1, 1], [70, 520], 0.1);
                data.k[200 * D + 3] = broken;
                check(&data, &at(&setup, weighting), &setup, "a broken key");
                data.q[9 * D] = broken;
                check(&data, &at(&setup, weighting), &setup, "a broken key and query");
                let mut data = Data::clustered([1, 1], [70, 520], 0.1);
                data.q[9 * D] = broken;
                data.v[333 * D_V] = broken;
                check(&data, &at(&setup, weighting), &setup, "a broken query and value");
            }
        }
    }
}

#[test]
fn masks_take_keys_away() {
    let lengths = [[700_usize], [129], [0], [64], [200]];
    for setup in setups() {
        for weighting in &SELECTIONS {
            let data = Data::clustered([2, 1], [100, 700], 0.1);
            let options = || at(&setup, weighting);
            for align in [Align::TopLeft, Align::BottomRight, Align::Offset(-20)] {
                check(&data, &options().causal(align), &setup, "causal");
                check(&data, &options().causal(align).strict().window(Some(90), None), &setup, "a window");
                check(&data, &options().anti_causal(align), &setup, "anti-causal");
            }
            for lengths in &lengths {
                check(&data, &options().key_lengths(lengths), &setup, "lengths");
                check(&data, &options().key_lengths(lengths).causal(Align::BottomRight), &setup, "lengths, causal");
            }
            let keep: Vec<u8> = (0..700).map(|i| u8::from(i % 3 > 0)).collect();
            let keep = View::bhsd(&keep, [1, 1, 1, 700]).unwrap();
            check(&data, &options().keep_mask(keep), &setup, "a mask tensor, which makes no use of the index");
            check(&data, &options().softcap(3.0), &setup, "a cap, which makes no use of the index");
        }
    }
}

/// Spans, threads and the order in which rows are taken change no bit; nor does company.
#[test]
fn results_do_not_depend_on_threads_or_company() {
    let pool = ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let queries = if SLOW { 100 } else { 700 };
    let data = Data::clustered([4, 2], [queries, 900], 0.1);
    let index = data.index();
    let low = Temperature::Constant(1.0 / 16.0);
    for level in levels() {
        let setup = setup_of(*level);
        for options in [
            at(&setup, &Weighting::HardRight),
            at(&setup, &Weighting::AverageHard),
            at(&setup, &Weighting::Softmax).temperature(low),
            at(&setup, &Weighting::Softmax).temperature(low).causal(Align::BottomRight),
            at(&setup, &Weighting::Softmax).temperature(low).window(Some(100), Some(100)).align(Align::Offset(50)),
        ] {
            let indexed = data.problem(&options).with_index(&index).unwrap();
            let serial = run_with(&indexed, &setup, Execution::Serial);
            same(&run_with(&indexed, &setup, Execution::Pool(&pool)), &serial, "threads");
            for kernel in kernels(*level) {
                // Portable numerics fix the key block; the profile names kernel and query block.
                let key_block = Plan::new(&indexed, &setup).key_block();
                let other = setup_for(kernel, key_block, 48);
                same(&run_with(&indexed, &other, Execution::Serial), &serial, kernel.name);
            }
            if options_are_full(&options) {
                // Every row alone among other rows.
                let some = 40;
                let q: Vec<f32> =
                    (0..4).flat_map(|head| &data.q[(head * queries + 30) * D..][..some * D]).copied().collect();
                let q = View::bhsd(&q, [1, 4, some, D]).unwrap();
                let fewer = Problem::new(&options, q, data.k(), data.v()).unwrap().with_index(&index).unwrap();
                let key_block = Plan::new(&indexed, &setup).key_block();
                let forced = setup_for(&kernels(*level)[0], key_block, 64);
                let found = run_with(&fewer, &forced, Execution::Serial);
                let all = run_with(&indexed, &forced, Execution::Serial);
                for head in 0..4 {
                    let expected = &all[(head * queries + 30) * D_V..][..some * D_V];
                    same(&found[head * some * D_V..][..some * D_V], expected, "other company");
                }
            }
        }
        for split in [Split::Keys(100), Split::Auto] {
            let options = Attention::new(Weighting::AverageHard).isa(level.isa()).split(split);
            check(&data, &options, &setup, "spans");
        }
    }
}

fn options_are_full(options: &Attention<'_>) -> bool {
    let text = format!("{options:?}");
    text.contains("causal: None, anti_causal: None") && text.contains("window: None")
}

/// Softmax leaves out weights of less than 2^-26 in all, and the rest is rounding.
#[test]
fn softmax_stays_within_its_bound() {
    let size = if SLOW { [70, 300] } else { [200, 900] };
    let sinks = [1.0, 40.0];
    for setup in setups() {
        for sigma in [0.05, 0.4, 1.0, 3.0] {
            let data = Data::clustered([2, 1], size, sigma);
            for temperature in [1.0, 0.25, 1.0 / 16.0, 1e-3] {
                let options = at(&setup, &Weighting::Softmax).temperature(Temperature::Constant(temperature));
                for options in [options.clone(), options.clone().sinks(&sinks), options.causal(Align::BottomRight)] {
                    let problem = data.problem(&options);
                    let index = data.index();
                    let indexed = problem.clone().with_index(&index).unwrap();
                    let dense = run_with(&problem, &setup, Execution::Serial);
                    let pruned = run_with(&indexed, &setup, Execution::Serial);
                    let most = data.v.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
                    for (i, (a, b)) in pruned.iter().zip(&dense).enumerate() {
                        // 2^-25 for what is left out, and both were rounded.
                        let allowed = most * (2.0_f32.powi(-25) + 16.0 * f32::EPSILON);
                        assert!((a - b).abs() <= allowed, "{options:?} sigma {sigma}: {i} is {a}, not {b}");
                    }
                }
            }
        }
    }
}

/// A value behind a weight of nothing is felt if it is NaN or Inf, with an index as without.
#[test]
fn softmax_feels_broken_values() {
    for setup in setups() {
        for broken in [f32::NAN, f32::INFINITY] {
            let mut data = Data::clustered([1, 1], [70, 520], 0.1);
            data.v[333 * D_V + 2] = broken;
            let options = at(&setup, &Weighting::Softmax).temperature(Temperature::Constant(0.01));
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

/// Keys of other element types, as they are widened.
#[test]
fn element_types_are_indexed_as_they_are_read() {
    let data = Data::clustered([2, 1], [70, 520], 0.1);
    for level in levels() {
        let setup = setup_of(*level);
        for weighting in &SELECTIONS {
            let options = at(&setup, weighting);
            let halves = |data: &[f32]| data.iter().map(|x| f16::from_f32(*x)).collect::<Vec<_>>();
            let brains = |data: &[f32]| data.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>();
            let same = |problem: Problem<'_>, index: KeyIndex| {
                let expected = run_with(&problem, &setup, Execution::Serial);
                let indexed = problem.with_index(&index).unwrap();
                same(&run_with(&indexed, &setup, Execution::Serial), &expected, "another element type");
            };
            let (k, v) = (halves(&data.k), halves(&data.v));
            let (k, v) = (View::bhsd(&k, data.k().shape()).unwrap(), View::bhsd(&v, data.v().shape()).unwrap());
            same(Problem::new(&options, data.q(), k, v).unwrap(), KeyIndex::new(k).unwrap());
            let (k, v) = (brains(&data.k), brains(&data.v));
            let (k, v) = (View::bhsd(&k, data.k().shape()).unwrap(), View::bhsd(&v, data.v().shape()).unwrap());
            same(Problem::new(&options, data.q(), k, v).unwrap(), KeyIndex::new(k).unwrap());
            let (k, v) = (quantise(data.k()), quantise(data.v()));
            same(Problem::new(&options, data.q(), k.tensor(), v.tensor()).unwrap(), KeyIndex::new(k.tensor()).unwrap());
        }
    }
}

/// It does leave out keys: those that change behind its back are not seen. That is what the documentation warns of, and the
/// proof that the other tests test something.
#[test]
fn keys_that_changed_behind_its_back_are_not_seen() {
    for level in levels() {
        for weighting in [Weighting::HardLeft, Weighting::Softmax] {
            let mut data = Data::clustered([1, 1], [64, 640], 0.02);
            let index = data.index();
            let options =
                Attention::new(weighting).isa(level.isa()).temperature(Temperature::Constant(0.01)).split(Split::Never);
            let before = run_with(&data.problem(&options), &setup_of(*level), Execution::Serial);
            // All keys of the last block become the best of all for every query of other clusters.
            let first: Vec<f32> = data.k[..D].iter().map(|x| 50.0 * x).collect();
            data.k[600 * D..601 * D].copy_from_slice(&first);
            let dense = run_with(&data.problem(&options), &setup_of(*level), Execution::Serial);
            let pruned =
                run_with(&data.problem(&options).with_index(&index).unwrap(), &setup_of(*level), Execution::Serial);
            let rows = |a: &[f32], b: &[f32]| a.chunks(D_V).zip(b.chunks(D_V)).filter(|(a, b)| a != b).count();
            assert!(rows(&dense, &before) > 0, "the key is seen without an index");
            assert!(rows(&pruned, &before) < rows(&dense, &before), "and by fewer rows with one: {level:?}");
        }
    }
}

#[test]
fn an_index_of_other_keys_is_an_error() {
    let data = Data::clustered([2, 1], [20, 100], 0.1);
    let options = Attention::new(Weighting::HardLeft);
    let problem = data.problem(&options);
    let other = |shape: [usize; 4]| {
        let keys = vec![0.0; shape.iter().product()];
        KeyIndex::new(View::bhsd(&keys, shape).unwrap()).unwrap()
    };
    for (shape, dimension, found, expected) in [
        ([2, 1, 100, D], "batch", 2, 1),
        ([1, 2, 100, D], "heads", 2, 1),
        ([1, 1, 99, D], "keys", 99, 100),
        ([1, 1, 100, D + 1], "columns", D + 1, D),
    ] {
        let index = other(shape);
        let error = problem.clone().with_index(&index).unwrap_err();
        let wanted = Error::Dimension { tensor: "the index", dimension, found, expected, reason: "k" };
        assert_eq!(error, wanted);
    }
    let values = vec![0.0; 100 * 3];
    let index = KeyIndex::with_values(data.k(), View::bhsd(&values, [1, 1, 100, 3]).unwrap()).unwrap();
    let error = problem.clone().with_index(&index).unwrap_err();
    assert!(matches!(error, Error::Dimension { dimension: "columns of v", found: 3, expected: D_V, .. }), "{error}");
    let short = View::bhsd(&values, [1, 1, 99, 3]).unwrap();
    assert!(matches!(KeyIndex::with_values(data.k(), short), Err(Error::Dimension { tensor: "v", .. })));
    let turned = View::strided(&data.k, [1, 1, 50, D], [0, 0, 1, 50]).unwrap();
    assert!(matches!(KeyIndex::new(turned), Err(Error::RowStride { tensor: "k", stride: 50 })));
    // A plan without an index is not one with an index.
    let index = data.index();
    let indexed = problem.clone().with_index(&index).unwrap();
    let plan = Plan::new(&problem, Setup::global().unwrap());
    let mut out = vec![7.0; 2 * 20 * D_V];
    let view = ViewMut::bhsd(&mut out, [1, 2, 20, D_V]).unwrap();
    let error = plan.run(&indexed, view, None, &mut vec![0.0; 1 << 20], Execution::Serial).unwrap_err();
    assert!(matches!(error, Error::Plan { .. }), "{error}");
    assert!(out.iter().all(|x| *x == 7.0));
    // Keys on pages have no index.
    let pages = Pages { table: &[0], pages_per_sequence: 1, lengths: &[100] };
    let offsets = Queries::Padded;
    let paged = Problem::ragged(&options, data.q(), offsets, data.k(), data.v(), Keys::Paged(pages)).unwrap();
    assert_eq!(paged.with_index(&index).unwrap_err(), Error::IndexedKeys { found: "paged" });
}

/// Keys of one batch entry that serve all.
#[test]
fn a_batch_may_share_its_keys_and_their_index() {
    let data = Data::clustered([2, 1], [90, 400], 0.1);
    let q: Vec<f32> = data.q.iter().chain(data.q.iter().rev()).copied().collect();
    let q = View::bhsd(&q, [2, 2, 90, D]).unwrap();
    let options = Attention::new(Weighting::HardRight);
    let (k, v) = (data.k().broadcast([2, 1, 400, D]).unwrap(), data.v().broadcast([2, 1, 400, D_V]).unwrap());
    let problem = Problem::new(&options, q, k, v).unwrap();
    let index = data.index();
    let indexed = problem.clone().with_index(&index).unwrap();
    same(&indexed.attention().unwrap(), &problem.attention().unwrap(), "a shared index");
}

#[test]
fn the_plan_says_whether_the_index_is_of_use() {
    let data = Data::clustered([2, 1], [90, 400], 0.1);
    let explain = |options: &Attention<'_>, index: &KeyIndex| {
        let problem = data.problem(options).with_index(index).unwrap();
        Plan::new(&problem, Setup::global().unwrap()).explain().to_string()
    };
    let (with_values, without) = (data.index(), KeyIndex::new(data.k()).unwrap());
    assert!(explain(&Attention::new(Weighting::HardLeft), &without).contains("leaves out blocks"));
    assert!(explain(&Attention::softmax(), &with_values).contains("leaves out blocks"));
    assert!(explain(&Attention::softmax(), &without).contains("of no use: it does not know the values"));
    assert!(explain(&Attention::new(Weighting::Relu), &with_values).contains("of no use"));
    assert!(explain(&Attention::softmax().softcap(1.0), &with_values).contains("of no use: scores have terms"));
}

/// ReLU leaves out values whose weights are all zero, which changes nothing: not where values are NaN or Inf, nor elsewhere.
#[test]
fn relu_feels_values_behind_weights_of_zero() {
    for setup in setups() {
        for weighting in [Weighting::Relu, Weighting::ReluSquared] {
            for queries in [3, 40] {
                let mut data = Data::clustered([1, 1], [queries, 300], 0.1);
                // Positive scores with some keys in the middle only.
                data.q.iter_mut().for_each(|x| *x = x.abs() + 0.1);
                let key_sign = |key: usize| if (100..120).contains(&key) || key == 250 { 1.0 } else { -1.0 };
                data.k.iter_mut().enumerate().for_each(|(i, x)| *x = key_sign(i / D) * (x.abs() + 0.1));
                let options = at(&setup, &weighting);
                let close = |data: &Data, what: &str| {
                    let found = run_with(&data.problem(&options), &setup, Execution::Serial);
                    let expected = reference::attention(&data.problem(&options), setup.level.isa());
                    for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
                        let same = (a.is_nan() && b.is_nan()) || (f64::from(*a) - b).abs() <= 1e-4 * (1.0 + b.abs());
                        assert!(
                            same || f64::from(*a) == *b,
                            "{what} {weighting:?} {:?}: {i} is {a}, not {b}",
                            setup.level
                        );
                    }
                };
                close(&data, "some positive scores");
                data.v[7 * D_V + 1] = f32::NAN;
                data.v[290 * D_V + 3] = f32::INFINITY;
                close(&data, "broken values");
                data.k.iter_mut().for_each(|x| *x = -x.abs());
                close(&data, "broken values and no positive score");
                data.v.iter_mut().for_each(|x| *x = if x.is_finite() { *x } else { 0.0 });
                close(&data, "no positive score");
                let found = run_with(&data.problem(&options), &setup, Execution::Serial);
                assert!(found.iter().all(|x| x.to_bits() == 0), "zeros");
            }
        }
    }
}
