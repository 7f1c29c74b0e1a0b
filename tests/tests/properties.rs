//! Properties that hold for all shapes, masks and layouts, on random ones. Failures shrink to small shapes; all data
//! come from a seed that is part of the case.
#![forbid(unsafe_code)]

use proptest::prelude::*;
use regard::{Align, Execution, Level, Temperature, View, ViewError, ViewMut, Weighting};
use regard_kernels::table::kernels;
use regard_tests::{
    Blocks, Case, Engine, Layout, Output, Random, SLOW, Spec, Tensor, check, levels, run, run_into, setup_of,
    weightings,
};

fn config(cases: u32) -> ProptestConfig {
    // No files of seeds: a failure prints its case in full.
    ProptestConfig {
        cases: if SLOW { cases / 4 } else { cases },
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Shapes, layouts and data.
#[derive(Clone, Debug)]
struct Sizes {
    batch: usize,
    kv_heads: usize,
    group: usize,
    queries: usize,
    keys: usize,
    d: usize,
    d_v: usize,
    layouts: [Layout; 4],
    seed: u64,
}

fn sizes() -> impl Strategy<Value = Sizes> {
    let layout = || prop::sample::select(Layout::ALL.to_vec());
    let counts = (1..=2_usize, 1..=2_usize, 1..=3_usize, 1..40_usize, 1..140_usize, 1..24_usize, 1..24_usize);
    (counts, [layout(), layout(), layout(), layout()], any::<u16>()).prop_map(|(counts, layouts, seed)| {
        let (batch, kv_heads, group, queries, keys, d, d_v) = counts;
        Sizes { batch, kv_heads, group, queries, keys, d, d_v, layouts, seed: u64::from(seed) }
    })
}

impl Sizes {
    fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    fn q_shape(&self) -> [usize; 4] {
        [self.batch, self.heads(), self.queries, self.d]
    }

    fn k_shape(&self) -> [usize; 4] {
        [self.batch, self.kv_heads, self.keys, self.d]
    }

    fn v_shape(&self) -> [usize; 4] {
        [self.batch, self.kv_heads, self.keys, self.d_v]
    }

    fn tensors(&self) -> [Tensor; 3] {
        let mut random = Random::new(self.seed);
        [
            Tensor::normal(self.q_shape(), self.layouts[0], &mut random),
            Tensor::normal(self.k_shape(), self.layouts[1], &mut random),
            Tensor::normal(self.v_shape(), self.layouts[2], &mut random),
        ]
    }
}

/// Masks of every kind.
#[derive(Clone, Debug)]
struct Mask {
    align: Align,
    causal: bool,
    anti_causal: bool,
    strict: bool,
    window: Option<(Option<usize>, Option<usize>)>,
    lengths: bool,
    /// The share of pairs that a mask tensor keeps.
    keep: Option<f64>,
}

fn mask() -> impl Strategy<Value = Mask> {
    let align = prop_oneof![Just(Align::TopLeft), Just(Align::BottomRight), (-20..60_i64).prop_map(Align::Offset)];
    let window = prop::option::of((prop::option::of(0..30_usize), prop::option::of(0..30_usize)));
    let keep = prop::option::of(prop::sample::select(vec![0.02, 0.5, 0.98]));
    let flags = (prop::bool::weighted(0.5), prop::bool::weighted(0.2), any::<bool>(), any::<bool>());
    (align, window, keep, flags).prop_map(|(align, window, keep, (causal, anti_causal, strict, lengths))| Mask {
        align,
        causal,
        anti_causal,
        strict: strict && (causal || anti_causal),
        window,
        lengths,
        keep,
    })
}

/// What a mask borrows.
struct MaskData {
    lengths: Vec<usize>,
    keep: Vec<bool>,
    shape: [usize; 4],
}

impl Mask {
    fn data(&self, sizes: &Sizes) -> MaskData {
        let mut random = Random::new(sizes.seed + 1);
        let shape = [sizes.batch, sizes.heads(), sizes.queries, sizes.keys];
        let keep = (0..shape.iter().product()).map(|_| random.chance(self.keep.unwrap_or(1.0))).collect();
        let lengths = (0..sizes.batch).map(|_| random.below(sizes.keys + 1)).collect();
        MaskData { lengths, keep, shape }
    }

    fn apply<'a>(&self, data: &'a MaskData, spec: Spec<'a>) -> Spec<'a> {
        Spec {
            align: Some(self.align),
            causal: self.causal.then_some(self.align),
            anti_causal: self.anti_causal.then_some(self.align),
            strict: self.strict,
            window: self.window,
            key_lengths: self.lengths.then_some(&data.lengths[..]),
            keep: self.keep.map(|_| View::bhsd(&data.keep, data.shape).expect("it has the shape").into()),
            ..spec
        }
    }
}

fn weighting() -> impl Strategy<Value = Weighting> {
    prop::sample::select(weightings())
}

/// Weightings whose weights are a distribution.
fn distribution() -> impl Strategy<Value = Weighting> {
    let mut all =
        vec![Weighting::Softmax, Weighting::HardLeft, Weighting::HardRight, Weighting::AverageHard, Weighting::Taylor2];
    all.extend([2, 4, 6, 8].map(|degree| Weighting::EvenPower { degree }));
    prop::sample::select(all)
}

fn run_on(level: Level, spec: &Spec<'_>, [q, k, v]: &[Tensor; 3]) -> Output {
    run(&Case::new(spec.clone(), q, k, v).problem(), &setup_of(level), Execution::Serial)
}

/// The keys that a row sees.
fn seen<'a>(spec: &'a Spec<'_>, sizes: &Sizes, row: [usize; 3]) -> impl Iterator<Item = usize> + 'a {
    let [batch, head, query] = row;
    let shape = regard::Shape {
        batch: sizes.batch,
        query_heads: sizes.heads(),
        kv_heads: sizes.kv_heads,
        queries: sizes.queries,
        keys: sizes.keys,
        head_dim: sizes.d,
        value_dim: sizes.d_v,
        packed_rows: None,
    };
    (0..sizes.keys).filter(move |key| spec.sees(&shape, [batch, head, query, *key]))
}

/// All rows, in the order of outputs.
fn rows(sizes: &Sizes) -> impl Iterator<Item = [usize; 3]> {
    let (heads, queries) = (sizes.heads(), sizes.queries);
    (0..sizes.batch * heads * queries).map(move |row| [row / queries / heads, row / queries % heads, row % queries])
}

proptest! {
    #![proptest_config(config(320))]

    /// The result is that of the definition in f64, for any shape, mask and layout; gaps between rows are NaN and guard
    /// bands stay as they were.
    #[test]
    fn results_are_those_of_the_definition(
        sizes in sizes(),
        mask in mask(),
        weighting in weighting(),
        temperature in prop::sample::select(vec![0.2_f32, 1.0, 5.0]),
    ) {
        let [q, k, v] = sizes.tensors();
        let data = mask.data(&sizes);
        let spec = Spec { temperature: Some(Temperature::Constant(temperature)), ..Spec::new(weighting) };
        let case = Case::new(mask.apply(&data, spec), &q, &k, &v);
        for level in levels() {
            check(&case, &setup_of(*level));
        }
    }

    /// Rows of distributions lie in the convex hull of the values that they see, column by column, and are zero where
    /// they see none.
    #[test]
    fn distributions_give_convex_combinations(sizes in sizes(), mask in mask(), weighting in distribution()) {
        let tensors = sizes.tensors();
        let data = mask.data(&sizes);
        let spec = mask.apply(&data, Spec::new(weighting));
        for level in levels() {
            let out = run_on(*level, &spec, &tensors).out;
            for (row, out) in rows(&sizes).zip(out.chunks(sizes.d_v)) {
                let keys: Vec<usize> = seen(&spec, &sizes, row).collect();
                for (c, x) in out.iter().enumerate() {
                    let values = || keys.iter().map(|key| tensors[2].get([row[0], row[1] / sizes.group, *key, c]));
                    let low = values().fold(f32::INFINITY, f32::min);
                    let high = values().fold(f32::NEG_INFINITY, f32::max);
                    if keys.is_empty() {
                        prop_assert_eq!(*x, 0.0);
                    } else {
                        let slack = 1e-5 * high.abs().max(low.abs());
                        prop_assert!(*x >= low - slack && *x <= high + slack, "{} not in {}..={}", x, low, high);
                    }
                }
            }
        }
    }

    /// A constant V gives that constant, wherever a key is seen.
    #[test]
    fn constant_values_stay(
        sizes in sizes(),
        mask in mask(),
        weighting in distribution(),
        value in -100.0..100.0_f32,
    ) {
        let [q, k, _] = sizes.tensors();
        let tensors = [q, k, Tensor::filled(sizes.v_shape(), sizes.layouts[2], value)];
        let data = mask.data(&sizes);
        let spec = mask.apply(&data, Spec::new(weighting));
        for level in levels() {
            let out = run_on(*level, &spec, &tensors).out;
            for (row, out) in rows(&sizes).zip(out.chunks(sizes.d_v)) {
                let expected = if seen(&spec, &sizes, row).next().is_some() { value } else { 0.0 };
                for x in out {
                    prop_assert!((x - expected).abs() <= 1e-5 * value.abs(), "{} instead of {}", x, expected);
                }
            }
        }
    }

    /// Permuting keys with their values changes only the order of sums.
    #[test]
    fn keys_may_be_permuted(sizes in sizes(), weighting in weighting()) {
        let [q, k, v] = sizes.tensors();
        let mut random = Random::new(sizes.seed + 2);
        let mut order: Vec<usize> = (0..sizes.keys).collect();
        (1..sizes.keys).for_each(|i| order.swap(i, random.below(i + 1)));
        let permuted = |tensor: &Tensor, layout| {
            Tensor::from_fn(tensor.shape(), layout, |[b, h, r, c]| tensor.get([b, h, order[r], c]))
        };
        let other = [q.clone(), permuted(&k, sizes.layouts[1]), permuted(&v, sizes.layouts[2])];
        let spec = Spec::new(weighting);
        let tensors = [q, k, v];
        for level in levels() {
            let (a, b) = (run_on(*level, &spec, &tensors).out, run_on(*level, &spec, &other).out);
            let row_sums = magnitudes(&spec, &tensors, &sizes);
            for (i, (a, b)) in a.iter().zip(&b).enumerate() {
                let tolerance = row_sums[i / sizes.d_v] * 2.0 * sizes.keys as f64 * f64::from(f32::EPSILON);
                prop_assert!(f64::from((a - b).abs()) <= tolerance, "{} {} {}", a, b, tolerance);
            }
        }
    }

    /// Scaling V by a power of two scales the output, bit for bit.
    #[test]
    fn values_scale(sizes in sizes(), mask in mask(), weighting in weighting(), power in -8..8_i32) {
        let [q, k, v] = sizes.tensors();
        let data = mask.data(&sizes);
        let spec = mask.apply(&data, Spec::new(weighting));
        let factor = -(2_f32.powi(power));
        let scaled = Tensor::from_fn(v.shape(), sizes.layouts[3], |index| factor * v.get(index));
        for level in levels() {
            let other = run_on(*level, &spec, &[q.clone(), k.clone(), scaled.clone()]).out;
            for (a, b) in run_on(*level, &spec, &[q.clone(), k.clone(), v.clone()]).out.iter().zip(&other) {
                prop_assert_eq!(a * factor, *b);
            }
        }
    }

    /// A row does not depend on other rows, bit for bit: neither on what they are nor on how many.
    #[test]
    fn rows_are_independent(
        sizes in sizes(),
        mask in mask(),
        weighting in weighting(),
        row in any::<prop::sample::Index>(),
    ) {
        let [q, k, v] = sizes.tensors();
        let row = row.index(sizes.queries);
        let mut random = Random::new(sizes.seed + 3);
        let changed = Tensor::from_fn(q.shape(), sizes.layouts[3], |index| {
            if index[2] == row { q.get(index) } else { 100.0 * random.normal() }
        });
        let data = mask.data(&sizes);
        let spec = mask.apply(&data, Spec::new(weighting));
        // The row alone, at the same position.
        let alone = Spec {
            keep: spec.keep.map(|keep| {
                let [batch, heads, _, keys] = data.shape;
                let slice = &data.keep[row * keys..];
                View::strided(slice, [batch, heads, 1, keys], keep.strides()).expect("rows of a view").into()
            }),
            ..at_row(&spec, &sizes, row)
        };
        for level in levels() {
            let whole = run_on(*level, &spec, &[q.clone(), k.clone(), v.clone()]);
            let other = run_on(*level, &spec, &[changed.clone(), k.clone(), v.clone()]);
            for (at, index) in rows(&sizes).enumerate().filter(|(_, index)| index[2] == row) {
                let columns = at * sizes.d_v..(at + 1) * sizes.d_v;
                let (before, after) = (&whole.out[columns.clone()], &other.out[columns]);
                prop_assert_eq!(before, after, "other rows changed {:?}", index);
            }
            // Positions that differ from entry to entry cannot be said as one offset.
            if alone.align.is_some() {
                // On a lanes kernel whatever the number of rows; a rows kernel sums up weights in an order of its own for each
                // number of rows.
                let on_lanes = |spec: &Spec<'_>, q: &Tensor| {
                    let case = Case::new(spec.clone(), q, &k, &v);
                    Engine::Lanes(&kernels(*level)[0]).run(&case, &Blocks::new(48, 40))
                };
                let whole = on_lanes(&spec, &q);
                let single = on_lanes(&alone, &q.rows(row, 1));
                for (head, out) in single.out.chunks(sizes.d_v).enumerate() {
                    let at = head * sizes.queries + row;
                    let within = &whole.out[at * sizes.d_v..(at + 1) * sizes.d_v];
                    prop_assert_eq!(out, within, "alone it differs");
                }
            }
        }
    }

    /// Keys that a causal mask hides change nothing when they are appended, bit for bit. (The n of weightings that have
    /// one is that of the visible keys here.)
    #[test]
    fn later_keys_change_nothing(sizes in sizes(), weighting in weighting(), appended in 1..200_usize) {
        let [q, k, v] = sizes.tensors();
        let mut random = Random::new(sizes.seed + 4);
        let mut longer = |tensor: &Tensor, layout| {
            let [batch, heads, rows, columns] = tensor.shape();
            Tensor::from_fn([batch, heads, rows + appended, columns], layout, |[b, h, r, c]| {
                if r < rows { tensor.get([b, h, r, c]) } else { 10.0 * random.normal() }
            })
        };
        // Every query sees the same keys before and after: the last of them sees the last key of the shorter k at most.
        let offset = sizes.keys as i64 - sizes.queries as i64;
        let spec = Spec {
            causal: Some(Align::Offset(offset)),
            count: Some(regard::Count::Visible),
            ..Spec::new(weighting)
        };
        let other = [q.clone(), longer(&k, sizes.layouts[1]), longer(&v, sizes.layouts[2])];
        let tensors = [q, k, v];
        for level in levels() {
            run_on(*level, &spec, &tensors).assert_same(&run_on(*level, &spec, &other), "with later keys");
        }
    }

    /// The layouts of inputs and output change no bit.
    #[test]
    fn layouts_change_nothing(sizes in sizes(), mask in mask(), weighting in weighting()) {
        let tensors = sizes.tensors();
        let contiguous = tensors.each_ref().map(|tensor| tensor.in_layout(Layout::Bhsd));
        let data = mask.data(&sizes);
        let spec = mask.apply(&data, Spec::new(weighting));
        for level in levels() {
            let [q, k, v] = &tensors;
            let problem = Case::new(spec.clone(), q, k, v).problem();
            let strided = run_into(&problem, &setup_of(*level), Execution::Serial, sizes.layouts[3]);
            strided.assert_same(&run_on(*level, &spec, &contiguous), "contiguous");
        }
    }
}

/// `sum |w| max |v|` of each row, unmasked.
fn magnitudes(spec: &Spec<'_>, [q, k, v]: &[Tensor; 3], sizes: &Sizes) -> Vec<f64> {
    let problem = Case::new(spec.clone(), q, k, v).problem();
    let most = f64::from(v.to_vec().iter().fold(0.0_f32, |most, x| most.max(x.abs())));
    rows(sizes)
        .map(|row| regard::reference::row(&problem, regard::Isa::Avx2, row).weights)
        .map(|weights| weights.iter().map(|weight| weight.abs()).sum::<f64>() * most)
        .collect()
}

/// The options of query `row` alone, if all batch entries put it at the same position; no alignment otherwise.
fn at_row<'a>(spec: &Spec<'a>, sizes: &Sizes, row: usize) -> Spec<'a> {
    let position = match spec.align {
        Some(Align::TopLeft) => Some(row as i64),
        Some(Align::Offset(offset)) => Some(offset + row as i64),
        Some(Align::BottomRight) if spec.key_lengths.is_none() => {
            Some((sizes.keys + row) as i64 - sizes.queries as i64)
        }
        _ => None,
    };
    let align = position.map(Align::Offset);
    Spec {
        align,
        causal: spec.causal.and(align),
        anti_causal: spec.anti_causal.and(align),
        strict: spec.strict && align.is_some(),
        ..spec.clone()
    }
}

