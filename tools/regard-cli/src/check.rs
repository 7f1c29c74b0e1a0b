//! Results against the definition in f64.

use regard::{Dtype, Plan, Problem, Tensor, reference};
use regard_tuner::measure::Arithmetic;

/// How far outputs are from the definition.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Deviation {
    /// The largest absolute error; infinite if an output is NaN where the definition is not.
    pub(crate) max_abs_error: f64,
    /// The largest error over the magnitude that the output is made of, the sum of `|w_j| |v_j|`.
    pub(crate) max_relative_error: f64,
    /// The largest error over what rounding explains.
    excess: f64,
}

impl Deviation {
    /// Whether rounding explains it.
    pub(crate) fn is_rounding(&self) -> bool {
        self.excess <= 1.0
    }

    /// The larger of each.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            max_abs_error: self.max_abs_error.max(other.max_abs_error),
            max_relative_error: self.max_relative_error.max(other.max_relative_error),
            excess: self.excess.max(other.excess),
        }
    }
}

/// The error that rounding explains.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Tolerance {
    /// Over the magnitude that an output is made of.
    terms: f64,
    /// Of a weight times the scale of its value, over the largest such.
    weights: f64,
    /// Over the output.
    output: f64,
    /// Of outputs however small.
    least: f64,
    /// The largest number that an output can be.
    most: f64,
}

impl Tolerance {
    /// Of arithmetic in f32. Scores of several hundred, as real models have them, leave relative errors of some 1e-5 in an
    /// exponential; a wrong tile is off by far more.
    const ARITHMETIC: f64 = 1e-4;

    /// The same where queries of int8 keys are rounded to whole multiples of 1/65278 of their largest element: what five standard
    /// deviations of a score of standard normal rows (1.6e-4) change weights and their sum by.
    const FIXED: f64 = 5e-4;

    /// Of a weight that is rounded to a whole multiple of 1/32639 of the largest one.
    const FIXED_WEIGHT: f64 = 0.5 / 32639.0;

    /// Of a number that was rounded to the nearest bf16: half of the last of its 8 bits, which is 2^-7 of the first.
    const BF16: f64 = 1.0 / 256.0;

    /// The same of f16, which has 11 bits.
    const F16: f64 = 1.0 / 2048.0;

    /// Of outputs of this type, by a kernel of this arithmetic. Elements are widened without error, so that their types do not count.
    ///
    /// A kernel that multiplies bf16 rounds each weight to it before it meets V; products and sums stay f32. An output is then off by
    /// the rounding of every one of its terms at most. One that multiplies integers rounds queries and weights to fixed point.
    pub(crate) fn new(arithmetic: Arithmetic, out: Dtype) -> Self {
        let (terms, weights) = match arithmetic {
            Arithmetic::F32 => (Self::ARITHMETIC, 0.0),
            Arithmetic::Bf16Dots | Arithmetic::Bf16Tiles => (Self::ARITHMETIC + Self::BF16, 0.0),
            Arithmetic::Int16Dots | Arithmetic::Int8Tiles => (Self::FIXED, Self::FIXED_WEIGHT),
        };
        // Below the normal numbers of f16 the distance of neighbours is 2^-24; those of bf16 end where those of f32 do.
        let (output, least, most) = match out {
            Dtype::F16 => (Self::F16, (-25.0_f64).exp2(), 65504.0),
            Dtype::Bf16 => (Self::BF16, f64::from(f32::MIN_POSITIVE), f64::from(f32::MAX)),
            _ => (0.0, 0.0, f64::from(f32::MAX)),
        };
        Self { terms, weights, output, least, most }
    }

    fn allows(&self, made_of: Magnitude, expected: f64) -> f64 {
        self.terms * made_of.terms + self.weights * made_of.steps + self.output * expected.abs() + self.least
    }
}

/// What an output is made of.
#[derive(Clone, Copy, Debug, Default)]
struct Magnitude {
    /// The sum of `|w_j| |v_j|`.
    terms: f64,
    /// The largest weight times the scale of its value, times the sum of `|v_j|` over their scales.
    steps: f64,
}

