//! What fixed queries have seen of keys that come one by one.

use regard_kernels::tensor::{Tensor, TensorMut};
use regard_kernels::view::{View, ViewError};

use super::{contiguous, dimensions, no_positions, plain, widen_row};
use crate::options::{Attention, Temperature};
use crate::{Error, Execution, Partial, Plan, Problem, Setup, checks};

/// Keys that wait before they are seen together. Blocks lie on a grid from the first key, however the keys came, so that the
/// result does not depend on it.
const BLOCK: usize = 128;

/// Blocks of one push that are computed at a time, by as many threads as there are.
const GROUP: usize = 16;

/// Heads and columns of what is pushed to a [`State`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StateShape {
    /// Heads of k and v.
    pub kv_heads: usize,
    /// Columns of v.
    pub value_dim: usize,
}

/// Attention of fixed queries over keys that come one by one, or block by block, in constant memory: a recurrent network
/// whose state is a [`Partial`] result, for every weighting.
///
/// Keys pushed one after the other give the same bits as all of them in one block, whatever the pieces: `push`, `push_block` and
/// any mixture. That equals attention over all keys at once to rounding, hard attention without ties bit for bit.
///
/// ```
/// use regard::{Attention, Execution, State, StateShape, View, ViewMut};
///
/// let q = [0.5, -1.0];
/// let shape = StateShape { kv_heads: 1, value_dim: 1 };
/// let mut state = State::new(&Attention::softmax().scale(1.0), View::bhsd(&q, [1, 1, 1, 2])?, shape)?;
/// state.push(&[2.0, 1.0], &[3.0])?; // score 0
/// state.push(&[0.0, 0.0], &[5.0])?; // score 0
/// let mut out = [0.0];
/// state.output(ViewMut::bhsd(&mut out, [1, 1, 1, 1])?, None)?;
/// assert!((out[0] - 4.0).abs() < 1e-6);
///
/// // More keys at once. The output before has taken nothing away.
/// let (k, v) = ([20.0, 0.0, 20.0, 0.0], [7.0, 9.0]);
/// state.push_block(View::bhsd(&k, [1, 1, 2, 2])?, View::bhsd(&v, [1, 1, 2, 1])?, Execution::Serial)?;
/// state.output(ViewMut::bhsd(&mut out, [1, 1, 1, 1])?, None)?;
/// assert!((out[0] - 8.0).abs() < 1e-2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct State<'a> {
    options: Attention<'a>,
    /// Temperatures of the rows of one batch entry, [`GROUP`] times, for each batch entry; if each row has its own.
    temperatures: Vec<f32>,
    /// `[batch, query_heads, queries, d]`
    queries: Vec<f32>,
    q_shape: [usize; 4],
    shape: StateShape,
    /// Keys that wait, and their values: `[batch, kv_heads, BLOCK, ..]`.
    k: Vec<f32>,
    v: Vec<f32>,
    waiting: usize,
    keys: u64,
    /// All batch entries.
    total: Partial,
    /// Blocks of one batch entry: as many as are computed at a time, and one.
    parts: [Partial; 2],
    plan: Plan,
    workspace: Vec<f32>,
}

