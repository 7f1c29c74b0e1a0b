//! The decisions of the search, as pure functions of what was measured.

use regard_profile::Confidence;

use super::rounds::{Noise, RunOff};
use crate::stats::{median, quantile};

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

/// The options that may take the place of the incumbent everywhere, the one that gains most over it in all classes together
/// first, and at most `most`. Those are out that are slower somewhere by more than timings as few as these may be off.
///
/// Not the one with the least worst loss to the best of each class: where one class alone has a taste of its own, which no common
/// choice can meet, all options lose much there, and what they gain elsewhere would not count.
pub(super) fn challengers(times: &[Vec<f64>], incumbent: usize, most: usize) -> Vec<usize> {
    let options = times.first().map_or(0, Vec::len);
    let gain = |option: usize| times.iter().map(|class| (class[incumbent] / class[option]).ln()).sum::<f64>();
    let holds = |option: usize| times.iter().all(|class| class[option] < class[incumbent] * (1.0 + 2.0 * MARGIN));
    let mut found: Vec<(usize, f64)> = (0..options)
        .filter(|option| *option != incumbent && holds(*option))
        .map(|option| (option, gain(option)))
        .filter(|(_, gain)| *gain > MARGIN)
        .collect();
    found.sort_by(|a, b| b.1.total_cmp(&a.1));
    found.into_iter().take(most).map(|(option, _)| option).collect()
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

/// A gain below this is none, however certain it is.
pub(super) const LEAST_GAIN: f64 = 0.004;

/// Whether a run-off says that the challenger shall replace the incumbent: what it gains is more than the noise of the machine,
/// and the interval leaves no doubt that it gains.
pub(super) fn replaces(found: &RunOff) -> bool {
    let floor = found.floor.max(LEAST_GAIN);
    found.speedup > 1.0 + floor && found.interval.low > 1.0
}

/// Whether run-offs, one for each class, say that the challenger shall replace the incumbent in all of them: somewhere
/// it gains more than the margin, beyond doubt, on the whole too, and nowhere it seems to lose, or may lose more than it must gain.
pub(super) fn replaces_everywhere(run_offs: &[RunOff]) -> bool {
    let gains = run_offs.iter().any(|found| replaces(found) && found.speedup > 1.0 + MARGIN);
    // A gain in one class that is as much as what the others seem to lose is chance.
    let on_the_whole = run_offs.iter().map(|found| found.speedup.ln()).sum::<f64>();
    gains && on_the_whole > MARGIN && run_offs.iter().all(holds)
}

/// Whether a run-off says that the challenger does not lose.
pub(super) fn holds(found: &RunOff) -> bool {
    found.speedup > 1.0 - LEAST_GAIN && found.interval.low > 1.0 - 1.5 * MARGIN
}

/// How far to trust timings between which the machine made this noise, and why.
pub(super) fn confidence(noise: &Noise) -> (Confidence, Vec<String>) {
    let canaries = &noise.canaries;
    let spread = (quantile(canaries, 0.9) - quantile(canaries, 0.1)) / median(canaries);
    let disturbed = noise.disturbed as f64 / noise.rounds.max(1) as f64;
    let of_peak = match spread {
        _ if canaries.len() < 5 => Confidence::Low,
        _ if spread < 0.02 => Confidence::High,
        _ if spread < 0.06 => Confidence::Medium,
        _ => Confidence::Low,
    };
    let of_rounds = match disturbed {
        _ if disturbed < 0.1 => Confidence::High,
        _ if disturbed < 0.4 => Confidence::Medium,
        _ => Confidence::Low,
    };
    let third = canaries.len() / 3;
    let drift = median(&canaries[canaries.len() - third..]) / median(&canaries[..third]) - 1.0;
    let mut reasons = vec![format!("the peak varied by {:.1} % while timing", 100.0 * spread.max(0.0))];
    if drift.abs() > 0.02 {
        reasons.push(format!("the peak drifted by {:+.1} % from the first third to the last", 100.0 * drift));
    }
    if noise.disturbed > 0 {
        reasons.push(format!("{} of {} rounds were disturbed", noise.disturbed, noise.rounds));
    }
    reasons.extend(noise.reasons.iter().cloned());
    (of_peak.min(of_rounds), reasons)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Interval;

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
    fn challengers_gain_on_the_whole() {
        // Nobody can do without option 1 in the first class, but in the others it is out of the question.
        let times = [vec![1.05, 1.0, 1.05, 1.04], vec![1.05, 1.2, 1.0, 1.03], vec![1.03, 1.1, 1.0, 1.0]];
        assert_eq!(challengers(&times, 0, 9), [2, 3]);
        assert_eq!(challengers(&times, 0, 1), [2]);
        assert_eq!(challengers(&times, 2, 9), [0; 0]);
        assert_eq!(challengers(&[vec![1.0, 0.9, f64::INFINITY], vec![1.0, 1.03, 0.5]], 0, 9), [0; 0]);
        assert_eq!(challengers(&[], 0, 9), [0; 0]);
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

    fn run_off(speedup: f64, low: f64, floor: f64) -> RunOff {
        RunOff { speedup, interval: Interval { low, high: 2.0 * speedup - low }, floor, rounds: 12 }
    }

    #[test]
    fn a_challenger_needs_gain_and_certainty() {
        assert!(replaces(&run_off(1.05, 1.02, 0.01)));
        assert!(!replaces(&run_off(1.05, 0.99, 0.01)));
        assert!(!replaces(&run_off(1.003, 1.002, 0.001)));
        assert!(!replaces(&run_off(1.02, 1.01, 0.03)), "within the noise");
        assert!(!replaces(&run_off(0.9, 0.8, 0.0)));
        assert!(!replaces(&run_off(f64::NAN, f64::NAN, f64::NAN)));
    }

    #[test]
    fn a_common_choice_may_lose_nowhere() {
        let clear = |speedup: f64| run_off(speedup, speedup - 0.002, 0.001);
        assert!(replaces_everywhere(&[clear(1.05), clear(1.0)]));
        assert!(replaces_everywhere(&[clear(1.05), clear(0.997)]));
        assert!(!replaces_everywhere(&[clear(1.05), clear(0.99)]));
        assert!(!replaces_everywhere(&[clear(1.012), clear(0.997), clear(0.999)]));
        assert!(!replaces_everywhere(&[run_off(1.05, 0.9, 0.02), clear(1.005)]));
        assert!(!replaces_everywhere(&[]));
    }

    #[test]
    fn a_restless_machine_is_not_trusted() {
        let noise = |canaries: Vec<f64>| Noise { canaries, rounds: 20, ..Noise::default() };
        assert_eq!(confidence(&noise(vec![100.0; 20])).0, Confidence::High);
        let wave = |height: f64| (0..40).map(|i| 100.0 + height * f64::from(i % 3)).collect::<Vec<_>>();
        assert_eq!(confidence(&noise(wave(2.0))).0, Confidence::Medium);
        assert_eq!(confidence(&noise(wave(10.0))).0, Confidence::Low);
        assert_eq!(confidence(&noise(vec![])).0, Confidence::Low);
        let throttled = Noise { disturbed: 10, reasons: vec!["x".to_owned()], ..noise(vec![100.0; 20]) };
        let (found, reasons) = confidence(&throttled);
        assert_eq!(found, Confidence::Low);
        assert!(reasons.contains(&"x".to_owned()) && reasons.iter().any(|reason| reason.contains("10 of 20")));
        let drifting = (0..30).map(|i| 100.0 + f64::from(i) * 0.15).collect::<Vec<_>>();
        assert!(confidence(&noise(drifting)).1.iter().any(|reason| reason.contains("drifted")));
    }
}
