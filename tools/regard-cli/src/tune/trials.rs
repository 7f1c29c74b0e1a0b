//! The log beside a profile: what became of every candidate, a line for each contest. Only people read it.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use regard_tuner::search::Trials;

use crate::error::CliError;

/// A longer log starts anew.
const MOST_BYTES: u64 = 8 << 20;

/// The log of a profile.
fn path_of(profile: &Path) -> PathBuf {
    profile.with_extension("trials.jsonl")
}

/// Adds contests to the log of a profile.
pub(super) fn append(profile: &Path, trials: &[Trials]) -> Result<(), CliError> {
    let path = path_of(profile);
    let long = fs::metadata(&path).is_ok_and(|metadata| metadata.len() > MOST_BYTES);
    let mut text = String::new();
    for contest in trials {
        text += &serde_json::to_string(contest).map_err(|error| CliError::Failed(error.to_string()))?;
        text.push('\n');
    }
    let mut open = OpenOptions::new();
    let open = if long { open.write(true).truncate(true) } else { open.append(true) };
    // At once, so that lines of two writers do not mix.
    let written = open.create(true).open(&path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(CliError::writing(&path))
}

/// The contests in the log of a profile, in the order in which they were held. What cannot be read is left out: nothing
/// depends on it.
pub(crate) fn read(profile: &Path) -> Vec<Trials> {
    let text = fs::read_to_string(path_of(profile)).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}
