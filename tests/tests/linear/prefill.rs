//! Whole problems in the linear form.

use crate::*;

#[test]
fn agrees_with_the_definition() {
    let sizes = [[1, 1, 1, 1], [7, 63, 3, 5], [64, 64, 2, 16], [65, 129, 7, 17], [150, 140, 5, 33], [20, 300, 9, 3]];
    for level in levels() {
        for weighting in weightings() {
            for [queries, keys, d, d_v] in sizes.into_iter().step_by(if SLOW { 3 } else { 1 }) {
                let q = normal([1, 2, queries, d], 1);
                let [k, v] = [d, d_v].map(|columns| normal([1, 1, keys, columns], columns as u64));
                let aligns = [Align::TopLeft, Align::BottomRight, Align::Offset(-9), Align::Offset(77)];
                let causal = aligns.map(|align| Spec { causal: Some(align), ..linear(weighting.clone()) });
                let window = Some((None, Some(10)));
                let others = [
                    linear(weighting.clone()),
                    Spec { strict: true, ..causal[1].clone() },
                    Spec { window, align: Some(Align::TopLeft), ..linear(weighting.clone()) },
                ];
                for spec in causal.into_iter().chain(others) {
                    check(&Case::new(spec, &q, &k, &v), &setup_of(*level));
                }
            }
        }
    }
}

/// Larger monomials, in several tiles of both kinds.
#[test]
fn many_monomials() {
    for level in levels() {
        for (weighting, d) in [
            (Weighting::EvenPower { degree: 2 }, 64),
            (Weighting::Taylor2, 50),
            (Weighting::Polynomial { degree: 3 }, 32),
            (Weighting::EvenPower { degree: 4 }, 16),
            (Weighting::Identity, 200),
        ] {
            let [q, k, v] = [1, 2, 3].map(|seed| normal([1, 1, 200, d], seed));
            let causal = Some(Align::TopLeft);
            check(&Case::new(Spec { causal, ..linear(weighting) }, &q, &k, &v), &setup_of(*level));
        }
    }
}

/// What multiplies scores and outputs, batches with key lengths, grouped heads, every layout.
#[test]
fn terms_and_layouts() {
    let (temperatures, lengths) = ([0.5, 1.5, 2.0, 0.7], [130, 0, 65]);
    let rows: Vec<f32> = (0..3 * 4 * 70).map(|i| 0.5 + (i % 7) as f32 / 4.0).collect();
    for level in levels() {
        for weighting in [Weighting::Polynomial { degree: 3 }, Weighting::EvenPower { degree: 2 }, Weighting::Taylor2] {
            let pointwise = matches!(weighting, Weighting::Polynomial { .. });
            for layout in Layout::ALL {
                let mut random = Random::new(5);
                let q = Tensor::normal([3, 4, 70, 6], layout, &mut random);
                let k = Tensor::normal([3, 2, 130, 6], layout, &mut random);
                let v = Tensor::normal([3, 2, 130, 10], layout, &mut random);
                for temperature in [Temperature::PerHead(&temperatures), Temperature::PerRow(&rows)] {
                    let spec = Spec {
                        scale: Some(-0.3),
                        temperature: Some(temperature),
                        log_n: Some(0.8),
                        count: Some(Count::Visible),
                        coefficient: pointwise.then_some(1.0 / 14.0),
                        row_scale: pointwise.then_some(RowScale::InvSqrtN),
                        key_lengths: Some(&lengths),
                        causal: Some(Align::BottomRight),
                        ..linear(weighting.clone())
                    };
                    let case = Case::new(spec, &q, &k, &v);
                    let problem = case.problem();
                    let output = run_into(&problem, &setup_of(*level), Execution::Serial, layout);
                    compare(&case, &problem, &output);
                    // A sequence without keys.
                    assert!(output.out[4 * 70 * 10..2 * 4 * 70 * 10].iter().all(|x| x.to_bits() == 0));
                }
            }
        }
    }
}

