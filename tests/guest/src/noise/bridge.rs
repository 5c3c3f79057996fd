//! The way out of long mode and back, in assembly: what [`super::legacy`] crosses.
//!
//! Offsets are those of the structures there; 13000h and 13800h are where it keeps them, below 1 MiB, so that
//! real mode reaches them.

use core::arch::global_asm;

global_asm!(
    r#"
.section .text.legacy, "ax"
.code64
# RDI: a pointer for LGDT.
__legacy_enter:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [rip + __legacy_rsp], rsp
    mov rax, cr0
    mov [rip + __legacy_cr0], rax
    mov rax, cr3
    mov [rip + __legacy_cr3], rax
    mov rax, cr4
    mov [rip + __legacy_cr4], rax
    lgdt [rdi]
    push 0x38
    lea rax, [rip + 2f]
    push rax
    retfq
.code32
2:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov esp, offset __legacy_stack_top
    mov ebx, 0x13800
    mov eax, cr0
    and eax, 0x7fffffff         # out of long mode
    mov cr0, eax
    mov ecx, 0xc0000080
    rdmsr
    and eax, 0xfffffeff
    wrmsr
    mov eax, [ebx + 8]
    mov cr4, eax
    mov eax, [ebx + 4]
    mov cr3, eax
    lidt [ebx + 20]
    mov eax, [ebx]
    mov cr0, eax
    jmp 3f
3:
    mov eax, [ebx + 16]
    test eax, eax
    jz 4f
    ltr ax
4:
    mov eax, [ebx + 12]
    test eax, eax
    jnz 8f
    test dword ptr [ebx + 84], 0x20000
    jnz 6f
    test byte ptr [ebx + 80], 3
    jnz 5f
    mov ss, [ebx + 92]          # the same privilege: the frame goes onto the code's own stack
    mov esp, [ebx + 88]
    push dword ptr [ebx + 84]
    push dword ptr [ebx + 80]
    push dword ptr [ebx + 76]
    mov gs, [ebx + 28]
    mov fs, [ebx + 32]
    mov es, [ebx + 40]
    mov edi, [ebx + 44]
    mov esi, [ebx + 48]
    mov ebp, [ebx + 52]
    mov edx, [ebx + 64]
    mov ecx, [ebx + 68]
    mov eax, [ebx + 72]
    push dword ptr [ebx + 60]
    mov ds, [ebx + 36]
    pop ebx
    iretd
5:
    push dword ptr [ebx + 92]
    push dword ptr [ebx + 88]
    push dword ptr [ebx + 84]
    push dword ptr [ebx + 80]
    push dword ptr [ebx + 76]
    mov gs, [ebx + 28]
    mov fs, [ebx + 32]
    mov es, [ebx + 40]
    mov edi, [ebx + 44]
    mov esi, [ebx + 48]
    mov ebp, [ebx + 52]
    mov edx, [ebx + 64]
    mov ecx, [ebx + 68]
    mov eax, [ebx + 72]
    push dword ptr [ebx + 60]
    mov ds, [ebx + 36]
    pop ebx
    iretd
6:
    push dword ptr [ebx + 28]   # virtual-8086 mode: segments come from the frame
    push dword ptr [ebx + 32]
    push dword ptr [ebx + 36]
    push dword ptr [ebx + 40]
    push dword ptr [ebx + 92]
    push dword ptr [ebx + 88]
    push dword ptr [ebx + 84]
    push dword ptr [ebx + 80]
    push dword ptr [ebx + 76]
    mov edi, [ebx + 44]
    mov esi, [ebx + 48]
    mov ebp, [ebx + 52]
    mov edx, [ebx + 64]
    mov ecx, [ebx + 68]
    mov eax, [ebx + 72]
    mov ebx, [ebx + 60]
    iretd
8:
    mov ecx, 0x58               # limits as real mode has them
    cmp eax, 2
    jne 9f
    mov ecx, 0x10               # or everything
9:
    mov ds, ecx
    mov es, ecx
    mov fs, ecx
    mov gs, ecx
    mov ecx, 0x58
    mov ss, ecx
    .byte 0xea
    .long __legacy_to_real - __legacy_blob + 0x1000
    .word 0x48

# What gates of protected mode lead to.
.balign 16
__legacy_gates:
.set vector, 0
.rept 256
    .balign 16
    .if vector != 8 && vector != 10 && vector != 11 && vector != 12 && vector != 13 && vector != 14 && vector != 17 && vector != 21 && vector != 29 && vector != 30
    push 0
    .endif
    push vector
    jmp 2f
    .set vector, vector + 1
.endr
2:
    pushad
    mov eax, 0x10
    mov ds, eax
    mov ecx, ss
    lar ecx, ecx
    mov ebx, esp
    test ecx, 0x400000
    jnz 3f
    movzx ebx, bx               # a stack of 64 KiB
3:
    mov edi, 0x13000
    xor ecx, ecx
4:
    mov eax, ss:[ebx + ecx * 4]
    mov [edi + ecx * 4], eax
    inc ecx
    cmp ecx, 19
    jb 4b
__legacy_return:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov esp, offset __legacy_stack_top
    push 2
    popfd
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov eax, cr0
    and eax, 0x7fffffff
    or eax, 1
    mov cr0, eax
    mov eax, [__legacy_cr4]
    mov cr4, eax
    mov eax, [__legacy_cr3]
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, [__legacy_cr0]
    mov cr0, eax
    .byte 0xea
    .long __legacy_back
    .word 8

# Where the other task begins when nobody says otherwise.
__legacy_arrived:
    mov eax, 0x10
    mov ds, eax
    mov dword ptr [0x13020], 0x100
    jmp __legacy_return

.code64
__legacy_back:
    mov rsp, [rip + __legacy_rsp]
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

# Goes to 1000h in the low 64 KiB: what the table of real mode leads to, then the ways in and out.
.code16
.balign 16
__legacy_blob:
.set vector, 0
.rept 256
    .balign 16
    .byte 0x2e, 0xc7, 0x06      # mov word ptr cs:[3020h], vector
    .word 0x3020
    .word vector
    jmp 2f
    .set vector, vector + 1
.endr
2:
    cli
    mov dword ptr cs:[0x301c], eax
    mov dword ptr cs:[0x3018], ecx
    mov dword ptr cs:[0x3014], edx
    mov dword ptr cs:[0x3010], ebx
    mov dword ptr cs:[0x3008], ebp
    mov dword ptr cs:[0x3004], esi
    mov dword ptr cs:[0x3000], edi
    xor eax, eax
    mov dword ptr cs:[0x3024], eax
    pop ax
    mov dword ptr cs:[0x3028], eax
    pop ax
    mov dword ptr cs:[0x302c], eax
    pop ax
    mov dword ptr cs:[0x3030], eax
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xea
    .long __legacy_return
    .word 0x38
__legacy_to_real:
    mov eax, cr0
    and al, 0xfe
    mov cr0, eax
    .byte 0xea
    .word 3f - __legacy_blob + 0x1000
    .word 0x1000
3:
    mov ax, word ptr cs:[0x385c]
    mov ss, ax
    mov esp, dword ptr cs:[0x3858]
    push word ptr cs:[0x3854]
    push word ptr cs:[0x3850]
    push word ptr cs:[0x384c]
    mov ax, word ptr cs:[0x381c]
    mov gs, ax
    mov ax, word ptr cs:[0x3820]
    mov fs, ax
    mov ax, word ptr cs:[0x3824]
    mov ds, ax
    mov ax, word ptr cs:[0x3828]
    mov es, ax
    mov edi, dword ptr cs:[0x382c]
    mov esi, dword ptr cs:[0x3830]
    mov ebp, dword ptr cs:[0x3834]
    mov ebx, dword ptr cs:[0x383c]
    mov edx, dword ptr cs:[0x3840]
    mov ecx, dword ptr cs:[0x3844]
    mov eax, dword ptr cs:[0x3848]
    iret
__legacy_blob_end:
.code64
.section .bss
.balign 16
__legacy_rsp: .skip 8
__legacy_cr0: .skip 8
__legacy_cr3: .skip 8
__legacy_cr4: .skip 8
.skip 0x1000
__legacy_stack_top:
"#
);

unsafe extern "C" {
    pub(super) static __legacy_gates: u8;
    pub(super) static __legacy_arrived: u8;
    pub(super) static __legacy_blob: u8;
    pub(super) static __legacy_blob_end: u8;
    pub(super) fn __legacy_enter(gdt: *const [u16; 5]);
}
