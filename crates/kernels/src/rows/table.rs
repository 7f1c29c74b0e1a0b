//! The rows kernels of each level, one for each element type.

use regard_simd::{Extension, Isa, Level, Simd, bf16, f16};

#[cfg(target_arch = "x86_64")]
use super::amx::{TiledBf16, TiledInt8};
use super::args::Unit;
#[cfg(target_arch = "x86_64")]
use super::fixed::Fixed;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use super::form::Dots;
use super::form::{Form, Widened};
use super::scratch::Layout;
use super::tiles::{Medium, Tiles};
use super::{Rows, tiles};
use crate::table::lists;
use crate::tensor::Dtype;

/// A compiled rows kernel. Its name is what profiles store.
#[derive(Debug)]
pub struct RowsKernel {
    /// `{isa}_rows_{element type}`, with `_dots` for products of pairs, `_amx` for those of tiles.
    pub name: &'static str,
    /// The level that it is compiled for.
    pub isa: Isa,
    /// The extension of the level that it needs: then weights are rounded to the element type, or to fixed point for int8, and so
    /// are queries for int8.
    pub extension: Option<Extension>,
    /// The element type of K and V.
    pub dtype: Dtype,
    /// The most rows that share each load of K and V.
    pub group: usize,
    /// Whether elements are multiplied as they are, in pairs or on tiles, and not widened to f32.
    pub native: bool,
    /// The fewest rows for each KV head that it is for: others are faster for fewer.
    pub least_rows: usize,
    /// Bytes of an element of values that groups of rows share; 0 if they share none.
    pub(crate) kept_bytes: usize,
    run: unsafe fn(&Unit<'_>, *mut f32, Layout),
}

impl RowsKernel {
    /// Runs the kernel on the rows of a unit.
    ///
    /// # Safety
    /// The level and the extension of the kernel were detected, `unit` is as its fields say, its keys are of the kernel's element
    /// type, its weighting's functions are of the same level, and `scratch` has `layout.len` f32 at a multiple of 64 bytes, used
    /// by no one else.
    pub(crate) unsafe fn run(&self, unit: &Unit<'_>, scratch: *mut f32, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { (self.run)(unit, scratch, layout) }
    }

    /// Whether it is for so many rows of a KV head.
    pub fn is_for(&self, rows: usize) -> bool {
        self.least_rows <= rows
    }

