//! What attention to compute: a builder over everything that the tensors do not say themselves.

use regard_kernels::Schedule;
use regard_kernels::launch::Split;
use regard_kernels::view::View;
use regard_simd::Isa;

use crate::Weighting;

/// Where query 0 stands among the keys.
///
/// Query `i` has the position `i + offset`; causal masks, windows and ALiBi count from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Align {
    /// At key 0 (PyTorch's `is_causal`): offset 0.
    TopLeft,
    /// So that the last query stands at the last valid key of its sequence (FlashAttention, KV caches): offset
    /// `valid keys - queries`. Early rows may see nothing.
    BottomRight,
    /// At this key, which may be negative.
    Offset(i64),
}

/// The `n` of everything that depends on the length: temperature schedules, `-log n`, `1/n`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Count {
    /// All valid keys of the sequence.
    #[default]
    AllKeys,
    /// The keys that the row sees.
    Visible,
    /// A constant, such as the length in training; at least 1.
    Constant(f32),
}

/// The temperature that divides the scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Temperature<'a> {
    /// One for all rows.
    Constant(f32),
    /// One for each query head.
    PerHead(&'a [f32]),
    /// One for each row, `[batch, query_heads, rows of q]`, contiguous.
    PerRow(&'a [f32]),
}

/// The factor of a row's output, for pointwise weightings: they have no normaliser.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum RowScale {
    /// 1
    #[default]
    None,
    /// `1/n`
    InvN,
    /// `1/sqrt(n)`
    InvSqrtN,
    /// `1/n^a`
    InvPower(f32),
}

impl RowScale {
    pub(crate) fn exponent(self) -> f32 {
        match self {
            Self::None => 0.0,
            Self::InvN => 1.0,
            Self::InvSqrtN => 0.5,
            Self::InvPower(exponent) => exponent,
        }
    }
}

/// How closely results are tied to the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Numerics {
    /// Tiles as the profile or the model says: bit-identical on one machine with one profile.
    #[default]
    Machine,
    /// One order of summation everywhere: machines with the same instruction-set level agree bit for bit. Instructions
    /// that only some machines of a level have, such as products of bf16, are not used.
    Portable,
}

/// How weights that are polynomials of the score are computed: [`Weighting::Identity`], [`Weighting::Polynomial`],
/// [`Weighting::EvenPower`] and [`Weighting::Taylor2`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Form {
    /// The one that takes less time by counting multiply-adds, with constants that were measured on one machine (Zen 4),
    /// sequence by sequence: it depends on the sequence's own queries and keys, the head dimensions and the weighting.
    /// Quadratic where there is no linear form.
    #[default]
    Auto,
    /// Every pair of a query and a key by itself.
    Quadratic,
    /// Keys and values summed up before any query, in time that is linear in their number: see [`LinearState`].
    /// An error where it does not exist.
    ///
    /// [`LinearState`]: crate::LinearState
    Linear,
}

impl Form {
    /// The name, as the tool writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Quadratic => "quadratic",
            Self::Linear => "linear",
        }
    }
}

/// Whether instructions for products of an element type are taken, where there are any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Native {
    /// Elements are widened.
    Never,
    /// Where that is faster than widening.
    WherePays,
    /// Wherever the machine has them.
    Always,
}

/// What attention to compute. The tensors themselves are given to [`Problem::new`](crate::Problem::new).
///
/// The score of query `i` and key `j` is made in this order: `scale * <q_i, k_j>`, soft-cap, plus ALiBi, plus bias,
/// masks, divided by the temperature. The weighting turns scores into weights.
///
/// ```
/// use regard::{Align, Attention, Weighting};
///
/// let decoder = Attention::softmax().causal(Align::BottomRight).window(Some(1023), None).softcap(30.0);
/// let hard = Attention::new(Weighting::AverageHard).causal(Align::TopLeft).strict();
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Attention<'a> {
    pub(crate) weighting: Weighting,
    pub(crate) scale: Option<f32>,
    pub(crate) softcap: Option<f32>,
    pub(crate) temperature: Temperature<'a>,
    pub(crate) schedule: Schedule,
    pub(crate) count: Count,
    pub(crate) coefficient: Option<f32>,
    pub(crate) row_scale: RowScale,
    pub(crate) causal: Option<Align>,
    pub(crate) anti_causal: Option<Align>,
    pub(crate) strict: bool,
    pub(crate) window: Option<(Option<usize>, Option<usize>)>,
    pub(crate) align: Option<Align>,
    pub(crate) key_lengths: Option<&'a [usize]>,
    pub(crate) keep_mask: Option<View<'a, u8>>,
    pub(crate) bias: Option<View<'a, f32>>,
    pub(crate) alibi_slopes: Option<&'a [f32]>,
    pub(crate) sinks: Option<&'a [f32]>,
    pub(crate) numerics: Numerics,
    pub(crate) split: Split,
    pub(crate) form: Form,
    pub(crate) gates: Option<&'a [f32]>,
    pub(crate) native_half: Option<bool>,
    pub(crate) native_int8: bool,
    pub(crate) f32_on_tiles: bool,
    pub(crate) isa: Option<Isa>,
}

