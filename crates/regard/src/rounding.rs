//! How kernels round the products of queries and keys: what decides ties.

use regard_kernels::tensor::Dtype;
use regard_simd::{Element, Isa, bf16, f16};

/// How the products `<q, k>` of a sequence are rounded.
///
/// Selection compares scores, so that the oracle of hard and average-hard attention must round products as the kernel
/// did. [`Plan::rounding`](crate::Plan::rounding) says how that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// One chain of multiply-adds over the columns, in order: the lanes kernels.
    Chain(Isa),
    /// A chain in each lane, and a tree over the lanes: the rows kernels.
    Lanes {
        /// The level, which has the lanes.
        isa: Isa,
        /// The element type of k, which decides what element meets which lane.
        dtype: Dtype,
    },
}

impl From<Isa> for Rounding {
    fn from(isa: Isa) -> Self {
        Self::Chain(isa)
    }
}

impl Rounding {
    /// The product of a query and a key. `key` are its elements before their scale, which is there for int8.
    pub(crate) fn product(self, query: &[f32], key: &[f32], scale: Option<f32>) -> f32 {
        match self {
            Self::Chain(isa) => {
                let scaled = |k: &f32| scale.map_or(*k, |scale| k * scale);
                query.iter().zip(key).fold(0.0, |sum, (q, k)| mul_add(isa, *q, scaled(k), sum))
            }
            Self::Lanes { isa, dtype } => {
                let sum = in_lanes(isa, dtype, query, key);
                scale.map_or(sum, |scale| sum * scale)
            }
        }
    }
}

/// `a * b + c` as the level rounds it.
fn mul_add(isa: Isa, a: f32, b: f32, c: f32) -> f32 {
    match isa {
        Isa::Portable => a * b + c,
        _ => a.mul_add(b, c),
    }
}

/// Two vectors of columns at a time, the first before the second, then lanes half a vector apart, a quarter, and so on.
fn in_lanes(isa: Isa, dtype: Dtype, query: &[f32], key: &[f32]) -> f32 {
    let lanes = isa.lanes();
    let mut sums = vec![0.0; lanes];
    for (query, key) in query.chunks(2 * lanes).zip(key.chunks(2 * lanes)) {
        for half in 0..2 {
            for (i, (q, k)) in query.iter().zip(key).enumerate() {
                let place = place(dtype, i, lanes);
                if place / lanes == half {
                    let sum = &mut sums[place % lanes];
                    *sum = mul_add(isa, *q, *k, *sum);
                }
            }
        }
    }
    let mut width = lanes / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

/// Where element `i` lies in two vectors of these lanes.
fn place(dtype: Dtype, i: usize, lanes: usize) -> usize {
    match dtype {
        Dtype::F32 => f32::place(i, lanes),
        Dtype::F16 => f16::place(i, lanes),
        Dtype::Bf16 => bf16::place(i, lanes),
        Dtype::Int8 => i8::place(i, lanes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_gives_the_product_of_small_integers() {
        let query: Vec<f32> = (0..77).map(|i| (i % 13) as f32 - 6.0).collect();
        let key: Vec<f32> = (0..77).map(|i| (i % 7) as f32 - 3.0).collect();
        let exact: f32 = query.iter().zip(&key).map(|(q, k)| q * k).sum();
        for isa in Isa::ALL {
            assert_eq!(Rounding::from(isa).product(&query, &key, None), exact);
            assert_eq!(Rounding::from(isa).product(&query, &key, Some(0.5)), exact / 2.0);
            for dtype in Dtype::ALL {
                let lanes = Rounding::Lanes { isa, dtype };
                assert_eq!(lanes.product(&query, &key, None), exact);
                assert_eq!(lanes.product(&query, &key, Some(0.5)), exact / 2.0);
                assert_eq!(lanes.product(&[], &[], None), 0.0);
            }
        }
    }

    #[test]
    fn the_order_of_sums_is_that_of_the_lanes() {
        // 8 lanes: element 8 meets lane 0 after element 0; 4 is half a vector away.
        let mut query = vec![0.0; 16];
        (query[0], query[4], query[8]) = (1e8, 1.0, -1e8);
        let ones = [1.0; 16];
        let lanes = Rounding::Lanes { isa: Isa::Avx2, dtype: Dtype::F32 };
        assert_eq!(lanes.product(&query, &ones, None), 1.0);
        assert_eq!(Rounding::Chain(Isa::Avx2).product(&query, &ones, None), 0.0);
        // Of bf16, even elements are in the first vector: element 8 is in lane 4.
        let lanes = Rounding::Lanes { isa: Isa::Avx2, dtype: Dtype::Bf16 };
        (query[0], query[4], query[8]) = (1e8, 0.0, -1e8);
        (query[1], query[9]) = (1.0, 0.0);
        assert_eq!(lanes.product(&query, &ones, None), 0.0);
    }
}
