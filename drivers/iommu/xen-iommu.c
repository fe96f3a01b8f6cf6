// SPDX-License-Identifier: GPL-2.0-only
/*
 * Xen PV-IOMMU driver
 *
 * On a Xen host, the hypervisor owns the IOMMU. A domain with devices, in
 * practice dom0, uses hypercalls to allocate I/O address spaces (contexts), map
 * its pages into them and move its devices between them. See
 * Documentation/virt/xen/pv-iommu.rst.
 *
 * map_pages() only records a mapping. iotlb_sync_map() then maps everything
 * recorded in its range, so that a scatterlist takes a single hypercall.
 * unmap_pages() unmaps immediately; if the DMA API uses its flush queue, only
 * the IOTLB flush is left to flush_iotlb_all().
 *
 * With nested translation, none of this is needed: a domain's page table is in
 * our own memory, generic_pt updates it, and hypercalls only flush the IOTLB.
 *
 * Locking: xen_iommu.mutex protects contexts and devices, and
 * xen_iommu_domain.lock protects the tree of mappings. The locks do not nest.
 * Hypercalls are made without xen_iommu_domain.lock: users of the IOMMU API
 * never map, sync or unmap overlapping ranges concurrently. Since sync and
 * unmap first cut their range off from adjacent ones, each mapping in it
 * belongs to the caller.
 */

#define pr_fmt(fmt) "xen-iommu: " fmt

#include <linux/atomic.h>
#include <linux/debugfs.h>
#include <linux/generic_pt/iommu.h>
#include <linux/init.h>
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/iommu.h>
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
#include <linux/sysfs.h>
#include <linux/workqueue.h>

#include <xen/events.h>
#include <xen/interface/memory.h>
#include <xen/interface/pv-iommu.h>
#include <xen/page.h>
#include <xen/xen.h>

#ifdef CONFIG_X86
#include <asm/irqdomain.h>
#endif
#include <asm/xen/hypercall.h>

#include "iommu-pages.h"

/* Class of an IOMMU's own PCI function. */
#define PCI_CLASS_SYSTEM_IOMMU	0x0806

#define MSI_RANGE_START		0xfee00000UL
#define MSI_RANGE_SIZE		0x00100000UL
/* HyperTransport addresses, which AMD IOMMUs do not translate. */
#define HT_RANGE_START		0xfd00000000ULL
#define HT_RANGE_SIZE		0x0300000000ULL

/* Maximum number of runs per hypercall: as many as fit into a page. */
#define XEN_IOMMU_MAX_RUNS	(SZ_4K / sizeof(struct pv_iommu_run))

/* Number of pieces in a mapping of several, which then takes 512 bytes. */
#define XEN_IOMMU_PIECES	29

/* Number of freed contexts to keep for reuse if freeing one leaks memory. */
#define XEN_IOMMU_MAX_SPARE	8

/* Bounds for the arguments of IOMMU_init. */
#define XEN_IOMMU_MIN_CTX	2U
#define XEN_IOMMU_MAX_CTX	0xfffeU
#define XEN_IOMMU_MIN_ORDER	6U
#define XEN_IOMMU_MAX_ORDER	20U

/* Number of faults to fetch at a time, and delay before each fetch. */
#define XEN_IOMMU_FAULTS	16
#define XEN_IOMMU_FAULT_DELAY	(HZ / 50)

/**
 * struct xen_iommu - the hypervisor's IOMMU
 * @iommu: handle for the IOMMU core
 * @max_iova: highest address that can be mapped
 * @pgsize_bitmap: supported page sizes, in bytes; includes 4 KiB
 * @caps: IOMMUCAP_*
 * @max_ctx: highest context number
 * @nested: format of nested page tables; without page sizes if not in use
 * @pool_order: log2 of the number of pages in the page table pool, 0 if this
 *	driver did not set up the pool
 * @registered: registration with the IOMMU core has succeeded
 * @tables: upper bound of the pool pages used by unmanaged domains
 * @max_tables: limit for @tables
 * @faults: work that fetches and reports faults
 * @mutex: protects the members below
 * @devices: all devices
 * @spare: empty contexts kept for reuse
 * @nr_spare: number of contexts in @spare
 * @nr_used: number of contexts in use, including those of static domains
 * @nr_lost: number of contexts that the hypervisor did not take back or that
 *	still contain mappings or devices
 */
struct xen_iommu {
	struct iommu_device iommu;

	u64 max_iova;
	unsigned long pgsize_bitmap;
	u32 caps;
	u16 max_ctx;
	struct pv_iommu_nested_format nested;
	unsigned int pool_order;
	bool registered;

	atomic_long_t tables;
	long max_tables;
	struct delayed_work faults;

	struct mutex mutex;	/* contexts and devices */
	struct list_head devices;
	u16 spare[XEN_IOMMU_MAX_SPARE];
	unsigned int nr_spare;
	unsigned int nr_used;
	unsigned int nr_lost;
};

/**
 * struct xen_iommu_domain - a domain
 * @domain: handle for the IOMMU core
 * @pt: page table of a nested domain
 * @ctx: context number
 * @xi: the IOMMU
 * @stray: a device could not be moved out of the context; protected by
 *	xen_iommu.mutex
 * @desc: page through which the IOMMU finds @pt, written by the hypervisor
 * @lock: protects the members below
 * @mappings: tree of struct xen_iommu_mapping by iova, without overlaps
 * @enforce_cache: all mappings must be cache coherent
 *
 * Static domains use @domain and @ctx only.
 */
struct xen_iommu_domain {
	union {
		struct iommu_domain domain;
		struct pt_iommu_x86_64 pt;
	};
	u16 ctx;
	struct xen_iommu *xi;
	bool stray;
	void *desc;

	spinlock_t lock;	/* the record of mappings */
	struct rb_root mappings;
	bool enforce_cache;
};

PT_IOMMU_CHECK_DOMAIN(struct xen_iommu_domain, pt.iommu, domain);

/**
 * struct xen_iommu_piece - a range that is contiguous in iova and phys
 * @iova: first address, in bytes; the piece ends where the next one starts
 * @phys: physical address of the first byte
 */
struct xen_iommu_piece {
	unsigned long iova;
	phys_addr_t phys;
};

/**
 * struct xen_iommu_mapping - a range that is contiguous in iova
 * @node: entry in xen_iommu_domain.mappings
 * @last: last address, in bytes, inclusive
 * @mapped: number of bytes, from the start, that the hypervisor has mapped
 * @flags: IOMMU_MAP_*
 * @open: map_pages() may add to it, since it has not been synced
 * @nr: number of pieces
 * @max: number of pieces that there is room for
 * @piece: the pieces, in order
 */
struct xen_iommu_mapping {
	struct rb_node node;
	unsigned long last;
	unsigned long mapped;
	u32 flags;
	bool open;
	u8 nr;
	u8 max;
	struct xen_iommu_piece piece[] __counted_by(max);
};

/**
 * struct xen_iommu_dev - a device
 * @xi: the IOMMU
 * @pdev: the device
 * @domain: domain that it is attached to, or NULL
 * @ctx: context that it is in
 * @list: entry in xen_iommu.devices
 */
struct xen_iommu_dev {
	struct xen_iommu *xi;
	struct pci_dev *pdev;
	struct iommu_domain *domain;
	u16 ctx;
	struct list_head list;
};

static bool xen_iommu_enable = true;
module_param_named(enable, xen_iommu_enable, bool, 0444);
MODULE_PARM_DESC(enable, "Use Xen's PV-IOMMU if there is one (default: Y)");

static unsigned int xen_iommu_contexts;
module_param_named(contexts, xen_iommu_contexts, uint, 0444);
MODULE_PARM_DESC(contexts, "Number of contexts to ask Xen for (default: based on memory size)");

static unsigned int xen_iommu_pool_order;
module_param_named(pool_order, xen_iommu_pool_order, uint, 0444);
MODULE_PARM_DESC(pool_order, "log2 of the number of pages to ask Xen for, for page tables (default: based on memory size)");

static bool xen_iommu_nested = true;
module_param_named(nested, xen_iommu_nested, bool, 0444);
MODULE_PARM_DESC(nested, "Use nested page tables, which need no hypercall to map, if Xen supports them (default: Y)");

/* The only instance; NULL if the driver is not in use. */
static struct xen_iommu *xen_iommu;

static struct xen_iommu_domain *to_xen_domain(struct iommu_domain *domain)
{
	return container_of(domain, struct xen_iommu_domain, domain);
}

static struct xen_iommu_mapping *to_mapping(struct rb_node *node)
{
	return rb_entry_safe(node, struct xen_iommu_mapping, node);
}

