//! States of fixed queries that keys are pushed to, and one query at every prefix: both against attention by its definition, and
//! bit for bit against themselves, however the keys come.
#![forbid(unsafe_code)]

use rayon::ThreadPoolBuilder;
use regard::reference;
use regard::{
    Align, Attention, Count, Error, Execution, Isa, Level, Problem, RowScale, State, StateShape, Temperature, Tensor,
    View, ViewMut, Weighting, bf16, f16, prefixes, prefixes_into, quantise,
};
use regard_tests::{Random, SLOW, levels, same, weightings};

const BATCH: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const D: usize = 6;
const D_V: usize = 19;
const SHAPE: StateShape = StateShape { kv_heads: KV_HEADS, value_dim: D_V };

/// Tensors `[BATCH, heads, rows, columns]` of one problem.
struct Data {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    queries: usize,
    keys: usize,
}

impl Data {
    fn new(queries: usize, keys: usize, mut number: impl FnMut(&mut Random) -> f32) -> Self {
        let random = &mut Random::new((queries * 1000 + keys) as u64);
        let mut numbers = |len: usize| (0..len).map(|_| number(random)).collect();
        Self {
            q: numbers(BATCH * HEADS * queries * D),
            k: numbers(BATCH * KV_HEADS * keys * D),
            v: numbers(BATCH * KV_HEADS * keys * D_V),
            queries,
            keys,
        }
    }

    fn q(&self) -> View<'_, f32> {
        View::bhsd(&self.q, [BATCH, HEADS, self.queries, D]).unwrap()
    }

    /// Keys `from..to`, in the middle of the others.
    fn keys(&self, from: usize, to: usize) -> [View<'_, f32>; 2] {
        let view = |data, columns| {
            let strides = [KV_HEADS * self.keys * columns, self.keys * columns, columns, 1];
            let data: &[f32] = data;
            View::strided(&data[from * columns..], [BATCH, KV_HEADS, to - from, columns], strides).unwrap()
        };
        [view(&self.k, D), view(&self.v, D_V)]
    }

    /// One key of all heads, and its value.
    fn key(&self, key: usize) -> [Vec<f32>; 2] {
        let row = |data: &[f32], columns: usize| -> Vec<f32> {
            (0..BATCH * KV_HEADS)
                .flat_map(|head| &data[(head * self.keys + key) * columns..][..columns])
                .copied()
                .collect()
        };
        [row(&self.k, D), row(&self.v, D_V)]
    }

    fn state<'a>(&'a self, options: &Attention<'a>) -> State<'a> {
        State::new(options, self.q(), SHAPE).unwrap()
    }

    /// A state that has seen the keys in pieces that end at `cuts`; single keys are pushed.
    fn pushed<'a>(&'a self, options: &Attention<'a>, cuts: &[usize]) -> State<'a> {
        let mut state = self.state(options);
        let mut from = 0;
        for to in cuts.iter().copied().chain([self.keys]) {
            if to == from + 1 {
                let [k, v] = self.key(from);
                state.push(&k, &v).unwrap();
            } else {
                let [k, v] = self.keys(from, to);
                state.push_block(k, v, Execution::Serial).unwrap();
            }
            from = to;
        }
        state
    }

    fn rows(&self) -> usize {
        BATCH * HEADS * self.queries
    }

    fn output(&self, state: &State<'_>) -> Vec<f32> {
        let mut out = vec![f32::NAN; self.rows() * D_V];
        state.output(ViewMut::bhsd(&mut out, [BATCH, HEADS, self.queries, D_V]).unwrap(), None).unwrap();
        out
    }

    /// By the definition.
    fn expected(&self, options: &Attention<'_>) -> Vec<f64> {
        let [k, v] = self.keys(0, self.keys);
        reference::attention(&Problem::new(options, self.q(), k, v).unwrap(), Isa::Portable)
    }
}

/// Columns of one row differ by rounding only. Everything that was added up is about as large as the largest result, but for
/// weights of both signs.
fn close(found: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    let size = expected.iter().fold(1.0_f64, |size, x| size.max(x.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let off = (f64::from(*found) - expected).abs();
        assert!(off <= tolerance * size, "{what}: element {i} is {found}, not {expected}");
    }
}

fn constant(weighting: Weighting, level: Level) -> Attention<'static> {
    Attention::new(weighting).count(Count::Constant(40.0)).isa(level.isa())
}

