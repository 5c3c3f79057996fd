// SPDX-License-Identifier: GPL-2.0-only
/*
 * Driver for guests of Dolmen: passes hypercalls of programs on through /dev/dolmen.
 *
 * The hypervisor reads and writes buffers by their guest-physical address, so every call goes
 * through two buffers of the driver's own, each contiguous. They are wiped before they are freed:
 * they hold secrets.
 *
 * dolmen_tsm.ko makes its calls through this module too.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/capability.h>
#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/io.h>
#include <linux/jiffies.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <asm/cpufeature.h>
#include <asm/processor.h>

#include "dolmen.h"
#include "internal.h"

#define DOLMEN_LEAF_SIGNATURE	0x40000000
#define DOLMEN_LEAF_FEATURES	0x40000001
#define DOLMEN_ABI_VERSION	1

/* What the hypervisor demands of addresses; kmalloc() gives at least that. */
#define DOLMEN_ALIGN		8

#define DOLMEN_TIMEOUT		(60 * HZ)

/*
 * A quote takes many calls with the same request, and the hypervisor has room for one request of a
 * guest: whoever holds this finishes first.
 */
static DEFINE_MUTEX(dolmen_quote_lock);

static u32 dolmen_hypercall(u32 number, const struct dolmen_buffers *buffers, u64 *reply_length)
{
	u64 rax = number;
	u64 rdx = virt_to_phys(buffers->reply);
	u64 rdi = virt_to_phys(buffers->request);

	if (boot_cpu_has(X86_FEATURE_VMMCALL))
		asm volatile("vmmcall"
			     : "+a" (rax), "+d" (rdx)
			     : "D" (rdi), "S" (buffers->request_length), "c" (buffers->reply_capacity)
			     : "memory");
	else
		asm volatile("vmcall"
			     : "+a" (rax), "+d" (rdx)
			     : "D" (rdi), "S" (buffers->request_length), "c" (buffers->reply_capacity)
			     : "memory", "cc");

	*reply_length = rdx;
	return lower_32_bits(rax);
}

/* Repeats the call until the hypervisor has finished it. */
static int dolmen_finish(u32 number, const struct dolmen_buffers *buffers, unsigned long deadline,
			 struct dolmen_answer *answer)
{
	unsigned int sleep_ms = DOLMEN_SLEEP_MIN_MS;
	u64 reply_length;

	for (;;) {
		answer->status = dolmen_hypercall(number, buffers, &reply_length);
		if (answer->status != DOLMEN_STATUS_AGAIN)
			break;
		if (time_after(jiffies, deadline))
			return -ETIMEDOUT;
		if (msleep_interruptible(sleep_ms) || signal_pending(current))
			return -EINTR;
		sleep_ms = min(2 * sleep_ms, DOLMEN_SLEEP_MAX_MS);
	}

	/* A number that the hypervisor does not know leaves RDX as it was. */
	if (reply_length == virt_to_phys(buffers->reply) && (s32)answer->status < 0)
		reply_length = 0;
	if (reply_length > buffers->reply_capacity)
		return -EIO;
	answer->length = reply_length;
	return 0;
}

int dolmen_perform(u32 number, const struct dolmen_buffers *buffers, unsigned long deadline,
		   struct dolmen_answer *answer)
{
	int error;

	if (number != DOLMEN_NR_QUOTE)
		return dolmen_finish(number, buffers, deadline, answer);

	error = mutex_lock_interruptible(&dolmen_quote_lock);
	if (error)
		return error;
	error = dolmen_finish(number, buffers, deadline, answer);
	mutex_unlock(&dolmen_quote_lock);
	return error;
}
EXPORT_SYMBOL_GPL(dolmen_perform);

