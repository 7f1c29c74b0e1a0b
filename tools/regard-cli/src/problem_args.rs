//! The options that say what attention to compute, and how: the same for every command.

use std::str::FromStr;

use clap::{Args, ValueEnum};
use regard::{Align, Attention, Count, Dtype, Form, Isa, RowScale, SigmoidBias, Split, Temperature, Weighting};
use regard_tuner::inputs::Order;

use crate::error::CliError;

/// What to compute, apart from tensors and their shapes.
///
/// Scores are made in this order: scale * <q, k>, soft-cap, ALiBi and bias, masks, temperature, weighting.
#[derive(Clone, Debug, Args)]
pub(crate) struct ProblemArgs {
    /// How scores become weights
    #[arg(long, value_enum, default_value_t, value_name = "NAME", help_heading = "Weighting")]
    pub(crate) weighting: WeightingName,
    /// The exponent: 1 to 8 for poly, 2, 4, 6 or 8 for power; both need it
    #[arg(long, allow_negative_numbers = true, value_name = "P", help_heading = "Weighting")]
    pub(crate) degree: Option<u32>,
    /// Multiplies the output of relu, relu2, poly, sigmoid or identity
    #[arg(long, allow_negative_numbers = true, value_name = "X", help_heading = "Weighting")]
    pub(crate) coefficient: Option<f32>,
    /// Divides each row of the output of relu, relu2, poly, sigmoid or identity by n or its root
    #[arg(long, value_enum, value_name = "NAME", help_heading = "Weighting")]
    pub(crate) row_scale: Option<RowScaleName>,
    /// The bias of sigmoid, added to the score: a number (0 if not given) or neg-log-n
    #[arg(long, value_parser = sigmoid_bias, allow_negative_numbers = true, value_name = "X|neg-log-n",
          help_heading = "Weighting")]
    pub(crate) sigmoid_bias: Option<SigmoidBias>,
    /// The n of --row-scale, --temperature-schedule and --sigmoid-bias neg-log-n: all (valid) keys, the keys that the
    /// row sees, or a number [default: all]
    #[arg(long, value_parser = count, value_name = "all|visible|X", allow_negative_numbers = true,
          help_heading = "Weighting")]
    pub(crate) n: Option<Count>,

    /// The factor of the products <q, k> [default: 1/sqrt(head dimension)]
    #[arg(long, allow_negative_numbers = true, value_name = "X", help_heading = "Scores")]
    pub(crate) scale: Option<f32>,
    /// Replaces scaled scores s by X * tanh(s / X)
    #[arg(long, allow_negative_numbers = true, value_name = "X", help_heading = "Scores")]
    pub(crate) softcap: Option<f32>,
    /// Divides the final scores [default: 1]
    #[arg(long, allow_negative_numbers = true, value_name = "X", help_heading = "Scores")]
    pub(crate) temperature: Option<f32>,
    /// Multiplies the final scores by 1, by ln n, or by X * ln n with --schedule-factor X
    #[arg(long, value_enum, value_name = "NAME", help_heading = "Scores")]
    pub(crate) temperature_schedule: Option<ScheduleName>,
    /// The X of --temperature-schedule scaled-log-n
    #[arg(long, allow_negative_numbers = true, value_name = "X", help_heading = "Scores")]
    pub(crate) schedule_factor: Option<f32>,

    /// Hide keys after the query's position. Query i stands at key i (top-left), at key i + keys - queries (bottom-right,
    /// with the valid keys of its sequence), or at key i + OFFSET
    #[arg(long, value_parser = align, allow_negative_numbers = true, value_name = ALIGN, help_heading = "Masks")]
    pub(crate) causal: Option<Align>,
    /// Hide keys before the query's position
    #[arg(long, value_parser = align, allow_negative_numbers = true, value_name = ALIGN, help_heading = "Masks")]
    pub(crate) anti_causal: Option<Align>,
    /// Make --causal and --anti-causal hide the key at the query's position too
    #[arg(long, help_heading = "Masks")]
    pub(crate) strict: bool,
    /// Hide keys more than LEFT before or RIGHT after the query's position; `none` is unbounded
    #[arg(long, value_parser = window, value_name = "LEFT,RIGHT", help_heading = "Masks")]
    pub(crate) window: Option<Window>,
    /// The query's position for windows and ALiBi without --causal; needed if queries and valid keys differ in number
    #[arg(long, value_parser = align, allow_negative_numbers = true, value_name = ALIGN, help_heading = "Masks")]
    pub(crate) align: Option<Align>,

    /// The order of dimensions in q, k, v and out: [batch, heads, rows, columns], [batch, rows, heads, columns], or
    /// [rows, heads, columns] of sequences one after the other [default: bhsd, with --varlen thd]
    #[arg(long, value_enum, value_name = "NAME", help_heading = "Execution")]
    pub(crate) layout: Option<Layout>,
    /// How the keys of a sequence are split into spans that threads share: by its own length, never, or every N keys
    #[arg(long, value_parser = split, default_value = "auto", value_name = "auto|never|N", help_heading = "Execution")]
    pub(crate) split: Split,
    /// How identity, poly, power and taylor2 are computed: pair by pair, from sums over the keys, or as takes less time
    #[arg(long, value_parser = form, default_value = "auto", value_name = "quadratic|linear|auto",
          help_heading = "Execution")]
    pub(crate) form: Form,
    /// Multiply the weight of a key by X for each step from it to the query: a gate in (0, 1], the same for all heads. Needs
    /// --causal, and is computed in the linear form
    #[arg(long, allow_negative_numbers = true, value_name = "X", help_heading = "Weighting")]
    pub(crate) gates: Option<f32>,
    /// Multiply bf16 by instructions for it wherever the processor has them [default: where that is faster than widening]
    #[arg(long, conflicts_with = "no_native_half", help_heading = "Execution")]
    pub(crate) native_half: bool,
    /// Widen bf16 to f32, and use no instructions that multiply it
    #[arg(long, help_heading = "Execution")]
    pub(crate) no_native_half: bool,
    /// Widen int8 to f32, and use no instructions that multiply integers
    #[arg(long, help_heading = "Execution")]
    pub(crate) no_native_int8: bool,
    /// Multiply f32 in vectors, and not in parts of bf16 on tile registers (AMX)
    #[arg(long, help_heading = "Execution")]
    pub(crate) no_f32_on_tiles: bool,
    /// Compute at this instruction-set level: portable, avx2, avx512 or neon [default: REGARD_ISA, or the best here]
    #[arg(long, value_name = "NAME", help_heading = "Execution")]
    pub(crate) isa: Option<String>,
    /// Threads to compute with [default: the cores that this process may use]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024), value_name = "N", help_heading = "Execution")]
    pub(crate) threads: Option<u16>,
    /// Choose kernel and tiles by the analytic model, even where there is a profile
    #[arg(long, help_heading = "Execution")]
    pub(crate) no_profile: bool,
}

