//! The rows of a cache in one element type.

use std::ops::{Deref, DerefMut};

use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;
use regard_kernels::tensor::{Dtype, Quantised, Tensor};
use regard_kernels::view::View;
use regard_simd::{advise_large_pages, bf16, f16};

use crate::quantise::quantise_row;

/// Rows `[head][slot][column]`, contiguous, heads of all batch entries one after the other.
#[derive(Clone, Debug)]
pub(super) struct Store {
    elements: Elements,
    heads: usize,
    /// Slots of a head.
    slots: usize,
    columns: usize,
}

#[derive(Clone, Debug)]
enum Elements {
    F32(Lines<f32>),
    F16(Lines<f16>),
    Bf16(Lines<bf16>),
    /// With a scale for each slot of each head.
    Int8(Lines<i8>, Lines<f32>),
}

impl Store {
    pub(super) fn new(dtype: Dtype, heads: usize, columns: usize) -> Self {
        let elements = match dtype {
            Dtype::F32 => Elements::F32(Lines::zeroed(0)),
            Dtype::F16 => Elements::F16(Lines::zeroed(0)),
            Dtype::Bf16 => Elements::Bf16(Lines::zeroed(0)),
            Dtype::Int8 => Elements::Int8(Lines::zeroed(0), Lines::zeroed(0)),
        };
        Self { elements, heads, slots: 0, columns }
    }

    /// Makes room for `slots` slots of each head. The first `kept(head)` keep what is in them.
    pub(super) fn grow(&mut self, slots: usize, kept: impl Fn(usize) -> usize) {
        let Self { heads, columns, .. } = *self;
        let old = std::mem::replace(&mut self.slots, slots);
        let kept = &kept;
        match &mut self.elements {
            Elements::F32(data) => spread(data, heads, [old, slots], columns, kept),
            Elements::F16(data) => spread(data, heads, [old, slots], columns, kept),
            Elements::Bf16(data) => spread(data, heads, [old, slots], columns, kept),
            Elements::Int8(data, scales) => {
                spread(data, heads, [old, slots], columns, kept);
                spread(scales, heads, [old, slots], 1, kept);
            }
        }
    }

    /// Writes a row of `from`, which is f32 or of the type of the store and has contiguous rows.
    pub(super) fn write(&mut self, head: usize, slot: usize, from: &Tensor<'_>, row: [usize; 3]) {
        let index = head * self.slots + slot;
        let range = index * self.columns..(index + 1) * self.columns;
        match (&mut self.elements, from) {
            (Elements::F32(data), Tensor::F32(view)) => data[range].copy_from_slice(view.row(row)),
            (Elements::F16(data), Tensor::F16(view)) => data[range].copy_from_slice(view.row(row)),
            (Elements::F16(data), Tensor::F32(view)) => data[range].convert_from_f32_slice(view.row(row)),
            (Elements::Bf16(data), Tensor::Bf16(view)) => data[range].copy_from_slice(view.row(row)),
            (Elements::Bf16(data), Tensor::F32(view)) => data[range].convert_from_f32_slice(view.row(row)),
            (Elements::Int8(data, scales), Tensor::Int8(quantised)) => {
                data[range].copy_from_slice(quantised.data.row(row));
                scales[index] = *quantised.scales.get([row[0], row[1], row[2], 0]);
            }
            (Elements::Int8(data, scales), Tensor::F32(view)) => {
                scales[index] = quantise_row(view.row(row), &mut data[range]);
            }
            (_, from) => unreachable!("{} was not checked", from.dtype()),
        }
    }

    /// `[batch, heads, rows, columns]`, with the first `rows` slots of each head; `batch * heads` are the heads of the
    /// store.
    pub(super) fn tensor(&self, [batch, heads]: [usize; 2], rows: usize) -> Tensor<'_> {
        fn view<T>(data: &[T], [batch, heads, slots, rows]: [usize; 4], columns: usize) -> View<'_, T> {
            let strides = [heads * slots * columns, slots * columns, columns, 1];
            View::strided(data, [batch, heads, rows, columns], strides).expect("there are as many slots as were made")
        }
        let shape = [batch, heads, self.slots, rows];
        match &self.elements {
            Elements::F32(data) => view(data, shape, self.columns).into(),
            Elements::F16(data) => view(data, shape, self.columns).into(),
            Elements::Bf16(data) => view(data, shape, self.columns).into(),
            Elements::Int8(data, scales) => {
                Quantised { data: view(data, shape, self.columns), scales: view(scales, shape, 1) }.into()
            }
        }
    }
}

