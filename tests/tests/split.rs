//! Keys that are split into spans: within rounding of those that are not, with the same bits whoever computes which span, and
//! exact where selection is.
#![forbid(unsafe_code)]

use rayon::{ThreadPool, ThreadPoolBuilder};
use regard::{Align, Dtype, Execution, Level, Plan, Queries, Split, View, Weighting, reference};
use regard_tests::{
    Blocks, Case, Engine, Layout, Lists, Output, Random, SLOW, Spec, Stored, Tensor, bound_between, compare, engines,
    levels, run, run_plan, same, selects, setup_of, weightings,
};

const HEADS: usize = 6;

fn pool(threads: usize) -> ThreadPool {
    ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be had")
}

fn tensors(queries: usize, keys: usize) -> [Tensor; 3] {
    let random = &mut Random::new((queries * keys) as u64);
    [
        Tensor::normal([2, HEADS, queries, 12], Layout::Bhsd, random),
        Tensor::normal([2, 2, keys, 12], Layout::Bshd, random),
        Tensor::normal([2, 2, keys, 19], Layout::Padded, random),
    ]
}

fn stored(engine: Engine, dtype: Dtype, tensors: &[Tensor; 3]) -> [Stored; 3] {
    Stored::three(tensors.each_ref(), engine.q_dtype(dtype), dtype)
}

/// The element type that a kernel is tried with at some turn.
fn dtype_of(engine: Engine, turn: usize) -> Dtype {
    match engine {
        Engine::Lanes(kernel) if kernel.dtype == Dtype::F32 => Dtype::ALL[turn % 4],
        other => other.dtype(),
    }
}

/// Two results with the same scores are as close as the roundings after the scores allow.
fn close(case: &Case<'_>, whole: &Output, split: &Output) {
    let problem = case.problem();
    let columns = problem.shape().value_dim;
    for row in case.rows() {
        let paths = [whole, split].map(|output| &output.paths[row[0]]);
        let oracle = reference::row(&problem, paths[0].rounding, row);
        let bound = bound_between(case, &oracle, row, paths);
        let index = case.row(row);
        for c in 0..columns {
            let [a, b] = [whole, split].map(|output| f64::from(output.out[index * columns + c]));
            assert!((a - b).abs() <= bound.out[c], "{a:e} or {b:e}: {row:?}, {paths:?}, {:?}", case.spec);
        }
        if let (Some(a), Some(b)) = (&whole.lse, &split.lse) {
            let (a, b) = (f64::from(a[index]), f64::from(b[index]));
            assert!(a == b || (a - b).abs() <= bound.lse, "log-sum-exp {a} or {b}: {row:?}, {:?}", case.spec);
        }
    }
}

/// Spans of odd sizes, of one key block and of all keys.
const SPANS: [usize; 8] = [1, 33, 64, 100, 150, 299, 300, 1000];

#[test]
fn split_is_unsplit_within_rounding() {
    let lists = Lists::new(HEADS);
    let few = tensors(3, 300);
    let many = tensors(20, 300);
    let mut turn = 0;
    for engine in engines() {
        for weighting in weightings().into_iter().filter(|weighting| engine.computes(weighting)) {
            for spec in lists.specs(&weighting, false) {
                turn += 1;
                // Twice an odd number, so that every size and span has its turn.
                if turn % if SLOW { 70 } else { 2 } != 0 {
                    continue;
                }
                let at = turn / 2;
                let dtype = dtype_of(engine, at);
                let stored = stored(engine, dtype, if at % 4 == 0 { &many } else { &few });
                let case = Case::stored(spec, &stored);
                let blocks = Blocks::new([16, 64][at % 2], 7);
                let whole = engine.run(&case, &blocks);
                let split = engine.run(&case, &Blocks { split: Split::Keys(SPANS[at % 8]), ..blocks });
                let span = SPANS[at % 8].next_multiple_of(engine.key_block(blocks.keys));
                assert_eq!(split.paths[0].span < 300, span < 300);
                if selects(&weighting) {
                    // Without ties, which normal numbers do not make, a row of V is chosen by scores of the same bits.
                    same(&whole.out, &split.out, &format!("{}, {:?}", engine.name(), case.spec));
                }
                close(&case, &whole, &split);
                if at % 3 == 0 {
                    compare(&case, &case.problem(), &split);
                }
            }
        }
    }
}

