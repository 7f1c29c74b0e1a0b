//! Weights on their way to the left factor of the value product.

use std::marker::PhantomData;

use regard_simd::{Avx512Amx, Op, Simd};

use super::{Buffer, ROWS, TILE, Tiled};
use crate::rows::form::Weights;

type F32 = <Avx512Amx as Simd>::F32;

/// Lays the weights of a block out for tiles, in place: `[chunk][part][row][64 bytes of keys]`. Keys that the last chunk lacks have
/// a weight of zero.
pub(super) struct TileWeights<P>(pub(super) Avx512Amx, pub(super) Weights, pub(super) PhantomData<P>);

/// How weights become elements of a tile.
pub(super) trait Narrow: Tiled {
    /// What each weight is multiplied with.
    ///
    /// # Safety
    /// There is a vector of quanta.
    unsafe fn factor(s: Avx512Amx, weights: &Weights) -> F32;

    /// Narrows the weights of a chunk, `[key][16 lanes]`, to `[part][ROW_LANES][64 bytes]` at `to`.
    ///
    /// # Safety
    /// There is room at `to`.
    unsafe fn narrow(s: Avx512Amx, chunk: &Chunk, row_lanes: usize, to: *mut f32);
}

/// The weights of the longest chunk.
pub(super) type Chunk = Buffer<{ 4 * TILE }>;

impl<P: Narrow> Op for TileWeights<P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let (s, Weights { weights, steps, lanes, row_lanes, ask, .. }) = (self.0, self.1);
        let keys = steps * (lanes / row_lanes);
        // SAFETY: there is a vector for each step, and one more; the result of a chunk takes no more than its weights did.
        unsafe {
            let factor = P::factor(s, &self.1);
            let mut chunk: Chunk = Buffer([0.0; 4 * TILE]);
            for first in (0..keys).step_by(P::COLUMNS) {
                let weights = weights.add(first * row_lanes);
                for key in 0..P::COLUMNS {
                    let to = chunk.0.as_mut_ptr().add(key * ROWS);
                    let missing = first + key >= keys;
                    let weight = if missing { s.zero() } else { s.mul(s.load(weights.add(key * row_lanes)), factor) };
                    s.store(to, weight);
                    if key.is_multiple_of(lanes / row_lanes) {
                        ask.step(s, (first + key) * row_lanes / lanes);
                    }
                }
                P::narrow(s, &chunk, row_lanes, weights);
            }
        }
    }
}

/// Transposes 16 rows of 16.
#[inline(always)]
pub(super) fn turn(s: Avx512Amx, from: &[f32; TILE]) -> Buffer<TILE> {
    let mut turned = Buffer([0.0; TILE]);
    // SAFETY: both have 16 rows of 16.
    unsafe { s.transpose(from.as_ptr(), ROWS, turned.0.as_mut_ptr(), ROWS) };
    turned
}
