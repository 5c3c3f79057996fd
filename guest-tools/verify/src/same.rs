//! Comparison whose time does not tell where the difference is.
//!
//! Report data may hold a nonce that only the relying party and the guest know. Whoever sends evidence and
//! measures how long the answer takes must not learn it byte by byte. The other values that are compared are
//! public; they are compared the same way, so that nobody has to think about which is which.

use subtle::ConstantTimeEq;

/// Whether `a` and `b` are the same bytes. Only their lengths show in the time that it takes.
pub(crate) fn same(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_bytes_are_the_same_and_others_are_not() {
        assert!(same(b"nonce", b"nonce") && same(b"", b""));
        for other in [&b"noncf"[..], b"monce", b"nonc", b"nonce0", b""] {
            assert!(!same(b"nonce", other), "{other:?}");
        }
    }
}
