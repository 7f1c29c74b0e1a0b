//! Bytes in pairs of 16-bit integers, with queries and weights in fixed point: integer products, whose sums are exact.
//!
//! A query row and the weights of a row in a block become whole multiples of a quantum of their own, the largest magnitude over
//! [`limit`]. That is up to 15 bits and a sign, and as many as leave room in 32 bits for the sum of all products with bytes. The
//! error of an element, or of a weight (times the scale of its value), is at most half a quantum, but for a few `2^-24` of its
//! own size: `1/65278` of the largest in rows of up to 512 columns and blocks of up to 512 keys. Nothing else is rounded until
//! the sum becomes f32.
//!
//! AVX2 multiplies and adds pairs in two instructions, and still takes sixteen bytes with them where eight are widened to f32 with
//! three: one query against 16384 keys, d 128, from memory on Zen 3, 10 GB/s instead of 7 (keys and values abreast 12 instead of 9), 8
//! heads of a KV head 3.6 to 4.9 instead of 2.1 to 2.4.
//!
//! If magnitudes are infinite, the quantum is: infinite numbers are the only ones that count then.

use regard_simd::{Op, Simd};

use super::abreast::{Abreast, Turns};
use super::accumulate::AccumulateArgs;
use super::dots::{AccumulateDots, Pairs};
use super::form::{Form, Weights};
use super::pack::MOST_COLUMNS;
use super::scores::{Product, ScoreArgs, Scores};

/// Pairs of integers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fixed;

/// The largest number in fixed point: the sum of `terms` products with bytes fits in 32 bits.
fn limit(terms: usize) -> f32 {
    let fits = i32::MAX as usize / 128 / terms.max(1);
    fits.clamp(1, LARGEST) as f32
}

/// The largest number whose high byte, of two signed ones, is no more than 127: half a byte less than 15 bits hold.
const LARGEST: usize = 127 * 256 + 127;

/// The larger magnitude, where `f32::max` would pass over NaN.
fn larger(largest: f32, x: f32) -> f32 {
    if x.is_nan() || x.abs() > largest { x.abs() } else { largest }
}

/// What `1` is worth if the largest magnitude is `limit`: NaN if that is, and never subnormal, so that it has an inverse.
fn quantum(largest: f32, limit: f32) -> f32 {
    let quantum = largest / limit;
    if quantum < f32::MIN_POSITIVE { f32::MIN_POSITIVE } else { quantum }
}

/// `x` in quanta.
#[inline(always)]
fn multiple(x: f32, quantum: f32) -> f32 {
    if !quantum.is_infinite() {
        x / quantum
    } else if x.is_infinite() {
        1_f32.copysign(x)
    } else {
        0.0
    }
}

/// The same, rounded to the nearest integer, ties to even; NaN, whose quantum is NaN, becomes any number.
#[inline(always)]
pub(super) fn whole_multiples<const N: usize>(columns: &[f32; N], quantum: f32) -> [i16; N] {
    // A loop, as `map` would be a call, which has no vectors of the level.
    let mut multiples = [0; N];
    for i in 0..N {
        // As bits, the sum has the integer in its low half: `round_ties_even` would be a call for each element.
        multiples[i] = (multiple(columns[i], quantum) + 12_582_912.0).to_bits() as i16;
    }
    multiples
}

impl Product for Fixed {
    type Element = i8;
    const LANE_COLUMNS: usize = 4;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const i8, len: usize) -> [S::F32; 2] {
        let half = 2 * S::LANES;
        // SAFETY: the caller's contract.
        unsafe { [load(s, p, len.min(half)), load(s, p.wrapping_add(half), len.saturating_sub(half))] }
    }

    #[inline(always)]
    fn mul_add<S: Simd>(s: S, a: S::F32, b: S::F32, acc: S::F32) -> S::F32 {
        s.dot_i16(acc, a, b)
    }

    #[inline(always)]
    unsafe fn total<S: Simd, const N: usize>(s: S, parts: [S::F32; N], quanta: *const f32) -> S::F32 {
        // SAFETY: the caller's contract.
        s.mul(s.float_i32(s.lane_sums_i32(parts)), unsafe { s.load(quanta) })
    }
}

impl Pairs for Fixed {
    type Element = i8;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const i8, len: usize) -> S::F32 {
        // SAFETY: the caller's contract.
        unsafe { load(s, p, len) }
    }

    #[inline(always)]
    fn dot<S: Simd>(s: S, acc: S::F32, a: S::F32, b: S::F32) -> S::F32 {
        s.dot_i16(acc, a, b)
    }

    #[inline(always)]
    fn total<S: Simd>(s: S, acc: S::F32, quantum: S::F32) -> S::F32 {
        s.mul(s.float_i32(acc), quantum)
    }
}

impl Turns for Fixed {
    const PAIRS: bool = true;

    #[inline(always)]
    unsafe fn values<S: Simd, const N: usize>(s: S, p: *const i8, stride: usize, len: usize) -> [[S::F32; 2]; N] {
        let mut values = [[s.zero(); 2]; N];
        for i in 0..N / 2 {
            let p = p.wrapping_add(2 * i * stride);
            // SAFETY: the caller's contract.
            values[i] = unsafe { s.interleave(load(s, p, len), load(s, p.add(stride), len)) };
        }
        values
    }

    #[inline(always)]
    fn worth<S: Simd>(s: S, sum: S::F32, quantum: S::F32) -> S::F32 {
        <Self as Pairs>::total(s, sum, quantum)
    }
}

impl Form for Fixed {
    type Element = i8;
    type Held = ();

    fn hold(_row_lanes: usize) {}

    #[inline(always)]
    fn quantum(largest: impl FnOnce() -> f32, columns: usize) -> f32 {
        quantum(largest(), limit(columns))
    }