/// Every weighting, for queries of the rows kernel and of the lanes kernel, keys of less than a block and of several, however
/// they are pushed.
#[test]
fn states_are_attention_however_keys_come() {
    let sizes: &[[usize; 2]] =
        if SLOW { &[[1, 130], [17, 40]] } else { &[[1, 1], [1, 300], [3, 127], [5, 128], [17, 300]] };
    for level in levels() {
        for weighting in weightings() {
            for [queries, keys] in sizes {
                let normal = Data::new(*queries, *keys, |random| 0.5 * random.normal());
                // Whole numbers: products are exact, so ties are real, and every kernel finds the same.
                let whole = Data::new(*queries, *keys, |random| random.integer(2));
                let selects = format!("{weighting:?}").contains("Hard");
                let data = if selects { whole } else { normal };
                let what = format!("{weighting:?} {level:?} {queries} x {keys}");
                let options = constant(weighting.clone(), *level);
                let every: Vec<usize> = (1..*keys).collect();
                let at_once = data.pushed(&options, &[]);
                let found = data.output(&at_once);
                close(&found, &data.expected(&options), 1e-5, &what);
                let cuts = [&every[..], &[keys / 2], &[keys / 3, keys / 3 + 1, keys / 2 + 1]];
                for cuts in cuts.iter().filter(|_| *keys > 6) {
                    same(&data.output(&data.pushed(&options, cuts)), &found, &what);
                }
                assert_eq!(at_once.keys(), *keys as u64);
            }
        }
    }
}

/// Many blocks in one push, on threads, give what single keys give.
#[test]
fn long_pushes_are_the_same_on_any_threads() {
    let keys = if SLOW { 2100 } else { 9000 };
    let pool = ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    for weighting in [Weighting::Softmax, Weighting::HardRight, Weighting::Relu] {
        let data = Data::new(2, keys, |random| random.normal());
        let options = Attention::new(weighting);
        let every: Vec<usize> = (1..keys).collect();
        let one_by_one = data.output(&data.pushed(&options, &every));
        let mut state = data.state(&options);
        let [k, v] = data.keys(0, keys);
        state.push_block(k, v, Execution::Pool(&pool)).unwrap();
        same(&data.output(&state), &one_by_one, "a push of all keys");
        close(&one_by_one, &data.expected(&options), 1e-5, "a long push");
    }
}

/// The state goes on after an output, which costs it nothing, and never grows.
#[test]
fn outputs_do_not_consume_and_memory_does_not_grow() {
    let data = Data::new(2, 700, |random| random.normal());
    let options = Attention::softmax();
    let mut state = data.state(&options);
    let mut bytes = 0;
    for key in 0..data.keys {
        let [k, v] = data.key(key);
        state.push(&k, &v).unwrap();
        if key % 97 == 5 || key == 127 {
            let seen = Data { q: data.q.clone(), ..data.part(key + 1) };
            close(&data.output(&state), &seen.expected(&options), 1e-5, &format!("after key {key}"));
        }
        if key == 300 {
            bytes = state.bytes();
        }
    }
    assert_eq!(state.bytes(), bytes);
    same(&data.output(&state), &data.output(&data.pushed(&options, &[])), "with outputs and without");
    state.clear();
    assert_eq!((state.keys(), data.output(&state)), (0, vec![0.0; data.rows() * D_V]));
}

impl Data {
    /// The first keys alone.
    fn part(&self, keys: usize) -> Self {
        let cut = |data: &[f32], columns: usize| -> Vec<f32> {
            data.chunks(self.keys * columns).flat_map(|head| &head[..keys * columns]).copied().collect()
        };
        Self { q: Vec::new(), k: cut(&self.k, D), v: cut(&self.v, D_V), queries: self.queries, keys }
    }
}

