//! Tensors of every element type in any layout, with NaN wherever nobody may read.

use regard::{Dtype, Quantised, View, bf16, f16, quantise};
use regard_simd::Element;

use crate::{GUARD, Layout, Poison, Tensor};

/// A tensor `[batch, heads, rows, columns]` of some element type inside a larger buffer: NaN before it, after it, and in the gaps
/// between its rows (of int8, where there is none, in the gaps between its scales).
///
/// Its base is at an odd number of elements from that of the buffer, and aligned to nothing but the element.
#[derive(Clone, Debug)]
pub struct Stored {
    data: Data,
    shape: [usize; 4],
    strides: [usize; 4],
}

#[derive(Clone, Debug)]
enum Data {
    F32(Placed<f32>),
    F16(Placed<f16>),
    Bf16(Placed<bf16>),
    Int8 { data: Placed<i8>, scales: Placed<f32>, scale_strides: [usize; 4] },
}

/// A buffer, and how many of its elements from [`GUARD`] on a tensor reaches.
#[derive(Clone, Debug)]
struct Placed<T> {
    buffer: Vec<T>,
    reach: usize,
}

impl<T: Poison> Placed<T> {
    /// Places the elements of a tensor, asked for in the order of the indices.
    fn new(shape: [usize; 4], (strides, reach): ([usize; 4], usize), mut element: impl FnMut([usize; 4]) -> T) -> Self {
        let mut buffer = vec![T::poison(); GUARD + reach + GUARD];
        for index in indices(shape) {
            buffer[GUARD + place(index, strides)] = element(index);
        }
        Self { buffer, reach }
    }

    /// What the tensor reaches, and nothing more.
    fn slice(&self) -> &[T] {
        &self.buffer[GUARD..GUARD + self.reach]
    }
}

fn place(index: [usize; 4], strides: [usize; 4]) -> usize {
    (0..4).map(|i| index[i] * strides[i]).sum()
}

/// All indices of a tensor, in order.
fn indices([batch, heads, rows, columns]: [usize; 4]) -> impl Iterator<Item = [usize; 4]> {
    let index = move |i: usize| {
        let (row, column) = (i / columns, i % columns);
        [row / (heads * rows), row / rows % heads, row % rows, column]
    };
    (0..batch * heads * rows * columns).map(index)
}

impl Stored {
    /// The elements of `tensor`, rounded to an element type, in a layout. Rows of int8 are quantised by
    /// [`quantise`].
    pub fn new(tensor: &Tensor, dtype: Dtype, layout: Layout) -> Self {
        let shape = tensor.shape();
        let placed = layout.strides(shape);
        let get = |index| tensor.get(index);
        let data = match dtype {
            Dtype::F32 => Data::F32(Placed::new(shape, placed, get)),
            Dtype::F16 => Data::F16(Placed::new(shape, placed, |index| f16::narrow(get(index)))),
            Dtype::Bf16 => Data::Bf16(Placed::new(shape, placed, |index| bf16::narrow(get(index)))),
            Dtype::Int8 => {
                let elements = tensor.to_vec();
                let rows = quantise(View::bhsd(&elements, shape).expect("as long as its shape"));
                let [batch, heads, rows_of_head, _] = shape;
                let (mut quantised, mut scale) = (rows.data.iter(), rows.scales.iter());
                let scale_shape = [batch, heads, rows_of_head, 1];
                let scale_placed = layout.strides(scale_shape);
                Data::Int8 {
                    data: Placed::new(shape, placed, |_| *quantised.next().expect("an element for each place")),
                    scales: Placed::new(scale_shape, scale_placed, |_| *scale.next().expect("a scale for each row")),
                    scale_strides: scale_placed.0,
                }
            }
        };
        Self { data, shape, strides: placed.0 }
    }

    /// q, k and v in their layouts, q of one element type, k and v of another.
    pub fn three([q, k, v]: [&Tensor; 3], q_dtype: Dtype, kv_dtype: Dtype) -> [Self; 3] {
        [(q, q_dtype), (k, kv_dtype), (v, kv_dtype)].map(|(tensor, dtype)| Self::new(tensor, dtype, tensor.layout()))
    }

    /// The view of it, whose slices end with the last element.
    pub fn tensor(&self) -> regard::Tensor<'_> {
        let Self { shape, strides, .. } = *self;
        let fits = "a layout reaches as far as it says";
        match &self.data {
            Data::F32(placed) => View::strided(placed.slice(), shape, strides).expect(fits).into(),
            Data::F16(placed) => View::strided(placed.slice(), shape, strides).expect(fits).into(),
            Data::Bf16(placed) => View::strided(placed.slice(), shape, strides).expect(fits).into(),
            Data::Int8 { data, scales, scale_strides } => {
                let [batch, heads, rows, _] = shape;
                let scales = View::strided(scales.slice(), [batch, heads, rows, 1], *scale_strides).expect(fits);
                Quantised { data: View::strided(data.slice(), shape, strides).expect(fits), scales }.into()
            }
        }
    }

    /// Its element type.
    pub fn dtype(&self) -> Dtype {
        self.tensor().dtype()
    }

    /// Its elements as f32, which are exactly what it holds, in a layout.
    pub fn widened(&self, layout: Layout) -> Tensor {
        let tensor = self.tensor();
        Tensor::from_fn(self.shape, layout, |index| tensor.get(index))
    }
}

/// `x` rounded to an element type and widened again. Bytes are not rounded one by one.
///
/// # Panics
/// For int8.
pub fn round_to(dtype: Dtype, x: f32) -> f32 {
    match dtype {
        Dtype::F32 => x,
        Dtype::F16 => f16::narrow(x).widen(),
        Dtype::Bf16 => bf16::narrow(x).widen(),
        Dtype::Int8 => panic!("bytes are rounded row by row"),
    }
}
