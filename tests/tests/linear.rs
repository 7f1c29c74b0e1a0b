//! The linear form: against the definition, against the quadratic form, and the state that decodes.
//!
//! # How far results may be off
//! The linear form adds up products of elements. With `A = sum_p |c_p| (gain sum_c |q_c k_c|)^p`, the weight as it would be if
//! nothing cancelled out, a sum over keys of weight times value is off by at most `STEPS u sum A |v|`, where `u = 2^-24` and
//! STEPS counts the roundings that any one product passes: `2 p + 8` in the monomials of both sides, their multiplicity and
//! gates; one for each key of a chunk and one for each chunk; one for each monomial of a tile of 128 and one for each tile;
//! `d` and a chunk more in the quadratic part. The sum of weights is the same with 1 for `v`, and a quotient is off by what
//! both are.
#![forbid(unsafe_code)]

use rayon::ThreadPoolBuilder;
use regard::{
    Align, Attention, Count, Dtype, Error, Execution, Form, Keys, Level, LinearShape, LinearState, Numerics, Plan,
    Problem, Queries, RowScale, Setup, Temperature, Tensor as Elements, View, ViewMut, Weighting, reference,
};
use regard_tests::{
    Case, Guarded, Layout, Output, Random, SLOW, Spec, Stored, Tensor, levels, output_rounding, run, run_into, same,
    setup_of,
};

/// Every weighting with a linear form at small head dimensions.
fn weightings() -> Vec<Weighting> {
    let mut all = vec![Weighting::Identity, Weighting::Taylor2];
    all.extend((1..=4).map(|degree| Weighting::Polynomial { degree }));
    all.extend([2, 4].map(|degree| Weighting::EvenPower { degree }));
    all
}

/// The coefficients of powers of the score, and whether weights are divided by their sum.
fn polynomial(weighting: &Weighting) -> ([f64; 5], bool) {
    let power = |degree: u32| std::array::from_fn(|power| if power == degree as usize { 1.0 } else { 0.0 });
    match weighting {
        Weighting::Identity => (power(1), false),
        Weighting::Polynomial { degree } => (power(*degree), false),
        Weighting::EvenPower { degree } => (power(*degree), true),
        Weighting::Taylor2 => ([1.0, 1.0, 0.5, 0.0, 0.0], true),
        other => panic!("{other:?} has no linear form"),
    }
}

/// The roundings that a product passes, see above.
fn steps(degree: usize, d: usize, keys: usize) -> f64 {
    let features = (0..degree).fold(1.0, |count, i| count * (d + i) as f64 / (i + 1) as f64);
    (2 * degree + 8 + 128 + 128 + 128 + d) as f64 + keys as f64 / 64.0 + features / 128.0
}

/// Compares every row with the oracle. Rows whose sum of weights may have cancelled out are passed over; gives how many were
/// not.
fn compare(case: &Case<'_>, problem: &Problem<'_>, output: &Output) -> usize {
    let (spec, columns) = (&case.spec, problem.shape().value_dim);
    let (coefficients, normalised) = polynomial(&spec.weighting);
    let degree = coefficients.iter().rposition(|c| *c != 0.0).unwrap_or(0);
    let u = f64::from(f32::EPSILON) / 2.0;
    // What may underflow.
    let tiny = 1e-36;
    let mut compared = 0;
    for row in case.rows() {
        let [sequence, head, query] = row;
        let shape = case.shape(sequence);
        let kv_head = head / (shape.query_heads / shape.kv_heads);
        let seen: Vec<usize> = (0..shape.keys).filter(|key| spec.sees(&shape, [sequence, head, query, *key])).collect();
        let n = spec.length(shape.keys, seen.len());
        let gain = spec.scale(&shape) * spec.inverse_temperature(head, case.row(row), n);
        let position = query as f64 + spec.offset(&shape, sequence) as f64;
        let gate = spec.gates.map_or(1.0, |gates| f64::from(gates[kv_head]));
        let q = case.query(row);
        let (mut total, mut size) = (0.0, 0.0);
        let mut magnitudes = vec![0.0; columns];
        for key in &seen {
            let k = case.key([sequence, kv_head, *key]);
            let products = q.iter().zip(&k).map(|(q, k)| gain * q * k);
            let (score, most) = products.fold((0.0, 0.0), |(sum, abs): (f64, f64), x| (sum + x, abs + x.abs()));
            let decay = gate.powf(position - *key as f64);
            let sum = |s: f64| -> f64 {
                decay * coefficients.iter().enumerate().map(|(power, c)| c * s.powi(power as i32)).sum::<f64>()
            };
            total += sum(score);
            size += sum(most);
            for (magnitude, v) in magnitudes.iter_mut().zip(case.value([sequence, kv_head, *key])) {
                *magnitude += sum(most) * v.abs();
            }
        }
        let oracle = reference::row(problem, output.paths[sequence].rounding, row);
        let steps = steps(degree, shape.head_dim, shape.keys);
        let error = steps * (u * size + tiny);
        if normalised && !seen.is_empty() && total.abs() <= 4.0 * error {
            continue;
        }
        compared += 1;
        let out = &output.out[case.row(row) * columns..][..columns];
        for ((got, wanted), magnitude) in out.iter().zip(&oracle.out).zip(&magnitudes) {
            let own = steps * (u * magnitude + tiny);
            let mut allowed = match normalised {
                true if seen.is_empty() => 0.0,
                true => (own + error * wanted.abs()) / (total.abs() - error) + 4.0 * u * wanted.abs(),
                false => spec.factor(n).abs() * own + 4.0 * u * wanted.abs(),
            };
            allowed += output_rounding(output.paths[sequence].out, wanted.abs() + allowed);
            let difference = (f64::from(*got) - wanted).abs();
            assert!(
                difference <= allowed,
                "{got:e} instead of {wanted:e}, {:.2} times what is allowed: row {row:?}, {:?}, {spec:?}",
                difference / allowed,
                problem.shape()
            );
        }
    }
    compared
}

