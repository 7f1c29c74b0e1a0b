//! Half precision by the rule of the field: no further from the truth than twice the error of computing in that precision step by
//! step, plus what no computation can avoid.
//!
//! For f16 and bf16, on every level, widened and on instructions for pairs of bf16. Nothing is ever added up in half precision:
//! rows as long as contexts get are exact to f32.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use regard::reference::{self, Row};
use regard::{Align, Count, Dtype, Execution, Isa, Level, Plan, RowScale, Temperature, Weighting};
use regard_kernels::table::{kernels, rows_kernels};
use regard_tests::{
    Blocks, Case, Engine, Layout, Lists, Path, Random, SLOW, Spec, Stored, Tensor, bound, compare, engines_for,
    is_native, levels, naive, output_rounding, paths, round_to, run, run_plan_as, same, selects, setup_of, weightings,
};

const HEADS: usize = 6;

/// The relative error of rounding to bf16.
const BF16: f64 = 1.0 / 256.0;

fn tensors(queries: usize, keys: usize, d: usize) -> [Tensor; 3] {
    let random = &mut Random::new((queries * keys) as u64);
    [
        Tensor::normal([1, HEADS, queries, d], Layout::Bshd, random),
        Tensor::normal([1, 2, keys, d], Layout::Padded, random),
        Tensor::normal([1, 2, keys, 21], Layout::PaddedBshd, random),
    ]
}

/// What a row should be, and what computing it step by step gives.
struct Truth {
    oracle: Row,
    naive: Vec<f64>,
}

fn truths(case: &Case<'_>, dtype: Dtype) -> Vec<Truth> {
    let problem = case.problem();
    // Products are rounded where selection compares them, and nowhere here.
    let oracle = |row| reference::row(&problem, Isa::Portable, row);
    case.rows().map(|row| Truth { oracle: oracle(row), naive: naive(case, dtype, Dtype::F32, row) }).collect()
}

/// What no computation in this way can avoid, for each column of each row: the bound of the same computation in f32, and on
/// pairs of bf16 the rounding of each weight besides.
///
/// Roundings of weights are independent, each of at most `u w`, hence of a root mean square of at most `u w / sqrt 3`: six
/// of these of their sum are allowed, and never more than the sum of them all.
struct Tiny {
    in_f32: Vec<f64>,
    weights: Vec<f64>,
}

fn tiny(case: &Case<'_>, path: &Path, truths: &[Truth]) -> Vec<Tiny> {
    let of = |(row, truth): ([usize; 3], &Truth)| {
        let in_f32 = bound(case, &truth.oracle, row, &Path { native: false, out: Dtype::F32, ..*path }).out;
        let shape = case.shape(row[0]);
        let kv_head = row[1] / (shape.query_heads / shape.kv_heads);
        let mut errors = vec![[0.0; 2]; shape.value_dim];
        let weights = truth.oracle.weights.iter().enumerate();
        for (key, weight) in weights.filter(|(_, weight)| **weight != 0.0 && path.native) {
            for ([sum, squares], v) in errors.iter_mut().zip(case.value([row[0], kv_head, key])) {
                let error = BF16 * (weight * v).abs();
                *sum += error;
                *squares += error * error;
            }
        }
        let weights = errors.into_iter().map(|[sum, squares]| f64::min(sum, 6.0 * (squares / 3.0).sqrt())).collect();
        Tiny { in_f32, weights }
    };
    case.rows().zip(truths).map(of).collect()
}

/// How much of the rule was used, of a tensor and of the worst element.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    tensor: f64,
    element: f64,
}

impl Used {
    fn and(self, other: Self) -> Self {
        Self { tensor: self.tensor.max(other.tensor), element: self.element.max(other.element) }
    }
}

