// SPDX-License-Identifier: GPL-2.0-only
/*
 * vfio-fail: test VFIO with each of the kernel's allocations failing in turn.
 *
 *   vfio-fail iommufd|container DEVICE
 *
 * DEVICE is a PCI address, bound to vfio-pci. Each request is repeated: the first time
 * its first allocation fails, then the second, and so on, until it makes fewer
 * allocations. It must report the failure, or do without. What it has pinned, locked and
 * mapped must be released, by the kernel's count, and the same can be mapped again.
 * Prints KTAP; the exit status is 0 if all cases pass. The kernel must have
 * CONFIG_FAILSLAB, configured to fail GFP_KERNEL, too (ignore-gfp-wait).
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/mman.h>

#include "vfio.h"

/* More pages than VFIO and iommufd handle at once. */
#define PAGES	1300UL
#define SIZE	(PAGES * PAGE)
#define IOVA	0x100000000ULL
#define MANY	100000

static const char *device;
static bool legacy;

/* Opened at the start, since opening it could fail otherwise. */
static int nth_file;

/* Makes the nth allocation from now on fail; 0: none. */
static int fail_nth(unsigned int n)
{
	char text[16];
	int len = snprintf(text, sizeof(text), "%u", n);

	return pwrite(nth_file, text, len, 0) == len ? 0 : -1;
}

/* Returns how many allocations remain until the failing one; 0 if one has failed. */
static int still_to_go(void)
{
	char text[16] = "";

	return pread(nth_file, text, sizeof(text) - 1, 0) > 0 ? atoi(text) : -1;
}

/* Maps the pages of a file in reverse order, which makes many pieces of memory. */
static void *scattered(void)
{
	int fd = memfd_create("scattered", MFD_CLOEXEC);
	char *mem;

	if (fd < 0 || ftruncate(fd, SIZE))
		return NULL;
	mem = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	if (mem == MAP_FAILED)
		return NULL;
	memset(mem, 1, SIZE);
	for (size_t i = 0; i < PAGES; i++) {
		if (mmap(mem + i * PAGE, PAGE, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd, SIZE - (i + 1) * PAGE) ==
		    MAP_FAILED)
			return NULL;
	}
	close(fd);
	return mem;
}

/* Each of the first ones, then ever fewer: each page has some, which are all alike. */
static unsigned int next(unsigned int n)
{
	return n + 1 + n / 32;
}

static int map_fails(void)
{
	unsigned int failed = 0, rounds = 0, n;
	void *mem = scattered();
	struct held before;
	struct vfio vfio;
	int to_go, err;

	expect(mem, "no memory");
	expect(!open_device(&vfio, legacy, device), "opening the device");
	if (look(&before))
		return 1;
	for (n = 1;; n = next(n)) {
		expect(n < MANY, "no end");
		expect(!fail_nth(n), "fail-nth: %s", strerror(errno));
		err = map(&vfio, IOVA, mem, SIZE, MAP_RW);
		to_go = still_to_go();
		expect(!fail_nth(0), "fail-nth: %s", strerror(errno));
		expect(to_go >= 0, "fail-nth: %s", strerror(errno));
		if (err) {
			/* iommufd also has failure points of its own, with other errors. */
			expect(!to_go && (err == -ENOMEM || !legacy), "%u: %s", n, strerror(-err));
			failed++;
		} else {
			expect(unmap(&vfio, IOVA, SIZE) == (__s64)SIZE, "%u: unmap", n);
		}
		expect(!as_before(&before), "%u", n);
		if (to_go)
			break;
		rounds++;
	}
	printf("    # %u of %u allocations failed, and mapping failed without %u of them\n",
	       rounds, n - to_go, failed);
	expect(failed, "nothing failed");
	close_device(&vfio);
	munmap(mem, SIZE);
	return 0;
}

