//! Comparisons whose sides take turns, with intervals.
//!
//! A [`Contest`] is one piece of work done in several ways. The first way is what the others are compared with. All of
//! them are timed once in every round, in random order, between samples of the multiply-add peak; a ratio is the median
//! of the ratios of the rounds, with its 95 % interval. A ratio whose interval includes 1 is marked: nothing was found.

mod args;
mod output;

use regard_tuner::measure::{Budget, FmaProbe, round_robin_within};
use serde::Serialize;

pub use self::args::{Args, Format};
pub use self::output::{Origin, Printer};

/// One piece of work, in several ways.
pub struct Contest<'a> {
    /// What is compared: levels, threads, rivals.
    pub group: &'static str,
    /// The work.
    pub case: String,
    /// Floating-point operations of a call, whoever does it.
    pub flops: f64,
    /// The ways. The first is what the others are compared with.
    pub entrants: Vec<Entrant<'a>>,
}

/// A way of doing it.
pub struct Entrant<'a> {
    /// Its name.
    pub name: String,
    /// The largest absolute error of sampled rows against f64.
    pub largest_error: f64,
    /// Does it once.
    pub run: Box<dyn FnMut() + 'a>,
}

/// One way against the first.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Row {
    /// What is compared.
    pub group: &'static str,
    /// The work.
    pub case: String,
    /// The way that is compared with.
    pub base: String,
    /// The way that is compared.
    pub entrant: String,
    /// How many times as fast as `base` is `entrant`: the median over rounds.
    pub speedup: f64,
    /// The lower end of its 95 % interval.
    pub low: f64,
    /// The upper end.
    pub high: f64,
    /// Whether the interval leaves out 1.
    pub significant: bool,
    /// The speed of `base`, in GFLOP/s.
    pub base_gflops: f64,
    /// The speed of `entrant`, in GFLOP/s.
    pub gflops: f64,
    /// The multiply-add peak of one core in the same rounds, in GFLOP/s: the median.
    pub peak_gflops: f64,
    /// The distance of its quartiles, over the median: how steady the machine was.
    pub peak_spread: f64,
    /// The largest absolute error of `entrant` against f64.
    pub largest_error: f64,
    /// Rounds.
    pub rounds: usize,
}

impl Contest<'_> {
    /// Times everybody for as many rounds as the budget allows. Gives a row for each but the first.
    pub fn hold(self, canary: &FmaProbe, budget: Budget) -> Vec<Row> {
        /// Fixed: the order of the rounds is the same in every run.
        const SEED: u64 = 1;
        let Self { group, case, flops, entrants } = self;
        let (names, mut runs): (Vec<_>, Vec<_>) =
            entrants.into_iter().map(|entrant| ((entrant.name, entrant.largest_error), entrant.run)).unzip();
        let found = round_robin_within(canary, &mut runs, budget, SEED);
        let peak_gflops = regard_tuner::stats::median(&found.canaries);
        let row = |(index, (name, largest_error)): (usize, &(String, f64))| {
            let comparison = found.comparison(0, index);
            Row {
                group,
                case: case.clone(),
                base: names[0].0.clone(),
                entrant: name.clone(),
                speedup: comparison.speedup,
                low: comparison.interval.low,
                high: comparison.interval.high,
                significant: comparison.is_significant(),
                base_gflops: flops / comparison.a_seconds / 1e9,
                gflops: flops / comparison.b_seconds / 1e9,
                peak_gflops,
                peak_spread: found.canary_spread(),
                largest_error: *largest_error,
                rounds: comparison.ratios.len(),
            }
        };
        names.iter().enumerate().skip(1).map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use regard::Level;

    use super::*;

    #[test]
    fn everybody_meets_the_first() {
        let spin = |passes: u32| -> Box<dyn FnMut()> {
            Box::new(move || {
                std::hint::black_box((0..passes).fold(1.0_f64, |x, _| std::hint::black_box(x * 1.000_001)));
            })
        };
        let entrant = |name: &str, passes| Entrant { name: name.to_owned(), largest_error: 0.0, run: spin(passes) };
        let entrants = vec![entrant("twice", 200_000), entrant("once", 100_000), entrant("twice too", 200_000)];
        let contest = Contest { group: "spin", case: "spin".to_owned(), flops: 1e6, entrants };
        let rows = contest.hold(&FmaProbe::new(Level::best()), Budget::rounds(12));
        assert_eq!(rows.len(), 2);
        assert_eq!([&*rows[0].base, &*rows[0].entrant, &*rows[1].entrant], ["twice", "once", "twice too"]);
        let Row { speedup, low, high, rounds, .. } = rows[0];
        // A busy machine disturbs both; the median of the ratios of twelve rounds is far from 1 all the same.
        assert!(low <= speedup && speedup <= high && speedup > 1.2 && rounds == 12, "{rows:?}");
        assert_eq!(rows[1].significant, rows[1].low > 1.0 || rows[1].high < 1.0);
    }
}
