/* SPDX-License-Identifier: GPL-2.0-only */
/* VFIO by either interface: code that the programs here share. */
#ifndef XEN_IOMMU_VFIO_H
#define XEN_IOMMU_VFIO_H

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/iommufd.h>
#include <linux/types.h>
#include <linux/vfio.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define PAGE 4096UL
/* Exit status if the kernel refuses a device for lack of interrupt isolation. */
#define EXIT_UNSAFE 3

/* For a case, which returns 0 if it passes. */
#define expect(cond, fmt, ...)								\
do {											\
	if (!(cond)) {									\
		printf("    # line %d, %s: " fmt "\n", __LINE__, #cond, ##__VA_ARGS__);	\
		return 1;								\
	}										\
} while (0)

struct vfio {
	bool legacy;
	int device;
	int container;		/* of the legacy interface */
	int group;
	int iommufd;
	__u32 ioas;
	__u32 devid;		/* of iommufd */
};

/* Use the token that virtual functions need if vfio-pci has their physical function. */
static bool token;

static inline int fail(const char *what)
{
	int err = errno ?: EIO;

	printf("    # %s: %s\n", what, strerror(err));
	return -err;
}

/* Opens a container with the device's group, without an IOMMU yet. */
static inline int open_group(struct vfio *vfio, const char *bdf)
{
	struct vfio_group_status status = { .argsz = sizeof(status) };
	char path[PATH_MAX], link[PATH_MAX] = "";

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/iommu_group", bdf);
	if (readlink(path, link, sizeof(link) - 1) < 0)
		return fail(path);
	snprintf(path, sizeof(path), "/dev/vfio%s", strrchr(link, '/'));
	vfio->group = open(path, O_RDWR | O_CLOEXEC);
	if (vfio->group < 0)
		return fail(path);
	vfio->container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
	if (vfio->container < 0)
		return fail("/dev/vfio/vfio");
	if (ioctl(vfio->group, VFIO_GROUP_GET_STATUS, &status) ||
	    !(status.flags & VFIO_GROUP_FLAGS_VIABLE))
		return fail("group not viable");
	if (ioctl(vfio->group, VFIO_GROUP_SET_CONTAINER, &vfio->container))
		return fail("VFIO_GROUP_SET_CONTAINER");
	return 0;
}

static inline int open_container(struct vfio *vfio, const char *bdf)
{
	char name[64];
	int ret = open_group(vfio, bdf);

	if (ret)
		return ret;
	if (ioctl(vfio->container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU))
		return fail("VFIO_SET_IOMMU");
	snprintf(name, sizeof(name), "%s%s", bdf,
		 token ? " vf_token=11111111-1111-1111-1111-111111111111" : "");
	vfio->device = ioctl(vfio->group, VFIO_GROUP_GET_DEVICE_FD, name);
	return vfio->device < 0 ? fail("VFIO_GROUP_GET_DEVICE_FD") : 0;
}

static inline int open_iommufd(struct vfio *vfio, const char *bdf)
{
	__u8 uuid[16];
	struct vfio_device_bind_iommufd bind = {
		.argsz = sizeof(bind),
		.flags = token ? VFIO_DEVICE_BIND_FLAG_TOKEN : 0,
		.token_uuid_ptr = (unsigned long)uuid,
	};
	struct vfio_device_attach_iommufd_pt attach = { .argsz = sizeof(attach) };
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
	char path[PATH_MAX];

	/* The number is at the end of its folder's name. */
	for (int i = 0; i < 64; i++) {
		snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vfio-dev/vfio%d", bdf, i);
		if (!access(path, F_OK)) {
			snprintf(path, sizeof(path), "/dev/vfio/devices/vfio%d", i);
			break;
		}
	}
	vfio->device = open(path, O_RDWR | O_CLOEXEC);
	if (vfio->device < 0)
		return fail(path);
	vfio->iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	if (vfio->iommufd < 0)
		return fail("/dev/iommu");
	memset(uuid, 0x11, sizeof(uuid));
	bind.iommufd = vfio->iommufd;
	if (ioctl(vfio->device, VFIO_DEVICE_BIND_IOMMUFD, &bind))
		return fail("VFIO_DEVICE_BIND_IOMMUFD");
	vfio->devid = bind.out_devid;
	if (ioctl(vfio->iommufd, IOMMU_IOAS_ALLOC, &alloc))
		return fail("IOMMU_IOAS_ALLOC");
	vfio->ioas = alloc.out_ioas_id;
	attach.pt_id = vfio->ioas;
	if (ioctl(vfio->device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach))
		return fail("VFIO_DEVICE_ATTACH_IOMMUFD_PT");
	return 0;
}

static inline int open_device(struct vfio *vfio, bool legacy, const char *bdf)
{
	*vfio = (struct vfio) { .legacy = legacy, .device = -1, .container = -1, .group = -1,
				.iommufd = -1 };
	return legacy ? open_container(vfio, bdf) : open_iommufd(vfio, bdf);
}

static inline void close_device(struct vfio *vfio)
{
	close(vfio->device);
	close(vfio->iommufd);
	close(vfio->group);
	close(vfio->container);
}

#define MAP_READ	1
#define MAP_WRITE	2
#define MAP_RW		(MAP_READ | MAP_WRITE)

static inline int map(struct vfio *vfio, __u64 iova, void *mem, __u64 size, int rights)
{
	struct vfio_iommu_type1_dma_map old = {
		.argsz = sizeof(old),
		.flags = (rights & MAP_READ ? VFIO_DMA_MAP_FLAG_READ : 0) |
			 (rights & MAP_WRITE ? VFIO_DMA_MAP_FLAG_WRITE : 0),
		.vaddr = (unsigned long)mem,
		.iova = iova,
		.size = size,
	};
	struct iommu_ioas_map new = {
		.size = sizeof(new),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA |
			 (rights & MAP_READ ? IOMMU_IOAS_MAP_READABLE : 0) |
			 (rights & MAP_WRITE ? IOMMU_IOAS_MAP_WRITEABLE : 0),
		.ioas_id = vfio->ioas,
		.user_va = (unsigned long)mem,
		.iova = iova,
		.length = size,
	};
	int ret;

	if (vfio->legacy)
		ret = ioctl(vfio->container, VFIO_IOMMU_MAP_DMA, &old);
	else
		ret = ioctl(vfio->iommufd, IOMMU_IOAS_MAP, &new);
	return ret ? -errno : 0;
}

/* Returns the number of bytes unmapped, or an error. */
static inline __s64 unmap(struct vfio *vfio, __u64 iova, __u64 size)
{
	struct vfio_iommu_type1_dma_unmap old = {
		.argsz = sizeof(old),
		.iova = iova,
		.size = size,
	};
	struct iommu_ioas_unmap new = {
		.size = sizeof(new),
		.ioas_id = vfio->ioas,
		.iova = iova,
		.length = size,
	};

	if (vfio->legacy)
		return ioctl(vfio->container, VFIO_IOMMU_UNMAP_DMA, &old) ? -errno :
									    (__s64)old.size;
	return ioctl(vfio->iommufd, IOMMU_IOAS_UNMAP, &new) ? -errno : (__s64)new.length;
}

/* Memory held for programs, by the kernel's count. */
struct held {
	long pinned;		/* pages, of the whole system */
	long locked, accounted;	/* KiB, of this program */
};

static inline long number_after(const char *path, const char *name)
{
	FILE *file = fopen(path, "re");
	long value = -1;
	char line[256];

	if (!file)
		return -1;
	while (fgets(line, sizeof(line), file)) {
		if (!strncmp(line, name, strlen(name)))
			value = strtol(line + strlen(name), NULL, 10);
	}
	fclose(file);
	return value;
}

static inline int look(struct held *held)
{
	FILE *refresh = fopen("/proc/sys/vm/stat_refresh", "re");
	long acquired, released;

	/* Each CPU keeps part of the counters to itself until then. */
	expect(refresh, "stat_refresh");
	while (fgetc(refresh) != EOF)
		;
	fclose(refresh);
	acquired = number_after("/proc/vmstat", "nr_foll_pin_acquired ");
	released = number_after("/proc/vmstat", "nr_foll_pin_released ");
	held->locked = number_after("/proc/self/status", "VmLck:");
	held->accounted = number_after("/proc/self/status", "VmPin:");
	expect(acquired >= 0 && released >= 0 && held->locked >= 0 && held->accounted >= 0,
	       "no counters");
	held->pinned = acquired - released;
	return 0;
}

static inline int as_before(const struct held *before)
{
	struct held now;

	if (look(&now))
		return 1;
	expect(now.pinned == before->pinned, "%ld pages pinned, %ld before", now.pinned,
	       before->pinned);
	expect(now.locked == before->locked, "%ld KiB locked, %ld before", now.locked,
	       before->locked);
	expect(now.accounted == before->accounted, "%ld KiB accounted, %ld before",
	       now.accounted, before->accounted);
	return 0;
}

#endif
