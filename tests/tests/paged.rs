//! Keys on pages give what the same keys side by side give, bit for bit: pages of any size, in any order, with any strides, for
//! every kernel, element type and weighting.
#![forbid(unsafe_code)]

use regard::{Align, Dtype, Keys, Pages, Plan, Problem, Queries, Split, View, Weighting};
use regard_tests::{
    Blocks, Case, Engine, Layout, Lists, Random, SLOW, Spec, Stored, Tensor, compare, engines, levels, run, setup_of,
    weightings,
};

const PAGE_SIZES: [usize; 6] = [1, 3, 7, 16, 32, 100];

const HEADS: usize = 6;
const KV_HEADS: usize = 2;
const D: usize = 21;
const D_V: usize = 35;

/// Valid keys of each sequence; the second one shares its first keys with the last.
const LENGTHS: [usize; 4] = [0, 100, 37, 129];
const SHARED: usize = 64;
const LONGEST: usize = 129;

/// Keys and values side by side, and on pages.
struct Cache {
    /// `[sequences, KV_HEADS, LONGEST, ..]`: NaN past the last valid key.
    side_by_side: [Tensor; 2],
    pages: [Tensor; 2],
    table: Vec<u32>,
    pages_per_sequence: usize,
}

impl Cache {
    fn new(page: usize, layouts: [Layout; 2]) -> Self {
        let mut random = Random::new(page as u64);
        let sequences = LENGTHS.len();
        let columns = [D, D_V];
        let side_by_side = columns.map(|columns| {
            let mut all = Tensor::normal([sequences, KV_HEADS, LONGEST, columns], Layout::Bhsd, &mut random);
            for (sequence, length) in LENGTHS.into_iter().enumerate() {
                for head in 0..KV_HEADS {
                    for key in 0..LONGEST {
                        if key >= length {
                            all.fill_row([sequence, head, key], f32::NAN);
                        } else if sequence == 3 && key < SHARED {
                            (0..columns).for_each(|c| *all.at([3, head, key, c]) = all.get([1, head, key, c]));
                        }
                    }
                }
            }
            all
        });
        let pages_per_sequence = LONGEST.div_ceil(page) + 1;
        // More pages than are used, in an order of their own.
        let count = sequences * pages_per_sequence + 3;
        let mut order: Vec<u32> = (0..count as u32).collect();
        (1..count).for_each(|i| order.swap(i, random.below(i + 1)));
        // Entries past the last valid key may be anything.
        let mut table = vec![u32::MAX; sequences * pages_per_sequence];
        for (sequence, length) in LENGTHS.into_iter().enumerate() {
            for i in 0..length.div_ceil(page) {
                // Pages that hold shared keys alone are shared.
                let of = if sequence == 3 && (i + 1) * page <= SHARED { 1 } else { sequence };
                table[sequence * pages_per_sequence + i] = order[of * pages_per_sequence + i];
            }
        }
        let mut pages = [0, 1].map(|i| Tensor::filled([count, KV_HEADS, page, columns[i]], layouts[i], f32::NAN));
        for (sequence, length) in LENGTHS.into_iter().enumerate() {
            for key in 0..length {
                let at = table[sequence * pages_per_sequence + key / page] as usize;
                for (to, from) in pages.iter_mut().zip(&side_by_side) {
                    for head in 0..KV_HEADS {
                        for c in 0..to.shape()[3] {
                            *to.at([at, head, key % page, c]) = from.get([sequence, head, key, c]);
                        }
                    }
                }
            }
        }
        Self { side_by_side, pages, table, pages_per_sequence }
    }

    fn keys(&self) -> Keys<'_> {
        let Self { table, pages_per_sequence, .. } = self;
        Keys::Paged(Pages { table, pages_per_sequence: *pages_per_sequence, lengths: &LENGTHS })
    }
}

fn queries(queries: usize) -> Tensor {
    Tensor::normal([LENGTHS.len(), HEADS, queries, D], Layout::Bshd, &mut Random::new(queries as u64))
}

/// Element types of keys and values that a kernel is tried with.
fn dtypes(engine: Engine) -> Vec<Dtype> {
    Dtype::ALL
        .into_iter()
        .filter(|dtype| engine.takes(*dtype) && !(engine.is_native() && *dtype != Dtype::Bf16))
        .collect()
}

