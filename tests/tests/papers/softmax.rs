//! Softmax: golden values, sinks (softmax plus one; gpt-oss), temperatures that depend on the length (SSMax; Chiang and
//! Cholak, arXiv:2202.12172), dispersion (arXiv:2508.17821), and ALiBi as gating.

use regard::{Align, Count, Temperature, View, Weighting};
use regard_tests::Random;

use super::*;

fn softmax() -> Attention<'static> {
    plain(Weighting::Softmax)
}

/// softmax(-2, 0, 0.5) = (0.0486, 0.3592, 0.5922), as the READMEs of entmax have it.
#[test]
fn golden_values() {
    each_level(|level| {
        let weights = Heads::scores(&[-2.0, 0.0, 0.5]).run(&softmax(), level).out;
        assert_close(&weights, &[0.0486, 0.3592, 0.5922], 5e-5, "golden");
    });
}

/// Large negative scores are not a mask: all scores -2e4 give the plain mean, and softmax does not see a constant that
/// is added to a row.
#[test]
fn a_constant_changes_nothing() {
    let mut random = Random::new(1);
    let v = Tensor::normal([1, 1, 75, 9], Layout::Bhsd, &mut random);
    let mean: Vec<f64> = (0..9).map(|c| (0..75).map(|j| f64::from(v.get([0, 0, j, c]))).sum::<f64>() / 75.0).collect();
    let scores: Vec<f32> = (0..75).map(|_| random.integer(3)).collect();
    each_level(|level| {
        for constant in [-2e4, 0.0, 2e4, -1e30, 1e30] {
            let heads = Heads { v: v.clone(), ..Heads::scores(&[constant; 75]) };
            assert_close(&heads.run(&softmax(), level).out, &mean, 1e-5, "the mean");
        }
        let shifted: Vec<f32> = scores.iter().map(|s| s - 2e4).collect();
        let weights = |scores: &[f32]| Heads::scores(scores).run(&softmax(), level).out;
        assert_equal(&weights(&shifted), &weights(&scores), "shift");
    });
}

/// Temperature to infinity (or scale 0) is the mean; to 0 it is average-hard attention.
#[test]
fn limits_of_temperature() {
    let heads = Heads::normal([1, 2, 2], [9, 70], [8, 5]);
    each_level(|level| {
        let at = |tau| heads.run(&softmax().temperature(Temperature::Constant(tau)), level).out;
        let mean = heads.run(&softmax().scale(0.0), level).out;
        assert_close(&at(1e9), &widened(&mean), 1e-6, "the mean");
        assert_close(&at(1e-7), &widened(&heads.run(&plain(Weighting::AverageHard), level).out), 1e-6, "hard");
        let uniform = heads.reference(&plain(Weighting::AverageHard).scale(0.0), regard::Isa::Portable);
        assert_close(&mean, &uniform, 1e-6, "scale 0");
    });
}

/// A sink joins the denominator and nothing else: zero scores give 1 / (n + 1) (softmax plus one), 1 / (n + m) for a
/// sink of ln m, at any scale and temperature; in general O' = O / (1 + e^(sink - lse)).
#[test]
fn sinks() {
    let heads = Heads::normal([2, 2, 1], [6, 41], [8, 5]);
    each_level(|level| {
        for n in [1, 7, 64] {
            for (sink, extra) in [(0.0_f32, 1.0), (4_f32.ln(), 4.0), (f32::NEG_INFINITY, 0.0)] {
                let options = softmax().scale(3.0).temperature(Temperature::Constant(0.1));
                let weights = Heads::scores(&vec![0.0; n]).run(&options.sinks(&[sink]), level).out;
                let want = 1.0 / (n as f64 + extra);
                assert_close(&weights, &vec![want; n], want * 1e-6, "1 / (n + m)");
            }
        }
        let bare = heads.run(&softmax(), level);
        let lse = bare.lse.expect("softmax has one");
        for sinks in [[0.0, 0.0], [-3.0, 2.5], [60.0, -60.0]] {
            let with = heads.run(&softmax().sinks(&sinks), level);
            for (row, (with, bare)) in with.out.chunks(5).zip(bare.out.chunks(5)).enumerate() {
                let head = row / 6 % 2;
                let factor = 1.0 / (1.0 + f64::from(sinks[head] - lse[row]).exp());
                let want: Vec<f64> = bare.iter().map(|x| f64::from(*x) * factor).collect();
                // An error of a few units in lse is the relative error of the factor.
                assert_close(with, &want, 1e-5, "O / (1 + e^(sink - lse))");
            }
            for (row, (with, bare)) in with.lse.expect("softmax has one").iter().zip(&lse).enumerate() {
                let sink = f64::from(sinks[row / 6 % 2]);
                let want = (f64::from(*bare).exp() + sink.exp()).ln();
                assert!((f64::from(*with) - want).abs() <= 2e-6 * want.abs().max(1.0), "{with} {want}");
            }
        }
        // A row that sees only the sink.
        let blind = heads.run(&softmax().causal(Align::Offset(-50)).sinks(&[1.0, 2.0]), level);
        assert!(blind.out.iter().all(|x| *x == 0.0));
        assert_close(&blind.lse.expect("softmax has one")[..6], &[1.0; 6], 1e-6, "the sink alone");
    });
}

