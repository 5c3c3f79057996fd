//! The last thing the core does: it wipes its own data, stacks included, and ends the machine's run.
#![expect(unsafe_code, reason = "the code below erases the stack it was called on")]
// UNSAFETY: once the wipe has begun nothing but registers is used, and nothing returns.

use core::arch::naked_asm;

/// How the machine's run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The processor halts for ever; what the console says stays readable.
    Halt,
    /// The machine is reset through the chipset.
    Reset,
}

/// Wipes the core's writable image and `[free, free + bytes)` at virtual addresses, then ends the run.
///
/// # Safety
/// Both ranges are mapped and writable. Page tables, if they lie there, are still cached or not needed:
/// pass only the part of the region that holds none.
pub unsafe fn end(how: End, free: u64, bytes: u64) -> ! {
    let is_reset = u64::from(how == End::Reset);
    // SAFETY: by the caller's promise; the routine never returns to a wiped stack.
    unsafe { wipe_and_end(is_reset, free, bytes) }
}

/// RDI: 1 for a reset; RSI: start of the free part; RDX: its bytes.
#[unsafe(naked)]
unsafe extern "C" fn wipe_and_end(is_reset: u64, free: u64, bytes: u64) -> ! {
    naked_asm!(
        "cli",
        "mov r8, rdi",
        // The free part: heap, tables of guests, copies of secrets.
        "mov rdi, rsi",
        "mov rcx, rdx",
        "xor eax, eax",
        "cld",
        "rep stosb",
        // Data, BSS and stacks, guard pages left out by stepping from one mapped piece to the next.
        "lea rdi, [rip + __rodata_end]",
        "lea rcx, [rip + __guard_pages_start]",
        "sub rcx, rdi",
        "rep stosb",
        "lea rdi, [rip + __stack_guard + 0x1000]",
        "lea rcx, [rip + __ist1_guard]",
        "sub rcx, rdi",
        "rep stosb",
        "lea rdi, [rip + __ist1_guard + 0x1000]",
        "lea rcx, [rip + __ist2_guard]",
        "sub rcx, rdi",
        "rep stosb",
        "lea rdi, [rip + __ist2_guard + 0x1000]",
        "lea rcx, [rip + __ist3_guard]",
        "sub rcx, rdi",
        "rep stosb",
        "lea rdi, [rip + __ist3_guard + 0x1000]",
        "lea rcx, [rip + __image_end]",
        "sub rcx, rdi",
        "rep stosb",
        // Secrets may still sit in registers.
        "xor ebx, ebx",
        "xor edx, edx",
        "xor esi, esi",
        "xor edi, edi",
        "xor ebp, ebp",
        "xor r9d, r9d",
        "xor r10d, r10d",
        "xor r11d, r11d",
        "xor r12d, r12d",
        "xor r13d, r13d",
        "xor r14d, r14d",
        "xor r15d, r15d",
        "wbinvd",
        "test r8, r8",
        "jz 3f",
        // Reset control register of the chipset: hard reset.
        "mov dx, 0xcf9",
        "mov al, 0x02",
        "out dx, al",
        "mov al, 0x06",
        "out dx, al",
        // CLGI exists where EFER.SVME is set.
        "3:",
        "mov ecx, 0xc0000080",
        "rdmsr",
        "test eax, 1 << 12",
        "jz 4f",
        "clgi",
        "4:",
        "cli",
        "hlt",
        "jmp 4b",
    )
}
