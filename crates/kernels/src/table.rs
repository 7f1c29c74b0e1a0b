//! The static table of kernels: one list of register tiles for each level.

use regard_simd::{Extension, Isa, Level, Simd};

use crate::lanes::Lanes;
#[cfg(target_arch = "x86_64")]
use crate::lanes::MOST_PARTS;
use crate::lanes::args::Head;
use crate::lanes::scratch::Layout;
use crate::rows::table as rows;
pub use crate::rows::table::{FIXED_COLUMNS, RowsKernel, rows_kernels, rows_kernels_for};
use crate::tensor::Dtype;

/// The register tile of a lanes kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Query rows of a sub-tile: vectors times lanes.
    pub rows: usize,
    /// Vectors of lanes.
    pub vectors: usize,
    /// Keys (in the score product) or columns of V (in the value product) that share a load of these vectors.
    pub keys: usize,
}

/// A compiled kernel. Its name is what profiles store.
#[derive(Debug)]
pub struct Kernel {
    /// `{isa}_lanes_{element type}_{vectors}x{keys}`, with `amx` before the last part for tile registers.
    pub name: &'static str,
    /// The level that it is compiled for.
    pub isa: Isa,
    /// What it needs beyond the level.
    pub extension: Option<Extension>,
    /// What it multiplies: f32, which keys and values of every element type are widened to (on tile registers as sums of bf16, which
    /// is as accurate), or bf16, for keys and values of bf16 only; queries and weights are then rounded to it.
    pub dtype: Dtype,
    /// Its register tile.
    pub tile: Tile,
    run: unsafe fn(&Head<'_>, *mut f32, Layout),
}

impl Kernel {
    /// Parts that it multiplies f32 in; 0 if it multiplies numbers as they are.
    pub(crate) fn parts(&self) -> usize {
        match (self.dtype, self.extension) {
            #[cfg(target_arch = "x86_64")]
            (Dtype::F32, Some(Extension::Amx)) => MOST_PARTS,
            _ => 0,
        }
    }

