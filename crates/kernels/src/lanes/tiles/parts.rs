//! Both products in f32: each number is the sum of up to three of them.
//!
//! The upper 16 bits of an f32 are a bf16, and what is left is an f32 of which the same is true: `x = x0 + x1 + x2`, exactly. Of the nine products of parts of two
//! numbers, the six with `i + j < 3` are added up in f32; the others are below `2^-23` of the product altogether, as much as its
//! rounding to f32 (G. Henry, P. T. P. Tang and A. Heinecke, "Leveraging the bfloat16 artificial intelligence datatype for
//! higher-precision computations", ARITH 2019, section III). Elements of f16 have two parts, those of bf16 one: products that would be
//! zero are left out, which changes no bits.
//!
//! | | left factor | right factor | sum |
//! |---|---|---|---|
//! | scores | a part of 16 keys, 32 columns of each | a part of as many columns of 16 queries | `[key][lane]` |
//! | values | a part of 16 columns of 32 keys | a part of the weights of 16 queries for them | `[column][lane]` |
//!
//! A pair, which fills the place of an f32, is of columns or keys `i` and `i + 16` of 32: so two vectors become pairs lane by lane.
//!
//! On a Xeon (2048 x 2048, d 128, of f32) 24 products of parts, of two left and two right factors, take 150 to 165 ns in loops in C, the
//! instruction alone 105 to 115 (135 where its factors are neither zero nor at hand), and these loops about 165. To ask for the keys of
//! the next block with score products, and for its values with value products, changes 16 to 128 queries by -10 to +5 %.
//!
//! NaN and Inf have parts that are NaN, and so have queries, keys and values that are not zero and below `2^-50`, as tile registers take
//! subnormal parts and products for zeros. Sums with one of them are NaN therefore; the rows that have such a sum are computed again in
//! vectors ([`Lanes::run_all`]), which know better. (Small weights remain: of a product of less than `2^-110`, bits may be missing.)

use regard_simd::{Avx512Amx, Simd};

use super::{F32, Products, SIDE, token};
use crate::lanes::args::Head;
use crate::lanes::{Lanes, MOST_PARTS};
use crate::tensor::Dtype;

/// Parts that the elements of a type have: those after them are zero.
pub(super) fn parts_of(dtype: Dtype) -> usize {
    match dtype {
        Dtype::Bf16 => 1,
        Dtype::F16 => 2,
        // Bytes are multiplied by their scale.
        Dtype::F32 | Dtype::Int8 => MOST_PARTS,
    }
}

/// Which part of the left factor meets which of the right one, in an order that reads few of them twice.
const PATH: [[usize; 2]; 6] = [[2, 0], [1, 0], [1, 1], [0, 1], [0, 0], [0, 2]];

/// The products of parts that are not zero, given how many either side has.
#[inline(always)]
pub(super) fn path(parts: [usize; 2]) -> impl Iterator<Item = [usize; 2]> {
    PATH.into_iter().filter(move |step| step[0] < parts[0] && step[1] < parts[1])
}

/// The parts of two vectors, as pairs.
#[inline(always)]
pub(super) fn split(s: Avx512Amx, [mut low, mut high]: [F32; 2]) -> [F32; MOST_PARTS] {
    let mut parts = [s.zero(); MOST_PARTS];
    for part in 0..MOST_PARTS {
        parts[part] = s.pair_upper_halves(low, high);
        low = s.sub(low, s.high_bf16(low));
        high = s.sub(high, s.high_bf16(high));
    }
    parts
}

/// Two tiles of a factor, in all of their parts.
#[derive(Clone, Copy)]
pub(super) struct Factor {
    pub(super) tiles: [*const f32; 2],
    /// f32 from a row to the next, and from a part to the next.
    pub(super) stride: usize,
    pub(super) part: usize,
}

impl Factor {
    #[inline(always)]
    fn part(self, part: usize) -> [*const f32; 2] {
        [self.tiles[0].wrapping_add(part * self.part), self.tiles[1].wrapping_add(part * self.part)]
    }
}

/// Adds up the products of parts of two factors, given how many either has.
///
/// Whole factors of the most common numbers of parts have straight code: in a loop over [`PATH`], 2048 x 2048 f32 take a tenth longer.
///
/// # Safety
/// The thread holds the registers, and the factors are there.
#[inline(always)]
pub(super) unsafe fn multiply(products: Products, parts: [usize; 2], left: Factor, right: Factor) {
    let whole = Products { two: [true; 2], ..products };
    // SAFETY: the caller's contract.
    unsafe {
        match parts {
            [3, 3] if products.two == whole.two => steps::<3, 3>(whole, left, right),
            [2, 3] if products.two == whole.two => steps::<2, 3>(whole, left, right),
            [2, 2] if products.two == whole.two => steps::<2, 2>(whole, left, right),
            _ => {
                let mut last = [MOST_PARTS; 2];
                for next in path(parts) {
                    step(products, left, right, last, next);
                    last = next;
                }
            }
        }
    }
}

/// The same for numbers of parts that the compiler knows.
///
/// # Safety
/// As for [`multiply`].
#[inline(always)]
unsafe fn steps<const LEFT: usize, const RIGHT: usize>(products: Products, left: Factor, right: Factor) {
    let mut last = [MOST_PARTS; 2];
    macro_rules! steps {
        ($($index:literal)+) => {$(
            let next = PATH[$index];
            if next[0] < LEFT && next[1] < RIGHT {
                // SAFETY: the caller's contract.
                unsafe { step(products, left, right, last, next) };
                last = next;
            }
        )+};
    }
    steps!(0 1 2 3 4 5);
    let _ = last;
}

/// The product of two parts, of which those of the last step are at hand.
///
/// # Safety
/// As for [`multiply`].
#[inline(always)]
unsafe fn step(products: Products, left: Factor, right: Factor, last: [usize; 2], [i, j]: [usize; 2]) {
    // SAFETY: the caller's contract.
    unsafe {
        if last[1] != j {
            products.right(right.part(j), right.stride * size_of::<f32>());
        }
        if last[0] != i {
            let [a, b] = left.part(i);
            products.left([a.cast(), b.cast()], left.stride * size_of::<f32>());
        }
        products.multiply();
    }
}

impl<const G: usize, const R: usize, const R1: usize> Lanes<'_, G, R, R1, false, true> {
    /// Runs all rows of the call, and then those whose results are NaN by `again`, in the same scratch: sums that have an Inf are not
    /// necessarily NaN in other arithmetic.
    ///
    /// # Safety
    /// This thread may use the level and its extension, the fields are as they say, and `again` touches nothing of the scratch that is
    /// there for parts only.
    pub(crate) unsafe fn run_all(self, again: impl Fn(&Head<'_>)) {
        let Self { head, scratch, layout } = self;
        token().vectorize(self);
        let rows_of_tile = G * SIDE;
        // SAFETY: the layout has a word for each sub-tile, which the call wrote.
        let lanes = |t: usize| unsafe { *scratch.add(layout.nan).cast::<u64>().add(t) };
        let is_nan = |row: usize| lanes(row / rows_of_tile) >> (row % rows_of_tile) & 1 == 1;
        if (0..head.rows.div_ceil(rows_of_tile)).all(|t| lanes(t) == 0) {
            return;
        }
        let mut row = 0;
        while row < head.rows {
            let end = (row..head.rows).find(|row| !is_nan(*row)).unwrap_or(head.rows);
            if end > row {
                again(&head.part(row..end));
            }
            row = end + 1;
        }
    }
}
