//! Memory that notices when somebody writes where nothing was asked for, and runs within it.

use regard::{Execution, Isa, Plan, Problem, Setup, ViewMut, Weighting};

/// Elements of a guard band on each side.
pub const GUARD: usize = 67;

/// The bits of what lies where nobody may read or write: a NaN that no operation makes.
const POISON: u32 = 0x7fd5_aa55;

/// A NaN that no operation makes: whoever computes with it gives NaN, and whoever overwrites it is found out.
pub fn poison() -> f32 {
    f32::from_bits(POISON)
}

/// How a tensor `[batch, heads, rows, columns]` lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Contiguous, in the order of the dimensions.
    Bhsd,
    /// Contiguous, with rows before heads.
    Bshd,
    /// In the order of the dimensions, with gaps after rows, heads and batch entries.
    Padded,
    /// Rows before heads, with gaps: a slice of a packed QKV projection.
    PaddedBshd,
}

impl Layout {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Bhsd, Self::Bshd, Self::Padded, Self::PaddedBshd];

    /// Strides, and the number of elements from the first to the last.
    pub fn strides(self, shape: [usize; 4]) -> ([usize; 4], usize) {
        let [_, heads, rows, columns] = shape;
        let strides = match self {
            Self::Bhsd => [heads * rows * columns, rows * columns, columns, 1],
            Self::Bshd => [rows * heads * columns, columns, heads * columns, 1],
            Self::Padded => {
                let row = columns + 5;
                let head = rows * row + 3;
                [heads * head + 11, head, row, 1]
            }
            Self::PaddedBshd => {
                let head = columns + 1;
                let row = heads * head + 7;
                [rows * row + 2, head, row, 1]
            }
        };
        if shape.contains(&0) {
            return (strides, 0);
        }
        (strides, 1 + shape.iter().zip(strides).map(|(size, stride)| (size - 1) * stride).sum::<usize>())
    }
}

/// A buffer between two guard bands, all of it poisoned.
#[derive(Clone, Debug)]
pub struct Guarded(Vec<f32>);

impl Guarded {
    /// A buffer of `len` elements.
    pub fn new(len: usize) -> Self {
        Self(vec![poison(); GUARD + len + GUARD])
    }

    /// The buffer.
    pub fn inner(&mut self) -> &mut [f32] {
        let end = self.0.len() - GUARD;
        &mut self.0[GUARD..end]
    }

    /// Panics if an element of the guard bands was written.
    pub fn check(&self, name: &str) {
        let end = self.0.len() - GUARD;
        let bad = (0..GUARD).chain(end..end + GUARD).find(|i| self.0[*i].to_bits() != POISON);
        assert!(bad.is_none(), "{name}: wrote {:?} elements from its start", bad.map(|i| i as isize - GUARD as isize));
    }

    /// Panics if anything at all was written.
    pub fn check_untouched(&self, name: &str) {
        let bad = self.0.iter().position(|x| x.to_bits() != POISON);
        assert!(bad.is_none(), "{name}: element {:?} was written", bad.map(|i| i as isize - GUARD as isize));
    }
}

/// What a run gave, and how.
#[derive(Clone, Debug)]
pub struct Output {
    /// `[batch, query_heads, queries, d_v]`, contiguous.
    pub out: Vec<f32>,
    /// `[batch, query_heads, queries]`; softmax only.
    pub lse: Option<Vec<f32>>,
    /// The level.
    pub isa: Isa,
    /// The key block.
    pub key_block: usize,
}

impl Output {
    /// Panics unless both are the same bit for bit. NaN may have any bits.
    pub fn assert_same(&self, other: &Self, what: &str) {
        same(&self.out, &other.out, what);
        match (&self.lse, &other.lse) {
            (Some(a), Some(b)) => same(a, b, what),
            (None, None) => {}
            _ => panic!("{what}: only one has a log-sum-exp"),
        }
    }
}

fn same(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let differ = |(x, y): (&f32, &f32)| x.to_bits() != y.to_bits() && !(x.is_nan() && y.is_nan());
    if let Some(i) = a.iter().zip(b).position(differ) {
        panic!("{what}: element {i} is {:e} ({:#010x}) or {:e} ({:#010x})", a[i], a[i].to_bits(), b[i], b[i].to_bits());
    }
}

/// Plans and runs a problem, with all that is written between guard bands.
pub fn run(problem: &Problem<'_>, setup: &Setup, execution: Execution<'_>) -> Output {
    run_into(problem, setup, execution, Layout::Bhsd)
}

/// The same, with the output in some layout; gaps between its rows are checked too.
pub fn run_into(problem: &Problem<'_>, setup: &Setup, execution: Execution<'_>, layout: Layout) -> Output {
    run_plan(&Plan::new(problem, setup), problem, execution, layout)
}

/// The same with a plan of the caller's.
pub fn run_plan(plan: &Plan, problem: &Problem<'_>, execution: Execution<'_>, layout: Layout) -> Output {
    let shape = problem.shape().out();
    let (strides, reach) = layout.strides(shape);
    let mut out = Guarded::new(reach);
    let mut lse = Guarded::new(problem.shape().rows());
    let mut workspace = Guarded::new(plan.workspace_len(execution.threads()));
    let has_lse = matches!(problem.options().weighting(), Weighting::Softmax);
    let view = ViewMut::strided(out.inner(), shape, strides).expect("a layout does not overlap");
    plan.run(problem, view, has_lse.then(|| lse.inner()), workspace.inner(), execution)
        .expect("a checked problem runs");
    out.check("out");
    lse.check("lse");
    workspace.check("workspace");
    if !has_lse {
        lse.check_untouched("lse");
    }
    Output {
        out: collect(out.inner(), shape, strides),
        lse: has_lse.then(|| lse.inner().to_vec()),
        isa: plan.isa(),
        key_block: plan.key_block(),
    }
}

/// The elements of a tensor in the order of the indices, after a look at the gaps.
fn collect(data: &mut [f32], shape: [usize; 4], strides: [usize; 4]) -> Vec<f32> {
    let [batch, heads, rows, columns] = shape;
    let mut elements = Vec::with_capacity(shape.iter().product());
    for b in 0..batch {
        for h in 0..heads {
            for r in 0..rows {
                let start = b * strides[0] + h * strides[1] + r * strides[2];
                elements.extend_from_slice(&data[start..start + columns]);
                let row = &mut data[start..start + columns];
                let missed = row.iter().position(|x| x.to_bits() == POISON);
                assert!(missed.is_none(), "out: column {missed:?} of row {:?} was not written", [b, h, r]);
                row.fill(poison());
            }
        }
    }
    let written = data.iter().position(|x| x.to_bits() != POISON);
    assert!(written.is_none(), "out: element {written:?} between its rows was written");
    elements
}
