//! What the processor calls itself: CPUID on x86-64, MIDR on AArch64.

#[cfg(any(target_arch = "aarch64", test))]
use std::path::Path;

use crate::Source;
#[cfg(any(target_arch = "aarch64", test))]
use crate::files;

/// Vendor, model and so on; empty and zero where unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) vendor: String,
    pub(crate) brand: String,
    pub(crate) family: u32,
    pub(crate) model: u32,
    pub(crate) stepping: u32,
    pub(crate) hypervisor: bool,
    pub(crate) source: Source,
}

/// The identity of this machine's processor.
pub(crate) fn detect() -> Identity {
    #[cfg(target_arch = "x86_64")]
    return x86();
    #[cfg(target_arch = "aarch64")]
    return arm(Path::new("/"));
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return Identity::default();
}

#[cfg(target_arch = "x86_64")]
fn x86() -> Identity {
    let cpuid = raw_cpuid::CpuId::new();
    let mut identity = Identity { source: Source::Cpuid, ..Identity::default() };
    if let Some(vendor) = cpuid.get_vendor_info() {
        identity.vendor = vendor.as_str().trim().to_owned();
    }
    if let Some(brand) = cpuid.get_processor_brand_string() {
        identity.brand = brand.as_str().trim().to_owned();
    }
    if let Some(info) = cpuid.get_feature_info() {
        let base = u32::from(info.base_family_id());
        // Not `family_id()`: it adds in eight bits, which a made-up CPUID could overflow.
        identity.family = base + if base == 0xf { u32::from(info.extended_family_id()) } else { 0 };
        let extended = if base >= 6 { u32::from(info.extended_model_id()) } else { 0 };
        identity.model = (extended << 4) | u32::from(info.base_model_id());
        identity.stepping = u32::from(info.stepping_id());
        identity.hypervisor = info.has_hypervisor();
    }
    identity
}

/// Reads MIDR from sysfs, or its parts from `/proc/cpuinfo`, both below `root`.
///
/// Of processors with several kinds of core it is the kind of CPU 0 (sysfs) or of the first CPU listed.
#[cfg(any(target_arch = "aarch64", test))]
fn arm(root: &Path) -> Identity {
    let midr = files::read(&root.join("sys/devices/system/cpu/cpu0/regs/identification/midr_el1"));
    let info = files::read(&root.join("proc/cpuinfo")).unwrap_or_default();
    let midr = midr.as_deref().and_then(parse_midr).map(|identity| Identity { source: Source::Sysfs, ..identity });
    let listed = || parse_arm_cpuinfo(&info).map(|identity| Identity { source: Source::Procfs, ..identity });
    let mut identity = midr.or_else(listed).unwrap_or_default();
    identity.brand = files::parse_field(&info, "model name").unwrap_or_default().to_owned();
    identity
}

/// The register as sysfs prints it (`0x00000000410fd0c1`).
///
/// The family is the implementer's code, the model the part number, the stepping variant and revision as `0xVR`.
#[cfg(any(target_arch = "aarch64", test))]
fn parse_midr(text: &str) -> Option<Identity> {
    let midr = parse_number(text).filter(|&midr| midr != 0)?;
    let bits = |from: u32, count: u32| (midr >> from) & ((1 << count) - 1);
    Some(arm_identity(bits(24, 8), bits(20, 4), bits(4, 12), bits(0, 4)))
}

/// The same four parts from the text of `/proc/cpuinfo`.
#[cfg(any(target_arch = "aarch64", test))]
fn parse_arm_cpuinfo(text: &str) -> Option<Identity> {
    let part = |name| files::parse_field(text, name).and_then(parse_number);
    let implementer = part("CPU implementer")?;
    let (variant, revision) = (part("CPU variant").unwrap_or(0), part("CPU revision").unwrap_or(0));
    Some(arm_identity(implementer & 0xff, variant & 0xf, part("CPU part")? & 0xfff, revision & 0xf))
}

#[cfg(any(target_arch = "aarch64", test))]
fn arm_identity(implementer: u32, variant: u32, part: u32, revision: u32) -> Identity {
    Identity {
        vendor: implementer_name(implementer).to_owned(),
        family: implementer,
        model: part,
        stepping: (variant << 4) | revision,
        ..Identity::default()
    }
}

/// The better known of the codes that Arm assigns; the number itself is kept as the family.
#[cfg(any(target_arch = "aarch64", test))]
fn implementer_name(code: u32) -> &'static str {
    match code {
        0x41 => "Arm",
        0x42 => "Broadcom",
        0x43 => "Cavium",
        0x46 => "Fujitsu",
        0x48 => "HiSilicon",
        0x4e => "NVIDIA",
        0x50 => "APM",
        0x51 => "Qualcomm",
        0x53 => "Samsung",
        0x61 => "Apple",
        0x6d => "Microsoft",
        0xc0 => "Ampere",
        _ => "",
    }
}

/// A decimal or `0x` number of at most 32 bits.
#[cfg(any(target_arch = "aarch64", test))]
fn parse_number(text: &str) -> Option<u32> {
    let text = text.trim();
    let number = match text.strip_prefix("0x") {
        // `from_str_radix` would take a sign.
        Some(hex) if hex.starts_with('+') => return None,
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None => text.parse().ok()?,
    };
    u32::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const NEOVERSE_N1: &str = "processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\n\
                               CPU architecture: 8\nCPU variant\t: 0x3\nCPU part\t: 0xd0c\nCPU revision\t: 1\n";

    #[test]
    fn midr_and_cpuinfo_agree() {
        let identity = parse_midr("0x00000000413fd0c1\n").unwrap();
        assert_eq!(identity.vendor, "Arm");
        assert_eq!((identity.family, identity.model, identity.stepping), (0x41, 0xd0c, 0x31));
        assert_eq!(parse_arm_cpuinfo(NEOVERSE_N1), Some(identity));
    }

    #[test]
    fn malformed_arm_identities() {
        for text in ["", "0x", "zero", "0x0", "0x1ffffffff", "0x+41", "-1", "99999999999999999999"] {
            assert_eq!(parse_midr(text), None, "{text:?}");
        }
        for text in ["", "CPU implementer\t: 0x41", "CPU part: 0xd0c", "CPU implementer: x\nCPU part: 1", "garbage"] {
            assert_eq!(parse_arm_cpuinfo(text), None, "{text:?}");
        }
    }

    #[test]
    fn sysfs_comes_before_cpuinfo() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(arm(root.path()), Identity::default());

        fs::create_dir_all(root.path().join("proc")).unwrap();
        fs::write(root.path().join("proc/cpuinfo"), NEOVERSE_N1).unwrap();
        assert_eq!((arm(root.path()).model, arm(root.path()).source), (0xd0c, Source::Procfs));

        let registers = root.path().join("sys/devices/system/cpu/cpu0/regs/identification");
        fs::create_dir_all(&registers).unwrap();
        fs::write(registers.join("midr_el1"), "0x00000000410fd4f0\n").unwrap();
        assert_eq!((arm(root.path()).model, arm(root.path()).source), (0xd4f, Source::Sysfs));
    }

    #[test]
    fn this_machine_says_something_or_nothing() {
        // Nothing to compare with; it must not panic, and is the same each time.
        assert_eq!(detect(), detect());
    }
}
