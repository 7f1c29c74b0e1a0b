//! Sums over lanes: the tree of additions, bit for bit.

mod common;

use common::{MAX_LANES, Random, Token, tokens};
use regard_simd::{Level, Op, Simd};

/// Sums the lanes of `N` vectors, as f32 and as i32.
struct Sums<'a, const N: usize>(&'a [[f32; MAX_LANES]; MAX_LANES]);

impl<const N: usize> Op for Sums<'_, N> {
    type Output = [Vec<f32>; 2];
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [Vec<f32>; 2] {
        let mut vectors = [s.zero(); N];
        for (vector, lanes) in vectors.iter_mut().zip(self.0) {
            // SAFETY: no level has more lanes.
            *vector = unsafe { s.load(lanes.as_ptr()) };
        }
        let mut sums = [vec![f32::NAN; N], vec![f32::NAN; N]];
        // SAFETY: `N` is the number of lanes, or else `lane_sums` does not compile.
        unsafe {
            s.store(sums[0].as_mut_ptr(), s.lane_sums(vectors));
            s.store(sums[1].as_mut_ptr(), s.lane_sums_i32(vectors));
        }
        sums
    }
}

/// The number of vectors is a constant, which dispatch does not give.
fn lane_sums(token: Token, rows: &[[f32; MAX_LANES]; MAX_LANES]) -> [Vec<f32>; 2] {
    match token {
        Token::Level(Level::Portable(token)) => token.vectorize(Sums::<8>(rows)),
        #[cfg(target_arch = "x86_64")]
        Token::Level(Level::Avx2(token)) => token.vectorize(Sums::<8>(rows)),
        #[cfg(target_arch = "x86_64")]
        Token::Level(Level::Avx512(token)) => token.vectorize(Sums::<16>(rows)),
        #[cfg(target_arch = "x86_64")]
        Token::Avx512Bf16(token) => token.vectorize(Sums::<16>(rows)),
        #[cfg(target_arch = "x86_64")]
        Token::Avx512Vnni(token) => token.vectorize(Sums::<16>(rows)),
        #[cfg(target_arch = "x86_64")]
        Token::Avx512Amx(token) => token.vectorize(Sums::<16>(rows)),
        #[cfg(target_arch = "aarch64")]
        Token::Level(Level::Neon(token)) => token.vectorize(Sums::<4>(rows)),
        #[cfg(target_arch = "aarch64")]
        Token::NeonBf16(token) => token.vectorize(Sums::<4>(rows)),
        Token::Level(level) => panic!("{level:?} is not tested"),
    }
}

/// Lanes half a vector apart first, then a quarter, and so on.
fn tree(lanes: &[f32]) -> f32 {
    match lanes {
        [sum] => *sum,
        _ => {
            let (a, b) = lanes.split_at(lanes.len() / 2);
            tree(&a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<_>>())
        }
    }
}

#[test]
fn every_sum_is_the_same_tree() {
    let mut random = Random(9);
    for round in 0..if cfg!(miri) { 4 } else { 1000 } {
        // Of very different sizes, so that another order of additions would have other bits.
        let rows: [[f32; MAX_LANES]; MAX_LANES] = std::array::from_fn(|_| {
            std::array::from_fn(|_| (random.fraction() - 0.5) * f32::from(1_u16 << (random.bits() % 16)))
        });
        for &token in tokens() {
            let [sums, _] = lane_sums(token, &rows);
            assert_eq!(sums.len(), token.isa().lanes());
            for (i, sum) in sums.iter().enumerate() {
                let expected = tree(&rows[i][..sums.len()]);
                assert_eq!(
                    sum.to_bits(),
                    expected.to_bits(),
                    "{token}, round {round}, vector {i}: {sum}, not {expected}"
                );
            }
        }
    }
}

#[test]
fn integers_wrap_around() {
    let mut random = Random(13);
    for _ in 0..if cfg!(miri) { 4 } else { 1000 } {
        let rows: [[i32; MAX_LANES]; MAX_LANES] =
            std::array::from_fn(|_| std::array::from_fn(|_| random.bits() as i32 >> (random.bits() % 32)));
        let bits = rows.map(|row| row.map(|x| f32::from_bits(x as u32)));
        for &token in tokens() {
            let [_, sums] = lane_sums(token, &bits);
            for (i, sum) in sums.iter().enumerate() {
                let expected = rows[i][..sums.len()].iter().fold(0_i32, |sum, x| sum.wrapping_add(*x));
                assert_eq!(sum.to_bits() as i32, expected, "{token}, vector {i}");
            }
        }
    }
}

/// Sums groups of four lanes of four vectors, and loads the first four elements into each group.
struct Quads<'a>(&'a [[f32; MAX_LANES]; MAX_LANES]);

impl Op for Quads<'_> {
    type Output = [Vec<f32>; 2];
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [Vec<f32>; 2] {
        let mut output = [vec![f32::NAN; S::LANES], vec![f32::NAN; S::LANES]];
        // SAFETY: no level has more lanes, and the outputs have as many.
        unsafe {
            let rows = [0, 1, 2, 3].map(|i: usize| self.0[i].as_ptr());
            let x = [s.load(rows[0]), s.load(rows[1]), s.load(rows[2]), s.load(rows[3])];
            s.store(output[0].as_mut_ptr(), s.quad_sums(x));
            s.store(output[1].as_mut_ptr(), s.load_quad(rows[0]));
        }
        output
    }
}

#[test]
fn groups_of_four_lanes() {
    let mut random = Random(11);
    for _ in 0..if cfg!(miri) { 4 } else { 1000 } {
        let rows: [[f32; MAX_LANES]; MAX_LANES] = std::array::from_fn(|_| {
            std::array::from_fn(|_| (random.fraction() - 0.5) * f32::from(1_u16 << (random.bits() % 16)))
        });
        for &token in tokens() {
            let [sums, quads] = token.dispatch(Quads(&rows));
            let groups = sums.len() / 4;
            for (lane, sum) in sums.iter().enumerate() {
                let [a, b, c, d] = rows[lane / groups][lane % groups * 4..][..4] else { unreachable!("four lanes") };
                assert_eq!(sum.to_bits(), ((a + c) + (b + d)).to_bits(), "{token}, lane {lane}");
            }
            assert!(quads.iter().enumerate().all(|(lane, x)| *x == rows[0][lane % 4]), "{token}");
        }
    }
}

#[test]
fn every_lane_counts_once() {
    for lane in 0..MAX_LANES {
        let mut rows = [[0.0; MAX_LANES]; MAX_LANES];
        for (i, row) in rows.iter_mut().enumerate() {
            row[lane] = (i + 1) as f32;
        }
        for &token in tokens() {
            let [sums, _] = lane_sums(token, &rows);
            let expected: Vec<f32> = (1..=sums.len()).map(|i| if lane < sums.len() { i as f32 } else { 0.0 }).collect();
            assert_eq!(sums, expected, "{token}, lane {lane}");
        }
    }
}
