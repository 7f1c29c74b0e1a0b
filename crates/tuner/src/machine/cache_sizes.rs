//! Sizes of caches by measuring, where neither the system nor the processor states them.

use regard_profile::{CacheSize, Caches, Source};
use regard_simd::Level;

use crate::measure::{ReadProbe, ReadWay, memory};
use crate::stats::median;

/// The caches with their unknown sizes measured. Takes no time if the first and second level are known; a third level that
/// is not stated beside two that are, does not exist.
pub fn measured_caches(level: Level, stated: &Caches) -> Caches {
    if stated.l1d.bytes != 0 && stated.l2.bytes != 0 {
        return *stated;
    }
    stated.or(measure(level))
}

/// All three sizes.
fn measure(level: Level) -> Caches {
    let sizes: Vec<usize> = sizes(memory::room()).collect();
    let rates: Vec<f64> = sizes.iter().map(|bytes| bandwidth(level, *bytes)).collect();
    let edges = edges(&sizes, &rates);
    let size = |i: usize| {
        edges.get(i).map_or(CacheSize::default(), |bytes| CacheSize {
            bytes: *bytes,
            source: Source::Measured,
            shared_by: 0,
        })
    };
    Caches { l1d: size(0), l2: size(1), l3: size(2), line: 0 }
}

/// Sizes of buffers, in bytes: from 8 KiB to 256 MiB, those of powers of two and half as much again. There is one at a time, which
/// may take two parts of the memory that there is `room` of: the step beyond a cache has to be among them.
fn sizes(room: usize) -> impl Iterator<Item = usize> {
    let most = room.saturating_mul(2).min(1 << 28);
    (13..=28).flat_map(|log| [1 << log, 3 << (log - 1)]).filter(move |bytes| *bytes <= most)
}

/// The bandwidth of reading a buffer again and again, in GB/s. Without prefetches, and in turn: caches that evict what was
/// used longest ago then lose all of a buffer that is a little too large, which makes the edges sharp.
fn bandwidth(level: Level, bytes: usize) -> f64 {
    let mut probe = ReadProbe::with_way(level, bytes, ReadWay::ALL[0]);
    probe.sample();
    median(&[(); 3].map(|()| probe.sample()))
}

/// The greatest size of each plateau but the last, which is memory: the sizes of the caches, as far as the steps between
/// the sizes tell, at most three.
///
/// A plateau goes on while the rate stays above [`FALL`] of what it began with. What follows its end is a slope, on which
/// no plateau begins, until two sizes in a row have nearly the same rate.
fn edges(sizes: &[usize], rates: &[f64]) -> Vec<usize> {
    /// Of the rate of a plateau: below that it is over. On Zen 4 one core reads L2 at 117 GB/s and L3 at 98, 0.84 of that;
    /// rates of one level differ by less than 0.93.
    const FALL: f64 = 0.88;
    /// Two rates that are the same but for noise.
    const FLAT: f64 = 0.92;
    /// The number of levels that caches have.
    const LEVELS: usize = 3;
    let mut edges = Vec::new();
    let mut at = 0;
    while at < rates.len() && edges.len() < LEVELS {
        // The best so far: small buffers spend time on their ends.
        let mut top = rates[at];
        let mut end = at;
        while end + 1 < rates.len() && rates[end + 1] >= FALL * top {
            end += 1;
            top = top.max(rates[end]);
        }
        if end + 1 == rates.len() {
            break;
        }
        edges.push(sizes[end]);
        at = end + 1;
        while at + 1 < rates.len() && rates[at + 1] < FLAT * rates[at] {
            at += 1;
        }
    }
    edges
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rates of a machine with these caches and these bandwidths, of which there is one more.
    fn made_up(caches: &[usize], bandwidths: &[f64], noise: f64) -> (Vec<usize>, Vec<f64>) {
        let sizes: Vec<usize> = sizes(usize::MAX).collect();
        let rate = |(i, bytes): (usize, &usize)| {
            let level = caches.iter().position(|cache| bytes <= cache).unwrap_or(caches.len());
            // Half as much again is half in the next level.
            let above = level > 0 && *bytes < 2 * caches[level - 1];
            let rate = if above { (bandwidths[level] * bandwidths[level - 1]).sqrt() } else { bandwidths[level] };
            rate * (1.0 + noise * [0.0, 1.0, -1.0, 0.5][i % 4])
        };
        let rates = sizes.iter().enumerate().map(rate).collect();
        (sizes, rates)
    }

    #[test]
    fn edges_of_made_up_machines() {
        for noise in [0.0, 0.02, 0.035] {
            let (sizes, rates) = made_up(&[32 << 10, 1 << 20, 32 << 20], &[400.0, 200.0, 90.0, 30.0], noise);
            assert_eq!(edges(&sizes, &rates), [32 << 10, 1 << 20, 32 << 20], "noise {noise}");
            let (sizes, rates) = made_up(&[48 << 10, 2 << 20], &[300.0, 120.0, 12.0], noise);
            assert_eq!(edges(&sizes, &rates), [48 << 10, 2 << 20], "noise {noise}");
            let (sizes, rates) = made_up(&[128 << 10, 12 << 20], &[200.0, 110.0, 60.0], noise);
            assert_eq!(edges(&sizes, &rates), [128 << 10, 12 << 20], "noise {noise}");
        }
    }

    #[test]
    fn a_machine_without_edges_has_no_caches() {
        assert_eq!(edges(&[1, 2, 4], &[5.0, 5.0, 5.0]), [0; 0]);
        assert_eq!(edges(&[], &[]), [0; 0]);
        // And never more than three.
        let sizes: Vec<usize> = (0..20).collect();
        let rates: Vec<f64> = (0..20).map(|i| 100.0 / f64::from(1 << (i / 2))).collect();
        assert_eq!(edges(&sizes, &rates).len(), 3);
    }

    #[test]
    fn small_machines_have_small_buffers() {
        assert_eq!(
            [sizes(usize::MAX).max(), sizes(75 << 20).max(), sizes(0).max()],
            [Some(256 << 20), Some(128 << 20), None]
        );
    }

    #[test]
    fn stated_sizes_are_kept() {
        let size = |bytes| CacheSize { bytes, source: Source::Cpuid, shared_by: 1 };
        let stated = Caches { l1d: size(32 << 10), l2: size(1 << 20), l3: CacheSize::default(), line: 64 };
        assert_eq!(measured_caches(Level::best(), &stated), stated);
    }

    /// On a machine that states its caches the measurement finds the first level, which nobody else uses. (The others
    /// may be shared with anyone.)
    #[test]
    #[ignore = "a measurement: of use on a quiet machine only"]
    fn this_machine_is_measured_as_it_is_stated() {
        let (stated, found) = (Caches::detect(), measure(Level::best()));
        println!("stated {stated:?}\nfound {found:?}");
        let sizes: Vec<usize> = sizes(usize::MAX).collect();
        for bytes in sizes {
            println!("{:>10} {:.1}", bytes, bandwidth(Level::best(), bytes));
        }
        assert_eq!(found.l1d.bytes, stated.l1d.bytes);
    }
}
