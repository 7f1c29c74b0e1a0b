//! How the operating system keeps memory.

/// Asks the operating system to keep this memory in large pages, where it has them: 2 MiB instead of 4 KiB on Linux and x86-64.
///
/// For keys and values that no cache holds, before they are first written; later it takes effect bit by bit, in the background. A
/// core that streams through memory looks up where each page lies, and while it does, little else comes: on a Xeon with AMX, under
/// a hypervisor, decoding in large pages is 1.2 to 1.6 times as fast. With large pages everywhere (`always` in
/// `/sys/kernel/mm/transparent_hugepage/enabled`) nothing is left to ask for, and with `never` nothing is to be had.
///
/// It is a hint: contents stay as they are, and nothing says whether it was taken. Parts of pages at either end are left alone.
/// Does nothing on other systems than Linux.
///
/// ```
/// let mut keys: Vec<f32> = Vec::with_capacity(8 * 4096 * 128);
/// regard_simd::advise_large_pages(keys.spare_capacity_mut());
/// keys.resize(keys.capacity(), 0.0);
/// ```
pub fn advise_large_pages<T>(memory: &mut [T]) {
    #[cfg(all(target_os = "linux", not(miri)))]
    linux::advise(memory.as_mut_ptr().cast(), size_of_val(memory));
    #[cfg(not(all(target_os = "linux", not(miri))))]
    let _ = memory;
}

#[cfg(all(target_os = "linux", not(miri)))]
mod linux {
    /// No page is smaller than what this is a multiple of, or the system refuses.
    const SMALLEST: usize = 4096;

    pub(super) fn advise(start: *mut u8, bytes: usize) {
        let skipped = start.align_offset(SMALLEST);
        let Some(bytes) = bytes.checked_sub(skipped).map(|bytes| bytes / SMALLEST * SMALLEST) else { return };
        if bytes > 0 {
            // SAFETY: the advice changes no contents and unmaps nothing, and the memory is the caller's.
            // A refusal is no harm: pages are then as they were.
            let _ = unsafe { libc::madvise(start.wrapping_add(skipped).cast(), bytes, libc::MADV_HUGEPAGE) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_stay_as_they_are() {
        for len in [0, 1, 1000, 3 << 20] {
            let mut numbers: Vec<u32> = (0..len).collect();
            numbers.reserve(len as usize);
            advise_large_pages(numbers.spare_capacity_mut());
            numbers.resize(2 * len as usize, 7);
            let (first, rest) = numbers.split_at(len as usize);
            assert!(first.iter().copied().eq(0..len) && rest.iter().all(|x| *x == 7), "{len}");
        }
    }

    /// Where large pages are to be asked for, the system has noted it. Not where an emulator may stand between: QEMU keeps the advice
    /// to itself.
    #[test]
    #[cfg(all(target_os = "linux", target_arch = "x86_64", not(miri)))]
    fn the_advice_is_taken() {
        let setting = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
        let len = 64 << 20;
        let mut bytes: Vec<u8> = Vec::with_capacity(len);
        advise_large_pages(bytes.spare_capacity_mut());
        bytes.resize(len, 1);
        let Ok(maps) = std::fs::read_to_string("/proc/self/smaps") else {
            println!("skipped: this system does not say how memory is kept");
            return;
        };
        // The mapping of the middle of the buffer, from its first line to that of the next one.
        let middle = bytes.as_ptr().addr() + len / 2;
        let mut inside = false;
        let mut flags = None;
        for line in maps.lines() {
            let range = line.split_whitespace().next().and_then(|range| range.split_once('-'));
            let range = range.and_then(|(from, to)| {
                Some(usize::from_str_radix(from, 16).ok()?..usize::from_str_radix(to, 16).ok()?)
            });
            if let Some(range) = range {
                inside = range.contains(&middle);
            } else if inside && let Some(found) = line.strip_prefix("VmFlags:") {
                flags = Some(found.to_owned());
            }
        }
        let flags = flags.expect("the buffer is mapped");
        if setting.contains("[madvise]") {
            assert!(flags.split_whitespace().any(|flag| flag == "hg"), "{flags}");
        } else {
            println!("not looked at: large pages are '{}'", setting.trim());
        }
    }
}
