//! Both products on tile registers (AMX), which multiply bf16: of [`pairs`] as they are, and of f32 in [`parts`].
//!
//! Two left and two right factors of 16 rows at a time: each is read once for two products.

mod pairs;
pub(super) mod parts;
mod products;
mod split;

use regard_simd::{Avx512Amx, Simd, TileRegisters, TileShapes};

pub(super) use self::pairs::{TileAccumulate, TileAccumulateSeen, TileScores, TileValues};
pub(super) use self::products::{PartAccumulate, PartAccumulateSeen, PartScores};
pub(super) use self::split::{PackParts, PartKeys, PartValues, PartWeights};

type F32 = <Avx512Amx as Simd>::F32;

/// Rows of a tile, f32 or pairs of one, and lanes of a vector.
pub(super) const SIDE: usize = 16;

/// f32 of a tile.
pub(super) const TILE: usize = SIDE * SIDE;

/// Keys, or columns of keys, of the products of one instruction: the order of summation has this grain.
pub(super) const GRAIN: usize = 2 * SIDE;

/// What is held by which register: a sum for each left and each right factor.
mod register {
    pub(super) const SUMS: [[usize; 2]; 2] = [[0, 1], [2, 3]];
    pub(super) const LEFT: [usize; 2] = [4, 5];
    pub(super) const RIGHT: [usize; 2] = [6, 7];
}

/// The registers, as long as a call lasts.
pub(super) fn hold() -> TileRegisters {
    token().tiles(&TileShapes([(SIDE as u8, 64); TileShapes::REGISTERS]))
}

/// The token, where a kernel on tiles runs.
pub(super) fn token() -> Avx512Amx {
    // SAFETY: kernels on tiles need the extension, which is looked for before one is chosen.
    unsafe { Avx512Amx::assume() }
}

/// Adds up the products of one left and one right factor, or of two of either.
#[derive(Clone, Copy)]
pub(super) struct Products {
    pub(super) s: Avx512Amx,
    /// Whether there are two left factors, and two right ones.
    pub(super) two: [bool; 2],
}

impl Products {
    /// Those of up to 32 keys or columns, of which there are `left`, and as many lanes. Where there are 32 of both, callers name the
    /// constants once more: code without branches is a tenth faster.
    #[inline(always)]
    pub(super) fn of(left: usize, right: usize) -> Self {
        Self { s: token(), two: [left > SIDE, right > SIDE] }
    }

    /// Sets the sums to zero.
    ///
    /// # Safety
    /// The thread holds the registers.
    #[inline(always)]
    pub(super) unsafe fn begin(self) {
        use register::SUMS;
        // SAFETY: the caller's contract.
        unsafe {
            self.s.tile_zero::<{ SUMS[0][0] }>();
            self.s.tile_zero::<{ SUMS[0][1] }>();
            self.s.tile_zero::<{ SUMS[1][0] }>();
            self.s.tile_zero::<{ SUMS[1][1] }>();
        }
    }

    /// Adds the products of factors whose rows are so many bytes apart.
    ///
    /// # Safety
    /// The thread holds the registers, and the factors have 16 rows of 64 bytes.
    #[inline(always)]
    unsafe fn add(self, left: [*const u8; 2], left_stride: usize, right: [*const f32; 2], right_stride: usize) {
        use register::{LEFT, RIGHT, SUMS};
        let Self { s, two: [two_left, two_right] } = self;
        // SAFETY: the caller's contract.
        unsafe {
            s.tile_load::<{ RIGHT[0] }>(right[0].cast(), right_stride);
            s.tile_load::<{ LEFT[0] }>(left[0], left_stride);
            s.tile_dot_bf16::<{ SUMS[0][0] }, { LEFT[0] }, { RIGHT[0] }>();
            if two_right {
                s.tile_load::<{ RIGHT[1] }>(right[1].cast(), right_stride);
                s.tile_dot_bf16::<{ SUMS[0][1] }, { LEFT[0] }, { RIGHT[1] }>();
            }
            if two_left {
                s.tile_load::<{ LEFT[1] }>(left[1], left_stride);
                s.tile_dot_bf16::<{ SUMS[1][0] }, { LEFT[1] }, { RIGHT[0] }>();
                if two_right {
                    s.tile_dot_bf16::<{ SUMS[1][1] }, { LEFT[1] }, { RIGHT[1] }>();
                }
            }
        }
    }

