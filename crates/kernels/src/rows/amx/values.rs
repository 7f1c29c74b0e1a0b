//! The value product: all rows against a chunk of keys.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use regard_simd::{Avx512Amx, Op, Simd, hide};

use super::register::{SUMS, VALUES, WEIGHTS};
use super::{Buffer, ROW_BYTES, ROWS, TILE, Tiled, load, parts_apart};
use crate::rows::accumulate::AccumulateArgs;

type F32 = <Avx512Amx as Simd>::F32;

/// What [`crate::rows::accumulate::Accumulate`] does, with weights as [`super::weights::TileWeights`] lays them out. One sum is a
/// chain of products of a chunk of keys each, of the block's chunks in ascending order. Runs start where a chunk does, if order
/// counts.
pub(super) struct TileValues<P: Tiled, const R: usize, const G: usize, const L: usize>(
    pub(super) Avx512Amx,
    pub(super) AccumulateArgs<P::Element>,
    pub(super) PhantomData<P>,
);

/// Tiles of interleaved values that are made before they are multiplied: whole values of up to 256 columns, which are read one
/// after the other then.
const PANEL: usize = 16;

/// Interleaved values of a chunk of keys.
#[repr(C, align(64))]
struct Panel([MaybeUninit<f32>; PANEL * TILE]);

impl Panel {
    fn start(&mut self) -> *mut f32 {
        self.0.as_mut_ptr().cast()
    }
}

/// Columns that a panel is made of.
#[derive(Clone, Copy)]
struct Columns {
    first: usize,
    len: usize,
}

impl Columns {
    /// Tiles that hold them.
    #[inline(always)]
    fn tiles<P: Tiled>(self) -> usize {
        self.len.div_ceil(P::COLUMNS) * P::GROUP
    }
}

/// Keys of a chunk that take part, by their places in the block, and what row they must be seen by.
#[derive(Clone, Copy)]
struct Chunk {
    /// The first key of the chunk, in the block.
    first: usize,
    from: usize,
    to: usize,
    row: Option<usize>,
}

impl Chunk {
    /// Whether all keys take part.
    #[inline(always)]
    fn is_whole<P: Tiled>(self) -> bool {
        self.to - self.from == P::COLUMNS && self.row.is_none()
    }
}

impl<P: Tiled, const R: usize, const G: usize, const L: usize> Op for TileValues<P, R, G, L> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        const { assert!(L == ROWS && R <= L / G && L.is_multiple_of(G)) };
        // Tiles of parts have the shape of tiles of keys, whose register the second one takes.
        const { assert!(!Self::APART || P::PARTS == 2 && Self::ROW_LANES == ROWS) };
        let args = &self.1;
        for column in (0..args.d_v).step_by(PANEL * ROWS) {
            let columns = Columns { first: column, len: (args.d_v - column).min(PANEL * ROWS) };
            if !args.visible.is_null() {
                self.seen_chunks(columns);
            } else if args.keeps || !self.shares() {
                self.chunks(columns);
            } else {
                self.kept_chunks(columns);
            }
        }
        if args.ends[1] {
            self.total();
        }
    }
}

impl<P: Tiled, const R: usize, const G: usize, const L: usize> TileValues<P, R, G, L> {
    const ROW_LANES: usize = L / G;

    /// Whether each part of the weights has a tile of its own.
    const APART: bool = parts_apart::<P>(Self::ROW_LANES);

    /// f32 of a part of the weights of a chunk, or of the sums of 16 columns: `[ROW_LANES][16]`.
    const PART_LEN: usize = Self::ROW_LANES * ROWS;

    /// f32 of the sums of 16 columns: `[part][ROW_LANES][16]`.
    const SUMS_LEN: usize = P::PARTS * Self::PART_LEN;

    /// The chunk of the run's keys from place `from` of the block on.
    #[inline(always)]
    fn chunk(&self, from: usize) -> Chunk {
        let first = from / P::COLUMNS * P::COLUMNS;
        Chunk { first, from, to: (first + P::COLUMNS).min(self.1.first + self.1.keys), row: None }
    }

    /// Whether groups share the interleaved values of the run. A chunk that lies in two runs is interleaved for each, with zeros for
    /// the keys of the other one.
    #[inline(always)]
    fn shares(&self) -> bool {
        let args = &self.1;
        let whole = args.keys.is_multiple_of(P::COLUMNS) || args.ends[1];
        !args.kept.is_null() && args.first.is_multiple_of(P::COLUMNS) && whole
    }

