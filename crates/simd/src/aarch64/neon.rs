//! NEON (Advanced SIMD): 4 lanes, 32 registers.

use core::arch::aarch64::*;
use core::arch::asm;

use half::{bf16, f16};

use crate::{Isa, Op, Simd, memory_operations, operations};

/// Proof that the machine has [`Isa::Neon`].
#[derive(Clone, Copy, Debug)]
pub struct Neon(());

impl Neon {
    /// The token, if the processor has the instructions.
    pub fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }
}

/// The bit of each lane in the bits of a mask: 1, 2, 4, 8.
#[inline]
#[target_feature(enable = "neon")]
fn lane_bits() -> uint32x4_t {
    vcombine_u32(vcreate_u32(0x2_0000_0001), vcreate_u32(0x8_0000_0004))
}

/// The bits of `x` with the nearest bf16 in the high half of each lane, ties to even. What is left in the low half means
/// nothing.
#[inline]
#[target_feature(enable = "neon")]
fn round_bf16(x: float32x4_t) -> uint32x4_t {
    let bits = vreinterpretq_u32_f32(x);
    let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
    let rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    // Rounding could carry the payload of a NaN into its sign.
    let quiet = vorrq_u32(bits, vdupq_n_u32(0x0040_0000));
    vbslq_u32(vceqq_f32(x, x), rounded, quiet)
}

/// Writes the first `n` of 4 words to `p`.
///
/// # Safety
/// `p..p + n` is writable.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn store_words(p: *mut u16, words: uint16x4_t, n: usize) {
    debug_assert!(n <= 4);
    if n == 4 {
        // SAFETY: the caller's contract.
        unsafe { vst1_u16(p, words) }
    } else {
        let mut copy = [0; 4];
        // SAFETY: the copy has room, and the first n words at p are the caller's contract.
        unsafe {
            vst1_u16(copy.as_mut_ptr(), words);
            p.copy_from_nonoverlapping(copy.as_ptr(), n);
        }
    }
}

// SAFETY: `Neon` is made by `detect` only, or by `assume` under the promise that it was.
unsafe impl Simd for Neon {
    const ISA: Isa = Isa::Neon;
    const LANES: usize = 4;
    const FUSED: bool = true;
    const NATIVE_BF16: bool = false;
    type F32 = float32x4_t;
    /// All bits of a lane are the truth value.
    type Mask = uint32x4_t;

    #[inline(always)]
    unsafe fn assume() -> Self {
        Self(())
    }

    #[inline(always)]
    fn vectorize<O: Op>(self, op: O) -> O::Output {
        #[inline(never)]
        #[target_feature(enable = "neon")]
        fn inner<O: Op>(op: O, token: Neon) -> O::Output {
            op.run(token)
        }
        // SAFETY: `self` is a token, which exists only where the feature was detected.
        unsafe { inner(op, self) }
    }

