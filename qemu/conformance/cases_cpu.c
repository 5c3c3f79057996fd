/*
 * Conformance cases of the instruction and its processor: faults, intercept,
 * VM_CR, INIT, entry state
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "cases.h"

static void call_user(uint32_t eip)
{
    enter_user(eip);
}

void case_faults(void)
{
    struct vmcb *guest;

    check_equal("LOCK SKINIT gives #UD", try_call(do_lock_skinit, 0), UD);
    check_equal("SKINIT in real mode gives #UD", probe_real_mode(), UD);
    check_equal("SKINIT at CPL 3 gives #GP",
                try_call(call_user, (uint32_t)user_skinit), GP);
    check_equal("with error code 0", last_error, 0);

    guest = new_guest(guest_skinit, 0);
    intercept(guest, INTERCEPT_4, 6);
    check_equal("an intercepted SKINIT exits with 86h", run_guest(guest), 0x86);
    check_equal("at the instruction", vmcb_field(guest, VMCB_RIP),
                (uint32_t)guest_skinit + 5);

    guest = new_guest(guest_skinit, 3);
    intercept(guest, INTERCEPT_4, 6);
    intercept(guest, INTERCEPT_EXCEPTIONS, GP);
    check_equal("the privilege check comes before the intercept",
                run_guest(guest), 0x40 + GP);

    guest = new_guest(guest_skinit, 0);
    intercept(guest, INTERCEPT_EXCEPTIONS, UD);
    check_equal("without intercept a guest gets #UD", run_guest(guest),
                0x40 + UD);
}

/* option svm=1: the processor has SVM, but not SKINIT */
void case_absent(void)
{
    check_equal("SKINIT without its CPUID bit gives #UD",
                try_call(do_skinit, (uint32_t)slb), UD);
    if (option_number("svm", 0)) {
        write_msr(MSR_EFER, EFER_SVME);
        check_equal("with EFER.SVME too", try_call(do_skinit, (uint32_t)slb),
                    UD);
    }
}

static void write_vm_cr(uint32_t value)
{
    write_msr(MSR_VM_CR, value);
}

static void write_efer(uint32_t value)
{
    write_msr(MSR_EFER, value);
}

void case_vm_cr(void)
{
    check_equal("VM_CR is 0 after reset", read_msr(MSR_VM_CR), 0);
    check_equal("STGI needs SVME or the SKINIT bit only", try_call(do_stgi, 0),
                NOTHING);
    check_equal("a reserved bit of VM_CR gives #GP",
                try_call(write_vm_cr, 1 << 5), GP);
    write_efer(EFER_SVME);
    check_equal("SVMDIS while SVME is set gives #GP",
                try_call(write_vm_cr, VM_CR_SVMDIS), GP);
    write_efer(0);

    check_equal("the A20 gate hides bit 20", a20_masks(), 1);
    write_vm_cr(VM_CR_DIS_A20M);
    check_equal("unless DIS_A20M is set", a20_masks(), 0);
    write_vm_cr(0);

    write_vm_cr(VM_CR_LOCK | VM_CR_SVMDIS);
    check_equal("SVMDIS makes SVME must-be-zero",
                try_call(write_efer, EFER_SVME), GP);
    write_vm_cr(VM_CR_R_INIT);
    check_equal("LOCK keeps LOCK and SVMDIS, and nothing else",
                read_msr(MSR_VM_CR), VM_CR_LOCK | VM_CR_SVMDIS | VM_CR_R_INIT);
    check_equal("under LOCK a reserved bit still gives #GP",
                try_call(write_vm_cr, 1 << 6), GP);
}

/* what try_call writes to */
static uint32_t routing_register;

static void write_routing(uint32_t value)
{
    write_msr(routing_register, value);
}

static uint32_t outcome_of(uint32_t number, uint32_t value)
{
    routing_register = number;
    return try_call(write_routing, value);
}

static void keeps(uint32_t number, uint32_t value, uint32_t reserved)
{
    uint32_t before = read_msr(number);

    check_equal("a register that routes takes a value",
                outcome_of(number, value), NOTHING);
    check_equal("and keeps it", read_msr(number), value);
    check_equal("a reserved bit of it gives #GP",
                outcome_of(number, value | reserved), GP);
    check_equal("and changes nothing", read_msr(number), value);
    write_msr(number, before);
}

