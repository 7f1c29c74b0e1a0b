//! Queries against a state, and against the keys of a chunk that only some of them see.

use regard_simd::{Element, Op, Simd, bf16, f16};

use super::features::{Features, Form, Tile};
use super::product::Product;
use super::scratch::{FEW, StateLayout, WorkLayout};
use crate::lanes::Segment;
use crate::lanes::accumulate::Accumulate;
use crate::lanes::careful::AccumulateSeen;
use crate::lanes::pack::{Pack, Places, Unpack};
use crate::lanes::scores::Scores;
use crate::lanes::streams::Streams;
use crate::source::Target;
use crate::tensor::Dtype;

/// Query rows that see the same state. Of the chunk, row `r` sees the keys before `ends[r]`; `gains`, `out_factors`,
/// `decays` and `ends` of the work are filled in, up to whole sub-tiles, zero past the last row.
#[derive(Clone, Copy)]
pub(super) struct Queries<'a> {
    pub(super) features: &'a Features,
    pub(super) d: usize,
    pub(super) d_v: usize,
    pub(super) width: usize,
    /// Rows of `d` elements of `q_dtype`.
    pub(super) q: *const u8,
    pub(super) q_dtype: Dtype,
    pub(super) q_stride: usize,
    pub(super) rows: usize,
    /// Keys of the chunk that some row sees.
    pub(super) len: usize,
    /// Whether all values of these are finite.
    pub(super) finite: bool,
    /// Whether `powers` of the work are filled in.
    pub(super) gated: bool,
    /// Whether the state has seen keys.
    pub(super) folded: bool,
    /// Sums and norms.
    pub(super) state: *const f32,
    pub(super) state_layout: StateLayout,
    /// Keys and values of the chunk.
    pub(super) keys: *const f32,
    pub(super) values: *const f32,
    pub(super) work: *mut f32,
    pub(super) work_layout: WorkLayout,
    /// Where `powers` has the distance of row 0 and key 0.
    pub(super) origin: usize,
    /// The first row.
    pub(super) out: Target,
}

/// See [`Queries`]. `G` vectors of lanes in a sub-tile, `R` keys, columns or monomials in a register tile, `R1` with a
/// single vector.
pub(super) struct Attend<'a, const G: usize, const R: usize, const R1: usize>(pub(super) &'a Queries<'a>);

/// The arrays of a sub-tile.
#[derive(Clone, Copy)]
struct Subtile {
    first: usize,
    rows: usize,
    lanes: usize,
    queries: *mut f32,
    outputs: *mut f32,
    totals: *mut f32,
    gains: *const f32,
    out_factors: *mut f32,
    decays: *const f32,
    ends: *const f32,
}

impl<const G: usize, const R: usize, const R1: usize> Op for Attend<'_, G, R, R1> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let queries = self.0;
        let subtiles = queries.rows.div_ceil(G * S::LANES);
        for t in 0..subtiles {
            self.begin(s, self.subtile::<S>(t));
        }
        if queries.folded {
            for tile in queries.features.query_tiles() {
                for t in 0..subtiles {
                    self.recall(s, self.subtile::<S>(t), tile);
                }
            }
        }
        for t in 0..subtiles {
            self.finish(s, self.subtile::<S>(t));
        }
    }
}

