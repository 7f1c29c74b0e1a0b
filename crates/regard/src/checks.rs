//! What is checked of tensors and options before a problem is made of them.

use regard_kernels::launch::{Sequence, Split};
use regard_kernels::tensor::{Dtype, Quantised, Tensor};
use regard_kernels::view::View;
use regard_kernels::{Band, Schedule};
use regard_profile::Family;

use crate::layout::Place;
use crate::options::{Align, Attention, Count, Form, Temperature};
use crate::{Error, Shape, SigmoidBias, Weighting};

/// Element types, and rows whose elements are side by side.
pub(crate) fn elements(q: &Tensor<'_>, k: &Tensor<'_>, v: &Tensor<'_>) -> Result<(), Error> {
    for (tensor, view) in [("q", q), ("k", k), ("v", v)] {
        rows(tensor, view)?;
    }
    let dtype = |tensor, found, expected: &[Dtype]| {
        if expected.contains(&found) {
            Ok(())
        } else {
            Err(Error::Dtype { tensor, found, expected: expected.to_vec() })
        }
    };
    dtype("q", q.dtype(), &[Dtype::F32, Dtype::F16, Dtype::Bf16])?;
    dtype("v", v.dtype(), &[k.dtype()])
}

/// Rows whose elements are side by side.
pub(crate) fn rows(tensor: &'static str, view: &Tensor<'_>) -> Result<(), Error> {
    let stride = view.strides()[3];
    if stride != 1 && view.shape()[3] > 1 {
        return Err(Error::RowStride { tensor, stride });
    }
    Ok(())
}

/// The tensor with one scale for each row, if it has scales.
pub(crate) fn scales<'a>(tensor: Tensor<'a>, name: &'static str) -> Result<Tensor<'a>, Error> {
    let Tensor::Int8(Quantised { data, scales }) = tensor else { return Ok(tensor) };
    let [batch, heads, rows, _] = data.shape();
    let found = scales.shape();
    let expected = [batch, heads, rows, 1];
    let scales = scales.broadcast(expected).map_err(|dimension| Error::Dimension {
        tensor: name,
        dimension: regard_kernels::view::DIMENSIONS[dimension],
        found: found[dimension],
        expected: expected[dimension],
        reason: "it must be broadcastable to [batch, heads, rows, 1] of its tensor",
    })?;
    Ok(Quantised { data, scales }.into())
}

/// Sizes of q, k and v against each other, but for the batch of q and k.
pub(crate) fn sizes(q: [usize; 4], k: [usize; 4], v: [usize; 4]) -> Result<(), Error> {
    let equal = |tensor, dimension, found, expected, reason| {
        if found == expected { Ok(()) } else { Err(Error::Dimension { tensor, dimension, found, expected, reason }) }
    };
    let ([_, query_heads, _, head_dim], [batch, kv_heads, rows, _]) = (q, k);
    equal("v", "batch", v[0], batch, "the batch of k")?;
    equal("v", "heads", v[1], kv_heads, "the heads of k")?;
    equal("v", "rows", v[2], rows, "the keys of k")?;
    equal("k", "columns", k[3], head_dim, "the head dimension of q")?;
    if query_heads > 0 && (kv_heads == 0 || !query_heads.is_multiple_of(kv_heads)) {
        return Err(Error::Heads { query_heads, kv_heads });
    }
    Ok(())
}

/// A mask or a bias for every pair.
pub(crate) fn broadcast<'a, T>(tensor: &'static str, view: View<'a, T>, shape: &Shape) -> Result<View<'a, T>, Error> {
    let found = view.shape();
    let expected = [shape.batch, shape.query_heads, shape.queries, shape.keys];
    view.broadcast(expected).map_err(|dimension| Error::Dimension {
        tensor,
        dimension: ["batch", "heads", "queries", "keys"][dimension],
        found: found[dimension],
        expected: expected[dimension],
        reason: "it must be broadcastable to [sequences, query_heads, longest queries, longest keys]",
    })
}