/// States over ranges of keys merge, with keys that wait in both.
#[test]
fn states_merge() {
    for weighting in weightings() {
        let data = Data::new(3, 400, |random| random.integer(2));
        let options = constant(weighting.clone(), levels()[0]);
        let expected = data.expected(&options);
        for [a, b] in [[130, 390], [0, 1], [128, 256], [7, 400]] {
            let part = |from, to| {
                let mut state = data.state(&options);
                let [k, v] = data.keys(from, to);
                state.push_block(k, v, Execution::Serial).unwrap();
                state
            };
            let mut left = part(0, a);
            let mut middle = part(a, b);
            middle.merge(&part(b, 400)).unwrap();
            left.merge(&middle).unwrap();
            assert_eq!(left.keys(), 400);
            close(&data.output(&left), &expected, 1e-5, &format!("{weighting:?} {a} {b}"));
        }
    }
}

/// Element types are those of the keys, widened.
#[test]
fn states_widen_what_is_pushed() {
    let data = Data::new(2, 200, |random| random.normal());
    let [k, v] = data.keys(0, 200);
    let options = Attention::softmax();
    let run = |k: Tensor<'_>, v: Tensor<'_>| {
        let mut state = data.state(&options);
        state.push_block(k, v, Execution::Serial).unwrap();
        let expected = reference::attention(&Problem::new(&options, data.q(), k, v).unwrap(), Isa::Portable);
        close(&data.output(&state), &expected, 1e-5, k.dtype().name());
    };
    let halves = |data: &[f32]| data.iter().map(|x| f16::from_f32(*x)).collect::<Vec<_>>();
    let brains = |data: &[f32]| data.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>();
    let shape = |columns| [BATCH, KV_HEADS, 200, columns];
    let (a, b) = (halves(&data.k), halves(&data.v));
    run(View::bhsd(&a, shape(D)).unwrap().into(), View::bhsd(&b, shape(D_V)).unwrap().into());
    let (a, b) = (brains(&data.k), brains(&data.v));
    run(View::bhsd(&a, shape(D)).unwrap().into(), View::bhsd(&b, shape(D_V)).unwrap().into());
    let (a, b) = (quantise(k), quantise(v));
    run(a.tensor(), b.tensor());
    run(k.into(), v.into());
}

/// Scale, cap, sinks and every kind of temperature, and NaN.
#[test]
fn states_take_options() {
    let data = Data::new(3, 150, |random| random.normal());
    let per_head: Vec<f32> = (1..=HEADS).map(|head| head as f32 / 2.0).collect();
    let per_row: Vec<f32> = (1..=data.rows()).map(|row| 0.25 + row as f32 / 16.0).collect();
    let sinks = [0.5, -1.0, 3.0, f32::NEG_INFINITY];
    for options in [
        Attention::softmax().scale(-0.7).softcap(2.0),
        Attention::softmax().sinks(&sinks).temperature(Temperature::PerHead(&per_head)),
        Attention::softmax().temperature(Temperature::PerRow(&per_row)),
        Attention::new(Weighting::Relu).row_scale(RowScale::InvN).count(Count::Constant(150.0)).coefficient(2.0),
        Attention::softmax().log_n_schedule(0.5).count(Count::Constant(150.0)),
        Attention::new(Weighting::Sigmoid { bias: regard::SigmoidBias::NegLogN }).count(Count::Constant(9.0)),
    ] {
        let mut state = data.pushed(&options, &[50, 51]);
        close(&data.output(&state), &data.expected(&options), 1e-5, &format!("{options:?}"));
        let [mut k, v] = data.key(0);
        k.fill(f32::NAN);
        state.push(&k, &v).unwrap();
        assert!(data.output(&state).iter().all(|x| x.is_nan()), "{options:?}");
    }
}

