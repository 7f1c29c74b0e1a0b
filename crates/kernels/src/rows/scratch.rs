//! The memory that one call of a rows kernel works in.

use super::args::MOST_ROWS;

/// How much of what a call needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Lanes of a vector.
    pub(crate) lanes: usize,
    /// The most rows of a group.
    pub(crate) group: usize,
    /// The most rows of a call.
    pub(crate) rows: usize,
    pub(crate) key_block: usize,
    pub(crate) d: usize,
    pub(crate) d_v: usize,
    /// f32 of state per row.
    pub(crate) state: usize,
    /// Whether keys have scales.
    pub(crate) scaled: bool,
    /// Whether runs of keys may have to be put together.
    pub(crate) paged: bool,
    /// Bytes of an element of values that the first group keeps for the others; 0 for none.
    pub(crate) kept_bytes: usize,
}

/// f32 of a cache line: every array starts at one.
const LINE: usize = 16;

/// f32 of the packed queries of a group, in any form: whole units of four vectors, and of two rows at least.
pub(crate) fn query_len(rows: usize, d: usize, lanes: usize) -> usize {
    d.checked_next_multiple_of(4 * lanes).unwrap_or(usize::MAX).saturating_mul(rows.max(2))
}

/// Offsets of the arrays of group 0, in f32; those of other groups are `group` further on each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// `[unit][row][2 * lanes]`
    pub(crate) queries: usize,
    /// `[unit][row][2 * lanes]`
    pub(crate) sums: usize,
    /// As the form likes: whole units of four vectors, of two parts for a power of two of rows.
    pub(crate) block_sums: usize,
    /// `[side][step][lanes]`
    pub(crate) scores: usize,
    /// `[step]` u64
    pub(crate) visible: usize,
    /// `[state][lanes]`
    pub(crate) state: usize,
    /// `[lanes]` each
    pub(crate) gain: usize,
    pub(crate) shift: usize,
    pub(crate) max: usize,
    pub(crate) alpha: usize,
    pub(crate) query_quanta: usize,
    pub(crate) weight_quanta: usize,
    /// f32 from the scores of one side to those of the other.
    pub(crate) side: usize,
    /// f32 from a group to the next.
    pub(crate) group: usize,
    /// `[step][lanes]` each, and a vector; the same for all groups. Empty without scales.
    pub(crate) k_scales: usize,
    pub(crate) v_scales: usize,
    /// `[key_block]` rows of K and of V; empty unless paged.
    pub(crate) keys: usize,
    pub(crate) values: usize,
    /// Values of a block as tiles take them, 64 bytes of columns of 64 bytes of keys at a time; empty for one group.
    pub(crate) kept: usize,
    /// The end, in f32; `usize::MAX` if it is more than can be counted, which no workspace has room for.
    pub(crate) len: usize,
}

impl Layout {
    pub(crate) fn new(sizes: Sizes) -> Self {
        let Sizes { lanes, group, rows, key_block, d, d_v, state, scaled, paged, kept_bytes } = sizes;
        let rows = rows.clamp(1, MOST_ROWS);
        let group_rows = group.min(rows);
        let mut end = 0_usize;
        let mut take = |sizes: [usize; 3]| {
            let start = end;
            let len = sizes.into_iter().fold(1, usize::saturating_mul);
            end = end.saturating_add(len.checked_next_multiple_of(LINE).unwrap_or(usize::MAX));
            start
        };
        let unit = 2 * lanes;
        let padded = |columns: usize| columns.checked_next_multiple_of(unit).unwrap_or(usize::MAX);
        // A step has at least one key.
        let steps = key_block;
        // A vector more, which weights in pairs are read from; and no power of two apart.
        let side = steps.saturating_mul(lanes).saturating_add(LINE);
        let mut layout = Self {
            queries: take([1, 1, query_len(group_rows, d, lanes)]),
            sums: take([1, group_rows, padded(d_v)]),
            block_sums: take([2, group_rows.next_power_of_two(), padded(padded(d_v).saturating_add(unit))]),
            scores: take([1, 2, side]),
            visible: take([1, 2, steps]),
            state: take([1, state, lanes]),
            gain: take([1, 1, lanes]),
            shift: take([1, 1, lanes]),
            max: take([1, 1, lanes]),
            alpha: take([1, 1, lanes]),
            query_quanta: take([1, 1, lanes]),
            weight_quanta: take([1, 1, lanes]),
            side,
            group: 0,
            k_scales: 0,
            v_scales: 0,
            keys: 0,
            values: 0,
            kept: 0,
            len: 0,
        };
        let groups = rows.div_ceil(group_rows);
        layout.group = take([0, 0, 0]);
        take([1, groups - 1, layout.group]);
        let scales = if scaled { (steps + 1).saturating_mul(lanes) } else { 0 };
        layout.k_scales = take([1, 1, scales]);
        layout.v_scales = take([1, 1, scales]);
        let gathered = if paged { key_block } else { 0 };
        layout.keys = take([1, gathered, d]);
        layout.values = take([1, gathered, d_v]);
        let whole = |n: usize| n.checked_next_multiple_of(64).unwrap_or(usize::MAX);
        let kept_bytes = if groups > 1 { kept_bytes } else { 0 };
        layout.kept = take([whole(key_block), whole(d_v) / size_of::<f32>(), kept_bytes]);
        layout.len = take([0, 0, 0]);
        layout
    }
}
