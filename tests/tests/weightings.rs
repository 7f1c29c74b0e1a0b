//! Every weighting with every mask, every score term, every temperature and every factor, on every level, at awkward
//! sizes.
#![forbid(unsafe_code)]

use regard::{Align, Count, Dtype, RowScale, Split, Temperature, View, Weighting};
use regard_kernels::table::kernels;
use regard_tests::{
    Blocks, Case, Engine, Layout, Random, Report, SLOW, Spec, Stored, Tensor, check, compare, engines, levels,
    setup_for, weightings,
};

/// Tensors and lists for one shape.
struct Pool {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    /// The same in other element types.
    stored: Vec<[Stored; 3]>,
    /// Mask tensors, as bytes with their shapes; any byte but 0 keeps.
    keeps: Vec<(Vec<u8>, [usize; 4])>,
    biases: Vec<Tensor>,
    slopes: Vec<f32>,
    sinks: Vec<Vec<f32>>,
    per_head: Vec<f32>,
    per_row: Vec<f32>,
    lengths: Vec<Vec<usize>>,
}

impl Pool {
    fn new(heads: [usize; 2], [queries, keys]: [usize; 2], seed: u64) -> Self {
        let random = &mut Random::new(seed);
        let [heads, kv_heads] = heads;
        let (batch, d, d_v) = (2, 6, 5);
        let pairs = [batch, heads, queries, keys];
        let shapes = [
            pairs,
            [1, 1, queries, keys],
            [batch, 1, 1, keys],
            [1, 1, 1, keys],
            // One value for all keys: a stride of 0 along the keys.
            [batch, heads, queries, 1],
            [1, heads, 1, 1],
            [1, 1, 1, 1],
        ];
        let bytes = |shape: [usize; 4], keep: &mut dyn FnMut(usize) -> bool| {
            let n = shape.iter().product();
            ((0..n).map(|i| if keep(i) { [1, 2, 128, 255][i % 4] } else { 0 }).collect(), shape)
        };
        let mut keeps: Vec<_> = shapes.map(|shape| bytes(shape, &mut |_| random.chance(0.6))).into();
        // Structure: nothing, everything, every other key, single pairs, and blocks as long as a key block.
        keeps.push(bytes(pairs, &mut |_| false));
        keeps.push(bytes(pairs, &mut |_| true));
        keeps.push(bytes(pairs, &mut |i| i % keys.max(1) % 2 == 1));
        keeps.push(bytes(pairs, &mut |i| i % 29 == 0));
        keeps.push(bytes(pairs, &mut |i| i % keys.max(1) / 16 % 2 == 1));
        let (rows, unit) = (batch * heads * queries, |random: &mut Random| 0.3 + 2.0 * random.uniform() as f32);
        let q = Tensor::normal([batch, heads, queries, d], Layout::Bshd, random);
        let k = Tensor::normal([batch, kv_heads, keys, d], Layout::Padded, random);
        let v = Tensor::normal([batch, kv_heads, keys, d_v], Layout::PaddedBshd, random);
        let stored = DTYPES.map(|[q_dtype, kv_dtype]| Stored::three([&q, &k, &v], q_dtype, kv_dtype)).into();
        Self {
            q,
            k,
            v,
            stored,
            keeps,
            biases: shapes.map(|shape| Tensor::normal(shape, Layout::Padded, random)).into(),
            slopes: (0..heads).map(|head| if head % 3 == 2 { -0.25 } else { 0.5 / (1 + head) as f32 }).collect(),
            sinks: vec![vec![0.0; heads], random.normals(heads), vec![9.0; heads], vec![f32::NEG_INFINITY; heads]],
            per_head: (0..heads).map(|_| unit(random)).collect(),
            per_row: (0..rows).map(|_| unit(random)).collect(),
            lengths: vec![vec![keys; 2], vec![0, keys], vec![keys / 2, keys / 3], vec![1.min(keys), keys - keys / 4]],
        }
    }

    fn all() -> Vec<Self> {
        let shapes = [([2, 2], [19, 19]), ([4, 2], [7, 37]), ([3, 1], [37, 18]), ([1, 1], [1, 53])];
        let shapes = if SLOW { &shapes[..2] } else { &shapes[..] };
        shapes.iter().enumerate().map(|(i, (heads, sizes))| Self::new(*heads, *sizes, i as u64)).collect()
    }

