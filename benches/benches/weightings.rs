//! Every weighting on one shape.

use regard::Execution;
use regard_benches::{bench, criterion, level};
use regard_tuner::shapes::{Shape, WEIGHTINGS, Weights};

fn main() {
    let mut criterion = criterion();
    let mut group = criterion.benchmark_group("weightings");
    for weights in Weights::ALL {
        let shape = Shape { weights, ..WEIGHTINGS };
        bench(&mut group, weights.name(), &shape, level(), Execution::Serial);
    }
    group.finish();
    criterion.final_summary();
}
