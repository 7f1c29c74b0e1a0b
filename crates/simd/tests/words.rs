//! Pairs of 16-bit integers: loaded, made of f32, and multiplied, against scalar code.

mod common;

use common::{MAX_LANES, Random, Token, tokens};
use regard_simd::{Op, Simd};

/// The words of a vector, in order.
fn words(vector: &[f32]) -> Vec<i16> {
    vector.iter().flat_map(|lane| [lane.to_bits() as i16, (lane.to_bits() >> 16) as i16]).collect()
}

/// Loads the first `n` bytes of a slice, or a whole vector of them.
struct Load<'a> {
    bytes: &'a [i8],
    whole: bool,
}

impl Op for Load<'_> {
    type Output = Vec<f32>;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<f32> {
        let (p, n) = (self.bytes.as_ptr(), self.bytes.len());
        let mut lanes = vec![f32::NAN; S::LANES];
        assert!(n == 2 * S::LANES || (!self.whole && n < 2 * S::LANES));
        // SAFETY: the bytes are there, and the lanes have room.
        unsafe { s.store(lanes.as_mut_ptr(), if self.whole { s.load_words(p) } else { s.load_first_words(p, n) }) };
        lanes
    }
}

#[test]
fn bytes_become_words_in_order() {
    let mut random = Random(21);
    for &token in tokens() {
        let most = 2 * token.isa().lanes();
        for n in 0..=most {
            for _ in 0..16 {
                // A slice of its own, so that reading past its end is an error to the tools that look for it.
                let bytes: Vec<i8> = (0..n).map(|_| random.bits() as i8).collect();
                let mut expected: Vec<i16> = bytes.iter().map(|byte| i16::from(*byte)).collect();
                expected.resize(most, 0);
                assert_eq!(
                    words(&token.dispatch(Load { bytes: &bytes, whole: false })),
                    expected,
                    "{token}, {n} bytes"
                );
                if n == most {
                    assert_eq!(words(&token.dispatch(Load { bytes: &bytes, whole: true })), expected, "{token}");
                }
            }
        }
    }
}

/// Runs an operation on three vectors: pairs of rounded numbers, dot products, or f32 of integers.
struct Run<'a> {
    what: What,
    operands: [&'a [f32; MAX_LANES]; 3],
}

#[derive(Clone, Copy)]
enum What {
    Pair,
    Dot,
    Widen,
}

impl Op for Run<'_> {
    type Output = Vec<f32>;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<f32> {
        let mut lanes = vec![f32::NAN; S::LANES];
        let [a, b, c] = self.operands;
        // SAFETY: no level has more lanes, and there is room for those of this one.
        unsafe {
            let [a, b, c] = [s.load(a.as_ptr()), s.load(b.as_ptr()), s.load(c.as_ptr())];
            let result = match self.what {
                What::Pair => s.pair_i16(a, b),
                What::Dot => s.dot_i16(a, b, c),
                What::Widen => s.float_i32(a),
            };
            s.store(lanes.as_mut_ptr(), result);
        }
        lanes
    }
}

fn run(token: Token, what: What, operands: [&[f32; MAX_LANES]; 3]) -> Vec<f32> {
    token.dispatch(Run { what, operands })
}

const ROUNDS: usize = if cfg!(miri) { 8 } else { 2000 };

#[test]
fn numbers_are_rounded_to_pairs() {
    let mut random = Random(22);
    let special = [0.5, 1.5, -0.5, -1.5, 2.5, 32766.5, -32767.5, -32768.0, 32767.0, f32::NAN, -0.0, 1e-40, 0.49999997];
    for round in 0..ROUNDS {
        let mut numbers = || {
            std::array::from_fn::<f32, MAX_LANES, _>(|_| match random.bits() % 4 {
                0 => special[random.bits() as usize % special.len()],
                _ => (random.fraction() - 0.5) * 65534.0 / f32::from(1_u16 << (random.bits() % 16)),
            })
        };
        let (low, high) = (numbers(), numbers());
        for &token in tokens() {
            let found = words(&run(token, What::Pair, [&low, &high, &low]));
            for lane in 0..found.len() / 2 {
                let expected = [low[lane], high[lane]].map(|x| x.round_ties_even() as i16);
                assert_eq!(found[2 * lane..][..2], expected, "{token}, round {round}: {} {}", low[lane], high[lane]);
            }
        }
    }
}

#[test]
fn dot_products_are_exact_and_wrap_around() {
    let mut random = Random(23);
    for round in 0..ROUNDS {
        let mut bits = || {
            std::array::from_fn::<f32, MAX_LANES, _>(|_| {
                // The ends of the range, together and apart.
                let word = |bits: u64| match bits % 5 {
                    0 => i16::MIN,
                    1 => i16::MAX,
                    _ => (bits >> 8) as i16,
                };
                let (low, high) = (word(random.bits()), word(random.bits()));
                f32::from_bits(u32::from(high as u16) << 16 | u32::from(low as u16))
            })
        };
        let [acc, a, b] = [bits(), bits(), bits()];
        for &token in tokens() {
            let found = run(token, What::Dot, [&acc, &a, &b]);
            for (lane, found) in found.iter().enumerate() {
                let (x, y) = (words(&a[lane..=lane]), words(&b[lane..=lane]));
                let exact = i64::from(acc[lane].to_bits() as i32)
                    + (0..2).map(|i| i64::from(x[i]) * i64::from(y[i])).sum::<i64>();
                assert_eq!(found.to_bits() as i32, exact as i32, "{token}, round {round}: {x:?} {y:?}");
            }
        }
    }
}

#[test]
fn integers_become_the_nearest_f32() {
    let mut random = Random(24);
    for _ in 0..ROUNDS {
        let integers: [i32; MAX_LANES] = std::array::from_fn(|_| random.bits() as i32 >> (random.bits() % 32));
        let bits = integers.map(|x| f32::from_bits(x as u32));
        for &token in tokens() {
            let found = run(token, What::Widen, [&bits; 3]);
            let expected: Vec<f32> = integers[..found.len()].iter().map(|x| *x as f32).collect();
            assert_eq!(found, expected, "{token}");
        }
    }
}
