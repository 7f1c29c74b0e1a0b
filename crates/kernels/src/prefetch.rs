//! How kernels ask for keys and values before they use them. It changes no bit of a result; what is fastest is a matter of the
//! machine, and of how much there is to compute.

/// What is asked for, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefetch {
    /// Of a rows kernel: for one row, for two, and for more.
    pub rows: [Reading; 3],
}

impl Prefetch {
    /// Nothing is asked for, and blocks follow each other.
    pub const NONE: Self = Self { rows: [Reading { turn: 0, ahead: 0 }; 3] };

    /// How a rows kernel reads for so many rows.
    pub fn reading(&self, rows: usize) -> Reading {
        self.rows[rows.clamp(1, 3) - 1]
    }
}

/// How a rows kernel reads keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Bytes of keys of a turn, rounded up to a few keys: the values of a block are multiplied in turns with the keys of the next
    /// one. With 0, blocks follow each other, values after keys. With at most two rows, and nothing asked for, one loop takes a key or
    /// a few and as many values, where rows lie one after the other and the kernel widens elements or multiplies integers.
    pub turn: usize,
    /// How far ahead memory is asked for, into the second-level cache, in bytes. With 0, it is left to the processor where rows
    /// lie one after the other.
    pub ahead: usize,
}
