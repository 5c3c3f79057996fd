/*
 * Conformance image: exceptions, the other processor, a guest
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "image.h"

#define APIC 0xfee00000
#define APIC_ID (APIC + 0x20)
#define APIC_SPURIOUS (APIC + 0xf0)
#define APIC_COMMAND (APIC + 0x300)
#define APIC_TARGET (APIC + 0x310)
#define COMMAND_INIT 0x4500
#define COMMAND_STARTUP 0x4608 /* at 8000h */
#define AP 1

void (*volatile ap_task)(void);
static volatile uint32_t ap_arrived;

void set_up_exceptions(void)
{
    uint32_t i, base = (uint32_t)&task;

    for (i = 0; i < 32; i++) {
        uint32_t to = (uint32_t)vectors + 16 * i;

        idt[i] = ((uint64_t)((to & 0xffff0000) | 0x8e00) << 32) |
                 (0x08 << 16) | (to & 0xffff);
    }
    gdt_task = ((uint64_t)((base & 0xff000000) | 0x8900 | (base >> 16 & 0xff))
                << 32) | (base << 16) | 103;
    asm volatile("ltr %w0" : : "r"(0x30));
    out8(0x21, 0xff); /* nobody here answers legacy interrupts */
    out8(0xa1, 0xff);
    *at32(APIC_SPURIOUS) = 0x1ff;
}

uint32_t own_apic_id(void)
{
    return *at32(APIC_ID) >> 24;
}

static void send(uint32_t apic_id, uint32_t command)
{
    *at32(APIC_TARGET) = apic_id << 24;
    *at32(APIC_COMMAND) = command;
}

void send_init(uint32_t apic_id)
{
    send(apic_id, COMMAND_INIT);
}

void send_startup(uint32_t apic_id)
{
    send(apic_id, COMMAND_STARTUP);
}

void ap_main(void);
void ap_main(void)
{
    ap_arrived = 1;
    ap_task();
    ap_arrived = 2;
}

void park_ap(void)
{
    send_init(AP);
    wait_microseconds(2000);
}

/* Start-up request to the parked processor; it runs @task, then halts. */
bool start_ap(void (*task_)(void))
{
    uint32_t i;

    ap_task = task_;
    ap_arrived = 0;
    for (i = 0; i < (uint32_t)(ap_end - ap_start); i++) {
        *at8(0x8000 + i) = ap_start[i];
    }
    send_startup(AP);
    for (i = 0; i < 1000 && !ap_arrived; i++) {
        wait_microseconds(1000);
    }
    return ap_arrived;
}

/* ---- a guest: flat 32-bit code without paging ---- */

struct vmcb {
    uint32_t word[1024];
};

static struct vmcb guest __attribute__((aligned(4096)));
static uint8_t host_save[4096] __attribute__((aligned(4096)));
static uint8_t guest_stack[4096] __attribute__((aligned(4096)));

static void put_segment(uint32_t offset, uint32_t selector, uint32_t attributes)
{
    guest.word[offset / 4] = selector | attributes << 16;
    guest.word[offset / 4 + 1] = 0xffffffff;
}

struct vmcb *new_guest(void (*entry)(void), unsigned cpl)
{
    uint32_t i, user = cpl ? 0x60 : 0;

    fill(&guest, 0, sizeof(guest));
    write_msr(MSR_EFER, read_msr(MSR_EFER) | EFER_SVME);
    write_msr(MSR_HSAVE, (uint32_t)host_save);
    put_segment(0x400, cpl ? 0x2b : 0x10, 0xc93 | user);
    put_segment(0x410, cpl ? 0x23 : 0x08, 0xc9b | user);
    for (i = 0x420; i <= 0x450; i += 0x10) {
        put_segment(i, cpl ? 0x2b : 0x10, 0xc93 | user);
    }
    guest.word[0x4c8 / 4] = cpl << 24;
    guest.word[0x4d0 / 4] = EFER_SVME;
    guest.word[0x558 / 4] = 0x11;
    guest.word[0x560 / 4] = 0x400;
    guest.word[0x568 / 4] = 0xffff0ff0;
    guest.word[0x570 / 4] = 2;
    guest.word[VMCB_RIP / 4] = (uint32_t)entry;
    guest.word[0x5d8 / 4] = (uint32_t)guest_stack + sizeof(guest_stack);
    guest.word[0x58 / 4] = 1; /* ASID */
    intercept(&guest, INTERCEPT_3, 31); /* shutdown */
    intercept(&guest, INTERCEPT_4, 0);  /* VMRUN */
    intercept(&guest, INTERCEPT_4, 1);  /* VMMCALL */
    return &guest;
}

void intercept(struct vmcb *vmcb, uint32_t offset, uint32_t bit)
{
    vmcb->word[offset / 4] |= 1u << bit;
}

uint32_t vmcb_field(struct vmcb *vmcb, uint32_t offset)
{
    return vmcb->word[offset / 4];
}

void set_vmcb_field(struct vmcb *vmcb, uint32_t offset, uint32_t value)
{
    vmcb->word[offset / 4] = value;
}

/* Returns the exit code; leaves GIF clear, as #VMEXIT does. */
uint32_t run_guest(struct vmcb *vmcb)
{
    do_vmrun((uint32_t)vmcb);
    return vmcb_field(vmcb, VMCB_EXITCODE);
}
