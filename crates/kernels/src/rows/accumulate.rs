//! The value product of a few query rows and one run of keys, columns in lanes.

use regard_simd::{Element, Op, Simd};

use super::scores::load;

/// Adds the sum of `weights * v` over the keys of a block to `R` rows of `sums`, times `alpha`. The keys come in runs: the first
/// one starts from zero, and the last one adds.
///
/// One sum is one chain of multiply-adds over the keys of the block in ascending order, whatever `R`, `C` and the runs.
/// `C` is the number of units, two vectors of columns each, and `P` that of rows, whose sums stay in registers. Memory is read best
/// when all columns of a value are read at once, so that rows are what is shared out where there are too many sums; elements that
/// cost something to widen are better widened once.
pub(super) struct Accumulate<E, const R: usize, const G: usize, const C: usize, const P: usize, const L: usize>(
    pub(super) AccumulateArgs<E>,
);

/// The arguments of [`Accumulate`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct AccumulateArgs<E> {
    /// `[step][L]`, as [`super::scores::Scores`] lays them out.
    pub(super) weights: *const f32,
    /// Place of the run's first key in the block.
    pub(super) first: usize,
    pub(super) v: *const E,
    /// Elements from one key's values to the next's.
    pub(super) v_stride: usize,
    pub(super) keys: usize,
    pub(super) d_v: usize,
    /// `[unit][row][2 * L]`, columns in the order of [`Element::load_pair`]: the sums of the block's runs so far.
    pub(super) block_sums: *mut f32,
    /// In the same order: the sums of all blocks so far.
    pub(super) sums: *mut f32,
    /// `[row]`: what `1` is worth in the weights of each row.
    pub(super) quanta: *const f32,
    /// Factor of `sums` per row; null for 1.
    pub(super) alpha: *const f32,
    /// Whether the run is the first, and the last, of its block.
    pub(super) ends: [bool; 2],
    /// `[step]`: one bit for each lane that sees its key; null if weights of others may be multiplied with their values.
    pub(super) visible: *const u64,
    /// Elements from a key to what is prefetched with it; 0 asks for the key itself, which does no harm.
    pub(super) ahead: usize,
    /// Room for the values of the block as the form multiplies them, if groups share them; null if not.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only tile registers need it"))]
    pub(super) kept: *mut f32,
    /// Whether this is the first group that multiplies the run, which keeps them, and not one that finds them there.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only tile registers need it"))]
    pub(super) keeps: bool,
}

impl<E: Element, const R: usize, const G: usize, const C: usize, const P: usize, const L: usize> Op
    for Accumulate<E, R, G, C, P, L>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        const { assert!(L == S::LANES && R * G <= L && L.is_multiple_of(G) && 1 <= P && P <= R) };
        let mut row = 0;
        while row + P <= R {
            self.columns::<S, P, true>(s, row);
            row += P;
        }
        while row < R {
            self.columns::<S, 1, false>(s, row);
            row += 1;
        }
    }
}

