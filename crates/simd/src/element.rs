//! Element types of tensors, and how vectors of them become f32.

use half::{bf16, f16};

use crate::Simd;

/// An element type that kernels can read: widening it to f32 is exact.
///
/// # Safety
/// Every bit pattern is a value, and zero is the pattern of zeros.
pub unsafe trait Element: Copy + Send + Sync + std::fmt::Debug + 'static {
    /// Its name, as profiles and the tool write it.
    const NAME: &'static str;

    /// Elements of a cache line of 64 bytes.
    const PER_LINE: usize = 64 / size_of::<Self>();

    /// `LANES` elements from `p`, in order.
    ///
    /// # Safety
    /// `p..p + LANES` is readable.
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::F32;

    /// `2 * LANES` elements from `p`, in the order that costs least: even and odd ones apart for bf16, else as they lie.
    /// [`Element::place`] tells it.
    ///
    /// # Safety
    /// `p..p + 2 * LANES` is readable.
    #[inline(always)]
    unsafe fn load_pair<S: Simd>(s: S, p: *const Self) -> [S::F32; 2] {
        // SAFETY: the caller's contract.
        unsafe { [Self::load(s, p), Self::load(s, p.add(S::LANES))] }
    }

    /// Where element `i` of `2 * lanes` lies in the two vectors of [`Element::load_pair`], counted through both.
    #[inline(always)]
    fn place(i: usize, _lanes: usize) -> usize {
        i
    }

    /// The value as f32.
    fn widen(self) -> f32;

    /// The nearest value to `x`, ties to even; NaN stays NaN.
    fn narrow(x: f32) -> Self;

    /// The first `n <= LANES` elements from `p` and zero in the other lanes; memory past them is not touched.
    ///
    /// # Safety
    /// `p..p + n` is readable.
    #[inline(always)]
    unsafe fn load_first<S: Simd>(s: S, p: *const Self, n: usize) -> S::F32 {
        // SAFETY: the caller's contract, and the copy has room.
        unsafe { Self::load(s, Line::first(s, p, n).0.as_ptr().cast()) }
    }

    /// The first `n <= 2 * LANES` elements from `p`, in the order of [`Element::load_pair`], and zero in the other lanes;
    /// memory past them is not touched.
    ///
    /// # Safety
    /// `p..p + n` is readable.
    #[inline(always)]
    unsafe fn load_pair_first<S: Simd>(s: S, p: *const Self, n: usize) -> [S::F32; 2] {
        // SAFETY: the caller's contract, and the copy has room.
        unsafe { Self::load_pair(s, Line::first(s, p, n).0.as_ptr().cast()) }
    }

    /// Writes the first `n <= LANES` lanes to `p`, rounded as by [`Element::narrow`]; memory past them is not touched.
    ///
    /// # Safety
    /// `p..p + n` is writable.
    #[inline(always)]
    unsafe fn store_first<S: Simd>(s: S, p: *mut Self, v: S::F32, n: usize) {
        const { assert!(S::LANES <= 16) };
        debug_assert!(n <= S::LANES);
        let mut lanes = [0.0; 16];
        // SAFETY: a vector has room, as asserted above.
        unsafe { s.store(lanes.as_mut_ptr(), v) };
        for (i, &x) in lanes[..n].iter().enumerate() {
            // SAFETY: the caller's contract.
            unsafe { p.add(i).write(Self::narrow(x)) };
        }
    }
}

/// Room for two vectors of narrow elements on the widest level.
#[repr(align(64))]
struct Line([f32; 16]);

impl Line {
    /// A copy of the first `n <= 2 * LANES` elements at `p`, and zeros.
    ///
    /// # Safety
    /// `p..p + n` is readable.
    #[inline(always)]
    unsafe fn first<S: Simd, E: Element>(s: S, p: *const E, n: usize) -> Self {
        const { assert!(2 * size_of::<E>() <= size_of::<f32>() && S::LANES <= 16) };
        debug_assert!(n <= 2 * S::LANES);
        let mut line = Self([0.0; 16]);
        let bytes = n * size_of::<E>();
        if bytes.is_multiple_of(size_of::<f32>()) {
            // Through a register: a copy of any number of bytes is a call, before which all vectors would be saved.
            // SAFETY: the caller's contract; the elements fill a vector of f32 at most, and the line has room for it.
            unsafe { s.store(line.0.as_mut_ptr(), s.load_first(p.cast(), bytes / size_of::<f32>())) };
        } else {
            // SAFETY: the caller's contract, and the line has room.
            unsafe { p.copy_to_nonoverlapping(line.0.as_mut_ptr().cast(), n) };
        }
        line
    }
}

