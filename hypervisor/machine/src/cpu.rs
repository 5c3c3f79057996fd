//! Processor instructions that are one line each.
#![expect(unsafe_code, reason = "privileged instructions have no safe form")]
// UNSAFETY: every function is one instruction whose effect its doc comment states.

use core::arch::asm;

use dolmen_arch::cpuid::{CpuidSource, Leaf};

/// The time-stamp counter.
#[must_use]
pub fn read_tsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: RDTSC only writes EAX and EDX; CR4.TSD is clear while the hypervisor runs.
    unsafe { asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Whether the processor has RDRAND.
#[must_use]
pub fn has_random() -> bool {
    const ECX_RDRAND: u32 = 1 << 30;
    core::arch::x86_64::__cpuid(1).ecx & ECX_RDRAND != 0
}

/// The time-stamp counter, read after everything that stands before and before everything that follows.
#[must_use]
pub fn read_tsc_in_order() -> u64 {
    fence();
    let ticks = read_tsc();
    fence();
    ticks
}

/// A hardware random number, or `None` where the processor has no RDRAND or it did not deliver.
#[must_use]
pub fn read_random() -> Option<u64> {
    if !has_random() {
        return None;
    }
    // AMD recommends at most ten tries.
    (0..10).find_map(|_| try_read_random())
}

fn try_read_random() -> Option<u64> {
    let value: u64;
    let is_valid: u8;
    // SAFETY: the caller saw RDRAND in CPUID; the instruction writes its operand and the flags.
    unsafe {
        asm!("rdrand {value}", "setc {ok}", value = out(reg) value, ok = out(reg_byte) is_valid,
             options(nomem, nostack));
    }
    (is_valid == 1).then_some(value)
}

/// Stops this processor for good: nothing wakes it but a reset; where there is no GIF, a non-maskable interrupt does
/// for a moment.
pub fn halt_for_ever() -> ! {
    const SVME: u64 = 1 << 12;
    if read_efer() & SVME != 0 {
        // SAFETY: SVME is set, so the instruction exists; with GIF = 0 nothing is delivered.
        unsafe { asm!("clgi", options(nomem, nostack)) };
    }
    halt_without_svm()
}

/// CPUID of the processor this runs on.
#[derive(Clone, Copy, Debug)]
pub struct ThisCpu;

impl CpuidSource for ThisCpu {
    fn leaf(&self, leaf: u32, subleaf: u32) -> Leaf {
        let answer = core::arch::x86_64::__cpuid_count(leaf, subleaf);
        Leaf { eax: answer.eax, ebx: answer.ebx, ecx: answer.ecx, edx: answer.edx }
    }
}

/// Halts without touching GIF: for processors on which SVM may not be enabled.
pub fn halt_without_svm() -> ! {
    loop {
        // SAFETY: HLT with IF = 0 waits; it touches no memory.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// Drops the translation of the page at `address`.
pub fn invalidate_page(address: u64) {
    // SAFETY: INVLPG drops a cached translation; the tables it is refilled from are the caller's matter.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) };
}

/// Writes back and invalidates all caches.
pub fn write_back_caches() {
    // SAFETY: WBINVD changes no architectural state but the caches.
    unsafe { asm!("wbinvd", options(nostack, preserves_flags)) };
}

/// Reads CR0.
#[must_use]
pub fn read_cr0() -> u64 {
    let value: u64;
    // SAFETY: reading CR0 at CPL 0 has no side effect.
    unsafe { asm!("mov {}, cr0", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes CR0.
///
/// # Safety
/// Paging and protection stay on, and no memory becomes unreachable.
pub unsafe fn write_cr0(value: u64) {
    // SAFETY: by the caller's promise.
    unsafe { asm!("mov cr0, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// Reads CR2, the address of the last page fault.
#[must_use]
pub fn read_cr2() -> u64 {
    let value: u64;
    // SAFETY: reading CR2 at CPL 0 has no side effect.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Reads CR3.
#[must_use]
pub fn read_cr3() -> u64 {
    let value: u64;
    // SAFETY: reading CR3 at CPL 0 has no side effect.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Reads EFER.
#[must_use]
pub fn read_efer() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: EFER exists on every x86-64 processor; reading it has no side effect.
    unsafe {
        asm!("rdmsr", in("ecx") 0xc000_0080u32, out("eax") low, out("edx") high,
             options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Waits until every earlier load and store is done.
pub fn fence() {
    // SAFETY: MFENCE and LFENCE only order memory accesses.
    unsafe { asm!("mfence", "lfence", options(nostack, preserves_flags)) };
}

/// Switches to the page tables rooted at physical address `root`.
///
/// # Safety
/// The tables map the running code, its stack and its data at their present addresses.
pub unsafe fn write_cr3(root: u64) {
    // SAFETY: by the caller's promise.
    unsafe { asm!("mov cr3, {}", in(reg) root, options(nostack, preserves_flags)) };
}

/// Reads CR4.
#[must_use]
pub fn read_cr4() -> u64 {
    let value: u64;
    // SAFETY: reading CR4 at CPL 0 has no side effect.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes CR4.
///
/// # Safety
/// Every bit is one that CPUID reports, and PAE stays set.
pub unsafe fn write_cr4(value: u64) {
    // SAFETY: by the caller's promise.
    unsafe { asm!("mov cr4, {}", in(reg) value, options(nostack, preserves_flags)) };
}
