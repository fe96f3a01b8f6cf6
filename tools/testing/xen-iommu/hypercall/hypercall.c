// SPDX-License-Identifier: GPL-2.0
/*
 * Test and fuzz the PV-IOMMU hypercall itself, from dom0's userspace through
 * /dev/xen/privcmd, without an IOMMU driver. KTAP on stdout.
 *
 * usage: hypercall [-s seed] [-n fuzz calls per thread] [-t threads] [-c cycles]
 *        hypercall -q          print the capabilities
 *        hypercall -g          only map a page of 1 GiB, which dom0 must have
 *        hypercall -f          only map, to watch the IOMMU's commands
 *
 * The mapped frames do not belong to Linux: they are allocated from Xen and
 * returned at the end, so that a leaked page reference shows in the count of
 * free pages. The size of Xen's page table pool is found by exhausting it.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MEMORY_OP		12
#define GRANT_TABLE_OP		20
#define MMUEXT_OP		26
#define SYSCTL			35
#define DOMCTL			36
#define IOMMU_OP		43

#define DOMID_SELF		0x7ff0
#define DOMID_IO		0x7ff1

struct privcmd_hypercall {
	uint64_t op, arg[5];
};

#define IOCTL_PRIVCMD_HYPERCALL	_IOC(_IOC_NONE, 'P', 0, sizeof(struct privcmd_hypercall))

struct privcmd_mmap_resource {
	uint16_t dom;
	uint32_t type, id, idx;
	uint64_t num, addr;
};

#define IOCTL_PRIVCMD_MMAP_RESOURCE	_IOC(_IOC_NONE, 'P', 7, sizeof(struct privcmd_mmap_resource))

/* The ABI, deliberately written down a second time. */
enum {
	NOOP, QUERY, INIT, ALLOC, FREE, REATTACH, MAP, UNMAP, REMOTE,
	ALLOC_NESTED = 9, FLUSH_NESTED = 10, QUERY_MORE = 36,
	FLUSH = 13, MAP_RANGE = 32, UNMAP_RANGE = 33, MAP_RUNS = 34, UNMAP_RUNS = 35,
};

struct caps { uint64_t max_iova; uint32_t flags, pgsizes, max_pasid; uint16_t max_ctx, pad; };
struct init { uint32_t max_ctx, order; };
/* The context has 16 bits in all of them. The remaining bits must be zero. */
struct alloc { uint32_t ctx, flags; };
struct freectx { uint32_t ctx, flags; };
struct map { uint64_t ctx, gfn, dfn; uint32_t flags, pgsize, nr, mapped; };
struct unmap { uint64_t ctx, dfn; uint32_t pgsize, nr, unmapped, flags; };
struct flush { uint64_t ctx, dfn; uint32_t pgsize, nr; };
struct reattach { uint16_t ctx, seg; uint8_t bus, devfn; uint32_t pasid; };
struct run { uint64_t gfn, dfn, nr; };
struct nested { uint64_t ctx, root, flags, desc; };
struct format { uint64_t pgsizes; uint32_t flags; uint8_t in, out; uint16_t pad; };

_Static_assert(sizeof(struct caps) == 24 && sizeof(struct map) == 40, "layout");
_Static_assert(sizeof(struct unmap) == 32 && sizeof(struct flush) == 24, "layout");
_Static_assert(sizeof(struct reattach) == 12 && sizeof(struct run) == 24, "layout");

#define RD		1
#define WR		2
#define NO_FLUSH	8
#define UNMAP_NO_FLUSH	1
#define REATTACH_DEFAULT 1
#define ALLOC_IDENTITY	1

#define CAP_NESTED		(1 << 2)
#define CAP_IDENTITY		(1 << 4)
#define CAP_DEFERRED_UNMAP	(1 << 17)
#define CAP_RUNS		(1 << 18)

#define SZ_4K		0x1000u
#define SZ_2M		0x200000u
#define SZ_1G		0x40000000u
#define FRAMES_ORDER	11
#define NR_FRAMES	(1 << FRAMES_ORDER)
#define NR_LARGE	(NR_FRAMES / 512)	/* pieces of 2 MiB */

static int privcmd;
static struct caps caps;
static uint64_t frame[NR_FRAMES];
static bool pv;
static struct reattach edu;
static bool have_edu;
static uint64_t edu_bar;
static unsigned int test_nr, failed;
static bool case_failed;

static long hypercall5(unsigned int op, unsigned long a0, unsigned long a1, unsigned long a2,
		       unsigned long a3, unsigned long a4)
{
	struct privcmd_hypercall call = { .op = op, .arg = { a0, a1, a2, a3, a4 } };
	int ret = ioctl(privcmd, IOCTL_PRIVCMD_HYPERCALL, &call);

	return ret < 0 ? -errno : ret;
}

static long hypercall4(unsigned int op, unsigned long a0, unsigned long a1, unsigned long a2,
		       unsigned long a3)
{
	return hypercall5(op, a0, a1, a2, a3, 0);
}

static long hypercall(unsigned int op, unsigned long a0, unsigned long a1)
{
	return hypercall4(op, a0, a1, 0, 0);
}

static long iommu(unsigned int subop, void *arg)
{
	return hypercall(IOMMU_OP, subop, (unsigned long)arg);
}

/* Calls with their arguments in registers. */
static long iommu_regs(unsigned int subop, unsigned int ctx, unsigned int flags, unsigned long a2,
		       unsigned long a3, unsigned long a4)
{
	return hypercall5(IOMMU_OP, subop, ctx | (unsigned long)flags << 32, a2, a3, a4);
}

/* All of these programs start with this. */
static void start(void)
{
	setlinebuf(stdout);
	mlockall(MCL_CURRENT | MCL_FUTURE);
	privcmd = open("/dev/xen/privcmd", O_RDWR | O_CLOEXEC);
}

/* Sets pv. */
static bool find_guest_type(void)
{
	char type[16] = "";
	FILE *file = fopen("/sys/hypervisor/guest_type", "r");

	if (!file || !fgets(type, sizeof(type), file))
		return false;
	fclose(file);
	pv = !strncmp(type, "PV\n", 3);
	return true;
}

/*
 * Memory for lists of runs, and its address as the hypervisor expects it: guest physical
 * and contiguous, except in a PV domain.
 */
static struct run *lists;
static uint64_t lists_at;

static int get_lists(void)
{
	uint64_t entry;
	int fd;

	if (pv) {
		lists = calloc(4096, sizeof(*lists));
		lists_at = (unsigned long)lists;
		return lists ? 0 : -ENOMEM;
	}

	fd = open("/proc/sys/vm/nr_hugepages", O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, "1", 1) != 1)
		return -errno;
	close(fd);
	lists = mmap(NULL, SZ_2M, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_POPULATE, -1, 0);
	if (lists == MAP_FAILED)
		return -errno;
	fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (fd < 0 || pread(fd, &entry, 8, (unsigned long)lists / SZ_4K * 8) != 8)
		return -EIO;
	close(fd);
	lists_at = (entry & ((1ull << 55) - 1)) * SZ_4K;
	return lists_at ? 0 : -EPERM;
}

static uint64_t list_at(const struct run *run)
{
	return lists_at + ((unsigned long)run - (unsigned long)lists);
}

/* The same for all frames: continues after preemption. */
static long iommu_runs(unsigned int subop, unsigned int ctx, unsigned int flags, struct run *run,
		       unsigned int nr, unsigned long *done)
{
	unsigned long all = 0;

	for (unsigned int i = 0; i < nr; i++)
		all += run[i].nr;
	*done = 0;
	while (*done < all) {
		long ret = iommu_regs(subop, ctx, flags, list_at(run), nr, *done);

		if (ret < 0)
			return ret;
		if ((unsigned long)ret <= *done || (unsigned long)ret > all)
			return -EIO;
		*done = ret;
	}
	return 0;
}

#define want(cond, fmt, ...) do {							\
	if (!(cond)) {									\
		printf("# %s:%d: %s: " fmt "\n", __func__, __LINE__, #cond, ##__VA_ARGS__);	\
		case_failed = true;							\
	}										\
} while (0)

#define want_eq(expr, value) do {							\
	long _got = (expr), _want = (value);						\
	if (_got != _want) {								\
		printf("# %s:%d: %s is %ld, not %ld\n", __func__, __LINE__, #expr, _got, _want); \
		case_failed = true;							\
	}										\
} while (0)

static void report(const char *name)
{
	printf("%s %u %s\n", case_failed ? "not ok" : "ok", ++test_nr, name);
	fflush(stdout);
	failed += case_failed;
	case_failed = false;
}