#[test]
fn states_say_what_is_wrong_and_stay_as_they_were() {
    let data = Data::new(2, 10, |random| random.normal());
    let q = || data.q();
    let no_meaning = |options: Attention<'_>| {
        let found = State::new(&options, q(), SHAPE);
        assert!(matches!(found, Err(Error::NoMeaning { .. })), "{options:?}: {found:?}");
    };
    no_meaning(Attention::softmax().causal(Align::TopLeft));
    no_meaning(Attention::softmax().window(Some(3), None));
    no_meaning(Attention::softmax().key_lengths(&[1, 2]));
    no_meaning(Attention::softmax().alibi_slopes(&[0.1; HEADS]));
    no_meaning(Attention::softmax().log_n_schedule(1.0));
    no_meaning(Attention::new(Weighting::Relu).row_scale(RowScale::InvN));
    for temperature in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let options = Attention::softmax().temperature(Temperature::Constant(temperature));
        assert!(matches!(State::new(&options, q(), SHAPE), Err(Error::Number { name: "temperature", .. })));
    }
    for weighting in [Weighting::EvenPower { degree: 3 }, Weighting::Polynomial { degree: 9 }] {
        let found = State::new(&Attention::new(weighting), q(), SHAPE);
        assert!(matches!(found, Err(Error::Number { name: "degree", .. })));
    }
    let wrong_heads = State::new(&Attention::softmax(), q(), StateShape { kv_heads: 3, value_dim: 1 });
    assert!(matches!(wrong_heads, Err(Error::Heads { query_heads: HEADS, kv_heads: 3 })));
    let options = Attention::softmax();
    let mut state = data.pushed(&options, &[]);
    let before = data.output(&state);
    let [k, v] = data.key(0);
    assert!(matches!(state.push(&k[1..], &v), Err(Error::Length { list: "k", found: 23, expected: 24, .. })));
    assert!(matches!(state.push(&k, &v[1..]), Err(Error::Length { list: "v", .. })));
    let [k, v] = data.keys(0, 10);
    let short = data.keys(0, 9)[1];
    let found = state.push_block(k, short, Execution::Serial);
    assert!(matches!(found, Err(Error::Dimension { tensor: "v", dimension: "rows", found: 9, expected: 10, .. })));
    assert!(matches!(state.push_block(v, v, Execution::Serial), Err(Error::Dimension { tensor: "k", .. })));
    let mut out = [7.0; 3];
    let view = ViewMut::bhsd(&mut out, [1, 1, 3, 1]).unwrap();
    assert!(matches!(state.output(view, None), Err(Error::Dimension { tensor: "out", .. })));
    assert_eq!(out, [7.0; 3]);
    let others = Data { q: data.q.iter().map(|x| x + 1.0).collect(), ..data.part(10) };
    assert!(matches!(state.merge(&others.state(&options)), Err(Error::Partial { what: "a query", .. })));
    let hard = Attention::new(Weighting::HardLeft);
    assert!(matches!(state.merge(&data.state(&hard)), Err(Error::Partial { what: "the weighting", .. })));
    same(&data.output(&state), &before, "after errors");
    assert_eq!(state.keys(), 10);
}

/// No key at all, no columns, no queries.
#[test]
fn empty_states_are_legal() {
    let mut lse = [0.0; BATCH * HEADS];
    let data = Data::new(1, 0, |random| random.normal());
    let options = Attention::softmax();
    let state = data.state(&options);
    let mut out = [f32::NAN; BATCH * HEADS * D_V];
    state.output(ViewMut::bhsd(&mut out, [BATCH, HEADS, 1, D_V]).unwrap(), Some(&mut lse)).unwrap();
    assert_eq!((out, lse), ([0.0; BATCH * HEADS * D_V], [f32::NEG_INFINITY; BATCH * HEADS]));
    for shape in [[0, 2, 3, 4], [2, 0, 3, 4], [2, 2, 0, 4], [1, 1, 1, 0]] {
        let q = vec![0.0; shape.iter().product()];
        let mut state =
            State::new(&options, View::bhsd(&q, shape).unwrap(), StateShape { kv_heads: 1, value_dim: 0 }).unwrap();
        state.push(&vec![0.0; shape[0] * shape[3]], &[]).unwrap();
        let out = ViewMut::bhsd(&mut [] as &mut [f32], [shape[0], shape[1], shape[2], 0]).unwrap();
        state.output(out, None).unwrap();
    }
}

// ---- one query at every prefix

/// Prefixes by causal attention with the query repeated, which is slow, and itself tested against the definition.
fn slow_prefixes(data: &Data, options: &Attention<'_>, tensors: Option<[Tensor<'_>; 2]>) -> Vec<f64> {
    let keys = data.keys;
    let q = View::strided(&data.q, [BATCH, HEADS, keys, D], [HEADS * D, D, 0, 1]).unwrap();
    let [k, v] = tensors.unwrap_or(data.keys(0, keys).map(Tensor::F32));
    let problem = Problem::new(&options.clone().causal(Align::TopLeft), q, k, v).unwrap();
    reference::attention(&problem, Isa::Portable)
}

