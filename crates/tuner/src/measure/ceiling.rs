//! The ceilings of the machine as probes that can be sampled between other work.

use regard_simd::{Level, probe};

use super::calibrate;
use super::stopwatch::Stopwatch;
use crate::stats::median;

/// How fast one core can multiply and add.
#[derive(Clone, Copy, Debug)]
pub struct FmaProbe {
    level: Level,
    /// The iterations of a part.
    iterations: u64,
}

impl FmaProbe {
    /// A sample is the median of this many parts: whatever disturbs the core once hits one of them, however long it
    /// takes, and the sample stays what it would have been.
    const PARTS: usize = 3;

    /// Seconds of a part. Long enough for each to have its share of the ticks of the timer, as the work has that is
    /// compared (parts of 0.4 ms give a peak that work of 2 ms misses by 0.7 % even if it is the same loop), and a
    /// sample still takes little time against that in which the clock changes.
    const PART_SECONDS: f64 = 1e-3;

    /// A probe of the f32 peak of `level`. Takes some milliseconds to find how long its samples have to be.
    pub fn new(level: Level) -> Self {
        let iterations = calibrate(Self::PART_SECONDS, |iterations| {
            let watch = Stopwatch::start();
            probe::fma_chains(level, iterations);
            watch.seconds()
        });
        Self { level, iterations }
    }

    /// The peak now, in GFLOP/s. Takes 3 ms and leaves the caches alone.
    pub fn sample(&self) -> f64 {
        let parts = [(); Self::PARTS].map(|()| {
            let watch = Stopwatch::start();
            let operations = probe::fma_chains(self.level, self.iterations);
            operations as f64 / watch.seconds() / 1e9
        });
        median(&parts)
    }
}

/// How fast one core can read memory.
#[derive(Clone, Debug)]
pub struct ReadProbe {
    level: Level,
    buffer: Vec<f32>,
    /// Elements before the first whole cache line of the buffer: vectors that straddle two lines cost up to 5 %.
    start: usize,
    /// The pieces of a sample.
    pieces: u64,
    /// The piece to go on with.
    next: usize,
}

impl ReadProbe {
    /// The buffer for last-level caches of up to 32 MiB, in bytes.
    pub const DEFAULT_BYTES: usize = 256 << 20;

    /// Seconds of a sample. More than those of the FMA probe, because the bandwidth varies more from one moment to the
    /// next: quartiles at 1.5 % from the median against 0.5 % on a shared machine. Not the median of parts, because work
    /// that reads memory meets the slow moments in the same proportion.
    const SAMPLE_SECONDS: f64 = 5e-3;

    /// What is swept at once, in bytes: 0.4 ms at 40 GB/s.
    const PIECE_BYTES: usize = 16 << 20;

    /// How large a buffer has to be so that a last-level cache of this size, in bytes, is of no help.
    ///
    /// Eight times the size: caches keep a part of what is swept over them. On a Zen 5 core with 32 MiB a buffer of
    /// 128 MiB reads 2.5 % faster than long arrays do, and one of 256 MiB as fast as one of 512.
    pub const fn bytes_for(last_level_cache: usize) -> usize {
        let bytes = last_level_cache.saturating_mul(8);
        if bytes > Self::DEFAULT_BYTES { bytes } else { Self::DEFAULT_BYTES }
    }

    /// A probe of the bandwidth with the loads and prefetches of `level`, on a buffer of this many bytes, which is
    /// written once here.
    ///
    /// A buffer that fits a cache probes that cache.
    pub fn new(level: Level, bytes: usize) -> Self {
        const LINE_BYTES: usize = 64;
        const ELEMENT_BYTES: usize = size_of::<f32>();
        // Not zeros, which could be one page of the operating system many times over.
        let buffer = vec![1.0; (bytes + LINE_BYTES) / ELEMENT_BYTES];
        let start = buffer.as_ptr().align_offset(LINE_BYTES).min(LINE_BYTES / ELEMENT_BYTES);
        let mut probe = Self { level, buffer, start, pieces: 1, next: 0 };
        probe.pieces = calibrate(Self::SAMPLE_SECONDS, |pieces| {
            let watch = Stopwatch::start();
            probe.sweep(pieces);
            watch.seconds()
        });
        probe
    }

