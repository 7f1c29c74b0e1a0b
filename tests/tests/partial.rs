//! Partial results: keys that are cut into problems of their own, in any way, and merged in order give what all of them give.
#![forbid(unsafe_code)]

use rayon::ThreadPoolBuilder;
use regard::reference;
use regard::{
    Align, Count, Dtype, Execution, Keys, Level, Partial, Plan, Problem, Queries, Split, Temperature, View, ViewMut,
    Weighting, bf16, f16,
};
use regard_simd::Element;
use regard_tests::{
    Case, Guarded, Layout, Lists, Output, Random, SLOW, Spec, Stored, Tensor, bound_of_parts, levels, paths, run, same,
    selects, setup_of, weightings,
};

const HEADS: usize = 6;
const KV_HEADS: usize = 2;
const D: usize = 12;
const D_V: usize = 19;

/// All keys, and whatever is said of pairs.
struct Whole {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    /// `[heads, queries, keys]`
    bias: Vec<f32>,
    /// `[queries, keys]`
    keep: Vec<u8>,
    temperatures: Vec<f32>,
    lists: Lists,
}

impl Whole {
    fn new(queries: usize, keys: usize) -> Self {
        let random = &mut Random::new((queries + keys) as u64);
        Self {
            q: Tensor::normal([2, HEADS, queries, D], Layout::Bshd, random),
            k: Tensor::normal([2, KV_HEADS, keys, D], Layout::Bhsd, random),
            v: Tensor::normal([2, KV_HEADS, keys, D_V], Layout::Padded, random),
            bias: random.normals(HEADS * queries * keys),
            keep: (0..queries * keys).map(|_| u8::from(random.chance(0.7))).collect(),
            temperatures: (0..2 * HEADS * queries).map(|_| 0.5 + random.uniform() as f32).collect(),
            lists: Lists::new(HEADS),
        }
    }

    fn sizes(&self) -> [usize; 2] {
        [self.q.shape()[2], self.k.shape()[2]]
    }

    fn specs(&self, weighting: &Weighting) -> Vec<Spec<'_>> {
        let mut all = self.lists.specs(weighting, true);
        let causal = || Spec { count: Some(Count::Constant(40.0)), ..Spec::new(weighting.clone()) };
        let causal = || Spec { causal: Some(Align::BottomRight), ..causal() };
        let [_, keys] = self.sizes();
        all.push(Spec { keep: Some(self.keep(0, keys)), ..causal() });
        let temperature = Some(Temperature::PerRow(&self.temperatures));
        all.push(Spec { bias: Some(self.bias(0, keys)), temperature, ..causal() });
        all
    }

    fn keep(&self, first: usize, keys: usize) -> View<'_, u8> {
        let [queries, all] = self.sizes();
        View::strided(&self.keep[first..], [1, 1, queries, keys], [0, 0, all, 1]).expect("within the data")
    }

    fn bias(&self, first: usize, keys: usize) -> View<'_, f32> {
        let [queries, all] = self.sizes();
        let strides = [0, queries * all, all, 1];
        View::strided(&self.bias[first..], [1, HEADS, queries, keys], strides).expect("within the data")
    }

    /// The options for the keys from `first` on, which are numbered from 0 there.
    fn part<'a>(&'a self, spec: &Spec<'a>, first: usize, keys: usize) -> Spec<'a> {
        let [queries, all] = self.sizes();
        let at = |align: Option<Align>| align.map(|_| Align::Offset(all as i64 - queries as i64 - first as i64));
        Spec {
            causal: at(spec.causal),
            align: at(spec.align),
            keep: spec.keep.map(|_| self.keep(first, keys)),
            bias: spec.bias.map(|_| self.bias(first, keys)),
            ..spec.clone()
        }
    }

    /// The partial results of the keys between these cuts.
    fn parts(&self, spec: &Spec<'_>, dtypes: [Dtype; 2], level: Level, cuts: &[usize]) -> Vec<Partial> {
        let q = Stored::new(&self.q, dtypes[0], Layout::Bshd);
        let part = |ends: &[usize]| {
            let (first, keys) = (ends[0], ends[1] - ends[0]);
            let [k, v] =
                [&self.k, &self.v].map(|tensor| Stored::new(&tensor.rows(first, keys), dtypes[1], Layout::Padded));
            let case = Case::of(self.part(spec, first, keys), q.tensor(), k.tensor(), v.tensor());
            partial(&case.problem(), level)
        };
        cuts.windows(2).map(part).collect()
    }
}

