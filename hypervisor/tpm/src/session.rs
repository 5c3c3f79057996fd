//! The salted HMAC session: authorises commands, checks that responses are the TPM's, encrypts parameters.
//!
//! Its key never crosses the bus: it is derived from a salt that only the TPM's key of this launch can open. Each
//! exchange rolls both nonces; a response that was recorded earlier therefore fails its HMAC.
//! Specification: TPM 2.0 library, part 1, 17 to 21 (sessions, HMACs, parameter encryption).

use subtle::ConstantTimeEq;

use crate::codec::{DecodeError, EncodeError, Reader, Writer};
use crate::command::{begin_tagged, end};
use crate::constant::{ResponseCode, alg, cc, handle, tag};
use crate::crypto::{Direction, Point, SHA256_SIZE, hmac_sha256, kdfa, parameter_cipher, sha256};
use crate::public::Name;
use crate::response::{Response, TpmError};
use crate::secret::Secret;

/// TPMA_SESSION bits.
const CONTINUE: u8 = 1 << 0;
const DECRYPT: u8 = 1 << 5;
const ENCRYPT: u8 = 1 << 6;

/// Bytes of our nonces; the TPM's have the same size.
pub const NONCE: usize = 32;
/// Longest authorisation value of a hierarchy: a digest of SHA-512.
pub const MAX_VALUE: usize = 64;

/// One handle of a command, with the Name that authorisation is computed over.
#[derive(Clone, Copy, Debug)]
pub enum Entity {
    /// A hierarchy: its Name is its handle.
    Hierarchy(u32),
    /// A loaded key.
    Key(u32, Name),
}

impl Entity {
    const fn handle(&self) -> u32 {
        match self {
            Self::Hierarchy(handle) | Self::Key(handle, _) => *handle,
        }
    }
}

/// A command that goes through the session.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// TPM_CC.
    pub code: u32,
    /// What it works on, in the order of its handles.
    pub entities: &'a [Entity],
    /// The first of them is authorised by its empty password.
    pub has_password: bool,
    /// A policy session that authorises it, or what the password does not; without either the salted session does.
    pub policy: Option<u32>,
    /// Its parameters, marshalled.
    pub parameters: &'a [u8],
    /// Whether its first parameter is encrypted: it must be a TPM2B.
    pub encrypts_command: bool,
    /// Whether the response's first parameter is: it must be a TPM2B.
    pub encrypts_response: bool,
    /// Whether the response carries a handle.
    pub returns_handle: bool,
}

/// A response that proved to be the TPM's.
#[derive(Debug)]
pub struct Opened<'a> {
    /// The handle, if the command returns one.
    pub handle: Option<u32>,
    /// Its parameters, decrypted.
    pub parameters: Reader<'a>,
}

/// TPM2_StartAuthSession (part 3, 11.1) of an HMAC session salted to the key at `salt_key` with parameter
/// encryption; `sent` is the ephemeral point of [`crate::crypto::session_salt`].
///
/// # Errors
/// [`EncodeError`] if `buf` is too short; the same holds for the other encoders.
pub fn start_hmac_session<'b>(
    buf: &'b mut [u8],
    salt_key: u32,
    sent: &Point,
    nonce: &[u8; NONCE],
) -> Result<&'b [u8], EncodeError> {
    let mut w = begin_tagged(buf, tag::NO_SESSIONS, cc::START_AUTH_SESSION)?;
    w.u32(salt_key)?;
    w.u32(handle::NULL)?; // not bound
    w.tpm2b(nonce)?;
    let at = w.len();
    w.u16(0)?;
    w.tpm2b(&sent.x)?;
    w.tpm2b(&sent.y)?;
    w.close_u16(at)?;
    w.u8(0)?; // TPM_SE_HMAC
    w.u16(alg::AES)?;
    w.u16(128)?;
    w.u16(alg::CFB)?;
    w.u16(alg::SHA256)?;
    end(w)
}

