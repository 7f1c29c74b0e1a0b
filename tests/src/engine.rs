//! Every kernel by itself: whatever a plan would choose, with any blocks, for any number of queries.

use std::sync::Arc;

use regard::reference::Rounding;
use regard::{Dtype, Execution, Isa, Keys, Level, Problem, Queries, SigmoidBias, Split, Temperature, Weighting};
use regard_kernels::launch::{self, Call, Choice, Outputs, PageTables, RowsChoice, Temperatures};
use regard_kernels::table::{Kernel, RowsKernel, kernels, rows_kernels, rows_kernels_for};
use regard_kernels::weighting::{
    AnyWeighting, AverageHard, Hard, Identity, Map, Normalised, Polynomial, Relu, ReluSquared, Side, Sigmoid, Softmax,
    Taylor2,
};
use regard_kernels::{Prefetch, Reading, Schedule, Shift};

use crate::run::{guarded, is_fixed, is_native};
use crate::spec::Bump;
use crate::{Case, Layout, Output, Path, levels, selects};

/// A kernel of either kind.
#[derive(Clone, Copy, Debug)]
pub enum Engine {
    /// Queries in lanes; keys and values of any element type if it multiplies f32.
    Lanes(&'static Kernel),
    /// Columns in lanes, for keys and values of one element type.
    Rows(&'static RowsKernel),
}

/// Blocks and everything else that is chosen besides a kernel.
#[derive(Clone, Copy, Debug)]
pub struct Blocks<'a> {
    /// Keys of a block; rounded up to what the kernel takes.
    pub keys: usize,
    /// Query rows of a task of a lanes kernel.
    pub queries: usize,
    /// Spans.
    pub split: Split,
    /// Whether a lanes kernel copies.
    pub copy: bool,
    /// Who does the work.
    pub execution: Execution<'a>,
    /// The layout of the output.
    pub layout: Layout,
    /// The element type of the output: f32, or that of q.
    pub out: Dtype,
    /// How memory is asked for.
    pub prefetch: Prefetch,
}

impl Blocks<'_> {
    /// Blocks of these sizes, no spans, one thread, a contiguous output of f32; another way of reading for one, two and more rows.
    pub fn new(keys: usize, queries: usize) -> Self {
        Self {
            keys,
            queries,
            split: Split::Never,
            copy: false,
            execution: Execution::Serial,
            layout: Layout::Bhsd,
            out: Dtype::F32,
            prefetch: Prefetch {
                rows: [
                    Reading { turn: 1, ahead: 0 },
                    Reading { turn: 4096, ahead: 0 },
                    Reading { turn: 0, ahead: 8192 },
                ],
            },
        }
    }
}

/// All lanes kernels of all levels of this machine, those with extensions too.
pub fn every_kernel() -> impl Iterator<Item = &'static Kernel> {
    levels().iter().flat_map(|level| kernels(*level))
}

/// All rows kernels of all levels of this machine, those with extensions too.
pub fn every_rows_kernel() -> impl Iterator<Item = &'static RowsKernel> {
    levels().iter().flat_map(|level| rows_kernels(*level))
}

/// All kernels of all levels of this machine, those with extensions too.
pub fn engines() -> impl Iterator<Item = Engine> {
    every_kernel().map(Engine::Lanes).chain(every_rows_kernel().map(Engine::Rows))
}

/// Those that compute keys and values of an element type.
pub fn engines_for(dtype: Dtype) -> impl Iterator<Item = Engine> {
    engines().filter(move |engine| engine.takes(dtype))
}

