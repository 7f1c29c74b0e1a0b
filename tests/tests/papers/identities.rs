//! Identities between and within the kernels that hold for every weighting: cheap, and sensitive to
//! masks, tails and ties.

use regard::{Align, SigmoidBias, Weighting};
use regard_tests::Random;

use super::*;

/// The largest `sum |w v|` of a row: what roundings of a sum are relative to.
fn size(heads: &Heads, options: &Attention<'_>) -> f64 {
    let [batch, query_heads, queries, _] = heads.q.shape();
    let v = heads.v.to_vec().iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    (0..batch * query_heads * queries)
        .map(|row| [row / queries / query_heads, row / queries % query_heads, row % queries])
        .map(|row| heads.reference_row(options, row).weights.iter().map(|w| w.abs()).sum::<f64>())
        .fold(0.0, f64::max)
        * f64::from(v)
}

fn shuffled(n: usize, seed: u64) -> Vec<usize> {
    let mut random = Random::new(seed);
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, random.below(i + 1));
    }
    order
}

/// V = 1 gives row sums: 1 for normalised weightings and selections, less than 1 with a sink, and whatever the weights
/// add up to for the others.
#[test]
fn values_of_one_give_row_sums() {
    let mut heads = Heads::normal([1, 2, 1], [13, 75], [8, 3]);
    heads.v = Tensor::filled([1, 1, 75, 3], Layout::Bhsd, 1.0);
    for weighting in weightings() {
        let options = plain(weighting.clone()).scale(0.3);
        let normalised = matches!(
            weighting,
            Weighting::Softmax
                | Weighting::HardLeft
                | Weighting::HardRight
                | Weighting::AverageHard
                | Weighting::EvenPower { .. }
                | Weighting::Taylor2
        );
        let want: Vec<f64> = (0..2 * 13)
            .flat_map(|row| [heads.reference_row(&options, [0, row / 13, row % 13]).weights.iter().sum::<f64>(); 3])
            .collect();
        let tolerance = size(&heads, &options) * 75.0 * UNIT * 4.0;
        each_level(|level| {
            let sums = heads.run(&options, level).out;
            assert_close(&sums, &want, tolerance, weighting.name());
            if normalised {
                assert_close(&sums, &[1.0; 78], 75.0 * UNIT, weighting.name());
            }
            if let Weighting::Softmax = weighting {
                let sums = heads.run(&options.clone().sinks(&[0.5, -2.0]), level).out;
                assert!(sums.iter().all(|sum| *sum > 0.0 && *sum < 1.0));
            }
        });
    }
}

/// Linearity in V: powers of two scale the output bit for bit, and the output of a sum is the sum of the outputs.
#[test]
fn outputs_are_linear_in_values() {
    let heads = Heads::normal([1, 2, 2], [17, 60], [8, 5]);
    let mut random = Random::new(7);
    let other = Tensor::integers([1, 2, 60, 5], Layout::Bhsd, 2, &mut random);
    let with = |v: Tensor| Heads { v, ..heads.clone() };
    let sum = Tensor::from_fn([1, 2, 60, 5], Layout::Bhsd, |index| heads.v.get(index) + other.get(index));
    for weighting in weightings() {
        let options = plain(weighting.clone()).scale(0.3).causal(Align::BottomRight);
        let tolerance = (size(&heads, &options) + size(&with(other.clone()), &options)) * 60.0 * UNIT;
        each_level(|level| {
            let out = heads.run(&options, level).out;
            let eighth: Vec<f32> = out.iter().map(|x| x * -0.125).collect();
            assert_equal(&with(scaled(&heads.v, -0.125)).run(&options, level).out, &eighth, weighting.name());
            let b = with(other.clone()).run(&options, level).out;
            let want: Vec<f64> = out.iter().zip(&b).map(|(a, b)| f64::from(*a) + f64::from(*b)).collect();
            assert_close(&with(sum.clone()).run(&options, level).out, &want, tolerance, weighting.name());
        });
    }
}

