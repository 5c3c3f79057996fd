//! First instructions of the launch image, and the way out of it into the core.
//!
//! `SKINIT` enters in flat 32-bit protected mode: EAX is the block's physical base, only CS and SS can be used,
//! no descriptor table is valid, interrupts of every kind are held (APM vol. 2, 15.27.6). The stub
//!
//! 1. takes a stack in the tail, loads the GDT of the measured part, and zeroes the whole tail but the last
//!    page, which holds the loader's hand-off;
//! 2. writes back the caches, sets the page attribute table to its reset value, and builds page tables in the
//!    tail: the block at `LAUNCH_VA`, its measured pages read-only and executable, its tail writable and not
//!    executable; physical memory at `MEMORY_VA` in 1 GiB pages, writable, never executable. All four tables of
//!    that are one page that points to itself: each mapping has other indices into it. Two more pages, where the
//!    stack will be, map the stub itself one to one while paging is switched on;
//! 3. enters 64-bit mode there, installs one handler for every exception, and calls Rust.
//!
//! The measured part is never written: accessed bits in the GDT are set as linked. The page below the stack is
//! the last measured one, so an overflow faults.
#![expect(unsafe_code, reason = "the entry point and the way out are assembly")]
// UNSAFETY: everything before `entered` uses registers and the tail alone; the linker script of `launch` gives
// the symbols, each `…_offset` counted from the start of the block.

use core::arch::{asm, global_asm};

use dolmen_drtm::handoff::LAUNCH_VA;

use crate::launch::{Block, LoaderPage, MEMORY_GIB, MEMORY_SLOT, Probe, to_usize};

global_asm!(
    r#"
.section .text.entry, "ax"
.code32
.global __launch_entry
__launch_entry:
    cli
    cld
    mov ebx, eax
    lea esp, [ebx + __stack_top_offset]
    lea eax, [ebx + __gdt_offset]
    push eax
    push {gdt_limit} << 16
    lgdt ss:[esp + 2]
    mov eax, {data}
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax

    lea edi, [ebx + __tail_offset]
    mov ecx, offset __tail_words
    rep stosd

    # CPUID overwrites EBX.
    mov esi, ebx
    mov eax, 0x80000001
    cpuid
    mov ebx, esi
    and edx, {needed}
    cmp edx, {needed}
    jne 9f

    wbinvd
    mov ecx, 0x277
    mov eax, {pat_low}
    mov edx, {pat_high}
    wrmsr

    lea edi, [ebx + __first_tables_offset]
    lea eax, [edi + 0x1000 + 3]
    mov [edi], eax
    lea eax, [ebx + __window_offset + 3]
    mov [edi + 511 * 8], eax
    mov ecx, ebx
    shr ecx, 30
    mov eax, ebx
    and eax, 0xc0000000
    or eax, 0x83
    mov [edi + 0x1000 + ecx * 8], eax

    lea edi, [ebx + __window_offset]
    lea eax, [ebx + __window_offset + 3]
    mov [edi + 511 * 8], eax
    mov [edi + {pointer_slot} * 8], eax
    mov [edi + {directory_slot} * 8], eax
    mov ecx, {memory_slot}
2:  lea eax, [ecx - {memory_slot}]
    mov edx, eax
    shl eax, 30
    or eax, 0x83
    mov [edi + ecx * 8], eax
    shr edx, 2
    or edx, 0x80000000
    mov [edi + ecx * 8 + 4], edx
    inc ecx
    cmp ecx, {memory_end}
    jb 2b
    add edi, {page_slot} * 8
    lea eax, [ebx + 1]
    xor ecx, ecx
3:  mov edx, ecx
    shl edx, 12
    cmp edx, offset __tail_offset
    jb 4f
    or eax, 2
    mov dword ptr [edi + ecx * 8 + 4], 0x80000000
4:  mov [edi + ecx * 8], eax
    add eax, 0x1000
    inc ecx
    cmp ecx, 16
    jb 3b

    mov eax, 0x20
    mov cr4, eax
    lea eax, [ebx + __first_tables_offset]
    mov cr3, eax
    mov ecx, 0xc0000080
    mov eax, 0x900
    xor edx, edx
    wrmsr
    mov eax, 0x80010031
    mov cr0, eax
    push {code}
    lea eax, [ebx + __long_offset]
    push eax
    retf

9:  mov esi, offset __too_old_offset
    add esi, ebx
    mov edx, 0x3f8
8:  lodsb
    out dx, al
    test al, al
    jnz 8b
7:  hlt
    jmp 7b

.code64
.global __launch_long
__launch_long:
    mov rax, offset __launch_high
    jmp rax
__launch_high:
    mov rsp, offset __stack_top
    lea eax, [rbx + __window_offset]
    mov cr3, rax

    mov rax, offset __gdt
    push rax
    sub rsp, 2
    mov word ptr [rsp], {gdt_limit}
    lgdt [rsp]
    add rsp, 10
    mov rdi, offset __idt
    push rdi
    sub rsp, 2
    mov word ptr [rsp], {idt_limit}
    lidt [rsp]
    add rsp, 10
    mov rax, offset {fault_stub}
    mov ecx, 32
6:  mov [rdi], rax
    mov dword ptr [rdi + 2], 0x8e000000 | {code}
    mov rdx, rax
    shr rdx, 16
    mov [rdi + 6], rdx
    add rdi, 16
    loop 6b

    mov edi, ebx
    xor ebp, ebp
    call {entered}
    ud2

.balign 16
{fault_stub}:
    mov rdi, rsp
    and rsp, -16
    call {fault}
    ud2

.section .rodata.entry, "a"
.balign 8
.global __gdt
__gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
.global __too_old
__too_old:
    .asciz "stop: this processor has no 1 GiB pages or no NX; Dolmen cannot run on it\r\n"

.section .bss.idt, "aw", @nobits
.balign 16
__idt:
    .skip {idt_limit} + 1
"#,
    gdt_limit = const 3 * 8 - 1,
    idt_limit = const 32 * 16 - 1,
    data = const 0x10,
    code = const 0x08,
    // Of CPUID Fn8000_0001 EDX: NX, 1 GiB pages, long mode.
    needed = const 1 << 20 | 1 << 26 | 1 << 29,
    pat_low = const 0x0007_0406,
    pat_high = const 0x0007_0406,
    pointer_slot = const (LAUNCH_VA >> 30) & 0x1ff,
    directory_slot = const (LAUNCH_VA >> 21) & 0x1ff,
    page_slot = const (LAUNCH_VA >> 12) & 0x1ff,
    memory_slot = const MEMORY_SLOT,
    memory_end = const MEMORY_SLOT + MEMORY_GIB,
    fault_stub = sym fault_stub,
    fault = sym fault,
    entered = sym entered,
);