/// Checks the rule for every element; and for the largest errors of the tensor, where twice the error of computing step by
/// step must do for all roundings to half precision. Says what breaks it.
fn rule(case: &Case<'_>, truths: &[Truth], tiny: &[Tiny], dtype: Dtype, out: &[f32]) -> Result<Used, String> {
    let (mut error, mut naive_error, mut least, mut used) = (0.0_f64, 0.0_f64, 0.0_f64, 0.0_f64);
    for ((row, truth), tiny) in case.rows().zip(truths).zip(tiny) {
        let columns = truth.naive.len();
        for (c, got) in out[case.row(row) * columns..][..columns].iter().enumerate() {
            let exact = truth.oracle.out[c];
            let unavoidable = tiny.in_f32[c] + tiny.weights[c];
            let unavoidable = unavoidable + output_rounding(dtype, exact.abs() + unavoidable);
            // Beyond the largest f16 lies infinity.
            let beyond = dtype == Dtype::F16 && exact.abs() + unavoidable >= 65504.0;
            if beyond && f64::from(*got) == exact.signum() * f64::INFINITY {
                continue;
            }
            let own = (f64::from(*got) - exact).abs();
            // Where a step overflows there is nothing to be twice as far off as: the rest must do.
            let naive = Some((truth.naive[c] - exact).abs()).filter(|naive| naive.is_finite());
            let allowed = 2.0 * naive.unwrap_or(0.0) + unavoidable;
            if own.is_nan() || own > allowed {
                return Err(format!("{got:e} for {exact:e}, allowed {allowed:e}, naive {naive:?}: {row:?} column {c}"));
            }
            used = used.max(own / allowed);
            if let Some(naive) = naive {
                error = error.max(own);
                naive_error = naive_error.max(naive);
                least = least.max(tiny.in_f32[c]);
            }
        }
    }
    let allowed = 2.0 * naive_error + least;
    if error > allowed {
        return Err(format!("{error:e} of a tensor, allowed {allowed:e}, naive {naive_error:e}"));
    }
    Ok(Used { tensor: if error > 0.0 { error / allowed } else { 0.0 }, element: used })
}

/// Every level, with its instructions for pairs of bf16 and without, which is the same where it has none.
fn ways(case: &Case<'_>) -> impl Iterator<Item = (Level, bool)> {
    let natively = |level| Plan::new(&native(case, true).problem(), &setup_of(level)).kernel();
    let ways: Vec<_> = (levels().iter())
        .flat_map(|level| [(*level, true), (*level, false)])
        .filter(|(level, native)| !native || is_native(natively(*level)))
        .collect();
    ways.into_iter()
}

fn native<'a>(case: &Case<'a>, native: bool) -> Case<'a> {
    Case { spec: Spec { native_half: Some(native), ..case.spec.clone() }, ..case.clone() }
}

#[test]
fn the_rule_of_the_field() {
    let lists = Lists::new(HEADS);
    let few = tensors(3, 150, 40);
    let many = tensors(18, 90, 33);
    let mut used = Used::default();
    let mut names = BTreeSet::new();
    for dtype in [Dtype::F16, Dtype::Bf16] {
        for (turn, tensors) in [&few, &many].into_iter().enumerate() {
            let stored = Stored::three(tensors.each_ref(), dtype, dtype);
            for (w, weighting) in weightings().into_iter().filter(|weighting| !selects(weighting)).enumerate() {
                for (i, spec) in lists.specs(&weighting, false).into_iter().enumerate() {
                    if (i + w + turn) % if SLOW { 11 } else { 2 } != 0 {
                        continue;
                    }
                    let case = Case::stored(spec, &stored);
                    let truths = truths(&case, dtype);
                    for (level, is_native) in ways(&case) {
                        let case = native(&case, is_native);
                        let problem = case.problem();
                        let plan = Plan::new(&problem, &setup_of(level));
                        names.insert(plan.kernel());
                        let path = paths(&plan, &problem, Dtype::F32)[0];
                        let tiny = tiny(&case, &path, &truths);
                        for dtype in [Dtype::F32, dtype] {
                            let output = run_plan_as(&plan, &problem, Execution::Serial, Layout::Bhsd, dtype);
                            let own = rule(&case, &truths, &tiny, dtype, &output.out);
                            used = used.and(own.unwrap_or_else(|broken| panic!("{broken}, {path:?}: {:?}", case.spec)));
                        }
                    }
                }
            }
        }
    }
    println!("{names:?}: {used:?}");
}

