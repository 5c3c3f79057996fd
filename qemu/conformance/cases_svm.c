/*
 * Conformance cases of what hypervisors need of a processor: the task register,
 * reserved bits of control registers, the interrupt shadow
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "cases.h"

#define EXIT_INIT 0x63
#define EXIT_VINTR 0x64
#define INTERCEPT_INIT 3
#define INTERCEPT_VINTR 4
#define EXIT_RDTSCP 0x87
#define EXIT_XSETBV 0x8d
#define INTERCEPT_RDTSC 14
#define INTERCEPT_RDTSCP 7
#define INTERCEPT_XSETBV 13
#define CR4_PAE (1 << 5)
#define CR4_OSXSAVE (1 << 18)
/* a virtual interrupt of the highest priority, which ignores the TPR */
#define PENDING 0x011f0100
/* valid, an exception, with an error code */
#define INJECTED_GP (0x80000b00 | GP)
/* valid, an external interrupt */
#define VECTOR 0x50
#define INJECTED_INTERRUPT (0x80000000 | VECTOR)
#define FPU_ROUNDS 20000

void guest_writes_cr4(void);
void guest_double_fault(void);
void guest_interrupted(void);
void guest_rdtscp(void);
void guest_xsetbv(void);
void guest_reads(void);
extern uint32_t interrupted;

asm(".text\n"
    "        .globl guest_nops\n"
    "guest_nops:\n"
    "        nop\n"
    "        nop\n"
    "        vmmcall\n"
    "guest_writes_cr4:\n"
    "        movl $0x80000000, %eax\n"
    "        movl %eax, %cr4\n"
    "        vmmcall\n"
    "guest_double_fault:\n"
    "        vmmcall\n"
    /* counts itself and stays for a while */
    "guest_interrupted:\n"
    "        incl interrupted\n"
    "        movl $20000000, %ecx\n"
    "1:      loop 1b\n"
    "        vmmcall\n"
    "guest_rdtscp:\n"
    "        rdtscp\n"
    "        vmmcall\n"
    "guest_xsetbv:\n"
    "        xorl %ecx, %ecx\n"
    "        xorl %edx, %edx\n"
    "        movl $1, %eax\n"
    "        xsetbv\n"
    "        vmmcall\n"
    /* the last 2 MiB of the first GiB */
    "guest_reads:\n"
    "        movl 0x3fe00000, %eax\n"
    "        vmmcall\n"
    ".bss\n"
    "interrupted: .long 0\n"
    ".text\n");

static void load_task(uint32_t selector)
{
    asm volatile("ltr %w0" : : "r"(selector));
}

static void write_cr4(uint32_t value)
{
    asm volatile("mov %0, %%cr4" : : "r"(value));
}

static uint32_t task_register(void)
{
    uint32_t selector;

    asm volatile("str %0" : "=r"(selector));
    return selector & 0xffff;
}

void case_task(void)
{
    check_equal("LTR of a null selector gives #GP", try_call(load_task, 0), GP);
    check_equal("with error code 0", last_error, 0);
    check_equal("whatever its privilege", try_call(load_task, 3), GP);
    check_equal("and loads nothing", task_register(), 0x30);
}

void case_reserved(void)
{
    struct vmcb *guest;

    check_equal("a reserved bit of CR4 gives #GP",
                try_call(write_cr4, 0x80000000), GP);
    check_equal("with error code 0", last_error, 0);

    guest = new_guest(guest_writes_cr4, 0);
    intercept(guest, INTERCEPT_EXCEPTIONS, GP);
    check_equal("in a guest too", run_guest(guest), 0x40 + GP);
    check_equal("at the instruction", vmcb_field(guest, VMCB_RIP),
                (uint32_t)guest_writes_cr4 + 5);
}