#[test]
fn gates() {
    for level in levels() {
        for weighting in weightings() {
            for gates in [[0.99, 0.5], [1.0, 1e-3], [0.9, 1e-30]] {
                for align in [Align::TopLeft, Align::BottomRight, Align::Offset(40)] {
                    let q = normal([1, 4, 90, 5], 1);
                    let [k, v] = [5, 6].map(|columns| normal([1, 2, 140, columns], columns as u64));
                    let (causal, gates) = (Some(align), Some(&gates[..]));
                    for strict in [false, true] {
                        let spec = Spec { causal, gates, strict, ..Spec::new(weighting.clone()) };
                        let problem = Case::new(spec.clone(), &q, &k, &v).problem();
                        compare(
                            &Case::new(spec, &q, &k, &v),
                            &problem,
                            &run(&problem, &setup_of(*level), Execution::Serial),
                        );
                    }
                }
            }
        }
    }
}

/// A gate of 1 changes no bit.
#[test]
fn a_gate_of_one_is_none() {
    let [q, k, v] = [1, 2, 3].map(|seed| normal([1, 2, 150, 7], seed));
    for weighting in weightings() {
        let causal = Some(Align::TopLeft);
        let plain = Case::new(Spec { causal, ..linear(weighting.clone()) }, &q, &k, &v).problem();
        let gated = Case::new(Spec { causal, gates: Some(&[1.0, 1.0]), ..linear(weighting) }, &q, &k, &v).problem();
        let setup = setup_of(Level::best());
        run(&gated, &setup, Execution::Serial).assert_same(&run(&plain, &setup, Execution::Serial), "a gate of 1");
    }
}

/// Elements are widened without error, and outputs rounded once.
#[test]
fn element_types() {
    for level in levels() {
        for weighting in [Weighting::EvenPower { degree: 2 }, Weighting::Polynomial { degree: 1 }] {
            let [q, k, v] = [1, 2, 3].map(|seed| normal([1, 2, 140, 9], seed));
            for kv in Dtype::ALL {
                for q_dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
                    let stored = Stored::three([&q, &k, &v], q_dtype, kv);
                    let spec = Spec { causal: Some(Align::TopLeft), ..linear(weighting.clone()) };
                    let case = Case::stored(spec, &stored);
                    let problem = case.problem();
                    let plan = Plan::new(&problem, &setup_of(*level));
                    for out in [Dtype::F32, q_dtype] {
                        let output = regard_tests::run_plan_as(&plan, &problem, Execution::Serial, Layout::Padded, out);
                        compare(&case, &problem, &output);
                    }
                }
            }
        }
    }
}

/// Both forms are the same function, also where sums are long.
#[test]
fn both_forms_agree() {
    let keys = if SLOW { 300 } else { 3000 };
    for (weighting, d) in [
        (Weighting::EvenPower { degree: 2 }, 16),
        (Weighting::Taylor2, 16),
        (Weighting::Polynomial { degree: 3 }, 8),
        (Weighting::Identity, 64),
    ] {
        let q = normal([1, 1, 40, d], 1);
        let [k, v] = [2, 3].map(|seed| normal([1, 1, keys, d], seed));
        for form in [Form::Linear, Form::Quadratic] {
            let causal = Some(Align::BottomRight);
            let spec = Spec { causal, form: Some(form), ..Spec::new(weighting.clone()) };
            check(&Case::new(spec, &q, &k, &v), &setup_of(Level::best()));
        }
    }
}

