//! Caches that grow, and caches that slide: token by token they give what the same keys side by side give, bit for bit, and what a
//! prefill gives within rounding; what was forgotten, or was never there, cannot be seen.
#![forbid(unsafe_code)]

use regard::{
    Align, Attention, CacheShape, Dtype, Execution, Keys, KvCache, Level, Plan, Problem, Queries, Split, View,
    Weighting, quantise,
};
use regard_tests::{
    Blocks, Case, Layout, Output, Random, SLOW, Spec, Stored, Tensor, compare, engines, levels, run, run_plan, same,
    setup_of, weightings,
};

const HEADS: usize = 6;
const KV_HEADS: usize = 2;
const D: usize = 10;
const D_V: usize = 15;

const SHAPE: CacheShape = CacheShape { batch: 2, kv_heads: KV_HEADS, head_dim: D, value_dim: D_V };

fn tensors(tokens: usize, seed: u64) -> [Tensor; 3] {
    let random = &mut Random::new(seed);
    [
        Tensor::normal([2, HEADS, tokens, D], Layout::Bshd, random),
        Tensor::normal([2, KV_HEADS, tokens, D], Layout::PaddedBshd, random),
        Tensor::normal([2, KV_HEADS, tokens, D_V], Layout::Bshd, random),
    ]
}

/// One sequence of a tensor.
fn entry(tensor: &Tensor, batch: usize) -> Tensor {
    let [_, heads, rows, columns] = tensor.shape();
    Tensor::from_fn([1, heads, rows, columns], Layout::Bhsd, |[_, h, r, c]| tensor.get([batch, h, r, c]))
}

fn q_dtype(turn: usize) -> Dtype {
    [Dtype::F32, Dtype::Bf16, Dtype::F16][turn % 3]
}

/// Appends rows to both sequences, in turn as f32, which the cache rounds, and in its own type.
fn append(cache: &mut KvCache, k: &Tensor, v: &Tensor, own: bool) {
    if own {
        let [k, v] = [k, v].map(|tensor| Stored::new(tensor, cache.dtype(), Layout::Padded));
        cache.append(k.tensor(), v.tensor()).expect("rows of the cache");
    } else {
        cache.append(k.view(), v.view()).expect("rows of the cache");
    }
}

/// Every step gives the bits of the keys so far side by side, computed by plans of their own; the last steps are those of a
/// prefill within rounding, as both are close to the oracle.
#[test]
fn token_by_token() {
    let tokens = if SLOW { 20 } else { 50 };
    let [q, k, v] = tensors(tokens, 1);
    for dtype in Dtype::ALL {
        for (turn, weighting) in weightings().into_iter().enumerate() {
            let q_dtype = q_dtype(turn);
            let stored = Stored::three([&q, &k, &v], q_dtype, dtype);
            let options = Spec { causal: Some(Align::BottomRight), ..Spec::new(weighting) };
            for level in levels() {
                let setup = setup_of(*level);
                let mut cache = KvCache::with_capacity(dtype, SHAPE, tokens / 3).expect("there is room");
                for token in 0..tokens {
                    append(&mut cache, &k.rows(token, 1), &v.rows(token, 1), (token + turn) % 2 == 0);
                    assert_eq!(cache.lengths(), [token + 1; 2]);
                    // Some of the steps: all of them would be a lot.
                    if (token + turn) % if SLOW { 9 } else { 5 } != 0 && token + 1 < tokens {
                        continue;
                    }
                    let last = Stored::new(&q.rows(token, 1), q_dtype, Layout::Bhsd);
                    let problem = cache.problem(&options.options(), last.tensor()).expect("valid");
                    let step = run(&problem, &setup, Execution::Serial);
                    let near = [&k, &v].map(|tensor| Stored::new(&tensor.rows(0, token + 1), dtype, Layout::Bhsd));
                    let near = Case::of(options.clone(), last.tensor(), near[0].tensor(), near[1].tensor());
                    let side_by_side = run(&near.problem(), &setup, Execution::Serial);
                    let what = format!("{dtype}, token {token}, {level:?}, {options:?}");
                    step.assert_same(&side_by_side, &what);
                    compare(&near, &near.problem(), &step);
                }
                let prefill = Case::stored(options.clone(), &stored);
                compare(&prefill, &prefill.problem(), &run(&prefill.problem(), &setup, Execution::Serial));
            }
        }
    }
}