/// The rule can be broken, on every path: by sums in half precision, and by a result that is too large by a few roundings of
/// the element type.
#[test]
fn the_rule_can_be_broken() {
    for dtype in [Dtype::F16, Dtype::Bf16] {
        for tensors in [tensors(3, 150, 40), tensors(18, 90, 33)] {
            let stored = Stored::three(tensors.each_ref(), dtype, dtype);
            let weightings = [Weighting::Softmax, Weighting::Taylor2, Weighting::Relu];
            for weighting in weightings.into_iter().take(if SLOW { 1 } else { 3 }) {
                let case = Case::stored(Spec::new(weighting.clone()), &stored);
                let truths = truths(&case, dtype);
                let in_half: Vec<f32> =
                    case.rows().flat_map(|row| naive(&case, dtype, dtype, row)).map(|x| x as f32).collect();
                for (level, is_native) in ways(&case) {
                    let case = native(&case, is_native);
                    let output = run(&case.problem(), &setup_of(level), Execution::Serial);
                    let path = &output.paths[0];
                    let tiny = tiny(&case, path, &truths);
                    let holds = |out: &[f32]| rule(&case, &truths, &tiny, Dtype::F32, out);
                    assert_eq!(holds(&output.out).err(), None);
                    assert!(holds(&in_half).is_err(), "sums of {dtype}, {path:?}, {weighting:?}");
                    let more = if dtype == Dtype::F16 { 1.01 } else { 1.03 };
                    let large: Vec<f32> = output.out.iter().map(|x| x * more).collect();
                    assert!(holds(&large).is_err(), "too large, {path:?}, {weighting:?}");
                }
            }
        }
    }
}

/// Kernels for pairs of bf16 and those that widen agree, and options choose between them. Without the instructions there is nothing
/// to choose.
#[test]
fn native_and_widened_agree() {
    let lists = Lists::new(HEADS);
    for level in levels() {
        let [lanes, rows] = [
            kernels(*level).iter().any(|kernel| is_native(kernel.name)),
            rows_kernels(*level).any(|kernel| is_native(kernel.name)),
        ];
        for (queries, has, kind) in [(2, rows, "rows"), (19, lanes, "lanes")] {
            if !has {
                eprintln!("SKIPPED: no {kind} kernel of {} multiplies pairs of bf16 here", level.isa());
            }
            let stored = Stored::three(tensors(queries, 100, 34).each_ref(), Dtype::Bf16, Dtype::Bf16);
            for (turn, weighting) in weightings().into_iter().enumerate() {
                for spec in lists
                    .specs(&weighting, false)
                    .into_iter()
                    .skip(if SLOW { turn % 4 } else { 0 })
                    .step_by(if SLOW { 4 } else { 1 })
                {
                    let case = |native| Case::stored(Spec { native_half: Some(native), ..spec.clone() }, &stored);
                    let [native, widened] = [true, false].map(case);
                    let kernel = |case: &Case<'_>| Plan::new(&case.problem(), &setup_of(*level)).kernel();
                    assert_eq!(is_native(kernel(&native)), has && !selects(&weighting));
                    assert!(!is_native(kernel(&widened)));
                    let [a, b] =
                        [&native, &widened].map(|case| run(&case.problem(), &setup_of(*level), Execution::Serial));
                    if !is_native(kernel(&native)) {
                        a.assert_same(&b, "the same kernel");
                        continue;
                    }
                    let problem = native.problem();
                    for row in native.rows() {
                        let oracle = reference::row(&problem, a.paths[0].rounding, row);
                        let bounds = [&a, &b].map(|output| bound(&native, &oracle, row, &output.paths[0]).out);
                        let allowed = bounds[0].iter().zip(&bounds[1]).map(|(a, b)| a + b);
                        for (allowed, at) in allowed.zip(native.row(row) * 21..) {
                            let difference = (f64::from(a.out[at]) - f64::from(b.out[at])).abs();
                            assert!(difference <= allowed, "{difference:e}: {row:?}, {:?}", native.spec);
                        }
                    }
                    assert_ne!(a.out, b.out, "two ways of rounding");
                }
            }
        }
    }
}

/// An output of half precision is the output of f32, rounded once.
#[test]
fn outputs_are_rounded_once() {
    for dtype in [Dtype::F16, Dtype::Bf16] {
        let stored = [3, 20].map(|queries| Stored::three(tensors(queries, 70, 20).each_ref(), dtype, dtype));
        for engine in engines_for(dtype) {
            for weighting in weightings().into_iter().filter(|weighting| engine.computes(weighting)) {
                for (stored, layout) in stored.iter().zip([Layout::Padded, Layout::Bshd]) {
                    let spec = Spec { causal: Some(Align::BottomRight), ..Spec::new(weighting.clone()) };
                    let case = Case::stored(spec, stored);
                    let run = |out| engine.run(&case, &Blocks { out, layout, ..Blocks::new(32, 7) });
                    let rounded: Vec<f32> = run(Dtype::F32).out.iter().map(|x| round_to(dtype, *x)).collect();
                    same(&run(dtype).out, &rounded, &format!("{} {weighting:?}", engine.name()));
                }
            }
        }
    }
}

