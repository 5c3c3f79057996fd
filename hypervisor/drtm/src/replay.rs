//! Reads an event log of a dynamic launch as hostile input, and replays it to PCR values.
//!
//! Only what [`crate::log`] writes is accepted: exactly one digest for each algorithm of the header in every
//! record, no EV_NO_ACTION after the header, no PCR that a TPM lacks, not a byte after the last record. A log
//! is a hint until its replay equals what a TPM has quoted.

use crate::digest::{Algorithm, Digest};
use crate::log::{HEADER_TYPE, SIGNATURE};

/// Most algorithms in a header: every bank a TPM may have.
const MAX_ALGORITHMS: usize = 8;
/// PCRs 0 to 23 exist.
const PCR_COUNT: u32 = 24;

/// What is wrong with a log. Positions are byte offsets from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayError {
    /// The log ends in the middle of something that starts here.
    Truncated(usize),
    /// The header is not that of a crypto-agile log of version 2.0.
    Header,
    /// The header lists no algorithm, too many, one twice, or one with a wrong size.
    Algorithms,
    /// The record here does not have each algorithm of the header exactly once.
    Digests(usize),
    /// The record here is of type EV_NO_ACTION: some readers extend those, others do not.
    NoAction(usize),
    /// The record here is for a PCR that no TPM has.
    Pcr(usize),
    /// The header does not list this algorithm.
    NoSuchBank(Algorithm),
}

/// A log that was read to its end without an error.
#[derive(Clone, Copy, Debug)]
pub struct EventLog<'a> {
    records: &'a [u8],
    start: usize,
    algorithms: Algorithms,
}

/// An algorithm's number and the bytes of its digests; those that Dolmen lacks are skipped by size.
#[derive(Clone, Copy, Debug)]
struct Algorithms {
    list: [(u16, u16); MAX_ALGORITHMS],
    count: usize,
}

impl Algorithms {
    fn iter(&self) -> impl Iterator<Item = (u16, u16)> + '_ {
        self.list.iter().take(self.count).copied()
    }

    fn size(&self, id: u16) -> Option<usize> {
        self.iter().find(|(own, _)| *own == id).map(|(_, size)| usize::from(size))
    }
}

/// One record.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// Which PCR was extended.
    pub pcr: u32,
    /// The event's type.
    pub kind: u32,
    /// The event's data.
    pub data: &'a [u8],
    digests: &'a [u8],
    algorithms: Algorithms,
}

impl<'a> Event<'a> {
    /// Its digest in one bank.
    #[must_use]
    pub fn digest(&self, algorithm: Algorithm) -> Option<&'a [u8]> {
        let mut r = Reader { bytes: self.digests, at: 0 };
        for _ in 0..self.algorithms.count {
            let id = r.u16().ok()?;
            let digest = r.take(self.algorithms.size(id)?).ok()?;
            if id == algorithm.id() {
                return Some(digest);
            }
        }
        None
    }
}

impl<'a> EventLog<'a> {
    /// Checks the whole of `bytes`.
    ///
    /// # Errors
    /// [`ReplayError`] for the first thing that is wrong.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ReplayError> {
        let mut r = Reader { bytes, at: 0 };
        let algorithms = read_header(&mut r)?;
        let start = r.at;
        while !r.is_at_end() {
            read_event(&mut r, algorithms)?;
        }
        Ok(Self { records: bytes.get(start..).unwrap_or(&[]), start, algorithms })
    }

    /// The banks of the log that Dolmen can replay.
    pub fn algorithms(&self) -> impl Iterator<Item = Algorithm> + '_ {
        self.algorithms.iter().filter_map(|(id, _)| Algorithm::from_id(id))
    }

    /// Its records, in order.
    pub fn events(&self) -> impl Iterator<Item = Event<'a>> + '_ {
        let mut r = Reader { bytes: self.records, at: 0 };
        // `parse` has read every record once; an error cannot come back, and would end the iteration.
        core::iter::from_fn(
            move || {
                if r.is_at_end() { None } else { read_event(&mut r, self.algorithms).ok() }
            },
        )
    }

    /// Bytes before the first record.
    #[must_use]
    pub const fn header_length(&self) -> usize {
        self.start
    }

    /// The value of `pcr` after all extends that the log lists, from zero: what PCR 17 and 18 start from at a
    /// dynamic launch.
    ///
    /// # Errors
    /// [`ReplayError::NoSuchBank`] if the log does not have that bank.
    pub fn replay(&self, algorithm: Algorithm, pcr: u8) -> Result<Digest, ReplayError> {
        let missing = ReplayError::NoSuchBank(algorithm);
        self.algorithms.size(algorithm.id()).ok_or(missing)?;
        let mut value = Digest::zero(algorithm);
        for event in self.events().filter(|event| event.pcr == u32::from(pcr)) {
            let digest = event.digest(algorithm).ok_or(missing)?;
            value = algorithm.hash(&[value.bytes(), digest]);
        }
        Ok(value)
    }
}

