//! The processor's local APIC: end of interrupt, and the one-shot timer that bounds every wait.
#![expect(unsafe_code, reason = "APIC registers")]
// UNSAFETY: register accesses go to the mapped APIC page or to x2APIC MSRs that exist in that mode.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::cpu;
use crate::interrupt::{CALL_VECTOR, SPURIOUS_VECTOR, TIMER_VECTOR};
use crate::port;

/// IA32_APIC_BASE (APM vol. 2, 16.3.1).
const APIC_BASE: u32 = 0x1b;
const APIC_ENABLE: u64 = 1 << 11;
const X2APIC_ENABLE: u64 = 1 << 10;
const X2APIC_MSRS: u32 = 0x800;

/// Local APIC registers by their xAPIC offset (APM vol. 2, table 16-2).
#[derive(Clone, Copy)]
#[repr(u16)]
enum Register {
    Identity = 0x20,
    TaskPriority = 0x80,
    EndOfInterrupt = 0xb0,
    Spurious = 0xf0,
    Command = 0x300,
    CommandTarget = 0x310,
    TimerEntry = 0x320,
    ThermalEntry = 0x330,
    PerformanceEntry = 0x340,
    Lint0 = 0x350,
    Lint1 = 0x360,
    ErrorEntry = 0x370,
    InitialCount = 0x380,
    CurrentCount = 0x390,
    DivideConfiguration = 0x3e0,
}

const MASKED: u32 = 1 << 16;
const SOFTWARE_ENABLE: u32 = 1 << 8;
const DIVIDE_BY_1: u32 = 0b1011;

/// Virtual address of the mapped APIC page; 1 in x2APIC mode; 0 before [`enable`].
static ACCESS: AtomicU64 = AtomicU64::new(0);
const BY_MSR: u64 = 1;

/// The APIC is globally disabled: firmware left a machine that cannot be interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApicDisabled;

/// Physical address of the APIC page, or `None` in x2APIC mode.
///
/// # Errors
/// [`ApicDisabled`] when IA32_APIC_BASE says so.
pub fn page() -> Result<Option<u64>, ApicDisabled> {
    let base = read_msr(APIC_BASE);
    if base & APIC_ENABLE == 0 {
        return Err(ApicDisabled);
    }
    Ok((base & X2APIC_ENABLE == 0).then_some(base & 0x000f_ffff_ffff_f000))
}

/// Takes the APIC over: every source masked, timer one-shot, counting at the bus clock.
///
/// # Safety
/// `mapped` is the virtual address at which the page named by [`page`] is mapped uncached for good, or
/// `None` in x2APIC mode.
pub(crate) unsafe fn enable(mapped: Option<u64>) {
    ACCESS.store(mapped.unwrap_or(BY_MSR), Ordering::Relaxed);
    mask_legacy_controllers();
    set_up();
}

/// Masks both 8259s. Not every machine leads them through the APIC's LINT0, which is masked too, and firmware leaves
/// them with vectors that exceptions have.
fn mask_legacy_controllers() {
    const MASKS: [u16; 2] = [0x21, 0xa1];
    for register in MASKS {
        port::write8(register, 0xff);
    }
}

/// IA32_APIC_BASE: where the APIC is and how it is reached.
pub(crate) fn base() -> u64 {
    read_msr(APIC_BASE)
}

/// Takes over the APIC of a processor that was started: it is reached as the boot processor's, whose IA32_APIC_BASE
/// was `like`.
///
/// # Safety
/// [`enable`] has run on the boot processor; once, on another one, with interrupts off.
pub(crate) unsafe fn enable_like(like: u64) {
    const MODE: u64 = APIC_ENABLE | X2APIC_ENABLE;
    const BOOT_PROCESSOR: u64 = 1 << 8;
    let own = base();
    let want = like & !BOOT_PROCESSOR | own & BOOT_PROCESSOR;
    if own != want {
        // Modes change only by way of "disabled", and into x2APIC mode only from xAPIC mode (APM vol. 2, 16.9).
        if own & MODE != 0 && own & MODE != APIC_ENABLE {
            write_msr(APIC_BASE, want & !MODE);
        }
        write_msr(APIC_BASE, want & !X2APIC_ENABLE);
        write_msr(APIC_BASE, want);
    }
    set_up();
}

/// Masks every source; the timer is one-shot and counts at the bus clock.
fn set_up() {
    for entry in [
        Register::ThermalEntry,
        Register::PerformanceEntry,
        Register::Lint0,
        Register::Lint1,
        Register::ErrorEntry,
    ] {
        write(entry, MASKED);
    }
    write(Register::InitialCount, 0);
    write(Register::DivideConfiguration, DIVIDE_BY_1);
    write(Register::TaskPriority, 0);
    // A processor that was started has its APIC disabled by software, and a disabled one keeps every entry masked,
    // whatever is written (SDM vol. 3A, 11.4.7.2): enabled first, so that the timer's mask can go.
    write(Register::Spurious, SOFTWARE_ENABLE | u32::from(SPURIOUS_VECTOR));
    write(Register::TimerEntry, u32::from(TIMER_VECTOR));
}

