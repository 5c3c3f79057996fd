//! TPM2_CreatePrimary, TPM2_ReadPublic and TPM2_HMAC: parameters and answers.
//!
//! Specification: TPM 2.0 library, part 3, 24.1, 12.4 and 15.5.

use crate::codec::{DecodeError, EncodeError, Reader, Writer};
use crate::command::{begin, begin_tagged, end, password_session};
use crate::constant::{alg, cc, tag};
use crate::crypto::SHA256_SIZE;
use crate::public::Template;
use crate::response::{Response, TpmError};
use crate::session::read_policy_entry;

/// The parameters of TPM2_CreatePrimary: an empty authorisation value, no data of ours, no PCRs recorded.
///
/// # Errors
/// [`EncodeError`] if `buf` is too short.
pub fn create_parameters<'b>(
    buf: &'b mut [u8],
    template: &Template,
    unique: &[u8],
) -> Result<&'b [u8], EncodeError> {
    let mut w = Writer::new(buf);
    write_create_parameters(&mut w, template, unique)?;
    w.finish()
}

fn write_create_parameters(
    w: &mut Writer<'_>,
    template: &Template,
    unique: &[u8],
) -> Result<(), EncodeError> {
    w.u16(4)?; // TPM2B_SENSITIVE_CREATE with two empty fields
    w.tpm2b(&[])?;
    w.tpm2b(&[])?;
    template.write(w, unique)?;
    w.tpm2b(&[])?; // outsideInfo
    w.u32(0) // creationPCR
}

/// TPM2_CreatePrimary in `hierarchy` with an empty password session: for the key that the first session needs.
///
/// # Errors
/// [`EncodeError`] if `buf` is too short.
pub fn create_with_password<'b>(
    buf: &'b mut [u8],
    hierarchy: u32,
    template: &Template,
    unique: &[u8],
) -> Result<&'b [u8], EncodeError> {
    let mut w = begin_tagged(buf, tag::SESSIONS, cc::CREATE_PRIMARY)?;
    w.u32(hierarchy)?;
    password_session(&mut w)?;
    write_create_parameters(&mut w, template, unique)?;
    end(w)
}

/// The answer to [`create_with_password`]: the key's handle, and the key.
///
/// # Errors
/// As [`Response::plain`].
pub fn decode_created_with_password(bytes: &[u8]) -> Result<(u32, Created<'_>), TpmError> {
    let mut r = Response::with_sessions(bytes)?;
    let key = r.u32()?;
    let size = usize::try_from(r.u32()?).map_err(|_| DecodeError::Truncated)?;
    let created = decode_created(Reader::new(r.take(size)?))?;
    read_policy_entry(&mut r)?; // the password session's entry has the same shape
    r.finish()?;
    Ok((key, created))
}

/// A key that the TPM has made: its public area and its Name, both as received.
#[derive(Clone, Copy, Debug)]
pub struct Created<'a> {
    /// TPMT_PUBLIC.
    pub public: &'a [u8],
    /// Its Name.
    pub name: &'a [u8],
}

/// The answer to TPM2_CreatePrimary, after its handle.
///
/// # Errors
/// [`DecodeError`] for what is wrong.
pub fn decode_created(mut r: Reader<'_>) -> Result<Created<'_>, DecodeError> {
    let public = r.tpm2b()?;
    r.tpm2b()?; // creation data
    r.tpm2b()?; // creation hash
    match r.u16()? {
        tag::CREATION => {}
        other => return Err(DecodeError::Tag(other)),
    }
    r.u32()?; // the ticket's hierarchy
    r.tpm2b()?; // the ticket
    let name = r.tpm2b()?;
    r.finish()?;
    Ok(Created { public, name })
}

/// TPM2_ReadPublic of the key at `handle`.
///
/// # Errors
/// [`EncodeError`] if `buf` is too short.
pub fn read_public(buf: &mut [u8], handle: u32) -> Result<&[u8], EncodeError> {
    let mut w = begin(buf, cc::READ_PUBLIC)?;
    w.u32(handle)?;
    end(w)
}

/// The answer to [`read_public`].
///
/// # Errors
/// As [`Response::plain`].
pub fn decode_read_public(bytes: &[u8]) -> Result<Created<'_>, TpmError> {
    let mut r = Response::plain(bytes)?;
    let public = r.tpm2b()?;
    let name = r.tpm2b()?;
    r.tpm2b()?; // qualified name
    r.finish()?;
    Ok(Created { public, name })
}

/// The parameters of TPM2_HMAC over `label`.
///
/// # Errors
/// [`EncodeError`] if `buf` is too short.
pub fn hmac_parameters<'b>(buf: &'b mut [u8], label: &[u8]) -> Result<&'b [u8], EncodeError> {
    let mut w = Writer::new(buf);
    w.tpm2b(label)?;
    w.u16(alg::SHA256)?;
    w.finish()
}

/// The answer to TPM2_HMAC.
///
/// # Errors
/// [`DecodeError`] for what is wrong.
pub fn decode_hmac(mut r: Reader<'_>) -> Result<[u8; SHA256_SIZE], DecodeError> {
    let value = r.tpm2b()?;
    r.finish()?;
    let wrong = DecodeError::Length(u32::try_from(value.len()).unwrap_or(u32::MAX));
    <[u8; SHA256_SIZE]>::try_from(value).map_err(|_| wrong)
}