/// TPM2_StartAuthSession of a policy session. It carries no secret, hence no salt: what is secret goes through
/// the salted session beside it.
///
/// # Errors
/// As [`start_hmac_session`].
pub fn start_policy_session<'b>(buf: &'b mut [u8], nonce: &[u8; NONCE]) -> Result<&'b [u8], EncodeError> {
    let mut w = begin_tagged(buf, tag::NO_SESSIONS, cc::START_AUTH_SESSION)?;
    w.u32(handle::NULL)?; // not salted
    w.u32(handle::NULL)?; // not bound
    w.tpm2b(nonce)?;
    w.tpm2b(&[])?;
    w.u8(1)?; // TPM_SE_POLICY
    w.u16(alg::NULL)?;
    w.u16(alg::SHA256)?;
    end(w)
}

/// The answer to both: the session's handle and the TPM's nonce.
///
/// # Errors
/// As [`Response::plain`].
pub fn decode_start_session(bytes: &[u8]) -> Result<(u32, [u8; NONCE]), TpmError> {
    let mut r = Response::plain(bytes)?;
    let session = r.u32()?;
    let nonce = read_nonce(&mut r)?;
    r.finish()?;
    Ok((session, nonce))
}

fn read_nonce(r: &mut Reader<'_>) -> Result<[u8; NONCE], DecodeError> {
    let nonce = r.tpm2b()?;
    let wrong = DecodeError::Length(u32::try_from(nonce.len()).unwrap_or(u32::MAX));
    <[u8; NONCE]>::try_from(nonce).map_err(|_| wrong)
}

/// TPM2_PolicyPCR (part 3, 23.7): `selection` must hash to `pcr_digest`, else the TPM refuses at once.
///
/// # Errors
/// As [`start_hmac_session`].
pub fn policy_pcr<'b>(
    buf: &'b mut [u8],
    session: u32,
    selection: &[u8],
    pcr_digest: &[u8; SHA256_SIZE],
) -> Result<&'b [u8], EncodeError> {
    let mut w = begin_tagged(buf, tag::NO_SESSIONS, cc::POLICY_PCR)?;
    w.u32(session)?;
    w.tpm2b(pcr_digest)?;
    w.bytes(selection)?;
    end(w)
}

/// TPM2_PolicyLocality (part 3, 23.8).
///
/// # Errors
/// As [`start_hmac_session`].
pub fn policy_locality(buf: &mut [u8], session: u32, attributes: u8) -> Result<&[u8], EncodeError> {
    let mut w = begin_tagged(buf, tag::NO_SESSIONS, cc::POLICY_LOCALITY)?;
    w.u32(session)?;
    w.u8(attributes)?;
    end(w)
}

/// The authorisation entry of a policy session without key: no HMAC, and the session ends with the command.
pub(crate) fn write_policy_entry(
    w: &mut Writer<'_>,
    session: u32,
    nonce: &[u8; NONCE],
) -> Result<(), EncodeError> {
    w.u32(session)?;
    w.tpm2b(nonce)?;
    w.u8(0)?;
    w.tpm2b(&[])
}

/// The authorisation entry of an empty password.
pub(crate) fn write_password_entry(w: &mut Writer<'_>) -> Result<(), EncodeError> {
    w.u32(handle::PASSWORD)?;
    w.tpm2b(&[])?;
    w.u8(0)?;
    w.tpm2b(&[])
}

/// The response's entry for it.
pub(crate) fn read_policy_entry(r: &mut Reader<'_>) -> Result<(), DecodeError> {
    r.tpm2b()?;
    r.u8()?;
    match r.tpm2b()? {
        [] => Ok(()),
        hmac => Err(DecodeError::Length(u32::try_from(hmac.len()).unwrap_or(u32::MAX))),
    }
}

/// The salted session of this launch.
#[derive(Debug)]
pub struct HmacSession {
    handle: u32,
    /// The session key, and behind it the authorisation value of what the session authorises (part 1, 19.6.5).
    key: Secret<[u8; SHA256_SIZE + MAX_VALUE]>,
    key_len: usize,
    nonce_caller: [u8; NONCE],
    nonce_tpm: [u8; NONCE],
    /// A command was sealed whose answer was not opened: the nonces are its.
    is_out: bool,
    /// The TPM may have rolled its nonce without our knowing.
    is_lost: bool,
}

