//! Timing against the ceilings of the machine, and of one piece of work against another.
//!
//! Everything is done in rounds that hold all that is to be compared, so that a drift of the clock or a noisy
//! neighbour meets both sides of a ratio. A sample is as many calls as last a millisecond; the results are medians. On
//! Linux the time in which another process had the core of the measuring thread does not count.
//!
//! ```no_run
//! use regard_simd::Level;
//! use regard_tuner::measure::{Arithmetic, Budget, Probes, Work, measure};
//!
//! # fn attention() {}
//! # let (visible_pairs, heads, d, d_v) = (2048.0 * 2048.0, 8.0, 128.0, 128.0);
//! let mut probes = Probes::compute(Level::best());
//! let flops = 2.0 * (d + d_v) * visible_pairs * heads;
//! let work = Work { flops, arithmetic: Arithmetic::F32, bytes: 0.0 };
//! let found = measure(&mut probes, work, Budget::seconds(1.0), || attention());
//! let compute = found.compute.expect("the probes have this ceiling");
//! println!("{:.0} GFLOP/s, {:.1} % of the peak", compute.rate, 100.0 * compute.fraction);
//! ```

use std::time::Instant;

mod against;
mod ceiling;
mod compare;
pub(crate) mod memory;
mod stopwatch;

pub use against::{Around, measure_against};
pub use ceiling::{Arithmetic, Ceilings, FmaProbe, Probes, ReadProbe, fastest_way};
pub use compare::{Comparison, RoundRobin, compare, round_robin, round_robin_within};
pub use regard_simd::probe::ReadWay;

pub(crate) use self::stopwatch::Stopwatch;
use crate::stats::{Interval, median};

/// The shortest sample of timed work, in seconds: a thousand times what reading the clock costs, and more.
const SAMPLE_SECONDS: f64 = 1e-3;

/// The same of work that is compared with the bandwidth: as long as a sample of that, which meets as many of the slow moments.
const MEMORY_SAMPLE_SECONDS: f64 = 5e-3;

/// How long to go on measuring.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// No round starts after this time, in seconds, once there are enough of them.
    pub seconds: f64,
    /// Rounds that are made even if they take longer. At least one is made in any case.
    pub min_rounds: usize,
}

impl Budget {
    /// This time, but 12 rounds at least, which is as few as a median with an interval makes sense for.
    pub const fn seconds(seconds: f64) -> Self {
        Self { seconds, min_rounds: 12 }
    }

    /// This number of rounds, whatever their time.
    pub const fn rounds(rounds: usize) -> Self {
        Self { seconds: 0.0, min_rounds: rounds }
    }

    /// Whether to make another round after `rounds` of them.
    fn goes_on(self, start: Instant, rounds: usize) -> bool {
        rounds < self.min_rounds.max(1) || start.elapsed().as_secs_f64() < self.seconds
    }
}

/// What one call of the timed work does, by the conventions of its kind: operations and bytes that are useful, not all
/// that are spent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Floating point operations.
    pub flops: f64,
    /// The arithmetic that they are done with, whose peak they are compared with.
    pub arithmetic: Arithmetic,
    /// Bytes that have to be read from memory.
    pub bytes: f64,
}

/// What [`measure`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// The median time of a call, in seconds.
    pub seconds: f64,
    /// Its 95 % interval.
    pub interval: Interval,
    /// Rounds that were made.
    pub rounds: usize,
    /// The medians of all ceilings.
    pub ceilings: Ceilings,
    /// The floating point operations against the peak of their arithmetic, in GFLOP/s, if that was probed.
    pub compute: Option<Efficiency>,
    /// The same against the f32 multiply-add peak, whatever the arithmetic, if that was probed.
    pub compute_f32: Option<Efficiency>,
    /// The bytes against the read bandwidth, in GB/s, if that was probed.
    pub memory: Option<Efficiency>,
}

