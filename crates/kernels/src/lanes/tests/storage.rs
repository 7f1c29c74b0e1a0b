//! Rows of elements of any type, one after the other or on pages.

use regard_simd::{Element, bf16, f16};

use crate::tensor::{Dtype, Quantised, Tensor};
use crate::view::View;

/// Rows of f32.
#[derive(Clone)]
pub(super) struct Values {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) data: Vec<f32>,
}

impl Values {
    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.columns..(row + 1) * self.columns]
    }

    pub(super) fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.data[row * self.columns..(row + 1) * self.columns]
    }

    pub(super) fn map(mut self, f: impl Fn(f32) -> f32) -> Self {
        self.data.iter_mut().for_each(|x| *x = f(*x));
        self
    }
}

/// Numbers between -2 and 2 (splitmix64).
pub(super) fn random(seed: u64, rows: usize, columns: usize) -> Values {
    let mut state = seed << 32;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 22) as f32 - 2.0
    };
    Values { rows, columns, data: (0..rows * columns).map(|_| next()).collect() }
}

/// Where rows lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Where {
    /// One after the other, with elements of no row in between.
    Rows { padding: usize },
    /// On pages, in an order of their own.
    Pages { rows: usize },
}

enum Elements {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    Int8(Vec<i8>, Vec<f32>),
}

/// Rows in memory. What belongs to no row is NaN.
pub(super) struct Stored {
    pub(super) rows: usize,
    pub(super) columns: usize,
    place: Where,
    pages: Vec<u32>,
    elements: Elements,
}

impl Stored {
    pub(super) fn new(dtype: Dtype, values: &Values, place: Where) -> Self {
        let Values { rows, columns, .. } = *values;
        let pages = match place {
            Where::Rows { .. } => Vec::new(),
            // 7 is coprime to the number of pages, whatever the size.
            Where::Pages { rows: page } => {
                let count = rows.div_ceil(page).next_power_of_two();
                (0..count).map(|i| (i * 7 % count) as u32).collect()
            }
        };
        let mut stored = Self { rows, columns, place, pages, elements: Elements::F32(Vec::new()) };
        let len = match place {
            Where::Rows { padding } => rows * (columns + padding),
            Where::Pages { rows } => stored.pages.len() * rows * columns,
        };
        let mut plain = vec![f32::NAN; len];
        for row in 0..rows {
            let at = stored.index(row) * stored.stride();
            plain[at..at + columns].copy_from_slice(values.row(row));
        }
        stored.elements = match dtype {
            Dtype::F32 => Elements::F32(plain),
            Dtype::F16 => Elements::F16(plain.into_iter().map(f16::narrow).collect()),
            Dtype::Bf16 => Elements::Bf16(plain.into_iter().map(bf16::narrow).collect()),
            Dtype::Int8 => {
                let scales: Vec<f32> = plain
                    .chunks(stored.stride())
                    .map(|row| row[..columns].iter().fold(0.0, |m: f32, x| m.max(x.abs())) / 127.0)
                    .collect();
                let quantise = |(i, x): (usize, &f32)| i8::narrow(x / scales[i / stored.stride()]);
                Elements::Int8(plain.iter().enumerate().map(quantise).collect(), scales)
            }
        };
        stored
    }

    /// Elements from a row to the next.
    fn stride(&self) -> usize {
        match self.place {
            Where::Rows { padding } => self.columns + padding,
            Where::Pages { .. } => self.columns,
        }
    }

    /// The place of a row among all that memory holds.
    fn index(&self, row: usize) -> usize {
        match self.place {
            Where::Rows { .. } => row,
            Where::Pages { rows } => self.pages[row / rows] as usize * rows + row % rows,
        }
    }

    pub(super) fn pages(&self) -> Option<&[u32]> {
        (!self.pages.is_empty()).then_some(self.pages.as_slice())
    }

    pub(super) fn tensor(&self) -> Tensor<'_> {
        let stride = self.stride();
        let (shape, strides) = match self.place {
            Where::Rows { .. } => ([1, 1, self.rows, self.columns], [0, 0, stride, 1]),
            Where::Pages { rows } => ([self.pages.len(), 1, rows, self.columns], [rows * stride, 0, stride, 1]),
        };
        match &self.elements {
            Elements::F32(data) => View::strided(data, shape, strides).unwrap().into(),
            Elements::F16(data) => View::strided(data, shape, strides).unwrap().into(),
            Elements::Bf16(data) => View::strided(data, shape, strides).unwrap().into(),
            Elements::Int8(data, scales) => {
                let [pages, heads, rows, _] = shape;
                Tensor::Int8(Quantised {
                    data: View::strided(data, shape, strides).unwrap(),
                    scales: View::strided(scales, [pages, heads, rows, 1], [rows, 0, 1, 1]).unwrap(),
                })
            }
        }
    }

    /// The elements as they are read.
    pub(super) fn values(&self) -> Values {
        let tensor = self.tensor();
        let rows_of_page = tensor.shape()[2];
        let get = |i: usize| {
            let row = self.index(i / self.columns);
            tensor.get([row / rows_of_page, 0, row % rows_of_page, i % self.columns])
        };
        Values { rows: self.rows, columns: self.columns, data: (0..self.rows * self.columns).map(get).collect() }
    }
}
