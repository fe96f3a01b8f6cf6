// SPDX-License-Identifier: GPL-2.0-only
/*
 * vfio-limits: exceed limits, as a test of VFIO.
 *
 *   vfio-limits DEVICE [iommufd|container]
 *
 * DEVICE is a PCI address, bound to vfio-pci. Each case runs into one limit: locked
 * memory, contexts, the pool of page tables. It must get an error, and must be able to
 * use again what it has released. Prints KTAP; the exit status is 0 if all cases pass.
 * If NO_POOL is in the environment, there is no pool: all pages must fit.
 * With the name of an interface, it does one thing in steps instead: the pool runs out in
 * the middle of a mapping. Before and after that it waits for a line of input, so that a
 * script can count. The kernel should have been started with few contexts and a small
 * pool (xen_iommu.contexts, xen_iommu.pool_order), or the cases give up before the limit.
 */
#define _GNU_SOURCE
#include <linux/capability.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "vfio.h"

static const char *device;

static void *pages(size_t size)
{
	void *mem = mmap(NULL, size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	return mem == MAP_FAILED ? NULL : mem;
}

/* With CAP_IPC_LOCK, root may lock any amount of memory. */
static int drop_ipc_lock(void)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];

	if (syscall(SYS_capget, &head, data))
		return -errno;
	data[CAP_IPC_LOCK / 32].effective &= ~(1U << CAP_IPC_LOCK % 32);
	return syscall(SYS_capset, &head, data) ? -errno : 0;
}

static int lock_too_much(bool legacy)
{
	const size_t limit = 1UL << 20, more = 16UL << 20;
	struct rlimit rlimit = { .rlim_cur = limit, .rlim_max = limit };
	struct vfio vfio;
	void *mem = pages(more);
	int err;

	expect(mem, "no memory");
	expect(!open_device(&vfio, legacy, device), "opening the device");
	expect(!drop_ipc_lock(), "CAP_IPC_LOCK");
	expect(!setrlimit(RLIMIT_MEMLOCK, &rlimit), "RLIMIT_MEMLOCK");
	err = map(&vfio, 1UL << 30, mem, more, MAP_RW);
	expect(err == -ENOMEM, "%zu bytes with a limit of %zu: %d", more, limit, err);
	err = map(&vfio, 1UL << 30, mem, limit / 2, MAP_RW);
	expect(!err, "%zu bytes with a limit of %zu: %d", limit / 2, limit, err);
	expect(unmap(&vfio, 1UL << 30, limit / 2) == (__s64)limit / 2, "unmap");
	close_device(&vfio);
	munmap(mem, more);
	return 0;
}

/* Runs in its own process, which drops a capability. */
static int memlock(bool legacy)
{
	int status;
	pid_t child;

	fflush(stdout);
	child = fork();
	if (!child) {
		status = lock_too_much(legacy);
		fflush(stdout);
		_exit(status);
	}
	expect(child > 0 && waitpid(child, &status, 0) == child, "fork");
	return status != 0;
}

static int memlock_iommufd(void)
{
	return memlock(false);
}

static int memlock_container(void)
{
	return memlock(true);
}

#define MANY 4096

/* Allocates as many page tables as there are contexts, and returns their number. */
static unsigned int take_contexts(struct vfio *vfio, __u32 *ids, int *err)
{
	unsigned int count;

	*err = 0;
	for (count = 0; count < MANY; count++) {
		struct iommu_hwpt_alloc alloc = {
			.size = sizeof(alloc),
			.dev_id = vfio->devid,
			.pt_id = vfio->ioas,
		};

		if (ioctl(vfio->iommufd, IOMMU_HWPT_ALLOC, &alloc)) {
			*err = errno;
			break;
		}
		ids[count] = alloc.out_hwpt_id;
	}
	return count;
}

static int give_contexts(struct vfio *vfio, __u32 *ids, unsigned int count)
{
	while (count--) {
		struct iommu_destroy destroy = { .size = sizeof(destroy), .id = ids[count] };

		if (ioctl(vfio->iommufd, IOMMU_DESTROY, &destroy))
			return -errno;
	}
	return 0;
}

static int contexts_run_out(void)
{
	static __u32 ids[MANY];
	unsigned int count, again;
	struct vfio vfio;
	void *mem = pages(PAGE);
	int err;

	expect(mem, "no memory");
	expect(!open_device(&vfio, false, device), "opening the device");
	count = take_contexts(&vfio, ids, &err);
	printf("    # %u contexts, then: %s\n", count, strerror(err));
	expect(count && count < MANY, "no limit reached");
	expect(err == ENOSPC || err == ENOMEM, "another error");
	/* What has been allocated still works. */
	expect(!map(&vfio, 1UL << 30, mem, PAGE, MAP_RW), "map");
	expect(unmap(&vfio, 1UL << 30, PAGE) == (__s64)PAGE, "unmap");
	expect(!give_contexts(&vfio, ids, count), "IOMMU_DESTROY: %s", strerror(errno));
	again = take_contexts(&vfio, ids, &err);
	expect(again == count, "%u contexts the second time", again);
	expect(!give_contexts(&vfio, ids, again), "IOMMU_DESTROY: %s", strerror(errno));
	close_device(&vfio);
	munmap(mem, PAGE);
	return 0;
}

/* Far enough from each other that each needs tables of its own. */
static __u64 table_iova(unsigned int number)
{
	return (1ULL << 40) + ((__u64)number << 30);
}

