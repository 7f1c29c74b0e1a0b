//! Both products in f32 on tile registers, which multiply bf16: each number is the sum of up to three of them.
//!
//! The upper 16 bits of an f32 are a bf16, and what is left is an f32 of which the same is true: `x = x0 + x1 + x2`, exactly. Of the nine products of parts of two
//! numbers, the six with `i + j < 3` are added up in f32; the others are below `2^-23` of the product altogether, as much as its
//! rounding to f32 (G. Henry, P. T. P. Tang and A. Heinecke, "Leveraging the bfloat16 artificial intelligence datatype for
//! higher-precision computations", ARITH 2019, section III). Elements of f16 have two parts, those of bf16 one: products that would be
//! zero are left out, which changes no bits.
//!
//! | | left factor | right factor | sum |
//! |---|---|---|---|
//! | scores | a part of 16 keys, 32 columns of each | a part of as many columns of 16 queries | `[key][lane]` |
//! | values | a part of 16 columns of 32 keys | a part of the weights of 16 queries for them | `[column][lane]` |
//!
//! A pair, which fills the place of an f32, is of columns or keys `i` and `i + 16` of 32: so two vectors become pairs lane by lane.
//!
//! On a Xeon (2048 x 2048, d 128, of f32) 24 products of parts, of two left and two right factors, take 150 to 165 ns in loops in C, the
//! instruction alone 105 to 115 (135 where its factors are neither zero nor at hand), and these loops about 165. To ask for the keys of
//! the next block with score products, and for its values with value products, changes 16 to 128 queries by -10 to +5 %.
//!
//! NaN and Inf have parts that are NaN, and so have queries, keys and values that are not zero and below `2^-50`, as tile registers take
//! subnormal parts and products for zeros. Sums with one of them are NaN therefore; the rows that have such a sum are computed again in
//! vectors ([`Lanes::run_all`]), which know better. (Small weights remain: of a product of less than `2^-110`, bits may be missing.)

use std::ops::Range;

use regard_simd::{Avx512Amx, Element, Op, Simd, bf16, f16};

use super::args::Head;
use super::pack::Square;
use super::segments::Segment;
use super::tiles::{GRAIN, Products, SIDE, TILE, take_max, token};
use super::{Lanes, MOST_PARTS};
use crate::source::{Run, Source};
use crate::tensor::Dtype;

type F32 = <Avx512Amx as Simd>::F32;

/// Parts that the elements of a type have: those after them are zero.
fn parts_of(dtype: Dtype) -> usize {
    match dtype {
        Dtype::Bf16 => 1,
        Dtype::F16 => 2,
        // Bytes are multiplied by their scale.
        Dtype::F32 | Dtype::Int8 => MOST_PARTS,
    }
}

/// Which part of the left factor meets which of the right one, in an order that reads few of them twice.
const PATH: [[usize; 2]; 6] = [[2, 0], [1, 0], [1, 1], [0, 1], [0, 0], [0, 2]];

/// The products of parts that are not zero, given how many either side has.
#[inline(always)]
fn path(parts: [usize; 2]) -> impl Iterator<Item = [usize; 2]> {
    PATH.into_iter().filter(move |step| step[0] < parts[0] && step[1] < parts[1])
}

/// The parts of two vectors, as pairs.
#[inline(always)]
fn split(s: Avx512Amx, [mut low, mut high]: [F32; 2]) -> [F32; MOST_PARTS] {
    let mut parts = [s.zero(); MOST_PARTS];
    for part in 0..MOST_PARTS {
        parts[part] = s.pair_upper_halves(low, high);
        low = s.sub(low, s.high_bf16(low));
        high = s.sub(high, s.high_bf16(high));
    }
    parts
}

/// Two tiles of a factor, in all of their parts.
#[derive(Clone, Copy)]
struct Factor {
    tiles: [*const f32; 2],
    /// f32 from a row to the next, and from a part to the next.
    stride: usize,
    part: usize,
}

