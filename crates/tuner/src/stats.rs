//! The little statistics that timings need: order statistics, since noise on a machine is one-sided and heavy-tailed.

/// The median; NaN if there are no values.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The `p`-quantile for `p` in `[0, 1]`, with linear interpolation between neighbours; NaN if there are no values.
pub fn quantile(values: &[f64], p: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let position = p.clamp(0.0, 1.0) * last as f64;
    let below = position as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (position - below as f64)
}

/// A number with six significant digits, which is more than any timing has: files that say no more are shorter, and read in less
/// time.
pub fn rounded(x: f64) -> f64 {
    format!("{x:.5e}").parse().unwrap_or(x)
}

/// A range of values, both ends included.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl Interval {
    /// Whether `x` is inside.
    pub fn contains(self, x: f64) -> bool {
        self.low <= x && x <= self.high
    }

    /// Half the distance of the ends.
    pub fn half_width(self) -> f64 {
        (self.high - self.low) / 2.0
    }
}

/// The 95 % bootstrap interval of the median (percentile method): what the median of a repetition of the whole
/// measurement would be, as far as these values know. NaN if there are no values.
///
/// The same values and the same seed give the same interval.
pub fn median_interval(values: &[f64], seed: u64) -> Interval {
    /// Enough that the ends move by much less than the width of the interval from seed to seed.
    const RESAMPLES: usize = 2000;
    let mut random = Random::new(seed);
    let mut resample = vec![0.0; values.len()];
    let mut medians = Vec::with_capacity(RESAMPLES);
    for _ in 0..RESAMPLES {
        for slot in &mut resample {
            *slot = values[random.below(values.len())];
        }
        medians.push(median(&resample));
    }
    Interval { low: quantile(&medians, 0.025), high: quantile(&medians, 0.975) }
}

/// A small generator of pseudo-random numbers (SplitMix64): the same seed gives the same numbers on every machine.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator; any seed is as good as any other.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub const fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..n`, and 0 for `n = 0`. The bias, less than n / 2^64, is of no concern here.
    pub const fn below(&mut self, n: usize) -> usize {
        ((self.bits() as u128 * n as u128) >> 64) as usize
    }

    /// Puts the items into a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle_or_the_mean_of_the_two_in_the_middle() {
        assert_eq!(median(&[3.0]), 3.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn quantiles_interpolate() {
        let values = [40.0, 10.0, 30.0, 20.0, 50.0];
        assert_eq!(quantile(&values, 0.0), 10.0);
        assert_eq!(quantile(&values, 0.25), 20.0);
        assert_eq!(quantile(&values, 0.875), 45.0);
        assert_eq!(quantile(&values, 1.0), 50.0);
        assert_eq!(quantile(&values, 7.0), 50.0);
    }

    #[test]
    fn rounded_numbers_are_short() {
        assert_eq!([118.193_473_368, 1.0 / 3.0, 0.0, 1.0].map(rounded), [118.193, 0.333_333, 0.0, 1.0]);
        assert_eq!(rounded(-2.000_004e-9), -2e-9);
        assert!(rounded(f64::NAN).is_nan() && rounded(f64::INFINITY) == f64::INFINITY);
    }

    #[test]
    fn interval_of_the_median_is_reproducible_and_plausible() {
        let mut random = Random::new(7);
        // Uniform on [0, 1): the median of 400 has a standard deviation of 0.5 / sqrt(400) = 0.025.
        let values: Vec<f64> = (0..400).map(|_| random.bits() as f64 / 2.0_f64.powi(64)).collect();
        let interval = median_interval(&values, 1);
        assert_eq!(interval, median_interval(&values, 1));
        assert!(interval.contains(median(&values)) && interval.contains(0.5), "{interval:?}");
        assert!(interval.half_width() > 0.02 && interval.half_width() < 0.09, "{interval:?}");
    }

    #[test]
    fn interval_of_few_values() {
        assert_eq!(median_interval(&[2.0; 12], 1), Interval { low: 2.0, high: 2.0 });
        assert_eq!(median_interval(&[2.0], 1), Interval { low: 2.0, high: 2.0 });
        assert!(median_interval(&[], 1).low.is_nan());
    }

    #[test]
    fn random_numbers_are_those_of_splitmix64() {
        let mut random = Random::new(1_234_567);
        assert_eq!(random.bits(), 6_457_827_717_110_365_317);
        assert_eq!(random.bits(), 3_203_168_211_198_807_973);
        assert_eq!(random.below(0), 0);
        assert!((0..1000).all(|_| random.below(3) < 3));
    }

    #[test]
    fn shuffling_permutes() {
        let mut items: Vec<usize> = (0..20).collect();
        Random::new(3).shuffle(&mut items);
        assert_ne!(items, (0..20).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..20).collect::<Vec<_>>());
    }
}
