//! Tensors of the caller: slices with shape and strides whose bounds are proven once.

use std::fmt;

/// The dimensions of every tensor here, in order.
pub const DIMENSIONS: [&str; 4] = ["batch", "heads", "rows", "columns"];

/// A tensor that does not fit the slice that is to hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ViewError {
    /// The slice ends before the tensor's last element.
    TooShort {
        /// Elements that the shape and strides reach.
        needed: usize,
        /// Elements of the slice.
        len: usize,
    },
    /// The product or the offset of the last element does not fit `usize`.
    Overflow {
        /// The shape asked for.
        shape: [usize; 4],
    },
    /// Two elements of a tensor that is to be written would share memory.
    Overlap {
        /// The dimension whose stride is too small.
        dimension: &'static str,
        /// That stride in elements.
        stride: usize,
        /// The smallest stride that would do.
        needed: usize,
    },
    /// The elements of a row are not contiguous.
    RowStride {
        /// The stride of the last dimension in elements; 1 is needed.
        stride: usize,
    },
}

impl fmt::Display for ViewError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort { needed, len } => {
                write!(f, "shape and strides reach {needed} elements, but the slice has {len}")
            }
            Self::Overflow { shape } => write!(f, "the size of shape {shape:?} overflows"),
            Self::Overlap { dimension, stride, needed } => write!(
                f,
                "elements to be written overlap: stride {stride} of dimension {dimension} must be at least {needed}"
            ),
            Self::RowStride { stride } => {
                write!(f, "the last dimension must be contiguous, but its stride is {stride} instead of 1")
            }
        }
    }
}

impl std::error::Error for ViewError {}

/// A read-only tensor `[batch, heads, rows, columns]`. Strides are in elements; 0 repeats a dimension.
#[derive(Clone, Copy, Debug)]
pub struct View<'a, T> {
    data: &'a [T],
    shape: [usize; 4],
    strides: [usize; 4],
}

/// A tensor `[batch, heads, rows, columns]` to be written; no two of its elements share memory, and rows are contiguous.
#[derive(Debug)]
pub struct ViewMut<'a, T> {
    data: &'a mut [T],
    shape: [usize; 4],
    strides: [usize; 4],
}

/// Strides of the layout `[batch, heads, rows, columns]`, contiguous.
fn bhsd_strides([_, heads, rows, columns]: [usize; 4]) -> Option<[usize; 4]> {
    let head = rows.checked_mul(columns)?;
    Some([heads.checked_mul(head)?, head, columns, 1])
}

/// Strides of the layout `[batch, rows, heads, columns]`, contiguous, in the order of [`DIMENSIONS`].
fn bshd_strides([_, heads, rows, columns]: [usize; 4]) -> Option<[usize; 4]> {
    let row = heads.checked_mul(columns)?;
    Some([rows.checked_mul(row)?, columns, row, 1])
}

/// Elements from the start of the slice to the end of the tensor's last element; 0 for a tensor without elements.
fn reach(shape: [usize; 4], strides: [usize; 4]) -> Result<usize, ViewError> {
    let overflow = ViewError::Overflow { shape };
    // The number of elements is checked too, and without the zeros: sizes are computed from parts of shapes elsewhere.
    let sizes = shape.iter().filter(|size| **size > 0);
    let elements = sizes.copied().try_fold(1_usize, usize::checked_mul);
    if elements.is_none_or(|elements| elements > isize::MAX as usize / 8) {
        return Err(overflow);
    }
    if shape.contains(&0) {
        return Ok(0);
    }
    let mut last = 0_usize;
    for (size, stride) in shape.into_iter().zip(strides) {
        let offset = (size - 1).checked_mul(stride).ok_or(overflow.clone())?;
        last = last.checked_add(offset).ok_or(overflow.clone())?;
    }
    last.checked_add(1).ok_or(overflow)
}

fn check_bounds(shape: [usize; 4], strides: [usize; 4], len: usize) -> Result<(), ViewError> {
    let needed = reach(shape, strides)?;
    if needed > len { Err(ViewError::TooShort { needed, len }) } else { Ok(()) }
}