/* Memory of Xen's */

struct reservation {
	uint64_t *extents;
	unsigned long nr;
	unsigned int order, flags;
	uint16_t domid;
};

static long current_pages(void)
{
	uint16_t self = DOMID_SELF;

	return hypercall(MEMORY_OP, 3, (unsigned long)&self);
}

static long free_pages(void)
{
	/* XEN_SYSCTL_physinfo, interface version 0x15 */
	struct {
		uint32_t cmd, version;
		union {
			struct {
				uint32_t threads, cores, nr_cpus, max_cpu, nr_nodes, max_node, khz, caps,
					 arch_caps, pad;
				uint64_t total, free;
			} physinfo;
			uint8_t pad[128];
		};
	} op = { .cmd = 3, .version = 0x15 };
	long ret = hypercall(SYSCTL, (unsigned long)&op, 0);

	return ret < 0 ? ret : (long)op.physinfo.free;
}

/* PV gets machine frames; PVH chooses guest frames that nothing else uses. */
static int get_frames(void)
{
	uint64_t first = 1ul << 24;
	struct reservation r = { &first, 1, FRAMES_ORDER, 0, DOMID_SELF };
	long ret = hypercall(MEMORY_OP, pv ? 0 : 6, (unsigned long)&r);

	if (ret != 1) {
		printf("# cannot get memory: %ld\n", ret);
		return -1;
	}
	for (int i = 0; i < NR_FRAMES; i++)
		frame[i] = first + i;
	return 0;
}

static long put_frames(void)
{
	struct reservation r = { frame, NR_FRAMES, 0, 0, DOMID_SELF };

	return hypercall(MEMORY_OP, 1, (unsigned long)&r);
}

/* Shorthands */

static long map(unsigned int ctx, uint64_t dfn, uint64_t gfn, unsigned int nr, unsigned int flags,
		unsigned int pgsize, unsigned int *done)
{
	struct map op = { .ctx = ctx, .gfn = gfn, .dfn = dfn, .flags = flags, .pgsize = pgsize, .nr = nr };
	long ret = iommu(MAP, &op);

	*done = op.mapped;
	return ret;
}

static long unmap(unsigned int ctx, uint64_t dfn, unsigned int nr, unsigned int flags,
		  unsigned int pgsize, unsigned int *done)
{
	struct unmap op = { .ctx = ctx, .dfn = dfn, .pgsize = pgsize, .nr = nr, .flags = flags };
	long ret = iommu(UNMAP, &op);

	*done = op.unmapped;
	return ret;
}

static int new_ctx(unsigned int flags)
{
	struct alloc op = { .ctx = 0xdead, .flags = flags };
	long ret = iommu(ALLOC, &op);

	return ret < 0 ? ret : (int)op.ctx;
}

static long free_ctx(unsigned int ctx, unsigned int flags)
{
	struct freectx op = { ctx, flags };

	return iommu(FREE, &op);
}

static long move_edu(unsigned int ctx)
{
	struct reattach op = edu;

	op.ctx = ctx;
	return iommu(REATTACH, &op);
}

/* Returns how many tables a context can get, which is what the pool has. */
static long pool_free(void)
{
	int ctx = new_ctx(0);
	unsigned int done;
	long n = 0, ret = 0;

	if (ctx < 0)
		return ctx;
	while (!ret) {
		ret = map(ctx, (uint64_t)n << 9, frame[0], 1, RD, SZ_4K, &done);
		if (!ret && ++n > 1 << 20)
			break;
	}
	if (ret != -ENOMEM)
		printf("# pool_free: %ld at %ld\n", ret, n);
	ret = free_ctx(ctx, 0);
	return ret ?: n;
}

/* Cases */

static void test_basics(void)
{
	struct caps c;

	want_eq(iommu(NOOP, NULL), 0);
	want_eq(iommu(8, NULL), -EOPNOTSUPP);
	want_eq(iommu(11, NULL), -EOPNOTSUPP);
	want_eq(iommu(12, NULL), -EOPNOTSUPP);
	want_eq(iommu(31, NULL), -EOPNOTSUPP);
	want_eq(iommu(~0u, NULL), -EOPNOTSUPP);
	want_eq(iommu(QUERY | 1u << 31, &c), -EOPNOTSUPP);
	want_eq(iommu(QUERY, NULL), -EFAULT);
	memset(&c, 0xff, sizeof(c));
	want_eq(iommu(QUERY, &c), 0);
	want_eq(c.pad, 0);
	want_eq(c.max_pasid, 0);
	want(c.pgsizes & SZ_4K, "%#x", c.pgsizes);
	want(c.max_iova > 0xffffffff && ((c.max_iova + 1) & c.max_iova) == 0, "%#lx", (long)c.max_iova);
	printf("# max_iova %#lx flags %#x sizes %#x contexts %u\n", (long)c.max_iova, c.flags, c.pgsizes,
	       c.max_ctx);
	report("query");
}

static void test_init(void)
{
	struct caps c;
	struct init op = { 0, 10 };
	struct alloc a = {};

	iommu(QUERY, &c);
	if (c.max_ctx) {
		caps = c;
		printf("ok %u init # SKIP initialised already\n", ++test_nr);
		return;
	}

	want_eq(iommu(ALLOC, &a), -EACCES);
	want_eq(iommu(INIT, NULL), -EFAULT);
	want_eq(iommu(INIT, &op), -EINVAL);
	op = (struct init){ 0xffff, 0 };
	want_eq(iommu(INIT, &op), -EINVAL);
	op = (struct init){ 0x10000, 4 };
	want_eq(iommu(INIT, &op), -EINVAL);
	op = (struct init){ 16, 63 };
	want_eq(iommu(INIT, &op), -EINVAL);
	/* More than the machine has: fails, and can be retried. */
	op = (struct init){ 16, 18 };
	if (free_pages() < 1 << 18)
		want_eq(iommu(INIT, &op), -ENOMEM);
	op = (struct init){ 64, 10 };
	want_eq(iommu(INIT, &op), 0);
	want_eq(op.max_ctx, 64);
	want_eq(iommu(INIT, &op), -EACCES);
	iommu(QUERY, &caps);
	want_eq(caps.max_ctx, 64);
	report("init");
}

static void test_contexts(void)
{
	int ctx[5], n = 0, *all = calloc(caps.max_ctx + 1, sizeof(*all)), c;

	want_eq(free_ctx(0, 0), -EINVAL);
	want_eq(free_ctx(caps.max_ctx, 0), -EINVAL);
	want_eq(free_ctx(0xffff, 0), -EINVAL);
	want_eq(iommu(ALLOC, NULL), -EFAULT);
	want_eq(new_ctx(~ALLOC_IDENTITY), -EINVAL);
	for (int i = 0; i < 5; i++)
		want((ctx[i] = new_ctx(0)) > 0, "%d", ctx[i]);
	want_eq(free_ctx(ctx[2], 2), -EINVAL);
	want_eq(free_ctx(ctx[2], 0), 0);
	want_eq(free_ctx(ctx[2], 0), -EINVAL);
	want_eq(new_ctx(0), ctx[2]);
	for (int i = 0; i < 5; i++)
		want_eq(free_ctx(ctx[i], 0), 0);

	while ((c = new_ctx(0)) > 0 && n < caps.max_ctx)
		all[n++] = c;
	want(c == -ENOSPC || c == -ENOMEM, "%d", c);
	printf("# %d contexts, then %d\n", n, c);
	while (n--)
		want_eq(free_ctx(all[n], 0), 0);
	free(all);
	report("contexts");
}

