//! How long sequences of different lengths are.

use std::fmt;
use std::str::FromStr;

use crate::stats::Random;

/// The lengths of some sequences: a list, or numbers from a distribution, the same for the same seed on every machine.
///
/// Written `100,2000,37` or `uniform:LOW..HIGH:COUNT@SEED`; both ends are included, and `@SEED` may be left out for `@0`.
///
/// ```
/// use regard_tuner::inputs::Lengths;
///
/// let lengths: Lengths = "uniform:1..4096:64@7".parse()?;
/// let drawn = lengths.get();
/// assert_eq!(drawn.len(), 64);
/// assert!(drawn.iter().all(|length| (1..=4096).contains(length)));
/// # Ok::<(), regard_tuner::inputs::LengthsError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lengths {
    /// These.
    List(Vec<usize>),
    /// Each length from `low` to `high` is as likely as any other.
    Uniform {
        /// The least.
        low: usize,
        /// The most.
        high: usize,
        /// How many.
        count: usize,
        /// Decides which.
        seed: u64,
    },
}

/// The most sequences that are drawn.
const MOST: usize = 1 << 20;

/// A text that does not say how long sequences are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected lengths L1,L2,.. or uniform:LOW..HIGH:COUNT[@SEED] with at most {MOST} sequences")]
pub struct LengthsError;

impl Lengths {
    /// The lengths.
    pub fn get(&self) -> Vec<usize> {
        match *self {
            Self::List(ref lengths) => lengths.clone(),
            Self::Uniform { low, high, count, seed } => {
                let mut random = Random::new(seed);
                let width = (high - low).saturating_add(1);
                (0..count).map(|_| low + random.below(width)).collect()
            }
        }
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::List(lengths) => {
                let lengths: Vec<String> = lengths.iter().map(usize::to_string).collect();
                f.write_str(&lengths.join(","))
            }
            Self::Uniform { low, high, count, seed } => write!(f, "uniform:{low}..{high}:{count}@{seed}"),
        }
    }
}

impl FromStr for Lengths {
    type Err = LengthsError;

    fn from_str(text: &str) -> Result<Self, LengthsError> {
        fn number<T: FromStr>(text: &str) -> Result<T, LengthsError> {
            text.parse().map_err(|_| LengthsError)
        }
        let Some(drawn) = text.strip_prefix("uniform:") else {
            return Ok(Self::List(text.split(',').map(number).collect::<Result<_, _>>()?));
        };
        let (drawn, seed) = drawn.split_once('@').unwrap_or((drawn, "0"));
        let (range, count) = drawn.split_once(':').ok_or(LengthsError)?;
        let (low, high) = range.split_once("..").ok_or(LengthsError)?;
        let (low, high, count) = (number(low)?, number(high)?, number(count)?);
        if low > high || count > MOST {
            return Err(LengthsError);
        }
        Ok(Self::Uniform { low, high, count, seed: number(seed)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_and_written() {
        for text in ["5", "5,0,17", "uniform:1..9:3@4", "uniform:0..0:0@0"] {
            assert_eq!(text.parse::<Lengths>().unwrap().to_string(), text);
        }
        assert_eq!("uniform:1..9:3".parse::<Lengths>().unwrap().to_string(), "uniform:1..9:3@0");
        for text in [
            "",
            "5,",
            "x",
            "-1",
            "uniform:",
            "uniform:1..9",
            "uniform:9..1:3",
            "uniform:1..9:3@",
            "uniform:1:3",
            "uniform:1..9:2000000",
        ] {
            assert_eq!(text.parse::<Lengths>(), Err(LengthsError), "{text}");
        }
    }

    #[test]
    fn drawn_lengths_cover_the_range() {
        let drawn = |seed| Lengths::Uniform { low: 3, high: 6, count: 200, seed }.get();
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
        assert_eq!((drawn(1).iter().min(), drawn(1).iter().max()), (Some(&3), Some(&6)));
        assert_eq!(Lengths::Uniform { low: 7, high: 7, count: 2, seed: 0 }.get(), [7, 7]);
        let all = Lengths::Uniform { low: 0, high: usize::MAX, count: 2, seed: 0 };
        assert_eq!(all.get().len(), 2);
    }
}
