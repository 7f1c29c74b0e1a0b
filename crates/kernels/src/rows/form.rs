//! What the arithmetic of a rows kernel works on: elements widened to f32, pairs of bf16, or (in `fixed`) pairs of integers.

use std::marker::PhantomData;

use regard_simd::{Element, Op, Simd, bf16};

use super::abreast::{Abreast, Turns};
use super::accumulate::{Accumulate, AccumulateArgs};
use super::ask::Ask;
use super::dots::{self, AccumulateDots, Pairs, ScoreDots, query_words};
use super::pack::MOST_COLUMNS;
use super::scores::{self, Product, ScoreArgs, Scores};

/// A form of K and V in registers, with the products that go with it: `R` rows, `G` keys of a step, `L` lanes.
pub(crate) trait Form: 'static {
    /// The element type of K and V.
    type Element: Element;

    /// What a call holds while it computes.
    type Held;

    /// Whether elements are multiplied as they are, and not widened to f32.
    const NATIVE: bool = true;

    /// Runs of keys that are no multiple of this, but for the last one of a block, are put together first: the order of summation
    /// depends on where they end.
    const RUN_KEYS: usize = 1;

    /// Keys of a turn are a multiple of this.
    const TURN_KEYS: usize = 1;

    /// Bytes of an element of values as the value product takes them, if the first group that multiplies a block keeps them for the
    /// others; 0 if each reads them for itself.
    const KEPT_BYTES: usize = 0;

    /// Prepares this thread for rows that take this many lanes of a step.
    fn hold(row_lanes: usize) -> Self::Held;

    /// What `1` is to be worth in a packed query of so many columns, given the largest magnitude of them; NaN if one is.
    #[inline(always)]
    fn quantum(_largest: impl FnOnce() -> f32, _columns: usize) -> f32 {
        1.0
    }

    /// Writes `2 * LANES` columns of query row `r` of `rows`, from `c` on, which is a multiple of that, to where [`Form::scores`] looks
    /// for them. `place` is `[r, c, rows]`; the columns come first in `columns`.
    ///
    /// # Safety
    /// `to` has room for the packed queries.
    unsafe fn put_query<S: Simd>(s: S, to: *mut f32, place: [usize; 3], columns: &[f32; MOST_COLUMNS], quantum: f32);

    /// The score product, `K` keys at a time.
    fn scores<S: Simd, const R: usize, const G: usize, const K: usize, const L: usize>(
        s: S,
        args: ScoreArgs<Self::Element>,
    );

    /// Rewrites the weights of a block as [`Form::accumulate`] takes them.
    fn prepare<S: Simd>(s: S, weights: Weights);

    /// The value product, `C` units of columns and `P` rows at a time.
    fn accumulate<S: Simd, const R: usize, const G: usize, const C: usize, const P: usize, const L: usize>(
        s: S,
        args: AccumulateArgs<Self::Element>,
    );

    /// Whether [`Form::abreast`] computes anything.
    const ABREAST: bool = false;

    /// Both products for as many keys, whole steps of them, a few keys of each in turns; nothing is asked for.
    #[inline(always)]
    fn abreast<S: Simd, const R: usize, const G: usize, const L: usize>(
        _s: S,
        _scores: ScoreArgs<Self::Element>,
        _values: AccumulateArgs<Self::Element>,
    ) {
        unreachable!("no such products of this form")
    }

    /// Where the sum of column `i` of a unit lies, counted through two vectors.
    fn place(i: usize, lanes: usize) -> usize;
}

/// The weights of a block on their way to V.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weights {
    /// `[step][LANES]`, and a vector more that may hold anything.
    pub(super) weights: *mut f32,
    /// Scales of values, `[step][LANES]`; null for none.
    pub(super) scales: *const f32,
    /// `[step]`: one bit for each lane that sees its key.
    pub(super) visible: *const u64,
    /// `[LANES]`: what `1` is worth in the rewritten weights of each lane. Holds 1.
    pub(super) quanta: *mut f32,
    pub(super) steps: usize,
    pub(super) lanes: usize,
    /// Lanes from a key to the next.
    pub(super) row_lanes: usize,
    /// The most keys of a block.
    pub(super) key_block: usize,
    /// Values that come next.
    pub(super) ask: Ask,
}

