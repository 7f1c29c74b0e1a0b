//! The score product of a few query rows and one run of keys, columns in lanes.

use regard_simd::{Element, Op, Simd};

/// Scores of `keys` keys against `R` rows: one vector for each step of `G` keys, in which lane `g * (L / G) + r` holds the
/// score of the step's key `g` and row `r`.
///
/// One score is `L` chains of multiply-adds, one for each lane, over the columns `lane`, `lane + L`, ... in ascending order, then
/// one tree of additions: the same whatever `R`, `G`, `K`, and wherever the key stands. The sums of `L` pairs of key and row
/// are taken together, lane by lane, so that a score costs two or three shuffles and additions and no reduction of its own.
///
/// `K` keys at a time share the loads of query vectors, and all rows those of a key, which is widened once. More keys than
/// registers ask for do harm: memory is read best in few streams.
pub(super) struct Scores<E, const R: usize, const G: usize, const K: usize, const L: usize>(pub(super) ScoreArgs<E>);

/// The arguments of [`Scores`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScoreArgs<E> {
    /// `[unit][row][2 * L]`: a unit is `2 * L` columns in the order of [`Element::load_pair`], zero past `d`.
    pub(super) q: *const f32,
    pub(super) k: *const E,
    /// Elements from one key to the next.
    pub(super) k_stride: usize,
    pub(super) keys: usize,
    pub(super) d: usize,
    /// `[step][L]`
    pub(super) scores: *mut f32,
    /// Elements from a key to what is prefetched with it.
    pub(super) ahead: usize,
}

impl<E: Element, const R: usize, const G: usize, const K: usize, const L: usize> Op for Scores<E, R, G, K, L> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        const { assert!(L == S::LANES && R * G <= L && L.is_multiple_of(G) && G.is_multiple_of(K)) };
        let mut key = 0;
        let mut scores = self.0.scores;
        // SAFETY: keys `key..` exist, and `scores` has a vector for each step.
        unsafe {
            while key + G <= self.0.keys {
                let mut parts = [s.zero(); L];
                for g in (0..G).step_by(K) {
                    self.tile::<S, K>(s, key + g, g, &mut parts);
                }
                s.store(scores, s.lane_sums(parts));
                scores = scores.add(L);
                key += G;
            }
            if key < self.0.keys {
                let mut parts = [s.zero(); L];
                for g in 0..self.0.keys - key {
                    self.tile::<S, 1>(s, key + g, g, &mut parts);
                }
                s.store(scores, s.lane_sums(parts));
            }
        }
    }
}

impl<E: Element, const R: usize, const G: usize, const K: usize, const L: usize> Scores<E, R, G, K, L> {
    /// Whether queries stay in registers while keys pass, or keys while queries pass.
    const QUERIES_STAY: bool = R <= K;

    /// The `N` keys from `key` on, the step's keys from `g` on.
    ///
    /// # Safety
    /// The keys exist.
    #[inline(always)]
    unsafe fn tile<S: Simd, const N: usize>(&self, s: S, key: usize, g: usize, parts: &mut [S::F32; L]) {
        let mut acc = [[s.zero(); R]; N];
        // SAFETY: the caller's contract; keys have `d` elements, and `q` has all units.
        unsafe {
            let mut k = self.0.k.add(key * self.0.k_stride);
            let mut q = self.0.q;
            for _ in 0..self.0.d / (2 * L) {
                for i in 0..N {
                    for line in 0..(2 * L).div_ceil(E::PER_LINE) {
                        let line = line * E::PER_LINE;
                        s.prefetch_far(k.wrapping_add(i * self.0.k_stride + self.0.ahead + line).cast());
                    }
                }
                self.unit::<S, N>(s, k, q, 2 * L, &mut acc);
                k = k.add(2 * L);
                q = q.add(R * 2 * L);
            }
            let rest = self.0.d % (2 * L);
            if rest > 0 {
                self.unit::<S, N>(s, k, q, rest, &mut acc);
            }
        }
        for i in 0..N {
            for r in 0..R {
                parts[(g + i) * (L / G) + r] = acc[i][r];
            }
        }
    }

    /// `len` columns, at most two vectors, of `N` keys.
    ///
    /// # Safety
    /// The columns exist in `q` and in the keys.
    #[inline(always)]
    unsafe fn unit<S: Simd, const N: usize>(
        &self,
        s: S,
        k: *const E,
        q: *const f32,
        len: usize,
        acc: &mut [[S::F32; R]; N],
    ) {
        // SAFETY: the caller's contract.
        unsafe {
            if Self::QUERIES_STAY {
                let mut rows = [[s.zero(); 2]; R];
                for r in 0..R {
                    for half in 0..2 {
                        rows[r][half] = s.load(q.add((r * 2 + half) * L));
                    }
                }
                for i in 0..N {
                    let key = load(s, k.add(i * self.0.k_stride), len);
                    for half in 0..2 {
                        for r in 0..R {
                            acc[i][r] = s.mul_add(key[half], rows[r][half], acc[i][r]);
                        }
                    }
                }
            } else {
                let mut keys = [[s.zero(); 2]; N];
                for i in 0..N {
                    keys[i] = load(s, k.add(i * self.0.k_stride), len);
                }
                for half in 0..2 {
                    for r in 0..R {
                        let row = s.load(q.add((r * 2 + half) * L));
                        for i in 0..N {
                            acc[i][r] = s.mul_add(keys[i][half], row, acc[i][r]);
                        }
                    }
                }
            }
        }
    }
}

/// The first `len` columns of a unit; the others are zero.
///
/// # Safety
/// They are readable.
#[inline(always)]
pub(super) unsafe fn load<S: Simd, E: Element>(s: S, p: *const E, len: usize) -> [S::F32; 2] {
    // SAFETY: the caller's contract.
    unsafe { if len == 2 * S::LANES { E::load_pair(s, p) } else { E::load_pair_first(s, p, len) } }
}
