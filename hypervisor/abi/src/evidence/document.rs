//! What both kinds of evidence have in common: one encoding, and the parts that make up a quote.

use minicbor::decode::Decoder;
use minicbor::encode::{Encoder, Write};

use super::{EvidenceError, MAX_EVENT_LOG};
use crate::{MAX_AK_PUBLIC, MAX_ATTEST, MAX_SIGNATURE};

/// A map whose first entries are the format's name and the parts of a quote.
pub(super) trait Document<'a>: Sized {
    /// None is longer.
    const MAX_BYTES: usize;
    /// Value of key 0.
    const FORMAT: &'static str;
    /// Entries of the map.
    const KEYS: u64;

    /// The parts of a quote: what was signed, the signature, the key, the event log.
    fn quote(&self) -> [&'a [u8]; 4];

    /// Whether what follows them can be.
    fn check_rest(&self) -> Result<(), EvidenceError>;

    /// Reads what follows them.
    fn read_rest(quote: [&'a [u8]; 4], d: &mut Decoder<'a>) -> Result<Self, Stop>;

    /// Writes what follows them.
    fn write_rest<W: Write>(&self, e: &mut Encoder<W>) -> Result<(), minicbor::encode::Error<W::Error>>;
}

/// Reads a document; nothing in `bytes` is trusted.
pub(super) fn decode<'a, D: Document<'a>>(bytes: &'a [u8]) -> Result<D, EvidenceError> {
    if bytes.len() > D::MAX_BYTES {
        return Err(EvidenceError::NotCanonical);
    }
    let mut decoder = Decoder::new(bytes);
    let document: D = read(&mut decoder).map_err(|stop| match stop {
        Stop::Here => EvidenceError::Malformed(decoder.position()),
        Stop::Because(error) => error,
    })?;
    check(&document)?;
    let mut compare = Compare { rest: bytes };
    match write(&document, &mut compare) {
        Ok(()) if compare.rest.is_empty() => Ok(document),
        Ok(()) | Err(_) => Err(EvidenceError::NotCanonical),
    }
}

/// Writes a document to the start of `out`; the length used comes back.
pub(super) fn encode<'a>(document: &impl Document<'a>, out: &mut [u8]) -> Result<usize, EvidenceError> {
    check(document)?;
    let room = out.len();
    let mut rest = out;
    write(document, &mut rest).map_err(|_| EvidenceError::NoRoom)?;
    Ok(room.saturating_sub(rest.len()))
}

/// Whether all parts can be.
pub(super) fn check<'a>(document: &impl Document<'a>) -> Result<(), EvidenceError> {
    let limits = [MAX_ATTEST, MAX_SIGNATURE, MAX_AK_PUBLIC, MAX_EVENT_LOG];
    for (key, (part, limit)) in (1..).zip(document.quote().into_iter().zip(limits)) {
        if part.is_empty() || part.len() > limit {
            return Err(EvidenceError::Length(key));
        }
    }
    document.check_rest()
}

fn read<'a, D: Document<'a>>(d: &mut Decoder<'a>) -> Result<D, Stop> {
    if d.map()? != Some(D::KEYS) {
        return Err(EvidenceError::Format.into());
    }
    key(d, 0)?;
    if d.str()? != D::FORMAT {
        return Err(EvidenceError::Format.into());
    }
    let quote = [part(d, 1)?, part(d, 2)?, part(d, 3)?, part(d, 4)?];
    D::read_rest(quote, d)
}

fn write<'a, D: Document<'a>, W: Write>(
    document: &D,
    out: W,
) -> Result<(), minicbor::encode::Error<W::Error>> {
    let mut e = Encoder::new(out);
    e.map(D::KEYS)?.u8(0)?.str(D::FORMAT)?;
    for (key, part) in (1..).zip(document.quote()) {
        e.u8(key)?.bytes(part)?;
    }
    document.write_rest(&mut e)
}

/// Why reading stopped: where the decoder stands, or for a reason of its own.
pub(super) enum Stop {
    Here,
    Because(EvidenceError),
}

impl From<minicbor::decode::Error> for Stop {
    fn from(_: minicbor::decode::Error) -> Self {
        Self::Here
    }
}

impl From<EvidenceError> for Stop {
    fn from(error: EvidenceError) -> Self {
        Self::Because(error)
    }
}

pub(super) fn key(d: &mut Decoder<'_>, number: u8) -> Result<(), Stop> {
    if d.u8()? == number { Ok(()) } else { Err(EvidenceError::NotCanonical.into()) }
}

/// The bytes under that key.
pub(super) fn part<'a>(d: &mut Decoder<'a>, number: u8) -> Result<&'a [u8], Stop> {
    key(d, number)?;
    Ok(d.bytes()?)
}

/// Takes only the bytes that it already has: encoding into it proves that they are canonical.
struct Compare<'a> {
    rest: &'a [u8],
}

struct Different;

impl Write for Compare<'_> {
    type Error = Different;

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Different> {
        self.rest = self.rest.strip_prefix(bytes).ok_or(Different)?;
        Ok(())
    }
}
