//! Pieces of work against each other.

use std::time::Instant;

use super::{Budget, FmaProbe, SAMPLE_SECONDS, Timed};
use crate::stats::{Interval, Random, median, median_interval, quantile};

/// What [`compare`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// The median time of a call of `a`, in seconds.
    pub a_seconds: f64,
    /// The median time of a call of `b`, in seconds.
    pub b_seconds: f64,
    /// How many times as fast as `a` is `b`: the median of [`Comparison::ratios`].
    pub speedup: f64,
    /// The 95 % interval of [`Comparison::speedup`].
    pub interval: Interval,
    /// The time of `a` over the time of `b` in every round.
    pub ratios: Vec<f64>,
}

impl Comparison {
    /// From the seconds of a call in every round.
    fn new(a: &[f64], b: &[f64]) -> Self {
        /// Fixed, so that recorded times always give the same interval.
        const SEED: u64 = 0;
        let ratios: Vec<f64> = a.iter().zip(b).map(|(a, b)| a / b).collect();
        Self {
            a_seconds: median(a),
            b_seconds: median(b),
            speedup: median(&ratios),
            interval: median_interval(&ratios, SEED),
            ratios,
        }
    }

    /// Whether the interval leaves no doubt as to which of the two is faster.
    pub fn is_significant(&self) -> bool {
        !self.interval.contains(1.0)
    }
}

/// Times `a` against `b` in rounds of a, b, b, a: a steady drift of the machine adds as much to the one as to the
/// other, and each follows itself as often as it follows the other.
///
/// See [`super::measure`] for the rest: one call of each to warm up, samples of a millisecond.
pub fn compare(a: impl FnMut(), b: impl FnMut(), budget: Budget) -> Comparison {
    let (mut a, mut b) = (Timed::new(a, SAMPLE_SECONDS), Timed::new(b, SAMPLE_SECONDS));
    let (mut a_seconds, mut b_seconds) = (Vec::new(), Vec::new());
    let start = Instant::now();
    while budget.goes_on(start, a_seconds.len()) {
        let [a1, b1, b2, a2] = [a.sample(), b.sample(), b.sample(), a.sample()];
        a_seconds.push((a1 + a2) / 2.0);
        b_seconds.push((b1 + b2) / 2.0);
    }
    Comparison::new(&a_seconds, &b_seconds)
}

/// What [`round_robin`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct RoundRobin {
    /// The seconds of a call, by candidate and then by round, as they would have been at the median of the canaries.
    pub seconds: Vec<Vec<f64>>,
    /// The multiply-add peak before the first round and after every one, in GFLOP/s: how steady the machine was.
    pub canaries: Vec<f64>,
}

impl RoundRobin {
    /// From times as they were taken, by candidate and then by round.
    fn new(mut seconds: Vec<Vec<f64>>, canaries: Vec<f64>) -> Self {
        let usual = median(&canaries);
        for samples in &mut seconds {
            for (sample, around) in samples.iter_mut().zip(canaries.windows(2)) {
                *sample *= (around[0] + around[1]) / 2.0 / usual;
            }
        }
        Self { seconds, canaries }
    }

    /// The median of the normalised seconds of every candidate.
    pub fn medians(&self) -> Vec<f64> {
        self.seconds.iter().map(|samples| median(samples)).collect()
    }

    /// Candidate `b` against candidate `a`, round by round.
    ///
    /// # Panics
    /// If there is no such candidate.
    pub fn comparison(&self, a: usize, b: usize) -> Comparison {
        Comparison::new(&self.seconds[a], &self.seconds[b])
    }

    /// How far the canaries were from their median: the distance of their quartiles over it.
    pub fn canary_spread(&self) -> f64 {
        (quantile(&self.canaries, 0.75) - quantile(&self.canaries, 0.25)) / median(&self.canaries)
    }
}

/// Times every candidate once per round, in an order that is new in every round, so that no candidate always follows
/// the one that leaves the caches in the best state, and none is always late on a warming core.
///
/// The clock of a round is seen by a canary, the multiply-add peak before and after it; the samples of a round are
/// normalised by it. The order depends on `seed` only.
pub fn round_robin<F: FnMut()>(canary: &FmaProbe, candidates: &mut [F], rounds: usize, seed: u64) -> RoundRobin {
    round_robin_within(canary, candidates, Budget::rounds(rounds), seed)
}

/// The same for as many rounds as a budget allows.
pub fn round_robin_within<F: FnMut()>(
    canary: &FmaProbe,
    candidates: &mut [F],
    budget: Budget,
    seed: u64,
) -> RoundRobin {
    let mut candidates: Vec<_> = candidates.iter_mut().map(|run| Timed::new(run, SAMPLE_SECONDS)).collect();
    let mut seconds = vec![Vec::new(); candidates.len()];
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    let mut random = Random::new(seed);
    let mut canaries = vec![canary.sample()];
    let start = Instant::now();
    while budget.goes_on(start, canaries.len() - 1) {
        random.shuffle(&mut order);
        for &candidate in &order {
            seconds[candidate].push(candidates[candidate].sample());
        }
        canaries.push(canary.sample());
    }
    RoundRobin::new(seconds, canaries)
}

#[cfg(test)]
mod tests {
    use regard_simd::{Level, probe};

    use super::*;

    fn work(level: Level, passes: u64) -> impl FnMut() {
        move || {
            probe::fma_chains(level, passes);
        }
    }

    #[test]
    fn the_speedup_is_the_median_of_the_ratios() {
        let found = Comparison::new(&[2.0, 4.0, 9.0], &[1.0, 1.0, 3.0]);
        assert_eq!(found.ratios, [2.0, 4.0, 3.0]);
        assert_eq!((found.a_seconds, found.b_seconds, found.speedup), (4.0, 1.0, 3.0));
        assert!(found.is_significant() && found.interval.contains(3.0));
        assert!(!Comparison::new(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]).is_significant());
    }

    #[test]
    fn samples_are_normalised_by_the_clock_of_their_round() {
        // The machine runs at half its speed in the second round, and the work takes twice as long.
        let found = RoundRobin::new(vec![vec![1.0, 2.0], vec![3.0, 6.0]], vec![150.0, 50.0, 50.0]);
        assert_eq!(found.seconds, [[2.0, 2.0], [6.0, 6.0]]);
        assert_eq!(found.medians(), [2.0, 6.0]);
        let comparison = found.comparison(1, 0);
        assert_eq!((comparison.speedup, &comparison.ratios[..]), (3.0, &[3.0; 2][..]));
        assert_eq!(found.canary_spread(), 1.0);
    }

    #[test]
    fn comparing_calls_both_sides() {
        let level = Level::best();
        let found = compare(work(level, 1000), work(level, 500), Budget::rounds(3));
        println!("{found:?}");
        assert_eq!(found.ratios.len(), 3);
        assert!(found.speedup.is_finite() && found.speedup > 0.0);
    }

    #[test]
    fn every_candidate_is_sampled_in_every_round() {
        let level = Level::best();
        let mut candidates: Vec<Box<dyn FnMut()>> =
            vec![Box::new(work(level, 500)), Box::new(work(level, 1000)), Box::new(|| ())];
        let found = round_robin(&FmaProbe::new(level), &mut candidates, 4, 1);
        println!("{found:?}");
        assert_eq!(found.canaries.len(), 5);
        assert_eq!(found.seconds.len(), 3);
        assert!(found.seconds.iter().flatten().all(|seconds| seconds.is_finite() && *seconds > 0.0));
    }
}
