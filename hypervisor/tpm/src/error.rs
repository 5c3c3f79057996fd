//! What can go wrong with the keys, and what the machine's owner can do about it.

use core::fmt;

use crate::codec::DecodeError;
use crate::drbg::Exhausted;
use crate::response::TpmError;

/// Which key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyRole {
    /// The key that sessions are salted to, in the null hierarchy.
    Salt,
    /// The attestation key, in the endorsement hierarchy.
    Attestation,
    /// The sealing root, in the owner hierarchy.
    Root,
    /// The sealing root at a persistent handle.
    Provisioned,
}

impl KeyRole {
    /// What it is called to people.
    const fn word(self) -> &'static str {
        match self {
            Self::Salt => "salt key",
            Self::Attestation => "attestation key",
            Self::Root => "sealing root",
            Self::Provisioned => "provisioned sealing root",
        }
    }

    /// The hierarchy that it lives in.
    const fn hierarchy(self) -> &'static str {
        match self {
            Self::Salt => "null",
            Self::Attestation => "endorsement",
            Self::Root | Self::Provisioned => "owner",
        }
    }
}

/// Why there are no keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// The command with this code (TPM_CC) failed.
    Command(u32, TpmError),
    /// The SHA-256 bank is off, or lacks PCR 17 or 18.
    BankOff,
    /// PCR 17 is not what this launch must have, so the policy cannot be met.
    NotThisLaunch,
    /// The TPM does not take the commands as coming from locality 2.
    WrongLocality,
    /// The hierarchy that this key lives in has an authorisation value.
    HierarchyHasAuth(KeyRole),
    /// The public area is not our template: what of it differs.
    NotTheTemplate(KeyRole, DecodeError),
    /// The Name does not follow from the public area, or is not the pinned one.
    WrongName(KeyRole),
    /// There is no key at the persistent handle.
    NotProvisioned(u32),
    /// The random generator needs a seed.
    NoSeed,
}

impl From<Exhausted> for KeyError {
    fn from(_: Exhausted) -> Self {
        Self::NoSeed
    }
}

impl KeyError {
    /// What to do about it.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::Command(..) => {
                "check that the TPM works at locality 2 and is not shared with other software"
            }
            Self::BankOff => {
                "activate the SHA-256 bank of PCRs in the firmware setup or with tpm2_pcrallocate"
            }
            Self::NotThisLaunch => "start the machine again: something extended PCR 17 after the launch",
            Self::WrongLocality => "check that the chipset forwards localities to the TPM",
            Self::HierarchyHasAuth(KeyRole::Root) => {
                "clear the owner authorisation value (tpm2_changeauth -c owner), or run `dolmen provision` and pin in the manifest what it makes"
            }
            Self::HierarchyHasAuth(KeyRole::Salt | KeyRole::Attestation | KeyRole::Provisioned) => {
                "clear the endorsement authorisation value (tpm2_changeauth -c endorsement)"
            }
            Self::NotTheTemplate(KeyRole::Provisioned, _) | Self::WrongName(KeyRole::Provisioned) => {
                "somebody may have planted it, or it is another hypervisor's: evict it and run `dolmen provision` again"
            }
            Self::NotTheTemplate(..) | Self::WrongName(_) => "do not trust this TPM or the bus to it",
            Self::NotProvisioned(_) => {
                "run `dolmen provision` for this handle, or leave [sealing_root] out of the manifest"
            }
            Self::NoSeed => "check that the TPM answers TPM2_GetRandom",
        }
    }
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command(code, error) => write!(f, "TPM command {code:#x} failed: {error:?}"),
            Self::BankOff => f.write_str("the TPM's SHA-256 bank is off or lacks PCR 17 or 18"),
            Self::NotThisLaunch => f.write_str("PCR 17 is not the value of this launch"),
            Self::WrongLocality => f.write_str("the TPM does not see locality 2"),
            Self::HierarchyHasAuth(key) => {
                write!(f, "the {} hierarchy has an authorisation value", key.hierarchy())
            }
            Self::NotTheTemplate(key, error) => {
                write!(f, "the {} is not our template: {error:?}", key.word())
            }
            Self::WrongName(key) => write!(f, "the {} has another Name than it must have", key.word()),
            Self::NotProvisioned(handle) => write!(f, "there is no key at the persistent handle {handle:#x}"),
            Self::NoSeed => f.write_str("the random generator has no seed"),
        }?;
        write!(f, "; {}", self.remedy())
    }
}

/// Says in which command an error came up.
pub(crate) trait During<T> {
    /// Names the command.
    fn during(self, code: u32) -> Result<T, KeyError>;
}

impl<T, E: Into<TpmError>> During<T> for Result<T, E> {
    fn during(self, code: u32) -> Result<T, KeyError> {
        self.map_err(|error| KeyError::Command(code, error.into()))
    }
}
