//! Monomials of queries and keys: what a power of the score is a scalar product of.
//!
//! `<q, k>^p` is the sum over the non-decreasing index tuples `i_1 <= .. <= i_p` of `p! / (n_1! n_2! ..)` times
//! `q_i1 .. q_ip * k_i1 .. k_ip`, where `n_1, n_2, ..` count equal indices: `C(d + p - 1, p)` terms and not `d^p`. The
//! multiplicity goes to the side of the queries, so that no square root is needed (Manifest AI's power attention does the
//! same on the side of the keys).
//!
//! Monomials are formed a tile at a time, rows of queries or keys in lanes, from the packed rows in the first-level
//! cache: `x_i .. x_j * x_k` for all `k >= j` is one multiplication each.

use regard_simd::{Op, Simd};

/// The highest power of a score that has a linear form.
pub const MOST_DEGREE: usize = 4;

/// The most monomials. A state has `d_v` sums for each.
pub const MOST_FEATURES: usize = 1 << 17;

/// A weight that is a polynomial of the score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Series {
    /// The factor of each power.
    pub coefficients: [f32; MOST_DEGREE + 1],
    /// Whether weights are divided by their sum.
    pub normalised: bool,
}

impl Series {
    /// `s^degree`, perhaps over the sum; none if `degree` is 0 or more than [`MOST_DEGREE`].
    pub fn power(degree: u32, normalised: bool) -> Option<Self> {
        let degree = degree as usize;
        let mut coefficients = [0.0; MOST_DEGREE + 1];
        *coefficients.get_mut(degree).filter(|_| degree > 0)? = 1.0;
        Some(Self { coefficients, normalised })
    }

    /// `(1 + s + s^2 / 2)` over its sum.
    pub const TAYLOR_2: Self = Self { coefficients: [1.0, 1.0, 0.5, 0.0, 0.0], normalised: true };

    /// The highest power.
    pub fn degree(&self) -> usize {
        self.coefficients.iter().rposition(|c| *c != 0.0).unwrap_or(0)
    }

    /// How many monomials rows of `d` columns have; `usize::MAX` if that is more than can be counted.
    pub fn features(&self, d: usize) -> usize {
        let count = |(degree, c): (usize, &f32)| if *c == 0.0 { 0 } else { monomials(d, degree) };
        self.coefficients.iter().enumerate().map(count).fold(0, usize::saturating_add)
    }

    /// The weight of a vector of scores.
    #[inline(always)]
    pub(super) fn weight<S: Simd>(&self, s: S, score: S::F32, degree: usize) -> S::F32 {
        let mut weight = s.splat(self.coefficients[degree]);
        for power in (0..degree).rev() {
            weight = s.mul_add(weight, score, s.splat(self.coefficients[power]));
        }
        weight
    }
}

/// `C(d + degree - 1, degree)`
fn monomials(d: usize, degree: usize) -> usize {
    let mut count: u128 = 1;
    for i in 0..degree as u128 {
        let Some(product) = count.checked_mul(d as u128 + i) else { return usize::MAX };
        // Exact: a product of i + 1 consecutive numbers over (i + 1)!.
        count = product / (i + 1);
    }
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// Monomials with all factors but the last in common.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Run {
    /// The common factors, ascending: the first `common`.
    factors: [usize; MOST_DEGREE - 1],
    common: usize,
    /// The last factor of the first monomial.
    start: usize,
    /// Monomials: the last factor ascends one by one. A single one without a last factor if `constant`.
    len: usize,
    constant: bool,
    /// Multiplicity times coefficient of the first monomial and of the others.
    first: f32,
    rest: f32,
}

/// A tile of monomials.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tile {
    /// The first monomial of all.
    pub(super) first: usize,
    pub(super) features: usize,
    runs: Vec<Run>,
}

/// The monomials of rows of `d` columns, in order, in tiles.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    series: Series,
    d: usize,
    count: usize,
    queries: Vec<Tile>,
    keys: Vec<Tile>,
}

/// Monomials of a tile of queries: its sums stay in registers over that many steps.
pub(super) const QUERY_TILE: usize = 128;

/// Monomials of a tile of keys, whose rows are longer.
pub(super) const KEY_TILE: usize = 32;

