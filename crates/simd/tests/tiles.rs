//! Products of tiles, against the definition in scalar code; and what goes with them.
#![cfg(target_arch = "x86_64")]

mod common;

use common::Random;
use regard_simd::{Avx512Amx, Op, Simd, TileShapes, bf16};

/// Rows of a tile, and 32-bit elements of a row.
const SIDE: usize = 16;

/// The token, where the machine has it. `common::tokens` says so where it has not.
fn token() -> Option<Avx512Amx> {
    common::tokens();
    Avx512Amx::detect()
}

/// Tiles of `rows` by `columns`, with `depth` groups of four bytes between the factors.
fn shapes([rows, depth, columns]: [usize; 3]) -> TileShapes {
    let mut shapes = TileShapes::default();
    shapes.0[0] = (rows as u8, 4 * columns as u16);
    shapes.0[1] = (rows as u8, 4 * depth as u16);
    shapes.0[2] = (depth as u8, 4 * columns as u16);
    shapes
}

/// Every shape of a few sizes.
fn sizes() -> impl Iterator<Item = [usize; 3]> {
    const SIZES: [usize; 6] = [1, 2, 3, 8, 15, 16];
    SIZES.into_iter().flat_map(|m| SIZES.into_iter().flat_map(move |k| SIZES.into_iter().map(move |n| [m, k, n])))
}

/// The sum of tile 0, at first what is in `sums`, after the product of `left` and `right`, rows of which are `SIDE` words apart.
fn product(s: Avx512Amx, size: [usize; 3], bytes: bool, left: &[u32], right: &[u32], sums: &mut [u32]) {
    let _held = s.tiles(&shapes(size));
    let stride = 4 * SIDE;
    // SAFETY: the slices have 16 rows of 16 words, and this thread has the registers with shapes that fit.
    unsafe {
        s.tile_load::<0>(sums.as_ptr().cast(), stride);
        s.tile_load::<1>(left.as_ptr().cast(), stride);
        s.tile_load::<2>(right.as_ptr().cast(), stride);
        if bytes {
            s.tile_dot_i8::<0, 1, 2>()
        } else {
            s.tile_dot_bf16::<0, 1, 2>()
        }
        s.tile_store::<0>(sums.as_mut_ptr().cast(), stride);
    }
}

#[test]
fn products_of_bf16() {
    let Some(s) = token() else { return };
    let mut random = Random(1);
    let mut number = || random.fraction() * 8.0 - 4.0;
    for size @ [m, k, n] in sizes() {
        let mut pair = || {
            let [low, high] = [(); 2].map(|()| u32::from(bf16::from_f32(number()).to_bits()));
            high << 16 | low
        };
        let mut words = || (0..SIDE * SIDE).map(|_| pair()).collect::<Vec<u32>>();
        let (left, right, mut sums) = (words(), words(), words());
        let before = sums.clone();
        product(s, size, false, &left, &right, &mut sums);
        let half = |pair: u32, high: bool| f32::from_bits(if high { pair & 0xffff_0000 } else { pair << 16 });
        for (at, (sum, before)) in sums.iter().zip(&before).enumerate() {
            let (row, column) = (at / SIDE, at % SIDE);
            let mut wanted = *before;
            if row < m && column < n {
                let chain = |high| {
                    let factor = |group: usize| (left[row * SIDE + group], right[group * SIDE + column]);
                    (0..k).map(factor).fold(0.0_f32, |sum, (a, b)| half(a, high).mul_add(half(b, high), sum))
                };
                wanted = (f32::from_bits(*before) + (chain(false) + chain(true))).to_bits();
            }
            // What is not of the tile is as it was.
            assert_eq!(*sum, wanted, "{size:?}, row {row}, column {column}");
        }
    }
}

