//! Decoding is the last row of a prefill: few queries against all keys, on the rows kernels, give what the same queries give at
//! the end of many, on the lanes kernels, within the rounding of both. Every weighting and option, every level, every element
//! type, with bf16 instructions and without.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::Mutex;

use regard::{Align, Dtype, Execution, Level, Plan, Temperature, View, Weighting, reference};
use regard_tests::{
    Case, Layout, Lists, Output, Random, SLOW, Spec, Stored, Tensor, bound, compare, is_native, levels, run_plan_as,
    same, setup_of, weightings,
};

const HEADS: usize = 6;
const BATCH: usize = 2;

/// Element types of q, and of k and v.
const DTYPES: [[Dtype; 2]; 6] = [
    [Dtype::F32, Dtype::F32],
    [Dtype::F16, Dtype::F16],
    [Dtype::Bf16, Dtype::Bf16],
    [Dtype::F32, Dtype::Int8],
    [Dtype::Bf16, Dtype::Int8],
    [Dtype::F16, Dtype::Bf16],
];

/// Queries, and what is said of each of them.
struct Rows {
    q: Tensor,
    keep: Vec<u8>,
    bias: Tensor,
    /// `[batch, heads, queries]`
    temperatures: Vec<f32>,
}

/// As many queries as keys.
struct Prompt {
    rows: Rows,
    k: Tensor,
    v: Tensor,
    lists: Lists,
}

impl Prompt {
    /// Of whole numbers, whose products and scores are exact, or of normal ones.
    fn new(keys: usize, whole: bool) -> Self {
        let mut random = Random::new(keys as u64);
        let mut tensor = |shape: [usize; 4], layout| {
            let random = &mut random;
            if whole { Tensor::integers(shape, layout, 2, random) } else { Tensor::normal(shape, layout, random) }
        };
        let q = tensor([BATCH, HEADS, keys, 20], Layout::Bshd);
        let k = tensor([BATCH, 2, keys, 20], Layout::Padded);
        let v = tensor([BATCH, 2, keys, 11], Layout::PaddedBshd);
        let bias = Tensor::from_fn([1, HEADS, keys, keys], Layout::Bhsd, |_| random.integer(8) / 4.0);
        let keep = (0..keys * keys).map(|_| u8::from(random.chance(0.7))).collect();
        let temperatures = (0..BATCH * HEADS * keys).map(|_| 0.5 + random.uniform() as f32).collect();
        Self { rows: Rows { q, keep, bias, temperatures }, k, v, lists: Lists::new(HEADS) }
    }

    fn keys(&self) -> usize {
        self.k.shape()[2]
    }

    /// The last queries alone.
    fn last(&self, queries: usize) -> Rows {
        let (keys, first) = (self.keys(), self.keys() - queries);
        let heads = self.rows.temperatures.chunks(keys);
        Rows {
            q: self.rows.q.rows(first, queries),
            keep: self.rows.keep[first * keys..].to_vec(),
            bias: self.rows.bias.rows(first, queries),
            temperatures: heads.flat_map(|head| &head[first..]).copied().collect(),
        }
    }

    /// Everything that can be said without a word on queries, and with one on each of them.
    fn specs<'a>(&'a self, weighting: &Weighting, rows: &'a Rows) -> Vec<Spec<'a>> {
        let mut all = self.lists.specs(weighting, false);
        let causal = || Spec { causal: Some(Align::BottomRight), ..Spec::new(weighting.clone()) };
        let keep = View::bhsd(&rows.keep, [1, 1, rows.q.shape()[2], self.keys()]).expect("as long as its shape");
        all.push(Spec { keep: Some(keep), ..causal() });
        all.push(Spec {
            bias: Some(rows.bias.view()),
            temperature: Some(Temperature::PerRow(&rows.temperatures)),
            ..causal()
        });
        all
    }
}

/// A case that was computed and found right.
struct Done<'a> {
    case: Case<'a>,
    output: Output,
    kernel: &'static str,
}

fn run<'a>(spec: &Spec<'a>, stored: &'a [Stored; 3], level: Level, out: Dtype) -> Done<'a> {
    let case = Case::stored(spec.clone(), stored);
    let problem = case.problem();
    let plan = Plan::new(&problem, &setup_of(level));
    let output = run_plan_as(&plan, &problem, Execution::Serial, Layout::Bhsd, out);
    compare(&case, &problem, &output);
    Done { case, output, kernel: plan.kernel() }
}

/// The last rows of `prefill` and those of `decode` are as close to each other as both are to the oracle.
fn close(prefill: &Done<'_>, decode: &Done<'_>) {
    let problem = decode.case.problem();
    let shape = problem.shape();
    let all = prefill.case.shape(0).queries;
    let last = prefill.output.rows([BATCH * HEADS, all], all - shape.queries, shape.queries);
    for row in decode.case.rows() {
        let oracle = reference::row(&problem, decode.output.paths[row[0]].rounding, row);
        let [a, b] = [prefill, decode].map(|done| bound(&decode.case, &oracle, row, &done.output.paths[row[0]]));
        let index = decode.case.row(row);
        for c in 0..shape.value_dim {
            let at = index * shape.value_dim + c;
            let difference = f64::from(last.out[at]) - f64::from(decode.output.out[at]);
            let allowed = a.out[c] + b.out[c];
            assert!(difference.abs() <= allowed, "{difference:e} of {allowed:e}: {row:?}, {:?}", decode.case.spec);
        }
        if let (Some(x), Some(y)) = (&last.lse, &decode.output.lse) {
            let (x, y) = (f64::from(x[index]), f64::from(y[index]));
            assert!(
                x == y || (x - y).abs() <= a.lse + b.lse,
                "log-sum-exp {x} or {y}: {row:?}, {:?}",
                decode.case.spec
            );
        }
    }
}

