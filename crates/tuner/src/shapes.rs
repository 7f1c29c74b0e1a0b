//! The standard cases: one list for the benches and for `regard bench`.

use regard_kernels::tensor::Dtype;
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

/// The part of the keys that a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All of them.
    Full,
    /// Those up to its own place, counted from the first key.
    TopLeft,
    /// Those up to its own place, where the last query stands at the last key.
    BottomRight,
}

/// Queries and keys of the sequences of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// One sequence.
    One {
        /// Rows of q.
        queries: usize,
        /// Rows of k and v.
        keys: usize,
    },
    /// Sequences of different lengths, packed one after the other.
    Packed {
        /// Rows of q of each sequence; as many as its keys if none.
        queries: Option<usize>,
        /// Rows of k and v of each sequence, as [`crate::inputs::Lengths`] is written.
        keys: &'static str,
    },
}

/// A standard case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// How scores become weights.
    pub weights: Weights,
    /// What a query sees.
    pub mask: Mask,
    /// Query heads.
    pub heads: usize,
    /// Heads of k and v.
    pub kv_heads: usize,
    /// Queries and keys.
    pub rows: Rows,
    /// Columns of q, k and v.
    pub head_dim: usize,
    /// The element type of q, k and v; with bytes, that of k and v, and q is f32.
    pub dtype: Dtype,
    /// The level that the case is about; the best one if none.
    pub isa: Option<Isa>,
}

impl Shape {
    /// The options of the tool for it.
    pub fn options(&self) -> String {
        let Self { weights, mask, heads, kv_heads, rows, head_dim, dtype, isa } = self;
        let mut options = format!("{} --heads {heads}", weights.options());
        if kv_heads != heads {
            options += &format!(" --kv-heads {kv_heads}");
        }
        options += &match rows {
            Rows::One { queries, keys } => format!(" --queries {queries} --keys {keys}"),
            Rows::Packed { queries: None, keys } => format!(" --varlen {keys}"),
            Rows::Packed { queries: Some(queries), keys } => format!(" --queries {queries} --varlen {keys}"),
        };
        options += &format!(" --head-dim {head_dim}");
        options += match mask {
            Mask::Full => "",
            Mask::TopLeft => " --causal top-left",
            Mask::BottomRight => " --causal bottom-right",
        };
        if *dtype != Dtype::F32 {
            options += &format!(" --dtype {dtype}");
        }
        isa.map_or(options.clone(), |isa| format!("{options} --isa {isa}"))
    }

    /// A short name.
    pub fn name(&self) -> String {
        let Self { mask, heads, kv_heads, rows, head_dim, dtype, .. } = self;
        let mask = match mask {
            Mask::Full => "full",
            Mask::TopLeft => "causal",
            Mask::BottomRight => "causal-end",
        };
        let rows = match rows {
            Rows::One { queries, keys } if queries == keys => keys.to_string(),
            Rows::One { queries, keys } => format!("{queries}x{keys}"),
            Rows::Packed { queries: None, keys } => format!("packed-{keys}"),
            Rows::Packed { queries: Some(queries), keys } => format!("{queries}xpacked-{keys}"),
        };
        let heads = if heads == kv_heads { String::new() } else { format!("/{heads}:{kv_heads}") };
        let dtype = if *dtype == Dtype::F32 { String::new() } else { format!("{dtype}/") };
        // A colon or dots would make a bad name of a file.
        format!("{dtype}{mask}/{rows}/d{head_dim}{heads}").replace("..", "-").replace([':', '@'], "-")
    }
}

/// Full softmax of 8 heads, as many queries as keys.
const fn square(length: usize, head_dim: usize) -> Shape {
    Shape {
        weights: Weights::Softmax,
        mask: Mask::Full,
        heads: 8,
        kv_heads: 8,
        rows: Rows::One { queries: length, keys: length },
        head_dim,
        dtype: Dtype::F32,
        isa: None,
    }
}

const fn causal(shape: Shape) -> Shape {
    Shape { mask: Mask::TopLeft, ..shape }
}

const fn bf16(shape: Shape) -> Shape {
    Shape { dtype: Dtype::Bf16, ..shape }
}

const fn few(queries: usize) -> Shape {
    Shape { rows: Rows::One { queries, keys: 8192 }, ..square(0, 128) }
}

/// A long causal sequence of one head.
const fn long(weights: Weights, length: usize, head_dim: usize) -> Shape {
    Shape { weights, heads: 1, kv_heads: 1, ..causal(square(length, head_dim)) }
}