/// Without a mask the order of the keys does not matter, up to the order of sums: a score is the same bits wherever its
/// key stands. Rows of selections that have one winner are the same bits too.
#[test]
fn keys_may_be_permuted() {
    for keys in [5, 33, 150] {
        let heads = Heads::normal([1, 2, 1], [11, keys], [8, 5]);
        let permuted = heads.reordered(&shuffled(keys, 1));
        for weighting in weightings() {
            let options = plain(weighting.clone()).scale(0.3);
            let tolerance = size(&heads, &options) * keys as f64 * 2.0 * UNIT;
            each_level(|level| {
                let (out, other) = (heads.run(&options, level).out, permuted.run(&options, level).out);
                assert_close(&other, &widened(&out), tolerance, weighting.name());
                if weighting.selects() {
                    assert_equal(&other, &out, weighting.name());
                }
            });
        }
    }
}

/// Under reversal of the keys, leftmost becomes rightmost; on scores full of ties.
#[test]
fn reversal_swaps_left_and_right() {
    let mut random = Random::new(2);
    for keys in [1, 4, 37, 200] {
        let mut heads = Heads::normal([1, 1, 1], [19, keys], [3, 5]);
        heads.q = Tensor::integers([1, 1, 19, 3], Layout::Bhsd, 1, &mut random);
        heads.k = Tensor::integers([1, 1, keys, 3], Layout::Bhsd, 1, &mut random);
        let reversed = heads.reordered(&(0..keys).rev().collect::<Vec<_>>());
        each_level(|level| {
            let run = |heads: &Heads, weighting| heads.run(&plain(weighting), level).out;
            assert_eq!(run(&heads, Weighting::HardLeft), run(&reversed, Weighting::HardRight));
            assert_eq!(run(&heads, Weighting::HardRight), run(&reversed, Weighting::HardLeft));
            let (average, other) = (run(&heads, Weighting::AverageHard), run(&reversed, Weighting::AverageHard));
            assert_close(&other, &widened(&average), 5.0 * keys as f64 * UNIT, "average");
        });
    }
}

/// Copies of one key tie wherever they stand: average-hard attention over them is the mean of their values, leftmost
/// the first, rightmost the last.
#[test]
fn equal_keys_tie_everywhere() {
    let keys = 140;
    let base = Heads::normal([1, 1, 1], [9, keys], [24, 5]);
    let k = Tensor::from_fn([1, 1, keys, 24], Layout::Bhsd, |[_, _, _, c]| base.k.get([0, 0, 0, c]));
    let heads = Heads { k, ..base };
    let value = |j: usize, c: usize| f64::from(heads.v.get([0, 0, j, c]));
    let mean: Vec<f64> = (0..45).map(|i| (0..keys).map(|j| value(j, i % 5)).sum::<f64>() / keys as f64).collect();
    each_level(|level| {
        let run = |weighting| heads.run(&Attention::new(weighting), level).out;
        assert_close(&run(Weighting::AverageHard), &mean, 1e-6, "all tie");
        assert_close(&run(Weighting::Softmax), &mean, 1e-6, "softmax is uniform");
        let at = |j: usize| (0..45).map(|i| value(j, i % 5)).collect::<Vec<_>>();
        assert_close(&run(Weighting::HardLeft), &at(0), 0.0, "the first");
        assert_close(&run(Weighting::HardRight), &at(keys - 1), 0.0, "the last");
    });
}

/// Causality, bit for bit: row i does not change with k_j and v_j for j > i, whatever they become.
#[test]
fn the_future_does_not_leak() {
    let n = 70;
    let heads = Heads::normal([1, 2, 1], [n, n], [8, 5]);
    for weighting in weightings() {
        for (options, strict) in [(plain(weighting.clone()), 0), (plain(weighting.clone()).strict(), 1)] {
            let options = options.causal(Align::TopLeft);
            each_level(|level| {
                let out = heads.run(&options, level).out;
                for (first, change) in [(1, 7.5), (33, f32::NAN), (64, f32::INFINITY), (n - 1, -1e30)] {
                    let mut other = heads.clone();
                    for j in first..n {
                        other.k.fill_row([0, 0, j], change);
                        other.v.fill_row([0, 0, j], change);
                    }
                    let changed = other.run(&options, level).out;
                    for head in 0..2 {
                        // Row i sees keys below i + 1, or below i if the mask is strict.
                        let rows = head * n * 5..(head * n + first + strict) * 5;
                        let what = format!("{} {}, keys from {first}", level.isa(), weighting.name());
                        assert_equal(&changed[rows.clone()], &out[rows], &what);
                    }
                }
            });
        }
    }
}

