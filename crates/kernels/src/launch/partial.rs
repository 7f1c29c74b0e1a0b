//! Partial results outside of a call: merging those of different keys, and turning them into results.

use regard_simd::Level;

use super::call::{Call, Outputs};
use super::task::{self, weigh};
use crate::partial::Fold;
use crate::rules::Ending;
use crate::source::PartialRows;
use crate::weighting::{AnyWeighting, RowState};

/// What ends each row of a call, `[batch, query_heads, rows of q]`; rows of no sequence get that of a row without keys.
pub fn endings(call: &Call<'_>) -> Vec<Ending> {
    let [batch, heads, rows, _] = call.q.shape();
    let mut endings = vec![Ending { gain: 1.0, sink: f32::NEG_INFINITY, out: 1.0 }; batch * heads * rows];
    for (index, sequence) in call.sequences.iter().enumerate() {
        for head in 0..heads {
            for query in 0..sequence.queries {
                let row = (sequence.batch * heads + head) * rows + sequence.first_query + query;
                endings[row] = super::ending(call, index, head, query);
            }
        }
    }
    endings
}

/// Merges the partial results of later keys into those of earlier ones, row by row.
///
/// # Panics
/// If lengths disagree: as many states and sums as `endings`, and `d_v` sums for each.
pub fn merge(
    weighting: &dyn AnyWeighting,
    level: Level,
    endings: &[Ending],
    d_v: usize,
    left: (&mut [RowState], &mut [f32]),
    right: (&[RowState], &[f32]),
) {
    let rows = endings.len();
    assert!(left.0.len() == rows && right.0.len() == rows, "states");
    assert!(left.1.len() == rows * d_v && right.1.len() == rows * d_v, "sums");
    let left = PartialRows { states: left.0.as_mut_ptr(), sums: left.1.as_mut_ptr(), d_v };
    // Read only, as `Fold` promises.
    let right = PartialRows { states: right.0.as_ptr().cast_mut(), sums: right.1.as_ptr().cast_mut(), d_v };
    let weighting = weigh(weighting, level);
    for (row, ending) in endings.iter().enumerate() {
        // SAFETY: both have the rows, and the functions are of the level, whose token proves it.
        level.dispatch(unsafe { Fold::of(weighting, ending.gain, left.row(row), right.row(row)) });
    }
}

/// Turns partial results of all keys into results.
///
/// # Panics
/// If lengths disagree: as many states as `endings` and rows of `outputs`, `d_v` sums for each; or if `outputs` are partial.
pub fn conclude(
    weighting: &dyn AnyWeighting,
    level: Level,
    endings: &[Ending],
    states: &[RowState],
    sums: &[f32],
    outputs: Outputs<'_>,
) {
    let Outputs::Rows { mut out, lse } = outputs else { panic!("partial results of partial results") };
    let [batch, heads, rows, d_v] = out.shape();
    let len = batch * heads * rows;
    assert!(endings.len() == len && states.len() == len && sums.len() == len * d_v, "rows");
    assert!(lse.as_ref().is_none_or(|lse| lse.len() == len), "log-sum-exp");
    let strides = out.strides();
    let target = super::target(&mut out);
    let lse = lse.map_or(std::ptr::null_mut(), <[f32]>::as_mut_ptr);
    // Read only, as `Conclude` promises.
    let partial = PartialRows { states: states.as_ptr().cast_mut(), sums: sums.as_ptr().cast_mut(), d_v };
    let weighting = weigh(weighting, level);
    for (row, ending) in endings.iter().enumerate() {
        let index = [row / (heads * rows), row / rows % heads, row % rows];
        let lse = if lse.is_null() { lse } else { lse.wrapping_add(row) };
        let out = task::out_row(target, strides, index);
        // SAFETY: the lengths were compared, the view proves the bounds of every row, and the functions are of the level.
        level.dispatch(unsafe { task::conclude(weighting, *ending, partial.row(row), out, lse) });
    }
}
