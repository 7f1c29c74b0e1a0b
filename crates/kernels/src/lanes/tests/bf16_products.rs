//! Products of pairs of bf16.

use regard_simd::{Level, bf16};

use super::storage::{Stored, Values, Where, random};
use super::{BANDS, Case, KEYS, QUERIES, WEIGHTINGS, places};
use crate::mask::Band;
use crate::tensor::Dtype;
use crate::weighting::{AnyWeighting, Hard, Map, Polynomial, Side, Sigmoid, Softmax};

#[test]
fn elements_of_every_place_give_the_same_bits() {
    let elsewhere = [Where::Rows { padding: 1 }, Where::Rows { padding: 2 }];
    for (d, d_v, keys) in [(33, 19, KEYS), (64, 96, KEYS), (2, 1, KEYS + 1), (1, 65, 3)] {
        let (q, k, v) = (random(1, QUERIES, d), random(2, keys, d), random(3, keys, d_v));
        let q = Stored::new(Dtype::Bf16, &q, Where::Rows { padding: 0 });
        let [plain_k, plain_v] = [&k, &v].map(|values| Stored::new(Dtype::Bf16, values, Where::Rows { padding: 0 }));
        for (weighting, band) in WEIGHTINGS.into_iter().flat_map(|w| BANDS.map(|band| (w, band))) {
            for level in Level::available() {
                let case = Case { band, ..Case::new(&q, &plain_k, &plain_v, weighting) };
                let expected = case.run(*level, true);
                for (place, copy) in places().into_iter().chain(elsewhere).flat_map(|p| [(p, false), (p, true)]) {
                    let [k, v] = [&k, &v].map(|values| Stored::new(Dtype::Bf16, values, place));
                    let results = Case { k: &k, v: &v, copy, ..case }.run(*level, true);
                    assert_eq!(results, expected, "{place:?} copy {copy} {weighting:?} {band:?} {level:?} d {d}");
                }
            }
        }
    }
}

#[test]
fn queries_of_every_type_are_rounded() {
    for d in [5, 32, 70] {
        let (q, k, v) = (random(4, QUERIES, d), random(5, KEYS, d), random(6, KEYS, 24));
        let [k, v] = [&k, &v].map(|values| Stored::new(Dtype::Bf16, values, places()[0]));
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            for padding in [0, 1, 2] {
                let q = Stored::new(dtype, &q, Where::Rows { padding });
                let rounded = Stored::new(Dtype::Bf16, &q.values(), Where::Rows { padding: 0 });
                for level in Level::available() {
                    let case = Case::new(&rounded, &k, &v, &Softmax);
                    assert_eq!(Case { q: &q, ..case }.run(*level, true), case.run(*level, true), "{dtype} {level:?}");
                }
            }
        }
    }
}

/// The instruction and what it is spelt out as.
#[cfg(target_arch = "x86_64")]
#[test]
fn the_extension_gives_the_same_bits() {
    use super::run_tile;

    let (Some(s), Ok(level)) = (regard_simd::Avx512Bf16::detect(), Level::of(regard_simd::Isa::Avx512)) else { return };
    for (d, d_v) in [(33, 19), (64, 96)] {
        let [q, k, v] = [(7, QUERIES, d), (8, KEYS, d), (9, KEYS, d_v)].map(|(seed, rows, columns)| {
            Stored::new(Dtype::Bf16, &random(seed, rows, columns), Where::Rows { padding: 0 })
        });
        for (weighting, band) in WEIGHTINGS.into_iter().flat_map(|w| BANDS.map(|band| (w, band))) {
            let case = Case { band, ..Case::new(&q, &k, &v, weighting) };
            let expected = case.run(level, true);
            assert_eq!(case.run_with(level, |head| run_tile::<_, 2, 8, 8, true>(s, head)), expected, "{weighting:?}");
            assert_eq!(case.run_with(level, |head| run_tile::<_, 1, 16, 16, true>(s, head)), expected, "{weighting:?}");
        }
    }
}

