//! Tensors and options, checked: the last step that can fail for what a caller says.

use std::sync::Arc;

use regard_kernels::launch::{Call, PageTables, Sequence, Temperatures};
use regard_kernels::table::FIXED_COLUMNS;
use regard_kernels::tensor::{Dtype, Tensor, TensorMut};
use regard_kernels::view::{View, ViewError, ViewMut};
use regard_kernels::weighting::{AnyWeighting, Kind};
use regard_kernels::{Band, Shift};
use regard_profile::MaskClass;
use regard_simd::Level;

use crate::layout::{self, Placement, Storage, Table};
use crate::options::{Attention, Count, Native, Numerics, Temperature};
use crate::{Error, Execution, KeyIndex, Keys, Plan, Queries, Setup, Shape, SigmoidBias, Weighting, checks, linear};

/// A checked problem: it can be planned and run without further errors.
#[derive(Clone, Debug)]
pub struct Problem<'a> {
    pub(crate) options: Attention<'a>,
    pub(crate) weighting: Arc<dyn AnyWeighting>,
    pub(crate) shape: Shape,
    pub(crate) sequences: Vec<Sequence>,
    pub(crate) storage: Storage,
    /// The most keys that a sequence in these tensors may have.
    pub(crate) most_keys: usize,
    /// Whether sequences may differ in size, so that no sizes of the problem could stand for those of a sequence.
    pub(crate) mixed: bool,
    q: Tensor<'a>,
    k: Tensor<'a>,
    v: Tensor<'a>,
    table: Option<Table<'a>>,
    keep: Option<View<'a, u8>>,
    bias: Option<View<'a, f32>>,
    pub(crate) index: Option<&'a KeyIndex>,
    scale: f32,
    /// The level that the options ask for.
    pub(crate) level: Option<Level>,
}

impl<'a> Problem<'a> {
    /// Checks tensors and options against each other.
    ///
    /// q is `[batch, query_heads, queries, d]`, k `[batch, kv_heads, keys, d]`, v `[batch, kv_heads, keys, d_v]`. Rows
    /// are contiguous; all other strides are free. q is f32, f16 or bf16; k and v are of one element type, which may be
    /// another than that of q, and int8 too.
    ///
    /// # Errors
    /// [`Error`]: the first thing found wrong, with its values.
    pub fn new(
        options: &Attention<'a>,
        q: impl Into<Tensor<'a>>,
        k: impl Into<Tensor<'a>>,
        v: impl Into<Tensor<'a>>,
    ) -> Result<Self, Error> {
        Self::ragged(options, q, Queries::Padded, k, v, Keys::Padded)
    }

    /// The same for sequences of different lengths, packed one after the other, on pages, or in rings: `queries` says
    /// where the queries of each sequence lie in q, `keys` where its keys and values lie in k and v. Any two go
    /// together; there are as many sequences of keys as of queries, and those without queries or keys are legal.
    ///
    /// Outputs, log-sum-exps and temperatures of each row lie like q: `[batch, query_heads, rows of q, ..]`. Mask
    /// tensors and biases are `[sequences, query_heads, longest queries, longest keys]`, or broadcastable to that.
    ///
    /// ```
    /// use regard::{Align, Attention, Keys, Pages, Problem, Queries, View};
    ///
    /// // Two sequences, of 3 and 2 queries; the first has 6 keys, on pages 2 and 0, the second 4, on page 1.
    /// let q = vec![0.5; 5 * 8];
    /// let (k, v) = (vec![0.25; 3 * 4 * 8], vec![1.0; 3 * 4 * 8]);
    /// let pages = Pages { table: &[2, 0, 1, u32::MAX], pages_per_sequence: 2, lengths: &[6, 4] };
    /// let problem = Problem::ragged(
    ///     &Attention::softmax().causal(Align::BottomRight),
    ///     View::thd(&q, [5, 1, 8])?,
    ///     Queries::Packed(&[0, 3, 5]),
    ///     View::bhsd(&k, [3, 1, 4, 8])?,
    ///     View::bhsd(&v, [3, 1, 4, 8])?,
    ///     Keys::Paged(pages),
    /// )?;
    /// assert_eq!(problem.shape().out(), [1, 1, 5, 8]);
    /// assert_eq!(problem.attention()?, [1.0; 5 * 8]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error`]: the first thing found wrong, with its values.
    pub fn ragged(
        options: &Attention<'a>,
        q: impl Into<Tensor<'a>>,
        queries: Queries<'_>,
        k: impl Into<Tensor<'a>>,
        v: impl Into<Tensor<'a>>,
        keys: Keys<'a>,
    ) -> Result<Self, Error> {
        let (q, k, v) = (q.into(), k.into(), v.into());
        checks::elements(&q, &k, &v)?;
        let placement = layout::place(queries, keys, q.shape(), k.shape())?;
        Self::placed(options, [q, k, v], queries, placement)
    }

