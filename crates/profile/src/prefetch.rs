//! How kernels should ask for memory, where nothing was measured.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Machine;

/// How a rows kernel reads keys and values. It changes no bit of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reading {
    /// Bytes of keys of a turn: the values of a block are multiplied in turns with the keys of the next one. With 0, blocks follow
    /// each other, values after keys; with less than two rows, and nothing asked for, keys and values come a few at a time.
    pub turn: usize,
    /// How far ahead memory is asked for, in bytes; 0 leaves it to the processor.
    pub ahead: usize,
}

impl Reading {
    /// A key or a few, as many values, and so on: the shortest turns that there are.
    const ABREAST: Self = Self { turn: 1, ahead: 0 };
}

/// What is asked for, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefetch {
    /// Of a rows kernel: for one row, for two, and for more.
    pub rows: [Reading; 3],
}

impl Prefetch {
    /// Which of the readings serves calls of so many rows.
    pub fn place(rows: usize) -> usize {
        rows.clamp(1, 3) - 1
    }

    /// The same with what was found to be faster.
    #[must_use]
    pub fn with(mut self, tuned: Option<TunedReading>) -> Self {
        if let Some(TunedReading { rows, turn, ahead }) = tuned {
            self.rows[Self::place(rows)] = Reading { turn, ahead };
        }
        self
    }
}

/// A reading that was found to be faster than the model's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TunedReading {
    /// Rows of the calls that it was timed on. It serves calls of one row, of two, or of more, whichever this is.
    pub rows: usize,
    /// See [`Reading::turn`].
    pub turn: usize,
    /// See [`Reading::ahead`].
    pub ahead: usize,
}

impl fmt::Display for TunedReading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.turn {
            0 => f.write_str("keys before values")?,
            1 => f.write_str("keys and values abreast")?,
            bytes => write!(f, "turns of {bytes} bytes")?,
        }
        match self.ahead {
            0 => f.write_str(", not asked for"),
            bytes => write!(f, ", asked for {bytes} ahead"),
        }
    }
}

