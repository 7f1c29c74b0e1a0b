//! Sizes of the caches: what the operating system says, else what the processor says, else unknown.

use std::ops::RangeInclusive;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Source, files};

/// One level of cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheSize {
    /// Size of one instance in bytes; 0 = unknown, or there is no such level.
    pub bytes: usize,
    /// Where the size comes from: [`Source::Sysfs`] (`/sys/devices/system/cpu/cpu0/cache`), [`Source::Cpuid`] (leaf 4 or
    /// 0x8000001D), [`Source::Measured`], or nobody: then the `_or_default` accessors of [`Caches`] assume one.
    pub source: Source,
    /// Logical CPUs that share one instance; 0 = unknown. CPUID rounds it up to a power of two.
    pub shared_by: usize,
}

/// The data caches that CPU 0 sees.
///
/// Sizes that no processor has (virtual machines invent some) are taken for unknown. See the `_or_default` accessors
/// for numbers to compute with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caches {
    /// First level, data.
    pub l1d: CacheSize,
    /// Second level.
    pub l2: CacheSize,
    /// Third level.
    pub l3: CacheSize,
    /// Size of a cache line in bytes; 0 = unknown.
    pub line: usize,
}

impl Caches {
    /// The caches of this machine.
    pub fn detect() -> Self {
        let sysfs = read_sysfs(&Path::new("/").join(SYSFS));
        sysfs.or(from_reports(&cpuid_reports(), Source::Cpuid))
    }

    /// Bytes of first-level data cache; 32 KiB where unknown, which few processors of the last 15 years fall short of.
    pub fn l1d_or_default(&self) -> usize {
        or_default(self.l1d.bytes, 32 << 10)
    }

    /// Bytes of second-level cache; 256 KiB where unknown, the least that processors with AVX2 have.
    pub fn l2_or_default(&self) -> usize {
        or_default(self.l2.bytes, 256 << 10)
    }

    /// Bytes of third-level cache; 2 MiB where unknown or absent.
    pub fn l3_or_default(&self) -> usize {
        or_default(self.l3.bytes, 2 << 20)
    }

    /// Bytes of a cache line; 64 where unknown.
    pub fn line_or_default(&self) -> usize {
        or_default(self.line, 64)
    }

    /// Bytes of second-level cache for one thread per physical core.
    ///
    /// Up to two CPUs on one cache are taken for the siblings of one core, which has it for itself; more are a cluster
    /// of cores (efficiency cores, Apple, some Arm), where each has its share.
    pub fn l2_share_or_default(&self) -> usize {
        let sharers = if self.l2.shared_by <= 2 { 1 } else { self.l2.shared_by };
        self.l2_or_default() / sharers
    }

    /// Level by level, what is known here, else what is known there.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        let either = |a: CacheSize, b: CacheSize| if a.bytes != 0 { a } else { b };
        Self {
            l1d: either(self.l1d, other.l1d),
            l2: either(self.l2, other.l2),
            l3: either(self.l3, other.l3),
            line: or_default(self.line, other.line),
        }
    }
}

fn or_default(value: usize, default: usize) -> usize {
    if value != 0 { value } else { default }
}

/// The directory that Linux describes the caches of CPU 0 in.
const SYSFS: &str = "sys/devices/system/cpu/cpu0/cache";

/// Sizes in bytes that are believed, level 1 to 3; generous, since only nonsense is to be kept out. (A hypervisor that
/// reported an L2 of 0 bytes made a BLAS library loop for ever.)
const PLAUSIBLE: [RangeInclusive<usize>; 3] = [4 << 10..=2 << 20, 32 << 10..=128 << 20, 128 << 10..=2 << 30];

/// Line sizes in bytes that are believed (A64FX has 256).
const PLAUSIBLE_LINE: RangeInclusive<usize> = 16..=512;

/// What one source says about one cache that holds data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Report {
    level: usize,
    bytes: usize,
    shared_by: usize,
    line: usize,
}

/// Keeps the first plausible report of each level.
fn from_reports(reports: &[Report], source: Source) -> Caches {
    let size = |level: usize| {
        let believed = |r: &&Report| r.level == level && PLAUSIBLE[level - 1].contains(&r.bytes);
        reports.iter().find(believed).map_or(CacheSize::default(), |r| CacheSize {
            bytes: r.bytes,
            source,
            shared_by: r.shared_by,
        })
    };
    let line = reports.iter().map(|r| r.line).find(|line| PLAUSIBLE_LINE.contains(line));
    Caches { l1d: size(1), l2: size(2), l3: size(3), line: line.unwrap_or(0) }
}

