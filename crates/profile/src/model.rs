//! Block sizes from cache sizes, and which instructions pay, for machines that were not tuned.
//!
//! A thread works on a block of query rows, which is cut into register tiles, against one block of keys at a time.
//! Three things want to stay in a cache:
//! - in L1, the weights of one register tile: `P[key_block][lanes]`, written once and read once per block of keys;
//! - in L2, the block of keys and of values, read once per register tile;
//! - in L2, the turned queries and outputs of all register tiles: `Q[d][lanes]` and `O[dv][lanes]` for each.
//!
//! The optimum is flat. On a Zen 5 (48 KiB L1d, 1 MiB L2) with 32 lanes and `d` 64 and 128, blocks of 384 keys are 0.5 to
//! 1.5 % better than 240, and 96 keys cost 2 %: outputs are loaded and stored once per block, which counts for more than
//! weights that stay in L1. Twice the register tiles are 0.5 % better, up to 32 where they fit, as K and V pass through from
//! the third level half as often.

use crate::{Caches, Machine};

impl Machine {
    /// Whether products of bf16 pairs in vectors are faster than widening the elements and multiplying f32, where there are instructions
    /// for both.
    ///
    /// An instruction takes twice as many elements, and where as many of them start in a cycle as multiply-adds of f32 the peak
    /// is twice as high: 236 against 118 GFLOP/s on Zen 4, and 205 against 109 in attention (2048 x 2048, d 128). Intel's cores
    /// start one of 512 bits every other cycle: 112 against 220 GFLOP/s on a Xeon with AMX, 101 against 151 in the same attention,
    /// and for one query against keys in the caches 25 against 45 (83 against 115 for 8 heads of a KV head). Of cores that nobody
    /// measured it is assumed that instructions are there because they pay. Tile registers (AMX) pay wherever they are: 540 to 600
    /// GFLOP/s in that attention.
    ///
    /// A function of the vendor alone, as results must not depend on what a measurement finds today.
    pub fn bf16_pairs_pay(&self) -> bool {
        self.vendor != INTEL
    }

    /// Whether products on tile registers (AMX) are faster than those in vectors, where there are any: on Intel's cores, the only
    /// ones that have them. A machine of another vendor that is planned for on such a core, as records are, has none.
    pub fn tiles_pay(&self) -> bool {
        self.vendor == INTEL
    }
}

/// The vendor whose cores multiply pairs of bf16 at half the rate of f32.
const INTEL: &str = "GenuineIntel";

/// What the block sizes depend on besides the caches.
///
/// Lengths, batch, heads and threads are missing on purpose: block sizes are part of the order of summation, so a
/// sequence must get the same ones in whatever company and on however many threads it is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileQuery {
    /// Query rows of one register tile.
    pub lanes_per_tile: usize,
    /// Keys of one register tile.
    pub keys_per_tile: usize,
    /// Elements of one query or key.
    pub head_dim: usize,
    /// Elements of one value.
    pub value_dim: usize,
}

/// Block sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiles {
    /// Keys of one block: a multiple of 48, hence of 6 and 8, and where possible of the register tile's keys.
    pub key_block: usize,
    /// Query rows of one block: 1 to 32 register tiles.
    pub query_block: usize,
}

/// The block sizes for these caches and this kernel; the same for every problem with these dimensions.
///
/// Not clamped to the lengths of a problem. Zeros in the query count as one, unknown caches as their defaults.
pub fn tiles(caches: &Caches, query: TileQuery) -> Tiles {
    let query = TileQuery { lanes_per_tile: query.lanes_per_tile.max(1), ..query };
    let lanes = query.lanes_per_tile;
    Tiles { key_block: key_block(caches, query), query_block: lanes.saturating_mul(register_tiles(caches, query)) }
}

/// Keys of a block of a rows kernel for elements of this many bytes, `group` rows of which share each load: so many that what is
/// done once for a block takes little of the time, and more where more rows make a block of keys last longer.
///
/// `native` kernels multiply the elements without widening them.
///
/// On Zen 4, whose groups are 4 rows (AVX2) and 8 (AVX-512), each of these is within 8 % of the best block of any class. What is
/// widened likes long blocks: with 8 rows, 512 keys of f32 are 2 to 4 % faster than 256. Pairs of bf16 that are multiplied as
/// they are take half of the time, and 512 of them are 7 % slower than 256 where 8 query heads share keys. Bytes that are widened
/// are read fastest a page of keys and a page of values at a time: with one query, 512 of them are up to a fifth slower. Where
/// they are multiplied as they are, 512 are a tenth faster than 64.
pub fn rows_key_block(element_bytes: usize, group: usize, native: bool) -> usize {
    let group = group.clamp(1, MOST_GROUP);
    let keys_per_row = match (element_bytes, native) {
        (0 | 1, false) => 8,
        (0 | 1, true) | (2, false) => 64,
        (2, true) => 32,
        _ => 8 * group,
    };
    (group * keys_per_row).next_multiple_of(ROWS_KEY_STEP)
}

