//! The end of a span: the lanes of each row become one state, and sums go back into the order of columns.

use regard_simd::Simd;

use super::form::Form;
use super::tiles::Tiles;
use super::{Group, Rows};
use crate::partial::Fold;
use crate::source::{AddRow, PartialRows};
use crate::weighting::{Kind, MAX_STATE, RowState, slot};

/// The most lanes of a vector.
const MOST_LANES: usize = 16;

impl<F: Form, T: Tiles> Rows<'_, F, T> {
    /// Ends a span: its states and sums, merged with those of the spans before it. Groups are as they were before any key then.
    #[inline(never)]
    pub(super) fn close<S: Simd>(&self, s: S, span: usize, side: usize, masked: u64) {
        let unit = self.unit;
        let to = if span == 0 { unit.out } else { unit.part };
        for index in 0..self.groups {
            let group = self.group(index, side);
            if !self.finish(s, group, span, to) && masked >> index & 1 == 1 {
                self.carefully(s, group, span, to);
            }
            self.begin(group);
        }
        if span == 0 {
            return;
        }
        for (r, row) in unit.rows.iter().enumerate() {
            let (left, right) = (unit.out.row(r), to.row(r));
            let gain = unit.gain(&unit.factors(row));
            // SAFETY: both places have the row, and lie apart.
            s.vectorize(unsafe { Fold::of(unit.weighting, gain, left, right) });
        }
    }

    /// Computes a group again from the first key of a span, with values kept away from rows that do not see their key.
    #[inline(never)]
    fn carefully<S: Simd>(&self, s: S, group: Group<'_>, span: usize, to: PartialRows) {
        self.begin(group);
        let within = self.unit.keys_of(span);
        let mut block = self.block_from(within.start, &within);
        while let Some(keys) = block {
            if let Some(masked_from) = self.scores(s, group, keys)
                && let Some(rescale) = self.weights(s, group, keys, masked_from)
            {
                self.value_products(s, group, self.values_stream(), keys.whole(), [rescale, true, false]);
            }
            block = self.block_after(keys, &within);
        }
        self.finish(s, group, span, to);
    }

    /// Writes states and sums of a group's rows. Gives false if the sums have NaN, which may come from values behind a mask.
    #[inline(always)]
    fn finish<S: Simd>(&self, s: S, group: Group<'_>, span: usize, to: PartialRows) -> bool {
        let unit = self.unit;
        let kind = unit.weighting.functions.kind;
        let mut nan = false;
        for (r, row) in group.rows.iter().enumerate() {
            let factors = unit.factors(row);
            let state = self.fold(group, r, unit.gain(&factors));
            let out = to.row(group.first + r);
            // SAFETY: there is a place for the state and the sums of each row; keys in the state are keys of the sequence.
            unsafe {
                *out.states = state;
                let sums = std::slice::from_raw_parts_mut(out.sums, unit.d_v);
                match kind {
                    Kind::Weighted => nan |= self.sums(group, r, sums),
                    Kind::OneRow | Kind::TiedRows => {
                        let key = state.0[slot::KEY].to_bits();
                        if key == slot::NO_KEY {
                            sums.fill(0.0);
                        } else {
                            let (row, columns) = (key as usize, unit.d_v);
                            s.vectorize(AddRow { source: &unit.v, row, columns, to: out.sums, first: true });
                        }
                    }
                }
            }
        }
        if kind == Kind::TiedRows {
            self.add_ties(s, group, span, to);
        }
        !nan
    }

    /// The state of row `r` of a group, of those of its lanes.
    fn fold(&self, group: Group<'_>, r: usize, gain: f32) -> RowState {
        let weighting = self.unit.weighting;
        let functions = weighting.functions;
        let row_lanes = T::LANES / group.step_keys;
        let mut lanes = [RowState([0.0; MAX_STATE]); MOST_LANES];
        for g in 0..group.step_keys {
            for slot in 0..functions.state {
                // SAFETY: the state has `T::LANES` lanes.
                lanes[g].0[slot] = unsafe { *group.state.add(slot * T::LANES + g * row_lanes + r) };
            }
        }
        let lanes = &mut lanes[..group.step_keys];
        if functions.kind != Kind::Weighted {
            // Lanes count steps, and share a maximum that only some of them have.
            for (g, lane) in lanes.iter_mut().enumerate() {
                let step = lane.0[slot::KEY].to_bits();
                if step == slot::NO_KEY {
                    lane.0[slot::MAX] = f32::NEG_INFINITY;
                } else {
                    lane.0[slot::KEY] = f32::from_bits(step * group.step_keys as u32 + g as u32);
                }
            }
            // Ties go by the order of keys.
            lanes.sort_unstable_by_key(|lane| lane.0[slot::KEY].to_bits());
        }
        let mut state = lanes[0];
        for lane in &lanes[1..] {
            // SAFETY: the functions are those of the weighting.
            unsafe { (functions.merge)(weighting.data, &mut state, lane, gain) };
        }
        state
    }

    /// The sums of row `r` of a group in the order of columns. Gives whether any is NaN.
    fn sums(&self, group: Group<'_>, r: usize, to: &mut [f32]) -> bool {
        let width = 2 * T::LANES;
        let mut nan = false;
        for (unit, to) in to.chunks_mut(width).enumerate() {
            let sums = group.sums.wrapping_add((unit * group.rows.len() + r) * width);
            for (i, to) in to.iter_mut().enumerate() {
                // SAFETY: sums have whole units.
                *to = unsafe { *sums.add(F::place(i, T::LANES)) };
                nan |= to.is_nan();
            }
        }
        nan
    }

    /// Replaces the sums of rows that have ties by the sum of the tied rows of V: a second pass over the scores, which come
    /// out bit-identical.
    #[inline(always)]
    fn add_ties<S: Simd>(&self, s: S, group: Group<'_>, span: usize, to: PartialRows) {
        let unit = self.unit;
        let row_lanes = T::LANES / group.step_keys;
        let mut fresh = 0_u64;
        for r in 0..group.rows.len() {
            // SAFETY: there is a state for each row.
            let state = unsafe { *to.row(group.first + r).states };
            fresh |= u64::from(state.0[slot::COUNT] > 1.0 && state.0[slot::NAN] == 0.0) << r;
        }
        let tied = fresh;
        let within = unit.keys_of(span);
        let mut block = if tied == 0 { None } else { self.block_from(within.start, &within) };
        while let Some(keys) = block {
            if self.scores(s, group, keys).is_some() {
                for place in 0..keys.keys {
                    for r in (0..group.rows.len()).filter(|r| tied >> r & 1 == 1) {
                        let out = to.row(group.first + r);
                        let lane = place % group.step_keys * row_lanes + r;
                        // SAFETY: the block has the key, and there is a place for each row.
                        let hit = unsafe {
                            *group.scores.add(place / group.step_keys * T::LANES + lane) == (*out.states).0[slot::MAX]
                        };
                        if hit {
                            let (row, columns, first) = (keys.first + place, unit.d_v, fresh >> r & 1 == 1);
                            s.vectorize(AddRow { source: &unit.v, row, columns, to: out.sums, first });
                            fresh &= !(1 << r);
                        }
                    }
                }
            }
            block = self.block_after(keys, &within);
        }
    }
}
