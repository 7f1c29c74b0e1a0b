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

/// Rows of numbers at the ends of their range.
fn extreme_rows(columns: usize) -> Vec<Vec<f32>> {
    let row = |element: &dyn Fn(usize) -> f32| (0..columns).map(element).collect::<Vec<f32>>();
    let sign = |c: usize| if c % 3 == 1 { -1.0 } else { 1.0 };
    vec![
        row(&|_| 0.0),
        row(&|c| if c == 2 { 1e30 } else { sign(c) }),
        row(&|c| sign(c) * f32::from_bits(1 + 37 * c as u32)),
        row(&|c| sign(c) * f32::MIN_POSITIVE * (1.0 + c as f32)),
        row(&|c| sign(c) * f32::MAX / (1.0 + c as f32)),
        row(&|_| f32::MAX),
        row(&|_| 0.7),
        row(&|_| -3e-20),
        row(&|c| if c == 1 { -0.0 } else { 0.0 }),
        row(&|c| if c == 0 { f32::from_bits(1) } else { 0.0 }),
    ]
}

/// Each row of V by itself is what is stored, bit for bit, and off by half a scale at most: rows of zeros, of one huge number
/// among others, of subnormal numbers, of the largest, and of one and the same.
#[test]
fn rows_of_v_at_the_ends_of_their_range() {
    let columns = 35;
    let rows = extreme_rows(columns);
    let n = rows.len();
    let v = Tensor::from_fn([1, 1, n, columns], Layout::Padded, |[_, _, r, c]| rows[r][c]);
    let identity = Tensor::from_fn([1, 1, n, n], Layout::Bhsd, |[_, _, r, c]| if r == c { 1.0 } else { 0.0 });
    let stored = Stored::three([&identity, &identity, &v], Dtype::F32, Dtype::Int8);
    let wanted = stored[2].widened(Layout::Bhsd).to_vec();
    let case = Case::stored(Spec::new(Weighting::Softmax), &stored);
    for (r, (row, wanted)) in rows.iter().zip(wanted.chunks(columns)).enumerate() {
        let half = half(&case, &case.v, [0, 0, r]);
        for (x, got) in row.iter().zip(wanted) {
            let error = (f64::from(*got) - f64::from(*x)).abs();
            assert!(error <= half, "{got:e} for {x:e}, half a scale is {half:e}");
        }
    }
    for engine in engines_for(Dtype::Int8) {
        let temperature = Some(Temperature::Constant(1e-4));
        let all = [Weighting::HardLeft, Weighting::HardRight, Weighting::AverageHard, Weighting::Softmax];
        for weighting in all.into_iter().filter(|weighting| engine.computes(weighting)) {
            let case = Case::stored(Spec { temperature, ..Spec::new(weighting.clone()) }, &stored);
            let output = engine.run(&case, &Blocks::new(32, 4));
            if engine.is_fixed() {
                // The product of weight and scale is rounded to 16 bits.
                compare(&case, &case.problem(), &output);
                continue;
            }
            let got = output.out;
            let got: Vec<f32> = got.into_iter().map(|x| x + 0.0).collect();
            same(
                &got,
                &wanted.iter().map(|x| x + 0.0).collect::<Vec<_>>(),
                &format!("{} {weighting:?}", engine.name()),
            );
        }
    }
}

/// The same rows as keys, with queries so small that the products stay finite.
#[test]
fn rows_of_k_at_the_ends_of_their_range() {
    let d = 19;
    let rows = extreme_rows(d);
    let random = &mut Random::new(9);
    let k = Tensor::from_fn([1, 1, 3 * rows.len(), d], Layout::Bshd, |[_, _, r, c]| rows[r % rows.len()][c]);
    let v = Tensor::normal([1, 1, 3 * rows.len(), 5], Layout::Bhsd, random);
    for queries in [2, 18] {
        let q = Tensor::from_fn([1, 1, queries, d], Layout::Bhsd, |_| 1e-38 * random.normal());
        let stored = Stored::three([&q, &k, &v], Dtype::F32, Dtype::Int8);
        for weighting in [Weighting::Softmax, Weighting::AverageHard, Weighting::Relu, Weighting::Taylor2] {
            let case = Case::stored(Spec::new(weighting.clone()), &stored);
            for engine in engines_for(Dtype::Int8).filter(|engine| engine.computes(&weighting)) {
                compare(&case, &case.problem(), &engine.run(&case, &Blocks::new(16, 5)));
            }
        }
    }
}

/// Keys of zeros have the score zero, and rows of one number are as good as f32: they stand at the end of their own scale.
#[test]
fn rows_of_one_number() {
    let random = &mut Random::new(12);
    let (keys, d) = (40, 16);
    for queries in [3, 17] {
        let q = Tensor::normal([1, HEADS, queries, d], Layout::Bhsd, random);
        let same_number = |columns: usize, random: &mut Random| {
            let numbers = random.normals(KV_HEADS * keys);
            let number = |h: usize, r: usize| if r.is_multiple_of(5) { 0.0 } else { numbers[h * keys + r] };
            Tensor::from_fn([1, KV_HEADS, keys, columns], Layout::Bhsd, |[_, h, r, _]| number(h, r))
        };
        let (k, v) = (same_number(d, random), same_number(7, random));
        let stored = Stored::three([&q, &k, &v], Dtype::F32, Dtype::Int8);
        for weighting in weightings().into_iter().filter(|weighting| !selects(weighting)) {
            let was = Case::new(Spec::new(weighting), &q, &k, &v);
            let is = Case::stored(was.spec.clone(), &stored);
            for level in levels() {
                let output = run(&is.problem(), &setup_of(*level), Execution::Serial);
                // Three roundings for each element: of the scale, of its product with 127, and of that with the query or the weight.
                for row in was.rows() {
                    let oracle = reference::row(&was.problem(), output.paths[0].rounding, row);
                    let bound = bound(&was, &oracle, row, &output.paths[0]);
                    for (c, exact) in oracle.out.iter().enumerate() {
                        let error = (f64::from(output.out[was.row(row) * 7 + c]) - exact).abs();
                        assert!(
                            error <= 2.0 * bound.out[c],
                            "{error:e} of {:e}: {row:?}, {:?}",
                            bound.out[c],
                            was.spec
                        );
                    }
                }
            }
        }
    }
}

