//! The same bits whatever company a row is computed in: threads, batch, heads, blocks, layouts.
#![forbid(unsafe_code)]

use rayon::{ThreadPool, ThreadPoolBuilder};
use regard::{Align, Dtype, Execution, Temperature, View, Weighting};
use regard_kernels::table::{Kernel, kernels};
use regard_simd::Extension;
use regard_tests::{
    Blocks, Case, Engine, Layout, Output, Random, SLOW, Spec, Stored, Tensor, engines, every_kernel, levels, run,
    run_into, setup_for, setup_of, weightings,
};

fn pool(threads: usize) -> ThreadPool {
    ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be had")
}

/// One weighting of each kind of state, with masks and terms.
fn specs<'a>(slopes: &'a [f32], temperatures: &'a [f32]) -> Vec<Spec<'a>> {
    let mut all = Vec::new();
    for weighting in weightings() {
        let plain = || Spec::new(weighting.clone());
        all.push(plain());
        all.push(Spec { causal: Some(Align::BottomRight), ..plain() });
        let window = Some((Some(20), Some(5)));
        let temperature = Some(Temperature::PerHead(temperatures));
        all.push(Spec { window, align: Some(Align::BottomRight), alibi: Some(slopes), temperature, ..plain() });
    }
    all
}

const SLOPES: [f32; 4] = [0.5, 0.25, 0.125, -0.0625];
const TEMPERATURES: [f32; 4] = [1.0, 0.5, 2.0, 0.7];

#[test]
fn any_number_of_threads() {
    let mut random = Random::new(1);
    // More work than stays on one thread.
    let (queries, keys, d) = (150, 180, 32);
    let q = Tensor::normal([2, 4, queries, d], Layout::Bshd, &mut random);
    let k = Tensor::normal([2, 2, keys, d], Layout::Bshd, &mut random);
    let v = Tensor::normal([2, 2, keys, d], Layout::Bshd, &mut random);
    let pools: Vec<_> = (1..=8).map(pool).collect();
    let list = specs(&SLOPES, &TEMPERATURES);
    for spec in list.iter().step_by(if SLOW { 9 } else { 1 }) {
        let case = Case::new(spec.clone(), &q, &k, &v);
        let problem = case.problem();
        for level in levels() {
            let setup = setup_for(&kernels(*level)[0], 48, 40);
            let serial = run(&problem, &setup, Execution::Serial);
            for pool in &pools {
                let threads = pool.current_num_threads();
                let what = format!("{threads} threads, {level:?}, {spec:?}");
                run(&problem, &setup, Execution::Pool(pool)).assert_same(&serial, &what);
                // From within a pool, and a pool within a pool.
                pool.install(|| run(&problem, &setup, Execution::CurrentPool)).assert_same(&serial, &what);
            }
            let nested = pools[2].install(|| run(&problem, &setup, Execution::Pool(&pools[4])));
            nested.assert_same(&serial, "nested pools");
        }
    }
}

/// The widest query block that a plan leaves as it is however few tasks there are.
fn widest(kernel: &Kernel) -> usize {
    4 * kernel.tile.rows - 1
}

/// The rows of one head of an output.
fn head(output: &Output, problem: &regard::Problem<'_>, [batch, head]: [usize; 2]) -> Output {
    let shape = problem.shape();
    let first = (batch * shape.query_heads + head) * shape.queries;
    let rows = first..first + shape.queries;
    Output {
        out: output.out[rows.start * shape.value_dim..rows.end * shape.value_dim].to_vec(),
        lse: output.lse.as_ref().map(|lse| lse[rows].to_vec()),
        ..output.clone()
    }
}

/// A sequence alone, and the same in a padded batch with other heads and other lengths.
#[test]
fn any_batch() {
    let mut random = Random::new(2);
    let (queries, keys, d, d_v) = (37, 61, 9, 11);
    let q = Tensor::normal([3, 4, queries, d], Layout::Bshd, &mut random);
    let k = Tensor::normal([3, 2, keys, d], Layout::Padded, &mut random);
    let v = Tensor::normal([3, 2, keys, d_v], Layout::Bhsd, &mut random);
    let lengths = [61, 17, 40];
    for spec in specs(&SLOPES, &TEMPERATURES) {
        // What is said for each head is said for one below.
        let spec = Spec { key_lengths: Some(&lengths), ..spec };
        let problem = Case::new(spec.clone(), &q, &k, &v).problem();
        for level in levels() {
            // Forced blocks, and those that the model gives, which may not depend on the company either.
            for setup in [setup_for(&kernels(*level)[0], 16, 24), setup_of(*level)] {
                let batch = run(&problem, &setup, Execution::Serial);
                for (b, h) in [(0, 3), (1, 0), (2, 1)] {
                    let alone_q = q.head(b, h);
                    let (alone_k, alone_v) =
                        (k.head(b, h / 2).rows(0, lengths[b]), v.head(b, h / 2).rows(0, lengths[b]));
                    let alone = Spec {
                        key_lengths: None,
                        alibi: spec.alibi.map(|slopes| &slopes[h..h + 1]),
                        temperature: spec.temperature.map(|_| Temperature::PerHead(&TEMPERATURES[h..h + 1])),
                        ..spec.clone()
                    };
                    let alone = Case::new(alone, &alone_q, &alone_k, &alone_v).problem();
                    let what = format!("entry {b}, head {h}, {level:?}, {spec:?}");
                    run(&alone, &setup, Execution::Serial).assert_same(&head(&batch, &problem, [b, h]), &what);
                }
            }
        }
    }
}

