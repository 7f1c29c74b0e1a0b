//! The CPU quota of the control group that this process runs in, version 1 or 2.

use std::path::{Component, Path, PathBuf};

use crate::files;

/// CPUs' worth of time that the process may use, if that is limited: the least along the way from its group to the
/// root. `root` is `/` but in tests.
pub(crate) fn quota(root: &Path) -> Option<f64> {
    let groups = files::read(&root.join("proc/self/cgroup"))?;
    let mounts = files::read(&root.join("proc/self/mountinfo"))?;
    let mounts: Vec<_> = mounts.lines().filter_map(parse_mount).collect();
    let quotas = groups.lines().filter_map(parse_group).flat_map(|group| {
        let mount = mounts.iter().find(|mount| mount.version == group.version)?;
        group_quota(root, mount, &group.path)
    });
    quotas.reduce(f64::min)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A line of `/proc/self/cgroup` that is about CPU time.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    version: Version,
    path: PathBuf,
}

/// `0::/path` (version 2) or `4:cpu,cpuacct:/path` (version 1).
fn parse_group(line: &str) -> Option<Group> {
    let mut fields = line.splitn(3, ':');
    let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let version = match controllers {
        "" => Version::Two,
        _ if controllers.split(',').any(|name| name == "cpu") => Version::One,
        _ => return None,
    };
    Some(Group { version, path: PathBuf::from(path) })
}

/// A line of `/proc/self/mountinfo` that mounts such a hierarchy.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    version: Version,
    /// The group that is mounted (`/` but in containers).
    group: PathBuf,
    point: PathBuf,
}

/// `33 31 0:30 /group /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu`; `-` ends a list of optional fields.
fn parse_mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (group, point) = (PathBuf::from(left.next()?), PathBuf::from(left.next()?));
    let mut right = right.split(' ');
    let (kind, options) = (right.next()?, right.nth(1)?);
    let version = match kind {
        "cgroup2" => Version::Two,
        "cgroup" if options.split(',').any(|name| name == "cpu") => Version::One,
        _ => return None,
    };
    Some(Mount { version, group, point })
}

/// The least quota of a group and those that it is in, as far as they are mounted.
fn group_quota(root: &Path, mount: &Mount, group: &Path) -> Option<f64> {
    // In a container the path may be the host's or lead out of the namespace; then only the mounted group is seen.
    let below = group.strip_prefix(&mount.group).unwrap_or(Path::new(""));
    let inside = below.components().all(|part| matches!(part, Component::Normal(_)));
    let top = root.join(mount.point.strip_prefix("/").ok()?);
    let group = if inside { top.join(below) } else { top.clone() };
    let groups = group.ancestors().take_while(|directory| directory.starts_with(&top));
    groups.filter_map(|directory| directory_quota(directory, mount.version)).reduce(f64::min)
}

fn directory_quota(directory: &Path, version: Version) -> Option<f64> {
    let text = |name| files::read(&directory.join(name));
    match version {
        Version::Two => parse_cpu_max(&text("cpu.max")?),
        Version::One => parse_cfs(&text("cpu.cfs_quota_us")?, &text("cpu.cfs_period_us")?),
    }
}

/// `200000 100000` (quota and period in microseconds) or `max 100000`.
fn parse_cpu_max(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    parse_cfs(quota, period)
}

/// Quota and period in microseconds; -1 (or any text) stands for no limit.
fn parse_cfs(quota: &str, period: &str) -> Option<f64> {
    let quota: u64 = quota.trim().parse().ok()?;
    let period: u64 = period.trim().parse().ok()?;
    (quota != 0 && period != 0).then(|| quota as f64 / period as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn quotas() {
        assert_eq!(parse_cpu_max("765000 100000\n"), Some(7.65));
        assert_eq!(parse_cpu_max("50000 100000"), Some(0.5));
        assert_eq!(parse_cfs("200000\n", "100000\n"), Some(2.0));
        for text in ["", "max", "max 100000", "-1 100000", "1", "0 100000", "100000 0", "1 2 3", "nan 1", "inf inf"] {
            assert_eq!(parse_cpu_max(text), None, "{text:?}");
        }
        assert_eq!(parse_cfs("-1", "100000"), None);
    }

    #[test]
    fn groups() {
        let group = |version, path: &str| Some(Group { version, path: PathBuf::from(path) });
        assert_eq!(parse_group("0::/user.slice"), group(Version::Two, "/user.slice"));
        assert_eq!(parse_group("4:cpu,cpuacct:/a:b"), group(Version::One, "/a:b"));
        for line in ["", "0", "0:", "3:cpuset:/", "2:cpuacct:/", "9:name=systemd:/"] {
            assert_eq!(parse_group(line), None, "{line:?}");
        }
    }

    #[test]
    fn mounts() {
        let line = "33 31 0:30 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct";
        let point = PathBuf::from("/sys/fs/cgroup/cpu");
        assert_eq!(parse_mount(line), Some(Mount { version: Version::One, group: PathBuf::from("/"), point }));
        let line = "30 23 0:26 /pod/1 /sys/fs/cgroup ro - cgroup2 cgroup rw";
        assert_eq!(parse_mount(line).unwrap().version, Version::Two);
        for line in [
            "",
            " - ",
            "33 31 0:30 / - cgroup2",
            "33 31 0:30 / /sys/fs/cgroup/cpuacct rw - cgroup cgroup rw,cpuacct",
            "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755",
        ] {
            assert_eq!(parse_mount(line), None, "{line:?}");
        }
    }

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

    const TWO: (&str, &str) = ("proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n");

    #[test]
    fn the_least_quota_on_the_way_up_counts() {
        let root = tree(&[
            TWO,
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/b/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/a/cpu.max", "150000 100000\n"),
            ("sys/fs/cgroup/cpu.max", "400000 100000\n"),
            // Not an ancestor within the mount.
            ("sys/fs/cpu.max", "1000 100000\n"),
        ]);
        assert_eq!(quota(root.path()), Some(1.5));
    }

    #[test]
    fn version_one() {
        let root = tree(&[
            ("proc/self/mountinfo", "33 31 0:30 /docker/x /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"),
            ("proc/self/cgroup", "2:cpuset:/\n1:cpu:/docker/x\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "300000\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ]);
        assert_eq!(quota(root.path()), Some(3.0));
    }

    #[test]
    fn paths_out_of_the_namespace_mean_the_mounted_group() {
        for path in ["/../../other", "/host/path", "relative"] {
            let group = format!("0::{path}\n");
            let root = tree(&[TWO, ("proc/self/cgroup", &group), ("sys/fs/cgroup/cpu.max", "200000 100000\n")]);
            assert_eq!(quota(root.path()), Some(2.0), "{path}");
        }
    }

    #[test]
    fn no_files_no_quota() {
        assert_eq!(quota(tree(&[]).path()), None);
        assert_eq!(quota(tree(&[TWO, ("proc/self/cgroup", "0::/\n")]).path()), None);
        let here = quota(Path::new("/"));
        assert!(here.is_none_or(|cpus| cpus > 0.0));
    }
}