#[test]
fn prefixes_are_causal_attention_of_one_query() {
    let sizes: &[usize] = if SLOW { &[1, 258] } else { &[1, 2, 17, 255, 256, 257, 600] };
    let per_head: Vec<f32> = (1..=HEADS).map(|head| head as f32 / 2.0).collect();
    let sinks = [0.5, -1.0, 3.0, f32::NEG_INFINITY];
    for level in levels() {
        for keys in sizes {
            let data = Data::new(1, *keys, |random| random.normal());
            // A low temperature magnifies the rounding of scores.
            let low = Attention::softmax().temperature(Temperature::Constant(1e-3));
            for (options, tolerance) in [
                Attention::softmax(),
                Attention::softmax().scale(-3.0),
                Attention::softmax().scale(0.0),
                Attention::softmax().softcap(1.5).scale(-1.0),
                Attention::softmax().sinks(&sinks).temperature(Temperature::PerHead(&per_head)),
            ]
            .map(|options| (options, 2e-5))
            .into_iter()
            .chain([(low, 1e-3)])
            {
                let options = options.isa(level.isa());
                let [k, v] = data.keys(0, *keys);
                let found = prefixes(&options, data.q(), k, v).unwrap();
                close(
                    &found,
                    &slow_prefixes(&data, &options, None),
                    tolerance,
                    &format!("{level:?} {keys} {options:?}"),
                );
            }
        }
    }
}

/// Bit for bit the same on any number of threads, whichever way the work is cut, in any layout; with log-sum-exps.
#[test]
fn prefixes_are_the_same_on_any_threads() {
    let keys = if SLOW { 1000 } else { 40_000 };
    let random = &mut Random::new(5);
    let (q, k, v) = (random.normals(D), random.normals(keys * D), random.normals(keys * D_V));
    let run = |threads: usize, stride: usize| {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut out = vec![f32::NAN; keys * stride];
        let mut lse = vec![f32::NAN; keys];
        let out_view = ViewMut::strided(&mut out, [1, 1, keys, D_V], [0, 0, stride, 1]).unwrap();
        let execution = if threads == 1 { Execution::Serial } else { Execution::Pool(&pool) };
        let view = |data, rows, columns| View::bhsd(data, [1, 1, rows, columns]).unwrap();
        let (q, k, v) = (view(&q, 1, D), view(&k, keys, D), view(&v, keys, D_V));
        prefixes_into(&Attention::softmax().scale(2.0), q, k, v, out_view, Some(&mut lse), execution).unwrap();
        (out.chunks(stride).flat_map(|row| row[..D_V].to_vec()).collect::<Vec<_>>(), lse)
    };
    let (out, lse) = run(1, D_V);
    for (threads, stride) in [(2, D_V), (3, D_V + 5), (8, D_V)] {
        let (other, other_lse) = run(threads, stride);
        same(&other, &out, "results");
        same(&other_lse, &lse, "log-sum-exps");
    }
    // The last prefix is attention, and no error has piled up.
    let view = |data, rows, columns| View::bhsd(data, [1, 1, rows, columns]).unwrap();
    let options = Attention::softmax().scale(2.0);
    let problem = Problem::new(&options, view(&q, 1, D), view(&k, keys, D), view(&v, keys, D_V)).unwrap();
    let last = reference::row(&problem, Isa::Portable, [0, 0, 0]);
    close(&out[(keys - 1) * D_V..], &last.out, 2e-6, "the last prefix");
    assert!((f64::from(lse[keys - 1]) - last.lse).abs() < 1e-5, "{} for {}", lse[keys - 1], last.lse);
}

#[test]
fn prefixes_widen_what_they_read() {
    let keys = 300;
    let data = Data::new(1, keys, |random| random.normal());
    let options = Attention::softmax();
    let [k, v] = data.keys(0, keys);
    let (k, v) = (quantise(k), quantise(v));
    let tensors = [k.tensor(), v.tensor()];
    let found = prefixes(&options, data.q(), tensors[0], tensors[1]).unwrap();
    close(&found, &slow_prefixes(&data, &options, Some(tensors)), 2e-5, "int8");
    let brains = |data: &[f32]| data.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>();
    let (k, v) = (brains(&data.k), brains(&data.v));
    let view = |data, columns| View::bhsd(data, [BATCH, KV_HEADS, keys, columns]).unwrap();
    let tensors = [view(&k, D).into(), view(&v, D_V).into()];
    let found = prefixes(&options, data.q(), tensors[0], tensors[1]).unwrap();
    close(&found, &slow_prefixes(&data, &options, Some(tensors)), 2e-5, "bf16");
}

