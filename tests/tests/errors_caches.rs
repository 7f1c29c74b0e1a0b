//! What a caller can get wrong about ragged batches, pages, rings, caches, partial results and element types: the error names it with
//! its values, and outputs, caches and partial results keep every bit.
#![forbid(unsafe_code)]

use regard::{
    Align, Attention, CacheShape, Count, Dtype, Error, Execution, Keys, KvCache, Level, Pages, Partial, Plan, Problem,
    Quantised, Queries, Split, TensorMut, View, ViewMut, Weighting, bf16, f16,
};
use regard_tests::{Guarded, Layout, Poison, Random, Stored, Tensor, levels, setup_of};

const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const D: usize = 6;
const D_V: usize = 7;

fn normal(shape: [usize; 4], seed: u64) -> Tensor {
    Tensor::normal(shape, Layout::Bhsd, &mut Random::new(seed))
}

macro_rules! assert_error {
    ($error:expr, $pattern:pat $(if $guard:expr)?) => {{
        let error = $error;
        assert!(matches!(&error, $pattern $(if $guard)?), "{error:?} instead of {}", stringify!($pattern));
        // The text names every number that the error has.
        let (text, debug) = (error.to_string(), format!("{error:?}"));
        let numbers = |text: &str| -> Vec<String> {
            text.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty()).map(str::to_owned).collect()
        };
        let said = numbers(&text);
        assert!(numbers(&debug).iter().all(|number| said.contains(number)), "{text:?} of {debug}");
    }};
}

/// 3 sequences: q packed in 9 rows, of which the last belongs to nobody; 8 pages of 4 rows; 3 rings of 5 rows.
struct Batch {
    packed_q: Tensor,
    padded_q: Tensor,
    packed: [Tensor; 2],
    pages: [Tensor; 2],
    rings: [Tensor; 2],
}

const QUERIES: [usize; 4] = [0, 2, 2, 8];
const KEYS: [usize; 4] = [0, 7, 12, 20];
const TABLE: [u32; 9] = [3, 1, 7, 0, 2, 99, 4, 5, 99];
const LENGTHS: [usize; 3] = [10, 8, 5];

impl Batch {
    fn new() -> Self {
        let pair = |batch, rows| [normal([batch, KV_HEADS, rows, D], 1), normal([batch, KV_HEADS, rows, D_V], 2)];
        Self {
            packed_q: normal([1, HEADS, 9, D], 3),
            padded_q: normal([3, HEADS, 2, D], 4),
            packed: pair(1, 20),
            pages: pair(8, 4),
            rings: pair(3, 5),
        }
    }

    fn problem<'a>(
        &'a self,
        options: &Attention<'a>,
        queries: Queries<'_>,
        keys: Keys<'a>,
    ) -> Result<Problem<'a>, Error> {
        let q = if matches!(queries, Queries::Padded) { &self.padded_q } else { &self.packed_q };
        let [k, v] = match keys {
            Keys::Packed(_) => &self.packed,
            Keys::Paged(_) => &self.pages,
            Keys::Padded | Keys::Ring { .. } => &self.rings,
        };
        Problem::ragged(options, q.view(), queries, k.view(), v.view(), keys)
    }

    fn error(&self, queries: Queries<'_>, keys: Keys<'_>) -> Error {
        self.problem(&Attention::softmax(), queries, keys).expect_err("there is something wrong with it")
    }
}

fn paged<'a>(table: &'a [u32], lengths: &'a [usize]) -> Keys<'a> {
    Keys::Paged(Pages { table, pages_per_sequence: 3, lengths })
}

