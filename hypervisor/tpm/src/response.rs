//! Decoders of the answers to the commands without sessions, and what can go wrong with a command.
//!
//! Responses come over a bus that others share: each is checked for tag, length, response code, values that
//! were not asked for, and leftovers; none can panic or loop.
//! Specification: TPM 2.0 library, part 1, "Response structure"; part 2 for the structures.

use crate::codec::{DecodeError, EncodeError, Reader};
use crate::command::{MAX_BANKS, MAX_DIGEST, PcrIndex};
use crate::constant::{ResponseCode, alg, capability, tag};
use crate::transport::TransportError;

/// Why a command did not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TpmError {
    /// It does not fit the buffer.
    Encode(EncodeError),
    /// No response came.
    Transport(TransportError),
    /// What came is no response to this command.
    Decode(DecodeError),
    /// The TPM refused. No HMAC protects a refusal: it may be anybody's on the bus.
    Refused(ResponseCode),
    /// The response's HMAC is wrong: it is not from the TPM that this session was started with, or it is old.
    Forged,
}

impl From<EncodeError> for TpmError {
    fn from(error: EncodeError) -> Self {
        Self::Encode(error)
    }
}

impl From<TransportError> for TpmError {
    fn from(error: TransportError) -> Self {
        Self::Transport(error)
    }
}

impl From<DecodeError> for TpmError {
    fn from(error: DecodeError) -> Self {
        Self::Decode(error)
    }
}

/// A response whose header is in order.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    /// Whether a session area follows the parameters.
    pub has_sessions: bool,
    /// What the TPM says.
    pub code: ResponseCode,
    /// All after the header.
    pub body: Reader<'a>,
}

impl<'a> Response<'a> {
    /// Checks the header of `bytes`, which is all that was received.
    ///
    /// # Errors
    /// [`DecodeError`] for what is wrong with it.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut body = Reader::new(bytes);
        let tag = body.u16()?;
        let length = body.u32()?;
        let code = ResponseCode(body.u32()?);
        if u32::try_from(bytes.len()) != Ok(length) {
            return Err(DecodeError::Length(length));
        }
        let has_sessions = match tag {
            tag::NO_SESSIONS => false,
            // A refusal never carries sessions (part 3, 5.4): one that does is not the TPM's.
            tag::SESSIONS if code == ResponseCode::SUCCESS => true,
            other => return Err(DecodeError::Tag(other)),
        };
        if code != ResponseCode::SUCCESS && !body.rest().is_empty() {
            return Err(DecodeError::Trailing);
        }
        Ok(Self { has_sessions, code, body })
    }

    /// The parameters of a command without sessions that succeeded.
    ///
    /// # Errors
    /// [`TpmError::Refused`] with the TPM's code, or what is wrong with the response.
    pub fn plain(bytes: &'a [u8]) -> Result<Reader<'a>, TpmError> {
        let response = Self::parse(bytes)?;
        match response.code {
            ResponseCode::SUCCESS if response.has_sessions => Err(DecodeError::Tag(tag::SESSIONS).into()),
            ResponseCode::SUCCESS => Ok(response.body),
            code => Err(TpmError::Refused(code)),
        }
    }

    /// What follows the header of a response to a command with sessions that succeeded: a handle if the command returns
    /// one, the size of the parameters, the parameters, and the sessions' entries.
    ///
    /// # Errors
    /// As [`Response::plain`].
    pub fn with_sessions(bytes: &'a [u8]) -> Result<Reader<'a>, TpmError> {
        let response = Self::parse(bytes)?;
        match response.code {
            ResponseCode::SUCCESS if response.has_sessions => Ok(response.body),
            ResponseCode::SUCCESS => Err(DecodeError::Tag(tag::NO_SESSIONS).into()),
            code => Err(TpmError::Refused(code)),
        }
    }

    /// The answer to a command with an empty password session and no response parameters.
    ///
    /// # Errors
    /// As [`Response::plain`].
    pub fn password_only(bytes: &'a [u8]) -> Result<(), TpmError> {
        let mut body = Self::with_sessions(bytes)?;
        let expected: &[u8] = &[0, 0, 0, 0, 0, 0, 0, 0, 0]; // parameter size, nonce, attributes, HMAC
        let session = body.take(expected.len())?;
        // The TPM may or may not echo continueSession.
        if session.get(..6) != expected.get(..6) || session.get(7..) != expected.get(7..) {
            return Err(DecodeError::Value(u32::from(session.get(6).copied().unwrap_or(0))).into());
        }
        Ok(body.finish()?)
    }
}

/// One digest as the TPM told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PcrValue {
    bytes: [u8; MAX_DIGEST],
    len: usize,
}