    /// The bandwidth now, in GB/s. Takes 5 to 10 ms, going on in the buffer where the last sample ended, and leaves the
    /// caches full of the buffer.
    pub fn sample(&mut self) -> f64 {
        let watch = Stopwatch::start();
        let bytes = self.sweep(self.pieces);
        bytes as f64 / watch.seconds() / 1e9
    }

    /// Reads the next pieces, as many as told, and gives their bytes.
    fn sweep(&mut self, pieces: u64) -> usize {
        let buffer = &self.buffer[self.start..];
        let count = (size_of_val(buffer) / Self::PIECE_BYTES).max(1);
        let length = buffer.len() / count;
        let mut bytes = 0;
        for _ in 0..pieces {
            let piece = &buffer[self.next * length..][..length];
            probe::read_sweep(self.level, piece);
            bytes += size_of_val(piece);
            self.next = (self.next + 1) % count;
        }
        bytes
    }
}

/// The probes that are sampled around timed work. They belong to the core that they run on: make and use them on the
/// thread that does the work, best on a pinned one ([`crate::pin::pinned`]).
#[derive(Clone, Debug, Default)]
pub struct Probes {
    /// The multiply-add peak.
    pub fma: Option<FmaProbe>,
    /// The read bandwidth.
    pub read: Option<ReadProbe>,
}

impl Probes {
    /// For work that is limited by arithmetic.
    pub fn compute(level: Level) -> Self {
        Self { fma: Some(FmaProbe::new(level)), read: None }
    }

    /// For work that is limited by reading memory; `bytes` as for [`ReadProbe::new`].
    pub fn memory(level: Level, bytes: usize) -> Self {
        Self { fma: None, read: Some(ReadProbe::new(level, bytes)) }
    }

    /// For work that may be limited by either; `bytes` as for [`ReadProbe::new`].
    pub fn both(level: Level, bytes: usize) -> Self {
        Self { fma: Some(FmaProbe::new(level)), read: Some(ReadProbe::new(level, bytes)) }
    }

    /// The ceilings now.
    pub fn sample(&mut self) -> Ceilings {
        // In this order: for some milliseconds after a sweep of the memory a core multiplies 1 % slower. The next work
        // is in that time, so its ceiling has to be as well.
        let read_gbytes_per_s = self.read.as_mut().map(ReadProbe::sample);
        let gflops = self.fma.as_ref().map(FmaProbe::sample);
        Ceilings { gflops, read_gbytes_per_s }
    }
}

/// What [`Probes::sample`] found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceilings {
    /// The multiply-add peak of the core, in GFLOP/s, if it is probed.
    pub gflops: Option<f64>,
    /// The read bandwidth of the core, in GB/s, if it is probed.
    pub read_gbytes_per_s: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_has_ceilings() {
        for &level in Level::available() {
            let mut probes = Probes::both(level, 1 << 22);
            let found = probes.sample();
            println!("{}: {found:?}", level.isa());
            for figure in [found.gflops, found.read_gbytes_per_s] {
                assert!(figure.is_some_and(|figure| figure.is_finite() && figure > 0.0), "{}", level.isa());
            }
        }
        assert_eq!(Probes::default().sample(), Ceilings { gflops: None, read_gbytes_per_s: None });
    }

    #[test]
    fn pieces_go_round_and_stay_inside() {
        let level = Level::best();
        let two_pieces_and_a_half = ReadProbe::PIECE_BYTES * 5 / 2;
        for (bytes, pieces) in [(0, 1), (100, 1), (1 << 16, 1), (two_pieces_and_a_half, 2)] {
            let mut probe = ReadProbe { level, buffer: vec![1.0; bytes / 4 + 16], start: 3, pieces: 1, next: 0 };
            for swept in 1..8 {
                let once = probe.sweep(1);
                assert!(once > 0 && once * pieces <= bytes + 64);
                assert_eq!(probe.next, swept % pieces);
            }
        }
    }

    #[test]
    fn the_buffer_exceeds_the_cache() {
        assert_eq!(ReadProbe::bytes_for(0), ReadProbe::DEFAULT_BYTES);
        assert_eq!(ReadProbe::bytes_for(32 << 20), ReadProbe::DEFAULT_BYTES);
        assert_eq!(ReadProbe::bytes_for(96 << 20), 768 << 20);
    }
}
