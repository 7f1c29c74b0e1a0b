//! Reading and writing profiles: all or nothing, in both directions.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Deserialize;

use crate::{KernelSet, Machine, Profile, ProfileError, check};

/// The greatest size of a profile, in bytes. Real ones have some tens of kilobytes.
pub const MAX_BYTES: u64 = 1 << 20;

/// Reads a profile that is fit for use on this machine with these kernels.
///
/// Nothing is repaired or left out: one bad entry rejects the file.
///
/// # Errors
/// [`ProfileError`]: the file cannot be read, is no profile, or is one for another machine, other kernels or another
/// version of the format.
pub fn load(path: &Path, machine: &Machine, kernels: &KernelSet) -> Result<Profile, ProfileError> {
    let bytes = read(path)?;
    let json = |error| ProfileError::Json { path: path.to_owned(), error };
    // First the version alone: the rest of another version may look quite different.
    let version: Version = serde_json::from_slice(&bytes).map_err(json)?;
    check::schema(path, version.schema)?;
    let profile: Profile = serde_json::from_slice(&bytes).map_err(json)?;
    check::usable(path, &profile, machine, kernels)?;
    Ok(profile)
}

/// Writes a profile so that a reader finds the old file or the new one and nothing in between, even after a crash.
///
/// Missing directories are made. Writers of one file wait for each other on the lock file beside it (`<name>.lock`,
/// which stays); the last one wins.
///
/// # Errors
/// [`ProfileError`]: a measurement is not finite, the text would be larger than [`MAX_BYTES`], or the file system
/// refuses. The old file is then untouched.
pub fn save(path: &Path, profile: &Profile) -> Result<(), ProfileError> {
    // Such a path would get a lock file, and the refusal come late.
    if path.file_name().is_none() || path.is_dir() {
        return Err(ProfileError::NotAFile { path: path.to_owned() });
    }
    check::schema(path, profile.schema.into())?;
    check::numbers(path, profile)?;
    let mut text =
        serde_json::to_vec_pretty(profile).map_err(|error| ProfileError::Json { path: path.to_owned(), error })?;
    text.push(b'\n');
    let bytes = text.len() as u64;
    if bytes > MAX_BYTES {
        return Err(ProfileError::TooLarge { path: path.to_owned(), bytes, limit: MAX_BYTES });
    }
    let directory = directory_of(path);
    fs::create_dir_all(directory).map_err(failed(path, "create its directory"))?;
    // Released when it is dropped, at the end.
    let _lock = lock(path)?;
    replace(path, &text)?;
    sync_directory(directory);
    Ok(())
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
    let mut bytes = Vec::new();
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
        let temporary = beside(path, ".", &format!(".{}.{count}.tmp", std::process::id()));
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
