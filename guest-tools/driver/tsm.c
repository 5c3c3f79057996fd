// SPDX-License-Identifier: GPL-2.0-only
/*
 * Attestation reports of a guest of Dolmen through the kernel's own interface, configfs-tsm
 * (Documentation/ABI/testing/configfs-tsm): inblob is the report data, outblob is evidence as
 * docs/evidence.md defines it, auxblob the keys behind it and the certificates behind those.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/array_size.h>
#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/tsm.h>

#include "evidence.h"
#include "internal.h"

/*
 * Linux 6.16 renamed the interface and left the short names to another one. Kernels that took the
 * change earlier have the macro too, so it tells more than a version.
 */
#ifdef TSM_REPORT_OUTBLOB_MAX
#define tsm_ops			tsm_report_ops
#define tsm_register		tsm_report_register
#define tsm_unregister		tsm_report_unregister
#endif

/* What every kernel with this interface takes, though later ones take more. */
#define DOLMEN_OUTBLOB_MAX	SZ_32K

/*
 * Longest work at one report. All other readers of reports wait for it, and the kernel complains
 * of those that wait for two minutes.
 */
#define DOLMEN_REPORT_TIMEOUT	(30 * HZ)

#define DOLMEN_LOG_WINDOW	1024

/* Requests and replies of one report, in contiguous memory, as the hypervisor demands. */
struct dolmen_work {
	struct dolmen_quote_request quote_request __aligned(8);
	struct dolmen_quote_reply quote __aligned(8);
	struct dolmen_event_log_request log_request __aligned(8);
	struct dolmen_key_request key_request __aligned(8);
	union {
		struct dolmen_event_log_reply log;
		u8 log_room[sizeof(struct dolmen_event_log_reply) + DOLMEN_LOG_WINDOW];
		u8 key_room[DOLMEN_MAX_CERTIFICATE];
	} __aligned(8);
	u8 ak[DOLMEN_MAX_AK_PUBLIC] __aligned(8);
	size_t ak_length;
	size_t log_length;
	unsigned long deadline;
};

/*
 * What vouches for the attestation key. It stays the same as long as the guest runs, and making an
 * endorsement key takes a TPM seconds: it is asked for until it is known. The kernel makes one
 * report at a time, so nobody else is here meanwhile.
 */
static struct dolmen_endorsement dolmen_endorsement;
static bool dolmen_is_endorsement_known;

static int dolmen_error(u32 status)
{
	switch (status) {
	case DOLMEN_STATUS_OK:
		return 0;
	case DOLMEN_STATUS_BUSY:
		return -EBUSY;
	case DOLMEN_STATUS_NOT_PERMITTED:
		return -EPERM;
	case DOLMEN_STATUS_NOT_LAUNCHED:
	case DOLMEN_STATUS_NO_SUCH_CALL:
		return -EOPNOTSUPP;
	case DOLMEN_STATUS_NO_CERTIFICATE:
		return -ENOENT;
	default:
		return -EIO;
	}
}

/*
 * Makes a call, and waits while the hypervisor is busy: with a request that was given up, or
 * because this guest asks for quotes too often.
 */
static int dolmen_ask(u32 number, const struct dolmen_buffers *buffers, unsigned long deadline,
		      size_t *length)
{
	unsigned int sleep_ms = DOLMEN_SLEEP_MIN_MS;
	struct dolmen_answer answer;
	int error;

	for (;;) {
		error = dolmen_perform(number, buffers, deadline, &answer);
		if (error)
			return error;
		if (answer.status != DOLMEN_STATUS_BUSY || time_after(jiffies, deadline))
			break;
		if (msleep_interruptible(sleep_ms) || signal_pending(current))
			return -EINTR;
		sleep_ms = min(2 * sleep_ms, DOLMEN_SLEEP_MAX_MS);
	}
	*length = answer.length;
	return dolmen_error(answer.status);
}

static int dolmen_ask_ak(struct dolmen_work *work)
{
	const struct dolmen_buffers buffers = {
		.request = work,
		.reply = work->ak,
		.reply_capacity = sizeof(work->ak),
	};
	int error = dolmen_ask(DOLMEN_NR_AK_PUBLIC, &buffers, work->deadline, &work->ak_length);

	if (!error && !work->ak_length)
		return -EIO;
	return error;
}

/* Appends to @bytes what a call that names a key, or a part of a chain, answers. */
static int dolmen_ask_key(struct dolmen_work *work, u32 number, u32 key, u8 *bytes, size_t room,
			  size_t *length)
{
	const struct dolmen_buffers buffers = {
		.request = &work->key_request,
		.request_length = sizeof(work->key_request),
		.reply = work->key_room,
		.reply_capacity = sizeof(work->key_room),
	};
	size_t more;
	int error;

	work->key_request.key = cpu_to_le32(key);
	work->key_request.reserved = 0;
	error = dolmen_ask(number, &buffers, work->deadline, &more);
	if (error)
		return error;
	if (!more)
		return -EIO;
	if (more > room - *length)
		return -EFBIG;
	memcpy(bytes + *length, work->key_room, more);
	*length += more;
	return 0;
}

