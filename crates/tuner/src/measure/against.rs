//! Timing against ceilings of the caller's own.

use std::time::Instant;

use super::{Budget, Ceilings, Efficiency, MEMORY_SAMPLE_SECONDS, Measurement, SAMPLE_SECONDS, Timed, Work};
use crate::stats::{median, median_interval};

/// Fixed, so that the same times always give the same interval.
const SEED: u64 = 0;

/// Times `run` in rounds of ceilings, work, ceilings like [`measure`](super::measure), but against ceilings that the caller
/// measures. For work of several threads, whose ceilings take all of them at once. `reads` says whether measuring them leaves
/// the caches in another state than the work does; an untimed call then comes before every sample.
pub fn measure_against(
    ceilings: &mut dyn FnMut() -> Ceilings,
    reads: bool,
    work: Work,
    budget: Budget,
    run: impl FnMut(),
) -> Measurement {
    let mut timed = Timed::new(run, if reads { MEMORY_SAMPLE_SECONDS } else { SAMPLE_SECONDS });
    let mut seconds = Vec::new();
    let start = Instant::now();
    let mut found = vec![ceilings()];
    while budget.goes_on(start, seconds.len()) {
        if reads {
            timed.warm_up();
        }
        seconds.push(timed.sample());
        found.push(ceilings());
    }
    let against = |amount, ceiling: &dyn Fn(&Ceilings) -> Option<f64>| {
        let ceilings: Option<Vec<f64>> = found.iter().map(ceiling).collect();
        ceilings.map(|ceilings| Efficiency::new(amount, &seconds, &ceilings))
    };
    Measurement {
        seconds: median(&seconds),
        interval: median_interval(&seconds, SEED),
        rounds: seconds.len(),
        ceilings: Ceilings::medians(&found),
        compute: against(work.flops, &|ceilings| ceilings.peak(work.arithmetic)),
        compute_f32: against(work.flops, &|ceilings| ceilings.gflops),
        memory: against(work.bytes, &|ceilings| ceilings.read_gbytes_per_s),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Arithmetic;

    #[test]
    fn a_round_has_its_own_ceilings() {
        let mut calls = 0.0;
        let mut ceilings = || {
            calls += 1.0;
            Ceilings { gflops: None, dot_gflops: Some(calls), read_gbytes_per_s: Some(10.0 * calls) }
        };
        let nap = || std::thread::sleep(std::time::Duration::from_millis(1));
        let work = Work { flops: 1e6, arithmetic: Arithmetic::Bf16Dots, bytes: 1e6 };
        let found = measure_against(&mut ceilings, false, work, Budget::rounds(3), nap);
        assert!(found.seconds >= 1e-3);
        let [compute, memory] = [found.compute, found.memory].map(Option::unwrap);
        assert_eq!([compute.ratios.len(), memory.ratios.len()], [3; 2]);
        assert_eq!([compute.ceiling, memory.ceiling], [2.5, 25.0]);
        assert_eq!((found.ceilings.gflops, found.ceilings.dot_gflops), (None, Some(2.5)));
        assert!(compute.rate <= 1.0);
        let other = Work { arithmetic: Arithmetic::F32, ..work };
        assert_eq!(measure_against(&mut ceilings, true, other, Budget::rounds(1), nap).compute, None);
    }
}
