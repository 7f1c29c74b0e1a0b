//! Whether a profile may be used here. Pure; the store supplies the path for the errors.

use std::ops::RangeInclusive;
use std::path::Path;

use crate::error::short;
use crate::{Config, Crossover, Entry, Fit, KernelSet, Machine, Profile, ProfileError, SCHEMA};

/// The schema number alone, which is looked at before the rest is understood.
pub(crate) fn schema(path: &Path, found: u64) -> Result<(), ProfileError> {
    let path = path.to_owned();
    match found {
        _ if found == u64::from(SCHEMA) => Ok(()),
        _ if found > u64::from(SCHEMA) => Err(ProfileError::NewerSchema { path, found, supported: SCHEMA }),
        _ => Err(ProfileError::OlderSchema { path, found, supported: SCHEMA }),
    }
}

/// The machines that a profile may be for.
#[derive(Clone, Copy)]
pub(crate) enum Fits<'a> {
    /// This one and no other.
    Machine(&'a Machine),
    /// Any of the same microarchitecture as this one.
    Microarch(&'a Machine),
    /// Any.
    Any,
}

/// Everything that a profile must satisfy to be used on such a machine with these kernels.
pub(crate) fn usable(path: &Path, profile: &Profile, fits: Fits<'_>, kernels: &KernelSet) -> Result<(), ProfileError> {
    schema(path, profile.schema.into())?;
    match fits {
        Fits::Machine(machine) => same_machine(path, profile, machine)?,
        Fits::Microarch(machine) => match same_machine(path, profile, machine) {
            Err(ProfileError::WrongMachine { .. })
                if Fit::of(&profile.machine, machine).is_some_and(|fit| matches!(fit, Fit::Exact | Fit::Microarch)) => {
            }
            other => other?,
        },
        Fits::Any => consistent(path, profile)?,
    }
    same_kernels(path, profile, &kernels.fingerprint)?;
    numbers(path, profile)?;
    // Entries next to each other mostly name the same kernel, which need not be looked up again.
    let mut known = "";
    for (index, entry) in profile.entries.iter().enumerate() {
        same_key_block(path, profile, index)?;
        let others = entry.rivals.iter().chain(&entry.runner_up).map(|other| &other.config);
        for named in std::iter::once(&entry.config).chain(others) {
            config(path, index, named, kernels, known == named.kernel)?;
            known = &named.kernel;
        }
    }
    for (index, found) in profile.crossovers.iter().enumerate() {
        crossover(path, index, found, kernels)?;
    }
    Ok(())
}

/// The machine of a profile is the one that it says.
pub(crate) fn consistent(path: &Path, profile: &Profile) -> Result<(), ProfileError> {
    let described = profile.machine.fingerprint();
    let stated = &profile.fingerprint;
    if *stated != described {
        return Err(ProfileError::Inconsistent { path: path.to_owned(), stated: short(stated), described });
    }
    Ok(())
}

pub(crate) fn same_machine(path: &Path, profile: &Profile, machine: &Machine) -> Result<(), ProfileError> {
    consistent(path, profile)?;
    let (stated, here) = (&profile.fingerprint, machine.fingerprint());
    if here != *stated {
        let found = named(stated, &profile.machine);
        return Err(ProfileError::WrongMachine { path: path.to_owned(), found, expected: named(&here, machine) });
    }
    Ok(())
}

pub(crate) fn same_kernels(path: &Path, profile: &Profile, expected: &str) -> Result<(), ProfileError> {
    let found = &profile.tool.kernels_fingerprint;
    if found == expected {
        return Ok(());
    }
    let expected = short(expected);
    Err(ProfileError::WrongKernels { path: path.to_owned(), found: short(found), expected })
}

/// Every measurement is finite and not negative.
///
/// JSON has neither infinities nor NaN, so this is mostly about profiles that are to be written.
pub(crate) fn numbers(path: &Path, profile: &Profile) -> Result<(), ProfileError> {
    let check = |value: f64, field: &dyn Fn() -> String| {
        if value.is_finite() && value >= 0.0 {
            return Ok(());
        }
        Err(ProfileError::BadNumber { path: path.to_owned(), field: field(), value })
    };
    check(profile.run.seconds, &|| "run.seconds".to_owned())?;
    check(profile.machine.cores.quota.unwrap_or(0.0), &|| "machine.cores.quota".to_owned())?;
    if let Some(measured) = &profile.measured {
        check(measured.read_gbytes_per_s, &|| "measured.read_gbytes_per_s".to_owned())?;
        for (isa, &gflops) in &measured.fma_gflops {
            check(gflops, &|| format!("measured.fma_gflops.{}", short(isa)))?;
        }
    }
    for (field, value) in profile.card.iter().flat_map(|card| card.numbers()) {
        check(value, &|| format!("card.{field}"))?;
    }
    for (i, entry) in profile.entries.iter().enumerate() {
        check(entry.gflops, &|| format!("entries[{i}].gflops"))?;
        check(entry.fraction_of_peak, &|| format!("entries[{i}].fraction_of_peak"))?;
        check(entry.ratio_to_model, &|| format!("entries[{i}].ratio_to_model"))?;
        for end in entry.ratio_interval.into_iter().flatten() {
            check(end, &|| format!("entries[{i}].ratio_interval"))?;
        }
        let ratio = entry.runner_up.as_ref().map_or(0.0, |second| second.ratio);
        check(ratio, &|| format!("entries[{i}].runner_up.ratio"))?;
        for rival in &entry.rivals {
            check(rival.ratio, &|| format!("entries[{i}].rivals.ratio"))?;
        }
    }
    Ok(())
}

/// A kernel that exists, if that is not known already, with blocks that it accepts.
fn config(path: &Path, entry: usize, config: &Config, kernels: &KernelSet, known: bool) -> Result<(), ProfileError> {
    let path = || path.to_owned();
    if !known && !kernels.names.contains(&config.kernel) {
        return Err(ProfileError::UnknownKernel { path: path(), entry, name: short(&config.kernel) });
    }
    let within = |field, value: usize, limits: &RangeInclusive<usize>| {
        if limits.contains(&value) {
            return Ok(());
        }
        let (least, greatest) = (*limits.start(), *limits.end());
        Err(ProfileError::OutOfRange { path: path(), entry, field, value, least, greatest })
    };
    within("key_block", config.key_block, &kernels.key_block_limits)?;
    if !config.key_block.is_multiple_of(2) {
        return Err(ProfileError::OddKeyBlock { path: path(), entry, found: config.key_block });
    }
    within("query_block", config.query_block, &kernels.query_block_limits)
}

/// All entries of a level, element type and width have one key block for the lanes kernels and one for the rows kernels. It
/// decides the order of summation, and a sequence must give the same bits in whatever batch it stands, though its class
/// (which counts the padding) may differ there.
pub(crate) fn same_key_block(path: &Path, profile: &Profile, entry: usize) -> Result<(), ProfileError> {
    let this = &profile.entries[entry];
    let like_this = |other: &&Entry| {
        let [a, b] = [&this.class, &other.class];
        let alike = a.isa == b.isa && a.dtype == b.dtype && a.borrowed().is_wide() == b.borrowed().is_wide();
        alike && this.config.takes_rows() == other.config.takes_rows()
    };
    let first = profile.entries.iter().find(like_this).unwrap_or(this);
    if first.config.key_block == this.config.key_block {
        return Ok(());
    }
    Err(ProfileError::KeyBlocks {
        path: path.to_owned(),
        entry,
        found: this.config.key_block,
        expected: first.config.key_block,
    })
}

/// A crossover of a kernel that exists, within what its blocks may be.
fn crossover(path: &Path, index: usize, crossover: &Crossover, kernels: &KernelSet) -> Result<(), ProfileError> {
    if !kernels.names.contains(&crossover.kernel) {
        let name = short(&crossover.kernel);
        return Err(ProfileError::UnknownKernel { path: path.to_owned(), entry: index, name });
    }
    let greatest = *kernels.query_block_limits.end();
    if crossover.rows_up_to <= greatest {
        return Ok(());
    }
    let (field, value) = ("rows_up_to", crossover.rows_up_to);
    Err(ProfileError::OutOfRange { path: path.to_owned(), entry: index, field, value, least: 0, greatest })
}

fn named(fingerprint: &str, machine: &Machine) -> String {
    if machine.brand.is_empty() { fingerprint.to_owned() } else { format!("{fingerprint} ({})", short(&machine.brand)) }
}
