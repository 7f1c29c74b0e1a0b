//! Rounds of samples, whose order is random and between which a canary sings; and run-offs of two.

use super::Sampler;
use crate::stats::{Interval, Random, median, median_interval, quantile};

/// A round is disturbed if the canary is farther from its usual voice than this.
const CANARY_OFF: f64 = 0.05;

/// Canaries that make a usual voice.
const USUAL: usize = 5;

/// Of so many rounds one may be repeated.
const ROUNDS_PER_REPETITION: usize = 3;

/// What was heard of the machine during a search.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Noise {
    /// The peak between rounds, in GFLOP/s.
    pub canaries: Vec<f64>,
    /// Rounds that were timed.
    pub rounds: usize,
    /// Those that were disturbed, and repeated if that was within bounds.
    pub disturbed: usize,
    /// What disturbed them, each reason once.
    pub reasons: Vec<String>,
}

impl Noise {
    fn usual(&self) -> Option<f64> {
        let latest = &self.canaries[self.canaries.len().saturating_sub(8 * USUAL)..];
        (latest.len() >= USUAL).then(|| median(latest))
    }

    /// Whether a round was disturbed; takes note.
    fn judge(&mut self, around: [f64; 2], disturbance: Option<String>) -> bool {
        self.rounds += 1;
        let off = self.usual().is_some_and(|usual| around.iter().any(|c| (c / usual - 1.0).abs() > CANARY_OFF));
        let reason = disturbance.or_else(|| off.then(|| "the peak moved by more than 5 % within a round".to_owned()));
        self.canaries.push(around[1]);
        let Some(reason) = reason else { return false };
        self.disturbed += 1;
        if !self.reasons.contains(&reason) {
            self.reasons.push(reason);
        }
        true
    }
}

/// What a few rounds told.
#[derive(Clone, Debug, Default)]
pub(super) struct Rounds {
    /// Seconds by candidate and then by round.
    seconds: Vec<Vec<f64>>,
}

impl Rounds {
    /// By candidate and then by round.
    pub(super) fn seconds(&self) -> &[Vec<f64>] {
        &self.seconds
    }

    pub(super) fn count(&self) -> usize {
        self.seconds.first().map_or(0, Vec::len)
    }

    /// The median time of each candidate over that of its round: what slowed all of a round down does not count.
    pub(super) fn relative(&self) -> Vec<f64> {
        let rounds = 0..self.count();
        let typical: Vec<f64> =
            rounds.map(|round| median(&self.seconds.iter().map(|of| of[round]).collect::<Vec<_>>())).collect();
        let of = |seconds: &Vec<f64>| median(&seconds.iter().zip(&typical).map(|(s, t)| s / t).collect::<Vec<_>>());
        self.seconds.iter().map(of).collect()
    }

    /// The median seconds of each candidate.
    pub(super) fn medians(&self) -> Vec<f64> {
        self.seconds.iter().map(|seconds| median(seconds)).collect()
    }
}

/// How many rounds: as many as fit before a moment of [`Sampler::elapsed`], but no fewer and no more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    pub(super) least: usize,
    pub(super) most: usize,
    pub(super) until: f64,
}

impl Limit {
    fn goes_on(self, sampler: &dyn Sampler, rounds: usize, last: f64) -> bool {
        let fits = sampler.elapsed() + last < self.until;
        rounds < self.least || (rounds < self.most && fits && !sampler.stopped())
    }
}

/// Times candidates of a contest, each once per round, in an order that is new in every round, so that none always follows
/// the one that leaves the caches in the best state. A disturbed round is repeated, within bounds.
pub(super) fn rounds(
    sampler: &mut dyn Sampler,
    contest: usize,
    candidates: &[usize],
    limit: Limit,
    random: &mut Random,
    noise: &mut Noise,
) -> Rounds {
    let mut found = Rounds { seconds: vec![Vec::new(); candidates.len()] };
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    let mut repetitions = limit.most.div_ceil(ROUNDS_PER_REPETITION);
    let mut before = sampler.canary();
    // What came before is not to be blamed on the first round.
    let _ = sampler.disturbance();
    let mut last = 0.0;
    while limit.goes_on(sampler, found.count(), last) {
        let start = sampler.elapsed();
        random.shuffle(&mut order);
        let mut round = vec![0.0; candidates.len()];
        for &i in &order {
            round[i] = sampler.sample(contest, candidates[i]);
        }
        let after = sampler.canary();
        let disturbed = noise.judge([before, after], sampler.disturbance());
        before = after;
        last = sampler.elapsed() - start;
        if disturbed && repetitions > 0 && sampler.elapsed() + last < limit.until {
            repetitions -= 1;
            continue;
        }
        for (samples, sample) in found.seconds.iter_mut().zip(round) {
            samples.push(sample);
        }
    }
    found
}

/// What a run-off told.
#[derive(Clone, Debug, PartialEq)]
pub struct RunOff {
    /// How many times as fast as the incumbent is the challenger: the median over rounds of incumbent, challenger,
    /// challenger, incumbent.
    pub speedup: f64,
    /// Its 95 % interval.
    pub interval: Interval,
    /// How far the speed-up of the incumbent over itself is from 1 in so many rounds.
    pub floor: f64,
    /// Rounds.
    pub rounds: usize,
}

/// Of an interval that is this narrow, on either side, nobody wants to know more.
const NARROW: f64 = 0.003;

/// Rounds after which an interval is looked at.
const ROUNDS_PER_LOOK: usize = 6;

/// Times an incumbent against a challenger in rounds of incumbent, challenger, challenger, incumbent, until the interval is
/// narrow or the limit is reached.
pub(super) fn run_off(
    sampler: &mut dyn Sampler,
    contest: usize,
    [incumbent, challenger]: [usize; 2],
    limit: Limit,
    noise: &mut Noise,
) -> RunOff {
    let (mut ratios, mut own) = (Vec::new(), Vec::new());
    let mut last = 0.0;
    loop {
        let start = sampler.elapsed();
        let [a1, b1, b2, a2] =
            [incumbent, challenger, challenger, incumbent].map(|candidate| sampler.sample(contest, candidate));
        ratios.push((a1 + a2) / (b1 + b2));
        own.push((a1 / a2).ln().abs());
        last = (sampler.elapsed() - start).max(last);
        if !limit.goes_on(sampler, ratios.len(), last) {
            break;
        }
        let looks = ratios.len() >= limit.least.max(ROUNDS_PER_LOOK) && ratios.len().is_multiple_of(ROUNDS_PER_LOOK);
        // Without a limit there is time to be spent.
        if looks && limit.most < usize::MAX && spread_of_median(&ratios) < NARROW {
            break;
        }
    }
    noise.canaries.push(sampler.canary());
    // The median of |ln(a1/a2)| is 0.95 of the standard deviation of a sample; a round has two of each side, and the median
    // of n rounds 1.25 / sqrt(n) of its standard deviation.
    let floor = 1.3 * median(&own) / (ratios.len() as f64).sqrt();
    RunOff { speedup: median(&ratios), interval: interval(&ratios), floor, rounds: ratios.len() }
}

/// Half of the distance between the order statistics that hold the median 95 times in 100: about what half of the interval will
/// be, at a fraction of its cost.
fn spread_of_median(ratios: &[f64]) -> f64 {
    let away = 0.98 / (ratios.len() as f64).sqrt();
    (quantile(ratios, 0.5 + away) - quantile(ratios, 0.5 - away)) / 2.0
}

fn interval(ratios: &[f64]) -> Interval {
    /// Fixed, so that the same times always give the same interval.
    const SEED: u64 = 0;
    median_interval(ratios, SEED)
}
