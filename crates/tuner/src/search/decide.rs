//! The decisions of the search, as pure functions of what was measured.

use regard_profile::Confidence;

use crate::stats::{Interval, median, quantile};

/// A gain up to this is none: it would not be found again tomorrow.
pub(super) const MARGIN: f64 = 0.01;

/// The option (a column of `times`, whose rows are classes) that loses least to the best one of each class where it
/// loses most. The incumbent stays unless another one's worst loss is smaller by more than the margin.
///
/// A time that is not finite says that the option cannot be had in that class, which rules it out. A class in which no
/// option can be had has no say.
pub(super) fn least_regret(times: &[Vec<f64>], incumbent: usize) -> usize {
    let options = times.first().map_or(0, Vec::len);
    let best_of = |class: &[f64]| class.iter().copied().fold(f64::INFINITY, f64::min);
    let worst = |option: usize| {
        let judges = times.iter().filter(|class| best_of(class).is_finite());
        judges.map(|class| class[option] / best_of(class)).fold(1.0, f64::max)
    };
    let mut chosen = incumbent;
    let mut least = worst(incumbent) / (1.0 + MARGIN);
    for option in 0..options {
        if worst(option) < least {
            (chosen, least) = (option, worst(option));
        }
    }
    chosen
}

/// Who goes on to the next rung: candidate 0, and the fastest `most` of those within `factor` of the fastest, in the
/// order of the candidates.
pub(super) fn survivors(times: &[f64], factor: f64, most: usize) -> Vec<usize> {
    let best = times.iter().copied().fold(f64::INFINITY, f64::min);
    let mut by_time: Vec<usize> = (0..times.len()).filter(|i| times[*i] <= best * factor).collect();
    by_time.sort_by(|a, b| times[*a].total_cmp(&times[*b]));
    by_time.truncate(most);
    if !times.is_empty() && !by_time.contains(&0) {
        by_time.push(0);
    }
    by_time.sort_unstable();
    by_time
}

/// The fastest; the first of those equally fast.
pub(super) fn leader(times: &[f64]) -> usize {
    (0..times.len()).min_by(|a, b| times[*a].total_cmp(&times[*b])).unwrap_or(0)
}

/// Whether a run-off says that the challenger shall replace the incumbent: it gains more than the margin, and the
/// interval leaves no doubt that it gains.
pub(super) fn replaces(speedup: f64, interval: Interval) -> bool {
    speedup > 1.0 + MARGIN && interval.low > 1.0
}

/// Whether run-offs, one for each class, say that the challenger shall replace the incumbent in all of them: somewhere
/// it gains beyond doubt, and it gains there more, by more than the margin, than it loses anywhere.
pub(super) fn replaces_everywhere(run_offs: &[(f64, Interval)]) -> bool {
    let gain = run_offs.iter().filter(|(speedup, interval)| replaces(*speedup, *interval));
    let gain = gain.map(|(speedup, _)| *speedup).fold(0.0, f64::max);
    let loss = run_offs.iter().map(|(speedup, _)| 1.0 / speedup).fold(1.0, f64::max);
    gain > (1.0 + MARGIN) * loss
}

/// How far to trust timings between which the canary said this, and how far it spread (from the 10 % to the 90 %
/// quantile, over the median).
pub(super) fn confidence(canaries: &[f64]) -> (Confidence, f64) {
    let spread = (quantile(canaries, 0.9) - quantile(canaries, 0.1)) / median(canaries);
    let confidence = match spread {
        _ if canaries.len() < 5 => Confidence::Low,
        _ if spread < 0.02 => Confidence::High,
        _ if spread < 0.06 => Confidence::Medium,
        _ => Confidence::Low,
    };
    (confidence, spread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_block_with_the_least_worst_loss() {
        // Option 1 is the best of one class and terrible in the other; option 2 is second everywhere.
        let times = [vec![1.3, 1.0, 1.05], vec![1.0, 1.5, 1.04]];
        assert_eq!(least_regret(&times, 0), 2);
        assert_eq!(least_regret(&times, 1), 2);
        assert_eq!(least_regret(&times, 2), 2);
    }

    #[test]
    fn the_incumbent_stays_within_the_margin() {
        assert_eq!(least_regret(&[vec![1.009, 1.0]], 0), 0);
        assert_eq!(least_regret(&[vec![1.02, 1.0]], 0), 1);
        assert_eq!(least_regret(&[], 3), 3);
    }

    #[test]
    fn an_option_that_is_missing_somewhere_is_out() {
        let missing = f64::INFINITY;
        assert_eq!(least_regret(&[vec![1.1, 1.0], vec![1.1, missing]], 0), 0);
        assert_eq!(least_regret(&[vec![missing, 1.0], vec![1.0, 1.1]], 0), 1);
        // The first class has no say.
        assert_eq!(least_regret(&[vec![missing, missing], vec![1.1, 1.0]], 0), 1);
    }

    #[test]
    fn losers_drop_and_candidate_0_stays() {
        let times = [2.0, 1.0, 1.05, 1.2, 1.01];
        assert_eq!(survivors(&times, 1.1, 9), [0, 1, 2, 4]);
        assert_eq!(survivors(&times, 1.1, 2), [0, 1, 4]);
        assert_eq!(survivors(&[1.0], 1.1, 2), [0]);
        assert_eq!(survivors(&[], 1.1, 2), [0; 0]);
        assert_eq!(leader(&times), 1);
        assert_eq!(leader(&[1.0, 1.0]), 0);
    }

    #[test]
    fn a_challenger_needs_gain_and_certainty() {
        let interval = |low, high| Interval { low, high };
        assert!(replaces(1.05, interval(1.02, 1.08)));
        assert!(!replaces(1.05, interval(0.99, 1.12)));
        assert!(!replaces(1.008, interval(1.007, 1.009)));
        assert!(!replaces(0.9, interval(0.8, 0.95)));
        assert!(!replaces(f64::NAN, interval(f64::NAN, f64::NAN)));
    }

    #[test]
    fn a_common_choice_may_not_lose_more_than_it_gains() {
        let clear = |speedup: f64| (speedup, Interval { low: speedup - 0.002, high: speedup + 0.002 });
        let vague = |speedup: f64| (speedup, Interval { low: 0.9, high: 1.1 });
        assert!(replaces_everywhere(&[clear(1.05), clear(1.0)]));
        assert!(replaces_everywhere(&[clear(1.05), clear(0.98)]));
        assert!(!replaces_everywhere(&[clear(1.05), clear(0.95)]));
        assert!(!replaces_everywhere(&[vague(1.05), clear(1.005)]));
        assert!(!replaces_everywhere(&[]));
    }

    #[test]
    fn a_restless_machine_is_not_trusted() {
        assert_eq!(confidence(&[100.0; 20]).0, Confidence::High);
        let wave = |height: f64| (0..40).map(|i| 100.0 + height * f64::from(i % 3)).collect::<Vec<_>>();
        assert_eq!(confidence(&wave(2.0)).0, Confidence::Medium);
        assert_eq!(confidence(&wave(10.0)).0, Confidence::Low);
        assert_eq!(confidence(&[]).0, Confidence::Low);
    }
}