/// A row at every place of a sub-tile and of a query block: each suffix of the queries alone.
#[test]
fn any_place_in_a_query_block() {
    let mut random = Random::new(3);
    let (queries, keys) = (70, 75);
    let q = Tensor::normal([1, 1, queries, 7], Layout::Bhsd, &mut random);
    let k = Tensor::normal([1, 1, keys, 7], Layout::Bhsd, &mut random);
    let v = Tensor::normal([1, 1, keys, 6], Layout::Bhsd, &mut random);
    let keep: Vec<u8> = (0..queries * keys).map(|_| u8::from(random.chance(0.8))).collect();
    for weighting in weightings() {
        for kernel in every_kernel().filter(|kernel| Engine::Lanes(kernel).computes(&weighting)) {
            let plain = || Spec::new(weighting.clone());
            let store = |q: &Tensor| Stored::three([q, &k, &v], kernel.dtype, kernel.dtype);
            let (stored, blocks) = (store(&q), Blocks::new(48, widest(kernel)));
            // Not through a plan, which gives few queries to a rows kernel.
            let run =
                |spec: Spec<'_>, stored: &[Stored; 3]| Engine::Lanes(kernel).run(&Case::stored(spec, stored), &blocks);
            let whole = [
                plain(),
                Spec { causal: Some(Align::Offset(3)), ..plain() },
                Spec { window: Some((Some(9), Some(8))), align: Some(Align::Offset(-4)), ..plain() },
                Spec { anti_causal: Some(Align::Offset(1)), alibi: Some(&SLOPES[..1]), ..plain() },
                Spec { keep: Some(View::bhsd(&keep, [1, 1, queries, keys]).expect("as long as its shape")), ..plain() },
            ];
            for spec in whole {
                let all = run(spec.clone(), &stored);
                for first in [1, 2, 5, 15, 16, 17, 31, 33, 48, 69] {
                    let shifted = |align: Option<Align>| match align {
                        Some(Align::Offset(offset)) => Some(Align::Offset(offset + first as i64)),
                        other => other,
                    };
                    let suffix = Spec {
                        causal: shifted(spec.causal),
                        anti_causal: shifted(spec.anti_causal),
                        align: shifted(spec.align),
                        keep: spec.keep.map(|_| {
                            let rest = &keep[first * keys..];
                            View::bhsd(rest, [1, 1, queries - first, keys]).expect("as long as its shape")
                        }),
                        ..spec.clone()
                    };
                    let output = run(suffix, &store(&q.rows(first, queries - first)));
                    let wanted = all.rows([1, queries], first, queries - first);
                    output.assert_same(&wanted, &format!("from row {first}, {}, {spec:?}", kernel.name));
                }
            }
        }
    }
}

/// Query blocks decide who computes what, and nothing else; so do layouts.
#[test]
fn any_query_block_and_layout() {
    let mut random = Random::new(4);
    let (queries, keys) = (101, 90);
    let q = Tensor::normal([1, 4, queries, 10], Layout::Bhsd, &mut random);
    let k = Tensor::normal([1, 2, keys, 10], Layout::Bhsd, &mut random);
    let v = Tensor::normal([1, 2, keys, 12], Layout::Bhsd, &mut random);
    let list = specs(&SLOPES, &TEMPERATURES);
    for spec in list.iter().step_by(if SLOW { 4 } else { 1 }) {
        for kernel in every_kernel().filter(|kernel| Engine::Lanes(kernel).computes(&spec.weighting)) {
            let stored = Stored::three([&q, &k, &v], kernel.dtype, kernel.dtype);
            let problem = Case::stored(spec.clone(), &stored).problem();
            let wanted = run(&problem, &setup_for(kernel, 48, widest(kernel)), Execution::Serial);
            for query_block in [1, 7, 16, 33, 64, 100] {
                let output = run(&problem, &setup_for(kernel, 48, query_block), Execution::Serial);
                output.assert_same(&wanted, &format!("query block {query_block}, {}, {spec:?}", kernel.name));
            }
            for layout in Layout::ALL {
                let [q, k, v] = [&q, &k, &v].map(|tensor| tensor.in_layout(layout));
                let stored = Stored::three([&q, &k, &v], kernel.dtype, kernel.dtype);
                let problem = Case::stored(spec.clone(), &stored).problem();
                let output = run_into(&problem, &setup_for(kernel, 48, 40), Execution::Serial, layout);
                output.assert_same(&wanted, &format!("{layout:?}, {}, {spec:?}", kernel.name));
            }
        }
    }
}

