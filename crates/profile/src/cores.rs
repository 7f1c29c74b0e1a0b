//! The cores that this process may use.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Source, cgroup, files};

/// Processor cores, counted in the four ways that disagree.
///
/// Off Linux the three counts of CPUs are what [`std::thread::available_parallelism`] says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cores {
    /// Logical CPUs that are on line.
    pub logical_online: usize,
    /// Logical CPUs on line that the affinity mask of the process allows.
    pub allowed: usize,
    /// Physical cores that those belong to.
    pub physical_allowed: usize,
    /// CPUs' worth of time that the control group grants, if that is limited.
    pub quota: Option<f64>,
    /// NUMA nodes on line; 0 = unknown.
    pub numa_nodes: usize,
    /// Whether any allowed core runs more than one logical CPU.
    pub smt: bool,
    /// The kinds of core among the allowed ones, the faster first; empty where all are of one kind, or nobody says.
    #[serde(default)]
    pub classes: Vec<CoreClass>,
    /// Where the three counts of CPUs come from.
    #[serde(default)]
    pub counts_source: Source,
    /// Where the quota, or that there is none, comes from.
    #[serde(default)]
    pub quota_source: Source,
    /// Where the number of NUMA nodes comes from.
    #[serde(default)]
    pub numa_source: Source,
}

/// Cores of one kind on a machine that has several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreClass {
    /// What the system calls it: `core`, `atom` or `lowpower` on Intel's hybrids, `capacity-N` on Arm, where the fastest
    /// kind has N = 1024.
    pub name: String,
    /// Allowed physical cores of it.
    pub physical: usize,
}

impl Cores {
    /// The cores of this machine, as this process may use them now.
    pub fn detect() -> Self {
        Self::read(Path::new("/"))
    }

    /// How many threads to compute with: one for each physical core allowed, and no more than the quota rounded down;
    /// at least 1.
    ///
    /// A thread beyond the quota does not add speed, it brings the moment forward at which all of them are stopped.
    pub fn usable(&self) -> usize {
        // `as` saturates, and takes NaN (which detection never yields) to 0.
        let quota = self.quota.map_or(usize::MAX, |cpus| cpus as usize);
        self.physical_allowed.min(quota).max(1)
    }

    /// Reads the files of Linux below `root`.
    fn read(root: &Path) -> Self {
        let cpus = root.join("sys/devices/system/cpu");
        let list = |path: &Path| files::read(path).and_then(|text| files::parse_cpu_list(&text));
        let online = list(&cpus.join("online"));
        let mask = files::read(&root.join("proc/self/status")).and_then(|text| parse_allowed(&text));
        let Some(allowed) = allowed(online.as_deref(), mask) else {
            let count = std::thread::available_parallelism().map_or(1, usize::from);
            return Self {
                logical_online: count,
                allowed: count,
                physical_allowed: count,
                counts_source: Source::Std,
                ..Self::default()
            };
        };
        let siblings: Vec<Vec<usize>> = allowed
            .iter()
            // A CPU whose siblings are unknown is a core of its own.
            .map(|&cpu| list(&cpus.join(format!("cpu{cpu}/topology/thread_siblings_list"))).unwrap_or(vec![cpu]))
            .collect();
        let numa_nodes = list(&root.join("sys/devices/system/node/online")).map_or(0, |nodes| nodes.len());
        let known = |is_known: bool, source| if is_known { source } else { Source::Unknown };
        Self {
            counts_source: if online.is_some() { Source::Sysfs } else { Source::Procfs },
            logical_online: online.map_or(allowed.len(), |online| online.len()),
            allowed: allowed.len(),
            physical_allowed: siblings.iter().collect::<BTreeSet<_>>().len(),
            quota: cgroup::quota(root),
            quota_source: known(root.join("proc/self/cgroup").exists(), Source::Cgroup),
            numa_nodes,
            numa_source: known(numa_nodes > 0, Source::Sysfs),
            classes: classes(root, &allowed, &siblings),
            smt: siblings.iter().any(|cpus| cpus.len() > 1),
        }
    }
}