    /// Gives windows and ALiBi an alignment where they need one and nothing else gives it, and leaves ALiBi out at
    /// positions so far off that powers of the scores overflow.
    fn aligned<'a>(&self, mut spec: Spec<'a>) -> Spec<'a> {
        let align = spec.causal.or(spec.anti_causal).or(spec.align);
        if matches!(align, Some(Align::Offset(offset)) if offset.unsigned_abs() > 1000) {
            spec.alibi = None;
        }
        let lengths = spec.key_lengths.is_some_and(|lengths| lengths.iter().any(|n| *n != self.q.shape()[2]));
        let needed = spec.window.is_some() || spec.alibi.is_some();
        if needed && align.is_none() && (lengths || self.q.shape()[2] != self.k.shape()[2]) {
            spec.align = Some(Align::BottomRight);
        }
        spec
    }

    /// Every mask.
    fn masks(&self) -> Vec<Spec<'_>> {
        let none = || Spec::new(Weighting::Softmax);
        let mut all = vec![none()];
        let offsets = [-1_000_000, -5, -1, 0, 1, 6, 1_000_000, i64::MIN, i64::MAX].map(Align::Offset);
        for align in [Align::TopLeft, Align::BottomRight].into_iter().chain(offsets) {
            for strict in [false, true] {
                all.push(Spec { causal: Some(align), strict, ..none() });
                all.push(Spec { anti_causal: Some(align), strict, ..none() });
            }
            // The diagonal alone.
            all.push(Spec { causal: Some(align), anti_causal: Some(align), ..none() });
            all.push(Spec { window: Some((Some(3), Some(2))), align: Some(align), ..none() });
            all.push(Spec { window: Some((Some(9), None)), causal: Some(align), ..none() });
        }
        let most = usize::MAX;
        for sides in [(None, None), (Some(0), Some(0)), (Some(4), None), (None, Some(4)), (Some(most), Some(most))] {
            all.push(Spec { window: Some(sides), ..none() });
        }
        for lengths in &self.lengths {
            let some = || Spec { key_lengths: Some(lengths), ..none() };
            all.push(some());
            all.push(Spec { causal: Some(Align::BottomRight), ..some() });
            all.push(Spec { causal: Some(Align::TopLeft), strict: true, ..some() });
            all.push(Spec { window: Some((Some(2), Some(20))), align: Some(Align::BottomRight), ..some() });
        }
        for (i, (bytes, shape)) in self.keeps.iter().enumerate() {
            let keep = Some(View::bhsd(bytes, *shape).expect("as long as its shape"));
            all.push(Spec { keep, ..none() });
            all.push(Spec { keep, causal: Some(Align::BottomRight), ..none() });
            let key_lengths = Some(&self.lengths[i % 4][..]);
            let window = Some((Some(11), Some(3)));
            all.push(Spec { keep, key_lengths, window, causal: Some(Align::Offset(2)), ..none() });
        }
        all.into_iter().map(|spec| self.aligned(spec)).collect()
    }

    /// Every score term, on top of a mask.
    fn terms<'a>(&'a self, mask: &Spec<'a>) -> Vec<Spec<'a>> {
        let plain = || mask.clone();
        let mut all = vec![plain()];
        all.extend([0.5, 4.0].map(|cap| Spec { softcap: Some(cap), ..plain() }));
        all.extend([-0.7, 0.0, 2.0].map(|scale| Spec { scale: Some(scale), ..plain() }));
        all.push(Spec { alibi: Some(&self.slopes), ..plain() });
        for bias in &self.biases {
            let bias = Some(bias.view());
            all.push(Spec { bias, ..plain() });
            all.push(Spec { bias, scale: Some(-0.4), softcap: Some(3.0), alibi: Some(&self.slopes), ..plain() });
        }
        all.into_iter().map(|spec| self.aligned(spec)).collect()
    }

    /// Every temperature and every `n`, on top of everything else.
    fn temperatures<'a>(&'a self, spec: &Spec<'a>) -> Vec<Spec<'a>> {
        let plain = || spec.clone();
        let mut all = vec![plain()];
        let some =
            [Temperature::Constant(0.4), Temperature::PerHead(&self.per_head), Temperature::PerRow(&self.per_row)];
        for temperature in some {
            all.push(Spec { temperature: Some(temperature), ..plain() });
            all.push(Spec { temperature: Some(temperature), log_n: Some(0.6), count: Some(Count::Visible), ..plain() });
        }
        for count in [Count::AllKeys, Count::Visible, Count::Constant(12.5)] {
            all.push(Spec { log_n: Some(0.43), count: Some(count), ..plain() });
        }
        all
    }

    /// Every factor and extra that the weighting has.
    fn extras<'a>(&'a self, spec: &Spec<'a>) -> Vec<Spec<'a>> {
        let plain = || spec.clone();
        let mut all = vec![plain()];
        match spec.weighting {
            Weighting::Softmax => all.extend(self.sinks.iter().map(|sinks| Spec { sinks: Some(sinks), ..plain() })),
            Weighting::HardLeft | Weighting::HardRight | Weighting::AverageHard => {}
            Weighting::EvenPower { .. } | Weighting::Taylor2 => {}
            _ => {
                all.push(Spec { coefficient: Some(-2.5), ..plain() });
                for row_scale in [RowScale::InvN, RowScale::InvSqrtN, RowScale::InvPower(0.3)] {
                    for count in [Count::AllKeys, Count::Visible, Count::Constant(7.0)] {
                        all.push(Spec { row_scale: Some(row_scale), count: Some(count), ..plain() });
                    }
                }
                all.push(Spec { row_scale: Some(RowScale::InvPower(-0.5)), coefficient: Some(0.1), ..plain() });
            }
        }
        all
    }
}

