//! Everything that a caller can get wrong gives the error that names it, before anything is written.
#![forbid(unsafe_code)]

use regard::{
    Align, Attention, Count, Error, Execution, Isa, IsaError, Level, Plan, Problem, RowScale, Setup, SigmoidBias,
    Temperature, View, ViewError, ViewMut, Weighting,
};
use regard_tests::{Guarded, Layout, Random, Tensor, levels, setup_of, weightings};

/// Batch 2, 4:2 heads, 3 x 5, d 6:7.
fn tensors() -> [Tensor; 3] {
    let mut random = Random::new(3);
    [[2, 4, 3, 6], [2, 2, 5, 6], [2, 2, 5, 7]].map(|shape| Tensor::normal(shape, Layout::Bhsd, &mut random))
}

/// The error of these options with good tensors.
fn error(options: &Attention<'_>) -> Error {
    let [q, k, v] = tensors();
    let error = Problem::new(options, q.view(), k.view(), v.view()).expect_err("these options mean nothing");
    // The way in one call takes the same door.
    let same = regard::attention(options, q.view(), k.view(), v.view()).expect_err("these options mean nothing");
    // As text, since NaN is not equal to itself.
    assert_eq!(same.to_string(), error.to_string());
    error
}

/// The error of these shapes with good options.
fn shapes(q: [usize; 4], k: [usize; 4], v: [usize; 4]) -> Error {
    let [q, k, v] = [q, k, v].map(|shape| Tensor::filled(shape, Layout::Bhsd, 1.0));
    Problem::new(&Attention::softmax(), q.view(), k.view(), v.view()).expect_err("these shapes do not fit")
}

fn new(weighting: Weighting) -> Attention<'static> {
    Attention::new(weighting)
}

macro_rules! assert_error {
    ($error:expr, $pattern:pat $(if $guard:expr)?) => {{
        let error = $error;
        assert!(matches!(&error, $pattern $(if $guard)?), "{error:?} instead of {}", stringify!($pattern));
    }};
}

#[test]
fn options_without_meaning() {
    for weighting in weightings() {
        let softmax = matches!(weighting, Weighting::Softmax);
        let pointwise = !matches!(
            weighting,
            Weighting::Softmax
                | Weighting::HardLeft
                | Weighting::HardRight
                | Weighting::AverageHard
                | Weighting::EvenPower { .. }
                | Weighting::Taylor2
        );
        let [q, k, v] = tensors();
        let result = |options: &Attention<'_>| Problem::new(options, q.view(), k.view(), v.view()).map(drop);
        let no_meaning = |option: &'static str, result: Result<(), Error>| match result {
            Err(Error::NoMeaning { option: found, weighting: name, .. }) => {
                assert_eq!((found, name), (option, weighting.name()));
            }
            other => panic!("{option} with {weighting:?}: {other:?}"),
        };
        let sinks = [0.0; 4];
        let cases = [
            ("a sink", softmax, new(weighting.clone()).sinks(&sinks)),
            ("a row scale", pointwise, new(weighting.clone()).row_scale(RowScale::InvN)),
            ("a row scale", pointwise, new(weighting.clone()).row_scale(RowScale::InvPower(0.1))),
            ("a coefficient", pointwise, new(weighting.clone()).coefficient(1.0)),
        ];
        for (option, allowed, options) in cases {
            if allowed {
                assert_eq!(result(&options), Ok(()), "{option} with {weighting:?}");
            } else {
                no_meaning(option, result(&options));
            }
        }
        assert_eq!(result(&new(weighting.clone()).strict()), Err(Error::Strict));
        assert_eq!(
            result(&new(weighting.clone()).strict().window(Some(1), None).align(Align::TopLeft)),
            Err(Error::Strict)
        );
        assert_eq!(result(&new(weighting.clone()).strict().causal(Align::TopLeft)), Ok(()));

        // A log-sum-exp is asked for at the run.
        let problem = Problem::new(&new(weighting.clone()), q.view(), k.view(), v.view()).expect("valid");
        if !softmax {
            no_meaning("a log-sum-exp", attempt(&problem, |run| run.lse = Some(24)));
        }
    }
}