impl Factor {
    #[inline(always)]
    fn part(self, part: usize) -> [*const f32; 2] {
        [self.tiles[0].wrapping_add(part * self.part), self.tiles[1].wrapping_add(part * self.part)]
    }
}

/// Adds up the products of parts of two factors, given how many either has.
///
/// Whole factors of the most common numbers of parts have straight code: in a loop over [`PATH`], 2048 x 2048 f32 take a tenth longer.
///
/// # Safety
/// The thread holds the registers, and the factors are there.
#[inline(always)]
unsafe fn multiply(products: Products, parts: [usize; 2], left: Factor, right: Factor) {
    let whole = Products { two: [true; 2], ..products };
    // SAFETY: the caller's contract.
    unsafe {
        match parts {
            [3, 3] if products.two == whole.two => steps::<3, 3>(whole, left, right),
            [2, 3] if products.two == whole.two => steps::<2, 3>(whole, left, right),
            [2, 2] if products.two == whole.two => steps::<2, 2>(whole, left, right),
            _ => {
                let mut last = [MOST_PARTS; 2];
                for next in path(parts) {
                    step(products, left, right, last, next);
                    last = next;
                }
            }
        }
    }
}

/// The same for numbers of parts that the compiler knows.
///
/// # Safety
/// As for [`multiply`].
#[inline(always)]
unsafe fn steps<const LEFT: usize, const RIGHT: usize>(products: Products, left: Factor, right: Factor) {
    let mut last = [MOST_PARTS; 2];
    macro_rules! steps {
        ($($index:literal)+) => {$(
            let next = PATH[$index];
            if next[0] < LEFT && next[1] < RIGHT {
                // SAFETY: the caller's contract.
                unsafe { step(products, left, right, last, next) };
                last = next;
            }
        )+};
    }
    steps!(0 1 2 3 4 5);
    let _ = last;
}

/// The product of two parts, of which those of the last step are at hand.
///
/// # Safety
/// As for [`multiply`].
#[inline(always)]
unsafe fn step(products: Products, left: Factor, right: Factor, last: [usize; 2], [i, j]: [usize; 2]) {
    // SAFETY: the caller's contract.
    unsafe {
        if last[1] != j {
            products.right(right.part(j), right.stride * size_of::<f32>());
        }
        if last[0] != i {
            let [a, b] = left.part(i);
            products.left([a.cast(), b.cast()], left.stride * size_of::<f32>());
        }
        products.multiply();
    }
}

/// Up to 16 elements of a row of a source from column `c` on, as f32, and zeros after them; NaN for those that are too small.
///
/// # Safety
/// The row has the columns.
#[inline(always)]
unsafe fn widened(s: Avx512Amx, dtype: Dtype, run: Run, c: usize, len: usize) -> F32 {
    #[inline(always)]
    unsafe fn of<E: Element>(s: Avx512Amx, data: *const u8, c: usize, len: usize) -> F32 {
        let at = data.cast::<E>().wrapping_add(c);
        // SAFETY: the caller's contract.
        unsafe { if len == SIDE { E::load(s, at) } else { E::load_first(s, at, len) } }
    }
    // SAFETY: the caller's contract; each row of bytes has a scale.
    unsafe {
        match dtype {
            Dtype::F32 => s.nan_if_tiny(of::<f32>(s, run.data, c, len)),
            // The least is 2^-24.
            Dtype::F16 => of::<f16>(s, run.data, c, len),
            Dtype::Bf16 => s.nan_if_tiny(of::<bf16>(s, run.data, c, len)),
            Dtype::Int8 => s.nan_if_tiny(s.mul(of::<i8>(s, run.data, c, len), s.splat(*run.scales))),
        }
    }
}

