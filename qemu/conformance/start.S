/*
 * Conformance image: entries, exceptions, the ways between modes, the loader
 * block's first instructions.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
        .set    CODE32, 0x08
        .set    DATA32, 0x10
        .set    CODE64, 0x18
        .set    USER_CODE, 0x23
        .set    USER_DATA, 0x2b
        .set    TASK, 0x30
        .set    CODE16, 0x38
        .set    DATA16, 0x40
        .set    MSR_EFER, 0xc0000080
        .set    MSR_VM_CR, 0xc0010114

/* ---- Multiboot ---- */
        .section .multiboot, "a"
        .align  4
        .long   0x1badb002, 0x2, -(0x1badb002 + 0x2)

        .text
        .code32
        .globl  start
start:
        cli
        cld
        movl    $stack_top, %esp
        pushl   %ebx
        call    load_tables
        call    main
        ud2

/* Own GDT, IDT and task register; also what an AP and the loader block do. */
        .globl  load_tables
load_tables:
        lgdt    gdt_pointer
        ljmp    $CODE32, $1f
1:      movw    $DATA32, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    %ax, %fs
        movw    %ax, %gs
        lidt    idt_pointer
        ret

/* ---- exceptions: back to the latest try_call with the vector ---- */
        .macro  vector number, error
        .if     \error == 0
        pushl   $0
        .endif
        pushl   $\number
        jmp     exception
        .endm

        .globl  vectors
        .align  16
vectors:
        .set    n, 0
        .rept   32
        .if     (n == 8) || ((n >= 10) && (n <= 14)) || (n == 17) || (n == 30)
        vector  n, 1
        .else
        vector  n, 0
        .endif
        .align  16
        .set    n, n + 1
        .endr

exception:
        movw    $DATA32, %ax
        movw    %ax, %ds
        movw    %ax, %es
        popl    last_vector
        popl    last_error
        popl    last_eip
        cld
        movl    recover_esp, %esp
        testl   %esp, %esp
        jz      unexpected
        movl    last_vector, %eax
        jmp     recovered
unexpected:
        movl    $stack_top, %esp
        call    unexpected_exception

/* int try_call(void (*f)(uint32_t), uint32_t argument): vector or -1 */
        .globl  try_call
try_call:
        pushl   %ebx
        pushl   %esi
        pushl   %edi
        pushl   %ebp
        movl    %esp, recover_esp
        movl    20(%esp), %eax
        pushl   24(%esp)
        call    *%eax
        movl    recover_esp, %esp
        movl    $-1, %eax
recovered:
        movl    $0, recover_esp
        popl    %ebp
        popl    %edi
        popl    %esi
        popl    %ebx
        ret

/* void enter_user(uint32_t eip): never returns by itself */
        .globl  enter_user
enter_user:
        movl    4(%esp), %eax
        movl    %esp, task_stack
        pushl   $USER_DATA
        pushl   $user_stack_top
        pushl   $2
        pushl   $USER_CODE
        pushl   %eax
        iret

/* ---- SKINIT in its variants ---- */
        .globl  do_skinit, do_lock_skinit, user_skinit
do_skinit:                      /* (slb) */
        movl    4(%esp), %eax
        skinit
        ret
do_lock_skinit:
        movl    $slb, %eax
        .byte   0xf0
        skinit
        ret
user_skinit:
        movl    $slb, %eax
        skinit
1:      jmp     1b

/* Everything a caller can leave behind: flags, garbage, a breakpoint. */
        .globl  skinit_with_garbage
skinit_with_garbage:
        movl    $sl_entry, %eax
        movl    %eax, %dr0
        movl    $0x00000402, %eax       /* global, execute */
        movl    %eax, %dr7
        movl    $0x11111111, %ecx
        movl    $0x22222222, %edx
        movl    $0x33333333, %ebx
        movl    $0x44444444, %ebp
        movl    $0x55555555, %esi
        movl    $0x66666666, %edi
        movl    %edi, %cr2
        std
        movl    $slb + 0x1234, %eax
        skinit
        ud2

/* From long mode, with garbage in the upper half of RAX. */
        .globl  skinit_from_long_mode
skinit_from_long_mode:
        movl    %cr4, %eax
        orl     $0x20, %eax
        movl    %eax, %cr4
        movl    $page_map, %eax
        movl    %eax, %cr3
        movl    $MSR_EFER, %ecx
        rdmsr
        orl     $0x100, %eax
        wrmsr
        movl    %cr0, %eax
        orl     $0x80000000, %eax
        movl    %eax, %cr0
        ljmp    $CODE64, $1f
        .code64