/// A span is a task of its own or not, and its sequence in any company: that changes no bit.
#[test]
fn any_threads_and_any_batch() {
    let lists = Lists::new(HEADS);
    let pools = [1, 2, 3, 8].map(pool);
    let mut turn = 0;
    for engine in engines() {
        for weighting in weightings().into_iter().filter(|weighting| engine.computes(weighting)) {
            turn += 1;
            if SLOW && turn % 6 != 0 {
                continue;
            }
            let dtype = dtype_of(engine, turn);
            let tensors = tensors([1, 2, 19][turn % 3], 200 + turn % 7);
            let batch = stored(engine, dtype, &tensors);
            let mut specs = lists.specs(&weighting, false);
            let spec = specs.swap_remove(turn % specs.len());
            let blocks = Blocks { split: Split::Keys([32, 50, 96][turn / 3 % 3]), ..Blocks::new(32, 8) };
            let case = Case::stored(spec.clone(), &batch);
            let serial = engine.run(&case, &blocks);
            for pool in &pools {
                let what = format!("{} threads, {}, {spec:?}", pool.current_num_threads(), engine.name());
                engine.run(&case, &Blocks { execution: Execution::Pool(pool), ..blocks }).assert_same(&serial, &what);
            }
            // Each sequence alone, on many threads; and all heads of one KV head without the others.
            let rows = HEADS * tensors[0].shape()[2];
            for entry in 0..2 {
                let alone = tensors.each_ref().map(|tensor| {
                    let [_, heads, rows, columns] = tensor.shape();
                    Tensor::from_fn([1, heads, rows, columns], Layout::Bhsd, |[_, h, r, c]| {
                        tensor.get([entry, h, r, c])
                    })
                });
                let alone = stored(engine, dtype, &alone);
                let blocks = Blocks { execution: Execution::Pool(&pools[3]), ..blocks };
                let output = engine.run(&Case::stored(spec.clone(), &alone), &blocks);
                let wanted = &serial.out[entry * rows * 19..(entry + 1) * rows * 19];
                same(&output.out, wanted, &format!("entry {entry}, {}, {spec:?}", engine.name()));
            }
        }
    }
}

/// The same through plans, with work enough for threads: decode over keys that are split by themselves.
#[test]
fn decode_on_many_threads() {
    let (queries, [keys, d]) = (2, if SLOW { [2100, 12] } else { [5000, 32] });
    let random = &mut Random::new(4);
    let q = Tensor::normal([2, 8, queries, d], Layout::Bhsd, random);
    let k = Tensor::normal([2, 2, keys, d], Layout::Bhsd, random);
    let v = Tensor::normal([2, 2, keys, d], Layout::Bhsd, random);
    let pools = [1, 2, 3, 8].map(pool);
    for dtype in Dtype::ALL {
        let stored = Stored::three([&q, &k, &v], if dtype == Dtype::Int8 { Dtype::F32 } else { dtype }, dtype);
        for weighting in [Weighting::Softmax, Weighting::AverageHard, Weighting::Relu, Weighting::Taylor2] {
            let spec = Spec { causal: Some(Align::BottomRight), ..Spec::new(weighting) };
            for level in levels() {
                let case = Case::stored(spec.clone(), &stored);
                let problem = case.problem();
                let plan = Plan::new(&problem, &setup_of(*level));
                let span = plan.span_for(queries, keys);
                assert!((1024..keys).contains(&span) && plan.tasks() > 4, "{}", plan.explain());
                let serial = run(&problem, &setup_of(*level), Execution::Serial);
                for pool in &pools[if SLOW { 2 } else { 0 }..] {
                    let what = format!("{} threads, {level:?}, {spec:?}", pool.current_num_threads());
                    run(&problem, &setup_of(*level), Execution::Pool(pool)).assert_same(&serial, &what);
                }
                let named = Case::stored(Spec { split: Some(Split::Keys(span)), ..spec.clone() }, &stored);
                run(&named.problem(), &setup_of(*level), Execution::Serial)
                    .assert_same(&serial, "the same span by name");
                let whole = Case::stored(Spec { split: Some(Split::Never), ..spec.clone() }, &stored);
                if !SLOW {
                    close(&case, &run(&whole.problem(), &setup_of(*level), Execution::Serial), &serial);
                }
            }
        }
    }
}

/// Spans depend on a sequence's own sizes.
#[test]
fn spans_of_plans() {
    let k = Tensor::filled([3, 1, 9000, 4], Layout::Bhsd, 1.0);
    let plan = |queries: usize, split: Option<Split>, level: Level| {
        let q = Tensor::filled([3, 1, queries, 4], Layout::Bhsd, 1.0);
        let spec = Spec { split, ..Spec::new(Weighting::Softmax) };
        Plan::new(&Case::new(spec, &q, &k, &k).problem(), &setup_of(level))
    };
    for level in levels() {
        let auto = plan(1, None, *level);
        assert!(auto.span_for(1, 9000) < 9000 && auto.span_for(1, 9000).is_multiple_of(auto.key_block_for(1)));
        assert_eq!(auto.span_for(1, 1000), 1000);
        let long = plan(129, None, *level);
        assert_eq!(long.span_for(129, 9000), 9000, "many queries are not split");
        assert_eq!(long.span_for(1, 9000), auto.span_for(1, 9000), "whatever the others have");
        assert_eq!(plan(1, Some(Split::Never), *level).span_for(1, 9000), 9000);
        let named = plan(1, Some(Split::Keys(100)), *level);
        assert_eq!(named.span_for(1, 9000), 100_usize.next_multiple_of(named.key_block_for(1)));
    }
}

