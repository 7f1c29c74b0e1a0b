//! From a unit to the raw arguments of a kernel: the one step from checked views to pointers.

use std::marker::PhantomData;
use std::ops::Range;

use regard_simd::Level;

use super::Launch;
use super::call::{RowsChoice, Temperatures};
use super::units::{Unit, UnitRows, group, which_rows};
use crate::lanes::args::{Alibi, Head, Temperature};
use crate::mask::Matrix;
use crate::partial::{Conclude, Fold};
use crate::rows::args::{self, MOST_ROWS, QueryRow};
use crate::rules::{Ending, RowRules, Weigh};
use crate::source::{PartialRows, Source, Target};
use crate::weighting::RowState;

/// Elements from a row to the next. There is no memory to step through without columns or a second row, whatever the
/// strides say.
pub(crate) fn row_stride([.., rows, columns]: [usize; 4], [.., stride, _]: [usize; 4]) -> usize {
    if columns == 0 || rows <= 1 { 0 } else { stride }
}

/// Where the results of rows go.
#[derive(Clone, Copy, Debug)]
pub(super) enum Destination {
    /// Results: the first byte of the output, its strides and element type, and log-sum-exp (null for none).
    Rows { out: Target, strides: [usize; 4], lse: *mut f32 },
    /// States and sums.
    Partial(PartialRows),
}