/// Element types of q, and of k and v.
const DTYPES: [[Dtype; 2]; 6] = [
    [Dtype::F32, Dtype::F32],
    [Dtype::Bf16, Dtype::Bf16],
    [Dtype::F16, Dtype::Int8],
    [Dtype::F32, Dtype::F32],
    [Dtype::F16, Dtype::F16],
    [Dtype::F32, Dtype::Bf16],
];

/// Checks a spec on every level, with kernels, element types and blocks that change from call to call.
fn on_every_level(pool: &Pool, spec: &Spec<'_>, turn: &mut usize) -> Report {
    let mut report = Report::default();
    for level in levels() {
        *turn += 1;
        let stored = &pool.stored[*turn % DTYPES.len()];
        let dtypes = [0, 1].map(|i| stored[i].dtype());
        let takes = |engine: &Engine| {
            let native = !engine.is_native() || dtypes == [Dtype::Bf16; 2];
            engine.isa() == level.isa() && engine.takes(dtypes[1]) && native && engine.computes(&spec.weighting)
        };
        let list: Vec<Engine> = engines().filter(takes).collect();
        // Rows kernels are one or two of them.
        let engine = if (*turn / 7).is_multiple_of(2) {
            list[list.len() - 1 - *turn / 5 % 2]
        } else {
            list[*turn / 5 % list.len()]
        };
        let rows = engine.tile_rows();
        let split = if *turn % 4 == 3 { Split::Keys(16) } else { Split::Never };
        let blocks = Blocks { split, ..Blocks::new([16, 48][*turn % 2], [3 * rows, 5, rows][*turn % 3]) };
        let case = Case::stored(spec.clone(), stored);
        report = report.and(compare(&case, &case.problem(), &engine.run(&case, &blocks)));
    }
    report
}

/// Runs specs of every weighting and prints how close each weighting came.
fn sweep<'a>(name: &str, pools: &'a [Pool], specs: impl Fn(&'a Pool, Weighting) -> Vec<Spec<'a>>) {
    let mut turn = 0;
    for weighting in weightings() {
        let mut report = Report::default();
        for pool in pools {
            for spec in specs(pool, weighting.clone()) {
                report = report.and(on_every_level(pool, &spec, &mut turn));
            }
        }
        let Report { error, used, rows } = report;
        println!("{name}, {weighting:?}: {rows} rows, largest error {error:.1e}, {used:.2} of what is allowed");
    }
}

fn with<'a>(weighting: &Weighting, specs: Vec<Spec<'a>>) -> Vec<Spec<'a>> {
    specs.into_iter().map(|spec| Spec { weighting: weighting.clone(), ..spec }).collect()
}

#[test]
fn every_mask() {
    let pools = Pool::all();
    sweep("masks", &pools, |pool, weighting| {
        let masks = with(&weighting, pool.masks());
        if SLOW { masks.into_iter().step_by(3).collect() } else { masks }
    });
}

#[test]
fn every_score_term() {
    let pools = Pool::all();
    sweep("terms", &pools, |pool, weighting| {
        let masks = with(&weighting, pool.masks());
        // No mask, a causal one, and a tensor with everything.
        [0, 4, masks.len() - 4].iter().flat_map(|mask| pool.terms(&masks[*mask])).collect()
    });
}

