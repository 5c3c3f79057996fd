//! The ACPI tables of a guest: RSDP, XSDT, FADT, MADT, DSDT, SPCR (ACPI 6.5, chapter 5).
//!
//! Hardware-reduced: no PIC, no PM timer, no SCI, no FACS. Power-off and reset are the two registers of
//! [`crate::device::power`]. The tables lie where firmware of PCs has them, so that guests find them by
//! searching too.

mod aml;
mod table;

use dolmen_memory::{Gpa, GuestMemory, OutsideRam};

use crate::board::SerialPort;
use crate::device::{cmos, power};
use crate::layout::{ACPI_TABLES, IO_APIC_BASE, LOCAL_APIC_BASE};
use table::Table;

/// Most virtual processors that the tables can describe.
pub const MAX_VCPUS: u32 = 64;

/// The machine that the tables describe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TablesConfig {
    /// Virtual processors, with APIC IDs from 0.
    pub vcpus: u32,
    /// Whether [`SerialPort::Com2`] is there.
    pub second_uart: bool,
}

/// Why the tables could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcpiError {
    /// More than [`MAX_VCPUS`], or none.
    VcpuCount(u32),
    /// The guest has no RAM where the tables belong.
    OutsideRam,
}

impl From<OutsideRam> for AcpiError {
    fn from(OutsideRam: OutsideRam) -> Self {
        Self::OutsideRam
    }
}

/// Writes the tables; answers where the RSDP is.
///
/// # Errors
/// [`AcpiError`], which says why.
pub fn write_tables(memory: &mut impl GuestMemory, config: &TablesConfig) -> Result<Gpa, AcpiError> {
    let vcpus = config.vcpus;
    if !(1..=MAX_VCPUS).contains(&vcpus) {
        return Err(AcpiError::VcpuCount(vcpus));
    }
    let mut next = ACPI_TABLES.start.saturating_add(RSDP_SPACE);
    let mut place = |table: Table, memory: &mut _| -> Result<u64, AcpiError> {
        let at = next;
        next = at.saturating_add(table.space());
        if next > ACPI_TABLES.end {
            return Err(AcpiError::VcpuCount(vcpus));
        }
        table.write(memory, Gpa::new(at))?;
        Ok(at)
    };
    let dsdt = place(aml::dsdt(config), memory)?;
    let fadt = place(fadt(dsdt), memory)?;
    let madt = place(madt(vcpus), memory)?;
    let spcr = place(spcr(), memory)?;
    let mut xsdt = Table::new(*b"XSDT", 1);
    for table in [fadt, madt, spcr] {
        xsdt.u64(table);
    }
    let xsdt = place(xsdt, memory)?;
    write_rsdp(memory, xsdt)?;
    Ok(Gpa::new(ACPI_TABLES.start))
}

const RSDP_SPACE: u64 = 64;
const RSDP_FIRST_PART: usize = 20;
const RSDP_LENGTH: usize = 36;

/// Root system description pointer, revision 2; each of its two sums covers it from the start.
fn write_rsdp(memory: &mut impl GuestMemory, xsdt: u64) -> Result<(), OutsideRam> {
    let mut rsdp = [0u8; RSDP_LENGTH];
    rsdp[..8].copy_from_slice(b"RSD PTR ");
    rsdp[9..15].copy_from_slice(&table::OEM_ID);
    rsdp[15] = 2;
    rsdp[20] = rsdp.len().to_le_bytes()[0];
    rsdp[24..32].copy_from_slice(&xsdt.to_le_bytes());
    rsdp[8] = table::checksum(&rsdp[..RSDP_FIRST_PART]);
    rsdp[32] = table::checksum(&rsdp);
    memory.write(Gpa::new(ACPI_TABLES.start), &rsdp)
}