/// What results are compared with.
pub(crate) struct Reference<'a> {
    pub(crate) problem: &'a Problem<'a>,
    pub(crate) plan: &'a Plan,
    /// The problem's.
    pub(crate) v: Tensor<'a>,
    /// Batch entry and row in `v` of a key of a sequence.
    pub(crate) place: &'a (dyn Fn(usize, usize) -> [usize; 2] + Sync),
    pub(crate) tolerance: Tolerance,
}

impl Reference<'_> {
    /// Compares one row of `out`, by `[sequence, query head, query of the sequence]`.
    pub(crate) fn row(&self, out: Tensor<'_>, [index, head, query]: [usize; 3]) -> Deviation {
        let (problem, shape) = (self.problem, self.problem.shape());
        let sequence = &problem.sequences()[index];
        let expected = reference::row(problem, self.plan.rounding(sequence), [index, head, query]);
        let kv_head = head / (shape.query_heads / shape.kv_heads);
        let mut magnitudes = vec![Magnitude::default(); shape.value_dim];
        let mut largest = 0.0_f64;
        for (key, weight) in expected.weights.iter().enumerate().filter(|(_, weight)| **weight != 0.0) {
            let [batch, row] = (self.place)(index, key);
            let scale = match &self.v {
                Tensor::Int8(v) => f64::from(*v.scales.get([batch, kv_head, row, 0])),
                _ => 1.0,
            };
            largest = largest.max((weight * scale).abs());
            for (column, magnitude) in magnitudes.iter_mut().enumerate() {
                let value = f64::from(self.v.get([batch, kv_head, row, column])).abs();
                magnitude.terms += weight.abs() * value;
                magnitude.steps += if value == 0.0 { 0.0 } else { value / scale };
            }
        }
        magnitudes.iter_mut().for_each(|magnitude| magnitude.steps *= largest);
        let columns = expected.out.iter().zip(&magnitudes).enumerate();
        let deviation = |(column, (expected, magnitude)): (usize, (&f64, &Magnitude))| {
            let found = out.get([sequence.batch, head, sequence.first_query + query, column]);
            self.element(f64::from(found), *expected, *magnitude)
        };
        columns.map(deviation).fold(Deviation::default(), Deviation::or)
    }

    fn element(&self, found: f64, expected: f64, made_of: Magnitude) -> Deviation {
        let too_large = found.is_infinite() && expected.abs() > self.tolerance.most && found * expected > 0.0;
        if found == expected || too_large {
            return Deviation::default();
        }
        let error = match (found - expected).abs() {
            error if error.is_nan() => f64::INFINITY,
            error => error,
        };
        let excess = error / self.tolerance.allows(made_of, expected);
        Deviation { max_abs_error: error, max_relative_error: error / made_of.terms, excess }
    }
}

#[cfg(test)]
mod tests {
    use regard::{bf16, f16};

    use super::*;

    #[test]
    fn roundings_are_within_their_bounds() {
        let of = |out| Tolerance { terms: 0.0, ..Tolerance::new(Arithmetic::F32, out) };
        let [half, brain] = [Dtype::F16, Dtype::Bf16].map(of);
        let mut worst = [0.0_f64; 2];
        for i in 0..4000 {
            let x = (1.0 + f64::from(i) / 2000.0) * (f64::from(i % 40) - 25.0).exp2();
            let errors = [f64::from(f16::from_f64(x)) - x, f64::from(bf16::from_f64(x)) - x];
            for ((worst, tolerance), error) in worst.iter_mut().zip([half, brain]).zip(errors) {
                *worst = worst.max(error.abs() / tolerance.allows(Magnitude::default(), x));
            }
        }
        assert!(worst.iter().all(|worst| (0.9..=1.0).contains(worst)), "{worst:?}");
        let made_of = |terms, steps| Magnitude { terms, steps };
        let allowed = |arithmetic, made_of| Tolerance::new(arithmetic, Dtype::F32).allows(made_of, 5.0);
        assert_eq!(allowed(Arithmetic::F32, made_of(2.0, 7.0)), 2e-4);
        assert!(allowed(Arithmetic::Bf16Dots, made_of(1.0, 7.0)) > 1.0 / 256.0);
        assert_eq!(allowed(Arithmetic::Int8Tiles, made_of(2.0, 65278.0)), 1.001);
    }
}
