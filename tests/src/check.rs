//! The comparison with the oracle, row by row.

use regard::reference::{self, Row};
use regard::{Dtype, Execution, Problem, Setup, Weighting};

use crate::tolerance::{KvHead, bound_in};
use crate::{Bound, Case, Output, Spec, output_rounding, run};

/// How close a result came.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Report {
    /// Largest difference from the oracle.
    pub error: f64,
    /// Largest difference as a part of what is allowed.
    pub used: f64,
    /// Rows compared.
    pub rows: usize,
}

impl Report {
    /// The worse of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { error: self.error.max(other.error), used: self.used.max(other.used), rows: self.rows + other.rows }
    }

    fn compare(&mut self, got: f32, wanted: f64, allowed: f64, what: &dyn Fn() -> String) {
        let got = f64::from(got);
        if wanted.is_nan() || wanted.is_infinite() {
            assert!(got == wanted || (got.is_nan() && wanted.is_nan()), "{got} instead of {wanted}: {}", what());
            return;
        }
        assert!(allowed.is_finite(), "no bound on the error of {wanted} (got {got}): {}", what());
        let error = (got - wanted).abs();
        assert!(
            error <= allowed,
            "{got:e} instead of {wanted:e}, which is {:.2} times what is allowed ({allowed:e}): {}",
            error / allowed,
            what()
        );
        self.error = self.error.max(error);
        if error > 0.0 {
            self.used = self.used.max(error / allowed);
        }
    }
}

/// Runs a case on the calling thread and compares every row with the oracle. See [`crate::bound`] for the tolerance.
pub fn check(case: &Case<'_>, setup: &Setup) -> Report {
    let problem = case.problem();
    compare(case, &problem, &run(&problem, setup, Execution::Serial))
}

/// Compares every row of a result with the oracle.
///
/// # Panics
/// If a row is further off than the tolerance, or if the oracle and the suites' own definition of masks, scores and weights
/// disagree.
pub fn compare(case: &Case<'_>, problem: &Problem<'_>, output: &Output) -> Report {
    let mut report = Report::default();
    case.agrees_with(problem.sequences());
    let columns = problem.shape().value_dim;
    let mut kv: Option<KvHead> = None;
    for row in case.rows() {
        let path = &output.paths[row[0]];
        let oracle = reference::row(problem, path.rounding, row);
        if kv.as_ref().is_none_or(|kv| !kv.is_of(case, row)) {
            kv = Some(KvHead::of(case, row));
        }
        let bound = bound_in(case, kv.as_ref().expect("just made"), &oracle, row, path);
        let place = || {
            let Spec { weighting, .. } = &case.spec;
            format!("{weighting:?}, {}, row {row:?}, {path:?}, {:?}", problem.shape(), case.spec)
        };
        agree(&oracle, &bound, &place);
        let index = case.row(row);
        let out = &output.out[index * columns..(index + 1) * columns];
        if case.spec.selects() && case.spec.has_terms() {
            selected(case, row, &bound, out, path.out, &place);
        } else {
            for (c, got) in out.iter().enumerate() {
                // Beyond the largest f16 lies infinity.
                let beyond = path.out == Dtype::F16 && oracle.out[c].abs() + bound.out[c] >= 65504.0;
                if beyond && f64::from(*got) == oracle.out[c].signum() * f64::INFINITY {
                    continue;
                }
                report.compare(*got, oracle.out[c], bound.out[c], &|| format!("column {c}: {}", place()));
            }
        }
        if let Some(lse) = &output.lse {
            report.compare(lse[index], oracle.lse, bound.lse, &|| format!("lse: {}", place()));
        }
        report.rows += 1;
    }
    report
}

/// The oracle of the library against the suites' own definitions.
fn agree(row: &Row, bound: &Bound, place: &dyn Fn() -> String) {
    assert_eq!(row.weights.len(), bound.scores.len(), "keys of {}", place());
    for (key, score) in bound.scores.iter().enumerate() {
        // A NaN score makes weights of hard attention NaN, of masked keys too, though they are not used.
        let weight = row.weights[key];
        assert!(score.is_some() || weight == 0.0 || weight.is_nan(), "masked key {key} has weight: {}", place());
        if let Some(weights) = &bound.weights
            && score.is_some()
        {
            let (own, error) = weights[key];
            let close = (own - weight).abs() <= 1e-6 * error + 1e-300;
            assert!(close || !own.is_finite(), "weight {key} is {weight} or {own}: {}", place());
        }
    }
}

/// Selection among rounded scores: the result belongs to keys whose scores cannot be told from the largest in f32.
fn selected(
    case: &Case<'_>,
    [sequence, head, _]: [usize; 3],
    bound: &Bound,
    out: &[f32],
    dtype: Dtype,
    place: &dyn Fn() -> String,
) {
    const MOST: usize = 12;
    let shape = case.shape(sequence);
    let kv_head = head / (shape.query_heads / shape.kv_heads);
    let sure = bound.scores.iter().flatten().fold(f64::NEG_INFINITY, |sure, (s, ds)| sure.max(s - ds));
    let may_win = |key: &usize| bound.scores[*key].is_some_and(|(s, ds)| s + ds >= sure);
    let candidates: Vec<usize> = (0..bound.scores.len()).filter(may_win).collect();
    assert!(candidates.len() <= MOST, "{} scores are too close to call: {}", candidates.len(), place());
    let values: Vec<_> = (0..bound.scores.len()).map(|key| case.value([sequence, kv_head, key])).collect();
    let value = |key: usize, c: usize| values[key][c];
    if candidates.is_empty() {
        assert!(out.iter().all(|x| *x == 0.0), "not zero where no key is seen: {}", place());
        return;
    }
    let average = matches!(case.spec.weighting, Weighting::AverageHard);
    let fits = |set: u32| {
        let chosen = || candidates.iter().enumerate().filter(|(i, _)| set >> i & 1 == 1).map(|(_, key)| *key);
        let ties = f64::from(set.count_ones());
        (0..out.len()).all(|c| {
            let mean = chosen().map(|key| value(key, c)).sum::<f64>() / ties;
            let sum = chosen().map(|key| value(key, c).abs()).sum::<f64>() / ties;
            let allowed = if ties == 1.0 { 0.0 } else { (ties + 2.0) * f64::from(f32::EPSILON) / 2.0 * sum };
            (f64::from(out[c]) - mean).abs() <= allowed + output_rounding(dtype, mean.abs() + allowed)
        })
    };
    let mut sets = (1_u32..1 << candidates.len()).filter(|set| average || set.count_ones() == 1);
    assert!(sets.any(fits), "no choice among keys {candidates:?} gives {out:?}: {}", place());
}
