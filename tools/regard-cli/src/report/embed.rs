//! The report inside its page.

use std::io;
use std::path::Path;

use super::data::{Report, SCHEMA};
use super::measure::KIND;
use crate::error::CliError;

/// What comes before the JSON, and after it.
const TAGS: [&str; 2] = ["<script type=\"application/json\" id=\"regard-report\">", "</script>"];

/// More than any report has.
const MOST_BYTES: u64 = 64 << 20;

/// The element that holds the report.
///
/// # Errors
/// [`CliError::Failed`] if it cannot be written as JSON.
pub(super) fn element(report: &Report) -> Result<String, CliError> {
    let json = serde_json::to_string(report);
    let json = json.map_err(|error| CliError::Failed(format!("cannot write JSON: {error}")))?;
    // These stand in strings only. Escaped, they can neither end the element nor begin one.
    let json = json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
    Ok(format!("{}{json}{}", TAGS[0], TAGS[1]))
}

/// The report of a page.
///
/// # Errors
/// [`CliError::Read`] if there is no such file, [`CliError::Input`] if it is no report.
pub(super) fn read(path: &Path) -> Result<Report, CliError> {
    let reading = |error: io::Error| CliError::Read { path: path.to_owned(), error };
    let bad = |why: &str| CliError::Input(format!("{}: {why}", path.display()));
    let size = std::fs::metadata(path).map_err(reading)?.len();
    if size > MOST_BYTES {
        return Err(bad("it is no report: there are too many bytes in it"));
    }
    let page = std::fs::read(path).map_err(reading)?;
    let page = String::from_utf8(page).map_err(|_| bad("it is no report: it is no text"))?;
    let json = page.split_once(TAGS[0]).and_then(|(_, rest)| rest.split_once(TAGS[1]));
    let (json, _) = json.ok_or_else(|| bad("it is no page that `regard report` made"))?;
    let value: serde_json::Value =
        serde_json::from_str(json).map_err(|error| bad(&format!("its data are no JSON: {error}")))?;
    if value["kind"] != KIND {
        return Err(bad("its data are of another kind"));
    }
    if value["schema"] != SCHEMA {
        return Err(bad(&format!("its data are of version {}, and this tool reads {SCHEMA}", value["schema"])));
    }
    serde_json::from_value(value).map_err(|error| bad(&format!("its data are incomplete: {error}")))
}
