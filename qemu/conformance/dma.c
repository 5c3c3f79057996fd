/*
 * Conformance image: one driver per kind of bus master, each reduced to "write
 * something to this address"
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "image.h"

#define PATIENCE 1000 /* times 1 ms */

uint32_t dma_target;

static uint32_t bar;
static bool (*device_write)(void);
static bool (*device_read)(void);

/* ---- PCI ---- */

/* Extended configuration space, where the firmware has put it. */
static uint32_t config_at(uint32_t bdf, uint32_t offset)
{
    static uint32_t base;

    if (!base) {
        out32(0xcf8, 0x80000060);
        base = in32(0xcfc) & 0xfc000000;
    }
    return base + (bdf << 12) + offset;
}

uint32_t config_read(uint32_t bdf, uint32_t offset)
{
    return *at32(config_at(bdf, offset));
}

void config_write(uint32_t bdf, uint32_t offset, uint32_t value)
{
    *at32(config_at(bdf, offset)) = value;
}

/* The device with these ids on bus 0: enabled, @bar set. */
static bool find(uint32_t ids)
{
    uint32_t bdf;

    for (bdf = 0; bdf < 0x100; bdf++) {
        if (config_read(bdf, 0) == ids) {
            config_write(bdf, 4, config_read(bdf, 4) | 7);
            bar = config_read(bdf, 0x10) & ~15u;
            return true;
        }
    }
    return false;
}

/* ---- dolmen-dma: at once, and it says what became of it ---- */

static void hostile_burst(uint32_t control, uint32_t pattern)
{
    *at32(bar + 0x20) = 0; /* no targets */
    *at32(bar + 0x10) = pattern;
    *at32(bar + 0x30) = dma_target;
    *at32(bar + 0x38) = 8;
    *at32(bar + 0x28) = *at32(bar + 0x70) << 8; /* this phase's counters */
    *at32(bar + 0x08) = control | 2;
}

static bool hostile_write(void)
{
    static uint32_t pattern = 0x10000001;
    volatile uint32_t *target = at32(dma_target);

    hostile_burst(4, ++pattern);
    return *at32(bar + 0x40) == 1 && *target == pattern;
}

static bool hostile_read(void)
{
    volatile uint32_t *target = at32(dma_target);

    *target = *target ^ 0x5a5a5a5a;
    hostile_burst(8, 0);
    return *at32(bar + 0x50) == 1 && *at32(bar + 0x60) == *target;
}

/* ---- edu: a buffer of its own, 100 ms per transfer ---- */

static void edu_move(uint32_t from, uint32_t to, uint32_t command)
{
    unsigned i;

    *at32(bar + 0x80) = from;
    *at32(bar + 0x88) = to;
    *at32(bar + 0x90) = 64;
    *at32(bar + 0x98) = command;
    for (i = 0; i < PATIENCE && (*at32(bar + 0x98) & 1); i++) {
        wait_microseconds(1000);
    }
}

static bool edu_write(void)
{
    static uint8_t source[64];
    static uint8_t byte = 0x30;

    fill(source, ++byte, sizeof(source));
    edu_move((uint32_t)source, 0x40000, 1);
    edu_move(0x40000, dma_target, 3);
    return *at8(dma_target) == byte && *at8(dma_target + 63) == byte;
}

static bool edu_read(void)
{
    static volatile uint8_t sink[64];
    volatile uint8_t *target = at8(dma_target);

    *target = *target ^ 0x55;
    edu_move(dma_target, 0x40000, 1);
    edu_move(0x40000, (uint32_t)sink, 3);
    return sink[0] == *target;
}

/* ---- virtio-rng, by its legacy ports; bypasses the IOMMU ---- */

static uint8_t virtio_ring[16384] PAGE; /* up to 256 entries */

static bool virtio_rng_write(void)
{
    uint32_t ring = (uint32_t)virtio_ring;
    volatile uint16_t *used = (volatile uint16_t *)(ring + 4096 + 2);
    uint16_t port = bar & ~3u;
    unsigned i;
    bool changed = false;

    fill(virtio_ring, 0, sizeof(virtio_ring));
    fill((void *)dma_target, 0xee, 32);
    out8(port + 18, 0); /* reset */
    out8(port + 18, 3);
    out16(port + 14, 0);
    out32(port + 8, ring >> 12);
    out8(port + 18, 7);
    *at32(ring) = dma_target;
    *at32(ring + 8) = 32;
    *at32(ring + 12) = 2; /* the device writes */
    *at32(ring + in16(port + 12) * 16) = 1 << 16;
    out16(port + 16, 0);
    for (i = 0; i < 300 && !*used; i++) {
        wait_microseconds(1000);
    }
    for (i = 0; i < 32; i++) {
        changed |= *at8(dma_target + i) != 0xee;
    }
    return changed;
}

