//! The ceilings of the machine as probes that can be sampled between other work.

use regard_simd::probe::{self, ReadWay};
use regard_simd::{Extension, Level, advise_large_pages};

use super::stopwatch::Stopwatch;
use super::{Around, calibrate, memory};
use crate::stats::median;

/// What is multiplied and added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arithmetic {
    /// f32, one multiply-add at a time.
    #[default]
    F32,
    /// Pairs of bf16, whose products are added in f32.
    Bf16Dots,
    /// Pairs of 16-bit integers, whose products are added in 32 bits: what int8 is multiplied as.
    Int16Dots,
    /// Tiles of bf16, whose products are added in f32.
    Bf16Tiles,
    /// Tiles of bytes, whose products are added in 32 bits, two for each product with a number of 16 bits: int8 is multiplied with
    /// these.
    Int8Tiles,
}

impl Arithmetic {
    /// All but that of f32.
    pub const DOTS: [Self; 4] = [Self::Bf16Dots, Self::Int16Dots, Self::Bf16Tiles, Self::Int8Tiles];
}

/// How fast one core can multiply and add, or do one of the other things that have chains in [`probe`].
#[derive(Clone, Copy, Debug)]
pub struct FmaProbe {
    level: Level,
    chains: Chains,
    /// The iterations of a part.
    iterations: u64,
}

/// What a [`FmaProbe`] runs.
#[derive(Clone, Copy, Debug)]
enum Chains {
    Fma,
    DotBf16,
    DotInt16,
    DotInt8,
    TileBf16,
    TileInt8,
    Exp,
}

impl FmaProbe {
    /// A sample is the median of this many parts: whatever disturbs the core once hits one of them, however long it
    /// takes, and the sample stays what it would have been.
    ///
    /// Work feels the mean of what disturbs it, but longer samples feel less of it than short ones do. Where the work is the
    /// same loop for 5, 20 or 80 ms, so that its fraction ought to be 1, medians of parts on both sides of it make it 0.995,
    /// 0.994 and 0.998 on a Xeon, and 0.996, 0.999 and 1.003 where builds want both of its cores; means of parts 1.004, 1.001
    /// and 1.004, and 1.003, 1.012 and 1.010.
    const PARTS: usize = 3;

    /// Seconds of a part. Long enough for each to have its share of the ticks of the timer, as the work has that is
    /// compared (parts of 0.4 ms give a peak that work of 2 ms misses by 0.7 % even if it is the same loop), and a
    /// sample still takes little time against that in which the clock changes.
    const PART_SECONDS: f64 = 1e-3;

    /// A probe of the f32 peak of `level`. Takes some milliseconds to find how long its samples have to be.
    pub fn new(level: Level) -> Self {
        Self::calibrated(level, Chains::Fma)
    }

    /// The same of the peak of dot products of bf16; `None` where the machine has no instruction for them at the level.
    pub fn dots(level: Level) -> Option<Self> {
        Extension::Bf16.is_available_at(level.isa()).then(|| Self::calibrated(level, Chains::DotBf16))
    }

    /// The same of the peak of dot products of pairs of 16-bit integers, in 10⁹ integer operations per second; `None` where the
    /// machine has no instruction for them at the level.
    pub fn int16_dots(level: Level) -> Option<Self> {
        Extension::Vnni.is_available_at(level.isa()).then(|| Self::calibrated(level, Chains::DotInt16))
    }

    /// The peak of an arithmetic other than f32's; `None` for that, and where the machine does not have it at the level.
    pub fn of_dots(level: Level, arithmetic: Arithmetic) -> Option<Self> {
        match arithmetic {
            Arithmetic::F32 => None,
            Arithmetic::Bf16Dots => Self::dots(level),
            Arithmetic::Int16Dots => Self::int16_dots(level),
            Arithmetic::Bf16Tiles => Self::tiles(level, Chains::TileBf16),
            Arithmetic::Int8Tiles => Self::tiles(level, Chains::TileInt8),
        }
    }

    /// The same of the peak of products of tiles; `None` where the machine has no instruction for them at the level.
    fn tiles(level: Level, chains: Chains) -> Option<Self> {
        Extension::Amx.is_available_at(level.isa()).then(|| Self::calibrated(level, chains))
    }

    /// The same of the peak of dot products of bytes, in 10⁹ integer operations per second; `None` where the machine has no
    /// instruction for them at the level.
    pub fn int8_dots(level: Level) -> Option<Self> {
        probe::int8_chains(level, 0).map(|_| Self::calibrated(level, Chains::DotInt8))
    }

