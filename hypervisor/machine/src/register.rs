//! Model-specific registers, raw: for those that only some processors have.
#![expect(unsafe_code, reason = "an MSR may fault or change what memory means")]
// UNSAFETY: two instructions; the callers vouch for register and value.

use core::arch::asm;

use dolmen_arch::bits::low32;

/// Reads an MSR.
///
/// # Safety
/// The processor has the register.
pub(crate) unsafe fn read(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the register exists, by the caller's promise, so there is no #GP; reading has no effect.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes an MSR.
///
/// # Safety
/// The processor has the register and accepts the value, and what follows from it harms nothing of ours.
pub(crate) unsafe fn write(msr: u32, value: u64) {
    // SAFETY: by the caller's promise; memory may mean something else afterwards, hence no `nomem`.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") low32(value), in("edx") low32(value >> 32),
             options(nostack, preserves_flags));
    }
}
