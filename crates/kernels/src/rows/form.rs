//! What the arithmetic of a rows kernel works on: elements widened to f32, or pairs of bf16.

use std::marker::PhantomData;

use regard_simd::{Element, Op, Simd, bf16};

use super::accumulate::{Accumulate, AccumulateArgs};
use super::dots::{AccumulateDots, ScoreDots, query_place};
use super::scores::{ScoreArgs, Scores};

/// A form of K and V in registers, with the products that go with it: `R` rows, `G` keys of a step, `L` lanes.
pub(crate) trait Form: 'static {
    /// The element type of K and V.
    type Element: Element;

    /// Whether the weights of two keys are multiplied at once: [`PairWeights`] goes before [`Form::accumulate`].
    const PAIRS: bool;

    /// Writes element `c` of query row `r` of `rows` to where [`Form::scores`] looks for it.
    ///
    /// # Safety
    /// `to` has room for the packed queries.
    unsafe fn put_query(to: *mut f32, rows: usize, r: usize, c: usize, lanes: usize, value: f32);

    /// The score product, `K` keys at a time.
    fn scores<S: Simd, const R: usize, const G: usize, const K: usize, const L: usize>(
        s: S,
        args: ScoreArgs<Self::Element>,
    );

    /// The value product, `C` units of columns at a time.
    fn accumulate<S: Simd, const R: usize, const G: usize, const C: usize, const L: usize>(
        s: S,
        args: AccumulateArgs<Self::Element>,
    );

    /// Where the sum of column `i` of a unit lies, counted through two vectors.
    fn place(i: usize, lanes: usize) -> usize;
}

/// Elements widened to f32, in the order of [`Element::load_pair`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Widened<E>(PhantomData<E>);

impl<E: Element> Form for Widened<E> {
    type Element = E;
    const PAIRS: bool = false;

    unsafe fn put_query(to: *mut f32, rows: usize, r: usize, c: usize, lanes: usize, value: f32) {
        let width = 2 * lanes;
        let place = (c / width * rows + r) * width + E::place(c % width, lanes);
        // SAFETY: the caller's contract.
        unsafe { *to.add(place) = value };
    }

    #[inline(always)]
    fn scores<S: Simd, const R: usize, const G: usize, const K: usize, const L: usize>(s: S, args: ScoreArgs<E>) {
        s.vectorize(Scores::<E, R, G, K, L>(args));
    }

    #[inline(always)]
    fn accumulate<S: Simd, const R: usize, const G: usize, const C: usize, const L: usize>(
        s: S,
        args: AccumulateArgs<E>,
    ) {
        s.vectorize(Accumulate::<E, R, G, C, L>(args));
    }

    fn place(i: usize, lanes: usize) -> usize {
        E::place(i, lanes)
    }
}

/// Pairs of bf16, multiplied and added pair by pair.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "no kernel of other levels is of pairs"))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dots;

impl Form for Dots {
    type Element = bf16;
    const PAIRS: bool = true;

    unsafe fn put_query(to: *mut f32, rows: usize, r: usize, c: usize, lanes: usize, value: f32) {
        let (word, half) = query_place(rows, r, c, lanes);
        // SAFETY: the caller's contract.
        unsafe { *to.add(word).cast::<bf16>().add(half) = bf16::narrow(value) };
    }

    #[inline(always)]
    fn scores<S: Simd, const R: usize, const G: usize, const K: usize, const L: usize>(s: S, args: ScoreArgs<bf16>) {
        s.vectorize(ScoreDots::<R, G, L>(args));
    }

    #[inline(always)]
    fn accumulate<S: Simd, const R: usize, const G: usize, const C: usize, const L: usize>(
        s: S,
        args: AccumulateArgs<bf16>,
    ) {
        s.vectorize(AccumulateDots::<R, G, C, L>(args));
    }

    fn place(i: usize, _lanes: usize) -> usize {
        i
    }
}

/// Rounds weights to bf16: a lane of an even key of a step then holds the pair of its weight and that of the next key.
pub(super) struct PairWeights {
    /// `[step][LANES]`, and a vector more that may hold anything.
    pub(super) weights: *mut f32,
    pub(super) steps: usize,
    /// Lanes from a key to the next.
    pub(super) row_lanes: usize,
}

impl Op for PairWeights {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for step in 0..self.steps {
            // SAFETY: there is a vector for each step, and one more.
            unsafe {
                let p = self.weights.add(step * S::LANES);
                s.store(p, s.pair_bf16(s.load(p), s.load(p.add(self.row_lanes))));
            }
        }
    }
}