void case_exits(void)
{
    struct vmcb *guest = new_guest(guest_rdtscp, 0);

    intercept(guest, INTERCEPT_3, INTERCEPT_RDTSC);
    check_equal("RDTSC's intercept is not RDTSCP's", run_guest(guest),
                EXIT_VMMCALL);
    guest = new_guest(guest_rdtscp, 0);
    intercept(guest, INTERCEPT_4, INTERCEPT_RDTSCP);
    check_equal("an intercepted RDTSCP exits with 87h", run_guest(guest),
                EXIT_RDTSCP);
    check_equal("at the instruction", vmcb_field(guest, VMCB_RIP),
                (uint32_t)guest_rdtscp);

    guest = new_guest(guest_xsetbv, 0);
    intercept(guest, INTERCEPT_4, INTERCEPT_XSETBV);
    intercept(guest, INTERCEPT_EXCEPTIONS, UD);
    check_equal("XSETBV without OSXSAVE gives #UD first", run_guest(guest),
                0x40 + UD);
    guest = new_guest(guest_xsetbv, 0);
    set_vmcb_field(guest, VMCB_CR4, CR4_OSXSAVE);
    check_equal("XSETBV is executed where nothing intercepts it",
                run_guest(guest), EXIT_VMMCALL);
    guest = new_guest(guest_xsetbv, 0);
    set_vmcb_field(guest, VMCB_CR4, CR4_OSXSAVE);
    intercept(guest, INTERCEPT_4, INTERCEPT_XSETBV);
    check_equal("an intercepted XSETBV exits with 8Dh", run_guest(guest),
                EXIT_XSETBV);
    check_equal("at the instruction", vmcb_field(guest, VMCB_RIP),
                (uint32_t)guest_xsetbv + 9);
}

void case_refused(void)
{
    struct vmcb *guest = new_guest(guest_nops, 0);
    uint32_t stack = vmcb_field(guest, VMCB_RSP);

    set_vmcb_field(guest, VMCB_ASID, 0);
    set_vmcb_field(guest, VMCB_CR3, 0x5000);
    set_vmcb_field(guest, VMCB_EFLAGS, 0x203);
    check_equal("VMRUN refuses ASID 0", run_guest(guest), -1u);
    check_equal("with an exit code of 64 bits",
                vmcb_field(guest, VMCB_EXITCODE + 4), -1u);
    check_equal("and leaves RIP", vmcb_field(guest, VMCB_RIP),
                (uint32_t)guest_nops);
    check_equal("RSP", vmcb_field(guest, VMCB_RSP), stack);
    check_equal("RFLAGS", vmcb_field(guest, VMCB_EFLAGS), 0x203);
    check_equal("and CR3", vmcb_field(guest, VMCB_CR3), 0x5000);
}

/* The first GiB in 2 MiB pages; the last entry has a reserved bit. */
void case_present(void)
{
    static uint64_t directory[512] PAGE, pointers[4] PAGE;
    struct vmcb *guest = new_guest(guest_reads, 0);
    uint32_t i;

    for (i = 0; i < 512; i++) {
        directory[i] = (uint64_t)i << 21 | 0x83;
    }
    directory[511] |= 1ull << 50;
    pointers[0] = (uint32_t)directory | 1;
    set_vmcb_field(guest, VMCB_CR3, (uint32_t)pointers);
    set_vmcb_field(guest, VMCB_CR4, CR4_PAE);
    set_vmcb_field(guest, VMCB_CR0, vmcb_field(guest, VMCB_CR0) | CR0_PG);
    intercept(guest, INTERCEPT_EXCEPTIONS, PF);
    check_equal("a reserved bit in a page table gives #PF", run_guest(guest),
                0x40 + PF);
    check_equal("as RSV and as present", vmcb_field(guest, VMCB_EXITINFO1), 9);
}

/* A guest with interrupts on and one pending; where its window opens. */
static uint32_t window(uint32_t state)
{
    struct vmcb *guest = new_guest(guest_nops, 0);

    intercept(guest, INTERCEPT_3, INTERCEPT_VINTR);
    set_vmcb_field(guest, VMCB_VIRTUAL_INTERRUPT, PENDING);
    set_vmcb_field(guest, VMCB_INTERRUPT_STATE, state);
    set_vmcb_field(guest, VMCB_EFLAGS, 0x202);
    check_equal("the window exits", run_guest(guest), EXIT_VINTR);
    return vmcb_field(guest, VMCB_RIP) - (uint32_t)guest_nops;
}

void case_shadow(void)
{
    check_equal("without a shadow, before the first instruction", window(0), 0);
    check_equal("with one, after it", window(1), 1);
    check_equal("and it is gone", window(0), 0);
}

