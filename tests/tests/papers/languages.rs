//! Yang, Strobl, Chiang and Angluin, arXiv:2412.09925, the Transformer Cookbook and C-RASP: languages and string
//! functions by hard and uniform attention, against programs that compute them directly.

use regard::{Align, Weighting};
use regard_tests::Random;

use super::formulas::{ANY_TIE, repair, soft};
use super::*;

const LONGEST: usize = if regard_tests::SLOW { 7 } else { 10 };

/// +1 or -1, letter `j` of word `b`.
fn sign(b: usize, j: usize) -> f32 {
    if b >> j & 1 == 1 { 1.0 } else { -1.0 }
}

/// Majority by uniform attention over +-1: the sign of the mean, all words up to n = 10; any temperature.
#[test]
fn majority() {
    for n in 1..=LONGEST {
        let heads = Heads::batch([1 << n, 1, n], |_, _| [0.0], |_, j| [j as f32], |b, j| [sign(b, j)]);
        each_level(|level| {
            for options in [plain(Weighting::AverageHard), soft(1.0), soft(0.01)] {
                for (b, mean) in heads.run(&options, level).out.iter().enumerate() {
                    let sum = 2 * b.count_ones() as i32 - n as i32;
                    assert_eq!(mean * n as f32 > 0.5, sum > 0, "{b:0n$b}: {mean}");
                }
            }
        });
    }
}

/// Dyck-1: the uniform mean of the prefix times i + 1 is the depth; hard attention to the smallest depth finds whether
/// it falls below 0. All words up to n = 10; softmax at temperature 1 / ln(4 n^2) is within 1/2 of the smallest depth.
#[test]
fn balanced_brackets() {
    for n in 1..=LONGEST {
        let words = 1 << n;
        let prefixes = Heads::batch([words, n, n], |_, _| [0.0], |_, _| [0.0], |b, j| [sign(b, j)]);
        each_level(|level| {
            let means = prefixes.run(&plain(Weighting::AverageHard).causal(Align::TopLeft), level).out;
            let depth = |b: usize, j: usize| (means[b * n + j] * (j + 1) as f32).round();
            let heads = Heads::batch([words, 1, n], |_, _| [-1.0], |b, j| [depth(b, j)], |b, j| [depth(b, j)]);
            let mut lowest: Vec<_> = ANY_TIE.map(|weighting| heads.run(&plain(weighting), level).out).to_vec();
            lowest.push(heads.run(&soft(1.0 / (4.0 * (n * n) as f64).ln()), level).out);
            for b in 0..words {
                let mut height = 0;
                let mut balanced = true;
                for j in 0..n {
                    height += sign(b, j) as i32;
                    balanced &= height >= 0;
                }
                for lowest in &lowest {
                    let accepted = lowest[b] >= -0.5 && depth(b, n - 1) == 0.0;
                    assert_eq!(accepted, balanced && height == 0, "{b:0n$b}");
                }
            }
        });
    }
}

/// Parity by lookup, the test of tie rules: with `a` ones, the query 2j = a has scores -(2j - a)^2 and values 2j; even
/// iff the value is `a`. Unique-hard attention is right on all strings. Average-hard attention is wrong on every odd
/// one, as the two neighbours a - 1 and a + 1 average to a: 1023 of the strings up to n = 10.
#[test]
fn parity_by_lookup() {
    let strings = |n: usize, a: usize| (0..a).fold(1, |product, i| product * (n - i) / (i + 1));
    each_level(|level| {
        let failures = |weighting: Weighting| {
            let mut failures = 0;
            for n in 1..=10 {
                let heads = Heads::one(
                    [n + 1, n + 1],
                    |a| [4.0 * a as f32, -4.0],
                    |j| [j as f32, (j * j) as f32],
                    |j| [2.0 * j as f32],
                );
                for (a, value) in heads.run(&plain(weighting.clone()), level).out.iter().enumerate() {
                    let wrong = (*value == a as f32) != (a % 2 == 0);
                    failures += if wrong { strings(n, a) } else { 0 };
                }
            }
            failures
        };
        assert_eq!(failures(Weighting::HardLeft), 0);
        assert_eq!(failures(Weighting::HardRight), 0);
        assert_eq!(failures(Weighting::AverageHard), 1023);
    });
}

const LETTERS: usize = 4;

fn one_hot(letter: u8) -> [f32; LETTERS] {
    std::array::from_fn(|c| if usize::from(letter - b'a') == c { 1.0 } else { 0.0 })
}

/// The induction head: layer 1 copies the previous letter, layer 2 attends to where that was the current one. The last
/// row of its output.
fn induction(text: &[u8], copy: &Attention<'_>, attend: &Attention<'_>, level: Level) -> [f32; LETTERS] {
    let n = text.len();
    let previous =
        Heads::one([n, n], |i| [2.0 * (i as f32 - 1.0), -1.0], |j| [j as f32, (j * j) as f32], |j| one_hot(text[j]));
    let before = previous.run(&copy.clone().causal(Align::TopLeft).strict(), level).out;
    // A column for the position, which breaks ties for softmax; its scores are less than those of a match.
    let wide = |letters: [f32; LETTERS], last: f32| [letters[0], letters[1], letters[2], letters[3], last];
    let positional = matches!(attend.weighting(), Weighting::Softmax);
    let heads = Heads::one(
        [1, n],
        |_| wide(one_hot(text[n - 1]).map(|x| x * (2 * n) as f32), if positional { 1.0 } else { 0.0 }),
        |j| wide(std::array::from_fn(|c| repair(before[j * LETTERS + c])), j as f32),
        |j| one_hot(text[j]),
    );
    heads.run(attend, level).out.try_into().expect("one row")
}

