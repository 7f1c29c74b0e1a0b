//! What to compute, of what: options and tensors, and the suites' own idea of where the rows of each sequence are.

use regard::{Keys, Problem, Queries, Sequence, Shape, Tensor as Elements};
use regard_simd::Element;

use crate::{Spec, Stored, Tensor};

/// What to compute, of what.
#[derive(Clone, Debug)]
pub struct Case<'a> {
    /// The options.
    pub spec: Spec<'a>,
    /// `[batch, query_heads, queries, d]`
    pub q: Elements<'a>,
    /// `[batch, kv_heads, keys, d]`
    pub k: Elements<'a>,
    /// `[batch, kv_heads, keys, d_v]`
    pub v: Elements<'a>,
    /// Where the queries of each sequence are.
    pub queries: Queries<'a>,
    /// Where the keys of each sequence are.
    pub keys: Keys<'a>,
}

impl<'a> Case<'a> {
    /// A case of three tensors of f32.
    pub fn new(spec: Spec<'a>, q: &'a Tensor, k: &'a Tensor, v: &'a Tensor) -> Self {
        Self::of(spec, q.view(), k.view(), v.view())
    }

    /// A case of three tensors of any element types.
    pub fn stored(spec: Spec<'a>, [q, k, v]: &'a [Stored; 3]) -> Self {
        Self::of(spec, q.tensor(), k.tensor(), v.tensor())
    }

    /// A case of three views.
    pub fn of(
        spec: Spec<'a>,
        q: impl Into<Elements<'a>>,
        k: impl Into<Elements<'a>>,
        v: impl Into<Elements<'a>>,
    ) -> Self {
        let (q, k, v) = (q.into(), k.into(), v.into());
        Self { spec, q, k, v, queries: Queries::Padded, keys: Keys::Padded }
    }

    /// The same with other places of queries and keys.
    #[must_use]
    pub fn ragged(self, queries: Queries<'a>, keys: Keys<'a>) -> Self {
        Self { queries, keys, ..self }
    }

    /// The library's problem.
    ///
    /// # Panics
    /// If the library finds an error in it.
    pub fn problem(&self) -> Problem<'a> {
        Problem::ragged(&self.spec.options(), self.q, self.queries, self.k, self.v, self.keys)
            .unwrap_or_else(|error| panic!("{error}, in {:?}", self.spec))
    }

    /// The number of sequences.
    pub fn sequences(&self) -> usize {
        match self.queries {
            Queries::Padded => self.q.shape()[0],
            Queries::Packed(offsets) => offsets.len() - 1,
        }
    }

    /// The shape of a sequence as if it were alone.
    pub fn shape(&self, sequence: usize) -> Shape {
        let ([_, query_heads, rows, head_dim], [_, kv_heads, keys, value_dim]) = (self.q.shape(), self.v.shape());
        let queries = match self.queries {
            Queries::Padded => rows,
            Queries::Packed(offsets) => offsets[sequence + 1] - offsets[sequence],
        };
        let keys = match self.keys {
            Keys::Padded => keys,
            Keys::Packed(offsets) => offsets[sequence + 1] - offsets[sequence],
            Keys::Paged(pages) => pages.lengths[sequence],
            Keys::Ring { lengths } => lengths[sequence],
        };
        let keys = self.spec.key_lengths.map_or(keys, |lengths| lengths[sequence]);
        Shape { batch: 1, query_heads, kv_heads, queries, keys, head_dim, value_dim, packed_rows: None }
    }

    /// Batch entry and row of a query in q.
    pub fn query_place(&self, sequence: usize, query: usize) -> [usize; 2] {
        match self.queries {
            Queries::Padded => [sequence, query],
            Queries::Packed(offsets) => [0, offsets[sequence] + query],
        }
    }

    /// Batch entry (or page) and row of a key in k and v.
    pub fn key_place(&self, sequence: usize, key: usize) -> [usize; 2] {
        let rows = self.k.shape()[2];
        match self.keys {
            Keys::Padded => [sequence, key],
            Keys::Packed(offsets) => [0, offsets[sequence] + key],
            Keys::Ring { .. } => [sequence, key % rows],
            Keys::Paged(pages) => {
                let table = &pages.table[sequence * pages.pages_per_sequence..][..pages.pages_per_sequence];
                [table[key / rows] as usize, key % rows]
            }
        }
    }

    /// A query, by `[sequence, head, query]`.
    pub fn query(&self, [sequence, head, query]: [usize; 3]) -> Vec<f64> {
        let [entry, row] = self.query_place(sequence, query);
        elements(&self.q, [entry, head, row])
    }

    /// A key, by `[sequence, kv head, key]`.
    pub fn key(&self, [sequence, kv_head, key]: [usize; 3]) -> Vec<f64> {
        let [entry, row] = self.key_place(sequence, key);
        elements(&self.k, [entry, kv_head, row])
    }

    /// A value, by `[sequence, kv head, key]`.
    pub fn value(&self, [sequence, kv_head, key]: [usize; 3]) -> Vec<f64> {
        let [entry, row] = self.key_place(sequence, key);
        elements(&self.v, [entry, kv_head, row])
    }

    /// The scale of a value, by `[sequence, kv head, key]`, if it has one.
    pub fn value_scale(&self, [sequence, kv_head, key]: [usize; 3]) -> Option<f64> {
        let [entry, row] = self.key_place(sequence, key);
        match &self.v {
            Elements::Int8(quantised) => Some(f64::from(*quantised.scales.get([entry, kv_head, row, 0]))),
            _ => None,
        }
    }

    /// The place of a row among all rows of `[batch, query_heads, rows of q]`.
    pub fn row(&self, [sequence, head, query]: [usize; 3]) -> usize {
        let [_, heads, rows, _] = self.q.shape();
        let [entry, row] = self.query_place(sequence, query);
        (entry * heads + head) * rows + row
    }

    /// All rows as `[sequence, head, query]`, sequence by sequence.
    pub fn rows(&self) -> impl Iterator<Item = [usize; 3]> + '_ {
        (0..self.sequences()).flat_map(move |sequence| {
            let Shape { query_heads, queries, .. } = self.shape(sequence);
            (0..query_heads * queries).map(move |row| [sequence, row / queries, row % queries])
        })
    }

    /// Panics unless the library has the same idea of where sequences are.
    pub(crate) fn agrees_with(&self, sequences: &[Sequence]) {
        assert_eq!(sequences.len(), self.sequences());
        for (index, sequence) in sequences.iter().enumerate() {
            let shape = self.shape(index);
            assert_eq!((sequence.queries, sequence.keys), (shape.queries, shape.keys), "sequence {index}");
            assert_eq!([sequence.batch, sequence.first_query], self.query_place(index, 0), "sequence {index}");
        }
    }
}

/// The elements of a row, widened to f32 with their scale and then to f64.
fn elements(tensor: &Elements<'_>, [batch, head, row]: [usize; 3]) -> Vec<f64> {
    fn all<T: Element>(row: &[T]) -> Vec<f64> {
        row.iter().map(|x| f64::from(x.widen())).collect()
    }
    let index = [batch, head, row];
    match tensor {
        Elements::F32(view) => all(view.row(index)),
        Elements::F16(view) => all(view.row(index)),
        Elements::Bf16(view) => all(view.row(index)),
        Elements::Int8(quantised) => {
            let scale = *quantised.scales.get([batch, head, row, 0]);
            quantised.data.row(index).iter().map(|x| f64::from(x.widen() * scale)).collect()
        }
        other => panic!("no elements of {}", other.dtype()),
    }
}
