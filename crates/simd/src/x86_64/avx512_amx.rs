//! The AVX-512 level with AMX: registers that hold 16 rows of 64 bytes, and products of two of them.

use core::arch::asm;
use core::arch::x86_64::*;
use std::sync::OnceLock;

use crate::Avx512Bf16;
use crate::delegate::extended;

extended! {
    /// Proof that the machine has [`Isa::Avx512`](crate::Isa::Avx512) and [`Extension::Amx`](crate::Extension::Amx), and
    /// that the operating system lets this process use it.
    Avx512Amx of Avx512Bf16 where available(), "avx512f,avx512bw,avx512dq,avx512bf16";
    F32 = __m512, Mask = __mmask16, NATIVE_BF16 = true;
    native {}
    level {
        fn dot_bf16(acc: Self::F32, a: Self::F32, b: Self::F32) -> Self::F32;
        fn pair_bf16(low: Self::F32, high: Self::F32) -> Self::F32;
        fn dot_i16(acc: Self::F32, a: Self::F32, b: Self::F32) -> Self::F32;
    }
}

/// Whether the processor has the instructions, the operating system saves their registers, and it has given permission.
fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| is_there() && permitted())
}

/// Whether the processor has AMX-TILE, AMX-BF16 and AMX-INT8, and the state of tiles is enabled. (The names of the features
/// cannot be asked for in stable Rust yet.)
fn is_there() -> bool {
    const FEATURES: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    const TILE_STATE: u64 = 1 << 17 | 1 << 18;

    #[target_feature(enable = "xsave")]
    fn enabled_state() -> u64 {
        // SAFETY: XCR0 is readable where the operating system uses XSAVE.
        unsafe { _xgetbv(0) }
    }

    __cpuid(0).eax >= 7
        && __cpuid_count(7, 0).edx & FEATURES == FEATURES
        && std::arch::is_x86_feature_detected!("xsave")
        // SAFETY: the processor has the instruction; the level that was detected before needs the operating system to use it.
        && unsafe { enabled_state() } & TILE_STATE == TILE_STATE
}

/// Asks the operating system for the permission that Linux wants a process to ask for, as a thread then saves 8 KiB more. It
/// holds for all threads of the process, and lasts. Refused where a thread has a signal stack that is too small for that.
#[cfg(all(target_os = "linux", not(miri)))]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: the call changes nothing but what the process may do.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// Other systems have ways of their own, which nobody has tried.
#[cfg(not(all(target_os = "linux", not(miri))))]
fn permitted() -> bool {
    false
}

/// The rows, up to 16, and the bytes of a row, up to 64, of each tile register.
///
/// Of a product, the left factor has a row for each row of the sum; the right one has a row for each 4 bytes of a row of the left
/// one, and 4 bytes for each column of the sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TileShapes(pub [(u8, u16); TileShapes::REGISTERS]);

impl TileShapes {
    /// Tile registers of the machine.
    pub const REGISTERS: usize = 8;
}

/// What the processor reads shapes from.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// The tile registers of this thread, with shapes and all zero, until it is dropped: then they are given back, and a switch of
/// threads need not save them any longer.
///
/// One at a time: a second one on the same thread takes the registers away from the first.
#[derive(Debug)]
pub struct TileRegisters {
    /// Registers belong to a thread.
    _here: core::marker::PhantomData<*const ()>,
}

