//! f32 in parts of bf16 on tile registers: as accurate as multiply-adds, with their infinities, and with the same bits for a sequence in
//! whatever company.
#![forbid(unsafe_code)]

use regard::{
    Align, Attention, Dtype, Execution, Form, Keys, Level, Numerics, Plan, Problem, Queries, Setup, SigmoidBias, View,
    ViewMut, Weighting,
};
use regard_kernels::table::Kernel;
use regard_profile::in_parts_from;
use regard_tests::{
    Blocks, Case, Engine, Layout, Output, Random, Spec, Stored, Tensor, compare, every_kernel, levels, same, setup_of,
    setup_with_tiles,
};

/// The kernels in parts, each with that of its level in vectors. Says if there are none.
fn kernels() -> Vec<[&'static Kernel; 2]> {
    let of_f32 = || every_kernel().filter(|kernel| kernel.dtype == Dtype::F32);
    let in_vectors = |tiles: &Kernel| {
        let fits = |kernel: &&Kernel| kernel.isa == tiles.isa && kernel.tile.rows == tiles.tile.rows;
        of_f32().find(|kernel| fits(kernel) && kernel.extension.is_none()).expect("a kernel in vectors")
    };
    let found: Vec<_> =
        of_f32().filter(|kernel| kernel.extension.is_some()).map(|tiles| [tiles, in_vectors(tiles)]).collect();
    if found.is_empty() {
        println!("SKIPPED: this machine has no tile registers");
    }
    found
}

/// Whether this machine has such a kernel at a level.
fn has_parts(level: Level) -> bool {
    every_kernel().any(|kernel| kernel.isa == level.isa() && kernel.name.contains("_lanes_f32_amx"))
}

fn run(kernel: &'static Kernel, case: &Case<'_>) -> Output {
    Engine::Lanes(kernel).run(case, &Blocks::new(32, 48))
}

fn weightings() -> Vec<Weighting> {
    vec![
        Weighting::Softmax,
        Weighting::Relu,
        Weighting::ReluSquared,
        Weighting::Polynomial { degree: 3 },
        Weighting::EvenPower { degree: 2 },
        Weighting::Taylor2,
        Weighting::Identity,
        Weighting::Sigmoid { bias: SigmoidBias::Constant(-1.0) },
    ]
}

/// Rows that see an infinity, or a number that is so small that its parts would be lost, have the bits of the kernel in vectors, and
/// other rows those that they have without it.
#[test]
fn ends_of_the_range_are_those_of_vectors() {
    const ROWS: usize = 70;
    const KEYS: usize = 90;
    let mut random = Random::new(1);
    let q = Tensor::normal([1, 2, ROWS, 37], Layout::Bhsd, &mut random);
    let k = Tensor::normal([1, 2, KEYS, 37], Layout::Bhsd, &mut random);
    let v = Tensor::normal([1, 2, KEYS, 21], Layout::Bhsd, &mut random);
    // Rows see keys up to `row + 20`.
    let is_hit = |row: usize| row == 10 || row + 20 >= 60;
    for bad in [f32::INFINITY, 1e-20, f32::MIN_POSITIVE / 8.0] {
        let [mut bad_q, mut bad_k, mut bad_v] = [q.clone(), k.clone(), v.clone()];
        for (head, sign) in [(0, 1.0), (1, -1.0)] {
            *bad_q.at([0, head, 10, 4]) = sign * bad;
            *bad_k.at([0, head, 60, 3]) = sign * bad;
            *bad_v.at([0, head, 75, 5]) = -sign * bad;
            *bad_v.at([0, head, 80, 20]) = f32::NAN;
        }
        for [tiles, vectors] in kernels() {
            for weighting in weightings() {
                let mut spec = Spec::new(weighting.clone());
                spec.causal = Some(Align::BottomRight);
                let clean = run(tiles, &Case::new(spec.clone(), &q, &k, &v));
                let case = Case::new(spec, &bad_q, &bad_k, &bad_v);
                let (found, in_vectors) = (run(tiles, &case), run(vectors, &case));
                let mut finite = 0;
                for at in 0..ROWS {
                    let wanted = if is_hit(at) { &in_vectors } else { &clean };
                    let [found, wanted] = [&found, wanted].map(|output| output.rows([2, ROWS], at, 1));
                    found.assert_same(&wanted, &format!("{weighting:?}, {bad:e}, row {at}"));
                    finite += if is_hit(at) { wanted.out.iter().filter(|x| x.is_finite()).count() } else { 0 };
                }
                // Or NaN everywhere would do.
                let some = bad < 1.0 || matches!(weighting, Weighting::Softmax | Weighting::Relu);
                assert!(finite > 0 || !some, "{weighting:?}, {bad:e}");
            }
        }
    }
}