/// Prompts of different lengths, then steps of one and of several tokens, in a batch whose sequences grow apart.
#[test]
fn sequences_that_grow_apart() {
    let [q, k, v] = tensors(90, 2);
    for dtype in Dtype::ALL {
        for weighting in weightings().into_iter().step_by(if SLOW { 6 } else { 1 }) {
            let spec =
                Spec { causal: Some(Align::BottomRight), window: Some((Some(30), None)), ..Spec::new(weighting) };
            let mut cache = KvCache::new(dtype, SHAPE).expect("there is room");
            let mut done = [0, 0];
            for (step, rows) in [[40, 3], [1, 1], [0, 5], [4, 17], [30, 1], [1, 20], [1, 1]].into_iter().enumerate() {
                let mut offsets = vec![0];
                let mut rows_of_q = Vec::new();
                for (batch, rows) in rows.into_iter().enumerate() {
                    let [k, v] = [&k, &v].map(|tensor| entry(tensor, batch).rows(done[batch], rows));
                    cache.append_to(batch, k.view(), v.view()).expect("rows of the cache");
                    done[batch] += rows;
                    offsets.push(offsets[batch] + rows);
                    rows_of_q.extend((done[batch] - rows..done[batch]).map(|row| [batch, row]));
                }
                let count = rows_of_q.len();
                let packed = Tensor::from_fn([1, HEADS, count, D], Layout::Bshd, |[_, h, r, c]| {
                    q.get([rows_of_q[r][0], h, rows_of_q[r][1], c])
                });
                let packed = Stored::new(&packed, q_dtype(step), Layout::Bshd);
                for level in levels() {
                    let queries = Queries::Packed(&offsets);
                    let problem = cache.ragged(&spec.options(), packed.tensor(), queries).expect("valid");
                    let whole = run(&problem, &setup_of(*level), Execution::Serial);
                    for batch in 0..2 {
                        let first = done[batch] - rows[batch];
                        let q = Stored::new(&entry(&q, batch).rows(first, rows[batch]), q_dtype(step), Layout::Bhsd);
                        let near = [&k, &v].map(|tensor| {
                            Stored::new(&entry(tensor, batch).rows(0, done[batch]), dtype, Layout::Padded)
                        });
                        let near = Case::of(spec.clone(), q.tensor(), near[0].tensor(), near[1].tensor());
                        let wanted = run(&near.problem(), &setup_of(*level), Execution::Serial);
                        let own = whole.rows([HEADS, count], offsets[batch], rows[batch]);
                        own.assert_same(&wanted, &format!("{dtype}, step {step}, sequence {batch}, {spec:?}"));
                    }
                }
            }
        }
    }
}

/// The step of both kinds of cache for the last `rows` queries.
fn steps(level: Level, spec: &Spec<'_>, caches: [&KvCache; 2], q: &Stored) -> [Output; 2] {
    caches.map(|cache| {
        let problem = cache.problem(&spec.options(), q.tensor()).expect("every visible key is there");
        run(&problem, &setup_of(level), Execution::Serial)
    })
}

/// A sliding cache gives the bits of one that keeps everything under the same window, long after it came round. What it has
/// forgotten was NaN, which it does not remember.
#[test]
fn sliding_is_full_with_a_window() {
    let tokens = if SLOW { 60 } else { 200 };
    let [q, k, v] = tensors(tokens, 3);
    for dtype in Dtype::ALL {
        for (turn, weighting) in weightings().into_iter().enumerate() {
            if SLOW && turn % 4 != dtype as usize {
                continue;
            }
            // Windows of one key, of an odd number, and of a whole block of a rows kernel.
            let (left, most) = [(0, 1), (16, 3), (63, 1), (20, 17)][turn % 4];
            let split = [None, Some(Split::Keys(64))][turn % 2];
            let window = Some((Some(left), None));
            let slopes = [0.5, 0.25, 0.125, 0.0625, 0.3, 0.7];
            let alibi = (turn % 3 == 0).then_some(&slopes[..]);
            let spec = Spec { causal: Some(Align::BottomRight), window, split, alibi, ..Spec::new(weighting) };
            let mut sliding = KvCache::sliding(dtype, SHAPE, left + most).expect("there is room");
            let mut full = KvCache::new(dtype, SHAPE).expect("there is room");
            let mut token = 0;
            let mut step = 0;
            while token < tokens {
                let rows = if step % 3 == 0 { most } else { 1 }.min(tokens - token);
                let [mut k, v] = [&k, &v].map(|tensor| tensor.rows(token, rows));
                // NaN that the window forgets in time.
                if token < 10 && token + left + most < tokens {
                    (0..4).for_each(|i| k.fill_row([i / 2, i % 2, 0], f32::NAN));
                }
                for cache in [&mut sliding, &mut full] {
                    cache.append(k.view(), v.view()).expect("rows of the cache");
                }
                token += rows;
                step += 1;
                assert_eq!((sliding.len(1), sliding.oldest(1)), (token, token.saturating_sub(left + most)));
                if step % 7 != 0 && token < tokens {
                    continue;
                }
                let q = Stored::new(&q.rows(token - rows, rows), q_dtype(turn), Layout::Bhsd);
                for level in levels() {
                    let [ring, all] = steps(*level, &spec, [&sliding, &full], &q);
                    ring.assert_same(&all, &format!("{dtype}, token {token}, {level:?}, {spec:?}"));
                    if token > 10 + left + most {
                        assert!(ring.out.iter().all(|x| x.is_finite()), "NaN was forgotten: {spec:?}");
                    }
                }
            }
        }
    }
}

