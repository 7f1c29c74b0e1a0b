//! Everything that can be wrong with a profile.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why a profile could not be read, used or written; one line, which names the file and what was expected.
///
/// The cause is part of the line, so [`source`](std::error::Error::source) is always `None`.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// The operating system refused.
    #[error("profile {}: cannot {action}: {error}", path.display())]
    Io {
        /// The profile.
        path: PathBuf,
        /// What was attempted, as it follows "cannot".
        action: &'static str,
        /// The refusal.
        error: io::Error,
    },
    /// The path is that of a directory, device or the like.
    #[error("profile {}: not a regular file", path.display())]
    NotAFile {
        /// The profile.
        path: PathBuf,
    },
    /// More than [`MAX_BYTES`](crate::MAX_BYTES).
    #[error("profile {}: {bytes} bytes or more; at most {limit} are accepted", path.display())]
    TooLarge {
        /// The profile.
        path: PathBuf,
        /// Its size in bytes, or as much of it as was read.
        bytes: u64,
        /// The greatest size accepted, in bytes.
        limit: u64,
    },
    /// Not JSON, or a field is missing or of the wrong type.
    #[error("profile {}: not a valid profile: {}", path.display(), cause(error))]
    Json {
        /// The profile.
        path: PathBuf,
        /// The cause, with line and column.
        error: serde_json::Error,
    },
    /// Written by a newer version of the format.
    #[error("profile {}: schema {found} is newer than {supported}, the newest known here; update this program", path.display())]
    NewerSchema {
        /// The profile.
        path: PathBuf,
        /// The version in the file.
        found: u64,
        /// The version expected.
        supported: u32,
    },
    /// Written by an older version of the format.
    #[error("profile {}: schema {found} is older than {supported}, the oldest accepted here; tune again", path.display())]
    OlderSchema {
        /// The profile.
        path: PathBuf,
        /// The version in the file.
        found: u64,
        /// The version expected.
        supported: u32,
    },
    /// The fingerprint in the file is not that of the machine in the file.
    #[error("profile {}: says that its machine is {stated}, but describes {described}; was it edited?", path.display())]
    Inconsistent {
        /// The profile.
        path: PathBuf,
        /// The fingerprint in the file.
        stated: String,
        /// The fingerprint of the machine in the file.
        described: String,
    },
    /// Tuned on another machine.
    #[error("profile {}: tuned for machine {found}; this machine is {expected}", path.display())]
    WrongMachine {
        /// The profile.
        path: PathBuf,
        /// Fingerprint and brand of the machine in the file.
        found: String,
        /// Fingerprint and brand of this machine.
        expected: String,
    },
    /// Tuned with other kernels.
    #[error("profile {}: tuned with kernels {found}; the kernels here are {expected}; tune again", path.display())]
    WrongKernels {
        /// The profile.
        path: PathBuf,
        /// The kernel-set fingerprint in the file.
        found: String,
        /// The kernel-set fingerprint expected.
        expected: String,
    },
    /// An entry names a kernel that does not exist.
    #[error("profile {}: entry {entry}: there is no kernel {name:?}", path.display())]
    UnknownKernel {
        /// The profile.
        path: PathBuf,
        /// Index of the entry, from 0.
        entry: usize,
        /// The name in the file.
        name: String,
    },
    /// Entries of one level sum in different orders.
    #[error(
        "profile {}: entry {entry} has key block {found}, but other entries of its level have {expected}",
        path.display()
    )]
    KeyBlocks {
        /// The profile.
        path: PathBuf,
        /// Index of the entry, from 0.
        entry: usize,
        /// Its key block.
        found: usize,
        /// The key block of the first entry of its level.
        expected: usize,
    },
    /// A key block is odd.
    #[error("profile {}: entry {entry} has key block {found}, but it must be even", path.display())]
    OddKeyBlock {
        /// The profile.
        path: PathBuf,
        /// Index of the entry, from 0.
        entry: usize,
        /// Its key block.
        found: usize,
    },
    /// An entry has a block size that the kernels do not accept.
    #[error("profile {}: entry {entry}: {field} is {value}; expected {least} to {greatest}", path.display())]
    OutOfRange {
        /// The profile.
        path: PathBuf,
        /// Index of the entry, from 0.
        entry: usize,
        /// The field of [`Config`](crate::Config).
        field: &'static str,
        /// Its value.
        value: usize,
        /// The least value accepted.
        least: usize,
        /// The greatest value accepted.
        greatest: usize,
    },
    /// A measurement is infinite, not a number or negative.
    #[error("profile {}: {field} is {value}; expected a finite number that is not negative", path.display())]
    BadNumber {
        /// The profile.
        path: PathBuf,
        /// The field, as a path within the file.
        field: String,
        /// Its value.
        value: f64,
    },
}

/// A name from a file, fit for a line of an error message.
pub(crate) fn short(name: &str) -> String {
    one_line(name, 80)
}

/// The cause with its place; it may quote the file at any length.
fn cause(error: &serde_json::Error) -> String {
    // Enough for every message that quotes nothing long.
    const MOST: usize = 240;
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match text.strip_suffix(&place) {
        Some(message) => one_line(message, MOST) + &place,
        None => one_line(&text, MOST),
    }
}

/// The first characters of a text, control characters replaced.
fn one_line(text: &str, most: usize) -> String {
    text.chars().take(most).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
