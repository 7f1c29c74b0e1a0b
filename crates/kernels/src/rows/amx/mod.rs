//! Both products on tile registers: 16 keys, or 64 bytes of as many values, at a time.
//!
//! | | left factor | right factor | sum |
//! |---|---|---|---|
//! | scores | 16 keys, 64 bytes of each, as they lie in memory | as many columns of the queries | `[key][row]` |
//! | values | `[row]`: weights of a chunk of keys | 16 columns of the chunk's values, 4 bytes of a column together | `[row][column]` |
//!
//! A chunk has as many keys as there are elements in 64 bytes. Keys need no preparation, and their scores come out as a vector of
//! scores holds them. Values are interleaved, one chunk at a time, by the first group of rows for all of them; columns stay apart, so
//! that NaN and Inf stay in theirs.
//!
//! All products of up to 16 rows together cost what those of one do. Nothing here depends on how many there are but for the width of
//! their tiles, and whether the parts of their weights fit in one.

mod bf16;
mod int8;
mod scores;
mod values;
mod weights;

use regard_simd::{Avx512Amx, Element, Simd, TileRegisters, TileShapes};

pub(crate) use self::bf16::TiledBf16;
pub(crate) use self::int8::TiledInt8;

/// Rows of a tile.
const ROWS: usize = 16;

/// Bytes of a row of a tile.
const ROW_BYTES: usize = 64;

/// f32 of a tile of 16 rows.
const TILE: usize = ROWS * ROW_BYTES / 4;

/// What is held by which register.
mod register {
    pub(super) const KEYS: usize = 0;
    pub(super) const QUERIES: usize = 1;
    /// Sums of the parts of queries.
    pub(super) const SCORES: [usize; 2] = [2, 3];
    /// Of all parts, or of each part where they are more rows than a tile has. No keys are held while values are multiplied.
    pub(super) const WEIGHTS: [usize; 2] = [4, KEYS];
    pub(super) const VALUES: usize = 5;
    pub(super) const SUMS: [usize; 2] = [6, 7];
}

/// Elements as tiles take them.
trait Tiled: 'static {
    /// The element type of K and V.
    type Element: Element;

    /// Numbers that a query or a weight is the sum of, each in its own place.
    const PARTS: usize;

    /// Elements of 4 bytes.
    const GROUP: usize;

    /// Elements of a row of a tile, and keys of a chunk.
    const COLUMNS: usize = ROWS * Self::GROUP;

    /// Adds the product of tiles `A` and `B` to tile `C`.
    ///
    /// # Safety
    /// This thread has the registers, with shapes that fit.
    unsafe fn dot<const C: usize, const A: usize, const B: usize>(s: Avx512Amx);

    /// What the sums of the parts add up to.
    fn join(s: Avx512Amx, parts: [<Avx512Amx as Simd>::F32; 2]) -> <Avx512Amx as Simd>::F32;

    /// From `GROUP` values, 64 bytes of each, the same columns of all of them together: 16 columns in each of `GROUP` vectors.
    fn interleave(s: Avx512Amx, values: [<Avx512Amx as Simd>::F32; 4]) -> [<Avx512Amx as Simd>::F32; 4];

    /// Puts 16 sums of each of `GROUP` vectors that come of [`Tiled::interleave`] into the order of columns.
    fn in_order(s: Avx512Amx, sums: [<Avx512Amx as Simd>::F32; 4]) -> [<Avx512Amx as Simd>::F32; 4];
}

/// The token, where a kernel of this form runs.
fn token() -> Avx512Amx {
    // SAFETY: the forms of this module are those of kernels that need the extension, which is looked for before one is chosen.
    unsafe { Avx512Amx::assume() }
}

/// Whether each part of the weights has a tile of its own.
const fn parts_apart<P: Tiled>(row_lanes: usize) -> bool {
    P::PARTS * row_lanes > ROWS
}

/// The registers for rows that take this many lanes of a step.
fn hold<P: Tiled>(row_lanes: usize) -> TileRegisters {
    let (row_lanes, all) = (row_lanes as u8, (ROWS as u8, ROW_BYTES as u16));
    let mut shapes = TileShapes::default();
    shapes.0[register::KEYS] = all;
    shapes.0[register::VALUES] = all;
    for register in [register::QUERIES, register::SCORES[0], register::SCORES[1]] {
        shapes.0[register] = (ROWS as u8, 4 * u16::from(row_lanes));
    }
    let weights = if parts_apart::<P>(row_lanes.into()) { row_lanes } else { P::PARTS as u8 * row_lanes };
    for register in [register::WEIGHTS[0], register::SUMS[0], register::SUMS[1]] {
        shapes.0[register] = (weights, ROW_BYTES as u16);
    }
    token().tiles(&shapes)
}

/// Writes 32 columns of row `r` of `rows`, from `c` on, to where [`scores::TileScores`] looks for them: `[64 bytes of columns][part][4
/// bytes of columns][row]`. `place` is `[r, c, rows]`.
///
/// # Safety
/// `to` has room for the packed queries.
#[inline(always)]
unsafe fn put_words<P: Tiled>(to: *mut f32, [r, c, rows]: [usize; 3], parts: &[[P::Element; 2 * ROWS]]) {
    let row_lanes = rows.next_power_of_two();
    let len = ROWS * row_lanes;
    let first = c / P::COLUMNS * parts.len() * len + c % P::COLUMNS / P::GROUP * row_lanes + r;
    for (i, part) in parts.iter().enumerate() {
        for (j, word) in part.chunks_exact(P::GROUP).enumerate() {
            // SAFETY: the caller's contract; a group of elements is of 4 bytes.
            unsafe { *to.add(first + i * len + j * row_lanes) = word.as_ptr().cast::<f32>().read_unaligned() };
        }
    }
}

/// Memory that a tile is read from or written to.
#[repr(C, align(64))]
struct Buffer<const N: usize>([f32; N]);

/// The first `len` elements of 64 bytes; the others are zero.
///
/// # Safety
/// They are readable.
#[inline(always)]
unsafe fn load<P: Tiled>(s: Avx512Amx, p: *const P::Element, len: usize) -> <Avx512Amx as Simd>::F32 {
    // SAFETY: the caller's contract; the buffer has room for any part of 64 bytes.
    unsafe {
        if len == P::COLUMNS {
            return s.load(p.cast());
        }
        let mut rest = Buffer([0.0; ROW_BYTES / 4]);
        p.copy_to_nonoverlapping(rest.0.as_mut_ptr().cast(), len);
        s.load(rest.0.as_ptr())
    }
}