/// Fixed ACPI description table, revision 6 (ACPI 6.5, table 5.9).
fn fadt(dsdt: u64) -> Table {
    const LENGTH: usize = 276;
    const PROFILE_ENTERPRISE_SERVER: u8 = 4;
    const NO_VGA: u16 = 1 << 2;
    const FLAGS: u32 = 1 // WBINVD works
        | 1 << 4 | 1 << 5 // no fixed power or sleep button
        | 1 << 6 // no RTC wake-up in fixed hardware
        | 1 << 10 // reset register
        | 1 << 20; // hardware-reduced
    let mut fadt = Table::new(*b"FACP", 6);
    fadt.zeroes_to(45);
    fadt.u8(PROFILE_ENTERPRISE_SERVER);
    fadt.zeroes_to(108);
    fadt.u8(cmos::CENTURY);
    fadt.u16(NO_VGA);
    fadt.zeroes_to(112);
    fadt.u32(FLAGS);
    fadt.port_register(power::RESET_CONTROL);
    fadt.u8(power::RESET_VALUE);
    fadt.zeroes_to(131);
    fadt.u8(5); // minor version
    fadt.zeroes_to(140);
    fadt.u64(dsdt);
    fadt.zeroes_to(244);
    fadt.port_register(power::SLEEP_CONTROL);
    fadt.port_register(power::SLEEP_STATUS);
    fadt.bytes(b"DolmenVM");
    fadt.zeroes_to(LENGTH);
    fadt
}

/// Multiple APIC description table: processors, the I/O APIC, and which local input is for NMIs; there is no
/// PIC, and each interrupt has the pin of its number, so nothing is overridden (ACPI 6.5, 5.2.12). APIC IDs
/// below 255 must not be told in x2APIC entries.
fn madt(vcpus: u32) -> Table {
    const ENABLED: u32 = 1;
    const ALL_PROCESSORS: u8 = 0xff;
    const NMI_INPUT: u8 = 1;
    let mut madt = Table::new(*b"APIC", 5);
    madt.u32(LOW_LOCAL_APIC);
    madt.u32(0); // flags: not PC-AT compatible
    for (_, id) in (0..vcpus).zip(0u8..) {
        madt.bytes(&[0, 8, id, id]); // processor local APIC, processor UID, APIC ID
        madt.u32(ENABLED);
    }
    madt.bytes(&[1, 12, 0, 0]); // I/O APIC with ID 0
    madt.u32(LOW_IO_APIC);
    madt.u32(0); // its first pin is interrupt 0
    madt.bytes(&[4, 6, ALL_PROCESSORS]); // local APIC NMI
    madt.u16(0); // polarity and trigger as the bus has them
    madt.u8(NMI_INPUT);
    madt
}

#[expect(clippy::as_conversions, reason = "constants below 4 GiB, checked by the next line")]
const LOW_LOCAL_APIC: u32 = LOCAL_APIC_BASE as u32;
#[expect(clippy::as_conversions, reason = "constants below 4 GiB, checked by the next line")]
const LOW_IO_APIC: u32 = IO_APIC_BASE as u32;
const _: () =
    assert!(LOCAL_APIC_BASE >> 32 == 0 && IO_APIC_BASE >> 32 == 0, "the tables have 32 bits for them");

/// Serial port console redirection table, revision 2.
fn spcr() -> Table {
    const INTERRUPT_BY_IO_APIC: u8 = 1 << 1;
    const BAUD_115200: u8 = 7;
    const ANSI: u8 = 3;
    let mut spcr = Table::new(*b"SPCR", 2);
    spcr.u32(0); // 16550
    spcr.port_register(SerialPort::Com1.port());
    spcr.bytes(&[INTERRUPT_BY_IO_APIC, SerialPort::Com1.pin()]);
    spcr.u32(u32::from(SerialPort::Com1.pin()));
    spcr.bytes(&[BAUD_115200, 0, 1, 0, ANSI, 0]); // no parity, one stop bit, no flow control
    spcr.u16(u16::MAX); // not a PCI device
    spcr.u16(u16::MAX);
    spcr.zeroes_to(80);
    spcr
}

#[cfg(test)]
mod tests;