impl PcrValue {
    fn new(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut value = Self { bytes: [0; MAX_DIGEST], len: bytes.len() };
        let wrong = DecodeError::Value(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        value.bytes.get_mut(..bytes.len()).ok_or(wrong)?.copy_from_slice(bytes);
        Ok(value)
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

/// The answer to [`pcr_read`](crate::command::pcr_read): `None` if the bank or the PCR in it is not there.
///
/// # Errors
/// As [`Response::plain`]; a value of another bank, PCR or size than asked for is an error.
pub fn decode_pcr_read(bytes: &[u8], algorithm: u16, pcr: PcrIndex) -> Result<Option<PcrValue>, TpmError> {
    let mut r = Response::plain(bytes)?;
    r.u32()?; // the update counter
    let selection = read_selection(&mut r)?;
    let count = r.u32()?;
    let value = match count {
        0 => None,
        1 => Some(PcrValue::new(r.tpm2b()?)?),
        more => return Err(DecodeError::Value(more).into()),
    };
    r.finish()?;
    let Some(value) = value else { return Ok(None) };
    if !selection.is_exactly(algorithm, pcr) {
        return Err(DecodeError::Value(u32::from(algorithm)).into());
    }
    match alg::digest_size(algorithm) {
        Some(size) if size != value.len => {
            Err(DecodeError::Length(u32::try_from(value.len).unwrap_or(0)).into())
        }
        _ => Ok(Some(value)),
    }
}

/// One bank: an algorithm, and which PCRs it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bank {
    /// TPM_ALG_ID.
    pub algorithm: u16,
    /// Bit n stands for PCR n.
    pub pcrs: u32,
}

impl Bank {
    /// Whether the bank holds `pcr`.
    #[must_use]
    pub fn contains(&self, pcr: PcrIndex) -> bool {
        self.pcrs.wrapping_shr(u32::from(pcr.number())) & 1 != 0
    }
}

/// A TPM's PCR banks: TPML_PCR_SELECTION.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Banks {
    list: [Bank; MAX_BANKS],
    count: usize,
}

impl Banks {
    /// The banks that hold at least one PCR.
    pub fn active(&self) -> impl Iterator<Item = Bank> + '_ {
        self.list.iter().take(self.count).copied().filter(|bank| bank.pcrs != 0)
    }

    /// Whether the bank of `algorithm` is active and holds `pcr`.
    #[must_use]
    pub fn has(&self, algorithm: u16, pcr: PcrIndex) -> bool {
        self.active().any(|bank| bank.algorithm == algorithm && bank.contains(pcr))
    }

    /// Whether this selection, marshalled, is `bytes`.
    #[must_use]
    pub fn marshals_to(&self, bytes: &[u8]) -> bool {
        let mut r = Reader::new(bytes);
        read_selection(&mut r).is_ok_and(|other| other == *self) && r.finish().is_ok()
    }

    fn is_exactly(&self, algorithm: u16, pcr: PcrIndex) -> bool {
        let mut active = self.active();
        let [a, b, c] = pcr.bitmap();
        active.next() == Some(Bank { algorithm, pcrs: u32::from_le_bytes([a, b, c, 0]) })
            && active.next().is_none()
    }
}

/// TPML_PCR_SELECTION. An algorithm that comes twice is an error: one entry could hide the other.
pub(crate) fn read_selection(r: &mut Reader<'_>) -> Result<Banks, DecodeError> {
    let count = r.u32()?;
    let mut banks = Banks { count: usize::try_from(count).unwrap_or(usize::MAX), ..Banks::default() };
    if banks.count > MAX_BANKS {
        return Err(DecodeError::Value(count));
    }
    for index in 0..banks.count {
        let algorithm = r.u16()?;
        let size = r.u8()?;
        let mut bitmap = [0; 4];
        let bits = r.take(usize::from(size))?;
        bitmap.get_mut(..bits.len()).ok_or(DecodeError::Value(u32::from(size)))?.copy_from_slice(bits);
        let (before, rest) = banks.list.split_at_mut_checked(index).ok_or(DecodeError::Value(count))?;
        if before.iter().any(|bank| bank.algorithm == algorithm) {
            return Err(DecodeError::Value(u32::from(algorithm)));
        }
        if let Some(slot) = rest.first_mut() {
            *slot = Bank { algorithm, pcrs: u32::from_le_bytes(bitmap) };
        }
    }
    Ok(banks)
}