#[test]
fn every_temperature_and_factor() {
    let pools = Pool::all();
    sweep("temperatures", &pools, |pool, weighting| {
        let masks = with(&weighting, pool.masks());
        let mut all = Vec::new();
        for mask in [&masks[0], &masks[4], &masks[masks.len() - 7]] {
            for spec in pool.terms(mask).iter().step_by(7) {
                let temperatures = pool.temperatures(spec);
                let step = if SLOW { 13 } else { 3 };
                // Another start each time, so that every temperature has its turn.
                let first = all.len() % step;
                all.extend(temperatures.iter().skip(first).step_by(step).flat_map(|spec| pool.extras(spec)));
            }
        }
        all
    });
}

/// Everything at once, at random.
#[test]
fn random_combinations() {
    let pools = Pool::all();
    let mut turn = 0;
    let mut report = Report::default();
    let mut random = Random::new(77);
    fn pick<'a>(mut all: Vec<Spec<'a>>, random: &mut Random) -> Spec<'a> {
        all.swap_remove(random.below(all.len()))
    }
    let weightings = weightings();
    for _ in 0..if SLOW { 100 } else { 2000 } {
        let pool = &pools[random.below(pools.len())];
        let mask = pick(pool.masks(), &mut random);
        let mask = Spec { weighting: weightings[random.below(weightings.len())].clone(), ..mask };
        let spec = pick(pool.terms(&mask), &mut random);
        let spec = pick(pool.temperatures(&spec), &mut random);
        let spec = pick(pool.extras(&spec), &mut random);
        report = report.and(on_every_level(pool, &spec, &mut turn));
    }
    println!("random: {:.2} of what is allowed", report.used);
}

/// The oracle uses the library's masks; this counts them by the definitions.
#[test]
fn masks_are_what_they_say() {
    for pool in Pool::all() {
        for spec in pool.masks() {
            let problem = Case::new(spec.clone(), &pool.q, &pool.k, &pool.v).problem();
            let shape = problem.shape();
            let mut pairs = 0;
            for batch in 0..shape.batch {
                for head in 0..shape.query_heads {
                    for query in 0..shape.queries {
                        pairs += (0..shape.keys).filter(|key| spec.sees(&shape, [batch, head, query, *key])).count();
                        let row = regard::reference::row(&problem, regard::Isa::Portable, [batch, head, query]);
                        for (key, weight) in row.weights.iter().enumerate() {
                            assert_eq!(spec.sees(&shape, [batch, head, query, key]), *weight > 0.0, "{spec:?}");
                        }
                    }
                }
            }
            assert_eq!(problem.visible_pairs(), pairs as u128, "{spec:?}");
        }
    }
}

/// `bool` and `u8` mask tensors mean the same.
#[test]
fn mask_tensors_of_bool() {
    let pool = Pool::new([2, 2], [7, 9], 5);
    let bools: Vec<bool> = pool.keeps[0].0.iter().map(|byte| *byte != 0).collect();
    let of_bools = View::bhsd(&bools, pool.keeps[0].1).expect("as long as its shape");
    let of_bytes = View::bhsd(&pool.keeps[0].0, pool.keeps[0].1).expect("as long as its shape");
    let run = |spec: Spec<'_>| {
        let options = spec.options();
        regard::attention(&options, pool.q.view(), pool.k.view(), pool.v.view()).expect("valid")
    };
    let spec = || Spec::new(Weighting::Softmax);
    assert_eq!(run(Spec { keep: Some(of_bools.into()), ..spec() }), run(Spec { keep: Some(of_bytes), ..spec() }));
}

/// With a constant `n` of 1 the schedule is `ln 1`: an infinite temperature, at which soft weights are equal. It makes no
/// tie for selection, which compares scores before any temperature.
#[test]
fn an_infinite_temperature() {
    let pool = Pool::new([2, 2], [19, 19], 6);
    for level in levels() {
        let setup = setup_for(&kernels(*level)[0], 16, 40);
        for weighting in weightings() {
            let spec = Spec { log_n: Some(1.0), count: Some(Count::Constant(1.0)), ..Spec::new(weighting.clone()) };
            check(&Case::new(spec, &pool.q, &pool.k, &pool.v), &setup);
        }
    }
}
