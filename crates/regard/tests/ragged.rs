//! Sequences of different lengths, wherever their rows lie: each gets what it gets alone, bit for bit.
#![forbid(unsafe_code)]

mod common;

use common::{Data, Output, numbers, run, run_plan, setup_of, weightings};
use regard::{
    Align, Attention, Dtype, Error, Execution, Keys, Level, Pages, Partial, Plan, Problem, Queries, Setup, Split,
    Temperature, Tensor, View, ViewMut, Weighting, bf16,
};
use regard_profile::Machine;
use regard_simd::Extension;

const HEADS: [usize; 2] = [4, 2];
const D: usize = 20;
const D_V: usize = 12;
const PAGE: usize = 8;

/// Queries and keys of each sequence.
const SIZES: [[usize; 2]; 5] = [[3, 40], [0, 9], [20, 23], [1, 0], [17, 70]];

/// All rows of one sequence, `[1, heads, rows, columns]`.
struct Sequence {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    queries: usize,
    keys: usize,
}

fn sequences(sizes: &[[usize; 2]]) -> Vec<Sequence> {
    (0_u64..)
        .zip(sizes)
        .map(|(i, [queries, keys])| Sequence {
            q: numbers(HEADS[0] * queries * D, 3 * i + 1),
            k: numbers(HEADS[1] * keys * D, 3 * i + 2),
            v: numbers(HEADS[1] * keys * D_V, 3 * i + 3),
            queries: *queries,
            keys: *keys,
        })
        .collect()
}

/// Rows of sequences in some order of places, `[batch, heads, rows, columns]`: `place(sequence, row)` is a batch entry
/// and a row; the rest is NaN.
fn lay(shape: [usize; 4], rows: &[(&[f32], usize)], place: &dyn Fn(usize, usize) -> Option<[usize; 2]>) -> Vec<f32> {
    let [batch, heads, all, columns] = shape;
    let mut data = vec![f32::NAN; batch * heads * all * columns];
    for (sequence, (from, count)) in rows.iter().enumerate() {
        for row in 0..*count {
            let Some([b, r]) = place(sequence, row) else { continue };
            for head in 0..heads {
                let to = ((b * heads + head) * all + r) * columns;
                let at = (head * count + row) * columns;
                data[to..to + columns].copy_from_slice(&from[at..at + columns]);
            }
        }
    }
    data
}

fn offsets(lengths: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut offsets = vec![0];
    lengths.for_each(|length| offsets.push(offsets[offsets.len() - 1] + length));
    offsets
}

/// How the keys lie.
#[derive(Clone, Copy, Debug)]
enum Lie {
    Padded,
    Packed,
    Paged,
    /// With this many rows for each sequence.
    Ring(usize),
}

