//! `regard report compare`: the reports of several machines side by side.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::data::{Figure, Group, Report};
use super::html::{Cell, escape, percent, rate, table};
use super::svg::{Axis, Chart, Kind, Margins};
use super::{embed, page};
use crate::cli::Global;
use crate::error::CliError;
use crate::output;
use crate::tensors::Writer;

/// Puts reports side by side: speeds, fractions of each machine's own limits, and how many times as fast as the first.
///
/// Cases are compared that all reports have.
#[derive(Clone, Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct CompareArgs {
    /// Pages that `regard report` made
    #[arg(value_name = "REPORT.html", required = true, num_args = 2..)]
    reports: Vec<PathBuf>,
    /// Write a page too
    #[arg(long, value_name = "OUT.html")]
    html: Option<PathBuf>,
    /// Print tables in markdown
    #[arg(long)]
    md: bool,
    /// Fail, with exit code 1, if a case of another report is slower than this many times the first one's, beyond doubt: with all
    /// of its interval, and as a fraction of its own limits too. 0.95 lets slowdowns of 5 % pass
    #[arg(long, value_name = "RATIO", value_parser = ratio)]
    fail_below: Option<f64>,
}

/// A ratio that makes sense.
fn ratio(text: &str) -> Result<f64, String> {
    let ratio = text.parse().ok().filter(|ratio| (0.0..=1000.0).contains(ratio));
    ratio.ok_or_else(|| "expected a ratio, from 0 to 1000".to_owned())
}

const AFTER_HELP: &str = "\
A ratio is the speed over that of the first report, with the 95 % interval that both medians leave (~ marks those that include
1; reports of older versions have none); the mean is geometric. Ratios of machines hold as far as both were quiet: the grades say
how much that is, and an interval knows only of what changed while its case was timed.

Examples:
  regard report compare a.html b.html
  regard report compare a.html b.html c.html --html all.html
  regard report compare a.html b.html --md
  regard report compare before.html after.html --fail-below 0.95";

/// A report with its letter.
#[derive(Debug)]
struct Side {
    letter: char,
    report: Report,
}

/// A case that all reports have.
#[derive(Debug)]
struct Row<'a> {
    figures: Vec<&'a Figure>,
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Line<'a> {
    group: Group,
    options: &'a str,
    machines: Vec<&'a str>,
    gflops: Vec<f64>,
    fraction_of_roof: Vec<f64>,
    max_abs_error: Vec<f64>,
    /// Over the first.
    ratios: Vec<f64>,
    /// Their 95 % intervals; null where a report has none.
    intervals: Vec<Option<[f64; 2]>>,
}

/// Runs the command.
pub(super) fn run(args: &CompareArgs, global: &Global) -> Result<(), CliError> {
    let writer = args.html.as_deref().map(Writer::new).transpose()?;
    let reports = args.reports.iter().map(|path| embed::read(path)).collect::<Result<Vec<_>, _>>()?;
    if reports.len() > 26 {
        return Err(CliError::Usage("at most 26 reports can be compared".to_owned()));
    }
    let sides: Vec<Side> = ('A'..='Z').zip(reports).map(|(letter, report)| Side { letter, report }).collect();
    let rows = rows(&sides);
    if rows.is_empty() {
        return Err(CliError::Input("the reports have no case in common: are some of them quick ones?".to_owned()));
    }
    if let Some(writer) = writer {
        writer.write_bytes(render(&sides, &rows).as_bytes())?;
    }
    if global.json {
        rows.iter().try_for_each(|row| output::json(&row.to_json(&sides)))?;
    } else {
        output::text(to_text(&sides, &rows, args.md))?;
    }
    args.fail_below.map_or(Ok(()), |least| verdict(&sides, &rows, least))
}

