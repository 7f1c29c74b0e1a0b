//! The weightings by name, and what each of them allows.

use std::sync::Arc;

use regard_kernels::weighting::{
    AnyWeighting, AverageHard, Hard, Identity, Kind, Map, Normalised, Pointwise, Polynomial, Relu, ReluSquared, Side,
    Sigmoid, Softmax, Taylor2,
};
use regard_profile::Family;

use crate::Error;

/// How the scores of a row become its weights.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Weighting {
    /// `e^s_j / sum e^s`
    Softmax,
    /// All weight on the first key with the largest score.
    HardLeft,
    /// All weight on the last key with the largest score.
    HardRight,
    /// Equal weight on all keys with the largest score.
    AverageHard,
    /// `max(0, s)`
    Relu,
    /// `max(0, s)^2`
    ReluSquared,
    /// `s^degree`, degree 1 to 8
    Polynomial {
        /// The exponent.
        degree: u32,
    },
    /// `1 / (1 + e^-(s + bias))`
    Sigmoid {
        /// What is added to the score.
        bias: SigmoidBias,
    },
    /// `s_j^degree / sum s^degree`, degree 2, 4, 6 or 8
    EvenPower {
        /// The exponent.
        degree: u32,
    },
    /// `t(s_j) / sum t(s)` with `t(s) = 1 + s + s^2 / 2`
    Taylor2,
    /// `s`
    Identity,
    /// A weighting of one's own; see [`Weighting::custom`].
    Custom(Custom),
}

/// The bias of sigmoid attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SigmoidBias {
    /// A constant.
    Constant(f32),
    /// `-ln n`, with `n` as [`Attention::count`](crate::Attention::count) says.
    NegLogN,
}

/// A user-defined pointwise weighting.
#[derive(Clone)]
pub struct Custom {
    name: &'static str,
    functions: Arc<dyn AnyWeighting>,
}

impl std::fmt::Debug for Custom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Custom").field(&self.name).finish()
    }
}

impl Weighting {
    /// A pointwise weighting of one's own under a name. See the [crate documentation](crate#a-weighting-of-your-own).
    pub fn custom<P: Pointwise + std::fmt::Debug>(name: &'static str, weighting: P) -> Self {
        Self::Custom(Custom { name, functions: Arc::new(Map(weighting)) })
    }

    /// The name, as the tool writes it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Softmax => "softmax",
            Self::HardLeft => "hard-left",
            Self::HardRight => "hard-right",
            Self::AverageHard => "average-hard",
            Self::Relu => "relu",
            Self::ReluSquared => "relu2",
            Self::Polynomial { .. } => "poly",
            Self::Sigmoid { .. } => "sigmoid",
            Self::EvenPower { .. } => "power",
            Self::Taylor2 => "taylor2",
            Self::Identity => "identity",
            Self::Custom(custom) => custom.name,
        }
    }

    /// The weighting's code.
    ///
    /// # Errors
    /// [`Error::Number`] for a degree that has none.
    pub(crate) fn functions(&self) -> Result<Arc<dyn AnyWeighting>, Error> {
        Ok(match self {
            Self::Softmax => Arc::new(Softmax),
            Self::HardLeft => Arc::new(Hard { side: Side::Left }),
            Self::HardRight => Arc::new(Hard { side: Side::Right }),
            Self::AverageHard => Arc::new(AverageHard),
            Self::Relu => Arc::new(Map(Relu)),
            Self::ReluSquared => Arc::new(Map(ReluSquared)),
            Self::Polynomial { degree } => match degree {
                1 => Arc::new(Map(Polynomial::<1>)),
                2 => Arc::new(Map(Polynomial::<2>)),
                3 => Arc::new(Map(Polynomial::<3>)),
                4 => Arc::new(Map(Polynomial::<4>)),
                5 => Arc::new(Map(Polynomial::<5>)),
                6 => Arc::new(Map(Polynomial::<6>)),
                7 => Arc::new(Map(Polynomial::<7>)),
                8 => Arc::new(Map(Polynomial::<8>)),
                _ => return Err(degree_error(*degree, "from 1 to 8")),
            },
            Self::Sigmoid { .. } => Arc::new(Map(Sigmoid)),
            Self::EvenPower { degree } => match degree {
                2 => Arc::new(Normalised(Polynomial::<2>)),
                4 => Arc::new(Normalised(Polynomial::<4>)),
                6 => Arc::new(Normalised(Polynomial::<6>)),
                8 => Arc::new(Normalised(Polynomial::<8>)),
                _ => return Err(degree_error(*degree, "2, 4, 6 or 8")),
            },
            Self::Taylor2 => Arc::new(Normalised(Taylor2)),
            Self::Identity => Arc::new(Map(Identity)),
            Self::Custom(custom) => custom.functions.clone(),
        })
    }

    /// The family, which decides what options mean and which profile entries apply.
    pub fn family(&self) -> Family {
        match self {
            Self::Softmax => Family::Exponential,
            Self::HardLeft | Self::HardRight | Self::AverageHard => Family::Selection,
            Self::EvenPower { .. } | Self::Taylor2 => Family::Normalised,
            _ => Family::Pointwise,
        }
    }

    /// Whether the result is made of whole rows of V, chosen by comparing scores.
    pub fn selects(&self) -> bool {
        self.functions().is_ok_and(|functions| functions.kind() != Kind::Weighted)
    }
}

fn degree_error(degree: u32, expected: &'static str) -> Error {
    Error::Number { name: "degree", value: f64::from(degree), expected }
}