/// Runs `sizes` laid out in this way, and compares each row with that of the sequence alone. `options` is asked for the
/// problem of all sequences (`None`) and of each.
fn compare(
    sizes: &[[usize; 2]],
    packed_queries: bool,
    lie: Lie,
    dtype: Dtype,
    level: Level,
    options: &dyn Fn(Option<usize>) -> Attention<'static>,
) {
    let all = sequences(sizes);
    let queries: Vec<(&[f32], usize)> = all.iter().map(|s| (&*s.q, s.queries)).collect();
    let keys =
        |v: bool| -> Vec<(&[f32], usize)> { all.iter().map(|s| (if v { &*s.v } else { &*s.k }, s.keys)).collect() };
    let q_offsets = offsets(sizes.iter().map(|[queries, _]| *queries));
    let k_offsets = offsets(sizes.iter().map(|[_, keys]| *keys));
    let lengths: &'static [usize] = Vec::leak(sizes.iter().map(|[_, keys]| *keys).collect());
    let longest = *lengths.iter().max().unwrap();
    let count = sizes.len();

    let q_shape =
        if packed_queries { [1, HEADS[0], q_offsets[count] + 2, D] } else { [count, HEADS[0], sizes[0][0], D] };
    let q_place = |s: usize, row: usize| if packed_queries { [0, q_offsets[s] + row] } else { [s, row] };
    let q = lay(q_shape, &queries, &|s, row| Some(q_place(s, row)));

    // Pages from the back, sequence by sequence in turn.
    let per_sequence = longest.div_ceil(PAGE);
    let pages = count * per_sequence + 1;
    let page = |s: usize, i: usize| pages - 1 - (i * count + s);
    let table: Vec<u32> = (0..count)
        .flat_map(|s| (0..per_sequence).map(move |i| (s, i)))
        .map(|(s, i)| if i < lengths[s].div_ceil(PAGE) { page(s, i) as u32 } else { u32::MAX })
        .collect();
    let (kv_batch, kv_rows) = match lie {
        Lie::Padded => (count, longest),
        Lie::Packed => (1, k_offsets[count] + 3),
        Lie::Paged => (pages, PAGE),
        Lie::Ring(rows) => (count, rows),
    };
    let k_place = |s: usize, row: usize| match lie {
        Lie::Padded => Some([s, row]),
        Lie::Packed => Some([0, k_offsets[s] + row]),
        Lie::Paged => Some([page(s, row / PAGE), row % PAGE]),
        Lie::Ring(rows) => (row + rows >= lengths[s]).then_some([s, row % rows]),
    };
    let [k_shape, v_shape] = [D, D_V].map(|columns| [kv_batch, HEADS[1], kv_rows, columns]);
    let k = Data::new(dtype, &lay(k_shape, &keys(false), &k_place), k_shape);
    let v = Data::new(dtype, &lay(v_shape, &keys(true), &k_place), v_shape);

    let together = options(None);
    let together = if matches!(lie, Lie::Padded) { together.key_lengths(lengths) } else { together };
    let problem = Problem::ragged(
        &together,
        View::bhsd(&q, q_shape).unwrap(),
        if packed_queries { Queries::Packed(&q_offsets) } else { Queries::Padded },
        k.tensor(k_shape),
        v.tensor(v_shape),
        match lie {
            Lie::Padded => Keys::Padded,
            Lie::Packed => Keys::Packed(&k_offsets),
            Lie::Paged => Keys::Paged(Pages { table: &table, pages_per_sequence: per_sequence, lengths }),
            Lie::Ring(_) => Keys::Ring { lengths },
        },
    )
    .unwrap();
    let got = run(&problem, level);
    check_oracle(&problem, level, &got);
    let mut seen = 0;
    for (s, sequence) in all.iter().enumerate() {
        let shape = |heads: usize, rows: usize, columns: usize| [1, heads, rows, columns];
        let [qs, ks, vs] = [
            shape(HEADS[0], sequence.queries, D),
            shape(HEADS[1], sequence.keys, D),
            shape(HEADS[1], sequence.keys, D_V),
        ];
        let (k, v) = (Data::new(dtype, &sequence.k, ks), Data::new(dtype, &sequence.v, vs));
        let q = Tensor::from(View::bhsd(&sequence.q, qs).unwrap());
        let alone = Problem::new(&options(Some(s)), q, k.tensor(ks), v.tensor(vs)).unwrap();
        let wanted = run(&alone, level);
        for head in 0..HEADS[0] {
            for row in 0..sequence.queries {
                let [b, r] = q_place(s, row);
                assert_eq!(
                    got.row(&problem, [b, head, r]),
                    wanted.row(&alone, [0, head, row]),
                    "sequence {s}, head {head}, row {row}, {lie:?}, packed {packed_queries}, {dtype}, {level:?}, {:?}",
                    options(None).weighting()
                );
                seen += 1;
            }
        }
    }
    // Rows of no sequence are left alone.
    let rest = got.out.iter().filter(|x| **x == 7.0).count();
    assert_eq!(rest, (problem.shape().rows() - seen) * D_V);
}