/* The ring itself lies in the target: can the device follow it? */
static bool virtio_ring_write(void)
{
    uint32_t ring = dma_target, data = (uint32_t)virtio_ring;
    uint16_t port = bar & ~3u;
    unsigned i;
    bool changed = false;

    fill((void *)ring, 0, 8192);
    fill(virtio_ring, 0xee, 32);
    out8(port + 18, 0);
    out8(port + 18, 3);
    out16(port + 14, 0);
    out32(port + 8, ring >> 12);
    out8(port + 18, 7);
    *at32(ring) = data;
    *at32(ring + 8) = 32;
    *at32(ring + 12) = 2;
    *at32(ring + in16(port + 12) * 16) = 1 << 16;
    out16(port + 16, 0);
    for (i = 0; i < 300 && !changed; i++) {
        wait_microseconds(1000);
        changed = *at8(data) != 0xee || *at8(data + 1) != 0xee;
    }
    return changed || *at32(ring + 4096) != 0;
}

/* ---- virtio-blk, by its legacy ports: a read that takes its time ---- */

static struct {
    uint32_t kind, reserved;
    uint64_t sector;
    volatile uint8_t status;
} disk_request;

static void describe(uint32_t index, uint32_t address, uint32_t length,
                     uint32_t flags)
{
    uint32_t at = (uint32_t)virtio_ring + index * 16;

    *at32(at) = address;
    *at32(at + 8) = length;
    *at32(at + 12) = flags | (index + 1) << 16;
}

bool disk_start_read(void)
{
    uint32_t ring = (uint32_t)virtio_ring;
    uint16_t port;

    if (!find(0x10011af4)) {
        return false;
    }
    port = bar & ~3u;
    fill(virtio_ring, 0, sizeof(virtio_ring));
    disk_request.status = 0xff;
    out8(port + 18, 3);
    out16(port + 14, 0);
    out32(port + 8, ring >> 12);
    out8(port + 18, 7);
    describe(0, (uint32_t)&disk_request, 16, 1);
    describe(1, dma_target, 512, 3);
    describe(2, (uint32_t)&disk_request.status, 1, 2);
    *at32(ring + in16(port + 12) * 16) = 1 << 16;
    out16(port + 16, 0);
    return true;
}

bool disk_read_done(void)
{
    return disk_request.status == 0;
}

/* ---- nvme: IDENTIFY CONTROLLER into the target ---- */

static uint32_t nvme_submission[64 / 4 * 8] PAGE;
static uint32_t nvme_completion[1024] PAGE;

static bool nvme_write(void)
{
    unsigned i;
    bool changed = false;

    fill(nvme_submission, 0, sizeof(nvme_submission));
    fill(nvme_completion, 0, sizeof(nvme_completion));
    fill((void *)dma_target, 0xee, 64);
    *at32(bar + 0x14) = 0;
    for (i = 0; i < PATIENCE && (*at32(bar + 0x1c) & 1); i++) {
        wait_microseconds(1000);
    }
    *at32(bar + 0x24) = 0x70007;
    *at32(bar + 0x28) = (uint32_t)nvme_submission;
    *at32(bar + 0x2c) = 0;
    *at32(bar + 0x30) = (uint32_t)nvme_completion;
    *at32(bar + 0x34) = 0;
    *at32(bar + 0x14) = 0x460001;
    for (i = 0; i < PATIENCE && !(*at32(bar + 0x1c) & 1); i++) {
        wait_microseconds(1000);
    }
    nvme_submission[0] = 0x00010006;
    nvme_submission[6] = dma_target;
    nvme_submission[10] = 1;
    *at32(bar + 0x1000) = 1;
    for (i = 0; i < PATIENCE && !((volatile uint32_t *)nvme_completion)[3];
         i++) {
        wait_microseconds(1000);
    }
    for (i = 0; i < 64; i++) {
        changed |= *at8(dma_target + i) != 0xee;
    }
    return changed;
}

/* ---- e1000e: a transmit descriptor in the target gets its "done" ---- */

