//! Criterion, set up so that all groups together take a few minutes.
//!
//! Criterion times one case after the other. That serves the development loop: plots, and changes of more than a few
//! percent from one run to the next. What holds on a machine whose clock drifts comes from `compare` and from
//! `regard bench`, where what is compared takes turns.

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput};
use regard::{Execution, Level, Setup};
use regard_tuner::shapes::Shape;

use crate::{Case, Inputs};

/// Criterion with little time for each case.
pub fn criterion() -> Criterion {
    let criterion = Criterion::default().sample_size(10).without_plots();
    let criterion = criterion.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(800));
    criterion.configure_from_args()
}

/// What a throughput counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Floating-point operations over visible pairs: "Gelem/s" reads GFLOP/s. K and V may stay in the caches.
    Flops,
    /// Bytes of K and V, which come from memory: several copies of them are used in turn.
    Bytes,
}

/// Benches a case at a level, with threads of the caller's choice.
pub fn bench(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    shape: &Shape,
    level: Level,
    execution: Execution<'_>,
) {
    bench_counting(group, name, shape, level, execution, Count::Flops);
}

/// The same with a throughput of the caller's choice.
pub fn bench_counting(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    shape: &Shape,
    level: Level,
    execution: Execution<'_>,
    count: Count,
) {
    let setup = Setup::global().expect("REGARD_ISA names a level of this machine");
    let inputs = match count {
        Count::Flops => Inputs::warm(shape),
        Count::Bytes => Inputs::cold(shape, setup.machine.caches.l3_or_default()),
    };
    let mut case = Case::new(&inputs, setup, level, execution);
    group.throughput(match count {
        Count::Flops => Throughput::Elements(case.flops() as u64),
        Count::Bytes => Throughput::Bytes(case.kv_bytes() as u64),
    });
    group.bench_function(name, |bencher| bencher.iter(|| case.run()));
}
