//! Files that nobody needs any more.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::check::Fits;
use crate::paths::{SUFFIX, profiles_in};
use crate::store::{ASIDE, TEMPORARY, load_fitting};
use crate::{KernelSet, ProfileError};

/// A file in a directory of profiles that may be removed.
#[derive(Debug)]
pub struct Leftover {
    /// Its path.
    pub path: PathBuf,
    /// Why it is of no use.
    pub kind: LeftoverKind,
}

/// Why a file is of no use.
#[derive(Debug)]
#[non_exhaustive]
pub enum LeftoverKind {
    /// A writer found it in its way ([`save_merged`](crate::save_merged)).
    SetAside,
    /// A writer was killed more than an hour ago.
    Unfinished,
    /// A profile that cannot be used with these kernels, on any machine.
    Stale(ProfileError),
}

impl fmt::Display for LeftoverKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetAside => f.write_str("set aside"),
            Self::Unfinished => f.write_str("left behind by a writer that was killed"),
            Self::Stale(error) => write!(f, "stale: {error}"),
        }
    }
}

/// What may be removed from a directory, by name. Profiles of other machines that are fit for use there are not among it,
/// nor are profiles of a newer version of the format (some other program's), files that cannot be read, and lock files,
/// which somebody may be waiting at.
pub fn leftovers(directory: &Path, kernels: &KernelSet) -> Vec<Leftover> {
    let stale = profiles_in(directory).into_iter().filter_map(|path| {
        let error = load_fitting(&path, Fits::Any, kernels).err()?;
        let keep = matches!(error, ProfileError::Io { .. } | ProfileError::NotAFile { .. })
            || matches!(error, ProfileError::NewerSchema { .. });
        (!keep).then_some(Leftover { path, kind: LeftoverKind::Stale(error) })
    });
    let entries = directory.read_dir().into_iter().flatten().flatten();
    let others = entries.filter_map(|entry| {
        let path = entry.path();
        let name = path.file_name()?.to_str()?;
        let aside =
            name.split_once(&format!("{SUFFIX}{ASIDE}")).is_some_and(|(_, number)| number.parse::<u32>().is_ok());
        let unfinished = name.starts_with('.') && name.ends_with(TEMPORARY) && name.contains(SUFFIX) && is_old(&path);
        let kind = match (aside, unfinished) {
            (true, _) => LeftoverKind::SetAside,
            (_, true) => LeftoverKind::Unfinished,
            _ => return None,
        };
        Some(Leftover { path, kind })
    });
    let mut found: Vec<_> = stale.chain(others).collect();
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Whether nobody can still be writing it.
fn is_old(path: &Path) -> bool {
    const HOUR: Duration = Duration::from_secs(3600);
    let written = path.metadata().and_then(|metadata| metadata.modified());
    written.is_ok_and(|written| SystemTime::now().duration_since(written).is_ok_and(|age| age > HOUR))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};

    #[test]
    fn only_what_is_of_no_use_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let kernels =
            KernelSet { fingerprint: String::new(), names: vec![], key_block_limits: 1..=1, query_block_limits: 1..=1 };
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        let keep = ["profile-a.json.lock", "notes.txt", "profile-a.json.aside-x", ".profile-a.json.7.0.tmp"];
        keep.iter().for_each(|name| write(name, ""));
        write("profile-new.json", r#"{"schema": 99}"#);
        write("profile-a.json.aside-12", "");
        write("profile-bad.json", "{");
        write(".profile-b.json.7.0.tmp", "");
        let old = File::options().write(true).open(directory.path().join(".profile-b.json.7.0.tmp")).unwrap();
        old.set_modified(SystemTime::now() - Duration::from_secs(7200)).unwrap();
        let found: Vec<String> = leftovers(directory.path(), &kernels)
            .into_iter()
            .map(|left| {
                let kind = left.kind.to_string();
                let kind = kind.split(':').next().unwrap();
                format!("{} {kind}", left.path.file_name().unwrap().to_str().unwrap())
            })
            .collect();
        let wanted = [
            ".profile-b.json.7.0.tmp left behind by a writer that was killed",
            "profile-a.json.aside-12 set aside",
            "profile-bad.json stale",
        ];
        assert_eq!(found, wanted);
        assert!(leftovers(&directory.path().join("absent"), &kernels).is_empty());
    }
}