unsafe extern "Rust" {
    /// The launch image's own beginning.
    safe fn launch_main(block: Block, page: LoaderPage, probe: Probe) -> !;
    /// An exception: the first three words of its frame.
    safe fn launch_fault(frame: [u64; 3]) -> !;
}
unsafe extern "C" {
    fn fault_stub();
}

/// Called once, by the stub, with the block's physical address.
extern "C" fn entered(base: u64) -> ! {
    // SAFETY: the stub runs once, in the block that the processor measured, on the only running processor.
    let block = unsafe { Block::new(base) };
    // SAFETY: as above.
    let page = unsafe { LoaderPage::new() };
    // SAFETY: as above.
    launch_main(block, page, unsafe { Probe::new(base) })
}

/// Called by the one exception handler with the frame's address.
extern "C" fn fault(frame: u64) -> ! {
    let at = core::ptr::with_exposed_provenance::<[u64; 3]>(to_usize(frame));
    // SAFETY: the processor has just pushed at least five words there, in our stack.
    launch_fault(unsafe { at.read() })
}

/// Switches to the page tables at `root` and jumps to `entry` (an address in the core) with the hand-off's
/// physical address.
///
/// # Safety
/// The tables at `root` map the low memory and the block as they are mapped now, and the region at `CORE_VA`; what
/// is at `entry` is the measured core.
pub(crate) unsafe fn jump(root: u64, entry: u64, handoff: u64) -> ! {
    // SAFETY: by the caller's promise; nothing of the launch image is used afterwards but its page tables, GDT and
    // stack, which stay as they are.
    unsafe {
        asm!("mov cr3, {}", "jmp {}", in(reg) root, in(reg) entry, in("rdi") handoff, options(noreturn));
    }
}

/// Leaves the stack in use for `stack` and goes on with `next` there, for good. The block's own stack is small,
/// since each of its bytes is taken from 64 KiB.
pub fn on_stack<F: FnOnce() -> core::convert::Infallible>(stack: &'static mut [u8], next: F) -> ! {
    extern "C" fn begin<F: FnOnce() -> core::convert::Infallible>(next: *const F) -> ! {
        // SAFETY: the caller's `next` is still on the stack that was left, is read once, and is forgotten there.
        let next = unsafe { next.read() };
        match next() {}
    }
    let next = core::mem::ManuallyDrop::new(next);
    let top = stack.as_mut_ptr_range().end.expose_provenance() & !15;
    // SAFETY: `stack` is memory of our own for ever; nothing returns to the old stack, which stays as it is.
    unsafe {
        asm!("mov rsp, {top}", "call {begin}", "ud2", top = in(reg) top, begin = sym begin::<F>,
             in("rdi") &raw const *next, options(noreturn));
    }
}

/// Goes on with `next` at the top of the block's own stack, for good: however deep the way out begins, it has room.
pub fn on_first_stack(next: extern "C" fn() -> !) -> ! {
    // SAFETY: nothing returns to the frames that are overwritten, and `next` takes nothing from them.
    unsafe { asm!("mov rsp, offset __stack_top", "call {}", "ud2", in(reg) next, options(noreturn)) }
}