/// This processor's local APIC ID.
pub(crate) fn identity() -> u32 {
    let value = read(Register::Identity);
    if ACCESS.load(Ordering::Relaxed) == BY_MSR { value } else { value >> 24 }
}

/// Whether an interrupt can be sent to `apic_id`: without x2APIC mode its name has 8 bits, of which all ones mean
/// everybody.
pub(crate) fn can_reach(apic_id: u32) -> bool {
    if ACCESS.load(Ordering::Relaxed) == BY_MSR { apic_id != u32::MAX } else { apic_id < 0xff }
}

/// Interrupt command: fixed vector, non-maskable, start-up (APM vol. 2, 16.5); all edge triggered, asserted.
const ASSERTED: u32 = 1 << 14;
const NON_MASKABLE: u32 = 0b100 << 8;
const START_UP: u32 = 0b110 << 8;
const DELIVERY_PENDING: u32 = 1 << 12;
/// Turns of the wait for an interrupt to leave.
const TURNS: u32 = 1_000_000;

/// Makes the processor `apic_id` look at what is wanted of it.
pub(crate) fn send_call(apic_id: u32) {
    send(apic_id, ASSERTED | u32::from(CALL_VECTOR));
}

/// Sends a non-maskable interrupt.
pub(crate) fn send_nmi(apic_id: u32) {
    send(apic_id, ASSERTED | NON_MASKABLE);
}

/// Makes the processor `apic_id`, which is in the INIT state, start at page `page` of the first MiB.
pub(crate) fn send_start_up(apic_id: u32, page: u8) {
    send(apic_id, ASSERTED | START_UP | u32::from(page));
}

fn send(apic_id: u32, command: u32) {
    if ACCESS.load(Ordering::Relaxed) == BY_MSR {
        // Writes of x2APIC registers do not wait for earlier stores (APM vol. 2, 16.11.2).
        cpu::fence();
        write_msr(msr_of(Register::Command), u64::from(apic_id) << 32 | u64::from(command));
        return;
    }
    for _ in 0..TURNS {
        if read(Register::Command) & DELIVERY_PENDING == 0 {
            break;
        }
        core::hint::spin_loop();
    }
    write(Register::CommandTarget, apic_id << 24);
    write(Register::Command, command);
}

/// Starts the timer: one interrupt after `ticks` of the bus clock; 0 stops it.
pub fn start_timer(ticks: u32) {
    write(Register::InitialCount, ticks);
}

/// Ticks left until the timer fires.
#[must_use]
pub fn timer_left() -> u32 {
    read(Register::CurrentCount)
}

/// Ends the interrupt in service.
pub fn end_of_interrupt() {
    write(Register::EndOfInterrupt, 0);
}

#[expect(clippy::as_conversions, reason = "a fieldless enum's discriminant has no From")]
const fn offset(register: Register) -> u32 {
    register as u32
}

fn msr_of(register: Register) -> u32 {
    X2APIC_MSRS | offset(register) >> 4
}

fn write(register: Register, value: u32) {
    match ACCESS.load(Ordering::Relaxed) {
        0 => {}
        BY_MSR => write_msr(msr_of(register), u64::from(value)),
        base => {
            let at = core::ptr::with_exposed_provenance_mut::<u32>(address(base, register));
            // SAFETY: `enable`'s caller promised that the page is mapped for good; the offset lies in it
            // and is 16-byte aligned.
            unsafe { at.write_volatile(value) };
        }
    }
}

fn read(register: Register) -> u32 {
    match ACCESS.load(Ordering::Relaxed) {
        0 => 0,
        BY_MSR => low_half(read_msr(msr_of(register))),
        base => {
            let at = core::ptr::with_exposed_provenance::<u32>(address(base, register));
            // SAFETY: as in `write`.
            unsafe { at.read_volatile() }
        }
    }
}

#[expect(clippy::as_conversions, reason = "addresses are 64 bits wide on x86-64")]
fn address(base: u64, register: Register) -> usize {
    base.wrapping_add(u64::from(offset(register))) as usize
}

#[expect(clippy::as_conversions, reason = "x2APIC registers are 32 bits wide; the rest reads as zero")]
const fn low_half(value: u64) -> u32 {
    value as u32
}

fn read_msr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: IA32_APIC_BASE exists on every x86-64 processor; the x2APIC MSRs are read only in x2APIC mode.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

fn write_msr(msr: u32, value: u64) {
    // SAFETY: x2APIC MSRs are written in x2APIC mode only, and change interrupt delivery only; IA32_APIC_BASE gets what
    // the boot processor has.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") low_half(value), in("edx") low_half(value >> 32),
             options(nostack, preserves_flags));
    }
}
