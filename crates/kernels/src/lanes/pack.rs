//! Turning queries into lanes and outputs back into rows.

use regard_simd::{Element, Op, Simd};

/// A `LANES x LANES` block on the stack, for the ends of matrices.
#[repr(C, align(64))]
pub(crate) struct Square(pub(crate) [f32; 256]);

impl Square {
    pub(crate) const ZERO: Self = Self([0.0; 256]);
}

/// Where the rows of a sub-tile lie, counted from row 0 of the call.
#[derive(Clone, Copy)]
pub(crate) struct Places<'a> {
    /// The first row of the call that is of the sub-tile.
    pub(crate) first: usize,
    /// See [`Head::order`](super::args::Head): rows of the sequence, of which row 0 of the call is `first_row`.
    pub(crate) order: Option<&'a [u32]>,
    pub(crate) first_row: usize,
}

impl Places<'_> {
    /// Rows one after the other, from row 0 of the call on.
    pub(crate) const CONSECUTIVE: Self = Self { first: 0, order: None, first_row: 0 };

    /// The place of row `row` of the sub-tile.
    #[inline(always)]
    fn of(&self, row: usize) -> usize {
        match self.order {
            None => self.first + row,
            Some(order) => (order[self.first + row] as usize).wrapping_sub(self.first_row),
        }
    }
}

/// `packed[c][lane] = q[lane][c]`, widened, and zero in the lanes past the last row.
pub(crate) struct Pack<'a, E> {
    /// Row 0 of the call.
    pub(crate) q: *const E,
    pub(crate) q_stride: usize,
    pub(crate) places: Places<'a>,
    pub(crate) rows: usize,
    pub(crate) d: usize,
    /// `[d][lanes]`
    pub(crate) packed: *mut f32,
    pub(crate) lanes: usize,
    /// Whether to turn the sign.
    pub(crate) negate: bool,
}

impl<E: Element> Op for Pack<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        const { assert!(S::LANES * S::LANES <= 256) };
        let mut square = Square::ZERO;
        let mut turned = Square::ZERO;
        for first in (0..self.lanes).step_by(S::LANES) {
            let rows = self.rows.saturating_sub(first).min(S::LANES);
            for c in (0..self.d).step_by(S::LANES) {
                let columns = (self.d - c).min(S::LANES);
                // SAFETY: rows `first..first + rows` of q have `d` elements, `packed` has `d` rows of `lanes`; the
                // squares have room for LANES x LANES.
                unsafe {
                    let packed = self.packed.add(c * self.lanes + first);
                    // Only f32 has elements of its size.
                    if size_of::<E>() == size_of::<f32>()
                        && rows == S::LANES
                        && columns == S::LANES
                        && self.places.order.is_none()
                    {
                        let q = self.q.add(self.places.of(first) * self.q_stride + c).cast::<f32>();
                        s.transpose(q, self.q_stride, packed, self.lanes);
                        continue;
                    }
                    for row in 0..S::LANES {
                        let line = if row >= rows {
                            s.zero()
                        } else {
                            let q = self.q.wrapping_add(self.places.of(first + row).wrapping_mul(self.q_stride) + c);
                            if columns == S::LANES { E::load(s, q) } else { E::load_first(s, q, columns) }
                        };
                        s.store(square.0.as_mut_ptr().add(row * S::LANES), line);
                    }
                    if columns == S::LANES {
                        s.transpose(square.0.as_ptr(), S::LANES, packed, self.lanes);
                        continue;
                    }
                    s.transpose(square.0.as_ptr(), S::LANES, turned.0.as_mut_ptr(), S::LANES);
                    for column in 0..columns {
                        let line = s.load(turned.0.as_ptr().add(column * S::LANES));
                        s.store(packed.add(column * self.lanes), line);
                    }
                }
            }
        }
        if self.negate {
            for at in (0..self.d * self.lanes).step_by(S::LANES) {
                // SAFETY: `packed` has `d` rows of `lanes`, a multiple of LANES.
                unsafe {
                    let p = self.packed.add(at);
                    s.store(p, s.sub(s.zero(), s.load(p)));
                }
            }
        }
    }
}

/// `out[lane][c] = turned[c][lane] * factor[lane]`, rounded to the element type of the output, for the first `rows`
/// lanes. Gives whether any of `turned` is NaN.
///
/// A zero in `turned` comes out as +0: its sign may come from values behind a mask, whose products of zero were added
/// to one that underflowed.
pub(crate) struct Unpack<'a, E> {
    /// `[d_v][lanes]`
    pub(crate) turned: *const f32,
    /// `[lanes]`
    pub(crate) factor: *const f32,
    pub(crate) lanes: usize,
    /// Row 0 of the call.
    pub(crate) out: *mut E,
    pub(crate) out_stride: usize,
    pub(crate) places: Places<'a>,
    pub(crate) rows: usize,
    pub(crate) d_v: usize,
}

impl<E: Element> Op for Unpack<'_, E> {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        let mut nan = s.mask_from_bits(0);
        let mut square = Square::ZERO;
        let mut rows_of_out = Square::ZERO;
        for first in (0..self.rows).step_by(S::LANES) {
            let rows = (self.rows - first).min(S::LANES);
            for c in (0..self.d_v).step_by(S::LANES) {
                let columns = (self.d_v - c).min(S::LANES);
                // SAFETY: `turned` has `d_v` rows of `lanes`, `factor` has `lanes`, the rows of `places` in `out`
                // have `d_v` elements; the squares have room for LANES x LANES.
                unsafe {
                    let factor = s.load(self.factor.add(first));
                    for column in 0..columns {
                        let line = s.load(self.turned.add((c + column) * self.lanes + first));
                        nan = s.or(nan, s.is_nan(line));
                        s.store(square.0.as_mut_ptr().add(column * S::LANES), s.mul_add(line, factor, s.zero()));
                    }
                    if size_of::<E>() == size_of::<f32>()
                        && rows == S::LANES
                        && columns == S::LANES
                        && self.places.order.is_none()
                    {
                        let out = self.out.add(self.places.of(first) * self.out_stride + c);
                        s.transpose(square.0.as_ptr(), S::LANES, out.cast(), self.out_stride);
                        continue;
                    }
                    s.transpose(square.0.as_ptr(), S::LANES, rows_of_out.0.as_mut_ptr(), S::LANES);
                    for row in 0..rows {
                        let line = s.load(rows_of_out.0.as_ptr().add(row * S::LANES));
                        let out = self.out.wrapping_add(self.places.of(first + row).wrapping_mul(self.out_stride) + c);
                        E::store_first(s, out, line, columns);
                    }
                }
            }
        }
        s.any(nan)
    }
}
