//! Results against the definition in f64.

use regard::{Isa, Problem, View, reference};

/// How far outputs are from the definition.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Deviation {
    /// The largest absolute error; infinite if an output is NaN where the definition is not.
    pub(crate) max_abs_error: f64,
    /// The largest error over the magnitude that the output is made of, the sum of `|w_j| |v_j|`.
    pub(crate) max_relative_error: f64,
}

impl Deviation {
    /// More than rounding explains, relative to the magnitude of an output. Scores of several hundred, as real models
    /// have them, leave relative errors of some 1e-5 in an exponential; a wrong tile is off by far more.
    const MOST: f64 = 1e-4;

    /// Whether rounding explains it.
    pub(crate) fn is_rounding(&self) -> bool {
        self.max_relative_error <= Self::MOST
    }

    /// The larger of each.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            max_abs_error: self.max_abs_error.max(other.max_abs_error),
            max_relative_error: self.max_relative_error.max(other.max_relative_error),
        }
    }
}

/// Compares one row of `out` with the reference, by `[batch, query head, query]`. `v` is the problem's.
pub(crate) fn row(
    problem: &Problem<'_>,
    isa: Isa,
    v: View<'_, f32>,
    out: View<'_, f32>,
    [batch, head, query]: [usize; 3],
) -> Deviation {
    let expected = reference::row(problem, isa, [batch, head, query]);
    let shape = problem.shape();
    let kv_head = head / (shape.query_heads / shape.kv_heads);
    let mut deviation = Deviation::default();
    for (column, expected_out) in expected.out.iter().enumerate() {
        let found = f64::from(*out.get([batch, head, query, column]));
        let weighed = expected.weights.iter().enumerate().filter(|(_, weight)| **weight != 0.0);
        let terms = weighed.map(|(key, weight)| (weight * f64::from(*v.get([batch, kv_head, key, column]))).abs());
        let magnitude: f64 = terms.sum();
        let error = match (found - expected_out).abs() {
            error if error.is_nan() => f64::INFINITY,
            error => error,
        };
        let relative = if error == 0.0 { 0.0 } else { error / magnitude };
        deviation = deviation.or(Deviation { max_abs_error: error, max_relative_error: relative });
    }
    deviation
}
