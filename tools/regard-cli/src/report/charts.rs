//! The charts of the page.

use super::data::{Contest, Figure, Group, Heat, Noise, Report};
use super::html::{error, percent, rate};
use super::svg::{Axis, Bar, Chart, Kind, Map, Margins, bars};

/// Room for the names of series at the right.
const MARGINS: Margins = Margins { left: 48.0, right: 116.0, top: 34.0, bottom: 48.0 };
const SIZE: [f64; 2] = [540.0, 320.0];

/// A name, a colour, and what belongs to a series.
type Series = (&'static str, usize, fn(&Figure) -> bool);

/// Points, and what each of them is.
type Points = Vec<([f64; 2], String)>;

const PREFILL: [Series; 5] = [
    ("f32, d 128", 0, |f| f.dtype == "f32" && f.head_dim == 128 && !f.causal),
    ("d 128 causal", 0, |f| f.dtype == "f32" && f.head_dim == 128 && f.causal),
    ("f32, d 64", 1, |f| f.dtype == "f32" && f.head_dim == 64 && !f.causal),
    ("d 64 causal", 1, |f| f.dtype == "f32" && f.head_dim == 64 && f.causal),
    ("bf16, d 128", 2, |f| f.dtype == "bf16"),
];

/// What a mark is.
pub(super) fn title(figure: &Figure) -> String {
    let Figure { gflops, kv_gbytes_per_s, fraction_of_peak, fraction_of_bandwidth, max_abs_error, kernel, .. } = figure;
    format!(
        "{}: {} GFLOP/s ({} of the peak), {} GB/s ({} of the bandwidth), error {}, {kernel}",
        figure.name(),
        rate(*gflops),
        percent(*fraction_of_peak),
        rate(*kv_gbytes_per_s),
        percent(*fraction_of_bandwidth),
        error(*max_abs_error)
    )
}

fn of(report: &Report, group: Group) -> impl Iterator<Item = &Figure> {
    report.figures.iter().filter(move |figure| figure.group == group)
}

/// The least and the greatest.
fn ends(numbers: impl Iterator<Item = f64>) -> [f64; 2] {
    numbers.fold([f64::INFINITY, 0.0], |[least, most], number| [least.min(number), most.max(number)])
}

/// The limits as lines, the cases as points.
pub(super) fn roofline(report: &Report) -> String {
    let one_core = || report.figures.iter().filter(|figure| figure.threads == 1 && figure.kv_gbytes_per_s > 0.0);
    let (compute, memory) = (&report.roofs.compute, &report.roofs.memory);
    let peak = compute.iter().map(|roof| roof.gflops).fold(1.0, f64::max);
    let [least, most] = ends(one_core().map(Figure::intensity));
    let x = [(least / 2.0).min(0.25), (most * 2.0).max(64.0)];
    let lowest = one_core().map(|figure| figure.gflops).fold(peak / 10.0, f64::min);
    let axes = [
        Axis { label: "floating-point operations per byte of K and V", kind: Kind::Binary, domain: x },
        Axis { label: "GFLOP/s", kind: Kind::Decimal, domain: [lowest / 2.0, peak * 1.4] },
    ];
    let [x_axis, y_axis] = axes;
    let margins = Margins { right: 140.0, ..MARGINS };
    let mut chart = Chart::new([1000.0, 440.0], margins, x_axis, y_axis, "Roofline: speed over arithmetic intensity");
    for (i, roof) in memory.iter().enumerate() {
        let bandwidth = roof.gbytes_per_s;
        let start = x[0].max(chart.y.domain()[0] / bandwidth);
        let ends = [[start, start * bandwidth], [peak / bandwidth, peak]];
        if ends[1][0] <= ends[0][0] {
            continue;
        }
        chart.segment("roof", ends[0], ends[1], &format!("{} {} GB/s", roof.name, rate(bandwidth)));
        // The lines of caches are near each other: their names stand at different places.
        chart.words_along(ends, 8.0 + 56.0 * (i % 3) as f64, &format!("{} {}", roof.name, rate(bandwidth)));
    }
    let fastest = memory.iter().map(|roof| roof.gbytes_per_s).fold(1.0, f64::max);
    for roof in compute {
        let from = [(roof.gflops / fastest).max(x[0]), roof.gflops];
        let text = format!("{} {}", roof.name, rate(roof.gflops));
        chart.segment("roof", from, [x[1], roof.gflops], &text);
        chart.end_label(5, roof.gflops, &text);
    }
    for figure in one_core() {
        let (colour, hollow) = kind(figure);
        chart.dot(colour, hollow, [figure.intensity(), figure.gflops], &title(figure));
    }
    chart.finish()
}

/// The names of the points of the roofline, as far as there are any: colour, whether hollow, name.
pub(super) fn kinds(report: &Report) -> Vec<(usize, bool, &'static str)> {
    let is_there = |colour, hollow| report.figures.iter().any(|figure| kind(figure) == (colour, hollow));
    KINDS.into_iter().filter(|(colour, hollow, _)| is_there(*colour, *hollow)).collect()
}

const KINDS: [(usize, bool, &str); 5] = [
    (0, false, "prompt, f32"),
    (0, true, "prompt, f32, causal"),
    (2, false, "prompt, bf16"),
    (1, false, "one token"),
    (3, false, "a few tokens"),
];

fn kind(figure: &Figure) -> (usize, bool) {
    match figure.group {
        Group::Decode => (1, false),
        Group::Few => (3, false),
        _ if figure.dtype != "f32" => (2, false),
        _ => (0, figure.causal),
    }
}

/// What belongs to a chart of prompts.
fn series(report: &Report, which: &[Series], y: fn(&Figure) -> f64) -> Vec<(Series, Points)> {
    let points = |(_, _, belongs): &Series| {
        let figures = of(report, Group::Prefill).filter(|figure| belongs(figure));
        figures.map(|figure| ([figure.keys as f64, y(figure)], title(figure))).collect::<Vec<_>>()
    };
    which.iter().map(|series| (*series, points(series))).filter(|(_, points)| !points.is_empty()).collect()
}

fn draw(chart: &mut Chart, series: Vec<(Series, Points)>) {
    for ((name, colour, _), points) in series {
        chart.line(colour, name.ends_with("causal"), &points);
        if let Some(([_, y], _)) = points.last() {
            chart.end_label(colour, *y, name);
        }
    }
}

/// Fractions of the peak over length.
pub(super) fn fractions(report: &Report) -> String {
    let all = series(report, &PREFILL, |figure| figure.fraction_of_peak);
    let [least, _] = ends(all.iter().flat_map(|(_, points)| points.iter().map(|([_, y], _)| *y)));
    let [shortest, longest] = ends(of(report, Group::Prefill).map(|figure| figure.keys as f64));
    let x = Axis { label: "queries and keys", kind: Kind::Binary, domain: [shortest, longest] };
    let low = (10.0 * least - 0.2).floor().clamp(0.0, 8.0) / 10.0;
    let y = Axis { label: "fraction of the peak of the arithmetic used", kind: Kind::Linear, domain: [low, 1.0] };
    let mut chart = Chart::new(SIZE, MARGINS, x, y, "Fraction of the peak over length");
    draw(&mut chart, all);
    chart.finish()
}

/// Speeds over length, with the peaks.
pub(super) fn speeds(report: &Report) -> String {
    let all = series(report, &[PREFILL[0], PREFILL[2], PREFILL[4]], |figure| figure.gflops);
    let [shortest, longest] = ends(of(report, Group::Prefill).map(|figure| figure.keys as f64));
    // Bf16 may be widened, and then has the peak of f32.
    let peak = |is_f32: bool| {
        let figures = of(report, Group::Prefill).filter(move |figure| figure.kernel.contains("_lanes_bf16_") != is_f32);
        figures.map(|figure| figure.peak_gflops).fold(0.0, f64::max)
    };
    let peaks = [("f32 peak", peak(true)), ("bf16 peak", peak(false))];
    let most = peaks[0].1.max(peaks[1].1);
    let x = Axis { label: "queries and keys", kind: Kind::Binary, domain: [shortest, longest] };
    let y = Axis { label: "GFLOP/s", kind: Kind::Linear, domain: [0.0, 1.05 * most] };
    let mut chart = Chart::new(SIZE, MARGINS, x, y, "Speed over length");
    for (name, peak) in peaks.into_iter().filter(|(_, peak)| *peak > 0.0) {
        chart.segment("roof", [shortest, peak], [longest, peak], name);
        chart.end_label(5, peak, name);
    }
    draw(&mut chart, all);
    chart.finish()
}

/// Reading of K and V over length, with the bandwidth of memory.
pub(super) fn decode(report: &Report) -> String {
    let [shortest, longest] = ends(of(report, Group::Decode).map(|figure| figure.keys as f64));
    let bandwidths: Vec<f64> = of(report, Group::Decode).map(|figure| figure.read_gbytes_per_s).collect();
    let bandwidth = regard_tuner::stats::median(&bandwidths);
    let [_, most] = ends(of(report, Group::Decode).map(|figure| figure.kv_gbytes_per_s));
    let x =
        Axis { label: "keys, one query for each head, from memory", kind: Kind::Binary, domain: [shortest, longest] };
    let y = Axis { label: "GB/s of K and V", kind: Kind::Linear, domain: [0.0, 1.1 * most.max(bandwidth)] };
    let mut chart = Chart::new(SIZE, MARGINS, x, y, "Bandwidth of decoding over length");
    let [left, right] = chart.x.domain();
    chart.segment("roof", [left, bandwidth], [right, bandwidth], "read bandwidth of memory");
    chart.end_label(5, bandwidth, "memory");
    for (colour, dtype) in ["f32", "f16", "bf16", "int8"].into_iter().enumerate() {
        for grouped in [false, true] {
            let belongs = |figure: &&Figure| figure.dtype == dtype && (figure.heads != figure.kv_heads) == grouped;
            let point = |figure: &Figure| ([figure.keys as f64, figure.kv_gbytes_per_s], title(figure));
            let points: Vec<_> = of(report, Group::Decode).filter(belongs).map(point).collect();
            chart.line(colour, grouped, &points);
            if let Some(([_, y], _)) = points.last() {
                let name = if grouped { format!("{dtype} grouped") } else { dtype.to_owned() };
                chart.end_label(colour, *y, &name);
            }
        }
    }
    chart.finish()
}

/// The cost of every way of a contest, the cheapest first.
pub(super) fn costs(contest: &Contest) -> String {
    let mut ways: Vec<_> = contest.ways.iter().collect();
    ways.sort_by(|a, b| a.cost.total_cmp(&b.cost));
    let bar = |way: &super::data::Way| {
        let is_base = way.name == contest.base;
        let mark = if is_base || way.is_significant() { "" } else { " ~" };
        Bar {
            name: way.name.clone(),
            value: way.cost,
            interval: (!is_base).then_some([way.low, way.high]),
            figure: format!("{:.2} ×{mark}", way.cost),
            note: format!("{} GFLOP/s · {}", rate(way.gflops), error(way.max_abs_error)),
            title: format!("{}: {:.3} times, 95 % interval {:.3} to {:.3}", way.name, way.cost, way.low, way.high),
            colour: if is_base { 5 } else { 0 },
        }
    };
    let all: Vec<Bar> = ways.into_iter().map(bar).collect();
    bars(&all, Some((1.0, &contest.base)), "Cost of each weighting")
}

/// The speed of every level of a contest.
pub(super) fn levels(contest: &Contest) -> String {
    let bar = |way: &super::data::Way| Bar {
        name: way.name.clone(),
        value: way.gflops,
        interval: None,
        figure: format!("{} GFLOP/s", rate(way.gflops)),
        note: format!("{:.2} × · {}", 1.0 / way.cost, error(way.max_abs_error)),
        title: format!("{}: 95 % interval of the time {:.3} to {:.3}", way.name, way.low, way.high),
        colour: 0,
    };
    bars(&contest.ways.iter().map(bar).collect::<Vec<_>>(), None, "Speed of each instruction-set level")
}

/// The speed of every number of threads.
pub(super) fn threads(report: &Report) -> String {
    let first = of(report, Group::Threads).next().map_or(1.0, |figure| figure.gflops);
    let bar = |figure: &Figure| Bar {
        name: if figure.threads == 1 { "1 thread".to_owned() } else { format!("{} threads", figure.threads) },
        value: figure.gflops,
        interval: None,
        figure: format!("{} GFLOP/s", rate(figure.gflops)),
        note: format!(
            "{:.2} × · {} · {}",
            figure.gflops / first,
            percent(figure.fraction_of_peak),
            error(figure.max_abs_error)
        ),
        title: title(figure),
        colour: 0,
    };
    bars(&of(report, Group::Threads).map(bar).collect::<Vec<_>>(), None, "Speed of each number of threads")
}

/// Time over the best, by block sizes.
pub(super) fn blocks(heat: &Heat) -> String {
    let at = |[query_block, key_block]: [usize; 2]| {
        let row = heat.query_blocks.iter().position(|block| *block == query_block)?;
        Some((row, heat.key_blocks.iter().position(|block| *block == key_block)?))
    };
    // Two words are wider than a cell.
    let picks = match heat.tuned {
        Some(tuned) if tuned == heat.model => [(at(tuned), "both"), (None, "")],
        tuned => [(at(heat.model), "model"), (tuned.and_then(at), "profile")],
    };
    let marks: Vec<_> =
        picks.into_iter().filter_map(|(place, name)| place.map(|(row, column)| (row, column, name))).collect();
    let map = Map {
        columns: &heat.key_blocks,
        rows: &heat.query_blocks,
        column_label: "keys of a block",
        row_label: "queries of a block",
        values: &heat.slowdown,
        pale: 1.15,
        marks: &marks,
    };
    map.to_svg("Time over the best, by block sizes")
}

/// The multiply-add peak over the time of the report.
pub(super) fn canary(noise: &Noise) -> String {
    let peaks: Vec<f64> = noise.canary.iter().map(|(_, peak)| *peak).collect();
    let usual = regard_tuner::stats::median(&peaks);
    let [low, high] = ends(peaks.iter().map(|peak| peak / usual));
    let last = noise.canary.last().map_or(1.0, |(seconds, _)| *seconds);
    let x = Axis { label: "seconds since the beginning", kind: Kind::Linear, domain: [0.0, last] };
    let domain = [(low - 0.01).min(0.95), (high + 0.01).max(1.05)];
    let y = Axis { label: "multiply-add peak over its median", kind: Kind::Linear, domain };
    let margins = Margins { right: 20.0, ..MARGINS };
    let mut chart = Chart::new([SIZE[0], 240.0], margins, x, y, "The canary over time");
    chart.segment("roof", [0.0, 1.0], [last, 1.0], "median");
    for (seconds, peak) in &noise.canary {
        let text = format!("{seconds:.1} s: {} GFLOP/s", rate(*peak));
        chart.dot(0, false, [*seconds, peak / usual], &text);
    }
    chart.finish()
}
