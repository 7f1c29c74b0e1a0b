//! Where the rows of K and V of one sequence and head lie: one after the other, on pages, or in a ring.

use std::marker::PhantomData;

use regard_simd::{Element, Op, Simd, bf16, f16};

use crate::tensor::{Dtype, Tensor};
use crate::weighting::RowState;

/// The rows of one sequence and head. Raw, as rows of several heads may interleave in memory; made by [`crate::launch`]
/// only, which proves the bounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source<'a> {
    pub(crate) dtype: Dtype,
    /// The first row of page 0.
    data: *const u8,
    /// Bytes from a row of a page to the next.
    row_bytes: usize,
    /// Rows of a page; all, if there are no pages.
    page_rows: usize,
    /// Bytes from a page to the next.
    page_bytes: usize,
    /// The pages of the sequence in order, which come round: a ring is a single page. Page 0 is the only one if absent.
    pages: Option<&'a [u32]>,
    /// The scale of the first row of page 0; for int8.
    scales: *const f32,
    scale_stride: usize,
    scale_page_stride: usize,
    _borrow: PhantomData<&'a u8>,
}

/// Rows that follow each other at one distance.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) data: *const u8,
    /// One for each row, for int8.
    pub(crate) scales: *const f32,
    /// Elements from a scale to the next.
    pub(crate) scale_stride: usize,
    /// Number of rows.
    pub(crate) rows: usize,
}

impl<'a> Source<'a> {
    /// Rows `first_row..` of a head. With `pages`, `tensor` is `[pages, heads, rows of a page, columns]`, `batch` and `first_row` are 0.
    pub(crate) fn new(
        tensor: &Tensor<'a>,
        batch: usize,
        head: usize,
        first_row: usize,
        pages: Option<&'a [u32]>,
    ) -> Self {
        let [_, _, rows, columns] = tensor.shape();
        let strides = tensor.strides();
        let dtype = tensor.dtype();
        // There is no memory to step through without columns or a second row, whatever the strides say.
        let row_stride = if columns == 0 || rows <= 1 { 0 } else { strides[2] };
        let row_bytes = row_stride.wrapping_mul(dtype.bytes());
        let mut source = Self {
            dtype,
            data: tensor.head(batch, head).wrapping_add(first_row.wrapping_mul(row_bytes)),
            row_bytes,
            page_rows: if pages.is_some() { rows.max(1) } else { usize::MAX },
            page_bytes: strides[0].wrapping_mul(dtype.bytes()),
            pages,
            scales: std::ptr::null(),
            scale_stride: 0,
            scale_page_stride: 0,
            _borrow: PhantomData,
        };
        if let Tensor::Int8(quantised) = tensor {
            let scales = &quantised.scales;
            source.scale_stride = if rows <= 1 { 0 } else { scales.strides()[2] };
            source.scales = scales.head(batch, head).wrapping_add(first_row.wrapping_mul(source.scale_stride));
            source.scale_page_stride = scales.strides()[0];
        }
        source
    }

    /// The rows from `row` on, up to the end of its page.
    #[inline]
    pub(crate) fn run(&self, row: usize) -> Run {
        let (page, row, rows) = match self.pages {
            None => (0, row, usize::MAX - row),
            Some(pages) => {
                let (page, row) = (row / self.page_rows, row % self.page_rows);
                let index = page % pages.len().max(1);
                (pages.get(index).map_or(0, |page| *page as usize), row, self.page_rows - row)
            }
        };
        Run {
            data: self
                .data
                .wrapping_add(page.wrapping_mul(self.page_bytes))
                .wrapping_add(row.wrapping_mul(self.row_bytes)),
            scales: self
                .scales
                .wrapping_add(page.wrapping_mul(self.scale_page_stride))
                .wrapping_add(row.wrapping_mul(self.scale_stride)),
            scale_stride: self.scale_stride,
            rows,
        }
    }

    /// Rows of a page, if there are pages.
    pub(crate) fn page_rows(&self) -> Option<usize> {
        self.pages.map(|_| self.page_rows)
    }

    /// Bytes from a row to one that comes at least `rows` later, which may exist or not: the same for all rows of a run, so that
    /// of pages a later one is named.
    pub(crate) fn ahead(&self, row: usize, rows: usize) -> usize {
        match self.pages {
            None => rows.wrapping_mul(self.row_bytes),
            Some(_) => {
                let later = row + rows.next_multiple_of(self.page_rows);
                self.run(later).data.addr().wrapping_sub(self.run(row).data.addr())
            }
        }
    }

    /// Bytes from a row to the next.
    pub(crate) fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Elements from a row to the next.
    pub(crate) fn row_stride(&self) -> usize {
        self.row_bytes / self.dtype.bytes()
    }

    /// Row `first` as f32 with its neighbours where it lies, if `rows` rows from there on are contiguous f32.
    pub(crate) fn in_place(&self, first: usize, rows: usize) -> Option<*const f32> {
        let run = self.run(first);
        (self.dtype == Dtype::F32 && run.rows >= rows).then_some(run.data.cast())
    }
}

/// Adds a row of a source to f32, scale applied, or writes it there.
pub(crate) struct AddRow<'a> {
    pub(crate) source: &'a Source<'a>,
    pub(crate) row: usize,
    pub(crate) columns: usize,
    pub(crate) to: *mut f32,
    /// Whether to write and not to add.
    pub(crate) first: bool,
}

