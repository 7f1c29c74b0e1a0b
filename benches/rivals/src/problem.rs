//! The work, as everybody gets it: f32 in `[heads, rows, columns]`.

use regard::{Align, Attention, Plan, Problem, Setup, View};
use regard_benches::largest_error;
use regard_tuner::inputs::standard_normal;

/// A problem of one sequence.
pub(crate) struct Work {
    pub(crate) heads: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) dim: usize,
    /// Whether query i sees keys 0 to i.
    pub(crate) causal: bool,
    pub(crate) q: Vec<f32>,
    pub(crate) k: Vec<f32>,
    pub(crate) v: Vec<f32>,
}

impl Work {
    pub(crate) fn new([heads, queries, keys, dim]: [usize; 4], causal: bool) -> Self {
        let normal = |seed, rows: usize| standard_normal(seed, heads * rows * dim);
        Self { heads, queries, keys, dim, causal, q: normal(1, queries), k: normal(2, keys), v: normal(3, keys) }
    }

    pub(crate) fn name(&self) -> String {
        let Self { heads, queries, keys, dim, causal, .. } = self;
        let mask = if *causal { "causal" } else { "full" };
        format!("{mask}/{queries}x{keys}/d{dim}/h{heads}")
    }

    pub(crate) fn scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }

    /// Elements of the output.
    pub(crate) fn out_len(&self) -> usize {
        self.heads * self.queries * self.dim
    }

    /// The same problem for the library.
    pub(crate) fn problem(&self) -> Problem<'_> {
        let Self { heads, queries, keys, dim, causal, q, k, v } = self;
        let view = |data, rows| View::bhsd(data, [1, *heads, rows, *dim]).expect("as many numbers as the shape has");
        let softmax = Attention::softmax();
        let options = if *causal { softmax.causal(Align::TopLeft) } else { softmax };
        Problem::new(&options, view(q, *queries), view(k, *keys), view(v, *keys)).expect("a legal problem")
    }

    /// The largest error of some rows of an output against the definition in f64.
    pub(crate) fn largest_error(&self, setup: &Setup, out: &[f32]) -> f64 {
        let problem = self.problem();
        let plan = Plan::new(&problem, setup);
        let at =
            |[_, head, query, column]: [usize; 4]| f64::from(out[(head * self.queries + query) * self.dim + column]);
        largest_error(&problem, &plan, &at)
    }
}