/// Rings of every size, on every kernel: rows that no query sees are NaN.
#[test]
fn rings_on_every_kernel() {
    let (queries, length) = (3, 150);
    let random = &mut Random::new(4);
    let q = Tensor::normal([2, HEADS, queries, D], Layout::Bhsd, random);
    let k = Tensor::normal([2, KV_HEADS, length, D], Layout::Bhsd, random);
    let v = Tensor::normal([2, KV_HEADS, length, D_V], Layout::Bhsd, random);
    let lengths = [length, 87];
    let mut turn = 0;
    for ring in [3, 5, 16, 31, 64, 77, 149] {
        let left = ring - queries;
        // Each key in its row, and NaN where none of the last ones is.
        let turned = |tensor: &Tensor| {
            let columns = tensor.shape()[3];
            let mut to = Tensor::filled([2, KV_HEADS, ring, columns], Layout::PaddedBshd, f32::NAN);
            for (batch, length) in lengths.into_iter().enumerate() {
                // Of the first query, which sees the earliest keys.
                for key in (length.saturating_sub(queries + left))..length {
                    for (head, c) in (0..KV_HEADS * columns).map(|i| (i / columns, i % columns)) {
                        *to.at([batch, head, key % ring, c]) = tensor.get([batch, head, key, c]);
                    }
                }
            }
            to
        };
        let rings = [turned(&k), turned(&v)];
        for engine in engines() {
            for weighting in weightings().into_iter().filter(|weighting| engine.computes(weighting)) {
                turn += 1;
                if SLOW && turn % 7 != 0 {
                    continue;
                }
                let dtype = if engine.dtype() == Dtype::F32 && engine.takes(Dtype::Int8) {
                    Dtype::ALL[turn % 4]
                } else {
                    engine.dtype()
                };
                let window = Some((Some(left), None));
                let spec = Spec { causal: Some(Align::BottomRight), window, ..Spec::new(weighting) };
                let all = Stored::three([&q, &k, &v], engine.q_dtype(dtype), dtype);
                let ring = Stored::three([&q, &rings[0], &rings[1]], engine.q_dtype(dtype), dtype);
                let all = Case::stored(Spec { key_lengths: Some(&lengths), ..spec.clone() }, &all);
                let turned = Case::stored(spec, &ring).ragged(Queries::Padded, Keys::Ring { lengths: &lengths });
                let split = [Split::Never, Split::Keys(32)][turn % 2];
                let blocks = Blocks { split, ..Blocks::new(32, 4) };
                let what = format!("ring of {left} + {queries}, {} of {dtype}, {:?}", engine.name(), all.spec);
                engine.run(&turned, &blocks).assert_same(&engine.run(&all, &blocks), &what);
            }
        }
    }
}

