//! Classes of problems, and how far one is from another.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How scores become weights, as far as it matters for speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Softmax and its relatives: maximum, exponential and sum per row.
    Exponential,
    /// Hard attention: the greatest score selects rows of V.
    Selection,
    /// A function of one score at a time; no state per row.
    Pointwise,
    /// A function of one score at a time, divided by the sum of the row.
    Normalised,
}

impl Family {
    /// The name in profiles.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exponential => "exponential",
            Self::Selection => "selection",
            Self::Pointwise => "pointwise",
            Self::Normalised => "normalised",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The shape of what is masked, as far as it matters for speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MaskClass {
    /// Every query sees the same keys.
    Full,
    /// Every query sees one range of keys: causal, sliding window.
    Banded,
    /// A tensor says who sees what.
    Tensor,
}

impl MaskClass {
    /// The name in profiles.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Banded => "banded",
            Self::Tensor => "tensor",
        }
    }
}

impl fmt::Display for MaskClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A class of problems: what the choice of kernel and tiles may depend on.
///
/// Batch and heads are left out on purpose: a sequence gets the same result in whatever company it comes. So are threads, which
/// could have a say in the query block, as that decides no bits: a plan is then the same whoever runs it, and it costs next to
/// nothing. On two Zen 4 cores (`cargo bench --bench query_blocks`, two runs) the best block of one thread loses 0 to 0.8 % with
/// both of them to the best of both where a call takes a millisecond or more. Shorter calls (8 heads, 512 queries and keys) vary
/// with two threads by more than any block gains, up to a half, and another block is the best one in each run.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Class {
    /// Name of the instruction-set level, such as `avx512`.
    pub isa: String,
    /// Element type of Q, K and V, such as `f32`.
    pub dtype: String,
    /// How scores become weights.
    pub family: Family,
    /// What is masked.
    pub mask: MaskClass,
    /// Elements of one query or key.
    pub head_dim: usize,
    /// Elements of one value.
    pub value_dim: usize,
    /// Keys of one sequence.
    pub keys: usize,
    /// Query rows of one sequence.
    pub queries: usize,
}

/// A [`Class`] that borrows its names: plans make one for each problem, which allocates nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClassRef<'a> {
    /// As [`Class::isa`].
    pub isa: &'a str,
    /// As [`Class::dtype`].
    pub dtype: &'a str,
    /// As [`Class::family`].
    pub family: Family,
    /// As [`Class::mask`].
    pub mask: MaskClass,
    /// As [`Class::head_dim`].
    pub head_dim: usize,
    /// As [`Class::value_dim`].
    pub value_dim: usize,
    /// As [`Class::keys`].
    pub keys: usize,
    /// As [`Class::queries`].
    pub queries: usize,
}

impl Class {
    /// The same, borrowed.
    pub fn borrowed(&self) -> ClassRef<'_> {
        let Self { isa, dtype, family, mask, head_dim, value_dim, keys, queries } = self;
        let (family, mask, head_dim, value_dim) = (*family, *mask, *head_dim, *value_dim);
        ClassRef { isa, dtype, family, mask, head_dim, value_dim, keys: *keys, queries: *queries }
    }

    /// As [`ClassRef::distance`].
    pub fn distance(&self, tuned: &Self) -> Option<f64> {
        self.borrowed().distance(tuned)
    }
}

impl ClassRef<'_> {
    /// The same, with names of its own.
    pub fn owned(&self) -> Class {
        let Self { isa, dtype, family, mask, head_dim, value_dim, keys, queries } = *self;
        Class { isa: isa.to_owned(), dtype: dtype.to_owned(), family, mask, head_dim, value_dim, keys, queries }
    }

    /// Whether rows are so wide that fewer of them fit into a cache: more than 256 elements of a key and a value together.
    /// Such classes have key blocks of their own, as no sequence is wide in one batch and not in another.
    pub fn is_wide(&self) -> bool {
        self.head_dim.saturating_add(self.value_dim) > WIDE
    }

    /// How far a tuned class is from this one; `None` if what was measured there says nothing here (another level or
    /// element type, or wide rows where these are not).
    ///
    /// The unit is a factor of two in one of the four sizes: the sum of the absolute differences of their binary
    /// logarithms, plus 4 for another family and 2 for another mask. Zero counts as one.
    pub fn distance(&self, tuned: &Class) -> Option<f64> {
        if self.isa != tuned.isa || self.dtype != tuned.dtype || self.is_wide() != tuned.borrowed().is_wide() {
            return None;
        }
        // One logarithm for the sum of four: a plan asks for the distance of every entry.
        let sizes = (factor(self.head_dim, tuned.head_dim)
            * factor(self.value_dim, tuned.value_dim)
            * factor(self.keys, tuned.keys)
            * factor(self.queries, tuned.queries))
        .log2();
        let family = if self.family == tuned.family { 0.0 } else { FAMILY_PENALTY };
        let mask = if self.mask == tuned.mask { 0.0 } else { MASK_PENALTY };
        Some(sizes + family + mask)
    }
}

