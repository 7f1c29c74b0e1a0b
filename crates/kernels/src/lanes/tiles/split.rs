//! Queries, keys, values and weights in [`parts`](super::parts).

use regard_simd::{Avx512Amx, Element, Op, Simd, bf16, f16};

use super::parts::{parts_of, split};
use super::{F32, GRAIN, SIDE, TILE, token};
use crate::lanes::MOST_PARTS;
use crate::lanes::pack::Square;
use crate::source::{Run, Source};
use crate::tensor::Dtype;

/// Up to 16 elements of a row of a source from column `c` on, as f32, and zeros after them; NaN for those that are too small.
///
/// # Safety
/// The row has the columns.
#[inline(always)]
unsafe fn widened(s: Avx512Amx, dtype: Dtype, run: Run, c: usize, len: usize) -> F32 {
    #[inline(always)]
    unsafe fn of<E: Element>(s: Avx512Amx, data: *const u8, c: usize, len: usize) -> F32 {
        let at = data.cast::<E>().wrapping_add(c);
        // SAFETY: the caller's contract.
        unsafe { if len == SIDE { E::load(s, at) } else { E::load_first(s, at, len) } }
    }
    // SAFETY: the caller's contract; each row of bytes has a scale.
    unsafe {
        match dtype {
            Dtype::F32 => s.nan_if_tiny(of::<f32>(s, run.data, c, len)),
            // The least is 2^-24.
            Dtype::F16 => of::<f16>(s, run.data, c, len),
            Dtype::Bf16 => s.nan_if_tiny(of::<bf16>(s, run.data, c, len)),
            Dtype::Int8 => s.nan_if_tiny(s.mul(of::<i8>(s, run.data, c, len), s.splat(*run.scales))),
        }
    }
}

/// `packed[part][i][lane]` is part `part` of a pair of columns of `q[lane]`, and zero past the last row and column.
pub(in crate::lanes) struct PackParts {
    pub(in crate::lanes) q: *const u8,
    pub(in crate::lanes) dtype: Dtype,
    pub(in crate::lanes) row_bytes: usize,
    pub(in crate::lanes) rows: usize,
    pub(in crate::lanes) d: usize,
    /// Pairs of a packed row, a multiple of 16.
    pub(in crate::lanes) words: usize,
    pub(in crate::lanes) packed: *mut f32,
    pub(in crate::lanes) lanes: usize,
    /// Whether to turn the sign.
    pub(in crate::lanes) negate: bool,
}

impl Op for PackParts {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let s = token();
        let sign = s.splat(if self.negate { -1.0 } else { 1.0 });
        for first in (0..self.lanes).step_by(SIDE) {
            for word in (0..self.words).step_by(SIDE) {
                let mut squares = [Square::ZERO, Square::ZERO, Square::ZERO];
                for row in first..self.rows.min(first + SIDE) {
                    let data = self.q.wrapping_add(row * self.row_bytes);
                    let run = Run { data, scales: std::ptr::null(), scale_stride: 0, rows: 1 };
                    let mut halves = [s.zero(); 2];
                    for half in 0..2 {
                        let c = 2 * word + half * SIDE;
                        // SAFETY: the row has `d` columns.
                        let columns = unsafe { widened(s, self.dtype, run, c, self.d.saturating_sub(c).min(SIDE)) };
                        halves[half] = s.mul(columns, sign);
                    }
                    let parts = split(s, halves);
                    for part in 0..MOST_PARTS {
                        // SAFETY: a square has 16 rows of 16.
                        unsafe { s.store(squares[part].0.as_mut_ptr().add((row - first) * SIDE), parts[part]) };
                    }
                }
                for (part, square) in squares.iter().enumerate() {
                    // SAFETY: `packed` has `words` rows of `lanes` for each part.
                    unsafe {
                        let to = self.packed.add((part * self.words + word) * self.lanes + first);
                        s.transpose(square.0.as_ptr(), SIDE, to, self.lanes);
                    }
                }
            }
        }
    }
}

/// Splits the keys of a block: `[16 keys][16 pairs][part][key][pair]`, whole tiles up to a multiple of 32 keys, with zeros in place of
/// missing keys and columns.
pub(in crate::lanes) struct PartKeys<'a> {
    pub(in crate::lanes) source: &'a Source<'a>,
    /// The first row.
    pub(in crate::lanes) first: usize,
    pub(in crate::lanes) rows: usize,
    pub(in crate::lanes) columns: usize,
    /// Pairs of a row, a multiple of 16.
    pub(in crate::lanes) words: usize,
    pub(in crate::lanes) to: *mut f32,
}

impl Op for PartKeys<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        match self.source.dtype {
            Dtype::F32 => self.split(Dtype::F32),
            Dtype::F16 => self.split(Dtype::F16),
            Dtype::Bf16 => self.split(Dtype::Bf16),
            Dtype::Int8 => self.split(Dtype::Int8),
        }
    }
}

impl PartKeys<'_> {
    /// With a type that is known to the compiler.
    #[inline(always)]
    fn split(&self, dtype: Dtype) {
        let (s, parts) = (token(), parts_of(dtype));
        for row in 0..self.rows.next_multiple_of(GRAIN) {
            let run = (row < self.rows).then(|| self.source.run(self.first + row));
            let to = self.to.wrapping_add((row / SIDE * self.words * MOST_PARTS + row % SIDE) * SIDE);
            for word in (0..self.words).step_by(SIDE) {
                let mut halves = [s.zero(); 2];
                if let Some(run) = run {
                    for half in 0..2 {
                        let c = 2 * word + half * SIDE;
                        // SAFETY: the source has the row (contract of the struct, made by `Lanes`), of `columns` elements.
                        halves[half] = unsafe { widened(s, dtype, run, c, self.columns.saturating_sub(c).min(SIDE)) };
                    }
                }
                let split = split(s, halves);
                for part in 0..parts {
                    // SAFETY: there is room for the parts of whole tiles.
                    unsafe { s.store(to.add(word * MOST_PARTS * SIDE + part * TILE), split[part]) };
                }
            }
        }
    }
}

