//! The way into the development image: a jump in the state in which `SKINIT` would have entered, without a launch.
#![expect(unsafe_code, reason = "the processor leaves 64-bit mode")]
// UNSAFETY: this program lies below 4 GiB, mapped one to one, so that its code goes on where it is without paging.

use core::arch::global_asm;

global_asm!(
    r#"
.section .text, "ax"
.code64
# EDI = the block, ESI = where to enter it.
.global unmeasured_enter
unmeasured_enter:
    cli
    mov ebx, edi
    add esi, edi
    lgdt [rip + unmeasured_pointer]
    push 0x08
    lea rax, [rip + 2f]
    push rax
    retfq
.code32
2:  mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov eax, cr0
    and eax, 0x7fffffff             # PG
    mov cr0, eax
    mov ecx, 0xc0000080             # EFER.LME
    rdmsr
    and eax, 0xfffffeff
    wrmsr
    mov eax, ebx
    jmp esi
.code64

.section .rodata, "a"
.balign 8
unmeasured_gdt:
    .quad 0
    .quad 0x00cf9b000000ffff        # flat 32-bit code
    .quad 0x00cf93000000ffff        # flat data
unmeasured_pointer:
    .short 23
    .quad unmeasured_gdt
"#
);

unsafe extern "sysv64" {
    fn unmeasured_enter(block: u32, entry: u32) -> !;
}

/// Enters the program in the block at `block`, `entry` bytes on. Never comes back.
///
/// # Safety
/// A program of the launch image's layout is there; nothing of the program that runs now is needed any more.
pub(crate) unsafe fn enter(block: u32, entry: u16) -> ! {
    // SAFETY: by the caller's promise; the stub is ours and below 4 GiB.
    unsafe { unmeasured_enter(block, u32::from(entry)) }
}
