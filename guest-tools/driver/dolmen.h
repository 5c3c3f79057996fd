/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * The device /dev/dolmen: hypercalls to Dolmen for programs.
 *
 * Which calls there are, their requests and replies: docs/abi.md.
 */
#ifndef DOLMEN_H
#define DOLMEN_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* The most bytes of a request or a reply that the driver passes on. */
#define DOLMEN_MAX_BYTES 32768

/**
 * struct dolmen_call - one hypercall
 * @number: number of the call: 0x444c0000 and its own part
 * @reserved: zero
 * @request: address of the request
 * @reply: address of the reply
 * @request_length: bytes of the request
 * @reply_capacity: room for the reply in bytes
 * @reply_length: out: bytes of the reply that were written
 * @status: out: how the call ended, never AGAIN
 */
struct dolmen_call {
	__u32 number;
	__u32 reserved;
	__u64 request;
	__u64 reply;
	__u32 request_length;
	__u32 reply_capacity;
	__u32 reply_length;
	__u32 status;
};

/*
 * Makes a call and repeats it until the hypervisor has finished it. Fails with
 *   EINVAL     a number that is not Dolmen's, a reserved field that is not zero
 *   E2BIG      more than DOLMEN_MAX_BYTES in or out
 *   EFAULT     an address that is not the program's own memory
 *   EINTR      a signal came while the hypervisor was at work; ask again (no error if the program
 *              stopped and goes on, or if the signal's handler has SA_RESTART)
 *   ETIMEDOUT  it took more than a minute, waiting for other callers' quotes included
 *   ENOMEM     no memory, or none that the program's control group may still have
 *   EIO        the hypervisor answered what it never should
 * In all other cases the hypervisor's answer is in @status.
 */
#define DOLMEN_CALL _IOWR(0xd0, 1, struct dolmen_call)

#endif