/// Whole tensors of small numbers, with a scale that makes up for it, are within the bounds of vectors.
#[test]
fn small_numbers_keep_their_bits() {
    let mut random = Random::new(4);
    for [tiles, _] in kernels() {
        for size in [1e-3, 1e-10, 1e-17, 1e-30] {
            let mut small = |shape| Tensor::from_fn(shape, Layout::Bhsd, |_| size * random.normal());
            let [q, k, v] = [[1, 2, 40, 24], [1, 2, 70, 24], [1, 2, 70, 40]].map(&mut small);
            for weighting in [Weighting::Softmax, Weighting::Relu] {
                let mut spec = Spec::new(weighting);
                spec.scale = Some((0.2 / size).min(1e30));
                let case = Case::new(spec, &q, &k, &v);
                println!("{size:e}: {:?}", compare(&case, &case.problem(), &run(tiles, &case)));
            }
        }
    }
}

/// Parts of narrow elements that are zero are left out: it changes no bits.
#[test]
fn narrow_elements_are_as_if_they_were_f32() {
    let mut random = Random::new(2);
    let q = Tensor::normal([1, 2, 67, 40], Layout::Bhsd, &mut random);
    let k = Tensor::normal([1, 2, 101, 40], Layout::Bhsd, &mut random);
    let v = Tensor::normal([1, 2, 101, 33], Layout::Bhsd, &mut random);
    for [tiles, _] in kernels() {
        for dtype in [Dtype::F16, Dtype::Bf16] {
            let narrow = Stored::three([&q, &k, &v], dtype, dtype);
            let wide = [&q, &k, &v].map(|tensor| {
                Tensor::from_fn(tensor.shape(), Layout::Bhsd, |index| match dtype {
                    Dtype::F16 => regard::f16::from_f32(tensor.get(index)).to_f32(),
                    _ => regard::bf16::from_f32(tensor.get(index)).to_f32(),
                })
            });
            for weighting in weightings() {
                let narrow = run(tiles, &Case::stored(Spec::new(weighting.clone()), &narrow));
                let wide = run(tiles, &Case::new(Spec::new(weighting), &wide[0], &wide[1], &wide[2]));
                narrow.assert_same(&wide, dtype.name());
            }
        }
    }
}

/// The largest error against f64 is about that of multiply-adds (0.5 to 1.25 times, here): what is left out of products is less than
/// their roundings.
#[test]
fn errors_are_about_those_of_vectors() {
    for [tiles, vectors] in kernels() {
        for (seed, d) in [(1, 64), (2, 128), (3, 256)] {
            let mut random = Random::new(seed);
            let q = Tensor::normal([1, 2, 96, d], Layout::Bhsd, &mut random);
            let k = Tensor::normal([1, 2, 700, d], Layout::Bhsd, &mut random);
            let v = Tensor::normal([1, 2, 700, d], Layout::Bhsd, &mut random);
            for weighting in weightings() {
                let case = Case::new(Spec::new(weighting.clone()), &q, &k, &v);
                let problem = case.problem();
                let [in_parts, in_vectors] =
                    [tiles, vectors].map(|kernel| compare(&case, &problem, &run(kernel, &case)).error);
                println!("{weighting:?}, d {d}: {in_parts:.2e} in parts, {in_vectors:.2e} in vectors");
                assert!(in_parts <= 1.5 * in_vectors, "{weighting:?}, d {d}: {in_parts:e} and {in_vectors:e}");
            }
        }
    }
}

