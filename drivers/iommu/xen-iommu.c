// SPDX-License-Identifier: GPL-2.0-only
/*
 * Xen PV-IOMMU driver
 *
 * On a Xen host the IOMMU belongs to the hypervisor. A domain with devices, in
 * practice dom0, gets I/O address spaces (contexts) from it by hypercall, maps
 * its pages into them and moves its devices between them. See
 * Documentation/virt/xen/pv-iommu.rst.
 *
 * The life of a mapping: map_pages() only records it; iotlb_sync_map() collects
 * what is recorded in its range into runs, pieces contiguous in both device and
 * guest frames, and has the hypervisor map them, many runs per trap. As long as
 * sync has not returned, the caller may not use the range; if sync fails, the
 * caller undoes the whole range. unmap_pages() has the hypervisor unmap at once,
 * flush included, except when the DMA API's flush queue is in use and this is no PV
 * domain: then the mappings are put aside, and flush_iotlb_all() unmaps them
 * together.
 *
 * The record is a tree of mappings per domain. It changes only with what the
 * hypervisor says that it has done, so that it tells what devices can reach. The
 * pieces of a scatterlist become segments of one mapping: until sync takes it, a
 * mapping grows at its end, whoever adds to it.
 *
 * Locking: xen_iommu_domain.flush_lock, then xen_iommu_domain.lock. Hypercalls
 * are made without .lock: the callers of the IOMMU API see to it that ranges in
 * use at the same time do not overlap, so that the lock only guards the tree.
 * xen_iommu.mutex guards contexts and the lists of attached devices.
 */

#define pr_fmt(fmt) "xen-iommu: " fmt

#include <linux/bitmap.h>
#include <linux/debugfs.h>
#include <linux/init.h>
#include <linux/io.h>
#include <linux/iommu.h>
#include <linux/kexec.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/msi.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/percpu.h>
#include <linux/rbtree.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/syscore_ops.h>

#include <xen/interface/memory.h>
#include <xen/interface/pv-iommu.h>
#include <xen/page.h>
#include <xen/xen.h>

#include <asm/xen/hypercall.h>

/* The KUnit suite has a copy of this file; the events are there once. */
#ifndef XEN_IOMMU_NO_TRACEPOINTS
#define CREATE_TRACE_POINTS
#endif
#include "xen_iommu_trace.h"