/// `packed[part][i][lane]` is part `part` of a pair of columns of `q[lane]`, and zero past the last row and column.
pub(super) struct PackParts {
    pub(super) q: *const u8,
    pub(super) dtype: Dtype,
    pub(super) row_bytes: usize,
    pub(super) rows: usize,
    pub(super) d: usize,
    /// Pairs of a packed row, a multiple of 16.
    pub(super) words: usize,
    pub(super) packed: *mut f32,
    pub(super) lanes: usize,
    /// Whether to turn the sign.
    pub(super) negate: bool,
}

impl Op for PackParts {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let s = token();
        let sign = s.splat(if self.negate { -1.0 } else { 1.0 });
        for first in (0..self.lanes).step_by(SIDE) {
            for word in (0..self.words).step_by(SIDE) {
                let mut squares = [Square::ZERO, Square::ZERO, Square::ZERO];
                for row in first..self.rows.min(first + SIDE) {
                    let data = self.q.wrapping_add(row * self.row_bytes);
                    let run = Run { data, scales: std::ptr::null(), scale_stride: 0, rows: 1 };
                    let mut halves = [s.zero(); 2];
                    for half in 0..2 {
                        let c = 2 * word + half * SIDE;
                        // SAFETY: the row has `d` columns.
                        let columns = unsafe { widened(s, self.dtype, run, c, self.d.saturating_sub(c).min(SIDE)) };
                        halves[half] = s.mul(columns, sign);
                    }
                    let parts = split(s, halves);
                    for part in 0..MOST_PARTS {
                        // SAFETY: a square has 16 rows of 16.
                        unsafe { s.store(squares[part].0.as_mut_ptr().add((row - first) * SIDE), parts[part]) };
                    }
                }
                for (part, square) in squares.iter().enumerate() {
                    // SAFETY: `packed` has `words` rows of `lanes` for each part.
                    unsafe {
                        let to = self.packed.add((part * self.words + word) * self.lanes + first);
                        s.transpose(square.0.as_ptr(), SIDE, to, self.lanes);
                    }
                }
            }
        }
    }
}

/// Splits the keys of a block: `[16 keys][16 pairs][part][key][pair]`, whole tiles up to a multiple of 32 keys, with zeros in place of
/// missing keys and columns.
pub(super) struct PartKeys<'a> {
    pub(super) source: &'a Source<'a>,
    /// The first row.
    pub(super) first: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Pairs of a row, a multiple of 16.
    pub(super) words: usize,
    pub(super) to: *mut f32,
}

impl Op for PartKeys<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        match self.source.dtype {
            Dtype::F32 => self.split(Dtype::F32),
            Dtype::F16 => self.split(Dtype::F16),
            Dtype::Bf16 => self.split(Dtype::Bf16),
            Dtype::Int8 => self.split(Dtype::Int8),
        }
    }
}

impl PartKeys<'_> {
    /// With a type that is known to the compiler.
    #[inline(always)]
    fn split(&self, dtype: Dtype) {
        let (s, parts) = (token(), parts_of(dtype));
        for row in 0..self.rows.next_multiple_of(GRAIN) {
            let run = (row < self.rows).then(|| self.source.run(self.first + row));
            let to = self.to.wrapping_add((row / SIDE * self.words * MOST_PARTS + row % SIDE) * SIDE);
            for word in (0..self.words).step_by(SIDE) {
                let mut halves = [s.zero(); 2];
                if let Some(run) = run {
                    for half in 0..2 {
                        let c = 2 * word + half * SIDE;
                        // SAFETY: the source has the row (contract of the struct, made by `Lanes`), of `columns` elements.
                        halves[half] = unsafe { widened(s, dtype, run, c, self.columns.saturating_sub(c).min(SIDE)) };
                    }
                }
                let split = split(s, halves);
                for part in 0..parts {
                    // SAFETY: there is room for the parts of whole tiles.
                    unsafe { s.store(to.add(word * MOST_PARTS * SIDE + part * TILE), split[part]) };
                }
            }
        }
    }
}

