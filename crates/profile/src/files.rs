//! Small text files of the system, and the lists of CPUs in them.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The longest system file that is read, in bytes. `/proc/cpuinfo` of a thousand CPUs is about 1.5 MB, everything
/// else is a page at most.
const LIMIT: u64 = 4 << 20;

/// The highest CPU number that is believed. Linux allows 8192 today; a mistaken range must not fill the memory.
const MAX_CPU: usize = 1 << 16;

/// The text of a file, trimmed; `None` if it cannot be read.
pub(crate) fn read(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(LIMIT).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).trim().to_owned())
}

/// A list of CPUs or nodes as the kernel writes it (`0-3,8,10-11`), ascending and without repetition.
pub(crate) fn parse_cpu_list(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (parse_cpu(first)?, parse_cpu(last)?);
        if first > last {
            return None;
        }
        cpus.extend(first..=last);
        // Overlapping ranges could repeat without end.
        if cpus.len() > 4 * MAX_CPU {
            return None;
        }
    }
    cpus.sort_unstable();
    cpus.dedup();
    Some(cpus)
}

fn parse_cpu(text: &str) -> Option<usize> {
    text.trim().parse().ok().filter(|&cpu| cpu <= MAX_CPU)
}

/// The value of the first line `key: value` (any space around the colon).
pub(crate) fn parse_field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists() {
        assert_eq!(parse_cpu_list("0"), Some(vec![0]));
        assert_eq!(parse_cpu_list("0-3,8,10-11\n"), Some(vec![0, 1, 2, 3, 8, 10, 11]));
        assert_eq!(parse_cpu_list("4,0-2,1-2"), Some(vec![0, 1, 2, 4]));
    }

    #[test]
    fn malformed_cpu_lists() {
        for text in ["", ",", "a", "3-1", "1-", "-1", "1--2", "0-99999999999999999999", "0-4294967295", "0,,1", "0x1"] {
            assert_eq!(parse_cpu_list(text), None, "{text:?}");
        }
        let long = vec!["0-65536"; 1000].join(",");
        assert_eq!(parse_cpu_list(&long), None);
    }

    #[test]
    fn fields() {
        let text = "Name:\tcat\nCpus_allowed:\t3\nCpus_allowed_list:\t0-1\nempty:\n";
        assert_eq!(parse_field(text, "Cpus_allowed_list"), Some("0-1"));
        assert_eq!(parse_field(text, "empty"), Some(""));
        assert_eq!(parse_field(text, "Cpus"), None);
        assert_eq!(parse_field("", "x"), None);
    }

    #[test]
    fn missing_files_are_none() {
        assert_eq!(read(Path::new("/no/such/file")), None);
        assert_eq!(read(Path::new("/")), None);
    }
}
