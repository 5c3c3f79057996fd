//! Evidence: what a guest hands to a relying party, as one file (`docs/evidence.md`).
//!
//! Deterministic CBOR (RFC 8949, 4.2.1): a map with the keys 0 to 8, each once and in order. The decoder
//! trusts nothing: every length is bounded, and bytes that the encoder would not have written are refused,
//! so that one piece of evidence has one encoding. It says nothing of whether the evidence is *true*.

use core::fmt;

use minicbor::decode::Decoder;
use minicbor::encode::{Encoder, Write};
use zerocopy::{FromBytes, IntoBytes};

use crate::{Binding, MAX_PATH, QuoteReply, merkle};

mod document;
pub mod host;
pub mod keys;

use document::{Document, Stop, key, part};

/// Value of key 0: what this is, and in which version.
pub const FORMAT: &str = "dolmen-evidence-1";
/// Longest event log in evidence.
pub const MAX_EVENT_LOG: usize = 64 * 1024;
/// No evidence is longer.
pub const MAX_EVIDENCE: usize = MAX_EVENT_LOG.saturating_add(2048);

/// Why bytes are not evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvidenceError {
    /// The bytes end too early, or are not CBOR of the right kind at this offset.
    Malformed(usize),
    /// CBOR, but not Dolmen's evidence, or of a version that this program does not know.
    Format,
    /// A part is empty or longer than any can be; the number is its key.
    Length(u8),
    /// The leaf's place, the number of leaves and the length of the path do not fit each other.
    Shape,
    /// Readable, but not the one way to write it: another order, other integer sizes, bytes at the end.
    NotCanonical,
    /// The room given for the encoding is too small.
    NoRoom,
}

impl fmt::Display for EvidenceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(at) => {
                write!(f, "not readable as CBOR evidence at byte {at}: truncated or damaged")
            }
            Self::Format => write!(f, "not evidence in the format {FORMAT}"),
            Self::Length(key) => write!(f, "the part with key {key} is empty or too long"),
            Self::Shape => f.write_str("the Merkle path does not fit its index and count"),
            Self::NotCanonical => {
                f.write_str("not in the one canonical encoding: altered or written by another tool")
            }
            Self::NoRoom => f.write_str("the buffer for the encoding is too small"),
        }
    }
}

impl core::error::Error for EvidenceError {}

/// The siblings from a leaf to the root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Path {
    siblings: [[u8; 32]; MAX_PATH],
    length: usize,
}

impl Path {
    /// A path of these siblings, if it is not too long to be one.
    pub fn new(siblings: &[[u8; 32]]) -> Option<Self> {
        let mut path = Self { siblings: Default::default(), length: siblings.len() };
        path.siblings.get_mut(..siblings.len())?.copy_from_slice(siblings);
        Some(path)
    }

    /// The siblings, the leaf's own first.
    pub fn siblings(&self) -> &[[u8; 32]] {
        self.siblings.get(..self.length).unwrap_or_default()
    }
}

/// What a relying party gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence<'a> {
    /// The quote (`TPMS_ATTEST`).
    pub attest: &'a [u8],
    /// Its signature (`TPMT_SIGNATURE`).
    pub signature: &'a [u8],
    /// The key that is said to have signed (`TPM2B_PUBLIC`): a hint, to be compared with an enrolled one.
    pub ak_public: &'a [u8],
    /// The launch's event log (TCG crypto-agile): a hint until it replays to the quoted digest.
    pub event_log: &'a [u8],
    /// What the leaf hashes.
    pub binding: Binding,
    /// The leaf's place.
    pub index: u32,
    /// Leaves of the tree.
    pub count: u32,
    /// Siblings from the leaf to the root.
    pub path: Path,
}

impl<'a> Evidence<'a> {
    /// Evidence from what the hypervisor answered.
    ///
    /// # Errors
    /// [`EvidenceError`] if the lengths in the reply, or those of the other parts, cannot be.
    pub fn from_reply(
        reply: &'a QuoteReply,
        ak_public: &'a [u8],
        event_log: &'a [u8],
    ) -> Result<Self, EvidenceError> {
        let used = |bytes: &'a [u8], length: u32, key| {
            let length = usize::try_from(length).map_err(|_| EvidenceError::Length(key))?;
            bytes.get(..length).ok_or(EvidenceError::Length(key))
        };
        let siblings = usize::try_from(reply.path_length).ok().and_then(|length| reply.path.get(..length));
        let evidence = Self {
            attest: used(&reply.attest, reply.attest_length, 1)?,
            signature: used(&reply.signature, reply.signature_length, 2)?,
            ak_public,
            event_log,
            binding: reply.binding,
            index: reply.index,
            count: reply.count,
            path: siblings.and_then(Path::new).ok_or(EvidenceError::Shape)?,
        };
        document::check(&evidence)?;
        Ok(evidence)
    }

    /// Reads evidence; nothing in `bytes` is trusted.
    ///
    /// # Errors
    /// [`EvidenceError`] says what is wrong with them.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, EvidenceError> {
        document::decode(bytes)
    }

    /// Writes the evidence to the start of `out`; the length used comes back.
    ///
    /// # Errors
    /// [`EvidenceError`] if a part has an impossible length, or `out` is too small
    /// ([`MAX_EVIDENCE`] always suffices).
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, EvidenceError> {
        document::encode(self, out)
    }
}

impl<'a> Document<'a> for Evidence<'a> {
    const MAX_BYTES: usize = MAX_EVIDENCE;
    const FORMAT: &'static str = FORMAT;
    const KEYS: u64 = 9;

    fn quote(&self) -> [&'a [u8]; 4] {
        [self.attest, self.signature, self.ak_public, self.event_log]
    }

    fn check_rest(&self) -> Result<(), EvidenceError> {
        if merkle::path_length(self.index, self.count) == Some(self.path.siblings().len()) {
            Ok(())
        } else {
            Err(EvidenceError::Shape)
        }
    }

    fn read_rest(quote: [&'a [u8]; 4], d: &mut Decoder<'a>) -> Result<Self, Stop> {
        let [attest, signature, ak_public, event_log] = quote;
        let binding = Binding::read_from_bytes(part(d, 5)?).map_err(|_| EvidenceError::Length(5))?;
        key(d, 6)?;
        let index = d.u32()?;
        key(d, 7)?;
        let count = d.u32()?;
        key(d, 8)?;
        let path = read_path(d)?;
        Ok(Self { attest, signature, ak_public, event_log, binding, index, count, path })
    }

    fn write_rest<W: Write>(&self, e: &mut Encoder<W>) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.u8(5)?.bytes(self.binding.as_bytes())?;
        e.u8(6)?.u32(self.index)?;
        e.u8(7)?.u32(self.count)?;
        let siblings = self.path.siblings();
        e.u8(8)?.array(u64::try_from(siblings.len()).unwrap_or(u64::MAX))?;
        for sibling in siblings {
            e.bytes(sibling)?;
        }
        Ok(())
    }
}

fn read_path(d: &mut Decoder<'_>) -> Result<Path, Stop> {
    let mut path = Path::default();
    let length = d.array()?.and_then(|length| usize::try_from(length).ok());
    path.length = length.filter(|length| *length <= MAX_PATH).ok_or(EvidenceError::Shape)?;
    for sibling in path.siblings.iter_mut().take(path.length) {
        *sibling = d.bytes()?.try_into().map_err(|_| EvidenceError::Length(8))?;
    }
    Ok(path)
}

#[cfg(test)]
mod tests;
