//! The differentiated description table, assembled by hand (ACPI 6.5, chapter 20).
//!
//! ```text
//! Name (\_S5, Package (4) { 5, 0, 0, 0 })
//! Scope (\_SB) {
//!     Device (C000) { Name (_HID, "ACPI0007")  Name (_UID, 0) }               // one for each processor
//!     Device (COM1) { Name (_HID, EisaId ("PNP0501"))  Name (_UID, 1)  Name (_CRS, ports, interrupt) }
//!     Device (COM2) { the same with 2 }                                        // where there is one
//!     Device (RTC)  { Name (_HID, EisaId ("PNP0B00"))  Name (_CRS, ports) }
//! }
//! ```

use super::TablesConfig;
use super::table::Table;
use crate::board::{SerialPort, UART_PORTS};
use crate::device::{cmos, power};

const ZERO: u8 = 0x00;
const NAME: u8 = 0x08;
const BYTE: u8 = 0x0a;
const DWORD: u8 = 0x0c;
const STRING: u8 = 0x0d;
const SCOPE: u8 = 0x10;
const BUFFER: u8 = 0x11;
const PACKAGE: u8 = 0x12;
const ROOT: u8 = 0x5c;
const DEVICE: [u8; 2] = [0x5b, 0x82];

/// Compressed identifiers: three letters of five bits, four digits.
const EISA_SERIAL_PORT: [u8; 4] = [0x41, 0xd0, 0x05, 0x01];
const EISA_CLOCK: [u8; 4] = [0x41, 0xd0, 0x0b, 0x00];

/// The table.
pub(super) fn dsdt(config: &TablesConfig) -> Table {
    let mut table = Table::new(*b"DSDT", 2);
    table.bytes(&[NAME, ROOT]);
    table.bytes(b"_S5_");
    block(&mut table, &[PACKAGE], |table| {
        table.bytes(&[4, BYTE, power::SOFT_OFF_TYPE, ZERO, ZERO, ZERO]);
    });
    block(&mut table, &[SCOPE], |table| {
        table.u8(ROOT);
        table.bytes(b"_SB_");
        for (_, id) in (0..config.vcpus).zip(0u8..) {
            processor(table, id);
        }
        serial_port(table, b"COM1", SerialPort::Com1);
        if config.second_uart {
            serial_port(table, b"COM2", SerialPort::Com2);
        }
        device(table, b"RTC_", EISA_CLOCK, |table| {
            resources(table, |table| ports(table, cmos::INDEX, 2));
        });
    });
    table
}

/// `opcode`, the length of all that follows, and `body`. The length always takes two bytes.
fn block(table: &mut Table, opcode: &[u8], body: impl FnOnce(&mut Table)) {
    table.bytes(opcode);
    let start = table.length();
    table.u16(0);
    body(table);
    let length = u16::try_from(table.length().saturating_sub(start)).unwrap_or(0xfff);
    let [low, high] = (length & 0xf | (length & 0xff0) << 4 | 0x40).to_le_bytes();
    table.patch(start, &[low, high]);
}

/// A processor device, which the MADT's entry with this UID belongs to.
fn processor(table: &mut Table, id: u8) {
    block(table, &DEVICE, |table| {
        let digit = |nibble: u8| if nibble < 10 { nibble | b'0' } else { nibble.wrapping_add(b'A' - 10) };
        table.bytes(&[b'C', b'0', digit(id >> 4), digit(id & 0xf), NAME]);
        table.bytes(b"_HID");
        table.u8(STRING);
        table.bytes(b"ACPI0007\0");
        table.u8(NAME);
        table.bytes(b"_UID");
        table.bytes(&[BYTE, id]);
    });
}

fn serial_port(table: &mut Table, name: &[u8; 4], port: SerialPort) {
    device(table, name, EISA_SERIAL_PORT, |table| {
        table.u8(NAME);
        table.bytes(b"_UID");
        let number = u8::try_from(port.index()).unwrap_or(u8::MAX).saturating_add(1);
        table.bytes(&[BYTE, number]);
        resources(table, |table| {
            ports(table, port.port(), UART_PORTS.to_le_bytes()[0]);
            interrupt(table, port.pin());
        });
    });
}

fn device(table: &mut Table, name: &[u8; 4], eisa_id: [u8; 4], body: impl FnOnce(&mut Table)) {
    block(table, &DEVICE, |table| {
        table.bytes(name);
        table.u8(NAME);
        table.bytes(b"_HID");
        table.u8(DWORD);
        table.bytes(&eisa_id);
        body(table);
    });
}

/// `Name (_CRS, ResourceTemplate () { body })`.
fn resources(table: &mut Table, body: impl FnOnce(&mut Table)) {
    table.u8(NAME);
    table.bytes(b"_CRS");
    block(table, &[BUFFER], |table| {
        table.u8(BYTE);
        let size_at = table.length();
        table.u8(0);
        body(table);
        table.bytes(&[0x79, 0]); // end tag; a sum of 0 is not checked
        let size = table.length().saturating_sub(size_at).saturating_sub(1);
        table.patch(size_at, &[u8::try_from(size).unwrap_or(u8::MAX)]);
    });
}

/// I/O port descriptor: 16 address bits decoded (ACPI 6.5, 6.4.2.5).
fn ports(table: &mut Table, first: u16, count: u8) {
    table.bytes(&[0x47, 1]);
    table.u16(first);
    table.u16(first);
    table.bytes(&[1, count]);
}

/// Extended interrupt descriptor: consumer, edge-triggered, active high, exclusive (ACPI 6.5, 6.4.3.6).
fn interrupt(table: &mut Table, pin: u8) {
    table.bytes(&[0x89, 6, 0, 0b0011, 1]);
    table.u32(u32::from(pin));
}
