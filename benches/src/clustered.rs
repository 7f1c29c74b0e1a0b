//! Keys in clusters, as pruning wants them, and queries that belong to these.

use regard_tuner::inputs::standard_normal;

/// What keys and queries look like.
#[derive(Clone, Copy, Debug)]
pub struct Clustered {
    /// Clusters; keys of one follow each other, as many in each.
    pub clusters: usize,
    /// The standard deviation of the columns of a key around its centre, whose columns are standard normal.
    pub sigma: f32,
    /// Whether the queries of a cluster follow each other too; else they come in turn, a row of every cluster.
    pub grouped: bool,
}

/// Keys and queries of `heads` heads, `[heads, rows, d]` each: queries are drawn as keys are.
#[derive(Clone, Debug)]
pub struct Rows {
    /// `[heads, queries, d]`
    pub q: Vec<f32>,
    /// `[heads, keys, d]`
    pub k: Vec<f32>,
}

impl Clustered {
    /// Rows of `d` columns. Without clusters, all columns are standard normal.
    pub fn rows(&self, seed: u64, heads: usize, [queries, keys]: [usize; 2], d: usize) -> Rows {
        let mut rows =
            Rows { q: standard_normal(seed, heads * queries * d), k: standard_normal(seed + 1, heads * keys * d) };
        if self.clusters == 0 {
            return rows;
        }
        let centres = standard_normal(seed + 2, heads * self.clusters * d);
        let Self { clusters, sigma, grouped } = *self;
        let place = |data: &mut [f32], count: usize, grouped: bool| {
            for (row, columns) in data.chunks_exact_mut(d).enumerate() {
                let (head, row) = (row / count, row % count);
                let cluster = if grouped { row * clusters / count } else { row % clusters };
                let centre = &centres[(head * clusters + cluster) * d..][..d];
                columns.iter_mut().zip(centre).for_each(|(x, c)| *x = c + sigma * *x);
            }
        };
        place(&mut rows.k, keys, true);
        place(&mut rows.q, queries, grouped);
        rows
    }
}