/// The parameters of TPM2_GetCapability's answer, if it speaks of `what`.
fn capability_data(bytes: &[u8], what: u32) -> Result<(bool, Reader<'_>), TpmError> {
    let mut r = Response::plain(bytes)?;
    let more = r.u8()? != 0;
    let told = r.u32()?;
    if told == what { Ok((more, r)) } else { Err(DecodeError::Value(told).into()) }
}

/// The answer to [`get_capability`](crate::command::get_capability) for [`capability::PCRS`].
///
/// # Errors
/// As [`Response::plain`]; more than [`MAX_BANKS`] banks are an error, not a cut.
pub fn decode_banks(bytes: &[u8]) -> Result<Banks, TpmError> {
    let (more, mut r) = capability_data(bytes, capability::PCRS)?;
    let banks = read_selection(&mut r)?;
    r.finish()?;
    if more { Err(DecodeError::Trailing.into()) } else { Ok(banks) }
}

/// The answer to [`get_capability`](crate::command::get_capability) for [`capability::PROPERTIES`] with a count of one: the value of `property`,
/// `None` if the TPM does not have it.
///
/// # Errors
/// As [`Response::plain`].
pub fn decode_property(bytes: &[u8], property: u32) -> Result<Option<u32>, TpmError> {
    let (_, mut r) = capability_data(bytes, capability::PROPERTIES)?;
    match r.u32()? {
        0 => Ok(r.finish().map(|()| None)?),
        1 => {
            let (told, value) = (r.u32()?, r.u32()?);
            r.finish()?;
            Ok((told == property).then_some(value))
        }
        more => Err(DecodeError::Value(more).into()),
    }
}

/// The answer to [`get_capability`](crate::command::get_capability) for [`capability::HANDLES`] with a count of one: the first handle from the one
/// asked for on.
///
/// # Errors
/// As [`Response::plain`].
pub fn decode_first_handle(bytes: &[u8]) -> Result<Option<u32>, TpmError> {
    let (_, mut r) = capability_data(bytes, capability::HANDLES)?;
    match r.u32()? {
        0 => Ok(r.finish().map(|()| None)?),
        1 => {
            let handle = r.u32()?;
            r.finish()?;
            Ok(Some(handle))
        }
        more => Err(DecodeError::Value(more).into()),
    }
}

/// The answer to [`get_random`](crate::command::get_random): 1 to `most` bytes.
///
/// # Errors
/// As [`Response::plain`].
pub fn decode_random(bytes: &[u8], most: u16) -> Result<&[u8], TpmError> {
    Ok(read_random(Response::plain(bytes)?, most)?)
}

/// The parameters of TPM2_GetRandom's answer.
///
/// # Errors
/// [`DecodeError`] for what is wrong.
pub fn read_random(mut r: Reader<'_>, most: u16) -> Result<&[u8], DecodeError> {
    let random = r.tpm2b()?;
    r.finish()?;
    if random.is_empty() || random.len() > usize::from(most) {
        return Err(DecodeError::Length(u32::try_from(random.len()).unwrap_or(u32::MAX)));
    }
    Ok(random)
}

