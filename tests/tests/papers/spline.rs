//! Lai, Lim and Liu, "Attention is a smoothed cubic spline", arXiv:2408.09624: with ReLU in the place of softmax,
//! attention is a cubic spline in its tokens.
//!
//! Tokens move along a line, X(t) = X0 + t D, and Q, K and V are linear in X; everything is a small multiple of a power
//! of two, so that the f64 reference is exact and differences of a polynomial vanish without any tolerance.

use regard::{Align, Attention, Weighting};
use regard_tests::{Layout, Random, Tensor};

use super::*;

const TOKENS: usize = 4;
const WIDTH: usize = 2;

type Matrix<const R: usize> = [[f64; WIDTH]; R];

/// Tokens on a line, and the three maps.
struct Line {
    start: Matrix<TOKENS>,
    step: Matrix<TOKENS>,
    maps: [Matrix<WIDTH>; 3],
}

impl Line {
    fn random(seed: u64, most: usize) -> Self {
        let mut random = Random::new(seed);
        let mut integer = || f64::from(random.integer(most));
        let mut tokens = || std::array::from_fn(|_| std::array::from_fn(|_| integer()));
        let (start, step) = (tokens(), tokens());
        let mut map = || std::array::from_fn(|_| std::array::from_fn(|_| integer()));
        Self { start, step, maps: [map(), map(), map()] }
    }

    /// `x M`, for a row of tokens.
    fn image(x: &Matrix<TOKENS>, map: &Matrix<WIDTH>) -> Matrix<TOKENS> {
        x.map(|x| std::array::from_fn(|c| x[0] * map[0][c] + x[1] * map[1][c]))
    }

    fn tokens(&self, t: f64) -> Matrix<TOKENS> {
        std::array::from_fn(|i| std::array::from_fn(|c| self.start[i][c] + t * self.step[i][c]))
    }

    /// Q from the tokens at `t`, K and V from those at `u`.
    fn heads(&self, t: f64, u: f64) -> Heads {
        let tensor = |t, map| {
            let rows = Self::image(&self.tokens(t), map);
            Tensor::from_fn([1, 1, TOKENS, WIDTH], Layout::Bhsd, |[_, _, i, c]| {
                assert_eq!(f64::from(rows[i][c] as f32), rows[i][c], "inputs are exact");
                rows[i][c] as f32
            })
        };
        Heads { q: tensor(t, &self.maps[0]), k: tensor(u, &self.maps[1]), v: tensor(u, &self.maps[2]) }
    }

    /// The places where a score changes its sign: the real roots of the quadratics s_ij(t).
    fn knots(&self) -> Vec<f64> {
        let dot = |a: [f64; WIDTH], b: [f64; WIDTH]| a[0] * b[0] + a[1] * b[1];
        let [q0, q1] = [&self.start, &self.step].map(|x| Self::image(x, &self.maps[0]));
        let [k0, k1] = [&self.start, &self.step].map(|x| Self::image(x, &self.maps[1]));
        let mut knots = Vec::new();
        for i in 0..TOKENS {
            for j in 0..TOKENS {
                let (a, b, c) = (dot(q1[i], k1[j]), dot(q0[i], k1[j]) + dot(q1[i], k0[j]), dot(q0[i], k0[j]));
                let discriminant = b * b - 4.0 * a * c;
                if a == 0.0 {
                    knots.extend((b != 0.0).then(|| -c / b));
                } else if discriminant >= 0.0 {
                    knots.extend([-1.0, 1.0].map(|sign| (-b + sign * discriminant.sqrt()) / (2.0 * a)));
                }
            }
        }
        knots
    }

    /// The first of the windows `[t, t + width]`, t a multiple of 1/8, that holds no knot, or that holds one.
    fn window(&self, width: f64, with_knot: bool) -> Option<f64> {
        let knots = self.knots();
        let held = |t: f64| knots.iter().any(|knot| (t - 1e-9..=t + width + 1e-9).contains(knot));
        (-48..48).map(|eighth| f64::from(eighth) / 8.0).find(|t| held(*t) == with_knot)
    }
}

/// The difference of order `values.len() - 1`.
fn difference(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    while values.len() > 1 {
        values = values.windows(2).map(|pair| pair[1] - pair[0]).collect();
    }
    values[0]
}

