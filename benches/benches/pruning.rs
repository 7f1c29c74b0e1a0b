//! Attention with an index of the keys against attention without: how much faster, by the spread of the clusters, and where
//! the index switches itself off. Both take turns, so that a clock that drifts does no harm.
//!
//! On one core of a Zen 4 (avx512, 2 heads, median of 5 rounds of both, of 40 for few queries):
//!
//! | | sigma 0.1 | 0.3 | 0.5 | 0.7 | no clusters |
//! |---|---|---|---|---|---|
//! | hard, d 128, 2048 x 2048, queries grouped | 11.1 | 11.3 | 11.0 | 5.3 | 1.01 |
//! | the same, shuffled | 10.3 | 10.5 | 9.3 | 4.9 | 1.00 |
//! | hard, d 64, 2048 x 2048, shuffled | 10.5 | 10.3 | 8.7 | 3.7 | 1.01 |
//! | hard, d 64, 2048 x 8192, shuffled | 18.7 | 18.3 | 14.5 | 4.3 | 1.01 |
//! | average-hard, d 128, shuffled | 10.6 | 10.4 | 10.1 | 5.2 | 1.00 |
//! | softmax, temperature 1/4, d 128, shuffled | 12.0 | 2.2 | 1.0 | 1.0 | 1.00 |
//! | softmax, temperature 1/16, d 64, shuffled | 14.0 | 11.7 | 2.6 | 1.0 | 1.00 |
//! | hard, d 128, 1 query x 32768 | 35 | 36 | 36 | 7.1 | 0.96 |
//! | hard, d 64, 4 queries x 32768 | 9.4 | 9.4 | 8.5 | 2.5 | 0.98 |
//! | hard, d 64, 15 queries x 32768 | 9.2 | 9.1 | 7.4 | 0.97 | 1.00 |
//! | hard, d 64, 8 queries x 2048 | 2.2 | 2.2 | 2.1 | 1.0 | 0.98 |
//! | softmax, temperature 1/16, d 64, 1 query x 32768 | 54 | 56 | 22 | 2.2 | 0.99 |
//! | softmax, temperature 1/16, d 64, 8 queries x 32768 | 17 | 16 | 1.7 | 0.97 | 0.98 |
//!
//! Nothing is left out of softmax at temperature 1, nor where clusters have 16 keys and blocks 64: 0.99 to 1.00 everywhere. A few
//! queries, each of another cluster, want the more blocks together the more they are, and where keys come from memory a look at
//! the centres of all blocks shows.
//! A selection computes a block for the rows that want it, gathered from all sub-tiles, and knows the largest score of each row's
//! best block when it decides: without, d 64 stood at 6.1 for sigma 0.5 and at 1.0 for 0.7.
//! ReLU that leaves out values takes 1 % more where scores have both signs everywhere, and is 1.3 and 1.5 times as fast where
//! five and eight of ten runs of 512 keys have negative scores only.
//!
//! `cargo bench --bench pruning`; a part of a name, such as `hard d128` or `few`, picks lines, and `relu` those of ReLU.

use regard::{
    Attention, Execution, KeyIndex, Plan, Pointwise, Problem, Setup, Simd, Temperature, View, ViewMut, Weighting,
};
use regard_benches::clustered::Clustered;
use regard_benches::level;
use regard_tuner::inputs::standard_normal;
use regard_tuner::measure::{Budget, compare};

/// Spreads of the clusters. From about 1 on they overlap.
const SIGMAS: [f32; 8] = [0.1, 0.3, 0.5, 0.7, 0.9, 1.1, 1.4, 2.0];

struct Line {
    name: &'static str,
    weighting: Weighting,
    temperature: f32,
    queries: usize,
    keys: usize,
    d: usize,
    /// Keys of a cluster.
    cluster: usize,
    grouped: bool,
}