    /// Where the interleaved values of a chunk are kept: `[chunk][tile]`.
    #[inline(always)]
    fn kept(&self, chunk: Chunk, columns: Columns) -> *mut f32 {
        let tiles = Columns { first: 0, len: self.1.d_v }.tiles::<P>();
        self.1.kept.wrapping_add((chunk.first / P::COLUMNS * tiles + columns.first / ROWS) * TILE)
    }

    /// All chunks, of values that another group has interleaved. A tile of sums stays in its register for all of them.
    #[inline(always)]
    fn kept_chunks(&self, columns: Columns) {
        let s = self.0;
        let end = self.1.first + self.1.keys;
        for tile in 0..columns.tiles::<P>() {
            let sums = self.sums(columns, tile);
            // SAFETY: there are sums of a tile, and a tile of each chunk is kept. The rows kernel holds the registers.
            unsafe {
                self.load_sums::<{ SUMS[0] }>(sums, self.1.ends[0]);
                if Self::APART {
                    self.load_sums::<{ SUMS[1] }>(sums.add(Self::PART_LEN), self.1.ends[0]);
                }
                let mut from = self.1.first;
                while from < end {
                    let chunk = self.chunk(from);
                    self.load_weights(chunk);
                    s.tile_load::<VALUES>(self.kept(chunk, columns).add(tile * TILE).cast(), ROW_BYTES);
                    P::dot::<{ SUMS[0] }, { WEIGHTS[0] }, VALUES>(s);
                    if Self::APART {
                        P::dot::<{ SUMS[1] }, { WEIGHTS[1] }, VALUES>(s);
                    }
                    from = chunk.to;
                }
                s.tile_store::<{ SUMS[0] }>(sums.cast(), ROW_BYTES);
                if Self::APART {
                    s.tile_store::<{ SUMS[1] }>(sums.add(Self::PART_LEN).cast(), ROW_BYTES);
                }
            }
        }
    }

    /// All chunks. While one is multiplied, the values of the next one are read: memory would be idle otherwise. To store the sums of a
    /// tile after that gains nothing, and neither does to ask for even lines before odd ones.
    #[inline(always)]
    fn chunks(&self, columns: Columns) {
        let end = self.1.first + self.1.keys;
        let mut panels = [const { Panel([const { MaybeUninit::uninit() }; PANEL * TILE]) }; 2];
        let panels = panels.each_mut().map(Panel::start);
        let shares = self.shares();
        let panel_of = |chunk: Chunk| {
            if shares { self.kept(chunk, columns) } else { panels[chunk.first / P::COLUMNS % 2] }
        };
        let tiles = columns.tiles::<P>();
        // Of the next panel, for each tile of this one.
        let rows = ROWS.div_ceil(tiles);
        let mut chunk = self.chunk(self.1.first);
        let mut panel = panel_of(chunk);
        self.fill(panel, chunk, columns);
        loop {
            let fresh = self.1.ends[0] && chunk.from == self.1.first;
            let next = self.chunk(chunk.to);
            let next_panel = panel_of(next);
            self.load_weights(chunk);
            if chunk.to < end && next.is_whole::<P>() {
                let values = self.values(next.first, columns);
                let mut row = 0;
                for tile in 0..tiles {
                    self.product(panel, tile, self.sums(columns, tile), fresh);
                    for _ in 0..rows.min(ROWS - row) {
                        self.whole_row(next_panel, row, values, columns.len);
                        row += 1;
                    }
                }
            } else {
                for tile in 0..tiles {
                    self.product(panel, tile, self.sums(columns, tile), fresh);
                }
                if chunk.to == end {
                    return;
                }
                self.fill(next_panel, next, columns);
            }
            panel = next_panel;
            chunk = next;
        }
    }

    /// The same without values of keys that a row does not see, each row by itself: these may be NaN or Inf, whose product with a
    /// weight of zero is not zero.
    #[inline(never)]
    fn seen_chunks(&self, columns: Columns) {
        let s = self.0;
        let mut panel = Panel([const { MaybeUninit::uninit() }; PANEL * TILE]);
        let panel = panel.start();
        const { assert!(Self::SUMS_LEN <= 2 * TILE) };
        let mut all = Buffer([0.0; 2 * TILE]);
        let all = all.0.as_mut_ptr();
        let mut from = self.1.first;
        while from < self.1.first + self.1.keys {
            let fresh = self.1.ends[0] && from == self.1.first;
            let chunk = self.chunk(from);
            self.load_weights(chunk);
            for row in 0..R {
                self.fill(panel, Chunk { row: Some(row), ..chunk }, columns);
                for tile in 0..columns.tiles::<P>() {
                    let sums = self.sums(columns, tile);
                    // SAFETY: both places have room for the sums of a tile.
                    unsafe {
                        for i in (0..Self::SUMS_LEN).step_by(L) {
                            s.store(all.add(i), if fresh { s.zero() } else { s.load(sums.add(i)) });
                        }
                        self.product(panel, tile, all, false);
                        for part in 0..P::PARTS {
                            let place = (part * Self::ROW_LANES + row) * ROWS;
                            s.store(sums.add(place), s.load(all.add(place)));
                        }
                    }
                }
            }
            from = chunk.to;
        }
    }

