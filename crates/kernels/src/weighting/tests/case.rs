//! Rows to be cut into parts, merged, and compared with their definition.

use std::marker::PhantomData;
use std::ops::Range;

use regard_simd::Level;

use super::Random;
use crate::lanes::Segment;
use crate::partial::{Conclude, Fold};
use crate::rules::{Ending, Weigh, sink_log2};
use crate::source::Target;
use crate::tensor::Dtype;
use crate::weighting::{AnyWeighting, Block, Kind, MAX_STATE, RowState, Step, slot};

/// Rows at a time: a multiple of the lanes of any level.
pub(super) const ROWS: usize = 16;
/// Keys of a block: even, as blocks are.
const BLOCK: usize = 4;
pub(super) const D_V: usize = 19;
const EPS: f64 = f32::EPSILON as f64;
/// The stated error of the exponential.
const EXP: f64 = 1.8e-7;

/// Scores of `ROWS` rows against some keys, and the keys' values.
#[derive(Clone)]
pub(super) struct Case {
    pub(super) weighting: &'static dyn AnyWeighting,
    pub(super) level: Level,
    /// `[key][row]`, before the gain
    pub(super) scores: Vec<[f32; ROWS]>,
    /// `[key]`: a bit for each row.
    pub(super) visible: Vec<u64>,
    pub(super) values: Vec<[f32; D_V]>,
    pub(super) gain: [f32; ROWS],
    pub(super) shift: f32,
    pub(super) sink: Option<f32>,
    pub(super) out_factor: f32,
}

/// The partial result of one row.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) state: RowState,
    pub(super) sums: [f32; D_V],
}

impl Part {
    pub(super) fn bits(&self) -> ([u32; MAX_STATE], [u32; D_V]) {
        (self.state.0.map(f32::to_bits), self.sums.map(f32::to_bits))
    }
}

/// What the definition says about a row, and how far off a result may be. The log-sum-exp is [`UNWRITTEN`] where there is none.
struct Expected {
    out: [f64; D_V],
    error: [f64; D_V],
    lse: f64,
    lse_error: f64,
}

const UNWRITTEN: f32 = 7.0;

impl Case {
    pub(super) fn new(weighting: &'static dyn AnyWeighting, level: Level, keys: usize, random: &mut Random) -> Self {
        Self {
            weighting,
            level,
            scores: (0..keys).map(|_| std::array::from_fn(|_| random.value())).collect(),
            visible: vec![u64::MAX; keys],
            values: (0..keys).map(|_| std::array::from_fn(|_| random.value())).collect(),
            gain: std::array::from_fn(|row| 0.25 + row as f32 / 4.0),
            shift: 0.0,
            sink: None,
            out_factor: 1.0,
        }
    }