/// The received part of a response buffer.
pub(crate) fn received(buffer: &[u8], size: usize) -> Result<&[u8], DecodeError> {
    buffer.get(..size).ok_or(DecodeError::Truncated)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A successful response with this body.
    fn answer(body: &[&[u8]]) -> Vec<u8> {
        let body = body.concat();
        let size = u32::try_from(body.len() + 10).unwrap().to_be_bytes();
        [&[0x80, 1][..], &size, &[0; 4], &body].concat()
    }

    fn pcr_answer(algorithm: u8, bitmap: [u8; 3], value: &[u8]) -> Vec<u8> {
        let size = [0, u8::try_from(value.len()).unwrap()];
        answer(&[&[0; 4], &[0, 0, 0, 1, 0, algorithm, 3], &bitmap, &[0, 0, 0, 1], &size, value])
    }

    #[test]
    fn a_value_of_another_register_bank_or_size_is_not_taken_for_the_one_asked_for() {
        let read = |bytes: &[u8]| decode_pcr_read(bytes, alg::SHA256, PcrIndex::DRTM_CODE);
        let value = read(&pcr_answer(0x0b, [0, 0, 2], &[7; 32])).unwrap().unwrap();
        assert_eq!(value.bytes(), [7; 32]);
        assert!(read(&pcr_answer(0x0b, [0, 0, 4], &[7; 32])).is_err());
        assert!(read(&pcr_answer(0x0b, [0, 0, 6], &[7; 32])).is_err());
        assert!(read(&pcr_answer(0x0c, [0, 0, 2], &[7; 32])).is_err());
        assert!(read(&pcr_answer(0x0b, [0, 0, 2], &[7; 20])).is_err());
        assert!(read(&pcr_answer(0x0b, [0, 0, 2], &[7; 65])).is_err());
    }

    #[test]
    fn banks_are_listed_once_each_and_none_is_left_out() {
        let data = |more: u8, entries: &[&[u8]]| {
            let count = u32::try_from(entries.len()).unwrap().to_be_bytes();
            decode_banks(&answer(&[&[more, 0, 0, 0, 5], &count, &entries.concat()]))
        };
        let (sha1, sha256) = ([0, 4, 3, 0, 0, 0], [0, 0x0b, 3, 0xff, 0xff, 0xff]);
        let banks = data(0, &[&sha1, &sha256]).unwrap();
        assert_eq!(banks.active().map(|bank| bank.algorithm).collect::<Vec<_>>(), [alg::SHA256]);
        assert!(!banks.has(alg::SHA1, PcrIndex::DRTM_CODE));
        assert!(data(1, &[&sha256]).is_err(), "there is more than was told");
        assert!(data(0, &[&sha256, &sha256]).is_err(), "one could hide the other");
        let too_many: Vec<[u8; 6]> = (0..17).map(|alg| [1, alg, 3, 0, 0, 0]).collect();
        let too_many: Vec<&[u8]> = too_many.iter().map(|entry| &entry[..]).collect();
        assert!(data(0, &too_many).is_err());
        assert!(data(0, &[&[0, 0x0b, 5, 0, 0, 0, 0, 0]]).is_err(), "a bitmap of 40 registers");
    }

    #[test]
    fn a_property_that_was_not_asked_for_is_none() {
        let told = answer(&[&[0, 0, 0, 0, 6, 0, 0, 0, 1, 0, 0, 1, 6, 0, 0, 0, 9]]);
        assert_eq!(decode_property(&told, 0x106), Ok(Some(9)));
        assert_eq!(decode_property(&told, 0x105), Ok(None));
        let other = answer(&[&[0, 0, 0, 0, 5, 0, 0, 0, 0]]);
        assert_eq!(decode_property(&other, 0x105), Err(TpmError::Decode(DecodeError::Value(5))));
    }

    #[test]
    fn headers_must_name_the_length_and_a_tag_that_fits_the_code() {
        assert_eq!(Response::parse(&[0x80, 1, 0, 0, 0, 10, 0, 0, 0]).unwrap_err(), DecodeError::Truncated);
        let mut bytes = answer(&[]);
        assert!(Response::plain(&bytes).is_ok());
        bytes[1] = 2;
        assert!(Response::plain(&bytes).is_err(), "sessions that were not asked for");
        bytes[9] = 1;
        assert_eq!(Response::parse(&bytes).unwrap_err(), DecodeError::Tag(0x8002));
        bytes[1] = 1;
        bytes[5] = 11;
        assert_eq!(Response::parse(&bytes).unwrap_err(), DecodeError::Length(11));
        bytes.push(0);
        assert_eq!(Response::parse(&bytes).unwrap_err(), DecodeError::Trailing);
    }

    #[test]
    fn random_bytes_are_neither_none_nor_more_than_asked_for() {
        assert_eq!(decode_random(&answer(&[&[0, 2, 8, 9]]), 2).unwrap(), [8, 9]);
        assert!(decode_random(&answer(&[&[0, 3, 8, 9, 9]]), 2).is_err());
        assert!(decode_random(&answer(&[&[0, 0]]), 2).is_err());
    }
}
