//! TPM2_Certify of an attestation key by itself: who asks learns that this launch can use the key now.
//!
//! Specification: TPM 2.0 library, part 3, 18.2 (TPM2_Certify). The key is named twice: as what is certified, which
//! wants its ADMIN role, and as what signs, which wants its USER role. userWithAuth and adminWithPolicy are clear in our
//! templates, so the first is the key's empty value and the second its policy.

use crate::attest::CertifyAttest;
use crate::attestation::AttestationKey;
use crate::codec::EncodeError;
use crate::command::{begin_tagged, end};
use crate::constant::{alg, cc, tag};
use crate::quote::{QuoteError, decode_attested};
use crate::response::TpmError;
use crate::session::{NONCE, write_password_entry, write_policy_entry};

/// TPM2_Certify with the key's own scheme; the signing is authorised by `policy`, which ends with it.
///
/// # Errors
/// [`EncodeError`] if `buf` is too short.
pub fn certify<'b>(
    buf: &'b mut [u8],
    key: u32,
    policy: u32,
    nonce: &[u8; NONCE],
    extra_data: &[u8],
) -> Result<&'b [u8], EncodeError> {
    let mut w = begin_tagged(buf, tag::SESSIONS, cc::CERTIFY)?;
    w.u32(key)?;
    w.u32(key)?;
    let area = w.len();
    w.u32(0)?;
    write_password_entry(&mut w)?;
    write_policy_entry(&mut w, policy, nonce)?;
    w.close_u32(area)?;
    w.tpm2b(extra_data)?;
    w.u16(alg::NULL)?;
    end(w)
}

/// The answer to [`certify`]: TPMS_ATTEST and TPMT_SIGNATURE.
///
/// # Errors
/// As [`crate::response::Response::plain`].
pub fn decode_certify(bytes: &[u8]) -> Result<(&[u8], &[u8]), TpmError> {
    decode_attested(bytes, 2)
}

/// Checks that the attestation is about this key, by this key, with this extra data.
pub(crate) fn check(
    attest: &[u8],
    signature: &[u8],
    extra_data: &[u8],
    ak: &AttestationKey,
) -> Result<(), QuoteError> {
    let parsed =
        CertifyAttest::parse(attest).map_err(|error| QuoteError::Command(cc::CERTIFY, error.into()))?;
    let asked = parsed.extra_data == extra_data
        && parsed.qualified_signer == ak.qualified_name()
        && parsed.name == ak.name
        && parsed.qualified_name == ak.qualified_name();
    if !asked {
        return Err(QuoteError::OtherAttestation);
    }
    if ak.signs(attest, signature) { Ok(()) } else { Err(QuoteError::BadSignature) }
}