fn lines() -> Vec<Line> {
    let line = |name, weighting, temperature, [queries, keys, d, cluster]: [usize; 4], grouped| Line {
        name,
        weighting,
        temperature,
        queries,
        keys,
        d,
        cluster,
        grouped,
    };
    let hard = || Weighting::HardLeft;
    let soft = || Weighting::Softmax;
    vec![
        line("hard d128 grouped", hard(), 1.0, [2048, 2048, 128, 64], true),
        line("hard d128 shuffled", hard(), 1.0, [2048, 2048, 128, 64], false),
        line("hard d64 shuffled", hard(), 1.0, [2048, 2048, 64, 64], false),
        line("hard d64 shuffled, 8192 keys", hard(), 1.0, [2048, 8192, 64, 64], false),
        line("average-hard d128 shuffled", Weighting::AverageHard, 1.0, [2048, 2048, 128, 64], false),
        line("hard d128 shuffled, clusters of 16", hard(), 1.0, [2048, 2048, 128, 16], false),
        line("softmax T 1/4 d128 grouped", soft(), 0.25, [2048, 2048, 128, 64], true),
        line("softmax T 1/4 d128 shuffled", soft(), 0.25, [2048, 2048, 128, 64], false),
        line("softmax T 1/16 d64 shuffled", soft(), 1.0 / 16.0, [2048, 2048, 64, 64], false),
        line("softmax T 1 d128 shuffled", soft(), 1.0, [2048, 2048, 128, 64], false),
        line("few: hard d128, 1 query", hard(), 1.0, [1, 32768, 128, 64], false),
        line("few: hard d64, 4 queries", hard(), 1.0, [4, 32768, 64, 64], false),
        line("few: hard d64, 15 queries", hard(), 1.0, [15, 32768, 64, 64], false),
        line("few: hard d64, 8 queries, 2048 keys", hard(), 1.0, [8, 2048, 64, 64], false),
        line("few: softmax T 1/16 d64, 1 query", soft(), 1.0 / 16.0, [1, 32768, 64, 64], false),
        line("few: softmax T 1/16 d64, 8 queries", soft(), 1.0 / 16.0, [8, 32768, 64, 64], false),
    ]
}

/// How many times as fast, and whether results agree as they should.
fn speedup(line: &Line, clusters: usize, sigma: f32, test: bool) -> f64 {
    let Line { queries, keys, d, .. } = *line;
    let [queries, keys] = if test { [queries.min(64), 256] } else { [queries, keys] };
    let clusters = if test { clusters.min(4) } else { clusters };
    let heads = 2;
    let rows = Clustered { clusters, sigma, grouped: line.grouped }.rows(7, heads, [queries, keys], d);
    let values = standard_normal(11, heads * keys * d);
    let view = |data, rows| View::bhsd(data, [1, heads, rows, d]).expect("as many numbers as the shape has");
    let (k, v) = (view(&rows.k, keys), view(&values, keys));
    let index = KeyIndex::with_values(k, v).expect("keys and values of one shape");
    let options =
        Attention::new(line.weighting.clone()).temperature(Temperature::Constant(line.temperature)).isa(level().isa());
    let problem = Problem::new(&options, view(&rows.q, queries), k, v).expect("a legal problem");
    let indexed = problem.clone().with_index(&index).expect("an index of these keys");
    let setup = Setup::global().expect("REGARD_ISA names a level of this machine");
    let mut outputs = [vec![0.0; heads * queries * d], vec![0.0; heads * queries * d]];
    let [dense, pruned] = &mut outputs;
    let run = |problem: &Problem<'_>, plan: &Plan, out: &mut [f32], workspace: &mut [f32]| {
        let out = ViewMut::bhsd(out, [1, heads, queries, d]).expect("as many numbers as the shape has");
        plan.run(problem, out, None, workspace, Execution::Serial).expect("a plan of this problem");
    };
    let plans = [Plan::new(&problem, setup), Plan::new(&indexed, setup)];
    let mut memory = [vec![0.0; plans[0].workspace_len(1)], vec![0.0; plans[1].workspace_len(1)]];
    let [dense_memory, pruned_memory] = &mut memory;
    let budget = Budget::rounds(if test {
        1
    } else if queries < 64 {
        40
    } else {
        5
    });
    let found = compare(
        || run(&problem, &plans[0], dense, dense_memory),
        || run(&indexed, &plans[1], pruned, pruned_memory),
        budget,
    );
    let most = values.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    let off = dense.iter().zip(&*pruned).fold(0.0_f32, |off, (a, b)| off.max((a - b).abs()));
    let allowed = if line.weighting.name() == "softmax" { 64.0 * f32::EPSILON * most } else { 0.0 };
    assert!(off <= allowed, "{}: results differ by {off}", line.name);
    found.speedup
}

/// ReLU that multiplies all values.
#[derive(Clone, Copy, Debug)]
struct EveryValue;

impl Pointwise for EveryValue {
    #[inline(always)]
    fn weight<S: Simd>(&self, s: S, score: S::F32) -> S::F32 {
        s.select(s.gt(s.zero(), score), s.zero(), score)
    }

