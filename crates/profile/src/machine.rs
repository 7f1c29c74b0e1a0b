//! The machine as a whole, and the two names that it goes by.

use serde::{Deserialize, Serialize};

use crate::hash::fingerprint;
use crate::{CacheSize, Caches, Cores, Fit, Profile, Source, features, identity};

/// A machine as this process sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The architecture that the program was compiled for (`x86_64`, `aarch64`, ...).
    pub arch: String,
    /// The maker (`AuthenticAMD`, `GenuineIntel`, `Arm`, ...); empty = unknown.
    pub vendor: String,
    /// The name in the shop; empty = unknown. For people to read: hypervisors and vendors change it freely.
    pub brand: String,
    /// Family of an x86 processor, extended part included; implementer's code of an Arm processor; 0 = unknown.
    pub family: u32,
    /// Model of an x86 processor, extended part included; part number of an Arm processor; 0 = unknown.
    pub model: u32,
    /// Stepping of an x86 processor; variant (high four bits) and revision of an Arm processor.
    pub stepping: u32,
    /// The instruction-set extensions that matter to the kernels, as the standard library detects them.
    pub features: Vec<String>,
    /// Whether the processor says that it is a hypervisor's guest. Only x86 tells.
    pub hypervisor: bool,
    /// Where vendor, brand, family, model, stepping and `hypervisor` come from. (The features are the standard library's,
    /// [`Source::Std`], always; caches and cores have sources of their own.)
    #[serde(default)]
    pub identity_source: Source,
    /// Sizes of the caches.
    pub caches: Caches,
    /// Cores and limits on them.
    pub cores: Cores,
}

impl Machine {
    /// Looks at the machine. Reads some thirty small files on Linux; keep the result.
    ///
    /// Never fails: what cannot be found out is left zero or empty.
    pub fn detect() -> Self {
        let identity = identity::detect();
        Self {
            arch: std::env::consts::ARCH.to_owned(),
            vendor: identity.vendor,
            brand: identity.brand,
            family: identity.family,
            model: identity.model,
            stepping: identity.stepping,
            features: features::detect(),
            hypervisor: identity.hypervisor,
            identity_source: identity.source,
            caches: Caches::detect(),
            cores: Cores::detect(),
        }
    }

    /// The same machine, with the sizes of caches that nobody states as the card of a profile has them, if the profile is of
    /// this very machine.
    #[must_use]
    pub fn completed_by(self, profile: &Profile, fit: Fit) -> Self {
        match (&profile.card, fit) {
            (Some(card), Fit::Exact) => Self { caches: self.caches.or(card.caches), ..self },
            _ => self,
        }
    }

    /// The name that profiles are kept under: 16 hexadecimal digits, the [`fingerprint()`] of architecture, vendor,
    /// family, model, stepping, features (in any order) and cache sizes, as far as these are stated and not measured.
    ///
    /// What may change from one run to the next on the same hardware stays out of it: clock, brand, affinity, quota,
    /// how many CPUs are on line. So a profile that was tuned in one container serves in the next.
    pub fn fingerprint(&self) -> String {
        let mut features: Vec<&str> = self.features.iter().map(String::as_str).collect();
        features.sort_unstable();
        let Caches { l1d, l2, l3, line } = &self.caches;
        // Measured ones are not the same from one run to the next.
        let stated = |cache: &CacheSize| if cache.source == Source::Measured { 0 } else { cache.bytes };
        fingerprint([
            self.arch.clone(),
            self.vendor.clone(),
            format!("{} {} {}", self.family, self.model, self.stepping),
            features.join(" "),
            format!("{} {} {} {line}", stated(l1d), stated(l2), stated(l3)),
        ])
    }

