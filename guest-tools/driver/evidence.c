// SPDX-License-Identifier: GPL-2.0-only
/*
 * Writes evidence: deterministic CBOR (RFC 8949, 4.2.1), the very bytes that the dolmen command
 * writes. Only what a map of small integers, text, byte strings and one array needs.
 */

#include <linux/array_size.h>
#include <linux/limits.h>
#include <linux/string.h>

#include "evidence.h"

/* Major types of RFC 8949, 3.1, as the upper three bits of an item's first byte. */
#define CBOR_UNSIGNED	0x00
#define CBOR_BYTES	0x40
#define CBOR_TEXT	0x60
#define CBOR_ARRAY	0x80
#define CBOR_MAP	0xa0

/* Additional information that says how many bytes of the argument follow; less is the argument. */
#define CBOR_ONE_BYTE	24
#define CBOR_TWO_BYTES	25
#define CBOR_FOUR_BYTES	26

#define EVIDENCE_FORMAT	"dolmen-evidence-1"
#define EVIDENCE_KEYS	9
#define KEYS_FORMAT	"dolmen-keys-1"

void dolmen_write_bytes(struct dolmen_writer *writer, const void *bytes, size_t length)
{
	if (writer->is_full || length > writer->room - writer->length) {
		writer->is_full = true;
		return;
	}
	memcpy(writer->bytes + writer->length, bytes, length);
	writer->length += length;
}

/* An item's head, its argument in as few bytes as can be, the highest first. */
static void write_head(struct dolmen_writer *writer, u8 major, u32 argument)
{
	const u8 bytes[4] = { argument >> 24, argument >> 16, argument >> 8, argument };
	size_t follow;
	u8 first;

	if (argument < CBOR_ONE_BYTE) {
		follow = 0;
		first = major | argument;
	} else if (argument <= U8_MAX) {
		follow = 1;
		first = major | CBOR_ONE_BYTE;
	} else if (argument <= U16_MAX) {
		follow = 2;
		first = major | CBOR_TWO_BYTES;
	} else {
		follow = 4;
		first = major | CBOR_FOUR_BYTES;
	}
	dolmen_write_bytes(writer, &first, sizeof(first));
	dolmen_write_bytes(writer, &bytes[sizeof(bytes) - follow], follow);
}

/* The start of a map that says what it is and of which version. */
static void write_map(struct dolmen_writer *writer, u32 keys, const char *format)
{
	write_head(writer, CBOR_MAP, keys);
	write_head(writer, CBOR_UNSIGNED, 0);
	write_head(writer, CBOR_TEXT, strlen(format));
	dolmen_write_bytes(writer, format, strlen(format));
}

static void write_part(struct dolmen_writer *writer, u32 key, const void *bytes, size_t length)
{
	write_head(writer, CBOR_UNSIGNED, key);
	write_head(writer, CBOR_BYTES, length);
	dolmen_write_bytes(writer, bytes, length);
}

static void write_number(struct dolmen_writer *writer, u32 key, u32 value)
{
	write_head(writer, CBOR_UNSIGNED, key);
	write_head(writer, CBOR_UNSIGNED, value);
}

void dolmen_write_quote(struct dolmen_writer *writer, const struct dolmen_quote_reply *quote,
			const u8 *ak, size_t ak_length, size_t log_length)
{
	write_map(writer, EVIDENCE_KEYS, EVIDENCE_FORMAT);
	write_part(writer, 1, quote->attest, le32_to_cpu(quote->attest_length));
	write_part(writer, 2, quote->signature, le32_to_cpu(quote->signature_length));
	write_part(writer, 3, ak, ak_length);
	write_head(writer, CBOR_UNSIGNED, 4);
	write_head(writer, CBOR_BYTES, log_length);
}

void dolmen_write_binding(struct dolmen_writer *writer, const struct dolmen_quote_reply *quote)
{
	u32 count = le32_to_cpu(quote->path_length);
	u32 i;

	write_part(writer, 5, &quote->binding, sizeof(quote->binding));
	write_number(writer, 6, le32_to_cpu(quote->index));
	write_number(writer, 7, le32_to_cpu(quote->count));
	write_head(writer, CBOR_UNSIGNED, 8);
	write_head(writer, CBOR_ARRAY, count);
	for (i = 0; i < count; i++) {
		write_head(writer, CBOR_BYTES, DOLMEN_DIGEST);
		dolmen_write_bytes(writer, quote->path[i], DOLMEN_DIGEST);
	}
}

void dolmen_write_keys(struct dolmen_writer *writer, const u8 *ak, size_t ak_length,
		       const struct dolmen_endorsement *endorsement)
{
	const struct {
		const u8 *bytes;
		size_t length;
	} parts[] = {
		{ ak, ak_length },
		{ endorsement->ek, endorsement->ek_length },
		{ endorsement->certificate, endorsement->certificate_length },
		{ endorsement->chain, endorsement->chain_length },
	};
	u32 keys = 1;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(parts); i++)
		keys += parts[i].length != 0;
	write_map(writer, keys, KEYS_FORMAT);
	for (i = 0; i < ARRAY_SIZE(parts); i++)
		if (parts[i].length)
			write_part(writer, i + 1, parts[i].bytes, parts[i].length);
}
