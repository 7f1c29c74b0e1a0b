//! One state, its chunk at hand, and the memory to work in: what prefill and decoding have in common.

use regard_simd::{Op, Simd};

use super::Method;
use super::attend::Queries;
use super::features::Tile;
use super::fold::{Chunk, Turn};
use super::scratch::{Hand, ROWS, StateLayout, WorkLayout};
use crate::source::{AddRow, Source, Target};
use crate::tensor::Dtype;

/// The state of one KV head.
///
/// Raw pointers, as a thread uses one piece of memory after the other for all heads, and several threads may work on one
/// head; made by [`super::run`] and [`super::Recurrent`] only.
pub(super) struct Head<'a> {
    pub(super) method: &'a Method,
    pub(super) d: usize,
    pub(super) d_v: usize,
    /// Columns of V in whole vectors.
    pub(super) width: usize,
    /// None for 1.
    pub(super) gate: Option<f32>,
    /// Sums and norms.
    pub(super) state: *mut f32,
    pub(super) state_layout: StateLayout,
    /// The chunk at hand.
    pub(super) hand: Hand,
    pub(super) work: *mut f32,
    pub(super) work_layout: WorkLayout,
    /// Keys in the state.
    pub(super) folded: usize,
    /// Keys of the chunk at hand, which are not in the state.
    pub(super) filled: usize,
}

/// Rows to be answered: those of one query head, or of several that share the state.
pub(super) struct Rows<'a> {
    /// Rows of `d` elements.
    pub(super) q: *const u8,
    pub(super) q_dtype: Dtype,
    pub(super) q_stride: usize,
    pub(super) out: Target,
    /// For each row.
    pub(super) terms: &'a dyn Fn(usize) -> Row,
    pub(super) rows: usize,
    /// The position of row 0 among all keys; with a gate, positions ascend one by one.
    pub(super) position: i64,
}

/// What is particular to one row.
#[derive(Clone, Copy)]
pub(super) struct Row {
    /// Factor of the scores.
    pub(super) gain: f32,
    /// Factor of the output.
    pub(super) out: f32,
    /// One past the last key that the row sees, counted from those of the sequence: in the chunk at hand, or its start.
    pub(super) end: usize,
}

