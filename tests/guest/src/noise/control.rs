//! Control and debug registers with values that are reserved, impossible or merely odd.

use super::random::Random;
use super::sandbox::{self, CODE, Mode, RAX};
use crate::{attempt, cpu};

/// CR0.PG and PE, CR4.PAE, SMEP and SMAP: without them, or with them, this guest's own code does not run on.
const TRIES: u64 = 4_000;

/// Each register with single bits and random values, each put back at once.
pub(super) fn registers(random: &mut Random) -> u64 {
    let tries = random.times(TRIES);
    for _ in 0..tries {
        let value = random.value();
        match random.below(9) {
            0 => cr0(value),
            1 => cr3(value),
            2 => cr4(value),
            3 => efer(value),
            4 => debug(random, value),
            5 => priority(value),
            6 => xcr(random, value),
            7 => machine_status(value),
            _ => from_user(random, value),
        }
    }
    tries
}

fn cr0(value: u64) {
    let old = cpu::read_cr0();
    for wanted in [value, old ^ value, old ^ (value & 0x6005_002e)] {
        attempt!("mov cr0, {new}\nmov cr0, {old}", new = in(reg) wanted, old = in(reg) old);
        attempt!("mov cr0, {old}", old = in(reg) old);
    }
}

/// Any value that the machine takes would be the end, so only values with a reserved bit are tried.
fn cr3(value: u64) {
    let old = cpu::read_cr3();
    for wanted in [old | 1 << 60, old | 1 << 52, value & !0xfff | 1 << 59] {
        attempt!("mov cr3, {new}\nmov cr3, {old}", new = in(reg) wanted, old = in(reg) old);
        attempt!("mov cr3, {old}", old = in(reg) old);
    }
}

fn cr4(value: u64) {
    let old = cpu::read_cr4();
    for wanted in [value, old ^ value, old | value & 0xfff] {
        attempt!("mov cr4, {new}\nmov cr4, {old}", new = in(reg) wanted, old = in(reg) old);
        attempt!("mov cr4, {old}", old = in(reg) old);
    }
}

fn efer(value: u64) {
    let Ok(old) = cpu::read_msr(dolmen_arch::msr::EFER) else { return };
    for wanted in [value, old ^ value] {
        cpu::write_msr(dolmen_arch::msr::EFER, wanted).unwrap_or(());
        cpu::write_msr(dolmen_arch::msr::EFER, old).unwrap_or(());
    }
}

/// Breakpoints on the sandbox's own code, and bits that do not exist.
fn debug(random: &mut Random, value: u64) {
    attempt!("mov dr0, {it}", it = in(reg) CODE + random.below(4));
    attempt!("mov dr1, {it}", it = in(reg) value);
    attempt!("mov dr6, {it}", it = in(reg) value);
    attempt!("mov dr7, {it}", it = in(reg) value & !0xff | 0x401 | value & 0xf);
    sandbox::write_code(CODE, &[0x0f, 0xa2, 0x90, 0x0f, 0xa2, 0x90]);
    sandbox::run(&Mode::Kernel64.state(CODE), random.below(3));
    attempt!("mov dr7, {it}", it = in(reg) 0x400u64);
    attempt!("mov dr6, {it}", it = in(reg) 0xffff_0ff0u64);
}

fn priority(value: u64) {
    attempt!("mov cr8, {it}", it = in(reg) value);
    attempt!("mov {it}, cr8", it = out(reg) _);
    attempt!("mov cr8, {it}", it = in(reg) 0u64);
}

fn xcr(random: &mut Random, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    let index = random.pick(&[0u32, 0, 0, 1, 2, u32::MAX]);
    let old = cpu::read_cr4();
    // OSXSAVE, where the guest may have it.
    if attempt!("mov cr4, {it}", it = in(reg) old | 1 << 18).is_none() {
        attempt!("xsetbv", in("ecx") index, in("eax") low, in("edx") high);
        attempt!("xsetbv", in("ecx") 0, in("eax") 7, in("edx") 0);
        attempt!("mov cr4, {it}", it = in(reg) old);
    }
    attempt!("xsetbv", in("ecx") index, in("eax") low, in("edx") high);
}

fn machine_status(value: u64) {
    let old = cpu::read_cr0();
    attempt!("lmsw {it:x}", it = in(reg) value);
    let word = value;
    attempt!("lmsw [{it}]", it = in(reg) &raw const word);
    attempt!("clts");
    attempt!("mov cr0, {old}", old = in(reg) old);
}

/// The same from CPL 3 and from 16- and 32-bit code, where most of it is a fault.
fn from_user(random: &mut Random, value: u64) {
    let modrm = 0xc0 | random.pick(&[0u8, 2, 3, 4, 8 & 7, 1, 5, 6]) << 3;
    let opcode = random.pick(&[0x20, 0x21, 0x22, 0x23]);
    sandbox::write_code(CODE, &[0x0f, opcode, modrm]);
    let mode = random.pick(&[Mode::User64, Mode::User32, Mode::User16]);
    let mut state = mode.state(CODE);
    state.registers[RAX] = value;
    sandbox::run(&state, 1);
}