/// Elements widened to f32, in the order of [`Element::load_pair`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Widened<E>(PhantomData<E>);

impl<E: Element> Product for Widened<E> {
    type Element = E;
    const LANE_COLUMNS: usize = 2;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const E, len: usize) -> [S::F32; 2] {
        // SAFETY: the caller's contract.
        unsafe { scores::load(s, p, len) }
    }

    #[inline(always)]
    fn mul_add<S: Simd>(s: S, a: S::F32, b: S::F32, acc: S::F32) -> S::F32 {
        s.mul_add(a, b, acc)
    }

    // One chain would make a row wait for its links, of four cycles or more each, for longer than memory does.
    const CHAINS: usize = 2;

    #[inline(always)]
    fn join<S: Simd>(s: S, [a, b]: [S::F32; 2]) -> S::F32 {
        s.add(a, b)
    }

    #[inline(always)]
    unsafe fn total<S: Simd, const N: usize>(s: S, parts: [S::F32; N], _quanta: *const f32) -> S::F32 {
        s.lane_sums(parts)
    }
}

impl<E: Element> Turns for Widened<E> {
    const PAIRS: bool = false;

    #[inline(always)]
    unsafe fn values<S: Simd, const N: usize>(s: S, p: *const E, stride: usize, len: usize) -> [[S::F32; 2]; N] {
        let mut values = [[s.zero(); 2]; N];
        for i in 0..N {
            // SAFETY: the caller's contract.
            values[i] = unsafe { scores::load(s, p.add(i * stride), len) };
        }
        values
    }

    #[inline(always)]
    fn worth<S: Simd>(_: S, sum: S::F32, _quantum: S::F32) -> S::F32 {
        sum
    }
}

impl<E: Element> Form for Widened<E> {
    type Element = E;
    type Held = ();

    const NATIVE: bool = false;

    fn hold(_row_lanes: usize) {}

    #[inline(always)]
    unsafe fn put_query<S: Simd>(
        _: S,
        to: *mut f32,
        [r, c, rows]: [usize; 3],
        columns: &[f32; MOST_COLUMNS],
        _quantum: f32,
    ) {
        let width = 2 * S::LANES;
        // SAFETY: the caller's contract.
        let unit = unsafe { std::slice::from_raw_parts_mut(to.add((c / width * rows + r) * width), width) };
        for i in 0..width {
            unit[E::place(i, S::LANES)] = columns[i];
        }
    }

    #[inline(always)]
    fn scores<S: Simd, const R: usize, const G: usize, const K: usize, const L: usize>(s: S, args: ScoreArgs<E>) {
        s.vectorize(Scores::<Self, R, G, K, L>(args));
    }

    #[inline(always)]
    fn prepare<S: Simd>(s: S, weights: Weights) {
        if !weights.scales.is_null() {
            s.vectorize(ScaleWeights(weights));
        }
    }

    #[inline(always)]
    fn accumulate<S: Simd, const R: usize, const G: usize, const C: usize, const P: usize, const L: usize>(
        s: S,
        args: AccumulateArgs<E>,
    ) {
        s.vectorize(Accumulate::<E, R, G, C, P, L>(args));
    }

    const ABREAST: bool = true;

    #[inline(always)]
    fn abreast<S: Simd, const R: usize, const G: usize, const L: usize>(
        s: S,
        scores: ScoreArgs<E>,
        values: AccumulateArgs<E>,
    ) {
        s.vectorize(Abreast::<Self, R, G, L> { scores, values });
    }

    fn place(i: usize, lanes: usize) -> usize {
        E::place(i, lanes)
    }
}

