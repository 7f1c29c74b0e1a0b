//! One query at every prefix of the keys.

use regard_kernels::Schedule;
use regard_kernels::launch::Temperatures;
use regard_kernels::prefix::{self, Prefixes};
use regard_kernels::tensor::Tensor;
use regard_kernels::view::{ViewError, ViewMut};
use regard_simd::Level;

use super::{dimensions, no_positions, widen_row};
use crate::options::{Attention, Temperature};
use crate::{Error, Execution, Setup, Weighting, checks};

/// Softmax attention of one query for each head at every prefix of the keys: row `j` of the result is attention over the keys
/// `0..=j`. Attention as a recurrent network (Feng et al., arXiv:2405.13956).
///
/// q is `[batch, query_heads, 1, d]`, k `[batch, kv_heads, keys, d]`, v `[batch, kv_heads, keys, d_v]`, of the element types of
/// [`Problem::new`](crate::Problem::new); the result is f32, `[batch, query_heads, keys, d_v]`, contiguous. It takes
/// `O(keys (d + d_v))` time, where causal attention with a repeated query takes `O(keys^2)`, and equals that to rounding. It is
/// computed on the rayon pool that the calling thread belongs to, if any; the result is the same bit for bit.
///
/// ```
/// use regard::{Attention, View, prefixes};
///
/// // Equal scores: means of the values so far.
/// let (q, k, v) = ([1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 3.0, 5.0, 7.0]);
/// let keys = |data| View::bhsd(data, [1, 1, 4, 1]);
/// let out = prefixes(&Attention::softmax(), View::bhsd(&q, [1, 1, 1, 1])?, keys(&k)?, keys(&v)?)?;
/// assert!(out.iter().zip([1.0, 2.0, 3.0, 4.0]).all(|(a, b)| (a - b).abs() < 1e-6));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// As for [`prefixes_into`].
pub fn prefixes<'a>(
    options: &Attention<'a>,
    q: impl Into<Tensor<'a>>,
    k: impl Into<Tensor<'a>>,
    v: impl Into<Tensor<'a>>,
) -> Result<Vec<f32>, Error> {
    let (q, k, v) = (q.into(), k.into(), v.into());
    let [batch, heads, ..] = q.shape();
    let shape = [batch, heads, k.shape()[2], v.shape()[3]];
    let wrong = |source| Error::View { tensor: "out", source };
    let len = shape.into_iter().try_fold(1, usize::checked_mul).ok_or(ViewError::Overflow { shape }).map_err(wrong)?;
    check(options, &q, k, v)?;
    let mut out = vec![0.0; len];
    let view = ViewMut::bhsd(&mut out, shape).map_err(wrong)?;
    prefixes_into(options, q, k, v, view, None, Execution::CurrentPool)?;
    Ok(out)
}

/// The same into `out`, `[batch, query_heads, keys, d_v]`, and with the log-sum-exp of every prefix in `lse`,
/// `[batch, query_heads, keys]`, on threads of the caller's choice.
///
/// Several threads first sum up chunks of 256 keys, and then compute the prefixes of each from what comes before: it pays where
/// there are fewer heads than threads. Memory besides the tensors does not grow with the number of keys.
///
/// # Errors
/// [`Error`], with `out` and `lse` untouched: [`Error::NoMeaning`] for other weightings than softmax, for masks, biases and
/// ALiBi (the query stands nowhere among the keys) and for temperatures that depend on the length or the row; and what is
/// wrong with tensors, as for [`Problem::new`](crate::Problem::new).
pub fn prefixes_into<'a>(
    options: &Attention<'a>,
    q: impl Into<Tensor<'a>>,
    k: impl Into<Tensor<'a>>,
    v: impl Into<Tensor<'a>>,
    out: ViewMut<'_, f32>,
    lse: Option<&mut [f32]>,
    execution: Execution<'_>,
) -> Result<(), Error> {
    let (q, k, v) = (q.into(), k.into(), v.into());
    let [k, v] = check(options, &q, k, v)?;
    let [batch, heads, _, d] = q.shape();
    let (keys, d_v) = (k.shape()[2], v.shape()[3]);
    let expected = [batch, heads, keys, d_v].map(Some);
    dimensions("out", out.shape(), expected, "a row for each key and query head, with the columns of v")?;
    if let Some(lse) = &lse {
        checks::length("lse", lse.len(), batch * heads * keys, "one for each key and query head")?;
    }
    let level = match options.isa {
        Some(isa) => Level::of(isa)?,
        None => Setup::global()?.level,
    };
    let mut rows = vec![0.0; batch * heads * d];
    for (row, to) in rows.chunks_exact_mut(d.max(1)).enumerate() {
        widen_row(&q, [row / heads, row % heads, 0], to);
    }
    let call = Prefixes {
        q: &rows,
        heads: [batch, heads],
        k,
        v,
        scale: options.scale.unwrap_or(1.0 / (d.max(1) as f32).sqrt()),
        softcap: options.softcap,
        temperature: match options.temperature {
            Temperature::Constant(temperature) => Temperatures::One(temperature),
            Temperature::PerHead(temperatures) => Temperatures::PerHead(temperatures),
            Temperature::PerRow(_) => unreachable!("`check` has looked"),
        },
        sinks: options.sinks,
    };
    // Reading a key takes about as long as 16 operations on each of its columns.
    let execution = execution.for_flops(16.0 * (batch * heads * keys) as f64 * (d + d_v) as f64);
    prefix::prefixes(&call, level, out, lse, &execution);
    Ok(())
}

/// What can be wrong, and keys and values with a scale for each row, if they have any.
fn check<'a>(options: &Attention<'_>, q: &Tensor<'_>, k: Tensor<'a>, v: Tensor<'a>) -> Result<[Tensor<'a>; 2], Error> {
    let no_meaning = |option, reason| Err(Error::NoMeaning { option, weighting: options.weighting.name(), reason });
    if !matches!(options.weighting, Weighting::Softmax) {
        return no_meaning("a scan of prefixes", "it is one of softmax attention");
    }
    no_positions(options)?;
    if options.schedule != Schedule::Constant {
        return no_meaning("a temperature schedule", "every prefix would have a temperature of its own");
    }
    if matches!(options.temperature, Temperature::PerRow(_)) {
        return no_meaning("a temperature for each row", "there is one query, and it has one temperature");
    }
    checks::elements(q, &k, &v)?;
    let [batch, heads, _, d] = q.shape();
    dimensions("q", q.shape(), [None, None, Some(1), None], "one query for each head")?;
    dimensions("k", k.shape(), [Some(batch), None, None, Some(d)], "q")?;
    let [_, kv_heads, keys, _] = k.shape();
    dimensions("v", v.shape(), [Some(batch), Some(kv_heads), Some(keys), None], "k")?;
    checks::sizes(q.shape(), k.shape(), v.shape())?;
    let shape = crate::Shape {
        batch,
        query_heads: heads,
        kv_heads,
        queries: 1,
        keys,
        head_dim: d,
        value_dim: v.shape()[3],
        packed_rows: None,
    };
    checks::meaning(options)?;
    checks::numbers(options, &shape)?;
    Ok([checks::scales(k, "the scales of k")?, checks::scales(v, "the scales of v")?])
}