static void test_map(void)
{
	uint64_t last = caps.max_iova >> 12;
	int ctx = new_ctx(0);
	unsigned int done;
	struct map op;

	want_eq(map(0, 5, frame[0], 1, RD, SZ_4K, &done), -EINVAL);
	want_eq(map(ctx, 5, frame[0], 1, 0, SZ_4K, &done), -EINVAL);
	want_eq(map(ctx, 5, frame[0], 1, RD | 0x100, SZ_4K, &done), -EINVAL);
	want_eq(map(ctx, 5, frame[0], 1, RD, 0, &done), -EINVAL);
	want_eq(map(ctx, 5, frame[0], 1, RD, 0x800, &done), -EINVAL);
	want_eq(map(ctx, 5, frame[0], 1, RD, 0x3000, &done), -EINVAL);
	want_eq(map(ctx, 5, frame[0], 1, RD, 1u << 31, &done), -EINVAL);
	want_eq(map(ctx, last + 1, frame[0], 1, RD, SZ_4K, &done), -ERANGE);
	want_eq(map(ctx, last, frame[0], 2, RD, SZ_4K, &done), -ERANGE);
	want_eq(map(ctx, ~0ul, frame[0], 2, RD, SZ_4K, &done), -ERANGE);
	want_eq(map(ctx, 0, ~0ul, 1, RD, SZ_4K, &done), -ENOENT);
	want_eq(map(ctx, 0, 1ul << 51, 1, RD, SZ_4K, &done), -ENOENT);
	want_eq(map(ctx, 5, frame[0], 0, RD, SZ_4K, &done), 0);

	want_eq(map(ctx, last, frame[0], 1, RD | WR, SZ_4K, &done), 0);
	want_eq(done, 1);
	want_eq(map(ctx, last, frame[0], 1, RD | WR, SZ_4K, &done), -EADDRINUSE);
	want_eq(done, 0);
	want_eq(unmap(ctx, last, 1, 0, SZ_4K, &done), 0);
	want_eq(done, 1);
	want_eq(unmap(ctx, last, 1, 0, SZ_4K, &done), -ENOENT);
	want_eq(done, 0);

	/* A run that hits a mapping: what came before stays. */
	want_eq(map(ctx, 1000 + 700, frame[0], 1, RD, SZ_4K, &done), 0);
	want_eq(map(ctx, 1000, frame[0], 1024, RD | WR, SZ_4K, &done), -EADDRINUSE);
	want_eq(done, 700);
	want_eq(unmap(ctx, 1000, 1024, 0, SZ_4K, &done), -ENOENT);
	want_eq(done, 701);

	/* Xen adds to the counter. */
	op = (struct map){ ctx, frame[0], 77, RD, SZ_4K, 3, 40 };
	want_eq(iommu(MAP, &op), 0);
	want_eq(op.mapped, 43);
	want_eq(unmap(ctx, 77, 4, 0, SZ_4K, &done), -ENOENT);
	want_eq(done, 3);

	want_eq(iommu(MAP, NULL), -EFAULT);
	want_eq(iommu(UNMAP, (void *)~0ul), -EFAULT);

	/* Left behind on purpose. */
	want_eq(map(ctx, 0, frame[0], 1024, RD | WR, SZ_4K, &done), 0);
	want_eq(free_ctx(ctx, 0), 0);
	report("map");
}

/* Nothing can be mapped in the interrupt range. */
static void test_interrupts(void)
{
	int ctx = new_ctx(0);
	unsigned int done;

	want_eq(map(ctx, 0xfee00, frame[0], 1, RD, SZ_4K, &done), -EADDRNOTAVAIL);
	want_eq(map(ctx, 0xfeeff, frame[0], 1, RD, SZ_4K, &done), -EADDRNOTAVAIL);
	want_eq(map(ctx, 0xfedff, frame[0], 2, RD, SZ_4K, &done), -EADDRNOTAVAIL);
	want_eq(done, 0);
	want_eq(map(ctx, 0xfedff, frame[0], 1, RD, SZ_4K, &done), 0);
	want_eq(map(ctx, 0xfef00, frame[0], 1, RD, SZ_4K, &done), 0);
	want_eq(free_ctx(ctx, 0), 0);
	report("interrupts");
}

/* Padding must be zero. */
static void test_padding(void)
{
	uint64_t bits[] = { 1ul << 16, 1ul << 32, 1ul << 63 };
	int ctx = new_ctx(0);
	unsigned int done;

	want_eq(map(ctx, 0, frame[0], 1, RD, SZ_4K, &done), 0);
	for (int i = 0; i < 3; i++) {
		struct map m = { ctx | bits[i], frame[0], 1, RD, SZ_4K, 1, 0 };
		struct unmap u = { ctx | bits[i], 0, SZ_4K, 1, 0, 0 };
		struct flush f = { ctx | bits[i], 0, SZ_4K, 1 };

		want_eq(iommu(MAP, &m), -EINVAL);
		want_eq(iommu(UNMAP, &u), -EINVAL);
		want_eq(iommu(FLUSH, &f), -EINVAL);
	}
	want_eq(iommu(ALLOC, &(struct alloc){ 1 << 16, 0 }), -EINVAL);
	want_eq(free_ctx(ctx | 1 << 31, 0), -EINVAL);
	want_eq(free_ctx(ctx, 0), 0);
	report("padding");
}

static void test_superpage(void)
{
	int ctx = new_ctx(0);
	unsigned int done;

	if (!(caps.pgsizes & SZ_2M)) {
		want_eq(map(ctx, 0, frame[0], 1, RD, SZ_2M, &done), -EINVAL);
		free_ctx(ctx, 0);
		report("superpage");
		return;
	}

	want_eq(map(ctx, 1, frame[0], 1, RD, SZ_2M, &done), -EINVAL);
	want_eq(map(ctx, 512, frame[1], 1, RD, SZ_2M, &done), -EINVAL);
	want_eq(map(ctx, 512, frame[0], 1, RD | WR, SZ_2M, &done), 0);
	want_eq(done, 1);
	want_eq(map(ctx, 512 + 5, frame[0], 1, RD, SZ_4K, &done), -EADDRINUSE);
	/* The page is split, and what is around the hole stays. */
	want_eq(unmap(ctx, 512 + 5, 1, 0, SZ_4K, &done), 0);
	want_eq(unmap(ctx, 512, 1, 0, SZ_2M, &done), -ENOENT);
	want_eq(done, 0);
	want_eq(unmap(ctx, 512, 5, 0, SZ_4K, &done), 0);
	want_eq(unmap(ctx, 512 + 6, 506, 0, SZ_4K, &done), 0);
	want_eq(done, 506);
	/* The table from the split must give way to the next superpage. */
	want_eq(map(ctx, 512, frame[0], 1, RD | WR, SZ_2M, &done), 0);
	want_eq(unmap(ctx, 512, 512, 0, SZ_4K, &done), 0);
	want_eq(done, 512);
	want_eq(map(ctx, 1024, frame[0], 1, RD, SZ_2M, &done), 0);
	want_eq(unmap(ctx, 1024, 1, 0, SZ_2M, &done), 0);
	want_eq(done, 1);
	/* 2 MiB pages, of which the second cannot be mapped. */
	want_eq(map(ctx, 1024 + 512 + 9, frame[0], 1, RD, SZ_4K, &done), 0);
	want_eq(map(ctx, 1024, frame[0], 2, RD, SZ_2M, &done), -EADDRINUSE);
	want_eq(done, 1);
	want_eq(unmap(ctx, 1024, 514, 0, SZ_4K, &done), -ENOENT);
	want_eq(done, 512);
	want_eq(free_ctx(ctx, 0), 0);
	report("superpage");
}

/*
 * Maps at unique addresses, with edu in the context, and unmaps nothing: flushes of these
 * addresses, and a full one in between for the list, are due to the maps. The first
 * address is mapped without a flush.
 */
static void test_flush_added(void)
{
	const uint64_t dfn = 0xabcd000;
	int ctx = new_ctx(0);
	unsigned int done;

	want(ctx > 0, "%d", ctx);
	want(have_edu, "no edu");
	if (ctx > 0 && have_edu) {
		want_eq(move_edu(ctx), 0);
		want_eq(map(ctx, dfn, frame[0], 1, RD | NO_FLUSH, SZ_4K, &done), 0);
		want_eq(map(ctx, dfn + 0x100, frame[0], 1, RD, SZ_4K, &done), 0);
		lists[0] = (struct run){ frame[0], dfn + 0x300, 1 };
		want_eq(iommu_regs(MAP_RUNS, ctx, RD, list_at(lists), 1, 0), 1);
		want_eq(iommu_regs(MAP_RANGE, ctx, RD, dfn + 0x200, 1, frame[0]), 1);
	}
	if (ctx > 0)
		want_eq(free_ctx(ctx, REATTACH_DEFAULT), 0);
	report("flush_added");
}

