//! What enrolment and quotes about the host need besides: credentials, certificates in NV memory, many registers at
//! once.
//!
//! Specification: TPM 2.0 library, part 3, 12.5 (ActivateCredential), 23.4 (PolicySecret), 31.6 (NV_ReadPublic), 31.13
//! (NV_Read), 22.4 (PCR_Read). The authorisations here are empty values or policies without secrets.

use crate::codec::{DecodeError, EncodeError, Reader, Writer};
use crate::command::{begin, begin_tagged, end, password_session};
use crate::constant::{ResponseCode, alg, cc, handle, tag};
use crate::crypto::SHA256_SIZE;
use crate::policy::selection;
use crate::response::{Response, TpmError, read_selection};
use crate::session::{Call, Entity, read_policy_entry};

/// Most digests in one answer to TPM2_PCR_Read (part 2, TPML_DIGEST).
const MAX_DIGESTS: u32 = 8;

/// TPM2_PolicySecret of the endorsement hierarchy, whose authorisation value is empty: the endorsement key's policy.
///
/// # Errors
/// [`EncodeError`] if `buf` is too short; the same holds for the other encoders.
pub fn policy_secret(buf: &mut [u8], session: u32) -> Result<&[u8], EncodeError> {
    let mut w = begin_tagged(buf, tag::SESSIONS, cc::POLICY_SECRET)?;
    w.u32(handle::ENDORSEMENT)?;
    w.u32(session)?;
    password_session(&mut w)?;
    w.tpm2b(&[])?; // nonceTPM
    w.tpm2b(&[])?; // cpHashA
    w.tpm2b(&[])?; // policyRef
    w.u32(0)?; // expiration
    end(w)
}

/// The answer to [`policy_secret`]: no time limit, and a ticket that says nothing.
///
/// # Errors
/// As [`Response::plain`].
pub fn decode_policy_secret(bytes: &[u8]) -> Result<(), TpmError> {
    let mut r = password_parameters(bytes)?;
    r.tpm2b()?;
    match r.u16()? {
        tag::AUTH_SECRET => {}
        other => return Err(DecodeError::Tag(other).into()),
    }
    r.u32()?;
    r.tpm2b()?;
    Ok(r.finish()?)
}

/// Marshals the parameters of TPM2_ActivateCredential: `TPM2B_ID_OBJECT` and `TPM2B_ENCRYPTED_SECRET`.
///
/// # Errors
/// As [`policy_secret`].
pub fn activate_parameters<'b>(
    buf: &'b mut [u8],
    credential: &[u8],
    secret: &[u8],
) -> Result<&'b [u8], EncodeError> {
    let mut w = Writer::new(buf);
    w.tpm2b(credential)?;
    w.tpm2b(secret)?;
    w.finish()
}

/// TPM2_ActivateCredential: opens a credential with an endorsement key, if it was made for the attestation key. That key's
/// empty authorisation value is enough, since this is not signing; the endorsement key's policy is in `policy`. What
/// was in the credential is a secret between its maker and this TPM: it crosses the bus encrypted.
#[must_use]
pub const fn activation<'a>(entities: &'a [Entity], policy: u32, parameters: &'a [u8]) -> Call<'a> {
    Call {
        code: cc::ACTIVATE_CREDENTIAL,
        entities,
        has_password: true,
        policy: Some(policy),
        parameters,
        encrypts_command: false,
        encrypts_response: true,
        returns_handle: false,
    }
}

/// The decrypted answer to [`activation`]: what was in the credential.
///
/// # Errors
/// As [`Response::plain`].
pub fn read_activated(mut parameters: Reader<'_>) -> Result<&[u8], TpmError> {
    let content = parameters.tpm2b()?;
    parameters.finish()?;
    Ok(content)
}

/// TPM2_NV_ReadPublic of an index.
///
/// # Errors
/// As [`policy_secret`].
pub fn nv_read_public(buf: &mut [u8], index: u32) -> Result<&[u8], EncodeError> {
    let mut w = begin(buf, cc::NV_READ_PUBLIC)?;
    w.u32(index)?;
    end(w)
}