/// What a sum in half precision would give: it stands still once its terms are less than half its spacing.
fn standing_sum(dtype: Dtype, terms: impl Iterator<Item = f32>) -> f32 {
    terms.fold(0.0, |sum, term| round_to(dtype, sum + term))
}

/// 65536 keys of equal weight. A sum in f16 stands still at 2048 ones, in bf16 at 256: no such sum is anywhere here.
#[test]
fn rows_as_long_as_contexts_get() {
    let keys: usize = if SLOW { 1 << 13 } else { 1 << 16 };
    let (d, d_v) = (4, 3);
    for dtype in [Dtype::F16, Dtype::Bf16] {
        let zero = Tensor::filled([1, 1, keys, d], Layout::Bhsd, 0.0);
        // Ones, with a value that differs now and then.
        let v = Tensor::from_fn([1, 1, keys, d_v], Layout::Bhsd, |[_, _, r, c]| if r % 5 == c { 1.5 } else { 1.0 });
        for queries in [1, 17] {
            let q = Tensor::filled([1, 1, queries, d], Layout::Bhsd, 1.0);
            let stored = Stored::three([&q, &zero, &v], dtype, dtype);
            for weighting in [
                Weighting::Softmax,
                Weighting::Taylor2,
                Weighting::Sigmoid { bias: regard::SigmoidBias::Constant(0.0) },
            ] {
                let mut spec = Spec::new(weighting.clone());
                if matches!(weighting, Weighting::Sigmoid { .. }) {
                    (spec.row_scale, spec.coefficient) = (Some(RowScale::InvN), Some(2.0));
                }
                for (level, native) in levels().iter().flat_map(|level| [(level, true), (level, false)]) {
                    let case = Case::stored(Spec { native_half: Some(native), ..spec.clone() }, &stored);
                    let problem = case.problem();
                    let plan = Plan::new(&problem, &setup_of(*level));
                    let path = paths(&plan, &problem, Dtype::F32)[0];
                    let out = run_plan_as(&plan, &problem, Execution::Serial, Layout::Bhsd, Dtype::F32).out;
                    // The mean, whose weights are one: exact in any of these types but for the last roundings in f32.
                    for (at, got) in out.iter().enumerate() {
                        let exact =
                            (0..keys).map(|key| f64::from(v.get([0, 0, key, at % d_v]))).sum::<f64>() / keys as f64;
                        let allowed = f64::from(f32::EPSILON) * ((keys as f64).sqrt() + 3.0) * exact;
                        let error = (f64::from(*got) - exact).abs();
                        assert!(error <= allowed, "{got} instead of {exact}, {path:?}, {weighting:?}");
                    }
                }
            }
        }
        // The control: with sums of half precision the rule would be broken by far.
        let column = || (0..keys).map(|key| v.get([0, 0, key, 0]));
        let mean = column().map(f64::from).sum::<f64>() / keys as f64;
        let stood = f64::from(standing_sum(dtype, column())) / keys as f64;
        assert!((stood - mean).abs() > 0.4 * mean, "{stood} for {mean}");
    }
}

/// The same of any numbers, at the same length: widened within the bound of f32, and on pairs of bf16 within that and the
/// roundings of the weights. These average out, to little in a mean of values around 1, where weights that were cut off
/// instead would all be too small.
#[test]
fn long_rows_of_any_numbers() {
    let keys: usize = if SLOW { 1 << 12 } else { 1 << 16 };
    let random = &mut Random::new(65_536);
    let k = Tensor::normal([1, 1, keys, 8], Layout::Bhsd, random);
    let v = Tensor::from_fn([1, 1, keys, 2], Layout::Bhsd, |[_, _, _, c]| c as f32 + random.normal());
    let mut used = Used::default();
    for dtype in [Dtype::F16, Dtype::Bf16] {
        for (queries, weighting) in [(1, Weighting::Softmax), (2, Weighting::Taylor2), (17, Weighting::Softmax)] {
            let q = Tensor::normal([1, 1, queries, 8], Layout::Bhsd, random);
            let stored = Stored::three([&q, &k, &v], dtype, dtype);
            let case = Case::stored(Spec::new(weighting), &stored);
            let problem = case.problem();
            let oracle = |row| reference::row(&problem, Isa::Portable, row);
            // Nothing is allowed for computing step by step.
            let truth = |oracle: Row| Truth { naive: vec![f64::NAN; 2], oracle };
            let truths: Vec<Truth> = case.rows().map(|row| truth(oracle(row))).collect();
            for (level, is_native) in ways(&case) {
                let case = native(&case, is_native);
                let output = run(&case.problem(), &setup_of(level), Execution::Serial);
                let path = &output.paths[0];
                let tiny = tiny(&case, path, &truths);
                let own = rule(&case, &truths, &tiny, Dtype::F32, &output.out);
                used = used.and(own.unwrap_or_else(|broken| panic!("{broken}, {path:?}")));
                if !is_native {
                    continue;
                }
                // The control: weights that are cut off take two thirds of 2^-8 of the mean on average.
                let cut: Vec<f32> = output.out.iter().map(|x| x * (1.0 - 2.0 / 3.0 / 256.0)).collect();
                assert!(rule(&case, &truths, &tiny, Dtype::F32, &cut).is_err(), "{path:?}");
            }
        }
    }
    println!("{used:?}");
}

