//! Reading and writing profiles: all or nothing, in both directions.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Deserialize;

use crate::check::Fits;
use crate::migrate::migrate;
use crate::{KernelSet, Machine, Profile, ProfileError, SCHEMA, check, layout, merge};

/// The greatest size of a profile, in bytes. Real ones have some tens of kilobytes.
pub const MAX_BYTES: u64 = 1 << 20;

/// Reads a profile that is fit for use on this machine with these kernels.
///
/// Nothing is repaired or left out: one bad entry rejects the file. Files of older versions of the format are brought up to
/// the present one.
///
/// # Errors
/// [`ProfileError`]: the file cannot be read, is no profile, or is one for another machine, other kernels or an unknown
/// version of the format.
pub fn load(path: &Path, machine: &Machine, kernels: &KernelSet) -> Result<Profile, ProfileError> {
    load_fitting(path, Fits::Machine(machine), kernels)
}

/// The same of a profile for some other machine.
pub(crate) fn load_fitting(path: &Path, fits: Fits<'_>, kernels: &KernelSet) -> Result<Profile, ProfileError> {
    let profile = parse(path)?;
    check::usable(path, &profile, fits, kernels)?;
    Ok(profile)
}

/// Reads a profile to look at, of whatever machine and kernels: what it holds is well-formed, and need not be of any use here.
///
/// # Errors
/// [`ProfileError`]: the file cannot be read, is no profile, contradicts itself, or is of an unknown version of the format.
pub fn inspect(path: &Path) -> Result<Profile, ProfileError> {
    let profile = parse(path)?;
    check::consistent(path, &profile)?;
    check::numbers(path, &profile)?;
    Ok(profile)
}

/// The profile in a file.
fn parse(path: &Path) -> Result<Profile, ProfileError> {
    let bytes = read(path)?;
    let json = |error| ProfileError::Json { path: path.to_owned(), error };
    // Whole texts are checked for UTF-8 much faster than their strings one by one: a quarter of the time. What is none gets the
    // error of the place where it is not.
    let parsed = match std::str::from_utf8(&bytes) {
        Ok(text) => serde_json::from_str(text),
        Err(_) => serde_json::from_slice(&bytes),
    };
    let present = match parsed {
        Ok(profile @ Profile { schema: SCHEMA, .. }) => return Ok(profile),
        other => other.map_err(json),
    };
    // The version alone: the rest of another version may look quite different, or the same and mean something else.
    let version: Version = serde_json::from_slice(&bytes).map_err(json)?;
    if version.schema == u64::from(SCHEMA) {
        return present;
    }
    let file = serde_json::from_slice(&bytes).map_err(json)?;
    serde_json::from_value(migrate(path, file, version.schema)?).map_err(json)
}

/// Writes a profile so that a reader finds the old file or the new one and nothing in between, even after a crash.
///
/// Missing directories are made. Writers of one file wait for each other on the lock file beside it (`<name>.lock`,
/// which stays); the last one wins. [`save_merged`] keeps what others have written.
///
/// # Errors
/// [`ProfileError`]: a measurement is not finite, the text would be larger than [`MAX_BYTES`], or the file system
/// refuses. The old file is then untouched.
pub fn save(path: &Path, profile: &Profile) -> Result<(), ProfileError> {
    let text = text_of(path, profile)?;
    with_lock(path, || replace(path, &text))
}

/// What [`save_merged`] did.
#[derive(Clone, Debug, PartialEq)]
pub struct Saved {
    /// What the file holds now.
    pub profile: Profile,
    /// Where the file that was there before is now, if it was no usable profile of this machine and these kernels.
    pub set_aside: Option<PathBuf>,
}

