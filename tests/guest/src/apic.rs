//! The local APIC: by MSR where CPUID shows x2APIC, else by memory.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::cpu;

const BASE_MSR: u32 = 0x1b;
const ENABLE: u64 = 1 << 11;
const X2APIC_ENABLE: u64 = 1 << 10;
const PAGE: u64 = 0xfee0_0000;

/// Registers by their xAPIC offset.
#[derive(Clone, Copy)]
pub(crate) struct Register(pub(crate) u32);

impl Register {
    const ID: Self = Self(0x20);
    pub(crate) const VERSION: Self = Self(0x30);
    pub(crate) const TASK_PRIORITY: Self = Self(0x80);
    const END_OF_INTERRUPT: Self = Self(0xb0);
    pub(crate) const SPURIOUS: Self = Self(0xf0);
    const COMMAND: Self = Self(0x300);
    const COMMAND_HIGH: Self = Self(0x310);
    const TIMER_ENTRY: Self = Self(0x320);
    const INITIAL_COUNT: Self = Self(0x380);
    const DIVIDE: Self = Self(0x3e0);
}

/// Whether the APIC is reached by MSR: noted, because CPUID is an exit.
static BY_MSR: AtomicBool = AtomicBool::new(false);

/// Whether x2APIC mode is in use.
pub(crate) fn has_x2apic() -> bool {
    BY_MSR.load(Ordering::Relaxed)
}

pub(crate) fn read(register: Register) -> u32 {
    if has_x2apic() {
        cpu::read_msr(0x800 | register.0 >> 4).map_or(0, |value| value as u32)
    } else {
        cpu::read32(PAGE + u64::from(register.0))
    }
}

pub(crate) fn write(register: Register, value: u32) {
    if has_x2apic() {
        if cpu::write_msr(0x800 | register.0 >> 4, u64::from(value)).is_err() {
            crate::say!("FAIL apic register {:#x} refuses {value:#x}", register.0);
        }
    } else {
        cpu::write32(PAGE + u64::from(register.0), value);
    }
}

/// Switches the APIC on, in x2APIC mode where CPUID shows it.
pub(crate) fn enable() {
    BY_MSR.store(cpu::cpuid(1, 0).ecx & 1 << 21 != 0, Ordering::Relaxed);
    if has_x2apic()
        && let Ok(base) = cpu::read_msr(BASE_MSR)
        && cpu::write_msr(BASE_MSR, base | X2APIC_ENABLE).is_err()
    {
        crate::say!("FAIL the apic refuses x2apic mode");
    }
    set_up();
}

/// Goes back to the mode in which the APIC is reached by memory.
pub(crate) fn use_memory() {
    let base = cpu::read_msr(BASE_MSR).unwrap_or(0) & !(ENABLE | X2APIC_ENABLE);
    // x2APIC mode is only left through the state in which the APIC is off (APM vol. 2, 16.9).
    if cpu::write_msr(BASE_MSR, base).is_err() || cpu::write_msr(BASE_MSR, base | ENABLE).is_err() {
        crate::say!("FAIL the apic refuses xapic mode");
    }
    BY_MSR.store(false, Ordering::Relaxed);
    set_up();
}

fn set_up() {
    write(Register::SPURIOUS, 0x1ff);
    write(Register::TASK_PRIORITY, 0);
    write(Register::DIVIDE, 0b1011);
}

/// Starts the one-shot timer.
pub(crate) fn start_timer(ticks: u32) {
    write(Register::TIMER_ENTRY, u32::from(crate::fault::TIMER));
    write(Register::INITIAL_COUNT, ticks);
}

/// Starts the timer again and again.
pub(crate) fn start_periodic(ticks: u32) {
    write(Register::TIMER_ENTRY, 1 << 17 | u32::from(crate::fault::TIMER));
    write(Register::INITIAL_COUNT, ticks);
}

/// Off and on again: every register has its first value, as far as the machine lets it.
pub(crate) fn reset() {
    const PAGE_AND_BOOT: u64 = PAGE | 1 << 8;
    for mode in [0, 1 << 11] {
        cpu::write_msr(BASE_MSR, PAGE_AND_BOOT | mode).unwrap_or(());
    }
    enable();
}

/// Sends this processor what `command` says.
pub(crate) fn send_self(command: u32) {
    if !has_x2apic() {
        write(Register::COMMAND_HIGH, 0);
    }
    write(Register::COMMAND, 1 << 18 | command);
}

/// Sends this processor an NMI, by its number: the shorthand for oneself is for vectors alone (SDM vol. 3A, 11.6.1).
pub(crate) fn send_nmi_to_self() {
    const NMI: u32 = 4 << 8;
    let own = read(Register::ID);
    if has_x2apic() {
        let command = u64::from(own) << 32 | u64::from(NMI);
        if cpu::write_msr(0x800 | Register::COMMAND.0 >> 4, command).is_err() {
            crate::say!("FAIL the apic refuses to send an nmi");
        }
    } else {
        write(Register::COMMAND_HIGH, own);
        write(Register::COMMAND, NMI);
    }
}

/// Ends the interrupt in service.
pub(crate) fn end_of_interrupt() {
    write(Register::END_OF_INTERRUPT, 0);
}

/// Sends the processor of this number what `command` says.
pub(crate) fn send_to(number: u32, command: u32) {
    if has_x2apic() {
        let value = u64::from(number) << 32 | u64::from(command);
        if cpu::write_msr(0x800 | Register::COMMAND.0 >> 4, value).is_err() {
            crate::say!("FAIL the apic refuses the command {value:#x}");
        }
    } else {
        write(Register::COMMAND_HIGH, number << 24);
        write(Register::COMMAND, command);
    }
}
