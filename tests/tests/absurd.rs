//! Plans used with what they were not made for, sizes that no memory holds, and numbers at the ends of their range.
#![forbid(unsafe_code)]

use regard::{
    Align, Attention, Error, Execution, Isa, Level, Numerics, Plan, Problem, Setup, Temperature, View, ViewMut,
    Weighting, attention,
};
use regard_profile::{Confidence, Config, Entry, Profile, Run, Tool};

fn plan(problem: &Problem<'_>) -> Plan {
    Plan::new(problem, Setup::global().unwrap())
}

fn levels() -> impl Iterator<Item = Isa> {
    Level::available().iter().map(|level| level.isa())
}

/// Hard attention needs less workspace than average-hard, and portable numerics other tiles than the machine's.
#[test]
fn a_plan_for_other_options_is_refused() {
    let x = [0.5; 64];
    let view = View::bhsd(&x, [1, 1, 8, 8]).unwrap();
    let problem = |options: &Attention<'static>| Problem::new(options, view, view, view).unwrap();
    let hard = problem(&Attention::new(Weighting::HardLeft));
    let average = problem(&Attention::new(Weighting::AverageHard));
    let portable = problem(&Attention::new(Weighting::HardLeft).numerics(Numerics::Portable));
    for (planned, other) in [(&hard, &average), (&average, &hard), (&hard, &portable), (&portable, &hard)] {
        let plan = plan(planned);
        let mut workspace = vec![0.0; plan.workspace_len(1)];
        let mut out = [7.0; 64];
        let view = ViewMut::bhsd(&mut out, [1, 1, 8, 8]).unwrap();
        let error = plan.run(other, view, None, &mut workspace, Execution::Serial).unwrap_err();
        let Error::Plan { planned, found } = &error else { panic!("{error}") };
        assert_ne!(planned, found);
        assert_eq!(out, [7.0; 64]);
    }
}

#[test]
fn sizes_that_no_memory_holds() {
    let none: [f32; 0] = [];
    let view = |shape| View::bhsd(&none, shape).unwrap();
    // Nothing to compute, however wide it is.
    let wide = view([0, 1, 1, 1 << 58]);
    assert_eq!(attention(&Attention::softmax(), wide, wide, wide), Ok(Vec::new()));
    // Inputs without elements, and more outputs than can be counted.
    let (q, k, v) = (view([1, 1, 1 << 40, 0]), view([1, 1, 0, 0]), view([1, 1, 0, 1 << 40]));
    let error = attention(&Attention::softmax(), q, k, v).unwrap_err();
    assert!(matches!(error, Error::View { tensor: "out", .. }), "{error}");
    // A plan says that it needs more than there is, for few queries and for many.
    let ones = [1.0; 17];
    for (queries, least) in [(1, isize::MAX as usize), (17, usize::MAX)] {
        let q = View::bhsd(&ones, [1, 1, queries, 1]).unwrap();
        let problem = Problem::new(&Attention::softmax(), q, view([1, 1, 0, 1]), view([1, 1, 0, 1 << 59])).unwrap();
        assert!(plan(&problem).workspace_bytes(2) >= least);
    }
}

/// Strides that nothing is ever multiplied with may be anything.
#[test]
fn absurd_strides_of_single_rows_and_of_nothing() {
    let x = [1.0, 2.0, 3.0, 4.0];
    let far = usize::MAX;
    let one = View::strided(&x, [1, 1, 1, 4], [far, far, far, 1]).unwrap();
    assert_eq!(attention(&Attention::softmax(), one, one, one), Ok(x.to_vec()));

    let none: [f32; 0] = [];
    let q = View::strided(&none, [2, 2, 3, 0], [far; 4]).unwrap();
    let k = View::strided(&none, [2, 2, 3, 0], [far; 4]).unwrap();
    let problem = Problem::new(&Attention::softmax(), q, k, k).unwrap();
    let plan = plan(&problem);
    let (mut workspace, mut out, mut lse) = (vec![0.0; plan.workspace_len(1)], [0.0_f32; 0], [0.0; 12]);
    let out = ViewMut::strided(&mut out, [2, 2, 3, 0], [far; 4]).unwrap();
    plan.run(&problem, out, Some(&mut lse), &mut workspace, Execution::Serial).unwrap();
    assert!(lse.iter().all(|lse| (lse - 3_f32.ln()).abs() < 1e-6), "{lse:?}");

    let k = View::strided(&none, [1, 3, 0, 4], [far, far, far, 1]).unwrap();
    let q = View::bhsd(&[0.0; 12], [1, 3, 1, 4]).unwrap();
    assert_eq!(attention(&Attention::softmax(), q, k, k), Ok(vec![0.0; 12]));
}