/// NaN and Inf reach the rows that see them, and no other, whatever shares a chunk or a tile with them.
#[test]
fn nan_reaches_who_sees_it() {
    for level in levels() {
        for weighting in weightings() {
            let [q, k, v] = [1, 2, 3].map(|seed| normal([1, 1, 200, 5], seed));
            let lengths = [190];
            let output = |q: &Tensor, k: &Tensor, v: &Tensor| {
                let causal = Some(Align::TopLeft);
                let spec = Spec { causal, key_lengths: Some(&lengths), ..linear(weighting.clone()) };
                run(&Case::new(spec, q, k, v).problem(), &setup_of(*level), Execution::Serial).out
            };
            let clean = output(&q, &k, &v);
            for at in [0, 63, 64, 100, 189, 190, 199] {
                let visible = at < lengths[0];
                let mut bad = k.clone();
                *bad.at([0, 0, at, 2]) = f32::NAN;
                for (i, x) in output(&q, &bad, &v).iter().enumerate() {
                    let hit = visible && i / 5 >= at;
                    assert!(if hit { x.is_nan() } else { x.to_bits() == clean[i].to_bits() }, "{weighting:?} {at} {i}");
                }
                for value in [f32::NAN, f32::INFINITY] {
                    let mut bad = v.clone();
                    *bad.at([0, 0, at, 3]) = value;
                    for (i, x) in output(&q, &k, &bad).iter().enumerate() {
                        let hit = visible && i / 5 >= at && i % 5 == 3;
                        let right = if hit { !x.is_finite() } else { x.to_bits() == clean[i].to_bits() };
                        assert!(right, "{weighting:?} {at} {i}: {x}");
                    }
                }
                let mut bad = q.clone();
                *bad.at([0, 0, at, 0]) = f32::NAN;
                for (i, x) in output(&bad, &k, &v).iter().enumerate() {
                    let right = if i / 5 == at { x.is_nan() } else { x.to_bits() == clean[i].to_bits() };
                    assert!(right, "{weighting:?} query {at} {i}: {x}");
                }
            }
        }
    }
}

/// Threads, batches, heads, packing and how many rows there are make no difference to any bit.
#[test]
fn any_company() {
    let (d, d_v) = (6, 9);
    let lengths = [150, 3, 0, 129, 64];
    let offsets: Vec<usize> =
        lengths.iter().scan(0, |end, length| Some(std::mem::replace(end, *end + length))).collect();
    let offsets = [&offsets[..], &[346]].concat();
    let q = normal([1, 4, 346, d], 1);
    let [k, v] = [d, d_v].map(|columns| normal([1, 2, 346, columns], columns as u64));
    let pools = [1, 2, 5].map(|threads| ThreadPoolBuilder::new().num_threads(threads).build().expect("threads"));
    for level in levels() {
        let setup = setup_of(*level);
        for weighting in weightings() {
            let spec = Spec { causal: Some(Align::TopLeft), ..linear(weighting) };
            let packed = Case::new(spec.clone(), &q, &k, &v);
            let packed = packed.ragged(Queries::Packed(&offsets), Keys::Packed(&offsets));
            let problem = packed.problem();
            let output = run(&problem, &setup, Execution::Serial);
            compare(&packed, &problem, &output);
            for pool in &pools {
                run(&problem, &setup, Execution::Pool(pool)).assert_same(&output, "threads");
            }
            for (index, length) in lengths.iter().enumerate() {
                let alone = [&q, &k, &v].map(|tensor| tensor.rows(offsets[index], *length));
                let [q, k, v] = &alone;
                let alone = run(&Case::new(spec.clone(), q, k, v).problem(), &setup, Execution::Serial);
                output.rows([4, 346], offsets[index], *length).assert_same(&alone, "a sequence alone");
                if *length > 70 {
                    // The last rows only.
                    let last = q.rows(length - 5, 5);
                    let spec = Spec { causal: Some(Align::BottomRight), ..spec.clone() };
                    let last = run(&Case::new(spec, &last, k, v).problem(), &setup, Execution::Serial);
                    alone.rows([4, *length], length - 5, 5).assert_same(&last, "the last rows");
                }
            }
        }
    }
}

