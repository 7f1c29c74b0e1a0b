//! Yang, Strobl, Chiang and Angluin, arXiv:2412.09925, and the Transformer Cookbook: operators of linear temporal logic
//! and counting as single attention layers, on all strings of moderate length; by hard attention under every tie rule
//! that the operator allows, and by softmax at a temperature that suffices.
//!
//! Booleans are 0 and 1. A soft layer with an error of at most 1/4 is followed by `repair`, after which it is exact.

use regard::{Align, Temperature, Weighting};

use super::*;

/// The largest n of the exhaustive tests.
const LONGEST: usize = if regard_tests::SLOW { 5 } else { 8 };

pub(super) const ANY_TIE: [Weighting; 3] = [Weighting::HardLeft, Weighting::HardRight, Weighting::AverageHard];

/// `relu(2x - 1/2) - relu(2x - 3/2)` maps [0, 1/4] to 0 and [3/4, 1] to 1.
pub(super) fn repair(x: f32) -> f32 {
    (2.0 * x - 0.5).max(0.0) - (2.0 * x - 1.5).max(0.0)
}

/// Bit `j` of string `b`.
fn bit(b: usize, j: usize) -> f32 {
    (b >> j & 1) as f32
}

/// All strings of `n` bits, with queries, keys and values by position.
fn all_strings<const D: usize, const V: usize>(
    n: usize,
    bits: usize,
    q: impl Fn(usize) -> [f32; D],
    k: impl Fn(usize, usize) -> [f32; D],
    v: impl Fn(usize, usize) -> [f32; V],
) -> Heads {
    Heads::batch([1 << bits, n, n], |_, i| q(i), k, v)
}

pub(super) fn soft(temperature: f64) -> Attention<'static> {
    plain(Weighting::Softmax).temperature(Temperature::Constant(temperature as f32))
}

