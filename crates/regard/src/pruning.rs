//! An index of keys, by which kernels leave out those that cannot matter.

use regard_kernels::tensor::Tensor;

use crate::Error;

/// Bounds of the scores of blocks of 64 keys: built once for a tensor of keys, it may spare hard, average-hard and softmax
/// attention most of the scores.
///
/// Each block is held by a ball, from which follows how large its scores with a query can be at most, and how large the
/// largest of them is at least. Blocks whose scores all lie below the largest score of the row are left out:
///
/// - **Hard and average-hard attention**: the result is the same bit for bit.
/// - **Softmax**: left out are keys whose weights sum to less than `2^-26` of their row, which moves the exact result by less
///   than `2^-25 max |v|`; what is computed is rounded as ever. That takes scores far apart: a low temperature. The index must
///   know the values ([`KeyIndex::with_values`]).
/// - Other weightings, scores with soft-cap, ALiBi or bias, mask tensors, and products of bf16 or of integers make no use of it.
///   [`Plan::explain`](crate::Plan::explain) tells, and [`Attention::native_half`](crate::Attention::native_half) and
///   [`Attention::native_int8`](crate::Attention::native_int8) refuse such products. Causal masks, windows and lengths are fine.
///
/// It pays where keys come in clusters and those of a cluster follow each other: 64 of them or more. Queries may come in any
/// order, and there may be any number: with a few, less of K and V is read. Where a sample of the queries finds nothing to leave
/// out, the index is not used.
///
/// An index describes the keys (and values) that it was made of. **Once they change it must be made again**: results would be
/// those of some of the keys.
///
/// ```
/// use regard::{Attention, KeyIndex, Problem, View, Weighting};
///
/// // Two clusters of 64 keys each; the queries belong to the second.
/// let k: Vec<f32> = (0..128 * 4).map(|i| if i < 256 { 1.0 } else { -1.0 } + (i % 7) as f32 / 100.0).collect();
/// let v: Vec<f32> = (0..128).map(|i| i as f32).collect();
/// let q = vec![-1.0; 20 * 4];
/// let k = View::bhsd(&k, [1, 1, 128, 4])?;
/// let index = KeyIndex::new(k)?;
/// let options = Attention::new(Weighting::HardLeft);
/// let problem = Problem::new(&options, View::bhsd(&q, [1, 1, 20, 4])?, k, View::bhsd(&v, [1, 1, 128, 1])?)?;
/// let pruned = problem.clone().with_index(&index)?.attention()?;
/// assert_eq!(pruned, problem.attention()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct KeyIndex(regard_kernels::KeyIndex);

impl KeyIndex {
    /// The index of `k`, `[batch, kv_heads, keys, d]`, of any element type; for selections.
    ///
    /// # Errors
    /// [`Error::RowStride`] if the last dimension is not contiguous.
    pub fn new<'a>(k: impl Into<Tensor<'a>>) -> Result<Self, Error> {
        let k = k.into();
        contiguous("k", &k)?;
        Ok(Self(regard_kernels::KeyIndex::new(&k, None)))
    }

    /// The same for softmax too: it knows which of the values `v`, `[batch, kv_heads, keys, d_v]`, are NaN or Inf, which
    /// reach the result at any weight.
    ///
    /// # Errors
    /// [`Error::RowStride`] if the last dimension is not contiguous, [`Error::Dimension`] if k and v differ in batch, heads or
    /// keys.
    pub fn with_values<'a>(k: impl Into<Tensor<'a>>, v: impl Into<Tensor<'a>>) -> Result<Self, Error> {
        let (k, v) = (k.into(), v.into());
        contiguous("k", &k)?;
        contiguous("v", &v)?;
        same("v", v.shape(), k.shape(), 3, "k")?;
        Ok(Self(regard_kernels::KeyIndex::new(&k, Some(&v))))
    }

    /// The shape of the keys, `[batch, kv_heads, keys, d]`.
    pub fn shape(&self) -> [usize; 4] {
        self.0.shape()
    }

    /// Bytes that the index takes.
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }

    pub(crate) fn inner(&self) -> &regard_kernels::KeyIndex {
        &self.0
    }

    /// Whether the index may be that of keys of this shape, and of values of so many columns.
    pub(crate) fn check(&self, keys: [usize; 4], value_columns: usize) -> Result<(), Error> {
        same("the index", self.shape(), keys, 4, "k")?;
        match self.0.value_columns() {
            Some(found) if found != value_columns => Err(Error::Dimension {
                tensor: "the index",
                dimension: "columns of v",
                found,
                expected: value_columns,
                reason: "v",
            }),
            _ => Ok(()),
        }
    }
}

/// The first `dimensions` dimensions agree.
fn same(
    tensor: &'static str,
    found: [usize; 4],
    expected: [usize; 4],
    dimensions: usize,
    reason: &'static str,
) -> Result<(), Error> {
    match (0..dimensions).find(|i| found[*i] != expected[*i]) {
        None => Ok(()),
        Some(i) => Err(Error::Dimension {
            tensor,
            dimension: ["batch", "heads", "keys", "columns"][i],
            found: found[i],
            expected: expected[i],
            reason,
        }),
    }
}

fn contiguous(tensor: &'static str, view: &Tensor<'_>) -> Result<(), Error> {
    let stride = view.strides()[3];
    if stride != 1 && view.shape()[3] > 1 { Err(Error::RowStride { tensor, stride }) } else { Ok(()) }
}
