//! Which keys a query row may see.

use std::ops::Range;

/// The part of a mask that is known without reading a tensor: row `i` sees the keys `i + lower <= j < i + upper`.
///
/// Every combination of causal and past masks, strict or not, windows and alignments comes down to one band. Both ends
/// of a row's range grow with the row, which the kernels rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Band {
    /// First visible key relative to the row; unbounded if absent.
    pub lower: Option<i64>,
    /// One past the last visible key relative to the row; unbounded if absent.
    pub upper: Option<i64>,
}

impl Band {
    /// Every key is visible.
    pub const FULL: Self = Self { lower: None, upper: None };

    /// Both restrictions together.
    pub fn and(self, other: Self) -> Self {
        let lower = match (self.lower, other.lower) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        };
        let upper = match (self.upper, other.upper) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        Self { lower, upper }
    }

    /// The keys that `row` sees of `keys`: both ends are in `0..=keys`, and `start <= end`.
    pub fn visible(self, row: usize, keys: usize) -> Range<usize> {
        let end = self.upper.map_or(keys, |upper| clamp(row as i64, upper, keys));
        let start = self.lower.map_or(0, |lower| clamp(row as i64, lower, keys));
        start.min(end)..end
    }

    /// The rows of `first..first + rows` that see `key`, relative to `first`.
    pub(crate) fn rows_of(self, key: usize, first: usize, rows: usize) -> Range<usize> {
        // key < row + upper and key >= row + lower
        let start = self.upper.map_or(0, |upper| clamp(key as i64 - first as i64, 1_i64.saturating_sub(upper), rows));
        let end = self.lower.map_or(rows, |lower| clamp(key as i64 - first as i64, 1_i64.saturating_sub(lower), rows));
        start.min(end)..end
    }

    /// How many (row, key) pairs of `rows x keys` are visible.
    pub fn pairs(self, rows: usize, keys: usize) -> u128 {
        if self == Self::FULL {
            return rows as u128 * keys as u128;
        }
        (0..rows).map(|row| self.visible(row, keys).len() as u128).sum()
    }
}

/// `base + offset` within `0..=max`.
fn clamp(base: i64, offset: i64, max: usize) -> usize {
    base.saturating_add(offset).clamp(0, max as i64) as usize
}

/// A tensor of `rows x keys` elements with any strides, 0 for broadcast.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<T> {
    /// Element (0, 0).
    pub(crate) data: *const T,
    /// Elements from a row to the next.
    pub(crate) row_stride: usize,
    /// Elements from a key to the next.
    pub(crate) key_stride: usize,
}

impl<T: Copy> Matrix<T> {
    /// # Safety
    /// The matrix covers the element.
    #[inline(always)]
    pub(crate) unsafe fn get(&self, row: usize, key: usize) -> T {
        // SAFETY: the caller's contract.
        unsafe { *self.data.add(row * self.row_stride + key * self.key_stride) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_keys_agree() {
        let ends = [None, Some(i64::MIN), Some(-7), Some(-1), Some(0), Some(1), Some(4), Some(i64::MAX)];
        for lower in ends {
            for upper in ends {
                let band = Band { lower, upper };
                for (first, rows, keys) in [(0, 5, 6), (3, 4, 9), (0, 1, 1), (2, 3, 0)] {
                    let mut pairs = 0;
                    for row in first..first + rows {
                        let seen = band.visible(row, keys);
                        for key in 0..keys {
                            assert_eq!(
                                seen.contains(&key),
                                band.rows_of(key, first, rows).contains(&(row - first)),
                                "{band:?} row {row} key {key}"
                            );
                        }
                        pairs += seen.len() as u128;
                    }
                    if first == 0 {
                        assert_eq!(pairs, band.pairs(rows, keys));
                    }
                }
            }
        }
    }
}