    #[inline(always)]
    unsafe fn put_query<S: Simd>(
        _: S,
        to: *mut f32,
        [r, c, rows]: [usize; 3],
        columns: &[f32; MOST_COLUMNS],
        quantum: f32,
    ) {
        let width = <Self as Product>::LANE_COLUMNS * S::LANES;
        let word = (c / width * rows + r) * width + c % width;
        // SAFETY: the caller's contract.
        let words = unsafe { std::slice::from_raw_parts_mut(to.cast::<i16>().add(word), 2 * S::LANES) };
        words.copy_from_slice(&whole_multiples(columns, quantum)[..2 * S::LANES]);
    }

    #[inline(always)]
    fn scores<S: Simd, const R: usize, const G: usize, const K: usize, const L: usize>(s: S, args: ScoreArgs<i8>) {
        s.vectorize(Scores::<Self, R, G, K, L>(args));
    }

    #[inline(always)]
    fn prepare<S: Simd>(s: S, weights: Weights) {
        scale(s, weights);
        s.vectorize(PairWeights(weights));
    }

    #[inline(always)]
    fn accumulate<S: Simd, const R: usize, const G: usize, const C: usize, const P: usize, const L: usize>(
        s: S,
        args: AccumulateArgs<i8>,
    ) {
        s.vectorize(AccumulateDots::<Self, R, G, C, L>(args));
    }

    const ABREAST: bool = true;

    #[inline(always)]
    fn abreast<S: Simd, const R: usize, const G: usize, const L: usize>(
        s: S,
        scores: ScoreArgs<i8>,
        values: AccumulateArgs<i8>,
    ) {
        s.vectorize(Abreast::<Self, R, G, L> { scores, values });
    }

    fn place(i: usize, _lanes: usize) -> usize {
        i
    }
}

/// The first `len` bytes of `2 * LANES`; the others are zero.
///
/// # Safety
/// They are readable.
#[inline(always)]
unsafe fn load<S: Simd>(s: S, p: *const i8, len: usize) -> S::F32 {
    // SAFETY: the caller's contract.
    unsafe { if len == 2 * S::LANES { s.load_words(p) } else { s.load_first_words(p, len) } }
}

/// Multiplies weights with the scales of values, and finds their quanta.
#[inline(always)]
pub(super) fn scale<S: Simd>(s: S, weights: Weights) {
    s.vectorize(Largest(weights));
    set_quanta(weights);
}

/// What scaled weights of each lane are to be multiplied with: the inverse of its quantum, or 1 where they are multiples already.
///
/// # Safety
/// There is a vector of quanta.
#[inline(always)]
pub(super) unsafe fn inverse<S: Simd>(s: S, weights: &Weights) -> S::F32 {
    // SAFETY: the caller's contract.
    let quanta = unsafe { s.load(weights.quanta) };
    let one = s.splat(1.0);
    s.select(s.eq(quanta, s.splat(f32::INFINITY)), one, s.div(one, quanta))
}

/// Multiplies weights with the scales of values, clears those of keys that are not seen, and writes the largest magnitude of
/// each lane where its quantum is to be; NaN if a weight is.
struct Largest(Weights);

impl Op for Largest {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Weights { weights, scales, visible, quanta, steps, ask, .. } = self.0;
        let mut largest = s.zero();
        let mut nan = s.mask_from_bits(0);
        // SAFETY: all have a vector or a word for each step, and there is a vector of quanta.
        unsafe {
            for step in 0..steps {
                ask.step(s, step);
                let p = weights.add(step * S::LANES);
                let scaled = s.mul(s.load(p), s.load(scales.add(step * S::LANES)));
                // The scale of a key that is not seen may be NaN.
                let weight = s.select(s.mask_from_bits(*visible.add(step)), scaled, s.zero());
                largest = s.max(s.abs(weight), largest);
                nan = s.or(nan, s.is_nan(weight));
                s.store(p, weight);
            }
            s.store(quanta, s.select(nan, s.splat(f32::NAN), largest));
        }
    }
}

/// Gives all lanes of a row the quantum of their weights in place of their largest magnitudes. Weights of an infinite quantum
/// are multiples of it then.
fn set_quanta(weights: Weights) {
    let Weights { weights, quanta, steps, row_lanes, lanes, key_block, .. } = weights;
    let limit = limit(key_block);
    // SAFETY: there is a quantum for each lane, and a vector of weights for each step.
    let quanta = unsafe { std::slice::from_raw_parts_mut(quanta, lanes) };
    for r in 0..row_lanes {
        let largest = (r..lanes).step_by(row_lanes).fold(0.0, |largest, lane| larger(largest, quanta[lane]));
        let quantum = quantum(largest, limit);
        for lane in (r..lanes).step_by(row_lanes) {
            quanta[lane] = quantum;
            for step in 0..if quantum.is_infinite() { steps } else { 0 } {
                // SAFETY: as above.
                unsafe {
                    let weight = weights.add(step * lanes + lane);
                    *weight = multiple(*weight, quantum);
                }
            }
        }
    }
}

/// Rounds weights to whole quanta: a lane of an even key of a step then holds the pair of its weight and that of the next key.
struct PairWeights(Weights);

impl Op for PairWeights {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Weights { weights, steps, row_lanes, .. } = self.0;
        // SAFETY: there is a vector for each step, and one more, and one of quanta.
        unsafe {
            let inverse = inverse(s, &self.0);
            for step in 0..steps {
                let p = weights.add(step * S::LANES);
                // The next key has the same quantum.
                let (low, high) = (s.mul(s.load(p), inverse), s.mul(s.load(p.add(row_lanes)), inverse));
                s.store(p, s.pair_i16(low, high));
            }
        }
    }
}
