//! Both products at once, a key or a few at a time: scores of some keys of a block, and values of as many of the block before it.

use regard_simd::{Op, Simd};

use super::accumulate::AccumulateArgs;
use super::scores::{Product, ScoreArgs, Scores};

/// What sums of values are made of, a few keys at a time.
pub(crate) trait Turns: Product {
    /// Whether the weight of an even key is a pair with that of the next key.
    const PAIRS: bool;

    /// The first `len` columns of a unit of the values of `N` keys, as they meet weights: of each key, or of two keys in pairs, of
    /// which there are half as many.
    ///
    /// # Safety
    /// They are readable, `stride` elements apart.
    unsafe fn values<S: Simd, const N: usize>(
        s: S,
        p: *const Self::Element,
        stride: usize,
        len: usize,
    ) -> [[S::F32; 2]; N];

    /// What a sum from zero on is worth, if `1` in the weights is worth `quantum`.
    fn worth<S: Simd>(s: S, sum: S::F32, quantum: S::F32) -> S::F32;
}

/// What [`Scores`] and the value product do for as many keys, in turns of a few keys and as many values.
///
/// Keys and values are two streams, which a core reads faster together than one after the other, if it is made to go from one to the
/// other often: the processor's own prefetching follows both then. Zen 3, f32, 128 columns, both products in C from memory, large
/// pages, share of what four streams read at once: in turns of one or two keys 0.89, of four 0.72, of eight 0.77, of blocks of 128
/// 0.76; to ask for anything costs 0.05 to 0.3 of it.
///
/// Sums are not in registers here but in the first-level cache: each is loaded and stored once for the values of a turn.
pub(super) struct Abreast<P: Turns, const R: usize, const G: usize, const L: usize> {
    /// Whole steps of keys.
    pub(super) scores: ScoreArgs<P::Element>,
    /// As many keys.
    pub(super) values: AccumulateArgs<P::Element>,
}

impl<P: Turns, const R: usize, const G: usize, const L: usize> Op for Abreast<P, R, G, L> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        const { assert!(L == S::LANES && R * G <= L && L.is_multiple_of(G)) };
        const { assert!(!P::PAIRS || G.is_multiple_of(2), "pairs are of one step") };
        debug_assert!(self.scores.keys == self.values.keys && self.scores.keys.is_multiple_of(G));
        let scores = Scores::<P, R, G, 1, L>(self.scores);
        let values = &self.values;
        let padded = values.d_v.next_multiple_of(2 * L);
        // SAFETY: all columns of `R` rows exist in the sums, keys and their values in `k`, `v` and `weights`, and `scores` has a vector
        // for each step.
        unsafe {
            if values.ends[0] {
                values.block_sums.write_bytes(0, R * padded);
            }
            for step in 0..self.scores.keys / G {
                let mut parts = [s.zero(); L];
                for g in (0..G).step_by(Self::TURN) {
                    let key = step * G + g;
                    match Self::TURN {
                        1 => {
                            scores.tile::<S, 1, false>(s, key, g, &mut parts);
                            self.add::<S, 1>(s, key);
                        }
                        2 => {
                            scores.tile::<S, 2, false>(s, key, g, &mut parts);
                            self.add::<S, 2>(s, key);
                        }
                        _ => {
                            scores.tile::<S, 4, false>(s, key, g, &mut parts);
                            self.add::<S, 4>(s, key);
                        }
                    }
                }
                s.store(scores.0.scores.add(step * L), P::total(s, parts, scores.0.quanta));
            }
            if values.ends[1] {
                self.end(s, padded);
            }
        }
    }
}

impl<P: Turns, const R: usize, const G: usize, const L: usize> Abreast<P, R, G, L> {
    /// Keys of a turn: of a single row as many as are as long as one of f32, as memory is read best in order; of more rows, two, as each
    /// sum is loaded and stored once for both. Four of three rows and more, two rows at a time, do less of that, and lose a quarter by how
    /// memory is read (f32).
    const TURN: usize = {
        let short = 4 / size_of::<P::Element>();
        let keys = if R == 1 || short > 2 { short } else { 2 };
        if keys < G { keys } else { G }
    };

    /// Weights of a row for so many keys.
    const fn weights(keys: usize) -> usize {
        if P::PAIRS { keys / 2 } else { keys }
    }

    /// Adds the weighted values of `N` keys from `key` on to the sums of the block.
    ///
    /// # Safety
    /// The keys exist, and are of one step.
    #[inline(always)]
    unsafe fn add<S: Simd, const N: usize>(&self, s: S, key: usize) {
        let args = &self.values;
        let place = args.first + key;
        let mut weight = [[s.zero(); N]; R];
        // SAFETY: the caller's contract.
        unsafe {
            let weights = args.weights.add(place / G * L + place % G * (L / G));
            for i in 0..Self::weights(N) {
                let key = i * (N / Self::weights(N));
                for r in 0..R {
                    weight[r][i] = s.splat(*weights.add(key * (L / G) + r));
                }
            }
            let mut v = args.v.add(key * args.v_stride);
            let mut sums = args.block_sums;
            for _ in 0..args.d_v / (2 * L) {
                self.unit(s, v, sums, 2 * L, &weight);
                v = v.add(2 * L);
                sums = sums.add(R * 2 * L);
            }
            let rest = args.d_v % (2 * L);
            if rest > 0 {
                self.unit(s, v, sums, rest, &weight);
            }
        }
    }

    /// One unit of `len` columns.
    ///
    /// # Safety
    /// The columns of `N` values exist from `v` on, and those of the sums at `sums`.
    #[inline(always)]
    unsafe fn unit<S: Simd, const N: usize>(
        &self,
        s: S,
        v: *const P::Element,
        sums: *mut f32,
        len: usize,
        weight: &[[S::F32; N]; R],
    ) {
        // SAFETY: the caller's contract.
        unsafe {
            let values = P::values::<S, N>(s, v, self.values.v_stride, len);
            for r in 0..R {
                for half in 0..2 {
                    let at = sums.add((2 * r + half) * L);
                    let mut sum = s.load(at);
                    for i in 0..Self::weights(N) {
                        sum = P::mul_add(s, values[i][half], weight[r][i], sum);
                    }
                    s.store(at, sum);
                }
            }
        }
    }

    /// Adds the sums of the block to those of all blocks.
    ///
    /// # Safety
    /// Both have `padded` columns of each row.
    #[inline(always)]
    unsafe fn end<S: Simd>(&self, s: S, padded: usize) {
        let args = &self.values;
        for r in 0..R {
            // SAFETY: the caller's contract; there is a quantum for each row, and a factor, if any.
            unsafe {
                let alpha = s.splat(if args.alpha.is_null() { 1.0 } else { *args.alpha.add(r) });
                let quantum = s.splat(*args.quanta.add(r));
                for c in (0..padded).step_by(2 * L) {
                    for half in 0..2 {
                        let at = c * R + (2 * r + half) * L;
                        let sums = args.sums.add(at);
                        let sum = P::worth(s, s.load(args.block_sums.add(at)), quantum);
                        s.store(sums, s.mul_add(s.load(sums), alpha, sum));
                    }
                }
            }
        }
    }
}
