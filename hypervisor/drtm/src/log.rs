//! Writes the TCG crypto-agile event log of a dynamic launch.
//!
//! One header, then one record for each extend, in the order of the extends. Every record has one digest for
//! every algorithm of the header, no record is of type EV_NO_ACTION, nothing follows the last one: readers in
//! use demand each of these. Banks that Dolmen cannot compute are not in the log.
//! Specification: TCG PC Client Platform Firmware Profile 1.06, 10.2 and 10.4; `docs/measurement.md`.

use crate::bank::{BankSet, DigestSet};
use crate::digest::Algorithm;

/// Type of every record: a secure-launch event.
pub const EVENT_TYPE: u32 = 0x502;
/// Type of the header: EV_NO_ACTION.
pub const HEADER_TYPE: u32 = 3;
/// Marks a crypto-agile log.
pub const SIGNATURE: [u8; 16] = *b"Spec ID Event03\0";
/// Event data of the record for what the processor measured.
pub const LAUNCH_EVENT: &[u8] = b"SKINIT";
/// Event data of the record for the core.
pub const CORE_EVENT: &[u8] = b"core";
/// Event data of the record for the manifest.
pub const MANIFEST_EVENT: &[u8] = b"manifest";

/// The header's bytes before the list of algorithms: PCR 0, type, a digest of zeroes, length, signature,
/// platform class 0, version 2.0 errata 0, 64-bit integers.
const HEADER_BYTES: usize = 8 + 20 + 4 + 16 + 4 + 4;

/// The log's buffer is full, or holds no log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogFull;

/// Appends records to a buffer.
#[derive(Debug)]
pub struct LogWriter<'a> {
    buf: &'a mut [u8],
    len: usize,
}

impl<'a> LogWriter<'a> {
    /// Writes the header of a log for the computed banks of `banks`.
    ///
    /// # Errors
    /// [`LogFull`] if `buf` is too short.
    pub fn begin(buf: &'a mut [u8], banks: &BankSet) -> Result<Self, LogFull> {
        let count = banks.algorithms().count();
        // Signature, class, version and width, then the count, the algorithms, and no vendor data.
        let data = count.checked_mul(4).and_then(|n| n.checked_add(16 + 8 + 4 + 1)).ok_or(LogFull)?;
        let mut log = Self { buf, len: 0 };
        let mut header = [0; HEADER_BYTES];
        fill(&mut header, 4, &HEADER_TYPE.to_le_bytes());
        fill(&mut header, 28, &narrow(data)?.to_le_bytes());
        fill(&mut header, 32, &SIGNATURE);
        fill(&mut header, 53, &[2, 0, 2]);
        log.put(&header)?;
        log.put(&narrow(count)?.to_le_bytes())?;
        for algorithm in banks.algorithms() {
            log.put(&algorithm.id().to_le_bytes())?;
            log.put(&size_of(algorithm).to_le_bytes())?;
        }
        log.put(&[0])?;
        Ok(log)
    }

    /// Continues the log that fills the first `len` bytes of `buf`.
    ///
    /// # Errors
    /// [`LogFull`] if `len` is longer than `buf`.
    pub fn resume(buf: &'a mut [u8], len: usize) -> Result<Self, LogFull> {
        if len <= buf.len() { Ok(Self { buf, len }) } else { Err(LogFull) }
    }

    /// Appends the record of an extend of `pcr` with `digests`, which must be of the banks that the log was
    /// begun with. Nothing is written if the whole record does not fit.
    ///
    /// # Errors
    /// [`LogFull`] if it does not fit.
    pub fn append(&mut self, pcr: u8, digests: &DigestSet, data: &[u8]) -> Result<(), LogFull> {
        let start = self.len;
        self.put_record(pcr, digests, data).inspect_err(|_| self.len = start)
    }

    fn put_record(&mut self, pcr: u8, digests: &DigestSet, data: &[u8]) -> Result<(), LogFull> {
        self.put(&u32::from(pcr).to_le_bytes())?;
        self.put(&EVENT_TYPE.to_le_bytes())?;
        self.put(&narrow(digests.measured().count())?.to_le_bytes())?;
        for (algorithm, digest) in digests.measured() {
            self.put(&algorithm.id().to_le_bytes())?;
            self.put(digest)?;
        }
        self.put(&narrow(data.len())?.to_le_bytes())?;
        self.put(data)
    }

    /// Bytes written so far.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing has been written: never, since a log begins with its header.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The log so far.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.buf.get(..self.len).unwrap_or(&[])
    }

    #[inline(never)]
    fn put(&mut self, bytes: &[u8]) -> Result<(), LogFull> {
        let end = self.len.checked_add(bytes.len()).ok_or(LogFull)?;
        self.buf.get_mut(self.len..end).ok_or(LogFull)?.copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }
}

fn fill(header: &mut [u8], at: usize, bytes: &[u8]) {
    for (to, from) in header.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

#[inline(never)]
fn narrow(value: usize) -> Result<u32, LogFull> {
    u32::try_from(value).map_err(|_| LogFull)
}

fn size_of(algorithm: Algorithm) -> u16 {
    u16::try_from(algorithm.size()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn banks(ids: &[u16]) -> BankSet {
        BankSet::select(ids.iter().map(|id| (*id, 0xff_ffff))).unwrap()
    }

    #[test]
    fn the_header_is_the_bytes_that_every_reader_takes() {
        let mut buf = [0xaa; 256];
        let log = LogWriter::begin(&mut buf, &banks(&[0x4, 0xb])).unwrap();
        let want = "00000000030000000000000000000000000000000000000000000000\
                    25000000537065632049442045 76656e743033000000000000020002\
                    02000000040014000b00200000"
            .replace(' ', "");
        assert_eq!(hex::encode(log.bytes()), want);
    }

    #[test]
    fn a_record_has_one_digest_for_each_bank_and_its_data() {
        let banks = banks(&[0xb, 0x12]);
        let mut buf = [0; 256];
        let mut log = LogWriter::begin(&mut buf, &banks).unwrap();
        let start = log.len();
        log.append(18, &DigestSet::of(&banks, b"m"), b"manifest").unwrap();
        let digest = hex::encode(Algorithm::Sha256.hash(&[b"m"]).bytes());
        let want = format!("120000000205000001000000{}{digest}08000000{}", "0b00", hex::encode("manifest"));
        assert_eq!(hex::encode(&log.bytes()[start..]), want);
    }

    #[test]
    fn a_record_that_does_not_fit_leaves_the_log_as_it_was() {
        let banks = banks(&[0xb]);
        let mut buf = [0; 150];
        let mut log = LogWriter::begin(&mut buf, &banks).unwrap();
        let digests = DigestSet::of(&banks, b"");
        log.append(17, &digests, b"SKINIT").unwrap();
        let before = log.bytes().to_vec();
        assert_eq!(log.append(17, &digests, b"core"), Err(LogFull));
        assert_eq!(log.bytes(), before);
        let len = log.len();
        assert_eq!(LogWriter::resume(&mut buf, len).unwrap().bytes(), before);
        assert!(LogWriter::resume(&mut buf, 151).is_err());
    }
}
