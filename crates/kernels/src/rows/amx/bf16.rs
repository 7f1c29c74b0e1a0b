//! Tiles of bf16, with queries and weights rounded to it.

use std::marker::PhantomData;

use regard_simd::{Avx512Amx, Simd, TileRegisters, bf16};

use super::scores::TileScores;
use super::values::TileValues;
use super::weights::{Chunk, Narrow, TileWeights, turn};
use super::{Buffer, ROWS, TILE, Tiled, hold, put_words, token};
use crate::rows::accumulate::AccumulateArgs;
use crate::rows::form::{Form, Weights, narrow_columns};
use crate::rows::pack::MOST_COLUMNS;
use crate::rows::scores::ScoreArgs;

type F32 = <Avx512Amx as Simd>::F32;

/// Pairs of bf16.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TiledBf16;

impl Tiled for TiledBf16 {
    type Element = bf16;
    const PARTS: usize = 1;
    const GROUP: usize = 2;

    #[inline(always)]
    unsafe fn dot<const C: usize, const A: usize, const B: usize>(s: Avx512Amx) {
        // SAFETY: the caller's contract.
        unsafe { s.tile_dot_bf16::<C, A, B>() };
    }

    #[inline(always)]
    fn join(_: Avx512Amx, [sum, _]: [F32; 2]) -> F32 {
        sum
    }

    #[inline(always)]
    fn interleave(s: Avx512Amx, [even, odd, rest @ ..]: [F32; 4]) -> [F32; 4] {
        let [low, high] = s.interleave(even, odd);
        [low, high, rest[0], rest[1]]
    }

    #[inline(always)]
    fn in_order(_: Avx512Amx, sums: [F32; 4]) -> [F32; 4] {
        sums
    }
}

impl Narrow for TiledBf16 {
    #[inline(always)]
    unsafe fn factor(s: Avx512Amx, _: &Weights) -> F32 {
        s.splat(1.0)
    }

    #[inline(always)]
    unsafe fn narrow(s: Avx512Amx, chunk: &Chunk, row_lanes: usize, to: *mut f32) {
        let mut pairs = Buffer([0.0; TILE]);
        // SAFETY: the chunk has 32 keys, and the caller's contract.
        unsafe {
            for pair in 0..ROWS {
                let weights = chunk.0.as_ptr().add(2 * pair * ROWS);
                s.store(pairs.0.as_mut_ptr().add(pair * ROWS), s.pair_bf16(s.load(weights), s.load(weights.add(ROWS))));
            }
            let turned = turn(s, &pairs.0);
            for row in 0..row_lanes {
                s.store(to.add(row * ROWS), s.load(turned.0.as_ptr().add(row * ROWS)));
            }
        }
    }
}

impl Form for TiledBf16 {
    type Element = bf16;
    type Held = TileRegisters;
    const RUN_KEYS: usize = Self::COLUMNS;
    const TURN_KEYS: usize = Self::COLUMNS;
    const KEPT_BYTES: usize = 2;

    fn hold(row_lanes: usize) -> TileRegisters {
        hold::<Self>(row_lanes)
    }

    #[inline(always)]
    unsafe fn put_query<S: Simd>(s: S, to: *mut f32, place: [usize; 3], columns: &[f32; MOST_COLUMNS], _quantum: f32) {
        // SAFETY: the caller's contract.
        unsafe { put_words::<Self>(to, place, &[narrow_columns(s, columns)]) };
    }

    #[inline(always)]
    fn scores<S: Simd, const R: usize, const G: usize, const K: usize, const L: usize>(_: S, args: ScoreArgs<bf16>) {
        token().vectorize(TileScores::<Self, G, L>(token(), args, PhantomData));
    }

    #[inline(always)]
    fn prepare<S: Simd>(_: S, weights: Weights) {
        token().vectorize(TileWeights::<Self>(token(), weights, PhantomData));
    }

    #[inline(always)]
    fn accumulate<S: Simd, const R: usize, const G: usize, const C: usize, const P: usize, const L: usize>(
        _: S,
        args: AccumulateArgs<bf16>,
    ) {
        token().vectorize(TileValues::<Self, R, G, L>(token(), args, PhantomData));
    }

    fn place(i: usize, _lanes: usize) -> usize {
        i
    }
}