/// The oracle finds the same rows.
fn check_oracle(problem: &Problem<'_>, level: Level, got: &Output) {
    let plan = Plan::new(problem, &setup_of(level));
    let selects = problem.options().weighting().selects();
    for (s, sequence) in problem.sequences().iter().enumerate() {
        for query in 0..sequence.queries.min(3) {
            let row = regard::reference::row(problem, plan.rounding(sequence), [s, 1, query]);
            let (out, lse) = got.row(problem, [sequence.batch, 1, sequence.first_query + query]);
            for (got, wanted) in out.iter().zip(&row.out) {
                let kernel = plan.kernel_for(sequence.queries);
                // Some kernels hold queries and weights in 16 bits.
                let unit = if kernel.ends_with("_int8_dots") || kernel.ends_with("_int8_amx") { 1e-4 } else { 2e-5 };
                let allowed = if selects { 1e-6 } else { unit * wanted.abs().max(1.0) };
                let error = (f64::from(f32::from_bits(*got)) - wanted).abs();
                assert!(error <= allowed, "{error:e} of {wanted}, sequence {s}, query {query}, {kernel}");
            }
            if let Some(lse) = lse.map(f32::from_bits) {
                let same = f64::from(lse) == row.lse || (f64::from(lse) - row.lse).abs() < 1e-5;
                assert!(same, "{lse} instead of {}", row.lse);
            }
        }
    }
}

const PADDED: [[usize; 2]; 3] = [[19, 40], [19, 0], [19, 65]];
const FEW: [[usize; 2]; 3] = [[2, 40], [2, 1], [2, 65]];

#[test]
fn every_layout_gives_what_each_sequence_gets_alone() {
    for level in Level::available() {
        for weighting in weightings() {
            for lie in [Lie::Padded, Lie::Packed, Lie::Paged, Lie::Ring(70)] {
                for dtype in [Dtype::F32, Dtype::Int8, Dtype::Bf16] {
                    let plain = |_| Attention::new(weighting.clone()).native_half(true);
                    compare(&SIZES, true, lie, dtype, *level, &plain);
                    compare(&PADDED, false, lie, dtype, *level, &plain);
                    compare(&FEW, false, lie, dtype, *level, &plain);
                }
                let causal = |_| Attention::new(weighting.clone()).causal(Align::BottomRight).window(Some(11), None);
                compare(&SIZES, true, lie, Dtype::F32, *level, &causal);
                compare(&PADDED, false, lie, Dtype::F16, *level, &causal);
                let split = |_| Attention::new(weighting.clone()).split(Split::Keys(1)).softcap(2.0);
                compare(&SIZES, true, lie, Dtype::F32, *level, &split);
            }
        }
    }
}

#[test]
fn rings_keep_the_numbers_of_keys() {
    static SLOPES: [f32; 4] = [0.1, 0.5, 0.0, 0.25];
    for level in Level::available() {
        for weighting in weightings() {
            // Rows of 19 queries reach 11 keys back: 30 keys are needed.
            let windowed = |_| {
                Attention::new(weighting.clone())
                    .causal(Align::BottomRight)
                    .window(Some(11), None)
                    .alibi_slopes(&SLOPES)
            };
            for dtype in [Dtype::F32, Dtype::Int8] {
                compare(&PADDED, false, Lie::Ring(30), dtype, *level, &windowed);
                compare(&FEW, false, Lie::Ring(13), dtype, *level, &windowed);
                compare(&SIZES, true, Lie::Ring(31), dtype, *level, &windowed);
            }
        }
    }
}

