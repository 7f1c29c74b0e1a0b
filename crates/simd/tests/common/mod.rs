//! What the test programs of this crate share.
#![allow(dead_code, reason = "not every program needs all of it")]

use std::fmt;
use std::io::Write as _;
use std::sync::OnceLock;

#[cfg(target_arch = "aarch64")]
use regard_simd::NeonBf16;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use regard_simd::Simd as _;
#[cfg(target_arch = "x86_64")]
use regard_simd::{Avx512Amx, Avx512Bf16, Avx512Vnni};
use regard_simd::{Extension, Isa, Level, Op};

/// The most lanes that a level has.
pub(crate) const MAX_LANES: usize = 16;

/// A token under test: that of a level, or that of a level with an extension.
#[derive(Clone, Copy)]
pub(crate) enum Token {
    Level(Level),
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(Avx512Bf16),
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(Avx512Vnni),
    #[cfg(target_arch = "x86_64")]
    Avx512Amx(Avx512Amx),
    #[cfg(target_arch = "aarch64")]
    NeonBf16(NeonBf16),
}

impl Token {
    /// Runs `op` as compiled for the token.
    pub(crate) fn dispatch<O: Op>(self, op: O) -> O::Output {
        match self {
            Self::Level(level) => level.dispatch(op),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16(token) => token.vectorize(op),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni(token) => token.vectorize(op),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Amx(token) => token.vectorize(op),
            #[cfg(target_arch = "aarch64")]
            Self::NeonBf16(token) => token.vectorize(op),
        }
    }

    /// The level.
    pub(crate) fn isa(self) -> Isa {
        match self {
            Self::Level(level) => level.isa(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16(_) | Self::Avx512Vnni(_) | Self::Avx512Amx(_) => Isa::Avx512,
            #[cfg(target_arch = "aarch64")]
            Self::NeonBf16(_) => Isa::Neon,
        }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Level(level) => write!(f, "{}", level.isa()),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16(_) => write!(f, "avx512+bf16"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni(_) => write!(f, "avx512+vnni"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Amx(_) => write!(f, "avx512+amx"),
            #[cfg(target_arch = "aarch64")]
            Self::NeonBf16(_) => write!(f, "neon+bf16"),
        }
    }
}

/// All that there is to test on this machine. Says once per program what that is and what is left out, straight to
/// stderr so that the test harness does not hide it.
pub(crate) fn tokens() -> &'static [Token] {
    static TOKENS: OnceLock<Vec<Token>> = OnceLock::new();
    TOKENS.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        let extended = [
            Avx512Bf16::detect().map(Token::Avx512Bf16),
            Avx512Vnni::detect().map(Token::Avx512Vnni),
            Avx512Amx::detect().map(Token::Avx512Amx),
        ]
        .into_iter()
        .flatten();
        #[cfg(target_arch = "aarch64")]
        let extended = NeonBf16::detect().map(Token::NeonBf16);
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let extended = None;
        let tokens: Vec<Token> = Level::available().iter().copied().map(Token::Level).chain(extended).collect();
        let here: Vec<String> = tokens.iter().map(Token::to_string).collect();
        let all = Isa::ALL.into_iter().flat_map(|isa| {
            [isa.to_string()].into_iter().chain(Extension::ALL.into_iter().map(move |with| format!("{isa}+{with}")))
        });
        let known = ["portable", "avx2", "avx512", "avx512+bf16", "avx512+vnni", "avx512+amx", "neon", "neon+bf16"];
        let skipped: Vec<String> = all.filter(|name| known.contains(&name.as_str()) && !here.contains(name)).collect();
        writeln!(std::io::stderr(), "levels tested: {}; not on this machine: {}", here.join(", "), skipped.join(", "))
            .expect("stderr is writable");
        tokens
    })
}

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number in [0, 1].
    pub(crate) fn fraction(&mut self) -> f32 {
        self.bits() as u32 as f32 / 4_294_967_296.0
    }
}
