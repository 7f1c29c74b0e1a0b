//! Where profiles are kept, and which one is used.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use crate::check::Fits;
use crate::nearest::{self, Fit};
use crate::store::load_fitting;
use crate::{KernelSet, Machine, Profile, ProfileError};

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
        /// What its machine has to do with this one.
        fit: Fit,
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

/// The directories that profiles are looked for in, the user's own first.
pub fn directories() -> Vec<PathBuf> {
    directories_with(&variable)
}

/// The profile to use on this machine:
/// 1. the file that `REGARD_PROFILE` names, if it is set: a profile of this machine, or of one of the same
///    microarchitecture; it is rejected if it is anything else, or does not exist;
/// 2. the first file of [`search_path`] that exists, loaded or rejected;
/// 3. among all other profiles in the same [`directories`], one of the same microarchitecture, else the one whose
///    instruction sets are the same and whose caches are nearest ([`Fit`]); files that cannot be used have no say.
///
/// Without any of them, the analytic model decides. A profile is used whole or not at all, in each of the three.
pub fn find(machine: &Machine, kernels: &KernelSet) -> Found {
    if let Some(path) = explicit(&variable) {
        return match load_fitting(&path, Fits::Microarch(machine), kernels) {
            Ok(profile) => {
                let fit = Fit::of(&profile.machine, machine).unwrap_or(Fit::Microarch);
                Found::Loaded { path, profile: Box::new(profile), fit }
            }
            Err(error) => Found::Rejected { path, error },
        };
    }
    find_in(&directories(), machine, kernels)
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
    let directories = directories_with(environment).into_iter();
    directories.map(|directory| directory.join(file_name(fingerprint))).collect()
}

fn directories_with(environment: Environment<'_>) -> Vec<PathBuf> {
    user_directory(environment).into_iter().chain([PathBuf::from("/etc/regard")]).collect()
}

fn default_path_with(environment: Environment<'_>, fingerprint: &str) -> Option<PathBuf> {
    explicit(environment).or_else(|| Some(user_directory(environment)?.join(file_name(fingerprint))))
}

/// The name of the file with the profile of a machine, in any of the [`directories`].
pub fn file_name(fingerprint: &str) -> String {
    format!("{PREFIX}{fingerprint}{SUFFIX}")
}

/// How the names of all profiles begin and end.
const PREFIX: &str = "profile-";
pub(crate) const SUFFIX: &str = ".json";

/// The profiles in a directory, of whatever machine, by name; none if there is no such directory.
pub fn profiles_in(directory: &Path) -> Vec<PathBuf> {
    /// A directory with more of them is no directory of profiles.
    const MOST: usize = 1000;
    let Ok(entries) = directory.read_dir() else { return Vec::new() };
    let is_profile = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX))
    };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(is_profile).take(MOST).collect();
    paths.sort();
    paths
}

/// The user's directory for data of this library.
fn user_directory(environment: Environment<'_>) -> Option<PathBuf> {
    // The XDG specification has relative paths ignored.
    let absolute = |name| environment(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let data = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")));
    let data = if cfg!(windows) { data.or_else(|| absolute("LOCALAPPDATA")) } else { data };
    Some(data?.join("regard"))
}

fn find_in(directories: &[PathBuf], machine: &Machine, kernels: &KernelSet) -> Found {
    let name = file_name(&machine.fingerprint());
    let own = directories.iter().map(|directory| directory.join(&name)).find(|path| exists(path));
    if let Some(path) = own {
        return match load_fitting(&path, Fits::Machine(machine), kernels) {
            Ok(profile) => Found::Loaded { path, profile: Box::new(profile), fit: Fit::Exact },
            Err(error) => Found::Rejected { path, error },
        };
    }
    let paths = directories.iter().flat_map(|directory| profiles_in(directory));
    nearest::nearest(paths, machine, kernels).unwrap_or(Found::None)
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
    fn absent_files_are_none() {
        let directory = tempfile::tempdir().unwrap();
        let (machine, kernels) = nothing();
        assert!(matches!(find_in(&[directory.path().into()], &machine, &kernels), Found::None));
        assert!(matches!(find_in(&[directory.path().join("absent")], &machine, &kernels), Found::None));
        assert!(matches!(find_in(&[], &machine, &kernels), Found::None));
    }

    #[test]
    fn the_first_file_that_exists_decides() {
        let directory = tempfile::tempdir().unwrap();
        let (machine, kernels) = nothing();
        let [absent, first, second] = ["a", "b", "c"].map(|name| directory.path().join(name));
        for directory in [&first, &second] {
            std::fs::create_dir(directory).unwrap();
            std::fs::write(directory.join(file_name(&machine.fingerprint())), "{}").unwrap();
        }
        // Below a regular file there is nothing.
        let below = first.join(file_name(&machine.fingerprint())).join("c");
        let found = find_in(&[absent, below, first.clone(), second], &machine, &kernels);
        let Found::Rejected { path, error: ProfileError::Json { .. } } = found else { panic!("{found:?}") };
        assert_eq!(path.parent(), Some(&*first));
    }

    #[test]
    fn other_files_are_no_profiles() {
        let directory = tempfile::tempdir().unwrap();
        let names = ["profile-b.json", "profile-a.json", "profile-a.json.lock", "notes.json", "profile-a.json.aside-1"];
        for name in names.into_iter().chain([".profile-a.json.7.0.tmp"]) {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        let wanted = ["profile-a.json", "profile-b.json"].map(|name| directory.path().join(name));
        assert_eq!(profiles_in(directory.path()), wanted);
        assert!(profiles_in(&directory.path().join("absent")).is_empty());
    }
}
