//! One token at a time against a cache in memory: every element type, with 1 and with 8 query heads for each KV head.
//! Throughput is that of the bytes of K and V.

use regard::Execution;
use regard_benches::{Count, bench_counting, criterion, level};
use regard_tuner::shapes::DECODE;

fn main() {
    let mut criterion = criterion();
    let mut group = criterion.benchmark_group("decode");
    for shape in &DECODE {
        bench_counting(&mut group, &shape.name(), shape, level(), Execution::Serial, Count::Bytes);
    }
    group.finish();
    criterion.final_summary();
}
