//! Element types: what goes together, what comes out, and what is refused.
#![forbid(unsafe_code)]

mod common;

use common::{Data, numbers, setup_of, small_integers, weightings};
use regard::{
    Align, Attention, Dtype, Error, Execution, Form, Level, Numerics, Plan, Problem, Quantised, Setup, TensorMut, View,
    ViewMut, Weighting, bf16, f16, reference,
};
use regard_profile::Machine;
use regard_simd::{Extension, Isa};

const HEADS: [usize; 2] = [4, 2];
const D: usize = 37;
const D_V: usize = 21;
const KEYS: usize = 83;

fn shapes(queries: usize) -> [[usize; 4]; 3] {
    [[1, HEADS[0], queries, D], [1, HEADS[1], KEYS, D], [1, HEADS[1], KEYS, D_V]]
}

fn data(dtypes: [Dtype; 2], queries: usize, integers: bool) -> [Data; 3] {
    let shapes = shapes(queries);
    std::array::from_fn(|i| {
        let len = shapes[i].iter().product();
        let x = if integers && i < 2 { small_integers(len, i as u64) } else { numbers(len, i as u64) };
        Data::new(dtypes[i.min(1)], &x, shapes[i])
    })
}

#[test]
fn every_combination_is_right() {
    for q in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        for kv in Dtype::ALL {
            for queries in [1, 3, 40] {
                for integers in [false, true] {
                    let data = data([q, kv], queries, integers);
                    let [q, k, v] = [0, 1, 2].map(|i| data[i].tensor(shapes(queries)[i]));
                    for weighting in weightings() {
                        let options = Attention::new(weighting.clone()).causal(Align::BottomRight);
                        for level in Level::available() {
                            check(&Problem::new(&options, q, k, v).unwrap(), *level);
                            if [q.dtype(), k.dtype()] == [Dtype::Bf16; 2] {
                                for native in [true, false] {
                                    let asked = options.clone().native_half(native);
                                    check(&Problem::new(&asked, q, k, v).unwrap(), *level);
                                }
                            }
                            if k.dtype() == Dtype::Int8 {
                                let widened = options.clone().native_int8(false);
                                check(&Problem::new(&widened, q, k, v).unwrap(), *level);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// On a machine of which nothing is known, and, where there are tile registers, on one whose plans take them.
fn check(problem: &Problem<'_>, level: Level) {
    check_plan(problem, &Plan::new(problem, &setup_of(level)));
    if Extension::Amx.is_available_at(level.isa()) {
        check_plan(problem, &Plan::new(problem, &setup_where(level, false)));
    }
}

fn check_plan(problem: &Problem<'_>, plan: &Plan) {
    // Kernels that multiply bf16 round weights to it, and those that multiply integers round queries and weights to 16 bits.
    let native = ["_lanes_bf16_", "_rows_bf16_dots", "_rows_bf16_amx"].iter().any(|name| plan.kernel().contains(name));
    let fixed = ["_rows_int8_dots", "_rows_int8_amx"].iter().any(|name| plan.kernel().contains(name));
    let rounding = plan.rounding(&problem.sequences()[0]);
    let wanted = reference::attention(problem, rounding);
    let got = common::run_plan(plan, problem).out;
    let selects = problem.options().weighting().selects();
    for (i, (got, wanted)) in got.iter().zip(&wanted).enumerate() {
        let allowed = match (selects, native) {
            // Rows of V, or means of a few.
            (true, _) => 1e-6,
            (_, true) => 2e-2 * wanted.abs().max(1.0),
            _ if fixed => 1e-3 * wanted.abs().max(1.0),
            _ => 2e-5 * wanted.abs().max(1.0),
        };
        let error = (f64::from(*got) - wanted).abs();
        assert!(error <= allowed, "{i}: {got} instead of {wanted}, {}", plan.explain());
    }
}

#[test]
fn outputs_are_rounded_to_the_type_of_q() {
    for queries in [2, 30] {
        let shape = [1, HEADS[0], queries, D_V];
        let len = shape.iter().product();
        for level in Level::available() {
            for weighting in weightings() {
                let options = Attention::new(weighting);
                let halves = data([Dtype::F16, Dtype::Int8], queries, false);
                let [q, k, v] = [0, 1, 2].map(|i| halves[i].tensor(shapes(queries)[i]));
                let problem = Problem::new(&options, q, k, v).unwrap();
                let plan = Plan::new(&problem, &setup_of(*level));
                let mut workspace = vec![0.0; plan.workspace_len(1)];
                let wanted: Vec<f16> = common::run_plan(&plan, &problem).out.into_iter().map(f16::from_f32).collect();
                let mut out = vec![f16::ZERO; len];
                let view = ViewMut::bhsd(&mut out, shape).unwrap();
                plan.run(&problem, view, None, &mut workspace, Execution::Serial).unwrap();
                assert_eq!(out, wanted);

                let brains = data([Dtype::Bf16, Dtype::F32], queries, false);
                let [q, k, v] = [0, 1, 2].map(|i| brains[i].tensor(shapes(queries)[i]));
                let problem = Problem::new(&options, q, k, v).unwrap();
                let plan = Plan::new(&problem, &setup_of(*level));
                let mut workspace = vec![0.0; plan.workspace_len(1)];
                let wanted: Vec<bf16> = common::run_plan(&plan, &problem).out.into_iter().map(bf16::from_f32).collect();
                let mut out = vec![bf16::ZERO; len];
                let view = ViewMut::bhsd(&mut out, shape).unwrap();
                plan.run(&problem, TensorMut::from(view), None, &mut workspace, Execution::Serial).unwrap();
                assert_eq!(out, wanted);
            }
        }
    }
}

#[test]
fn types_that_do_not_go_together() {
    let options = Attention::softmax();
    let tensors = |q, k, v| {
        let [qs, ks, vs] = shapes(3);
        let [q, k, v] = [(q, qs), (k, ks), (v, vs)]
            .map(|(dtype, shape)| Data::new(dtype, &numbers(shape.iter().product(), 1), shape));
        Problem::new(&options, q.tensor(qs), k.tensor(ks), v.tensor(vs)).map(drop)
    };
    let error = tensors(Dtype::Int8, Dtype::Int8, Dtype::Int8).unwrap_err();
    assert!(
        matches!(&error, Error::Dtype { tensor: "q", found: Dtype::Int8, expected } if expected.len() == 3),
        "{error}"
    );
    for k in Dtype::ALL {
        for v in Dtype::ALL {
            let result = tensors(Dtype::F16, k, v);
            let wanted = Error::Dtype { tensor: "v", found: v, expected: vec![k] };
            assert_eq!(result, if k == v { Ok(()) } else { Err(wanted) });
        }
    }

    // An output of another type than f32 or that of q, which stays as it was.
    let data = data([Dtype::Bf16, Dtype::Bf16], 3, false);
    let [q, k, v] = [0, 1, 2].map(|i| data[i].tensor(shapes(3)[i]));
    let problem = Problem::new(&options, q, k, v).unwrap();
    let plan = Plan::new(&problem, &setup_of(Level::best()));
    let mut out = vec![f16::ONE; 4 * 3 * D_V];
    let mut lse = vec![7.0; 12];
    let mut workspace = vec![0.0; plan.workspace_len(1)];
    let view = ViewMut::bhsd(&mut out, [1, 4, 3, D_V]).unwrap();
    let error = plan.run(&problem, view, Some(&mut lse), &mut workspace, Execution::Serial).unwrap_err();
    assert_eq!(error, Error::Dtype { tensor: "out", found: Dtype::F16, expected: vec![Dtype::F32, Dtype::Bf16] });
    assert!(out.iter().all(|x| *x == f16::ONE) && lse.iter().all(|x| *x == 7.0));
}

#[test]
fn scales_fit_their_tensor() {
    let [qs, ks, vs] = shapes(3);
    let data = data([Dtype::F32, Dtype::Int8], 3, false);
    let q = data[0].tensor(qs);
    let bytes = vec![1_i8; ks.iter().product()];
    let values = vec![1_i8; vs.iter().product()];
    let scales = vec![0.5; HEADS[1] * KEYS];
    let make = |scales: View<'static, f32>, bytes: &'static [i8], shape| Quantised {
        data: View::bhsd(bytes, shape).unwrap(),
        scales,
    };
    let (bytes, values, scales): (&'static [i8], &'static [i8], &'static [f32]) =
        (bytes.leak(), values.leak(), scales.leak());
    let problem = |k_scales: [usize; 4], v_scales: [usize; 4]| {
        let k = make(View::bhsd(scales, k_scales).unwrap(), bytes, ks);
        let v = make(View::bhsd(scales, v_scales).unwrap(), values, vs);
        Problem::new(&Attention::softmax(), q, k, v)
    };
    let rows = [1, HEADS[1], KEYS, 1];
    let wanted = problem(rows, rows).unwrap().attention().unwrap();
    // One for each head, or for all.
    assert_eq!(problem([1, HEADS[1], 1, 1], [1, 1, 1, 1]).unwrap().attention().unwrap(), wanted);
    let error = problem(rows, [1, HEADS[1], KEYS - 1, 1]).unwrap_err();
    assert!(
        matches!(error, Error::Dimension { tensor: "the scales of v", dimension: "rows", found: 82, expected: 83, .. }),
        "{error}"
    );
    let error = problem([1, 1, 2, 1], rows).unwrap_err();
    assert!(matches!(error, Error::Dimension { tensor: "the scales of k", .. }), "{error}");
}

/// What products of integers are used for, as plans say it.
#[test]
fn integer_instructions_can_be_refused() {
    for queries in [1, 40] {
        let data = data([Dtype::F32, Dtype::Int8], queries, false);
        let [q, k, v] = [0, 1, 2].map(|i| data[i].tensor(shapes(queries)[i]));
        for level in Level::available() {
            let kernel = |options: &Attention<'_>| {
                Plan::new(&Problem::new(options, q, k, v).unwrap(), &setup_of(*level)).kernel()
            };
            let softmax = Attention::softmax;
            let widened = kernel(&softmax().native_int8(false));
            assert!(widened.ends_with("_rows_int8") || widened.contains("_lanes_f32_"), "{widened}");
            assert_eq!(kernel(&softmax().numerics(Numerics::Portable)), widened);
            assert_eq!(kernel(&Attention::new(Weighting::HardLeft)), widened);
            assert_eq!(kernel(&softmax().native_half(false)), kernel(&softmax()));
            let native = kernel(&softmax());
            let has = match level.isa() {
                Isa::Avx2 => Some("avx2_rows_int8_dots"),
                isa => Extension::Vnni.is_available_at(isa).then_some("avx512_rows_int8_dots"),
            };
            assert_eq!(native, has.filter(|_| queries == 1).unwrap_or(widened));
        }
    }
}

/// What native products of bf16 are used for, as plans say it: where the machine has them and they pay, wherever it has them, or
/// never.
#[test]
fn bf16_instructions_are_taken_where_they_pay() {
    for queries in [1, 40] {
        let data = data([Dtype::Bf16, Dtype::Bf16], queries, false);
        let [q, k, v] = [0, 1, 2].map(|i| data[i].tensor(shapes(queries)[i]));
        for (level, pays) in Level::available().iter().flat_map(|level| [(*level, true), (*level, false)]) {
            let setup = setup_where(level, pays);
            let plan = |options: &Attention<'_>| Plan::new(&Problem::new(options, q, k, v).unwrap(), &setup);
            let softmax = Attention::softmax;
            let widened = plan(&softmax().native_half(false)).kernel();
            assert!(widened.contains("_lanes_f32_") || widened.ends_with("_rows_bf16"), "{widened}");
            let in_vectors = plan(&softmax().native_half(false).f32_on_tiles(false)).kernel();
            for native in [softmax(), softmax().native_half(true)] {
                assert_eq!(plan(&native.clone().numerics(Numerics::Portable)).kernel(), in_vectors);
            }
            for options in [Attention::new(Weighting::HardLeft), Attention::new(Weighting::HardLeft).native_half(true)]
            {
                assert_eq!(plan(&options).kernel(), in_vectors);
            }
            let native = plan(&softmax().native_half(true)).kernel();
            let has = Extension::Bf16.is_available_at(level.isa());
            assert_eq!(native.contains("_lanes_bf16_") || native.ends_with("_rows_bf16_dots"), has, "{native}");
            assert_eq!(native != widened, has);

            // Tiles pay where pairs in vectors do not, if there are so many rows.
            let tiles = Extension::Amx.is_available_at(level.isa()) && !pays && queries == 40;
            assert_eq!(native.contains("_amx"), tiles, "{native}");
            let by_default = plan(&softmax());
            assert_eq!(by_default.kernel(), if pays || tiles { native } else { widened });
            // Only who could have had them is told why not.
            let told = |plan: &Plan| plan.explain().to_string().contains("multiplies pairs of bf16 more slowly");
            assert_eq!(told(&by_default), has && !pays && !tiles, "{}", by_default.explain());
            for asked in
                [softmax().native_half(true), softmax().native_half(false), Attention::new(Weighting::HardLeft)]
            {
                assert!(!told(&plan(&asked)));
            }
        }
    }
}

/// Few queries are computed on tile registers where a head of keys has five rows or more, whether heads or queries make them so many,
/// and are right there; so is int8 with any number of queries.
#[test]
fn tiles_take_five_rows_and_more() {
    for (kv, pairs) in [(Dtype::Bf16, "avx512_rows_bf16"), (Dtype::Int8, "avx512_rows_int8_dots")] {
        let q_dtype = if kv == Dtype::Int8 { Dtype::F32 } else { kv };
        for [group, queries] in
            [[1, 1], [1, 4], [1, 5], [2, 2], [2, 3], [4, 1], [5, 1], [8, 1], [9, 2], [1, 31], [3, 40]]
        {
            let shapes = [[1, 2 * group, queries, D], [1, 2, KEYS, D], [1, 2, KEYS, D_V]];
            let data: [Data; 3] = std::array::from_fn(|i| {
                let x = numbers(shapes[i].iter().product(), i as u64);
                Data::new(if i == 0 { q_dtype } else { kv }, &x, shapes[i])
            });
            let [q, k, v] = [0, 1, 2].map(|i| data[i].tensor(shapes[i]));
            let problem = Problem::new(&Attention::softmax(), q, k, v).unwrap();
            for level in Level::available() {
                let plan = Plan::new(&problem, &setup_where(*level, false));
                if Extension::Amx.is_available_at(level.isa()) {
                    let expected = match (kv, group * queries, queries) {
                        (_, ..5, _) => pairs,
                        (Dtype::Bf16, _, ..32) => "avx512_rows_bf16_amx",
                        (Dtype::Bf16, ..) => "avx512_lanes_bf16_amx_2x32",
                        _ => "avx512_rows_int8_amx",
                    };
                    assert_eq!(plan.kernel(), expected, "{queries} queries of {group} heads");
                } else {
                    assert!(!plan.kernel().contains("_amx"), "{}", plan.kernel());
                }
                check_plan(&problem, &plan);
            }
        }
    }
}

/// A machine about which nothing is known but whether products of bf16 pay.
fn setup_where(level: Level, pays: bool) -> Setup {
    let vendor = if pays { "AuthenticAMD" } else { "GenuineIntel" };
    let machine = Machine { vendor: vendor.to_owned(), ..Machine::default() };
    assert_eq!(machine.bf16_pairs_pay(), pays);
    Setup { machine, ..setup_of(level) }
}

/// A plan runs what asks for the same, and refuses the rest, on every machine alike.
#[test]
fn a_plan_serves_who_asks_for_the_same_of_bf16() {
    let asked = |native: Option<bool>| match native {
        None => Attention::softmax(),
        Some(native) => Attention::softmax().native_half(native),
    };
    const ALL: [Option<bool>; 3] = [None, Some(true), Some(false)];
    for dtype in [Dtype::Bf16, Dtype::F32] {
        for queries in [1, 40] {
            let data = data([dtype, dtype], queries, false);
            let [q, k, v] = [0, 1, 2].map(|i| data[i].tensor(shapes(queries)[i]));
            for (level, pays) in Level::available().iter().flat_map(|level| [(*level, true), (*level, false)]) {
                let setup = setup_where(level, pays);
                let problems = ALL.map(|native| Problem::new(&asked(native), q, k, v).unwrap());
                for (planned, problem) in problems.iter().enumerate() {
                    let plan = Plan::new(problem, &setup);
                    let mut workspace = vec![0.0; plan.workspace_len(1)];
                    for (found, problem) in problems.iter().enumerate() {
                        let mut out = vec![0.0_f32; HEADS[0] * queries * D_V];
                        let view = ViewMut::bhsd(&mut out, problem.shape().out()).unwrap();
                        let result = plan.run(problem, view, None, &mut workspace, Execution::Serial);
                        // Types that no such instructions are for make no difference.
                        assert_eq!(result.is_ok(), planned == found || dtype == Dtype::F32, "{planned} {found}");
                        if let Err(error) = result {
                            assert!(matches!(&error, Error::Plan { planned, found } if planned != found), "{error}");
                        }
                    }
                }
            }
        }
    }
}

/// Between the two lengths at which the linear form takes over, from sums of f32 and from those of pairs at twice the rate, the
/// form goes with what the quadratic one would be computed with.
#[test]
fn forms_cross_where_the_chosen_kernel_is_as_fast() {
    const LENGTH: usize = 1700;
    let shape = [1, 1, LENGTH, 32];
    let zeros = Data::new(Dtype::Bf16, &vec![0.0; LENGTH * 32], shape);
    let zeros = zeros.tensor(shape);
    for (level, pays) in Level::available().iter().flat_map(|level| [(*level, true), (*level, false)]) {
        let power = || Attention::new(Weighting::EvenPower { degree: 2 }).causal(Align::TopLeft);
        let form = |options: &Attention<'_>| {
            let problem = Problem::new(options, zeros, zeros, zeros).unwrap();
            Plan::new(&problem, &setup_where(level, pays)).form_for(&problem, &problem.sequences()[0])
        };
        let tiles = Extension::Amx.is_available_at(level.isa()) && !pays;
        let fast = Extension::Bf16.is_available_at(level.isa()) && pays || tiles;
        let wanted = if fast { Form::Quadratic } else { Form::Linear };
        for options in [power(), power().native_half(true)] {
            assert_eq!(form(&options), wanted, "{level:?}, {pays}");
        }
        assert_eq!(form(&power().native_half(false)), Form::Linear);
    }
}
