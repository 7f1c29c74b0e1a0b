//! What a plan was made for.

use std::fmt;

use regard_kernels::launch::Split;
use regard_kernels::linear::Series;
use regard_kernels::tensor::Dtype;
use regard_kernels::weighting::Kind;
use regard_profile::{ClassRef, Family, MaskClass};
use regard_simd::Isa;

use crate::layout::Storage;
use crate::options::{Form, Native, Numerics};
use crate::{Problem, Shape, linear};

/// Queries and keys that stand for sequences of any size: in the middle of what is tuned.
const ANY_LENGTH: usize = 2048;

/// What a plan was made for, and what a problem is. Without strings, unlike [`regard_profile::Class`]: it is made at each run, which
/// allocates nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Key {
    pub(super) shape: Shape,
    /// The most keys that a sequence may have.
    pub(super) most_keys: usize,
    pub(super) q_dtype: Dtype,
    pub(super) kv_dtype: Dtype,
    /// What is asked for, and not what it comes to: a problem does not know the machine.
    pub(super) native: Native,
    pub(super) f32_on_tiles: bool,
    pub(super) storage: Storage,
    pub(super) mixed: bool,
    pub(super) isa: Isa,
    pub(super) family: Family,
    pub(super) mask: MaskClass,
    /// Weightings of one family may differ in the state that they keep.
    pub(super) kind: Kind,
    pub(super) numerics: Numerics,
    pub(super) split: Split,
    /// Whether there is an index of the keys.
    pub(super) indexed: bool,
    /// The form, and the polynomial that weights are if it may be linear.
    pub(super) form: Form,
    pub(super) series: Option<Series>,
    pub(super) gated: bool,
}

impl Key {
    pub(super) fn of(problem: &Problem<'_>, isa: Isa) -> Self {
        let shape = problem.shape;
        let split = problem.options.split;
        let most_keys = match (problem.storage, split) {
            // Keys of a ring never end, and neither would the spans.
            (Storage::Ring, Split::Keys(_)) => shape.keys.checked_next_power_of_two().unwrap_or(shape.keys),
            _ => problem.most_keys.max(shape.keys),
        };
        Self {
            shape,
            most_keys,
            q_dtype: problem.q_dtype(),
            kv_dtype: problem.kv_dtype(),
            native: problem.native(),
            f32_on_tiles: problem.f32_on_tiles(),
            storage: problem.storage,
            mixed: problem.mixed,
            isa,
            family: problem.options.weighting.family(),
            mask: problem.mask_class(),
            kind: problem.weighting.kind(),
            numerics: problem.options.numerics,
            split,
            indexed: problem.index.is_some(),
            form: problem.options.form,
            series: linear::series_of(problem),
            gated: problem.options.gates.is_some(),
        }
    }

    /// Whether a plan that was made for `self` runs problems that are `other`: of the same kind, and no larger.
    pub(super) fn serves(&self, other: &Self) -> bool {
        let (most, found) = (&self.shape, &other.shape);
        let fits = found.batch <= most.batch
            && found.queries <= most.queries
            && found.packed_rows <= most.packed_rows
            && found.packed_rows.is_some() == most.packed_rows.is_some()
            && found.keys <= self.most_keys;
        let shape = Shape {
            query_heads: found.query_heads,
            kv_heads: found.kv_heads,
            head_dim: found.head_dim,
            value_dim: found.value_dim,
            ..*most
        };
        fits && *self == Self { shape, most_keys: self.most_keys, mixed: self.mixed, ..*other }
    }

    /// The class, for profiles.
    pub(super) fn class(&self) -> ClassRef<'static> {
        let Self { shape, isa, kv_dtype, family, mask, mixed, .. } = *self;
        let length = |own| if mixed { ANY_LENGTH } else { own };
        ClassRef {
            isa: isa.name(),
            dtype: kv_dtype.name(),
            family,
            mask,
            head_dim: shape.head_dim,
            value_dim: shape.value_dim,
            keys: length(shape.keys),
            queries: length(shape.queries),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            shape,
            most_keys,
            q_dtype,
            kv_dtype,
            storage,
            isa,
            family,
            mask,
            kind,
            numerics,
            split,
            indexed,
            ..
        } = self;
        write!(f, "{shape}, ")?;
        match storage {
            Storage::Padded => {}
            storage => write!(f, "{} keys, ", storage.name())?,
        }
        if *most_keys != shape.keys && *storage != Storage::Ring {
            write!(f, "up to {most_keys} keys, ")?;
        }
        write!(f, "{q_dtype}, ")?;
        if kv_dtype != q_dtype {
            write!(f, "k and v {kv_dtype}, ")?;
        }
        let ties = if *kind == Kind::TiedRows { " of all ties" } else { "" };
        write!(f, "{} weights{ties}, {} mask, {isa}", family.name(), mask.name())?;
        let pairs = [*q_dtype, *kv_dtype] == [Dtype::Bf16; 2];
        match self.native {
            Native::Never if pairs || *kv_dtype == Dtype::Int8 => f.write_str(", widened")?,
            Native::Always if pairs => f.write_str(", natively multiplied")?,
            _ => {}
        }
        if !self.f32_on_tiles && self.kind == Kind::Weighted && *numerics == Numerics::Machine && !*indexed {
            f.write_str(", f32 not on tiles")?;
        }
        if *indexed {
            f.write_str(", indexed")?;
        }
        match split {
            Split::Auto => {}
            Split::Never => f.write_str(", never split")?,
            Split::Keys(keys) => write!(f, ", split every {keys} keys")?,
        }
        if self.form != Form::Auto {
            write!(f, ", {} form", self.form.name())?;
        }
        if self.gated {
            f.write_str(", gated")?;
        }
        if *numerics == Numerics::Portable { f.write_str(", portable numerics") } else { Ok(()) }
    }
}
