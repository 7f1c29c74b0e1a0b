//! Tensors of any element type that own their elements.

use regard_kernels::tensor::{Dtype, Quantised, Tensor, TensorMut};
use regard_kernels::view::{View, ViewError, ViewMut};
use regard_simd::{Element, advise_large_pages, bf16, f16};

/// The elements of a tensor, in the order of memory.
#[derive(Clone, Debug, PartialEq)]
pub enum Elements {
    /// See [`Dtype::F32`].
    F32(Vec<f32>),
    /// See [`Dtype::F16`].
    F16(Vec<f16>),
    /// See [`Dtype::Bf16`].
    Bf16(Vec<bf16>),
    /// See [`Dtype::Int8`]: bytes, and the scale of each row.
    Int8(Vec<i8>, Vec<f32>),
}

impl Elements {
    /// These numbers, each rounded to the nearest of its type; `None` for bytes, which take a scale.
    pub fn rounded(data: Vec<f32>, dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32(data)),
            Dtype::F16 => Some(Self::F16(data.into_iter().map(f16::narrow).collect())),
            Dtype::Bf16 => Some(Self::Bf16(data.into_iter().map(bf16::narrow).collect())),
            Dtype::Int8 => None,
        }
    }

    /// The numbers, scales not applied.
    pub fn widened(&self) -> Vec<f32> {
        fn widened<T: Element>(data: &[T]) -> Vec<f32> {
            data.iter().map(|x| x.widen()).collect()
        }
        match self {
            Self::F32(data) => data.clone(),
            Self::F16(data) => widened(data),
            Self::Bf16(data) => widened(data),
            Self::Int8(data, _) => widened(data),
        }
    }

    /// The element type.
    pub fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::F16(_) => Dtype::F16,
            Self::Bf16(_) => Dtype::Bf16,
            Self::Int8(..) => Dtype::Int8,
        }
    }
}

/// The order of dimensions in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// `[batch, heads, rows, columns]`
    HeadsFirst,
    /// `[batch, rows, heads, columns]`
    RowsFirst,
}

impl Order {
    /// `[batch, heads, rows, columns]` in this order, or back: it exchanges two dimensions or none.
    pub fn arrange(self, [a, b, c, d]: [usize; 4]) -> [usize; 4] {
        match self {
            Self::HeadsFirst => [a, b, c, d],
            Self::RowsFirst => [a, c, b, d],
        }
    }

    /// A contiguous tensor of this `[batch, heads, rows, columns]`.
    ///
    /// # Errors
    /// As for [`View::strided`].
    pub fn view<T>(self, data: &[T], shape: [usize; 4]) -> Result<View<'_, T>, ViewError> {
        match self {
            Self::HeadsFirst => View::bhsd(data, shape),
            Self::RowsFirst => View::bshd(data, self.arrange(shape)),
        }
    }

    /// The same, to be written.
    ///
    /// # Errors
    /// As for [`ViewMut::bhsd`].
    pub fn view_mut<T>(self, data: &mut [T], shape: [usize; 4]) -> Result<ViewMut<'_, T>, ViewError> {
        match self {
            Self::HeadsFirst => ViewMut::bhsd(data, shape),
            Self::RowsFirst => ViewMut::bshd(data, self.arrange(shape)),
        }
    }
}

/// A contiguous tensor that owns its elements, perhaps several times over: copies hold the same numbers in other memory.
#[derive(Clone, Debug)]
pub struct Array {
    elements: Elements,
    shape: [usize; 4],
    scales: [usize; 4],
    order: Order,
    copies: usize,
    /// Where the copies of the elements start, and of their scales.
    places: [Places; 2],
}

/// The first element of copy 0, and from a copy to the next.
#[derive(Clone, Copy, Debug)]
struct Places {
    start: usize,
    stride: usize,
}

/// Bytes of a cache line.
const LINE: usize = 64;

