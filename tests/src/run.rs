//! Runs with all that is written between guard bands, by plans and by kernels that no plan would choose.

use regard::reference::Rounding;
use regard::{Dtype, Execution, Isa, Plan, Problem, Setup, TensorMut, ViewMut, Weighting, bf16, f16};
use regard_simd::Element;

use crate::{Guarded, Layout, Poison};

/// How a sequence was computed, as far as its rounding depends on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Path {
    /// How products of queries and keys were rounded.
    pub rounding: Rounding,
    /// Whether products were those of pairs of bf16, and weights rounded to bf16.
    pub native: bool,
    /// Whether products were those of integers, with queries and weights in fixed point.
    pub fixed: bool,
    /// Keys of a block.
    pub key_block: usize,
    /// Keys of a span; all of them if it was not split.
    pub span: usize,
    /// The element type of the output.
    pub out: Dtype,
}

/// What a run gave, and how.
#[derive(Clone, Debug)]
pub struct Output {
    /// `[batch, query_heads, rows of q, d_v]`, contiguous and widened.
    pub out: Vec<f32>,
    /// `[batch, query_heads, rows of q]`; softmax only.
    pub lse: Option<Vec<f32>>,
    /// The level.
    pub isa: Isa,
    /// How each sequence was computed.
    pub paths: Vec<Path>,
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

    /// The rows `first..first + rows` of each of `heads` heads, of `all` rows each, as an output of their own.
    #[must_use]
    pub fn rows(&self, [heads, all]: [usize; 2], first: usize, rows: usize) -> Self {
        let columns = self.out.len().checked_div(heads * all).unwrap_or(0);
        let pick = |data: &[f32], width: usize| -> Vec<f32> {
            let head = |head: usize| &data[(head * all + first) * width..][..rows * width];
            (0..heads).flat_map(head).copied().collect()
        };
        Self { out: pick(&self.out, columns), lse: self.lse.as_ref().map(|lse| pick(lse, 1)), ..self.clone() }
    }
}

/// Panics unless both are the same bit for bit. NaN may have any bits.
pub fn same(a: &[f32], b: &[f32], what: &str) {
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
    run_plan_as(plan, problem, execution, layout, Dtype::F32)
}

/// The same with an output of this element type: f32, or that of q.
pub fn run_plan_as(
    plan: &Plan,
    problem: &Problem<'_>,
    execution: Execution<'_>,
    layout: Layout,
    dtype: Dtype,
) -> Output {
    let len = plan.workspace_len(execution.threads());
    let (out, lse) = guarded(problem, layout, dtype, len, |out, lse, workspace| {
        plan.run(problem, out, lse, workspace, execution).expect("a checked problem runs");
    });
    Output { out, lse, isa: plan.isa(), paths: paths(plan, problem, dtype) }
}

/// How a plan computes each sequence of a problem.
pub fn paths(plan: &Plan, problem: &Problem<'_>, out: Dtype) -> Vec<Path> {
    let path = |sequence: &regard::Sequence| Path {
        rounding: plan.rounding(sequence),
        native: is_native(plan.kernel_for(sequence.queries)),
        fixed: is_fixed(plan.kernel_for(sequence.queries)),
        key_block: plan.key_block_for(sequence.queries),
        span: plan.span_for(sequence.queries, sequence.keys),
        out,
    };
    problem.sequences().iter().map(path).collect()
}

/// Whether a kernel of this name multiplies pairs of bf16.
pub fn is_native(kernel: &str) -> bool {
    kernel.contains("_lanes_bf16") || kernel.contains("_bf16_dots") || kernel.contains("_bf16_amx")
}

/// Whether a kernel of this name multiplies integers.
pub fn is_fixed(kernel: &str) -> bool {
    kernel.contains("_int8_dots") || kernel.contains("_int8_amx")
}

