//! Shapes that are computed in the linear form. The throughput counts the operations of the quadratic one.

use regard::Execution;
use regard_benches::{bench, criterion, level};
use regard_tuner::shapes::LINEAR;

fn main() {
    let mut criterion = criterion();
    let mut group = criterion.benchmark_group("linear");
    for shape in &LINEAR {
        let name = format!("{}/{}", shape.weights.name(), shape.name());
        bench(&mut group, &name, shape, level(), Execution::Serial);
    }
    group.finish();
    criterion.final_summary();
}
