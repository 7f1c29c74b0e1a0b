//! Attention as a recurrent network: readings of a sensor come one by one, each with a key that says how far it can be
//! trusted, and a fixed query asks for the trustworthy ones. Softmax is their weighted mean so far, hard attention the best
//! reading so far; each is a state of constant size, whatever the number of readings. States over halves of the stream merge, and
//! a scan gives the mean at every moment at once.
//!
//! Feng et al., "Attention as an RNN", arXiv:2405.13956.

use std::error::Error;

use regard::{Attention, Execution, State, StateShape, View, ViewMut, Weighting, prefixes};

/// What the sensor measures.
pub(crate) const TRUTH: f32 = 2.5;

/// Columns of a key: the trust, and a column that the query does not ask for.
const D: usize = 2;

/// What is known after some readings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Line {
    pub(crate) readings: u64,
    /// The mean by trust, and the plain one.
    pub(crate) mean: f32,
    pub(crate) plain: f32,
    /// The most trusted reading.
    pub(crate) best: f32,
    pub(crate) bytes: usize,
}

/// SplitMix64: uniform numbers.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 24) as f32
    }
}

/// Readings: keys `[count, D]` and values. The less a reading can be trusted, the further it is off, and too high.
pub(crate) fn readings(count: usize) -> (Vec<f32>, Vec<f32>) {
    let mut random = Random(17);
    let mut keys = Vec::with_capacity(count * D);
    let mut values = Vec::with_capacity(count);
    for _ in 0..count {
        let trust = 10.0 * random.uniform();
        keys.extend([trust, random.uniform()]);
        values.push(TRUTH + (10.0 - trust) * (2.0 * random.uniform() - 0.5));
    }
    (keys, values)
}

/// Asks for trust, and for nothing.
const QUERIES: [[f32; D]; 2] = [[1.0, 0.0], [0.0, 0.0]];

fn output(state: &State<'_>) -> Result<[f32; 2], Box<dyn Error>> {
    let mut out = [0.0; 2];
    state.output(ViewMut::bhsd(&mut out, [1, 1, 2, 1])?, None)?;
    Ok(out)
}

/// What is known after 10, 100, 1000, .. readings, pushed one by one.
pub(crate) fn stream(keys: &[f32], values: &[f32]) -> Result<Vec<Line>, Box<dyn Error>> {
    let queries = QUERIES.concat();
    let q = || View::bhsd(&queries, [1, 1, 2, D]);
    let shape = StateShape { kv_heads: 1, value_dim: 1 };
    let mut soft = State::new(&Attention::softmax().scale(1.0), q()?, shape)?;
    let mut hard = State::new(&Attention::new(Weighting::HardLeft).scale(1.0), q()?, shape)?;
    let mut lines = Vec::new();
    let mut next = 10;
    for (key, value) in keys.chunks_exact(D).zip(values.chunks_exact(1)) {
        soft.push(key, value)?;
        hard.push(key, value)?;
        if soft.keys() == next {
            next *= 10;
            let ([mean, plain], [best, _]) = (output(&soft)?, output(&hard)?);
            lines.push(Line { readings: soft.keys(), mean, plain, best, bytes: soft.bytes() + hard.bytes() });
        }
    }
    Ok(lines)
}

/// The mean by trust over all readings, by two states that have each seen one half.
pub(crate) fn in_two_halves(keys: &[f32], values: &[f32]) -> Result<f32, Box<dyn Error>> {
    let queries = QUERIES.concat();
    let half = values.len() / 2;
    let state = |keys: &[f32], values: &[f32]| -> Result<State<'_>, Box<dyn Error>> {
        let shape = StateShape { kv_heads: 1, value_dim: 1 };
        let mut state = State::new(&Attention::softmax().scale(1.0), View::bhsd(&queries, [1, 1, 2, D])?, shape)?;
        let (k, v) = (View::bhsd(keys, [1, 1, values.len(), D])?, View::bhsd(values, [1, 1, values.len(), 1])?);
        state.push_block(k, v, Execution::Serial)?;
        Ok(state)
    };
    let mut first = state(&keys[..half * D], &values[..half])?;
    first.merge(&state(&keys[half * D..], &values[half..])?)?;
    Ok(output(&first)?[0])
}

/// The mean by trust after every reading, by one scan.
pub(crate) fn at_every_moment(keys: &[f32], values: &[f32]) -> Result<Vec<f32>, Box<dyn Error>> {
    let rows = values.len();
    let q = View::bhsd(&QUERIES[0], [1, 1, 1, D])?;
    let (k, v) = (View::bhsd(keys, [1, 1, rows, D])?, View::bhsd(values, [1, 1, rows, 1])?);
    Ok(prefixes(&Attention::softmax().scale(1.0), q, k, v)?)
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let (keys, values) = readings(100_000);
    println!("a sensor at {TRUTH}, whose readings are the higher the less they can be trusted\n");
    println!("{:>10}{:>14}{:>12}{:>14}{:>10}", "readings", "plain mean", "by trust", "most trusted", "bytes");
    for Line { readings, mean, plain, best, bytes } in stream(&keys, &values)? {
        println!("{readings:>10}{plain:>14.4}{mean:>12.4}{best:>14.4}{bytes:>10}");
    }
    println!("\nmerged from two halves of the stream: {:.4}", in_two_halves(&keys, &values)?);
    let moments = at_every_moment(&keys, &values)?;
    let settled =
        moments.iter().rposition(|mean| (mean - moments[moments.len() - 1]).abs() > 0.01).map_or(0, |i| i + 1);
    println!("by a scan over all moments: within 0.01 of its end from reading {settled} on");
    Ok(())
}