impl<const G: usize, const R: usize, const R1: usize> Attend<'_, G, R, R1> {
    #[inline(always)]
    fn subtile<S: Simd>(&self, t: usize) -> Subtile {
        let Queries { work, work_layout: layout, rows, d, d_v, .. } = *self.0;
        let first = t * G * S::LANES;
        let rows = (rows - first).min(G * S::LANES);
        // SAFETY: the layout has room for every sub-tile.
        unsafe {
            Subtile {
                first,
                rows,
                lanes: if rows <= S::LANES { S::LANES } else { G * S::LANES },
                queries: work.add(layout.queries + first * d),
                outputs: work.add(layout.outputs + first * d_v),
                totals: work.add(layout.totals + first),
                gains: work.add(layout.gains + first),
                out_factors: work.add(layout.out_factors + first),
                decays: work.add(layout.decays + first),
                ends: work.add(layout.ends + first),
            }
        }
    }

    /// Packs the queries of a sub-tile, times their gains, and computes what they see of the chunk.
    #[inline(always)]
    fn begin<S: Simd>(&self, s: S, tile: Subtile) {
        let Queries { d, d_v, q_dtype, len, .. } = *self.0;
        match q_dtype {
            Dtype::F32 => self.pack::<S, f32>(s, tile),
            Dtype::F16 => self.pack::<S, f16>(s, tile),
            Dtype::Bf16 => self.pack::<S, bf16>(s, tile),
            Dtype::Int8 => unreachable!("no queries are quantised"),
        }
        // SAFETY: arrays of a sub-tile have as many lanes as it, and `d` or `d_v` rows of them.
        unsafe {
            for lane in (0..tile.lanes).step_by(S::LANES) {
                let gain = s.load(tile.gains.add(lane));
                for c in 0..d {
                    let x = tile.queries.add(c * tile.lanes + lane);
                    s.store(x, s.mul(s.load(x), gain));
                }
            }
            tile.totals.write_bytes(0, tile.lanes);
            tile.outputs.write_bytes(0, d_v * tile.lanes);
            let seen = (0..tile.rows).fold(0.0_f32, |most, row| most.max(*tile.ends.add(row)));
            let seen = (seen as usize).min(len);
            if seen > 0 {
                self.attend_chunk(s, tile, seen);
            }
        }
    }

    #[inline(always)]
    fn pack<S: Simd, E: Element>(&self, s: S, tile: Subtile) {
        let Queries { q, q_stride, d, .. } = *self.0;
        s.vectorize(Pack::<E> {
            q: q.cast::<E>().wrapping_add(tile.first.wrapping_mul(q_stride)),
            q_stride,
            rows: tile.rows,
            d,
            packed: tile.queries,
            lanes: tile.lanes,
            negate: false,
            places: Places::CONSECUTIVE,
        });
    }

    /// The quadratic form over the first `keys` keys of the chunk.
    ///
    /// # Safety
    /// The chunk has them.
    #[inline(always)]
    unsafe fn attend_chunk<S: Simd>(&self, s: S, tile: Subtile, keys: usize) {
        let Queries { d, d_v, width, finite, gated, keys: k, values: v, work, work_layout, .. } = *self.0;
        let lanes = tile.lanes;
        // SAFETY: the caller's contract; the layouts have room for a chunk.
        unsafe {
            let weights = work.add(work_layout.weights);
            macro_rules! scores {
                ($vectors:ident, $keys:ident) => {
                    s.vectorize(Scores::<$vectors, $keys, false, false, false> {
                        q: tile.queries,
                        k,
                        k_stride: d,
                        scores: weights,
                        max: std::ptr::null_mut(),
                        lanes,
                        keys,
                        full: keys,
                        d,
                        streams: Streams::NONE,
                    })
                };
            }
            if lanes == G * S::LANES {
                scores!(G, R)
            } else {
                scores!(ONE, R1)
            }
            let visible: *mut u64 = work.add(work_layout.visible).cast();
            let powers = if gated {
                work.add(work_layout.powers + self.0.origin + tile.first).cast_const()
            } else {
                std::ptr::null()
            };
            s.vectorize(Weigh {
                features: self.0.features,
                weights,
                lanes,
                keys,
                ends: tile.ends,
                powers,
                totals: tile.totals,
                visible,
            });
            macro_rules! accumulate {
                ($vectors:ident, $columns:ident) => {
                    s.vectorize(Accumulate::<$vectors, $columns, false> {
                        weights,
                        v,
                        v_stride: width,
                        out: tile.outputs,
                        alpha: std::ptr::null(),
                        fresh: true,
                        lanes,
                        keys,
                        full: keys,
                        d_v,
                    })
                };
            }
            if !finite {
                // A weight of zero must not meet NaN or Inf.
                s.vectorize(AccumulateSeen::<false> {
                    segments: &[Segment { key: 0, keys, masked: true }],
                    vectors: lanes / S::LANES,
                    visible,
                    weights,
                    v,
                    v_stride: width,
                    out: tile.outputs,
                    alpha: std::ptr::null(),
                    fresh: true,
                    lanes,
                    d_v,
                });
            } else if lanes == G * S::LANES {
                accumulate!(G, R)
            } else {
                accumulate!(ONE, R1)
            }
        }
    }

    /// Adds what the state has of a tile of monomials.
    #[inline(always)]
    fn recall<S: Simd>(&self, s: S, tile: Subtile, monomials: &Tile) {
        let Queries { d_v, width, state, state_layout, work, work_layout, .. } = *self.0;
        let lanes = tile.lanes;
        // SAFETY: the layouts have room for all monomials, and for a tile of those of queries.
        unsafe {
            let formed = work.add(work_layout.query_tile);
            s.vectorize(Form::<true> {
                tile: monomials,
                x: tile.queries,
                factor: tile.decays,
                lanes,
                out: formed,
                norms: state.add(state_layout.norms + monomials.first),
                sums: tile.totals,
            });
            let sums = state.add(state_layout.sums + monomials.first * width);
            macro_rules! accumulate {
                ($vectors:ident, $columns:ident) => {
                    s.vectorize(Accumulate::<$vectors, $columns, false> {
                        weights: formed,
                        v: sums,
                        v_stride: width,
                        out: tile.outputs,
                        alpha: std::ptr::null(),
                        fresh: false,
                        lanes,
                        keys: monomials.features,
                        full: monomials.features,
                        d_v,
                    })
                };
            }
            if tile.rows <= FEW {
                // The same chains of multiply-adds, columns in lanes.
                let few = work.add(work_layout.few);
                for (row, c) in (0..tile.rows).flat_map(|row| (0..d_v).map(move |c| (row, c))) {
                    *few.add(row * width + c) = *tile.outputs.add(c * lanes + row);
                }
                s.vectorize(Product::<G, R> {
                    a: formed,
                    a_row: 1,
                    a_step: lanes,
                    rows: tile.rows,
                    b: sums,
                    b_stride: width,
                    steps: monomials.features,
                    from: few,
                    out: few,
                    out_stride: width,
                    columns: width,
                    decay: 1.0,
                });
                for (row, c) in (0..tile.rows).flat_map(|row| (0..d_v).map(move |c| (row, c))) {
                    *tile.outputs.add(c * lanes + row) = *few.add(row * width + c);
                }
            } else if lanes == G * S::LANES {
                accumulate!(G, R)
            } else {
                accumulate!(ONE, R1)
            }
        }
    }

    /// Divides by the sum of weights, if the weighting does, and writes the rows.
    #[inline(always)]
    fn finish<S: Simd>(&self, s: S, tile: Subtile) {
        let Queries { features, d_v, out, .. } = *self.0;
        let target = out.row(tile.first);
        // SAFETY: arrays of a sub-tile have as many lanes as it, and its rows are writable.
        unsafe {
            if features.series().normalised {
                for lane in (0..tile.lanes).step_by(S::LANES) {
                    let total = s.load(tile.totals.add(lane));
                    // What is left of weights that underflowed, far past the last key, is no sum: its inverse may be Inf.
                    let nothing = s.gt(s.splat(f32::MIN_POSITIVE), s.abs(total));
                    let inverse = s.select(nothing, s.zero(), s.div(s.splat(1.0), total));
                    let factor = tile.out_factors.add(lane);
                    s.store(factor, s.mul(inverse, s.load(factor)));
                }
            }
            macro_rules! unpack {
                ($element:ty) => {
                    s.vectorize(Unpack::<$element> {
                        turned: tile.outputs,
                        factor: tile.out_factors,
                        lanes: tile.lanes,
                        out: target.data.cast(),
                        out_stride: target.row_bytes / size_of::<$element>(),
                        rows: tile.rows,
                        d_v,
                        places: Places::CONSECUTIVE,
                    })
                };
            }
            match target.dtype {
                Dtype::F32 => unpack!(f32),
                Dtype::F16 => unpack!(f16),
                Dtype::Bf16 => unpack!(bf16),
                Dtype::Int8 => unreachable!("no output is quantised"),
            };
        }
    }
}

