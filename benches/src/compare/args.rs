//! What the command line of a comparison says.

use clap::{Parser, ValueEnum};
use regard_tuner::measure::Budget;

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns, for people.
    #[default]
    Table,
    /// A table in markdown.
    Md,
    /// Comma-separated values with a header. Every line names the machine, so that files of several can be put together.
    Csv,
    /// A JSON object per line, each with the machine.
    Jsonl,
}

/// Interleaved comparisons: ratios with 95 % intervals. A ratio whose interval includes 1 is marked with `~`.
#[derive(Clone, Debug, Default, Parser)]
pub struct Args {
    /// Only comparisons whose `group/case` contains this
    #[arg(long, value_name = "TEXT")]
    pub filter: Option<String>,
    /// The same
    #[arg(value_name = "FILTER")]
    pub positional_filter: Option<String>,
    /// How to print
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
    /// Time for a comparison; twelve rounds are made even if they take longer
    #[arg(long, default_value_t = 2.0, value_parser = seconds, value_name = "S")]
    pub seconds: f64,
    /// List the comparisons
    #[arg(long)]
    pub list: bool,
    /// One round of each, on small inputs: whether they work
    #[arg(long)]
    pub test: bool,
    /// What cargo says to every bench
    #[arg(long, hide = true)]
    pub bench: bool,
}

impl Args {
    /// Those of this process, which ends here if they are wrong.
    pub fn of_process() -> Self {
        Self::parse()
    }

    /// Whether a comparison is wanted.
    pub fn wants(&self, group: &str, case: &str) -> bool {
        let name = format!("{group}/{case}");
        [&self.filter, &self.positional_filter].into_iter().flatten().all(|filter| name.contains(filter.as_str()))
    }

    /// How long to go on with a comparison.
    pub fn budget(&self) -> Budget {
        if self.test { Budget::rounds(1) } else { Budget::seconds(self.seconds) }
    }

    /// Rows of queries or keys: few in a test.
    pub fn rows(&self, rows: usize) -> usize {
        if self.test { rows.min(64) } else { rows }
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.0..=86_400.0).contains(seconds));
    seconds.ok_or_else(|| "expected seconds, from 0 to 86400".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_of_group_and_case() {
        let parse = |line: &str| Args::try_parse_from(["compare"].into_iter().chain(line.split_whitespace())).unwrap();
        assert!(parse("--bench").wants("levels", "full/2048/d64"));
        assert!(parse("--bench --filter levels/full").wants("levels", "full/2048/d64"));
        assert!(!parse("--filter levels d128").wants("levels", "full/2048/d64"));
        assert_eq!((parse("--test").rows(2048), parse("").rows(2048)), (64, 2048));
        assert_eq!(parse("--format jsonl --seconds 0.5").budget(), Budget::seconds(0.5));
        assert!(Args::try_parse_from(["compare", "--seconds", "-1"]).is_err());
        assert!(Args::try_parse_from(["compare", "--format", "xml"]).is_err());
    }
}