/// Adds a profile to the one in a file, by [`merge`]: entries that somebody else wrote, for other classes or levels, stay.
/// However many do so at once, nothing is lost that is not replaced.
///
/// A file that [`load`] would refuse (a profile of an unknown newer version, of other kernels, with an entry that is wrong, or
/// no profile) is not written over but set aside: it is renamed to `<name>.aside-<number>`. What is written is always loaded
/// again.
///
/// # Errors
/// As for [`save`]; and what [`load`] would say of the profile on its own machine.
pub fn save_merged(path: &Path, profile: &Profile, kernels: &KernelSet) -> Result<Saved, ProfileError> {
    // What cannot be written, or read again, shall not have the old file set aside.
    text_of(path, profile)?;
    let usable = |profile: &Profile, machine| check::usable(path, profile, Fits::Machine(machine), kernels);
    usable(profile, &profile.machine)?;
    with_lock(path, || {
        let old = match parse(path) {
            Err(ProfileError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => None,
            // It may be a good one, or nothing to rename.
            Err(error @ (ProfileError::Io { .. } | ProfileError::NotAFile { .. })) => return Err(error),
            old => Some(old),
        };
        let merged = match old {
            None => Some(profile.clone()),
            // One bad entry would spoil the merged file for every reader.
            Some(old) => {
                old.and_then(|old| usable(&old, &profile.machine).and_then(|()| merge(profile.clone(), old, path))).ok()
            }
        };
        let set_aside = if merged.is_none() { Some(set_aside(path)?) } else { None };
        let profile = merged.unwrap_or_else(|| profile.clone());
        replace(path, &text_of(path, &profile)?)?;
        Ok(Saved { profile, set_aside })
    })
}

/// What a file with this profile would hold.
fn text_of(path: &Path, profile: &Profile) -> Result<Vec<u8>, ProfileError> {
    // Such a path would get a lock file, and the refusal come late.
    if path.file_name().is_none() || path.is_dir() {
        return Err(ProfileError::NotAFile { path: path.to_owned() });
    }
    check::schema(path, profile.schema.into())?;
    check::numbers(path, profile)?;
    let mut text = layout::to_vec(profile).map_err(|error| ProfileError::Json { path: path.to_owned(), error })?;
    text.push(b'\n');
    let bytes = text.len() as u64;
    if bytes > MAX_BYTES {
        return Err(ProfileError::TooLarge { path: path.to_owned(), bytes, limit: MAX_BYTES });
    }
    Ok(text)
}

/// Does something to a file that nobody else does anything to, and makes it last.
fn with_lock<T>(path: &Path, action: impl FnOnce() -> Result<T, ProfileError>) -> Result<T, ProfileError> {
    let directory = directory_of(path);
    fs::create_dir_all(directory).map_err(failed(path, "create its directory"))?;
    // Released when it is dropped, at the end.
    let lock = lock(path)?;
    if lock.is_some() {
        remove_temporaries(path);
    }
    let done = action()?;
    sync_directory(directory);
    Ok(done)
}

/// Renames a file to one that is free.
fn set_aside(path: &Path) -> Result<PathBuf, ProfileError> {
    const ATTEMPTS: usize = 1000;
    let free = (1..=ATTEMPTS).map(|i| beside(path, "", &format!("{ASIDE}{i}"))).find(|aside| !aside.exists());
    // With as many of them, the last one is of no more worth than the new one.
    let aside = free.unwrap_or_else(|| beside(path, "", &format!("{ASIDE}{ATTEMPTS}")));
    fs::rename(path, &aside).map_err(failed(path, "set it aside"))?;
    Ok(aside)
}

/// What follows the name of a file that was set aside; then comes a number.
pub(crate) const ASIDE: &str = ".aside-";

/// What ends the name of a file that is being written; it begins with a dot.
pub(crate) const TEMPORARY: &str = ".tmp";

/// Removes what writers of this file left behind when they were killed. Who has the lock is the only writer.
fn remove_temporaries(path: &Path) {
    let Ok(entries) = fs::read_dir(directory_of(path)) else { return };
    let prefix = beside(path, ".", ".");
    let Some(prefix) = prefix.file_name().and_then(|name| name.to_str()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_temporary = |name: &str| name.starts_with(prefix) && name.ends_with(TEMPORARY);
        if name.to_str().is_some_and(is_temporary) {
            // Somebody else may have done so.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The field that every version of the format has.
#[derive(Deserialize)]
struct Version {
    schema: u64,
}

/// The error of an action that the operating system refused.
fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> ProfileError {
    let path = path.to_owned();
    move |error| ProfileError::Io { path, action, error }
}

/// The bytes of a regular file of bounded size.
fn read(path: &Path) -> Result<Vec<u8>, ProfileError> {
    // Before opening: opening a pipe would wait for a writer.
    let kind = fs::metadata(path).map_err(failed(path, "open it"))?;
    if !kind.is_file() {
        return Err(ProfileError::NotAFile { path: path.to_owned() });
    }
    // Room for all of it at once, as far as that can be believed.
    let room = kind.len().min(MAX_BYTES) as usize + 1;
    let mut bytes = Vec::with_capacity(room);
    let file = File::open(path).map_err(failed(path, "open it"))?;
    // One more than allowed, to see whether there is more; the size in the metadata need not be true.
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed(path, "read it"))?;
    let read = bytes.len() as u64;
    if read > MAX_BYTES {
        return Err(ProfileError::TooLarge { path: path.to_owned(), bytes: read, limit: MAX_BYTES });
    }
    Ok(bytes)
}

/// The directory that a file is in.
fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The path of a file beside this one, whose name is this one's with something around it.
fn beside(path: &Path, prefix: &str, suffix: &str) -> PathBuf {
    let mut name = std::ffi::OsString::from(prefix);
    name.push(path.file_name().unwrap_or_default());
    name.push(suffix);
    directory_of(path).join(name)
}

/// Takes the lock on writing this file, waiting for it.
///
/// A separate file, since the profile itself is replaced by another one; it is never removed, since that would take
/// it from under somebody who waits. On file systems without locks there is none: a rename is atomic all the same.
fn lock(path: &Path) -> Result<Option<File>, ProfileError> {
    let open = OpenOptions::new().create(true).truncate(false).write(true).open(beside(path, "", ".lock"));
    let file = open.map_err(failed(path, "open its lock file"))?;
    match file.lock() {
        Ok(()) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(None),
        Err(error) => Err(failed(path, "lock it")(error)),
    }
}

/// Writes a temporary file in the same directory, and renames it.
fn replace(path: &Path, text: &[u8]) -> Result<(), ProfileError> {
    let (mut file, temporary) = create_temporary(path)?;
    let written = (|| {
        file.write_all(text).map_err(failed(path, "write it"))?;
        // Or the name could reach the disk before the content.
        file.sync_all().map_err(failed(path, "flush it"))?;
        fs::rename(&temporary, path).map_err(failed(path, "move it into place"))
    })();
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// A new file that nobody else has, for this process and this call.
fn create_temporary(path: &Path) -> Result<(File, PathBuf), ProfileError> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    const ATTEMPTS: usize = 100;
    let mut refusal = io::Error::from(io::ErrorKind::AlreadyExists);
    for _ in 0..ATTEMPTS {
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let temporary = beside(path, ".", &format!(".{}.{count}{TEMPORARY}", std::process::id()));
        match OpenOptions::new().create_new(true).write(true).open(&temporary) {
            Ok(file) => return Ok((file, temporary)),
            // A process of the same number, before or on another host, left one behind.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => refusal = error,
            Err(error) => return Err(failed(path, "create a temporary file beside it")(error)),
        }
    }
    Err(failed(path, "create a temporary file beside it")(refusal))
}

/// Makes the rename last. Not every system can; the file is valid either way, so a refusal is no error.
fn sync_directory(directory: &Path) {
    if let Ok(directory) = File::open(directory) {
        let _ = directory.sync_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_a_path() {
        assert_eq!(directory_of(Path::new("profile.json")), Path::new("."));
        assert_eq!(directory_of(Path::new("a/profile.json")), Path::new("a"));
        assert_eq!(directory_of(Path::new("/profile.json")), Path::new("/"));
        assert_eq!(beside(Path::new("a/profile.json"), ".", ".tmp"), Path::new("a/.profile.json.tmp"));
        assert_eq!(beside(Path::new("profile.json"), "", ".lock"), Path::new("./profile.json.lock"));
    }

    #[test]
    fn temporary_files_are_new() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("profile.json");
        let (_, first) = create_temporary(&path).unwrap();
        let (_, second) = create_temporary(&path).unwrap();
        assert_ne!(first, second);
        assert!(first.exists() && second.exists());
    }
}
