//! Tiles of bytes, with queries and weights in fixed point of two bytes: the sums are those of [`Fixed`], and so is
//! every bit of a group of as many rows.

use std::marker::PhantomData;

use regard_simd::{Avx512Amx, Simd, TileRegisters};

use super::scores::TileScores;
use super::values::TileValues;
use super::weights::{Chunk, Narrow, TileWeights, turn};
use super::{Buffer, ROW_BYTES, ROWS, TILE, Tiled, hold, put_words, token};
use crate::rows::accumulate::AccumulateArgs;
use crate::rows::ask::Ask;
use crate::rows::fixed::{self, Fixed};
use crate::rows::form::{Form, Weights};
use crate::rows::pack::MOST_COLUMNS;
use crate::rows::scores::ScoreArgs;

type F32 = <Avx512Amx as Simd>::F32;

/// Groups of four bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TiledInt8;

impl Tiled for TiledInt8 {
    type Element = i8;
    const PARTS: usize = 2;
    const GROUP: usize = 4;

    #[inline(always)]
    unsafe fn dot<const C: usize, const A: usize, const B: usize>(s: Avx512Amx) {
        // SAFETY: the caller's contract.
        unsafe { s.tile_dot_i8::<C, A, B>() };
    }

    #[inline(always)]
    fn join(s: Avx512Amx, [high, low]: [F32; 2]) -> F32 {
        s.join_bytes(high, low)
    }

    #[inline(always)]
    fn interleave(s: Avx512Amx, values: [F32; 4]) -> [F32; 4] {
        s.interleave_bytes(values)
    }

    #[inline(always)]
    fn in_order(s: Avx512Amx, sums: [F32; 4]) -> [F32; 4] {
        // Lanes 4 j.. of vector t are those of columns 16 j + 4 t..
        let (mut from, mut to) = (Buffer([0.0; 4 * ROWS]), Buffer([0.0; 4 * ROWS]));
        // SAFETY: both have four vectors.
        unsafe {
            for t in 0..4 {
                s.store(from.0.as_mut_ptr().add(t * ROWS), sums[t]);
            }
            for t in 0..4 {
                for j in 0..4 {
                    let (from, to) = (from.0.as_ptr().add(t * ROWS + 4 * j), to.0.as_mut_ptr().add(ROWS * j + 4 * t));
                    to.copy_from_nonoverlapping(from, 4);
                }
            }
            let to = to.0.as_ptr();
            [s.load(to), s.load(to.add(ROWS)), s.load(to.add(2 * ROWS)), s.load(to.add(3 * ROWS))]
        }
    }
}

impl Narrow for TiledInt8 {
    #[inline(always)]
    unsafe fn factor(s: Avx512Amx, weights: &Weights) -> F32 {
        // SAFETY: the caller's contract.
        unsafe { fixed::inverse(s, weights) }
    }

    #[inline(always)]
    unsafe fn narrow(s: Avx512Amx, chunk: &Chunk, row_lanes: usize, to: *mut f32) {
        let to = to.cast::<i8>();
        for quarter in 0..4 {
            let keys = chunk.0[quarter * TILE..].first_chunk().expect("a quarter of a chunk");
            let turned = turn(s, keys);
            for row in 0..row_lanes {
                // SAFETY: the caller's contract.
                unsafe {
                    let high = to.add(row * ROW_BYTES + quarter * ROWS);
                    let weights = s.load(turned.0.as_ptr().add(row * ROWS));
                    s.store_bytes(weights, high, high.add(row_lanes * ROW_BYTES));
                }
            }
        }
    }
}

impl Form for TiledInt8 {
    type Element = i8;
    type Held = TileRegisters;
    const TURN_KEYS: usize = Self::COLUMNS;
    const KEPT_BYTES: usize = 1;

    fn hold(row_lanes: usize) -> TileRegisters {
        hold::<Self>(row_lanes)
    }

    #[inline(always)]
    fn quantum(largest: impl FnOnce() -> f32, columns: usize) -> f32 {
        Fixed::quantum(largest, columns)
    }

    #[inline(always)]
    unsafe fn put_query<S: Simd>(_: S, to: *mut f32, place: [usize; 3], columns: &[f32; MOST_COLUMNS], quantum: f32) {
        let multiples = fixed::whole_multiples(columns, quantum);
        let (mut high, mut low) = ([0; MOST_COLUMNS], [0; MOST_COLUMNS]);
        for i in 0..MOST_COLUMNS {
            low[i] = multiples[i] as i8;
            high[i] = (multiples[i].wrapping_sub(i16::from(low[i])) >> 8) as i8;
        }
        // SAFETY: the caller's contract.
        unsafe { put_words::<Self>(to, place, &[high, low]) };
    }

    #[inline(always)]
    fn scores<S: Simd, const R: usize, const G: usize, const K: usize, const L: usize>(_: S, args: ScoreArgs<i8>) {
        token().vectorize(TileScores::<Self, G, L>(token(), args, PhantomData));
    }

    #[inline(always)]
    fn prepare<S: Simd>(s: S, weights: Weights) {
        fixed::scale(s, weights);
        let weights = Weights { ask: Ask { lines: 0, ..weights.ask }, ..weights };
        token().vectorize(TileWeights::<Self>(token(), weights, PhantomData));
    }

    #[inline(always)]
    fn accumulate<S: Simd, const R: usize, const G: usize, const C: usize, const P: usize, const L: usize>(
        _: S,
        args: AccumulateArgs<i8>,
    ) {
        token().vectorize(TileValues::<Self, R, G, L>(token(), args, PhantomData));
    }

    fn place(i: usize, _lanes: usize) -> usize {
        i
    }
}
