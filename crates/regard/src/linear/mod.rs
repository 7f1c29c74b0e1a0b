//! The linear form: what has one, which sequences take it, and states for decoding.

mod state;

use regard_kernels::launch::Sequence;
use regard_kernels::linear::{MOST_FEATURES, Method, Series};
use regard_simd::Level;

pub use self::state::{LinearShape, LinearState};
use crate::layout::Storage;
use crate::options::{Attention, Form};
use crate::{Error, Problem, Weighting};

/// Keys from which on [`Form::Auto`] takes the linear form at all. Below, there is little to win (at d 16, where forms cross
/// at about 430 keys, some 10 us a head), and the quadratic form has the smaller rounding errors.
const LEAST_KEYS: usize = 1024;

/// Multiply-adds that forming a monomial and its norm takes the time of.
const FORMING: f64 = 4.0;

/// Multiply-adds of bf16 pairs, where they are taken because they pay, that take the time of one of f32.
const NATIVE: f64 = 2.0;

/// The polynomial that the weights of a weighting are, if it has a linear form at some head dimension.
fn series(weighting: &Weighting) -> Option<Series> {
    match weighting {
        Weighting::Identity => Series::power(1, false),
        Weighting::Polynomial { degree } => Series::power(*degree, false),
        Weighting::EvenPower { degree } => Series::power(*degree, true),
        Weighting::Taylor2 => Some(Series::TAYLOR_2),
        _ => None,
    }
}

/// The largest head dimension of each power that has a linear form: states of more monomials take longer to read than any
/// sequence.
const fn most_columns(degree: usize) -> usize {
    match degree {
        0..=2 => usize::MAX,
        3 => 32,
        _ => 16,
    }
}

/// The polynomial that the weights are, or what stands against a linear form, and why.
fn linear_series(
    options: &Attention<'_>,
    storage: Storage,
    head_dim: usize,
) -> Result<Series, (&'static str, &'static str)> {
    let pairs = "it changes pairs of queries and keys one by one";
    let sums = "sums over keys have all keys up to a position";
    for (there, option, reason) in [
        (options.softcap.is_some(), "a soft-cap", pairs),
        (options.bias.is_some(), "a bias", pairs),
        (options.alibi_slopes.is_some(), "ALiBi", pairs),
        (options.keep_mask.is_some(), "a mask tensor", pairs),
        (options.anti_causal.is_some(), "an anti-causal mask", sums),
        (options.window.is_some_and(|(left, _)| left.is_some()), "a window to the left", sums),
        (matches!(storage, Storage::Paged | Storage::Ring), "keys on pages or in rings", "keep a LinearState instead"),
    ] {
        if there {
            return Err((option, reason));
        }
    }
    let series = match (series(&options.weighting), &options.weighting) {
        (Some(series), _) => series,
        (None, Weighting::Polynomial { .. } | Weighting::EvenPower { .. }) => {
            return Err(("the degree", "the highest is 4"));
        }
        (None, weighting) => return Err((weighting.name(), "its weights are no polynomials of the score")),
    };
    if head_dim > most_columns(series.degree()) || series.features(head_dim) > MOST_FEATURES {
        let reason = "its monomials are too many: head dimensions go up to 511 for degree 2, 32 for 3 and 16 for 4";
        return Err(("the head dimension", reason));
    }
    Ok(series)
}

/// Whether the form that is asked for exists.
pub(crate) fn check(options: &Attention<'_>, storage: Storage, head_dim: usize) -> Result<(), Error> {
    let gated = options.gates.is_some();
    let wrong = |form: Form, option, reason| Err(Error::Form { form: form.name(), option, reason });
    match options.form {
        Form::Quadratic if gated => {
            wrong(Form::Quadratic, "a gate", "decay is part of the linear form; softmax has it as ALiBi")
        }
        Form::Quadratic => Ok(()),
        Form::Auto if !gated => Ok(()),
        _ if gated && options.causal.is_none() => {
            wrong(Form::Linear, "a gate without a causal mask", "keys ahead of a query would grow and not decay")
        }
        _ => match linear_series(options, storage, head_dim) {
            Ok(_) => Ok(()),
            Err((option, reason)) => wrong(Form::Linear, option, reason),
        },
    }
}

