//! A few tokens at a time against a cache in memory, as they are verified in speculative decoding. Throughput is that of the
//! bytes of K and V.

use regard::Execution;
use regard_benches::{Count, bench_counting, criterion, level};
use regard_tuner::shapes::VERIFY;

fn main() {
    let mut criterion = criterion();
    let mut group = criterion.benchmark_group("verify");
    for shape in &VERIFY {
        bench_counting(&mut group, &shape.name(), shape, level(), Execution::Serial, Count::Bytes);
    }
    group.finish();
    criterion.final_summary();
}
