//! Softmax attention of one query over a chunk of keys, at every key.
//!
//! ```text
//! s_j = <q, k_j>,  l_j = max(l_{j-1}, s_j)
//! a_j = a_{j-1} e^(l_{j-1} - l_j) + e^(s_j - l_j) v_j,  and the same of 1 for the denominator
//! out_j = (carry, a_j merged) / (denominators merged)
//! ```
//!
//! (Feng et al., arXiv:2405.13956.) Within a chunk everything is relative to the maximum of the chunk so far, from zero: the
//! chain of sums is short, and a chunk does not depend on those before it, which come in by a merge at every key. So chunks can
//! be computed apart, in any order, with the same bits.

use regard_simd::{Element, Op, Simd, bf16, f16, math};

use crate::dots::four_dots;
use crate::source::Source;
use crate::tensor::Dtype;
use crate::weighting::{Lane, LogSumExp, MAX_STATE, RowState, Softmax, Weighting};

/// Keys of a chunk.
pub(crate) const CHUNK: usize = 256;

/// The slot of [`Softmax`]'s state that holds the maximum, and one that holds a sum; the other sum is left at zero.
const MAX: usize = 0;
const SUM: usize = 1;

/// One chunk.
pub(crate) struct Chunk<'a> {
    /// `d` elements, the sign turned where the scale is negative.
    pub(crate) q: &'a [f32],
    pub(crate) k: Source<'a>,
    pub(crate) v: Source<'a>,
    pub(crate) first: usize,
    /// From 1 to [`CHUNK`].
    pub(crate) keys: usize,
    pub(crate) d_v: usize,
    /// The factor of the products, if it is not part of the gain.
    pub(crate) scale: Option<f32>,
    /// `c` of `c * tanh(s / c)`; there is a scale then.
    pub(crate) softcap: Option<f32>,
    /// See [`crate::weighting::Block::gain`].
    pub(crate) gain: f32,
    /// In units of log2, -inf for none.
    pub(crate) sink: f32,
    /// [`CHUNK`] scores: to be computed, or known already.
    pub(crate) scores: *mut f32,
    pub(crate) known: bool,
    /// What comes out of the keys before the chunk, if it goes anywhere.
    pub(crate) emit: Option<Emit<'a>>,
    /// What the keys of the chunk come to, `d_v` sums; null for none. Written.
    pub(crate) state: &'a mut RowState,
    pub(crate) sums: *mut f32,
}

/// Results at every key.
pub(crate) struct Emit<'a> {
    /// The partial result of the keys before the chunk, `d_v` sums.
    pub(crate) carry: &'a RowState,
    pub(crate) carry_sums: *const f32,
    /// The output row of the chunk's first key, `d_v` elements, and elements to the next.
    pub(crate) out: *mut f32,
    pub(crate) out_stride: usize,
    /// One for each key; null for none.
    pub(crate) lse: *mut f32,
}

/// The numbers of each key.
struct Numbers {
    /// `e^(l_{j-1} - l_j)`
    alpha: [f32; CHUNK],
    /// `e^(s_j - l_j)`, times the scale of the key's values.
    weight: [f32; CHUNK],
    /// Factors of the sums of the chunk, and of those before it.
    own: [f32; CHUNK],
    before: [f32; CHUNK],
}

impl Op for Chunk<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        const { assert!(CHUNK.is_multiple_of(S::LANES)) };
        let mut numbers =
            Numbers { alpha: [0.0; CHUNK], weight: [0.0; CHUNK], own: [0.0; CHUNK], before: [0.0; CHUNK] };
        if !self.known {
            match self.k.dtype {
                Dtype::F32 => self.scores::<S, f32>(s),
                Dtype::F16 => self.scores::<S, f16>(s),
                Dtype::Bf16 => self.scores::<S, bf16>(s),
                Dtype::Int8 => self.scores::<S, i8>(s),
            }
        }
        *self.state = self.weigh(s, &mut numbers);
        match (self.v.dtype, self.emit.is_some()) {
            (Dtype::F32, true) => self.sum::<S, f32, true>(s, &numbers),
            (Dtype::F32, false) => self.sum::<S, f32, false>(s, &numbers),
            (Dtype::F16, true) => self.sum::<S, f16, true>(s, &numbers),
            (Dtype::F16, false) => self.sum::<S, f16, false>(s, &numbers),
            (Dtype::Bf16, true) => self.sum::<S, bf16, true>(s, &numbers),
            (Dtype::Bf16, false) => self.sum::<S, bf16, false>(s, &numbers),
            (Dtype::Int8, true) => self.sum::<S, i8, true>(s, &numbers),
            (Dtype::Int8, false) => self.sum::<S, i8, false>(s, &numbers),
        }
    }
}