/// The polynomial that the weights are, if the problem may be computed in the linear form.
pub(crate) fn series_of(problem: &Problem<'_>) -> Option<Series> {
    if problem.options.form == Form::Quadratic {
        return None;
    }
    linear_series(&problem.options, problem.storage, problem.shape.head_dim).ok()
}

/// How the problem is computed in the linear form; none if no sequence of up to `most_keys` keys and as many queries as the
/// longest could take it. `doubled` as for [`takes_linear`].
pub(crate) fn method(problem: &Problem<'_>, level: Level, most_keys: usize, doubled: bool) -> Option<Method> {
    let series = series_of(problem)?;
    let pairs = |queries: usize, keys: usize| queries as f64 * keys as f64;
    let shape = problem.shape;
    let possible = asked(&problem.options)
        || pays(problem, &series, [shape.queries, most_keys], pairs(shape.queries, most_keys), doubled);
    if possible { Method::new(level, series, shape.head_dim) } else { None }
}

/// Whether the linear form was asked for.
fn asked(options: &Attention<'_>) -> bool {
    options.form == Form::Linear || options.gates.is_some()
}

/// Whether a sequence takes the linear form of `series`, which is there. It depends on the sequence's own sizes and mask, the
/// head dimensions, the element type and the weighting, and on whether the quadratic form is `doubled`: multiplies pairs of bf16
/// at twice the rate of f32.
pub(crate) fn takes_linear(problem: &Problem<'_>, series: &Series, sequence: &Sequence, doubled: bool) -> bool {
    if asked(&problem.options) {
        return true;
    }
    let Sequence { queries, keys, band, .. } = *sequence;
    if queries == 0 {
        return false;
    }
    // What rows see ascends evenly from where they start to see keys to where they see all.
    let seen =
        [0, queries / 4, queries / 2, queries * 3 / 4, queries - 1].map(|row| band.visible(row, keys).len() as f64);
    let mean = (seen[0] + seen[4]) / 8.0 + (seen[1] + seen[2] + seen[3]) / 4.0;
    pays(problem, series, [queries, keys], queries as f64 * mean, doubled)
}

/// Whether the linear form takes less time, by counting multiply-adds of a query head and a KV head: `d + d_v` for each pair,
/// and for each query and each key `d_v + FORMING` for each monomial. Heads that share keys make the linear form cheaper still,
/// but must not decide: results do not depend on the number of heads.
///
/// A multiply-add of either form takes the same time (0.93 of the peak pair by pair, 0.89 in sums, which do what is counted and a
/// chunk more). Lengths at which both forms take the same time, causal, one head, avx512 on Zen 4, as the bench `crossover`
/// found them, and as they are counted here without [`LEAST_KEYS`]:
///
/// | weights, d | measured | counted |
/// |---|---|---|
/// | degree 2, 16 / 32 / 64 / 128 | 417 / 1229 / 4515 / 17326 | 340 / 1188 / 4420 / 17028 |
/// | Taylor-2, 16 / 64 | 440 / 4625 | 383 / 4558 |
/// | degree 3, 16 / 32 | 1991 / 13280 | 2040 / 13464 |
/// | degree 1, 64 | 208 | 136 |
fn pays(problem: &Problem<'_>, series: &Series, [queries, keys]: [usize; 2], pairs: f64, doubled: bool) -> bool {
    let shape = problem.shape;
    let native = if doubled { NATIVE } else { 1.0 };
    let quadratic = pairs * (shape.head_dim + shape.value_dim) as f64 / native;
    let features = series.features(shape.head_dim) as f64;
    let linear = (queries as f64 + keys as f64) * features * (shape.value_dim as f64 + FORMING);
    keys >= LEAST_KEYS && linear < quadratic
}
