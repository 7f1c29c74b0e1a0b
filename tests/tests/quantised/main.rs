//! Keys and values of int8: exact about what is stored, and as close to what was there before as its rounding allows.
//!
//! # What rounding costs
//! [`quantise`](regard::quantise) moves each element of a row of K or V by at most half of the row's scale, `h = scale / 2`. To first
//! order in nothing, and with no probability in it:
//!
//! - a product `<q, k_j>` moves by at most `|q|_1 h_j`, and the score, of which soft-cap makes no more and bias and ALiBi
//!   nothing, by `ds_j = |scale| |q|_1 h_j / temperature`;
//! - the log-sum-exp moves by at most the largest `ds`;
//! - a weight before it is divided by anything is between the least and the largest that its function takes between `s - ds`
//!   and `s + ds`; for softmax that is a factor of `exp(+-ds)`;
//! - divided by the sum, it is largest where it is itself the largest and all others are the least (softmax: a factor of at
//!   most `exp(2 max ds)`), and least the other way round. Let `dp_j` be the further of both from the weight `p_j`;
//! - the output moves by at most `sum dp_j |v_j - out| + sum (p_j + dp_j) h_j`, with the `h` of V: the differences of the
//!   weights, with that of a sink, whose value is zero, add up to nothing, so that `out` may be taken from every `v`. Where
//!   weights are not divided, by `sum dw_j |v_j| + sum (|w_j| + dw_j) h_j`;
//! - selection gives a row of V whose score may be the largest, each element within `h`.
#![forbid(unsafe_code)]

mod ends;

use regard::reference::{self, Row};
use regard::{Align, Count, Dtype, Execution, Quantised, Split, Temperature, View, Weighting};
use regard_tests::{
    Blocks, Bound, Case, Engine, Layout, Lists, Output, Random, SLOW, Spec, Stored, Tensor, bound, compare,
    engines_for, levels, run, same, selects, setup_of, weightings,
};

const HEADS: usize = 6;
const KV_HEADS: usize = 2;

fn tensors([queries, keys]: [usize; 2], [d, d_v]: [usize; 2]) -> [Tensor; 3] {
    let random = &mut Random::new((queries * keys + d) as u64);
    [
        Tensor::normal([2, HEADS, queries, d], Layout::Bshd, random),
        Tensor::normal([2, KV_HEADS, keys, d], Layout::Padded, random),
        Tensor::normal([2, KV_HEADS, keys, d_v], Layout::PaddedBshd, random),
    ]
}

/// q in a type of its turn, and K and V in int8.
fn stored(tensors: &[Tensor; 3], turn: usize) -> [Stored; 3] {
    let q_dtype = [Dtype::F32, Dtype::F16, Dtype::Bf16][turn % 3];
    Stored::three(tensors.each_ref(), q_dtype, Dtype::Int8)
}

/// Masks, score terms and temperatures of every kind: those of all suites, a mask tensor and a bias.
struct Options {
    lists: Lists,
    keep: Vec<u8>,
    bias: Vec<f32>,
    sizes: [usize; 2],
}

impl Options {
    fn new(sizes: [usize; 2]) -> Self {
        let random = &mut Random::new(sizes[0] as u64);
        let pairs = sizes[0] * sizes[1];
        let keep = (0..pairs).map(|_| u8::from(random.chance(0.7))).collect();
        Self { lists: Lists::new(HEADS), keep, bias: random.normals(HEADS * pairs), sizes }
    }

    fn specs(&self, weighting: &Weighting) -> Vec<Spec<'_>> {
        let [queries, keys] = self.sizes;
        let keep = View::bhsd(&self.keep, [1, 1, queries, keys]).expect("as long as its shape");
        let bias = View::bhsd(&self.bias, [1, HEADS, queries, keys]).expect("as long as its shape");
        let plain = || Spec::new(weighting.clone());
        let mut all = self.lists.specs(weighting, false);
        all.push(Spec { keep: Some(keep), ..plain() });
        all.push(Spec { bias: Some(bias), causal: Some(Align::BottomRight), ..plain() });
        all.push(Spec { anti_causal: Some(Align::TopLeft), count: Some(Count::Visible), ..plain() });
        all.push(Spec { key_lengths: Some(&[77, 3]), keep: Some(keep), bias: Some(bias), ..plain() });
        all
    }
}

