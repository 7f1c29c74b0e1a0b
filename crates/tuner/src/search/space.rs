//! What there is to choose from.

use regard_kernels::launch::{Choice, RowsChoice, Split};
use regard_kernels::table::{KEY_BLOCKS, Kernel, QUERY_BLOCKS, RowsKernel, kernels, lanes_kernels, rows_kernels_for};
use regard_kernels::tensor::Dtype;
use regard_kernels::{Prefetch, Reading};
use regard_profile::{
    Caches, Class, Config, Family, KernelCost, Machine, ROWS_KEY_STEP, ROWS_UP_TO, TileQuery, Tiles, TunedReading,
    in_parts_from, preferred_tile, prefetch, rows_key_block, rows_up_to, tiles,
};
use regard_simd::{Extension, Level};
use serde::{Deserialize, Serialize};

use super::Anchor;
use crate::measure::Arithmetic;

/// What is decided on a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Kernel and blocks where queries are many.
    Lanes,
    /// The key block where they are few, or where plans take a rows kernel whatever their number.
    Rows,
    /// Which kernel gets this many queries.
    Crossing,
}

/// A class, and the configurations that compete in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Contest {
    /// What is decided.
    pub role: Role,
    /// For which class.
    pub class: Class,
    /// Floating-point operations of a call.
    pub flops: f64,
    /// Bytes that a call has to read from memory; 0 if caches hold them.
    pub bytes: f64,
    /// Whether the products are of pairs of bf16, or of 16-bit integers for keys of bytes, with a peak of their own.
    pub dots: bool,
    /// The feasible configurations, the model's first.
    pub candidates: Vec<Config>,
    /// What the model expects each of them to take, in the least time that the peak allows.
    pub predicted: Vec<f64>,
}

impl Contest {
    /// Whether two contests are about one order of summation.
    pub(super) fn shares_key_block(&self, other: &Self) -> bool {
        let wide = |contest: &Self| contest.class.borrowed().is_wide();
        self.role == other.role && self.class.dtype == other.class.dtype && wide(self) == wide(other)
    }
}

/// The kernels of a candidate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    lanes: Option<&'static Kernel>,
    key_block: usize,
    query_block: usize,
    reading: Option<TunedReading>,
}

impl Candidate {
    /// What a configuration names; `None` if this machine has no such kernel.
    pub(super) fn of(level: Level, config: &Config) -> Option<Self> {
        let Config { key_block, query_block, reading, .. } = *config;
        let lanes = kernels(level).iter().find(|kernel| kernel.name == config.kernel);
        let found = lanes.is_some() || config.takes_rows();
        found.then_some(Self { lanes, key_block, query_block, reading })
    }

    pub(super) fn choice(&self, kernels: Kernels) -> Choice {
        let Self { lanes, key_block, query_block, reading } = *self;
        let prefetch = kernels.prefetch.with(reading);
        let first = kernels.lanes().next().expect("every level has kernels");
        Choice {
            level: kernels.level,
            kernel: lanes.unwrap_or(first),
            few: None,
            key_block,
            query_block,
            copy: false,
            rows: [RowsChoice {
                kernel: kernels.rows(),
                // Not that it is used by a lanes kernel.
                key_block: if lanes.is_some() { *KEY_BLOCKS.end() } else { key_block },
                up_to: if lanes.is_some() { 0 } else { usize::MAX },
                prefetch: Prefetch {
                    rows: prefetch.rows.map(|regard_profile::Reading { turn, ahead }| Reading { turn, ahead }),
                },
            }; 2],
            split: Split::Auto,
        }
    }
}

/// The kernels that plans take for keys of a type, unless they are asked for others: what there is to choose from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernels {
    pub(super) level: Level,
    dtype: Dtype,
    /// Whether those that multiply pairs of elements as they are, and do not widen them.
    native: bool,
    /// Whether those on tile registers.
    tiles: bool,
    /// Whether f32 are multiplied in parts on such: where values are summed and not chosen, for so many queries.
    in_parts: bool,
    /// Rows of a head of keys: all queries of all heads that share it.
    rows: usize,
    /// How they ask for memory.
    prefetch: regard_profile::Prefetch,
}