/// Options that have no meaning with the weighting.
pub(crate) fn meaning(options: &Attention<'_>) -> Result<(), Error> {
    let family = options.weighting.family();
    let no_meaning = |option, reason| Err(Error::NoMeaning { option, weighting: options.weighting.name(), reason });
    if options.sinks.is_some() && family != Family::Exponential {
        return no_meaning("a sink", "only the denominator of softmax has a place for it");
    }
    if family != Family::Pointwise {
        if options.row_scale.exponent() != 0.0 {
            return no_meaning("a row scale", "its weights are normalised");
        }
        if options.coefficient.is_some() {
            return no_meaning("a coefficient", "its weights are normalised");
        }
    }
    if options.strict && options.causal.is_none() && options.anti_causal.is_none() {
        return Err(Error::Strict);
    }
    Ok(())
}

/// Numbers in their range, and lists as long as they must be.
pub(crate) fn numbers(options: &Attention<'_>, shape: &Shape) -> Result<(), Error> {
    let finite = |name, value: f32| number(name, value, value.is_finite(), "finite");
    let positive = |name, value: f32| number(name, value, value > 0.0 && value.is_finite(), "positive and finite");
    options.scale.map_or(Ok(()), |scale| finite("scale", scale))?;
    options.softcap.map_or(Ok(()), |cap| positive("softcap", cap))?;
    options.coefficient.map_or(Ok(()), |coefficient| finite("coefficient", coefficient))?;
    finite("the exponent of the row scale", options.row_scale.exponent())?;
    match options.temperature {
        Temperature::Constant(temperature) => positive("temperature", temperature)?,
        Temperature::PerHead(temperatures) => {
            length("temperature", temperatures.len(), shape.query_heads, "one for each query head")?;
            temperatures.iter().try_for_each(|temperature| positive("temperature", *temperature))?;
        }
        Temperature::PerRow(temperatures) => {
            length("temperature", temperatures.len(), shape.rows(), "one for each row of q")?;
            temperatures.iter().try_for_each(|temperature| positive("temperature", *temperature))?;
        }
    }
    if let Schedule::LogN { factor } = options.schedule {
        positive("the factor of the temperature schedule", factor)?;
    }
    if let Count::Constant(n) = options.count {
        number("n", n, n >= 1.0 && n.is_finite(), "at least 1 and finite")?;
    }
    if let Weighting::Sigmoid { bias: SigmoidBias::Constant(bias) } = options.weighting {
        finite("the bias of sigmoid", bias)?;
    }
    if let Some(slopes) = options.alibi_slopes {
        length("alibi_slopes", slopes.len(), shape.query_heads, "one for each query head")?;
        slopes.iter().try_for_each(|slope| finite("an ALiBi slope", *slope))?;
    }
    if let Some(sinks) = options.sinks {
        length("sinks", sinks.len(), shape.query_heads, "one for each query head")?;
        sinks.iter().try_for_each(|sink| number("a sink", *sink, *sink < f32::INFINITY, "less than infinity"))?;
    }
    if let Some(gates) = options.gates {
        length("gates", gates.len(), shape.kv_heads, "one for each head of k and v")?;
        gates.iter().try_for_each(|gate| number("a gate", *gate, *gate > 0.0 && *gate <= 1.0, "in (0, 1]"))?;
    }
    if options.split == Split::Keys(0) {
        return Err(Error::Number { name: "the keys of a span", value: 0.0, expected: "at least 1" });
    }
    options
        .key_lengths
        .map_or(Ok(()), |lengths| length("key_lengths", lengths.len(), shape.batch, "one for each sequence"))
}

fn number(name: &'static str, value: f32, valid: bool, expected: &'static str) -> Result<(), Error> {
    if valid { Ok(()) } else { Err(Error::Number { name, value: f64::from(value), expected }) }
}

pub(crate) fn length(list: &'static str, found: usize, expected: usize, reason: &'static str) -> Result<(), Error> {
    if found == expected { Ok(()) } else { Err(Error::Length { list, found, expected, reason }) }
}

/// Resolves masks and alignments for each sequence. `key_lengths` are as many as there are places.
pub(crate) fn sequences(options: &Attention<'_>, places: &[Place]) -> Result<Vec<Sequence>, Error> {
    let align = alignment(options)?;
    let resolve = |(index, place): (usize, &Place)| {
        let keys = options.key_lengths.map_or(place.keys, |lengths| lengths[index]);
        if keys > place.keys {
            return Err(Error::KeyLength { batch: index, length: keys, keys: place.keys });
        }
        let (band, offset) = band(options, align, index, place.queries, keys)?;
        let Place { batch, first_query, queries, first_key, oldest, .. } = *place;
        let sequence = Sequence { batch, first_query, queries, first_key, keys, band, offset };
        overwritten(index, &sequence, oldest)?;
        Ok(sequence)
    };
    places.iter().enumerate().map(resolve).collect()
}