/// A polynomial of degree `degree` along `at(0), at(1), ...`: differences of order `degree + 1` vanish, exactly in the
/// reference, to rounding in the kernels. Gives whether some output has the full degree.
fn assert_polynomial(options: &Attention<'_>, degree: usize, at: impl Fn(usize) -> Heads) -> bool {
    let points: Vec<Heads> = (0..degree + 2).map(at).collect();
    let isa = regard::Isa::Portable;
    let exact: Vec<Vec<f64>> = points.iter().map(|heads| heads.reference(options, isa)).collect();
    let column = |values: &[Vec<f64>], element: usize| values.iter().map(|value| value[element]).collect::<Vec<_>>();
    // Each output is a sum of products w v; a handful of roundings for each, amplified by the sum of the coefficients.
    let size = points.iter().flat_map(|heads| largest_sum(heads, options)).fold(0.0, f64::max);
    let tolerance = 2_f64.powi(degree as i32 + 1) * size * UNIT * (2 * WIDTH + TOKENS + 2 * degree) as f64;
    let mut moves = 0.0_f64;
    for element in 0..TOKENS * WIDTH {
        assert_eq!(difference(&column(&exact, element)), 0.0, "degree {degree}, element {element}");
        moves = moves.max(difference(&column(&exact, element)[..=degree]).abs());
    }
    each_level(|level| {
        let outs: Vec<Vec<f64>> = points.iter().map(|heads| widened(&heads.run(options, level).out)).collect();
        for element in 0..TOKENS * WIDTH {
            let difference = difference(&column(&outs, element));
            assert!(difference.abs() <= tolerance, "{}: {difference:e} > {tolerance:e}", level.isa());
        }
    });
    moves > 0.0
}

/// `sum |w v|` of each row.
fn largest_sum(heads: &Heads, options: &Attention<'_>) -> Vec<f64> {
    (0..TOKENS)
        .map(|i| {
            let weights = heads.reference_row(options, [0, 0, i]).weights;
            let product = |j: usize| {
                weights[j].abs() * f64::from(heads.v.get([0, 0, j, 0]).abs().max(heads.v.get([0, 0, j, 1]).abs()))
            };
            (0..TOKENS).map(product).sum()
        })
        .collect()
}

/// Lines that have an interval of this width without a knot.
fn lines(width: f64) -> impl Iterator<Item = (Line, f64)> {
    (0..40)
        .map(|seed| Line::random(seed, 2))
        .filter_map(move |line| Some((line.window(width, false)?, line)))
        .map(|(t, line)| (line, t))
        .take(8)
}

/// arXiv:2408.09624, attention and masked attention are cubic splines: between knots, differences of order 4 are 0.
#[test]
fn relu_attention_is_cubic_between_knots() {
    for options in [plain(Weighting::Relu), plain(Weighting::Relu).causal(Align::TopLeft)] {
        let full = lines(0.5)
            .filter(|(line, t)| {
                assert_polynomial(&options, 3, |point| line.heads(t + point as f64 / 8.0, t + point as f64 / 8.0))
            })
            .count();
        assert!(full >= 4, "only {full} lines have the full degree");
    }
}

/// The same with a squared ReLU: degree 5.
#[test]
fn squared_relu_attention_is_quintic_between_knots() {
    for options in [plain(Weighting::ReluSquared), plain(Weighting::ReluSquared).causal(Align::TopLeft)] {
        let full = lines(0.75)
            .filter(|(line, t)| {
                assert_polynomial(&options, 5, |point| line.heads(t + point as f64 / 8.0, t + point as f64 / 8.0))
            })
            .count();
        assert!(full >= 4, "only {full} lines have the full degree");
    }
}

/// Encoder-decoder attention gamma(X, Y) = V(X) ReLU(K(X)^T Q(Y)): quadratic in X, linear in Y between knots.
#[test]
fn relu_cross_attention_is_quadratic_in_keys_and_linear_in_queries() {
    // Positive tokens and maps keep every score positive: no knots at all.
    let mut line = Line::random(3, 2);
    for x in [&mut line.start, &mut line.step] {
        x.iter_mut().flatten().for_each(|x| *x = x.abs() + 1.0);
    }
    line.maps.iter_mut().flatten().flatten().for_each(|x| *x = x.abs() + 1.0);
    assert!(assert_polynomial(&plain(Weighting::Relu), 2, |point| line.heads(1.0, point as f64)));
    assert!(assert_polynomial(&plain(Weighting::Relu), 1, |point| line.heads(point as f64, 1.0)));
}

