//! The score product `S^T = K Q^T` of one key range and one sub-tile, queries in lanes.

use regard_simd::{Op, Simd, hide};

use super::pairs::multiply_add;
use super::streams::{LINE, Streams, ask};

/// Columns of a pass of the loop.
///
/// On Zen 3 (AVX2, tiles of 2 x 6, keys in the first or second level), the loop in assembly reaches 0.83 of the peak with one column,
/// and 0.93 with 4, 8 or 16. Here it takes sums that LLVM leaves where they are ([`Simd::add_product`]): with its own multiply-adds it
/// spills one of them, and a chain waits for memory in every column (8 columns so cost a tenth of a whole prefill). With both, prefill
/// gains a twentieth. Levels of 16 lanes were not measured.
const fn unrolled(lanes: usize) -> usize {
    if lanes == 8 { 4 } else { 1 }
}

/// Scores of `keys` keys against `G` vectors of queries: `scores[key][lane] = sum over c of q[c][lane] * k[key][c]`.
/// With `PAIRS`, elements of `q` and `k` are pairs of bf16.
///
/// One score is one chain of multiply-adds over `c` in ascending order, whatever the tile, the position of the key in
/// it, or `R`: scores are bit-identical wherever a key falls, or ties in hard attention would break.
///
/// `R` keys share each load of a query vector; the registers hold `R * G` accumulators, `G` query vectors and one
/// broadcast.
///
/// With `PREFETCH`, the loop also asks for the lines of two streams at a time, one of each for every 16 multiply-adds
/// or so. Spread out like that it hides the way from memory and from the third-level cache; the same requests as a
/// burst only move the wait.
pub(crate) struct Scores<'a, const G: usize, const R: usize, const MAX: bool, const PREFETCH: bool, const PAIRS: bool> {
    /// Packed queries `[d][lanes]`.
    pub(crate) q: *const f32,
    /// Row-major keys.
    pub(crate) k: *const f32,
    /// Elements from one key to the next.
    pub(crate) k_stride: usize,
    /// Where scores go, `[key][lanes]`.
    pub(crate) scores: *mut f32,
    /// If `MAX`: running maximum per lane, updated. NaN scores are passed over.
    pub(crate) max: *mut f32,
    /// Row length of `q` and `scores` in elements.
    pub(crate) lanes: usize,
    pub(crate) keys: usize,
    /// Keys that all vectors need; those after them are for the last vector only, and the others get no score.
    pub(crate) full: usize,
    pub(crate) d: usize,
    pub(crate) streams: Streams<'a>,
}

impl<const G: usize, const R: usize, const MAX: bool, const PREFETCH: bool, const PAIRS: bool> Op
    for Scores<'_, G, R, MAX, PREFETCH, PAIRS>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        const { assert!(1 <= R && R <= 16, "the rest of up to 15 keys is taken in tiles of 8, 4, 2 and 1") };
        let mut max = [s.splat(f32::NEG_INFINITY); G];
        if MAX {
            for (g, max) in max.iter_mut().enumerate() {
                // SAFETY: `max` holds at least `G` vectors (contract of the struct, made by `Lanes`).
                *max = unsafe { s.load(self.max.add(g * S::LANES)) };
            }
        }
        self.tiles::<S, false>(s, 0, self.full, &mut max);
        self.tiles::<S, true>(s, self.full, self.keys, &mut max);
        if MAX {
            for (g, max) in max.into_iter().enumerate() {
                // SAFETY: as for the load above.
                unsafe { s.store(self.max.add(g * S::LANES), max) };
            }
        }
    }
}

