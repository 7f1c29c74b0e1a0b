//! Sequences and tensors that do not fit each other.

use crate::*;

#[test]
fn sequences_that_are_not_there() {
    let batch = Batch::new();
    let queries = Queries::Packed(&QUERIES);
    for keys in [Keys::Packed(&KEYS), paged(&TABLE, &LENGTHS), Keys::Ring { lengths: &[5, 4, 5] }, Keys::Padded] {
        for queries in [queries, Queries::Padded] {
            assert!(batch.problem(&Attention::softmax(), queries, keys).is_ok(), "{queries:?}, {keys:?}");
        }
    }

    // Offsets of queries, then of keys.
    let of_queries = |offsets: &[usize]| batch.error(Queries::Packed(offsets), Keys::Packed(&KEYS));
    assert_error!(of_queries(&[]), Error::Length { list: "the offsets of the queries", found: 0, expected: 1, .. });
    assert_error!(
        of_queries(&[1, 2, 2, 8]),
        Error::Offset { list: "the offsets of the queries", index: 0, found: 1, least: 0, most: 0 }
    );
    assert_error!(of_queries(&[0, 4, 3, 8]), Error::Offset { index: 2, found: 3, least: 4, most: 9, .. });
    assert_error!(of_queries(&[0, 2, 2, 10]), Error::Offset { index: 3, found: 10, least: 2, most: 9, .. });
    assert_error!(of_queries(&[0, 2, usize::MAX, 8]), Error::Offset { index: 2, found: usize::MAX, .. });
    let of_keys = |offsets: &[usize]| batch.error(queries, Keys::Packed(offsets));
    for n in [0, 1, 3, 5] {
        let error = of_keys(&[0, 1, 2, 3, 4][..n]);
        assert_error!(error, Error::Length { list: "the offsets of the keys", found, expected: 4, .. } if *found == n);
    }
    assert_error!(
        of_keys(&[2, 7, 12, 20]),
        Error::Offset { list: "the offsets of the keys", index: 0, found: 2, least: 0, most: 0 }
    );
    assert_error!(of_keys(&[0, 7, 12, 21]), Error::Offset { index: 3, found: 21, least: 12, most: 20, .. });
    assert_error!(of_keys(&[0, 13, 12, 20]), Error::Offset { index: 2, found: 12, least: 13, most: 20, .. });

    // Pages and rings.
    let of_pages = |table: &[u32], lengths: &[usize]| batch.error(queries, paged(table, lengths));
    for n in [0, 8] {
        let error = of_pages(&TABLE[..n], &LENGTHS);
        assert_error!(error, Error::Length { list: "the page table", found, expected: 9, .. } if *found == n);
    }
    for n in [0, 2] {
        let error = of_pages(&TABLE, &LENGTHS[..n]);
        assert_error!(error, Error::Length { list: "the lengths of the keys", found, expected: 3, .. } if *found == n);
    }
    assert_error!(of_pages(&TABLE, &[10, 8, 13]), Error::KeyLength { batch: 2, length: 13, keys: 12 });
    assert_error!(of_pages(&TABLE, &[10, 9, 5]), Error::Page { sequence: 1, page: 2, index: 99, pages: 8 });
    let mut table = TABLE;
    table[7] = 8;
    assert_error!(of_pages(&table, &LENGTHS), Error::Page { sequence: 2, page: 1, index: 8, pages: 8 });
    let of_rings = |lengths: &[usize]| batch.error(queries, Keys::Ring { lengths });
    assert_error!(of_rings(&[5, 5]), Error::Length { list: "the lengths of the keys", found: 2, expected: 3, .. });
    assert_error!(of_rings(&[5, 5, 6]), Error::Overwritten { sequence: 2, row: 0, key: 0, oldest: 1 });
    let causal = Attention::softmax().causal(Align::BottomRight).window(Some(3), None);
    let error = batch.problem(&causal, queries, Keys::Ring { lengths: &[9, 30, 9] }).expect_err("6 queries of 4 keys");
    assert_error!(error, Error::Overwritten { sequence: 2, row: 0, key: 0, oldest: 4 });
    assert!(batch.problem(&causal, queries, Keys::Ring { lengths: &[5, 30, 5] }).is_ok());
}