/// The mask of a sequence, and the position of its query 0 for ALiBi.
fn band(
    options: &Attention<'_>,
    align: Option<Align>,
    sequence: usize,
    queries: usize,
    keys: usize,
) -> Result<(Band, i64), Error> {
    let aligned = |option| offset(align, option, sequence, queries, keys);
    let mut band = Band::FULL;
    let strict = i64::from(options.strict);
    if options.causal.is_some() {
        let upper = aligned("a causal mask")?.saturating_add(1 - strict);
        band = band.and(Band { lower: None, upper: Some(upper) });
    }
    if options.anti_causal.is_some() {
        let lower = aligned("an anti-causal mask")?.saturating_add(strict);
        band = band.and(Band { lower: Some(lower), upper: None });
    }
    if let Some((left, right)) = options.window
        && (left.is_some() || right.is_some())
    {
        let position = aligned("a window")?;
        let reach = |keys: usize| i64::try_from(keys).unwrap_or(i64::MAX);
        band = band.and(Band {
            lower: left.map(|left| position.saturating_sub(reach(left))),
            upper: right.map(|right| position.saturating_add(reach(right)).saturating_add(1)),
        });
    }
    let offset = match (options.alibi_slopes, options.gates) {
        (None, None) => 0,
        (Some(_), _) => aligned("ALiBi")?,
        (None, Some(_)) => aligned("a gate")?,
    };
    Ok((band, offset))
}

/// The one alignment of all options.
fn alignment(options: &Attention<'_>) -> Result<Option<Align>, Error> {
    let given = [("causal", options.causal), ("anti_causal", options.anti_causal), ("align", options.align)];
    let mut given = given.into_iter().filter_map(|(name, align)| Some((name, align?)));
    let Some((first, align)) = given.next() else { return Ok(None) };
    match given.find(|(_, other)| *other != align) {
        Some((second, _)) => Err(Error::Alignments { first, second }),
        None => Ok(Some(align)),
    }
}

/// The position of query 0, which does not matter where there is no query or no key.
fn offset(align: Option<Align>, option: &'static str, batch: usize, queries: usize, keys: usize) -> Result<i64, Error> {
    match align {
        Some(Align::TopLeft) => Ok(0),
        Some(Align::BottomRight) => Ok(keys as i64 - queries as i64),
        Some(Align::Offset(offset)) => Ok(offset),
        None if queries == keys || queries == 0 || keys == 0 => Ok(0),
        None => Err(Error::Alignment { option, batch, queries, keys }),
    }
}

/// Whether some row sees a key before `oldest`.
fn overwritten(index: usize, sequence: &Sequence, oldest: usize) -> Result<(), Error> {
    for row in 0..sequence.queries {
        let seen = sequence.band.visible(row, sequence.keys);
        // Later rows see no earlier keys.
        if seen.start >= oldest {
            break;
        }
        if !seen.is_empty() {
            return Err(Error::Overwritten { sequence: index, row, key: seen.start, oldest });
        }
    }
    Ok(())
}

/// Whether the rows of a problem may be computed part by part: nothing may depend on the number of its keys.
pub(crate) fn parts(options: &Attention<'_>) -> Result<(), Error> {
    let constant = matches!(options.count, Count::Constant(_));
    let no_meaning = |option| {
        let reason = "it depends on the number of keys, of which a partial result sees some: say Count::Constant";
        Err(Error::NoMeaning { option, weighting: options.weighting.name(), reason })
    };
    if options.form == Form::Linear || options.gates.is_some() {
        let reason = "it holds what single queries have seen: keep a LinearState instead";
        return Err(Error::Form { form: Form::Linear.name(), option: "a partial result", reason });
    }
    if options.schedule != Schedule::Constant && !constant {
        return no_meaning("a temperature schedule");
    }
    if options.row_scale.exponent() != 0.0 && !constant {
        return no_meaning("a row scale");
    }
    if matches!(options.weighting, Weighting::Sigmoid { bias: SigmoidBias::NegLogN }) && !constant {
        return no_meaning("the bias -log n");
    }
    Ok(())
}
