//! The memory that one call of a lanes kernel works in.

/// How much of what a call needs, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Lanes of a sub-tile.
    pub(crate) lanes: usize,
    /// Sub-tiles of a query block.
    pub(crate) subtiles: usize,
    pub(crate) key_block: usize,
    pub(crate) d: usize,
    pub(crate) d_v: usize,
    /// f32 of state per row.
    pub(crate) state: usize,
    /// Whether K and V may have to be brought to scratch block by block.
    pub(crate) copy: bool,
    /// Parts that numbers are multiplied in, as pairs of bf16; 0 if they are multiplied as they are.
    pub(crate) parts: usize,
    /// Blocks of the index of the keys; 0 without one.
    pub(crate) index_blocks: usize,
}

/// f32 of a cache line: every array starts at one.
const LINE: usize = 16;

/// Offsets of the arrays, in f32 from the start of the scratch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// `[subtile][d][lanes]`, or as many pairs of each part
    pub(crate) queries: usize,
    /// `[subtile][d_v][lanes]`
    pub(crate) outputs: usize,
    /// `[key_block][lanes]`
    pub(crate) scores: usize,
    /// `[part][pair of keys][lanes]`, and f32 from a part to the next; empty without parts.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only tile registers need it"))]
    pub(crate) weights: usize,
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only tile registers need it"))]
    pub(crate) weight_part: usize,
    /// `[subtile][state][lanes]`
    pub(crate) state: usize,
    /// `[subtile][lanes]` each
    pub(crate) gain: usize,
    pub(crate) shift: usize,
    pub(crate) out_factor: usize,
    /// `[subtile]` u64
    pub(crate) touched: usize,
    /// `[subtile]` u64: the lanes whose results are NaN; empty without parts.
    pub(crate) nan: usize,
    /// `[lanes]` each
    pub(crate) max: usize,
    pub(crate) alpha: usize,
    /// `[key_block]` u64
    pub(crate) visible: usize,
    /// `[key_block][d]` and `[key_block][d_v]`, which pairs of bf16 fill in part; empty unless copied
    pub(crate) keys: usize,
    pub(crate) values: usize,
    /// One u64: what is known of the values at hand.
    pub(crate) finite: usize,
    /// `[index_blocks][lanes]`
    pub(crate) bounds: usize,
    /// `[subtile][index_blocks]` u64 each
    pub(crate) wanted: usize,
    pub(crate) left: usize,
    pub(crate) index_blocks: usize,
    /// The end, in f32; `usize::MAX` if it is more than can be counted, which no workspace has room for.
    pub(crate) len: usize,
}

impl Layout {
    pub(crate) fn new(sizes: Sizes) -> Self {
        let Sizes { lanes, subtiles, key_block, d, d_v, state, copy, parts, index_blocks } = sizes;
        let mut end = 0_usize;
        let mut take = |sizes: [usize; 3]| {
            let start = end;
            let len = sizes.into_iter().fold(1, usize::saturating_mul);
            end = end.saturating_add(len.checked_next_multiple_of(LINE).unwrap_or(usize::MAX));
            start
        };
        // Tiles of keys and columns are whole.
        let tiled = |n: usize| n.checked_next_multiple_of(2 * LINE).unwrap_or(usize::MAX);
        let copied = if copy || parts > 0 { key_block } else { 0 };
        // Pairs of all parts, which are an f32 for two elements.
        let in_parts = |n: usize| tiled(n).saturating_mul(parts.max(2)).div_ceil(2);
        // One more for rows that are gathered from all others.
        let subtiles = subtiles.saturating_add(usize::from(index_blocks > 0));
        Self {
            queries: take([subtiles, in_parts(d), lanes]),
            outputs: take([subtiles, d_v, lanes]),
            scores: take([1, tiled(key_block), lanes]),
            weights: take([parts, tiled(key_block).div_ceil(2), lanes]),
            weight_part: tiled(key_block).div_ceil(2).saturating_mul(lanes),
            state: take([subtiles, state, lanes]),
            gain: take([1, subtiles, lanes]),
            shift: take([1, subtiles, lanes]),
            out_factor: take([1, subtiles, lanes]),
            touched: take([1, 2, subtiles]),
            nan: take([usize::from(parts > 0), 2, subtiles]),
            max: take([1, 1, lanes]),
            alpha: take([1, 1, lanes]),
            visible: take([1, 2, key_block]),
            keys: take([1, tiled(copied), in_parts(d)]),
            values: take([1, tiled(copied), in_parts(d_v)]),
            finite: take([1, 1, 2]),
            bounds: take([1, index_blocks, lanes]),
            wanted: take([subtiles, index_blocks, 2]),
            left: take([subtiles, index_blocks, 2]),
            index_blocks,
            len: end,
        }
    }
}
