// SPDX-License-Identifier: GPL-2.0-only
/*
 * iommu-bench: measure the cost of mapping for DMA
 *
 *   iommu-bench kernel                 loops of xen_iommu_bench.ko
 *   iommu-bench sizes                  iommu_map() of 1 to 65536 pages
 *   iommu-bench threads                the same work on each of one and of two CPUs
 *   iommu-bench vfio BDF [MIB...]      VFIO type1 and iommufd, a device on vfio-pci
 *   iommu-bench nvme DEVICE            reads
 *   iommu-bench run NAME OPS COMMAND   another program, which does OPS operations
 *
 * Prints a line for each loop, with its total cost:
 *
 *   # bench NAME ops=N ns=N rounds=N [counters of xen-iommu that it changed]
 *   # bench NAME error=ERRNO
 *
 * Each loop (or the last of several rounds) is between two instructions that do nothing
 * and are rarely used, so that an emulator can count what runs between them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <linux/io_uring.h>
#include <linux/iommufd.h>
#include <linux/vfio.h>

#define RUN	"/sys/kernel/debug/xen_iommu_bench/run"
#define LAST	"/sys/kernel/debug/xen_iommu_bench/last"
#define STATS	"/sys/kernel/debug/iommu/xen"

#define PAGE		4096UL
#define HUGE		(2UL << 20)
#define MAX_STATS	1	/* the number of hypercalls is the first */

struct stats {
	unsigned int nr;
	struct {
		char name[24];
		unsigned long long value;
	} stat[MAX_STATS];
};

static int errors;

static void mark_begin(void)
{
#ifdef __x86_64__
	asm volatile("xchg %%bx, %%bx" ::: "memory");
#endif
}

static void mark_end(void)
{
#ifdef __x86_64__
	asm volatile("xchg %%cx, %%cx" ::: "memory");
#endif
}

static uint64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

static void read_stats(struct stats *s)
{
	FILE *file = fopen(STATS, "r");

	s->nr = 0;
	if (!file)
		return;
	while (s->nr < MAX_STATS &&
	       fscanf(file, "%23s %llu", s->stat[s->nr].name, &s->stat[s->nr].value) == 2)
		s->nr++;
	fclose(file);
}

static long meminfo(const char *path, const char *name)
{
	FILE *file = fopen(path, "r");
	char line[128];
	long value = -1;

	while (file && fgets(line, sizeof(line), file)) {
		size_t len = strlen(name);

		if (!strncmp(line, name, len) && (line[len] == ' ' || line[len] == ':'))
			value = strtol(line + len + 1, NULL, 10);
	}
	if (file)
		fclose(file);
	return value;
}

/*
 * Parses the output of Xen's debug key: free pages in the pool, and the number of IOTLB
 * flushes. Returns false if there is none.
 */
static bool xen_counts(long *pages, unsigned long *flushes)
{
	FILE *out = popen("i=$(xen-dmesg -e 2>/dev/null) && xen-dmesg -k o && xen-dmesg $i", "r");
	char line[256], *found;
	bool there = false;

	while (out && fgets(line, sizeof(line), out)) {
		found = strstr(line, " contexts, ");
		if (strstr(line, "PV-IOMMU") && found)
			sscanf(found, " contexts, %ld of", pages);
		found = strstr(line, "  flushes: ");
		if (found && sscanf(found, "  flushes: %lu", flushes) == 1)
			there = true;
	}
	if (out)
		pclose(out);
	return there;
}

/* Adds what has changed since @from. */
static void add_stats(struct stats *sum, const struct stats *from)
{
	struct stats to;

	read_stats(&to);
	for (unsigned int i = 0; i < to.nr && from->nr == to.nr; i++)
		sum->stat[i].value += to.stat[i].value - from->stat[i].value;
}

static void report_sum(const char *name, unsigned long ops, uint64_t ns, unsigned int rounds,
		       const struct stats *sum)
{
	printf("# bench %s ops=%lu ns=%llu rounds=%u", name, ops, (unsigned long long)ns, rounds);
	for (unsigned int i = 0; i < sum->nr; i++)
		if (sum->stat[i].value)
			printf(" %s=%llu", sum->stat[i].name, sum->stat[i].value);
	printf("\n");
	fflush(stdout);
}

