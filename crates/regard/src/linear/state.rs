//! Decoding in memory that does not grow with the number of keys.

use regard_kernels::linear::{Method, Recurrent, RecurrentShape, TermRules};
use regard_kernels::tensor::{Dtype, Tensor, TensorMut};
use regard_kernels::view::ViewError;
use regard_simd::Level;

use super::linear_series;
use crate::layout::Storage;
use crate::options::{Attention, Form, Temperature};
use crate::problem::count;
use crate::{Error, Setup, Shape, checks};

/// The sizes of a [`LinearState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinearShape {
    /// Heads of q.
    pub query_heads: usize,
    /// Heads of k and v.
    pub kv_heads: usize,
    /// Columns of q and k.
    pub head_dim: usize,
    /// Columns of v.
    pub value_dim: usize,
}

/// What one sequence has seen so far, for weights that are polynomials of the score: sums over its keys, of which any query
/// can be answered. It takes the same memory, and the same time for each token, after ten keys and after ten million.
///
/// For each head of k and v it holds `[monomials][d_v + 1]` f32 (2080 monomials at degree 2 and d 64, 541 KB), and up to a
/// chunk of keys and values that are not in the sums yet. A query that stands at the last key gets, bit for bit, what it gets
/// from a causal problem over all keys in [`Form::Linear`].
///
/// ```
/// use regard::{Attention, LinearShape, LinearState, View, ViewMut, Weighting};
///
/// let shape = LinearShape { query_heads: 4, kv_heads: 2, head_dim: 8, value_dim: 8 };
/// let mut state = LinearState::new(&Attention::new(Weighting::EvenPower { degree: 2 }), shape)?;
///
/// // A prompt of 5 tokens, then one token at a time.
/// let bytes = state.bytes();
/// for tokens in [5, 1, 1] {
///     let (q, kv) = (vec![0.1; 4 * 8], vec![0.5; 2 * tokens * 8]);
///     let kv = View::bhsd(&kv, [1, 2, tokens, 8])?;
///     state.push(kv, kv)?;
///     let mut out = vec![0.0; 4 * 8];
///     state.output(View::bhsd(&q, [1, 4, 1, 8])?, ViewMut::bhsd(&mut out, [1, 4, 1, 8])?)?;
///     assert!(out.iter().all(|x| (x - 0.5).abs() < 1e-6));
/// }
/// assert_eq!((state.keys(), state.bytes()), (7, bytes));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct LinearState {
    shape: LinearShape,
    level: Level,
    /// The weighting, for messages.
    kind: String,
    gates: Option<Vec<f32>>,
    rules: TermRules,
    /// One, or one for each query head.
    temperatures: Vec<f32>,
    states: Recurrent,
}

impl LinearState {
    /// The state of no keys. Of the options, the weighting, scale, temperature (not one for each row), schedule, count,
    /// coefficient, row scale, gates and level count; every query sees every key that was pushed before it, which makes a
    /// causal mask legal and without effect.
    ///
    /// # Errors
    /// [`Error::Form`] for options that have no linear form, or the option `Form::Quadratic`; [`Error::Heads`],
    /// [`Error::Number`], [`Error::NoMeaning`] and [`Error::Length`] as for [`Problem::new`](crate::Problem::new);
    /// [`Error::View`] if the state is more than can be counted, [`Error::Isa`] for a level that cannot be had.
    pub fn new(options: &Attention<'_>, shape: LinearShape) -> Result<Self, Error> {
        let LinearShape { query_heads, kv_heads, head_dim, value_dim } = shape;
        if query_heads > 0 && (kv_heads == 0 || !query_heads.is_multiple_of(kv_heads)) {
            return Err(Error::Heads { query_heads, kv_heads });
        }
        let one =
            Shape { batch: 1, query_heads, kv_heads, queries: 1, keys: 1, head_dim, value_dim, packed_rows: None };
        checks::meaning(options)?;
        checks::numbers(options, &one)?;
        options.weighting.functions()?;
        let wrong = |option, reason| Error::Form { form: Form::Linear.name(), option, reason };
        if options.form == Form::Quadratic {
            return Err(wrong("Form::Quadratic", "a state is the linear form"));
        }
        let temperatures = match options.temperature {
            Temperature::Constant(temperature) => vec![temperature],
            Temperature::PerHead(temperatures) => temperatures.to_vec(),
            Temperature::PerRow(_) => {
                return Err(wrong("a temperature for each row", "a state does not know how many rows there will be"));
            }
        };
        for (there, option) in [(options.strict, "strict"), (options.key_lengths.is_some(), "key lengths")] {
            if there {
                return Err(wrong(option, "a query of a state sees every key that was pushed"));
            }
        }
        let series =
            linear_series(options, Storage::Padded, head_dim).map_err(|(option, reason)| wrong(option, reason))?;
        let level = match options.isa {
            Some(isa) => Level::of(isa)?,
            None => Setup::global()?.level,
        };
        let too_large = || Error::View {
            tensor: "the state",
            source: ViewError::Overflow { shape: [kv_heads, series.features(head_dim), head_dim, value_dim] },
        };
        let gates = options.gates.map(<[f32]>::to_vec);
        let method = Method::new(level, series, head_dim).ok_or_else(too_large)?;
        let sizes = RecurrentShape { query_heads, kv_heads, value_dim };
        Ok(Self {
            shape,
            level,
            kind: format!("{:?}", options.weighting),
            rules: TermRules {
                scale: options.scale.unwrap_or(1.0 / (head_dim.max(1) as f32).sqrt()),
                schedule: options.schedule,
                count: count(options.count),
                coefficient: options.coefficient.unwrap_or(1.0),
                exponent: options.row_scale.exponent(),
            },
            temperatures,
            states: Recurrent::new(method, sizes, gates.clone()).ok_or_else(too_large)?,
            gates,
        })
    }