static void test_deferred(void)
{
	int ctx = new_ctx(0);
	unsigned int done;
	struct flush f = { ctx, 0, SZ_4K, 1 };

	if (!(caps.flags & CAP_DEFERRED_UNMAP)) {
		free_ctx(ctx, 0);
		printf("ok %u deferred # SKIP\n", ++test_nr);
		return;
	}
	for (int round = 0; round < 3; round++) {
		want_eq(map(ctx, 0, frame[0], 1024, RD | WR | NO_FLUSH, SZ_4K, &done), 0);
		/* More ranges than Xen records. */
		for (int i = 0; i < 1024; i += 2)
			want_eq(unmap(ctx, i, 1, UNMAP_NO_FLUSH, SZ_4K, &done), 0);
		want_eq(unmap(ctx, 0, 1, UNMAP_NO_FLUSH, SZ_4K, &done), -ENOENT);
		/* Mapping over what was not flushed makes Xen flush. */
		want_eq(map(ctx, 0, frame[0], 1, RD, SZ_4K, &done), 0);
		want_eq(unmap(ctx, 0, 2, UNMAP_NO_FLUSH, SZ_4K, &done), 0);
		f.dfn = round;
		want_eq(iommu(FLUSH, &f), 0);
		for (int i = 3; i < 1024; i += 2)
			want_eq(unmap(ctx, i, 1, 0, SZ_4K, &done), 0);
	}
	f.pgsize = 3;
	want_eq(iommu(FLUSH, &f), -EINVAL);
	f = (struct flush){ ctx, ~0ul, SZ_4K, 1 };
	want_eq(iommu(FLUSH, &f), -ERANGE);
	want_eq(map(ctx, 0, frame[0], 1024, RD | WR, SZ_4K, &done), 0);
	want_eq(unmap(ctx, 0, 700, UNMAP_NO_FLUSH, SZ_4K, &done), 0);
	want_eq(free_ctx(ctx, 0), 0);
	report("deferred");
}

static void test_runs(void)
{
	struct run *r = lists;
	int ctx = new_ctx(0);
	unsigned long all = 0, at;
	unsigned int done;

	if (!(caps.flags & CAP_RUNS)) {
		free_ctx(ctx, 0);
		printf("ok %u runs # SKIP\n", ++test_nr);
		return;
	}
	for (int i = 0; i < 1024; i++)
		r[i] = (struct run){ frame[(i * 7) % (NR_FRAMES - 8)], 0x1000 + i * 16, 1 + i % 5 };
	want_eq(iommu_regs(MAP_RUNS, ctx, RD | WR, list_at(r), 1025, 0), -EINVAL);
	want_eq(iommu_regs(MAP_RUNS, ctx | 0x10000, RD | WR, list_at(r), 1, 0), -EINVAL);
	want_eq(iommu_regs(MAP_RUNS, ctx, 0, list_at(r), 1, 0), -EINVAL);
	want_eq(iommu_regs(MAP_RUNS, ctx, RD | WR, list_at(r), 0, 0), 0);
	want_eq(iommu_regs(MAP_RUNS, ctx, RD | WR, list_at(r), 1024, 3071), -EINVAL);
	want_eq(iommu_runs(MAP_RUNS, ctx, RD | WR, r, 1024, &all), 0);
	want_eq(all, 3070);
	want_eq(iommu_regs(MAP_RUNS, ctx, RD | WR, list_at(r), 1024, 3070), 3070);
	want_eq(iommu_runs(MAP_RUNS, ctx, RD | WR, r, 1024, &all), -EADDRINUSE);
	want_eq(all, 0);
	want_eq(unmap(ctx, r[100].dfn, 1, 0, SZ_4K, &done), 0);
	want_eq(iommu_regs(UNMAP_RUNS, ctx, 4, list_at(r), 1024, 0), -EINVAL);
	want_eq(iommu_runs(UNMAP_RUNS, ctx, 0, r, 1024, &all), -ENOENT);
	want_eq(all, 300);
	want_eq(iommu_runs(UNMAP_RUNS, ctx, 0, r + 101, 923, &all), 0);
	want_eq(all, 2769);
	want_eq(iommu_regs(UNMAP_RUNS, ctx, 0, pv ? 16 : 1ul << 51, 923, 0), -EFAULT);
	want(iommu_regs(UNMAP_RUNS, ctx, 0, 1ul << 63, 923, 0) < 0, "bad list");

	want_eq(iommu_regs(MAP_RANGE, ctx, RD, 0x100, 0, frame[0]), 0);
	want_eq(iommu_regs(MAP_RANGE, ctx, 0, 0x100, 1, frame[0]), -EINVAL);
	want_eq(iommu_regs(MAP_RANGE, ctx, RD, (caps.max_iova >> 12) + 1, 1, frame[0]), -ERANGE);
	want_eq(iommu_regs(MAP_RANGE, ctx, RD, 0x100, ~0ul, frame[0]), -ERANGE);
	want_eq(iommu_regs(MAP_RANGE, ctx, RD, 0x101, 1, frame[0]), 1);
	want_eq(iommu_regs(MAP_RANGE, ctx, RD, 0x101, 1, frame[0]), -EADDRINUSE);
	/* Whatever precedes a failure is done and counted. */
	want_eq(iommu_regs(UNMAP_RANGE, ctx, 0, 0x101, 2, 0), 1);
	want_eq(iommu_regs(UNMAP_RANGE, ctx, 0, 0x101, 2, 0), -ENOENT);
	for (at = 0; at < NR_FRAMES / 2; at += done) {
		long ret = iommu_regs(MAP_RANGE, ctx, RD | WR, 0x200 + at, 1, frame[at]);

		want_eq(ret, 1);
		done = 1;
	}
	for (at = 0; at < NR_FRAMES / 2; at += done) {
		long ret = iommu_regs(UNMAP_RANGE, ctx, 0, 0x200 + at, NR_FRAMES / 2 - at, 0);

		want(ret > 0 && ret <= (long)(NR_FRAMES / 2 - at), "%ld at %lu", ret, at);
		done = ret > 0 ? ret : NR_FRAMES;
	}
	want_eq(free_ctx(ctx, 0), 0);
	report("runs");
}

static void test_devices(void)
{
	struct reattach op = { .seg = 0xffff, .bus = 0xff, .devfn = 0xff };
	int ctx = new_ctx(0), id;
	unsigned int done;

	op.ctx = ctx;
	want_eq(iommu(REATTACH, &op), -ENODEV);
	if (!have_edu) {
		free_ctx(ctx, 0);
		report("devices");
		return;
	}
	op = edu;
	op.ctx = ctx;
	op.pasid = 1;
	want_eq(iommu(REATTACH, &op), -EOPNOTSUPP);
	want_eq(move_edu(caps.max_ctx + 1), -EINVAL);
	want_eq(move_edu(ctx), 0);
	want_eq(move_edu(ctx), 0);
	want_eq(free_ctx(ctx, 0), -EBUSY);
	/* The refusal changed nothing. */
	want_eq(map(ctx, 0, frame[0], 512, RD, SZ_4K, &done), 0);
	want_eq(unmap(ctx, 0, 256, 0, SZ_4K, &done), 0);
	want_eq(move_edu(0), 0);
	want_eq(free_ctx(ctx, 0), 0);

	ctx = new_ctx(0);
	want_eq(map(ctx, 0, frame[0], 512, RD | WR, SZ_4K, &done), 0);
	want_eq(move_edu(ctx), 0);
	want_eq(free_ctx(ctx, REATTACH_DEFAULT), 0);

	if (caps.flags & CAP_IDENTITY) {
		want((id = new_ctx(ALLOC_IDENTITY)) > 0, "%d", id);
		want_eq(map(id, 0, frame[0], 1, RD, SZ_4K, &done), -EINVAL);
		want_eq(unmap(id, 0, 1, 0, SZ_4K, &done), -EINVAL);
		want_eq(move_edu(id), 0);
		ctx = new_ctx(0);
		want_eq(move_edu(ctx), 0);
		want_eq(free_ctx(id, 0), 0);
		want_eq(free_ctx(ctx, REATTACH_DEFAULT), 0);
	}
	report("devices");
}

#define FMT_X86_64_4	1
#define FLUSH_TABLES	1

static long new_nested(uint64_t root, uint64_t flags, uint64_t desc)
{
	struct nested op = { .ctx = 0xdead, .root = root, .flags = flags, .desc = desc };
	long ret = iommu(ALLOC_NESTED, &op);

	return ret < 0 ? ret : (int)op.ctx;
}