impl fmt::Display for Class {
    /// One line, such as `avx512 f32 exponential banded d=128 dv=128 keys=2048 queries=2048`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { isa, dtype, family, mask, head_dim, value_dim, keys, queries } = self;
        write!(f, "{isa} {dtype} {family} {mask} d={head_dim} dv={value_dim} keys={keys} queries={queries}")
    }
}

/// Elements of a key and a value of rows that are not wide yet.
const WIDE: usize = 256;

/// What another family costs, in factors of two. The families share their loops but not their balance (selection
/// skips the second product altogether), so an anchor of the same family at a sixteenth of the length is as near.
const FAMILY_PENALTY: f64 = 4.0;

/// What another mask costs, in factors of two. It changes how much of a block is useful, as size does.
const MASK_PENALTY: f64 = 2.0;

/// How many times as large the larger of two sizes is: exactly 1 for equal ones.
fn factor(a: usize, b: usize) -> f64 {
    a.max(b).max(1) as f64 / a.min(b).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class() -> Class {
        Class {
            isa: "avx512".to_owned(),
            dtype: "f32".to_owned(),
            family: Family::Exponential,
            mask: MaskClass::Full,
            head_dim: 128,
            value_dim: 128,
            keys: 1024,
            queries: 1024,
        }
    }

    #[test]
    fn distance_is_a_distance() {
        let a = class();
        let b = Class { keys: 256, ..class() };
        assert_eq!(a.distance(&a), Some(0.0));
        assert_eq!(a.distance(&b), Some(2.0));
        assert_eq!(b.distance(&a), Some(2.0));
        let c = Class { keys: 256, queries: 2048, mask: MaskClass::Banded, ..class() };
        assert_eq!(a.distance(&c), Some(5.0));
        let d = Class { family: Family::Selection, head_dim: 64, value_dim: 64, ..class() };
        assert_eq!(a.distance(&d), Some(6.0));
    }

    #[test]
    fn another_level_or_element_type_says_nothing() {
        assert_eq!(class().distance(&Class { isa: "avx2".to_owned(), ..class() }), None);
        assert_eq!(class().distance(&Class { dtype: "bf16".to_owned(), ..class() }), None);
        let wide = Class { head_dim: 129, ..class() };
        assert_eq!([class().distance(&wide), wide.distance(&class())], [None; 2]);
        assert!(wide.distance(&Class { head_dim: 512, ..class() }).is_some());
    }

    #[test]
    fn any_size_has_a_finite_distance() {
        let least = Class { head_dim: 0, value_dim: 0, keys: 0, queries: 0, ..class() };
        let most = Class { head_dim: 1, value_dim: 255, keys: usize::MAX, queries: 1, ..class() };
        let widest = Class { head_dim: usize::MAX, value_dim: usize::MAX, ..class() };
        assert_eq!(widest.distance(&widest), Some(0.0));
        assert!(least.distance(&most).unwrap().is_finite());
        assert_eq!(least.distance(&Class { keys: 1, ..least.clone() }), Some(0.0));
    }

    #[test]
    fn names_are_those_of_the_file() {
        for family in [Family::Exponential, Family::Selection, Family::Pointwise, Family::Normalised] {
            assert_eq!(serde_json::to_value(family).unwrap(), family.name());
        }
        for mask in [MaskClass::Full, MaskClass::Banded, MaskClass::Tensor] {
            assert_eq!(serde_json::to_value(mask).unwrap(), mask.name());
        }
        assert_eq!(class().to_string(), "avx512 f32 exponential full d=128 dv=128 keys=1024 queries=1024");
    }
}
