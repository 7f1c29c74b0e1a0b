//! Attention as regression: keys are points of the unit circle, values are noisy observations of a function there, and
//! softmax at inverse temperature beta averages the neighbours of a query. beta to infinity is the nearest neighbour,
//! which is hard attention; the best beta depends on how rough the function is, how noisy, and how many points there
//! are.
//!
//! Collins et al., "In-context learning with transformers: softmax attention adapts to function Lipschitzness",
//! arXiv:2402.11639.

use std::error::Error;
use std::f64::consts::TAU;

use regard::{Attention, View, Weighting};

const QUERIES: usize = 8;

/// Regression of |sin(L x / 2 + phase)| from `points` observations, many times over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task {
    pub(crate) lipschitz: f64,
    pub(crate) noise: f64,
    pub(crate) points: usize,
    pub(crate) repetitions: usize,
}

/// A table of the mean squared error: for each power of two beta, and for the nearest neighbour.
#[derive(Clone, Debug)]
pub(crate) struct Errors {
    pub(crate) soft: Vec<(f32, f64)>,
    pub(crate) nearest: f64,
}

impl Errors {
    pub(crate) fn best_beta(&self) -> f32 {
        self.soft.iter().min_by(|a, b| a.1.total_cmp(&b.1)).map_or(0.0, |(beta, _)| *beta)
    }
}

/// SplitMix64: uniform and, by Box and Muller, normal numbers.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        (-2.0 * (1.0 - self.uniform()).ln()).sqrt() * (TAU * self.uniform()).cos()
    }
}

pub(crate) fn errors(task: Task) -> Result<Errors, Box<dyn Error>> {
    let Task { lipschitz, noise, points, repetitions } = task;
    let mut random = Random(5);
    let (mut q, mut k, mut v, mut truth) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let on_circle = |x: f64| [x.cos() as f32, x.sin() as f32];
    for _ in 0..repetitions {
        let phase = TAU * random.uniform();
        let function = |x: f64| (lipschitz * x / 2.0 + phase).sin().abs();
        for _ in 0..points {
            let x = TAU * random.uniform();
            k.extend(on_circle(x));
            v.push((function(x) + noise * random.normal()) as f32);
        }
        for _ in 0..QUERIES {
            let x = TAU * random.uniform();
            q.extend(on_circle(x));
            truth.push(function(x));
        }
    }
    let mean_squared = |options: Attention<'_>| {
        let out = regard::attention(
            &options,
            View::bhsd(&q, [repetitions, 1, QUERIES, 2])?,
            View::bhsd(&k, [repetitions, 1, points, 2])?,
            View::bhsd(&v, [repetitions, 1, points, 1])?,
        )?;
        let squares = out.iter().zip(&truth).map(|(out, truth)| (f64::from(*out) - truth).powi(2));
        Ok::<_, Box<dyn Error>>(squares.sum::<f64>() / truth.len() as f64)
    };
    // On the unit circle <q, k> = 1 - |q - k|^2 / 2, so that beta <q, k> is a Gaussian window of width 1 / sqrt(beta).
    let soft =
        (0..13).map(|power| 2_f32.powi(power)).map(|beta| Ok((beta, mean_squared(Attention::softmax().scale(beta))?)));
    Ok(Errors {
        soft: soft.collect::<Result<_, Box<dyn Error>>>()?,
        nearest: mean_squared(Attention::new(Weighting::HardLeft).scale(1.0))?,
    })
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let task = Task { lipschitz: 4.0, noise: 0.3, points: 48, repetitions: 200 };
    let tables = [
        ("Lipschitz constant", [1.0, 4.0, 8.0], [1.0, 4.0, 8.0].map(|lipschitz| Task { lipschitz, ..task })),
        ("noise", [0.05, 0.3, 1.0], [0.05, 0.3, 1.0].map(|noise| Task { noise, ..task })),
        ("points", [12.0, 48.0, 96.0], [12, 48, 96].map(|points| Task { points, ..task })),
    ];
    for (name, settings, tasks) in tables {
        let columns: Result<Vec<Errors>, _> = tasks.into_iter().map(errors).collect();
        let columns = columns?;
        println!("mean squared error by {name}\n");
        println!("{:>8} {}", "beta", settings.map(|setting| format!("{setting:>10}")).concat());
        for row in 0..columns[0].soft.len() {
            let beta = columns[0].soft[row].0;
            let mark = |errors: &Errors| if errors.best_beta() == beta { "*" } else { " " };
            let cells: String =
                columns.iter().map(|errors| format!("{:>9.4}{}", errors.soft[row].1, mark(errors))).collect();
            println!("{beta:>8} {cells}");
        }
        println!(
            "{:>8} {}\n",
            "nearest",
            columns.iter().map(|errors| format!("{:>9.4} ", errors.nearest)).collect::<String>()
        );
    }
    println!("* the window narrows with roughness and points, and widens with noise");
    Ok(())
}