/* The chain, up to the first part that is not there; all of it or nothing. */
static int dolmen_ask_chain(struct dolmen_work *work, struct dolmen_endorsement *found)
{
	u32 part;
	int error = 0;

	for (part = 0; part < DOLMEN_CHAIN_PARTS && !error; part++)
		error = dolmen_ask_key(work, DOLMEN_NR_EK_CHAIN, part, found->chain,
				       sizeof(found->chain), &found->chain_length);
	if (error == -EFBIG) {
		pr_notice_once("the TPM's chain of certificates is too long for reports\n");
		found->chain_length = 0;
		return 0;
	}
	/* A hypervisor of an older version knows no chains. */
	return error == -ENOENT || error == -EOPNOTSUPP ? 0 : error;
}

/* The first kind of key that has a certificate; without any, an RSA key that nobody vouches for. */
static int dolmen_ask_certified(struct dolmen_work *work, struct dolmen_endorsement *found)
{
	static const u32 kinds[] = { DOLMEN_EK_RSA, DOLMEN_EK_ECC };
	u32 kind = DOLMEN_EK_RSA;
	int error = -ENOENT;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(kinds) && error == -ENOENT; i++) {
		error = dolmen_ask_key(work, DOLMEN_NR_EK_CERTIFICATE, kinds[i], found->certificate,
				       sizeof(found->certificate), &found->certificate_length);
		if (!error)
			kind = kinds[i];
	}
	if (error && error != -ENOENT)
		return error;
	return dolmen_ask_key(work, DOLMEN_NR_EK, kind, found->ek, sizeof(found->ek),
			      &found->ek_length);
}

/*
 * Asks for what vouches for the attestation key. A guest that may not know it, or a TPM that does
 * not tell, still has reports.
 */
static int dolmen_ask_endorsement(struct dolmen_work *work)
{
	struct dolmen_endorsement *found = &dolmen_endorsement;
	int error;

	if (dolmen_is_endorsement_known)
		return 0;
	memset(found, 0, sizeof(*found));
	error = dolmen_ask_certified(work, found);
	if (!error)
		error = dolmen_ask_chain(work, found);
	dolmen_is_endorsement_known = !error || error == -EPERM;
	if (!error)
		return 0;
	memset(found, 0, sizeof(*found));
	if (error == -EIO)
		pr_warn_once("no endorsement key from the TPM: reports come without it\n");
	return error == -EPERM || error == -EIO ? 0 : error;
}

/* Brings a window of the log from @offset on; its bytes, or an error. */
static ssize_t dolmen_ask_log(struct dolmen_work *work, size_t offset)
{
	const struct dolmen_buffers buffers = {
		.request = &work->log_request,
		.request_length = sizeof(work->log_request),
		.reply = work->log_room,
		.reply_capacity = sizeof(work->log_room),
	};
	size_t length;
	int error;

	work->log_request.offset = cpu_to_le32(offset);
	work->log_request.length = cpu_to_le32(DOLMEN_LOG_WINDOW);
	error = dolmen_ask(DOLMEN_NR_EVENT_LOG, &buffers, work->deadline, &length);
	if (error)
		return error;
	if (length <= sizeof(work->log))
		return -EIO;
	return length - sizeof(work->log);
}

static int dolmen_ask_quote(struct dolmen_work *work, const u8 *report_data)
{
	const struct dolmen_quote_reply *quote = &work->quote;
	const struct dolmen_buffers buffers = {
		.request = &work->quote_request,
		.request_length = sizeof(work->quote_request),
		.reply = &work->quote,
		.reply_capacity = sizeof(work->quote),
	};
	size_t length;
	int error;

	memcpy(work->quote_request.report_data, report_data, DOLMEN_REPORT_DATA);
	error = dolmen_ask(DOLMEN_NR_QUOTE, &buffers, work->deadline, &length);
	if (error)
		return error;
	if (length != sizeof(*quote) ||
	    !in_range(le32_to_cpu(quote->attest_length), 1, DOLMEN_MAX_ATTEST) ||
	    !in_range(le32_to_cpu(quote->signature_length), 1, DOLMEN_MAX_SIGNATURE) ||
	    le32_to_cpu(quote->path_length) > DOLMEN_MAX_PATH ||
	    memcmp(quote->binding.report_data, report_data, DOLMEN_REPORT_DATA))
		return -EIO;
	return 0;
}