#[test]
fn sequences_that_are_not_there() {
    let batch = Batch::new();
    let queries = Queries::Packed(&QUERIES);
    for keys in [Keys::Packed(&KEYS), paged(&TABLE, &LENGTHS), Keys::Ring { lengths: &[5, 4, 5] }, Keys::Padded] {
        for queries in [queries, Queries::Padded] {
            assert!(batch.problem(&Attention::softmax(), queries, keys).is_ok(), "{queries:?}, {keys:?}");
        }
    }

    // Offsets of queries, then of keys.
    let of_queries = |offsets: &[usize]| batch.error(Queries::Packed(offsets), Keys::Packed(&KEYS));
    assert_error!(of_queries(&[]), Error::Length { list: "the offsets of the queries", found: 0, expected: 1, .. });
    assert_error!(
        of_queries(&[1, 2, 2, 8]),
        Error::Offset { list: "the offsets of the queries", index: 0, found: 1, least: 0, most: 0 }
    );
    assert_error!(of_queries(&[0, 4, 3, 8]), Error::Offset { index: 2, found: 3, least: 4, most: 9, .. });
    assert_error!(of_queries(&[0, 2, 2, 10]), Error::Offset { index: 3, found: 10, least: 2, most: 9, .. });
    assert_error!(of_queries(&[0, 2, usize::MAX, 8]), Error::Offset { index: 2, found: usize::MAX, .. });
    let of_keys = |offsets: &[usize]| batch.error(queries, Keys::Packed(offsets));
    for n in [0, 1, 3, 5] {
        let error = of_keys(&[0, 1, 2, 3, 4][..n]);
        assert_error!(error, Error::Length { list: "the offsets of the keys", found, expected: 4, .. } if *found == n);
    }
    assert_error!(
        of_keys(&[2, 7, 12, 20]),
        Error::Offset { list: "the offsets of the keys", index: 0, found: 2, least: 0, most: 0 }
    );
    assert_error!(of_keys(&[0, 7, 12, 21]), Error::Offset { index: 3, found: 21, least: 12, most: 20, .. });
    assert_error!(of_keys(&[0, 13, 12, 20]), Error::Offset { index: 2, found: 12, least: 13, most: 20, .. });

    // Pages and rings.
    let of_pages = |table: &[u32], lengths: &[usize]| batch.error(queries, paged(table, lengths));
    for n in [0, 8] {
        let error = of_pages(&TABLE[..n], &LENGTHS);
        assert_error!(error, Error::Length { list: "the page table", found, expected: 9, .. } if *found == n);
    }
    for n in [0, 2] {
        let error = of_pages(&TABLE, &LENGTHS[..n]);
        assert_error!(error, Error::Length { list: "the lengths of the keys", found, expected: 3, .. } if *found == n);
    }
    assert_error!(of_pages(&TABLE, &[10, 8, 13]), Error::KeyLength { batch: 2, length: 13, keys: 12 });
    assert_error!(of_pages(&TABLE, &[10, 9, 5]), Error::Page { sequence: 1, page: 2, index: 99, pages: 8 });
    let mut table = TABLE;
    table[7] = 8;
    assert_error!(of_pages(&table, &LENGTHS), Error::Page { sequence: 2, page: 1, index: 8, pages: 8 });
    let of_rings = |lengths: &[usize]| batch.error(queries, Keys::Ring { lengths });
    assert_error!(of_rings(&[5, 5]), Error::Length { list: "the lengths of the keys", found: 2, expected: 3, .. });
    assert_error!(of_rings(&[5, 5, 6]), Error::Overwritten { sequence: 2, row: 0, key: 0, oldest: 1 });
    let causal = Attention::softmax().causal(Align::BottomRight).window(Some(3), None);
    let error = batch.problem(&causal, queries, Keys::Ring { lengths: &[9, 30, 9] }).expect_err("6 queries of 4 keys");
    assert_error!(error, Error::Overwritten { sequence: 2, row: 0, key: 0, oldest: 4 });
    assert!(batch.problem(&causal, queries, Keys::Ring { lengths: &[5, 30, 5] }).is_ok());
}

#[test]
fn tensors_that_do_not_fit_their_sequences() {
    let Batch { packed_q, padded_q, packed, pages, rings } = Batch::new();
    let error = |q: &Tensor, queries, [k, v]: &[Tensor; 2], keys| {
        Problem::ragged(&Attention::softmax(), q.view(), queries, k.view(), v.view(), keys).expect_err("no fit")
    };
    let queries = Queries::Packed(&QUERIES);
    assert_error!(
        error(&padded_q, Queries::Packed(&[0, 1, 2, 2]), &packed, Keys::Packed(&KEYS)),
        Error::Dimension { tensor: "q", dimension: "batch", found: 3, expected: 1, .. }
    );
    assert_error!(
        error(&packed_q, queries, &rings, Keys::Packed(&[0, 1, 2, 3])),
        Error::Dimension { tensor: "k", dimension: "batch", found: 3, expected: 1, .. }
    );
    for keys in [Keys::Padded, Keys::Ring { lengths: &[1, 1, 1] }] {
        assert_error!(
            error(&packed_q, queries, &packed, keys),
            Error::Dimension { tensor: "k", dimension: "batch", found: 1, expected: 3, .. }
        );
    }
    let cut = [pages[0].clone(), pages[1].rows(0, 3)];
    assert_error!(
        error(&packed_q, queries, &cut, paged(&TABLE, &LENGTHS)),
        Error::Dimension { tensor: "v", dimension: "rows", found: 3, expected: 4, .. }
    );
    let fewer = [pages[0].clone(), normal([7, KV_HEADS, 4, D_V], 5)];
    assert_error!(
        error(&packed_q, queries, &fewer, paged(&TABLE, &LENGTHS)),
        Error::Dimension { tensor: "v", dimension: "batch", found: 7, expected: 8, .. }
    );
    // Rings and pages without rows.
    let none = [normal([3, KV_HEADS, 0, D], 5), normal([3, KV_HEADS, 0, D_V], 5)];
    assert_error!(
        error(&packed_q, queries, &none, Keys::Ring { lengths: &[0, 0, 1] }),
        Error::KeyLength { batch: 2, length: 1, keys: 0 }
    );
    assert_error!(
        error(&packed_q, queries, &none, paged(&TABLE, &[0, 2, 0])),
        Error::KeyLength { batch: 1, length: 2, keys: 0 }
    );
    // More keys than an index can name, of which there is one in memory.
    let most = u32::MAX as usize - 1;
    let one = [1.0_f32];
    let q = View::bhsd(&one, [1, 1, 1, 1]).expect("one");
    let many = |rows| View::strided(&one, [1, 1, rows, 1], [0, 0, 0, 1]).expect("one, many times");
    let error = Problem::new(&Attention::softmax(), q, many(most + 1), many(most + 1)).expect_err("too many");
    assert_error!(error, Error::TooManyKeys { keys, max } if (*keys, *max) == (most + 1, most));
    assert!(Problem::new(&Attention::softmax(), q, many(most), many(most)).is_ok());
    let ring = Keys::Ring { lengths: &[usize::MAX] };
    let error = Problem::ragged(&Attention::softmax(), q, Queries::Padded, many(4), many(4), ring);
    assert_error!(error.expect_err("too many"), Error::TooManyKeys { keys: usize::MAX, max } if *max == most);
}

