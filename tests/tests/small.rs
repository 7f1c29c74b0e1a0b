//! The portable path at sizes that an interpreter can run: under Miri this finds reads and writes out of bounds, uninitialised
//! memory and aliasing mistakes in everything between a view and a kernel. Natively it is a quick sanity check.
#![forbid(unsafe_code)]

use regard::{
    Align, Attention, Count, Execution, Isa, Level, Plan, Pointwise, Problem, RowScale, Setup, SigmoidBias, Simd, View,
    ViewMut, Weighting, reference,
};
use regard_profile::Machine;

/// Numbers in [-1, 1) without a pattern.
fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

#[derive(Clone, Copy, Debug)]
struct Square;

impl Pointwise for Square {
    #[inline(always)]
    fn weight<S: Simd>(&self, s: S, score: S::F32) -> S::F32 {
        s.mul(score, score)
    }

    fn weight_f64(&self, score: f64) -> f64 {
        score * score
    }
}

fn portable() -> Level {
    Level::of(Isa::Portable).unwrap()
}

/// Runs `options` on `[1, 2:1, queries, d]` in the layout `[batch, rows, heads, columns]` and compares every element.
fn check(options: &Attention<'_>, queries: usize, keys: usize, d: usize, d_v: usize) {
    let (q, k, v) = (numbers(2 * queries * d, 1), numbers(keys * d, 2), numbers(keys * d_v, 3));
    let options = options.clone().isa(Isa::Portable);
    let problem = Problem::new(
        &options,
        View::bshd(&q, [1, queries, 2, d]).unwrap(),
        View::bshd(&k, [1, keys, 1, d]).unwrap(),
        View::bhsd(&v, [1, 1, keys, d_v]).unwrap(),
    )
    .unwrap();
    // Nothing is asked of the machine, which an interpreter does not have.
    let setup = Setup { level: portable(), machine: Machine::default(), profile: None };
    let plan = Plan::new(&problem, &setup);
    // Exactly as long as the plan says, and not aligned to anything.
    let mut workspace = vec![f32::NAN; plan.workspace_len(1) + 1];
    let mut out = vec![f32::NAN; 2 * queries * d_v];
    let view = ViewMut::bshd(&mut out, [1, queries, 2, d_v]).unwrap();
    plan.run(&problem, view, None, &mut workspace[1..], Execution::Serial).unwrap();
    for head in 0..2 {
        for query in 0..queries {
            let wanted = reference::row(&problem, Isa::Portable, [0, head, query]).out;
            for (c, wanted) in wanted.into_iter().enumerate() {
                let found = f64::from(out[(query * 2 + head) * d_v + c]);
                let name = options.weighting().name();
                assert!((found - wanted).abs() < 1e-5, "{name} {queries} x {keys}: {found} instead of {wanted}");
            }
        }
    }
}

#[test]
fn every_weighting() {
    let weightings = [
        Weighting::Softmax,
        Weighting::HardLeft,
        Weighting::HardRight,
        Weighting::AverageHard,
        Weighting::Relu,
        Weighting::ReluSquared,
        Weighting::Polynomial { degree: 3 },
        Weighting::Sigmoid { bias: SigmoidBias::NegLogN },
        Weighting::EvenPower { degree: 2 },
        Weighting::Taylor2,
        Weighting::Identity,
        Weighting::custom("square", Square),
    ];
    for weighting in weightings {
        check(&Attention::new(weighting.clone()), 3, 5, 3, 2);
        check(&Attention::new(weighting).causal(Align::BottomRight), 9, 10, 2, 9);
    }
}

#[test]
fn masks_and_score_terms() {
    let keep = [true, false, true, true, false, true];
    let (slopes, sinks, bias) = ([0.5, 0.25], [0.1, -0.3], numbers(6, 4));
    let keep = View::bhsd(&keep, [1, 1, 1, 6]).unwrap();
    let bias = View::bhsd(&bias, [1, 1, 1, 6]).unwrap();
    check(&Attention::softmax().keep_mask(keep).sinks(&sinks), 4, 6, 2, 3);
    check(&Attention::softmax().bias(bias).softcap(2.0).alibi_slopes(&slopes).align(Align::TopLeft), 10, 6, 2, 3);
    check(&Attention::softmax().window(Some(1), Some(0)).align(Align::Offset(-1)), 10, 6, 2, 3);
    check(&Attention::softmax().log_n_schedule(1.0).count(Count::Visible).causal(Align::TopLeft).strict(), 4, 6, 2, 3);
    check(&Attention::new(Weighting::Relu).row_scale(RowScale::InvN).keep_mask(keep), 4, 6, 2, 3);
    check(&Attention::new(Weighting::AverageHard).scale(0.0).keep_mask(keep), 4, 6, 2, 3);
    check(&Attention::softmax(), 2, 0, 2, 3);
}