/// Every kernel, against the oracle on what is stored: within the bound of its arithmetic, as if it had never been anything
/// else.
#[test]
fn exact_about_what_is_stored() {
    let sizes = [[3, 90], [18, 90]];
    let all = sizes.map(|sizes| tensors(sizes, [21, 19]));
    let options = sizes.map(Options::new);
    let (mut turn, mut used) = (0, 0.0_f64);
    for engine in engines_for(Dtype::Int8) {
        for weighting in weightings().into_iter().filter(|weighting| engine.computes(weighting)) {
            let specs = options.each_ref().map(|options| options.specs(&weighting));
            for specs in specs[0].iter().zip(&specs[1]) {
                turn += 1;
                if turn % if SLOW { 59 } else { 5 } != 0 {
                    continue;
                }
                let (tensors, spec) = if turn % 4 == 0 { (&all[1], specs.1) } else { (&all[0], specs.0) };
                let stored = stored(tensors, turn);
                let case = Case::stored(spec.clone(), &stored);
                let split = [Split::Never, Split::Keys(32)][turn / 2 % 2];
                let blocks = Blocks { split, ..Blocks::new([16, 64][turn / 3 % 2], 7) };
                let report = compare(&case, &case.problem(), &engine.run(&case, &blocks));
                used = used.max(report.used);
            }
        }
    }
    println!("{used:.2} of what is allowed");
}

/// How far what is stored may move a row.
struct Loss {
    out: Vec<f64>,
    lse: f64,
    /// By how much each score moves.
    scores: Vec<f64>,
}

/// Half of the scale of a row, with the roundings of the scale and of its products with bytes, `[sequence, kv head, key]`.
fn half(case: &Case<'_>, tensor: &regard::Tensor<'_>, [sequence, kv_head, key]: [usize; 3]) -> f64 {
    let regard::Tensor::Int8(quantised) = tensor else { panic!("{} has no scales", tensor.dtype()) };
    let [entry, row] = case.key_place(sequence, key);
    let scale = f64::from(*quantised.scales.get([entry, kv_head, row, 0]));
    scale * (0.5 + 64.0 * f64::from(f32::EPSILON))
}

/// See the top of the file. `scores` are those of the case as it was.
fn loss(was: &Case<'_>, is: &Case<'_>, oracle: &Row, scores: &Bound, row: [usize; 3]) -> Loss {
    let spec = &was.spec;
    let shape = was.shape(row[0]);
    let place = |key| [row[0], row[1] / (shape.query_heads / shape.kv_heads), key];
    let seen: Vec<(usize, f64)> =
        scores.scores.iter().enumerate().filter_map(|(key, score)| Some((key, (*score)?.0))).collect();
    let n = spec.length(shape.keys, seen.len());
    let cold = spec.inverse_temperature(row[1], was.row(row), n);
    let sum_of_q = was.query(row).iter().map(|q| q.abs()).sum::<f64>();
    let moves = |key| (spec.scale(&shape) * cold).abs() * sum_of_q * half(is, &is.k, place(key));
    let moved: Vec<f64> = (0..shape.keys).map(moves).collect();
    let lse = seen.iter().map(|(key, _)| moved[*key]).fold(0.0, f64::max);
    if spec.selects() {
        return Loss { out: vec![0.0; shape.value_dim], lse, scores: moved };
    }
    let max = seen.iter().fold(f64::NEG_INFINITY, |max, (_, s)| max.max(*s));
    let function =
        |s: f64| if matches!(spec.weighting, Weighting::Softmax) { (s - max).exp() } else { spec.function(s) };
    // Functions that turn around do so at 0, or at -1.
    let range = |(key, s): &(usize, f64)| {
        let ends = [s - moved[*key], s + moved[*key]];
        let turns = [0.0, -1.0].into_iter().filter(|turn| (ends[0]..ends[1]).contains(turn));
        let values = || turns.clone().chain(ends).map(function);
        [values().fold(f64::INFINITY, f64::min), function(*s), values().fold(f64::NEG_INFINITY, f64::max)]
    };
    let ranges: Vec<[f64; 3]> = seen.iter().map(range).collect();
    let normalised = matches!(spec.weighting, Weighting::Softmax | Weighting::EvenPower { .. } | Weighting::Taylor2);
    let sink = spec.sinks.map_or(0.0, |sinks| (f64::from(sinks[row[1]]) - max).exp());
    let [least, sum, most] = [0, 1, 2].map(|i| sink + ranges.iter().map(|range| range[i]).sum::<f64>());
    // The weight of one key and how far it moves, from its own range and the sums of all.
    let weight = |[low, own, high]: [f64; 3]| {
        if !normalised {
            let factor = spec.factor(n).abs();
            return (own.abs() * factor, (high - own).max(own - low) * factor);
        }
        let part = |own: f64, all: f64| if own == 0.0 { 0.0 } else { own / all };
        let now = part(own, sum);
        (now, (part(high, high + (least - low)) - now).max(now - part(low, low + (most - high))))
    };
    let mut out: Vec<f64> = match normalised {
        // The sink's own weight.
        true => oracle.out.iter().map(|out| weight([sink; 3]).1 * out.abs()).collect(),
        false => vec![0.0; shape.value_dim],
    };
    for ((key, _), range) in seen.iter().zip(ranges) {
        let (own, moves) = weight(range);
        let half = half(is, &is.v, place(*key));
        for (c, v) in was.value(place(*key)).into_iter().enumerate() {
            let centre = if normalised { oracle.out[c] } else { 0.0 };
            out[c] += moves * (v - centre).abs() + (own + moves) * half;
        }
    }
    Loss { out, lse, scores: moved }
}

