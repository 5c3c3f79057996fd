//! Hashing of bytes that come in pieces, in every active bank at once.
//!
//! Guest components are larger than what the core maps at a time; each byte is read once and goes into
//! every hash before the next piece is looked at.

use sha1::Sha1;
use sha2::{Digest as _, Sha256, Sha384, Sha512};

use crate::bank::{BankSet, DigestSet};
use crate::digest::{Algorithm, Digest};

/// Hashes in progress: those of the active banks, and SHA-384, which guest identities are made of.
#[derive(Debug)]
pub struct Hasher {
    banks: BankSet,
    sha1: Option<Sha1>,
    sha256: Option<Sha256>,
    sha384: Sha384,
    sha512: Option<Sha512>,
}

impl Hasher {
    /// Begins with no bytes.
    #[must_use]
    pub fn new(banks: &BankSet) -> Self {
        let is_active = |wanted: Algorithm| banks.algorithms().any(|algorithm| algorithm == wanted);
        Self {
            banks: *banks,
            sha1: is_active(Algorithm::Sha1).then(Sha1::new),
            sha256: is_active(Algorithm::Sha256).then(Sha256::new),
            sha384: Sha384::new(),
            sha512: is_active(Algorithm::Sha512).then(Sha512::new),
        }
    }

    /// Goes on with the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        if let Some(state) = &mut self.sha1 {
            state.update(bytes);
        }
        if let Some(state) = &mut self.sha256 {
            state.update(bytes);
        }
        self.sha384.update(bytes);
        if let Some(state) = &mut self.sha512 {
            state.update(bytes);
        }
    }

    /// The digests of all bytes: one for each active bank, and SHA-384.
    #[must_use]
    pub fn finish(self) -> (DigestSet, [u8; 48]) {
        let sha384: [u8; 48] = self.sha384.finalize().into();
        let (sha1, sha256, sha512) = (
            self.sha1.map(Sha1::finalize),
            self.sha256.map(Sha256::finalize),
            self.sha512.map(Sha512::finalize),
        );
        let set = DigestSet::from_fn(&self.banks, |algorithm| {
            let bytes: Option<&[u8]> = match algorithm {
                Algorithm::Sha1 => sha1.as_ref().map(AsRef::as_ref),
                Algorithm::Sha256 => sha256.as_ref().map(AsRef::as_ref),
                Algorithm::Sha384 => Some(&sha384),
                Algorithm::Sha512 => sha512.as_ref().map(AsRef::as_ref),
            };
            // `new` began a hash for every algorithm that the banks list.
            bytes.and_then(|bytes| Digest::from_bytes(algorithm, bytes)).unwrap_or(Digest::zero(algorithm))
        });
        (set, sha384)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "takes too long in the interpreter")]
    fn pieces_hash_to_what_the_whole_hashes_to_in_every_bank() {
        let banks = BankSet::select(Algorithm::ALL.map(|a| (a.id(), 0xff_ffff)).into_iter()).unwrap();
        let whole: Vec<u8> = (0..=255).cycle().take(10_000).collect();
        let mut hasher = Hasher::new(&banks);
        for piece in whole.chunks(777) {
            hasher.update(piece);
        }
        let (set, sha384) = hasher.finish();
        let want = DigestSet::of(&banks, &whole);
        assert!(set.iter().eq(want.iter()));
        assert_eq!(Some(&sha384[..]), want.get(Algorithm::Sha384));
    }

    #[test]
    fn the_identity_hash_is_there_where_no_bank_has_it() {
        let banks = BankSet::select([(Algorithm::Sha256.id(), 0xff_ffff)].into_iter()).unwrap();
        let mut hasher = Hasher::new(&banks);
        hasher.update(b"kernel");
        let (set, sha384) = hasher.finish();
        assert_eq!(set.iter().count(), 1);
        assert_eq!(&sha384, Algorithm::Sha384.hash(&[b"kernel"]).bytes());
    }
}