#[test]
fn alignments() {
    let softmax = Attention::softmax;
    let needs = |option: &'static str, options: Attention<'_>| match error(&options) {
        Error::Alignment { option: found, batch, queries, keys } => {
            assert_eq!((found, batch, queries, keys), (option, 0, 3, 5));
        }
        other => panic!("{other:?}"),
    };
    needs("a window", softmax().window(Some(1), None));
    needs("a window", softmax().window(None, Some(1)));
    let slopes = [0.5; 4];
    needs("ALiBi", softmax().alibi_slopes(&slopes));
    // With lengths it is the entry whose length differs.
    let lengths = [3, 2];
    assert_error!(
        error(&softmax().window(Some(1), Some(1)).key_lengths(&lengths)),
        Error::Alignment { batch: 1, keys: 2, .. }
    );
    // A window without sides hides nothing and needs nothing.
    let [q, k, v] = tensors();
    assert!(Problem::new(&softmax().window(None, None), q.view(), k.view(), v.view()).is_ok());

    let (left, right) = (Align::TopLeft, Align::BottomRight);
    let conflict = |options: Attention<'_>| match error(&options) {
        Error::Alignments { first, second } => (first, second),
        other => panic!("{other:?}"),
    };
    assert_eq!(conflict(softmax().causal(left).anti_causal(right)), ("causal", "anti_causal"));
    assert_eq!(conflict(softmax().causal(left).align(right)), ("causal", "align"));
    assert_eq!(conflict(softmax().anti_causal(Align::Offset(1)).align(Align::Offset(2))), ("anti_causal", "align"));
    assert!(Problem::new(&softmax().causal(left).align(left), q.view(), k.view(), v.view()).is_ok());
}

#[test]
fn numbers_out_of_range() {
    let softmax = Attention::softmax;
    let number = |name: &str, options: Attention<'_>| match error(&options) {
        Error::Number { name: found, .. } => assert_eq!(found, name),
        other => panic!("{name}: {other:?}"),
    };
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let relu = || new(Weighting::Relu);
    for bad in [nan, inf, -inf] {
        number("scale", softmax().scale(bad));
        number("coefficient", relu().coefficient(bad));
        number("the exponent of the row scale", relu().row_scale(RowScale::InvPower(bad)));
        number("the bias of sigmoid", new(Weighting::Sigmoid { bias: SigmoidBias::Constant(bad) }));
        number("an ALiBi slope", softmax().align(Align::TopLeft).alibi_slopes(&[0.0, 0.0, bad, 0.0]));
    }
    for bad in [nan, inf, -inf, 0.0, -0.0, -1.0] {
        number("softcap", softmax().softcap(bad));
        number("temperature", softmax().temperature(Temperature::Constant(bad)));
        number("temperature", softmax().temperature(Temperature::PerHead(&[1.0, 1.0, 1.0, bad])));
        let mut rows = [1.0; 24];
        rows[23] = bad;
        number("temperature", softmax().temperature(Temperature::PerRow(&rows)));
        number("the factor of the temperature schedule", softmax().log_n_schedule(bad));
    }
    for bad in [nan, inf, -inf, 0.0, 0.99] {
        number("n", softmax().count(Count::Constant(bad)));
    }
    for bad in [nan, inf] {
        number("a sink", softmax().sinks(&[0.0, bad, 0.0, 0.0]));
    }
    for degree in [0, 9, u32::MAX] {
        number("degree", new(Weighting::Polynomial { degree }));
    }
    for degree in [0, 1, 3, 5, 7, 9, 10] {
        number("degree", new(Weighting::EvenPower { degree }));
    }
}

#[test]
fn lists_of_wrong_length() {
    let length = |list: &str, wanted: usize, options: Attention<'_>| match error(&options) {
        Error::Length { list: name, expected, .. } => assert_eq!((name, expected), (list, wanted)),
        other => panic!("{list}: {other:?}"),
    };
    let ones = [1.0; 25];
    for n in [0, 3, 5] {
        length("temperature", 4, Attention::softmax().temperature(Temperature::PerHead(&ones[..n])));
        length("sinks", 4, Attention::softmax().sinks(&ones[..n]));
        length("alibi_slopes", 4, Attention::softmax().align(Align::TopLeft).alibi_slopes(&ones[..n]));
    }
    for n in [0, 4, 23, 25] {
        length("temperature", 24, Attention::softmax().temperature(Temperature::PerRow(&ones[..n])));
    }
    for lengths in [&[][..], &[5], &[5, 5, 5]] {
        length("key_lengths", 2, Attention::softmax().key_lengths(lengths));
    }
    assert_eq!(error(&Attention::softmax().key_lengths(&[5, 6])), Error::KeyLength { batch: 1, length: 6, keys: 5 });
}

