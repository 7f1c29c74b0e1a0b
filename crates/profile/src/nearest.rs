//! Profiles of other machines, for one that was not tuned.

use std::path::PathBuf;

use crate::check::Fits;
use crate::paths::Found;
use crate::store::load_fitting;
use crate::{Caches, KernelSet, Machine, Profile};

/// What the machine of a profile has to do with this one; a lesser one is a better one.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub enum Fit {
    /// It is the same: fingerprints agree.
    Exact,
    /// It is of the same microarchitecture ([`Machine::microarch`]): another stepping, or another share of a cache.
    Microarch,
    /// It has the same instruction sets, and caches of nearly the same sizes: their distance, in factors of two.
    Similar {
        /// The sum of the absolute differences of the binary logarithms of the three sizes, up to [`Fit::MOST_OCTAVES`].
        octaves: f64,
    },
}

impl Fit {
    /// The farthest that a similar machine may be. Block sizes are chosen from halves and doubles; caches that are two
    /// factors of two apart altogether still ask for nearly the same, beyond that the model knows more than a stranger.
    pub const MOST_OCTAVES: f64 = 2.0;

    /// What `tuned` has to do with the machine `here`; `None` if its timings say nothing.
    pub fn of(tuned: &Machine, here: &Machine) -> Option<Self> {
        if tuned.fingerprint() == here.fingerprint() {
            return Some(Self::Exact);
        }
        if tuned.arch != here.arch || vectors(tuned) != vectors(here) {
            return None;
        }
        // Where nobody knows what it is, its name is no help.
        if tuned.microarch() == here.microarch() && tuned.family != 0 {
            return Some(Self::Microarch);
        }
        let octaves = octaves(&tuned.caches, &here.caches);
        (octaves <= Self::MOST_OCTAVES).then_some(Self::Similar { octaves })
    }
}

/// Which of the vector instructions that decide between kernels a machine has.
fn vectors(machine: &Machine) -> Vec<bool> {
    const DECISIVE: [&str; 10] =
        ["avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512bf16", "avx512vnni", "neon", "bf16"];
    DECISIVE.iter().map(|decisive| machine.features.iter().any(|feature| feature == decisive)).collect()
}

/// How many factors of two lie between the caches of two machines; unknown sizes count as what is assumed of them.
fn octaves(a: &Caches, b: &Caches) -> f64 {
    let sizes = |caches: &Caches| [caches.l1d_or_default(), caches.l2_or_default(), caches.l3_or_default()];
    let pairs = sizes(a).into_iter().zip(sizes(b));
    pairs.map(|(a, b)| ((a as f64).log2() - (b as f64).log2()).abs()).sum()
}

/// The usable profile of the machine that is nearest to this one; of those equally near the one with nearer caches, then the
/// first.
pub(crate) fn nearest(paths: impl Iterator<Item = PathBuf>, machine: &Machine, kernels: &KernelSet) -> Option<Found> {
    let mut best: Option<(Fit, f64, PathBuf, Profile)> = None;
    for path in paths {
        let Ok(profile) = load_fitting(&path, Fits::Any, kernels) else { continue };
        let Some(fit) = Fit::of(&profile.machine, machine) else { continue };
        let apart = octaves(&profile.machine.caches, &machine.caches);
        if best.as_ref().is_none_or(|(best, least, ..)| (fit, apart) < (*best, *least)) {
            best = Some((fit, apart, path, profile));
        }
    }
    let (fit, _, path, profile) = best?;
    Some(Found::Loaded { path, profile: Box::new(profile), fit })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CacheSize, Source};

    /// Sizes of caches in KiB.
    fn machine(vendor: &str, model: u32, features: &[&str], caches: [usize; 3]) -> Machine {
        let [l1d, l2, l3] = caches.map(|kib| CacheSize { bytes: kib << 10, source: Source::Sysfs, shared_by: 1 });
        Machine {
            arch: "x86_64".to_owned(),
            vendor: vendor.to_owned(),
            family: 25,
            model,
            features: features.iter().map(|feature| (*feature).to_owned()).collect(),
            caches: Caches { l1d, l2, l3, line: 64 },
            ..Machine::default()
        }
    }

    const AVX512: [&str; 6] = ["avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq"];
    const ZEN4: [usize; 3] = [32, 1024, 32 << 10];

    #[test]
    fn machines_are_the_same_of_a_kind_similar_or_strangers() {
        let here = machine("AuthenticAMD", 17, &AVX512, ZEN4);
        assert_eq!(Fit::of(&here, &here), Some(Fit::Exact));
        // A guest with a part of the third level.
        let guest = machine("AuthenticAMD", 17, &AVX512, [32, 1024, 4 << 10]);
        assert_eq!(Fit::of(&guest, &here), Some(Fit::Microarch));
        // Zen 5 has half as much again of the first level.
        let zen5 = machine("AuthenticAMD", 68, &AVX512, [48, 1024, 32 << 10]);
        let Some(Fit::Similar { octaves }) = Fit::of(&zen5, &here) else { panic!("they are similar") };
        assert!((octaves - 1.5_f64.log2()).abs() < 1e-12, "{octaves}");
        // Intel's of the same size, as far as that goes, and one whose caches are quite different.
        let near = machine("GenuineIntel", 143, &AVX512, [48, 2048, 32 << 10]);
        assert!(matches!(Fit::of(&near, &here), Some(Fit::Similar { .. })));
        assert_eq!(Fit::of(&machine("GenuineIntel", 143, &AVX512, [48, 2048, 105 << 10]), &here), None);
        // Other instructions are another machine, whatever the caches.
        assert_eq!(Fit::of(&machine("AuthenticAMD", 33, &AVX512[..3], ZEN4), &here), None);
        let arm = Machine { arch: "aarch64".to_owned(), ..here.clone() };
        assert_eq!(Fit::of(&arm, &here), None);
    }

    #[test]
    fn nobody_is_of_the_same_unknown_kind() {
        let unknown = |l2| Machine { family: 0, ..machine("", 0, &[], [32, l2, 1024]) };
        assert!(matches!(Fit::of(&unknown(512), &unknown(1024)), Some(Fit::Similar { .. })));
    }

    #[test]
    fn fits_are_in_order() {
        let order = [Fit::Exact, Fit::Microarch, Fit::Similar { octaves: 0.5 }, Fit::Similar { octaves: 1.5 }];
        assert!(order.is_sorted_by(|a, b| a < b));
    }
}
