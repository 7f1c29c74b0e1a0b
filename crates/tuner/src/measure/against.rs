//! Timing against ceilings of the caller's own.

use std::time::Instant;

use super::{Budget, Ceilings, Efficiency, MEMORY_SAMPLE_SECONDS, Measurement, SAMPLE_SECONDS, Timed, Work};
use crate::stats::{median, median_interval};

/// Fixed, so that the same times always give the same interval.
const SEED: u64 = 0;

/// The ceilings that work is timed against, as they are measured around it.
///
/// The peaks stand right beside the work, and nothing that reads memory between them: cores change their clock with what
/// they do. After attention at AVX-512 the multiply-adds of a Xeon come to 204 GFLOP/s in the first millisecond, to 210, 221
/// and 225 in the next ones and to 231 from the fifth on; after a sweep of memory they begin at 223. Against peaks that are
/// sampled after sweeps the same calls (8 heads, 2048 x 2048, d 128) reach 0.705, against those beside them 0.74.
pub trait Around {
    /// The peaks of arithmetic now, without the bandwidth. Leaves the caches alone.
    fn peaks(&mut self) -> Ceilings;

    /// The read bandwidth now, in GB/s, if it is probed: always or never. Leaves the caches in another state than the work does.
    fn read(&mut self) -> Option<f64>;
}

/// Times `run` like [`measure`](super::measure), but against ceilings that the caller measures. For work of several threads,
/// whose ceilings take all of them at once.
pub fn measure_against(around: &mut dyn Around, work: Work, budget: Budget, run: impl FnMut()) -> Measurement {
    let mut read = around.read();
    let reads = read.is_some();
    let mut timed = Timed::new(run, if reads { MEMORY_SAMPLE_SECONDS } else { SAMPLE_SECONDS });
    let (mut seconds, mut found, mut peaks) = (Vec::new(), Vec::new(), None);
    let start = Instant::now();
    while budget.goes_on(start, seconds.len()) {
        if reads {
            // As long as what is timed, for the clock to be that of the work.
            timed.sample();
        }
        // Nothing is between the end of a round and the next, unless memory is read there.
        let before = peaks.take().filter(|_| !reads).unwrap_or_else(|| around.peaks());
        seconds.push(timed.sample());
        let after = around.peaks();
        let read_before = std::mem::replace(&mut read, around.read());
        let [before, after] =
            [(before, read_before), (after, read)].map(|(peaks, read)| Ceilings { read_gbytes_per_s: read, ..peaks });
        found.push(Ceilings::mean(before, after));
        peaks = Some(after);
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
    use std::cell::RefCell;

    use super::*;
    use crate::measure::Arithmetic;

    /// Ceilings that count their samples, and a letter for all that is done.
    struct Counting<'a> {
        peaks: f64,
        read: Option<f64>,
        done: &'a RefCell<String>,
    }

    impl Around for Counting<'_> {
        fn peaks(&mut self) -> Ceilings {
            self.done.borrow_mut().push('p');
            self.peaks += 1.0;
            Ceilings { gflops: None, dot_gflops: Some(self.peaks), read_gbytes_per_s: None }
        }

        fn read(&mut self) -> Option<f64> {
            self.read = self.read.map(|read| read + 10.0);
            self.read.inspect(|_| self.done.borrow_mut().push('r'))
        }
    }

    const WORK: Work = Work { flops: 1e6, arithmetic: Arithmetic::Bf16Dots, bytes: 1e6 };

    /// What was found, and what was done, calls of the work that follow each other as one.
    fn measured(read: Option<f64>, work: Work) -> (Measurement, String) {
        let done = RefCell::new(String::new());
        let run = || {
            std::thread::sleep(std::time::Duration::from_millis(1));
            if !done.borrow().ends_with('w') {
                done.borrow_mut().push('w');
            }
        };
        let found = measure_against(&mut Counting { peaks: 0.0, read, done: &done }, work, Budget::rounds(3), run);
        (found, done.into_inner())
    }

    #[test]
    fn peaks_stand_beside_the_work_and_reads_between_rounds() {
        let (found, done) = measured(Some(0.0), WORK);
        assert_eq!(done, "rwpwprwpwprwpwpr");
        assert!(found.seconds >= 1e-3);
        let [compute, memory] = [found.compute, found.memory].map(Option::unwrap);
        assert_eq!([compute.ratios.len(), memory.ratios.len()], [3; 2]);
        // 1 and 2, 3 and 4, 5 and 6; 10 and 20, 20 and 30, 30 and 40.
        assert_eq!([compute.ceiling, memory.ceiling], [3.5, 25.0]);
        assert_eq!((found.ceilings.gflops, found.ceilings.dot_gflops), (None, Some(3.5)));
        assert!(compute.rate <= 1.0);
    }

    #[test]
    fn without_reads_the_peak_after_a_round_is_the_one_before_the_next() {
        let (found, done) = measured(None, WORK);
        assert_eq!(done, "wpwpwpwp");
        assert_eq!((found.compute.unwrap().ceiling, found.memory), (2.5, None));
        let other = Work { arithmetic: Arithmetic::F32, ..WORK };
        assert_eq!(measured(None, other).0.compute, None);
    }
}
