//! The limits of the machine as tables: what one thread reaches, what all of them reach at once, and how far that scales.

use regard_profile::{Card, Figure, Operation};

use super::data::Report;
use super::html::{Cell, bytes, rate, table};
use super::machine::memory_name;
use super::page::section;

/// Nothing if the report is of an older version, which did not measure them.
pub(super) fn section_of(report: &Report) -> String {
    let Some(card) = &report.limits else { return String::new() };
    let html = format!(
        "<div class=\"columns\"><div class=\"card\"><h3>Arithmetic</h3>{}</div><div class=\"card\"><h3>Reading</h3>{}{}</div></div>",
        arithmetic(card),
        reading(card),
        fork_join(card)
    );
    section(
        "Limits of the machine",
        "Loops in registers, and sweeps over buffers of half of each level; medians with the 95 % interval. All threads work at the \
         same time, each on its own core and buffer.",
        &html,
    )
}

/// The most threads that something was measured with.
fn most_threads(card: &Card) -> usize {
    card.peaks.iter().map(|peak| peak.threads).max().unwrap_or(1)
}

/// One thread, and if there are more, all of them and how many times as fast they are.
fn cells(find: &dyn Fn(usize) -> Option<Figure>, threads: usize) -> Vec<Cell> {
    let text = |figure: Option<Figure>| figure.map_or_else(|| "-".to_owned(), with_interval);
    let one = find(1);
    if threads == 1 {
        return vec![Cell::Figure(text(one))];
    }
    let all = find(threads);
    let scaling = one.zip(all).map(|(one, all)| all.median / one.median).filter(|scaling| scaling.is_finite());
    let scaling = scaling.map_or_else(|| "-".to_owned(), |scaling| format!("{scaling:.2}"));
    vec![Cell::Figure(text(one)), Cell::Figure(text(all)), Cell::Figure(scaling)]
}

/// The median, and how far the interval goes to either side.
fn with_interval(figure: Figure) -> String {
    let Figure { median, low, high, .. } = figure;
    format!("{} ±{:.1} %", rate(median), 100.0 * (high - low) / 2.0 / median.max(f64::MIN_POSITIVE))
}

fn headings(first: &str, threads: usize) -> Vec<String> {
    let mut headings = vec![first.to_owned(), "one thread".to_owned()];
    if threads > 1 {
        headings.extend([format!("{threads} threads"), "times".to_owned()]);
    }
    headings
}

fn to_table(headings: &[String], rows: &[Vec<Cell>]) -> String {
    table("", &headings.iter().map(String::as_str).collect::<Vec<_>>(), rows)
}

fn arithmetic(card: &Card) -> String {
    let threads = most_threads(card);
    let mut rows = Vec::new();
    for (operation, name, unit) in [
        (Operation::Fma, "multiply-adds of f32", "GFLOP/s"),
        (Operation::DotBf16, "products of bf16 pairs", "GFLOP/s"),
        (Operation::DotInt8, "products of four bytes", "Gop/s"),
        (Operation::Exp, "exponentials of f32", "G/s"),
    ] {
        for peak in card.peaks.iter().filter(|peak| peak.operation == operation && peak.threads == 1) {
            let find = |threads: usize| {
                let alike = |other: &&regard_profile::Peak| {
                    (other.operation, &other.isa, other.threads) == (operation, &peak.isa, threads)
                };
                card.peaks.iter().find(alike).map(|peak| peak.gops)
            };
            let mut row = vec![Cell::Text(format!("{name}, {}, {unit}", peak.isa))];
            row.extend(cells(&find, threads));
            rows.push(row);
        }
    }
    to_table(&headings("peak", threads), &rows)
}

fn reading(card: &Card) -> String {
    let threads = most_threads(card);
    let row = |read: &regard_profile::Read| {
        let find = |threads: usize| {
            let alike = |other: &&regard_profile::Read| (other.memory, other.threads) == (read.memory, threads);
            card.reads.iter().find(alike).map(|read| read.gbytes_per_s)
        };
        let mut row = vec![Cell::Text(format!("{}, {}, GB/s", memory_name(read.memory), bytes(read.bytes)))];
        row.extend(cells(&find, threads));
        row
    };
    let rows: Vec<Vec<Cell>> = card.reads.iter().filter(|read| read.threads == 1).map(row).collect();
    to_table(&headings("from", threads), &rows)
}

/// What it costs to set threads to work.
fn fork_join(card: &Card) -> String {
    let Some(cost) = &card.fork_join else { return String::new() };
    format!(
        "<p class=\"muted\" style=\"margin-top:12px\">Setting {} threads to work and waiting for them takes {} µs, and {} µs once they \
         sleep. Reads are loads of {}.</p>",
        cost.threads,
        rate(cost.warm_us.median),
        rate(cost.cold_us.median),
        super::html::escape(&card.isa)
    )
}