/// What [`super::scores::Scores`] does. A score is a chain of products of 32 columns and two parts each, wherever the key stands.
pub(super) struct PartScores {
    /// As [`PackParts`] lays them out.
    pub(super) q: *const f32,
    pub(super) q_dtype: Dtype,
    /// As [`PartKeys`] lays them out.
    pub(super) k: *const f32,
    pub(super) k_dtype: Dtype,
    /// Where scores go, `[key][lanes]`, with room for whole tiles.
    pub(super) scores: *mut f32,
    /// Running maximum per lane, updated; null for none. NaN scores are passed over.
    pub(super) max: *mut f32,
    pub(super) lanes: usize,
    pub(super) keys: usize,
    /// Pairs of a row.
    pub(super) words: usize,
    /// Vectors of lanes, one or two.
    pub(super) vectors: usize,
}

impl Op for PartScores {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let parts = [parts_of(self.k_dtype), parts_of(self.q_dtype)];
        let mut done = 0;
        for key in (0..self.keys).step_by(2 * SIDE) {
            let keys = self.keys - key;
            let products = Products { s: token(), two: [keys > SIDE, self.vectors == 2] };
            let scores = self.scores.wrapping_add(key * self.lanes);
            let of_16_keys = self.words * MOST_PARTS * SIDE;
            let k = self.k.wrapping_add(key / SIDE * of_16_keys);
            // SAFETY: keys and queries are whole tiles, and there is room for the scores of such. The kernel holds the registers.
            unsafe {
                products.begin();
                for word in (0..self.words).step_by(SIDE) {
                    let k = k.add(word * MOST_PARTS * SIDE);
                    let left = Factor { tiles: [k, k.wrapping_add(of_16_keys)], stride: SIDE, part: TILE };
                    let q = self.q.add(word * self.lanes);
                    let part = self.words * self.lanes;
                    let right = Factor { tiles: [q, q.wrapping_add(SIDE)], stride: self.lanes, part };
                    multiply(products, parts, left, right);
                    // While the products of these keys are on their way.
                    self.take_max(done..key);
                    done = key;
                }
                products.store(scores, self.lanes);
            }
        }
        // SAFETY: these are all keys.
        unsafe { self.take_max(done..self.keys) };
    }
}

impl PartScores {
    /// Takes the scores of some keys into the maximum, if there is one.
    ///
    /// # Safety
    /// They are there.
    #[inline(always)]
    unsafe fn take_max(&self, keys: Range<usize>) {
        if !self.max.is_null() && !keys.is_empty() {
            let scores = self.scores.wrapping_add(keys.start * self.lanes);
            // SAFETY: the caller's contract, and there is a maximum for each lane.
            unsafe { take_max(scores, keys.len(), self.max, self.lanes, self.vectors) };
        }
    }
}

/// Where part 0 of the tile of 16 columns from column `16 * tile` on of chunk `chunk` of 32 keys starts:
/// `[chunk][tile][part][column][pair of keys]`.
fn value_tile(chunk: usize, tile: usize, d_v: usize) -> usize {
    (chunk * d_v.div_ceil(SIDE) + tile) * MOST_PARTS * TILE
}

/// Splits the values of a block, and lays them out as left factors, with zeros in place of missing keys and columns.
pub(super) struct PartValues<'a> {
    pub(super) source: &'a Source<'a>,
    /// The first row.
    pub(super) first: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Whole tiles.
    pub(super) to: *mut f32,
}

impl Op for PartValues<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        match self.source.dtype {
            Dtype::F32 => self.split(Dtype::F32),
            Dtype::F16 => self.split(Dtype::F16),
            Dtype::Bf16 => self.split(Dtype::Bf16),
            Dtype::Int8 => self.split(Dtype::Int8),
        }
    }
}

