//! The machine card of a report, and the limits of one core.

use regard::{Level, Setup};
use regard_simd::Extension;
use regard_tuner::measure::{FmaProbe, ReadProbe};
use regard_tuner::stats::median;
use serde_json::json;

use super::data::{ComputeRoof, Machine, MemoryRoof, Roofs};
use super::html;
use crate::error::CliError;
use crate::info::Card;

/// The card, as `regard info` has it.
pub(super) fn card(setup: &Setup) -> Result<Machine, CliError> {
    let details = serde_json::to_value(Card::detect()?);
    let details = details.map_err(|error| CliError::Failed(format!("cannot write JSON: {error}")))?;
    let machine = &setup.machine;
    let cores = &machine.cores;
    let name = if machine.brand.is_empty() { machine.microarch() } else { machine.brand.clone() };
    let cache = |size: &regard_profile::CacheSize| match size.bytes {
        0 => "unknown".to_owned(),
        bytes => html::bytes(bytes),
    };
    let caches = &machine.caches;
    let extensions = Extension::ALL.into_iter().filter(|extension| extension.is_available_at(setup.level.isa()));
    let extensions: String = extensions.map(|extension| format!(" + {extension}")).collect();
    let profile = match &setup.profile {
        Some(profile) => format!("{} classes tuned", profile.entries.len()),
        None => "none: the analytic model".to_owned(),
    };
    let rows = [
        ("Architecture", machine.microarch()),
        ("Virtual", if machine.hypervisor { "yes" } else { "not that it says" }.to_owned()),
        ("Cores", format!("{} usable, {} logical CPUs on line", cores.usable(), cores.logical_online)),
        ("Caches", format!("{} L1d · {} L2 · {} L3", cache(&caches.l1d), cache(&caches.l2), cache(&caches.l3))),
        ("Level", format!("{}{extensions}", setup.level.isa())),
        ("Profile", profile),
        ("System", system()),
        ("Compiled for", format!("{} {}", std::env::consts::ARCH, std::env::consts::OS)),
        ("Regard", env!("CARGO_PKG_VERSION").to_owned()),
        ("Fingerprint", machine.fingerprint()),
    ];
    Ok(Machine {
        name,
        fingerprint: machine.fingerprint(),
        isa: setup.level.isa().to_string(),
        usable_cores: cores.usable(),
        card: rows.map(|(name, value)| (name.to_owned(), value)).to_vec(),
        details: json!({ "info": details, "governor": governor() }),
    })
}

/// The kernel of the operating system.
fn system() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{} {}", std::env::consts::OS, release.trim()).trim().to_owned()
}

/// How the clock is governed, if the system says so.
fn governor() -> Option<String> {
    let governor = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").ok()?;
    Some(governor.trim().to_owned())
}

/// The peaks of all levels up to the one in use, and the bandwidth of caches and memory. Takes two seconds.
pub(super) fn roofs(setup: &Setup) -> Roofs {
    const SAMPLES: usize = 5;
    let sampled = |probe: FmaProbe| median(&[(); SAMPLES].map(|()| probe.sample()));
    let levels = Level::available().iter().filter(|level| level.isa() <= setup.level.isa());
    let mut compute: Vec<ComputeRoof> = levels
        .map(|level| ComputeRoof { name: format!("{} f32", level.isa()), gflops: sampled(FmaProbe::new(*level)) })
        .collect();
    if let Some(probe) = FmaProbe::dots(setup.level) {
        compute.push(ComputeRoof { name: format!("{} bf16", setup.level.isa()), gflops: sampled(probe) });
    }
    let caches = &setup.machine.caches;
    let (l1d, l2, l3) = (caches.l1d_or_default(), caches.l2_share_or_default(), caches.l3_or_default());
    let memory = [
        ("L1", l1d / 2),
        ("L2", l2 / 2),
        // The third level is shared, perhaps with other guests: a small part of it.
        ("L3", (l3 / 4).clamp(2 * l2, 16 << 20)),
        ("memory", ReadProbe::bytes_for(l3)),
    ];
    let memory = memory.map(|(name, bytes)| {
        let mut probe = ReadProbe::new(setup.level, bytes);
        let gbytes_per_s = median(&[(); SAMPLES].map(|()| probe.sample()));
        MemoryRoof { name: name.to_owned(), bytes, gbytes_per_s }
    });
    Roofs { compute, memory: memory.to_vec() }
}
