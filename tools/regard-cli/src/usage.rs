//! What the command-line parser has to say, in the tool's own manner: help on standard output, errors on one line.

use std::process::ExitCode;

use clap::error::ErrorKind;

use crate::output;

/// Prints help, version or the error.
pub(crate) fn report(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // The parser knows whether the terminal has colours. A closed pipe is the reader's choice.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    eprintln!("regard: {}", output::one_line(&in_one_line(&error.render().to_string())));
    ExitCode::from(2)
}

/// The parser's message is a paragraph or several: the error, perhaps the names that would do or a tip, then the usage.
fn in_one_line(message: &str) -> String {
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let lines = message.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let mut text = String::new();
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with("For more information")) {
        let separator = match () {
            () if text.is_empty() => "",
            () if line.starts_with("tip:") => "; ",
            () => " ",
        };
        text.push_str(separator);
        text.push_str(line);
    }
    text + "; --help says more"
}

#[cfg(test)]
mod tests {
    use super::in_one_line;

    #[test]
    fn paragraphs_become_clauses() {
        let message = "error: invalid value 'rleu' for '--weighting <NAME>'\n  [possible values: relu, relu2]\n\n  \
                       tip: a similar value exists: 'relu'\n\nUsage: regard attend\n\nFor more information, try '--help'.\n";
        let expected = "invalid value 'rleu' for '--weighting <NAME>' [possible values: relu, relu2]; tip: a similar value \
                        exists: 'relu'; --help says more";
        assert_eq!(in_one_line(message), expected);
    }
}