    /// The same where places are known.
    pub(crate) fn placed(
        options: &Attention<'a>,
        [q, k, v]: [Tensor<'a>; 3],
        queries: Queries<'_>,
        placement: Placement<'a>,
    ) -> Result<Self, Error> {
        let Placement { places, table, storage, most_keys, mixed } = placement;
        checks::sizes(q.shape(), k.shape(), v.shape())?;
        let [k, v] = [checks::scales(k, "the scales of k")?, checks::scales(v, "the scales of v")?];
        let [_, query_heads, rows, head_dim] = q.shape();
        let shape = Shape {
            batch: places.len(),
            query_heads,
            kv_heads: k.shape()[1],
            queries: match queries {
                Queries::Padded => rows,
                Queries::Packed(_) => places.iter().map(|place| place.queries).max().unwrap_or(0),
            },
            keys: match storage {
                Storage::Padded => k.shape()[2],
                _ => places.iter().map(|place| place.keys).max().unwrap_or(0),
            },
            head_dim,
            value_dim: v.shape()[3],
            packed_rows: matches!(queries, Queries::Packed(_)).then_some(rows),
        };
        checks::meaning(options)?;
        checks::numbers(options, &shape)?;
        let weighting = options.weighting.functions()?;
        linear::check(options, storage, shape.head_dim)?;
        // Keys are looked for in the batch entry of their queries.
        let repeat = |tensor| if table.is_some() { tensor } else { layout::repeat_batch(tensor, q.shape()[0]) };
        Ok(Self {
            weighting,
            sequences: checks::sequences(options, &places)?,
            keep: options.keep_mask.map(|mask| checks::broadcast("keep_mask", mask, &shape)).transpose()?,
            bias: options.bias.map(|bias| checks::broadcast("bias", bias, &shape)).transpose()?,
            level: options.isa.map(Level::of).transpose()?,
            scale: options.scale.unwrap_or(1.0 / (shape.head_dim.max(1) as f32).sqrt()),
            options: options.clone(),
            shape,
            storage,
            most_keys,
            mixed: mixed || options.key_lengths.is_some(),
            index: None,
            q,
            k: repeat(k),
            v: repeat(v),
            table,
        })
    }

    /// The same with an index of the keys, which may save looking at most of them: see [`KeyIndex`]. It must have been made of
    /// these keys, as they are now.
    ///
    /// # Errors
    /// [`Error::Dimension`] if the index was made of keys or values of another shape, [`Error::IndexedKeys`] if keys are packed,
    /// on pages or in a ring.
    pub fn with_index(self, index: &'a KeyIndex) -> Result<Self, Error> {
        if self.storage != Storage::Padded || self.table.is_some() {
            return Err(Error::IndexedKeys { found: self.storage.name() });
        }
        let mut keys = self.k.shape();
        if self.k.strides()[0] == 0 && index.shape()[0] == 1 {
            keys[0] = 1;
        }
        index.check(keys, self.v.shape()[3])?;
        Ok(Self { index: Some(index), ..self })
    }

    /// The sizes.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The options that the problem was made with.
    pub fn options(&self) -> &Attention<'a> {
        &self.options
    }

    /// Rows, valid keys and mask band of each sequence.
    pub fn sequences(&self) -> &[Sequence] {
        &self.sequences
    }

