//! What pointers rely on beyond the bounds that views prove.

use super::call::{Call, Choice, Few, Outputs, RowsChoice, Temperatures};
use super::{longest_keys, longest_queries};
use crate::table::{KEY_BLOCKS, kernels, rows_kernels};
use crate::tensor::{Dtype, Tensor};
use crate::weighting::Kind;

/// Panics where shapes disagree: errors of the caller's code, which `regard` rules out.
pub(super) fn check(call: &Call<'_>, choice: &Choice, outputs: &Outputs<'_>) {
    let [batch, heads, rows, _] = call.q.shape();
    let d_v = call.v.shape()[3];
    check_inputs(call);
    let rows = batch * heads * rows;
    match outputs {
        Outputs::Rows { out, lse } => {
            let [batch, heads, queries, _] = call.q.shape();
            assert_eq!(out.shape(), [batch, heads, queries, d_v], "out");
            assert!(lse.as_ref().is_none_or(|lse| lse.len() == rows), "log-sum-exp");
        }
        Outputs::Partial { states, sums } => {
            assert_eq!(states.len(), rows, "states");
            assert_eq!(sums.len(), rows * d_v, "sums");
        }
    }
    assert!(call.index.is_none_or(|index| super::prune::fits(index, call)), "index of other keys");
    check_choice(call, choice);
}

/// The part of [`check`] that is about what is read.
pub(crate) fn check_inputs(call: &Call<'_>) {
    let [batch, heads, rows, _] = call.q.shape();
    check_tensors(call);
    check_sequences(call);
    let pairs = [call.sequences.len(), heads, longest_queries(call), longest_keys(call)];
    let covers = |shape: [usize; 4]| shape[..2] == pairs[..2] && shape[2] >= pairs[2] && shape[3] >= pairs[3];
    assert!(call.keep.is_none_or(|keep| covers(keep.shape())), "keep mask");
    assert!(call.bias.is_none_or(|bias| covers(bias.shape())), "bias");
    assert!(call.alibi_slopes.is_none_or(|slopes| slopes.len() == heads), "ALiBi slopes");
    assert!(call.sinks.is_none_or(|sinks| sinks.len() == heads), "sinks");
    match call.temperature {
        Temperatures::One(_) => {}
        Temperatures::PerHead(temperatures) => assert_eq!(temperatures.len(), heads, "temperatures"),
        Temperatures::PerRow(temperatures) => assert_eq!(temperatures.len(), batch * heads * rows, "temperatures"),
    }
}

fn check_tensors(call: &Call<'_>) {
    let [batch, heads, _, d] = call.q.shape();
    let [kv_batch, kv_heads, keys, d_v] = call.v.shape();
    assert_eq!(call.k.shape(), [kv_batch, kv_heads, keys, d], "k against q and v");
    assert!(call.pages.is_some() || kv_batch == batch, "v against q");
    assert!(heads == 0 || (kv_heads > 0 && heads.is_multiple_of(kv_heads)), "{heads} query heads, {kv_heads} kv heads");
    assert_ne!(call.q.dtype(), Dtype::Int8, "quantised queries");
    assert_eq!(call.k.dtype(), call.v.dtype(), "element types of k and v");
    for (tensor, name) in [(&call.q, "q"), (&call.k, "k"), (&call.v, "v")] {
        assert!(tensor.strides()[3] == 1 || tensor.shape()[3] <= 1, "rows of {name} are not contiguous");
        if let Tensor::Int8(quantised) = tensor {
            let [batch, heads, rows, _] = tensor.shape();
            assert_eq!(quantised.scales.shape(), [batch, heads, rows, 1], "scales of {name}");
        }
    }
    let _ = d_v;
}

/// Rows and keys of sequences exist, and no two sequences share a row of q.
fn check_sequences(call: &Call<'_>) {
    let [batch, _, rows, _] = call.q.shape();
    let [pages, _, page_rows, _] = call.k.shape();
    let mut next = (0, 0);
    for (index, sequence) in call.sequences.iter().enumerate() {
        let end = sequence.first_query.checked_add(sequence.queries);
        assert!(sequence.batch < batch && end.is_some_and(|end| end <= rows), "queries of sequence {index}");
        assert!((sequence.batch, sequence.first_query) >= next, "sequence {index} is out of order");
        next = (sequence.batch, sequence.first_query + sequence.queries);
        assert!(u32::try_from(sequence.keys).is_ok_and(|keys| keys < u32::MAX), "keys of sequence {index}");
        match &call.pages {
            None => {
                let end = sequence.first_key.checked_add(sequence.keys);
                assert!(end.is_some_and(|end| end <= page_rows), "keys of sequence {index}");
            }
            Some(tables) => {
                let needed = if sequence.keys == 0 { 0 } else { sequence.keys.div_ceil(page_rows.max(1)) };
                let needed = if tables.ring { needed.min(tables.stride) } else { needed };
                assert!(sequence.keys == 0 || page_rows > 0 && needed > 0, "pages of sequence {index}");
                let table = tables.of(index);
                assert!(needed <= table.len(), "pages of sequence {index}");
                assert!(table[..needed].iter().all(|page| (*page as usize) < pages), "pages of sequence {index}");
                // A later lap must find all pages.
                let laps = tables.ring && sequence.keys > table.len().saturating_mul(page_rows);
                assert!(!laps || table.iter().all(|page| (*page as usize) < pages), "pages of sequence {index}");
            }
        }
    }
}

fn check_choice(call: &Call<'_>, choice: &Choice) {
    assert!(kernels(choice.level).iter().any(|kernel| std::ptr::eq(kernel, choice.kernel)), "kernel of another level");
    assert!(
        KEY_BLOCKS.contains(&choice.key_block) && choice.key_block.is_multiple_of(2),
        "key block {}",
        choice.key_block
    );
    assert!(choice.query_block > 0, "query block");
    let pairs = choice.kernel.dtype == Dtype::Bf16;
    assert!(!pairs || call.k.dtype() == Dtype::Bf16, "a kernel of bf16 for keys of {}", call.k.dtype());
    let weighted = call.weighting.kind() == Kind::Weighted;
    assert!(weighted || choice.kernel.parts() == 0, "a selection by scores in parts, of which an Inf is NaN");
    if let Some(Few { kernel, .. }) = choice.few {
        let known = kernels(choice.level).iter().any(|other| std::ptr::eq(kernel, other));
        let fits =
            kernel.dtype == choice.kernel.dtype && kernel.tile.rows == choice.kernel.tile.rows && kernel.parts() == 0;
        assert!(known && fits, "a kernel of another level, or another arithmetic, for few queries");
    }
    for RowsChoice { kernel, key_block, .. } in choice.rows {
        let known = rows_kernels(choice.level).any(|other| std::ptr::eq(kernel, other));
        assert!(known && kernel.dtype == call.k.dtype(), "rows kernel of another level or element type");
        let fits = key_block > 0 && key_block.is_multiple_of(ROWS_GRANULE) && key_block <= *KEY_BLOCKS.end();
        assert!(fits, "key block {key_block} of a rows kernel");
    }
}

/// Key blocks of rows kernels are multiples of this: pairs of steps of the widest vector.
const ROWS_GRANULE: usize = 32;
