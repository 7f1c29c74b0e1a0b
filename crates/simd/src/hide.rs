//! Numbers of which the compiler cannot see how they came about.

/// The same number, as one that the compiler knows nothing of.
///
/// For the distances of rows that a loop walks abreast: told that they lie one stride apart, LLVM keeps one pointer and computes the
/// others anew in each pass, ten instructions for eight rows, where registers for all of them were free.
///
/// Only x86-64 has the addressing modes that make it pay; elsewhere the number is left as it is.
#[inline(always)]
pub fn hide(number: usize) -> usize {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        let mut hidden = number;
        // SAFETY: no instruction is executed: the result is the operand.
        unsafe { core::arch::asm!("/* {0} */", inout(reg) hidden, options(pure, nomem, nostack, preserves_flags)) };
        hidden
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    number
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_stay_what_they_are() {
        for number in [0, 1, 4096, usize::MAX] {
            assert_eq!(super::hide(number), number);
        }
    }
}
