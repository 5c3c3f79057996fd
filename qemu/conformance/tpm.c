/*
 * Conformance image: TPM 2.0 commands through TIS
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "image.h"

#define TIS 0xfed40000
#define ACCESS 0x00
#define STATUS 0x18
#define FIFO 0x24
#define ACCESS_ACTIVE 0x20
#define ACCESS_REQUEST 0x02
#define STATUS_READY 0x40
#define STATUS_GO 0x20
#define STATUS_AVAILABLE 0x90 /* with "valid" */

static uint32_t reg(unsigned locality, uint32_t offset)
{
    return TIS + locality * 0x1000 + offset;
}

uint8_t tpm_access(unsigned locality)
{
    return *at8(reg(locality, ACCESS));
}

static bool wait_status(unsigned locality, uint8_t want)
{
    unsigned i;

    for (i = 0; i < 20000; i++) {
        uint8_t status = *at8(reg(locality, STATUS));

        if (status != 0xff && (status & want) == want) {
            return true;
        }
        wait_microseconds(500);
    }
    return false;
}

bool tpm_request(unsigned locality)
{
    unsigned i;

    *at8(reg(locality, ACCESS)) = ACCESS_REQUEST;
    for (i = 0; i < 1000; i++) {
        uint8_t access = tpm_access(locality);

        if (access != 0xff && (access & ACCESS_ACTIVE)) {
            return true;
        }
        wait_microseconds(500);
    }
    return false;
}

void tpm_relinquish(unsigned locality)
{
    *at8(reg(locality, ACCESS)) = ACCESS_ACTIVE;
}

static bool tpm_go(unsigned locality, const uint8_t *command, uint32_t length)
{
    *at8(reg(locality, STATUS)) = STATUS_READY;
    if (!wait_status(locality, STATUS_READY)) {
        return false;
    }
    while (length--) {
        *at8(reg(locality, FIFO)) = *command++;
    }
    *at8(reg(locality, STATUS)) = STATUS_GO;
    return true;
}

/* Returns the length of the response, 0 if there was none. */
static uint32_t tpm_command(unsigned locality, const uint8_t *command,
                            uint32_t length, uint8_t *response, uint32_t room)
{
    uint32_t got = 0;

    if (!tpm_go(locality, command, length) ||
        !wait_status(locality, STATUS_AVAILABLE)) {
        return 0;
    }
    while ((*at8(reg(locality, STATUS)) & 0x10) && got < room) {
        response[got++] = *at8(reg(locality, FIFO));
    }
    *at8(reg(locality, STATUS)) = STATUS_READY;
    return got;
}

static const struct {
    const char *name;
    uint16_t algorithm;
    uint8_t size;
} banks[] = {
    { "sha1", 4, 20 }, { "sha256", 11, 32 }, { "sha384", 12, 48 },
    { "sha512", 13, 64 },
};

static void report_pcr(unsigned pcr, unsigned bank)
{
    /* TPM2_PCR_Read of one PCR */
    uint8_t command[] = {
        0x80, 0x01, 0, 0, 0, 20, 0, 0, 0x01, 0x7e, 0, 0, 0, 1,
        0, banks[bank].algorithm, 3, 0, 0, 1 << (pcr - 16),
    };
    uint8_t response[128];
    uint32_t got = tpm_command(2, command, sizeof(command), response,
                               sizeof(response));
    uint32_t i, size = banks[bank].size;

    if (got < 30 + size) {
        print("pcr %d %s none\n", pcr, banks[bank].name);
        return;
    }
    print("pcr %d %s ", pcr, banks[bank].name);
    for (i = got - size; i < got; i++) {
        print("%x%x", response[i] >> 4, response[i] & 15);
    }
    print("\n");
}

void report_pcrs(void)
{
    unsigned bank;

    if (!tpm_request(2)) {
        check("the loader gets locality 2", false);
        return;
    }
    for (bank = 0; bank < sizeof(banks) / sizeof(banks[0]); bank++) {
        report_pcr(17, bank);
    }
    tpm_relinquish(2);
}

bool tpm_extend_17(void)
{
    /* TPM2_PCR_Extend of PCR 17, one SHA-256 digest of zeroes */
    uint8_t command[33 + 32] = {
        0x80, 0x02, 0, 0, 0, 65, 0, 0, 0x01, 0x82, 0, 0, 0, 17,
        0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0,
        0, 0, 0, 1, 0, 11,
    };
    uint8_t response[64];
    bool good;

    if (!tpm_request(2)) {
        return false;
    }
    good = tpm_command(2, command, sizeof(command), response,
                       sizeof(response)) >= 10 &&
           !(response[6] | response[7] | response[8] | response[9]);
    tpm_relinquish(2);
    return good;
}

/* An RSA key takes the TPM a good while; nobody waits for it here. */
bool tpm_start_slow_command(unsigned locality)
{
    static const uint8_t create_primary[] = {
        0x80, 0x02, 0, 0, 0, 67, 0, 0, 0x01, 0x31, 0x40, 0, 0, 1,
        0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0,
        0, 4, 0, 0, 0, 0,
        0, 26, 0, 1, 0, 11, 0, 3, 0, 0x72, 0, 0,
        0, 6, 0, 0x80, 0, 0x43, 0, 0x10, 8, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0,
    };

    return tpm_request(locality) &&
           tpm_go(locality, create_primary, sizeof(create_primary));
}
