//! Keys that come one by one: all prefixes of one query by a scan against causal attention with the query repeated, and a
//! state that keys are pushed to against attention over all of them at once. Both take turns, so that a clock that drifts does
//! no harm.
//!
//! On one core of a Zen 4 (avx512, d 64), the scan is 2.7 times as fast as causal attention at 16 keys, 12 at 128, 41 at 512 and
//! 460 at 8192: there is no length at which causal attention wins. It reads and writes 36 to 46 GB/s from the caches and 14 from
//! memory. A state takes 1.4 times what attention over all 8192 keys takes, and 3.4, 2.3 and 1.4 times with 1, 8 and 64 queries
//! if keys are pushed one by one (40 ns for each with one query).
//!
//! `cargo bench --bench streaming`

use regard::{Align, Attention, Execution, Plan, Problem, Setup, State, StateShape, View, ViewMut, prefixes_into};
use regard_benches::level;
use regard_tuner::inputs::standard_normal;
use regard_tuner::measure::{Budget, compare};

const D: usize = 64;

/// Enough keys that the scan reads from memory.
const LENGTHS: [usize; 8] = [16, 32, 64, 128, 512, 2048, 8192, 131_072];

/// Beyond this, causal attention takes too long to wait for.
const LONGEST_CAUSAL: usize = 8192;

fn view(data: &[f32], rows: usize) -> View<'_, f32> {
    View::bhsd(data, [1, 1, rows, D]).expect("as many numbers as the shape has")
}

fn view_mut(data: &mut [f32], rows: usize) -> ViewMut<'_, f32> {
    ViewMut::bhsd(data, [1, 1, rows, D]).expect("as many numbers as the shape has")
}

/// Bytes that the scan of `keys` keys reads and writes: keys, values and results.
fn bytes(keys: usize) -> f64 {
    (3 * keys * D * size_of::<f32>()) as f64
}

fn prefixes(keys: usize, budget: Budget) {
    let (q, k, v) = (standard_normal(1, D), standard_normal(2, keys * D), standard_normal(3, keys * D));
    let options = Attention::softmax().isa(level().isa());
    let causal = options.clone().causal(Align::TopLeft);
    let repeated = View::strided(&q, [1, 1, keys, D], [0, 0, 0, 1]).expect("one row, again and again");
    let problem = Problem::new(&causal, repeated, view(&k, keys), view(&v, keys)).expect("a legal problem");
    let plan = Plan::new(&problem, Setup::global().expect("REGARD_ISA names a level of this machine"));
    let mut memory = vec![0.0; plan.workspace_len(1)];
    let (mut slow, mut fast) = (vec![0.0; keys * D], vec![0.0; keys * D]);
    let mut scan = || {
        let (q, out) = (view(&q, 1), view_mut(&mut fast, keys));
        prefixes_into(&options, q, view(&k, keys), view(&v, keys), out, None, Execution::Serial).expect("a legal scan");
    };
    if keys > LONGEST_CAUSAL {
        let found = compare(&mut scan, || (), budget);
        let seconds = found.a_seconds;
        println!("{keys:>8}{:>12.1}{:>10.1}{:>12}", seconds * 1e6, bytes(keys) / seconds / 1e9, "");
        return;
    }
    let attention = || {
        plan.run(&problem, view_mut(&mut slow, keys), None, &mut memory, Execution::Serial)
            .expect("a plan of this problem");
    };
    let found = compare(attention, scan, budget);
    let off = slow.iter().zip(&fast).fold(0.0_f32, |off, (a, b)| off.max((a - b).abs()));
    assert!(off < 1e-4, "prefixes of {keys} keys differ by {off}");
    let seconds = found.b_seconds;
    println!("{keys:>8}{:>12.1}{:>10.1}{:>12.2}", seconds * 1e6, bytes(keys) / seconds / 1e9, found.speedup);
}

fn states(queries: usize, keys: usize, budget: Budget) {
    let (q, k, v) = (standard_normal(1, queries * D), standard_normal(2, keys * D), standard_normal(3, keys * D));
    let options = Attention::softmax().isa(level().isa());
    let problem = Problem::new(&options, view(&q, queries), view(&k, keys), view(&v, keys)).expect("a legal problem");
    let plan = Plan::new(&problem, Setup::global().expect("REGARD_ISA names a level of this machine"));
    let mut memory = vec![0.0; plan.workspace_len(1)];
    let mut out = vec![0.0; queries * D];
    let mut attention = || {
        plan.run(&problem, view_mut(&mut out, queries), None, &mut memory, Execution::Serial)
            .expect("a plan of this problem");
    };
    let shape = StateShape { kv_heads: 1, value_dim: D };
    let mut state = State::new(&options, view(&q, queries), shape).expect("a legal state");
    let at_once = compare(
        || state.push_block(view(&k, keys), view(&v, keys), Execution::Serial).expect("keys of the state"),
        &mut attention,
        budget,
    );
    let one_by_one = compare(
        || {
            for (k, v) in k.chunks_exact(D).zip(v.chunks_exact(D)) {
                state.push(k, v).expect("a key of the state");
            }
        },
        attention,
        budget,
    );
    println!(
        "{queries:>8}{keys:>8}{:>14.1}{:>10.2}{:>14.1}{:>10.2}",
        at_once.a_seconds * 1e9 / keys as f64,
        at_once.speedup,
        one_by_one.a_seconds * 1e9 / keys as f64,
        one_by_one.speedup
    );
}

fn main() {
    let test = std::env::args().any(|argument| argument == "--test");
    let budget = if test { Budget::rounds(1) } else { Budget::rounds(7) };
    println!("{}, d {D}: all prefixes of one query, by a scan and by causal attention", level().isa());
    println!("{:>8}{:>12}{:>10}{:>12}", "keys", "scan us", "GB/s", "times as fast");
    for keys in LENGTHS.iter().filter(|keys| !test || **keys <= 128) {
        prefixes(*keys, budget);
    }
    println!("\na state of some queries: ns a key, and how many times what attention over all keys takes");
    println!("{:>8}{:>8}{:>14}{:>10}{:>14}{:>10}", "queries", "keys", "in one block", "times", "one by one", "times");
    for queries in [1, 8, 64] {
        states(queries, if test { 300 } else { 8192 }, budget);
    }
}
