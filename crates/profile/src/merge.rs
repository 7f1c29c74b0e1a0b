//! One profile from two of the same machine and kernels.

use std::collections::HashSet;
use std::path::Path;

use crate::{Profile, ProfileError, check};

/// Everything of `newer`, and of `older` what it does not contradict: the entries of classes that the newer one has not
/// tuned, unless their key block is another one, which all entries of its group must share; crossovers of kernels that the
/// newer one has none for; and the machine card, if the newer one has none.
///
/// Configurations are taken whole, never mixed. What is left out is what the newer one replaces. `path` is that of the
/// older one, for the error.
///
/// # Errors
/// [`ProfileError::WrongMachine`] and [`ProfileError::WrongKernels`]: their timings have nothing to do with each other.
pub fn merge(newer: Profile, older: Profile, path: &Path) -> Result<Profile, ProfileError> {
    check::same_machine(path, &older, &newer.machine)?;
    check::same_kernels(path, &older, &newer.tool.kernels_fingerprint)?;
    // Every field by name, so that a new one has to be thought of.
    let Profile { schema: _, tool: _, fingerprint: _, machine: _, run, measured, card, entries, crossovers } = older;
    let mut merged = newer;
    let tuned: HashSet<_> = merged.entries.iter().map(|entry| entry.class.clone()).collect();
    let before = merged.entries.len();
    for entry in entries.into_iter().filter(|entry| !tuned.contains(&entry.class)) {
        merged.entries.push(entry);
        if check::same_key_block(path, &merged, merged.entries.len() - 1).is_err() {
            merged.entries.pop();
        }
    }
    let kept = merged.entries.len() - before;
    if kept > 0 {
        merged.run.confidence = merged.run.confidence.min(run.confidence);
        let note = format!("{kept} entries are from a run that ended {} seconds after 1970", run.unix_time);
        merged.run.notes.push(note);
        // Each merge would add a line that the next one keeps.
        merged.run.notes.extend(run.notes.into_iter().filter(|note| !note.contains(" entries are from a run that ")));
        merged.run.notes.truncate(MOST_NOTES);
    }
    let measured_again = |merged: &Profile, kernel: &str| merged.crossovers.iter().any(|newer| newer.kernel == kernel);
    let kept: Vec<_> = crossovers.into_iter().filter(|older| !measured_again(&merged, &older.kernel)).collect();
    merged.crossovers.extend(kept);
    merged.measured = merged.measured.or(measured);
    merged.card = merged.card.or(card);
    Ok(merged)
}

/// Notes that are kept, the newest first: a file that is merged into for years does not grow without end.
const MOST_NOTES: usize = 40;
