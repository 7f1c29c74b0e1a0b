//! Kernels and blocks: from the profile, or from the model.

use regard_kernels::launch::{Choice, Few, RowsChoice};
use regard_kernels::table::{KEY_BLOCKS, Kernel, RowsKernel, lanes_kernels, rows_kernels_for};
use regard_kernels::tensor::Dtype;
use regard_kernels::{Prefetch, Reading};
use regard_profile::{
    Caches, ClassRef, Config, ROWS_KEY_STEP, TileQuery, in_parts_from, preferred_tile, prefetch, rows_key_block,
    rows_up_to, tiles,
};
use regard_simd::{Extension, Level};

use crate::options::{Native, Numerics};
use crate::{Problem, Setup, Shape};

/// Keys of a block of the lanes kernel under [`Numerics::Portable`]: what the model gives for caches of 48 KiB and more.
const PORTABLE_KEY_BLOCK: usize = 384;

/// Threads wait for the last task: with this many, not for long on the cores of a small machine. Not the number of
/// threads, as a plan does not depend on who runs it.
const FEW_TASKS: usize = 8;

/// What is chosen, and the entry of the profile that decided it, if one did, for the lanes kernel and for each of the rows kernels.
pub(super) struct Chosen {
    pub(super) choice: Choice,
    pub(super) lanes_entry: Option<usize>,
    pub(super) rows_entries: [Option<usize>; 2],
}

pub(super) fn choose(problem: &Problem<'_>, level: Level, class: ClassRef<'_>, setup: &Setup) -> Chosen {
    let numerics = problem.options.numerics;
    let profile = setup.profile.as_deref().filter(|_| numerics == Numerics::Machine);
    let may = |extension| match (problem.native(), extension) {
        (Native::Never, _) => false,
        (_, Extension::Amx) => setup.machine.tiles_pay(),
        (Native::WherePays, Extension::Bf16) => setup.machine.bf16_pairs_pay(),
        _ => true,
    };
    let least_in_parts = in_parts_from(problem.kv_dtype().name());
    let may_have_parts = problem.f32_on_tiles() && setup.machine.tiles_pay();
    let lanes_in = |parts: bool| {
        let may_be = |kernel: &Kernel| match (kernel.dtype, kernel.extension) {
            (Dtype::F32, Some(_)) => parts,
            (_, extension) => extension.is_none_or(may),
        };
        lanes_kernels(level, problem.kv_dtype(), &may_be)
    };
    let in_parts = may_have_parts && problem.shape.queries >= least_in_parts;
    let of_lanes_kernels = || lanes_in(in_parts);
    let named = |name: &str| of_lanes_kernels().find(|kernel| kernel.name == name);
    let entry_where = |can: &dyn Fn(&Config) -> bool| {
        let profile = profile?;
        let index = profile.lookup_where(class, |config| has_blocks(config) && can(config))?;
        Some((index, &profile.entries[index].config))
    };
    // Sequences of any number of queries have the same blocks of keys, whichever was tuned.
    let of_lanes = entry_where(&|config| named(&config.kernel).is_some()).or_else(|| {
        entry_where(&|config| may_have_parts && lanes_in(!in_parts).any(|kernel| kernel.name == config.kernel))
    });
    let rows_choice = |kernel: &'static RowsKernel| {
        let entry =
            entry_where(&|config| config.kernel == kernel.name && config.key_block.is_multiple_of(ROWS_KEY_STEP));
        let modelled = || rows_key_block(kernel.dtype.bytes(), kernel.group, kernel.native);
        let in_tiles = kernel.extension == Some(Extension::Amx);
        let modelled_prefetch = prefetch(&setup.machine, kernel.dtype.name(), in_tiles);
        let choice = RowsChoice {
            kernel,
            key_block: entry.map_or_else(modelled, |(_, config)| config.key_block),
            up_to: profile
                .and_then(|profile| profile.crossover(kernel.name))
                .unwrap_or_else(|| rows_up_to(kernel.dtype.name(), in_tiles)),
            prefetch: asked_of(modelled_prefetch.with(entry.and_then(|(_, config)| config.reading))),
        };
        (choice, entry.map(|(index, _)| index))
    };
    let may_be_native = |kernel: &RowsKernel| match kernel.extension {
        Some(extension) => may(extension),
        None => !matches!(problem.native(), Native::Never),
    };
    let of_rows = rows_kernels_for(level, problem.kv_dtype(), may_be_native).map(rows_choice);
    let tuned = of_lanes.map(|(_, config)| (config, named(&config.kernel)));
    let (kernel, key_block, query_block) = match tuned {
        Some((config, Some(kernel))) => (kernel, config.key_block, config.query_block),
        _ => {
            let kernel = default_kernel(of_lanes_kernels(), &setup.machine.caches, problem.shape.queries);
            let caches = &setup.machine.caches;
            let modelled = tiles(caches, tile_query(kernel, &problem.shape));
            // Those of the kernel in vectors, which computes sequences of few queries, for those of many too.
            let in_vectors = || default_kernel(lanes_in(false), caches, usize::MAX);
            let has_parts = kernel.dtype == Dtype::F32 && kernel.extension.is_some();
            let of_keys = if has_parts { in_vectors() } else { kernel };
            let modelled_keys = tiles(caches, tile_query(of_keys, &problem.shape)).key_block;
            let key_block = match numerics {
                Numerics::Machine => tuned.map_or(modelled_keys, |(config, _)| config.key_block),
                Numerics::Portable => PORTABLE_KEY_BLOCK,
            };
            (kernel, key_block, modelled.query_block)
        }
    };
    // A sequence of few queries alone would have had one of these.
    let few = (kernel.dtype == Dtype::F32 && kernel.extension.is_some()).then(|| Few {
        kernel: lanes_in(false)
            .find(|other| other.tile.rows == kernel.tile.rows)
            .expect("a kernel in vectors with the register tile of that in parts"),
        below: least_in_parts,
    });
    let choice = Choice {
        level,
        kernel,
        few,
        key_block,
        query_block: shared_out(problem, query_block, kernel.tile.rows),
        copy: problem.has_hostile_strides(),
        rows: of_rows.map(|(choice, _)| choice),
        split: problem.options.split,
    };
    let lanes_entry = of_lanes.map(|(index, _)| index);
    Chosen { choice, lanes_entry, rows_entries: of_rows.map(|(_, entry)| entry) }
}

