//! Which instruction sets there are, which of them this machine can run, and the proof of it.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use crate::Portable;
#[cfg(target_arch = "x86_64")]
use crate::{Avx2, Avx512, Avx512Amx, Avx512Bf16, Avx512Vnni};
#[cfg(target_arch = "aarch64")]
use crate::{Neon, NeonBf16};

/// The name of an instruction-set level, available here or not.
///
/// The order is the order of preference: a later level is faster where it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust on `wide`, for any machine.
    Portable,
    /// x86-64 with AVX2, FMA and F16C: 8 lanes, 16 registers.
    Avx2,
    /// x86-64 with AVX-512 F, BW and DQ, and *without* VL: 16 lanes, 32 registers.
    ///
    /// VL is left out because rustc 1.95 miscompiles code that has DQ and VL enabled together (rust-lang/rust#158622);
    /// the levels need 512-bit operations only.
    Avx512,
    /// AArch64 with NEON: 4 lanes, 32 registers.
    Neon,
}

impl Isa {
    /// All levels, in order of preference.
    pub const ALL: [Self; 4] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Neon];

    /// The lower-case name, as in `REGARD_ISA` and in the names of kernels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
        }
    }

    /// f32 lanes of a vector.
    pub const fn lanes(self) -> usize {
        match self {
            Self::Portable | Self::Avx2 => 8,
            Self::Avx512 => 16,
            Self::Neon => 4,
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Isa {
    type Err = IsaError;

    fn from_str(name: &str) -> Result<Self, IsaError> {
        Self::ALL.into_iter().find(|isa| isa.name() == name).ok_or_else(|| IsaError::Unknown { name: name.to_owned() })
    }
}

/// Instructions beyond a level, which some machines of the level have: a kernel may need them.
///
/// A token of its own proves them (`Avx512Bf16`, `Avx512Vnni`, `Avx512Amx`, `NeonBf16`), which is [`Simd`](crate::Simd) too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Extension {
    /// Products of pairs of bf16, added up in f32.
    Bf16,
    /// Products of pairs of 16-bit integers, added up in 32 bits.
    Vnni,
    /// Products of tiles of bf16, added up in f32, and of bytes, added up in 32 bits (AMX-BF16 and AMX-INT8). Where the system
    /// wants to be asked for it (Linux), to look for it is to ask: the process may use it from then on.
    Amx,
}

impl Extension {
    /// All extensions.
    pub const ALL: [Self; 3] = [Self::Bf16, Self::Vnni, Self::Amx];

    /// The lower-case name, as in the names of kernels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Vnni => "vnni",
            Self::Amx => "amx",
        }
    }

    /// The extensions that this machine has, beyond its best level. Detected once.
    pub fn available() -> &'static [Self] {
        static AVAILABLE: OnceLock<Vec<Extension>> = OnceLock::new();
        AVAILABLE.get_or_init(|| {
            Self::ALL.into_iter().filter(|extension| extension.is_available_at(Level::best().isa())).collect()
        })
    }

    /// Whether this machine has a level and the extension to it.
    pub fn is_available_at(self, isa: Isa) -> bool {
        match (self, isa) {
            #[cfg(target_arch = "x86_64")]
            (Self::Bf16, Isa::Avx512) => Avx512Bf16::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            (Self::Vnni, Isa::Avx512) => Avx512Vnni::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            (Self::Amx, Isa::Avx512) => Avx512Amx::detect().is_some(),
            #[cfg(target_arch = "aarch64")]
            (Self::Bf16, Isa::Neon) => NeonBf16::detect().is_some(),
            _ => false,
        }
    }
}

impl fmt::Display for Extension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// An instruction-set level that was asked for and cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IsaError {
    /// No level has this name.
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// The level exists, but this machine (or its operating system) does not have it.
    Unavailable {
        /// What was asked for.
        isa: Isa,
    },
}

impl fmt::Display for IsaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { name } => write!(f, "unknown ISA level {name:?}")?,
            Self::Unavailable { isa } => write!(f, "ISA level {:?} is not available on this machine", isa.name())?,
        }
        f.write_str("; available here:")?;
        for (i, level) in Level::available().iter().enumerate() {
            write!(f, "{} {}", if i == 0 { "" } else { "," }, level.isa())?;
        }
        Ok(())
    }
}

impl std::error::Error for IsaError {}

/// A level that this machine has, with the token that proves it.
///
/// Tokens are made by detection only, so that safe code cannot reach an instruction that the machine lacks.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Level {
    /// See [`Isa::Portable`].
    Portable(Portable),
    /// See [`Isa::Avx2`].
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// See [`Isa::Avx512`].
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    /// See [`Isa::Neon`].
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
}

impl Level {
    /// The levels that this machine has, in order of preference (the best one last). Detected once.
    pub fn available() -> &'static [Self] {
        static AVAILABLE: OnceLock<Vec<Level>> = OnceLock::new();
        AVAILABLE.get_or_init(|| {
            #[cfg_attr(
                not(any(target_arch = "x86_64", target_arch = "aarch64")),
                expect(unused_mut, reason = "other architectures have the portable level only")
            )]
            let mut levels = vec![Self::Portable(Portable::new())];
            #[cfg(target_arch = "x86_64")]
            {
                levels.extend(Avx2::detect().map(Self::Avx2));
                levels.extend(Avx512::detect().map(Self::Avx512));
            }
            #[cfg(target_arch = "aarch64")]
            levels.extend(Neon::detect().map(Self::Neon));
            levels
        })
    }

    /// The best level of this machine.
    pub fn best() -> Self {
        Self::available().last().copied().unwrap_or(Self::Portable(Portable::new()))
    }

    /// The level with this name.
    ///
    /// # Errors
    /// [`IsaError::Unavailable`] if this machine does not have it.
    pub fn of(isa: Isa) -> Result<Self, IsaError> {
        let found = Self::available().iter().find(|level| level.isa() == isa);
        found.copied().ok_or(IsaError::Unavailable { isa })
    }

    /// The best level that the environment variable `REGARD_ISA` allows: the one that it names, or the best one of
    /// the machine if it is unset or empty.
    ///
    /// # Errors
    /// [`IsaError`] if the variable names a level that does not exist or that this machine does not have.
    pub fn from_env() -> Result<Self, IsaError> {
        match std::env::var(ISA_VARIABLE) {
            Ok(name) if !name.is_empty() => Self::of(name.parse()?),
            Ok(_) | Err(std::env::VarError::NotPresent) => Ok(Self::best()),
            Err(std::env::VarError::NotUnicode(name)) => {
                Err(IsaError::Unknown { name: name.to_string_lossy().into_owned() })
            }
        }
    }

    /// The name of the level.
    pub const fn isa(self) -> Isa {
        match self {
            Self::Portable(_) => Isa::Portable,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => Isa::Avx2,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => Isa::Avx512,
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => Isa::Neon,
        }
    }

    /// Runs `op` in a function that is compiled for this level.
    pub fn dispatch<O: crate::Op>(self, op: O) -> O::Output {
        use crate::Simd as _;
        match self {
            Self::Portable(token) => token.vectorize(op),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(token) => token.vectorize(op),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(token) => token.vectorize(op),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(token) => token.vectorize(op),
        }
    }
}

/// The environment variable that caps the level.
pub const ISA_VARIABLE: &str = "REGARD_ISA";