/// The rows kernels take 1 to 15 queries.
const STEPS: [usize; 4] = [1, 2, 7, 15];

#[test]
fn decode_is_the_last_row_of_prefill() {
    let prompt = Prompt::new(if SLOW { 40 } else { 75 }, false);
    let kernels = Mutex::new(BTreeSet::new());
    let cases = weightings().iter().map(|weighting| prompt.specs(weighting, &prompt.rows).len()).sum::<usize>();
    std::thread::scope(|scope| {
        for (i, dtypes) in DTYPES.into_iter().enumerate() {
            let (prompt, kernels) = (&prompt, &kernels);
            scope.spawn(move || {
                let used = decode_of(prompt, dtypes, i * STEPS.len() * cases);
                kernels.lock().expect("no one panics with it").extend(used);
            });
        }
    });
    println!("on {:?}", kernels.into_inner());
}

/// One pair of element types; `turn` says which cases. Gives the kernels.
fn decode_of(prompt: &Prompt, dtypes: [Dtype; 2], mut turn: usize) -> BTreeSet<&'static str> {
    let mut kernels = BTreeSet::new();
    let all = Stored::three([&prompt.rows.q, &prompt.k, &prompt.v], dtypes[0], dtypes[1]);
    for queries in STEPS {
        let rows = prompt.last(queries);
        let last = Stored::three([&rows.q, &prompt.k, &prompt.v], dtypes[0], dtypes[1]);
        for weighting in weightings() {
            let specs = prompt.specs(&weighting, &prompt.rows);
            for (i, (before, after)) in specs.into_iter().zip(prompt.specs(&weighting, &rows)).enumerate() {
                turn += 1;
                // Selection with terms may choose either of two scores that rounding cannot tell apart: see below.
                if SLOW && !turn.is_multiple_of(5) {
                    continue;
                }
                if (i + turn / 11) % STEPS.len() != turn % STEPS.len() || (before.selects() && before.has_terms()) {
                    continue;
                }
                for level in levels() {
                    // Powers exceed what f16 can hold.
                    let large = matches!(weighting, regard::Weighting::Polynomial { .. });
                    let out = if turn.is_multiple_of(3) && !large { dtypes[0] } else { Dtype::F32 };
                    let native = Some(!turn.is_multiple_of(5));
                    let [before, after] =
                        [&before, &after].map(|spec| Spec { native_half: native, native_int8: native, ..spec.clone() });
                    let prefill = run(&before, &all, *level, out);
                    let decode = run(&after, &last, *level, out);
                    assert!(prefill.kernel.contains("_lanes_") && decode.kernel.contains("_rows_"));
                    let both = [prefill.kernel, decode.kernel].map(is_native);
                    assert_eq!(both[0], both[1], "{} and {}", prefill.kernel, decode.kernel);
                    close(&prefill, &decode);
                    kernels.extend([prefill.kernel, decode.kernel]);
                }
            }
        }
    }
    kernels
}

/// Products of whole numbers are exact in every order of summation, and so are soft-caps and terms of them: selection chooses the
/// same keys, ties included, and gives the same bits.
#[test]
fn selection_is_the_same_bit_for_bit() {
    let prompt = Prompt::new(if SLOW { 30 } else { 60 }, true);
    for dtypes in [[Dtype::F32; 2], [Dtype::F16; 2], [Dtype::Bf16; 2], [Dtype::Bf16, Dtype::F16]] {
        let all = Stored::three([&prompt.rows.q, &prompt.k, &prompt.v], dtypes[0], dtypes[1]);
        for queries in STEPS {
            let rows = prompt.last(queries);
            let last = Stored::three([&rows.q, &prompt.k, &prompt.v], dtypes[0], dtypes[1]);
            for weighting in [Weighting::HardLeft, Weighting::HardRight, Weighting::AverageHard] {
                let specs = prompt.specs(&weighting, &prompt.rows);
                for (before, after) in specs.into_iter().zip(prompt.specs(&weighting, &rows)) {
                    for level in levels() {
                        // A scale that rounds nothing.
                        let scale = |spec: &Spec<'_>| Some(if spec.scale.is_some() { -0.25 } else { 0.5 });
                        let output = |spec: &Spec<'_>, stored: &[Stored; 3]| {
                            let case = Case::stored(Spec { scale: scale(spec), ..spec.clone() }, stored);
                            regard_tests::run(&case.problem(), &setup_of(*level), Execution::Serial)
                        };
                        let prefill = output(&before, &all);
                        let decode = output(&after, &last);
                        let count = prompt.keys();
                        let wanted = prefill.rows([BATCH * HEADS, count], count - queries, queries);
                        same(&decode.out, &wanted.out, &format!("{queries} queries, {dtypes:?}, {level:?}, {after:?}"));
                    }
                }
            }
        }
    }
}
