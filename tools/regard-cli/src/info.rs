//! `regard info`: the machine card.

use std::path::PathBuf;

use clap::Args;
use regard::{Isa, Level, kernel_set};
use regard_kernels::table::{kernels, rows_kernels};
use regard_profile::{CacheSize, CoreClass, Fit, Found, Machine, ProfileError, Source, find, search_path};
use regard_simd::Extension;
use regard_tuner::machine;
use serde::Serialize;

use crate::cli::Global;
use crate::error::CliError;
use crate::profile::{describe_fit, fit_name};
use crate::progress::Reporter;
use crate::setup::Threads;
use crate::{card, output};

/// Shows what the library knows of this machine. Nothing is measured unless asked for.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct InfoArgs {
    /// Measure peaks, read bandwidths and the cost of threads too, which takes some seconds
    #[arg(long)]
    measure: bool,
    /// Threads to measure with, beside one [default: one for each core that this process may use]
    #[arg(long, requires = "measure", value_parser = clap::value_parser!(u16).range(1..), value_name = "N")]
    threads: Option<u16>,
}

const AFTER_HELP: &str = "\
A profile that cannot be used is shown with the reason, and makes the exit code 3.

Examples:
  regard info
  regard info --measure
  regard info --json";

/// Everything on the card.
#[derive(Debug, Serialize)]
pub(crate) struct Card {
    version: &'static str,
    machine: Machine,
    fingerprint: String,
    microarch: String,
    usable_cores: usize,
    /// The level that is used unless an option says otherwise.
    isa: &'static str,
    levels: Vec<LevelCard>,
    kernels_fingerprint: String,
    profile: ProfileCard,
    /// What was measured, now or when the profile was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    measured: Option<regard_profile::Card>,
    #[serde(skip)]
    rejected: Option<ProfileError>,
}

/// A level, found or not.
#[derive(Debug, Serialize)]
struct LevelCard {
    isa: &'static str,
    available: bool,
    /// What it would take.
    missing: Option<String>,
    lanes: usize,
    /// What the machine has beyond the level, as far as kernels use it.
    extensions: Vec<&'static str>,
    /// Kernels for many queries.
    kernels: Vec<&'static str>,
    /// Kernels for few queries.
    rows_kernels: Vec<&'static str>,
}

/// The state of the profile.
#[derive(Debug, Serialize)]
struct ProfileCard {
    /// `none`, `loaded` or `rejected`.
    state: &'static str,
    path: Option<PathBuf>,
    /// `exact`, `microarch` or `similar`: what its machine has to do with this one.
    fit: Option<&'static str>,
    #[serde(skip)]
    fit_in_words: Option<String>,
    entries: Option<usize>,
    reason: Option<String>,
    search_path: Vec<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(args: InfoArgs, global: &Global) -> Result<(), CliError> {
    let mut card = Card::detect()?;
    if args.measure {
        let allowed = card.machine.cores.allowed;
        if let Some(asked) = args.threads.filter(|threads| usize::from(*threads) > allowed) {
            // Each of them would reach its peak, one after the other.
            return Err(CliError::Input(format!("--threads is {asked}, but this process may use {allowed} CPUs only")));
        }
        let threads = Threads::new(args.threads, &card.machine)?;
        let mut reporter = Reporter::new();
        let mut show = |fraction: f64, what: &str| reporter.show(fraction, what);
        let measured = machine::card(Level::from_env()?, &card.machine, &threads.execution(), &mut show);
        card.machine.caches = measured.caches;
        card.measured = Some(measured);
    }
    if global.json {
        output::json(&card)?
    } else {
        output::text(card.to_text())?
    }
    card.rejected.map_or(Ok(()), |error| Err(CliError::Profile(error)))
}

impl Card {
    /// Looks at the machine.
    ///
    /// # Errors
    /// [`CliError::Isa`] if `REGARD_ISA` cannot be had.
    pub(crate) fn detect() -> Result<Self, CliError> {
        let isa = Level::from_env()?.isa().name();
        let machine = Machine::detect();
        let kernels = kernel_set();
        let search_path = search_path(&machine);
        let (mut found, mut measured) = (None, None);
        let (state, path, entries, rejected) = match find(&machine, &kernels) {
            Found::None => ("none", None, None, None),
            Found::Loaded { path, profile, fit } => {
                found = Some(fit);
                measured = profile.card.filter(|_| fit == Fit::Exact);
                ("loaded", Some(path), Some(profile.entries.len()), None)
            }
            Found::Rejected { path, error } => ("rejected", Some(path), None, Some(error)),
        };
        let (fit, fit_in_words) = (found.map(fit_name), found.map(describe_fit));
        let reason = rejected.as_ref().map(ToString::to_string);
        Ok(Self {
            version: env!("CARGO_PKG_VERSION"),
            fingerprint: machine.fingerprint(),
            microarch: machine.microarch(),
            usable_cores: machine.cores.usable(),
            isa,
            levels: Isa::ALL.into_iter().map(|isa| LevelCard::new(isa, &machine)).collect(),
            kernels_fingerprint: kernels.fingerprint,
            profile: ProfileCard { state, path, fit, fit_in_words, entries, reason, search_path },
            measured,
            rejected,
            machine,
        })
    }