/* The layouts that hypervisors know. */
#define ABI_SIZE(type, size)								\
	static_assert(sizeof(struct pv_iommu_##type) == (size))
#define ABI_FIELD(type, field, offset)							\
	static_assert(offsetof(struct pv_iommu_##type, field) == (offset))

ABI_SIZE(capabilities, 24);
ABI_FIELD(capabilities, max_iova_addr, 0);
ABI_FIELD(capabilities, cap_flags, 8);
ABI_FIELD(capabilities, pgsize_mask, 12);
ABI_FIELD(capabilities, max_pasid, 16);
ABI_FIELD(capabilities, max_ctx_no, 20);
ABI_SIZE(init, 8);
ABI_FIELD(init, max_ctx_no, 0);
ABI_FIELD(init, arena_order, 4);
ABI_SIZE(alloc, 8);
ABI_FIELD(alloc, ctx_no, 0);
ABI_FIELD(alloc, alloc_flags, 4);
ABI_SIZE(free, 8);
ABI_FIELD(free, ctx_no, 0);
ABI_FIELD(free, free_flags, 4);
ABI_SIZE(map_pages, 40);
ABI_FIELD(map_pages, ctx_no, 0);
ABI_FIELD(map_pages, gfn, 8);
ABI_FIELD(map_pages, dfn, 16);
ABI_FIELD(map_pages, map_flags, 24);
ABI_FIELD(map_pages, pgsize, 28);
ABI_FIELD(map_pages, nr_pages, 32);
ABI_FIELD(map_pages, mapped, 36);
ABI_SIZE(unmap_pages, 32);
ABI_FIELD(unmap_pages, ctx_no, 0);
ABI_FIELD(unmap_pages, dfn, 8);
ABI_FIELD(unmap_pages, pgsize, 16);
ABI_FIELD(unmap_pages, nr_pages, 20);
ABI_FIELD(unmap_pages, unmapped, 24);
ABI_FIELD(unmap_pages, unmap_flags, 28);
ABI_SIZE(flush_pages, 24);
ABI_FIELD(flush_pages, ctx_no, 0);
ABI_FIELD(flush_pages, dfn, 8);
ABI_FIELD(flush_pages, pgsize, 16);
ABI_FIELD(flush_pages, nr_pages, 20);
ABI_SIZE(reattach_device, 12);
ABI_FIELD(reattach_device, ctx_no, 0);
ABI_FIELD(reattach_device, dev, 2);
ABI_FIELD(reattach_device, pasid, 8);
ABI_SIZE(run, 24);
ABI_FIELD(run, gfn, 0);
ABI_FIELD(run, dfn, 8);
ABI_FIELD(run, nr_frames, 16);

/* Base system peripheral: an IOMMU's own function. */
#define PCI_CLASS_SYSTEM_IOMMU	0x0806

#define MSI_RANGE_START		0xfee00000UL
#define MSI_RANGE_SIZE		0x00100000UL
/* HyperTransport: AMD's IOMMUs do not translate these addresses. */
#define HT_RANGE_START		0xfd00000000ULL
#define HT_RANGE_SIZE		0x0300000000ULL

/* Runs that are collected in a buffer of a CPU. */
#define XEN_IOMMU_MANY_RUNS	384
/* Hypercalls that go out in one multicall. */
#define XEN_IOMMU_MULTICALLS	64
/* Frames to look up in the p2m under a lock. */
#define XEN_IOMMU_MAX_LOOKUPS	16384
/* Mappings to walk over under a lock. */
#define XEN_IOMMU_MAX_MAPPINGS	4096
/* Segments that a mapping has room for at first; bytes that it grows to. */
#define XEN_IOMMU_FEW_SEGS	2
#define XEN_IOMMU_MAX_MAPPING	((size_t)SZ_4K)
/* Frames for one of the hypercalls whose counters have 32 bits. */
#define XEN_IOMMU_MAX_FRAMES	BIT(30)

/* Freed contexts that are kept: some hypervisors lose memory on each free. */
#define XEN_IOMMU_SPARE_CTX	8

/* Defaults and bounds of what IOMMU_init is asked for. */
#define XEN_IOMMU_MIN_CTX	64
#define XEN_IOMMU_MAX_CTX	1024
#define XEN_IOMMU_MIN_ORDER	6
#define XEN_IOMMU_MAX_ORDER	20

#define XEN_IOMMU_NO_CTX	U16_MAX

#define XEN_PFN_PHYS(x)		((phys_addr_t)(x) << XEN_PAGE_SHIFT)

enum xen_iommu_counter {
	XEN_IOMMU_HYPERCALLS,
	XEN_IOMMU_MULTICALLED,
	XEN_IOMMU_MAP_OPS,
	XEN_IOMMU_UNMAP_OPS,
	XEN_IOMMU_PAGES_MAPPED,
	XEN_IOMMU_PAGES_UNMAPPED,
	XEN_IOMMU_SHORT_MAPS,
	XEN_IOMMU_SHORT_UNMAPS,
	XEN_IOMMU_ATTACHES,
	XEN_IOMMU_ERRORS,
	XEN_IOMMU_NR_COUNTERS
};

static const char * const xen_iommu_counter_name[] __maybe_unused = {
	[XEN_IOMMU_HYPERCALLS]		= "hypercalls",
	[XEN_IOMMU_MULTICALLED]		= "multicalled",
	[XEN_IOMMU_MAP_OPS]		= "map_ops",
	[XEN_IOMMU_UNMAP_OPS]		= "unmap_ops",
	[XEN_IOMMU_PAGES_MAPPED]	= "pages_mapped",
	[XEN_IOMMU_PAGES_UNMAPPED]	= "pages_unmapped",
	[XEN_IOMMU_SHORT_MAPS]		= "short_maps",
	[XEN_IOMMU_SHORT_UNMAPS]	= "short_unmaps",
	[XEN_IOMMU_ATTACHES]		= "attaches",
	[XEN_IOMMU_ERRORS]		= "errors",
};

struct xen_iommu_stats {
	u64 count[XEN_IOMMU_NR_COUNTERS];
};

/**
 * struct xen_iommu_hyp - the hypervisor, as the driver sees it
 * @iommu_op: the PV-IOMMU hypercall
 * @iommu_op_regs: the same for ops with their arguments in registers; NULL where
 *	there is no such call
 * @multicall: several hypercalls in one trap
 * @memory_op: the memory hypercall
 * @pfn_to_gfn: guest frame of a kernel pfn; NULL where they are the same
 *
 * The KUnit suite puts a software hypervisor behind these.
 */
struct xen_iommu_hyp {
	long (*iommu_op)(unsigned int subop, void *arg);
	long (*iommu_op_regs)(unsigned int subop, unsigned long a1,
			      unsigned long a2, unsigned long a3,
			      unsigned long a4);
	int (*multicall)(struct multicall_entry *call, u32 nr);
	int (*memory_op)(unsigned int cmd, void *arg);
	unsigned long (*pfn_to_gfn)(unsigned long pfn);
};

/* A reserved region, which Xen maps 1:1 into every context. */
struct xen_iommu_rdm {
	phys_addr_t start;
	phys_addr_t last;
};

/*
 * What space for batches is for. The flush queue's timer often hits a map that
 * has taken the space and is in the hypervisor: a flush has its own.
 */
enum xen_iommu_use {
	XEN_IOMMU_MAP,
	XEN_IOMMU_FLUSH,
	XEN_IOMMU_NR_USES
};

/*
 * Space for one batch, just under 16 KiB. Taken by whoever sets @busy first,
 * never waited for.
 */
struct xen_iommu_buf {
	unsigned long busy;
	struct pv_iommu_run run[XEN_IOMMU_MANY_RUNS];
	struct multicall_entry call[XEN_IOMMU_MULTICALLS];
	union {
		struct pv_iommu_map_pages map;
		struct pv_iommu_unmap_pages unmap;
	} op[XEN_IOMMU_MULTICALLS];
};

/**
 * struct xen_iommu - the IOMMU that the hypervisor offers
 * @iommu: handle of the IOMMU core
 * @ops: our operations, with the static domains that there are
 * @hyp: the hypervisor
 * @stats: counters, per CPU
 * @buf: space for batches, for each use, per CPU
 * @max_iova: highest address that can be mapped, in bytes, inclusive
 * @pgsize_bitmap: page sizes, in bytes
 * @caps: IOMMUCAP_*
 * @max_ctx: highest context number
 * @pool_order: log2 of the pages in the pool, -1 if somebody else has set it
 * @inherited: the domain had been initialised before: by a kernel that has
 *	kexeced us, whose contexts are still there
 * @identity_ctx: context of the identity domain, or XEN_IOMMU_NO_CTX
 * @blocked_ctx: context of the blocked domain, or XEN_IOMMU_NO_CTX
 * @rdm: all reserved regions
 * @nr_rdm: number of these
 * @mutex: guards what follows, and the lists of devices of the domains
 * @domains: all paging domains
 * @ours: contexts that are ours, by number
 * @lost: those of them that the hypervisor did not take back, or that still
 *	have mappings or devices in them
 * @spare: contexts that are empty and free for use
 * @nr_spare: number of these
 * @nr_used: contexts in use, those of static domains included
 * @nr_lost: number of the lost ones
 */
struct xen_iommu {
	struct iommu_device iommu;
	struct iommu_ops ops;
	const struct xen_iommu_hyp *hyp;
	struct xen_iommu_stats __percpu *stats;
	struct xen_iommu_buf * __percpu *buf;

	u64 max_iova;
	unsigned long pgsize_bitmap;
	u32 caps;
	u16 max_ctx;
	int pool_order;
	bool inherited;

	u16 identity_ctx;
	u16 blocked_ctx;
	struct xen_iommu_rdm *rdm;
	unsigned int nr_rdm;

	struct mutex mutex;	/* contexts, lists of devices */
	struct list_head domains;
	unsigned long *ours;
	unsigned long *lost;
	u16 spare[XEN_IOMMU_SPARE_CTX];
	unsigned int nr_spare;
	unsigned int nr_used;
	unsigned int nr_lost;
};

/**
 * struct xen_iommu_domain - a paging domain
 * @domain: handle of the IOMMU core
 * @xi: the IOMMU
 * @ctx: the context
 * @list: place in xen_iommu.domains
 * @devices: devices that the hypervisor has in the context; xen_iommu.mutex
 * @flush_lock: one flush at a time: one that finds nothing left to unmap must
 *	not return before the one that is unmapping it
 * @lock: guards what follows
 * @mappings: tree of struct xen_iommu_mapping by iova, without overlaps
 * @hint: the mapping that was added or found last, NULL if it has gone
 * @room: nothing is mapped behind @hint up to this address, in bytes, inclusive; 0
 *	if it has not been looked for
 * @deferred: mappings to unmap at the next flush, the oldest first
 * @nr_deferred: number of these
 * @enforce_cache: all mappings are to be cache coherent
 * @uncached: there may be a mapping that is not
 * @stray: the hypervisor has a mapping that is not in the record, or a device
 *	that has been released
 */
struct xen_iommu_domain {
	struct iommu_domain domain;
	struct xen_iommu *xi;
	u16 ctx;
	struct list_head list;
	struct list_head devices;

	spinlock_t flush_lock;	/* one flush at a time */
	spinlock_t lock;	/* the record of mappings */
	struct rb_root mappings;
	struct xen_iommu_mapping *hint;
	unsigned long room;
	struct list_head deferred;
	unsigned long nr_deferred;
	bool enforce_cache;
	bool uncached;
	bool stray;
};

/**
 * struct xen_iommu_seg - a part of a mapping that is contiguous in phys
 * @iova: first address, in bytes; it ends where the next one begins
 * @phys: physical address of the first byte
 */
struct xen_iommu_seg {
	unsigned long iova;
	phys_addr_t phys;
};

/*
 * A mapping is new until sync takes it, and grows till then. When sync has been
 * tried, there is no more than it says to be mapped.
 */
enum xen_iommu_state {
	XEN_IOMMU_NEW,
	XEN_IOMMU_SYNCING,
	XEN_IOMMU_SYNCED
};

/**
 * struct xen_iommu_mapping - a range without holes
 * @node: place in the tree, as long as the caller has it mapped
 * @list: place among the deferred, or among those to free
 * @iova: first address, in bytes
 * @last: last address, in bytes, inclusive
 * @mapped: bytes from @iova on that the hypervisor has mapped
 * @flags: IOMMU_MAP_*
 * @nr: number of segments; there is at least one
 * @max: segments that there is room for
 * @hint: index of the segment that was found last
 * @state: how far sync is
 * @seg: the segments, in order; the first begins at @iova
 */
struct xen_iommu_mapping {
	union {
		struct rb_node node;
		struct list_head list;
	};
	unsigned long iova;
	unsigned long last;
	unsigned long mapped;
	u32 flags;
	u16 nr;
	u16 max;
	u16 hint;
	enum xen_iommu_state state;
	struct xen_iommu_seg seg[] __counted_by(max);
};

/**
 * struct xen_iommu_dev - a device
 * @xi: the IOMMU
 * @pdev: the device
 * @dom: paging domain that the hypervisor has it in, NULL if there is none
 * @ctx: context that it was moved to last
 * @error: of the last attempt to move it
 * @list: place in xen_iommu_domain.devices
 */
struct xen_iommu_dev {
	struct xen_iommu *xi;
	struct pci_dev *pdev;
	struct xen_iommu_domain *dom;
	u16 ctx;
	int error;
	struct list_head list;
};

/*
 * Runs on their way to the hypervisor; all have the same flags. More than one are
 * in a buffer.
 */
struct xen_iommu_batch {
	struct pv_iommu_run *run;
	struct xen_iommu_buf *buf;
	unsigned int nr;
	unsigned int max;
	u32 flags;
	struct pv_iommu_run one;
};

static bool xen_iommu_enable = true;
module_param_named(enable, xen_iommu_enable, bool, 0444);
MODULE_PARM_DESC(enable, "Use Xen's PV-IOMMU where there is one (default: Y)");

static unsigned int xen_iommu_contexts;
module_param_named(contexts, xen_iommu_contexts, uint, 0444);
MODULE_PARM_DESC(contexts, "Number of contexts to ask for (default: from memory size)");

static int xen_iommu_pool_order = -1;
module_param_named(pool_order, xen_iommu_pool_order, int, 0444);
MODULE_PARM_DESC(pool_order, "log2 of the pages for I/O page tables to ask for (default: from memory size)");

static inline struct xen_iommu_domain *to_xen_domain(struct iommu_domain *domain)
{
	return container_of(domain, struct xen_iommu_domain, domain);
}

/*
 * Hypercalls
 */

static void xen_iommu_count(struct xen_iommu *xi, enum xen_iommu_counter what,
			    u64 n)
{
	this_cpu_add(xi->stats->count[what], n);
}

static int xen_iommu_op(struct xen_iommu *xi, unsigned int subop, void *arg)
{
	int ret;

	xen_iommu_count(xi, XEN_IOMMU_HYPERCALLS, 1);
	ret = xi->hyp->iommu_op(subop, arg);
	if (ret) {
		xen_iommu_count(xi, XEN_IOMMU_ERRORS, 1);
		trace_xen_iommu_error(subop, ret);
	}
	return ret;
}

/*
 * What a call that took a counter has done. The hypervisor adds to the counter
 * and it is right after an error, too; success without completion is none.
 */
static int xen_iommu_result(int ret, u32 wanted, u32 counted, u32 *done)
{
	*done = min(counted, wanted);
	if (!ret && *done < wanted)
		return -EIO;
	return ret;
}

/*
 * The largest page size that a run can begin with, and how many frames of it
 * to map so before a larger one fits.
 */
static unsigned int xen_iommu_run_order(struct xen_iommu *xi,
					const struct pv_iommu_run *run,
					u64 *frames)
{
	unsigned long sizes = xi->pgsize_bitmap >> XEN_PAGE_SHIFT;
	u64 nr = min_t(u64, run->nr_frames, XEN_IOMMU_MAX_FRAMES);
	unsigned long align = run->dfn | run->gfn;
	unsigned int order, next;
	u64 offset;

	sizes &= GENMASK(__fls(nr), 0);
	if (align)
		sizes &= GENMASK(__ffs(align), 0);
	/* The smallest size is the unit of all addresses and sizes. */
	order = __fls(sizes);

	*frames = round_down(nr, BIT(order));
	sizes = (xi->pgsize_bitmap >> XEN_PAGE_SHIFT) & ~GENMASK(order, 0);
	if (!sizes)
		return order;

	next = __ffs(sizes);
	if ((run->dfn ^ run->gfn) & (BIT(next) - 1))
		return order;
	offset = BIT(next) - (align & (BIT(next) - 1));
	if (offset + BIT(next) <= nr)
		*frames = offset;
	return order;
}

/* Takes one hypercall's worth off the front of a run. */
static void xen_iommu_next_map(struct xen_iommu_domain *dom,
			       struct pv_iommu_run *run, u32 flags,
			       struct pv_iommu_map_pages *op)
{
	unsigned int order;
	u64 frames;

	order = xen_iommu_run_order(dom->xi, run, &frames);
	*op = (struct pv_iommu_map_pages) {
		.ctx_no = dom->ctx,
		.gfn = run->gfn,
		.dfn = run->dfn,
		.map_flags = flags,
		.pgsize = BIT(order + XEN_PAGE_SHIFT),
		.nr_pages = frames >> order,
	};
	run->gfn += frames;
	run->dfn += frames;
	run->nr_frames -= frames;
}

static void xen_iommu_next_unmap(struct xen_iommu_domain *dom,
				 struct pv_iommu_run *run, u32 flags,
				 struct pv_iommu_unmap_pages *op)
{
	unsigned int shift = __ffs(dom->xi->pgsize_bitmap);
	u64 frames = min_t(u64, run->nr_frames, XEN_IOMMU_MAX_FRAMES);

	/* In the smallest unit: it need not be unmapped as it was mapped. */
	*op = (struct pv_iommu_unmap_pages) {
		.ctx_no = dom->ctx,
		.dfn = run->dfn,
		.pgsize = BIT(shift),
		.nr_pages = frames >> (shift - XEN_PAGE_SHIFT),
		.unmap_flags = flags,
	};
	run->dfn += frames;
	run->nr_frames -= frames;
}

static int xen_iommu_map_one(struct xen_iommu_domain *dom,
			     struct pv_iommu_run *run, u32 flags, u64 *done)
{
	struct xen_iommu *xi = dom->xi;
	struct pv_iommu_map_pages op;
	u64 dfn = run->dfn;
	u32 wanted, got;
	int ret;

	xen_iommu_next_map(dom, run, flags, &op);
	wanted = op.nr_pages;
	ret = xen_iommu_op(xi, IOMMU_map_pages, &op);
	ret = xen_iommu_result(ret, wanted, op.mapped, &got);
	*done += (u64)got * (op.pgsize >> XEN_PAGE_SHIFT);
	xen_iommu_count(xi, XEN_IOMMU_MAP_OPS, 1);
	trace_xen_iommu_map(dom->ctx, dfn, wanted, op.pgsize, got, ret);
	return ret;
}

/* Translated domains pass a physical address. Buffers are contiguous there. */
static unsigned long xen_iommu_list(struct xen_iommu *xi,
				    struct pv_iommu_run *run)
{
	return xi->hyp->pfn_to_gfn ? (unsigned long)run : virt_to_phys(run);
}

/*
 * All runs in one hypercall, with the arguments in registers. It returns how much
 * it has done; what has kept it from doing more, if it was not preemption, comes
 * out when it is made for the remainder.
 */
static int xen_iommu_runs(struct xen_iommu_domain *dom, bool map, u32 flags,
			  struct pv_iommu_run *run, unsigned int nr,
			  u64 *done)
{
	u64 ctx = dom->ctx | (u64)flags << 32, wanted = 0;
	struct xen_iommu *xi = dom->xi;
	unsigned long list = 0;
	unsigned int subop;
	long ret = 0;

	if (nr > 1)
		list = xen_iommu_list(xi, run);
	if (nr == 1)
		subop = map ? IOMMU_map_range : IOMMU_unmap_range;
	else
		subop = map ? IOMMU_map_runs : IOMMU_unmap_runs;
	for (unsigned int i = 0; i < nr; i++)
		wanted += run[i].nr_frames;

	for (*done = 0; *done < wanted; *done += ret) {
		xen_iommu_count(xi, XEN_IOMMU_HYPERCALLS, 1);
		if (nr == 1)
			ret = xi->hyp->iommu_op_regs(subop, ctx,
						     run->dfn + *done,
						     run->nr_frames - *done,
						     run->gfn + *done);
		else
			ret = xi->hyp->iommu_op_regs(subop, ctx,
						     list, nr, *done);
		/* Of a list, it counts what was done before. */
		if (ret > 0 && nr > 1)
			ret -= *done;
		if (ret <= 0) {
			ret = ret ?: -EIO;
			break;
		}
		ret = min_t(u64, ret, wanted - *done);
	}

	ret = min(ret, 0L);
	if (ret) {
		xen_iommu_count(xi, XEN_IOMMU_ERRORS, 1);
		trace_xen_iommu_error(subop, ret);
	}
	xen_iommu_count(xi, map ? XEN_IOMMU_MAP_OPS : XEN_IOMMU_UNMAP_OPS, 1);
	trace_xen_iommu_runs(subop, dom->ctx, run->dfn, nr, wanted, *done, ret);
	return ret;
}

static int xen_iommu_unmap_one(struct xen_iommu_domain *dom,
			       struct pv_iommu_run *run, u64 *done)
{
	struct xen_iommu *xi = dom->xi;
	struct pv_iommu_unmap_pages op;
	u64 dfn = run->dfn;
	u32 wanted, got;
	int ret;

	if (xi->caps & IOMMUCAP_runs)
		return xen_iommu_runs(dom, false, 0, run, 1, done);

	xen_iommu_next_unmap(dom, run, 0, &op);
	wanted = op.nr_pages;
	ret = xen_iommu_op(xi, IOMMU_unmap_pages, &op);
	ret = xen_iommu_result(ret, wanted, op.unmapped, &got);
	*done += (u64)got * (op.pgsize >> XEN_PAGE_SHIFT);
	xen_iommu_count(xi, XEN_IOMMU_UNMAP_OPS, 1);
	trace_xen_iommu_unmap(dom->ctx, dfn, wanted, op.pgsize, got, ret);
	return ret;
}

/* Unmaps what is not to be in the record. */
static void xen_iommu_undo(struct xen_iommu_domain *dom, u64 dfn, u64 frames)
{
	u64 done;

	do {
		struct pv_iommu_run run = { .dfn = dfn, .nr_frames = frames };

		done = 0;
		xen_iommu_unmap_one(dom, &run, &done);
		dfn += done;
		frames -= done;
	} while (done && frames);

	if (frames) {
		WRITE_ONCE(dom->stray, true);
		pr_warn_ratelimited("context %u: dfn %#llx stays mapped\n",
				    dom->ctx, dfn);
	}
}

/*
 * Several hypercalls in one trap. They are all carried out, even those behind
 * one that failed; what these did is undone, to leave a prefix behind.
 */
static int xen_iommu_map_multi(struct xen_iommu_domain *dom,
			       struct xen_iommu_batch *b, u64 *done)
{
	struct pv_iommu_run *run = b->run, *end = run + b->nr;
	struct xen_iommu *xi = dom->xi;
	struct xen_iommu_buf *buf = b->buf;
	int all, err = 0;

	while (run < end && !err) {
		u64 dfn[XEN_IOMMU_MULTICALLS];
		u32 wanted[XEN_IOMMU_MULTICALLS];
		unsigned int nr = 0;

		while (run < end && nr < XEN_IOMMU_MULTICALLS) {
			dfn[nr] = run->dfn;
			xen_iommu_next_map(dom, run, b->flags, &buf->op[nr].map);
			wanted[nr] = buf->op[nr].map.nr_pages;
			buf->call[nr] = (struct multicall_entry) {
				.op = __HYPERVISOR_iommu_op,
				.args[0] = IOMMU_map_pages,
				.args[1] = (unsigned long)&buf->op[nr],
			};
			nr++;
			if (!run->nr_frames)
				run++;
		}

		xen_iommu_count(xi, XEN_IOMMU_HYPERCALLS, 1);
		xen_iommu_count(xi, XEN_IOMMU_MULTICALLED, nr);
		xen_iommu_count(xi, XEN_IOMMU_MAP_OPS, nr);
		all = xi->hyp->multicall(buf->call, nr);

		/* If it failed, some may have been carried out, still. */
		for (unsigned int i = 0; i < nr; i++) {
			struct pv_iommu_map_pages *op = &buf->op[i].map;
			u64 frames;
			u32 got;
			int ret;

			ret = xen_iommu_result(all ?: buf->call[i].result,
					       wanted[i], op->mapped, &got);
			trace_xen_iommu_map(dom->ctx, dfn[i], wanted[i],
					    op->pgsize, got, ret);
			frames = (u64)got * (op->pgsize >> XEN_PAGE_SHIFT);
			if (!err) {
				*done += frames;
				err = ret;
				continue;
			}
			if (frames)
				xen_iommu_undo(dom, dfn[i], frames);
		}
	}

	if (err) {
		xen_iommu_count(xi, XEN_IOMMU_ERRORS, 1);
		trace_xen_iommu_error(IOMMU_map_pages, err);
	}
	return err;
}

/* Space for many runs, or NULL if somebody on this CPU is just using it. */
static struct xen_iommu_buf *xen_iommu_get_buf(struct xen_iommu *xi,
					       enum xen_iommu_use use)
{
	struct xen_iommu_buf *buf = *raw_cpu_ptr(xi->buf);

	if (!buf || test_and_set_bit_lock(0, &buf[use].busy))
		return NULL;
	return &buf[use];
}

static void xen_iommu_put_buf(struct xen_iommu_buf *buf)
{
	if (buf)
		clear_bit_unlock(0, &buf->busy);
}

/**
 * xen_iommu_issue - have the hypervisor map a batch of runs
 * @dom: the domain
 * @b: the runs; used up
 * @done: frames mapped, from the first run on; right on error, too
 *
 * Context: any; the calling CPU may be in the hypervisor for long.
 * Return: 0 if all is mapped, or a negative error.
 */
static int xen_iommu_issue(struct xen_iommu_domain *dom,
			   struct xen_iommu_batch *b, u64 *done)
{
	struct xen_iommu *xi = dom->xi;
	int ret = 0;

	*done = 0;
	if (xi->caps & IOMMUCAP_runs) {
		ret = xen_iommu_runs(dom, true, b->flags, b->run, b->nr, done);
	} else if (b->nr > 1) {
		ret = xen_iommu_map_multi(dom, b, done);
	} else {
		while (b->run->nr_frames && !ret)
			ret = xen_iommu_map_one(dom, b->run, b->flags, done);
	}

	xen_iommu_count(xi, XEN_IOMMU_PAGES_MAPPED, *done);
	if (ret)
		xen_iommu_count(xi, XEN_IOMMU_SHORT_MAPS, 1);
	return ret;
}

/**
 * xen_iommu_unmap_range - have the hypervisor unmap a range
 * @dom: the domain
 * @iova: first address, in bytes
 * @size: in bytes; all of it is mapped
 *
 * Goes on after a short result as long as there is progress.
 *
 * Context: any; the calling CPU may be in the hypervisor for long.
 * Return: bytes unmapped, from @iova on. No device reaches these any more.
 */
static size_t xen_iommu_unmap_range(struct xen_iommu_domain *dom,
				    unsigned long iova, size_t size)
{
	struct xen_iommu *xi = dom->xi;
	u64 frames = size >> XEN_PAGE_SHIFT, total = 0, done;
	int ret;

	do {
		struct pv_iommu_run run = {
			.dfn = (iova >> XEN_PAGE_SHIFT) + total,
			.nr_frames = frames - total,
		};

		done = 0;
		ret = xen_iommu_unmap_one(dom, &run, &done);
		total += done;
		if (ret)
			xen_iommu_count(xi, XEN_IOMMU_SHORT_UNMAPS, 1);
	} while (done && total < frames);

	xen_iommu_count(xi, XEN_IOMMU_PAGES_UNMAPPED, total);
	if (total < frames)
		pr_warn_ratelimited("context %u: iova %#llx-%#llx stays mapped: error %d\n",
				    dom->ctx,
				    iova + (total << XEN_PAGE_SHIFT),
				    (u64)iova + size - 1, ret);
	return total << XEN_PAGE_SHIFT;
}

static void xen_iommu_batch_init(struct xen_iommu_batch *b)
{
	b->run = &b->one;
	b->max = 1;
	b->buf = NULL;
	b->nr = 0;
}

/* Adds frames to a batch; false if there is no room. */
static bool xen_iommu_batch_add(struct xen_iommu *xi, struct xen_iommu_batch *b,
				u64 dfn, u64 gfn, u64 nr_frames)
{
	struct pv_iommu_run *run = b->nr ? &b->run[b->nr - 1] : NULL;

	if (run && run->dfn + run->nr_frames == dfn &&
	    run->gfn + run->nr_frames == gfn) {
		run->nr_frames += nr_frames;
		return true;
	}

	if (b->nr == b->max && !b->buf) {
		b->buf = xen_iommu_get_buf(xi, XEN_IOMMU_MAP);
		if (b->buf) {
			b->buf->run[0] = b->one;
			b->run = b->buf->run;
			b->max = ARRAY_SIZE(b->buf->run);
		}
	}
	if (b->nr == b->max)
		return false;

	b->run[b->nr++] = (struct pv_iommu_run) {
		.dfn = dfn,
		.gfn = gfn,
		.nr_frames = nr_frames,
	};
	return true;
}

/*
 * The record of mappings
 */

static unsigned long xen_iommu_mapping_size(const struct xen_iommu_mapping *m)
{
	return m->last - m->iova + 1;
}

static struct xen_iommu_mapping *xen_iommu_alloc_mapping(unsigned int max,
							 gfp_t gfp)
{
	struct xen_iommu_mapping *m = kmalloc_flex(*m, seg, max, gfp);

	if (m) {
		m->max = max;
		m->hint = 0;
	}
	return m;
}

/*
 * Index of the segment that @iova is in. Who looks one up often looks up the next
 * one then.
 */
static unsigned int xen_iommu_find_seg(struct xen_iommu_mapping *m,
				       unsigned long iova)
{
	unsigned int found = 0, end = m->nr;

	if (m->hint < end && m->seg[m->hint].iova <= iova) {
		found = m->hint;
		if (found + 1 < end && m->seg[found + 1].iova <= iova)
			found++;
		if (found + 1 < end && m->seg[found + 1].iova > iova)
			end = found + 1;
	}
	while (end - found > 1) {
		unsigned int mid = (found + end) / 2;

		if (m->seg[mid].iova <= iova)
			found = mid;
		else
			end = mid;
	}
	m->hint = found;
	return found;
}

static struct xen_iommu_mapping *xen_iommu_next(struct xen_iommu_mapping *m)
{
	return rb_entry_safe(rb_next(&m->node), struct xen_iommu_mapping, node);
}

static void xen_iommu_set_hint(struct xen_iommu_domain *dom,
			       struct xen_iommu_mapping *m)
{
	dom->hint = m;
	dom->room = 0;
}

/* The mapping that contains @iova, or the first one after it. */
static struct xen_iommu_mapping *xen_iommu_find(struct xen_iommu_domain *dom,
						unsigned long iova)
{
	struct rb_node *node = dom->mappings.rb_node;
	struct xen_iommu_mapping *found = dom->hint;

	lockdep_assert_held(&dom->lock);
	if (found && found->iova <= iova && iova <= found->last)
		return found;

	found = NULL;
	while (node) {
		struct xen_iommu_mapping *m =
			rb_entry(node, struct xen_iommu_mapping, node);

		if (m->last < iova) {
			node = node->rb_right;
		} else {
			found = m;
			if (m->iova <= iova) {
				xen_iommu_set_hint(dom, m);
				break;
			}
			node = node->rb_left;
		}
	}
	return found;
}

/* -EADDRINUSE if there is something already. */
static int xen_iommu_insert(struct xen_iommu_domain *dom,
			    struct xen_iommu_mapping *new)
{
	struct rb_node **link = &dom->mappings.rb_node, *parent = NULL;

	lockdep_assert_held(&dom->lock);
	while (*link) {
		struct xen_iommu_mapping *m =
			rb_entry(*link, struct xen_iommu_mapping, node);

		parent = *link;
		if (new->last < m->iova)
			link = &parent->rb_left;
		else if (new->iova > m->last)
			link = &parent->rb_right;
		else
			return -EADDRINUSE;
	}
	rb_link_node(&new->node, parent, link);
	rb_insert_color(&new->node, &dom->mappings);
	xen_iommu_set_hint(dom, new);
	return 0;
}

static void xen_iommu_remove(struct xen_iommu_domain *dom,
			     struct xen_iommu_mapping *m)
{
	rb_erase(&m->node, &dom->mappings);
	if (dom->hint == m)
		xen_iommu_set_hint(dom, NULL);
}

/* Copies the segments of @m from @iova on. @to may be @m. */
static void xen_iommu_copy_segs(struct xen_iommu_mapping *to,
				struct xen_iommu_mapping *m,
				unsigned long iova)
{
	unsigned int first = xen_iommu_find_seg(m, iova);

	to->nr = m->nr - first;
	memmove(to->seg, m->seg + first, to->nr * sizeof(to->seg[0]));
	to->hint = 0;
	to->seg[0].phys += iova - to->seg[0].iova;
	to->seg[0].iova = iova;
}

/* Takes a range off the front of a mapping that has more than that. */
static void xen_iommu_trim(struct xen_iommu_mapping *m, unsigned long size)
{
	xen_iommu_copy_segs(m, m, m->iova + size);
	m->iova += size;
	m->mapped -= min(size, m->mapped);
}

/* Takes off its end, from @iova on. */
static void xen_iommu_truncate(struct xen_iommu_mapping *m, unsigned long iova)
{
	m->last = iova - 1;
	m->mapped = min(m->mapped, iova - m->iova);
	m->nr = xen_iommu_find_seg(m, m->last) + 1;
}

/* Makes the end of @m, from @iova on, a mapping of its own: @tail. */
static void xen_iommu_split(struct xen_iommu_domain *dom,
			    struct xen_iommu_mapping *m, unsigned long iova,
			    struct xen_iommu_mapping *tail)
{
	tail->iova = iova;
	tail->last = m->last;
	tail->mapped = m->mapped - min(m->mapped, iova - m->iova);
	tail->flags = m->flags;
	tail->state = m->state;
	xen_iommu_copy_segs(tail, m, iova);
	xen_iommu_truncate(m, iova);
	/* Cannot overlap: it was part of m. */
	WARN_ON_ONCE(xen_iommu_insert(dom, tail));
}

/*
 * Takes a range out of the record. Mappings to free go to @garbage. @spare is
 * used if the range lies within one mapping.
 */
static void xen_iommu_erase(struct xen_iommu_domain *dom, unsigned long iova,
			    unsigned long last, struct list_head *garbage,
			    struct xen_iommu_mapping **spare)
{
	struct xen_iommu_mapping *m = xen_iommu_find(dom, iova), *next;

	for (; m && m->iova <= last; m = next) {
		next = xen_iommu_next(m);

		if (m->iova < iova) {
			if (m->last > last) {
				xen_iommu_split(dom, m, last + 1, *spare);
				*spare = NULL;
			}
			xen_iommu_truncate(m, iova);
		} else if (m->last > last) {
			xen_iommu_trim(m, last + 1 - m->iova);
		} else {
			xen_iommu_remove(dom, m);
			list_add(&m->list, garbage);
		}
	}
}

static void xen_iommu_free_mappings(struct list_head *garbage)
{
	struct xen_iommu_mapping *m, *next;

	list_for_each_entry_safe(m, next, garbage, list)
		kfree(m);
}

/*
 * Mapping
 */

/* Adds a part of a segment to the batch; false if there was no room. */
static bool xen_iommu_collect_seg(struct xen_iommu *xi, struct xen_iommu_batch *b,
				  u64 dfn, u64 pfn, u64 nr, unsigned int *lookups)
{
	unsigned long (*pfn_to_gfn)(unsigned long pfn) = xi->hyp->pfn_to_gfn;
	u64 start, len, max, next, unit;

	if (!pfn_to_gfn)
		return xen_iommu_batch_add(xi, b, dfn, pfn, nr);

	/* The unit of all calls is the smallest page size. */
	unit = BIT(__ffs(xi->pgsize_bitmap) - XEN_PAGE_SHIFT);
	next = pfn_to_gfn(pfn);
	while (nr) {
		if (!*lookups)
			return false;
		start = next;
		max = min_t(u64, nr, *lookups);
		for (len = unit; len < max; len += unit) {
			next = pfn_to_gfn(pfn + len);
			if (next != start + len)
				break;
		}
		if (!xen_iommu_batch_add(xi, b, dfn, start, len))
			return false;
		*lookups -= min(*lookups, len);
		dfn += len;
		pfn += len;
		nr -= len;
	}
	return true;
}

/* Adds what there is to map of @m to the batch; false if there was no room. */
static bool xen_iommu_collect_one(struct xen_iommu *xi,
				  struct xen_iommu_mapping *m,
				  struct xen_iommu_batch *b,
				  unsigned int *lookups)
{
	unsigned long iova = m->iova + m->mapped, end;

	if (b->nr && b->flags != m->flags)
		return false;
	b->flags = m->flags;

	for (unsigned int i = xen_iommu_find_seg(m, iova); i < m->nr; i++) {
		phys_addr_t phys = m->seg[i].phys + (iova - m->seg[i].iova);

		end = i + 1 < m->nr ? m->seg[i + 1].iova : m->last + 1;
		if (!xen_iommu_collect_seg(xi, b, iova >> XEN_PAGE_SHIFT,
					   phys >> XEN_PAGE_SHIFT,
					   (end - iova) >> XEN_PAGE_SHIFT,
					   lookups))
			return false;
		iova = end;
	}
	return true;
}

/*
 * Takes for sync the part of a new mapping that is in its range. What is outside
 * is somebody else's, who will sync it. Returns NULL if memory is short.
 */
static struct xen_iommu_mapping *xen_iommu_take_new(struct xen_iommu_domain *dom,
						    struct xen_iommu_mapping *m,
						    unsigned long iova,
						    unsigned long last)
{
	struct xen_iommu_mapping *tail;

	if (m->iova < iova) {
		tail = xen_iommu_alloc_mapping(m->max, GFP_ATOMIC);
		if (!tail)
			return NULL;
		xen_iommu_split(dom, m, iova, tail);
		m = tail;
	}
	if (m->last > last) {
		tail = xen_iommu_alloc_mapping(m->max, GFP_ATOMIC);
		if (!tail)
			return NULL;
		xen_iommu_split(dom, m, last + 1, tail);
	}
	m->state = XEN_IOMMU_SYNCING;
	return m;
}

/*
 * Fills a batch from what is to be mapped in a range. Returns 1 if there is
 * more, 0 if not, or -ENOMEM.
 */
static int xen_iommu_collect(struct xen_iommu_domain *dom, unsigned long *iova,
			     unsigned long last, struct xen_iommu_batch *b)
{
	unsigned int lookups = XEN_IOMMU_MAX_LOOKUPS;
	struct xen_iommu_mapping *m;
	bool more = false;

	b->nr = 0;
	guard(spinlock_irqsave)(&dom->lock);
	for (m = xen_iommu_find(dom, *iova); m && m->iova <= last && !more;
	     m = xen_iommu_next(m)) {
		if (m->state == XEN_IOMMU_SYNCED)
			continue;
		if (m->state == XEN_IOMMU_NEW) {
			m = xen_iommu_take_new(dom, m, *iova, last);
			if (!m)
				return -ENOMEM;
		}
		if (!b->nr)
			*iova = m->iova;
		more = !xen_iommu_collect_one(dom->xi, m, b, &lookups);
	}
	return more;
}

/* Enters into the record what has been mapped; after an error, for good. */
static void xen_iommu_mapped(struct xen_iommu_domain *dom, unsigned long iova,
			     unsigned long last, unsigned long size, int err)
{
	struct xen_iommu_mapping *m;
	unsigned long flags, n;

	spin_lock_irqsave(&dom->lock, flags);
	for (m = xen_iommu_find(dom, iova); m && m->last <= last && (size || err);
	     m = xen_iommu_next(m)) {
		if (m->state == XEN_IOMMU_SYNCED || m->iova < iova)
			continue;
		n = min(size, xen_iommu_mapping_size(m) - m->mapped);
		m->mapped += n;
		size -= n;
		if (err || m->mapped == xen_iommu_mapping_size(m))
			m->state = XEN_IOMMU_SYNCED;
	}
	spin_unlock_irqrestore(&dom->lock, flags);
}

static int xen_iommu_iotlb_sync_map(struct iommu_domain *domain,
				    unsigned long iova, size_t size)
{
	struct xen_iommu_domain *dom = to_xen_domain(domain);
	unsigned long last = iova + size - 1;
	struct xen_iommu_batch batch;
	int more, ret = 0;
	u64 done;

	if (!size)
		return 0;

	xen_iommu_batch_init(&batch);
	do {
		more = xen_iommu_collect(dom, &iova, last, &batch);
		if (!batch.nr && !more)
			break;
		done = 0;
		ret = more < 0 ? more : xen_iommu_issue(dom, &batch, &done);
		xen_iommu_mapped(dom, iova, last, done << XEN_PAGE_SHIFT, ret);
	} while (more && !ret);
	xen_iommu_put_buf(batch.buf);
	return ret;
}

/*
 * Makes a range part of the mapping that ends where it begins, if that is new.
 * Otherwise @max is how many segments its own mapping is to have room for: more
 * if it goes on with a long scatterlist.
 */
static bool xen_iommu_append(struct xen_iommu_domain *dom, unsigned long iova,
			     unsigned long last, phys_addr_t phys, u32 flags,
			     unsigned int *max)
{
	struct xen_iommu_mapping *m, *next;
	struct xen_iommu_seg *seg;
	size_t size;

	*max = XEN_IOMMU_FEW_SEGS;
	m = iova ? xen_iommu_find(dom, iova - 1) : NULL;
	if (!m || m->last != iova - 1 || m->state != XEN_IOMMU_NEW ||
	    m->flags != flags)
		return false;
	/* It is the hint now. */
	if (!dom->room) {
		next = xen_iommu_next(m);
		dom->room = next ? next->iova - 1 : ULONG_MAX;
	}
	if (last > dom->room)
		return false;

	seg = &m->seg[m->nr - 1];
	if (seg->phys + (iova - seg->iova) != phys) {
		if (m->nr == m->max) {
			size = kmalloc_size_roundup(struct_size(m, seg, 8 * m->max));
			size = min(size, XEN_IOMMU_MAX_MAPPING);
			*max = (size - sizeof(*m)) / sizeof(m->seg[0]);
			return false;
		}
		m->seg[m->nr++] = (struct xen_iommu_seg) {
			.iova = iova,
			.phys = phys,
		};
	}
	m->last = last;
	return true;
}

static int xen_iommu_map_pages(struct iommu_domain *domain, unsigned long iova,
			       phys_addr_t paddr, size_t pgsize, size_t pgcount,
			       int prot, gfp_t gfp, size_t *mapped)
{
	struct xen_iommu_domain *dom = to_xen_domain(domain);
	struct xen_iommu *xi = dom->xi;
	size_t size = pgsize * pgcount;
	unsigned long last = iova + size - 1;
	struct xen_iommu_mapping *m;
	u32 map_flags = 0;
	unsigned int max;
	int ret;

	if (!(prot & (IOMMU_READ | IOMMU_WRITE)))
		return -EINVAL;
	if (!size || last < iova || last > domain->geometry.aperture_end)
		return -ERANGE;

	if (prot & IOMMU_READ)
		map_flags |= IOMMU_MAP_readable;
	if (prot & IOMMU_WRITE)
		map_flags |= IOMMU_MAP_writeable;
	if ((prot & IOMMU_CACHE) && (xi->caps & IOMMUCAP_cache))
		map_flags |= IOMMU_MAP_cache;

	scoped_guard(spinlock_irqsave, &dom->lock) {
		if (dom->enforce_cache)
			map_flags |= IOMMU_MAP_cache;
		if (!(map_flags & IOMMU_MAP_cache))
			dom->uncached = true;
		if (xen_iommu_append(dom, iova, last, paddr, map_flags, &max)) {
			*mapped = size;
			return 0;
		}
	}

	m = xen_iommu_alloc_mapping(max, gfp);
	if (!m)
		return -ENOMEM;

	m->iova = iova;
	m->last = last;
	m->mapped = 0;
	m->flags = map_flags;
	m->state = XEN_IOMMU_NEW;
	m->nr = 1;
	m->seg[0].iova = iova;
	m->seg[0].phys = paddr;

	scoped_guard(spinlock_irqsave, &dom->lock)
		ret = xen_iommu_insert(dom, m);
	if (ret) {
		kfree(m);
		return ret;
	}
	*mapped = size;
	return 0;
}

/*
 * Unmapping
 */

/*
 * Looks at what there is from @iova on. Returns how much of it is of one kind,
 * all in the hypervisor (@real) or all not, and without holes; 0 if there is
 * nothing. @split: taking it out, or a part of what is real, may need a spare mapping,
 * with room for as many segments; 0 if not.
 */
static size_t xen_iommu_extent(struct xen_iommu_domain *dom, unsigned long iova,
			       unsigned long last, bool *real,
			       unsigned int *split)
{
	struct xen_iommu_mapping *m = xen_iommu_find(dom, iova);
	unsigned int nr = XEN_IOMMU_MAX_MAPPINGS;
	unsigned long pos = iova;

	if (!m || m->iova > iova)
		return 0;

	*real = iova - m->iova < m->mapped;
	*split = m->iova < iova && (*real || m->last > last) ? m->max : 0;
	if (!*real)
		return min(last, m->last) - iova + 1;

	for (; m && m->iova <= pos; m = xen_iommu_next(m)) {
		if (m->mapped <= pos - m->iova || !nr--)
			break;
		pos = m->iova + m->mapped;
		if (pos > last || pos <= m->last)
			break;
	}
	return min(last, pos - 1) - iova + 1;
}

/*
 * Putting unmaps aside takes nothing of the hypervisor. But Linux uses the frames
 * again before the flush, and in a PV domain perhaps as page tables: that Xen
 * refuses as long as devices can write to them.
 */
static bool xen_iommu_may_defer(struct xen_iommu *xi)
{
	return !xi->hyp->pfn_to_gfn;
}

/*
 * Puts aside the mapping at @iova until the next flush, if it goes as a whole.
 * Returns its size, or 0.
 */
static size_t xen_iommu_defer(struct xen_iommu_domain *dom, unsigned long iova,
			      unsigned long last)
{
	struct xen_iommu_mapping *m;
	unsigned long flags;
	size_t size = 0;

	spin_lock_irqsave(&dom->lock, flags);
	m = xen_iommu_find(dom, iova);
	if (m && m->iova == iova && m->last <= last) {
		size = xen_iommu_mapping_size(m);
		if (m->mapped == size) {
			xen_iommu_remove(dom, m);
			list_add_tail(&m->list, &dom->deferred);
			dom->nr_deferred++;
		} else {
			size = 0;
		}
	}
	spin_unlock_irqrestore(&dom->lock, flags);
	return size;
}

static size_t xen_iommu_unmap_pages(struct iommu_domain *domain,
				    unsigned long iova, size_t pgsize,
				    size_t pgcount,
				    struct iommu_iotlb_gather *gather)
{
	struct xen_iommu_domain *dom = to_xen_domain(domain);
	size_t size, done, total = 0, want = pgsize * pgcount;
	unsigned long last = iova + want - 1;
	struct xen_iommu_mapping *spare = NULL;
	LIST_HEAD(garbage);
	unsigned long flags;
	unsigned int split;
	bool real, needed;

	for (; total < want; iova += done, total += done) {
		if (gather && gather->queued && xen_iommu_may_defer(dom->xi)) {
			done = xen_iommu_defer(dom, iova, last);
			if (done)
				continue;
		}

		spin_lock_irqsave(&dom->lock, flags);
		size = xen_iommu_extent(dom, iova, last, &real, &split);
		needed = split && (!spare || spare->max < split);
		/* At once: what is new may grow. */
		if (size && !real && !needed)
			xen_iommu_erase(dom, iova, iova + size - 1, &garbage,
					&spare);
		spin_unlock_irqrestore(&dom->lock, flags);
		if (!size)
			break;

		/* Before the hypercall: what it has done must be recorded. */
		if (needed) {
			kfree(spare);
			spare = xen_iommu_alloc_mapping(split, GFP_ATOMIC);
			if (!spare)
				break;
			done = 0;
			continue;
		}

		done = real ? xen_iommu_unmap_range(dom, iova, size) : size;
		if (!done)
			break;
		if (!real)
			continue;

		spin_lock_irqsave(&dom->lock, flags);
		xen_iommu_erase(dom, iova, iova + done - 1, &garbage, &spare);
		spin_unlock_irqrestore(&dom->lock, flags);
		if (done < size) {
			total += done;
			break;
		}
	}

	kfree(spare);
	xen_iommu_free_mappings(&garbage);
	return total;
}

/*
 * Settles a deferred mapping of which @done bytes have been unmapped: does the
 * rest. What cannot be unmapped goes back into the record: devices still reach
 * it, and a later unmap may succeed.
 */
static void xen_iommu_settle(struct xen_iommu_domain *dom,
			     struct xen_iommu_mapping *m, unsigned long done,
			     struct list_head *garbage)
{
	unsigned long flags;
	int ret;

	if (done < m->mapped)
		done += xen_iommu_unmap_range(dom, m->iova + done,
					      m->mapped - done);
	if (done == m->mapped) {
		list_move(&m->list, garbage);
		return;
	}

	list_del(&m->list);
	xen_iommu_trim(m, done);
	spin_lock_irqsave(&dom->lock, flags);
	ret = xen_iommu_insert(dom, m);
	spin_unlock_irqrestore(&dom->lock, flags);
	/* Nobody maps what the flush queue holds. */
	if (WARN_ON_ONCE(ret))
		kfree(m);
}

/* Unmaps what can be put into one call; leaves the rest on @list. */
static void xen_iommu_unmap_many(struct xen_iommu_domain *dom,
				 struct list_head *list, struct list_head *garbage,
				 struct xen_iommu_buf *buf)
{
	struct xen_iommu_batch b = { .run = buf->run, .max = ARRAY_SIZE(buf->run) };
	struct xen_iommu_mapping *m, *next;
	u64 done;
	int ret;

	list_for_each_entry(m, list, list)
		if (!xen_iommu_batch_add(dom->xi, &b, m->iova >> XEN_PAGE_SHIFT,
					 m->iova >> XEN_PAGE_SHIFT,
					 m->mapped >> XEN_PAGE_SHIFT))
			break;

	ret = xen_iommu_runs(dom, false, 0, b.run, b.nr, &done);
	xen_iommu_count(dom->xi, XEN_IOMMU_PAGES_UNMAPPED, done);
	done <<= XEN_PAGE_SHIFT;
	list_for_each_entry_safe(m, next, list, list) {
		if (done < m->mapped)
			break;
		done -= m->mapped;
		list_move(&m->list, garbage);
	}

	/* The one that failed is seen to singly. */
	if (ret && !list_empty(list))
		xen_iommu_settle(dom, list_first_entry(list,
						       struct xen_iommu_mapping,
						       list), done, garbage);
}

/* The same for a hypervisor that takes one run per call. */
static void xen_iommu_unmap_multi(struct xen_iommu_domain *dom,
				  struct list_head *list,
				  struct list_head *garbage,
				  struct xen_iommu_buf *buf)
{
	struct xen_iommu *xi = dom->xi;
	struct xen_iommu_mapping *m, *next;
	u32 wanted[XEN_IOMMU_MULTICALLS];
	unsigned int nr = 0, i = 0;
	int all;

	list_for_each_entry(m, list, list) {
		struct pv_iommu_run run = {
			.dfn = m->iova >> XEN_PAGE_SHIFT,
			.nr_frames = m->mapped >> XEN_PAGE_SHIFT,
		};

		if (nr == XEN_IOMMU_MULTICALLS)
			break;
		xen_iommu_next_unmap(dom, &run, 0, &buf->op[nr].unmap);
		wanted[nr] = buf->op[nr].unmap.nr_pages;
		buf->call[nr] = (struct multicall_entry) {
			.op = __HYPERVISOR_iommu_op,
			.args[0] = IOMMU_unmap_pages,
			.args[1] = (unsigned long)&buf->op[nr],
		};
		nr++;
	}

	xen_iommu_count(xi, XEN_IOMMU_HYPERCALLS, 1);
	xen_iommu_count(xi, XEN_IOMMU_MULTICALLED, nr);
	xen_iommu_count(xi, XEN_IOMMU_UNMAP_OPS, nr);
	all = xi->hyp->multicall(buf->call, nr);

	/* What the counters do not have is done singly. */
	list_for_each_entry_safe(m, next, list, list) {
		struct pv_iommu_unmap_pages *op = &buf->op[i].unmap;
		unsigned long done;
		u32 got;
		int ret;

		if (i == nr)
			break;
		ret = xen_iommu_result(all ?: buf->call[i].result, wanted[i],
				       op->unmapped, &got);
		trace_xen_iommu_unmap(dom->ctx, m->iova >> XEN_PAGE_SHIFT,
				      wanted[i], op->pgsize, got, ret);
		if (ret) {
			xen_iommu_count(xi, XEN_IOMMU_ERRORS, 1);
			xen_iommu_count(xi, XEN_IOMMU_SHORT_UNMAPS, 1);
			trace_xen_iommu_error(IOMMU_unmap_pages, ret);
		}
		i++;
		done = (unsigned long)got * op->pgsize;
		xen_iommu_count(xi, XEN_IOMMU_PAGES_UNMAPPED,
				done >> XEN_PAGE_SHIFT);
		xen_iommu_settle(dom, m, done, garbage);
	}
}

/* Deferred mappings that go into one call. */
static unsigned int xen_iommu_flush_size(struct xen_iommu *xi)
{
	return xi->caps & IOMMUCAP_runs ? XEN_IOMMU_MANY_RUNS :
					  XEN_IOMMU_MULTICALLS;
}

/*
 * Takes the oldest deferred mappings, as many as go into one call. Returns how
 * many there were in all.
 */
static unsigned long xen_iommu_take_deferred(struct xen_iommu_domain *dom,
					     struct list_head *list)
{
	unsigned int max = xen_iommu_flush_size(dom->xi);
	unsigned long taken = 0, all;
	struct list_head *last;

	guard(spinlock)(&dom->lock);
	all = dom->nr_deferred;
	list_for_each(last, &dom->deferred)
		if (++taken == max)
			break;
	if (taken == all)
		list_splice_init(&dom->deferred, list);
	else
		list_cut_position(list, &dom->deferred, last);
	dom->nr_deferred -= taken;
	return all;
}

/* Returns how many mappings had been deferred when it was called. */
static unsigned long xen_iommu_flush_some(struct xen_iommu_domain *dom)
{
	struct xen_iommu_buf *buf;
	LIST_HEAD(garbage);
	unsigned long flags, all;
	LIST_HEAD(list);

	spin_lock_irqsave(&dom->flush_lock, flags);
	all = xen_iommu_take_deferred(dom, &list);
	buf = all ? xen_iommu_get_buf(dom->xi, XEN_IOMMU_FLUSH) : NULL;
	while (!list_empty(&list)) {
		if (buf && (dom->xi->caps & IOMMUCAP_runs))
			xen_iommu_unmap_many(dom, &list, &garbage, buf);
		else if (buf)
			xen_iommu_unmap_multi(dom, &list, &garbage, buf);
		else
			xen_iommu_settle(dom, list_first_entry(&list,
							       struct xen_iommu_mapping,
							       list), 0, &garbage);
	}
	xen_iommu_put_buf(buf);

	spin_unlock_irqrestore(&dom->flush_lock, flags);
	xen_iommu_free_mappings(&garbage);
	return all;
}

/*
 * In pieces, with interrupts in between. What is deferred meanwhile is not for
 * this flush; what another flush takes meanwhile, that one has done before this
 * one gets the lock again. So as many as there were at first are enough, and one
 * that finds none has waited for the one that is just doing them.
 */
static void xen_iommu_flush_iotlb_all(struct iommu_domain *domain)
{
	struct xen_iommu_domain *dom = to_xen_domain(domain);
	unsigned int piece = xen_iommu_flush_size(dom->xi);
	unsigned long left = xen_iommu_flush_some(dom);

	for (; left > piece; left -= piece)
		xen_iommu_flush_some(dom);
}

static phys_addr_t xen_iommu_iova_to_phys(struct iommu_domain *domain,
					  dma_addr_t iova)
{
	struct xen_iommu_domain *dom = to_xen_domain(domain);
	struct xen_iommu *xi = dom->xi;
	struct xen_iommu_mapping *m;
	struct xen_iommu_seg *seg;
	phys_addr_t phys = 0;
	unsigned long flags;

	spin_lock_irqsave(&dom->lock, flags);
	m = xen_iommu_find(dom, iova);
	if (m && m->iova <= iova &&
	    (m->state != XEN_IOMMU_SYNCED || iova - m->iova < m->mapped)) {
		seg = &m->seg[xen_iommu_find_seg(m, iova)];
		phys = seg->phys + (iova - seg->iova);
	}
	spin_unlock_irqrestore(&dom->lock, flags);
	if (phys)
		return phys;

	for (unsigned int i = 0; i < xi->nr_rdm; i++)
		if (iova >= xi->rdm[i].start && iova <= xi->rdm[i].last)
			return iova;
	return 0;
}

/*
 * Contexts
 */

/*
 * Has the hypervisor free what a previous kernel has left, devices permitting.
 * Without the extension it may be one that does not survive that.
 */
static void xen_iommu_reclaim(struct xen_iommu *xi)
{
	unsigned int ctx;

	if (!(xi->caps & IOMMUCAP_runs))
		return;

	for_each_clear_bit(ctx, xi->ours, xi->max_ctx + 1) {
		struct pv_iommu_free op = { .ctx_no = ctx };

		if (ctx)
			xen_iommu_op(xi, IOMMU_free_context, &op);
	}
}

/**
 * xen_iommu_get_ctx - get a context that is empty
 * @xi: the IOMMU
 * @alloc_flags: IOMMU_ALLOC_*
 * @ctx: the context
 *
 * Context: may sleep.
 * Return: 0, -ENOSPC if all are in use, or another negative error.
 */
static int xen_iommu_get_ctx(struct xen_iommu *xi, u32 alloc_flags, u16 *ctx)
{
	struct pv_iommu_alloc op = { .alloc_flags = alloc_flags };
	int ret;

	guard(mutex)(&xi->mutex);
	if (!alloc_flags && xi->nr_spare) {
		*ctx = xi->spare[--xi->nr_spare];
		xi->nr_used++;
		return 0;
	}

	ret = xen_iommu_op(xi, IOMMU_alloc_context, &op);
	if (ret == -ENOSPC && xi->inherited) {
		xen_iommu_reclaim(xi);
		op.alloc_flags = alloc_flags;
		ret = xen_iommu_op(xi, IOMMU_alloc_context, &op);
	}
	if (ret)
		return ret;
	if (!op.ctx_no || op.ctx_no > xi->max_ctx) {
		pr_err_once("hypervisor made context %u of %u\n", op.ctx_no,
			    xi->max_ctx);
		return -EIO;
	}
	*ctx = op.ctx_no;
	__set_bit(*ctx, xi->ours);
	xi->nr_used++;
	return 0;
}

/* @empty: it can be used again. */
static void xen_iommu_put_ctx(struct xen_iommu *xi, u16 ctx, bool empty)
{
	struct pv_iommu_free op = { .ctx_no = ctx };
	int ret = -EBUSY;

	guard(mutex)(&xi->mutex);
	xi->nr_used--;
	if (empty && xi->nr_spare < ARRAY_SIZE(xi->spare)) {
		xi->spare[xi->nr_spare++] = ctx;
		return;
	}

	/* Some hypervisors crash if there are mappings or devices in it. */
	if (empty)
		ret = xen_iommu_op(xi, IOMMU_free_context, &op);
	if (ret) {
		xi->nr_lost++;
		__set_bit(ctx, xi->lost);
		pr_warn("context %u is lost: error %d\n", ctx, ret);
	} else {
		__clear_bit(ctx, xi->ours);
	}
}

static int xen_iommu_move(struct xen_iommu_dev *xdev, u16 ctx,
			  struct xen_iommu_domain *dom)
{
	struct pv_iommu_reattach_device op = {
		.ctx_no = ctx,
		.dev.seg = pci_domain_nr(xdev->pdev->bus),
		.dev.bus = xdev->pdev->bus->number,
		.dev.devfn = xdev->pdev->devfn,
	};
	struct xen_iommu *xi = xdev->xi;
	int ret;

	lockdep_assert_held(&xi->mutex);
	ret = xen_iommu_op(xi, IOMMU_reattach_device, &op);
	xdev->error = ret;
	trace_xen_iommu_attach(op.dev.seg, op.dev.bus, op.dev.devfn, ctx, ret);
	switch (ret) {
	case 0:
		xen_iommu_count(xi, XEN_IOMMU_ATTACHES, 1);
		list_del_init(&xdev->list);
		if (dom)
			list_add(&xdev->list, &dom->devices);
		xdev->dom = dom;
		xdev->ctx = ctx;
		return 0;
	case -EINVAL:
	case -ENOMEM:
	case -ENOSPC:
	case -EBUSY:
		return ret;
	default:
		return -ENODEV;
	}
}

/**
 * xen_iommu_reattach - move a device to a context
 * @xdev: the device
 * @ctx: the context
 * @dom: paging domain of that context, NULL if there is none
 *
 * Context: may sleep.
 * Return: 0 or an error that the core takes from attach_dev(). The device then
 * stays where it is.
 */
static int xen_iommu_reattach(struct xen_iommu_dev *xdev, u16 ctx,
			      struct xen_iommu_domain *dom)
{
	guard(mutex)(&xdev->xi->mutex);
	return xen_iommu_move(xdev, ctx, dom);
}

/* Moves a device to where it should be already. */
static int xen_iommu_restore(struct xen_iommu_dev *xdev)
{
	guard(mutex)(&xdev->xi->mutex);
	return xen_iommu_move(xdev, xdev->ctx, xdev->dom);
}

/*
 * Domains
 */

static int xen_iommu_attach_paging(struct iommu_domain *domain,
				   struct device *dev, struct iommu_domain *old)
{
	struct xen_iommu_domain *dom = to_xen_domain(domain);
	struct xen_iommu_dev *xdev = dev_iommu_priv_get(dev);

	if (dom->xi != xdev->xi)
		return -EINVAL;
	return xen_iommu_reattach(xdev, dom->ctx, dom);
}

static int xen_iommu_attach_identity(struct iommu_domain *domain,
				     struct device *dev,
				     struct iommu_domain *old)
{
	struct xen_iommu_dev *xdev = dev_iommu_priv_get(dev);

	return xen_iommu_reattach(xdev, xdev->xi->identity_ctx, NULL);
}

static int xen_iommu_attach_blocked(struct iommu_domain *domain,
				    struct device *dev,
				    struct iommu_domain *old)
{
	struct xen_iommu_dev *xdev = dev_iommu_priv_get(dev);

	return xen_iommu_reattach(xdev, xdev->xi->blocked_ctx, NULL);
}

static struct iommu_domain xen_iommu_identity_domain = {
	.type = IOMMU_DOMAIN_IDENTITY,
	.ops = &(const struct iommu_domain_ops) {
		.attach_dev = xen_iommu_attach_identity,
	},
};

static struct iommu_domain xen_iommu_blocked_domain = {
	.type = IOMMU_DOMAIN_BLOCKED,
	.ops = &(const struct iommu_domain_ops) {
		.attach_dev = xen_iommu_attach_blocked,
	},
};

/* Devices that the core could not move away; false if one cannot be. */
static bool xen_iommu_evict(struct xen_iommu_domain *dom)
{
	struct xen_iommu *xi = dom->xi;
	struct xen_iommu_dev *xdev;
	u16 ctx = xi->blocked_ctx == XEN_IOMMU_NO_CTX ? 0 : xi->blocked_ctx;
	bool gone = true;

	while ((xdev = list_first_entry_or_null(&dom->devices,
						struct xen_iommu_dev, list))) {
		pci_warn(xdev->pdev, "still in context %u when that is freed\n",
			 dom->ctx);
		if (xen_iommu_reattach(xdev, ctx, NULL)) {
			/* The list goes away; the context does not. */
			scoped_guard(mutex, &xi->mutex) {
				list_del_init(&xdev->list);
				xdev->dom = NULL;
			}
			gone = false;
		}
	}
	return gone;
}

/* Unmaps all that there is; false if something stays. */
static bool xen_iommu_unmap_all(struct xen_iommu_domain *dom)
{
	struct xen_iommu_mapping *m, *next;

	xen_iommu_flush_iotlb_all(&dom->domain);
	for (m = rb_entry_safe(rb_first(&dom->mappings), typeof(*m), node); m;
	     m = next) {
		next = xen_iommu_next(m);
		xen_iommu_unmap_pages(&dom->domain, m->iova, 1,
				      xen_iommu_mapping_size(m), NULL);
	}
	return RB_EMPTY_ROOT(&dom->mappings) && !dom->stray;
}

static void xen_iommu_domain_free(struct iommu_domain *domain)
{
	struct xen_iommu_domain *dom = to_xen_domain(domain);
	struct xen_iommu_mapping *m, *next;
	bool empty;

	scoped_guard(mutex, &dom->xi->mutex)
		list_del(&dom->list);

	empty = xen_iommu_evict(dom);
	empty &= xen_iommu_unmap_all(dom);
	xen_iommu_put_ctx(dom->xi, dom->ctx, empty);

	rbtree_postorder_for_each_entry_safe(m, next, &dom->mappings, node)
		kfree(m);
	kfree(dom);
}

static bool xen_iommu_enforce_cache_coherency(struct iommu_domain *domain)
{
	struct xen_iommu_domain *dom = to_xen_domain(domain);

	if (!(dom->xi->caps & IOMMUCAP_cache))
		return false;

	guard(spinlock_irqsave)(&dom->lock);
	if (!dom->uncached)
		dom->enforce_cache = true;
	return dom->enforce_cache;
}

static const struct iommu_domain_ops xen_iommu_paging_ops = {
	.attach_dev		= xen_iommu_attach_paging,
	.map_pages		= xen_iommu_map_pages,
	.unmap_pages		= xen_iommu_unmap_pages,
	.flush_iotlb_all	= xen_iommu_flush_iotlb_all,
	.iotlb_sync_map		= xen_iommu_iotlb_sync_map,
	.iova_to_phys		= xen_iommu_iova_to_phys,
	.enforce_cache_coherency = xen_iommu_enforce_cache_coherency,
	.free			= xen_iommu_domain_free,
};

static struct iommu_domain *
xen_iommu_domain_alloc_paging_flags(struct device *dev, u32 flags,
				    const struct iommu_user_data *user_data)
{
	struct xen_iommu_dev *xdev = dev_iommu_priv_get(dev);
	struct xen_iommu *xi = xdev->xi;
	struct xen_iommu_domain *dom;
	int ret;

	if (flags || user_data)
		return ERR_PTR(-EOPNOTSUPP);

	dom = kzalloc_obj(*dom);
	if (!dom)
		return ERR_PTR(-ENOMEM);

	ret = xen_iommu_get_ctx(xi, 0, &dom->ctx);
	if (ret) {
		kfree(dom);
		return ERR_PTR(ret);
	}

	dom->xi = xi;
	dom->mappings = RB_ROOT;
	INIT_LIST_HEAD(&dom->devices);
	INIT_LIST_HEAD(&dom->deferred);
	spin_lock_init(&dom->flush_lock);
	spin_lock_init(&dom->lock);
	/* The core says otherwise where it allocates; iommufd does not. */
	dom->domain.type = IOMMU_DOMAIN_UNMANAGED;
	dom->domain.ops = &xen_iommu_paging_ops;
	dom->domain.pgsize_bitmap = xi->pgsize_bitmap;
	dom->domain.geometry.aperture_end = xi->max_iova;
	dom->domain.geometry.force_aperture = true;
	scoped_guard(mutex, &xi->mutex)
		list_add(&dom->list, &xi->domains);
	return &dom->domain;
}

/*
 * Devices
 */

static bool xen_iommu_capable(struct device *dev, enum iommu_cap cap)
{
	struct xen_iommu_dev *xdev = dev_iommu_priv_get(dev);
	u32 caps = xdev->xi->caps;

	switch (cap) {
	case IOMMU_CAP_CACHE_COHERENCY:
	case IOMMU_CAP_ENFORCE_CACHE_COHERENCY:
		return caps & IOMMUCAP_cache;
	case IOMMU_CAP_DEFERRED_FLUSH:
		return xen_iommu_may_defer(xdev->xi);
	case IOMMU_CAP_PRE_BOOT_PROTECTION:
		return !(caps & IOMMUCAP_default_identity);
	default:
		return false;
	}
}

static struct iommu_device *__xen_iommu_probe_device(struct xen_iommu *xi,
						     struct device *dev)
{
	struct xen_iommu_dev *xdev;
	struct pci_dev *pdev;
	int ret;

	if (!dev_is_pci(dev))
		return ERR_PTR(-ENODEV);
	pdev = to_pci_dev(dev);
	/* Segments have 16 bits in the interface. */
	if (pdev->class >> 8 == PCI_CLASS_SYSTEM_IOMMU ||
	    pci_domain_nr(pdev->bus) >> 16)
		return ERR_PTR(-ENODEV);

	xdev = kzalloc_obj(*xdev);
	if (!xdev)
		return ERR_PTR(-ENOMEM);
	xdev->xi = xi;
	xdev->pdev = pdev;
	INIT_LIST_HEAD(&xdev->list);

	/*
	 * Find out whether Xen knows the device by moving it to where it is. For
	 * a device that has just been plugged in, or a new VF, Xen's notifier
	 * (drivers/xen/pci.c, an arch_initcall) runs before that of the IOMMU
	 * core (a subsys_initcall) and has made it known.
	 * A device that a previous kernel has left may be doing DMA still, to
	 * addresses that mean something else in any other context: block it.
	 */
	ret = xen_iommu_reattach(xdev, xi->inherited ? xi->blocked_ctx : 0,
				 NULL);
	if (ret) {
		kfree(xdev);
		return ERR_PTR(ret == -ENOMEM ? ret : -ENODEV);
	}

	dev_iommu_priv_set(dev, xdev);
	return &xi->iommu;
}

/* Unplugged, or in the hands of another domain. */
static bool xen_iommu_is_gone(struct xen_iommu_dev *xdev)
{
	return xdev->error == -ENODEV || xdev->error == -ENOENT ||
	       xdev->error == -EPERM;
}

static void xen_iommu_release_device(struct device *dev)
{
	struct xen_iommu_dev *xdev = dev_iommu_priv_get(dev);

	/*
	 * Xen has been told of the removal before, if the device is unplugged:
	 * it has taken the device out of its context, and knows it no more, so
	 * that the core could not move it to the release domain. One that Xen
	 * knows and has not moved makes its context unfit for further use.
	 */
	guard(mutex)(&xdev->xi->mutex);
	if (xdev->dom && !xen_iommu_is_gone(xdev)) {
		pci_warn(xdev->pdev, "stays in context %u\n", xdev->dom->ctx);
		WRITE_ONCE(xdev->dom->stray, true);
	}
	list_del_init(&xdev->list);
	dev_iommu_priv_set(dev, NULL);
	kfree(xdev);
}

static int xen_iommu_rdm_op(struct xen_iommu *xi, struct pci_dev *pdev,
			    struct xen_reserved_device_memory *buf,
			    unsigned int *nr)
{
	struct xen_reserved_device_memory_map map = { .nr_entries = *nr };
	int ret;

	if (pdev) {
		map.dev.pci.seg = pci_domain_nr(pdev->bus);
		map.dev.pci.bus = pdev->bus->number;
		map.dev.pci.devfn = pdev->devfn;
	} else {
		map.flags = XENMEM_RDM_ALL;
	}
	set_xen_guest_handle(map.buffer, buf);
	ret = xi->hyp->memory_op(XENMEM_reserved_device_memory_map, &map);
	*nr = map.nr_entries;
	return ret;
}

/**
 * xen_iommu_query_rdm - get reserved regions from the hypervisor
 * @xi: the IOMMU
 * @pdev: device whose regions to get, NULL for all
 * @buf: regions, in frames; to be freed by the caller
 *
 * Context: may sleep.
 * Return: number of regions, or a negative error.
 */
static int xen_iommu_query_rdm(struct xen_iommu *xi, struct pci_dev *pdev,
			       struct xen_reserved_device_memory **buf)
{
	unsigned int nr = 0, max;
	int ret;

	*buf = NULL;
	ret = xen_iommu_rdm_op(xi, pdev, NULL, &nr);
	if (ret != -ENOBUFS)
		return ret;

	max = nr;
	*buf = kcalloc(max, sizeof(**buf), GFP_KERNEL);
	if (!*buf)
		return -ENOMEM;
	ret = xen_iommu_rdm_op(xi, pdev, *buf, &nr);
	if (!ret && nr <= max)
		return nr;

	kfree(*buf);
	*buf = NULL;
	return ret ?: -EIO;
}

static int xen_iommu_init_rdm(struct xen_iommu *xi)
{
	struct xen_reserved_device_memory *buf;
	int nr = xen_iommu_query_rdm(xi, NULL, &buf);

	/* Then mapping there fails, as the hypervisor does not allow it. */
	if (nr < 0 && nr != -ENOMEM)
		pr_warn("reserved regions are not known: error %d\n", nr);
	if (nr <= 0)
		return nr == -ENOMEM ? nr : 0;

	xi->rdm = kcalloc(nr, sizeof(*xi->rdm), GFP_KERNEL);
	if (!xi->rdm) {
		kfree(buf);
		return -ENOMEM;
	}
	for (int i = 0; i < nr; i++) {
		if (!buf[i].nr_pages)
			continue;
		xi->rdm[xi->nr_rdm].start = XEN_PFN_PHYS(buf[i].start_pfn);
		xi->rdm[xi->nr_rdm].last =
			XEN_PFN_PHYS(buf[i].start_pfn + buf[i].nr_pages) - 1;
		xi->nr_rdm++;
	}
	kfree(buf);
	return 0;
}

static void xen_iommu_add_region(struct list_head *head, phys_addr_t start,
				 size_t size, int prot,
				 enum iommu_resv_type type)
{
	struct iommu_resv_region *region;

	region = iommu_alloc_resv_region(start, size, prot, type, GFP_KERNEL);
	if (region)
		list_add_tail(&region->list, head);
}

/* The hypervisor does not tell whose IOMMU it is; the CPU does. */
static bool xen_iommu_has_ht_range(void)
{
#ifdef CONFIG_X86
	return boot_cpu_data.x86_vendor != X86_VENDOR_INTEL;
#else
	return false;
#endif
}

/* The regions that are the device's own, among those of all. */
static bool xen_iommu_owns_region(const struct xen_reserved_device_memory *own,
				  int nr, phys_addr_t start)
{
	for (int i = 0; i < nr; i++)
		if (own[i].nr_pages && XEN_PFN_PHYS(own[i].start_pfn) == start)
			return true;
	return false;
}

static void xen_iommu_get_resv_regions(struct device *dev,
				       struct list_head *head)
{
	struct xen_iommu_dev *xdev = dev_iommu_priv_get(dev);
	struct xen_reserved_device_memory *own = NULL;
	struct xen_iommu *xi = xdev->xi;
	struct pci_dev *pdev = xdev->pdev;
	enum iommu_resv_type direct = IOMMU_RESV_DIRECT;
	int nr = 0;

	if (IS_ENABLED(CONFIG_X86))
		xen_iommu_add_region(head, MSI_RANGE_START, MSI_RANGE_SIZE, 0,
				     IOMMU_RESV_MSI);
	if (xen_iommu_has_ht_range() && xi->max_iova >= HT_RANGE_START)
		xen_iommu_add_region(head, HT_RANGE_START, HT_RANGE_SIZE, 0,
				     IOMMU_RESV_RESERVED);

	if (!xi->nr_rdm)
		return;

	nr = xen_iommu_query_rdm(xi, pdev, &own);
	if (nr < 0)
		pci_warn(pdev, "reserved regions are not known: error %d\n", nr);

	/* As other IOMMU drivers have it: firmware seldom uses these. */
	if (pdev->class >> 8 == PCI_CLASS_SERIAL_USB ||
	    pdev->class >> 16 == PCI_BASE_CLASS_DISPLAY)
		direct = IOMMU_RESV_DIRECT_RELAXABLE;

	for (unsigned int i = 0; i < xi->nr_rdm; i++) {
		phys_addr_t start = xi->rdm[i].start;
		bool mine = nr < 0 || xen_iommu_owns_region(own, nr, start);

		xen_iommu_add_region(head, start, xi->rdm[i].last - start + 1,
				     IOMMU_READ | IOMMU_WRITE,
				     mine ? direct : IOMMU_RESV_RESERVED);
	}
	kfree(own);
}

/*
 * Observability
 */

static struct xen_iommu *xen_iommu_from_sysfs(struct device *dev)
{
	return container_of(dev_to_iommu_device(dev), struct xen_iommu, iommu);
}

#define XEN_IOMMU_ATTR(name, fmt, value)				\
static ssize_t name##_show(struct device *dev,				\
			   struct device_attribute *attr, char *buf)	\
{									\
	struct xen_iommu *xi = xen_iommu_from_sysfs(dev);		\
									\
	return sysfs_emit(buf, fmt "\n", value);			\
}									\
static DEVICE_ATTR_RO(name)

XEN_IOMMU_ATTR(max_iova, "%#llx", xi->max_iova);
XEN_IOMMU_ATTR(page_sizes, "%#lx", xi->pgsize_bitmap);
XEN_IOMMU_ATTR(capabilities, "%#x", xi->caps);
XEN_IOMMU_ATTR(contexts, "%u", xi->max_ctx);
XEN_IOMMU_ATTR(contexts_used, "%u", READ_ONCE(xi->nr_used));
XEN_IOMMU_ATTR(contexts_spare, "%u", READ_ONCE(xi->nr_spare));
XEN_IOMMU_ATTR(contexts_lost, "%u", READ_ONCE(xi->nr_lost));
XEN_IOMMU_ATTR(pool_order, "%d", xi->pool_order);

static struct attribute *xen_iommu_attrs[] = {
	&dev_attr_max_iova.attr,
	&dev_attr_page_sizes.attr,
	&dev_attr_capabilities.attr,
	&dev_attr_contexts.attr,
	&dev_attr_contexts_used.attr,
	&dev_attr_contexts_spare.attr,
	&dev_attr_contexts_lost.attr,
	&dev_attr_pool_order.attr,
	NULL
};

static const struct attribute_group xen_iommu_group = {
	.name = "xen-iommu",
	.attrs = xen_iommu_attrs,
};

static const struct attribute_group *xen_iommu_groups[] = {
	&xen_iommu_group,
	NULL
};

#ifdef CONFIG_IOMMU_DEBUGFS
static int xen_iommu_stats_show(struct seq_file *s, void *unused)
{
	struct xen_iommu *xi = s->private;

	for (unsigned int i = 0; i < XEN_IOMMU_NR_COUNTERS; i++) {
		u64 sum = 0;
		int cpu;

		for_each_possible_cpu(cpu)
			sum += per_cpu_ptr(xi->stats, cpu)->count[i];
		seq_printf(s, "%s %llu\n", xen_iommu_counter_name[i], sum);
	}
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(xen_iommu_stats);

static void xen_iommu_debugfs_init(struct xen_iommu *xi)
{
	struct dentry *dir = debugfs_create_dir("xen", iommu_debugfs_dir);

	debugfs_create_file("stats", 0444, dir, xi, &xen_iommu_stats_fops);
}
#else
static void xen_iommu_debugfs_init(struct xen_iommu *xi)
{
}
#endif /* CONFIG_IOMMU_DEBUGFS */

/*
 * Initialisation
 */

static int xen_iommu_query(struct xen_iommu *xi)
{
	struct pv_iommu_capabilities cap = {};
	int ret;

	ret = xen_iommu_op(xi, IOMMU_query_capabilities, &cap);
	if (ret)
		return ret;

	xi->max_iova = cap.max_iova_addr;
	xi->caps = cap.cap_flags;
	if (!xi->hyp->iommu_op_regs)
		xi->caps &= ~IOMMUCAP_runs;
	xi->pgsize_bitmap = cap.pgsize_mask & XEN_PAGE_MASK;
	xi->max_ctx = cap.max_ctx_no;
	return 0;
}

/*
 * The pool holds the page tables of all contexts. Mapping all memory page by
 * page takes a 512th of it; allow for twice that, and for a few tables more in
 * each context.
 */
static int xen_iommu_default_order(unsigned int contexts)
{
	unsigned long pages = (totalram_pages() << (PAGE_SHIFT - XEN_PAGE_SHIFT)) / 256 +
			      4 * contexts;

	return clamp(order_base_2(pages), XEN_IOMMU_MIN_ORDER,
		     XEN_IOMMU_MAX_ORDER);
}

static int xen_iommu_init_contexts(struct xen_iommu *xi)
{
	unsigned long mib = totalram_pages() >> (20 - PAGE_SHIFT);
	struct pv_iommu_init op;
	unsigned int contexts;
	int order, ret, err;

	contexts = clamp(mib / 16, XEN_IOMMU_MIN_CTX, XEN_IOMMU_MAX_CTX);
	if (xen_iommu_contexts)
		contexts = clamp(xen_iommu_contexts, 2, U16_MAX - 1);
	order = xen_iommu_default_order(contexts);
	if (xen_iommu_pool_order > 0)
		order = min(xen_iommu_pool_order, XEN_IOMMU_MAX_ORDER);

	for (;; order--) {
		op = (struct pv_iommu_init) {
			.max_ctx_no = contexts,
			.arena_order = order,
		};
		err = xen_iommu_op(xi, IOMMU_init, &op);

		/* The result does not tell: some hypervisors get it wrong. */
		ret = xen_iommu_query(xi);
		if (ret)
			return ret;
		if (xi->max_ctx)
			break;
		if (err != -ENOMEM || order <= XEN_IOMMU_MIN_ORDER)
			return err ?: -ENODEV;
	}

	xi->pool_order = order;
	return 0;
}

/* All that are ours, empty and without devices: others crash some hypervisors. */
static void xen_iommu_free_contexts(struct xen_iommu *xi)
{
	unsigned int ctx;

	for_each_andnot_bit(ctx, xi->ours, xi->lost, xi->max_ctx + 1) {
		struct pv_iommu_free op = { .ctx_no = ctx };

		xen_iommu_op(xi, IOMMU_free_context, &op);
	}
}

static void xen_iommu_free(struct xen_iommu *xi)
{
	int cpu;

	if (xi->buf)
		for_each_possible_cpu(cpu)
			kfree(*per_cpu_ptr(xi->buf, cpu));
	free_percpu(xi->buf);
	free_percpu(xi->stats);
	kfree(xi->rdm);
	bitmap_free(xi->ours);
	bitmap_free(xi->lost);
	mutex_destroy(&xi->mutex);
}

static struct iommu_device *xen_iommu_probe_device(struct device *dev);

static const struct iommu_ops xen_iommu_ops = {
	.capable		= xen_iommu_capable,
	.domain_alloc_paging_flags = xen_iommu_domain_alloc_paging_flags,
	.probe_device		= xen_iommu_probe_device,
	.release_device		= xen_iommu_release_device,
	.device_group		= pci_device_group,
	.get_resv_regions	= xen_iommu_get_resv_regions,
	.default_domain_ops	= &xen_iommu_paging_ops,
	.owner			= THIS_MODULE,
};

/**
 * xen_iommu_setup - make the hypervisor's IOMMU ready for use
 * @xi: the IOMMU, zeroed
 * @hyp: the hypervisor
 *
 * Context: may sleep.
 * Return: 0 or a negative error; -ENOSYS if the hypervisor has no PV-IOMMU,
 * -ENODEV if there is no IOMMU for this domain.
 */
static int xen_iommu_setup(struct xen_iommu *xi, const struct xen_iommu_hyp *hyp)
{
	int cpu, ret;

	mutex_init(&xi->mutex);
	INIT_LIST_HEAD(&xi->domains);
	xi->hyp = hyp;
	xi->ops = xen_iommu_ops;
	xi->pool_order = -1;
	xi->identity_ctx = XEN_IOMMU_NO_CTX;
	xi->blocked_ctx = XEN_IOMMU_NO_CTX;

	ret = -ENOMEM;
	xi->stats = alloc_percpu(struct xen_iommu_stats);
	xi->buf = alloc_percpu(struct xen_iommu_buf *);
	if (!xi->stats || !xi->buf)
		goto err_free;

	ret = xen_iommu_query(xi);
	if (ret)
		goto err_free;
	xi->inherited = xi->max_ctx;
	if (!xi->inherited) {
		ret = xen_iommu_init_contexts(xi);
		if (ret)
			goto err_free;
	}

	ret = -ENODEV;
	if (!xi->pgsize_bitmap || BIT(__ffs(xi->pgsize_bitmap)) > PAGE_SIZE) {
		pr_err("no page size in %#lx serves\n", xi->pgsize_bitmap);
		goto err_free;
	}

	ret = -ENOMEM;
	xi->ours = bitmap_zalloc(xi->max_ctx + 1, GFP_KERNEL);
	xi->lost = bitmap_zalloc(xi->max_ctx + 1, GFP_KERNEL);
	if (!xi->ours || !xi->lost)
		goto err_free;
	for_each_possible_cpu(cpu) {
		struct xen_iommu_buf *buf;

		buf = kcalloc_node(XEN_IOMMU_NR_USES, sizeof(*buf), GFP_KERNEL,
				   cpu_to_node(cpu));
		if (!buf)
			goto err_free;
		*per_cpu_ptr(xi->buf, cpu) = buf;
	}

	ret = xen_iommu_init_rdm(xi);
	if (ret)
		goto err_free;

	if (xi->caps & IOMMUCAP_default_identity)
		xi->identity_ctx = 0;
	else
		xi->blocked_ctx = 0;
	if ((xi->caps & IOMMUCAP_identity) &&
	    xi->identity_ctx == XEN_IOMMU_NO_CTX)
		xen_iommu_get_ctx(xi, IOMMU_ALLOC_identity, &xi->identity_ctx);
	if (xi->blocked_ctx == XEN_IOMMU_NO_CTX) {
		ret = xen_iommu_get_ctx(xi, 0, &xi->blocked_ctx);
		if (ret)
			goto err_free;
	}

	if (xi->identity_ctx != XEN_IOMMU_NO_CTX)
		xi->ops.identity_domain = &xen_iommu_identity_domain;
	xi->ops.blocked_domain = &xen_iommu_blocked_domain;
	xi->ops.release_domain = &xen_iommu_blocked_domain;
	return 0;

err_free:
	xen_iommu_free(xi);
	return ret;
}

static long xen_iommu_hypercall(unsigned int subop, void *arg)
{
	return HYPERVISOR_iommu_op(subop, arg);
}

#ifdef CONFIG_X86
static long xen_iommu_hypercall_regs(unsigned int subop, unsigned long a1,
				     unsigned long a2, unsigned long a3,
				     unsigned long a4)
{
	return xen_single_call(__HYPERVISOR_iommu_op, subop, a1, a2, a3, a4);
}
#else
#define xen_iommu_hypercall_regs NULL
#endif

static int xen_iommu_multicall(struct multicall_entry *call, u32 nr)
{
	return HYPERVISOR_multicall(call, nr);
}

static int xen_iommu_memory_op(unsigned int cmd, void *arg)
{
	return HYPERVISOR_memory_op(cmd, arg);
}

static unsigned long xen_iommu_pfn_to_gfn(unsigned long pfn)
{
	return pfn_to_gfn(pfn);
}

static const struct xen_iommu_hyp xen_iommu_hyp_pv = {
	.iommu_op	= xen_iommu_hypercall,
	.iommu_op_regs	= xen_iommu_hypercall_regs,
	.multicall	= xen_iommu_multicall,
	.memory_op	= xen_iommu_memory_op,
	.pfn_to_gfn	= xen_iommu_pfn_to_gfn,
};

static const struct xen_iommu_hyp xen_iommu_hyp_auto = {
	.iommu_op	= xen_iommu_hypercall,
	.iommu_op_regs	= xen_iommu_hypercall_regs,
	.multicall	= xen_iommu_multicall,
	.memory_op	= xen_iommu_memory_op,
};

/* The one that there is; NULL if there is none. */
static struct xen_iommu *xen_iommu;

static struct iommu_device *xen_iommu_probe_device(struct device *dev)
{
	return __xen_iommu_probe_device(xen_iommu, dev);
}

/* Before PCI devices are found: their groups depend on ACS. */
static int __init xen_iommu_early_init(void)
{
	struct xen_iommu *xi;
	int ret;

	if (!xen_domain() || !xen_iommu_enable)
		return 0;

	xi = kzalloc_obj(*xi);
	if (!xi)
		return -ENOMEM;

	ret = xen_iommu_setup(xi, xen_pv_domain() ? &xen_iommu_hyp_pv :
						    &xen_iommu_hyp_auto);
	if (ret) {
		kfree(xi);
		if (xen_initial_domain())
			pr_info("Xen offers no PV-IOMMU: error %d\n", ret);
		return 0;
	}

	pci_request_acs();
#ifdef CONFIG_X86
	xen_isolated_msi = xi->caps & IOMMUCAP_isolated_msi;
#endif
	xen_iommu = xi;
	return 0;
}
arch_initcall(xen_iommu_early_init);

static int xen_iommu_abandon(struct device *dev, void *data)
{
	struct xen_iommu *xi = data;

	if (dev->iommu && dev->iommu->iommu_dev == &xi->iommu)
		xen_iommu_reattach(dev_iommu_priv_get(dev), 0, NULL);
	return 0;
}

/*
 * Before kexec, all devices are quiet by now: puts them back to where the next
 * kernel expects them, and leaves no contexts behind. A dying kernel does not
 * get here: its successor finds its contexts, and blocks the devices.
 */
static void xen_iommu_shutdown(void *data)
{
	struct xen_iommu *xi = data;
	struct xen_iommu_domain *dom;

	if (!kexec_in_progress)
		return;

	bus_for_each_dev(&pci_bus_type, NULL, xi, xen_iommu_abandon);
	list_for_each_entry(dom, &xi->domains, list)
		if (!xen_iommu_unmap_all(dom))
			__set_bit(dom->ctx, xi->lost);
	xen_iommu_free_contexts(xi);
}

static const struct syscore_ops xen_iommu_syscore_ops = {
	.shutdown = xen_iommu_shutdown,
};

static struct syscore xen_iommu_syscore = {
	.ops = &xen_iommu_syscore_ops,
};

/*
 * A device that a toolstack has lent to another domain comes back into the
 * default context. The IOMMU core knows nothing of that: move it to where the
 * core has it, before a driver does DMA.
 */
static int xen_iommu_bus_notify(struct notifier_block *nb, unsigned long action,
				void *data)
{
	struct device *dev = data;
	int ret;

	if (action != BUS_NOTIFY_BIND_DRIVER || !dev->iommu ||
	    dev->iommu->iommu_dev != &xen_iommu->iommu)
		return NOTIFY_DONE;

	ret = xen_iommu_restore(dev_iommu_priv_get(dev));
	if (ret)
		pci_warn(to_pci_dev(dev), "is not where it should be: error %d\n",
			 ret);
	return NOTIFY_OK;
}

static struct notifier_block xen_iommu_nb = {
	.notifier_call = xen_iommu_bus_notify,
};

/* As early as other IOMMU drivers: before drivers bind to devices. */
static int __init xen_iommu_init(void)
{
	struct xen_iommu *xi = xen_iommu;
	int ret;

	if (!xi)
		return 0;

	ret = iommu_device_sysfs_add(&xi->iommu, NULL, xen_iommu_groups,
				     "xen-iommu");
	if (ret)
		goto err;
	ret = iommu_device_register(&xi->iommu, &xi->ops, NULL);
	if (ret)
		goto err_sysfs;

	xen_iommu_debugfs_init(xi);
	xen_iommu_syscore.data = xi;
	register_syscore(&xen_iommu_syscore);
	bus_register_notifier(&pci_bus_type, &xen_iommu_nb);
	pr_info("%u contexts, page sizes %#lx, capabilities %#x, %d-bit addresses\n",
		xi->max_ctx, xi->pgsize_bitmap, xi->caps,
		fls64(xi->max_iova));
	return 0;

err_sysfs:
	iommu_device_sysfs_remove(&xi->iommu);
err:
	pr_err("registration failed: error %d\n", ret);
	xen_iommu = NULL;
	xen_iommu_free_contexts(xi);
	xen_iommu_free(xi);
	kfree(xi);
	return ret;
}
rootfs_initcall(xen_iommu_init);
