//! How quiet the machine was: the canary over time, and what the system counted.

use std::time::Instant;

use regard::Level;
use regard_tuner::measure::FmaProbe;
use regard_tuner::stats::{median, quantile};

use super::data::{Event, Grade, Noise, Validity};

/// Watches the machine from when it is made.
pub(super) struct Watch {
    probe: FmaProbe,
    start: Instant,
    canary: Vec<(f64, f64)>,
    counters: Vec<Counter>,
}

/// A count of the system, at the beginning.
struct Counter {
    name: &'static str,
    unit: &'static str,
    read: fn() -> Option<f64>,
    first: f64,
}

/// What is counted: name, unit, and how to read it.
type Kind = (&'static str, &'static str, fn() -> Option<f64>);

const COUNTERS: [Kind; 4] = [
    ("time stolen by the hypervisor", "s", stolen),
    ("involuntary context switches of this process", "", switches),
    ("periods throttled by a quota", "", throttled),
    ("pauses for heat", "", heat),
];

impl Watch {
    pub(super) fn new(level: Level) -> Self {
        let counter = |(name, unit, read): Kind| read().map(|first| Counter { name, unit, read, first });
        Self {
            probe: FmaProbe::new(level),
            start: Instant::now(),
            canary: Vec::new(),
            counters: COUNTERS.into_iter().filter_map(counter).collect(),
        }
    }

    /// The probe, for what is timed against it.
    pub(super) fn probe(&self) -> &FmaProbe {
        &self.probe
    }

    /// Seconds since the beginning.
    pub(super) fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// Looks at the clock of this thread's core.
    pub(super) fn look(&mut self) {
        let peak = self.probe.sample();
        self.canary.push((self.seconds(), peak));
    }

    /// What was seen.
    pub(super) fn finish(self) -> Noise {
        let peaks: Vec<f64> = self.canary.iter().map(|(_, peak)| *peak).collect();
        let third = peaks.len().div_ceil(3);
        let drift = median(&peaks[peaks.len() - third..]) / median(&peaks[..third]) - 1.0;
        let event = |counter: Counter| {
            let Counter { name, unit, read, first } = counter;
            read().map(|last| Event { name: name.to_owned(), count: last - first, unit: unit.to_owned() })
        };
        Noise {
            spread: finite((quantile(&peaks, 0.75) - quantile(&peaks, 0.25)) / median(&peaks)),
            drift: finite(drift),
            canary: self.canary,
            events: self.counters.into_iter().filter_map(event).collect(),
        }
    }
}

/// JSON has no other numbers.
fn finite(number: f64) -> f64 {
    if number.is_finite() { number } else { 0.0 }
}

/// What figures are worth that were taken meanwhile, in `seconds`.
pub(super) fn judge(noise: &Noise, seconds: f64, is_virtual: bool) -> Validity {
    let mut reasons = Vec::new();
    let mut grade = Grade::Good;
    let mut found = |what: Grade, reason: String| {
        grade = grade.min(what);
        reasons.push(reason);
    };
    let of = |name: &str| noise.events.iter().find(|event| event.name == name).map_or(0.0, |event| event.count);
    let (spread, drift) = (noise.spread, noise.drift.abs());
    let level = |size: f64, fair: f64, poor: f64| match size {
        size if size > poor => Grade::Poor,
        size if size > fair => Grade::Fair,
        _ => Grade::Good,
    };
    found(
        level(spread, 0.02, 0.1),
        format!("The multiply-add peak stayed within {:.1} % (distance of its quartiles).", 100.0 * spread),
    );
    let moved = match drift {
        drift if drift < 0.001 => "by less than 0.1 %".to_owned(),
        _ => format!("by {:+.1} %", 100.0 * noise.drift),
    };
    found(level(drift, 0.02, 0.1), format!("From the first third to the last it moved {moved}."));
    let stolen = of(COUNTERS[0].0);
    if stolen > 0.002 * seconds {
        let part = 100.0 * stolen / seconds.max(1e-9);
        found(level(stolen / seconds, 0.01, 0.1), format!("The hypervisor took {part:.1} % of a core's time."));
    }
    if of(COUNTERS[2].0) > 0.0 {
        found(Grade::Poor, format!("A quota throttled this process in {:.0} periods.", of(COUNTERS[2].0)));
    }
    if of(COUNTERS[3].0) > 0.0 {
        found(Grade::Fair, format!("The processor slowed down for its heat {:.0} times.", of(COUNTERS[3].0)));
    }
    if is_virtual {
        reasons.push("A virtual machine: neighbours may share caches, memory and clock.".to_owned());
    }
    Validity { grade, reasons }
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// Seconds, of all CPUs. The eighth figure of a CPU, in hundredths of a second.
fn stolen() -> Option<f64> {
    steal_in(&read("/proc/stat")?)
}

fn steal_in(stat: &str) -> Option<f64> {
    let all = stat.lines().find(|line| line.starts_with("cpu "))?;
    Some(all.split_whitespace().nth(8)?.parse::<f64>().ok()? / 100.0)
}

fn switches() -> Option<f64> {
    let tasks = std::fs::read_dir("/proc/self/task").ok()?;
    let of = |path: std::path::PathBuf| field(&read(path.join("status").to_str()?)?, "nonvoluntary_ctxt_switches:");
    Some(tasks.flatten().filter_map(|task| of(task.path())).sum())
}

fn throttled() -> Option<f64> {
    field(&read("/sys/fs/cgroup/cpu.stat")?, "nr_throttled")
}

fn heat() -> Option<f64> {
    read("/sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count")?.trim().parse().ok()
}

/// The number after a word at the start of a line.
fn field(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_where_the_system_puts_them() {
        assert_eq!(steal_in("cpu  1 2 3 4 5 6 7 800 9 10\ncpu0 1 2 3 4 5 6 7 8 9 10\n"), Some(8.0));
        assert_eq!(steal_in("intr 1\n"), None);
        assert_eq!(field("usage_usec 5\nnr_throttled 12\n", "nr_throttled"), Some(12.0));
        assert_eq!(field("", "x"), None);
    }

    #[test]
    fn grades_follow_the_noise() {
        let noise = |spread, drift, stolen| Noise {
            spread,
            drift,
            canary: vec![],
            events: vec![Event { name: COUNTERS[0].0.to_owned(), count: stolen, unit: "s".to_owned() }],
        };
        assert_eq!(judge(&noise(0.01, -0.01, 0.0), 10.0, false).grade, Grade::Good);
        assert_eq!(judge(&noise(0.01, -0.05, 0.0), 10.0, true).grade, Grade::Fair);
        assert_eq!(judge(&noise(0.05, 0.0, 0.0), 10.0, false).grade, Grade::Fair);
        assert_eq!(judge(&noise(0.0, 0.0, 0.2), 10.0, false).grade, Grade::Fair);
        assert_eq!(judge(&noise(0.0, 0.0, 2.0), 10.0, false).grade, Grade::Poor);
        let validity = judge(&noise(0.2, 0.0, 0.0), 10.0, true);
        assert_eq!((validity.grade, validity.reasons.len()), (Grade::Poor, 3));
    }

    #[test]
    fn a_watch_sees_something() {
        let mut watch = Watch::new(Level::best());
        (0..4).for_each(|_| watch.look());
        let noise = watch.finish();
        assert_eq!(noise.canary.len(), 4);
        assert!(noise.canary.iter().all(|(_, peak)| *peak > 0.0) && noise.canary.is_sorted());
        assert!(noise.spread.is_finite() && noise.drift.is_finite());
    }
}
