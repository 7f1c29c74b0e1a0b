//! Decoding: a state that takes keys and answers queries, in memory that does not grow.

use super::Method;
use super::head::{Head, Row, Rows, power};
use super::scratch::{Hand, LINE, Line, StateLayout, WorkLayout};
use crate::launch::{row_stride, target};
use crate::rules::{Count, RowRules, Schedule, Shift, gain};
use crate::source::Source;
use crate::tensor::{Tensor, TensorMut};

/// The heads and columns of a [`Recurrent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecurrentShape {
    /// Heads of q, a multiple of `kv_heads`.
    pub query_heads: usize,
    /// Heads of k and v.
    pub kv_heads: usize,
    /// Columns of v.
    pub value_dim: usize,
}

/// What a query row is multiplied with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowTerms {
    /// Factor of the scores.
    pub gain: f32,
    /// Factor of the output.
    pub out: f32,
}

/// Where the terms of rows come from: the fields of [`crate::launch::Call`] of the same names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TermRules {
    /// Factor of the scores.
    pub scale: f32,
    /// Length-dependent part of the temperature.
    pub schedule: Schedule,
    /// The `n` of everything that depends on the length.
    pub count: Count,
    /// The output is multiplied by `coefficient / n^exponent`.
    pub coefficient: f32,
    /// See `coefficient`.
    pub exponent: f32,
}

impl TermRules {
    /// The terms of a row that sees all of `keys` keys, with the bits that they have in prefill.
    pub fn terms(&self, temperature: f32, keys: usize) -> RowTerms {
        let Self { scale, schedule, count, coefficient, exponent } = *self;
        let rules = RowRules { schedule, count, shift: Shift::Constant(0.0), coefficient, exponent };
        let factors = rules.factors(temperature, keys, || keys);
        RowTerms { gain: gain(false, scale, factors.inverse_temperature), out: factors.out }
    }
}

/// The states of all KV heads of one sequence.
///
/// Keys are gathered in a chunk and added to the state when it is full, on the grid of [`super::run`]: a query gets the bits
/// that it would get there.
#[derive(Clone, Debug)]
pub struct Recurrent {
    method: Method,
    shape: RecurrentShape,
    gates: Option<Vec<f32>>,
    memory: Vec<Line>,
    state_layout: StateLayout,
    work_layout: WorkLayout,
    folded: usize,
    filled: usize,
}

impl Recurrent {
    /// The state of no keys; none if it would take more memory than can be counted. `gates` has one number in (0, 1] for each
    /// KV head.
    ///
    /// # Panics
    /// If query heads are not a multiple of KV heads, or there are not as many gates as KV heads.
    pub fn new(method: Method, shape: RecurrentShape, gates: Option<Vec<f32>>) -> Option<Self> {
        let RecurrentShape { query_heads, kv_heads, value_dim } = shape;
        assert!(query_heads == 0 || kv_heads > 0 && query_heads.is_multiple_of(kv_heads), "heads");
        assert!(gates.as_ref().is_none_or(|gates| gates.len() == kv_heads), "gates");
        assert!(method.chunk > 0, "chunk");
        let sizes = method.sizes(value_dim);
        let (state_layout, work_layout) = (StateLayout::new(&sizes), WorkLayout::new(&sizes));
        let len = state_layout.len.checked_mul(kv_heads)?.checked_add(work_layout.len)?;
        if len > isize::MAX as usize / size_of::<f32>() - LINE {
            return None;
        }
        let memory = vec![Line([0.0; LINE]); len.div_ceil(LINE)];
        Some(Self { method, shape, gates, memory, state_layout, work_layout, folded: 0, filled: 0 })
    }