impl Features {
    /// The monomials that `series` needs of rows of `d` columns; none if there are more than [`MOST_FEATURES`].
    pub fn new(series: Series, d: usize) -> Option<Self> {
        let count = series.features(d);
        if count > MOST_FEATURES {
            return None;
        }
        Some(Self { series, d, count, queries: tiles(series, d, QUERY_TILE), keys: tiles(series, d, KEY_TILE) })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Columns of the rows.
    pub fn d(&self) -> usize {
        self.d
    }

    /// What weights are.
    pub fn series(&self) -> Series {
        self.series
    }

    pub(super) fn query_tiles(&self) -> &[Tile] {
        &self.queries
    }

    pub(super) fn key_tiles(&self) -> &[Tile] {
        &self.keys
    }
}

/// All monomials of all powers, highest power first, in tiles of `most`.
fn tiles(series: Series, d: usize, most: usize) -> Vec<Tile> {
    let mut tiles: Vec<Tile> = Vec::new();
    let mut add = |run: Run| {
        let (mut run, mut left) = (run, run.len);
        while left > 0 {
            let full = tiles.last().is_none_or(|tile| tile.features == most);
            if full {
                let first = tiles.last().map_or(0, |tile| tile.first + tile.features);
                tiles.push(Tile { first, features: 0, runs: Vec::new() });
            }
            let tile = tiles.last_mut().expect("there is a tile");
            let len = left.min(most - tile.features);
            tile.runs.push(Run { len, ..run });
            tile.features += len;
            run = Run { start: run.start + len, first: run.rest, ..run };
            left -= len;
        }
    };
    for degree in (0..=MOST_DEGREE).rev() {
        let c = series.coefficients[degree];
        if c == 0.0 {
            continue;
        }
        if degree == 0 {
            let factors = [0; MOST_DEGREE - 1];
            add(Run { factors, common: 0, start: 0, len: 1, constant: true, first: c, rest: c });
            continue;
        }
        let common = degree - 1;
        let mut factors = [0; MOST_DEGREE - 1];
        if d == 0 {
            continue;
        }
        loop {
            let prefix = &factors[..common];
            let start = prefix.last().copied().unwrap_or(0);
            let first = c * multiplicity(prefix, start);
            // Any later factor differs from all in the prefix.
            let rest = c * multiplicity(prefix, d);
            add(Run { factors, common, start, len: d - start, constant: false, first, rest });
            let Some(at) = prefix.iter().rposition(|factor| *factor + 1 < d) else { break };
            let next = factors[at] + 1;
            factors[at..common].fill(next);
        }
    }
    tiles
}

/// How many orders the ascending factors have.
fn multiplicity(prefix: &[usize], last: usize) -> f32 {
    let (mut orders, mut equal) = (1, 0);
    for (i, factor) in prefix.iter().chain([&last]).enumerate() {
        equal = if i > 0 && prefix[i - 1] == *factor { equal + 1 } else { 1 };
        // i + 1 factors of which `equal` are the same: exact, as after each step it is a multinomial coefficient.
        orders = orders * (i + 1) / equal;
    }
    orders as f32
}

/// `out[feature][lane] = factor[lane] * monomial of x[..][lane]`, times multiplicity and coefficient if `MULTIPLY`; and, if
/// there are `norms`, `sums[lane] += out[feature][lane] * norms[feature]`.
pub(super) struct Form<'a, const MULTIPLY: bool> {
    pub(super) tile: &'a Tile,
    /// Packed rows `[d][lanes]`.
    pub(super) x: *const f32,
    /// `[lanes]`
    pub(super) factor: *const f32,
    /// Whole vectors.
    pub(super) lanes: usize,
    /// `[feature of the tile][lanes]`
    pub(super) out: *mut f32,
    /// `[feature of the tile]`; null for none.
    pub(super) norms: *const f32,
    /// `[lanes]`, if there are `norms`
    pub(super) sums: *mut f32,
}

impl<const MULTIPLY: bool> Op for Form<'_, MULTIPLY> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut row = 0;
        for run in &self.tile.runs {
            for lane in (0..self.lanes).step_by(S::LANES) {
                // SAFETY: factors are columns of `x`, rows of the tile are rows of `out` and `norms`, and each has whole
                // vectors up to `lanes` (contract of the struct).
                unsafe { self.run_lane(s, run, row, lane) };
            }
            row += run.len;
        }
    }
}

impl<const MULTIPLY: bool> Form<'_, MULTIPLY> {
    /// One run for one vector of lanes, from row `row` of the tile on.
    ///
    /// # Safety
    /// The run is of the tile, the vector within the lanes.
    #[inline(always)]
    unsafe fn run_lane<S: Simd>(&self, s: S, run: &Run, row: usize, lane: usize) {
        // SAFETY: the caller's contract, and that of the struct.
        unsafe {
            let mut common = s.load(self.factor.add(lane));
            for factor in &run.factors[..run.common] {
                common = s.mul(common, s.load(self.x.add(factor * self.lanes + lane)));
            }
            let (first, rest) = if MULTIPLY {
                (s.mul(common, s.splat(run.first)), s.mul(common, s.splat(run.rest)))
            } else {
                (common, common)
            };
            let mut out = self.out.add(row * self.lanes + lane);
            let mut x = self.x.wrapping_add(run.start * self.lanes + lane);
            let begin = if run.constant { first } else { s.mul(first, s.load(x)) };
            s.store(out, begin);
            let normed = !self.norms.is_null();
            let mut sum = s.zero();
            if normed {
                sum = s.mul_add(begin, s.splat(*self.norms.add(row)), s.load(self.sums.add(lane)));
            }
            for i in 1..run.len {
                x = x.add(self.lanes);
                out = out.add(self.lanes);
                let monomial = s.mul(rest, s.load(x));
                s.store(out, monomial);
                if normed {
                    sum = s.mul_add(monomial, s.splat(*self.norms.add(row + i)), sum);
                }
            }
            if normed {
                s.store(self.sums.add(lane), sum);
            }
        }
    }
}
