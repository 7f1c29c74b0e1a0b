//! Sequences of different lengths in one call give what each gives in a call of its own, bit for bit: packed, padded, on pages,
//! prefill beside decode, with sequences that have no queries or no keys.
#![forbid(unsafe_code)]

use rayon::ThreadPoolBuilder;
use regard::{Align, Dtype, Execution, Keys, Level, Pages, Queries, Split, Temperature, Weighting};
use regard_tests::{
    Blocks, Case, Layout, Lists, Output, Random, SLOW, Spec, Stored, Tensor, compare, engines_for, levels, run, same,
    setup_of, setup_with_tiles, weightings,
};

const HEADS: usize = 6;
const KV_HEADS: usize = 2;
const D: usize = 13;
const D_V: usize = 18;

/// Queries and keys of each sequence: decode steps, prompts, and nothing.
const SIZES: [[usize; 2]; 10] =
    [[0, 3], [1, 70], [5, 0], [40, 40], [17, 90], [0, 0], [16, 33], [3, 1], [1, 1], [2, 131]];

/// Rows of q, k and v that belong to no sequence.
const SPARE: usize = 4;

const PAGE: usize = 12;

/// One sequence.
struct Part {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    temperatures: Vec<f32>,
}

/// How queries and keys lie.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Packed,
    Padded,
    Paged,
}

/// All sequences, and all of them in one.
struct Batch {
    parts: Vec<Part>,
    q: Tensor,
    /// k and v in each form.
    packed: [Tensor; 2],
    padded: [Tensor; 2],
    pages: [Tensor; 2],
    table: Vec<u32>,
    q_offsets: Vec<usize>,
    k_offsets: Vec<usize>,
    lengths: Vec<usize>,
    /// `[sequences, heads, longest queries, longest keys]`
    bias: Tensor,
    /// `[heads, rows of q]`
    temperatures: Vec<f32>,
    lists: Lists,
}

fn offsets(column: usize) -> Vec<usize> {
    let mut sum = 0;
    let mut all = vec![0];
    all.extend(SIZES.map(|sizes| {
        sum += sizes[column];
        sum
    }));
    all
}

/// Copies row `from` of all heads.
fn copy_row(to: &mut Tensor, [batch, row]: [usize; 2], from: &Tensor, from_row: usize) {
    let [_, heads, _, columns] = from.shape();
    for head in 0..heads {
        for c in 0..columns {
            *to.at([batch, head, row, c]) = from.get([0, head, from_row, c]);
        }
    }
}

impl Batch {
    fn new() -> Self {
        let mut random = Random::new(5);
        let parts: Vec<Part> = SIZES
            .map(|[queries, keys]| Part {
                q: Tensor::normal([1, HEADS, queries, D], Layout::Bhsd, &mut random),
                k: Tensor::normal([1, KV_HEADS, keys, D], Layout::Bhsd, &mut random),
                v: Tensor::normal([1, KV_HEADS, keys, D_V], Layout::Bhsd, &mut random),
                bias: Tensor::normal([1, HEADS, queries, keys], Layout::Bhsd, &mut random),
                temperatures: (0..HEADS * queries).map(|_| 0.5 + random.uniform() as f32).collect(),
            })
            .into();
        let (q_offsets, k_offsets) = (offsets(0), offsets(1));
        let longest = [0, 1].map(|i| SIZES.iter().map(|sizes| sizes[i]).max().unwrap_or(0));
        let sequences = SIZES.len();
        let columns = [D, D_V];
        let nan = |shape, layout| Tensor::filled(shape, layout, f32::NAN);
        let q_rows = q_offsets[sequences] + SPARE;
        let mut q = nan([1, HEADS, q_rows, D], Layout::Bshd);
        let mut packed = columns.map(|columns| nan([1, KV_HEADS, k_offsets[sequences] + SPARE, columns], Layout::Bshd));
        let mut padded = columns.map(|columns| nan([sequences, KV_HEADS, longest[1], columns], Layout::Padded));
        let per_sequence = longest[1].div_ceil(PAGE);
        let mut pages =
            columns.map(|columns| nan([sequences * per_sequence, KV_HEADS, PAGE, columns], Layout::PaddedBshd));
        // From the last page to the first.
        let table: Vec<u32> = (0..(sequences * per_sequence) as u32).rev().collect();
        let mut bias = nan([sequences, HEADS, longest[0], longest[1]], Layout::Padded);
        let mut temperatures = vec![1.0; HEADS * q_rows];
        for (s, part) in parts.iter().enumerate() {
            let [queries, keys] = SIZES[s];
            for query in 0..queries {
                copy_row(&mut q, [0, q_offsets[s] + query], &part.q, query);
                for head in 0..HEADS {
                    temperatures[head * q_rows + q_offsets[s] + query] = part.temperatures[head * queries + query];
                    for key in 0..keys {
                        *bias.at([s, head, query, key]) = part.bias.get([0, head, query, key]);
                    }
                }
            }
            for key in 0..keys {
                let page = table[s * per_sequence + key / PAGE] as usize;
                for (i, from) in [&part.k, &part.v].into_iter().enumerate() {
                    copy_row(&mut packed[i], [0, k_offsets[s] + key], from, key);
                    copy_row(&mut padded[i], [s, key], from, key);
                    copy_row(&mut pages[i], [page, key % PAGE], from, key);
                }
            }
        }
        let lengths = SIZES.map(|sizes| sizes[1]).into();
        let lists = Lists::new(HEADS);
        Self { parts, q, packed, padded, pages, table, q_offsets, k_offsets, lengths, bias, temperatures, lists }
    }

