//! Asking for memory while scores become weights.

use regard_simd::Simd;

/// Memory that is read soon, asked for while nothing else is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask {
    pub(super) at: *const u8,
    /// Cache lines for each step of a pass over scores.
    pub(super) lines: usize,
}

impl Ask {
    /// So many keep memory busy on Zen 4: int8 gains a twentieth (8 and more win nothing), longer elements little.
    pub(super) const LINES: usize = 4;

    /// Asks for the lines of a step.
    #[inline(always)]
    pub(super) fn step<S: Simd>(self, s: S, step: usize) {
        for line in 0..self.lines {
            s.prefetch_far(self.at.wrapping_add((step * self.lines + line) * 64).cast());
        }
    }
}