/* option top: where RAM ends */
void case_routing(void)
{
    const uint32_t shown = SYSCFG_ROUTES | SYSCFG_SHOW | SYSCFG_TOP_MEM;

    check_equal("SYSCFG is as firmware leaves it", read_msr(MSR_SYSCFG),
                SYSCFG_ROUTES | SYSCFG_TOP_MEM);
    check_equal("TOP_MEM is where RAM ends", read_msr(MSR_TOP_MEM),
                option_number("top", 0));
    keeps(MSR_SYSCFG, shown, 1);
    keeps(MSR_TOP_MEM, 0x8000000, 0x400000);
    keeps(MSR_TOM2, 0x40800000, 1);
    keeps(MSR_IORR_BASE, 0x100018, 4);
    keeps(MSR_IORR_BASE + 1, 0xfff00800, 0x400);
    keeps(MSR_IORR_BASE + 2, 0x200010, 0x20);
    keeps(MSR_IORR_BASE + 3, 0xffe00000, 1);
    keeps(MSR_MMIO_CONFIG, 0xe0000021, 2);
    keeps(MSR_SMM_ADDR, 0xe0000, 0x10000);
    keeps(MSR_SMM_MASK, 0xfffe0003, 0x80);

    check_equal("fixed ranges hide their routes",
                read_msr(MTRR_FIXED_64K) & ROUTES, 0);
    check_equal("and take none", outcome_of(MTRR_FIXED_64K, ROUTES), GP);
    write_msr(MTRR_FIXED_64K, 0x06060606);
    write_msr(MSR_SYSCFG, shown);
    check_equal("unless SYSCFG shows them, with what was written beside them",
                read_msr(MTRR_FIXED_64K), 0x06060606 | ROUTES);
    check_equal("the display's hole leads nowhere",
                read_msr(MTRR_FIXED_A0000) & ROUTES, 0);
    check_equal("a reserved bit gives #GP", outcome_of(MTRR_FIXED_64K, 0x20),
                GP);
    write_msr(MTRR_FIXED_64K, 0x06060606);
    check_equal("shown, they are taken", read_msr(MTRR_FIXED_64K), 0x06060606);
}

static void init_self(uint32_t microseconds)
{
    send_init(own_apic_id());
    wait_microseconds(microseconds);
}

static void wait_call(uint32_t microseconds)
{
    wait_microseconds(microseconds);
}

static void init_held(void)
{
    write_efer(EFER_SVME);
    do_clgi(0);
    init_self(3000);
    check("INIT is held while GIF is 0", true);
    check_equal("STGI lets it in", try_call(do_stgi, 0), SX);
    check_equal("with error code 1", last_error, 1);
    check_equal("once", try_call(wait_call, 3000), NOTHING);
}

static void init_in_guest(void)
{
    struct vmcb *guest = new_guest(guest_idle, 0);

    intercept(guest, INTERCEPT_3, 3);
    do_clgi(0);
    send_init(own_apic_id());
    check_equal("a guest's intercept of INIT comes first", run_guest(guest),
                0x63);
    check_equal("and leaves it pending", try_call(do_stgi, 0), SX);

    guest = new_guest(guest_idle, 0);
    intercept(guest, INTERCEPT_EXCEPTIONS, SX);
    do_clgi(0);
    send_init(own_apic_id());
    check_equal("a guest's intercept of #SX takes a redirected INIT",
                run_guest(guest), 0x40 + SX);
    check_equal("with its error code", vmcb_field(guest, VMCB_EXITINFO1), 1);
    check_equal("and INIT is gone", try_call(do_stgi, 0), NOTHING);
}

void case_init(void)
{
    uint64_t gate = idt[SX];

    write_vm_cr(VM_CR_R_INIT);
    check_equal("R_INIT turns INIT into #SX", try_call(init_self, 3000), SX);
    check_equal("with error code 1", last_error, 1);
    init_held();
    init_in_guest();
    idt[SX] = gate & ~(1ull << 47);
    check_equal("#SX is contributory to #DF", try_call(init_self, 3000), DF);
}

static volatile bool bsp_ready;

static void init_the_bsp(void)
{
    while (!bsp_ready) {
    }
    wait_microseconds(30000);
    send_init(0);
}

static void get_ready_and_halt(uint32_t unused)
{
    bsp_ready = true;
    do_halt(unused);
}

void case_halted(void)
{
    struct vmcb *guest;

    write_vm_cr(VM_CR_R_INIT);
    park_ap();
    check("the second processor starts", start_ap(init_the_bsp));
    check_equal("a redirected INIT ends HLT", try_call(get_ready_and_halt, 0),
                SX);
    asm volatile("cli");

    park_ap();
    bsp_ready = false;
    guest = new_guest(guest_halt, 0);
    intercept(guest, INTERCEPT_3, 3);
    check("the second processor starts again", start_ap(init_the_bsp));
    do_clgi(0); /* until VMRUN */
    bsp_ready = true;
    check_equal("an intercepted INIT ends a guest's HLT", run_guest(guest),
                0x63);
}

