//! Operations on integers in scalar code, for levels that have no instructions of their own for them.

use crate::Simd;

/// 32-bit lanes of any level in memory.
#[repr(align(64))]
struct Lanes([i32; 16]);

impl Lanes {
    #[inline(always)]
    fn of<S: Simd>(s: S, x: S::F32) -> Self {
        const { assert!(S::LANES <= 16) };
        let mut lanes = Self([0; 16]);
        // SAFETY: a vector has room, as asserted above.
        unsafe { s.store(lanes.0.as_mut_ptr().cast(), x) };
        lanes
    }

    #[inline(always)]
    fn vector<S: Simd>(&self, s: S) -> S::F32 {
        // SAFETY: no level has more lanes.
        unsafe { s.load(self.0.as_ptr().cast()) }
    }
}

/// See [`Simd::load_first_words`].
///
/// # Safety
/// `p..p + n` is readable.
#[inline(always)]
pub(crate) unsafe fn load_first<S: Simd>(s: S, p: *const i8, n: usize) -> S::F32 {
    const { assert!(S::LANES <= 16) };
    debug_assert!(n <= 2 * S::LANES);
    let mut words = [0_i16; 32];
    for (i, word) in words[..n].iter_mut().enumerate() {
        // SAFETY: the caller's contract.
        *word = i16::from(unsafe { *p.add(i) });
    }
    // SAFETY: no level has more lanes, of two words each.
    unsafe { s.load(words.as_ptr().cast()) }
}

/// See [`Simd::pair_i16`].
#[inline(always)]
pub(crate) fn pair<S: Simd>(s: S, low: S::F32, high: S::F32) -> S::F32 {
    let (mut pairs, high) = (Lanes::of(s, low), Lanes::of(s, high));
    let word = |bits: i32| f32::from_bits(bits as u32).round_ties_even() as i32;
    for (pair, high) in pairs.0.iter_mut().zip(high.0) {
        *pair = word(high) << 16 | word(*pair) & 0xFFFF;
    }
    pairs.vector(s)
}

/// See [`Simd::dot_i16`].
#[inline(always)]
pub(crate) fn dot<S: Simd>(s: S, acc: S::F32, a: S::F32, b: S::F32) -> S::F32 {
    let (mut sums, a, b) = (Lanes::of(s, acc), Lanes::of(s, a), Lanes::of(s, b));
    for (i, sum) in sums.0.iter_mut().enumerate() {
        let (a, b) = (a.0[i], b.0[i]);
        let low = i32::from(a as i16) * i32::from(b as i16);
        *sum = sum.wrapping_add(low).wrapping_add((a >> 16) * (b >> 16));
    }
    sums.vector(s)
}

/// See [`Simd::lane_sums_i32`].
#[inline(always)]
pub(crate) fn lane_sums<S: Simd, const N: usize>(s: S, x: [S::F32; N]) -> S::F32 {
    const { assert!(N == S::LANES && N <= 16) };
    let mut sums = Lanes([0; 16]);
    for (sum, x) in sums.0.iter_mut().zip(x) {
        *sum = Lanes::of(s, x).0.iter().fold(0, |sum, x| sum.wrapping_add(*x));
    }
    sums.vector(s)
}

/// See [`Simd::float_i32`].
#[inline(always)]
pub(crate) fn widen<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let mut lanes = Lanes::of(s, x);
    for lane in &mut lanes.0 {
        *lane = (*lane as f32).to_bits() as i32;
    }
    lanes.vector(s)
}
