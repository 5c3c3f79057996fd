//! Ways to end: what the hypervisor must survive and name.

use core::arch::asm;

use crate::{cpu, say};

/// Does the one thing of that name.
pub(crate) fn end(name: &[u8]) -> ! {
    say!("ending: {}", core::str::from_utf8(name).unwrap_or("?"));
    match name {
        b"triple-fault" => triple_fault(),
        b"halt" => halt(),
        b"tables" => tables(),
        b"off" => cpu::power_off(),
        b"reset" => cpu::write_port8(0xcf9, 0x06),
        b"exotic" => exotic(),
        b"never" => never(),
        b"later" => later(),
        _ => say!("FAIL no ending of this name"),
    }
    say!("FAIL the guest goes on");
    cpu::power_off()
}

fn triple_fault() {
    let nothing = [0u8; 16];
    // SAFETY: an empty interrupt table makes every exception a triple fault.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &raw const nothing) };
}

/// Keeps its processor busy, in the guest and in the hypervisor, for ever.
fn never() -> ! {
    loop {
        cpu::cpuid(0, 0);
        spin(50_000);
    }
}

/// Lets the others run for a while first.
fn later() {
    spin(3_000_000_000);
    triple_fault();
}

fn spin(ticks: u64) {
    let since = cpu::read_tsc();
    while cpu::read_tsc().wrapping_sub(since) < ticks {
        core::hint::spin_loop();
    }
}

fn halt() {
    // SAFETY: nothing can wake this up.
    unsafe { asm!("cli", "hlt") };
}

fn tables() {
    // SAFETY: page tables in a hole translate nothing.
    unsafe { asm!("mov cr3, {}", in(reg) 0xd000_0000u64) };
}

fn exotic() {
    // SAFETY: an instruction that no driver uses on a device page.
    unsafe { asm!("lock xadd [{}], {:e}", in(reg) 0xfee0_0080u64, in(reg) 1u32) };
}
