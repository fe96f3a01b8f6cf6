/* SPDX-License-Identifier: GPL-2.0-only */
/* The part of libcap that the kernel's iommufd selftests use. */
#ifndef XEN_IOMMU_CAPABILITY_H
#define XEN_IOMMU_CAPABILITY_H

#include <errno.h>
#include <linux/capability.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef int cap_value_t;

enum cap_flag { CAP_EFFECTIVE };
enum cap_flag_value { CAP_CLEAR, CAP_SET };

typedef struct cap_state {
	struct __user_cap_header_struct head;
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
} *cap_t;

static inline cap_t cap_get_proc(void)
{
	cap_t caps = calloc(1, sizeof(*caps));

	if (!caps)
		return NULL;
	caps->head.version = _LINUX_CAPABILITY_VERSION_3;
	if (syscall(SYS_capget, &caps->head, caps->data)) {
		free(caps);
		return NULL;
	}
	return caps;
}

static inline int cap_set_flag(cap_t caps, enum cap_flag flag, int count, const cap_value_t *list,
			       enum cap_flag_value value)
{
	if (flag != CAP_EFFECTIVE) {
		errno = EINVAL;
		return -1;
	}
	for (int i = 0; i < count; i++) {
		__u32 *word = &caps->data[CAP_TO_INDEX(list[i])].effective;
		__u32 bit = CAP_TO_MASK(list[i]);

		*word = value == CAP_SET ? *word | bit : *word & ~bit;
	}
	return 0;
}

static inline int cap_set_proc(cap_t caps)
{
	return syscall(SYS_capset, &caps->head, caps->data);
}

static inline int cap_free(void *caps)
{
	free(caps);
	return 0;
}

#endif