/// What a run is given; right unless a test changes it.
struct Run {
    out: [usize; 4],
    lse: Option<usize>,
    /// f32 that the workspace lacks.
    short: usize,
    plan: Option<Plan>,
}

/// Runs with something wrong, into an output of type `T`, and checks that nothing was written.
fn attempt<T: Poison>(problem: &Problem<'_>, change: impl FnOnce(&mut Run)) -> Result<(), Error>
where
    for<'o> TensorMut<'o>: From<ViewMut<'o, T>>,
{
    let own = Plan::new(problem, &setup_of(Level::best()));
    let mut run = Run { out: problem.shape().out(), lse: None, short: 0, plan: None };
    change(&mut run);
    let plan = run.plan.unwrap_or(own);
    let mut out = Guarded::<T>::of(run.out.iter().product());
    let mut lse = Guarded::new(run.lse.unwrap_or(0));
    let mut workspace = Guarded::new(plan.workspace_len_for(problem, 1) - run.short);
    let view = ViewMut::bhsd(out.inner(), run.out).expect("as long as its shape");
    let slice = run.lse.is_some().then(|| lse.inner());
    let result = plan.run(problem, view, slice, workspace.inner(), Execution::Serial);
    if result.is_err() {
        out.check_untouched("out");
        lse.check_untouched("lse");
        workspace.check_untouched("workspace");
    }
    result
}

const DIMENSIONS: [&str; 4] = ["batch", "heads", "rows", "columns"];

/// Outputs of packed sequences are as long as q, rows of nobody included; and a plan is for one way of laying keys.
#[test]
fn runs_of_ragged_batches() {
    let batch = Batch::new();
    let options = Attention::softmax();
    let queries = Queries::Packed(&QUERIES);
    let lies = [Keys::Packed(&KEYS), paged(&TABLE, &LENGTHS), Keys::Ring { lengths: &[5, 4, 5] }, Keys::Padded];
    let problems = lies.map(|keys| batch.problem(&options, queries, keys).expect("valid"));
    for (i, problem) in problems.iter().enumerate() {
        assert_eq!(problem.shape().out(), [1, HEADS, 9, D_V]);
        assert_eq!(attempt::<f32>(problem, |run| run.lse = Some(HEADS * 9)), Ok(()));
        for (at, name) in DIMENSIONS.into_iter().enumerate() {
            let result = attempt::<f32>(problem, |run| run.out[at] -= 1);
            let wanted = problem.shape().out()[at];
            assert_error!(
                result.expect_err("out"),
                Error::Dimension { tensor: "out", dimension, found, expected, .. }
                    if (*dimension, *found, *expected) == (name, wanted - 1, wanted)
            );
        }
        // One for each row, and not for each query.
        let result = attempt::<f32>(problem, |run| run.lse = Some(HEADS * 8));
        assert_error!(result.expect_err("lse"), Error::Length { list: "lse", found: 32, expected: 36, .. });
        let result = attempt::<f32>(problem, |run| run.short = 1);
        assert_error!(
            result.expect_err("workspace"),
            Error::Workspace { found, needed, threads: 1 } if found + 1 == *needed
        );
        for (j, other) in problems.iter().enumerate() {
            let plan = Plan::new(other, &setup_of(Level::best()));
            let result = attempt::<f32>(problem, |run| run.plan = Some(plan));
            assert_eq!(result.is_ok(), i == j, "a plan for {:?}, and {:?}", lies[j], lies[i]);
            if let Err(error) = result {
                assert!(matches!(&error, Error::Plan { planned, found } if planned != found), "{error}");
            }
        }
        // Padded queries, other spans, and other element types are other plans too.
        let padded = batch.problem(&options, Queries::Padded, lies[i]).expect("valid");
        let spans = batch.problem(&options.clone().split(Split::Keys(7)), queries, lies[i]).expect("valid");
        for other in [&padded, &spans] {
            let plan = Plan::new(other, &setup_of(Level::best()));
            let result = attempt::<f32>(problem, |run| run.plan = Some(plan));
            assert!(matches!(result, Err(Error::Plan { .. })), "{result:?}");
        }
    }
}

/// An output is f32, or of the type of q.
#[test]
fn outputs_of_another_type() {
    let [q, k, v] = [[1, HEADS, 3, D], [1, KV_HEADS, 9, D], [1, KV_HEADS, 9, D_V]].map(|shape| normal(shape, 7));
    let options = Attention::softmax();
    for kv in Dtype::ALL {
        for q_dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            let stored = Stored::three([&q, &k, &v], q_dtype, kv);
            let [q, k, v] = stored.each_ref().map(Stored::tensor);
            let problem = Problem::new(&options, q, k, v).expect("valid");
            let lse = |run: &mut Run| run.lse = Some(HEADS * 3);
            let results = [
                (Dtype::F32, attempt::<f32>(&problem, lse)),
                (Dtype::F16, attempt::<f16>(&problem, lse)),
                (Dtype::Bf16, attempt::<bf16>(&problem, lse)),
            ];
            for (out, result) in results {
                let mut expected = vec![Dtype::F32, q_dtype];
                expected.dedup();
                let wanted = Error::Dtype { tensor: "out", found: out, expected: expected.clone() };
                assert_eq!(result, if expected.contains(&out) { Ok(()) } else { Err(wanted) });
            }
            // A plan for other element types.
            for other in Dtype::ALL.into_iter().filter(|other| *other != kv) {
                let [k, v] = [&k, &v].map(|tensor| {
                    let rows = Tensor::from_fn(tensor.shape(), Layout::Bhsd, |index| tensor.get(index));
                    Stored::new(&rows, other, Layout::Bhsd)
                });
                let other = Problem::new(&options, q, k.tensor(), v.tensor()).expect("valid");
                let plan = Plan::new(&other, &setup_of(Level::best()));
                let result = attempt::<f32>(&problem, |run| run.plan = Some(plan));
                assert!(matches!(result, Err(Error::Plan { .. })), "{result:?}");
            }
        }
    }
}

