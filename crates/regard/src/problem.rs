//! Tensors and options, checked: the last step that can fail for what a caller says.

use std::sync::Arc;

use regard_kernels::launch::{Call, Sequence, Temperatures};
use regard_kernels::view::View;
use regard_kernels::weighting::AnyWeighting;
use regard_kernels::{Band, Schedule, Shift};
use regard_profile::{Family, MaskClass};
use regard_simd::Level;

use crate::options::{Align, Attention, Count, Temperature};
use crate::{Error, SigmoidBias, Weighting};

/// The sizes of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Batch entries.
    pub batch: usize,
    /// Heads of q.
    pub query_heads: usize,
    /// Heads of k and v.
    pub kv_heads: usize,
    /// Rows of q.
    pub queries: usize,
    /// Rows of k and v.
    pub keys: usize,
    /// Columns of q and k.
    pub head_dim: usize,
    /// Columns of v.
    pub value_dim: usize,
}

impl Shape {
    /// `[batch, query_heads, queries, value_dim]`
    pub fn out(&self) -> [usize; 4] {
        [self.batch, self.query_heads, self.queries, self.value_dim]
    }

    /// Query rows of all heads and batch entries.
    pub fn rows(&self) -> usize {
        self.batch * self.query_heads * self.queries
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { batch, query_heads, kv_heads, queries, keys, head_dim, value_dim } = self;
        write!(f, "batch {batch}, heads {query_heads}:{kv_heads}, {queries} x {keys}, d {head_dim}:{value_dim}")
    }
}

/// A checked problem: it can be planned and run without further errors.
#[derive(Clone, Debug)]
pub struct Problem<'a> {
    pub(crate) options: Attention<'a>,
    pub(crate) weighting: Arc<dyn AnyWeighting>,
    pub(crate) shape: Shape,
    pub(crate) sequences: Vec<Sequence>,
    q: View<'a, f32>,
    k: View<'a, f32>,
    v: View<'a, f32>,
    keep: Option<View<'a, u8>>,
    bias: Option<View<'a, f32>>,
    scale: f32,
    /// The level that the options ask for.
    pub(crate) level: Option<Level>,
}

impl<'a> Problem<'a> {
    /// Checks tensors and options against each other.
    ///
    /// q is `[batch, query_heads, queries, d]`, k `[batch, kv_heads, keys, d]`, v `[batch, kv_heads, keys, d_v]`. Rows
    /// are contiguous; all other strides are free.
    ///
    /// # Errors
    /// [`Error`]: the first thing found wrong, with its values.
    pub fn new(options: &Attention<'a>, q: View<'a, f32>, k: View<'a, f32>, v: View<'a, f32>) -> Result<Self, Error> {
        let shape = check_shapes(&q, &k, &v)?;
        check_meaning(options)?;
        check_numbers(options, &shape)?;
        let pairs = [shape.batch, shape.query_heads, shape.queries, shape.keys];
        Ok(Self {
            weighting: options.weighting.functions()?,
            sequences: sequences(options, &shape)?,
            keep: options.keep_mask.map(|mask| broadcast("keep_mask", mask, pairs)).transpose()?,
            bias: options.bias.map(|bias| broadcast("bias", bias, pairs)).transpose()?,
            level: options.isa.map(Level::of).transpose()?,
            scale: options.scale.unwrap_or(1.0 / (shape.head_dim.max(1) as f32).sqrt()),
            options: options.clone(),
            shape,
            q,
            k,
            v,
        })
    }