static unsigned long xen_iommu_start(const struct xen_iommu_mapping *m)
{
	return m->piece[0].iova;
}

static unsigned long xen_iommu_size(const struct xen_iommu_mapping *m)
{
	return m->last - xen_iommu_start(m) + 1;
}

/*
 * Hypercalls
 */

/* The KUnit suite defines this and replaces the following by a model. */
#ifndef XEN_IOMMU_KUNIT

static DEFINE_PER_CPU(unsigned long, xen_iommu_hypercalls);

/* For sub-ops that take a struct. */
static long xen_iommu_op(unsigned int subop, void *arg)
{
	this_cpu_inc(xen_iommu_hypercalls);
	return HYPERVISOR_iommu_op(subop, arg);
}

/* For sub-ops that take their arguments in registers. */
static long xen_iommu_call(unsigned int subop, unsigned long a1, unsigned long a2,
			   unsigned long a3, unsigned long a4)
{
#ifdef CONFIG_X86
	this_cpu_inc(xen_iommu_hypercalls);
	return xen_single_call(__HYPERVISOR_iommu_op, subop, a1, a2, a3, a4);
#else
	return -EOPNOTSUPP;
#endif
}

static int xen_iommu_memory_op(unsigned int cmd, void *arg)
{
	return HYPERVISOR_memory_op(cmd, arg);
}

/* Returns true if guest frame numbers are Linux's page frame numbers. */
static bool xen_iommu_translated(void)
{
	return !xen_pv_domain();
}

static unsigned long xen_iommu_pfn_to_gfn(unsigned long pfn)
{
	return pfn_to_gfn(pfn);
}

static unsigned long __maybe_unused xen_iommu_count_hypercalls(void)
{
	unsigned long sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += per_cpu(xen_iommu_hypercalls, cpu);
	return sum;
}

/* Xen remaps interrupts, so a device can only send those set up for it. */
static void xen_iommu_isolate_msi(void)
{
#ifdef CONFIG_X86
	struct irq_domain *domain = x86_pci_msi_default_domain;

	if (domain)
		domain->flags |= IRQ_DOMAIN_FLAG_ISOLATED_MSI;
#endif
}

#endif /* XEN_IOMMU_KUNIT */

static int xen_iommu_query(struct xen_iommu *xi)
{
	struct pv_iommu_capabilities cap = {};
	int ret;

	ret = xen_iommu_op(IOMMU_query_capabilities, &cap);
	if (ret)
		return ret;

	xi->max_iova = cap.max_iova_addr;
	xi->pgsize_bitmap = cap.pgsize_mask & XEN_PAGE_MASK;
	xi->caps = cap.cap_flags;
	xi->max_ctx = cap.max_ctx_no;
	if (xen_iommu_call(IOMMU_noop, 0, 0, 0, 0))
		xi->caps &= ~(IOMMUCAP_runs | IOMMUCAP_query | IOMMUCAP_faults);
	return 0;
}

static int xen_iommu_free_ctx(u16 ctx)
{
	struct pv_iommu_free op = { .ctx_no = ctx };

	return xen_iommu_op(IOMMU_free_context, &op);
}

