//! The score product: 16 keys against all rows.

use std::marker::PhantomData;

use regard_simd::{Avx512Amx, Element, Op, Simd, hide};

use super::register::{KEYS, QUERIES, SCORES};
use super::{Buffer, ROW_BYTES, ROWS, TILE, Tiled};
use crate::rows::scores::ScoreArgs;

/// What [`crate::rows::scores::Scores`] does. One score is a chain of products of 64 bytes of columns each; keys that are left over
/// take part in tiles like all others, with zeros for those that are missing, so that the place of a key does not matter.
///
/// With each tile, as many lines are asked for as it has; bytes also into the first-level cache, 16 keys ahead. Eight rows of them gain
/// 4 to 5 % from memory by that, and 16 a tenth, and lose up to 3 % in the second-level cache; bf16 gains nothing, and loses 7 % there.
pub(super) struct TileScores<P: Tiled, const G: usize, const L: usize>(
    pub(super) Avx512Amx,
    pub(super) ScoreArgs<P::Element>,
    pub(super) PhantomData<P>,
);

impl<P: Tiled, const G: usize, const L: usize> Op for TileScores<P, G, L> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for key in (0..self.1.keys).step_by(ROWS) {
            self.tile(key);
        }
    }
}

impl<P: Tiled, const G: usize, const L: usize> TileScores<P, G, L> {
    const ROW_LANES: usize = L / G;

    /// Up to 16 keys from `key` on.
    #[inline(always)]
    fn tile(&self, key: usize) {
        const { assert!(L == ROWS && L.is_multiple_of(G) && P::PARTS <= 2) };
        let (s, args) = (self.0, &self.1);
        let lanes = Self::ROW_LANES;
        let stride = args.k_stride * size_of::<P::Element>();
        let keys = (args.keys - key).min(ROWS);
        // SAFETY: keys `key..key + keys` exist and have `d` elements, `q` has all columns, and `scores` has room for 16 keys, as
        // blocks have a multiple of them. The rows kernel holds the registers.
        unsafe {
            let k = args.k.add(key * args.k_stride);
            let mut q = args.q;
            let lines = (args.d / P::COLUMNS).max(1);
            let mut ahead = Lines::new(k.wrapping_add(args.ahead), args.k_stride, lines);
            let mut near = Lines::new(k.wrapping_add(ROWS * args.k_stride), args.k_stride, lines);
            s.tile_zero::<{ SCORES[0] }>();
            if P::PARTS == 2 {
                s.tile_zero::<{ SCORES[1] }>();
            }
            for c in (0..args.d).step_by(P::COLUMNS) {
                let k = k.add(c);
                let columns = (args.d - c).min(P::COLUMNS);
                if keys == ROWS && columns == P::COLUMNS {
                    for _ in 0..if args.ahead == 0 { 0 } else { ROWS } {
                        s.prefetch_far(ahead.take().cast());
                        if P::GROUP == 4 {
                            s.prefetch(near.take().cast());
                        }
                    }
                    s.tile_load::<KEYS>(k.cast(), stride);
                } else {
                    let mut rest = Buffer([0.0; TILE]);
                    for i in 0..keys {
                        let to = rest.0.as_mut_ptr().cast::<u8>().add(i * ROW_BYTES);
                        k.add(i * args.k_stride).copy_to_nonoverlapping(to.cast(), columns);
                    }
                    s.tile_load::<KEYS>(rest.0.as_ptr().cast(), ROW_BYTES);
                }
                s.tile_load::<QUERIES>(q.cast(), 4 * lanes);
                P::dot::<{ SCORES[0] }, KEYS, QUERIES>(s);
                q = q.add(ROWS * lanes);
                if P::PARTS == 2 {
                    s.tile_load::<QUERIES>(q.cast(), 4 * lanes);
                    P::dot::<{ SCORES[1] }, KEYS, QUERIES>(s);
                    q = q.add(ROWS * lanes);
                }
            }
            let scores = args.scores.add(key * lanes);
            s.tile_store::<{ SCORES[0] }>(scores.cast(), 4 * lanes);
            if P::PARTS == 2 {
                let mut low = Buffer([0.0; TILE]);
                s.tile_store::<{ SCORES[1] }>(low.0.as_mut_ptr().cast(), 4 * lanes);
                let quanta = s.load(args.quanta);
                for step in 0..ROWS / G {
                    let scores = scores.add(step * L);
                    let sums = P::join(s, [s.load(scores), s.load(low.0.as_ptr().add(step * L))]);
                    s.store(scores, s.mul(sums, quanta));
                }
            }
        }
    }
}

/// Whole lines of rows to ask for, in the order in which they lie in memory: row after row. A Xeon reads rows of 256 bytes at 3.9 ns
/// per line so, and at 4.2 if it is asked for a line of each of 16 rows, then for the next one of each, as tiles are loaded; eight rows
/// of bf16 gain 5 %. Values gain nothing (bf16 loses 5 %).
struct Lines<E> {
    /// The next line.
    at: *const E,
    /// Lines of a row, and those of the row at hand that are left.
    of_row: usize,
    left: usize,
    /// Elements from the end of a row's last line to the next row.
    skip: usize,
}

impl<E: Element> Lines<E> {
    /// Rows from `at` on, `stride` apart, of at least one line.
    #[inline(always)]
    fn new(at: *const E, stride: usize, lines: usize) -> Self {
        Self { at, of_row: lines, left: lines, skip: hide(stride.wrapping_sub(lines * E::PER_LINE)) }
    }

    /// The next line.
    #[inline(always)]
    fn take(&mut self) -> *const E {
        let line = self.at;
        self.at = self.at.wrapping_add(E::PER_LINE);
        self.left -= 1;
        if self.left == 0 {
            self.left = self.of_row;
            self.at = self.at.wrapping_add(self.skip);
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::Lines;

    #[test]
    fn lines_come_as_they_lie() {
        let rows = [0_i8; 3 * 160];
        let mut lines = Lines::new(rows.as_ptr(), 160, 2);
        let places = [(); 6].map(|()| lines.take().addr() - rows.as_ptr().addr());
        assert_eq!(places, [0, 64, 160, 224, 320, 384]);
    }
}
