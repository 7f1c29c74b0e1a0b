//! The portable path at sizes that an interpreter can run: under Miri this finds reads and writes out of bounds, uninitialised
//! memory and aliasing mistakes in everything between a view and a kernel, on both kinds of kernel, for every element type,
//! wherever the keys lie. Natively it is a quick sanity check.
#![forbid(unsafe_code)]

use regard::{
    Align, Attention, CacheShape, Count, Dtype, Execution, Isa, Keys, KvCache, Level, Pages, Partial, Plan, Pointwise,
    Problem, Queries, RowScale, Setup, SigmoidBias, Simd, Split, View, ViewMut, Weighting, f16, reference,
};
use regard_kernels::table::{kernels, rows_kernels};
use regard_profile::Machine;
use regard_tests::{Blocks, Case, Engine, Guarded, Layout, Random, Spec, Stored, Tensor, compare, run, same};

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

/// Nothing is asked of the machine, which an interpreter does not have.
fn setup() -> Setup {
    Setup { level: portable(), machine: Machine::default(), profile: None }
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
    let plan = Plan::new(&problem, &setup());
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
    for weighting in weightings() {
        check(&Attention::new(weighting.clone()), 3, 5, 3, 2);
        check(&Attention::new(weighting).causal(Align::BottomRight), 9, 10, 2, 9);
    }
}