/// What is best for keys of this element type (`f32`, `f16`, `bf16` or `int8`), as far as it was measured; for a kernel that works on
/// tile registers, or not.
///
/// Tiles take keys block after block (eight rows of bf16 and int8: 2 to 7 % faster than turns of 4 to 16 KiB), and 4 to 32 KiB ahead
/// are all the same.
///
/// Intel's cores want to be asked, and the work to be spread (a Xeon with AMX; figures in `regard-kernels`, at the block of the rows
/// kernel). They drop requests for pages whose translation they do not hold, and have to look up, in small pages and under a
/// hypervisor, one for each 4 KiB: what was asked for has then come for half of the lines (in large pages for nearly all). To touch
/// each page beforehand costs what it wins. One row of f32 is fastest with 2 KiB (13.8 GB/s, with 8 KiB 12.9; in large pages), the
/// others with 8. Others are taken for Zen 4. There, two rows are fastest with 2 to 4 KiB, and 16 cost a
/// tenth; more rows, which take longer over a key, are fastest with 8 KiB, and 2 cost eight of them a third. Halves gain a
/// twentieth from 8 KiB at any number of rows, where int8 loses a tenth. One row of f16 or int8 is read in turns of 32 keys of 128
/// columns, and not asked for.
///
/// AMD's cores before Zen 4, which have no AVX-512, want to be left alone: on a Zen 3 (EPYC, virtual), whatever is asked for costs
/// more than it gains while memory binds, and two streams are read faster than one. Keys and values abreast against block after
/// block, asked for 4 to 8 KiB ahead, GB/s of 22 to 25 that four streams read:
///
/// | | f32 | f16 | bf16 | int8 |
/// |---|---|---|---|---|
/// | one row | 17 for 13 | 17 for 14 | 16 for 13 | 12 for 11 |
/// | two rows | 11.1 for 8.1 | 12.9 for 11.4 | 12.2 for 10.5 | 9.9 for 9.9 |
/// | three and four | 11 for 9.3 | 11 for 10.5 | 10 for 10.5 | 6.7 for 6.5 |
/// | eight | 7.0 for 7.0 | 4.3 for 4.8 | 4.1 for 5.2 | 3.0 for 3.2 |
///
/// Where keys and values lie otherwise towards each other, three rows and more of f32 lose by it (four 8.1 for 9.8, eight 4.8 for 6.6,
/// two and one keep what they have); why is not known.
pub fn prefetch(machine: &Machine, dtype: &str, in_tiles: bool) -> Prefetch {
    if in_tiles {
        return Prefetch { rows: [Reading { turn: 0, ahead: 8192 }; 3] };
    }
    if machine.vendor == "GenuineIntel" {
        let turns = |ahead| Reading { turn: 4096, ahead };
        return Prefetch { rows: [turns(if dtype == "f32" { 2048 } else { 8192 }), turns(8192), turns(8192)] };
    }
    let halves = matches!(dtype, "f16" | "bf16");
    let asked = |ahead| Reading { turn: 0, ahead };
    if machine.vendor == "AuthenticAMD" && !machine.features.iter().any(|feature| feature == "avx512f") {
        return Prefetch { rows: [Reading::ABREAST, Reading::ABREAST, asked(8192)] };
    }
    let few = asked(if halves { 8192 } else { 4096 });
    let one = if matches!(dtype, "f16" | "int8") { Reading { turn: 4096, ahead: 0 } } else { few };
    Prefetch { rows: [one, few, asked(8192)] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_tuned_serves_as_many_rows() {
        let modelled = prefetch(&Machine::default(), "f32", false);
        assert_eq!(modelled.with(None), modelled);
        for (rows, place) in [(0, 0), (1, 0), (2, 1), (3, 2), (15, 2)] {
            let tuned = modelled.with(Some(TunedReading { rows, turn: 512, ahead: 1 }));
            for other in 0..3 {
                let expected = if other == place { Reading { turn: 512, ahead: 1 } } else { modelled.rows[other] };
                assert_eq!(tuned.rows[other], expected, "{rows} rows");
            }
        }
    }

    #[test]
    fn readings_in_words() {
        let words = |turn, ahead| TunedReading { rows: 1, turn, ahead }.to_string();
        assert_eq!(words(0, 8192), "keys before values, asked for 8192 ahead");
        assert_eq!(words(4096, 0), "turns of 4096 bytes, not asked for");
        assert_eq!(words(1, 0), "keys and values abreast, not asked for");
    }

    #[test]
    fn what_was_measured() {
        let machine = |vendor: &str, features: &[&str]| Machine {
            vendor: vendor.to_owned(),
            features: features.iter().map(|feature| (*feature).to_owned()).collect(),
            ..Machine::default()
        };
        let of = |vendor, dtype| prefetch(&machine(vendor, &["avx2", "avx512f"]), dtype, false);
        let before_zen_4 = |dtype| prefetch(&machine("AuthenticAMD", &["avx2", "fma"]), dtype, false).rows;
        let abreast = Reading { turn: 1, ahead: 0 };
        for dtype in ["f32", "f16", "bf16", "int8"] {
            assert_eq!(before_zen_4(dtype), [abreast, abreast, Reading { turn: 0, ahead: 8192 }]);
        }
        let turns = Reading { turn: 4096, ahead: 0 };
        let asked = |ahead| Reading { turn: 0, ahead };
        assert_eq!(of("AuthenticAMD", "int8").rows, [turns, asked(4096), asked(8192)]);
        assert_eq!(of("AuthenticAMD", "f16").rows, [turns, asked(8192), asked(8192)]);
        assert_eq!(of("AuthenticAMD", "bf16").rows, [asked(8192); 3]);
        assert_eq!(of("AuthenticAMD", "f32").rows, [asked(4096), asked(4096), asked(8192)]);
        assert_eq!(prefetch(&Machine::default(), "bf16", true).rows, [asked(8192); 3], "in tiles");
        for dtype in ["f32", "f16", "bf16", "int8"] {
            assert_eq!(of("", dtype), of("AuthenticAMD", dtype), "unknown machines");
            let one = if dtype == "f32" { 2048 } else { 8192 };
            assert_eq!(of("GenuineIntel", dtype).rows.map(|reading| reading.ahead), [one, 8192, 8192]);
            assert!(of("GenuineIntel", dtype).rows.iter().all(|reading| reading.turn == 4096));
        }
    }
}