/// Whole numbers, with the largest score in several spans: the first, the last and the mean of all are exact.
#[test]
fn ties_across_spans() {
    let (queries, keys) = (5, 260);
    let mut random = Random::new(11);
    let q = Tensor::integers([1, HEADS, queries, 4], Layout::Bhsd, 1, &mut random);
    let k = Tensor::integers([1, 2, keys, 4], Layout::Bhsd, 1, &mut random);
    let v = Tensor::integers([1, 2, keys, 7], Layout::Bhsd, 100, &mut random);
    let score = |head: usize, query: usize, key: usize| {
        (0..4).map(|c| q.get([0, head, query, c]) * k.get([0, head / 3, key, c])).sum::<f32>()
    };
    for engine in engines().filter(|engine| engine.computes(&Weighting::HardLeft) && engine.dtype() != Dtype::Int8) {
        let stored = stored(engine, engine.dtype(), &[q.clone(), k.clone(), v.clone()]);
        for split in [Split::Never, Split::Keys(16), Split::Keys(33), Split::Keys(100)] {
            let blocks = Blocks { split, ..Blocks::new(32, 4) };
            let run = |weighting: Weighting| {
                let spec = Spec { causal: Some(Align::BottomRight), ..Spec::new(weighting) };
                engine.run(&Case::stored(spec, &stored), &blocks).out
            };
            let [left, right, mean] = [Weighting::HardLeft, Weighting::HardRight, Weighting::AverageHard].map(run);
            let mut spread = 0;
            for (head, query) in (0..HEADS * queries).map(|row| (row / queries, row % queries)) {
                let seen = 0..keys - queries + query + 1;
                let most = seen.clone().map(|key| score(head, query, key)).fold(f32::NEG_INFINITY, f32::max);
                let tied: Vec<usize> = seen.filter(|key| score(head, query, *key) == most).collect();
                spread += usize::from(tied[tied.len() - 1] / 33 > tied[0] / 33);
                for c in 0..7 {
                    let at = (head * queries + query) * 7 + c;
                    let value = |key: usize| v.get([0, head / 3, key, c]);
                    let what = format!("{}, {split:?}, keys {tied:?}", engine.name());
                    assert_eq!(left[at], value(tied[0]), "{what}");
                    assert_eq!(right[at], value(tied[tied.len() - 1]), "{what}");
                    // The sum is exact; the reciprocal and the product are rounded.
                    let sum = tied.iter().map(|key| value(*key)).sum::<f32>();
                    assert_eq!(mean[at], sum * (1.0 / tied.len() as f32), "{what}");
                }
            }
            assert!(spread > 10, "most ties are across spans");
        }
    }
}

/// Spans of which a row sees nothing are as if they were not there: rows over the last keys only give what these keys alone give.
#[test]
fn spans_without_visible_keys() {
    let (queries, keys, first) = (3, 300, 192);
    let tensors = tensors(queries, keys);
    // Nobody sees these, and NaN in them does not matter.
    let mut dirty = tensors.clone();
    for tensor in &mut dirty[1..] {
        for (entry, head, key) in (0..4 * first).map(|i| (i / first / 2, i / first % 2, i % first)) {
            tensor.fill_row([entry, head, key], f32::NAN);
        }
    }
    let last = tensors.each_ref().map(|tensor| match tensor.shape()[2] {
        3 => tensor.clone(),
        _ => tensor.rows(first, keys - first),
    });
    let mut turn = 0;
    for engine in engines() {
        for weighting in weightings().into_iter().filter(|weighting| engine.computes(weighting)) {
            turn += 1;
            if SLOW && turn % 4 != 0 {
                continue;
            }
            let spec = |at: i64| Spec {
                count: Some(regard::Count::Visible),
                log_n: Some(0.5),
                // The last rows see keys from `first` on.
                window: Some((Some(90), None)),
                align: Some(Align::Offset(at)),
                ..Spec::new(weighting.clone())
            };
            let blocks = Blocks { split: Split::Keys(96), ..Blocks::new(32, 2) };
            let dtype = engine.dtype();
            let all = stored(engine, dtype, &dirty);
            let few = stored(engine, dtype, &last);
            let whole = engine.run(&Case::stored(spec(first as i64 + 90), &all), &blocks);
            let part = engine.run(&Case::stored(spec(90), &few), &blocks);
            whole.assert_same(&part, &format!("{} {weighting:?}", engine.name()));
            // And rows that see nothing in any span are zero.
            let nothing = Spec { causal: Some(Align::Offset(-5)), ..Spec::new(weighting.clone()) };
            let output = engine.run(&Case::stored(nothing, &all), &blocks);
            assert!(
                output.out.iter().all(|x| x.to_bits() == 0)
                    && output.lse.iter().flatten().all(|x| *x == f32::NEG_INFINITY)
            );
        }
    }
}

