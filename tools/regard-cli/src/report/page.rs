//! The page: one file, nothing from anywhere else.

use super::data::{Elsewhere, Figure, Grade, Group, Heat, Machine, Report, Validity};
use super::html::{Cell, error, escape, percent, rate, table};
use super::{charts, embed, limits};
use crate::error::CliError;

/// A whole page. `body` is HTML.
pub(super) fn whole(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\"/>\n<title>{}</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n\
         {body}</main>\n</body>\n</html>\n",
        escape(title),
        include_str!("style.css")
    )
}

/// The page of a report.
///
/// # Errors
/// [`CliError::Failed`] if the report cannot be written as JSON.
pub(super) fn render(report: &Report) -> Result<String, CliError> {
    let parts = [
        header(report),
        tiles(report),
        headline(report),
        roofline(report),
        limits::section_of(report),
        lengths(report),
        decoding(report),
        contests(report),
        blocks(report),
        noise(report),
        reproduce(report),
        embed::element(report)?,
    ];
    Ok(whole(&format!("Attention on {}", report.machine.name), &parts.join("\n")))
}

fn header(report: &Report) -> String {
    let Machine { name, card: rows, .. } = &report.machine;
    format!(
        "<header><p class=\"kicker\">Fused attention against the limits of the machine</p><h1>{}</h1>\
         <p class=\"muted\">Measured on {} in {:.0} s by regard {}, one pinned thread unless said.</p></header>\
         <div class=\"columns\"><section class=\"card\"><h3>Machine</h3>{}</section>\
         <section class=\"card\"><h3>Validity &#160;{}</h3>{}</section></div>",
        escape(name),
        date(report.unix_time),
        report.seconds,
        escape(&report.version),
        card(rows),
        badge(&report.validity),
        reasons(&report.validity)
    )
}

/// Names and values.
pub(super) fn card(rows: &[(String, String)]) -> String {
    let row = |(name, value): &(String, String)| format!("<dt>{}</dt><dd>{}</dd>", escape(name), escape(value));
    format!("<dl>{}</dl>", rows.iter().map(row).collect::<String>())
}

pub(super) fn badge(validity: &Validity) -> String {
    let (class, words) = match validity.grade {
        Grade::Good => ("good", "quiet machine"),
        Grade::Fair => ("fair", "some noise: trust ratios"),
        Grade::Poor => ("poor", "disturbed"),
    };
    format!("<span class=\"badge {class}\">{words}</span>")
}

fn reasons(validity: &Validity) -> String {
    let items: String = validity.reasons.iter().map(|reason| format!("<li>{}</li>", escape(reason))).collect();
    format!("<ul>{items}</ul>")
}

fn tiles(report: &Report) -> String {
    let of = |group| report.figures.iter().filter(move |figure| figure.group == group);
    let f32_only = |figure: &&Figure| figure.dtype == "f32";
    let best = |figures: &mut dyn Iterator<Item = f64>| figures.fold(0.0, f64::max);
    let prompt = best(&mut of(Group::Prefill).filter(f32_only).map(|figure| figure.fraction_of_peak));
    let speed = best(&mut of(Group::Prefill).map(|figure| figure.gflops));
    let token = best(&mut of(Group::Decode).map(|figure| figure.fraction_of_bandwidth));
    let worst = best(&mut report.figures.iter().filter(f32_only).map(|figure| figure.max_abs_error));
    let tile = |value: String, text: &str| format!("<div class=\"card tile\"><b>{value}</b><span>{text}</span></div>");
    format!(
        "<div class=\"tiles\">{}{}{}{}</div>",
        tile(percent(prompt), "of the multiply-add peak, best prompt in f32"),
        tile(percent(token), "of the read bandwidth, best decoding from memory"),
        tile(format!("{} GFLOP/s", rate(speed)), "on one core, best of all prompts"),
        tile(error(worst), "largest absolute error against f64, all cases in f32")
    )
}