/* Writes the whole evidence; the log goes straight from its windows to its place. */
static int dolmen_write_evidence(struct dolmen_work *work, struct dolmen_writer *writer)
{
	size_t done = 0;
	ssize_t window;

	dolmen_write_quote(writer, &work->quote, work->ak, work->ak_length, work->log_length);
	while (done < work->log_length) {
		window = dolmen_ask_log(work, done);
		if (window < 0)
			return window;
		if (window > work->log_length - done)
			return -EIO;
		dolmen_write_bytes(writer, work->log.bytes, window);
		done += window;
	}
	dolmen_write_binding(writer, &work->quote);
	return writer->is_full ? -EFBIG : 0;
}

/* Asks for everything, and gives @report its blobs only if all of it is there. */
static int dolmen_report(struct dolmen_work *work, struct tsm_report *report)
{
	struct dolmen_writer evidence = {}, keys = {};
	ssize_t window;
	int error;

	error = dolmen_ask_ak(work);
	if (error)
		return error;
	error = dolmen_ask_endorsement(work);
	if (error)
		return error;
	window = dolmen_ask_log(work, 0);
	if (window < 0)
		return window;
	work->log_length = le32_to_cpu(work->log.total);
	if (work->log_length > DOLMEN_OUTBLOB_MAX)
		return -EFBIG;

	/* Before the TPM is put to work, so that nothing is quoted in vain. */
	evidence.room = min_t(size_t, DOLMEN_OUTBLOB_MAX,
			      work->log_length + sizeof(work->quote) + sizeof(work->ak) +
			      DOLMEN_ENCODING_OVERHEAD);
	keys.room = work->ak_length + dolmen_endorsement.ek_length +
		    dolmen_endorsement.certificate_length + dolmen_endorsement.chain_length +
		    DOLMEN_ENCODING_OVERHEAD;
	evidence.bytes = kvzalloc(evidence.room, DOLMEN_GFP);
	keys.bytes = kvzalloc(keys.room, DOLMEN_GFP);
	error = -ENOMEM;
	if (!evidence.bytes || !keys.bytes)
		goto out;

	error = dolmen_ask_quote(work, report->desc.inblob);
	if (error)
		goto out;
	error = dolmen_write_evidence(work, &evidence);
	if (error)
		goto out;
	dolmen_write_keys(&keys, work->ak, work->ak_length, &dolmen_endorsement);
	error = keys.is_full ? -EIO : 0;
	if (error)
		goto out;

	/* From here on they are the kernel's to free. */
	report->outblob = evidence.bytes;
	report->outblob_len = evidence.length;
	report->auxblob = keys.bytes;
	report->auxblob_len = keys.length;
	return 0;
out:
	kvfree(evidence.bytes);
	kvfree(keys.bytes);
	return error;
}

static int dolmen_report_new(struct tsm_report *report, void *data)
{
	struct dolmen_work *work;
	int error;

	/* All of it is bound: shorter report data would need a rule that others have to know. */
	if (report->desc.inblob_len != DOLMEN_REPORT_DATA)
		return -EINVAL;
	work = kzalloc(sizeof(*work), DOLMEN_GFP);
	if (!work)
		return -ENOMEM;
	work->deadline = jiffies + DOLMEN_REPORT_TIMEOUT;
	error = dolmen_report(work, report);
	kfree(work);
	/* A read that a signal broke off starts anew by itself, where the program wants that. */
	return error == -EINTR ? -ERESTARTSYS : error;
}

/* A guest is one whole: there are no levels of privilege in it, and no services below it. */
static bool dolmen_attr_visible(int index)
{
	return index == TSM_REPORT_GENERATION || index == TSM_REPORT_PROVIDER;
}

static bool dolmen_bin_attr_visible(int index)
{
	return index == TSM_REPORT_INBLOB || index == TSM_REPORT_OUTBLOB ||
	       index == TSM_REPORT_AUXBLOB;
}

static const struct tsm_ops dolmen_tsm_ops = {
	.name = "dolmen",
	.report_new = dolmen_report_new,
	.report_attr_visible = dolmen_attr_visible,
	.report_bin_attr_visible = dolmen_bin_attr_visible,
};

static int __init dolmen_tsm_init(void)
{
	/* Nothing to look for: dolmen.ko, which this module needs, loads only in a guest of Dolmen. */
	int error = tsm_register(&dolmen_tsm_ops, NULL);

	if (error)
		pr_err("cannot provide reports: error %d\n", error);
	return error;
}

static void __exit dolmen_tsm_exit(void)
{
	/* Waits for a report that is being made. */
	tsm_unregister(&dolmen_tsm_ops);
}

module_init(dolmen_tsm_init);
module_exit(dolmen_tsm_exit);

MODULE_DESCRIPTION("Attestation reports of a guest of Dolmen through configfs-tsm");
MODULE_LICENSE("GPL");
