/*
 * Conformance image: its cases
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef CASES_H
#define CASES_H

#include "image.h"

/* exceptions that a call may end in */
#define DB 1
#define UD 6
#define DF 8
#define GP 13
#define PF 14
#define SX 30
#define NOTHING (-1u)

/* how a guest ends, and fields of its control block beyond image.h's */
#define EXIT_EXCEPTION 0x40
#define EXIT_VMMCALL 0x81
#define VMCB_ASID 0x58
#define VMCB_VIRTUAL_INTERRUPT 0x60
#define VMCB_INTERRUPT_STATE 0x68
#define VMCB_EXITINFO2 0x80
#define VMCB_EXIT_EVENT 0x88
#define VMCB_NESTED_CONTROL 0x90
#define VMCB_INJECTION 0xa8
#define VMCB_NESTED_CR3 0xb0
#define VMCB_GDTR_LIMIT 0x464
#define VMCB_GDTR_BASE 0x468
#define VMCB_IDTR_LIMIT 0x484
#define VMCB_IDTR_BASE 0x488
#define VMCB_CPL 0x4c8 /* in the highest byte */
#define VMCB_CR4 0x548
#define VMCB_CR3 0x550
#define VMCB_CR0 0x558
#define VMCB_DR7 0x560
#define VMCB_DR6 0x568
#define VMCB_EFLAGS 0x570
#define VMCB_RSP 0x5d8
#define VMCB_PAT 0x668
#define CR0_PG 0x80000000

/* cases_cpu.c */
void case_faults(void);
void case_absent(void);
void case_vm_cr(void);
void case_routing(void);
void case_init(void);
void case_halted(void);
void case_patched(void);
void case_state(void);
void case_long_mode(void);
void case_strict(void);

/* cases_svm.c */
void case_task(void);
void case_reserved(void);
void case_exits(void);
void case_refused(void);
void case_present(void);
void case_shadow(void);
void case_combined(void);
void case_injected(void);
void case_fpu(void);
void guest_nops(void);
void set_gates(struct vmcb *guest, const uint64_t *gates, uint32_t size);
uint64_t gate(void (*handler)(void));

/* cases_switch.c */
void case_breakpoints(void);
void case_delivery(void);
void case_overlong(void);
void case_privilege(void);
void case_nested(void);
void case_step(void);
void case_task_switch(void);
void write_dr7(uint32_t value);

#endif