/* Contexts with our own page table: an empty one, in a zeroed page of ours. */
static void test_nested(void)
{
	struct format fmt = {};
	struct flush flush = { .pgsize = SZ_4K, .nr = 1 };
	struct run *run = lists;
	unsigned long frames;
	unsigned int done;
	int ctx, other;

	if (!(caps.flags & CAP_NESTED)) {
		want_eq(new_nested(frame[0], FMT_X86_64_4, frame[1]), -EOPNOTSUPP);
		want_eq(hypercall5(IOMMU_OP, QUERY_MORE, 1, FMT_X86_64_4, (unsigned long)&fmt, sizeof(fmt)),
			-EOPNOTSUPP);
		report("nested");
		return;
	}

	want_eq(hypercall5(IOMMU_OP, QUERY_MORE, 1, FMT_X86_64_4, (unsigned long)&fmt, sizeof(fmt)), sizeof(fmt));
	want(fmt.pgsizes & SZ_4K && fmt.in >= 39 && fmt.out >= 36, "%#lx %u %u", (long)fmt.pgsizes, fmt.in, fmt.out);
	/* Xen writes no more than requested. */
	memset(&fmt, 0x5a, sizeof(fmt));
	want_eq(hypercall5(IOMMU_OP, QUERY_MORE, 1, FMT_X86_64_4, (unsigned long)&fmt, 8), sizeof(fmt));
	want(fmt.flags == 0x5a5a5a5a, "%#x", fmt.flags);
	want_eq(hypercall5(IOMMU_OP, QUERY_MORE, 1, FMT_X86_64_4, 0, 0), sizeof(fmt));
	want_eq(hypercall5(IOMMU_OP, QUERY_MORE, 1, 0, (unsigned long)&fmt, sizeof(fmt)), -EOPNOTSUPP);
	want_eq(hypercall5(IOMMU_OP, QUERY_MORE, 1, 2, (unsigned long)&fmt, sizeof(fmt)), -EOPNOTSUPP);
	want_eq(hypercall5(IOMMU_OP, QUERY_MORE, 1, -1ul, (unsigned long)&fmt, sizeof(fmt)), -EOPNOTSUPP);
	want_eq(hypercall5(IOMMU_OP, QUERY_MORE, 77, 0, (unsigned long)&fmt, sizeof(fmt)), -EINVAL);

	want_eq(new_nested(frame[0], 0, frame[1]), -EOPNOTSUPP);
	want_eq(new_nested(frame[0], 2, frame[1]), -EOPNOTSUPP);
	want_eq(new_nested(frame[0], 0xff, frame[1]), -EOPNOTSUPP);
	want_eq(new_nested(frame[0], FMT_X86_64_4 | 1u << 8, frame[1]), -EINVAL);
	want_eq(new_nested(frame[0], FMT_X86_64_4 | 1ul << 63, frame[1]), -EINVAL);
	/* Absent; not memory; not writable by us. */
	want_eq(new_nested(frame[0], FMT_X86_64_4, 1ul << 30), -EINVAL);
	want_eq(new_nested(1ul << 30, FMT_X86_64_4, frame[1]), -EINVAL);
	want_eq(new_nested(-1ul, FMT_X86_64_4, -1ul), -EINVAL);
	want_eq(new_nested(frame[0], FMT_X86_64_4, 0xfed80), -EINVAL);
	if (edu_bar)
		want_eq(new_nested(frame[0], FMT_X86_64_4, edu_bar >> 12), -EINVAL);
	want_eq(iommu(ALLOC_NESTED, NULL), -EFAULT);

	want((ctx = new_nested(frame[0], FMT_X86_64_4, frame[1])) > 0, "%d", ctx);
	want((other = new_ctx(0)) > 0, "%d", other);

	/* Everything that needs tables of Xen's. */
	want_eq(map(ctx, 0, frame[2], 1, RD | WR, SZ_4K, &done), -EOPNOTSUPP);
	want_eq(unmap(ctx, 0, 1, 0, SZ_4K, &done), -EOPNOTSUPP);
	flush.ctx = ctx;
	want_eq(iommu(FLUSH, &flush), -EOPNOTSUPP);
	flush.nr = 0;
	want_eq(iommu(FLUSH, &flush), -EOPNOTSUPP);
	want_eq(iommu_regs(MAP_RANGE, ctx, RD, 0, 1, frame[2]), -EOPNOTSUPP);
	want_eq(iommu_regs(UNMAP_RANGE, ctx, 0, 0, 1, 0), -EOPNOTSUPP);
	*run = (struct run){ frame[2], 0, 1 };
	want_eq(iommu_runs(MAP_RUNS, ctx, RD, run, 1, &frames), -EOPNOTSUPP);
	want_eq(iommu_runs(UNMAP_RUNS, ctx, 0, run, 1, &frames), -EOPNOTSUPP);

	want_eq(iommu_regs(FLUSH_NESTED, ctx, 0, 0, 0, 0), 0);
	want_eq(iommu_regs(FLUSH_NESTED, ctx, FLUSH_TABLES, 0x12345, 1, 0), 0);
	want_eq(iommu_regs(FLUSH_NESTED, ctx, FLUSH_TABLES, 0x12345, 0x54321, 0), 0);
	want_eq(iommu_regs(FLUSH_NESTED, ctx, 0, -1ul, -1ul, 0), 0);
	want_eq(iommu_regs(FLUSH_NESTED, ctx, 0, -1ul, 1, 0), 0);
	want_eq(iommu_regs(FLUSH_NESTED, ctx, 2, 0, 0, 0), -EINVAL);
	want_eq(iommu_regs(FLUSH_NESTED, ctx | 1u << 16, 0, 0, 0, 0), -EINVAL);
	want_eq(iommu_regs(FLUSH_NESTED, other, 0, 0, 0, 0), -EINVAL);
	want_eq(iommu_regs(FLUSH_NESTED, 0, 0, 0, 0, 0), -EINVAL);
	want_eq(iommu_regs(FLUSH_NESTED, 0xffff, 0, 0, 0, 0), -EINVAL);

	if (have_edu) {
		/* Moves between all kinds of contexts. */
		want_eq(move_edu(ctx), 0);
		want_eq(free_ctx(ctx, 0), -EBUSY);
		want_eq(move_edu(other), 0);
		want_eq(move_edu(ctx), 0);
		want_eq(move_edu(0), 0);
		want_eq(move_edu(ctx), 0);
		want_eq(iommu_regs(FLUSH_NESTED, ctx, FLUSH_TABLES, 0, 0, 0), 0);
		want_eq(free_ctx(ctx, REATTACH_DEFAULT), 0);
	} else {
		want_eq(free_ctx(ctx, 0), 0);
	}
	want_eq(iommu_regs(FLUSH_NESTED, ctx, 0, 0, 0, 0), -EINVAL);
	want_eq(free_ctx(other, 0), 0);

	for (int i = 0; i < 1000 && !case_failed; i++) {
		want((ctx = new_nested(frame[0], FMT_X86_64_4, frame[1])) > 0, "%d at %d", ctx, i);
		want_eq(free_ctx(ctx, 0), 0);
	}
	report("nested");
}

static void test_cycles(unsigned int cycles)
{
	unsigned int done;
	long before = pool_free(), after;

	for (unsigned int i = 0; i < cycles && !case_failed; i++) {
		int ctx = new_ctx(0);

		want(ctx > 0, "%d in cycle %u", ctx, i);
		want_eq(map(ctx, i * 3, frame[i & 511], 7, RD | WR, SZ_4K, &done), 0);
		if (have_edu)
			want_eq(move_edu(ctx), 0);
		if (i & 1)
			want_eq(unmap(ctx, i * 3, 7, 0, SZ_4K, &done), 0);
		if (have_edu && (i & 2))
			want_eq(move_edu(0), 0);
		want_eq(free_ctx(ctx, REATTACH_DEFAULT), 0);
	}
	after = pool_free();
	want(before > 0, "%ld", before);
	want_eq(after, before);
	printf("# %u cycles, %ld tables before and after\n", cycles, before);
	report("cycles");
}

/* A page that is given back while a context maps it is not freed. */
static void test_page_leaves(void)
{
	struct reservation r = { .nr = 1, .domid = DOMID_SELF };
	uint64_t one = 1ul << 25;
	int ctx = new_ctx(0);
	unsigned int done;
	long pages, mapped;

	pages = current_pages();
	r.extents = &one;
	want_eq(hypercall(MEMORY_OP, pv ? 0 : 6, (unsigned long)&r), 1);
	want_eq(map(ctx, 0, one, 1, RD | WR, SZ_4K, &done), 0);
	mapped = hypercall(MEMORY_OP, 1, (unsigned long)&r);
	want_eq(mapped, 1);
	/* In PVH it no longer has a gfn, but still counts as the domain's. */
	want_eq(current_pages(), pages + 1);
	want_eq(unmap(ctx, 0, 1, 0, SZ_4K, &done), 0);
	want_eq(current_pages(), pages);
	want_eq(free_ctx(ctx, 0), 0);
	report("page_leaves");
}

/* XENMEM_exchange refuses a page that a context maps. */
static long exchange(uint64_t *in, uint64_t *out)
{
	struct {
		struct reservation in, out;
		unsigned long done;
	} op = {
		.in = { in, 1, 0, 0, DOMID_SELF },
		.out = { out, 1, 0, 0, DOMID_SELF },
	};

	return hypercall(MEMORY_OP, 11, (unsigned long)&op);
}