/// Threads share a head that is long, whatever stands beside it, and no bit knows of it.
#[test]
fn one_long_head() {
    let length = 3400;
    let lengths = [length, 100, 64];
    let offsets = [0, length, length + 100, length + 164];
    let q = normal([1, 2, length + 164, 32], 1);
    let [k, v] = [32, 17].map(|columns| normal([1, 1, length + 164, columns], columns as u64));
    let pools = [2, 3, 5].map(|threads| ThreadPoolBuilder::new().num_threads(threads).build().expect("threads"));
    for level in levels() {
        let setup = setup_of(*level);
        for (causal, gates) in [(None, None), (Some(Align::TopLeft), None), (Some(Align::TopLeft), Some(&[0.999][..]))]
        {
            let spec = Spec { causal, gates, ..linear(Weighting::EvenPower { degree: 2 }) };
            let packed = Case::new(spec.clone(), &q, &k, &v).ragged(Queries::Packed(&offsets), Keys::Packed(&offsets));
            let problem = packed.problem();
            let plan = Plan::new(&problem, &setup);
            assert!(plan.tasks() > lengths.len(), "{} tasks", plan.tasks());
            let one = run(&problem, &setup, Execution::Serial);
            let alone = [&q, &k, &v].map(|tensor| tensor.rows(0, length));
            let alone = Case::new(spec, &alone[0], &alone[1], &alone[2]);
            let alone = alone.problem();
            for pool in &pools {
                let threads = pool.current_num_threads();
                assert!(plan.workspace_len(threads) >= plan.workspace_len_for(&problem, threads));
                run(&problem, &setup, Execution::Pool(pool)).assert_same(&one, "threads");
                let alone = run(&alone, &setup, Execution::Pool(pool));
                alone.assert_same(&one.rows([2, length + 164], 0, length), "threads and no company");
            }
        }
    }
}

/// Which form is taken depends on the sequence alone.
#[test]
fn the_plan_chooses() {
    let setup = setup_of(Level::best());
    let weighting = Weighting::EvenPower { degree: 2 };
    let plan = |form, keys: usize, queries: usize, d: usize| {
        let zeros = vec![0.0; keys * d];
        let options = Attention::new(weighting.clone()).causal(Align::BottomRight).form(form);
        let view = |rows| View::bhsd(&zeros[..rows * d], [1, 1, rows, d]).expect("a view");
        let problem = Problem::new(&options, view(queries), view(keys), view(keys)).expect("a legal problem");
        let plan = Plan::new(&problem, &setup);
        let taken = plan.form_for(&problem, &problem.sequences()[0]);
        let text = plan.explain().to_string();
        assert!(text.contains(&format!("form         {}", taken.name())), "{text}");
        let how = if form == Form::Auto { "less time by counting multiply-adds" } else { "as asked for" };
        assert!(text.contains(how), "{text}");
        assert_eq!(plan.kernel().contains("_linear_"), taken == Form::Linear);
        assert_eq!(plan.linear_kernel().is_some(), taken == Form::Linear);
        taken
    };
    assert_eq!(plan(Form::Auto, 512, 512, 16), Form::Quadratic);
    assert_eq!(plan(Form::Auto, 8192, 8192, 16), Form::Linear);
    assert_eq!(plan(Form::Quadratic, 8192, 8192, 16), Form::Quadratic);
    assert_eq!(plan(Form::Auto, 65536, 65536, 64), Form::Linear);
    // One query, of all keys.
    assert_eq!(plan(Form::Auto, 8192, 1, 16), Form::Quadratic);
    assert_eq!(plan(Form::Linear, 8, 1, 16), Form::Linear);

    // Long and short sequences side by side.
    let lengths = [2500, 40, 2400];
    let offsets = [0, 2500, 2540, 4940];
    let [q, k, v] = [1, 2, 3].map(|seed| normal([1, 1, 4940, 4], seed));
    let spec = Spec { causal: Some(Align::TopLeft), ..Spec::new(weighting) };
    let packed = Case::new(spec.clone(), &q, &k, &v).ragged(Queries::Packed(&offsets), Keys::Packed(&offsets));
    let problem = packed.problem();
    let plan = Plan::new(&problem, &setup);
    let forms: Vec<_> = problem.sequences().iter().map(|sequence| plan.form_for(&problem, sequence)).collect();
    assert_eq!(forms, [Form::Linear, Form::Quadratic, Form::Linear]);
    let output = run(&problem, &setup, Execution::Serial);
    let pool = ThreadPoolBuilder::new().num_threads(3).build().expect("threads");
    run(&problem, &setup, Execution::Pool(&pool)).assert_same(&output, "threads");
    for index in 0..3 {
        let alone = [&q, &k, &v].map(|tensor| tensor.rows(offsets[index], lengths[index]));
        let [q, k, v] = &alone;
        let alone = run(&Case::new(spec.clone(), q, k, v).problem(), &setup, Execution::Serial);
        output.rows([1, 4940], offsets[index], lengths[index]).assert_same(&alone, "a sequence alone");
    }
}
