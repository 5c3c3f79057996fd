/*
 * Conformance image: its cases
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef CASES_H
#define CASES_H

#include "image.h"

/* exceptions that a call may end in */
#define UD 6
#define DF 8
#define GP 13
#define SX 30
#define NOTHING (-1u)

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

#endif
