use super::*;
use crate::testing::Ram;

fn config(vcpus: u32) -> TablesConfig {
    TablesConfig { vcpus, second_uart: true }
}

fn written(vcpus: u32) -> Ram {
    let mut ram = Ram::new(0x10_0000);
    assert_eq!(write_tables(&mut ram, &config(vcpus)), Ok(Gpa::new(0xe_0000)));
    ram
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

/// A table by signature, found the way a guest finds it; the sums are checked on the way.
fn find(ram: &Ram, signature: &[u8]) -> Vec<u8> {
    assert_eq!(ram.bytes(0xe_0000, 8), b"RSD PTR ");
    assert_eq!((sum(ram.bytes(0xe_0000, 20)), sum(ram.bytes(0xe_0000, 36))), (0, 0));
    let table = |at: u64| {
        let at = at as usize;
        let bytes = ram.bytes(at, ram.u32(at + 4) as usize).to_vec();
        assert_eq!(sum(&bytes), 0, "{:?}", &bytes[..4]);
        bytes
    };
    let word = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let xsdt = table(ram.u64(0xe_0000 + 24));
    let mut all: Vec<_> = (36..xsdt.len()).step_by(8).map(|at| table(word(&xsdt, at))).collect();
    all.push(table(word(&all[0], 140)));
    all.push(xsdt);
    all.into_iter().find(|bytes| bytes.starts_with(signature)).expect("the table is there")
}

#[test]
fn the_fadt_says_how_to_sleep_and_reset_without_fixed_hardware() {
    let fadt = find(&written(1), b"FACP");
    assert_eq!(fadt.len(), 276);
    let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
    assert_eq!((flags >> 20 & 1, flags >> 10 & 1), (1, 1), "hardware-reduced, with a reset register");
    assert_eq!(fadt[116..129], [1, 8, 0, 1, 0xf9, 0x0c, 0, 0, 0, 0, 0, 0, 6]);
    assert_eq!(fadt[244..256], [1, 8, 0, 1, 0x00, 0x06, 0, 0, 0, 0, 0, 0]);
    assert_eq!(fadt[256..268], [1, 8, 0, 1, 0x01, 0x06, 0, 0, 0, 0, 0, 0]);
    assert_eq!((fadt[108], fadt[109]), (0x32, 4), "century register; no VGA, no 8042, but a CMOS clock");
}

#[test]
fn the_madt_lists_every_processor_and_one_io_apic() {
    let madt = find(&written(3), b"APIC");
    assert_eq!(madt[36..44], [0, 0, 0xe0, 0xfe, 0, 0, 0, 0]);
    for id in 0..3 {
        let at = 44 + 8 * usize::from(id);
        assert_eq!(madt[at..at + 8], [0, 8, id, id, 1, 0, 0, 0]);
    }
    assert_eq!(madt[68..80], [1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
    assert_eq!(madt[80..], [4, 6, 0xff, 0, 0, 1], "NMI at the second local input of each");
}

#[test]
fn the_spcr_names_the_console() {
    let spcr = find(&written(1), b"SPCR");
    assert_eq!((spcr.len(), &spcr[40..54]), (80, &[1, 8, 0, 1, 0xf8, 0x03, 0, 0, 0, 0, 0, 0, 2, 4][..]));
}

#[test]
fn the_second_serial_port_is_described_only_where_it_is() {
    for second_uart in [false, true] {
        let mut ram = Ram::new(0x10_0000);
        assert!(write_tables(&mut ram, &TablesConfig { vcpus: 1, second_uart }).is_ok());
        assert_eq!(find(&ram, b"DSDT").windows(4).any(|bytes| bytes == b"COM2"), second_uart);
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes too long in the interpreter")]
fn the_largest_tables_fit_and_do_not_overlap() {
    let ram = written(MAX_VCPUS);
    let dsdt = find(&ram, b"DSDT");
    assert_eq!(dsdt.windows(9).filter(|bytes| bytes == b"ACPI0007\0").count(), 64);
    assert!(find(&ram, b"APIC").len() == 44 + 64 * 8 + 12 + 6);
    assert!(ram.bytes(0xf_0000, 0x1_0000).iter().all(|byte| *byte == 0));
}

#[test]
fn absurd_numbers_of_processors_and_too_little_ram_are_refused() {
    assert_eq!(write_tables(&mut Ram::new(0x10_0000), &config(0)), Err(AcpiError::VcpuCount(0)));
    assert_eq!(write_tables(&mut Ram::new(0x10_0000), &config(65)), Err(AcpiError::VcpuCount(65)));
    assert_eq!(write_tables(&mut Ram::new(0xe_0000), &config(1)), Err(AcpiError::OutsideRam));
}
