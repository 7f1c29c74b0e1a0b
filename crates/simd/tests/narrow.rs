//! Elements of fewer bits than f32: how vectors of them are read and written, against scalar code.

mod common;

use std::fmt::Debug;

use common::{MAX_LANES, Random, tokens};
use regard_simd::{Element, Op, Simd, bf16, f16};

/// Set in every quiet NaN, and in no other pattern that a test tells from a NaN without it.
const QUIET: u32 = 0x0040_0000;

/// The same bits, or NaNs that differ at most in being quiet: loads need not make them so.
#[track_caller]
fn assert_same(found: f32, expected: f32, what: impl Debug) {
    let both_nan = found.is_nan() && expected.is_nan();
    let quiet = if both_nan { QUIET } else { 0 };
    let (found, expected) = (found.to_bits() | quiet, expected.to_bits() | quiet);
    assert_eq!(found, expected, "{what:?}: {found:#x}, not {expected:#x}");
}

/// Every value of 16 bits; under Miri, which is slow, some of each kind.
fn words() -> Vec<u16> {
    let every = if cfg!(miri) { 2039 } else { 1 };
    let mut words: Vec<u16> = (0..=u16::MAX).step_by(every).collect();
    words.resize(words.len().next_multiple_of(2 * MAX_LANES), 0);
    words
}

/// Reads a multiple of `2 * MAX_LANES` elements by single vectors, and again by pairs of them, put in order.
struct Load<'a, E>(&'a [E]);

impl<E: Element> Op for Load<'_, E> {
    type Output = [Vec<f32>; 2];
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let (mut single, mut paired) = (vec![0.0; self.0.len()], vec![0.0; self.0.len()]);
        for i in (0..self.0.len()).step_by(2 * S::LANES) {
            let p = self.0[i..].as_ptr();
            let mut pair = [0.0; 2 * MAX_LANES];
            // SAFETY: the number of elements is a multiple of what is loaded, and no level has more lanes.
            unsafe {
                s.store(single[i..].as_mut_ptr(), E::load(s, p));
                s.store(single[i + S::LANES..].as_mut_ptr(), E::load(s, p.add(S::LANES)));
                let [first, second] = E::load_pair(s, p);
                s.store(pair.as_mut_ptr(), first);
                s.store(pair[S::LANES..].as_mut_ptr(), second);
            }
            for j in 0..2 * S::LANES {
                paired[i + j] = pair[E::place(j, S::LANES)];
            }
        }
        [single, paired]
    }
}

/// Compares loads of elements with the conversion of each.
fn check_loads<E: Element>(elements: &[E], expected: fn(E) -> f32) {
    for &token in tokens() {
        for (how, found) in ["load", "load_pair"].into_iter().zip(token.dispatch(Load(elements))) {
            for (&element, found) in elements.iter().zip(found) {
                assert_same(found, expected(element), (token.to_string(), E::NAME, how, element));
            }
        }
    }
    for &element in elements {
        assert_same(element.widen(), expected(element), (E::NAME, "widen", element));
    }
}

#[test]
fn every_element_loads() {
    let halves: Vec<f16> = words().into_iter().map(f16::from_bits).collect();
    check_loads(&halves, f16::to_f32_const);
    let brains: Vec<bf16> = words().into_iter().map(bf16::from_bits).collect();
    check_loads(&brains, |x| f32::from_bits(u32::from(x.to_bits()) << 16));
    let bytes: Vec<i8> = (-128..=127).collect();
    check_loads(&bytes, f32::from);
    let floats: Vec<f32> = words().into_iter().map(|x| f32::from_bits(u32::from(x) << 16 | 0x1234)).collect();
    check_loads(&floats, |x| x);
}