impl PartValues<'_> {
    /// With a type that is known to the compiler.
    #[inline(always)]
    fn split(&self, dtype: Dtype) {
        let s = token();
        let mut turned = [Square::ZERO, Square::ZERO];
        for row in (0..self.rows).step_by(GRAIN) {
            for c in (0..self.columns).step_by(SIDE) {
                for half in 0..2 {
                    self.turn(dtype, row + half * SIDE, c, &mut turned[half]);
                }
                let to = self.to.wrapping_add(value_tile(row / GRAIN, c / SIDE, self.columns));
                for column in 0..SIDE {
                    // SAFETY: squares have 16 rows of 16, and there is room for the parts of the tile.
                    unsafe {
                        let low = s.load(turned[0].0.as_ptr().add(column * SIDE));
                        let high = s.load(turned[1].0.as_ptr().add(column * SIDE));
                        let split = split(s, [low, high]);
                        for part in 0..parts_of(dtype) {
                            s.store(to.add(part * TILE + column * SIDE), split[part]);
                        }
                    }
                }
            }
        }
    }

    /// 16 columns from column `c` on of 16 rows from row `row` on: `[column][row]`.
    #[inline(always)]
    fn turn(&self, dtype: Dtype, row: usize, c: usize, turned: &mut Square) {
        let s = token();
        let len = (self.columns - c).min(SIDE);
        let to = turned.0.as_mut_ptr();
        // SAFETY: the source has the rows (contract of the struct, made by `Lanes`), of `columns` elements; squares have 16 rows of 16.
        unsafe {
            if dtype == Dtype::F32 && len == SIDE && row + SIDE <= self.rows {
                let run = self.source.run(self.first + row);
                if run.rows >= SIDE {
                    s.transpose(run.data.cast::<f32>().add(c), self.source.row_stride(), to, SIDE);
                    for column in 0..SIDE {
                        let to = to.add(column * SIDE);
                        s.store(to, s.nan_if_tiny(s.load(to)));
                    }
                    return;
                }
            }
            let mut square = Square::ZERO;
            for i in 0..SIDE.min(self.rows.saturating_sub(row)) {
                let run = self.source.run(self.first + row + i);
                s.store(square.0.as_mut_ptr().add(i * SIDE), widened(s, dtype, run, c, len));
            }
            s.transpose(square.0.as_ptr(), SIDE, to, SIDE);
        }
    }
}

/// Weights of a block, and where their parts go: `[part][pair of keys][lanes]`, with zeros in place of keys that whole tiles lack.
#[derive(Clone, Copy)]
pub(super) struct PartWeights {
    /// `[keys][lanes]`
    pub(super) from: *const f32,
    pub(super) keys: usize,
    pub(super) to: *mut f32,
    /// f32 from a part to the next.
    pub(super) part: usize,
    pub(super) lanes: usize,
    /// Vectors of lanes.
    pub(super) vectors: usize,
}

impl PartWeights {
    /// Splits those of a chunk.
    #[inline(always)]
    fn split(&self, chunk: usize) {
        let s = token();
        let first = chunk * GRAIN;
        for i in 0..SIDE {
            for at in (0..self.vectors * SIDE).step_by(SIDE) {
                // SAFETY: the keys exist, and there is room for the pairs of whole tiles.
                unsafe {
                    let mut weights = [s.zero(); 2];
                    for half in 0..2 {
                        let key = first + half * SIDE + i;
                        if key < self.keys {
                            weights[half] = s.load(self.from.add(key * self.lanes + at));
                        }
                    }
                    let to = self.to.add((first / 2 + i) * self.lanes + at);
                    let split = split(s, weights);
                    for part in 0..MOST_PARTS {
                        s.store(to.add(part * self.part), split[part]);
                    }
                }
            }
        }
    }
}