    fn weigh(&self) -> Weigh<'static> {
        Weigh { functions: self.weighting.functions(self.level), data: self.weighting.data(), _data: PhantomData }
    }

    fn keys(&self) -> usize {
        self.scores.len()
    }

    fn seen(&self, row: usize) -> Vec<bool> {
        self.visible.iter().map(|bits| bits >> row & 1 == 1).collect()
    }

    /// The partial result of each row over a range of keys, and the weights that the functions gave.
    pub(super) fn parts(&self, range: Range<usize>) -> (Vec<Part>, Vec<[f32; ROWS]>) {
        let Weigh { functions, data, .. } = self.weigh();
        let mut state = [[0.0_f32; ROWS]; MAX_STATE];
        let mut sums = [[0.0_f64; D_V]; ROWS];
        let mut weights = Vec::new();
        // SAFETY: the functions are of the level, and the state has room for the slots of all rows.
        unsafe { (functions.begin)(data, state.as_mut_ptr().cast(), ROWS) };
        for first in range.clone().step_by(BLOCK) {
            let keys = first..(first + BLOCK).min(range.end);
            let (step, alpha, block_weights) = self.weigh_block(keys.clone(), &mut state);
            for row in (0..ROWS).filter(|_| step != Step::Skip) {
                let seen = self.seen(row);
                for (c, sum) in sums[row].iter_mut().enumerate() {
                    *sum *= if step == Step::Rescale { f64::from(alpha[row]) } else { 1.0 };
                    for key in keys.clone().filter(|key| seen[*key]) {
                        *sum += f64::from(block_weights[key - first][row]) * f64::from(self.values[key][c]);
                    }
                }
            }
            weights.extend(block_weights);
        }
        let part = |row: usize| {
            let state = RowState(state.map(|slot| slot[row]));
            let sums = match functions.kind {
                Kind::Weighted => sums[row].map(|sum| sum as f32),
                kind => self.selected_sums(row, &state, range.clone(), kind),
            };
            Part { state, sums }
        };
        ((0..ROWS).map(part).collect(), weights)
    }

    /// What one call gives: its step, alpha, and weights.
    fn weigh_block(
        &self,
        keys: Range<usize>,
        state: &mut [[f32; ROWS]; MAX_STATE],
    ) -> (Step, [f32; ROWS], Vec<[f32; ROWS]>) {
        let Weigh { functions, data, .. } = self.weigh();
        let mut scores = self.scores[keys.clone()].to_vec();
        let mut max = [f32::NEG_INFINITY; ROWS];
        for (scores, visible) in scores.iter_mut().zip(&self.visible[keys.clone()]) {
            for row in 0..ROWS {
                if functions.ordered && visible >> row & 1 == 0 {
                    scores[row] = f32::NEG_INFINITY;
                }
                max[row] = max[row].max(scores[row]);
            }
        }
        let mut alpha = [f32::NAN; ROWS];
        let (shift, segments) = ([self.shift; ROWS], [Segment { key: 0, keys: keys.len(), masked: true }]);
        let block = Block {
            scores: scores.as_mut_ptr().cast(),
            lanes: ROWS,
            segments: &segments,
            vectors: ROWS / self.level.isa().lanes(),
            visible: self.visible[keys.clone()].as_ptr(),
            first_key: keys.start,
            max: max.as_ptr(),
            gain: self.gain.as_ptr(),
            shift: shift.as_ptr(),
            state: state.as_mut_ptr().cast(),
            alpha: alpha.as_mut_ptr(),
        };
        // SAFETY: the functions are of the level, and the arrays are as the fields say.
        let step = unsafe { (functions.weigh)(data, &block) };
        (step, alpha, scores)
    }

    fn selected_sums(&self, row: usize, RowState(state): &RowState, range: Range<usize>, kind: Kind) -> [f32; D_V] {
        let key = state[slot::KEY].to_bits();
        let seen = self.seen(row);
        match kind {
            _ if key == slot::NO_KEY => [0.0; D_V],
            Kind::OneRow => self.values[key as usize],
            _ => std::array::from_fn(|c| {
                let tied = range.clone().filter(|key| seen[*key] && self.scores[*key][row] == state[slot::MAX]);
                tied.map(|key| self.values[key][c]).sum()
            }),
        }
    }

    pub(super) fn fold(&self, row: usize, left: &mut Part, right: &Part) {
        self.level.dispatch(Fold {
            weighting: self.weigh(),
            gain: self.gain[row],
            left: &mut left.state,
            left_sums: left.sums.as_mut_ptr(),
            right: &right.state,
            right_sums: right.sums.as_ptr(),
            d_v: D_V,
        });
    }

    /// The output of a row, and its log-sum-exp.
    pub(super) fn conclude(&self, row: usize, part: &Part) -> ([f32; D_V], f32) {
        let (mut out, mut lse) = ([UNWRITTEN; D_V], UNWRITTEN);
        self.level.dispatch(Conclude {
            weighting: self.weigh(),
            state: &part.state,
            sums: part.sums.as_ptr(),
            d_v: D_V,
            ending: Ending { gain: self.gain[row], sink: sink_log2(self.sink), out: self.out_factor },
            out: Target { dtype: Dtype::F32, data: out.as_mut_ptr().cast(), row_bytes: 0 },
            lse: &raw mut lse,
        });
        (out, lse)
    }

    /// Merges neighbours until one part is left, in an order that `random` thinks of.
    pub(super) fn merged(&self, row: usize, mut parts: Vec<Part>, random: &mut Random) -> Part {
        while parts.len() > 1 {
            let at = random.below(parts.len() - 1);
            let right = parts.remove(at + 1);
            self.fold(row, &mut parts[at], &right);
        }
        parts[0]
    }

    /// What the definition says, given the weights over all keys and the number of parts.
    fn expected(&self, row: usize, weights: &[[f32; ROWS]], parts: usize) -> Expected {
        match self.weighting.kind() {
            Kind::Weighted if self.weighting.has_log_sum_exp() => self.softmax(row, parts),
            Kind::Weighted => self.summed(row, weights, parts),
            Kind::OneRow | Kind::TiedRows => self.selected(row),
        }
    }

    /// Sums of the weights that the functions gave, each of which depends on its score alone.
    ///
    /// A product goes through one rounding in its part, one in each merge, and one for each factor; a weight in the
    /// normaliser through one for each key and each merge at most.
    fn summed(&self, row: usize, weights: &[[f32; ROWS]], parts: usize) -> Expected {
        let seen = self.seen(row);
        let weight = |key: usize| if seen[key] { f64::from(weights[key][row]) } else { 0.0 };
        let sum: f64 = (0..self.keys()).map(weight).sum();
        let normalised = self.weighting.functions(self.level).state > 0;
        let normaliser = if !normalised || sum == 0.0 { 1.0 } else { sum };
        let factor = f64::from(self.out_factor) / normaliser;
        let roundings = parts + 4 + if normalised { self.keys() + parts } else { 0 };
        let sum = |c: usize, f: &dyn Fn(f64) -> f64| -> f64 {
            let product = |key: usize| weight(key) * f64::from(self.values[key][c]) * factor;
            (0..self.keys()).map(|key| f(product(key))).sum()
        };
        Expected {
            out: std::array::from_fn(|c| sum(c, &|x| x)),
            error: std::array::from_fn(|c| sum(c, &f64::abs) * roundings as f64 * EPS / 2.0 * 1.001),
            lse: f64::from(UNWRITTEN),
            lse_error: 0.0,
        }
    }

    /// The definition, by scores relative to the largest of them and of the sink.
    ///
    /// A weight is the product of one exponential for each block and each merge at most, and their arguments, of two
    /// roundings each, add up to the score. What is below the least normal number on the way is lost. With a sink, there is one
    /// exponential more, of the difference of the largest score and the sink in units of log2, each of them rounded.
    fn softmax(&self, row: usize, parts: usize) -> Expected {
        let seen = self.seen(row);
        let gain = f64::from(self.gain[row]) / std::f64::consts::LOG2_E;
        let scores: Vec<f64> = self.scores.iter().map(|scores| f64::from(scores[row]) * gain).collect();
        let sink = self.sink.map(f64::from);
        let mut weights = vec![0.0; self.keys()];
        self.weighting.weights_f64(&scores, &seen, sink, &mut weights);

        let visible = || scores.iter().zip(&seen).filter(|(_, seen)| **seen).map(|(score, _)| *score);
        let max = visible().fold(f64::NEG_INFINITY, f64::max);
        let top = max.max(sink.unwrap_or(f64::NEG_INFINITY));
        let finite = if top == f64::NEG_INFINITY { 0.0 } else { top };
        let total: f64 = visible().chain(sink).map(|score| (score - finite).exp()).sum();
        let lse = finite + total.ln();

        let steps = (2 * parts + 2 + self.keys().div_ceil(BLOCK)) as f64;
        let largest = if max.is_finite() { max.abs() } else { 0.0 };
        let difference = 4.0 * EPS * (sink.map_or(0.0, f64::abs) + largest);
        // (part of the whole, relative error) to absolute error
        let error = |part: f64, relative: f64| if part == 0.0 { 0.0 } else { part * relative };
        let lost = (self.keys() as f64 * steps) * f64::from(f32::MIN_POSITIVE);
        let weight_error = |key: usize| {
            let argument = if scores[key] == max { 0.0 } else { 1.5 * EPS * (max - scores[key]) };
            let roundings = steps * EXP + (steps + self.keys() as f64) * EPS;
            lost + error(weights[key], roundings + argument + if top > max { difference } else { 0.0 })
        };
        let sink_error = sink.map_or(0.0, |sink| error((sink - finite).exp() / total, difference + EXP));
        let all = (0..self.keys()).map(weight_error).sum::<f64>() + sink_error;
        let factor = f64::from(self.out_factor);
        let sum = |c: usize, weight: &dyn Fn(usize) -> f64, sign: &dyn Fn(f64) -> f64| -> f64 {
            let keys = (0..self.keys()).filter(|key| seen[*key]);
            keys.map(|key| weight(key) * sign(f64::from(self.values[key][c]))).sum::<f64>() * factor
        };
        let weight = |key: usize| weights[key];
        Expected {
            out: std::array::from_fn(|c| sum(c, &weight, &|x| x)),
            error: std::array::from_fn(|c| {
                sum(c, &weight_error, &f64::abs) + sum(c, &weight, &f64::abs) * (all + 4.0 * EPS)
            }),
            lse,
            lse_error: if lse.is_finite() { all + EPS * (1.0 + lse.abs()) } else { 0.0 },
        }
    }

    /// The definition, except that a mean is the sum, which is exact in the tests, times one over the number.
    fn selected(&self, row: usize) -> Expected {
        let scores: Vec<f64> = self.scores.iter().map(|scores| f64::from(scores[row])).collect();
        let mut weights = vec![0.0; self.keys()];
        self.weighting.weights_f64(&scores, &self.seen(row), None, &mut weights);
        let chosen: Vec<usize> = (0..self.keys()).filter(|key| weights[*key] != 0.0).collect();
        let nan = weights.iter().any(|weight| weight.is_nan());
        let factor = if nan { f32::NAN } else { 1.0 / chosen.len().max(1) as f32 };
        let sum = |c: usize| chosen.iter().map(|key| self.values[*key][c]).sum::<f32>();
        Expected {
            out: std::array::from_fn(|c| f64::from(if nan { f32::NAN } else { sum(c) * factor })),
            error: [0.0; D_V],
            lse: f64::from(UNWRITTEN),
            lse_error: 0.0,
        }
    }

    /// Merges the parts between `cuts`, row by row, and compares with the definition.
    pub(super) fn check(&self, cuts: &[usize], random: &mut Random) {
        let (_, weights) = self.parts(0..self.keys());
        let ends = cuts.iter().copied().chain([self.keys()]);
        let starts = [0].into_iter().chain(cuts.iter().copied());
        let parts: Vec<Vec<Part>> = starts.zip(ends).map(|(start, end)| self.parts(start..end).0).collect();
        for row in 0..ROWS {
            let merged = self.merged(row, parts.iter().map(|parts| parts[row]).collect(), random);
            let (out, lse) = self.conclude(row, &merged);
            let expected = self.expected(row, &weights, parts.len());
            let compare = |what: &str, got: f32, expected: f64, error: f64| {
                let got = f64::from(got);
                assert!(
                    got == expected || (got - expected).abs() <= error || (got.is_nan() && expected.is_nan()),
                    "{:?} at {:?}, row {row}, cut at {cuts:?}: {what} {got} for {expected} +- {error:e}",
                    self.weighting,
                    self.level,
                );
            };
            for c in 0..D_V {
                compare("output", out[c], expected.out[c], expected.error[c]);
            }
            compare("log-sum-exp", lse, expected.lse, expected.lse_error);
        }
    }

    /// Cuts in two and in three everywhere, and into single keys.
    pub(super) fn check_everywhere(&self, random: &mut Random) {
        for first in 0..=self.keys() {
            self.check(&[first], random);
            for second in first..=self.keys() {
                self.check(&[first, second], random);
            }
        }
        self.check(&(1..self.keys()).collect::<Vec<_>>(), random);
    }
}
