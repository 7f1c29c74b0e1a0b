//! The score product: 16 keys against all rows.

use std::marker::PhantomData;

use regard_simd::{Avx512Amx, Op, Simd, hide};

use super::register::{KEYS, QUERIES, SCORES};
use super::{Buffer, ROW_BYTES, ROWS, TILE, Tiled};
use crate::rows::scores::ScoreArgs;

/// What [`crate::rows::scores::Scores`] does. One score is a chain of products of 64 bytes of columns each; keys that are left over
/// take part in tiles like all others, with zeros for those that are missing, so that the place of a key does not matter.
///
/// A line of each key is asked for with its tile. Two rows of 256 bytes as one, of which eight pairs of lines are asked for at a time,
/// gain a tenth in a loop of nothing else, and nothing here.
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
            s.tile_zero::<{ SCORES[0] }>();
            if P::PARTS == 2 {
                s.tile_zero::<{ SCORES[1] }>();
            }
            for c in (0..args.d).step_by(P::COLUMNS) {
                let k = k.add(c);
                let columns = (args.d - c).min(P::COLUMNS);
                if keys == ROWS && columns == P::COLUMNS {
                    let mut line = k;
                    for _ in 0..ROWS {
                        s.prefetch_far(line.wrapping_add(args.ahead).cast());
                        line = line.wrapping_add(hide(args.k_stride));
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