/// Which kernel computes a sequence depends on its own queries: in a batch it has the bits of a call of its own.
#[test]
fn sequences_of_any_length_in_one_batch() {
    let lengths = [390, 3, 100, 16, 260];
    let (heads, d) = (2, 24);
    let offsets: Vec<usize> = std::iter::once(0)
        .chain(lengths.iter().scan(0, |sum, length| {
            *sum += length;
            Some(*sum)
        }))
        .collect();
    let all = offsets[lengths.len()];
    let mut random = Random::new(3);
    let [q, k, v] = [(); 3].map(|()| random.normals(all * heads * d));
    let options = Attention::softmax().causal(Align::BottomRight);
    for level in levels() {
        let setup = setup_with_tiles(*level);
        let compute = |from: usize, to: usize, offsets: &[usize]| {
            let rows = from * heads * d..to * heads * d;
            let [q, k, v] = [&q, &k, &v].map(|x| View::thd(&x[rows.clone()], [to - from, heads, d]).expect("as long"));
            let problem =
                Problem::ragged(&options, q, Queries::Packed(offsets), k, v, Keys::Packed(offsets)).expect("legal");
            let plan = Plan::new(&problem, &setup);
            let mut workspace = vec![f32::NAN; plan.workspace_len(1)];
            let mut out = vec![7.0; (to - from) * heads * d];
            let view = ViewMut::thd(&mut out, [to - from, heads, d]).expect("as long");
            plan.run(&problem, view, None, &mut workspace, Execution::Serial).expect("room");
            let names: Vec<_> = problem.sequences().iter().map(|sequence| plan.kernel_of(&problem, sequence)).collect();
            (out, names)
        };
        let (out, names) = compute(0, all, &offsets);
        for (i, pair) in offsets.windows(2).enumerate() {
            let [from, to] = [pair[0], pair[1]];
            let (alone, name) = compute(from, to, &[0, to - from]);
            same(&alone, &out[from * heads * d..to * heads * d], &format!("{level:?}, sequence {i}"));
            let tiles = has_parts(*level) && to - from >= in_parts_from("f32");
            assert_eq!([name[0], names[i]].map(|name| name.contains("_amx")), [tiles; 2], "{name:?}, {}", names[i]);
        }
    }
}

/// What plans take parts for, and what refuses them.
#[test]
fn plans_take_parts_for_many_queries() {
    let zeros = vec![0.0; 400 * 8];
    for level in levels() {
        let has = has_parts(*level);
        let takes = |options: &Attention<'_>, queries: usize, setup: &Setup| {
            let view = |rows: usize| View::bhsd(&zeros[..rows * 8], [1, 1, rows, 8]).expect("as long");
            let options = options.clone().form(Form::Quadratic);
            let problem = Problem::new(&options, view(queries), view(300), view(300)).expect("legal");
            Plan::new(&problem, setup).kernel().contains("_lanes_f32_amx")
        };
        let (tiles, unknown) = (setup_with_tiles(*level), setup_of(*level));
        let least = in_parts_from("f32");
        for weighting in weightings() {
            assert_eq!(
                [least - 1, least].map(|queries| takes(&Attention::new(weighting.clone()), queries, &tiles)),
                [false, has]
            );
        }
        let softmax = Attention::softmax;
        assert!(!takes(&softmax(), least, &unknown));
        for options in [
            softmax().f32_on_tiles(false),
            softmax().numerics(Numerics::Portable),
            Attention::new(Weighting::HardLeft),
            Attention::new(Weighting::AverageHard),
        ] {
            assert!(!takes(&options, least, &tiles), "{options:?}");
        }
    }
}
