// SPDX-License-Identifier: GPL-2.0-only
/*
 * vfio-hold: keep a device open, with memory mapped for it, as a test of VFIO.
 *
 *   vfio-hold iommufd|container DEVICE
 *
 * DEVICE is a PCI address, bound to vfio-pci. Prints "holding", and keeps it until it is
 * killed. It uses the same token for every device, so that a virtual function can be held
 * if another vfio-hold has the physical function.
 */
#define _GNU_SOURCE
#include <sys/mman.h>

#include "vfio.h"

#define SIZE 0x100000UL

int main(int argc, char **argv)
{
	struct vfio vfio;
	void *mem;

	if (argc != 3 || (strcmp(argv[1], "iommufd") && strcmp(argv[1], "container"))) {
		fprintf(stderr, "usage: vfio-hold iommufd|container DEVICE\n");
		return 2;
	}
	token = true;
	if (open_device(&vfio, !strcmp(argv[1], "container"), argv[2]))
		return 1;
	mem = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE,
		   -1, 0);
	if (mem == MAP_FAILED || map(&vfio, 0x100000000ULL, mem, SIZE, MAP_RW)) {
		fail("mapping memory");
		return 1;
	}
	printf("holding\n");
	fflush(stdout);
	for (;;)
		pause();
}
