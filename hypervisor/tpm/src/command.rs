//! Commands that need no session: what launch and measuring use.
//!
//! Encoders write one whole command into the caller's buffer; `response` has their decoders.
//! Specification: TPM 2.0 library, part 3 (the section stands at each function).

use crate::codec::{DecodeError, EncodeError, Writer};
use crate::constant::{ResponseCode, alg, capability, cc, handle, tag};
use crate::response::{Response, TpmError, decode_first_handle, decode_property, received};
use crate::transport::Transport;

/// Most PCR banks that a TPM may show: TPM2_PCR_Extend takes no more (part 2, HASH_COUNT of the profile's size).
pub const MAX_BANKS: usize = 16;
/// Bytes of the largest digest.
pub const MAX_DIGEST: usize = 64;
/// More leftovers than any TPM has room for: a TPM that names more is not to be believed.
const MAX_LEFTOVERS: usize = 64;
/// A buffer that holds each command and response of this module.
pub const BUFFER: usize = 1280;

/// A PCR, 0 to 23.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PcrIndex(u8);

impl PcrIndex {
    /// Dynamic launch: code.
    pub const DRTM_CODE: Self = Self(17);
    /// Dynamic launch: configuration.
    pub const DRTM_CONFIGURATION: Self = Self(18);

    /// The PCR `index`, if PC client TPMs have it.
    #[must_use]
    pub const fn new(index: u8) -> Option<Self> {
        if index < 24 { Some(Self(index)) } else { None }
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The bitmap of TPMS_PCR_SELECTION with this PCR alone.
    #[must_use]
    pub fn bitmap(self) -> [u8; 3] {
        let [a, b, c, _] = 1u32.wrapping_shl(u32::from(self.0)).to_le_bytes();
        [a, b, c]
    }
}

/// One digest with its algorithm: TPMT_HA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest<'a> {
    algorithm: u16,
    bytes: &'a [u8],
}

impl<'a> Digest<'a> {
    /// `bytes` as a digest of `algorithm`, if it has that size.
    #[must_use]
    pub fn new(algorithm: u16, bytes: &'a [u8]) -> Option<Self> {
        (alg::digest_size(algorithm) == Some(bytes.len())).then_some(Self { algorithm, bytes })
    }

    /// TPM_ALG_ID.
    #[must_use]
    pub const fn algorithm(&self) -> u16 {
        self.algorithm
    }

    /// The bytes.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

/// Begins a command without sessions.
pub(crate) fn begin(buf: &mut [u8], code: u32) -> Result<Writer<'_>, EncodeError> {
    begin_tagged(buf, tag::NO_SESSIONS, code)
}

pub(crate) fn begin_tagged(buf: &mut [u8], tag: u16, code: u32) -> Result<Writer<'_>, EncodeError> {
    let mut w = Writer::new(buf);
    w.u16(tag)?;
    w.u32(0)?; // the size, see `end`
    w.u32(code)?;
    Ok(w)
}

/// Fills in the size.
pub(crate) fn end(mut w: Writer<'_>) -> Result<&[u8], EncodeError> {
    let size = u32::try_from(w.len()).map_err(|_| EncodeError::TooLong)?;
    w.overwrite(2, &size.to_be_bytes())?;
    w.finish()
}

/// TPM2_Startup(TPM_SU_CLEAR) (9.3). [`ResponseCode::INITIALIZE`] says that it has run already.
///
/// # Errors
/// [`EncodeError`] if `buf` is too short; the same holds for all the others.
pub fn startup_clear(buf: &mut [u8]) -> Result<&[u8], EncodeError> {
    let mut w = begin(buf, cc::STARTUP)?;
    w.u16(0)?;
    end(w)
}

/// TPM2_PCR_Extend (22.2) with an empty password session: one digest for each bank.
///
/// # Errors
/// As [`startup_clear`].
pub fn pcr_extend<'b, 'd>(
    buf: &'b mut [u8],
    pcr: PcrIndex,
    digests: impl Iterator<Item = Digest<'d>>,
) -> Result<&'b [u8], EncodeError> {
    let mut w = begin_tagged(buf, tag::SESSIONS, cc::PCR_EXTEND)?;
    w.u32(u32::from(pcr.number()))?;
    password_session(&mut w)?;
    let count_at = w.len();
    w.u32(0)?; // the number of digests, known when they are written
    let mut count = 0u32;
    for digest in digests {
        w.u16(digest.algorithm())?;
        w.bytes(digest.bytes())?;
        count = count.saturating_add(1);
    }
    w.overwrite(count_at, &count.to_be_bytes())?;
    end(w)
}

