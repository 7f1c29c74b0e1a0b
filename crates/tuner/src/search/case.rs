//! A problem to time candidates on, and the gate that each has to pass before it is timed.

use std::cell::{Cell, RefCell};

use regard_kernels::launch::{self, Call, Executor, Outputs, Sequence, Temperatures};
use regard_kernels::tensor::{Dtype, Tensor};
use regard_kernels::view::ViewMut;
use regard_kernels::weighting::{AnyWeighting, Kind};
use regard_kernels::{Count, Schedule, Shift};
use regard_simd::Isa;

use super::Anchor;
use super::space::{Candidate, Kernels};
use crate::inputs::{Array, Elements, Order, standard_normal};
use crate::measure::memory;
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

/// The same where weights are rounded to bf16, which is off by up to 2^-9 of each.
const TOLERANCE_OF_PAIRS: f64 = 8e-3;

/// The same where queries may be rounded to 16 bits of the largest of their row: 2^-16 of it for each element, which scores of a
/// few units feel as some 2^-14.
const TOLERANCE_OF_FIXED: f64 = 5e-4;

/// What is added then for each key, over the magnitude of its value times the largest weight of its row: weights are rounded to
/// 16 bits of that, whatever they are themselves. (All scales of values are the same here.)
const QUANTUM_OF_WEIGHTS: f64 = 1.0 / 65_536.0 * 1.01;

/// Different numbers in an input; longer ones repeat them. No multiple of any dimension, so that no two rows are the same.
const NUMBERS: usize = 65_537;

/// How many times as large as the last-level cache the inputs are that come from memory: caches keep a part of what is swept
/// over them.
const EXCEEDING: usize = 4;

/// The most that they take, in bytes, whatever the cache is said to be (see [`crate::measure::ReadProbe::bytes_for`]): a search of a minute has a
/// dozen such problems, and memory that is written for the first time takes a second for a GiB.
pub(super) const MOST_STREAMED: usize = 512 << 20;

/// What int8 inputs are divided by: standard normal numbers then fill the bytes.
const INT8_SCALE: f32 = 1.0 / 32.0;