impl<E: Element, const R: usize, const G: usize, const C: usize, const P: usize, const L: usize>
    Accumulate<E, R, G, C, P, L>
{
    /// Passes that ask for memory, each for its share: asked for by the first one alone, memory would rest while others compute.
    const PASSES: usize = R / P;

    /// All columns of `Q` rows from row `row` on; whether they `ASK` for their share of memory.
    #[inline(always)]
    fn columns<S: Simd, const Q: usize, const ASK: bool>(&self, s: S, row: usize) {
        let mut c = 0;
        while c + C * 2 * L <= self.0.d_v {
            self.tile::<S, Q, C, ASK>(s, row, c, 2 * L);
            c += C * 2 * L;
        }
        if C > 2 && c + 4 * L <= self.0.d_v {
            self.tile::<S, Q, 2, ASK>(s, row, c, 2 * L);
            c += 4 * L;
        }
        while c < self.0.d_v {
            self.tile::<S, Q, 1, ASK>(s, row, c, (self.0.d_v - c).min(2 * L));
            c += 2 * L;
        }
    }

    /// `N` units from column `c` on, of `len` columns each, and `Q` rows from row `row` on.
    #[inline(always)]
    fn tile<S: Simd, const Q: usize, const N: usize, const ASK: bool>(&self, s: S, row: usize, c: usize, len: usize) {
        let args = &self.0;
        let mut acc = [[[s.zero(); 2]; Q]; N];
        // SAFETY: the columns exist in `v` and in the sums, the keys in `v` and `weights`.
        unsafe {
            let block_sums = args.block_sums.add(c * R + row * 2 * L);
            if !args.ends[0] {
                for unit in 0..N {
                    for r in 0..Q {
                        let sums = block_sums.add((unit * R + r) * 2 * L);
                        acc[unit][r] = [s.load(sums), s.load(sums.add(L))];
                    }
                }
            }
            let v = args.v.add(c);
            if args.visible.is_null() {
                self.keys::<S, Q, N, ASK>(s, row, v, len, &mut acc);
            } else {
                self.seen_keys::<S, Q, N>(s, row, v, len, &mut acc);
            }
            if !args.ends[1] {
                for unit in 0..N {
                    for r in 0..Q {
                        let sums = block_sums.add((unit * R + r) * 2 * L);
                        s.store(sums, acc[unit][r][0]);
                        s.store(sums.add(L), acc[unit][r][1]);
                    }
                }
                return;
            }
            for r in 0..Q {
                let alpha = s.splat(if args.alpha.is_null() { 1.0 } else { *args.alpha.add(row + r) });
                for unit in 0..N {
                    let sums = args.sums.add(c * R + (unit * R + row + r) * 2 * L);
                    s.store(sums, s.mul_add(s.load(sums), alpha, acc[unit][r][0]));
                    s.store(sums.add(L), s.mul_add(s.load(sums.add(L)), alpha, acc[unit][r][1]));
                }
            }
        }
    }

    /// All keys of the run.
    ///
    /// # Safety
    /// `N` units of `len` columns exist from `v` on, and `Q` rows from `row` on.
    #[inline(always)]
    unsafe fn keys<S: Simd, const Q: usize, const N: usize, const ASK: bool>(
        &self,
        s: S,
        row: usize,
        v: *const E,
        len: usize,
        acc: &mut [[[S::F32; 2]; Q]; N],
    ) {
        let args = &self.0;
        let (mut v, mut place, end) = (v, args.first, args.first + args.keys);
        // SAFETY: the caller's contract.
        unsafe {
            // Up to the next step, whole steps, and the rest.
            while place < end && !place.is_multiple_of(G) {
                self.key::<S, Q, N, ASK>(s, [row, place], v, len, acc);
                v = v.wrapping_add(args.v_stride);
                place += 1;
            }
            while place + G <= end {
                for g in 0..G {
                    self.key::<S, Q, N, ASK>(s, [row, place + g], v, len, acc);
                    v = v.wrapping_add(args.v_stride);
                }
                place += G;
            }
            while place < end {
                self.key::<S, Q, N, ASK>(s, [row, place], v, len, acc);
                v = v.wrapping_add(args.v_stride);
                place += 1;
            }
        }
    }

    /// The key at `place` of the block, whose values start at `v`.
    ///
    /// # Safety
    /// The key exists in `weights` for `Q` rows from `row` on, and `N` units of `len` columns from `v` on.
    #[inline(always)]
    unsafe fn key<S: Simd, const Q: usize, const N: usize, const ASK: bool>(
        &self,
        s: S,
        [row, place]: [usize; 2],
        v: *const E,
        len: usize,
        acc: &mut [[[S::F32; 2]; Q]; N],
    ) {
        // SAFETY: the caller's contract.
        unsafe {
            let weights = self.0.weights.add(place / G * L + place % G * (L / G) + row);
            let mut weight = [s.zero(); Q];
            for r in 0..Q {
                weight[r] = s.splat(*weights.add(r));
            }
            let share = N.div_ceil(Self::PASSES);
            let first = (row / P * share).min(N - share);
            let ask = v.wrapping_add(self.0.ahead + first * 2 * L);
            // A line at a time, evenly: two neighbours at once are slow (see the scores). A unit may be less than a line, which is
            // asked for again then.
            let lines = if ASK { share * (2 * L).div_ceil(E::PER_LINE) } else { 0 };
            let line_columns = E::PER_LINE.min(2 * L);
            let upto = |place: usize| (place * lines).div_ceil(2 * N);
            for unit in 0..N {
                let v = load(s, v.add(unit * 2 * L), len);
                for half in 0..2 {
                    let place = 2 * unit + half;
                    for line in upto(place)..upto(place + 1) {
                        s.prefetch_far(ask.wrapping_add(line * line_columns).cast());
                    }
                    for r in 0..Q {
                        acc[unit][r][half] = s.mul_add(v[half], weight[r], acc[unit][r][half]);
                    }
                }
            }
        }
    }

    /// The same chains without the links of keys that a row does not see: their values may be NaN or Inf, whose product with
    /// a weight of zero is not zero.
    ///
    /// # Safety
    /// As for [`Self::keys`].
    #[inline(always)]
    unsafe fn seen_keys<S: Simd, const Q: usize, const N: usize>(
        &self,
        s: S,
        row: usize,
        v: *const E,
        len: usize,
        acc: &mut [[[S::F32; 2]; Q]; N],
    ) {
        let args = &self.0;
        for key in 0..args.keys {
            let place = args.first + key;
            // SAFETY: the caller's contract; `visible` has a word for each step.
            unsafe {
                let lane = place % G * (L / G) + row;
                let bits = *args.visible.add(place / G) >> lane;
                let weights = args.weights.add(place / G * L + lane);
                for unit in 0..N {
                    let v = load(s, v.add(key * args.v_stride + unit * 2 * L), len);
                    for r in 0..Q {
                        if bits >> r & 1 == 1 {
                            let weight = s.splat(*weights.add(r));
                            acc[unit][r][0] = s.mul_add(v[0], weight, acc[unit][r][0]);
                            acc[unit][r][1] = s.mul_add(v[1], weight, acc[unit][r][1]);
                        }
                    }
                }
            }
        }
    }
}