impl Measurement {
    /// The fraction of whichever ceiling is the nearer one, round by round: the least time that the probed ceilings
    /// allow over the time that was taken. `None` if nothing was probed.
    pub fn fraction_of_roof(&self) -> Option<f64> {
        nearer(&self.compute, &self.memory)
    }

    /// The same with the f32 peak in the place of that of the arithmetic. Dot products may exceed it.
    pub fn fraction_of_f32_roof(&self) -> Option<f64> {
        nearer(&self.compute_f32, &self.memory)
    }
}

/// The median over rounds of the greater one of two ratios, or of the only one.
fn nearer(compute: &Option<Efficiency>, memory: &Option<Efficiency>) -> Option<f64> {
    let (Some(compute), Some(memory)) = (compute, memory) else {
        return compute.as_ref().or(memory.as_ref()).map(|only| only.fraction);
    };
    let nearer: Vec<f64> = compute.ratios.iter().zip(&memory.ratios).map(|(c, m)| c.max(*m)).collect();
    Some(median(&nearer))
}

/// A rate and its ceiling, both in 10^9 per second (GFLOP/s or GB/s).
#[derive(Clone, Debug, PartialEq)]
pub struct Efficiency {
    /// The median rate of the work.
    pub rate: f64,
    /// The median of the ceiling.
    pub ceiling: f64,
    /// The median of [`Efficiency::ratios`]. This is the figure to compare; it is not `rate / ceiling`, whose two
    /// medians may come from different states of the machine.
    pub fraction: f64,
    /// The rate over the ceiling of every round.
    pub ratios: Vec<f64>,
}

impl Efficiency {
    /// From the `amount` of one call, and the seconds of a call and the ceiling in every round.
    fn new(amount: f64, seconds: &[f64], ceilings: &[f64]) -> Self {
        let rate = |seconds: f64| amount / seconds / 1e9;
        let ratios: Vec<f64> = seconds.iter().zip(ceilings).map(|(s, ceiling)| rate(*s) / ceiling).collect();
        Self { rate: rate(median(seconds)), ceiling: median(ceilings), fraction: median(&ratios), ratios }
    }
}

/// Times `run` in rounds of peak, work, peak; a ratio is against the mean of both.
///
/// There is one call to warm up, and some to find how many make a sample. A read probe is sampled between rounds; it leaves
/// the caches full of its own buffer and the clock at rest, and an untimed sample at the beginning of every round brings both
/// back to the state in which calls of the work follow each other. Work that is to find its input outside the caches has to walk through inputs that are
/// larger than they are, probed or not.
///
/// `run` must not leave its result unused where the compiler can see that: give it to [`std::hint::black_box`].
pub fn measure(probes: &mut Probes, work: Work, budget: Budget, run: impl FnMut()) -> Measurement {
    measure_against(probes, work, budget, run)
}

/// Work, and how many calls of it make a sample.
struct Timed<F> {
    run: F,
    repeats: u64,
}

impl<F: FnMut()> Timed<F> {
    /// Warms up, and finds the number of repetitions that take so many seconds.
    fn new(run: F, sample_seconds: f64) -> Self {
        let mut timed = Self { run, repeats: 1 };
        timed.warm_up();
        timed.repeats = calibrate(sample_seconds, |repeats| timed.seconds(repeats));
        timed
    }

    /// One call that does not count.
    fn warm_up(&mut self) {
        (self.run)();
    }

    /// The seconds of one call, as the mean over a sample.
    fn sample(&mut self) -> f64 {
        self.seconds(self.repeats) / self.repeats as f64
    }

    fn seconds(&mut self, repeats: u64) -> f64 {
        let watch = Stopwatch::start();
        for _ in 0..repeats {
            (self.run)();
        }
        watch.seconds()
    }
}