/* Maps as many pages at such addresses as fit, and returns their number. */
static unsigned int take_tables(struct vfio *vfio, void *mem, int *err)
{
	unsigned int count;

	*err = 0;
	for (count = 0; count < MANY; count++) {
		*err = map(vfio, table_iova(count), mem, PAGE, MAP_RW);
		if (*err)
			break;
	}
	return count;
}

static int give_tables(struct vfio *vfio, unsigned int count)
{
	while (count--) {
		if (unmap(vfio, table_iova(count), PAGE) != (__s64)PAGE)
			return -EIO;
	}
	return 0;
}

static int pool_runs_out(bool legacy)
{
	unsigned int count, again;
	struct vfio vfio;
	void *mem = pages(PAGE);
	int err;

	expect(mem, "no memory");
	expect(!open_device(&vfio, legacy, device), "opening the device");
	count = take_tables(&vfio, mem, &err);
	printf("    # %u pages 1 GiB apart, then: %s\n", count, strerror(-err));
	if (!getenv("NO_POOL")) {
		expect(count && count < MANY, "no limit reached");
		expect(err == -ENOMEM, "another error");
	} else {
		expect(count == MANY, "there is no pool that could run out");
	}
	expect(!give_tables(&vfio, count), "unmap");
	again = take_tables(&vfio, mem, &err);
	/* Empty tables of a level that is still in use may stay with the context. */
	expect(again >= count, "%u pages the second time", again);
	expect(!give_tables(&vfio, again), "unmap");
	close_device(&vfio);
	munmap(mem, PAGE);
	return 0;
}

static int pool_iommufd(void)
{
	return pool_runs_out(false);
}

static int pool_container(void)
{
	return pool_runs_out(true);
}

static int step(const char *what)
{
	printf("%s\n", what);
	while (getchar() != '\n') {
		if (feof(stdin))
			return fail("stdin");
	}
	return 0;
}

#define LARGE	(64UL << 20)
#define SPARE	8U

/* There is only enough space for the tables of a part of it. */
static int runs_out_in_the_middle(bool legacy)
{
	const __u64 iova = (1ULL << 45) + PAGE;
	void *mem = pages(LARGE), *page = pages(PAGE);
	struct held first, before;
	unsigned int count;
	struct vfio vfio;
	int err;

	expect(mem && page, "no memory");
	expect(!open_device(&vfio, legacy, device), "opening the device");
	if (look(&first))
		return 1;
	count = take_tables(&vfio, page, &err);
	expect(err == -ENOMEM && count > SPARE, "%u pages 1 GiB apart, then %d", count, err);
	for (unsigned int i = 0; i < SPARE; i++)
		expect(unmap(&vfio, table_iova(--count), PAGE) == (__s64)PAGE, "unmap");
	if (look(&before))
		return 1;
	/* In the first round, Xen may still keep empty tables until they are needed. */
	for (int round = 0; round < 2; round++) {
		if (round && step("full"))
			return 1;
		err = map(&vfio, iova, mem, LARGE, MAP_RW);
		expect(err == -ENOMEM, "mapping %lu MiB: %d", LARGE >> 20, err);
	}
	if (as_before(&before) || step("failed"))
		return 1;
	/* Any part of it fits, since nothing is left mapped. */
	for (__u64 offset = 0; offset < LARGE; offset += LARGE / 16) {
		expect(!map(&vfio, iova + offset, page, PAGE, MAP_RW), "map at %#llx", offset);
		expect(unmap(&vfio, iova + offset, PAGE) == (__s64)PAGE, "unmap");
	}
	expect(!give_tables(&vfio, count), "unmap");
	/* With all the tables available, it fits. */
	err = map(&vfio, iova, mem, LARGE, MAP_RW);
	expect(!err, "mapping %lu MiB: %d", LARGE >> 20, err);
	expect(unmap(&vfio, iova, LARGE) == (__s64)LARGE, "unmap");
	if (as_before(&first))
		return 1;
	close_device(&vfio);
	munmap(mem, LARGE);
	munmap(page, PAGE);
	return 0;
}

static const struct {
	const char *name;
	int (*run)(void);
} cases[] = {
	{ "memlock_iommufd", memlock_iommufd },
	{ "memlock_container", memlock_container },
	{ "contexts_run_out", contexts_run_out },
	{ "pool_runs_out_iommufd", pool_iommufd },
	{ "pool_runs_out_container", pool_container },
};

#define NR_CASES (sizeof(cases) / sizeof(*cases))

int main(int argc, char **argv)
{
	int failed = 0;

	if (argc < 2 || argc > 3 ||
	    (argc == 3 && strcmp(argv[2], "iommufd") && strcmp(argv[2], "container"))) {
		fprintf(stderr, "usage: vfio-limits DEVICE [iommufd|container]\n");
		return 2;
	}
	device = argv[1];
	setlinebuf(stdout);
	if (argc == 3)
		return runs_out_in_the_middle(!strcmp(argv[2], "container"));
	printf("    KTAP version 1\n    1..%zu\n", NR_CASES);
	for (size_t i = 0; i < NR_CASES; i++) {
		int bad = cases[i].run();

		printf("    %sok %zu %s\n", bad ? "not " : "", i + 1, cases[i].name);
		failed += bad;
	}
	return failed != 0;
}
