//! One table under construction.

use dolmen_memory::{Gpa, GuestMemory, OutsideRam};

/// Who made the tables.
pub(super) const OEM_ID: [u8; 6] = *b"DOLMEN";
const OEM_TABLE_ID: [u8; 8] = *b"DOLMENVM";
const CREATOR_ID: [u8; 4] = *b"DLMN";

const CAPACITY: usize = 2560;
const LENGTH_AT: usize = 4;
const CHECKSUM_AT: usize = 9;
/// Tables start at multiples of this.
const ALIGNMENT: u64 = 16;

/// What to add so that the bytes add up to zero.
pub(super) fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

/// A table: header first, then what is appended. Its capacity fits the largest table of
/// [`super::MAX_VCPUS`], as a test shows; bytes beyond it would be dropped.
pub(super) struct Table {
    bytes: [u8; CAPACITY],
    length: usize,
}

impl Table {
    /// An empty table.
    pub(super) fn new(signature: [u8; 4], revision: u8) -> Self {
        let mut table = Self { bytes: [0; CAPACITY], length: 0 };
        table.bytes(&signature);
        table.u32(0); // length
        table.bytes(&[revision, 0]); // and checksum
        table.bytes(&OEM_ID);
        table.bytes(&OEM_TABLE_ID);
        table.u32(1);
        table.bytes(&CREATOR_ID);
        table.u32(1);
        table
    }

    /// Where the next byte goes.
    pub(super) const fn length(&self) -> usize {
        self.length
    }

    /// Address space to set aside.
    pub(super) fn space(&self) -> u64 {
        u64::try_from(self.length).unwrap_or(u64::MAX).next_multiple_of(ALIGNMENT)
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        let end = self.length.saturating_add(bytes.len());
        if let Some(place) = self.bytes.get_mut(self.length..end) {
            place.copy_from_slice(bytes);
            self.length = end;
        }
    }

    pub(super) fn u8(&mut self, value: u8) {
        self.bytes(&[value]);
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    /// Fills with zeroes up to offset `end`.
    pub(super) fn zeroes_to(&mut self, end: usize) {
        while self.length < end.min(CAPACITY) {
            self.u8(0);
        }
    }

    /// A generic address structure for one byte at `port` (ACPI 6.5, 5.2.3.2).
    pub(super) fn port_register(&mut self, port: u16) {
        const SYSTEM_IO: u8 = 1;
        const BYTE_ACCESS: u8 = 1;
        self.bytes(&[SYSTEM_IO, 8, 0, BYTE_ACCESS]);
        self.u64(u64::from(port));
    }

    /// Overwrites the bytes at `at`.
    pub(super) fn patch(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..at.saturating_add(bytes.len())) {
            place.copy_from_slice(bytes);
        }
    }

    /// Completes the header and writes the table.
    pub(super) fn write(mut self, memory: &mut impl GuestMemory, at: Gpa) -> Result<(), OutsideRam> {
        let length = u32::try_from(self.length).map_err(|_| OutsideRam)?;
        self.patch(LENGTH_AT, &length.to_le_bytes());
        let used = self.bytes.get(..self.length).unwrap_or_default();
        self.patch(CHECKSUM_AT, &[checksum(used)]);
        memory.write(at, self.bytes.get(..self.length).unwrap_or_default())
    }
}