/// Scores that rise and fall by 1e4 a step, scores of -inf, NaN from where it is seen on, and an infinite value.
#[test]
fn prefixes_of_steep_and_broken_scores() {
    let run = |q: f32, k: &[f32], v: &[f32]| {
        let rows = |data| View::bhsd(data, [1, 1, k.len(), 1]).unwrap();
        prefixes(&Attention::softmax().scale(1.0), View::bhsd(&[q], [1, 1, 1, 1]).unwrap(), rows(k), rows(v)).unwrap()
    };
    let n = 600;
    let rising: Vec<f32> = (0..n).map(|i| 1e4 * i as f32).collect();
    let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
    assert_eq!(run(1.0, &rising, &values), values);
    assert_eq!(run(-1.0, &rising, &values), vec![0.0; n]);
    assert_eq!(run(-1.0, &[f32::INFINITY, f32::INFINITY, 1.0, 2.0], &[1.0, 2.0, 5.0, 6.0])[..3], [0.0, 0.0, 5.0]);
    let mut broken = vec![0.0; n];
    broken[300] = f32::NAN;
    let found = run(1.0, &broken, &vec![2.0; n]);
    assert!(found[..300].iter().all(|x| (x - 2.0).abs() < 1e-6) && found[300..].iter().all(|x| x.is_nan()));
    let mut values = vec![1.0; n];
    values[299] = f32::INFINITY;
    let found = run(1.0, &vec![0.0; n], &values);
    assert!(found[..299].iter().all(|x| (*x - 1.0).abs() < 1e-6) && found[299..].iter().all(|x| *x == f32::INFINITY));
}

#[test]
fn prefixes_say_what_is_wrong() {
    let data = Data::new(1, 10, |random| random.normal());
    let [k, v] = data.keys(0, 10);
    let wrong = |options: Attention<'_>| prefixes(&options, data.q(), k, v).unwrap_err();
    assert!(matches!(wrong(Attention::new(Weighting::Relu)), Error::NoMeaning { .. }));
    assert!(matches!(wrong(Attention::softmax().causal(Align::TopLeft)), Error::NoMeaning { .. }));
    assert!(matches!(wrong(Attention::softmax().log_n_schedule(1.0)), Error::NoMeaning { .. }));
    assert!(matches!(wrong(Attention::softmax().scale(f32::NAN)), Error::Number { .. }));
    for temperature in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let options = Attention::softmax().temperature(Temperature::Constant(temperature));
        assert!(matches!(wrong(options), Error::Number { name: "temperature", .. }), "{temperature}");
    }
    let rows = [1.0; BATCH * HEADS];
    assert!(matches!(wrong(Attention::softmax().temperature(Temperature::PerRow(&rows))), Error::NoMeaning { .. }));
    let two = Data::new(2, 10, |random| random.normal());
    let found = prefixes(&Attention::softmax(), two.q(), k, v).unwrap_err();
    assert!(matches!(found, Error::Dimension { tensor: "q", dimension: "rows", found: 2, expected: 1, .. }), "{found}");
    let mut out = [7.0; BATCH * HEADS * 10 * D_V];
    let view = ViewMut::bhsd(&mut out, [BATCH, HEADS, 10, D_V]).unwrap();
    let found = prefixes_into(&Attention::softmax(), data.q(), k, v, view, Some(&mut [0.0; 3]), Execution::Serial);
    assert!(matches!(found, Err(Error::Length { list: "lse", found: 3, expected: 80, .. })));
    assert!(out.iter().all(|x| *x == 7.0));
    // Nothing to compute.
    let none: &[f32] = &[];
    let empty = |columns| View::bhsd(none, [BATCH, KV_HEADS, 0, columns]).unwrap();
    assert!(prefixes(&Attention::softmax(), data.q(), empty(D), empty(D_V)).unwrap().is_empty());
}