    /// The card for people.
    pub(crate) fn to_text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: &str| text.push_str(&format!("{name:<10}{value}\n"));
        let Machine { brand, hypervisor, caches, cores, features, identity_source, .. } = &self.machine;
        let brand = if brand.is_empty() { "unknown processor" } else { brand };
        line("machine", &format!("{brand}{}", if *hypervisor { ", virtual" } else { "" }));
        line("", &format!("{} ({identity_source}; fingerprint {})", self.microarch, self.fingerprint));
        for (name, cache) in [("L1d", &caches.l1d), ("L2", &caches.l2), ("L3", &caches.l3)] {
            line(if name == "L1d" { "caches" } else { "" }, &format!("{name:<4}{}", describe(cache)));
        }
        let quota = match (cores.quota, cores.quota_source) {
            (Some(quota), source) => format!("quota {quota} CPUs ({source})"),
            (None, Source::Unknown) => "quota unknown".to_owned(),
            (None, source) => format!("no quota ({source})"),
        };
        line(
            "cores",
            &format!(
                "{} usable: {} physical behind the {} allowed of {} logical CPUs ({}), {quota}",
                self.usable_cores, cores.physical_allowed, cores.allowed, cores.logical_online, cores.counts_source
            ),
        );
        let threading = if cores.smt { "several CPUs on a core" } else { "one CPU on a core" };
        let nodes = match cores.numa_nodes {
            0 => "NUMA nodes unknown".to_owned(),
            nodes => format!("NUMA nodes: {nodes} ({})", cores.numa_source),
        };
        line("", &format!("{threading}, {nodes}"));
        if !cores.classes.is_empty() {
            let classes = cores.classes.iter().map(|CoreClass { name, physical }| format!("{physical} {name}"));
            line("", &format!("of several kinds: {}", classes.collect::<Vec<_>>().join(", ")));
        }
        line("features", &if features.is_empty() { "none that matter".to_owned() } else { features.join(" ") });
        for (i, level) in self.levels.iter().enumerate() {
            for (j, text) in level.to_text(level.isa == self.isa).iter().enumerate() {
                line(if i == 0 && j == 0 { "levels" } else { "" }, text);
            }
        }
        let ProfileCard { state, path, entries, reason, search_path, fit_in_words, .. } = &self.profile;
        let path = path.as_ref().map_or(String::new(), |path| path.display().to_string());
        match (*state, entries, reason) {
            ("loaded", Some(entries), _) => {
                line("profile", &format!("{path}: {entries} entries"));
                line("", fit_in_words.as_deref().unwrap_or_default());
            }
            ("rejected", _, Some(reason)) => line("profile", &format!("cannot be used: {reason}")),
            _ => {
                line("profile", "none: tiles by the analytic model; `regard tune` makes one. Looked for:");
                search_path.iter().for_each(|path| line("", &path.display().to_string()));
            }
        }
        text += &self.measured.as_ref().map_or(String::new(), card::to_text);
        text.truncate(text.trim_end().len());
        text
    }
}

impl LevelCard {
    fn new(isa: Isa, machine: &Machine) -> Self {
        let level = Level::of(isa).ok();
        let extensions = Extension::ALL.into_iter().filter(|extension| extension.is_available_at(isa));
        Self {
            isa: isa.name(),
            available: level.is_some(),
            missing: level.is_none().then(|| missing(isa, machine)),
            lanes: isa.lanes(),
            extensions: extensions.map(Extension::name).collect(),
            kernels: level.map_or_else(Vec::new, |level| kernels(level).iter().map(|kernel| kernel.name).collect()),
            rows_kernels: level.map_or_else(Vec::new, |level| rows_kernels(level).map(|kernel| kernel.name).collect()),
        }
    }

    /// A line or several.
    fn to_text(&self, used: bool) -> Vec<String> {
        let Self { isa, lanes, extensions, kernels, rows_kernels, missing, .. } = self;
        if let Some(missing) = missing {
            return vec![format!("  {isa:<9} skipped: {missing}")];
        }
        let mark = if used { '*' } else { ' ' };
        let more: String = extensions.iter().map(|extension| format!(" and {extension}")).collect();
        vec![
            format!("{mark} {isa:<9} {lanes:>2} lanes{more}"),
            format!("{:12}many queries: {}", "", kernels.join(" ")),
            format!("{:12}few queries:  {}", "", rows_kernels.join(" ")),
        ]
    }
}

/// Why a level is not available.
fn missing(isa: Isa, machine: &Machine) -> String {
    let (arch, needed): (&str, &[&str]) = match isa {
        Isa::Portable => return String::new(),
        Isa::Avx2 => ("x86_64", &["avx2", "fma", "f16c"]),
        Isa::Avx512 => ("x86_64", &["avx512f", "avx512bw", "avx512dq"]),
        Isa::Neon => ("aarch64", &["neon"]),
    };
    if machine.arch != arch {
        return format!("it is for {arch}, and this is {}", machine.arch);
    }
    let lacking = needed.iter().filter(|feature| !machine.features.iter().any(|found| found == *feature));
    format!("the processor or the operating system lacks {}", lacking.copied().collect::<Vec<_>>().join(", "))
}

/// A cache, with its source and who shares it.
pub(crate) fn describe(cache: &CacheSize) -> String {
    let CacheSize { bytes, source, shared_by } = cache;
    if *bytes == 0 {
        return "unknown".to_owned();
    }
    let size = match bytes {
        bytes if bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        bytes => format!("{} KiB", bytes >> 10),
    };
    let shared = match shared_by {
        0 => String::new(),
        1 => ", one CPU".to_owned(),
        cpus => format!(", shared by {cpus} CPUs"),
    };
    format!("{size} ({source}{shared})")
}
