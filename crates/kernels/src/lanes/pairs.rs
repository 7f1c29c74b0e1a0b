//! The arithmetic of pairs of bf16: two products and two additions in one step, which some machines do in one
//! instruction.
//!
//! A pair fills the place of an f32. Queries and keys are pairs of neighbouring columns; keys lie in memory like that.
//! Weights and values are pairs of neighbouring keys: weights are rounded once they are known, and the values of a
//! block are interleaved once for all sub-tiles.

use regard_simd::{Element, Op, Simd, bf16, f16};

use super::pack::Square;
use crate::source::Source;
use crate::tensor::Dtype;

/// `acc + a * b`, of f32 or of pairs of bf16.
#[inline(always)]
pub(super) fn multiply_add<S: Simd, const PAIRS: bool>(s: S, a: S::F32, b: S::F32, acc: S::F32) -> S::F32 {
    if PAIRS { s.dot_bf16(acc, a, b) } else { s.add_product(acc, a, b) }
}

/// The lower half of a pair, and zero.
#[inline(always)]
pub(super) fn low(pair: f32) -> f32 {
    f32::from_bits(pair.to_bits() & 0xffff)
}

/// The upper half of a pair, and zero.
#[inline(always)]
pub(super) fn high(pair: f32) -> f32 {
    f32::from_bits(pair.to_bits() & 0xffff_0000)
}

/// Two vectors of bf16 of the widest level.
#[repr(C, align(64))]
struct Line([bf16; 32]);

impl Line {
    const ZERO: Self = Self([bf16::ZERO; 32]);
}

/// `packed[i][lane]` is the pair of `q[lane][2 i]` and `q[lane][2 i + 1]`, rounded, and zero past the last row and
/// column.
pub(super) struct PackPairs {
    pub(super) q: *const u8,
    pub(super) dtype: Dtype,
    pub(super) row_bytes: usize,
    pub(super) rows: usize,
    pub(super) d: usize,
    /// Pairs of a packed row, `d / 2` rounded up or more: the others are zero.
    pub(super) words: usize,
    /// `[words][lanes]`
    pub(super) packed: *mut f32,
    pub(super) lanes: usize,
    /// Whether to turn the sign.
    pub(super) negate: bool,
}

impl PackPairs {
    /// `len <= 2 * LANES` columns of a row from column `c` on as pairs.
    ///
    /// # Safety
    /// The columns exist.
    #[inline(always)]
    unsafe fn line<S: Simd>(&self, s: S, row: usize, c: usize, len: usize) -> S::F32 {
        let mut line = Line::ZERO;
        let to = line.0.as_mut_ptr();
        let q = self.q.wrapping_add(row * self.row_bytes);
        // SAFETY: the caller's contract, and a line has room for two vectors of bf16.
        unsafe {
            for at in (0..len).step_by(S::LANES) {
                let (to, part) = (to.add(at), (len - at).min(S::LANES));
                match self.dtype {
                    Dtype::F32 => s.store_first_bf16(to, s.load_first(q.cast::<f32>().add(c + at), part), part),
                    Dtype::F16 => s.store_first_bf16(to, f16::load_first(s, q.cast::<f16>().add(c + at), part), part),
                    Dtype::Bf16 => to.copy_from_nonoverlapping(q.cast::<bf16>().add(c + at), part),
                    Dtype::Int8 => unreachable!("no queries are quantised"),
                }
            }
            s.load(to.cast())
        }
    }
}

impl Op for PackPairs {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        const { assert!(2 * S::LANES <= 32) };
        let words = self.d.div_ceil(2);
        let straight = self.dtype == Dtype::Bf16 && self.row_bytes.is_multiple_of(size_of::<f32>());
        let mut square = Square::ZERO;
        let mut turned = Square::ZERO;
        for first in (0..self.lanes).step_by(S::LANES) {
            let rows = self.rows.saturating_sub(first).min(S::LANES);
            for word in (0..words).step_by(S::LANES) {
                let columns = (self.d - 2 * word).min(2 * S::LANES);
                // SAFETY: rows `first..first + rows` of q have `d` elements, `packed` has `words` rows of `lanes`; the
                // squares have room for LANES x LANES.
                unsafe {
                    let packed = self.packed.add(word * self.lanes + first);
                    if straight && rows == S::LANES && columns == 2 * S::LANES {
                        let q = self.q.add(first * self.row_bytes).cast::<f32>().add(word);
                        s.transpose(q, self.row_bytes / size_of::<f32>(), packed, self.lanes);
                        continue;
                    }
                    for row in 0..S::LANES {
                        let line = if row < rows { self.line(s, first + row, 2 * word, columns) } else { s.zero() };
                        s.store(square.0.as_mut_ptr().add(row * S::LANES), line);
                    }
                    s.transpose(square.0.as_ptr(), S::LANES, turned.0.as_mut_ptr(), S::LANES);
                    for i in 0..columns.div_ceil(2) {
                        s.store(packed.add(i * self.lanes), s.load(turned.0.as_ptr().add(i * S::LANES)));
                    }
                }
            }
        }
        for at in words * self.lanes..self.words * self.lanes {
            // SAFETY: `packed` has as many rows.
            unsafe { *self.packed.add(at) = 0.0 };
        }
        if self.negate {
            for at in 0..words * self.lanes {
                // SAFETY: `packed` has `words` rows of `lanes`.
                unsafe { *self.packed.cast::<u32>().add(at) ^= 0x8000_8000 };
            }
        }
    }
}