/* Returns 0 or an error that attach_dev() may return. */
static int xen_iommu_attach(struct pci_dev *pdev, u16 id, u16 ctx)
{
	struct pv_iommu_reattach_device op = {
		.ctx_no = ctx,
		.dev.seg = pci_domain_nr(pdev->bus),
		.dev.bus = PCI_BUS_NUM(id),
		.dev.devfn = id & 0xff,
	};
	int ret = xen_iommu_op(IOMMU_reattach_device, &op);

	switch (ret) {
	case 0:
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
 * xen_iommu_map_runs - map runs in the hypervisor
 * @dom: domain to map into
 * @flags: IOMMU_MAP_*
 * @run: array of runs, physically contiguous
 * @nr: number of runs; 1 without IOMMUCAP_runs
 * @done: number of frames mapped, in order; valid on error, too
 *
 * A hypercall may be preempted or fail after mapping some of the frames. It is
 * repeated for the remainder until all frames are mapped or a call fails before
 * mapping any. Only the counter field is valid after IOMMU_map_pages: the
 * hypervisor adds to it, and may change the others if it preempts the call.
 *
 * Context: any; may spend a long time in the hypervisor.
 * Return: 0 if all frames are mapped, or a negative error.
 */
static int xen_iommu_map_runs(struct xen_iommu_domain *dom, u32 flags,
			      const struct pv_iommu_run *run, unsigned int nr,
			      u64 *done)
{
	u64 ctx_flags = dom->ctx | (u64)flags << 32, total = 0;
	unsigned long list = xen_iommu_translated() && nr > 1 ?
			     virt_to_phys((void *)run) : (unsigned long)run;
	long ret;

	for (unsigned int i = 0; i < nr; i++)
		total += run[i].nr_frames;

	for (*done = 0; *done < total; *done += min_t(u64, ret, total - *done)) {
		u64 dfn = run->dfn + *done, gfn = run->gfn + *done;

		if (nr > 1) {
			/* The result includes skipped frames. */
			ret = xen_iommu_call(IOMMU_map_runs, ctx_flags, list, nr, *done);
			ret = ret > 0 ? ret - *done : ret;
		} else if (dom->xi->caps & IOMMUCAP_runs) {
			ret = xen_iommu_call(IOMMU_map_range, ctx_flags, dfn,
					     total - *done, gfn);
		} else {
			struct pv_iommu_map_pages op = {
				.ctx_no = dom->ctx,
				.gfn = gfn,
				.dfn = dfn,
				.map_flags = flags,
				.pgsize = XEN_PAGE_SIZE,
				.nr_pages = min_t(u64, total - *done, U32_MAX),
			};

			ret = xen_iommu_op(IOMMU_map_pages, &op);
			ret = op.mapped ?: ret;
		}
		if (ret <= 0)
			return ret ?: -EIO;
	}
	return 0;
}

/**
 * xen_iommu_unmap_range - unmap a range in the hypervisor
 * @dom: domain to unmap from
 * @flags: IOMMU_UNMAP_*
 * @iova: first address, in bytes
 * @size: size in bytes; the whole range must be mapped
 *
 * Context: any; may spend a long time in the hypervisor.
 * Return: number of bytes unmapped, from @iova on.
 */
static size_t xen_iommu_unmap_range(struct xen_iommu_domain *dom, u32 flags,
				    unsigned long iova, size_t size)
{
	u64 nr = size >> XEN_PAGE_SHIFT, done;
	long ret;

	for (done = 0; done < nr; done += min_t(u64, ret, nr - done)) {
		u64 dfn = (iova >> XEN_PAGE_SHIFT) + done;

		if (dom->xi->caps & IOMMUCAP_runs) {
			ret = xen_iommu_call(IOMMU_unmap_range,
					     dom->ctx | (u64)flags << 32, dfn,
					     nr - done, 0);
		} else {
			struct pv_iommu_unmap_pages op = {
				.ctx_no = dom->ctx,
				.dfn = dfn,
				.pgsize = XEN_PAGE_SIZE,
				.nr_pages = min_t(u64, nr - done, U32_MAX),
				.unmap_flags = flags,
			};

			ret = xen_iommu_op(IOMMU_unmap_pages, &op);
			ret = op.unmapped ?: ret;
		}
		if (ret <= 0) {
			pr_warn_ratelimited("context %u: iova %#llx-%#lx stays mapped: error %ld\n",
					    dom->ctx, dfn << XEN_PAGE_SHIFT,
					    iova + size - 1, ret);
			break;
		}
	}
	return done << XEN_PAGE_SHIFT;
}

/*
 * The record of mappings
 */

/*
 * Returns the number of page table pages that a range needs in addition to
 * those of its neighbours. Large pages count as if they were split, since they
 * may be.
 */
static long xen_iommu_tables(const struct xen_iommu_mapping *prev,
			     unsigned long iova, unsigned long last,
			     const struct xen_iommu_mapping *next)
{
	long tables = 0, nr;

	for (unsigned int shift = 21; shift < 48; shift += 9) {
		nr = (last >> shift) - (iova >> shift) + 1;
		if (prev && prev->last >> shift == iova >> shift)
			nr--;
		if (next && xen_iommu_start(next) >> shift == last >> shift)
			nr--;
		tables += max(nr, 0);
	}
	return tables;
}

/* All domains share the pool: VFIO and iommufd leave some to the DMA API. */
static bool xen_iommu_is_limited(const struct xen_iommu_domain *dom)
{
	return dom->domain.type == IOMMU_DOMAIN_UNMANAGED && dom->xi->max_tables;
}

static bool xen_iommu_less(struct rb_node *a, const struct rb_node *b)
{
	return xen_iommu_start(rb_entry(a, struct xen_iommu_mapping, node)) <
	       xen_iommu_start(rb_entry(b, struct xen_iommu_mapping, node));
}

/* Returns the first mapping with an address in the range, or NULL. */
static struct xen_iommu_mapping *xen_iommu_first(struct xen_iommu_domain *dom,
						 unsigned long iova,
						 unsigned long last)
{
	struct xen_iommu_mapping *m, *first = NULL;
	struct rb_node *node = dom->mappings.rb_node;

	lockdep_assert_held(&dom->lock);
	while (node) {
		m = to_mapping(node);
		if (m->last < iova) {
			node = node->rb_right;
			continue;
		}
		first = m;
		if (xen_iommu_start(m) <= iova)
			break;
		node = node->rb_left;
	}
	return first && xen_iommu_start(first) <= last ? first : NULL;
}

static struct xen_iommu_mapping *xen_iommu_next(struct xen_iommu_domain *dom,
						struct xen_iommu_mapping *m,
						unsigned long last)
{
	struct xen_iommu_mapping *next = to_mapping(rb_next(&m->node));

	lockdep_assert_held(&dom->lock);
	return next && xen_iommu_start(next) <= last ? next : NULL;
}

/* Returns the piece that contains @iova, which must be in the mapping. */
static struct xen_iommu_piece *xen_iommu_piece(struct xen_iommu_mapping *m,
					       unsigned long iova)
{
	struct xen_iommu_piece *p = &m->piece[m->nr - 1];

	while (p->iova > iova)
		p--;
	return p;
}

/* Makes @to, which may be @from, the part of @from that starts at @iova. */
static void xen_iommu_copy_tail(struct xen_iommu_mapping *to,
				struct xen_iommu_mapping *from,
				unsigned long iova)
{
	const struct xen_iommu_piece *p = xen_iommu_piece(from, iova);
	unsigned long size = iova - xen_iommu_start(from);

	to->last = from->last;
	to->mapped = from->mapped - min(size, from->mapped);
	to->nr = from->nr - (p - from->piece);
	memmove(to->piece, p, to->nr * sizeof(*p));
	to->piece[0].phys += iova - to->piece[0].iova;
	to->piece[0].iova = iova;
}

/*
 * Splits a mapping that extends across @iova. The mapping in front of @iova does
 * not grow any more. Returns 0 or -ENOMEM.
 */
static int xen_iommu_cut(struct xen_iommu_domain *dom, unsigned long iova)
{
	struct xen_iommu_mapping *m, *back;

	m = iova ? xen_iommu_first(dom, iova - 1, iova - 1) : NULL;
	if (!m)
		return 0;

	m->open = false;
	if (m->last < iova)
		return 0;

	back = kmalloc_flex(*back, piece, m->nr, GFP_ATOMIC);
	if (!back)
		return -ENOMEM;

	*back = (struct xen_iommu_mapping) { .flags = m->flags, .max = m->nr };
	xen_iommu_copy_tail(back, m, iova);
	m->last = iova - 1;
	m->mapped = min(xen_iommu_size(m), m->mapped);
	m->nr = xen_iommu_piece(m, m->last) - m->piece + 1;
	rb_add(&back->node, &dom->mappings, xen_iommu_less);
	return 0;
}

/* Removes a range from the record. No mapping may extend across its start. */
static void xen_iommu_erase(struct xen_iommu_domain *dom, unsigned long iova,
			    unsigned long last)
{
	struct xen_iommu_mapping *m, *prev, *next;
	unsigned long start, end;

	for (m = xen_iommu_first(dom, iova, last);
	     m && xen_iommu_start(m) <= last; m = next) {
		prev = to_mapping(rb_prev(&m->node));
		next = to_mapping(rb_next(&m->node));
		start = xen_iommu_start(m);
		end = min(m->last, last);
		if (m->last > last) {
			next = m;
			xen_iommu_copy_tail(m, m, last + 1);
		} else {
			rb_erase(&m->node, &dom->mappings);
			kfree(m);
		}
		if (xen_iommu_is_limited(dom))
			atomic_long_sub(xen_iommu_tables(prev, start, end, next),
					&dom->xi->tables);
	}
}

static phys_addr_t xen_iommu_iova_to_phys(struct iommu_domain *domain,
					  dma_addr_t iova)
{
	struct xen_iommu_domain *dom = to_xen_domain(domain);
	struct xen_iommu_mapping *m;
	struct xen_iommu_piece *p;

	guard(spinlock_irqsave)(&dom->lock);
	m = xen_iommu_first(dom, iova, iova);
	if (!m)
		return 0;
	p = xen_iommu_piece(m, iova);
	return p->phys + (iova - p->iova);
}

/*
 * Mapping
 */

/*
 * Records a piece: at the end of the mapping in front of it if that is open,
 * else in @new, which it takes and sets to NULL. Returns 0, an error, or the
 * number of pieces that the caller must allocate @new for.
 */
static int xen_iommu_record(struct xen_iommu_domain *dom, unsigned long iova,
			    unsigned long last, phys_addr_t phys, u32 flags,
			    struct xen_iommu_mapping **new)
{
	struct xen_iommu_mapping *m, *prev, *next;
	unsigned int need = 0;
	bool merge = false;
	long tables;

	guard(spinlock_irqsave)(&dom->lock);
	if (dom->enforce_cache)
		flags |= IOMMU_MAP_cache;

	next = xen_iommu_first(dom, iova, ULONG_MAX);
	if (next && xen_iommu_start(next) <= last)
		return -EADDRINUSE;

	prev = to_mapping(next ? rb_prev(&next->node) : rb_last(&dom->mappings));
	m = prev;
	if (m && m->last + 1 == iova && m->open && m->flags == flags) {
		const struct xen_iommu_piece *p = &m->piece[m->nr - 1];

		merge = p->phys + (iova - p->iova) == phys;
		if (!merge && m->nr == m->max)
			need = XEN_IOMMU_PIECES;
	} else {
		need = 1;
	}
	if (need && !*new)
		return need;

	if (xen_iommu_is_limited(dom)) {
		tables = xen_iommu_tables(prev, iova, last, next);
		if (tables && atomic_long_add_return(tables, &dom->xi->tables) >
			      dom->xi->max_tables) {
			atomic_long_sub(tables, &dom->xi->tables);
			return -ENOMEM;
		}
	}

	if (need) {
		m = *new;
		*new = NULL;
		m->flags = flags;
	}
	if (!merge)
		m->piece[m->nr++] = (struct xen_iommu_piece) { iova, phys };
	m->last = last;
	if (need)
		rb_add(&m->node, &dom->mappings, xen_iommu_less);
	return 0;
}

static int xen_iommu_map_pages(struct iommu_domain *domain, unsigned long iova,
			       phys_addr_t paddr, size_t pgsize, size_t pgcount,
			       int prot, gfp_t gfp, size_t *mapped)
{
	struct xen_iommu_domain *dom = to_xen_domain(domain);
	size_t size = pgsize * pgcount;
	unsigned long last = iova + size - 1;
	struct xen_iommu_mapping *new = NULL;
	u32 flags;
	int ret;

	if (!(prot & (IOMMU_READ | IOMMU_WRITE)))
		return -EINVAL;
	if (!size || last < iova || last > domain->geometry.aperture_end)
		return -ERANGE;

	flags = (prot & IOMMU_READ ? IOMMU_MAP_readable : 0) |
		(prot & IOMMU_WRITE ? IOMMU_MAP_writeable : 0);
	if ((prot & IOMMU_CACHE) && (dom->xi->caps & IOMMUCAP_cache))
		flags |= IOMMU_MAP_cache;

	ret = xen_iommu_record(dom, iova, last, paddr, flags, &new);
	if (ret > 0) {
		new = kmalloc_flex(*new, piece, ret, gfp);
		if (!new)
			return -ENOMEM;
		*new = (struct xen_iommu_mapping) { .open = true, .max = ret };
		ret = xen_iommu_record(dom, iova, last, paddr, flags, &new);
		kfree(new);
	}
	if (ret)
		return ret;
	*mapped = size;
	return 0;
}

/* Runs to map with one hypercall; all have the same flags. */
struct xen_iommu_batch {
	struct xen_iommu_domain *dom;
	/* Mapping of the first run. */
	struct xen_iommu_mapping *first;
	/* Points to @one, or to a physically contiguous array. */
	struct pv_iommu_run *run;
	unsigned int nr;
	unsigned int max;
	u32 flags;
	struct pv_iommu_run one;
};

/* Maps the runs in the batch and empties it. */
static int xen_iommu_issue(struct xen_iommu_batch *b)
{
	struct xen_iommu_domain *dom = b->dom;
	struct xen_iommu_mapping *m = b->first;
	unsigned long size, n;
	u64 done;
	int ret;

	if (!b->nr)
		return 0;

	ret = xen_iommu_map_runs(dom, b->flags, b->run, b->nr, &done);
	b->nr = 0;

	guard(spinlock_irqsave)(&dom->lock);
	for (size = done << XEN_PAGE_SHIFT; size; size -= n) {
		n = min(size, xen_iommu_size(m) - m->mapped);
		m->mapped += n;
		m = xen_iommu_next(dom, m, ULONG_MAX);
	}
	return ret;
}

/* Adds frames of a mapping to the batch, and issues it first if it is full. */
static int xen_iommu_add_run(struct xen_iommu_batch *b,
			     struct xen_iommu_mapping *m, u64 dfn, u64 gfn, u64 nr)
{
	struct pv_iommu_run *run = b->nr ? &b->run[b->nr - 1] : NULL, *many;
	int ret;

	if (run && run->dfn + run->nr_frames == dfn &&
	    run->gfn + run->nr_frames == gfn) {
		run->nr_frames += nr;
		return 0;
	}

	/* If this fails, runs are issued one by one. */
	if (b->nr == 1 && b->max == 1 && (b->dom->xi->caps & IOMMUCAP_runs)) {
		many = kmalloc_array(XEN_IOMMU_MAX_RUNS, sizeof(*many),
				     GFP_ATOMIC | __GFP_NOWARN);
		if (many) {
			many[0] = b->one;
			b->run = many;
			b->max = XEN_IOMMU_MAX_RUNS;
		}
	}
	if (b->nr == b->max) {
		ret = xen_iommu_issue(b);
		if (ret)
			return ret;
	}

	if (!b->nr)
		b->first = m;
	b->run[b->nr++] = (struct pv_iommu_run) {
		.gfn = gfn,
		.dfn = dfn,
		.nr_frames = nr,
	};
	return 0;
}

static int xen_iommu_add_mapping(struct xen_iommu_batch *b,
				 struct xen_iommu_mapping *m)
{
	struct xen_iommu_piece *p, *end = m->piece + m->nr;
	unsigned long iova = xen_iommu_start(m) + m->mapped, last;
	unsigned long dfn, pfn, left, nr;
	int ret = 0;

	if (m->mapped == xen_iommu_size(m))
		return 0;

	if (b->flags != m->flags)
		ret = xen_iommu_issue(b);
	b->flags = m->flags;

	for (p = xen_iommu_piece(m, iova); p < end && !ret; p++) {
		last = p + 1 < end ? p[1].iova - 1 : m->last;
		dfn = iova >> XEN_PAGE_SHIFT;
		pfn = (p->phys + (iova - p->iova)) >> XEN_PAGE_SHIFT;
		left = (last >> XEN_PAGE_SHIFT) - dfn + 1;
		/* In PV, contiguous pages are usually scattered in machine memory. */
		nr = xen_iommu_translated() ? left : 1;
		for (; left && !ret; left -= nr, dfn += nr, pfn += nr)
			ret = xen_iommu_add_run(b, m, dfn,
						xen_iommu_pfn_to_gfn(pfn), nr);
		iova = last + 1;
	}
	return ret;
}

static int xen_iommu_iotlb_sync_map(struct iommu_domain *domain,
				    unsigned long iova, size_t size)
{
	struct xen_iommu_domain *dom = to_xen_domain(domain);
	struct xen_iommu_batch batch = { .dom = dom, .run = &batch.one, .max = 1 };
	unsigned long last = iova + size - 1;
	struct xen_iommu_mapping *m;
	int ret;

	if (!size)
		return 0;

	scoped_guard(spinlock_irqsave, &dom->lock) {
		/* Adjacent pieces may be others' work. */
		ret = xen_iommu_cut(dom, iova) ?: xen_iommu_cut(dom, last + 1);
		m = xen_iommu_first(dom, iova, last);
	}
	while (m && !ret) {
		ret = xen_iommu_add_mapping(&batch, m);
		scoped_guard(spinlock_irqsave, &dom->lock)
			m = xen_iommu_next(dom, m, last);
	}
	if (!ret)
		ret = xen_iommu_issue(&batch);
	if (batch.run != &batch.one)
		kfree(batch.run);
	return ret;
}

/*
 * Unmapping
 */

/*
 * Determines how much of a range can be unmapped at once, from @iova on. Splits
 * mappings that are only partly in the range.
 *
 * Returns the number of bytes without a hole, or 0 if @iova is not mapped or
 * there is no memory for a split. The first @real of these bytes are mapped in
 * the hypervisor; the others could not be mapped.
 */
static size_t xen_iommu_extent(struct xen_iommu_domain *dom, unsigned long iova,
			       unsigned long last, size_t *real)
{
	struct xen_iommu_mapping *m;
	size_t size = 0;

	guard(spinlock_irqsave)(&dom->lock);
	*real = 0;
	if (xen_iommu_cut(dom, iova))
		return 0;

	m = xen_iommu_first(dom, iova, last);
	while (m && xen_iommu_start(m) == iova + size) {
		if (m->last > last && xen_iommu_cut(dom, last + 1))
			break;
		*real += m->mapped;
		size += xen_iommu_size(m);
		if (*real < size)
			break;
		m = xen_iommu_next(dom, m, last);
	}
	return size;
}

static size_t xen_iommu_unmap_pages(struct iommu_domain *domain,
				    unsigned long iova, size_t pgsize,
				    size_t pgcount,
				    struct iommu_iotlb_gather *gather)
{
	struct xen_iommu_domain *dom = to_xen_domain(domain);
	size_t size, real, done, total = 0, want = pgsize * pgcount;
	u32 flags = 0;

	if (gather && gather->queued)
		flags = IOMMU_UNMAP_no_flush;

	for (; total < want; total += done) {
		size = xen_iommu_extent(dom, iova + total, iova + want - 1, &real);
		done = xen_iommu_unmap_range(dom, flags, iova + total, real);
		if (done == real)
			done = size;
		if (!done)
			break;

		scoped_guard(spinlock_irqsave, &dom->lock)
			xen_iommu_erase(dom, iova + total, iova + total + done - 1);
		if (done < size)
			return total + done;
	}
	return total;
}

static void xen_iommu_flush_iotlb_all(struct iommu_domain *domain)
{
	struct xen_iommu_domain *dom = to_xen_domain(domain);
	/* Without a number of pages, this flushes the whole context. */
	struct pv_iommu_flush_pages op = {
		.ctx_no = dom->ctx,
		.pgsize = XEN_PAGE_SIZE,
	};
	int ret;

	/* Without deferred unmaps, unmap_pages() has already flushed. */
	if (!(dom->xi->caps & IOMMUCAP_deferred_unmap))
		return;

	ret = xen_iommu_op(IOMMU_flush_pages, &op);
	if (ret)
		pr_err_ratelimited("context %u: cannot be flushed: error %d\n",
				   dom->ctx, ret);
}

/*
 * Contexts
 */

/* Stores the number of a new context, unless it is not valid. */
static int xen_iommu_use_ctx(struct xen_iommu *xi, u16 nr, u16 *ctx)
{
	lockdep_assert_held(&xi->mutex);
	if (!nr || nr > xi->max_ctx) {
		pr_err_once("hypervisor returned context %u of %u\n", nr,
			    xi->max_ctx);
		return -EIO;
	}
	*ctx = nr;
	xi->nr_used++;
	return 0;
}

/**
 * xen_iommu_get_ctx - get an unused context
 * @xi: the IOMMU
 * @flags: IOMMU_ALLOC_identity, or 0 for a context to map into
 * @ctx: where to store its number
 *
 * Context: may sleep.
 * Return: 0, -ENOSPC if all are in use, or another negative error.
 */
static int xen_iommu_get_ctx(struct xen_iommu *xi, u32 flags, u16 *ctx)
{
	struct pv_iommu_alloc op = { .alloc_flags = flags };
	int ret = 0;

	if (!flags && (xi->caps & IOMMUCAP_alloc_empty))
		op.alloc_flags = IOMMU_ALLOC_empty;

	guard(mutex)(&xi->mutex);
	if (!flags && xi->nr_spare)
		op.ctx_no = xi->spare[--xi->nr_spare];
	else
		ret = xen_iommu_op(IOMMU_alloc_context, &op);
	return ret ?: xen_iommu_use_ctx(xi, op.ctx_no, ctx);
}

/*
 * Releases a domain's context. @empty: it does not contain mappings. Returns
 * false if the context is lost.
 */
static bool xen_iommu_put_ctx(struct xen_iommu_domain *dom, bool empty)
{
	struct xen_iommu *xi = dom->xi;
	struct xen_iommu_dev *xdev;
	int ret = -EBUSY;

	guard(mutex)(&xi->mutex);
	xi->nr_used--;
	/* The core may not have been able to move all devices out. */
	list_for_each_entry(xdev, &xi->devices, list) {
		if (xdev->domain == &dom->domain) {
			xdev->domain = NULL;
			dom->stray = true;
		}
	}
	empty &= !dom->stray;

	/* Hypervisors with earlier drafts leak pool pages on each free. */
	if (empty && !dom->desc && !(xi->caps & IOMMUCAP_runs) &&
	    xi->nr_spare < ARRAY_SIZE(xi->spare)) {
		xi->spare[xi->nr_spare++] = dom->ctx;
		return true;
	}

	/* They also crash if the context is not empty. */
	if (empty)
		ret = xen_iommu_free_ctx(dom->ctx);
	if (ret) {
		xi->nr_lost++;
		pr_warn("context %u is lost: error %d\n", dom->ctx, ret);
	}
	return !ret;
}

/*
 * Devices
 */

struct xen_iommu_id {
	struct xen_iommu_dev *xdev;
	int segment;
	u16 id;
};

static int xen_iommu_has_id(struct pci_dev *pdev, u16 id, void *data)
{
	const struct xen_iommu_id *wanted = data;

	return id == wanted->id && pci_domain_nr(pdev->bus) == wanted->segment;
}

/* Finds a device other than @wanted->xdev that uses this requester ID. */
static struct xen_iommu_dev *xen_iommu_find_id(struct xen_iommu *xi,
					       struct xen_iommu_id *wanted)
{
	struct xen_iommu_dev *xdev;

	lockdep_assert_held(&xi->mutex);
	list_for_each_entry(xdev, &xi->devices, list)
		if (xdev != wanted->xdev &&
		    pci_for_each_dma_alias(xdev->pdev, xen_iommu_has_id, wanted))
			return xdev;
	return NULL;
}

/*
 * Callback of pci_for_each_dma_alias(): checks whether another device uses the
 * same requester ID, and copies its context number. Devices behind a bridge
 * from PCIe to PCI, or behind VMD, share an ID. They are in one group, so the
 * core attaches them all to the same domain.
 */
static int xen_iommu_is_shared(struct pci_dev *pdev, u16 id, void *data)
{
	struct xen_iommu_id wanted = {
		.xdev = data,
		.segment = pci_domain_nr(pdev->bus),
		.id = id,
	};
	struct xen_iommu_dev *other = xen_iommu_find_id(wanted.xdev->xi, &wanted);

	if (other)
		wanted.xdev->ctx = other->ctx;
	return !!other;
}

struct xen_iommu_move {
	u16 ctx;
	/* The device, on release: IDs that others use are not moved. */
	struct xen_iommu_dev *released;
	bool alias;
};

/* Callback of pci_for_each_dma_alias(). The device's own ID comes first. */
static int xen_iommu_move_id(struct pci_dev *pdev, u16 id, void *data)
{
	struct xen_iommu_move *move = data;
	int ret;

	if (move->released && xen_iommu_is_shared(pdev, id, move->released))
		return 0;

	ret = xen_iommu_attach(pdev, id, move->ctx);
	/*
	 * The hypervisor may not know aliases, or set them up by itself. It
	 * already knows that an unplugged device is gone.
	 */
	if (ret == -ENODEV && (move->alias || move->released))
		ret = 0;
	if (!ret)
		move->alias = true;
	return ret;
}

/*
 * Moves a device, with all its requester IDs, to a context. Returns 0 or an
 * error that attach_dev() may return; on error, the device stays where it was.
 */
static int xen_iommu_move(struct xen_iommu_dev *xdev, u16 ctx,
			  struct iommu_domain *domain)
{
	struct xen_iommu_move move = { .ctx = ctx };
	struct xen_iommu_move back = { .ctx = xdev->ctx };
	int ret;

	lockdep_assert_held(&xdev->xi->mutex);
	ret = pci_for_each_dma_alias(xdev->pdev, xen_iommu_move_id, &move);
	if (ret) {
		if (move.alias)
			pci_for_each_dma_alias(xdev->pdev, xen_iommu_move_id, &back);
		return ret;
	}
	xdev->ctx = ctx;
	xdev->domain = domain;
	return 0;
}

static int xen_iommu_attach_dev(struct iommu_domain *domain, struct device *dev,
				struct iommu_domain *old)
{
	struct xen_iommu_dev *xdev = dev_iommu_priv_get(dev);

	guard(mutex)(&xdev->xi->mutex);
	return xen_iommu_move(xdev, to_xen_domain(domain)->ctx, domain);
}

static const struct iommu_domain_ops xen_iommu_static_ops = {
	.attach_dev = xen_iommu_attach_dev,
};

static struct xen_iommu_domain xen_iommu_identity = {
	.domain.type = IOMMU_DOMAIN_IDENTITY,
	.domain.ops = &xen_iommu_static_ops,
};

static struct xen_iommu_domain xen_iommu_blocked = {
	.domain.type = IOMMU_DOMAIN_BLOCKED,
	.domain.ops = &xen_iommu_static_ops,
};

static struct iommu_device *xen_iommu_probe_device(struct device *dev)
{
	struct xen_iommu *xi = xen_iommu;
	struct xen_iommu_dev *xdev;
	struct pci_dev *pdev;
	int ret;

	if (!dev_is_pci(dev))
		return ERR_PTR(-ENODEV);
	pdev = to_pci_dev(dev);
	/* The interface has 16 bits for a segment. VMD's segments have more. */
	if (pdev->class >> 8 == PCI_CLASS_SYSTEM_IOMMU ||
	    pci_domain_nr(pci_real_dma_dev(pdev)->bus) > U16_MAX)
		return ERR_PTR(-ENODEV);

	xdev = kzalloc_obj(*xdev);
	if (!xdev)
		return ERR_PTR(-ENOMEM);
	xdev->xi = xi;
	xdev->pdev = pdev;

	guard(mutex)(&xi->mutex);
	/*
	 * Check that Xen knows the device by moving it to the context that it is
	 * in already, or to that of devices with the same requester ID. Xen knows
	 * hotplugged devices and new VFs by now: the bus notifier that tells it
	 * (drivers/xen/pci.c, an arch_initcall) runs before that of the IOMMU
	 * core (a subsys_initcall).
	 */
	pci_for_each_dma_alias(pdev, xen_iommu_is_shared, xdev);
	ret = xen_iommu_move(xdev, xdev->ctx, NULL);
	if (ret) {
		kfree(xdev);
		return ERR_PTR(ret == -ENOMEM ? ret : -ENODEV);
	}
	list_add_tail(&xdev->list, &xi->devices);
	dev_iommu_priv_set(dev, xdev);
	return &xi->iommu;
}

static void xen_iommu_release_device(struct device *dev)
{
	struct xen_iommu_dev *xdev = dev_iommu_priv_get(dev);
	struct xen_iommu_move move = {
		.ctx = xen_iommu_blocked.ctx,
		.released = xdev,
	};
	struct xen_iommu *xi = xdev->xi;
	int ret;

	guard(mutex)(&xi->mutex);
	list_del(&xdev->list);

	/*
	 * If firmware requires a region to stay mapped, or if registration has
	 * failed, the device returns to Xen's default context.
	 */
	if (dev->iommu->require_direct || !xi->registered)
		move.ctx = 0;
	/* A context cannot be reused while a device is still in it. */
	ret = pci_for_each_dma_alias(xdev->pdev, xen_iommu_move_id, &move);
	if (ret) {
		pci_warn(xdev->pdev, "stays in context %u: error %d\n", xdev->ctx,
			 ret);
		if (xdev->domain)
			to_xen_domain(xdev->domain)->stray = true;
	}
	dev_iommu_priv_set(dev, NULL);
	kfree(xdev);
}

static bool xen_iommu_capable(struct device *dev, enum iommu_cap cap)
{
	struct xen_iommu_dev *xdev = dev_iommu_priv_get(dev);
	u32 caps = xdev->xi->caps;

	switch (cap) {
	case IOMMU_CAP_CACHE_COHERENCY:
		return IS_ENABLED(CONFIG_X86) || (caps & IOMMUCAP_cache);
	case IOMMU_CAP_ENFORCE_CACHE_COHERENCY:
		/* The nested format has no bit for this. */
		return (caps & IOMMUCAP_cache) && !xdev->xi->nested.pgsize_mask;
	case IOMMU_CAP_DEFERRED_FLUSH:
		return caps & IOMMUCAP_deferred_unmap;
	default:
		return false;
	}
}

/*
 * Reserved regions
 */

static void xen_iommu_add_region(struct list_head *head, phys_addr_t start,
				 size_t size, int prot,
				 enum iommu_resv_type type)
{
	struct iommu_resv_region *region;

	region = iommu_alloc_resv_region(start, size, prot, type, GFP_KERNEL);
	if (region)
		list_add_tail(&region->list, head);
}

/**
 * xen_iommu_get_rdm - get the regions that firmware has reserved
 * @pdev: device to get the regions of, NULL for all devices
 * @type: type to report them as
 * @head: list to add them to
 *
 * Context: may sleep.
 * Return: 0 or a negative error.
 */
static int xen_iommu_get_rdm(struct pci_dev *pdev, enum iommu_resv_type type,
			     struct list_head *head)
{
	struct xen_reserved_device_memory_map map = {};
	struct xen_reserved_device_memory *buf;
	unsigned int max;
	int ret;

	if (pdev) {
		map.dev.pci.seg = pci_domain_nr(pdev->bus);
		map.dev.pci.bus = pdev->bus->number;
		map.dev.pci.devfn = pdev->devfn;
	} else {
		map.flags = XENMEM_RDM_ALL;
	}

	/* Without a buffer, this returns the number of regions. */
	ret = xen_iommu_memory_op(XENMEM_reserved_device_memory_map, &map);
	if (ret != -ENOBUFS)
		return ret;

	max = map.nr_entries;
	buf = kcalloc(max, sizeof(*buf), GFP_KERNEL);
	if (!buf)
		return -ENOMEM;
	set_xen_guest_handle(map.buffer, buf);
	ret = xen_iommu_memory_op(XENMEM_reserved_device_memory_map, &map);
	if (!ret && map.nr_entries > max)
		ret = -EIO;
	for (unsigned int i = 0; !ret && i < map.nr_entries; i++)
		if (buf[i].nr_pages)
			xen_iommu_add_region(head,
					     (phys_addr_t)buf[i].start_pfn << XEN_PAGE_SHIFT,
					     (size_t)buf[i].nr_pages << XEN_PAGE_SHIFT,
					     IOMMU_READ | IOMMU_WRITE, type);
	kfree(buf);
	return ret;
}

static void xen_iommu_get_resv_regions(struct device *dev,
				       struct list_head *head)
{
	struct xen_iommu_dev *xdev = dev_iommu_priv_get(dev);
	struct pci_dev *pdev = pci_real_dma_dev(xdev->pdev);
	enum iommu_resv_type type = IOMMU_RESV_DIRECT;
	int ret;

#ifdef CONFIG_X86
	xen_iommu_add_region(head, MSI_RANGE_START, MSI_RANGE_SIZE, 0,
			     IOMMU_RESV_MSI);
	/* The hypervisor does not report the IOMMU's vendor: go by the CPU's. */
	if (boot_cpu_data.x86_vendor != X86_VENDOR_INTEL &&
	    xdev->xi->max_iova >= HT_RANGE_START)
		xen_iommu_add_region(head, HT_RANGE_START, HT_RANGE_SIZE, 0,
				     IOMMU_RESV_RESERVED);
#endif

	/* As other IOMMU drivers do: firmware rarely uses these regions. */
	if (pdev->class >> 8 == PCI_CLASS_SERIAL_USB ||
	    pdev->class >> 16 == PCI_BASE_CLASS_DISPLAY)
		type = IOMMU_RESV_DIRECT_RELAXABLE;

	/*
	 * Without IOMMUCAP_alloc_empty, the hypervisor maps the regions of all
	 * devices into each context and rejects other mappings there. A nested
	 * context contains only what we map.
	 */
	if ((xdev->xi->caps & IOMMUCAP_alloc_empty) ||
	    xdev->xi->nested.pgsize_mask)
		ret = xen_iommu_get_rdm(pdev, type, head);
	else
		ret = xen_iommu_get_rdm(NULL, IOMMU_RESV_RESERVED, head);
	if (ret)
		pci_warn(pdev, "reserved regions are not known: error %d\n", ret);
}

/*
 * Nested domains
 */

/*
 * The page table is in our own memory, and generic_pt maintains it. The
 * hypervisor nests it under our P2M, so it contains guest physical addresses.
 */

static void xen_iommu_get_nested_format(struct xen_iommu *xi)
{
	struct pv_iommu_nested_format fmt = {};
	long ret;

	if (!IS_ENABLED(CONFIG_IOMMU_PT_X86_64) || !xen_iommu_nested ||
	    !(xi->caps & IOMMUCAP_nested) || !(xi->caps & IOMMUCAP_query))
		return;

	ret = xen_iommu_call(IOMMU_query, IOMMU_QUERY_nested,
			     IOMMU_NESTED_FMT_x86_64_4, (unsigned long)&fmt,
			     sizeof(fmt));
	if (ret > 0 && (fmt.pgsize_mask & PAGE_SIZE))
		xi->nested = fmt;
}

/**
 * xen_iommu_flush_nested - flush the IOTLB of a nested domain
 * @domain: the domain
 * @dfn: first frame
 * @nr: number of frames, 0 for the whole domain
 * @flags: IOMMU_FLUSH_*
 *
 * Context: any.
 * Return: true, or false if the IOMMU may still use removed tables.
 */
static bool xen_iommu_flush_nested(struct iommu_domain *domain,
				   unsigned long dfn, unsigned long nr, u32 flags)
{
	u16 ctx = to_xen_domain(domain)->ctx;
	long ret;

	ret = xen_iommu_call(IOMMU_flush_nested, ctx | (u64)flags << 32, dfn, nr, 0);
	if (ret < 0)
		pr_err_ratelimited("context %u: cannot be flushed: error %ld\n",
				   ctx, ret);
	return ret >= 0;
}

static void xen_iommu_nested_flush_iotlb_all(struct iommu_domain *domain)
{
	xen_iommu_flush_nested(domain, 0, 0, IOMMU_FLUSH_tables);
}

static void xen_iommu_nested_iotlb_sync(struct iommu_domain *domain,
					struct iommu_iotlb_gather *gather)
{
	unsigned long dfn = gather->start >> XEN_PAGE_SHIFT;
	unsigned long nr = (gather->end >> XEN_PAGE_SHIFT) - dfn + 1;
	u32 flags = 0;

	if (!iommu_pages_list_empty(&gather->freelist))
		flags = IOMMU_FLUSH_tables;
	if (xen_iommu_flush_nested(domain, dfn, nr, flags))
		iommu_put_pages_list(&gather->freelist);
}

static void xen_iommu_nested_free(struct iommu_domain *domain)
{
	struct xen_iommu_domain *dom = to_xen_domain(domain);

	/* Never free a page table that a device may still walk. */
	if (!xen_iommu_put_ctx(dom, true))
		return;

	pt_iommu_deinit(&dom->pt.iommu);
	free_page((unsigned long)dom->desc);
	kfree(dom);
}

static const struct iommu_domain_ops xen_iommu_nested_ops = {
	IOMMU_PT_DOMAIN_OPS(x86_64),
	.attach_dev		= xen_iommu_attach_dev,
	.flush_iotlb_all	= xen_iommu_nested_flush_iotlb_all,
	.iotlb_sync		= xen_iommu_nested_iotlb_sync,
	.free			= xen_iommu_nested_free,
};

/* Gives a domain an empty page table. Only this depends on the format. */
static int xen_iommu_init_nested(struct xen_iommu_domain *dom, int nid)
{
	struct xen_iommu *xi = dom->xi;
	const struct pt_iommu_x86_64_cfg cfg = {
		.common.features = BIT(PT_FEAT_FLUSH_RANGE),
		.common.hw_max_vasz_lg2 = xi->nested.input_bits,
		.common.hw_max_oasz_lg2 = xi->nested.output_bits,
		.top_level = 3,
	};
	struct pv_iommu_alloc_nested op = {
		.nested_flags = IOMMU_NESTED_FMT_x86_64_4,
	};
	struct pt_iommu_x86_64_hw_info info;
	int ret;

	dom->desc = (void *)get_zeroed_page(GFP_KERNEL);
	if (!dom->desc)
		return -ENOMEM;

	dom->pt.iommu.nid = nid;
	ret = pt_iommu_x86_64_init(&dom->pt, &cfg, GFP_KERNEL);
	if (ret)
		goto err;
	dom->domain.ops = &xen_iommu_nested_ops;
	dom->domain.pgsize_bitmap &= xi->nested.pgsize_mask;

	pt_iommu_x86_64_hw_info(&dom->pt, &info);
	op.pgtable_gfn = xen_iommu_pfn_to_gfn(PHYS_PFN(info.gcr3_pt));
	op.desc_gfn = xen_iommu_pfn_to_gfn(PHYS_PFN(virt_to_phys(dom->desc)));
	scoped_guard(mutex, &xi->mutex)
		ret = xen_iommu_op(IOMMU_alloc_nested, &op) ?:
		      xen_iommu_use_ctx(xi, op.ctx_no, &dom->ctx);
	if (!ret)
		return 0;

err:
	pt_iommu_deinit(&dom->pt.iommu);
	free_page((unsigned long)dom->desc);
	return ret;
}

/*
 * Domains
 */

static void xen_iommu_domain_free(struct iommu_domain *domain)
{
	struct xen_iommu_domain *dom = to_xen_domain(domain);
	struct xen_iommu_mapping *m, *next;
	bool empty = true;

	rbtree_postorder_for_each_entry_safe(m, next, &dom->mappings, node) {
		if (xen_iommu_unmap_range(dom, 0, xen_iommu_start(m),
					  m->mapped) < m->mapped)
			empty = false;
	}
	/* The DMA API frees a domain without flushing its lazy unmaps. */
	xen_iommu_flush_iotlb_all(domain);
	xen_iommu_put_ctx(dom, empty);

	scoped_guard(spinlock_irqsave, &dom->lock)
		xen_iommu_erase(dom, 0, ULONG_MAX);
	kfree(dom);
}

static bool xen_iommu_enforce_cache_coherency(struct iommu_domain *domain)
{
	struct xen_iommu_domain *dom = to_xen_domain(domain);

	guard(spinlock_irqsave)(&dom->lock);
	/* Existing mappings may not be coherent. */
	if ((dom->xi->caps & IOMMUCAP_cache) &&
	    !xen_iommu_first(dom, 0, ULONG_MAX))
		dom->enforce_cache = true;
	return dom->enforce_cache;
}

static const struct iommu_domain_ops xen_iommu_paging_ops = {
	.attach_dev		= xen_iommu_attach_dev,
	.map_pages		= xen_iommu_map_pages,
	.unmap_pages		= xen_iommu_unmap_pages,
	.flush_iotlb_all	= xen_iommu_flush_iotlb_all,
	.iotlb_sync_map		= xen_iommu_iotlb_sync_map,
	.iova_to_phys		= xen_iommu_iova_to_phys,
	.enforce_cache_coherency = xen_iommu_enforce_cache_coherency,
	.free			= xen_iommu_domain_free,
};

static int xen_iommu_init_paging(struct xen_iommu_domain *dom)
{
	struct xen_iommu *xi = dom->xi;

	dom->mappings = RB_ROOT;
	spin_lock_init(&dom->lock);
	dom->domain.ops = &xen_iommu_paging_ops;
	dom->domain.pgsize_bitmap = xi->pgsize_bitmap;
	dom->domain.geometry.aperture_end = xi->max_iova;
	dom->domain.geometry.force_aperture = true;
	return xen_iommu_get_ctx(xi, 0, &dom->ctx);
}

static struct iommu_domain *
xen_iommu_domain_alloc_paging_flags(struct device *dev, u32 flags,
				    const struct iommu_user_data *user_data)
{
	struct xen_iommu_dev *xdev = dev_iommu_priv_get(dev);
	struct xen_iommu_domain *dom;
	int ret;

	if (flags || user_data)
		return ERR_PTR(-EOPNOTSUPP);

	dom = kzalloc_obj(*dom);
	if (!dom)
		return ERR_PTR(-ENOMEM);

	dom->xi = xdev->xi;
	if (dom->xi->nested.pgsize_mask)
		ret = xen_iommu_init_nested(dom, dev_to_node(dev));
	else
		ret = xen_iommu_init_paging(dom);
	if (ret) {
		kfree(dom);
		return ERR_PTR(ret);
	}
	/* The core sets the type of its own domains; iommufd does not. */
	dom->domain.type = IOMMU_DOMAIN_UNMANAGED;
	return &dom->domain;
}

/*
 * Faults
 */

static void xen_iommu_report_fault(struct xen_iommu *xi,
				   const struct pv_iommu_fault *fault)
{
	struct xen_iommu_id wanted = {
		.segment = fault->dev.seg,
		.id = PCI_DEVID(fault->dev.bus, fault->dev.devfn),
	};
	bool write = fault->flags & IOMMU_FAULT_write;
	struct xen_iommu_dev *xdev;

	if (fault->lost)
		pr_warn_ratelimited("%u faults were lost\n", fault->lost);

	guard(mutex)(&xi->mutex);
	xdev = xen_iommu_find_id(xi, &wanted);
	/* Log the fault only if no handler takes it. */
	if (xdev && xdev->domain &&
	    !report_iommu_fault(xdev->domain, &xdev->pdev->dev, fault->addr,
				write ? IOMMU_FAULT_WRITE : IOMMU_FAULT_READ))
		return;

	pr_err_ratelimited("%04x:%02x:%02x.%u: DMA %s fault at %#llx in context %u, reason %#x\n",
			   fault->dev.seg, fault->dev.bus,
			   PCI_SLOT(fault->dev.devfn), PCI_FUNC(fault->dev.devfn),
			   write ? "write" : "read", fault->addr, fault->ctx_no,
			   fault->reason);
}

static void xen_iommu_fetch_faults(struct work_struct *work)
{
	struct xen_iommu *xi = container_of(to_delayed_work(work),
					    struct xen_iommu, faults);
	struct pv_iommu_fault fault[XEN_IOMMU_FAULTS];
	long nr;

	nr = xen_iommu_call(IOMMU_get_faults, (unsigned long)fault,
			    ARRAY_SIZE(fault), 0, 0);
	for (long i = 0; i < nr && i < ARRAY_SIZE(fault); i++)
		xen_iommu_report_fault(xi, &fault[i]);
	/* More may be waiting, for which no interrupt will come. */
	if (nr == ARRAY_SIZE(fault))
		schedule_delayed_work(&xi->faults, XEN_IOMMU_FAULT_DELAY);
}

/* Delay the fetch, so that a storm of faults does not keep a CPU busy. */
static irqreturn_t xen_iommu_fault_irq(int irq, void *data)
{
	struct xen_iommu *xi = data;

	schedule_delayed_work(&xi->faults, XEN_IOMMU_FAULT_DELAY);
	return IRQ_HANDLED;
}

static void xen_iommu_init_faults(struct xen_iommu *xi)
{
	int ret;

	if (!(xi->caps & IOMMUCAP_faults))
		return;

	ret = bind_virq_to_irqhandler(VIRQ_IOMMU, 0, xen_iommu_fault_irq, 0,
				      "xen-iommu", xi);
	/* The first call enables reporting. */
	if (ret >= 0)
		ret = xen_iommu_call(IOMMU_get_faults, 0, 0, 0, 0);
	if (ret < 0)
		pr_warn("DMA faults are not reported: error %d\n", ret);
}

/*
 * Initialisation
 */

#ifdef CONFIG_IOMMU_DEBUGFS
static int xen_iommu_show(struct seq_file *s, void *unused)
{
	struct xen_iommu *xi = s->private;

	guard(mutex)(&xi->mutex);
	seq_printf(s, "hypercalls %lu\n", xen_iommu_count_hypercalls());
	seq_printf(s, "contexts %u\n", xi->max_ctx);
	seq_printf(s, "contexts_used %u\n", xi->nr_used);
	seq_printf(s, "contexts_spare %u\n", xi->nr_spare);
	seq_printf(s, "contexts_lost %u\n", xi->nr_lost);
	seq_printf(s, "pool_order %u\n", xi->pool_order);
	seq_printf(s, "tables %ld\n", atomic_long_read(&xi->tables));
	seq_printf(s, "max_tables %ld\n", xi->max_tables);
	seq_printf(s, "capabilities %#x\n", xi->caps);
	seq_printf(s, "nested %u\n", !!xi->nested.pgsize_mask);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(xen_iommu);
#endif /* CONFIG_IOMMU_DEBUGFS */

/* Returns a parameter, or its default if it is 0, clamped to its bounds. */
static unsigned int xen_iommu_param(const char *name, unsigned int value,
				    unsigned int def, unsigned int min,
				    unsigned int max)
{
	unsigned int clamped = clamp(value ?: def, min, max);

	if (value && value != clamped)
		pr_warn("%s=%u is out of range, taking %u\n", name, value, clamped);
	return clamped;
}

/*
 * Sets the number of contexts and the size of the pool that holds their page
 * tables. Tables that map all memory by 4 KiB pages take 1/512 of it. Ask for
 * twice that and a few more pages per context, or for less if the hypervisor
 * refuses.
 */
static int xen_iommu_init_contexts(struct xen_iommu *xi)
{
	struct pv_iommu_limits limits = {
		.max_ctx_no = XEN_IOMMU_MAX_CTX,
		.arena_order = XEN_IOMMU_MAX_ORDER,
	};
	unsigned long pages = totalram_pages() << (PAGE_SHIFT - XEN_PAGE_SHIFT);
	unsigned int contexts, order, max_order;
	int ret, err;

	if (xi->caps & IOMMUCAP_query)
		xen_iommu_call(IOMMU_query, IOMMU_QUERY_limits, 0,
			       (unsigned long)&limits, sizeof(limits));
	limits.max_ctx_no = clamp(limits.max_ctx_no, XEN_IOMMU_MIN_CTX,
				  XEN_IOMMU_MAX_CTX);
	limits.arena_order = clamp(limits.arena_order, XEN_IOMMU_MIN_ORDER,
				   XEN_IOMMU_MAX_ORDER);

	contexts = clamp(pages >> (24 - XEN_PAGE_SHIFT), 64UL, 1024UL);
	contexts = xen_iommu_param("contexts", xen_iommu_contexts, contexts,
				   XEN_IOMMU_MIN_CTX, limits.max_ctx_no);
	max_order = xen_iommu_param("pool_order", xen_iommu_pool_order,
				    order_base_2(pages / 256 + 4 * contexts),
				    XEN_IOMMU_MIN_ORDER, limits.arena_order);

	for (; contexts >= XEN_IOMMU_MIN_CTX; contexts /= 2) {
		for (order = max_order; order >= XEN_IOMMU_MIN_ORDER; order--) {
			struct pv_iommu_init op = {
				.max_ctx_no = contexts,
				.arena_order = order,
			};

			/* Go by the query: earlier drafts return nonsense here. */
			err = xen_iommu_op(IOMMU_init, &op);
			ret = xen_iommu_query(xi);
			if (ret)
				return ret;
			if (xi->max_ctx) {
				xi->pool_order = order;
				xi->max_tables = BIT(order) / 4 * 3;
				return 0;
			}
			if (err != -EINVAL && err != -ENOMEM && err != -ENOSPC)
				return err ?: -ENODEV;
		}
	}
	return err;
}

static struct iommu_ops xen_iommu_ops = {
	.capable		= xen_iommu_capable,
	.domain_alloc_paging_flags = xen_iommu_domain_alloc_paging_flags,
	.probe_device		= xen_iommu_probe_device,
	.release_device		= xen_iommu_release_device,
	.device_group		= pci_device_group,
	.get_resv_regions	= xen_iommu_get_resv_regions,
	.default_domain_ops	= &xen_iommu_paging_ops,
	.blocked_domain		= &xen_iommu_blocked.domain,
	.owner			= THIS_MODULE,
};

/* Frees the IOMMU, the spare contexts and those of static domains. */
static void xen_iommu_teardown(struct xen_iommu *xi)
{
	while (xi->nr_spare)
		xen_iommu_free_ctx(xi->spare[--xi->nr_spare]);
	if (xen_iommu_identity.ctx)
		xen_iommu_free_ctx(xen_iommu_identity.ctx);
	if (xen_iommu_blocked.ctx)
		xen_iommu_free_ctx(xen_iommu_blocked.ctx);
	mutex_destroy(&xi->mutex);
	kfree(xi);
}

/**
 * xen_iommu_setup - initialise the hypervisor's IOMMU
 * @xi: the IOMMU, zeroed
 *
 * Context: may sleep.
 * Return: 0 or a negative error, for xen_iommu_teardown() to clean up; -ENOSYS
 * if the hypervisor has no PV-IOMMU, -ENODEV if there is no IOMMU for this
 * domain.
 */
static int xen_iommu_setup(struct xen_iommu *xi)
{
	bool identity;
	int ret;

	mutex_init(&xi->mutex);
	INIT_LIST_HEAD(&xi->devices);
	INIT_DELAYED_WORK(&xi->faults, xen_iommu_fetch_faults);

	ret = xen_iommu_query(xi);
	if (!ret && !xi->max_ctx)
		ret = xen_iommu_init_contexts(xi);
	if (ret)
		return ret;

	if (!(xi->pgsize_bitmap & XEN_PAGE_SIZE)) {
		pr_err("no 4 KiB pages among page sizes %#lx\n", xi->pgsize_bitmap);
		return -ENODEV;
	}
	xen_iommu_get_nested_format(xi);

	/* Context 0 is that of either the identity or the blocked domain. */
	identity = xi->caps & IOMMUCAP_default_identity;
	if (identity)
		ret = xen_iommu_get_ctx(xi, 0, &xen_iommu_blocked.ctx);
	else if (xi->caps & IOMMUCAP_identity)
		identity = !xen_iommu_get_ctx(xi, IOMMU_ALLOC_identity,
					      &xen_iommu_identity.ctx);
	xen_iommu_ops.identity_domain = identity ? &xen_iommu_identity.domain : NULL;
	return ret;
}

#ifdef CONFIG_X86
/* "iommu=" applies to any IOMMU on x86. */
static int __init xen_iommu_parse(char *str)
{
	for (; str && *str; str += strcspn(str, ","), str += *str == ',')
		if (!strncmp(str, "off", 3) || !strncmp(str, "soft", 4))
			xen_iommu_enable = false;
	return 0;
}
early_param("iommu", xen_iommu_parse);
#endif

/* ACS has to be requested before PCI devices are found: groups depend on it. */
static int __init xen_iommu_early_init(void)
{
	struct xen_iommu *xi;
	int ret;

	if (!xen_domain() || !xen_iommu_enable)
		return 0;

	xi = kzalloc_obj(*xi);
	if (!xi)
		return -ENOMEM;

	ret = xen_iommu_setup(xi);
	if (ret) {
		xen_iommu_teardown(xi);
		if (xen_initial_domain())
			pr_info("Xen offers no PV-IOMMU: error %d\n", ret);
		return 0;
	}

	pci_request_acs();
	xen_iommu = xi;
	return 0;
}
arch_initcall(xen_iommu_early_init);

static ssize_t nested_show(struct device *dev, struct device_attribute *attr,
			   char *buf)
{
	struct xen_iommu *xi = container_of(dev_to_iommu_device(dev),
					    struct xen_iommu, iommu);

	return sysfs_emit(buf, "%d\n", !!xi->nested.pgsize_mask);
}
static DEVICE_ATTR_RO(nested);

static struct attribute *xen_iommu_attrs[] = {
	&dev_attr_nested.attr,
	NULL
};

static const struct attribute_group xen_iommu_group = {
	.name = "xen-iommu",
	.attrs = xen_iommu_attrs,
};

__ATTRIBUTE_GROUPS(xen_iommu);

/* Like other IOMMU drivers, register before drivers bind to devices. */
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
	ret = iommu_device_register(&xi->iommu, &xen_iommu_ops, NULL);
	if (ret)
		goto err_sysfs;

	xi->registered = true;
	if (xi->caps & IOMMUCAP_isolated_msi)
		xen_iommu_isolate_msi();
	xen_iommu_init_faults(xi);
#ifdef CONFIG_IOMMU_DEBUGFS
	debugfs_create_file("xen", 0444, iommu_debugfs_dir, xi, &xen_iommu_fops);
#endif
	pr_info("%u contexts, 2^%u pages for tables, page sizes %#lx, capabilities %#x, %d-bit addresses%s\n",
		xi->max_ctx, xi->pool_order, xi->pgsize_bitmap, xi->caps,
		fls64(xi->max_iova), xi->nested.pgsize_mask ? ", nested" : "");
	return 0;

err_sysfs:
	iommu_device_sysfs_remove(&xi->iommu);
err:
	pr_err("not in use: registration with %u contexts failed: error %d\n",
	       xi->max_ctx, ret);
	xen_iommu = NULL;
	xen_iommu_teardown(xi);
	return ret;
}
rootfs_initcall(xen_iommu_init);
