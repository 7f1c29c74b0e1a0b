//! What the papers behind the weightings state, as tests: golden values, bounds and identities, on every level of the
//! machine and, where that says more, on the f64 reference. Each test names the paper and the statement; where the
//! paper gives a bound, the bound is the tolerance.
//!
//! - `spline`: Lai, Lim and Liu, "Attention is a smoothed cubic spline", arXiv:2408.09624
//! - `polynomial`: Saratchandran et al., "Rethinking softmax", arXiv:2410.18613; power, Taylor and norms
//! - `hard`, `formulas`, `languages`, `uniform_tieless`: Yang, Strobl, Chiang and Angluin, "Simulating hard attention
//!   using soft attention", arXiv:2412.09925
//! - `sigmoid`: Ramapuram et al., "Theory, analysis, and best practices for sigmoid self-attention", arXiv:2409.04431
//! - `prefix`: Feng et al., "Attention as an RNN", arXiv:2405.13956
//! - `regression`: Collins et al., "In-context learning with transformers", arXiv:2402.11639
//! - `softmax`: sinks, length-dependent temperatures, dispersion
//! - `identities`: what ties the kernels to each other

mod formulas;
mod hard;
mod identities;
mod languages;
mod polynomial;
mod prefix;
mod regression;
mod sigmoid;
mod softmax;
mod spline;
mod uniform_tieless;

use regard::reference::{self, Row};
use regard::{Attention, Execution, Isa, Level, Problem, Weighting};
use regard_tests::{Layout, Output, Random, Tensor, weightings};

/// Half the distance from 1 to the next f32: the relative error of one rounding.
const UNIT: f64 = f32::EPSILON as f64 / 2.0;

/// Attention whose scores are the products `<q, k>` themselves, as constructions on paper have it.
fn plain(weighting: Weighting) -> Attention<'static> {
    Attention::new(weighting).scale(1.0)
}

/// Queries, keys and values.
#[derive(Clone, Debug)]
struct Heads {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Heads {
    /// `batch` sequences of one head, row by row.
    fn batch<const D: usize, const V: usize>(
        [batch, queries, keys]: [usize; 3],
        q: impl Fn(usize, usize) -> [f32; D],
        k: impl Fn(usize, usize) -> [f32; D],
        v: impl Fn(usize, usize) -> [f32; V],
    ) -> Self {
        let rows = |rows, columns, row: &dyn Fn(usize, usize, usize) -> f32| {
            Tensor::from_fn([batch, 1, rows, columns], Layout::Bhsd, |[b, _, r, c]| row(b, r, c))
        };
        Self {
            q: rows(queries, D, &|b, r, c| q(b, r)[c]),
            k: rows(keys, D, &|b, r, c| k(b, r)[c]),
            v: rows(keys, V, &|b, r, c| v(b, r)[c]),
        }
    }

    /// One sequence of one head.
    fn one<const D: usize, const V: usize>(
        [queries, keys]: [usize; 2],
        q: impl Fn(usize) -> [f32; D],
        k: impl Fn(usize) -> [f32; D],
        v: impl Fn(usize) -> [f32; V],
    ) -> Self {
        Self::batch([1, queries, keys], |_, i| q(i), |_, j| k(j), |_, j| v(j))
    }

    /// One query whose scores are these (at scale 1), and V the identity: the output is the weights themselves.
    fn scores(scores: &[f32]) -> Self {
        Self::score_rows(&[scores.to_vec()])
    }

    /// The same for several rows of scores: sequences of one query each.
    fn score_rows(rows: &[Vec<f32>]) -> Self {
        let keys = rows[0].len();
        Self {
            q: Tensor::filled([rows.len(), 1, 1, 1], Layout::Bhsd, 1.0),
            k: Tensor::from_fn([rows.len(), 1, keys, 1], Layout::Bhsd, |[row, _, j, _]| rows[row][j]),
            v: unit_values([rows.len(), 1, keys, keys]),
        }
    }

    /// Standard normal tensors.
    fn normal([batch, heads, kv_heads]: [usize; 3], [queries, keys]: [usize; 2], [d, d_v]: [usize; 2]) -> Self {
        let mut random = Random::new((queries * 31 + keys * 7 + d + d_v + heads) as u64);
        Self {
            q: Tensor::normal([batch, heads, queries, d], Layout::Bhsd, &mut random),
            k: Tensor::normal([batch, kv_heads, keys, d], Layout::Bhsd, &mut random),
            v: Tensor::normal([batch, kv_heads, keys, d_v], Layout::Bhsd, &mut random),
        }
    }

    fn problem<'a>(&'a self, options: &Attention<'a>) -> Problem<'a> {
        Problem::new(options, self.q.view(), self.k.view(), self.v.view()).expect("a legal problem")
    }

    fn run(&self, options: &Attention<'_>, level: Level) -> Output {
        // The tensors live as long as the call only, and so do the options' slices.
        regard_tests::run(&self.problem(options), &regard_tests::setup_of(level), Execution::Serial)
    }

    /// The output by definition, in f64.
    fn reference(&self, options: &Attention<'_>, isa: Isa) -> Vec<f64> {
        reference::attention(&self.problem(options), isa)
    }

    /// One row by definition, in f64.
    fn reference_row(&self, options: &Attention<'_>, index: [usize; 3]) -> Row {
        reference::row(&self.problem(options), Isa::Portable, index)
    }

    /// Queries with the other sign.
    fn mirrored(&self) -> Self {
        self.scaled_queries(-1.0)
    }

    fn scaled_queries(&self, factor: f32) -> Self {
        Self { q: scaled(&self.q, factor), ..self.clone() }
    }

    /// Keys and values in another order: key `j` of the result is key `order[j]`.
    fn reordered(&self, order: &[usize]) -> Self {
        let reorder = |tensor: &Tensor| {
            Tensor::from_fn(tensor.shape(), Layout::Bhsd, |[b, h, r, c]| tensor.get([b, h, order[r], c]))
        };
        Self { q: self.q.clone(), k: reorder(&self.k), v: reorder(&self.v) }
    }
}

fn scaled(tensor: &Tensor, factor: f32) -> Tensor {
    Tensor::from_fn(tensor.shape(), Layout::Bhsd, |index| factor * tensor.get(index))
}

/// Values whose column `c` is 1 at key `c` and 0 elsewhere.
fn unit_values(shape: [usize; 4]) -> Tensor {
    Tensor::from_fn(shape, Layout::Bhsd, |[_, _, j, c]| if j == c { 1.0 } else { 0.0 })
}

/// For every level of the machine.
fn each_level(test: impl Fn(Level)) {
    regard_tests::levels().iter().for_each(|level| test(*level));
}

/// Panics unless both differ by `tolerance` at most, everywhere.
#[track_caller]
fn assert_close(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*got) - want).abs();
        assert!(error <= tolerance, "{what}: element {i} is {got:e} and not {want:e} ({error:e} > {tolerance:e})");
    }
}

/// Panics unless both are the same bit for bit, up to the sign of zero.
#[track_caller]
fn assert_equal(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    if let Some(i) = a.iter().zip(b).position(|(a, b)| a != b) {
        panic!("{what}: element {i} is {:e} or {:e}", a[i], b[i]);
    }
}

fn widened(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// `sum |a - b|`
fn l1(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs()).sum()
}