/// More rows of a group make no longer blocks.
const MOST_GROUP: usize = 8;

/// Keys of a block of the rows kernel are a multiple of this.
pub const ROWS_KEY_STEP: usize = 32;

/// The most queries of a sequence that a rows kernel computes, unless it works on tile registers: see [`rows_up_to`].
pub const ROWS_UP_TO: usize = 15;

/// The most queries of a sequence that the rows kernel of an element type computes, on tile registers or not. It reads K and V once
/// for all of them, where the lanes kernel would leave lanes idle.
///
/// With 16 queries, a vector of lanes is full (0.76 of the peak against 0.6 at 8192 keys, d 128, on Zen 4). On tiles of a Xeon, the
/// rows kernel of bf16 has 1.0 to 1.9 times the speed of the lanes kernel at 16 queries, 0.9 to 1.3 at 24, 0.7 to 1.5 at 32 and 0.6
/// to 0.95 at 64 (512 and 8192 keys, one and eight query heads for each KV head). The lanes kernels widen int8, and only short causal
/// problems are faster with them: on tiles, 64 and 512 queries against 8192 keys have 2.1 to 2.2 times their speed, 2048 queries and
/// keys 2.2 (causal 1.85, d 64 1.35), 256 queries and keys 1.4 (causal 0.93 to 1.0).
pub fn rows_up_to(dtype: &str, in_tiles: bool) -> usize {
    match dtype {
        "bf16" if in_tiles => 31,
        "int8" if in_tiles => usize::MAX,
        _ => ROWS_UP_TO,
    }
}

/// The fewest queries of a sequence for which products of f32 are computed in parts on tile registers, where there are such and they
/// pay, given the element type of keys and values: these are split for every block of queries, into as many parts as they have.
///
/// Speed over that of the lanes kernel in vectors (a Xeon, 8 heads, d 128; 8192 keys from memory, the other ones in caches):
///
/// | queries | 16 | 32 | 64 | 128 | 256 | 512 | 2048 |
/// |---|---|---|---|---|---|---|---|
/// | f32, 8192 keys | | | | 1.07 | | | |
/// | f32, 512 keys | 0.6 | 0.8 | 0.95 | 1.1 | | | |
/// | f32, causal, as many keys as queries | | | | 0.78 | 0.87 | 1.05 | 1.3 |
/// | f16, 8192 keys | 0.85 | 0.93 | 1.14 | 1.4 | | | |
/// | f16, 512 keys | 1.1 | 1.2 | 1.35 | 1.4 | | | |
/// | f16, causal, as many keys as queries | | | | 1.03 | 1.16 | 1.3 | 1.6 |
/// | bf16, 8192 keys | 0.9 | 1.07 | 1.3 | | | | |
/// | bf16, 512 keys | 1.2 | 1.45 | 1.6 | 2.0 | | | |
pub fn in_parts_from(dtype: &str) -> usize {
    match dtype {
        "f16" | "bf16" => 32,
        _ => 384,
    }
}

/// Keys are taken in this many at least, and in multiples of it: 6 and 8, the register tiles that win, divide it.
const KEY_STEP: usize = 48;

/// More keys than this gain nothing (see the top of the file).
const MOST_KEYS: usize = 384;

/// More register tiles than this gain nothing, and leave fewer tasks to share out.
const MOST_REGISTER_TILES: usize = 32;

/// Bytes of an f32, which is what scores, weights and outputs are whatever the type of the input. Inputs of half the
/// size would leave room for longer blocks of keys, within the flat part of the optimum.
const ELEMENT: usize = size_of::<f32>();

/// Which register tile to use when nothing was measured, of a list with the best one of a roomy machine first: the first one
/// of a single vector where it holds all queries, else the first one whose weights for 384 keys stay in L1d, else the first.
/// Tiles are given as query rows and vectors.
///
/// On Zen 4 (32 KiB of L1d), one vector of 16 lanes and 384 keys are 0.7 to 7 % faster than two vectors, of which 240 keys fit,
/// in every class; on Zen 5 (48 KiB) two vectors are.
pub fn preferred_tile(
    caches: &Caches,
    queries: usize,
    tiles: impl Iterator<Item = (usize, usize)> + Clone,
) -> Option<usize> {
    let narrow = |(rows, vectors): (usize, usize)| vectors == 1 && queries <= rows;
    let fits = |(rows, _): (usize, usize)| MOST_KEYS.saturating_mul(bytes_of(rows)) <= caches.l1d_or_default();
    let find = |wanted: &dyn Fn((usize, usize)) -> bool| tiles.clone().position(wanted);
    find(&narrow).or_else(|| find(&fits)).or_else(|| find(&|_| true))
}

