//! A problem to time candidates on, and the gate that each has to pass before it is timed.

use std::cell::RefCell;

use regard_kernels::launch::{self, Call, Executor, Outputs, Sequence, Temperatures};
use regard_kernels::tensor::Tensor;
use regard_kernels::view::{View, ViewMut};
use regard_kernels::weighting::{AnyWeighting, Kind};
use regard_kernels::{Count, Schedule, Shift};
use regard_simd::{Isa, Level};

use super::Anchor;
use super::space::Candidate;
use crate::inputs::standard_normal;
use crate::stats::Random;

/// f32 on both sides of what a kernel may write.
const GUARD: usize = 64;

/// What is there before, in guards and in outputs: a NaN that no arithmetic makes.
const UNTOUCHED: u32 = 0x7fa5_5a5a;

/// Rows that are checked of every head.
const SAMPLED_ROWS: usize = 8;

/// How far an output may be from the f64 reference, over the sum of the magnitudes that it is made of. Rounding stays
/// below a tenth of that for any length in use; a wrong tile is off by more than a hundred times as much.
const TOLERANCE: f64 = 2e-5;

/// The problem of an anchor, with memory for inputs, output and workspace.
pub(super) struct Case {
    pub(super) anchor: Anchor,
    level: Level,
    inputs: [Vec<f32>; 3],
    weighting: Box<dyn AnyWeighting>,
    sequences: [Sequence; 1],
    buffers: RefCell<Buffers>,
    rows: Vec<SampledRow>,
}

/// With guards around both.
struct Buffers {
    out: Vec<f32>,
    workspace: Vec<f32>,
}

/// A row of the output by the definition.
struct SampledRow {
    head: usize,
    query: usize,
    /// Value and tolerance of each column.
    columns: Vec<(f64, f64)>,
}

/// The thread that asks does it.
struct Serial;

impl Executor for Serial {
    fn threads(&self) -> usize {
        1
    }

    fn run(&self, work: &(dyn Fn() + Sync)) {
        work();
    }
}

impl Case {
    pub(super) fn new(level: Level, anchor: Anchor) -> Self {
        let Anchor { head_dim, queries, keys, heads, .. } = anchor;
        let normal = |seed, rows: usize| standard_normal(seed, heads * rows * head_dim);
        let mut case = Self {
            anchor,
            level,
            inputs: [normal(1, queries), normal(2, keys), normal(3, keys)],
            weighting: anchor.weighting(),
            sequences: [Sequence {
                batch: 0,
                first_query: 0,
                queries,
                first_key: 0,
                keys,
                band: anchor.band(),
                offset: 0,
            }],
            buffers: RefCell::new(Buffers {
                out: vec![f32::from_bits(UNTOUCHED); heads * queries * head_dim + 2 * GUARD],
                workspace: Vec::new(),
            }),
            rows: Vec::new(),
        };
        case.rows = case.sample_rows();
        case
    }

