//! The rows of hard attention: values of the keys that were selected.

use regard_simd::{Element, Op, Simd, bf16, f16};

use super::segments::Segment;
use super::streams::Streams;
use super::{Lanes, Subtile};
use crate::source::{Narrow, Run, Source, Target};
use crate::table::KEY_BLOCKS;
use crate::tensor::Dtype;
use crate::weighting::slot;

impl<const G: usize, const R: usize, const R1: usize, const PAIRS: bool, const TILES: bool>
    Lanes<'_, G, R, R1, PAIRS, TILES>
{
    /// Rows of hard attention: the row of V of each lane's key.
    ///
    /// # Safety
    /// The state of the sub-tile is that of [`crate::weighting::Hard`].
    pub(super) unsafe fn copy_rows<S: Simd>(&self, s: S, tile: Subtile) {
        let head = self.head;
        let lanes = G * S::LANES;
        let target = self.target();
        let first = tile.rows.first - head.first_row;
        for lane in 0..tile.rows.rows {
            let to = target.row(head.place(first + lane));
            // SAFETY: the caller's contract; the key was found among the keys of the sequence.
            unsafe {
                let key = (*tile.state.add(slot::KEY * lanes + lane)).to_bits();
                let nan = *tile.state.add(slot::NAN * lanes + lane) != 0.0;
                // In a partial result the state says it.
                if nan && head.partial.is_none() {
                    fill_nan(to, head.d_v);
                } else if key == slot::NO_KEY {
                    to.data.write_bytes(0, head.d_v * to.dtype.bytes());
                } else {
                    s.vectorize(CopyRow { source: &head.v, row: key as usize, columns: head.d_v, to });
                }
            }
        }
    }

    /// Replaces the rows of lanes that have ties by the mean (in a partial result, the sum) of the tied rows of V: a
    /// second pass over the scores, which come out bit-identical.
    ///
    /// # Safety
    /// The state of the sub-tile is that of [`crate::weighting::AverageHard`].
    #[inline(always)]
    pub(super) unsafe fn average_ties<S: Simd>(&self, s: S, tile: Subtile) {
        let head = self.head;
        let lanes = G * S::LANES;
        // There is no value product that would need its outputs.
        let sums = tile.outputs;
        let mut tied = 0_u64;
        // SAFETY: the caller's contract, and the outputs have room for a row of each lane.
        unsafe {
            for lane in 0..tile.rows.rows {
                let count = *tile.state.add(slot::COUNT * lanes + lane);
                let nan = *tile.state.add(slot::NAN * lanes + lane) != 0.0;
                if count > 1.0 && !nan {
                    tied |= 1 << lane;
                    sums.add(lane * head.d_v).write_bytes(0, head.d_v);
                }
            }
            if tied == 0 {
                return;
            }
            let (scores, _, _, _) = self.block_arrays();
            let mut place = self.first_place();
            while let Some(at) = place.filter(|place| self.concerns(tile, *place)) {
                if let Some(keys) = self.wanted(tile, self.load_keys(s, at))
                    && let Some(segments) = self.scores(s, tile, keys, Streams::NONE)
                {
                    s.vectorize(AddTies {
                        source: &head.v,
                        segments: segments.as_slice(),
                        first_key: keys.first,
                        scores,
                        lanes,
                        state: tile.state,
                        tied,
                        sums,
                        columns: head.d_v,
                    });
                }
                place = self.next_place(at);
            }
            let target = self.target();
            let first = tile.rows.first - head.first_row;
            for lane in 0..tile.rows.rows {
                if tied >> lane & 1 == 1 {
                    let count = *tile.state.add(slot::COUNT * lanes + lane);
                    let factor = if head.partial.is_some() { 1.0 } else { 1.0 / count };
                    let from = sums.add(lane * head.d_v);
                    s.vectorize(Narrow { from, factor, columns: head.d_v, to: target.row(head.place(first + lane)) });
                }
            }
        }
    }
}

/// # Safety
/// The row has `columns` elements.
unsafe fn fill_nan(to: Target, columns: usize) {
    for c in 0..columns {
        // SAFETY: the caller's contract.
        unsafe {
            match to.dtype {
                Dtype::F32 => *to.data.cast::<f32>().add(c) = f32::NAN,
                Dtype::F16 => *to.data.cast::<f16>().add(c) = f16::NAN,
                Dtype::Bf16 => *to.data.cast::<bf16>().add(c) = bf16::NAN,
                Dtype::Int8 => unreachable!("no output is quantised"),
            }
        }
    }
}

