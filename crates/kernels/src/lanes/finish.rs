//! The end of a sub-tile: outputs back into rows, what is left to other keys, and what to do about NaN.

use regard_simd::{Element, Simd, bf16, f16};

use super::pack::Unpack;
use super::streams::Streams;
use super::{Lanes, MASKED, Subtile, WRITTEN};
use crate::rules::sink_log2;
use crate::source::{PartialRows, Target};
use crate::tensor::Dtype;
use crate::weighting::{FinishArgs, Kind, MAX_STATE};

impl<const G: usize, const R: usize, const R1: usize, const PAIRS: bool, const TILES: bool>
    Lanes<'_, G, R, R1, PAIRS, TILES>
{
    /// Writes the results of a sub-tile, after its last block. Where that takes another look at all of them, they are
    /// loaded again, in the place of the block at hand; the last one loaded is that block again, for the other
    /// sub-tiles.
    #[inline(always)]
    pub(super) fn finish<S: Simd>(&self, s: S, tile: Subtile) {
        if let Some(partial) = self.head.partial {
            // SAFETY: the rows exist.
            unsafe { self.write_states::<S>(tile, partial.row(tile.rows.first - self.head.first_row)) };
        }
        match self.head.weighting.functions.kind {
            Kind::Weighted => {
                if !self.write_weighted(s, tile) {
                    self.carefully(s, tile);
                }
            }
            // SAFETY: kinds promise the states that these ask for.
            Kind::OneRow => unsafe { self.copy_rows(s, tile) },
            // SAFETY: as above.
            Kind::TiedRows => unsafe {
                self.copy_rows(s, tile);
                self.average_ties(s, tile);
            },
        }
    }

    /// Computes a sub-tile again from its first key, with values kept away from lanes that do not see their key.
    #[inline(never)]
    fn carefully<S: Simd>(&self, s: S, tile: Subtile) {
        self.begin(s, tile);
        self.bound(s, tile);
        let mut place = self.first_place();
        while let Some(at) = place.filter(|place| self.concerns(tile, *place)) {
            if let Some(keys) = self.wanted(tile, self.load(s, at)) {
                self.block(s, tile, keys, true, Streams::NONE);
            }
            place = self.next_place(at);
        }
        self.write_weighted(s, tile);
    }

    /// Where the rows of the call go: results, or sums.
    pub(super) fn target(&self) -> Target {
        match self.head.partial {
            None => self.head.out,
            Some(PartialRows { sums, d_v, .. }) => {
                Target { dtype: Dtype::F32, data: sums.cast(), row_bytes: d_v * size_of::<f32>() }
            }
        }
    }

    /// The state of row `lane` of a sub-tile.
    ///
    /// # Safety
    /// `lane` is one of the sub-tile's lanes.
    unsafe fn state<S: Simd>(&self, tile: Subtile, lane: usize) -> [f32; MAX_STATE] {
        let mut state = [0.0; MAX_STATE];
        for (slot, value) in state.iter_mut().enumerate().take(self.head.weighting.functions.state) {
            // SAFETY: the caller's contract.
            *value = unsafe { *tile.state.add(slot * G * S::LANES + lane) };
        }
        state
    }

    /// # Safety
    /// `partial` has the rows of the sub-tile.
    unsafe fn write_states<S: Simd>(&self, tile: Subtile, partial: PartialRows) {
        for lane in 0..tile.rows.rows {
            // SAFETY: the caller's contract.
            unsafe { *partial.states.add(lane).cast() = self.state::<S>(tile, lane) };
        }
    }

    /// Writes the output rows of a sub-tile whose rows are sums of weighted values, and their log-sum-exp; or the sums
    /// as they are. Gives false if they have NaN that may come from values behind a mask.
    #[inline(always)]
    fn write_weighted<S: Simd>(&self, s: S, tile: Subtile) -> bool {
        let head = self.head;
        let functions = head.weighting.functions;
        let lanes = G * S::LANES;
        let first = tile.rows.first - head.first_row;
        // SAFETY: the arrays are as the layout says, the functions are of this level (`launch` pairs them), and the
        // rows exist.
        unsafe {
            if *tile.touched & WRITTEN == 0 {
                tile.outputs.write_bytes(0, head.d_v * lanes);
            }
            // No block is at hand any more.
            let (_, sinks, factor, _) = self.block_arrays();
            if head.partial.is_some() {
                for lane in 0..lanes {
                    *factor.add(lane) = 1.0;
                }
            } else {
                let sink = sink_log2(head.sink);
                for lane in 0..lanes {
                    *sinks.add(lane) = sink;
                }
                let args = FinishArgs { state: tile.state, gain: tile.gain, lanes, sink: sinks, factor };
                (functions.finish)(head.weighting.data, &args);
                for lane in 0..lanes {
                    *factor.add(lane) *= *tile.out_factor.add(lane);
                }
                if let Some(log_sum_exp) = functions.log_sum_exp.filter(|_| !head.lse.is_null()) {
                    for lane in 0..tile.rows.rows {
                        let state = self.state::<S>(tile, lane);
                        *head.lse.wrapping_add(head.place(first + lane)) =
                            log_sum_exp(&state, *tile.gain.add(lane), sink);
                    }
                }
            }
            let target = self.target();
            let nan = match target.dtype {
                Dtype::F32 => self.unpack::<S, f32>(s, tile, factor, target),
                Dtype::F16 => self.unpack::<S, f16>(s, tile, factor, target),
                Dtype::Bf16 => self.unpack::<S, bf16>(s, tile, factor, target),
                Dtype::Int8 => unreachable!("no output is quantised"),
            };
            if Self::PARTS {
                *tile.nan = if nan { self.lanes_of_nan(s, tile) } else { 0 };
            }
            !nan || *tile.touched & MASKED == 0
        }
    }

    /// One bit for each lane whose outputs have NaN.
    #[inline(never)]
    fn lanes_of_nan<S: Simd>(&self, s: S, tile: Subtile) -> u64 {
        let lanes = G * S::LANES;
        let mut bits = 0;
        for at in (0..lanes).step_by(S::LANES) {
            let mut nan = s.mask_from_bits(0);
            for c in 0..self.head.d_v {
                // SAFETY: outputs have `d_v` rows of `lanes`.
                nan = s.or(nan, s.is_nan(unsafe { s.load(tile.outputs.add(c * lanes + at)) }));
            }
            bits |= s.mask_to_bits(nan) << at;
        }
        bits & ((1 << tile.rows.rows) - 1)
    }

    /// Turns the outputs of a sub-tile back into rows, times `factor`. Gives whether any is NaN.
    ///
    /// # Safety
    /// The rows of the call are writable in `target`, `factor` has an element for each lane.
    #[inline(always)]
    unsafe fn unpack<S: Simd, E: Element>(&self, s: S, tile: Subtile, factor: *const f32, target: Target) -> bool {
        s.vectorize(Unpack::<E> {
            turned: tile.outputs,
            factor,
            lanes: G * S::LANES,
            out: target.data.cast(),
            out_stride: target.row_bytes / size_of::<E>(),
            places: self.head.places(tile),
            rows: tile.rows.rows,
            d_v: self.head.d_v,
        })
    }
}