impl Head<'_> {
    /// The state of no keys.
    ///
    /// # Safety
    /// No one else uses its memory.
    pub(super) unsafe fn clear(&mut self) {
        (self.folded, self.filled) = (0, 0);
        // SAFETY: the state has so much memory (contract of the struct). Values are zero up to whole vectors.
        unsafe { self.state.write_bytes(0, self.state_layout.len) };
    }

    /// Adds `rows` rows of K and V from `first` on to the chunk at hand, which has room for them.
    ///
    /// # Safety
    /// The sources have the rows, and no one else uses the chunk at hand.
    pub(super) unsafe fn load(&mut self, k: &Source<'_>, v: &Source<'_>, first: usize, rows: usize) {
        assert!(rows <= self.method.chunk - self.filled, "a chunk has room for its keys");
        // SAFETY: the chunk has room.
        unsafe {
            let keys = self.hand.keys.add(self.filled * self.d);
            let values = self.hand.values.add(self.filled * self.width);
            for (source, to, columns, stride) in [(k, keys, self.d, self.d), (v, values, self.d_v, self.width)] {
                self.method.level.dispatch(CopyRows { source, first, rows, columns, to, stride });
            }
        }
        self.filled += rows;
    }

    /// Adds the chunk at hand to the state.
    ///
    /// # Safety
    /// No one else uses the memory of the state, and the work.
    pub(super) unsafe fn fold(&mut self) {
        // SAFETY: the caller's contract.
        unsafe {
            self.turn();
            self.add(self.method.features.key_tiles(), self.state);
        }
        self.folded += self.filled;
        self.filled = 0;
    }

    /// Brings the keys at hand into lanes, for [`Head::add`].
    ///
    /// # Safety
    /// No one else uses the chunk at hand.
    pub(super) unsafe fn turn(&self) {
        let gate = self.gate.unwrap_or(1.0);
        self.method.level.dispatch(Turn { hand: self.hand, len: self.filled, d: self.d, gate });
    }

    /// Writes sums and norms of some tiles of monomials with the chunk at hand, which was turned, to `to`.
    ///
    /// # Safety
    /// No one else writes these sums, here or in `to`, which is a state of the same layout, or uses the work.
    pub(super) unsafe fn add(&self, tiles: &[Tile], to: *mut f32) {
        let chunk = Chunk {
            tiles,
            len: self.filled,
            width: self.width,
            decay: power(self.gate.unwrap_or(1.0), self.filled as u64),
            hand: self.hand,
            from: self.state,
            to,
            state_layout: self.state_layout,
            key_tile: self.work.wrapping_add(self.work_layout.key_tile),
        };
        // SAFETY: the caller's contract; the kernel is of a detected level.
        unsafe { self.method.kernel.fold(&chunk) };
    }

    /// Answers rows.
    ///
    /// # Safety
    /// The rows of q and of the output exist, and no one else uses the output and the work.
    pub(super) unsafe fn attend(&self, rows: &Rows<'_>) {
        // SAFETY: the chunk has `filled` rows of values.
        let values = unsafe { std::slice::from_raw_parts(self.hand.values, self.filled * self.width) };
        let finite = values.iter().all(|value| value.is_finite());
        for first in (0..rows.rows).step_by(ROWS) {
            let len = (rows.rows - first).min(ROWS);
            // SAFETY: the caller's contract.
            unsafe { self.block(rows, first, len, finite) };
        }
    }

    /// Answers the rows `first..first + len`.
    ///
    /// # Safety
    /// As for [`Head::attend`], and the work has room for so many.
    unsafe fn block(&self, rows: &Rows<'_>, first: usize, len: usize, finite: bool) {
        let Rows { q, q_dtype, q_stride, out, terms, position, .. } = *rows;
        let layout = &self.work_layout;
        // Of the first row, counted from the chunk's first key.
        let position = position.saturating_add(first as i64).saturating_sub(self.folded as i64);
        let lanes = len.next_multiple_of(self.method.kernel.lanes);
        // SAFETY: the work has room for these rows in whole sub-tiles, and for all distances in a chunk.
        unsafe {
            for row in 0..lanes {
                let absent = Row { gain: 0.0, out: 0.0, end: self.folded };
                let Row { gain, out, end } = if row < len { terms(first + row) } else { absent };
                // The last key of the state stands just before the chunk.
                let distance = position.saturating_add(row as i64 + 1);
                *self.work.add(layout.gains + row) = gain;
                *self.work.add(layout.out_factors + row) = out;
                *self.work.add(layout.ends + row) = end.saturating_sub(self.folded) as f32;
                *self.work.add(layout.decays + row) =
                    self.gate.map_or(1.0, |gate| power(gate, u64::try_from(distance).unwrap_or(0)));
            }
            if let Some(gate) = self.gate {
                for at in 0..self.method.chunk + lanes {
                    // Row less key.
                    let distance = position.saturating_add(at as i64 - self.method.chunk as i64);
                    // What lies ahead is masked.
                    let power = u64::try_from(distance).map_or(0.0, |distance| power(gate, distance));
                    *self.work.add(layout.powers + at) = power;
                }
            }
            self.method.kernel.attend(&Queries {
                features: &self.method.features,
                d: self.d,
                d_v: self.d_v,
                width: self.width,
                q: q.wrapping_add(first.wrapping_mul(q_stride).wrapping_mul(q_dtype.bytes())),
                q_dtype,
                q_stride,
                rows: len,
                len: self.filled,
                finite,
                gated: self.gate.is_some(),
                folded: self.folded > 0,
                state: self.state,
                state_layout: self.state_layout,
                keys: self.hand.keys,
                values: self.hand.values,
                work: self.work,
                work_layout: *layout,
                origin: self.method.chunk,
                out: out.row(first),
            });
        }
    }
}

/// `base^exponent`, by squaring in f64: the same bits wherever it is computed.
pub(super) fn power(base: f32, mut exponent: u64) -> f32 {
    let (mut square, mut product) = (f64::from(base), 1.0);
    while exponent > 0 {
        if exponent & 1 == 1 {
            product *= square;
        }
        square *= square;
        exponent >>= 1;
    }
    product as f32
}

/// Copies rows of a source to f32, scales applied, `stride` apart.
struct CopyRows<'a> {
    source: &'a Source<'a>,
    first: usize,
    rows: usize,
    columns: usize,
    to: *mut f32,
    stride: usize,
}

impl Op for CopyRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in 0..self.rows {
            let to = self.to.wrapping_add(row * self.stride);
            AddRow { source: self.source, row: self.first + row, columns: self.columns, to, first: true }.run(s);
        }
    }
}
