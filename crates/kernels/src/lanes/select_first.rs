//! Selections with an index: the blocks that promise most come first, and then those that could still hold a larger score.
//!
//! ```text
//! for each sub-tile
//!     bounds from the centres of all blocks
//!     weigh the best block of each row         its largest score is one that the row's does not fall below
//!     bounds again
//! for each block
//!     for each sub-tile with rows that still want it, or for these rows of all sub-tiles, gathered
//!         scores and their maximum
//!         weigh, and merge in the order of keys, where it reaches a row's largest score
//! ```
//!
//! A score is the same wherever it is computed, so which rows share a tile and in which order blocks are looked at changes
//! no bit: of equal scores, keys decide. Rows that want a block by chance, and not with their neighbours, would fill a
//! lane or two of each sub-tile: gathered they fill all.
//!
//! Where rows are sorted and clusters narrow, two thirds of the time go to scores, half of it to those of centres, which the
//! sort computes once and the bounds again; a tenth goes to packing. Asking ahead for the rows of Q that are gathered, and for
//! the rows of V that are copied out, gained nothing (Zen 4, 2048 x 2048, d 64).

use regard_simd::{Op, Simd};

use super::load::Place;
use super::pack::Places;
use super::prune::{Compare, Largest};
use super::segments::{Rows, lanes_of};
use super::{Lanes, Subtile};
use crate::index::INDEX_BLOCK;
use crate::mask::Band;
use crate::weighting::{Block, Kind, MAX_STATE, RowState, slot};

/// What packing a vector of queries costs, in parts of the scores of a block against it.
const PACKING: f32 = 0.25;

/// The state of some row: its slots, `lanes` elements apart.
#[derive(Clone, Copy)]
struct Owner {
    state: *mut f32,
    gain: f32,
}

/// All rows of a call.
pub(super) struct BestFirst<
    'a,
    'b,
    const G: usize,
    const R: usize,
    const R1: usize,
    const PAIRS: bool,
    const TILES: bool,
>(pub(super) &'a Lanes<'b, G, R, R1, PAIRS, TILES>);

impl<const G: usize, const R: usize, const R1: usize, const PAIRS: bool, const TILES: bool> Op
    for BestFirst<'_, '_, G, R, R1, PAIRS, TILES>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self(call) = self;
        let subtiles = call.head.rows.div_ceil(G * S::LANES);
        for t in 0..subtiles {
            call.begin(s, call.subtile::<S>(t));
            call.look_first(s, call.subtile::<S>(t));
        }
        for block in 0..call.index_blocks() {
            call.look_on(s, block, subtiles);
        }
        for t in 0..subtiles {
            call.finish(s, call.subtile::<S>(t));
        }
    }
}