/// The partial result of a problem, in a workspace between guard bands.
fn partial(problem: &Problem<'_>, level: Level) -> Partial {
    let plan = Plan::new(problem, &setup_of(level));
    let mut partial = Partial::new(problem).expect("nothing depends on the number of keys");
    let mut workspace = Guarded::new(plan.workspace_len(1));
    plan.run_partial(problem, &mut partial, workspace.inner(), Execution::Serial).expect("a checked problem runs");
    workspace.check("workspace");
    partial
}

/// Earlier keys first, one part after the other.
fn left_fold(parts: &[Partial]) -> Partial {
    let mut all = parts[0].clone();
    parts[1..].iter().for_each(|part| all.merge(part).expect("parts of one problem"));
    all
}

/// Neighbours, then pairs of neighbours, and so on.
fn tree(parts: &[Partial]) -> Partial {
    match parts {
        [one] => one.clone(),
        several => {
            let (left, right) = several.split_at(several.len() / 2);
            let mut left = tree(left);
            left.merge(&tree(right)).expect("parts of one problem");
            left
        }
    }
}

/// The result, between guard bands.
fn finish(partial: &Partial, has_lse: bool) -> (Vec<f32>, Option<Vec<f32>>) {
    let shape = partial.shape();
    let mut out = Guarded::new(shape.iter().product());
    let mut lse = Guarded::new(shape[..3].iter().product());
    let view = ViewMut::bhsd(out.inner(), shape).expect("as long as its shape");
    partial.finish(view, has_lse.then(|| lse.inner())).expect("the shape is that of the partial result");
    out.check("out");
    lse.check("lse");
    (out.inner().to_vec(), has_lse.then(|| lse.inner().to_vec()))
}

const DTYPES: [[Dtype; 2]; 5] = [
    [Dtype::F32, Dtype::F32],
    [Dtype::Bf16, Dtype::Bf16],
    [Dtype::F16, Dtype::F16],
    [Dtype::F32, Dtype::Int8],
    [Dtype::Bf16, Dtype::F16],
];

/// Cuts of so many keys: one, several, at odd places, with parts of nothing.
fn cuts(keys: usize, turn: usize) -> Vec<usize> {
    let mut random = Random::new(turn as u64);
    let mut all = vec![0, keys];
    match turn % 4 {
        0 => all.push(keys / 2 + 1),
        1 => all.extend((0..6).map(|_| random.below(keys + 1))),
        // Nothing before, between and after.
        2 => all.extend([0, 70, 70, keys]),
        _ => all.extend((0..keys).step_by(17)),
    }
    all.sort_unstable();
    all
}