/// A single vector.
const ONE: usize = 1;

/// Scores to weights, in place, zero for keys that a lane does not see; and their sums.
struct Weigh<'a> {
    features: &'a Features,
    /// `[key][lanes]`
    weights: *mut f32,
    lanes: usize,
    keys: usize,
    /// `[lanes]`: one past the last key that the lane sees.
    ends: *const f32,
    /// `powers[lane - key]` is the gate's; null for none.
    powers: *const f32,
    totals: *mut f32,
    /// `[key]`: a bit for each lane that sees it.
    visible: *mut u64,
}

impl Op for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let series = self.features.series();
        let degree = series.degree();
        for at in (0..self.lanes).step_by(S::LANES) {
            // SAFETY: the arrays have `keys` rows and whole vectors of lanes, powers those of all distances (contract of
            // the struct).
            unsafe {
                let end = s.load(self.ends.add(at));
                let mut total = s.load(self.totals.add(at));
                for key in 0..self.keys {
                    let p = self.weights.add(key * self.lanes + at);
                    let mut weight = series.weight(s, s.load(p), degree);
                    if !self.powers.is_null() {
                        weight = s.mul(weight, s.load(self.powers.add(at).wrapping_sub(key)));
                    }
                    let seen = s.gt(end, s.splat(key as f32));
                    let weight = s.select(seen, weight, s.zero());
                    s.store(p, weight);
                    total = s.add(total, weight);
                    let bits = s.mask_to_bits(seen) << at;
                    let visible = self.visible.add(key);
                    *visible = if at == 0 { bits } else { *visible | bits };
                }
                s.store(self.totals.add(at), total);
            }
        }
    }
}