/// Rows that were taken back, or cleared, were never there.
#[test]
fn truncated_rows_do_not_come_back() {
    let [q, k, v] = tensors(40, 5);
    let last = q.rows(39, 1);
    let options = Attention::softmax().causal(Align::BottomRight);
    let nan = Tensor::filled([2, KV_HEADS, 9, D], Layout::Bhsd, f32::NAN);
    let nan_v = Tensor::filled([2, KV_HEADS, 9, D_V], Layout::Bhsd, f32::NAN);
    for dtype in Dtype::ALL {
        let clean = {
            let mut cache = KvCache::new(dtype, SHAPE).expect("there is room");
            append(&mut cache, &k, &v, false);
            cache
        };
        let out = |cache: &KvCache| {
            let problem = cache.problem(&options, last.view()).expect("valid");
            problem.attention().expect("it can be computed")
        };
        let mut dirty = KvCache::new(dtype, SHAPE).expect("there is room");
        append(&mut dirty, &nan, &nan_v, false);
        dirty.clear();
        assert_eq!(dirty.lengths(), [0, 0]);
        assert_eq!(out(&dirty), [0.0; 2 * HEADS * D_V], "an empty cache gives zeros");
        append(&mut dirty, &k.rows(0, 30), &v.rows(0, 30), true);
        append(&mut dirty, &nan, &nan_v, false);
        for batch in 0..2 {
            dirty.truncate(batch, 30).expect("there is such a sequence");
            dirty.truncate(batch, 35).expect("more than there are changes nothing");
        }
        assert_eq!(dirty.lengths(), [30, 30]);
        append(&mut dirty, &k.rows(30, 10), &v.rows(30, 10), false);
        same(&out(&dirty), &out(&clean), &format!("{dtype}"));
        // What is behind the end of the shorter sequence, in rows that the longer one has, is not seen either.
        append(&mut dirty, &nan, &nan_v, false);
        dirty.truncate(0, 40).expect("there is such a sequence");
        let half = HEADS * D_V;
        same(&out(&dirty)[..half], &out(&clean)[..half], "the first sequence");
        assert!(out(&dirty)[half..].iter().all(|x| x.is_nan()), "the second one has NaN");
    }
}

/// Elements are rounded as tensors are, and rows of int8 as [`quantise`] does.
#[test]
fn what_a_cache_holds() {
    let [q, k, v] = tensors(33, 6);
    for dtype in Dtype::ALL {
        let mut cache = KvCache::new(dtype, SHAPE).expect("there is room");
        append(&mut cache, &k, &v, false);
        let spec = Spec::new(Weighting::Softmax);
        let elements = [&k, &v].map(|tensor| (tensor.to_vec(), tensor.shape()));
        let rows = elements.each_ref().map(|(data, shape)| quantise(View::bhsd(data, *shape).expect("its shape")));
        let stored = [&k, &v].map(|tensor| Stored::new(tensor, dtype, Layout::Bhsd));
        let tensors: [regard::Tensor<'_>; 2] = match dtype {
            Dtype::Int8 => rows.each_ref().map(|rows| rows.tensor()),
            _ => stored.each_ref().map(Stored::tensor),
        };
        for level in levels() {
            let cached = cache.problem(&spec.options(), q.view()).expect("valid");
            let near = Problem::new(&spec.options(), q.view(), tensors[0], tensors[1]).expect("valid");
            let [a, b] = [&cached, &near].map(|problem| run(problem, &setup_of(*level), Execution::Serial));
            a.assert_same(&b, &format!("{dtype}"));
        }
    }
}

/// One plan serves a decode loop up to the capacity of a cache, and a loop without end on one that slides.
#[test]
fn one_plan_for_a_loop() {
    let tokens = 70;
    let [q, k, v] = tensors(tokens, 7);
    for (sliding, level) in levels().iter().flat_map(|level| [(false, level), (true, level)]) {
        let mut cache = if sliding {
            KvCache::sliding(Dtype::F32, SHAPE, 16)
        } else {
            KvCache::with_capacity(Dtype::F32, SHAPE, tokens)
        }
        .expect("there is room");
        let options = Attention::softmax().causal(Align::BottomRight).window(Some(15), None);
        let setup = setup_of(*level);
        let mut plan = None;
        for token in 0..tokens {
            cache.append(k.rows(token, 1).view(), v.rows(token, 1).view()).expect("rows of the cache");
            let last = q.rows(token, 1);
            let problem = cache.problem(&options, last.view()).expect("valid");
            let plan = plan.get_or_insert_with(|| Plan::new(&problem, &setup));
            let output = run_plan(plan, &problem, Execution::Serial, Layout::Bhsd);
            output.assert_same(&run(&problem, &setup, Execution::Serial), &format!("token {token}"));
        }
    }
}
