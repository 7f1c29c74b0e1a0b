//! Where what is known of a machine comes from.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Who said it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Linux, files below `/sys`.
    Sysfs,
    /// Linux, files below `/proc`.
    Procfs,
    /// Linux, the control group of the process.
    Cgroup,
    /// The CPUID instruction.
    Cpuid,
    /// Rust's standard library, which asks processor and operating system.
    Std,
    /// A measurement, where nobody said.
    Measured,
    /// Nobody; the value is unknown.
    #[default]
    #[serde(alias = "default")]
    Unknown,
}

impl Source {
    /// The name in profiles.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sysfs => "sysfs",
            Self::Procfs => "procfs",
            Self::Cgroup => "cgroup",
            Self::Cpuid => "cpuid",
            Self::Std => "std",
            Self::Measured => "measured",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_file() {
        let all = [
            Source::Sysfs,
            Source::Procfs,
            Source::Cgroup,
            Source::Cpuid,
            Source::Std,
            Source::Measured,
            Source::Unknown,
        ];
        for source in all {
            assert_eq!(serde_json::to_value(source).unwrap(), source.name());
        }
        assert_eq!(serde_json::from_str::<Source>("\"default\"").unwrap(), Source::Unknown, "the name until 0.1.0");
    }
}