/// The figures that stand for their kind: the longest of every series, and all of the others.
fn headline(report: &Report) -> String {
    let longest = |figure: &&Figure| {
        let rivals = report.figures.iter().filter(|other| other.group == figure.group);
        let alike = |other: &&Figure| {
            (&other.dtype, other.causal, other.head_dim, other.queries == 1, other.heads == other.kv_heads)
                == (&figure.dtype, figure.causal, figure.head_dim, figure.queries == 1, figure.heads == figure.kv_heads)
        };
        let series = matches!(figure.group, Group::Prefill | Group::Decode);
        !series || rivals.filter(alike).all(|other| other.keys <= figure.keys)
    };
    let figures: Vec<&Figure> =
        report.figures.iter().filter(|figure| figure.group != Group::Threads).filter(longest).collect();
    section(
        "In short",
        "Each case takes turns with a loop of multiply-adds and with reading memory, and a fraction is the median of the ratios of \
         neighbours. The nearer limit is the one that allows less. GFLOP/s count 2 (d + d) for every visible pair of query and \
         key; GB/s count K and V once.",
        &format!("<div class=\"card\" style=\"margin-top:16px\">{}</div>", figures_table(&figures, false)),
    )
}

/// A line for each figure; with the intervals of the speeds and the rounds that they rest on, if there is room for them.
fn figures_table(figures: &[&Figure], roomy: bool) -> String {
    let interval = |figure: &Figure| match figure.gflops_interval {
        Some([low, high]) => format!("{} to {}", rate(low), rate(high)),
        None => "-".to_owned(),
    };
    let row = |figure: &&Figure| {
        let mut cells = vec![Cell::Text(figure.name()), Cell::Figure(rate(figure.gflops))];
        if roomy {
            cells.extend([Cell::Figure(interval(figure)), Cell::Figure(figure.rounds.to_string())]);
        }
        cells.extend([
            Cell::Share(figure.fraction_of_peak),
            Cell::Figure(rate(figure.kv_gbytes_per_s)),
            Cell::Share(figure.fraction_of_bandwidth),
            Cell::Share(figure.fraction_of_roof),
            Cell::Figure(error(figure.max_abs_error)),
            Cell::Text(figure.kernel.clone()),
        ]);
        cells
    };
    let mut headings = vec!["case", "GFLOP/s"];
    if roomy {
        headings.extend(["95 % interval", "rounds"]);
    }
    headings.extend(["of peak", "GB/s", "of bandwidth", "of nearer limit", "largest error", "kernel"]);
    table("", &headings, &figures.iter().map(row).collect::<Vec<_>>())
}

pub(super) fn section(title: &str, text: &str, html: &str) -> String {
    format!("<section><h2>{}</h2><p>{}</p>{html}</section>", escape(title), escape(text))
}

fn figure(title: &str, text: &str, svg: &str) -> String {
    format!("<figure class=\"card\"><figcaption><b>{}</b>{}</figcaption>{svg}</figure>", escape(title), escape(text))
}

fn roofline(report: &Report) -> String {
    let entry = |(colour, hollow, name): &(usize, bool, &str)| {
        let class = if *hollow { " class=\"open\"" } else { "" };
        format!("<li class=\"c{colour}\"><i{class}></i>{}</li>", escape(name))
    };
    let legend: String = charts::kinds(report).iter().map(entry).collect();
    let svg = charts::roofline(report) + &format!("<ul class=\"legend\">{legend}</ul>");
    section(
        "Roofline",
        "Limits of one core as they were measured here, and every case as a point. To the left of where the lines meet, reading \
         K and V is what limits; to the right, arithmetic.",
        &figure("Speed over arithmetic intensity", "Of caches and memory: GB/s. Of levels: GFLOP/s.", &svg),
    )
}

