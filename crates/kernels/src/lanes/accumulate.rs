//! The value product `O^T = alpha O^T + V^T P` of one key range and one sub-tile, queries in lanes.

use regard_simd::{Op, Simd};

use super::pairs::multiply_add;

/// Keys of a pass of the loop.
///
/// On a Xeon with AMX, weights and values in the second level, share of the peak of tiles of 2 x 8, 2 x 12 and 1 x 16:
///
/// | | 2 x 8 | 2 x 12 | 1 x 16 |
/// |---|---|---|---|
/// | one key | 0.80 | 0.86 | 0.73 |
/// | one key, and values asked for 8 rows ahead | 0.86 to 0.93 | 0.90 | 0.84 |
/// | four keys | 0.90 to 0.92 | 0.92 | 0.80 |
/// | four keys, and values asked for | 0.83 to 0.87 | 0.86 to 0.91 | |
///
/// Figures move by 0.03 with the place of the code. A whole prefill, in alternation, gained 1 to 3 points by four keys without asking
/// over four keys with it, or one key with it. No other core was measured.
///
/// Not on NEON, where LLVM loads the weights of all four keys first, and has no registers for them beside 24 sums.
const fn unrolled(lanes: usize) -> usize {
    if lanes > 4 { 4 } else { 1 }
}

/// The sum of `weights[key][lane] * v[key][c]` over `keys` keys, added to `out[c][lane]` times `alpha`; or written to
/// `out`. With `PAIRS`, elements of `weights` and `v` are pairs of bf16, and `keys` counts pairs of keys.
///
/// One sum is one chain of multiply-adds over the keys in ascending order, whatever the tile. `C` columns of
/// V share each load of a weight vector; the sums stay in registers over the whole key range, and the rescaling of the
/// online softmax rides on the one addition to `out`.
pub(crate) struct Accumulate<const G: usize, const C: usize, const PAIRS: bool> {
    /// Weights `[key][lanes]`.
    pub(crate) weights: *const f32,
    /// Row-major values.
    pub(crate) v: *const f32,
    /// Elements from one key's values to the next's.
    pub(crate) v_stride: usize,
    /// Transposed output `[d_v][lanes]`.
    pub(crate) out: *mut f32,
    /// Factor per lane; null for 1.
    pub(crate) alpha: *const f32,
    /// Whether `out` holds nothing yet.
    pub(crate) fresh: bool,
    /// Row length of `weights` and `out` in elements.
    pub(crate) lanes: usize,
    pub(crate) keys: usize,
    /// Keys that all vectors need; the weights of those after them are zero but for the last vector.
    pub(crate) full: usize,
    pub(crate) d_v: usize,
}

impl<const G: usize, const C: usize, const PAIRS: bool> Op for Accumulate<G, C, PAIRS> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        const { assert!(1 <= C && C <= 16, "the rest of up to 15 columns is taken in tiles of 8, 4, 2 and 1") };
        let mut column = 0;
        while column + C <= self.d_v {
            self.tile::<S, C>(s, column);
            column += C;
        }
        if C > 8 && column + 8 <= self.d_v {
            self.tile::<S, 8>(s, column);
            column += 8;
        }
        if C > 4 && column + 4 <= self.d_v {
            self.tile::<S, 4>(s, column);
            column += 4;
        }
        if C > 2 && column + 2 <= self.d_v {
            self.tile::<S, 2>(s, column);
            column += 2;
        }
        if column < self.d_v {
            self.tile::<S, 1>(s, column);
        }
    }
}

impl<const G: usize, const C: usize, const PAIRS: bool> Accumulate<G, C, PAIRS> {
    /// `T` columns from `column` on.
    #[inline(always)]
    fn tile<S: Simd, const T: usize>(&self, s: S, column: usize) {
        let unrolled = const { unrolled(S::LANES) };
        let mut acc = [[s.zero(); G]; T];
        // SAFETY: columns `column..column + T` exist (the caller counts), rows of `v` have `d_v` elements, rows of
        // `weights` and `out` have `lanes >= G * LANES`.
        unsafe {
            let out = self.out.add(column * self.lanes);
            let mut v = self.v.add(column);
            let mut weights = self.weights;
            for _ in 0..self.full / unrolled {
                for key in 0..unrolled {
                    let (v, weights) = (v.wrapping_add(key * self.v_stride), weights.wrapping_add(key * self.lanes));
                    self.step::<S, T>(s, v, weights, &mut acc);
                }
                v = v.wrapping_add(unrolled * self.v_stride);
                weights = weights.wrapping_add(unrolled * self.lanes);
            }
            for _ in 0..self.full % unrolled {
                self.step::<S, T>(s, v, weights, &mut acc);
                v = v.wrapping_add(self.v_stride);
                weights = weights.wrapping_add(self.lanes);
            }
            for _ in self.full..self.keys {
                let mut weight = [s.zero(); G];
                for g in G - 1..G {
                    weight[g] = s.load(weights.add(g * S::LANES));
                }
                for c in 0..T {
                    let element = s.splat(*v.add(c));
                    for g in G - 1..G {
                        acc[c][g] = multiply_add::<S, PAIRS>(s, weight[g], element, acc[c][g]);
                    }
                }
                v = v.wrapping_add(self.v_stride);
                weights = weights.wrapping_add(self.lanes);
            }
            for g in 0..G {
                let alpha = if self.alpha.is_null() { s.splat(1.0) } else { s.load(self.alpha.add(g * S::LANES)) };
                for c in 0..T {
                    let out = out.add(c * self.lanes + g * S::LANES);
                    let sum = if self.fresh { acc[c][g] } else { s.mul_add(s.load(out), alpha, acc[c][g]) };
                    s.store(out, sum);
                }
            }
        }
    }

    /// One key, for all vectors.
    ///
    /// # Safety
    /// `v` has `T` columns, and `weights` has `G` vectors.
    #[inline(always)]
    unsafe fn step<S: Simd, const T: usize>(
        &self,
        s: S,
        v: *const f32,
        weights: *const f32,
        acc: &mut [[S::F32; G]; T],
    ) {
        let mut weight = [s.zero(); G];
        // SAFETY: the caller's contract.
        unsafe {
            for g in 0..G {
                weight[g] = s.load(weights.add(g * S::LANES));
            }
            for c in 0..T {
                let element = s.splat(*v.add(c));
                for g in 0..G {
                    acc[c][g] = multiply_add::<S, PAIRS>(s, weight[g], element, acc[c][g]);
                }
            }
        }
    }
}