    /// Options for the whole, and the same for each sequence alone.
    fn specs(&self, weighting: &Weighting) -> Vec<(Spec<'_>, Vec<Spec<'_>>)> {
        let mut all = Vec::new();
        for spec in self.lists.specs(weighting, false) {
            all.push((spec.clone(), vec![spec; SIZES.len()]));
        }
        let own = |bias, temperatures| Spec {
            bias: Some(bias),
            temperature: Some(Temperature::PerRow(temperatures)),
            causal: Some(Align::BottomRight),
            ..Spec::new(weighting.clone())
        };
        let alone = self.parts.iter().map(|part| own(part.bias.view(), &part.temperatures)).collect();
        all.push((own(self.bias.view(), &self.temperatures), alone));
        all
    }

    fn stored(&self, form: Form, [q_dtype, kv_dtype]: [Dtype; 2]) -> [Stored; 3] {
        let [k, v] = match form {
            Form::Packed => &self.packed,
            Form::Padded => &self.padded,
            Form::Paged => &self.pages,
        };
        Stored::three([&self.q, k, v], q_dtype, kv_dtype)
    }

    fn case<'a>(&'a self, form: Form, spec: &Spec<'a>, stored: &'a [Stored; 3]) -> Case<'a> {
        let pages_per_sequence = self.table.len() / SIZES.len();
        let (keys, key_lengths) = match form {
            Form::Packed => (Keys::Packed(&self.k_offsets), None),
            Form::Padded => (Keys::Padded, Some(&*self.lengths)),
            Form::Paged => {
                (Keys::Paged(Pages { table: &self.table, pages_per_sequence, lengths: &self.lengths }), None)
            }
        };
        Case::stored(Spec { key_lengths, ..spec.clone() }, stored).ragged(Queries::Packed(&self.q_offsets), keys)
    }

    /// The rows of one sequence of an output.
    fn of(&self, output: &Output, sequence: usize) -> Output {
        let all = self.q.shape()[2];
        output.rows([HEADS, all], self.q_offsets[sequence], SIZES[sequence][0])
    }
}

const FORMS: [Form; 3] = [Form::Packed, Form::Padded, Form::Paged];

const DTYPES: [[Dtype; 2]; 5] = [
    [Dtype::F32, Dtype::F32],
    [Dtype::Bf16, Dtype::Bf16],
    [Dtype::F16, Dtype::F16],
    [Dtype::F32, Dtype::Int8],
    [Dtype::Bf16, Dtype::F32],
];

/// Through plans: sequences with few queries go to a rows kernel, the others to the lanes kernel; on tile registers, there are two rows
/// kernels.
#[test]
fn one_call_is_as_many_calls() {
    let batch = Batch::new();
    let mut turn = 0;
    for dtypes in DTYPES {
        let stored = FORMS.map(|form| batch.stored(form, dtypes));
        let alone: Vec<_> =
            (batch.parts.iter()).map(|part| Stored::three([&part.q, &part.k, &part.v], dtypes[0], dtypes[1])).collect();
        for weighting in weightings() {
            for (spec, specs) in batch.specs(&weighting) {
                turn += 1;
                if turn % if SLOW { 9 } else { 2 } != 0 {
                    continue;
                }
                let split = [None, Some(Split::Keys(32)), Some(Split::Never)][turn / 2 % 3];
                for level in levels() {
                    let setup = if turn % 4 < 2 { setup_of(*level) } else { setup_with_tiles(*level) };
                    let form = turn / 2 % 3;
                    let case = batch.case(FORMS[form], &Spec { split, ..spec.clone() }, &stored[form]);
                    let problem = case.problem();
                    let whole = run(&problem, &setup, Execution::Serial);
                    for (s, spec) in specs.iter().enumerate() {
                        let one = Case::stored(Spec { split, ..spec.clone() }, &alone[s]);
                        let one = run(&one.problem(), &setup, Execution::Serial);
                        let what = format!("sequence {s} of {:?}, {dtypes:?}, {level:?}, {spec:?}", FORMS[form]);
                        batch.of(&whole, s).assert_same(&one, &what);
                    }
                    if [0, 6].contains(&(turn % 8)) {
                        compare(&case, &problem, &whole);
                    }
                }
            }
        }
    }
}