/// Pairs of bf16, multiplied and added pair by pair.
#[cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "aarch64")),
    allow(dead_code, reason = "no kernel of other levels is of pairs")
)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dots;

impl Pairs for Dots {
    type Element = bf16;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const bf16, len: usize) -> S::F32 {
        // SAFETY: the caller's contract.
        unsafe { dots::load(s, p, len) }
    }

    #[inline(always)]
    fn dot<S: Simd>(s: S, acc: S::F32, a: S::F32, b: S::F32) -> S::F32 {
        s.dot_bf16(acc, a, b)
    }

    #[inline(always)]
    fn total<S: Simd>(_: S, acc: S::F32, _quantum: S::F32) -> S::F32 {
        acc
    }
}

impl Form for Dots {
    type Element = bf16;
    type Held = ();

    fn hold(_row_lanes: usize) {}

    #[inline(always)]
    unsafe fn put_query<S: Simd>(
        s: S,
        to: *mut f32,
        [r, c, rows]: [usize; 3],
        columns: &[f32; MOST_COLUMNS],
        _quantum: f32,
    ) {
        let narrow = narrow_columns(s, columns);
        for i in (0..2 * S::LANES).step_by(dots::COLUMNS) {
            // SAFETY: the caller's contract.
            let words = unsafe { to.add(query_words(rows, r, c + i, S::LANES)).cast::<[bf16; dots::COLUMNS]>() };
            let columns = narrow[i..].first_chunk().expect("as many as a vector has places for");
            // SAFETY: as above.
            unsafe { words.write_unaligned(*columns) };
        }
    }

    #[inline(always)]
    fn scores<S: Simd, const R: usize, const G: usize, const K: usize, const L: usize>(s: S, args: ScoreArgs<bf16>) {
        s.vectorize(ScoreDots::<R, G, L>(args));
    }

    #[inline(always)]
    fn prepare<S: Simd>(s: S, weights: Weights) {
        s.vectorize(PairWeights(weights));
    }

    #[inline(always)]
    fn accumulate<S: Simd, const R: usize, const G: usize, const C: usize, const P: usize, const L: usize>(
        s: S,
        args: AccumulateArgs<bf16>,
    ) {
        s.vectorize(AccumulateDots::<Self, R, G, C, L>(args));
    }

    fn place(i: usize, _lanes: usize) -> usize {
        i
    }
}

/// The first `2 * LANES` columns of a query, rounded to bf16.
#[inline(always)]
pub(super) fn narrow_columns<S: Simd>(s: S, columns: &[f32; MOST_COLUMNS]) -> [bf16; MOST_COLUMNS] {
    let mut narrow = [bf16::ZERO; MOST_COLUMNS];
    for half in 0..2 {
        // SAFETY: both have two vectors.
        unsafe {
            let at = half * S::LANES;
            s.store_first_bf16(narrow.as_mut_ptr().add(at), s.load(columns.as_ptr().add(at)), S::LANES);
        }
    }
    narrow
}

/// Rounds weights to bf16: a lane of an even key of a step then holds the pair of its weight and that of the next key.
struct PairWeights(Weights);

impl Op for PairWeights {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Weights { weights, steps, row_lanes, ask, .. } = self.0;
        for step in 0..steps {
            ask.step(s, step);
            // SAFETY: there is a vector for each step, and one more.
            unsafe {
                let p = weights.add(step * S::LANES);
                s.store(p, s.pair_bf16(s.load(p), s.load(p.add(row_lanes))));
            }
        }
    }
}

/// Multiplies weights with the scales of values.
struct ScaleWeights(Weights);

impl Op for ScaleWeights {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Weights { weights, scales, steps, ask, .. } = self.0;
        for step in 0..steps {
            ask.step(s, step);
            // SAFETY: both have a vector for each step.
            unsafe {
                let p = weights.add(step * S::LANES);
                s.store(p, s.mul(s.load(p), s.load(scales.add(step * S::LANES))));
            }
        }
    }
}