/// A line on which every score of the layers below is positive: no knots, and small whole numbers at whole t.
fn positive_line(seed: u64) -> Line {
    let mut line = Line::random(seed, 1);
    line.start.iter_mut().flatten().for_each(|x| *x = x.abs() + 1.0);
    line.step.iter_mut().flatten().for_each(|x| *x = x.abs());
    line
}

/// Tokens, which have to be f32.
fn tokens(rows: &Matrix<TOKENS>) -> Tensor {
    Tensor::from_fn([1, 1, TOKENS, WIDTH], Layout::Bhsd, |[_, _, i, c]| {
        assert_eq!(f64::from(rows[i][c] as f32), rows[i][c], "tokens are exact");
        rows[i][c] as f32
    })
}

/// A layer of ReLU attention of tokens to themselves, and with `residual` plus themselves. So exact that kernels give
/// the same bits.
fn layer(x: &Tensor, residual: bool) -> Tensor {
    let heads = Heads { q: x.clone(), k: x.clone(), v: x.clone() };
    let out = heads.reference(&plain(Weighting::Relu), regard::Isa::Portable);
    each_level(|level| assert_eq!(widened(&heads.run(&plain(Weighting::Relu), level).out), out));
    let kept = |i: usize, c: usize| if residual { f64::from(x.get([0, 0, i, c])) } else { 0.0 };
    tokens(&std::array::from_fn(|i| std::array::from_fn(|c| out[i * WIDTH + c] + kept(i, c))))
}

/// Compositions: L layers of ReLU attention have pieces of degree 3^L, with residuals too; encoder-decoder attention
/// over the states of t encoder layers, with a cubic state of the decoder, has degree 2 3^t + 3, which is 5 for t = 0
/// and 9 for t = 1 (derived here; the paper's own wording was not at hand).
#[test]
fn layers_multiply_degrees() {
    let relu = plain(Weighting::Relu);
    let itself = |x: Tensor| Heads { q: x.clone(), k: x.clone(), v: x };
    for seed in 0..4 {
        let (line, other) = (positive_line(seed), positive_line(seed + 10));
        let at = |point: usize| tokens(&line.tokens(point as f64));
        assert!(assert_polynomial(&relu, 3, |point| itself(at(point))), "one layer");
        for residual in [false, true] {
            assert!(assert_polynomial(&relu, 9, |point| itself(layer(&at(point), residual))), "two layers");
        }
        let decoder = |point: usize| layer(&tokens(&other.tokens(point as f64)), false);
        let cross = |q: Tensor, x: Tensor| Heads { q, k: x.clone(), v: x };
        assert!(assert_polynomial(&relu, 5, |point| cross(decoder(point), at(point))), "no encoder");
        let encoder = |point: usize| layer(&at(point), false);
        assert!(assert_polynomial(&relu, 9, |point| cross(decoder(point), encoder(point))), "one encoder layer");
    }
}

/// Polynomial attention has no knots: one polynomial of degree 2p + 1 (identity: p = 1).
#[test]
fn polynomial_attention_has_one_piece() {
    for seed in 0..3 {
        let line = Line::random(seed, 1);
        for degree in 1..=4_u32 {
            let start = -f64::from(degree);
            let at = |point: usize| line.heads(start + point as f64, start + point as f64);
            assert!(assert_polynomial(&plain(Weighting::Polynomial { degree }), 2 * degree as usize + 1, at));
        }
        let at = |point: usize| line.heads(point as f64 - 1.0, point as f64 - 1.0);
        assert!(assert_polynomial(&plain(Weighting::Identity), 3, at));
    }
}