static void clear_stats(struct stats *s)
{
	read_stats(s);
	for (unsigned int i = 0; i < s->nr; i++)
		s->stat[i].value = 0;
}

static void report(const char *name, unsigned long ops, uint64_t ns, const struct stats *from)
{
	struct stats sum;

	clear_stats(&sum);
	add_stats(&sum, from);
	report_sum(name, ops, ns, 1, &sum);
}

static void report_error(const char *name, int err)
{
	printf("# bench %s error=%d\n", name, err);
	fflush(stdout);
	errors++;
}

/*
 * Loops in the kernel
 */

static int run_fd;

/* Runs one line in the module; returns its nanoseconds, or a negative error. */
static int64_t run_line(const char *line, bool mark)
{
	char text[32] = "";
	ssize_t ret;
	int fd;

	if (mark)
		mark_begin();
	ret = write(run_fd, line, strlen(line));
	if (mark)
		mark_end();
	if (ret < 0)
		return -errno;
	fd = open(LAST, O_RDONLY);
	if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
		return -EIO;
	close(fd);
	return strtoll(text, NULL, 10);
}

static void measure(const char *name, const char *line, unsigned long ops)
{
	struct stats from;
	int64_t ns;

	read_stats(&from);
	ns = run_line(line, true);
	if (ns < 0)
		report_error(name, -ns);
	else
		report(name, ops, ns, &from);
}

/*
 * Maps and unmaps in rounds: in lazy mode, some of an unmap's work is done together
 * with that of others. Two extra rounds at the beginning fill the caches of the IOVA
 * allocator. The last round is marked, and its flushes are counted.
 */
static bool measure_pair(const char *what, unsigned long size, unsigned long ops,
			 unsigned int rounds)
{
	static const char *const ways[] = { "map", "unmap" };
	struct stats from, sum[2];
	unsigned long flushes[3];
	bool flushes_known = false;
	uint64_t ns[2] = {};
	char line[40], name[40];
	long pool;

	snprintf(line, sizeof(line), "%s %lu %lu", what, size, ops);
	for (int i = 0; i < 2; i++)
		if (write(run_fd, line, strlen(line)) < 0 || write(run_fd, "unmap", 5) < 0) {
			snprintf(name, sizeof(name), "map-%s-%lu", what, size);
			report_error(name, errno);
			return false;
		}

	for (int way = 0; way < 2; way++)
		clear_stats(&sum[way]);
	for (unsigned int i = 0; i < rounds; i++) {
		bool last = i == rounds - 1;

		if (last)
			flushes_known = xen_counts(&pool, &flushes[0]);
		for (int way = 0; way < 2; way++) {
			int64_t took;

			read_stats(&from);
			took = run_line(way ? "unmap" : line, last);
			if (took < 0) {
				snprintf(name, sizeof(name), "%s-%s-%lu", ways[way], what, size);
				report_error(name, -took);
				return false;
			}
			ns[way] += took;
			add_stats(&sum[way], &from);
			if (last && flushes_known)
				xen_counts(&pool, &flushes[way + 1]);
		}
	}

	for (int way = 0; way < 2; way++) {
		snprintf(name, sizeof(name), "%s-%s-%lu", ways[way], what, size);
		report_sum(name, ops * rounds, ns[way], rounds, &sum[way]);
		if (flushes_known)
			printf("# bench flushes-%s ops=%lu count=%lu\n", name, ops,
			       flushes[way + 1] - flushes[way]);
	}
	return true;
}

static int open_run(void)
{
	run_fd = open(RUN, O_WRONLY);
	if (run_fd < 0)
		perror(RUN);
	return run_fd < 0 ? 1 : 0;
}

static int bench_kernel(bool on_xen)
{
	static const struct {
		const char *what;
		unsigned long size, ops;
	} cases[] = {
		{ "single", 1, 256 },
		{ "single", 16, 256 },
		{ "single", 512, 64 },
		{ "sg", 16, 64 },
		{ "sg", 64, 64 },
		{ "sg", 256, 16 },
		{ }
	};
	int64_t ret;

	if (open_run())
		return 1;
	measure("clock", "clock 256", 256);
	if (on_xen)
		measure("noop", "noop 256", 256);
	for (unsigned int i = 0; cases[i].what; i++)
		measure_pair(cases[i].what, cases[i].size, cases[i].ops, 8);
	/* The first one makes allocations that the others can reuse. */
	ret = run_line("context 1", false);
	if (ret >= 0)
		measure("context", "context 16", 16);
	else if (ret != -ENODEV)
		report_error("context", -ret);
	return 0;
}