/// The kinds of core among `allowed` CPUs, whose siblings are `siblings`; empty if there are not two kinds.
fn classes(root: &Path, allowed: &[usize], siblings: &[Vec<usize>]) -> Vec<CoreClass> {
    let of_kind = |name: String, is_of_kind: &dyn Fn(usize) -> bool| {
        let cpus = allowed.iter().zip(siblings).filter(|(cpu, _)| is_of_kind(**cpu));
        let physical = cpus.map(|(_, siblings)| siblings).collect::<BTreeSet<_>>().len();
        CoreClass { name, physical }
    };
    // Intel: a performance monitoring unit for each kind, named after it.
    let hybrid = ["core", "atom", "lowpower"].map(|name| {
        let cpus = files::read(&root.join(format!("sys/devices/cpu_{name}/cpus")));
        cpus.and_then(|text| files::parse_cpu_list(&text))
            .map_or(CoreClass { name: name.to_owned(), physical: 0 }, |cpus| {
                of_kind(name.to_owned(), &|cpu| cpus.binary_search(&cpu).is_ok())
            })
    });
    // Arm: how much work a CPU does, over that of the fastest, times 1024.
    let capacity = |cpu: usize| {
        let text = files::read(&root.join(format!("sys/devices/system/cpu/cpu{cpu}/cpu_capacity")))?;
        text.parse::<usize>().ok()
    };
    let capacities: BTreeSet<usize> = allowed.iter().filter_map(|cpu| capacity(*cpu)).collect();
    let by_capacity = (capacities.into_iter().rev())
        .map(|found| of_kind(format!("capacity-{found}"), &|cpu| capacity(cpu) == Some(found)));
    let classes: Vec<CoreClass> = hybrid.into_iter().filter(|class| class.physical > 0).chain(by_capacity).collect();
    if classes.len() < 2 { Vec::new() } else { classes }
}

/// The mask of the process (not of the calling thread, which may be pinned) in `/proc/self/status`.
fn parse_allowed(status: &str) -> Option<Vec<usize>> {
    files::parse_cpu_list(files::parse_field(status, "Cpus_allowed_list")?)
}

