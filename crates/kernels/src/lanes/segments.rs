//! Which key ranges of a block concern which lanes of a sub-tile.

use crate::mask::Band;

/// A range of keys of one block that concerns the same vectors of lanes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// First key, relative to the block.
    pub(crate) key: usize,
    /// Number of keys.
    pub(crate) keys: usize,
    /// First vector of lanes.
    pub(crate) group: usize,
    /// Number of vectors of lanes.
    pub(crate) groups: usize,
    /// Whether some lane of these vectors does not see some key of the range.
    pub(crate) masked: bool,
}

impl Segment {
    /// How many segments at the start of `list` (this is the first) continue each other for the same vectors of lanes.
    pub(crate) fn run_of_same_groups(&self, list: &[Self]) -> usize {
        let mut end = self.key;
        let joined = list.iter().take_while(|next| {
            let continues = (next.key, next.group, next.groups) == (end, self.group, self.groups);
            end = next.key + next.keys;
            continues
        });
        joined.count()
    }
}

/// The most vectors of lanes that a sub-tile may have.
pub(crate) const MAX_GROUPS: usize = 8;

/// The segments of one block, in ascending order of keys.
#[derive(Debug)]
pub(crate) struct Segments {
    list: [Segment; 4 * MAX_GROUPS],
    len: usize,
}

/// The rows of one sub-tile: `rows` rows from `first` on, `lanes` of them in each vector.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows {
    pub(crate) first: usize,
    pub(crate) rows: usize,
    pub(crate) lanes: usize,
}

impl Segments {
    /// Cuts the keys `block..block + len` of `keys` by what the rows see of them.
    ///
    /// Ends are rounded outward to multiples of `granule` from the start of the block, which keeps register tiles whole
    /// and the order of summation independent of where a row falls in a sub-tile; what is too much is masked.
    /// `tensor` says that a mask tensor may hide any pair.
    ///
    /// N.B. Computing all vectors of lanes for every key, with one contiguous range per block, is half the code. It costs
    /// 0.5 % at 512 x 512 causal with d 128, and 2.5 % with d 64.
    pub(crate) fn new(
        band: Band,
        tensor: bool,
        rows: Rows,
        block: usize,
        len: usize,
        keys: usize,
        granule: usize,
    ) -> Self {
        let mut all = Self { list: [Segment::default(); 4 * MAX_GROUPS], len: 0 };
        let groups = rows.rows.div_ceil(rows.lanes);
        if band == Band::FULL {
            if len > 0 {
                all.push(Segment { key: 0, keys: len, group: 0, groups, masked: tensor });
            }
            return all;
        }
        // Per group: the keys that any of its rows sees (rounded outward) and those that all of them see (inward).
        let mut some = [(0, 0); MAX_GROUPS];
        let mut every = [(0, 0); MAX_GROUPS];
        let mut cuts = [0; 4 * MAX_GROUPS];
        let within = |key: usize| key.clamp(block, block + len) - block;
        for group in 0..groups {
            let first = rows.first + group * rows.lanes;
            let last = rows.first + (group * rows.lanes + rows.lanes).min(rows.rows) - 1;
            let (top, bottom) = (band.visible(first, keys), band.visible(last, keys));
            let (start, end) = (within(top.start), within(bottom.end));
            some[group] =
                if start < end { (start / granule * granule, end.next_multiple_of(granule).min(len)) } else { (0, 0) };
            let (start, end) = (within(bottom.start).next_multiple_of(granule), within(top.end));
            let end = if end == len { len } else { end / granule * granule };
            every[group] = if start < end { (start, end) } else { (0, 0) };
            cuts[4 * group..][..4].copy_from_slice(&[some[group].0, some[group].1, every[group].0, every[group].1]);
        }
        let cuts = &mut cuts[..4 * groups];
        cuts.sort_unstable();
        for pair in cuts.windows(2) {
            let (from, to) = (pair[0], pair[1]);
            if from == to {
                continue;
            }
            let seen = |range: &(usize, usize)| range.0 <= from && to <= range.1;
            let Some(group) = some[..groups].iter().position(seen) else { continue };
            let count = some[group..groups].iter().take_while(|range| seen(range)).count();
            let masked = tensor || !every[group..group + count].iter().all(seen);
            all.push(Segment { key: from, keys: to - from, group, groups: count, masked });
        }
        all
    }

    /// The first vector of lanes that some segment concerns, and one past the last.
    pub(crate) fn groups(&self) -> (usize, usize) {
        let segments = self.as_slice().iter();
        segments.fold((usize::MAX, 0), |(start, end), s| (start.min(s.group), end.max(s.group + s.groups)))
    }

    fn push(&mut self, next: Segment) {
        if let Some(last) = self.list[..self.len].last_mut()
            && last.key + last.keys == next.key
            && (last.group, last.groups, last.masked) == (next.group, next.groups, next.masked)
        {
            last.keys += next.keys;
            return;
        }
        self.list[self.len] = next;
        self.len += 1;
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [Segment] {
        &mut self.list[..self.len]
    }

    pub(crate) fn as_slice(&self) -> &[Segment] {
        &self.list[..self.len]
    }
}

/// The lanes of a sub-tile that see `key` through `band`, one bit each.
#[inline(always)]
pub(crate) fn lanes_of(band: Band, key: usize, rows: Rows) -> u64 {
    let seen = band.rows_of(key, rows.first, rows.rows);
    below(seen.end) & !below(seen.start)
}

/// The lowest `n <= 64` bits.
#[inline(always)]
fn below(n: usize) -> u64 {
    if n >= 64 { u64::MAX } else { (1 << n) - 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every visible pair lies in exactly one segment; what a segment calls unmasked is visible.
    #[test]
    fn segments_cover_the_band() {
        let ends = [None, Some(-40), Some(-9), Some(-1), Some(0), Some(1), Some(5), Some(17), Some(60)];
        for lower in ends {
            for upper in ends {
                let band = Band { lower, upper };
                for (first, rows, lanes) in [(0, 32, 16), (32, 20, 16), (5, 3, 4), (48, 24, 8), (0, 1, 16)] {
                    let rows = Rows { first, rows, lanes };
                    for (block, len, keys) in [(0, 48, 100), (48, 48, 100), (96, 4, 100), (0, 7, 7)] {
                        check(band, rows, block, len, keys);
                    }
                }
            }
        }
    }

    fn check(band: Band, rows: Rows, block: usize, len: usize, keys: usize) {
        let segments = Segments::new(band, false, rows, block, len, keys, 8);
        for lane in 0..rows.rows {
            let seen = band.visible(rows.first + lane, keys);
            for key in 0..len {
                let holders = segments
                    .as_slice()
                    .iter()
                    .filter(|s| (s.key..s.key + s.keys).contains(&key))
                    .filter(|s| (s.group..s.group + s.groups).contains(&(lane / rows.lanes)));
                let visible = seen.contains(&(block + key));
                let mut count = 0;
                for segment in holders {
                    count += 1;
                    assert!(visible || segment.masked, "{band:?} {rows:?} block {block} lane {lane} key {key}");
                }
                assert!(count == 1 || (count == 0 && !visible), "{band:?} {rows:?} lane {lane} key {key}");
                let bit = lanes_of(band, block + key, rows) >> lane & 1 == 1;
                assert_eq!(bit, visible);
            }
        }
    }
}