/// All kernels of a level and an extension with one key block give the same bits: register tiles do not decide the order of summation.
#[test]
fn any_register_tile() {
    let mut random = Random::new(5);
    let q = Tensor::normal([1, 4, 67, 19], Layout::Bhsd, &mut random);
    let k = Tensor::normal([1, 2, 110, 19], Layout::Bhsd, &mut random);
    let v = Tensor::normal([1, 2, 110, 21], Layout::Bhsd, &mut random);
    for spec in specs(&SLOPES, &TEMPERATURES) {
        let extensions = [None, Some(Extension::Bf16), Some(Extension::Amx)];
        for (level, extension) in levels().iter().flat_map(|level| extensions.map(|extension| (level, extension))) {
            let dtype = if extension.is_some() { Dtype::Bf16 } else { Dtype::F32 };
            let stored = Stored::three([&q, &k, &v], dtype, dtype);
            let problem = Case::stored(spec.clone(), &stored).problem();
            let mut outputs = (kernels(*level).iter())
                .filter(|kernel| kernel.extension == extension && kernel.dtype == dtype)
                .map(|kernel| (kernel.name, run(&problem, &setup_for(kernel, 48, 70), Execution::Serial)));
            let Some((first, wanted)) = outputs.next() else {
                assert!(extension.is_some(), "every level has a kernel for f32");
                continue;
            };
            for (name, output) in outputs {
                output.assert_same(&wanted, &format!("{name} against {first}, {spec:?}"));
            }
        }
    }
}

/// A key and its copy tie wherever the two stand.
#[test]
fn copies_of_a_key_tie_everywhere() {
    let keys = if SLOW { 37 } else { 59 };
    let mut random = Random::new(6);
    let q = Tensor::normal([1, 1, 3, 13], Layout::Bhsd, &mut random);
    let base = Tensor::normal([1, 1, keys, 13], Layout::Bhsd, &mut random);
    // Whole numbers: the mean of two rows is exact.
    let v = Tensor::integers([1, 1, keys, 5], Layout::Bhsd, 50, &mut random);
    let slopes = [0.0];
    let v = |engine: Engine| Stored::new(&v, engine.dtype(), Layout::Bhsd);
    for engine in engines().filter(|engine| engine.computes(&Weighting::HardLeft)) {
        let (v, dtype) = (v(engine), engine.dtype());
        let stored_q = Stored::new(&q, engine.q_dtype(dtype), Layout::Bhsd);
        for first in 0..keys {
            for second in first + 1..keys {
                let mut k = base.clone();
                for at in [first, second] {
                    for c in 0..13 {
                        // Nearly along the first query, and longer than any other key; noise keeps its digits busy.
                        *k.at([0, 0, at, c]) = 9.0 * q.get([0, 0, 0, c]) + 0.01 * base.get([0, 0, 0, c]);
                    }
                }
                let k = Stored::new(&k, dtype, Layout::Bhsd);
                // Terms go another way through the kernel; these change no score.
                let alibi = (second % 2 == 0).then_some(&slopes[..]);
                let row = |weighting: Weighting| {
                    let spec = Spec { alibi, align: Some(Align::TopLeft), ..Spec::new(weighting) };
                    let case = Case::of(spec, stored_q.tensor(), k.tensor(), v.tensor());
                    engine.run(&case, &Blocks::new(16, 64)).out[..5].to_vec()
                };
                let value = |at: usize| (0..5).map(|c| v.tensor().get([0, 0, at, c])).collect::<Vec<_>>();
                let mean: Vec<f32> = value(first).iter().zip(value(second)).map(|(a, b)| (a + b) / 2.0).collect();
                let what = format!("{} keys {first} and {second}", engine.name());
                assert_eq!(row(Weighting::AverageHard), mean, "{what}");
                assert_eq!(row(Weighting::HardLeft), value(first), "{what}");
                assert_eq!(row(Weighting::HardRight), value(second), "{what}");
            }
        }
    }
}

/// From run to run.
#[test]
fn twice_the_same() {
    let mut random = Random::new(7);
    let q = Tensor::normal([1, 2, 40, 16], Layout::Bhsd, &mut random);
    for weighting in weightings() {
        let options = Spec::new(weighting).options();
        let attention = || regard::attention(&options, q.view(), q.view(), q.view()).expect("valid");
        let bits = |out: Vec<f32>| out.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(attention()), bits(attention()));
    }
}
