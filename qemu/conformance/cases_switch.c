/*
 * Conformance cases of what VMRUN and #VMEXIT switch: breakpoints, privilege,
 * the page attribute table; of single steps and task switches in a guest
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "cases.h"

#define EXIT_TASK_SWITCH 0x7d
#define EXIT_NPF 0x400
#define INTERCEPT_TASK_SWITCH 29
#define MSR_PAT 0x277
#define HOST_PAT 0x00070406
#define CR4_PSE (1 << 4)
#define DR7_NOTHING 0x400
/* the first breakpoint, for all tasks: 4 bytes written, an instruction */
#define DR7_WRITES 0xd0402
#define DR7_EXECUTES 0x402
/* enabled is none, but the first is of another kind */
#define DR7_OTHER_KIND 0xf0400
#define DR6_STEP 0x4000
#define EFLAGS_NESTED 0x4000
#define VECTOR 0x50
#define INJECTED_INTERRUPT (0x80000000 | VECTOR)
/* valid, an exception, with an error code */
#define EVENT_GP (0x80000b00 | GP)
/* beyond the guest's descriptors */
#define BAD_SELECTOR 0x70

void guest_stores(void);
void guest_watches(void);
void guest_invalid(void);
void guest_clears_ts(void);
void guest_pat(void);
void guest_reads_first(void);
void guest_reads_second(void);
void guest_jumps(void);
void guest_calls(void);
void guest_returns(void);
void guest_faults(void);
void step_vmrun(uint32_t vmcb);
void after_vmrun(void);
extern uint32_t watched, seen_pat;

asm(".text\n"
    "guest_stores:\n"
    "        movl $1, watched\n"
    "        vmmcall\n"
    "guest_watches:\n"
    "        movl $0xd0402, %eax\n"
    "        movl %eax, %dr7\n"
    "        vmmcall\n"
    "guest_invalid:\n"
    "        ud2\n"
    "guest_clears_ts:\n"
    "        clts\n"
    "        vmmcall\n"
    "guest_pat:\n"
    "        movl $0x277, %ecx\n"
    "        rdmsr\n"
    "        movl %eax, seen_pat\n"
    "        movl $0x01010101, %eax\n"
    "        wrmsr\n"
    "        vmmcall\n"
    "guest_reads_first:\n"
    "        movl 0x0f000000, %eax\n"
    "        vmmcall\n"
    "guest_reads_second:\n"
    "        movl 0x0f400000, %eax\n"
    "        vmmcall\n"
    "guest_jumps:\n"
    "        ljmp $0x20, $0\n"
    "guest_calls:\n"
    "        lcall $0x28, $0\n"
    "guest_returns:\n"
    "        iret\n"
    "guest_faults:\n"
    "        movw $0x70, %ax\n"
    "        movw %ax, %ds\n"
    /* POPF traps behind the instruction that follows it */
    "step_vmrun:\n"
    "        movl 4(%esp), %eax\n"
    "        pushfl\n"
    "        orl $0x100, (%esp)\n"
    "        popfl\n"
    "        vmrun\n"
    "after_vmrun:\n"
    "        nop\n"
    "        nop\n"
    "        ret\n"
    ".bss\n"
    ".align 4\n"
    "watched: .long 0\n"
    "seen_pat: .long 0\n"
    ".text\n");

void write_dr7(uint32_t value)
{
    asm volatile("mov %0, %%dr7" : : "r"(value));
}

static uint32_t read_dr7(void)
{
    uint32_t value;

    asm volatile("mov %%dr7, %0" : "=r"(value));
    return value;
}

static void write_dr0(uint32_t value)
{
    asm volatile("mov %0, %%dr0" : : "r"(value));
}

static uint32_t read_dr6(void)
{
    uint32_t value;

    asm volatile("mov %%dr6, %0" : "=r"(value));
    return value;
}

static void store(uint32_t value)
{
    *(volatile uint32_t *)&watched = value;
}

/* ---- breakpoints ---- */

