//! Caches that are asked for what they cannot do.

use crate::*;

const SHAPE: CacheShape = CacheShape { batch: 2, kv_heads: KV_HEADS, head_dim: D, value_dim: D_V };

/// Everything that a cache says and holds: each row of V by itself, and a product with each row of K.
fn contents(cache: &KvCache) -> (Vec<usize>, Vec<usize>, usize, Vec<u32>) {
    let oldest = (0..2).map(|batch| cache.oldest(batch)).collect();
    let rows = cache.lengths().iter().copied().max().unwrap_or(0);
    let first = (0..2).map(|batch| cache.oldest(batch)).max().unwrap_or(0);
    let q = normal([2, KV_HEADS, rows - first, D], 11);
    // Query i sees key `first + i` alone.
    let options = Attention::softmax().align(Align::Offset(first as i64)).window(Some(0), Some(0));
    let problem = cache.problem(&options, q.view()).expect("nothing is wrong with it");
    let output = regard_tests::run(&problem, &setup_of(levels()[0]), Execution::Serial);
    let lse = output.lse.expect("softmax has it");
    let bits = output.out.iter().chain(&lse).map(|x| x.to_bits()).collect();
    (cache.lengths().to_vec(), oldest, cache.capacity(), bits)
}

/// Caches of every type, growing and sliding, that are asked to take what does not fit: they keep every bit.
#[test]
fn caches_keep_what_they_have() {
    let (k, v) = (normal([2, KV_HEADS, 13, D], 1), normal([2, KV_HEADS, 13, D_V], 2));
    for dtype in Dtype::ALL {
        for sliding in [false, true] {
            let cache =
                if sliding { KvCache::sliding(dtype, SHAPE, 16) } else { KvCache::with_capacity(dtype, SHAPE, 16) };
            let mut cache = cache.expect("there is room");
            cache.append(k.view(), v.view()).expect("rows of the cache");
            let before = contents(&cache);
            assert!(before.3.len() > 100 && before.3.iter().any(|bits| *bits != before.3[0]));

            // 9 more rows, which would need more room, or overwrite, with one dimension or another wrong.
            let right = [[2, KV_HEADS, 9, D], [2, KV_HEADS, 9, D_V]];
            for (tensor, name) in ["k", "v"].into_iter().enumerate() {
                for (i, dimension) in DIMENSIONS.into_iter().enumerate() {
                    // More rows of k are fewer of v.
                    let mut shapes = right;
                    shapes[tensor][i] += 1;
                    let [k, v] = shapes.map(|shape| normal(shape, 3));
                    let (name, found, expected) = match (tensor, i) {
                        (0, 2) => ("v", 9, 10),
                        _ => (name, shapes[tensor][i], right[tensor][i]),
                    };
                    match cache.append(k.view(), v.view()) {
                        Err(Error::Dimension { tensor, dimension: of, found: is, expected: should, .. }) => {
                            assert_eq!((tensor, of, is, should), (name, dimension, found, expected));
                        }
                        other => panic!("{other:?}"),
                    }
                    assert_eq!(contents(&cache), before, "{name} with other {dimension}");
                }
            }
            let [k, v] = right.map(|shape| normal(shape, 3));
            // Types that are neither f32 nor the cache's own.
            for other in Dtype::ALL.into_iter().filter(|other| ![Dtype::F32, dtype].contains(other)) {
                let [other_k, other_v] = [&k, &v].map(|tensor| Stored::new(tensor, other, Layout::Bhsd));
                let mut expected = vec![Dtype::F32, dtype];
                expected.dedup();
                let wanted = |tensor| Err(Error::Dtype { tensor, found: other, expected: expected.clone() });
                assert_eq!(cache.append(other_k.tensor(), v.view()), wanted("k"));
                assert_eq!(cache.append(k.view(), other_v.tensor()), wanted("v"));
                assert_eq!(contents(&cache), before, "{other}");
            }
            // Rows whose elements lie apart.
            let data = vec![0.5_f32; 2000];
            let apart = |[b, h, r, c]: [usize; 4]| {
                View::strided(&data, [b, h, r, c], [h * r * c * 2, r * c * 2, c * 2, 2]).expect("within the data")
            };
            let error = cache.append(apart(right[0]), v.view()).expect_err("rows");
            assert_error!(error, Error::RowStride { tensor: "k", stride: 2 });
            let error = cache.append(k.view(), apart(right[1])).expect_err("rows");
            assert_error!(error, Error::RowStride { tensor: "v", stride: 2 });
            // Sequences that are not there.
            let [one_k, one_v] = [[1, KV_HEADS, 9, D], [1, KV_HEADS, 9, D_V]].map(|shape| normal(shape, 4));
            for batch in [2, usize::MAX] {
                let missing = Err(Error::Batch { batch, entries: 2 });
                assert_eq!(cache.append_to(batch, one_k.view(), one_v.view()), missing);
                assert_eq!(cache.truncate(batch, 0), missing);
            }
            let error = cache.append_to(1, k.view(), v.view()).expect_err("two sequences");
            assert_error!(error, Error::Dimension { tensor: "k", dimension: "batch", found: 2, expected: 1, .. });
            // More keys than can be counted, which are one row in memory.
            let rows = u32::MAX as usize;
            let many = |columns| View::strided(&data, [2, KV_HEADS, rows, columns], [0, 0, 0, 1]).expect("one row");
            let error = cache.append(many(D), many(D_V)).expect_err("too many");
            assert_error!(error, Error::TooManyKeys { keys, max } if (*keys, *max) == (rows + 13, rows - 1));
            assert_eq!(contents(&cache), before);

            // And what is right is taken after all that.
            cache.append(k.view(), v.view()).expect("rows of the cache");
            assert_eq!(cache.lengths(), [22, 22]);
        }
    }
}