/// Masks, biases and temperatures of all pairs, cut to those of each sequence.
#[test]
fn tensors_of_pairs_and_rows() {
    let (queries, keys) = (20, 70);
    let count = SIZES.len();
    let rows = offsets(SIZES.iter().map(|[queries, _]| *queries));
    let pairs = [count, HEADS[0], queries, keys];
    let bias: &'static [f32] = numbers(pairs.iter().product(), 50).leak();
    let keep: &'static [bool] =
        Vec::leak(numbers(pairs.iter().product(), 51).into_iter().map(|x| x > -0.6).collect::<Vec<_>>());
    let all_rows = rows[count] + 2;
    let temperatures: &'static [f32] =
        Vec::leak(numbers(HEADS[0] * all_rows, 52).into_iter().map(|x| x + 1.5).collect::<Vec<_>>());
    let options = |weighting: Weighting, sequence: Option<usize>| {
        let options = Attention::new(weighting).causal(Align::Offset(4));
        let Some(s) = sequence else {
            return options
                .bias(View::bhsd(bias, pairs).unwrap())
                .keep_mask(View::bhsd(keep, pairs).unwrap())
                .temperature(Temperature::PerRow(temperatures));
        };
        let [own_queries, own_keys] = SIZES[s];
        let strides = [pairs[1] * queries * keys, queries * keys, keys, 1];
        let own = [1, HEADS[0], own_queries, own_keys];
        let temperatures: Vec<f32> =
            (0..HEADS[0]).flat_map(|head| temperatures[head * all_rows + rows[s]..][..own_queries].to_vec()).collect();
        options
            .bias(View::strided(&bias[s * strides[0]..], own, strides).unwrap())
            .keep_mask(View::strided(&keep[s * strides[0]..], own, strides).unwrap())
            .temperature(Temperature::PerRow(temperatures.leak()))
    };
    for level in Level::available() {
        for weighting in [Weighting::Softmax, Weighting::AverageHard, Weighting::ReluSquared] {
            for lie in [Lie::Padded, Lie::Packed, Lie::Paged, Lie::Ring(70)] {
                compare(&SIZES, true, lie, Dtype::F32, *level, &|s| options(weighting.clone(), s));
            }
        }
    }
}

#[test]
fn a_ring_shows_no_key_that_was_overwritten() {
    let q = numbers(2 * 4 * D, 1);
    let k = numbers(2 * 2 * 16 * D, 2);
    let q = View::bhsd(&q, [2, 4, 1, D]).unwrap();
    let k = View::bhsd(&k, [2, 2, 16, D]).unwrap();
    let problem = |options: &Attention<'static>, lengths: &'static [usize]| {
        Problem::ragged(options, q, Queries::Padded, k, k, Keys::Ring { lengths }).map(drop)
    };
    let window = |left| Attention::softmax().causal(Align::BottomRight).window(Some(left), None);
    assert_eq!(problem(&Attention::softmax(), &[16, 3]), Ok(()));
    let error = problem(&Attention::softmax(), &[16, 17]).unwrap_err();
    assert_eq!(error, Error::Overwritten { sequence: 1, row: 0, key: 0, oldest: 1 });
    assert_eq!(problem(&window(15), &[100, 17]), Ok(()));
    let error = problem(&window(16), &[100, 17]).unwrap_err();
    assert_eq!(error, Error::Overwritten { sequence: 0, row: 0, key: 83, oldest: 84 });
    // A mask tensor does not count, as it may be anything.
    let hides: &'static [bool] = Vec::leak((0..100).map(|key| key >= 84).collect::<Vec<_>>());
    let masked = Attention::softmax().keep_mask(View::bhsd(hides, [1, 1, 1, 100]).unwrap());
    assert!(matches!(problem(&masked, &[100, 100]), Err(Error::Overwritten { .. })));
}

