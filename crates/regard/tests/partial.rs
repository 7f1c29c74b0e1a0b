//! Results over some of the keys: however the keys are cut, merging gives what all of them give.
#![forbid(unsafe_code)]

mod common;

use common::{numbers, run, setup_of, small_integers, weightings};
use regard::{
    Align, Attention, Count, Dtype, Error, Execution, Keys, Level, Partial, Plan, Problem, Queries, RowScale,
    SigmoidBias, Temperature, View, ViewMut, Weighting, bf16, f16, reference,
};

const HEADS: [usize; 2] = [4, 2];
const D: usize = 24;
const D_V: usize = 13;
const KEYS: usize = 101;

struct Tensors {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    queries: usize,
}

impl Tensors {
    fn new(queries: usize, integers: bool) -> Self {
        let make = |len: usize, seed| if integers { small_integers(len, seed) } else { numbers(len, seed) };
        Self {
            q: make(HEADS[0] * queries * D, 1),
            k: make(HEADS[1] * KEYS * D, 2),
            v: numbers(HEADS[1] * KEYS * D_V, 3),
            queries,
        }
    }

    /// The problem of the keys `first..first + keys`.
    fn problem(&self, options: &Attention<'static>, first: usize, keys: usize) -> Problem<'_> {
        let rows = |data, columns: usize| {
            let strides = [0, KEYS * columns, columns, 1];
            View::strided(data, [1, HEADS[1], keys, columns], strides).unwrap()
        };
        let q = View::bhsd(&self.q, [1, HEADS[0], self.queries, D]).unwrap();
        let (k, v) = (rows(&self.k[first * D..], D), rows(&self.v[first * D_V..], D_V));
        Problem::new(options, q, k, v).unwrap()
    }
}

fn part(problem: &Problem<'_>, level: Level) -> Partial {
    let plan = Plan::new(problem, &setup_of(level));
    let mut partial = Partial::new(problem).unwrap();
    let mut workspace = vec![f32::NAN; plan.workspace_len(1)];
    plan.run_partial(problem, &mut partial, &mut workspace, Execution::Serial).unwrap();
    partial
}

fn finish(partial: &Partial, lse: bool) -> (Vec<f32>, Vec<f32>) {
    let shape = partial.shape();
    let mut out = vec![7.0; shape.iter().product()];
    let mut sums = vec![7.0; partial.states().len()];
    partial.finish(ViewMut::bhsd(&mut out, shape).unwrap(), lse.then_some(&mut sums)).unwrap();
    (out, sums)
}

const CUTS: [&[usize]; 5] =
    [&[0, KEYS], &[0, 1, KEYS], &[0, 50, 50, KEYS], &[0, 33, 64, 100, KEYS], &[0, 0, KEYS, KEYS]];

#[test]
fn parts_make_the_whole() {
    for level in Level::available() {
        for queries in [1, 3, 33] {
            for integers in [false, true] {
                let tensors = Tensors::new(queries, integers);
                for weighting in weightings() {
                    // A row of the last part sees its keys from 0 on; hide what is after row + 60 of all.
                    let options = |first: usize| {
                        Attention::new(weighting.clone()).scale(0.3).causal(Align::Offset(60 - first as i64))
                    };
                    let whole = tensors.problem(&options(0), 0, KEYS);
                    let plan = Plan::new(&whole, &setup_of(*level));
                    let wanted = reference::attention(&whole, plan.rounding(&whole.sequences()[0]));
                    let softmax = matches!(weighting, Weighting::Softmax);
                    let run = run(&whole, *level);
                    for cuts in CUTS {
                        let problems: Vec<_> = cuts
                            .windows(2)
                            .map(|cut| tensors.problem(&options(cut[0]), cut[0], cut[1] - cut[0]))
                            .collect();
                        let parts: Vec<_> = problems.iter().map(|problem| part(problem, *level)).collect();
                        // From the left, and from the right.
                        let mut left = parts[0].clone();
                        parts[1..].iter().for_each(|part| left.merge(part).unwrap());
                        let mut right = parts[parts.len() - 1].clone();
                        for part in parts[..parts.len() - 1].iter().rev() {
                            let mut merged = part.clone();
                            merged.merge(&right).unwrap();
                            right = merged;
                        }
                        for merged in [left, right] {
                            let (out, lse) = finish(&merged, softmax);
                            for (got, wanted) in out.iter().zip(&wanted) {
                                let allowed = if whole.options().weighting().selects() { 1e-6 } else { 2e-5 };
                                let error = (f64::from(*got) - wanted).abs();
                                assert!(
                                    error <= allowed * wanted.abs().max(1.0),
                                    "{got} instead of {wanted}, {queries} queries, cut at {cuts:?}, {weighting:?}"
                                );
                            }
                            if let Some(wanted) = &run.lse {
                                assert!(lse.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-5 * b.abs().max(1.0)));
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A part of all keys is the result, bit for bit.
#[test]
fn one_part_is_the_result() {
    for queries in [5, 50] {
        let tensors = Tensors::new(queries, false);
        for weighting in weightings() {
            let options = Attention::new(weighting).causal(Align::BottomRight);
            let problem = tensors.problem(&options, 0, KEYS);
            let wanted = run(&problem, Level::best());
            let (out, lse) = finish(&part(&problem, Level::best()), wanted.lse.is_some());
            assert_eq!(out, wanted.out);
            assert!(wanted.lse.is_none_or(|wanted| wanted == lse));
        }
    }
}

#[test]
fn sinks_temperatures_and_factors_count_once() {
    static SINKS: [f32; 4] = [0.5, f32::NEG_INFINITY, 3.0, -2.0];
    static TEMPERATURES: [f32; 4] = [0.5, 1.0, 2.0, 3.0];
    let count = Count::Constant(KEYS as f32);
    let sigmoid = Weighting::Sigmoid { bias: SigmoidBias::NegLogN };
    let all = [
        Attention::softmax().sinks(&SINKS).temperature(Temperature::PerHead(&TEMPERATURES)),
        Attention::softmax().log_n_schedule(0.7).count(count).softcap(2.0),
        Attention::new(Weighting::Polynomial { degree: 3 })
            .coefficient(0.25)
            .row_scale(RowScale::InvSqrtN)
            .count(count),
        Attention::new(sigmoid).count(count),
    ];
    let tensors = Tensors::new(4, false);
    for options in all {
        let whole = tensors.problem(&options, 0, KEYS);
        let wanted = run(&whole, Level::best());
        let [first, second] = [(0, 40), (40, KEYS - 40)].map(|(first, keys)| tensors.problem(&options, first, keys));
        let mut merged = part(&first, Level::best());
        merged.merge(&part(&second, Level::best())).unwrap();
        let (out, lse) = finish(&merged, wanted.lse.is_some());
        assert!(out.iter().zip(&wanted.out).all(|(a, b)| (a - b).abs() < 1e-5));
        if let Some(wanted) = &wanted.lse {
            assert!(lse.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-5));
        }
    }
}

#[test]
fn lengths_of_parts_are_no_lengths() {
    let tensors = Tensors::new(2, false);
    let sigmoid = Weighting::Sigmoid { bias: SigmoidBias::NegLogN };
    let all = [
        ("a temperature schedule", Attention::softmax().log_n_schedule(1.0)),
        ("a row scale", Attention::new(Weighting::Relu).row_scale(RowScale::InvN)),
        ("the bias -log n", Attention::new(sigmoid)),
    ];
    for (name, options) in all {
        for (count, allowed) in [(Count::AllKeys, false), (Count::Visible, false), (Count::Constant(9.0), true)] {
            let options = options.clone().count(count);
            let problem = tensors.problem(&options, 0, KEYS);
            match Partial::new(&problem) {
                Err(Error::NoMeaning { option, .. }) => assert!(option == name && !allowed),
                result => assert!(result.is_ok() && allowed, "{name}"),
            }
            // Not at a run either.
            let mut partial = Partial::new(&tensors.problem(&Attention::softmax(), 0, 3)).unwrap();
            let plan = Plan::new(&problem, &setup_of(Level::best()));
            let mut workspace = vec![0.0; plan.workspace_len(1)];
            let result = plan.run_partial(&problem, &mut partial, &mut workspace, Execution::Serial);
            assert_eq!(result.is_ok(), allowed);
            assert!(allowed || partial.sums().iter().all(|sum| *sum == 0.0));
        }
    }
}

/// What hides behind a mask or in a part without visible keys leaves no trace.
#[test]
fn parts_without_keys_are_neutral() {
    let mut tensors = Tensors::new(3, false);
    for x in tensors.v.iter_mut().chain(&mut tensors.k) {
        *x = if x.to_bits() % 3 == 0 { f32::NAN } else { f32::INFINITY };
    }
    let clean = Tensors::new(3, false);
    for weighting in weightings() {
        let options = Attention::new(weighting.clone()).causal(Align::TopLeft);
        let hidden = Attention::new(weighting).causal(Align::Offset(-50));
        let good = part(&clean.problem(&options, 0, 40), Level::best());
        let none = part(&tensors.problem(&hidden, 40, 30), Level::best());
        let bits = |partial: &Partial| partial.sums().iter().map(|sum| sum.to_bits()).collect::<Vec<_>>();
        let (mut before, mut after) = (none.clone(), good.clone());
        before.merge(&good).unwrap();
        after.merge(&none).unwrap();
        assert_eq!(finish(&before, false), finish(&good, false));
        assert_eq!(bits(&after), bits(&good));
        assert!(finish(&none, false).0.iter().all(|x| *x == 0.0));
    }
}

#[test]
fn parts_travel_as_numbers() {
    let tensors = Tensors::new(3, true);
    for weighting in weightings() {
        let options = Attention::new(weighting);
        let problem = tensors.problem(&options, 0, 60);
        let sent = part(&problem, Level::best());
        let elsewhere = tensors.problem(&options, 0, 1);
        let got = Partial::from_parts(&elsewhere, sent.states().to_vec(), sent.sums().to_vec()).unwrap();
        assert_eq!(finish(&got, false), finish(&sent, false));
        let error = Partial::from_parts(&elsewhere, Vec::new(), sent.sums().to_vec()).unwrap_err();
        assert!(matches!(error, Error::Length { list: "states", found: 0, expected: 12, .. }), "{error}");
        let error = Partial::from_parts(&elsewhere, sent.states().to_vec(), vec![0.0]).unwrap_err();
        assert!(matches!(error, Error::Length { list: "sums", found: 1, .. }), "{error}");
    }
}

#[test]
fn only_parts_of_one_thing_merge() {
    let tensors = Tensors::new(2, false);
    static SINKS: [f32; 4] = [1.0; 4];
    let new = |options: &Attention<'static>| Partial::new(&tensors.problem(options, 0, KEYS)).unwrap();
    let softmax = Attention::softmax;
    let cubic = |degree| Attention::new(Weighting::Polynomial { degree });
    let pairs = [
        ("the weighting", softmax(), Attention::new(Weighting::HardLeft)),
        ("the weighting", cubic(2), cubic(3)),
        ("the factor of scores (scale over temperature)", softmax(), softmax().scale(1.0)),
        ("the sink", softmax(), softmax().sinks(&SINKS)),
        ("the factor of the output", cubic(2), cubic(2).coefficient(2.0)),
    ];
    for (wanted, a, b) in pairs {
        let error = new(&a).merge(&new(&b)).unwrap_err();
        assert!(matches!(&error, Error::Partial { what, .. } if *what == wanted), "{error}");
    }
    let other = Tensors::new(3, false);
    let mut partial = new(&softmax());
    let problem = other.problem(&softmax(), 0, KEYS);
    let error = partial.merge(&Partial::new(&problem).unwrap()).unwrap_err();
    assert!(matches!(&error, Error::Partial { what: "the shape", .. }), "{error}");
    let plan = Plan::new(&problem, &setup_of(Level::best()));
    let mut workspace = vec![0.0; plan.workspace_len(1)];
    let error = plan.run_partial(&problem, &mut partial, &mut workspace, Execution::Serial).unwrap_err();
    assert!(matches!(&error, Error::Partial { what: "the shape", .. }), "{error}");
}

#[test]
fn results_are_rounded_and_checked() {
    let q = vec![bf16::ONE; HEADS[0] * D];
    let kv = numbers(HEADS[1] * 9 * D, 1);
    let q = View::bhsd(&q, [1, HEADS[0], 1, D]).unwrap();
    let kv = View::bhsd(&kv, [1, HEADS[1], 9, D]).unwrap();
    let problem = Problem::new(&Attention::new(Weighting::Relu), q, kv, kv).unwrap();
    let partial = part(&problem, Level::best());
    let (wanted, _) = finish(&partial, false);
    let mut out = vec![bf16::ZERO; HEADS[0] * D];
    partial.finish(ViewMut::bhsd(&mut out, partial.shape()).unwrap(), None).unwrap();
    assert_eq!(out, wanted.into_iter().map(bf16::from_f32).collect::<Vec<_>>());

    let mut halves = vec![f16::ONE; HEADS[0] * D];
    let error = partial.finish(ViewMut::bhsd(&mut halves, partial.shape()).unwrap(), None).unwrap_err();
    assert!(matches!(error, Error::Dtype { tensor: "out", found: Dtype::F16, .. }), "{error}");
    let mut lse = [7.0; 4];
    let error = partial.finish(ViewMut::bhsd(&mut out, partial.shape()).unwrap(), Some(&mut lse)).unwrap_err();
    assert!(matches!(error, Error::NoMeaning { option: "a log-sum-exp", .. }), "{error}");
    let mut short = vec![0.0; HEADS[0] * D];
    let error = partial.finish(ViewMut::bhsd(&mut short, [1, HEADS[0], D, 1]).unwrap(), None).unwrap_err();
    assert!(matches!(error, Error::Dimension { tensor: "out", dimension: "rows", .. }), "{error}");
    assert!(halves.iter().all(|x| *x == f16::ONE) && lse == [7.0; 4]);
}

/// A prompt that two sequences share: its part is computed once for the queries of each, and merged with their own keys.
#[test]
fn a_shared_prefix() {
    let prefix = Tensors::new(2, false);
    let own = numbers(HEADS[1] * 12 * D, 9);
    let own_v = numbers(HEADS[1] * 12 * D_V, 10);
    let q = View::thd(&prefix.q, [2, HEADS[0], D]).unwrap();
    let k = View::thd(&own, [12, HEADS[1], D]).unwrap();
    let v = View::thd(&own_v, [12, HEADS[1], D_V]).unwrap();
    let options = Attention::softmax();
    let offsets = Queries::Packed(&[0, 1, 2]);
    let own = Problem::ragged(&options, q, offsets, k, v, Keys::Packed(&[0, 5, 12])).unwrap();
    let shared = {
        let k = View::strided(&prefix.k, [1, HEADS[1], KEYS, D], [0, KEYS * D, D, 1]).unwrap();
        let v = View::strided(&prefix.v, [1, HEADS[1], KEYS, D_V], [0, KEYS * D_V, D_V, 1]).unwrap();
        // All queries are one sequence to the prefix.
        Problem::ragged(&options, q, Queries::Packed(&[0, 2]), k, v, Keys::Padded).unwrap()
    };
    let mut partial = part(&shared, Level::best());
    partial.merge(&part(&own, Level::best())).unwrap();
    let (out, _) = finish(&partial, true);
    // The oracle, by hand.
    for (row, keys) in [(0, 0..5), (1, 5..12)] {
        for head in 0..HEADS[0] {
            let kv = head / 2;
            let dot = |k: &dyn Fn(usize) -> f32| {
                (0..D).map(|c| f64::from(*q.get([0, head, row, c])) * f64::from(k(c))).sum::<f64>() / (D as f64).sqrt()
            };
            let mut weights: Vec<f64> =
                (0..KEYS).map(|key| dot(&|c| prefix.k[(kv * KEYS + key) * D + c]).exp()).collect();
            weights.extend(keys.clone().map(|key| dot(&|c| *k.get([0, kv, key, c])).exp()));
            let sum: f64 = weights.iter().sum();
            for c in 0..D_V {
                let values = (0..KEYS).map(|key| prefix.v[(kv * KEYS + key) * D_V + c]);
                let values = values.chain(keys.clone().map(|key| *v.get([0, kv, key, c])));
                let wanted: f64 = values.zip(&weights).map(|(v, w)| f64::from(v) * w).sum::<f64>() / sum;
                let got = f64::from(out[(head * 2 + row) * D_V + c]);
                assert!((got - wanted).abs() < 1e-5, "{got} instead of {wanted}");
            }
        }
    }
}

/// What a partial result held before is gone, also in rows that belong to no sequence now.
#[test]
fn runs_start_afresh() {
    let tensors = Tensors::new(3, false);
    let q = View::thd(&tensors.q, [3, HEADS[0], D]).unwrap();
    let k = View::strided(&tensors.k, [1, HEADS[1], KEYS, D], [0, KEYS * D, D, 1]).unwrap();
    let v = View::strided(&tensors.v, [1, HEADS[1], KEYS, D_V], [0, KEYS * D_V, D_V, 1]).unwrap();
    for weighting in weightings() {
        let options = Attention::new(weighting);
        let problem =
            |offsets: &[usize]| Problem::ragged(&options, q, Queries::Packed(offsets), k, v, Keys::Padded).unwrap();
        let mut partial = part(&problem(&[0, 3]), Level::best());
        let first = problem(&[0, 1]);
        let plan = Plan::new(&first, &setup_of(Level::best()));
        let mut workspace = vec![0.0; plan.workspace_len(1)];
        plan.run_partial(&first, &mut partial, &mut workspace, Execution::Serial).unwrap();
        let softmax = matches!(options.weighting(), Weighting::Softmax);
        assert_eq!(finish(&partial, softmax), finish(&part(&first, Level::best()), softmax));
        let (out, lse) = finish(&partial, softmax);
        let none = |lse: &[f32]| lse[1..].iter().all(|lse| *lse == f32::NEG_INFINITY);
        assert!(!softmax || lse.chunks(3).all(none));
        assert!(out.chunks(3 * D_V).all(|head| head[D_V..].iter().all(|x| *x == 0.0)));
    }
}
