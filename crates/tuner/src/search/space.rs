//! What there is to choose from.

use regard_kernels::launch::{Choice, Split};
use regard_kernels::table::{KEY_BLOCKS, Kernel, QUERY_BLOCKS, kernels, rows_kernel};
use regard_kernels::tensor::Dtype;
use regard_profile::{Caches, Config, TileQuery, Tiles, tiles};
use regard_simd::Level;

use super::Anchor;

/// A kernel with block sizes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) kernel: &'static Kernel,
    pub(super) key_block: usize,
    pub(super) query_block: usize,
}

impl Candidate {
    /// What plans choose without a profile.
    pub(super) fn of_model(level: Level, caches: &Caches, anchor: &Anchor) -> Self {
        let kernel = f32_kernels(level).next().expect("every level has kernels");
        let Tiles { key_block, query_block } = model(kernel, caches, anchor);
        Self { kernel, key_block, query_block }
    }

    pub(super) fn choice(&self, level: Level) -> Choice {
        let Self { kernel, key_block, query_block } = *self;
        Choice {
            level,
            kernel,
            key_block,
            query_block,
            copy: false,
            rows: rows_kernel(level, Dtype::F32, false),
            // Not that it is used.
            rows_key_block: *KEY_BLOCKS.end(),
            rows_up_to: 0,
            split: Split::Never,
        }
    }

    pub(super) fn config(&self) -> Config {
        let Self { kernel, key_block, query_block } = *self;
        Config { kernel: kernel.name.to_owned(), key_block, query_block }
    }

    fn is(&self, other: &Self) -> bool {
        self.config() == other.config()
    }
}

/// The lanes kernels that compute f32, the one to use when nothing was measured first.
pub(super) fn f32_kernels(level: Level) -> impl Iterator<Item = &'static Kernel> {
    kernels(level).iter().filter(|kernel| kernel.dtype == Dtype::F32)
}

fn model(kernel: &Kernel, caches: &Caches, anchor: &Anchor) -> Tiles {
    let query = TileQuery {
        lanes_per_tile: kernel.tile.rows,
        keys_per_tile: kernel.tile.keys,
        head_dim: anchor.head_dim,
        value_dim: anchor.head_dim,
    };
    tiles(caches, query)
}

/// The key blocks to choose from for all anchors at once. The first is the model's, for the anchor where it takes the
/// fewest keys: what fits there fits everywhere.
pub(super) fn key_blocks(level: Level, caches: &Caches, anchors: &[Anchor], quick: bool) -> Vec<usize> {
    let kernel = f32_kernels(level).next().expect("every level has kernels");
    let modelled = anchors.iter().map(|anchor| model(kernel, caches, anchor).key_block);
    let mut blocks: Vec<usize> = modelled.min().into_iter().collect();
    let steps: &[usize] = if quick { &[96, 144, 192, 288, 384] } else { &[48, 96, 144, 192, 240, 288, 384, 576] };
    let row = anchors.iter().map(|anchor| 2 * anchor.head_dim * size_of::<f32>()).max().unwrap_or(0);
    for &keys in steps {
        // The weights of a register tile in L1, keys and values in L2: beyond that it can only be slower.
        let fits = keys * kernel.tile.rows * size_of::<f32>() <= caches.l1d_or_default()
            && keys * row <= caches.l2_share_or_default();
        if fits && KEY_BLOCKS.contains(&keys) && !blocks.contains(&keys) {
            blocks.push(keys);
        }
    }
    blocks
}

/// Kernels times query blocks with this key block. Candidate 0 is the model's; the other kernels of its query block
/// come next, as the kernel makes more of a difference.
pub(super) fn candidates(level: Level, caches: &Caches, anchor: &Anchor, key_block: usize) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = Vec::new();
    let mut add = |kernel, query_block| {
        let candidate = Candidate { kernel, key_block, query_block };
        if QUERY_BLOCKS.contains(&query_block) && !found.iter().any(|other| other.is(&candidate)) {
            found.push(candidate);
        }
    };
    for kernel in f32_kernels(level) {
        add(kernel, model(kernel, caches, anchor).query_block);
    }
    let row = 2 * anchor.head_dim * size_of::<f32>();
    for kernel in f32_kernels(level) {
        for tiles in [1, 2, 4, 6, 8] {
            let rows = tiles * kernel.tile.rows;
            // Queries and outputs in half of L2; a block that holds all queries is as good as any larger one.
            let fits = tiles == 1 || rows * row <= caches.l2_share_or_default() / 2;
            if fits && rows < anchor.queries + kernel.tile.rows {
                add(kernel, rows);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidate_0_is_the_models() {
        let caches = Caches::default();
        for &level in Level::available() {
            for anchors in [&Anchor::QUICK[..], &Anchor::FULL] {
                let blocks = key_blocks(level, &caches, anchors, false);
                assert!(blocks.len() > 1 && blocks.iter().all(|keys| keys % 2 == 0), "{blocks:?}");
                for anchor in anchors {
                    let modelled = Candidate::of_model(level, &caches, anchor);
                    let found = candidates(level, &caches, anchor, modelled.key_block);
                    assert!(found[0].is(&modelled));
                    assert!(found.len() >= f32_kernels(level).count(), "{found:?}");
                    for (i, candidate) in found.iter().enumerate() {
                        assert!(!found[..i].iter().any(|other| other.is(candidate)), "{candidate:?} twice");
                    }
                }
            }
        }
    }
}
