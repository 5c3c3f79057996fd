//! Finds an ACPI table, bounded and without trust: RSDP, then XSDT or RSDT.
//!
//! Tables are read through [`FirmwareMemory`], which refuses addresses where a read could have an effect.
//! Nothing that is read here makes anything allowed: see [`crate::ivrs`]. Specification: ACPI 6.5, 5.2.

/// Reads memory that firmware filled.
pub trait FirmwareMemory {
    /// Copies from physical address `at`.
    ///
    /// # Errors
    /// [`Unreadable`] if any byte is not in memory that may be read.
    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<(), Unreadable>;
}

/// Not memory that may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

/// What is wrong with the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcpiError {
    /// A pointer leads to what is no readable memory.
    Unreadable(u64),
    /// The table at this address does not have the signature of what it must be.
    Signature(u64),
    /// The bytes of the table at this address do not sum to zero.
    Checksum(u64),
    /// The table at this address is shorter or longer than such a table can be.
    Length(u64),
}

/// Bytes of the header that all tables but the RSDP begin with.
pub const HEADER: u32 = 36;
/// Longest table that is read: a 1,024-node machine's IVRS is shorter.
pub const MAX_TABLE: u32 = 0x1_0000;
/// Most entries of an XSDT or RSDT that are looked at.
const MAX_ENTRIES: u32 = 256;

/// Where a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its first byte.
    pub base: u64,
    /// Its length, header included; checked.
    pub length: u32,
}

/// The table `signature`, if there is one. Its checksum and length are right, at the time of reading.
///
/// # Errors
/// [`AcpiError`] for the first thing that is wrong on the way to it.
pub fn find(
    memory: &mut impl FirmwareMemory,
    rsdp: u64,
    signature: [u8; 4],
) -> Result<Option<Table>, AcpiError> {
    let (root, entry_bytes) = read_rsdp(memory, rsdp)?;
    let want = if entry_bytes == 8 { *b"XSDT" } else { *b"RSDT" };
    let table = open(memory, root, want)?;
    let body = table.length.saturating_sub(HEADER);
    let entries = body.checked_div(entry_bytes).unwrap_or(0);
    if !body.is_multiple_of(entry_bytes) || entries > MAX_ENTRIES {
        return Err(AcpiError::Length(root));
    }
    for index in 0..entries {
        let at = HEADER.wrapping_add(index.wrapping_mul(entry_bytes));
        let mut raw = [0; 8];
        let len = usize::try_from(entry_bytes).unwrap_or(8).min(8);
        read(memory, root.saturating_add(u64::from(at)), raw.get_mut(..len).unwrap_or(&mut []))?;
        let base = u64::from_le_bytes(raw);
        let mut found = [0; 4];
        read(memory, base, &mut found)?;
        if found == signature {
            return open(memory, base, signature).map(Some);
        }
    }
    Ok(None)
}

/// The root table's address, and the bytes of its entries.
fn read_rsdp(memory: &mut impl FirmwareMemory, at: u64) -> Result<(u64, u32), AcpiError> {
    const VERSION_1: usize = 20;
    let mut rsdp = [0; 36];
    read(memory, at, &mut rsdp)?;
    let (version_1, rest) = rsdp.split_at(VERSION_1);
    if !version_1.starts_with(b"RSD PTR ") {
        return Err(AcpiError::Signature(at));
    }
    if sum(version_1) != 0 {
        return Err(AcpiError::Checksum(at));
    }
    let [.., revision, r0, r1, r2, r3] = version_1 else { return Err(AcpiError::Length(at)) };
    if *revision < 2 {
        return Ok((u64::from(u32::from_le_bytes([*r0, *r1, *r2, *r3])), 4));
    }
    if sum(&rsdp) != 0 {
        return Err(AcpiError::Checksum(at));
    }
    let [_, _, _, _, x @ .., _, _, _, _] = rest else { return Err(AcpiError::Length(at)) };
    Ok((u64::from_le_bytes(x.try_into().map_err(|_| AcpiError::Length(at))?), 8))
}

/// Checks the header and the sum of the table at `base`.
fn open(memory: &mut impl FirmwareMemory, base: u64, signature: [u8; 4]) -> Result<Table, AcpiError> {
    let mut head = [0; 8];
    read(memory, base, &mut head)?;
    let [s0, s1, s2, s3, l0, l1, l2, l3] = head;
    if [s0, s1, s2, s3] != signature {
        return Err(AcpiError::Signature(base));
    }
    let length = u32::from_le_bytes([l0, l1, l2, l3]);
    if !(HEADER..=MAX_TABLE).contains(&length) {
        return Err(AcpiError::Length(base));
    }
    let mut total = 0u8;
    let mut chunk = [0; 64];
    let mut at = 0;
    while at < length {
        let count = usize::try_from(length.wrapping_sub(at)).unwrap_or(0).min(chunk.len());
        let part = chunk.get_mut(..count).unwrap_or(&mut []);
        read(memory, base.saturating_add(u64::from(at)), part)?;
        total = total.wrapping_add(sum(part));
        at = at.saturating_add(64);
    }
    if total == 0 { Ok(Table { base, length }) } else { Err(AcpiError::Checksum(base)) }
}

pub(crate) fn read(memory: &mut impl FirmwareMemory, at: u64, into: &mut [u8]) -> Result<(), AcpiError> {
    memory.read(at, into).map_err(|Unreadable| AcpiError::Unreadable(at))
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Firmware memory in a buffer: for tests and fuzzing.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// Physical address of the first byte.
    pub base: u64,
    /// The bytes.
    pub bytes: &'a [u8],
}