/// The answer to [`nv_read_public`]: how many bytes the index holds, or `None` if it is not there.
///
/// # Errors
/// As [`Response::plain`]; an answer about another index is an error.
pub fn decode_nv_read_public(bytes: &[u8], index: u32) -> Result<Option<u16>, TpmError> {
    let mut r = match Response::plain(bytes) {
        Err(TpmError::Refused(code)) if code.base() == ResponseCode::HANDLE => return Ok(None),
        other => other?,
    };
    let mut area = Reader::new(r.tpm2b()?);
    r.tpm2b()?; // its Name
    r.finish()?;
    match area.u32()? {
        told if told == index => {}
        other => return Err(DecodeError::Value(other).into()),
    }
    area.u16()?; // name algorithm
    area.u32()?; // attributes
    area.tpm2b()?; // policy
    let size = area.u16()?;
    area.finish()?;
    Ok(Some(size))
}

/// TPM2_NV_Read of `size` bytes from `offset`, authorised by the index's own empty value.
///
/// # Errors
/// As [`policy_secret`].
pub fn nv_read(buf: &mut [u8], index: u32, offset: u16, size: u16) -> Result<&[u8], EncodeError> {
    let mut w = begin_tagged(buf, tag::SESSIONS, cc::NV_READ)?;
    w.u32(index)?;
    w.u32(index)?;
    password_session(&mut w)?;
    w.u16(size)?;
    w.u16(offset)?;
    end(w)
}

/// The answer to [`nv_read`]: exactly `size` bytes.
///
/// # Errors
/// As [`Response::plain`].
pub fn decode_nv_read(bytes: &[u8], size: u16) -> Result<&[u8], TpmError> {
    let mut r = password_parameters(bytes)?;
    let data = r.tpm2b()?;
    r.finish()?;
    if data.len() == usize::from(size) {
        Ok(data)
    } else {
        Err(DecodeError::Length(u32::try_from(data.len()).unwrap_or(u32::MAX)).into())
    }
}

/// TPM2_PCR_Read of registers of the SHA-256 bank; the TPM gives some of them at a time.
///
/// # Errors
/// As [`policy_secret`].
pub fn pcr_read_many(buf: &mut [u8], pcrs: u32) -> Result<&[u8], EncodeError> {
    let mut w = begin(buf, cc::PCR_READ)?;
    w.bytes(&selection(pcrs))?;
    end(w)
}

/// The answer to [`pcr_read_many`]: `take` gets each register's number and value. Gives the registers that were read,
/// at least one of `pcrs` and none besides.
///
/// # Errors
/// As [`Response::plain`].
pub fn decode_pcr_read_many(
    bytes: &[u8],
    pcrs: u32,
    mut take: impl FnMut(u32, &[u8; SHA256_SIZE]),
) -> Result<u32, TpmError> {
    let mut r = Response::plain(bytes)?;
    r.u32()?; // the update counter
    let banks = read_selection(&mut r)?;
    let mut active = banks.active();
    let read = active.next().filter(|bank| bank.algorithm == alg::SHA256).map_or(0, |bank| bank.pcrs);
    let count = r.u32()?;
    if active.next().is_some() || read == 0 || read & !pcrs != 0 || count != read.count_ones() {
        return Err(DecodeError::Value(read).into());
    }
    if count > MAX_DIGESTS {
        return Err(DecodeError::Value(count).into());
    }
    for pcr in (0..32).filter(|pcr| read.wrapping_shr(*pcr) & 1 != 0) {
        let value = r.tpm2b()?;
        let wrong = DecodeError::Length(u32::try_from(value.len()).unwrap_or(u32::MAX));
        take(pcr, value.try_into().map_err(|_| wrong)?);
    }
    r.finish()?;
    Ok(read)
}

/// Parameters and session area of a response that has both.
fn parameters_and_sessions(bytes: &[u8]) -> Result<(Reader<'_>, Reader<'_>), TpmError> {
    let mut r = Response::with_sessions(bytes)?;
    let size = usize::try_from(r.u32()?).map_err(|_| DecodeError::Truncated)?;
    let parameters = Reader::new(r.take(size)?);
    Ok((parameters, r))
}

/// Parameters of a response to a command with a password session.
fn password_parameters(bytes: &[u8]) -> Result<Reader<'_>, TpmError> {
    let (parameters, mut r) = parameters_and_sessions(bytes)?;
    read_policy_entry(&mut r)?; // the password session's entry has the same shape
    r.finish()?;
    Ok(parameters)
}
