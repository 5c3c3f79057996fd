//! Numbers of the TPM 2.0 library specification, part 2, as the wire carries them.

use core::fmt;

/// TPM_ST: tag of commands and responses.
pub mod tag {
    /// No sessions.
    pub const NO_SESSIONS: u16 = 0x8001;
    /// With an authorisation area.
    pub const SESSIONS: u16 = 0x8002;
    /// TPMS_ATTEST of TPM2_Certify.
    pub const ATTEST_CERTIFY: u16 = 0x8017;
    /// TPMS_ATTEST of TPM2_Quote.
    pub const ATTEST_QUOTE: u16 = 0x8018;
    /// TPMT_TK_CREATION.
    pub const CREATION: u16 = 0x8021;
    /// TPMT_TK_AUTH of TPM2_PolicySecret.
    pub const AUTH_SECRET: u16 = 0x8023;
}

/// TPM_CC: command codes.
pub mod cc {
    /// TPM2_EvictControl.
    pub const EVICT_CONTROL: u32 = 0x120;
    /// TPM2_CreatePrimary.
    pub const CREATE_PRIMARY: u32 = 0x131;
    /// TPM2_StartUp.
    pub const STARTUP: u32 = 0x144;
    /// TPM2_ActivateCredential.
    pub const ACTIVATE_CREDENTIAL: u32 = 0x147;
    /// TPM2_Certify.
    pub const CERTIFY: u32 = 0x148;
    /// TPM2_NV_Read.
    pub const NV_READ: u32 = 0x14e;
    /// TPM2_PolicySecret.
    pub const POLICY_SECRET: u32 = 0x151;
    /// TPM2_HMAC.
    pub const HMAC: u32 = 0x155;
    /// TPM2_Quote.
    pub const QUOTE: u32 = 0x158;
    /// TPM2_FlushContext.
    pub const FLUSH_CONTEXT: u32 = 0x165;
    /// TPM2_NV_ReadPublic.
    pub const NV_READ_PUBLIC: u32 = 0x169;
    /// TPM2_PolicyLocality.
    pub const POLICY_LOCALITY: u32 = 0x16f;
    /// TPM2_ReadPublic.
    pub const READ_PUBLIC: u32 = 0x173;
    /// TPM2_StartAuthSession.
    pub const START_AUTH_SESSION: u32 = 0x176;
    /// TPM2_GetCapability.
    pub const GET_CAPABILITY: u32 = 0x17a;
    /// TPM2_GetRandom.
    pub const GET_RANDOM: u32 = 0x17b;
    /// TPM2_PCR_Read.
    pub const PCR_READ: u32 = 0x17e;
    /// TPM2_PolicyPCR.
    pub const POLICY_PCR: u32 = 0x17f;
    /// TPM2_PCR_Extend.
    pub const PCR_EXTEND: u32 = 0x182;
}

/// TPM_ALG_ID: algorithms.
pub mod alg {
    /// RSA object.
    pub const RSA: u16 = 0x1;
    /// SHA-1.
    pub const SHA1: u16 = 0x4;
    /// HMAC.
    pub const HMAC: u16 = 0x5;
    /// AES.
    pub const AES: u16 = 0x6;
    /// Keyed hash object.
    pub const KEYEDHASH: u16 = 0x8;
    /// SHA-256.
    pub const SHA256: u16 = 0xb;
    /// SHA-384.
    pub const SHA384: u16 = 0xc;
    /// SHA-512.
    pub const SHA512: u16 = 0xd;
    /// No algorithm.
    pub const NULL: u16 = 0x10;
    /// SM3 with 256 bits.
    pub const SM3_256: u16 = 0x12;
    /// RSA signature, PKCS #1 version 1.5.
    pub const RSASSA: u16 = 0x14;
    /// ECDSA.
    pub const ECDSA: u16 = 0x18;
    /// Elliptic-curve object.
    pub const ECC: u16 = 0x23;
    /// SHA3-256.
    pub const SHA3_256: u16 = 0x27;
    /// SHA3-384.
    pub const SHA3_384: u16 = 0x28;
    /// SHA3-512.
    pub const SHA3_512: u16 = 0x29;
    /// Cipher feedback.
    pub const CFB: u16 = 0x43;

    /// Bytes of a digest of hash `algorithm`, if it is one the TCG has registered.
    #[must_use]
    pub const fn digest_size(algorithm: u16) -> Option<usize> {
        match algorithm {
            SHA1 => Some(20),
            SHA256 | SM3_256 | SHA3_256 => Some(32),
            SHA384 | SHA3_384 => Some(48),
            SHA512 | SHA3_512 => Some(64),
            _ => None,
        }
    }
}

/// TPM_RH and other handles.
pub mod handle {
    /// The owner hierarchy.
    pub const OWNER: u32 = 0x4000_0001;
    /// The null hierarchy.
    pub const NULL: u32 = 0x4000_0007;
    /// The password session.
    pub const PASSWORD: u32 = 0x4000_0009;
    /// The endorsement hierarchy.
    pub const ENDORSEMENT: u32 = 0x4000_000b;
    /// First handle of a loaded session: its top byte is the range's number.
    pub const LOADED_SESSIONS: u32 = 0x0200_0000;
    /// First handle of a transient object.
    pub const TRANSIENT: u32 = 0x8000_0000;
    /// First handle of a persistent object.
    pub const PERSISTENT: u32 = 0x8100_0000;
}

