//! Runs that are given something that does not fit.

use crate::*;

/// What a run is given; right unless a test changes it.
struct Run {
    out: [usize; 4],
    lse: Option<usize>,
    /// f32 that the workspace lacks.
    short: usize,
    plan: Option<Plan>,
}

/// Runs with something wrong, into an output of type `T`, and checks that nothing was written.
fn attempt<T: Poison>(problem: &Problem<'_>, change: impl FnOnce(&mut Run)) -> Result<(), Error>
where
    for<'o> TensorMut<'o>: From<ViewMut<'o, T>>,
{
    let own = Plan::new(problem, &setup_of(Level::best()));
    let mut run = Run { out: problem.shape().out(), lse: None, short: 0, plan: None };
    change(&mut run);
    let plan = run.plan.unwrap_or(own);
    let mut out = Guarded::<T>::of(run.out.iter().product());
    let mut lse = Guarded::new(run.lse.unwrap_or(0));
    let mut workspace = Guarded::new(plan.workspace_len_for(problem, 1) - run.short);
    let view = ViewMut::bhsd(out.inner(), run.out).expect("as long as its shape");
    let slice = run.lse.is_some().then(|| lse.inner());
    let result = plan.run(problem, view, slice, workspace.inner(), Execution::Serial);
    if result.is_err() {
        out.check_untouched("out");
        lse.check_untouched("lse");
        workspace.check_untouched("workspace");
    }
    result
}

/// Outputs of packed sequences are as long as q, rows of nobody included; and a plan is for one way of laying keys.
#[test]
fn runs_of_ragged_batches() {
    let batch = Batch::new();
    let options = Attention::softmax();
    let queries = Queries::Packed(&QUERIES);
    let lies = [Keys::Packed(&KEYS), paged(&TABLE, &LENGTHS), Keys::Ring { lengths: &[5, 4, 5] }, Keys::Padded];
    let problems = lies.map(|keys| batch.problem(&options, queries, keys).expect("valid"));
    for (i, problem) in problems.iter().enumerate() {
        assert_eq!(problem.shape().out(), [1, HEADS, 9, D_V]);
        assert_eq!(attempt::<f32>(problem, |run| run.lse = Some(HEADS * 9)), Ok(()));
        for (at, name) in DIMENSIONS.into_iter().enumerate() {
            let result = attempt::<f32>(problem, |run| run.out[at] -= 1);
            let wanted = problem.shape().out()[at];
            assert_error!(
                result.expect_err("out"),
                Error::Dimension { tensor: "out", dimension, found, expected, .. }
                    if (*dimension, *found, *expected) == (name, wanted - 1, wanted)
            );
        }
        // One for each row, and not for each query.
        let result = attempt::<f32>(problem, |run| run.lse = Some(HEADS * 8));
        assert_error!(result.expect_err("lse"), Error::Length { list: "lse", found: 32, expected: 36, .. });
        let result = attempt::<f32>(problem, |run| run.short = 1);
        assert_error!(
            result.expect_err("workspace"),
            Error::Workspace { found, needed, threads: 1 } if found + 1 == *needed
        );
        for (j, other) in problems.iter().enumerate() {
            let plan = Plan::new(other, &setup_of(Level::best()));
            let result = attempt::<f32>(problem, |run| run.plan = Some(plan));
            assert_eq!(result.is_ok(), i == j, "a plan for {:?}, and {:?}", lies[j], lies[i]);
            if let Err(error) = result {
                assert!(matches!(&error, Error::Plan { planned, found } if planned != found), "{error}");
            }
        }
        // Padded queries, other spans, and other element types are other plans too.
        let padded = batch.problem(&options, Queries::Padded, lies[i]).expect("valid");
        let spans = batch.problem(&options.clone().split(Split::Keys(7)), queries, lies[i]).expect("valid");
        for other in [&padded, &spans] {
            let plan = Plan::new(other, &setup_of(Level::best()));
            let result = attempt::<f32>(problem, |run| run.plan = Some(plan));
            assert!(matches!(result, Err(Error::Plan { .. })), "{result:?}");
        }
    }
}

/// An output is f32, or of the type of q.
#[test]
fn outputs_of_another_type() {
    let [q, k, v] = [[1, HEADS, 3, D], [1, KV_HEADS, 9, D], [1, KV_HEADS, 9, D_V]].map(|shape| normal(shape, 7));
    let options = Attention::softmax();
    for kv in Dtype::ALL {
        for q_dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            let stored = Stored::three([&q, &k, &v], q_dtype, kv);
            let [q, k, v] = stored.each_ref().map(Stored::tensor);
            let problem = Problem::new(&options, q, k, v).expect("valid");
            let lse = |run: &mut Run| run.lse = Some(HEADS * 3);
            let results = [
                (Dtype::F32, attempt::<f32>(&problem, lse)),
                (Dtype::F16, attempt::<f16>(&problem, lse)),
                (Dtype::Bf16, attempt::<bf16>(&problem, lse)),
            ];
            for (out, result) in results {
                let mut expected = vec![Dtype::F32, q_dtype];
                expected.dedup();
                let wanted = Error::Dtype { tensor: "out", found: out, expected: expected.clone() };
                assert_eq!(result, if expected.contains(&out) { Ok(()) } else { Err(wanted) });
            }
            // A plan for other element types.
            for other in Dtype::ALL.into_iter().filter(|other| *other != kv) {
                let [k, v] = [&k, &v].map(|tensor| {
                    let rows = Tensor::from_fn(tensor.shape(), Layout::Bhsd, |index| tensor.get(index));
                    Stored::new(&rows, other, Layout::Bhsd)
                });
                let other = Problem::new(&options, q, k.tensor(), v.tensor()).expect("valid");
                let plan = Plan::new(&other, &setup_of(Level::best()));
                let result = attempt::<f32>(&problem, |run| run.plan = Some(plan));
                assert!(matches!(result, Err(Error::Plan { .. })), "{result:?}");
            }
        }
    }
}
