//! The tensors of a case.

use regard::{Dtype, Tensor, View, quantise};
use regard_tuner::inputs::{Array, Elements, Order, standard_normal};

use crate::error::CliError;
use crate::shape_args::{Sizes, q_dtype};

/// q, k, v and out. Of k and v there are as many copies as are used in turn.
#[derive(Debug)]
pub(crate) struct Inputs {
    pub(crate) q: Array,
    pub(crate) k: Array,
    pub(crate) v: Array,
    pub(crate) out: Array,
}

impl Inputs {
    /// Standard normal numbers, of this element type in k and v.
    ///
    /// # Errors
    /// [`CliError::Failed`] if there is not enough memory.
    pub(crate) fn new(
        sizes: &Sizes,
        order: Order,
        [dtype, out_dtype]: [Dtype; 2],
        copies: usize,
    ) -> Result<Self, CliError> {
        let &Sizes { q, k, v, .. } = sizes;
        let out = [q[0], q[1], q[2], v[3]];
        for (name, shape, copies) in [("q", q, 1), ("k", k, copies), ("v", v, copies), ("out", out, 1)] {
            check_memory(name, shape, copies)?;
        }
        let zeros = Elements::rounded(vec![0.0; out.iter().product()], out_dtype);
        let zeros = zeros.ok_or_else(|| CliError::Failed("outputs are not quantised".to_owned()))?;
        Ok(Self {
            q: normal("q", q, q_dtype(dtype), order)?.repeated(1),
            k: normal("k", k, dtype, order)?.repeated(copies),
            v: normal("v", v, dtype, order)?.repeated(copies),
            out: Array::new(zeros, out, order).repeated(1),
        })
    }
}

/// One of the copies of an array.
pub(crate) fn tensor<'a>(name: &'static str, array: &'a Array, copy: usize) -> Result<Tensor<'a>, CliError> {
    array.tensor(copy).map_err(|source| regard::Error::View { tensor: name, source }.into())
}

/// Standard normal numbers; `shape` is `[batch, heads, rows, columns]`.
fn normal(name: &'static str, shape: [usize; 4], dtype: Dtype, order: Order) -> Result<Array, CliError> {
    let seed = name.bytes().map(u64::from).sum();
    let numbers = standard_normal(seed, shape.iter().product());
    let elements = match dtype {
        Dtype::Int8 => {
            // Rows are quantised one by one: the order of memory will do.
            let view = View::bhsd(&numbers, order.arrange(shape));
            let rows = quantise(view.map_err(|source| regard::Error::View { tensor: name, source })?);
            Some(Elements::Int8(rows.data, rows.scales))
        }
        dtype => Elements::rounded(numbers, dtype),
    };
    let elements = elements.ok_or_else(|| CliError::Failed(format!("no numbers of {dtype}")))?;
    Ok(Array::new(elements, shape, order))
}

/// Whether there is memory for a tensor: as f32, which it is made from, and in its copies.
fn check_memory(name: &str, shape: [usize; 4], copies: usize) -> Result<(), CliError> {
    let length = shape.iter().chain([&copies]).try_fold(1_usize, |product, size| product.checked_mul(*size));
    let fits = |length: usize| Vec::<f32>::new().try_reserve_exact(length).is_ok();
    if length.is_some_and(fits) {
        return Ok(());
    }
    Err(CliError::Failed(format!("not enough memory for {name}, of shape {shape:?}")))
}
