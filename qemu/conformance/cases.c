/*
 * Conformance cases of a launch: measurement, other processors, DMA
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "cases.h"

#define DATA 0xc000 /* in the block, beyond everything that is code */

void (*volatile after_launch)(void);

static uint32_t block(uint32_t offset)
{
    return (uint32_t)slb + offset;
}

void launch(void (*then)(void))
{
    uint32_t length = option_number("length", 0);

    if (length) {
        *(volatile uint16_t *)(slb + 2) = length;
    }
    after_launch = then;
    do_skinit((uint32_t)slb);
    check("SKINIT does not return", false);
    finish();
}

/* The loader block's way into C. */
void sl_main(void) __attribute__((noreturn));
void sl_main(void)
{
    after_launch();
    finish();
}

/* ---- measurement ---- */

static void measured(void)
{
    check_equal("locality 0 was seized", tpm_access(0), 0x90);
    check_equal("locality 2 is free", tpm_access(2), 0x80);
    report_pcrs();
}

static void case_measure(void)
{
    check("software has locality 0", tpm_request(0));
    launch(measured);
}

static void runs(void)
{
    check("the loader runs", true);
}

static void case_runs(void)
{
    launch(runs);
}

static void case_in_flight(void)
{
    check("the TPM is at work", tpm_start_slow_command(0));
    launch(measured);
}

/* The harness kills the TPM between the two lines. */
static void case_tpm_dies(void)
{
    print("kill the TPM\n");
    while (!(in8(0x3fd) & 1)) {
    }
    launch(runs);
}

static void extend_and_relaunch(void)
{
    check("the loader extends PCR 17", tpm_extend_17());
    launch(report_pcrs);
}

static void case_relaunch(void)
{
    launch(extend_and_relaunch);
}

/* ---- other processors ---- */

#define NOT_YET 0xff
static volatile uint32_t ap_vm_cr, ap_counter, ap_vector = NOT_YET;
static volatile bool ap_holds, ap_may_open;

static void spin(void)
{
    for (;;) {
        ap_counter++;
    }
}

static void started_after_launch(void)
{
    ap_vm_cr = read_msr(MSR_VM_CR);
    while (!ap_may_open) {
        ap_counter++;
    }
    ap_vector = try_call(do_stgi, 0);
}

/* Does the other processor still count? */
static bool ap_is_alive(void)
{
    uint32_t before = ap_counter, i;

    for (i = 0; i < 1000 && ap_counter == before; i++) {
        wait_microseconds(1000);
    }
    return ap_counter != before;
}

static void start_the_other(void)
{
    uint32_t i;

    check("the parked processor starts",
          start_ap(started_after_launch) && ap_is_alive());
    send_init(1);
    wait_microseconds(5000);
    check("INIT to it is held", ap_is_alive());
    ap_may_open = true;
    for (i = 0; i < 1000 && ap_vector == NOT_YET; i++) {
        wait_microseconds(1000);
    }
    check_equal("its VM_CR", ap_vm_cr, 7);
    check_equal("its STGI lets the INIT in as #SX", ap_vector, 30);
    report_pcrs();
}

static void case_ap(void)
{
    park_ap();
    launch(start_the_other);
}

static void relaunch_beside_spinning(void)
{
    report_pcrs();
    check("the parked processor starts", start_ap(spin));
    launch(report_pcrs);
}

static void case_ap_relaunch(void)
{
    park_ap();
    launch(relaunch_beside_spinning);
}

static void case_ap_unparked(void)
{
    launch(report_pcrs);
}

static void hold_init(void)
{
    write_msr(MSR_EFER, EFER_SVME);
    do_clgi(0);
    ap_holds = true;
    spin();
}

static void divert_init(void)
{
    write_msr(MSR_VM_CR, VM_CR_R_INIT);
    hold_init();
}

/* option how=gif or r-init: why the other processor's INIT leads nowhere */
static void case_ap_init_held(void)
{
    bool gif = equal_text(option("how"), "gif");

    park_ap();
    check("the other processor starts", start_ap(gif ? hold_init : divert_init));
    while (!ap_holds) {
    }
    send_init(1);
    launch(report_pcrs);
}

static void on_the_ap(void)
{
    check_equal("the loader runs on the second processor", own_apic_id(), 1);
    report_pcrs();
}

static void launch_here(void)
{
    launch(on_the_ap);
}

static void case_ap_launches(void)
{
    park_ap();
    start_ap(launch_here); /* from here on the serial line is its own */
    for (;;) {
        asm volatile("pause");
    }
}

/* ---- devices: option dev=; map=1 programs AMD-Vi; sldev=0: no register ---- */

static uint32_t protection(void)
{
    return config_read(SLDEV_BDF, MEM_PROT_CR);
}

static void release(void)
{
    config_write(SLDEV_BDF, MEM_PROT_CR, 0);
}

static void refused_until_released(void)
{
    check("after it the device cannot write", !dma_write());
    check("nor read", !dma_read());
    if (!option_number("sldev", 1)) {
        release();
        check("without the register there is no release", !dma_write());
        return;
    }
    check_equal("D18F0x384 says so", protection(), 1);
    config_write(SLDEV_BDF, MEM_PROT_CR, 1);
    check("writing 1 changes nothing", !dma_write());
    release();
    check_equal("writing 0 ends it", protection(), 0);
    check("and the device can write again", dma_write());
    config_write(SLDEV_BDF, MEM_PROT_CR, 1);
    check_equal("software cannot set it", protection(), 0);
}

