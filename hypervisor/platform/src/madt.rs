//! The multiple APIC description table: which processors firmware calls usable.
//!
//! What stands here is believed by nobody: an identifier that belongs to no processor, or to one twice, makes
//! the launch stop, and a processor that is left out stays parked. Specification: ACPI 6.5, 5.2.12.

use crate::acpi::{self, AcpiError, FirmwareMemory, HEADER};

/// Bytes before the first structure: address of the local APIC, and flags.
const FIXED: u32 = HEADER + 8;
/// Processor local APIC, and processor local x2APIC (5.2.12.2 and 5.2.12.12).
const LOCAL_APIC: u8 = 0;
const LOCAL_X2APIC: u8 = 9;
const LOCAL_APIC_BYTES: u8 = 8;
const LOCAL_X2APIC_BYTES: u8 = 16;
/// Flag: the processor is ready for use. One that could be added later is not.
const ENABLED: u8 = 1;
/// Longest structure that is looked into.
const LONGEST: usize = 16;

/// Shows the local APIC ID of every enabled processor in the table behind `rsdp` to `visit`, in the order of the
/// table; a machine without the table names none.
///
/// # Errors
/// [`AcpiError`] if the table is there and cannot be read to its end.
pub fn for_each_cpu(
    memory: &mut impl FirmwareMemory,
    rsdp: u64,
    mut visit: impl FnMut(u32),
) -> Result<(), AcpiError> {
    let Some(table) = acpi::find(memory, rsdp, *b"APIC")? else { return Ok(()) };
    let wrong = AcpiError::Length(table.base);
    if table.length < FIXED {
        return Err(wrong);
    }
    let mut at = FIXED;
    while at < table.length {
        let mut bytes = [0; LONGEST];
        let left = table.length.wrapping_sub(at);
        let whole = usize::try_from(left).unwrap_or(0).min(LONGEST);
        let part = bytes.get_mut(..whole).unwrap_or(&mut []);
        acpi::read(memory, table.base.saturating_add(u64::from(at)), part)?;
        let [_, length, ..] = bytes;
        // Every turn moves on by 2 bytes at least, and never past the end.
        if length < 2 || u32::from(length) > left {
            return Err(wrong);
        }
        if let Some(apic_id) = enabled(&bytes).ok_or(wrong)? {
            visit(apic_id);
        }
        at = at.saturating_add(u32::from(length));
    }
    Ok(())
}

/// The local APIC ID of an enabled processor's structure, nothing for other structures; `None` for one that is
/// too short for its kind.
fn enabled(bytes: &[u8; LONGEST]) -> Option<Option<u32>> {
    match bytes {
        [LOCAL_APIC, length, _, id, flags, ..] => {
            let is_enabled = flags & ENABLED != 0;
            (*length >= LOCAL_APIC_BYTES).then_some(is_enabled.then_some(u32::from(*id)))
        }
        [LOCAL_X2APIC, length, _, _, i0, i1, i2, i3, flags, ..] => {
            let is_enabled = flags & ENABLED != 0;
            let id = u32::from_le_bytes([*i0, *i1, *i2, *i3]);
            (*length >= LOCAL_X2APIC_BYTES).then_some(is_enabled.then_some(id))
        }
        _ => Some(None),
    }
}

/// Reads all of an image of firmware memory with an RSDP at its start: for fuzzing. Gives the number of processors.
///
/// # Errors
/// As [`for_each_cpu`].
pub fn count_cpus(image: &[u8], base: u64) -> Result<usize, AcpiError> {
    let mut count = 0usize;
    for_each_cpu(&mut acpi::Image { base, bytes: image }, base, |_| count = count.saturating_add(1))?;
    Ok(count)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::acpi::build;

    const BASE: u64 = 0x7fe0_0000;
    const TABLE: u64 = BASE + 0x1000;

    fn local(id: u8, flags: u8) -> Vec<u8> {
        vec![0, 8, 1, id, flags, 0, 0, 0]
    }

    fn x2(id: u32, flags: u8) -> Vec<u8> {
        let mut bytes = vec![9, 16, 0, 0];
        bytes.extend(id.to_le_bytes());
        bytes.extend([flags, 0, 0, 0, 7, 0, 0, 0]);
        bytes
    }

    fn cpus(structures: &[Vec<u8>]) -> Result<Vec<u32>, AcpiError> {
        let body = [vec![0; 8], structures.concat()].concat();
        let bytes = build::image(BASE, &[build::table(*b"APIC", &body)]);
        let mut seen = Vec::new();
        for_each_cpu(&mut acpi::Image { base: BASE, bytes: &bytes }, BASE, |id| seen.push(id))?;
        Ok(seen)
    }

    #[test]
    fn enabled_processors_of_both_kinds_are_seen_in_order_and_others_are_not() {
        let io_apic = vec![1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0];
        let structures =
            [local(2, 1), io_apic, local(3, 0), local(4, 2), x2(0x1_0000, 1), x2(300, 0), local(0, 3)];
        assert_eq!(cpus(&structures).unwrap(), [2, 0x1_0000, 0]);
    }

    #[test]
    fn structures_that_do_not_move_on_or_pass_the_end_or_are_too_short_are_errors() {
        let wrong = Err(AcpiError::Length(TABLE));
        assert_eq!(cpus(&[vec![0, 0, 0, 0, 0, 0, 0, 0]]), wrong);
        assert_eq!(cpus(&[vec![0, 1, 0, 0]]), wrong);
        assert_eq!(cpus(&[vec![0, 7, 1, 1, 1, 0, 0]]), wrong);
        assert_eq!(cpus(&[vec![9, 15, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]]), wrong);
        assert_eq!(cpus(&[vec![0, 9, 1, 1, 1, 0, 0, 0]]), wrong);
        assert_eq!(cpus(&[vec![4]]), wrong);
    }

    #[test]
    fn a_table_without_its_fixed_part_is_an_error_and_none_names_nobody() {
        let bytes = build::image(BASE, &[build::table(*b"APIC", &[0; 7])]);
        assert_eq!(count_cpus(&bytes, BASE), Err(AcpiError::Length(TABLE)));
        assert_eq!(count_cpus(&build::image(BASE, &[]), BASE), Ok(0));
    }

    proptest! {
        #[test]
        fn no_structures_make_the_reader_panic_or_run_on(body in prop::collection::vec(any::<u8>(), 0..400)) {
            let bytes = build::image(BASE, &[build::table(*b"APIC", &body)]);
            if let Ok(count) = count_cpus(&bytes, BASE) {
                prop_assert!(count <= body.len() / 8);
            }
        }
    }
}
