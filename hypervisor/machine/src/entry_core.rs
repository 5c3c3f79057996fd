//! First instructions of the core, and the head of its file.
//!
//! The launch image jumps here in 64-bit mode with the hand-off's physical address in RDI; the core leaves
//! the launch image's stack at once. The linker script of `core` gives the symbols.
#![expect(unsafe_code, reason = "the entry point is assembly")]
// UNSAFETY: the entry stub uses nothing but the core's own stack.

use core::arch::global_asm;

use dolmen_arch::msr::GS_BASE;
use dolmen_drtm::handoff::CoreHandoff;

use crate::cpus;
use crate::own::Entered;
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
    # GS leads to the boot processor's block.
    lea rax, [rip + {blocks}]
    mov rdx, rax
    shr rdx, 32
    mov ecx, {gs_base}
    wrmsr
    call {entered}
    ud2
"#,
    blocks = sym cpus::BLOCKS,
    gs_base = const GS_BASE,
    entered = sym entered,
);

/// Whether the page at `va` is one of the guard pages below the stacks.
pub(crate) fn is_guard_page(va: u64) -> bool {
    [&raw const __stack_guard, &raw const __ist1_guard, &raw const __ist2_guard, &raw const __ist3_guard]
        .iter()
        .any(|guard| to_u64(guard.addr()) == va)
}

/// Called by the entry stub with the hand-off's physical address: copies the hand-off while the launch image's
/// tables, which map the low 512 GiB one to one, are still in force.
extern "C" fn entered(handoff: u64) -> ! {
    unsafe extern "Rust" {
        /// The core's own beginning.
        safe fn core_main(entered: Entered) -> !;
    }
    let source = core::ptr::with_exposed_provenance::<CoreHandoff>(to_usize(handoff));
    // SAFETY: the launch image put the hand-off into the region, page-aligned, where no object of the core
    // lies, and still maps it; any bytes are a valid `CoreHandoff`.
    let handoff = unsafe { source.read() };
    core_main(Entered { handoff })
}

/// Bytes from the region's base that the core occupies, as linked: `CoreHeader::memory_length`.
#[must_use]
pub fn memory_length() -> u64 {
    unsafe extern "C" {
        static __core_start: u8;
        static __image_end: u8;
    }
    to_u64((&raw const __image_end).addr()).wrapping_sub(to_u64((&raw const __core_start).addr()))
}