/// Elements from the start of the slice to row 0 of a head. Wraps, as strides of a tensor without elements may be anything.
pub(crate) fn head_offset(strides: [usize; 4], batch: usize, head: usize) -> usize {
    batch.wrapping_mul(strides[0]).wrapping_add(head.wrapping_mul(strides[1]))
}

impl<'a, T> View<'a, T> {
    /// A tensor with any strides.
    ///
    /// # Errors
    /// [`ViewError`] if an element lies outside of `data` or a size overflows.
    pub fn strided(data: &'a [T], shape: [usize; 4], strides: [usize; 4]) -> Result<Self, ViewError> {
        check_bounds(shape, strides, data.len())?;
        Ok(Self { data, shape, strides })
    }

    /// A contiguous tensor in the layout `[batch, heads, rows, columns]` (PyTorch's).
    ///
    /// # Errors
    /// As for [`View::strided`].
    pub fn bhsd(data: &'a [T], [batch, heads, rows, columns]: [usize; 4]) -> Result<Self, ViewError> {
        let shape = [batch, heads, rows, columns];
        Self::strided(data, shape, bhsd_strides(shape).ok_or(ViewError::Overflow { shape })?)
    }

    /// A contiguous tensor in the layout `[batch, rows, heads, columns]` (FlashAttention's); `shape` is given in that
    /// order.
    ///
    /// # Errors
    /// As for [`View::strided`].
    pub fn bshd(data: &'a [T], [batch, rows, heads, columns]: [usize; 4]) -> Result<Self, ViewError> {
        let shape = [batch, heads, rows, columns];
        Self::strided(data, shape, bshd_strides(shape).ok_or(ViewError::Overflow { shape })?)
    }

    /// A contiguous tensor in the layout `[rows, heads, columns]`, in which sequences lie one after the other (packed, as
    /// in FlashAttention's variable-length functions): its shape is `[1, heads, rows, columns]`.
    ///
    /// # Errors
    /// As for [`View::strided`].
    pub fn thd(data: &'a [T], [rows, heads, columns]: [usize; 3]) -> Result<Self, ViewError> {
        Self::bshd(data, [1, rows, heads, columns])
    }

    /// The same data seen as `shape`, with every dimension of size 1 repeated where `shape` has more.
    ///
    /// # Errors
    /// The first dimension that is neither 1 nor the size asked for, as an index into [`DIMENSIONS`].
    pub fn broadcast(self, shape: [usize; 4]) -> Result<Self, usize> {
        let mut strides = self.strides;
        for dimension in 0..4 {
            if self.shape[dimension] == shape[dimension] {
                continue;
            }
            if self.shape[dimension] != 1 {
                return Err(dimension);
            }
            strides[dimension] = 0;
        }
        Ok(Self { data: self.data, shape, strides })
    }

    /// `blocks` blocks of `rows` rows each, which follow each other from row `first` of a batch entry on, as batch entries of
    /// their own.
    ///
    /// # Panics
    /// If there are not as many rows.
    #[must_use]
    pub fn blocks(self, batch: usize, first: usize, [blocks, rows]: [usize; 2]) -> Self {
        let [entries, heads, all, columns] = self.shape;
        let end = blocks.checked_mul(rows).and_then(|rows| rows.checked_add(first));
        assert!(batch < entries && end.is_some_and(|end| end <= all), "{blocks} blocks of {rows} from {first} on");
        let shape = [blocks, heads, rows, columns];
        let [batch_stride, head_stride, row_stride, column_stride] = self.strides;
        if shape.contains(&0) {
            return Self { data: &[], shape, strides: self.strides };
        }
        // Within the bounds of the view.
        let data = &self.data[batch * batch_stride + first * row_stride..];
        let block_stride = if blocks > 1 { rows * row_stride } else { 0 };
        Self { data, shape, strides: [block_stride, head_stride, row_stride, column_stride] }
    }

    /// `[batch, heads, rows, columns]`
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// Elements from an index to the next, per dimension.
    pub fn strides(&self) -> [usize; 4] {
        self.strides
    }

