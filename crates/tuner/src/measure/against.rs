//! Timing against a ceiling of the caller's own.

use std::time::Instant;

use super::{Budget, Efficiency, Timed};
use crate::stats::median;

/// Times `run` in rounds of ceiling, work, ceiling like [`measure`](super::measure), but against a ceiling that the
/// caller measures: `ceiling` gives it in 10^9 per second, of the same kind as the `amount` that a call of `run` does.
/// For work of several threads, whose ceiling takes all of them at once. `disturbs` says whether measuring the ceiling
/// leaves the caches in another state than the work does; an untimed call then comes before every sample.
///
/// Gives the median seconds of a call and the efficiency.
pub fn measure_against(
    ceiling: &mut dyn FnMut() -> f64,
    disturbs: bool,
    amount: f64,
    budget: Budget,
    run: impl FnMut(),
) -> (f64, Efficiency) {
    let mut timed = Timed::new(run);
    let mut seconds = Vec::new();
    let start = Instant::now();
    let mut ceilings = vec![ceiling()];
    while budget.goes_on(start, seconds.len()) {
        if disturbs {
            timed.warm_up();
        }
        seconds.push(timed.sample());
        ceilings.push(ceiling());
    }
    (median(&seconds), Efficiency::new(amount, &seconds, &ceilings))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_has_its_own_ceiling() {
        let mut calls = 0.0;
        let mut ceiling = || {
            calls += 1.0;
            calls
        };
        let nap = || std::thread::sleep(std::time::Duration::from_millis(1));
        let (seconds, efficiency) = measure_against(&mut ceiling, false, 1e6, Budget::rounds(3), nap);
        assert!(seconds >= 1e-3);
        assert_eq!(efficiency.ratios.len(), 3);
        assert_eq!(efficiency.ceiling, 2.5);
        assert!(efficiency.rate <= 1.0);
    }
}
