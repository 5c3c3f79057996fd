//! ACPI, IVRS and MADT: whatever firmware's memory holds, the search ends, in bounded work.
#![no_main]

use dolmen_platform::{ivrs, madt};

/// Where the image of firmware's memory lies.
const BASE: u64 = 0x7fe0_0000;

/// Makes `bytes[range]` sum to zero by its byte `at`.
fn fix(bytes: &mut [u8], range: std::ops::Range<usize>, at: usize) {
    if let Some(part) = bytes.get_mut(range) {
        part[at] = 0;
        part[at] = part.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    }
}

/// Firmware's memory, sound down to the one table, so that the fuzzer gets there; its own bytes are the table's body.
fn image(signature: &[u8; 4], bytes: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 0x100];
    image[..8].copy_from_slice(b"RSD PTR ");
    image[15] = 2;
    image[24..32].copy_from_slice(&(BASE + 0x40).to_le_bytes());
    image[0x40..0x44].copy_from_slice(b"XSDT");
    image[0x44] = 36 + 8;
    image[0x64..0x6c].copy_from_slice(&(BASE + 0x100).to_le_bytes());
    image.extend_from_slice(signature);
    image.extend(u32::try_from(bytes.len() + 36).unwrap_or(0).to_le_bytes());
    image.extend([0; 28]);
    image.extend_from_slice(bytes);
    fix(&mut image, 0..20, 8);
    fix(&mut image, 0..36, 32);
    fix(&mut image, 0x40..0x6c, 9);
    let end = image.len();
    fix(&mut image, 0x100..end, 9);
    image
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let units = ivrs::count_units(&image(b"IVRS", bytes), BASE);
    assert!(units.is_ok_and(|count| count <= bytes.len() / 24 + 1) || units.is_err());
    let cpus = madt::count_cpus(&image(b"APIC", bytes), BASE);
    assert!(cpus.is_ok_and(|count| count <= bytes.len() / 8) || cpus.is_err());
    // And with nothing mended.
    let _ = ivrs::count_units(bytes, BASE);
    let _ = madt::count_cpus(bytes, BASE);
});
