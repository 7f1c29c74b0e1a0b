//! Rows at the ends of their range, bytes at theirs, and which kernels take them.

use crate::*;

/// Rows of numbers at the ends of their range.
fn extreme_rows(columns: usize) -> Vec<Vec<f32>> {
    let row = |element: &dyn Fn(usize) -> f32| (0..columns).map(element).collect::<Vec<f32>>();
    let sign = |c: usize| if c % 3 == 1 { -1.0 } else { 1.0 };
    vec![
        row(&|_| 0.0),
        row(&|c| if c == 2 { 1e30 } else { sign(c) }),
        row(&|c| sign(c) * f32::from_bits(1 + 37 * c as u32)),
        row(&|c| sign(c) * f32::MIN_POSITIVE * (1.0 + c as f32)),
        row(&|c| sign(c) * f32::MAX / (1.0 + c as f32)),
        row(&|_| f32::MAX),
        row(&|_| 0.7),
        row(&|_| -3e-20),
        row(&|c| if c == 1 { -0.0 } else { 0.0 }),
        row(&|c| if c == 0 { f32::from_bits(1) } else { 0.0 }),
    ]
}

/// Each row of V by itself is what is stored, bit for bit, and off by half a scale at most: rows of zeros, of one huge number
/// among others, of subnormal numbers, of the largest, and of one and the same.
#[test]
fn rows_of_v_at_the_ends_of_their_range() {
    let columns = 35;
    let rows = extreme_rows(columns);
    let n = rows.len();
    let v = Tensor::from_fn([1, 1, n, columns], Layout::Padded, |[_, _, r, c]| rows[r][c]);
    let identity = Tensor::from_fn([1, 1, n, n], Layout::Bhsd, |[_, _, r, c]| if r == c { 1.0 } else { 0.0 });
    let stored = Stored::three([&identity, &identity, &v], Dtype::F32, Dtype::Int8);
    let wanted = stored[2].widened(Layout::Bhsd).to_vec();
    let case = Case::stored(Spec::new(Weighting::Softmax), &stored);
    for (r, (row, wanted)) in rows.iter().zip(wanted.chunks(columns)).enumerate() {
        let half = half(&case, &case.v, [0, 0, r]);
        for (x, got) in row.iter().zip(wanted) {
            let error = (f64::from(*got) - f64::from(*x)).abs();
            assert!(error <= half, "{got:e} for {x:e}, half a scale is {half:e}");
        }
    }
    for engine in engines_for(Dtype::Int8) {
        let temperature = Some(Temperature::Constant(1e-4));
        let all = [Weighting::HardLeft, Weighting::HardRight, Weighting::AverageHard, Weighting::Softmax];
        for weighting in all.into_iter().filter(|weighting| engine.computes(weighting)) {
            let case = Case::stored(Spec { temperature, ..Spec::new(weighting.clone()) }, &stored);
            let output = engine.run(&case, &Blocks::new(32, 4));
            if engine.is_fixed() {
                // The product of weight and scale is rounded to 16 bits.
                compare(&case, &case.problem(), &output);
                continue;
            }
            let got = output.out;
            let got: Vec<f32> = got.into_iter().map(|x| x + 0.0).collect();
            same(
                &got,
                &wanted.iter().map(|x| x + 0.0).collect::<Vec<_>>(),
                &format!("{} {weighting:?}", engine.name()),
            );
        }
    }
}

/// The same rows as keys, with queries so small that the products stay finite.
#[test]
fn rows_of_k_at_the_ends_of_their_range() {
    let d = 19;
    let rows = extreme_rows(d);
    let random = &mut Random::new(9);
    let k = Tensor::from_fn([1, 1, 3 * rows.len(), d], Layout::Bshd, |[_, _, r, c]| rows[r % rows.len()][c]);
    let v = Tensor::normal([1, 1, 3 * rows.len(), 5], Layout::Bhsd, random);
    for queries in [2, 18] {
        let q = Tensor::from_fn([1, 1, queries, d], Layout::Bhsd, |_| 1e-38 * random.normal());
        let stored = Stored::three([&q, &k, &v], Dtype::F32, Dtype::Int8);
        for weighting in [Weighting::Softmax, Weighting::AverageHard, Weighting::Relu, Weighting::Taylor2] {
            let case = Case::stored(Spec::new(weighting.clone()), &stored);
            for engine in engines_for(Dtype::Int8).filter(|engine| engine.computes(&weighting)) {
                compare(&case, &case.problem(), &engine.run(&case, &Blocks::new(16, 5)));
            }
        }
    }
}

/// Keys of zeros have the score zero, and rows of one number are as good as f32: they stand at the end of their own scale.
#[test]
fn rows_of_one_number() {
    let random = &mut Random::new(12);
    let (keys, d) = (40, 16);
    for queries in [3, 17] {
        let q = Tensor::normal([1, HEADS, queries, d], Layout::Bhsd, random);
        let same_number = |columns: usize, random: &mut Random| {
            let numbers = random.normals(KV_HEADS * keys);
            let number = |h: usize, r: usize| if r.is_multiple_of(5) { 0.0 } else { numbers[h * keys + r] };
            Tensor::from_fn([1, KV_HEADS, keys, columns], Layout::Bhsd, |[_, h, r, _]| number(h, r))
        };
        let (k, v) = (same_number(d, random), same_number(7, random));
        let stored = Stored::three([&q, &k, &v], Dtype::F32, Dtype::Int8);
        for weighting in weightings().into_iter().filter(|weighting| !selects(weighting)) {
            let was = Case::new(Spec::new(weighting), &q, &k, &v);
            let is = Case::stored(was.spec.clone(), &stored);
            for level in levels() {
                let output = run(&is.problem(), &setup_of(*level), Execution::Serial);
                // Three roundings for each element: of the scale, of its product with 127, and of that with the query or the weight.
                for row in was.rows() {
                    let oracle = reference::row(&was.problem(), output.paths[0].rounding, row);
                    let bound = bound(&was, &oracle, row, &output.paths[0]);
                    for (c, exact) in oracle.out.iter().enumerate() {
                        let error = (f64::from(output.out[was.row(row) * 7 + c]) - exact).abs();
                        assert!(
                            error <= 2.0 * bound.out[c],
                            "{error:e} of {:e}: {row:?}, {:?}",
                            bound.out[c],
                            was.spec
                        );
                    }
                }
            }
        }
    }
}