const ALIGN: &str = "top-left|bottom-right|OFFSET";

/// Names of the weightings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum WeightingName {
    /// e^s / sum e^s
    #[default]
    Softmax,
    /// The first key with the largest score
    HardLeft,
    /// The last key with the largest score
    HardRight,
    /// The mean over all keys with the largest score
    AverageHard,
    /// max(0, s)
    Relu,
    /// max(0, s)^2
    Relu2,
    /// s^P with --degree P
    Poly,
    /// 1 / (1 + e^-(s + bias))
    Sigmoid,
    /// s^P / sum s^P with --degree P, even
    Power,
    /// t / sum t with t = 1 + s + s^2/2
    Taylor2,
    /// s
    Identity,
}

/// Names of temperature schedules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ScheduleName {
    /// None
    Const,
    /// Times ln n
    LogN,
    /// Times X * ln n with --schedule-factor X (SSMax)
    ScaledLogN,
}

/// Names of row scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RowScaleName {
    /// 1
    None,
    /// 1/n
    InvN,
    /// 1/sqrt(n)
    InvSqrtN,
}

/// The order of dimensions in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Layout {
    /// [batch, heads, rows, columns], as in PyTorch
    Bhsd,
    /// [batch, rows, heads, columns], as in FlashAttention
    Bshd,
    /// [rows, heads, columns], packed sequences, as in FlashAttention
    Thd,
}

