//! The sealing root that the machine's owner provisioned: which key it must be.

use core::ops::RangeInclusive;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::ManifestError;

/// A key at a persistent handle of the TPM that serves as sealing root, in place of the primary key that a launch makes
/// itself (`docs/tpm.md`, "Owner with an authorisation value").
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SealingRoot {
    /// Its handle, one of [`SealingRoot::HANDLES`].
    pub handle: u32,
    /// Its Name: [`SealingRoot::NAME_ALGORITHM`], then the digest of its public area.
    pub name: [u8; Self::NAME_BYTES],
    /// Must be zero.
    pub reserved: [u8; 2],
}

const _: () = assert!(size_of::<SealingRoot>() == 40);

impl SealingRoot {
    /// Handles that a TPM's owner can make a key persistent at (TPM 2.0 library, part 3, TPM2_EvictControl).
    pub const HANDLES: RangeInclusive<u32> = 0x8100_0000..=0x817f_ffff;
    /// Bytes of a Name: an algorithm and a SHA-256 digest.
    pub const NAME_BYTES: usize = 34;
    /// TPM_ALG_SHA256, which each key of ours has as name algorithm.
    pub const NAME_ALGORITHM: [u8; 2] = [0, 0x0b];

    /// Checks it field by field.
    pub(super) fn check(&self) -> Result<(), ManifestError> {
        if !Self::HANDLES.contains(&self.handle) {
            return Err(ManifestError::RootHandle(self.handle));
        }
        if !self.name.starts_with(&Self::NAME_ALGORITHM) {
            return Err(ManifestError::RootName);
        }
        if self.reserved != [0; 2] {
            return Err(ManifestError::RootNotZero);
        }
        Ok(())
    }
}
