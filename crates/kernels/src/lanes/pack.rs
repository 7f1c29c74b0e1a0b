//! Turning queries into lanes and outputs back into rows.

use regard_simd::{Element, Op, Simd};

/// A `LANES x LANES` block on the stack, for the ends of matrices.
#[repr(C, align(64))]
pub(super) struct Square(pub(super) [f32; 256]);

impl Square {
    pub(super) const ZERO: Self = Self([0.0; 256]);
}

/// `packed[c][lane] = q[lane][c]`, widened, and zero in the lanes past the last row.
pub(crate) struct Pack<E> {
    pub(crate) q: *const E,
    pub(crate) q_stride: usize,
    pub(crate) rows: usize,
    pub(crate) d: usize,
    /// `[d][lanes]`
    pub(crate) packed: *mut f32,
    pub(crate) lanes: usize,
    /// Whether to turn the sign.
    pub(crate) negate: bool,
}

impl<E: Element> Op for Pack<E> {
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
                    if size_of::<E>() == size_of::<f32>() && rows == S::LANES && columns == S::LANES {
                        let q = self.q.add(first * self.q_stride + c).cast::<f32>();
                        s.transpose(q, self.q_stride, packed, self.lanes);
                        continue;
                    }
                    for row in 0..S::LANES {
                        let q = self.q.wrapping_add((first + row) * self.q_stride + c);
                        let line = if row >= rows {
                            s.zero()
                        } else if columns == S::LANES {
                            E::load(s, q)
                        } else {
                            E::load_first(s, q, columns)
                        };
                        s.store(square.0.as_mut_ptr().add(row * S::LANES), line);
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
pub(crate) struct Unpack<E> {
    /// `[d_v][lanes]`
    pub(crate) turned: *const f32,
    /// `[lanes]`
    pub(crate) factor: *const f32,
    pub(crate) lanes: usize,
    pub(crate) out: *mut E,
    pub(crate) out_stride: usize,
    pub(crate) rows: usize,
    pub(crate) d_v: usize,
}

impl<E: Element> Op for Unpack<E> {
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
                // SAFETY: `turned` has `d_v` rows of `lanes`, `factor` has `lanes`, rows `first..first + rows` of `out`
                // have `d_v` elements; the squares have room for LANES x LANES.
                unsafe {
                    let factor = s.load(self.factor.add(first));
                    for column in 0..columns {
                        let line = s.load(self.turned.add((c + column) * self.lanes + first));
                        nan = s.or(nan, s.is_nan(line));
                        s.store(square.0.as_mut_ptr().add(column * S::LANES), s.mul_add(line, factor, s.zero()));
                    }
                    let out = self.out.add(first * self.out_stride + c);
                    if size_of::<E>() == size_of::<f32>() && rows == S::LANES && columns == S::LANES {
                        s.transpose(square.0.as_ptr(), S::LANES, out.cast(), self.out_stride);
                        continue;
                    }
                    s.transpose(square.0.as_ptr(), S::LANES, rows_of_out.0.as_mut_ptr(), S::LANES);
                    for row in 0..rows {
                        let line = s.load(rows_of_out.0.as_ptr().add(row * S::LANES));
                        E::store_first(s, out.add(row * self.out_stride), line, columns);
                    }
                }
            }
        }
        s.any(nan)
    }
}
