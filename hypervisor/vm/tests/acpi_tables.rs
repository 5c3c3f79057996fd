//! The guest's ACPI tables as the reference disassembler reads them.
#![cfg(not(miri))] // it runs another program
#![expect(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "tests may fail loudly"
)]

use std::path::PathBuf;
use std::process::Command;

use dolmen_memory::{Gpa, GuestMemory, OutsideRam};
use dolmen_vm::acpi::{TablesConfig, write_tables};

struct Ram(Vec<u8>);

impl GuestMemory for Ram {
    fn read(&self, _: Gpa, _: &mut [u8]) -> Result<(), OutsideRam> {
        Err(OutsideRam)
    }

    fn write(&mut self, at: Gpa, from: &[u8]) -> Result<(), OutsideRam> {
        let at = usize::try_from(at.get()).map_err(|_| OutsideRam)?;
        self.0.get_mut(at..at + from.len()).ok_or(OutsideRam)?.copy_from_slice(from);
        Ok(())
    }
}

/// Finds the table with this signature in the table area.
fn table(signature: &[u8]) -> Vec<u8> {
    let mut ram = Ram(vec![0; 0x10_0000]);
    write_tables(&mut ram, &TablesConfig { vcpus: 2, second_uart: true }).unwrap();
    let area = &ram.0[0xe_0000..];
    let at = area.chunks(16).position(|chunk| chunk.starts_with(signature)).expect("the table is there") * 16;
    let length = u32::from_le_bytes(area[at + 4..at + 8].try_into().unwrap());
    area[at..at + length as usize].to_vec()
}

/// Disassembles a table; any complaint fails.
fn disassembled(signature: &str) -> String {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("acpi").join(signature);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("table.aml"), table(signature.as_bytes())).unwrap();
    let run = Command::new("iasl").args(["-d", "table.aml"]).current_dir(&folder).output();
    let output = run.expect("`iasl` runs: install the package acpica-tools");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let text = std::fs::read_to_string(folder.join("table.dsl")).unwrap();
    for complaint in ["Error", "Warning", "Invalid", "Unknown", "Incorrect", "not match"] {
        assert!(!said.contains(complaint) && !text.contains(complaint), "{complaint}: {said}\n{text}");
    }
    text
}

/// The text without its comments and white space.
fn condensed(text: &str) -> String {
    let without: String = text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    without.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_dsdt_is_what_its_source_says() {
    let text = condensed(&disassembled("DSDT"));
    for wanted in [
        "Name (\\_S5, Package (0x04)",
        "Device (C000) { Name (_HID, \"ACPI0007\"",
        "Device (C001)",
        "Name (_HID, EisaId (\"PNP0501\")",
        "IO (Decode16, 0x03F8,",
        "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive, ,, ) { 0x00000004, }",
        "IO (Decode16, 0x02F8,",
        "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive, ,, ) { 0x00000003, }",
        "Name (_HID, EisaId (\"PNP0B00\")",
        "IO (Decode16, 0x0070,",
    ] {
        assert!(text.contains(wanted), "{wanted}\n{text}");
    }
}

#[test]
fn the_data_tables_disassemble_without_complaint() {
    for (signature, wanted) in [
        ("FACP", "Hardware Reduced (V5) : 1"),
        ("APIC", "[I/O APIC]"),
        ("APIC", "[Local APIC NMI]"),
        ("SPCR", "Interface Type : 00"),
        ("XSDT", "ACPI Table Address 2"),
    ] {
        let text = condensed(&disassembled(signature));
        assert!(text.contains(wanted), "{signature}: {wanted}\n{text}");
    }
}