/// SSMax, figure 1: all inputs -2 but one of 3, s = 0.43. The largest weight for n = 10, 100, 1000, 10^4.
#[test]
fn scalable_softmax_keeps_its_winner() {
    let golden = [
        (10, 0.942_826, 0.940_101),
        (100, 0.599_86, 0.995_063),
        (1000, 0.129_346, 0.999_646),
        (10_000, 0.014_626, 0.999_975),
    ];
    for (n, plain_weight, scaled_weight) in golden.into_iter().take(if regard_tests::SLOW { 3 } else { 4 }) {
        let score = |j: usize| [if j == n / 3 { 3.0 } else { -2.0 }];
        let heads = Heads::one([1, n], |_| [1.0], score, |j| [if j == n / 3 { 1.0 } else { 0.0 }]);
        // Weights that are small against the sum of their block lose digits when they are added to it.
        let tolerance = 3e-6 + 1e-10 * n as f64;
        each_level(|level| {
            assert_close(&heads.run(&softmax(), level).out, &[plain_weight], tolerance, "softmax");
            assert_close(&heads.run(&softmax().log_n_schedule(0.43), level).out, &[scaled_weight], tolerance, "SSMax");
        });
    }
}

/// A winner by g keeps the weight 1 / (1 + (n - 1) n^(-s g)): towards 1 iff s g > 1, towards 0 iff s g < 1.
#[test]
fn phases_of_scalable_softmax() {
    for n in [4_usize, 50, 900] {
        for (s, gap) in [(0.5_f32, 1.0_f32), (1.0, 1.0), (1.0, 0.25), (2.0, 1.0), (0.3, 5.0)] {
            let heads = Heads::one(
                [1, n],
                |_| [1.0],
                |j| [if j + 1 == n { gap } else { 0.0 }],
                |j| [if j + 1 == n { 1.0 } else { 0.0 }],
            );
            let rest = (n as f64 - 1.0) * (n as f64).powf(-f64::from(s) * f64::from(gap));
            each_level(|level| {
                let weight = heads.run(&softmax().log_n_schedule(s), level).out;
                assert_close(&weight, &[1.0 / (1.0 + rest)], 3e-6, &format!("n {n}, s {s}, gap {gap}"));
            });
        }
    }
}

/// SSMax(s) is softmax at the temperature 1 / (s ln n), with n all keys, the visible ones (a row that sees one key is
/// that key), or a constant; and not what subtracting s ln n from the logits gives, which is nothing.
#[test]
fn scalable_softmax_is_a_temperature() {
    let n = 40;
    let heads = Heads::normal([1, 1, 1], [n, n], [8, 5]);
    let s = 0.7_f32;
    let causal = softmax().causal(Align::TopLeft);
    let bias = [-s * (n as f32).ln()];
    let shifted = causal.clone().bias(View::bhsd(&bias, [1, 1, 1, 1]).expect("one element"));
    each_level(|level| {
        let scheduled = |count| heads.run(&causal.clone().log_n_schedule(s).count(count), level).out;
        let at = |n: f32| 1.0 / (s * n.ln());
        let constant = |n| widened(&heads.run(&causal.clone().temperature(Temperature::Constant(at(n))), level).out);
        assert_close(&scheduled(Count::AllKeys), &constant(n as f32), 2e-6, "all keys");
        assert_close(&scheduled(Count::Constant(100.0)), &constant(100.0), 2e-6, "a constant");
        // ln 1 = 0: any temperature will do for a row of one key.
        let rows: Vec<f32> = (1..=n).map(|seen| at(seen.max(2) as f32)).collect();
        let by_row = heads.run(&causal.clone().temperature(Temperature::PerRow(&rows)), level).out;
        assert_close(&scheduled(Count::Visible), &widened(&by_row), 2e-6, "visible keys");
        let bare = heads.run(&causal, level).out;
        assert_close(&heads.run(&shifted, level).out, &widened(&bare), 2e-6, "subtracting is a no-op");
        assert!(l1(&scheduled(Count::AllKeys), &bare) > 0.1);
    });
}