#[test]
fn products_of_bytes() {
    let Some(s) = token() else { return };
    let mut random = Random(2);
    for size @ [m, k, n] in sizes() {
        let mut words = || (0..SIDE * SIDE).map(|_| random.bits() as u32).collect::<Vec<u32>>();
        let (left, right, mut sums) = (words(), words(), words());
        let before = sums.clone();
        product(s, size, true, &left, &right, &mut sums);
        for (at, (sum, before)) in sums.iter().zip(&before).enumerate() {
            let (row, column) = (at / SIDE, at % SIDE);
            let mut wanted = *before as i32;
            if row < m && column < n {
                for group in 0..k {
                    let (a, b) = (left[row * SIDE + group].to_le_bytes(), right[group * SIDE + column].to_le_bytes());
                    for (a, b) in a.into_iter().zip(b) {
                        wanted = wanted.wrapping_add(i32::from(a as i8) * i32::from(b as i8));
                    }
                }
            }
            assert_eq!(*sum as i32, wanted, "{size:?}, row {row}, column {column}");
        }
    }
}

#[test]
fn a_zeroed_tile_is_zero() {
    let Some(s) = token() else { return };
    let mut words = vec![7_u32; SIDE * SIDE];
    let _held = s.tiles(&shapes([3, 1, 5]));
    // SAFETY: there is room for 16 rows, and this thread has the registers.
    unsafe {
        s.tile_load::<0>(words.as_ptr().cast(), 4 * SIDE);
        s.tile_zero::<0>();
        s.tile_store::<0>(words.as_mut_ptr().cast(), 4 * SIDE);
    }
    for (at, word) in words.iter().enumerate() {
        assert_eq!(*word, if at / SIDE < 3 && at % SIDE < 5 { 0 } else { 7 }, "{at}");
    }
}

#[test]
#[should_panic(expected = "a tile of 17 rows of 4 bytes")]
fn a_tile_that_is_too_large() {
    let Some(s) = token() else { panic!("a tile of 17 rows of 4 bytes: not looked at") };
    let mut shapes = TileShapes::default();
    shapes.0[3] = (17, 4);
    let _held = s.tiles(&shapes);
}

/// Numbers to two signed bytes and back, and the order of interleaved bytes.
struct Bytes<'a> {
    s: Avx512Amx,
    numbers: &'a [f32; 16],
    rows: &'a [[i8; 64]; 4],
}

impl Op for Bytes<'_> {
    type Output = ([i8; 16], [i8; 16], [[i8; 64]; 4]);

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Self::Output {
        let s = self.s;
        let (mut high, mut low, mut interleaved) = ([0; 16], [0; 16], [[0; 64]; 4]);
        // SAFETY: all arrays are as large as what is read and written.
        unsafe {
            s.store_bytes(s.load(self.numbers.as_ptr()), high.as_mut_ptr(), low.as_mut_ptr());
            let vectors = s.interleave_bytes(self.rows.each_ref().map(|row| s.load(row.as_ptr().cast())));
            for (to, vector) in interleaved.iter_mut().zip(vectors) {
                s.store(to.as_mut_ptr().cast(), vector);
            }
        }
        (high, low, interleaved)
    }
}

#[test]
fn bytes_of_numbers_and_groups_of_bytes() {
    let Some(s) = token() else { return };
    let mut random = Random(3);
    let special = [0.0, 0.5, 1.5, -0.5, 127.4, 127.6, -128.5, 32639.0, -32639.0, 128.0, 255.0, 256.0, f32::NAN];
    for turn in 0..200 {
        let mut numbers = [0.0; 16];
        for (i, number) in numbers.iter_mut().enumerate() {
            let any = (random.fraction() - 0.5) * 65278.0;
            *number = *special.get(i).filter(|_| turn == 0).unwrap_or(&any);
        }
        let mut rows = [[0; 64]; 4];
        rows.as_flattened_mut().fill_with(|| random.bits() as i8);
        let (high, low, interleaved) = s.vectorize(Bytes { s, numbers: &numbers, rows: &rows });
        for (i, number) in numbers.into_iter().enumerate() {
            let wanted = number.round_ties_even() as i32;
            assert_eq!(256 * i32::from(high[i]) + i32::from(low[i]), wanted, "{number}");
        }
        for (t, vector) in interleaved.iter().enumerate() {
            for (lane, group) in vector.chunks_exact(4).enumerate() {
                let index = 16 * (lane / 4) + 4 * t + lane % 4;
                assert_eq!(group, [0, 1, 2, 3].map(|row: usize| rows[row][index]), "vector {t}, lane {lane}");
            }
        }
    }
}