/// As many keys as fit: their weights in L1d, their rows in half of L2.
///
/// Uses only what is in the machine's fingerprint: how many CPUs share the L2 can change with those on line, and a
/// key block that changed with it would change results. A shared L2 is large.
fn key_block(caches: &Caches, query: TileQuery) -> usize {
    let weights = caches.l1d_or_default() / bytes_of(query.lanes_per_tile);
    let rows = caches.l2_or_default() / 2 / bytes_of(row_elements(query));
    let most = weights.min(rows).clamp(KEY_STEP, MOST_KEYS);
    // A common multiple with the register tile, if that is not too long.
    let step = least_common_multiple(KEY_STEP, query.keys_per_tile.max(1)).filter(|&step| step <= most);
    let step = step.unwrap_or(KEY_STEP);
    most / step * step
}

/// As many register tiles as fit: their queries and outputs in half of this thread's share of L2.
fn register_tiles(caches: &Caches, query: TileQuery) -> usize {
    let tile = bytes_of(row_elements(query).saturating_mul(query.lanes_per_tile));
    (caches.l2_share_or_default() / 2 / tile).clamp(1, MOST_REGISTER_TILES)
}

/// Elements of a key and a value together, which is also those of a query and an output row.
fn row_elements(query: TileQuery) -> usize {
    query.head_dim.saturating_add(query.value_dim).max(1)
}

fn bytes_of(elements: usize) -> usize {
    elements.saturating_mul(ELEMENT)
}

/// `None` if it is too large for `usize`.
fn least_common_multiple(a: usize, b: usize) -> Option<usize> {
    let (mut divisor, mut rest) = (a, b);
    while rest != 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    (a / divisor).checked_mul(b)
}

/// A lanes kernel with block sizes, and the sizes of a problem: what the model predicts a time for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelCost {
    /// The kernel and the dimensions.
    pub tile: TileQuery,
    /// Vectors of lanes of its register tile.
    pub vectors_per_tile: usize,
    /// Keys of a block.
    pub key_block: usize,
    /// Query rows of a block.
    pub query_block: usize,
    /// Query rows of the problem.
    pub queries: usize,
    /// Keys of the problem.
    pub keys: usize,
}

impl KernelCost {
    /// The predicted time over the least that the multiply-add peak allows, 1 or more. It tells what cannot win from what may;
    /// what wins is measured.
    ///
    /// Lanes without a query; loads of a register tile beyond those that go along with the multiply-adds; outputs that are
    /// loaded and stored once per block of keys; weights that leave L1; keys and values that come through once per block of
    /// queries, from beyond L2.
    pub fn over_peak(&self, caches: &Caches) -> f64 {
        let Self { tile, vectors_per_tile, key_block, query_block, queries, keys } = *self;
        let [rows, queries, keys] = [tile.lanes_per_tile, queries, keys].map(|n| n.max(1) as f64);
        let [key_block, query_block] = [key_block, query_block].map(|n| n.max(1) as f64);
        let (vectors, columns) = (vectors_per_tile.max(1) as f64, tile.keys_per_tile.max(1) as f64);
        let lanes = (queries / rows).ceil() * rows / queries;
        // Loads over multiply-adds, of which the ports take as many at once.
        let loads = ((vectors + columns) / (vectors * columns)).max(1.0);
        let multiply_adds = 2.0 * key_block.min(keys);
        let outputs = OUTPUT_CYCLES / multiply_adds;
        let weights = key_block.min(keys) * rows * ELEMENT as f64;
        let spill = if weights > caches.l1d_or_default() as f64 { WEIGHTS_BEYOND_L1 } else { 0.0 };
        // Bytes of keys and values for the operations of a block of queries, in cycles of a vector of multiply-adds.
        let traffic = vectors / (query_block.min(queries) / rows).max(1.0) / rows * TRAFFIC_CYCLES;
        lanes * (loads + outputs + spill) + traffic
    }
}

/// Multiply-adds that could be done while a vector of outputs is loaded, scaled and stored.
const OUTPUT_CYCLES: f64 = 12.0;