    /// The same of exponentials, in 10⁹ per second.
    pub fn exponentials(level: Level) -> Self {
        Self::calibrated(level, Chains::Exp)
    }

    fn calibrated(level: Level, chains: Chains) -> Self {
        let mut probe = Self { level, chains, iterations: 1 };
        probe.iterations = calibrate(Self::PART_SECONDS, |iterations| {
            let watch = Stopwatch::start();
            probe.chains(iterations);
            watch.seconds()
        });
        probe
    }

    /// Gives the operations.
    fn chains(&self, iterations: u64) -> u64 {
        match self.chains {
            Chains::Fma => probe::fma_chains(self.level, iterations),
            Chains::DotBf16 => probe::bf16_chains(self.level, iterations).unwrap_or(0),
            Chains::DotInt16 => probe::int16_chains(self.level, iterations).unwrap_or(0),
            Chains::DotInt8 => probe::int8_chains(self.level, iterations).unwrap_or(0),
            Chains::TileBf16 => probe::bf16_tile_chains(self.level, iterations).unwrap_or(0),
            // Two products for each one with a number of 16 bits.
            Chains::TileInt8 => probe::int8_tile_chains(self.level, iterations).unwrap_or(0) / 2,
            Chains::Exp => probe::exp_chains(self.level, iterations),
        }
    }

    /// The peak now, in GFLOP/s (10⁹ operations per second). Takes 3 ms and leaves the caches alone.
    pub fn sample(&self) -> f64 {
        let parts = [(); Self::PARTS].map(|()| {
            let watch = Stopwatch::start();
            let operations = self.chains(self.iterations);
            operations as f64 / watch.seconds() / 1e9
        });
        median(&parts)
    }
}

/// How fast one core can read memory.
#[derive(Clone, Debug)]
pub struct ReadProbe {
    level: Level,
    way: ReadWay,
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

    /// The most that is taken to exceed one last-level cache.
    pub const MOST_BYTES: usize = 1 << 30;

    /// How large a buffer has to be so that a last-level cache of this size, in bytes, is of no help; less where that would
    /// take too much of the memory that there is.
    ///
    /// Eight times the size: caches keep a part of what is swept over them. On a Zen 5 core with 32 MiB a buffer of
    /// 128 MiB reads 2.5 % faster than long arrays do, and one of 256 MiB as fast as one of 512.
    ///
    /// But a GiB at most. Caches that are told to be larger than 128 MiB are those of large sockets, most of which guests of a
    /// host share with others, and to write 4 GiB for the first time takes such a guest 2 to 5 s, or half a minute if other
    /// programs need memory. On one with two cores of a Xeon and a stated 480 MiB, buffers of 256, 1024 and 4096 MiB that were
    /// made in all six orders and took turns read 14.6, 14.5 and 13.9 GB/s (medians; 12.0 to 15.2, 12.7 to 15.2, 13.4 to 14.4):
    /// which pages a buffer has makes more of a difference than its size. One of 73 MiB reads 27 GB/s.
    ///
    /// It is in large pages where the system gives them, as those of tensors are ([`Array`](crate::inputs::Array)).
    pub fn bytes_for(last_level_cache: usize) -> usize {
        Self::bytes_exceeding(last_level_cache, 1).min(memory::room())
    }

    /// How large all buffers together have to be to exceed so many caches of this size, whatever memory there is.
    pub(crate) fn bytes_exceeding(cache: usize, caches: usize) -> usize {
        let most = Self::MOST_BYTES.saturating_mul(caches.max(1));
        cache.saturating_mul(8).saturating_mul(caches).clamp(Self::DEFAULT_BYTES, most)
    }

    /// A probe of the bandwidth with the loads of `level`, on a buffer of this many bytes, which is written once here. Tries
    /// every way of reading and keeps the fastest, which takes a quarter of a second.
    ///
    /// A buffer that fits a cache probes that cache.
    pub fn new(level: Level, bytes: usize) -> Self {
        let mut probe = Self::with_way(level, bytes, ReadWay::ALL[0]);
        let way = fastest_way(&mut |way| {
            probe.way = way;
            probe.sample()
        });
        Self { way, ..probe }
    }