    /// The name of the microarchitecture, for grouping machines in reports and for the names of files: architecture,
    /// vendor, family and model in lower case, such as `x86_64-authenticamd-1a-02` (numbers in hexadecimal).
    ///
    /// Coarser than [`fingerprint`](Self::fingerprint): stepping, features and caches are left out.
    pub fn microarch(&self) -> String {
        let plain = |text: &str| -> String {
            let plain = text.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>();
            if plain.is_empty() { "unknown".to_owned() } else { plain.to_ascii_lowercase() }
        };
        format!("{}-{}-{:02x}-{:02x}", plain(&self.arch), plain(&self.vendor), self.family, self.model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CacheSize, Source};

    fn zen5() -> Machine {
        let size = |bytes| CacheSize { bytes, source: Source::Sysfs, shared_by: 1 };
        Machine {
            arch: "x86_64".to_owned(),
            vendor: "AuthenticAMD".to_owned(),
            brand: "AMD EPYC".to_owned(),
            family: 26,
            model: 2,
            stepping: 1,
            features: ["avx2", "fma", "avx512f"].map(str::to_owned).to_vec(),
            hypervisor: true,
            identity_source: Source::Cpuid,
            caches: Caches { l1d: size(48 << 10), l2: size(1 << 20), l3: size(32 << 20), line: 64 },
            cores: Cores { logical_online: 2, allowed: 2, physical_allowed: 2, ..Cores::default() },
        }
    }

    #[test]
    fn the_fingerprint_is_stable() {
        // A changed value here means that every profile in the world is for another machine: bump the schema instead.
        assert_eq!(zen5().fingerprint(), "cff44d7fd0725b25");
    }

    #[test]
    fn the_fingerprint_ignores_what_may_change() {
        let machine = zen5();
        let mut other = machine.clone();
        other.brand = "AMD EPYC 9B45".to_owned();
        other.features.reverse();
        other.hypervisor = false;
        other.cores = Cores { quota: Some(1.5), ..Cores::default() };
        other.caches.l3.source = Source::Cpuid;
        other.caches.l3.shared_by = 16;
        other.identity_source = Source::Unknown;
        assert_eq!(machine.fingerprint(), other.fingerprint());
    }

    #[test]
    fn a_measured_cache_is_an_unknown_one() {
        let mut unknown = zen5();
        unknown.caches.l2 = CacheSize::default();
        let mut measured = unknown.clone();
        measured.caches.l2 = CacheSize { bytes: 1 << 20, source: Source::Measured, shared_by: 0 };
        assert_eq!(measured.fingerprint(), unknown.fingerprint());
    }

    #[test]
    fn the_fingerprint_tells_machines_apart() {
        let changes: [fn(&mut Machine); 10] = [
            |m| m.arch = "aarch64".to_owned(),
            |m| m.vendor = "GenuineIntel".to_owned(),
            |m| m.family = 25,
            |m| m.model = 26,
            |m| m.stepping = 0,
            |m| m.features.truncate(2),
            |m| m.caches.l1d.bytes = 32 << 10,
            |m| m.caches.l2.bytes = 0,
            |m| m.caches.l3.bytes = 16 << 20,
            |m| m.caches.line = 128,
        ];
        let mut seen = vec![zen5().fingerprint()];
        for change in changes {
            let mut machine = zen5();
            change(&mut machine);
            assert!(!seen.contains(&machine.fingerprint()), "{machine:?}");
            seen.push(machine.fingerprint());
        }
    }

    #[test]
    fn microarchitectures() {
        assert_eq!(zen5().microarch(), "x86_64-authenticamd-1a-02");
        assert_eq!(Machine::default().microarch(), "unknown-unknown-00-00");
        let strange = Machine { vendor: "../É x".to_owned(), ..Machine::default() };
        assert_eq!(strange.microarch(), "unknown-x-00-00");
    }

    #[test]
    fn this_machine_keeps_its_name() {
        let machine = Machine::detect();
        assert_eq!(machine.arch, std::env::consts::ARCH);
        assert_eq!(machine.fingerprint(), Machine::detect().fingerprint());
        let text = serde_json::to_string(&machine).unwrap();
        let back: Machine = serde_json::from_str(&text).unwrap();
        assert_eq!(machine, back);
        assert_eq!(machine.fingerprint(), back.fingerprint());
    }
}
