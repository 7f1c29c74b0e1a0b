//! Levels: their names, what this machine has of them, and the environment variable.

use regard_simd::{Extension, ISA_VARIABLE, Isa, IsaError, Level, Op, Simd};

/// A level that no machine of this architecture has.
const FOREIGN: Isa = if cfg!(target_arch = "aarch64") { Isa::Avx2 } else { Isa::Neon };

#[test]
fn names_round_trip() {
    for isa in Isa::ALL {
        assert_eq!(isa.name().parse(), Ok(isa));
        assert_eq!(format!("{isa:>9}"), format!("{:>9}", isa.name()));
    }
    for name in ["", "AVX2", "avx2 ", "avx1024"] {
        assert_eq!(name.parse::<Isa>(), Err(IsaError::Unknown { name: name.to_owned() }));
    }
}

#[test]
fn available_levels_are_in_order() {
    let isas: Vec<Isa> = Level::available().iter().map(|level| level.isa()).collect();
    assert_eq!(isas[0], Isa::Portable);
    assert!(isas.is_sorted_by(|a, b| a < b), "{isas:?}");
    assert_eq!(Some(Level::best().isa()), isas.last().copied());
    assert!(!isas.contains(&FOREIGN), "{isas:?}");
    for isa in isas {
        assert_eq!(Level::of(isa).map(Level::isa), Ok(isa));
    }
}

#[test]
fn extensions_belong_to_levels() {
    for extension in Extension::ALL {
        let at: Vec<Isa> = Isa::ALL.into_iter().filter(|&isa| extension.is_available_at(isa)).collect();
        for &isa in &at {
            assert!(Level::of(isa).is_ok(), "{extension} without {isa}");
        }
        assert_eq!(
            Extension::available().contains(&extension),
            at.contains(&Level::best().isa()),
            "{extension}: {at:?}"
        );
    }
}

#[test]
fn errors_list_the_choices() {
    let unavailable = Level::of(FOREIGN).expect_err("no machine of this architecture has it");
    assert_eq!(unavailable, IsaError::Unavailable { isa: FOREIGN });
    let unknown = "sse9".parse::<Isa>().expect_err("there is none of this name");

    let choices = Level::available().iter().map(|level| level.isa().name()).collect::<Vec<_>>().join(", ");
    let (unavailable, unknown) = (unavailable.to_string(), unknown.to_string());
    assert!(unavailable.contains(FOREIGN.name()) && unavailable.ends_with(&format!(": {choices}")), "{unavailable}");
    assert!(unknown.contains("\"sse9\"") && unknown.ends_with(&format!(": {choices}")), "{unknown}");
}

#[test]
fn dispatch_runs_at_the_level() {
    struct Describe;
    impl Op for Describe {
        type Output = (Isa, usize, Isa);
        #[inline(always)]
        fn run<S: Simd>(self, _: S) -> Self::Output {
            // SAFETY: a token of this type is at hand.
            let again = unsafe { S::assume() };
            (S::ISA, S::LANES, again.vectorize(Name))
        }
    }
    struct Name;
    impl Op for Name {
        type Output = Isa;
        #[inline(always)]
        fn run<S: Simd>(self, _: S) -> Isa {
            S::ISA
        }
    }
    for level in Level::available() {
        let isa = level.isa();
        assert_eq!(level.dispatch(Describe), (isa, isa.lanes(), isa));
    }
}

/// The one test that touches the environment, so that none sees another's changes.
#[test]
fn the_environment_caps_the_level() {
    let from_env = |value: &str| {
        // SAFETY: no other test of this program reads or writes the environment, nor does C code that it calls.
        unsafe { std::env::set_var(ISA_VARIABLE, value) };
        Level::from_env().map(Level::isa)
    };
    for level in Level::available() {
        assert_eq!(from_env(level.isa().name()), Ok(level.isa()));
    }
    assert_eq!(from_env(FOREIGN.name()), Err(IsaError::Unavailable { isa: FOREIGN }));
    assert_eq!(from_env("fastest"), Err(IsaError::Unknown { name: "fastest".to_owned() }));
    assert_eq!(from_env(""), Ok(Level::best().isa()));
    // SAFETY: as above.
    unsafe { std::env::remove_var(ISA_VARIABLE) };
    assert_eq!(Level::from_env().map(Level::isa), Ok(Level::best().isa()));
}
