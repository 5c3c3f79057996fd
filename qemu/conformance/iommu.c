/*
 * Conformance image: AMD-Vi, programmed directly
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "image.h"

#define IOMMU 0xfed80000
#define IOMMU_DEVICE_TABLE 0x00
#define IOMMU_COMMANDS 0x08
#define IOMMU_LOG 0x10
#define IOMMU_CONTROL 0x18
#define IOMMU_HEAD 0x2000
#define IOMMU_TAIL 0x2008
#define IOMMU_LOG_HEAD 0x2010
#define IOMMU_LOG_TAIL 0x2018
#define IOMMU_STATUS 0x2020
#define CONTROL_ON 0x1005 /* translate, log, take commands */

static uint32_t device_table[256 * 8] PAGE;
static uint32_t own_page_table[1024] PAGE;
static uint32_t own_commands[1024] PAGE;
static uint32_t own_log[1024] PAGE;

static void iommu_set(uint32_t reg, uint32_t low, uint32_t high)
{
    *at32(IOMMU + reg) = low;
    *at32(IOMMU + reg + 4) = high;
}

/* Every device: three levels, whose first entry maps the first GiB. */
void iommu_tables_at(uint32_t table, uint32_t page_table)
{
    uint32_t i;

    fill((void *)page_table, 0, 4096);
    *at32(page_table) = 1;
    *at32(page_table + 4) = 0x60000000;
    fill((void *)table, 0, sizeof(device_table));
    for (i = 0; i < 256; i++) {
        *at32(table + i * 32) = page_table | 3 | 3 << 9;
        *at32(table + i * 32 + 4) = 0x60000000;
        *at32(table + i * 32 + 8) = 1;
    }
    iommu_set(IOMMU_DEVICE_TABLE, table | 1, 0);
}

void iommu_forbid_writes(uint32_t table)
{
    uint32_t i;

    for (i = 0; i < 256; i++) {
        *at32(table + i * 32 + 4) = 0x20000000;
    }
}

void iommu_log_at(uint32_t log)
{
    iommu_set(IOMMU_CONTROL, 0, 0);
    iommu_set(IOMMU_LOG, log, 8 << 24);
    iommu_set(IOMMU_LOG_HEAD, 0, 0);
    iommu_set(IOMMU_LOG_TAIL, 0, 0);
    iommu_set(IOMMU_CONTROL, CONTROL_ON, 0);
}

/* Invalidate all, then COMPLETION_WAIT; what it stored at @store. */
uint32_t iommu_command_in(uint32_t buffer, uint32_t store)
{
    static uint32_t number = 0xc0de0000;
    unsigned i;

    number++;
    fill((void *)buffer, 0, 32);
    *at32(buffer + 4) = 0x80000000;
    *at32(buffer + 16) = store | 1;
    *at32(buffer + 20) = 0x10000000;
    *at32(buffer + 24) = number;
    *at32(store) = 0;
    iommu_set(IOMMU_CONTROL, 0, 0);
    iommu_set(IOMMU_COMMANDS, buffer, 8 << 24);
    iommu_set(IOMMU_HEAD, 0, 0);
    iommu_set(IOMMU_TAIL, 0, 0);
    iommu_set(IOMMU_CONTROL, CONTROL_ON, 0);
    *at32(IOMMU + IOMMU_TAIL) = 32;
    for (i = 0; i < 10 && *at32(store) != number; i++) {
        wait_microseconds(1000);
    }
    return *at32(store) == number;
}

uint32_t iommu_status(void)
{
    return *at32(IOMMU + IOMMU_STATUS);
}

void map_dma(void)
{
    static uint64_t store;

    iommu_tables_at((uint32_t)device_table, (uint32_t)own_page_table);
    iommu_log_at((uint32_t)own_log);
    check("AMD-Vi takes commands",
          iommu_command_in((uint32_t)own_commands, (uint32_t)&store));
}