    /// Whether this machine can run the kernel, given its level.
    fn is_available(&self) -> bool {
        self.extension.is_none_or(|extension| extension.is_available_at(self.isa))
    }
}

/// # Safety
/// As for [`RowsKernel::run`].
unsafe fn entry<S: Simd, F: Form, T: Tiles>(unit: &Unit<'_>, scratch: *mut f32, layout: Layout) {
    // SAFETY: the caller's contract.
    unsafe { S::assume().vectorize(Rows::<F, T>::new(unit, scratch, layout)) }
}

/// One line per kernel: element type, form, token, tiles, name, extension.
macro_rules! kernels {
    ($(#[$meta:meta])* $list:ident, $isa:literal:
        $(($dtype:ident, $form:ty, $token:ty, $tiles:ty, $name:literal, $extension:expr)),+ $(,)?) => {
        $(#[$meta])*
        static $list: &[RowsKernel] = &[$(RowsKernel {
            name: concat!($isa, "_rows_", $name),
            isa: <$token as Simd>::ISA,
            extension: $extension,
            dtype: Dtype::$dtype,
            group: <$tiles>::MOST,
            native: <$form as Form>::NATIVE,
            least_rows: if matches!($extension, Some(Extension::Amx)) { LEAST_ROWS_OF_TILES } else { 0 },
            kept_bytes: <$form as Form>::KEPT_BYTES,
            run: entry::<$token, $form, $tiles>,
        }),+];
    };
}

/// The kernels of a level without extensions: the tiles of f32, and of what is to be widened.
macro_rules! level {
    ($(#[$meta:meta])* $list:ident, $token:ty, $isa:literal, $f32_tiles:ty, $tiles:ty $(, $more:tt)* $(,)?) => {
        kernels!(
            $(#[$meta])* $list, $isa:
            (F32, Widened<f32>, $token, $f32_tiles, "f32", None),
            (F16, Widened<f16>, $token, $tiles, "f16", None),
            (Bf16, Widened<bf16>, $token, $tiles, "bf16", None),
            (Int8, Widened<i8>, $token, $tiles, "int8", None),
            $($more,)*
        );
    };
}

level!(PORTABLE, regard_simd::Portable, "portable", Medium, Medium);

level!(
    #[cfg(target_arch = "x86_64")]
    AVX2,
    regard_simd::Avx2,
    "avx2",
    Medium,
    Medium,
    (Int8, Fixed, regard_simd::Avx2, Medium, "int8_dots", None)
);

level!(
    #[cfg(target_arch = "x86_64")]
    AVX512,
    regard_simd::Avx512,
    "avx512",
    tiles::WideStream,
    tiles::Wide,
    (Bf16, TiledBf16, regard_simd::Avx512Amx, tiles::WideTiles, "bf16_amx", Some(Extension::Amx)),
    (Int8, TiledInt8, regard_simd::Avx512Amx, tiles::WideTiles, "int8_amx", Some(Extension::Amx)),
    (Bf16, Dots, regard_simd::Avx512Bf16, tiles::WideDots, "bf16_dots", Some(Extension::Bf16)),
    (Int8, Fixed, regard_simd::Avx512Vnni, tiles::WideFixed, "int8_dots", Some(Extension::Vnni))
);

level!(
    #[cfg(target_arch = "aarch64")]
    NEON,
    regard_simd::Neon,
    "neon",
    tiles::Narrow,
    tiles::Narrow,
    (Bf16, Dots, regard_simd::NeonBf16, tiles::NarrowDots, "bf16_dots", Some(Extension::Bf16))
);

/// The most elements of a query for which kernels of int8 that need an extension have 12 bits of fixed point and a sign.
pub const FIXED_COLUMNS: usize = 4096;

lists!(RowsKernel);

/// The rows kernels of a level that this machine can run. The level's token proves that it has the level.
pub fn rows_kernels(level: Level) -> impl Iterator<Item = &'static RowsKernel> {
    of_level(level).iter().filter(|kernel| kernel.is_available())
}

/// The rows kernels of a level for keys of this element type: the one for few rows, and the one for so many that it is for
/// ([`RowsKernel::least_rows`]), or twice the same. Of those for as many rows, it is the last one that `may` be used, which is native, or
/// the one that widens.
///
/// # Panics
/// Never: each level has one for each type.
pub fn rows_kernels_for(level: Level, dtype: Dtype, may: impl Fn(&RowsKernel) -> bool) -> [&'static RowsKernel; 2] {
    let may_be_used = |kernel: &&RowsKernel| kernel.dtype == dtype && (!kernel.native || may(kernel));
    let usable = || rows_kernels(level).filter(may_be_used);
    let few = usable().filter(|kernel| kernel.least_rows == 0).last().expect("a rows kernel for each element type");
    [few, usable().find(|kernel| kernel.least_rows > 0).unwrap_or(few)]
}

/// With fewer rows for each head of keys, tiles are not chosen. On a Xeon (16384 keys, d 128, from memory, speed over that of
/// the other kernel, of bf16 and of int8): one row 0.78 and 0.85, two 0.9, three and four 0.95 to 1.0, eight 1.18 and 1.15; from
/// the second-level cache 0.74 and 0.83, 0.87 and 0.95, 1.06 and 0.97, 1.26 and 1.1, 1.9 and 1.45.
const LEAST_ROWS_OF_TILES: usize = 5;