/// Fails if some case is slower than so many times the first, beyond doubt. What the machine lost itself does not count: on one that
/// is shared, its bandwidth falls by a tenth from one quarter of an hour to the next, and decoding with it.
fn verdict(sides: &[Side], rows: &[Row<'_>], least: f64) -> Result<(), CliError> {
    let mut slower = Vec::new();
    for row in rows {
        for (i, side) in sides.iter().enumerate().skip(1) {
            let Ratio { ratio, interval } = row.ratio(i);
            // Without an interval there is doubt as soon as there is any.
            let of_limit = row.figures[i].fraction_of_roof / row.figures[0].fraction_of_roof;
            if interval.map_or(ratio, |[_, high]| high) < least && of_limit < least {
                let name = output::one_line(&row.figures[0].name());
                slower.push(format!("{}/A is {ratio:.3} at {name}", side.letter));
            }
        }
    }
    if slower.is_empty() {
        return Ok(());
    }
    let (count, of) = (slower.len(), rows.len() * (sides.len() - 1));
    Err(CliError::Failed(format!("{count} of {of} ratios are below {least}: {}", slower.join("; "))))
}

/// The cases of the first report that all others have, in its order.
fn rows(sides: &[Side]) -> Vec<Row<'_>> {
    let (first, others) = sides.split_first().expect("there are reports");
    let find = |figure: &Figure, side: &'_ Side| -> Option<usize> {
        side.report.figures.iter().position(|other| other.key() == figure.key())
    };
    let row = |figure| {
        let more = others.iter().map(|side| Some(&side.report.figures[find(figure, side)?]));
        let figures = std::iter::once(Some(figure)).chain(more).collect::<Option<Vec<_>>>()?;
        Some(Row { figures })
    };
    first.report.figures.iter().filter_map(row).collect()
}

/// A speed over that of the first report.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Ratio {
    ratio: f64,
    /// Its 95 % interval, if both have one.
    interval: Option<[f64; 2]>,
}

impl Ratio {
    /// Of two medians that know nothing of each other: the squares of the relative half-widths add up.
    fn new(figure: &Figure, first: &Figure) -> Self {
        let ratio = figure.gflops / first.gflops;
        let interval = figure.gflops_interval.zip(first.gflops_interval).map(|(own, other)| {
            let down = (own[0] / figure.gflops).ln().hypot((other[1] / first.gflops).ln());
            let up = (own[1] / figure.gflops).ln().hypot((other[0] / first.gflops).ln());
            [ratio * (-down).exp(), ratio * up.exp()]
        });
        Self { ratio, interval }
    }

    /// Whether it may as well be 1.
    fn may_be_one(self) -> bool {
        self.interval.is_some_and(|[low, high]| low <= 1.0 && 1.0 <= high)
    }

    /// With so many digits.
    fn to_text(self, digits: usize) -> String {
        let Self { ratio, interval } = self;
        let mark = if self.may_be_one() { "~" } else { "" };
        match interval {
            Some([low, high]) => format!("{mark}{ratio:.digits$} ({low:.digits$} to {high:.digits$})"),
            None => format!("{ratio:.digits$}"),
        }
    }
}

impl Row<'_> {
    /// Speeds over that of the first.
    fn ratios(&self) -> Vec<f64> {
        (0..self.figures.len()).map(|side| self.ratio(side).ratio).collect()
    }

    fn ratio(&self, side: usize) -> Ratio {
        // The first is itself: there is no doubt about that.
        if side == 0 {
            return Ratio { ratio: 1.0, interval: Some([1.0; 2]) };
        }
        Ratio::new(self.figures[side], self.figures[0])
    }

    fn to_json<'a>(&'a self, sides: &'a [Side]) -> Line<'a> {
        let of = |number: fn(&Figure) -> f64| self.figures.iter().map(|figure| number(figure)).collect();
        Line {
            group: self.figures[0].group,
            options: &self.figures[0].options,
            machines: sides.iter().map(|side| &*side.report.machine.name).collect(),
            gflops: of(|figure| figure.gflops),
            fraction_of_roof: of(|figure| figure.fraction_of_roof),
            max_abs_error: of(|figure| figure.max_abs_error),
            ratios: self.ratios(),
            intervals: (0..self.figures.len()).map(|side| self.ratio(side).interval).collect(),
        }
    }
}

/// The geometric mean, the least and the greatest of positive numbers.
fn summary(numbers: impl Iterator<Item = f64>) -> [f64; 3] {
    let logs: Vec<f64> = numbers.filter(|number| *number > 0.0).map(f64::ln).collect();
    if logs.is_empty() {
        return [f64::NAN; 3];
    }
    let mean = logs.iter().sum::<f64>() / logs.len() as f64;
    let [least, most] =
        [logs.iter().copied().fold(f64::INFINITY, f64::min), logs.iter().copied().fold(f64::NEG_INFINITY, f64::max)];
    [mean, least, most].map(f64::exp)
}