/// The two vectors of [`Element::load_pair`] in a vector of pairs that came from memory.
#[inline(always)]
fn apart<S: Simd>(s: S, pairs: S::F32) -> [S::F32; 2] {
    let (low, high) = (s.low_bf16(pairs), s.high_bf16(pairs));
    if cfg!(target_endian = "big") { [high, low] } else { [low, high] }
}

// SAFETY: every pattern is a value, and zeros are 0.0.
unsafe impl Element for f32 {
    const NAME: &'static str = "f32";

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::F32 {
        // SAFETY: the caller's contract.
        unsafe { s.load(p) }
    }

    #[inline(always)]
    unsafe fn load_first<S: Simd>(s: S, p: *const Self, n: usize) -> S::F32 {
        // SAFETY: the caller's contract.
        unsafe { s.load_first(p, n) }
    }

    #[inline(always)]
    unsafe fn load_pair_first<S: Simd>(s: S, p: *const Self, n: usize) -> [S::F32; 2] {
        // SAFETY: the caller's contract.
        unsafe {
            [s.load_first(p, n.min(S::LANES)), s.load_first(p.wrapping_add(S::LANES), n.saturating_sub(S::LANES))]
        }
    }

    #[inline(always)]
    unsafe fn store_first<S: Simd>(s: S, p: *mut Self, v: S::F32, n: usize) {
        // SAFETY: the caller's contract.
        unsafe { s.store_first(p, v, n) }
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        x
    }
}

// SAFETY: every pattern is a value, and zeros are 0.0.
unsafe impl Element for f16 {
    const NAME: &'static str = "f16";

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::F32 {
        // SAFETY: the caller's contract.
        unsafe { s.load_f16(p) }
    }

    #[inline(always)]
    unsafe fn store_first<S: Simd>(s: S, p: *mut Self, v: S::F32, n: usize) {
        // SAFETY: the caller's contract.
        unsafe { s.store_first_f16(p, v, n) }
    }

    // The constant functions are the ones that do not look for instructions of the machine at every call.
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32_const()
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        Self::from_f32_const(x)
    }
}

// SAFETY: every pattern is a value, and zeros are 0.0.
unsafe impl Element for bf16 {
    const NAME: &'static str = "bf16";

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::F32 {
        // SAFETY: the caller's contract.
        unsafe { s.load_bf16(p) }
    }

    #[inline(always)]
    unsafe fn load_pair<S: Simd>(s: S, p: *const Self) -> [S::F32; 2] {
        // SAFETY: the caller's contract: LANES pairs of two bytes each are LANES f32 as bits.
        apart(s, unsafe { s.load(p.cast()) })
    }

    #[inline(always)]
    unsafe fn load_pair_first<S: Simd>(s: S, p: *const Self, n: usize) -> [S::F32; 2] {
        if n.is_multiple_of(2) {
            // SAFETY: the caller's contract: half as many f32 as bits.
            apart(s, unsafe { s.load_first(p.cast(), n / 2) })
        } else {
            // SAFETY: the caller's contract, and the copy has room.
            unsafe { Self::load_pair(s, Line::first(s, p, n).0.as_ptr().cast()) }
        }
    }

    #[inline(always)]
    unsafe fn store_first<S: Simd>(s: S, p: *mut Self, v: S::F32, n: usize) {
        // SAFETY: the caller's contract.
        unsafe { s.store_first_bf16(p, v, n) }
    }

    #[inline(always)]
    fn place(i: usize, lanes: usize) -> usize {
        i % 2 * lanes + i / 2
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        Self::from_f32(x)
    }
}

// SAFETY: every pattern is a value, and zeros are 0.
unsafe impl Element for i8 {
    const NAME: &'static str = "int8";

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::F32 {
        // SAFETY: the caller's contract.
        unsafe { s.load_i8(p) }
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from(self)
    }

    /// The nearest integer from -127 to 127.
    #[inline(always)]
    fn narrow(x: f32) -> Self {
        x.round_ties_even().clamp(-127.0, 127.0) as Self
    }
}