#[test]
fn any_page_size_on_every_kernel() {
    let lists = Lists::new(HEADS);
    let few = queries(3);
    let many = queries(21);
    let keep: Vec<u8> = (0..21 * LONGEST).map(|i| u8::from(i * 7 % 11 > 2)).collect();
    let mut turn = 0;
    for (i, page) in PAGE_SIZES.into_iter().enumerate() {
        let cache = Cache::new(page, [Layout::ALL[i % 4], Layout::ALL[(i + 3) % 4]]);
        for engine in engines() {
            for dtype in dtypes(engine) {
                let store = |tensor: &Tensor| Stored::new(tensor, dtype, tensor.layout());
                let [k, v] = cache.side_by_side.each_ref().map(store);
                let [page_k, page_v] = cache.pages.each_ref().map(store);
                for weighting in weightings().into_iter().filter(|weighting| engine.computes(weighting)) {
                    turn += 1;
                    if SLOW && turn % 5 != 0 {
                        continue;
                    }
                    let q = if turn % 2 == 0 { &few } else { &many };
                    let q = Stored::new(q, engine.q_dtype(dtype), q.layout());
                    let rows = q.tensor().shape()[2];
                    let mut specs = lists.specs(&weighting, false);
                    let mask = View::bhsd(&keep[..rows * LONGEST], [1, 1, rows, LONGEST]).expect("within the data");
                    specs.push(Spec { keep: Some(mask), ..Spec::new(weighting.clone()) });
                    let spec = specs.swap_remove(turn / 2 % specs.len());
                    let lengths = Spec { key_lengths: Some(&LENGTHS), ..spec.clone() };
                    let near = Case::of(lengths, q.tensor(), k.tensor(), v.tensor());
                    let paged = Case::of(spec, q.tensor(), page_k.tensor(), page_v.tensor())
                        .ragged(Queries::Padded, cache.keys());
                    let split = [Split::Never, Split::Keys(40), Split::Auto][turn % 3];
                    let blocks = Blocks { split, ..Blocks::new([16, 64, 48][turn / 3 % 3], 13) };
                    let what = format!("{} of {dtype}, pages of {page}, {:?}", engine.name(), near.spec);
                    engine.run(&paged, &blocks).assert_same(&engine.run(&near, &blocks), &what);
                }
            }
        }
    }
}

/// The same through plans, which choose kernels by themselves, against the oracle too: the test above would not notice if both
/// ways were wrong.
#[test]
fn plans_take_pages() {
    for (page, rows) in [(7, 1), (16, 5), (32, 30)] {
        let cache = Cache::new(page, [Layout::Bshd, Layout::PaddedBshd]);
        let q = queries(rows);
        for dtype in Dtype::ALL {
            let q = Stored::new(&q, if dtype == Dtype::Int8 { Dtype::F16 } else { dtype }, Layout::Bhsd);
            let [k, v] = cache.side_by_side.each_ref().map(|tensor| Stored::new(tensor, dtype, Layout::Padded));
            let [page_k, page_v] = cache.pages.each_ref().map(|tensor| Stored::new(tensor, dtype, tensor.layout()));
            for weighting in weightings().into_iter().step_by(if SLOW { 5 } else { 1 }) {
                let spec = Spec { causal: Some(Align::BottomRight), ..Spec::new(weighting) };
                let lengths = Spec { key_lengths: Some(&LENGTHS), ..spec.clone() };
                let near = Case::of(lengths, q.tensor(), k.tensor(), v.tensor());
                let paged =
                    Case::of(spec, q.tensor(), page_k.tensor(), page_v.tensor()).ragged(Queries::Padded, cache.keys());
                for level in levels() {
                    let output = run(&paged.problem(), &setup_of(*level), regard::Execution::Serial);
                    compare(&paged, &paged.problem(), &output);
                    let wanted = run(&near.problem(), &setup_of(*level), regard::Execution::Serial);
                    output.assert_same(&wanted, &format!("{dtype}, pages of {page}, {:?}", near.spec));
                }
            }
        }
    }
}

/// The oracle reads pages too, and reads what it reads of keys that lie side by side.
#[test]
fn the_oracle_takes_pages() {
    let cache = Cache::new(7, [Layout::Bhsd, Layout::Bshd]);
    let q = queries(4);
    let options = Spec::new(Weighting::Softmax).options();
    let [k, v] = &cache.side_by_side;
    let [page_k, page_v] = &cache.pages;
    let near = Problem::new(&options.clone().key_lengths(&LENGTHS), q.view(), k.view(), v.view()).expect("valid");
    let paged = Problem::ragged(&options, q.view(), Queries::Padded, page_k.view(), page_v.view(), cache.keys());
    let paged = paged.expect("valid");
    let isa = regard::Isa::Portable;
    assert_eq!(regard::reference::attention(&paged, isa), regard::reference::attention(&near, isa));
}

/// A plan for the longest sequences that pages have room for serves all that are shorter.
#[test]
fn one_plan_serves_every_length() {
    let cache = Cache::new(16, [Layout::Bhsd, Layout::Bhsd]);
    let q = queries(2);
    let [page_k, page_v] = &cache.pages;
    let options = Spec::new(Weighting::Softmax).options();
    let problem = |lengths: &'static [usize]| {
        let Keys::Paged(pages) = cache.keys() else { unreachable!("pages") };
        let keys = Keys::Paged(Pages { lengths, ..pages });
        Problem::ragged(&options, q.view(), Queries::Padded, page_k.view(), page_v.view(), keys).expect("valid")
    };
    for level in levels() {
        let plan = Plan::new(&problem(&[0, 1, 2, 3]), &setup_of(*level));
        static LENGTHS: [[usize; 4]; 4] = [[0, 1, 2, 3], [0, 100, 37, 129], [0; 4], [0, 5, 37, 17]];
        for lengths in &LENGTHS {
            let problem = problem(lengths);
            let run = |plan| regard_tests::run_plan(plan, &problem, regard::Execution::Serial, Layout::Bhsd);
            run(&plan).assert_same(&run(&Plan::new(&problem, &setup_of(*level))), "a plan of its own");
        }
    }
}