impl Array {
    /// A tensor of these elements; `shape` is `[batch, heads, rows, columns]` whatever the order of memory.
    pub fn new(elements: Elements, shape: [usize; 4], order: Order) -> Self {
        let [batch, heads, rows, _] = shape;
        let once = Places { start: 0, stride: 0 };
        Self { elements, shape, scales: [batch, heads, rows, 1], order, copies: 1, places: [once; 2] }
    }

    /// The same with scales of this shape, which is broadcast to that of the rows.
    #[must_use]
    pub fn with_scales(self, scales: [usize; 4]) -> Self {
        Self { scales, ..self }
    }

    /// The same tensor in as many copies, each of which starts at a cache line, as frameworks allocate tensors; in large pages where
    /// the system gives them, as the memory of a `KvCache` is.
    #[must_use]
    pub fn repeated(mut self, copies: usize) -> Self {
        let [data, scales] = self.places.each_mut();
        let len = self.shape.iter().product();
        match &mut self.elements {
            Elements::F32(elements) => repeat(elements, data, len, copies),
            Elements::F16(elements) => repeat(elements, data, len, copies),
            Elements::Bf16(elements) => repeat(elements, data, len, copies),
            Elements::Int8(elements, of_rows) => {
                repeat(elements, data, len, copies);
                repeat(of_rows, scales, self.scales.iter().product(), copies);
            }
        }
        self.copies = copies;
        self
    }

    /// The elements, with what lies between copies if the tensor was repeated.
    pub fn into_elements(self) -> Elements {
        self.elements
    }

    /// The element type.
    pub fn dtype(&self) -> Dtype {
        self.elements.dtype()
    }

    /// `[batch, heads, rows, columns]`
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// The order of memory.
    pub fn order(&self) -> Order {
        self.order
    }

    /// How many copies there are.
    pub fn copies(&self) -> usize {
        self.copies
    }

    /// One of the copies.
    ///
    /// # Errors
    /// [`ViewError`] if there are fewer elements than the shape has.
    ///
    /// # Panics
    /// If there is no such copy.
    pub fn tensor(&self, copy: usize) -> Result<Tensor<'_>, ViewError> {
        assert!(copy < self.copies, "copy {copy} of {}", self.copies);
        let Self { shape, order, places: [data, scales], .. } = *self;
        let at = |places: Places| places.start + copy * places.stride;
        let from = at(data);
        Ok(match &self.elements {
            Elements::F32(elements) => order.view(&elements[from..], shape)?.into(),
            Elements::F16(elements) => order.view(&elements[from..], shape)?.into(),
            Elements::Bf16(elements) => order.view(&elements[from..], shape)?.into(),
            Elements::Int8(elements, of_rows) => Quantised {
                data: order.view(&elements[from..], shape)?,
                scales: order.view(&of_rows[at(scales)..], self.scales)?,
            }
            .into(),
        })
    }

    /// The first copy, to be written.
    ///
    /// # Errors
    /// As for [`Array::tensor`].
    ///
    /// # Panics
    /// If the elements are bytes, which no kernel writes.
    pub fn tensor_mut(&mut self) -> Result<TensorMut<'_>, ViewError> {
        let Self { elements, shape, order, places: [data, _], .. } = self;
        Ok(match elements {
            Elements::F32(elements) => order.view_mut(&mut elements[data.start..], *shape)?.into(),
            Elements::F16(elements) => order.view_mut(&mut elements[data.start..], *shape)?.into(),
            Elements::Bf16(elements) => order.view_mut(&mut elements[data.start..], *shape)?.into(),
            Elements::Int8(..) => panic!("outputs are not quantised"),
        })
    }
}