/// Grouped-query attention is attention over repeated KV heads: bit for bit, but for up to 16 queries, where the order
/// of sums depends on how many rows share a load of keys.
#[test]
fn groups_share_keys_and_values() {
    for queries in [3, 9, 17, 25] {
        let heads = Heads::normal([2, 6, 2], [queries, 50], [8, 5]);
        let repeat = |tensor: &Tensor| {
            let [batch, _, rows, columns] = tensor.shape();
            Tensor::from_fn([batch, 6, rows, columns], Layout::Bhsd, |[b, h, r, c]| tensor.get([b, h / 3, r, c]))
        };
        let repeated = Heads { q: heads.q.clone(), k: repeat(&heads.k), v: repeat(&heads.v) };
        for weighting in weightings() {
            let options = plain(weighting.clone()).scale(0.3).causal(Align::BottomRight);
            let tolerance = size(&heads, &options) * 50.0 * UNIT;
            each_level(|level| {
                let (out, wanted) = (heads.run(&options, level), repeated.run(&options, level));
                if queries > 16 {
                    out.assert_same(&wanted, weighting.name());
                } else {
                    assert_close(&out.out, &widened(&wanted.out), tolerance, weighting.name());
                }
            });
        }
    }
}

/// Widths that fill no vector, d_v != d, no key, one key, one query: against the definition.
#[test]
fn odd_sizes() {
    for [queries, keys, d, d_v] in
        [[1, 1, 1, 1], [1, 130, 64, 3], [3, 0, 5, 4], [17, 1, 3, 33], [5, 19, 67, 1], [33, 65, 1, 20]]
    {
        let heads = Heads::normal([1, 1, 1], [queries, keys], [d, d_v]);
        for weighting in weightings() {
            let options = plain(weighting.clone()).scale(0.5 / (d as f32).sqrt());
            let tolerance = size(&heads, &options) * (keys + 16 * d) as f64 * 4.0 * UNIT + 1e-7;
            each_level(|level| {
                let want = heads.reference(&options, level.isa());
                let what = format!("{} {} {queries} x {keys}, {d}:{d_v}", level.isa(), weighting.name());
                assert_close(&heads.run(&options, level).out, &want, tolerance, &what);
            });
        }
    }
}

/// What each family does not see: softmax and selections a constant added to a row of scores (here a key column that is
/// the same for all), selections any positive scale; sigmoid, ReLU and polynomials see both.
#[test]
fn invariances_tell_the_families_apart() {
    let mut random = Random::new(3);
    let integers = |shape, random: &mut Random| Tensor::integers(shape, Layout::Bhsd, 3, random);
    let heads = Heads {
        q: integers([1, 1, 10, 4], &mut random),
        k: integers([1, 1, 40, 4], &mut random),
        v: Tensor::normal([1, 1, 40, 5], Layout::Bhsd, &mut random),
    };
    let extended = |tensor: &Tensor, last: f32| {
        let [_, _, rows, columns] = tensor.shape();
        Tensor::from_fn([1, 1, rows, columns + 1], Layout::Bhsd, |[b, h, r, c]| {
            if c == columns { last } else { tensor.get([b, h, r, c]) }
        })
    };
    let shifted = Heads { q: extended(&heads.q, 1.0), k: extended(&heads.k, 6.0), v: heads.v.clone() };
    each_level(|level| {
        let run = |heads: &Heads, weighting: &Weighting| heads.run(&plain(weighting.clone()).scale(0.25), level).out;
        for weighting in [Weighting::HardLeft, Weighting::HardRight, Weighting::AverageHard] {
            assert_eq!(run(&heads, &weighting), run(&shifted, &weighting));
            assert_eq!(run(&heads, &weighting), run(&heads.scaled_queries(5.0), &weighting));
        }
        assert_close(&run(&shifted, &Weighting::Softmax), &widened(&run(&heads, &Weighting::Softmax)), 1e-6, "shift");
        for weighting in [
            Weighting::Sigmoid { bias: SigmoidBias::Constant(0.0) },
            Weighting::Relu,
            Weighting::Polynomial { degree: 2 },
            Weighting::EvenPower { degree: 2 },
            Weighting::Taylor2,
        ] {
            assert!(l1(&run(&heads, &weighting), &run(&shifted, &weighting)) > 0.1, "{}", weighting.name());
        }
    });
}
