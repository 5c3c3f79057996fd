//! The hash algorithms of PCR banks that Dolmen computes, and their digests.

use sha1::Sha1;
use sha2::Sha256;
use sha2::block_api::Sha512VarCore;
use sha2::digest::block_api::{Buffer, UpdateCore, VariableOutputCore};

/// Bytes of the largest digest.
pub const MAX_DIGEST: usize = 64;

/// A hash algorithm that Dolmen computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// SHA-1: kept right so that its bank is not a free forgery; nothing relies on it.
    Sha1,
    /// SHA-256: the bank that policies and quotes use.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Sha1, Self::Sha256, Self::Sha384, Self::Sha512];

    /// TPM_ALG_ID (TCG Algorithm Registry).
    #[must_use]
    pub const fn id(self) -> u16 {
        match self {
            Self::Sha1 => 0x4,
            Self::Sha256 => 0xb,
            Self::Sha384 => 0xc,
            Self::Sha512 => 0xd,
        }
    }

    /// The algorithm with that TPM_ALG_ID, if Dolmen computes it.
    #[must_use]
    pub const fn from_id(id: u16) -> Option<Self> {
        match id {
            0x4 => Some(Self::Sha1),
            0xb => Some(Self::Sha256),
            0xc => Some(Self::Sha384),
            0xd => Some(Self::Sha512),
            _ => None,
        }
    }

    /// Bytes of a digest.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// The digest of `parts`, one after the other.
    #[must_use]
    pub fn hash(self, parts: &[&[u8]]) -> Digest {
        let mut bytes = [0; MAX_DIGEST];
        match self {
            Self::Sha1 => run::<Sha1>(parts, &mut bytes),
            Self::Sha256 => run::<Sha256>(parts, &mut bytes),
            Self::Sha384 | Self::Sha512 => run_long(self.size(), parts, &mut bytes),
        }
        Digest { algorithm: self, bytes }
    }
}

fn run<D: sha2::Digest>(parts: &[&[u8]], out: &mut [u8; MAX_DIGEST]) {
    let mut state = D::new();
    for part in parts {
        state.update(part);
    }
    let digest = state.finalize();
    for (to, from) in out.iter_mut().zip(digest.iter()) {
        *to = *from;
    }
}

/// SHA-384 and SHA-512 differ in their start values and in the length of the output alone: one piece of code
/// for both keeps the launch image small.
fn run_long(size: usize, parts: &[&[u8]], out: &mut [u8; MAX_DIGEST]) {
    // The library knows both sizes; it would refuse others.
    let Ok(mut core) = Sha512VarCore::new(size) else { return };
    let mut buffer = Buffer::<Sha512VarCore>::default();
    for part in parts {
        buffer.digest_blocks(part, |blocks| core.update_blocks(blocks));
    }
    let mut digest = Default::default();
    core.finalize_variable_core(&mut buffer, &mut digest);
    for (to, from) in out.iter_mut().take(size).zip(digest) {
        *to = from;
    }
}

/// A digest, or the value of a PCR: as many bytes as its algorithm has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest {
    algorithm: Algorithm,
    bytes: [u8; MAX_DIGEST],
}

impl Digest {
    /// All zero: a PCR just after the dynamic launch reset it.
    #[must_use]
    pub const fn zero(algorithm: Algorithm) -> Self {
        Self { algorithm, bytes: [0; MAX_DIGEST] }
    }

    /// `bytes` as a digest, if they have the algorithm's size.
    #[must_use]
    pub fn from_bytes(algorithm: Algorithm, bytes: &[u8]) -> Option<Self> {
        let mut digest = Self::zero(algorithm);
        if bytes.len() != algorithm.size() {
            return None;
        }
        digest.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(digest)
    }

    /// Its algorithm.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.algorithm.size()).unwrap_or(&[])
    }
}

impl core::fmt::Debug for Digest {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:?}:", self.algorithm)?;
        self.bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The digests of "abc" in FIPS 180-4's examples.
    const ABC: [(Algorithm, &str); 4] = [
        (Algorithm::Sha1, "a9993e364706816aba3e25717850c26c9cd0d89d"),
        (Algorithm::Sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (
            Algorithm::Sha384,
            "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7",
        ),
        (
            Algorithm::Sha512,
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
             2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        ),
    ];

    #[test]
    fn every_algorithm_hashes_the_standard_example() {
        for (algorithm, want) in ABC {
            assert_eq!(hex::encode(algorithm.hash(&[b"a", b"", b"bc"]).bytes()), want, "{algorithm:?}");
        }
    }

    #[test]
    fn ids_and_sizes_go_both_ways() {
        for algorithm in Algorithm::ALL {
            assert_eq!(Algorithm::from_id(algorithm.id()), Some(algorithm));
            assert_eq!(algorithm.hash(&[]).bytes().len(), algorithm.size());
        }
        assert_eq!(Algorithm::from_id(0x12), None);
    }

    #[test]
    fn a_digest_has_exactly_its_algorithms_size() {
        assert_eq!(Digest::from_bytes(Algorithm::Sha256, &[1; 31]), None);
        assert_eq!(Digest::from_bytes(Algorithm::Sha256, &[1; 33]), None);
        assert_eq!(Digest::from_bytes(Algorithm::Sha256, &[1; 32]).unwrap().bytes(), [1; 32]);
    }
}
