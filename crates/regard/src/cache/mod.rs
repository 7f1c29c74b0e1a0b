//! Keys and values of sequences that grow, token by token.

mod store;

use regard_kernels::tensor::{Dtype, Tensor};
use regard_kernels::view::ViewError;

use self::store::Store;
use crate::layout::{self, MOST_KEYS};
use crate::{Attention, Error, Keys, Problem, Queries, checks};

/// The sizes of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CacheShape {
    /// Sequences.
    pub batch: usize,
    /// Heads of k and v.
    pub kv_heads: usize,
    /// Columns of k.
    pub head_dim: usize,
    /// Columns of v.
    pub value_dim: usize,
}

/// Keys and values of sequences that grow: f32, f16, bf16 or int8, each sequence with a length of its own.
///
/// A cache grows as needed ([`KvCache::new`]), or keeps the last keys of each sequence in a ring of fixed size
/// ([`KvCache::sliding`]). Keys are numbered from the first one ever appended in both, so that a sliding cache gives,
/// bit for bit, what one that grows does under the same window.
///
/// ```
/// use regard::{Align, Attention, CacheShape, Dtype, KvCache, View};
///
/// let shape = CacheShape { batch: 1, kv_heads: 2, head_dim: 8, value_dim: 8 };
/// let mut cache = KvCache::new(Dtype::Bf16, shape)?;
/// let options = Attention::softmax().causal(Align::BottomRight);
///
/// // A prompt of 5 tokens, then one token at a time; 4 query heads.
/// for tokens in [5, 1, 1] {
///     let (q, kv) = (vec![0.1; 4 * tokens * 8], vec![0.5; 2 * tokens * 8]);
///     let kv = View::bhsd(&kv, [1, 2, tokens, 8])?;
///     cache.append(kv, kv)?;
///     let out = cache.problem(&options, View::bhsd(&q, [1, 4, tokens, 8])?)?.attention()?;
///     assert!(out.iter().all(|x| (x - 0.5).abs() < 1e-6));
/// }
/// assert_eq!(cache.len(0), 7);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// For speed, make one [`Plan`](crate::Plan) and run it with the problem of each step: it serves up to
/// [`KvCache::capacity`] keys, and any number in a sliding cache.
///
/// The system is asked for large pages ([`advise_large_pages`](crate::advise_large_pages)), and gives memory as keys are written,
/// a page at a time.
#[derive(Clone, Debug)]
pub struct KvCache {
    dtype: Dtype,
    shape: CacheShape,
    /// Rows of each head of each sequence.
    capacity: usize,
    sliding: bool,
    /// Keys that each sequence ever had.
    lengths: Vec<usize>,
    /// The first key of each sequence that is still there.
    oldest: Vec<usize>,
    k: Store,
    v: Store,
}

/// The least room that is made for a sequence, in keys.
const LEAST_CAPACITY: usize = 16;

impl KvCache {
    /// An empty cache that grows as needed: its capacity doubles, so that appending a token costs no more than a few
    /// copies of it.
    ///
    /// # Errors
    /// [`Error::View`] if one key of each sequence is more than can be counted.
    pub fn new(dtype: Dtype, shape: CacheShape) -> Result<Self, Error> {
        Self::with_capacity(dtype, shape, 0)
    }

    /// The same with room for `capacity` keys of each sequence from the start.
    ///
    /// # Errors
    /// [`Error::View`] if that is more than can be counted.
    pub fn with_capacity(dtype: Dtype, shape: CacheShape, capacity: usize) -> Result<Self, Error> {
        Self::made(dtype, shape, capacity, false)
    }

    /// An empty cache that keeps the last `capacity` keys of each sequence. For a window of `left` keys before a query
    /// and steps of `n` queries, `left + n` are needed.
    ///
    /// # Errors
    /// [`Error::View`] if that is more than can be counted, [`Error::Number`] if `capacity` is 0.
    pub fn sliding(dtype: Dtype, shape: CacheShape, capacity: usize) -> Result<Self, Error> {
        if capacity == 0 {
            return Err(Error::Number { name: "the capacity of a sliding cache", value: 0.0, expected: "at least 1" });
        }
        Self::made(dtype, shape, capacity, true)
    }