static void test_page_exchanged(void)
{
	uint64_t one = 1ul << 25, out = one;
	struct reservation r = { .extents = &one, .nr = 1, .domid = DOMID_SELF };
	int ctx = new_ctx(0);
	unsigned int done;
	long pages;

	want_eq(hypercall(MEMORY_OP, pv ? 0 : 6, (unsigned long)&r), 1);
	pages = current_pages();
	want_eq(map(ctx, 0, one, 1, RD, SZ_4K, &done), 0);
	want(exchange(&one, &out) < 0, "a mapped page was taken");
	want_eq(current_pages(), pages);
	/* Only the context's reference prevented it; Xen flushes to drop it. A PVH domain can never do it. */
	want_eq(unmap(ctx, 0, 1, UNMAP_NO_FLUSH, SZ_4K, &done), 0);
	want_eq(exchange(&one, &out), pv ? 0 : -EOPNOTSUPP);
	if (pv && !case_failed) {
		want(out != one, "%#lx", (long)out);
		one = out;
	}
	want_eq(current_pages(), pages);
	want_eq(hypercall(MEMORY_OP, 1, (unsigned long)&r), 1);
	want_eq(free_ctx(ctx, 0), 0);
	report("page_exchanged");
}

/* PV: devices cannot write to page tables, and what they can write to cannot become one. */
static long pin(unsigned int cmd, uint64_t mfn)
{
	struct {
		uint32_t cmd;
		uint64_t mfn, arg2;
	} op = { .cmd = cmd, .mfn = mfn };

	return hypercall4(MMUEXT_OP, (unsigned long)&op, 1, 0, DOMID_SELF);
}

#define PIN_L1		0
#define UNPIN		4

static void test_page_table(void)
{
	int ctx = new_ctx(0);
	unsigned int done;

	if (!pv) {
		free_ctx(ctx, 0);
		printf("ok %u page_table # SKIP only PV has page types\n", ++test_nr);
		return;
	}
	want_eq(map(ctx, 0, frame[0], 8, RD | WR, SZ_4K, &done), 0);
	want(pin(PIN_L1, frame[1]) < 0, "writable by DMA and a page table");
	/* Deferred: the device may still write to it, until Xen flushes for the pin. */
	want_eq(unmap(ctx, 0, 8, UNMAP_NO_FLUSH, SZ_4K, &done), 0);
	want_eq(pin(PIN_L1, frame[1]), 0);
	want_eq(map(ctx, 0, frame[0], 8, RD | WR, SZ_4K, &done), -EPERM);
	want_eq(done, 1);
	want_eq(map(ctx, 512, frame[0], 1, RD | WR, SZ_2M, &done), -EPERM);
	want_eq(done, 0);
	want_eq(map(ctx, 1, frame[1], 1, RD, SZ_4K, &done), 0);
	want_eq(pin(UNPIN, frame[1]), 0);
	want_eq(map(ctx, 2, frame[1], 1, RD | WR, SZ_4K, &done), 0);
	want_eq(unmap(ctx, 0, 3, 0, SZ_4K, &done), 0);
	want_eq(free_ctx(ctx, 0), 0);
	report("page_table");
}

/* Registers of devices may be mapped, but not those of interrupt controllers and IOMMUs. */
static bool mmio_refused(int ctx, uint64_t gfn)
{
	unsigned int done;
	/* A PV dom0 may read its I/O APICs. */
	long ret = map(ctx, 0, gfn, 1, RD | WR, SZ_4K, &done);

	if (!ret)
		unmap(ctx, 0, 1, 0, SZ_4K, &done);
	/* In PVH, there may be nothing at that gfn. */
	return ret == -EPERM || (ret == -ENOENT && !pv);
}

static void test_mmio(void)
{
	int ctx = new_ctx(0);
	unsigned int done;

	want(mmio_refused(ctx, 0xfee00), "local APIC");
	want(mmio_refused(ctx, 0xfec00), "I/O APIC");
	/* QEMU's addresses of VT-d and of AMD's IOMMU. */
	want(mmio_refused(ctx, 0xfed90) || mmio_refused(ctx, 0xfed80), "IOMMU");
	if (edu_bar) {
		want_eq(map(ctx, 0x100, edu_bar >> 12, 16, RD | WR, SZ_4K, &done), 0);
		want_eq(unmap(ctx, 0x100, 16, 0, SZ_4K, &done), 0);
	}
	want_eq(free_ctx(ctx, 0), 0);
	report("mmio");
}

/* Another domain, created like by a toolstack. */

struct domctl {
	uint32_t cmd, version;
	uint16_t domid, pad[3];
	union {
		struct {
			uint32_t ssidref;
			uint8_t handle[16];
			uint32_t flags, iommu_opts, max_vcpus, max_evtchn;
			int32_t max_grant_frames, max_maptrack_frames;
			uint32_t grant_opts, altp2m_opts, vmtrace_size, cpupool, emulation_flags, misc_flags;
		} create;
		struct {
			uint32_t dev, flags, sbdf;
		} assign;
		uint64_t max_kb;
		uint8_t room[128];
	};
};

static struct domctl domctl_op;

static long domctl(unsigned int cmd, unsigned int domid)
{
	domctl_op.cmd = cmd;
	domctl_op.version = 0x17;
	domctl_op.domid = domid;
	return hypercall(DOMCTL, (unsigned long)&domctl_op, 0);
}

static long assign(unsigned int cmd, unsigned int domid)
{
	memset(&domctl_op, 0, sizeof(domctl_op));
	domctl_op.assign.sbdf = edu.seg << 16 | edu.bus << 8 | edu.devfn;
	return domctl(cmd, domid);
}

static long new_domain(void)
{
	long ret;

	memset(&domctl_op, 0, sizeof(domctl_op));
	domctl_op.create.flags = 1 << 5;
	domctl_op.create.max_vcpus = 1;
	domctl_op.create.max_grant_frames = 4;
	domctl_op.create.max_maptrack_frames = 4;
	domctl_op.create.grant_opts = 1;
	ret = domctl(1, 0);
	return ret ?: domctl_op.domid;
}

/* A read-only grant stays read-only, and a frame outlives its grant only while mapped. */

struct grant_map {
	uint64_t host_addr;
	uint32_t flags, ref;
	uint16_t dom;
	int16_t status;
	uint32_t handle;
	uint64_t bus_addr;
};

struct grant_unmap {
	uint64_t host_addr, bus_addr;
	uint32_t handle;
	int16_t status;
};

#define GRANT_DEVICE_MAP 1
#define GRANT_HOST_MAP	2
#define GRANT_READONLY	4
/* Flags of the entry in the table: in use for reading, for writing. */
#define GRANT_IN_USE	0x18

/*
 * Maps for the CPU in PVH. In PV that takes page table entries, which only Linux can
 * make, so maps for devices only.
 */
static long map_grant(unsigned int dom, unsigned int ref, uint64_t *gfn, unsigned int flags,
		      uint32_t *handle)
{
	struct grant_map op = {
		.host_addr = pv ? 0 : *gfn << 12, .ref = ref, .dom = dom,
		.flags = (pv ? GRANT_DEVICE_MAP : GRANT_HOST_MAP) | flags,
	};
	long ret = hypercall4(GRANT_TABLE_OP, 0, (unsigned long)&op, 1, 0);

	*handle = op.handle;
	if (pv)
		*gfn = op.bus_addr >> 12;
	return ret ?: op.status;
}

static long unmap_grant(uint64_t gfn, uint32_t handle)
{
	struct grant_unmap op = {
		.host_addr = pv ? 0 : gfn << 12, .bus_addr = pv ? gfn << 12 : 0, .handle = handle,
	};
	long ret = hypercall4(GRANT_TABLE_OP, 1, (unsigned long)&op, 1, 0);

	return ret ?: op.status;
}

/* Maps the first frame of a domain's grant table. */
static void *grant_table(unsigned int dom)
{
	struct privcmd_mmap_resource res = { .dom = dom, .type = 1, .num = 1 };
	void *table = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, privcmd, 0);

	if (table == MAP_FAILED)
		return NULL;
	res.addr = (unsigned long)table;
	return ioctl(privcmd, IOCTL_PRIVCMD_MMAP_RESOURCE, &res) ? NULL : table;
}