#[test]
fn any_cut_is_the_whole_within_rounding() {
    let few = Whole::new(3, 130);
    let many = Whole::new(20, 130);
    let mut turn = 0;
    for dtypes in DTYPES {
        for weighting in weightings() {
            let (few_specs, many_specs) = (few.specs(&weighting), many.specs(&weighting));
            for (few_spec, many_spec) in few_specs.into_iter().zip(many_specs) {
                turn += 1;
                if turn % if SLOW { 31 } else { 3 } != 0 {
                    continue;
                }
                let (whole, spec) = if turn / 3 % 2 == 0 { (&few, few_spec) } else { (&many, many_spec) };
                let cuts = cuts(130, turn / 3);
                let stored = Stored::three([&whole.q, &whole.k, &whole.v], dtypes[0], dtypes[1]);
                for level in levels() {
                    let case = Case::stored(spec.clone(), &stored);
                    let problem = case.problem();
                    let plan = Plan::new(&problem, &setup_of(*level));
                    let path = paths(&plan, &problem, Dtype::F32)[0];
                    let parts = whole.parts(&spec, dtypes, *level, &cuts);
                    let has_lse = matches!(weighting, Weighting::Softmax);
                    let results = [left_fold(&parts), tree(&parts)].map(|merged| finish(&merged, has_lse));
                    if selects(&weighting) {
                        // Normal numbers make no ties: a row of V is chosen by scores of the same bits.
                        let at_once = run(&problem, &setup_of(*level), Execution::Serial).out;
                        results.iter().for_each(|(out, _)| same(out, &at_once, &format!("{cuts:?}, {spec:?}")));
                        continue;
                    }
                    for row in case.rows() {
                        let oracle = reference::row(&problem, path.rounding, row);
                        let bound = bound_of_parts(&case, &oracle, row, &path, &cuts);
                        let index = case.row(row);
                        for (out, lse) in &results {
                            for c in 0..D_V {
                                let error = (f64::from(out[index * D_V + c]) - oracle.out[c]).abs();
                                assert!(error <= bound.out[c], "{error:e} of {:e}: {cuts:?}, {spec:?}", bound.out[c]);
                            }
                            if let Some(lse) = lse {
                                let got = f64::from(lse[index]);
                                let fits = got == oracle.lse || (got - oracle.lse).abs() <= bound.lse;
                                assert!(fits, "log-sum-exp {got} instead of {}: {cuts:?}, {spec:?}", oracle.lse);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Ties across parts, of whole numbers: exact in any order of merges.
#[test]
fn ties_across_parts() {
    let mut whole = Whole::new(5, 130);
    let random = &mut Random::new(3);
    whole.q = Tensor::integers([2, HEADS, 5, D], Layout::Bhsd, 1, random);
    whole.k = Tensor::integers([2, KV_HEADS, 130, D], Layout::Bhsd, 1, random);
    whole.v = Tensor::integers([2, KV_HEADS, 130, D_V], Layout::Bhsd, 100, random);
    let mut ties = 0;
    for weighting in [Weighting::HardLeft, Weighting::HardRight, Weighting::AverageHard] {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            let stored = Stored::three([&whole.q, &whole.k, &whole.v], dtype, dtype);
            let spec = Spec { causal: Some(Align::BottomRight), ..Spec::new(weighting.clone()) };
            for (turn, level) in (0..8).flat_map(|turn| levels().iter().map(move |level| (turn, level))) {
                let case = Case::stored(spec.clone(), &stored);
                let at_once = run(&case.problem(), &setup_of(*level), Execution::Serial);
                let cuts = cuts(130, turn);
                let parts = whole.parts(&spec, [dtype; 2], *level, &cuts);
                for merged in [left_fold(&parts), tree(&parts)] {
                    same(&finish(&merged, false).0, &at_once.out, &format!("{weighting:?}, {cuts:?}, {level:?}"));
                }
                for row in case.rows() {
                    let oracle = reference::row(&case.problem(), at_once.paths[0].rounding, row);
                    ties += usize::from(oracle.weights.iter().filter(|weight| **weight > 0.0).count() > 1);
                }
            }
        }
    }
    assert!(ties > 100, "there are ties");
}

/// Parts that end where spans do, merged one after the other, have the bits of a split run.
#[test]
fn parts_are_spans() {
    for queries in [3, 20] {
        let whole = Whole::new(queries, 130);
        for dtypes in DTYPES {
            for (turn, weighting) in weightings().into_iter().enumerate() {
                let mut specs = whole.specs(&weighting);
                let spec = specs.swap_remove(turn % specs.len());
                let split = Spec { split: Some(Split::Keys(1)), ..spec.clone() };
                let stored = Stored::three([&whole.q, &whole.k, &whole.v], dtypes[0], dtypes[1]);
                for level in levels() {
                    let problem = Case::stored(split.clone(), &stored).problem();
                    let plan = Plan::new(&problem, &setup_of(*level));
                    let span = plan.span_for(queries, 130);
                    let cuts: Vec<usize> = (0..130).step_by(span).chain([130]).collect();
                    let merged = left_fold(&whole.parts(&spec, dtypes, *level, &cuts));
                    let output = run(&problem, &setup_of(*level), Execution::Serial);
                    let (out, lse) = finish(&merged, output.lse.is_some());
                    let parts = Output { out, lse, ..output.clone() };
                    parts.assert_same(&output, &format!("spans of {span}, {dtypes:?}, {level:?}, {spec:?}"));
                }
            }
        }
    }
}

/// States and sums are all there is: on another machine they would be put together again.
#[test]
fn rebuilt_from_raw_parts() {
    let whole = Whole::new(2, 130);
    let stored = Stored::three([&whole.q, &whole.k, &whole.v], Dtype::F32, Dtype::F32);
    for weighting in weightings() {
        for spec in whole.specs(&weighting) {
            for level in levels() {
                let spec = Spec { isa: Some(level.isa()), ..spec.clone() };
                let problem = Case::stored(spec.clone(), &stored).problem();
                let parts = whole.parts(&spec, [Dtype::F32; 2], *level, &[0, 50, 77, 130]);
                let rebuild = |part: &Partial| {
                    // Bits, as a wire would carry them.
                    let states: Vec<[u32; 4]> = part.states().iter().map(|state| state.0.map(f32::to_bits)).collect();
                    let states = states.into_iter().map(|bits| regard::RowState(bits.map(f32::from_bits))).collect();
                    Partial::from_parts(&problem, states, part.sums().to_vec()).expect("as many as there were")
                };
                let rebuilt: Vec<Partial> = parts.iter().map(rebuild).collect();
                let has_lse = matches!(weighting, Weighting::Softmax);
                let (out, lse) = finish(&left_fold(&parts), has_lse);
                let (again, lse_again) = finish(&rebuild(&left_fold(&rebuilt)), has_lse);
                same(&out, &again, &format!("{level:?}, {spec:?}"));
                assert_eq!(lse, lse_again);
            }
        }
    }
}

/// Parts from machines of different levels: whichever merges and concludes them gives the same bits, within rounding of the
/// whole.
#[test]
fn parts_of_different_levels() {
    let mut turn = 0;
    for queries in [3, 20] {
        let whole = Whole::new(queries, 130);
        for dtypes in [[Dtype::F32, Dtype::F32], [Dtype::Bf16, Dtype::Bf16], [Dtype::F32, Dtype::Int8]] {
            let stored = Stored::three([&whole.q, &whole.k, &whole.v], dtypes[0], dtypes[1]);
            for weighting in weightings() {
                turn += 1;
                if turn % if SLOW { 14 } else { 2 } != 0 {
                    continue;
                }
                let mut specs = whole.specs(&weighting);
                let spec = specs.swap_remove(turn / 2 % specs.len());
                let cuts = [0, 31, 64, 77, 130];
                let of_levels: Vec<_> =
                    levels().iter().map(|level| whole.parts(&spec, dtypes, *level, &cuts)).collect();
                // A part of each level in turn, as numbers.
                let parts: Vec<&Partial> = (0..4).map(|i| &of_levels[(turn + i) % of_levels.len()][i]).collect();
                let has_lse = matches!(weighting, Weighting::Softmax);
                let results: Vec<_> = (levels().iter())
                    .map(|level| {
                        let here = Spec { isa: Some(level.isa()), ..spec.clone() };
                        let problem = Case::stored(here, &stored).problem();
                        let rebuild = |part: &&Partial| {
                            let (states, sums) = (part.states().to_vec(), part.sums().to_vec());
                            Partial::from_parts(&problem, states, sums).expect("as many as there were")
                        };
                        finish(&left_fold(&parts.iter().map(rebuild).collect::<Vec<_>>()), has_lse)
                    })
                    .collect();
                for (level, (out, lse)) in levels().iter().zip(&results) {
                    same(out, &results[0].0, &format!("concluded at {}, {dtypes:?}, {spec:?}", level.isa()));
                    assert_eq!(lse, &results[0].1, "concluded at {}, {dtypes:?}, {spec:?}", level.isa());
                }
                let case = Case::stored(spec.clone(), &stored);
                let problem = case.problem();
                let paths: Vec<_> = levels()
                    .iter()
                    .map(|level| paths(&Plan::new(&problem, &setup_of(*level)), &problem, Dtype::F32)[0])
                    .collect();
                for row in case.rows() {
                    let oracle = reference::row(&problem, paths[0].rounding, row);
                    // The worst of all levels, of which each computed a part.
                    let bounds: Vec<_> =
                        paths.iter().map(|path| bound_of_parts(&case, &oracle, row, path, &cuts)).collect();
                    for c in 0..D_V {
                        let error = (f64::from(results[0].0[case.row(row) * D_V + c]) - oracle.out[c]).abs();
                        let allowed = bounds.iter().map(|bound| bound.out[c]).fold(0.0, f64::max);
                        assert!(error <= allowed, "{error:e} of {allowed:e}: {dtypes:?}, {row:?}, {spec:?}");
                    }
                }
            }
        }
    }
}

/// A part without keys, or whose keys nobody sees, is neutral on either side, bit for bit.
#[test]
fn parts_of_nothing_are_neutral() {
    let whole = Whole::new(3, 130);
    for weighting in weightings() {
        for spec in whole.specs(&weighting) {
            for level in levels() {
                let has_lse = matches!(weighting, Weighting::Softmax);
                let part = whole.parts(&spec, [Dtype::F32; 2], *level, &[0, 130]).remove(0);
                let nothing = whole.parts(&spec, [Dtype::F32; 2], *level, &[0, 0]).remove(0);
                let unseen = {
                    let spec = Spec { align: None, causal: Some(Align::Offset(-3)), ..spec.clone() };
                    let case = Case::new(spec, &whole.q, &whole.k, &whole.v);
                    partial(&case.problem(), *level)
                };
                let wanted = finish(&part, has_lse);
                for neutral in [&nothing, &unseen] {
                    let [mut before, mut after] = [neutral.clone(), part.clone()];
                    before.merge(&part).expect("parts of one problem");
                    after.merge(neutral).expect("parts of one problem");
                    for merged in [before, after] {
                        let got = finish(&merged, has_lse);
                        same(&got.0, &wanted.0, &format!("{level:?}, {spec:?}"));
                        assert_eq!(got.1, wanted.1);
                    }
                }
            }
        }
    }
}

/// Results in half precision are the rounded ones, and with NaN in a part that a row sees, NaN.
#[test]
fn finished_in_half_precision() {
    fn narrow<T: Element>(x: &[f32]) -> Vec<f32> {
        x.iter().map(|x| T::narrow(*x).widen()).collect()
    }
    let mut whole = Whole::new(2, 130);
    *whole.v.at([0, 1, 90, 4]) = f32::NAN;
    for weighting in [Weighting::Softmax, Weighting::AverageHard, Weighting::Relu, Weighting::Taylor2] {
        let spec = || Spec { causal: Some(Align::BottomRight), ..Spec::new(weighting.clone()) };
        for level in levels() {
            let merged = |dtype| left_fold(&whole.parts(&spec(), [dtype, Dtype::F32], *level, &[0, 33, 100, 130]));
            let shape = merged(Dtype::F32).shape();
            let len = shape.iter().product();
            let (half, brain) = (merged(Dtype::F16), merged(Dtype::Bf16));
            let mut out = Guarded::<f16>::of(len);
            half.finish(ViewMut::bhsd(out.inner(), shape).expect("as long as its shape"), None).expect("f16 as q");
            let got: Vec<f32> = out.inner().iter().map(|x| x.widen()).collect();
            same(&got, &narrow::<f16>(&finish(&half, false).0), "f16");
            out.check("out");
            let mut out = Guarded::<bf16>::of(len);
            brain.finish(ViewMut::bhsd(out.inner(), shape).expect("as long as its shape"), None).expect("bf16 as q");
            let got: Vec<f32> = out.inner().iter().map(|x| x.widen()).collect();
            same(&got, &narrow::<bf16>(&finish(&brain, false).0), "bf16");
            out.check("out");
            if !selects(&weighting) {
                assert!(got.iter().any(|x| x.is_nan()) && got.iter().filter(|x| x.is_nan()).count() <= 6);
            }
        }
    }
}

/// Packed sequences, some without queries or keys, and rows of nobody: zeros and -inf.
#[test]
fn partial_results_of_packed_sequences() {
    let random = &mut Random::new(8);
    let q = Tensor::normal([1, HEADS, 25, D], Layout::Bshd, random);
    let k = Tensor::normal([1, KV_HEADS, 90, D], Layout::Bshd, random);
    let v = Tensor::normal([1, KV_HEADS, 90, D_V], Layout::Bshd, random);
    // Rows 23 and 24 belong to nobody.
    let (queries, keys) = ([0, 2, 2, 20, 23], [0, 40, 47, 90, 90]);
    for weighting in weightings() {
        let count = Some(Count::Constant(10.0));
        let spec = Spec { causal: Some(Align::BottomRight), count, ..Spec::new(weighting.clone()) };
        let case = Case::new(spec, &q, &k, &v).ragged(Queries::Packed(&queries), Keys::Packed(&keys));
        let problem = case.problem();
        for level in levels() {
            let output = run(&problem, &setup_of(*level), Execution::Serial);
            let (out, lse) = finish(&partial(&problem, *level), output.lse.is_some());
            same(&out, &output.out, &format!("{weighting:?}, {level:?}"));
            if let (Some(lse), Some(wanted)) = (lse, output.lse) {
                for (row, (got, wanted)) in lse.iter().zip(&wanted).enumerate() {
                    let nobody = row % 25 >= 23;
                    assert!(if nobody { *got == f32::NEG_INFINITY } else { got == wanted }, "row {row}: {got}");
                }
            }
        }
    }
}

/// Threads share the spans of a part, and change no bit.
#[test]
fn any_number_of_threads() {
    let random = &mut Random::new(9);
    let keys = if SLOW { 2100 } else { 4200 };
    let q = Tensor::normal([1, 8, 2, 48], Layout::Bhsd, random);
    let k = Tensor::normal([1, 2, keys, 48], Layout::Bhsd, random);
    for level in levels() {
        for weighting in [Weighting::Softmax, Weighting::AverageHard, Weighting::Taylor2] {
            let problem = Case::new(Spec::new(weighting.clone()), &q, &k, &k).problem();
            let plan = Plan::new(&problem, &setup_of(*level));
            assert!(plan.tasks() > 2);
            let wanted = finish(&partial(&problem, *level), false).0;
            for threads in [2, 3, 8] {
                let pool = ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be had");
                let mut partial = Partial::new(&problem).expect("nothing depends on the number of keys");
                let mut workspace = Guarded::new(plan.workspace_len(threads));
                let execution = Execution::Pool(&pool);
                plan.run_partial(&problem, &mut partial, workspace.inner(), execution).expect("a checked problem runs");
                workspace.check("workspace");
                same(&finish(&partial, false).0, &wanted, &format!("{threads} threads, {weighting:?}, {level:?}"));
            }
        }
    }
}