    fn made(dtype: Dtype, shape: CacheShape, capacity: usize, sliding: bool) -> Result<Self, Error> {
        let CacheShape { batch, kv_heads, head_dim, value_dim } = shape;
        check_room(shape, capacity.max(1))?;
        let heads = batch * kv_heads;
        let mut cache = Self {
            dtype,
            shape,
            capacity: 0,
            sliding,
            lengths: vec![0; batch],
            oldest: vec![0; batch],
            k: Store::new(dtype, heads, head_dim),
            v: Store::new(dtype, heads, value_dim),
        };
        if capacity > 0 {
            cache.grow(capacity);
        }
        Ok(cache)
    }

    /// The element type that keys and values are kept in.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The sizes.
    pub fn shape(&self) -> CacheShape {
        self.shape
    }

    /// Keys that there is room for in each sequence.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Keys that a sequence has, and the number of the next one. A sliding cache counts those that it has forgotten too.
    ///
    /// # Panics
    /// If there is no such batch entry.
    pub fn len(&self, batch: usize) -> usize {
        self.lengths[batch]
    }

    /// Keys of all sequences; see [`KvCache::len`].
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// The first key of a sequence that is still there: 0 unless the cache slides.
    ///
    /// # Panics
    /// If there is no such batch entry.
    pub fn oldest(&self, batch: usize) -> usize {
        self.oldest[batch]
    }