    /// The element at an index.
    ///
    /// # Panics
    /// If the index is outside of the shape.
    pub fn get(&self, index: [usize; 4]) -> &'a T {
        assert!((0..4).all(|i| index[i] < self.shape[i]), "index {index:?} outside of {:?}", self.shape);
        &self.data[(0..4).map(|i| index[i] * self.strides[i]).sum::<usize>()]
    }

    /// The elements of a row, by batch entry, head and row.
    ///
    /// # Panics
    /// If the index is outside of the shape, or rows are not contiguous.
    pub fn row(&self, [batch, head, row]: [usize; 3]) -> &'a [T] {
        let columns = self.shape[3];
        if columns == 0 {
            return &[];
        }
        assert!(columns == 1 || self.strides[3] == 1, "rows are not contiguous: stride {}", self.strides[3]);
        assert!((0..3).all(|i| [batch, head, row][i] < self.shape[i]), "row {:?}", [batch, head, row]);
        let start = batch * self.strides[0] + head * self.strides[1] + row * self.strides[2];
        &self.data[start..start + columns]
    }

    /// Pointer to row 0 of a head; meaningless for a tensor without elements.
    pub(crate) fn head(&self, batch: usize, head: usize) -> *const T {
        debug_assert!(batch < self.shape[0] && head < self.shape[1]);
        self.data.as_ptr().wrapping_add(head_offset(self.strides, batch, head))
    }
}

impl<'a> From<View<'a, bool>> for View<'a, u8> {
    fn from(view: View<'a, bool>) -> Self {
        let View { data, shape, strides } = view;
        // SAFETY: `bool` has the size and alignment of `u8`, and its values 0 and 1 are values of `u8`.
        let data = unsafe { std::slice::from_raw_parts(data.as_ptr().cast::<u8>(), data.len()) };
        Self { data, shape, strides }
    }
}

impl<'a, T> ViewMut<'a, T> {
    /// A tensor with any strides whose rows are contiguous and whose elements do not overlap.
    ///
    /// # Errors
    /// [`ViewError`] if an element lies outside of `data`, a size overflows, rows are not contiguous, or elements share
    /// memory. Overlap is judged by nesting: sorted by stride, each dimension must reach past the whole of the smaller
    /// ones, as it does in every layout that comes from permuting, slicing or padding a contiguous tensor.
    pub fn strided(data: &'a mut [T], shape: [usize; 4], strides: [usize; 4]) -> Result<Self, ViewError> {
        check_bounds(shape, strides, data.len())?;
        if !shape.contains(&0) {
            if strides[3] != 1 && shape[3] > 1 {
                return Err(ViewError::RowStride { stride: strides[3] });
            }
            let mut order = [0, 1, 2, 3];
            order.sort_by_key(|dimension| strides[*dimension]);
            let mut needed = 1;
            for dimension in order.into_iter().filter(|dimension| shape[*dimension] > 1) {
                let stride = strides[dimension];
                if stride < needed {
                    return Err(ViewError::Overlap { dimension: DIMENSIONS[dimension], stride, needed });
                }
                // In bounds, so it does not overflow.
                needed += (shape[dimension] - 1) * stride;
            }
        }
        Ok(Self { data, shape, strides })
    }

    /// A contiguous tensor in the layout `[batch, heads, rows, columns]`.
    ///
    /// # Errors
    /// As for [`ViewMut::strided`].
    pub fn bhsd(data: &'a mut [T], [batch, heads, rows, columns]: [usize; 4]) -> Result<Self, ViewError> {
        let shape = [batch, heads, rows, columns];
        Self::strided(data, shape, bhsd_strides(shape).ok_or(ViewError::Overflow { shape })?)
    }

    /// A contiguous tensor in the layout `[batch, rows, heads, columns]`; `shape` is given in that order.
    ///
    /// # Errors
    /// As for [`ViewMut::strided`].
    pub fn bshd(data: &'a mut [T], [batch, rows, heads, columns]: [usize; 4]) -> Result<Self, ViewError> {
        let shape = [batch, heads, rows, columns];
        Self::strided(data, shape, bshd_strides(shape).ok_or(ViewError::Overflow { shape })?)
    }

    /// A contiguous tensor in the packed layout `[rows, heads, columns]`; its shape is `[1, heads, rows, columns]`.
    ///
    /// # Errors
    /// As for [`ViewMut::strided`].
    pub fn thd(data: &'a mut [T], [rows, heads, columns]: [usize; 3]) -> Result<Self, ViewError> {
        Self::bshd(data, [1, rows, heads, columns])
    }