fn lengths(report: &Report) -> String {
    let html = figure(
        "Fraction of the peak",
        "One core, softmax. Dashed: causal, where only visible pairs count.",
        &charts::fractions(report),
    ) + &figure(
        "Speed",
        "The same, with the peak of f32, and that of products of bf16 where kernels make them.",
        &charts::speeds(report),
    );
    section(
        "Prompts",
        "As many queries as keys, all from one sequence.",
        &format!("<div class=\"columns\">{html}</div>"),
    )
}

fn decoding(report: &Report) -> String {
    let few: Vec<&Figure> = report.figures.iter().filter(|figure| figure.group == Group::Few).collect();
    let few = if few.is_empty() {
        String::new()
    } else {
        format!("<div class=\"card\"><h3>A few tokens at a time</h3>{}</div>", few_table(&few))
    };
    let text = "K and V are larger than all caches, in copies that are used in turn. Hollow: eight query heads share a KV head.";
    let html = figure("Reading of K and V", text, &charts::decode(report)) + &few;
    section(
        "Decoding",
        "One query of each head against a cache of keys: how close it comes to reading memory as fast as the core can.",
        &format!("<div class=\"columns\">{html}</div>"),
    )
}

fn few_table(figures: &[&Figure]) -> String {
    let row = |figure: &&Figure| {
        vec![
            Cell::Text(format!("{} × {}", figure.queries, figure.keys)),
            Cell::Figure(rate(figure.gflops)),
            Cell::Share(figure.fraction_of_peak),
            Cell::Share(figure.fraction_of_bandwidth),
            Cell::Figure(error(figure.max_abs_error)),
        ]
    };
    let caption = "f32, d 128, 8 heads: verification of drafted tokens, and chunks of a prompt.";
    table(
        caption,
        &["queries × keys", "GFLOP/s", "of peak", "of bandwidth", "error"],
        &figures.iter().map(row).collect::<Vec<_>>(),
    )
}

fn contests(report: &Report) -> String {
    let [mut costs, mut others] = [String::new(), String::new()];
    for contest in &report.contests {
        let text = format!(
            "{}; {} rounds, in which all take turns. ",
            contest.options.replace("--", "").trim(),
            contest.rounds
        );
        match &*contest.name {
            "weightings" => {
                costs += &figure(
                    "Cost of each weighting",
                    &format!(
                        "{text}Time over that of {}, with 95 % intervals (~ marks those that include 1); speed; largest error.",
                        contest.base
                    ),
                    &charts::costs(contest),
                )
            }
            _ => {
                others += &figure(
                    "Instruction-set levels",
                    &format!("{text}Speed; times that of {}; largest error.", contest.base),
                    &charts::levels(contest),
                )
            }
        }
    }
    if report.figures.iter().any(|figure| figure.group == Group::Threads) {
        let text = "Softmax in f32, 8 heads, d 128. Speed; times that of one; of the peak that all reach at once; largest error.";
        others += &figure("Threads", text, &charts::threads(report));
    }
    section(
        "Weightings, levels, threads",
        "Hard attention leaves out the product with V, so that it can cost less than any function of a score.",
        &format!("<div class=\"columns\">{costs}<div class=\"stack\">{others}</div></div>"),
    )
}

fn blocks(report: &Report) -> String {
    let Some(heat) = &report.heat else { return String::new() };
    let both = if heat.tuned == Some(heat.model) { " Both: the pick of the model and of the profile." } else { "" };
    let text = format!("{} with {}, {} rounds.{both}", heat.options.replace("--", ""), heat.kernel, heat.rounds);
    let html = format!(
        "{}<div class=\"card\"><h3>Picks</h3>{}</div>",
        figure("Time over the best", &text, &charts::blocks(heat)),
        picks(heat)
    );
    section(
        "Block sizes",
        "Time over the best of all blocks of queries and keys. Without a profile the library takes what an analytic model says.",
        &format!("<div class=\"columns wide\">{html}</div>"),
    )
}

