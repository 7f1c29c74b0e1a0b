//! The score product of a few query rows and one run of keys, columns in lanes.

use regard_simd::{Element, Op, Simd};

/// What is multiplied in lanes, and what products add up to.
pub(crate) trait Product: 'static {
    /// The element type of keys.
    type Element: Element;

    /// Columns of a unit for each lane: a unit is two vectors.
    const LANE_COLUMNS: usize;

    /// The first `len` columns of a unit, in the order of the packed queries; the others are zero.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn load<S: Simd>(s: S, p: *const Self::Element, len: usize) -> [S::F32; 2];

    /// `acc + a * b`
    fn mul_add<S: Simd>(s: S, a: S::F32, b: S::F32, acc: S::F32) -> S::F32;

    /// Chains of a score of a single row in each lane, one or two, which take turns.
    const CHAINS: usize = 1;

    /// What the chains of each lane add up to.
    #[inline(always)]
    fn join<S: Simd>(_s: S, chains: [S::F32; 2]) -> S::F32 {
        chains[0]
    }

    /// Lane `i` is the score whose lanes are `parts[i]`. Of packed queries, `1` in lane `i` is worth `quanta[i]`.
    ///
    /// # Safety
    /// A vector of quanta is readable, if queries have any.
    unsafe fn total<S: Simd, const N: usize>(s: S, parts: [S::F32; N], quanta: *const f32) -> S::F32;
}

/// Scores of `keys` keys against `R` rows: one vector for each step of `G` keys, in which lane `g * (L / G) + r` holds the
/// score of the step's key `g` and row `r`.
///
/// One score is `L` chains of multiply-adds, one for each lane, over the columns `lane`, `lane + L`, ... in ascending order (of
/// integers: in any), then one tree of additions: the same whatever `G`, `K`, and wherever the key stands. A single row may have
/// twice as many chains. The sums of `L` pairs of key and row
/// are taken together, lane by lane, so that a score costs two or three shuffles and additions and no reduction of its own.
///
/// `K` keys at a time share the loads of query vectors, and all rows those of a key, which is widened once. More keys than
/// registers ask for do harm: memory is read best in few streams.
///
/// With eight rows of f32, sums over lanes are a third of the instructions. To multiply quarters of vectors instead, four rows and
/// four columns at a time, takes a fifth of the shuffles for twice the loads, with the same bits; on a Xeon with AMX it gains
/// nothing with eight rows, and loses a tenth with five.
pub(super) struct Scores<P: Product, const R: usize, const G: usize, const K: usize, const L: usize>(
    pub(super) ScoreArgs<P::Element>,
);

/// The arguments of [`Scores`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScoreArgs<E> {
    /// `[unit][row][2 * L]`: the columns of a unit in the order of [`Product::load`], zero past `d`.
    pub(super) q: *const f32,
    /// `[L]`: what `1` is worth in the packed query of each lane's row.
    pub(super) quanta: *const f32,
    pub(super) k: *const E,
    /// Elements from one key to the next.
    pub(super) k_stride: usize,
    pub(super) keys: usize,
    pub(super) d: usize,
    /// `[step][L]`
    pub(super) scores: *mut f32,
    /// Elements from a key to what is prefetched with it; 0 asks for the key itself, which does no harm.
    pub(super) ahead: usize,
}

impl<P: Product, const R: usize, const G: usize, const K: usize, const L: usize> Op for Scores<P, R, G, K, L> {
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
                    self.tile::<S, K, true>(s, key + g, g, &mut parts);
                }
                s.store(scores, P::total(s, parts, self.0.quanta));
                scores = scores.add(L);
                key += G;
            }
            if key < self.0.keys {
                let mut parts = [s.zero(); L];
                for g in 0..self.0.keys - key {
                    self.tile::<S, 1, true>(s, key + g, g, &mut parts);
                }
                s.store(scores, P::total(s, parts, self.0.quanta));
            }
        }
    }
}