fn weightings() -> [Weighting; 12] {
    [
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
    ]
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

/// The lanes kernel and the rows kernel for an element type of keys and values.
fn engines(dtype: Dtype) -> [Engine; 2] {
    let rows = rows_kernels(portable()).find(|kernel| kernel.dtype == dtype).expect("there is one for every type");
    [Engine::Lanes(&kernels(portable())[0]), Engine::Rows(rows)]
}

/// q, k and v of 2:1 heads, all numbers without a pattern.
fn tensors([queries, keys]: [usize; 2], [d, d_v]: [usize; 2]) -> [Tensor; 3] {
    let random = &mut Random::new(1);
    [
        Tensor::normal([1, 2, queries, d], Layout::PaddedBshd, random),
        Tensor::normal([1, 1, keys, d], Layout::Padded, random),
        Tensor::normal([1, 1, keys, d_v], Layout::Bshd, random),
    ]
}

/// One kernel by itself, into memory between guard bands.
fn check_on(engine: Engine, case: &Case<'_>, blocks: &Blocks<'_>) {
    compare(case, &case.problem(), &engine.run(case, blocks));
}

/// Plans give few queries to a rows kernel and many to a lanes kernel: each kernel with few. (The weighting of this file's own
/// goes through plans alone.)
#[test]
fn every_weighting_on_both_kernels() {
    let tensors = tensors([2, 4], [3, 9]);
    for (turn, weighting) in weightings()[..11].iter().enumerate() {
        let dtype = Dtype::ALL[turn % 4];
        let q_dtype = [Dtype::F32, Dtype::Bf16, Dtype::F16][turn % 3];
        let stored = Stored::three(tensors.each_ref(), q_dtype, dtype);
        let causal = (turn % 2 == 0).then_some(Align::BottomRight);
        let case = Case::stored(Spec { causal, ..Spec::new(weighting.clone()) }, &stored);
        for (engine, out) in engines(dtype).into_iter().zip([q_dtype, Dtype::F32]) {
            check_on(engine, &case, &Blocks { out, layout: Layout::Padded, ..Blocks::new(16, 3) });
        }
    }
}

/// Every element type of keys and values, with columns to spare in every vector, and on the lanes kernel one block of keys
/// after another.
#[test]
fn every_element_type() {
    let tensors = tensors([1, 18], [3, 10]);
    for dtype in Dtype::ALL {
        let stored = Stored::three(tensors.each_ref(), if dtype == Dtype::Int8 { Dtype::F32 } else { dtype }, dtype);
        let case = Case::stored(Spec::new(Weighting::Softmax), &stored);
        for engine in engines(dtype) {
            check_on(engine, &case, &Blocks::new(16, 2));
        }
    }
}

#[test]
fn pages_packed_sequences_and_rings() {
    let random = &mut Random::new(2);
    let q = Tensor::normal([1, 2, 4, 3], Layout::Bshd, random);
    // 4 pages of 3 rows, 2 rings of 6, and 12 packed rows.
    let pools = [[4, 3], [2, 6], [1, 12]].map(|[batch, rows]| {
        [
            Tensor::normal([batch, 1, rows, 3], Layout::Padded, random),
            Tensor::normal([batch, 1, rows, 5], Layout::Bhsd, random),
        ]
    });
    let pages = Pages { table: &[2, 0, 3, u32::MAX], pages_per_sequence: 2, lengths: &[5, 2] };
    let lies = [Keys::Paged(pages), Keys::Ring { lengths: &[9, 4] }, Keys::Packed(&[0, 7, 11])];
    for (turn, ([k, v], keys)) in pools.iter().zip(lies).enumerate() {
        let dtype = [Dtype::F16, Dtype::Int8, Dtype::Bf16][turn];
        let stored = Stored::three([&q, k, v], Dtype::F32, dtype);
        for weighting in [Weighting::Softmax, Weighting::HardRight] {
            let window = Some((Some(2), None));
            let spec = Spec { causal: Some(Align::BottomRight), window, ..Spec::new(weighting) };
            // The last row of q belongs to nobody.
            let case = Case::stored(spec, &stored).ragged(Queries::Packed(&[0, 2, 3]), keys);
            for engine in engines(dtype) {
                check_on(engine, &case, &Blocks::new(16, 2));
            }
        }
    }
}

/// Spans of one sequence. By one thread: the pools that share them do things at their start that the interpreter forbids.
#[test]
fn split_keys() {
    let tensors = tensors([1, 34], [2, 3]);
    let stored = Stored::three(tensors.each_ref(), Dtype::F32, Dtype::F32);
    for weighting in [Weighting::Softmax, Weighting::AverageHard] {
        let case = Case::stored(Spec { causal: Some(Align::BottomRight), ..Spec::new(weighting) }, &stored);
        for engine in engines(Dtype::F32) {
            check_on(engine, &case, &Blocks { split: Split::Keys(32), ..Blocks::new(32, 2) });
        }
    }
}

/// Parts of the keys, rebuilt from their numbers, merged, and written in half precision.
#[test]
fn partial_results() {
    let tensors = tensors([2, 9], [3, 4]);
    let q = Stored::new(&tensors[0], Dtype::F16, Layout::Bhsd);
    for weighting in
        [Weighting::Softmax, Weighting::HardLeft, Weighting::AverageHard, Weighting::Relu, Weighting::Taylor2]
    {
        let spec = Spec { isa: Some(Isa::Portable), ..Spec::new(weighting.clone()) };
        let part = |first: usize, keys: usize| {
            let [k, v] = [1, 2].map(|i| Stored::new(&tensors[i].rows(first, keys), Dtype::F32, Layout::Bhsd));
            let problem = Case::of(spec.clone(), q.tensor(), k.tensor(), v.tensor()).problem();
            let plan = Plan::new(&problem, &setup());
            let mut partial = Partial::new(&problem).expect("nothing depends on the number of keys");
            let mut workspace = Guarded::new(plan.workspace_len(1));
            plan.run_partial(&problem, &mut partial, workspace.inner(), Execution::Serial).expect("valid");
            workspace.check("workspace");
            Partial::from_parts(&problem, partial.states().to_vec(), partial.sums().to_vec()).expect("its own")
        };
        let [mut all, last, none] = [part(0, 5), part(5, 4), part(9, 0)];
        all.merge(&none).expect("of one problem");
        all.merge(&last).expect("of one problem");
        let whole = Stored::three(tensors.each_ref(), Dtype::F16, Dtype::F32);
        let whole = Case::stored(spec.clone(), &whole);
        let mut out = Guarded::<f16>::of(16);
        let mut lse = Guarded::new(4);
        let has_lse = matches!(weighting, Weighting::Softmax);
        let view = ViewMut::bhsd(out.inner(), all.shape()).expect("its shape");
        all.finish(view, has_lse.then(|| lse.inner())).expect("f16, as q is");
        out.check("out");
        lse.check("lse");
        for row in whole.rows() {
            let wanted = reference::row(&whole.problem(), Isa::Portable, row).out;
            for (got, wanted) in out.inner()[whole.row(row) * 4..].iter().zip(wanted) {
                assert!((got.to_f64() - wanted).abs() < 1e-3 * wanted.abs().max(1.0), "{got} instead of {wanted}");
            }
        }
    }
}

/// A cache that grows and one that slides, token by token.
#[test]
fn caches() {
    let tokens = 5;
    let [q, k, v] = tensors([tokens, tokens], [3, 4]);
    let shape = CacheShape { batch: 1, kv_heads: 1, head_dim: 3, value_dim: 4 };
    let window = Attention::softmax().causal(Align::BottomRight).window(Some(2), None);
    for dtype in [Dtype::Bf16, Dtype::Int8] {
        let mut full = KvCache::with_capacity(dtype, shape, 1).expect("there is room");
        let mut sliding = KvCache::sliding(dtype, shape, 3).expect("there is room");
        for token in 0..tokens {
            for cache in [&mut full, &mut sliding] {
                let [k, v] = [&k, &v].map(|tensor| tensor.rows(token, 1));
                cache.append(k.view(), v.view()).expect("a row of the cache");
            }
        }
        let last = q.rows(tokens - 1, 1);
        let out = |problem: Result<Problem<'_>, _>| run(&problem.expect("valid"), &setup(), Execution::Serial).out;
        let near = [&k, &v].map(|tensor| Stored::new(tensor, dtype, Layout::Bhsd));
        let wanted = out(Problem::new(&window, last.view(), near[0].tensor(), near[1].tensor()));
        for cache in [&full, &sliding] {
            same(&out(cache.problem(&window, last.view())), &wanted, "side by side");
        }
    }
}
