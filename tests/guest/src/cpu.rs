//! Instructions that are one line each.

use core::arch::asm;

use dolmen_arch::cpuid::Leaf;

use crate::attempt;
use crate::fault::Fault;

/// The port that switches the guest off: ACPI's sleep control register on Dolmen's board.
const SLEEP_CONTROL: u16 = 0x600;
/// The reset register, and what resets at once.
const RESET_CONTROL: u16 = 0xcf9;
const RESET_NOW: u8 = 0x06;
/// SLP_TYP 5, SLP_EN.
const SOFT_OFF: u8 = 0x34;

pub(crate) fn read_port8(port: u16) -> u8 {
    let value: u8;
    // SAFETY: IN writes AL only.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack, preserves_flags)) };
    value
}

pub(crate) fn write_port8(port: u16, value: u8) {
    // SAFETY: OUT changes a device, never memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) };
}

pub(crate) fn read_port32(port: u16) -> u32 {
    let value: u32;
    // SAFETY: as for `read_port8`.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack, preserves_flags)) };
    value
}

pub(crate) fn cpuid(leaf: u32, subleaf: u32) -> Leaf {
    let answer = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    Leaf { eax: answer.eax, ebx: answer.ebx, ecx: answer.ecx, edx: answer.edx }
}

pub(crate) fn read_msr(msr: u32) -> Result<u64, Fault> {
    let (low, high): (u32, u32);
    let fault = attempt!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high);
    fault.map_or(Ok(u64::from(high) << 32 | u64::from(low)), Err)
}

pub(crate) fn write_msr(msr: u32, value: u64) -> Result<(), Fault> {
    let fault = attempt!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32);
    fault.map_or(Ok(()), Err)
}

pub(crate) fn read_tsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: RDTSC only writes EAX and EDX.
    unsafe { asm!("rdtsc", out("eax") low, out("edx") high, options(nostack, nomem)) };
    u64::from(high) << 32 | u64::from(low)
}

pub(crate) fn read_cr0() -> u64 {
    let value: u64;
    // SAFETY: reading has no side effect.
    unsafe { asm!("mov {}, cr0", out(reg) value, options(nostack, nomem)) };
    value
}

pub(crate) fn read_cr2() -> u64 {
    let value: u64;
    // SAFETY: reading has no side effect.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nostack, nomem)) };
    value
}

pub(crate) fn read_cr3() -> u64 {
    let value: u64;
    // SAFETY: reading has no side effect.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nostack, nomem)) };
    value
}

pub(crate) fn read_cr4() -> u64 {
    let value: u64;
    // SAFETY: reading has no side effect.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nostack, nomem)) };
    value
}

pub(crate) fn read32(at: u64) -> u32 {
    let value: u32;
    // SAFETY: the tests name addresses of devices, holes, or memory of their own.
    unsafe { asm!("mov {0:e}, [{1}]", out(reg) value, in(reg) at, options(nostack, readonly)) };
    value
}

pub(crate) fn write32(at: u64, value: u32) {
    // SAFETY: as for `read32`.
    unsafe { asm!("mov [{1}], {0:e}", in(reg) value, in(reg) at, options(nostack)) };
}

pub(crate) fn interrupts_off() {
    // SAFETY: masks interrupts.
    unsafe { asm!("cli", options(nostack)) };
}

/// Lets pending interrupts in.
pub(crate) fn interrupts_window() {
    // SAFETY: every vector has a handler.
    unsafe { asm!("sti", "nop", "nop", "cli", options(nostack)) };
}

/// Waits for an interrupt; answers the address right after HLT.
pub(crate) fn wait_for_interrupt() -> u64 {
    let after: u64;
    // SAFETY: every vector has a handler; STI's shadow makes the pair atomic.
    unsafe { asm!("lea {}, [rip + 2f]", "sti", "hlt", "2:", "cli", out(reg) after, options(nostack)) };
    after
}

/// Resets the machine: what a guest does that nobody hears but whose end is seen.
pub(crate) fn reset() -> ! {
    write_port8(RESET_CONTROL, RESET_NOW);
    power_off()
}

/// Switches the machine off; where that is not possible, halts.
pub(crate) fn power_off() -> ! {
    write_port8(SLEEP_CONTROL, SOFT_OFF);
    loop {
        // SAFETY: nothing is left to do.
        unsafe { asm!("cli", "hlt", options(nostack)) };
    }
}
