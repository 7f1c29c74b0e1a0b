//! Collins et al., "In-context learning with transformers: softmax attention adapts to function Lipschitzness",
//! arXiv:2402.11639: softmax over unit-norm inputs is kernel regression with a window that beta sets.

use regard::Weighting;
use regard_tests::Random;

use super::*;

/// A point of the unit circle.
fn on_circle(angle: f64) -> [f32; 2] {
    [angle.cos() as f32, angle.sin() as f32]
}

fn angles(random: &mut Random, n: usize) -> Vec<f64> {
    (0..n).map(|_| random.uniform() * std::f64::consts::TAU).collect()
}

fn beta(beta: f32) -> Attention<'static> {
    Attention::softmax().scale(beta)
}

/// For unit-norm keys softmax(beta <q, k>) is softmax(-beta / 2 ||q - k||^2); for others it takes one more key column,
/// -||k||^2 / 2, against a query column of 1.
#[test]
fn products_are_distances() {
    let mut random = Random::new(1);
    let (n, b) = (60, 5.0_f32);
    let keys = angles(&mut random, n);
    let queries = angles(&mut random, 9);
    let radius: Vec<f32> = (0..n).map(|_| 0.5 + random.uniform() as f32).collect();
    let value = |j: usize| [(j as f32 * 0.37).sin()];
    let unit = Heads::one([9, n], |i| on_circle(queries[i]), |j| on_circle(keys[j]), value);
    let far = |j: usize| on_circle(keys[j]).map(|x| x * radius[j]);
    let augmented = |j: usize| {
        let [x, y] = far(j);
        [x, y, -(x * x + y * y) / 2.0]
    };
    let query = |i: usize| [on_circle(queries[i])[0], on_circle(queries[i])[1], 1.0];
    let general = Heads::one([9, n], query, augmented, value);
    let regression = |key: &dyn Fn(usize) -> [f32; 2]| {
        let row = |i: usize| {
            let weight = |j: usize| {
                let squares =
                    on_circle(queries[i]).into_iter().zip(key(j)).map(|(q, k)| (f64::from(q) - f64::from(k)).powi(2));
                (-f64::from(b) / 2.0 * squares.sum::<f64>()).exp()
            };
            (0..n).map(|j| weight(j) * f64::from(value(j)[0])).sum::<f64>() / (0..n).map(weight).sum::<f64>()
        };
        (0..9).map(row).collect::<Vec<_>>()
    };
    each_level(|level| {
        // Keys have norm 1 to rounding only, which scores see beta times.
        assert_close(&unit.run(&beta(b), level).out, &regression(&|j| on_circle(keys[j])), 4e-6, "unit norm");
        assert_close(&general.run(&beta(b), level).out, &regression(&far), 4e-6, "any norm");
    });
}

/// beta to infinity is the value of the nearest neighbour, as hard attention gives it; beta = 0 is the mean.
#[test]
fn limits_of_the_window() {
    let mut random = Random::new(2);
    let n = 80;
    let keys = angles(&mut random, n);
    let queries = angles(&mut random, 50);
    let heads = Heads::one([50, n], |i| on_circle(queries[i]), |j| on_circle(keys[j]), |j| [j as f32]);
    let distance = |i: usize, j: usize| 1.0 - (queries[i] - keys[j]).cos();
    each_level(|level| {
        let hard = heads.run(&plain(Weighting::HardLeft), level).out;
        let narrow = heads.run(&beta(3e7), level).out;
        let mut compared = 0;
        for i in 0..50 {
            let mut order: Vec<usize> = (0..n).collect();
            order.sort_by(|a, b| distance(i, *a).total_cmp(&distance(i, *b)));
            // Neighbours that are equally far to f32 rounding are left out.
            if distance(i, order[1]) - distance(i, order[0]) > 1e-5 {
                assert_eq!(hard[i], order[0] as f32);
                assert_eq!(narrow[i], order[0] as f32);
                compared += 1;
            }
        }
        assert!(compared > 25, "only {compared} queries had one nearest neighbour");
        let mean = (n - 1) as f64 / 2.0;
        assert_close(&heads.run(&beta(0.0), level).out, &[mean; 50], 1e-5 * mean, "the mean");
    });
}

/// Nearest neighbours at the same distance: leftmost, rightmost, or their mean.
#[test]
fn equally_near_neighbours() {
    let heads =
        Heads::one([1, 4], |_| [1.0, 0.0], |j| [[0.0, 1.0], [0.6, 0.8], [-1.0, 0.0], [0.6, -0.8]][j], |j| [j as f32]);
    each_level(|level| {
        let value = |weighting| heads.run(&plain(weighting), level).out[0];
        assert_eq!(value(Weighting::HardLeft), 1.0);
        assert_eq!(value(Weighting::HardRight), 3.0);
        assert_eq!(value(Weighting::AverageHard), 2.0);
    });
}

/// A task: contexts of `n` noisy values of |sin(L x / 2 + phase)| on the circle, and queries.
struct Task {
    heads: Heads,
    truth: Vec<f64>,
}

const CONTEXTS: usize = if regard_tests::SLOW { 60 } else { 200 };
const QUERIES: usize = 8;

impl Task {
    fn new(lipschitz: f64, noise: f64, n: usize) -> Self {
        let mut random = Random::new(5);
        let mut truth = Vec::new();
        let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..CONTEXTS {
            let phase = random.uniform() * std::f64::consts::TAU;
            let function = |x: f64| (lipschitz * x / 2.0 + phase).sin().abs();
            for x in angles(&mut random, n) {
                k.extend(on_circle(x));
                v.push((function(x) + noise * f64::from(random.normal())) as f32);
            }
            for x in angles(&mut random, QUERIES) {
                q.extend(on_circle(x));
                truth.push(function(x));
            }
        }
        let heads = Heads::batch(
            [CONTEXTS, QUERIES, n],
            |b, i| [q[2 * (b * QUERIES + i)], q[2 * (b * QUERIES + i) + 1]],
            |b, j| [k[2 * (b * n + j)], k[2 * (b * n + j) + 1]],
            |b, j| [v[b * n + j]],
        );
        Self { heads, truth }
    }

    /// The power of two that predicts best.
    fn best_beta(&self, level: Level) -> u32 {
        let error = |power: u32| {
            let out = self.heads.run(&beta(2_f32.powi(power as i32)), level).out;
            out.iter().zip(&self.truth).map(|(out, truth)| (f64::from(*out) - truth).powi(2)).sum::<f64>()
        };
        (0..13).min_by(|a, b| error(*a).total_cmp(&error(*b))).expect("there are some")
    }
}

/// The window narrows (beta grows) with the Lipschitz constant and with n, and widens with the noise.
#[test]
fn the_window_adapts() {
    each_level(|level| {
        let best = |lipschitz, noise, n| Task::new(lipschitz, noise, n).best_beta(level);
        let by_lipschitz = [1.0, 4.0, 8.0].map(|lipschitz| best(lipschitz, 0.3, 48));
        let by_noise = [0.05, 0.3, 1.0].map(|noise| best(4.0, noise, 48));
        let by_length = [12, 48, 96].map(|n| best(4.0, 0.3, n));
        assert!(by_lipschitz.is_sorted() && by_lipschitz[0] < by_lipschitz[2], "L: {by_lipschitz:?}");
        assert!(by_noise.is_sorted_by(|a, b| a >= b) && by_noise[0] > by_noise[2], "noise: {by_noise:?}");
        assert!(by_length.is_sorted() && by_length[0] < by_length[2], "n: {by_length:?}");
    });
}