/// Panics unless the operator gives `want(string, position)` everywhere: for every weighting of `hard` exactly, for
/// softmax at `temperature` after repair.
#[track_caller]
fn assert_operator(
    heads: &Heads,
    hard: &[Weighting],
    temperature: Option<f64>,
    mask: impl Fn(Attention<'static>) -> Attention<'static>,
    want: impl Fn(usize, usize) -> Option<f32>,
) {
    let n = heads.q.shape()[2];
    let check = |out: &[f32], what: &str| {
        for (at, out) in out.iter().enumerate() {
            if let Some(want) = want(at / n, at % n) {
                assert_eq!(*out, want, "{what}: string {:0n$b}, position {}", at / n, at % n);
            }
        }
    };
    each_level(|level| {
        for weighting in hard {
            let out = heads.run(&mask(plain(weighting.clone())), level).out;
            check(&out, &format!("{} on {}", weighting.name(), level.isa()));
        }
        if let Some(temperature) = temperature {
            let out: Vec<f32> = heads.run(&mask(soft(temperature)), level).out.into_iter().map(repair).collect();
            check(&out, &format!("softmax on {}", level.isa()));
        }
    });
}

fn prefix(options: Attention<'static>) -> Attention<'static> {
    options.causal(Align::TopLeft)
}

/// "Once": exists j <= i with phi_j. Score phi_j, value phi_j, any tie rule; temperature 1 / ln(3n + 1).
#[test]
fn once() {
    for n in 1..=LONGEST {
        let heads = all_strings(n, n, |_| [1.0], |b, j| [bit(b, j)], |b, j| [bit(b, j)]);
        let temperature = 1.0 / (3.0 * n as f64 + 1.0).ln();
        let want = |b: usize, i: usize| Some(f32::from(u8::from((0..=i).any(|j| bit(b, j) == 1.0))));
        assert_operator(&heads, &ANY_TIE, Some(temperature), prefix, want);
    }
}

/// "Always": all j <= i have phi_j. Score 1 - phi_j, value phi_j, any tie rule; temperature 1 / ln(3n + 1).
#[test]
fn always() {
    for n in 1..=LONGEST {
        let heads = all_strings(n, n, |_| [1.0], |b, j| [1.0 - bit(b, j)], |b, j| [bit(b, j)]);
        let temperature = 1.0 / (3.0 * n as f64 + 1.0).ln();
        let want = |b: usize, i: usize| Some(f32::from(u8::from((0..=i).all(|j| bit(b, j) == 1.0))));
        assert_operator(&heads, &ANY_TIE, Some(temperature), prefix, want);
    }
}

/// k-grams: position i looks k back with score -(i - k - j)^2 under the strict mask; k = 1 is "previous", whose first
/// position sees nothing and is false. Tieless; temperature 0.4, whatever n.
#[test]
fn previous_and_further_back() {
    for n in 1..=LONGEST {
        for back in 1..=3_usize {
            let query = |i: usize| [2.0 * (i as f32 - back as f32), -1.0];
            let heads = all_strings(n, n, query, |_, j| [j as f32, (j * j) as f32], |b, j| [bit(b, j)]);
            let want = |b, i: usize| match (i.checked_sub(back), back) {
                (Some(j), _) => Some(bit(b, j)),
                (None, 1) => Some(0.0),
                // Past the beginning the lookup means nothing.
                (None, _) => None,
            };
            assert_operator(&heads, &ANY_TIE, Some(0.4), |options| prefix(options).strict(), want);
        }
    }
}

/// The pairs of strings (phi, psi) of n bits each, as 2n bits: phi is the low half.
fn pairs<const D: usize>(n: usize, q: impl Fn(usize) -> [f32; D], k: impl Fn(f32, usize) -> [f32; D]) -> Heads {
    let psi = |b: usize, j: usize| bit(b, n + j);
    // 1 where "since" is decided: psi holds, or phi does not.
    let decided = |b: usize, j: usize| (1.0 - bit(b, j)).max(psi(b, j));
    all_strings(n, 2 * n, q, |b, j| k(decided(b, j), j), |b, j| [psi(b, j)])
}

const LONGEST_PAIR: usize = if regard_tests::SLOW { 3 } else { 5 };

/// "Since", reflexive: some j <= i has psi_j, and phi holds after it up to i. Score max(1 - phi_j, psi_j), value psi_j,
/// rightmost; by softmax with a bounded positional term (c_j + j / 2n at 1 / (2n ln 8n)) and an unbounded one
/// (2n c_j + j at 0.3).
#[test]
fn since_takes_the_rightmost() {
    for n in 1..=LONGEST_PAIR {
        let want = |b: usize, i: usize| {
            let holds = (0..=i).any(|j| bit(b, n + j) == 1.0 && (j + 1..=i).all(|after| bit(b, after) == 1.0));
            Some(f32::from(u8::from(holds)))
        };
        let hard = pairs(n, |_| [1.0], |decided, _| [decided]);
        assert_operator(&hard, &[Weighting::HardRight], None, prefix, want);
        let size = n as f64;
        let bounded = pairs(n, |_| [1.0, 1.0 / (2 * n) as f32], |decided, j| [decided, j as f32]);
        assert_operator(&bounded, &[], Some(1.0 / (2.0 * size * (8.0 * size).ln())), prefix, want);
        let unbounded = pairs(n, |_| [(2 * n) as f32, 1.0], |decided, j| [decided, j as f32]);
        assert_operator(&unbounded, &[], Some(0.3), prefix, want);
    }
}

/// "Until" is its mirror: past-masked, leftmost.
#[test]
fn until_takes_the_leftmost() {
    for n in 1..=LONGEST_PAIR {
        let want = |b: usize, i: usize| {
            let holds = (i..n).any(|j| bit(b, n + j) == 1.0 && (i..j).all(|before| bit(b, before) == 1.0));
            Some(f32::from(u8::from(holds)))
        };
        let suffix = |options: Attention<'static>| options.anti_causal(Align::TopLeft);
        let hard = pairs(n, |_| [1.0], |decided, _| [decided]);
        assert_operator(&hard, &[Weighting::HardLeft], None, suffix, want);
        let unbounded = pairs(n, |_| [(2 * n) as f32, -1.0], |decided, j| [decided, j as f32]);
        assert_operator(&unbounded, &[], Some(0.3), suffix, want);
    }
}

/// Since is where the tie rule matters: the leftmost decided position gives wrong answers.
#[test]
fn since_needs_its_tie_rule() {
    // phi = 110 and psi = 100 in the order of positions: decided at 0 by psi, and at 2 by the end of phi.
    let heads = pairs(3, |_| [1.0], |decided, _| [decided]);
    let string = 0b001_011;
    each_level(|level| {
        let last = |weighting| heads.run(&prefix(plain(weighting)), level).out[3 * string + 2];
        assert_eq!(last(Weighting::HardRight), 0.0);
        assert_eq!(last(Weighting::HardLeft), 1.0);
        assert_eq!(last(Weighting::AverageHard), 0.5);
    });
}

/// Counting (C-RASP): uniform attention over the prefix, times i + 1, is the number of phi so far; by average-hard
/// attention, and by softmax at any temperature.
#[test]
fn counting_is_uniform_attention() {
    let heads = all_strings(LONGEST, LONGEST, |_| [0.0], |_, _| [1.0], |b, j| [bit(b, j)]);
    each_level(|level| {
        for options in [plain(Weighting::AverageHard), soft(1.0), soft(1e-6), soft(1e6)] {
            let out = heads.run(&prefix(options), level).out;
            for (at, mean) in out.iter().enumerate() {
                let (b, i) = (at / LONGEST, at % LONGEST);
                let count = (b & ((2 << i) - 1)).count_ones() as f32;
                assert!((mean * (i + 1) as f32 - count).abs() <= 4.0 * f32::EPSILON * count);
            }
        }
    });
}

/// (ab)*, a star-free language, in two layers: accept iff the last letter is b and no position violates, where a
/// position violates if its letter repeats the previous one, or if it is a b at the beginning.
#[test]
fn ab_star() {
    for n in 1..=LONGEST {
        let letters = |b: usize, j: usize| [bit(b, j), 1.0 - bit(b, j)];
        let query = |i: usize| [2.0 * (i as f32 - 1.0), -1.0];
        let previous = all_strings(n, n, query, |_, j| [j as f32, (j * j) as f32], letters);
        let temperature = (1.0 / (3.0 * n as f64 + 1.0).ln()).min(0.3);
        let options = ANY_TIE.map(|weighting| (plain(weighting), false)).into_iter().chain([(soft(temperature), true)]);
        for (options, is_soft) in options {
            let boolean = |x: f32| if is_soft { repair(x) } else { x };
            each_level(|level| {
                let before = previous.run(&prefix(options.clone()).strict(), level).out;
                let violation = |b: usize, j: usize| {
                    let [a, not_a] = letters(b, j);
                    let at = 2 * (b * n + j);
                    let [was_a, was_b] = [boolean(before[at]), boolean(before[at + 1])];
                    let first = if j == 0 { 1.0 } else { 0.0 };
                    a.min(was_a).max(not_a.min(was_b)).max(not_a.min(first))
                };
                let some = all_strings(n, n, |_| [1.0], |b, j| [violation(b, j)], |b, j| [violation(b, j)]);
                let violated = some.run(&prefix(options.clone()), level).out;
                for b in 0..1 << n {
                    let accepted = (1.0 - bit(b, n - 1)).min(1.0 - boolean(violated[b * n + n - 1]));
                    let expected = n % 2 == 0 && (0..n).all(|j| bit(b, j) == if j % 2 == 0 { 1.0 } else { 0.0 });
                    assert_eq!(accepted, f32::from(u8::from(expected)), "{b:0n$b}");
                }
            });
        }
    }
}