/// Scales that do not fit their tensor, dimension by dimension; rows whose elements are not side by side, of every type.
#[test]
fn quantised_tensors_that_do_not_fit() {
    let [q, k, v] = [[2, HEADS, 3, D], [2, KV_HEADS, 9, D], [2, KV_HEADS, 9, D_V]];
    let (bytes, scales, ones) = (vec![1_i8; 1000], vec![0.5_f32; 1000], vec![1.0_f32; 1000]);
    let rows = |shape: [usize; 4], of_scales: [usize; 4]| Quantised {
        data: View::bhsd(&bytes, shape).expect("within the data"),
        scales: View::bhsd(&scales, of_scales).expect("within the data"),
    };
    let q = View::bhsd(&ones, q).expect("within the data");
    let right = |[batch, heads, rows, _]: [usize; 4]| [batch, heads, rows, 1];
    for (i, dimension) in DIMENSIONS.into_iter().enumerate() {
        for more in [1, 2] {
            let wrong = |shape: [usize; 4]| {
                let mut scales = right(shape);
                scales[i] += more;
                scales
            };
            let (found, expected) = (wrong(k)[i], right(k)[i]);
            for (tensor, of_k, of_v) in
                [("the scales of k", wrong(k), right(v)), ("the scales of v", right(k), wrong(v))]
            {
                let problem = Problem::new(&Attention::softmax(), q, rows(k, of_k), rows(v, of_v)).map(drop);
                let wanted = (tensor, dimension, found, expected);
                match problem {
                    Err(Error::Dimension { tensor, dimension, found, expected, .. }) => {
                        assert_eq!((tensor, dimension, found, expected), wanted);
                    }
                    other => panic!("{other:?} instead of {wanted:?}"),
                }
                let shape = CacheShape { batch: 2, kv_heads: KV_HEADS, head_dim: D, value_dim: D_V };
                let mut cache = KvCache::new(Dtype::Int8, shape).expect("there is room");
                match cache.append(rows(k, of_k), rows(v, of_v)) {
                    Err(Error::Dimension { tensor, dimension, found, expected, .. }) => {
                        assert_eq!((tensor, dimension, found, expected), wanted);
                    }
                    other => panic!("{other:?} instead of {wanted:?}"),
                }
                assert_eq!((cache.lengths(), cache.capacity()), (&[0, 0][..], 0));
            }
        }
    }
    // Every second element.
    let apart = [KV_HEADS * 9 * D * 2, 9 * D * 2, D * 2, 2];
    let data = View::strided(&bytes, k, apart).expect("within the data");
    let scales = View::bhsd(&scales, right(k)).expect("within the data");
    let error = Problem::new(&Attention::softmax(), q, Quantised { data, scales }, rows(k, right(k)));
    assert_error!(error.expect_err("rows"), Error::RowStride { tensor: "k", stride: 2 });
    let halves = vec![f16::ONE; 1000];
    let [near, far] = [View::bhsd(&halves, k), View::strided(&halves, k, apart)].map(|view| view.expect("within"));
    let error = Problem::new(&Attention::softmax(), q, near, far);
    assert_error!(error.expect_err("rows"), Error::RowStride { tensor: "v", stride: 2 });
    let error = Problem::new(&Attention::softmax(), rows(k, right(k)), near, near);
    let expected = vec![Dtype::F32, Dtype::F16, Dtype::Bf16];
    assert_eq!(error.expect_err("q"), Error::Dtype { tensor: "q", found: Dtype::Int8, expected });
}