impl<'a> State<'a> {
    /// The state of queries q, `[batch, query_heads, queries, d]` of f32, f16 or bf16, which have seen no key.
    ///
    /// # Errors
    /// [`Error::NoMeaning`] for masks, biases and ALiBi, which ask for positions of the queries among the keys, and where
    /// something depends on the number of keys ([`Count::Constant`](crate::Count::Constant) says what it is); and what is wrong
    /// with q and the numbers of the options, as for [`Problem::new`].
    pub fn new(options: &Attention<'a>, q: impl Into<Tensor<'a>>, shape: StateShape) -> Result<Self, Error> {
        let q = q.into();
        no_positions(options)?;
        contiguous("q", &q)?;
        let q_shape @ [batch, heads, rows, d] = q.shape();
        // The number of temperatures and such, before anything is made of them.
        let StateShape { kv_heads, value_dim } = shape;
        let empty = |columns| View::bhsd(&[] as &[f32], [batch, kv_heads, 0, columns]);
        let wrong = |tensor| move |source| Error::View { tensor, source };
        let (no_keys, no_values) = (empty(d).map_err(wrong("k"))?, empty(value_dim).map_err(wrong("v"))?);
        let total = Partial::new(&Problem::new(options, q, no_keys, no_values)?)?;
        let mut queries = vec![0.0; batch * heads * rows * d];
        for (row, to) in queries.chunks_exact_mut(d.max(1)).enumerate() {
            widen_row(&q, [row / (heads * rows), row / rows % heads, row % rows], to);
        }
        let temperatures = match options.temperature {
            Temperature::PerRow(all) if heads * rows > 0 => {
                all.chunks_exact(heads * rows).flat_map(|entry| entry.repeat(GROUP)).collect()
            }
            _ => Vec::new(),
        };
        let room = |columns: usize| {
            let shape = [batch, kv_heads, BLOCK, columns];
            let len =
                shape.into_iter().try_fold(1_usize, usize::checked_mul).filter(|len| *len <= isize::MAX as usize / 4);
            len.ok_or(Error::View { tensor: "the keys that wait", source: ViewError::Overflow { shape } })
        };
        let (k, v) = (vec![0.0; room(d)?], vec![0.0; room(value_dim)?]);
        let mut state = Self {
            options: options.clone(),
            temperatures,
            queries,
            q_shape,
            shape,
            k,
            v,
            waiting: 0,
            keys: 0,
            parts: [total.clone(), total.clone()],
            total,
            plan: Plan::new(&Problem::new(options, q, no_keys, no_values)?, Setup::global()?),
            workspace: Vec::new(),
        };
        if batch > 0 {
            let (one, _) = state.blocks(1)?;
            let (group, plan) = state.blocks(GROUP)?;
            (state.parts, state.plan) = ([group, one], plan);
            // At once, so that the first whole block allocates nothing and the state stays as large as it is.
            state.workspace = vec![0.0; state.plan.workspace_len(1)];
        }
        Ok(state)
    }

    /// The partial result of so many blocks of a batch entry, and the plan for it.
    fn blocks(&self, blocks: usize) -> Result<(Partial, Plan), Error> {
        let [_, _, _, d] = self.q_shape;
        let StateShape { kv_heads, value_dim } = self.shape;
        // Any keys will do: one block, again and again.
        let k = vec![0.0; kv_heads * BLOCK * d];
        let v = vec![0.0; kv_heads * BLOCK * value_dim];
        let repeated = |data, columns| {
            View::strided(data, [blocks, kv_heads, BLOCK, columns], [0, BLOCK * columns, columns, 1])
                .map_err(Self::wrong)
        };
        let options = self.options_of(0, blocks);
        let problem = Problem::new(&options, self.query(0, blocks)?, repeated(&k, d)?, repeated(&v, value_dim)?)?;
        Ok((Partial::new(&problem)?, Plan::new(&problem, Setup::global()?)))
    }

    fn wrong(source: ViewError) -> Error {
        Error::View { tensor: "a block of keys", source }
    }