/* ---- code that another processor changes ---- */

static uint32_t cpuid_signature(void)
{
    uint32_t a = 1, b, c = 0, d;

    asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return a;
}

/* MOV EAX, number; RET, on a page of its own */
static uint8_t patched[4096] __attribute__((aligned(4096)));
static volatile uint32_t patch_want, patch_seen, patch_stale;
#define PATCHES 20000

static void set_patch(uint32_t number)
{
    *(volatile uint32_t *)&patched[4] = number;
}

/* Runs the code all the while; once told, it must be what it was told of. */
static void run_patched(void)
{
    uint32_t (*code)(void) = (uint32_t (*)(void))&patched[3];
    uint32_t want;

    while (patch_seen < PATCHES) {
        want = patch_want;
        cpuid_signature(); /* serialises */
        if (code() == want) {
            patch_seen = want;
        } else if (want != patch_seen) {
            patch_stale++;
            patch_seen = want;
        }
    }
}

void case_patched(void)
{
    volatile uint32_t i, spin;

    patched[3] = 0xb8;
    patched[8] = 0xc3;
    park_ap();
    check("the second processor starts", start_ap(run_patched));
    for (i = 1; i <= PATCHES; i++) {
        set_patch(~i); /* makes the other read the code, while ... */
        for (spin = 0; spin < i % 251; spin++) {
        }
        set_patch(i); /* ... it changes again */
        patch_want = i;
        while (patch_seen != i) {
        }
    }
    check_equal("no old code is executed", patch_stale, 0);
}

/* ---- entry state ---- */

static uint32_t saved(unsigned index)
{
    return ((volatile uint32_t *)sl_saved)[index];
}

static void check_registers(void)
{
    static const char *const names[] = {
        "EAX", "ECX", "EDX", "EBX", "ESP", "EBP", "ESI", "EDI", "EFLAGS",
    };
    uint32_t want[9] = { [0] = (uint32_t)slb, [2] = cpuid_signature(),
                         [4] = (uint32_t)slb + 0x10000, [8] = 2 };
    unsigned i;

    for (i = 0; i < 9; i++) {
        check_equal(names[i], saved(i), want[i]);
    }
}

static void check_state(uint32_t cr0)
{
    check_registers();
    check_equal("CR0", saved(9), cr0);
    check_equal("CR2", saved(10), 0);
    check_equal("CR3", saved(11), 0);
    check_equal("CR4", saved(12), 0);
    check_equal("DR6", saved(13), 0xffff0ff0);
    check_equal("DR7", saved(14), 0x400);
    check_equal("DR0", saved(15), 0);
    check_equal("EFER", saved(16), 0);
    check_equal("VM_CR", saved(17), 7);
    check_equal("CS", saved(18), 8);
    check_equal("SS", saved(19), 0x10);
    check_equal("DS", saved(20), 0);
    check_equal("LDTR", saved(21), 0);
    check_equal("TR", saved(22), 0);
    check_equal("GDTR limit", saved(23) & 0xffff, 0xffff);
    check_equal("GDTR base", saved(23) >> 16 | saved(24) << 16, 0);
    check_equal("IDTR limit", saved(25) & 0xffff, 0xffff);
    check_equal("IDTR base", saved(25) >> 16 | saved(26) << 16, 0);
}

static void check_gif(void)
{
    init_self(3000);
    check("GIF is 0", true); /* else we would not be here */
    check_equal("INIT waits for STGI and is redirected", try_call(do_stgi, 0),
                SX);
}

static void garbage_is_gone(void)
{
    check_state(0x40000011);
    write_dr7(0xf0400);
    write_dr7(0x400);
    check("the caller's breakpoints are gone", true);
    check_gif();
}

void case_state(void)
{
    uint32_t cr0, cr4;

    asm volatile("mov %%cr0, %0" : "=r"(cr0));
    asm volatile("mov %0, %%cr0" : : "r"(cr0 | 0x40010020)); /* CD, WP, NE */
    asm volatile("mov %%cr4, %0" : "=r"(cr4));
    asm volatile("mov %0, %%cr4" : : "r"(cr4 | 0x200));
    write_efer(EFER_SVME | 1);
    after_launch = garbage_is_gone;
    skinit_with_garbage();
}

static void long_mode_is_gone(void)
{
    check_state(0x11);
}

void case_long_mode(void)
{
    after_launch = long_mode_is_gone;
    skinit_from_long_mode();
}

/* option strict=1: the machine makes data segments useless */
static void segments(void)
{
    uint32_t header = *at32((uint32_t)slb);

    check_equal("DS before it is loaded reads the block's header",
                saved(27) == header, !option_number("strict", 0));
}

void case_strict(void)
{
    launch(segments);
}