impl Kernels {
    pub(super) fn new(level: Level, machine: &Machine, anchor: &Anchor) -> Self {
        let dtype = anchor.dtype;
        let rows = anchor.group * anchor.queries;
        let native = dtype != Dtype::Bf16 || machine.bf16_pairs_pay();
        let tiles = machine.tiles_pay();
        let in_parts = anchor.family != Family::Selection && anchor.queries >= in_parts_from(dtype.name());
        let kernels =
            Self { level, dtype, native, tiles, in_parts, rows, prefetch: prefetch(machine, dtype.name(), false) };
        let in_tiles = kernels.rows().extension == Some(Extension::Amx);
        Self { prefetch: prefetch(machine, dtype.name(), in_tiles), ..kernels }
    }

    /// The lanes kernels, the one to use when nothing was measured first.
    pub(super) fn lanes(self) -> impl Iterator<Item = &'static Kernel> + Clone {
        lanes_kernels(self.level, self.dtype, &|kernel| match (kernel.dtype, kernel.extension) {
            (Dtype::F32, Some(_)) => self.tiles && self.in_parts,
            (_, extension) => extension.is_none_or(|extension| self.may(extension)),
        })
    }

    /// The rows kernel.
    pub(super) fn rows(self) -> &'static RowsKernel {
        let [few, many] = rows_kernels_for(self.level, self.dtype, |kernel| {
            kernel.extension.is_none_or(|extension| self.may(extension))
        });
        if many.is_for(self.rows) { many } else { few }
    }

    /// The most queries of a sequence for which plans take the rows kernel where nothing was measured.
    fn rows_up_to(self) -> usize {
        rows_up_to(self.dtype.name(), self.rows().extension == Some(Extension::Amx))
    }

    /// Whether plans take kernels with this extension.
    fn may(self, extension: Extension) -> bool {
        match extension {
            Extension::Amx => self.tiles,
            Extension::Bf16 => self.native,
            _ => true,
        }
    }

    /// Whether the lanes kernels multiply pairs of bf16, and round weights to it.
    pub(super) fn multiply_pairs(self) -> bool {
        self.lanes().any(|kernel| kernel.dtype == Dtype::Bf16)
    }
}

/// The contests at a level of a machine, one for each anchor.
pub(super) fn contests(level: Level, machine: &Machine, anchors: &[Anchor]) -> Vec<Contest> {
    anchors.iter().map(|anchor| contest(level, machine, anchor)).collect()
}

fn contest(level: Level, machine: &Machine, anchor: &Anchor) -> Contest {
    let kernels = Kernels::new(level, machine, anchor);
    let costs = Costs { kernels, caches: &machine.caches, anchor };
    let role = match anchor.role {
        // On tile registers there are element types that plans give to a rows kernel whatever the number of queries.
        Role::Lanes if anchor.queries <= kernels.rows_up_to() => Role::Rows,
        role => role,
    };
    let candidates = match role {
        Role::Lanes => costs.lanes(&KEYS_OF_LANES, &REGISTER_TILES),
        Role::Rows => costs.readings(costs.rows()),
        Role::Crossing => costs.rows().into_iter().chain(costs.lanes(&KEYS_OF_LANES, &[1])).collect(),
    };
    let native = match role {
        Role::Rows => kernels.rows().native,
        _ => kernels.multiply_pairs(),
    };
    let predicted = candidates.iter().map(|config| costs.predicted(config)).collect();
    Contest {
        role,
        class: anchor.class(level.isa()),
        flops: anchor.flops(),
        bytes: if anchor.streams { anchor.kv_bytes() as f64 } else { 0.0 },
        dots: native,
        candidates,
        predicted,
    }
}

/// The arithmetic whose peak a contest is compared with.
pub(super) fn arithmetic(contest: &Contest) -> Arithmetic {
    // All candidates are of one arithmetic.
    let tiles = contest.candidates.first().is_some_and(|config| config.kernel.contains("_amx"));
    let bytes = contest.class.dtype == Dtype::Int8.name();
    match (contest.dots, bytes, tiles) {
        (false, ..) => Arithmetic::F32,
        (true, true, true) => Arithmetic::Int8Tiles,
        (true, true, false) => Arithmetic::Int16Dots,
        (true, false, true) => Arithmetic::Bf16Tiles,
        (true, false, false) => Arithmetic::Bf16Dots,
    }
}