#[test]
fn tensors_that_do_not_fit_their_sequences() {
    let Batch { packed_q, padded_q, packed, pages, rings } = Batch::new();
    let error = |q: &Tensor, queries, [k, v]: &[Tensor; 2], keys| {
        Problem::ragged(&Attention::softmax(), q.view(), queries, k.view(), v.view(), keys).expect_err("no fit")
    };
    let queries = Queries::Packed(&QUERIES);
    assert_error!(
        error(&padded_q, Queries::Packed(&[0, 1, 2, 2]), &packed, Keys::Packed(&KEYS)),
        Error::Dimension { tensor: "q", dimension: "batch", found: 3, expected: 1, .. }
    );
    assert_error!(
        error(&packed_q, queries, &rings, Keys::Packed(&[0, 1, 2, 3])),
        Error::Dimension { tensor: "k", dimension: "batch", found: 3, expected: 1, .. }
    );
    for keys in [Keys::Padded, Keys::Ring { lengths: &[1, 1, 1] }] {
        assert_error!(
            error(&packed_q, queries, &packed, keys),
            Error::Dimension { tensor: "k", dimension: "batch", found: 1, expected: 3, .. }
        );
    }
    let cut = [pages[0].clone(), pages[1].rows(0, 3)];
    assert_error!(
        error(&packed_q, queries, &cut, paged(&TABLE, &LENGTHS)),
        Error::Dimension { tensor: "v", dimension: "rows", found: 3, expected: 4, .. }
    );
    let fewer = [pages[0].clone(), normal([7, KV_HEADS, 4, D_V], 5)];
    assert_error!(
        error(&packed_q, queries, &fewer, paged(&TABLE, &LENGTHS)),
        Error::Dimension { tensor: "v", dimension: "batch", found: 7, expected: 8, .. }
    );
    // Rings and pages without rows.
    let none = [normal([3, KV_HEADS, 0, D], 5), normal([3, KV_HEADS, 0, D_V], 5)];
    assert_error!(
        error(&packed_q, queries, &none, Keys::Ring { lengths: &[0, 0, 1] }),
        Error::KeyLength { batch: 2, length: 1, keys: 0 }
    );
    assert_error!(
        error(&packed_q, queries, &none, paged(&TABLE, &[0, 2, 0])),
        Error::KeyLength { batch: 1, length: 2, keys: 0 }
    );
    // More keys than an index can name, of which there is one in memory.
    let most = u32::MAX as usize - 1;
    let one = [1.0_f32];
    let q = View::bhsd(&one, [1, 1, 1, 1]).expect("one");
    let many = |rows| View::strided(&one, [1, 1, rows, 1], [0, 0, 0, 1]).expect("one, many times");
    let error = Problem::new(&Attention::softmax(), q, many(most + 1), many(most + 1)).expect_err("too many");
    assert_error!(error, Error::TooManyKeys { keys, max } if (*keys, *max) == (most + 1, most));
    assert!(Problem::new(&Attention::softmax(), q, many(most), many(most)).is_ok());
    let ring = Keys::Ring { lengths: &[usize::MAX] };
    let error = Problem::ragged(&Attention::softmax(), q, Queries::Padded, many(4), many(4), ring);
    assert_error!(error.expect_err("too many"), Error::TooManyKeys { keys: usize::MAX, max } if *max == most);
}

/// Scales that do not fit their tensor, dimension by dimension; rows whose elements are not side by side, of every type.
#[test]
fn quantised_tensors_that_do_not_fit() {
    let [q, k, v] = [[2, HEADS, 3, D], [2, KV_HEADS, 9, D], [2, KV_HEADS, 9, D_V]];
    let (bytes, scales, ones) = (vec![1_i8; 1000], vec![0.5_f32; 1000], vec![1.0_f32; 1000]);
    let rows = |shape: [usize; 4], of_scales: [usize; 4]| Quantised {
        data: View::bhsd(&bytes, shape).expect("within the data"),
        scales: View::bhsd(&scales, of_scales).expect("within the data"),
    };
    let q = View::bhsd(&ones, q).expect("within the data");
    let right = |[batch, heads, rows, _]: [usize; 4]| [batch, heads, rows, 1];
    for (i, dimension) in DIMENSIONS.into_iter().enumerate() {
        for more in [1, 2] {
            let wrong = |shape: [usize; 4]| {
                let mut scales = right(shape);
                scales[i] += more;
                scales
            };
            let (found, expected) = (wrong(k)[i], right(k)[i]);
            for (tensor, of_k, of_v) in
                [("the scales of k", wrong(k), right(v)), ("the scales of v", right(k), wrong(v))]
            {
                let problem = Problem::new(&Attention::softmax(), q, rows(k, of_k), rows(v, of_v)).map(drop);
                let wanted = (tensor, dimension, found, expected);
                match problem {
                    Err(Error::Dimension { tensor, dimension, found, expected, .. }) => {
                        assert_eq!((tensor, dimension, found, expected), wanted);
                    }
                    other => panic!("{other:?} instead of {wanted:?}"),
                }
                let shape = CacheShape { batch: 2, kv_heads: KV_HEADS, head_dim: D, value_dim: D_V };
                let mut cache = KvCache::new(Dtype::Int8, shape).expect("there is room");
                match cache.append(rows(k, of_k), rows(v, of_v)) {
                    Err(Error::Dimension { tensor, dimension, found, expected, .. }) => {
                        assert_eq!((tensor, dimension, found, expected), wanted);
                    }
                    other => panic!("{other:?} instead of {wanted:?}"),
                }
                assert_eq!((cache.lengths(), cache.capacity()), (&[0, 0][..], 0));
            }
        }
    }
    // Every second element.
    let apart = [KV_HEADS * 9 * D * 2, 9 * D * 2, D * 2, 2];
    let data = View::strided(&bytes, k, apart).expect("within the data");
    let scales = View::bhsd(&scales, right(k)).expect("within the data");
    let error = Problem::new(&Attention::softmax(), q, Quantised { data, scales }, rows(k, right(k)));
    assert_error!(error.expect_err("rows"), Error::RowStride { tensor: "k", stride: 2 });
    let halves = vec![f16::ONE; 1000];
    let [near, far] = [View::bhsd(&halves, k), View::strided(&halves, k, apart)].map(|view| view.expect("within"));
    let error = Problem::new(&Attention::softmax(), q, near, far);
    assert_error!(error.expect_err("rows"), Error::RowStride { tensor: "v", stride: 2 });
    let error = Problem::new(&Attention::softmax(), rows(k, right(k)), near, near);
    let expected = vec![Dtype::F32, Dtype::F16, Dtype::Bf16];
    assert_eq!(error.expect_err("q"), Error::Dtype { tensor: "q", found: Dtype::Int8, expected });
}