const SHAPE: CacheShape = CacheShape { batch: 2, kv_heads: KV_HEADS, head_dim: D, value_dim: D_V };

/// Everything that a cache says and holds: each row of V by itself, and a product with each row of K.
fn contents(cache: &KvCache) -> (Vec<usize>, Vec<usize>, usize, Vec<u32>) {
    let oldest = (0..2).map(|batch| cache.oldest(batch)).collect();
    let rows = cache.lengths().iter().copied().max().unwrap_or(0);
    let first = (0..2).map(|batch| cache.oldest(batch)).max().unwrap_or(0);
    let q = normal([2, KV_HEADS, rows - first, D], 11);
    // Query i sees key `first + i` alone.
    let options = Attention::softmax().align(Align::Offset(first as i64)).window(Some(0), Some(0));
    let problem = cache.problem(&options, q.view()).expect("nothing is wrong with it");
    let output = regard_tests::run(&problem, &setup_of(levels()[0]), Execution::Serial);
    let lse = output.lse.expect("softmax has it");
    let bits = output.out.iter().chain(&lse).map(|x| x.to_bits()).collect();
    (cache.lengths().to_vec(), oldest, cache.capacity(), bits)
}

/// Caches of every type, growing and sliding, that are asked to take what does not fit: they keep every bit.
#[test]
fn caches_keep_what_they_have() {
    let (k, v) = (normal([2, KV_HEADS, 13, D], 1), normal([2, KV_HEADS, 13, D_V], 2));
    for dtype in Dtype::ALL {
        for sliding in [false, true] {
            let cache =
                if sliding { KvCache::sliding(dtype, SHAPE, 16) } else { KvCache::with_capacity(dtype, SHAPE, 16) };
            let mut cache = cache.expect("there is room");
            cache.append(k.view(), v.view()).expect("rows of the cache");
            let before = contents(&cache);
            assert!(before.3.len() > 100 && before.3.iter().any(|bits| *bits != before.3[0]));

            // 9 more rows, which would need more room, or overwrite, with one dimension or another wrong.
            let right = [[2, KV_HEADS, 9, D], [2, KV_HEADS, 9, D_V]];
            for (tensor, name) in ["k", "v"].into_iter().enumerate() {
                for (i, dimension) in DIMENSIONS.into_iter().enumerate() {
                    // More rows of k are fewer of v.
                    let mut shapes = right;
                    shapes[tensor][i] += 1;
                    let [k, v] = shapes.map(|shape| normal(shape, 3));
                    let (name, found, expected) = match (tensor, i) {
                        (0, 2) => ("v", 9, 10),
                        _ => (name, shapes[tensor][i], right[tensor][i]),
                    };
                    match cache.append(k.view(), v.view()) {
                        Err(Error::Dimension { tensor, dimension: of, found: is, expected: should, .. }) => {
                            assert_eq!((tensor, of, is, should), (name, dimension, found, expected));
                        }
                        other => panic!("{other:?}"),
                    }
                    assert_eq!(contents(&cache), before, "{name} with other {dimension}");
                }
            }
            let [k, v] = right.map(|shape| normal(shape, 3));
            // Types that are neither f32 nor the cache's own.
            for other in Dtype::ALL.into_iter().filter(|other| ![Dtype::F32, dtype].contains(other)) {
                let [other_k, other_v] = [&k, &v].map(|tensor| Stored::new(tensor, other, Layout::Bhsd));
                let mut expected = vec![Dtype::F32, dtype];
                expected.dedup();
                let wanted = |tensor| Err(Error::Dtype { tensor, found: other, expected: expected.clone() });
                assert_eq!(cache.append(other_k.tensor(), v.view()), wanted("k"));
                assert_eq!(cache.append(k.view(), other_v.tensor()), wanted("v"));
                assert_eq!(contents(&cache), before, "{other}");
            }
            // Rows whose elements lie apart.
            let data = vec![0.5_f32; 2000];
            let apart = |[b, h, r, c]: [usize; 4]| {
                View::strided(&data, [b, h, r, c], [h * r * c * 2, r * c * 2, c * 2, 2]).expect("within the data")
            };
            let error = cache.append(apart(right[0]), v.view()).expect_err("rows");
            assert_error!(error, Error::RowStride { tensor: "k", stride: 2 });
            let error = cache.append(k.view(), apart(right[1])).expect_err("rows");
            assert_error!(error, Error::RowStride { tensor: "v", stride: 2 });
            // Sequences that are not there.
            let [one_k, one_v] = [[1, KV_HEADS, 9, D], [1, KV_HEADS, 9, D_V]].map(|shape| normal(shape, 4));
            for batch in [2, usize::MAX] {
                let missing = Err(Error::Batch { batch, entries: 2 });
                assert_eq!(cache.append_to(batch, one_k.view(), one_v.view()), missing);
                assert_eq!(cache.truncate(batch, 0), missing);
            }
            let error = cache.append_to(1, k.view(), v.view()).expect_err("two sequences");
            assert_error!(error, Error::Dimension { tensor: "k", dimension: "batch", found: 2, expected: 1, .. });
            // More keys than can be counted, which are one row in memory.
            let rows = u32::MAX as usize;
            let many = |columns| View::strided(&data, [2, KV_HEADS, rows, columns], [0, 0, 0, 1]).expect("one row");
            let error = cache.append(many(D), many(D_V)).expect_err("too many");
            assert_error!(error, Error::TooManyKeys { keys, max } if (*keys, *max) == (rows + 13, rows - 1));
            assert_eq!(contents(&cache), before);

            // And what is right is taken after all that.
            cache.append(k.view(), v.view()).expect("rows of the cache");
            assert_eq!(cache.lengths(), [22, 22]);
        }
    }
}

