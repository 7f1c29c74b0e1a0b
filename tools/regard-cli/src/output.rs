//! What goes to standard output.

use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

use crate::error::CliError;

/// Prints a line or several.
///
/// A reader that has seen enough (`regard info | head -1`) ends the program quietly.
pub(crate) fn text(text: impl Display) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => result.map_err(CliError::writing(Path::new("standard output"))),
    }
}

/// Prints a value as JSON, on one line.
pub(crate) fn json(value: &impl Serialize) -> Result<(), CliError> {
    text(serde_json::to_string(value).map_err(|error| CliError::Failed(format!("cannot write JSON: {error}")))?)
}

/// One line for a terminal: control characters (a file's name or contents may have some) are escaped.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut line, c| {
        if c.is_control() {
            line.extend(c.escape_default())
        } else {
            line.push(c)
        }
        line
    })
}
