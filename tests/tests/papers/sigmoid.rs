//! Ramapuram et al., "Theory, analysis, and best practices for sigmoid self-attention", arXiv:2409.04431:
//! O = sigmoid(s + b) V without a normaliser, b about -ln n.

use regard::{Align, Count, SigmoidBias, Weighting};

use super::*;

fn sigmoid(bias: f32) -> Attention<'static> {
    plain(Weighting::Sigmoid { bias: SigmoidBias::Constant(bias) })
}

/// Zero scores and b = -ln n: every weight is 1 / (n + 1), as in softmax plus one; the output is n / (n + 1) times the
/// mean of V. The two kernels agree.
#[test]
fn zero_scores_are_softmax_plus_one() {
    for n in [1, 2, 5, 31, 64, 300] {
        let heads = Heads::scores(&vec![0.0; n]);
        each_level(|level| {
            let weights = heads.run(&plain(Weighting::Sigmoid { bias: SigmoidBias::NegLogN }), level).out;
            assert_close(&weights, &vec![1.0 / (n as f64 + 1.0); n], 1e-6 / n as f64, "1 / (n + 1)");
            let plus_one = heads.run(&plain(Weighting::Softmax).sinks(&[0.0]), level).out;
            assert_close(&weights, &widened(&plus_one), 1e-6 / n as f64, "softmax plus one");
        });
    }
}

/// sigmoid(x) + sigmoid(-x) = 1: O(b = 0, Q) + O(b = 0, -Q) is the sum of V.
#[test]
fn mirrors_add_up_to_the_sum_of_values() {
    let heads = Heads::normal([1, 1, 1], [17, 90], [8, 6]);
    let sum: Vec<f64> = (0..6).map(|c| (0..90).map(|j| f64::from(heads.v.get([0, 0, j, c]))).sum()).collect();
    let size: f64 = heads.v.to_vec().iter().map(|v| f64::from(v.abs())).sum::<f64>() / 6.0 * 3.0;
    each_level(|level| {
        let (out, mirror) = (heads.run(&sigmoid(0.0), level).out, heads.mirrored().run(&sigmoid(0.0), level).out);
        for (i, (a, b)) in out.iter().zip(&mirror).enumerate() {
            let error = (f64::from(*a) + f64::from(*b) - sum[i % 6]).abs();
            assert!(error <= size * 20.0 * UNIT, "{error:e}");
        }
    });
}

/// Large biases: sigmoid(x) is e^x to f32 rounding below -17 (and to a relative e^x anywhere), 1 above 17; its relative
/// error stays small on [-30, 0], where b = -ln n puts every weight. Stated: 2e-7 + 7.5e-8 |x|.
#[test]
fn tails_keep_their_relative_accuracy() {
    let scores: Vec<f32> = (0..241).map(|i| i as f32 / 4.0 - 30.0).collect();
    let heads = Heads::scores(&scores);
    each_level(|level| {
        for (weight, x) in heads.run(&sigmoid(0.0), level).out.iter().zip(&scores) {
            let (weight, x) = (f64::from(*weight), f64::from(*x));
            let exact = 1.0 / (1.0 + (-x).exp());
            assert!((weight / exact - 1.0).abs() <= 2e-7 + 7.5e-8 * x.abs(), "sigmoid({x}) = {weight:e}");
            if x < -17.0 {
                assert!((weight / x.exp() - 1.0).abs() <= 2e-7 + 7.5e-8 * x.abs() + x.exp(), "e^{x}");
            }
            if x > 17.0 {
                assert_eq!(weight, 1.0, "sigmoid({x})");
            }
        }
        // b to -infinity: e^(s + b), relative error below e^(s + b).
        let bias = -12.0;
        for (weight, s) in Heads::scores(&scores[80..160]).run(&sigmoid(bias), level).out.iter().zip(&scores[80..160]) {
            let small = (f64::from(*s) + f64::from(bias)).exp();
            assert!((f64::from(*weight) / small - 1.0).abs() <= small + 4e-6, "{s}");
        }
    });
}

/// The three meanings of n in b = -ln n: all keys, the visible ones, a constant (-7.62 = -ln 2048 in the paper's
/// configurations). Weights at zero scores are 1 / (n + 1).
#[test]
fn meanings_of_n() {
    let n = 12;
    let heads = Heads::one([n, n], |_| [0.0], |_| [0.0], |_| [1.0]);
    let options = plain(Weighting::Sigmoid { bias: SigmoidBias::NegLogN }).causal(Align::TopLeft);
    each_level(|level| {
        let sums = |count| heads.run(&options.clone().count(count), level).out;
        let want = |n: &dyn Fn(f64) -> f64| {
            (1..=12).map(|seen| f64::from(seen) / (n(f64::from(seen)) + 1.0)).collect::<Vec<_>>()
        };
        assert_close(&sums(Count::AllKeys), &want(&|_| 12.0), 1e-6, "all keys");
        assert_close(&sums(Count::Visible), &want(&|seen| seen), 1e-6, "visible keys");
        assert_close(&sums(Count::Constant(2048.0)), &want(&|_| 2048.0), 1e-6, "a constant");
        let constant = heads.run(&sigmoid(-7.624_619).causal(Align::TopLeft), level).out;
        assert_close(&constant, &want(&|_| 2048.0), 1e-6, "-ln 2048");
    });
}

/// Unlike softmax, sigmoid sees a constant that is added to a row of scores: as a change of b. And it is pointwise:
/// more keys leave the weights of the others alone.
#[test]
fn it_is_not_shift_invariant_and_pointwise() {
    let scores = [-1.5, 0.25, 2.0, 0.0];
    let shifted = scores.map(|s| s + 0.75);
    each_level(|level| {
        let weights = |scores: &[f32], bias| Heads::scores(scores).run(&sigmoid(bias), level).out;
        assert_eq!(weights(&shifted, 0.0), weights(&scores, 0.75));
        assert_ne!(weights(&shifted, 0.0), weights(&scores, 0.0));
        assert_eq!(weights(&scores[..2], 0.5), weights(&scores, 0.5)[..2]);
    });
}