    /// The options for `blocks` blocks of a batch entry as a batch of their own.
    fn options_of(&self, batch: usize, blocks: usize) -> Attention<'_> {
        let [_, heads, rows, _] = self.q_shape;
        let temperature = match self.options.temperature {
            Temperature::PerRow(_) => {
                let first = batch * GROUP * heads * rows;
                Temperature::PerRow(&self.temperatures[first..first + blocks * heads * rows])
            }
            other => other,
        };
        plain(&self.options, temperature)
    }

    /// The queries of a batch entry, once for each of `blocks` blocks.
    fn query(&self, batch: usize, blocks: usize) -> Result<View<'_, f32>, Error> {
        let [_, heads, rows, d] = self.q_shape;
        let entry = &self.queries[batch * heads * rows * d..];
        View::strided(entry, [blocks, heads, rows, d], [0, rows * d, d, 1]).map_err(Self::wrong)
    }

    /// One key and its value for each head: `k` is `[batch, kv_heads, d]`, `v` `[batch, kv_heads, value_dim]`, contiguous.
    ///
    /// # Errors
    /// [`Error::Length`], with the state unchanged, if one has another length.
    pub fn push(&mut self, k: &[f32], v: &[f32]) -> Result<(), Error> {
        let [batch, _, _, d] = self.q_shape;
        let StateShape { kv_heads, value_dim } = self.shape;
        checks::length("k", k.len(), batch * kv_heads * d, "the columns of q for each batch entry and KV head")?;
        checks::length(
            "v",
            v.len(),
            batch * kv_heads * value_dim,
            "the value columns for each batch entry and KV head",
        )?;
        for (from, to, columns) in [(k, &mut self.k, d), (v, &mut self.v, value_dim)] {
            for (head, row) in from.chunks_exact(columns.max(1)).enumerate() {
                to[(head * BLOCK + self.waiting) * columns..][..columns].copy_from_slice(row);
            }
        }
        self.waiting += 1;
        self.keys += 1;
        if self.waiting == BLOCK { self.see_waiting(Execution::Serial) } else { Ok(()) }
    }

    /// Keys and values in order: k is `[batch, kv_heads, keys, d]`, v `[batch, kv_heads, keys, value_dim]`, of one element type.
    ///
    /// # Errors
    /// [`Error`], with the state unchanged, if sizes are not those of the state, element types differ or rows are not contiguous.
    pub fn push_block<'t>(
        &mut self,
        k: impl Into<Tensor<'t>>,
        v: impl Into<Tensor<'t>>,
        execution: Execution<'_>,
    ) -> Result<(), Error> {
        let (k, v) = (k.into(), v.into());
        let [batch, _, _, d] = self.q_shape;
        let StateShape { kv_heads, value_dim } = self.shape;
        dimensions("k", k.shape(), [Some(batch), Some(kv_heads), None, Some(d)], "the state")?;
        let keys = k.shape()[2];
        dimensions("v", v.shape(), [Some(batch), Some(kv_heads), Some(keys), Some(value_dim)], "the state, and k")?;
        contiguous("k", &k)?;
        contiguous("v", &v)?;
        if k.dtype() != v.dtype() {
            return Err(Error::Dtype { tensor: "v", found: v.dtype(), expected: vec![k.dtype()] });
        }
        let (k, v) = (checks::scales(k, "the scales of k")?, checks::scales(v, "the scales of v")?);
        let mut done = 0;
        while done < keys {
            if let (0, Tensor::F32(k), Tensor::F32(v)) = (self.waiting, &k, &v)
                && keys - done >= BLOCK
            {
                // Blocks that lie as they must are read where they are.
                let blocks = if keys - done >= GROUP * BLOCK { GROUP } else { 1 };
                self.see(*k, *v, done, blocks, execution)?;
                self.keys += (blocks * BLOCK) as u64;
                done += blocks * BLOCK;
                continue;
            }
            let count = (BLOCK - self.waiting).min(keys - done);
            for (from, to, columns) in [(&k, &mut self.k, d), (&v, &mut self.v, value_dim)] {
                for head in 0..batch * kv_heads {
                    for row in 0..count {
                        let at = (head * BLOCK + self.waiting + row) * columns;
                        widen_row(from, [head / kv_heads, head % kv_heads, done + row], &mut to[at..at + columns]);
                    }
                }
            }
            self.waiting += count;
            self.keys += count as u64;
            done += count;
            if self.waiting == BLOCK {
                self.see_waiting(execution)?;
            }
        }
        Ok(())
    }

    /// Takes what waits, a whole block or less, into the total.
    fn see_waiting(&mut self, execution: Execution<'_>) -> Result<(), Error> {
        let (k, v) = (std::mem::take(&mut self.k), std::mem::take(&mut self.v));
        let seen = match (self.waiting_view(&k, self.q_shape[3]), self.waiting_view(&v, self.shape.value_dim)) {
            (Ok(keys), Ok(values)) => self.see(keys, values, 0, 1, execution),
            (Err(error), _) | (_, Err(error)) => Err(error),
        };
        (self.k, self.v) = (k, v);
        self.waiting = 0;
        seen
    }

    /// What waits.
    fn waiting_view<'t>(&self, data: &'t [f32], columns: usize) -> Result<View<'t, f32>, Error> {
        let [batch, kv_heads] = [self.q_shape[0], self.shape.kv_heads];
        let strides = [kv_heads * BLOCK * columns, BLOCK * columns, columns, 1];
        View::strided(data, [batch, kv_heads, self.waiting, columns], strides).map_err(Self::wrong)
    }

    /// Takes `blocks` blocks from key `first` on into the total, one or a group; of a last block, what there is of it.
    fn see(
        &mut self,
        k: View<'_, f32>,
        v: View<'_, f32>,
        first: usize,
        blocks: usize,
        execution: Execution<'_>,
    ) -> Result<(), Error> {
        let [batch, heads, rows, _] = self.q_shape;
        let rows = heads * rows;
        let len = BLOCK.min(k.shape()[2] - first);
        let which = usize::from(blocks == 1);
        let mut workspace = std::mem::take(&mut self.workspace);
        for entry in 0..batch {
            let mut part = self.parts[which].clone();
            self.partial(&mut part, [k, v], [entry, first, len, blocks], &mut workspace, execution)?;
            for block in 0..blocks {
                self.total.merge_rows(entry * rows, &part, block * rows, rows);
            }
        }
        self.workspace = workspace;
        Ok(())
    }

    /// Computes blocks of one batch entry, each for itself: entry, first key, keys of a block, blocks.
    fn partial(
        &self,
        part: &mut Partial,
        [k, v]: [View<'_, f32>; 2],
        [entry, first, len, blocks]: [usize; 4],
        workspace: &mut Vec<f32>,
        execution: Execution<'_>,
    ) -> Result<(), Error> {
        let options = self.options_of(entry, blocks);
        let [k, v] = [k, v].map(|view| view.blocks(entry, first, [blocks, len]));
        let problem = Problem::new(&options, self.query(entry, blocks)?, k, v)?;
        let needed = self.plan.workspace_len_for(&problem, execution.threads());
        if workspace.len() < needed {
            workspace.resize(needed, 0.0);
        }
        self.plan.run_partial(&problem, part, workspace, execution)
    }

    /// What all keys come to: the total, with what waits.
    fn complete(&self) -> Result<Partial, Error> {
        let [batch, heads, rows, d] = self.q_shape;
        let rows = heads * rows;
        let mut total = self.total.clone();
        if self.waiting > 0 {
            let (k, v) = (self.waiting_view(&self.k, d)?, self.waiting_view(&self.v, self.shape.value_dim)?);
            let (mut part, mut workspace) = (self.parts[1].clone(), Vec::new());
            for entry in 0..batch {
                self.partial(&mut part, [k, v], [entry, 0, self.waiting, 1], &mut workspace, Execution::Serial)?;
                total.merge_rows(entry * rows, &part, 0, rows);
            }
        }
        Ok(total)
    }

    /// Writes attention over all keys so far into `out` (`[batch, query_heads, queries, value_dim]`, f32) and, for softmax, the
    /// log-sum-exp of each row into `lse` (`[batch, query_heads, queries]`). The state goes on as if nothing had happened.
    ///
    /// # Errors
    /// [`Error`], with `out` and `lse` untouched, if one has the wrong size or type or no meaning.
    pub fn output<'o>(&self, out: impl Into<TensorMut<'o>>, lse: Option<&mut [f32]>) -> Result<(), Error> {
        self.complete()?.finish(out, lse)
    }

    /// Adds what another state of the same queries has seen of keys that come after all those of `self`.
    ///
    /// # Errors
    /// [`Error::Partial`], with `self` unchanged, if the queries, the sizes or the options differ.
    pub fn merge(&mut self, later: &Self) -> Result<(), Error> {
        let differs = |what, left: String, right: String| Err(Error::Partial { what, left, right });
        if (self.q_shape, self.shape) != (later.q_shape, later.shape) {
            let text = |state: &Self| format!("q {:?} with {:?}", state.q_shape, state.shape);
            return differs("the shape", text(self), text(later));
        }
        let different = |(a, b): &(&f32, &f32)| a.to_bits() != b.to_bits();
        if let Some((a, b)) = self.queries.iter().zip(&later.queries).find(different) {
            return differs("a query", a.to_string(), b.to_string());
        }
        let mut total = self.complete()?;
        total.merge(&later.complete()?)?;
        (self.total, self.waiting) = (total, 0);
        self.keys += later.keys;
        Ok(())
    }

    /// Forgets all keys.
    pub fn clear(&mut self) {
        self.total.clear();
        (self.waiting, self.keys) = (0, 0);
    }

    /// The number of keys so far.
    pub fn keys(&self) -> u64 {
        self.keys
    }

    /// Bytes that the state takes, which do not grow with the keys.
    pub fn bytes(&self) -> usize {
        let lists = [&self.queries, &self.temperatures, &self.k, &self.v, &self.workspace].map(Vec::len);
        let partials = [&self.total, &self.parts[0], &self.parts[1]].map(Partial::bytes);
        lists.iter().sum::<usize>() * size_of::<f32>() + partials.iter().sum::<usize>()
    }
}