impl Launch<'_> {
    /// Computes a whole unit. `scratch` is a thread's own, and `slots` two places for partial results of a unit.
    ///
    /// # Safety
    /// No one else computes this unit or uses this memory.
    pub(super) unsafe fn unit(&self, unit: &Unit, scratch: *mut f32, slots: [PartialRows; 2]) {
        // SAFETY: the caller's contract.
        unsafe {
            if let (1, UnitRows::Lanes { .. }) = (unit.spans, unit.rows) {
                // Rows of one head follow each other in the outputs.
                let partial = match self.destination {
                    Destination::Rows { .. } => None,
                    Destination::Partial(to) => Some(to.row(self.index(unit, 0))),
                };
                return self.lanes(unit, 0, scratch, partial);
            }
            let [whole, part] = slots;
            match unit.rows {
                UnitRows::Rows { .. } => self.rows(unit, 0..unit.spans, scratch, slots),
                UnitRows::Lanes { .. } => {
                    self.span(unit, 0, scratch, whole);
                    for span in 1..unit.spans {
                        self.span(unit, span, scratch, part);
                        self.fold(unit, whole, part);
                    }
                }
            }
            self.conclude(unit, whole);
        }
    }

    /// Computes the partial results of one span of a unit.
    ///
    /// # Safety
    /// No one else uses this memory.
    pub(super) unsafe fn span(&self, unit: &Unit, span: usize, scratch: *mut f32, to: PartialRows) {
        // SAFETY: the caller's contract.
        unsafe {
            match unit.rows {
                UnitRows::Lanes { .. } => self.lanes(unit, span, scratch, Some(to)),
                UnitRows::Rows { .. } => self.rows(unit, span..span + 1, scratch, [to; 2]),
            }
        }
    }

    /// Merges the partial results of a later span into those of all before it.
    ///
    /// # Safety
    /// Both have the rows of the unit, and no one else uses them.
    pub(super) unsafe fn fold(&self, unit: &Unit, left: PartialRows, right: PartialRows) {
        let weighting = self.weigh();
        for row in 0..unit.rows() {
            let gain = self.ending(unit, row).gain;
            // SAFETY: the caller's contract.
            self.choice.level.dispatch(unsafe { Fold::of(weighting, gain, left.row(row), right.row(row)) });
        }
    }

    /// Turns partial results of all keys into results.
    ///
    /// # Safety
    /// There are the rows of the unit, and no one else writes these rows of the output.
    pub(super) unsafe fn conclude(&self, unit: &Unit, partial: PartialRows) {
        let d_v = self.call.v.shape()[3];
        let sequence = &self.call.sequences[unit.sequence];
        for row in 0..unit.rows() {
            let (head, query) = unit.row(self.call, row);
            let index = self.index(unit, row);
            let partial = partial.row(row);
            // SAFETY: the caller's contract; `check` has compared the shapes.
            unsafe {
                match self.destination {
                    Destination::Partial(to) => {
                        let to = to.row(index);
                        *to.states = *partial.states;
                        to.sums.copy_from_nonoverlapping(partial.sums, d_v);
                    }
                    Destination::Rows { out, strides, lse } => {
                        let lse = if lse.is_null() { lse } else { lse.add(index) };
                        let out = out_row(out, strides, [sequence.batch, head, sequence.first_query + query]);
                        let ending = self.ending(unit, row);
                        let weighting = self.weigh();
                        self.choice.level.dispatch(conclude(weighting, ending, partial, out, lse));
                    }
                }
            }
        }
    }

    /// The index of a row of a unit among all rows of `[batch, query_heads, rows of q]`.
    fn index(&self, unit: &Unit, row: usize) -> usize {
        let (head, query) = unit.row(self.call, row);
        let [_, heads, rows, _] = self.call.q.shape();
        let sequence = &self.call.sequences[unit.sequence];
        (sequence.batch * heads + head) * rows + sequence.first_query + query
    }

    /// What ends a row of a unit.
    fn ending(&self, unit: &Unit, row: usize) -> Ending {
        let (head, query) = unit.row(self.call, row);
        super::ending(self.call, unit.sequence, head, query)
    }

    fn weigh(&self) -> Weigh<'_> {
        weigh(self.call.weighting, self.choice.level)
    }

    /// The keys or values of a KV head of a sequence.
    fn source<'a>(&'a self, tensor: &crate::tensor::Tensor<'a>, sequence: usize, kv_head: usize) -> Source<'a> {
        let rows = &self.call.sequences[sequence];
        match &self.call.pages {
            Some(pages) => Source::new(tensor, 0, kv_head, 0, Some(pages.of(sequence))),
            None => Source::new(tensor, rows.batch, kv_head, rows.first_key, None),
        }
    }

    fn rules(&self) -> RowRules {
        rules(self.call)
    }

    /// Runs a lanes kernel: on all keys into the output, or on a span into partial results.
    ///
    /// # Safety
    /// No one else computes this unit or uses this memory.
    unsafe fn lanes(&self, unit: &Unit, span: usize, scratch: *mut f32, partial: Option<PartialRows>) {
        let UnitRows::Lanes { head, first, rows } = unit.rows else { unreachable!("a unit of the rows kernel") };
        let (start, end) = unit.span(self.call, span);
        let mut arguments = self.head(unit.sequence, head, first, rows, start..end, partial);
        // SAFETY: `check` has compared the shapes and found the kernel in the table of a detected level, the views prove
        // the bounds of every row, and rows and scratch are this thread's alone; surveys are made before units.
        unsafe {
            (arguments.prune, arguments.order) = self.pruned(unit.sequence, head, first, rows);
            let queries = self.call.sequences[unit.sequence].queries;
            self.choice.lanes_for(queries).run(&arguments, scratch, self.memory.lanes);
        }
    }

    /// The arguments of a lanes kernel, but for what may be left out.
    pub(super) fn head(
        &self,
        sequence_index: usize,
        head: usize,
        first: usize,
        rows: usize,
        span: Range<usize>,
        partial: Option<PartialRows>,
    ) -> Head<'_> {
        let Self { call, choice, .. } = *self;
        let sequence = &call.sequences[sequence_index];
        let [_, heads, q_rows, d] = call.q.shape();
        let d_v = call.v.shape()[3];
        let q_stride = row_stride(call.q.shape(), call.q.strides());
        let query = sequence.first_query + first;
        let q = call.q.head(sequence.batch, head);
        let row = (sequence.batch * heads + head) * q_rows + sequence.first_query;
        let (out, lse) = match self.destination {
            Destination::Rows { out, strides, lse } => {
                let lse = if lse.is_null() { lse } else { lse.wrapping_add(row + first) };
                (out_row(out, strides, [sequence.batch, head, query]), lse)
            }
            Destination::Partial(_) => (Target::NONE, std::ptr::null_mut()),
        };
        let kv_head = head / group(call);
        Head {
            q: q.wrapping_add(query.wrapping_mul(q_stride).wrapping_mul(call.q.dtype().bytes())),
            q_dtype: call.q.dtype(),
            q_stride,
            first_row: first,
            rows,
            k: self.source(&call.k, sequence_index, kv_head),
            v: self.source(&call.v, sequence_index, kv_head),
            keys: sequence.keys,
            span,
            d,
            d_v,
            out,
            lse,
            partial,
            band: sequence.band,
            keep: call.keep.map(|keep| {
                let [.., row_stride, key_stride] = keep.strides();
                Matrix { data: keep.head(sequence_index, head), row_stride, key_stride }
            }),
            bias: call.bias.map(|bias| {
                let [.., row_stride, key_stride] = bias.strides();
                Matrix { data: bias.head(sequence_index, head), row_stride, key_stride }
            }),
            alibi: call.alibi_slopes.map(|slopes| Alibi { slope: slopes[head], offset: sequence.offset }),
            scale: call.scale,
            softcap: call.softcap,
            sink: call.sinks.map(|sinks| sinks[head]),
            temperature: match call.temperature {
                Temperatures::One(temperature) => Temperature::One(temperature),
                Temperatures::PerHead(temperatures) => Temperature::One(temperatures[head]),
                Temperatures::PerRow(temperatures) => Temperature::Rows(&temperatures[row..row + sequence.queries]),
            },
            rules: self.rules(),
            weighting: self.weigh(),
            key_block: choice.key_block.min(super::longest_keys(call).next_multiple_of(2)).max(2),
            copy: choice.copy,
            prune: None,
            order: None,
        }
    }

    /// Runs a rows kernel on spans into the partial results of all of them. The second place is one to work in.
    ///
    /// # Safety
    /// No one else uses this memory; the places lie apart, if there are several spans.
    unsafe fn rows(&self, unit: &Unit, spans: Range<usize>, scratch: *mut f32, [out, part]: [PartialRows; 2]) {
        let mut query_rows = [QueryRow::NONE; MOST_ROWS];
        let which = self.which_rows(unit);
        let (start, _) = unit.span(self.call, spans.start);
        let (_, end) = unit.span(self.call, spans.end - 1);
        // SAFETY: as for the lanes kernel.
        unsafe {
            let wanted = self.wanted_rows(unit);
            let arguments = args::Unit { wanted, out, part, ..self.few_rows(unit, start..end, &mut query_rows) };
            self.choice.rows[which].kernel.run(&arguments, scratch, self.memory.rows[which]);
        }
    }

    /// Which of the rows kernels takes a unit of rows.
    fn which_rows(&self, unit: &Unit) -> usize {
        let queries = self.call.sequences[unit.sequence].queries;
        which_rows(self.call, self.choice, queries).expect("a unit of rows is of a sequence that a rows kernel takes")
    }

    /// The arguments of a rows kernel, but for what may be left out and where results go.
    pub(super) fn few_rows<'a>(
        &'a self,
        unit: &Unit,
        span: Range<usize>,
        query_rows: &'a mut [QueryRow; MOST_ROWS],
    ) -> args::Unit<'a> {
        let Self { call, choice, .. } = *self;
        let RowsChoice { key_block, prefetch, .. } = choice.rows[self.which_rows(unit)];
        let UnitRows::Rows { kv_head, rows, .. } = unit.rows else { unreachable!("a unit of the lanes kernel") };
        let sequence = &call.sequences[unit.sequence];
        let [_, heads, q_rows, d] = call.q.shape();
        let q_stride = row_stride(call.q.shape(), call.q.strides());
        for (row, query_row) in query_rows.iter_mut().enumerate().take(rows) {
            let (head, query) = unit.row(call, row);
            let at = (sequence.first_query + query).wrapping_mul(q_stride).wrapping_mul(call.q.dtype().bytes());
            let index = (sequence.batch * heads + head) * q_rows + sequence.first_query + query;
            *query_row = QueryRow {
                q: call.q.head(sequence.batch, head).wrapping_add(at),
                query,
                temperature: temperature(call, head, index),
                slope: call.alibi_slopes.map_or(0.0, |slopes| slopes[head]),
                ..QueryRow::NONE
            };
            if let Some(keep) = &call.keep {
                let [.., row_stride, key_stride] = keep.strides();
                query_row.keep = keep.head(unit.sequence, head).wrapping_add(query * row_stride);
                query_row.keep_stride = key_stride;
            }
            if let Some(bias) = &call.bias {
                let [.., row_stride, key_stride] = bias.strides();
                query_row.bias = bias.head(unit.sequence, head).wrapping_add(query * row_stride);
                query_row.bias_stride = key_stride;
            }
        }
        args::Unit {
            rows: &query_rows[..rows],
            q_dtype: call.q.dtype(),
            k: self.source(&call.k, unit.sequence, kv_head),
            v: self.source(&call.v, unit.sequence, kv_head),
            keys: sequence.keys,
            span,
            span_keys: unit.span,
            d,
            d_v: call.v.shape()[3],
            band: sequence.band,
            scale: call.scale,
            softcap: call.softcap,
            alibi: call.alibi_slopes.map(|_| sequence.offset),
            bias: call.bias.is_some(),
            rules: self.rules(),
            weighting: self.weigh(),
            key_block,
            reading: prefetch.reading(rows),
            wanted: None,
            out: PartialRows::NONE,
            part: PartialRows::NONE,
        }
    }
}

