//! Softmax attention on the standard shapes.

use regard::Execution;
use regard_benches::{bench, criterion, level};
use regard_tuner::shapes::ATTENTION;

fn main() {
    let mut criterion = criterion();
    let mut group = criterion.benchmark_group("attention");
    for shape in &ATTENTION {
        bench(&mut group, &shape.name(), shape, level(), Execution::Serial);
    }
    group.finish();
    criterion.final_summary();
}
