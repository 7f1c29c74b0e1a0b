//! The measuring of a report.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use regard::{Dtype, Setup};
use regard_tuner::measure::Budget;
use regard_tuner::pin;

use super::data::{Figure, Group, Report, SCHEMA};
use super::noise::{Watch, judge};
use super::schedule::{Planned, Schedule};
use super::{contest, machine};
use crate::bench::case::Manner;
use crate::bench::ceilings::Ways;
use crate::bench::line::Line;
use crate::bench::parse;
use crate::error::CliError;
use crate::progress::Reporter;

/// What tells a report from other JSON.
pub(super) const KIND: &str = "regard report";

/// Parts of the time for the cases, the two contests, and the block sizes.
const SHARES: [f64; 3] = [0.7, 0.1, 0.1];

/// Measures everything in about so many seconds; the least numbers of rounds are made even if they take longer.
pub(super) fn measure(quick: bool, seconds: f64, command: String, setup: &Setup) -> Result<Report, CliError> {
    let unix_time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let schedule = Schedule::new(quick, &threads(setup.machine.cores.usable()));
    let mut reporter = Reporter::new();
    reporter.show(0.0, "the limits of the machine");
    let card = machine::card(setup)?;
    let mut watch = pin::pinned(|| Watch::new(setup.level)).value;
    let look = |watch: &mut Watch| pin::pinned(|| (0..3).for_each(|_| watch.look())).value;
    look(&mut watch);
    let (limits, roofs) = machine::limits(setup, &mut |fraction, what| {
        reporter.show(0.1 * fraction, &format!("the limits of the machine: {what}"));
    })?;

    let count = schedule.cases.len();
    // What is not timed takes time too: inputs, and checking results. It is known from the cases before.
    let (start, mut timed) = (Instant::now(), 0.0);
    let mut ways = Ways::new();
    let mut figures = Vec::with_capacity(count);
    for (i, planned) in schedule.cases.iter().enumerate() {
        reporter.show(0.1 + 0.7 * i as f64 / count as f64, &planned.options);
        let passed = start.elapsed().as_secs_f64();
        let beside = (passed - timed) / i.max(1) as f64;
        let each = ((SHARES[0] * seconds - passed) / (count - i) as f64 - beside).max(0.0);
        timed += each;
        figures.push(figure(planned, each, setup, &mut ways)?);
        look(&mut watch);
    }
    let within = |share: f64, min_rounds| Budget { seconds: share * seconds, min_rounds };
    let mut contests = Vec::new();
    for (name, run) in [("weightings", contest::weightings as Run), ("levels", contest::levels)] {
        reporter.show(0.8, name);
        let budget = within(SHARES[1], if quick { 5 } else { 12 });
        contests.push(pin::pinned(|| run(&schedule.contests, setup, watch.probe(), budget)).value?);
        look(&mut watch);
    }
    reporter.show(0.9, "block sizes");
    let budget = within(SHARES[2], if quick { 2 } else { 5 });
    let heat = pin::pinned(|| contest::heat(&schedule.heat, setup, watch.probe(), budget)).value?;
    look(&mut watch);
    reporter.clear();

    let seconds = watch.seconds();
    let noise = watch.finish();
    Ok(Report {
        kind: KIND.to_owned(),
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        unix_time,
        seconds,
        command,
        validity: judge(&noise, seconds, setup.machine.hypervisor),
        machine: card,
        roofs,
        limits: Some(limits),
        figures,
        contests,
        heat: Some(heat),
        noise,
    })
}

/// A contest.
type Run = fn(&str, &Setup, &regard_tuner::measure::FmaProbe, Budget) -> Result<super::data::Contest, CliError>;

/// Numbers of threads that are worth a case: powers of two, and all cores.
fn threads(cores: usize) -> Vec<usize> {
    let mut counts: Vec<usize> = (1..).map(|power| 1 << power).take_while(|count| *count < cores).collect();
    if cores > 1 {
        counts.push(cores);
    }
    counts
}

fn figure(planned: &Planned, seconds: f64, setup: &Setup, ways: &mut Ways) -> Result<Figure, CliError> {
    let Planned { group, options } = planned;
    let case = parse(options)?;
    // Prompts use their keys many times, and copies of them would take more time than the work.
    let warm = matches!(group, Group::Prefill | Group::Threads);
    let line = case.measure(Manner { seconds, out_dtype: Dtype::F32, warm, way: None }, setup, ways)?;
    line.verdict()?;
    let causal = case.problem.causal.is_some();
    let Line { fraction_of_peak, fraction_of_bandwidth, fraction_of_roof, max_abs_error, .. } = line;
    let Line { kv_bytes, kv_gbytes_per_s, read_gbytes_per_s, gflops, .. } = line;
    Ok(Figure {
        group: *group,
        options: options.clone(),
        dtype: line.dtype.to_owned(),
        causal,
        heads: line.heads,
        kv_heads: line.kv_heads,
        queries: line.queries,
        keys: line.keys,
        head_dim: line.head_dim,
        threads: line.threads,
        kernel: line.kernel.to_owned(),
        key_block: line.key_block,
        query_block: line.query_block,
        gflops,
        gflops_interval: Some(line.seconds_interval.map(|end| gflops * line.seconds / end))
            .map(|[high, low]| [low, high]),
        peak_gflops: line.dot_peak_gflops.unwrap_or(line.peak_gflops),
        fraction_of_peak,
        kv_bytes,
        kv_gbytes_per_s,
        read_gbytes_per_s,
        fraction_of_bandwidth,
        fraction_of_roof,
        max_abs_error,
        rounds: line.rounds,
    })
}

#[cfg(test)]
mod tests {
    use super::threads;

    #[test]
    fn threads_are_powers_of_two_and_all() {
        assert_eq!([threads(1), threads(2), threads(4)], [vec![], vec![2], vec![2, 4]]);
        assert_eq!([threads(6), threads(9)], [vec![2, 4, 6], vec![2, 4, 8, 9]]);
    }
}