/// Repeats the first copy, which has `len` elements unless there are too few, each time from a cache line on.
fn repeat<T: Copy + Default>(elements: &mut Vec<T>, places: &mut Places, len: usize, copies: usize) {
    let first = &elements[places.start..];
    let first = &first[..len.min(first.len())];
    let line = LINE / size_of::<T>();
    let stride = first.len().next_multiple_of(line);
    let mut all: Vec<T> = Vec::with_capacity(stride * copies + line);
    advise_large_pages(all.spare_capacity_mut());
    let start = all.as_ptr().align_offset(LINE).min(line);
    all.resize(start, T::default());
    for copy in 1..=copies {
        all.extend_from_slice(first);
        all.resize(start + copy * stride, T::default());
    }
    *elements = all;
    *places = Places { start, stride };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_the_same_in_other_memory() {
        let shape = [2, 3, 5, 7];
        let numbers: Vec<f32> = (0..210).map(|i| (i % 100) as f32).collect();
        let int8 = Elements::Int8(numbers.iter().map(|x| *x as i8).collect(), vec![0.5; 30]);
        let others = [Dtype::F32, Dtype::F16, Dtype::Bf16].map(|dtype| Elements::rounded(numbers.clone(), dtype));
        for elements in others.into_iter().flatten().chain([int8]) {
            assert_eq!(elements.widened(), numbers);
            for order in [Order::HeadsFirst, Order::RowsFirst] {
                let once = Array::new(elements.clone(), shape, order);
                let many = once.clone().repeated(3);
                assert_eq!((many.dtype(), many.shape(), many.copies()), (elements.dtype(), shape, 3));
                for copy in 0..3 {
                    let tensor = many.tensor(copy).unwrap();
                    assert_eq!(tensor.shape(), shape);
                    for index in [[0; 4], [1, 2, 3, 4], [1, 2, 4, 6], [0, 1, 4, 0]] {
                        assert_eq!(tensor.get(index), once.tensor(0).unwrap().get(index));
                    }
                }
                let expected = if order == Order::HeadsFirst { 94.0 } else { 80.0 };
                let scale = if elements.dtype() == Dtype::Int8 { 0.5 } else { 1.0 };
                assert_eq!(once.tensor(0).unwrap().get([0, 2, 3, 3]), expected * scale);
            }
        }
    }

    #[test]
    fn copies_start_at_cache_lines() {
        let array = Array::new(Elements::F32(vec![1.0; 21]), [1, 1, 3, 7], Order::HeadsFirst).repeated(4);
        for copy in 0..4 {
            let Ok(Tensor::F32(view)) = array.tensor(copy) else { panic!("f32 is f32") };
            assert_eq!(view.row([0, 0, 0]).as_ptr().align_offset(LINE), 0);
        }
    }

    #[test]
    fn what_was_repeated_is_repeated_as_it_was() {
        let numbers: Vec<f32> = (1..=42).map(|i| i as f32).collect();
        let bytes = numbers.iter().map(|x| *x as i8).collect();
        for elements in [Elements::F32(numbers.clone()), Elements::Int8(bytes, vec![0.5, 1.0, 2.0, 4.0, 8.0, 16.0])] {
            let once = Array::new(elements, [1, 2, 3, 7], Order::HeadsFirst);
            // Where a cache line starts differs from one allocation to the next.
            let mut again = once.clone();
            for copies in 1..20 {
                again = again.repeated(copies);
                for copy in 0..copies {
                    for (head, row, column) in [(0, 0, 0), (0, 2, 6), (1, 0, 0), (1, 2, 6)] {
                        let index = [0, head, row, column];
                        assert_eq!(again.tensor(copy).unwrap().get(index), once.tensor(0).unwrap().get(index));
                    }
                }
            }
        }
        let short = Array::new(Elements::F32(vec![1.0; 5]), [1, 2, 3, 7], Order::HeadsFirst);
        assert!(short.repeated(1).tensor(0).is_err());
    }

    #[test]
    fn outputs_are_written_in_their_order() {
        let mut array = Array::new(Elements::F32(vec![0.0; 6]), [1, 2, 3, 1], Order::RowsFirst).repeated(1);
        assert_eq!(array.tensor_mut().unwrap().shape(), [1, 2, 3, 1]);
        assert_eq!(array.tensor_mut().unwrap().strides(), [6, 1, 2, 1]);
        assert!(Array::new(Elements::F16(vec![]), [1; 4], Order::HeadsFirst).tensor(0).is_err());
        assert_eq!(Elements::rounded(vec![1.0], Dtype::Int8), None);
    }
}