    /// The same with one way of reading.
    pub fn with_way(level: Level, bytes: usize, way: ReadWay) -> Self {
        const LINE_BYTES: usize = 64;
        const ELEMENT_BYTES: usize = size_of::<f32>();
        // Not zeros, which could be one page of the operating system many times over.
        let len = (bytes + LINE_BYTES) / ELEMENT_BYTES;
        let mut buffer = Vec::with_capacity(len);
        advise_large_pages(buffer.spare_capacity_mut());
        buffer.resize(len, 1.0);
        let start = buffer.as_ptr().align_offset(LINE_BYTES).min(LINE_BYTES / ELEMENT_BYTES);
        Self { level, way, buffer, start, pieces: 1, next: 0 }.at(level, way)
    }

    /// The same buffer read with the loads of this level, in this way.
    #[must_use]
    pub fn at(mut self, level: Level, way: ReadWay) -> Self {
        (self.level, self.way) = (level, way);
        self.pieces = calibrate(Self::SAMPLE_SECONDS, |pieces| {
            let watch = Stopwatch::start();
            self.sweep(pieces);
            watch.seconds()
        });
        self
    }

    /// The way of reading.
    pub fn way(&self) -> ReadWay {
        self.way
    }

    /// Reads in another way from now on.
    pub fn set_way(&mut self, way: ReadWay) {
        self.way = way;
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
            probe::read_sweep(self.level, self.way, piece);
            bytes += size_of_val(piece);
            self.next = (self.next + 1) % count;
        }
        bytes
    }
}

/// The fastest way of reading, where `sample` gives the rate of a way once. All of them take turns; the better ones have more
/// of them.
pub fn fastest_way(sample: &mut dyn FnMut(ReadWay) -> f64) -> ReadWay {
    /// Rounds, and the ways that stay in each.
    const STAGES: [(usize, usize); 2] = [(2, ReadWay::ALL.len()), (4, 4)];
    let mut ways = ReadWay::ALL.map(|way| (way, Vec::new()));
    for (rounds, stay) in STAGES {
        for _ in 0..rounds {
            for (way, rates) in &mut ways[..stay] {
                rates.push(sample(*way));
            }
        }
        ways[..stay].sort_by(|(_, a), (_, b)| median(b).total_cmp(&median(a)));
    }
    ways[0].0
}

/// The probes that are sampled around timed work. They belong to the core that they run on: make and use them on the
/// thread that does the work, best on a pinned one ([`crate::pin::pinned`]).
#[derive(Clone, Debug, Default)]
pub struct Probes {
    /// The multiply-add peak.
    pub fma: Option<FmaProbe>,
    /// The peak of the dot products that the work is done with, if it is: [`FmaProbe::of_dots`].
    pub dots: Option<FmaProbe>,
    /// The read bandwidth.
    pub read: Option<ReadProbe>,
}

impl Probes {
    /// For work that is limited by arithmetic.
    pub fn compute(level: Level) -> Self {
        Self { fma: Some(FmaProbe::new(level)), ..Self::default() }
    }

    /// For work that is limited by reading memory; `bytes` as for [`ReadProbe::new`].
    pub fn memory(level: Level, bytes: usize) -> Self {
        Self { read: Some(ReadProbe::new(level, bytes)), ..Self::default() }
    }

    /// For work that may be limited by either; `bytes` as for [`ReadProbe::new`].
    pub fn both(level: Level, bytes: usize) -> Self {
        Self { read: Some(ReadProbe::new(level, bytes)), ..Self::compute(level) }
    }

    /// The ceilings now.
    pub fn sample(&mut self) -> Ceilings {
        Ceilings { read_gbytes_per_s: self.read(), ..self.peaks() }
    }
}

impl Around for Probes {
    fn peaks(&mut self) -> Ceilings {
        let [gflops, dot_gflops] = [&self.fma, &self.dots].map(|probe| probe.as_ref().map(FmaProbe::sample));
        Ceilings { gflops, dot_gflops, read_gbytes_per_s: None }
    }

    fn read(&mut self) -> Option<f64> {
        self.read.as_mut().map(ReadProbe::sample)
    }
}

/// The ceilings at some time, or their medians.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ceilings {
    /// The multiply-add peak, in GFLOP/s, if it is probed.
    pub gflops: Option<f64>,
    /// The peak of the dot products that the work is done with, of bf16 or of integers, in 10⁹ operations per second, if it is
    /// probed.
    pub dot_gflops: Option<f64>,
    /// The read bandwidth, in GB/s, if it is probed.
    pub read_gbytes_per_s: Option<f64>,
}

impl Ceilings {
    /// The peak of some arithmetic, in GFLOP/s, if it is probed.
    pub fn peak(&self, arithmetic: Arithmetic) -> Option<f64> {
        match arithmetic {
            Arithmetic::F32 => self.gflops,
            _ => self.dot_gflops,
        }
    }