    /// The sums of a tile of columns.
    #[inline(always)]
    fn sums(&self, columns: Columns, tile: usize) -> *mut f32 {
        self.1.block_sums.wrapping_add((columns.first / ROWS + tile) * Self::SUMS_LEN)
    }

    /// Columns of a key at this place of the block.
    #[inline(always)]
    fn values(&self, place: usize, columns: Columns) -> *const P::Element {
        self.1.v.wrapping_add((place - self.1.first) * self.1.v_stride + columns.first)
    }

    /// The weights of a chunk.
    #[inline(always)]
    fn load_weights(&self, chunk: Chunk) {
        let weights = self.1.weights.wrapping_add(chunk.first * Self::ROW_LANES);
        // SAFETY: the weights of the chunk are there, in that layout. The rows kernel holds the registers.
        unsafe {
            self.0.tile_load::<{ WEIGHTS[0] }>(weights.cast(), ROW_BYTES);
            if Self::APART {
                self.0.tile_load::<{ WEIGHTS[1] }>(weights.add(Self::PART_LEN).cast(), ROW_BYTES);
            }
        }
    }

    /// Adds the product of the weights and a tile of a panel to its sums, which are zero before that if they are fresh.
    #[inline(always)]
    fn product(&self, panel: *const f32, tile: usize, sums: *mut f32, fresh: bool) {
        let s = self.0;
        // SAFETY: the panel has the tile, and so have the sums. The rows kernel holds the registers.
        unsafe {
            s.tile_load::<VALUES>(panel.add(tile * TILE).cast(), ROW_BYTES);
            self.add::<{ SUMS[0] }, { WEIGHTS[0] }>(sums, fresh);
            if Self::APART {
                self.add::<{ SUMS[1] }, { WEIGHTS[1] }>(sums.add(Self::PART_LEN), fresh);
            }
        }
    }

    /// Adds the product of a tile of weights and the values at hand to sums.
    ///
    /// # Safety
    /// There are sums of a tile. The rows kernel holds the registers.
    #[inline(always)]
    unsafe fn add<const C: usize, const A: usize>(&self, sums: *mut f32, fresh: bool) {
        let s = self.0;
        // SAFETY: the caller's contract.
        unsafe {
            self.load_sums::<C>(sums, fresh);
            P::dot::<C, A, VALUES>(s);
            s.tile_store::<C>(sums.cast(), ROW_BYTES);
        }
    }

    /// Reads a tile of sums, or makes it zero.
    ///
    /// # Safety
    /// There are sums of a tile. The rows kernel holds the registers.
    #[inline(always)]
    unsafe fn load_sums<const C: usize>(&self, sums: *const f32, fresh: bool) {
        // SAFETY: the caller's contract.
        unsafe { if fresh { self.0.tile_zero::<C>() } else { self.0.tile_load::<C>(sums.cast(), ROW_BYTES) } }
    }

    /// Interleaves the values of a chunk.
    #[inline(always)]
    fn fill(&self, panel: *mut f32, chunk: Chunk, columns: Columns) {
        if chunk.is_whole::<P>() {
            let values = self.values(chunk.first, columns);
            for row in 0..ROWS {
                self.whole_row(panel, row, values, columns.len);
            }
        } else {
            self.fill_part(panel, chunk, columns);
        }
    }