/// The last tokens of a sequence against a cache, where so many query heads share each of 8 KV heads.
const fn decode(queries: usize, group: usize, dtype: Dtype) -> Shape {
    Shape { mask: Mask::BottomRight, heads: 8 * group, dtype, ..few(queries) }
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

/// The same in bf16.
pub const BF16: [Shape; 4] =
    [bf16(square(2048, 64)), bf16(square(2048, 128)), bf16(causal(square(2048, 128))), bf16(causal(square(512, 128)))];

/// One token at a time: every element type, with 1 and with 8 query heads for each KV head.
pub const DECODE: [Shape; 8] = [
    decode(1, 1, Dtype::F32),
    decode(1, 1, Dtype::F16),
    decode(1, 1, Dtype::Bf16),
    decode(1, 1, Dtype::Int8),
    decode(1, 8, Dtype::F32),
    decode(1, 8, Dtype::F16),
    decode(1, 8, Dtype::Bf16),
    decode(1, 8, Dtype::Int8),
];

/// A few tokens at a time, as they are verified in speculative decoding.
pub const VERIFY: [Shape; 6] = [
    decode(2, 1, Dtype::F32),
    decode(4, 1, Dtype::F32),
    decode(8, 1, Dtype::F32),
    decode(2, 1, Dtype::Bf16),
    decode(4, 1, Dtype::Bf16),
    decode(8, 1, Dtype::Bf16),
];

/// Sequences of different lengths: prompts, and one token of each.
pub const VARLEN: [Shape; 4] = [
    Shape { mask: Mask::TopLeft, rows: Rows::Packed { queries: None, keys: "uniform:1..2048:16@1" }, ..square(0, 128) },
    bf16(Shape {
        mask: Mask::TopLeft,
        rows: Rows::Packed { queries: None, keys: "uniform:1..2048:16@1" },
        ..square(0, 128)
    }),
    Shape { rows: Rows::Packed { queries: Some(1), keys: "uniform:1..4096:32@1" }, ..decode(1, 1, Dtype::F32) },
    Shape { rows: Rows::Packed { queries: Some(1), keys: "uniform:1..4096:32@1" }, ..decode(1, 8, Dtype::Bf16) },
];

/// One head of weights that are polynomials of the score, so long that the linear form takes over: each degree, both kinds of
/// sums, and a length four times as long, of which a token costs the same.
pub const LINEAR: [Shape; 6] = [
    long(Weights::EvenPower(2), 16384, 64),
    long(Weights::EvenPower(2), 65536, 64),
    Shape { mask: Mask::Full, ..long(Weights::EvenPower(2), 16384, 64) },
    long(Weights::Taylor2, 16384, 32),
    long(Weights::Polynomial(3), 16384, 16),
    long(Weights::Identity, 16384, 128),
];

/// The shape that weightings are compared on.
pub const WEIGHTINGS: Shape = square(2048, 128);

/// The shapes that levels are compared on.
pub const LEVELS: [Shape; 2] = [square(2048, 64), square(2048, 128)];

/// The shapes that numbers of threads are compared on.
pub const THREADS: [Shape; 2] = [square(2048, 128), causal(square(2048, 128))];

/// Every standard case once: [`ATTENTION`], the other weightings, [`BF16`], [`DECODE`], [`VERIFY`], [`VARLEN`],
/// [`LINEAR`], and [`LEVELS`] at AVX2 where that is not the best level.
pub fn standard() -> Vec<Shape> {
    let weightings = Weights::ALL[1..].iter().map(|weights| Shape { weights: *weights, ..WEIGHTINGS });
    let levels = LEVELS.map(|shape| Shape { isa: Some(Isa::Avx2), ..shape });
    let shapes =
        ATTENTION.into_iter().chain(weightings).chain(BF16).chain(DECODE).chain(VERIFY).chain(VARLEN).chain(LINEAR);
    shapes.chain(levels).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inputs::Lengths;

    #[test]
    fn no_case_is_there_twice() {
        let cases = standard();
        for (i, case) in cases.iter().enumerate() {
            assert!(!cases[..i].contains(case), "{case:?}");
            assert!(!cases[..i].iter().any(|other| other.options() == case.options()), "{case:?}");
            if let Rows::Packed { keys, .. } = case.rows {
                assert!(keys.parse::<Lengths>().is_ok(), "{keys}");
            }
        }
        assert_eq!(cases.len(), 56);
    }

    #[test]
    fn names_and_options() {
        assert_eq!(few(16).name(), "full/16x8192/d128");
        let case = Shape { weights: Weights::Polynomial(3), isa: Some(Isa::Avx2), ..causal(square(512, 64)) };
        assert_eq!(case.name(), "causal/512/d64");
        let options = "--weighting poly --degree 3 --row-scale inv-n --heads 8 --queries 512 --keys 512 --head-dim 64 \
                       --causal top-left --isa avx2";
        assert_eq!(case.options(), options);
        assert_eq!(DECODE[7].name(), "int8/causal-end/1x8192/d128/64-8");
        let options = "--weighting softmax --heads 64 --kv-heads 8 --queries 1 --keys 8192 --head-dim 128 --causal \
                       bottom-right --dtype int8";
        assert_eq!(DECODE[7].options(), options);
        assert_eq!(VARLEN[0].name(), "causal/packed-uniform-1-2048-16-1/d128");
        assert!(VARLEN[0].options().contains("--heads 8 --varlen uniform:1..2048:16@1 --head-dim 128"));
        assert!(VARLEN[3].options().contains("--kv-heads 8 --queries 1 --varlen uniform:1..4096:32@1"));
    }
}
