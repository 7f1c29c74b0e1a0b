//! Partial results that do not fit each other.

use crate::*;

/// Tensors of a problem whose parts are merged: 3 queries and as many keys as a test wants.
struct Parts {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Parts {
    fn new(queries: usize) -> Self {
        Self {
            q: normal([1, HEADS, queries, D], 1),
            k: normal([1, KV_HEADS, 40, D], 2),
            v: normal([1, KV_HEADS, 40, D_V], 3),
        }
    }

    fn problem<'a>(&'a self, options: &Attention<'a>) -> Problem<'a> {
        Problem::new(options, self.q.view(), self.k.view(), self.v.view()).expect("valid")
    }

    fn partial(&self, options: &Attention<'_>) -> Partial {
        let problem = self.problem(options);
        let plan = Plan::new(&problem, &setup_of(Level::best()));
        let mut partial = Partial::new(&problem).expect("nothing depends on the number of keys");
        let mut workspace = vec![0.0; plan.workspace_len(1)];
        plan.run_partial(&problem, &mut partial, &mut workspace, Execution::Serial).expect("valid");
        partial
    }
}

/// Every bit of a partial result, and what it gives.
fn bits(partial: &Partial) -> (Vec<[u32; 4]>, Vec<u32>, Vec<u32>) {
    let mut out = vec![0.0; partial.sums().len()];
    partial.finish(ViewMut::bhsd(&mut out, partial.shape()).expect("its shape"), None).expect("f32");
    let of = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect();
    (partial.states().iter().map(|state| state.0.map(f32::to_bits)).collect(), of(partial.sums()), of(&out))
}

/// A merge that cannot be leaves what was merged into, and what was merged, as they were.
#[test]
fn merges_that_cannot_be() {
    let parts = Parts::new(3);
    let (ones, others) = ([1.0; HEADS], [1.0, 1.0, 1.0, 2.0]);
    let softmax = Attention::softmax;
    let relu = || Attention::new(Weighting::Relu);
    let sigmoid = |n| {
        let bias = regard::SigmoidBias::NegLogN;
        Attention::new(Weighting::Sigmoid { bias }).count(Count::Constant(n))
    };
    let pairs = [
        ("the weighting", softmax(), relu()),
        ("the weighting", Attention::new(Weighting::HardLeft), Attention::new(Weighting::HardRight)),
        ("the weighting", sigmoid(40.0), sigmoid(41.0)),
        ("the factor of scores (scale over temperature)", softmax().scale(0.5), softmax().scale(0.25)),
        (
            "the factor of scores (scale over temperature)",
            softmax().temperature(regard::Temperature::PerHead(&ones)),
            softmax().temperature(regard::Temperature::PerHead(&others)),
        ),
        ("the sink", softmax().sinks(&ones), softmax().sinks(&others)),
        ("the factor of the output", relu().coefficient(1.0), relu().coefficient(-1.0)),
    ];
    for (wanted, a, b) in pairs {
        let [mut a, mut b] = [&a, &b].map(|options| parts.partial(options));
        let before = [bits(&a), bits(&b)];
        for error in [a.merge(&b), b.merge(&a)] {
            match error.expect_err("they differ") {
                Error::Partial { what, left, right } => {
                    assert_eq!(what, wanted);
                    assert_ne!(left, right);
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!([bits(&a), bits(&b)], before, "{wanted}");
    }
    let mut few = parts.partial(&softmax());
    let before = bits(&few);
    let error = few.merge(&Parts::new(4).partial(&softmax())).expect_err("another shape");
    assert_error!(&error, Error::Partial { what: "the shape", .. });
    assert!(error.to_string().contains("[1, 4, 3, 7]") && error.to_string().contains("[1, 4, 4, 7]"), "{error}");
    assert_eq!(bits(&few), before);
}

/// A run that cannot be leaves the partial result, and the workspace, as they were.
#[test]
fn partial_runs_that_cannot_be() {
    let (parts, more) = (Parts::new(3), Parts::new(4));
    let options = Attention::softmax();
    let problem = parts.problem(&options);
    let plan = Plan::new(&problem, &setup_of(Level::best()));
    let mut partial = parts.partial(&options);
    let before = bits(&partial);
    let mut attempt = |plan: &Plan, problem: &Problem<'_>, short: usize| {
        let mut workspace = Guarded::new(plan.workspace_len_for(problem, 1) - short);
        let result = plan.run_partial(problem, &mut partial, workspace.inner(), Execution::Serial);
        workspace.check_untouched("workspace");
        assert_eq!(bits(&partial), before);
        result.expect_err("it cannot run")
    };
    assert_error!(
        attempt(&plan, &problem, 1),
        Error::Workspace { found, needed, threads: 1 } if found + 1 == *needed
    );
    let other = more.problem(&options);
    let larger = Plan::new(&other, &setup_of(Level::best()));
    assert_error!(attempt(&plan, &other, 0), Error::Plan { .. });
    assert_error!(attempt(&larger, &other, 0), Error::Partial { what: "the shape", .. });
    let relu = Attention::new(Weighting::Relu);
    let relu = parts.problem(&relu);
    assert_error!(attempt(&plan, &relu, 0), Error::Plan { .. });
    let schedule = Attention::softmax().log_n_schedule(1.0);
    let schedule = parts.problem(&schedule);
    assert_error!(
        attempt(&Plan::new(&schedule, &setup_of(Level::best())), &schedule, 0),
        Error::NoMeaning { option: "a temperature schedule", weighting: "softmax", .. }
    );
}

/// An output that does not fit keeps every bit.
#[test]
fn partial_results_that_cannot_be_written() {
    let parts = Parts::new(3);
    let softmax = parts.partial(&Attention::softmax());
    let relu = parts.partial(&Attention::new(Weighting::Relu));
    fn attempt<T: Poison>(partial: &Partial, shape: [usize; 4], lse: Option<usize>) -> Error
    where
        for<'o> TensorMut<'o>: From<ViewMut<'o, T>>,
    {
        let mut out = Guarded::<T>::of(shape.iter().product());
        let mut sums = Guarded::new(lse.unwrap_or(0));
        let view = ViewMut::bhsd(out.inner(), shape).expect("as long as its shape");
        let error = partial.finish(view, lse.is_some().then(|| sums.inner())).expect_err("it does not fit");
        out.check_untouched("out");
        sums.check_untouched("lse");
        error
    }
    let right = softmax.shape();
    for (i, name) in DIMENSIONS.into_iter().enumerate() {
        for less in [true, false] {
            let mut shape = right;
            shape[i] = if less { shape[i] - 1 } else { shape[i] + 1 };
            assert_error!(
                attempt::<f32>(&softmax, shape, Some(12)),
                Error::Dimension { tensor: "out", dimension, found, expected, .. }
                    if (*dimension, *found, *expected) == (name, shape[i], right[i])
            );
        }
    }
    for n in [0, 11, 13] {
        let error = attempt::<f32>(&softmax, right, Some(n));
        assert_error!(error, Error::Length { list: "lse", found, expected: 12, .. } if *found == n);
    }
    let error = attempt::<f32>(&relu, right, Some(12));
    assert_error!(error, Error::NoMeaning { option: "a log-sum-exp", weighting: "relu", .. });
    let wrong = |found| Error::Dtype { tensor: "out", found, expected: vec![Dtype::F32] };
    assert_eq!(attempt::<f16>(&softmax, right, Some(12)), wrong(Dtype::F16));
    assert_eq!(attempt::<bf16>(&softmax, right, None), wrong(Dtype::Bf16));
}

/// States of no sense are still finished and merged without a panic: they may come from anywhere.
#[test]
fn states_that_nobody_made() {
    let parts = Parts::new(3);
    let weird = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0, 0.0, f32::MAX, f32::from_bits(u32::MAX)];
    for weighting in regard_tests::weightings() {
        let options = Attention::new(weighting).count(Count::Constant(9.0));
        let problem = parts.problem(&options);
        let random = &mut Random::new(5);
        let rows = HEADS * 3;
        let mut make = || {
            let mut any = || weird[random.below(weird.len())];
            let states = (0..rows).map(|_| regard::RowState([any(), any(), any(), any()])).collect();
            let sums = (0..rows * D_V).map(|_| any()).collect();
            Partial::from_parts(&problem, states, sums).expect("as many as are needed")
        };
        for _ in 0..20 {
            let (mut a, b) = (make(), make());
            a.merge(&b).expect("of one problem");
            let mut out = Guarded::new(rows * D_V);
            a.finish(ViewMut::bhsd(out.inner(), a.shape()).expect("its shape"), None).expect("f32");
            out.check("out");
        }
    }
}