/* Unmapping must not fail, since nobody could handle that. */
static int unmap_does_without(void)
{
	void *mem = scattered();
	struct held before;
	unsigned int rounds = 0, n;
	struct vfio vfio;
	__s64 size;
	int to_go;

	expect(mem, "no memory");
	expect(!open_device(&vfio, legacy, device), "opening the device");
	if (look(&before))
		return 1;
	for (n = 1;; n = next(n)) {
		expect(n < MANY, "no end");
		expect(!map(&vfio, IOVA, mem, SIZE, MAP_RW), "%u: map", n);
		expect(!fail_nth(n), "fail-nth: %s", strerror(errno));
		size = unmap(&vfio, IOVA, SIZE);
		to_go = still_to_go();
		expect(!fail_nth(0), "fail-nth: %s", strerror(errno));
		expect(to_go >= 0, "fail-nth: %s", strerror(errno));
		/* One of these points comes before anything is done. */
		if (!to_go && !legacy && size == -ENOENT)
			size = unmap(&vfio, IOVA, SIZE);
		expect(size == (__s64)SIZE, "%u: unmapped %lld", n, size);
		expect(!as_before(&before), "%u", n);
		if (to_go)
			break;
		rounds++;
	}
	printf("    # %u of %u allocations failed\n", rounds, n - to_go);
	close_device(&vfio);
	munmap(mem, SIZE);
	return 0;
}

/* Open without failures: much of that is other code, such as ACPI. */
static int attach(struct vfio *vfio)
{
	struct vfio_device_attach_iommufd_pt attach = {
		.argsz = sizeof(attach),
		.pt_id = vfio->ioas,
	};

	if (legacy)
		return ioctl(vfio->container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) ? -errno : 0;
	return ioctl(vfio->device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach) ? -errno : 0;
}

static int detach(struct vfio *vfio)
{
	struct vfio_device_detach_iommufd_pt detach = { .argsz = sizeof(detach) };

	if (!legacy)
		return ioctl(vfio->device, VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach);
	return ioctl(vfio->group, VFIO_GROUP_UNSET_CONTAINER) ||
	       ioctl(vfio->group, VFIO_GROUP_SET_CONTAINER, &vfio->container) ? -1 : 0;
}

static int attach_fails(void)
{
	unsigned int failed = 0, rounds = 0, n;
	struct held before;
	struct vfio vfio;
	int to_go, err;

	if (legacy) {
		vfio = (struct vfio) { .legacy = true, .device = -1, .iommufd = -1 };
		expect(!open_group(&vfio, device), "opening the group");
	} else {
		expect(!open_device(&vfio, false, device), "opening the device");
		expect(!detach(&vfio), "detaching");
	}
	if (look(&before))
		return 1;
	for (n = 1;; n++) {
		expect(n < MANY, "no end");
		expect(!fail_nth(n), "fail-nth: %s", strerror(errno));
		err = attach(&vfio);
		to_go = still_to_go();
		expect(!fail_nth(0), "fail-nth: %s", strerror(errno));
		expect(to_go >= 0, "fail-nth: %s", strerror(errno));
		if (err) {
			expect(!to_go, "%u: %s", n, strerror(-err));
			failed++;
		} else {
			expect(!detach(&vfio), "%u: detaching: %s", n, strerror(errno));
		}
		expect(!as_before(&before), "%u", n);
		if (to_go)
			break;
		rounds++;
	}
	printf("    # %u of %u allocations failed, and attaching failed without %u of them\n",
	       rounds, n - to_go, failed);
	expect(failed, "nothing failed");
	close_device(&vfio);
	return 0;
}

static const struct {
	const char *name;
	int (*run)(void);
} cases[] = {
	{ "map_fails", map_fails },
	{ "unmap_does_without", unmap_does_without },
	{ "attach_fails", attach_fails },
};

#define NR_CASES (sizeof(cases) / sizeof(*cases))

int main(int argc, char **argv)
{
	int failed = 0;

	if (argc != 3 || (strcmp(argv[1], "iommufd") && strcmp(argv[1], "container"))) {
		fprintf(stderr, "usage: vfio-fail iommufd|container DEVICE\n");
		return 2;
	}
	legacy = !strcmp(argv[1], "container");
	device = argv[2];
	nth_file = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	if (nth_file < 0) {
		perror("/proc/thread-self/fail-nth");
		return 1;
	}
	setlinebuf(stdout);
	printf("    KTAP version 1\n    1..%zu\n", NR_CASES);
	for (size_t i = 0; i < NR_CASES; i++) {
		int bad = cases[i].run();

		printf("    %sok %zu %s_%s\n", bad ? "not " : "", i + 1, argv[1], cases[i].name);
		failed += bad;
	}
	return failed != 0;
}