impl<const G: usize, const R: usize, const MAX: bool, const PREFETCH: bool, const PAIRS: bool>
    Scores<'_, G, R, MAX, PREFETCH, PAIRS>
{
    /// The vectors that a tile computes.
    #[inline(always)]
    const fn vectors(alone: bool) -> std::ops::Range<usize> {
        if alone { G - 1..G } else { 0..G }
    }

    /// The keys `key..end`, for all vectors or for the last one `ALONE`: whole register tiles first, the rest in tiles
    /// of powers of two.
    #[inline(always)]
    fn tiles<S: Simd, const ALONE: bool>(&self, s: S, mut key: usize, end: usize, max: &mut [S::F32; G]) {
        while key + R <= end {
            self.tile::<S, R, ALONE>(s, key, max);
            key += R;
        }
        if R > 8 && key + 8 <= end {
            self.tile::<S, 8, ALONE>(s, key, max);
            key += 8;
        }
        if R > 4 && key + 4 <= end {
            self.tile::<S, 4, ALONE>(s, key, max);
            key += 4;
        }
        if R > 2 && key + 2 <= end {
            self.tile::<S, 2, ALONE>(s, key, max);
            key += 2;
        }
        if key < end {
            self.tile::<S, 1, ALONE>(s, key, max);
        }
    }

    /// `T` keys from `key` on.
    #[inline(always)]
    fn tile<S: Simd, const T: usize, const ALONE: bool>(&self, s: S, key: usize, max: &mut [S::F32; G]) {
        let mut acc = [[s.zero(); G]; T];
        // SAFETY: keys `key..key + T` exist (the caller counts), rows of `k` have `d` elements and rows of `q` have
        // `lanes >= G * LANES`.
        unsafe {
            let k = self.k.add(key * self.k_stride);
            let rows: [*const f32; T] = rows(k, self.k_stride);
            let mut q = self.q;
            let mut c = 0;
            if PREFETCH && let Some(asked) = self.streams.at(key) {
                let [mut first, mut second] = asked.rows;
                // 16 columns, a cache line, are shared out among the rows of the tile.
                while c + LINE <= self.d {
                    for r in 0..T {
                        if G == 1 {
                            ask::<S, true>(s, first.wrapping_add(r * asked.strides[0]));
                            ask::<S, true>(s, second.wrapping_add(r * asked.strides[1]));
                        } else {
                            ask::<S, false>(s, first.wrapping_add(r * asked.strides[0]));
                            ask::<S, false>(s, second.wrapping_add(r * asked.strides[1]));
                        }
                        for i in r * LINE / T..(r + 1) * LINE / T {
                            self.step::<S, T, ALONE>(s, &rows, c + i, q, &mut acc);
                            q = q.add(self.lanes);
                        }
                    }
                    first = first.wrapping_add(asked.lines[0]);
                    second = second.wrapping_add(asked.lines[1]);
                    c += LINE;
                }
            }
            let unrolled = const { unrolled(S::LANES) };
            while c + unrolled <= self.d {
                for _ in 0..unrolled {
                    self.step::<S, T, ALONE>(s, &rows, c, q, &mut acc);
                    q = q.add(self.lanes);
                    c += 1;
                }
            }
            while c < self.d {
                self.step::<S, T, ALONE>(s, &rows, c, q, &mut acc);
                q = q.add(self.lanes);
                c += 1;
            }
            let scores = self.scores.add(key * self.lanes);
            for r in 0..T {
                for g in Self::vectors(ALONE) {
                    s.store(scores.add(r * self.lanes + g * S::LANES), acc[r][g]);
                    if MAX {
                        max[g] = s.max(acc[r][g], max[g]);
                    }
                }
            }
        }
    }

    /// Column `c` of `T` keys.
    ///
    /// # Safety
    /// The rows have the column, and `q` has `G` vectors.
    #[inline(always)]
    unsafe fn step<S: Simd, const T: usize, const ALONE: bool>(
        &self,
        s: S,
        rows: &[*const f32; T],
        c: usize,
        q: *const f32,
        acc: &mut [[S::F32; G]; T],
    ) {
        // SAFETY: the caller's contract.
        unsafe {
            let mut query = [s.zero(); G];
            for g in Self::vectors(ALONE) {
                query[g] = s.load(q.add(g * S::LANES));
            }
            for r in 0..T {
                let element = s.splat(*rows[r].add(c));
                for g in Self::vectors(ALONE) {
                    acc[r][g] = multiply_add::<S, PAIRS>(s, query[g], element, acc[r][g]);
                }
            }
        }
    }
}

/// Where the keys of a tile lie, each in a register of its own where there are enough (0.91 of the peak for 0.86 on a Xeon with AMX,
/// keys in the second level).
#[inline(always)]
fn rows<const T: usize>(k: *const f32, stride: usize) -> [*const f32; T] {
    let mut rows = [k; T];
    for (r, row) in rows.iter_mut().enumerate() {
        let distance = r * stride;
        *row = k.wrapping_add(if T <= 8 { hide(distance) } else { distance });
    }
    rows
}