/// An authorisation area of one session: the password session with an empty password.
pub(crate) fn password_session(w: &mut Writer<'_>) -> Result<(), EncodeError> {
    w.u32(9)?;
    w.u32(handle::PASSWORD)?;
    w.u16(0)?;
    w.u8(0)?;
    w.u16(0)
}

/// TPM2_PCR_Read (22.4) of one PCR in one bank.
///
/// # Errors
/// As [`startup_clear`].
pub fn pcr_read(buf: &mut [u8], algorithm: u16, pcr: PcrIndex) -> Result<&[u8], EncodeError> {
    let mut w = begin(buf, cc::PCR_READ)?;
    w.u32(1)?;
    w.u16(algorithm)?;
    w.u8(3)?;
    w.bytes(&pcr.bitmap())?;
    end(w)
}

/// TPM2_GetCapability (30.2): up to `count` values of `what` from `first` on.
///
/// # Errors
/// As [`startup_clear`].
pub fn get_capability(buf: &mut [u8], what: u32, first: u32, count: u32) -> Result<&[u8], EncodeError> {
    let mut w = begin(buf, cc::GET_CAPABILITY)?;
    w.u32(what)?;
    w.u32(first)?;
    w.u32(count)?;
    end(w)
}

/// TPM2_GetRandom (16.1).
///
/// # Errors
/// As [`startup_clear`].
pub fn get_random(buf: &mut [u8], bytes: u16) -> Result<&[u8], EncodeError> {
    let mut w = begin(buf, cc::GET_RANDOM)?;
    w.u16(bytes)?;
    end(w)
}

/// TPM2_FlushContext (28.4) of a session or a transient object.
///
/// # Errors
/// As [`startup_clear`].
pub fn flush_context(buf: &mut [u8], handle: u32) -> Result<&[u8], EncodeError> {
    let mut w = begin(buf, cc::FLUSH_CONTEXT)?;
    w.u32(handle)?;
    end(w)
}

/// Starts the TPM, or finds that it is started.
///
/// # Errors
/// [`TpmError`]; the same holds for all the others.
pub fn start(tpm: &mut impl Transport) -> Result<(), TpmError> {
    let (mut command, mut response) = ([0; 12], [0; 64]);
    let size = tpm.transmit(startup_clear(&mut command)?, &mut response)?;
    match Response::plain(received(&response, size)?) {
        Ok(r) => Ok(r.finish()?),
        Err(TpmError::Refused(ResponseCode::INITIALIZE)) => Ok(()),
        Err(other) => Err(other),
    }
}

/// Reads one property.
///
/// # Errors
/// As [`start`].
pub fn read_property(tpm: &mut impl Transport, property: u32) -> Result<Option<u32>, TpmError> {
    let (mut command, mut response) = ([0; 32], [0; 64]);
    let size =
        tpm.transmit(get_capability(&mut command, capability::PROPERTIES, property, 1)?, &mut response)?;
    decode_property(received(&response, size)?, property)
}

/// Frees a session or a transient object.
///
/// # Errors
/// As [`start`].
pub fn flush(tpm: &mut impl Transport, handle: u32) -> Result<(), TpmError> {
    let (mut command, mut response) = ([0; 16], [0; 64]);
    let size = tpm.transmit(flush_context(&mut command, handle)?, &mut response)?;
    Ok(Response::plain(received(&response, size)?)?.finish()?)
}

/// Frees every loaded session and transient object: what software before the launch left behind would take the
/// few slots a TPM has (three of each on PC clients).
///
/// # Errors
/// As [`start`]; a TPM that keeps naming handles is an error and not a loop.
pub fn flush_leftovers(tpm: &mut impl Transport) -> Result<(), TpmError> {
    flush_range(tpm, handle::LOADED_SESSIONS)?;
    flush_range(tpm, handle::TRANSIENT)
}

fn flush_range(tpm: &mut impl Transport, first: u32) -> Result<(), TpmError> {
    for _ in 0..MAX_LEFTOVERS {
        let (mut command, mut response) = ([0; 32], [0; 64]);
        let size =
            tpm.transmit(get_capability(&mut command, capability::HANDLES, first, 1)?, &mut response)?;
        match decode_first_handle(received(&response, size)?)? {
            Some(found) if in_range(found, first) => flush(tpm, found)?,
            _ => return Ok(()),
        }
    }
    Err(DecodeError::Value(first).into())
}

/// Whether `found` is of the range that begins at `first`. Loaded policy sessions are listed with the HMAC
/// sessions but carry their own number, 03h.
pub(crate) const fn in_range(found: u32, first: u32) -> bool {
    let kind = found >> 24;
    kind == first >> 24 || (first == handle::LOADED_SESSIONS && kind == 3)
}