impl Avx512Amx {
    /// Takes the tile registers. It takes 60 ns.
    ///
    /// # Panics
    /// If a shape has more than 16 rows or 64 bytes.
    pub fn tiles(self, shapes: &TileShapes) -> TileRegisters {
        let mut configuration =
            Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        for (register, (rows, row_bytes)) in shapes.0.into_iter().enumerate() {
            assert!(rows <= 16 && row_bytes <= 64, "a tile of {rows} rows of {row_bytes} bytes");
            // A register is used if both are not zero, and may not have one of them.
            if rows > 0 && row_bytes > 0 {
                configuration.rows[register] = rows;
                configuration.row_bytes[register] = row_bytes;
            }
        }
        // SAFETY: `self` proves that the instruction is there and allowed, and the shapes are valid.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack, preserves_flags, readonly))
        };
        TileRegisters { _here: core::marker::PhantomData }
    }

    /// From four vectors of 64 bytes each, as they lie in memory, the 64 groups of four bytes of the same index. Lane `4 j + i` of
    /// vector `t` is that of index `16 j + 4 t + i`: what can be had without moving bytes across quarters of vectors.
    #[inline(always)]
    pub fn interleave_bytes(self, rows: [__m512; 4]) -> [__m512; 4] {
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw")]
        fn inner(rows: [__m512; 4]) -> [__m512; 4] {
            let [a, b, c, d] = rows.map(|row| _mm512_castps_si512(row));
            let (ab, cd) = (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d));
            let (ab_high, cd_high) = (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d));
            [
                _mm512_castsi512_ps(_mm512_unpacklo_epi16(ab, cd)),
                _mm512_castsi512_ps(_mm512_unpackhi_epi16(ab, cd)),
                _mm512_castsi512_ps(_mm512_unpacklo_epi16(ab_high, cd_high)),
                _mm512_castsi512_ps(_mm512_unpackhi_epi16(ab_high, cd_high)),
            ]
        }
        // SAFETY: `self` proves the features.
        unsafe { inner(rows) }
    }

    /// The upper halves of both, as pairs: that of `low` in the low half of each lane, that of `high` in the high half.
    #[inline(always)]
    pub fn pair_upper_halves(self, low: __m512, high: __m512) -> __m512 {
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw")]
        fn inner(low: __m512, high: __m512) -> __m512 {
            let low = _mm512_srli_epi32::<16>(_mm512_castps_si512(low));
            _mm512_castsi512_ps(_mm512_mask_blend_epi16(0xaaaa_aaaa, low, _mm512_castps_si512(high)))
        }
        // SAFETY: `self` proves the features.
        unsafe { inner(low, high) }
    }

    /// NaN in place of what is not zero and below `2^-50` in magnitude.
    #[inline(always)]
    pub fn nan_if_tiny(self, x: __m512) -> __m512 {
        #[inline]
        #[target_feature(enable = "avx512f")]
        fn inner(x: __m512) -> __m512 {
            // Without its sign, less one: zero is the largest of all.
            let bits = _mm512_castps_si512(x);
            let order = _mm512_sub_epi32(_mm512_add_epi32(bits, bits), _mm512_set1_epi32(1));
            const LEAST: i32 = (127 - 50) << 24;
            let tiny = _mm512_cmplt_epu32_mask(order, _mm512_set1_epi32(LEAST - 1));
            _mm512_mask_mov_ps(x, tiny, _mm512_set1_ps(f32::NAN))
        }
        // SAFETY: `self` proves the features.
        unsafe { inner(x) }
    }

    /// Rounds each lane to the nearest integer `n`, ties to even, and writes it in two signed bytes, `n = 256 * high + low`.
    /// For magnitudes up to 32639; NaN becomes zero.
    ///
    /// # Safety
    /// 16 bytes are writable at both places.
    #[inline(always)]
    pub unsafe fn store_bytes(self, x: __m512, high: *mut i8, low: *mut i8) {
        #[inline]
        #[target_feature(enable = "avx512f")]
        unsafe fn inner(x: __m512, high: *mut i8, low: *mut i8) {
            let n = _mm512_cvtps_epi32(x);
            // The low byte counts from -128: what it is less than zero, the high byte makes up for. (NaN is i32::MIN here.)
            let carried = _mm512_srai_epi32::<8>(_mm512_add_epi32(n, _mm512_set1_epi32(128)));
            // SAFETY: the caller's contract.
            unsafe {
                _mm_storeu_si128(high.cast(), _mm512_cvtepi32_epi8(carried));
                _mm_storeu_si128(low.cast(), _mm512_cvtepi32_epi8(n));
            }
        }
        // SAFETY: `self` proves the features; the caller's contract.
        unsafe { inner(x, high, low) }
    }

    /// `256 * high + low` of lanes of i32, which wrap around, as f32, rounded to the nearest, ties to even.
    #[inline(always)]
    pub fn join_bytes(self, high: __m512, low: __m512) -> __m512 {
        #[inline]
        #[target_feature(enable = "avx512f")]
        fn inner(high: __m512, low: __m512) -> __m512 {
            let (high, low) = (_mm512_castps_si512(high), _mm512_castps_si512(low));
            _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32::<8>(high), low))
        }
        // SAFETY: `self` proves the features.
        unsafe { inner(high, low) }
    }
}