    /// The sizes.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The options that the problem was made with.
    pub fn options(&self) -> &Attention<'a> {
        &self.options
    }

    /// Valid keys and mask band of each batch entry.
    pub fn sequences(&self) -> &[Sequence] {
        &self.sequences
    }

    /// How many (query, key) pairs are visible, over all heads and batch entries. A mask tensor is counted pair by pair.
    pub fn visible_pairs(&self) -> u128 {
        let Shape { batch, query_heads, queries, .. } = self.shape;
        let mut pairs = 0;
        for batch in 0..batch {
            let sequence = &self.sequences[batch];
            let Some(keep) = &self.keep else {
                pairs += sequence.band.pairs(queries, sequence.keys) * query_heads as u128;
                continue;
            };
            for head in 0..query_heads {
                for row in 0..queries {
                    let seen = sequence.band.visible(row, sequence.keys);
                    pairs += seen.filter(|key| *keep.get([batch, head, row, *key]) != 0).count() as u128;
                }
            }
        }
        pairs
    }

    /// Floating-point operations of both products over visible pairs: `2 (d + d_v)` for each.
    pub fn flops(&self) -> f64 {
        self.visible_pairs() as f64 * 2.0 * (self.shape.head_dim + self.shape.value_dim) as f64
    }

    /// Bytes of K and V that are valid, read once.
    pub fn kv_bytes(&self) -> f64 {
        let keys: usize = self.sequences.iter().map(|sequence| sequence.keys).sum();
        (keys * self.shape.kv_heads * (self.shape.head_dim + self.shape.value_dim) * size_of::<f32>()) as f64
    }

    /// The class of mask, which decides which profile entries apply.
    pub fn mask_class(&self) -> MaskClass {
        if self.keep.is_some() {
            MaskClass::Tensor
        } else if self.sequences.iter().any(|sequence| sequence.band != Band::FULL) {
            MaskClass::Banded
        } else {
            MaskClass::Full
        }
    }

    /// Whether rows of K or V lie so far apart that they compete for the same cache sets: every 4096 bytes, as in the
    /// layout `[batch, rows, heads, columns]` with 8 heads of 128. Copying them block by block then pays (0.88 against
    /// 0.84 of the peak at 2048 x 2048, d 128, on Zen 5; at 2048 bytes it costs 4 %). It changes no bits.
    pub(crate) fn has_hostile_strides(&self) -> bool {
        let hostile = |view: &View<'_, f32>| {
            // A single row may have any stride.
            let bytes = view.strides()[2].saturating_mul(size_of::<f32>());
            view.shape()[2] > 1 && bytes > 0 && bytes.is_multiple_of(4096)
        };
        hostile(&self.k) || hostile(&self.v)
    }

    /// Whether a pair is visible.
    pub(crate) fn sees(&self, [batch, head, row, key]: [usize; 4]) -> bool {
        let sequence = &self.sequences[batch];
        sequence.band.visible(row, sequence.keys).contains(&key)
            && self.keep.is_none_or(|keep| *keep.get([batch, head, row, key]) != 0)
    }

    /// The problem as the kernels take it.
    pub(crate) fn call(&self) -> Call<'_> {
        let options = &self.options;
        Call {
            q: self.q,
            k: self.k,
            v: self.v,
            sequences: &self.sequences,
            keep: self.keep,
            bias: self.bias,
            alibi_slopes: options.alibi_slopes,
            sinks: options.sinks,
            scale: self.scale,
            softcap: options.softcap,
            temperature: match options.temperature {
                Temperature::Constant(temperature) => Temperatures::One(temperature),
                Temperature::PerHead(temperatures) => Temperatures::PerHead(temperatures),
                Temperature::PerRow(temperatures) => Temperatures::PerRow(temperatures),
            },
            schedule: options.schedule,
            count: match options.count {
                Count::AllKeys => regard_kernels::Count::AllKeys,
                Count::Visible => regard_kernels::Count::Visible,
                Count::Constant(n) => regard_kernels::Count::Constant(n),
            },
            shift: match options.weighting {
                Weighting::Sigmoid { bias: SigmoidBias::Constant(bias) } => Shift::Constant(bias),
                Weighting::Sigmoid { bias: SigmoidBias::NegLogN } => Shift::NegLogN,
                _ => Shift::Constant(0.0),
            },
            coefficient: options.coefficient.unwrap_or(1.0),
            exponent: options.row_scale.exponent(),
            weighting: &*self.weighting,
        }
    }
}