    /// The element type of q.
    pub fn q_dtype(&self) -> Dtype {
        self.q.dtype()
    }

    /// The element type of k and v.
    pub fn kv_dtype(&self) -> Dtype {
        self.k.dtype()
    }

    /// Plans, allocates, and computes on the rayon pool that the calling thread belongs to, if any. The output is
    /// [`Shape::out`], contiguous; rows of q that belong to no sequence are zero.
    ///
    /// # Errors
    /// [`Error::View`] if the output has more elements than can be counted, [`Error::Isa`] if `REGARD_ISA` names no
    /// level of this machine.
    pub fn attention(&self) -> Result<Vec<f32>, Error> {
        let shape = self.shape.out();
        let wrong = |source| Error::View { tensor: "out", source };
        let len = shape.into_iter().try_fold(1, usize::checked_mul).ok_or(ViewError::Overflow { shape });
        let mut out = vec![0.0_f32; len.map_err(wrong)?];
        let view = ViewMut::bhsd(&mut out, shape).map_err(wrong)?;
        let plan = Plan::new(self, Setup::global()?);
        let execution = Execution::CurrentPool;
        let mut workspace = vec![0.0; plan.workspace_len(execution.threads())];
        plan.run(self, TensorMut::F32(view), None, &mut workspace, execution)?;
        Ok(out)
    }

    /// How many (query, key) pairs are visible, over all heads and sequences. A mask tensor is counted pair by pair.
    pub fn visible_pairs(&self) -> u128 {
        let heads = self.shape.query_heads;
        let mut pairs = 0;
        for (index, sequence) in self.sequences.iter().enumerate() {
            let Some(keep) = &self.keep else {
                pairs += sequence.band.pairs(sequence.queries, sequence.keys) * heads as u128;
                continue;
            };
            for head in 0..heads {
                for row in 0..sequence.queries {
                    let seen = sequence.band.visible(row, sequence.keys);
                    pairs += seen.filter(|key| *keep.get([index, head, row, *key]) != 0).count() as u128;
                }
            }
        }
        pairs
    }

    /// Floating-point operations of both products over visible pairs: `2 (d + d_v)` for each.
    pub fn flops(&self) -> f64 {
        self.visible_pairs() as f64 * 2.0 * (self.shape.head_dim + self.shape.value_dim) as f64
    }

    /// Pairs of queries and keys before any mask, over all heads and sequences.
    pub(crate) fn pairs(&self) -> f64 {
        let pairs = |sequence: &Sequence| sequence.queries as f64 * self.held(sequence) as f64;
        let pairs: f64 = self.sequences.iter().map(pairs).sum();
        pairs * self.shape.query_heads as f64
    }

    /// Keys of a sequence that are there.
    fn held(&self, sequence: &Sequence) -> usize {
        let room = if self.storage == Storage::Ring { self.k.shape()[2] } else { usize::MAX };
        sequence.keys.min(room)
    }

    /// Bytes of the valid keys and values of all sequences, with their scales, read once.
    pub fn kv_bytes(&self) -> f64 {
        let keys: f64 = self.sequences.iter().map(|sequence| self.held(sequence) as f64).sum();
        let elements = (self.shape.head_dim + self.shape.value_dim) as f64;
        let scales = if self.kv_dtype() == Dtype::Int8 { 2 * size_of::<f32>() } else { 0 };
        keys * self.shape.kv_heads as f64 * (elements * self.kv_dtype().bytes() as f64 + scales as f64)
    }

    /// The class of mask, which decides which profile entries apply.
    pub fn mask_class(&self) -> MaskClass {
        if self.keep.is_some() {
            MaskClass::Tensor
        } else if self.sequences.iter().any(|sequence| sequence.band != Band::FULL) {
            MaskClass::Banded
        } else {
            MaskClass::Full
        }
    }