    /// Runs the kernel on one block of query rows of one head.
    ///
    /// # Safety
    /// The level of the kernel and its extension were detected, `head` is as its fields say, with keys and values of a
    /// type that the kernel takes, its weighting's functions are of the same level, and `scratch` has `layout.len` f32
    /// at a multiple of 64 bytes, used by no one else.
    pub(crate) unsafe fn run(&self, head: &Head<'_>, scratch: *mut f32, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { (self.run)(head, scratch, layout) }
    }
}

/// # Safety
/// As for [`Kernel::run`].
unsafe fn entry<S: Simd, const G: usize, const R: usize, const R1: usize, const PAIRS: bool, const TILES: bool>(
    head: &Head<'_>,
    scratch: *mut f32,
    layout: Layout,
) {
    // SAFETY: the caller's contract.
    unsafe { S::assume().vectorize(Lanes::<G, R, R1, PAIRS, TILES> { head, scratch, layout }) }
}

/// Multiplies f32 in parts.
///
/// # Safety
/// As for [`Kernel::run`].
#[cfg(target_arch = "x86_64")]
unsafe fn entry_in_parts(head: &Head<'_>, scratch: *mut f32, layout: Layout) {
    // SAFETY: the caller's contract: the level is that of the extension, and the layout has room for a kernel without parts.
    let whole = |head: &Head<'_>| unsafe { entry::<regard_simd::Avx512, 2, 8, 8, false, false>(head, scratch, layout) };
    if head.d_v == 0 {
        // Nothing would tell of NaN.
        return whole(head);
    }
    // SAFETY: the caller's contract.
    unsafe { Lanes::<2, 8, 8, false, true> { head, scratch, layout }.run_all(whole) }
}

/// One line per kernel: vectors x keys, and the keys of a tile of one vector. Those with an extension come last, and of them that on
/// tile registers.
macro_rules! kernels {
    (
        $(#[$meta:meta])* $list:ident, $isa:literal,
        $token:ty: $(($g:literal x $r:literal, $r1:literal)),+
        $(; $extension:ident $extended:ty: $(($eg:literal x $er:literal, $er1:literal)),+)?
        $(; tiles $tiled:ty: $tg:literal x $tr:literal)?
    ) => {
        $(#[$meta])*
        static $list: &[Kernel] = &[
            $(Kernel {
                name: concat!($isa, "_lanes_f32_", $g, "x", $r),
                isa: <$token as Simd>::ISA,
                extension: None,
                dtype: Dtype::F32,
                tile: Tile { rows: $g * <$token as Simd>::LANES, vectors: $g, keys: $r },
                run: entry::<$token, $g, $r, $r1, false, false>,
            },)+
            $($(Kernel {
                name: concat!($isa, "_lanes_bf16_", $eg, "x", $er),
                isa: <$extended as Simd>::ISA,
                extension: Some(Extension::$extension),
                dtype: Dtype::$extension,
                tile: Tile { rows: $eg * <$extended as Simd>::LANES, vectors: $eg, keys: $er },
                run: entry::<$extended, $eg, $er, $er1, true, false>,
            },)+)?
            $(Kernel {
                name: concat!($isa, "_lanes_f32_amx_", $tg, "x", $tr),
                isa: <$tiled as Simd>::ISA,
                extension: Some(Extension::Amx),
                dtype: Dtype::F32,
                tile: Tile { rows: $tg * <$tiled as Simd>::LANES, vectors: $tg, keys: $tr },
                run: entry_in_parts,
            },
            Kernel {
                name: concat!($isa, "_lanes_bf16_amx_", $tg, "x", $tr),
                isa: <$tiled as Simd>::ISA,
                extension: Some(Extension::Amx),
                dtype: Dtype::Bf16,
                tile: Tile { rows: $tg * <$tiled as Simd>::LANES, vectors: $tg, keys: $tr },
                // What stands for keys here is for other kernels.
                run: entry::<$tiled, $tg, 8, 8, true, true>,
            },)?
        ];
    };
}

// Registers of a tile: vectors * keys accumulators, the vectors of queries (or weights), one broadcast.

// 16 registers of two, which the portable vectors of 8 lanes take on plain x86-64 and AArch64.
kernels!(PORTABLE, "portable", regard_simd::Portable: (1 x 4, 4), (2 x 4, 4));

// 16 registers; one must stay spare, or an accumulator is spilt and its chain goes through memory (3 x 4 runs at half
// speed).
kernels!(
    #[cfg(target_arch = "x86_64")]
    AVX2, "avx2", regard_simd::Avx2: (2 x 6, 12), (2 x 4, 8)
);

// 32 registers. 2 x 8 is best or within 1 % of it on every shape measured on Zen 5; 2 x 10, 2 x 12 and 2 x 14 are as
// fast, 3 x 8 is 3 to 5 % slower. A single vector is for few queries.
kernels!(
    #[cfg(target_arch = "x86_64")]
    AVX512, "avx512",
    regard_simd::Avx512: (2 x 8, 8), (2 x 12, 8), (1 x 16, 16);
    Bf16 regard_simd::Avx512Bf16: (2 x 8, 8), (1 x 16, 16);
    tiles regard_simd::Avx512Amx: 2 x 32
);

// 32 registers; FMA latency times pipes asks for at least 16 accumulators on recent cores.
kernels!(
    #[cfg(target_arch = "aarch64")]
    NEON, "neon",
    regard_simd::Neon: (4 x 6, 16), (2 x 8, 16), (4 x 4, 16);
    Bf16 regard_simd::NeonBf16: (4 x 6, 16)
);

/// `of_level` and `all` of the lists `PORTABLE`, `AVX2`, `AVX512` and `NEON` of the module, as far as this architecture has them.
macro_rules! lists {
    ($kernel:ty) => {
        /// The kernels of a level, whether this machine has their extensions or not.
        fn of_level(level: Level) -> &'static [$kernel] {
            match level {
                Level::Portable(_) => PORTABLE,
                #[cfg(target_arch = "x86_64")]
                Level::Avx2(_) => AVX2,
                #[cfg(target_arch = "x86_64")]
                Level::Avx512(_) => AVX512,
                #[cfg(target_arch = "aarch64")]
                Level::Neon(_) => NEON,
                _ => unreachable!("a level without kernels"),
            }
        }

        /// The kernels of all levels of this architecture.
        pub(crate) fn all() -> impl Iterator<Item = &'static $kernel> {
            let lists = [
                PORTABLE,
                #[cfg(target_arch = "x86_64")]
                AVX2,
                #[cfg(target_arch = "x86_64")]
                AVX512,
                #[cfg(target_arch = "aarch64")]
                NEON,
            ];
            lists.into_iter().flatten()
        }
    };
}
pub(crate) use lists;

lists!(Kernel);

/// The kernels of a level that this machine can run: the level's token proves it, and extensions are looked up. The
/// first of each element type is the one to use when nothing was measured.
pub fn kernels(level: Level) -> &'static [Kernel] {
    let all = of_level(level);
    let runs = |kernel: &&Kernel| kernel.extension.is_none_or(|extension| extension.is_available_at(kernel.isa));
    &all[..all.iter().take_while(runs).count()]
}

/// The lanes kernels of a level for keys of this element type, the one to use when nothing was measured first: all of one arithmetic
/// with one extension, that `may` be used, or none.
pub fn lanes_kernels(
    level: Level,
    dtype: Dtype,
    may: &dyn Fn(&Kernel) -> bool,
) -> impl Iterator<Item = &'static Kernel> + Clone + use<> {
    let takes = |kernel: &&Kernel| kernel.dtype == Dtype::F32 || kernel.dtype == dtype;
    let usable = |kernel: &&Kernel| kernel.extension.is_none() || may(kernel);
    let arithmetic = |kernel: &Kernel| (kernel.dtype, kernel.extension);
    // The last one is the fastest.
    let fastest = kernels(level).iter().filter(takes).filter(usable).last().map(arithmetic);
    kernels(level).iter().filter(move |kernel| Some(arithmetic(kernel)) == fastest)
}

/// The names of all kernels of this architecture, whether this machine can run them or not.
pub fn names() -> impl Iterator<Item = &'static str> {
    all().map(|kernel| kernel.name).chain(rows::all().map(|kernel| kernel.name))
}

/// Changes whenever measurements of an earlier build no longer say anything about the kernels.
pub const REVISION: u32 = 4;

/// Block sizes that [`crate::launch::run`] takes, in keys: even, so that even and odd places mean the same in every
/// block.
pub const KEY_BLOCKS: std::ops::RangeInclusive<usize> = 16..=4096;

/// Query rows of a task.
pub const QUERY_BLOCKS: std::ops::RangeInclusive<usize> = 1..=4096;