/// The end of row 0 of a partial result.
///
/// # Safety
/// It has the row, and no one writes to it while the end lives.
pub(super) unsafe fn conclude(
    weighting: Weigh<'_>,
    ending: Ending,
    partial: PartialRows,
    out: Target,
    lse: *mut f32,
) -> Conclude<'_> {
    // SAFETY: the caller's contract.
    let state = unsafe { &*partial.states };
    Conclude { weighting, state, sums: partial.sums, d_v: partial.d_v, ending, out, lse }
}

/// The output row of a query of the tensor.
pub(crate) fn out_row(out: Target, strides: [usize; 4], [batch, head, query]: [usize; 3]) -> Target {
    let elements = batch
        .wrapping_mul(strides[0])
        .wrapping_add(head.wrapping_mul(strides[1]))
        .wrapping_add(query.wrapping_mul(out.row_bytes / out.dtype.bytes()));
    Target { data: out.data.wrapping_add(elements.wrapping_mul(out.dtype.bytes())), ..out }
}

/// The temperature of a row, `index` among all rows.
pub(crate) fn temperature(call: &super::Call<'_>, head: usize, index: usize) -> f32 {
    match call.temperature {
        Temperatures::One(temperature) => temperature,
        Temperatures::PerHead(temperatures) => temperatures[head],
        Temperatures::PerRow(temperatures) => temperatures[index],
    }
}