impl<P: Product, const R: usize, const G: usize, const K: usize, const L: usize> Scores<P, R, G, K, L> {
    /// Whether queries stay in registers while keys pass, or keys while queries pass.
    const QUERIES_STAY: bool = R <= K;

    /// Chains of a score in each lane. More rows have chains enough.
    const CHAINS: usize = if R == 1 { P::CHAINS } else { 1 };

    /// The `N` keys from `key` on, the step's keys from `g` on; may `ASK` for what comes later.
    ///
    /// # Safety
    /// The keys exist.
    #[inline(always)]
    pub(super) unsafe fn tile<S: Simd, const N: usize, const ASK: bool>(
        &self,
        s: S,
        key: usize,
        g: usize,
        parts: &mut [S::F32; L],
    ) {
        let mut acc = [[[s.zero(); 2]; R]; N];
        // SAFETY: the caller's contract; keys have `d` elements, and `q` has all units.
        unsafe {
            let mut k = self.0.k.add(key * self.0.k_stride);
            let mut q = self.0.q;
            let width = P::LANE_COLUMNS * L;
            for _ in 0..self.0.d / width {
                self.unit::<S, N, ASK>(s, k, q, width, &mut acc);
                k = k.add(width);
                q = q.add(R * 2 * L);
            }
            let rest = self.0.d % width;
            if rest > 0 {
                self.unit::<S, N, false>(s, k, q, rest, &mut acc);
            }
        }
        for i in 0..N {
            for r in 0..R {
                parts[(g + i) * (L / G) + r] = if Self::CHAINS == 2 { P::join(s, acc[i][r]) } else { acc[i][r][0] };
            }
        }
    }

    /// Asks for what comes `ahead` of half a unit of a key, where a line starts: one line, with the multiply-adds of half a unit
    /// before the next one.
    ///
    /// Two neighbours asked for at once are slow: a Xeon with AMX reads keys for eight rows of f32 at 58 to 62 ns per KiB so, and at 78
    /// to 85 with both lines of a unit asked for together; reading alone takes 61 to 70. To put half of the rows between the lines of two
    /// keys gains nothing more (eight rows of f32 and f16).
    #[inline(always)]
    fn ask<S: Simd>(&self, s: S, key: *const P::Element, half: usize) {
        let lines = (P::LANE_COLUMNS * L).div_ceil(P::Element::PER_LINE);
        for line in (half * lines).div_ceil(2)..((half + 1) * lines).div_ceil(2) {
            s.prefetch_far(key.wrapping_add(self.0.ahead + line * P::Element::PER_LINE).cast());
        }
    }

    /// `len` columns, at most a unit, of `N` keys. If it is a whole one, it may `ASK` for what comes later.
    ///
    /// # Safety
    /// The columns exist in `q` and in the keys.
    #[inline(always)]
    unsafe fn unit<S: Simd, const N: usize, const ASK: bool>(
        &self,
        s: S,
        k: *const P::Element,
        q: *const f32,
        len: usize,
        acc: &mut [[[S::F32; 2]; R]; N],
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
                    let at = k.add(i * self.0.k_stride);
                    let key = P::load(s, at, len);
                    for half in 0..2 {
                        if ASK {
                            self.ask(s, at, half);
                        }
                        for r in 0..R {
                            let sum = &mut acc[i][r][half % Self::CHAINS];
                            *sum = P::mul_add(s, key[half], rows[r][half], *sum);
                        }
                    }
                }
            } else {
                let mut keys = [[s.zero(); 2]; N];
                for i in 0..N {
                    keys[i] = P::load(s, k.add(i * self.0.k_stride), len);
                }
                for half in 0..2 {
                    for i in 0..if ASK { N } else { 0 } {
                        self.ask(s, k.add(i * self.0.k_stride), half);
                    }
                    for r in 0..R {
                        let row = s.load(q.add((r * 2 + half) * L));
                        for i in 0..N {
                            let sum = &mut acc[i][r][half % Self::CHAINS];
                            *sum = P::mul_add(s, keys[i][half], row, *sum);
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