/// The number of repetitions that take `target` seconds or slightly more, where `seconds` tells what some number of
/// them takes.
fn calibrate(target: f64, mut seconds: impl FnMut(u64) -> f64) -> u64 {
    /// A short sample may be all overhead: not more than this is concluded from one.
    const MOST_GROWTH: f64 = 16.0;
    /// Work that takes no time at all ends here.
    const MOST_REPEATS: u64 = 1 << 40;
    let mut repeats = 1;
    loop {
        let taken = seconds(repeats);
        if taken >= target || repeats >= MOST_REPEATS {
            return repeats;
        }
        let growth = (1.1 * target / taken).min(MOST_GROWTH);
        repeats = ((repeats as f64 * growth) as u64).max(repeats + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_uses_the_ceiling_of_its_round() {
        let found = Efficiency::new(8e9, &[1.0, 2.0, 1.0], &[10.0, 8.0, 10.0]);
        assert_eq!(found.ratios, [8.0 / 10.0, 4.0 / 8.0, 8.0 / 10.0]);
        assert_eq!((found.rate, found.ceiling, found.fraction), (8.0, 10.0, 0.8));
    }

    #[test]
    fn the_roof_is_the_nearer_ceiling_of_every_round() {
        let efficiency =
            |ratios: [f64; 3]| Efficiency { rate: 1.0, ceiling: 1.0, fraction: 0.5, ratios: ratios.into() };
        let mut found = Measurement {
            seconds: 1.0,
            interval: Interval { low: 1.0, high: 1.0 },
            rounds: 3,
            ceilings: Ceilings::default(),
            compute: Some(efficiency([0.9, 0.1, 0.2])),
            compute_f32: Some(efficiency([1.9, 0.9, 0.6])),
            memory: Some(efficiency([0.3, 0.8, 0.7])),
        };
        assert_eq!([found.fraction_of_roof(), found.fraction_of_f32_roof()], [Some(0.8), Some(0.9)]);
        found.compute = None;
        assert_eq!(found.fraction_of_roof(), Some(0.5));
        found.memory = None;
        assert_eq!(found.fraction_of_roof(), None);
    }

    #[test]
    fn calibration_reaches_the_target_and_ends() {
        for per_call in [1e-9, 3e-7, 2e-4, 0.7] {
            // With an overhead of 50 ns that no repetition shares.
            let repeats = calibrate(1e-3, |n| 5e-8 + n as f64 * per_call);
            let taken = repeats as f64 * per_call;
            assert!(taken > 0.99e-3 && (repeats == 1 || taken < 1.3e-3), "{repeats} x {per_call} s");
        }
        assert!(calibrate(1e-3, |_| 0.0) >= 1 << 40);
    }

    #[test]
    fn the_budget_counts_rounds_first() {
        let long_ago = Instant::now() - std::time::Duration::from_secs(5);
        assert!(Budget::seconds(1.0).goes_on(long_ago, 11));
        assert!(!Budget::seconds(1.0).goes_on(long_ago, 12));
        assert!(Budget::seconds(100.0).goes_on(long_ago, 12));
        assert!(Budget::rounds(0).goes_on(long_ago, 0));
        assert!(!Budget::rounds(3).goes_on(long_ago, 3));
    }

    #[test]
    fn a_measurement_on_every_level() {
        let numbers = vec![0.5_f32; 1 << 16];
        for &level in regard_simd::Level::available() {
            let bytes = size_of_val(&numbers[..]) as f64;
            let work = Work { flops: numbers.len() as f64, arithmetic: Arithmetic::F32, bytes };
            let mut probes = Probes::both(level, 1 << 22);
            let found = measure(&mut probes, work, Budget::rounds(3), || {
                regard_simd::probe::read_sweep(level, ReadWay::ALL[0], &numbers);
            });
            println!("{}: {found:?}", level.isa());
            assert_eq!(found.rounds, 3);
            assert!(found.seconds.is_finite() && found.seconds > 0.0 && found.interval.contains(found.seconds));
            for efficiency in [&found.compute, &found.memory] {
                let efficiency = efficiency.as_ref().expect("both ceilings are probed");
                assert_eq!(efficiency.ratios.len(), 3);
                for figure in [efficiency.rate, efficiency.ceiling, efficiency.fraction] {
                    assert!(figure.is_finite() && figure > 0.0);
                }
            }
        }
    }
}
