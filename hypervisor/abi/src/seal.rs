//! Sealed blobs as they look outside, and what they can be bound to.
#![expect(
    missing_debug_implementations,
    reason = "of helper types that zerocopy derives through a macro; every structure here derives it"
)]

use bitflags::bitflags;

use crate::REGISTER_COUNT;
use crate::layout::wire;

/// Most bytes that one blob seals.
pub const MAX_SECRET: usize = 16 * 1024;
/// Longest label in bytes.
pub const MAX_LABEL: usize = 128;
/// Bytes of the authentication tag at the end of a blob.
pub const TAG_BYTES: usize = 16;
/// Bytes that a blob has more than the secret in it.
pub const SEALED_OVERHEAD: usize = size_of::<BlobHeader>().saturating_add(TAG_BYTES);

bitflags! {
    /// What a blob is bound to beside the hypervisor's measurement: bit n is the value of Gn when it was sealed.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SealPolicy: u32 {
        /// The guest's identity: its name, image and whole configuration. Demanded in every policy.
        const G0 = 1 << 0;
        /// Register 1.
        const G1 = 1 << 1;
        /// Register 2.
        const G2 = 1 << 2;
        /// Register 3.
        const G3 = 1 << 3;
        /// Register 4.
        const G4 = 1 << 4;
        /// Register 5.
        const G5 = 1 << 5;
        /// Register 6.
        const G6 = 1 << 6;
        /// Register 7.
        const G7 = 1 << 7;
    }
}

impl SealPolicy {
    /// The policy with exactly these bits, if it is one: no unknown bit, and G0 among them.
    pub const fn checked(bits: u32) -> Option<Self> {
        match Self::from_bits(bits) {
            Some(policy) if policy.contains(Self::G0) => Some(policy),
            Some(_) | None => None,
        }
    }

    /// Whether the value of register `index` is bound.
    pub const fn selects(self, index: usize) -> bool {
        index < REGISTER_COUNT && self.bits() & (1 << index) != 0
    }
}

impl Default for SealPolicy {
    fn default() -> Self {
        Self::G0
    }
}

wire! {
    /// Start of a sealed blob; as many bytes of ciphertext as `length` says and the tag follow.
    ///
    /// The header is authenticated with the secret: a blob with any bit changed does not open.
    pub struct BlobHeader {
        /// `DOLMSEAL`.
        pub magic: [u8; 8],
        /// 1.
        pub version: u32,
        /// What the blob is bound to (SealPolicy bits).
        pub policy: u32,
        /// Bytes sealed.
        pub length: u32,
        /// Zero.
        pub reserved: u32,
        /// Random, new for each blob: its key is derived with it.
        pub salt: [u8; 32],
    }
}

impl BlobHeader {
    /// Marks a sealed blob.
    pub const MAGIC: [u8; 8] = *b"DOLMSEAL";
    /// Version of the format.
    pub const VERSION: u32 = 1;
}

const _: () = {
    assert!(size_of::<BlobHeader>() == 56);
    assert!(core::mem::offset_of!(BlobHeader, salt) == 24);
    assert!(SEALED_OVERHEAD == 72);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_needs_g0_and_no_unknown_bit() {
        for (bits, want) in [
            (0, None),
            (1, Some(SealPolicy::G0)),
            (2, None),
            (0x81, Some(SealPolicy::G0 | SealPolicy::G7)),
            (0x101, None),
            (0x8000_0001, None),
        ] {
            assert_eq!(SealPolicy::checked(bits), want, "{bits:#x}");
        }
    }

    #[test]
    fn a_policy_selects_the_registers_of_its_bits() {
        let policy = SealPolicy::G0 | SealPolicy::G3;
        let selected: Vec<usize> = (0..40).filter(|i| policy.selects(*i)).collect();
        assert_eq!(selected, [0, 3]);
    }
}
