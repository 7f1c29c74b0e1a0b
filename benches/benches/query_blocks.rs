//! Whether the best block of queries depends on the number of threads: every block with one thread and with all of them, in
//! turns.
//!
//! Classes of profiles leave threads out, since a plan does not depend on who runs it. The key block decides bits and so never
//! may; the query block decides none and could. Prints, for each shape and number of threads, the time of each block over the
//! best, and what the best block of one thread loses with all of them.

use rayon::ThreadPoolBuilder;
use regard::{Execution, Level, Setup};
use regard_benches::{Case, Inputs};
use regard_kernels::table::kernels;
use regard_profile::{Confidence, Config, Entry, Profile, Run, Tool};
use regard_tuner::measure::{FmaProbe, round_robin};
use regard_tuner::shapes::{ATTENTION, Rows, Shape};

/// Blocks, in register tiles of the kernel.
const REGISTER_TILES: [usize; 6] = [2, 4, 8, 16, 32, 64];

const ROUNDS: usize = 25;

/// Fixed: the order of the rounds is the same in every run.
const SEED: u64 = 1;

fn main() {
    let setup = Setup::global().expect("REGARD_ISA names a level of this machine").without_profile();
    let cores = setup.machine.cores.usable();
    let pool = ThreadPoolBuilder::new().num_threads(cores).build().expect("the system grants threads");
    let canary = FmaProbe::new(setup.level);
    // With `--test` one shape once, as criterion has it. Else squares of 512 and 2048, full and causal, d 64 and 128.
    let test = std::env::args().any(|arg| arg == "--test");
    let (shapes, rounds) = if test { (&ATTENTION[..1], 1) } else { (&ATTENTION[..8], ROUNDS) };
    for shape in shapes {
        let inputs = Inputs::warm(shape);
        let modelled = Case::new(&inputs, &setup, setup.level, Execution::Serial);
        let blocks = blocks(shape, setup.level, &modelled);
        let setups: Vec<Setup> = blocks.iter().map(|block| with_query_block(&modelled, &setup, *block)).collect();
        let counts = if cores > 1 { vec![Execution::Serial, Execution::Pool(&pool)] } else { vec![Execution::Serial] };
        let mut cases: Vec<Case<'_>> = Vec::new();
        for execution in &counts {
            cases.extend(setups.iter().map(|setup| Case::new(&inputs, setup, setup.level, *execution)));
        }
        let mut runs: Vec<_> = cases.iter_mut().map(|case| || case.run()).collect();
        let medians = round_robin(&canary, &mut runs, rounds, SEED).medians();
        report(shape, &blocks, &medians);
    }
}

/// The blocks that differ for a shape.
fn blocks(shape: &Shape, level: Level, modelled: &Case<'_>) -> Vec<usize> {
    let kernel = kernels(level).iter().find(|kernel| kernel.name == modelled.plan().kernel());
    let rows = kernel.expect("plans name kernels").tile.rows;
    let Rows::One { queries, .. } = shape.rows else { return Vec::new() };
    REGISTER_TILES.into_iter().map(|tiles| tiles * rows).filter(|block| *block <= queries).collect()
}

/// The machine with a profile that says the model's choice for everything, but for this block.
fn with_query_block(modelled: &Case<'_>, setup: &Setup, query_block: usize) -> Setup {
    let plan = modelled.plan();
    let config = Config::new(plan.kernel(), plan.key_block(), query_block);
    let entry = Entry {
        class: plan.class(),
        config,
        gflops: 0.0,
        fraction_of_peak: 0.0,
        ratio_to_model: 1.0,
        ratio_interval: None,
        samples: 0,
        runner_up: None,
        rivals: Vec::new(),
        why: String::new(),
    };
    let run =
        Run { unix_time: 0, seconds: 0.0, mode: "map".to_owned(), confidence: Confidence::Low, notes: Vec::new() };
    let profile = Profile { entries: vec![entry], ..Profile::new(Tool::default(), setup.machine.clone(), run) };
    Setup { profile: Some(profile.into()), ..setup.clone() }
}

/// A line for each number of threads; `medians` are those of all blocks with the first number, then with the second.
fn report(shape: &Shape, blocks: &[usize], medians: &[f64]) {
    let names: Vec<String> = blocks.iter().map(|block| format!("{block:>7}")).collect();
    println!("{:<24} {}", shape.name(), names.join(""));
    let best = |medians: &[f64]| medians.iter().copied().fold(f64::INFINITY, f64::min);
    for (of_count, count) in medians.chunks(blocks.len()).zip(["one thread", "all threads"]) {
        let losses: Vec<String> = of_count.iter().map(|time| format!("{:>7.3}", time / best(of_count))).collect();
        println!("  {count:<22} {}", losses.join(""));
    }
    if let [one, all] = *medians.chunks(blocks.len()).collect::<Vec<_>>() {
        let chosen = (0..blocks.len()).min_by(|a, b| one[*a].total_cmp(&one[*b])).unwrap_or(0);
        let loss = 100.0 * (all[chosen] / best(all) - 1.0);
        println!("  the best of one thread, {}, loses {loss:.1} % with all", blocks[chosen]);
    }
}
