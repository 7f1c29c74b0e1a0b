//! The product that adds keys to a state, and answers a few queries from it.

use regard_simd::{Op, Simd};

/// `out[r][c] = decay * from[r][c] + sum over t < steps of a[r * a_row + t * a_step] * b[t * b_stride + c]`.
///
/// Columns are in lanes and read as they lie; elements of `a` are broadcast. One sum is one chain of multiply-adds over
/// `t` in ascending order, whatever the tile. `R` rows share each load of `G` vectors of `b`.
pub(super) struct Product<const G: usize, const R: usize> {
    pub(super) a: *const f32,
    pub(super) a_row: usize,
    pub(super) a_step: usize,
    pub(super) rows: usize,
    pub(super) b: *const f32,
    pub(super) b_stride: usize,
    pub(super) steps: usize,
    /// May be `out`, and has the stride of it.
    pub(super) from: *const f32,
    pub(super) out: *mut f32,
    pub(super) out_stride: usize,
    /// Whole vectors.
    pub(super) columns: usize,
    pub(super) decay: f32,
}

impl<const G: usize, const R: usize> Op for Product<G, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        const { assert!(1 <= R && R <= 16, "the rest of up to 15 rows is taken in tiles of 8, 4, 2 and 1") };
        let mut column = 0;
        while column + G * S::LANES <= self.columns {
            self.strip::<S, G>(s, column);
            column += G * S::LANES;
        }
        while column < self.columns {
            self.strip::<S, 1>(s, column);
            column += S::LANES;
        }
    }
}

impl<const G: usize, const R: usize> Product<G, R> {
    /// All rows of `V` vectors of columns.
    #[inline(always)]
    fn strip<S: Simd, const V: usize>(&self, s: S, column: usize) {
        let mut row = 0;
        while row + R <= self.rows {
            self.tile::<S, V, R>(s, row, column);
            row += R;
        }
        if R > 8 && row + 8 <= self.rows {
            self.tile::<S, V, 8>(s, row, column);
            row += 8;
        }
        if R > 4 && row + 4 <= self.rows {
            self.tile::<S, V, 4>(s, row, column);
            row += 4;
        }
        if R > 2 && row + 2 <= self.rows {
            self.tile::<S, V, 2>(s, row, column);
            row += 2;
        }
        while row < self.rows {
            self.tile::<S, V, 1>(s, row, column);
            row += 1;
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const V: usize, const T: usize>(&self, s: S, row: usize, column: usize) {
        let mut acc = [[s.zero(); V]; T];
        // SAFETY: rows `row..row + T` and the columns exist (the caller counts), of `a`, `b`, `from` and `out` (contract
        // of the struct).
        unsafe {
            let mut a = self.a.add(row * self.a_row);
            let mut b = self.b.add(column);
            for _ in 0..self.steps {
                let mut line = [s.zero(); V];
                for g in 0..V {
                    line[g] = s.load(b.add(g * S::LANES));
                }
                for r in 0..T {
                    let element = s.splat(*a.add(r * self.a_row));
                    for g in 0..V {
                        acc[r][g] = s.mul_add(line[g], element, acc[r][g]);
                    }
                }
                a = a.wrapping_add(self.a_step);
                b = b.wrapping_add(self.b_stride);
            }
            let decay = s.splat(self.decay);
            for r in 0..T {
                for g in 0..V {
                    let at = (row + r) * self.out_stride + column + g * S::LANES;
                    s.store(self.out.add(at), s.mul_add(s.load(self.from.add(at)), decay, acc[r][g]));
                }
            }
        }
    }
}