const GROUPS: [(Group, &str); 4] = [
    (Group::Prefill, "prompts"),
    (Group::Decode, "decoding"),
    (Group::Few, "a few tokens"),
    (Group::Threads, "threads"),
];

/// Mean ratios: names of the groups, and for each side but the first its mean and range.
fn means(sides: &[Side], rows: &[Row<'_>]) -> Vec<(String, Vec<[f64; 3]>)> {
    let of = |belongs: &dyn Fn(&Row<'_>) -> bool| -> Vec<[f64; 3]> {
        let side = |i: usize| summary(rows.iter().filter(|row| belongs(row)).map(|row| row.ratios()[i]));
        (1..sides.len()).map(side).collect()
    };
    let mut found = vec![("all cases".to_owned(), of(&|_| true))];
    for (group, name) in GROUPS {
        if rows.iter().any(|row| row.figures[0].group == group) {
            found.push((name.to_owned(), of(&|row| row.figures[0].group == group)));
        }
    }
    found
}

/// What makes ratios doubtful.
fn doubts(sides: &[Side]) -> Vec<String> {
    /// What to say, and of what that differs.
    type Kind = (&'static str, fn(&Report) -> &str);
    let differ = |of: fn(&Report) -> &str| sides.iter().any(|side| of(&side.report) != of(&sides[0].report));
    let mut doubts = Vec::new();
    let kinds: [Kind; 3] = [
        ("The levels differ.", |report| &report.machine.isa),
        ("The versions of regard differ.", |report| &report.version),
        ("The commands differ.", |report| &report.command),
    ];
    for (text, of) in kinds {
        if differ(of) {
            doubts.push(text.to_owned());
        }
    }
    for Side { letter, report } in sides {
        if report.validity.grade < super::data::Grade::Good {
            doubts.push(format!("{letter}: {}", report.validity.reasons.join(" ")));
        }
    }
    doubts
}

fn to_text(sides: &[Side], rows: &[Row<'_>], md: bool) -> String {
    let mut lines = Vec::new();
    for Side { letter, report } in sides {
        let machine = &report.machine;
        let (name, isa, cores) =
            (output::one_line(&machine.name), output::one_line(&machine.isa), machine.usable_cores);
        let date = page::date(report.unix_time);
        lines.push(format!("{letter}  {name}, {isa}, usable cores: {cores}, {date}"));
        if md {
            lines.push(String::new());
        }
    }
    lines.extend(doubts(sides).iter().map(|doubt| format!("!  {}", output::one_line(doubt))));
    lines.push(String::new());
    let mut heading = vec!["case".to_owned()];
    for Side { letter, .. } in sides {
        heading.extend([format!("{letter} GFLOP/s"), format!("{letter} of limit")]);
    }
    heading.extend(sides[1..].iter().map(|side| format!("{}/A", side.letter)));
    let mut cells = vec![heading];
    for row in rows {
        let mut line = vec![output::one_line(&row.figures[0].name())];
        for figure in &row.figures {
            line.extend([rate(figure.gflops), percent(figure.fraction_of_roof)]);
        }
        line.extend((1..sides.len()).map(|side| row.ratio(side).to_text(3)));
        cells.push(line);
    }
    for (name, means) in means(sides, rows) {
        let mut line = vec![format!("mean, {name}")];
        line.extend(std::iter::repeat_n(String::new(), 2 * sides.len()));
        line.extend(means.iter().map(|[mean, ..]| format!("{mean:.3}")));
        cells.push(line);
    }
    lines.extend(aligned(&cells, md));
    lines.join("\n")
}

/// Columns of the same width, the first to the left.
fn aligned(cells: &[Vec<String>], md: bool) -> Vec<String> {
    let width = |column: usize| cells.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..cells[0].len()).map(width).collect();
    let pad = |(column, cell): (usize, &String)| match column {
        0 => format!("{cell:<width$}", width = widths[0]),
        _ => format!("{cell:>width$}", width = widths[column]),
    };
    let mut lines: Vec<String> = cells
        .iter()
        .map(|line| {
            let padded: Vec<String> = line.iter().enumerate().map(pad).collect();
            if md { format!("| {} |", padded.join(" | ")) } else { padded.join("  ").trim_end().to_owned() }
        })
        .collect();
    if md {
        lines.insert(1, format!("|---|{}", "---:|".repeat(widths.len() - 1)));
    }
    lines
}

/// The page.
fn render(sides: &[Side], rows: &[Row<'_>]) -> String {
    let names: Vec<&str> = sides.iter().map(|side| &*side.report.machine.name).collect();
    let card = |Side { letter, report }: &Side| {
        format!(
            "<section class=\"card\"><h3>{letter} &#160; {} &#160; {}</h3>{}</section>",
            escape(&report.machine.name),
            page::badge(&report.validity),
            page::card(&report.machine.card)
        )
    };
    let cards: String = sides.iter().map(card).collect();
    let doubts: String = doubts(sides).iter().map(|doubt| format!("<li>{}</li>", escape(doubt))).collect();
    let doubts = if doubts.is_empty() { String::new() } else { format!("<ul>{doubts}</ul>") };
    let body = format!(
        "<header><p class=\"kicker\">Fused attention, machines side by side</p><h1>{}</h1></header>\
         <div class=\"columns\">{cards}</div>{doubts}\
         <section><h2>In short</h2><p>Speed over that of A: geometric means of the cases that all reports have, with the least and the \
         greatest ratio.</p><div class=\"card\">{}</div></section>\
         <section><h2>Over length</h2><div class=\"columns\">{}{}</div></section>\
         <section><h2>Every case</h2><p>Speed, and the fraction of the nearer of the machine's own limits; ratios with the 95 % interval \
         that both medians leave, ~ where that includes 1.</p>\
         <div class=\"card\">{}</div></section>",
        escape(&names.join(" · ")),
        means_table(sides, rows),
        lines(sides, rows, Group::Prefill, "Prompts, f32, d 128, not causal: GFLOP/s", |figure| figure.gflops),
        lines(sides, rows, Group::Decode, "Decoding, f32, 8 heads: GB/s of K and V", |figure| figure.kv_gbytes_per_s),
        cases_table(sides, rows)
    );
    page::whole("Attention on several machines", &body)
}

fn means_table(sides: &[Side], rows: &[Row<'_>]) -> String {
    let headings: Vec<String> = sides[1..].iter().map(|side| format!("{} / A", side.letter)).collect();
    let headings: Vec<&str> = std::iter::once("cases").chain(headings.iter().map(String::as_str)).collect();
    let row = |(name, means): (String, Vec<[f64; 3]>)| {
        let cells =
            means.into_iter().map(|[mean, least, most]| Cell::Figure(format!("{mean:.2} ({least:.2} to {most:.2})")));
        std::iter::once(Cell::Text(name)).chain(cells).collect()
    };
    table("", &headings, &means(sides, rows).into_iter().map(row).collect::<Vec<_>>())
}

fn cases_table(sides: &[Side], rows: &[Row<'_>]) -> String {
    let mut headings = vec!["case".to_owned()];
    for Side { letter, .. } in sides {
        headings.extend([format!("{letter} GFLOP/s"), format!("{letter} of limit"), format!("{letter} error")]);
    }
    headings.extend(sides[1..].iter().map(|side| format!("{} / A", side.letter)));
    let row = |row: &Row<'_>| {
        let mut cells = vec![Cell::Text(row.figures[0].name())];
        for figure in &row.figures {
            let error = super::html::error(figure.max_abs_error);
            cells.extend([
                Cell::Figure(rate(figure.gflops)),
                Cell::Share(figure.fraction_of_roof),
                Cell::Figure(error),
            ]);
        }
        cells.extend((1..sides.len()).map(|side| Cell::Figure(row.ratio(side).to_text(2))));
        cells
    };
    let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
    table("", &headings, &rows.iter().map(row).collect::<Vec<_>>())
}

/// A line for each machine.
fn lines(sides: &[Side], rows: &[Row<'_>], group: Group, name: &str, y: fn(&Figure) -> f64) -> String {
    let belongs = |figure: &Figure| {
        let plain = figure.dtype == "f32" && figure.head_dim == 128 && figure.heads == figure.kv_heads;
        figure.group == group && plain && (group == Group::Decode || !figure.causal)
    };
    let rows: Vec<&Row<'_>> = rows.iter().filter(|row| belongs(row.figures[0])).collect();
    let keys = rows.iter().map(|row| row.figures[0].keys as f64);
    let domain = [keys.clone().fold(f64::INFINITY, f64::min), keys.fold(0.0, f64::max)];
    let most = rows.iter().flat_map(|row| row.figures.iter().map(|figure| y(figure))).fold(0.0, f64::max);
    let x = Axis { label: "keys", kind: Kind::Binary, domain };
    let y_axis = Axis { label: "", kind: Kind::Linear, domain: [0.0, 1.1 * most] };
    let margins = Margins { left: 48.0, right: 60.0, top: 20.0, bottom: 48.0 };
    let mut chart = Chart::new([540.0, 300.0], margins, x, y_axis, name);
    for (i, side) in sides.iter().enumerate() {
        let point = |row: &&Row<'_>| {
            let figure = row.figures[i];
            ([figure.keys as f64, y(figure)], format!("{}: {}", side.letter, super::charts::title(figure)))
        };
        let points: Vec<_> = rows.iter().map(point).collect();
        chart.line(i, i >= super::svg::COLOURS, &points);
        if let Some(([_, y], _)) = points.last() {
            chart.end_label(i, *y, &side.letter.to_string());
        }
    }
    format!("<figure class=\"card\"><figcaption><b>{}</b></figcaption>{}</figure>", escape(name), chart.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_geometric() {
        let [mean, least, most] = summary([2.0, 8.0, 4.0].into_iter());
        assert!((mean - 4.0).abs() < 1e-12 && (least - 2.0).abs() < 1e-12 && (most - 8.0).abs() < 1e-12);
        assert!(summary([0.0].into_iter())[0].is_nan());
    }

    #[test]
    fn intervals_of_ratios() {
        let figure = |gflops: f64, half: f64| {
            let json = serde_json::json!({
                "group": "prefill", "options": "", "dtype": "f32", "causal": false, "heads": 1, "kv_heads": 1, "queries": 1,
                "keys": 1, "head_dim": 1, "threads": 1, "kernel": "", "key_block": 1, "query_block": 1, "gflops": gflops,
                "gflops_interval": [gflops * (1.0 - half), gflops * (1.0 + half)], "peak_gflops": 1.0, "fraction_of_peak": 1.0,
                "kv_bytes": 1.0, "kv_gbytes_per_s": 1.0, "read_gbytes_per_s": 1.0, "fraction_of_bandwidth": 1.0,
                "fraction_of_roof": 1.0, "max_abs_error": 0.0, "rounds": 1
            });
            serde_json::from_value::<Figure>(json).unwrap()
        };
        let sure = Ratio::new(&figure(90.0, 0.03), &figure(100.0, 0.04));
        let [low, high] = sure.interval.unwrap();
        assert!(sure.ratio == 0.9 && (low - 0.855).abs() < 2e-3 && (high - 0.947).abs() < 2e-3, "{sure:?}");
        assert!(!sure.may_be_one() && sure.to_text(2) == "0.90 (0.86 to 0.95)", "{}", sure.to_text(2));
        let unsure = Ratio::new(&figure(97.0, 0.03), &figure(100.0, 0.04));
        assert!(unsure.may_be_one() && unsure.to_text(3).starts_with("~0.970 ("));
        let old = Figure { gflops_interval: None, ..figure(97.0, 0.0) };
        assert_eq!(Ratio::new(&old, &figure(100.0, 0.0)).to_text(3), "0.970");
    }

    #[test]
    fn columns_are_aligned() {
        let cells = [["a", "bcd"], ["efg", "1"]].map(|line| line.map(str::to_owned).to_vec());
        assert_eq!(aligned(&cells, false), ["a    bcd", "efg    1"]);
        assert_eq!(aligned(&cells, true), ["| a   | bcd |", "|---|---:|", "| efg |   1 |"]);
    }
}
