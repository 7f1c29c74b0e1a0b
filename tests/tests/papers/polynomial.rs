//! Saratchandran et al., "Rethinking softmax: self-attention with polynomial activations", arXiv:2410.18613: s^p /
//! sqrt(N) element-wise, and norms of attention matrices; ReLU attention over n^a (Wortsman et al., arXiv:2309.08586);
//! symmetric power attention (arXiv:2507.04239); the Taylor polynomial of Based.

use regard::{Align, Count, RowScale, View, Weighting};
use regard_tests::Random;

use super::*;

fn poly(degree: u32) -> Attention<'static> {
    plain(Weighting::Polynomial { degree })
}

/// x^3 / 14 is x^3 / sqrt(N) for the 196 patches of an image: the coefficient and the row scale agree, and scores of 2
/// over values of 1 give 196 * 8 / 14 = 112.
#[test]
fn the_cubic_of_vision_transformers() {
    let twos = Heads::one([3, 196], |_| [2.0], |_| [1.0], |_| [1.0]);
    let heads = Heads::normal([1, 1, 1], [20, 196], [16, 8]);
    each_level(|level| {
        assert_close(&twos.run(&poly(3).coefficient(1.0 / 14.0), level).out, &[112.0; 3], 112.0 * 4.0 * UNIT, "golden");
        let options = Attention::new(Weighting::Polynomial { degree: 3 });
        let by_constant = heads.run(&options.clone().coefficient(1.0 / 14.0), level).out;
        let by_row = heads.run(&options.row_scale(RowScale::InvSqrtN), level).out;
        for (a, b) in by_constant.iter().zip(&by_row) {
            assert!((a - b).abs() <= 4.0 * f32::EPSILON * b.abs(), "{a} {b}");
        }
    });
}

/// phi(x) = x is degree 1 and identity, the same bits; phi is applied to scores one by one (the theory of the paper has
/// powers of matrices, its experiments and this library have not).
#[test]
fn powers_are_element_wise() {
    let heads = Heads::normal([1, 2, 1], [10, 70], [8, 5]);
    let scores: Vec<f32> = (0..40).map(|i| i as f32 / 4.0 - 5.0).collect();
    each_level(|level| {
        assert_eq!(heads.run(&poly(1), level).out, heads.run(&plain(Weighting::Identity), level).out);
        for degree in 1..=8 {
            let weights = Heads::scores(&scores).run(&poly(degree), level).out;
            for (weight, score) in weights.iter().zip(&scores) {
                let want = f64::from(*score).powi(degree as i32);
                assert!(
                    (f64::from(*weight) - want).abs() <= 4.0 * f64::from(f32::EPSILON) * want.abs(),
                    "{score}^{degree}"
                );
            }
        }
    });
}

/// Odd degrees have negative weights and no normaliser: a row whose weights add up to 0 is legal.
#[test]
fn odd_degrees_are_not_distributions() {
    let heads = Heads::one([1, 2], |_| [1.0], |j| [[2.0, -2.0][j]], |j| [[10.0, 7.0][j]]);
    each_level(|level| {
        assert_eq!(heads.run(&poly(3), level).out, [24.0]);
        assert_eq!(heads.run(&poly(2), level).out, [68.0]);
        assert_eq!(heads.run(&plain(Weighting::EvenPower { degree: 2 }), level).out, [8.5]);
    });
}

/// A masked weight is selected to 0: -inf as a score would be wrong for every degree, and NaN behind the mask for all.
#[test]
fn masked_weights_are_zero() {
    let n = 37;
    let mut heads = Heads::one([n, n], |i| [i as f32 % 5.0 - 2.0], |j| [j as f32 % 3.0 - 1.0], |_| [1.0]);
    let score = |i: usize, j: usize| (i as f32 % 5.0 - 2.0) * (j as f32 % 3.0 - 1.0);
    heads.k.fill_row([0, 0, n - 1], f32::NAN);
    heads.v.fill_row([0, 0, n - 1], f32::NEG_INFINITY);
    for degree in 1..=8 {
        let want: Vec<f32> = (0..n - 1).map(|i| (0..=i).map(|j| score(i, j).powi(degree as i32)).sum()).collect();
        each_level(|level| {
            let out = heads.run(&poly(degree).causal(Align::TopLeft), level).out;
            assert_equal(&out[..n - 1], &want, &format!("degree {degree}"));
        });
    }
}

