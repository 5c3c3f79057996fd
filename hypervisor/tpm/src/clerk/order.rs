//! What the clerk can be sent for, and what comes back.

use crate::attestation::AkKind;
use crate::codec::DecodeError;
use crate::constant::ResponseCode;
use crate::quote::{MAX_EXTRA_DATA, Quote, QuoteError};
use crate::response::TpmError;

/// Bytes of the longest answer: a certificate.
pub const MAX_ANSWER: usize = 4096;
/// Bytes of the longest credential (TPM2B_ID_OBJECT without its size): an HMAC and an encrypted digest, each with a size.
pub const MAX_CREDENTIAL: usize = 132;
/// Bytes of the longest encrypted seed (TPM2B_ENCRYPTED_SECRET without its size): one RSA-2048 block.
pub const MAX_SECRET: usize = 256;

/// Some bytes, at most `N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parcel<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Parcel<N> {
    /// A copy of `bytes`, if they fit.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut parcel = Self { bytes: [0; N], len: bytes.len() };
        parcel.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(parcel)
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

/// Which endorsement key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EkKind {
    /// RSA-2048.
    Rsa,
    /// ECC P-256.
    Ecc,
}

impl EkKind {
    /// The NV index of its certificate (TCG EK Credential Profile, "NV indices of the low range").
    #[must_use]
    pub const fn certificate(self) -> u32 {
        match self {
            Self::Rsa => 0x01c0_0002,
            Self::Ecc => 0x01c0_000a,
        }
    }
}

/// First NV index of the chain of certificates behind those of the endorsement keys; its parts have the next ones (TCG EK
/// Credential Profile, "EK certificate chains").
pub(super) const CHAIN: u32 = 0x01c0_0100;

/// What the clerk is sent for.
#[expect(clippy::large_enum_variant, reason = "there is no heap on this path, and one errand at a time")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// A quote.
    Quote {
        /// By this key.
        key: AkKind,
        /// Over these registers of the SHA-256 bank.
        pcrs: u32,
        /// With this extra data.
        data: Parcel<MAX_EXTRA_DATA>,
        /// And with the registers' values, 32 bytes for each of 24, zeroes for those that were not quoted.
        with_values: bool,
    },
    /// An attestation key's attestation of itself.
    Certify {
        /// The key.
        key: AkKind,
        /// With this extra data.
        data: Parcel<MAX_EXTRA_DATA>,
    },
    /// TPMT_PUBLIC of an attestation key.
    Public(AkKind),
    /// TPMT_PUBLIC of an endorsement key.
    EndorsementKey(EkKind),
    /// An endorsement key's certificate; no bytes if the TPM has none.
    Certificate(EkKind),
    /// A part of the chain of certificates behind that; no bytes if the TPM has none.
    Chain(u8),
    /// What is in a credential for an attestation key.
    Activate {
        /// The key that it was made for.
        key: AkKind,
        /// The endorsement key that it was encrypted to.
        ek: EkKind,
        /// TPM2B_ID_OBJECT without its size.
        credential: Parcel<MAX_CREDENTIAL>,
        /// TPM2B_ENCRYPTED_SECRET without its size.
        secret: Parcel<MAX_SECRET>,
    },
    /// Another salted session in place of one that is lost, and no answer. An activation sees to that by itself.
    Renew,
}

impl Errand {
    /// Whether it needs the salted session.
    pub(super) const fn needs_session(&self) -> bool {
        matches!(self, Self::Activate { .. } | Self::Renew)
    }

    /// Whether a credential is to be opened.
    pub(super) const fn is_activation(&self) -> bool {
        matches!(self, Self::Activate { .. })
    }

    /// The attestation key that must be loaded for it.
    pub(super) const fn key(&self) -> Option<AkKind> {
        match self {
            Self::Quote { key, .. }
            | Self::Certify { key, .. }
            | Self::Public(key)
            | Self::Activate { key, .. } => Some(*key),
            Self::EndorsementKey(_) | Self::Certificate(_) | Self::Chain(_) | Self::Renew => None,
        }
    }
}

/// What an errand brings.
#[expect(clippy::large_enum_variant, reason = "there is no heap on this path, and one errand at a time")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A quote, or a key's attestation of itself; the values of the registers, if they were wanted, are in
    /// [`super::Clerk::answer`].
    Quote(Quote),
    /// Bytes, in [`super::Clerk::answer`].
    Bytes,
}

/// Why an errand failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrandError {
    /// The quote failed.
    Quote(QuoteError),
    /// The command with this code (TPM_CC) failed.
    Command(u32, TpmError),
    /// What the TPM made is not the template: what of it differs.
    NotTheTemplate(DecodeError),
    /// The TPM is in lockout, and would open no credential.
    InLockout,
    /// The endorsement hierarchy got an authorisation value after the launch.
    EndorsementValue,
    /// A register changed between the quote and the reading of its value.
    Changed,
    /// The key that was just made is gone.
    NoKey,
    /// The salted session is out of step with the TPM. The next errand that needs it begins with another.
    SessionLost,
}

impl ErrandError {
    /// The TPM's own response code, if it refused; 0 otherwise.
    #[must_use]
    pub const fn response_code(&self) -> u32 {
        match self {
            Self::Quote(error) => error.response_code(),
            Self::Command(_, TpmError::Refused(code)) => code.0,
            Self::Changed => ResponseCode::PCR_CHANGED.0,
            Self::InLockout => ResponseCode::LOCKOUT.0,
            Self::EndorsementValue => ResponseCode::BAD_AUTH_OF_SESSION_1.0,
            Self::Command(
                _,
                TpmError::Encode(_) | TpmError::Transport(_) | TpmError::Decode(_) | TpmError::Forged,
            )
            | Self::NotTheTemplate(_)
            | Self::NoKey
            | Self::SessionLost => 0,
        }
    }
}
