//! The time that work takes, without the time that it has to wait for its core.

use std::time::{Duration, Instant};

/// Measures the time since its start, less the time in which the calling thread was ready to run and another thread had
/// its core.
///
/// Where the system does not tell that time (only Linux does), or does not tell it consistently, it is not subtracted.
/// What another guest of the same host or an interrupt takes is not known either; the medians have to deal with it.
pub(crate) struct Stopwatch {
    start: Instant,
    /// Nanoseconds that the thread has waited up to the start.
    waited: u64,
}

/// Reading both clocks takes a microsecond. If it takes longer than this, the thread had to wait between them, and they
/// are read again: on a busy machine that happens often, as threads are made to wait when they return from the system.
const AT_ONCE: Duration = Duration::from_micros(20);

/// Readings of both clocks before they are taken as they are.
const ATTEMPTS: usize = 5;

impl Stopwatch {
    pub(crate) fn start() -> Self {
        let mut attempt = 1;
        loop {
            let before = Instant::now();
            let waited = waited();
            let start = Instant::now();
            if start - before < AT_ONCE || attempt == ATTEMPTS {
                return Self { start, waited };
            }
            attempt += 1;
        }
    }

    /// Seconds since the start, on the thread that started.
    pub(crate) fn seconds(&self) -> f64 {
        let mut attempt = 1;
        let (elapsed, waited) = loop {
            let elapsed = self.start.elapsed();
            let waited = waited();
            if self.start.elapsed() - elapsed < AT_ONCE || attempt == ATTEMPTS {
                break (elapsed.as_secs_f64(), waited.saturating_sub(self.waited) as f64 / 1e9);
            }
            attempt += 1;
        };
        // More than there was: the thread had to wait between the two clocks all the same. A rare sample, left to the
        // medians.
        if waited < elapsed { elapsed - waited } else { elapsed }
    }
}

/// Nanoseconds that this thread has waited for a core since it exists.
#[cfg(target_os = "linux")]
fn waited() -> u64 {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    thread_local! {
        // Names the thread that opens it, and is read anew from position 0. A read takes half a microsecond.
        static SCHEDSTAT: Option<File> = File::open("/proc/thread-self/schedstat").ok();
    }
    let mut text = [0; 64];
    let read = SCHEDSTAT.with(|file| file.as_ref().and_then(|file| file.read_at(&mut text, 0).ok()));
    read.and_then(|length| wait_in(&text[..length])).unwrap_or(0)
}

#[cfg(not(target_os = "linux"))]
fn waited() -> u64 {
    0
}

/// The second of the three numbers of a schedstat file: nanoseconds run, nanoseconds waited, time slices.
#[cfg(any(target_os = "linux", test))]
fn wait_in(schedstat: &[u8]) -> Option<u64> {
    str::from_utf8(schedstat).ok()?.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_the_second_number() {
        assert_eq!(wait_in(b"82533 2750071 2\n"), Some(2_750_071));
        assert_eq!(wait_in(b"82533"), None);
        assert_eq!(wait_in(b""), None);
        assert_eq!(wait_in(b"1 -2 3"), None);
    }

    #[test]
    fn sleep_counts_and_waiting_does_not() {
        let before = Instant::now();
        let watch = Stopwatch::start();
        std::thread::sleep(Duration::from_millis(20));
        let seconds = watch.seconds();
        assert!(seconds > 0.0 && seconds <= before.elapsed().as_secs_f64());

        let start = Instant::now();
        let inconsistent = Stopwatch { start, waited: 0 };
        std::thread::sleep(Duration::from_millis(1));
        assert!(inconsistent.seconds() > 0.0);
        let future = Stopwatch { start, waited: u64::MAX };
        assert!(future.seconds() >= 1e-3);
    }
}
