/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the driver's modules share: calls, statuses and layouts of docs/abi.md, and the way to make
 * a call from within the kernel.
 */
#ifndef DOLMEN_INTERNAL_H
#define DOLMEN_INTERNAL_H

#include <linux/build_bug.h>
#include <linux/gfp.h>
#include <linux/types.h>

#define DOLMEN_NUMBER_BASE	0x444c0000
#define DOLMEN_NUMBER_MASK	0xffff0000
#define DOLMEN_NR_QUOTE		(DOLMEN_NUMBER_BASE | 0x30)
#define DOLMEN_NR_AK_PUBLIC	(DOLMEN_NUMBER_BASE | 0x31)
#define DOLMEN_NR_EVENT_LOG	(DOLMEN_NUMBER_BASE | 0x32)
#define DOLMEN_NR_EK		(DOLMEN_NUMBER_BASE | 0x35)
#define DOLMEN_NR_EK_CERTIFICATE	(DOLMEN_NUMBER_BASE | 0x36)
#define DOLMEN_NR_EK_CHAIN	(DOLMEN_NUMBER_BASE | 0x38)

#define DOLMEN_STATUS_OK		0
#define DOLMEN_STATUS_AGAIN		1
#define DOLMEN_STATUS_BUSY		2
#define DOLMEN_STATUS_NOT_PERMITTED	4
#define DOLMEN_STATUS_NOT_LAUNCHED	16
#define DOLMEN_STATUS_TPM_FAILED	17
#define DOLMEN_STATUS_NO_CERTIFICATE	22
#define DOLMEN_STATUS_NO_SUCH_CALL	((u32)-1000)

#define DOLMEN_REPORT_DATA	64
#define DOLMEN_MAX_ATTEST	256
#define DOLMEN_MAX_SIGNATURE	512
#define DOLMEN_MAX_AK_PUBLIC	512
#define DOLMEN_MAX_CERTIFICATE	4096
#define DOLMEN_MAX_PATH		5
#define DOLMEN_DIGEST		32

/* Endorsement keys, and parts of the chain of certificates behind them. */
#define DOLMEN_EK_RSA		0
#define DOLMEN_EK_ECC		1
#define DOLMEN_CHAIN_PARTS	256

/* How long to wait before asking again what the hypervisor has not finished. */
#define DOLMEN_SLEEP_MIN_MS	1U
#define DOLMEN_SLEEP_MAX_MS	20U

/*
 * Buffers are the caller's: charged to its control group, and if there is no memory the caller is
 * told so, rather than that another process is killed for it.
 */
#define DOLMEN_GFP		(GFP_KERNEL_ACCOUNT | __GFP_RETRY_MAYFAIL | __GFP_NOWARN)

struct dolmen_quote_request {
	__le32 flags;
	__le32 reserved;
	u8 report_data[DOLMEN_REPORT_DATA];
};
static_assert(sizeof(struct dolmen_quote_request) == 72);

struct dolmen_binding {
	u8 name[32];
	__le32 facts;
	__le32 reserved;
	u8 registers[8][48];
	u8 report_data[DOLMEN_REPORT_DATA];
};
static_assert(sizeof(struct dolmen_binding) == 488);

struct dolmen_quote_reply {
	__le32 attest_length;
	__le32 signature_length;
	__le32 index;
	__le32 count;
	__le32 path_length;
	__le32 reserved;
	struct dolmen_binding binding;
	u8 path[DOLMEN_MAX_PATH][DOLMEN_DIGEST];
	u8 attest[DOLMEN_MAX_ATTEST];
	u8 signature[DOLMEN_MAX_SIGNATURE];
};
static_assert(sizeof(struct dolmen_quote_reply) == 1440);

/* Of EndorsementKey, EkCertificate (which key) and EkChain (which part). */
struct dolmen_key_request {
	__le32 key;
	__le32 reserved;
};
static_assert(sizeof(struct dolmen_key_request) == 8);

struct dolmen_event_log_request {
	__le32 offset;
	__le32 length;
};

struct dolmen_event_log_reply {
	__le32 total;
	__le32 reserved;
	u8 bytes[];
};
static_assert(sizeof(struct dolmen_event_log_reply) == 8);

/* A call's buffers, as the hypervisor sees them: contiguous, at multiples of 8, never NULL. */
struct dolmen_buffers {
	void *request;
	void *reply;
	size_t request_length;
	size_t reply_capacity;
};

/* How a call ended: never AGAIN. */
struct dolmen_answer {
	u32 status;
	size_t length;
};

/*
 * Makes a call and repeats it until the hypervisor has finished it. Fails with EINTR, ETIMEDOUT or
 * EIO as dolmen.h says of the device's ioctl.
 */
int dolmen_perform(u32 number, const struct dolmen_buffers *buffers, unsigned long deadline,
		   struct dolmen_answer *answer);

#endif
