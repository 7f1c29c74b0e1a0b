//! Both products of a few query rows and one run of keys as dot products of pairs: scores of bf16, and values of any pairs.
//!
//! Half as many multiplications make the sums over lanes twice as dear. So here, for scores, a vector holds several rows (four, at 16
//! lanes) with four pairs of columns each, against four pairs of a key in each group of four lanes: sums go over four lanes
//! and not over all.

use regard_simd::{Element, Op, Simd, bf16};

use super::accumulate::AccumulateArgs;
use super::scores::ScoreArgs;

/// Columns of four pairs.
pub(super) const COLUMNS: usize = 8;

/// Elements of a cache line.
const LINE: usize = 32;

/// What [`super::scores::Scores`] does. One score is a chain of dot products for each of four pairs of columns, eight columns
/// at a time, and `(0 + 2) + (1 + 3)` of these: the same whatever `R`, and wherever the key stands.
///
/// A step has `L / 4` scores of each of four vectors: of four keys, or of two keys and twice as many rows.
pub(super) struct ScoreDots<const R: usize, const G: usize, const L: usize>(pub(super) ScoreArgs<bf16>);

/// The first of the words of query row `r` in which the 8 columns from `c` on lie: `[columns / 8][set of L / 4 rows][L]`.
pub(super) fn query_words(rows: usize, r: usize, c: usize, lanes: usize) -> usize {
    let sets = rows.div_ceil(lanes / 4);
    let vector = c / COLUMNS * sets + r / (lanes / 4);
    vector * lanes + r % (lanes / 4) * 4
}

impl<const R: usize, const G: usize, const L: usize> Op for ScoreDots<R, G, L> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        const { assert!(L == S::LANES && L.is_multiple_of(4) && (G == 4 || G == 2) && R <= L / G) };
        let args = &self.0;
        let mut key = 0;
        if G == 2 {
            // As many sums as hide the latency of their chains.
            while key + 8 <= args.keys {
                self.tile::<S, 8>(s, key, 8);
                key += 8;
            }
        }
        while key < args.keys {
            self.tile::<S, G>(s, key, (args.keys - key).min(G));
            key += G;
        }
    }
}

impl<const R: usize, const G: usize, const L: usize> ScoreDots<R, G, L> {
    /// Vectors that hold all rows.
    const SETS: usize = 4 / G;

    /// `N` keys from `key` on, of which `keys` exist; the last one is then taken again.
    #[inline(always)]
    fn tile<S: Simd, const N: usize>(&self, s: S, key: usize, keys: usize) {
        let args = &self.0;
        let mut acc = [[s.zero(); 2]; N];
        // SAFETY: keys `key..key + keys` exist and have `d` elements; `q` has all columns, and `scores` a vector for each step.
        unsafe {
            let mut k = [args.k; N];
            for i in 0..N {
                k[i] = args.k.add((key + i.min(keys - 1)) * args.k_stride);
            }
            let mut q = args.q;
            let mut c = 0;
            while c + COLUMNS <= args.d {
                if c.is_multiple_of(LINE) {
                    for i in 0..N {
                        s.prefetch_far(k[i].wrapping_add(c + args.ahead).cast());
                    }
                }
                let mut rows = [s.zero(); 2];
                for set in 0..Self::SETS {
                    rows[set] = s.load(q.add(set * L));
                }
                for i in 0..N {
                    let pairs = s.load_quad(k[i].add(c).cast());
                    for set in 0..Self::SETS {
                        acc[i][set] = s.dot_bf16(acc[i][set], pairs, rows[set]);
                    }
                }
                q = q.add(Self::SETS * L);
                c += COLUMNS;
            }
            if c < args.d {
                for i in 0..N {
                    let mut rest = [bf16::ZERO; COLUMNS];
                    k[i].add(c).copy_to_nonoverlapping(rest.as_mut_ptr(), args.d - c);
                    let pairs = s.load_quad(rest.as_ptr().cast());
                    for set in 0..Self::SETS {
                        acc[i][set] = s.dot_bf16(acc[i][set], pairs, s.load(q.add(set * L)));
                    }
                }
            }
            for step in 0..N / G {
                let mut parts = [s.zero(); 4];
                for g in 0..G {
                    for set in 0..Self::SETS {
                        parts[g * Self::SETS + set] = acc[step * G + g][set];
                    }
                }
                s.store(args.scores.add((key / G + step) * L), s.quad_sums(parts));
            }
        }
    }
}

