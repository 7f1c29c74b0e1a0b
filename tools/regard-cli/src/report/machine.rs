//! The machine card of a report, and the limits of one core.

use regard::{Isa, Level, Setup};
use regard_profile::{Caches, Card, CoreClass, Cores, Memory, Operation, Source};
use regard_simd::Extension;
use regard_tuner::measure::FmaProbe;
use regard_tuner::pin;
use regard_tuner::stats::median;
use serde_json::json;

use super::data::{ComputeRoof, Machine, MemoryRoof, Roofs};
use crate::error::CliError;
use crate::info;
use crate::setup::Threads;

/// The card, as `regard info` has it.
pub(super) fn card(setup: &Setup) -> Result<Machine, CliError> {
    let details = serde_json::to_value(info::Card::detect()?);
    let details = details.map_err(|error| CliError::Failed(format!("cannot write JSON: {error}")))?;
    let machine = &setup.machine;
    let name = if machine.brand.is_empty() { machine.microarch() } else { machine.brand.clone() };
    let extensions = Extension::ALL.into_iter().filter(|extension| extension.is_available_at(setup.level.isa()));
    let extensions: String = extensions.map(|extension| format!(" + {extension}")).collect();
    let profile = match &setup.profile {
        Some(profile) => format!("{} classes tuned", profile.entries.len()),
        None => "none: the analytic model".to_owned(),
    };
    let regard_profile::Machine { family, model, stepping, .. } = machine;
    let mut rows = vec![
        ("Processor", format!("{}, family {family:#x}, model {model:#x}, stepping {stepping}", machine.microarch())),
        ("Virtual", if machine.hypervisor { "yes, a hypervisor's guest" } else { "not that it says" }.to_owned()),
    ];
    rows.extend(cores(&machine.cores));
    rows.extend(caches(&machine.caches));
    rows.extend([
        ("Level", format!("{}{extensions}", setup.level.isa())),
        ("Features", machine.features.join(" ")),
        ("Profile", profile),
        ("System", system()),
    ]);
    let files = [
        ("Microcode", "/sys/devices/system/cpu/cpu0/microcode/version"),
        ("Governor", "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        ("Boost", "/sys/devices/system/cpu/cpufreq/boost"),
        ("No turbo", "/sys/devices/system/cpu/intel_pstate/no_turbo"),
    ];
    rows.extend(files.into_iter().filter_map(|(name, path)| Some((name, text_of(path)?))));
    rows.extend(memory_of_the_machine().map(|text| ("Memory", text)));
    rows.extend([
        ("Compiled for", format!("{} {}", std::env::consts::ARCH, std::env::consts::OS)),
        ("Regard", env!("CARGO_PKG_VERSION").to_owned()),
        ("Fingerprint", machine.fingerprint()),
    ]);
    Ok(Machine {
        name,
        fingerprint: machine.fingerprint(),
        isa: setup.level.isa().to_string(),
        usable_cores: machine.cores.usable(),
        card: rows.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        details: json!({ "info": details, "governor": text_of("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") }),
    })
}

/// Cores, and what limits them.
fn cores(cores: &Cores) -> Vec<(&'static str, String)> {
    let quota = match (cores.quota, cores.quota_source) {
        (Some(quota), source) => format!("quota {quota} CPUs ({source})"),
        (None, Source::Unknown) => "quota unknown".to_owned(),
        (None, source) => format!("no quota ({source})"),
    };
    let threading = if cores.smt { "several CPUs on a core" } else { "one CPU on a core" };
    let nodes = match cores.numa_nodes {
        0 => "unknown".to_owned(),
        nodes => format!("{nodes} ({})", cores.numa_source),
    };
    let mut rows = vec![
        (
            "Cores",
            format!(
                "{} usable: {} physical behind the {} allowed of {} logical CPUs ({}), {threading}, {quota}",
                cores.usable(),
                cores.physical_allowed,
                cores.allowed,
                cores.logical_online,
                cores.counts_source
            ),
        ),
        ("NUMA nodes", nodes),
    ];
    if !cores.classes.is_empty() {
        let classes = cores.classes.iter().map(|CoreClass { name, physical }| format!("{physical} {name}"));
        rows.push(("Core classes", classes.collect::<Vec<_>>().join(", ")));
    }
    rows
}

/// A line for each cache, with its source.
fn caches(caches: &Caches) -> Vec<(&'static str, String)> {
    let all = [("L1d", &caches.l1d), ("L2", &caches.l2), ("L3", &caches.l3)];
    all.map(|(name, cache)| (name, info::describe(cache))).to_vec()
}

/// The kernel of the operating system.
fn system() -> String {
    let release = text_of("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{} {release}", std::env::consts::OS).trim().to_owned()
}

/// How much memory there is, and whether large pages come by themselves: without them, reading is slower.
fn memory_of_the_machine() -> Option<String> {
    let text = text_of("/proc/meminfo")?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = kib.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let pages = text_of("/sys/kernel/mm/transparent_hugepage/enabled");
    let pages = pages.as_deref().and_then(|text| text.split_once('[')?.1.split_once(']'));
    let pages = pages.map_or_else(String::new, |(setting, _)| format!(", transparent large pages: {setting}"));
    Some(format!("{:.1} GiB{pages}", kib as f64 / f64::from(1 << 20)))
}

/// A small file of the system, if there is one.
fn text_of(path: &str) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}

/// What the machine allows: the measured half of its card, of one and of all threads, and what of it limits the cases of one
/// core. Takes some seconds.
pub(super) fn limits(setup: &Setup, show: &mut dyn FnMut(f64, &str)) -> Result<(Card, Roofs), CliError> {
    let threads = Threads::new(None, &setup.machine)?;
    let card = regard_tuner::machine::card(setup.level, &setup.machine, &threads.execution(), show);
    let integers = pin::pinned(|| {
        const SAMPLES: usize = 9;
        FmaProbe::int16_dots(setup.level).map(|probe| median(&[(); SAMPLES].map(|()| probe.sample())))
    });
    let roofs = roofs(&card, setup, integers.value);
    Ok((card, roofs))
}

/// The peaks of all levels up to the one in use, and the bandwidth of caches and memory: those of one thread.
fn roofs(card: &Card, setup: &Setup, integers: Option<f64>) -> Roofs {
    let used = setup.level.isa();
    let levels = Level::available().iter().map(|level| level.isa()).filter(|isa| *isa <= used);
    let compute = levels.map(|isa| (Operation::Fma, isa, "f32")).chain([(Operation::DotBf16, used, "bf16")]);
    let roof = |(operation, isa, what): (Operation, Isa, &str)| {
        let gflops = card.peak(operation, isa.name(), 1)?;
        Some(ComputeRoof { name: format!("{isa} {what}"), gflops })
    };
    let integers = integers.map(|gflops| ComputeRoof { name: format!("{used} int16"), gflops });
    let memory = card.reads.iter().filter(|read| read.threads == 1).map(|read| MemoryRoof {
        name: memory_name(read.memory).to_owned(),
        bytes: read.bytes,
        gbytes_per_s: read.gbytes_per_s.median,
    });
    Roofs { compute: compute.filter_map(roof).chain(integers).collect(), memory: memory.collect() }
}

/// A memory, for people.
pub(super) fn memory_name(memory: Memory) -> &'static str {
    match memory {
        Memory::L1 => "L1",
        Memory::L2 => "L2",
        Memory::L3 => "L3",
        Memory::Dram => "memory",
    }
}