impl Layout {
    /// The name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bhsd => "bhsd",
            Self::Bshd => "bshd",
            Self::Thd => "thd",
        }
    }

    /// The order of dimensions; packed sequences are one batch entry.
    pub(crate) fn order(self) -> Order {
        match self {
            Self::Bhsd => Order::HeadsFirst,
            Self::Bshd | Self::Thd => Order::RowsFirst,
        }
    }
}

/// Keys to the left and to the right of the query's position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) left: Option<usize>,
    pub(crate) right: Option<usize>,
}

impl ProblemArgs {
    /// The options of the library. Tensors are still to be added.
    ///
    /// # Errors
    /// [`CliError::Usage`] for options that the weighting does not take or needs, [`CliError::Isa`] for an unknown level.
    /// Whether the level is available and numbers are in range is for `Problem::new` to say.
    pub(crate) fn attention(&self) -> Result<Attention<'static>, CliError> {
        let mut attention = Attention::new(self.weighting()?);
        if let Some(n) = self.n {
            if !self.takes_n() {
                let takers = "--row-scale inv-n or inv-sqrt-n, --temperature-schedule or --sigmoid-bias neg-log-n";
                return Err(CliError::Usage(format!("--n has no meaning here: it goes with {takers}")));
            }
            attention = attention.count(n);
        }
        attention = attention.split(self.split).form(self.form);
        attention = attention.native_int8(!self.no_native_int8).f32_on_tiles(!self.no_f32_on_tiles);
        if self.native_half || self.no_native_half {
            attention = attention.native_half(self.native_half);
        }
        if let Some(isa) = self.isa()? {
            attention = attention.isa(isa);
        }
        if let Some(scale) = self.scale {
            attention = attention.scale(scale);
        }
        if let Some(cap) = self.softcap {
            attention = attention.softcap(cap);
        }
        if let Some(temperature) = self.temperature {
            attention = attention.temperature(Temperature::Constant(temperature));
        }
        if let Some(factor) = self.schedule_factor()? {
            attention = attention.log_n_schedule(factor);
        }
        if let Some(coefficient) = self.coefficient {
            self.taken_by("--coefficient", self.weighting.is_pointwise(), POINTWISE)?;
            attention = attention.coefficient(coefficient);
        }
        if let Some(row_scale) = self.row_scale {
            self.taken_by("--row-scale", self.weighting.is_pointwise(), POINTWISE)?;
            attention = attention.row_scale(match row_scale {
                RowScaleName::None => RowScale::None,
                RowScaleName::InvN => RowScale::InvN,
                RowScaleName::InvSqrtN => RowScale::InvSqrtN,
            });
        }
        if let Some(align) = self.causal {
            attention = attention.causal(align);
        }
        if let Some(align) = self.anti_causal {
            attention = attention.anti_causal(align);
        }
        if self.strict {
            if self.causal.is_none() && self.anti_causal.is_none() {
                return Err(CliError::Usage("--strict needs --causal or --anti-causal".to_owned()));
            }
            attention = attention.strict();
        }
        if let Some(Window { left, right }) = self.window {
            attention = attention.window(left, right);
        }
        if let Some(align) = self.align {
            attention = attention.align(align);
        }
        Ok(attention)
    }

    /// A gate for each of so many heads of k, if there are gates.
    ///
    /// # Errors
    /// [`CliError::Input`] for more heads than any model has.
    pub(crate) fn gates(&self, kv_heads: usize) -> Result<Option<Vec<f32>>, CliError> {
        const MOST_HEADS: usize = 1 << 20;
        let Some(gate) = self.gates else { return Ok(None) };
        if kv_heads > MOST_HEADS {
            return Err(CliError::Input(format!(
                "--gates with {kv_heads} heads of k; at most {MOST_HEADS} are possible"
            )));
        }
        Ok(Some(vec![gate; kv_heads]))
    }

    /// The layout that was given, or the usual one of padded or packed sequences.
    pub(crate) fn layout(&self, packed: bool) -> Layout {
        self.layout.unwrap_or(if packed { Layout::Thd } else { Layout::Bhsd })
    }

    /// An error for a layout that padded sequences cannot have, for commands whose sequences are said by options.
    pub(crate) fn check_layout(&self, packed: bool) -> Result<(), CliError> {
        if self.layout == Some(Layout::Thd) && !packed {
            return Err(CliError::Usage("--layout thd is for packed sequences: it goes with --varlen".to_owned()));
        }
        Ok(())
    }

    /// An error for an alignment that nothing asks for. `alibi` is whether there are slopes, which no option says.
    pub(crate) fn check_align(&self, alibi: bool) -> Result<(), CliError> {
        let bounded = self.window.is_some_and(|window| window.left.is_some() || window.right.is_some());
        let masked = self.causal.is_some() || self.anti_causal.is_some() || bounded;
        if self.align.is_none() || masked || alibi {
            return Ok(());
        }
        Err(CliError::Usage("--align has no meaning here: it goes with a bounded --window or with ALiBi".to_owned()))
    }

    /// The level that `--isa` names.
    pub(crate) fn isa(&self) -> Result<Option<Isa>, CliError> {
        Ok(self.isa.as_deref().map(Isa::from_str).transpose()?)
    }

    fn weighting(&self) -> Result<Weighting, CliError> {
        use WeightingName as Name;
        self.taken_by("--degree", self.degree.is_none() || self.weighting.has_degree(), "poly or power")?;
        let is_sigmoid = self.weighting == Name::Sigmoid;
        self.taken_by("--sigmoid-bias", self.sigmoid_bias.is_none() || is_sigmoid, "sigmoid")?;
        let degree = |range| {
            let missing = || CliError::Usage(format!("--weighting {} needs --degree, {range}", self.weighting.name()));
            self.degree.ok_or_else(missing)
        };
        Ok(match self.weighting {
            Name::Softmax => Weighting::Softmax,
            Name::HardLeft => Weighting::HardLeft,
            Name::HardRight => Weighting::HardRight,
            Name::AverageHard => Weighting::AverageHard,
            Name::Relu => Weighting::Relu,
            Name::Relu2 => Weighting::ReluSquared,
            Name::Poly => Weighting::Polynomial { degree: degree("1 to 8")? },
            Name::Sigmoid => Weighting::Sigmoid { bias: self.sigmoid_bias.unwrap_or(SigmoidBias::Constant(0.0)) },
            Name::Power => Weighting::EvenPower { degree: degree("2, 4, 6 or 8")? },
            Name::Taylor2 => Weighting::Taylor2,
            Name::Identity => Weighting::Identity,
        })
    }

    /// Whether anything depends on the number of keys.
    fn takes_n(&self) -> bool {
        let scaled = matches!(self.row_scale, Some(RowScaleName::InvN | RowScaleName::InvSqrtN));
        let scheduled = matches!(self.temperature_schedule, Some(ScheduleName::LogN | ScheduleName::ScaledLogN));
        scaled || scheduled || self.sigmoid_bias == Some(SigmoidBias::NegLogN)
    }

    fn schedule_factor(&self) -> Result<Option<f32>, CliError> {
        match (self.temperature_schedule, self.schedule_factor) {
            (Some(ScheduleName::ScaledLogN), Some(factor)) => Ok(Some(factor)),
            (Some(ScheduleName::ScaledLogN), None) => {
                Err(CliError::Usage("--temperature-schedule scaled-log-n needs --schedule-factor".to_owned()))
            }
            (_, Some(_)) => {
                Err(CliError::Usage("--schedule-factor goes with --temperature-schedule scaled-log-n only".to_owned()))
            }
            (Some(ScheduleName::LogN), None) => Ok(Some(1.0)),
            (Some(ScheduleName::Const) | None, None) => Ok(None),
        }
    }

    /// An error unless `taken`.
    fn taken_by(&self, option: &str, taken: bool, takers: &str) -> Result<(), CliError> {
        if taken {
            return Ok(());
        }
        Err(CliError::Usage(format!(
            "{option} has no meaning with --weighting {}: it goes with {takers}",
            self.weighting.name()
        )))
    }
}

