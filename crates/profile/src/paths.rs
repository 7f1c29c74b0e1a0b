//! Where profiles are kept, and which one is used.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use crate::{KernelSet, Machine, Profile, ProfileError, load};

/// The environment variable that names the profile to use; unset and empty mean the same.
pub const PROFILE_VARIABLE: &str = "REGARD_PROFILE";

/// What [`find`] found.
#[derive(Debug)]
pub enum Found {
    /// There is no file.
    None,
    /// A profile that is fit for use.
    Loaded {
        /// Its path.
        path: PathBuf,
        /// The profile.
        profile: Box<Profile>,
    },
    /// There is a file, and it cannot be used. The files after it on the search path were not looked at.
    Rejected {
        /// Its path.
        path: PathBuf,
        /// Why.
        error: ProfileError,
    },
}

/// The files that may hold the profile of this machine, first choice first.
///
/// The one that `REGARD_PROFILE` names and no other, if that is set; else `profile-<fingerprint>.json` in the user's
/// data directory (`$XDG_DATA_HOME/regard` or `~/.local/share/regard`; on Windows `%LOCALAPPDATA%\regard`), then in
/// `/etc/regard`.
pub fn search_path(machine: &Machine) -> Vec<PathBuf> {
    search_path_with(&variable, &machine.fingerprint())
}

/// The file that a tuner writes: the first one of [`search_path`] that is the user's own.
///
/// `None` if neither `REGARD_PROFILE` nor a home directory is set.
pub fn default_path(machine: &Machine) -> Option<PathBuf> {
    default_path_with(&variable, &machine.fingerprint())
}

/// The profile of this machine: the first file of [`search_path`] that exists, loaded or rejected.
///
/// A file that `REGARD_PROFILE` names is rejected if it does not exist.
pub fn find(machine: &Machine, kernels: &KernelSet) -> Found {
    let required = explicit(&variable).is_some();
    find_in(search_path(machine), required, machine, kernels)
}

/// A variable of the environment, unless it is empty.
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

fn explicit(environment: Environment<'_>) -> Option<PathBuf> {
    environment(PROFILE_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn search_path_with(environment: Environment<'_>, fingerprint: &str) -> Vec<PathBuf> {
    if let Some(path) = explicit(environment) {
        return vec![path];
    }
    let directories = user_directory(environment).into_iter().chain([PathBuf::from("/etc/regard")]);
    directories.map(|directory| directory.join(file_name(fingerprint))).collect()
}

fn default_path_with(environment: Environment<'_>, fingerprint: &str) -> Option<PathBuf> {
    explicit(environment).or_else(|| Some(user_directory(environment)?.join(file_name(fingerprint))))
}

fn file_name(fingerprint: &str) -> String {
    format!("profile-{fingerprint}.json")
}

/// The user's directory for data of this library.
fn user_directory(environment: Environment<'_>) -> Option<PathBuf> {
    // The XDG specification has relative paths ignored.
    let absolute = |name| environment(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let data = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")));
    let data = if cfg!(windows) { data.or_else(|| absolute("LOCALAPPDATA")) } else { data };
    Some(data?.join("regard"))
}

fn find_in(paths: Vec<PathBuf>, required: bool, machine: &Machine, kernels: &KernelSet) -> Found {
    let Some(path) = paths.into_iter().find(|path| required || exists(path)) else { return Found::None };
    match load(&path, machine, kernels) {
        Ok(profile) => Found::Loaded { path, profile: Box::new(profile) },
        Err(error) => Found::Rejected { path, error },
    }
}

/// Whether there is something at the path. What may not be looked at counts, so that the reason comes to light.
fn exists(path: &Path) -> bool {
    const ABSENT: [io::ErrorKind; 2] = [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory];
    path.metadata().map_or_else(|error| !ABSENT.contains(&error.kind()), |_| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An environment with these variables.
    fn with(variables: &'static [(&str, &str)]) -> impl Fn(&str) -> Option<OsString> {
        |name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
    }

    fn paths(variables: &'static [(&str, &str)]) -> Vec<String> {
        let paths = search_path_with(&with(variables), "f00d");
        paths.into_iter().map(|path| path.into_os_string().into_string().unwrap()).collect()
    }

    #[cfg(unix)]
    #[test]
    fn user_before_system() {
        let system = "/etc/regard/profile-f00d.json";
        assert_eq!(paths(&[]), [system]);
        assert_eq!(paths(&[("HOME", "/home/me")]), ["/home/me/.local/share/regard/profile-f00d.json", system]);
        let both = paths(&[("HOME", "/home/me"), ("XDG_DATA_HOME", "/data")]);
        assert_eq!(both, ["/data/regard/profile-f00d.json", system]);
    }

    #[cfg(unix)]
    #[test]
    fn empty_and_relative_directories_are_ignored() {
        let home = "/home/me/.local/share/regard/profile-f00d.json";
        assert_eq!(paths(&[("HOME", "/home/me"), ("XDG_DATA_HOME", "")])[0], home);
        assert_eq!(paths(&[("HOME", "/home/me"), ("XDG_DATA_HOME", "data")])[0], home);
        assert_eq!(paths(&[("HOME", "me")]).len(), 1);
        assert_eq!(default_path_with(&with(&[]), "f00d"), None);
        assert_eq!(default_path_with(&with(&[("HOME", "/home/me")]), "f00d"), Some(PathBuf::from(home)));
    }

    #[test]
    fn the_variable_excludes_the_rest() {
        assert_eq!(paths(&[("HOME", "/home/me"), ("REGARD_PROFILE", "mine.json")]), ["mine.json"]);
        assert_eq!(default_path_with(&with(&[("REGARD_PROFILE", "mine.json")]), "f"), Some("mine.json".into()));
        assert_ne!(paths(&[("REGARD_PROFILE", "")]), [""]);
    }

    fn nothing() -> (Machine, KernelSet) {
        let kernels =
            KernelSet { fingerprint: String::new(), names: vec![], key_block_limits: 1..=1, query_block_limits: 1..=1 };
        (Machine::default(), kernels)
    }

    #[test]
    fn absent_files_are_none_unless_required() {
        let directory = tempfile::tempdir().unwrap();
        let absent = directory.path().join("absent.json");
        let (machine, kernels) = nothing();
        assert!(matches!(find_in(vec![absent.clone()], false, &machine, &kernels), Found::None));
        assert!(matches!(find_in(vec![], false, &machine, &kernels), Found::None));
        let Found::Rejected { path, error } = find_in(vec![absent.clone()], true, &machine, &kernels) else {
            panic!("a file that was asked for by name must exist");
        };
        assert_eq!(path, absent);
        assert!(error.to_string().contains("absent.json"), "{error}");
    }

    #[test]
    fn the_first_file_that_exists_decides() {
        let directory = tempfile::tempdir().unwrap();
        let (absent, first) = (directory.path().join("a"), directory.path().join("b"));
        std::fs::write(&first, "{}").unwrap();
        // Below a regular file there is nothing.
        let below = first.join("c");
        let (machine, kernels) = nothing();
        let found = find_in(vec![absent, below, first.clone(), directory.path().into()], false, &machine, &kernels);
        assert!(matches!(found, Found::Rejected { path, error: ProfileError::Json { .. } } if path == first));
    }
}
