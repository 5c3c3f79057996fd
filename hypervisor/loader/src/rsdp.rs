//! Finds the ACPI root pointer where BIOS firmware leaves it (ACPI 6.5, 5.2.5.1).
#![forbid(unsafe_code)]

use crate::multiboot::Physical;

const SIGNATURE: [u8; 8] = *b"RSD PTR ";
/// The first version's structure, which has its own sum.
const SUMMED: usize = 20;
const STEP: usize = 16;
/// Word that holds the segment of the extended BIOS data area.
const EBDA_SEGMENT: u64 = 0x40e;
const EBDA_SEARCHED: u64 = 0x400;
const BIOS: (u64, u64) = (0xe_0000, 0x10_0000);

/// Address of the root pointer, or `None`.
pub fn find(memory: &impl Physical) -> Option<u64> {
    let mut segment = [0; 2];
    memory.read(EBDA_SEGMENT, &mut segment);
    let ebda = u64::from(u16::from_le_bytes(segment)) << 4;
    let areas = [(ebda, ebda.saturating_add(EBDA_SEARCHED)), BIOS];
    areas
        .into_iter()
        .flat_map(|(base, end)| (base..end).step_by(STEP))
        .find(|at| is_root_pointer(memory, *at))
}

fn is_root_pointer(memory: &impl Physical, at: u64) -> bool {
    let mut bytes = [0; SUMMED];
    memory.read(at, &mut bytes);
    bytes.starts_with(&SIGNATURE) && bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake(u64, [u8; SUMMED]);

    impl Physical for Fake {
        fn read(&self, address: u64, bytes: &mut [u8]) {
            if address == self.0 {
                bytes.copy_from_slice(&self.1[..bytes.len()]);
            }
        }
    }

    #[test]
    fn the_root_pointer_is_found_by_signature_and_sum() {
        let mut bytes = [0; SUMMED];
        bytes[..8].copy_from_slice(&SIGNATURE);
        bytes[8] = 0u8.wrapping_sub(bytes.iter().fold(0, |sum: u8, b| sum.wrapping_add(*b)));
        assert_eq!(find(&Fake(0xf_5a20, bytes)), Some(0xf_5a20));
        bytes[8] ^= 1;
        assert_eq!(find(&Fake(0xf_5a20, bytes)), None);
    }
}
