//! What a caller can get wrong about ragged batches, pages, rings, caches, partial results and element types: the error names it with
//! its values, and outputs, caches and partial results keep every bit.
#![forbid(unsafe_code)]

macro_rules! assert_error {
    ($error:expr, $pattern:pat $(if $guard:expr)?) => {{
        let error = $error;
        assert!(matches!(&error, $pattern $(if $guard)?), "{error:?} instead of {}", stringify!($pattern));
        // The text names every number that the error has.
        let (text, debug) = (error.to_string(), format!("{error:?}"));
        let numbers = |text: &str| -> Vec<String> {
            text.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty()).map(str::to_owned).collect()
        };
        let said = numbers(&text);
        assert!(numbers(&debug).iter().all(|number| said.contains(number)), "{text:?} of {debug}");
    }};
}

mod caches;
mod partial;
mod ragged;
mod runs;

use regard::{
    Align, Attention, CacheShape, Count, Dtype, Error, Execution, Keys, KvCache, Level, Pages, Partial, Plan, Problem,
    Quantised, Queries, Split, TensorMut, View, ViewMut, Weighting, bf16, f16,
};
use regard_tests::{Guarded, Layout, Poison, Random, Stored, Tensor, levels, setup_of};

const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const D: usize = 6;
const D_V: usize = 7;

fn normal(shape: [usize; 4], seed: u64) -> Tensor {
    Tensor::normal(shape, Layout::Bhsd, &mut Random::new(seed))
}

/// 3 sequences: q packed in 9 rows, of which the last belongs to nobody; 8 pages of 4 rows; 3 rings of 5 rows.
struct Batch {
    packed_q: Tensor,
    padded_q: Tensor,
    packed: [Tensor; 2],
    pages: [Tensor; 2],
    rings: [Tensor; 2],
}

const QUERIES: [usize; 4] = [0, 2, 2, 8];
const KEYS: [usize; 4] = [0, 7, 12, 20];
const TABLE: [u32; 9] = [3, 1, 7, 0, 2, 99, 4, 5, 99];
const LENGTHS: [usize; 3] = [10, 8, 5];

impl Batch {
    fn new() -> Self {
        let pair = |batch, rows| [normal([batch, KV_HEADS, rows, D], 1), normal([batch, KV_HEADS, rows, D_V], 2)];
        Self {
            packed_q: normal([1, HEADS, 9, D], 3),
            padded_q: normal([3, HEADS, 2, D], 4),
            packed: pair(1, 20),
            pages: pair(8, 4),
            rings: pair(3, 5),
        }
    }

    fn problem<'a>(
        &'a self,
        options: &Attention<'a>,
        queries: Queries<'_>,
        keys: Keys<'a>,
    ) -> Result<Problem<'a>, Error> {
        let q = if matches!(queries, Queries::Padded) { &self.padded_q } else { &self.packed_q };
        let [k, v] = match keys {
            Keys::Packed(_) => &self.packed,
            Keys::Paged(_) => &self.pages,
            Keys::Padded | Keys::Ring { .. } => &self.rings,
        };
        Problem::ragged(options, q.view(), queries, k.view(), v.view(), keys)
    }

    fn error(&self, queries: Queries<'_>, keys: Keys<'_>) -> Error {
        self.problem(&Attention::softmax(), queries, keys).expect_err("there is something wrong with it")
    }
}

fn paged<'a>(table: &'a [u32], lengths: &'a [usize]) -> Keys<'a> {
    Keys::Paged(Pages { table, pages_per_sequence: 3, lengths })
}

const DIMENSIONS: [&str; 4] = ["batch", "heads", "rows", "columns"];