/// The line test can fail: across a knot ReLU attention is not one cubic, and softmax attention nowhere is.
#[test]
fn knots_and_softmax_are_noticed() {
    let fourth = |options: &Attention<'_>, line: &Line, t: f64| {
        let at = |point: usize| line.heads(t + point as f64 / 8.0, t + point as f64 / 8.0);
        let values: Vec<_> = (0..5).map(|point| at(point).reference(options, regard::Isa::Portable)).collect();
        (0..TOKENS * WIDTH)
            .map(|element| difference(&values.iter().map(|value| value[element]).collect::<Vec<_>>()).abs())
            .fold(0.0, f64::max)
    };
    let mut bends = 0;
    for seed in 0..40 {
        let line = Line::random(seed, 2);
        if let Some(t) = line.window(0.5, true) {
            bends += usize::from(fourth(&plain(Weighting::Relu), &line, t) > 1e-3);
        }
    }
    assert!(bends >= 10, "only {bends} of 40 lines bend at a knot");
    assert!(
        lines(0.5).filter(|(line, t)| fourth(&plain(Weighting::Softmax).scale(0.01), line, *t) > 1e-9).count() >= 4
    );
}

/// The smallest spline: Q = K = V = X = (1, t) gives o_1 = 1 + t relu(t) and o_2 = relu(t) + t^3. Exact in f32.
#[test]
fn the_toy_spline() {
    let second = [-8.0, -27.0 / 8.0, -1.0, -1.0 / 8.0, 0.0, 5.0 / 8.0, 2.0, 39.0 / 8.0, 10.0];
    let first = [1.0, 1.0, 1.0, 1.0, 1.0, 5.0 / 4.0, 2.0, 13.0 / 4.0, 5.0];
    each_level(|level| {
        for (place, (first, second)) in first.into_iter().zip(second).enumerate() {
            let t = place as f32 / 2.0 - 2.0;
            let x = |i: usize| [[1.0, t][i]];
            let out = Heads::one([2, 2], x, x, x).run(&plain(Weighting::Relu), level).out;
            assert_eq!(out, [first, second], "t = {t}, {}", level.isa());
        }
    });
}

/// Homogeneity: ReLU attention has O(cX) = c^3 O(X) for c > 0 and O(-X) = -O(X); degree p has O(cX) = c^(2p+1) O(X) for
/// every c. Exact for powers of two. Softmax has none of it.
#[test]
fn homogeneity() {
    let heads = Heads::normal([1, 2, 2], [19, 19], [7, 5]);
    let times = |c: f32| Heads { q: scaled(&heads.q, c), k: scaled(&heads.k, c), v: scaled(&heads.v, c) };
    let scaled_out = |out: &[f32], factor: f32| out.iter().map(|x| x * factor).collect::<Vec<_>>();
    each_level(|level| {
        let holds = |weighting: Weighting, c: f32, factor: f32| {
            let options = plain(weighting).causal(Align::TopLeft);
            let whole = times(c).run(&options, level).out;
            whole == scaled_out(&heads.run(&options, level).out, factor)
        };
        for c in [2.0, 0.25] {
            assert!(holds(Weighting::Relu, c, c.powi(3)));
            assert!(holds(Weighting::ReluSquared, c, c.powi(5)));
            assert!(!holds(Weighting::Softmax, c, c.powi(3)));
        }
        assert!(holds(Weighting::Relu, -1.0, -1.0));
        for degree in 1..=8_u32 {
            for c in [2.0_f32, 0.5, -1.0, -2.0] {
                assert!(
                    holds(Weighting::Polynomial { degree }, c, c.powi(2 * degree as i32 + 1)),
                    "s^{degree}, c = {c}"
                );
            }
        }
        assert!(holds(Weighting::Identity, -2.0, -8.0));
    });
}

/// Mirrors: relu(s) - relu(-s) = s and relu(s)^2 + relu(-s)^2 = s^2 tie ReLU attention to linear attention and squared
/// ReLU to degree 2; linear attention is q (K^T V).
#[test]
fn mirrors() {
    let heads = Heads::normal([1, 2, 2], [21, 33], [6, 5]);
    let sizes = heads_sizes(&heads, &plain(Weighting::Identity));
    let squares = heads_sizes(&heads, &plain(Weighting::Polynomial { degree: 2 }));
    each_level(|level| {
        let run = |heads: &Heads, weighting| widened(&heads.run(&plain(weighting), level).out);
        let (relu, mirror) = (run(&heads, Weighting::Relu), run(&heads.mirrored(), Weighting::Relu));
        let linear = heads.run(&plain(Weighting::Identity), level).out;
        let difference: Vec<f64> = relu.iter().zip(&mirror).map(|(a, b)| a - b).collect();
        assert_close(&linear, &difference, sizes * UNIT * 40.0, "relu(q) - relu(-q) is linear");
        assert_close(&linear, &through_state(&heads), sizes * UNIT * 40.0, "linear is q (K^T V)");

        let (relu, mirror) = (run(&heads, Weighting::ReluSquared), run(&heads.mirrored(), Weighting::ReluSquared));
        let sum: Vec<f64> = relu.iter().zip(&mirror).map(|(a, b)| a + b).collect();
        let square = heads.run(&plain(Weighting::Polynomial { degree: 2 }), level).out;
        assert_close(&square, &sum, squares * UNIT * 60.0, "relu^2(q) + relu^2(-q) is s^2");
    });
}

