//! First instructions: from 32-bit protected mode to 64-bit mode with the first 4 GiB mapped one to one.

use core::arch::global_asm;

global_asm!(
    r#"
.section .note.Xen, "a", @note
    .balign 4
    .long 4
    .long 4
    .long 18                    # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long __guest_entry

# A Multiboot header with load addresses, which a loader must obey whatever else the file is.
.section .multiboot, "a"
    .balign 4
__guest_multiboot:
    .long 0x1badb002
    .long 0x10003               # modules at page boundaries, memory information, load addresses
    .long -(0x1badb002 + 0x10003)
    .long __guest_multiboot
    .long __guest_image_start
    .long __guest_image_end
    .long __guest_bss_end
    .long __guest_entry

.section .text.entry, "ax"
.code32
.global __guest_entry
__guest_entry:
    # What the loader promised, before anything changes it: no instruction up to PUSHFD touches a flag.
    mov [__guest_entered], eax
    mov [__guest_entered + 4], ebx
    mov eax, cr0
    mov [__guest_entered + 8], eax
    mov eax, cr4
    mov [__guest_entered + 12], eax
    mov esp, offset __guest_stack_top
    pushfd
    pop dword ptr [__guest_entered + 16]
    mov [__guest_entered + 20], cs
    mov [__guest_entered + 24], ss
    mov [__guest_entered + 28], ds
    mov [__guest_entered + 32], es
    mov [__guest_entered + 36], fs
    mov [__guest_entered + 40], gs
    mov eax, es:[__guest_entered]       # each must reach beyond the limit of real mode, or this is the end
    mov eax, fs:[__guest_entered]
    mov gs:[__guest_entered + 44], eax
    cli
    mov edi, ebx                # start of the information that the loader left
    # Four page directories of 2 MiB pages, writable and for user mode too.
    mov ecx, 0
2:
    mov eax, ecx
    shl eax, 21
    or eax, 0x87
    mov [__guest_directories + ecx * 8], eax
    mov dword ptr [__guest_directories + ecx * 8 + 4], 0
    inc ecx
    cmp ecx, 2048
    jne 2b
    mov eax, offset __guest_directories + 7
    mov [__guest_pointers], eax
    add eax, 0x1000
    mov [__guest_pointers + 8], eax
    add eax, 0x1000
    mov [__guest_pointers + 16], eax
    add eax, 0x1000
    mov [__guest_pointers + 24], eax
    mov eax, offset __guest_pointers + 7
    mov [__guest_root], eax
    mov eax, cr4
    or eax, 0x620               # PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov eax, offset __guest_root
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x901               # SCE, LME, NXE
    wrmsr
    mov eax, cr0
    or eax, 0x80010001          # PG, WP, PE
    and eax, 0x9fffffff         # caches on
    mov cr0, eax
    lgdt [__guest_gdt_pointer]
    push 8
    mov eax, offset __guest_long_mode
    push eax
    retf
.code64
__guest_long_mode:
    mov eax, 0x10
    mov ss, eax
    mov ds, eax
    mov es, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov eax, offset __guest_tss
    mov [__guest_gdt + 0x28 + 2], ax
    shr eax, 16
    mov [__guest_gdt + 0x28 + 4], al
    mov [__guest_gdt + 0x28 + 7], ah
    mov eax, offset __guest_fault_stack_top
    mov [__guest_tss + 4], eax
    mov eax, 0x28
    ltr ax
    mov edi, edi
    call guest_main
    ud2

.section .data
.balign 16
__guest_gdt:
    .quad 0
    .quad 0x00af9b000000ffff    # 08h: 64-bit code
    .quad 0x00cf93000000ffff    # 10h: data
    .quad 0x00cff3000000ffff    # 18h: user data
    .quad 0x00affb000000ffff    # 20h: user 64-bit code
    .quad 0x0000890000000067    # 28h: TSS, base filled in above
    .quad 0
__guest_gdt_pointer:
    .word 55
    .quad __guest_gdt

.section .bss
.balign 16
.global __guest_entered
__guest_entered: .skip 64
.balign 4096
.global __guest_root
__guest_root: .skip 4096
__guest_pointers: .skip 4096
.global __guest_directories
__guest_directories: .skip 16384
.skip 65536
__guest_stack_top:
.skip 16384
__guest_fault_stack_top:
__guest_tss: .skip 104
"#
);