static void test_grants(void)
{
	struct { uint16_t flags, domid; uint32_t frame; } volatile *table;
	uint64_t extent[2] = { 0, 1 }, gfn[2] = { 1ul << 26, (1ul << 26) + 1 };
	struct reservation r = { .extents = extent, .nr = 2 };
	int ctx = new_ctx(0);
	unsigned int done;
	uint32_t handle[2];
	long dom;

	dom = new_domain();
	want(dom > 0, "%ld", dom);
	memset(&domctl_op, 0, sizeof(domctl_op));
	domctl_op.max_kb = 1024;
	want_eq(domctl(11, dom), 0);
	r.domid = dom;
	/* The domain is PV and has machine frames. */
	want_eq(hypercall(MEMORY_OP, 6, (unsigned long)&r), 2);
	table = grant_table(dom);
	want(table, "%d", errno);
	if (case_failed)
		goto out;
	for (int ref = 8; ref < 10; ref++) {
		table[ref].domid = 0;
		table[ref].frame = extent[ref - 8];
		__sync_synchronize();
		table[ref].flags = ref == 8 ? 1 | 4 : 1;
	}

	want_eq(map_grant(dom, 8, &gfn[0], GRANT_READONLY, &handle[0]), 0);
	want_eq(map_grant(dom, 9, &gfn[1], 0, &handle[1]), 0);
	want_eq(map(ctx, 0, gfn[0], 1, RD | WR, SZ_4K, &done), -EPERM);
	want_eq(map(ctx, 0, gfn[0], 1, WR, SZ_4K, &done), -EPERM);
	want_eq(map(ctx, 0, gfn[0], 1, RD, SZ_4K, &done), 0);
	want_eq(map(ctx, 1, gfn[1], 1, RD | WR, SZ_4K, &done), 0);
	want_eq(map(ctx, 2, gfn[1], 1, RD, SZ_4K, &done), 0);
	want_eq(unmap_grant(gfn[0], handle[0]), 0);
	want_eq(unmap_grant(gfn[1], handle[1]), 0);
	/* Their owner sees them in use until the last I/O mapping is removed and flushed. */
	want_eq(table[8].flags & GRANT_IN_USE, 8);
	want_eq(table[9].flags & GRANT_IN_USE, GRANT_IN_USE);
	want_eq(unmap(ctx, 1, 1, 0, SZ_4K, &done), 0);
	want_eq(table[9].flags & GRANT_IN_USE, GRANT_IN_USE);
	want_eq(unmap(ctx, 2, 1, UNMAP_NO_FLUSH, SZ_4K, &done), 0);
	want_eq(table[9].flags & GRANT_IN_USE, 0);
	if (!pv) {
		want_eq(map(ctx, 2, gfn[0], 1, RD, SZ_4K, &done), -ENOENT);
		want_eq(map(ctx, 2, gfn[1], 1, RD, SZ_4K, &done), -ENOENT);
	}
	/* Without an I/O mapping, a grant ends immediately. */
	want_eq(map_grant(dom, 9, &gfn[1], 0, &handle[1]), 0);
	want_eq(table[9].flags & GRANT_IN_USE, GRANT_IN_USE);
	want_eq(unmap_grant(gfn[1], handle[1]), 0);
	want_eq(table[9].flags & GRANT_IN_USE, 0);
out:
	if (table)
		munmap((void *)table, 4096);
	/* The domain dies, but its page must stay until it is unmapped. */
	want_eq(domctl(2, dom), 0);
	want_eq(unmap(ctx, 0, 1, 0, SZ_4K, &done), 0);
	want_eq(free_ctx(ctx, 0), 0);
	report("grants");
}

/* A device that goes to another domain and comes back. */
static void test_passthrough(void)
{
	unsigned int done;
	int ctx;

	for (int round = 0; round < 4 && have_edu; round++) {
		long dom = new_domain();

		if (dom < 0) {
			printf("ok %u passthrough # SKIP no domain can be made: %ld\n", ++test_nr, dom);
			return;
		}
		ctx = new_ctx(0);
		want_eq(map(ctx, 0, frame[0], 512, RD | WR, SZ_4K, &done), 0);
		want_eq(move_edu(ctx), 0);
		want_eq(assign(37, dom), 0);
		/* It has left its context, and is not ours. */
		want_eq(move_edu(ctx), -ENODEV);
		want_eq(move_edu(0), -ENODEV);
		want_eq(free_ctx(ctx, 0), 0);
		if (round & 1)
			want_eq(assign(47, dom), 0);
		/* In the other rounds, the domain dies with the device. */
		want_eq(domctl(2, dom), 0);
		/* It is in quarantine now. */
		want_eq(move_edu(0), -ENODEV);
		want_eq(assign(47, DOMID_IO), 0);
		ctx = new_ctx(0);
		want_eq(move_edu(ctx), 0);
		if (round & 2) {
			want_eq(assign(37, DOMID_IO), 0);
			want_eq(free_ctx(ctx, 0), 0);
			want_eq(assign(47, DOMID_IO), 0);
			want_eq(move_edu(0), 0);
		} else {
			want_eq(move_edu(0), 0);
			want_eq(free_ctx(ctx, 0), 0);
		}
	}
	report("passthrough");
}

/* Fuzzing */

struct fuzz {
	pthread_t thread;
	uint64_t state;
	unsigned long nr, calls, ok;
};

static unsigned long fuzz_calls = 50000;

/* Frames of other domains, which come and go; 0 for none. */
#define NR_FOREIGN	28
static volatile uint64_t foreign[NR_FOREIGN];
static unsigned int nr_foreign;

static uint64_t rnd(struct fuzz *f)
{
	f->state ^= f->state << 13;
	f->state ^= f->state >> 7;
	f->state ^= f->state << 17;
	return f->state * 0x2545f4914f6cdd1dull >> 11;
}

static uint64_t pick(struct fuzz *f, unsigned int n)
{
	return rnd(f) % n;
}

static uint64_t wild(struct fuzz *f)
{
	static const uint64_t edge[] = { 0, 1, ~0ull, 1ull << 63, 1ull << 52, 1ull << 40, 0xfee00, 0xffffffff,
					 1ull << 36, 0xfffff, 0xffff, 0x7fffffff };

	return pick(f, 2) ? edge[pick(f, sizeof(edge) / sizeof(*edge))] : rnd(f) << pick(f, 12);
}

/* Mostly sane values, since only those get far. */
static uint64_t a_dfn(struct fuzz *f)
{
	if (!pick(f, 20))
		return wild(f);
	if (!pick(f, 20))
		return (caps.max_iova >> 12) - pick(f, 1024);
	return pick(f, 2) ? pick(f, 4) * 512 : pick(f, 3000);
}

static uint64_t a_gfn(struct fuzz *f)
{
	uint64_t gfn;

	if (nr_foreign && !pick(f, 3)) {
		gfn = foreign[pick(f, nr_foreign)];
		if (gfn)
			return gfn;
	}
	if (!pick(f, 20))
		return wild(f);
	/* In PV, Linux could not use a page as a page table while it is mapped writable. */
	if (!pv && !pick(f, 10))
		return pick(f, 0x100000);
	return frame[pick(f, 2) ? pick(f, NR_LARGE) * 512 : pick(f, NR_FRAMES)];
}

static uint32_t a_count(struct fuzz *f)
{
	return !pick(f, 30) ? wild(f) : pick(f, 3) ? 1 + pick(f, 16) : pick(f, 1200);
}

static uint32_t a_size(struct fuzz *f)
{
	return !pick(f, 30) ? wild(f) : pick(f, 8) ? SZ_4K : pick(f, 4) ? SZ_2M : SZ_1G;
}

static unsigned int a_ctx(struct fuzz *f)
{
	return !pick(f, 50) ? wild(f) : 1 + pick(f, 6);
}