/// The largest `sum |w v|` of a row.
fn heads_sizes(heads: &Heads, options: &Attention<'_>) -> f64 {
    let [_, query_heads, queries, _] = heads.q.shape();
    let v = heads.v.to_vec().iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    (0..query_heads * queries)
        .map(|row| heads.reference_row(options, [0, row / queries, row % queries]).weights)
        .map(|weights| weights.iter().map(|w| w.abs()).sum::<f64>() * f64::from(v))
        .fold(0.0, f64::max)
}

/// `q (K^T V)` in f64.
fn through_state(heads: &Heads) -> Vec<f64> {
    let ([_, h, n, d], [_, _, keys, d_v]) = (heads.q.shape(), heads.v.shape());
    let get = |tensor: &Tensor, head, row, column| f64::from(tensor.get([0, head, row, column]));
    let mut out = Vec::new();
    for head in 0..h {
        let state =
            |a: usize, c: usize| (0..keys).map(|j| get(&heads.k, head, j, a) * get(&heads.v, head, j, c)).sum::<f64>();
        for i in 0..n {
            out.extend((0..d_v).map(|c| (0..d).map(|a| get(&heads.q, head, i, a) * state(a, c)).sum::<f64>()));
        }
    }
    out
}

/// The bricks of the converse: products (x relu(y) - x relu(-y) = x y), absolute values, maxima, and a continuous
/// piecewise linear function f(x) = sum of slope changes times relu(x - knot), each as ReLU attention over a few keys.
#[test]
fn bricks_of_splines() {
    let product = Heads::batch(
        [81, 1, 2],
        |_, _| [1.0],
        |b, j| [if j == 0 { y(b) } else { -y(b) }],
        |b, j| [if j == 0 { x(b) } else { -x(b) }],
    );
    let absolute = Heads::batch([81, 1, 2], |b, _| [x(b)], |_, j| [if j == 0 { 1.0 } else { -1.0 }], |_, _| [1.0]);
    // max(x, y) = x + relu(y - x), with x = relu(x) - relu(-x).
    let larger = Heads::batch(
        [81, 1, 3],
        |b, _| [x(b), y(b)],
        |_, j| [[1.0, 0.0], [-1.0, 0.0], [-1.0, 1.0]][j],
        |_, j| [[1.0, -1.0, 1.0][j]],
    );
    // 0 up to -2, up to 6 at 1 with slope 2, down to 0 at 3 with slope -3, flat after.
    let hat = Heads::batch(
        [81, 1, 3],
        |b, _| [x(b), 1.0],
        |_, j| [[1.0, 2.0], [1.0, -1.0], [1.0, -3.0]][j],
        |_, j| [[2.0, -5.0, 3.0][j]],
    );
    each_level(|level| {
        let run = |heads: &Heads| heads.run(&plain(Weighting::Relu), level).out;
        let want = |f: &dyn Fn(f32, f32) -> f32| (0..81).map(|b| f(x(b), y(b))).collect::<Vec<_>>();
        assert_equal(&run(&product), &want(&|x, y| x * y), "product");
        assert_equal(&run(&absolute), &want(&|x, _| x.abs()), "absolute value");
        assert_equal(&run(&larger), &want(&f32::max), "maximum");
        assert_equal(&run(&hat), &want(&|x, _| (2.0 * x + 4.0).min(9.0 - 3.0 * x).max(0.0)), "piecewise linear");
    });
}

/// Points of a grid.
fn x(b: usize) -> f32 {
    (b % 9) as f32 - 4.0
}

fn y(b: usize) -> f32 {
    (b / 9) as f32 - 4.0
}