    /// Reads the left factors, whose rows are so many bytes apart.
    ///
    /// # Safety
    /// The thread holds the registers, and the factors have 16 rows of 64 bytes.
    #[inline(always)]
    pub(super) unsafe fn left(self, from: [*const u8; 2], stride: usize) {
        // SAFETY: the caller's contract.
        unsafe {
            self.s.tile_load::<{ register::LEFT[0] }>(from[0], stride);
            if self.two[0] {
                self.s.tile_load::<{ register::LEFT[1] }>(from[1], stride);
            }
        }
    }

    /// Reads the right factors, whose rows are so many bytes apart.
    ///
    /// # Safety
    /// As for [`Products::left`].
    #[inline(always)]
    pub(super) unsafe fn right(self, from: [*const f32; 2], stride: usize) {
        // SAFETY: the caller's contract.
        unsafe {
            self.s.tile_load::<{ register::RIGHT[0] }>(from[0].cast(), stride);
            if self.two[1] {
                self.s.tile_load::<{ register::RIGHT[1] }>(from[1].cast(), stride);
            }
        }
    }

    /// Adds the products of the factors that were read.
    ///
    /// # Safety
    /// The thread holds the registers.
    #[inline(always)]
    pub(super) unsafe fn multiply(self) {
        use register::{LEFT, RIGHT, SUMS};
        let Self { s, two: [two_left, two_right] } = self;
        // SAFETY: the caller's contract.
        unsafe {
            s.tile_dot_bf16::<{ SUMS[0][0] }, { LEFT[0] }, { RIGHT[0] }>();
            if two_right {
                s.tile_dot_bf16::<{ SUMS[0][1] }, { LEFT[0] }, { RIGHT[1] }>();
            }
            if two_left {
                s.tile_dot_bf16::<{ SUMS[1][0] }, { LEFT[1] }, { RIGHT[0] }>();
                if two_right {
                    s.tile_dot_bf16::<{ SUMS[1][1] }, { LEFT[1] }, { RIGHT[1] }>();
                }
            }
        }
    }

    /// Writes the sums: those of the second left factor 16 rows further on, those of the second right one 16 lanes.
    ///
    /// # Safety
    /// The thread holds the registers, and there is room.
    #[inline(always)]
    pub(super) unsafe fn store(self, to: *mut f32, lanes: usize) {
        use register::SUMS;
        let Self { s, two: [two_left, two_right] } = self;
        let stride = lanes * size_of::<f32>();
        // SAFETY: the caller's contract.
        unsafe {
            s.tile_store::<{ SUMS[0][0] }>(to.cast(), stride);
            if two_right {
                s.tile_store::<{ SUMS[0][1] }>(to.add(SIDE).cast(), stride);
            }
            if two_left {
                let to = to.add(SIDE * lanes);
                s.tile_store::<{ SUMS[1][0] }>(to.cast(), stride);
                if two_right {
                    s.tile_store::<{ SUMS[1][1] }>(to.add(SIDE).cast(), stride);
                }
            }
        }
    }
}

/// Takes the scores of some keys, `[key][lanes]`, into the maximum of each lane.
///
/// # Safety
/// They are there, for so many vectors of lanes.
#[inline(always)]
pub(super) unsafe fn take_max(scores: *const f32, keys: usize, max: *mut f32, lanes: usize, vectors: usize) {
    let s = token();
    for at in (0..vectors * SIDE).step_by(SIDE) {
        // As many maxima as hide the latency of their chains.
        // SAFETY: the caller's contract.
        unsafe {
            let mut maxima = [s.load(max.add(at)); 4];
            for key in (0..keys).step_by(4) {
                for i in 0..4 {
                    if key + i < keys {
                        maxima[i] = s.max(s.load(scores.add((key + i) * lanes + at)), maxima[i]);
                    }
                }
            }
            s.store(max.add(at), s.max(s.max(maxima[0], maxima[1]), s.max(maxima[2], maxima[3])));
        }
    }
}