/// `256 * high + low`, as f32.
struct Join<'a>(Avx512Amx, &'a [i32; 16], &'a [i32; 16]);

impl Op for Join<'_> {
    type Output = [f32; 16];

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> [f32; 16] {
        let Self(s, high, low) = self;
        let mut joined = [0.0; 16];
        // SAFETY: the arrays have 16 elements.
        unsafe {
            let sums = s.join_bytes(s.load(high.as_ptr().cast()), s.load(low.as_ptr().cast()));
            s.store(joined.as_mut_ptr(), sums);
        }
        joined
    }
}

#[test]
fn sums_of_bytes_are_joined() {
    let Some(s) = token() else { return };
    let mut random = Random(4);
    for _ in 0..200 {
        let [high, low] = [(); 2].map(|()| [(); 16].map(|()| random.bits() as i32 >> (random.bits() % 20)));
        let joined = s.vectorize(Join(s, &high, &low));
        for i in 0..16 {
            assert_eq!(joined[i], high[i].wrapping_mul(256).wrapping_add(low[i]) as f32, "{} and {}", high[i], low[i]);
        }
    }
}

/// What is left of small numbers, and the upper halves of two vectors as pairs.
struct Halves<'a>(Avx512Amx, &'a [f32; 16], &'a [f32; 16]);

impl Op for Halves<'_> {
    type Output = ([f32; 16], [u32; 16]);

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Self::Output {
        let Self(s, low, high) = self;
        let (mut kept, mut pairs) = ([0.0; 16], [0; 16]);
        // SAFETY: the arrays have 16 elements.
        unsafe {
            let (low, high) = (s.load(low.as_ptr()), s.load(high.as_ptr()));
            s.store(kept.as_mut_ptr(), s.nan_if_tiny(low));
            s.store(pairs.as_mut_ptr().cast(), s.pair_upper_halves(low, high));
        }
        (kept, pairs)
    }
}

#[test]
fn small_numbers_and_upper_halves() {
    let Some(s) = token() else { return };
    let mut random = Random(5);
    let least = 1.0 / (1_u64 << 50) as f32;
    let below = f32::from_bits(least.to_bits() - 1);
    let special =
        [0.0, -0.0, least, -least, below, -below, 1e-45, -1e-45, 1e-38, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    for turn in 0..200 {
        // Any bits.
        let [mut low, high] = [(); 2].map(|()| [(); 16].map(|()| f32::from_bits(random.bits() as u32)));
        if turn == 0 {
            low[..special.len()].copy_from_slice(&special);
        }
        let (kept, pairs) = s.vectorize(Halves(s, &low, &high));
        for i in 0..16 {
            let (low, high) = (low[i], high[i]);
            let is_tiny = low != 0.0 && low.abs() < least;
            let wanted = if is_tiny { f32::NAN } else { low };
            assert!(kept[i].to_bits() == wanted.to_bits() || kept[i].is_nan() && wanted.is_nan(), "{low:e}");
            assert_eq!(pairs[i], low.to_bits() >> 16 | high.to_bits() & 0xffff_0000, "{low:e} and {high:e}");
        }
    }
}

/// The registers of a thread are its own.
#[test]
fn threads_have_registers_of_their_own() {
    let Some(s) = token() else { return };
    let ones = vec![1_u32; SIDE * SIDE];
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            let ones = &ones;
            scope.spawn(move || {
                let mut sums = vec![0_u32; SIDE * SIDE];
                for turn in 0..1000 {
                    product(s, [16, 16, 16], true, ones, ones, &mut sums);
                    assert!(sums.iter().all(|sum| *sum == 16 * (turn + 1)), "thread {thread}, turn {turn}");
                }
            });
        }
    });
}