/// The problem of an anchor, with memory for inputs, output and workspace.
pub(super) struct Case {
    pub(super) anchor: Anchor,
    kernels: Kernels,
    q: Array,
    /// k and v, in as many copies as are used in turn.
    kv: [Array; 2],
    next: Cell<usize>,
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
    /// `kernels` are those of the anchor's element type. `cache` is the size of the last-level cache, which the inputs of
    /// streaming anchors exceed.
    pub(super) fn new(kernels: Kernels, anchor: Anchor, cache: usize) -> Self {
        let Anchor { dtype, head_dim, queries, keys, heads, group, .. } = anchor;
        let streamed = cache.saturating_mul(EXCEEDING).min(MOST_STREAMED).min(memory::room());
        let exceeding = streamed.div_ceil(anchor.kv_bytes().max(1)) + 1;
        let copies = if anchor.streams { exceeding } else { 1 };
        let q_dtype = if dtype == Dtype::Int8 { Dtype::F32 } else { dtype };
        let mut case = Self {
            anchor,
            kernels,
            q: array(1, [1, heads * group, queries, head_dim], q_dtype).repeated(1),
            kv: [2, 3].map(|seed| array(seed, [1, heads, keys, head_dim], dtype).repeated(copies)),
            next: Cell::new(0),
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
                out: vec![f32::from_bits(UNTOUCHED); heads * group * queries * head_dim + 2 * GUARD],
                workspace: Vec::new(),
            }),
            rows: Vec::new(),
        };
        case.rows = case.sample_rows();
        case
    }

    fn call(&self, copy: usize) -> Call<'_> {
        let [k, v] = &self.kv;
        Call {
            q: tensor(&self.q, 0),
            k: tensor(k, copy),
            v: tensor(v, copy),
            pages: None,
            index: None,
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
    pub(super) fn prepare(&self, candidate: &Candidate) {
        let needed = launch::workspace_len(&self.call(0), &candidate.choice(self.kernels), 1) + 2 * GUARD;
        let mut buffers = self.buffers.borrow_mut();
        if buffers.workspace.len() < needed {
            buffers.workspace.resize(needed, f32::from_bits(UNTOUCHED));
        }
    }

    /// Computes the problem once. The candidate has been verified.
    pub(super) fn run(&self, candidate: &Candidate) {
        let Anchor { head_dim, queries, heads, group, .. } = self.anchor;
        let choice = candidate.choice(self.kernels);
        let copy = self.next.replace((self.next.get() + 1) % self.kv[0].copies());
        let call = self.call(copy);
        let mut buffers = self.buffers.borrow_mut();
        let Buffers { out, workspace } = &mut *buffers;
        let within = GUARD..out.len() - GUARD;
        let out =
            ViewMut::bhsd(&mut out[within], [1, heads * group, queries, head_dim]).expect("the output has this shape");
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
        let Anchor { queries, heads, group, .. } = self.anchor;
        let mut random = Random::new(4);
        let mut rows = Vec::new();
        for head in 0..heads * group {
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
        let Anchor { dtype, head_dim, keys, group, .. } = self.anchor;
        let call = self.call(0);
        let kv_head = head / group;
        let (relative, quantum) = match dtype {
            _ if self.kernels.multiply_pairs() => (TOLERANCE_OF_PAIRS, 0.0),
            Dtype::Int8 => (TOLERANCE_OF_FIXED, QUANTUM_OF_WEIGHTS),
            _ => (TOLERANCE, 0.0),
        };
        let seen = self.sequences[0].band.visible(query, keys);
        let visible: Vec<bool> = (0..keys).map(|key| seen.contains(&key)).collect();
        let product = |key: usize| {
            let pairs = (0..head_dim).map(|c| (call.q.get([0, head, query, c]), call.k.get([0, kv_head, key, c])));
            if self.weighting.kind() == Kind::Weighted {
                return pairs.map(|(q, k)| f64::from(q) * f64::from(k)).sum();
            }
            // Selection is defined on scores as f32 rounds them, which decides ties.
            f64::from(pairs.fold(0.0_f32, |sum, (q, k)| match self.kernels.level.isa() {
                Isa::Portable => sum + q * k,
                _ => q.mul_add(k, sum),
            }))
        };
        let scores: Vec<f64> = (0..keys)
            .map(|key| if visible[key] { f64::from(self.scale()) * product(key) } else { f64::NEG_INFINITY })
            .collect();
        let mut weights = vec![0.0; keys];
        self.weighting.weights_f64(&scores, &visible, None, &mut weights);
        let quantum = quantum * weights.iter().fold(0.0, |largest, weight| weight.abs().max(largest));
        let columns = (0..head_dim).map(|c| {
            seen.clone().fold((0.0, 0.0), |(sum, tolerance), key| {
                let (weight, value) = (weights[key], f64::from(call.v.get([0, kv_head, key, c])));
                (sum + weight * value, tolerance + (relative * weight.abs() + quantum) * value.abs())
            })
        });
        SampledRow { head, query, columns: columns.collect() }
    }
}

/// The input of a tensor.
fn tensor(array: &Array, copy: usize) -> Tensor<'_> {
    array.tensor(copy).expect("inputs are as long as their shape")
}

/// Numbers of a type, contiguous.
fn array(seed: u64, shape: [usize; 4], dtype: Dtype) -> Array {
    let count = shape.iter().product();
    let numbers = standard_normal(seed, NUMBERS.min(count));
    let all: Vec<f32> = numbers.iter().copied().cycle().take(count).collect();
    let elements = match dtype {
        Dtype::Int8 => {
            // A cast saturates.
            let bytes = all.iter().map(|x| (x / INT8_SCALE).round() as i8).collect();
            Elements::Int8(bytes, vec![INT8_SCALE; shape[..3].iter().product()])
        }
        dtype => Elements::rounded(all, dtype).expect("only bytes take a scale"),
    };
    Array::new(elements, shape, Order::HeadsFirst)
}