/// Keys of a block of the lanes kernels, apart from what the model says.
const KEYS_OF_LANES: [usize; 7] = [48, 96, 144, 192, 240, 288, 384];

/// Keys of a block of the rows kernels.
const KEYS_OF_ROWS: [usize; 7] = [32, 64, 96, 128, 192, 256, 512];

/// Ways of reading of the rows kernels, apart from the model's: bytes of a turn, and bytes that are asked for ahead.
const READINGS: [[usize; 2]; 8] =
    [[0, 4096], [0, 8192], [0, 16384], [1, 0], [4096, 0], [4096, 4096], [4096, 8192], [4096, 16384]];

/// Register tiles of a query block.
const REGISTER_TILES: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

/// Query rows up to which the rows kernel may be used, apart from what the model says. Between two of them, the contests
/// about crossings tell nothing.
pub(super) const CROSSOVERS: [usize; 5] = [ROWS_UP_TO, 7, 11, 23, 31];

struct Costs<'a> {
    kernels: Kernels,
    caches: &'a Caches,
    anchor: &'a Anchor,
}

impl Costs<'_> {
    /// What a plan takes without a profile.
    fn default_kernel(&self) -> &'static Kernel {
        self.preferred(self.kernels.lanes(), self.anchor.queries)
    }

    fn preferred(&self, mut kernels: impl Iterator<Item = &'static Kernel> + Clone, queries: usize) -> &'static Kernel {
        let tiles = kernels.clone().map(|kernel| (kernel.tile.rows, kernel.tile.vectors));
        let preferred = preferred_tile(self.caches, queries, tiles);
        preferred.and_then(|index| kernels.nth(index)).expect("every level has kernels")
    }

    /// What a plan takes without a profile: keys of a block in parts are those in vectors.
    fn default_blocks(&self, kernel: &Kernel) -> Tiles {
        let own = self.model(kernel);
        if kernel.dtype != Dtype::F32 || kernel.extension.is_none() {
            return own;
        }
        let in_vectors = lanes_kernels(self.kernels.level, self.kernels.dtype, &|_| false);
        Tiles { key_block: self.model(self.preferred(in_vectors, usize::MAX)).key_block, ..own }
    }

    fn model(&self, kernel: &Kernel) -> Tiles {
        tiles(self.caches, self.tile_query(kernel))
    }

    fn tile_query(&self, kernel: &Kernel) -> TileQuery {
        TileQuery {
            lanes_per_tile: kernel.tile.rows,
            keys_per_tile: kernel.tile.keys,
            head_dim: self.anchor.head_dim,
            value_dim: self.anchor.head_dim,
        }
    }

    /// Kernels times key blocks times query blocks, as far as they fit.
    fn lanes(&self, keys: &[usize], register_tiles: &[usize]) -> Vec<Config> {
        let mut found: Vec<Config> = Vec::new();
        let mut add = |kernel: &Kernel, key_block: usize, query_block: usize| {
            let config = Config::new(kernel.name, key_block, query_block);
            let has = KEY_BLOCKS.contains(&key_block) && QUERY_BLOCKS.contains(&query_block);
            if has && !found.contains(&config) {
                found.push(config);
            }
        };
        let first = self.default_kernel();
        let modelled = self.default_blocks(first);
        let clamped = |tiles: usize, rows: usize| tiles.min(self.anchor.queries.next_multiple_of(rows));
        add(first, modelled.key_block, clamped(modelled.query_block, first.tile.rows));
        let row = 2 * self.anchor.head_dim * size_of::<f32>();
        for kernel in self.kernels.lanes() {
            let of_model = self.model(kernel);
            let mut blocks: Vec<usize> = register_tiles.iter().map(|tiles| tiles * kernel.tile.rows).collect();
            blocks.push(of_model.query_block);
            for &key_block in keys.iter().chain([&modelled.key_block]) {
                // Weights of a register tile in L1, keys and values in L2: beyond that it can only be slower.
                let fits = key_block * kernel.tile.rows * size_of::<f32>() <= 2 * self.caches.l1d_or_default()
                    && key_block * row <= self.caches.l2_share_or_default();
                if !fits && key_block != modelled.key_block {
                    continue;
                }
                for &query_block in &blocks {
                    // A block that holds all queries is as good as any larger one.
                    let whole = clamped(query_block, kernel.tile.rows);
                    if query_block == whole || query_block == of_model.query_block {
                        add(kernel, key_block, whole);
                    }
                }
            }
        }
        found
    }

    /// The rows kernel with its key blocks.
    fn rows(&self) -> Vec<Config> {
        let kernel = self.kernels.rows();
        let modelled = rows_key_block(self.anchor.dtype.bytes(), kernel.group, kernel.native);
        let blocks = KEYS_OF_ROWS.into_iter().filter(|keys| keys % ROWS_KEY_STEP == 0 && *keys != modelled);
        let config = |key_block| Config::new(kernel.name, key_block, kernel.group);
        [modelled].into_iter().chain(blocks).map(config).collect()
    }

    /// The same with each way of reading, that of the model first.
    fn readings(&self, configs: Vec<Config>) -> Vec<Config> {
        let rows = self.anchor.group * self.anchor.queries;
        let modelled = self.kernels.prefetch.rows[regard_profile::Prefetch::place(rows)];
        let others = READINGS.into_iter().filter(|[turn, ahead]| [modelled.turn, modelled.ahead] != [*turn, *ahead]);
        let others: Vec<_> = others.map(|[turn, ahead]| Some(TunedReading { rows, turn, ahead })).collect();
        let ways = || std::iter::once(None).chain(others.iter().copied());
        configs.iter().flat_map(|config| ways().map(|reading| Config { reading, ..config.clone() })).collect()
    }

    fn predicted(&self, config: &Config) -> f64 {
        let lanes = self.kernels.lanes().find(|kernel| kernel.name == config.kernel);
        let Some(kernel) = lanes else { return 1.0 };
        let cost = KernelCost {
            tile: self.tile_query(kernel),
            vectors_per_tile: kernel.tile.vectors,
            key_block: config.key_block,
            query_block: config.query_block,
            queries: self.anchor.queries,
            keys: self.anchor.keys,
        };
        cost.over_peak(self.caches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidate_0_is_the_models() {
        let machines =
            ["AuthenticAMD", "GenuineIntel"].map(|vendor| Machine { vendor: vendor.to_owned(), ..Machine::default() });
        for (&level, machine) in Level::available().iter().flat_map(|level| machines.iter().map(move |m| (level, m))) {
            for (anchor, contest) in Anchor::GRID.iter().zip(contests(level, machine, &Anchor::GRID)) {
                let kernels = Kernels::new(level, machine, anchor);
                let costs = Costs { kernels, caches: &machine.caches, anchor };
                let first = &contest.candidates[0];
                match contest.role {
                    Role::Lanes => {
                        assert_eq!(first.kernel, costs.default_kernel().name);
                        assert_eq!(first.key_block, costs.default_blocks(costs.default_kernel()).key_block);
                        assert!(contest.candidates.len() > 8, "{contest:?}");
                    }
                    Role::Rows => {
                        let native = kernels.rows().native;
                        let modelled = rows_key_block(anchor.dtype.bytes(), first.query_block, native);
                        assert_eq!((first.key_block, first.reading), (modelled, None));
                        let here = |config: &&Config| config.key_block == modelled;
                        let readings = contest.candidates.iter().filter(here).filter_map(|config| config.reading);
                        let rows = anchor.group * anchor.queries;
                        let of_model = costs.kernels.prefetch.rows[regard_profile::Prefetch::place(rows)];
                        let others: Vec<TunedReading> = readings.collect();
                        assert!(others.len() + 1 >= READINGS.len() && others.iter().all(|other| other.rows == rows));
                        assert!(
                            others.iter().all(|other| (other.turn, other.ahead) != (of_model.turn, of_model.ahead))
                        );
                    }
                    Role::Crossing => assert!(contest.candidates.iter().any(|config| !config.takes_rows())),
                }
                assert_eq!(contest.predicted.len(), contest.candidates.len());
                assert!(contest.predicted.iter().all(|cost| cost.is_finite() && *cost >= 1.0));
                for (i, config) in contest.candidates.iter().enumerate() {
                    assert!(!contest.candidates[..i].contains(config), "{config:?} twice");
                    assert!(config.key_block.is_multiple_of(2));
                    assert!(Candidate::of(level, config).is_some());
                }
            }
        }
    }
}
