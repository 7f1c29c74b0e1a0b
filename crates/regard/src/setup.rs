//! What the library knows of the machine: its level, its caches and cores, and the profile that was made for it.

use std::sync::{Arc, OnceLock};

use regard_kernels::table;
use regard_profile::{Found, KernelSet, Machine, Profile};
use regard_simd::{IsaError, Level};

/// Everything about the machine that a plan depends on. Plans are pure functions of a problem and a setup.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The instruction-set level to compute at, unless the options name one.
    pub level: Level,
    /// Caches and cores.
    pub machine: Machine,
    /// Tuned data for this machine, if there are any; plans share it.
    pub profile: Option<Arc<Profile>>,
}

impl Setup {
    /// Looks at the machine: the best level that `REGARD_ISA` allows, and the profile for these kernels that was made for
    /// the machine, or for one that is near enough ([`regard_profile::find`]). A profile that cannot be used is set aside
    /// with one warning (through the `log` crate).
    ///
    /// # Errors
    /// [`IsaError`] if `REGARD_ISA` names a level that does not exist or that the machine lacks.
    pub fn detect() -> Result<Self, IsaError> {
        let level = Level::from_env()?;
        let mut machine = Machine::detect();
        let profile = match regard_profile::find(&machine, &kernel_set()) {
            Found::None => None,
            Found::Loaded { profile, fit, .. } => {
                machine = machine.completed_by(&profile, fit);
                Some(Arc::from(profile))
            }
            Found::Rejected { error, .. } => {
                log::warn!("profile set aside: {error}");
                None
            }
        };
        Ok(Self { level, machine, profile })
    }

    /// The setup of this process, made at the first call.
    ///
    /// # Errors
    /// As for [`Setup::detect`].
    pub fn global() -> Result<&'static Self, IsaError> {
        static SETUP: OnceLock<Result<Setup, IsaError>> = OnceLock::new();
        SETUP.get_or_init(Self::detect).as_ref().map_err(Clone::clone)
    }

    /// The same machine without its profile.
    #[must_use]
    pub fn without_profile(&self) -> Self {
        Self { profile: None, ..self.clone() }
    }
}

/// The kernels of this build, which profiles are checked against.
pub fn kernel_set() -> KernelSet {
    KernelSet::new(table::names(), table::REVISION, table::KEY_BLOCKS, table::QUERY_BLOCKS)
}