#[cfg(test)]
mod tests {
    use regard_profile::{Family, Machine};
    use regard_simd::Level;

    use super::super::Role;
    use super::super::space::contests;
    use super::*;

    /// A problem of every kind, with rows of one head after those of another.
    fn small(role: Role, family: Family, dtype: Dtype) -> Anchor {
        let queries = if role == Role::Lanes { 37 } else { 3 };
        let streams = role != Role::Lanes;
        Anchor { role, family, causal: true, dtype, head_dim: 9, queries, keys: 70, heads: 2, group: 2, streams }
    }

    fn case(level: Level, machine: &Machine, anchor: Anchor) -> Case {
        Case::new(Kernels::new(level, machine, &anchor), anchor, 10_000)
    }

    /// Every candidate of every level, of machines that multiply bf16 as it is and that widen it.
    #[track_caller]
    fn all_pass(anchors: &[Anchor]) {
        for (&level, machine) in Level::available().iter().flat_map(|level| machines().map(|machine| (level, machine)))
        {
            for (anchor, contest) in anchors.iter().zip(contests(level, &machine, anchors)) {
                let case = case(level, &machine, *anchor);
                for config in &contest.candidates {
                    let candidate = Candidate::of(level, config).expect("candidates are of this level");
                    assert_eq!(case.verify(&candidate), Ok(()), "{config:?}\n{anchor:?}");
                }
            }
        }
    }

    fn machines() -> [Machine; 2] {
        ["AuthenticAMD", "GenuineIntel"].map(|vendor| Machine { vendor: vendor.to_owned(), ..Machine::default() })
    }

    #[test]
    fn every_candidate_passes_the_gate() {
        let families = [Family::Exponential, Family::Selection, Family::Pointwise, Family::Normalised];
        let of_lanes = families.map(|family| small(Role::Lanes, family, Dtype::F32));
        let of_types = Dtype::ALL.into_iter().flat_map(|dtype| {
            [Role::Lanes, Role::Rows, Role::Crossing].map(|role| small(role, Family::Exponential, dtype))
        });
        let anchors: Vec<Anchor> = of_lanes.into_iter().chain(of_types).collect();
        all_pass(&anchors);
    }

    /// Whatever the numbers are: small ones beside large ones, zeros where a row looks most.
    #[test]
    fn rounded_integers_pass_the_gate_at_any_dimension() {
        let of_dim = |head_dim| Anchor { head_dim, ..small(Role::Rows, Family::Exponential, Dtype::Int8) };
        let anchors: Vec<Anchor> = (1..=128).map(of_dim).collect();
        all_pass(&anchors);
    }

    #[test]
    fn wrong_results_do_not() {
        let level = Level::best();
        let anchor = small(Role::Lanes, Family::Exponential, Dtype::F32);
        let machine = Machine::default();
        let case = case(level, &machine, anchor);
        let contest = &contests(level, &machine, &[anchor])[0];
        case.verify(&Candidate::of(level, &contest.candidates[0]).unwrap()).unwrap();
        let mut out = case.buffers.borrow().out[GUARD..].to_vec();
        case.check(&out).unwrap();
        // The first column of the first row, which is always looked at.
        out[0] += 1e-3;
        assert!(case.check(&out).unwrap_err().contains("row 0 of head 0"));
    }

    #[test]
    fn streaming_inputs_take_turns() {
        let anchor = small(Role::Rows, Family::Exponential, Dtype::F32);
        let case = case(Level::best(), &Machine::default(), anchor);
        assert!(case.kv[0].copies() * anchor.kv_bytes() > 20_000);
    }
}