impl Engine {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lanes(kernel) => kernel.name,
            Self::Rows(kernel) => kernel.name,
        }
    }

    /// Its level.
    pub fn isa(self) -> Isa {
        match self {
            Self::Lanes(kernel) => kernel.isa,
            Self::Rows(kernel) => kernel.isa,
        }
    }

    /// Its level with the proof of it.
    pub fn level(self) -> Level {
        Level::of(self.isa()).expect("kernels come from available levels")
    }

    /// Whether it multiplies pairs of bf16.
    pub fn is_native(self) -> bool {
        is_native(self.name())
    }

    /// Whether it multiplies integers.
    pub fn is_fixed(self) -> bool {
        is_fixed(self.name())
    }

    /// Whether it takes keys and values of an element type.
    pub fn takes(self, dtype: Dtype) -> bool {
        match self {
            Self::Lanes(kernel) => kernel.dtype == dtype || kernel.dtype == Dtype::F32,
            Self::Rows(kernel) => kernel.dtype == dtype,
        }
    }

    /// The element type of keys and values that it is for.
    pub fn dtype(self) -> Dtype {
        match self {
            Self::Lanes(kernel) => kernel.dtype,
            Self::Rows(kernel) => kernel.dtype,
        }
    }

    /// An element type of q that goes with keys and values of this one: its own, or f32 with int8.
    pub fn q_dtype(self, kv: Dtype) -> Dtype {
        if kv == Dtype::Int8 { Dtype::F32 } else { kv }
    }

    /// Whether it multiplies f32 in parts on tile registers.
    pub fn is_in_parts(self) -> bool {
        self.name().contains("_lanes_f32_amx")
    }

    /// Whether it computes a weighting: selection is never done on products of pairs, or in parts.
    pub fn computes(self, weighting: &Weighting) -> bool {
        !((self.is_native() || self.is_fixed() || self.is_in_parts()) && selects(weighting))
    }

    /// Query rows of a register tile.
    pub fn tile_rows(self) -> usize {
        match self {
            Self::Lanes(kernel) => kernel.tile.rows,
            Self::Rows(kernel) => kernel.group,
        }
    }

    /// Keys of a block that it takes, `keys` or a few more.
    pub fn key_block(self, keys: usize) -> usize {
        keys.max(16).next_multiple_of(if matches!(self, Self::Rows(_)) { 32 } else { 2 })
    }

    fn choice(self, case: &Case<'_>, blocks: &Blocks<'_>) -> Choice {
        let (level, dtype) = (self.level(), case.k.dtype());
        let (kernel, rows, rows_up_to) = match self {
            Self::Lanes(kernel) => (kernel, rows_kernels_for(level, dtype, |_| false)[0], 0),
            Self::Rows(rows) => (&kernels(level)[0], rows, usize::MAX),
        };
        Choice {
            level,
            kernel,
            few: None,
            key_block: blocks.keys.max(16).next_multiple_of(2),
            query_block: blocks.queries,
            copy: blocks.copy,
            rows: [RowsChoice {
                kernel: rows,
                key_block: blocks.keys.next_multiple_of(32),
                up_to: rows_up_to,
                prefetch: blocks.prefetch,
            }; 2],
            split: blocks.split,
        }
    }

    /// Runs a case, whatever its number of queries, with all that is written between guard bands.
    ///
    /// # Panics
    /// If the library finds an error in the case, or the kernel does not take it.
    pub fn run(self, case: &Case<'_>, blocks: &Blocks<'_>) -> Output {
        let problem = case.problem();
        assert!(
            self.takes(case.k.dtype()) && self.computes(&case.spec.weighting),
            "{} takes no such case",
            self.name()
        );
        case.agrees_with(problem.sequences());
        let choice = self.choice(case, blocks);
        let weighting = functions(&case.spec.weighting);
        let entries = entries(case);
        let paths = (problem.sequences().iter())
            .map(|sequence| {
                let key_block = self.key_block(blocks.keys);
                let span = blocks.split.span(sequence.queries, sequence.keys, key_block).min(sequence.keys.max(1));
                Path {
                    rounding: self.rounding(case.k.dtype()),
                    native: self.is_native(),
                    fixed: self.is_fixed(),
                    key_block,
                    span,
                    out: blocks.out,
                }
            })
            .collect();
        let call = call(case, &problem, &*weighting, &entries);
        let workspace = launch::workspace_len(&call, &choice, blocks.execution.threads());
        let (out, lse) = guarded(&problem, blocks.layout, blocks.out, workspace, |out, lse, workspace| {
            launch::run(&call, &choice, Outputs::Rows { out, lse }, workspace, &blocks.execution);
        });
        Output { out, lse, isa: self.isa(), paths }
    }

    fn rounding(self, dtype: Dtype) -> Rounding {
        match self {
            Self::Lanes(kernel) => Rounding::Chain(kernel.isa),
            Self::Rows(kernel) => Rounding::Lanes { isa: kernel.isa, dtype },
        }
    }
}

/// The pages of all sequences, if there are any.
fn entries(case: &Case<'_>) -> Option<(Vec<u32>, usize, bool)> {
    let own = || (0..case.sequences() as u32).collect();
    match (case.keys, case.queries) {
        (Keys::Paged(pages), _) => Some((pages.table.to_vec(), pages.pages_per_sequence, false)),
        (Keys::Ring { .. }, _) => Some((own(), 1, true)),
        (Keys::Padded, Queries::Packed(_)) => Some((own(), 1, false)),
        _ => None,
    }
}

