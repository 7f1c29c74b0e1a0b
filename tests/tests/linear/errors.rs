//! What has no linear form, and plans that do not fit.

use crate::*;

fn problem_error(spec: &Spec<'_>, d: usize) -> Error {
    let x = normal([1, 2, 4, d], 1);
    Problem::new(&spec.options(), x.view(), x.view(), x.view()).map(drop).expect_err("no such form")
}

#[test]
fn what_has_no_linear_form() {
    let ones = [1.0_f32; 2];
    let mask = [1_u8];
    let bias = [0.0_f32];
    let keep = View::bhsd(&mask, [1, 1, 1, 1]).expect("one element");
    let power = || linear(Weighting::EvenPower { degree: 2 });
    for (spec, d, wanted) in [
        (Spec { softcap: Some(3.0), ..power() }, 4, "a soft-cap"),
        (Spec { alibi: Some(&ones), causal: Some(Align::TopLeft), ..power() }, 4, "ALiBi"),
        (Spec { keep: Some(keep), ..power() }, 4, "a mask tensor"),
        (Spec { bias: Some(view(&bias, [1, 1, 1, 1])), ..power() }, 4, "a bias"),
        (Spec { anti_causal: Some(Align::TopLeft), ..power() }, 4, "an anti-causal mask"),
        (Spec { window: Some((Some(1), None)), ..power() }, 4, "a window to the left"),
        (linear(Weighting::Softmax), 4, "softmax"),
        (linear(Weighting::Relu), 4, "relu"),
        (linear(Weighting::EvenPower { degree: 6 }), 4, "the degree"),
        (linear(Weighting::Polynomial { degree: 5 }), 4, "the degree"),
        (linear(Weighting::Polynomial { degree: 3 }), 33, "the head dimension"),
        (linear(Weighting::EvenPower { degree: 4 }), 17, "the head dimension"),
        (linear(Weighting::EvenPower { degree: 2 }), 512, "the head dimension"),
        (Spec { gates: Some(&ones), ..power() }, 4, "a gate without a causal mask"),
        (Spec { gates: Some(&ones), causal: Some(Align::TopLeft), ..Spec::new(Weighting::Softmax) }, 4, "softmax"),
    ] {
        let Error::Form { form, option, reason } = problem_error(&spec, d) else { panic!("another error: {spec:?}") };
        assert_eq!((form, option), ("linear", wanted));
        assert!(!reason.is_empty());
    }
    let gated = Spec { gates: Some(&ones), causal: Some(Align::TopLeft), form: Some(Form::Quadratic), ..power() };
    assert!(matches!(problem_error(&gated, 4), Error::Form { form: "quadratic", option: "a gate", .. }));
    // Odd degrees are no weights to be divided by their sum, and neither is a degree of zero.
    for weighting in [Weighting::EvenPower { degree: 3 }, Weighting::Polynomial { degree: 0 }] {
        let error = problem_error(&linear(weighting), 4);
        assert!(matches!(error, Error::Number { name: "degree", .. } | Error::Form { option: "the degree", .. }));
    }
    for gate in [0.0, -0.5, 1.5, f32::NAN, f32::INFINITY] {
        let gates = [0.5, gate];
        let spec = Spec { gates: Some(&gates), causal: Some(Align::TopLeft), ..power() };
        assert!(matches!(problem_error(&spec, 4), Error::Number { name: "a gate", .. }), "{gate}");
    }
    let spec = Spec { gates: Some(&[0.5; 3]), causal: Some(Align::TopLeft), ..power() };
    assert!(matches!(problem_error(&spec, 4), Error::Length { list: "gates", found: 3, expected: 2, .. }));

    // Where it was not asked for, the quadratic form does all of that.
    let x = normal([1, 2, 4, 33], 1);
    for weighting in [Weighting::Softmax, Weighting::Polynomial { degree: 5 }, Weighting::EvenPower { degree: 4 }] {
        let spec = Spec { softcap: Some(3.0), ..Spec::new(weighting) };
        Problem::new(&spec.options(), x.view(), x.view(), x.view()).expect("a quadratic form");
    }
}

#[test]
fn plans_and_workspaces() {
    let setup = setup_of(Level::best());
    let [q, k, v] = [1, 2, 3].map(|seed| normal([1, 2, 100, 8], seed));
    let problem = |spec: Spec<'static>| Case::new(spec, &q, &k, &v).problem();
    let spec = linear(Weighting::EvenPower { degree: 2 });
    let own = problem(spec.clone());
    let plan = Plan::new(&own, &setup);
    let len = plan.workspace_len(1);
    assert_eq!(plan.tasks(), 2);
    let attempt = |plan: &Plan, problem: &Problem<'_>, len: usize| {
        let mut out = Guarded::new(2 * 100 * 8);
        let target = ViewMut::bhsd(out.inner(), [1, 2, 100, 8]).expect("as long as its shape");
        let result = plan.run(problem, target, None, &mut vec![0.0; len], Execution::Serial);
        if result.is_err() {
            out.check_untouched("out");
        }
        result
    };
    assert_eq!(attempt(&plan, &own, len), Ok(()));
    let short = attempt(&plan, &own, len - 1);
    assert_eq!(short, Err(Error::Workspace { found: len - 1, needed: len, threads: 1 }));
    // A plan of one form does not run another, nor other monomials.
    for other in [
        Spec { form: Some(Form::Quadratic), ..spec.clone() },
        Spec { form: None, ..spec.clone() },
        linear(Weighting::Taylor2),
        linear(Weighting::Polynomial { degree: 1 }),
        Spec { gates: Some(&[0.5, 0.5]), causal: Some(Align::TopLeft), ..spec.clone() },
    ] {
        let found = attempt(&plan, &problem(other.clone()), 10 * len);
        assert!(matches!(found, Err(Error::Plan { .. })), "{other:?}: {found:?}");
    }
    // Numerics that are the same everywhere are those of the linear form anyway.
    let portable = problem(Spec { numerics: Some(Numerics::Portable), ..spec.clone() });
    run(&portable, &setup, Execution::Serial).assert_same(&run(&own, &setup, Execution::Serial), "numerics");
    assert!(matches!(regard::Partial::new(&own), Err(Error::Form { option: "a partial result", .. })));
}
