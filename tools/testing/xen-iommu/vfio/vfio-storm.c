// SPDX-License-Identifier: GPL-2.0-only
/*
 * vfio-storm: many faults in a row must not stop a disk.
 *
 *   vfio-storm iommufd|container DEVICE
 *
 * Sends commands with unmapped data pointers in quick succession. The disk must
 * still be a bus master then, and a good command must work. Prints KTAP; the
 * exit status is 0 if all cases pass.
 */
#define main vfio_nvme_main
#include "vfio-nvme.c"
#undef main

int main(int argc, char **argv)
{
	bool legacy = argc > 1 && !strcmp(argv[1], "container");
	struct nvme nvme = { .name = argv[2] };
	unsigned char *mem = pages(PAGE);
	struct vfio_region_info info = {
		.argsz = sizeof(info),
		.index = VFIO_PCI_CONFIG_REGION_INDEX,
	};
	struct vfio vfio;
	__u16 command = 0;
	__u64 began;
	int status = 0, i;
	bool alive, good;

	if (argc != 3)
		return 2;
	setlinebuf(stdout);
	printf("KTAP version 1\n1..2\n");
	if (open_device(&vfio, legacy, argv[2]) || start_nvme(&nvme, &vfio))
		return 1;
	if (map(&vfio, CASE_IOVA, mem, PAGE, MAP_RW))
		return 1;
	began = now_ms();
	for (i = 0; i < 200; i++) {
		status = transfer(&nvme, 1, IO_READ, 0, CASE_IOVA + 0x10000000 + i * PAGE, PAGE);
		if (status < 0)
			break;
	}
	printf("# %d commands with bad pointers in %llu ms, the last: %#x\n", i,
	       now_ms() - began, status);
	if (ioctl(vfio.device, VFIO_DEVICE_GET_REGION_INFO, &info) ||
	    pread(vfio.device, &command, 2, info.offset + 4) != 2)
		return 1;
	alive = i == 200 && (command & 4);
	printf("%sok 1 bus_master_after_faults # command register %#x\n",
	       alive ? "" : "not ", command);
	memset(mem, CANARY, PAGE);
	status = transfer(&nvme, 1, IO_READ, 0, CASE_IOVA, PAGE);
	good = !status && !filled(mem, CANARY, PAGE);
	printf("%sok 2 good_command_after_faults # status %#x\n", good ? "" : "not ", status);
	return alive && good ? 0 : 1;
}