/// Any strides, and a buffer that may be too short for them.
fn strided() -> impl Strategy<Value = ([usize; 4], [usize; 4], usize)> {
    let shape = [0..4_usize, 0..4_usize, 0..5_usize, 0..6_usize];
    let strides = [0..200_usize, 0..70_usize, 0..30_usize, 0..3_usize];
    (shape, strides, 0..900_usize)
}

fn offsets([b, h, r, c]: [usize; 4], strides: [usize; 4]) -> Vec<usize> {
    let indices = (0..b * h * r * c).map(|i| [i / c / r / h, i / c / r % h, i / c % r, i % c]);
    indices.map(|index| index.iter().zip(strides).map(|(i, stride)| i * stride).sum()).collect()
}

proptest! {
    #![proptest_config(config(2000))]

    /// A view is accepted iff all of its elements lie within the slice; a view to be written only if, besides, rows are
    /// contiguous and no two elements share memory, and each reason for a refusal is true. (Overlap is judged by
    /// nesting, which may refuse exotic strides that do not overlap.)
    #[test]
    fn views_prove_what_they_say((shape, strides, len) in strided()) {
        let mut offsets = offsets(shape, strides);
        let inside = offsets.iter().all(|offset| *offset < len);
        let mut data = vec![0.0_f32; len];
        prop_assert_eq!(View::strided(&data, shape, strides).is_ok(), inside);
        let rows = strides[3] == 1 || shape[3] <= 1 || offsets.is_empty();
        let elements = offsets.len();
        offsets.sort_unstable();
        offsets.dedup();
        match ViewMut::strided(&mut data, shape, strides) {
            Ok(_) => prop_assert!(inside && rows && offsets.len() == elements),
            Err(ViewError::TooShort { needed, .. }) => prop_assert!(!inside && offsets.last() == Some(&(needed - 1))),
            Err(ViewError::RowStride { .. }) => prop_assert!(!rows),
            Err(ViewError::Overlap { .. }) => prop_assert!(elements > 1),
            Err(error) => prop_assert!(false, "{}", error),
        }
    }

    /// Every layout that comes from permuting and padding a contiguous one may be written.
    #[test]
    fn nested_layouts_may_be_written(
        shape in [1..4_usize, 1..4_usize, 1..5_usize, 1..6_usize],
        order in Just([0, 1, 2]).prop_shuffle(),
        gaps in [0..5_usize, 0..5_usize, 0..5_usize],
    ) {
        let mut strides = [0, 0, 0, 1];
        let mut stride = shape[3];
        for (dimension, gap) in order.into_iter().zip(gaps) {
            strides[dimension] = stride + gap;
            stride = strides[dimension] * shape[dimension];
        }
        let len = offsets(shape, strides).into_iter().max().map_or(0, |last| last + 1);
        prop_assert!(ViewMut::strided(&mut vec![0.0_f32; len], shape, strides).is_ok());
        prop_assert!(ViewMut::strided(&mut vec![0.0_f32; len - 1], shape, strides).is_err());
    }
}
