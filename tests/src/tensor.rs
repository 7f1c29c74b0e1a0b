//! Tensors in any layout, with NaN wherever nobody may read.

use regard::View;

use crate::{GUARD, Layout, Random, poison};

/// A tensor `[batch, heads, rows, columns]` inside a larger buffer: NaN before it, after it, and in the gaps between its
/// rows.
#[derive(Clone, Debug)]
pub struct Tensor {
    data: Vec<f32>,
    shape: [usize; 4],
    layout: Layout,
    strides: [usize; 4],
    /// Elements from the tensor's first to its last, both included.
    reach: usize,
}

impl Tensor {
    /// A tensor whose elements are all this one.
    pub fn filled(shape: [usize; 4], layout: Layout, value: f32) -> Self {
        Self::from_fn(shape, layout, |_| value)
    }

    /// A tensor of standard normal numbers, the same for every layout.
    pub fn normal(shape: [usize; 4], layout: Layout, random: &mut Random) -> Self {
        Self::from_fn(shape, layout, |_| random.normal())
    }

    /// A tensor of whole numbers of `-most..=most`, the same for every layout.
    pub fn integers(shape: [usize; 4], layout: Layout, most: usize, random: &mut Random) -> Self {
        Self::from_fn(shape, layout, |_| random.integer(most))
    }

    /// A tensor of what `element` gives, asked in the order of the indices.
    pub fn from_fn(shape: [usize; 4], layout: Layout, mut element: impl FnMut([usize; 4]) -> f32) -> Self {
        let (strides, reach) = layout.strides(shape);
        let mut tensor = Self { data: vec![poison(); GUARD + reach + GUARD], shape, layout, strides, reach };
        let [batch, heads, rows, columns] = shape;
        for b in 0..batch {
            for h in 0..heads {
                for r in 0..rows {
                    for c in 0..columns {
                        *tensor.at([b, h, r, c]) = element([b, h, r, c]);
                    }
                }
            }
        }
        tensor
    }

    /// The same elements in another layout.
    pub fn in_layout(&self, layout: Layout) -> Self {
        Self::from_fn(self.shape, layout, |index| self.get(index))
    }

    /// `rows` rows of every head from `first` on, as a tensor of its own.
    pub fn rows(&self, first: usize, rows: usize) -> Self {
        let [batch, heads, _, columns] = self.shape;
        Self::from_fn([batch, heads, rows, columns], Layout::Bhsd, |[b, h, r, c]| self.get([b, h, first + r, c]))
    }

    /// One head of one batch entry, as a tensor of its own.
    pub fn head(&self, batch: usize, head: usize) -> Self {
        let [_, _, rows, columns] = self.shape;
        Self::from_fn([1, 1, rows, columns], Layout::Bhsd, |[_, _, r, c]| self.get([batch, head, r, c]))
    }

    /// The elements in the order of the indices, in a vector of exactly that length.
    pub fn to_vec(&self) -> Vec<f32> {
        let [batch, heads, rows, columns] = self.shape;
        let mut elements = Vec::with_capacity(self.shape.iter().product());
        for b in 0..batch {
            for h in 0..heads {
                for r in 0..rows {
                    elements.extend((0..columns).map(|c| self.get([b, h, r, c])));
                }
            }
        }
        elements
    }

    /// The view of it, whose slice ends with the last element.
    pub fn view(&self) -> View<'_, f32> {
        let slice = &self.data[GUARD..GUARD + self.reach];
        View::strided(slice, self.shape, self.strides).expect("a layout reaches as far as it says")
    }

    /// Its layout.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Its shape.
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// An element.
    pub fn get(&self, index: [usize; 4]) -> f32 {
        self.data[self.place(index)]
    }

    /// An element, to be changed.
    pub fn at(&mut self, index: [usize; 4]) -> &mut f32 {
        let place = self.place(index);
        &mut self.data[place]
    }

    /// Sets all columns of a row.
    pub fn fill_row(&mut self, [batch, head, row]: [usize; 3], value: f32) {
        for c in 0..self.shape[3] {
            *self.at([batch, head, row, c]) = value;
        }
    }

    fn place(&self, index: [usize; 4]) -> usize {
        assert!((0..4).all(|i| index[i] < self.shape[i]), "{index:?} of {:?}", self.shape);
        GUARD + (0..4).map(|i| index[i] * self.strides[i]).sum::<usize>()
    }
}
