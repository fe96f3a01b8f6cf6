// SPDX-License-Identifier: GPL-2.0
/*
 * Test grants that end while contexts map their frames: which of them their owner sees in
 * use, and what it costs Xen if a guest ends many of them.
 *
 * Runs in dom0's userspace without an IOMMU driver. KTAP on stdout.
 */
#define main hypercall_main
#include "hypercall.c"
#undef main

/* References to one frame: writable ones from 8 on, then two read-only ones, and many. */
#define FIRST	8
#define RO	10
#define MANY	12
#define REFS	2000

struct grant { uint16_t flags, domid; uint32_t frame; };

static volatile struct grant *table;
static long owner;
static uint64_t gfn[MANY];
static uint32_t handle[MANY];

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static bool open_domain(void)
{
	struct privcmd_mmap_resource res = { .type = 1, .num = 4 };
	uint64_t extent = 0;
	struct reservation r = { .extents = &extent, .nr = 1 };

	memset(&domctl_op, 0, sizeof(domctl_op));
	domctl_op.create.flags = 1 << 5;
	domctl_op.create.max_vcpus = 1;
	domctl_op.create.max_grant_frames = 4;
	domctl_op.create.max_maptrack_frames = 4;
	domctl_op.create.grant_opts = 1;
	want_eq(domctl(1, 0), 0);
	owner = domctl_op.domid;
	memset(&domctl_op, 0, sizeof(domctl_op));
	domctl_op.max_kb = 4096;
	want_eq(domctl(11, owner), 0);
	r.domid = owner;
	want_eq(hypercall(MEMORY_OP, 6, (unsigned long)&r), 1);
	table = mmap(NULL, 4 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, privcmd, 0);
	if (table == MAP_FAILED)
		return false;
	res.dom = owner;
	res.addr = (unsigned long)table;
	if (ioctl(privcmd, IOCTL_PRIVCMD_MMAP_RESOURCE, &res))
		return false;
	for (int ref = FIRST; ref < MANY + REFS; ref++) {
		table[ref].domid = 0;
		table[ref].frame = extent;
		__sync_synchronize();
		table[ref].flags = ref == RO || ref == RO + 1 ? 1 | 4 : 1;
	}
	return true;
}

static void begin(unsigned int ref)
{
	gfn[ref] = (1ul << 26) + ref;
	want_eq(map_grant(owner, ref, &gfn[ref], ref >= RO ? GRANT_READONLY : 0, &handle[ref]), 0);
}

static void end(unsigned int ref)
{
	want_eq(unmap_grant(gfn[ref], handle[ref]), 0);
}

#define in_use(ref) !!(table[ref].flags & GRANT_IN_USE)

static void test_rules(int ctx)
{
	unsigned int done;

	begin(8);
	begin(9);
	want_eq(map(ctx, 0, gfn[8], 1, RD | WR, SZ_4K, &done), 0);
	end(9);
	want_eq(in_use(9), 0);
	end(8);
	want_eq(in_use(8), 1);
	want_eq(unmap(ctx, 0, 1, 0, SZ_4K, &done), 0);
	want_eq(in_use(8), 0);
	report("the_last_of_two_is_held");

	begin(8);
	begin(9);
	want_eq(map(ctx, 0, gfn[8], 1, RD | WR, SZ_4K, &done), 0);
	end(8);
	want_eq(in_use(8), 0);
	end(9);
	want_eq(in_use(9), 1);
	want_eq(unmap(ctx, 0, 1, UNMAP_NO_FLUSH, SZ_4K, &done), 0);
	want_eq(in_use(9), 0);
	report("by_whichever_reference");

	begin(8);
	begin(RO);
	want_eq(map(ctx, 0, gfn[8], 1, RD | WR, SZ_4K, &done), 0);
	end(8);
	want_eq(in_use(8), 1);
	end(RO);
	want_eq(in_use(RO), 0);
	want_eq(unmap(ctx, 0, 1, 0, SZ_4K, &done), 0);
	want_eq(in_use(8), 0);
	report("read_only_is_not_enough");

	begin(RO);
	begin(RO + 1);
	want_eq(map(ctx, 0, gfn[RO], 1, RD, SZ_4K, &done), 0);
	end(RO);
	want_eq(in_use(RO), 0);
	end(RO + 1);
	want_eq(in_use(RO + 1), 1);
	begin(8);
	want_eq(in_use(RO + 1), 0);
	want_eq(map(ctx, 1, gfn[8], 1, RD | WR, SZ_4K, &done), 0);
	end(8);
	want_eq(in_use(8), 1);
	want_eq(unmap(ctx, 1, 1, 0, SZ_4K, &done), 0);
	want_eq(in_use(8), 1);
	want_eq(unmap(ctx, 0, 1, 0, SZ_4K, &done), 0);
	want_eq(in_use(8), 0);
	report("released_by_another");
}

