//! Which register tile computes how many rows.

use regard_simd::Simd;

use super::accumulate::AccumulateArgs;
use super::form::Form;
use super::scores::ScoreArgs;

/// The register tiles of levels with one width of vectors.
pub(crate) trait Tiles: Copy + 'static {
    /// Lanes of a vector.
    const LANES: usize;
    /// The most rows of a group, which share each load of K and V.
    const MOST: usize;

    /// Keys of a step: the lanes of a vector are shared out among rows, a power of two of them.
    fn keys_of_step(rows: usize) -> usize;

    /// Runs the score product for `rows` rows.
    fn scores<S: Simd, F: Form>(s: S, rows: usize, args: ScoreArgs<F::Element>);

    /// Runs the value product for `rows` rows.
    fn accumulate<S: Simd, F: Form>(s: S, rows: usize, args: AccumulateArgs<F::Element>);

    /// Runs both products for `rows` rows, for as many keys.
    fn abreast<S: Simd, F: Form>(s: S, rows: usize, scores: ScoreArgs<F::Element>, values: AccumulateArgs<F::Element>);

    /// Whether the value product passes over the values of a block more than once.
    fn passes_again(rows: usize, d_v: usize) -> bool;
}

/// One line for each number of rows: keys of a step, keys at a time, units of columns at a time, and rows of a pass over values: all,
/// if it does not say.
macro_rules! tiles {
    ($(#[$meta:meta])* $name:ident, $lanes:literal lanes: $($rows:literal => ($g:literal, $k:literal, $c:literal $(, $p:literal)?)),+ $(,)?) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug)]
        pub(crate) struct $name;

        impl Tiles for $name {
            const LANES: usize = $lanes;
            const MOST: usize = [$($rows),+].len();

            #[inline(always)]
            fn scores<S: Simd, F: Form>(s: S, rows: usize, args: ScoreArgs<F::Element>) {
                match rows {
                    $($rows => F::scores::<S, $rows, $g, $k, $lanes>(s, args),)+
                    _ => unreachable!("a group of {rows} rows"),
                }
            }

            #[inline(always)]
            fn accumulate<S: Simd, F: Form>(s: S, rows: usize, args: AccumulateArgs<F::Element>) {
                match rows {
                    $($rows => F::accumulate::<S, $rows, $g, $c, { [$($p,)? $rows][0] }, $lanes>(s, args),)+
                    _ => unreachable!("a group of {rows} rows"),
                }
            }

            #[inline(always)]
            fn abreast<S: Simd, F: Form>(
                s: S,
                rows: usize,
                scores: ScoreArgs<F::Element>,
                values: AccumulateArgs<F::Element>,
            ) {
                match rows {
                    $($rows => F::abreast::<S, $rows, $g, $lanes>(s, scores, values),)+
                    _ => unreachable!("a group of {rows} rows"),
                }
            }

            fn keys_of_step(rows: usize) -> usize {
                [$($g),+][rows - 1]
            }

            fn passes_again(rows: usize, d_v: usize) -> bool {
                let units = [$($c),+][rows - 1];
                d_v > units * 2 * $lanes || rows > [$([$($p,)? $rows][0]),+][rows - 1]
            }
        }
    };
}

// Registers: rows * keys accumulators of scores, rows * 2 units of sums, and what they are multiplied with. Sharing the loads of
// queries among keys pays as long as arithmetic counts; but memory is read best in one stream, key after key and all columns
// of a value at once, even where sums spill (Zen 4, one row: 33 GB/s, and 17 in four streams side by side, 512 bytes apart;
// four rows of f32: 24.6 GB/s of both products from memory with one key and 4 units, 22.4 with two keys and 2 units, though
// 38 against 46 in the second-level cache).
//
// f32 costs nothing to load again, so that rows are what is shared out where all columns of all rows are more sums than there are
// registers. Eight rows from memory on a Xeon with AMX: 14.5 GB/s in passes of two rows and four units, 14.4 in passes of eight and
// one, 13.7 of four and two. Halves, which cost two operations to widen, lose an eighth in passes of four rows and two units (10.1
// GB/s, and 8.9). Not measured on Zen 4.

tiles!(
    /// 16 lanes, 32 registers, for elements that cost nothing to widen: with few rows, memory is what counts.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "no other level has 16 lanes"))]
    WideStream, 16 lanes:
    1 => (16, 1, 4), 2 => (8, 1, 4), 3 => (4, 1, 4), 4 => (4, 1, 4, 2),
    5 => (2, 2, 4, 2), 6 => (2, 2, 4, 3), 7 => (2, 2, 4, 2), 8 => (2, 2, 4, 2)
);

tiles!(
    /// 16 lanes, 32 registers.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "no other level has 16 lanes"))]
    Wide, 16 lanes:
    1 => (16, 1, 4), 2 => (8, 2, 4), 3 => (4, 2, 4), 4 => (4, 2, 2),
    5 => (2, 2, 2), 6 => (2, 2, 2), 7 => (2, 2, 1), 8 => (2, 2, 1)
);

tiles!(
    /// 16 lanes, 32 registers, for dot products of pairs, whose scores come four rows at a time.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "no other level has 16 lanes"))]
    WideDots, 16 lanes:
    1 => (4, 4, 4), 2 => (4, 4, 4), 3 => (4, 4, 4), 4 => (4, 4, 2),
    5 => (2, 8, 2), 6 => (2, 8, 2), 7 => (2, 8, 1), 8 => (2, 8, 1)
);

tiles!(
    /// 16 lanes, 32 registers, for pairs of integers, whose keys lie closer together.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "no other level has 16 lanes"))]
    WideFixed, 16 lanes:
    1 => (16, 4, 4), 2 => (8, 4, 4), 3 => (4, 4, 4), 4 => (4, 4, 2),
    5 => (2, 2, 2), 6 => (2, 2, 2), 7 => (2, 2, 1), 8 => (2, 2, 1)
);

tiles!(
    /// 16 lanes, for tile registers, which hold no more of a row than its lanes: whole values of 256 columns at a time. In the
    /// second-level cache 16 rows of bf16 take 1.3 times the time of eight, and of int8 1.6 times.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "no other level has 16 lanes"))]
    WideTiles, 16 lanes:
    1 => (16, 1, 8), 2 => (8, 1, 8), 3 => (4, 1, 8), 4 => (4, 1, 8),
    5 => (2, 1, 8), 6 => (2, 1, 8), 7 => (2, 1, 8), 8 => (2, 1, 8),
    9 => (1, 1, 8), 10 => (1, 1, 8), 11 => (1, 1, 8), 12 => (1, 1, 8),
    13 => (1, 1, 8), 14 => (1, 1, 8), 15 => (1, 1, 8), 16 => (1, 1, 8)
);

tiles!(
    /// 8 lanes, 16 registers.
    Medium, 8 lanes:
    1 => (8, 2, 4), 2 => (4, 2, 2), 3 => (2, 2, 1), 4 => (2, 2, 1)
);

tiles!(
    /// 4 lanes, 32 registers.
    #[cfg_attr(not(target_arch = "aarch64"), expect(dead_code, reason = "no other level has 4 lanes"))]
    Narrow, 4 lanes:
    1 => (4, 4, 4), 2 => (2, 2, 4), 3 => (1, 1, 4), 4 => (1, 1, 3)
);

tiles!(
    /// 4 lanes, 32 registers, for dot products of pairs: of one row, or of two.
    #[cfg_attr(not(target_arch = "aarch64"), expect(dead_code, reason = "no other level has 4 lanes"))]
    NarrowDots, 4 lanes:
    1 => (4, 4, 4), 2 => (2, 8, 4)
);
