//! Every lanes kernel of the table, over sizes around the sizes of its register tile.
//!
//! Inputs lie in NaN, outputs and workspace between guard bands (see [`regard_tests::Guarded`]), and every row is compared
//! with the oracle. Small sizes are cheap, so the loops go over all of them in one size and over few in the others.
#![forbid(unsafe_code)]

use regard::{Align, Dtype, SigmoidBias, Weighting};
use regard_kernels::table::Kernel;
use regard_tests::{
    Blocks, Case, Engine, Layout, Random, Report, SLOW, Spec, Stored, Tensor, check, compare, every_kernel, setup_for,
};

/// One of each family.
const FAMILIES: [Weighting; 5] = [
    Weighting::Softmax,
    Weighting::HardRight,
    Weighting::AverageHard,
    Weighting::Sigmoid { bias: SigmoidBias::Constant(0.5) },
    Weighting::EvenPower { degree: 4 },
];

const KEY_BLOCKS: [usize; 3] = [16, 48, 192];

/// Element types of q, and of k and v: f32 more often than others.
const DTYPES: [[Dtype; 2]; 6] = [
    [Dtype::F32, Dtype::F32],
    [Dtype::F16, Dtype::F16],
    [Dtype::F32, Dtype::F32],
    [Dtype::Bf16, Dtype::Bf16],
    [Dtype::F32, Dtype::Int8],
    [Dtype::Bf16, Dtype::F16],
];

/// `[queries, keys, d, d_v]`
type Sizes = [usize; 4];

/// One problem of two heads; layout, mask and blocks change from turn to turn.
fn one(kernel: &'static Kernel, weighting: &Weighting, sizes: Sizes, turn: usize) -> Report {
    let [queries, keys, d, d_v] = sizes;
    let layout = Layout::ALL[turn % 4];
    let mut random = Random::new(turn as u64);
    let q = Tensor::normal([1, 2, queries, d], layout, &mut random);
    let k = Tensor::normal([1, 2, keys, d], layout, &mut random);
    let v = Tensor::normal([1, 2, keys, d_v], layout, &mut random);
    let mut spec = Spec::new(weighting.clone());
    spec.causal = (turn / 2 % 3 == 1).then_some(Align::BottomRight);
    // Smaller than a sub-tile, a sub-tile and a bit, larger than the problem.
    let query_block = [kernel.tile.rows / 2 + 1, kernel.tile.rows + 3, 3 * kernel.tile.rows][turn / 3 % 3];
    let [q_dtype, kv_dtype] = DTYPES[turn / 5 % DTYPES.len()];
    let stored = match kernel.dtype {
        Dtype::F32 => Stored::three([&q, &k, &v], q_dtype, kv_dtype),
        narrow => Stored::three([&q, &k, &v], narrow, narrow),
    };
    let case = Case::stored(spec, &stored);
    let blocks = Blocks { layout, ..Blocks::new(KEY_BLOCKS[turn / 7 % 3], query_block) };
    // Not through a plan, which gives few queries to a rows kernel.
    compare(&case, &case.problem(), &Engine::Lanes(kernel).run(&case, &blocks))
}

/// Goes through sizes with every kernel, and prints how close each came.
fn sweep(name: &str, sizes: impl Fn(&Kernel) -> Vec<Sizes>) {
    for kernel in every_kernel() {
        let mut report = Report::default();
        for (i, sizes) in sizes(kernel).into_iter().enumerate() {
            for (j, weighting) in FAMILIES.iter().enumerate() {
                if (SLOW && i % 5 != j) || !Engine::Lanes(kernel).computes(weighting) {
                    continue;
                }
                // Another start for each kernel and family mixes sizes with layouts, masks and blocks.
                report = report.and(one(kernel, weighting, sizes, i + kernel.name.len() + 5 * j));
            }
        }
        let Report { error, used, rows } = report;
        println!("{name}, {}: {rows} rows, largest error {error:.1e}, {used:.2} of what is allowed", kernel.name);
    }
}

