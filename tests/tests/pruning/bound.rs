//! The bound of what softmax leaves out, reached from both sides.

use regard::{Attention, Execution};
use regard_tests::{SLOW, levels, setup_of};

use crate::data::{D, D_V, Data, run_with};

/// Keys of a block of the index.
const BLOCK: usize = 64;

/// Blocks of equal keys. Their scores lie below those of the first one by so many bits: `gap` in one of them, and by far too many
/// in the others, so that there is something to leave out. Values are nothing in the first block and one everywhere else, so
/// that the output is what the others weigh.
fn at_a_gap(queries: usize, keys: usize, gap: f32) -> Data {
    const FAR: f32 = 300.0;
    let blocks = keys / BLOCK;
    let mut data = Data::clustered([1, 1], [queries, keys], 0.0);
    for q in data.q.chunks_exact_mut(D) {
        q.fill(0.0);
        q[0] = 1.0;
    }
    for (key, k) in data.k.chunks_exact_mut(D).enumerate() {
        let bits = match key / BLOCK {
            0 => 0.0,
            block if block == blocks / 2 => gap,
            _ => FAR,
        };
        k.fill(0.0);
        k[0] = -bits * std::f32::consts::LN_2;
    }
    for (key, v) in data.v.chunks_exact_mut(D_V).enumerate() {
        v.fill(if key < BLOCK { 0.0 } else { 1.0 });
    }
    data
}

/// What is left out weighs less than 2^-25, wherever it begins to be left out; and it is left out somewhere, by rows of either
/// kernel.
#[test]
fn softmax_leaves_out_what_weighs_less_than_its_bound_and_no_more() {
    let keys = if SLOW { 512 } else { 1024 };
    for setup in levels().iter().map(|level| setup_of(*level)) {
        for queries in [1, 7, 15, 16, 70] {
            let (mut kept, mut left_out) = (0, 0);
            for gap in (8..64).step_by(if SLOW { 4 } else { 1 }) {
                let data = at_a_gap(queries, keys, gap as f32);
                let options = Attention::softmax().scale(1.0).isa(setup.level.isa());
                let problem = data.problem(&options);
                let index = data.index();
                let dense = run_with(&problem, &setup, Execution::Serial);
                let pruned = run_with(&problem.clone().with_index(&index).unwrap(), &setup, Execution::Serial);
                let expected = 2.0_f64.powi(-gap) / (1.0 + 2.0_f64.powi(-gap));
                for (a, b) in pruned.iter().zip(&dense) {
                    let (a, b) = (f64::from(*a), f64::from(*b));
                    assert!((b - expected).abs() <= 1e-4 * expected, "{b} for {expected}");
                    let allowed = 2.0_f64.powi(-25) + 4.0 * f64::from(f32::EPSILON) * expected;
                    assert!((a - b).abs() <= allowed, "{queries} queries, {gap} bits: {a} for {b}");
                    if a == 0.0 { left_out += 1 } else { kept += 1 }
                }
            }
            assert!(kept > 0 && left_out > 0, "{queries} queries: {kept} kept, {left_out} left out");
        }
    }
}