/// On every kernel by itself, whatever the number of queries, in every form and on several threads.
#[test]
fn every_kernel_takes_every_form() {
    let batch = Batch::new();
    let pool = ThreadPoolBuilder::new().num_threads(3).build().expect("threads can be had");
    let mut turn = 0;
    for dtypes in DTYPES {
        let stored = FORMS.map(|form| batch.stored(form, dtypes));
        let alone: Vec<_> =
            (batch.parts.iter()).map(|part| Stored::three([&part.q, &part.k, &part.v], dtypes[0], dtypes[1])).collect();
        for engine in engines_for(dtypes[1]).filter(|engine| !engine.is_native() || dtypes == [Dtype::Bf16; 2]) {
            for weighting in weightings().into_iter().filter(|weighting| engine.computes(weighting)) {
                turn += 1;
                if SLOW && turn % 4 != 0 {
                    continue;
                }
                let mut specs = batch.specs(&weighting);
                let (spec, specs) = specs.swap_remove(turn % specs.len());
                let split = [Split::Never, Split::Keys(32)][turn / 3 % 2];
                let blocks = Blocks { split, ..Blocks::new([16, 32, 64][turn % 3], [5, 16][turn / 2 % 2]) };
                let ones: Vec<Output> = (specs.iter().zip(&alone))
                    .map(|(spec, alone)| engine.run(&Case::stored(spec.clone(), alone), &blocks))
                    .collect();
                for (form, stored) in FORMS.into_iter().zip(&stored) {
                    let blocks = Blocks { execution: Execution::Pool(&pool), ..blocks };
                    let whole = engine.run(&batch.case(form, &spec, stored), &blocks);
                    for (s, one) in ones.iter().enumerate() {
                        let what = format!("sequence {s} of {form:?}, {}, {dtypes:?}, {spec:?}", engine.name());
                        batch.of(&whole, s).assert_same(one, &what);
                    }
                }
            }
        }
    }
}

/// The oracle reads every form, and reads the same.
#[test]
fn the_oracle_takes_every_form() {
    let batch = Batch::new();
    let stored = FORMS.map(|form| batch.stored(form, [Dtype::F32; 2]));
    for (spec, specs) in batch.specs(&Weighting::Softmax) {
        for (form, stored) in FORMS.into_iter().zip(&stored) {
            let problem = batch.case(form, &spec, stored).problem();
            for (s, spec) in specs.iter().enumerate() {
                let part = &batch.parts[s];
                let alone = Case::new(spec.clone(), &part.q, &part.k, &part.v).problem();
                for row in (0..HEADS * SIZES[s][0]).map(|row| [row / SIZES[s][0], row % SIZES[s][0]]) {
                    let row = |problem, s| regard::reference::row(problem, regard::Isa::Portable, [s, row[0], row[1]]);
                    assert_eq!(row(&problem, s), row(&alone, 0), "sequence {s} of {form:?}, {spec:?}");
                }
            }
        }
    }
}

/// Sequences that are padded and have packed keys, or that have pages, need no packed queries.
#[test]
fn padded_queries_with_any_keys() {
    let mut random = Random::new(9);
    let (queries, lengths) = (3, [5, 0, 44]);
    let q = Tensor::normal([3, HEADS, queries, D], Layout::PaddedBshd, &mut random);
    let k = Tensor::normal([1, KV_HEADS, 49, D], Layout::Bshd, &mut random);
    let v = Tensor::normal([1, KV_HEADS, 49, D_V], Layout::Bshd, &mut random);
    let offsets = [0, 5, 5, 49];
    for weighting in weightings() {
        for level in levels() {
            let spec = Spec { causal: Some(Align::BottomRight), ..Spec::new(weighting.clone()) };
            let case = Case::new(spec.clone(), &q, &k, &v).ragged(Queries::Padded, Keys::Packed(&offsets));
            let whole = run(&case.problem(), &setup_of(*level), Execution::Serial);
            compare(&case, &case.problem(), &whole);
            for s in 0..3 {
                let (k, v) = (k.rows(offsets[s], lengths[s]), v.rows(offsets[s], lengths[s]));
                let q = Tensor::from_fn([1, HEADS, queries, D], Layout::Bhsd, |[_, h, r, c]| q.get([s, h, r, c]));
                let one = Case::new(spec.clone(), &q, &k, &v);
                let one = run(&one.problem(), &setup_of(*level), Execution::Serial);
                let rows = s * HEADS * queries..(s + 1) * HEADS * queries;
                same(&whole.out[rows.start * D_V..rows.end * D_V], &one.out, &format!("sequence {s}, {spec:?}"));
            }
        }
    }
}

/// Packed sequences whose rows do not start at the first: none is empty, and rows of nobody stay as they were (which
/// [`regard_tests::run`] looks at).
#[test]
fn no_sequences_at_all() {
    let q = Tensor::filled([1, HEADS, 7, D], Layout::Bhsd, 1.0);
    let k = Tensor::filled([1, KV_HEADS, 9, D], Layout::Bhsd, 1.0);
    let v = Tensor::filled([1, KV_HEADS, 9, D_V], Layout::Bhsd, 1.0);
    for level in [Level::best(), levels()[0]] {
        let case =
            Case::new(Spec::new(Weighting::Softmax), &q, &k, &v).ragged(Queries::Packed(&[0]), Keys::Packed(&[0]));
        let output = run(&case.problem(), &setup_of(level), Execution::Serial);
        assert!(output.out.iter().all(|x| *x == 0.0) && output.paths.is_empty());
    }
}