#[test]
fn queries_that_do_not_fit_a_cache() {
    let (k, v) = (normal([2, KV_HEADS, 13, D], 1), normal([2, KV_HEADS, 13, D_V], 2));
    let mut cache = KvCache::sliding(Dtype::Bf16, SHAPE, 8).expect("there is room");
    cache.append(k.view(), v.view()).expect("rows of the cache");
    let window = Attention::softmax().causal(Align::BottomRight).window(Some(6), None);
    let error = |options: &Attention<'_>, shape: [usize; 4]| {
        let q = normal(shape, 3);
        cache.problem(options, q.view()).map(drop).expect_err("there is something wrong with it")
    };
    assert!(cache.problem(&window, normal([2, HEADS, 2, D], 3).view()).is_ok());
    assert_error!(
        error(&window, [3, HEADS, 2, D]),
        Error::Dimension { tensor: "k", dimension: "batch", found: 2, expected: 3, .. }
    );
    assert_error!(error(&window, [2, 3, 2, D]), Error::Heads { query_heads: 3, kv_heads: 2 });
    assert_error!(
        error(&window, [2, HEADS, 2, D + 1]),
        Error::Dimension { tensor: "k", dimension: "columns", found: 6, expected: 7, .. }
    );
    // Three queries need one key more than two.
    assert_error!(error(&window, [2, HEADS, 3, D]), Error::Overwritten { sequence: 0, row: 0, key: 4, oldest: 5 });
    assert_error!(
        error(&Attention::softmax(), [2, HEADS, 1, D]),
        Error::Overwritten { sequence: 0, row: 0, key: 0, oldest: 5 }
    );
    let q = normal([1, HEADS, 4, D], 3);
    for offsets in [&[0, 4][..], &[0, 1, 2, 3]] {
        let result = cache.ragged(&window, q.view(), Queries::Packed(offsets)).map(drop);
        assert_error!(
            result.expect_err("two sequences"),
            Error::Dimension { tensor: "k", dimension: "batch", found: 2, expected, .. } if *expected == offsets.len() - 1
        );
    }
    let lengths = [14, 13];
    let longer = window.clone().key_lengths(&lengths);
    assert_error!(error(&longer, [2, HEADS, 1, D]), Error::KeyLength { batch: 0, length: 14, keys: 13 });
    let bytes = Stored::new(&q, Dtype::Int8, Layout::Bhsd);
    let expected = vec![Dtype::F32, Dtype::F16, Dtype::Bf16];
    let result = cache.problem(&window, bytes.tensor()).map(drop);
    assert_eq!(result, Err(Error::Dtype { tensor: "q", found: Dtype::Int8, expected }));
}

