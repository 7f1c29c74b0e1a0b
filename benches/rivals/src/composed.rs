//! What one writes without a library of attention: two matrix products of the crate gemm, and softmax between them. Blocks of
//! queries keep the scores in the second-level cache; keys that no query of a block sees are left out.

use gemm::Parallelism;

use crate::problem::Work;

/// Queries of a block.
const BLOCK: usize = 64;

/// `out = softmax(scale * q k^T) v`; `scores` holds 64 rows of keys.
pub(crate) fn attention(work: &Work, scores: &mut [f32], out: &mut [f32]) {
    let Work { heads, queries, keys, dim, causal, .. } = *work;
    for head in 0..heads {
        let rows = |data, count: usize| -> &[f32] { part(data, head * count * dim, count * dim) };
        let (q, k, v) = (rows(&work.q, queries), rows(&work.k, keys), rows(&work.v, keys));
        let out = &mut out[head * queries * dim..][..queries * dim];
        for first in (0..queries).step_by(BLOCK) {
            let count = BLOCK.min(queries - first);
            let seen = if causal { keys.min(first + count) } else { keys };
            let scores = &mut scores[..count * seen];
            let q = &q[first * dim..][..count * dim];
            let out = &mut out[first * dim..][..count * dim];
            // k is read by columns: its rows are the columns of its transpose.
            product([count, seen, dim], (q, [1, dim]), (k, [dim, 1]), work.scale(), scores);
            for (row, scores) in scores.chunks_exact_mut(seen).enumerate() {
                let visible = if causal { seen.min(first + row + 1) } else { seen };
                softmax(scores, visible);
            }
            product([count, dim, seen], (scores, [1, seen]), (v, [1, dim]), 1.0, out);
        }
    }
}

fn part(data: &[f32], start: usize, count: usize) -> &[f32] {
    &data[start..][..count]
}

fn softmax(scores: &mut [f32], visible: usize) {
    let (seen, hidden) = scores.split_at_mut(visible);
    let largest = seen.iter().fold(f32::NEG_INFINITY, |largest, score| largest.max(*score));
    let mut sum = 0.0;
    for score in seen.iter_mut() {
        *score = (*score - largest).exp();
        sum += *score;
    }
    seen.iter_mut().for_each(|score| *score /= sum);
    hidden.fill(0.0);
}

/// `out = factor * a b` of sizes `[m, n, k]`; the strides are those of columns and of rows. `out` is contiguous.
fn product(
    [m, n, k]: [usize; 3],
    (a, [a_columns, a_rows]): (&[f32], [usize; 2]),
    (b, [b_columns, b_rows]): (&[f32], [usize; 2]),
    factor: f32,
    out: &mut [f32],
) {
    let end = |rows: usize, columns: usize, [of_columns, of_rows]: [usize; 2]| {
        (rows - 1) * of_rows + (columns - 1) * of_columns + 1
    };
    assert!(m > 0 && n > 0 && k > 0 && out.len() == m * n);
    assert!(a.len() >= end(m, k, [a_columns, a_rows]) && b.len() >= end(k, n, [b_columns, b_rows]));
    // SAFETY: all three matrices lie within their slices, as was just asserted, and `out` is no part of the others.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            false,
            a.as_ptr(),
            a_columns as isize,
            a_rows as isize,
            b.as_ptr(),
            b_columns as isize,
            b_rows as isize,
            0.0,
            factor,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