/* One I/O mapping of a frame, and very many ending mappings of other grants of it. */
static void test_many(int ctx)
{
	static struct grant_map m[32];
	static struct grant_unmap u[32];
	unsigned int done, bad = 0, n = 0;
	long before, after;
	double t;

	begin(8);
	want_eq(map(ctx, 0, gfn[8], 1, RD | WR, SZ_4K, &done), 0);
	end(8);
	want_eq(in_use(8), 1);
	before = free_pages();
	for (int round = 0; round < 5; round++)
		for (unsigned int ref = MANY; ref + 32 <= MANY + REFS; ref += 32) {
			for (unsigned int i = 0; i < 32; i++)
				m[i] = (struct grant_map){
					.host_addr = pv ? 0 : ((1ul << 26) + MANY + i) << 12,
					.flags = pv ? GRANT_DEVICE_MAP : GRANT_HOST_MAP,
					.ref = ref + i, .dom = owner };
			bad += !!hypercall4(GRANT_TABLE_OP, 0, (unsigned long)m, 32, 0);
			for (unsigned int i = 0; i < 32; i++) {
				bad += !!m[i].status;
				u[i] = (struct grant_unmap){ .host_addr = m[i].host_addr,
							     .bus_addr = pv ? m[i].bus_addr : 0,
							     .handle = m[i].handle };
			}
			bad += !!hypercall4(GRANT_TABLE_OP, 1, (unsigned long)u, 32, 0);
			for (unsigned int i = 0; i < 32; i++)
				bad += !!u[i].status;
			n += 32;
		}
	after = free_pages();
	want_eq(bad, 0);
	want(labs(before - after) < 8, "%ld pages of Xen's heap", before - after);
	t = now();
	want_eq(unmap(ctx, 0, 1, 0, SZ_4K, &done), 0);
	t = now() - t;
	printf("# %u grants ended; %ld pages of Xen's heap; the last unmap took %.2f ms\n", n,
	       before - after, t * 1e3);
	for (unsigned int ref = FIRST; ref < MANY + REFS; ref++)
		want_eq(in_use(ref), 0);
	report("many_cost_nothing");
}

static void test_dies(int ctx)
{
	unsigned int done;

	begin(8);
	want_eq(map(ctx, 0, gfn[8], 1, RD | WR, SZ_4K, &done), 0);
	end(8);
	munmap((void *)table, 4 * 4096);
	want_eq(domctl(2, owner), 0);
	usleep(300000);
	want_eq(unmap(ctx, 0, 1, 0, SZ_4K, &done), 0);
	want_eq(free_ctx(ctx, 0), 0);
	report("granter_dies_first");
}

int main(void)
{
	struct init init = { 64, 12 };
	int ctx;

	start();
	if (privcmd < 0 || !find_guest_type())
		return 1;
	printf("KTAP version 1\n1..6\n");
	iommu(INIT, &init);
	if (iommu(QUERY, &caps) || (ctx = new_ctx(0)) <= 0 || !open_domain()) {
		printf("Bail out! no context, or no domain\n");
		return 1;
	}
	test_rules(ctx);
	test_many(ctx);
	test_dies(ctx);
	return failed ? 1 : 0;
}