#[test]
fn bf16_loads_keep_bits() {
    let brains: Vec<bf16> = words().into_iter().map(bf16::from_bits).collect();
    for &token in tokens() {
        for found in token.dispatch(Load(&brains)) {
            for (element, found) in brains.iter().zip(found) {
                assert_eq!(found.to_bits(), u32::from(element.to_bits()) << 16, "{token}, {element:?}");
            }
        }
    }
}

/// Reads the first elements of a vector or two from the end of an allocation.
struct LoadFirst<'a, E> {
    /// With nothing behind it.
    elements: &'a [E],
    from: usize,
}

impl<E: Element> Op for LoadFirst<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let elements = &self.elements[self.from..];
        let n = elements.len();
        let mut lanes = [f32::NAN; 2 * MAX_LANES];
        let check = |lanes: &[f32], place: fn(usize, usize) -> usize, what| {
            for i in 0..lanes.len() {
                let expected = if i < n { elements[i].widen() } else { 0.0 };
                let context = (S::ISA, S::NATIVE_BF16, E::NAME, what, n, i);
                assert_same(lanes[place(i, S::LANES)], expected, context);
            }
        };
        if n <= S::LANES {
            // SAFETY: that many elements there are.
            unsafe { s.store(lanes.as_mut_ptr(), E::load_first(s, elements.as_ptr(), n)) };
            check(&lanes[..S::LANES], |i, _| i, "load_first");
        }
        if n <= 2 * S::LANES {
            // SAFETY: that many elements there are, and no level has more lanes.
            unsafe {
                let [first, second] = E::load_pair_first(s, elements.as_ptr(), n);
                s.store(lanes.as_mut_ptr(), first);
                s.store(lanes[S::LANES..].as_mut_ptr(), second);
            }
            check(&lanes[..2 * S::LANES], E::place, "load_pair_first");
        }
    }
}

fn check_first_loads<E: Element>(element: fn(u64) -> E) {
    let mut random = Random(4);
    for n in (0..=2 * MAX_LANES).step_by(if cfg!(miri) { 5 } else { 1 }) {
        for from in 0..3 {
            // An allocation of its own, so that a sanitizer sees a read past the end, at every distance from it; and one
            // with something behind the end, which must not come out.
            let long: Vec<E> = (0..from + n + 64).map(|_| element(random.bits())).collect();
            let exact: Box<[E]> = long[..from + n].into();
            for &token in tokens() {
                token.dispatch(LoadFirst { elements: &exact, from });
                token.dispatch(LoadFirst { elements: &long[..from + n], from });
            }
        }
    }
}

#[test]
fn first_elements_load() {
    check_first_loads(|bits| f16::from_bits(bits as u16));
    check_first_loads(|bits| bf16::from_bits(bits as u16));
    check_first_loads(|bits| bits as i8);
    check_first_loads(|bits| f32::from_bits(bits as u32));
}

/// Writes the first elements of vectors between guards, and gives what is in memory then.
struct StoreFirst<'a, E> {
    lanes: &'a [f32; MAX_LANES],
    n: usize,
    before: usize,
    guard: E,
}

impl<E: Element> Op for StoreFirst<'_, E> {
    type Output = Option<Vec<E>>;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Option<Vec<E>> {
        if self.n > S::LANES {
            return None;
        }
        let mut memory = vec![self.guard; self.before + self.n + 2 * MAX_LANES];
        let mut exact = vec![self.guard; self.before + self.n];
        // SAFETY: n elements follow `before` in both; no level has more lanes.
        unsafe {
            let v = s.load(self.lanes.as_ptr());
            E::store_first(s, memory.as_mut_ptr().add(self.before), v, self.n);
            E::store_first(s, exact.as_mut_ptr().add(self.before), v, self.n);
        }
        memory.truncate(self.before + self.n + MAX_LANES);
        memory.extend(exact);
        Some(memory)
    }
}