impl<'a> Attention<'a> {
    /// Attention with this weighting, and nothing else: every key visible, `scale` 1/sqrt(d), temperature 1.
    pub fn new(weighting: Weighting) -> Self {
        Self {
            weighting,
            scale: None,
            softcap: None,
            temperature: Temperature::Constant(1.0),
            schedule: Schedule::Constant,
            count: Count::AllKeys,
            coefficient: None,
            row_scale: RowScale::None,
            causal: None,
            anti_causal: None,
            strict: false,
            window: None,
            align: None,
            key_lengths: None,
            keep_mask: None,
            bias: None,
            alibi_slopes: None,
            sinks: None,
            numerics: Numerics::Machine,
            split: Split::Auto,
            form: Form::Auto,
            gates: None,
            native_half: None,
            native_int8: true,
            f32_on_tiles: true,
            isa: None,
        }
    }

    /// Softmax attention.
    pub fn softmax() -> Self {
        Self::new(Weighting::Softmax)
    }

    /// The factor of the products `<q, k>`; 1/sqrt(d) if never called. Finite; zero and negative are allowed.
    pub fn scale(mut self, scale: f32) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Replaces scaled scores `s` by `cap * tanh(s / cap)`. Positive.
    pub fn softcap(mut self, cap: f32) -> Self {
        self.softcap = Some(cap);
        self
    }

    /// Divides final scores. Positive and finite.
    pub fn temperature(mut self, temperature: Temperature<'a>) -> Self {
        self.temperature = temperature;
        self
    }

    /// Multiplies final scores by `factor * ln n` besides: SSMax, and the temperature `1 / (factor ln n)` at which soft
    /// attention simulates hard attention. Positive.
    pub fn log_n_schedule(mut self, factor: f32) -> Self {
        self.schedule = Schedule::LogN { factor };
        self
    }

    /// The `n` of everything that depends on the length.
    pub fn count(mut self, count: Count) -> Self {
        self.count = count;
        self
    }

    /// A factor of the output of pointwise weightings, such as the `1/14` of `x^3/14`.
    pub fn coefficient(mut self, coefficient: f32) -> Self {
        self.coefficient = Some(coefficient);
        self
    }

    /// A length-dependent factor of the output of pointwise weightings.
    pub fn row_scale(mut self, row_scale: RowScale) -> Self {
        self.row_scale = row_scale;
        self
    }

    /// Hides keys after the query's position.
    pub fn causal(mut self, align: Align) -> Self {
        self.causal = Some(align);
        self
    }

    /// Hides keys before the query's position.
    pub fn anti_causal(mut self, align: Align) -> Self {
        self.anti_causal = Some(align);
        self
    }

    /// Hides the key at the query's position too, in causal and anti-causal masks.
    pub fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// Hides keys more than `left` before or `right` after the query's position; `None` is unbounded.
    pub fn window(mut self, left: Option<usize>, right: Option<usize>) -> Self {
        self.window = Some((left, right));
        self
    }

    /// Where query 0 stands for windows and ALiBi without a causal mask. Needed if queries and valid keys differ in
    /// number.
    pub fn align(mut self, align: Align) -> Self {
        self.align = Some(align);
        self
    }

    /// The number of valid keys of each sequence, at most those that k and v hold for it; the rest is never read into a
    /// result.
    pub fn key_lengths(mut self, lengths: &'a [usize]) -> Self {
        self.key_lengths = Some(lengths);
        self
    }

    /// A mask tensor, broadcastable to `[sequences, query_heads, longest queries, longest keys]`: true (non-zero) keeps
    /// a pair. Takes views of `bool` and of `u8`.
    pub fn keep_mask(mut self, mask: impl Into<View<'a, u8>>) -> Self {
        self.keep_mask = Some(mask.into());
        self
    }