/// What it costs when the weights of a register tile do not stay in L1.
const WEIGHTS_BEYOND_L1: f64 = 0.02;

/// Multiply-adds of a vector that could be done while an element of K and V comes from beyond L2.
const TRAFFIC_CYCLES: f64 = 0.6;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CacheSize, Source};

    fn caches(l1d: usize, l2: usize) -> Caches {
        let size = |bytes| CacheSize { bytes, source: Source::Sysfs, shared_by: 1 };
        Caches { l1d: size(l1d), l2: size(l2), l3: size(0), line: 64 }
    }

    fn query(lanes_per_tile: usize, keys_per_tile: usize, dim: usize) -> TileQuery {
        TileQuery { lanes_per_tile, keys_per_tile, head_dim: dim, value_dim: dim }
    }

    /// Sizes of caches in bytes, ascending but for the unknown one.
    const SIZES: [usize; 10] =
        [1, 1 << 10, 16 << 10, 32 << 10, 48 << 10, 128 << 10, 1 << 20, 16 << 20, 1 << 30, usize::MAX];

    #[test]
    fn the_measured_optimum() {
        let zen5 = caches(48 << 10, 1 << 20);
        assert_eq!(tiles(&zen5, query(32, 8, 128)), Tiles { key_block: 384, query_block: 512 });
        assert_eq!(tiles(&zen5, query(32, 8, 64)), Tiles { key_block: 384, query_block: 1024 });
    }

    #[test]
    fn pairs_of_bf16_pay_where_nobody_measured_otherwise() {
        let of = |vendor: &str| Machine { vendor: vendor.to_owned(), ..Machine::default() }.bf16_pairs_pay();
        assert!(!of("GenuineIntel"));
        for vendor in ["AuthenticAMD", "HygonGenuine", "Arm", "Apple", "Ampere", "", "intel of another name"] {
            assert!(of(vendor), "{vendor}");
        }
        // Nothing else about a machine counts.
        let xeon = Machine { vendor: "GenuineIntel".to_owned(), ..Machine::detect() };
        assert!(xeon.tiles_pay() && !Machine::default().tiles_pay());
        assert!(!xeon.bf16_pairs_pay() && Machine { vendor: "AuthenticAMD".to_owned(), ..xeon }.bf16_pairs_pay());
    }

    #[test]
    fn queries_of_the_rows_kernel() {
        for dtype in ["f32", "f16", "bf16", "int8"] {
            assert_eq!(rows_up_to(dtype, false), ROWS_UP_TO);
        }
        assert_eq!(["bf16", "int8"].map(|dtype| rows_up_to(dtype, true)), [31, usize::MAX]);
    }

    #[test]
    fn queries_in_parts() {
        assert_eq!(["f32", "f16", "bf16", "int8"].map(in_parts_from), [384, 32, 32, 384]);
    }

    #[test]
    fn blocks_of_the_rows_kernel() {
        let blocks = |group| [1, 2, 4].map(|bytes| rows_key_block(bytes, group, false));
        assert_eq!([blocks(4), blocks(8)], [[32, 256, 128], [64, 512, 512]]);
        assert_eq!([1, 2].map(|bytes| rows_key_block(bytes, 8, true)), [512, 256]);
        for group in 0..20 {
            assert!(blocks(group).iter().all(|keys| keys % ROWS_KEY_STEP == 0 && (32..=512).contains(keys)));
        }
    }

    #[test]
    fn the_preferred_tile_keeps_its_weights_in_l1() {
        let avx512 = [(32, 2), (32, 2), (16, 1)];
        let preferred = |l1d: usize, queries| preferred_tile(&caches(l1d, 1 << 20), queries, avx512.into_iter());
        assert_eq!([preferred(48 << 10, 500), preferred(32 << 10, 500)], [Some(0), Some(2)]);
        assert_eq!([preferred(48 << 10, 16), preferred(48 << 10, 17)], [Some(2), Some(0)]);
        assert_eq!(preferred(8 << 10, 500), Some(0), "nothing fits");
        assert_eq!(preferred_tile(&caches(0, 0), 1, [].into_iter()), None);
    }

    #[test]
    fn smaller_caches_and_longer_rows() {
        // 32 KiB and 256 KiB, as before 2019; 16 lanes are two AVX2 vectors.
        assert_eq!(tiles(&caches(32 << 10, 256 << 10), query(16, 6, 128)), Tiles { key_block: 96, query_block: 128 });
        assert_eq!(tiles(&caches(48 << 10, 1 << 20), query(32, 8, 512)), Tiles { key_block: 96, query_block: 128 });
        assert_eq!(
            tiles(&Caches::default(), query(16, 6, 128)),
            tiles(&caches(32 << 10, 256 << 10), query(16, 6, 128))
        );
    }

    #[test]
    fn bounds_hold_for_any_cache_and_dimension() {
        for l1d in SIZES.into_iter().chain([0]) {
            for l2 in SIZES.into_iter().chain([0]) {
                for dim in 0..=512 {
                    for (lanes, keys) in [(1, 1), (4, 8), (16, 6), (32, 8), (48, 12)] {
                        let Tiles { key_block, query_block } = tiles(&caches(l1d, l2), query(lanes, keys, dim));
                        assert!((KEY_STEP..=MOST_KEYS).contains(&key_block) && key_block % KEY_STEP == 0);
                        assert_eq!(key_block % keys, 0);
                        assert_eq!(query_block % lanes, 0);
                        assert!((1..=MOST_REGISTER_TILES).contains(&(query_block / lanes)));
                    }
                }
            }
        }
    }

    #[test]
    fn the_budgets_hold_wherever_there_is_a_choice() {
        for (l1d, l2) in [(32 << 10, 256 << 10), (48 << 10, 1 << 20), (48 << 10, 2 << 20), (128 << 10, 16 << 20)] {
            for dim in 1..=512 {
                let query = query(32, 8, dim);
                let Tiles { key_block, query_block } = tiles(&caches(l1d, l2), query);
                let (keys, queries) = (key_block * 8 * dim, query_block * 8 * dim);
                assert!(key_block == KEY_STEP || key_block * 32 * 4 <= l1d);
                assert!(key_block == KEY_STEP || query_block == 32 || keys + queries <= l2);
            }
        }
    }

    #[test]
    fn more_cache_never_means_smaller_blocks() {
        for dim in [1, 32, 64, 80, 128, 256, 512] {
            for keys_per_tile in [1, 6, 8, 10, 14, 16, 64] {
                let query = query(32, keys_per_tile, dim);
                for pair in SIZES.windows(2) {
                    let blocks = |l1d, l2| tiles(&caches(l1d, l2), query);
                    assert!(blocks(pair[0], 1 << 20).key_block <= blocks(pair[1], 1 << 20).key_block);
                    assert!(blocks(48 << 10, pair[0]).key_block <= blocks(48 << 10, pair[1]).key_block);
                    assert!(blocks(48 << 10, pair[0]).query_block <= blocks(48 << 10, pair[1]).query_block);
                }
            }
        }
    }

    #[test]
    fn longer_rows_never_mean_larger_blocks() {
        for (l1d, l2) in [(0, 0), (32 << 10, 256 << 10), (48 << 10, 1 << 20)] {
            for dim in 1..512 {
                let (a, b) =
                    (tiles(&caches(l1d, l2), query(32, 8, dim)), tiles(&caches(l1d, l2), query(32, 8, dim + 1)));
                assert!(a.key_block >= b.key_block && a.query_block >= b.query_block);
            }
        }
    }

    #[test]
    fn register_tiles_divide_the_block_where_possible() {
        let zen5 = caches(48 << 10, 1 << 20);
        for keys in [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 192] {
            assert_eq!(tiles(&zen5, query(32, keys, 128)).key_block % keys, 0, "{keys}");
        }
        assert_eq!(tiles(&zen5, query(32, 14, 128)).key_block, 336);
        assert_eq!(tiles(&zen5, query(32, usize::MAX, 128)).key_block, 384);
        assert_eq!(tiles(&zen5, query(32, 0, 128)).key_block, 384);
    }

    #[test]
    fn a_shared_l2_limits_query_blocks_but_not_key_blocks() {
        let mut cluster = caches(32 << 10, 2 << 20);
        let alone = tiles(&cluster, query(16, 6, 128));
        cluster.l2.shared_by = 16;
        let shared = tiles(&cluster, query(16, 6, 128));
        assert_eq!(shared.key_block, alone.key_block);
        assert!(shared.query_block < alone.query_block);
    }

    #[test]
    fn absurd_queries_do_not_overflow() {
        let most = TileQuery {
            lanes_per_tile: usize::MAX,
            keys_per_tile: usize::MAX,
            head_dim: usize::MAX,
            value_dim: usize::MAX,
        };
        assert_eq!(tiles(&caches(usize::MAX, usize::MAX), most), Tiles { key_block: 48, query_block: usize::MAX });
        let least = TileQuery { lanes_per_tile: 0, keys_per_tile: 0, head_dim: 0, value_dim: 0 };
        assert_eq!(tiles(&Caches::default(), least), Tiles { key_block: 384, query_block: 32 });
    }
}
