/*
 * Conformance image: what its parts share
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef IMAGE_H
#define IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- start.S ---- */
extern uint8_t slb[], sl_entry[], ap_start[], ap_end[], vectors[];
extern uint32_t sl_saved[32];
extern uint64_t idt[32], gdt_task;
extern uint32_t last_vector, last_error, last_eip, task, task_stack;

int try_call(void (*function)(uint32_t), uint32_t argument);
void enter_user(uint32_t eip);
void do_skinit(uint32_t slb_address);
void do_lock_skinit(uint32_t unused);
void user_skinit(void);
void skinit_with_garbage(void);
void skinit_from_long_mode(void);
int probe_real_mode(void);
int a20_masks(void);
void do_vmrun(uint32_t vmcb);
void do_stgi(uint32_t unused);
void do_clgi(uint32_t unused);
void do_halt(uint32_t unused);
void guest_skinit(void);
void guest_idle(void);
void guest_halt(void);

/* ---- support.c ---- */
void print(const char *format, ...); /* %s %x %d */
void check(const char *name, bool good);
void check_equal(const char *name, uint32_t got, uint32_t want);
void finish(void) __attribute__((noreturn));
const char *option(const char *name);
uint32_t option_number(const char *name, uint32_t otherwise);
bool equal_text(const char *a, const char *b);
void wait_microseconds(uint32_t count);
void fill(void *at, uint8_t byte, uint32_t length);

uint8_t in8(uint16_t port);
uint32_t in32(uint16_t port);
uint16_t in16(uint16_t port);
void out8(uint16_t port, uint8_t value);
void out16(uint16_t port, uint16_t value);
void out32(uint16_t port, uint32_t value);
uint32_t read_msr(uint32_t number);
void write_msr(uint32_t number, uint32_t low);
static inline volatile uint32_t *at32(uint32_t address)
{
    return (volatile uint32_t *)address;
}
static inline volatile uint8_t *at8(uint32_t address)
{
    return (volatile uint8_t *)address;
}

#define PAGE __attribute__((aligned(4096)))

#define MSR_EFER 0xc0000080
#define MSR_VM_CR 0xc0010114
#define MSR_HSAVE 0xc0010117
#define MSR_SYSCFG 0xc0010010
#define MSR_IORR_BASE 0xc0010016
#define MSR_TOP_MEM 0xc001001a
#define MSR_TOM2 0xc001001d
#define MSR_MMIO_CONFIG 0xc0010058
#define MSR_SMM_ADDR 0xc0010112
#define MSR_SMM_MASK 0xc0010113
#define MTRR_FIXED_64K 0x250
#define MTRR_FIXED_A0000 0x259
#define ROUTES 0x18181818
#define SYSCFG_ROUTES (1u << 18)
#define SYSCFG_SHOW (1u << 19)
#define SYSCFG_TOP_MEM (1u << 20)
#define EFER_SVME 0x1000
#define VM_CR_R_INIT 2
#define VM_CR_DIS_A20M 4
#define VM_CR_LOCK 8
#define VM_CR_SVMDIS 16

/* ---- cpu.c ---- */
void set_up_exceptions(void);
uint32_t own_apic_id(void);
void send_init(uint32_t apic_id);
void send_startup(uint32_t apic_id);
extern void (*volatile ap_task)(void);
bool start_ap(void (*task)(void));
void park_ap(void);
struct vmcb;
struct vmcb *new_guest(void (*entry)(void), unsigned cpl);
uint32_t run_guest(struct vmcb *vmcb);
void intercept(struct vmcb *vmcb, uint32_t offset, uint32_t bit);
uint32_t vmcb_field(struct vmcb *vmcb, uint32_t offset);
void set_vmcb_field(struct vmcb *vmcb, uint32_t offset, uint32_t value);
#define INTERCEPT_EXCEPTIONS 0x08
#define INTERCEPT_3 0x0c
#define INTERCEPT_4 0x10
#define VMCB_EXITCODE 0x70
#define VMCB_EXITINFO1 0x78
#define VMCB_RIP 0x578

/* ---- tpm.c ---- */
uint8_t tpm_access(unsigned locality);
bool tpm_request(unsigned locality);
void tpm_relinquish(unsigned locality);
bool tpm_start_slow_command(unsigned locality);
bool tpm_extend_17(void);
void report_pcrs(void); /* PCR 17 in all banks, at locality 2 */

/* ---- dma.c ---- */
extern uint32_t dma_target;
bool dma_prepare(const char *device);
bool dma_write(void); /* a device writes to dma_target; did memory change? */
bool dma_read(void);  /* a device reads dma_target; did it see memory? */
uint32_t config_read(uint32_t bdf, uint32_t offset);
void config_write(uint32_t bdf, uint32_t offset, uint32_t value);
bool disk_start_read(void); /* of a sector of zeroes into dma_target */
bool disk_read_done(void);
#define SLDEV_BDF 0xc0
#define MEM_PROT_CR 0x384

/* ---- iommu.c ---- */
void map_dma(void);   /* program AMD-Vi: identity for every device */
uint32_t iommu_command_in(uint32_t buffer, uint32_t store_at);
uint32_t iommu_status(void);
void iommu_tables_at(uint32_t device_table, uint32_t page_table);
void iommu_log_at(uint32_t log);
void iommu_forbid_writes(uint32_t device_table);

/* ---- cases ---- */
void (*find_case(const char *name))(void);
extern void (*volatile after_launch)(void);
void launch(void (*then)(void)) __attribute__((noreturn));

#endif
