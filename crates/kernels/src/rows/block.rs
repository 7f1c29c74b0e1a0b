//! One block of keys: scores, weights, values.
//!
//! Keys and values come block after block, or the values of a block are multiplied in turns with the keys of the next one; and
//! memory is asked for ahead, or it is left to the processor. [`Reading`](crate::Reading) says which, as none is the best for
//! all machines.
//!
//! On Zen 4 a single row of short elements is done with a key as soon as it has read it, and the processor's own prefetching keeps
//! up only while it is not made to start anew: with both streams read all the time, a few keys of each, and neither asked for (32
//! heads, 16384 keys, 128 columns, share of the bandwidth of a sweep, in alternation):
//!
//! | | f32 | f16 | bf16 | int8 |
//! |---|---|---|---|---|
//! | block after block, asked for 4 to 8 KiB ahead | 0.85-0.95 | 0.67-0.72 | 0.70-0.78 | 0.64-0.68 |
//! | in turns of 32 keys, not asked for | 0.72-0.83 | 0.79-0.91 | 0.50-0.56 | 0.74-0.85 |
//!
//! Turns of 64 keys cost f16 a tenth. What is done once for a turn counts (it was a tenth), and so does what nothing is read
//! beside, which is why weights ask for what comes next. More rows, which take longer over a key, lose by turns (eight of
//! them a tenth). How much f32 loses depends on where arrays start: 16 bytes past a cache line, so that a load asks for two
//! lines, turns are the faster way.
//!
//! On a Xeon with AMX, which drops requests for pages whose translation it does not hold, both together are the best for every
//! type and any number of rows (pages of 4 KiB, 16384 keys, 128 columns, time of the ways above over that of turns of 4 KiB, asked for 8 KiB ahead):
//!
//! | | f32 | f16 | bf16, widened | int8 |
//! |---|---|---|---|---|
//! | one row | 1.0-1.1 | 1.3-1.4 | 1.2 | 1.4 |
//! | eight rows | 1.2-1.4 | 1.1-1.2 | 1.2 | 1.1 |
//!
//! That was before values were passed over in chunks ([`CHUNK_BYTES`]). In large pages, eight rows of f32 are read as fast one way as
//! the other since; the rest was not measured again.
//!
//! On Zen 3 the shortest turns are the best, a key or a few and as many values in one loop, with nothing asked for (see
//! [`Abreast`](super::abreast::Abreast)). No other core was measured with them.

use regard_simd::Simd;

use super::accumulate::AccumulateArgs;
use super::args::{self, QueryRow, Unit};
use super::ask::Ask;
use super::form::{Form, Weights};
use super::pieces::{Piece, Pieces, Stream};
use super::scores::ScoreArgs;
use super::scratch::Layout;
use super::terms::{Spread, Terms};
use super::tiles::Tiles;
use super::{Group, KeyBlock, Rows};
use crate::lanes::Segment;
use crate::source::Source;
use crate::tensor::Dtype;
use crate::weighting::{Block, Step};

/// How far ahead rows are asked for that do not lie one after the other, where the rest is left to the processor, in bytes.
const SCATTERED_AHEAD: usize = 4096;

/// More than this is never asked for, in bytes.
const MOST_AHEAD: usize = 1 << 20;

/// Values that are passed over again are passed over in chunks of about so many bytes, which stay in the first-level cache between
/// passes; each pass asks for its share of what comes later. On a Xeon with AMX (eight rows of f32, from memory) chunks of 4 KiB
/// gain a third over passes over a block, whose values come from the second level, asked for by the first pass; in turns of 4 to 32
/// KiB, or without turns, it is all the same then.
const CHUNK_BYTES: usize = 4096;

/// A block on its way: scores are computed while the values of the block before it are added, and then become weights.
pub(super) struct Turn {
    keys: KeyBlock,
    /// Which of two places its scores have.
    pub(super) side: usize,
    stages: [Stage; args::MOST_ROWS],
}

impl Turn {
    /// No block.
    pub(super) fn new(side: usize) -> Self {
        Self { keys: KeyBlock { first: 0, keys: 0 }, side, stages: [Stage::Nothing; args::MOST_ROWS] }
    }
}