void case_breakpoints(void)
{
    struct vmcb *guest = new_guest(guest_stores, 0);

    write_dr0((uint32_t)&watched);
    set_vmcb_field(guest, VMCB_DR7, DR7_WRITES);
    intercept(guest, INTERCEPT_EXCEPTIONS, DB);
    check_equal("VMRUN loads the guest's breakpoints", run_guest(guest),
                EXIT_EXCEPTION + DB);
    check_equal("which trap behind the instruction",
                vmcb_field(guest, VMCB_RIP), (uint32_t)guest_stores + 10);
    check_equal("and say which", vmcb_field(guest, VMCB_DR6) & 15, 1);

    write_dr7(DR7_WRITES);
    check_equal("a guest without them does not get the host's",
                run_guest(new_guest(guest_stores, 0)), EXIT_VMMCALL);
    check_equal("#VMEXIT leaves the host none", read_dr7(), DR7_NOTHING);

    guest = new_guest(guest_watches, 0);
    check_equal("a guest sets its own", run_guest(guest), EXIT_VMMCALL);
    check_equal("which #VMEXIT saves", vmcb_field(guest, VMCB_DR7), DR7_WRITES);
    check_equal("they are none of the host's", try_call(store, 2), NOTHING);
    write_dr7(DR7_OTHER_KIND);
    write_dr7(DR7_NOTHING);
    check("which uses the same register for others", true);
}

/* A guest that watches the flags in the frame of an event that it is sent. */
static struct vmcb *watching_guest(void (*entry)(void))
{
    static uint64_t gates[VECTOR + 1];
    struct vmcb *guest = new_guest(entry, 0);

    gates[UD] = gates[VECTOR] = gate(guest_nops);
    set_gates(guest, gates, sizeof(gates));
    write_dr0(vmcb_field(guest, VMCB_RSP) - 4);
    set_vmcb_field(guest, VMCB_DR7, DR7_WRITES);
    intercept(guest, INTERCEPT_EXCEPTIONS, DB);
    return guest;
}

static void check_delivery(struct vmcb *guest, void (*from)(void))
{
    uint32_t stack = vmcb_field(guest, VMCB_RSP);

    check_equal("the trap", run_guest(guest), EXIT_EXCEPTION + DB);
    check_equal("comes at the handler", vmcb_field(guest, VMCB_RIP),
                (uint32_t)guest_nops);
    check_equal("after the whole frame", vmcb_field(guest, VMCB_RSP),
                stack - 12);
    check_equal("of what was interrupted", *at32(stack - 12), (uint32_t)from);
    check_equal("and the event is over",
                vmcb_field(guest, VMCB_EXIT_EVENT) >> 31, 0);
}

void case_delivery(void)
{
    struct vmcb *guest = watching_guest(guest_invalid);

    check_delivery(guest, guest_invalid);
    guest = watching_guest(guest_stores);
    set_vmcb_field(guest, VMCB_EFLAGS, 0x202);
    set_vmcb_field(guest, VMCB_INJECTION, INJECTED_INTERRUPT);
    check_delivery(guest, guest_stores);
}

/*
 * An instruction of more than 15 bytes whose sixteenth lies on the next page,
 * after one across pages whose bytes have changed since.
 */
void case_overlong(void)
{
    static uint8_t code[3 * 4096] PAGE;
    uint8_t *across = code + 4093, *long_one = code + 2 * 4096 - 15;
    uint32_t i;

    across[0] = 0xb8; /* MOV EAX, imm32 */
    across[5] = 0xc3; /* RET */
    for (i = 0; i < 15; i++) {
        long_one[i] = 0x66;
    }
    long_one[15] = 0x90;
    check_equal("an instruction across pages",
                try_call((void (*)(uint32_t))across, 0), NOTHING);
    *(volatile uint8_t *)&code[4096] = 0x55;
    check_equal("one that is too long gives #GP",
                try_call((void (*)(uint32_t))long_one, 0), GP);
}

/* ---- privilege ---- */

static void set_cpl(struct vmcb *guest, uint32_t cpl)
{
    set_vmcb_field(guest, VMCB_CPL, cpl << 24);
}

