//! Keys and values into a state.

use regard_simd::{Op, Simd};

use super::features::{Features, Form};
use super::product::Product;
use super::scratch::{StateLayout, WorkLayout};
use crate::lanes::pack::{Pack, Places, Square};

/// The keys of a chunk: `sums[f][c] = decay * sums[f][c] + sum over keys of factor[key] * monomial f of the key * v[key][c]`,
/// and `norms` likewise with 1 for `v`. Factors are powers of the gate, 1 without one.
#[derive(Clone, Copy)]
pub(super) struct Chunk<'a> {
    pub(super) features: &'a Features,
    /// Keys, at most a chunk.
    pub(super) len: usize,
    pub(super) d: usize,
    /// Columns of V in whole vectors.
    pub(super) width: usize,
    pub(super) decay: f32,
    /// The factor of the last key is 1, and that of each other this much of the next one's.
    pub(super) gate: f32,
    /// A state, with `keys` and `values` filled, values up to whole vectors.
    pub(super) state: *mut f32,
    pub(super) state_layout: StateLayout,
    pub(super) work: *mut f32,
    pub(super) work_layout: WorkLayout,
}

/// See [`Chunk`].
pub(super) struct Fold<'a, const G: usize, const R: usize>(pub(super) &'a Chunk<'a>);

impl<const G: usize, const R: usize> Op for Fold<'_, G, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Chunk { features, len, d, width, decay, gate, state, state_layout, work, work_layout } = *self.0;
        let lanes = len.next_multiple_of(S::LANES);
        // SAFETY: the layouts have room for a chunk and for the monomials; a tile is of these.
        unsafe {
            let [keys, values] = [state.add(state_layout.keys), state.add(state_layout.values)];
            let turned = work.add(work_layout.turned);
            let factors = work.add(work_layout.key_factors);
            let tile = work.add(work_layout.key_tile);
            s.vectorize(Pack::<f32> {
                q: keys,
                q_stride: d,
                rows: len,
                d,
                packed: turned,
                lanes,
                negate: false,
                places: Places::CONSECUTIVE,
            });
            // Lanes past the last key have a factor of zero: they count neither here nor in norms.
            let mut factor = 1.0;
            for key in (0..lanes).rev() {
                *factors.add(key) = if key < len { factor } else { 0.0 };
                factor = if key < len { factor * gate } else { factor };
            }
            for monomials in features.key_tiles() {
                s.vectorize(Form::<false> {
                    tile: monomials,
                    x: turned,
                    factor: factors,
                    lanes,
                    out: tile,
                    norms: std::ptr::null(),
                    sums: std::ptr::null_mut(),
                });
                s.vectorize(Norms {
                    tile,
                    rows: monomials.features,
                    lanes,
                    norms: state.add(state_layout.norms + monomials.first),
                    decay,
                });
                s.vectorize(Product::<G, R> {
                    a: tile,
                    a_row: lanes,
                    a_step: 1,
                    rows: monomials.features,
                    b: values,
                    b_stride: width,
                    steps: len,
                    out: state.add(state_layout.sums + monomials.first * width),
                    out_stride: width,
                    columns: width,
                    decay,
                });
            }
        }
    }
}

/// `norms[row] = decay * norms[row] + sum over lanes of tile[row][lane]`
struct Norms {
    tile: *const f32,
    rows: usize,
    lanes: usize,
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
                let norms = self.norms.add(first);
                s.store_first(norms, s.mul_add(s.load_first(norms, rows), s.splat(self.decay), sum), rows);
            }
        }
    }
}