/// TPM_CAP: what TPM2_GetCapability can be asked.
pub mod capability {
    /// Handles of one range.
    pub const HANDLES: u32 = 1;
    /// Allocation of PCR banks.
    pub const PCRS: u32 = 5;
    /// Properties.
    pub const PROPERTIES: u32 = 6;
}

/// TPM_PT: properties.
pub mod property {
    /// Four characters of the manufacturer.
    pub const MANUFACTURER: u32 = 0x105;
    /// First half of the firmware version.
    pub const FIRMWARE_VERSION_1: u32 = 0x10b;
    /// Largest command, in bytes.
    pub const MAX_COMMAND_SIZE: u32 = 0x11e;
    /// TPMA_PERMANENT.
    pub const PERMANENT: u32 = 0x200;
}

/// TPM_RC: what the TPM answered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ResponseCode(pub u32);

impl ResponseCode {
    /// Done.
    pub const SUCCESS: Self = Self(0);
    /// TPM2_Startup has not run, or has run already.
    pub const INITIALIZE: Self = Self(0x100);
    /// The TPM has failed its self test and answers little else.
    pub const FAILURE: Self = Self(0x101);
    /// The command is not implemented.
    pub const COMMAND_CODE: Self = Self(0x143);
    /// The entity's authorisation value or policy may not be used in this role.
    pub const AUTH_UNAVAILABLE: Self = Self(0x12f);
    /// A PCR changed between TPM2_PolicyPCR and the use of the session.
    pub const PCR_CHANGED: Self = Self(0x128);
    /// An authorisation failed and counts towards lock-out.
    pub const AUTH_FAIL: Self = Self(0x08e);
    /// A value is out of range.
    pub const VALUE: Self = Self(0x084);
    /// A handle is not the right kind.
    pub const HANDLE: Self = Self(0x08b);
    /// A policy check failed.
    pub const POLICY_FAIL: Self = Self(0x09d);
    /// An authorisation failed and does not count.
    pub const BAD_AUTH: Self = Self(0x0a2);
    /// The same, as the TPM tells it of the first session.
    pub const BAD_AUTH_OF_SESSION_1: Self = Self(0x9a2);
    /// No room for another object.
    pub const OBJECT_MEMORY: Self = Self(0x902);
    /// No room for another session.
    pub const SESSION_MEMORY: Self = Self(0x903);
    /// No free session handle.
    pub const SESSION_HANDLES: Self = Self(0x905);
    /// No room in non-volatile memory.
    pub const NV_SPACE: Self = Self(0x14b);
    /// Not at this locality.
    pub const LOCALITY: Self = Self(0x907);
    /// Suspended; the same command may be sent again.
    pub const YIELDED: Self = Self(0x908);
    /// The command was cancelled.
    pub const CANCELED: Self = Self(0x909);
    /// Self tests are running; the same command may be sent again.
    pub const TESTING: Self = Self(0x90a);
    /// The first handle names nothing.
    pub const REFERENCE_H0: Self = Self(0x910);
    /// The first session is not loaded.
    pub const REFERENCE_S0: Self = Self(0x918);
    /// The seventh session is not loaded.
    pub const REFERENCE_S6: Self = Self(0x91e);
    /// Non-volatile memory is written too often; the same command may be sent again.
    pub const NV_RATE: Self = Self(0x920);
    /// Locked out after failed authorisations.
    pub const LOCKOUT: Self = Self(0x921);
    /// Could not start; the same command may be sent again.
    pub const RETRY: Self = Self(0x922);
    /// Non-volatile memory cannot be written now; the same command may be sent again.
    pub const NV_UNAVAILABLE: Self = Self(0x923);

    /// The code without the number of the handle, session or parameter that it blames
    /// (TPM 2.0 library, part 1, "Response code details").
    #[must_use]
    pub const fn base(self) -> Self {
        if self.0 & 0x80 != 0 { Self(self.0 & 0xbf) } else { self }
    }

    /// Whether sending the very same command again is what the specification asks for.
    #[must_use]
    pub const fn is_retry(self) -> bool {
        matches!(self, Self::RETRY | Self::YIELDED | Self::TESTING | Self::NV_RATE | Self::NV_UNAVAILABLE)
    }
}

impl fmt::Debug for ResponseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#05x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_compared_without_the_number_it_blames() {
        assert_eq!(ResponseCode(0x99d).base(), ResponseCode::POLICY_FAIL);
        assert_eq!(ResponseCode(0x98e).base(), ResponseCode::AUTH_FAIL);
        assert_eq!(ResponseCode(0x1c4).base(), ResponseCode::VALUE);
        assert_eq!(ResponseCode(0x907).base(), ResponseCode::LOCALITY);
    }

    #[test]
    fn only_codes_that_ask_for_it_are_retried() {
        for (code, want) in
            [(0x922, true), (0x908, true), (0x90a, true), (0x907, false), (0x909, false), (0, false)]
        {
            assert_eq!(ResponseCode(code).is_retry(), want, "{code:#x}");
        }
    }
}
