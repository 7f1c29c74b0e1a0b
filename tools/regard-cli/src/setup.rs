//! What a command computes on: the machine, its profile, threads.

use rayon::ThreadPool;
use regard::{Dtype, Execution, Level, Setup, kernel_set};
use regard_kernels::table::{Kernel, kernels, rows_kernels};
use regard_profile::{Found, Machine};
use regard_simd::Extension;
use regard_tuner::measure::Arithmetic;

use crate::error::CliError;

/// The machine, with its profile unless `no_profile` says otherwise.
///
/// The library sets a profile aside that cannot be used. Here it is an error: somebody made it, and would want to know.
pub(crate) fn detect(no_profile: bool) -> Result<Setup, CliError> {
    let level = Level::from_env()?;
    let mut machine = Machine::detect();
    let profile = match no_profile {
        true => None,
        false => match regard_profile::find(&machine, &kernel_set()) {
            Found::None => None,
            Found::Loaded { profile, fit, .. } => {
                machine = machine.completed_by(&profile, fit);
                Some(profile.into())
            }
            Found::Rejected { error, .. } => {
                return Err(CliError::Input(format!("{error}; --no-profile computes without it")));
            }
        },
    };
    Ok(Setup { level, machine, profile })
}

/// What a kernel needs beyond its level to multiply numbers as they are: f32 in parts on tile registers is f32.
pub(crate) fn extension(level: Level, kernel: &str) -> Option<Extension> {
    let as_they_are = |kernel: &Kernel| kernel.extension.filter(|_| kernel.dtype != Dtype::F32);
    let lanes = kernels(level).iter().map(|kernel| (kernel.name, as_they_are(kernel)));
    let rows = rows_kernels(level).map(|kernel| (kernel.name, kernel.extension));
    lanes.chain(rows).find(|(name, _)| *name == kernel).and_then(|(_, extension)| extension)
}

/// What kernels of a level with these names multiply, for keys of this element type: the fastest of it.
pub(crate) fn arithmetic(level: Level, kernels: &[&str], dtype: Dtype) -> Arithmetic {
    let needs = |wanted| kernels.iter().any(|kernel| extension(level, kernel) == Some(wanted));
    match () {
        () if needs(Extension::Amx) && dtype == Dtype::Int8 => Arithmetic::Int8Tiles,
        () if needs(Extension::Amx) => Arithmetic::Bf16Tiles,
        () if needs(Extension::Bf16) => Arithmetic::Bf16Dots,
        () if needs(Extension::Vnni) => Arithmetic::Int16Dots,
        () => Arithmetic::F32,
    }
}

/// The threads of a command.
#[derive(Debug)]
pub(crate) struct Threads(Option<ThreadPool>);

impl Threads {
    /// As many as asked for, or else one for each core that this process may use.
    ///
    /// # Errors
    /// [`CliError::Failed`] if the system does not grant that many.
    pub(crate) fn new(threads: Option<u16>, machine: &Machine) -> Result<Self, CliError> {
        let threads = threads.map_or_else(|| machine.cores.usable(), usize::from);
        if threads == 1 {
            return Ok(Self(None));
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.map(|pool| Self(Some(pool)))
            .map_err(|error| CliError::Failed(format!("cannot start {threads} threads: {error}")))
    }

    /// How to run a plan on them.
    pub(crate) fn execution(&self) -> Execution<'_> {
        self.0.as_ref().map_or(Execution::Serial, Execution::Pool)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.execution().threads()
    }
}