impl Op for AddRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let run = self.source.run(self.row);
        // SAFETY: the source has the row, and `to` has `columns` elements (contract of the struct, made by the kernels).
        unsafe {
            match self.source.dtype {
                Dtype::F32 => self.add::<f32, S>(s, run.data.cast(), 1.0),
                Dtype::F16 => self.add::<f16, S>(s, run.data.cast(), 1.0),
                Dtype::Bf16 => self.add::<bf16, S>(s, run.data.cast(), 1.0),
                Dtype::Int8 => self.add::<i8, S>(s, run.data.cast(), *run.scales),
            }
        }
    }
}

impl AddRow<'_> {
    /// # Safety
    /// `columns` elements are readable.
    #[inline(always)]
    unsafe fn add<E: Element, S: Simd>(&self, s: S, from: *const E, scale: f32) {
        for c in (0..self.columns).step_by(S::LANES) {
            let len = (self.columns - c).min(S::LANES);
            // SAFETY: the caller's contract, and that of the struct.
            unsafe {
                let to = self.to.add(c);
                let row = s.mul(E::load_first(s, from.add(c), len), s.splat(scale));
                s.store_first(to, if self.first { row } else { s.add(s.load_first(to, len), row) }, len);
            }
        }
    }
}

/// Copies rows of a source to contiguous f32, scales applied.
pub(crate) struct Widen<'a> {
    pub(crate) source: &'a Source<'a>,
    /// The first row.
    pub(crate) first: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// `[rows][columns]`
    pub(crate) to: *mut f32,
}

impl Op for Widen<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut done = 0;
        while done < self.rows {
            let run = self.source.run(self.first + done);
            let rows = run.rows.min(self.rows - done);
            for row in 0..rows {
                // SAFETY: the source has the rows, of `columns` elements, and `to` has room for them (contract of the
                // struct, made by the kernels).
                unsafe {
                    let from = run.data.wrapping_add(row.wrapping_mul(self.source.row_bytes));
                    let to = self.to.add((done + row) * self.columns);
                    match self.source.dtype {
                        Dtype::F32 => widen_row::<f32, S>(s, from.cast(), to, self.columns, 1.0),
                        Dtype::F16 => widen_row::<f16, S>(s, from.cast(), to, self.columns, 1.0),
                        Dtype::Bf16 => widen_row::<bf16, S>(s, from.cast(), to, self.columns, 1.0),
                        Dtype::Int8 => {
                            let scale = *run.scales.add(row * run.scale_stride);
                            widen_row::<i8, S>(s, from.cast(), to, self.columns, scale);
                        }
                    }
                }
            }
            done += rows;
        }
    }
}

/// # Safety
/// `columns` elements are readable and writable.
#[inline(always)]
unsafe fn widen_row<E: Element, S: Simd>(s: S, from: *const E, to: *mut f32, columns: usize, scale: f32) {
    // SAFETY: the caller's contract.
    unsafe {
        // Times 1 changes nothing.
        let scale = s.splat(scale);
        let whole = columns / S::LANES * S::LANES;
        for c in (0..whole).step_by(S::LANES) {
            s.store(to.add(c), s.mul(E::load(s, from.add(c)), scale));
        }
        if whole < columns {
            let rest = columns - whole;
            s.store_first(to.add(whole), s.mul(E::load_first(s, from.add(whole), rest), scale), rest);
        }
    }
}

/// Rows of outputs: f32 as the kernels make them, rounded to the element type of the caller's tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) dtype: Dtype,
    /// The first row.
    pub(crate) data: *mut u8,
    /// Bytes from a row to the next.
    pub(crate) row_bytes: usize,
}

impl Target {
    /// Nowhere.
    pub(crate) const NONE: Self = Self { dtype: Dtype::F32, data: std::ptr::null_mut(), row_bytes: 0 };

    /// Row `row` on.
    pub(crate) fn row(self, row: usize) -> Self {
        Self { data: self.data.wrapping_add(row.wrapping_mul(self.row_bytes)), ..self }
    }
}

/// Where the states and sums of rows go instead of their results, when other keys are to follow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PartialRows {
    /// `[row]`
    pub(crate) states: *mut RowState,
    /// `[row][d_v]`
    pub(crate) sums: *mut f32,
    pub(crate) d_v: usize,
}

impl PartialRows {
    /// No rows.
    pub(crate) const NONE: Self = Self { states: std::ptr::null_mut(), sums: std::ptr::null_mut(), d_v: 0 };

    /// Row `row` on.
    pub(crate) fn row(self, row: usize) -> Self {
        Self { states: self.states.wrapping_add(row), sums: self.sums.wrapping_add(row * self.d_v), ..self }
    }
}

/// Writes one row of f32, times a factor, to a [`Target`].
pub(crate) struct Narrow {
    pub(crate) from: *const f32,
    pub(crate) factor: f32,
    pub(crate) columns: usize,
    pub(crate) to: Target,
}

impl Op for Narrow {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let factor = s.splat(self.factor);
        for c in (0..self.columns).step_by(S::LANES) {
            let len = (self.columns - c).min(S::LANES);
            // SAFETY: `columns` elements are readable and writable (contract of the struct, made by the kernels).
            unsafe {
                // A zero comes out as +0, see `Unpack`.
                let row = s.mul_add(s.load_first(self.from.add(c), len), factor, s.zero());
                match self.to.dtype {
                    Dtype::F32 => s.store_first(self.to.data.cast::<f32>().add(c), row, len),
                    Dtype::F16 => s.store_first_f16(self.to.data.cast::<f16>().add(c), row, len),
                    Dtype::Bf16 => s.store_first_bf16(self.to.data.cast::<bf16>().add(c), row, len),
                    Dtype::Int8 => unreachable!("no output is quantised"),
                }
            }
        }
    }
}
