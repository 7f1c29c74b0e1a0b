//! Inputs to measure with: numbers, tensors of every element type, lengths of sequences.

mod array;
mod lengths;

pub use self::array::{Array, Elements, Order};
pub use self::lengths::{Lengths, LengthsError};
use crate::measure::ReadProbe;
use crate::stats::Random;

/// Standard normal numbers, the same for the same seed on every machine up to the last bits of its `ln` and `cos`.
pub fn standard_normal(seed: u64, count: usize) -> Vec<f32> {
    let mut random = Random::new(seed);
    // In (0, 1], so that the logarithm is finite.
    let mut uniform = || ((random.bits() >> 11) + 1) as f64 / (1_u64 << 53) as f64;
    let mut numbers = Vec::with_capacity(count + 1);
    while numbers.len() < count {
        // Box and Muller's two at a time.
        let (radius, angle) = ((-2.0 * uniform().ln()).sqrt(), std::f64::consts::TAU * uniform());
        numbers.push((radius * angle.cos()) as f32);
        numbers.push((radius * angle.sin()) as f32);
    }
    numbers.truncate(count);
    numbers
}

/// The copies of inputs of this many bytes that calls have to take in turn so that no cache holds one of them when its turn
/// comes again: all of them together are as large as the buffer of a probe of the bandwidth.
pub fn copies(bytes: usize, last_level_cache: usize) -> usize {
    copies_within(bytes, ReadProbe::bytes_for(last_level_cache))
}

/// As many copies as take `all` bytes.
fn copies_within(bytes: usize, all: usize) -> usize {
    /// Of inputs so small that more would not do, a call takes longer to start than to read them.
    const MOST: usize = 4096;
    match bytes {
        0 => 1,
        bytes => all.div_ceil(bytes).clamp(1, MOST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_exceed_the_cache() {
        for (bytes, expected) in [(0, 1), (1, 4096), (1 << 20, 512), (500 << 20, 2), (512 << 20, 1), (1 << 40, 1)] {
            assert_eq!(copies_within(bytes, 512 << 20), expected, "{bytes}");
        }
        assert_eq!(copies_within(100 << 20, 256 << 20), 3);
        // However little memory there is.
        assert_eq!((copies_within(100 << 20, 0), copies(1 << 40, 32 << 20)), (1, 1));
    }

    #[test]
    fn moments_are_those_of_the_normal_distribution() {
        let numbers = standard_normal(5, 100_001);
        assert_eq!(numbers.len(), 100_001);
        let mean = |power: i32| numbers.iter().map(|x| f64::from(*x).powi(power)).sum::<f64>() / 1e5;
        // Standard deviations of these means: 0.003, 0.0045, 0.03.
        assert!(mean(1).abs() < 0.015 && (mean(2) - 1.0).abs() < 0.02 && (mean(4) - 3.0).abs() < 0.15);
        assert_eq!(numbers[..7], standard_normal(5, 7));
        assert_ne!(numbers[..7], standard_normal(6, 7));
    }
}
