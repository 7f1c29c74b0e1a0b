//! Attention over keys that come one by one: states of fixed queries, and one query at every prefix.

mod prefixes;
mod state;

pub use prefixes::{prefixes, prefixes_into};
pub use state::{State, StateShape};

use crate::options::{Attention, Temperature};
use crate::{Error, Tensor};

/// Queries that stand nowhere among the keys see all of them: whatever asks for a position has no meaning.
fn no_positions(options: &Attention<'_>) -> Result<(), Error> {
    let given = [
        ("a causal mask", options.causal.is_some()),
        ("an anti-causal mask", options.anti_causal.is_some()),
        ("strict", options.strict),
        ("a window", options.window.is_some()),
        ("an alignment", options.align.is_some()),
        ("key lengths", options.key_lengths.is_some()),
        ("a mask tensor", options.keep_mask.is_some()),
        ("a bias", options.bias.is_some()),
        ("ALiBi", options.alibi_slopes.is_some()),
    ];
    match given.into_iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((option, _)) => {
            let reason = "its queries stand nowhere among the keys, and see all that come";
            Err(Error::NoMeaning { option, weighting: options.weighting.name(), reason })
        }
    }
}

/// The same options without those that are about splitting keys or reading halves, and with these temperatures.
fn plain<'a>(options: &Attention<'a>, temperature: Temperature<'a>) -> Attention<'a> {
    let mut options = options.clone().split(crate::Split::Never);
    options.temperature = temperature;
    options
}

/// Appends a row as f32, its scale applied.
fn widen_row(from: &Tensor<'_>, row: [usize; 3], to: &mut [f32]) {
    match from {
        Tensor::F32(view) => to.copy_from_slice(view.row(row)),
        _ => {
            let [batch, head, row] = row;
            to.iter_mut().enumerate().for_each(|(c, x)| *x = from.get([batch, head, row, c]));
        }
    }
}

/// A dimension of a tensor agrees with what was said before.
fn dimensions(
    tensor: &'static str,
    found: [usize; 4],
    expected: [Option<usize>; 4],
    reason: &'static str,
) -> Result<(), Error> {
    match (0..4).find(|i| expected[*i].is_some_and(|expected| expected != found[*i])) {
        None => Ok(()),
        Some(i) => Err(Error::Dimension {
            tensor,
            dimension: ["batch", "heads", "rows", "columns"][i],
            found: found[i],
            expected: expected[i].unwrap_or_default(),
            reason,
        }),
    }
}

/// Elements of a row are side by side.
fn contiguous(tensor: &'static str, view: &Tensor<'_>) -> Result<(), Error> {
    let stride = view.strides()[3];
    if stride != 1 && view.shape()[3] > 1 { Err(Error::RowStride { tensor, stride }) } else { Ok(()) }
}