const POINTWISE: &str = "relu, relu2, poly, sigmoid or identity";

impl WeightingName {
    /// The name, as it is written on the command line.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn has_degree(self) -> bool {
        matches!(self, Self::Poly | Self::Power)
    }

    fn is_pointwise(self) -> bool {
        matches!(self, Self::Relu | Self::Relu2 | Self::Poly | Self::Sigmoid | Self::Identity)
    }
}

fn align(text: &str) -> Result<Align, String> {
    match text {
        "top-left" => Ok(Align::TopLeft),
        "bottom-right" => Ok(Align::BottomRight),
        offset => offset
            .parse()
            .map(Align::Offset)
            .map_err(|_| "expected top-left, bottom-right or a whole number".to_owned()),
    }
}

fn count(text: &str) -> Result<Count, String> {
    match text {
        "all" => Ok(Count::AllKeys),
        "visible" => Ok(Count::Visible),
        n => n.parse().map(Count::Constant).map_err(|_| "expected all, visible or a number".to_owned()),
    }
}

fn split(text: &str) -> Result<Split, String> {
    match text {
        "auto" => Ok(Split::Auto),
        "never" => Ok(Split::Never),
        keys => keys.parse().map(Split::Keys).map_err(|_| "expected auto, never or a number of keys".to_owned()),
    }
}