pub(crate) fn rules(call: &super::Call<'_>) -> RowRules {
    RowRules {
        schedule: call.schedule,
        count: call.count,
        shift: call.shift,
        coefficient: call.coefficient,
        exponent: call.exponent,
    }
}

/// A weighting with its functions at a level.
pub(super) fn weigh(weighting: &dyn crate::weighting::AnyWeighting, level: Level) -> Weigh<'_> {
    Weigh { functions: weighting.functions(level), data: weighting.data(), _data: PhantomData }
}

/// Memory for the partial results of `rows` rows at `at`, of which [`partial_len`] f32 are taken.
pub(super) fn partial_rows(at: *mut f32, rows: usize, d_v: usize) -> PartialRows {
    let states: *mut RowState = at.cast();
    PartialRows { states, sums: at.wrapping_add(rows * STATE_LEN), d_v }
}

/// f32 of a [`RowState`].
const STATE_LEN: usize = size_of::<RowState>() / size_of::<f32>();

/// f32 that [`partial_rows`] takes: whole cache lines.
pub(super) fn partial_len(rows: usize, d_v: usize) -> usize {
    let len = rows.saturating_mul(d_v.saturating_add(STATE_LEN));
    len.checked_next_multiple_of(16).unwrap_or(usize::MAX)
}
