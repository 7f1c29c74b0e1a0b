//! Memory that notices when somebody writes where nothing was asked for, and runs within it.

use regard::{bf16, f16};

/// Elements of a guard band on each side.
pub const GUARD: usize = 67;

/// An element with a value that lies where nobody may read or write: of floats a NaN that no operation makes, so that whoever
/// computes with it gives NaN, and whoever overwrites it is found out.
pub trait Poison: Copy {
    /// The value.
    fn poison() -> Self;

    /// Whether it is that value, bit for bit.
    fn is_poison(self) -> bool;
}

macro_rules! poison {
    ($($float:ty: $bits:literal),+) => {$(
        impl Poison for $float {
            fn poison() -> Self {
                Self::from_bits($bits)
            }

            fn is_poison(self) -> bool {
                self.to_bits() == $bits
            }
        }
    )+};
}

poison!(f32: 0x7fd5_aa55, f16: 0x7ed5, bf16: 0x7fd5);

/// Bytes have no NaN; their scales have.
impl Poison for i8 {
    fn poison() -> Self {
        -128
    }

    fn is_poison(self) -> bool {
        self == -128
    }
}

/// See [`Poison`].
pub fn poison() -> f32 {
    Poison::poison()
}

/// How a tensor `[batch, heads, rows, columns]` lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Contiguous, in the order of the dimensions.
    Bhsd,
    /// Contiguous, with rows before heads.
    Bshd,
    /// In the order of the dimensions, with gaps after rows, heads and batch entries.
    Padded,
    /// Rows before heads, with gaps: a slice of a packed QKV projection.
    PaddedBshd,
}

impl Layout {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Bhsd, Self::Bshd, Self::Padded, Self::PaddedBshd];

    /// Strides, and the number of elements from the first to the last.
    pub fn strides(self, shape: [usize; 4]) -> ([usize; 4], usize) {
        let [_, heads, rows, columns] = shape;
        let strides = match self {
            Self::Bhsd => [heads * rows * columns, rows * columns, columns, 1],
            Self::Bshd => [rows * heads * columns, columns, heads * columns, 1],
            Self::Padded => {
                let row = columns + 5;
                let head = rows * row + 3;
                [heads * head + 11, head, row, 1]
            }
            Self::PaddedBshd => {
                let head = columns + 1;
                let row = heads * head + 7;
                [rows * row + 2, head, row, 1]
            }
        };
        if shape.contains(&0) {
            return (strides, 0);
        }
        (strides, 1 + shape.iter().zip(strides).map(|(size, stride)| (size - 1) * stride).sum::<usize>())
    }
}

/// A buffer between two guard bands, all of it poisoned.
#[derive(Clone, Debug)]
pub struct Guarded<T>(Vec<T>);

impl Guarded<f32> {
    /// A buffer of `len` f32.
    pub fn new(len: usize) -> Self {
        Self::of(len)
    }
}

impl<T: Poison> Guarded<T> {
    /// A buffer of `len` elements.
    pub fn of(len: usize) -> Self {
        Self(vec![T::poison(); GUARD + len + GUARD])
    }

    /// The buffer.
    pub fn inner(&mut self) -> &mut [T] {
        let end = self.0.len() - GUARD;
        &mut self.0[GUARD..end]
    }

    /// Panics if an element of the guard bands was written.
    pub fn check(&self, name: &str) {
        let end = self.0.len() - GUARD;
        let bad = (0..GUARD).chain(end..end + GUARD).find(|i| !self.0[*i].is_poison());
        assert!(bad.is_none(), "{name}: wrote {:?} elements from its start", bad.map(|i| i as isize - GUARD as isize));
    }

    /// Panics if anything at all was written.
    pub fn check_untouched(&self, name: &str) {
        let bad = self.0.iter().position(|x| !x.is_poison());
        assert!(bad.is_none(), "{name}: element {:?} was written", bad.map(|i| i as isize - GUARD as isize));
    }
}
