//! What attention to compute, as plain data: the library's options are made from it, and so is the suites' own idea of
//! what these options mean.

use regard::{
    Align, Attention, Count, Form, Isa, Numerics, Pointwise, RowScale, Shape, SigmoidBias, Simd, Split, Temperature,
    View, Weighting,
};

/// Everything that [`Attention`] can be told. `None` and the defaults of [`Spec::new`] call no method of the builder.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the fields are the methods of `Attention`")]
pub struct Spec<'a> {
    pub weighting: Weighting,
    pub scale: Option<f32>,
    pub softcap: Option<f32>,
    pub temperature: Option<Temperature<'a>>,
    pub log_n: Option<f32>,
    pub count: Option<Count>,
    pub coefficient: Option<f32>,
    pub row_scale: Option<RowScale>,
    pub causal: Option<Align>,
    pub anti_causal: Option<Align>,
    pub strict: bool,
    pub window: Option<(Option<usize>, Option<usize>)>,
    pub align: Option<Align>,
    pub key_lengths: Option<&'a [usize]>,
    pub keep: Option<View<'a, u8>>,
    pub bias: Option<View<'a, f32>>,
    pub alibi: Option<&'a [f32]>,
    pub sinks: Option<&'a [f32]>,
    pub numerics: Option<Numerics>,
    pub split: Option<Split>,
    pub form: Option<Form>,
    pub gates: Option<&'a [f32]>,
    /// See [`Attention::native_half`]: `None` leaves it to the plan.
    pub native_half: Option<bool>,
    /// See [`Attention::native_int8`].
    pub native_int8: Option<bool>,
    /// See [`Attention::f32_on_tiles`].
    pub f32_on_tiles: Option<bool>,
    pub isa: Option<Isa>,
}

impl<'a> Spec<'a> {
    /// A weighting and nothing else, on instructions for bf16 wherever the machine has them: they are tested also where plans
    /// would not take them by themselves.
    pub fn new(weighting: Weighting) -> Self {
        Self {
            weighting,
            scale: None,
            softcap: None,
            temperature: None,
            log_n: None,
            count: None,
            coefficient: None,
            row_scale: None,
            causal: None,
            anti_causal: None,
            strict: false,
            window: None,
            align: None,
            key_lengths: None,
            keep: None,
            bias: None,
            alibi: None,
            sinks: None,
            numerics: None,
            split: None,
            form: None,
            gates: None,
            native_half: Some(true),
            native_int8: None,
            f32_on_tiles: None,
            isa: None,
        }
    }