impl Drop for TileRegisters {
    fn drop(&mut self) {
        // SAFETY: the machine has the instruction, or `self` would not be.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }
}

/// Instructions on tile registers, which are named by number. What a register holds lasts from one call to the next, as nothing else
/// in a program uses them.
impl Avx512Amx {
    /// Makes tile `T` zero.
    ///
    /// # Safety
    /// This thread has [`TileRegisters`], and the register a shape.
    #[inline(always)]
    pub unsafe fn tile_zero<const T: usize>(self) {
        // SAFETY: the caller's contract.
        unsafe { asm!("tilezero tmm{t}", t = const T, options(nomem, nostack, preserves_flags)) };
    }

    /// Reads the rows of tile `T`, which are `stride` bytes apart.
    ///
    /// # Safety
    /// This thread has [`TileRegisters`], the register a shape, and all of its rows are readable from `p` on.
    #[inline(always)]
    pub unsafe fn tile_load<const T: usize>(self, p: *const u8, stride: usize) {
        // SAFETY: the caller's contract.
        unsafe {
            asm!("tileloadd tmm{t}, [{p} + {stride}]", t = const T, p = in(reg) p, stride = in(reg) stride,
                 options(readonly, nostack, preserves_flags));
        }
    }

    /// Writes the rows of tile `T`, `stride` bytes apart.
    ///
    /// # Safety
    /// This thread has [`TileRegisters`], the register a shape, and all of its rows are writable from `p` on.
    #[inline(always)]
    pub unsafe fn tile_store<const T: usize>(self, p: *mut u8, stride: usize) {
        // SAFETY: the caller's contract.
        unsafe {
            asm!("tilestored [{p} + {stride}], tmm{t}", t = const T, p = in(reg) p, stride = in(reg) stride,
                 options(nostack, preserves_flags));
        }
    }

    /// Adds the product of tiles `A` and `B`, pairs of bf16, to tile `C`, of f32.
    ///
    /// An element is the sum over the pairs of the first halves' products, plus that of the second halves', each a chain from
    /// zero in ascending order; and that is added to what was there. All is rounded to nearest; subnormal operands and results
    /// count as zeros (Intel's manual, TDPBF16PS).
    ///
    /// # Safety
    /// This thread has [`TileRegisters`], with shapes that fit.
    #[inline(always)]
    pub unsafe fn tile_dot_bf16<const C: usize, const A: usize, const B: usize>(self) {
        // SAFETY: the caller's contract.
        unsafe {
            asm!("tdpbf16ps tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B,
                 options(nomem, nostack, preserves_flags));
        }
    }

    /// Adds the product of tiles `A` and `B`, groups of four signed bytes, to tile `C`, of i32, which wrap around.
    ///
    /// # Safety
    /// This thread has [`TileRegisters`], with shapes that fit.
    #[inline(always)]
    pub unsafe fn tile_dot_i8<const C: usize, const A: usize, const B: usize>(self) {
        // SAFETY: the caller's contract.
        unsafe {
            asm!("tdpbssd tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B,
                 options(nomem, nostack, preserves_flags));
        }
    }
}
