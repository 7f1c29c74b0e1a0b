//! Measuring the machine: the half of its card that no file tells ([`Card`]).
//!
//! Every figure is the median of some samples, with its interval. Figures of several threads are sums of the rates that
//! the threads had in samples that began together.

mod cache_sizes;
mod ladder;
mod team;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use regard_kernels::launch::Executor;
use regard_profile::{Card, Figure, ForkJoin, Machine, Operation, Peak};
use regard_simd::Level;

pub use self::cache_sizes::measured_caches;
use self::team::Team;
use crate::measure::{FmaProbe, memory};
use crate::stats::{median, median_interval, rounded};

/// Samples of a figure. The interval of the median of as few is wide, and says so.
const SAMPLES: usize = 9;

/// Measures the card of this machine with the threads of `executor`, in some seconds. The buffers take eight times the
/// last-level caches, 256 MiB at least and a GiB for each of them at most, but no more than an eighth of the memory that is
/// available.
///
/// Not to be called on a pinned thread: those that it starts would stay on the same core.
pub fn card(level: Level, machine: &Machine, executor: &dyn Executor, progress: &mut dyn FnMut(f64, &str)) -> Card {
    card_while(&|| true, level, machine, executor, progress).unwrap_or_else(|| unreachable!("nothing ends it early"))
}

/// The same as long as `go_on` says so, which is asked before every figure. `None` if it did not come to an end.
pub fn card_while(
    go_on: &dyn Fn() -> bool,
    level: Level,
    machine: &Machine,
    executor: &dyn Executor,
    progress: &mut dyn FnMut(f64, &str),
) -> Option<Card> {
    let start = Instant::now();
    progress(0.0, "caches");
    let caches = measured_caches(level, &machine.caches);
    let threads = executor.threads();
    let counts: &[usize] = if threads > 1 { &[1, threads] } else { &[1] };
    let (mut peaks, mut reads) = (Vec::new(), Vec::new());
    for (i, &threads) in counts.iter().enumerate() {
        let done = |part: f64| (i as f64 + part) / counts.len() as f64;
        let who = if threads == 1 { "one thread".to_owned() } else { format!("{threads} threads") };
        let team = Team::new(threads);
        progress(done(0.05), &format!("peaks of {who}"));
        for level in Level::available() {
            for (operation, make) in OPERATIONS {
                if !go_on() {
                    return None;
                }
                peaks.extend(peak_of(operation, make, *level, &team));
            }
        }
        for (j, rung) in ladder::rungs(&caches, threads, memory::room()).into_iter().enumerate() {
            if !go_on() {
                return None;
            }
            progress(done(0.2 + 0.2 * j as f64), &format!("reading {} with {who}", rung.memory.name()));
            reads.push(rung.measure(level, &team));
        }
    }
    progress(1.0, "threads");
    let fork_join = (threads > 1).then(|| fork_join(executor));
    Some(Card {
        unix_time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
        seconds: rounded(start.elapsed().as_secs_f64()),
        isa: level.isa().name().to_owned(),
        caches,
        peaks,
        reads,
        fork_join,
    })
}

/// Makes the probe of an operation, on the thread that it belongs to.
type Make = fn(Level) -> Option<FmaProbe>;

const OPERATIONS: [(Operation, Make); 4] = [
    (Operation::Fma, |level| Some(FmaProbe::new(level))),
    (Operation::DotBf16, FmaProbe::dots),
    (Operation::DotInt8, FmaProbe::int8_dots),
    (Operation::Exp, |level| Some(FmaProbe::exponentials(level))),
];

/// The peak of an operation, if the level has it.
fn peak_of(operation: Operation, make: Make, level: Level, team: &Team) -> Option<Peak> {
    // Asked here and not on the threads, which have to sample together or not at all.
    make(level)?;
    let gops = team.rates(SAMPLES, || {
        let probe = make(level);
        move || probe.map_or(f64::NAN, |probe| probe.sample())
    });
    Some(Peak { operation, isa: level.isa().name().to_owned(), threads: team.threads(), gops: figure(&gops) })
}