1:      movabs  $0xdeadbeef77777777, %r8
        movq    %r8, %r15
        movabs  $0xdeadbeef00405678, %rax
        skinit
        ud2
        .code32

/* int probe_real_mode(void): 6 if SKINIT gave #UD, 13 if #GP */
        .globl  probe_real_mode
probe_real_mode:
        pushl   %ebx
        pushl   %esi
        pushl   %edi
        pushl   %ebp
        movl    %esp, real_esp
        movl    $real_start, %esi
        movl    $0x7000, %edi
        movl    $real_end - real_start, %ecx
        rep     movsb
        lidt    real_idt
        ljmp    $CODE16, $0x7000
real_back:
        movw    $DATA32, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movl    real_esp, %esp
        lidt    idt_pointer
        movzwl  0x6ff0, %eax
        popl    %ebp
        popl    %edi
        popl    %esi
        popl    %ebx
        ret

        .code16
real_start:
        movw    $DATA16, %ax
        movw    %ax, %ds
        movw    %ax, %ss
        movl    %cr0, %eax
        andl    $~1, %eax
        movl    %eax, %cr0
        ljmp    $0, $(0x7000 + 1f - real_start)
1:      xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %ss
        movw    $0x6f00, %sp
        movw    $0, 0x6ff0
        movw    $(0x7000 + real_ud - real_start), 6 * 4
        movw    %ax, 6 * 4 + 2
        movw    $(0x7000 + real_gp - real_start), 13 * 4
        movw    %ax, 13 * 4 + 2
        movl    $slb, %eax
        skinit
        jmp     real_leave
real_ud:
        movw    $6, 0x6ff0
        jmp     real_leave
real_gp:
        movw    $13, 0x6ff0
real_leave:
        movl    %cr0, %eax
        orl     $1, %eax
        movl    %eax, %cr0
        ljmpl   $CODE32, $real_back
real_end:
        .code32

/*
 * int a20_masks(void): does the gate, closed at port 92h, hide bit 20?  Runs
 * below 1 MiB, where hiding it changes nothing, with everything it needs.
 */
        .globl  a20_masks
a20_masks:
        pushl   %esi
        pushl   %edi
        movl    $a20_start, %esi
        movl    $0x7000, %edi
        movl    $a20_end - a20_start, %ecx
        rep     movsb
        movl    $0x7000, %eax
        movl    %esp, %edx
        movl    $0x6f00, %esp
        pushl   %edx
        call    *%eax
        popl    %esp
        popl    %edi
        popl    %esi
        ret
a20_start:
        movl    $0x12345678, 0x6f80
        movl    $0, 0x506f80            /* the same without bit 20 is 0x406f80 */
        movl    $0x12345678, 0x406f80
        inb     $0x92, %al
        andb    $~2, %al
        outb    %al, $0x92
        movl    0x506f80, %ecx
        inb     $0x92, %al
        orb     $2, %al
        outb    %al, $0x92
        xorl    %eax, %eax
        cmpl    $0x12345678, %ecx
        sete    %al
        ret
a20_end:

/* ---- SVM ---- */
        .globl  do_vmrun, do_stgi, do_clgi, do_halt
do_vmrun:                       /* (vmcb) */
        movl    4(%esp), %eax
        pushl   %ebx
        pushl   %esi
        pushl   %edi
        pushl   %ebp
        vmrun
        popl    %ebp
        popl    %edi
        popl    %esi
        popl    %ebx
        ret
do_stgi:
        stgi
        nop
        nop
        ret
do_clgi:
        clgi
        ret
do_halt:
        sti
1:      hlt
        jmp     1b
        .globl  guest_skinit, guest_idle, guest_halt
guest_skinit:
        movl    $slb, %eax
        skinit
1:      jmp     1b
guest_halt:
        hlt
        jmp     guest_halt
guest_idle:
        nop
        vmmcall
        jmp     guest_idle

/* ---- other processors: start at 8000h, run ap_task ---- */
        .globl  ap_start, ap_end
        .code16
ap_start:
        cli
        xorw    %ax, %ax
        movw    %ax, %ds
        lgdtl   0x8000 + ap_gdt_pointer - ap_start
        movl    %cr0, %eax
        orl     $1, %eax
        movl    %eax, %cr0
        ljmpl   $CODE32, $ap_32
ap_gdt_pointer:
        .word   gdt_end - gdt - 1
        .long   gdt
ap_end:
        .code32