static void *fuzz(void *arg)
{
	struct fuzz *f = arg;
	struct run *runs = lists + f->nr * 64;

	for (unsigned long i = 0; i < fuzz_calls; i++) {
		long ret;
		bool bad = !pick(f, 200);
		union {
			struct alloc alloc; struct freectx free; struct map map; struct unmap unmap;
			struct flush flush; struct reattach re; struct init init;
			struct nested nested; struct caps caps; uint64_t raw[16];
		} op;
		unsigned int sub;
		unsigned long regs[4] = { (unsigned long)&op, wild(f), wild(f), wild(f) };

		memset(&op, 0, sizeof(op));
		switch (pick(f, 29)) {
		case 0: case 1:
			sub = ALLOC;
			op.alloc.flags = !pick(f, 8) ? pick(f, 3) : 0;
			break;
		case 2:
			sub = FREE;
			op.free = (struct freectx){ a_ctx(f), pick(f, 20) ? pick(f, 2) : wild(f) };
			break;
		case 3: case 4:
			sub = REATTACH;
			if (!have_edu || !pick(f, 10))
				op.re = (struct reattach){ a_ctx(f), 0x100 + pick(f, 3), wild(f), wild(f),
							   pick(f, 2) };
			else
				op.re = edu, op.re.ctx = pick(f, 3) ? a_ctx(f) : 0;
			break;
		case 5 ... 11:
			sub = MAP;
			op.map = (struct map){ a_ctx(f), a_gfn(f), a_dfn(f),
					       !pick(f, 30) ? wild(f) : 1 + pick(f, 15), a_size(f), a_count(f), 0 };
			break;
		case 12 ... 17:
			sub = UNMAP;
			op.unmap = (struct unmap){ a_ctx(f), a_dfn(f), a_size(f), a_count(f), 0,
						   !pick(f, 50) ? wild(f) : pick(f, 2) };
			break;
		case 18:
			sub = FLUSH;
			op.flush = (struct flush){ a_ctx(f), a_dfn(f), a_size(f), a_count(f) };
			break;
		case 19 ... 21:
			sub = pick(f, 2) ? MAP_RUNS : UNMAP_RUNS;
			if (!pick(f, 20))
				sub |= 1u << 31;
			regs[0] = a_ctx(f) | pick(f, 4) << 32 | (!pick(f, 50) ? wild(f) : 0);
			regs[1] = pick(f, 50) ? list_at(runs) : wild(f);
			regs[2] = pick(f, 50) ? pick(f, 64) : wild(f);
			regs[3] = pick(f, 10) ? 0 : pick(f, 50) ? pick(f, 2000) : wild(f);
			for (int j = 0; j < 64; j++)
				runs[j] = (struct run){ a_gfn(f), a_dfn(f), pick(f, 40) };
			break;
		case 22 ... 24:
			sub = pick(f, 2) ? MAP_RANGE : UNMAP_RANGE;
			regs[0] = a_ctx(f) | pick(f, 4) << 32;
			regs[1] = a_dfn(f);
			regs[2] = pick(f, 50) ? a_count(f) : wild(f);
			regs[3] = a_gfn(f);
			break;
		case 27:
			/* Xen writes to the last one, which must never be the kernel's. */
			sub = ALLOC_NESTED;
			op.nested = (struct nested){ 0, a_gfn(f), pick(f, 20) ? FMT_X86_64_4 : wild(f),
						     frame[pick(f, NR_FRAMES)] };
			break;
		case 28:
			sub = FLUSH_NESTED;
			regs[0] = a_ctx(f) | pick(f, 2) << 32 | (!pick(f, 50) ? wild(f) : 0);
			regs[1] = a_dfn(f);
			regs[2] = pick(f, 4) ? a_count(f) : wild(f);
			break;
		case 25:
			sub = pick(f, 2) ? QUERY : INIT;
			op.init = (struct init){ wild(f), wild(f) };
			break;
		default:
			sub = pick(f, 2) ? pick(f, 40) : wild(f);
			for (int j = 0; j < 16; j++)
				op.raw[j] = wild(f);
			/* The device must not be random. */
			if ((sub & 0x7fffffff) == REATTACH)
				sub = NOOP;
			op.nested.desc = frame[pick(f, NR_FRAMES)];
			break;
		}
		if (bad)
			regs[0] = wild(f);
		ret = hypercall5(IOMMU_OP, sub, regs[0], regs[1], regs[2], regs[3]);
		f->ok += ret >= 0;
		f->calls++;
	}
	return NULL;
}

static void test_fuzz(unsigned int threads, uint64_t seed)
{
	struct fuzz f[threads];
	unsigned long calls = 0, ok = 0;
	long before = pool_free(), after;

	for (unsigned int i = 0; i < threads; i++) {
		f[i] = (struct fuzz){ .state = seed * 2654435761u + i + 1, .nr = i };
		if (pthread_create(&f[i].thread, NULL, fuzz, &f[i]))
			exit(1);
	}
	for (unsigned int i = 0; i < threads; i++) {
		pthread_join(f[i].thread, NULL);
		calls += f[i].calls;
		ok += f[i].ok;
	}
	printf("# %lu calls in %u threads, %lu succeeded\n", calls, threads, ok);
	for (unsigned int c = 1; c <= caps.max_ctx; c++) {
		long ret = free_ctx(c, REATTACH_DEFAULT);

		want(!ret || ret == -EINVAL, "context %u: %ld", c, ret);
	}
	after = pool_free();
	want(before > 0, "%ld", before);
	want_eq(after, before);
	report("fuzz");
}

/* edu: QEMU's device for learning, with a DMA engine */

static uint64_t number_in(const char *path)
{
	FILE *file = fopen(path, "r");
	char val[64] = "";

	if (!file)
		return 0;
	if (!fgets(val, sizeof(val), file))
		val[0] = '\0';
	fclose(file);
	return strtoull(val, NULL, 16);
}

static void find_edu(void)
{
	DIR *dir = opendir("/sys/bus/pci/devices");
	struct dirent *e;

	while (dir && (e = readdir(dir))) {
		unsigned int seg, bus, dev, fn, id[2] = {};
		char path[300];

		if (sscanf(e->d_name, "%x:%x:%x.%x", &seg, &bus, &dev, &fn) != 4)
			continue;
		for (int i = 0; i < 2; i++) {
			snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/%s", e->d_name,
				 i ? "device" : "vendor");
			id[i] = number_in(path);
		}
		if (id[0] == 0x1234 && id[1] == 0x11e8) {
			edu = (struct reattach){ .seg = seg, .bus = bus, .devfn = dev << 3 | fn };
			have_edu = true;
			snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/resource", e->d_name);
			edu_bar = number_in(path);
			printf("# edu is %s\n", e->d_name);
		}
	}
	if (dir)
		closedir(dir);
}

int main(int argc, char **argv)
{
	uint64_t seed = time(NULL) ^ getpid();
	unsigned int threads = 2, cycles = 10000;
	long pages, free_before;
	bool query = false, only_flush = false;
	int opt;

	while ((opt = getopt(argc, argv, "s:n:t:c:qf")) != -1) {
		switch (opt) {
		case 's': seed = strtoull(optarg, NULL, 0); break;
		case 'n': fuzz_calls = strtoul(optarg, NULL, 0); break;
		case 't': threads = strtoul(optarg, NULL, 0); break;
		case 'c': cycles = strtoul(optarg, NULL, 0); break;
		case 'q': query = true; break;
		case 'f': only_flush = true; break;
		default: return 2;
		}
	}

	start();
	if (query) {
		if (privcmd < 0 || iommu(QUERY, &caps))
			return 1;
		printf("%#x\n", caps.flags);
		return 0;
	}

	printf("KTAP version 1\n");
	printf("# seed %lu (-s)\n", (long)seed);
	if (privcmd < 0 || iommu(NOOP, NULL)) {
		printf("1..0 # SKIP no hypervisor with PV-IOMMU\n");
		return 4;
	}
	if (!find_guest_type())
		return 1;

	printf("1..%d\n", only_flush ? 1 : 20);
	find_edu();
	pages = current_pages();
	if (get_frames() || get_lists()) {
		printf("Bail out! no memory\n");
		return 1;
	}

	if (only_flush) {
		test_flush_added();
		want_eq(put_frames(), NR_FRAMES);
		return failed ? 1 : 0;
	}

	test_basics();
	test_init();
	free_before = free_pages();
	test_contexts();
	test_map();
	test_padding();
	test_superpage();
	test_interrupts();
	test_deferred();
	test_runs();
	test_devices();
	test_nested();
	test_page_leaves();
	test_page_exchanged();
	test_page_table();
	test_mmio();
	test_grants();
	test_passthrough();
	test_cycles(cycles);
	test_fuzz(threads, seed);
	if (have_edu)
		want_eq(move_edu(0), 0);
	/*
	 * Destroyed domains take their time to vanish, and Xen's xmalloc() may have
	 * taken a page or two. What matters is counted exactly: the
	 * pool above, the domain's pages below.
	 */
	for (int i = 0; i < 20 && free_pages() < free_before; i++)
		usleep(100000);
	want(labs(free_pages() - free_before) < 16, "%ld, %ld", free_pages(), free_before);
	want_eq(put_frames(), NR_FRAMES);
	want_eq(current_pages(), pages);
	printf("# free pages %ld, the domain's %ld\n", free_pages(), current_pages());
	report("all_pages_are_back");

	return failed ? 1 : 0;
}
