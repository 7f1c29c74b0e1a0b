//! What is known of blocks of keys without reading them: balls that hold them, and from these bounds of their scores.
//!
//! A block of keys `k_j` with mean `c` and radius `r = max |k_j - c|` has for any query `q`
//!
//! ```text
//! max_j <q, k_j>  <=  <q, c> + |q| r          (Cauchy-Schwarz)
//! max_j <q, k_j>  >=  <q, c>                  (a mean is no larger than the largest)
//! ```
//!
//! (the first is the node bound of ball trees; Omohundro 1989). A block whose upper bound is below the lower bound of
//! another one cannot hold the largest score. Both bounds here are of scores *as the kernels compute them*, in f32: with
//! `g = (d + 16) 2^-23`, which is more than twice what a chain of `d` roundings can do to a product relative to
//! `|q| |k|`, the upper one has `g (2 |c| + |k| + r)` added to the radius, and the lower one `g (2 |c| + |k|)` plus the
//! distance between the mean and its rounded value taken away, both times `|q|`. What is left out is what underflows,
//! `2^-126`, and what overflows: queries for which `|q| |k|` comes near to it have no bounds.

use regard_simd::{Portable, Simd};

use crate::source::{Source, Widen};
use crate::tensor::Tensor;

/// Keys of a block of an index: small enough for clusters of that many keys, large enough that bounds cost a 64th of the
/// scores.
pub const INDEX_BLOCK: usize = 64;

/// Products of norms from here on have no bounds: a sum on the way to a score may overflow.
const LARGEST: f32 = f32::MAX / 4.0;

/// Dimensions beyond this have no bounds: the terms that account for rounding are small no more.
const MOST_COLUMNS: usize = 1 << 20;

/// Bounds of the keys of a tensor, block by block, for each head: built once, of use for any number of queries.
///
/// It says nothing any more once the keys have changed.
#[derive(Clone, Debug)]
pub struct KeyIndex {
    shape: [usize; 4],
    /// Columns of V, if values were looked at.
    values: Option<usize>,
    /// Blocks of a head.
    blocks: usize,
    /// `[batch][head][block][d]`
    centres: Vec<f32>,
    /// `[batch][head][block]` each: what is added to, and taken from, `<q, c>` for each unit of `|q|`.
    upper: Vec<f32>,
    lower: Vec<f32>,
    /// `[batch][head]`: the largest finite norm of a key.
    largest: Vec<f32>,
}

/// The part of an index that is about one head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadIndex<'a> {
    /// `[block][d]`
    pub(crate) centres: &'a [f32],
    /// `[block]` each
    pub(crate) upper: &'a [f32],
    pub(crate) lower: &'a [f32],
    pub(crate) largest: f32,
    /// Keys of all blocks.
    pub(crate) keys: usize,
}

impl KeyIndex {
    /// The index of `k`, `[batch, kv_heads, keys, d]` of any element type.
    ///
    /// With the values `v`, `[batch, kv_heads, keys, d_v]`, blocks are marked whose values hold NaN or Inf, which weights of
    /// any size make felt: softmax needs it, selections do not.
    ///
    /// # Panics
    /// If batch, heads or rows of k and v differ, or rows are not contiguous: errors of the caller's code, which `regard` rules
    /// out.
    pub fn new(k: &Tensor<'_>, v: Option<&Tensor<'_>>) -> Self {
        let shape = k.shape();
        let [batch, heads, rows, d] = shape;
        assert!(v.is_none_or(|v| v.shape()[..3] == shape[..3]), "v against k");
        for tensor in [Some(k), v].into_iter().flatten() {
            assert!(tensor.strides()[3] == 1 || tensor.shape()[3] <= 1, "rows are not contiguous");
        }
        let blocks = rows.div_ceil(INDEX_BLOCK);
        let all = batch * heads * blocks;
        let mut index = Self {
            shape,
            values: v.map(|v| v.shape()[3]),
            blocks,
            centres: vec![0.0; all * d],
            upper: vec![f32::INFINITY; all],
            lower: vec![f32::INFINITY; all],
            largest: vec![0.0; batch * heads],
        };
        let columns = d.max(v.map_or(0, |v| v.shape()[3]));
        let mut block_rows = vec![0.0; INDEX_BLOCK.min(rows) * columns];
        for head in 0..batch * heads {
            let (entry, kv_head) = (head / heads, head % heads);
            let mut largest = 0.0_f64;
            for block in 0..blocks {
                let at = head * blocks + block;
                let first = block * INDEX_BLOCK;
                let count = INDEX_BLOCK.min(rows - first);
                if let Some(v) = v
                    && !widened(&Source::new(v, entry, kv_head, 0, None), first, count, v.shape()[3], &mut block_rows)
                        .iter()
                        .all(|x| x.is_finite())
                {
                    continue;
                }
                let keys = widened(&Source::new(k, entry, kv_head, 0, None), first, count, d, &mut block_rows);
                let Some(ball) = Ball::around(keys, count, d, &mut index.centres[at * d..][..d]) else { continue };
                (index.upper[at], index.lower[at]) = ball.bounds(d);
                largest = largest.max(ball.largest);
            }
            index.largest[head] = above(largest);
        }
        index
    }

