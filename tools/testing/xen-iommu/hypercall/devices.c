// SPDX-License-Identifier: GPL-2.0
/*
 * Test devices that do DMA: their faults are reported (IOMMU_get_faults), and a device
 * that comes back from another domain is in its old context, or blocked.
 *
 * Runs in dom0's userspace without an IOMMU driver, on QEMU's edu. KTAP on stdout.
 */
#define main hypercall_main
#include "hypercall.c"
#undef main

#include <poll.h>

#define GET_FAULTS	37
#define CAP_FAULTS	(1 << 20)
#define VIRQ_IOMMU	14
#define FAULT_WRITE	1
#define RING		64

struct fault {
	uint64_t addr;
	uint16_t seg;
	uint8_t bus, devfn;
	uint16_t ctx, pad;
	uint32_t flags, reason, lost, pad2;
};

_Static_assert(sizeof(struct fault) == 32, "layout");

#define IOCTL_EVTCHN_BIND_VIRQ	_IOC(_IOC_NONE, 'E', 0, sizeof(unsigned int))

static volatile char *regs;
static struct fault faults[2 * RING];

static void set_reg(unsigned int reg, uint64_t value)
{
	*(volatile uint64_t *)(regs + reg) = value;
}

/*
 * Makes edu read or write 4 bytes there; its buffer is at 0x40000. QEMU would split more
 * bytes into several accesses, each with its own fault.
 */
static void dma(uint64_t addr, bool write)
{
	set_reg(0x80, write ? 0x40000 : addr);
	set_reg(0x88, write ? addr : 0x40000);
	set_reg(0x90, 4);
	set_reg(0x98, write ? 3 : 1);
	for (int i = 0; i < 1000 && (*(volatile uint32_t *)(regs + 0x98) & 1); i++)
		usleep(10000);
}

static long get_faults(unsigned long nr)
{
	return hypercall4(IOMMU_OP, GET_FAULTS, (unsigned long)faults, nr, 0);
}

/* Waits for this number of faults, or for a while if there must be none. */
static long wait_faults(long nr)
{
	long got = 0;

	for (int i = 0; i < (nr ? 200 : 20) && got < (nr ?: 1); i++) {
		long ret = hypercall4(IOMMU_OP, GET_FAULTS, (unsigned long)(faults + got), RING, 0);

		if (ret < 0)
			return ret;
		got += ret;
		if (!ret)
			usleep(10000);
	}
	return got;
}

static void want_fault(int ctx, uint64_t addr, bool write)
{
	dma(addr, write);
	want_eq(wait_faults(1), 1);
	want_eq(faults[0].addr & ~0xffful, addr & ~0xffful);
	want_eq(faults[0].ctx, ctx);
	want_eq(faults[0].flags, write ? FAULT_WRITE : 0);
	want_eq(faults[0].lost, 0);
	want(faults[0].seg == edu.seg && faults[0].bus == edu.bus && faults[0].devfn == edu.devfn,
	     "%04x:%02x:%02x", faults[0].seg, faults[0].bus, faults[0].devfn);
}

static void want_no_fault(uint64_t addr, bool write)
{
	dma(addr, write);
	want_eq(wait_faults(0), 0);
}

static void test_on(void)
{
	want(caps.flags & CAP_FAULTS, "%#x", caps.flags);
	want_eq(hypercall4(IOMMU_OP, GET_FAULTS, 0, 0, 0), 0);
	want_eq(get_faults(0), 0);
	want_eq(get_faults(RING), 0);
	want_eq(get_faults(~0ul), 0);
	report("reports_begin");
}

static void test_fault(int ctx, const char *name)
{
	want_fault(ctx, 0x5000, false);
	want_fault(ctx, 0x123456000, true);
	want_no_fault(0x10000, true);
	/* A fault that cannot be delivered is lost and counted. */
	dma(0x7000, false);
	usleep(200000);
	want_eq(hypercall4(IOMMU_OP, GET_FAULTS, 0x1000, 1, 0), -EFAULT);
	dma(0x8000, false);
	want_eq(wait_faults(1), 1);
	want_eq(faults[0].addr, 0x8000);
	want_eq(faults[0].lost, 1);
	report(name);
}

/* Returns true if the event comes. */
static bool event(int fd, int ms)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	uint32_t port;

	if (poll(&p, 1, ms) != 1)
		return false;
	if (read(fd, &port, sizeof(port)) != sizeof(port))
		return false;
	return write(fd, &port, sizeof(port)) == sizeof(port);
}

