//! The instruction-set levels of this machine on the same shapes. REGARD_ISA does not limit them.

use regard::{Execution, Level};
use regard_benches::{bench, criterion};
use regard_tuner::shapes::LEVELS;

fn main() {
    let mut criterion = criterion();
    let mut group = criterion.benchmark_group("levels");
    for level in Level::available() {
        for shape in &LEVELS {
            bench(&mut group, &format!("{}/{}", level.isa(), shape.name()), shape, *level, Execution::Serial);
        }
    }
    group.finish();
    criterion.final_summary();
}