#[test]
fn one_plan_serves_a_decode_loop() {
    let pages = 40;
    let kv = numbers(pages * HEADS[1] * PAGE * D, 5);
    let kv = View::bhsd(&kv, [pages, HEADS[1], PAGE, D]).unwrap();
    let table: Vec<u32> = (0..pages as u32).collect();
    let q = numbers(2 * HEADS[0] * D, 6);
    let q = View::bhsd(&q, [2, HEADS[0], 1, D]).unwrap();
    let options = Attention::softmax().causal(Align::BottomRight);
    let problem = |lengths: &'static [usize]| {
        let pages = Pages { table: &table, pages_per_sequence: 20, lengths };
        Problem::ragged(&options, q, Queries::Padded, kv, kv, Keys::Paged(pages)).unwrap()
    };
    let plan = Plan::new(&problem(&[1, 2]), &setup_of(Level::best()));
    for threads in [1, 2, 5] {
        for length in 1..=160 {
            let lengths: &'static [usize] = vec![length, 160 - length].leak();
            let problem = problem(lengths);
            assert!(plan.workspace_len_for(&problem, threads) <= plan.workspace_len(threads));
            if threads == 1 {
                assert_eq!(run_plan(&plan, &problem), run(&problem, Level::best()), "{length}");
            }
        }
    }

    // Fewer sequences, but not more, and no more queries.
    let sequences = |count: usize, queries: usize| {
        let q = View::strided(&[0.5; D], [count, HEADS[0], queries, D], [0, 0, 0, 1]).unwrap();
        let lengths: &'static [usize] = vec![7; count].leak();
        let table: &'static [u32] = vec![3; 20 * count].leak();
        let pages = Pages { table, pages_per_sequence: 20, lengths };
        let problem = Problem::ragged(&options, q, Queries::Padded, kv, kv, Keys::Paged(pages)).unwrap();
        let mut out = vec![7.0; problem.shape().out().iter().product()];
        let view = ViewMut::bhsd(&mut out, problem.shape().out()).unwrap();
        let result = plan.run(&problem, view, None, &mut vec![0.0; plan.workspace_len(1)], Execution::Serial);
        assert!(result.is_ok() || out.iter().all(|x| *x == 7.0));
        result
    };
    assert_eq!(sequences(1, 1), Ok(()));
    // As many keys as the tables of the plan have room for, but not more.
    let table = [3; 21];
    let longer = Pages { table: &table, pages_per_sequence: 21, lengths: &[161] };
    let q = View::bhsd(&[0.5; HEADS[0] * D], [1, HEADS[0], 1, D]).unwrap();
    let problem = Problem::ragged(&options, q, Queries::Padded, kv, kv, Keys::Paged(longer)).unwrap();
    let mut out = [7.0; HEADS[0] * D];
    let view = ViewMut::bhsd(&mut out, problem.shape().out()).unwrap();
    let error = plan.run(&problem, view, None, &mut vec![0.0; 1 << 20], Execution::Serial).unwrap_err();
    assert!(matches!(&error, Error::Plan { planned, .. } if planned.contains("up to 160 keys")), "{error}");
    assert_eq!(out, [7.0; HEADS[0] * D]);
    assert!(matches!(sequences(3, 1), Err(Error::Plan { .. })));
    assert!(matches!(sequences(1, 2), Err(Error::Plan { .. })));
}