/// `<q, k>^p = <phi(q), phi(k)>`: degree p is linear attention over features, here all products of p columns.
#[test]
fn powers_are_linear_over_features() {
    let heads = Heads::normal([1, 1, 1], [9, 40], [4, 5]);
    for degree in 2..=4_u32 {
        let features = |tensor: &Tensor| {
            let [_, _, rows, d] = tensor.shape();
            let columns = d.pow(degree);
            Tensor::from_fn([1, 1, rows, columns], Layout::Bhsd, |[_, _, r, c]| {
                (0..degree).map(|power| tensor.get([0, 0, r, c / d.pow(power) % d])).product()
            })
        };
        let linear = Heads { q: features(&heads.q), k: features(&heads.k), v: heads.v.clone() };
        let size = row_sums(&linear, &plain(Weighting::Identity)).max(row_sums(&heads, &poly(degree)));
        // Products of features cancel: their magnitudes add up to (sum |q| |k|)^p.
        let tolerance = size * 200.0 * UNIT * 4_f64.powi(degree as i32 - 1);
        each_level(|level| {
            let out = linear.run(&plain(Weighting::Identity), level).out;
            assert_close(&heads.run(&poly(degree), level).out, &widened(&out), tolerance, &format!("degree {degree}"));
        });
    }
}

/// The largest `sum |w|` of a row, times the largest value.
fn row_sums(heads: &Heads, options: &Attention<'_>) -> f64 {
    let v = heads.v.to_vec().iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    let row = |i| heads.reference_row(options, [0, 0, i]).weights.iter().map(|w| w.abs()).sum::<f64>();
    (0..heads.q.shape()[2]).map(row).fold(0.0, f64::max) * f64::from(v)
}