#[test]
fn queries_that_do_not_fit_a_cache() {
    let (k, v) = (normal([2, KV_HEADS, 13, D], 1), normal([2, KV_HEADS, 13, D_V], 2));
    let mut cache = KvCache::sliding(Dtype::Bf16, SHAPE, 8).expect("there is room");
    cache.append(k.view(), v.view()).expect("rows of the cache");
    let window = Attention::softmax().causal(Align::BottomRight).window(Some(6), None);
    let error = |options: &Attention<'_>, shape: [usize; 4]| {
        let q = normal(shape, 3);
        cache.problem(options, q.view()).map(drop).expect_err("there is something wrong with it")
    };
    assert!(cache.problem(&window, normal([2, HEADS, 2, D], 3).view()).is_ok());
    assert_error!(
        error(&window, [3, HEADS, 2, D]),
        Error::Dimension { tensor: "k", dimension: "batch", found: 2, expected: 3, .. }
    );
    assert_error!(error(&window, [2, 3, 2, D]), Error::Heads { query_heads: 3, kv_heads: 2 });
    assert_error!(
        error(&window, [2, HEADS, 2, D + 1]),
        Error::Dimension { tensor: "k", dimension: "columns", found: 6, expected: 7, .. }
    );
    // Three queries need one key more than two.
    assert_error!(error(&window, [2, HEADS, 3, D]), Error::Overwritten { sequence: 0, row: 0, key: 4, oldest: 5 });
    assert_error!(
        error(&Attention::softmax(), [2, HEADS, 1, D]),
        Error::Overwritten { sequence: 0, row: 0, key: 0, oldest: 5 }
    );
    let q = normal([1, HEADS, 4, D], 3);
    for offsets in [&[0, 4][..], &[0, 1, 2, 3]] {
        let result = cache.ragged(&window, q.view(), Queries::Packed(offsets)).map(drop);
        assert_error!(
            result.expect_err("two sequences"),
            Error::Dimension { tensor: "k", dimension: "batch", found: 2, expected, .. } if *expected == offsets.len() - 1
        );
    }
    let lengths = [14, 13];
    let longer = window.clone().key_lengths(&lengths);
    assert_error!(error(&longer, [2, HEADS, 1, D]), Error::KeyLength { batch: 0, length: 14, keys: 13 });
    let bytes = Stored::new(&q, Dtype::Int8, Layout::Bhsd);
    let expected = vec![Dtype::F32, Dtype::F16, Dtype::Bf16];
    let result = cache.problem(&window, bytes.tensor()).map(drop);
    assert_eq!(result, Err(Error::Dtype { tensor: "q", found: Dtype::Int8, expected }));
}