/// A row with NaN or infinity is NaN, in K and in V: rows of the output that see it are NaN, and others keep their bits.
#[test]
fn rows_that_are_not_finite() {
    let bad_key = 25;
    for queries in [4, 20] {
        let clean = tensors([queries, 40], [12, 7]);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for which in [1, 2] {
                let mut dirty = clean.clone();
                (0..4).for_each(|i| *dirty[which].at([i / 2, i % 2, bad_key, 3]) = bad);
                let [clean, dirty] = [&clean, &dirty].map(|tensors| stored(tensors, 0));
                // The first half of the rows does not see the key.
                let first = bad_key as i64 - queries as i64 / 2;
                for engine in engines_for(Dtype::Int8) {
                    let weightings = weightings().into_iter().step_by(if SLOW { 5 } else { 1 });
                    for weighting in weightings.filter(|weighting| engine.computes(weighting)) {
                        let spec = Spec { causal: Some(Align::Offset(first)), ..Spec::new(weighting.clone()) };
                        let case = Case::stored(spec, &dirty);
                        let blocks = Blocks::new(16, 5);
                        let [was, got] = [&clean, &dirty]
                            .map(|stored| engine.run(&Case::stored(case.spec.clone(), stored), &blocks).out);
                        let name = || format!("{bad} in tensor {which}, {weighting:?}, {}", engine.name());
                        for (at, (was, got)) in was.iter().zip(&got).enumerate() {
                            let sees = at / 7 % queries >= queries / 2;
                            if !sees {
                                assert_eq!(got.to_bits(), was.to_bits(), "{}", name());
                            } else if which == 1 || !selects(&weighting) {
                                assert!(got.is_nan(), "row {}: {got}, {}", at / 7, name());
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Every byte means itself, -128 too, which nothing is rounded to; scales may be negative, zero, and the same for many rows.
#[test]
fn every_byte_and_any_scale() {
    let (keys, d, d_v) = (48, 16, 37);
    let bytes = |columns: usize, start: usize| -> Vec<i8> {
        (0..2 * keys * columns).map(|i| (start + i * 7) as u8 as i8).collect()
    };
    let (k, v) = (bytes(d, 0), bytes(d_v, 128));
    assert!((-128..=127).all(|byte| k.contains(&byte) && v.contains(&byte)));
    let scales: Vec<f32> = (0..2 * keys).map(|i| [0.01, -0.02, 0.0, 0.005, -0.0][i % 5]).collect();
    for queries in [3, 20] {
        let q = Tensor::normal([1, HEADS, queries, d], Layout::Bhsd, &mut Random::new(7));
        // For each row, for each head, and for all.
        for scale_shape in [[1, 2, keys, 1], [1, 2, 1, 1], [1, 1, 1, 1]] {
            let len = scale_shape.iter().product();
            let scales = View::bhsd(&scales[..len], scale_shape).expect("as long as its shape");
            let rows = |data, columns| Quantised {
                data: View::bhsd(data, [1, 2, keys, columns]).expect("as long as its shape"),
                scales,
            };
            let full: Vec<f32> = (0..2 * keys)
                .map(|i| {
                    *scales.get([
                        0,
                        if scale_shape[1] == 2 { i / keys } else { 0 },
                        if scale_shape[2] == 1 { 0 } else { i % keys },
                        0,
                    ])
                })
                .collect();
            let full = View::bhsd(&full, [1, 2, keys, 1]).expect("a scale for each row");
            for weighting in [Weighting::Softmax, Weighting::HardRight, Weighting::ReluSquared, Weighting::Taylor2] {
                let spec = Spec { causal: Some(Align::BottomRight), ..Spec::new(weighting.clone()) };
                for engine in engines_for(Dtype::Int8).filter(|engine| engine.computes(&weighting)) {
                    let own = Case::of(
                        spec.clone(),
                        q.view(),
                        Quantised { scales: full, ..rows(&k, d) },
                        Quantised { scales: full, ..rows(&v, d_v) },
                    );
                    let output = engine.run(&own, &Blocks::new(32, 6));
                    compare(&own, &own.problem(), &output);
                    let options = spec.options().isa(engine.isa());
                    let [shared, each] = [
                        regard::attention(&options, q.view(), rows(&k, d), rows(&v, d_v)),
                        regard::attention(&options, q.view(), own.k, own.v),
                    ];
                    same(&shared.expect("valid"), &each.expect("valid"), &format!("{scale_shape:?}, {weighting:?}"));
                }
            }
        }
    }
}

/// Whatever a plan chooses for keys and values of int8 is one of the kernels that are tested here.
#[test]
fn plans_choose_kernels_for_int8() {
    let names: Vec<&str> = engines_for(Dtype::Int8).map(Engine::name).collect();
    for queries in [1, 15, 16, 40] {
        let stored = stored(&tensors([queries, 40], [12, 7]), queries);
        for level in levels() {
            let problem = Case::stored(Spec::new(Weighting::Softmax), &stored).problem();
            let plan = regard::Plan::new(&problem, &setup_of(*level));
            assert!(names.contains(&plan.kernel()), "{}", plan.explain());
        }
    }
}