/// Rounds weights, in place: row `i` of `to` becomes the pairs of rows `2 i` and `2 i + 1` of `from`.
pub(super) struct PairWeights {
    /// `[keys][lanes]`
    pub(super) from: *const f32,
    /// `[keys / 2, rounded up][lanes]`; not above `from`.
    pub(super) to: *mut f32,
    pub(super) lanes: usize,
    pub(super) keys: usize,
    /// Keys that are missing for a multiple of this have a weight of zero. Even.
    pub(super) granule: usize,
    /// Vectors of lanes.
    pub(super) vectors: usize,
}

impl Op for PairWeights {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (mut from, mut to) = (self.from, self.to);
        for _ in 0..self.keys / 2 {
            for at in (0..self.vectors * S::LANES).step_by(S::LANES) {
                // SAFETY: the rows exist; what is written was read before.
                unsafe { s.store(to.add(at), s.pair_bf16(s.load(from.add(at)), s.load(from.add(self.lanes + at)))) };
            }
            from = from.wrapping_add(2 * self.lanes);
            to = to.wrapping_add(self.lanes);
        }
        if !self.keys.is_multiple_of(2) {
            for at in (0..self.vectors * S::LANES).step_by(S::LANES) {
                // SAFETY: as above.
                unsafe { s.store(to.add(at), s.pair_bf16(s.load(from.add(at)), s.zero())) };
            }
            to = to.wrapping_add(self.lanes);
        }
        for _ in self.keys.div_ceil(2)..self.keys.next_multiple_of(self.granule) / 2 {
            for at in (0..self.vectors * S::LANES).step_by(S::LANES) {
                // SAFETY: there is room for a multiple of the granule.
                unsafe { s.store(to.add(at), s.zero()) };
            }
            to = to.wrapping_add(self.lanes);
        }
    }
}

/// Copies rows of bf16, so that each starts at a pair: the last element of an odd number of columns is paired with
/// zero.
pub(super) struct GatherPairs<'a> {
    pub(super) source: &'a Source<'a>,
    /// The first row.
    pub(super) first: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Pairs of a row in its new place, `columns / 2` rounded up or more: the others are zero.
    pub(super) words: usize,
    /// `[rows][words]`
    pub(super) to: *mut f32,
}

impl Op for GatherPairs<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _s: S) {
        for row in 0..self.rows {
            let from = self.source.run(self.first + row).data.cast::<bf16>();
            // SAFETY: the source has the rows, of `columns` elements, and `to` has room for them (contract of the
            // struct, made by `Lanes`).
            unsafe {
                let to = self.to.add(row * self.words).cast::<bf16>();
                to.copy_from_nonoverlapping(from, self.columns);
                for c in self.columns..2 * self.words {
                    *to.add(c) = bf16::ZERO;
                }
            }
        }
    }
}

/// `to[i][c]` is the pair of columns `c` of rows `2 i` and `2 i + 1` of bf16, of which a missing last one is zero.
pub(super) struct Interleave<'a> {
    pub(super) source: &'a Source<'a>,
    /// The first row.
    pub(super) first: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// `[rows / 2, rounded up][columns]`
    pub(super) to: *mut f32,
}

impl Op for Interleave<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        const { assert!(2 * S::LANES <= 32) };
        let whole = self.columns / (2 * S::LANES) * (2 * S::LANES);
        let rest = self.columns - whole;
        for row in (0..self.rows).step_by(2) {
            let even = self.source.run(self.first + row).data.cast::<bf16>();
            let odd = (row + 1 < self.rows).then(|| self.source.run(self.first + row + 1).data.cast::<bf16>());
            // SAFETY: the source has the rows, of `columns` elements, and `to` has room for them (contract of the
            // struct, made by `Lanes`).
            unsafe {
                let to = self.to.add(row / 2 * self.columns);
                for c in (0..whole).step_by(2 * S::LANES) {
                    let b = match odd {
                        Some(odd) => s.load(odd.add(c).cast()),
                        None => s.zero(),
                    };
                    let [first, second] = s.interleave(s.load(even.add(c).cast()), b);
                    s.store(to.add(c), first);
                    s.store(to.add(c + S::LANES), second);
                }
                if rest > 0 {
                    let (mut a, mut b) = (Line::ZERO, Line::ZERO);
                    a.0.as_mut_ptr().copy_from_nonoverlapping(even.add(whole), rest);
                    if let Some(odd) = odd {
                        b.0.as_mut_ptr().copy_from_nonoverlapping(odd.add(whole), rest);
                    }
                    let [first, second] = s.interleave(s.load(a.0.as_ptr().cast()), s.load(b.0.as_ptr().cast()));
                    s.store_first(to.add(whole), first, rest.min(S::LANES));
                    s.store_first(to.add(whole + S::LANES), second, rest.saturating_sub(S::LANES));
                }
            }
        }
    }
}