void case_privilege(void)
{
    struct vmcb *guest = new_guest(guest_clears_ts, 0);

    set_cpl(guest, 3);
    intercept(guest, INTERCEPT_EXCEPTIONS, GP);
    check_equal("VMRUN takes CPL 3 from its field", run_guest(guest),
                EXIT_EXCEPTION + GP);
    check_equal("and #VMEXIT stores it", vmcb_field(guest, VMCB_CPL) >> 24, 3);

    guest = new_guest(guest_clears_ts, 3);
    set_cpl(guest, 0);
    intercept(guest, INTERCEPT_EXCEPTIONS, GP);
    check_equal("CPL 0, whatever SS.DPL is", run_guest(guest), EXIT_VMMCALL);
    check_equal("which is stored", vmcb_field(guest, VMCB_CPL) >> 24, 0);

    guest = new_guest(guest_clears_ts, 0);
    set_vmcb_field(guest, VMCB_CR0, 0x10);
    set_cpl(guest, 3);
    intercept(guest, INTERCEPT_EXCEPTIONS, GP);
    check_equal("in real mode it is 0", run_guest(guest), EXIT_VMMCALL);
    check_equal("and stored so", vmcb_field(guest, VMCB_CPL) >> 24, 0);
}

/* ---- nested paging ---- */

/* 4 GiB in pages of 4 MiB; the host's tables and the guest's nested ones */
static uint32_t directory[1024] PAGE;
#define PRESENT_USER_LARGE 0x85
#define WRITABLE 2
#define USER 4
#define READ_ONLY_AT 0x0f000000
#define SUPERVISOR_AT 0x0f400000

static void turn_paging_on(void)
{
    uint32_t i, value;

    for (i = 0; i < 1024; i++) {
        directory[i] = i << 22 | PRESENT_USER_LARGE | WRITABLE;
    }
    directory[READ_ONLY_AT >> 22] &= ~WRITABLE;
    directory[SUPERVISOR_AT >> 22] &= ~USER;
    asm volatile("mov %%cr4, %0; or %1, %0; mov %0, %%cr4"
                 : "=&r"(value) : "i"(CR4_PSE));
    asm volatile("mov %0, %%cr3" : : "r"(directory));
    asm volatile("mov %%cr0, %0; or %1, %0; mov %0, %%cr0"
                 : "=&r"(value) : "i"(CR0_PG));
}

static struct vmcb *nested_guest(void (*entry)(void), uint32_t pat)
{
    struct vmcb *guest = new_guest(entry, 0);

    set_vmcb_field(guest, VMCB_NESTED_CONTROL, 1);
    set_vmcb_field(guest, VMCB_NESTED_CR3, (uint32_t)directory);
    set_vmcb_field(guest, VMCB_PAT, pat);
    return guest;
}

static void check_fault(const char *name, struct vmcb *guest, uint32_t error,
                        uint32_t kind, uint32_t at)
{
    check_equal(name, run_guest(guest), EXIT_NPF);
    check_equal("its error code", vmcb_field(guest, VMCB_EXITINFO1), error);
    check_equal("its kind", vmcb_field(guest, VMCB_EXITINFO1 + 4), kind);
    check_equal("its address", vmcb_field(guest, VMCB_EXITINFO2), at);
}

void case_nested(void)
{
    struct vmcb *guest;

    check_equal("nested paging needs a host with paging",
                run_guest(nested_guest(guest_nops, 0)), -1u);
    turn_paging_on();
    write_msr(MSR_PAT, HOST_PAT);
    guest = nested_guest(guest_pat, 0x06060606);
    check_equal("a guest with a PAT", run_guest(guest), EXIT_VMMCALL);
    check_equal("has its own", seen_pat, 0x06060606);
    check_equal("changes it", vmcb_field(guest, VMCB_PAT), 0x01010101);
    check_equal("and not the host's", read_msr(MSR_PAT), HOST_PAT);
    check_equal("a memory type that does not exist is refused",
                run_guest(nested_guest(guest_nops, 0x0200)), -1u);
    check_equal("so is a reserved bit",
                run_guest(nested_guest(guest_nops, 0x10)), -1u);
    check_equal("the host's is as it was", read_msr(MSR_PAT), HOST_PAT);
    guest = nested_guest(guest_nops, 0);
    set_vmcb_field(guest, VMCB_NESTED_CR3 + 4, 0x100);
    check_equal("a reserved bit of nCR3 is refused", run_guest(guest), -1u);

    /* every nested access is one of a user: APM volume 2, 15.25.6 */
    check_fault("a page of the supervisor faults",
                nested_guest(guest_reads_second, 0), 5, 1, SUPERVISOR_AT);
    check_equal("a page that is read-only can be read",
                run_guest(nested_guest(guest_reads_first, 0)), EXIT_VMMCALL);
    guest = nested_guest(guest_nops, 0);
    set_vmcb_field(guest, VMCB_CR3, READ_ONLY_AT);
    set_vmcb_field(guest, VMCB_CR0, vmcb_field(guest, VMCB_CR0) | CR0_PG);
    check_fault("the guest's tables are written", guest, 7, 2,
                READ_ONLY_AT + 4 * ((uint32_t)guest_nops >> 22));
}

