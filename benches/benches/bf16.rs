//! Softmax attention on prompts in bf16, with the instructions that multiply it where the machine has them and they pay.

use regard::Execution;
use regard_benches::{bench, criterion, level};
use regard_tuner::shapes::BF16;

fn main() {
    let mut criterion = criterion();
    let mut group = criterion.benchmark_group("bf16");
    for shape in &BF16 {
        bench(&mut group, &shape.name(), shape, level(), Execution::Serial);
    }
    group.finish();
    criterion.final_summary();
}
