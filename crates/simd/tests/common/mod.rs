//! What the test programs of this crate share.

use std::io::Write as _;
use std::sync::Once;

use regard_simd::{Isa, Level};

/// The levels to test, which are those of this machine. Says once per program which ones these are and which are left
/// out, straight to stderr so that the test harness does not hide it.
pub(crate) fn levels() -> &'static [Level] {
    static REPORT: Once = Once::new();
    let levels = Level::available();
    REPORT.call_once(|| {
        let (run, skipped): (Vec<_>, Vec<_>) =
            Isa::ALL.into_iter().partition(|isa| levels.iter().any(|level| level.isa() == *isa));
        let names = |isas: Vec<Isa>| isas.into_iter().map(Isa::name).collect::<Vec<_>>().join(", ");
        writeln!(std::io::stderr(), "levels tested: {}; not on this machine: {}", names(run), names(skipped))
            .expect("stderr is writable");
    });
    levels
}