/// Tensors of a problem whose parts are merged: 3 queries and as many keys as a test wants.
struct Parts {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Parts {
    fn new(queries: usize) -> Self {
        Self {
            q: normal([1, HEADS, queries, D], 1),
            k: normal([1, KV_HEADS, 40, D], 2),
            v: normal([1, KV_HEADS, 40, D_V], 3),
        }
    }

    fn problem<'a>(&'a self, options: &Attention<'a>) -> Problem<'a> {
        Problem::new(options, self.q.view(), self.k.view(), self.v.view()).expect("valid")
    }

    fn partial(&self, options: &Attention<'_>) -> Partial {
        let problem = self.problem(options);
        let plan = Plan::new(&problem, &setup_of(Level::best()));
        let mut partial = Partial::new(&problem).expect("nothing depends on the number of keys");
        let mut workspace = vec![0.0; plan.workspace_len(1)];
        plan.run_partial(&problem, &mut partial, &mut workspace, Execution::Serial).expect("valid");
        partial
    }
}

/// Every bit of a partial result, and what it gives.
fn bits(partial: &Partial) -> (Vec<[u32; 4]>, Vec<u32>, Vec<u32>) {
    let mut out = vec![0.0; partial.sums().len()];
    partial.finish(ViewMut::bhsd(&mut out, partial.shape()).expect("its shape"), None).expect("f32");
    let of = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect();
    (partial.states().iter().map(|state| state.0.map(f32::to_bits)).collect(), of(partial.sums()), of(&out))
}

/// A merge that cannot be leaves what was merged into, and what was merged, as they were.
#[test]
fn merges_that_cannot_be() {
    let parts = Parts::new(3);
    let (ones, others) = ([1.0; HEADS], [1.0, 1.0, 1.0, 2.0]);
    let softmax = Attention::softmax;
    let relu = || Attention::new(Weighting::Relu);
    let sigmoid = |n| {
        let bias = regard::SigmoidBias::NegLogN;
        Attention::new(Weighting::Sigmoid { bias }).count(Count::Constant(n))
    };
    let pairs = [
        ("the weighting", softmax(), relu()),
        ("the weighting", Attention::new(Weighting::HardLeft), Attention::new(Weighting::HardRight)),
        ("the weighting", sigmoid(40.0), sigmoid(41.0)),
        ("the factor of scores (scale over temperature)", softmax().scale(0.5), softmax().scale(0.25)),
        (
            "the factor of scores (scale over temperature)",
            softmax().temperature(regard::Temperature::PerHead(&ones)),
            softmax().temperature(regard::Temperature::PerHead(&others)),
        ),
        ("the sink", softmax().sinks(&ones), softmax().sinks(&others)),
        ("the factor of the output", relu().coefficient(1.0), relu().coefficient(-1.0)),
    ];
    for (wanted, a, b) in pairs {
        let [mut a, mut b] = [&a, &b].map(|options| parts.partial(options));
        let before = [bits(&a), bits(&b)];
        for error in [a.merge(&b), b.merge(&a)] {
            match error.expect_err("they differ") {
                Error::Partial { what, left, right } => {
                    assert_eq!(what, wanted);
                    assert_ne!(left, right);
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!([bits(&a), bits(&b)], before, "{wanted}");
    }
    let mut few = parts.partial(&softmax());
    let before = bits(&few);
    let error = few.merge(&Parts::new(4).partial(&softmax())).expect_err("another shape");
    assert_error!(&error, Error::Partial { what: "the shape", .. });
    assert!(error.to_string().contains("[1, 4, 3, 7]") && error.to_string().contains("[1, 4, 4, 7]"), "{error}");
    assert_eq!(bits(&few), before);
}

/// A run that cannot be leaves the partial result, and the workspace, as they were.
#[test]
fn partial_runs_that_cannot_be() {
    let (parts, more) = (Parts::new(3), Parts::new(4));
    let options = Attention::softmax();
    let problem = parts.problem(&options);
    let plan = Plan::new(&problem, &setup_of(Level::best()));
    let mut partial = parts.partial(&options);
    let before = bits(&partial);
    let mut attempt = |plan: &Plan, problem: &Problem<'_>, short: usize| {
        let mut workspace = Guarded::new(plan.workspace_len_for(problem, 1) - short);
        let result = plan.run_partial(problem, &mut partial, workspace.inner(), Execution::Serial);
        workspace.check_untouched("workspace");
        assert_eq!(bits(&partial), before);
        result.expect_err("it cannot run")
    };
    assert_error!(
        attempt(&plan, &problem, 1),
        Error::Workspace { found, needed, threads: 1 } if found + 1 == *needed
    );
    let other = more.problem(&options);
    let larger = Plan::new(&other, &setup_of(Level::best()));
    assert_error!(attempt(&plan, &other, 0), Error::Plan { .. });
    assert_error!(attempt(&larger, &other, 0), Error::Partial { what: "the shape", .. });
    let relu = Attention::new(Weighting::Relu);
    let relu = parts.problem(&relu);
    assert_error!(attempt(&plan, &relu, 0), Error::Plan { .. });
    let schedule = Attention::softmax().log_n_schedule(1.0);
    let schedule = parts.problem(&schedule);
    assert_error!(
        attempt(&Plan::new(&schedule, &setup_of(Level::best())), &schedule, 0),
        Error::NoMeaning { option: "a temperature schedule", weighting: "softmax", .. }
    );
}

/// An output that does not fit keeps every bit.
#[test]
fn partial_results_that_cannot_be_written() {
    let parts = Parts::new(3);
    let softmax = parts.partial(&Attention::softmax());
    let relu = parts.partial(&Attention::new(Weighting::Relu));
    fn attempt<T: Poison>(partial: &Partial, shape: [usize; 4], lse: Option<usize>) -> Error
    where
        for<'o> TensorMut<'o>: From<ViewMut<'o, T>>,
    {
        let mut out = Guarded::<T>::of(shape.iter().product());
        let mut sums = Guarded::new(lse.unwrap_or(0));
        let view = ViewMut::bhsd(out.inner(), shape).expect("as long as its shape");
        let error = partial.finish(view, lse.is_some().then(|| sums.inner())).expect_err("it does not fit");
        out.check_untouched("out");
        sums.check_untouched("lse");
        error
    }
    let right = softmax.shape();
    for (i, name) in DIMENSIONS.into_iter().enumerate() {
        for less in [true, false] {
            let mut shape = right;
            shape[i] = if less { shape[i] - 1 } else { shape[i] + 1 };
            assert_error!(
                attempt::<f32>(&softmax, shape, Some(12)),
                Error::Dimension { tensor: "out", dimension, found, expected, .. }
                    if (*dimension, *found, *expected) == (name, shape[i], right[i])
            );
        }
    }
    for n in [0, 11, 13] {
        let error = attempt::<f32>(&softmax, right, Some(n));
        assert_error!(error, Error::Length { list: "lse", found, expected: 12, .. } if *found == n);
    }
    let error = attempt::<f32>(&relu, right, Some(12));
    assert_error!(error, Error::NoMeaning { option: "a log-sum-exp", weighting: "relu", .. });
    let wrong = |found| Error::Dtype { tensor: "out", found, expected: vec![Dtype::F32] };
    assert_eq!(attempt::<f16>(&softmax, right, Some(12)), wrong(Dtype::F16));
    assert_eq!(attempt::<bf16>(&softmax, right, None), wrong(Dtype::Bf16));
}

/// States of no sense are still finished and merged without a panic: they may come from anywhere.
#[test]
fn states_that_nobody_made() {
    let parts = Parts::new(3);
    let weird = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0, 0.0, f32::MAX, f32::from_bits(u32::MAX)];
    for weighting in regard_tests::weightings() {
        let options = Attention::new(weighting).count(Count::Constant(9.0));
        let problem = parts.problem(&options);
        let random = &mut Random::new(5);
        let rows = HEADS * 3;
        let mut make = || {
            let mut any = || weird[random.below(weird.len())];
            let states = (0..rows).map(|_| regard::RowState([any(), any(), any(), any()])).collect();
            let sums = (0..rows * D_V).map(|_| any()).collect();
            Partial::from_parts(&problem, states, sums).expect("as many as are needed")
        };
        for _ in 0..20 {
            let (mut a, b) = (make(), make());
            a.merge(&b).expect("of one problem");
            let mut out = Guarded::new(rows * D_V);
            a.finish(ViewMut::bhsd(out.inner(), a.shape()).expect("its shape"), None).expect("f32");
            out.check("out");
        }
    }
}