/// What a block is to a group.
#[derive(Clone, Copy)]
enum Stage {
    /// Nothing to compute, or nothing to add.
    Nothing,
    /// Scores are computed, or to be.
    Scores {
        /// The first step of which some lane does not see its key.
        masked_from: usize,
    },
    /// Weights are to be multiplied with values.
    Weights {
        /// Whether the sums are to be multiplied by alpha first.
        rescale: bool,
    },
}

/// Some keys of a block.
#[derive(Clone, Copy)]
pub(super) struct Part {
    keys: KeyBlock,
    /// Place of the first one in the block.
    place: usize,
    /// Keys of the block.
    of: usize,
}

impl KeyBlock {
    /// At most `most` keys from place `place` on.
    pub(super) fn part(self, place: usize, most: usize) -> Part {
        let keys = self.keys.saturating_sub(place).min(most);
        Part { keys: KeyBlock { first: self.first + place, keys }, place, of: self.keys }
    }

    /// All keys.
    pub(super) fn whole(self) -> Part {
        self.part(0, self.keys)
    }
}

impl<F: Form, T: Tiles> Rows<'_, F, T> {
    /// Makes a turn that of a block of which nothing is computed yet, or of none.
    pub(super) fn open(&self, turn: &mut Turn, keys: Option<KeyBlock>) {
        turn.keys = keys.unwrap_or(KeyBlock { first: 0, keys: 0 });
        for index in 0..self.groups {
            let visible = keys.and_then(|keys| self.visible(self.group(index, turn.side), keys));
            turn.stages[index] = visible.map_or(Stage::Nothing, |masked_from| Stage::Scores { masked_from });
        }
    }

    /// Scores of the next block before its terms, and the sums with the values of the last one.
    #[inline(always)]
    pub(super) fn products<S: Simd>(&self, s: S, next: &Turn, last: &Turn) {
        let few = if self.takes_turns() { self.turn_keys() } else { self.unit.key_block };
        let (k, v) = (self.keys_stream(), self.values_stream());
        let done = self.abreast(s, next, last);
        for start in (done..next.keys.keys.max(last.keys.keys)).step_by(few) {
            for index in 0..self.groups {
                if let Stage::Scores { .. } = next.stages[index] {
                    self.score_products(s, self.group(index, next.side), k, next.keys.part(start, few));
                }
            }
            let mut keeps = true;
            for index in 0..self.groups {
                if let Stage::Weights { rescale } = last.stages[index] {
                    let group = self.group(index, last.side);
                    self.value_products(s, group, v, last.keys.part(start, few), [rescale, false, keeps]);
                    keeps = false;
                }
            }
        }
    }

    /// Both products at once, as far as both blocks go, if keys and values are read so. Gives the number of keys that are done.
    #[inline(always)]
    fn abreast<S: Simd>(&self, s: S, next: &Turn, last: &Turn) -> usize {
        if !self.goes_abreast() {
            return 0;
        }
        let pair = 2 * T::keys_of_step(self.group_rows);
        let keys = next.keys.keys.min(last.keys.keys) / pair * pair;
        let both = |index: usize| match (next.stages[index], last.stages[index]) {
            (Stage::Scores { .. }, Stage::Weights { rescale }) => Some(rescale),
            _ => None,
        };
        if (0..self.groups).any(|index| both(index).is_none()) {
            return 0;
        }
        // What the first group has read is in the first-level cache for the others.
        let unit = self.unit;
        let columns = unit.d.max(unit.d_v);
        let few = if self.groups > 1 { Self::keys_of_bytes(unit, CHUNK_BYTES, columns, self.group_rows) } else { keys };
        let (k, v) = (self.keys_stream(), self.values_stream());
        for start in (0..keys).step_by(few.max(1)) {
            let most = few.min(keys - start);
            for index in 0..self.groups {
                let (keys, values) = (next.keys.part(start, most), last.keys.part(start, most));
                let [next, last] = [next, last].map(|turn| self.group(index, turn.side));
                // Sources that are read so have one piece each.
                for (key_piece, value_piece) in Pieces::new(k, keys.keys).zip(Pieces::new(v, values.keys)) {
                    T::abreast::<S, F>(
                        s,
                        next.rows.len(),
                        self.score_args(next, &key_piece, keys.place),
                        self.value_args(last, &value_piece, values.place, values.of, both(index) == Some(true)),
                    );
                }
            }
        }
        keys
    }

    /// Whether keys and values are read a few of each in turns, by one loop: if that is what turns are to be, and there is nothing to
    /// be asked for.
    fn goes_abreast(&self) -> bool {
        let unit = self.unit;
        let least = 2 * unit.d.max(unit.d_v) * size_of::<F::Element>();
        F::ABREAST
            && (1..=least).contains(&unit.reading.turn)
            && self.keeps_up(&unit.k, unit.d)
            && self.keeps_up(&unit.v, unit.d_v)
    }

    /// Whether the values of a block wait for the keys of the next one.
    pub(super) fn takes_turns(&self) -> bool {
        self.unit.reading.turn > 0
    }

    /// Keys of a turn.
    fn turn_keys(&self) -> usize {
        let unit = self.unit;
        Self::keys_of_bytes(unit, unit.reading.turn, unit.d.max(unit.d_v), self.group_rows)
    }

    /// Keys of a chunk: all, unless the value product passes over values again.
    pub(super) fn chunk_keys(unit: &Unit<'_>, group_rows: usize) -> usize {
        if T::passes_again(group_rows, unit.d_v) {
            Self::keys_of_bytes(unit, CHUNK_BYTES, unit.d_v, group_rows)
        } else {
            unit.key_block
        }
    }

    /// Whole pairs of steps of a block, of about so many bytes.
    fn keys_of_bytes(unit: &Unit<'_>, bytes: usize, columns: usize, group_rows: usize) -> usize {
        let keys = bytes / (columns * size_of::<F::Element>()).max(1);
        keys.clamp(1, unit.key_block).next_multiple_of((2 * T::keys_of_step(group_rows)).max(F::TURN_KEYS))
    }

    /// Whether a source is left to the processor: its rows lie one after the other, and nothing is asked for.
    fn keeps_up(&self, source: &Source<'_>, columns: usize) -> bool {
        let packed = source.page_rows().is_none() && source.row_bytes() == columns * size_of::<F::Element>();
        self.unit.reading.ahead == 0 && packed
    }

    /// How far ahead to ask for the rows of a source, in bytes. 0 asks for what is read anyway, at no cost that could be
    /// measured.
    fn ahead(&self, source: &Source<'_>, columns: usize) -> usize {
        match self.unit.reading.ahead {
            _ if self.keeps_up(source, columns) => 0,
            0 => SCATTERED_AHEAD,
            ahead => ahead.min(MOST_AHEAD),
        }
    }

    /// The keys, asked for ahead.
    pub(super) fn keys_stream(&self) -> Stream<'_> {
        let unit = self.unit;
        self.stream(&unit.k, unit.d, self.ahead(&unit.k, unit.d), T::LANES, self.layout.keys)
    }

    /// The values, asked for ahead.
    pub(super) fn values_stream(&self) -> Stream<'_> {
        let unit = self.unit;
        let run_keys = T::LANES.max(F::RUN_KEYS);
        self.stream(&unit.v, unit.d_v, self.ahead(&unit.v, unit.d_v), run_keys, self.layout.values)
    }

    /// A source whose rows are asked for so many bytes ahead, with room for a block of them at `at` of the scratch.
    fn stream<'b>(
        &self,
        source: &'b Source<'b>,
        columns: usize,
        ahead: usize,
        run_keys: usize,
        at: usize,
    ) -> Stream<'b> {
        let row_bytes = columns * size_of::<F::Element>();
        let ahead = if ahead == 0 { 0 } else { ahead.div_ceil(row_bytes.max(1)) };
        Stream { source, columns, ahead, run_keys, gathered: self.scratch.wrapping_add(at) }
    }

    /// What to ask for while scores become weights: the rows of a source from `first` on. Where they are asked for ahead anyway, nothing
    /// is gained by what would come after that, neither a line or two with each step nor 16 to 128 lines before the weighting (a
    /// Xeon with AMX, eight rows of f32, and of bf16 and int8 on tiles).
    fn ask(&self, source: &Source<'_>, first: usize, columns: usize) -> Ask {
        Ask { at: source.run(first).data, lines: if self.keeps_up(source, columns) { Ask::LINES } else { 0 } }
    }

    /// Turns the scores of a block into weights. Gives a bit for each group of which some row does not see some key.
    #[inline(always)]
    pub(super) fn weigh<S: Simd>(&self, s: S, turn: &mut Turn) -> u64 {
        let mut masked = 0;
        // Groups have steps of as many keys, whose scales are the same.
        let mut spread = false;
        for index in 0..self.groups {
            if let Stage::Scores { masked_from } = turn.stages[index] {
                let group = self.group(index, turn.side);
                masked |= u64::from(masked_from & !1 < turn.keys.keys.div_ceil(group.step_keys)) << index;
                if !spread {
                    self.spread_scales(s, group, turn.keys);
                    spread = true;
                }
                self.terms(s, group, turn.keys, masked_from);
                turn.stages[index] = match self.weights(s, group, turn.keys, masked_from) {
                    Some(rescale) => Stage::Weights { rescale },
                    None => Stage::Nothing,
                };
            }
        }
        masked
    }

    /// Weights of one block in the form in which they meet values, and whether sums are to be multiplied by alpha first; none if
    /// no values are to be added.
    #[inline(always)]
    pub(super) fn weights<S: Simd>(&self, s: S, group: Group<'_>, keys: KeyBlock, masked_from: usize) -> Option<bool> {
        let unit = self.unit;
        let steps = keys.keys.div_ceil(group.step_keys);
        // Segments start at even places.
        let whole = masked_from & !1;
        let segments =
            [Segment { key: 0, keys: whole, masked: false }, Segment { key: whole, keys: steps - whole, masked: true }];
        let segments = match whole {
            0 => &segments[1..],
            _ if whole == steps => &segments[..1],
            _ => &segments[..],
        };
        let block = Block {
            scores: group.scores,
            lanes: T::LANES,
            segments,
            vectors: 1,
            visible: group.visible,
            first_key: keys.first / group.step_keys,
            max: group.max,
            gain: group.gain,
            shift: group.shift,
            state: group.state,
            alpha: group.alpha,
        };
        // SAFETY: the functions are of this level (`launch` pairs them), and the block is as its fields say.
        let rescale = match unsafe { (unit.weighting.functions.weigh)(unit.weighting.data, &block) } {
            Step::Skip => return None,
            // To leave values out would take a look at them all the same: NaN and Inf are felt at any weight.
            Step::Add | Step::Part { .. } => false,
            Step::Rescale => true,
        };
        let [_, scales] = self.scales();
        F::prepare(
            s,
            Weights {
                weights: group.scores,
                scales,
                visible: group.visible,
                quanta: group.weight_quanta,
                steps,
                lanes: T::LANES,
                row_lanes: T::LANES / group.step_keys,
                key_block: unit.key_block,
                ask: self.ask(&unit.v, keys.first, unit.d_v),
            },
        );
        Some(rescale)
    }

    /// Final scores of one block for one group, with their maximum, and the first step of which some lane does not see its
    /// key; none if no lane sees any.
    #[inline(always)]
    pub(super) fn scores<S: Simd>(&self, s: S, group: Group<'_>, keys: KeyBlock) -> Option<usize> {
        let masked_from = self.visible(group, keys)?;
        self.score_products(s, group, self.keys_stream(), keys.whole());
        self.spread_scales(s, group, keys);
        self.terms(s, group, keys, masked_from);
        Some(masked_from)
    }

    /// Products of queries and some keys of a block. The first group asks for what comes later. To have each group ask with every
    /// so-manieth key gains 4 to 8 % with two and four groups (f32, a Xeon with AMX), and costs one group 4 % by the counting; to cut runs
    /// into a few keys for each group to ask with in turn costs two groups a tenth.
    #[inline(always)]
    pub(super) fn score_products<S: Simd>(&self, s: S, group: Group<'_>, k: Stream<'_>, part: Part) {
        let k = if group.index > 0 { Stream { ahead: 0, ..k } } else { k };
        for piece in Pieces::new(k, part.keys) {
            let place = part.place + piece.place;
            T::scores::<S, F>(s, group.rows.len(), self.score_args(group, &piece, place));
        }
    }

    /// The keys of a piece, which starts at `place` of the block, and the queries of a group.
    #[inline(always)]
    fn score_args(&self, group: Group<'_>, piece: &Piece, place: usize) -> ScoreArgs<F::Element> {
        let row_lanes = T::LANES >> group.step_keys.trailing_zeros();
        ScoreArgs {
            q: group.queries,
            quanta: group.query_quanta,
            k: piece.data.cast(),
            k_stride: piece.row_bytes / size_of::<F::Element>(),
            keys: piece.rows,
            d: self.unit.d,
            scores: group.scores.wrapping_add(place * row_lanes),
            ahead: (piece.ahead as isize / size_of::<F::Element>() as isize) as usize,
        }
    }

    /// What happens to the scores of a block between the products and the weighting.
    #[inline(always)]
    pub(super) fn terms<S: Simd>(&self, s: S, group: Group<'_>, keys: KeyBlock, masked_from: usize) {
        let [k_scales, _] = self.scales();
        s.vectorize(Terms {
            unit: self.unit,
            rows: group.rows,
            step_keys: group.step_keys,
            first_key: keys.first,
            keys: keys.keys,
            scores: group.scores,
            k_scales,
            visible: group.visible,
            masked_from,
            max: group.max,
            ask: self.ask(&self.unit.k, keys.first + keys.keys, self.unit.d),
        });
    }

    /// Says which lanes see which keys, and gives the first step of which some lane does not; none if there is no key that a
    /// lane sees. Lanes past the last key see nothing.
    fn visible(&self, group: Group<'_>, keys: KeyBlock) -> Option<usize> {
        let unit = self.unit;
        let step_keys = group.step_keys;
        let row_lanes = T::LANES / step_keys;
        let seen = |row: &QueryRow| {
            let seen = unit.band.visible(row.query, unit.keys);
            let place = |key: usize| key.clamp(keys.first, keys.first + keys.keys) - keys.first;
            place(seen.start)..place(seen.end)
        };
        // Steps all of whose keys are seen by all rows: they are most, and rows are looked at one by one before and after them only.
        let (mut start, mut end) = (0, keys.keys);
        for row in group.rows {
            let seen = seen(row);
            (start, end) = (start.max(seen.start), end.min(seen.end));
        }
        let whole = start.div_ceil(step_keys)..end / step_keys;
        let tensor = group.rows.iter().any(|row| !row.keep.is_null());
        let whole = if tensor || whole.is_empty() { 0..0 } else { whole };
        // SAFETY: `visible` has a word for each step.
        let words = unsafe { std::slice::from_raw_parts_mut(group.visible, keys.keys.div_ceil(step_keys)) };
        words.fill(0);
        let rows = below(group.rows.len());
        words[whole.clone()].fill((0..step_keys).map(|g| rows << (g * row_lanes)).sum());
        for (r, row) in group.rows.iter().enumerate() {
            let seen = seen(row);
            let before = seen.start..seen.end.min(whole.start * step_keys);
            let after = seen.start.max(whole.end * step_keys)..seen.end;
            // A power of two: to divide by it for each key would take most of the time where there is a mask tensor.
            let step_of = |place: usize| place >> step_keys.trailing_zeros();
            let lane = |place: usize| (place & (step_keys - 1)) * row_lanes + r;
            for places in [before, after] {
                if row.keep.is_null() {
                    places.for_each(|place| words[step_of(place)] |= 1 << lane(place));
                    continue;
                }
                let keep = row.keep.wrapping_add(keys.first * row.keep_stride);
                for place in places {
                    // SAFETY: masks cover every key.
                    let kept = unsafe { *keep.add(place * row.keep_stride) != 0 };
                    words[step_of(place)] |= u64::from(kept) << lane(place);
                }
            }
        }
        let hides = self.hide(group, keys, words)?;
        let masked_from = if hides || whole.start > 0 { 0 } else { whole.end };
        (!whole.is_empty() && !hides || words.iter().any(|word| *word != 0)).then_some(masked_from)
    }

    /// Scales of keys and of values in the layout of the scores, as [`Self::spread_scales`] wrote them; null if there are none.
    #[inline(always)]
    fn scales(&self) -> [*const f32; 2] {
        let Layout { k_scales, v_scales, .. } = self.layout;
        let scaled = self.unit.k.dtype == Dtype::Int8;
        [k_scales, v_scales]
            .map(|at| if scaled { self.scratch.wrapping_add(at).cast_const() } else { std::ptr::null() })
    }

    /// Lays the scales of a block out for the groups, all of which have as many keys in a step; those of values if weights meet them.
    #[inline(always)]
    fn spread_scales<S: Simd>(&self, s: S, group: Group<'_>, keys: KeyBlock) {
        let KeyBlock { first, keys } = keys;
        let [k_scales, v_scales] = self.scales();
        if k_scales.is_null() {
            return;
        }
        let step_keys = group.step_keys;
        s.vectorize(Spread { source: &self.unit.k, first, keys, step_keys, to: k_scales.cast_mut() });
        if self.is_weighted() {
            s.vectorize(Spread { source: &self.unit.v, first, keys, step_keys, to: v_scales.cast_mut() });
        }
    }

    /// Adds the weighted values of some keys of a block to the sums of a group. `careful` keeps values away from rows that do not
    /// see their key; otherwise they are multiplied by a weight of zero, which is the same unless they are NaN or Inf.
    #[inline(always)]
    pub(super) fn value_products<S: Simd>(
        &self,
        s: S,
        group: Group<'_>,
        v: Stream<'_>,
        part: Part,
        [rescale, careful, keeps]: [bool; 3],
    ) {
        let v = if group.index > 0 { Stream { ahead: 0, ..v } } else { v };
        let shares = F::KEPT_BYTES > 0 && self.groups > 1 && !careful;
        for piece in Pieces::new(v, part.keys) {
            for start in (0..piece.rows).step_by(self.chunk_keys) {
                let chunk = Piece {
                    data: piece.data.wrapping_add(start * piece.row_bytes),
                    rows: self.chunk_keys.min(piece.rows - start),
                    ..piece
                };
                let place = part.place + piece.place + start;
                T::accumulate::<S, F>(
                    s,
                    group.rows.len(),
                    AccumulateArgs {
                        visible: if careful { group.visible } else { std::ptr::null() },
                        kept: if shares { self.scratch.wrapping_add(self.layout.kept) } else { std::ptr::null_mut() },
                        keeps,
                        ..self.value_args(group, &chunk, place, part.of, rescale)
                    },
                );
            }
        }
    }

    /// The values of a piece, which starts at `place` of a block of `of` keys, and the weights and sums of a group.
    #[inline(always)]
    fn value_args(
        &self,
        group: Group<'_>,
        piece: &Piece,
        place: usize,
        of: usize,
        rescale: bool,
    ) -> AccumulateArgs<F::Element> {
        AccumulateArgs {
            weights: group.scores,
            first: place,
            v: piece.data.cast(),
            v_stride: piece.row_bytes / size_of::<F::Element>(),
            keys: piece.rows,
            d_v: self.unit.d_v,
            block_sums: group.block_sums,
            sums: group.sums,
            quanta: group.weight_quanta,
            alpha: if rescale { group.alpha } else { std::ptr::null() },
            ends: [place == 0, place + piece.rows == of],
            visible: std::ptr::null(),
            ahead: (piece.ahead as isize / size_of::<F::Element>() as isize) as usize,
            kept: std::ptr::null_mut(),
            keeps: false,
        }
    }
}

/// The lowest `n < 64` bits.
pub(super) fn below(n: usize) -> u64 {
    (1 << n) - 1
}
