//! The sizes of a problem.

/// The sizes of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Sequences: batch entries of q, or as many as lie one after the other in it.
    pub batch: usize,
    /// Heads of q.
    pub query_heads: usize,
    /// Heads of k and v.
    pub kv_heads: usize,
    /// Queries of the longest sequence: rows of q, unless sequences lie one after the other in it.
    pub queries: usize,
    /// Keys of the longest sequence: rows of k and v, unless these lie one after the other, on pages or in a ring.
    pub keys: usize,
    /// Columns of q and k.
    pub head_dim: usize,
    /// Columns of v.
    pub value_dim: usize,
    /// Rows of q, where sequences lie one after the other in its one batch entry.
    pub packed_rows: Option<usize>,
}

impl Shape {
    /// The shape of the output: `[batch, query_heads, rows of q, value_dim]`, with the batch of q.
    pub fn out(&self) -> [usize; 4] {
        let [batch, rows] = self.entries();
        [batch, self.query_heads, rows, self.value_dim]
    }

    /// Rows of all heads and batch entries of q: the length of a log-sum-exp, and of temperatures of each row, which are
    /// `[batch, query_heads, rows of q]`.
    pub fn rows(&self) -> usize {
        let [batch, rows] = self.entries();
        batch * self.query_heads * rows
    }

    /// Query heads that share a KV head.
    pub(crate) fn group(&self) -> usize {
        self.query_heads / self.kv_heads.max(1)
    }

    /// The place of a row of q in what [`Shape::rows`] counts.
    pub(crate) fn row(&self, [batch, head, row]: [usize; 3]) -> usize {
        (batch * self.query_heads + head) * self.entries()[1] + row
    }

    /// Batch entries of q, and their rows.
    fn entries(&self) -> [usize; 2] {
        self.packed_rows.map_or([self.batch, self.queries], |rows| [1, rows])
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { batch, query_heads, kv_heads, queries, keys, head_dim, value_dim, packed_rows } = self;
        write!(f, "batch {batch}, heads {query_heads}:{kv_heads}, {queries} x {keys}, d {head_dim}:{value_dim}")?;
        packed_rows.map_or(Ok(()), |rows| write!(f, ", {rows} packed rows"))
    }
}
