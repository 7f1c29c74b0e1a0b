//! The classes of problems that are tuned; every other one takes the choice of the nearest of them.

use regard_kernels::Band;
use regard_kernels::tensor::Dtype;
use regard_kernels::weighting::{AnyWeighting, Hard, Map, Normalised, Relu, Side, Softmax, Taylor2};
use regard_profile::{Class, Family, MaskClass};
use regard_simd::Isa;

use super::Role;

/// A class of problems, with a problem that stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// What is decided on it.
    pub role: Role,
    /// How scores become weights.
    pub family: Family,
    /// Whether the problem is causal: the class with banded masks, or the one without any.
    pub causal: bool,
    /// The element type of q, k and v; with bytes, that of k and v, and q is f32.
    pub dtype: Dtype,
    /// Columns of q, k and v.
    pub head_dim: usize,
    /// Rows of q.
    pub queries: usize,
    /// Rows of k and v.
    pub keys: usize,
    /// Heads of k and v; no part of the class.
    pub heads: usize,
    /// Query heads for each of them; no part of the class.
    pub group: usize,
    /// Whether every call finds k and v outside the caches, as the first call after another layer does.
    pub streams: bool,
}

/// Softmax over as many keys as queries.
const fn softmax(causal: bool, length: usize, head_dim: usize) -> Anchor {
    Anchor {
        role: Role::Lanes,
        family: Family::Exponential,
        causal,
        dtype: Dtype::F32,
        head_dim,
        queries: length,
        keys: length,
        heads: 1,
        group: 1,
        streams: false,
    }
}

const fn of(dtype: Dtype, anchor: Anchor) -> Anchor {
    Anchor { dtype, ..anchor }
}

const fn family(family: Family, anchor: Anchor) -> Anchor {
    Anchor { family, ..anchor }
}

/// The last queries of a sequence against its cache, which comes from memory.
const fn few(dtype: Dtype, queries: usize, keys: usize, group: usize) -> Anchor {
    let anchor = softmax(false, 0, 128);
    Anchor { role: Role::Rows, dtype, queries, keys, group, heads: 2, streams: true, ..anchor }
}

/// So many queries as either kernel may compute.
const fn crossing(dtype: Dtype, queries: usize) -> Anchor {
    Anchor { role: Role::Crossing, queries, keys: 2048, heads: 1, ..few(dtype, queries, 0, 1) }
}

impl Anchor {
    /// The anchors, the most important first, as the budget may end early.
    pub const GRID: [Self; 39] = [
        softmax(false, 512, 64),
        softmax(true, 512, 128),
        few(Dtype::F32, 1, 8192, 1),
        of(Dtype::Bf16, softmax(true, 512, 128)),
        few(Dtype::Bf16, 1, 8192, 1),
        few(Dtype::Int8, 1, 8192, 1),
        few(Dtype::F16, 1, 8192, 1),
        crossing(Dtype::F32, 16),
        crossing(Dtype::Bf16, 16),
        softmax(false, 2048, 128),
        softmax(true, 2048, 128),
        of(Dtype::Bf16, softmax(false, 2048, 128)),
        // A search that has no time ends here.
        softmax(false, 2048, 64),
        softmax(true, 512, 64),
        Anchor { queries: 64, keys: 4096, ..softmax(false, 0, 128) },
        Anchor { queries: 24, keys: 4096, ..softmax(false, 0, 128) },
        softmax(false, 512, 256),
        family(Family::Selection, softmax(false, 1024, 128)),
        family(Family::Pointwise, softmax(false, 1024, 128)),
        family(Family::Normalised, softmax(false, 512, 64)),
        of(Dtype::Bf16, softmax(false, 2048, 64)),
        of(Dtype::F16, softmax(false, 1024, 128)),
        of(Dtype::F16, softmax(true, 512, 64)),
        of(Dtype::Int8, softmax(false, 1024, 128)),
        few(Dtype::F32, 4, 4096, 1),
        few(Dtype::Bf16, 4, 4096, 1),
        few(Dtype::F16, 4, 4096, 1),
        few(Dtype::Int8, 4, 4096, 1),
        few(Dtype::F32, 1, 2048, 8),
        few(Dtype::Bf16, 1, 2048, 8),
        few(Dtype::F16, 1, 2048, 8),
        few(Dtype::Int8, 1, 2048, 8),
        crossing(Dtype::F32, 8),
        crossing(Dtype::F32, 12),
        crossing(Dtype::F32, 24),
        crossing(Dtype::Bf16, 8),
        crossing(Dtype::Bf16, 12),
        crossing(Dtype::Bf16, 24),
        crossing(Dtype::F16, 16),
    ];

    /// How many of them a quick search looks at.
    pub const QUICK: usize = 12;

    /// The class at a level.
    pub fn class(&self, isa: Isa) -> Class {
        Class {
            isa: isa.name().to_owned(),
            dtype: self.dtype.name().to_owned(),
            family: self.family,
            mask: if self.causal { MaskClass::Banded } else { MaskClass::Full },
            head_dim: self.head_dim,
            value_dim: self.head_dim,
            keys: self.keys,
            queries: self.queries,
        }
    }

    /// The mask of the problem: none, or causal from the top left.
    pub(super) fn band(&self) -> Band {
        if self.causal { Band { lower: None, upper: Some(1) } } else { Band::FULL }
    }

    /// Floating point operations of both products over visible pairs, all heads.
    pub(super) fn flops(&self) -> f64 {
        let pairs = self.band().pairs(self.queries, self.keys) as f64;
        pairs * (self.heads * self.group * 4 * self.head_dim) as f64
    }

    /// Bytes of k and v.
    pub(super) fn kv_bytes(&self) -> usize {
        let scale = if self.dtype == Dtype::Int8 { size_of::<f32>() } else { 0 };
        2 * self.heads * self.keys * (self.head_dim * self.dtype.bytes() + scale)
    }

    /// The weighting that stands for the family.
    pub(super) fn weighting(&self) -> Box<dyn AnyWeighting> {
        match self.family {
            Family::Exponential => Box::new(Softmax),
            Family::Selection => Box::new(Hard { side: Side::Left }),
            Family::Pointwise => Box::new(Map(Relu)),
            Family::Normalised => Box::new(Normalised(Taylor2)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_are_of_different_classes() {
        for (i, anchor) in Anchor::GRID.iter().enumerate() {
            let class = |anchor: &Anchor| (anchor.role, anchor.class(Isa::Portable));
            assert!(Anchor::GRID[..i].iter().all(|other| class(other) != class(anchor)), "{anchor:?}");
        }
    }

    #[test]
    fn only_visible_pairs_count() {
        let full = Anchor { heads: 3, ..softmax(false, 4, 8) };
        assert_eq!(full.flops(), 16.0 * 3.0 * 32.0);
        assert_eq!(Anchor { causal: true, ..full }.flops(), 10.0 * 3.0 * 32.0);
        assert_eq!(full.kv_bytes(), 2 * 3 * 4 * 8 * 4);
        assert_eq!(of(Dtype::Int8, full).kv_bytes(), 2 * 3 * 4 * 12);
    }
}
