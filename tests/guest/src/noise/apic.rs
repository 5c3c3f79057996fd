//! The local APIC and the I/O APIC: every register with every kind of value, every mode, every message that
//! does not start a processor anew.

use super::random::Random;
use crate::{apic, cpu};

const BASE: u32 = 0x1b;
const COMMAND: u32 = 0x830;
const PAGE: u64 = 0xfee0_0000;
const IO_PAGE: u64 = 0xfec0_0000;
const TRIES: u64 = 20_000;

/// Registers at random, then the APIC from the beginning.
pub(super) fn registers(random: &mut Random) -> u64 {
    let tries = random.times(TRIES);
    for turn in 0..tries {
        let value = random.value();
        match random.below(6) {
            0 => local(random, value as u32),
            1 => io(random, value as u32),
            2 => by_msr(random, value),
            3 => mode(random, value),
            _ => message(random, value),
        }
        if turn % 64 == 0 {
            apic::reset();
            drain();
        }
    }
    apic::reset();
    drain();
    quiet_io();
    tries
}

/// A register of the page; in x2APIC mode the page is not there.
fn local(random: &mut Random, value: u32) {
    let offset = random.below(0x40) << 4;
    cpu::read32(PAGE + offset);
    if !matches!(offset, 0x300 | 0x310) {
        cpu::write32(PAGE + offset, value);
    }
}

fn io(random: &mut Random, value: u32) {
    cpu::write32(IO_PAGE, random.below(0x50) as u32);
    cpu::read32(IO_PAGE + 0x10);
    cpu::write32(IO_PAGE + 0x10, harmless(value));
    cpu::write32(IO_PAGE + random.below(0x1000 / 4) * 4, value & 0x3f);
}

fn by_msr(random: &mut Random, value: u64) {
    let register = 0x800 + random.below(0x100) as u32;
    cpu::read_msr(register).unwrap_or(0);
    if register != COMMAND {
        cpu::write_msr(register, value).unwrap_or(());
    }
}

/// Off, xAPIC, x2APIC and what lies between, and pages elsewhere.
fn mode(random: &mut Random, value: u64) {
    let Ok(now) = cpu::read_msr(BASE) else { return };
    let bits = random.pick(&[0, 0x800, 0xc00, 0x400, 0x100]);
    let moved = if random.one_in(4) { value } else { now & !0xd00 };
    cpu::write_msr(BASE, moved | bits).unwrap_or(());
}

/// Messages of all kinds to everybody, but INIT and start-up.
fn message(random: &mut Random, value: u64) {
    let delivery = random.pick(&[0u64, 1, 2, 4, 3, 7]) << 8;
    let rest = value & 0xffff_ffff_000c_f800 | random.below(4) << 18;
    let vector =
        if delivery == 0 || delivery == 1 << 8 { 0x20 + random.below(0xd0) } else { random.below(256) };
    let command = rest | delivery | if vector == 0x80 { 0x81 } else { vector };
    cpu::write_msr(COMMAND, command).unwrap_or(());
    cpu::write32(PAGE + 0x310, (command >> 32) as u32);
    cpu::write32(PAGE + 0x300, command as u32);
    if random.one_in(4) {
        cpu::interrupts_window();
    }
}

/// Redirections to the vectors of exceptions, or as INIT, would look like something else.
const fn harmless(value: u32) -> u32 {
    value & !0x0000_0580 | 0x60
}

fn drain() {
    for _ in 0..512 {
        cpu::interrupts_window();
    }
}

/// Masks every pin.
pub(super) fn quiet_io() {
    for pin in 0..24 {
        cpu::write32(IO_PAGE, 0x10 + pin * 2);
        cpu::write32(IO_PAGE + 0x10, 0x1_0000);
    }
}