    /// One row of each tile of a panel, of a chunk that has all keys.
    ///
    /// Four cache lines at a time: in a loop of single ones, fewer of them are on their way from memory at once (a twentieth of
    /// the time).
    #[inline(always)]
    fn whole_row(&self, panel: *mut f32, row: usize, values: *const P::Element, columns: usize) {
        let stride = hide(self.1.v_stride);
        let mut at = values.wrapping_add(row * P::GROUP * stride);
        let mut to = panel.wrapping_add(row * ROWS);
        let lines = columns / P::COLUMNS;
        for _ in 0..lines / 4 {
            for line in 0..4 {
                let to = to.wrapping_add(line * P::GROUP * TILE);
                self.line(to, at.wrapping_add(line * P::COLUMNS), stride, P::COLUMNS);
            }
            at = at.wrapping_add(4 * P::COLUMNS);
            to = to.wrapping_add(4 * P::GROUP * TILE);
        }
        for _ in 0..lines % 4 {
            self.line(to, at, stride, P::COLUMNS);
            at = at.wrapping_add(P::COLUMNS);
            to = to.wrapping_add(P::GROUP * TILE);
        }
        if !columns.is_multiple_of(P::COLUMNS) {
            self.line(to, at, stride, columns % P::COLUMNS);
        }
    }

    /// Up to 64 bytes of `GROUP` values.
    #[inline(always)]
    fn line(&self, to: *mut f32, values: *const P::Element, stride: usize, len: usize) {
        let (s, ahead) = (self.0, self.1.ahead);
        let mut vectors = [s.zero(); 4];
        for i in 0..if ahead == 0 { 0 } else { P::GROUP } {
            s.prefetch_far(values.wrapping_add(i * stride + ahead).cast());
        }
        for i in 0..P::GROUP {
            // SAFETY: the values have the columns.
            vectors[i] = unsafe { load::<P>(s, values.wrapping_add(i * stride), len) };
        }
        self.store(to, vectors);
    }

    /// The same for all rows of a panel, with zeros in place of values that take no part.
    #[inline(never)]
    fn fill_part(&self, panel: *mut f32, chunk: Chunk, columns: Columns) {
        let s = self.0;
        for row in 0..ROWS {
            for c in (0..columns.len).step_by(P::COLUMNS) {
                let mut vectors = [s.zero(); 4];
                for i in 0..P::GROUP {
                    let key = chunk.first + row * P::GROUP + i;
                    if self.takes_part(chunk, key) {
                        let value = self.values(key, columns).wrapping_add(c);
                        // SAFETY: the value is there, and has the columns.
                        vectors[i] = unsafe { load::<P>(s, value, (columns.len - c).min(P::COLUMNS)) };
                    }
                }
                self.store(panel.wrapping_add(c / ROWS * TILE + row * ROWS), vectors);
            }
        }
    }

    /// Whether the value of a key is to be added.
    #[inline(always)]
    fn takes_part(&self, chunk: Chunk, key: usize) -> bool {
        let sees = |row: usize| {
            let lane = key % G * Self::ROW_LANES + row;
            // SAFETY: there is a word for each step of the block.
            unsafe { *self.1.visible.add(key / G) >> lane & 1 == 1 }
        };
        (chunk.from..chunk.to).contains(&key) && chunk.row.is_none_or(sees)
    }

    /// Interleaves values, each in a tile of its own.
    #[inline(always)]
    fn store(&self, to: *mut f32, vectors: [F32; 4]) {
        let interleaved = P::interleave(self.0, vectors);
        for i in 0..P::GROUP {
            // SAFETY: the panel has a tile for each vector.
            unsafe { self.0.store(to.wrapping_add(i * TILE), interleaved[i]) };
        }
    }

    /// Adds the sums of the block to those of all blocks, times alpha.
    #[inline(always)]
    fn total(&self) {
        let (s, args) = (self.0, &self.1);
        let units = args.d_v.div_ceil(2 * L);
        for r in 0..R {
            // SAFETY: there are factors for each row, and sums for each whole unit.
            unsafe {
                let alpha = s.splat(if args.alpha.is_null() { 1.0 } else { *args.alpha.add(r) });
                let quantum = s.splat(*args.quanta.add(r));
                for column in (0..args.d_v).step_by(P::COLUMNS) {
                    let mut totals = [s.zero(); 4];
                    for tile in 0..P::GROUP {
                        let sums = args.block_sums.add((column / ROWS + tile) * Self::SUMS_LEN + r * ROWS);
                        let low = sums.add((P::PARTS - 1) * Self::ROW_LANES * ROWS);
                        totals[tile] = s.mul(P::join(s, [s.load(sums), s.load(low)]), quantum);
                    }
                    totals = P::in_order(s, totals);
                    for tile in 0..P::GROUP {
                        let (unit, half) = (column / (2 * L) + tile / 2, tile % 2);
                        if unit < units {
                            let sums = args.sums.add(((unit * R + r) * 2 + half) * L);
                            s.store(sums, s.mul_add(s.load(sums), alpha, totals[tile]));
                        }
                    }
                }
            }
        }
    }
}
