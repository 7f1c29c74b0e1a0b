//! Rows of comparisons, printed as they come.

use std::io::{self, Write};

use regard::Setup;
use serde::Serialize;

use super::{Args, Format, Row};

/// Where figures come from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Origin {
    /// The processor's name.
    pub machine: String,
    /// Architecture, vendor, family and model.
    pub microarch: String,
    /// The name that profiles of the machine are kept under.
    pub fingerprint: String,
    /// Whether it is a virtual machine.
    pub r#virtual: bool,
    /// The level that is used.
    pub isa: &'static str,
    /// The version of the library.
    pub version: &'static str,
}

impl Origin {
    /// This machine.
    pub fn new(setup: &Setup) -> Self {
        let machine = &setup.machine;
        Self {
            machine: if machine.brand.is_empty() { "unknown processor".to_owned() } else { machine.brand.clone() },
            microarch: machine.microarch(),
            fingerprint: machine.fingerprint(),
            r#virtual: machine.hypervisor,
            isa: setup.level.isa().name(),
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}

/// Prints rows in one of the formats.
#[derive(Debug)]
pub struct Printer<W> {
    out: W,
    format: Format,
    origin: Origin,
    started: bool,
}

/// The columns for people: name, whether it is a figure, width.
const COLUMNS: [(&str, bool, usize); 10] = [
    ("group", false, 10),
    ("case", false, 27),
    ("base", false, 10),
    ("entrant", false, 25),
    ("speed-up", true, 10),
    ("95 % interval", true, 17),
    ("base GFLOP/s", true, 12),
    ("GFLOP/s", true, 8),
    ("of peak", true, 7),
    ("error", true, 7),
];

impl Printer<io::Stdout> {
    /// To standard output.
    pub fn to_stdout(args: &Args, setup: &Setup) -> Self {
        Self::new(io::stdout(), args.format, Origin::new(setup))
    }
}

impl<W: Write> Printer<W> {
    /// To anything.
    pub fn new(out: W, format: Format, origin: Origin) -> Self {
        Self { out, format, origin, started: false }
    }

    /// Prints rows, after a heading if they are the first.
    ///
    /// # Errors
    /// Those of the output.
    pub fn print(&mut self, rows: &[Row]) -> io::Result<()> {
        if !self.started {
            self.started = true;
            self.heading()?;
        }
        for row in rows {
            match self.format {
                Format::Table => writeln!(self.out, "{}", aligned(&cells(row)))?,
                Format::Md => {
                    writeln!(self.out, "| {} |", cells(row).map(|cell| cell.replace('|', "\\|")).join(" | "))?
                }
                Format::Csv => self.csv(row)?,
                Format::Jsonl => self.json(row)?,
            }
        }
        self.out.flush()
    }

    fn heading(&mut self) -> io::Result<()> {
        let Origin { machine, microarch, fingerprint, r#virtual, isa, version } = &self.origin;
        let kind = if *r#virtual { ", virtual" } else { "" };
        let line = format!("{machine}{kind} ({microarch}, fingerprint {fingerprint}), {isa}, regard {version}");
        let names = COLUMNS.map(|(name, ..)| name.to_owned());
        match self.format {
            Format::Table => writeln!(self.out, "{line}\n{}", aligned(&names)),
            Format::Md => {
                let rule = COLUMNS.map(|(_, is_figure, _)| if is_figure { "---:" } else { "---" }).join("|");
                writeln!(self.out, "{line}\n\n| {} |\n|{rule}|", names.join(" | "))
            }
            Format::Csv => writeln!(self.out, "{}", csv_fields(&self.record_of(&Row::default())?, true)),
            Format::Jsonl => Ok(()),
        }
    }

    fn csv(&mut self, row: &Row) -> io::Result<()> {
        let record = self.record_of(row)?;
        writeln!(self.out, "{}", csv_fields(&record, false))
    }

    fn json(&mut self, row: &Row) -> io::Result<()> {
        let record: serde_json::Map<_, _> = self.record_of(row)?.into_iter().collect();
        writeln!(self.out, "{}", serde_json::to_string(&record)?)
    }

    /// Everything that is known, in order.
    fn record_of(&self, row: &Row) -> io::Result<Vec<(String, serde_json::Value)>> {
        #[derive(Serialize)]
        struct Record<'a> {
            #[serde(flatten)]
            origin: &'a Origin,
            #[serde(flatten)]
            row: &'a Row,
        }
        match serde_json::to_value(Record { origin: &self.origin, row })? {
            serde_json::Value::Object(fields) => Ok(fields.into_iter().collect()),
            other => Err(io::Error::other(format!("{other} is no record"))),
        }
    }
}

fn cells(row: &Row) -> [String; 10] {
    let mark = if row.significant { "" } else { "~ " };
    [
        row.group.to_owned(),
        row.case.clone(),
        row.base.clone(),
        row.entrant.clone(),
        format!("{mark}{}", figures(row.speedup)),
        format!("{} .. {}", figures(row.low), figures(row.high)),
        format!("{:.1}", row.base_gflops),
        format!("{:.1}", row.gflops),
        format!("{:.3}", row.gflops / row.peak_gflops),
        format!("{:.1e}", row.largest_error),
    ]
}

/// A ratio with as many digits as make sense.
fn figures(ratio: f64) -> String {
    if ratio < 10.0 { format!("{ratio:.3}") } else { format!("{ratio:.1}") }
}

fn aligned(cells: &[String; 10]) -> String {
    let padded = cells.iter().zip(COLUMNS).map(|(cell, (_, is_figure, width))| match is_figure {
        true => format!("{cell:>width$}"),
        false => format!("{cell:<width$}"),
    });
    padded.collect::<Vec<_>>().join("  ")
}

/// The names or the values of a record, quoted where they have to be.
fn csv_fields(record: &[(String, serde_json::Value)], names: bool) -> String {
    let field = |(name, value): &(String, serde_json::Value)| {
        let text = match value {
            _ if names => name.clone(),
            serde_json::Value::String(text) => text.clone(),
            value => value.to_string(),
        };
        match text.contains([',', '"', '\n', '\r']) {
            true => format!("\"{}\"", text.replace('"', "\"\"")),
            false => text,
        }
    };
    record.iter().map(field).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        let names = ["full, 2048", "softmax", "say \"relu\""].map(str::to_owned);
        let [case, base, entrant] = names;
        Row {
            group: "weightings",
            case,
            base,
            entrant,
            speedup: 1.03,
            low: 0.99,
            high: 1.05,
            gflops: 90.0,
            peak_gflops: 100.0,
            ..Row::default()
        }
    }

    fn printed(format: Format) -> String {
        let origin = Origin {
            machine: "A, B".to_owned(),
            microarch: "x".to_owned(),
            fingerprint: "0123".to_owned(),
            r#virtual: true,
            isa: "avx2",
            version: "1",
        };
        let mut out = Vec::new();
        let mut printer = Printer::new(&mut out, format, origin);
        printer.print(&[row()]).unwrap();
        printer.print(&[row(), Row { significant: true, ..row() }]).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn people_see_what_is_no_difference() {
        let text = printed(Format::Table);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5);
        assert!(lines[0].contains("A, B, virtual") && lines[1].contains("95 % interval"));
        assert!(lines[2].contains("~ 1.030") && lines[2].contains("0.990 .. 1.050") && lines[2].contains("0.900"));
        assert!(!lines[4].contains('~'));
        assert!(lines[1..].iter().all(|line| line.chars().count() == lines[1].chars().count()), "{text}");
        assert_eq!(printed(Format::Md).lines().filter(|line| line.starts_with('|')).count(), 5);
    }

    #[test]
    fn lines_of_several_machines_can_be_put_together() {
        let text = printed(Format::Csv);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[1].contains("\"A, B\"") && lines[1].contains("\"say \"\"relu\"\"\""));
        let columns = lines[0].split(',').count();
        assert_eq!(lines[1].split(',').count(), columns + 2, "two fields have a comma of their own");
        let text = printed(Format::Jsonl);
        assert_eq!(text.lines().count(), 3);
        for line in text.lines() {
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!([&record["machine"], &record["entrant"]], ["A, B", "say \"relu\""]);
            assert_eq!(record["speedup"], 1.03);
        }
    }
}
