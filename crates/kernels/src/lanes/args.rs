//! What one call of a lanes kernel works on.

use crate::mask::{Band, Matrix};
use crate::weighting::Functions;

/// One query block of one head. Raw pointers, because rows of several heads may interleave in memory and outputs of
/// concurrent calls lie side by side; made by [`crate::launch`] only, which proves the bounds.
///
/// Strides are in elements; rows themselves are contiguous.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head<'a> {
    /// Query row `first_row` of the sequence, `d` elements.
    pub(crate) q: *const f32,
    pub(crate) q_stride: usize,
    /// Index of the first query row in its sequence: masks and ALiBi count from the sequence's start.
    pub(crate) first_row: usize,
    /// Query rows of this call, at most the query block.
    pub(crate) rows: usize,
    /// Key 0 of the sequence, `d` elements.
    pub(crate) k: *const f32,
    pub(crate) k_stride: usize,
    /// Value 0 of the sequence, `d_v` elements.
    pub(crate) v: *const f32,
    pub(crate) v_stride: usize,
    /// Valid keys of the sequence.
    pub(crate) keys: usize,
    pub(crate) d: usize,
    pub(crate) d_v: usize,
    /// Output row of query row `first_row`, `d_v` elements, written.
    pub(crate) out: *mut f32,
    pub(crate) out_stride: usize,
    /// Log-sum-exp of query row `first_row`, one element per row, contiguous, written; null for none.
    pub(crate) lse: *mut f32,
    pub(crate) band: Band,
    /// Non-zero where the pair is visible; element (0, 0) is row 0 of the sequence.
    pub(crate) keep: Option<Matrix<u8>>,
    /// Added to the score; element (0, 0) is row 0 of the sequence.
    pub(crate) bias: Option<Matrix<f32>>,
    pub(crate) alibi: Option<Alibi>,
    pub(crate) scale: f32,
    /// `c` of `c * tanh(s / c)`.
    pub(crate) softcap: Option<f32>,
    pub(crate) sink: Option<f32>,
    pub(crate) rules: RowRules<'a>,
    pub(crate) weighting: Weigh<'a>,
    /// Keys of a block: the one tile parameter that decides the order of summation.
    pub(crate) key_block: usize,
    /// Whether to copy K and V of each block to contiguous scratch first.
    pub(crate) copy: bool,
}

/// ALiBi: `-slope * |i + offset - j|` is added to the score.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Alibi {
    pub(crate) slope: f32,
    pub(crate) offset: i64,
}

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
pub(crate) struct RowRules<'a> {
    /// One temperature for each row of the sequence, or one for all.
    pub(crate) temperature: Temperature<'a>,
    pub(crate) schedule: Schedule,
    pub(crate) count: Count,
    pub(crate) shift: Shift,
    /// Output factor: `coefficient / n^exponent`.
    pub(crate) coefficient: f32,
    pub(crate) exponent: f32,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Temperature<'a> {
    One(f32),
    /// Indexed by row of the sequence.
    Rows(&'a [f32]),
}

impl RowRules<'_> {
    /// Whether some factor depends on `n`.
    fn depends_on_count(&self) -> bool {
        self.schedule != Schedule::Constant || self.shift == Shift::NegLogN || self.exponent != 0.0
    }

    /// Whether rows differ in their factors.
    pub(crate) fn vary(&self) -> bool {
        matches!(self.temperature, Temperature::Rows(_)) || (self.count == Count::Visible && self.depends_on_count())
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

impl Head<'_> {
    /// The factors of `row` (of the sequence), in f64 inside as they are few.
    ///
    /// A row that sees no key counts as one that sees one: its result is zero whatever the factor, and ln 0 would make
    /// it NaN.
    ///
    /// # Safety
    /// `row` is a row of this call.
    pub(crate) unsafe fn factors(&self, row: usize) -> RowFactors {
        let rules = &self.rules;
        let n = match rules.count {
            Count::AllKeys => self.keys as f64,
            Count::Constant(n) => f64::from(n),
            // SAFETY: the caller's contract.
            Count::Visible if rules.depends_on_count() => unsafe { self.count_visible(row) as f64 },
            Count::Visible => 1.0,
        };
        let n = n.max(1.0);
        let temperature = f64::from(match rules.temperature {
            Temperature::One(temperature) => temperature,
            Temperature::Rows(rows) => rows[row],
        });
        let schedule = match rules.schedule {
            Schedule::Constant => 1.0,
            Schedule::LogN { factor } => f64::from(factor) * n.ln(),
        };
        RowFactors {
            inverse_temperature: (schedule / temperature) as f32,
            shift: match rules.shift {
                Shift::Constant(shift) => shift,
                Shift::NegLogN => -n.ln() as f32,
            },
            out: (f64::from(rules.coefficient) * n.powf(-f64::from(rules.exponent))) as f32,
        }
    }

    /// # Safety
    /// `row` is a row of this call.
    unsafe fn count_visible(&self, row: usize) -> usize {
        let seen = self.band.visible(row, self.keys);
        match &self.keep {
            None => seen.len(),
            // SAFETY: the mask covers every row of the call and every key.
            Some(keep) => seen.filter(|key| unsafe { keep.get(row, *key) } != 0).count(),
        }
    }
}