    /// The shape of the keys, `[batch, kv_heads, keys, d]`.
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// Columns of the values, if the index was told of them.
    pub fn value_columns(&self) -> Option<usize> {
        self.values
    }

    /// Bytes that the index takes.
    pub fn bytes(&self) -> usize {
        let len = self.centres.len() + self.upper.len() + self.lower.len() + self.largest.len();
        len * size_of::<f32>()
    }

    /// Blocks of each head.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks
    }

    /// What is known of one head.
    pub(crate) fn head(&self, batch: usize, head: usize) -> HeadIndex<'_> {
        let [_, heads, keys, d] = self.shape;
        let head = batch * heads + head;
        let blocks = head * self.blocks..(head + 1) * self.blocks;
        HeadIndex {
            centres: &self.centres[blocks.start * d..blocks.end * d],
            upper: &self.upper[blocks.clone()],
            lower: &self.lower[blocks],
            largest: self.largest[head],
            keys,
        }
    }
}

/// An upper bound of the norm of a query whose squares were added up to `sum` in f32, over `d` columns; infinite if scores may
/// overflow with keys of norms up to `largest`.
pub(crate) fn query_norm(sum: f32, d: usize, largest: f32) -> f32 {
    let rounding = 1.0 + (d as f64 + 16.0) * f64::from(f32::EPSILON);
    // Squares that underflow.
    let norm = above(((f64::from(sum) + d as f64 * 2.0_f64.powi(-148)) * rounding).sqrt());
    if norm * largest < LARGEST { norm } else { f32::INFINITY }
}

/// Keys or values of a block as f32.
fn widened<'a>(source: &Source<'_>, first: usize, rows: usize, columns: usize, to: &'a mut [f32]) -> &'a [f32] {
    let to = &mut to[..rows * columns];
    let widen = Widen { source, first, rows, columns, to: to.as_mut_ptr() };
    // SAFETY: every machine has the portable level.
    unsafe { Portable::assume() }.vectorize(widen);
    to
}

/// The smallest f32 that is not smaller than `x`, or the one after.
fn above(x: f64) -> f32 {
    (x as f32).next_up()
}

/// A ball around some keys.
struct Ball {
    radius: f64,
    /// Norm of the centre.
    centre: f64,
    /// Distance from the centre to the mean.
    off: f64,
    /// The largest norm of a key.
    largest: f64,
}

impl Ball {
    /// The ball around the mean of `count` keys, which goes to `centre`; none if a key is not finite.
    fn around(keys: &[f32], count: usize, d: usize, centre: &mut [f32]) -> Option<Self> {
        if d > MOST_COLUMNS || !keys.iter().all(|x| x.is_finite()) {
            return None;
        }
        let mut ball = Self { radius: 0.0, centre: 0.0, off: 0.0, largest: 0.0 };
        for c in 0..d {
            let mean = (0..count).map(|key| f64::from(keys[key * d + c])).sum::<f64>() / count as f64;
            centre[c] = mean as f32;
            ball.centre += f64::from(centre[c]).powi(2);
            ball.off += (f64::from(centre[c]) - mean).powi(2);
        }
        for key in keys.chunks_exact(d.max(1)) {
            let (mut distance, mut norm) = (0.0, 0.0);
            for (x, c) in key.iter().zip(&*centre) {
                distance += (f64::from(*x) - f64::from(*c)).powi(2);
                norm += f64::from(*x).powi(2);
            }
            ball.radius = ball.radius.max(distance);
            ball.largest = ball.largest.max(norm);
        }
        let Self { radius, centre, off, largest } = ball;
        Some(Self { radius: radius.sqrt(), centre: centre.sqrt(), off: off.sqrt(), largest: largest.sqrt() })
    }