/// Rows of a long context keep what many small weights add up to: a first key has nearly all the weight (an attention
/// sink in the model's own keys), and 16383 others 2e-8 each. V = 1 gives 1, and the indicator of the others their
/// share. Each block of keys is summed by itself, so that what rounding loses grows with the number of blocks and not
/// of keys: at most half a unit of 1 for each of them, in the output and in the denominator.
#[test]
fn small_weights_add_up() {
    let (n, gap) = (16_384, 17.727_5_f32);
    let key = |j: usize| [if j == 0 { gap } else { 0.0 }];
    let heads = Heads::one([1, n], |_| [1.0], key, |j| [1.0, if j == 0 { 0.0 } else { 1.0 }]);
    // Blocks have at least 48 keys, whatever the caches.
    let tolerance = 2.0 * n.div_ceil(48) as f64 * f64::from(f32::EPSILON) / 2.0;
    let others = (n - 1) as f64 * (-f64::from(gap)).exp();
    each_level(|level| {
        let out = heads.run(&softmax(), level).out;
        assert_close(&out, &[1.0, others / (1.0 + others)], tolerance, &format!("{}", level.isa()));
    });
}

/// Dispersion: `e^(-R / tau) / n <= weight <= e^(R / tau) / n`, R the range of the scores; softmax at a fixed
/// temperature cannot stay sharp as n grows.
#[test]
fn dispersion() {
    let mut random = Random::new(2);
    for (n, tau) in [(3, 1.0_f32), (50, 0.5), (400, 1.0), (400, 4.0)] {
        let scores: Vec<f32> = (0..n).map(|_| 2.0 * random.uniform() as f32 - 1.0).collect();
        let range =
            f64::from(scores.iter().fold(f32::MIN, |a, b| a.max(*b)) - scores.iter().fold(f32::MAX, |a, b| a.min(*b)));
        let most = (range / f64::from(tau)).exp();
        each_level(|level| {
            let options = softmax().temperature(Temperature::Constant(tau));
            for weight in Heads::scores(&scores).run(&options, level).out {
                let relative = f64::from(weight) * n as f64;
                assert!(relative <= most * (1.0 + 1e-6) && relative >= 1.0 / most * (1.0 - 1e-6), "{relative} {most}");
            }
        });
    }
}

/// One token among n moves the output by O(1 / n) (Hahn, arXiv:1906.06755): why hard attention needs temperatures or
/// positions that grow with n. Stated (derived here): with scores in a range R before and after, a key and value that
/// change move each column by at most 2 e^R / n times the range of V; hard attention moves by the whole range.
#[test]
fn one_token_moves_little() {
    let mut random = Random::new(9);
    for n in [8, 64, 512] {
        let mut scores: Vec<f32> = (0..n).map(|_| random.uniform() as f32).collect();
        let values: Vec<f32> = (0..n).map(|j| if j == n / 2 { 1.0 } else { 0.0 }).collect();
        let heads = |scores: &[f32], sign: f32| {
            Heads::one([1, n], |_| [1.0], |j| [scores[j]], |j| [if j == 0 { sign } else { values[j] }])
        };
        // Key 0 goes from the least score and the value 0 to the largest score and the value 1.
        scores[0] = 0.0;
        let before = heads(&scores, 0.0);
        scores[0] = 1.0;
        let after = heads(&scores, 1.0);
        each_level(|level| {
            let moves = |weighting: Weighting| {
                let [before, after] = [&before, &after].map(|heads| heads.run(&plain(weighting.clone()), level).out[0]);
                f64::from((after - before).abs())
            };
            let most = 2.0 * 1_f64.exp() / n as f64;
            assert!(moves(Weighting::Softmax) <= most && moves(Weighting::Softmax) > most / 10.0, "n {n}");
            assert_eq!(moves(Weighting::HardLeft), 1.0);
        });
    }
}

/// ALiBi of a slope under a causal mask is gating by gamma = e^-slope: weights e^s gamma^(i - j), normalised.
#[test]
fn alibi_is_gating() {
    let (n, slope) = (33, 0.21_f32);
    let mut heads = Heads::normal([1, 1, 1], [n, n], [8, n]);
    heads.v = unit_values([1, 1, n, n]);
    let scores = heads.reference(&plain(Weighting::Identity), regard::Isa::Portable);
    let gamma = (-f64::from(slope)).exp();
    let mut want = Vec::new();
    for i in 0..n {
        let gated = |j: usize| if j <= i { scores[i * n + j].exp() * gamma.powi((i - j) as i32) } else { 0.0 };
        let sum: f64 = (0..n).map(gated).sum();
        want.extend((0..n).map(|j| gated(j) / sum));
    }
    each_level(|level| {
        let out = heads.run(&softmax().causal(Align::TopLeft).alibi_slopes(&[slope]), level).out;
        assert_close(&out, &want, 3e-6, "gated");
    });
}