#[test]
fn every_number_of_queries() {
    sweep("queries", |kernel| {
        let most = 2 * kernel.tile.rows + 1;
        (0..=most).flat_map(|queries| [[queries, 21, 5, 3], [queries, 50, 17, 33]]).collect()
    });
}

#[test]
fn every_number_of_keys() {
    sweep("keys", |kernel| {
        let tile = kernel.tile;
        let mut all = Vec::new();
        for keys in 0..=2 * tile.keys + 1 {
            for queries in [1, tile.rows, tile.rows + 1] {
                all.push([queries, keys, 7, 9]);
            }
        }
        // The ends of key blocks.
        for block in KEY_BLOCKS {
            for keys in [block - 1, block, block + 1, 2 * block - 1, 2 * block + 1] {
                all.push([tile.rows / 2 + 1, keys, 8, 4]);
            }
        }
        all
    });
}

#[test]
fn every_dimension() {
    sweep("dimensions", |kernel| {
        let lanes = kernel.isa.lanes();
        let mut all = Vec::new();
        for d in 1..=2 * lanes + 1 {
            all.push([kernel.tile.rows - 1, 19, d, 2 * lanes + 2 - d]);
            all.push([3, kernel.tile.keys + 1, 1, d]);
            all.push([kernel.tile.rows + 1, 18, d, d]);
        }
        let large: &[usize] = if SLOW { &[40, 96] } else { &[40, 64, 80, 96, 128, 160, 256, 512] };
        for (i, d) in large.iter().enumerate() {
            let other = large[(i + 3) % large.len()];
            all.push([kernel.tile.rows / 2 + 1, 49, *d, *d]);
            all.push([kernel.tile.rows + 2, 23, *d, other]);
        }
        all
    });
}

/// All families, layouts, and blocks at a few sizes, so that no pair of them depends on the turn above.
#[test]
fn every_family_layout_and_block() {
    let mut random = Random::new(1);
    for kernel in every_kernel() {
        let queries = kernel.tile.rows + 5;
        let (keys, d, d_v) = (if SLOW { 70 } else { 210 }, 18, 35);
        let q = Tensor::normal([2, 2, queries, d], Layout::Bhsd, &mut random);
        let k = Tensor::normal([2, 1, keys, d], Layout::Bhsd, &mut random);
        let v = Tensor::normal([2, 1, keys, d_v], Layout::Bhsd, &mut random);
        let mut report = Report::default();
        for weighting in FAMILIES {
            for (i, key_block) in KEY_BLOCKS.into_iter().enumerate() {
                for (j, query_block) in [1, kernel.tile.rows - 1, 3 * kernel.tile.rows].into_iter().enumerate() {
                    if SLOW && i != j {
                        continue;
                    }
                    let layout = Layout::ALL[(i + j) % 4];
                    let (q, k, v) = (q.in_layout(layout), k.in_layout(layout), v.in_layout(layout));
                    let stored = Stored::three([&q, &k, &v], kernel.dtype, kernel.dtype);
                    let case = Case::stored(Spec::new(weighting.clone()), &stored);
                    report = report.and(check(&case, &setup_for(kernel, key_block, query_block)));
                }
            }
        }
        println!("{}: {:.2} of what is allowed", kernel.name, report.used);
    }
}

/// More sub-tiles in a query block than plans choose for few tasks: the outputs of all of them wait for the last key.
#[test]
fn many_sub_tiles_in_a_block() {
    let mut random = Random::new(2);
    for kernel in every_kernel() {
        let queries = 6 * kernel.tile.rows + 3;
        let q = Tensor::normal([4, 4, queries, 5], Layout::Bhsd, &mut random);
        let k = Tensor::normal([4, 4, 37, 5], Layout::Bhsd, &mut random);
        let v = Tensor::normal([4, 4, 37, 6], Layout::Bhsd, &mut random);
        for weighting in FAMILIES {
            let spec = Spec { causal: Some(Align::Offset(-40)), ..Spec::new(weighting.clone()) };
            let stored = Stored::three([&q, &k, &v], kernel.dtype, kernel.dtype);
            check(&Case::stored(spec, &stored), &setup_for(kernel, 16, 4096));
            if SLOW {
                break;
            }
        }
    }
}
