// SPDX-License-Identifier: GPL-2.0-only
/*
 * xen-dmesg: print Xen's console from dom0.
 *
 *   xen-dmesg        print what is in the ring
 *   xen-dmesg -e     print the index of its end
 *   xen-dmesg INDEX  print what came after that index
 *   xen-dmesg -k KEYS  press debug keys; their output comes after the current end
 *
 * A replacement for "xl dmesg" that needs none of Xen's libraries.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/types.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* <xen/privcmd.h>, which is not among the C library's kernel headers */
struct privcmd_hypercall {
	__u64 op;
	__u64 arg[5];
};

#define IOCTL_PRIVCMD_HYPERCALL _IOC(_IOC_NONE, 'P', 0, sizeof(struct privcmd_hypercall))

#define HYPERVISOR_SYSCTL 35
#define SYSCTL_READCONSOLE 1
#define SYSCTL_DEBUG_KEYS 7

/* The beginning of Xen's struct xen_sysctl, for these operations. */
struct sysctl {
	__u32 cmd;
	__u32 interface_version;
	union {
		struct {
			__u8 clear;
			__u8 incremental;
			__u8 pad[2];
			__u32 index;
			__u64 buffer;
			__u32 count;
		} readconsole;
		struct {
			__u64 keys;
			__u32 nr_keys;
		} debug_keys;
		__u64 pad[16];
	} u;
};

/* Interface versions with this layout; 4.20 has the first. */
static const __u32 versions[] = { 0x15, 0x16, 0x17, 0x14, 0x13 };

#define PIECE 65536U

static int privcmd;

/* Xen reads and writes *op itself, so it must be in memory that does not move. */
static int sysctl(struct sysctl *op, const struct sysctl *request, const char *name)
{
	struct privcmd_hypercall call = {
		.op = HYPERVISOR_SYSCTL,
		.arg = { (unsigned long)op },
	};

	for (unsigned int i = 0; i < sizeof(versions) / sizeof(*versions); i++) {
		*op = *request;
		op->interface_version = versions[i];
		if (ioctl(privcmd, IOCTL_PRIVCMD_HYPERCALL, &call) >= 0)
			return 0;
		/* Xen returns this for an unknown version. */
		if (errno != EACCES)
			break;
	}
	fprintf(stderr, "xen-dmesg: %s: %s\n", name, strerror(errno));
	return -1;
}

static int read_console(struct sysctl *op, char *buf, __u32 *index)
{
	struct sysctl request = {
		.cmd = SYSCTL_READCONSOLE,
		.u.readconsole = {
			.incremental = 1,
			.index = *index,
			.buffer = (unsigned long)buf,
			.count = PIECE,
		},
	};

	if (sysctl(op, &request, "readconsole"))
		return -1;
	*index = op->u.readconsole.index;
	return op->u.readconsole.count;
}

static int press_keys(struct sysctl *op, char *buf, const char *keys)
{
	struct sysctl request = {
		.cmd = SYSCTL_DEBUG_KEYS,
		.u.debug_keys = {
			.keys = (unsigned long)buf,
			.nr_keys = strlen(keys),
		},
	};

	if (request.u.debug_keys.nr_keys > PIECE)
		return -1;
	memcpy(buf, keys, request.u.debug_keys.nr_keys);
	return sysctl(op, &request, "debug keys");
}

int main(int argc, char **argv)
{
	int end = argc == 2 && !strcmp(argv[1], "-e"), n;
	int press = argc == 3 && !strcmp(argv[1], "-k");
	__u32 index = 0;
	char *mem;

	if (argc > 2 && !press) {
		fprintf(stderr, "usage: xen-dmesg [-e | INDEX | -k KEYS]\n");
		return 2;
	}
	if (argc == 2 && !end)
		index = strtoul(argv[1], NULL, 0);

	privcmd = open("/dev/xen/privcmd", O_RDWR | O_CLOEXEC);
	if (privcmd < 0) {
		perror("xen-dmesg: /dev/xen/privcmd");
		return 1;
	}
	/* Xen writes there itself, so the pages must not move. */
	mem = mmap(NULL, 4096 + PIECE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED | MAP_POPULATE, -1, 0);
	if (mem == MAP_FAILED) {
		perror("xen-dmesg: buffer");
		return 1;
	}

	if (press)
		return press_keys((struct sysctl *)mem, mem + 4096, argv[2]) ? 1 : 0;

	for (;;) {
		__u32 from = index;

		n = read_console((struct sysctl *)mem, mem + 4096, &index);
		if (n <= 0)
			break;
		if (from && index - n != from) {
			fprintf(stderr, "xen-dmesg: overwritten: conring_size=1m helps\n");
			return 1;
		}
		if (!end && fwrite(mem + 4096, 1, n, stdout) != (size_t)n)
			return 1;
	}
	if (n < 0)
		return 1;
	if (end)
		printf("%u\n", index);
	return fflush(stdout) ? 1 : 0;
}