/// Compares each row of what was computed from bytes with the oracle on what was there before, and gives the largest part of
/// the loss that was used. Says what is further off.
fn within_the_loss([was, is]: [&Case<'_>; 2], output: &Output) -> Result<f64, String> {
    let columns = was.v.shape()[3];
    let mut used = 0.0_f64;
    for row in was.rows() {
        let path = &output.paths[row[0]];
        let oracle = reference::row(&was.problem(), path.rounding, row);
        let before = bound(was, &oracle, row, path);
        let loss = loss(was, is, &oracle, &before, row);
        let index = was.row(row);
        let out = &output.out[index * columns..][..columns];
        let broken = |what: String| Err(format!("{what}: {row:?}, {path:?}, {:?}", was.spec));
        if was.spec.selects() {
            if !may_be_selected([was, is], row, &before, &loss, out) {
                return broken("no key that may be selected".to_owned());
            }
            continue;
        }
        let in_f32 = bound(is, &reference::row(&is.problem(), path.rounding, row), row, path);
        for (c, got) in out.iter().enumerate() {
            let error = (f64::from(*got) - oracle.out[c]).abs();
            if error.is_nan() || error > loss.out[c] + in_f32.out[c] {
                return broken(format!("{error:e} of {:e}, column {c}", loss.out[c]));
            }
            // What f32 alone may be off says nothing about the loss.
            if error > in_f32.out[c] {
                used = used.max((error - in_f32.out[c]) / loss.out[c]);
            }
        }
        if let Some(lse) = output.lse.as_ref().map(|lse| f64::from(lse[index])).filter(|lse| *lse != oracle.lse) {
            let error = (lse - oracle.lse).abs();
            if error.is_nan() || error > loss.lse + in_f32.lse {
                return broken(format!("log-sum-exp off by {error:e} of {:e}", loss.lse));
            }
        }
    }
    Ok(used)
}

/// Whether an output is the value of a key whose score may have been the largest, or zero if there is none.
fn may_be_selected([was, is]: [&Case<'_>; 2], row: [usize; 3], before: &Bound, loss: &Loss, out: &[f32]) -> bool {
    let shape = was.shape(row[0]);
    let place = |key| [row[0], row[1] / (shape.query_heads / shape.kv_heads), key];
    let ranges = || {
        let range = |(key, score): (usize, &Option<(f64, f64)>)| {
            let (s, ds) = (*score)?;
            // Bytes make products of about the same magnitude, and of about the same rounding.
            Some((key, s, loss.scores[key] + 2.0 * ds))
        };
        before.scores.iter().enumerate().filter_map(range)
    };
    let sure = ranges().map(|(_, s, ds)| s - ds).fold(f64::NEG_INFINITY, f64::max);
    if sure == f64::NEG_INFINITY {
        return out.iter().all(|x| *x == 0.0);
    }
    ranges().filter(|(_, s, ds)| s + ds >= sure).any(|(key, ..)| {
        let half = half(is, &is.v, place(key));
        out.iter().zip(was.value(place(key))).all(|(got, v)| (f64::from(*got) - v).abs() <= half)
    })
}

/// Every weighting with options of every kind, on every level, for few queries and for many.
#[test]
fn close_to_what_was_there() {
    let sizes = [[2, 90], [17, 90]];
    let all = sizes.map(|sizes| tensors(sizes, [12, 7]));
    let options = sizes.map(Options::new);
    let mut turn = 0;
    for weighting in weightings() {
        let specs = options.each_ref().map(|options| options.specs(&weighting));
        let mut used = 0.0_f64;
        for (i, level) in (0..specs[0].len()).flat_map(|i| levels().iter().map(move |level| (i, level))) {
            turn += 1;
            if turn % if SLOW { 7 } else { 2 } != 0 {
                continue;
            }
            let which = usize::from(turn % 6 == 0);
            let stored = stored(&all[which], turn / 2);
            let q = stored[0].widened(Layout::Bhsd);
            let was = Case::new(specs[which][i].clone(), &q, &all[which][1], &all[which][2]);
            let is = Case::stored(was.spec.clone(), &stored);
            let output = run(&is.problem(), &setup_of(*level), Execution::Serial);
            used = used.max(within_the_loss([&was, &is], &output).unwrap_or_else(|broken| panic!("{broken}")));
        }
        println!("{weighting:?}: {used:.3} of the loss that is allowed");
        assert!(selects(&weighting) || SLOW || used > 0.01, "{weighting:?}: the bound says nothing");
    }
}

/// The bound is reached: every element of one key is rounded up by half of its scale and every one of another down, where the
/// query is positive, and values are rounded away from their mean.
#[test]
fn the_worst_that_can_happen() {
    let d = 24;
    // The first element makes the scale 1; the query does not look at it.
    let up = |c: usize| if c == 0 { 127.0 } else { 3.501 };
    let down = |c: usize| if c == 0 { 127.0 } else { 3.499 };
    let k = Tensor::from_fn([1, 1, 2, d], Layout::Bhsd, |[_, _, key, c]| if key == 0 { up(c) } else { down(c) });
    let v = Tensor::from_fn([1, 1, 2, d], Layout::Bhsd, |[_, _, key, c]| if key == 0 { up(c) } else { -up(c) });
    for queries in [1, 16] {
        let q = Tensor::from_fn([1, 1, queries, d], Layout::Bhsd, |[_, _, _, c]| if c == 0 { 0.0 } else { 0.05 });
        let stored = Stored::three([&q, &k, &v], Dtype::F32, Dtype::Int8);
        for weighting in [
            Weighting::Softmax,
            Weighting::Sigmoid { bias: regard::SigmoidBias::Constant(-16.0) },
            Weighting::Polynomial { degree: 3 },
        ] {
            let spec = Spec { scale: Some(4.0), ..Spec::new(weighting.clone()) };
            let was = Case::new(spec.clone(), &q, &k, &v);
            let is = Case::stored(spec, &stored);
            for level in levels() {
                let output = run(&is.problem(), &setup_of(*level), Execution::Serial);
                let used = within_the_loss([&was, &is], &output).unwrap_or_else(|broken| panic!("{broken}"));
                println!("{weighting:?}, {queries} queries, {level:?}: {used:.3}");
                assert!(used > 0.8 && used <= 1.0, "{weighting:?}, {queries} queries, {level:?}: {used:.3}");
            }
        }
    }
}

/// The bound can be broken: by scales of the row above, and by bytes that are cut off instead of rounded (which averages out
/// among several).
#[test]
fn the_bound_can_be_broken() {
    let tensors = tensors([2, 20], [12, 7]);
    let stored = stored(&tensors, 0);
    let holds = |weighting: Weighting, k: &Tensor, v: &Tensor| {
        let was = Case::new(Spec::new(weighting), &tensors[0], &tensors[1], &tensors[2]);
        let is = Case::stored(was.spec.clone(), &stored);
        let case = Case::new(was.spec.clone(), &tensors[0], k, v);
        let output = run(&case.problem(), &setup_of(levels()[0]), Execution::Serial);
        within_the_loss([&was, &is], &output).is_ok()
    };
    let scale = |which: usize, [b, h, r]: [usize; 3]| {
        let data = tensors[which].view();
        data.row([b, h, r]).iter().fold(0.0_f32, |max, x| max.max(x.abs())) / 127.0
    };
    let like = |which: usize, element: &dyn Fn(f32, [usize; 3]) -> f32| {
        let from = &tensors[which];
        Tensor::from_fn(from.shape(), Layout::Bhsd, |at| element(from.get(at), [at[0], at[1], at[2]]))
    };
    let rounded = |which| like(which, &|x, row| (x / scale(which, row)).round_ties_even() * scale(which, row));
    let cut = |which| like(which, &|x, row| (x / scale(which, row)).floor() * scale(which, row));
    let shifted = |which| {
        let above = |[b, h, r]: [usize; 3]| [b, h, r.saturating_sub(1)];
        like(which, &|x, row| (x / scale(which, row)).round_ties_even() * scale(which, above(row)))
    };
    let (k, v) = (rounded(1), rounded(2));
    for weighting in [Weighting::Softmax, Weighting::HardLeft, Weighting::Taylor2] {
        assert!(holds(weighting.clone(), &k, &v), "{weighting:?}");
        assert!(!holds(weighting.clone(), &k, &shifted(2)), "scales of V of the row above, {weighting:?}");
    }
    assert!(!holds(Weighting::Softmax, &shifted(1), &v), "scales of K of the row above");
    assert!(!holds(Weighting::HardLeft, &k, &cut(2)), "bytes of V that are cut off");
}
