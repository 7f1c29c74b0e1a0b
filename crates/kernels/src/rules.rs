//! Rules of the rows of a sequence: what scores are multiplied with, what is added, and what becomes of outputs.

use std::ops::Range;

use regard_simd::math::LOG2_E;

use crate::mask::{Band, Matrix};
use crate::weighting::Functions;

/// A weighting and its functions at the kernel's level.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weigh<'a> {
    pub(crate) functions: &'static Functions,
    /// The weighting itself, of the type that `functions` was made for.
    pub(crate) data: *const (),
    pub(crate) _data: std::marker::PhantomData<&'a ()>,
}

/// The number that length-dependent factors of a row are made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Count {
    /// All valid keys of the sequence.
    AllKeys,
    /// The keys that the row sees.
    Visible,
    /// A constant, such as the length in training.
    Constant(f32),
}

/// What the temperature is multiplied with, row by row: `softmax(s / (temperature * schedule))`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Schedule {
    /// 1
    Constant,
    /// `1 / (a ln n)`: SSMax (scores times `a ln n`), and the temperature that makes soft attention hard.
    LogN {
        /// The factor `a`.
        factor: f32,
    },
}

/// The bias of sigmoid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shift {
    /// A constant; 0 for every other weighting.
    Constant(f32),
    /// `-ln n`
    NegLogN,
}

/// How the factors of a row come about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowRules {
    pub(crate) schedule: Schedule,
    pub(crate) count: Count,
    pub(crate) shift: Shift,
    /// Output factor: `coefficient / n^exponent`.
    pub(crate) coefficient: f32,
    pub(crate) exponent: f32,
}

impl RowRules {
    /// Whether some factor depends on `n`.
    fn depends_on_count(&self) -> bool {
        self.schedule != Schedule::Constant || self.shift == Shift::NegLogN || self.exponent != 0.0
    }

    /// Whether factors differ from row to row, apart from their temperatures.
    pub(crate) fn vary(&self) -> bool {
        self.count == Count::Visible && self.depends_on_count()
    }

    /// The factors of a row, in f64 inside as they are few. `keys` are all keys of the sequence, `visible` counts those that
    /// the row sees.
    ///
    /// A row that sees no key counts as one that sees one: its result is zero whatever the factor, and ln 0 would make
    /// it NaN.
    pub(crate) fn factors(&self, temperature: f32, keys: usize, visible: impl FnOnce() -> usize) -> RowFactors {
        let n = match self.count {
            Count::AllKeys => keys as f64,
            Count::Constant(n) => f64::from(n),
            Count::Visible if self.depends_on_count() => visible() as f64,
            Count::Visible => 1.0,
        };
        let n = n.max(1.0);
        let schedule = match self.schedule {
            Schedule::Constant => 1.0,
            Schedule::LogN { factor } => f64::from(factor) * n.ln(),
        };
        RowFactors {
            inverse_temperature: (schedule / f64::from(temperature)) as f32,
            shift: match self.shift {
                Shift::Constant(shift) => shift,
                Shift::NegLogN => -n.ln() as f32,
            },
            out: (f64::from(self.coefficient) * n.powf(-f64::from(self.exponent))) as f32,
        }
    }
}

/// The factors of one row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowFactors {
    /// 1 / temperature, schedule included.
    pub(crate) inverse_temperature: f32,
    pub(crate) shift: f32,
    pub(crate) out: f32,
}

/// What ends a row: the numbers that turn its state and sums into a result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ending {
    /// See [`crate::weighting::Block::gain`].
    pub gain: f32,
    /// The sink in units of log2, -inf for none.
    pub sink: f32,
    /// The factor of the output.
    pub out: f32,
}

/// See [`crate::weighting::Block::gain`]. `scale` is 1 if the scores have been scaled already.
pub(crate) fn gain(ordered: bool, scale: f32, inverse_temperature: f32) -> f32 {
    let gain = scale * inverse_temperature;
    // A gain of zero (scale 0, or ln 1) would turn masked scores of -inf into NaN; this one turns any finite score to zero
    // all the same. An infinite one (the smallest temperatures) would do so to the largest.
    if ordered { (gain.abs() * LOG2_E).clamp(f32::MIN_POSITIVE, f32::MAX) } else { gain }
}

/// A sink logit in units of log2.
pub(crate) fn sink_log2(sink: Option<f32>) -> f32 {
    sink.map_or(f32::NEG_INFINITY, |sink| (sink * LOG2_E).min(f32::MAX))
}

/// How many keys a row sees.
///
/// # Safety
/// `keep` covers the row and all keys.
pub(crate) unsafe fn count_visible(band: Band, keep: Option<&Matrix<u8>>, row: usize, keys: usize) -> usize {
    let seen: Range<usize> = band.visible(row, keys);
    match keep {
        None => seen.len(),
        // SAFETY: the caller's contract.
        Some(keep) => seen.filter(|key| unsafe { keep.get(row, *key) } != 0).count(),
    }
}