/// What [`super::accumulate::Accumulate`] does. A sum is a chain of products of 32 keys and two parts each, from the start of the
/// block on.
pub(super) struct PartAccumulate {
    pub(super) weights: PartWeights,
    /// As [`PartValues`] lays them out.
    pub(super) v: *const f32,
    pub(super) v_dtype: Dtype,
    /// `[d_v][lanes]`
    pub(super) out: *mut f32,
    /// Factor per lane; null for 1.
    pub(super) alpha: *const f32,
    /// Whether `out` holds nothing yet.
    pub(super) fresh: bool,
    pub(super) lanes: usize,
    /// Chunks of 32 keys of the block.
    pub(super) chunks: Range<usize>,
    pub(super) d_v: usize,
    /// Vectors of lanes, one or two.
    pub(super) vectors: usize,
}

impl Op for PartAccumulate {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let s = token();
        let tiles = self.d_v.div_ceil(SIDE);
        let parts = [parts_of(self.v_dtype), MOST_PARTS];
        // `[32 columns][32 lanes]` of two tiles in turn: one is added to the outputs while products of the other are on their way.
        let mut sums = [const { [Square::ZERO, Square::ZERO, Square::ZERO, Square::ZERO] }; 2];
        let mut sums = [sums[0].as_mut_ptr().cast::<f32>(), sums[1].as_mut_ptr().cast::<f32>()];
        self.weights.split(self.chunks.start);
        for tile in (0..tiles).step_by(2) {
            let products = Products { s, two: [tile + 1 < tiles, self.vectors == 2] };
            // SAFETY: the chunks are of the block, and the sums of 32 columns and 32 lanes have room. The kernel holds the registers.
            unsafe {
                products.begin();
                for chunk in self.chunks.clone() {
                    let v = self.v.add(value_tile(chunk, tile, self.d_v));
                    let weights = self.weights.to.add(chunk * SIDE * self.lanes).cast_const();
                    let left = Factor { tiles: [v, v.wrapping_add(MOST_PARTS * TILE)], stride: SIDE, part: TILE };
                    let tiles = [weights, weights.wrapping_add(SIDE)];
                    let right = Factor { tiles, stride: self.lanes, part: self.weights.part };
                    multiply(products, parts, left, right);
                    if tile == 0 && chunk + 1 < self.chunks.end {
                        self.weights.split(chunk + 1);
                    }
                    if tile > 0 && chunk == self.chunks.start {
                        self.add(sums[1], (tile - 2) * SIDE);
                    }
                }
                products.store(sums[0], 2 * SIDE);
            }
            sums.swap(0, 1);
        }
        self.add(sums[1], (tiles - 1) / 2 * 2 * SIDE);
    }
}

impl PartAccumulate {
    /// Adds the sums of up to 32 columns from `column` on, `[column][32 lanes]`, to the outputs times alpha.
    #[inline(always)]
    fn add(&self, sums: *const f32, column: usize) {
        let s = token();
        for at in (0..self.vectors * SIDE).step_by(SIDE) {
            for c in 0..(self.d_v - column).min(2 * SIDE) {
                // SAFETY: there is a sum for each column and lane.
                unsafe { self.add_to(column + c, at, s.load(sums.add(c * 2 * SIDE + at))) };
            }
        }
    }

    /// Adds to the outputs of column `c` and the lanes from `at` on, times alpha.
    ///
    /// # Safety
    /// There are such columns and lanes.
    #[inline(always)]
    unsafe fn add_to(&self, c: usize, at: usize, sum: F32) {
        let s = token();
        // SAFETY: `out` has `d_v` rows of `lanes`, `alpha` has `lanes`.
        unsafe {
            let alpha = if self.alpha.is_null() { s.splat(1.0) } else { s.load(self.alpha.add(at)) };
            let out = self.out.add(c * self.lanes + at);
            s.store(out, if self.fresh { sum } else { s.mul_add(s.load(out), alpha, sum) });
        }
    }
}