/// The call of a case, as the library makes it.
fn call<'a>(
    case: &Case<'a>,
    problem: &'a Problem<'a>,
    weighting: &'a dyn AnyWeighting,
    entries: &'a Option<(Vec<u32>, usize, bool)>,
) -> Call<'a> {
    let (spec, shape) = (&case.spec, problem.shape());
    let pairs = [shape.batch, shape.query_heads, shape.queries, shape.keys];
    Call {
        q: case.q,
        k: case.k,
        v: case.v,
        pages: entries.as_ref().map(|(entries, stride, ring)| PageTables { entries, stride: *stride, ring: *ring }),
        index: None,
        sequences: problem.sequences(),
        keep: spec.keep.map(|keep| keep.broadcast(pairs).expect("the problem was checked")),
        bias: spec.bias.map(|bias| bias.broadcast(pairs).expect("the problem was checked")),
        alibi_slopes: spec.alibi,
        sinks: spec.sinks,
        scale: spec.scale(&shape) as f32,
        softcap: spec.softcap,
        temperature: match spec.temperature {
            None => Temperatures::One(1.0),
            Some(Temperature::Constant(temperature)) => Temperatures::One(temperature),
            Some(Temperature::PerHead(temperatures)) => Temperatures::PerHead(temperatures),
            Some(Temperature::PerRow(temperatures)) => Temperatures::PerRow(temperatures),
        },
        schedule: spec.log_n.map_or(Schedule::Constant, |factor| Schedule::LogN { factor }),
        count: match spec.count {
            None | Some(regard::Count::AllKeys) => regard_kernels::Count::AllKeys,
            Some(regard::Count::Visible) => regard_kernels::Count::Visible,
            Some(regard::Count::Constant(n)) => regard_kernels::Count::Constant(n),
        },
        shift: match spec.weighting {
            Weighting::Sigmoid { bias: SigmoidBias::Constant(bias) } => Shift::Constant(bias),
            Weighting::Sigmoid { bias: SigmoidBias::NegLogN } => Shift::NegLogN,
            _ => Shift::Constant(0.0),
        },
        coefficient: spec.coefficient.unwrap_or(1.0),
        exponent: spec.exponent(),
        weighting,
    }
}

/// The code of a weighting.
fn functions(weighting: &Weighting) -> Arc<dyn AnyWeighting> {
    match weighting {
        Weighting::Softmax => Arc::new(Softmax),
        Weighting::HardLeft => Arc::new(Hard { side: Side::Left }),
        Weighting::HardRight => Arc::new(Hard { side: Side::Right }),
        Weighting::AverageHard => Arc::new(AverageHard),
        Weighting::Relu => Arc::new(Map(Relu)),
        Weighting::ReluSquared => Arc::new(Map(ReluSquared)),
        Weighting::Polynomial { degree: 1 } => Arc::new(Map(Polynomial::<1>)),
        Weighting::Polynomial { degree: 2 } => Arc::new(Map(Polynomial::<2>)),
        Weighting::Polynomial { degree: 3 } => Arc::new(Map(Polynomial::<3>)),
        Weighting::Polynomial { degree: 4 } => Arc::new(Map(Polynomial::<4>)),
        Weighting::Polynomial { degree: 5 } => Arc::new(Map(Polynomial::<5>)),
        Weighting::Polynomial { degree: 6 } => Arc::new(Map(Polynomial::<6>)),
        Weighting::Polynomial { degree: 7 } => Arc::new(Map(Polynomial::<7>)),
        Weighting::Polynomial { degree: 8 } => Arc::new(Map(Polynomial::<8>)),
        Weighting::Sigmoid { .. } => Arc::new(Map(Sigmoid)),
        Weighting::EvenPower { degree: 2 } => Arc::new(Normalised(Polynomial::<2>)),
        Weighting::EvenPower { degree: 4 } => Arc::new(Normalised(Polynomial::<4>)),
        Weighting::EvenPower { degree: 6 } => Arc::new(Normalised(Polynomial::<6>)),
        Weighting::EvenPower { degree: 8 } => Arc::new(Normalised(Polynomial::<8>)),
        Weighting::Taylor2 => Arc::new(Normalised(Taylor2)),
        Weighting::Identity => Arc::new(Map(Identity)),
        Weighting::Custom(_) if weighting.name() == "bump" => Arc::new(Map(Bump)),
        other => panic!("{} has no code here", other.name()),
    }
}