static void case_guard(void)
{
    if (!dma_prepare(option("dev"))) {
        check("the machine has the device", false);
        return;
    }
    if (option_number("map", 0)) {
        map_dma();
    }
    dma_target = block(DATA);
    check("before the launch the device can write", dma_write());
    check("and read", dma_read());
    launch(refused_until_released);
}

/* The disk takes half a second; the emulator holds a pointer to its target. */
static void disk_is_done_or_shut_out(void)
{
    bool done = disk_read_done();
    uint8_t at_entry = *at8(dma_target);

    check("a read in flight is over when the loader starts",
          done && at_entry == 0);
    fill((void *)dma_target, 0xee, 512);
    wait_microseconds(100000);
    check("and writes nothing later", *at8(dma_target) == 0xee);
}

static void case_disk(void)
{
    dma_target = block(DATA);
    fill((void *)dma_target, 0xee, 512);
    check("a read is under way", disk_start_read() && !disk_read_done());
    launch(disk_is_done_or_shut_out);
}

/* ---- AMD-Vi's own accesses ---- */

static uint32_t commands[1024] PAGE, tables[2048] PAGE, pages[1024] PAGE;
static volatile uint32_t log[1024] PAGE;
static uint64_t store;
static uint32_t scratch[64];

static const uint32_t in_commands = 0xa000, in_tables = 0xb000,
                      in_pages = 0xd000, in_log = 0xe000, in_store = 0xf000;

static bool completes(uint32_t buffer, uint32_t to)
{
    return iommu_command_in(buffer, to);
}

static bool dma_works_with(uint32_t table, uint32_t page_table)
{
    dma_target = (uint32_t)scratch;
    iommu_tables_at(table, page_table);
    completes((uint32_t)commands, (uint32_t)&store); /* forget what it knew */
    return dma_write();
}

static bool logs_at(uint32_t at)
{
    fill((void *)at, 0, 64);
    iommu_log_at(at);
    dma_works_with((uint32_t)tables, (uint32_t)pages);
    iommu_forbid_writes((uint32_t)tables);
    completes((uint32_t)commands, (uint32_t)&store);
    dma_write();
    return *at32(at + 4) >> 28 == 2; /* IO_PAGE_FAULT */
}

static void own_accesses_refused(void)
{
    uint32_t ram_commands = (uint32_t)commands, ram_store = (uint32_t)&store;
    uint32_t ram_tables = (uint32_t)tables, ram_pages = (uint32_t)pages;

    check("then: commands cannot be fetched",
          !completes(block(in_commands), ram_store));
    check_equal("and fetching has stopped", iommu_status() & 0x10, 0);
    check("completion cannot be stored",
          !completes(ram_commands, block(in_store)));
    check("elsewhere both work", completes(ram_commands, ram_store));
    check("the device table cannot be fetched",
          !dma_works_with(block(in_tables), ram_pages));
    check("page tables cannot be fetched",
          !dma_works_with(ram_tables, block(in_pages)));
    check("elsewhere translation works", dma_works_with(ram_tables, ram_pages));
    dma_target = block(DATA);
    check("but its target is refused", !dma_write());
    check("events cannot be stored", !logs_at(block(in_log)));
    check("elsewhere they can", logs_at((uint32_t)log));
    release();
    check("after the release all of it works",
          completes(block(in_commands), block(in_store)) &&
          dma_works_with(block(in_tables), block(in_pages)) &&
          logs_at(block(in_log)));
}

static void case_iommu(void)
{
    if (!dma_prepare("dolmen-dma")) {
        check("the machine has the device", false);
        return;
    }
    check("first: commands and completion in the block",
          completes(block(in_commands), block(in_store)));
    check("tables in the block",
          dma_works_with(block(in_tables), block(in_pages)));
    check("the log in the block", logs_at(block(in_log)));
    launch(own_accesses_refused);
}

/* ---- the harness aims the hostile device; we only launch and release ---- */

static void release_later(void)
{
    wait_microseconds(20000);
    release();
    wait_microseconds(20000);
}

static void case_attacked(void)
{
    wait_microseconds(20000);
    launch(release_later);
}

static const struct {
    const char *name;
    void (*run)(void);
} cases[] = {
    { "task", case_task },
    { "reserved", case_reserved },
    { "exits", case_exits },
    { "refused", case_refused },
    { "present", case_present },
    { "shadow", case_shadow },
    { "combined", case_combined },
    { "injected", case_injected },
    { "fpu", case_fpu },
    { "breakpoints", case_breakpoints },
    { "delivery", case_delivery },
    { "overlong", case_overlong },
    { "privilege", case_privilege },
    { "nested", case_nested },
    { "step", case_step },
    { "task-switch", case_task_switch },
    { "faults", case_faults },
    { "absent", case_absent },
    { "vm-cr", case_vm_cr },
    { "routing", case_routing },
    { "init", case_init },
    { "halted", case_halted },
    { "patched", case_patched },
    { "state", case_state },
    { "long-mode", case_long_mode },
    { "strict", case_strict },
    { "measure", case_measure },
    { "runs", case_runs },
    { "in-flight", case_in_flight },
    { "tpm-dies", case_tpm_dies },
    { "relaunch", case_relaunch },
    { "ap", case_ap },
    { "ap-relaunch", case_ap_relaunch },
    { "ap-unparked", case_ap_unparked },
    { "ap-init-held", case_ap_init_held },
    { "ap-launches", case_ap_launches },
    { "guard", case_guard },
    { "disk", case_disk },
    { "iommu", case_iommu },
    { "attacked", case_attacked },
};

void (*find_case(const char *name))(void)
{
    unsigned i;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        if (equal_text(name, cases[i].name)) {
            return cases[i].run;
        }
    }
    return NULL;
}