impl<const G: usize, const R: usize, const R1: usize, const PAIRS: bool, const TILES: bool>
    Lanes<'_, G, R, R1, PAIRS, TILES>
{
    /// Whether the rows of the call select by [`BestFirst`]. A span of the keys may not hold the best block.
    pub(super) fn looks_at_best_first(&self) -> bool {
        let head = self.head;
        let whole = head.span.start == 0 && head.span.end >= head.keys;
        head.prune.is_some() && head.weighting.functions.kind != Kind::Weighted && whole
    }

    /// Weighs the blocks of a sub-tile that come first, and finds out which ones are left.
    #[inline(always)]
    fn look_first<S: Simd>(&self, s: S, tile: Subtile) {
        let weighting = self.head.weighting;
        let blocks = self.index_blocks();
        let mut largest = Largest::NONE;
        self.centres(s, tile);
        self.compare(s, tile, &mut largest, Compare::Lower);
        self.mark_first(tile, &largest);
        for block in 0..blocks {
            // SAFETY: there is a word for each block.
            if unsafe { *tile.left.add(block) } == 0 {
                continue;
            }
            // In the order of keys, as weightings want it.
            for place in self.parts(block) {
                let keys = self.load_keys(s, place);
                if let Some(segments) = self.scores(s, tile, keys, self.block_streams(keys, None)) {
                    // SAFETY: the functions are of this level (`launch` pairs them), and the block is as its fields say.
                    unsafe { (weighting.functions.weigh)(weighting.data, &self.weighing::<S>(tile, keys, &segments)) };
                }
            }
        }
        // SAFETY: the state has the slots of a selection, and there is a word for each block.
        unsafe {
            let max = tile.state.add(slot::MAX * G * S::LANES);
            for lane in 0..tile.rows.rows {
                largest.scores[lane] = *max.add(lane);
            }
            self.compare(s, tile, &mut largest, Compare::Upper);
            for block in 0..blocks {
                let left = tile.left.add(block);
                *left = if *left == 0 { *tile.wanted.add(block) } else { 0 };
            }
        }
    }

    /// Marks the blocks that a sub-tile looks at first: the best one of each row, all that a row sees for which none is, and
    /// those that have no bounds, as they may hold NaN, which is no maximum.
    fn mark_first(&self, tile: Subtile, largest: &Largest) {
        let head = self.head;
        let Some(prune) = &head.prune else { return };
        let blocks = self.index_blocks();
        // SAFETY: there is a word for each block.
        unsafe {
            for (block, upper) in prune.index.upper.iter().enumerate() {
                *tile.left.add(block) = u64::from(*upper == f32::INFINITY);
            }
            for lane in 0..tile.rows.rows {
                let marked = match largest.block(lane) {
                    _ if largest.norms[lane] == f32::INFINITY => 0..blocks,
                    Some(block) => block..block + 1,
                    None => {
                        let seen = head.band.visible(tile.rows.first + lane, head.keys);
                        seen.start / INDEX_BLOCK..seen.end.div_ceil(INDEX_BLOCK)
                    }
                };
                for block in marked {
                    *tile.left.add(block) = 1;
                }
            }
        }
    }

    /// Looks at a block for all rows that still want it.
    #[inline(always)]
    fn look_on<S: Simd>(&self, s: S, block: usize, subtiles: usize) {
        let lanes = G * S::LANES;
        let (mut rows, mut vectors) = (0, 0);
        for t in 0..subtiles {
            let tile = self.subtile::<S>(t);
            // SAFETY: there is a word for each block.
            let left = unsafe { *tile.left.add(block) };
            if left != 0 {
                rows += left.count_ones() as usize;
                vectors += Self::vectors::<S>(tile);
            }
        }
        if rows == 0 {
            return;
        }
        // Rows that are gathered must see the same keys.
        let gathers = !PAIRS && self.head.band == Band::FULL;
        let gathered = (rows / lanes * G + (rows % lanes).div_ceil(S::LANES)) as f32;
        if gathers && gathered + rows.div_ceil(S::LANES) as f32 * PACKING < vectors as f32 {
            return self.look_gathered(s, block, subtiles);
        }
        for t in 0..subtiles {
            let tile = self.subtile::<S>(t);
            // SAFETY: as above; the state has the slots of a selection.
            unsafe {
                if *tile.left.add(block) != 0 {
                    let best = tile.state.add(slot::MAX * lanes);
                    let owner = |lane| Owner { state: tile.state.add(lane), gain: *tile.gain.add(lane) };
                    self.look(s, tile, block, best, owner);
                }
            }
        }
    }

    /// Looks at a block for the rows of all sub-tiles that still want it, which come to share sub-tiles.
    #[inline(always)]
    fn look_gathered<S: Simd>(&self, s: S, block: usize, subtiles: usize) {
        let lanes = G * S::LANES;
        let mut owners = [Owner { state: std::ptr::null_mut(), gain: 0.0 }; 64];
        let mut order = [0_u32; 64];
        let mut rows = 0;
        for t in 0..subtiles {
            let tile = self.subtile::<S>(t);
            // SAFETY: there is a word for each block.
            let mut left = unsafe { *tile.left.add(block) };
            while left != 0 {
                let lane = left.trailing_zeros() as usize;
                left &= left - 1;
                // SAFETY: the sub-tile has the lane.
                owners[rows] = unsafe { Owner { state: tile.state.add(lane), gain: *tile.gain.add(lane) } };
                order[rows] = self.head.first_row.wrapping_add(self.head.place(t * lanes + lane)) as u32;
                rows += 1;
                if rows == lanes {
                    self.look_together(s, block, &order[..rows], &owners[..rows], subtiles);
                    rows = 0;
                }
            }
        }
        if rows > 0 {
            self.look_together(s, block, &order[..rows], &owners[..rows], subtiles);
        }
    }

    /// Looks at a block for some rows of the sequence, in the arrays of sub-tile `spare`.
    #[inline(always)]
    fn look_together<S: Simd>(&self, s: S, block: usize, order: &[u32], owners: &[Owner], spare: usize) {
        let tile = self.subtile_of::<S>(spare, order.len());
        self.pack(s, tile, Places { first: 0, order: Some(order), first_row: self.head.first_row });
        let lanes = G * S::LANES;
        // SAFETY: the layout has room for a sub-tile more, and owners are states of selections.
        unsafe {
            let best = tile.state.add(slot::MAX * lanes);
            for (lane, owner) in owners.iter().enumerate() {
                *best.add(lane) = *owner.state.add(slot::MAX * lanes);
            }
            self.look(s, tile, block, best, |lane| owners[lane]);
        }
    }

    /// Looks at a block for the rows of a sub-tile, whose largest scores are `best`, and moves the states of their owners.
    ///
    /// # Safety
    /// `best` has a sub-tile of lanes, and each row an owner, whose state is that of a selection. No row has NaN, nor has the
    /// block.
    #[inline(always)]
    unsafe fn look<S: Simd>(
        &self,
        s: S,
        tile: Subtile,
        block: usize,
        best: *const f32,
        owner: impl Fn(usize) -> Owner,
    ) {
        let weighting = self.head.weighting;
        let functions = weighting.functions;
        let lanes = G * S::LANES;
        for place in self.parts(block) {
            let keys = self.load_keys(s, place);
            let Some(segments) = self.scores(s, tile, keys, self.block_streams(keys, None)) else { continue };
            let weighing = self.weighing::<S>(tile, keys, &segments);
            // SAFETY: the caller's contract; the functions are of this level, and take a state of their own.
            unsafe {
                let mut hits = self.hits(s, tile, weighing.max, best);
                if hits == 0 {
                    continue;
                }
                let mut state = [0.0_f32; 64 * MAX_STATE];
                (functions.begin)(weighting.data, state.as_mut_ptr(), lanes);
                (functions.weigh)(weighting.data, &Block { state: state.as_mut_ptr(), ..weighing });
                while hits != 0 {
                    let lane = hits.trailing_zeros() as usize;
                    hits &= hits - 1;
                    let Owner { state: old, gain } = owner(lane);
                    let mut left = RowState([0.0; MAX_STATE]);
                    let mut right = left;
                    for slot in 0..functions.state {
                        left.0[slot] = *old.add(slot * lanes);
                        right.0[slot] = state[slot * lanes + lane];
                    }
                    if right.0[slot::KEY].to_bits() < left.0[slot::KEY].to_bits() {
                        std::mem::swap(&mut left, &mut right);
                    }
                    (functions.merge)(weighting.data, &mut left, &right, gain);
                    for slot in 0..functions.state {
                        *old.add(slot * lanes) = left.0[slot];
                    }
                }
            }
        }
    }

    /// The rows of a sub-tile for which `max` is at least `best`.
    ///
    /// # Safety
    /// Both have a sub-tile of lanes.
    #[inline(always)]
    unsafe fn hits<S: Simd>(&self, s: S, tile: Subtile, max: *const f32, best: *const f32) -> u64 {
        let every = s.mask_to_bits(s.mask_from_bits(u64::MAX));
        let mut hits = 0;
        for vector in 0..Self::vectors::<S>(tile) {
            let at = vector * S::LANES;
            // SAFETY: the caller's contract.
            let (max, best) = unsafe { (s.load(max.add(at)), s.load(best.add(at))) };
            let hit = s.and(s.ge(max, best), s.gt(max, s.splat(f32::NEG_INFINITY)));
            hits |= (s.mask_to_bits(hit) & every) << at;
        }
        hits & lanes_of(Band::FULL, 0, Rows { first: 0, ..tile.rows })
    }

    /// A block of the index, as many keys at a time as there is room for.
    fn parts(&self, block: usize) -> impl Iterator<Item = Place> + use<G, R, R1, PAIRS, TILES> {
        let (first, most) = (block * INDEX_BLOCK, self.head.key_block);
        let end = (first + INDEX_BLOCK).min(self.head.keys);
        (first..end).step_by(most).map(move |first| Place { first, len: most.min(end - first) })
    }
}