fn check_shapes(q: &View<'_, f32>, k: &View<'_, f32>, v: &View<'_, f32>) -> Result<Shape, Error> {
    for (tensor, view) in [("q", q), ("k", k), ("v", v)] {
        let stride = view.strides()[3];
        if stride != 1 && view.shape()[3] > 1 {
            return Err(Error::RowStride { tensor, stride });
        }
    }
    let [batch, query_heads, queries, head_dim] = q.shape();
    let [_, kv_heads, keys, _] = k.shape();
    let equal = |tensor, dimension, found, expected, reason| {
        if found == expected { Ok(()) } else { Err(Error::Dimension { tensor, dimension, found, expected, reason }) }
    };
    equal("k", "batch", k.shape()[0], batch, "the batch of q")?;
    equal("v", "batch", v.shape()[0], batch, "the batch of q")?;
    equal("v", "heads", v.shape()[1], kv_heads, "the heads of k")?;
    equal("v", "rows", v.shape()[2], keys, "the keys of k")?;
    equal("k", "columns", k.shape()[3], head_dim, "the head dimension of q")?;
    if query_heads > 0 && (kv_heads == 0 || !query_heads.is_multiple_of(kv_heads)) {
        return Err(Error::Heads { query_heads, kv_heads });
    }
    let max = u32::MAX as usize - 1;
    if keys > max {
        return Err(Error::TooManyKeys { keys, max });
    }
    Ok(Shape { batch, query_heads, kv_heads, queries, keys, head_dim, value_dim: v.shape()[3] })
}

fn broadcast<'a, T>(tensor: &'static str, view: View<'a, T>, shape: [usize; 4]) -> Result<View<'a, T>, Error> {
    let found = view.shape();
    view.broadcast(shape).map_err(|dimension| Error::Dimension {
        tensor,
        dimension: ["batch", "heads", "queries", "keys"][dimension],
        found: found[dimension],
        expected: shape[dimension],
        reason: "it must be broadcastable to [batch, query_heads, queries, keys]",
    })
}

/// Options that have no meaning with the weighting.
fn check_meaning(options: &Attention<'_>) -> Result<(), Error> {
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

fn check_numbers(options: &Attention<'_>, shape: &Shape) -> Result<(), Error> {
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
    if let Some(lengths) = options.key_lengths {
        length("key_lengths", lengths.len(), shape.batch, "one for each batch entry")?;
        if let Some((batch, length)) = lengths.iter().enumerate().find(|(_, length)| **length > shape.keys) {
            return Err(Error::KeyLength { batch, length: *length, keys: shape.keys });
        }
    }
    Ok(())
}

fn number(name: &'static str, value: f32, valid: bool, expected: &'static str) -> Result<(), Error> {
    if valid { Ok(()) } else { Err(Error::Number { name, value: f64::from(value), expected }) }
}

fn length(list: &'static str, found: usize, expected: usize, reason: &'static str) -> Result<(), Error> {
    if found == expected { Ok(()) } else { Err(Error::Length { list, found, expected, reason }) }
}

/// Resolves masks and alignments for each batch entry.
fn sequences(options: &Attention<'_>, shape: &Shape) -> Result<Vec<Sequence>, Error> {
    let align = alignment(options)?;
    (0..shape.batch)
        .map(|batch| {
            let keys = options.key_lengths.map_or(shape.keys, |lengths| lengths[batch]);
            let aligned = |option| offset(align, option, batch, shape.queries, keys);
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
            let offset = if options.alibi_slopes.is_some() { aligned("ALiBi")? } else { 0 };
            Ok(Sequence { keys, band, offset })
        })
        .collect()
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

/// The position of query 0.
fn offset(align: Option<Align>, option: &'static str, batch: usize, queries: usize, keys: usize) -> Result<i64, Error> {
    match align {
        Some(Align::TopLeft) => Ok(0),
        Some(Align::BottomRight) => Ok(keys as i64 - queries as i64),
        Some(Align::Offset(offset)) => Ok(offset),
        None if queries == keys => Ok(0),
        None => Err(Error::Alignment { option, batch, queries, keys }),
    }
}