/// Where part 0 of the tile of 16 columns from column `16 * tile` on of chunk `chunk` of 32 keys starts:
/// `[chunk][tile][part][column][pair of keys]`.
pub(super) fn value_tile(chunk: usize, tile: usize, d_v: usize) -> usize {
    (chunk * d_v.div_ceil(SIDE) + tile) * MOST_PARTS * TILE
}

/// Splits the values of a block, and lays them out as left factors, with zeros in place of missing keys and columns.
pub(in crate::lanes) struct PartValues<'a> {
    pub(in crate::lanes) source: &'a Source<'a>,
    /// The first row.
    pub(in crate::lanes) first: usize,
    pub(in crate::lanes) rows: usize,
    pub(in crate::lanes) columns: usize,
    /// Whole tiles.
    pub(in crate::lanes) to: *mut f32,
}

impl Op for PartValues<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        match self.source.dtype {
            Dtype::F32 => self.split(Dtype::F32),
            Dtype::F16 => self.split(Dtype::F16),
            Dtype::Bf16 => self.split(Dtype::Bf16),
            Dtype::Int8 => self.split(Dtype::Int8),
        }
    }
}

impl PartValues<'_> {
    /// With a type that is known to the compiler.
    #[inline(always)]
    fn split(&self, dtype: Dtype) {
        let s = token();
        let mut turned = [Square::ZERO, Square::ZERO];
        for row in (0..self.rows).step_by(GRAIN) {
            for c in (0..self.columns).step_by(SIDE) {
                for half in 0..2 {
                    self.turn(dtype, row + half * SIDE, c, &mut turned[half]);
                }
                let to = self.to.wrapping_add(value_tile(row / GRAIN, c / SIDE, self.columns));
                for column in 0..SIDE {
                    // SAFETY: squares have 16 rows of 16, and there is room for the parts of the tile.
                    unsafe {
                        let low = s.load(turned[0].0.as_ptr().add(column * SIDE));
                        let high = s.load(turned[1].0.as_ptr().add(column * SIDE));
                        let split = split(s, [low, high]);
                        for part in 0..parts_of(dtype) {
                            s.store(to.add(part * TILE + column * SIDE), split[part]);
                        }
                    }
                }
            }
        }
    }

    /// 16 columns from column `c` on of 16 rows from row `row` on: `[column][row]`.
    #[inline(always)]
    fn turn(&self, dtype: Dtype, row: usize, c: usize, turned: &mut Square) {
        let s = token();
        let len = (self.columns - c).min(SIDE);
        let to = turned.0.as_mut_ptr();
        // SAFETY: the source has the rows (contract of the struct, made by `Lanes`), of `columns` elements; squares have 16 rows of 16.
        unsafe {
            if dtype == Dtype::F32 && len == SIDE && row + SIDE <= self.rows {
                let run = self.source.run(self.first + row);
                if run.rows >= SIDE {
                    s.transpose(run.data.cast::<f32>().add(c), self.source.row_stride(), to, SIDE);
                    for column in 0..SIDE {
                        let to = to.add(column * SIDE);
                        s.store(to, s.nan_if_tiny(s.load(to)));
                    }
                    return;
                }
            }
            let mut square = Square::ZERO;
            for i in 0..SIDE.min(self.rows.saturating_sub(row)) {
                let run = self.source.run(self.first + row + i);
                s.store(square.0.as_mut_ptr().add(i * SIDE), widened(s, dtype, run, c, len));
            }
            s.transpose(square.0.as_ptr(), SIDE, to, SIDE);
        }
    }
}

/// Weights of a block, and where their parts go: `[part][pair of keys][lanes]`, with zeros in place of keys that whole tiles lack.
#[derive(Clone, Copy)]
pub(in crate::lanes) struct PartWeights {
    /// `[keys][lanes]`
    pub(in crate::lanes) from: *const f32,
    pub(in crate::lanes) keys: usize,
    pub(in crate::lanes) to: *mut f32,
    /// f32 from a part to the next.
    pub(in crate::lanes) part: usize,
    pub(in crate::lanes) lanes: usize,
    /// Vectors of lanes.
    pub(in crate::lanes) vectors: usize,
}

impl PartWeights {
    /// Splits those of a chunk.
    #[inline(always)]
    pub(super) fn split(&self, chunk: usize) {
        let s = token();
        let first = chunk * GRAIN;
        for i in 0..SIDE {
            for at in (0..self.vectors * SIDE).step_by(SIDE) {
                // SAFETY: the keys exist, and there is room for the pairs of whole tiles.
                unsafe {
                    let mut weights = [s.zero(); 2];
                    for half in 0..2 {
                        let key = first + half * SIDE + i;
                        if key < self.keys {
                            weights[half] = s.load(self.from.add(key * self.lanes + at));
                        }
                    }
                    let to = self.to.add((first / 2 + i) * self.lanes + at);
                    let split = split(s, weights);
                    for part in 0..MOST_PARTS {
                        s.store(to.add(part * self.part), split[part]);
                    }
                }
            }
        }
    }
}