/// A row with NaN or infinity is NaN, in K and in V: rows of the output that see it are NaN, and others keep their bits.
#[test]
fn rows_that_are_not_finite() {
    let bad_key = 25;
    for queries in [4, 20] {
        let clean = tensors([queries, 40], [12, 7]);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for which in [1, 2] {
                let mut dirty = clean.clone();
                (0..4).for_each(|i| *dirty[which].at([i / 2, i % 2, bad_key, 3]) = bad);
                let [clean, dirty] = [&clean, &dirty].map(|tensors| stored(tensors, 0));
                // The first half of the rows does not see the key.
                let first = bad_key as i64 - queries as i64 / 2;
                for engine in engines_for(Dtype::Int8) {
                    let weightings = weightings().into_iter().step_by(if SLOW { 5 } else { 1 });
                    for weighting in weightings.filter(|weighting| engine.computes(weighting)) {
                        let spec = Spec { causal: Some(Align::Offset(first)), ..Spec::new(weighting.clone()) };
                        let case = Case::stored(spec, &dirty);
                        let blocks = Blocks::new(16, 5);
                        let [was, got] = [&clean, &dirty]
                            .map(|stored| engine.run(&Case::stored(case.spec.clone(), stored), &blocks).out);
                        let name = || format!("{bad} in tensor {which}, {weighting:?}, {}", engine.name());
                        for (at, (was, got)) in was.iter().zip(&got).enumerate() {
                            let sees = at / 7 % queries >= queries / 2;
                            if !sees {
                                assert_eq!(got.to_bits(), was.to_bits(), "{}", name());
                            } else if which == 1 || !selects(&weighting) {
                                assert!(got.is_nan(), "row {}: {got}, {}", at / 7, name());
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Every byte means itself, -128 too, which nothing is rounded to; scales may be negative, zero, and the same for many rows.
#[test]
fn every_byte_and_any_scale() {
    let (keys, d, d_v) = (48, 16, 37);
    let bytes = |columns: usize, start: usize| -> Vec<i8> {
        (0..2 * keys * columns).map(|i| (start + i * 7) as u8 as i8).collect()
    };
    let (k, v) = (bytes(d, 0), bytes(d_v, 128));
    assert!((-128..=127).all(|byte| k.contains(&byte) && v.contains(&byte)));
    let scales: Vec<f32> = (0..2 * keys).map(|i| [0.01, -0.02, 0.0, 0.005, -0.0][i % 5]).collect();
    for queries in [3, 20] {
        let q = Tensor::normal([1, HEADS, queries, d], Layout::Bhsd, &mut Random::new(7));
        // For each row, for each head, and for all.
        for scale_shape in [[1, 2, keys, 1], [1, 2, 1, 1], [1, 1, 1, 1]] {
            let len = scale_shape.iter().product();
            let scales = View::bhsd(&scales[..len], scale_shape).expect("as long as its shape");
            let rows = |data, columns| Quantised {
                data: View::bhsd(data, [1, 2, keys, columns]).expect("as long as its shape"),
                scales,
            };
            let full: Vec<f32> = (0..2 * keys)
                .map(|i| {
                    *scales.get([
                        0,
                        if scale_shape[1] == 2 { i / keys } else { 0 },
                        if scale_shape[2] == 1 { 0 } else { i % keys },
                        0,
                    ])
                })
                .collect();
            let full = View::bhsd(&full, [1, 2, keys, 1]).expect("a scale for each row");
            for weighting in [Weighting::Softmax, Weighting::HardRight, Weighting::ReluSquared, Weighting::Taylor2] {
                let spec = Spec { causal: Some(Align::BottomRight), ..Spec::new(weighting.clone()) };
                for engine in engines_for(Dtype::Int8).filter(|engine| engine.computes(&weighting)) {
                    let own = Case::of(
                        spec.clone(),
                        q.view(),
                        Quantised { scales: full, ..rows(&k, d) },
                        Quantised { scales: full, ..rows(&v, d_v) },
                    );
                    let output = engine.run(&own, &Blocks::new(32, 6));
                    compare(&own, &own.problem(), &output);
                    let options = spec.options().isa(engine.isa());
                    let [shared, each] = [
                        regard::attention(&options, q.view(), rows(&k, d), rows(&v, d_v)),
                        regard::attention(&options, q.view(), own.k, own.v),
                    ];
                    same(&shared.expect("valid"), &each.expect("valid"), &format!("{scale_shape:?}, {weighting:?}"));
                }
            }
        }
    }
}

/// Whatever a plan chooses for keys and values of int8 is one of the kernels that are tested here.
#[test]
fn plans_choose_kernels_for_int8() {
    let names: Vec<&str> = engines_for(Dtype::Int8).map(Engine::name).collect();
    for queries in [1, 15, 16, 40] {
        let stored = stored(&tensors([queries, 40], [12, 7]), queries);
        for level in levels() {
            let problem = Case::stored(Spec::new(Weighting::Softmax), &stored).problem();
            let plan = regard::Plan::new(&problem, &setup_of(*level));
            assert!(names.contains(&plan.kernel()), "{}", plan.explain());
        }
    }
}