    /// What is added to, and taken from, the score of the centre, for each unit of the norm of the query.
    fn bounds(&self, d: usize) -> (f32, f32) {
        let Self { radius, centre, off, largest } = *self;
        let rounding = (d as f64 + 16.0) * f64::from(f32::EPSILON);
        // The sums here are in f64: what they round is less than a millionth.
        let slack = rounding * (2.0 * centre + largest);
        (above((radius + slack + rounding * radius) * (1.0 + 1e-6)), above((off + slack) * (1.0 + 1e-6)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::View;

    fn bounds_hold(keys: &[f32], queries: &[f32], d: usize) {
        let rows = keys.len() / d;
        let k = Tensor::F32(View::bhsd(keys, [1, 1, rows, d]).unwrap());
        let index = KeyIndex::new(&k, None);
        let head = index.head(0, 0);
        for q in queries.chunks_exact(d) {
            let dot = |x: &[f32]| q.iter().zip(x).fold(0.0_f32, |sum, (a, b)| sum + a * b);
            let norm = query_norm(q.iter().map(|x| x * x).sum(), d, head.largest);
            for (block, keys) in keys.chunks(INDEX_BLOCK * d).enumerate() {
                let best = keys.chunks_exact(d).map(dot).fold(f32::NEG_INFINITY, f32::max);
                let centre = dot(&head.centres[block * d..][..d]);
                let high = centre + norm * head.upper[block] + f32::MIN_POSITIVE;
                let low = centre - norm * head.lower[block] - f32::MIN_POSITIVE;
                assert!(best <= high || high.is_nan(), "{best} is above {high}");
                assert!(best >= low || low.is_nan(), "{best} is below {low}");
            }
        }
    }

    #[test]
    fn bounds_hold_at_any_size() {
        let mut state = 7_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        for d in [1, 3, 64, 200] {
            for size in [1e-30_f32, 1e-22, 1e-3, 1.0, 1e10, 1e19] {
                for spread in [0.0_f32, 1e-7, 1e-3, 1.0] {
                    let centre: Vec<f32> = (0..d).map(|_| size * next()).collect();
                    let keys: Vec<f32> = (0..130 * d).map(|i| centre[i % d] + spread * size * next()).collect();
                    let queries: Vec<f32> = (0..9 * d).map(|_| size * next()).collect();
                    bounds_hold(&keys, &queries, d);
                    bounds_hold(&keys, &centre, d);
                }
            }
        }
    }

    /// Blocks with a key that is not finite, or a value, have no bound.
    #[test]
    fn blocks_with_nan_have_no_bounds() {
        let mut keys = vec![1.0; 3 * INDEX_BLOCK * 2];
        keys[INDEX_BLOCK * 2 + 5] = f32::NAN;
        let mut values = vec![1.0; 3 * INDEX_BLOCK];
        values[2 * INDEX_BLOCK] = f32::INFINITY;
        let k = Tensor::F32(View::bhsd(&keys, [1, 1, 3 * INDEX_BLOCK, 2]).unwrap());
        let v = Tensor::F32(View::bhsd(&values, [1, 1, 3 * INDEX_BLOCK, 1]).unwrap());
        let none = |index: &KeyIndex| index.upper.iter().map(|x| *x == f32::INFINITY).collect::<Vec<_>>();
        assert_eq!(none(&KeyIndex::new(&k, None)), [false, true, false]);
        assert_eq!(none(&KeyIndex::new(&k, Some(&v))), [false, true, true]);
    }
}