    fn weight_f64(&self, score: f64) -> f64 {
        if score < 0.0 { 0.0 } else { score }
    }
}

/// How many times as fast ReLU is for leaving out values whose weights are all zero, where `negative` of every ten runs of 512
/// keys have negative scores only; if none, scores are of both signs everywhere.
fn relu_speedup(negative: usize, d: usize, test: bool) -> f64 {
    let (heads, rows) = (2, if test { 256 } else { 2048 });
    let positive = |seed| standard_normal(seed, heads * rows * d).into_iter().map(f32::abs).collect::<Vec<_>>();
    let (mut q, mut k) = (positive(1), positive(2));
    if negative == 0 {
        (q, k) = (standard_normal(1, heads * rows * d), standard_normal(2, heads * rows * d));
    }
    for (key, columns) in k.chunks_exact_mut(d).enumerate() {
        if key / 512 * 7 % 10 < negative {
            columns.iter_mut().for_each(|x| *x = -*x);
        }
    }
    let values = standard_normal(3, heads * rows * d);
    let view = |data| View::bhsd(data, [1, heads, rows, d]).expect("as many numbers as the shape has");
    let options = [Weighting::custom("every value", EveryValue), Weighting::Relu]
        .map(|weighting| Attention::new(weighting).isa(level().isa()));
    let problems =
        [0, 1].map(|i| Problem::new(&options[i], view(&q), view(&k), view(&values)).expect("a legal problem"));
    let setup = Setup::global().expect("REGARD_ISA names a level of this machine");
    let plans = [0, 1].map(|i| Plan::new(&problems[i], setup));
    let mut memory = [0, 1].map(|i| vec![0.0; plans[i].workspace_len(1)]);
    let mut outputs = [0, 1].map(|_| vec![0.0; heads * rows * d]);
    let ([every, some], [every_memory, some_memory]) = (&mut outputs, &mut memory);
    let run = |i: usize, out: &mut [f32], workspace: &mut [f32]| {
        let out = ViewMut::bhsd(out, [1, heads, rows, d]).expect("as many numbers as the shape has");
        plans[i].run(&problems[i], out, None, workspace, Execution::Serial).expect("a plan of this problem");
    };
    let budget = if test { Budget::rounds(1) } else { Budget::rounds(15) };
    let found = compare(|| run(0, every, every_memory), || run(1, some, some_memory), budget);
    assert!(every.iter().zip(&*some).all(|(a, b)| a.to_bits() == b.to_bits()), "ReLU differs");
    found.speedup
}

/// Where the speed-up falls to 1, between two spreads.
fn crossing(speedups: &[f64]) -> String {
    match speedups.iter().position(|speedup| *speedup < 1.05) {
        None => format!("beyond {}", SIGMAS[SIGMAS.len() - 1]),
        Some(0) => format!("below {}", SIGMAS[0]),
        Some(i) => format!("{} to {}", SIGMAS[i - 1], SIGMAS[i]),
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let test = arguments.iter().any(|argument| argument == "--test");
    let wanted = arguments.iter().find(|argument| !argument.starts_with("--"));
    println!("{}: how many times as fast with an index, by the spread of the clusters", level().isa());
    print!("{:<36}", "");
    SIGMAS.iter().for_each(|sigma| print!("{sigma:>7}"));
    println!("{:>8}   even at", "none");
    for line in lines().iter().filter(|line| wanted.is_none_or(|wanted| line.name.contains(wanted.as_str()))) {
        print!("{:<36}", line.name);
        let sigmas = if test { &SIGMAS[..1] } else { &SIGMAS[..] };
        let clusters = line.keys / line.cluster;
        let speedups: Vec<f64> = sigmas.iter().map(|sigma| speedup(line, clusters, *sigma, test)).collect();
        speedups.iter().for_each(|speedup| print!("{speedup:>7.2}"));
        println!("{:>8.2}   {}", speedup(line, 0, 1.0, test), crossing(&speedups));
    }
    if wanted.is_none_or(|wanted| wanted == "relu") {
        println!(
            "ReLU for leaving out values whose weights are zero, by how many of ten runs of keys have negative scores:"
        );
        for d in [64, 128] {
            print!("relu d{d}:");
            [0, 1, 5, 8].into_iter().for_each(|n| print!("  {n}: {:.3}", relu_speedup(n, d, test)));
            println!();
        }
    }
}