    /// A tensor that is added to the scaled (and capped) scores, broadcastable to `[sequences, query_heads,
    /// longest queries, longest keys]`.
    pub fn bias(mut self, bias: View<'a, f32>) -> Self {
        self.bias = Some(bias);
        self
    }

    /// ALiBi: adds `-slope * |position of the query - j|`, one slope for each query head.
    pub fn alibi_slopes(mut self, slopes: &'a [f32]) -> Self {
        self.alibi_slopes = Some(slopes);
        self
    }

    /// Softmax only: one logit for each query head that joins the denominator and nothing else. It is neither scaled nor
    /// divided by the temperature. All zeros is "softmax plus one".
    pub fn sinks(mut self, logits: &'a [f32]) -> Self {
        self.sinks = Some(logits);
        self
    }

    /// How closely results are tied to the machine.
    pub fn numerics(mut self, numerics: Numerics) -> Self {
        self.numerics = numerics;
        self
    }

    /// How the keys of a sequence are split into spans that threads share, and whose results are merged in order:
    /// [`Split::Auto`] if never called. It decides the order of summation, and depends on the sequence alone.
    pub fn split(mut self, split: Split) -> Self {
        self.split = split;
        self
    }

    /// Whether weights that are polynomials of the score are computed pair by pair or from sums over the keys:
    /// [`Form::Auto`] if never called.
    ///
    /// Both are the same function. The linear form adds up products of elements and not scores, so that its rounding
    /// errors go with `(sum over c of |q_c k_c|)^p` where those of the quadratic form go with `<q, k>^p`.
    pub fn form(mut self, form: Form) -> Self {
        self.form = form;
        self
    }

    /// Decay: the weight of key `j` for a query at position `i` is multiplied by `gate^(i - j)`, one gate in (0, 1] for
    /// each head of k and v. It needs a causal mask, which also says where queries stand, and the linear form.
    pub fn gates(mut self, gates: &'a [f32]) -> Self {
        self.gates = Some(gates);
        self
    }

    /// Whether q, k and v that are all bf16 are multiplied by bf16 instructions: with `true` wherever the machine has them,
    /// with `false` never; if never called, where the machine has them and they are faster than widening: tile registers (AMX)
    /// wherever there are any, and dot products in vectors not on Intel's cores
    /// ([`Machine::bf16_pairs_pay`](regard_profile::Machine::bf16_pairs_pay)). Products are then added
    /// in f32, and weights are rounded to bf16 before they meet V (a relative error of up to 2^-8 each). Otherwise, and under
    /// [`Numerics::Portable`], everything is widened to f32. Hard and average-hard attention always is.
    ///
    /// A plan runs problems only that say the same here as the one that it was made for.
    pub fn native_half(mut self, native: bool) -> Self {
        self.native_half = Some(native);
        self
    }

    /// Whether k and v of int8 may be multiplied as integers, where that is faster than widening: in vectors for few queries (AVX2,
    /// and AVX-512 with VNNI), on tile registers for any number (AMX). True if never called. A query row then has 16 bits of
    /// fixed point against its largest element, and so have the weights of a row in a block of keys, times the scales of the
    /// values, against the largest of these: rounding errors of up to `1/65278` of that largest magnitude. (Rows of more than
    /// 512 elements have fewer bits, as many as leave room for the sum, and those of more than 4096 are widened.) Sums of
    /// products are exact. With `false`, or [`Numerics::Portable`], everything is widened to f32. Hard and average-hard
    /// attention always is.
    pub fn native_int8(mut self, native: bool) -> Self {
        self.native_int8 = native;
        self
    }

    /// Whether f32, and what is widened to it, may be multiplied on tile registers (AMX), where the machine has them and it is faster:
    /// true if never called. Each number is then the sum of up to three bf16, exactly, and six of the nine products of such parts are
    /// added in f32; what the others come to is below the rounding error of a product in f32. Rows with NaN or Inf, or with elements of
    /// q, k or v below `2^-50` that are not zero, are computed by multiply-adds all the same. With `false`, [`Numerics::Portable`], an
    /// index of the keys, and for hard and average-hard attention, multiply-adds of f32 compute everything.
    ///
    /// A plan runs problems only that say the same here as the one that it was made for.
    pub fn f32_on_tiles(mut self, on_tiles: bool) -> Self {
        self.f32_on_tiles = on_tiles;
        self
    }

    /// Computes at this instruction-set level and not at the best one.
    pub fn isa(mut self, isa: Isa) -> Self {
        self.isa = Some(isa);
        self
    }

    /// The weighting.
    pub fn weighting(&self) -> &Weighting {
        &self.weighting
    }
}