/// What it costs to set the threads of an executor to work that is nothing.
fn fork_join(executor: &dyn Executor) -> ForkJoin {
    /// Calls of a warm sample: with a microsecond each, far more than reading the clock takes.
    const CALLS: u32 = 200;
    /// More than an idle worker of rayon looks around before it sleeps.
    const PAUSE: Duration = Duration::from_millis(2);
    let seconds_of = |calls: u32| {
        let start = Instant::now();
        (0..calls).for_each(|_| executor.run(&|| ()));
        start.elapsed().as_secs_f64() / f64::from(calls)
    };
    seconds_of(CALLS);
    let warm: Vec<f64> = (0..SAMPLES).map(|_| 1e6 * seconds_of(CALLS)).collect();
    let cold: Vec<f64> = (0..2 * SAMPLES)
        .map(|_| {
            std::thread::sleep(PAUSE);
            1e6 * seconds_of(1)
        })
        .collect();
    ForkJoin { threads: executor.threads(), warm_us: figure(&warm), cold_us: figure(&cold) }
}

/// The median of samples with its interval.
fn figure(samples: &[f64]) -> Figure {
    /// Fixed, so that the same samples always give the same interval.
    const SEED: u64 = 0;
    let interval = median_interval(samples, SEED);
    let [median, low, high] = [median(samples), interval.low, interval.high].map(rounded);
    Figure { median, low, high, samples: samples.len() }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use regard_profile::Memory;

    use super::*;

    /// Two threads, started for every call.
    struct Two;

    impl Executor for Two {
        fn threads(&self) -> usize {
            2
        }

        fn run(&self, work: &(dyn Fn() + Sync)) {
            std::thread::scope(|scope| {
                scope.spawn(work);
                work();
            });
        }
    }

    #[test]
    fn a_card_is_complete_and_plausible() {
        let (level, machine) = (Level::best(), Machine::detect());
        let mut said = Vec::new();
        let card = card(level, &machine, &Two, &mut |fraction, what| said.push((fraction, what.to_owned())));
        println!("{card:#?}");
        assert!(said.is_sorted_by(|a, b| a.0 <= b.0) && said.last().is_some_and(|(done, _)| *done == 1.0), "{said:?}");
        let figures = card.peaks.iter().map(|peak| peak.gops).chain(card.reads.iter().map(|read| read.gbytes_per_s));
        for figure in figures {
            assert!(figure.low > 0.0 && figure.low <= figure.median && figure.median <= figure.high, "{figure:?}");
            assert_eq!(figure.samples, SAMPLES);
        }
        for level in Level::available() {
            for threads in [1, 2] {
                let isa = level.isa().name();
                assert!(card.peak(Operation::Fma, isa, threads).is_some(), "{isa}, {threads} threads");
                assert!(card.peak(Operation::Exp, isa, threads).is_some(), "{isa}, {threads} threads");
                let dots = card.peak(Operation::DotBf16, isa, threads);
                assert_eq!(dots.is_some(), FmaProbe::dots(*level).is_some(), "{isa}, {threads} threads");
            }
        }
        for threads in [1, 2] {
            assert!(card.read(Memory::L1, threads).is_some() && card.read(Memory::Dram, threads).is_some());
        }
        let cost = card.fork_join.expect("two threads have a cost");
        assert_eq!(cost.threads, 2);
        assert!(cost.warm_us.median > 0.0 && cost.cold_us.median > 0.0, "{cost:?}");
    }

    #[test]
    fn half_a_card_is_none() {
        let (level, machine, asked) = (Level::best(), Machine::detect(), Cell::new(0));
        let go_on = || asked.replace(asked.get() + 1) < 2;
        let mut said = Vec::new();
        let card = card_while(&go_on, level, &machine, &Two, &mut |fraction, _| said.push(fraction));
        assert_eq!((card, asked.get()), (None, 3));
        assert!(said.last().is_some_and(|done| *done < 0.5), "{said:?}");
    }
}