#[test]
fn shapes_that_do_not_fit() {
    let (q, k, v) = ([2, 4, 3, 6], [2, 2, 5, 6], [2, 2, 5, 7]);
    let dimension = |error: Error| match error {
        Error::Dimension { tensor, dimension, found, expected, .. } => (tensor, dimension, found, expected),
        other => panic!("{other:?}"),
    };
    assert_eq!(dimension(shapes(q, [1, 2, 5, 6], v)), ("k", "batch", 1, 2));
    assert_eq!(dimension(shapes(q, k, [3, 2, 5, 7])), ("v", "batch", 3, 2));
    assert_eq!(dimension(shapes(q, k, [2, 4, 5, 7])), ("v", "heads", 4, 2));
    assert_eq!(dimension(shapes(q, k, [2, 2, 4, 7])), ("v", "rows", 4, 5));
    assert_eq!(dimension(shapes(q, [2, 2, 5, 5], v)), ("k", "columns", 5, 6));
    assert_error!(shapes(q, [2, 3, 5, 6], [2, 3, 5, 7]), Error::Heads { query_heads: 4, kv_heads: 3 });
    assert_error!(shapes(q, [2, 8, 5, 6], [2, 8, 5, 7]), Error::Heads { query_heads: 4, kv_heads: 8 });
    assert_error!(shapes(q, [2, 0, 5, 6], [2, 0, 5, 7]), Error::Heads { query_heads: 4, kv_heads: 0 });

    // Rows that are not contiguous.
    let data = vec![0.0; 1000];
    let columns = View::strided(&data, [2, 4, 3, 6], [100, 20, 1, 3]).expect("within the data");
    let [_, key, value] = tensors();
    let error = Problem::new(&Attention::softmax(), columns, key.view(), value.view()).expect_err("strided rows");
    assert_eq!(error, Error::RowStride { tensor: "q", stride: 3 });

    // Mask and bias, dimension by dimension.
    let [q, k, v] = tensors();
    for (i, name) in ["batch", "heads", "queries", "keys"].into_iter().enumerate() {
        let mut shape = [2, 4, 3, 5];
        let expected = shape[i];
        shape[i] += 1;
        let (bytes, bias) = (vec![1_u8; 1000], Tensor::filled(shape, Layout::Bhsd, 0.0));
        let keep = View::bhsd(&bytes, shape).expect("within the data");
        let masked = Attention::softmax().keep_mask(keep);
        let biased = Attention::softmax().bias(bias.view());
        for (tensor, options) in [("keep_mask", masked), ("bias", biased)] {
            let error = Problem::new(&options, q.view(), k.view(), v.view()).expect_err("not broadcastable");
            assert_eq!(dimension(error), (tensor, name, expected + 1, expected));
        }
    }
}

#[test]
fn views_that_do_not_fit() {
    let data = [0.0_f32; 100];
    assert_error!(View::bhsd(&data, [1, 1, 101, 1]).expect_err("short"), ViewError::TooShort { needed: 101, len: 100 });
    assert_error!(View::bshd(&data, [1, 51, 2, 1]).expect_err("short"), ViewError::TooShort { needed: 102, len: 100 });
    let huge = usize::MAX / 2;
    for shape in [[huge, 3, 1, 1], [huge, 1, 1, 1], [1, 1, huge, huge], [usize::MAX; 4]] {
        assert!(View::bhsd(&data, shape).is_err() && View::bshd(&data, shape).is_err());
        assert!(View::strided(&data, shape, [0; 4]).is_err(), "more elements than can be counted");
    }
    let mut data = data;
    assert_error!(
        ViewMut::strided(&mut data, [1, 1, 4, 4], [0, 0, 0, 1]).expect_err("overlap"),
        ViewError::Overlap { .. }
    );
    assert_error!(
        ViewMut::strided(&mut data, [1, 2, 4, 4], [0, 4, 4, 1]).expect_err("overlap"),
        ViewError::Overlap { .. }
    );
    assert_error!(
        ViewMut::strided(&mut data, [1, 1, 2, 4], [0, 0, 9, 2]).expect_err("rows"),
        ViewError::RowStride { stride: 2 }
    );
}

/// What a run is given; the numbers are right unless a test changes them.
struct Run {
    out: [usize; 4],
    lse: Option<usize>,
    /// f32 that the workspace lacks.
    short: usize,
    threads: usize,
    plan: Option<Plan>,
}