    #[inline(always)]
    fn prefetch(self, p: *const f32) {
        // SAFETY: a prefetch never faults, whatever the address, and changes no register, flag or memory. (The
        // intrinsic is not stable.)
        unsafe {
            asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(nostack, preserves_flags, readonly));
        }
    }

    #[inline(always)]
    fn prefetch_far(self, p: *const f32) {
        // SAFETY: as for `prefetch`.
        unsafe {
            asm!("prfm pldl2keep, [{p}]", p = in(reg) p, options(nostack, preserves_flags, readonly));
        }
    }

    operations! { "neon";
        fn splat(x: f32) -> float32x4_t { vdupq_n_f32(x) }
        fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t { vaddq_f32(a, b) }
        fn sub(a: float32x4_t, b: float32x4_t) -> float32x4_t { vsubq_f32(a, b) }
        fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t { vmulq_f32(a, b) }
        fn div(a: float32x4_t, b: float32x4_t) -> float32x4_t { vdivq_f32(a, b) }
        fn mul_add(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t { vfmaq_f32(c, a, b) }
        // Not fmaxnm, which passes over quiet NaNs only and would order the zeros unlike the other levels.
        fn max(x: float32x4_t, acc: float32x4_t) -> float32x4_t { vbslq_f32(vcgtq_f32(x, acc), x, acc) }
        fn abs(x: float32x4_t) -> float32x4_t { vabsq_f32(x) }
        fn gt(a: float32x4_t, b: float32x4_t) -> uint32x4_t { vcgtq_f32(a, b) }
        fn ge(a: float32x4_t, b: float32x4_t) -> uint32x4_t { vcgeq_f32(a, b) }
        fn eq(a: float32x4_t, b: float32x4_t) -> uint32x4_t { vceqq_f32(a, b) }
        fn not_lt(a: float32x4_t, b: float32x4_t) -> uint32x4_t { vmvnq_u32(vcltq_f32(a, b)) }
        fn is_nan(x: float32x4_t) -> uint32x4_t { vmvnq_u32(vceqq_f32(x, x)) }
        fn and(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t { vandq_u32(a, b) }
        fn or(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t { vorrq_u32(a, b) }
        fn mask_from_bits(bits: u64) -> uint32x4_t { vtstq_u32(vdupq_n_u32(bits as u32), lane_bits()) }
        fn mask_to_bits(mask: uint32x4_t) -> u64 { u64::from(vaddvq_u32(vandq_u32(mask, lane_bits()))) }
        fn any(mask: uint32x4_t) -> bool { vmaxvq_u32(mask) != 0 }
        fn select(mask: uint32x4_t, yes: float32x4_t, no: float32x4_t) -> float32x4_t { vbslq_f32(mask, yes, no) }
        fn low_bf16(pair: float32x4_t) -> float32x4_t {
            vreinterpretq_f32_u32(vshlq_n_u32::<16>(vreinterpretq_u32_f32(pair)))
        }
        fn high_bf16(pair: float32x4_t) -> float32x4_t {
            vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(pair), vdupq_n_u32(0xffff_0000)))
        }
        fn pair_bf16(low: float32x4_t, high: float32x4_t) -> float32x4_t {
            vreinterpretq_f32_u32(vsriq_n_u32::<16>(round_bf16(high), round_bf16(low)))
        }
        fn interleave(a: float32x4_t, b: float32x4_t) -> [float32x4_t; 2] {
            let (a, b) = (vreinterpretq_u16_f32(a), vreinterpretq_u16_f32(b));
            [vreinterpretq_f32_u16(vzip1q_u16(a, b)), vreinterpretq_f32_u16(vzip2q_u16(a, b))]
        }
        fn split_exp2(x: float32x4_t) -> (float32x4_t, float32x4_t) {
            let n = vrndnq_f32(x);
            (vsubq_f32(x, n), n)
        }
        // NaN converts to 0: p is left as it is.
        fn scale_by_exp2(p: float32x4_t, n: float32x4_t) -> float32x4_t {
            let exponent = vshlq_n_s32::<23>(vcvtq_s32_f32(n));
            vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p), exponent))
        }
    }

    #[inline(always)]
    fn quad_sums(self, x: [float32x4_t; 4]) -> float32x4_t {
        // A vector is one group.
        self.lane_sums(x)
    }

    #[inline(always)]
    fn lane_sums<const N: usize>(self, x: [float32x4_t; N]) -> float32x4_t {
        const { assert!(N == 4) };
        #[inline]
        #[target_feature(enable = "neon")]
        fn inner([a, b, c, d]: [float32x4_t; 4]) -> float32x4_t {
            // Lanes two apart, then neighbours, as on the other levels.
            let low = |x, y| vcombine_f32(vget_low_f32(x), vget_low_f32(y));
            let high = |x, y| vcombine_f32(vget_high_f32(x), vget_high_f32(y));
            let ab = vaddq_f32(low(a, b), high(a, b));
            let cd = vaddq_f32(low(c, d), high(c, d));
            vpaddq_f32(ab, cd)
        }
        let mut all = [self.zero(); 4];
        all.copy_from_slice(&x);
        // SAFETY: `self` is a token, which exists only where the feature was detected.
        unsafe { inner(all) }
    }

    memory_operations! { "neon";
        unsafe fn load_f16(p: *const f16) -> float32x4_t {
            // SAFETY: the caller's contract.
            let half = unsafe { vld1_u16(p.cast()) };
            let wide: float32x4_t;
            // SAFETY: the conversion belongs to NEON and touches registers only. (Its intrinsic is not stable.)
            unsafe {
                asm!("fcvtl {wide:v}.4s, {half:v}.4h", half = in(vreg) half, wide = lateout(vreg) wide,
                    options(pure, nomem, nostack));
            }
            wide
        }
        unsafe fn store_first_f16(p: *mut f16, v: float32x4_t, n: usize) -> () {
            let half: uint16x4_t;
            // SAFETY: the conversion belongs to NEON and touches registers only. (Its intrinsic is not stable.)
            unsafe {
                asm!("fcvtn {half:v}.4h, {wide:v}.4s", wide = in(vreg) v, half = lateout(vreg) half,
                    options(pure, nomem, nostack));
            }
            // SAFETY: the caller's contract.
            unsafe { store_words(p.cast(), half, n) }
        }
        unsafe fn store_first_bf16(p: *mut bf16, v: float32x4_t, n: usize) -> () {
            // SAFETY: the caller's contract.
            unsafe { store_words(p.cast(), vshrn_n_u32::<16>(round_bf16(v)), n) }
        }
        unsafe fn load_bf16(p: *const bf16) -> float32x4_t {
            // SAFETY: the caller's contract.
            vreinterpretq_f32_u32(vshll_n_u16::<16>(unsafe { vld1_u16(p.cast()) }))
        }
        unsafe fn load_i8(p: *const i8) -> float32x4_t {
            // SAFETY: the caller's contract.
            let bytes = vcreate_s8(u64::from(unsafe { p.cast::<u32>().read_unaligned() }));
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))))
        }
        unsafe fn load(p: *const f32) -> float32x4_t {
            // SAFETY: the caller's contract.
            unsafe { vld1q_f32(p) }
        }
        unsafe fn load_quad(p: *const f32) -> float32x4_t {
            // SAFETY: the caller's contract.
            unsafe { vld1q_f32(p) }
        }
        unsafe fn store(p: *mut f32, v: float32x4_t) -> () {
            // SAFETY: the caller's contract.
            unsafe { vst1q_f32(p, v) }
        }
        unsafe fn load_first(p: *const f32, n: usize) -> float32x4_t {
            debug_assert!(n <= 4);
            let zero = vdup_n_f32(0.0);
            // SAFETY: each arm reads the first n elements, which are the caller's contract.
            unsafe {
                match n {
                    0 => vcombine_f32(zero, zero),
                    1 => vcombine_f32(vset_lane_f32::<0>(p.read_unaligned(), zero), zero),
                    2 => vcombine_f32(vld1_f32(p), zero),
                    3 => vcombine_f32(vld1_f32(p), vset_lane_f32::<0>(p.add(2).read_unaligned(), zero)),
                    _ => vld1q_f32(p),
                }
            }
        }
        unsafe fn store_first(p: *mut f32, v: float32x4_t, n: usize) -> () {
            debug_assert!(n <= 4);
            // SAFETY: each arm writes the first n elements, which are the caller's contract.
            unsafe {
                match n {
                    0 => {}
                    1 => p.write_unaligned(vgetq_lane_f32::<0>(v)),
                    2 => vst1_f32(p, vget_low_f32(v)),
                    3 => {
                        vst1_f32(p, vget_low_f32(v));
                        p.add(2).write_unaligned(vgetq_lane_f32::<2>(v));
                    }
                    _ => vst1q_f32(p, v),
                }
            }
        }
        unsafe fn transpose(src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) -> () {
            let mut rows = [vdupq_n_f32(0.0); 4];
            for (i, row) in rows.iter_mut().enumerate() {
                // SAFETY: row i of the block is readable.
                *row = unsafe { vld1q_f32(src.add(i * src_stride)) };
            }
            for (i, column) in transpose4(rows).into_iter().enumerate() {
                // SAFETY: row i of the transposed block is writable.
                unsafe { vst1q_f32(dst.add(i * dst_stride), column) };
            }
        }
    }
}

/// Transposes 4 rows of 4 in registers: 2x2 blocks of elements, then 2x2 blocks of pairs.
#[inline]
#[target_feature(enable = "neon")]
fn transpose4([a, b, c, d]: [float32x4_t; 4]) -> [float32x4_t; 4] {
    let ab_even = vreinterpretq_f64_f32(vtrn1q_f32(a, b));
    let ab_odd = vreinterpretq_f64_f32(vtrn2q_f32(a, b));
    let cd_even = vreinterpretq_f64_f32(vtrn1q_f32(c, d));
    let cd_odd = vreinterpretq_f64_f32(vtrn2q_f32(c, d));
    [
        vreinterpretq_f32_f64(vtrn1q_f64(ab_even, cd_even)),
        vreinterpretq_f32_f64(vtrn1q_f64(ab_odd, cd_odd)),
        vreinterpretq_f32_f64(vtrn2q_f64(ab_even, cd_even)),
        vreinterpretq_f32_f64(vtrn2q_f64(ab_odd, cd_odd)),
    ]
}