/// What computes a problem into an output and a log-sum-exp, in a workspace.
pub(crate) trait Compute: FnOnce(TensorMut<'_>, Option<&mut [f32]>, &mut [f32]) {}

impl<F: FnOnce(TensorMut<'_>, Option<&mut [f32]>, &mut [f32])> Compute for F {}

/// Output and log-sum-exp of what is computed between guard bands. Rows of q that belong to no sequence must stay poisoned, and
/// are zero in what is given.
pub(crate) fn guarded(
    problem: &Problem<'_>,
    layout: Layout,
    dtype: Dtype,
    workspace: usize,
    compute: impl Compute,
) -> (Vec<f32>, Option<Vec<f32>>) {
    match dtype {
        Dtype::F32 => guarded_as::<f32>(problem, layout, workspace, compute),
        Dtype::F16 => guarded_as::<f16>(problem, layout, workspace, compute),
        Dtype::Bf16 => guarded_as::<bf16>(problem, layout, workspace, compute),
        Dtype::Int8 => panic!("no output is quantised"),
    }
}

fn guarded_as<T: Poison + Element>(
    problem: &Problem<'_>,
    layout: Layout,
    workspace: usize,
    compute: impl Compute,
) -> (Vec<f32>, Option<Vec<f32>>)
where
    for<'a> TensorMut<'a>: From<ViewMut<'a, T>>,
{
    let shape = problem.shape().out();
    let (strides, reach) = layout.strides(shape);
    let mut out = Guarded::<T>::of(reach);
    let mut lse = Guarded::new(problem.shape().rows());
    let mut workspace = Guarded::new(workspace);
    let has_lse = matches!(problem.options().weighting(), Weighting::Softmax);
    let view = ViewMut::strided(out.inner(), shape, strides).expect("a layout does not overlap");
    compute(view.into(), has_lse.then(|| lse.inner()), workspace.inner());
    out.check("out");
    lse.check("lse");
    workspace.check("workspace");
    if !has_lse {
        lse.check_untouched("lse");
    }
    let taken = taken(problem);
    let rows = shape[2];
    let of = |index: usize| taken[index / (shape[1] * rows).max(1) * rows + index % rows.max(1)];
    for (index, lse) in lse.inner().iter_mut().enumerate().filter(|_| has_lse) {
        assert_ne!(lse.is_poison(), of(index), "log-sum-exp of row {index}");
        if !of(index) {
            *lse = 0.0;
        }
    }
    (collect(out.inner(), shape, strides, &taken), has_lse.then(|| lse.inner().to_vec()))
}

/// `[batch entries of q, rows of q]`: whether a row belongs to a sequence.
fn taken(problem: &Problem<'_>) -> Vec<bool> {
    let [batch, _, rows, _] = problem.shape().out();
    let mut taken = vec![false; batch * rows];
    for sequence in problem.sequences() {
        let first = sequence.batch * rows + sequence.first_query;
        taken[first..first + sequence.queries].fill(true);
    }
    taken
}

/// The elements of a tensor in the order of the indices, after a look at the gaps.
fn collect<T: Poison + Element>(data: &mut [T], shape: [usize; 4], strides: [usize; 4], taken: &[bool]) -> Vec<f32> {
    let [batch, heads, rows, columns] = shape;
    let mut elements = Vec::with_capacity(shape.iter().product());
    for b in 0..batch {
        for h in 0..heads {
            for r in 0..rows {
                let start = b * strides[0] + h * strides[1] + r * strides[2];
                let row = &mut data[start..start + columns];
                if taken[b * rows + r] {
                    elements.extend(row.iter().map(|x| x.widen()));
                    let missed = row.iter().position(|x| x.is_poison());
                    assert!(missed.is_none(), "out: column {missed:?} of row {:?} was not written", [b, h, r]);
                    row.fill(T::poison());
                } else {
                    elements.resize(elements.len() + columns, 0.0);
                }
            }
        }
    }
    let written = data.iter().position(|x| !x.is_poison());
    assert!(written.is_none(), "out: element {written:?} between its rows was written");
    elements
}
