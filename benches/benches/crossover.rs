//! Where the linear form takes over: both forms in turn, causal, one head, lengths doubling until the linear one is faster.
//!
//! Prints the ratio of their times at each length, the length where it is 1 (between two measured ones, on logarithmic
//! scales), and where the plan changes forms.

use regard::{Align, Attention, Execution, Form, Plan, Problem, Setup, View, ViewMut, Weighting};
use regard_tuner::inputs::standard_normal;
use regard_tuner::measure::{Budget, compare};

const CASES: [(Weighting, usize); 9] = [
    (Weighting::Identity, 64),
    (Weighting::EvenPower { degree: 2 }, 16),
    (Weighting::EvenPower { degree: 2 }, 32),
    (Weighting::EvenPower { degree: 2 }, 64),
    (Weighting::EvenPower { degree: 2 }, 128),
    (Weighting::Taylor2, 16),
    (Weighting::Taylor2, 64),
    (Weighting::Polynomial { degree: 3 }, 16),
    (Weighting::Polynomial { degree: 3 }, 32),
];

const ROUNDS: usize = 5;

/// Lengths at which forms are compared, in order.
const LENGTHS: std::ops::Range<u32> = 7..16;

fn main() {
    let setup = Setup::global().expect("REGARD_ISA names a level of this machine");
    println!("{:<12} {:>4}  {:<60} {:>8} {:>8}", "weighting", "d", "quadratic / linear time", "crosses", "plan");
    // Named cases only, and with `--test` a single length once, as criterion has it.
    let test = std::env::args().any(|arg| arg == "--test");
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    for (weighting, d) in CASES {
        let name = format!("{}/d{d}", weighting.name());
        if !wanted.is_empty() && !wanted.iter().any(|wanted| name.contains(wanted.as_str())) {
            continue;
        }
        let mut points: Vec<(f64, f64)> = Vec::new();
        let (lengths, rounds) = if test { (LENGTHS.start..LENGTHS.start + 1, 1) } else { (LENGTHS, ROUNDS) };
        for length in lengths.map(|log| 1 << log) {
            let ratio = ratio(&weighting, length, d, setup, rounds);
            points.push((length as f64, ratio));
            if ratio > 1.0 && points.len() > 1 {
                break;
            }
        }
        let text: Vec<_> = points.iter().map(|(length, ratio)| format!("{length}: {ratio:.2}")).collect();
        let plan = planned(&weighting, d, setup).map_or("never".to_owned(), |length| length.to_string());
        let crosses = crossing(&points).map_or("-".to_owned(), |length| format!("{length:.0}"));
        println!("{:<12} {d:>4}  {:<60} {crosses:>8} {plan:>8}", weighting.name(), text.join("  "));
    }
}

fn options(weighting: &Weighting, form: Form) -> Attention<'static> {
    Attention::new(weighting.clone()).causal(Align::TopLeft).form(form)
}

/// The time of the quadratic form over that of the linear one.
fn ratio(weighting: &Weighting, length: usize, d: usize, setup: &Setup, rounds: usize) -> f64 {
    let shape = [1, 1, length, d];
    let [q, k, v] = [1, 2, 3].map(|seed| standard_normal(seed, length * d));
    let view = |data| View::bhsd(data, shape).expect("as many elements as the shape has");
    let run = |form: Form| {
        let problem = Problem::new(&options(weighting, form), view(&q), view(&k), view(&v)).expect("a legal problem");
        let plan = Plan::new(&problem, setup);
        let mut workspace = vec![0.0; plan.workspace_len(1)];
        let mut out = vec![0.0; length * d];
        move || {
            let out = ViewMut::bhsd(&mut out, shape).expect("as many elements as the shape has");
            plan.run(&problem, out, None, &mut workspace, Execution::Serial).expect("a plan of this problem");
        }
    };
    compare(run(Form::Quadratic), run(Form::Linear), Budget::rounds(rounds)).speedup
}

/// Where the ratio is 1.
fn crossing(points: &[(f64, f64)]) -> Option<f64> {
    points.windows(2).find(|pair| pair[0].1 <= 1.0 && pair[1].1 > 1.0).map(|pair| {
        let [(a, below), (b, above)] = [pair[0], pair[1]];
        a * (b / a).powf(-below.ln() / (above.ln() - below.ln()))
    })
}

/// The least length that the plan takes the linear form for.
fn planned(weighting: &Weighting, d: usize, setup: &Setup) -> Option<usize> {
    const MOST: usize = 1 << 20;
    let zeros = vec![0.0; MOST * d];
    let is_linear = |length: usize| {
        let view = || View::bhsd(&zeros[..length * d], [1, 1, length, d]).expect("long enough");
        let problem = Problem::new(&options(weighting, Form::Auto), view(), view(), view()).expect("a legal problem");
        let plan = Plan::new(&problem, setup);
        plan.form_for(&problem, &problem.sequences()[0]) == Form::Linear
    };
    if !is_linear(MOST) {
        return None;
    }
    let (mut quadratic, mut linear) = (0, MOST);
    while linear - quadratic > 1 {
        let middle = quadratic + (linear - quadratic) / 2;
        if is_linear(middle) {
            linear = middle;
        } else {
            quadratic = middle;
        }
    }
    Some(linear)
}
