//! The measured half of the machine card, for people.

use std::fmt::Write;

use regard_profile::{Card, Figure, Operation};

/// Some lines, each with its end.
pub(crate) fn to_text(card: &Card) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name:<10}{value}");
    };
    let mut counts: Vec<usize> = card.peaks.iter().map(|peak| peak.threads).collect();
    counts.dedup();
    for threads in counts {
        let who = if threads == 1 { "one thread".to_owned() } else { format!("{threads} threads") };
        line("measured", &who);
        for (operation, unit) in [
            (Operation::Fma, "GFLOP/s"),
            (Operation::DotBf16, "GFLOP/s"),
            (Operation::DotInt8, "Gop/s"),
            (Operation::Exp, "G/s"),
        ] {
            let of = card.peaks.iter().filter(|peak| (peak.operation, peak.threads) == (operation, threads));
            let rates: Vec<String> = of.map(|peak| format!("{} {}", peak.isa, figure(peak.gops))).collect();
            if !rates.is_empty() {
                line("", &format!("{:<9} {} {unit}", operation.name(), rates.join(", ")));
            }
        }
        let rungs = card.reads.iter().filter(|read| read.threads == threads);
        let rungs: Vec<String> =
            rungs.map(|read| format!("{} {}", read.memory.name(), figure(read.gbytes_per_s))).collect();
        line("", &format!("{:<9} {} GB/s, loads of {}", "read", rungs.join(", "), card.isa));
    }
    if let Some(cost) = &card.fork_join {
        let (warm, cold) = (figure(cost.warm_us), figure(cost.cold_us));
        line("", &format!("{:<9} {warm} us for {} threads, {cold} us once they sleep", "fork-join", cost.threads));
    }
    text
}

/// The median, and how far the interval goes to either side.
fn figure(figure: Figure) -> String {
    let Figure { median, low, high, .. } = figure;
    let digits = if median >= 100.0 {
        0
    } else if median >= 10.0 {
        1
    } else {
        2
    };
    format!("{median:.digits$} ±{:.1} %", 100.0 * (high - low) / 2.0 / median.max(f64::MIN_POSITIVE))
}
