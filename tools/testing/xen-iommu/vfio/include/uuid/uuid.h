/* SPDX-License-Identifier: GPL-2.0-only */
/* The part of libuuid that the kernel's VFIO selftests use. */
#ifndef XEN_IOMMU_UUID_H
#define XEN_IOMMU_UUID_H

#include <ctype.h>
#include <stdio.h>
#include <string.h>

typedef unsigned char uuid_t[16];

/* Returns 0, or -1 if the text is not a UUID. */
static inline int uuid_parse(const char *text, uuid_t uuid)
{
	int byte;

	if (strlen(text) != 36)
		return -1;
	for (byte = 0; byte < 16; byte++) {
		if (byte == 4 || byte == 6 || byte == 8 || byte == 10) {
			if (*text++ != '-')
				return -1;
		}
		if (!isxdigit(text[0]) || !isxdigit(text[1]))
			return -1;
		if (sscanf(text, "%2hhx", &uuid[byte]) != 1)
			return -1;
		text += 2;
	}
	return 0;
}

#endif
