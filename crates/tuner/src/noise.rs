//! What the system tells of a machine that is shared or throttled: all of it optional, none of it fatal.

use std::fs;
use std::time::Instant;

/// Watches the counters of the system; every question is about the time since the one before.
#[derive(Clone, Debug)]
pub struct Monitor {
    last: Counters,
    when: Instant,
}

/// What is counted, zero where the system does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counters {
    /// Ticks (of 10 ms) of all cores that a hypervisor gave to others.
    stolen: u64,
    /// Microseconds for which this group of processes was throttled.
    throttled: u64,
    /// Times that this thread had to leave its core.
    switches: u64,
    /// Microseconds in which some task waited for a core.
    pressure: u64,
    /// Times that a core was slowed down because of its heat.
    heat: u64,
}

/// Parts of the time that are a disturbance.
const STOLEN: f64 = 0.05;
const PRESSURE: f64 = 0.5;

/// Context switches per second that are a disturbance.
const SWITCHES: f64 = 200.0;

impl Default for Monitor {
    fn default() -> Self {
        Self::new()
    }
}

impl Monitor {
    /// Starts to watch.
    pub fn new() -> Self {
        Self { last: Counters::read(), when: Instant::now() }
    }

    /// What disturbed the machine since this was asked last, in a few words.
    pub fn disturbance(&mut self) -> Option<String> {
        let (now, before) = (Counters::read(), self.last);
        let seconds = self.when.elapsed().as_secs_f64();
        *self = Self { last: now, when: Instant::now() };
        now.against(before, seconds)
    }
}

impl Counters {
    fn read() -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self {
            stolen: stolen(&text("/proc/stat")),
            throttled: field(&text("/sys/fs/cgroup/cpu.stat"), "throttled_usec"),
            switches: field(&text("/proc/thread-self/status"), "nonvoluntary_ctxt_switches:"),
            pressure: pressure(&text("/proc/pressure/cpu")),
            heat: text("/sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count").trim().parse().unwrap_or(0),
        }
    }

    /// What happened between two readings that lie so many seconds apart.
    fn against(self, before: Self, seconds: f64) -> Option<String> {
        let seconds = seconds.max(1e-6);
        let grown = |now: u64, before: u64| now.saturating_sub(before) as f64;
        let throttled = grown(self.throttled, before.throttled) / 1e6;
        // A tick is coarse: one of them says nothing.
        let ticks = grown(self.stolen, before.stolen);
        let switches = grown(self.switches, before.switches);
        match () {
            () if throttled > 0.0 => Some("the quota of this container throttled it".to_owned()),
            () if self.heat > before.heat => Some("the processor slowed down because of its heat".to_owned()),
            () if ticks > 1.0 && ticks / 100.0 > STOLEN * seconds => {
                Some("the hypervisor gave the core to others".to_owned())
            }
            () if switches > 2.0 && switches > SWITCHES * seconds => Some("other threads wanted the core".to_owned()),
            // Somebody always waits on a busy machine: it matters if this core was wanted too.
            () if switches > 2.0 && grown(self.pressure, before.pressure) / 1e6 > PRESSURE * seconds => {
                Some("threads waited for a core".to_owned())
            }
            () => None,
        }
    }
}

/// The eighth number of the first line of `/proc/stat`.
fn stolen(stat: &str) -> u64 {
    let line = stat.lines().next().unwrap_or_default();
    line.split_ascii_whitespace().nth(8).and_then(|ticks| ticks.parse().ok()).unwrap_or(0)
}

/// The number after a name, in a file of one pair to a line.
fn field(text: &str, name: &str) -> u64 {
    let of_line = |line: &str| line.strip_prefix(name)?.trim().parse().ok();
    text.lines().find_map(of_line).unwrap_or(0)
}

/// The total of the line `some` of a file of pressure.
fn pressure(text: &str) -> u64 {
    let line = text.lines().find(|line| line.starts_with("some")).unwrap_or_default();
    line.split_once("total=").and_then(|(_, total)| total.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_from_their_files() {
        assert_eq!(stolen("cpu  10 20 30 40 50 60 70 80 90 100\ncpu0 1 2 3 4 5 6 7 8 9 10\n"), 80);
        assert_eq!(stolen(""), 0);
        assert_eq!(field("nr_throttled 3\nthrottled_usec 125\n", "throttled_usec"), 125);
        assert_eq!(
            field("voluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t9\n", "nonvoluntary_ctxt_switches:"),
            9
        );
        assert_eq!(field("x", "y"), 0);
        let text = "some avg10=0.00 avg60=0.00 avg300=0.00 total=123\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=4\n";
        assert_eq!(pressure(text), 123);
        assert_eq!(pressure("garbage"), 0);
    }

    #[test]
    fn disturbances_have_their_reasons() {
        let quiet = Counters::default();
        assert_eq!(quiet.against(quiet, 1.0), None);
        let told = |now: Counters, part: &str| now.against(quiet, 0.1).is_some_and(|reason| reason.contains(part));
        assert!(told(Counters { throttled: 5, ..quiet }, "quota"));
        assert!(told(Counters { stolen: 5, ..quiet }, "hypervisor"));
        assert!(!told(Counters { stolen: 1, ..quiet }, "hypervisor"));
        assert!(told(Counters { switches: 100, ..quiet }, "other threads"));
        assert!(!told(Counters { switches: 2, ..quiet }, "other threads"));
        assert!(told(Counters { pressure: 90_000, switches: 3, ..quiet }, "waited"));
        assert!(!told(Counters { pressure: 90_000, ..quiet }, "waited"), "for other cores");
        assert!(told(Counters { heat: 1, ..quiet }, "heat"));
        // A counter that starts again is no disturbance.
        assert_eq!(quiet.against(Counters { throttled: 9, ..quiet }, 1.0), None);
    }

    #[test]
    fn the_monitor_watches() {
        let mut monitor = Monitor::new();
        let _ = monitor.disturbance();
    }
}