static int dolmen_call(struct dolmen_call *call)
{
	struct dolmen_buffers buffers = {
		.request_length = call->request_length,
		.reply_capacity = call->reply_capacity,
	};
	struct dolmen_answer answer;
	int error = -ENOMEM;

	if (call->reserved || (call->number & DOLMEN_NUMBER_MASK) != DOLMEN_NUMBER_BASE)
		return -EINVAL;
	if (call->request_length > DOLMEN_MAX_BYTES || call->reply_capacity > DOLMEN_MAX_BYTES)
		return -E2BIG;

	/* Never of length 0: an address must be there and be aligned. */
	buffers.request = kzalloc(max_t(size_t, buffers.request_length, DOLMEN_ALIGN), DOLMEN_GFP);
	buffers.reply = kzalloc(max_t(size_t, buffers.reply_capacity, DOLMEN_ALIGN), DOLMEN_GFP);
	if (!buffers.request || !buffers.reply)
		goto out;

	error = -EFAULT;
	if (copy_from_user(buffers.request, u64_to_user_ptr(call->request), buffers.request_length))
		goto out;

	error = dolmen_perform(call->number, &buffers, jiffies + DOLMEN_TIMEOUT, &answer);
	if (error)
		goto out;
	call->status = answer.status;
	call->reply_length = answer.length;

	if (copy_to_user(u64_to_user_ptr(call->reply), buffers.reply, answer.length))
		error = -EFAULT;
out:
	kfree_sensitive(buffers.request);
	kfree_sensitive(buffers.reply);
	return error;
}

static long dolmen_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	struct dolmen_call __user *user = (void __user *)argument;
	struct dolmen_call call;
	int error;

	if (command != DOLMEN_CALL)
		return -ENOTTY;
	if (copy_from_user(&call, user, sizeof(call)))
		return -EFAULT;
	call.reply_length = 0;
	call.status = 0;

	error = dolmen_call(&call);
	/* A call that a signal broke off starts anew by itself, where the program wants that. */
	if (error == -EINTR)
		return -ERESTARTSYS;
	if (error)
		return error;
	return copy_to_user(user, &call, sizeof(call)) ? -EFAULT : 0;
}

static int dolmen_open(struct inode *inode, struct file *file)
{
	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	return stream_open(inode, file);
}

static const struct file_operations dolmen_operations = {
	.owner = THIS_MODULE,
	.open = dolmen_open,
	.unlocked_ioctl = dolmen_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

static struct miscdevice dolmen_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "dolmen",
	.mode = 0600,
	.fops = &dolmen_operations,
};

static bool dolmen_present(void)
{
	u32 last, signature[3];

	if (!boot_cpu_has(X86_FEATURE_HYPERVISOR))
		return false;
	cpuid(DOLMEN_LEAF_SIGNATURE, &last, &signature[0], &signature[1], &signature[2]);
	return last >= DOLMEN_LEAF_FEATURES && !memcmp(signature, "DolmenDolmen", sizeof(signature));
}

static int __init dolmen_init(void)
{
	u32 version;
	int error;

	BUILD_BUG_ON(sizeof(struct dolmen_call) != 40);
	BUILD_BUG_ON(ARCH_KMALLOC_MINALIGN < DOLMEN_ALIGN);

	if (!dolmen_present()) {
		pr_err("this machine is not a guest of Dolmen\n");
		return -ENODEV;
	}
	version = cpuid_eax(DOLMEN_LEAF_FEATURES);
	if (version < DOLMEN_ABI_VERSION) {
		pr_err("the hypervisor's interface is of version %u, %u is needed\n", version,
		       DOLMEN_ABI_VERSION);
		return -ENODEV;
	}
	error = misc_register(&dolmen_device);
	if (error) {
		pr_err("no device: error %d\n", error);
		return error;
	}
	pr_info("hypervisor found, interface version %u\n", version);
	return 0;
}

static void __exit dolmen_exit(void)
{
	misc_deregister(&dolmen_device);
}

module_init(dolmen_init);
module_exit(dolmen_exit);

MODULE_DESCRIPTION("Hypercalls to Dolmen for programs");
MODULE_LICENSE("GPL");
/* Attestation reports by the kernel's own interface, where the kernel has it. */
MODULE_SOFTDEP("post: dolmen_tsm");