/// Elements whose products are taken two at a time.
pub(crate) trait Pairs: 'static {
    /// The element type of values.
    type Element: Element;

    /// The first `len` elements of `2 * LANES`, each in 16 bits, as they lie in memory; the others are zero.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn load<S: Simd>(s: S, p: *const Self::Element, len: usize) -> S::F32;

    /// `acc` and the products of the two elements of each lane.
    fn dot<S: Simd>(s: S, acc: S::F32, a: S::F32, b: S::F32) -> S::F32;

    /// What dot products from zero on add up to, if `1` in the weights is worth `quantum`.
    fn total<S: Simd>(s: S, acc: S::F32, quantum: S::F32) -> S::F32;
}

/// What [`super::accumulate::Accumulate`] does, with weights in pairs as [`super::form::Form::prepare`] makes them, and sums in
/// the order of columns. Runs start at even places.
pub(super) struct AccumulateDots<P: Pairs, const R: usize, const G: usize, const C: usize, const L: usize>(
    pub(super) AccumulateArgs<P::Element>,
);

impl<P: Pairs, const R: usize, const G: usize, const C: usize, const L: usize> Op for AccumulateDots<P, R, G, C, L> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        debug_assert!(self.0.first.is_multiple_of(2) && G.is_multiple_of(2));
        let mut c = 0;
        while c + C * 2 * L <= self.0.d_v {
            self.tile::<S, C>(s, c, 2 * L);
            c += C * 2 * L;
        }
        while c < self.0.d_v {
            self.tile::<S, 1>(s, c, (self.0.d_v - c).min(2 * L));
            c += 2 * L;
        }
    }
}

impl<P: Pairs, const R: usize, const G: usize, const C: usize, const L: usize> AccumulateDots<P, R, G, C, L> {
    /// `N` units from column `c` on, of `len` columns each.
    #[inline(always)]
    fn tile<S: Simd, const N: usize>(&self, s: S, c: usize, len: usize) {
        let args = &self.0;
        let mut acc = [[[s.zero(); 2]; R]; N];
        // SAFETY: the columns exist in `v` and in the sums, the keys in `v` and `weights`.
        unsafe {
            let block_sums = args.block_sums.add(c * R);
            if !args.ends[0] {
                for unit in 0..N {
                    for r in 0..R {
                        let sums = block_sums.add((unit * R + r) * 2 * L);
                        acc[unit][r] = [s.load(sums), s.load(sums.add(L))];
                    }
                }
            }
            let v = args.v.add(c);
            if args.visible.is_null() {
                self.keys::<S, N>(s, v, len, &mut acc);
            } else {
                self.seen_keys::<S, N>(s, v, len, &mut acc);
            }
            if !args.ends[1] {
                for unit in 0..N {
                    for r in 0..R {
                        let sums = block_sums.add((unit * R + r) * 2 * L);
                        s.store(sums, acc[unit][r][0]);
                        s.store(sums.add(L), acc[unit][r][1]);
                    }
                }
                return;
            }
            for r in 0..R {
                let alpha = s.splat(if args.alpha.is_null() { 1.0 } else { *args.alpha.add(r) });
                let quantum = s.splat(*args.quanta.add(r));
                for unit in 0..N {
                    for half in 0..2 {
                        let sums = args.sums.add(c * R + (unit * R + r) * 2 * L + half * L);
                        let total = P::total(s, acc[unit][r][half], quantum);
                        s.store(sums, s.mul_add(s.load(sums), alpha, total));
                    }
                }
            }
        }
    }

