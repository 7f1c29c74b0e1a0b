//! How the text of a profile is laid out: like other pretty JSON, but an object in a list is a line, with all that is in it. That is a
//! line for each class, which people can read and `diff` can tell apart, and two thirds of the text, which is time to load.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::{Formatter, PrettyFormatter};

/// The text of something, without a line break at its end.
///
/// # Errors
/// As for [`serde_json::to_vec`].
pub(crate) fn to_vec(value: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let mut text = Vec::new();
    let layout = Layout { pretty: PrettyFormatter::new(), depth: 0, is_item: false };
    value.serialize(&mut Serializer::with_formatter(&mut text, layout))?;
    Ok(text)
}

struct Layout<'a> {
    pretty: PrettyFormatter<'a>,
    /// Within a line: of how many arrays and objects; 0 elsewhere.
    depth: usize,
    /// Whether what comes next is an item of an array.
    is_item: bool,
}

impl Formatter for Layout<'_> {
    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        match self.depth {
            0 => self.pretty.begin_array(writer),
            _ => {
                self.depth += 1;
                writer.write_all(b"[")
            }
        }
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        match self.depth {
            0 => self.pretty.end_array(writer),
            _ => {
                self.depth -= 1;
                writer.write_all(b"]")
            }
        }
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.is_item = true;
        if self.depth == 0 { self.pretty.begin_array_value(writer, first) } else { separate(writer, first) }
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        if self.depth == 0 { self.pretty.end_array_value(writer) } else { Ok(()) }
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        if self.depth == 0 && !self.is_item {
            return self.pretty.begin_object(writer);
        }
        self.depth += 1;
        writer.write_all(b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        match self.depth {
            0 => self.pretty.end_object(writer),
            _ => {
                self.depth -= 1;
                writer.write_all(b"}")
            }
        }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.is_item = false;
        if self.depth == 0 { self.pretty.begin_object_key(writer, first) } else { separate(writer, first) }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        if self.depth == 0 { self.pretty.end_object_value(writer) } else { Ok(()) }
    }
}

/// What stands between two of a line.
fn separate<W: ?Sized + Write>(writer: &mut W, first: bool) -> io::Result<()> {
    if first { Ok(()) } else { writer.write_all(b", ") }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn entries_are_lines() {
        let value = json!({
            "entries": [{"class": {"d": 1}, "interval": [1.5, 2], "rivals": []}, {"class": {}, "why": "x"}],
            "none": [],
            "numbers": [1, 2],
            "schema": {"is": 1}
        });
        let text = String::from_utf8(to_vec(&value).unwrap()).unwrap();
        let expected = r#"{
  "entries": [
    {"class": {"d": 1}, "interval": [1.5, 2], "rivals": []},
    {"class": {}, "why": "x"}
  ],
  "none": [],
  "numbers": [
    1,
    2
  ],
  "schema": {
    "is": 1
  }
}"#;
        assert_eq!(text, expected);
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }
}