/// Runs a case on the calling thread and compares it. At least half of the rows must be fit to be compared.
fn check(case: &Case<'_>, setup: &Setup) {
    let problem = case.problem();
    let compared = compare(case, &problem, &run(&problem, setup, Execution::Serial));
    assert!(2 * compared >= case.rows().count(), "{compared} rows compared: {:?}", case.spec);
}

fn linear(weighting: Weighting) -> Spec<'static> {
    Spec { form: Some(Form::Linear), ..Spec::new(weighting) }
}

fn normal(shape: [usize; 4], seed: u64) -> Tensor {
    Tensor::normal(shape, Layout::Bshd, &mut Random::new(seed))
}

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

fn view(data: &[f32], shape: [usize; 4]) -> View<'_, f32> {
    View::bhsd(data, shape).expect("as many elements as the shape has")
}

/// One query of each head, from a state, between guard bands.
fn output(state: &mut LinearState, q: impl Into<Elements<'static>>) -> Vec<f32> {
    let LinearShape { query_heads, value_dim, .. } = state.shape();
    let mut out = Guarded::new(query_heads * value_dim);
    let target = ViewMut::bhsd(out.inner(), [1, query_heads, 1, value_dim]).expect("as long as its shape");
    state.output(q, target).expect("a query of this shape");
    out.check("out");
    out.inner().to_vec()
}

/// The row of all heads as a tensor of its own.
fn token(tensor: &Tensor, row: usize) -> View<'static, f32> {
    let [_, heads, _, columns] = tensor.shape();
    let data: &'static [f32] = tensor.rows(row, 1).in_layout(Layout::Bhsd).to_vec().leak();
    View::bhsd(data, [1, heads, 1, columns]).expect("as long as its shape")
}

/// Token by token, a state gives the bits of a causal problem over all keys, and its memory does not grow.
#[test]
fn decoding_gives_the_bits_of_prefill() {
    for level in levels() {
        for weighting in weightings() {
            for gates in [None, Some(&[0.9, 0.99][..])] {
                let tokens = 150;
                let q = normal([1, 4, tokens, 5], 1);
                let [k, v] = [5, 6].map(|columns| normal([1, 2, tokens, columns], columns as u64));
                let (causal, count) = (Some(Align::TopLeft), Some(Count::Visible));
                let isa = Some(level.isa());
                let spec =
                    Spec { causal, count, gates, log_n: Some(0.5), scale: Some(0.4), isa, ..linear(weighting.clone()) };
                let problem = Case::new(spec.clone(), &q, &k, &v).problem();
                let prefill = run(&problem, &setup_of(*level), Execution::Serial);
                let shape = LinearShape { query_heads: 4, kv_heads: 2, head_dim: 5, value_dim: 6 };
                let mut state = LinearState::new(&spec.options(), shape).expect("a legal state");
                let bytes = state.bytes();
                // A prompt, then one token after the other.
                let prompt = 70;
                state.push(k.rows(0, prompt).view(), v.rows(0, prompt).view()).expect("keys of this shape");
                for at in prompt - 1..tokens {
                    if at >= prompt {
                        state.push(token(&k, at), token(&v, at)).expect("keys of this shape");
                    }
                    let wanted = prefill.rows([4, tokens], at, 1);
                    same(&output(&mut state, token(&q, at)), &wanted.out, &format!("token {at}, {spec:?}"));
                }
                assert_eq!((state.keys(), state.bytes()), (tokens, bytes));
                // Forgotten, and all at once.
                state.clear();
                assert!(output(&mut state, token(&q, 0)).iter().all(|x| x.to_bits() == 0));
                state.push(k.view(), v.view()).expect("keys of this shape");
                let wanted = prefill.rows([4, tokens], tokens - 1, 1);
                same(&output(&mut state, token(&q, tokens - 1)), &wanted.out, "all at once");
            }
        }
    }
}

