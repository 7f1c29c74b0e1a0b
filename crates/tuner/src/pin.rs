//! Work on one core.

/// What [`pinned`] gives.
#[derive(Clone, Copy, Debug)]
pub struct Pinned<R> {
    /// What the work gave.
    pub value: R,
    /// The core that the work stayed on, as the operating system numbers it; `None` if it could not be pinned and ran
    /// wherever the scheduler put it.
    pub core: Option<usize>,
}

/// Runs `work` on a new thread that stays on one of the cores that the caller may use.
///
/// The affinity of the calling thread is left alone. Threads that the work itself starts stay on the same core.
/// Where threads cannot be pinned the work runs all the same, and the result says so.
///
/// # Panics
/// If no thread can be started, and if `work` panics (with the same payload).
pub fn pinned<R: Send>(work: impl FnOnce() -> R + Send) -> Pinned<R> {
    let run = || {
        let core = choose().filter(|&core| core_affinity::set_for_current(core));
        Pinned { value: work(), core: core.map(|core| core.id) }
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The second core of those that this thread may run on, or the only one.
///
/// Not the first, which serves most interrupts of most systems; not the last, which is a slow one where there are two
/// kinds.
fn choose() -> Option<core_affinity::CoreId> {
    // These are the numbers of the cores that are allowed, which need not start at 0 or be contiguous.
    let cores = core_affinity::get_core_ids()?;
    cores.get(1).or(cores.first()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_stays_on_an_allowed_core_and_the_caller_keeps_its_own() {
        let before = core_affinity::get_core_ids();
        let pinned = pinned(core_affinity::get_core_ids);
        assert_eq!(core_affinity::get_core_ids(), before);
        if let (Some(core), Some(inside), Some(before)) = (pinned.core, pinned.value, before) {
            assert!(before.iter().any(|allowed| allowed.id == core));
            if cfg!(target_os = "linux") {
                assert_eq!(inside, [core_affinity::CoreId { id: core }]);
            }
        }
    }

    #[test]
    #[should_panic(expected = "reason of the work")]
    fn a_panic_comes_through() {
        pinned(|| panic!("reason of the work"));
    }
}
