//! Tensors of any element type that kernels read or write.

use regard_simd::{Element, bf16, f16};

use crate::view::{View, ViewMut};

/// An element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// Signed bytes with one f32 scale for each row and head; for keys and values.
    Int8,
}

impl Dtype {
    /// All element types.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Bf16, Self::Int8];

    /// The name, as profiles and the tool write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => f32::NAME,
            Self::F16 => f16::NAME,
            Self::Bf16 => bf16::NAME,
            Self::Int8 => i8::NAME,
        }
    }

    /// Bytes of an element, scales not counted.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Int8 => 1,
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// A read-only tensor `[batch, heads, rows, columns]` of some element type.
///
/// ```
/// use regard_kernels::tensor::{Dtype, Tensor};
/// use regard_kernels::view::View;
///
/// let data = [0.0_f32; 24];
/// let tensor = Tensor::from(View::bhsd(&data, [1, 2, 3, 4]).unwrap());
/// assert_eq!((tensor.dtype(), tensor.shape()), (Dtype::F32, [1, 2, 3, 4]));
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Tensor<'a> {
    /// See [`Dtype::F32`].
    F32(View<'a, f32>),
    /// See [`Dtype::F16`].
    F16(View<'a, f16>),
    /// See [`Dtype::Bf16`].
    Bf16(View<'a, bf16>),
    /// See [`Dtype::Int8`].
    Int8(Quantised<'a>),
}

/// Rows of signed bytes: element `c` of a row is `data[c] * scale`.
#[derive(Clone, Copy, Debug)]
pub struct Quantised<'a> {
    /// `[batch, heads, rows, columns]`
    pub data: View<'a, i8>,
    /// `[batch, heads, rows, 1]`
    pub scales: View<'a, f32>,
}

impl Tensor<'_> {
    /// The element type.
    pub fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::F16(_) => Dtype::F16,
            Self::Bf16(_) => Dtype::Bf16,
            Self::Int8(_) => Dtype::Int8,
        }
    }

    /// `[batch, heads, rows, columns]`
    pub fn shape(&self) -> [usize; 4] {
        match self {
            Self::F32(view) => view.shape(),
            Self::F16(view) => view.shape(),
            Self::Bf16(view) => view.shape(),
            Self::Int8(quantised) => quantised.data.shape(),
        }
    }

    /// Elements from an index to the next, per dimension.
    pub fn strides(&self) -> [usize; 4] {
        match self {
            Self::F32(view) => view.strides(),
            Self::F16(view) => view.strides(),
            Self::Bf16(view) => view.strides(),
            Self::Int8(quantised) => quantised.data.strides(),
        }
    }

    /// The element at an index, widened, its scale applied.
    ///
    /// # Panics
    /// If the index is outside of the shape.
    pub fn get(&self, index: [usize; 4]) -> f32 {
        match self {
            Self::F32(view) => *view.get(index),
            Self::F16(view) => view.get(index).widen(),
            Self::Bf16(view) => view.get(index).widen(),
            Self::Int8(quantised) => {
                let [batch, head, row, _] = index;
                Element::widen(*quantised.data.get(index)) * quantised.scales.get([batch, head, row, 0])
            }
        }
    }

    /// The first byte of row 0 of a head; meaningless for a tensor without elements.
    pub(crate) fn head(&self, batch: usize, head: usize) -> *const u8 {
        match self {
            Self::F32(view) => view.head(batch, head).cast(),
            Self::F16(view) => view.head(batch, head).cast(),
            Self::Bf16(view) => view.head(batch, head).cast(),
            Self::Int8(quantised) => quantised.data.head(batch, head).cast(),
        }
    }
}

impl<'a> From<View<'a, f32>> for Tensor<'a> {
    fn from(view: View<'a, f32>) -> Self {
        Self::F32(view)
    }
}

impl<'a> From<View<'a, f16>> for Tensor<'a> {
    fn from(view: View<'a, f16>) -> Self {
        Self::F16(view)
    }
}

impl<'a> From<View<'a, bf16>> for Tensor<'a> {
    fn from(view: View<'a, bf16>) -> Self {
        Self::Bf16(view)
    }
}

impl<'a> From<Quantised<'a>> for Tensor<'a> {
    fn from(quantised: Quantised<'a>) -> Self {
        Self::Int8(quantised)
    }
}

/// A tensor `[batch, heads, rows, columns]` of some element type, to be written.
#[derive(Debug)]
#[non_exhaustive]
pub enum TensorMut<'a> {
    /// See [`Dtype::F32`].
    F32(ViewMut<'a, f32>),
    /// See [`Dtype::F16`].
    F16(ViewMut<'a, f16>),
    /// See [`Dtype::Bf16`].
    Bf16(ViewMut<'a, bf16>),
}

impl TensorMut<'_> {
    /// The element type.
    pub fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::F16(_) => Dtype::F16,
            Self::Bf16(_) => Dtype::Bf16,
        }
    }

    /// `[batch, heads, rows, columns]`
    pub fn shape(&self) -> [usize; 4] {
        match self {
            Self::F32(view) => view.shape(),
            Self::F16(view) => view.shape(),
            Self::Bf16(view) => view.shape(),
        }
    }

    /// Elements from an index to the next, per dimension.
    pub fn strides(&self) -> [usize; 4] {
        match self {
            Self::F32(view) => view.strides(),
            Self::F16(view) => view.strides(),
            Self::Bf16(view) => view.strides(),
        }
    }

    /// The same tensor for a shorter time.
    pub fn reborrow(&mut self) -> TensorMut<'_> {
        match self {
            Self::F32(view) => TensorMut::F32(view.reborrow()),
            Self::F16(view) => TensorMut::F16(view.reborrow()),
            Self::Bf16(view) => TensorMut::Bf16(view.reborrow()),
        }
    }

    /// The first byte.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        match self {
            Self::F32(view) => view.as_mut_ptr().cast(),
            Self::F16(view) => view.as_mut_ptr().cast(),
            Self::Bf16(view) => view.as_mut_ptr().cast(),
        }
    }
}

impl<'a> From<ViewMut<'a, f32>> for TensorMut<'a> {
    fn from(view: ViewMut<'a, f32>) -> Self {
        Self::F32(view)
    }
}

impl<'a> From<ViewMut<'a, f16>> for TensorMut<'a> {
    fn from(view: ViewMut<'a, f16>) -> Self {
        Self::F16(view)
    }
}

impl<'a> From<ViewMut<'a, bf16>> for TensorMut<'a> {
    fn from(view: ViewMut<'a, bf16>) -> Self {
        Self::Bf16(view)
    }
}
