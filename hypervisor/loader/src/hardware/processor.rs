//! The processor: what it can do, and the instruction that launches.
#![expect(unsafe_code, reason = "privileged instructions have no safe form")]
// UNSAFETY: model-specific registers are read only where CPUID says that they exist.

use core::arch::asm;
use core::arch::x86_64::{__cpuid, _rdtsc};

/// IA32_APIC_BASE (APM vol. 2, 16.3.1): on every x86-64 processor.
const APIC_BASE: u32 = 0x1b;
/// VM_CR (APM vol. 2, 15.30.1): where SVM is.
const VM_CR: u32 = 0xc001_0114;
/// SMM_ADDR and SMM_MASK (APM vol. 2, 10.2.5).
#[cfg(feature = "hostile")]
const SMM_ADDR: u32 = 0xc001_0112;

/// What CPUID and two registers say about the processor.
#[derive(Clone, Copy, Debug)]
pub struct Processor {
    /// Vendor word of CPUID leaf 0.
    pub vendor: [u8; 12],
    /// CPUID 8000_0001h ECX bit 2.
    pub has_svm: bool,
    /// CPUID 8000_0001h ECX bit 12.
    pub has_skinit: bool,
    /// CPUID 8000_0001h EDX bit 26.
    pub has_gib_pages: bool,
    /// CPUID 8000_000Ah EDX bit 0.
    pub has_nested_paging: bool,
    /// VM_CR.SVMDIS.
    pub svm_disabled: bool,
    /// APIC_BASE.BSC.
    pub is_boot_processor: bool,
}

impl Processor {
    /// Asks this processor.
    #[must_use]
    pub fn probe() -> Self {
        let leaf = |number: u32| {
            let highest = __cpuid(number & 0x8000_0000).eax;
            (number <= highest).then(|| __cpuid(number))
        };
        let word = __cpuid(0);
        let mut vendor = [0; 12];
        for (place, part) in vendor.chunks_exact_mut(4).zip([word.ebx, word.edx, word.ecx]) {
            place.copy_from_slice(&part.to_le_bytes());
        }
        let extended = leaf(0x8000_0001);
        let ecx = extended.map_or(0, |l| l.ecx);
        let has_svm = ecx & 1 << 2 != 0;
        let vm_cr = if has_svm { vm_cr() } else { 0 };
        Self {
            vendor,
            has_svm,
            has_skinit: ecx & 1 << 12 != 0,
            has_gib_pages: extended.is_some_and(|l| l.edx & 1 << 26 != 0),
            has_nested_paging: has_svm && leaf(0x8000_000a).is_some_and(|l| l.edx & 1 != 0),
            svm_disabled: vm_cr & 1 << 4 != 0,
            is_boot_processor: apic_base() & 1 << 8 != 0,
        }
    }
}

/// The time-stamp counter, from which the launch image's own readings count on.
#[must_use]
pub fn time_stamp() -> u64 {
    // SAFETY: firmware never sets CR4.TSD, and this program runs at privilege level 0.
    unsafe { _rdtsc() }
}

fn vm_cr() -> u64 {
    // SAFETY: VM_CR exists on processors with SVM, and only those get here.
    unsafe { read_msr(VM_CR) }
}

/// IA32_APIC_BASE.
#[must_use]
pub fn apic_base() -> u64 {
    // SAFETY: every x86-64 processor has this register.
    unsafe { read_msr(APIC_BASE) }
}

/// Base of TSeg as SMM_ADDR says; 0 where it is not set.
#[cfg(feature = "hostile")]
#[must_use]
pub fn tseg_base() -> u64 {
    // SAFETY: every processor with SVM has this register, and only those get here.
    unsafe { read_msr(SMM_ADDR) }
}

/// Writes registers that route addresses, and logs what they hold then.
#[cfg(feature = "hostile")]
pub fn write_registers(registers: impl Iterator<Item = (u32, u64)>) {
    for (register, value) in registers {
        // SAFETY: test machines have these registers; memory stays where it is on them, whatever they say.
        unsafe { write_msr(register, low_half(value), low_half(value >> 32)) };
        // SAFETY: as above.
        let held = unsafe { read_msr(register) };
        crate::console::fact(format_args!("register {register:#x} holds {held:#x}"));
    }
}

/// The lower 32 bits.
#[cfg(feature = "hostile")]
#[expect(clippy::as_conversions, reason = "the low half is meant")]
pub(crate) const fn low_half(value: u64) -> u32 {
    value as u32
}

/// Reads a model-specific register.
///
/// # Safety
/// The processor has it.
pub(crate) unsafe fn read_msr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: by the caller's promise RDMSR does not fault; it writes EAX and EDX.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
/// The processor has it and takes the value, and Rust's view of memory stays as it is.
pub(crate) unsafe fn write_msr(msr: u32, low: u32, high: u32) {
    // SAFETY: by the caller's promise.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") low, in("edx") high, options(nostack, preserves_flags));
    }
}

/// Keeps maskable interrupts away.
pub fn disable_interrupts() {
    // SAFETY: CLI changes one flag; nothing that the loader does from here on waits for an interrupt.
    unsafe { asm!("cli", options(nomem, nostack)) };
}

/// Hands the machine to the launch image at `slb` (APM vol. 2, 15.27.3). Never comes back.
///
/// # Safety
/// The processor has `SKINIT`; `slb` is the base of a block that holds a launch image; nothing of the
/// program that runs now is needed any more.
pub unsafe fn skinit(slb: u32) -> ! {
    // SAFETY: by the caller's promise the instruction exists; it does not return.
    unsafe { asm!("cli", "skinit", in("eax") slb, options(noreturn)) }
}