static void test_event(void)
{
	unsigned int virq = VIRQ_IOMMU;
	int fd = open("/dev/xen/evtchn", O_RDWR | O_CLOEXEC);

	want(fd >= 0, "%d", errno);
	want(ioctl(fd, IOCTL_EVTCHN_BIND_VIRQ, &virq) > 0, "%d", errno);
	/* A new channel may be pending. */
	event(fd, 500);
	dma(0x5000, false);
	want(event(fd, 5000), "no event");
	/* One event is enough until the ring has been read. */
	dma(0x6000, false);
	want(!event(fd, 1000), "another event");
	want_eq(wait_faults(2), 2);
	dma(0x7000, false);
	want(event(fd, 5000), "no event");
	want_eq(wait_faults(1), 1);
	close(fd);
	report("event");
}

static void test_lost(void)
{
	for (int i = 0; i < RING + 6; i++) {
		dma(0x100000 + i * SZ_4K, false);
		usleep(20000);
	}
	want_eq(get_faults(RING * 2), RING);
	want_eq(faults[0].addr, 0x100000);
	want_eq(faults[RING - 1].addr, 0x100000 + (RING - 1) * SZ_4K);
	want_eq(faults[RING - 1].lost, 0);
	dma(0x5000, false);
	want_eq(wait_faults(1), 1);
	want_eq(faults[0].lost, 6);
	report("lost");
}

/* Quarantine is another domain, and serves as a guest here. */
static void test_lent(int ctx, const char *back, const char *freed)
{
	uint64_t elsewhere = frame[1] << 12;

	want_eq(assign(37, DOMID_IO), 0);
	want_eq(move_edu(0), -ENODEV);
	want_eq(assign(47, DOMID_IO), 0);
	/* It is in its old context, not where it can reach all of our memory. */
	want_no_fault(0x10000, true);
	want_fault(ctx, elsewhere, true);
	want_fault(ctx, elsewhere, false);
	want_eq(free_ctx(ctx, 0), -EBUSY);
	report(back);

	want_eq(assign(37, DOMID_IO), 0);
	want_eq(free_ctx(ctx, 0), 0);
	want_eq(assign(47, DOMID_IO), 0);
	want_fault(0, 0x10000, true);
	want_fault(0, elsewhere, true);
	want_fault(0, elsewhere, false);
	/* Blocked until it is moved. */
	want_eq(move_edu(0), 0);
	want_no_fault(elsewhere, true);
	report(freed);
}

/* Allocates a context with our own table, which maps one page. */
static int new_nested_map(uint64_t dfn, uint64_t gfn)
{
	uint64_t (*page)[512] = (void *)lists, at = lists_at;

	memset(page, 0, 5 * SZ_4K);
	for (int level = 3; level; level--, at += SZ_4K)
		page[3 - level][dfn >> (9 * level) & 511] = (at + SZ_4K) | 7;
	page[3][dfn & 511] = gfn << 12 | 7;
	return new_nested(lists_at >> 12, FMT_X86_64_4, (lists_at >> 12) + 4);
}

static bool start_edu(void)
{
	char path[100];
	uint16_t command;
	int fd;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%04x:%02x:%02x.%x/config", edu.seg, edu.bus,
		 edu.devfn >> 3, edu.devfn & 7);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0 || pread(fd, &command, 2, 4) != 2)
		return false;
	command |= 6;	/* memory space, bus master */
	if (pwrite(fd, &command, 2, 4) != 2)
		return false;
	close(fd);
	strcpy(strrchr(path, '/'), "/resource0");
	fd = open(path, O_RDWR | O_SYNC | O_CLOEXEC);
	if (fd < 0)
		return false;
	regs = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	return regs != MAP_FAILED;
}

int main(void)
{
	struct init init = { .max_ctx = 4, .order = 6 };
	unsigned int done;
	int ctx;

	start();
	printf("KTAP version 1\n");
	find_edu();
	if (privcmd < 0 || iommu(QUERY, &caps) || !have_edu) {
		printf("1..0 # SKIP no hypervisor with PV-IOMMU, or no edu\n");
		return 4;
	}
	printf("1..%d\n", caps.flags & CAP_NESTED ? 9 : 6);
	if (iommu(INIT, &init) || iommu(QUERY, &caps) || !find_guest_type() || get_frames() ||
	    get_lists() || !start_edu()) {
		printf("Bail out! not ready: %d\n", errno);
		return 1;
	}
	ctx = new_ctx(0);
	want(ctx > 0, "%d", ctx);
	want_eq(map(ctx, 0x10, frame[0], 1, RD | WR, SZ_4K, &done), 0);
	want_eq(move_edu(ctx), 0);
	test_on();
	test_fault(ctx, "fault");
	test_event();
	test_lost();
	test_lent(ctx, "lent_comes_back", "lent_context_freed");
	if (caps.flags & CAP_NESTED) {
		ctx = new_nested_map(0x10, frame[0]);
		want(ctx > 0, "%d", ctx);
		want_eq(move_edu(ctx), 0);
		test_fault(ctx, "nested_fault");
		test_lent(ctx, "nested_lent_comes_back", "nested_lent_context_freed");
	}
	return failed ? 1 : 0;
}
