//! How far a long command has come: a bar on a terminal, plain lines elsewhere, on standard error in either case.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Shows progress until it is dropped.
#[derive(Debug)]
pub(crate) struct Reporter {
    /// None if standard error is not a terminal.
    bar: Option<ProgressBar>,
    /// When the last line was written.
    line: Option<Instant>,
}

/// The least time between two lines.
const QUIET: Duration = Duration::from_secs(2);

/// Steps of the bar.
const STEPS: f64 = 1000.0;

impl Reporter {
    pub(crate) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(STEPS as u64);
            let style = ProgressStyle::with_template("{bar:30} {percent:>3} %  {elapsed}  {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        Self { bar, line: None }
    }

    /// Shows a fraction from 0 to 1, and what is done now.
    pub(crate) fn show(&mut self, fraction: f64, what: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_position((fraction * STEPS) as u64);
                bar.set_message(what.to_owned());
            }
            None if self.line.is_none_or(|line| line.elapsed() >= QUIET) => {
                eprintln!("{:>3.0} %  {what}", 100.0 * fraction);
                self.line = Some(Instant::now());
            }
            None => {}
        }
    }

    /// Takes the bar away, so that results can be printed.
    pub(crate) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.clear();
    }
}
