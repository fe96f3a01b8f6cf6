// SPDX-License-Identifier: GPL-2.0
/*
 * A guest in shadow mode grants one of its page tables, and dom0 maps it for a device. Making such
 * a page writable takes the guest's paging lock, which Xen must not do under dom0's P2M lock.
 *
 * Needs a PVH dom0 on a Xen with CONFIG_SHADOW_PAGING. Runs in dom0's userspace without an IOMMU
 * driver. KTAP on stdout.
 */
#define main hypercall_main
#include "hypercall.c"
#undef main

#define PAGES	16
#define ROOT	5	/* frame of the guest's page table */

/* Xen's record of a vCPU (hvm_hw_cpu), of which few fields matter. */
struct hvm_cpu {
	uint8_t fpu[512];
	uint64_t gpr[16], rip, rflags, cr0, cr2, cr3, cr4, dr[4], dr6, dr7;
	uint32_t sel[8], limit[10];
	uint64_t base[10];
	uint32_t arbytes[8];
	uint64_t rest[14];
};

_Static_assert(sizeof(struct hvm_cpu) == 1032, "layout");

struct hvm_desc { uint16_t type, instance; uint32_t len; };

/* DOMCTL_gethvmcontext, DOMCTL_sethvmcontext */
struct context {
	uint32_t cmd, version;
	uint16_t domid, pad[3];
	uint32_t size, pad2;
	uint64_t buffer;
	uint8_t room[112];
};

static long hvm_context(unsigned int cmd, unsigned int domid, void *buffer, size_t size)
{
	struct context op = { .cmd = cmd, .version = 0x17, .domid = domid, .size = size,
			      .buffer = (unsigned long)buffer };

	return hypercall(DOMCTL, (unsigned long)&op, 0);
}

/* Enables paging, with its root in frame ROOT. */
static long set_cpu(unsigned int domid)
{
	static uint8_t buffer[1 << 20];
	struct hvm_desc *desc = (void *)buffer;
	struct hvm_cpu *cpu;
	size_t at;
	long ret = hvm_context(33, domid, buffer, sizeof(buffer));

	if (ret < 0)
		return ret;
	/* Xen's header comes first. */
	at = sizeof(*desc) + desc->len;
	memset(buffer + at, 0, sizeof(buffer) - at);
	desc = (void *)(buffer + at);
	desc->type = 2;
	desc->len = sizeof(*cpu);
	cpu = (void *)(desc + 1);
	cpu->rip = 0x1000;
	cpu->rflags = 2;
	cpu->cr0 = 0x80000011;
	cpu->cr3 = ROOT << 12;
	cpu->cr4 = 0x10;
	cpu->dr6 = 0xffff0ff0;
	cpu->dr7 = 0x400;
	for (int i = 0; i < 6; i++) {
		cpu->arbytes[i] = i ? 0xc93 : 0xc9b;
		cpu->limit[i] = 0xffffffff;
	}
	cpu->arbytes[6] = 0x8b;
	cpu->arbytes[7] = 0x82;
	cpu->limit[6] = 0x67;
	at += sizeof(*desc) + sizeof(*cpu);
	/* The end: type 0. */
	at += sizeof(*desc);
	return hvm_context(34, domid, buffer, at);
}

static long new_shadowed(void)
{
	struct {
		uint32_t cmd, version;
		uint16_t domid, pad[3];
		uint64_t size;
		uint8_t room[120];
	} pool = { .cmd = 86, .version = 0x17, .size = 8 << 20 };
	uint64_t extent[PAGES];
	struct reservation r = { .extents = extent, .nr = PAGES };
	long dom;

	memset(&domctl_op, 0, sizeof(domctl_op));
	domctl_op.create.flags = 1;	/* HVM, and no HAP */
	domctl_op.create.max_vcpus = 1;
	domctl_op.create.max_evtchn = 1023;
	domctl_op.create.max_grant_frames = 4;
	domctl_op.create.max_maptrack_frames = 4;
	domctl_op.create.grant_opts = 1;
	domctl_op.create.emulation_flags = 1;
	dom = domctl(1, 0);
	if (dom)
		return dom;
	dom = domctl_op.domid;
	memset(&domctl_op, 0, sizeof(domctl_op));
	domctl_op.max_kb = 8192;
	want_eq(domctl(11, dom), 0);
	pool.domid = dom;
	want_eq(hypercall(DOMCTL, (unsigned long)&pool, 0), 0);
	memset(&domctl_op, 0, sizeof(domctl_op));
	domctl_op.room[0] = 1;
	want_eq(domctl(15, dom), 0);
	for (int i = 0; i < PAGES; i++)
		extent[i] = i;
	r.domid = dom;
	want_eq(hypercall(MEMORY_OP, 6, (unsigned long)&r), PAGES);
	want_eq(set_cpu(dom), 0);
	return dom;
}

int main(void)
{
	volatile struct { uint16_t flags, domid; uint32_t frame; } *table = NULL;
	struct init init = { 64, 10 };
	uint64_t gfn = 1ul << 26;
	unsigned int done;
	uint32_t handle;
	long dom;
	int ctx;

	start();
	printf("KTAP version 1\n1..1\n");
	iommu(INIT, &init);
	ctx = new_ctx(0);
	want(ctx > 0, "%d", ctx);
	dom = new_shadowed();
	want(dom > 0, "%ld: has Xen CONFIG_SHADOW_PAGING?", dom);
	if (!case_failed)
		table = grant_table(dom);
	want(table, "%d", errno);
	if (case_failed)
		goto out;
	for (unsigned int ref = 8; ref < 10; ref++) {
		table[ref].frame = ref == 8 ? ROOT : ROOT + 1;
		__sync_synchronize();
		table[ref].flags = 1;
		want_eq(map_grant(dom, ref, &gfn, 0, &handle), 0);
		printf("# for DMA now: frame %u\n", table[ref].frame);
		fflush(stdout);
		want_eq(map(ctx, 0, gfn, 1, RD | WR, SZ_4K, &done), 0);
		want_eq(unmap_grant(gfn, handle), 0);
		want_eq(table[ref].flags & GRANT_IN_USE, GRANT_IN_USE);
		want_eq(unmap(ctx, 0, 1, 0, SZ_4K, &done), 0);
		want_eq(table[ref].flags & GRANT_IN_USE, 0);
	}
	munmap((void *)table, SZ_4K);
out:
	if (dom > 0)
		want_eq(domctl(2, dom), 0);
	want_eq(free_ctx(ctx, 0), 0);
	report("page_table_of_a_guest");
	return failed ? 1 : 0;
}