static int bench_sizes(void)
{
	if (open_run())
		return 1;
	for (unsigned long pages = 1; pages <= 65536; pages *= 2)
		if (!measure_pair("domain", pages, pages > 4096 ? 4 : 32, 1))
			return 0;
	/* 1 GiB */
	measure_pair("domain", 262144, 1, 1);
	return 0;
}

/* In alternating rounds, so that other load on the host affects both. */
static int bench_threads(void)
{
	struct stats none = {};
	uint64_t ns[2] = {};
	char line[32], name[32];

	if (open_run())
		return 1;
	for (unsigned int i = 0; i < 9; i++)
		for (unsigned int t = 1; t <= 2; t++) {
			int64_t took;

			snprintf(line, sizeof(line), "threads %u 1000", t);
			took = run_line(line, false);
			if (took < 0) {
				report_error("threads", -took);
				return 0;
			}
			/* The first round warms up. */
			ns[t - 1] += i ? took : 0;
		}
	for (unsigned int t = 1; t <= 2; t++) {
		snprintf(name, sizeof(name), "threads-%u", t);
		report_sum(name, 8000, ns[t - 1], 8, &none);
	}
	return 0;
}

/*
 * VFIO
 */

struct vfio {
	bool legacy;
	int device, container, group, iommufd;
	__u32 ioas;
};

static int open_type1(struct vfio *v, const char *bdf)
{
	char path[PATH_MAX], link[PATH_MAX] = "";

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/iommu_group", bdf);
	if (readlink(path, link, sizeof(link) - 1) < 0)
		return -1;
	snprintf(path, sizeof(path), "/dev/vfio%s", strrchr(link, '/'));
	v->group = open(path, O_RDWR);
	v->container = open("/dev/vfio/vfio", O_RDWR);
	if (v->group < 0 || v->container < 0 ||
	    ioctl(v->group, VFIO_GROUP_SET_CONTAINER, &v->container) ||
	    ioctl(v->container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU))
		return -1;
	v->device = ioctl(v->group, VFIO_GROUP_GET_DEVICE_FD, bdf);
	return v->device < 0 ? -1 : 0;
}

static int open_iommufd(struct vfio *v, const char *bdf)
{
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind) };
	struct vfio_device_attach_iommufd_pt attach = { .argsz = sizeof(attach) };
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
	char path[PATH_MAX];

	v->device = -1;
	for (int i = 0; i < 64 && v->device < 0; i++) {
		snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vfio-dev/vfio%d", bdf, i);
		if (access(path, F_OK))
			continue;
		snprintf(path, sizeof(path), "/dev/vfio/devices/vfio%d", i);
		v->device = open(path, O_RDWR);
	}
	v->iommufd = open("/dev/iommu", O_RDWR);
	bind.iommufd = v->iommufd;
	if (v->device < 0 || v->iommufd < 0 ||
	    ioctl(v->device, VFIO_DEVICE_BIND_IOMMUFD, &bind) ||
	    ioctl(v->iommufd, IOMMU_IOAS_ALLOC, &alloc))
		return -1;
	v->ioas = alloc.out_ioas_id;
	attach.pt_id = v->ioas;
	return ioctl(v->device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach) ? -1 : 0;
}

static void close_vfio(struct vfio *v)
{
	close(v->device);
	if (v->legacy) {
		close(v->group);
		close(v->container);
	} else {
		close(v->iommufd);
	}
}

#define VFIO_IOVA 0x1000000000ULL

static int map(struct vfio *v, void *mem, size_t size)
{
	struct vfio_iommu_type1_dma_map old = {
		.argsz = sizeof(old),
		.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (uintptr_t)mem,
		.iova = VFIO_IOVA,
		.size = size,
	};
	struct iommu_ioas_map new = {
		.size = sizeof(new),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE |
			 IOMMU_IOAS_MAP_WRITEABLE,
		.ioas_id = v->ioas,
		.user_va = (uintptr_t)mem,
		.iova = VFIO_IOVA,
		.length = size,
	};

	return v->legacy ? ioctl(v->container, VFIO_IOMMU_MAP_DMA, &old) :
			   ioctl(v->iommufd, IOMMU_IOAS_MAP, &new);
}