    /// The library's options.
    pub fn options(&self) -> Attention<'a> {
        let mut options = Attention::new(self.weighting.clone());
        macro_rules! set {
            ($($field:ident => $method:ident),+) => {$(
                if let Some(value) = self.$field {
                    options = options.$method(value);
                }
            )+};
        }
        set!(scale => scale, softcap => softcap, temperature => temperature, log_n => log_n_schedule, count => count,
            coefficient => coefficient, row_scale => row_scale, causal => causal, anti_causal => anti_causal,
            align => align, key_lengths => key_lengths, keep => keep_mask, bias => bias, alibi => alibi_slopes,
            sinks => sinks, numerics => numerics, split => split, form => form, gates => gates, native_half => native_half,
            native_int8 => native_int8, f32_on_tiles => f32_on_tiles, isa => isa);
        if let Some((left, right)) = self.window {
            options = options.window(left, right);
        }
        if self.strict { options.strict() } else { options }
    }

    /// The valid keys of a batch entry.
    pub fn keys(&self, shape: &Shape, batch: usize) -> usize {
        self.key_lengths.map_or(shape.keys, |lengths| lengths[batch])
    }

    /// Whether the result is made of rows of V, chosen by comparing scores.
    pub fn selects(&self) -> bool {
        selects(&self.weighting)
    }

    /// Whether scores are more than products of queries and keys.
    pub fn has_terms(&self) -> bool {
        self.softcap.is_some() || self.alibi.is_some() || self.bias.is_some()
    }

    /// The position of query 0 among the keys.
    pub fn offset(&self, shape: &Shape, batch: usize) -> i128 {
        match self.causal.or(self.anti_causal).or(self.align) {
            None | Some(Align::TopLeft) => 0,
            Some(Align::BottomRight) => self.keys(shape, batch) as i128 - shape.queries as i128,
            Some(Align::Offset(offset)) => i128::from(offset),
        }
    }

    /// Whether a query sees a key, by the definitions of the masks, one after the other.
    pub fn sees(&self, shape: &Shape, [batch, head, query, key]: [usize; 4]) -> bool {
        let position = query as i128 + self.offset(shape, batch);
        let at = key as i128;
        let mut seen = key < self.keys(shape, batch);
        if self.causal.is_some() {
            seen &= if self.strict { at < position } else { at <= position };
        }
        if self.anti_causal.is_some() {
            seen &= if self.strict { at > position } else { at >= position };
        }
        if let Some((left, right)) = self.window {
            seen &= left.is_none_or(|left| at >= position - left as i128);
            seen &= right.is_none_or(|right| at <= position + right as i128);
        }
        seen && self.keep.is_none_or(|keep| *broadcast(&keep, [batch, head, query, key]) != 0)
    }

    /// The factor of the products `<q, k>`, an f32 also where it is not given.
    pub fn scale(&self, shape: &Shape) -> f64 {
        f64::from(self.scale.unwrap_or_else(|| 1.0 / (shape.head_dim.max(1) as f32).sqrt()))
    }

    /// What is added to scaled scores: ALiBi, then bias.
    pub fn addends(&self, shape: &Shape, [batch, head, query, key]: [usize; 4]) -> [f64; 2] {
        let distance = (query as i128 + self.offset(shape, batch) - key as i128).abs() as f64;
        [
            self.alibi.map_or(0.0, |slopes| -f64::from(slopes[head]) * distance),
            self.bias.map_or(0.0, |bias| f64::from(*broadcast(&bias, [batch, head, query, key]))),
        ]
    }

    /// What multiplies finished scores, for a row of length `n`; `row` is its place among all rows.
    pub fn inverse_temperature(&self, head: usize, row: usize, n: f64) -> f64 {
        let temperature = f64::from(match self.temperature {
            None => 1.0,
            Some(Temperature::Constant(temperature)) => temperature,
            Some(Temperature::PerHead(temperatures)) => temperatures[head],
            Some(Temperature::PerRow(temperatures)) => temperatures[row],
        });
        self.log_n.map_or(1.0, |factor| f64::from(factor) * n.ln()) / temperature
    }

    /// The `n` of a row that sees `visible` keys.
    pub fn length(&self, keys: usize, visible: usize) -> f64 {
        match self.count {
            None | Some(Count::AllKeys) => keys.max(1) as f64,
            Some(Count::Visible) => visible.max(1) as f64,
            Some(Count::Constant(n)) => f64::from(n),
        }
    }

    /// What multiplies the output of a row.
    pub fn factor(&self, n: f64) -> f64 {
        f64::from(self.coefficient.unwrap_or(1.0)) / n.powf(f64::from(self.exponent()))
    }

    /// The exponent of `1/n` in it.
    pub fn exponent(&self) -> f32 {
        match self.row_scale {
            None | Some(RowScale::None) => 0.0,
            Some(RowScale::InvN) => 1.0,
            Some(RowScale::InvSqrtN) => 0.5,
            Some(RowScale::InvPower(exponent)) => exponent,
        }
    }

    /// What sigmoid adds to the score.
    pub fn shift(&self, n: f64) -> f64 {
        match self.weighting {
            Weighting::Sigmoid { bias: SigmoidBias::Constant(bias) } => f64::from(bias),
            Weighting::Sigmoid { bias: SigmoidBias::NegLogN } => -n.ln(),
            _ => 0.0,
        }
    }

    /// The function of pointwise and normalised weightings.
    ///
    /// # Panics
    /// For other weightings.
    pub fn function(&self, s: f64) -> f64 {
        match &self.weighting {
            Weighting::Relu => relu(s),
            Weighting::ReluSquared => relu(s) * relu(s),
            Weighting::Polynomial { degree } | Weighting::EvenPower { degree } => s.powi(*degree as i32),
            Weighting::Sigmoid { .. } => 1.0 / (1.0 + (-s).exp()),
            Weighting::Taylor2 => 1.0 + s + s * s / 2.0,
            Weighting::Identity => s,
            Weighting::Custom(_) if self.weighting.name() == "bump" => s * s / (1.0 + s * s),
            other => panic!("{} is not a function of one score, or not one that is known here", other.name()),
        }
    }
}

/// Whether a weighting chooses rows of V by comparing scores.
pub fn selects(weighting: &Weighting) -> bool {
    matches!(weighting, Weighting::HardLeft | Weighting::HardRight | Weighting::AverageHard)
}

fn relu(s: f64) -> f64 {
    if s < 0.0 { 0.0 } else { s }
}

/// The element of a tensor whose dimensions of size 1 are repeated.
fn broadcast<'a, T>(view: &View<'a, T>, index: [usize; 4]) -> &'a T {
    let shape = view.shape();
    view.get(std::array::from_fn(|i| if shape[i] == 1 { 0 } else { index[i] }))
}

/// `s^2 / (1 + s^2)`: a weighting of a user's own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bump;

impl Pointwise for Bump {
    #[inline(always)]
    fn weight<S: Simd>(&self, s: S, score: S::F32) -> S::F32 {
        let square = s.mul(score, score);
        s.div(square, s.add(s.splat(1.0), square))
    }

    fn weight_f64(&self, score: f64) -> f64 {
        score * score / (1.0 + score * score)
    }
}

/// Every weighting, with every degree, and one of a user's own.
pub fn weightings() -> Vec<Weighting> {
    let mut all = vec![
        Weighting::Softmax,
        Weighting::HardLeft,
        Weighting::HardRight,
        Weighting::AverageHard,
        Weighting::Relu,
        Weighting::ReluSquared,
        Weighting::Sigmoid { bias: SigmoidBias::Constant(-0.75) },
        Weighting::Sigmoid { bias: SigmoidBias::NegLogN },
        Weighting::Taylor2,
        Weighting::Identity,
        Weighting::custom("bump", Bump),
    ];
    all.extend((1..=8).map(|degree| Weighting::Polynomial { degree }));
    all.extend([2, 4, 6, 8].map(|degree| Weighting::EvenPower { degree }));
    all
}
