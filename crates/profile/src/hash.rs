//! The one hash of the crate: short, stable, and the same on every platform and in every version.

/// A fingerprint of a list of texts: 64-bit FNV-1a over their UTF-8 bytes, a zero byte after each, as 16 lower-case
/// hexadecimal digits.
///
/// It tells apart things that differ by accident (another machine, an edited kernel); it is no defence against
/// somebody who wants a collision.
///
/// ```
/// assert_eq!(regard_profile::fingerprint(["a", "b"]), regard_profile::fingerprint(["a", "b"]));
/// assert_ne!(regard_profile::fingerprint(["a", "b"]), regard_profile::fingerprint(["ab"]));
/// ```
pub fn fingerprint<T: AsRef<str>>(parts: impl IntoIterator<Item = T>) -> String {
    let mut hash = OFFSET;
    for part in parts {
        for &byte in part.as_ref().as_bytes().iter().chain(&[0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(PRIME);
        }
    }
    format!("{hash:016x}")
}

/// The offset basis of 64-bit FNV.
const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

/// The prime of 64-bit FNV.
const PRIME: u64 = 0x0000_0100_0000_01b3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_algorithm_is_fnv_1a() {
        // Published test vector: FNV-1a of "a" followed by NUL is the hash of the two bytes 61 00.
        assert_eq!(fingerprint::<&str>([]), "cbf29ce484222325");
        let one = (OFFSET ^ 0x61).wrapping_mul(PRIME);
        assert_eq!(one, 0xaf63_dc4c_8601_ec8c, "FNV-1a of \"a\"");
        assert_eq!(fingerprint(["a"]), format!("{:016x}", one.wrapping_mul(PRIME)));
    }

    #[test]
    fn parts_do_not_run_together() {
        let all = [fingerprint(["ab", "c"]), fingerprint(["a", "bc"]), fingerprint(["abc"]), fingerprint(["abc", ""])];
        for (i, a) in all.iter().enumerate() {
            assert!(all.iter().skip(i + 1).all(|b| a != b));
        }
    }
}
