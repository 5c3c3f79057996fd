//! A minimal interrupt descriptor table: an exception before or at the launch says what it was and stops.
#![expect(unsafe_code, reason = "exceptions enter by a table of addresses")]
// UNSAFETY: the table and the entries are static; handlers never return, so they need not keep registers.

use crate::console::stop;
use core::arch::{asm, naked_asm};
use core::sync::atomic::{AtomicU64, Ordering};

const VECTORS: usize = 32;
/// Present, CPL 0, 64-bit interrupt gate (APM vol. 2, 4.8.4).
const GATE: u64 = 0x8e00;
/// Bytes between two entries of [`entries`].
const ENTRY_BYTES: u64 = 16;
/// Vectors that push an error code (APM vol. 2, 8.2), as bits.
const WITH_ERROR_CODE: u64 =
    1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 17 | 1 << 21 | 1 << 29 | 1 << 30;

/// Two words a gate.
static TABLE: [AtomicU64; VECTORS * 2] = [const { AtomicU64::new(0) }; VECTORS * 2];

/// Offset of the table's last byte.
const LIMIT: u16 = 0x1ff;
const _: () = assert!(size_of::<[AtomicU64; VECTORS * 2]>() == 0x200, "the limit is that of the table");

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// Loads the table. From here on every exception ends in a stop that says why.
pub fn install() {
    let selector: u64;
    // SAFETY: reads a segment register.
    unsafe { asm!("mov {:x}, cs", out(reg) selector, options(nomem, nostack, preserves_flags)) };
    let mut entry = address(entries);
    for gate in TABLE.as_chunks::<2>().0 {
        let [low, high] = gate;
        let split = entry & 0xffff | (entry & 0xffff_0000) << 32;
        low.store(split | (selector & 0xffff) << 16 | GATE << 32, Ordering::Relaxed);
        high.store(entry >> 32, Ordering::Relaxed);
        entry = entry.wrapping_add(ENTRY_BYTES);
    }
    #[expect(clippy::as_conversions, reason = "addresses are 64 bits wide on x86-64")]
    let pointer = Pointer { limit: LIMIT, base: TABLE.as_ptr().expose_provenance() as u64 };
    // SAFETY: the pointer describes a static table, whose gates lead to code that never returns.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(nostack, preserves_flags)) };
}

#[expect(clippy::as_conversions, reason = "a function's address")]
fn address(function: unsafe extern "sysv64" fn() -> !) -> u64 {
    function as usize as u64
}

/// One entry a vector, each [`ENTRY_BYTES`] long; which one it was shows in the return address.
#[unsafe(naked)]
unsafe extern "sysv64" fn entries() -> ! {
    naked_asm!(
        ".balign 16",
        "3:",
        ".rept 32",
        ".balign 16",
        "call 2f",
        ".endr",
        "2:",
        "pop rdi",
        "lea rax, [rip + 3b]",
        "sub rdi, rax",
        "shr rdi, 4",
        "mov rsi, [rsp]",
        "mov rdx, [rsp + 8]",
        "cld",
        "and rsp, -16",
        "call {report}",
        "ud2",
        report = sym report,
    )
}

/// `top` and `next` are the last words pushed: error code and RIP, or RIP and CS.
extern "sysv64" fn report(vector: u64, top: u64, next: u64) -> ! {
    let has_code = WITH_ERROR_CODE.checked_shr(vector.try_into().unwrap_or(63)).unwrap_or(0) & 1 != 0;
    let (code, rip) = if has_code { (top, next) } else { (0, top) };
    stop(format_args!(
        "exception {vector} with code {code:#x} at {rip:#x} in the loader; restart the machine, and report this if it \
         happens again"
    ))
}