/// The same for long columns: the product of a query and a key is added up in f32.
#[test]
fn columns_beyond_any_model() {
    let d = 6144;
    for dtype in [Dtype::F16, Dtype::Bf16] {
        let ones = |rows| Tensor::filled([1, 1, rows, d], Layout::Bhsd, 1.0);
        let v = Tensor::filled([1, 1, 1, 2], Layout::Bhsd, 1.0);
        for queries in [1, 17] {
            let stored = Stored::three([&ones(queries), &ones(1), &v], dtype, dtype);
            for engine in engines_for(dtype) {
                // The score itself, over its exact value.
                let spec = Spec { scale: Some(1.0), coefficient: Some(1.0 / 6144.0), ..Spec::new(Weighting::Identity) };
                let case = Case::stored(spec, &stored);
                let out = engine.run(&case, &Blocks::new(32, 20)).out;
                assert!(out.iter().all(|x| (x - 1.0).abs() < 1e-6), "{}: {out:?}", engine.name());
            }
        }
        let stood = standing_sum(dtype, (0..d).map(|_| 1.0));
        assert!(stood < 6144.0 / 2.0, "{stood}");
    }
}

/// Subnormal numbers of f16, and the largest, mean what they say on every kernel.
#[test]
fn the_ends_of_f16() {
    let values = [6e-8, -6e-8, 65504.0, -65504.0, 6.1e-5, 3.0e-5];
    let v = Tensor::from_fn([1, 1, 6, 7], Layout::Bhsd, |[_, _, r, c]| values[(r + c) % 6]);
    let mut identity = Tensor::filled([1, 1, 6, 6], Layout::Bhsd, 0.0);
    (0..6).for_each(|i| *identity.at([0, 0, i, i]) = 1.0);
    let stored = Stored::three([&identity, &identity, &v], Dtype::F16, Dtype::F16);
    let wanted = stored[2].widened(Layout::Bhsd).to_vec();
    for engine in engines_for(Dtype::F16) {
        let temperature = Some(Temperature::Constant(1e-4));
        let all = [Weighting::HardLeft, Weighting::HardRight, Weighting::AverageHard, Weighting::Softmax];
        for weighting in all.into_iter().filter(|weighting| engine.computes(weighting)) {
            let spec = Spec { temperature, count: Some(Count::AllKeys), ..Spec::new(weighting.clone()) };
            let case = Case::stored(spec, &stored);
            for out in [Dtype::F32, Dtype::F16] {
                let got = engine.run(&case, &Blocks { out, ..Blocks::new(32, 4) }).out;
                same(&got, &wanted, &format!("{} {weighting:?}", engine.name()));
            }
        }
    }
}

/// Portable numerics never take instructions that only some machines of a level have.
#[test]
fn portable_numerics_are_widened() {
    let stored = Stored::three(tensors(2, 60, 20).each_ref(), Dtype::Bf16, Dtype::Bf16);
    for level in levels() {
        let portable = Spec { numerics: Some(regard::Numerics::Portable), ..Spec::new(Weighting::Softmax) };
        let case = Case::stored(portable, &stored);
        let plan = Plan::new(&case.problem(), &setup_of(*level));
        assert!(!is_native(plan.kernel()), "{}", plan.explain());
        compare(&case, &case.problem(), &run(&case.problem(), &setup_of(*level), Execution::Serial));
    }
    let best = Level::best();
    let has = rows_kernels(best).any(|kernel| is_native(kernel.name));
    let engine = rows_kernels(best).map(Engine::Rows).find(|engine| engine.is_native());
    assert_eq!(engine.is_some(), has && best.isa() != Isa::Portable);
}