/// Spans grow with the number of keys, so that fewer keys may need more room: 65537 keys are 61 spans, and 65536 are 64.
#[test]
fn the_workspace_is_enough_for_any_number_of_keys() {
    let q = View::bhsd(&[1.0; 8], [1, 8, 1, 1]).unwrap();
    for rows in [65_537, 70_000, 200_000] {
        let kv = View::strided(&[0.5], [1, 1, rows, 1], [0; 4]).unwrap();
        for split in [Split::Auto, Split::Never, Split::Keys(700)] {
            let options = Attention::softmax().split(split);
            let problem = |keys: usize| {
                let lengths: &'static [usize] = vec![keys].leak();
                Problem::new(&options.clone().key_lengths(lengths), q, kv, kv).unwrap()
            };
            let plan = Plan::new(&problem(1), &setup_of(Level::best()));
            let sizes = [65_535, 65_536, 65_537, 69_632, 69_633, 131_072, rows];
            for keys in (0..rows).step_by(997).chain(sizes.into_iter().filter(|keys| *keys <= rows)) {
                for threads in [1, 2, 64, 1000] {
                    let needed = plan.workspace_len_for(&problem(keys), threads);
                    assert!(
                        needed <= plan.workspace_len(threads),
                        "{keys} of {rows} keys, {threads} threads, {split:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn plans_say_which_kernels_they_use() {
    let q = numbers(40 * D, 1);
    let q = View::thd(&q, [40, 1, D]).unwrap();
    let explain = |offsets: &[usize]| {
        let keys: Vec<usize> = (0..offsets.len()).collect();
        let kv = View::thd(&[0.5; 5 * D], [5, 1, D]).unwrap();
        let options = Attention::softmax();
        let problem = Problem::ragged(&options, q, Queries::Packed(offsets), kv, kv, Keys::Packed(&keys)).unwrap();
        Plan::new(&problem, &setup_of(Level::best())).explain().to_string()
    };
    let both = explain(&[0, 3, 40]);
    assert!(both.contains("_lanes_") && both.contains("_rows_") && both.contains("up to 15 queries"), "{both}");
    let few = explain(&[0, 3, 3, 18]);
    assert!(!few.contains("_lanes_") && few.contains("_rows_"), "{few}");
    let many = explain(&[0, 20, 20, 40]);
    assert!(many.contains("_lanes_") && !many.contains("_rows_"), "{many}");
    assert_eq!([&both, &few, &many].map(|text| text.matches("\nkernel ").count()), [2, 1, 1]);
}

/// On tile registers, there may be two kernels for few queries in one batch.
#[test]
fn plans_say_which_queries_go_to_which_kernel() {
    let zeros = [bf16::ZERO; 40 * D];
    let kv = View::thd(&zeros[..5 * D], [5, 1, D]).unwrap();
    let machine = Machine { vendor: "GenuineIntel".to_owned(), ..Machine::default() };
    for level in Level::available() {
        let setup = Setup { machine: machine.clone(), ..setup_of(*level) };
        let explain_heads = |heads: usize, offsets: &[usize]| {
            let q = View::thd(&zeros, [40 / heads, heads, D]).unwrap();
            let keys: Vec<usize> = (0..offsets.len()).collect();
            let options = Attention::softmax();
            let problem = Problem::ragged(&options, q, Queries::Packed(offsets), kv, kv, Keys::Packed(&keys)).unwrap();
            let said = Plan::new(&problem, &setup).explain().to_string();
            let of_rows = said.lines().filter(|line| line.starts_with("kernel ") && line.contains("_rows_"));
            of_rows.map(|line| line.split("at a time").last().unwrap_or("").to_owned()).collect::<Vec<_>>()
        };
        let explain = |offsets: &[usize]| explain_heads(1, offsets);
        let tiles = Extension::Amx.is_available_at(level.isa());
        let [few, more] = [", for sequences of up to 4 queries", ", for sequences of 5 to 31 queries"];
        let up_to_15 = ", for sequences of up to 15 queries";
        assert_eq!(explain(&[0, 3, 8, 40]), if tiles { vec![few, more] } else { vec![up_to_15] });
        assert_eq!(explain(&[0, 3, 8]), if tiles { vec![few, more] } else { vec![""] });
        assert_eq!(explain(&[0, 8, 40]), if tiles { vec![more] } else { vec![up_to_15] });
        assert_eq!(explain(&[0, 8]), vec![""]);
        let [one, two] = [", for sequences of one query", ", for sequences of 2 to 31 queries"];
        assert_eq!(explain_heads(4, &[0, 1, 3, 10]), if tiles { vec![one, two] } else { vec![""] });
    }
}

/// Threads share the spans of a few queries, and give the bits of one.
#[test]
fn any_number_of_threads() {
    let (keys, heads) = (9_000, 4);
    let q = numbers(3 * heads * 64, 1);
    let kv = numbers(2 * keys * 64, 2);
    let q = View::thd(&q, [3, heads, 64]).unwrap();
    let kv = View::thd(&kv, [keys, 2, 64]).unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    for split in [Split::Auto, Split::Keys(500), Split::Never] {
        for weighting in weightings() {
            let options = Attention::new(weighting).split(split);
            let offsets = [0, 2_000, keys];
            let problem =
                Problem::ragged(&options, q, Queries::Packed(&[0, 1, 3]), kv, kv, Keys::Packed(&offsets)).unwrap();
            let plan = Plan::new(&problem, &setup_of(Level::best()));
            let wanted = run_plan(&plan, &problem);
            let mut partial = Partial::new(&problem).unwrap();
            for threads in [1, 3] {
                let execution = if threads == 1 { Execution::Serial } else { Execution::Pool(&pool) };
                let mut workspace = vec![f32::NAN; plan.workspace_len(threads)];
                let mut out = vec![7.0; 3 * heads * 64];
                let view = ViewMut::bhsd(&mut out, problem.shape().out()).unwrap();
                plan.run(&problem, view, None, &mut workspace, execution).unwrap();
                assert_eq!(out, wanted.out, "{threads} threads, {split:?}");
                plan.run_partial(&problem, &mut partial, &mut workspace, execution).unwrap();
                partial.finish(ViewMut::bhsd(&mut out, problem.shape().out()).unwrap(), None).unwrap();
                assert_eq!(out, wanted.out, "{threads} threads, {split:?}");
                // One f32 less is an error, and touches nothing.
                if threads == 3 {
                    out.fill(7.0);
                    let short = plan.workspace_len_for(&problem, threads) - 1;
                    let view = ViewMut::bhsd(&mut out, problem.shape().out()).unwrap();
                    let error = plan.run(&problem, view, None, &mut workspace[..short], execution).unwrap_err();
                    assert_eq!(error, Error::Workspace { found: short, needed: short + 1, threads });
                    assert!(out.iter().all(|x| *x == 7.0));
                }
            }
        }
    }
}

#[test]
fn no_sequences_are_legal() {
    let options = Attention::softmax();
    let none: [f32; 0] = [];
    let rows = [0.5; 3 * D];
    let no_pages = Pages { table: &[], pages_per_sequence: 7, lengths: &[] };
    let packed = View::thd(&rows, [3, 1, D]).unwrap();
    let padded = View::bhsd(&none, [0, 1, 3, D]).unwrap();
    for (q, queries) in [(packed, Queries::Packed(&[0])), (padded, Queries::Padded)] {
        for (kv, keys) in [
            (padded, Keys::Padded),
            (packed, Keys::Packed(&[0])),
            (packed, Keys::Paged(no_pages)),
            (padded, Keys::Ring { lengths: &[] }),
        ] {
            let problem = Problem::ragged(&options, q, queries, kv, kv, keys).unwrap();
            assert_eq!(problem.shape().batch, 0);
            let output = run(&problem, Level::best());
            assert!(output.out.iter().all(|x| *x == 7.0), "rows of no sequence are left alone");
        }
    }
}

/// Fewer keys than there are, wherever they lie.
#[test]
fn key_lengths_shorten() {
    let q = numbers(2 * HEADS[0] * 3 * D, 1);
    let q = View::bhsd(&q, [2, HEADS[0], 3, D]).unwrap();
    let kv = numbers(2 * HEADS[1] * 40 * D, 2);
    let options = Attention::softmax().causal(Align::BottomRight);
    let [padded, packed] = [[2, HEADS[1], 40, D], [1, HEADS[1], 80, D]].map(|shape| View::bhsd(&kv, shape).unwrap());
    let pages = Pages { table: &[0, 1], pages_per_sequence: 1, lengths: &[40, 30] };
    let problem =
        |kv, keys, lengths| Problem::ragged(&options.clone().key_lengths(lengths), q, Queries::Padded, kv, kv, keys);
    let wanted = run(&problem(padded, Keys::Padded, &[7, 30]).unwrap(), Level::best());
    for keys in [Keys::Paged(pages), Keys::Ring { lengths: &[40, 31] }] {
        assert_eq!(run(&problem(padded, keys, &[7, 30]).unwrap(), Level::best()), wanted);
    }
    let error = problem(padded, Keys::Paged(pages), &[7, 31]).unwrap_err();
    assert_eq!(error, Error::KeyLength { batch: 1, length: 31, keys: 30 });
    let error = problem(packed, Keys::Packed(&[0, 20, 80]), &[21, 31]).unwrap_err();
    assert_eq!(error, Error::KeyLength { batch: 0, length: 21, keys: 20 });
    assert!(problem(packed, Keys::Packed(&[0, 20, 80]), &[20, 0]).is_ok());
}