/* ---- a host that steps ---- */

void case_step(void)
{
    struct vmcb *guest = new_guest(guest_stores, 0);

    check_equal("VMRUN ends a step of the host",
                try_call(step_vmrun, (uint32_t)guest), DB);
    check_equal("behind itself", last_eip, (uint32_t)after_vmrun);
    check("which DR6 says", read_dr6() & DR6_STEP);
    check_equal("once the guest has exited", vmcb_field(guest, VMCB_EXITCODE),
                EXIT_VMMCALL);
    check_equal("which nothing stepped through", watched, 1);
}

/* ---- task switches ---- */

static uint64_t tasks[6];

static struct vmcb *task_guest(void (*entry)(void), uint32_t type)
{
    static uint32_t other[26];
    static uint64_t gates[GP + 1];
    struct vmcb *guest = new_guest(entry, 0);
    uint32_t base = (uint32_t)other;

    tasks[1] = 0x00cf9a000000ffff;
    tasks[2] = 0x00cf92000000ffff;
    /* 20h: the other task, 28h: a gate of it */
    tasks[4] = (uint64_t)(base >> 24 << 24 | type << 8 | (base >> 16 & 0xff))
               << 32 | base << 16 | 103;
    tasks[5] = (uint64_t)0x8500 << 32 | 0x20 << 16;
    gates[GP] = tasks[5];
    set_gates(guest, gates, sizeof(gates));
    set_vmcb_field(guest, VMCB_GDTR_LIMIT, sizeof(tasks) - 1);
    set_vmcb_field(guest, VMCB_GDTR_BASE, (uint32_t)tasks);
    intercept(guest, INTERCEPT_3, INTERCEPT_TASK_SWITCH);
    return guest;
}

static void check_switch(const char *name, struct vmcb *guest, uint32_t how,
                         uint32_t error)
{
    uint32_t from = vmcb_field(guest, VMCB_RIP);

    check_equal(name, run_guest(guest), EXIT_TASK_SWITCH);
    check_equal("to the other task", vmcb_field(guest, VMCB_EXITINFO1), 0x20);
    check_equal("in this way", vmcb_field(guest, VMCB_EXITINFO2 + 4), how);
    check_equal("with this error", vmcb_field(guest, VMCB_EXITINFO2), error);
    if (!error) {
        check_equal("at the instruction", vmcb_field(guest, VMCB_RIP), from);
    }
}

void case_task_switch(void)
{
    struct vmcb *guest;

    check_switch("a jump exits", task_guest(guest_jumps, 0x89), 1 << 6, 0);
    check_switch("a call exits", task_guest(guest_calls, 0x89), 0, 0);
    guest = task_guest(guest_returns, 0x8b);
    set_vmcb_field(guest, VMCB_EFLAGS, EFLAGS_NESTED | 2);
    task = 0x20; /* the back link of the host's task, which TR still is */
    check_switch("a return exits", guest, 1 << 4, 0);
    guest = task_guest(guest_faults, 0x89);
    check_switch("a fault exits", guest, 1 << 12, BAD_SELECTOR);
    check_equal("as the event that it is", vmcb_field(guest, VMCB_EXIT_EVENT),
                EVENT_GP);

    guest = task_guest(guest_jumps, 0x09);
    intercept(guest, INTERCEPT_EXCEPTIONS, 11);
    check_equal("a task that is not there faults first", run_guest(guest),
                EXIT_EXCEPTION + 11);
}