    fn call(&self) -> Call<'_> {
        let Anchor { head_dim, queries, keys, heads, .. } = self.anchor;
        let [q, k, v] = &self.inputs;
        let view = |data, rows| {
            let view = View::bhsd(data, [1, heads, rows, head_dim]).expect("inputs are as long as their shape");
            Tensor::F32(view)
        };
        Call {
            q: view(q, queries),
            k: view(k, keys),
            v: view(v, keys),
            pages: None,
            sequences: &self.sequences,
            keep: None,
            bias: None,
            alibi_slopes: None,
            sinks: None,
            scale: self.scale(),
            softcap: None,
            temperature: Temperatures::One(1.0),
            schedule: Schedule::Constant,
            count: Count::AllKeys,
            shift: Shift::Constant(0.0),
            coefficient: 1.0,
            exponent: 0.0,
            weighting: &*self.weighting,
        }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.anchor.head_dim as f32).sqrt()
    }

    /// Makes the workspace long enough for a candidate, so that timed calls allocate nothing.
    fn prepare(&self, candidate: &Candidate) {
        let needed = launch::workspace_len(&self.call(), &candidate.choice(self.level), 1) + 2 * GUARD;
        let mut buffers = self.buffers.borrow_mut();
        if buffers.workspace.len() < needed {
            buffers.workspace.resize(needed, f32::from_bits(UNTOUCHED));
        }
    }

    /// Computes the problem once. The candidate has been verified.
    pub(super) fn run(&self, candidate: &Candidate) {
        let choice = candidate.choice(self.level);
        let call = self.call();
        let Anchor { head_dim, queries, heads, .. } = self.anchor;
        let mut buffers = self.buffers.borrow_mut();
        let Buffers { out, workspace } = &mut *buffers;
        let within = GUARD..out.len() - GUARD;
        let out = ViewMut::bhsd(&mut out[within], [1, heads, queries, head_dim]).expect("the output has this shape");
        let end = workspace.len() - GUARD;
        let outputs = Outputs::Rows { out: out.into(), lse: None };
        launch::run(&call, &choice, outputs, &mut workspace[GUARD..end], &Serial);
    }

    /// Computes the problem once, and says what is wrong with the result or with the memory around it.
    pub(super) fn verify(&self, candidate: &Candidate) -> Result<(), String> {
        self.prepare(candidate);
        {
            let mut buffers = self.buffers.borrow_mut();
            buffers.out.fill(f32::from_bits(UNTOUCHED));
            buffers.workspace.fill(f32::from_bits(UNTOUCHED));
        }
        self.run(candidate);
        let buffers = self.buffers.borrow();
        for (name, memory) in [("output", &buffers.out), ("workspace", &buffers.workspace)] {
            let guards = memory[..GUARD].iter().chain(&memory[memory.len() - GUARD..]);
            if guards.into_iter().any(|x| x.to_bits() != UNTOUCHED) {
                return Err(format!("wrote beyond the {name}"));
            }
        }
        let out = &buffers.out[GUARD..buffers.out.len() - GUARD];
        if out.iter().any(|x| !x.is_finite()) {
            return Err("left outputs unwritten, or wrote NaN".to_owned());
        }
        self.check(out)
    }

    fn check(&self, out: &[f32]) -> Result<(), String> {
        let Anchor { head_dim, queries, .. } = self.anchor;
        for SampledRow { head, query, columns } in &self.rows {
            let found = &out[(head * queries + query) * head_dim..][..head_dim];
            for (column, (found, (expected, tolerance))) in found.iter().zip(columns).enumerate() {
                if (f64::from(*found) - expected).abs() > *tolerance {
                    return Err(format!(
                        "gave {found} for {expected} in column {column} of row {query} of head {head}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Rows by the definition: the first and the last of each head, and some between.
    fn sample_rows(&self) -> Vec<SampledRow> {
        let Anchor { queries, heads, .. } = self.anchor;
        let mut random = Random::new(4);
        let mut rows = Vec::new();
        for head in 0..heads {
            for sample in 0..SAMPLED_ROWS.min(queries) {
                let query = match sample {
                    0 => 0,
                    1 => queries - 1,
                    _ => random.below(queries),
                };
                rows.push(self.reference(head, query));
            }
        }
        rows
    }

    fn reference(&self, head: usize, query: usize) -> SampledRow {
        let Anchor { head_dim, keys, .. } = self.anchor;
        let call = self.call();
        let seen = self.sequences[0].band.visible(query, keys);
        let visible: Vec<bool> = (0..keys).map(|key| seen.contains(&key)).collect();
        let product = |key: usize| {
            let pairs = (0..head_dim).map(|c| (call.q.get([0, head, query, c]), call.k.get([0, head, key, c])));
            if self.weighting.kind() == Kind::Weighted {
                return pairs.map(|(q, k)| f64::from(q) * f64::from(k)).sum();
            }
            // Selection is defined on scores as f32 rounds them, which decides ties.
            f64::from(pairs.fold(0.0_f32, |sum, (q, k)| match self.level.isa() {
                Isa::Portable => sum + q * k,
                _ => q.mul_add(k, sum),
            }))
        };
        let scores: Vec<f64> = (0..keys)
            .map(|key| if visible[key] { f64::from(self.scale()) * product(key) } else { f64::NEG_INFINITY })
            .collect();
        let mut weights = vec![0.0; keys];
        self.weighting.weights_f64(&scores, &visible, None, &mut weights);
        let columns = (0..head_dim).map(|c| {
            let terms = seen.clone().map(|key| weights[key] * f64::from(call.v.get([0, head, key, c])));
            terms.fold((0.0, 0.0), |(sum, tolerance), term| (sum + term, tolerance + TOLERANCE * term.abs()))
        });
        SampledRow { head, query, columns: columns.collect() }
    }
}

#[cfg(test)]
mod tests {
    use regard_kernels::table::kernels;
    use regard_profile::Family;

    use super::super::space::f32_kernels;
    use super::*;

    fn small(family: Family) -> Case {
        let anchor = Anchor { family, causal: true, head_dim: 9, queries: 37, keys: 50, heads: 2 };
        Case::new(Level::best(), anchor)
    }

    #[test]
    fn every_kernel_passes_the_gate() {
        for family in [Family::Exponential, Family::Selection, Family::Pointwise, Family::Normalised] {
            let case = small(family);
            for kernel in f32_kernels(case.level) {
                let candidate = Candidate { kernel, key_block: 16, query_block: 20 };
                assert_eq!(case.verify(&candidate), Ok(()), "{candidate:?}");
            }
        }
    }

    #[test]
    fn wrong_results_do_not() {
        let case = small(Family::Exponential);
        let candidate = Candidate { kernel: &kernels(case.level)[0], key_block: 16, query_block: 20 };
        case.verify(&candidate).unwrap();
        let mut out = case.buffers.borrow().out[GUARD..].to_vec();
        case.check(&out).unwrap();
        // The first column of the first row, which is always looked at.
        out[0] += 1e-3;
        assert!(case.check(&out).unwrap_err().contains("row 0 of head 0"));
    }
}