/// The CPUs that are both on line and allowed; `None` if neither list is known or they have nothing in common.
///
/// The mask alone is too long: it keeps CPUs that could be plugged in one day.
fn allowed(online: Option<&[usize]>, mask: Option<Vec<usize>>) -> Option<Vec<usize>> {
    let both: Vec<usize> = match (online, mask) {
        (Some(online), Some(mask)) => mask.into_iter().filter(|cpu| online.binary_search(cpu).is_ok()).collect(),
        (Some(online), None) => online.to_vec(),
        (None, Some(mask)) => mask,
        (None, None) => return None,
    };
    (!both.is_empty()).then_some(both)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn write(root: &Path, name: &str, text: &str) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn masks() {
        assert_eq!(parse_allowed("Cpus_allowed:\tf\nCpus_allowed_list:\t0,2-3\n"), Some(vec![0, 2, 3]));
        for status in ["", "Cpus_allowed:\tf\n", "Cpus_allowed_list:\n", "Cpus_allowed_list:\tall\n"] {
            assert_eq!(parse_allowed(status), None, "{status:?}");
        }
        assert_eq!(allowed(Some(&[0, 1]), Some(vec![1, 2, 3])), Some(vec![1]));
        assert_eq!(allowed(Some(&[0, 1]), Some(vec![7])), None);
        assert_eq!(allowed(Some(&[0, 1]), None), Some(vec![0, 1]));
        assert_eq!(allowed(None, Some(vec![5])), Some(vec![5]));
        assert_eq!(allowed(None, None), None);
    }

    #[test]
    fn siblings_are_one_core() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        write(root, "sys/devices/system/cpu/online", "0-7\n");
        write(root, "proc/self/status", "Name:\tx\nCpus_allowed_list:\t0-2,4-63\n");
        write(root, "sys/devices/system/node/online", "0-1\n");
        for cpu in 0..8 {
            let list = format!("{},{}\n", cpu % 4, cpu % 4 + 4);
            write(root, &format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"), &list);
        }
        let cores = Cores::read(root);
        let wanted = Cores {
            logical_online: 8,
            allowed: 7,
            physical_allowed: 4,
            quota: None,
            numa_nodes: 2,
            smt: true,
            classes: Vec::new(),
            counts_source: Source::Sysfs,
            quota_source: Source::Unknown,
            numa_source: Source::Sysfs,
        };
        assert_eq!(cores, wanted);

        // Half a core of siblings is still that core.
        write(root, "proc/self/status", "Cpus_allowed_list:\t1,5,7\n");
        assert_eq!(Cores::read(root).physical_allowed, 2);
    }

    #[test]
    fn without_topology_each_cpu_is_a_core() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "proc/self/status", "Cpus_allowed_list:\t3-5\n");
        let cores = Cores::read(root.path());
        assert_eq!((cores.logical_online, cores.allowed, cores.physical_allowed, cores.smt), (3, 3, 3, false));
        assert_eq!(cores.numa_nodes, 0);
        assert_eq!((cores.counts_source, cores.numa_source), (Source::Procfs, Source::Unknown));
    }

    fn class(name: &str, physical: usize) -> CoreClass {
        CoreClass { name: name.to_owned(), physical }
    }

    #[test]
    fn hybrids_have_classes() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        // Two performance cores of two CPUs each, four efficiency cores; the last one is not allowed.
        write(root, "sys/devices/system/cpu/online", "0-7\n");
        write(root, "proc/self/status", "Cpus_allowed_list:\t0-6\n");
        for cpu in 0..4 {
            let list = format!("{}-{}\n", cpu / 2 * 2, cpu / 2 * 2 + 1);
            write(root, &format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"), &list);
        }
        write(root, "sys/devices/cpu_core/cpus", "0-3\n");
        assert_eq!(Cores::read(root).classes, [], "one kind is no kind");
        write(root, "sys/devices/cpu_atom/cpus", "4-7\n");
        assert_eq!(Cores::read(root).classes, [class("core", 2), class("atom", 3)]);
        assert_eq!(Cores::read(root).physical_allowed, 5);
    }

    #[test]
    fn arm_has_capacities() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        write(root, "sys/devices/system/cpu/online", "0-5\n");
        for (cpu, capacity) in [("0", "446"), ("1", "446"), ("2", "446"), ("3", "1024"), ("4", "871"), ("5", "soon")] {
            write(root, &format!("sys/devices/system/cpu/cpu{cpu}/cpu_capacity"), capacity);
        }
        let wanted = [class("capacity-1024", 1), class("capacity-871", 1), class("capacity-446", 3)];
        assert_eq!(Cores::read(root).classes, wanted);
    }

    #[test]
    fn without_any_file_the_standard_library_is_asked() {
        let root = tempfile::tempdir().unwrap();
        let cores = Cores::read(root.path());
        assert!(cores.allowed >= 1);
        assert_eq!(cores.allowed, cores.physical_allowed);
        assert_eq!(cores.counts_source, Source::Std);
    }

    #[test]
    fn usable_is_the_least_and_never_zero() {
        let cores = |physical_allowed, quota| Cores { physical_allowed, quota, ..Cores::default() };
        assert_eq!(cores(8, None).usable(), 8);
        assert_eq!(cores(48, Some(7.65)).usable(), 7);
        assert_eq!(cores(4, Some(64.0)).usable(), 4);
        assert_eq!(cores(4, Some(0.5)).usable(), 1);
        assert_eq!(cores(0, None).usable(), 1);
        assert_eq!(cores(4, Some(f64::NAN)).usable(), 1);
        assert_eq!(cores(4, Some(f64::INFINITY)).usable(), 4);
        assert_eq!(cores(4, Some(-1.0)).usable(), 1);
    }

    #[test]
    fn this_machine_has_cores() {
        let cores = Cores::detect();
        assert!(cores.usable() >= 1);
        assert!(cores.physical_allowed <= cores.allowed && cores.allowed <= cores.logical_online, "{cores:?}");
    }
}