    /// `[batch, heads, rows, columns]`
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// Elements from an index to the next, per dimension.
    pub fn strides(&self) -> [usize; 4] {
        self.strides
    }

    /// The same tensor for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_, T> {
        ViewMut { data: self.data, shape: self.shape, strides: self.strides }
    }

    /// Pointer to the first element.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut T {
        self.data.as_mut_ptr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_name_the_same_element() {
        let data: Vec<usize> = (0..2 * 3 * 5 * 7).collect();
        let bhsd = View::bhsd(&data, [2, 3, 5, 7]).unwrap();
        assert_eq!(*bhsd.get([1, 2, 4, 6]), ((3 + 2) * 5 + 4) * 7 + 6);
        let bshd = View::bshd(&data, [2, 5, 3, 7]).unwrap();
        assert_eq!(bshd.shape(), [2, 3, 5, 7]);
        assert_eq!(*bshd.get([1, 2, 4, 6]), ((5 + 4) * 3 + 2) * 7 + 6);
        let thd = View::thd(&data, [10, 3, 7]).unwrap();
        assert_eq!(thd.shape(), [1, 3, 10, 7]);
        assert_eq!(thd.get([0, 2, 9, 6]), bshd.get([1, 2, 4, 6]));
        assert_eq!(thd.row([0, 2, 9])[6], *thd.get([0, 2, 9, 6]));
        assert_eq!(thd.row([0, 2, 9]).len(), 7);
    }

    #[test]
    fn bounds_are_exact() {
        let data = [0.0_f32; 24];
        assert!(View::bhsd(&data, [1, 2, 3, 4]).is_ok());
        let error = View::bhsd(&data[1..], [1, 2, 3, 4]).unwrap_err();
        assert_eq!(error, ViewError::TooShort { needed: 24, len: 23 });
        // Padded rows need no padding after the last one.
        assert!(View::strided(&data[..19], [1, 1, 4, 4], [99, 99, 5, 1]).is_ok());
        assert!(View::strided(&data[..18], [1, 1, 4, 4], [99, 99, 5, 1]).is_err());
        assert!(View::bhsd(&data[..0], [3, 0, usize::MAX, 4]).is_err());
        assert!(View::strided(&data[..0], [1 << 40, 1 << 40, 0, 8], [0, 0, 0, 1]).is_err());
        assert!(View::bhsd(&data[..0], [3, 0, 7, 4]).is_ok());
        assert!(matches!(View::bhsd(&data, [usize::MAX, 2, 3, 4]), Err(ViewError::Overflow { .. })));
        assert!(matches!(
            View::strided(&data, [2, 1, 1, 1], [usize::MAX, 0, 0, 1]),
            Err(ViewError::Overflow { .. } | ViewError::TooShort { .. })
        ));
    }

    #[test]
    fn outputs_may_not_overlap() {
        let mut data = [0.0_f32; 64];
        assert!(ViewMut::bshd(&mut data, [2, 4, 2, 4]).is_ok());
        let error = ViewMut::strided(&mut data, [1, 2, 3, 4], [64, 4, 4, 1]).unwrap_err();
        assert!(matches!(error, ViewError::Overlap { .. }), "{error}");
        assert!(matches!(ViewMut::strided(&mut data, [1, 1, 3, 4], [0, 0, 3, 1]), Err(ViewError::Overlap { .. })));
        assert!(matches!(ViewMut::strided(&mut data, [1, 1, 3, 4], [0, 0, 16, 2]), Err(ViewError::RowStride { .. })));
        assert!(matches!(ViewMut::strided(&mut data, [2, 1, 3, 4], [0, 0, 4, 1]), Err(ViewError::Overlap { .. })));
    }

    #[test]
    fn broadcasting_repeats_ones() {
        let data = [1, 2, 3];
        let view = View::bhsd(&data, [1, 1, 1, 3]).unwrap().broadcast([2, 4, 5, 3]).unwrap();
        assert_eq!(*view.get([1, 3, 4, 2]), 3);
        assert_eq!(View::bhsd(&data, [1, 1, 1, 3]).unwrap().broadcast([2, 4, 5, 4]).unwrap_err(), 3);
    }
}
