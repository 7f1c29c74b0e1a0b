//! How much memory may be taken for buffers: what the system has to spare, and what the control group is allowed.

use std::fs;
use std::path::{Component, Path};

/// What all buffers of one purpose may take together: an eighth of what is there. A bench of inputs that windows leave unread
/// for the most part takes four such parts, and one for the probe.
pub(crate) fn room() -> usize {
    const PARTS: usize = 8;
    available(Path::new("/")).map_or(usize::MAX, |bytes| bytes / PARTS)
}

/// Bytes that this process can still take without driving anything out of memory; `None` where the system does not tell (only
/// Linux does). `root` is `/` but in tests.
fn available(root: &Path) -> Option<usize> {
    let machine = fs::read_to_string(root.join("proc/meminfo")).ok().and_then(|text| available_in(&text));
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let limits = groups.lines().filter_map(|line| left_of_groups(root, line));
    limits.chain(machine).min()
}

/// The estimate of the kernel, which counts caches of files that can be dropped.
fn available_in(meminfo: &str) -> Option<usize> {
    let kib = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: usize = kib.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The names of the files that say what a group may have and has, and of the lines that say what of that can be dropped.
struct Names {
    limit: &'static str,
    usage: &'static str,
    files: [&'static str; 2],
}

const ONE: Names = Names {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    files: ["total_inactive_file ", "total_active_file "],
};

const TWO: Names = Names { limit: "memory.max", usage: "memory.current", files: ["inactive_file ", "active_file "] };

/// What is left of the limits of a line of `/proc/self/cgroup`: the least of its group and of those that it is in.
fn left_of_groups(root: &Path, line: &str) -> Option<usize> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, Path::new(fields.next()?).strip_prefix("/").ok()?);
    // Where distributions mount them. Elsewhere the limit of the machine has to do.
    let (names, mounts): (_, &[&str]) = match controllers {
        "" => (TWO, &["sys/fs/cgroup", "sys/fs/cgroup/unified"]),
        _ if controllers.split(',').any(|name| name == "memory") => (ONE, &["sys/fs/cgroup/memory"]),
        _ => return None,
    };
    // In a container the path may be the host's, or lead out of the namespace; the mounted group is seen all the same.
    let inside = path.components().all(|part| matches!(part, Component::Normal(_)));
    let path = if inside { path } else { Path::new("") };
    let groups = mounts.iter().flat_map(|mount| path.ancestors().map(move |group| root.join(mount).join(group)));
    groups.filter_map(|group| left(&group, &names)).min()
}

/// What is left of the limit of one group.
fn left(group: &Path, names: &Names) -> Option<usize> {
    let text = |name| fs::read_to_string(group.join(name)).ok();
    // "max" is no number, and no limit.
    let [limit, usage] = [names.limit, names.usage].map(|name| text(name)?.trim().parse::<usize>().ok());
    let stat = text("memory.stat").unwrap_or_default();
    let bytes = |name: &str| stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<usize>().ok());
    let cached: usize = names.files.iter().filter_map(|name| bytes(name)).sum();
    Some(limit?.saturating_sub(usage?.saturating_sub(cached)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root directory with these files.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const MACHINE: (&str, &str) = ("proc/meminfo", "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:   4000 kB\n");

    #[test]
    fn the_machine_alone() {
        assert_eq!(available(tree(&[MACHINE]).path()), Some(4000 << 10));
        assert_eq!(available(tree(&[]).path()), None);
        for text in ["", "MemFree: 10 kB", "MemAvailable: 4000", "MemAvailable: many kB"] {
            assert_eq!(available_in(text), None, "{text}");
        }
    }

    #[test]
    fn the_tightest_group_counts_less_what_can_be_dropped() {
        let root = tree(&[
            MACHINE,
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("sys/fs/cgroup/a/b/memory.current", "5\n"),
            ("sys/fs/cgroup/a/memory.max", "2000000\n"),
            ("sys/fs/cgroup/a/memory.current", "1500000\n"),
            ("sys/fs/cgroup/a/memory.stat", "anon 9\ninactive_file 200000\nactive_file 100000\n"),
            // Not a group that this process is in.
            ("sys/fs/cgroup/c/memory.max", "1\n"),
            ("sys/fs/cgroup/c/memory.current", "0\n"),
        ]);
        assert_eq!(available(root.path()), Some(800_000));
    }

    #[test]
    fn version_one_and_paths_of_the_host() {
        let files = [
            MACHINE,
            ("proc/self/cgroup", "4:cpu,memory:/docker/x\n1:name=systemd:/\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "3000000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1000000\n"),
            ("sys/fs/cgroup/memory/memory.stat", "inactive_file 7\ntotal_inactive_file 5\n"),
        ];
        assert_eq!(available(tree(&files).path()), Some(2_000_005));
        let outside = ("proc/self/cgroup", "4:memory:/../other\n");
        assert_eq!(available(tree(&[&files[..1], &files[2..], &[outside][..]].concat()).path()), Some(2_000_005));
        // More in use than allowed leaves nothing.
        let over = ("sys/fs/cgroup/memory/memory.usage_in_bytes", "4000000\n");
        assert_eq!(available(tree(&[&files[..3], &[over][..]].concat()).path()), Some(0));
    }

    #[test]
    fn this_machine_has_some() {
        let here = available(Path::new("/"));
        assert_eq!(here.is_some(), cfg!(target_os = "linux"));
        assert!(here.is_none_or(|bytes| bytes > 1 << 20), "{here:?}");
    }
}