fn read_header(r: &mut Reader<'_>) -> Result<Algorithms, ReplayError> {
    let is_header = r.u32()? == 0 && r.u32()? == HEADER_TYPE && r.take(20)?.iter().all(|byte| *byte == 0);
    let length = r.u32()?;
    let data_start = r.at;
    let is_agile = r.take(16)? == SIGNATURE.as_slice();
    let (_class, version) = (r.u32()?, r.take(4)?);
    // Minor 0, major 2, any errata, 32-bit or 64-bit integers.
    let is_known = matches!(version, [0, 2, _, 1 | 2]);
    if !(is_header && is_agile && is_known) {
        return Err(ReplayError::Header);
    }
    let algorithms = read_algorithms(r)?;
    let vendor = usize::from(r.u8()?);
    r.take(vendor)?;
    let read = r.at.saturating_sub(data_start);
    if usize::try_from(length) == Ok(read) { Ok(algorithms) } else { Err(ReplayError::Header) }
}

fn read_algorithms(r: &mut Reader<'_>) -> Result<Algorithms, ReplayError> {
    let count = usize::try_from(r.u32()?).map_err(|_| ReplayError::Algorithms)?;
    let mut found = Algorithms { list: [(0, 0); MAX_ALGORITHMS], count: 0 };
    if count == 0 || count > MAX_ALGORITHMS {
        return Err(ReplayError::Algorithms);
    }
    for _ in 0..count {
        let (id, size) = (r.u16()?, r.u16()?);
        let is_sized = Algorithm::from_id(id).is_none_or(|own| own.size() == usize::from(size));
        if !is_sized || size == 0 || found.size(id).is_some() {
            return Err(ReplayError::Algorithms);
        }
        if let Some(slot) = found.list.get_mut(found.count) {
            *slot = (id, size);
            found.count = found.count.saturating_add(1);
        }
    }
    Ok(found)
}

fn read_event<'a>(r: &mut Reader<'a>, algorithms: Algorithms) -> Result<Event<'a>, ReplayError> {
    let start = r.at;
    let (pcr, kind, count) = (r.u32()?, r.u32()?, r.u32()?);
    if kind == HEADER_TYPE {
        return Err(ReplayError::NoAction(start));
    }
    if pcr >= PCR_COUNT {
        return Err(ReplayError::Pcr(start));
    }
    if usize::try_from(count) != Ok(algorithms.count) {
        return Err(ReplayError::Digests(start));
    }
    let digests_start = r.at;
    let mut seen = [false; MAX_ALGORITHMS];
    for _ in 0..algorithms.count {
        let id = r.u16()?;
        let index = algorithms.iter().position(|(own, _)| own == id);
        let slot = index.and_then(|index| seen.get_mut(index)).filter(|slot| !**slot);
        *slot.ok_or(ReplayError::Digests(start))? = true;
        r.take(algorithms.size(id).ok_or(ReplayError::Digests(start))?)?;
    }
    let digests = r.bytes.get(digests_start..r.at).unwrap_or(&[]);
    let length = usize::try_from(r.u32()?).map_err(|_| ReplayError::Truncated(start))?;
    let data = r.take(length)?;
    Ok(Event { pcr, kind, data, digests, algorithms })
}

#[derive(Clone, Copy, Debug)]
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn is_at_end(&self) -> bool {
        self.at >= self.bytes.len()
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], ReplayError> {
        let end = self.at.checked_add(count).ok_or(ReplayError::Truncated(self.at))?;
        let taken = self.bytes.get(self.at..end).ok_or(ReplayError::Truncated(self.at))?;
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ReplayError> {
        let at = self.at;
        self.take(N)?.try_into().map_err(|_| ReplayError::Truncated(at))
    }

    fn u8(&mut self) -> Result<u8, ReplayError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn u16(&mut self) -> Result<u16, ReplayError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, ReplayError> {
        Ok(u32::from_le_bytes(self.array()?))
    }
}

#[cfg(test)]
#[path = "replay_tests.rs"]
mod tests;
