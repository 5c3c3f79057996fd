//! First instructions of the core, and the head of its file.
//!
//! The launch image jumps here in 64-bit mode with the hand-off's physical address in RDI; the core leaves
//! the launch image's stack at once. The linker script of `core` gives the symbols.
#![expect(unsafe_code, reason = "the entry point is assembly")]
// UNSAFETY: the entry stub uses nothing but the core's own stack.

use core::arch::global_asm;

use dolmen_memory::Hpa;

use crate::region::to_usize;
use crate::segments::to_u64;

unsafe extern "C" {
    static __stack_guard: u8;
    static __ist1_guard: u8;
    static __ist2_guard: u8;
    static __ist3_guard: u8;
}

global_asm!(
    r#"
.section .header, "ax"
.global __core_header
__core_header:
    .ascii "DOLMCORE"
    .long 1
    .long __core_entry - __core_header
    .quad __file_length
    .quad __memory_length
.balign 16
.global __core_entry
__core_entry:
    cli
    lea rsp, [rip + __stack_top]
    xor ebp, ebp
    call core_main
    ud2
"#
);

/// Whether the page at `va` is one of the guard pages below the stacks.
pub(crate) fn is_guard_page(va: u64) -> bool {
    [&raw const __stack_guard, &raw const __ist1_guard, &raw const __ist2_guard, &raw const __ist3_guard]
        .iter()
        .any(|guard| to_u64(guard.addr()) == va)
}

/// Copies the launch image's hand-off from physical address `from`, while the launch image's tables, which
/// map the low 512 GiB one to one, are in force.
///
/// # Safety
/// Those tables are in force, and `[from, from + into.len())` is RAM that holds no Rust object.
pub unsafe fn read_handoff(from: Hpa, into: &mut [u8]) {
    let source = core::ptr::with_exposed_provenance::<u8>(to_usize(from.get()));
    // SAFETY: by the caller's promise; a slice of ours cannot overlap memory without Rust objects.
    unsafe { source.copy_to_nonoverlapping(into.as_mut_ptr(), into.len()) };
}
