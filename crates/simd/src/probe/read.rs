//! How fast a core can read memory.

use std::fmt;
use std::hint::black_box;
use std::str::FromStr;

use crate::{Level, Op, Simd};

/// A way of reading memory. Which one is fastest depends on the machine, and a ceiling is what the best of them reaches.
///
/// Its name is `{streams}-none`, `{streams}-near-{bytes}` or `{streams}-far-{bytes}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReadWay {
    streams: Streams,
    prefetch: Prefetch,
}

/// Parts of the buffer that are read at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Streams {
    One,
    Two,
    Four,
}

/// What is asked for ahead of time: a line so many bytes further on, into the first-level or the second-level cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Prefetch {
    None,
    Near(usize),
    Far(usize),
}

impl ReadWay {
    /// The ways to try. On Zen 5 four streams with near prefetches won, on Zen 4 one stream with far ones, on a Xeon with AMX those of
    /// 1.5 to 2 KiB, near or far.
    pub const ALL: [Self; 15] = [
        Self { streams: Streams::One, prefetch: Prefetch::None },
        Self { streams: Streams::One, prefetch: Prefetch::Near(1536) },
        Self { streams: Streams::One, prefetch: Prefetch::Far(2048) },
        Self { streams: Streams::One, prefetch: Prefetch::Far(4096) },
        Self { streams: Streams::One, prefetch: Prefetch::Far(8192) },
        Self { streams: Streams::Two, prefetch: Prefetch::None },
        Self { streams: Streams::Two, prefetch: Prefetch::Near(1536) },
        Self { streams: Streams::Two, prefetch: Prefetch::Far(2048) },
        Self { streams: Streams::Two, prefetch: Prefetch::Far(4096) },
        Self { streams: Streams::Two, prefetch: Prefetch::Far(8192) },
        Self { streams: Streams::Four, prefetch: Prefetch::None },
        Self { streams: Streams::Four, prefetch: Prefetch::Near(1536) },
        Self { streams: Streams::Four, prefetch: Prefetch::Far(2048) },
        Self { streams: Streams::Four, prefetch: Prefetch::Far(4096) },
        Self { streams: Streams::Four, prefetch: Prefetch::Far(8192) },
    ];
}

impl fmt::Display for ReadWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let streams = match self.streams {
            Streams::One => 1,
            Streams::Two => 2,
            Streams::Four => 4,
        };
        match self.prefetch {
            Prefetch::None => write!(f, "{streams}-none"),
            Prefetch::Near(bytes) => write!(f, "{streams}-near-{bytes}"),
            Prefetch::Far(bytes) => write!(f, "{streams}-far-{bytes}"),
        }
    }
}

/// A name that is not one of a [`ReadWay`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadWayError;

impl fmt::Display for ReadWayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected STREAMS-none, STREAMS-near-BYTES or STREAMS-far-BYTES, with 1, 2 or 4 streams")
    }
}

impl std::error::Error for ReadWayError {}

impl FromStr for ReadWay {
    type Err = ReadWayError;

    fn from_str(name: &str) -> Result<Self, ReadWayError> {
        let (streams, prefetch) = name.split_once('-').ok_or(ReadWayError)?;
        let streams = match streams {
            "1" => Streams::One,
            "2" => Streams::Two,
            "4" => Streams::Four,
            _ => return Err(ReadWayError),
        };
        let bytes = |text: &str| text.parse().map_err(|_| ReadWayError);
        let prefetch = match prefetch.split_once('-') {
            None if prefetch == "none" => Prefetch::None,
            Some(("near", distance)) => Prefetch::Near(bytes(distance)?),
            Some(("far", distance)) => Prefetch::Far(bytes(distance)?),
            _ => return Err(ReadWayError),
        };
        Ok(Self { streams, prefetch })
    }
}

/// Reads every element of `buffer` once with the loads of the level, in some way, and gives their sum.
///
/// The bytes of the buffer over the time are the bandwidth at which one core reads whatever level of the memory holds
/// the buffer, in bytes/s. The sum is there so that the loads must happen; the order of summation is no contract.
pub fn read_sweep(level: Level, way: ReadWay, buffer: &[f32]) -> f32 {
    // Behind `black_box` two sweeps of one buffer are not the same call, which could be made once for both.
    let buffer = black_box(buffer);
    let sum = match way.streams {
        Streams::One => sweep::<1>(level, way.prefetch, buffer),
        Streams::Two => sweep::<2>(level, way.prefetch, buffer),
        Streams::Four => sweep::<4>(level, way.prefetch, buffer),
    };
    black_box(sum)
}