    /// Which use is asked for of instructions for dot products of bf16 or of integers, whichever k and v are. Those of integers
    /// pay wherever they were measured: they have twice the peak of f32 on Zen 4 and on a Xeon.
    pub(crate) fn native(&self) -> Native {
        let options = &self.options;
        if options.numerics != Numerics::Machine || self.weighting.kind() != Kind::Weighted {
            return Native::Never;
        }
        match (self.q_dtype(), self.kv_dtype()) {
            (Dtype::Bf16, Dtype::Bf16) => match options.native_half {
                None => Native::WherePays,
                Some(true) => Native::Always,
                Some(false) => Native::Never,
            },
            (_, Dtype::Int8) if options.native_int8 && self.shape.head_dim <= FIXED_COLUMNS => Native::Always,
            _ => Native::Never,
        }
    }

    /// Whether f32 may be multiplied in parts on tile registers: an index has no bounds for that.
    pub(crate) fn f32_on_tiles(&self) -> bool {
        let options = &self.options;
        let weighted = self.weighting.kind() == Kind::Weighted;
        options.f32_on_tiles && options.numerics == Numerics::Machine && weighted && self.index.is_none()
    }

    /// Whether rows of K or V lie so far apart that they compete for the same cache sets: every 4096 bytes, as in the
    /// layout `[batch, rows, heads, columns]` with 8 heads of 128 f32. Copying them block by block then pays (0.88
    /// against 0.84 of the peak at 2048 x 2048, d 128, on Zen 5; at 2048 bytes it costs 4 %). It changes no bits.
    pub(crate) fn has_hostile_strides(&self) -> bool {
        let hostile = |tensor: &Tensor<'_>| {
            // A single row may have any stride.
            let bytes = tensor.strides()[2].saturating_mul(tensor.dtype().bytes());
            tensor.shape()[2] > 1 && bytes > 0 && bytes.is_multiple_of(4096)
        };
        hostile(&self.k) || hostile(&self.v)
    }

    /// Whether a pair is visible.
    pub(crate) fn sees(&self, [index, head, row, key]: [usize; 4]) -> bool {
        let sequence = &self.sequences[index];
        sequence.band.visible(row, sequence.keys).contains(&key)
            && self.keep.is_none_or(|keep| *keep.get([index, head, row, key]) != 0)
    }

    /// Batch entry and row of a key in k and v.
    pub(crate) fn key_place(&self, index: usize, key: usize) -> [usize; 2] {
        let sequence = &self.sequences[index];
        let Some(table) = &self.table else { return [sequence.batch, sequence.first_key + key] };
        let rows = self.k.shape()[2];
        let page = key / rows % table.stride;
        [table.entries[index * table.stride + page] as usize, key % rows]
    }

    /// The problem as the kernels take it.
    pub(crate) fn call(&self) -> Call<'_> {
        let options = &self.options;
        Call {
            q: self.q,
            k: self.k,
            v: self.v,
            pages: self.table.as_ref().map(|table| PageTables {
                entries: &table.entries,
                stride: table.stride,
                ring: table.ring,
            }),
            sequences: &self.sequences,
            index: self.index.map(KeyIndex::inner),
            keep: self.keep,
            bias: self.bias,
            alibi_slopes: options.alibi_slopes,
            sinks: options.sinks,
            scale: self.scale,
            softcap: options.softcap,
            temperature: match options.temperature {
                Temperature::Constant(temperature) => Temperatures::One(temperature),
                Temperature::PerHead(temperatures) => Temperatures::PerHead(temperatures),
                Temperature::PerRow(temperatures) => Temperatures::PerRow(temperatures),
            },
            schedule: options.schedule,
            count: count(options.count),
            shift: match options.weighting {
                Weighting::Sigmoid { bias: SigmoidBias::Constant(bias) } => Shift::Constant(bias),
                Weighting::Sigmoid { bias: SigmoidBias::NegLogN } => Shift::NegLogN,
                _ => Shift::Constant(0.0),
            },
            coefficient: options.coefficient.unwrap_or(1.0),
            exponent: options.row_scale.exponent(),
            weighting: &*self.weighting,
        }
    }
}

/// The same as the kernels take it.
pub(crate) fn count(count: Count) -> regard_kernels::Count {
    match count {
        Count::AllKeys => regard_kernels::Count::AllKeys,
        Count::Visible => regard_kernels::Count::Visible,
        Count::Constant(n) => regard_kernels::Count::Constant(n),
    }
}
