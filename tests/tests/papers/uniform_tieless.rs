//! Yang, Strobl, Chiang and Angluin, arXiv:2412.09925, first version: softmax at a low temperature simulates
//! average-hard attention in programs whose layers are *uniform-tieless*: on every input, all scores of a layer are
//! equal, or one is the largest alone. Two such programs on all words, one that is not, and what repairs it.
//!
//! The definition is taken from summaries of the paper; its text was not at hand.

use regard::{Align, Weighting};

use super::formulas::{ANY_TIE, repair, soft};
use super::*;

const LONGEST: usize = if regard_tests::SLOW { 6 } else { 10 };

fn bit(b: usize, j: usize) -> f32 {
    (b >> j & 1) as f32
}

/// Parity: a uniform layer counts the ones, and lookup of that count (not of half of it, as in `parity_by_lookup`,
/// which ties) finds whether it is odd. Right on all words under every tie rule, and by softmax: at any temperature in
/// the first layer and at 0.4, whatever n, in the second.
#[test]
fn parity_without_ties() {
    for n in 1..=LONGEST {
        let counting = Heads::batch([1 << n, 1, n], |_, _| [0.0], |_, j| [j as f32], |b, j| [bit(b, j)]);
        each_level(|level| {
            for first in [plain(Weighting::AverageHard), soft(1.0), soft(0.01)] {
                let means = counting.run(&first, level).out;
                let lookup = Heads::batch(
                    [1 << n, 1, n + 1],
                    |b, _| [2.0 * means[b] * n as f32, -1.0],
                    |_, j| [j as f32, (j * j) as f32],
                    |_, j| [(j % 2) as f32],
                );
                let mut found: Vec<_> = ANY_TIE.map(|weighting| lookup.run(&plain(weighting), level).out).to_vec();
                found.push(lookup.run(&soft(0.4), level).out.into_iter().map(repair).collect());
                for found in found {
                    for (b, odd) in found.iter().enumerate() {
                        assert_eq!(*odd, (b.count_ones() % 2) as f32, "{b:0n$b}");
                    }
                }
            }
        });
    }
}

/// Palindromes: a tieless layer fetches the letter at n - 1 - i (score 2 (n - 1 - i) j - j^2), a uniform one takes the
/// mean of the mismatches: 0, or at least 2 / n. Softmax at the temperature that the gap of 1 asks for an error of 1 /
/// 4n leaves the mean below 1 / 2n, or above: no repair between layers.
#[test]
fn palindromes_bear_small_errors() {
    for n in 2..=LONGEST {
        let words = 1 << n;
        let query = |i: usize| [2.0 * (n - 1 - i) as f32, -1.0];
        let fetch = Heads::batch([words, n, n], |_, i| query(i), |_, j| [j as f32, (j * j) as f32], |b, j| [bit(b, j)]);
        let size = n as f64;
        // x = (n - 1) e^(-1 / tau) bounds the error of a letter.
        let layers = ANY_TIE.map(|weighting| (plain(weighting), plain(Weighting::AverageHard), 0.0));
        let temperature = 1.0 / (4.0 * size * (size - 1.0)).ln();
        let layers = layers.into_iter().chain([(soft(temperature), soft(1.0), 1.0 / (4.0 * size))]);
        for (tieless, uniform, most) in layers {
            each_level(|level| {
                let mirror = fetch.run(&tieless, level).out;
                let error = |at: usize| (mirror[at] - bit(at / n, n - 1 - at % n)).abs();
                assert!((0..words * n).all(|at| f64::from(error(at)) <= most + 1e-6));
                let mismatch = |b: usize, i: usize| (mirror[b * n + i] - bit(b, i)).abs();
                let mean = Heads::batch([words, 1, n], |_, _| [0.0], |_, _| [0.0], |b, j| [mismatch(b, j)]);
                for (b, mean) in mean.run(&uniform, level).out.iter().enumerate() {
                    let palindrome = (0..n).all(|i| bit(b, i) == bit(b, n - 1 - i));
                    assert_eq!(f64::from(*mean) < 0.5 / size, palindrome, "{b:0n$b}: {mean}");
                }
            });
        }
    }
}

/// A program that is not uniform-tieless: layer 1 is "once", layer 2 attends to all positions where it holds, a strict
/// subset that ties, and takes the mean of their places. Errors eps of a soft layer 1 break these ties: far above the
/// temperature of layer 2 they decide, and the answer is the one place with the smallest error; far below, the answer
/// is the mean up to 2 eps / tau times the range. Repair in between makes Booleans exact, and ties real, at any
/// temperature.
#[test]
fn errors_break_ties_unless_repaired() {
    let n = 12;
    let first = 2;
    let holds = |j: usize| [if j == first { 1.0 } else { 0.0 }];
    let once = Heads::one([n, n], |_| [1.0], holds, holds);
    let mean_of = |held: &[f32], attend: &Attention<'_>, level: Level| {
        f64::from(Heads::one([1, n], |_| [1.0], |j| [held[j]], |j| [j as f32]).run(attend, level).out[0])
    };
    let want = (first..n).sum::<usize>() as f64 / (n - first) as f64;
    each_level(|level| {
        let at = |temperature: f64| once.run(&soft(temperature).causal(Align::TopLeft), level).out;
        let hard = once.run(&plain(Weighting::AverageHard).causal(Align::TopLeft), level).out;
        assert!((mean_of(&hard, &plain(Weighting::AverageHard), level) - want).abs() < 1e-6);

        // Enough for "once": errors up to 1/4, which differ by 0.02 from one position to the next.
        let rough = at(1.0 / (3.0 * n as f64 + 1.0).ln());
        assert!((mean_of(&rough, &soft(1e-3), level) - first as f64).abs() < 1e-3, "errors decide");

        let repaired: Vec<f32> = rough.into_iter().map(repair).collect();
        assert_eq!(repaired, hard);
        for temperature in [1e-3, 0.02, 0.05] {
            assert!((mean_of(&repaired, &soft(temperature), level) - want).abs() < 1e-5, "ties are real");
        }

        let (fine, temperature) = (at(0.1), 0.05);
        let eps = f64::from((first..n).map(|i| 1.0 - fine[i]).fold(0.0, f32::max));
        assert!(eps > 1e-5 && eps < temperature / 50.0, "{eps}");
        let error = (mean_of(&fine, &soft(temperature), level) - want).abs();
        assert!(error <= (n - 1) as f64 * (2.0 * eps / temperature + 1e-6), "{error}");
    });
}
