//! The classes of problems that are tuned; every other one takes the choice of the nearest of them.

use regard_kernels::Band;
use regard_kernels::weighting::{AnyWeighting, Hard, Map, Normalised, Relu, Side, Softmax, Taylor2};
use regard_profile::{Class, Family, MaskClass};
use regard_simd::Isa;

/// A class of problems, with a problem that stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// How scores become weights.
    pub family: Family,
    /// Whether the problem is causal: the class with banded masks, or the one without any.
    pub causal: bool,
    /// Columns of q, k and v.
    pub head_dim: usize,
    /// Rows of q.
    pub queries: usize,
    /// Rows of k and v.
    pub keys: usize,
    /// Heads of the problem; no part of the class.
    pub heads: usize,
}

/// Softmax over as many keys as queries.
const fn softmax(causal: bool, length: usize, head_dim: usize, heads: usize) -> Anchor {
    Anchor { family: Family::Exponential, causal, head_dim, queries: length, keys: length, heads }
}

impl Anchor {
    /// The anchors of a quick search: short sequences. The most important ones first, as the budget may end early.
    pub const QUICK: [Self; 6] = [
        softmax(false, 512, 64, 2),
        softmax(true, 512, 64, 2),
        softmax(false, 512, 128, 2),
        softmax(true, 512, 128, 2),
        Self { family: Family::Selection, ..softmax(false, 512, 64, 2) },
        Self { family: Family::Pointwise, ..softmax(false, 512, 64, 2) },
    ];

    /// The anchors of a search that takes its time.
    pub const FULL: [Self; 14] = [
        softmax(false, 2048, 128, 1),
        softmax(true, 2048, 128, 1),
        softmax(false, 512, 64, 4),
        softmax(true, 512, 64, 4),
        softmax(false, 2048, 64, 1),
        softmax(true, 2048, 64, 1),
        softmax(false, 512, 128, 4),
        softmax(true, 512, 128, 4),
        // What is between the two takes the first of them.
        Self { queries: 64, keys: 4096, ..softmax(false, 0, 128, 2) },
        Self { queries: 16, keys: 4096, ..softmax(false, 0, 128, 4) },
        Self { family: Family::Selection, ..softmax(false, 2048, 128, 1) },
        Self { family: Family::Selection, ..softmax(false, 512, 64, 4) },
        Self { family: Family::Pointwise, ..softmax(false, 2048, 128, 1) },
        Self { family: Family::Normalised, ..softmax(false, 512, 64, 4) },
    ];

    /// The class at a level.
    pub fn class(&self, isa: Isa) -> Class {
        Class {
            isa: isa.name().to_owned(),
            dtype: "f32".to_owned(),
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
        pairs * (self.heads * 4 * self.head_dim) as f64
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
        for anchors in [&Anchor::QUICK[..], &Anchor::FULL] {
            for (i, anchor) in anchors.iter().enumerate() {
                let class = |anchor: &Anchor| anchor.class(Isa::Portable);
                assert!(anchors[..i].iter().all(|other| class(other) != class(anchor)), "{anchor:?}");
            }
        }
    }

    #[test]
    fn only_visible_pairs_count() {
        let full = softmax(false, 4, 8, 3);
        assert_eq!(full.flops(), 16.0 * 3.0 * 32.0);
        assert_eq!(Anchor { causal: true, ..full }.flops(), 10.0 * 3.0 * 32.0);
    }
}
