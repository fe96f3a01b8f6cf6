// SPDX-License-Identifier: GPL-2.0-only
/*
 * init of an arm64 dom0: on a Xen without the hypercall, the driver declines with
 * one line, and there is no IOMMU. The verdict goes to the console, like
 * everything here, because there is no second serial port.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <unistd.h>

static int entries(const char *path)
{
	DIR *dir = opendir(path);
	struct dirent *e;
	int nr = 0;

	if (!dir)
		return 0;
	while ((e = readdir(dir)))
		nr += e->d_name[0] != '.';
	closedir(dir);
	return nr;
}

int main(void)
{
	char record[8192];
	int lines = 0, declined = 0, bad = 0, fd;
	ssize_t len;

	mount("dev", "/dev", "devtmpfs", 0, NULL);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sys", "/sys", "sysfs", 0, NULL);

	/* Before devtmpfs was mounted, there was no console to open. */
	fd = open("/dev/console", O_RDWR);
	dup2(fd, 1);
	dup2(fd, 2);

	fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK);
	while ((len = read(fd, record, sizeof(record) - 1)) > 0) {
		record[len] = 0;
		if (!strstr(record, "xen-iommu"))
			continue;
		lines++;
		declined += !!strstr(record, "xen-iommu: Xen offers no PV-IOMMU: error -38\n");
	}

	bad += lines != 1 || declined != 1;
	bad += entries("/sys/class/iommu") || entries("/sys/kernel/iommu_groups");
	printf("xen-iommu: %d lines, %d of them decline; %d IOMMUs, %d groups\n",
	       lines, declined, entries("/sys/class/iommu"),
	       entries("/sys/kernel/iommu_groups"));
	printf("LAB-EXIT %d\n", bad);
	fflush(stdout);
	sync();
	reboot(RB_POWER_OFF);
	return 1;
}
