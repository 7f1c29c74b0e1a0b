//! The ladder of read bandwidths: a buffer for each level of the memory.

use regard_profile::{Caches, Memory, Read};
use regard_simd::Level;

use super::team::Team;
use super::{SAMPLES, figure};
use crate::measure::{ReadProbe, ReadWay};

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
/// are told.
pub(super) fn rungs(caches: &Caches, threads: usize) -> Vec<Rung> {
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
    // All third-level caches that the threads may lie on.
    let instances = threads.div_ceil(l3.shared_by.max(1));
    let last =
        if l3.bytes > 0 { l3.bytes.saturating_mul(instances) } else { l2.max(l1d.bytes).saturating_mul(threads) };
    let bytes = (ReadProbe::bytes_for(last) / threads).max(8 * l2);
    rungs.push(Rung { memory: Memory::Dram, threads, bytes });
    rungs
}

impl Rung {
    /// Measures it with the loads of a level.
    pub(super) fn measure(self, level: Level, team: &Team) -> Read {
        let Self { memory, threads, bytes } = self;
        // Prefetches are of use beyond the caches only; there each machine wants its own.
        let way = match memory {
            Memory::Dram => ReadProbe::new(level, bytes).way(),
            Memory::L1 | Memory::L2 | Memory::L3 => cached_way(level, bytes),
        };
        let rates = team.rates(SAMPLES, || {
            let mut probe = ReadProbe::with_way(level, bytes, way);
            move || probe.sample()
        });
        Read { memory, threads, bytes, way: way.to_string(), gbytes_per_s: figure(&rates) }
    }
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
        rungs(caches, threads).into_iter().map(|rung| (rung.memory, rung.bytes)).collect()
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