    /// Keys so far.
    pub fn keys(&self) -> usize {
        self.folded + self.filled
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.memory[..])
    }

    /// Forgets all keys.
    pub fn clear(&mut self) {
        self.memory.fill(Line([0.0; LINE]));
        (self.folded, self.filled) = (0, 0);
    }

    /// One KV head, in the memory that starts at `memory`.
    fn head(&self, memory: *mut f32, kv_head: usize) -> Head<'_> {
        let sizes = self.method.sizes(self.shape.value_dim);
        let state = memory.wrapping_add(kv_head * self.state_layout.len);
        let work = memory.wrapping_add(self.shape.kv_heads * self.state_layout.len);
        Head {
            method: &self.method,
            d: self.method.features.d(),
            d_v: self.shape.value_dim,
            width: sizes.width(),
            gate: self.gates.as_ref().map(|gates| gates[kv_head]).filter(|gate| *gate != 1.0),
            state,
            state_layout: self.state_layout,
            hand: Hand::of(state, &self.state_layout, work, &self.work_layout),
            work,
            work_layout: self.work_layout,
            folded: self.folded,
            filled: self.filled,
        }
    }

    /// Adds the keys and values of the tokens that follow: `[1, kv_heads, tokens, d]` and `[1, kv_heads, tokens, d_v]`.
    ///
    /// # Panics
    /// If shapes disagree, or rows are not contiguous.
    pub fn push(&mut self, k: &Tensor<'_>, v: &Tensor<'_>) {
        let [_, _, tokens, _] = k.shape();
        let RecurrentShape { kv_heads, value_dim, .. } = self.shape;
        assert_eq!(k.shape(), [1, kv_heads, tokens, self.method.features.d()], "k");
        assert_eq!(v.shape(), [1, kv_heads, tokens, value_dim], "v");
        for tensor in [k, v] {
            assert!(tensor.strides()[3] == 1 || tensor.shape()[3] <= 1, "rows are not contiguous");
        }
        let memory: *mut f32 = self.memory.as_mut_ptr().cast();
        let mut ends = (self.folded, self.filled);
        for kv_head in 0..kv_heads {
            let (k, v) = (Source::new(k, 0, kv_head, 0, None), Source::new(v, 0, kv_head, 0, None));
            let mut head = self.head(memory, kv_head);
            let mut done = 0;
            while done < tokens {
                let rows = (tokens - done).min(self.method.chunk - head.filled);
                // SAFETY: the views prove that the rows exist; the memory is borrowed mutably.
                unsafe {
                    head.load(&k, &v, done, rows);
                    done += rows;
                    // A full chunk stays at hand until a key follows, as in prefill, where its own rows come first.
                    if head.filled == self.method.chunk && done < tokens {
                        head.fold();
                    }
                }
            }
            ends = (head.folded, head.filled);
        }
        (self.folded, self.filled) = ends;
    }

    /// Answers one query of each head, which sees all keys so far and stands at the last of them: q is
    /// `[1, query_heads, 1, d]`, `out` `[1, query_heads, 1, d_v]`.
    ///
    /// # Panics
    /// If shapes disagree, or rows are not contiguous.
    pub fn output(&mut self, q: &Tensor<'_>, terms: &dyn Fn(usize) -> RowTerms, mut out: TensorMut<'_>) {
        let RecurrentShape { query_heads, kv_heads, value_dim } = self.shape;
        assert_eq!(q.shape(), [1, query_heads, 1, self.method.features.d()], "q");
        assert_eq!(out.shape(), [1, query_heads, 1, value_dim], "out");
        assert!(q.strides()[3] == 1 || q.shape()[3] <= 1, "rows are not contiguous");
        let memory: *mut f32 = self.memory.as_mut_ptr().cast();
        let strides = out.strides();
        let target = target(&mut out);
        for query_head in 0..query_heads {
            let head = self.head(memory, query_head / (query_heads / kv_heads));
            let terms = |_| {
                let RowTerms { gain, out } = terms(query_head);
                Row { gain, out, end: self.keys() }
            };
            let rows = Rows {
                q: q.head(0, query_head),
                q_dtype: q.dtype(),
                q_stride: row_stride(q.shape(), q.strides()),
                out: crate::launch::out_row(target, strides, [0, query_head, 0]),
                terms: &terms,
                rows: 1,
                position: self.keys() as i64 - 1,
            };
            // SAFETY: the views prove that the rows exist; the memory is borrowed mutably.
            unsafe { head.attend(&rows) };
        }
    }

    /// Adds the keys of `later`, which come after all those of `self`.
    ///
    /// # Panics
    /// If heads, columns, monomials, gates or levels differ.
    pub fn merge(&mut self, later: &Self) {
        assert_eq!(self.shape, later.shape, "shapes");
        assert_eq!(self.gates, later.gates, "gates");
        assert_eq!(self.method.features, later.method.features, "monomials");
        assert!(std::ptr::eq(self.method.kernel, later.method.kernel), "levels");
        if later.keys() == 0 {
            return;
        }
        let memory: *mut f32 = self.memory.as_mut_ptr().cast();
        for kv_head in 0..self.shape.kv_heads {
            let mut head = self.head(memory, kv_head);
            if head.filled > 0 {
                // SAFETY: the memory is borrowed mutably.
                unsafe { head.fold() };
            }
        }
        self.folded += self.filled;
        let len = self.state_layout.len;
        for kv_head in 0..self.shape.kv_heads {
            let decay = self.gates.as_ref().map_or(1.0, |gates| power(gates[kv_head], later.folded as u64));
            let lines = kv_head * len / LINE..(kv_head + 1) * len / LINE;
            let chunk = self.state_layout.keys / LINE;
            for (i, (mine, theirs)) in self.memory[lines.clone()].iter_mut().zip(&later.memory[lines]).enumerate() {
                if i >= chunk {
                    // The chunk at hand is that of the later keys.
                    *mine = *theirs;
                    continue;
                }
                for (mine, theirs) in mine.0.iter_mut().zip(&theirs.0) {
                    *mine = *mine * decay + theirs;
                }
            }
        }
        self.folded += later.folded;
        self.filled = later.filled;
    }
}