    /// The means of those before and after some work.
    pub(super) fn mean(before: Self, after: Self) -> Self {
        let mean_of = |figure: fn(&Self) -> Option<f64>| Some((figure(&before)? + figure(&after)?) / 2.0);
        Self {
            gflops: mean_of(|ceilings| ceilings.gflops),
            dot_gflops: mean_of(|ceilings| ceilings.dot_gflops),
            read_gbytes_per_s: mean_of(|ceilings| ceilings.read_gbytes_per_s),
        }
    }

    /// The median of each.
    pub(super) fn medians(all: &[Self]) -> Self {
        let median_of = |figure: fn(&Self) -> Option<f64>| {
            let figures: Option<Vec<f64>> = all.iter().map(figure).collect();
            figures.as_deref().map(median)
        };
        Self {
            gflops: median_of(|ceilings| ceilings.gflops),
            dot_gflops: median_of(|ceilings| ceilings.dot_gflops),
            read_gbytes_per_s: median_of(|ceilings| ceilings.read_gbytes_per_s),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_has_ceilings() {
        for &level in Level::available() {
            let mut probes = Probes { dots: FmaProbe::dots(level), ..Probes::both(level, 1 << 22) };
            let found = probes.sample();
            println!("{}: {found:?}", level.isa());
            for figure in [found.gflops, found.read_gbytes_per_s] {
                assert!(figure.is_some_and(|figure| figure.is_finite() && figure > 0.0), "{}", level.isa());
            }
            assert_eq!(found.dot_gflops.is_some(), Extension::Bf16.is_available_at(level.isa()));
            assert_eq!(found.dot_gflops, found.peak(Arithmetic::Bf16Dots));
            let integers = FmaProbe::of_dots(level, Arithmetic::Int16Dots).map(|probe| probe.sample());
            assert_eq!(integers.is_some(), Extension::Vnni.is_available_at(level.isa()));
            assert!(integers.is_none_or(|gops| gops.is_finite() && gops > 0.0));
            assert!(FmaProbe::of_dots(level, Arithmetic::F32).is_none());
        }
        assert_eq!(Probes::default().sample(), Ceilings::default());
    }

    #[test]
    fn medians_are_of_what_is_always_there() {
        let ceilings = |gflops, read| Ceilings { gflops: Some(gflops), dot_gflops: None, read_gbytes_per_s: read };
        let found = Ceilings::medians(&[ceilings(3.0, Some(1.0)), ceilings(1.0, None), ceilings(2.0, Some(5.0))]);
        assert_eq!(found, ceilings(2.0, None));
    }

    #[test]
    fn the_fastest_way_is_kept() {
        // The last way is the best one, but for its first sample.
        let ways = ReadWay::ALL.len();
        let best = ReadWay::ALL[ways - 1];
        let mut samples = 0;
        let found = fastest_way(&mut |way| {
            samples += 1;
            if way == best && samples > ways { 9.0 } else { 5.0 }
        });
        assert_eq!(found, best);
        assert_eq!(samples, 2 * ways + 4 * 4);
    }

    #[test]
    fn pieces_go_round_and_stay_inside() {
        let level = Level::best();
        let two_pieces_and_a_half = ReadProbe::PIECE_BYTES * 5 / 2;
        for (bytes, pieces) in [(0, 1), (100, 1), (1 << 16, 1), (two_pieces_and_a_half, 2)] {
            let (way, buffer) = (ReadWay::ALL[0], vec![1.0; bytes / 4 + 16]);
            let mut probe = ReadProbe { level, way, buffer, start: 3, pieces: 1, next: 0 };
            for swept in 1..8 {
                let once = probe.sweep(1);
                assert!(once > 0 && once * pieces <= bytes + 64);
                assert_eq!(probe.next, swept % pieces);
            }
        }
    }

    #[test]
    fn the_buffer_exceeds_the_cache() {
        let exceeding = ReadProbe::bytes_exceeding;
        assert_eq!([exceeding(0, 1), exceeding(32 << 20, 1)], [ReadProbe::DEFAULT_BYTES; 2]);
        assert_eq!([exceeding(96 << 20, 1), exceeding(48 << 20, 2)], [768 << 20; 2]);
        // What guests of a host are told has an end, which is that of one cache.
        assert_eq!([exceeding(480 << 20, 1), exceeding(usize::MAX, 3)], [1, 3].map(|caches| caches << 30));
        let here = ReadProbe::bytes_for(32 << 20);
        assert!(here > 0 && here <= ReadProbe::DEFAULT_BYTES);
    }
}