/// Moves the rows of each head to where they lie with `new` slots for each.
fn spread<T: Zeroed>(
    data: &mut Lines<T>,
    heads: usize,
    [old, new]: [usize; 2],
    columns: usize,
    kept: &impl Fn(usize) -> usize,
) {
    let mut spread = Lines::zeroed(heads * new * columns);
    for head in 0..heads {
        let len = kept(head) * columns;
        let (from, to) = (head * old * columns, head * new * columns);
        spread[to..to + len].copy_from_slice(&data[from..from + len]);
    }
    *data = spread;
}

/// Bytes of a cache line.
const LINE: usize = 64;

/// Elements from the start of a cache line on, as rows that start elsewhere take twice the loads: with 16 bytes past it, where the
/// allocator leaves large arrays, eight rows of bf16 on tile registers take 1.2 times the time.
#[derive(Debug)]
struct Lines<T> {
    all: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Zeroed> Lines<T> {
    fn zeroed(len: usize) -> Self {
        let line = LINE / size_of::<T>();
        let all = T::zeroed(if len == 0 { 0 } else { len + line - 1 });
        let start = all.as_ptr().align_offset(LINE).min(all.len() - len);
        Self { all, start, len }
    }
}

impl<T> Deref for Lines<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.all[self.start..][..self.len]
    }
}

impl<T> DerefMut for Lines<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.all[self.start..][..self.len]
    }
}

impl<T: Zeroed> Clone for Lines<T> {
    fn clone(&self) -> Self {
        let mut copy = Self::zeroed(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

/// Elements that are zero while all their bits are.
trait Zeroed: Copy {
    /// So many zeros, of which the system keeps none before it is written to, in large pages where it has them.
    fn zeroed(len: usize) -> Vec<Self>;
}

impl Zeroed for f32 {
    fn zeroed(len: usize) -> Vec<Self> {
        let mut zeros = vec![0.0; len];
        advise_large_pages(&mut zeros);
        zeros
    }
}

impl Zeroed for i8 {
    fn zeroed(len: usize) -> Vec<Self> {
        let mut zeros = vec![0; len];
        advise_large_pages(&mut zeros);
        zeros
    }
}

/// The bits of half floats, or vectors of zeros would be written out.
fn zero_bits(len: usize) -> Vec<u16> {
    let mut zeros = vec![0; len];
    advise_large_pages(&mut zeros);
    zeros
}

impl Zeroed for f16 {
    fn zeroed(len: usize) -> Vec<Self> {
        zero_bits(len).reinterpret_into()
    }
}

impl Zeroed for bf16 {
    fn zeroed(len: usize) -> Vec<Self> {
        zero_bits(len).reinterpret_into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: Zeroed + PartialEq + std::fmt::Debug>(some: T) {
        for len in [0, 1, 15, 64, 1000, 100_000] {
            let mut lines = Lines::<T>::zeroed(len);
            assert_eq!(lines.len(), len);
            lines.fill(some);
            let copy = lines.clone();
            assert_eq!(*copy, *lines);
            for at in [lines.as_ptr(), copy.as_ptr()] {
                assert!(len == 0 || at.addr().is_multiple_of(LINE), "{len} of {} bytes", size_of::<T>());
            }
        }
    }

    #[test]
    fn rows_start_at_cache_lines() {
        check(1.5_f32);
        check(f16::ONE);
        check(bf16::ONE);
        check(3_i8);
    }

    /// What was there is there after growing, and the rest is zero.
    #[test]
    fn rows_stay_when_there_is_more_room() {
        let mut store = Store::new(Dtype::F32, 2, 3);
        store.grow(2, |_| 0);
        let rows: Vec<f32> = (1..=12).map(|x| x as f32).collect();
        let view = Tensor::F32(View::bhsd(&rows, [1, 2, 2, 3]).expect("as long as its shape"));
        for (head, slot) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            store.write(head, slot, &view, [0, head, slot]);
        }
        store.grow(5, |_| 2);
        let Elements::F32(data) = &store.elements else { panic!("{store:?}") };
        assert!(data.as_ptr().addr().is_multiple_of(LINE));
        for head in 0..2 {
            assert_eq!(data[head * 15..][..6], rows[head * 6..][..6]);
            assert!(data[head * 15 + 6..][..9].iter().all(|x| *x == 0.0));
        }
    }
}
