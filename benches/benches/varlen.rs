//! Sequences of different lengths, packed one after the other: prompts, whose throughput is that of operations, and one token
//! of each sequence, whose throughput is that of the bytes of K and V.

use regard::Execution;
use regard_benches::{Count, bench_counting, criterion, level};
use regard_tuner::shapes::{Rows, VARLEN};

fn main() {
    let mut criterion = criterion();
    let mut group = criterion.benchmark_group("varlen");
    for shape in &VARLEN {
        let prompts = matches!(shape.rows, Rows::Packed { queries: None, .. });
        let count = if prompts { Count::Flops } else { Count::Bytes };
        bench_counting(&mut group, &shape.name(), shape, level(), Execution::Serial, count);
    }
    group.finish();
    criterion.final_summary();
}
