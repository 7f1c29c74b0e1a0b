//! Queries on their way into the form of a kernel.

use std::marker::PhantomData;

use regard_simd::{Element, Op, Simd, bf16, f16};

use super::form::Form;
use super::tiles::Tiles;
use super::{Group, Rows, scratch};
use crate::tensor::Dtype;

impl<F: Form, T: Tiles> Rows<'_, F, T> {
    /// The queries of a group in the form of the kernel, zero past `d`.
    #[inline(always)]
    pub(super) fn pack<S: Simd>(&self, s: S, group: Group<'_>) {
        match self.unit.q_dtype {
            Dtype::F32 => self.pack_from::<S, f32>(s, group),
            Dtype::F16 => self.pack_from::<S, f16>(s, group),
            Dtype::Bf16 => self.pack_from::<S, bf16>(s, group),
            Dtype::Int8 => unreachable!("queries are not quantised"),
        }
    }

    #[inline(always)]
    fn pack_from<S: Simd, Q: Element>(&self, s: S, group: Group<'_>) {
        let unit = self.unit;
        let rows = group.rows.len();
        let row_lanes = T::LANES / group.step_keys;
        // SAFETY: the layout has room for the queries of a group and for vectors of quanta, and rows have `d` elements.
        unsafe {
            group.queries.write_bytes(0, scratch::query_len(rows, unit.d, T::LANES));
            for lane in 0..T::LANES {
                *group.query_quanta.add(lane) = 1.0;
                *group.weight_quanta.add(lane) = 1.0;
            }
            for (r, row) in group.rows.iter().enumerate() {
                let q = row.q.cast::<Q>();
                let pack = PackRow {
                    q,
                    d: unit.d,
                    negate: unit.turned(),
                    to: group.queries,
                    row: [r, rows],
                    form: PhantomData::<F>,
                };
                let quantum = s.vectorize(pack);
                for g in 0..group.step_keys {
                    *group.query_quanta.add(g * row_lanes + r) = quantum;
                }
            }
        }
    }
}

/// Packs one query. Gives what `1` is worth in it.
struct PackRow<F, Q> {
    /// `d` elements.
    q: *const Q,
    d: usize,
    negate: bool,
    /// Has room for the packed queries of a group, which are zero past `d`.
    to: *mut f32,
    /// The row's place in the group, and the rows of that.
    row: [usize; 2],
    form: PhantomData<F>,
}

impl<F: Form, Q: Element> Op for PackRow<F, Q> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        const { assert!(2 * S::LANES <= MOST_COLUMNS) };
        let sign = s.splat(if self.negate { -1.0 } else { 1.0 });
        let quantum = F::quantum(|| self.largest(s), self.d);
        let mut columns = Columns([0.0; MOST_COLUMNS]);
        for c in (0..self.d).step_by(2 * S::LANES) {
            // SAFETY: the query has these columns, there is room for two vectors of them, and for as many in the packed query, whose
            // columns are rounded up to four vectors.
            unsafe {
                for half in 0..2 {
                    s.store(
                        columns.0.as_mut_ptr().add(half * S::LANES),
                        s.mul(self.vector(s, c + half * S::LANES), sign),
                    );
                }
                F::put_query(s, self.to, [self.row[0], c, self.row[1]], &columns.0, quantum);
            }
        }
        quantum
    }
}

/// Two vectors of the widest level.
pub(super) const MOST_COLUMNS: usize = 32;

/// Columns of a query, as many as two vectors hold.
#[repr(C, align(64))]
struct Columns([f32; MOST_COLUMNS]);

impl<F, Q: Element> PackRow<F, Q> {
    /// A vector of columns, zero past `d`.
    #[inline(always)]
    fn vector<S: Simd>(&self, s: S, c: usize) -> S::F32 {
        let q = self.q.wrapping_add(c);
        let left = self.d.saturating_sub(c);
        // SAFETY: the query has `d` columns.
        unsafe { if left >= S::LANES { Q::load(s, q) } else { Q::load_first(s, q, left) } }
    }

    /// The largest magnitude; NaN if there is one.
    #[inline(always)]
    fn largest<S: Simd>(&self, s: S) -> f32 {
        let mut largest = s.zero();
        let mut nan = s.mask_from_bits(0);
        for c in (0..self.d).step_by(S::LANES) {
            let columns = self.vector(s, c);
            largest = s.max(s.abs(columns), largest);
            nan = s.or(nan, s.is_nan(columns));
        }
        if s.any(nan) {
            return f32::NAN;
        }
        let mut lanes = Columns([0.0; MOST_COLUMNS]);
        // SAFETY: there is room for a vector.
        unsafe { s.store(lanes.0.as_mut_ptr(), largest) };
        // Halves against halves: one lane after the other would wait for each.
        let mut half = S::LANES / 2;
        while half > 0 {
            for lane in 0..half {
                let other = lanes.0[lane + half];
                lanes.0[lane] = if other > lanes.0[lane] { other } else { lanes.0[lane] };
            }
            half /= 2;
        }
        lanes.0[0]
    }
}