impl HmacSession {
    /// The session that was started with `salt` and these nonces.
    #[must_use]
    pub fn new(
        handle: u32,
        salt: &Secret<[u8; 32]>,
        nonce_caller: [u8; NONCE],
        nonce_tpm: [u8; NONCE],
    ) -> Self {
        let mut key = Secret::new([0; SHA256_SIZE + MAX_VALUE]);
        let (session_key, _) = key.expose_mut().split_at_mut(SHA256_SIZE);
        kdfa(salt.expose(), b"ATH", &nonce_tpm, &nonce_caller, session_key);
        Self { handle, key, key_len: SHA256_SIZE, nonce_caller, nonce_tpm, is_out: false, is_lost: false }
    }

    /// What the session authorises from now on has this authorisation value. A TPM does not tell zeroes at its end from none.
    ///
    /// # Errors
    /// [`EncodeError::TooLong`] for more than [`MAX_VALUE`] bytes.
    #[cfg(feature = "provision")]
    pub(crate) fn authorise(&mut self, value: &[u8]) -> Result<(), EncodeError> {
        let end = value.iter().rposition(|byte| *byte != 0).map_or(0, |last| last.saturating_add(1));
        let end = end.saturating_add(SHA256_SIZE);
        let slot = self.key.expose_mut().get_mut(SHA256_SIZE..end).ok_or(EncodeError::TooLong)?;
        slot.iter_mut().zip(value).for_each(|(to, from)| *to = *from);
        self.key_len = end;
        Ok(())
    }

    fn key(&self) -> &[u8] {
        self.key.expose().get(..self.key_len).unwrap_or(self.key.expose())
    }

    /// Its handle.
    #[must_use]
    pub const fn handle(&self) -> u32 {
        self.handle
    }

    /// Whether a command is out: jobs that share the session wait for one another.
    #[must_use]
    pub const fn is_out(&self) -> bool {
        self.is_out
    }

    /// Whether its nonces no longer are what the TPM has, as far as can be told: an answer was lost, forged or garbled, or
    /// the TPM refused the session itself. Then only another session helps.
    #[must_use]
    pub const fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// The command that is out, if any, has no answer: the transport failed.
    pub const fn give_up(&mut self) {
        self.is_lost |= self.is_out;
        self.is_out = false;
    }

    const fn attributes(call: &Call<'_>) -> u8 {
        CONTINUE
            | if call.encrypts_command { DECRYPT } else { 0 }
            | if call.encrypts_response { ENCRYPT } else { 0 }
    }

