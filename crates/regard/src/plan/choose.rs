//! Kernels and blocks: from the profile, or from the model.

use regard_kernels::launch::Choice;
use regard_kernels::table::{KEY_BLOCKS, Kernel, kernels, rows_kernel};
use regard_kernels::tensor::Dtype;
use regard_profile::{Class, Config, TileQuery, tiles};
use regard_simd::Level;

use super::Reason;
use crate::options::Numerics;
use crate::{Problem, Setup, Shape};

/// Keys of a block of the lanes kernel under [`Numerics::Portable`]: what the model gives for caches of 48 KiB and more.
const PORTABLE_KEY_BLOCK: usize = 384;

/// Keys of a block of the rows kernel: 64 of f32, and as many more as elements are smaller, so that what is done once for a
/// block takes the same part of the time. On Zen 4, blocks of 256 f32 are a tenth slower than of 64, and those of 64 bytes
/// are slower by a twentieth than of 192.
const fn rows_key_block(dtype: Dtype) -> usize {
    64 * size_of::<f32>() / dtype.bytes()
}

/// The most queries of a sequence that the rows kernel computes. It reads K and V once for all of them, where the lanes kernel
/// would leave lanes idle. With 16, a vector of lanes is full (0.76 of the peak against 0.6 at 8192 keys, d 128, on Zen 4).
const ROWS_UP_TO: usize = 15;

/// Threads wait for the last task: with this many, not for long on the cores of a small machine. Not the number of
/// threads, as a plan does not depend on who runs it.
const FEW_TASKS: usize = 8;

pub(super) fn choose(problem: &Problem<'_>, level: Level, class: &Class, setup: &Setup) -> (Choice, Reason) {
    let numerics = problem.options.numerics;
    let list: Vec<&'static Kernel> = lanes_kernels(level, problem.is_native_bf16());
    let entry = match numerics {
        Numerics::Machine => setup.profile.as_ref().and_then(|profile| profile.lookup(class)),
        Numerics::Portable => None,
    };
    let entry = entry.filter(|entry| has_blocks(&entry.config));
    let named = |name: &str| list.iter().copied().find(|kernel| kernel.name == name);
    let tuned = entry.and_then(|entry| Some((entry, named(&entry.config.kernel)?)));
    let (kernel, key_block, query_block, reason) = match tuned {
        Some((entry, kernel)) => {
            let config = &entry.config;
            (kernel, config.key_block, config.query_block, Reason::Profile(Box::new(entry.clone())))
        }
        None => {
            let kernel = default_kernel(&list, problem.shape.queries);
            let modelled = tiles(&setup.machine.caches, tile_query(kernel, &problem.shape));
            match numerics {
                Numerics::Machine => (kernel, modelled.key_block, modelled.query_block, Reason::Model),
                Numerics::Portable => (kernel, PORTABLE_KEY_BLOCK, modelled.query_block, Reason::Portable),
            }
        }
    };
    let choice = Choice {
        level,
        kernel,
        key_block,
        query_block: shared_out(problem, query_block, kernel.tile.rows),
        copy: problem.has_hostile_strides(),
        rows: rows_kernel(level, problem.kv_dtype(), problem.is_native_bf16() || problem.is_native_int8()),
        rows_key_block: rows_key_block(problem.kv_dtype()),
        rows_up_to: ROWS_UP_TO,
        split: problem.options.split,
    };
    (choice, reason)
}

/// The lanes kernels that may compute a problem, the one to use when nothing was measured first: those on bf16
/// instructions if these may be used and the machine has them, else those that widen.
fn lanes_kernels(level: Level, native: bool) -> Vec<&'static Kernel> {
    let of = |dtype| kernels(level).iter().filter(|kernel| kernel.dtype == dtype).collect::<Vec<_>>();
    let narrow = if native { of(Dtype::Bf16) } else { Vec::new() };
    if narrow.is_empty() { of(Dtype::F32) } else { narrow }
}

/// The kernel to use when nothing was measured: the first of its level, or a single vector of lanes where it holds all
/// queries. Kernels of one level and element type give the same bits.
fn default_kernel(kernels: &[&'static Kernel], queries: usize) -> &'static Kernel {
    let narrow = kernels.iter().find(|kernel| kernel.tile.vectors == 1 && queries <= kernel.tile.rows);
    narrow.unwrap_or(&kernels[0])
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
