//! Which keys of a block concern a sub-tile, and which of them a mask cuts.

use crate::mask::Band;

/// A range of keys of one block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// First key, relative to the block.
    pub(crate) key: usize,
    /// Number of keys.
    pub(crate) keys: usize,
    /// Whether some row of the sub-tile does not see some key of the range.
    pub(crate) masked: bool,
}

/// The segments of one block: one contiguous range of keys, cut into a masked, an unmasked and a masked part.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segments {
    list: [Segment; 3],
    len: usize,
}

/// The rows of one sub-tile: `rows` rows from `first` on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows {
    pub(crate) first: usize,
    pub(crate) rows: usize,
}

impl Segments {
    /// The part of the keys `block..block + len` of `keys` that the rows see.
    ///
    /// Ends are rounded outward to multiples of `granule` from the start of the block, which keeps register tiles whole
    /// and the order of summation independent of where a row falls in a sub-tile; what is too much is masked.
    /// `tensor` says that a mask tensor may hide any pair.
    pub(crate) fn new(
        band: Band,
        tensor: bool,
        rows: Rows,
        block: usize,
        len: usize,
        keys: usize,
        granule: usize,
    ) -> Self {
        let within = |key: usize| key.clamp(block, block + len) - block;
        let top = band.visible(rows.first, keys);
        let bottom = band.visible(rows.first + rows.rows - 1, keys);
        let mut all = Self { list: [Segment::default(); 3], len: 0 };
        let (start, end) = (within(top.start), within(bottom.end));
        if start >= end {
            return all;
        }
        let (start, end) = (start / granule * granule, end.next_multiple_of(granule).min(len));
        // What every row sees, rounded inward.
        let (mut from, mut to) = (within(bottom.start).next_multiple_of(granule), within(top.end));
        if to != len {
            to = to / granule * granule;
        }
        if tensor || from >= to {
            (from, to) = (end, end);
        }
        all.push(start, from, true);
        all.push(from, to, false);
        all.push(to, end, true);
        all
    }

    fn push(&mut self, from: usize, to: usize, masked: bool) {
        if from < to {
            self.list[self.len] = Segment { key: from, keys: to - from, masked };
            self.len += 1;
        }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [Segment] {
        &mut self.list[..self.len]
    }

    pub(crate) fn as_slice(&self) -> &[Segment] {
        &self.list[..self.len]
    }

    pub(crate) fn masked(&self) -> bool {
        self.as_slice().iter().any(|segment| segment.masked)
    }

    /// All segments as one range of keys: its start and its length.
    pub(crate) fn whole(&self) -> (usize, usize) {
        (self.list[0].key, self.as_slice().iter().map(|segment| segment.keys).sum())
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
                for (first, rows) in [(0, 32), (32, 20), (5, 3), (48, 24), (0, 1)] {
                    let rows = Rows { first, rows };
                    for (block, len, keys) in [(0, 48, 100), (48, 48, 100), (96, 4, 100), (0, 7, 7)] {
                        check(band, rows, block, len, keys);
                    }
                }
            }
        }
    }

    fn check(band: Band, rows: Rows, block: usize, len: usize, keys: usize) {
        let segments = Segments::new(band, false, rows, block, len, keys, 8);
        let contiguous = |pair: &[Segment]| pair[0].key + pair[0].keys == pair[1].key;
        assert!(segments.as_slice().windows(2).all(contiguous), "{segments:?}");
        for lane in 0..rows.rows {
            let seen = band.visible(rows.first + lane, keys);
            for key in 0..len {
                let holder = segments.as_slice().iter().find(|s| (s.key..s.key + s.keys).contains(&key));
                let visible = seen.contains(&(block + key));
                assert!(
                    holder.map_or(!visible, |segment| visible || segment.masked),
                    "{band:?} {rows:?} block {block} lane {lane} key {key}"
                );
                let bit = lanes_of(band, block + key, rows) >> lane & 1 == 1;
                assert_eq!(bit, visible);
            }
        }
    }
}
