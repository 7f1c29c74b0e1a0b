//! The ladder of read bandwidths: a buffer for each level of the memory.

use regard_profile::{Caches, Memory, Read};
use regard_simd::Level;

use super::team::Team;
use super::{SAMPLES, figure};
use crate::measure::{ReadProbe, ReadWay, fastest_way};

/// A rung, with the buffer of each thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rung {
    pub(super) memory: Memory,
    threads: usize,
    bytes: usize,
}

/// The rungs for so many threads. A level that the machine lacks, or that is not larger than the one before, has none.
///
/// A buffer takes half of its level, or of a thread's share of it, so that stacks and tables have room beside it; and in
/// the third level no more than what lies safely beyond the second, as guests of a host seldom have the size that they
/// are told. All buffers for memory together take no more than `room`.
pub(super) fn rungs(caches: &Caches, threads: usize, room: usize) -> Vec<Rung> {
    let Caches { l1d, l3, .. } = caches;
    let (l1, l2) = (caches.l1d_or_default(), caches.l2_share_or_default());
    let mut rungs = vec![Rung { memory: Memory::L1, threads, bytes: l1 / 2 }];
    let mut add = |memory, bytes: usize, below: usize| {
        if bytes >= 2 * below {
            rungs.push(Rung { memory, threads, bytes });
        }
    };
    add(Memory::L2, l2 / 2, l1);
    if l3.bytes > 0 {
        // Only these threads: more sharers than there are do not ask for their shares.
        let sharers = threads.min(l3.shared_by.max(1));
        add(Memory::L3, (l3.bytes / 2 / sharers).min(4 * l2), l2);
    }
    // All last-level caches that the threads may lie on.
    let (last, instances) = match l3.bytes {
        0 => (l2.max(l1d.bytes), threads),
        bytes => (bytes, threads.div_ceil(l3.shared_by.max(1))),
    };
    let bytes = (ReadProbe::bytes_exceeding(last, instances) / threads).max(8 * l2).min(room / threads);
    rungs.push(Rung { memory: Memory::Dram, threads, bytes });
    rungs
}

impl Rung {
    /// Measures it with the loads of a level.
    pub(super) fn measure(self, level: Level, team: &Team) -> Read {
        let Self { memory, threads, bytes } = self;
        let (way, rates) = match memory {
            Memory::Dram => memory_rates(level, bytes, team),
            Memory::L1 | Memory::L2 | Memory::L3 => {
                let way = cached_way(level, bytes);
                let probe = || ReadProbe::with_way(level, bytes, way);
                let sampler = |mut probe: ReadProbe| move || probe.sample();
                (way, team.rates(SAMPLES, || sampler(probe())))
            }
        };
        Read { memory, threads, bytes, way: way.to_string(), gbytes_per_s: figure(&rates) }
    }
}

/// The rates of reading memory in the way that is the fastest for all threads at once. Prefetches are of use here, and each
/// machine wants its own.
///
/// Every thread has one buffer for all of that: writing to memory for the first time takes more time than all samples.
fn memory_rates(level: Level, bytes: usize, team: &Team) -> (ReadWay, Vec<f64>) {
    team.work(|together| {
        let mut probe = ReadProbe::with_way(level, bytes, ReadWay::ALL[0]);
        let mut rate = |way| {
            probe.set_way(way);
            together(&mut || probe.sample())
        };
        let way = fastest_way(&mut rate);
        (way, (0..SAMPLES).map(|_| rate(way)).collect())
    })
}

/// The best way of reading what a cache holds: of those without prefetches, and the first with them.
fn cached_way(level: Level, bytes: usize) -> ReadWay {
    let mut probe = ReadProbe::with_way(level, bytes, ReadWay::ALL[0]);
    let ways = ReadWay::ALL.into_iter().filter(|way| way.to_string().ends_with("none"));
    let mut best = (ReadWay::ALL[0], 0.0);
    for way in ways {
        probe.set_way(way);
        let rate = probe.sample().max(probe.sample());
        if rate > best.1 {
            best = (way, rate);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use regard_profile::{CacheSize, Source};

    fn caches(l1d: usize, l2: usize, l3: usize, shared_by: usize) -> Caches {
        let size = |bytes, shared_by| CacheSize { bytes, source: Source::Sysfs, shared_by };
        Caches { l1d: size(l1d, 2), l2: size(l2, 2), l3: size(l3, shared_by), line: 64 }
    }

    fn bytes(caches: &Caches, threads: usize) -> Vec<(Memory, usize)> {
        rungs(caches, threads, usize::MAX).into_iter().map(|rung| (rung.memory, rung.bytes)).collect()
    }

    #[test]
    fn buffers_fit_their_level_and_not_the_one_below() {
        let zen4 = caches(32 << 10, 1 << 20, 32 << 20, 16);
        let wanted =
            [(Memory::L1, 16 << 10), (Memory::L2, 512 << 10), (Memory::L3, 4 << 20), (Memory::Dram, 256 << 20)];
        assert_eq!(bytes(&zen4, 1), wanted);
        // Eight threads on one third level of 32 MiB, and 16 on two of them.
        assert_eq!(bytes(&zen4, 8)[2..], [(Memory::L3, 2 << 20), (Memory::Dram, 32 << 20)]);
        let two = caches(32 << 10, 1 << 20, 32 << 20, 8);
        assert_eq!(bytes(&two, 16)[2..], [(Memory::L3, 2 << 20), (Memory::Dram, 32 << 20)]);
    }

    #[test]
    fn memory_is_not_used_up() {
        // A share of a large socket: a stated 480 MiB behind a hypervisor.
        let guest = caches(48 << 10, 2 << 20, 480 << 20, 2);
        let [alone, both] = [1, 2].map(|threads| bytes(&guest, threads)[3]);
        assert_eq!([alone, both], [(Memory::Dram, 1 << 30), (Memory::Dram, 512 << 20)]);
        // A socket of twelve third-level caches is exceeded as one of them is.
        let large = caches(32 << 10, 1 << 20, 96 << 20, 16);
        assert_eq!(bytes(&large, 192)[3], (Memory::Dram, 48 << 20));
        let tight = rungs(&guest, 2, 100 << 20);
        assert_eq!((tight[3].memory, tight[3].bytes), (Memory::Dram, 50 << 20));
        // Whatever the threads want to have beyond their second level.
        let many = rungs(&caches(32 << 10, 2 << 20, 32 << 20, 64), 64, 256 << 20);
        assert_eq!(many.last().map(|rung| rung.bytes), Some(4 << 20));
    }

    #[test]
    fn levels_that_are_missing_or_too_small_have_no_rung() {
        let none = bytes(&caches(128 << 10, 12 << 20, 0, 0), 1);
        assert_eq!(none.iter().map(|(memory, _)| *memory).collect::<Vec<_>>(), [Memory::L1, Memory::L2, Memory::Dram]);
        // A third level that 64 threads share: none of them has more there than in its second level.
        let crowded = bytes(&caches(32 << 10, 1 << 20, 32 << 20, 64), 64);
        assert!(crowded.iter().all(|(memory, _)| *memory != Memory::L3), "{crowded:?}");
        // Unknown everything still has its ends.
        let unknown = bytes(&Caches::default(), 2);
        assert!(unknown.len() >= 2 && unknown.iter().all(|(_, bytes)| *bytes > 0), "{unknown:?}");
    }
}