/// How memory is asked for, as kernels take it.
fn asked_of(chosen: regard_profile::Prefetch) -> Prefetch {
    Prefetch { rows: chosen.rows.map(|regard_profile::Reading { turn, ahead }| Reading { turn, ahead }) }
}

/// The kernel to use when nothing was measured. Kernels of one level and extension give the same bits.
fn default_kernel(
    mut kernels: impl Iterator<Item = &'static Kernel> + Clone,
    caches: &Caches,
    queries: usize,
) -> &'static Kernel {
    let tiles = kernels.clone().map(|kernel| (kernel.tile.rows, kernel.tile.vectors));
    preferred_tile(caches, queries, tiles).and_then(|index| kernels.nth(index)).expect("every level has kernels")
}

/// The query block, halved while there are fewer than [`FEW_TASKS`] tasks. It has no influence on the bits of a result.
fn shared_out(problem: &Problem<'_>, mut query_block: usize, tile_rows: usize) -> usize {
    let tasks = |query_block: usize| {
        let blocks = problem.sequences.iter().map(|sequence| sequence.queries.div_ceil(query_block));
        blocks.fold(0, usize::saturating_add).saturating_mul(problem.shape.query_heads)
    };
    while query_block >= 4 * tile_rows && tasks(query_block) < FEW_TASKS {
        query_block = (query_block / 2).next_multiple_of(tile_rows);
    }
    query_block
}

/// Whether kernels take the blocks of a configuration. Files are checked when they are loaded, but a profile may also
/// have been made by hand.
fn has_blocks(config: &Config) -> bool {
    KEY_BLOCKS.contains(&config.key_block) && config.key_block.is_multiple_of(2) && config.query_block > 0
}

fn tile_query(kernel: &Kernel, shape: &Shape) -> TileQuery {
    TileQuery {
        lanes_per_tile: kernel.tile.rows,
        keys_per_tile: kernel.tile.keys,
        head_dim: shape.head_dim,
        value_dim: shape.value_dim,
    }
}
