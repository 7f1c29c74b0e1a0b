//! One query of each head, from a state.

use crate::*;

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
    for bad in [0.0, -1.0, 1.5, f32::NAN, f32::INFINITY] {
        let gates = [0.5, bad];
        assert!(matches!(error(&power().gates(&gates)), Error::Number { name: "a gate", .. }), "{bad}");
        let temperatures = [1.0, 1.0, if bad == 1.5 { -bad } else { bad }, 1.0];
        for temperature in [Temperature::Constant(temperatures[2]), Temperature::PerHead(&temperatures)] {
            assert!(
                matches!(error(&power().temperature(temperature)), Error::Number { name: "temperature", .. }),
                "{bad}"
            );
        }
    }
    assert!(matches!(error(&power().gates(&[0.5; 4])), Error::Length { list: "gates", found: 4, expected: 2, .. }));
    for degree in [0, 1, 3, 10] {
        let even = Attention::new(Weighting::EvenPower { degree });
        assert!(matches!(error(&even), Error::Number { name: "degree", .. }), "{degree}");
    }
    assert!(matches!(
        error(&Attention::new(Weighting::EvenPower { degree: 6 })),
        Error::Form { option: "the degree", .. }
    ));
    let cubic =
        LinearState::new(&Attention::new(Weighting::Polynomial { degree: 3 }), LinearShape { head_dim: 33, ..shape });
    assert!(matches!(cubic, Err(Error::Form { option: "the head dimension", .. })));
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
