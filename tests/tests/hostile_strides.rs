//! Rows of K and V that lie a multiple of 4096 bytes apart are copied block by block. Nothing may come of it but speed: the
//! same bits as from rows that lie side by side, also where a sub-tile is computed a second time while the copy is in use.
#![forbid(unsafe_code)]

use regard::{Align, Execution, Plan, Weighting};
use regard_kernels::table::kernels;
use regard_tests::{Case, Layout, Random, SLOW, Spec, Tensor, levels, run, setup_for, weightings};

const HEADS: usize = 16;
const D: usize = 64;

/// Integers, so that there are ties, and NaN in the last values, so that causal rows are computed with care.
fn tensors(queries: usize, keys: usize) -> (Tensor, Tensor, Tensor) {
    let mut random = Random::new(7);
    let q = Tensor::integers([1, HEADS, queries, D], Layout::Bshd, 1, &mut random);
    let k = Tensor::integers([1, HEADS, keys, D], Layout::Bshd, 1, &mut random);
    let mut v = Tensor::normal([1, HEADS, keys, D], Layout::Bshd, &mut random);
    for head in 0..HEADS {
        v.fill_row([0, head, keys - 1], f32::NAN);
    }
    (q, k, v)
}

#[test]
fn copies_change_no_bits() {
    let (queries, keys) = (70, if SLOW { 75 } else { 200 });
    let (q, k, v) = tensors(queries, keys);
    let (near_k, near_v) = (k.in_layout(Layout::Bhsd), v.in_layout(Layout::Bhsd));
    for weighting in weightings() {
        for causal in [None, Some(Align::TopLeft), Some(Align::BottomRight)] {
            let spec = Spec { causal, ..Spec::new(weighting.clone()) };
            let far = Case::new(spec.clone(), &q, &k, &v);
            let near = Case::new(spec.clone(), &q, &near_k, &near_v);
            for level in levels() {
                let setup = setup_for(&kernels(*level)[0], 48, 128);
                let plan = Plan::new(&far.problem(), &setup);
                assert!(plan.explain().to_string().contains("copy"), "{}", plan.explain());
                let copied = run(&far.problem(), &setup, Execution::Serial);
                let direct = run(&near.problem(), &setup, Execution::Serial);
                copied.assert_same(&direct, &format!("{level:?} {spec:?}"));
            }
        }
    }
}

/// The test above would not notice if both ways were wrong.
#[test]
fn copies_are_right() {
    let (q, k, _) = tensors(70, 75);
    let v = Tensor::normal([1, HEADS, 75, D], Layout::Bshd, &mut Random::new(8));
    for weighting in [Weighting::Softmax, Weighting::AverageHard, Weighting::Relu] {
        let spec = Spec { causal: Some(Align::TopLeft), ..Spec::new(weighting) };
        for level in levels() {
            regard_tests::check(&Case::new(spec.clone(), &q, &k, &v), &setup_for(&kernels(*level)[0], 48, 128));
        }
    }
}
