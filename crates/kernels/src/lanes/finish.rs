//! The end of a sub-tile: outputs back into rows, the rows of hard attention, and what to do about NaN.

use regard_simd::Simd;
use regard_simd::math::LOG2_E;

use super::careful::AddTies;
use super::pack::Unpack;
use super::scores::Streams;
use super::{Lanes, MASKED, Subtile, WRITTEN};
use crate::weighting::{FinishArgs, Kind, MAX_STATE, slot};

impl<const G: usize, const R: usize, const R1: usize> Lanes<'_, G, R, R1> {
    /// Computes a sub-tile again from its first key, with values kept away from lanes that do not see their key. Reads K and V
    /// where they lie: a copied block is still in use by the other sub-tiles.
    #[inline(never)]
    pub(super) fn carefully<S: Simd>(&self, s: S, tile: Subtile) {
        self.begin(s, tile);
        let mut block = self.first_block();
        while let Some(keys) = block {
            self.block(s, tile, keys, true, Streams::NONE);
            block = self.next_block(keys);
        }
        self.finish(s, tile);
    }

    /// Writes the output rows of a sub-tile, and their log-sum-exp. Gives false if they have NaN that may come from values
    /// behind a mask.
    #[inline(always)]
    pub(super) fn finish<S: Simd>(&self, s: S, tile: Subtile) -> bool {
        let head = self.head;
        let functions = head.weighting.functions;
        let lanes = G * S::LANES;
        let first = tile.rows.first - head.first_row;
        let (mut nan, mut masked) = (false, false);
        // SAFETY: the arrays are as the layout says, the functions are of this level (`launch` pairs them), and the rows
        // exist.
        unsafe {
            let out = head.out.add(first * head.out_stride);
            match functions.kind {
                Kind::OneRow => self.copy_rows::<S>(tile, out),
                Kind::TiedRows => {
                    self.copy_rows::<S>(tile, out);
                    self.average_ties(s, tile, out);
                }
                Kind::Weighted => {
                    if *tile.touched & WRITTEN == 0 {
                        tile.outputs.write_bytes(0, head.d_v * lanes);
                    }
                    masked = *tile.touched & MASKED != 0;
                    let (_, _, factor, _) = self.block_arrays();
                    let sink = head.sink.map_or(f32::NEG_INFINITY, |sink| (sink * LOG2_E).min(f32::MAX));
                    let args = FinishArgs { state: tile.state, gain: tile.gain, lanes, sink, factor };
                    (functions.finish)(head.weighting.data, &args);
                    for lane in 0..lanes {
                        *factor.add(lane) *= *tile.out_factor.add(lane);
                    }
                    let (out_stride, d_v, rows) = (head.out_stride, head.d_v, tile.rows.rows);
                    nan = s.vectorize(Unpack { turned: tile.outputs, factor, lanes, out, out_stride, rows, d_v });
                    if let Some(log_sum_exp) = functions.log_sum_exp.filter(|_| !head.lse.is_null()) {
                        for lane in 0..rows {
                            let mut state = [0.0; MAX_STATE];
                            for (slot, value) in state.iter_mut().enumerate().take(functions.state) {
                                *value = *tile.state.add(slot * lanes + lane);
                            }
                            *head.lse.add(first + lane) = log_sum_exp(&state, *tile.gain.add(lane), sink);
                        }
                    }
                }
            }
        }
        !nan || !masked
    }

    /// Output rows of hard attention: the row of V of each lane's key.
    ///
    /// # Safety
    /// The state of the sub-tile is that of [`crate::weighting::Hard`], and `out` is the output row of lane 0.
    unsafe fn copy_rows<S: Simd>(&self, tile: Subtile, out: *mut f32) {
        let head = self.head;
        let lanes = G * S::LANES;
        for lane in 0..tile.rows.rows {
            // SAFETY: the caller's contract; the key was found among the keys of the sequence.
            unsafe {
                let out = out.add(lane * head.out_stride);
                let key = (*tile.state.add(slot::KEY * lanes + lane)).to_bits();
                if *tile.state.add(slot::NAN * lanes + lane) != 0.0 {
                    (0..head.d_v).for_each(|c| *out.add(c) = f32::NAN);
                } else if key == slot::NO_KEY {
                    out.write_bytes(0, head.d_v);
                } else {
                    let v = head.v.add(key as usize * head.v_stride);
                    out.copy_from_nonoverlapping(v, head.d_v);
                }
            }
        }
    }

    /// Replaces the output rows of lanes that have ties by the mean of the tied rows of V: a second pass over the scores,
    /// which come out bit-identical.
    ///
    /// # Safety
    /// The state of the sub-tile is that of [`crate::weighting::AverageHard`], and `out` is the output row of lane 0.
    #[inline(always)]
    unsafe fn average_ties<S: Simd>(&self, s: S, tile: Subtile, out: *mut f32) {
        let head = self.head;
        let lanes = G * S::LANES;
        let mut tied = 0_u64;
        // SAFETY: the caller's contract.
        unsafe {
            for lane in 0..tile.rows.rows {
                let count = *tile.state.add(slot::COUNT * lanes + lane);
                let nan = *tile.state.add(slot::NAN * lanes + lane) != 0.0;
                if count > 1.0 && !nan {
                    tied |= 1 << lane;
                    out.add(lane * head.out_stride).write_bytes(0, head.d_v);
                }
            }
            if tied == 0 {
                return;
            }
            let (scores, _, _, _) = self.block_arrays();
            let mut block = self.first_block();
            while let Some(keys) = block {
                if let Some(segments) = self.scores(s, tile, keys, Streams::NONE) {
                    s.vectorize(AddTies {
                        head,
                        segments: segments.as_slice(),
                        first_key: keys.first,
                        scores,
                        lanes,
                        state: tile.state,
                        tied,
                        out,
                    });
                }
                block = self.next_block(keys);
            }
            for lane in (0..tile.rows.rows).filter(|lane| tied >> lane & 1 == 1) {
                let factor = 1.0 / *tile.state.add(slot::COUNT * lanes + lane);
                let out = out.add(lane * head.out_stride);
                (0..head.d_v).for_each(|c| *out.add(c) *= factor);
            }
        }
    }
}