ap_32:
        movw    $DATA32, %ax
        movw    %ax, %ds
        movw    %ax, %ss
        movl    $ap_stack_top, %esp
        call    load_tables
        call    ap_main
1:      cli
        hlt
        jmp     1b

/* ---- tables ---- */
        .data
        .align  8
        .globl  gdt_task
gdt:
        .quad   0
        .quad   0x00cf9a000000ffff
        .quad   0x00cf92000000ffff
        .quad   0x00af9a000000ffff
        .quad   0x00cffa000000ffff
        .quad   0x00cff2000000ffff
gdt_task:
        .quad   0
        .quad   0x00009a000000ffff
        .quad   0x000092000000ffff
gdt_end:
gdt_pointer:
        .word   gdt_end - gdt - 1
        .long   gdt
idt_pointer:
        .word   32 * 8 - 1
        .long   idt
real_idt:
        .word   0x3ff
        .long   0
        .align  4
        .globl  task, task_stack
task:
        .long   0
task_stack:
        .long   stack_top, DATA32
        .fill   23, 4, 0
        .align  4096
page_directory:
        .set    n, 0
        .rept   512
        .quad   n * 0x200000 + 0x83
        .set    n, n + 1
        .endr
page_pointers:
        .long   page_directory + 3, 0
        .fill   511, 8, 0
page_map:
        .long   page_pointers + 3, 0
        .fill   511, 8, 0

        .bss
        .align  16
        .globl  idt, last_vector, last_error, last_eip
idt:            .skip 32 * 8
last_vector:    .skip 4
last_error:     .skip 4
last_eip:       .skip 4
recover_esp:    .skip 4
real_esp:       .skip 4
        .align  4096
                .skip 16384
stack_top:
                .skip 16384
        .globl  user_stack_top
user_stack_top:
                .skip 16384
ap_stack_top:
                .skip 16384
sl_stack_top:

/* ---- the loader block ---- */
        .section .slb, "awx"
        .globl  slb, sl_entry, sl_saved
slb:
        .word   sl_entry - slb
        .word   sl_end - slb
        /* SS is flat from the start; DS is not until it is loaded */
sl_entry:
        movl    %eax, %ss:sl_saved + 0
        movl    %ecx, %ss:sl_saved + 4
        movl    %edx, %ss:sl_saved + 8
        movl    %ebx, %ss:sl_saved + 12
        movl    %esp, %ss:sl_saved + 16
        movl    %ebp, %ss:sl_saved + 20
        movl    %esi, %ss:sl_saved + 24
        movl    %edi, %ss:sl_saved + 28
        pushfl
        popl    %ss:sl_saved + 32
        movl    %cr0, %eax
        movl    %eax, %ss:sl_saved + 36
        movl    %cr2, %eax
        movl    %eax, %ss:sl_saved + 40
        movl    %cr3, %eax
        movl    %eax, %ss:sl_saved + 44
        movl    %cr4, %eax
        movl    %eax, %ss:sl_saved + 48
        movl    %dr6, %eax
        movl    %eax, %ss:sl_saved + 52
        movl    %dr7, %eax
        movl    %eax, %ss:sl_saved + 56
        movl    %dr0, %eax
        movl    %eax, %ss:sl_saved + 60
        movl    $MSR_EFER, %ecx
        rdmsr
        movl    %eax, %ss:sl_saved + 64
        movl    $MSR_VM_CR, %ecx
        rdmsr
        movl    %eax, %ss:sl_saved + 68
        movl    $0, %eax
        movw    %cs, %ax
        movl    %eax, %ss:sl_saved + 72
        movw    %ss, %ax
        movl    %eax, %ss:sl_saved + 76
        movw    %ds, %ax
        movl    %eax, %ss:sl_saved + 80
        sldt    %ax
        movl    %eax, %ss:sl_saved + 84
        str     %ax
        movl    %eax, %ss:sl_saved + 88
        sgdt    %ss:sl_saved + 92
        sidt    %ss:sl_saved + 100
        movl    %ds:slb, %eax
        movl    %eax, %ss:sl_saved + 108
        lgdtl   %ss:gdt_pointer
        movw    $DATA32, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movl    $sl_stack_top, %esp
        call    load_tables
        call    sl_main
        ud2
sl_end:
        /* not code: content for launches that measure more */
        .org    slb + 0x1000, 0xa5
        .set    n, 0
        .rept   0xf000
        .byte   (n * 7 + n / 256) & 0xff
        .set    n, n + 1
        .endr
        .set    sl_saved, slb + 0x8000