/// A product that is too small to tell from zero leaves no sign that a masked key could turn.
#[test]
fn the_sign_of_zero_does_not_show_masked_keys() {
    let q = [1.0, 1.0];
    let k = [1e-30, 1.0];
    for masked in [1.0, -1.0] {
        let v = [-1e-30, masked];
        for isa in levels() {
            let options = Attention::new(Weighting::Identity).scale(1.0).isa(isa).causal(Align::TopLeft);
            let run = |keys: usize| {
                let [q, k, v] = [&q, &k, &v].map(|x| View::bhsd(&x[..keys], [1, 1, keys, 1]).unwrap());
                attention(&options, q, k, v).unwrap()[0].to_bits()
            };
            assert_eq!(run(1), run(2), "{isa} with {masked} behind the mask");
        }
    }
}

/// However small the temperature is, softmax is average-hard attention in the limit.
#[test]
fn the_smallest_temperatures() {
    let (q, k, v) = ([1.0], [1.0, 2.0, 2.0, -3.0], [8.0, 1.0, 3.0, 9.0]);
    for temperature in [1e-37, 1e-40, f32::from_bits(1)] {
        for scale in [1.0, -1.0, 1e30] {
            for isa in levels() {
                let options =
                    Attention::softmax().scale(scale).temperature(Temperature::Constant(temperature)).isa(isa);
                let [k, v] = [&k, &v].map(|x| View::bhsd(x, [1, 1, 4, 1]).unwrap());
                let out = attention(&options, View::bhsd(&q, [1, 1, 1, 1]).unwrap(), k, v).unwrap();
                assert_eq!(
                    out,
                    [if scale > 0.0 { 2.0 } else { 9.0 }],
                    "{isa}, scale {scale}, temperature {temperature}"
                );
            }
        }
    }
}

/// A sink is outweighed by scores that overflow when the temperature divides them, and outweighs others when it is itself as
/// large as can be.
#[test]
fn sinks_at_the_ends_of_their_range() {
    let (q, k, v) = ([1.0], [1.0, 2.0], [8.0, 4.0]);
    let [q, k, v] = [(&q[..], 1), (&k, 2), (&v, 2)].map(|(x, rows)| View::bhsd(x, [1, 1, rows, 1]).unwrap());
    for isa in levels() {
        for (sink, temperature, wanted) in [
            (3e38, 1.0, 0.0),
            (1e38, 1e-45, 4.0),
            (0.0, 1e-38, 4.0),
            (f32::MIN, 1e-10, 4.0),
            (f32::NEG_INFINITY, 1e-45, 4.0),
        ] {
            let sinks = [sink];
            let options = Attention::softmax().temperature(Temperature::Constant(temperature)).sinks(&sinks).isa(isa);
            assert_eq!(attention(&options, q, k, v), Ok(vec![wanted]), "{isa}, sink {sink}, temperature {temperature}");
        }
    }
}

/// Profiles from files are checked when they are loaded; one made by hand may say anything.
#[test]
fn blocks_that_no_kernel_takes() {
    let x = [0.5; 64];
    let view = View::bhsd(&x, [1, 1, 8, 8]).unwrap();
    let problem = Problem::new(&Attention::softmax(), view, view, view).unwrap();
    let setup = Setup::global().unwrap().without_profile();
    let modelled = Plan::new(&problem, &setup);
    for (key_block, query_block) in [(15, 32), (33, 32), (0, 32), (5000, 32), (32, 0)] {
        let entry = Entry {
            class: modelled.class(),
            config: Config::new(modelled.kernel(), key_block, query_block),
            gflops: 1.0,
            fraction_of_peak: 0.5,
            ratio_to_model: 1.0,
            ratio_interval: None,
            samples: 1,
            runner_up: None,
            rivals: Vec::new(),
            why: String::new(),
        };
        let run =
            Run { unix_time: 0, seconds: 0.0, mode: String::new(), confidence: Confidence::Low, notes: Vec::new() };
        let mut profile = Profile::new(Tool::default(), setup.machine.clone(), run);
        profile.entries.push(entry);
        let plan = Plan::new(&problem, &Setup { profile: Some(profile.into()), ..setup.clone() });
        assert_eq!((plan.key_block(), plan.query_block()), (modelled.key_block(), modelled.query_block()));
        assert!(plan.profile_entry().is_none());
    }
}
