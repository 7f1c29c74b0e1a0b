//! One thread, two, four, and as many as there are cores to use.

use rayon::ThreadPoolBuilder;
use regard::{Execution, Setup};
use regard_benches::{bench, criterion, level};
use regard_tuner::shapes::THREADS;

fn main() {
    let mut criterion = criterion();
    let mut group = criterion.benchmark_group("threads");
    let cores = Setup::global().expect("REGARD_ISA names a level of this machine").machine.cores.usable();
    let mut counts: Vec<usize> = [1, 2, 4].into_iter().filter(|threads| *threads < cores).collect();
    counts.push(cores);
    for threads in counts {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build().expect("the system grants threads");
        for shape in &THREADS {
            bench(&mut group, &format!("{threads}/{}", shape.name()), shape, level(), Execution::Pool(&pool));
        }
    }
    group.finish();
    criterion.final_summary();
}
