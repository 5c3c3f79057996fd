//! Wraps an EFI system partition into a disk image with a GUID partition table.
//!
//! Format: UEFI specification 2.10, chapter 5. All identifiers are fixed, so that images are reproducible.

use anyhow::{Context, Result};

/// Bytes of a sector.
const SECTOR: usize = 512;
/// First sector of the partition: 1 MiB, as every tool aligns.
const FIRST: u64 = 2048;
/// Sectors of the partition entry array: 128 entries of 128 bytes.
const ARRAY_SECTORS: u64 = 32;
/// Bytes of the array.
const ARRAY_BYTES: usize = 128 * 128;
/// "EFI system partition".
const TYPE_ESP: [u8; 16] =
    [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
/// Our disk and our partition: version 4 identifiers drawn once.
const DISK: [u8; 16] =
    [0x6d, 0x1e, 0x3c, 0x5e, 0x0c, 0x61, 0x9b, 0x4b, 0xa1, 0x32, 0xd0, 0x11, 0x8e, 0x4e, 0x64, 0x01];
const PARTITION: [u8; 16] =
    [0x1b, 0x92, 0x74, 0xe0, 0x7a, 0x45, 0x33, 0x4c, 0x8f, 0x10, 0xd0, 0x11, 0x8e, 0x4e, 0x64, 0x02];

/// Where the two copies of the table are.
#[derive(Clone, Copy, Debug)]
struct Place {
    header: u64,
    other_header: u64,
    array: u64,
    last_usable: u64,
}

/// A disk image with `partition`, a multiple of 512 bytes, as its only partition.
pub(crate) fn wrap(partition: &[u8]) -> Result<Vec<u8>> {
    let sectors = u64::try_from(partition.len().div_ceil(SECTOR))?;
    let last = FIRST.checked_add(sectors).context("a partition that is too large")?.saturating_sub(1);
    let backup_array = last.saturating_add(1);
    let backup_header = backup_array.saturating_add(ARRAY_SECTORS);
    let total = backup_header.saturating_add(1);
    let mut disk = vec![0; usize::try_from(total)?.checked_mul(SECTOR).context("a disk that is too large")?];

    put(&mut disk, 0, &protective_mbr(total))?;
    let array = array(last)?;
    let main = Place { header: 1, other_header: backup_header, array: 2, last_usable: last };
    let backup = Place { header: backup_header, other_header: 1, array: backup_array, last_usable: last };
    for place in [main, backup] {
        put(&mut disk, place.header, &header(place, &array)?)?;
        put(&mut disk, place.array, &array)?;
    }
    put(&mut disk, FIRST, partition)?;
    Ok(disk)
}

fn put(disk: &mut [u8], sector: u64, bytes: &[u8]) -> Result<()> {
    let start = usize::try_from(sector)?.checked_mul(SECTOR).context("a sector that is too far out")?;
    let slot = disk.get_mut(start..).and_then(|rest| rest.get_mut(..bytes.len())).context("off the disk")?;
    slot.copy_from_slice(bytes);
    Ok(())
}

/// UEFI specification, table 5-4: one record of type EEh over the whole disk.
fn protective_mbr(total: u64) -> Vec<u8> {
    let sectors = u32::try_from(total.saturating_sub(1)).unwrap_or(u32::MAX);
    let mut mbr = vec![0; 446];
    mbr.extend_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff]);
    mbr.extend_from_slice(&1_u32.to_le_bytes());
    mbr.extend_from_slice(&sectors.to_le_bytes());
    mbr.resize(510, 0);
    mbr.extend_from_slice(&[0x55, 0xaa]);
    mbr
}

/// Table 5-6, one entry used.
fn array(last: u64) -> Result<Vec<u8>> {
    let mut array = Vec::with_capacity(ARRAY_BYTES);
    array.extend_from_slice(&TYPE_ESP);
    array.extend_from_slice(&PARTITION);
    array.extend_from_slice(&FIRST.to_le_bytes());
    array.extend_from_slice(&last.to_le_bytes());
    array.extend_from_slice(&0_u64.to_le_bytes());
    for unit in "Dolmen".encode_utf16() {
        array.extend_from_slice(&unit.to_le_bytes());
    }
    array.resize(ARRAY_BYTES, 0);
    Ok(array)
}

/// Table 5-5.
fn header(place: Place, array: &[u8]) -> Result<Vec<u8>> {
    let mut header = b"EFI PART\0\0\x01\0".to_vec();
    header.extend_from_slice(&92_u32.to_le_bytes());
    header.extend_from_slice(&[0; 8]);
    for sector in [place.header, place.other_header, FIRST, place.last_usable] {
        header.extend_from_slice(&sector.to_le_bytes());
    }
    header.extend_from_slice(&DISK);
    header.extend_from_slice(&place.array.to_le_bytes());
    header.extend_from_slice(&128_u32.to_le_bytes());
    header.extend_from_slice(&128_u32.to_le_bytes());
    header.extend_from_slice(&crc32fast::hash(array).to_le_bytes());
    let checksum = crc32fast::hash(&header);
    header.get_mut(16..20).context("a short header")?.copy_from_slice(&checksum.to_le_bytes());
    header.resize(SECTOR, 0);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_headers_carry_a_sum_that_holds_and_name_each_other() {
        let disk = wrap(&[7; 4 * SECTOR]).unwrap();
        let last = disk.len() / SECTOR - 1;
        for (own, other) in [(1, last), (last, 1)] {
            let mut header = disk[own * SECTOR..own * SECTOR + 92].to_vec();
            let sum: [u8; 4] = header[16..20].try_into().unwrap();
            header[16..20].fill(0);
            assert_eq!(u32::from_le_bytes(sum), crc32fast::hash(&header));
            assert_eq!(header[24..32], (own as u64).to_le_bytes());
            assert_eq!(header[32..40], (other as u64).to_le_bytes());
        }
        assert_eq!(disk[2048 * SECTOR], 7);
        assert_eq!(disk[510..512], [0x55, 0xaa]);
    }
}
