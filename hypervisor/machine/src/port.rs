//! Port input and output.
#![expect(unsafe_code, reason = "IN and OUT have no safe form")]
// UNSAFETY: ports change devices, never Rust's memory: every DMA is refused before untrusted devices matter.

use core::arch::asm;

/// Reads a byte.
#[must_use]
pub fn read8(port: u16) -> u8 {
    let value: u8;
    // SAFETY: IN writes AL only; no device that the hypervisor reads can touch its memory.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack, preserves_flags)) };
    value
}

/// Writes a byte.
pub fn write8(port: u16, value: u8) {
    // SAFETY: OUT reads AL and DX only; see the module's argument.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) };
}

/// Reads a 32-bit word.
#[must_use]
pub fn read32(port: u16) -> u32 {
    let value: u32;
    // SAFETY: as for `read8`, with EAX.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack, preserves_flags)) };
    value
}

/// Writes a 32-bit word.
pub fn write32(port: u16, value: u32) {
    // SAFETY: as for `write8`, with EAX.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags)) };
}
