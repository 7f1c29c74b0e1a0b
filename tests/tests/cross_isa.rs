//! The levels against each other, and the variable that caps them.
#![forbid(unsafe_code)]

use regard::{
    Align, Attention, Execution, ISA_VARIABLE, Isa, Level, Plan, Problem, RowScale, Setup, SigmoidBias, Weighting,
};
use regard_kernels::table::kernels;
use regard_tests::{Case, Layout, Random, Spec, Tensor, check, levels, run, setup_for, this_test, weightings};

/// Every weighting, plain and with everything.
fn specs<'a>(slopes: &'a [f32], sinks: &'a [f32], lengths: &'a [usize]) -> Vec<Spec<'a>> {
    let mut all = Vec::new();
    for weighting in weightings() {
        let plain = || Spec::new(weighting.clone());
        all.push(plain());
        let window = Some((Some(30), None));
        all.push(Spec { causal: Some(Align::BottomRight), window, key_lengths: Some(lengths), ..plain() });
        all.push(Spec { alibi: Some(slopes), softcap: Some(6.0), align: Some(Align::Offset(3)), ..plain() });
        all.push(Spec { log_n: Some(0.5), scale: Some(-0.8), ..plain() });
        match weighting {
            Weighting::Softmax => all.push(Spec { sinks: Some(sinks), ..plain() }),
            Weighting::Relu => all.push(Spec { row_scale: Some(RowScale::InvSqrtN), ..plain() }),
            _ => {}
        }
    }
    all
}

/// Each level is within the tolerance of the oracle, hence of every other; those that fuse multiply and add agree bit for
/// bit, with the same key block.
#[test]
fn fused_levels_agree_bit_for_bit() {
    let fused: Vec<Level> = levels().iter().copied().filter(|level| level.isa() != Isa::Portable).collect();
    if fused.len() < 2 {
        eprintln!("SKIPPED in part: {} fused level here, nothing to compare it with", fused.len());
    }
    let mut random = Random::new(1);
    let q = Tensor::normal([2, 4, 53, 24], Layout::Bhsd, &mut random);
    let k = Tensor::normal([2, 2, 101, 24], Layout::Bhsd, &mut random);
    let v = Tensor::normal([2, 2, 101, 19], Layout::Bhsd, &mut random);
    let mut differing = Vec::new();
    for spec in specs(&[0.5, 0.25, 0.125, 1.0], &[0.5, -1.0, 3.0, 0.0], &[101, 37]) {
        let case = Case::new(spec.clone(), &q, &k, &v);
        let outputs: Vec<_> = (fused.iter())
            .map(|level| run(&case.problem(), &setup_for(&kernels(*level)[0], 48, 64), Execution::Serial))
            .collect();
        for pair in outputs.windows(2) {
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            let lse = |output: &regard_tests::Output| output.lse.as_deref().map(bits);
            if bits(&pair[0].out) != bits(&pair[1].out) || lse(&pair[0]) != lse(&pair[1]) {
                let unequal = pair[0].out.iter().zip(&pair[1].out).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
                differing.push(format!("{} {} {spec:?}: {unequal} of {}", pair[0].isa, pair[1].isa, pair[0].out.len()));
            }
        }
    }
    assert!(differing.is_empty(), "{} of the specs differ:\n{}", differing.len(), differing.join("\n"));
}

#[test]
fn every_level_is_close_to_the_oracle() {
    let mut random = Random::new(2);
    let q = Tensor::normal([2, 4, 19, 40], Layout::Bhsd, &mut random);
    let k = Tensor::normal([2, 2, 101, 40], Layout::Bhsd, &mut random);
    let v = Tensor::normal([2, 2, 101, 19], Layout::Bhsd, &mut random);
    for level in levels() {
        let mut used = 0.0_f64;
        for spec in specs(&[0.5, 0.25, 0.125, 1.0], &[0.5, -1.0, 3.0, 0.0], &[101, 37]) {
            let case = Case::new(spec, &q, &k, &v);
            used = used.max(check(&case, &setup_for(&kernels(*level)[0], 48, 64)).used);
        }
        println!("{}: {used:.2} of what is allowed", level.isa());
    }
}

/// Selection picks the same keys on all levels that fuse, ties included.
#[test]
fn exact_products_tie_on_every_level() {
    let mut random = Random::new(3);
    let q = Tensor::integers([1, 2, 40, 6], Layout::Bhsd, 2, &mut random);
    let k = Tensor::integers([1, 2, 90, 6], Layout::Bhsd, 2, &mut random);
    let v = Tensor::normal([1, 2, 90, 5], Layout::Bhsd, &mut random);
    for weighting in [Weighting::HardLeft, Weighting::HardRight, Weighting::AverageHard] {
        let case = Case::new(Spec::new(weighting.clone()), &q, &k, &v);
        let mut outputs = levels()
            .iter()
            .map(|level| run(&case.problem(), &setup_for(&kernels(*level)[0], 48, 64), Execution::Serial));
        let first = outputs.next().expect("the portable level is always there");
        outputs.for_each(|output| output.assert_same(&first, &format!("{weighting:?} at {}", output.isa)));
    }
}

/// The level that the options name is the level that is used, whatever the setup says.
#[test]
fn the_options_name_the_level() {
    let q = Tensor::filled([1, 1, 4, 4], Layout::Bhsd, 1.0);
    for level in levels() {
        let options = Attention::new(Weighting::Sigmoid { bias: SigmoidBias::NegLogN }).isa(level.isa());
        let problem = Problem::new(&options, q.view(), q.view(), q.view()).expect("available");
        for other in levels() {
            let plan = Plan::new(&problem, &setup_for(&kernels(*other)[0], 48, 64));
            assert_eq!(plan.isa(), level.isa());
            assert!(plan.kernel().starts_with(level.isa().name()), "{}", plan.kernel());
            assert!(plan.explain().to_string().contains(plan.kernel()));
        }
    }
}

/// What a child process does: prints the level that a setup gets, or the error.
#[test]
#[ignore = "run by the test below in a process of its own"]
fn child_prints_its_level() {
    match Setup::detect() {
        Ok(setup) => println!("level={}", setup.level.isa()),
        Err(error) => println!("error={error}"),
    }
    let q = [1.0_f32];
    let view = regard::View::bhsd(&q, [1, 1, 1, 1]).expect("one element");
    println!(
        "result={:?}",
        regard::attention(&Attention::softmax(), view, view, view).map_err(|error| error.to_string())
    );
}

fn child(isa: Option<&str>) -> String {
    let mut command = this_test("child_prints_its_level");
    match isa {
        Some(isa) => command.env(ISA_VARIABLE, isa),
        None => command.env_remove(ISA_VARIABLE),
    };
    let output = command.output().expect("this test can start itself");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn the_variable_caps_the_level() {
    let best = Level::best().isa();
    for unset in [None, Some("")] {
        assert!(child(unset).contains(&format!("level={best}\n")));
    }
    for level in levels() {
        let text = child(Some(level.isa().name()));
        assert!(text.contains(&format!("level={}\n", level.isa())) && text.contains("result=Ok([1.0])"), "{text}");
    }
    let missing = Isa::ALL.into_iter().filter(|isa| Level::of(*isa).is_err());
    for name in missing.map(Isa::name).chain(["sse9", "AVX2", "avx2 ", "best"]) {
        let text = child(Some(name));
        assert!(text.contains("error=") && text.contains("result=Err(") && text.contains(name), "{name}: {text}");
        for level in levels() {
            assert!(text.contains(level.isa().name()), "{name}: {text}");
        }
    }
}
