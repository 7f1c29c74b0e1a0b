//! Feng et al., "Attention as an RNN", arXiv:2405.13956: with one query for all positions, causal attention is a
//! recurrence over states (m, c, a), whose merge is associative.

use regard::{Align, View, Weighting};
use regard_tests::{Random, SLOW};

use super::*;

const KEYS: usize = 57;
const COLUMNS: usize = 5;

/// The same query at every position.
fn constant_query(keys: usize) -> Heads {
    let heads = Heads::normal([1, 1, 1], [1, keys], [8, COLUMNS]);
    let q = Tensor::from_fn([1, 1, keys, 8], Layout::Bhsd, |[_, _, _, c]| heads.q.get([0, 0, 0, c]));
    Heads { q, ..heads }
}

/// m_k = max(m, s_k); c_k = c e^(m - m_k) + e^(s_k - m_k), a_k likewise with v_k; the output is a / c. Every prefix.
#[test]
fn recurrence_is_causal_attention() {
    let heads = constant_query(KEYS);
    // Identity attention has the scores as weights; they are the same for every row.
    let scores = heads.reference_row(&plain(Weighting::Identity), [0, 0, 0]).weights;
    let (mut m, mut c, mut a) = (f64::NEG_INFINITY, 0.0, [0.0; COLUMNS]);
    let mut want = Vec::new();
    for (k, score) in scores.into_iter().enumerate() {
        let new = m.max(score);
        let (old, fresh) = ((m - new).exp(), (score - new).exp());
        c = c * old + fresh;
        for (column, a) in a.iter_mut().enumerate() {
            *a = *a * old + fresh * f64::from(heads.v.get([0, 0, k, column]));
        }
        m = new;
        want.extend(a.map(|a| a / c));
    }
    each_level(|level| {
        let out = heads.run(&plain(Weighting::Softmax).causal(Align::TopLeft), level).out;
        assert_close(&out, &want, 2e-6, "every prefix");
    });
}

/// The scan of prefixes gives what causal attention with the query repeated gives, at every prefix.
#[test]
fn scan_is_causal_attention() {
    let heads = constant_query(if SLOW { 57 } else { 700 });
    let q: Vec<f32> = (0..8).map(|c| heads.q.get([0, 0, 0, c])).collect();
    each_level(|level| {
        let options = plain(Weighting::Softmax).isa(level.isa());
        let want = heads.run(&options.clone().causal(Align::TopLeft), level).out;
        let q = View::bhsd(&q, [1, 1, 1, 8]).unwrap();
        let found = regard::prefixes(&options, q, heads.k.view(), heads.v.view()).unwrap();
        let want: Vec<f64> = want.into_iter().map(f64::from).collect();
        assert_close(&found, &want, 4e-6, "every prefix");
    });
}

/// Appending keys and values after N gives the last rows of the whole, for every weighting whose n is not that of the
/// whole sequence: bit for bit if more than 16 are appended; fewer queries are computed by kernels that add up in
/// another order.
#[test]
fn append_equals_prefill() {
    let heads = Heads::normal([1, 2, 1], [KEYS, KEYS], [8, COLUMNS]);
    let largest = f64::from(heads.v.to_vec().iter().fold(0.0_f32, |most, x| most.max(x.abs())));
    for weighting in weightings() {
        let whole_options = plain(weighting.clone()).causal(Align::TopLeft).count(regard::Count::Visible);
        let step_options = plain(weighting.clone()).causal(Align::BottomRight).count(regard::Count::Visible);
        let size = |row: usize| {
            let weights = (0..2).flat_map(|head| heads.reference_row(&whole_options, [0, head, row]).weights);
            weights.map(f64::abs).sum::<f64>() * largest
        };
        each_level(|level| {
            let whole = heads.run(&whole_options, level);
            for (first, rows) in [(0, 17), (7, 20), (KEYS - 17, 17), (0, 1), (1, 1), (15, 1), (16, 3), (40, 1)] {
                let end = first + rows;
                let step = Heads { q: heads.q.rows(first, rows), k: heads.k.rows(0, end), v: heads.v.rows(0, end) };
                let step = step.run(&step_options, level);
                for (row, out) in step.out.chunks(COLUMNS).enumerate() {
                    let at = row / rows * KEYS + first + row % rows;
                    let wanted = &whole.out[at * COLUMNS..][..COLUMNS];
                    let what = format!("{} {}, row {at} of {first} + {rows}", level.isa(), weighting.name());
                    // Scores of 8 products to degree 8 at most, and a sum over the keys.
                    let tolerance = if rows > 16 { 0.0 } else { size(at % KEYS) * (KEYS + 128) as f64 * UNIT };
                    assert_close(out, &widened(wanted), tolerance, &what);
                    if let (Some(step), Some(whole)) = (&step.lse, &whole.lse) {
                        let tolerance = if rows > 16 { 0.0 } else { 4e-6 };
                        assert!((step[row] - whole[at]).abs() <= tolerance, "{what}");
                    }
                }
            }
        });
    }
}

