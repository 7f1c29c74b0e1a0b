//! Keys and values into a state.

use regard_simd::{Op, Simd};

use super::features::{Form, Tile};
use super::product::Product;
use super::scratch::{Hand, StateLayout};
use crate::lanes::pack::{Pack, Places, Square};

/// The keys of a chunk: `sums[f][c] = decay * sums[f][c] + sum over keys of factor[key] * monomial f of the key * v[key][c]`,
/// and `norms` likewise with 1 for `v`, for the monomials of some tiles. Factors are powers of the gate, 1 without one.
#[derive(Clone, Copy)]
pub(super) struct Chunk<'a> {
    pub(super) tiles: &'a [Tile],
    /// Keys, at most a chunk.
    pub(super) len: usize,
    /// Columns of V in whole vectors.
    pub(super) width: usize,
    pub(super) decay: f32,
    /// Filled in.
    pub(super) hand: Hand,
    /// Sums and norms without the chunk, and those with it, which may be the same.
    pub(super) from: *const f32,
    pub(super) to: *mut f32,
    pub(super) state_layout: StateLayout,
    /// `[KEY_TILE][key_lanes]`
    pub(super) key_tile: *mut f32,
}

/// See [`Chunk`].
pub(super) struct Fold<'a, const G: usize, const R: usize>(pub(super) &'a Chunk<'a>);

impl<const G: usize, const R: usize> Op for Fold<'_, G, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Chunk { tiles, len, width, decay, hand, from, to, state_layout, key_tile } = *self.0;
        let lanes = len.next_multiple_of(S::LANES);
        for monomials in tiles {
            let norms = state_layout.norms + monomials.first;
            let sums = state_layout.sums + monomials.first * width;
            // SAFETY: the layout has room for all monomials, and the tile is of these.
            unsafe {
                s.vectorize(Form::<false> {
                    tile: monomials,
                    x: hand.turned,
                    factor: hand.factors,
                    lanes,
                    out: key_tile,
                    norms: std::ptr::null(),
                    sums: std::ptr::null_mut(),
                });
                s.vectorize(Norms {
                    tile: key_tile,
                    rows: monomials.features,
                    lanes,
                    from: from.add(norms),
                    norms: to.add(norms),
                    decay,
                });
                s.vectorize(Product::<G, R> {
                    a: key_tile,
                    a_row: lanes,
                    a_step: 1,
                    rows: monomials.features,
                    b: hand.values,
                    b_stride: width,
                    steps: len,
                    from: from.add(sums),
                    out: to.add(sums),
                    out_stride: width,
                    columns: width,
                    decay,
                });
            }
        }
    }
}

/// The keys at hand in lanes, and their factors.
pub(super) struct Turn {
    pub(super) hand: Hand,
    /// Keys, at most a chunk.
    pub(super) len: usize,
    pub(super) d: usize,
    /// The factor of the last key is 1, and that of each other this much of the next one's.
    pub(super) gate: f32,
}

impl Op for Turn {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { hand, len, d, gate } = self;
        let lanes = len.next_multiple_of(S::LANES);
        s.vectorize(Pack::<f32> {
            q: hand.keys,
            q_stride: d,
            rows: len,
            d,
            packed: hand.turned,
            lanes,
            negate: false,
            places: Places::CONSECUTIVE,
        });
        // Lanes past the last key have a factor of zero: they count neither in sums nor in norms.
        let mut factor = 1.0;
        for key in (0..lanes).rev() {
            // SAFETY: there is a factor for each lane (contract of the struct).
            unsafe { *hand.factors.add(key) = if key < len { factor } else { 0.0 } };
            factor = if key < len { factor * gate } else { factor };
        }
    }
}

/// `norms[row] = decay * from[row] + sum over lanes of tile[row][lane]`
struct Norms {
    tile: *const f32,
    rows: usize,
    lanes: usize,
    from: *const f32,
    norms: *mut f32,
    decay: f32,
}

impl Op for Norms {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut square = Square::ZERO;
        let mut turned = Square::ZERO;
        for first in (0..self.rows).step_by(S::LANES) {
            let rows = (self.rows - first).min(S::LANES);
            // SAFETY: the tile has the rows, in whole vectors of lanes, and there is a norm for each; the squares have
            // room for LANES x LANES.
            unsafe {
                for row in 0..rows {
                    let line = self.tile.add((first + row) * self.lanes);
                    let mut sum = s.zero();
                    for lane in (0..self.lanes).step_by(S::LANES) {
                        sum = s.add(sum, s.load(line.add(lane)));
                    }
                    s.store(square.0.as_mut_ptr().add(row * S::LANES), sum);
                }
                s.transpose(square.0.as_ptr(), S::LANES, turned.0.as_mut_ptr(), S::LANES);
                let mut sum = s.zero();
                for lane in 0..S::LANES {
                    sum = s.add(sum, s.load(turned.0.as_ptr().add(lane * S::LANES)));
                }
                let before = s.load_first(self.from.add(first), rows);
                s.store_first(self.norms.add(first), s.mul_add(before, s.splat(self.decay), sum), rows);
            }
        }
    }
}