/// For 'abcadbaca': rightmost gives what last followed an a (c), average the distribution of all that did (b, c and d,
/// a third each); softmax with a positional term agrees with rightmost. Then random texts.
#[test]
fn induction_head() {
    let hard = plain(Weighting::HardLeft);
    each_level(|level| {
        for copy in [hard.clone(), soft(0.4)] {
            let run = |attend: Attention<'static>| induction(b"abcadbaca", &copy, &attend, level);
            assert_eq!(run(plain(Weighting::HardRight)), one_hot(b'c'));
            let third = 1.0 / 3.0;
            assert_eq!(run(plain(Weighting::AverageHard)), [0.0, third, third, third]);
            let soft_head = run(soft(0.05));
            assert!(soft_head.iter().zip(one_hot(b'c')).all(|(a, b)| (a - b).abs() < 1e-4), "{soft_head:?}");
        }
        let mut random = Random::new(8);
        for _ in 0..20 {
            let text: Vec<u8> = (0..40).map(|_| b'a' + random.below(LETTERS) as u8).collect();
            let followers: Vec<u8> = text.windows(2).filter(|pair| pair[0] == text[39]).map(|pair| pair[1]).collect();
            let Some(last) = followers.last() else { continue };
            assert_eq!(induction(&text, &hard, &plain(Weighting::HardRight), level), one_hot(*last));
            let all = induction(&text, &hard, &plain(Weighting::AverageHard), level);
            for (c, share) in all.iter().enumerate() {
                let count = followers.iter().filter(|letter| usize::from(**letter - b'a') == c).count();
                assert!((share - count as f32 / followers.len() as f32).abs() <= f32::EPSILON);
            }
        }
    });
}

/// Lookup moves letters anywhere: score 2 a_i j - j^2. 'attention' reversed is 'noitnetta'.
#[test]
fn reversal_rotation_and_copy() {
    let text = b"attention";
    let n = text.len();
    let moved = |level, to: &dyn Fn(usize) -> usize, weighting: &Weighting| {
        let heads = Heads::one(
            [n, n],
            |i| [2.0 * to(i) as f32, -1.0],
            |j| [j as f32, (j * j) as f32],
            |j| [f32::from(text[j])],
        );
        heads.run(&plain(weighting.clone()), level).out.iter().map(|x| *x as u8).collect::<Vec<_>>()
    };
    each_level(|level| {
        for weighting in ANY_TIE {
            assert_eq!(moved(level, &|i| n - 1 - i, &weighting), b"noitnetta");
            assert_eq!(moved(level, &|i| (i + 3) % n, &weighting), b"entionatt");
            assert_eq!(moved(level, &|i| i, &weighting), text);
        }
    });
}

/// Dyck-k: a closing bracket attends to the last open one of its depth, with the score
/// -W (depth_j - depth_i)^2 - W closing_j + j, W = 2n, under the strict mask. Random strings against a stack.
#[test]
fn matching_brackets() {
    const LENGTH: usize = 14;
    let words = if regard_tests::SLOW { 40 } else { 400 };
    let mut random = Random::new(9);
    let mut partners = vec![[None; LENGTH]; words];
    let mut depths = vec![[0.0_f32; LENGTH]; words];
    for (partners, depths) in partners.iter_mut().zip(&mut depths) {
        let mut stack = Vec::new();
        for at in 0..LENGTH {
            // A closing bracket has the depth of its partner.
            if !stack.is_empty() && random.chance(0.5) {
                depths[at] = stack.len() as f32;
                partners[at] = stack.pop();
            } else {
                stack.push(at);
                depths[at] = stack.len() as f32;
            }
        }
    }
    let w = (2 * LENGTH) as f32;
    let key = |b: usize, j: usize| {
        let (depth, closing) = (depths[b][j], if partners[b][j].is_some() { w } else { 0.0 });
        [depth, j as f32 - w * depth * depth - closing]
    };
    let heads = Heads::batch([words, LENGTH, LENGTH], |b, i| [2.0 * w * depths[b][i], 1.0], key, |_, j| [j as f32]);
    each_level(|level| {
        for options in [plain(Weighting::HardRight), soft(0.1)] {
            let out = heads.run(&options.causal(Align::TopLeft).strict(), level).out;
            for (at, found) in out.iter().enumerate() {
                if let Some(partner) = partners[at / LENGTH][at % LENGTH] {
                    // Scores differ by 1 at least: at temperature 0.1 the rest weighs less than 1e-4.
                    assert_eq!(found.round(), partner as f32, "word {}, position {}", at / LENGTH, at % LENGTH);
                }
            }
        }
    });
}
