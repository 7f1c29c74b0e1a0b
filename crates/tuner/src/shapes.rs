//! The standard cases: one list for the benches and for `regard bench`.

use regard_simd::Isa;

/// A weighting of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// Softmax.
    Softmax,
    /// Hard, leftmost.
    HardLeft,
    /// Hard, rightmost.
    HardRight,
    /// The mean of ties.
    AverageHard,
    /// ReLU over n.
    Relu,
    /// ReLU squared over n.
    ReluSquared,
    /// A power of the score over n.
    Polynomial(u32),
    /// Sigmoid with the bias -ln n.
    Sigmoid,
    /// A normalised even power.
    EvenPower(u32),
    /// The normalised Taylor polynomial of degree 2.
    Taylor2,
    /// The score itself over n.
    Identity,
}

impl Weights {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Softmax,
        Self::HardLeft,
        Self::HardRight,
        Self::AverageHard,
        Self::Relu,
        Self::ReluSquared,
        Self::Polynomial(3),
        Self::Sigmoid,
        Self::EvenPower(2),
        Self::Taylor2,
        Self::Identity,
    ];

    /// The name, as the tool writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Softmax => "softmax",
            Self::HardLeft => "hard-left",
            Self::HardRight => "hard-right",
            Self::AverageHard => "average-hard",
            Self::Relu => "relu",
            Self::ReluSquared => "relu2",
            Self::Polynomial(_) => "poly",
            Self::Sigmoid => "sigmoid",
            Self::EvenPower(_) => "power",
            Self::Taylor2 => "taylor2",
            Self::Identity => "identity",
        }
    }

    /// The options of the tool for it.
    pub fn options(self) -> String {
        let more = match self {
            Self::Relu | Self::ReluSquared | Self::Identity => " --row-scale inv-n".to_owned(),
            Self::Polynomial(degree) => format!(" --degree {degree} --row-scale inv-n"),
            Self::Sigmoid => " --sigmoid-bias neg-log-n".to_owned(),
            Self::EvenPower(degree) => format!(" --degree {degree}"),
            _ => String::new(),
        };
        format!("--weighting {}{more}", self.name())
    }
}

/// A standard case: f32, batch 1, as many KV heads as query heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// How scores become weights.
    pub weights: Weights,
    /// Whether a query sees the keys up to its own place only, counted from the top left.
    pub causal: bool,
    /// Query heads.
    pub heads: usize,
    /// Rows of q.
    pub queries: usize,
    /// Rows of k and v.
    pub keys: usize,
    /// Columns of q, k and v.
    pub head_dim: usize,
    /// The level that the case is about; the best one if none.
    pub isa: Option<Isa>,
}

impl Shape {
    /// The options of the tool for it.
    pub fn options(&self) -> String {
        let Self { weights, causal, heads, queries, keys, head_dim, isa } = self;
        let sizes = format!("--heads {heads} --queries {queries} --keys {keys} --head-dim {head_dim}");
        let causal = if *causal { " --causal top-left" } else { "" };
        let isa = isa.map_or_else(String::new, |isa| format!(" --isa {isa}"));
        format!("{} {sizes}{causal}{isa}", weights.options())
    }

    /// A short name.
    pub fn name(&self) -> String {
        let Self { causal, queries, keys, head_dim, .. } = self;
        let mask = if *causal { "causal" } else { "full" };
        if queries == keys {
            format!("{mask}/{keys}/d{head_dim}")
        } else {
            format!("{mask}/{queries}x{keys}/d{head_dim}")
        }
    }
}

/// Full softmax of 8 heads, as many queries as keys.
const fn square(length: usize, head_dim: usize) -> Shape {
    Shape { weights: Weights::Softmax, causal: false, heads: 8, queries: length, keys: length, head_dim, isa: None }
}

const fn causal(shape: Shape) -> Shape {
    Shape { causal: true, ..shape }
}

const fn few(queries: usize) -> Shape {
    Shape { queries, ..square(8192, 128) }
}

/// Softmax at the best level: lengths and masks, head dimensions that are no power of two, few queries.
pub const ATTENTION: [Shape; 16] = [
    square(512, 64),
    square(512, 128),
    square(2048, 64),
    square(2048, 128),
    causal(square(512, 64)),
    causal(square(512, 128)),
    causal(square(2048, 64)),
    causal(square(2048, 128)),
    square(2048, 80),
    square(2048, 96),
    square(2048, 112),
    square(2048, 160),
    few(128),
    few(64),
    few(32),
    few(16),
];

/// The shape that weightings are compared on.
pub const WEIGHTINGS: Shape = square(2048, 128);

/// The shapes that levels are compared on.
pub const LEVELS: [Shape; 2] = [square(2048, 64), square(2048, 128)];

/// The shapes that numbers of threads are compared on.
pub const THREADS: [Shape; 2] = [square(2048, 128), causal(square(2048, 128))];

/// Every standard case once: [`ATTENTION`], the other weightings, and [`LEVELS`] at AVX2 where that is not the best
/// level.
pub fn standard() -> Vec<Shape> {
    let weightings = Weights::ALL[1..].iter().map(|weights| Shape { weights: *weights, ..WEIGHTINGS });
    let levels = LEVELS.map(|shape| Shape { isa: Some(Isa::Avx2), ..shape });
    ATTENTION.into_iter().chain(weightings).chain(levels).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_case_is_there_twice() {
        let cases = standard();
        for (i, case) in cases.iter().enumerate() {
            assert!(!cases[..i].contains(case), "{case:?}");
        }
        assert_eq!(cases.len(), 28);
    }

    #[test]
    fn names_and_options() {
        assert_eq!(few(16).name(), "full/16x8192/d128");
        let case = Shape { weights: Weights::Polynomial(3), isa: Some(Isa::Avx2), ..causal(square(512, 64)) };
        assert_eq!(case.name(), "causal/512/d64");
        let options = "--weighting poly --degree 3 --row-scale inv-n --heads 8 --queries 512 --keys 512 --head-dim 64 \
                       --causal top-left --isa avx2";
        assert_eq!(case.options(), options);
    }
}