/// Frobenius norm of all attention weights: sqrt of the sum of their squares.
fn norm(heads: &Heads, options: &Attention<'_>, level: Level) -> f64 {
    let out = heads.run(options, level).out;
    out.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

/// Theorem 1: 1 <= ||softmax||_F <= sqrt(N), with 1 for uniform rows and sqrt(N) for one-hot rows: ||hard||_F =
/// sqrt(N), and ||average-hard||_F^2 = sum 1 / |M_i|.
#[test]
fn norms_of_attention_matrices() {
    let n = 48;
    let mut heads = Heads::normal([1, 1, 1], [n, n], [8, n]);
    heads.v = unit_values([1, 1, n, n]);
    let root = (n as f64).sqrt();
    let mut random = Random::new(3);
    // Row i has exactly i % 5 + 1 largest keys.
    let ties: Vec<Vec<f32>> = (0..n)
        .map(|i| (0..n).map(|j| if j <= i % 5 { 1.0 } else { random.uniform() as f32 - 0.5 }).collect())
        .collect();
    let tied: f64 = (0..n).map(|i| 1.0 / (i % 5 + 1) as f64).sum();
    each_level(|level| {
        for scale in [0.1, 1.0, 30.0] {
            let soft = norm(&heads, &plain(Weighting::Softmax).scale(scale), level);
            assert!((1.0 - 1e-6..=root * (1.0 + 1e-6)).contains(&soft), "{soft}");
        }
        assert!((norm(&heads, &plain(Weighting::Softmax).scale(0.0), level) - 1.0).abs() < 1e-6);
        assert!((norm(&heads, &plain(Weighting::Softmax).scale(1e6), level) - root).abs() < 1e-5);
        assert_eq!(norm(&heads, &plain(Weighting::HardLeft), level), root);
        assert_eq!(norm(&heads, &plain(Weighting::HardRight), level), root);
        let average = norm(&Heads::score_rows(&ties), &plain(Weighting::AverageHard), level);
        assert!((average * average - tied).abs() < 1e-5, "{average}");
    });
}

/// For scores that are N(0, 1), E ||s^p / sqrt(N)||_F^2 = (2p - 1)!! N: the norm grows as sqrt(N), as softmax's bound
/// does. For N = 196: 14, 24.2, 54.2.
#[test]
fn norms_of_polynomial_matrices() {
    let n = 196;
    let mut random = Random::new(1);
    let scores = random.normals(n * n);
    let mut heads = Heads::one([n, n], |_| [0.0], |_| [0.0], |_| [0.0]);
    heads.v = unit_values([1, 1, n, n]);
    let bias = View::bhsd(&scores, [1, 1, n, n]).expect("a matrix");
    for (degree, odd_product) in [(1, 1.0_f64), (2, 3.0), (3, 15.0)] {
        each_level(|level| {
            let options = poly(degree).bias(bias).row_scale(RowScale::InvSqrtN);
            let ratio = norm(&heads, &options, level) / (odd_product * n as f64).sqrt();
            // Four standard deviations of the mean of n^2 samples, for p = 3.
            assert!((ratio - 1.0).abs() < 0.07, "degree {degree}: {ratio}");
        });
    }
}

/// Theorem 1, of the derivative: ||grad softmax(A)||_F <= 2 sqrt(N). By central differences of the kernels, which agree
/// with p_j (1[j = k] - p_k). The bound is not tight: the derivative of a row is positive semidefinite with trace 1 -
/// sum p^2 and no eigenvalue above 1/2, so that the square of its norm is at most half its trace.
#[test]
fn norm_of_the_derivative_of_softmax() {
    let n = 16;
    let step = 1.0 / 64.0;
    let mut random = Random::new(6);
    for spread in [0.0_f32, 0.5, 2.0, 8.0] {
        let rows: Vec<Vec<f32>> = (0..n).map(|_| random.normals(n).iter().map(|x| spread * x).collect()).collect();
        let moved = |k: usize, by: f32| {
            Heads::score_rows(
                &rows
                    .iter()
                    .map(|row| {
                        let mut row = row.clone();
                        row[k] += by;
                        row
                    })
                    .collect::<Vec<_>>(),
            )
        };
        each_level(|level| {
            let weights = widened(&Heads::score_rows(&rows).run(&plain(Weighting::Softmax), level).out);
            let mut squares = vec![0.0; n];
            for k in 0..n {
                let [up, down] = [step, -step].map(|by| moved(k, by).run(&plain(Weighting::Softmax), level).out);
                for at in 0..n * n {
                    let derivative = (f64::from(up[at]) - f64::from(down[at])) / (2.0 * f64::from(step));
                    let own = if at % n == k { 1.0 } else { 0.0 };
                    let exact = weights[at] * (own - weights[at / n * n + k]);
                    // step^2 / 6 times the third derivative, which is below 1; and what rounding leaves over the step.
                    assert!((derivative - exact).abs() <= 1e-4, "{derivative} {exact}");
                    squares[at / n] += derivative * derivative;
                }
            }
            assert!(squares.iter().sum::<f64>().sqrt() <= 2.0 * (n as f64).sqrt());
            for (row, square) in squares.iter().enumerate() {
                let trace = 1.0 - weights[row * n..][..n].iter().map(|p| p * p).sum::<f64>();
                assert!(*square <= trace / 2.0 + 1e-3, "{square} {trace}");
            }
        });
    }
}

/// The same for polynomials, of order sqrt(N) too. For N(0, 1) scores the derivative p s^(p - 1) / sqrt(N) has the
/// expected square p^2 (2p - 3)!! N (derived here). For scores that are products of Gaussian queries and keys the
/// expected square of the norm itself is (2p - 1)!! N times the product of 1 + 2i / d, i < p, at any N.
#[test]
fn norms_of_polynomials_and_their_derivatives() {
    let n = 196;
    let mut random = Random::new(7);
    let scores = random.normals(n * n);
    let mut heads = Heads::one([n, n], |_| [0.0], |_| [0.0], |_| [0.0]);
    heads.v = unit_values([1, 1, n, n]);
    let bias = View::bhsd(&scores, [1, 1, n, n]).expect("a matrix");
    for (degree, square) in [(2_u32, 4.0_f64), (3, 27.0)] {
        let options = poly(degree - 1).coefficient(degree as f32).bias(bias).row_scale(RowScale::InvSqrtN);
        each_level(|level| {
            let ratio = norm(&heads, &options, level) / (square * n as f64).sqrt();
            // Four standard deviations of the mean of n^2 samples of s^4, and more for s^2.
            assert!((ratio - 1.0).abs() < 0.04, "degree {degree}: {ratio}");
        });
    }
    let d = 32;
    for n in [64, 256] {
        let mut heads = Heads::normal([1, 1, 1], [n, n], [d, 1]);
        heads.v = unit_values([1, 1, n, n]);
        for degree in 1..=3_u32 {
            let factor = |i: u32| f64::from(2 * i + 1) * (1.0 + f64::from(2 * i) / d as f64);
            let want = ((0..degree).map(factor).product::<f64>() * n as f64).sqrt();
            let options = Attention::new(Weighting::Polynomial { degree }).row_scale(RowScale::InvSqrtN);
            each_level(|level| {
                // Scores of one key share its norm, and those of one query the query's: few independent samples.
                let ratio = norm(&heads, &options, level) / want;
                assert!((ratio - 1.0).abs() < 0.12, "N {n}, degree {degree}: {ratio}");
            });
        }
    }
}

/// ReLU attention over n^a, a in [0, 2], with each meaning of n.
#[test]
fn relu_over_powers_of_n() {
    let n = 24;
    let heads = Heads::one([n, n], |_| [1.0], |_| [1.0], |_| [1.0]);
    each_level(|level| {
        for (scale, a) in
            [(RowScale::None, 0.0), (RowScale::InvSqrtN, 0.5), (RowScale::InvN, 1.0), (RowScale::InvPower(2.0), 2.0)]
        {
            let counts: [(Count, &dyn Fn(f64) -> f64); 3] =
                [(Count::AllKeys, &|_| n as f64), (Count::Visible, &|seen| seen), (Count::Constant(50.0), &|_| 50.0)];
            for (count, length) in counts {
                for weighting in [Weighting::Relu, Weighting::ReluSquared] {
                    let options = plain(weighting).causal(Align::TopLeft).row_scale(scale).count(count);
                    let want: Vec<f64> = (1..=n).map(|seen| seen as f64 * length(seen as f64).powf(-a)).collect();
                    assert_close(&heads.run(&options, level).out, &want, 24.0 * 4.0 * UNIT, "n^a");
                }
            }
        }
    });
}

/// Normalised even powers: a distribution that does not change with the scale of the queries, not even with its sign,
/// bit for bit for powers of two; rows of zero scores give zeros.
#[test]
fn even_powers_know_no_scale() {
    let heads = Heads::normal([1, 2, 1], [12, 50], [8, 5]);
    for degree in [2, 4, 6, 8] {
        let options = plain(Weighting::EvenPower { degree });
        each_level(|level| {
            let out = heads.run(&options, level).out;
            for factor in [2.0, -0.5, -1.0, 0.125] {
                assert_equal(&heads.scaled_queries(factor).run(&options, level).out, &out, &format!("{factor}"));
            }
            for factor in [3.0, -0.7, 100.0] {
                // p relative roundings in every weight, and values below 5.
                let tolerance = 5.0 * 16.0 * f64::from(degree) * UNIT * 8.0;
                assert_close(
                    &heads.scaled_queries(factor).run(&options, level).out,
                    &widened(&out),
                    tolerance,
                    "scale",
                );
            }
            assert!(heads.run(&options.clone().scale(0.0), level).out.iter().all(|x| *x == 0.0));
        });
    }
}

/// Taylor-2 against the exponential: the relative error of 1 + s + s^2/2 is 1 %, 5 %, 10 % at s = 0.436, 0.818, 1.10
/// and at s = -0.358, -0.578, -0.705; where it is at most e for all scores, weights are those of softmax up to
/// 2e / (1 - e).
#[test]
fn taylor_is_near_softmax() {
    let taylor = |s: f64| 1.0 + s + s * s / 2.0;
    let error = |s: f64| (taylor(s) / s.exp() - 1.0).abs();
    for (size, positive, negative) in [(0.01, 0.436, 0.358), (0.05, 0.818, 0.578), (0.1, 1.10, 0.705)] {
        // Thresholds have three digits.
        assert!(error(positive - 1e-3) < size && error(positive + 4e-3) > size, "{positive}");
        assert!(error(-negative + 1e-3) < size && error(-negative - 1e-3) > size, "{negative}");
        let mut random = Random::new(4);
        let scores: Vec<f32> = (0..60).map(|_| ((random.uniform() * 2.0 - 1.0) * (negative - 1e-3)) as f32).collect();
        let heads = Heads::scores(&scores);
        each_level(|level| {
            let by_taylor = heads.run(&plain(Weighting::Taylor2), level).out;
            let by_softmax = heads.run(&plain(Weighting::Softmax), level).out;
            for (taylor, softmax) in by_taylor.iter().zip(&by_softmax) {
                let relative = (f64::from(*taylor) / f64::from(*softmax) - 1.0).abs();
                assert!(relative <= 2.0 * size / (1.0 - size) + 1e-6, "{relative}");
            }
        });
    }
}

/// 1 + s + s^2 / 2 is at least 1/2: every weight is positive, whatever the scores, and they add up to 1.
#[test]
fn taylor_weights_are_positive() {
    let mut random = Random::new(5);
    let scores: Vec<f32> = (0..100).map(|_| 20.0 * random.normal()).chain([-1.0; 3]).collect();
    each_level(|level| {
        let weights = Heads::scores(&scores).run(&plain(Weighting::Taylor2), level).out;
        assert!(weights.iter().all(|weight| *weight > 0.0));
        assert!((weights.iter().map(|w| f64::from(*w)).sum::<f64>() - 1.0).abs() < 1e-6);
        // All at the vertex: uniform.
        assert_close(
            &Heads::scores(&[-1.0; 8]).run(&plain(Weighting::Taylor2), level).out,
            &[0.125; 8],
            1e-7,
            "uniform",
        );
    });
}