/// The maximum to subtract: 0 where there is none, as (-inf) - (-inf) would be NaN.
#[inline(always)]
fn finite<S: Simd>(s: S, max: S::F32) -> S::F32 {
    s.select(s.eq(max, s.splat(f32::NEG_INFINITY)), s.zero(), max)
}

impl Chunk<'_> {
    /// The score of each key, the same wherever it stands.
    #[inline(always)]
    fn scores<S: Simd, E: Element>(&self, s: S) {
        let d = self.q.len();
        let run = self.k.run(self.first);
        let row =
            |key: usize| run.data.wrapping_add(key.min(self.keys - 1).wrapping_mul(self.k.row_bytes())).cast::<E>();
        for key in (0..self.keys).step_by(4) {
            let k = [row(key), row(key + 1), row(key + 2), row(key + 3)];
            // SAFETY: the keys exist and have `d` elements, as `q` has; `scores` has room for a whole chunk.
            unsafe {
                let dots = four_dots(s, self.q.as_ptr(), k, d);
                for i in 0..4 {
                    let mut score = dots[i];
                    if !run.scales.is_null() {
                        score *= *run.scales.add((key + i).min(self.keys - 1) * run.scale_stride);
                    }
                    *self.scores.add(key + i) = score;
                }
            }
        }
        if let Some(scale) = self.scale {
            for key in (0..self.keys).step_by(S::LANES) {
                // SAFETY: as above.
                unsafe {
                    let p = self.scores.add(key);
                    let mut score = s.mul(s.load(p), s.splat(scale));
                    if let Some(cap) = self.softcap {
                        score = s.mul(s.splat(cap), math::tanh(s, s.div(score, s.splat(cap))));
                    }
                    s.store(p, score);
                }
            }
        }
    }

    /// The numbers of each key, and the state after the last.
    #[inline(always)]
    fn weigh<S: Simd>(&self, s: S, numbers: &mut Numbers) -> RowState {
        // One more: the maximum before each key, and after it.
        let mut max = [f32::NEG_INFINITY; CHUNK + 1];
        for key in 0..self.keys {
            // SAFETY: there is a score for each key.
            let score = unsafe { *self.scores.add(key) };
            // A NaN is passed over: it comes in by its weight.
            max[key + 1] = if score > max[key] { score } else { max[key] };
        }
        let gain = s.splat(self.gain);
        let mut weights = [0.0; CHUNK];
        for key in (0..self.keys).step_by(S::LANES) {
            // SAFETY: all arrays have room for a whole chunk, whose size is a multiple of a vector's.
            unsafe {
                let reference = finite(s, s.load(max.as_ptr().add(key + 1)));
                let alpha = math::exp2(s, s.mul(s.sub(s.load(max.as_ptr().add(key)), reference), gain));
                let weight = math::exp2(s, s.mul(s.sub(s.load(self.scores.add(key)), reference), gain));
                s.store(numbers.alpha.as_mut_ptr().add(key), alpha);
                s.store(weights.as_mut_ptr().add(key), weight);
            }
        }
        // The denominators: one chain.
        let mut sums = [0.0; CHUNK];
        let mut sum = 0.0;
        for key in 0..self.keys {
            sum = sum * numbers.alpha[key] + weights[key];
            sums[key] = sum;
        }
        self.factors(s, &max, &sums, numbers);
        let values = self.v.run(self.first);
        for key in 0..self.keys {
            let scale = if values.scales.is_null() {
                1.0
            } else {
                // SAFETY: there is a scale for each row, if there are any.
                unsafe { *values.scales.add(key * values.scale_stride) }
            };
            numbers.weight[key] = weights[key] * scale;
        }
        let mut state = RowState([0.0; MAX_STATE]);
        (state.0[MAX], state.0[SUM]) = (max[self.keys], sum);
        state
    }

    /// What the sums of each key are multiplied with, and those before the chunk.
    #[inline(always)]
    fn factors<S: Simd>(&self, s: S, max: &[f32; CHUNK + 1], sums: &[f32; CHUNK], numbers: &mut Numbers) {
        let Some(Emit { carry: RowState(carry), lse, .. }) = &self.emit else { return };
        let gain = s.splat(self.gain);
        let carried = s.splat(carry[MAX]);
        let carried_sum = s.splat(carry[SUM]);
        for key in (0..self.keys).step_by(S::LANES) {
            // SAFETY: all arrays have room for a whole chunk.
            unsafe {
                let own = s.load(max.as_ptr().add(key + 1));
                let both = s.max(own, carried);
                let reference = finite(s, both);
                // Infinite maxima have no difference.
                let one = s.splat(1.0);
                let before = math::exp2(s, s.mul(s.sub(carried, reference), gain));
                let before = s.select(s.eq(carried, both), one, before);
                let own = s.select(s.eq(own, both), one, math::exp2(s, s.mul(s.sub(own, reference), gain)));
                let sum = s.mul_add(carried_sum, before, s.mul(s.load(sums.as_ptr().add(key)), own));
                let lane = Lane { state: [both, sum, s.zero(), s.zero()], gain, sink: s.splat(self.sink) };
                let end = Softmax.finish(s, &lane);
                s.store(numbers.own.as_mut_ptr().add(key), s.mul(own, end));
                s.store(numbers.before.as_mut_ptr().add(key), s.mul(before, end));
                if !lse.is_null() {
                    let log_sum_exp: LogSumExp = const { Softmax::LOG_SUM_EXP.expect("softmax has one") };
                    let (mut maxima, mut totals) = ([0.0; 16], [0.0; 16]);
                    s.store(maxima.as_mut_ptr(), both);
                    s.store(totals.as_mut_ptr(), sum);
                    for i in 0..S::LANES.min(self.keys - key) {
                        *lse.add(key + i) = log_sum_exp(&[maxima[i], totals[i], 0.0, 0.0], self.gain, self.sink);
                    }
                }
            }
        }
    }

    /// The sums, and with `EMIT` the results.
    #[inline(always)]
    fn sum<S: Simd, E: Element, const EMIT: bool>(&self, s: S, numbers: &Numbers) {
        let mut c = 0;
        while c + 4 * S::LANES <= self.d_v {
            self.columns::<S, E, 4, EMIT>(s, numbers, c, S::LANES);
            c += 4 * S::LANES;
        }
        while c < self.d_v {
            self.columns::<S, E, 1, EMIT>(s, numbers, c, (self.d_v - c).min(S::LANES));
            c += S::LANES;
        }
    }

    /// `C` vectors of columns from `c` on, of `len` columns each.
    #[inline(always)]
    fn columns<S: Simd, E: Element, const C: usize, const EMIT: bool>(
        &self,
        s: S,
        numbers: &Numbers,
        c: usize,
        len: usize,
    ) {
        let mut sums = [s.zero(); C];
        let mut carry = [s.zero(); C];
        let whole = len == S::LANES;
        // SAFETY: values, sums and outputs have `d_v` columns, of which these are some, and the rows of the chunk.
        unsafe {
            let mut v = self.v.run(self.first).data.cast::<E>().wrapping_add(c);
            let (mut out, mut out_stride) = (std::ptr::null_mut::<f32>(), 0);
            if EMIT && let Some(emit) = &self.emit {
                for i in 0..C {
                    carry[i] = s.load_first(emit.carry_sums.add(c + i * S::LANES), len);
                }
                (out, out_stride) = (emit.out.wrapping_add(c), emit.out_stride);
            }
            for key in 0..self.keys {
                let alpha = s.splat(numbers.alpha[key]);
                let weight = s.splat(numbers.weight[key]);
                for i in 0..C {
                    let at = v.wrapping_add(i * S::LANES);
                    let value = if whole { E::load(s, at) } else { E::load_first(s, at, len) };
                    sums[i] = s.mul_add(weight, value, s.mul(sums[i], alpha));
                }
                if EMIT {
                    let (own, before) = (s.splat(numbers.own[key]), s.splat(numbers.before[key]));
                    for i in 0..C {
                        // A zero comes out as +0.
                        let row = s.mul_add(sums[i], own, s.mul_add(carry[i], before, s.zero()));
                        let at = out.wrapping_add(i * S::LANES);
                        if whole { s.store(at, row) } else { s.store_first(at, row, len) }
                    }
                    out = out.wrapping_add(out_stride);
                }
                v = v.wrapping_byte_add(self.v.row_bytes());
            }
            if !self.sums.is_null() {
                for i in 0..C {
                    s.store_first(self.sums.add(c + i * S::LANES), sums[i], len);
                }
            }
        }
    }
}
