# Multiboot headers, and the way from 32-bit protected mode to 64-bit mode.
#
# A Multiboot boot loader enters at multiboot_entry: flat 32-bit segments, paging off, interrupts off,
# EAX = magic, EBX = information (Multiboot 0.6.96, 3.2; Multiboot2 2.0, 3.3). No stack is given.

.set MB1_MAGIC, 0x1badb002
.set MB1_FLAGS, 0x00010003          # modules on page borders, memory map, load addresses in the header
.set MB2_MAGIC, 0xe85250d6
.set MB2_LENGTH, mb2_end - mb2_start

.section .multiboot, "a", @progbits
.balign 8
mb1_start:
    .long MB1_MAGIC
    .long MB1_FLAGS
    .long -(MB1_MAGIC + MB1_FLAGS)
    .long mb1_start                 # where this header is to lie
    .long image_start               # load from here …
    .long image_data_end            # … to here …
    .long image_end                 # … and zeroes up to here
    .long multiboot_entry

.balign 8
mb2_start:
    .long MB2_MAGIC
    .long 0                         # architecture: i386, protected mode
    .long MB2_LENGTH
    .long -(MB2_MAGIC + MB2_LENGTH)
    .short 1, 0                     # information request: must be honoured
    .long 16
    .long 3, 6                      # modules, memory map
    .short 6, 0                     # modules on page borders
    .long 8
    .short 3, 0                     # entry address
    .long 12
    .long multiboot_entry
    .long 0
    .short 0, 0                     # end
    .long 8
mb2_end:

.section .text.entry, "ax", @progbits
.code32
.global multiboot_entry
multiboot_entry:
    cli
    cld
    mov esp, offset stack_top
    mov edi, eax                    # kept for multiboot_start
    mov esi, ebx

    # 64-bit mode: CPUID 8000_0001h EDX bit 29.
    mov eax, 0x80000000
    cpuid
    cmp eax, 0x80000001
    jb no_long_mode
    mov eax, 0x80000001
    cpuid
    test edx, 1 << 29
    jz no_long_mode

    # One to one, writable, 2 MiB pages: 4 page directories, 2048 entries.
    xor ecx, ecx
fill:
    mov eax, ecx
    shl eax, 21
    or eax, 0x83
    mov [directories + ecx * 8], eax
    mov dword ptr [directories + ecx * 8 + 4], 0
    inc ecx
    cmp ecx, 2048
    jne fill

    mov eax, offset directories + 3
    mov [pointers], eax
    add eax, 0x1000
    mov [pointers + 8], eax
    add eax, 0x1000
    mov [pointers + 16], eax
    add eax, 0x1000
    mov [pointers + 24], eax
    mov eax, offset pointers + 3
    mov [root], eax

    mov eax, cr4
    or eax, 1 << 5                  # PAE
    mov cr4, eax
    mov eax, offset root
    mov cr3, eax
    mov ecx, 0xc0000080             # EFER.LME
    rdmsr
    or eax, 1 << 8
    wrmsr
    mov eax, cr0
    or eax, 1 << 31                 # PG
    mov cr0, eax
    lgdt [gdt_pointer]
    .byte 0xea                      # far jump into 64-bit code
    .long long_mode
    .short 8

no_long_mode:
    mov esi, offset no_long_mode_text
    mov ebx, 100000                 # turns for the whole text: a machine without COM1 must not hang here
next_byte:
    lodsb
    test al, al
    jz halted
    mov ah, al
wait_for_room:
    dec ebx
    jz halted
    mov dx, 0x3fd
    in al, dx
    test al, 0x20
    jz wait_for_room
    mov al, ah
    mov dx, 0x3f8
    out dx, al
    jmp next_byte
halted:
    hlt
    jmp halted

.code64
long_mode:
    mov ax, 16
    mov ds, ax
    mov es, ax
    mov ss, ax
    xor eax, eax
    mov fs, ax
    mov gs, ax
    mov esp, offset stack_top       # clears the upper half
    xor ebp, ebp
    mov edi, edi                    # magic
    mov esi, esi                    # information
    call {start}
    ud2

.section .rodata.entry, "a", @progbits
.balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff        # 64-bit code
    .quad 0x00cf93000000ffff        # data
gdt_pointer:
    .short 23
    .quad gdt
no_long_mode_text:
    .asciz "stop: the processor has no 64-bit mode; use an AMD processor with SVM and SKINIT\r\n"

.section .bss.entry, "aw", @nobits
.balign 4096
root:
    .skip 4096
pointers:
    .skip 4096
directories:
    .skip 4 * 4096
stack:
    .skip 256 * 1024
stack_top:
