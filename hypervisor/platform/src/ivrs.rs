//! The I/O virtualisation reporting structure: what firmware says of IOMMUs.
//!
//! Units are found by scanning PCI configuration space. What this table says may only add reasons to refuse:
//! a unit that it names and the scan did not find may be one that was hidden from the scan.
//! Specification: AMD I/O Virtualization Technology (IOMMU) Specification 3.08, 5.2.

use crate::acpi::{self, AcpiError, FirmwareMemory, HEADER};

/// Bytes after the header, before the first block: IVinfo and 8 reserved.
const FIXED: u32 = HEADER + 12;
/// Blocks that describe a unit (10h, 11h, 40h), and those that describe memory (20h to 22h).
const HARDWARE: [u8; 3] = [0x10, 0x11, 0x40];
/// Bytes of a hardware block's fixed part.
const HARDWARE_BYTES: u16 = 24;

/// A unit as firmware describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Base of its registers.
    pub registers: u64,
    /// PCI segment.
    pub segment: u16,
    /// Requester id of its function.
    pub function: u16,
}

/// Shows every unit that the table behind `rsdp` names to `visit`; a machine without the table has none.
///
/// # Errors
/// [`AcpiError`] if the table is there and cannot be read to its end, or what `visit` answers.
pub fn for_each_unit<E: From<AcpiError>>(
    memory: &mut impl FirmwareMemory,
    rsdp: u64,
    mut visit: impl FnMut(Unit) -> Result<(), E>,
) -> Result<(), E> {
    let Some(table) = acpi::find(memory, rsdp, *b"IVRS")? else { return Ok(()) };
    let wrong = AcpiError::Length(table.base);
    let mut at = FIXED;
    while at < table.length {
        let mut block = [0; 20];
        let left = table.length.wrapping_sub(at);
        let whole = usize::try_from(left).unwrap_or(0).min(block.len());
        let part = block.get_mut(..whole).unwrap_or(&mut []);
        acpi::read(memory, table.base.saturating_add(u64::from(at)), part)?;
        let [kind, _, l0, l1, f0, f1, _, _, b0, b1, b2, b3, b4, b5, b6, b7, s0, s1, ..] = block;
        let length = u16::from_le_bytes([l0, l1]);
        // Every turn moves on by 4 bytes at least, and never past the end.
        if length < 4 || u32::from(length) > left {
            return Err(wrong.into());
        }
        if HARDWARE.contains(&kind) {
            if length < HARDWARE_BYTES {
                return Err(wrong.into());
            }
            visit(Unit {
                registers: u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7]),
                segment: u16::from_le_bytes([s0, s1]),
                function: u16::from_le_bytes([f0, f1]),
            })?;
        }
        at = at.saturating_add(u32::from(length));
    }
    Ok(())
}

/// Reads all of an image of firmware memory with an RSDP at its start: for fuzzing. Gives the number of units.
///
/// # Errors
/// As [`for_each_unit`].
pub fn count_units(image: &[u8], base: u64) -> Result<usize, AcpiError> {
    let mut count = 0usize;
    for_each_unit(&mut acpi::Image { base, bytes: image }, base, |_| {
        count = count.saturating_add(1);
        Ok::<_, AcpiError>(())
    })?;
    Ok(count)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::acpi::build;

    const BASE: u64 = 0x7fe0_0000;
    const TABLE: u64 = BASE + 0x1000;

    fn block(kind: u8, length: u16, registers: u64, segment: u16) -> Vec<u8> {
        let mut bytes = vec![kind, 0];
        bytes.extend(length.to_le_bytes());
        bytes.extend(2u16.to_le_bytes());
        bytes.extend(0x40u16.to_le_bytes());
        bytes.extend(registers.to_le_bytes());
        bytes.extend(segment.to_le_bytes());
        bytes.resize(usize::from(length).max(20), 0);
        bytes
    }

    fn units(blocks: &[Vec<u8>]) -> Result<Vec<Unit>, AcpiError> {
        let body = [vec![0; 12], blocks.concat()].concat();
        let bytes = build::image(BASE, &[build::table(*b"IVRS", &body)]);
        let mut seen = Vec::new();
        for_each_unit(&mut acpi::Image { base: BASE, bytes: &bytes }, BASE, |unit| {
            seen.push(unit);
            Ok::<_, AcpiError>(())
        })?;
        Ok(seen)
    }

    #[test]
    fn units_of_every_block_type_are_seen_and_memory_blocks_skipped() {
        let blocks = [
            block(0x10, 24, 0xfed8_0000, 0),
            block(0x20, 32, 0, 0),
            block(0x11, 40, 0xfed8_0000, 0),
            block(0x40, 56, 0xfd00_0000, 3),
        ];
        let seen = units(&blocks).unwrap();
        let registers: Vec<_> = seen.iter().map(|unit| (unit.registers, unit.segment)).collect();
        assert_eq!(registers, [(0xfed8_0000, 0), (0xfed8_0000, 0), (0xfd00_0000, 3)]);
        assert_eq!(seen[0].function, 2);
    }

    #[test]
    fn blocks_that_do_not_move_on_or_pass_the_end_are_errors() {
        let wrong = Err(AcpiError::Length(TABLE));
        assert_eq!(units(&[block(0x10, 0, 0, 0)]), wrong);
        assert_eq!(units(&[block(0x20, 3, 0, 0)]), wrong);
        assert_eq!(units(&[block(0x10, 20, 0, 0)]), wrong);
        let mut past_end = block(0x10, 24, 0, 0);
        past_end[2] = 25;
        assert_eq!(units(&[past_end]), wrong);
    }

    #[test]
    fn a_machine_without_the_table_names_no_unit() {
        let bytes = build::image(BASE, &[]);
        assert_eq!(count_units(&bytes, BASE), Ok(0));
    }

    proptest! {
        #[test]
        fn no_blocks_make_the_reader_panic_or_run_on(body in prop::collection::vec(any::<u8>(), 0..400)) {
            let bytes = build::image(BASE, &[build::table(*b"IVRS", &body)]);
            if let Ok(count) = count_units(&bytes, BASE) {
                prop_assert!(count <= body.len() / 24 + 1);
            }
        }
    }
}