    /// Encodes `call` with a fresh nonce of ours.
    ///
    /// # Errors
    /// [`EncodeError`] if `buf` is too short.
    pub fn seal<'b>(
        &mut self,
        buf: &'b mut [u8],
        call: &Call<'_>,
        nonce: [u8; NONCE],
    ) -> Result<&'b [u8], EncodeError> {
        self.nonce_caller = nonce;
        let mut parameters = [0; MAX_PARAMETERS];
        let sealed = parameters.get_mut(..call.parameters.len()).ok_or(EncodeError::Full)?;
        sealed.copy_from_slice(call.parameters);
        if call.encrypts_command {
            let first = first_parameter(sealed).ok_or(EncodeError::TooLong)?;
            parameter_cipher(Direction::Encrypt, self.key(), &nonce, &self.nonce_tpm, first);
        }
        let mut w = begin_tagged(buf, tag::SESSIONS, call.code)?;
        for entity in call.entities {
            w.u32(entity.handle())?;
        }
        let area = w.len();
        w.u32(0)?;
        if call.has_password {
            write_password_entry(&mut w)?;
        }
        if let Some(policy) = call.policy {
            write_policy_entry(&mut w, policy, &nonce)?;
        }
        let attributes = Self::attributes(call);
        w.u32(self.handle)?;
        w.tpm2b(&nonce)?;
        w.u8(attributes)?;
        let digest = command_digest(call, sealed);
        w.tpm2b(&hmac_sha256(self.key(), &[&digest, &nonce, &self.nonce_tpm, &[attributes]]))?;
        w.close_u32(area)?;
        w.bytes(sealed)?;
        let command = end(w)?;
        self.is_out = true;
        Ok(command)
    }

    /// Checks that `bytes` is the TPM's answer to the `call` sealed last, and decrypts it in place.
    ///
    /// # Errors
    /// [`TpmError::Refused`] with the TPM's code (which no HMAC protects), [`TpmError::Forged`] if the HMAC is wrong,
    /// [`TpmError::Decode`] if it is no response at all.
    pub fn open<'r>(&mut self, bytes: &'r mut [u8], call: &Call<'_>) -> Result<Opened<'r>, TpmError> {
        self.is_out = false;
        let checked = self.check(bytes, call);
        self.is_lost |= checked.as_ref().is_err_and(desynchronizes);
        let layout = checked?;
        self.nonce_tpm = layout.nonce_tpm;
        let all = bytes.get_mut(layout.start..layout.end).ok_or(DecodeError::Truncated)?;
        if call.encrypts_response {
            let first = first_parameter(all).ok_or(DecodeError::Truncated)?;
            parameter_cipher(Direction::Decrypt, self.key(), &self.nonce_tpm, &self.nonce_caller, first);
        }
        Ok(Opened { handle: layout.handle, parameters: Reader::new(all) })
    }

    fn check(&self, bytes: &[u8], call: &Call<'_>) -> Result<Layout, TpmError> {
        let mut r = Response::with_sessions(bytes)?;
        let handle = if call.returns_handle { Some(r.u32()?) } else { None };
        let size = r.u32()?;
        let parameters = r.take(usize::try_from(size).map_err(|_| DecodeError::Truncated)?)?;
        let after = r.rest().len();
        if call.has_password {
            read_policy_entry(&mut r)?; // of the same shape
        }
        if call.policy.is_some() {
            read_policy_entry(&mut r)?;
        }
        let nonce_tpm = read_nonce(&mut r)?;
        let attributes = r.u8()?;
        let hmac = r.tpm2b()?;
        r.finish()?;
        let digest = sha256(&[&ResponseCode::SUCCESS.0.to_be_bytes(), &call.code.to_be_bytes(), parameters]);
        let expected = hmac_sha256(self.key(), &[&digest, &nonce_tpm, &self.nonce_caller, &[attributes]]);
        if !bool::from(expected.as_slice().ct_eq(hmac)) || attributes != Self::attributes(call) {
            return Err(TpmError::Forged);
        }
        let end = bytes.len().saturating_sub(after);
        Ok(Layout { handle, nonce_tpm, start: end.saturating_sub(parameters.len()), end })
    }
}

/// Whether a session may be out of step after this error. A command that the TPM refuses rolls no nonce (part 1, "Session
/// nonces"), but a refusal may be forged: then the TPM refuses the next command by the session's own HMAC.
fn desynchronizes(error: &TpmError) -> bool {
    match error {
        TpmError::Refused(code) => {
            matches!(code.base(), ResponseCode::BAD_AUTH | ResponseCode::AUTH_FAIL)
                || (ResponseCode::REFERENCE_S0.0..=ResponseCode::REFERENCE_S6.0).contains(&code.0)
        }
        TpmError::Encode(_) | TpmError::Transport(_) | TpmError::Decode(_) | TpmError::Forged => true,
    }
}

/// Where the parameters of a checked response lie, and what else it said.
struct Layout {
    handle: Option<u32>,
    nonce_tpm: [u8; NONCE],
    start: usize,
    end: usize,
}

/// Bytes of the longest parameters we send.
pub(crate) const MAX_PARAMETERS: usize = 512;

/// The content of the TPM2B that `parameters` begins with.
fn first_parameter(parameters: &mut [u8]) -> Option<&mut [u8]> {
    let (size, rest) = parameters.split_first_chunk_mut::<2>()?;
    rest.get_mut(..usize::from(u16::from_be_bytes(*size)))
}

/// cpHash (part 1, 16.7).
fn command_digest(call: &Call<'_>, parameters: &[u8]) -> [u8; SHA256_SIZE] {
    let code = call.code.to_be_bytes();
    let (mut handles, mut names): ([[u8; 4]; 2], [&[u8]; 2]) = ([[0; 4]; 2], [&[]; 2]);
    for ((entity, handle), name) in call.entities.iter().zip(handles.iter_mut()).zip(names.iter_mut()) {
        *handle = entity.handle().to_be_bytes();
        *name = match entity {
            Entity::Hierarchy(_) => handle.as_slice(),
            Entity::Key(_, name) => name.as_slice(),
        };
    }
    let [first, second] = names;
    sha256(&[&code, first, second, parameters])
}