/// `len <= LANES` elements of the first row of a run from column `c` on, as f32, its scale applied.
///
/// # Safety
/// The elements exist.
#[inline(always)]
unsafe fn columns<S: Simd>(s: S, dtype: Dtype, row: Run, c: usize, len: usize) -> S::F32 {
    // SAFETY: the caller's contract.
    unsafe {
        match dtype {
            Dtype::F32 => s.load_first(row.data.cast::<f32>().add(c), len),
            Dtype::F16 => f16::load_first(s, row.data.cast::<f16>().add(c), len),
            Dtype::Bf16 => bf16::load_first(s, row.data.cast::<bf16>().add(c), len),
            Dtype::Int8 => s.mul(i8::load_first(s, row.data.cast::<i8>().add(c), len), s.splat(*row.scales)),
        }
    }
}

/// Writes a row of a source to a target: all bits as they are where the element types are the same.
struct CopyRow<'a> {
    source: &'a Source<'a>,
    row: usize,
    columns: usize,
    to: Target,
}

impl Op for CopyRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let dtype = self.source.dtype;
        let row = self.source.run(self.row);
        // SAFETY: both rows have the columns (contract of the struct, made by `Lanes`).
        unsafe {
            if dtype == self.to.dtype {
                self.to.data.copy_from_nonoverlapping(row.data, self.columns * dtype.bytes());
                return;
            }
            for c in (0..self.columns).step_by(S::LANES) {
                let len = (self.columns - c).min(S::LANES);
                let values = columns(s, dtype, row, c, len);
                match self.to.dtype {
                    Dtype::F32 => s.store_first(self.to.data.cast::<f32>().add(c), values, len),
                    Dtype::F16 => s.store_first_f16(self.to.data.cast::<f16>().add(c), values, len),
                    Dtype::Bf16 => s.store_first_bf16(self.to.data.cast::<bf16>().add(c), values, len),
                    Dtype::Int8 => unreachable!("no output is quantised"),
                }
            }
        }
    }
}

/// For each row that has ties: adds the sum of the rows of V whose score in this block is the row's largest to its
/// sums.
struct AddTies<'a> {
    /// V
    source: &'a Source<'a>,
    segments: &'a [Segment],
    /// First key of the block.
    first_key: usize,
    /// `[key][lanes]` of the block
    scores: *const f32,
    lanes: usize,
    /// `[STATE][lanes]`
    state: *const f32,
    /// One bit for each lane that has ties.
    tied: u64,
    /// `[lane][columns]`
    sums: *mut f32,
    columns: usize,
}

/// One bit for each key of a block.
type Keys = [u64; *KEY_BLOCKS.end() / 64];

impl AddTies<'_> {
    /// The keys of the block whose score is the largest of the lane's row, in bits; none if there are none.
    ///
    /// # Safety
    /// The pointers are as the fields say.
    unsafe fn hits(&self, lane: usize) -> Option<Keys> {
        let mut hits: Keys = [0; _];
        let mut any = false;
        for segment in self.segments {
            for key in segment.key..segment.key + segment.keys {
                // SAFETY: key and lane are of the block.
                let hit = unsafe {
                    *self.scores.add(key * self.lanes + lane) == *self.state.add(slot::MAX * self.lanes + lane)
                };
                hits[key / 64] |= u64::from(hit) << (key % 64);
                any |= hit;
            }
        }
        any.then_some(hits)
    }
}

impl Op for AddTies<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let dtype = self.source.dtype;
        for lane in (0..self.lanes).filter(|lane| self.tied >> lane & 1 == 1) {
            // SAFETY: the fields are as they say; each lane with a tie is a row of the call, and keys are of the block.
            unsafe {
                let Some(hits) = self.hits(lane) else { continue };
                let sums = self.sums.add(lane * self.columns);
                for c in (0..self.columns).step_by(S::LANES) {
                    let len = (self.columns - c).min(S::LANES);
                    let mut sum = s.zero();
                    for (word, bits) in hits.iter().enumerate() {
                        let mut bits = *bits;
                        while bits != 0 {
                            let key = self.first_key + 64 * word + bits.trailing_zeros() as usize;
                            bits &= bits - 1;
                            sum = s.add(sum, columns(s, dtype, self.source.run(key), c, len));
                        }
                    }
                    s.store_first(sums.add(c), s.add(s.load_first(sums.add(c), len), sum), len);
                }
            }
        }
    }
}