static bool e1000e_write(void)
{
    static uint8_t packet[64];
    unsigned i;

    fill((void *)dma_target, 0, 128);
    *at32(bar + 0x400) = 0;
    *at32(bar + 0x3800) = dma_target;
    *at32(bar + 0x3804) = 0;
    *at32(bar + 0x3808) = 128;
    *at32(bar + 0x3810) = 0;
    *at32(bar + 0x3818) = 0;
    *at32(dma_target) = (uint32_t)packet;
    *at32(dma_target + 8) = 64 | 0x0b000000; /* EOP, IFCS, RS */
    *at32(bar + 0x400) = 2;
    *at32(bar + 0x3818) = 1;
    for (i = 0; i < 300 && !(*at32(dma_target + 12) & 1); i++) {
        wait_microseconds(1000);
    }
    return *at32(dma_target + 12) & 1;
}

/* ---- fw_cfg: its DMA interface, no PCI device at all ---- */

static uint32_t swap(uint32_t value)
{
    return __builtin_bswap32(value);
}

static bool fw_cfg_write(void)
{
    static volatile struct {
        uint32_t control, length, address_high, address_low;
    } request;

    fill((void *)dma_target, 0xee, 4);
    request.control = swap(0x8 | 0x2); /* select entry 0 "QEMU", read */
    request.length = swap(4);
    request.address_high = 0;
    request.address_low = swap(dma_target);
    out32(0x514, 0);
    out32(0x518, swap((uint32_t)&request));
    return *at32(dma_target) == 0x554d4551;
}

/* ---- 8237: the floppy controller's transfers ---- */

static bool floppy_byte(uint8_t byte)
{
    unsigned i;

    for (i = 0; i < 100; i++) {
        if ((in8(0x3f4) & 0xc0) == 0x80) {
            out8(0x3f5, byte);
            return true;
        }
        wait_microseconds(100);
    }
    return false;
}

/* Sector 1 of an empty disk: zeroes. */
static bool floppy_write(void)
{
    static const uint8_t read_data[] = { 0xe6, 0, 0, 0, 1, 2, 18, 27, 0xff };
    unsigned i;

    fill((void *)dma_target, 0xee, 512);
    out8(0x3f2, 0x18); /* reset, then motor A and DMA on */
    wait_microseconds(1000);
    out8(0x3f2, 0x1c);
    wait_microseconds(1000);
    for (i = 0; i < 4; i++) {
        floppy_byte(0x08); /* what the reset has to say */
        in8(0x3f5);
        in8(0x3f5);
    }
    out8(0x0a, 6); /* mask channel 2, set it up, unmask */
    out8(0x0c, 0);
    out8(0x0b, 0x46);
    out8(0x04, dma_target);
    out8(0x04, dma_target >> 8);
    out8(0x81, dma_target >> 16);
    out8(0x05, 0xff);
    out8(0x05, 0x01);
    out8(0x0a, 2);
    for (i = 0; i < sizeof(read_data); i++) {
        if (!floppy_byte(read_data[i])) {
            return false;
        }
    }
    for (i = 0; i < PATIENCE && (in8(0x3f4) & 0xc0) != 0xc0; i++) {
        wait_microseconds(1000);
    }
    for (i = 0; i < 7 && (in8(0x3f4) & 0xc0) == 0xc0; i++) {
        in8(0x3f5);
    }
    return *at8(dma_target) == 0 && *at8(dma_target + 511) == 0;
}

static const struct {
    const char *name;
    uint32_t ids; /* 0: not on PCI */
    bool (*write)(void);
    bool (*read)(void);
} devices[] = {
    { "dolmen-dma", 0x11ea1234, hostile_write, hostile_read },
    { "edu", 0x11e81234, edu_write, edu_read },
    { "virtio-rng", 0x10051af4, virtio_rng_write, NULL },
    { "virtio-ring", 0x10051af4, virtio_ring_write, NULL },
    { "nvme", 0x00101b36, nvme_write, NULL },
    { "e1000e", 0x10d38086, e1000e_write, NULL },
    { "fw-cfg", 0, fw_cfg_write, NULL },
    { "8237", 0, floppy_write, NULL },
};

bool dma_prepare(const char *name)
{
    unsigned i;

    for (i = 0; i < sizeof(devices) / sizeof(devices[0]); i++) {
        if (equal_text(name, devices[i].name)) {
            device_write = devices[i].write;
            device_read = devices[i].read;
            return !devices[i].ids || find(devices[i].ids);
        }
    }
    return false;
}

bool dma_write(void)
{
    return device_write();
}

bool dma_read(void)
{
    return device_read ? device_read() : device_write();
}