/// What a directory `cache/index*` of sysfs says.
fn read_sysfs(directory: &Path) -> Caches {
    // No processor has ten caches per core; the indices have no gaps.
    let reports: Vec<_> = (0..10).filter_map(|i| read_index(&directory.join(format!("index{i}")))).collect();
    from_reports(&reports, Source::Sysfs)
}

/// One directory `index*`, unless it is a cache for instructions.
fn read_index(directory: &Path) -> Option<Report> {
    let text = |name: &str| files::read(&directory.join(name));
    if text("type")? == "Instruction" {
        return None;
    }
    Some(Report {
        level: text("level")?.parse().ok()?,
        bytes: parse_size(&text("size")?)?,
        shared_by: text("shared_cpu_list").and_then(|list| files::parse_cpu_list(&list)).map_or(0, |cpus| cpus.len()),
        line: text("coherency_line_size").and_then(|size| size.parse().ok()).unwrap_or(0),
    })
}

/// A size such as `48K`, in bytes.
fn parse_size(text: &str) -> Option<usize> {
    let text = text.trim();
    let (digits, unit) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], 1 << 10),
        b'M' => (&text[..text.len() - 1], 1 << 20),
        b'G' => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    digits.parse::<usize>().ok()?.checked_mul(unit)
}

/// What CPUID says about the caches of the CPU that this happens to run on.
#[cfg(target_arch = "x86_64")]
fn cpuid_reports() -> Vec<Report> {
    use raw_cpuid::native_cpuid::cpuid_count;

    /// Intel's leaf, and AMD's of the same format.
    const LEAVES: [u32; 2] = [4, 0x8000_001d];
    for leaf in LEAVES {
        // Beyond the highest leaf of its range, CPUID may answer for another leaf.
        if leaf > cpuid_count(leaf & 0x8000_0000, 0).eax {
            continue;
        }
        let subleaves = (0..10).map(|i| cpuid_count(leaf, i)).take_while(|r| r.eax & 0x1f != 0);
        let reports: Vec<_> = subleaves.filter_map(|r| decode_subleaf(r.eax, r.ebx, r.ecx)).collect();
        if !reports.is_empty() {
            return reports;
        }
    }
    Vec::new()
}

#[cfg(not(target_arch = "x86_64"))]
fn cpuid_reports() -> Vec<Report> {
    Vec::new()
}