    /// All keys of the run.
    ///
    /// # Safety
    /// `N` units of `len` columns exist from `v` on.
    #[inline(always)]
    unsafe fn keys<S: Simd, const N: usize>(
        &self,
        s: S,
        mut v: *const P::Element,
        len: usize,
        acc: &mut [[[S::F32; 2]; R]; N],
    ) {
        let args = &self.0;
        let ahead = args.ahead;
        // SAFETY: the caller's contract.
        unsafe {
            let mut place = args.first;
            for _ in 0..args.keys / 2 {
                let weight = self.weights(s, place);
                for unit in 0..N {
                    let v = v.add(unit * 2 * L);
                    if (unit * 2 * L).is_multiple_of(P::Element::PER_LINE) {
                        s.prefetch_far(v.wrapping_add(ahead).cast());
                        s.prefetch_far(v.wrapping_add(args.v_stride + ahead).cast());
                    }
                    let values = s.interleave(P::load(s, v, len), P::load(s, v.add(args.v_stride), len));
                    for r in 0..R {
                        acc[unit][r][0] = P::dot(s, acc[unit][r][0], values[0], weight[r]);
                        acc[unit][r][1] = P::dot(s, acc[unit][r][1], values[1], weight[r]);
                    }
                }
                v = v.wrapping_add(2 * args.v_stride);
                place += 2;
            }
            if !args.keys.is_multiple_of(2) {
                // The weight of what would be next is zero.
                let weight = self.weights(s, place);
                for unit in 0..N {
                    let values = s.interleave(P::load(s, v.add(unit * 2 * L), len), s.zero());
                    for r in 0..R {
                        acc[unit][r][0] = P::dot(s, acc[unit][r][0], values[0], weight[r]);
                        acc[unit][r][1] = P::dot(s, acc[unit][r][1], values[1], weight[r]);
                    }
                }
            }
        }
    }

    /// The pair of weights of each row, of the key at `place` of the block and the next.
    ///
    /// # Safety
    /// The key exists in `weights`.
    #[inline(always)]
    unsafe fn weights<S: Simd>(&self, s: S, place: usize) -> [S::F32; R] {
        let mut weight = [s.zero(); R];
        for r in 0..R {
            // SAFETY: the caller's contract.
            weight[r] = s.splat(unsafe { *self.0.weights.add(place / G * L + place % G * (L / G) + r) });
        }
        weight
    }

    /// The same without values of keys that a row does not see: these may be NaN or Inf, whose product with a weight of zero is
    /// not zero.
    ///
    /// # Safety
    /// As for [`Self::keys`].
    #[inline(always)]
    unsafe fn seen_keys<S: Simd, const N: usize>(
        &self,
        s: S,
        v: *const P::Element,
        len: usize,
        acc: &mut [[[S::F32; 2]; R]; N],
    ) {
        let args = &self.0;
        for key in (0..args.keys).step_by(2) {
            let place = args.first + key;
            // SAFETY: the caller's contract; `visible` has a word for each step.
            unsafe {
                let weight = self.weights(s, place);
                let bits = *args.visible.add(place / G) >> (place % G * (L / G));
                for unit in 0..N {
                    let v = v.add(key * args.v_stride + unit * 2 * L);
                    let first = P::load(s, v, len);
                    let second = if key + 1 < args.keys { P::load(s, v.add(args.v_stride), len) } else { s.zero() };
                    for r in 0..R {
                        let even = if bits >> r & 1 == 1 { first } else { s.zero() };
                        let odd = if bits >> (r + L / G) & 1 == 1 { second } else { s.zero() };
                        let values = s.interleave(even, odd);
                        acc[unit][r][0] = P::dot(s, acc[unit][r][0], values[0], weight[r]);
                        acc[unit][r][1] = P::dot(s, acc[unit][r][1], values[1], weight[r]);
                    }
                }
            }
        }
    }
}

/// The first `len` elements as pairs, at most `2 * LANES`; the others are zero.
///
/// # Safety
/// They are readable.
#[inline(always)]
pub(super) unsafe fn load<S: Simd>(s: S, p: *const bf16, len: usize) -> S::F32 {
    if len == 2 * S::LANES {
        // SAFETY: the caller's contract: LANES pairs of two bytes each are LANES f32 as bits.
        return unsafe { s.load(p.cast()) };
    }
    let mut rest = [bf16::ZERO; 32];
    // SAFETY: the caller's contract, and there is room for two vectors of any level.
    unsafe {
        p.copy_to_nonoverlapping(rest.as_mut_ptr(), len);
        s.load(rest.as_ptr().cast())
    }
}