static int unmap(struct vfio *v, size_t size)
{
	struct vfio_iommu_type1_dma_unmap old = {
		.argsz = sizeof(old),
		.iova = VFIO_IOVA,
		.size = size,
	};
	struct iommu_ioas_unmap new = {
		.size = sizeof(new),
		.ioas_id = v->ioas,
		.iova = VFIO_IOVA,
		.length = size,
	};

	return v->legacy ? ioctl(v->container, VFIO_IOMMU_UNMAP_DMA, &old) :
			   ioctl(v->iommufd, IOMMU_IOAS_UNMAP, &new);
}

/* Allocates populated memory, aligned for huge pages. */
static void *get_memory(size_t size, bool huge)
{
	char *area = mmap(NULL, size + HUGE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	size_t before;

	if (area == MAP_FAILED)
		return NULL;
	before = -(uintptr_t)area & (HUGE - 1);
	munmap(area + before + size, HUGE - before);
	if (before)
		munmap(area, before);
	area += before;
	madvise(area, size, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	for (size_t i = 0; i < size; i += PAGE)
		area[i] = 1;
	return area;
}

static void measure_vfio(struct vfio *v, unsigned long mib, bool huge)
{
	const char *door = v->legacy ? "type1" : "iommufd";
	unsigned long flushes[3];
	size_t size = mib << 20;
	bool on_xen, unmapped;
	long tables, slab, pool[2];
	struct stats from;
	uint64_t start;
	char name[48];
	char *mem;
	int ret;

	mem = get_memory(size, huge);
	if (!mem) {
		report_error(door, errno);
		return;
	}

	tables = meminfo("/proc/vmstat", "nr_iommu_pages");
	slab = meminfo("/proc/meminfo", "Slab");
	on_xen = xen_counts(&pool[0], &flushes[0]);
	read_stats(&from);
	start = now();
	mark_begin();
	ret = map(v, mem, size);
	mark_end();
	start = now() - start;
	snprintf(name, sizeof(name), "map-%s-%lu-%s", door, mib, huge ? "huge" : "small");
	if (ret) {
		report_error(name, errno);
		goto out;
	}
	report(name, 1, start, &from);
	printf("# bench memory-%s-%lu-%s iommu_pages=%ld slab_kib=%ld", door, mib,
	       huge ? "huge" : "small", meminfo("/proc/vmstat", "nr_iommu_pages") - tables,
	       meminfo("/proc/meminfo", "Slab") - slab);
	on_xen = on_xen && xen_counts(&pool[1], &flushes[1]);
	if (on_xen)
		printf(" pool_pages=%ld", pool[0] - pool[1]);
	printf("\n");
	fflush(stdout);

	read_stats(&from);
	start = now();
	mark_begin();
	ret = unmap(v, size);
	mark_end();
	start = now() - start;
	snprintf(name, sizeof(name), "unmap-%s-%lu-%s", door, mib, huge ? "huge" : "small");
	unmapped = !ret;
	if (unmapped)
		report(name, 1, start, &from);
	else
		report_error(name, errno);
	if (on_xen && unmapped && xen_counts(&pool[1], &flushes[2]))
		for (int i = 0; i < 2; i++)
			printf("# bench flushes-%smap-%s-%lu-%s ops=1 count=%lu\n", i ? "un" : "",
			       door, mib, huge ? "huge" : "small", flushes[i + 1] - flushes[i]);
out:
	munmap(mem, size);
}

/*
 * Only pins the same memory, to measure the part of the above that is not the
 * IOMMU's. Registering it with io_uring does that.
 */
static void measure_pin(unsigned long mib, bool huge)
{
	struct io_uring_params params = {};
	struct iovec iov = { .iov_len = mib << 20 };
	int ring = syscall(__NR_io_uring_setup, 1, &params);
	struct stats none = {};
	uint64_t start;
	char name[48];
	int ret = -1;

	iov.iov_base = get_memory(iov.iov_len, huge);
	if (ring < 0 || !iov.iov_base) {
		report_error("pin", errno);
		return;
	}
	for (int way = 0; way < 2; way++) {
		start = now();
		mark_begin();
		ret = syscall(__NR_io_uring_register, ring,
			      way ? IORING_UNREGISTER_BUFFERS : IORING_REGISTER_BUFFERS,
			      way ? NULL : &iov, !way);
		mark_end();
		start = now() - start;
		snprintf(name, sizeof(name), "%smap-pin-%lu-%s", way ? "un" : "", mib,
			 huge ? "huge" : "small");
		if (ret) {
			report_error(name, errno);
			break;
		}
		report_sum(name, 1, start, 1, &none);
	}
	close(ring);
	munmap(iov.iov_base, iov.iov_len);
}

static int bench_vfio(const char *bdf, char **sizes)
{
	for (char **mib = sizes; *mib; mib++)
		for (int huge = 1; huge >= 0; huge--)
			measure_pin(strtoul(*mib, NULL, 10), huge);
	for (int door = 0; door < 2; door++) {
		struct vfio v = { .legacy = !door };

		if (v.legacy ? open_type1(&v, bdf) : open_iommufd(&v, bdf)) {
			report_error(v.legacy ? "open-type1" : "open-iommufd", errno);
			continue;
		}
		for (char **mib = sizes; *mib; mib++)
			for (int huge = 1; huge >= 0; huge--)
				measure_vfio(&v, strtoul(*mib, NULL, 10), huge);
		close_vfio(&v);
	}
	return 0;
}

/*
 * NVMe: one read at a time
 */

static void measure_nvme(int fd, const char *name, size_t size, unsigned long ops, void *buf,
			 bool random)
{
	uint64_t blocks = (32UL << 20) / size, state = 1;
	struct stats from;
	uint64_t start;

	read_stats(&from);
	start = now();
	mark_begin();
	for (unsigned long i = 0; i < ops; i++) {
		uint64_t block = i;

		/* The same sequence each time. */
		state = state * 6364136223846793005ULL + 1442695040888963407ULL;
		if (random)
			block = state >> 33;
		if (pread(fd, buf, size, block % blocks * size) != (ssize_t)size) {
			mark_end();
			report_error(name, errno ?: EIO);
			return;
		}
	}
	mark_end();
	report(name, ops, now() - start, &from);
}

static int bench_nvme(const char *path)
{
	int fd = open(path, O_RDONLY | O_DIRECT);
	void *buf;

	if (fd < 0 || posix_memalign(&buf, 1 << 17, 1 << 17)) {
		perror(path);
		return 1;
	}
	memset(buf, 1, 1 << 17);
	measure_nvme(fd, "nvme-random-4k", 4096, 256, buf, true);
	measure_nvme(fd, "nvme-sequential-128k", 1 << 17, 128, buf, false);
	return 0;
}

static int bench_run(const char *name, unsigned long ops, char **command)
{
	struct stats from;
	uint64_t start;
	int status = -1;
	pid_t child;

	read_stats(&from);
	start = now();
	mark_begin();
	child = fork();
	if (!child) {
		execvp(command[0], command);
		_exit(127);
	}
	if (child > 0)
		waitpid(child, &status, 0);
	mark_end();
	if (status)
		report_error(name, EIO);
	else
		report(name, ops, now() - start, &from);
	return 0;
}

int main(int argc, char **argv)
{
	int ret = 2;

	if (argc >= 2 && !strcmp(argv[1], "kernel"))
		ret = bench_kernel(!access("/sys/hypervisor/type", F_OK));
	else if (argc >= 2 && !strcmp(argv[1], "sizes"))
		ret = bench_sizes();
	else if (argc >= 2 && !strcmp(argv[1], "threads"))
		ret = bench_threads();
	else if (argc >= 4 && !strcmp(argv[1], "vfio"))
		ret = bench_vfio(argv[2], argv + 3);
	else if (argc >= 3 && !strcmp(argv[1], "nvme"))
		ret = bench_nvme(argv[2]);
	else if (argc >= 5 && !strcmp(argv[1], "run"))
		ret = bench_run(argv[2], strtoul(argv[3], NULL, 10), argv + 4);
	else
		fprintf(stderr,
			"usage: iommu-bench kernel|sizes|threads|vfio BDF MIB...|nvme DEVICE|run NAME OPS COMMAND\n");
	return ret;
}