/// One subleaf of the cache parameters; `None` for an instruction cache or a size beyond `usize`.
///
/// Decoded here and not by `raw_cpuid::CacheParameter`, whose additions overflow on registers that are all ones.
#[cfg(any(target_arch = "x86_64", test))]
fn decode_subleaf(eax: u32, ebx: u32, ecx: u32) -> Option<Report> {
    const DATA: u32 = 1;
    const UNIFIED: u32 = 3;
    if ![DATA, UNIFIED].contains(&(eax & 0x1f)) {
        return None;
    }
    let line = (ebx & 0xfff) as usize + 1;
    let ways = (ebx >> 22) as usize + 1;
    let partitions = (ebx >> 12 & 0x3ff) as usize + 1;
    let sets = (ecx as usize).checked_add(1)?;
    Some(Report {
        level: (eax >> 5 & 7) as usize,
        bytes: (line * partitions * ways).checked_mul(sets)?,
        shared_by: (eax >> 14 & 0xfff) as usize + 1,
        line,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("48K"), Some(48 << 10));
        assert_eq!(parse_size("32M\n"), Some(32 << 20));
        assert_eq!(parse_size("1G"), Some(1 << 30));
        assert_eq!(parse_size("512"), Some(512));
        for text in ["", "K", "-1K", "1.5M", "48 K", "48KB", "99999999999999999999", "18446744073709551615G", "é"] {
            assert_eq!(parse_size(text), None, "{text:?}");
        }
    }

    #[test]
    fn subleaves() {
        // Zen 5: 48 KiB, 12 ways, 64 sets of 64-byte lines, one thread; then the instruction cache.
        let (eax, ebx, ecx) = (1 | 1 << 5, 63 | 11 << 22, 63);
        let report = decode_subleaf(eax, ebx, ecx).unwrap();
        assert_eq!(report, Report { level: 1, bytes: 48 << 10, shared_by: 1, line: 64 });
        assert_eq!(decode_subleaf(2 | 1 << 5, ebx, ecx), None);
        assert_eq!(decode_subleaf(0, 0, 0), None);
        assert_eq!(decode_subleaf(u32::MAX, u32::MAX, u32::MAX), None);
        // All ones in a cache that claims to hold data is a size to disbelieve, not to overflow on.
        let absurd = decode_subleaf(3 | 2 << 5, u32::MAX, u32::MAX);
        assert_eq!(from_reports(absurd.as_slice(), Source::Cpuid).l2, CacheSize::default());
    }

    fn index(root: &Path, i: usize, level: &str, kind: &str, size: &str, cpus: &str) {
        let directory = root.join(format!("index{i}"));
        fs::create_dir_all(&directory).unwrap();
        for (name, text) in [("level", level), ("type", kind), ("size", size), ("shared_cpu_list", cpus)] {
            fs::write(directory.join(name), format!("{text}\n")).unwrap();
        }
        fs::write(directory.join("coherency_line_size"), "64\n").unwrap();
    }

    #[test]
    fn sysfs() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(read_sysfs(root.path()), Caches::default());

        index(root.path(), 0, "1", "Data", "48K", "0,8");
        index(root.path(), 1, "1", "Instruction", "32K", "0,8");
        index(root.path(), 2, "2", "Unified", "1024K", "0,8");
        index(root.path(), 3, "3", "Unified", "32768K", "0-15");
        let size = |bytes, shared_by| CacheSize { bytes, source: Source::Sysfs, shared_by };
        let wanted = Caches { l1d: size(48 << 10, 2), l2: size(1 << 20, 2), l3: size(32 << 20, 16), line: 64 };
        assert_eq!(read_sysfs(root.path()), wanted);
    }

    #[test]
    fn nonsense_is_unknown_and_the_next_source_is_asked() {
        let root = tempfile::tempdir().unwrap();
        index(root.path(), 0, "1", "Data", "0K", "0");
        index(root.path(), 1, "2", "Unified", "", "0");
        index(root.path(), 2, "3", "Unified", "32768K", "nobody");
        index(root.path(), 3, "9", "Unified", "32768K", "0");
        let caches = read_sysfs(root.path());
        assert_eq!((caches.l1d.bytes, caches.l2.bytes, caches.l3.bytes), (0, 0, 32 << 20));
        assert_eq!(caches.l3.shared_by, 0);

        let report = |level| Report { level, bytes: 64 << 10, shared_by: 1, line: 64 };
        let caches = caches.or(from_reports(&[report(1), report(2), report(3)], Source::Cpuid));
        assert_eq!((caches.l1d.bytes, caches.l1d.source), (64 << 10, Source::Cpuid));
        assert_eq!((caches.l3.bytes, caches.l3.source), (32 << 20, Source::Sysfs));
    }

    #[test]
    fn defaults_stand_in_for_zero_only() {
        let mut caches = Caches::default();
        assert_eq!((caches.l1d_or_default(), caches.l2_or_default()), (32 << 10, 256 << 10));
        assert_eq!((caches.l3_or_default(), caches.line_or_default()), (2 << 20, 64));
        caches.l2 = CacheSize { bytes: 4 << 20, source: Source::Sysfs, shared_by: 4 };
        assert_eq!((caches.l2_or_default(), caches.l2_share_or_default()), (4 << 20, 1 << 20));
        caches.l2.shared_by = 2;
        assert_eq!(caches.l2_share_or_default(), 4 << 20);
    }

    #[test]
    fn this_machine_has_plausible_caches() {
        let caches = Caches::detect();
        for (cache, range) in [caches.l1d, caches.l2, caches.l3].iter().zip(PLAUSIBLE) {
            assert!(cache.bytes == 0 || range.contains(&cache.bytes), "{caches:?}");
            assert_eq!(cache.bytes == 0, cache.source == Source::Unknown, "{caches:?}");
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn both_sources_agree_on_the_first_level() {
        let sysfs = read_sysfs(&Path::new("/").join(SYSFS));
        let cpuid = from_reports(&cpuid_reports(), Source::Cpuid);
        // Hybrid processors differ by core, so this only says that both decode to something sensible where both speak.
        if sysfs.l1d.bytes != 0 && cpuid.l1d.bytes != 0 {
            assert!(sysfs.l1d.bytes <= 4 * cpuid.l1d.bytes && cpuid.l1d.bytes <= 4 * sysfs.l1d.bytes);
        }
    }
}
