//! Yang, Strobl, Chiang and Angluin, "Simulating hard attention using soft attention", arXiv:2412.09925: definitions,
//! error bounds, and what f32 makes of them. The row of the bounds has n visible keys, m of them largest, all others at
//! least a gap below; x = (n - m) e^(-gap / temperature).

use regard::{Temperature, Weighting};
use regard_tests::Random;

use super::*;

/// The temperature of a gap in units of the temperature.
fn at(temperature: f32) -> Attention<'static> {
    plain(Weighting::Softmax).temperature(Temperature::Constant(temperature))
}

/// Scores: `most` largest (3.0) among `n`, the others `gap` below it, or further if `spread`.
fn gapped(random: &mut Random, n: usize, most: usize, gap: f32, spread: bool) -> Vec<f32> {
    let mut scores: Vec<f32> = (0..n).map(|j| if j < most { 3.0 } else { 3.0 - gap }).collect();
    if spread {
        scores[most..].iter_mut().for_each(|s| *s -= random.uniform() as f32);
    }
    for j in (1..n).rev() {
        scores.swap(j, random.below(j + 1));
    }
    scores
}

/// Definitions: leftmost-hard is the first of the largest, rightmost-hard the last, average-hard all of them equally.
#[test]
fn definitions() {
    let scores = [1.0, 4.0, -2.0, 4.0, 0.0, 4.0, 3.0];
    each_level(|level| {
        let weights = |weighting| Heads::scores(&scores).run(&plain(weighting), level).out;
        assert_eq!(weights(Weighting::HardLeft), [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(weights(Weighting::HardRight), [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
        let third = 1.0 / 3.0;
        assert_eq!(weights(Weighting::AverageHard), [0.0, third, 0.0, third, 0.0, third, 0.0]);
    });
}

/// `||softmax(s / tau) - averagehard(s)||_1 <= 2x / (m + x)`, with equality iff every other key is exactly a gap below;
/// `<= 2 (n - m) / m e^(-gap / tau) <= 2 n e^(-gap / tau)`; and for each column of V the error is at most
/// `x / (m + x)` times its range.
#[test]
fn error_of_softmax_against_average_hard() {
    let mut random = Random::new(1);
    for case in 0..60 {
        let n = 2 + random.below(39);
        let most = 1 + random.below(n);
        let (gap, tau) = ((0.05 + 3.0 * random.uniform()) as f32, (0.1 + 2.0 * random.uniform()) as f32);
        let spread = case % 2 == 1;
        let heads = Heads::scores(&gapped(&mut random, n, most, gap, spread));
        let mut values = heads.clone();
        values.v = Tensor::normal([1, 1, n, 3], Layout::Bhsd, &mut random);
        // The gap as f32 has it: 3 - (3 - gap).
        let gap = f64::from(3.0 - (3.0 - gap));
        let decay = (-gap / f64::from(tau)).exp();
        let (n, m) = (n as f64, most as f64);
        let x = (n - m) * decay;
        let bound = 2.0 * x / (m + x);
        assert!(bound <= 2.0 * (n - m) / m * decay && 2.0 * (n - m) / m * decay <= 2.0 * n * decay);
        each_level(|level| {
            let soft = heads.run(&at(tau), level).out;
            let hard = heads.run(&plain(Weighting::AverageHard), level).out;
            let error = l1(&soft, &hard);
            // Rounding of exp, sum and quotient, relative to a total weight of 1.
            let slack = 2e-6;
            assert!(error <= bound + slack, "{error} > {bound}");
            if !spread {
                assert!((error - bound).abs() <= slack, "{error} is not {bound}");
            }
            let soft = values.run(&at(tau), level).out;
            let hard = values.run(&plain(Weighting::AverageHard), level).out;
            for c in 0..3 {
                let column: Vec<f64> =
                    (0..values.v.shape()[2]).map(|j| f64::from(values.v.get([0, 0, j, c]))).collect();
                let range =
                    column.iter().fold(f64::MIN, |a, b| a.max(*b)) - column.iter().fold(f64::MAX, |a, b| a.min(*b));
                let error = (f64::from(soft[c]) - f64::from(hard[c])).abs();
                assert!(error <= x / (m + x) * range + slack * (1.0 + range), "column {c}: {error}");
            }
        });
    }
}

/// The temperature for an error eps: `tau <= gap / ln(2 (n - m) / (m eps))`.
#[test]
fn temperature_for_an_error() {
    let mut random = Random::new(2);
    for (n, most, eps) in [(10, 1, 0.1), (100, 1, 1e-2), (100, 7, 1e-3), (300, 2, 0.25)] {
        let tau = 1.0 / (2.0 * (n - most) as f64 / (most as f64 * eps)).ln();
        let heads = Heads::scores(&gapped(&mut random, n, most, 1.0, false));
        each_level(|level| {
            let soft = heads.run(&at(tau as f32), level).out;
            let error = l1(&soft, &heads.run(&plain(Weighting::AverageHard), level).out);
            assert!(error <= eps + 2e-6 && error > eps / 2.0, "n {n}, m {most}: {error} for {eps}");
        });
    }
}

/// Scores that decay with the distance from the largest need a temperature that does not depend on n: L1 error at most
/// 2r / (1 + r), r the sum of e^(-distance gap / tau) on both sides. Golden: 0.477, 0.0719, 1.82e-4 for gaps of 2, 4,
/// 10 temperatures; quadratic decay 0.427, 0.0707, 1.816e-4.
#[test]
fn decaying_scores_need_no_log_n() {
    let golden = [(2.0, 0.477, 0.427), (4.0, 0.0719, 0.0707), (10.0, 1.82e-4, 1.816e-4)];
    for (gap, linear, quadratic) in golden {
        for n in [8, 64, 500] {
            let centre = n / 2;
            let distance = |j: usize| j.abs_diff(centre) as f32;
            let lines = Heads::scores(&(0..n).map(|j| -distance(j)).collect::<Vec<_>>());
            let squares = Heads::scores(&(0..n).map(|j| -distance(j) * distance(j)).collect::<Vec<_>>());
            each_level(|level| {
                for (heads, bound) in [(&lines, linear), (&squares, quadratic)] {
                    let soft = heads.run(&at(1.0 / gap), level).out;
                    let error = l1(&soft, &heads.run(&plain(Weighting::HardLeft), level).out);
                    // Golden values have three to four digits.
                    assert!(error <= bound * 1.003, "n {n}, gap {gap}: {error} > {bound}");
                    if n > 8 {
                        assert!(error >= bound * 0.997, "n {n}, gap {gap}: {error} is not {bound}");
                    }
                }
            });
        }
    }
}

/// `max <= tau LSE(s / tau) <= max + tau ln n`
#[test]
fn log_sum_exp_lies_between() {
    let mut random = Random::new(3);
    for (n, tau) in [(1, 1.0_f32), (5, 0.01), (40, 0.3), (333, 2.0), (333, 30.0)] {
        let scores: Vec<f32> = random.normals(n).iter().map(|x| 4.0 * x).collect();
        let max = f64::from(scores.iter().copied().fold(f32::MIN, f32::max));
        let heads = Heads::scores(&scores);
        each_level(|level| {
            let lse = heads.run(&at(tau), level).lse.expect("softmax has one")[0];
            let (lse, tau) = (f64::from(tau) * f64::from(lse), f64::from(tau));
            let slack = (max.abs() + tau) * 4e-6;
            assert!(lse >= max - slack && lse <= max + tau * (n as f64).ln() + slack, "{lse} for {max}, n {n}");
        });
    }
}

/// f32: e^-x is 0 for x > 103.97 (87.34 without denormals, as here), so that with a gap of more than 104 temperatures
/// softmax has the weights of average-hard attention, bit for bit, wherever the ties stand. The outputs too: a V of
/// zeros at the winners gives exact zeros, one winner its value, and several the same sum, where both add them up in
/// the same order. Kernels for up to 16 queries do not: there each of the m values may be rounded once more.
#[test]
fn far_below_is_exactly_nothing() {
    let mut random = Random::new(4);
    for (n, most) in [(2, 1), (9, 3), (130, 2), (600, 5), (600, 1)] {
        for gap_in_temperatures in [88.0_f32, 104.5, 1e4] {
            let scores = gapped(&mut random, n, most, 1.0, true);
            let weights = Heads::scores(&scores);
            let mut v = Tensor::normal([1, 1, n, 21], Layout::Bhsd, &mut random);
            for j in (0..n).filter(|j| scores[*j] == 3.0) {
                *v.at([0, 0, j, 0]) = 0.0;
            }
            let largest = f64::from(v.to_vec().iter().fold(0.0_f32, |most, x| most.max(x.abs())));
            let few = Heads { v, ..weights.clone() };
            let many = Heads { q: Tensor::filled([1, 1, 20, 1], Layout::Bhsd, 1.0), ..few.clone() };
            each_level(|level| {
                let run = |heads: &Heads| {
                    let soft = heads.run(&at(1.0 / gap_in_temperatures), level).out;
                    (soft, heads.run(&plain(Weighting::AverageHard), level).out)
                };
                let what = format!("{}, n {n}, m {most}, {gap_in_temperatures}", level.isa());
                for heads in [&weights, &many] {
                    let (soft, hard) = run(heads);
                    assert_equal(&soft, &hard, &what);
                }
                let (soft, hard) = run(&few);
                let tolerance = if most == 1 { 0.0 } else { (most + 1) as f64 * UNIT * largest };
                assert_close(&soft, &widened(&hard), tolerance, &what);
                assert_eq!(soft[0], 0.0);
            });
        }
    }
}

/// To be invisible after rounding, a gap of ln n + 17.33 temperatures is enough: the rest weighs less than 2^-25.
#[test]
fn below_rounding_is_invisible() {
    let mut random = Random::new(5);
    for n in [128, 600] {
        let heads = Heads {
            v: Tensor::normal([1, 1, n, 5], Layout::Bhsd, &mut random),
            ..Heads::scores(&gapped(&mut random, n, 1, 1.0, false))
        };
        let tau = 1.0 / ((n as f32).ln() + 17.4);
        each_level(|level| {
            let soft = heads.run(&at(tau), level).out;
            let hard = heads.run(&plain(Weighting::AverageHard), level).out;
            // The range of V is below 10: 2^-25 of it, and the roundings of the sum around the winner's value.
            for (soft, hard) in soft.iter().zip(&hard) {
                let tolerance = 10.0 * 2_f64.powi(-25) + f64::from(hard.abs()) * 4.0 * UNIT;
                assert!((f64::from(*soft) - f64::from(*hard)).abs() <= tolerance, "{soft} {hard}");
            }
        });
    }
}

/// Quadratic lookup `2 a j - j^2` in f32 finds every position up to 2896 (2 n^2 <= 2^24), twice that when positions
/// are centred, and not much further.
#[test]
fn reach_of_quadratic_lookup() {
    let step = if regard_tests::SLOW { 97 } else { 7 };
    let wrong = |level, n: usize, centre: usize| {
        let place = |j: usize| j as f32 - centre as f32;
        let asked: Vec<usize> = (0..n).rev().step_by(step).collect();
        let heads = Heads::one(
            [asked.len(), n],
            |i| [2.0 * place(asked[i]), -1.0],
            |j| [place(j), place(j) * place(j)],
            |j| [j as f32],
        );
        let found =
            [Weighting::HardLeft, Weighting::HardRight].map(|weighting| heads.run(&plain(weighting), level).out);
        (0..asked.len()).filter(|i| found.iter().any(|found| found[*i] != asked[*i] as f32)).count()
    };
    each_level(|level| {
        assert_eq!(wrong(level, 2897, 0), 0, "{}", level.isa());
        assert_eq!(wrong(level, 5792, 2896), 0, "{}, centred", level.isa());
        assert!(wrong(level, 9000, 0) > 0, "{}: beyond its reach", level.isa());
    });
}

/// Why the gap matters: lookup by the angle of (1, j) has a gap of about 1 / (2 j^4), golden 5.1e-2 (j = 1), 9.4e-5
/// (8), 4.5e-7 (32), 6.1e-8 (53), 2.9e-8 (64): dead in f32 beyond about 50.
#[test]
fn lookup_by_angle_dies_early() {
    let gap = |j: f64| 2.0 * (((1.0 / j).atan() - (1.0 / (j + 1.0)).atan()) / 2.0).sin().powi(2);
    for (j, golden) in [(1.0, 5.1e-2), (8.0, 9.4e-5), (32.0, 4.5e-7), (53.0, 6.1e-8), (64.0, 2.9e-8)] {
        assert!((gap(j) / golden - 1.0).abs() < 0.02, "{j}: {}", gap(j));
    }
    let unit = |j: usize| {
        let j = j as f64 + 1.0;
        [(j / j.hypot(1.0)) as f32, (1.0 / j.hypot(1.0)) as f32]
    };
    let heads = Heads::one([300, 300], unit, unit, |j| [j as f32]);
    each_level(|level| {
        let found = heads.run(&plain(Weighting::AverageHard), level).out;
        let right = |range: std::ops::Range<usize>| range.filter(|j| found[*j] == *j as f32).count();
        assert_eq!(right(0..24), 24, "{}", level.isa());
        assert!(right(64..300) < 200, "{}: f32 cannot tell these apart", level.isa());
    });
}

/// Tie-breaking terms turn average-hard attention into unique-hard: `+ 1 / (j + 1)` gives the leftmost, `+ j / 2n` the
/// rightmost of equal integer scores.
#[test]
fn tie_breaking_terms() {
    let mut random = Random::new(6);
    for n in [1, 2, 7, 64, 300] {
        let scores: Vec<f32> = (0..n).map(|_| random.integer(2)).collect();
        let left: Vec<f32> = scores.iter().enumerate().map(|(j, s)| s + 1.0 / (j + 1) as f32).collect();
        let right: Vec<f32> = scores.iter().enumerate().map(|(j, s)| s + j as f32 / (2 * n) as f32).collect();
        each_level(|level| {
            let weights = |scores: &[f32], weighting| Heads::scores(scores).run(&plain(weighting), level).out;
            let average = |scores: &[f32]| weights(scores, Weighting::AverageHard);
            // 1 / (j + 1) may lift a smaller score by 1 at j = 0 to a tie with the largest.
            let twice: Vec<f32> = left.iter().zip(&scores).map(|(left, s)| left + s).collect();
            assert_eq!(average(&twice), weights(&scores, Weighting::HardLeft), "n {n}");
            assert_eq!(average(&right), weights(&scores, Weighting::HardRight), "n {n}");
        });
    }
}