/// Who picks what, and what it costs: the profile's pick is on the map, or has another kernel, or there is none.
pub(super) fn picks(heat: &Heat) -> String {
    let pick = |name: String, [queries, keys]: [usize; 2], slowdown: Option<f64>| {
        let slowdown = slowdown.map_or("?".to_owned(), |slowdown| format!("{:+.1} %", 100.0 * (slowdown - 1.0)));
        vec![Cell::Text(name), Cell::Figure(format!("{queries} × {keys}")), Cell::Figure(slowdown)]
    };
    let on_map = |name: &str, blocks| pick(name.to_owned(), blocks, heat.slowdown_of(blocks));
    let mut picks = vec![on_map("best of all", heat.best), on_map("analytic model", heat.model)];
    picks.extend(heat.tuned.map(|tuned| on_map("profile", tuned)));
    let mut note = String::new();
    match &heat.elsewhere {
        Some(Elsewhere { kernel, blocks, slowdown }) => {
            picks.push(pick(format!("profile, with {kernel}"), *blocks, Some(*slowdown)));
            note = format!("The profile of this machine takes another kernel here, {}. ", escape(kernel));
        }
        None if heat.tuned.is_none() => note += "There is no profile of this machine that has such a class. ",
        None => {}
    }
    format!(
        "{}<p class=\"muted\" style=\"margin-top:12px\">{note}The best reaches {} GFLOP/s; the largest error of any is {}.</p>",
        table("", &["pick", "queries × keys", "time over best"], &picks),
        rate(heat.gflops),
        error(heat.max_abs_error)
    )
}

fn noise(report: &Report) -> String {
    let events: Vec<Vec<Cell>> = report
        .noise
        .events
        .iter()
        .map(|event| {
            let count = if event.unit.is_empty() {
                format!("{:.0}", event.count)
            } else {
                format!("{:.2} {}", event.count, event.unit)
            };
            vec![Cell::Text(event.name.clone()), Cell::Figure(count)]
        })
        .collect();
    let steadiness = report.contests.iter().map(|contest| {
        let name = format!("spread of the peak while {} were compared", contest.name);
        vec![Cell::Text(name), Cell::Figure(percent(contest.spread))]
    });
    let rows: Vec<Vec<Cell>> = events.into_iter().chain(steadiness).collect();
    let html = figure("The canary", "A loop of multiply-adds, between all cases.", &charts::canary(&report.noise))
        + &format!("<div class=\"card\"><h3>Meanwhile</h3>{}</div>", table("", &["what", "count"], &rows));
    section(
        "Noise",
        "What a steady machine would show as a straight line. Fractions and ratios are taken between neighbours in time, so that \
         slow changes of the clock meet both sides.",
        &format!("<div class=\"columns\">{html}</div>"),
    )
}

fn reproduce(report: &Report) -> String {
    let all: Vec<&Figure> = report.figures.iter().collect();
    let commands: String = report.figures.iter().map(|figure| format!("regard bench {}\n", figure.options)).collect();
    let html = format!(
        "<div class=\"card\" style=\"margin-top:16px\"><pre>{}</pre>\
         <details><summary>All {} figures</summary>{}</details>\
         <details><summary>Every case by itself</summary><pre>{}</pre></details></div>",
        escape(&report.command),
        all.len(),
        figures_table(&all, true),
        escape(&commands)
    );
    section(
        "To reproduce",
        "All data are in this page, as JSON in its last element; `regard report compare` reads them back.",
        &html,
    )
}

/// A day and a time of UTC.
pub(super) fn date(unix_time: u64) -> String {
    let (days, seconds) = (unix_time / 86_400, unix_time % 86_400);
    // Hinnant's algorithm for the proleptic Gregorian calendar, for days from 1970 on.
    let z = days + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", seconds / 3600, seconds / 60 % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_825_600), "2000-02-29 12:00 UTC");
        assert_eq!(date(1_798_761_599), "2026-12-31 23:59 UTC");
    }

    #[test]
    fn the_style_is_safe_in_a_page() {
        let style = include_str!("style.css");
        assert!(!style.contains(['<', '&']) && !style.contains("url(") && !style.contains("@import"));
    }
}
