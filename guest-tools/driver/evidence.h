/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Evidence, as docs/evidence.md defines it, from what the hypervisor answers.
 */
#ifndef DOLMEN_EVIDENCE_H
#define DOLMEN_EVIDENCE_H

#include <linux/sizes.h>

#include "internal.h"

/* One encoding that is being written; nothing is written beyond its room. */
struct dolmen_writer {
	u8 *bytes;
	size_t room;
	size_t length;
	bool is_full;
};

/* The most bytes that an encoding has besides the parts that its caller gives lengths for. */
#define DOLMEN_ENCODING_OVERHEAD	128

/* Everything of evidence but the log's bytes, which the caller appends in between. */
void dolmen_write_quote(struct dolmen_writer *writer, const struct dolmen_quote_reply *quote,
			const u8 *ak, size_t ak_length, size_t log_length);
void dolmen_write_bytes(struct dolmen_writer *writer, const void *bytes, size_t length);
void dolmen_write_binding(struct dolmen_writer *writer, const struct dolmen_quote_reply *quote);

/* Longest chain of certificates that is passed on. */
#define DOLMEN_MAX_CHAIN	SZ_16K

/* What vouches for an attestation key; parts that are not there have length 0. */
struct dolmen_endorsement {
	u8 ek[DOLMEN_MAX_AK_PUBLIC];
	u8 certificate[DOLMEN_MAX_CERTIFICATE];
	u8 chain[DOLMEN_MAX_CHAIN];
	size_t ek_length;
	size_t certificate_length;
	size_t chain_length;
};

/* The keys behind the evidence, and the certificates behind them. */
void dolmen_write_keys(struct dolmen_writer *writer, const u8 *ak, size_t ak_length,
		       const struct dolmen_endorsement *endorsement);

#endif
