//! Keys in clusters, and runs with an index and without.

use regard::{Attention, Execution, KeyIndex, Plan, Problem, Setup, Split, View, ViewMut, Weighting};
use regard_kernels::table::kernels;
use regard_tests::{Random, SLOW, levels, same, setup_for, setup_of};

pub(crate) const D: usize = 16;
pub(crate) const D_V: usize = 7;

/// Queries and keys of some heads.
pub(crate) struct Data {
    pub(crate) q: Vec<f32>,
    pub(crate) k: Vec<f32>,
    pub(crate) v: Vec<f32>,
    /// Query heads and KV heads.
    pub(crate) heads: [usize; 2],
    pub(crate) queries: usize,
    pub(crate) keys: usize,
}

impl Data {
    /// Keys in clusters of 64 neighbours, queries in turn from each.
    pub(crate) fn clustered(heads: [usize; 2], [queries, keys]: [usize; 2], sigma: f32) -> Self {
        let random = &mut Random::new((queries * 31 + keys) as u64);
        let clusters = keys.div_ceil(64).max(1);
        let centres = random.normals(heads[1] * clusters * D);
        let group = heads[0] / heads[1].max(1);
        let mut rows = |heads: usize, rows: usize, group: usize, cluster: &dyn Fn(usize) -> usize| -> Vec<f32> {
            let mut all = Vec::new();
            for head in 0..heads {
                for row in 0..rows {
                    let centre = &centres[(head / group * clusters + cluster(row)) * D..][..D];
                    all.extend(centre.iter().map(|c| c + sigma * random.normal()));
                }
            }
            all
        };
        let k = rows(heads[1], keys, 1, &|row| row / 64);
        let q = rows(heads[0], queries, group, &|row| row * 7 % clusters);
        Self { q, k, v: random.normals(heads[1] * keys * D_V), heads, queries, keys }
    }

    /// Whole numbers, few of them different: ties everywhere.
    pub(crate) fn tied([queries, keys]: [usize; 2], most: usize) -> Self {
        let random = &mut Random::new((queries + keys + most) as u64);
        let mut numbers = |rows: usize| -> Vec<f32> { (0..rows * D).map(|_| random.integer(most)).collect() };
        let (q, k) = (numbers(2 * queries), numbers(2 * keys));
        Self { q, k, v: random.normals(2 * keys * D_V), heads: [2, 2], queries, keys }
    }

    pub(crate) fn q(&self) -> View<'_, f32> {
        View::bhsd(&self.q, [1, self.heads[0], self.queries, D]).unwrap()
    }

    pub(crate) fn k(&self) -> View<'_, f32> {
        View::bhsd(&self.k, [1, self.heads[1], self.keys, D]).unwrap()
    }

    pub(crate) fn v(&self) -> View<'_, f32> {
        View::bhsd(&self.v, [1, self.heads[1], self.keys, D_V]).unwrap()
    }

    pub(crate) fn problem<'a>(&'a self, options: &Attention<'a>) -> Problem<'a> {
        Problem::new(options, self.q(), self.k(), self.v()).unwrap()
    }

    pub(crate) fn index(&self) -> KeyIndex {
        KeyIndex::with_values(self.k(), self.v()).unwrap()
    }
}

pub(crate) fn run_with(problem: &Problem<'_>, setup: &Setup, execution: Execution<'_>) -> Vec<f32> {
    let shape = problem.shape().out();
    let mut out = vec![f32::NAN; shape.iter().product()];
    let plan = Plan::new(problem, setup);
    let mut workspace = vec![f32::NAN; plan.workspace_len(execution.threads())];
    plan.run(problem, ViewMut::bhsd(&mut out, shape).unwrap(), None, &mut workspace, execution).unwrap();
    out
}

/// With an index and without: the same bits.
pub(crate) fn check(data: &Data, options: &Attention<'_>, setup: &Setup, what: &str) {
    let problem = data.problem(options);
    let index = data.index();
    let indexed = problem.clone().with_index(&index).unwrap();
    let expected = run_with(&problem, setup, Execution::Serial);
    let found = run_with(&indexed, setup, Execution::Serial);
    same(&found, &expected, &format!("{what} {options:?} {:?}", setup.level));
}

pub(crate) const SELECTIONS: [Weighting; 3] = [Weighting::HardLeft, Weighting::HardRight, Weighting::AverageHard];

/// Every kernel, small blocks of keys and of queries, so that blocks of the index and of the kernel lie across each other.
pub(crate) fn setups() -> Vec<Setup> {
    let mut all = Vec::new();
    for level in levels() {
        all.push(setup_of(*level));
        for kernel in kernels(*level) {
            for (key_block, query_block) in if SLOW { vec![(48, 64)] } else { vec![(16, 40), (48, 64), (160, 512)] } {
                all.push(setup_for(kernel, key_block, query_block));
            }
        }
    }
    all
}

pub(crate) fn at<'a>(setup: &Setup, weighting: &Weighting) -> Attention<'a> {
    Attention::new(weighting.clone()).isa(setup.level.isa()).split(Split::Never)
}
