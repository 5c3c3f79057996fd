/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Evidence, as docs/evidence.md defines it, from what the hypervisor answers.
 */
#ifndef DOLMEN_EVIDENCE_H
#define DOLMEN_EVIDENCE_H

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

/* The keys behind the evidence. */
void dolmen_write_keys(struct dolmen_writer *writer, const u8 *ak, size_t ak_length);

#endif