/// NaN behind the mask of some rows only, in a span among others: those rows keep their bits.
#[test]
fn nan_in_a_span() {
    let (queries, keys) = (4, 200);
    let tensors = tensors(queries, keys);
    let keep: Vec<u8> = (0..queries * keys).map(|i| u8::from(i / keys % 2 == 0 || i % keys != 77)).collect();
    let mask = View::bhsd(&keep, [1, 1, queries, keys]).expect("as long as its shape");
    let mut bad = tensors.clone();
    (0..4).for_each(|i| *bad[2].at([i / 2, i % 2, 77, 5]) = f32::NAN);
    let mut turn = 0;
    for engine in engines().filter(|engine| engine.dtype() != Dtype::Int8) {
        for weighting in weightings().into_iter().filter(|weighting| engine.computes(weighting) && !selects(weighting))
        {
            turn += 1;
            if SLOW && turn % 4 != 0 {
                continue;
            }
            let spec = Spec { keep: Some(mask), ..Spec::new(weighting.clone()) };
            let blocks = Blocks { split: Split::Keys(64), ..Blocks::new(32, 3) };
            let run = |tensors| {
                let stored = stored(engine, engine.dtype(), tensors);
                engine.run(&Case::stored(spec.clone(), &stored), &blocks).out
            };
            let (clean, dirty) = (run(&tensors), run(&bad));
            for (at, (was, got)) in clean.iter().zip(&dirty).enumerate() {
                let (query, column) = (at / 19 % queries, at % 19);
                let sees = query % 2 == 0 && column == 5;
                // Rows with NaN are computed in vectors where others are multiplied in parts, all columns of them.
                let elsewhere = engine.name().contains("_lanes_f32_amx") && query % 2 == 0;
                let fits = match (sees, elsewhere) {
                    (true, _) => got.is_nan(),
                    (false, true) => (got - was).abs() <= 1e-3 * was.abs().max(1.0),
                    (false, false) => got.to_bits() == was.to_bits(),
                };
                assert!(fits, "{} {weighting:?} row {query} column {column}: {was} {got}", engine.name());
            }
        }
    }
}

/// Spans within a packed batch are those of each sequence.
#[test]
fn spans_of_packed_sequences() {
    let offsets = [0, 1, 3];
    let random = &mut Random::new(21);
    let q = Tensor::normal([1, HEADS, 3, 12], Layout::Bshd, random);
    let k = Tensor::normal([2, 2, 170, 12], Layout::Bshd, random);
    let v = Tensor::normal([2, 2, 170, 19], Layout::Bshd, random);
    let lengths = [170, 95];
    for level in levels() {
        for weighting in weightings() {
            let spec = || Spec {
                split: Some(Split::Keys(64)),
                causal: Some(Align::BottomRight),
                ..Spec::new(weighting.clone())
            };
            let case = Case::new(Spec { key_lengths: Some(&lengths), ..spec() }, &q, &k, &v)
                .ragged(Queries::Packed(&offsets), regard::Keys::Padded);
            let plan = Plan::new(&case.problem(), &setup_of(*level));
            let whole = run_plan(&plan, &case.problem(), Execution::Serial, Layout::Bhsd);
            for s in 0..2 {
                let q = q.rows(offsets[s], offsets[s + 1] - offsets[s]);
                let [k, v] = [&k, &v].map(|tensor| {
                    let [_, heads, _, columns] = tensor.shape();
                    Tensor::from_fn([1, heads, lengths[s], columns], Layout::Bhsd, |[_, h, r, c]| {
                        tensor.get([s, h, r, c])
                    })
                });
                let one = run(&Case::new(spec(), &q, &k, &v).problem(), &setup_of(*level), Execution::Serial);
                let wanted = whole.rows([HEADS, 3], offsets[s], offsets[s + 1] - offsets[s]);
                one.assert_same(&wanted, &format!("sequence {s}, {weighting:?}, {level:?}"));
            }
        }
    }
}