impl FirmwareMemory for Image<'_> {
    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        let start = at.checked_sub(self.base).and_then(|n| usize::try_from(n).ok()).ok_or(Unreadable)?;
        let end = start.checked_add(into.len()).ok_or(Unreadable)?;
        into.copy_from_slice(self.bytes.get(start..end).ok_or(Unreadable)?);
        Ok(())
    }
}

/// Builders of tables for tests.
#[cfg(test)]
pub(crate) mod build {
    pub(crate) fn fix(bytes: &mut [u8], at: usize) {
        bytes[at] = 0;
        bytes[at] = 0u8.wrapping_sub(super::sum(bytes));
    }

    pub(crate) fn table(signature: [u8; 4], body: &[u8]) -> Vec<u8> {
        let mut bytes = signature.to_vec();
        bytes.extend((36 + body.len() as u32).to_le_bytes());
        bytes.resize(36, 0);
        bytes.extend(body);
        fix(&mut bytes, 9);
        bytes
    }

    /// RSDP at 0, XSDT at 0x40, then the tables; everything at `base`.
    pub(crate) fn image(base: u64, tables: &[Vec<u8>]) -> Vec<u8> {
        let mut at = base + 0x1000;
        let mut entries = Vec::new();
        let mut tail: Vec<u8> = Vec::new();
        for table in tables {
            entries.extend(at.to_le_bytes());
            tail.extend(table);
            at += table.len() as u64;
        }
        let mut bytes = b"RSD PTR ".to_vec();
        bytes.resize(36, 0);
        bytes[15] = 2;
        bytes[20] = 36;
        bytes[24..32].copy_from_slice(&(base + 0x40).to_le_bytes());
        fix(&mut bytes[..20], 8);
        fix(&mut bytes, 32);
        bytes.resize(0x40, 0);
        bytes.extend(table(*b"XSDT", &entries));
        bytes.resize(0x1000, 0);
        bytes.extend(tail);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BASE: u64 = 0x7fe0_0000;

    fn two() -> Vec<u8> {
        build::image(BASE, &[build::table(*b"FACP", &[1; 100]), build::table(*b"IVRS", &[2; 60])])
    }

    fn look(bytes: &[u8], signature: &[u8; 4]) -> Result<Option<Table>, AcpiError> {
        find(&mut Image { base: BASE, bytes }, BASE, *signature)
    }

    #[test]
    fn a_table_is_found_by_its_signature() {
        let ivrs = Table { base: BASE + 0x1000 + 136, length: 96 };
        assert_eq!(look(&two(), b"IVRS"), Ok(Some(ivrs)));
        assert_eq!(look(&two(), b"DMAR"), Ok(None));
    }

    #[test]
    fn an_old_root_pointer_leads_to_32_bit_entries() {
        let mut bytes = two();
        let ivrs = 0x1000 + 136;
        bytes[15] = 0;
        bytes[16..20].copy_from_slice(&(BASE as u32 + 0x800).to_le_bytes());
        build::fix(&mut bytes[..20], 8);
        let rsdt = build::table(*b"RSDT", &(BASE as u32 + ivrs).to_le_bytes());
        bytes[0x800..0x800 + rsdt.len()].copy_from_slice(&rsdt);
        let found = look(&bytes, b"IVRS").unwrap().unwrap();
        assert_eq!(found.base, BASE + u64::from(ivrs));
    }

    #[test]
    fn what_is_broken_on_the_way_is_named() {
        let broken = |change: fn(&mut Vec<u8>)| {
            let mut bytes = two();
            change(&mut bytes);
            look(&bytes, b"IVRS")
        };
        let xsdt = BASE + 0x40;
        let ivrs = BASE + 0x1000 + 136;
        assert_eq!(look(&[], b"IVRS"), Err(AcpiError::Unreadable(BASE)));
        assert_eq!(broken(|b| b[0] = b'r'), Err(AcpiError::Signature(BASE)));
        assert_eq!(broken(|b| b[8] ^= 1), Err(AcpiError::Checksum(BASE)));
        assert_eq!(broken(|b| b[33] ^= 1), Err(AcpiError::Checksum(BASE)));
        assert_eq!(broken(|b| b[0x40] = 0), Err(AcpiError::Signature(xsdt)));
        assert_eq!(broken(|b| b[0x44] = 35), Err(AcpiError::Length(xsdt)));
        assert_eq!(broken(|b| b[0x47] = 1), Err(AcpiError::Length(xsdt)));
        assert_eq!(broken(|b| b[0x4a] ^= 1), Err(AcpiError::Checksum(xsdt)));
        assert_eq!(broken(|b| b.truncate(0x1000 + 150)), Err(AcpiError::Unreadable(ivrs)));
        assert_eq!(broken(|b| b[0x1000 + 200] ^= 1), Err(AcpiError::Checksum(ivrs)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_search_panic_or_run_on(
            changes in prop::collection::vec((0usize..0x70, any::<u8>()), 0..8),
            cut in 0usize..0x1100,
        ) {
            let mut bytes = two();
            for (at, value) in changes {
                bytes[at] = value;
            }
            build::fix(&mut bytes[..20], 8);
            build::fix(&mut bytes[..36], 32);
            bytes.truncate(cut);
            if let Ok(Some(table)) = look(&bytes, b"IVRS") {
                prop_assert!(table.base + u64::from(table.length) <= BASE + bytes.len() as u64);
            }
        }
    }
}