#[test]
fn the_largest_score_wins() {
    // Small integers: scores are exact, and tie.
    let [q, k] = [(10, QUERIES), (11, KEYS)].map(|(seed, rows)| random(seed, rows, 6).map(f32::round));
    let v = random(12, KEYS, 9);
    let [q, k, v] = [&q, &k, &v].map(|values| Stored::new(Dtype::Bf16, values, places()[0]));
    for side in [Side::Left, Side::Right] {
        for level in Level::available() {
            let hard = Hard { side };
            let case = Case { out: Dtype::Bf16, ..Case::new(&q, &k, &v, &hard) };
            let out = case.run(*level, true).out;
            let expected: Vec<u32> =
                exact(&case, false).into_iter().map(|x| bf16::from_f64(x).to_bits().into()).collect();
            assert_eq!(out, expected, "{side:?} {level:?}");
        }
    }
}

/// The output by the definition, in f64; with weights rounded to bf16, if so asked.
fn exact(case: &Case<'_>, round: bool) -> Vec<f64> {
    let (q, k, v) = (case.q.values(), case.k.values(), case.v.values());
    let mut out = Vec::new();
    for row in 0..q.rows {
        let dot = |key: usize| -> f64 {
            let products = q.row(row).iter().zip(k.row(key)).map(|(a, b)| f64::from(*a) * f64::from(*b));
            products.sum::<f64>() * f64::from(case.scale)
        };
        let scores: Vec<f64> = (0..k.rows).map(dot).collect();
        let seen = case.band.visible(row, k.rows);
        let visible: Vec<bool> = (0..k.rows).map(|key| seen.contains(&key)).collect();
        let mut weights = vec![0.0; k.rows];
        case.weighting.weights_f64(&scores, &visible, Some(0.5), &mut weights);
        if round {
            weights.iter_mut().for_each(|weight| *weight = bf16::from_f64(*weight).to_f64());
        }
        out.extend((0..v.columns).map(|c| {
            let products = weights.iter().enumerate().map(|(key, weight)| weight * f64::from(v.row(key)[c]));
            products.sum::<f64>()
        }));
    }
    out
}

/// The error of whoever computes exactly and rounds the finished weights once is what we may make twice.
#[test]
fn errors_are_those_of_rounded_weights() {
    let weightings: [&dyn AnyWeighting; 3] = [&Softmax, &Map(Sigmoid), &Map(Polynomial::<3>)];
    let bands = [Band::FULL, Band { lower: None, upper: Some(1) }];
    let shift = |values: Values, by: f32| values.map(|x| x + by);
    for (keys, mean) in [(9, 0.0), (9, 1.0), (250, 0.0), (250, 1.0), (1500, 0.0), (1500, 1.0)] {
        let q = Stored::new(Dtype::Bf16, &random(13, 64, 64), places()[0]);
        let k = Stored::new(Dtype::Bf16, &random(14, keys, 64), places()[0]);
        let v = Stored::new(Dtype::Bf16, &shift(random(15, keys, 16), mean), places()[0]);
        for (weighting, band) in weightings.into_iter().flat_map(|w| bands.map(|band| (w, band))) {
            let case = Case { band, key_block: 192, scale: 0.125, ..Case::new(&q, &k, &v, weighting) };
            let (reference, naive) = (exact(&case, false), exact(&case, true));
            let largest = |out: &[f64]| out.iter().zip(&reference).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
            let allowed = 2.0 * largest(&naive) + 1e-5 * reference.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
            for level in Level::available() {
                let out: Vec<f64> = case.floats(*level, true).into_iter().map(f64::from).collect();
                let error = largest(&out);
                println!("{keys:5} {mean} {weighting:?} {band:?} {level:?}: {error:.1e} of {allowed:.1e}");
                assert!(error <= allowed, "{keys} {mean} {weighting:?} {band:?} {level:?}: {error:e} > {allowed:e}");
            }
        }
    }
}
