//! Scalar products of one row with four others at a time.

use regard_simd::{Element, Simd};

/// `<q, k_i>` in f32: in each lane a chain of multiply-adds over the columns `lane`, `lane + L`, .. in ascending order, then a sum
/// over the lanes of a quarter and one over the quarters. The same for each `i`, and wherever the rows lie.
///
/// # Safety
/// All rows have `d` elements.
#[inline(always)]
pub(crate) unsafe fn four_dots<S: Simd, E: Element>(s: S, q: *const f32, k: [*const E; 4], d: usize) -> [f32; 4] {
    let mut acc = [s.zero(); 4];
    let whole = d / S::LANES * S::LANES;
    let mut parts = [0.0; 16];
    // SAFETY: the caller's contract; a vector has at most 16 lanes.
    unsafe {
        for c in (0..whole).step_by(S::LANES) {
            let q = s.load(q.add(c));
            for i in 0..4 {
                acc[i] = s.mul_add(q, E::load(s, k[i].add(c)), acc[i]);
            }
        }
        if whole < d {
            let q = s.load_first(q.add(whole), d - whole);
            for i in 0..4 {
                acc[i] = s.mul_add(q, E::load_first(s, k[i].add(whole), d - whole), acc[i]);
            }
        }
        s.store(parts.as_mut_ptr(), s.quad_sums(acc));
    }
    let mut dots = [0.0; 4];
    for i in 0..4 {
        let parts = &parts[i * (S::LANES / 4)..][..S::LANES / 4];
        let mut sum = parts[0];
        for part in &parts[1..] {
            sum += part;
        }
        dots[i] = sum;
    }
    dots
}