fn sweep<const STREAMS: usize>(level: Level, prefetch: Prefetch, buffer: &[f32]) -> f32 {
    match prefetch {
        Prefetch::None => level.dispatch(Sweep::<STREAMS, NONE> { buffer, ahead: 0 }),
        Prefetch::Near(ahead) => level.dispatch(Sweep::<STREAMS, NEAR> { buffer, ahead }),
        Prefetch::Far(ahead) => level.dispatch(Sweep::<STREAMS, FAR> { buffer, ahead }),
    }
}

/// One of `NONE`, `NEAR` and `FAR` for `PREFETCH`; `ahead` is in bytes.
struct Sweep<'a, const STREAMS: usize, const PREFETCH: u8> {
    buffer: &'a [f32],
    ahead: usize,
}

const NONE: u8 = 0;
const NEAR: u8 = 1;
const FAR: u8 = 2;

/// f32 elements of a cache line.
const LINE: usize = 16;
/// Cache lines that are read in turn, shared out evenly among the streams. Each has its own accumulator, which is as many as
/// hide the latency of additions where a line takes several of them.
const LINES: usize = 8;

impl<const STREAMS: usize, const PREFETCH: u8> Op for Sweep<'_, STREAMS, PREFETCH> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        const { assert!(LINE.is_multiple_of(S::LANES) && LINES.is_multiple_of(STREAMS)) };
        let Self { buffer, ahead } = self;
        let step = LINES / STREAMS * LINE;
        let part = buffer.len() / STREAMS / step * step;
        let mut sums = [s.zero(); LINES];
        let mut at = 0;
        while at < part {
            for (i, sum) in sums.iter_mut().enumerate() {
                let (stream, line) = (i / (LINES / STREAMS), i % (LINES / STREAMS));
                let start = buffer.as_ptr().wrapping_add(stream * part + at + line * LINE);
                match PREFETCH {
                    NEAR => s.prefetch(start.wrapping_byte_add(ahead)),
                    FAR => s.prefetch_far(start.wrapping_byte_add(ahead)),
                    _ => {}
                }
                for offset in 0..LINE / S::LANES {
                    // SAFETY: `part` is a multiple of what a pass reads of a stream, hence the line ends before
                    // `(stream + 1) * part`, which is at most the length of the buffer.
                    let x = unsafe { s.load(start.add(offset * S::LANES)) };
                    *sum = s.add(*sum, x);
                }
            }
            at += step;
        }
        let mut sum = s.zero();
        for line in sums {
            sum = s.add(sum, line);
        }
        let mut at = STREAMS * part;
        while at < buffer.len() {
            let n = S::LANES.min(buffer.len() - at);
            // SAFETY: `n` elements are left at least.
            sum = s.add(sum, unsafe { s.load_first(buffer.as_ptr().add(at), n) });
            at += n;
        }
        let mut lanes = [0.0; LINE];
        // SAFETY: a vector is not longer than a cache line, as asserted above.
        unsafe { s.store(lanes.as_mut_ptr(), sum) };
        lanes.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_reads_every_element_once() {
        // Small integers, whose sum is exact in any order.
        let numbers: Vec<f32> = (0..1000).map(|i| (i % 13) as f32).collect();
        for &level in Level::available() {
            for way in ReadWay::ALL {
                for length in (0..300).chain([511, 512, 513, 999, 1000]) {
                    let expected: f32 = numbers[..length].iter().sum();
                    let found = read_sweep(level, way, &numbers[..length]);
                    assert_eq!(found, expected, "{}, {way}, {length} elements", level.isa());
                }
            }
        }
    }

    #[test]
    fn ways_have_names() {
        for (i, way) in ReadWay::ALL.iter().enumerate() {
            assert_eq!(way.to_string().parse(), Ok(*way));
            assert!(!ReadWay::ALL[..i].contains(way), "{way}");
        }
        let far = ReadWay { streams: Streams::Two, prefetch: Prefetch::Far(640) };
        assert_eq!("2-far-640".parse(), Ok(far));
        for name in ["", "1", "3-none", "1-none-4", "1-near", "1-far-x", "1-far--1", "2-deep-4"] {
            assert_eq!(name.parse::<ReadWay>(), Err(ReadWayError), "{name}");
        }
    }
}
