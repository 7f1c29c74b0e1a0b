//! How many exponentials a core computes.

use std::hint::black_box;

use crate::math::exp2_each;
use crate::{Isa, Level, Op, Simd};

/// Runs `iterations` passes of [`exp2`](crate::math::exp2) over 1024 numbers that the first-level cache holds, and gives
/// the number of exponentials that this took.
///
/// This is the function that the weightings use, loaded from and summed up as they do, so that the number over the time
/// is the ceiling of the exponentials of softmax on one core. The numbers lie between -20 and 0, where all steps of the
/// function count.
pub fn exp_chains(level: Level, iterations: u64) -> u64 {
    let mut numbers = [0.0; NUMBERS];
    for (i, number) in numbers.iter_mut().enumerate() {
        *number = -20.0 * i as f32 / NUMBERS as f32;
    }
    let sum = match level.isa() {
        // 16 registers hold the chains of two vectors, 32 those of four.
        Isa::Portable | Isa::Avx2 => level.dispatch(Passes::<2> { numbers: &numbers, iterations }),
        Isa::Avx512 | Isa::Neon => level.dispatch(Passes::<4> { numbers: &numbers, iterations }),
    };
    black_box(sum);
    iterations * NUMBERS as u64
}

/// Numbers of a pass: 4 KiB.
const NUMBERS: usize = 1024;

/// `VECTORS` at a time.
struct Passes<'a, const VECTORS: usize> {
    numbers: &'a [f32; NUMBERS],
    iterations: u64,
}

impl<const VECTORS: usize> Op for Passes<'_, VECTORS> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        const { assert!(NUMBERS.is_multiple_of(VECTORS * S::LANES) && S::LANES <= 16) };
        let mut sums = [s.zero(); VECTORS];
        for _ in 0..self.iterations {
            // Behind `black_box` the numbers of two passes are not known to be the same.
            let numbers = black_box(self.numbers);
            let mut at = 0;
            while at < NUMBERS {
                let mut x = sums;
                for (i, x) in x.iter_mut().enumerate() {
                    // SAFETY: the length is a multiple of what a step reads, as asserted above.
                    *x = unsafe { s.load(numbers.as_ptr().add(at + i * S::LANES)) };
                }
                let e = exp2_each(s, x);
                for i in 0..VECTORS {
                    sums[i] = s.add(sums[i], e[i]);
                }
                at += VECTORS * S::LANES;
            }
        }
        let mut sum = s.zero();
        for part in sums {
            sum = s.add(sum, part);
        }
        let mut lanes = [0.0; 16];
        // SAFETY: a vector has 16 lanes at most, as asserted above.
        unsafe { s.store(lanes.as_mut_ptr(), sum) };
        lanes.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_every_pass_is_computed() {
        let numbers: [f32; NUMBERS] = std::array::from_fn(|i| -(i as f32) / 64.0);
        let expected: f64 = numbers.iter().map(|x| f64::from(*x).exp2()).sum();
        for &level in Level::available() {
            for iterations in 0..4_u32 {
                let passes = Passes::<4> { numbers: &numbers, iterations: u64::from(iterations) };
                let found = f64::from(level.dispatch(passes));
                let expected = f64::from(iterations) * expected;
                assert!((found - expected).abs() <= 1e-4 * expected, "{}: {found}, {expected}", level.isa());
            }
            assert_eq!(exp_chains(level, 3), 3 * 1024);
        }
    }
}