/// Compares stores of the first `n` lanes, for all `n`, with the conversion of each. Of elements the bits are compared.
fn check_stores<E: Element>(xs: &[f32], guard: E, bits: fn(E) -> u32, expected: fn(f32) -> E) {
    for (block, lanes) in xs.chunks_exact(MAX_LANES).enumerate() {
        let lanes: &[f32; MAX_LANES] = lanes.try_into().expect("chunks are exact");
        // Whole vectors, whose writing is another piece of code, and one other number for each block.
        for n in [block % MAX_LANES, 4, 8, 16] {
            let before = block % 3;
            let mut all = vec![bits(guard); before];
            all.extend(lanes[..n].iter().map(|&x| bits(expected(x))));
            let exact = all.clone();
            all.resize(before + n + MAX_LANES, bits(guard));
            all.extend(exact);
            for &token in tokens() {
                let Some(found) = token.dispatch(StoreFirst { lanes, n, before, guard }) else { continue };
                let found: Vec<u32> = found.into_iter().map(bits).collect();
                assert_eq!(found, all, "{token}, {}: {n} of {lanes:?}", E::NAME);
            }
        }
    }
    for &x in xs {
        assert_eq!(bits(E::narrow(x)), bits(expected(x)), "{}: {x:?}", E::NAME);
    }
}

/// What lies on, between and just beside the elements that have these words, and anything at all. A multiple of the
/// lanes of any level.
fn values(widen: fn(u16) -> f32) -> Vec<f32> {
    let mut random = Random(5);
    let mut values = Vec::new();
    for word in words() {
        let (x, next) = (widen(word), widen(word.wrapping_add(1)));
        let middle = ((f64::from(x) + f64::from(next)) / 2.0) as f32;
        values.extend([x, middle, middle.next_up(), middle.next_down()]);
        values.extend([x.next_up(), x.next_down(), f32::from_bits(random.bits() as u32), f32::from(word) - 32768.0]);
    }
    // The last number, the tie between it and what would be next, infinity; NaNs whose payload rounding would carry away.
    for bits in [0x7F7F_0000, 0x7F7F_8000, 0x7F80_0000, 0x7F80_0001, 0x7FA5_5A5A, 0x7FC0_0001, 0x7FFF_FFFF, 0x7FFF_8000]
    {
        values.extend([f32::from_bits(bits), f32::from_bits(bits | 0x8000_0000)]);
    }
    values.extend([65504.0, 65519.996, 65520.0, 1e9, -65504.0, -65519.996, -65520.0, -1e9]);
    values.resize(values.len().next_multiple_of(MAX_LANES), 0.0);
    values
}

#[test]
fn stores_round_to_the_nearest() {
    let halves = values(|word| f16::from_bits(word).to_f32_const());
    check_stores(&halves, f16::from_bits(0x7E5A), |x| u32::from(x.to_bits()), f16::from_f32_const);
    let brains = values(|word| bf16::from_bits(word).to_f32());
    check_stores(&brains, bf16::from_bits(0xFFA5), |x| u32::from(x.to_bits()), bf16::from_f32);
    check_stores(&brains[brains.len() - 512..], f32::from_bits(0xFFF1_2345), f32::to_bits, |x| x);
}

#[test]
fn bytes_saturate() {
    let mut xs: Vec<f32> = (-600..600).step_by(if cfg!(miri) { 38 } else { 1 }).map(|i| i as f32 / 4.0).collect();
    xs.extend([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1e30, 1e30, 0.0, -0.0, f32::MIN_POSITIVE]);
    xs.resize(xs.len().next_multiple_of(MAX_LANES), 0.0);
    check_stores(
        &xs,
        0x5A,
        |x| x as u8 as u32,
        |x| match x {
            x if x.is_nan() => 0,
            x if x <= -127.0 => -127,
            x if x >= 127.0 => 127,
            x => (-127_i8..=127)
                .min_by(|&a, &b| {
                    let distance = |n: i8| (f32::from(n) - x).abs();
                    // Between two, the even one.
                    distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1)))
                })
                .expect("there are integers"),
        },
    );
}