/// Parts merge to the whole, whatever they are and in whatever order merges are made.
#[test]
fn merges() {
    for weighting in weightings() {
        for gates in [None, Some(&[0.97][..])] {
            let [q, k, v] = [1, 2, 3].map(|seed| normal([1, 1, 400, 4], seed));
            let spec = Spec { causal: Some(Align::TopLeft), gates, ..linear(weighting.clone()) };
            let shape = LinearShape { query_heads: 1, kv_heads: 1, head_dim: 4, value_dim: 4 };
            let part = |from: usize, to: usize| {
                let mut state = LinearState::new(&spec.options(), shape).expect("a legal state");
                let [k, v] = [&k, &v].map(|tensor| tensor.rows(from, to - from));
                state.push(k.view(), v.view()).expect("keys of this shape");
                state
            };
            let mut left = part(0, 70);
            left.merge(&part(70, 71)).expect("states of one kind");
            left.merge(&part(71, 71)).expect("states of one kind");
            let mut right = part(71, 300);
            right.merge(&part(300, 400)).expect("states of one kind");
            left.merge(&right).expect("states of one kind");
            assert_eq!(left.keys(), 400);
            let last = q.rows(399, 1);
            let case = Case::new(Spec { causal: Some(Align::BottomRight), ..spec.clone() }, &last, &k, &v);
            let problem = case.problem();
            let mut whole = run(&problem, &setup_of(Level::best()), Execution::Serial);
            whole.out = output(&mut left, token(&q, 399));
            assert_eq!(compare(&case, &problem, &whole), 1, "{spec:?}");
            // Keys that follow.
            left.push(token(&k, 0), token(&v, 0)).expect("keys of this shape");
            assert_eq!(left.keys(), 401);
        }
    }
}

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

#[test]
fn wrong_states() {
    let shape = LinearShape { query_heads: 4, kv_heads: 2, head_dim: 3, value_dim: 5 };
    let power = || Attention::new(Weighting::EvenPower { degree: 2 });
    let new = |options: &Attention<'_>| LinearState::new(options, shape);
    let error = |options: &Attention<'_>| new(options).map(drop).expect_err("no such state");
    assert!(matches!(error(&Attention::softmax()), Error::Form { option: "softmax", .. }));
    assert!(matches!(error(&power().form(Form::Quadratic)), Error::Form { .. }));
    assert!(matches!(error(&power().softcap(2.0)), Error::Form { option: "a soft-cap", .. }));
    assert!(matches!(error(&power().temperature(Temperature::PerRow(&[1.0; 4]))), Error::Form { .. }));
    assert!(matches!(error(&power().temperature(Temperature::PerHead(&[1.0; 3]))), Error::Length { .. }));
    assert!(matches!(error(&power().causal(Align::TopLeft).strict()), Error::Form { option: "strict", .. }));
    assert!(matches!(error(&power().coefficient(2.0)), Error::NoMeaning { .. }));
    assert!(matches!(error(&power().gates(&[0.5, 2.0])), Error::Number { name: "a gate", .. }));
    let heads = LinearShape { kv_heads: 3, ..shape };
    assert!(matches!(LinearState::new(&power(), heads), Err(Error::Heads { query_heads: 4, kv_heads: 3 })));
    let huge = LinearShape { value_dim: usize::MAX / 8, ..shape };
    assert!(matches!(LinearState::new(&power(), huge), Err(Error::View { .. })));
    let none = LinearShape { query_heads: 0, kv_heads: 0, ..shape };
    assert_eq!(LinearState::new(&power(), none).map(|state| state.keys()).ok(), Some(0));

    let mut state = new(&power()).expect("a legal state");
    let zeros = vec![0.0; 1000];
    let (k, v) = ([1, 2, 7, 3], [1, 2, 7, 5]);
    for (k, v) in [([1, 2, 7, 4], v), ([2, 2, 7, 3], v), (k, [1, 2, 6, 5]), (k, [1, 1, 7, 5])] {
        let error = state.push(view(&zeros, k), view(&zeros, v)).expect_err("no such keys");
        assert!(matches!(error, Error::Dimension { .. }), "{error}");
    }
    assert_eq!(state.keys(), 0);
    let mut out = Guarded::new(20);
    for (q, to) in [([1, 4, 1, 4], [1, 4, 1, 5]), ([1, 4, 2, 3], [1, 4, 1, 5]), ([1, 4, 1, 3], [1, 4, 1, 4])] {
        let target = ViewMut::bhsd(out.inner(), to).expect("long enough");
        let error = state.output(view(&zeros, q), target).expect_err("no such query");
        assert!(matches!(error, Error::Dimension { .. }), "{error}");
    }
    out.check_untouched("out");

    let differs = |mut left: LinearState, right: &LinearState| match left.merge(right) {
        Err(Error::State { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    let other = LinearShape { value_dim: 4, ..shape };
    assert_eq!(differs(state.clone(), &LinearState::new(&power(), other).expect("legal")), "the shape");
    assert_eq!(differs(state.clone(), &new(&Attention::new(Weighting::Taylor2)).expect("legal")), "the weighting");
    assert_eq!(differs(state.clone(), &new(&power().gates(&[0.5, 0.5])).expect("legal")), "the gate");
    let portable = new(&power().isa(regard::Isa::Portable)).expect("legal");
    if Level::best().isa() != regard::Isa::Portable {
        assert_eq!(differs(state, &portable), "the level");
    }
}