    /// The sizes.
    pub fn shape(&self) -> LinearShape {
        self.shape
    }

    /// Keys that were pushed.
    pub fn keys(&self) -> usize {
        self.states.keys()
    }

    /// Bytes of memory, scratch included.
    pub fn bytes(&self) -> usize {
        self.states.bytes()
    }

    /// Forgets all keys.
    pub fn clear(&mut self) {
        self.states.clear();
    }

    /// Adds the keys and values of the tokens that follow, one or many: `[1, kv_heads, tokens, d]` and `[1, kv_heads, tokens,
    /// d_v]`, of any element type. However tokens are shared out among calls, the state is the same bit for bit.
    ///
    /// # Errors
    /// [`Error`], with the state untouched, if shapes, element types or strides do not fit.
    pub fn push<'t>(&mut self, k: impl Into<Tensor<'t>>, v: impl Into<Tensor<'t>>) -> Result<(), Error> {
        let [k, v] = [checks::scales(k.into(), "the scales of k")?, checks::scales(v.into(), "the scales of v")?];
        let LinearShape { kv_heads, head_dim, value_dim, .. } = self.shape;
        let tokens = k.shape()[2];
        self.check("k", k.shape(), [1, kv_heads, tokens, head_dim])?;
        self.check("v", v.shape(), [1, kv_heads, tokens, value_dim])?;
        for (tensor, view) in [("k", &k), ("v", &v)] {
            checks::rows(tensor, view)?;
        }
        if v.dtype() != k.dtype() {
            return Err(Error::Dtype { tensor: "v", found: v.dtype(), expected: vec![k.dtype()] });
        }
        self.states.push(&k, &v);
        Ok(())
    }

    /// Answers one query of each head, `[1, query_heads, 1, d]`, into `out`, `[1, query_heads, 1, d_v]`: f32, or of the element
    /// type of q. It sees all keys so far, and stands at the last one for gates. Without keys, the output is zero.
    ///
    /// # Errors
    /// [`Error`], with `out` untouched, if shapes, element types or strides do not fit.
    pub fn output<'t, 'o>(&mut self, q: impl Into<Tensor<'t>>, out: impl Into<TensorMut<'o>>) -> Result<(), Error> {
        let (q, out) = (q.into(), out.into());
        let LinearShape { query_heads, head_dim, value_dim, .. } = self.shape;
        self.check("q", q.shape(), [1, query_heads, 1, head_dim])?;
        self.check("out", out.shape(), [1, query_heads, 1, value_dim])?;
        checks::rows("q", &q)?;
        if q.dtype() == Dtype::Int8 {
            let expected = vec![Dtype::F32, Dtype::F16, Dtype::Bf16];
            return Err(Error::Dtype { tensor: "q", found: q.dtype(), expected });
        }
        if out.dtype() != Dtype::F32 && out.dtype() != q.dtype() {
            return Err(Error::Dtype { tensor: "out", found: out.dtype(), expected: vec![Dtype::F32, q.dtype()] });
        }
        let (rules, temperatures, keys) = (self.rules, &self.temperatures, self.states.keys());
        let terms = |head: usize| rules.terms(temperatures[head.min(temperatures.len() - 1)], keys);
        self.states.output(&q, &terms, out);
        Ok(())
    }

    /// Adds what another state has seen of keys that come after all those of `self`.
    ///
    /// The chunks of the later state stay where they are, so that the last bits depend on where keys were parted.
    ///
    /// # Errors
    /// [`Error::State`], with `self` untouched, if shapes, weightings, gates or levels differ.
    pub fn merge(&mut self, later: &Self) -> Result<(), Error> {
        let differs = |what, left: String, right: String| Err(Error::State { what, left, right });
        if self.shape != later.shape {
            return differs("the shape", format!("{:?}", self.shape), format!("{:?}", later.shape));
        }
        if self.kind != later.kind {
            return differs("the weighting", self.kind.clone(), later.kind.clone());
        }
        if self.gates != later.gates {
            return differs("the gate", format!("{:?}", self.gates), format!("{:?}", later.gates));
        }
        if self.level.isa() != later.level.isa() {
            return differs("the level", self.level.isa().to_string(), later.level.isa().to_string());
        }
        self.states.merge(&later.states);
        Ok(())
    }

    fn check(&self, tensor: &'static str, found: [usize; 4], expected: [usize; 4]) -> Result<(), Error> {
        let Some(i) = (0..4).find(|i| found[*i] != expected[*i]) else { return Ok(()) };
        let dimension = regard_kernels::view::DIMENSIONS[i];
        let reason = "the shape of the state, of one sequence";
        Err(Error::Dimension { tensor, dimension, found: found[i], expected: expected[i], reason })
    }
}