/* Gives the guest an IDT, and the GDT that its gates need. */
void set_gates(struct vmcb *guest, const uint64_t *gates, uint32_t size)
{
    struct {
        uint16_t limit;
        uint32_t base;
    } __attribute__((packed)) gdt;

    asm volatile("sgdt %0" : "=m"(gdt));
    set_vmcb_field(guest, VMCB_GDTR_LIMIT, gdt.limit);
    set_vmcb_field(guest, VMCB_GDTR_BASE, gdt.base);
    set_vmcb_field(guest, VMCB_IDTR_LIMIT, size - 1);
    set_vmcb_field(guest, VMCB_IDTR_BASE, (uint32_t)gates);
}

uint64_t gate(void (*handler)(void))
{
    uint32_t to = (uint32_t)handler;

    return ((uint64_t)((to & 0xffff0000) | 0x8e00) << 32) | (0x08 << 16) |
           (to & 0xffff);
}

/* A guest of which a #GP finds no gate, but #NP and #DF do. */
void case_combined(void)
{
    static uint64_t gates[32];
    struct vmcb *guest = new_guest(guest_nops, 0);
    uint32_t i;

    for (i = 0; i < 32; i++) {
        gates[i] = gate(i == 8 ? guest_double_fault : guest_nops);
    }
    gates[GP] = 0;
    set_gates(guest, gates, sizeof(gates));
    set_vmcb_field(guest, VMCB_INJECTION, INJECTED_GP);
    check_equal("the guest goes on", run_guest(guest), EXIT_VMMCALL);
    check_equal("at the handler of #DF", vmcb_field(guest, VMCB_RIP),
                (uint32_t)guest_double_fault);
}

/* A locked access that no boundary holds together stops all processors, in the
 * model as on a bus: the other one leaves its loop each time. */
static void stop_others(void)
{
    static uint8_t split[64] __attribute__((aligned(64)));

    for (;;) {
        asm volatile("lock incl %0" : "+m"(*(uint32_t *)&split[30]));
    }
}

void case_injected(void)
{
    static uint64_t gates[VECTOR + 1];
    struct vmcb *guest = new_guest(guest_nops, 0);

    gates[VECTOR] = gate(guest_interrupted);
    set_gates(guest, gates, sizeof(gates));
    set_vmcb_field(guest, VMCB_EFLAGS, 0x202);
    set_vmcb_field(guest, VMCB_INJECTION, INJECTED_INTERRUPT);
    park_ap();
    check("the second processor starts", start_ap(stop_others));
    check_equal("the guest's handler ends", run_guest(guest), EXIT_VMMCALL);
    check_equal("it ran once", interrupted, 1);
}

static void load_fpu(void)
{
    static uint32_t environment[7];

    asm volatile("fninit; fnstenv %0" : "=m"(environment));
    for (;;) {
        asm volatile("fldenv %0" : : "m"(environment));
    }
}

static void run_with_init_pending(uint32_t vmcb)
{
    do_clgi(0);
    send_init(own_apic_id());
    run_guest((struct vmcb *)vmcb);
}

/*
 * INIT, which is an exception of the host here, waits while GIF is 0; VMRUN sets
 * GIF, so that INIT ends the guest; #VMEXIT clears it; STGI lets INIT in.
 */
void case_fpu(void)
{
    struct vmcb *guest;
    uint32_t i, vector, held = 0, exits = 0, let_in = 0;

    write_msr(MSR_VM_CR, VM_CR_R_INIT);
    park_ap();
    check("the second processor starts", start_ap(load_fpu));
    for (i = 0; i < FPU_ROUNDS; i++) {
        guest = new_guest(guest_nops, 0);
        intercept(guest, INTERCEPT_3, INTERCEPT_INIT);
        vector = try_call(run_with_init_pending, (uint32_t)guest);
        held += vector == NOTHING;
        exits += vmcb_field(guest, VMCB_EXITCODE) == EXIT_INIT;
        let_in += try_call(do_stgi, 0) == SX;
    }
    check_equal("INIT is held while GIF is 0", held, FPU_ROUNDS);
    check_equal("it ends each guest", exits, FPU_ROUNDS);
    check_equal("and comes in with GIF", let_in, FPU_ROUNDS);
}