/// Scores that rise by 1e4 at every step, and prefixes of masked keys: no NaN, and each row is its last value.
#[test]
fn steep_scores_and_blind_prefixes() {
    let n = 90;
    let mut random = Random::new(3);
    let values = random.normals(n);
    let steep = Heads::one([n, n], |_| [1e4], |j| [j as f32], |j| [values[j]]);
    let blind = 50;
    let keep: Vec<bool> = (0..n).map(|j| j >= blind).collect();
    each_level(|level| {
        let options = plain(Weighting::Softmax).causal(Align::TopLeft);
        assert_equal(&steep.run(&options, level).out, &values, "steep");
        let mask = View::bhsd(&keep, [1, 1, 1, n]).expect("a row");
        let out = steep.run(&options.keep_mask(mask), level);
        assert!(out.out[..blind].iter().all(|x| *x == 0.0));
        assert_equal(&out.out[blind..], &values[blind..], "after the blind prefix");
        let lse = out.lse.expect("softmax has one");
        assert!(lse[..blind].iter().all(|x| *x == f32::NEG_INFINITY));
    });
}

/// Outputs and log-sum-exp of two or three key ranges merge to those of the whole: o = sum e^(lse_p - lse) o_p. With
/// cuts anywhere, empty ranges included. Pointwise weightings add.
#[test]
fn ranges_merge() {
    let keys = 130;
    let heads = Heads::normal([1, 1, 1], [11, keys], [8, COLUMNS]);
    let part = |range: std::ops::Range<usize>| Heads {
        k: heads.k.rows(range.start, range.len()),
        v: heads.v.rows(range.start, range.len()),
        ..heads.clone()
    };
    for cuts in [[0, 64], [1, 1], [7, 100], [16, 130], [129, 130], [43, 86]] {
        let parts = [part(0..cuts[0]), part(cuts[0]..cuts[1]), part(cuts[1]..keys)];
        each_level(|level| {
            let run = |options: Attention<'static>| {
                (parts.each_ref().map(|part| part.run(&options, level)), heads.run(&options, level))
            };
            let (parts, whole) = run(plain(Weighting::Softmax));
            let lse = parts.each_ref().map(|part| widened(part.lse.as_ref().expect("softmax has one")));
            let total = widened(whole.lse.as_ref().expect("softmax has one"));
            for (row, total) in total.iter().enumerate() {
                let merged = lse.iter().map(|lse| lse[row].exp()).sum::<f64>().ln();
                assert!((merged - total).abs() <= 2e-6 * total.abs().max(1.0), "{merged} {total}");
            }
            let merged: Vec<f64> = (0..whole.out.len())
                .map(|i| {
                    (0..3).map(|p| (lse[p][i / COLUMNS] - total[i / COLUMNS]).exp() * f64::from(parts[p].out[i])).sum()
                })
                .collect();
            assert_close(&whole.out, &merged, 4e-6, "softmax");
            for weighting in
                [Weighting::Relu, Weighting::ReluSquared, Weighting::Identity, Weighting::Polynomial { degree: 3 }]
            {
                let (parts, whole) = run(plain(weighting));
                let sum: Vec<f64> =
                    (0..whole.out.len()).map(|i| parts.iter().map(|part| f64::from(part.out[i])).sum()).collect();
                let size = sum.iter().fold(1.0_f64, |most, x| most.max(x.abs()));
                assert_close(&whole.out, &sum, size * 1e-5, "a pointwise weighting");
            }
        });
    }
}

/// Merge laws of selection: left takes a if max_a >= max_b, right b if max_b >= max_a, average adds counts and sums.
#[test]
fn selections_merge() {
    let mut random = Random::new(4);
    for _ in 0..30 {
        let scores: Vec<f32> = (0..40).map(|_| random.integer(3)).collect();
        let cut = 1 + random.below(39);
        let max = |scores: &[f32]| scores.iter().copied().fold(f32::MIN, f32::max);
        let (a, b) = scores.split_at(cut);
        let count = |scores: &[f32]| scores.iter().filter(|s| **s == max(scores)).count() as f32;
        each_level(|level| {
            let run = |scores: &[f32], weighting| Heads::scores(scores).run(&plain(weighting), level).out;
            // Weights of a range, among those of all keys.
            let spread = |weights: Vec<f32>, first: usize| {
                let mut all = vec![0.0; 40];
                all[first..first + weights.len()].copy_from_slice(&weights);
                all
            };
            let left = if max(a) >= max(b) {
                spread(run(a, Weighting::HardLeft), 0)
            } else {
                spread(run(b, Weighting::HardLeft), cut)
            };
            assert_eq!(run(&scores, Weighting::HardLeft), left);
            let right = if max(b) >= max(a) {
                spread(run(b, Weighting::HardRight), cut)
            } else {
                spread(run(a, Weighting::HardRight), 0)
            };
            assert_eq!(run(&scores, Weighting::HardRight), right);
            let (ca, cb) =
                (if max(a) >= max(b) { count(a) } else { 0.0 }, if max(b) >= max(a) { count(b) } else { 0.0 });
            let [wa, wb] = [spread(run(a, Weighting::AverageHard), 0), spread(run(b, Weighting::AverageHard), cut)];
            let average: Vec<f64> = wa.iter().zip(&wb).map(|(a, b)| f64::from((a * ca + b * cb) / (ca + cb))).collect();
            assert_close(&run(&scores, Weighting::AverageHard), &average, 1e-7, "average");
        });
    }
}
