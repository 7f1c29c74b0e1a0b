//! Everything that ends a command early, and the exit code that says so.

use std::io;
use std::path::{Path, PathBuf};

use regard::IsaError;
use regard_profile::ProfileError;

/// Why a command failed. Its text is one line, which names the thing and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum CliError {
    /// A check failed, or the work could not be done for a reason that is not in the input.
    #[error("{0}")]
    Failed(String),
    /// The command line makes no sense, whatever the input is.
    #[error("{0}")]
    Usage(String),
    /// A file, a tensor or a number does not fit.
    #[error("{0}")]
    Input(String),
    /// The library refused the problem.
    #[error(transparent)]
    Problem(#[from] regard::Error),
    /// The profile of this machine cannot be used.
    #[error("{0}")]
    Profile(ProfileError),
    /// An instruction-set level that cannot be had, from `--isa` or `REGARD_ISA`.
    #[error(transparent)]
    Isa(#[from] IsaError),
    /// A file could not be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The refusal.
        error: io::Error,
    },
    /// A file could not be written. What was there before is untouched.
    #[error("cannot write {}: {error}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The refusal.
        error: io::Error,
    },
}

impl CliError {
    /// The exit code, as `regard --help` documents it.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::Problem(regard::Error::Isa(_)) | Self::Isa(_) => 4,
            Self::Input(_) | Self::Problem(_) | Self::Profile(_) | Self::Read { .. } => 3,
            Self::Write { .. } => 5,
        }
    }

    /// For `map_err` where `path` was to be written.
    pub(crate) fn writing(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Write { path, error }
    }
}