    /// Appends as many keys and values to every sequence: k `[batch, kv_heads, rows, d]`, v `[batch, kv_heads, rows,
    /// d_v]`, each f32, which is rounded to the type of the cache ([`crate::quantise`] says how to int8), or of that
    /// type.
    ///
    /// # Errors
    /// [`Error`], with the cache as it was, if shapes or types do not fit, or sequences become too long.
    pub fn append<'t>(&mut self, k: impl Into<Tensor<'t>>, v: impl Into<Tensor<'t>>) -> Result<(), Error> {
        self.append_rows(0, self.shape.batch, k.into(), v.into())
    }

    /// Appends keys and values to one sequence: k `[1, kv_heads, rows, d]`, v `[1, kv_heads, rows, d_v]`.
    ///
    /// # Errors
    /// As for [`KvCache::append`]; [`Error::Batch`] if there is no such batch entry.
    pub fn append_to<'t>(
        &mut self,
        batch: usize,
        k: impl Into<Tensor<'t>>,
        v: impl Into<Tensor<'t>>,
    ) -> Result<(), Error> {
        self.check_batch(batch)?;
        self.append_rows(batch, 1, k.into(), v.into())
    }

    fn append_rows(&mut self, first: usize, entries: usize, k: Tensor<'_>, v: Tensor<'_>) -> Result<(), Error> {
        let CacheShape { kv_heads, head_dim, value_dim, .. } = self.shape;
        let rows = k.shape()[2];
        let k = self.check_rows(["k", "the scales of k"], k, [entries, kv_heads, rows, head_dim])?;
        let v = self.check_rows(["v", "the scales of v"], v, [entries, kv_heads, rows, value_dim])?;
        let longest = self.lengths[first..first + entries].iter().copied().max().unwrap_or(0);
        let keys = longest.saturating_add(rows);
        if keys > MOST_KEYS {
            return Err(Error::TooManyKeys { keys, max: MOST_KEYS });
        }
        if !self.sliding && keys > self.capacity {
            check_room(self.shape, keys)?;
            let doubled = self.capacity.saturating_mul(2).max(LEAST_CAPACITY);
            self.grow(if check_room(self.shape, doubled).is_ok() { keys.max(doubled) } else { keys });
        }
        for entry in 0..entries {
            let length = self.lengths[first + entry];
            // Rows that later ones of the same call would overwrite are not written.
            for row in rows.saturating_sub(self.capacity)..rows {
                let slot = (length + row) % self.capacity;
                for head in 0..kv_heads {
                    let place = (first + entry) * kv_heads + head;
                    self.k.write(place, slot, &k, [entry, head, row]);
                    self.v.write(place, slot, &v, [entry, head, row]);
                }
            }
            let length = length + rows;
            self.lengths[first + entry] = length;
            let oldest = &mut self.oldest[first + entry];
            *oldest = (*oldest).max(length.saturating_sub(self.capacity));
        }
        Ok(())
    }

    /// Forgets the keys of a sequence from number `len` on; nothing if it has no more. In a sliding cache, keys that
    /// were overwritten by those do not come back.
    ///
    /// # Errors
    /// [`Error::Batch`] if there is no such batch entry.
    pub fn truncate(&mut self, batch: usize, len: usize) -> Result<(), Error> {
        self.check_batch(batch)?;
        let length = &mut self.lengths[batch];
        *length = len.min(*length);
        self.oldest[batch] = self.oldest[batch].min(*length);
        Ok(())
    }

    /// Forgets all keys of all sequences, and keeps the room.
    pub fn clear(&mut self) {
        self.lengths.fill(0);
        self.oldest.fill(0);
    }

    /// The problem of these queries, `[batch, query_heads, queries, d]`, and the keys and values of their sequences,
    /// which are read where they lie.
    ///
    /// # Errors
    /// As for [`Problem::new`]; [`Error::Overwritten`] if a query sees a key that a sliding cache has forgotten.
    pub fn problem<'a>(&'a self, options: &Attention<'a>, q: impl Into<Tensor<'a>>) -> Result<Problem<'a>, Error> {
        self.ragged(options, q, Queries::Padded)
    }

    /// The same for queries of different numbers.
    ///
    /// # Errors
    /// As for [`Problem::ragged`]; [`Error::Overwritten`] if a query sees a key that a sliding cache has forgotten.
    pub fn ragged<'a>(
        &'a self,
        options: &Attention<'a>,
        q: impl Into<Tensor<'a>>,
        queries: Queries<'_>,
    ) -> Result<Problem<'a>, Error> {
        let q = q.into();
        let heads = [self.shape.batch, self.shape.kv_heads];
        let (keys, rows) = if self.sliding {
            (Keys::Ring { lengths: &self.lengths }, self.capacity)
        } else {
            (Keys::Padded, self.lengths.iter().copied().max().unwrap_or(0))
        };
        let (k, v) = (self.k.tensor(heads, rows), self.v.tensor(heads, rows));
        checks::elements(&q, &k, &v)?;
        let mut placement = layout::place(queries, keys, q.shape(), k.shape())?;
        for (place, (length, oldest)) in placement.places.iter_mut().zip(self.lengths.iter().zip(&self.oldest)) {
            (place.keys, place.oldest) = (*length, *oldest);
        }
        if !self.sliding {
            placement.most_keys = self.capacity.min(MOST_KEYS);
            placement.mixed = true;
        }
        Problem::placed(options, [q, k, v], queries, placement)
    }

    fn grow(&mut self, capacity: usize) {
        let (lengths, kv_heads) = (&self.lengths, self.shape.kv_heads);
        let kept = |head: usize| lengths[head / kv_heads];
        self.k.grow(capacity, kept);
        self.v.grow(capacity, kept);
        self.capacity = capacity;
    }

    fn check_batch(&self, batch: usize) -> Result<(), Error> {
        let entries = self.shape.batch;
        if batch < entries { Ok(()) } else { Err(Error::Batch { batch, entries }) }
    }

    /// Rows to append, with a scale for each if they have scales.
    fn check_rows<'t>(
        &self,
        [tensor, scales]: [&'static str; 2],
        rows: Tensor<'t>,
        expected: [usize; 4],
    ) -> Result<Tensor<'t>, Error> {
        if rows.dtype() != Dtype::F32 && rows.dtype() != self.dtype {
            let mut expected = vec![Dtype::F32, self.dtype];
            expected.dedup();
            return Err(Error::Dtype { tensor, found: rows.dtype(), expected });
        }
        let found = rows.shape();
        if let Some(i) = (0..4).find(|i| found[*i] != expected[*i]) {
            return Err(Error::Dimension {
                tensor,
                dimension: regard_kernels::view::DIMENSIONS[i],
                found: found[i],
                expected: expected[i],
                reason: if i == 2 { "the rows of k" } else { "the sizes of the cache" },
            });
        }
        let stride = rows.strides()[3];
        if stride != 1 && found[3] > 1 {
            return Err(Error::RowStride { tensor, stride });
        }
        checks::scales(rows, scales)
    }
}

/// Whether so many keys can be counted.
fn check_room(shape: CacheShape, capacity: usize) -> Result<(), Error> {
    let CacheShape { batch, kv_heads, head_dim, value_dim } = shape;
    for (tensor, columns) in [("the keys of the cache", head_dim), ("the values of the cache", value_dim)] {
        let shape = [batch, kv_heads, capacity, columns];
        // Sizes of parts are computed from parts of shapes, so that zeros do not make up for the rest.
        let sizes = shape.iter().filter(|size| **size > 0);
        let len = sizes.copied().try_fold(1_usize, usize::checked_mul);
        if len.is_none_or(|len| len > isize::MAX as usize / 8) {
            return Err(Error::View { tensor, source: ViewError::Overflow { shape } });
        }
    }
    Ok(())
}
