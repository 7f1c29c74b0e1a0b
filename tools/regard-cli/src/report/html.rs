//! Text in HTML.

use std::fmt::Write;

/// Text as it stands between tags or in an attribute in double quotes.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            // No document may hold the others, however they are written.
            '\t' | '\n' | '\r' => escaped.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A cell of a table.
#[derive(Clone, Debug)]
pub(super) enum Cell {
    /// Words, to the left.
    Text(String),
    /// A figure, to the right.
    Figure(String),
    /// A fraction of a limit: a figure and a bar.
    Share(f64),
}

impl Cell {
    fn to_html(&self) -> String {
        match self {
            Self::Text(text) => format!("<td>{}</td>", escape(text)),
            Self::Figure(text) => format!("<td class=\"n\">{}</td>", escape(text)),
            Self::Share(share) => {
                let width = (100.0 * share).clamp(0.0, 100.0);
                let text = percent(*share);
                format!(
                    "<td class=\"n share\"><span class=\"track\"><span style=\"width:{width:.1}%\"></span></span><b>{text}</b></td>"
                )
            }
        }
    }
}

/// A table; headings of columns of figures stand to the right.
pub(super) fn table(caption: &str, headings: &[&str], rows: &[Vec<Cell>]) -> String {
    let mut html = String::from("<div class=\"scroll\"><table>");
    if !caption.is_empty() {
        let _ = write!(html, "<caption>{}</caption>", escape(caption));
    }
    html += "<thead><tr>";
    for (column, heading) in headings.iter().enumerate() {
        let is_text = rows.first().and_then(|row| row.get(column)).is_none_or(|cell| matches!(cell, Cell::Text(_)));
        let class = if is_text { "" } else { " class=\"n\"" };
        let _ = write!(html, "<th scope=\"col\"{class}>{}</th>", escape(heading));
    }
    html += "</tr></thead><tbody>";
    for row in rows {
        let _ = write!(html, "<tr>{}</tr>", row.iter().map(Cell::to_html).collect::<String>());
    }
    html + "</tbody></table></div>"
}

/// A fraction in percent: `93.4 %`.
pub(super) fn percent(fraction: f64) -> String {
    format!("{:.1} %", 100.0 * fraction)
}

/// A rate with three digits or more: `4.31`, `43.1`, `431`.
pub(super) fn rate(number: f64) -> String {
    match number.abs() {
        size if size >= 99.95 => format!("{number:.0}"),
        size if size >= 9.995 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

/// An error: `2.1e-7`, or 0.
pub(super) fn error(number: f64) -> String {
    if number == 0.0 { "0".to_owned() } else { format!("{number:.1e}") }
}

/// Bytes in binary units.
pub(super) fn bytes(bytes: usize) -> String {
    match bytes {
        bytes if bytes >= 1 << 20 => format!("{} MiB", bytes >> 20),
        bytes => format!("{} KiB", bytes >> 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gets_out_of_its_place() {
        let hostile = "</td><script>alert('x')</script>\" & \u{0}";
        let escaped = escape(hostile);
        assert!(!escaped.contains(['<', '>', '"', '\'', '\u{0}']), "{escaped}");
        assert!(escaped.contains("&amp;"));
        let html = table(hostile, &[hostile], &[vec![Cell::Text(hostile.to_owned())]]);
        assert!(!html.contains("<script"));
    }

    #[test]
    fn figures_have_three_digits() {
        assert_eq!([4.308, 43.08, 430.8].map(rate), ["4.31", "43.1", "431"]);
        assert_eq!([9.996, 99.96].map(rate), ["10.0", "100"]);
        assert_eq!((percent(0.9341), error(0.0), error(2.13e-7)), ("93.4 %".into(), "0".into(), "2.1e-7".into()));
        assert_eq!((bytes(48 << 10), bytes(32 << 20)), ("48 KiB".into(), "32 MiB".into()));
    }
}