fn form(text: &str) -> Result<Form, String> {
    let all = [Form::Quadratic, Form::Linear, Form::Auto];
    all.into_iter().find(|form| form.name() == text).ok_or_else(|| "expected quadratic, linear or auto".to_owned())
}

/// An element type of k and v.
pub(crate) fn dtype(text: &str) -> Result<Dtype, String> {
    Dtype::ALL.into_iter().find(|dtype| dtype.name() == text).ok_or("expected f32, f16, bf16 or int8".to_owned())
}

/// An element type of outputs.
pub(crate) fn out_dtype(text: &str) -> Result<Dtype, String> {
    let dtype = dtype(text).ok().filter(|dtype| *dtype != Dtype::Int8);
    dtype.ok_or_else(|| "expected f32, f16 or bf16".to_owned())
}

fn sigmoid_bias(text: &str) -> Result<SigmoidBias, String> {
    match text {
        "neg-log-n" => Ok(SigmoidBias::NegLogN),
        bias => bias.parse().map(SigmoidBias::Constant).map_err(|_| "expected a number or neg-log-n".to_owned()),
    }
}

fn window(text: &str) -> Result<Window, String> {
    let side = |text: &str| match text.trim() {
        "none" => Some(None),
        keys => keys.parse().ok().map(Some),
    };
    let sides = text.split_once(',').and_then(|(left, right)| Some((side(left)?, side(right)?)));
    let (left, right) = sides.ok_or("expected LEFT,RIGHT: two numbers of keys, or `none` for unbounded")?;
    Ok(Window { left, right })
}