/// What [`super::careful::AccumulateSeen`] does, with the sums of [`PartAccumulate`]: in each product of parts of a chunk one chain for
/// the first and one for the second halves of pairs, without the links of keys that a lane does not see.
pub(super) struct PartAccumulateSeen<'a> {
    pub(super) all: PartAccumulate,
    pub(super) segments: &'a [Segment],
    /// `[key]` of the block, for masked segments
    pub(super) visible: *const u64,
}

impl Op for PartAccumulateSeen<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let (s, all) = (token(), &self.all);
        for chunk in all.chunks.clone() {
            all.weights.split(chunk);
        }
        for at in (0..all.vectors * SIDE).step_by(SIDE) {
            for c in 0..all.d_v {
                let mut sum = s.zero();
                for segment in self.segments {
                    for first in (segment.key..segment.key + segment.keys).step_by(GRAIN) {
                        let end = (first + GRAIN).min(segment.key + segment.keys);
                        for parts in path([parts_of(all.v_dtype), MOST_PARTS]) {
                            sum = s.add(sum, self.chunk(segment.masked, first..end, parts, c, at));
                        }
                    }
                }
                // SAFETY: the column and the lanes exist.
                unsafe { all.add_to(c, at, sum) };
            }
        }
    }
}

impl PartAccumulateSeen<'_> {
    /// The products of two parts over the keys of a chunk, for column `c` and the lanes from `at` on.
    #[inline(always)]
    fn chunk(&self, masked: bool, keys: Range<usize>, [i, j]: [usize; 2], c: usize, at: usize) -> F32 {
        let (s, all) = (token(), &self.all);
        let (mut low, mut high) = (s.zero(), s.zero());
        // SAFETY: the keys are of the block, the lanes of the sub-tile.
        unsafe {
            let tile = value_tile(keys.start / GRAIN, c / SIDE, all.d_v) + i * TILE;
            let v = all.v.add(tile + c % SIDE * SIDE);
            for pair in 0..SIDE {
                let weight =
                    s.load(all.weights.to.add(j * all.weights.part + (keys.start / 2 + pair) * all.lanes + at));
                let value = s.splat(*v.add(pair));
                let sees = |key: usize| {
                    let all = u64::MAX;
                    let bits = if masked && key < keys.end { *self.visible.add(key) >> at } else { all };
                    s.mask_from_bits(if key < keys.end { bits } else { 0 })
                };
                let [first, second] = [keys.start + pair, keys.start + SIDE + pair];
                low = s.select(sees(first), s.mul_add(s.low_bf16(weight), s.low_bf16(value), low), low);
                high = s.select(sees(second), s.mul_add(s.high_bf16(weight), s.high_bf16(value), high), high);
            }
        }
        s.add(low, high)
    }
}

impl<const G: usize, const R: usize, const R1: usize> Lanes<'_, G, R, R1, false, true> {
    /// Runs all rows of the call, and then those whose results are NaN by `again`, in the same scratch: sums that have an Inf are not
    /// necessarily NaN in other arithmetic.
    ///
    /// # Safety
    /// This thread may use the level and its extension, the fields are as they say, and `again` touches nothing of the scratch that is
    /// there for parts only.
    pub(crate) unsafe fn run_all(self, again: impl Fn(&Head<'_>)) {
        let Self { head, scratch, layout } = self;
        token().vectorize(self);
        let rows_of_tile = G * SIDE;
        // SAFETY: the layout has a word for each sub-tile, which the call wrote.
        let lanes = |t: usize| unsafe { *scratch.add(layout.nan).cast::<u64>().add(t) };
        let is_nan = |row: usize| lanes(row / rows_of_tile) >> (row % rows_of_tile) & 1 == 1;
        if (0..head.rows.div_ceil(rows_of_tile)).all(|t| lanes(t) == 0) {
            return;
        }
        let mut row = 0;
        while row < head.rows {
            let end = (row..head.rows).find(|row| !is_nan(*row)).unwrap_or(head.rows);
            if end > row {
                again(&head.part(row..end));
            }
            row = end + 1;
        }
    }
}