/// Runs with something wrong, and checks that nothing was written.
fn attempt(problem: &Problem<'_>, change: impl FnOnce(&mut Run)) -> Result<(), Error> {
    let setup = setup_of(Level::best());
    let mut run = Run { out: problem.shape().out(), lse: None, short: 0, threads: 1, plan: None };
    change(&mut run);
    let plan = run.plan.unwrap_or_else(|| Plan::new(problem, &setup));
    let mut out = Guarded::new(run.out.iter().product());
    let mut lse = Guarded::new(run.lse.unwrap_or(0));
    let mut workspace = Guarded::new(plan.workspace_len(run.threads) - run.short);
    let view = ViewMut::bhsd(out.inner(), run.out).expect("as long as its shape");
    let lse_slice = run.lse.is_some().then(|| lse.inner());
    let result = plan.run(problem, view, lse_slice, workspace.inner(), Execution::Serial);
    if result.is_err() {
        out.check_untouched("out");
        lse.check_untouched("lse");
        workspace.check_untouched("workspace");
    }
    result
}

#[test]
fn runs_that_cannot_be() {
    let [q, k, v] = tensors();
    let problem = Problem::new(&Attention::softmax(), q.view(), k.view(), v.view()).expect("valid");
    assert_eq!(attempt(&problem, |run| run.lse = Some(24)), Ok(()));
    for (i, name) in ["batch", "heads", "rows", "columns"].into_iter().enumerate() {
        for more in [true, false] {
            let result = attempt(&problem, |run| run.out[i] = if more { run.out[i] + 1 } else { run.out[i] - 1 });
            assert_error!(result.expect_err("out"), Error::Dimension { tensor: "out", dimension, .. } if *dimension == name);
        }
    }
    for n in [0, 23, 25] {
        let result = attempt(&problem, |run| run.lse = Some(n));
        assert_error!(result.expect_err("lse"), Error::Length { list: "lse", expected: 24, .. });
    }
    let result = attempt(&problem, |run| run.short = 1);
    assert_error!(result.expect_err("workspace"), Error::Workspace { found, needed, threads: 1 } if found + 1 == *needed);

    // Plans for other problems.
    let setup = setup_of(Level::best());
    let planned = |options: &Attention<'_>| {
        Plan::new(&Problem::new(options, q.view(), k.view(), v.view()).expect("valid"), &setup)
    };
    for options in [Attention::softmax().causal(Align::TopLeft), Attention::new(Weighting::Relu)] {
        let result = attempt(&problem, |run| run.plan = Some(planned(&options)));
        assert_error!(result.expect_err("plan"), Error::Plan { .. });
    }
    // A plan at any level serves a problem that names none.
    let portable = planned(&Attention::softmax().isa(Isa::Portable));
    assert_eq!(attempt(&problem, |run| run.plan = Some(portable)), Ok(()));
    let short = q.rows(0, 2);
    let other = Problem::new(&Attention::softmax(), short.view(), k.view(), v.view()).expect("valid");
    let result = attempt(&problem, |run| run.plan = Some(Plan::new(&other, &setup)));
    assert_error!(result.expect_err("plan"), Error::Plan { .. });
}

#[test]
fn levels_that_are_not_here() {
    let [q, k, v] = tensors();
    for isa in Isa::ALL {
        let options = Attention::softmax().isa(isa);
        let result = Problem::new(&options, q.view(), k.view(), v.view());
        let available = levels().iter().any(|level| level.isa() == isa);
        assert_eq!(result.is_ok(), available, "{isa}");
        if let Err(error) = result {
            assert_eq!(error, Error::Isa(IsaError::Unavailable { isa }));
            for level in levels() {
                assert!(error.to_string().contains(level.isa().name()), "{error}");
            }
        }
    }
    let unknown = "sse9".parse::<Isa>().expect_err("unknown");
    assert_eq!(unknown, IsaError::Unknown { name: "sse9".to_owned() });
}

/// The plan of a problem that names a level runs no problem that names another.
#[test]
fn plans_keep_their_level() {
    let [q, k, v] = tensors();
    let setup = Setup { level: Level::best(), machine: regard_profile::Machine::default(), profile: None };
    let problem = |isa| Problem::new(&Attention::softmax().isa(isa), q.view(), k.view(), v.view()).expect("available");
    for a in levels() {
        for b in levels() {
            let plan = Plan::new(&problem(a.isa()), &setup);
            let result = attempt(&problem(b.isa()), |run| run.plan = Some(plan));
            assert_eq!(result.is_ok(), a.isa() == b.isa(), "{result:?}");
        }
    }
}
